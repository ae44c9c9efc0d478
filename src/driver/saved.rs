//! What outlives a restart, in the state directory: `bandwidth.json`, one object from what a level is of (the name of a
//! gateway, `tunnel:NAME`, either with `in:` before it) to it and to what the configuration said of it then, `limits.json`, by gateway
//! one object from inner addresses to the same of their limits, and `registry.json`, the numbers of tunnels and children.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cygnet_model::registry::Registry;
use serde::{Deserialize, Serialize};

use super::levels::LevelKey;
use crate::config::limit;
use crate::config::model::{Config, Limit};

/// A level that was set with `--save`, in bits per second; `None`: unlimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedLevel {
    /// What was set.
    pub bps: Option<u64>,
    /// What the configuration said then, if that is known. When it says something else, that counts.
    pub configured: Option<Option<u64>>,
}

/// Levels by what they are of.
pub type Levels = BTreeMap<String, SavedLevel>;

/// How a level is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenLevel {
    Whole {
        // An object without one of them is none of ours.
        #[serde(deserialize_with = "Option::deserialize")]
        bps: Option<u64>,
        #[serde(deserialize_with = "Option::deserialize")]
        configured: Option<u64>,
    },
    /// As older versions did.
    Alone(Option<u64>),
}

/// Reads the file's content.
pub fn parse(content: &[u8]) -> Result<Levels, serde_json::Error> {
    let written: BTreeMap<String, WrittenLevel> = serde_json::from_slice(content)?;
    let level = |w| match w {
        WrittenLevel::Whole { bps, configured } => SavedLevel { bps, configured: Some(configured) },
        WrittenLevel::Alone(bps) => SavedLevel { bps, configured: None },
    };
    Ok(written.into_iter().map(|(name, w)| (name, level(w))).collect())
}

/// The content that [`parse`] reads.
pub fn show(levels: &Levels) -> Result<String, serde_json::Error> {
    let written = |saved: &SavedLevel| match saved.configured {
        Some(configured) => WrittenLevel::Whole { bps: saved.bps, configured },
        None => WrittenLevel::Alone(saved.bps),
    };
    let all: BTreeMap<&String, _> = levels.iter().map(|(name, saved)| (name, written(saved))).collect();
    serde_json::to_string_pretty(&all)
}

fn path(config: &Config) -> PathBuf {
    config.daemon.state_dir.join("bandwidth.json")
}

/// Levels that were set with `--save`, of the gateways and tunnels that there are.
pub(super) fn levels(config: &Config) -> Levels {
    let saved = read(&path(config), parse, "bandwidth levels");
    saved.into_iter().filter(|(name, _)| LevelKey::parse(name).configured(config).is_some()).collect()
}

/// Reads a file, if it is there. What cannot be read is put aside, so that nothing of it is lost when the file is written anew.
fn read<T: Default>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, serde_json::Error>, what: &str) -> T {
    let content = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return T::default(),
        read => read,
    };
    content.and_then(|content| Ok(parse(&content)?)).unwrap_or_else(|e| {
        let aside = path.with_extension("json.unreadable");
        let now = if fs::rename(path, &aside).is_ok() { &aside } else { path };
        tracing::warn!(file = %now.display(), error = %e, "saved {what} are not readable and not in force");
        T::default()
    })
}

/// Keeps a level over restarts.
pub(super) fn keep(config: &Config, key: &LevelKey, bps: Option<u64>) -> io::Result<()> {
    let mut saved = levels(config);
    saved.insert(key.to_string(), SavedLevel { bps, configured: key.configured(config) });
    replace(config, &path(config), &show(&saved)?)
}

/// Forgets a saved level, if there is one.
pub(super) fn forget(config: &Config, key: &str) -> io::Result<()> {
    let mut saved = levels(config);
    match saved.remove(key) {
        Some(_) => replace(config, &path(config), &show(&saved)?),
        None => Ok(()),
    }
}

/// A limit that was set with `--save`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedLimit {
    /// What was set.
    pub limit: Limit,
    /// What the configuration said of the address then, if anything. When it says something else, that counts.
    pub configured: Option<Limit>,
}

/// Limits by gateway and address.
pub type Limits = BTreeMap<String, BTreeMap<IpAddr, SavedLimit>>;

/// How one is written: as the configuration would write it.
#[derive(Serialize, Deserialize)]
struct Written {
    rate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    configured: Option<String>,
}

/// Reads the content of a file of limits. Entries that are none are left out.
pub fn parse_limits(content: &[u8]) -> Result<Limits, serde_json::Error> {
    let kept: BTreeMap<String, BTreeMap<IpAddr, Written>> = serde_json::from_slice(content)?;
    let read = |w: &Written| {
        let configured = w.configured.as_deref().map(limit::parse).transpose().ok()?;
        Some(SavedLimit { limit: limit::parse(&w.rate).ok()?, configured })
    };
    let of =
        |of: BTreeMap<IpAddr, Written>| of.into_iter().filter_map(|(ip, w)| Some((ip, read(&w)?))).collect();
    Ok(kept.into_iter().map(|(gateway, limits)| (gateway, of(limits))).collect())
}

/// The content that [`parse_limits`] reads.
pub fn show_limits(limits: &Limits) -> Result<String, serde_json::Error> {
    let written = |saved: &SavedLimit| Written {
        rate: limit::show_limit(saved.limit),
        configured: saved.configured.map(limit::show_limit),
    };
    let of = |of: &BTreeMap<IpAddr, SavedLimit>| -> BTreeMap<IpAddr, Written> {
        of.iter().map(|(ip, saved)| (*ip, written(saved))).collect()
    };
    let kept: BTreeMap<&String, _> = limits.iter().map(|(gateway, limits)| (gateway, of(limits))).collect();
    serde_json::to_string_pretty(&kept)
}

fn limits_path(config: &Config) -> PathBuf {
    config.daemon.state_dir.join("limits.json")
}

/// Limits that were set with `--save`, of the gateways that there are.
pub(super) fn limits(config: &Config) -> Limits {
    let saved = read(&limits_path(config), parse_limits, "limits");
    saved.into_iter().filter(|(name, _)| config.gateway(name).is_some()).collect()
}

/// Keeps limits over restarts, instead of those that were kept.
pub(super) fn keep_limits(config: &Config, limits: &Limits) -> io::Result<()> {
    replace(config, &limits_path(config), &show_limits(limits)?)
}

/// Writes a file of the state directory: beside and renamed, so that it is always whole.
fn replace(config: &Config, path: &Path, content: &str) -> io::Result<()> {
    fs::create_dir_all(&config.daemon.state_dir)?;
    let beside = path.with_extension("tmp");
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

/// The registry as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    next: u32,
    tunnels: BTreeMap<String, KeptTunnel>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptTunnel {
    number: u32,
    next: u16,
    children: BTreeMap<String, u16>,
}

/// Larger files are nobody's registry.
const MAX_REGISTRY: u64 = 256 * 1024 * 1024;

fn registry_path(config: &Config) -> PathBuf {
    config.daemon.state_dir.join("registry.json")
}

/// Reads the content of a kept registry. `None` if it is none, or of another version.
pub fn parse_registry(content: &[u8]) -> Option<Registry> {
    let kept: Kept = serde_json::from_slice(content).ok().filter(|k: &Kept| k.version == 1)?;
    let rows = kept.tunnels.into_iter().map(|(name, t)| (name, t.number, t.next, t.children));
    Registry::from_rows(kept.next, rows)
}

/// The content that [`parse_registry`] reads.
pub fn show_registry(registry: &Registry) -> Result<String, serde_json::Error> {
    let (next, rows) = registry.rows();
    let tunnels =
        rows.map(|(name, number, next, children)| (name, KeptTunnel { number, next, children })).collect();
    serde_json::to_string(&Kept { version: 1, next, tunnels })
}

/// The numbers of an earlier life of the daemon; none if they are not there, not readable or nearly used up. Then counting
/// begins anew, which is safe: nothing that lives is known by them, and what is left in the kernel is replaced.
pub(super) fn registry(config: &Config) -> Registry {
    let path = registry_path(config);
    let content = match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Registry::default(),
        Ok(facts) if facts.len() > MAX_REGISTRY => Err(io::ErrorKind::FileTooLarge.into()),
        _ => fs::read(&path),
    };
    match content.map(|content| parse_registry(&content)) {
        Ok(Some(registry)) if !registry.is_worn() => registry,
        Ok(Some(_)) => Registry::default(),
        Ok(None) => {
            tracing::warn!(file = %path.display(), "the numbers of tunnels are not readable and begin anew");
            Registry::default()
        }
        Err(e) => {
            tracing::warn!(file = %path.display(), error = %e, "the numbers of tunnels are not readable and begin anew");
            Registry::default()
        }
    }
}

/// Keeps the numbers over restarts, if they are others than before. Without them the next start counts anew.
pub(super) fn keep_registry(config: &Config, before: &Registry, now: &Registry) {
    if before == now {
        return;
    }
    let kept = show_registry(now)
        .map_err(io::Error::from)
        .and_then(|content| replace(config, &registry_path(config), &content));
    if let Err(e) = kept {
        let dir = config.daemon.state_dir.display();
        tracing::warn!(error = %e, "the numbers of tunnels are not kept over a restart: {dir} cannot be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_read_back_those_of_older_versions_too() {
        let older = r#"{"tunnel:a-b":null,"vpc-a":5000000}"#;
        let saved = parse(older.as_bytes()).unwrap();
        assert_eq!(saved["vpc-a"], SavedLevel { bps: Some(5_000_000), configured: None });
        assert_eq!(saved["tunnel:a-b"], SavedLevel { bps: None, configured: None });
        assert_eq!(parse(show(&saved).unwrap().as_bytes()).unwrap(), saved);
        let golden = r#"{"in:vpc-a":{"bps":null,"configured":7},"vpc-a":{"bps":42000000,"configured":null}}"#;
        let saved = parse(golden.as_bytes()).unwrap();
        assert_eq!(saved["in:vpc-a"], SavedLevel { bps: None, configured: Some(Some(7)) });
        assert_eq!(show(&saved).unwrap().replace([' ', '\n'], ""), golden);
        for other in [r#"{"a":{"bps":5}}"#, r#"{"a":{"configured":5}}"#, r#"{"a":"5"}"#, "[]", ""] {
            assert!(parse(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bandwidth.json");
        fs::write(&path, "{\"vpc-a\": 5").unwrap();
        assert_eq!(read(&path, parse, "levels"), Levels::new());
        assert!(!path.exists());
        assert_eq!(
            fs::read_to_string(dir.path().join("bandwidth.json.unreadable")).unwrap(),
            "{\"vpc-a\": 5"
        );
    }

    #[test]
    fn numbers_read_back_and_what_is_not_ours_does_not() {
        let mut registry = Registry::default();
        registry.follow([("a", vec!["10.1.0.0/16 -> 10.2.0.0/16".to_owned()]), ("b", vec![])]).unwrap();
        let content = show_registry(&registry).unwrap();
        assert_eq!(parse_registry(content.as_bytes()), Some(registry));
        // What this version writes must be read by later ones.
        let golden = r#"{"version":1,"next":2,"tunnels":{"a":{"number":0,"next":1,"children":{"10.1.0.0/16 -> 10.2.0.0/16":0}},"b":{"number":1,"next":0,"children":{}}}}"#;
        assert_eq!(content, golden);
        for other in [
            "",
            "{}",
            &golden.replace("\"version\":1", "\"version\":2"),
            &golden.replace("\"number\":1", "\"number\":0"),
        ] {
            assert_eq!(parse_registry(other.as_bytes()), None, "{other}");
        }
    }
}
