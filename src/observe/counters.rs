//! Counters that never go back: of the daemon, and of each tunnel ([`super::tunnel_counters`]).
//!
//! Labels come from the configuration or are `&'static str`: nothing that a stranger sends can make a series.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cygnet_model::Timestamp;
use cygnet_model::plane::SaCounters;
use cygnet_model::tunnel::SaId;

use super::qos::QosDrops;
pub use super::tunnel_counters::{Path, RekeyKind, Tally, Totals, TunnelCounters};

/// Upper bounds of the buckets of the round-trip histogram, in seconds.
pub const RTT_BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

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
    /// Cookies against floods.
    pub cookies: Cookies,
    /// Packets that our own data plane dropped, by reason; empty with the kernel's.
    pub plane_drops: BTreeMap<&'static str, u64>,
    /// What it had dropped in lives of the daemon that handed over.
    pub plane_drops_before: BTreeMap<&'static str, u64>,
    /// Packets dropped by bandwidth levels and limits.
    pub qos_drops: QosDrops,
    /// Events by the way by which they were told, and what became of them.
    pub alerts: BTreeMap<(&'static str, &'static str), u64>,
    /// The kernel's /proc/net/xfrm_stat, by name.
    pub xfrm_stats: BTreeMap<String, u64>,
    /// Processor time of what the loop does every few seconds.
    pub sampling_cpu: Duration,
    /// When these counters were taken; open-ended times count up to here.
    pub at: Timestamp,
    /// When octets and packets were last read of all tunnels at once: what rates are computed from.
    pub sampled_at: Timestamp,
    /// Tunnels that have counted something since this was last asked.
    touched: BTreeSet<Arc<str>>,
}

/// The names in /proc/net/xfrm_stat of the kernels that we know, up to 7.3; 6.1 has all but the last four.
pub const XFRM_STATISTICS: [&str; 32] = [
    "XfrmInError",
    "XfrmInBufferError",
    "XfrmInHdrError",
    "XfrmInNoStates",
    "XfrmInStateProtoError",
    "XfrmInStateModeError",
    "XfrmInStateSeqError",
    "XfrmInStateExpired",
    "XfrmInStateMismatch",
    "XfrmInStateInvalid",
    "XfrmInTmplMismatch",
    "XfrmInNoPols",
    "XfrmInPolBlock",
    "XfrmInPolError",
    "XfrmOutError",
    "XfrmOutBundleGenError",
    "XfrmOutBundleCheckError",
    "XfrmOutNoStates",
    "XfrmOutStateProtoError",
    "XfrmOutStateModeError",
    "XfrmOutStateSeqError",
    "XfrmOutStateExpired",
    "XfrmOutPolBlock",
    "XfrmOutPolDead",
    "XfrmOutPolError",
    "XfrmFwdHdrError",
    "XfrmOutStateInvalid",
    "XfrmAcquireError",
    "XfrmOutStateDirError",
    "XfrmInStateDirError",
    "XfrmInIptfsError",
    "XfrmOutNoQueueSpace",
];

/// Cookies against floods (RFC 7296 §2.6).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Cookies {
    /// Strangers that were asked to come again with one.
    pub demanded: u64,
    /// Valid ones that came back.
    pub returned: u64,
}

/// Statistics of the kernel that are kept: it has some thirty.
const MAX_STATISTICS: usize = 128;
/// Longest name of one that is believed.
const MAX_NAME: usize = 64;

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
        let (name, _) = self.tunnels.get_key_value(tunnel)?;
        self.touched.insert(Arc::clone(name));
        Arc::make_mut(&mut self.tunnels).get_mut(tunnel).map(Arc::make_mut)
    }

    /// Tunnels that have counted something since this was last asked.
    pub fn take_touched(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.touched)
    }

    /// Counts on from what an earlier life of the daemon had counted of a tunnel. Its SAs that are taken up follow by
    /// [`Self::go_on`]; of others nothing may stand in the tally.
    pub fn resume(&mut self, tunnel: &str, tally: Tally) {
        let reasons = std::mem::take(&mut self.reasons);
        if let Some(t) = self.of(tunnel) {
            t.resume(tally, &reasons);
        }
        self.reasons = reasons;
    }

    /// Goes on with an SA of an earlier life, which has counted so much by now. Without a tally of that life all of it was
    /// that life's.
    pub fn go_on(&mut self, tunnel: &str, sa: SaId, counted: SaCounters) {
        if let Some(t) = self.of(tunnel) {
            t.go_on(sa, &counted);
        }
    }

    /// Notes what an installed SA counts. An SA's counters going back (a plane that was restarted) keep what was seen.
    pub fn sample(&mut self, tunnel: &str, sa: SaId, now: SaCounters) {
        if self.tunnels.get(tunnel).is_some_and(|t| t.knows(sa, &now)) {
            return;
        }
        if let Some(t) = self.of(tunnel) {
            t.sample(sa, &now);
        }
    }

    /// Notes the last counters of an SA that is removed.
    pub fn retire(&mut self, tunnel: &str, sa: SaId, last: SaCounters) {
        if let Some(t) = self.of(tunnel) {
            t.retire(sa, &last);
        }
    }

    /// Notes whether a tunnel that should be up is up.
    pub fn set_up(&mut self, tunnel: &str, up: bool, now: Timestamp) {
        if self.tunnels.get(tunnel).is_none_or(|t| t.is_noted_up() == up) {
            return;
        }
        if let Some(t) = self.of(tunnel) {
            t.set_up(up, now);
        }
    }

    /// Notes the end of a rekey.
    pub fn rekeyed(&mut self, tunnel: &str, kind: RekeyKind, ok: bool) {
        if let Some(t) = self.of(tunnel) {
            t.rekeyed(kind, ok);
        }
    }

    /// Notes an attempt that failed.
    pub fn failed(&mut self, tunnel: &str, reason: &'static str) {
        if let Some(t) = self.of(tunnel) {
            *t.failures.entry(reason).or_default() += 1;
        }
    }

    /// Notes that an IKE request was sent again.
    pub fn retransmitted(&mut self, tunnel: &str) {
        self.retransmits += 1;
        if let Some(t) = self.of(tunnel) {
            t.path.on_retransmit();
        }
    }

    /// Notes that an IKE request was answered.
    pub fn answered(&mut self, tunnel: &str, took: Duration) {
        self.rtt.observe(took);
        if let Some(t) = self.of(tunnel) {
            t.path.on_answer(took);
        }
    }

    /// Notes a dropped IKE datagram.
    pub fn dropped(&mut self, reason: &'static str) {
        *self.ike_dropped.entry(reason).or_default() += 1;
    }

    /// Reads the text of /proc/net/xfrm_stat. Names that nobody knows yet are taken as they are; whoever shows them
    /// escapes them.
    pub fn read_xfrm_stat(&mut self, text: &str) {
        for line in text.lines().take(MAX_STATISTICS) {
            let mut words = line.split_ascii_whitespace();
            let (Some(name), Some(Ok(value))) = (words.next(), words.next().map(str::parse)) else {
                continue;
            };
            if let Some(known) = self.xfrm_stats.get_mut(name) {
                *known = value;
            } else if name.len() <= MAX_NAME
                && name.bytes().all(|b| b.is_ascii_graphic())
                && self.xfrm_stats.len() < MAX_STATISTICS
            {
                self.xfrm_stats.insert(name.to_owned(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cygnet_model::tunnel::Direction;
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

    /// A counter that began with what an earlier process had counted would be taken for traffic.
    #[test]
    fn what_an_earlier_life_counted_is_not_counted_again() {
        let mut c = Counters::default();
        c.configure([("vpc-a", "a-b")]);
        let (stays, goes) = (sa(1, Direction::In), sa(2, Direction::In));
        c.go_on("a-b", stays, counted(1000));
        c.go_on("a-b", goes, counted(500));
        c.sample("a-b", stays, counted(1000));
        assert_eq!(c.tunnels["a-b"].totals(), Totals::default());
        c.sample("a-b", stays, counted(1003));
        c.retire("a-b", goes, counted(504));
        assert_eq!(c.tunnels["a-b"].totals().packets_in, 7);
    }

    /// What the kernel carried while no daemon ran is counted; what was carried before is not counted twice; an SA that is
    /// gone takes nothing with it; our own plane may come back with less than was shown.
    #[test]
    fn totals_go_on_from_life_to_life() {
        let (stays, gone, new, back) =
            (sa(1, Direction::In), sa(2, Direction::In), sa(3, Direction::In), sa(4, Direction::In));
        let mut c = Counters::default();
        c.configure([("vpc-a", "a-b")]);
        for (sa, packets) in [(stays, 1000), (gone, 500), (back, 50)] {
            c.sample("a-b", sa, counted(packets));
        }
        let mut total = 1550;
        for _ in 0..3 {
            let mut tally = c.tunnels["a-b"].tally();
            assert_eq!(tally.totals.packets_in, total);
            tally.sas.remove(&gone);
            c = Counters::default();
            c.configure([("vpc-a", "a-b")]);
            c.resume("a-b", tally);
            c.go_on("a-b", stays, counted(1010));
            c.go_on("a-b", back, counted(20));
            c.go_on("a-b", new, counted(7));
            assert_eq!(c.tunnels["a-b"].totals().packets_in, total, "before the first sample");
            for (sa, packets) in [(stays, 1010), (back, 21), (new, 7)] {
                c.sample("a-b", sa, counted(packets));
            }
            // Ten and seven that nobody had told of in the first round, and one each time on the SA that came back.
            total += if total == 1550 { 18 } else { 1 };
            assert_eq!(c.tunnels["a-b"].totals().packets_in, total);
        }
        c.retire("a-b", stays, counted(1020));
        assert_eq!(c.tunnels["a-b"].totals().packets_in, total + 10);
    }

    #[test]
    fn the_way_is_measured_by_the_last_requests() {
        let mut path = Path::default();
        assert_eq!(path.measured(), None);
        path.on_retransmit();
        assert_eq!(path.measured(), None, "no answer yet");
        path.on_answer(Duration::from_millis(8));
        assert_eq!(path.measured(), Some((0.5, Duration::from_millis(8))));
        path.on_answer(Duration::from_millis(16));
        assert_eq!(path.measured().unwrap().1, Duration::from_millis(9));
        (0..100).for_each(|_| path.on_answer(Duration::from_millis(9)));
        assert_eq!(path.measured().unwrap().0, 0.0);
        (0..100).for_each(|_| path.on_retransmit());
        assert_eq!(path.measured().unwrap().0, 1.0);
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
