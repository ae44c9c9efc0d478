//! Data planes and the choice between them.

pub mod choose;
pub mod kernel;
mod spd;
pub mod user;
pub mod wall;
