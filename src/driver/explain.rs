//! Answers `cygnet explain`.

use std::path::PathBuf;

use super::{Daemon, clock};
use crate::config::lines::{Key, Lines, Place};
use crate::observe::explain::{self, Explanation};

/// The file that the running configuration was read from, and where in it everything stands.
pub(super) struct Written {
    pub file: PathBuf,
    pub lines: Lines,
}

impl Daemon {
    /// The last negotiations of a tunnel; `None` if there is no such tunnel.
    pub(super) fn explain(&self, tunnel: &str) -> Option<Explanation> {
        let id = self.registry.tunnel(tunnel)?;
        let told = self.accounts.of(id);
        Some(explain::explain(tunnel, &told, clock::now(), &|key| self.place(tunnel, key)))
    }

    /// The file, and where in it a tunnel says something.
    pub(super) fn place(&self, tunnel: &str, key: Key) -> Option<(String, Place)> {
        let place = self.written.lines.place(&self.config, tunnel, key)?;
        Some((crate::config::error::quoted_path(&self.written.file.to_string_lossy()), place))
    }
}
