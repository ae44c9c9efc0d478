//! The vocabulary of cygnet and the port behind which a data plane hides.
//!
//! Everything here is a value: identifiers, time, secrets, cipher suites, traffic selectors, and the description of
//! what a data plane shall do. Nothing here opens a socket, reads a clock or draws a random number.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

pub mod addke;
pub mod id;
pub mod negotiation;
pub mod plane;
pub mod proposal;
pub mod registry;
pub mod secret;
pub mod selector;
pub mod suite;
#[cfg(feature = "test-util")]
pub mod testing;
pub mod time;
pub mod tunnel;

pub use id::{ChildId, IkeSpi, Reqid, Spi, TunnelId};
pub use secret::SecretBytes;
pub use selector::{IpRange, TrafficSelector};
pub use time::{Now, Timestamp};
