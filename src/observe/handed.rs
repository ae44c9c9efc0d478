//! What one life of the daemon has counted of the host, as it hands it over to the next one. What tunnels count is kept by itself
//! ([`super::tunnel_counters::Tally`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use cygnet_model::tunnel::Direction;
use serde::{Deserialize, Serialize};

use super::counters::{Cookies, Counters, RTT_BOUNDS};
use super::qos::{Count, Place, QosDrops};

/// Addresses of which it is handed over what they carried, at most.
pub const ADDRESSES: usize = 4096;
/// Labels of `cygnet_qos_drops_total`.
const CLASSES: [&str; 6] = ["gateway", "gateway_cap", "gateway_in", "tunnel", "tunnel_in", "ip"];
/// Who keeps levels and limits.
const KEEPERS: [&str; 3] = ["queues", "levels", "ips"];

/// See the [module](self).
#[derive(Clone, PartialEq, Default, Serialize, Deserialize, Debug)]
#[serde(default)]
pub struct Handed {
    retransmits: u64,
    /// Demanded and returned.
    cookies: (u64, u64),
    rtt: ([u64; RTT_BOUNDS.len() + 1], f64),
    ike_dropped: BTreeMap<String, u64>,
    plane_drops: BTreeMap<String, u64>,
    drops: Vec<Drops>,
    /// What each keeper of levels had said last.
    read: Vec<(String, u32, Drops)>,
    /// By gateway: octets and packets to an address, from it, and packets that its limit dropped.
    pub addresses: BTreeMap<String, Vec<(IpAddr, [u64; 5])>>,
}

/// Packets that were dropped in one place.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
struct Drops {
    gateway: String,
    class: String,
    /// The tunnel, and whether inwards.
    tunnel: Option<(String, bool)>,
    packets: u64,
}

impl Drops {
    fn of(place: &Place, packets: u64) -> Self {
        let tunnel = place.tunnel.as_ref().map(|(name, way)| (name.clone(), *way == Direction::In));
        Self { gateway: place.gateway.clone(), class: place.class.to_owned(), tunnel, packets }
    }

    fn place(&self) -> Option<Place> {
        let class = CLASSES.into_iter().find(|class| *class == self.class)?;
        let way = |inward: bool| if inward { Direction::In } else { Direction::Out };
        let tunnel = self.tunnel.as_ref().map(|(name, inward)| (name.clone(), way(*inward)));
        Some(Place { tunnel, ..Place::of(&*self.gateway, class) })
    }
}

impl Handed {
    /// What these have counted; `addresses` are for the caller to fill.
    pub fn of(counters: &Counters) -> Self {
        let named = |counts: &BTreeMap<&'static str, u64>| {
            counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let drops = counters.qos_drops.totals();
        let read = counters.qos_drops.last();
        Self {
            retransmits: counters.retransmits,
            cookies: (counters.cookies.demanded, counters.cookies.returned),
            rtt: (counters.rtt.buckets, counters.rtt.sum),
            ike_dropped: named(&counters.ike_dropped),
            plane_drops: named(&counters.plane_drops),
            drops: drops.map(|(place, packets)| Drops::of(&place, packets)).collect(),
            read: read
                .map(|(keeper, c)| (keeper.to_owned(), c.part, Drops::of(&c.place, c.packets)))
                .collect(),
            addresses: BTreeMap::new(),
        }
    }

    /// Lets counters that have counted nothing yet go on from here. Names that this version does not know are left out.
    pub fn resume(&self, counters: &mut Counters, plane_reasons: impl Iterator<Item = &'static str>) {
        counters.retransmits = self.retransmits;
        counters.cookies = Cookies { demanded: self.cookies.0, returned: self.cookies.1 };
        (counters.rtt.buckets, counters.rtt.sum) = self.rtt;
        for (name, count) in &self.ike_dropped {
            if let Some(known) = counters.ike_dropped.get_mut(name.as_str()) {
                *known = *count;
            }
        }
        counters.plane_drops_before =
            plane_reasons.filter_map(|name| Some((name, *self.plane_drops.get(name)?))).collect();
        let totals = self.drops.iter().filter_map(|d| Some((d.place()?, d.packets)));
        let last = self.read.iter().filter_map(|(keeper, part, d)| {
            let keeper = KEEPERS.into_iter().find(|known| known == keeper)?;
            Some((keeper, Count { place: d.place()?, part: *part, packets: d.packets }))
        });
        counters.qos_drops = QosDrops::resumed(totals, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(class: &'static str, tunnel: Option<&str>, packets: u64) -> Count {
        let tunnel = tunnel.map(|name| (name.to_owned(), Direction::In));
        Count { place: Place { tunnel, ..Place::of("g", class) }, part: 3, packets }
    }

    #[test]
    fn the_next_life_counts_on() {
        let mut first = Counters::default();
        first.retransmits = 7;
        first.cookies.returned = 5;
        first.rtt.observe(std::time::Duration::from_millis(3));
        first.ike_dropped.insert("unknown_peer", 9);
        first.plane_drops.insert("replay", 11);
        first.qos_drops.read("queues", [count("gateway", None, 40)]);
        first.qos_drops.read("levels", [count("tunnel_in", Some("a-b"), 50)]);
        let text = serde_json::to_string(&Handed::of(&first)).unwrap();
        let handed: Handed = serde_json::from_str(&text).unwrap();
        assert_eq!(handed, Handed::of(&first));

        let mut next = Counters::default();
        next.ike_dropped.insert("unknown_peer", 0);
        handed.resume(&mut next, ["replay", "policy"].into_iter());
        assert_eq!((next.retransmits, next.cookies.returned, next.ike_dropped["unknown_peer"]), (7, 5, 9));
        assert_eq!(next.rtt.buckets, first.rtt.buckets);
        assert_eq!(next.plane_drops_before, [("replay", 11)].into());
        // The queue stands and has counted on; our own level begins anew.
        next.qos_drops.read("queues", [count("gateway", None, 41)]);
        next.qos_drops.read("levels", [count("tunnel_in", Some("a-b"), 2)]);
        assert_eq!(
            next.qos_drops.by_class().collect::<Vec<_>>(),
            [("g", "gateway", 41), ("g", "tunnel_in", 52)]
        );
        assert_eq!(next.qos_drops.by_tunnel().collect::<Vec<_>>(), [("g", "a-b", Direction::In, 52)]);
    }

    #[test]
    fn what_this_version_does_not_know_is_left_out() {
        let text = r#"{"later": 1, "ike_dropped": {"new": 4}, "plane_drops": {"new": 4},
            "drops": [{"gateway": "g", "class": "new", "tunnel": null, "packets": 1}],
            "read": [["new", 0, {"gateway": "g", "class": "ip", "tunnel": null, "packets": 1}]]}"#;
        let handed: Handed = serde_json::from_str(text).unwrap();
        let mut counters = Counters::default();
        handed.resume(&mut counters, ["replay"].into_iter());
        assert!(counters.ike_dropped.is_empty() && counters.plane_drops_before.is_empty());
        assert_eq!(counters.qos_drops.by_class().count(), 0);
        assert_eq!(counters.qos_drops.last().count(), 0);
    }
}
