//! What gateways send and receive a second: by the packets inside their tunnels, as those are shown too, and by what their levels let
//! pass, in the octets that a level counts, so that the two can be compared whatever is offered.

use std::collections::BTreeMap;

use cygnet_model::Timestamp;

use super::Daemon;
use super::levels::{LevelKey, Owner};

/// Who counts what a gateway sends, or receives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum By {
    /// Its SAs: packets inside the tunnel.
    Tunnels,
    /// Its classes of HTB: what left their queues.
    Queue,
    /// The data plane, where it keeps the level.
    Bucket,
}

/// Octets by who counted them; of HTB by interface.
type Octets = BTreeMap<(By, u32), u64>;

/// Octets that levels of gateways let pass, as of the last look.
#[derive(Default)]
pub(super) struct Passed {
    /// What traffic control keeps, by gateway and interface.
    pub queues: BTreeMap<(String, u32), u64>,
    /// What the data plane keeps.
    pub buckets: BTreeMap<LevelKey, u64>,
}

impl Passed {
    fn of(&self, key: &LevelKey, inside: u64) -> Octets {
        let queues = match key {
            LevelKey { owner: Owner::Gateway(name), inward: false } => {
                Some(self.queues.range((name.clone(), 0)..=(name.clone(), u32::MAX)))
            }
            _ => None,
        };
        let queues = queues.into_iter().flatten().map(|((_, link), octets)| ((By::Queue, *link), *octets));
        let bucket = self.buckets.get(key).map(|octets| ((By::Bucket, 0), *octets));
        queues.chain(bucket).chain([((By::Tunnels, 0), inside)]).collect()
    }
}

/// One direction at the last sample, and what follows from the one before.
#[derive(Default)]
struct OneWay {
    octets: Octets,
    /// By packets inside.
    bps: u64,
    /// By the level, if there is one.
    used: Option<u64>,
}

impl OneWay {
    /// Takes what all have counted by now. Gives what has grown since: of the tunnels, and as `by` has it, or the tunnels where that
    /// one counts nothing.
    fn grow(&mut self, now: Octets, by: By) -> (u64, u64) {
        let before = std::mem::replace(&mut self.octets, now);
        let counts = |by: By| self.octets.range((by, 0)..=(by, u32::MAX));
        let grown = |by: By| {
            let each = counts(by).map(|(key, octets)| {
                let seen = before.get(key).copied().unwrap_or(0);
                match by {
                    // Less than before: a tunnel is gone.
                    By::Tunnels => octets.saturating_sub(seen),
                    // Less than before: it was made anew.
                    By::Queue | By::Bucket => octets.checked_sub(seen).unwrap_or(*octets),
                }
            });
            each.fold(0, u64::saturating_add)
        };
        let by = if counts(by).next().is_some() { by } else { By::Tunnels };
        (grown(By::Tunnels), grown(by))
    }
}

/// Rates of a gateway.
#[derive(Default)]
pub(super) struct Rates {
    at: Timestamp,
    out: OneWay,
    inward: OneWay,
}

impl Rates {
    /// Bits per second that are sent, of packets inside.
    pub const fn tx_bps(&self) -> u64 {
        self.out.bps
    }

    /// Bits per second that are received.
    pub const fn rx_bps(&self) -> u64 {
        self.inward.bps
    }

    /// Bits per second that the level on what is sent lets pass; `None` if there is none.
    pub const fn out_used_bps(&self) -> Option<u64> {
        self.out.used
    }

    /// The same of what is received.
    pub const fn in_used_bps(&self) -> Option<u64> {
        self.inward.used
    }
}

impl Daemon {
    /// Makes rates of what was counted since the last time.
    pub(super) fn sample_rates(&mut self, now: Timestamp) {
        let mut of_gateways: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for counters in self.counters.tunnels.values() {
            let (totals, of) = (counters.totals(), of_gateways.entry(&counters.gateway).or_default());
            *of = (of.0.saturating_add(totals.bytes_out), of.1.saturating_add(totals.bytes_in));
        }
        for gateway in &self.config.gateways {
            let (sent, received) = of_gateways.get(gateway.name.as_str()).copied().unwrap_or_default();
            let out = LevelKey::gateway(&gateway.name);
            let inward = out.clone().inward();
            let by = [self.counted_by(&out), self.counted_by(&inward)];
            let rates = self.rates.entry(gateway.name.clone()).or_default();
            let span = now.since(rates.at).as_millis();
            // A question in between must not make a rate out of a few milliseconds.
            if span < 1000 {
                continue;
            }
            let first = rates.at == Timestamp::default();
            rates.at = now;
            let ways = [(&mut rates.out, out, sent), (&mut rates.inward, inward, received)];
            for ((way, key, inside), by) in ways.into_iter().zip(by) {
                let (grown, used) = way.grow(self.passed.of(&key, inside), by);
                let bps = |octets: u64| {
                    let bps = (u128::from(octets) * 8000).checked_div(span).unwrap_or(0);
                    if first { 0 } else { u64::try_from(bps).unwrap_or(u64::MAX) }
                };
                (way.bps, way.used) = (bps(grown), (by != By::Tunnels).then(|| bps(used)));
            }
        }
    }

    /// Who counts what a level lets pass.
    fn counted_by(&self, key: &LevelKey) -> By {
        if self.level(key).bps.is_none() {
            By::Tunnels
        } else if self.is_queued(key) {
            By::Queue
        } else {
            By::Bucket
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> LevelKey {
        LevelKey::gateway("g")
    }

    fn passed(queues: &[(u32, u64)], bucket: Option<u64>) -> Passed {
        Passed {
            queues: queues.iter().map(|(link, octets)| (("g".to_owned(), *link), *octets)).collect(),
            buckets: bucket.map(|octets| (key(), octets)).into_iter().collect(),
        }
    }

    #[test]
    fn a_rate_is_of_who_keeps_the_level_and_of_the_tunnels_without_one() {
        let mut way = OneWay::default();
        way.grow(passed(&[(1, 100), (2, 50)], Some(7)).of(&key(), 1_000), By::Tunnels);
        let now = passed(&[(1, 130), (2, 51)], Some(9));
        assert_eq!(way.grow(now.of(&key(), 1_500), By::Queue), (500, 31), "of both interfaces");
        assert_eq!(way.grow(passed(&[], Some(19)).of(&key(), 1_600), By::Bucket), (100, 10));
        assert_eq!(way.grow(passed(&[], None).of(&key(), 1_700), By::Bucket), (100, 100), "nobody keeps it");
        assert_eq!(passed(&[(1, 1)], None).of(&key().inward(), 5).len(), 1, "queues are of what is sent");
        assert_eq!(passed(&[(1, 1)], None).of(&LevelKey::gateway("f"), 5).len(), 1);
    }

    #[test]
    fn a_counter_that_begins_anew_counts_from_nothing_and_a_tunnel_that_goes_takes_nothing() {
        let mut way = OneWay::default();
        way.grow(passed(&[(1, 100)], Some(100)).of(&key(), 1_000), By::Queue);
        let anew = passed(&[(1, 30), (3, 4)], Some(20));
        assert_eq!(way.grow(anew.of(&key(), 900), By::Queue), (0, 34));
        assert_eq!(way.grow(passed(&[], None).of(&key(), 800), By::Tunnels), (0, 0));
    }
}
