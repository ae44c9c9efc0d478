//! YAML text as a tree in which every node knows its place.
//!
//! Deliberately less than YAML: one document, no tags, mapping keys are plain words, a key stands once, a value has one
//! line. Anchors and aliases work for whole values and are capped, so that no small file becomes a large tree; a
//! pre-shared key shares none with another value, which messages would quote.
//!
//! Where secrets stand is noted while reading (`masks`): what is refused never gets into the tree.

use std::collections::BTreeMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use zeroize::Zeroizing;

use super::error::{At, Sink, is_nameable, named, wrong};
use super::masks::Context;

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
    Map { anchor: usize, start: Mark, entries: Vec<Entry>, key: Option<Key> },
}

/// A key whose value comes next.
struct Key {
    name: String,
    at: Mark,
    /// Whether it stood in the mapping before.
    again: bool,
    /// What its value is.
    context: Context,
}

struct Builder<'a> {
    sink: &'a Sink,
    stack: Vec<Open>,
    anchors: BTreeMap<usize, (Rc<Node>, Context)>,
    aliased: usize,
    /// Where the event before this one ended: anchors and tags stand between it and the value.
    before: Mark,
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
    let mut b = Builder {
        sink,
        stack: Vec::new(),
        anchors: BTreeMap::new(),
        aliased: 0,
        before: Mark { line: 1, col: 1 },
        root: None,
        documents: 0,
    };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => b.event(event, span)?,
            Err(e) => {
                let at = place(mark(*e.marker()));
                // The one message of the parser that quotes the file.
                let info = match e.info() {
                    text if text.starts_with("unexpected character") => "a character that cannot stand here",
                    text => text,
                };
                let fix = "check indentation, quotes and brackets around here";
                sink.error(&at, wrong(format!("not valid YAML: {info}"), fix));
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
        self.hide(&event, start, end);
        self.before = end;
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
                let Some((node, context)) = self.anchors.get(&id).cloned() else {
                    self.sink.error(
                        &place(start),
                        wrong("this alias stands inside its own anchor", "write the value out"),
                    );
                    return None;
                };
                if (context == Context::Secret) != (self.context() == Context::Secret) {
                    let what = "this alias makes one value of a key and of something else";
                    self.sink.error(&place(start), wrong(what, "write the key out, or name its file"));
                    return None;
                }
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
                self.refuse_style(style, &text, start, end)?;
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

    /// No value of ours has more than a line, and parsers differ about what begins with an indicator. `None` where the
    /// value would swallow what follows it, so that nobody could say what it is.
    fn refuse_style(&self, style: ScalarStyle, text: &str, start: Mark, end: Mark) -> Option<()> {
        match style {
            ScalarStyle::Literal | ScalarStyle::Folded => {
                let what = "blocks of text (| and >) are not allowed here";
                self.sink.error(&place(start), wrong(what, "write the value on one line"));
            }
            _ if start.line != end.line => {
                let what = "a value goes on over several lines";
                let fix = "write it on one line, and check the colon and the indentation of what follows it";
                self.sink.error(&place(start), wrong(what, fix));
                return None;
            }
            ScalarStyle::Plain if text.starts_with(['>', '|', '@', '`', '%', '?']) => {
                let what = "this value begins with a character that has a meaning in YAML";
                self.sink.error(&place(start), wrong(what, "put the value in quotes"));
            }
            _ => {}
        }
        Some(())
    }

    /// What the keys that lead here say of the value that comes next.
    fn context(&self) -> Context {
        let key = |open: &Open| match open {
            Open::Map { key: Some(key), .. } => Some(key.context),
            _ => None,
        };
        self.stack.iter().rev().find_map(key).unwrap_or(Context::Public)
    }

    /// Whether the next node is the key of a mapping.
    fn at_key(&self) -> bool {
        matches!(self.stack.last(), Some(Open::Map { key: None, .. }))
    }

    /// Notes what of this event must not be shown.
    fn hide(&self, event: &Event<'_>, start: Mark, end: Mark) {
        let (decorated, text) = match event {
            Event::Scalar(text, _, anchor, tag) => (*anchor != 0 || tag.is_some(), Some(text)),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => {
                (*anchor != 0 || tag.is_some(), None)
            }
            _ => return,
        };
        let hidden = match (self.context(), text) {
            (Context::Public, Some(text)) => self.at_key() && !is_nameable(text),
            (context, Some(text)) => context.hides(text, self.at_key()),
            (_, None) => false,
        };
        if self.context() != Context::Public && decorated {
            // What looks like a tag or an anchor may be the beginning of a key without its quotes.
            self.sink.hide(self.before, Mark { col: usize::MAX, ..end });
        } else if hidden {
            self.sink.hide(start, if self.at_key() { Mark { col: usize::MAX, ..start } } else { end });
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
            self.anchors.insert(anchor, (Rc::clone(&node), self.context()));
        }
        let context = self.context();
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
                            let what = format!("{} stands twice", named(text));
                            let fix = format!("the first one is on line {}; keep one", first.key_at.line);
                            self.sink.error(&at, wrong(what, fix));
                            true
                        }
                        None => false,
                    };
                    let (name, at) = (text.to_string(), node.start);
                    *key = Some(Key { context: context.below(text), name, at, again: duplicate });
                }
                Some(Key { again: true, .. }) => {}
                Some(Key { name, at, .. }) => entries.push(Entry { key: name, key_at: at, value: node }),
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
