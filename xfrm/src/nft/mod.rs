//! nf_tables over nfnetlink: one table in the family `inet`, changed by transactions, read back, and watched.
//!
//! A transaction is one datagram between BATCH_BEGIN and BATCH_END: the kernel does all of it at one moment, for all
//! packets, or nothing. So a table can be removed and made anew without a packet seeing none.
//!
//! What it does not do: decide what is in the table ([`Change`]s are made by the data plane), or touch tables of others.

pub mod expr;
pub mod foreign;
pub mod object;

use std::os::fd::BorrowedFd;

use netlink_sys::protocols::NETLINK_NETFILTER;

pub use self::expr::{Excess, Expr};
pub use self::object::{Chain, ChainKind, Change, Counted, Hook, Keeping, keys_per_message};
use crate::codec::Writer;
use crate::error::NetlinkError;
use crate::socket::{NLM_F_CREATE, NetlinkSocket, Request};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFPROTO_INET`: IPv4 and IPv6 alike.
const FAMILY_INET: u8 = 1;
const GROUP_NFTABLES: u32 = 7;
const OBJECT_COUNTER: u32 = 1;
const OBJECT_LIMIT: u32 = 4;
const LIST_ELEM: u16 = 1;
const CREATE: u16 = NLM_F_CREATE;
/// `struct nfgenmsg`.
const GENERIC_HEADER: usize = 4;

/// `enum nf_tables_msg_types`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Message {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    GetSet = 10,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
    NewObj = 18,
    GetObj = 19,
}

fn header(family: u8, resource: u16) -> Writer {
    let [high, low] = resource.to_be_bytes();
    let mut w = Writer::new();
    w.raw(&[family, 0, high, low]);
    w
}

const fn message(kind: Message, flags: u16, w: Writer) -> Request {
    Request::new(SUBSYSTEM << 8 | kind as u16, flags, w)
}

fn attributes(payload: &[u8]) -> Option<&[u8]> {
    payload.get(GENERIC_HEADER..)
}

/// Why a transaction did not take effect.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{step}: {error}")]
pub struct Refused {
    /// The step that the kernel refused, in words, or "the transaction".
    pub step: String,
    /// What it said.
    pub error: NetlinkError,
}

/// Changes and reads one table of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Nft {
    socket: NetlinkSocket,
    table: &'static str,
}

impl Nft {
    /// Opens a socket for the table of this name. Changes nothing.
    ///
    /// # Errors
    /// [`NetlinkError::Open`]; kernels without nf_tables are found by the first [`Self::commit`].
    pub fn open(table: &'static str) -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(NETLINK_NETFILTER)?, table })
    }

    /// Does all of it or nothing.
    ///
    /// # Errors
    /// The first step that the kernel refused. `is_unsure` of its error: it may have taken effect.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), Refused> {
        if changes.is_empty() {
            return Ok(());
        }
        let frame = |kind| Request::new(kind, 0, header(0, SUBSYSTEM));
        let requests: Vec<Request> = changes.iter().map(|c| c.request(self.table)).collect();
        self.socket.transact(&frame(BATCH_BEGIN), &requests, &frame(BATCH_END)).map_err(|(index, error)| {
            let step =
                index.and_then(|i| changes.get(i)).map_or_else(|| "the transaction".to_owned(), describe);
            Refused { step, error }
        })
    }

    /// Whether the table is there.
    ///
    /// # Errors
    /// As the kernel says, but not for the table being absent.
    pub fn is_there(&mut self) -> Result<bool, NetlinkError> {
        let mut w = header(FAMILY_INET, 0);
        w.attr_text(1, self.table);
        match self.socket.query(&message(Message::GetTable, 0, w), |_, _| Some(())) {
            Ok(()) => Ok(true),
            Err(e) if e.is_absent() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// How many rules the table has.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn rules(&mut self) -> Result<usize, NetlinkError> {
        Ok(self.dump(Message::GetRule, None, |_| Some(()))?.len())
    }

    /// Counters of the table.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn counters(&mut self) -> Result<Vec<(String, Counted)>, NetlinkError> {
        self.dump(Message::GetObj, None, object::read_counter)
    }

    /// Names of the sets of the table.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn sets(&mut self) -> Result<Vec<String>, NetlinkError> {
        self.dump(Message::GetSet, None, object::read_set)
    }

    /// The keys of a set; none if there is no such set.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn keys(&mut self, set: &str) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let keys = self.dump(Message::GetSetElem, Some(set), |payload| Some(object::read_keys(payload)));
        Ok(absent_is_empty(keys)?.into_iter().flatten().collect())
    }

    /// What was counted by key in a set; nothing if there is no such set.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn tallies(&mut self, set: &str) -> Result<Vec<(Vec<u8>, Counted)>, NetlinkError> {
        let found = self.dump(Message::GetSetElem, Some(set), |payload| Some(object::read_tallies(payload)));
        Ok(absent_is_empty(found)?.into_iter().flatten().collect())
    }

    fn dump<T>(
        &mut self,
        kind: Message,
        name: Option<&str>,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut w = header(FAMILY_INET, 0);
        w.attr_text(1, self.table);
        if let Some(name) = name {
            w.attr_text(2, name);
        }
        // Older kernels ignore the name of the table in some dumps.
        let table = self.table;
        let found = self.socket.dump(&message(kind, 0, w), |_, payload| {
            Ok(if object::read_table(payload).as_deref() == Some(table) { read(payload) } else { None })
        });
        absent_is_empty(found)
    }
}

fn absent_is_empty<T>(found: Result<Vec<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    match found {
        Err(e) if e.is_absent() => Ok(Vec::new()),
        other => other,
    }
}

fn describe(change: &Change) -> String {
    match change {
        Change::Table(_) => "make the table".to_owned(),
        Change::RemoveTable => "remove the table".to_owned(),
        Change::Chain(chain) => format!("make the chain {}", chain.name),
        Change::Branch(name) => format!("make the chain {name}"),
        Change::Set { name, .. } => format!("make the set {name}"),
        Change::Keys { set, .. } => format!("add to the set {set}"),
        Change::RemoveKeys { set, .. } => format!("remove from the set {set}"),
        Change::LimitedSet { name, .. } => format!("make the set {name} of limits"),
        Change::LimitedKeys { set, .. } => format!("add limits to the set {set}"),
        Change::Map { name, .. } => format!("make the map {name}"),
        Change::Entries { map, .. } => format!("add to the map {map}"),
        Change::TallySet { name, .. } => format!("make the set {name} of counts"),
        Change::Empty(name) => format!("empty the set {name}"),
        Change::Limit(name, _) => format!("make the limit {name}"),
        Change::Counter(name, _) => format!("make the counter {name}"),
        Change::Rule { chain, .. } => format!("add a rule to the chain {chain}"),
    }
}

/// Tells when a table was changed, by whomever.
#[derive(Debug)]
pub struct Monitor {
    socket: NetlinkSocket,
    table: &'static str,
}

impl Monitor {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open(table: &'static str) -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::monitor(NETLINK_NETFILTER, &[GROUP_NFTABLES])?, table })
    }

    /// Reads all that has come; says whether some of it was about the table. Lost events count as such. Never blocks.
    ///
    /// # Errors
    /// The socket's.
    pub fn drain(&mut self) -> Result<bool, NetlinkError> {
        let mut touched = false;
        let table = self.table;
        loop {
            let about = |payload: &[u8]| object::read_table(payload).as_deref() == Some(table);
            match self.socket.next_event(|_, payload| touched |= about(payload)) {
                Ok(true) => {}
                Ok(false) => return Ok(touched),
                Err(NetlinkError::Overrun) => touched = true,
                Err(e) => return Err(e),
            }
        }
    }

    /// Readable when something may have come.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}

#[cfg(test)]
mod tests;
