//! The documents: references are what the program says of itself, the index of errors is complete, and links lead somewhere.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cygnet::control::ErrorKind;
use cygnet::diagnose::Cause;
use cygnet::observe::counters::XFRM_STATISTICS;
use cygnet::observe::events;

const ERRORS: &str = "docs/reference/errors.md";

/// CYGNET_UPDATE_GOLDEN=1 writes them anew; so does `cygnet reference docs/reference`.
#[test]
fn references_are_what_the_program_says_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_cygnet")).arg("reference").arg(dir.path()).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    for name in ["configuration.md", "cli.md"] {
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        common::golden(&format!("docs/reference/{name}"), &text);
    }
}

/// The first cells of the table behind `<!-- codes: NAME -->`, without their backquotes. No cell of a row may lack its words but the last
/// one of what needs nothing.
fn codes(text: &str, name: &str) -> BTreeSet<String> {
    let (_, rest) =
        text.split_once(&format!("<!-- codes: {name} -->\n")).unwrap_or_else(|| panic!("no table {name}"));
    let rows: Vec<&str> = rest.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    let mut found = BTreeSet::new();
    for row in &rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.len() >= 2 && !cells[1].is_empty(), "{row}");
        assert!(found.insert(cells[0].trim_matches('`').to_owned()), "twice: {row}");
    }
    found
}

fn same(text: &str, name: &str, known: impl IntoIterator<Item = impl Into<String>>) {
    let known: BTreeSet<String> = known.into_iter().map(Into::into).collect();
    let told = codes(text, name);
    let missing: Vec<_> = known.difference(&told).collect();
    let stale: Vec<_> = told.difference(&known).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "{ERRORS}, {name}: missing {missing:#?}, not there any more {stale:#?}"
    );
}

#[test]
fn every_code_has_an_entry_and_every_entry_a_code() {
    let text = common::read(ERRORS);
    same(&text, "causes", Cause::ALL.iter().map(|c| c.name()));
    same(&text, "failures", cygnet_ike::FailureReason::ALL.iter().map(|r| r.name()));
    same(&text, "ike-drops", cygnet_ike::DropReason::ALL.iter().map(|r| r.name()));
    same(&text, "plane-drops", cygnet_esp::DropReason::ALL.iter().map(|r| r.name()));
    same(&text, "events", events::Kind::ALL.iter().map(|k| k.name()));
    same(&text, "control", ErrorKind::ALL.iter().map(|k| k.name()));
    same(&text, "exit", exit_codes());
    for name in codes(&text, "kernel-drops") {
        assert!(XFRM_STATISTICS.contains(&name.as_str()), "{name}");
    }
}

/// Those that the program itself tells.
fn exit_codes() -> BTreeSet<String> {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_cygnet")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, table) = help.split_once("Exit codes:\n").unwrap();
    let code = |line: &str| line.split_whitespace().next().map(str::to_owned);
    table.lines().map_while(code).filter(|code| code.chars().all(|c| c.is_ascii_digit())).collect()
}

/// Each text of an error type has an entry, with `…` in the place of what it fills in.
#[test]
fn every_message_of_an_error_type_has_an_entry() {
    let mut known = BTreeSet::new();
    for dir in ["src", "xfrm/src", "model/src", "ike/src", "esp/src", "reconcile/src"] {
        for file in sources(dir) {
            let text = fs::read_to_string(file).unwrap();
            // Behind the bracket, or on the next line.
            let literals =
                text.split("#[error(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"'));
            known.extend(literals.map(shown));
        }
    }
    assert!(known.remove("…"), "a type that hands on another one's words");
    same(&common::read(ERRORS), "messages", known);
}

/// A format string up to its closing quote, as people see it.
fn shown(literal: &str) -> String {
    let (mut out, mut chars) = (String::new(), literal.chars());
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => match chars.next() {
                // The literal goes on in the next line.
                Some('\n') => {
                    let rest = chars.as_str().trim_start();
                    chars = rest.chars();
                }
                escaped => out.extend(escaped),
            },
            '{' => {
                chars.by_ref().find(|c| *c == '}');
                out.push('…');
            }
            c => out.push(c),
        }
    }
    out
}

/// The messages of `cygnet check` in the index are those of tests/bad-configs; CYGNET_UPDATE_GOLDEN=1 writes them anew.
#[test]
fn the_index_has_every_message_of_a_bad_configuration() {
    let mut messages: BTreeMap<String, (&str, String)> = BTreeMap::new();
    let expected = common::read("tests/bad-configs/expected.txt");
    for line in expected.lines().filter(|l| !l.contains("not valid YAML")) {
        let Some((severity, rest)) =
            [": error: ", ": warning: "].iter().find_map(|s| Some((*s, line.split_once(*s)?.1)))
        else {
            continue;
        };
        let (what, fix) = without_path(rest).split_once("; ").unwrap_or((without_path(rest), ""));
        let key = general(what);
        messages.entry(key).or_insert_with(|| (severity.trim_matches([':', ' ']), fix.to_owned()));
    }
    let mut table = String::from("| | message | what would be right, for instance |\n|---|---|---|\n");
    for (what, (severity, fix)) in &messages {
        table.push_str(&format!("| {severity} | {} | {} |\n", cell(what), cell(fix)));
    }
    let (begin, end) = ("<!-- made from tests/bad-configs/expected.txt -->\n", "<!-- end -->");
    let text = common::read(ERRORS);
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    common::golden(ERRORS, &format!("{before}{begin}{table}{end}{after}"));
}

/// A message without the path of a key in front of it.
fn without_path(message: &str) -> &str {
    let is_path =
        |p: &str| p.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.-[]<>".contains(c));
    match message.split_once(": ") {
        Some((path, rest)) if !path.is_empty() && is_path(path) && !["legacy"].contains(&path) => rest,
        _ => message,
    }
}

/// A message with `…` for names, values and places of the one configuration that it was seen with.
fn general(message: &str) -> String {
    let mut out = String::new();
    let mut rest = message;
    while let Some((before, tail)) = rest.split_once('"') {
        out.push_str(before);
        // An escaped quote inside stays inside.
        let mut escaped = false;
        let end = tail.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        out.push_str("\"…\"");
        rest = end.map_or("", |at| &tail[at + 1..]);
    }
    out.push_str(rest);
    let mut previous = "";
    let mut words = Vec::new();
    for word in out.split(' ') {
        words.push(if previous.ends_with("RFC") { word.to_owned() } else { general_word(word) });
        previous = word;
    }
    let mut out = words.join(" ");
    while out.contains("…, …") || out.contains("… …") {
        out = out.replace("…, …", "…").replace("… …", "…");
    }
    out
}

/// Addresses, networks, names of the samples, paths of keys, files and numbers differ from one configuration to the next.
fn general_word(word: &str) -> String {
    const NAMES: [&str; 3] = ["a-b", "a-c", "gw.example.org"];
    let core = word.trim_matches(|c: char| "(),;:".contains(c));
    let has_digit = core.chars().any(|c| c.is_ascii_digit());
    let address = has_digit
        && core.chars().all(|c| c.is_ascii_hexdigit() || ".:/".contains(c))
        && (core.contains('.') || core.contains("::") || core.starts_with('/'));
    let path = has_digit && core.contains('[') && core.contains(']');
    let number = !core.is_empty() && core.chars().all(|c| c.is_ascii_digit());
    let differs = address || path || number || core.starts_with("DIR/") || NAMES.contains(&core);
    if differs { word.replace(core, "…") } else { word.to_owned() }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<")
}

/// Sources below a directory.
fn sources(dir: &str) -> Vec<PathBuf> {
    files(&common::root().join(dir), "rs")
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            found.extend(files(&entry, extension));
        } else if entry.extension().is_some_and(|e| e == extension) {
            found.push(entry);
        }
    }
    found.sort();
    found
}

/// Headings as links name them: letters, digits, `_` and `-`, spaces as `-`, in small letters.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut code = false;
    let headings = text.lines().filter(|line| {
        code ^= line.starts_with("```");
        !code && line.starts_with('#')
    });
    let anchor = |line: &str| -> String {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || "_- ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// Links of a document with what they lead to, outside of blocks of code.
fn links(text: &str) -> Vec<String> {
    let mut code = false;
    let prose: Vec<&str> = text
        .lines()
        .filter(|line| {
            code ^= line.trim_start().starts_with("```");
            !code
        })
        .collect();
    let prose = prose.join("\n");
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|t| !t.contains("://")).map(str::to_owned).collect()
}

#[test]
fn links_of_documents_lead_somewhere() {
    let root = common::root();
    let mut documents = files(&root.join("docs"), "md");
    documents.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(|f| root.join(f)));
    let mut broken = Vec::new();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            let there = target.exists()
                && (anchor.is_empty() || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !there {
                broken.push(format!("{}: {link}", document.strip_prefix(&root).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The index of documents names every one of them.
#[test]
fn every_document_is_in_the_index() {
    let root = common::root();
    let index: Vec<String> = links(&common::read("docs/README.md"));
    for document in files(&root.join("docs"), "md") {
        let name = document.strip_prefix(root.join("docs")).unwrap().display().to_string();
        if name != "README.md" && !name.starts_with("decisions/") {
            assert!(index.contains(&name), "docs/README.md does not name {name}");
        }
    }
}
