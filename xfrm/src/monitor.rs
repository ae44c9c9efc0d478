//! What the kernel tells on its own account: limits reached, packets that want a tunnel, peers that moved.
//!
//! A socket of its own that never sends. Lost events show as [`NetlinkError::Overrun`]; the listener then reads the
//! states' counters instead.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use netlink_packet_xfrm::constants::{
    XFRM_MSG_ACQUIRE, XFRM_MSG_EXPIRE, XFRM_MSG_MAPPING, XFRMA_TMPL, XFRMNLGRP_ACQUIRE, XFRMNLGRP_EXPIRE,
    XFRMNLGRP_MAPPING,
};
use netlink_packet_xfrm::{UserExpire, UserMapping, UserTemplate};

use crate::dump::SaEntry;
use crate::error::NetlinkError;
use crate::sa::SaKey;
use crate::{NetlinkSocket, codec, convert};

/// Something happened in the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A state reached a limit. After a hard one it is gone; `state` has its last counters.
    Expired {
        /// The state.
        state: SaEntry,
        /// Hard limit.
        hard: bool,
    },
    /// A packet met a protecting policy without a state. The kernel tells once until its larval state expires
    /// (`net.core.xfrm_acq_expires`, 30 s).
    Acquire {
        /// Reqid of the policy.
        reqid: u32,
    },
    /// An encapsulated packet that passed the integrity check came from another address or port.
    Mapping {
        /// The inbound state.
        key: SaKey,
        /// Its reqid.
        reqid: u32,
        /// Where the packet came from.
        remote: SocketAddr,
    },
}

impl Event {
    /// Reads a notification; `None` for those that mean nothing to us.
    pub fn parse(kind: u16, payload: &[u8]) -> Option<Self> {
        let (fixed, attributes) = convert::split(kind, payload)?;
        match kind {
            XFRM_MSG_EXPIRE => {
                let expire = UserExpire::parse(fixed).ok()?;
                let state = SaEntry::of(&expire.state, attributes)?;
                Some(Self::Expired { state, hard: expire.hard != 0 })
            }
            XFRM_MSG_ACQUIRE => {
                let template = UserTemplate::parse(codec::find(attributes, XFRMA_TMPL)?).ok()?;
                Some(Self::Acquire { reqid: template.reqid })
            }
            XFRM_MSG_MAPPING => {
                let mapping = UserMapping::parse(fixed).ok()?;
                let family = mapping.id.family;
                let destination: IpAddr = convert::ip(&mapping.id.daddr, family)?;
                Some(Self::Mapping {
                    key: SaKey { destination, spi: cygnet_model::Spi::new(mapping.id.spi)? },
                    reqid: mapping.reqid,
                    remote: SocketAddr::new(convert::ip(&mapping.new_saddr, family)?, mapping.new_sport),
                })
            }
            _ => None,
        }
    }
}

/// Listens to the kernel of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Monitor {
    socket: NetlinkSocket,
    pending: VecDeque<Event>,
}

impl Monitor {
    /// Starts to listen. From here on the kernel counts us as a key manager: without one, packets that meet a
    /// protecting policy without a state are refused at once instead of being reported.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [XFRMNLGRP_ACQUIRE, XFRMNLGRP_EXPIRE, XFRMNLGRP_MAPPING];
        let socket = NetlinkSocket::monitor(netlink_sys::protocols::NETLINK_XFRM, &groups)?;
        Ok(Self { socket, pending: VecDeque::new() })
    }

    /// The next event, if there is one. Never blocks.
    ///
    /// # Errors
    /// [`NetlinkError::Overrun`] if events were lost; listening goes on.
    pub fn next_event(&mut self) -> Result<Option<Event>, NetlinkError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            let pending = &mut self.pending;
            if !self.socket.next_event(|kind, payload| pending.extend(Event::parse(kind, payload)))? {
                return Ok(None);
            }
        }
    }

    /// Readable when there may be an event.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}
