//! Argument dispatch.
fn main() {}
