//! Routes of private tables (`linux/rtnetlink.h`): a prefix, and whether it leads into a link or nowhere.
//!
//! Only what cygnet's own tables need. Every route of ours carries a protocol number as its owner's mark; routes of
//! others are neither read nor touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::codec::{self, Writer};
use crate::socket::{NLM_F_CREATE, NLM_F_REPLACE, Request};

pub(crate) const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

/// Octets of `struct rtmsg`.
const HEADER: usize = 12;
const TYPE_UNICAST: u8 = 1;
const TYPE_BLACKHOLE: u8 = 6;
const TYPE_THROW: u8 = 9;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;

/// Address and length of a prefix, without host bits.
pub type Prefix = (IpAddr, u8);

/// Address family of a rule or route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The prefix that holds every address.
    pub const fn everything(self) -> Prefix {
        match self {
            Self::V4 => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            Self::V6 => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
        }
    }

    /// `AF_INET` or `AF_INET6`.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        match number {
            2 => Some(Self::V4),
            10 => Some(Self::V6),
            _ => None,
        }
    }

    /// Reads an address of this family.
    pub(crate) fn address(self, octets: &[u8]) -> Option<IpAddr> {
        Some(match self {
            Self::V4 => IpAddr::from(*octets.first_chunk::<4>()?),
            Self::V6 => IpAddr::from(*octets.first_chunk::<16>()?),
        })
    }
}

/// Where a route leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Via {
    /// Out of the link with this index.
    Link(u32),
    /// Nowhere; packets are dropped silently.
    Blackhole,
    /// On to the next rule, as if the table had no route.
    Throw,
}

/// A route of a private table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Route {
    /// Family; that of the prefix.
    pub family: Family,
    /// Table.
    pub table: u32,
    /// Destinations.
    pub destination: Prefix,
    /// Where to.
    pub via: Via,
    /// Lower is preferred.
    pub metric: u32,
    /// The source for packets that have none yet. The kernel removes the route with this address.
    pub source: Option<IpAddr>,
    /// Who owns it (`rtm_protocol`).
    pub owner: u8,
}

impl Route {
    /// The request that adds it. An equal one is refused with EEXIST.
    pub(crate) fn add_request(&self) -> Request {
        Request::new(RTM_NEWROUTE, NLM_F_CREATE | crate::socket::NLM_F_EXCL, self.message())
    }

    /// The request that puts it in the place of the one with the same table, destination and metric, without a gap.
    pub(crate) fn put_request(&self) -> Request {
        Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, self.message())
    }

    /// The request that removes it.
    pub(crate) fn remove_request(&self) -> Request {
        Request::new(RTM_DELROUTE, 0, self.message())
    }

    /// The request for the routes of a family and an owner, of all tables.
    pub(crate) fn list_request(family: Family, owner: u8) -> Request {
        let mut w = Writer::new();
        w.raw(&[family.number(), 0, 0, 0, 0, owner, 0, 0, 0, 0, 0, 0]);
        Request::new(RTM_GETROUTE, 0, w)
    }

    fn message(&self) -> Writer {
        let (kind, scope) = match (self.via, self.family) {
            (Via::Link(_), Family::V4) => (TYPE_UNICAST, SCOPE_LINK),
            (Via::Link(_), Family::V6) => (TYPE_UNICAST, SCOPE_UNIVERSE),
            (Via::Blackhole, _) => (TYPE_BLACKHOLE, SCOPE_UNIVERSE),
            (Via::Throw, _) => (TYPE_THROW, SCOPE_UNIVERSE),
        };
        let (destination, len) = self.destination;
        let mut w = Writer::new();
        w.raw(&[self.family.number(), len, 0, 0, 0, self.owner, scope, kind, 0, 0, 0, 0]);
        w.attr_u32(RTA_TABLE, self.table);
        w.attr_u32(RTA_PRIORITY, self.metric);
        for (kind, addr) in [(RTA_DST, (len > 0).then_some(destination)), (RTA_PREFSRC, self.source)] {
            match addr {
                Some(IpAddr::V4(addr)) => w.attr(kind, &addr.octets()),
                Some(IpAddr::V6(addr)) => w.attr(kind, &addr.octets()),
                None => {}
            }
        }
        if let Via::Link(index) = self.via {
            w.attr_u32(RTA_OIF, index);
        }
        w
    }

    /// Reads the payload of an RTM_NEWROUTE or RTM_DELROUTE message; `None` if it is of a kind that is not ours.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let (header, attributes) = payload.split_first_chunk::<HEADER>()?;
        let [family, len, _, _, table, owner, _, kind, ..] = *header;
        let family = Family::from_number(family)?;
        let (mut table, mut metric, mut link) = (u32::from(table), 0, None);
        let (mut destination, mut source) = (family.everything(), None);
        for (kind, value) in codec::attrs(attributes) {
            match kind {
                RTA_TABLE => table = codec::u32_at(value, 0)?,
                RTA_PRIORITY => metric = codec::u32_at(value, 0)?,
                RTA_OIF => link = codec::u32_at(value, 0),
                RTA_DST => destination = (family.address(value)?, len),
                RTA_PREFSRC => source = Some(family.address(value)?),
                _ => {}
            }
        }
        let via = match kind {
            TYPE_UNICAST => Via::Link(link?),
            TYPE_BLACKHOLE => Via::Blackhole,
            TYPE_THROW => Via::Throw,
            _ => return None,
        };
        Some(Self { family, table, destination, via, metric, source, owner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_survives_its_message() {
        let route = |destination, via, source| Route {
            family: Family::V4,
            table: 51_657,
            destination,
            via,
            metric: 10,
            source,
            owner: 201,
        };
        let net = ("10.2.0.0".parse().unwrap(), 16);
        for route in [
            route(Family::V4.everything(), Via::Blackhole, None),
            route(net, Via::Throw, None),
            route(net, Via::Link(7), Some("10.1.0.1".parse().unwrap())),
        ] {
            assert_eq!(Route::parse(route.message().bytes()), Some(route));
        }
    }
}
