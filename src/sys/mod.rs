//! The operating system, where the standard library has no interface to it or no safe one; all unsafe code of this package is here, in small files.

pub mod icmp;
pub mod inherited;
pub mod mmsg;
pub mod peer;
pub mod seat;
pub mod terminal;
pub mod tun;
