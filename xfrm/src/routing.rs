//! Rules and routes by the thousand: read in one dump, changed in windows, each change acknowledged; and news of changes
//! by others.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use crate::NetlinkSocket;
use crate::address::{OwnAddress, RTM_DELADDR, RTM_NEWADDR, parse_vrf, vrf_request};
use crate::codec;
use crate::error::{Errno, NetlinkError};
use crate::link::RtnlError;
use crate::route::{Family, RTM_DELROUTE, RTM_NEWROUTE, Route};
use crate::rule::{RTM_DELRULE, RTM_NEWRULE, Rule};
use crate::socket::Request;

/// Requests that are made at a time; each has a buffer of 4 KiB.
const CHUNK: usize = 1024;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
/// Multicast groups of `linux/rtnetlink.h`: links; addresses, routes and rules of IPv4; the same of IPv6.
const GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// Where `struct ifinfomsg` has the index.
const LINK_INDEX_AT: usize = 4;

/// Rules and routes of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Routing {
    socket: NetlinkSocket,
}

impl Routing {
    /// Opens a socket.
    pub fn open() -> Result<Self, RtnlError> {
        let socket = NetlinkSocket::open(netlink_sys::protocols::NETLINK_ROUTE);
        Ok(Self { socket: socket.map_err(|e| RtnlError::refused("open a routing socket", &e))? })
    }

    pub(crate) const fn socket(&mut self) -> &mut NetlinkSocket {
        &mut self.socket
    }

    /// All rules of a family, whoever owns them, in the order in which the kernel walks them.
    pub fn rules(&mut self, family: Family) -> Result<Vec<Rule>, RtnlError> {
        let request = Rule::list_request(family);
        let found = self.socket.dump(&request, |kind, payload| {
            Ok((kind == RTM_NEWRULE).then(|| Rule::parse(payload)).flatten())
        });
        present(found).map_err(|e| RtnlError::refused("list routing rules", &e))
    }

    /// The routes of a family with an owner's mark, of all tables.
    pub fn routes(&mut self, family: Family, owner: u8) -> Result<Vec<Route>, RtnlError> {
        let request = Route::list_request(family, owner);
        let found = self.socket.dump(&request, |kind, payload| {
            let route = (kind == RTM_NEWROUTE).then(|| Route::parse(payload)).flatten();
            // Kernels before 4.20 do not filter.
            Ok(route.filter(|route| route.owner == owner))
        });
        present(found).map_err(|e| RtnlError::refused("list routes", &e))
    }

    /// Makes changes in their order and answers each; a refused one does not stop those after it. What is gone already is
    /// removed. The list of answers ends early where they were lost: then nobody knows what was done behind it.
    pub fn change(&mut self, changes: &[RoutingChange]) -> Vec<Result<(), RtnlError>> {
        let mut answers = Vec::with_capacity(changes.len());
        for chunk in changes.chunks(CHUNK) {
            let requests: Vec<Request> = chunk.iter().map(RoutingChange::request).collect();
            match self.socket.submit(&requests) {
                Ok(results) => answers.extend(chunk.iter().zip(results).map(|(c, result)| c.answer(result))),
                Err(e) => {
                    answers.push(Err(RtnlError::refused("change rules and routes", &e)));
                    break;
                }
            }
        }
        answers
    }

    /// The addresses of this host in a family, those of loopback links too.
    pub fn addresses(&mut self, family: Family) -> Result<Vec<OwnAddress>, RtnlError> {
        let found = self.socket.dump(&OwnAddress::list_request(family), |kind, payload| {
            Ok((kind == RTM_NEWADDR).then(|| OwnAddress::parse(payload)).flatten())
        });
        present(found).map_err(|e| RtnlError::refused("list addresses", &e))
    }

    /// Indices of the interfaces that are, or are in, a VRF: outside of it no packet may have their addresses.
    pub fn vrf_interfaces(&mut self) -> Result<BTreeSet<u32>, RtnlError> {
        let found = self.socket.dump(&vrf_request(), |kind, payload| Ok(parse_vrf(kind, payload)));
        Ok(found.map_err(|e| RtnlError::refused("list interfaces", &e))?.into_iter().collect())
    }
}

/// A change of rules or routes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RoutingChange {
    /// Adds a rule, behind those of its priority. The kernel does not look for an equal one.
    AddRule(Rule),
    /// Removes the first rule that is equal.
    RemoveRule(Rule),
    /// Adds a route; refused with EEXIST where one is, whoever owns it.
    AddRoute(Route),
    /// Puts a route where another one is.
    PutRoute(Route),
    /// Removes a route.
    RemoveRoute(Route),
}

impl RoutingChange {
    fn request(&self) -> Request {
        match self {
            Self::AddRule(rule) => rule.add_request(),
            Self::RemoveRule(rule) => rule.remove_request(),
            Self::AddRoute(route) => route.add_request(),
            Self::PutRoute(route) => route.put_request(),
            Self::RemoveRoute(route) => route.remove_request(),
        }
    }

    fn answer(&self, result: Result<(), NetlinkError>) -> Result<(), RtnlError> {
        let Err(error) = result else { return Ok(()) };
        let is_gone = match self {
            Self::RemoveRule(_) => error.errno() == Some(Errno::ENOENT),
            Self::RemoveRoute(_) => {
                matches!(error.errno(), Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV))
            }
            _ => false,
        };
        if is_gone { Ok(()) } else { Err(RtnlError::refused(&self.to_string(), &error)) }
    }
}

impl std::fmt::Display for RoutingChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AddRule(rule) => write!(f, "add rule \"{rule}\""),
            Self::RemoveRule(rule) => write!(f, "remove rule \"{rule}\""),
            Self::AddRoute(route) | Self::PutRoute(route) => write!(f, "add {route:?}"),
            Self::RemoveRoute(route) => write!(f, "remove {route:?}"),
        }
    }
}

/// A kernel without IPv6 has no tables of it.
fn present<T>(found: Result<Vec<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    match found {
        Err(e) if matches!(e.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => Ok(Vec::new()),
        other => other,
    }
}

/// What others may have done to us.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum News {
    /// A rule came or went.
    Rules,
    /// A route with the owner's mark went.
    Routes,
    /// Something about the watched link changed.
    Link,
    /// An address of this host came or went.
    Addresses,
    /// News were lost.
    Lost,
}

/// Listens to changes of rules, routes, links and addresses. Changes that we make ourselves are told, too.
#[derive(Debug)]
pub struct Watch {
    socket: NetlinkSocket,
    owner: u8,
    link: u32,
}

impl Watch {
    /// Starts to listen in the current network namespace, for routes of `owner` and the link with index `link`.
    pub fn open(owner: u8, link: u32) -> Result<Self, RtnlError> {
        let socket = NetlinkSocket::monitor(netlink_sys::protocols::NETLINK_ROUTE, &GROUPS);
        Ok(Self {
            socket: socket.map_err(|e| RtnlError::refused("listen to routing changes", &e))?,
            owner,
            link,
        })
    }

    /// From here on another link is watched, since the one before is gone.
    pub const fn follow_link(&mut self, link: u32) {
        self.link = link;
    }

    /// Readable when there may be news.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// Everything that was told since the last call, each kind once. Never blocks.
    pub fn news(&mut self) -> Vec<News> {
        let (owner, link) = (self.owner, self.link);
        let mut news = Vec::new();
        let mut note = |what| {
            if !news.contains(&what) {
                news.push(what);
            }
        };
        loop {
            let read = self.socket.next_event(|kind, payload| match kind {
                RTM_NEWRULE | RTM_DELRULE => note(News::Rules),
                RTM_DELROUTE if Route::parse(payload).is_some_and(|route| route.owner == owner) => {
                    note(News::Routes);
                }
                RTM_NEWLINK | RTM_DELLINK if codec::u32_at(payload, LINK_INDEX_AT) == Some(link) => {
                    note(News::Link);
                }
                RTM_NEWADDR | RTM_DELADDR => note(News::Addresses),
                _ => {}
            });
            match read {
                Ok(true) => {}
                Ok(false) => return news,
                Err(_) => {
                    note(News::Lost);
                    return news;
                }
            }
        }
    }
}
