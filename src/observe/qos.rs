//! Packets that bandwidth levels and limits of addresses dropped, put together from whoever keeps them: counts that never go
//! back while queues, tables and levels come and go.

use std::collections::BTreeMap;

use cygnet_model::tunnel::Direction;

/// Whose level or limit it was.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The gateway.
    pub gateway: String,
    /// What of it; a label of `cygnet_qos_drops_total`.
    pub class: &'static str,
    /// The tunnel and which way its packets went, if it was the tunnel's own.
    pub tunnel: Option<(String, Direction)>,
}

impl Place {
    /// Something of a gateway.
    pub fn of(gateway: impl Into<String>, class: &'static str) -> Self {
        Self { gateway: gateway.into(), class, tunnel: None }
    }
}

/// One count of somebody who keeps levels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Count {
    /// Whose.
    pub place: Place,
    /// Which of several of that place: an interface.
    pub part: u32,
    /// Packets dropped since it began to count.
    pub packets: u64,
}

/// See the [module](self).
#[derive(Clone, Default, Debug)]
pub struct QosDrops {
    classes: BTreeMap<(String, &'static str), u64>,
    tunnels: BTreeMap<(String, String, Direction), u64>,
    /// What each keeper said last.
    last: BTreeMap<&'static str, BTreeMap<(Place, u32), u64>>,
}

impl QosDrops {
    /// Takes all counts of a keeper. One that is less than the last time, or was not there, began anew.
    pub fn read(&mut self, keeper: &'static str, counts: impl IntoIterator<Item = Count>) {
        let before = self.last.remove(keeper).unwrap_or_default();
        let mut now = BTreeMap::new();
        for Count { place, part, packets } in counts {
            let key = (place, part);
            let seen = before.get(&key).copied().unwrap_or(0);
            let more = packets.checked_sub(seen).unwrap_or(packets);
            let place = &key.0;
            let class = self.classes.entry((place.gateway.clone(), place.class)).or_default();
            *class = class.saturating_add(more);
            if let Some((tunnel, direction)) = &place.tunnel {
                let of = (place.gateway.clone(), tunnel.clone(), *direction);
                let tunnel = self.tunnels.entry(of).or_default();
                *tunnel = tunnel.saturating_add(more);
            }
            now.insert(key, packets);
        }
        self.last.insert(keeper, now);
    }

    /// Forgets what is not configured any more.
    pub fn retain(&mut self, is_gateway: impl Fn(&str) -> bool, is_tunnel: impl Fn(&str, &str) -> bool) {
        self.classes.retain(|(gateway, _), _| is_gateway(gateway));
        self.tunnels.retain(|(gateway, tunnel, _), _| is_tunnel(gateway, tunnel));
    }

    /// Counts that go on from those of an earlier life: by place, and what each keeper had said last.
    pub fn resumed(
        totals: impl IntoIterator<Item = (Place, u64)>,
        last: impl IntoIterator<Item = (&'static str, Count)>,
    ) -> Self {
        let mut drops = Self::default();
        for (place, packets) in totals {
            match place.tunnel {
                Some((tunnel, way)) => drops.tunnels.insert((place.gateway, tunnel, way), packets),
                None => drops.classes.insert((place.gateway, place.class), packets),
            };
        }
        for (keeper, Count { place, part, packets }) in last {
            drops.last.entry(keeper).or_default().insert((place, part), packets);
        }
        drops
    }

    /// By gateway and class, and by tunnel, whose class says no more than its direction: what [`Self::resumed`] takes.
    pub fn totals(&self) -> impl Iterator<Item = (Place, u64)> {
        let classes = self.by_class().map(|(gateway, class, packets)| (Place::of(gateway, class), packets));
        let tunnels = self.by_tunnel().map(|(gateway, tunnel, way, packets)| {
            let class = if way == Direction::In { "tunnel_in" } else { "tunnel" };
            (Place { tunnel: Some((tunnel.to_owned(), way)), ..Place::of(gateway, class) }, packets)
        });
        classes.chain(tunnels)
    }

    /// What each keeper said last.
    pub fn last(&self) -> impl Iterator<Item = (&'static str, Count)> {
        self.last.iter().flat_map(|(keeper, counts)| {
            let count = |((place, part), packets): (&(Place, u32), &u64)| Count {
                place: place.clone(),
                part: *part,
                packets: *packets,
            };
            counts.iter().map(move |entry| (*keeper, count(entry)))
        })
    }

    /// Packets by gateway and class.
    pub fn by_class(&self) -> impl Iterator<Item = (&str, &'static str, u64)> {
        self.classes.iter().map(|((gateway, class), packets)| (gateway.as_str(), *class, *packets))
    }

    /// Packets by gateway, tunnel and direction.
    pub fn by_tunnel(&self) -> impl Iterator<Item = (&str, &str, Direction, u64)> {
        self.tunnels
            .iter()
            .map(|((gateway, tunnel, way), packets)| (gateway.as_str(), tunnel.as_str(), *way, *packets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(part: u32, packets: u64) -> Count {
        Count { place: Place::of("g", "gateway"), part, packets }
    }

    fn level(tunnel: &str, packets: u64) -> Count {
        let tunnel = Some((tunnel.to_owned(), Direction::In));
        Count { place: Place { tunnel, ..Place::of("g", "tunnel_in") }, part: 0, packets }
    }

    fn all(drops: &QosDrops) -> Vec<u64> {
        drops.by_class().map(|(.., packets)| packets).collect()
    }

    #[test]
    fn a_queue_that_goes_takes_nothing_away_and_counts_nothing_twice() {
        let mut drops = QosDrops::default();
        drops.read("queues", [queue(1, 100), queue(2, 50)]);
        assert_eq!(all(&drops), [150]);
        drops.read("queues", [queue(2, 51)]);
        assert_eq!(all(&drops), [151], "the first interface is gone");
        drops.read("queues", [queue(1, 7), queue(2, 3)]);
        assert_eq!(all(&drops), [161], "both were made anew");
    }

    #[test]
    fn tunnels_have_counts_of_their_own_which_add_up_to_their_class() {
        let mut drops = QosDrops::default();
        drops.read("levels", [level("a", 5), level("b", 6)]);
        drops.read("queues", [queue(1, 1)]);
        drops.read("levels", [level("b", 8)]);
        let tunnels: Vec<(&str, &str, Direction, u64)> = drops.by_tunnel().collect();
        assert_eq!(tunnels, [("g", "a", Direction::In, 5), ("g", "b", Direction::In, 8)]);
        assert_eq!(drops.by_class().collect::<Vec<_>>(), [("g", "gateway", 1), ("g", "tunnel_in", 13)]);
        drops.retain(|_| true, |_, tunnel| tunnel == "b");
        assert_eq!(drops.by_tunnel().count(), 1);
        assert_eq!(all(&drops), [1, 13]);
        drops.retain(|_| false, |_, _| false);
        assert_eq!((all(&drops), drops.by_tunnel().count()), (vec![], 0));
    }
}
