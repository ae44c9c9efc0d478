//! What changes on the host under a running gateway: addresses, links, traffic control. `linux/rtnetlink.h`.
//!
//! Only that something of a kind changed is told, not what: whoever cares reads the kernel's state anew, which is also
//! what a lost notification makes necessary.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use crate::error::NetlinkError;
use crate::socket::NetlinkSocket;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELTFILTER: u16 = 45;

/// What kind of thing changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Change {
    /// Addresses of interfaces.
    Addresses,
    /// Interfaces: they came, went, were set up or down.
    Links,
    /// Queueing disciplines, classes or filters.
    TrafficControl,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Addresses, Self::Links, Self::TrafficControl];

    const fn of(kind: u16) -> Option<Self> {
        match kind {
            RTM_NEWLINK | RTM_DELLINK => Some(Self::Links),
            RTM_NEWADDR | RTM_DELADDR => Some(Self::Addresses),
            RTM_NEWQDISC..=RTM_DELTFILTER => Some(Self::TrafficControl),
            _ => None,
        }
    }
}

/// Listens to the kernel of the network namespace in which it was opened.
#[derive(Debug)]
pub struct HostMonitor {
    socket: NetlinkSocket,
}

impl HostMonitor {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        let socket = NetlinkSocket::monitor(netlink_sys::protocols::NETLINK_ROUTE, &groups)?;
        Ok(Self { socket })
    }

    /// What has changed since the last call, but for what the socket with the port `own` changed itself. Never blocks.
    /// Everything, if notifications were lost.
    pub fn changes(&mut self, own: Option<u32>) -> BTreeSet<Change> {
        let mut changes = BTreeSet::new();
        loop {
            let read = self.socket.next_notice(|kind, cause, _| {
                if own != Some(cause) {
                    changes.extend(Change::of(kind));
                }
            });
            match read {
                Ok(true) => {}
                Ok(false) => return changes,
                Err(_) => {
                    changes.extend(Change::ALL);
                    return changes;
                }
            }
        }
    }

    /// Readable when there may be changes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}
