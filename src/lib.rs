//! The cygnet daemon and its command line.

pub mod alerts;
pub mod cli;
mod colors;
pub mod config;
pub mod console;
pub mod control;
pub mod diagnose;
pub mod driver;
pub mod export;
#[cfg(test)]
#[path = "../tests/common/growth.rs"]
mod growth;
mod http;
pub mod import;
pub mod observe;
pub mod plane;
pub mod privileges;
pub mod quality;
pub mod shaping;
pub mod store;
pub mod sys;
pub mod traffic;
