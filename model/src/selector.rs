//! Traffic selectors (RFC 7296 §3.13): an address range, a port range and a protocol; their intersection and narrowing.
//!
//! What it does not do: the wire form, which is `ike::wire::ts`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An inclusive range of addresses of one family, `start <= end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpRange {
    start: IpAddr,
    end: IpAddr,
}

/// An address as a number, with the width of its family.
fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn addr_like(family: IpAddr, value: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(value).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(value)),
    }
}

const fn width(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The bits of an address that a prefix leaves to hosts, all set.
fn host_mask(family: IpAddr, prefix_len: u8) -> u128 {
    let host = width(family).saturating_sub(prefix_len);
    if host >= 128 { u128::MAX } else { (1u128 << host) - 1 }
}

impl IpRange {
    /// A range; `None` if the families differ or `start > end`.
    pub fn new(start: IpAddr, end: IpAddr) -> Option<Self> {
        (width(start) == width(end) && start <= end).then_some(Self { start, end })
    }

    /// The range of a CIDR block; host bits of `addr` are ignored. `None` if the prefix is longer than an address.
    pub fn cidr(addr: IpAddr, prefix_len: u8) -> Option<Self> {
        if prefix_len > width(addr) {
            return None;
        }
        let mask = host_mask(addr, prefix_len);
        let start = bits(addr) & !mask;
        Some(Self { start: addr_like(addr, start), end: addr_like(addr, start | mask) })
    }

    /// Every address of the family of `like`.
    pub fn all(like: IpAddr) -> Self {
        Self { start: addr_like(like, 0), end: addr_like(like, host_mask(like, 0)) }
    }

    /// The lowest address.
    pub const fn start(&self) -> IpAddr {
        self.start
    }

    /// The highest address.
    pub const fn end(&self) -> IpAddr {
        self.end
    }

    /// Whether both are of the same address family.
    pub const fn same_family(&self, other: &Self) -> bool {
        width(self.start) == width(other.start)
    }

    /// Whether `addr` lies in the range.
    pub fn contains(&self, addr: IpAddr) -> bool {
        width(addr) == width(self.start) && self.start <= addr && addr <= self.end
    }

    /// Whether all of `other` lies in the range.
    pub fn covers(&self, other: &Self) -> bool {
        self.contains(other.start) && self.contains(other.end)
    }

    /// The common part.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if !self.same_family(other) {
            return None;
        }
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The prefix length if the range is exactly one CIDR block.
    pub fn prefix_len(&self) -> Option<u8> {
        let span = bits(self.start) ^ bits(self.end);
        let host = 128 - u8::try_from(span.leading_zeros()).unwrap_or(128);
        let prefix = width(self.start).checked_sub(host)?;
        (host_mask(self.start, prefix) == span && bits(self.start) & span == 0).then_some(prefix)
    }

    /// The fewest CIDR blocks (address, prefix length) that make up the range, lowest first. At most 2 × width − 2 blocks.
    pub fn prefixes(&self) -> Vec<(IpAddr, u8)> {
        let (mut at, last) = (bits(self.start), bits(self.end));
        let width = width(self.start);
        let mut out = Vec::new();
        loop {
            // The largest block that begins at `at` and does not pass `last`.
            let mut prefix = width;
            while prefix > 0 {
                let mask = host_mask(self.start, prefix - 1);
                if at & mask != 0 || at | mask > last {
                    break;
                }
                prefix -= 1;
            }
            out.push((addr_like(self.start, at), prefix));
            let block_end = at | host_mask(self.start, prefix);
            if block_end >= last {
                return out;
            }
            at = block_end + 1;
        }
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.start, self.prefix_len()) {
            (IpAddr::V4(start), Some(len)) => show_v4_prefix(f, start, len),
            (start, Some(len)) => write!(f, "{start}/{len}"),
            (start, None) => write!(f, "{start}-{}", self.end),
        }
    }
}

/// Such as `10.1.0.0/16`. It stands in many lines of the log, and general formatting takes ten times as long.
fn show_v4_prefix(f: &mut fmt::Formatter<'_>, start: Ipv4Addr, len: u8) -> fmt::Result {
    let mut text = *b"255.255.255.255/32";
    let (mut room, mut used) = (text.iter_mut(), 0);
    let mut put = |octet: u8| {
        if let Some(place) = room.next() {
            *place = octet;
            used += 1;
        }
    };
    let [a, b, c, d] = start.octets();
    for (number, end) in [(a, Some(b'.')), (b, Some(b'.')), (c, Some(b'.')), (d, Some(b'/')), (len, None)] {
        let digits = [number / 100, number / 10 % 10, number % 10].map(|digit| b'0' + digit);
        let leading = usize::from(number < 100) + usize::from(number < 10);
        digits.into_iter().skip(leading).chain(end).for_each(&mut put);
    }
    f.write_str(text.get(..used).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default())
}

impl fmt::Debug for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A traffic selector: which packets of one end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrafficSelector {
    /// Addresses.
    pub range: IpRange,
    /// IP protocol; 0 means any.
    pub protocol: u8,
    /// First and last port, inclusive; `(0, 65535)` means any. `(65535, 0)` is OPAQUE (RFC 4301 §4.4.1.1) and matches
    /// only packets without visible ports.
    pub ports: (u16, u16),
}

/// What a selector looks at in a packet, for one end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PacketEnd {
    /// Address of this end.
    pub addr: IpAddr,
    /// IP protocol of the packet.
    pub protocol: u8,
    /// Port of this end; `None` if the packet shows none (fragments, protocols without ports).
    pub port: Option<u16>,
}

/// One outbound packet as selectors: what RFC 7296 §2.9 puts in front of TSi and TSr.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Our side.
    pub local: TrafficSelector,
    /// The peer's side.
    pub remote: TrafficSelector,
}

impl Packet {
    /// The packet between two ends.
    pub fn between(local: &PacketEnd, remote: &PacketEnd) -> Self {
        Self { local: TrafficSelector::of(local), remote: TrafficSelector::of(remote) }
    }
}

impl TrafficSelector {
    /// Exactly what a packet shows of one end.
    fn of(end: &PacketEnd) -> Self {
        let range = IpRange { start: end.addr, end: end.addr };
        Self { range, protocol: end.protocol, ports: end.port.map_or((0, 65535), |port| (port, port)) }
    }

    /// Any protocol and port of an address range.
    pub const fn any(range: IpRange) -> Self {
        Self { range, protocol: 0, ports: (0, 65535) }
    }

    /// Any protocol and port of a CIDR block; `None` if the prefix is too long.
    pub fn cidr(addr: IpAddr, prefix_len: u8) -> Option<Self> {
        IpRange::cidr(addr, prefix_len).map(Self::any)
    }

    /// Whether every port is meant.
    pub const fn any_port(&self) -> bool {
        self.ports.0 == 0 && self.ports.1 == 65535
    }

    /// Whether every packet of `other` is a packet of `self`.
    pub fn covers(&self, other: &Self) -> bool {
        self.range.covers(&other.range)
            && (self.protocol == 0 || self.protocol == other.protocol)
            && (self.any_port()
                || self.ports == other.ports
                || (other.ports.0 <= other.ports.1
                    && self.ports.0 <= other.ports.0
                    && other.ports.1 <= self.ports.1))
    }

    /// The packets that both mean.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        let range = self.range.intersect(&other.range)?;
        let protocol = match (self.protocol, other.protocol) {
            (0, p) | (p, 0) => p,
            (a, b) if a == b => a,
            _ => return None,
        };
        let ports = if self.any_port() {
            other.ports
        } else if other.any_port() || self.ports == other.ports {
            self.ports
        } else {
            let ports = (self.ports.0.max(other.ports.0), self.ports.1.min(other.ports.1));
            let opaque = self.ports.0 > self.ports.1 || other.ports.0 > other.ports.1;
            if opaque || ports.0 > ports.1 {
                return None;
            }
            ports
        };
        Some(Self { range, protocol, ports })
    }

    /// How much it means, in bits: less is narrower. Addresses count by their prefix, ports and protocol below that.
    pub fn width(&self) -> u32 {
        let (start, end) = (bits(self.range.start), bits(self.range.end));
        let hosts = 128 - (end - start).leading_zeros();
        hosts * 4 + u32::from(self.protocol == 0) * 2 + u32::from(self.any_port())
    }

    /// Whether a packet's end is meant.
    pub fn matches(&self, end: &PacketEnd) -> bool {
        self.range.contains(end.addr)
            && (self.protocol == 0 || self.protocol == end.protocol)
            && (self.any_port()
                || match end.port {
                    Some(p) => self.ports.0 <= p && p <= self.ports.1,
                    None => self.ports.0 > self.ports.1,
                })
    }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.range)?;
        if self.protocol != 0 || !self.any_port() {
            write!(f, "[{}", self.protocol)?;
            match self.ports {
                (0, 65535) => {}
                (65535, 0) => f.write_str("/opaque")?,
                (a, b) if a == b => write!(f, "/{a}")?,
                (a, b) => write!(f, "/{a}-{b}")?,
            }
            f.write_str("]")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Narrows what a peer proposed to what we allow: every non-empty intersection, in the order of `allowed`, without
/// those that another one covers (RFC 7296 §2.9). At most `limit` selectors come back.
pub fn narrow(
    allowed: &[TrafficSelector],
    proposed: &[TrafficSelector],
    limit: usize,
) -> Vec<TrafficSelector> {
    let mut out: Vec<TrafficSelector> = Vec::new();
    for a in allowed {
        for p in proposed {
            let Some(both) = a.intersect(p) else { continue };
            if out.iter().any(|o| o.covers(&both)) {
                continue;
            }
            out.retain(|o| !both.covers(o));
            if out.len() < limit {
                out.push(both);
            }
        }
    }
    // Kept for as long as the SAs between them.
    out.shrink_to_fit();
    out
}

/// Whether every selector of `inner` is covered by one of `outer`: the check on a responder's answer, which may be
/// narrower than what we proposed but never wider (RFC 7296 §2.9).
pub fn within(inner: &[TrafficSelector], outer: &[TrafficSelector]) -> bool {
    inner.iter().all(|i| outer.iter().any(|o| o.covers(i)))
}

/// Whether both lists mean the same packets, as far as one selector of one list is held against one of the other.
pub fn same(a: &[TrafficSelector], b: &[TrafficSelector]) -> bool {
    within(a, b) && within(b, a)
}

/// Whether a packet can be meant by both lists.
pub fn overlap(a: &[TrafficSelector], b: &[TrafficSelector]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.intersect(b).is_some()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_written_like_other_addresses() {
        for address in ["0.0.0.0", "10.1.0.0", "192.0.2.128", "255.255.255.255", "9.99.100.0"] {
            for len in [0, 8, 24, 32] {
                let range = IpRange::cidr(v4(address), len).unwrap();
                assert_eq!(range.to_string(), format!("{}/{len}", range.start()));
            }
        }
    }

    fn small_selector() -> impl Strategy<Value = TrafficSelector> {
        (0u32..16, 0u32..16, 0u8..3, 0u16..8, 0u16..8).prop_map(|(a, b, protocol, p, q)| TrafficSelector {
            range: IpRange::new(IpAddr::V4(Ipv4Addr::from(a.min(b))), IpAddr::V4(Ipv4Addr::from(a.max(b))))
                .unwrap(),
            protocol,
            ports: if p == q { (0, 65535) } else { (p.min(q), p.max(q)) },
        })
    }

    fn packets() -> impl Iterator<Item = PacketEnd> {
        (0u32..16).flat_map(|a| {
            (1u8..4).flat_map(move |protocol| {
                (0u16..9).map(move |p| PacketEnd {
                    addr: IpAddr::V4(Ipv4Addr::from(a)),
                    protocol,
                    port: Some(p),
                })
            })
        })
    }

    proptest! {
        #[test]
        fn intersection_means_what_both_mean(a in small_selector(), b in small_selector()) {
            let both = a.intersect(&b);
            for p in packets() {
                prop_assert_eq!(both.is_some_and(|s| s.matches(&p)), a.matches(&p) && b.matches(&p));
            }
        }

        #[test]
        fn covering_is_inclusion(a in small_selector(), b in small_selector()) {
            if a.covers(&b) {
                for p in packets() {
                    prop_assert!(!b.matches(&p) || a.matches(&p));
                }
            }
        }

        #[test]
        fn narrowing_agrees_with_brute_force(
            ours in prop::collection::vec(small_selector(), 1..4),
            theirs in prop::collection::vec(small_selector(), 1..4),
        ) {
            let narrowed = narrow(&ours, &theirs, 255);
            prop_assert!(within(&narrowed, &ours) && within(&narrowed, &theirs));
            for p in packets() {
                let want = ours.iter().any(|s| s.matches(&p)) && theirs.iter().any(|s| s.matches(&p));
                prop_assert_eq!(narrowed.iter().any(|s| s.matches(&p)), want);
            }
        }

        #[test]
        fn prefixes_make_up_the_range(a: u32, b: u32) {
            let (lo, hi) = (a.min(b), a.max(b));
            let range = IpRange::new(IpAddr::V4(lo.into()), IpAddr::V4(hi.into())).unwrap();
            let mut next = u64::from(lo);
            for (addr, len) in range.prefixes() {
                let block = IpRange::cidr(addr, len).unwrap();
                prop_assert_eq!(bits(block.start()), u128::from(next));
                next = u64::try_from(bits(block.end())).unwrap() + 1;
            }
            prop_assert_eq!(next, u64::from(hi) + 1);
        }
    }

    #[test]
    fn a_packet_is_the_narrowest_selector_that_matches_it() {
        let end = |addr, port| PacketEnd { addr: v4(addr), protocol: 6, port };
        let (ours, theirs) = (end("10.1.0.7", Some(40_000)), end("10.2.0.9", Some(443)));
        let packet = Packet::between(&ours, &theirs);
        assert!(packet.local.matches(&ours) && packet.remote.matches(&theirs));
        assert_eq!(
            (packet.local.to_string(), packet.remote.to_string()),
            ("10.1.0.7/32[6/40000]".into(), "10.2.0.9/32[6/443]".into())
        );
        let unseen = end("10.1.0.7", None);
        assert_eq!(Packet::between(&unseen, &theirs).local.to_string(), "10.1.0.7/32[6]");
    }

    #[test]
    fn cidr_and_back() {
        let r = IpRange::cidr(v4("10.1.2.3"), 16).unwrap();
        assert_eq!(r.to_string(), "10.1.0.0/16");
        assert_eq!(r.prefix_len(), Some(16));
        assert_eq!(IpRange::cidr(v4("::1"), 0).unwrap().prefixes(), vec![(v4("::"), 0)]);
        assert_eq!(IpRange::new(v4("10.0.0.1"), v4("10.0.0.2")).unwrap().prefix_len(), None);
        assert_eq!(IpRange::cidr(v4("10.0.0.0"), 33), None);
        assert_eq!(IpRange::new(v4("10.0.0.1"), v4("::1")), None);
        assert_eq!(IpRange::all(v4("1.2.3.4")).prefix_len(), Some(0));
    }
}
