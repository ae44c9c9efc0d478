//! What the console remembers: the rates of gateways and tunnels of the last while, and the last events. Bounded by the
//! configuration, and gone with the process.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use cygnet_model::Timestamp;
use serde::Serialize;

use crate::observe::Published;
use crate::observe::counters::Counters;
use crate::observe::events::Event;

/// Points of a gateway: an hour of samples of five seconds.
const GATEWAY_POINTS: usize = 720;
/// Points of a tunnel: ten minutes, 1.5 KiB.
const TUNNEL_POINTS: usize = 120;
/// Events that are kept.
const EVENTS: usize = 500;
/// Samples that are further apart than this, in seconds, have a gap between them: a mean over it would be made up.
const GAP_S: f64 = 20.0;

/// What passed in the time before a moment.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Point {
    /// The moment, in seconds since 1970.
    pub at: u64,
    /// Bits a second received, as a mean over the time since the sample before.
    pub rx_bps: f32,
    /// Bits a second sent.
    pub tx_bps: f32,
}

/// Octets received and sent.
type Octets = (u64, u64);

#[derive(Default, Debug)]
struct Series {
    octets: Option<Octets>,
    points: VecDeque<Point>,
    /// Whether it was in the last sample.
    seen: bool,
}

impl Series {
    fn add(&mut self, at: u64, octets: Octets, span_s: Option<f64>, room: usize) {
        self.seen = true;
        let before = self.octets.replace(octets);
        let (Some(before), Some(span)) = (before, span_s) else { return };
        let rate = |now: u64, then: u64| (now.saturating_sub(then) as f64 * 8.0 / span) as f32;
        if self.points.len() >= room {
            self.points.pop_front();
        }
        let (rx_bps, tx_bps) = (rate(octets.0, before.0), rate(octets.1, before.1));
        self.points.push_back(Point { at, rx_bps, tx_bps });
    }
}

/// Whose rates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Of<'a> {
    /// A gateway's.
    Gateway(&'a str),
    /// A tunnel's.
    Tunnel(&'a str),
}

/// Rates and events.
#[derive(Default, Debug)]
pub struct Record {
    gateways: HashMap<String, Series>,
    tunnels: HashMap<String, Series>,
    sampled_at: Option<Timestamp>,
    events: VecDeque<Arc<Event>>,
}

impl Record {
    /// Takes a sample, if what is published has a new one. `now` is in seconds since 1970.
    pub fn sample(&mut self, published: &Published, now: u64) -> bool {
        let counters = &published.counters;
        if self.sampled_at == Some(counters.sampled_at) {
            return false;
        }
        let before = self.sampled_at.replace(counters.sampled_at);
        let span = before.map(|then| counters.sampled_at.since(then).as_secs_f64());
        let span = span.filter(|s| *s > 0.0 && *s <= GAP_S);
        self.take(counters, now, span);
        let known = |series: &mut HashMap<String, Series>| series.retain(|_, s| std::mem::take(&mut s.seen));
        known(&mut self.gateways);
        known(&mut self.tunnels);
        true
    }

    fn take(&mut self, counters: &Counters, now: u64, span: Option<f64>) {
        let mut sums: HashMap<&str, Octets> = HashMap::new();
        for (name, tunnel) in counters.tunnels.iter() {
            let totals = tunnel.totals();
            let octets = (totals.bytes_in, totals.bytes_out);
            let sum = sums.entry(tunnel.gateway.as_str()).or_default();
            *sum = (sum.0.saturating_add(octets.0), sum.1.saturating_add(octets.1));
            series(&mut self.tunnels, name).add(now, octets, span, TUNNEL_POINTS);
        }
        for (name, octets) in sums {
            series(&mut self.gateways, name).add(now, octets, span, GATEWAY_POINTS);
        }
    }

    /// The rates of the last while, oldest first; `None` if there is nothing of that name.
    pub fn rates(&self, of: Of<'_>) -> Option<Vec<Point>> {
        self.series(of).map(|s| s.points.iter().copied().collect())
    }

    /// The last rate.
    pub fn rate(&self, of: Of<'_>) -> Option<Point> {
        self.series(of).and_then(|s| s.points.back().copied())
    }

    fn series(&self, of: Of<'_>) -> Option<&Series> {
        match of {
            Of::Gateway(name) => self.gateways.get(name),
            Of::Tunnel(name) => self.tunnels.get(name),
        }
    }

    /// Keeps an event.
    pub fn note(&mut self, event: Arc<Event>) {
        if self.events.len() >= EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The last events, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().map(|e| &**e)
    }
}

fn series<'a>(all: &'a mut HashMap<String, Series>, name: &str) -> &'a mut Series {
    all.entry(name.to_owned()).or_default()
}

#[cfg(test)]
mod tests {
    use cygnet_model::plane::SaCounters;
    use cygnet_model::tunnel::{Direction, SaId};
    use cygnet_model::{ChildId, Spi, TunnelId};

    use super::*;

    fn sa() -> SaId {
        let child = ChildId { tunnel: TunnelId(1), index: 0 };
        SaId { child, direction: Direction::In, spi: Spi::new(4096).unwrap() }
    }

    fn published(record_at_s: u64, bytes: u64) -> Published {
        let mut p = Published::default();
        p.counters.configure([("g", "a"), ("g", "b")]);
        let counted = SaCounters { bytes, packets: bytes / 100, ..SaCounters::default() };
        p.counters.sample("a", sa(), counted);
        p.counters.sampled_at = Timestamp::from_nanos(record_at_s * 1_000_000_000);
        p
    }

    #[test]
    fn a_gateway_carries_what_its_tunnels_carry_and_nothing_is_made_up() {
        let mut record = Record::default();
        assert!(record.sample(&published(10, 0), 1010));
        assert_eq!(record.rate(Of::Tunnel("a")), None, "one sample makes no rate");
        assert!(record.sample(&published(15, 5000), 1015));
        assert!(!record.sample(&published(15, 9000), 1016), "the same sample twice");
        let point = Point { at: 1015, rx_bps: 8000.0, tx_bps: 0.0 };
        assert_eq!(record.rate(Of::Tunnel("a")), Some(point));
        assert_eq!(record.rate(Of::Gateway("g")), Some(point));
        assert_eq!(record.rate(Of::Tunnel("b")), Some(Point { rx_bps: 0.0, ..point }));
        // The daemon was away: what passed meanwhile has no moment.
        assert!(record.sample(&published(100, 50_000), 1100));
        assert_eq!(record.rates(Of::Tunnel("a")).unwrap(), [point]);
        assert_eq!(record.rates(Of::Tunnel("nobody")), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_goes_with_the_configuration() {
        let mut record = Record::default();
        for n in 0..1000 {
            record.sample(&published(5 * n, n), 5 * n);
        }
        assert_eq!(record.rates(Of::Tunnel("a")).unwrap().len(), TUNNEL_POINTS);
        assert_eq!(record.rates(Of::Gateway("g")).unwrap().len(), GATEWAY_POINTS);
        let mut other = Published::default();
        other.counters.configure([("h", "c")]);
        other.counters.sampled_at = Timestamp::from_nanos(u64::MAX / 2);
        record.sample(&other, 9000);
        assert_eq!((record.rates(Of::Tunnel("a")), record.rates(Of::Gateway("g"))), (None, None));
        for n in 0..2 * EVENTS as u64 {
            record.note(Arc::new(Event::new(n, crate::observe::events::Kind::Warning, "x")));
        }
        let first = record.events().next().map(|e| e.unix);
        assert_eq!((record.events().count(), first), (EVENTS, Some(EVENTS as u64)));
    }
}
