//! What the kernel tells on its own account: limits reached, packets that want a tunnel, peers that moved.
//!
//! A socket of its own that never sends. Lost events show as [`NetlinkError::Overrun`]; the listener then reads the
//! states' counters instead.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use cygnet_model::Spi;
use cygnet_model::selector::Packet;
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, XFRM_MSG_ACQUIRE, XFRM_MSG_DELPOLICY, XFRM_MSG_DELSA, XFRM_MSG_EXPIRE, XFRM_MSG_FLUSHPOLICY,
    XFRM_MSG_FLUSHSA, XFRM_MSG_MAPPING, XFRM_MSG_NEWPOLICY, XFRM_MSG_UPDPOLICY, XFRMA_TMPL,
    XFRMNLGRP_ACQUIRE, XFRMNLGRP_EXPIRE, XFRMNLGRP_MAPPING, XFRMNLGRP_POLICY, XFRMNLGRP_SA,
};
use netlink_packet_xfrm::{UserAcquire, UserExpire, UserMapping, UserSaId, UserTemplate};

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
    /// (`net.core.xfrm_acq_expires`, 30 s), however many flows there are.
    Acquire {
        /// Reqid of the policy.
        reqid: u32,
        /// The packet.
        packet: Option<Packet>,
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
    /// Somebody added, changed or removed policies; see [`Monitor::watch`].
    Policies,
    /// Somebody removed a state.
    StateRemoved {
        /// The state.
        key: SaKey,
    },
    /// Somebody removed all states.
    StatesFlushed,
}

impl Event {
    /// Reads a notification; `None` for those that mean nothing to us.
    pub fn parse(kind: u16, payload: &[u8]) -> Option<Self> {
        match kind {
            XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY | XFRM_MSG_DELPOLICY | XFRM_MSG_FLUSHPOLICY => {
                return Some(Self::Policies);
            }
            XFRM_MSG_FLUSHSA => return Some(Self::StatesFlushed),
            _ => {}
        }
        let (fixed, attributes) = convert::split(kind, payload)?;
        match kind {
            XFRM_MSG_DELSA => {
                let id = UserSaId::parse(fixed).ok()?;
                let key = SaKey { destination: convert::ip(&id.daddr, id.family)?, spi: Spi::new(id.spi)? };
                (id.proto == IPPROTO_ESP).then_some(Self::StateRemoved { key })
            }
            XFRM_MSG_EXPIRE => {
                let expire = UserExpire::parse(fixed).ok()?;
                let state = SaEntry::of(&expire.state, attributes)?;
                Some(Self::Expired { state, hard: expire.hard != 0 })
            }
            XFRM_MSG_ACQUIRE => {
                let template = UserTemplate::parse(codec::find(attributes, XFRMA_TMPL)?).ok()?;
                let packet =
                    UserAcquire::parse(fixed).ok().and_then(|acquire| convert::packet(&acquire.selector));
                Some(Self::Acquire { reqid: template.reqid, packet })
            }
            XFRM_MSG_MAPPING => {
                let mapping = UserMapping::parse(fixed).ok()?;
                let family = mapping.id.family;
                let destination: IpAddr = convert::ip(&mapping.id.daddr, family)?;
                Some(Self::Mapping {
                    key: SaKey { destination, spi: Spi::new(mapping.id.spi)? },
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
    /// The socket whose changes are not told.
    own: Option<u32>,
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
        Ok(Self { socket, pending: VecDeque::new(), own: None })
    }

    /// Starts to tell what others than the socket with the port `own` do to policies and states.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn watch(&mut self, own: u32) -> Result<(), NetlinkError> {
        for group in [XFRMNLGRP_POLICY, XFRMNLGRP_SA] {
            self.socket.join(netlink_sys::protocols::NETLINK_XFRM, group)?;
        }
        self.own = Some(own);
        Ok(())
    }

    /// Reads off the socket what waits there, so that the notifications of own changes do not push out others'.
    ///
    /// # Errors
    /// [`NetlinkError::Overrun`] if events were lost; listening goes on.
    pub fn drain(&mut self) -> Result<(), NetlinkError> {
        while self.read()? {}
        Ok(())
    }

    /// Reads one datagram; `false` if there is none.
    fn read(&mut self) -> Result<bool, NetlinkError> {
        let (pending, own) = (&mut self.pending, self.own);
        self.socket.next_notice(|kind, cause, payload| {
            if own != Some(cause)
                && let Some(event) = Event::parse(kind, payload)
            {
                // One word says as much as a thousand.
                if !(event == Event::Policies && pending.back() == Some(&event)) {
                    pending.push_back(event);
                }
            }
        })
    }

    /// Sets how many octets of events may wait; see [`NetlinkSocket::set_queue`].
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_queue(&mut self, octets: usize) -> Result<(), NetlinkError> {
        self.socket.set_queue(octets)
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
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Readable when there may be an event.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}
