//! What is told about lines that became something else, or nothing.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::config::error::quoted;

/// More notes are not collected.
const MAX_NOTES: usize = 10_000;

/// What a note is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A connection is not there.
    LeftOut,
    /// A line became something that is not the same.
    Changed,
    /// A line has no counterpart, and nothing is lost by it or nothing can be done about it.
    Ignored,
    /// Something is left to be done by hand.
    Todo,
}

impl Kind {
    /// The word in a line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::LeftOut => "left out",
            Self::Changed => "changed",
            Self::Ignored => "ignored",
            Self::Todo => "to do",
        }
    }
}

/// One note.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Note {
    /// The file.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// What it is about.
    pub kind: Kind,
    /// What stands there, as far as it may be shown; empty for what concerns more than a line.
    pub what: String,
    /// Why, and what to do.
    pub why: String,
}

impl Note {
    /// The note as one line.
    pub fn one_line(&self) -> String {
        let what = if self.what.is_empty() { String::new() } else { format!("{}: ", self.what) };
        format!("{}:{}: {}: {what}{}", self.file, self.line, self.kind.word(), self.why)
    }
}

/// Notes on one file. The same line may be read for several connections; the same note is told once.
#[derive(Debug)]
pub struct Notes {
    file: String,
    all: BTreeSet<(usize, usize, Note)>,
    seen: BTreeSet<Note>,
}

impl Notes {
    /// Notes on the file of that name.
    pub fn new(file: &str) -> Self {
        Self { file: file.to_owned(), all: BTreeSet::new(), seen: BTreeSet::new() }
    }

    /// Notes something about a line with a key and its value, which must be no secret.
    pub fn add(&mut self, kind: Kind, line: usize, key: &str, value: &str, why: impl Into<String>) {
        let word = |text: &str| {
            let quoted = quoted(text);
            quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_owned()
        };
        self.push(kind, line, format!("{} = {}", word(key), word(value)), why.into());
    }

    /// Notes something about what begins on a line.
    pub fn about(&mut self, kind: Kind, line: usize, why: impl Into<String>) {
        self.push(kind, line, String::new(), why.into());
    }

    fn push(&mut self, kind: Kind, line: usize, what: String, why: String) {
        let note = Note { file: self.file.clone(), line, kind, what, why };
        if self.all.len() < MAX_NOTES && self.seen.insert(note.clone()) {
            self.all.insert((line, self.all.len(), note));
        }
    }

    /// The notes in the order of the file.
    pub fn into_sorted(self) -> Vec<Note> {
        self.all.into_iter().map(|(_, _, note)| note).collect()
    }
}
