//! Asking the kernel which way a packet would take, and what its links are like. Nothing is changed.

use std::net::IpAddr;

use crate::codec::{self, Writer};
use crate::error::Errno;
use crate::link::RtnlError;
use crate::route::{Family, RTM_NEWROUTE};
use crate::routing::Routing;
use crate::socket::Request;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
/// Octets of `struct rtmsg` and `struct ifinfomsg`.
const RTMSG: usize = 12;
const IFINFOMSG: usize = 16;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;
const IFF_LOWER_UP: u32 = 1 << 16;
/// `rtm_type`.
const LOCAL: u8 = 2;

/// Which way a packet would take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Out by the link with this index.
    Out {
        /// The link.
        link: u32,
        /// The next hop; `None`: the destination itself.
        gateway: Option<IpAddr>,
        /// The path MTU that was learned or set, if there is one.
        mtu: Option<u32>,
    },
    /// It is for this host.
    Local,
    /// Nowhere.
    Nowhere(Dead),
}

/// Why a packet would not leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dead {
    /// No route.
    NoRoute,
    /// A route that says so: unreachable, prohibit or blackhole.
    Refused,
    /// The source address is not one that may be used.
    BadSource,
}

/// A link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkState {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU in octets.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Whether it is a loopback link.
    pub loopback: bool,
}

impl Routing {
    /// Which way a packet from `source` to `destination` would take: one of this host's own, or one that came in by the link
    /// `from`.
    ///
    /// # Errors
    /// Transport errors; that there is no way is an answer.
    pub fn way(
        &mut self,
        destination: IpAddr,
        source: Option<IpAddr>,
        from: Option<u32>,
    ) -> Result<Way, RtnlError> {
        let found = self.socket().query(&way_request(destination, source, from), |kind, payload| {
            (kind == RTM_NEWROUTE).then(|| parse_way(payload)).flatten()
        });
        match found {
            Ok(way) => Ok(way),
            Err(e) => match e.errno() {
                Some(Errno::ENETUNREACH) => Ok(Way::Nowhere(Dead::NoRoute)),
                Some(Errno::EHOSTUNREACH | Errno::EACCES) => Ok(Way::Nowhere(Dead::Refused)),
                // A blackhole, or a source that no local route knows.
                Some(Errno::EINVAL) if source.is_none() => Ok(Way::Nowhere(Dead::Refused)),
                Some(Errno::EINVAL | Errno::EXDEV) => Ok(Way::Nowhere(Dead::BadSource)),
                _ => Err(RtnlError::refused("look up a route", &e)),
            },
        }
    }

    /// All links.
    ///
    /// # Errors
    /// Transport errors.
    pub fn links(&mut self) -> Result<Vec<LinkState>, RtnlError> {
        let mut w = Writer::new();
        w.raw(&[0; IFINFOMSG]);
        let request = Request::new(RTM_GETLINK, 0, w);
        let found = self
            .socket()
            .dump(&request, |kind, payload| Ok((kind == RTM_NEWLINK).then(|| parse_link(payload)).flatten()));
        found.map_err(|e| RtnlError::refused("list links", &e))
    }
}

fn way_request(destination: IpAddr, source: Option<IpAddr>, from: Option<u32>) -> Request {
    let bits = if destination.is_ipv4() { 32 } else { 128 };
    let source_bits = if source.is_some() { bits } else { 0 };
    let mut w = Writer::new();
    w.raw(&[Family::of(destination).number(), bits, source_bits, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (kind, address) in [(RTA_DST, Some(destination)), (RTA_SRC, source)] {
        match address {
            Some(IpAddr::V4(a)) => w.attr(kind, &a.octets()),
            Some(IpAddr::V6(a)) => w.attr(kind, &a.octets()),
            None => {}
        }
    }
    if let Some(link) = from {
        w.attr_u32(RTA_IIF, link);
    }
    Request::new(RTM_GETROUTE, 0, w)
}

/// Reads the payload of an RTM_NEWROUTE message that answers a look-up.
fn parse_way(payload: &[u8]) -> Option<Way> {
    let family = Family::from_number(codec::u8_at(payload, 0)?)?;
    let kind = codec::u8_at(payload, 7)?;
    let attributes = payload.get(RTMSG..)?;
    Some(match kind {
        1 => Way::Out {
            link: codec::u32_at(codec::find(attributes, RTA_OIF)?, 0)?,
            gateway: codec::find(attributes, RTA_GATEWAY).and_then(|a| family.address(a)),
            mtu: codec::find(attributes, RTA_METRICS)
                .and_then(|m| codec::find(m, RTAX_MTU))
                .and_then(|v| codec::u32_at(v, 0))
                .filter(|mtu| *mtu > 0),
        },
        LOCAL => Way::Local,
        _ => Way::Nowhere(Dead::Refused),
    })
}

/// Reads the payload of an RTM_NEWLINK message.
fn parse_link(payload: &[u8]) -> Option<LinkState> {
    let attributes = payload.get(IFINFOMSG..)?;
    let flags = codec::u32_at(payload, 8)?;
    Some(LinkState {
        index: codec::u32_at(payload, 4)?,
        name: codec::text(codec::find(attributes, IFLA_IFNAME)?),
        mtu: codec::find(attributes, IFLA_MTU).and_then(|v| codec::u32_at(v, 0)).unwrap_or(1500),
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever kernel this is has a loopback link and a way to it.
    #[test]
    fn this_host_reaches_itself() {
        let mut routing = Routing::open().unwrap();
        let here = IpAddr::from([127, 0, 0, 1]);
        assert_eq!(routing.way(here, None, None).unwrap(), Way::Local);
        assert_eq!(routing.way(here, Some(here), None).unwrap(), Way::Local);
        let links = routing.links().unwrap();
        assert!(links.iter().any(|l| l.loopback && l.name == "lo"), "{links:?}");
    }

    #[test]
    fn answers_are_read_and_broken_ones_are_none() {
        let mut w = Writer::new();
        w.raw(&[2, 32, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0]);
        w.attr_u32(RTA_OIF, 7);
        w.attr(RTA_GATEWAY, &[192, 0, 2, 254]);
        w.nest(RTA_METRICS, |w| w.attr_u32(RTAX_MTU, 1300));
        let gateway = Some(IpAddr::from([192, 0, 2, 254]));
        assert_eq!(parse_way(w.bytes()), Some(Way::Out { link: 7, gateway, mtu: Some(1300) }));
        assert_eq!(parse_way(&w.bytes()[..11]), None);
        assert_eq!(parse_way(&[]), None);
        assert_eq!(parse_link(&[0; 16]), None);
    }
}
