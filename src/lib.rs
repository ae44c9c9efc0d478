//! The cygnet daemon and its command line.

pub mod config;
