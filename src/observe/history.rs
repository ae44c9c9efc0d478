//! The last events of each tunnel, for `cygnet logs`. Bounded by the configuration: a ring for each configured tunnel.

use std::collections::{BTreeMap, VecDeque};

use super::events::Event;

/// Events kept for a tunnel.
pub const PER_TUNNEL: usize = 200;

/// A ring of events for each tunnel.
#[derive(Clone, Default, Debug)]
pub struct History {
    rings: BTreeMap<String, VecDeque<Event>>,
}

impl History {
    /// Takes over the names of the configured tunnels; events of tunnels that are gone are forgotten.
    pub fn configure<'a>(&mut self, tunnels: impl IntoIterator<Item = &'a str>) {
        let mut old = std::mem::take(&mut self.rings);
        for name in tunnels {
            self.rings.insert(name.to_owned(), old.remove(name).unwrap_or_default());
        }
    }

    /// Keeps an event that is about a configured tunnel.
    pub fn record(&mut self, event: &Event) {
        let Some(ring) = event.tunnel.as_ref().and_then(|name| self.rings.get_mut(name)) else { return };
        if ring.len() == PER_TUNNEL {
            ring.pop_front();
        }
        ring.push_back(event.clone());
    }

    /// A tunnel's events from `since` (seconds since 1970) on, oldest first; `None` if there is no such tunnel.
    pub fn of(&self, tunnel: &str, since: u64) -> Option<Vec<Event>> {
        Some(self.rings.get(tunnel)?.iter().filter(|e| e.unix >= since).cloned().collect())
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
        for n in 0..1000 {
            h.record(&Event::new(n, Kind::TunnelUp, "").tunnel("a"));
            h.record(&Event::new(n, Kind::TunnelUp, "").tunnel("stranger"));
        }
        h.configure(["a", "c"]);
        assert_eq!(h.of("a", 0).unwrap().len(), PER_TUNNEL);
        assert_eq!(h.of("a", 990).unwrap().len(), 10);
        assert_eq!(h.of("b", 0), None);
        assert_eq!(h.of("stranger", 0), None);
    }
}
