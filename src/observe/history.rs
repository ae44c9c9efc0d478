//! The last events of each tunnel, for `cygnet logs`, and of everything, for `cygnet events --since`. Bounded by the
//! configuration: a ring for each configured tunnel, and one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use cygnet_model::Timestamp;

use super::events::Event;

/// Events kept for a tunnel, at most and, of many tunnels, at least.
pub const PER_TUNNEL: (usize, usize) = (200, 10);

/// Events kept for all tunnels together, about 35 MB, if each has no more than the least.
pub const OF_TUNNELS: usize = 100_000;

/// Events kept of everything.
pub const OF_ALL: usize = 2000;

/// A ring of events for each tunnel. How old an event is does not depend on the wall clock, which may have been set since.
#[derive(Clone, Default, Debug)]
pub struct History {
    rings: BTreeMap<String, Ring>,
    all: Ring,
    /// How many events a tunnel's ring holds.
    each: usize,
}

/// Events with their moments, oldest first. An event stands in two of them and is there once.
type Ring = VecDeque<(Timestamp, Arc<Event>)>;

fn push(ring: &mut Ring, room: usize, at: Timestamp, event: &Arc<Event>) {
    let beyond = (ring.len() + 1).saturating_sub(room);
    ring.drain(..beyond.min(ring.len()));
    ring.push_back((at, Arc::clone(event)));
}

impl History {
    /// Takes over the names of the configured tunnels; events of tunnels that are gone are forgotten.
    pub fn configure<'a>(&mut self, tunnels: impl IntoIterator<Item = &'a str>) {
        let mut old = std::mem::take(&mut self.rings);
        for name in tunnels {
            self.rings.insert(name.to_owned(), old.remove(name).unwrap_or_default());
        }
        let (most, least) = PER_TUNNEL;
        self.each = (OF_TUNNELS / self.rings.len().max(1)).clamp(least, most);
    }

    /// Keeps an event of this moment; longer if it is about a configured tunnel.
    pub fn record(&mut self, at: Timestamp, event: &Arc<Event>) {
        push(&mut self.all, OF_ALL, at, event);
        if let Some(ring) = event.tunnel.as_ref().and_then(|name| self.rings.get_mut(name)) {
            push(ring, self.each, at, event);
        }
    }

    /// Events of some tunnels, or with no name those of everything, from `since` on, oldest first.
    pub fn recent(&self, tunnels: &[String], since: Timestamp) -> Vec<Event> {
        if tunnels.is_empty() {
            return self
                .all
                .iter()
                .filter(|(at, _)| *at >= since)
                .map(|(_, event)| Event::clone(event))
                .collect();
        }
        let names: BTreeSet<&String> = tunnels.iter().collect();
        let mut events: Vec<&(Timestamp, Arc<Event>)> = names
            .into_iter()
            .filter_map(|t| self.rings.get(t))
            .flatten()
            .filter(|(at, _)| *at >= since)
            .collect();
        // What happened in the same moment keeps its order.
        events.sort_by_key(|(at, event)| (*at, event.seq));
        events.into_iter().map(|(_, event)| Event::clone(event)).collect()
    }

    /// A tunnel's events from `since` on, oldest first; `None` if there is no such tunnel.
    pub fn of(&self, tunnel: &str, since: Timestamp) -> Option<Vec<Event>> {
        let ring = self.rings.get(tunnel)?.iter();
        Some(ring.filter(|(at, _)| *at >= since).map(|(_, event)| Event::clone(event)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::Kind;
    use super::*;

    #[test]
    fn rings_are_bounded_and_survive_a_reload() {
        let mut h = History::default();
        h.configure(["a", "b"]);
        let at = Timestamp::from_nanos;
        for n in 0..1000 {
            h.record(at(n), &Arc::new(Event::new(n, Kind::TunnelUp, "").tunnel("a")));
            h.record(at(n), &Arc::new(Event::new(n, Kind::TunnelUp, "").tunnel("stranger")));
        }
        h.configure(["a", "c"]);
        assert_eq!(h.of("a", at(0)).unwrap().len(), PER_TUNNEL.0);
        assert_eq!(h.of("a", at(990)).unwrap().len(), 10);
        assert_eq!(h.of("b", at(0)), None);
        assert_eq!(h.of("stranger", at(0)), None);
        assert_eq!(h.recent(&[], at(0)).len(), OF_ALL);
        assert_eq!(h.recent(&["a".into(), "a".into()], at(990)).len(), 10);
    }

    #[test]
    fn of_many_tunnels_each_keeps_fewer() {
        let mut h = History::default();
        let at = Timestamp::from_nanos;
        let names: Vec<String> = (0..10_000).map(|n| format!("t{n}")).collect();
        let mut kept = |tunnels: usize| {
            h.configure(names.iter().take(tunnels).map(String::as_str));
            for n in 0..1000 {
                h.record(at(n), &Arc::new(Event::new(n, Kind::TunnelUp, "").tunnel("t0")));
            }
            h.of("t0", at(0)).unwrap().len()
        };
        assert_eq!(kept(500), 200);
        assert_eq!(kept(2000), 50);
        assert_eq!(kept(10_000), 10);
        assert_eq!(kept(1), 200, "and more again when there are fewer");
    }

    #[test]
    fn an_event_is_as_old_as_it_is_however_the_wall_clock_was_set() {
        let mut h = History::default();
        h.configure(["a"]);
        let at = Timestamp::from_nanos;
        // Set ahead by a day, and back by two.
        for (n, unix) in [(1, 1_000_000), (2, 1_086_400), (3, 913_600)] {
            h.record(at(n), &Arc::new(Event::new(unix, Kind::TunnelUp, "").tunnel("a")));
        }
        let of = |since| h.of("a", at(since)).unwrap().iter().map(|e| e.unix).collect::<Vec<_>>();
        assert_eq!(of(0), [1_000_000, 1_086_400, 913_600]);
        assert_eq!(of(2), [1_086_400, 913_600]);
        assert_eq!(of(3), [913_600]);
    }
}
