//! What can be wrong with a configuration, and how it is told to people and to programs.
//!
//! A [`Problem`] never holds a secret: the text that it quotes is masked and escaped before it gets here.

use std::cell::RefCell;
use std::fmt;

use serde::Serialize;

use super::masks::Masks;
use super::node::Mark;

/// How bad a problem is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, but somebody should look.
    Warning,
}

/// A place in the file, and the path that leads to it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct At {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub col: usize,
    /// How many characters are meant, 0 if unknown.
    pub len: usize,
    /// As in `tunnels[2].spd[0].remote[1]`; empty for the whole document.
    pub path: String,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// Error or warning.
    pub severity: Severity,
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    #[serde(rename = "column")]
    pub col: usize,
    /// As in `tunnels[2].spd[0].remote[1]`.
    pub path: String,
    /// What is wrong.
    #[serde(rename = "message")]
    pub what: String,
    /// What would be right; empty if there is nothing to add.
    #[serde(rename = "hint")]
    pub fix: String,
    /// The line it stands on, masked and escaped; empty if it must not be shown.
    #[serde(skip)]
    pub snippet: String,
    /// Characters to underline in the snippet.
    #[serde(skip)]
    pub len: usize,
}

impl Problem {
    /// The problem as one line: `file:line:col: error: path: what; fix`.
    pub fn one_line(&self, file: &str) -> String {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let mut out = format!("{file}:{}:{}: {severity}: ", self.line, self.col);
        if !self.path.is_empty() {
            out.push_str(&self.path);
            out.push_str(": ");
        }
        out.push_str(&self.what);
        if !self.fix.is_empty() {
            out.push_str("; ");
            out.push_str(&self.fix);
        }
        out
    }

    /// The line it stands on with the place underlined, or nothing.
    pub fn excerpt(&self) -> String {
        if self.snippet.is_empty() {
            return String::new();
        }
        let number = self.line.to_string();
        let room = self.snippet.chars().count().saturating_sub(self.col.saturating_sub(1));
        // Of a long line only the beginning is shown.
        if self.col > self.snippet.chars().count() + 1 {
            return format!(" {number} | {}\n", self.snippet);
        }
        let marks = "^".repeat(self.len.clamp(1, room.max(1)));
        let gutter = " ".repeat(number.len());
        let indent = " ".repeat(self.col.saturating_sub(1));
        format!(" {number} | {}\n {gutter} | {indent}{marks}\n", self.snippet)
    }
}

/// Everything that is wrong with one file; at least one entry is an error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors {
    /// The file as it was named, escaped.
    pub file: String,
    /// Errors and warnings in the order of the file.
    pub problems: Vec<Problem>,
}

impl ConfigErrors {
    /// How many of the problems are errors.
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|p| p.severity == Severity::Error).count()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, p) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&p.one_line(&self.file))?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A value that was refused: what is wrong with it and what would be right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub fix: String,
}

/// Makes a [`Wrong`].
pub fn wrong(what: impl Into<String>, fix: impl Into<String>) -> Wrong {
    Wrong { what: what.into(), fix: fix.into() }
}

/// More errors (and more warnings) than this are not collected: nobody reads them, and a hostile file must not make
/// them cost memory.
pub const MAX_PROBLEMS: usize = 1000;

/// Collects problems while a file is read. Errors and warnings are counted apart, so that no number of warnings can
/// hide an error.
#[derive(Default, Debug)]
pub struct Sink {
    errors: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    masks: RefCell<Masks>,
}

fn push(list: &RefCell<Vec<Problem>>, severity: Severity, at: &At, wrong: Wrong) {
    let mut list = list.borrow_mut();
    if list.len() < MAX_PROBLEMS {
        list.push(Problem {
            severity,
            line: at.line,
            col: at.col,
            path: at.path.clone(),
            what: wrong.what,
            fix: wrong.fix,
            snippet: String::new(),
            len: at.len,
        });
    }
}

impl Sink {
    /// Notes an error.
    pub fn error(&self, at: &At, wrong: Wrong) {
        push(&self.errors, Severity::Error, at, wrong);
    }

    /// Notes a warning.
    pub fn warning(&self, at: &At, wrong: Wrong) {
        push(&self.warnings, Severity::Warning, at, wrong);
    }

    /// Notes a place that no excerpt may show; see `Masks::hide`.
    pub fn hide(&self, from: Mark, to: Mark) {
        self.masks.borrow_mut().hide(from, to);
    }

    /// The problems in the order of the file, and what their excerpts must not show.
    pub fn into_sorted(self) -> (Vec<Problem>, Masks) {
        let mut problems = self.errors.into_inner();
        problems.append(&mut self.warnings.into_inner());
        problems.sort_by_key(|p| (p.line, p.col));
        (problems, self.masks.into_inner())
    }
}

/// Text of strangers made fit for a terminal: in quotes, control characters escaped, cut to a length that stays readable.
pub fn quoted(text: &str) -> String {
    const MAX: usize = 80;
    let mut out = String::from("\"");
    for (n, c) in text.chars().enumerate() {
        if n == MAX {
            out.push('…');
            break;
        }
        if c == '\'' { out.push(c) } else { out.extend(c.escape_debug()) }
    }
    out.push('"');
    out
}

/// Whether an unknown key may be quoted: a plain word, and not what could be a secret whose own key was forgotten.
pub fn is_nameable(key: &str) -> bool {
    let mut chars = key.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '<');
    first && key.len() <= 24 && chars.all(|c| c.is_ascii_lowercase() || "_-.<".contains(c))
}

/// A key of the file for messages, quoted if it may be.
pub fn named(key: &str) -> String {
    if is_nameable(key) { format!("key {}", quoted(key)) } else { "this key".to_owned() }
}

/// A path made fit for a terminal, without quotes.
pub fn quoted_path(path: &str) -> String {
    path.chars()
        .flat_map(|c| if c == '\'' || c == '"' { vec![c] } else { c.escape_debug().collect() })
        .collect()
}
