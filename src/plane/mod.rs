//! Data planes and the choice between them.

pub mod choose;
pub mod echo;
mod foreign;
pub mod ips;
pub mod kernel;
pub mod levels;
pub mod modules;
pub mod near;
mod pieces;
pub mod probing;
pub mod residue;
pub mod source;
mod spd;
#[cfg(test)]
mod testing;
pub mod user;
pub mod wall;
