//! Configuration: text becomes a resolved [`Config`], or a list of everything that is wrong with it.
//!
//! ```text
//! file -> text -> tree with places -> typed sections -> checks between them -> Config
//!  mod             node                raw (decode)      check (spd)           model
//! ```
//! Files are read here and in [`secrets`] and nowhere else.

pub mod alerts;
pub mod bandwidth;
mod check;
mod console;
mod decode;
pub mod diff;
pub mod dn;
pub mod draft;
pub mod error;
pub mod fields;
pub mod health_check;
pub mod here;
pub mod identity;
pub mod limit;
pub mod lines;
mod masks;
pub mod model;
pub mod node;
pub mod preset;
pub mod quota;
mod raw;
pub mod reference;
pub mod schema;
pub mod secrets;
pub mod share;
pub mod show;
pub mod spd;
pub mod units;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cygnet_model::SecretBytes;
use zeroize::Zeroizing;

use alerts::RawAlerts;
use decode::Item;
pub use decode::closest;
use error::{At, Sink, wrong};
pub use error::{ConfigErrors, Problem, Severity};
pub use here::Here;
use lines::Lines;
pub use model::*;
use raw::RawAuth;
use secrets::{Facts, Refusal};

/// Larger files are refused before they are parsed.
pub const MAX_FILE: u64 = 4 * 1024 * 1024;

/// A configuration that can be used.
#[derive(Clone, PartialEq, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What somebody should look at.
    pub warnings: Vec<Problem>,
    /// Where in the file it stands.
    pub lines: Lines,
}

/// Reads and resolves a configuration with its keys.
pub fn load(path: &Path) -> Result<Loaded, ConfigErrors> {
    let (config, problems, lines) = read(path, Secrets::Read, None);
    finish(config, problems, lines, path)
}

/// Resolves a configuration from text that stands for a file of mode 0600 in `dir`; for tests and generators.
pub fn load_text(text: &str, dir: &Path) -> Result<Loaded, ConfigErrors> {
    let source = Source { text, dir, facts: None, name: "cygnet.yaml", here: None };
    let (config, problems, lines) = source.resolve(Secrets::Read);
    finish(config, problems, lines, Path::new("cygnet.yaml"))
}

fn finish(
    config: Option<Config>,
    problems: Vec<Problem>,
    lines: Lines,
    path: &Path,
) -> Result<Loaded, ConfigErrors> {
    match config {
        Some(config) if problems.iter().all(|p| p.severity == Severity::Warning) => {
            Ok(Loaded { config, warnings: problems, lines })
        }
        _ => Err(ConfigErrors { file: show_path(path), problems }),
    }
}

/// What [`check()`] found.
#[derive(Debug)]
pub struct Checked {
    /// The file as it was named, fit for a terminal.
    pub file: String,
    /// Errors and warnings in the order of the file.
    pub problems: Vec<Problem>,
    /// The resolved configuration, if it has no errors. Keys that were not read stand in it as empty ones, so it is for
    /// looking at, not for running.
    pub preview: Option<Config>,
    /// Where in the file it stands.
    pub lines: Lines,
}

/// What to do about files with keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secrets {
    /// Read them; what cannot be read is an error.
    Read,
    /// Read them; what this user may not read is a warning.
    ReadIfAllowed,
    /// Leave them alone.
    Skip,
}

/// Checks a file without wanting to run it. `here` is the host on which that happens, if it may be the one that will.
pub fn check(path: &Path, secrets: Secrets, here: Option<&Here>) -> Checked {
    let (config, problems, lines) = read(path, secrets, here);
    let good = problems.iter().all(|p| p.severity == Severity::Warning);
    Checked { file: show_path(path), problems, preview: config.filter(|_| good), lines }
}

/// Checks text that stands for a file of mode 0600 in `dir`, as an editor has it before it is saved.
pub fn check_text(text: &str, dir: &Path, secrets: Secrets) -> Checked {
    check_text_here(text, dir, secrets, None)
}

/// The same on a host that may be the one that will run it.
pub fn check_text_here(text: &str, dir: &Path, secrets: Secrets, here: Option<&Here>) -> Checked {
    let source = Source { text, dir, facts: None, name: "cygnet.yaml", here };
    let (config, problems, lines) = source.resolve(secrets);
    let good = problems.iter().all(|p| p.severity == Severity::Warning);
    Checked { file: "cygnet.yaml".to_owned(), problems, preview: config.filter(|_| good), lines }
}

fn show_path(path: &Path) -> String {
    error::quoted_path(&path.to_string_lossy())
}

/// What a file says, what is wrong with it, and where it says it.
type Resolved = (Option<Config>, Vec<Problem>, Lines);

/// A file's text, or why there is none.
fn read(path: &Path, secrets: Secrets, here: Option<&Here>) -> Resolved {
    match read_text(path) {
        Ok((text, facts)) => {
            let name = show_path(path);
            let dir = path.parent().unwrap_or(Path::new(""));
            Source { text: &text, dir, facts: Some(facts), name: &name, here }.resolve(secrets)
        }
        Err((at, w)) => {
            let sink = Sink::default();
            sink.error(&at, w);
            (None, sink.into_sorted().0, Lines::default())
        }
    }
}

type Unreadable = (At, error::Wrong);

fn read_text(path: &Path) -> Result<(Zeroizing<String>, Facts), Unreadable> {
    let first = At { line: 1, col: 1, len: 0, path: String::new() };
    let fail = |e: std::io::Error| {
        let fix = match e.kind() {
            std::io::ErrorKind::NotFound => "name the configuration file, or create it",
            std::io::ErrorKind::PermissionDenied => "run as root, or give this user access to it",
            _ => "name a readable file",
        };
        (first.clone(), wrong(format!("cannot read the file: {e}"), fix))
    };
    let file = File::open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    if meta.is_dir() {
        return Err((first, wrong("this is a directory", "name the configuration file")));
    }
    // One octet more than allowed tells "full" from "too large"; files such as pipes have no size to ask for.
    let room = usize::try_from(meta.len().min(MAX_FILE)).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err((first, wrong("the file is larger than 4 MiB", "this is hardly a configuration")));
    }
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok((Zeroizing::new(text), Facts::of(&meta))),
        Err(e) => {
            let good = e.utf8_error().valid_up_to();
            let bytes = Zeroizing::new(e.into_bytes());
            let before = String::from_utf8_lossy(bytes.get(..good).unwrap_or_default());
            let line = before.matches('\n').count() + 1;
            let col = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            let at = At { line, col, len: 1, path: String::new() };
            Err((at, wrong("not valid UTF-8", "save the file as UTF-8")))
        }
    }
}

struct Source<'a> {
    text: &'a str,
    /// Where relative names of files begin.
    dir: &'a Path,
    /// Who may read the file; `None`: only we can.
    facts: Option<Facts>,
    name: &'a str,
    /// The host that this is.
    here: Option<&'a Here>,
}

impl Source<'_> {
    fn resolve(&self, secrets: Secrets) -> Resolved {
        let sink = Sink::default();
        let root = node::parse(self.text, &sink);
        let config = root.as_ref().and_then(|root| {
            let item = Item::root(root, &sink);
            let raw = raw::config(&item, &sink)?;
            if let Some(here) = self.here {
                here::warn_sourceless(&raw, here, &sink);
            }
            let alerts = self.alerts(&raw.alerts, secrets, &sink);
            let mut config = check::resolve(raw, &sink, &mut |auth| self.auth(auth, secrets, &sink))?;
            config.daemon.alerts = alerts?;
            Some(config)
        });
        let (mut problems, masks) = sink.into_sorted();
        // Without a tree nobody knows where secrets stand, so nothing is shown.
        if root.is_some() {
            let lines = node::lines(self.text);
            for p in &mut problems {
                let line = p.line.checked_sub(1).and_then(|n| lines.get(n)).unwrap_or(&"");
                p.snippet = masks.show(p.line, line.trim_end());
            }
        }
        let lines = root.as_ref().map(|root| Lines::of(root)).unwrap_or_default();
        (config, problems, lines)
    }

    /// With the secret that signs what is posted.
    fn alerts(&self, raw: &RawAlerts, secrets: Secrets, sink: &Sink) -> Option<Alerts> {
        let mut webhook =
            raw.url.as_ref().map(|url| Webhook { url: url.value.clone(), secret: None, secret_file: None });
        if let Some(file) = &raw.secret_file {
            let path = self.dir.join(&file.value);
            let read = match secrets {
                Secrets::Skip => None,
                Secrets::Read | Secrets::ReadIfAllowed => {
                    Some(secrets::read_signing(&path, &file.value.to_string_lossy()))
                }
            };
            match read {
                None => {}
                Some(Ok(secret)) => {
                    webhook = webhook.map(|w| Webhook { secret: Some(Arc::new(secret)), ..w });
                }
                Some(Err(Refusal::Denied)) if secrets == Secrets::ReadIfAllowed => {
                    let what = "this user may not read the file, so the secret was not checked";
                    sink.warning(&file.at, wrong(what, "run as root to check it too"));
                }
                Some(Err(Refusal::Denied)) => {
                    sink.error(&file.at, wrong("the daemon may not read the file", "run the daemon as root"));
                    return None;
                }
                Some(Err(Refusal::Wrong(w))) => {
                    sink.error(&file.at, w);
                    return None;
                }
            }
            let file = KeyFile { path, written: file.value.clone() };
            webhook = webhook.map(|w| Webhook { secret_file: Some(file), ..w });
        }
        Some(Alerts { webhook, command: raw.command.clone(), events: raw.events.clone() })
    }

    fn auth(&self, auth: &RawAuth, secrets: Secrets, sink: &Sink) -> Option<Auth> {
        match auth {
            RawAuth::Files(first, others) => {
                let first = self.key_file(first, PSK, secrets, sink);
                // What is wrong with the others is told as well.
                let read: Vec<Option<Psk>> =
                    others.iter().map(|path| self.key_file(path, PSK, secrets, sink)).collect();
                Some(Auth::Psk(Psk { others: read.into_iter().collect::<Option<_>>()?, ..first? }))
            }
            RawAuth::Token(path) => self.key_file(path, "the token", secrets, sink).map(Auth::Psk),
            RawAuth::Inline { key, at } => {
                let exposed =
                    self.facts.map_or(Ok(()), |f| f.guard("the file with an inline key", self.name));
                if secrets != Secrets::Skip
                    && let Err(w) = exposed
                {
                    sink.error(at, error::Wrong { fix: format!("{}, or use psk_file", w.fix), ..w });
                }
                usable(at, None, secrets::psk(key.as_bytes()), sink).map(Auth::Psk)
            }
        }
    }

    /// Reads a file with a secret; `name` is what messages call that.
    fn key_file(
        &self,
        path: &decode::Spanned<PathBuf>,
        name: &str,
        secrets: Secrets,
        sink: &Sink,
    ) -> Option<Psk> {
        let full = self.dir.join(&path.value);
        let file = KeyFile { path: full.clone(), written: path.value.clone() };
        let unread = |file| {
            Some(Psk { secret: Arc::new(SecretBytes::new(Vec::new())), file: Some(file), others: Vec::new() })
        };
        if secrets == Secrets::Skip {
            return unread(file);
        }
        let key = match secrets::read_psk(&full, &path.value.to_string_lossy()) {
            Ok(key) => Ok(key),
            Err(Refusal::Wrong(w)) => Err(w),
            Err(Refusal::Denied) if secrets == Secrets::ReadIfAllowed => {
                let what = "this user may not read the file, so the key was not checked";
                sink.warning(&path.at, wrong(what, "run as root to check it too"));
                return unread(file);
            }
            Err(Refusal::Denied) => Err(wrong("the daemon may not read the file", "run the daemon as root")),
        };
        let named = |w: error::Wrong| error::Wrong { what: w.what.replacen(PSK, name, 1), ..w };
        let key = key.map(|key| secrets::Key { weak: key.weak.map(named), ..key }).map_err(named);
        usable(&path.at, Some(file), key, sink)
    }
}

/// What messages of [`secrets::psk`] call what it reads.
const PSK: &str = "the pre-shared key";

fn usable(
    at: &At,
    file: Option<KeyFile>,
    key: Result<secrets::Key, error::Wrong>,
    sink: &Sink,
) -> Option<Psk> {
    match key {
        Ok(key) => {
            if let Some(w) = key.weak {
                sink.warning(at, w);
            }
            Some(Psk { secret: Arc::new(key.secret), file, others: Vec::new() })
        }
        Err(w) => {
            sink.error(at, w);
            None
        }
    }
}
