//! The cygnet daemon and its command line.

pub mod plane;
pub mod sys;
