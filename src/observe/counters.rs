//! Counters that never go back. A tunnel's counters are those of its retired generations of keys plus those of the
//! live ones, so a rekey shows as nothing at all.
//!
//! Labels come from the configuration or are `&'static str`: nothing that a stranger sends can make a series.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cygnet_model::Timestamp;
use cygnet_model::plane::SaCounters;
use cygnet_model::tunnel::{Direction, SaId};

/// Upper bounds of the buckets of the round-trip histogram, in seconds.
pub const RTT_BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// What a tunnel carried since the daemon started.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// Octets of inner packets received.
    pub bytes_in: u64,
    /// Packets received.
    pub packets_in: u64,
    /// Octets of inner packets sent.
    pub bytes_out: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Dropped by the replay window.
    pub replay: u64,
    /// Dropped because the integrity check failed.
    pub integrity: u64,
}

impl Totals {
    fn add(&mut self, direction: Direction, c: &SaCounters) {
        match direction {
            Direction::In => {
                self.bytes_in += c.bytes;
                self.packets_in += c.packets;
            }
            Direction::Out => {
                self.bytes_out += c.bytes;
                self.packets_out += c.packets;
            }
        }
        self.replay += c.replay;
        self.integrity += c.integrity;
    }
}

/// What was rekeyed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RekeyKind {
    /// The IKE SA.
    Ike,
    /// A child.
    Child,
}

/// One tunnel's counters.
#[derive(Clone, Default, Debug)]
pub struct TunnelCounters {
    /// Its gateway, a label.
    pub gateway: String,
    retired: Totals,
    live: BTreeMap<SaId, SaCounters>,
    /// Attempts that failed, by reason; none of a reason that is not there.
    pub failures: BTreeMap<&'static str, u64>,
    rekeys: [[u64; 2]; 2],
    /// Time without traffic passing although it should.
    downtime: Duration,
    down_since: Option<Timestamp>,
}

impl TunnelCounters {
    /// What it carried so far.
    pub fn totals(&self) -> Totals {
        let mut totals = self.retired;
        self.live.iter().for_each(|(sa, c)| totals.add(sa.direction, c));
        totals
    }

    /// How many rekeys of a kind succeeded or failed.
    pub fn rekeys(&self, kind: RekeyKind, ok: bool) -> u64 {
        self.rekeys[usize::from(kind == RekeyKind::Child)][usize::from(ok)]
    }

    /// How long it was down until `now`.
    pub fn downtime(&self, now: Timestamp) -> Duration {
        self.downtime + self.down_since.map_or(Duration::ZERO, |t| now.since(t))
    }
}

/// A histogram with the bounds of [`RTT_BOUNDS`].
#[derive(Clone, Default, Debug)]
pub struct Histogram {
    /// Observations up to each bound, not cumulative; the last one is beyond all bounds.
    pub buckets: [u64; RTT_BOUNDS.len() + 1],
    /// Sum of all observations in seconds.
    pub sum: f64,
}

impl Histogram {
    /// Adds an observation.
    pub fn observe(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        let n = RTT_BOUNDS.iter().position(|b| seconds <= *b).unwrap_or(RTT_BOUNDS.len());
        self.buckets[n] += 1;
        self.sum += seconds;
    }
}

/// A counter of the kernel that may begin anew, as one that goes on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Continued {
    /// What was counted in all.
    pub total: u64,
    last: u64,
}

impl Continued {
    /// Takes the kernel's count: less than the last time means that it began anew.
    pub fn read(&mut self, count: u64) {
        let more = count.checked_sub(self.last).unwrap_or(count);
        self.total = self.total.saturating_add(more);
        self.last = count;
    }
}

/// All counters of the daemon.
#[derive(Clone, Default, Debug)]
pub struct Counters {
    /// By tunnel name; exactly the configured ones. Shared with what was published, as far as nothing was counted since.
    pub tunnels: Arc<BTreeMap<Arc<str>, Arc<TunnelCounters>>>,
    /// Reasons for failures of which every tunnel has a count, if only of none.
    pub reasons: Vec<&'static str>,
    /// IKE requests that were sent again.
    pub retransmits: u64,
    /// Round trips of IKE exchanges.
    pub rtt: Histogram,
    /// IKE datagrams that were dropped, by reason.
    pub ike_dropped: BTreeMap<&'static str, u64>,
    /// Packets dropped by traffic control, by gateway and class.
    pub qos_drops: BTreeMap<(String, String), Continued>,
    /// The kernel's /proc/net/xfrm_stat, by name.
    pub xfrm_stats: BTreeMap<String, u64>,
    /// When these counters were taken; open-ended times count up to here.
    pub at: Timestamp,
}

impl Counters {
    /// Takes over the configured tunnels as (gateway, tunnel). Tunnels that stay keep their counters.
    pub fn configure<'a>(&mut self, tunnels: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let mut old = Arc::unwrap_or_clone(std::mem::take(&mut self.tunnels));
        let mut take = |(gateway, tunnel): (&str, &str)| {
            let mut counters = old.remove(tunnel).unwrap_or_default();
            if counters.gateway != gateway {
                gateway.clone_into(&mut Arc::make_mut(&mut counters).gateway);
            }
            (Arc::from(tunnel), counters)
        };
        self.tunnels = Arc::new(tunnels.into_iter().map(&mut take).collect());
    }

    /// A tunnel's counters to be changed. Whoever has them already keeps them as they were.
    fn of(&mut self, tunnel: &str) -> Option<&mut TunnelCounters> {
        if !self.tunnels.contains_key(tunnel) {
            return None;
        }
        Arc::make_mut(&mut self.tunnels).get_mut(tunnel).map(Arc::make_mut)
    }

    /// Notes what an installed SA counts. An SA's counters going back (a plane that was restarted) keep what was seen.
    pub fn sample(&mut self, tunnel: &str, sa: SaId, now: SaCounters) {
        let known = self.tunnels.get(tunnel).and_then(|t| t.live.get(&sa));
        if known == Some(&now) {
            return;
        }
        let Some(t) = self.of(tunnel) else { return };
        let seen = t.live.entry(sa).or_default();
        let back = now.bytes < seen.bytes
            || now.packets < seen.packets
            || now.replay < seen.replay
            || now.integrity < seen.integrity;
        if back {
            let before = std::mem::replace(seen, now);
            t.retired.add(sa.direction, &before);
        } else {
            *seen = now;
        }
    }

    /// Notes the last counters of an SA that is removed.
    pub fn retire(&mut self, tunnel: &str, sa: SaId, last: SaCounters) {
        let Some(t) = self.of(tunnel) else { return };
        let seen = t.live.remove(&sa).unwrap_or_default();
        // A plane that has already lost the SA answers with zeros.
        let last = SaCounters {
            bytes: last.bytes.max(seen.bytes),
            packets: last.packets.max(seen.packets),
            replay: last.replay.max(seen.replay),
            integrity: last.integrity.max(seen.integrity),
            sequence: 0,
        };
        t.retired.add(sa.direction, &last);
    }

    /// Notes whether a tunnel that should be up is up.
    pub fn set_up(&mut self, tunnel: &str, up: bool, now: Timestamp) {
        let is_noted = |t: &Arc<TunnelCounters>| t.down_since.is_none() == up;
        if self.tunnels.get(tunnel).is_none_or(is_noted) {
            return;
        }
        let Some(t) = self.of(tunnel) else { return };
        match (up, t.down_since) {
            (true, Some(since)) => {
                t.downtime += now.since(since);
                t.down_since = None;
            }
            (false, None) => t.down_since = Some(now),
            _ => {}
        }
    }

    /// Notes the end of a rekey.
    pub fn rekeyed(&mut self, tunnel: &str, kind: RekeyKind, ok: bool) {
        if let Some(t) = self.of(tunnel) {
            t.rekeys[usize::from(kind == RekeyKind::Child)][usize::from(ok)] += 1;
        }
    }

    /// Notes an attempt that failed.
    pub fn failed(&mut self, tunnel: &str, reason: &'static str) {
        if let Some(t) = self.of(tunnel) {
            *t.failures.entry(reason).or_default() += 1;
        }
    }

    /// Notes a dropped IKE datagram.
    pub fn dropped(&mut self, reason: &'static str) {
        *self.ike_dropped.entry(reason).or_default() += 1;
    }

    /// Reads the text of /proc/net/xfrm_stat.
    pub fn read_xfrm_stat(&mut self, text: &str) {
        for line in text.lines().take(100) {
            let mut words = line.split_ascii_whitespace();
            if let (Some(name), Some(Ok(value))) = (words.next(), words.next().map(str::parse))
                && name.bytes().all(|b| b.is_ascii_alphanumeric())
            {
                self.xfrm_stats.insert(name.to_owned(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cygnet_model::{ChildId, Spi, TunnelId};
    use proptest::prelude::*;

    use super::*;

    fn sa(spi: u32, direction: Direction) -> SaId {
        SaId {
            child: ChildId { tunnel: TunnelId(0), index: 0 },
            direction,
            spi: Spi::new(256 + spi).unwrap(),
        }
    }

    fn counted(packets: u64) -> SaCounters {
        SaCounters { bytes: packets * 100, packets, ..SaCounters::default() }
    }

    #[test]
    fn a_rekey_is_invisible_in_the_totals() {
        let mut c = Counters::default();
        c.configure([("vpc-a", "a-b")]);
        let (old, new) = (sa(1, Direction::In), sa(2, Direction::In));
        c.sample("a-b", old, counted(10));
        c.sample("a-b", new, counted(1));
        c.retire("a-b", old, counted(12));
        assert_eq!(c.tunnels["a-b"].totals().packets_in, 13);
        c.retire("a-b", new, SaCounters::default());
        assert_eq!(c.tunnels["a-b"].totals().packets_in, 13);
        c.configure([("vpc-a", "a-b"), ("vpc-a", "a-c")]);
        assert_eq!(c.tunnels["a-b"].totals().packets_in, 13);
        c.sample("stranger", old, counted(1));
        assert_eq!(c.tunnels.len(), 2);
    }

    #[test]
    fn a_count_that_begins_anew_goes_on() {
        let mut c = Continued::default();
        for (count, total) in [(5, 5), (7, 7), (2, 9), (2, 9), (4, 11)] {
            c.read(count);
            assert_eq!(c.total, total);
        }
    }

    #[test]
    fn downtime_counts_while_it_lasts() {
        let t = |s: u64| Timestamp::from_nanos(s * 1_000_000_000);
        let mut c = Counters::default();
        c.configure([("g", "t")]);
        c.set_up("t", false, t(10));
        c.set_up("t", false, t(11));
        assert_eq!(c.tunnels["t"].downtime(t(15)).as_secs(), 5);
        c.set_up("t", true, t(20));
        assert_eq!(c.tunnels["t"].downtime(t(99)).as_secs(), 10);
    }

    proptest! {
        /// T103: whatever the order of samples, removals and plane restarts, totals never go back.
        #[test]
        fn totals_never_go_back(steps in prop::collection::vec((0u32..4, any::<bool>(), any::<bool>(), 0u64..50), 0..60)) {
            let mut c = Counters::default();
            c.configure([("g", "t")]);
            let mut before = Totals::default();
            for (spi, inbound, retire, packets) in steps {
                let id = sa(spi, if inbound { Direction::In } else { Direction::Out });
                if retire { c.retire("t", id, counted(packets)) } else { c.sample("t", id, counted(packets)) }
                let now = c.tunnels["t"].totals();
                prop_assert!(now.packets_in >= before.packets_in && now.packets_out >= before.packets_out);
                prop_assert!(now.bytes_in >= before.bytes_in && now.bytes_out >= before.bytes_out);
                before = now;
            }
        }
    }
}
