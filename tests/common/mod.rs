//! What the integration tests share: files of the repository and golden output.
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::path::PathBuf;

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Compares with a golden file, or writes it if `CYGNET_UPDATE_GOLDEN` is set.
pub fn golden(path: &str, told: &str) {
    if std::env::var_os("CYGNET_UPDATE_GOLDEN").is_some() {
        fs::write(root().join(path), told).unwrap();
        return;
    }
    let expected = fs::read_to_string(root().join(path)).unwrap_or_default();
    if expected != told {
        let line = expected.lines().zip(told.lines()).position(|(a, b)| a != b);
        let line = line.unwrap_or_else(|| expected.lines().count().min(told.lines().count()));
        panic!(
            "{path} differs from line {} on:\n  expected: {}\n  told:     {}\nCYGNET_UPDATE_GOLDEN=1 writes it anew",
            line + 1,
            expected.lines().nth(line).unwrap_or("(end)"),
            told.lines().nth(line).unwrap_or("(end)"),
        );
    }
}
