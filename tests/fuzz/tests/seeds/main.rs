//! Writes the seeds of the corpora: real messages of a simulated handshake, vectors of RFCs, and what hurt other
//! implementations. Files that somebody added to a corpus stay.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod daemon;
mod esp;
mod ike;
mod kernel;

use std::fs;
use std::path::PathBuf;

/// Writes one seed of a target.
fn seed(target: &str, name: &str, octets: impl AsRef<[u8]>) {
    assert!(cygnet_fuzz::TARGETS.iter().any(|(known, _)| *known == target), "{target}");
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(name), octets).unwrap();
}

/// A file of the repository.
fn file(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[test]
#[ignore = "a tool for people: writes the seeds anew"]
fn write_the_seeds() {
    ike::header();
    ike::payloads();
    ike::identity();
    ike::selectors();
    ike::sealed();
    ike::endpoint();
    ike::saved();
    ike::recording();
    esp::packets();
    esp::offloads();
    esp::replay();
    kernel::attributes();
    kernel::xfrm();
    kernel::tc();
    daemon::config();
    daemon::import();
    daemon::quantities();
    daemon::control();
    daemon::kept();
}
