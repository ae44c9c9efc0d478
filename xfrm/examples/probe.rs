//! Prints what the kernel offers.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

fn main() {
    println!("{:#?}", cygnet_xfrm::probe::probe());
}
