//! Prints what the kernel offers.
#![allow(clippy::print_stdout)]

fn main() {
    println!("{:#?}", cygnet_xfrm::probe::probe());
}
