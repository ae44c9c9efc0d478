//! swanctl.conf of strongSwan.

mod read;
mod tree;

pub use read::read;
