//! The syntax of strongSwan's configurations: sections in braces, keys with values, values in quotes, references to other
//! sections (`name : path.of.section { ... }`), comments from `#` to the end of the line.
//!
//! Included files are not followed. Depth, entries and the work of references are bounded.

use std::collections::BTreeSet;

use zeroize::Zeroizing;

use super::super::{Malformed, Secret, malformed};

/// Deeper sections are refused.
const MAX_DEPTH: usize = 16;
/// More entries, references followed, are refused.
const MAX_ENTRIES: usize = 100_000;
/// A chain of references is not followed beyond this.
const MAX_CHAIN: usize = 8;

/// A section.
#[derive(Clone, Default)]
pub struct Section {
    /// The line it begins on.
    pub line: usize,
    /// Keys with their values and lines, each once, in order of first appearance.
    pub values: Vec<Value>,
    /// Sections, each name once.
    pub sections: Vec<(String, Section)>,
    /// Paths of sections whose entries stand in here, too.
    references: Vec<String>,
}

/// A key with its value.
#[derive(Clone)]
pub struct Value {
    /// The key.
    pub key: String,
    /// The value, which may be a secret.
    pub text: Secret,
    /// Its line.
    pub line: usize,
}

/// A whole file.
pub struct Tree {
    /// Its content.
    pub root: Section,
    /// Lines that ask for other files, with their patterns.
    pub includes: Vec<(usize, String)>,
    /// Sections of the file itself that others refer to, or to what is in them.
    pub referenced: BTreeSet<String>,
}

impl Section {
    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.iter().find(|v| v.key == key)
    }

    /// The section of a name.
    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|(n, _)| n == name).map(|(_, s)| s)
    }

    fn set(&mut self, value: Value) {
        match self.values.iter_mut().find(|v| v.key == value.key) {
            Some(old) => *old = value,
            None => self.values.push(value),
        }
    }

    fn open(&mut self, name: &str, line: usize) -> Option<&mut Section> {
        let place = match self.sections.iter().position(|(n, _)| n == name) {
            Some(place) => place,
            None => {
                self.sections.push((name.to_owned(), Section { line, ..Section::default() }));
                self.sections.len() - 1
            }
        };
        self.sections.get_mut(place).map(|(_, s)| s)
    }

    /// What `other` has and this one has not.
    fn inherit(&mut self, other: &Section, budget: &mut usize) {
        for value in &other.values {
            if self.value(&value.key).is_none() && spend(budget) {
                self.values.push(value.clone());
            }
        }
        for (name, section) in &other.sections {
            if !spend(budget) {
                return;
            }
            if let Some(own) = self.open(name, section.line) {
                own.inherit(section, budget);
            }
        }
    }
}

fn spend(budget: &mut usize) -> bool {
    *budget = budget.saturating_sub(1);
    *budget > 0
}

/// Parses a file and resolves its references.
pub fn parse(text: &str) -> Result<Tree, Malformed> {
    let mut parser = Parser { chars: text.chars().peekable(), line: 1, entries: 0, includes: Vec::new() };
    let mut root = Section { line: 1, ..Section::default() };
    parser.section(&mut root, 0)?;
    let mut budget = MAX_ENTRIES;
    let whole = root.clone();
    resolve(&mut root, &whole, 0, &mut budget)?;
    if budget == 0 {
        return Err(malformed(1, "its references make more than 100000 entries"));
    }
    let mut referenced = BTreeSet::new();
    names(&whole, &mut referenced);
    Ok(Tree { root, includes: parser.includes, referenced })
}

fn resolve(
    section: &mut Section,
    whole: &Section,
    chain: usize,
    budget: &mut usize,
) -> Result<(), Malformed> {
    for path in std::mem::take(&mut section.references) {
        let found = path.split('.').try_fold(whole, |at, name| at.section(name));
        let Some(found) = found else {
            return Err(malformed(section.line, "it refers to a section that is not there"));
        };
        if chain >= MAX_CHAIN {
            return Err(malformed(section.line, "its references go on without an end"));
        }
        let mut other = found.clone();
        *budget = budget.saturating_sub(count(&other));
        if *budget == 0 {
            return Ok(());
        }
        resolve(&mut other, whole, chain + 1, budget)?;
        section.inherit(&other, budget);
    }
    for (_, inner) in &mut section.sections {
        resolve(inner, whole, chain, budget)?;
    }
    Ok(())
}

fn names(section: &Section, out: &mut BTreeSet<String>) {
    out.extend(section.references.iter().filter_map(|path| Some(path.split('.').next()?.to_owned())));
    section.sections.iter().for_each(|(_, inner)| names(inner, out));
}

fn count(section: &Section) -> usize {
    1 + section.values.len() + section.sections.iter().map(|(_, s)| count(s)).sum::<usize>()
}

struct Parser<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    entries: usize,
    includes: Vec<(usize, String)>,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.chars.next();
        if c == Some('\n') {
            self.line += 1;
        }
        c
    }

    /// White space and comments.
    fn skip(&mut self) {
        while let Some(c) = self.chars.peek() {
            match c {
                '#' => {
                    while self.chars.peek().is_some_and(|c| *c != '\n') {
                        self.next();
                    }
                }
                c if c.is_whitespace() => {
                    self.next();
                }
                _ => return,
            }
        }
    }

    fn blanks(&mut self) {
        while self.chars.peek().is_some_and(|c| *c == ' ' || *c == '\t' || *c == '\r') {
            self.next();
        }
    }

    fn section(&mut self, into: &mut Section, depth: usize) -> Result<(), Malformed> {
        if depth > MAX_DEPTH {
            return Err(malformed(self.line, "sections stand too deep in each other"));
        }
        loop {
            self.skip();
            let line = self.line;
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(malformed(line, "the file has more than 100000 entries"));
            }
            match self.chars.peek() {
                None if depth == 0 => return Ok(()),
                None => return Err(malformed(line, "the file ends inside a section: a } is missing")),
                Some('}') if depth > 0 => {
                    self.next();
                    return Ok(());
                }
                Some('}') => return Err(malformed(line, "this } closes nothing")),
                Some(_) => {}
            }
            let name = self.name()?;
            if name == "include" && !matches!(self.after_blanks(), Some('=' | '{' | ':')) {
                let pattern = self.value(false)?;
                self.includes.push((line, pattern.to_string()));
                continue;
            }
            self.skip();
            match self.chars.peek() {
                Some('=') => {
                    self.next();
                    let text = self.value(true)?;
                    into.set(Value { key: name, text, line });
                }
                Some('{') | Some(':') => {
                    let mut references = Vec::new();
                    if self.chars.peek() == Some(&':') {
                        self.next();
                        references = self.references()?;
                    }
                    if self.next() != Some('{') {
                        return Err(malformed(line, "a { is missing behind the name of a section"));
                    }
                    let Some(inner) = into.open(&name, line) else { continue };
                    inner.references.extend(references);
                    self.section(inner, depth + 1)?;
                }
                _ => return Err(malformed(line, "neither = nor { follows the name")),
            }
        }
    }

    fn after_blanks(&mut self) -> Option<char> {
        self.blanks();
        self.chars.peek().copied()
    }

    fn name(&mut self) -> Result<String, Malformed> {
        if self.chars.peek() == Some(&'"') {
            return Ok(self.quoted()?.to_string());
        }
        let mut name = String::new();
        while let Some(c) = self.chars.peek() {
            if c.is_whitespace() || "{}=#:,\"".contains(*c) {
                break;
            }
            name.extend(self.next());
        }
        if name.is_empty() { Err(malformed(self.line, "a name is missing")) } else { Ok(name) }
    }

    /// Names of other sections, with commas between them, up to the brace.
    fn references(&mut self) -> Result<Vec<String>, Malformed> {
        let mut out = Vec::new();
        loop {
            self.skip();
            match self.chars.peek() {
                Some('{') => return Ok(out),
                Some(',') => {
                    self.next();
                }
                _ => out.push(self.name()?),
            }
        }
    }

    /// A value: up to the end of the line, a comment or a brace, with quoted parts in it.
    fn value(&mut self, braces_end: bool) -> Result<Secret, Malformed> {
        self.blanks();
        let mut out = Zeroizing::new(String::with_capacity(64));
        let mut kept = 0;
        while let Some(c) = self.chars.peek().copied() {
            match c {
                '\n' | '#' => break,
                '{' | '}' if braces_end => break,
                '"' => {
                    out.push_str(&self.quoted()?);
                    kept = out.len();
                }
                c => {
                    self.next();
                    out.push(c);
                    if !c.is_whitespace() {
                        kept = out.len();
                    }
                }
            }
        }
        out.truncate(kept);
        Ok(out)
    }

    fn quoted(&mut self) -> Result<Secret, Malformed> {
        let line = self.line;
        self.next();
        let mut out = Zeroizing::new(String::with_capacity(64));
        loop {
            match self.next() {
                None => return Err(malformed(line, "a \" is missing at the end of a text")),
                Some('"') => return Ok(out),
                Some('\\') => match self.next() {
                    Some('n') => out.push('\n'),
                    Some('r') => out.push('\r'),
                    Some('t') => out.push('\t'),
                    // A line that goes on.
                    Some('\n') => {}
                    Some(c) => out.push(c),
                    None => return Err(malformed(line, "a \" is missing at the end of a text")),
                },
                Some(c) => out.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tree: &Tree, path: &str) -> Option<String> {
        let (sections, key) = path.rsplit_once('.').unwrap_or(("", path));
        let at = sections.split('.').filter(|s| !s.is_empty()).try_fold(&tree.root, |at, n| at.section(n));
        at?.value(key).map(|v| v.text.to_string())
    }

    #[test]
    fn sections_values_quotes_and_comments() {
        let t = parse(
            "a { # one\n  b = c d  # two\n  e = \"x # y\\\"z\" \n f { g = h } i = j\n}\na { b = again }\nk = \"two\nlines\"\n",
        )
        .unwrap_or_else(|m| panic!("{m:?}"));
        let get = |path| text(&t, path);
        assert_eq!(get("a.b").as_deref(), Some("again"));
        assert_eq!(get("a.e").as_deref(), Some("x # y\"z"));
        assert_eq!((get("a.f.g").as_deref(), get("a.i").as_deref()), (Some("h"), Some("j")));
        assert_eq!(get("k").as_deref(), Some("two\nlines"));
        assert_eq!(t.root.section("a").map(|a| a.line), Some(1));
    }

    #[test]
    fn references_bring_what_a_section_lacks() {
        let t =
            parse("base { x = 1\n s { y = 2 } }\nother { x = 3\n z = 4 }\nc : base, other { s { w = 5 } }\n")
                .unwrap_or_else(|m| panic!("{m:?}"));
        let get = |path| text(&t, path);
        assert_eq!((get("c.x").as_deref(), get("c.z").as_deref()), (Some("1"), Some("4")));
        assert_eq!((get("c.s.y").as_deref(), get("c.s.w").as_deref()), (Some("2"), Some("5")));
    }

    #[test]
    fn what_is_malformed_says_where_and_what_explodes_is_refused() {
        for (bad, line) in [
            ("a {\n b = c\n", 3),
            ("a = b\n}\n", 2),
            ("a\n\nb", 1),
            ("x = \"y\n\n", 1),
            ("a : nowhere { }\n", 1),
            ("a : a { }\n", 1),
            ("a : b { }\nb : a { }\n", 1),
        ] {
            let m = parse(bad).err().unwrap_or_else(|| panic!("{bad}"));
            assert_eq!(m.line, line, "{bad}: {}", m.what);
        }
        assert!(parse(&"a {".repeat(100)).is_err());
        // Each section refers ten times to the one before it.
        let mut bomb = String::from("s0 { a = b }\n");
        for n in 1..8 {
            bomb.push_str(&format!("s{n} {{\n"));
            (0..10).for_each(|m| bomb.push_str(&format!("  t{m} : s{} {{ }}\n", n - 1)));
            bomb.push_str("}\n");
        }
        assert!(parse(&bomb).is_err());
    }
}
