//! Where secrets stand in the text of a configuration, and a line of it as it may be shown.
//!
//! Errors go to terminals, to the journal and into bug reports with the line that they are about. Whatever its style
//! (plain, quoted, a block, in brackets, behind a tag or an anchor, refused or read) no character of a key is in it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use super::decode::closest;
use super::error::is_nameable;
use super::fields::{self, Kind, Section};
use super::node::Mark;
use super::secrets;

/// What a value is, by the keys that lead to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Context {
    /// Nothing that needs hiding.
    Public,
    /// The name of a file with a key.
    File,
    /// A key, or what could be one.
    Secret,
}

impl Context {
    /// Of the value of `key` in this context.
    pub fn below(self, key: &str) -> Self {
        // What is no word may be a line in which something was forgotten.
        let secret = self != Self::Public || names_secret(key) || names_link(key) || !is_nameable(key);
        match secret {
            true if self != Self::File && names_files(key) => Self::File,
            true => Self::Secret,
            false => Self::Public,
        }
    }

    /// Whether a scalar here must not be shown. A key that auth does not know may be the secret itself, with its quotes
    /// forgotten.
    pub fn hides(self, text: &str, is_key: bool) -> bool {
        match self {
            Self::Public => false,
            _ if is_key => !fields::AUTH.fields.iter().any(|f| f.key == text),
            Self::File => secrets::could_be_key(text),
            Self::Secret => true,
        }
    }
}

/// Whether the value of a key is a URL, which may hold a password, or be one: whoever knows that of a webhook may post there.
fn names_link(key: &str) -> bool {
    key.eq_ignore_ascii_case("url")
}

/// Whether the values of a key are names of files.
fn names_files(key: &str) -> bool {
    let key = key.to_lowercase();
    key.ends_with("_file") || key.ends_with("_files")
}

/// Whether the value of a key is secret wherever it strayed to, however other programs and hasty people spell the key.
pub fn names_secret(key: &str) -> bool {
    /// The answers for our own keys, of which a file of ten thousand tunnels has a hundred thousand.
    static OURS: LazyLock<BTreeMap<&str, bool>> = LazyLock::new(|| {
        known_keys(&fields::ROOT).into_iter().map(|key| (key, resembles_secret(key))).collect()
    });
    OURS.get(key).copied().unwrap_or_else(|| resembles_secret(key))
}

/// The keys of a section and of those in it.
fn known_keys(section: &Section) -> Vec<&'static str> {
    fn inside(kind: &Kind) -> Vec<&'static str> {
        match kind {
            Kind::Section(section) => known_keys(section),
            Kind::List(kind) => inside(kind),
            Kind::AnyOf(kinds) => kinds.iter().flat_map(inside).collect(),
            _ => Vec::new(),
        }
    }
    section.fields.iter().flat_map(|field| [vec![field.key], inside(&field.kind)].concat()).collect()
}

fn resembles_secret(key: &str) -> bool {
    const WORDS: [&str; 6] = ["auth", "psk", "secret", "password", "sharedkey", "token"];
    let plain = key.to_lowercase().replace(['-', '_', ' '], "");
    // A key of ours that is only two letters away from "secret".
    let ours = key == "preset";
    WORDS.iter().any(|word| plain.contains(word)) || !ours && closest(key, WORDS.into_iter()).is_some()
}

/// Spans of the text that are not shown.
#[derive(Default, Debug)]
pub struct Masks {
    spans: Vec<(Mark, Mark)>,
}

impl Masks {
    /// Hides what stands from `from` to `to` (exclusive; a column of `usize::MAX` is the end of the line).
    pub fn hide(&mut self, from: Mark, to: Mark) {
        self.spans.push((from, to));
    }

    /// The columns (from 0) of `line` (from 1) that must not be shown.
    fn columns(&self, line: usize) -> impl Iterator<Item = Range<usize>> {
        self.spans.iter().filter(move |(a, b)| a.line <= line && line <= b.line).map(move |(a, b)| {
            let from = if a.line == line { a.col - 1 } else { 0 };
            // A block scalar ends at column 1 of the line after it.
            let to = if b.line == line { b.col - 1 } else { usize::MAX };
            from..to
        })
    }

    /// A line of the file as it may be shown: secrets and comments, which may hold an older key, as `*`, control
    /// characters as `?`, so that columns stay true.
    pub fn show(&self, line_number: usize, line: &str) -> String {
        const MAX: usize = 160;
        let hidden: Vec<Range<usize>> = self.columns(line_number).collect();
        let mut before = ' ';
        let mut comment = false;
        line.chars()
            .take(MAX)
            .enumerate()
            .map(|(n, c)| {
                let hide = comment || hidden.iter().any(|r| r.contains(&n));
                comment |= c == '#' && before.is_whitespace();
                before = c;
                match c {
                    _ if hide => '*',
                    c if c.is_control() || is_bidi(c) => '?',
                    c => c,
                }
            })
            .collect()
    }
}

/// Characters that reorder or hide text on a terminal.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else their values would be hidden from those who have to correct them.
    #[test]
    fn of_the_known_keys_only_those_of_secrets_count_as_such() {
        let mut all = known_keys(&fields::ROOT);
        all.retain(|key| names_secret(key) || !is_nameable(key));
        assert_eq!(all, ["token_file", "secret_file", "auth", "psk_file", "psk_files", "psk"]);
    }
}
