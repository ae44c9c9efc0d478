//! What a guard falls apart into: pairs of prefixes, and the sets that hold them. Pairs that look at the same bits of a
//! packet share a set.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cygnet_model::plane::{PlaneError, PlaneErrorKind};
use cygnet_model::selector::{IpRange, TrafficSelector, within};
use cygnet_model::tunnel::GuardSpec;
use cygnet_xfrm::nft::expr::Ip;
use cygnet_xfrm::nft::{Change, keys_per_message};
use cygnet_xfrm::policy::expand;
use cygnet_xfrm::route::Prefix;

use super::{ICMP, ICMPV6};
use crate::plane::near::near;

/// Pairs of one guard; also the limit of both planes.
const PAIRS: usize = 4096;

/// Which bits of a packet a set looks at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Shape {
    pub(super) ip: Ip,
    /// Prefix lengths.
    pub(super) source: u8,
    pub(super) destination: u8,
    /// Zero: none.
    pub(super) mark: u32,
    pub(super) upper: Upper,
    pub(super) meaning: Meaning,
}

/// What the packets of a set are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Meaning {
    /// Let by, although selectors cover them whose prefix lengths add up to this.
    Near(u16),
    /// Of either direction: in both sides of a guard. Asked for arriving packets only.
    Either,
    /// To be protected.
    Protected {
        /// Both sides of the guard are the same, so that decrypted packets look protected as well.
        symmetric: bool,
    },
}

/// What a shape sees above IP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Upper {
    Nothing,
    /// The protocol.
    Protocol,
    /// And masked ports.
    Ports(u16, u16),
    /// And masked type and code of ICMP.
    Icmp(u8, u8),
}

/// The values that a set holds for a shape, masked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pair {
    source: IpAddr,
    destination: IpAddr,
    pub(super) mark: u32,
    protocol: u8,
    upper: (u16, u16),
}

/// What a guard falls apart into, on a host with these own addresses and attached networks.
pub fn pairs(spec: &GuardSpec, attached: &BTreeSet<Prefix>) -> Result<BTreeSet<(Shape, Pair)>, PlaneError> {
    let local: Vec<_> = spec.local.iter().map(sayable).collect();
    let remote: Vec<_> = spec.remote.iter().map(sayable).collect();
    let both: Vec<_> = local.iter().flat_map(|l| remote.iter().filter_map(move |r| l.intersect(r))).collect();
    let symmetric = within(&local, &both) && within(&remote, &both);
    let mut out = BTreeSet::new();
    for (from, to, meaning) in
        [(&local, &remote, Meaning::Protected { symmetric }), (&both, &both, Meaning::Either)]
    {
        let selectors = expand(from, to, PAIRS).map_err(|e| PlaneError {
            operation: format!("wall off tunnel {}, child {}", spec.child.tunnel.0, spec.child.index),
            kind: PlaneErrorKind::Exhausted,
            detail: e.to_string(),
        })?;
        out.extend(selectors.into_iter().map(|s| {
            let ip = if s.source.0.is_ipv4() { Ip::V4 } else { Ip::V6 };
            let (upper, values) = match (s.protocol, s.source_port, s.destination_port) {
                (0, ..) => (Upper::Nothing, (0, 0)),
                (_, a, b) if a.mask == 0 && b.mask == 0 => (Upper::Protocol, (0, 0)),
                (ICMP | ICMPV6, a, b) => (Upper::Icmp(low(a.mask), low(b.mask)), (a.value, b.value)),
                (_, a, b) => (Upper::Ports(a.mask, b.mask), (a.value, b.value)),
            };
            let mark = spec.mark.map_or((0, 0), |m| (m.value & m.mask, m.mask));
            let shape =
                Shape { ip, source: s.source.1, destination: s.destination.1, mark: mark.1, upper, meaning };
            let pair = Pair {
                source: s.source.0,
                destination: s.destination.0,
                mark: mark.0,
                protocol: s.protocol,
                upper: values,
            };
            (shape, pair)
        }));
    }
    for let_by in near(spec, attached) {
        let place = u16::from(let_by.local.1) + u16::from(let_by.covering);
        let ends = [(let_by.local, let_by.network), (let_by.network, let_by.local)];
        out.extend(ends.map(|(source, destination)| {
            let shape = Shape {
                ip: if source.0.is_ipv4() { Ip::V4 } else { Ip::V6 },
                source: source.1,
                destination: destination.1,
                mark: 0,
                upper: Upper::Nothing,
                meaning: Meaning::Near(place),
            };
            (
                shape,
                Pair { source: source.0, destination: destination.0, mark: 0, protocol: 0, upper: (0, 0) },
            )
        }));
    }
    Ok(out)
}

const fn low(mask: u16) -> u8 {
    mask.to_be_bytes()[1]
}

/// A selector without what look-ups cannot say (OPAQUE ports, ranges of codes over several ICMP types): wider.
fn sayable(selector: &TrafficSelector) -> TrafficSelector {
    let one = [*selector];
    let all = [TrafficSelector::any(IpRange::all(selector.range.start()))];
    if expand(&one, &all, PAIRS).is_ok() {
        *selector
    } else {
        TrafficSelector { ports: (0, 65535), ..*selector }
    }
}

impl Shape {
    /// The set's name says all that the shape does, since a later daemon finds its sets by name.
    pub fn set(&self) -> String {
        let ip = match self.ip {
            Ip::V4 => 4,
            Ip::V6 => 6,
        };
        let meaning = match self.meaning {
            Meaning::Near(_) => "near",
            Meaning::Either => "either",
            Meaning::Protected { .. } => "protected",
        };
        let mut name = format!("{meaning}{ip}-{}-{}", self.source, self.destination);
        match self.upper {
            Upper::Nothing => {}
            Upper::Protocol => name.push_str("-protocol"),
            Upper::Ports(a, b) => name.push_str(&format!("-ports-{a:x}-{b:x}")),
            Upper::Icmp(a, b) => name.push_str(&format!("-icmp-{a:x}-{b:x}")),
        }
        if self.mark != 0 {
            name.push_str(&format!("-mark-{:x}", self.mark));
        }
        match self.meaning {
            Meaning::Protected { symmetric: true } => name.push_str("-symmetric"),
            Meaning::Near(place) => name.push_str(&format!("-before-{place}")),
            Meaning::Protected { symmetric: false } | Meaning::Either => {}
        }
        name
    }

    /// Whether packets of the set are to be protected.
    pub const fn protects(&self) -> bool {
        matches!(self.meaning, Meaning::Protected { .. })
    }

    /// The order of rules: narrow before wide, and what lets go before what drops.
    pub fn place(&self) -> (Reverse<u16>, Reverse<u32>, Meaning) {
        let width = match self.meaning {
            Meaning::Near(place) => place,
            Meaning::Either | Meaning::Protected { .. } => {
                u16::from(self.source) + u16::from(self.destination)
            }
        };
        let upper = match (self.meaning, self.upper) {
            (Meaning::Near(_), _) => u32::MAX,
            (_, Upper::Nothing) => 0,
            (_, Upper::Protocol) => 1,
            (_, Upper::Ports(a, b)) => 1 + a.count_ones() + b.count_ones(),
            (_, Upper::Icmp(a, b)) => 1 + a.count_ones() + b.count_ones(),
        };
        (Reverse(width), Reverse(upper), self.meaning)
    }

    /// The key as the set holds it: each field on its own words.
    pub fn key(&self, pair: &Pair) -> Vec<u8> {
        let mut key = Vec::with_capacity(48);
        for ip in [pair.source, pair.destination] {
            match ip {
                IpAddr::V4(ip) => key.extend(ip.octets()),
                IpAddr::V6(ip) => key.extend(ip.octets()),
            }
        }
        let mut field = |bytes: &[u8]| {
            key.extend_from_slice(bytes);
            key.resize(key.len().next_multiple_of(4), 0);
        };
        if self.mark != 0 {
            field(&pair.mark.to_ne_bytes());
        }
        match self.upper {
            Upper::Nothing => {}
            Upper::Protocol => field(&[pair.protocol]),
            Upper::Ports(..) => {
                field(&[pair.protocol]);
                field(&pair.upper.0.to_be_bytes());
                field(&pair.upper.1.to_be_bytes());
            }
            Upper::Icmp(..) => {
                field(&[pair.protocol]);
                field(&[low(pair.upper.0)]);
                field(&[low(pair.upper.1)]);
            }
        }
        key
    }

    /// The set itself.
    pub(super) fn make(&self) -> Change {
        let address = match self.ip {
            Ip::V4 => (TYPE_IPV4, 4),
            Ip::V6 => (TYPE_IPV6, 16),
        };
        let mut fields = vec![address, address];
        if self.mark != 0 {
            fields.push((TYPE_MARK, 4));
        }
        match self.upper {
            Upper::Nothing => {}
            Upper::Protocol => fields.push((TYPE_PROTOCOL, 4)),
            Upper::Ports(..) => fields.extend([(TYPE_PROTOCOL, 4), (TYPE_SERVICE, 4), (TYPE_SERVICE, 4)]),
            Upper::Icmp(..) => fields.extend([(TYPE_PROTOCOL, 4), (TYPE_INTEGER, 4), (TYPE_INTEGER, 4)]),
        }
        set(self.set(), &fields)
    }

    pub(super) const fn address_words(&self) -> u8 {
        match self.ip {
            Ip::V4 => 1,
            Ip::V6 => 4,
        }
    }
}

/// Types of `nft`, for whoever lists the table.
const TYPE_INTEGER: u32 = 4;
pub(super) const TYPE_IPV4: u32 = 7;
pub(super) const TYPE_IPV6: u32 = 8;
pub(super) const TYPE_PROTOCOL: u32 = 12;
pub(super) const TYPE_SERVICE: u32 = 13;
const TYPE_MARK: u32 = 19;

pub(super) fn set(name: String, fields: &[(u32, u32)]) -> Change {
    Change::Set {
        name,
        key_len: fields.iter().map(|(_, len)| len).sum(),
        key_type: fields.iter().fold(0, |all, (kind, _)| all << 6 | kind),
    }
}

/// The steps that put keys into a set.
pub fn put(shape: &Shape, pairs: &[Pair]) -> Vec<Change> {
    keyed(shape, pairs, |set, keys| Change::Keys { set, keys })
}

/// The steps that take keys out of a set.
pub fn take(shape: &Shape, pairs: &[Pair]) -> Vec<Change> {
    keyed(shape, pairs, |set, keys| Change::RemoveKeys { set, keys })
}

fn keyed(shape: &Shape, pairs: &[Pair], step: impl Fn(String, Vec<Vec<u8>>) -> Change) -> Vec<Change> {
    let keys: Vec<Vec<u8>> = pairs.iter().map(|p| shape.key(p)).collect();
    let len = keys.first().map_or(4, Vec::len);
    keys.chunks(keys_per_message(len)).map(|keys| step(shape.set(), keys.to_vec())).collect()
}

/// Pairs of addresses, for questions about many connections.
#[derive(Default, Debug)]
pub struct Addresses(BTreeMap<(u8, u8), BTreeSet<(IpAddr, IpAddr)>>);

impl Addresses {
    /// The addresses of a pair, whatever else it looks at.
    pub fn add(&mut self, shape: &Shape, pair: &Pair) {
        self.0.entry((shape.source, shape.destination)).or_default().insert((pair.source, pair.destination));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a packet from `source` to `destination` is meant.
    pub fn cover(&self, source: IpAddr, destination: IpAddr) -> bool {
        let network = |address, len| IpRange::cidr(address, len).map(|r| r.start());
        self.0.iter().any(|((from, to), pairs)| {
            let masked = network(source, *from).zip(network(destination, *to));
            masked.is_some_and(|pair| pairs.contains(&pair))
        })
    }
}
