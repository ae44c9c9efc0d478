//! Linux kernel programming over netlink: IPsec states and policies (XFRM) and traffic control.
//!
//! The only crate that names netlink types. Everything goes through [`socket::NetlinkSocket`], a small blocking
//! transport of our own: an acknowledgement is demanded for every message, the kernel's own sentence comes with every
//! refusal, and buffers that carried keys are wiped (netlink-proto would print them at trace level and reads a lost
//! connection as success).
//!
//! What it does not do: decide anything. Which policies and states shall exist is the business of the data plane
//! above; this crate turns one request into one kernel object and reads the kernel's objects back.
//!
//! Layers: [`codec`] (attributes) and [`socket`] (transport) below; [`sa`], [`moving`], [`policy`], [`monitor`] for XFRM; [`tc`]
//! for shaping; [`nft`] and [`conntrack`] for what stands behind NAT; [`probe`] says what this kernel offers.
#![deny(clippy::indexing_slicing)]

pub mod address;
pub mod algo;
pub mod codec;
pub mod conntrack;
mod convert;
pub mod dump;
pub mod error;
pub mod host;
pub mod link;
pub mod lookup;
pub mod monitor;
pub mod moving;
pub mod nft;
pub mod policy;
pub mod probe;
pub mod route;
pub mod routing;
pub mod rule;
pub mod sa;
pub mod socket;
pub mod sockopt;
pub mod tc;
#[cfg(feature = "test-util")]
pub mod testing;

pub use error::{Errno, NetlinkError};
pub use socket::{NetlinkSocket, Request};

/// Programs IPsec states and policies of the network namespace in which it was opened.
///
/// The methods live beside the objects they handle: [`sa`], [`policy`] and [`dump`].
#[derive(Debug)]
pub struct Xfrm {
    socket: NetlinkSocket,
    dialect: sa::Dialect,
    one_step: moving::OneStep,
}

impl Xfrm {
    /// Opens the XFRM socket in the current network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] with `EPROTONOSUPPORT` on kernels without XFRM.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: NetlinkSocket::open(netlink_sys::protocols::NETLINK_XFRM)?,
            dialect: sa::Dialect::default(),
            one_step: moving::OneStep::default(),
        })
    }

    /// The number by which the kernel names us as the cause of a change; see [`monitor::Monitor::watch`].
    pub const fn port(&self) -> u32 {
        self.socket.port()
    }
}
