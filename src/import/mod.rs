//! Configurations of strongSwan and libreswan turned into ours: `cygnet import`.
//!
//! ```text
//! swanctl.conf ─▶ tree ─▶ Conn ┐                                          ┌▶ YAML that passes `check`
//! swanctl/        tree    read ├─▶ assemble: gateways, tunnels, weights ──┤
//! ipsec.conf ──▶ lines ─▶ Conn ┘   what check refuses is left out         └▶ notes: each line without counterpart
//! ipsec/         lines    read
//! ```
//! Text in, values out: no file is opened here. What is read is bounded in size, depth and number, and included files are
//! not followed.

mod algorithms;
mod assemble;
mod conn;
mod ipsec;
mod known;
mod notes;
mod swanctl;
mod words;

use std::net::IpAddr;

use zeroize::Zeroizing;

pub use assemble::NewKey;
pub use notes::{Kind, Note};

/// Longer texts are refused before they are parsed.
pub const MAX_TEXT: usize = 1024 * 1024;
/// More connections than this are refused.
pub const MAX_CONNS: usize = 4096;

/// How a text is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Dialect {
    /// swanctl.conf of strongSwan
    Swanctl,
    /// ipsec.conf of strongSwan or libreswan
    Ipsec,
}

impl Dialect {
    /// Finds out how a text is written: the first line that says something decides.
    pub fn of(text: &str) -> Self {
        let starts = |word: &str| {
            text.lines().any(|line| line.strip_prefix(word).is_some_and(|rest| rest.starts_with([' ', '\t'])))
        };
        if starts("conn") || starts("config") || starts("ca") || starts("version") {
            Self::Ipsec
        } else {
            Self::Swanctl
        }
    }
}

/// Which end of an ipsec.conf this host is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Side {
    /// left is here
    Left,
    /// right is here
    Right,
}

/// What the text does not say.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// How the text is written, if it shall not be found out.
    pub dialect: Option<Dialect>,
    /// Which end of an ipsec.conf this host is, if it shall not be found out.
    pub here: Option<Side>,
    /// This host's addresses, by which its end is found out.
    pub addresses: Vec<IpAddr>,
    /// The outer address or interface of gateways whose text does not tell it.
    pub address: Option<String>,
    /// The directory in which keys are to be, as `psk_file` names it.
    pub secrets_dir: Option<String>,
}

/// A text with the name that notes shall give it.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name.
    pub name: &'a str,
    /// The text.
    pub text: &'a str,
}

/// What became of a text.
#[derive(Debug)]
pub struct Imported {
    /// How it was written.
    pub dialect: Dialect,
    /// The configuration. It passes `cygnet check`, but for keys that have yet to be put into their files.
    pub yaml: String,
    /// How many tunnels it has.
    pub tunnels: usize,
    /// What has no counterpart, what was changed, and what is left to do; in the order of the text.
    pub notes: Vec<Note>,
    /// Keys with the names of their files, if [`Options::secrets_dir`] is set.
    pub keys: Vec<NewKey>,
}

/// A text that is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct ImportError {
    /// The text's name.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong. Nothing of the text is in it that could be a key.
    pub what: String,
}

/// A text that begins or ends somewhere else than it should.
#[derive(Debug)]
struct Malformed {
    line: usize,
    what: String,
}

fn malformed(line: usize, what: impl Into<String>) -> Malformed {
    Malformed { line, what: what.into() }
}

/// Turns a text into a configuration. `secrets` is the ipsec.secrets that belongs to an ipsec.conf.
///
/// # Errors
/// [`ImportError`] if the text cannot be parsed; what is understood and has no counterpart is a note.
pub fn import(
    source: Source<'_>,
    secrets: Option<Source<'_>>,
    options: &Options,
) -> Result<Imported, ImportError> {
    let fail = |name: &str, m: Malformed| ImportError { file: name.to_owned(), line: m.line, what: m.what };
    for s in [Some(source), secrets].into_iter().flatten() {
        if s.text.len() > MAX_TEXT {
            return Err(fail(s.name, malformed(1, "the file is larger than 1 MiB")));
        }
    }
    let dialect = options.dialect.unwrap_or_else(|| Dialect::of(source.text));
    let mut notes = notes::Notes::new(source.name);
    let read = match dialect {
        Dialect::Swanctl => swanctl::read(source.text, &mut notes).map_err(|m| fail(source.name, m))?,
        Dialect::Ipsec => {
            let conns = ipsec::read(source.text, options, &mut notes).map_err(|m| fail(source.name, m))?;
            let keys = match secrets {
                Some(s) => ipsec::secrets::read(s.text).map_err(|m| fail(s.name, m))?,
                None => Vec::new(),
            };
            conn::Read { conns, keys }
        }
    };
    let made = assemble::assemble(read, dialect, options, &mut notes);
    Ok(Imported {
        dialect,
        yaml: made.yaml,
        tunnels: made.tunnels,
        notes: notes.into_sorted(),
        keys: made.keys,
    })
}

/// A value that may be a key.
type Secret = Zeroizing<String>;
