//! The control socket: framed JSON over a unix stream socket.
//!
//! ```text
//! cygnet status ──frame──> server task ──Ask──> driver's loop
//!               <─frame───             <─Response─
//! ```
//! A frame is a length (32 bit, big-endian) and that many octets of JSON. One request has one response, except
//! `events`, after which events follow until the client hangs up.

pub mod access;
pub mod client;
pub mod frame;
pub mod proto;
pub mod server;

pub use access::Access;
pub use proto::{ErrorKind, Request, Response, Role};
pub use server::Ask;
