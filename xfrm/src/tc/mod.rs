//! Traffic control: the HTB tree that caps what leaves an interface, the u32 filters that sort packets into it, and
//! what its classes counted. `linux/pkt_sched.h`, `linux/pkt_cls.h`.
//!
//! ```text
//!   root htb c960:            default 0: what no filter claims goes the direct way, unshaped
//!    +-- class c960:1a2b      rate = ceil = what a gateway may send
//!    |    +-- tbf 1a2b:       cuts superpackets, and bounds what waits by time
//!    |         +-- fq_codel   flows fair, where the kernel has it
//!    +-- class c960:…
//!   filters on c960:          u32: outer source address -> class, but its IKE -> c960: itself, the direct way
//! ```
//! The attributes are written here, not by netlink-packet-route: that knows neither HTB nor its statistics.

pub(crate) mod class;
pub(crate) mod filter;
mod htb;
mod probe;
pub(crate) mod qdisc;
mod queue;
mod stats;

use std::fmt;

pub use class::{Class, ClassSpec};
pub use filter::{Filter, FilterSpec, Traffic};
pub use htb::HtbRates;
pub(crate) use probe::ClassifierProbe;
pub use qdisc::{Qdisc, RootOwner};
pub use stats::QueueStats;

use crate::codec::{self, Writer};
use crate::error::NetlinkError;
use crate::socket::NetlinkSocket;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// `struct tcmsg`.
const TCMSG: usize = 20;
const ROOT: Handle = Handle(0xFFFF_FFFF);

/// Name of a qdisc (`major:`), or of a class in it (`major:minor`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Handle(pub u32);

impl Handle {
    /// The root qdisc that is ours on every interface: by its major number a restart knows it.
    pub const OURS: Self = Self(0xC960_0000);

    /// A class of our qdisc.
    pub const fn class(minor: u16) -> Self {
        Self(Self::OURS.0 | minor as u32)
    }

    /// The part that names the class.
    pub const fn minor(self) -> u16 {
        (self.0 & 0xFFFF) as u16
    }

    /// Whether it is our qdisc or one of its classes.
    pub const fn is_ours(self) -> bool {
        self.0 & 0xFFFF_0000 == Self::OURS.0
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.minor() {
            0 => write!(f, "{:x}:", self.0 >> 16),
            minor => write!(f, "{:x}:{minor:x}", self.0 >> 16),
        }
    }
}

/// Programs traffic control of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Tc {
    pub(crate) socket: NetlinkSocket,
}

impl Tc {
    /// Opens a route socket.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(netlink_sys::protocols::NETLINK_ROUTE)? })
    }

    /// The number by which the kernel names us as the cause of a change; see [`crate::host::HostMonitor::changes`].
    pub const fn port(&self) -> u32 {
        self.socket.port()
    }
}

/// The fixed part of every message here.
#[derive(Clone, Copy)]
struct TcMessage {
    interface: u32,
    handle: Handle,
    parent: Handle,
    info: u32,
}

impl TcMessage {
    fn writer(self) -> Writer {
        let mut w = Writer::new();
        w.raw(&[0; 4]);
        for field in [self.interface, self.handle.0, self.parent.0, self.info] {
            w.raw(&field.to_ne_bytes());
        }
        w
    }

    fn parse(payload: &[u8]) -> Option<(Self, &[u8])> {
        let message = Self {
            interface: codec::u32_at(payload, 4)?,
            handle: Handle(codec::u32_at(payload, 8)?),
            parent: Handle(codec::u32_at(payload, 12)?),
            info: codec::u32_at(payload, 16)?,
        };
        Some((message, payload.get(TCMSG..)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_print_as_tc_does() {
        assert_eq!(Handle::OURS.to_string(), "c960:");
        assert_eq!(Handle::class(0x1A).to_string(), "c960:1a");
        assert!(Handle::class(7).is_ours() && !Handle(0x8001_0001).is_ours());
    }
}
