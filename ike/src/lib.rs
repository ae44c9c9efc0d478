//! IKEv2 (RFC 7296) as a value: inputs go in, a list of actions comes out.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

pub mod crypto;
pub mod wire;
