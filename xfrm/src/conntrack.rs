//! Ends connections that conntrack knows: their NAT bindings and flowtable entries end with them.
//!
//! Entries are told apart by their original tuple, zone and id; the tuple goes back to the kernel as it came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::codec::{self, Writer};
use crate::error::{Errno, NetlinkError};
use crate::socket::{NetlinkSocket, Request};

const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const GENERIC_HEADER: usize = 4;

/// The addresses of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends {
    /// Source and destination as the first packet came.
    pub original: (IpAddr, IpAddr),
    /// Source and destination as answers come.
    pub reply: (IpAddr, IpAddr),
}

/// What is needed to end a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    family: u8,
    /// Attributes by which the kernel finds it again, each as type and value.
    key: Vec<(u16, Vec<u8>)>,
}

/// Connections of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: NetlinkSocket,
}

/// What [`Conntrack::end`] did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ended {
    /// Connections that ended.
    pub ended: usize,
    /// Those that the kernel would not end (in a flowtable, on kernels that keep those).
    pub kept: usize,
}

impl Conntrack {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(NETLINK_NETFILTER)? })
    }

    /// Ends the connections that `which` says yes to. Reads the whole table once; at most `limit` are ended, the others
    /// are counted as kept.
    ///
    /// # Errors
    /// As the kernel says; kernels without ctnetlink refuse with EINVAL or EOPNOTSUPP.
    pub fn end(&mut self, limit: usize, which: impl Fn(&Ends) -> bool) -> Result<Ended, NetlinkError> {
        let mut w = Writer::new();
        w.raw(&[0; GENERIC_HEADER]);
        let mut beyond = 0;
        let mut entries = 0;
        let found = self.socket.dump(&Request::new(CT_GET, 0, w), |_, payload| {
            let Some((entry, ends)) = read(payload) else { return Ok(None) };
            if !which(&ends) {
                return Ok(None);
            }
            if entries == limit {
                beyond += 1;
                return Ok(None);
            }
            entries += 1;
            Ok(Some(entry))
        })?;
        let requests: Vec<Request> = found.iter().map(Entry::delete).collect();
        let mut out = Ended { ended: 0, kept: beyond };
        for result in self.socket.submit(&requests)? {
            match result {
                Ok(()) => out.ended += 1,
                Err(e) if e.errno() == Some(Errno::ENOENT) => {}
                Err(_) => out.kept += 1,
            }
        }
        Ok(out)
    }
}

impl Entry {
    fn delete(&self) -> Request {
        let mut w = Writer::new();
        w.raw(&[self.family, 0, 0, 0]);
        for (kind, value) in &self.key {
            w.attr(*kind, value);
        }
        Request::new(CT_DELETE, 0, w)
    }
}

/// Reads an IPCTNL_MSG_CT_NEW payload.
fn read(payload: &[u8]) -> Option<(Entry, Ends)> {
    let attributes = payload.get(GENERIC_HEADER..)?;
    let original = codec::find(attributes, TUPLE_ORIGINAL)?;
    // A tuple is some addresses and ports; whatever is longer is not one.
    if original.len() > 512 {
        return None;
    }
    let ends = Ends { original: ends(original)?, reply: ends(codec::find(attributes, TUPLE_REPLY)?)? };
    let mut key = vec![(NESTED | TUPLE_ORIGINAL, original.to_vec())];
    for kind in [ID, ZONE] {
        key.extend(codec::find(attributes, kind).filter(|v| v.len() <= 8).map(|v| (kind, v.to_vec())));
    }
    Some((Entry { family: *payload.first()?, key }, ends))
}

/// `NLA_F_NESTED`, which ctnetlink asks for.
const NESTED: u16 = 0x8000;

fn ends(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = codec::find(tuple, 1)?;
    let v4 = |kind| Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(codec::find(ip, kind)?).ok()?)));
    let v6 = |kind| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(codec::find(ip, kind)?).ok()?)));
    v4(1).zip(v4(2)).or_else(|| v6(3).zip(v6(4)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(w: &mut Writer, kind: u16, source: [u8; 4], destination: [u8; 4]) {
        w.nest(kind, |w| {
            w.nest(1, |w| {
                w.attr(1, &source);
                w.attr(2, &destination);
            });
            w.nest(2, |w| w.attr(1, &[17]));
        });
    }

    #[test]
    fn an_entry_is_found_again_by_the_tuple_as_the_kernel_told_it() {
        let mut w = Writer::new();
        w.raw(&[2, 0, 0, 0]);
        tuple(&mut w, TUPLE_ORIGINAL, [10, 1, 0, 2], [10, 2, 0, 2]);
        tuple(&mut w, TUPLE_REPLY, [10, 2, 0, 2], [192, 0, 2, 1]);
        w.attr(ID, &[1, 2, 3, 4]);
        let (entry, ends) = read(w.bytes()).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(ends.original, (ip("10.1.0.2"), ip("10.2.0.2")));
        assert_eq!(ends.reply, (ip("10.2.0.2"), ip("192.0.2.1")));
        assert_eq!(entry.family, 2);
        assert_eq!(entry.key.iter().map(|(k, _)| *k & !NESTED).collect::<Vec<_>>(), [TUPLE_ORIGINAL, ID]);
    }

    #[test]
    fn broken_entries_are_left_out() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[2, 0, 0, 0, 8, 0, 1, 0, 4, 0, 1, 0]), None);
    }
}
