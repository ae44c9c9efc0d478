//! Bandwidth levels that outlive a restart: `bandwidth.json` in the state directory, one object from the name of a
//! gateway to bits per second or null.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::config::model::Config;

/// Levels by gateway; `None`: unlimited.
pub type Levels = BTreeMap<String, Option<u64>>;

/// Reads the file's content.
pub fn parse(content: &[u8]) -> Result<Levels, serde_json::Error> {
    serde_json::from_slice(content)
}

/// The content that [`parse`] reads.
pub fn show(levels: &Levels) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(levels)
}

fn path(config: &Config) -> PathBuf {
    config.daemon.state_dir.join("bandwidth.json")
}

/// Levels that were set with `--save`, of the gateways that there are.
pub(super) fn levels(config: &Config) -> Levels {
    let path = path(config);
    let content = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Levels::new(),
        read => read,
    };
    match content.and_then(|content| Ok(parse(&content)?)) {
        Ok(saved) => saved.into_iter().filter(|(name, _)| config.gateway(name).is_some()).collect(),
        Err(e) => {
            tracing::warn!(file = %path.display(), error = %e, "saved bandwidth levels are not readable");
            Levels::new()
        }
    }
}

/// Keeps a level over restarts: written beside and renamed, so that the file is always whole.
pub(super) fn keep(config: &Config, gateway: &str, bps: Option<u64>) -> io::Result<()> {
    fs::create_dir_all(&config.daemon.state_dir)?;
    let mut saved = levels(config);
    saved.insert(gateway.to_owned(), bps);
    let path = path(config);
    let beside = path.with_extension("tmp");
    let content = show(&saved)?;
    let written = fs::File::create(&beside)
        .and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // Half a file helps nobody, least of all on a full disk.
        let _ = fs::remove_file(&beside);
    }
    written
}
