//! Objects of nf_tables as requests, and back from the kernel's words.
//!
//! Everything lives in one table of the family `inet`. Numbers are in network order.

use std::time::Duration;

use super::expr::{Excess, Expr};
use super::{CREATE, FAMILY_INET, LIST_ELEM, Message, OBJECT_COUNTER, OBJECT_LIMIT, header, message};
use crate::codec::{self, Writer};
use crate::socket::{NLM_F_APPEND, Request};

/// What a packet is on when a chain looks at it (`enum nf_inet_hooks`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// It has just come.
    Prerouting,
    /// It is about to be delivered to this host.
    Input,
    /// It was made by this host.
    Output,
    /// It is about to leave.
    Postrouting,
}

impl Hook {
    const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// What a chain does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChainKind {
    /// Looks at each packet.
    Filter,
    /// Looks at the first packet of each connection that has no binding for this end yet.
    Nat,
}

/// A chain that hangs in a hook; what it does not decide passes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Its name in the table.
    pub name: &'static str,
    /// What it does.
    pub kind: ChainKind,
    /// Where it hangs.
    pub hook: Hook,
    /// Chains with lower numbers go first.
    pub priority: i32,
}

/// What a table promises about itself (`NFT_TABLE_F_…`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeping {
    /// Others can change and flush it.
    Shared,
    /// While its owner's socket is open only the owner can change it; afterwards it stays (Linux 6.9 and later).
    OwnedAndPersistent,
}

impl Keeping {
    const fn flags(self) -> u32 {
        match self {
            Self::Shared => 0,
            Self::OwnedAndPersistent => 0x2 | 0x4,
        }
    }
}

/// One step of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Makes the table; nothing happens if it is there.
    Table(Keeping),
    /// Removes the table with all that is in it.
    RemoveTable,
    /// Makes a chain.
    Chain(Chain),
    /// Makes a chain that only rules lead to. Rules that do come after it.
    Branch(&'static str),
    /// Makes a set of exact keys.
    Set {
        /// Its name in the table.
        name: String,
        /// Octets of a key.
        key_len: u32,
        /// What the fields are, for people who list the set (`nft`'s numbers of data types, 6 bits each).
        key_type: u32,
    },
    /// Makes a set of exact keys each of which has a limit: [`Expr::InSet`] goes on for what exceeds that of its key (Linux 5.7).
    LimitedSet {
        /// Its name in the table.
        name: String,
        /// Octets of a key.
        key_len: u32,
        /// As in [`Change::Set`].
        key_type: u32,
    },
    /// Puts keys into such a set. At most [`LIMITED_PER_MESSAGE`].
    LimitedKeys {
        /// The set.
        set: String,
        /// All keys of the set's length.
        keys: Vec<(Vec<u8>, Excess)>,
    },
    /// Makes a limit that rules share.
    Limit(String, Excess),
    /// Makes a map from exact keys to values of four octets in host order, for [`Expr::Look`].
    Map {
        /// Its name in the table.
        name: String,
        /// Octets of a key.
        key_len: u32,
        /// As in [`Change::Set`].
        key_type: u32,
    },
    /// Puts keys and their values into a map. At most [`ENTRIES_PER_MESSAGE`].
    Entries {
        /// The map.
        map: String,
        /// Keys of the map's length.
        entries: Vec<(Vec<u8>, [u8; 4])>,
    },
    /// Makes a set in which packets are counted by key ([`Expr::Tally`]), each key while its packets come.
    TallySet {
        /// Its name in the table.
        name: String,
        /// Octets of a key.
        key_len: u32,
        /// As in [`Change::Set`].
        key_type: u32,
        /// Keys at most.
        room: u32,
        /// How long a key stays without packets.
        idle: Duration,
    },
    /// Takes all keys out of a set or map.
    Empty(String),
    /// Puts keys into a set. At most [`keys_per_message`].
    Keys {
        /// The set.
        set: String,
        /// All of the set's length.
        keys: Vec<Vec<u8>>,
    },
    /// Takes keys out of a set.
    RemoveKeys {
        /// The set.
        set: String,
        /// All of the set's length, each in the set.
        keys: Vec<Vec<u8>>,
    },
    /// Makes a counter that begins with these numbers.
    Counter(String, Counted),
    /// Appends a rule to a chain.
    Rule {
        /// The chain.
        chain: &'static str,
        /// What it does.
        exprs: Vec<Expr>,
    },
}

/// What a counter has counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Their octets.
    pub bytes: u64,
}

/// How many keys of 16 octets at most, with their limits, fit into one message.
pub const LIMITED_PER_MESSAGE: usize = (Writer::CAPACITY - 600) / 128;

/// How many entries of a map with keys of 16 octets at most fit into one message.
pub const ENTRIES_PER_MESSAGE: usize = (Writer::CAPACITY - 600) / 48;

/// How many keys of a length fit into one message.
pub const fn keys_per_message(key_len: usize) -> usize {
    // Three nested headers for each key; the message's own header and names take less than 600 octets.
    (Writer::CAPACITY - 600) / (12 + codec::aligned(key_len))
}

impl Change {
    /// The message that asks for the step in `table`.
    pub fn request(&self, table: &str) -> Request {
        let mut w = header(FAMILY_INET, 0);
        w.attr_text(1, table);
        let (kind, flags) = match self {
            Self::Table(keeping) => {
                if keeping.flags() != 0 {
                    number(&mut w, 2, keeping.flags());
                }
                (Message::NewTable, CREATE)
            }
            Self::RemoveTable => (Message::DelTable, 0),
            Self::Chain(chain) => {
                w.attr_text(3, chain.name);
                w.nest(4, |w| {
                    number(w, 1, chain.hook.number());
                    w.attr(2, &chain.priority.to_be_bytes());
                });
                w.attr_text(
                    7,
                    match chain.kind {
                        ChainKind::Filter => "filter",
                        ChainKind::Nat => "nat",
                    },
                );
                (Message::NewChain, CREATE)
            }
            Self::Branch(name) => {
                w.attr_text(3, name);
                (Message::NewChain, CREATE)
            }
            Self::Set { name, key_len, key_type } => {
                write_set(&mut w, name, 0, *key_len, *key_type);
                (Message::NewSet, CREATE)
            }
            Self::LimitedSet { name, key_len, key_type } => {
                write_set(&mut w, name, 0, *key_len, *key_type);
                // What kind of expression elements have; its numbers are those of elements that bring none.
                w.nest(17, |w| Excess { octets_per_second: 1 }.write_expr(w));
                (Message::NewSet, CREATE)
            }
            Self::LimitedKeys { set, keys } => {
                w.attr_text(2, set);
                w.nest(3, |w| {
                    for (key, limit) in keys {
                        w.nest(LIST_ELEM, |w| {
                            w.nest(1, |w| w.attr(1, key));
                            w.nest(7, |w| limit.write_expr(w));
                        });
                    }
                });
                (Message::NewSetElem, CREATE)
            }
            Self::Map { name, key_len, key_type } => {
                write_set(&mut w, name, NFT_SET_MAP, *key_len, *key_type);
                number(&mut w, 6, TYPE_MARK);
                number(&mut w, 7, 4);
                (Message::NewSet, CREATE)
            }
            Self::Entries { map, entries } => {
                w.attr_text(2, map);
                w.nest(3, |w| {
                    for (key, value) in entries {
                        w.nest(LIST_ELEM, |w| {
                            w.nest(1, |w| w.attr(1, key));
                            w.nest(2, |w| w.attr(1, value));
                        });
                    }
                });
                (Message::NewSetElem, CREATE)
            }
            Self::TallySet { name, key_len, key_type, room, idle } => {
                write_set(&mut w, name, NFT_SET_TIMEOUT | NFT_SET_EVAL, *key_len, *key_type);
                w.nest(9, |w| number(w, 1, *room));
                w.attr(11, &u64::try_from(idle.as_millis()).unwrap_or(u64::MAX).to_be_bytes());
                (Message::NewSet, CREATE)
            }
            Self::Empty(name) => {
                w.attr_text(2, name);
                (Message::DelSetElem, 0)
            }
            Self::Limit(name, limit) => {
                w.attr_text(2, name);
                number(&mut w, 3, OBJECT_LIMIT);
                w.nest(4, |w| limit.write(w));
                (Message::NewObj, CREATE)
            }
            Self::Keys { set, keys } => {
                write_keys(&mut w, set, keys);
                (Message::NewSetElem, CREATE)
            }
            Self::RemoveKeys { set, keys } => {
                write_keys(&mut w, set, keys);
                (Message::DelSetElem, 0)
            }
            Self::Counter(name, counted) => {
                w.attr_text(2, name);
                number(&mut w, 3, OBJECT_COUNTER);
                w.nest(4, |w| {
                    w.attr(1, &counted.bytes.to_be_bytes());
                    w.attr(2, &counted.packets.to_be_bytes());
                });
                (Message::NewObj, CREATE)
            }
            Self::Rule { chain, exprs } => {
                w.attr_text(2, chain);
                w.nest(4, |w| exprs.iter().for_each(|e| e.write(w)));
                (Message::NewRule, CREATE | NLM_F_APPEND)
            }
        };
        message(kind, flags, w)
    }
}

fn number(w: &mut Writer, kind: u16, value: u32) {
    w.attr(kind, &value.to_be_bytes());
}

const NFT_SET_MAP: u32 = 0x8;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;
/// `nft`'s number of the data type.
const TYPE_MARK: u32 = 19;

fn write_set(w: &mut Writer, name: &str, flags: u32, key_len: u32, key_type: u32) {
    w.attr_text(2, name);
    number(w, 3, flags);
    number(w, 4, key_type);
    number(w, 5, key_len);
    // Sets are told apart by this number within a transaction; rules refer to them by name.
    number(w, 10, 0);
}

fn write_keys(w: &mut Writer, set: &str, keys: &[Vec<u8>]) {
    w.attr_text(2, set);
    w.nest(3, |w| {
        for key in keys {
            w.nest(LIST_ELEM, |w| w.nest(1, |w| w.attr(1, key)));
        }
    });
}

/// Name and numbers of a counter, from an NFT_MSG_NEWOBJ payload; `None` for other objects.
pub fn read_counter(payload: &[u8]) -> Option<(String, Counted)> {
    let attributes = super::attributes(payload)?;
    if be_u32(codec::find(attributes, 3)?)? != OBJECT_COUNTER {
        return None;
    }
    Some((codec::text(codec::find(attributes, 2)?), read_counted(codec::find(attributes, 4)?)?))
}

/// The table that an object of a notification or dump belongs to.
pub fn read_table(payload: &[u8]) -> Option<String> {
    // NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, …: all have the number 1.
    Some(codec::text(codec::find(super::attributes(payload)?, 1)?))
}

/// Name of a set, from an NFT_MSG_NEWSET payload.
pub fn read_set(payload: &[u8]) -> Option<String> {
    Some(codec::text(codec::find(super::attributes(payload)?, 2)?))
}

/// The keys in an NFT_MSG_NEWSETELEM payload; broken ones are left out.
pub fn read_keys(payload: &[u8]) -> Vec<Vec<u8>> {
    elements(payload).filter_map(read_key).collect()
}

/// Keys with what was counted for them ([`Expr::Tally`]), from such a payload; others are left out.
pub fn read_tallies(payload: &[u8]) -> Vec<(Vec<u8>, Counted)> {
    let counted = |element| {
        let expr = codec::find(element, 7)?;
        let is_counter = codec::text(codec::find(expr, 1)?) == "counter";
        read_counted(codec::find(expr, 2)?).filter(|_| is_counter)
    };
    elements(payload).filter_map(|element| Some((read_key(element)?, counted(element)?))).collect()
}

fn elements(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let all = super::attributes(payload).and_then(|a| codec::find(a, 3)).unwrap_or_default();
    codec::attrs(all).filter(|(kind, _)| *kind == LIST_ELEM).map(|(_, element)| element)
}

fn read_key(element: &[u8]) -> Option<Vec<u8>> {
    Some(codec::find(codec::find(element, 1)?, 1)?.to_vec())
}

/// NFTA_COUNTER_BYTES and NFTA_COUNTER_PACKETS.
fn read_counted(data: &[u8]) -> Option<Counted> {
    Some(Counted { bytes: be_u64(codec::find(data, 1)?)?, packets: be_u64(codec::find(data, 2)?)? })
}

fn be_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

fn be_u64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.get(..8)?.try_into().ok()?))
}
