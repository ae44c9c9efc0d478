//! ipsec.conf of strongSwan and libreswan, and ipsec.secrets beside it.

mod lines;
mod read;
pub mod secrets;

pub use read::read;
