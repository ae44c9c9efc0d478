//! ESP (RFC 4303) as a value: packets in, packets out, in place and without a socket, clock or random number.
//!
//! ```text
//!   inner packet ─► spd: which child? ─► outbound: selectors, sequence number, pad, seal ─► ESP
//!   ESP ─► sad: which SA? ─► inbound: replay, open, window moves, pad, selectors, ECN ─► inner packet
//! ```
//!
//! [`engine::Engine`] holds what a [`cygnet_model::plane::DataPlane`] was told and publishes it as a [`engine::Tables`]
//! value that threads read without locks. What happens to the packets outside (TUN, UDP, offloads of the kernel) is the
//! data plane's business; the arithmetic of those offloads is here ([`segment`], [`coalesce`]) because it is pure.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

pub mod checksum;
mod cipher;
pub mod coalesce;
pub mod ecn;
pub mod engine;
pub mod error;
pub mod inbound;
pub mod inner;
pub mod natt;
pub mod outbound;
pub mod packet;
mod parts;
pub mod replay;
pub mod segment;
pub mod spd;
mod volume;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use error::{DropReason, SaError};
pub use inbound::InboundSa;
pub use outbound::OutboundSa;
pub use packet::Layout;
pub use volume::Limit;
