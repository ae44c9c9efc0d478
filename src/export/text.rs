//! What renderers share: keys and identities as text, quoting, comments.

use std::fmt::Write;

use zeroize::Zeroizing;

use super::ExportError;
use super::mirror::{Key, Mirror};
use crate::config::Identity;

/// What stands for the key in texts without it. No format takes it for something else, and no peer for a good key.
pub const PLACEHOLDER: &str = "REPLACE-BY-THE-PRE-SHARED-KEY";

/// A text that grows by lines. It may hold a key, so that it is made with room enough and wiped when dropped.
pub struct Lines {
    text: Zeroizing<String>,
    comment: &'static str,
}

impl Lines {
    /// A text whose comments begin with `comment`.
    pub fn new(comment: &'static str) -> Self {
        Self { text: Zeroizing::new(String::with_capacity(256 * 1024)), comment }
    }

    /// Adds a line.
    pub fn add(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    /// Adds a line of comment.
    pub fn comment(&mut self, line: &str) {
        let _ = writeln!(self.text, "{} {line}", self.comment);
    }

    /// Adds the head of a text.
    pub fn head(&mut self, mirror: &Mirror<'_>) {
        mirror.head().iter().for_each(|line| self.comment(line));
    }

    /// The text.
    pub fn finish(self) -> Zeroizing<String> {
        self.text
    }
}

/// Adds a line to a [`Lines`].
macro_rules! line {
    ($out:expr, $($format:tt)*) => { $out.add(format_args!($($format)*)) };
}
pub(super) use line;

/// Whether every format takes these characters for themselves.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "._+/-".contains(c))
}

/// The key as text where it is plain and cannot be taken for a coded one, else in hexadecimal digits.
pub fn coded(key: &[u8]) -> Key {
    match std::str::from_utf8(key) {
        Ok(text) if is_plain(text) && !text.starts_with("0x") && !text.starts_with("0s") => {
            Key::Text(Zeroizing::new(text.to_owned()))
        }
        _ => Key::Hex(hex(key)),
    }
}

/// Hexadecimal digits.
pub fn hex(octets: &[u8]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(octets.len() * 2));
    octets.iter().for_each(|b| {
        let _ = write!(out, "{b:02x}");
    });
    out
}

/// The text in double quotes, with a backslash before quotes and backslashes.
pub fn in_quotes(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A distinguished name that needs no escapes anywhere: one comma between its parts and none in them.
pub fn plain_dn(id: &Identity) -> Option<String> {
    let Identity::Dn(name) = id else { return None };
    let text = name.to_string();
    let ok = |c: char| c.is_ascii_alphanumeric() || " .,=-_@".contains(c);
    (text.chars().all(ok) && text.split(", ").all(|part| part.matches(['=', ',']).count() == 1))
        .then_some(text)
}

/// The text of a key id, if it is one that can be typed: printable, without spaces, quotes and what shells eat.
pub fn key_id_text(octets: &[u8]) -> Option<&str> {
    let typed = |b: &u8| b.is_ascii_alphanumeric() || b"._-@:/+=".contains(b);
    std::str::from_utf8(octets).ok().filter(|_| octets.iter().all(typed))
}

/// Whether a name or address can be typed everywhere as one word.
pub fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || "._-@:+=~".contains(c))
}

/// The refusal of an identity.
pub fn refuse_id(mirror: &Mirror<'_>, whose: &'static str, id: &Identity, why: &'static str) -> ExportError {
    let identity = crate::config::error::quoted(&id.to_string());
    ExportError::Identity { product: mirror.product(), whose, identity, why }
}

/// A number within what a format takes, and a note where that is another one.
pub fn within(what: &str, value: u64, min: u64, max: u64, product: &str, notes: &mut Vec<String>) -> u64 {
    let clamped = value.clamp(min, max);
    if clamped != value {
        notes.push(format!(
            "{what}: {product} takes {min} to {max}; the peer's text has {clamped} instead of {value}"
        ));
    }
    clamped
}
