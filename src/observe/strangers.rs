//! Who knocks the loudest: the sources of datagrams that were refused, for `cygnet top --peers`.
//!
//! Anybody can send from any address, so what is kept is bounded: the Space-Saving summary (Metwally, Agrawal and El
//! Abbadi, 2005) of so many sources, for two spans of time of which the older one goes. Whoever sent more than a 64th of
//! all refused datagrams of a span stands in it. An unproven source is never a label of a metric, nor the subject of a
//! tunnel.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use cygnet_model::Timestamp;

/// Sources that are kept for a span.
const KEPT: usize = 64;
/// How long a span is.
const SPAN: Duration = Duration::from_secs(300);
/// Reasons that are kept for a source; there are some thirty.
const REASONS: usize = 40;

/// What is known of a source.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Heard {
    /// Datagrams that were refused, at most.
    pub count: u64,
    /// By how much that may be too many: what the source was given that had this place before.
    pub over: u64,
    /// Those that are its own for sure, by reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// When the last one came.
    pub last: Timestamp,
}

#[derive(Clone, Default, Debug)]
struct Span {
    sources: BTreeMap<IpAddr, Heard>,
}

impl Span {
    fn note(&mut self, source: IpAddr, reason: &'static str, now: Timestamp) {
        if !self.sources.contains_key(&source) {
            let mut heard = Heard::default();
            if self.sources.len() >= KEPT
                && let Some(quietest) = self.sources.iter().min_by_key(|(_, h)| h.count).map(|(ip, _)| *ip)
                && let Some(gone) = self.sources.remove(&quietest)
            {
                (heard.count, heard.over) = (gone.count, gone.count);
            }
            self.sources.insert(source, heard);
        }
        let Some(heard) = self.sources.get_mut(&source) else { return };
        heard.count = heard.count.saturating_add(1);
        heard.last = now;
        if heard.reasons.len() < REASONS || heard.reasons.contains_key(reason) {
            *heard.reasons.entry(reason).or_default() += 1;
        }
    }
}

/// See the [module](self).
#[derive(Clone, Default, Debug)]
pub struct Strangers {
    current: Span,
    before: Span,
    began: Timestamp,
    /// When the older span began.
    since: Timestamp,
}

impl Strangers {
    /// Notes a datagram that was refused. Of IPv6 the first 64 bits count, of which whoever has one has all addresses.
    pub fn note(&mut self, source: IpAddr, reason: &'static str, now: Timestamp) {
        self.turn(now);
        self.current.note(network(source), reason, now);
    }

    /// The loudest, loudest first, and how long they have been listened to.
    pub fn loudest(&mut self, now: Timestamp) -> (Duration, Vec<(IpAddr, Heard)>) {
        self.turn(now);
        let mut all = self.before.sources.clone();
        for (source, heard) in &self.current.sources {
            let sum = all.entry(*source).or_default();
            sum.count = sum.count.saturating_add(heard.count);
            sum.over = sum.over.saturating_add(heard.over);
            sum.last = sum.last.max(heard.last);
            for (reason, count) in &heard.reasons {
                *sum.reasons.entry(reason).or_default() += count;
            }
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(|(source, heard)| (std::cmp::Reverse(heard.count), *source));
        all.truncate(KEPT);
        (now.since(self.since), all)
    }

    fn turn(&mut self, now: Timestamp) {
        if self.began == Timestamp::default() {
            (self.began, self.since) = (now, now);
        }
        let passed = now.since(self.began);
        if passed >= SPAN * 2 {
            *self = Self { began: now, since: now, ..Self::default() };
        } else if passed >= SPAN {
            self.before = std::mem::take(&mut self.current);
            (self.since, self.began) = (self.began, now);
        }
    }
}

/// What counts as one source: an IPv4 address, or 64 bits of IPv6.
pub(crate) fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(a) => match a.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from_bits(a.to_bits() & !u128::from(u64::MAX)).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    fn v4(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    #[test]
    fn a_loud_source_stands_out_of_a_flood_of_forged_ones() {
        let mut s = Strangers::default();
        for n in 0..100_000u32 {
            s.note(v4(1000 + n), "unknown_peer", at(100));
            if n % 20 == 0 {
                s.note(v4(7), "malformed", at(100));
            }
        }
        let (_, loudest) = s.loudest(at(101));
        assert!(loudest.len() <= KEPT);
        let (source, heard) = &loudest[0];
        assert_eq!(*source, v4(7));
        assert!(heard.count >= 5000 && heard.reasons["malformed"] <= 5000);
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut s = Strangers::default();
        s.note(v4(1), "malformed", at(100));
        s.note(v4(2), "malformed", at(450));
        let (span, loudest) = s.loudest(at(460));
        assert_eq!((span.as_secs(), loudest.len()), (360, 2));
        s.note(v4(3), "malformed", at(800));
        assert_eq!(s.loudest(at(801)).1.iter().map(|(ip, _)| *ip).collect::<Vec<_>>(), [v4(2), v4(3)]);
        assert_eq!(s.loudest(at(5000)).1, []);
    }

    #[test]
    fn addresses_of_one_network_are_one_source() {
        let mut s = Strangers::default();
        for n in 0..200u128 {
            s.note(Ipv6Addr::from_bits(0x2001_0db8 << 96 | n).into(), "malformed", at(100));
        }
        assert_eq!(s.loudest(at(100)).1[0].1.count, 200);
    }

    proptest! {
        /// The promise of the summary: a count is never too small, and too large by no more than it says.
        #[test]
        fn counts_are_within_their_bounds(sources in prop::collection::vec(0u32..200, 0..2000)) {
            let mut s = Strangers::default();
            let mut exact: BTreeMap<IpAddr, u64> = BTreeMap::new();
            for n in &sources {
                s.note(v4(*n), "malformed", at(100));
                *exact.entry(v4(*n)).or_default() += 1;
            }
            let (_, loudest) = s.loudest(at(100));
            for (ip, heard) in &loudest {
                prop_assert!(heard.count >= exact[ip] && heard.count - heard.over <= exact[ip]);
                prop_assert!(heard.reasons.values().sum::<u64>() <= exact[ip]);
            }
            let kept: std::collections::BTreeSet<_> = loudest.iter().map(|(ip, _)| *ip).collect();
            for (ip, count) in exact {
                prop_assert!(count <= sources.len() as u64 / KEPT as u64 || kept.contains(&ip));
            }
        }
    }
}
