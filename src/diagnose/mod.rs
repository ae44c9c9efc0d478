//! Why a tunnel is not up, or is up and passes nothing: `cygnet diagnose`.
//!
//! ```text
//!  daemon (control socket) ─┐
//!  configuration file ──────┼─▶ Facts ─▶ judge ─▶ causes, each with its fix
//!  this host, UDP probes ───┘   gather   pure
//! ```
//! `judge` decides from facts alone and is tested with them; `gather` looks at the host, changes nothing of it and runs
//! no other program.

pub mod cause;
pub mod facts;
pub mod gather;
mod judge;
mod negotiation;
mod probe;
mod quality;

pub use cause::{Cause, Found, Layer};
pub use judge::judge;
