//! YAML text as a tree in which every node knows its place.
//!
//! Deliberately less than YAML: one document, no tags, mapping keys are plain words, a key stands once. Anchors and
//! aliases work for whole values and are capped, so that no small file becomes a large tree.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use zeroize::Zeroizing;

use super::error::{At, Sink, quoted, wrong};

/// Nesting beyond this is refused; the configuration itself needs six levels.
pub const MAX_DEPTH: usize = 32;
/// More keys in one mapping are refused; the largest one that is known has a dozen.
pub const MAX_KEYS: usize = 100;
/// How many nodes aliases may add.
pub const MAX_ALIASED: usize = 100_000;

/// A place: line and column, both counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark {
    /// Line.
    pub line: usize,
    /// Column in characters.
    pub col: usize,
}

/// One node of the tree.
#[derive(Debug)]
pub struct Node {
    /// Where it begins.
    pub start: Mark,
    /// Where it ends (exclusive).
    pub end: Mark,
    /// What it is.
    pub value: Value,
    /// Nodes in this subtree with aliases expanded.
    size: usize,
}

/// What a node holds. Scalars are wiped when dropped, because one of them may be a secret.
pub enum Value {
    /// A scalar as it was written; `plain` if without quotes.
    Scalar {
        /// The text after YAML's unescaping.
        text: Zeroizing<String>,
        /// Without quotes.
        plain: bool,
    },
    /// A sequence.
    Seq(Vec<Rc<Node>>),
    /// A mapping, in the order of the file, each key once.
    Map(Vec<Entry>),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Scalar { .. } => f.write_str("Scalar"),
            Self::Seq(items) => f.debug_list().entries(items).finish(),
            Self::Map(entries) => f.debug_list().entries(entries).finish(),
        }
    }
}

/// A key and its value.
#[derive(Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key begins.
    pub key_at: Mark,
    /// The value.
    pub value: Rc<Node>,
}

impl Node {
    /// Whether it is an empty value, `~` or `null`.
    pub fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar { text, plain: true } => {
                matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            _ => false,
        }
    }

    /// The place with `path`.
    pub fn at(&self, path: &str) -> At {
        let len = if self.start.line == self.end.line && matches!(self.value, Value::Scalar { .. }) {
            self.end.col.saturating_sub(self.start.col)
        } else {
            1
        };
        At { line: self.start.line, col: self.start.col, len, path: path.to_owned() }
    }
}

/// A container that is being filled.
enum Open {
    Seq { anchor: usize, start: Mark, items: Vec<Rc<Node>> },
    Map { anchor: usize, start: Mark, entries: Vec<Entry>, key: Option<(String, Mark, bool)> },
}

struct Builder<'a> {
    sink: &'a Sink,
    stack: Vec<Open>,
    anchors: BTreeMap<usize, Rc<Node>>,
    aliased: usize,
    root: Option<Rc<Node>>,
    documents: usize,
}

fn mark(m: saphyr_parser::Marker) -> Mark {
    Mark { line: m.line(), col: m.col() + 1 }
}

fn place(at: Mark) -> At {
    At { line: at.line, col: at.col, len: 1, path: String::new() }
}

/// Reads one document. Syntax errors end it (`None`); duplicate keys and the like are noted in `sink` and reading goes on.
pub fn parse(text: &str, sink: &Sink) -> Option<Rc<Node>> {
    let mut b =
        Builder { sink, stack: Vec::new(), anchors: BTreeMap::new(), aliased: 0, root: None, documents: 0 };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => b.event(event, span)?,
            Err(e) => {
                let at = place(mark(*e.marker()));
                let what = format!("not valid YAML: {}", quoted(e.info()).trim_matches('"'));
                sink.error(&at, wrong(what, "check indentation, quotes and brackets around here"));
                return None;
            }
        }
    }
    if b.root.is_none() {
        sink.error(
            &place(Mark { line: 1, col: 1 }),
            wrong("the file is empty", "begin with gateways:, customer_gateways: and tunnels:"),
        );
    }
    b.root
}

impl Builder<'_> {
    /// `None` ends the reading.
    fn event(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let (start, end) = (mark(span.start), mark(span.end));
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.sink.error(
                        &place(start),
                        wrong("a second document begins", "keep one document in a file"),
                    );
                    return None;
                }
            }
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    self.sink.error(
                        &place(start),
                        wrong("this alias stands inside its own anchor", "write the value out"),
                    );
                    return None;
                };
                self.aliased += node.size;
                if self.aliased > MAX_ALIASED {
                    self.sink.error(
                        &place(start),
                        wrong(
                            format!("aliases expand to more than {MAX_ALIASED} values"),
                            "write fewer of them",
                        ),
                    );
                    return None;
                }
                self.put(node, 0)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), start);
                self.refuse_style(style, &text, start);
                let plain = style == ScalarStyle::Plain;
                let value = Value::Scalar { text: Zeroizing::new(text.into_owned()), plain };
                self.put(Rc::new(Node { start, end, value, size: 1 }), anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), start);
                self.open(Open::Seq { anchor, start, items: Vec::new() }, start)?;
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), start);
                self.open(Open::Map { anchor, start, entries: Vec::new(), key: None }, start)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (value, start, anchor, inside) = match self.stack.pop()? {
                    Open::Seq { anchor, start, items } => {
                        let size = items.iter().map(|n| n.size).sum::<usize>();
                        (Value::Seq(items), start, anchor, size)
                    }
                    Open::Map { anchor, start, entries, .. } => {
                        let size = entries.iter().map(|e| e.value.size).sum::<usize>();
                        (Value::Map(entries), start, anchor, size)
                    }
                };
                self.put(Rc::new(Node { start, end, value, size: inside + 1 }), anchor)?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Some(())
    }

    fn refuse_tag(&self, tagged: bool, at: Mark) {
        if tagged {
            self.sink.error(&place(at), wrong("tags (!…) are not allowed here", "drop the tag"));
        }
    }

    /// No value of ours has more than a line, and parsers differ about what begins with an indicator.
    fn refuse_style(&self, style: ScalarStyle, text: &str, at: Mark) {
        match style {
            ScalarStyle::Literal | ScalarStyle::Folded => {
                let what = "blocks of text (| and >) are not allowed here";
                self.sink.error(&place(at), wrong(what, "write the value on one line"));
            }
            ScalarStyle::Plain if text.starts_with(['>', '|', '@', '`', '%', '?']) => {
                let what = format!("{} begins with a character that has a meaning in YAML", quoted(text));
                self.sink.error(&place(at), wrong(what, "put the value in quotes"));
            }
            _ => {}
        }
    }

    fn open(&mut self, open: Open, at: Mark) -> Option<()> {
        if self.stack.len() >= MAX_DEPTH {
            self.sink.error(
                &place(at),
                wrong(format!("nested more than {MAX_DEPTH} levels deep"), "no key needs that many"),
            );
            return None;
        }
        self.stack.push(open);
        Some(())
    }

    /// Takes a finished node to where it belongs: root, sequence, key or value.
    fn put(&mut self, node: Rc<Node>, anchor: usize) -> Option<()> {
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Open::Seq { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => match key.take() {
                None => {
                    let Value::Scalar { text, .. } = &node.value else {
                        let fix = "write a word before the colon";
                        self.sink.error(&place(node.start), wrong("a list or mapping stands as a key", fix));
                        return None;
                    };
                    if entries.len() >= MAX_KEYS {
                        let what = format!("more than {MAX_KEYS} keys in one mapping");
                        self.sink.error(&place(node.start), wrong(what, "objects are written as lists"));
                        return None;
                    }
                    let duplicate = match entries.iter().find(|e| e.key == **text) {
                        Some(first) => {
                            let at = At { len: text.chars().count(), ..place(node.start) };
                            let what = format!("key {} stands twice", quoted(text));
                            let fix = format!("the first one is on line {}; keep one", first.key_at.line);
                            self.sink.error(&at, wrong(what, fix));
                            true
                        }
                        None => false,
                    };
                    *key = Some((text.to_string(), node.start, duplicate));
                }
                Some((_, _, true)) => {}
                Some((name, key_at, false)) => entries.push(Entry { key: name, key_at, value: node }),
            },
        }
        Some(())
    }
}

/// The lines of a text as YAML counts them (YAML 1.2.2 §5.4): CR LF, LF and a lone CR end one.
pub fn lines(text: &str) -> Vec<&str> {
    let ends_line = |(at, c): (usize, char)| match c {
        '\n' => Some(at),
        '\r' if !text.get(at + 1..).is_some_and(|rest| rest.starts_with('\n')) => Some(at),
        _ => None,
    };
    let mut out = Vec::new();
    let mut start = 0;
    for end in text.char_indices().filter_map(ends_line) {
        out.extend(text.get(start..end));
        start = end + 1;
    }
    out.extend(text.get(start..));
    out
}

/// Where secrets stand: line ranges with columns, to be masked in whatever is shown of the file.
#[derive(Default, Debug)]
pub struct Masks {
    spans: Vec<(Mark, Mark)>,
}

impl Masks {
    /// Everything below `auth:` except the names of files, and every `psk:` wherever it strayed to.
    pub fn of(root: &Node) -> Self {
        let mut masks = Self::default();
        masks.walk(root, false);
        masks
    }

    fn walk(&mut self, node: &Node, in_auth: bool) {
        match &node.value {
            Value::Scalar { .. } if in_auth => self.spans.push((node.start, node.end)),
            Value::Scalar { .. } => {}
            Value::Seq(items) => items.iter().for_each(|n| self.walk(n, in_auth)),
            Value::Map(entries) => {
                for e in entries {
                    let file = e.key.ends_with("_file");
                    // A key that auth does not know may be the secret itself, with its quotes forgotten.
                    if in_auth && !file && e.key != "psk" {
                        self.spans.push((e.key_at, Mark { col: usize::MAX, ..e.key_at }));
                    }
                    self.walk(&e.value, (in_auth || e.key == "auth" || e.key.starts_with("psk")) && !file);
                }
            }
        }
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

    /// A line of the file as it may be shown: secrets as `*`, control characters as `?`, so that columns stay true.
    pub fn show(&self, line_number: usize, line: &str) -> String {
        const MAX: usize = 160;
        let hidden: Vec<Range<usize>> = self.columns(line_number).collect();
        line.chars()
            .take(MAX)
            .enumerate()
            .map(|(n, c)| match c {
                _ if hidden.iter().any(|r| r.contains(&n)) => '*',
                c if c.is_control() || is_bidi(c) => '?',
                c => c,
            })
            .collect()
    }
}

/// Characters that reorder or hide text on a terminal.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
