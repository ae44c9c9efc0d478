//! IKEv2 (RFC 7296) as a value: inputs go in, a list of actions comes out.
//!
//! The crate owns no socket, clock, random source or thread. [`Endpoint::handle`] is the only door; [`io`] is the whole
//! contract with whoever drives it.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

pub mod account;
mod cookie;
pub mod coverage;
pub mod crypto;
mod endpoint;
pub mod error;
pub mod io;
pub mod jobs;
mod mismatch;
pub mod policy;
mod rate;
pub mod recording;
mod sa;
pub mod saved;
#[cfg(feature = "test-util")]
pub mod testing;
pub mod view;
pub mod wire;

pub use endpoint::{Config, Endpoint};
pub use error::{DropReason, FailureReason};
pub use io::{Action, Actions, Command, Event, Flow, Input};
pub use jobs::{Asker, Effort, Job, JobId, Output};
pub use policy::TunnelPolicy;
