//! From the YAML tree to typed values, one accessor at a time. Each accessor notes what is wrong and goes on, so that
//! one run tells everything.

use std::rc::Rc;

use super::error::{At, Sink, Wrong, is_nameable, quoted, wrong};
use super::fields::Section;
use super::masks::names_secret;
use super::node::{Entry, Mark, Node, Value};

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// The place.
    pub at: At,
}

/// A node on its way to becoming a value.
#[derive(Clone)]
pub struct Item<'a> {
    node: &'a Node,
    path: String,
    sink: &'a Sink,
}

/// The keys of one mapping.
pub struct Reader<'a> {
    entries: &'a [Entry],
    section: &'static Section,
    path: String,
    sink: &'a Sink,
}

impl<'a> Item<'a> {
    /// The document.
    pub fn root(node: &'a Rc<Node>, sink: &'a Sink) -> Self {
        Self { node, path: String::new(), sink }
    }

    /// Its place.
    pub fn at(&self) -> At {
        self.node.at(&self.path)
    }

    /// Notes an error here.
    pub fn error(&self, wrong: Wrong) {
        self.sink.error(&self.at(), wrong);
    }

    /// Notes what somebody should look at.
    pub fn warning(&self, wrong: Wrong) {
        self.sink.warning(&self.at(), wrong);
    }

    fn is(&self) -> &'static str {
        match &self.node.value {
            _ if self.node.is_null() => "there is no value",
            Value::Scalar { .. } => "this is a single value",
            Value::Seq(_) => "this is a list",
            Value::Map(_) => "this is a mapping",
        }
    }

    /// Whether it is a mapping.
    pub fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// Whether it is a list.
    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::Seq(_))
    }

    /// Whether it is this word.
    pub fn is_word(&self, word: &str) -> bool {
        matches!(&self.node.value, Value::Scalar { text, .. } if text.as_str() == word)
    }

    /// Its text, as written. `expected` completes "write …".
    pub fn text(&self, expected: &str) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => Some(text),
            _ => {
                self.error(wrong(self.is(), format!("write {expected}")));
                None
            }
        }
    }

    /// Its text, made into a value by `read`.
    pub fn parse<T>(
        &self,
        expected: &str,
        read: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<Spanned<T>> {
        match read(self.text(expected)?) {
            Ok(value) => Some(Spanned { value, at: self.at() }),
            Err(w) => {
                self.error(w);
                None
            }
        }
    }

    /// `true` or `false`, without quotes.
    pub fn bool(&self) -> Option<bool> {
        if let Value::Scalar { text, plain: true } = &self.node.value {
            match text.as_str() {
                "true" => return Some(true),
                "false" => return Some(false),
                _ => {}
            }
        }
        let text = self.text("true or false")?;
        self.error(wrong(format!("{} is neither true nor false", quoted(text)), "write true or false"));
        None
    }

    /// A whole number within limits.
    pub fn integer(&self, min: i64, max: i64) -> Option<i64> {
        let expected = format!("a whole number from {min} to {max}");
        let fix = format!("write {expected}");
        let number = self.parse(&expected, |text| {
            text.parse::<i64>().map_err(|_| wrong(format!("{} is not a whole number", quoted(text)), &*fix))
        })?;
        if number.value < min || number.value > max {
            self.error(wrong(format!("{} is out of range", number.value), fix));
            return None;
        }
        Some(number.value)
    }

    /// One of `words`; gives its position.
    pub fn word(&self, words: &[&str]) -> Option<usize> {
        let list = words.join(", ");
        let text = self.text(&format!("one of {list}"))?;
        if let Some(n) = words.iter().position(|w| *w == text) {
            return Some(n);
        }
        let fix = match closest(text, words.iter().copied()) {
            Some(w) => format!("did you mean {w}? Known are {list}"),
            None => format!("known are {list}"),
        };
        self.error(wrong(format!("unknown word {}", quoted(text)), fix));
        None
    }

    /// The items of a list.
    pub fn list(&self, of: &str) -> Option<Vec<Item<'a>>> {
        let Value::Seq(nodes) = &self.node.value else {
            self.error(wrong(self.is(), format!("write a list of {of}, each after \"- \" or all in [ ]")));
            return None;
        };
        Some(
            (nodes.iter().enumerate())
                .map(|(n, node)| Item { node, path: format!("{}[{n}]", self.path), sink: self.sink })
                .collect(),
        )
    }

    /// A mapping with the keys of `section`; unknown and missing keys are noted here.
    pub fn map(&self, section: &'static Section) -> Option<Reader<'a>> {
        let known = || section.fields.iter().map(|f| f.key);
        let Value::Map(entries) = &self.node.value else {
            let keys: Vec<&str> = known().collect();
            self.error(wrong(self.is(), format!("write a mapping with the keys {}", keys.join(", "))));
            return None;
        };
        let reader = Reader { entries, section, path: self.path.clone(), sink: self.sink };
        for e in entries {
            if known().any(|k| k == e.key) {
                continue;
            }
            let near = closest(&e.key, known());
            let keys = known().collect::<Vec<_>>().join(", ");
            let mut fix = match near {
                Some(k) => format!("did you mean {k}? {} has {keys}", capital(section.name)),
                None => format!("{} has {keys}", section.name),
            };
            if e.key == "<<" {
                fix = "merge keys are not supported; write the keys out or use an alias for a whole value"
                    .into();
            }
            // Of what nobody knows nothing is shown that could be a secret with its key forgotten.
            if near.is_none_or(names_secret) {
                self.sink.hide(e.value.start, e.value.end);
            }
            let mut at = At { line: e.key_at.line, col: e.key_at.col, len: 1, path: self.path.clone() };
            let what = if !section.secret && (near.is_some() || is_nameable(&e.key)) {
                at.len = e.key.chars().count();
                at.path = reader.path_of(&e.key);
                format!("unknown key {}", quoted(&e.key))
            } else {
                self.sink.hide(e.key_at, Mark { col: usize::MAX, ..e.key_at });
                "unknown key".to_owned()
            };
            self.sink.error(&at, wrong(what, fix));
        }
        for f in section.fields.iter().filter(|f| f.required) {
            if !entries.iter().any(|e| e.key == f.key) {
                let fix = format!("add {}: {}", f.key, lowercase(f.doc).trim_end_matches('.'));
                self.error(wrong(format!("key \"{}\" is missing", f.key), fix));
            }
        }
        Some(reader)
    }
}

impl<'a> Reader<'a> {
    /// The path of a key.
    pub fn path_of(&self, key: &str) -> String {
        let safe: String = key.chars().take(64).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
        if self.path.is_empty() { safe } else { format!("{}.{safe}", self.path) }
    }

    /// Whether a key must be there; if it is not, that is already noted.
    pub fn requires(&self, key: &str) -> bool {
        self.section.fields.iter().any(|f| f.key == key && f.required)
    }

    /// The value of a key, if it is there.
    pub fn get(&self, key: &'static str) -> Option<Item<'a>> {
        debug_assert!(self.section.fields.iter().any(|f| f.key == key), "{key} is not in the table");
        let e = self.entries.iter().find(|e| e.key == key)?;
        Some(Item { node: &e.value, path: self.path_of(key), sink: self.sink })
    }
}

fn capital(text: &str) -> String {
    let mut c = text.chars();
    c.next().map_or_else(String::new, |first| first.to_uppercase().chain(c).collect())
}

fn lowercase(text: &str) -> String {
    let mut c = text.chars();
    // "CIDR blocks" and "IP address" keep their capitals.
    match (c.next(), c.next()) {
        (Some(a), Some(b)) if !b.is_uppercase() => a.to_lowercase().chain([b]).chain(c).collect(),
        _ => text.to_owned(),
    }
}

/// The candidate that `text` is a likely misspelling of.
pub fn closest<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let plain = |s: &str| s.to_lowercase().replace(['-', '_', ' '], "");
    let (wanted, length) = (plain(text), text.chars().count());
    if length > 40 {
        return None;
    }
    candidates
        .filter_map(|c| {
            let (most, candidate) = ((c.len().max(length) / 3).max(1), plain(c));
            // Each letter more or less is a step.
            let lengths = (wanted.chars().count(), candidate.chars().count());
            let steps = (lengths.0.abs_diff(lengths.1) <= most).then(|| distance(&wanted, &candidate))?;
            (steps <= most).then_some((steps, c))
        })
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

/// Edit distance with swaps of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_find_their_key_and_nonsense_does_not() {
        let keys = ["gateway", "customer_gateway", "lifetime", "psk_file", "psk"];
        let near = |t| closest(t, keys.into_iter());
        assert_eq!(near("gatway"), Some("gateway"));
        assert_eq!(near("lifetiem"), Some("lifetime"));
        assert_eq!(near("customer-gateway"), Some("customer_gateway"));
        assert_eq!(near("pskfile"), Some("psk_file"));
        assert_eq!(near("pks"), Some("psk"));
        assert_eq!(near("banana"), None);
    }
}
