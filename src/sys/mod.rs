//! Where the operating system has no safe interface: the only unsafe code of this package, in small files.

pub mod icmp;
pub mod inherited;
pub mod mmsg;
pub mod peer;
pub mod terminal;
pub mod tun;
