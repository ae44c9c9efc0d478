//! Which inner addresses may carry how much: what the threads of a data plane read, as a value that costs little to
//! change and to publish.

use std::collections::HashMap;
use std::sync::Arc;

use cygnet_model::TunnelId;
use cygnet_model::tunnel::Direction;

use super::bucket::Bucket;
use super::level::TunnelLevels;
use super::{GatewayNo, Inner};

/// What an inner address may carry; without one, as much as there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cap {
    /// So many bits per second in each direction.
    Rate(u64),
    /// Nothing.
    Block,
}

/// The cap of one address, with what it has used of it.
#[derive(Debug)]
pub struct Capped {
    cap: Cap,
    inbound: Bucket,
    outbound: Bucket,
}

impl Capped {
    /// What it may carry.
    pub const fn cap(&self) -> Cap {
        self.cap
    }

    /// Whether a packet of so many octets passes now.
    pub fn admits(&self, direction: Direction, bytes: u64, now_ns: u64) -> bool {
        let bucket = match direction {
            Direction::In => &self.inbound,
            Direction::Out => &self.outbound,
        };
        match self.cap {
            Cap::Rate(bps) => bucket.take(bps, bytes, now_ns),
            Cap::Block => false,
        }
    }
}

/// A cap that changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CapChange {
    /// Of which address.
    pub who: Inner,
    /// What it was.
    pub old: Option<Cap>,
    /// What it is.
    pub new: Option<Cap>,
}

/// Caps are split into parts, so that a change copies one part only.
const PARTS: usize = 64;
type Part = HashMap<Inner, Arc<Capped>>;

/// Whose packets are whose, and the caps.
#[derive(Clone, Debug)]
pub struct Rules {
    gateways: Arc<HashMap<TunnelId, GatewayNo>>,
    levels: Arc<HashMap<TunnelId, Arc<TunnelLevels>>>,
    caps: Vec<Arc<Part>>,
    count: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self { gateways: Arc::default(), levels: Arc::default(), caps: vec![Arc::default(); PARTS], count: 0 }
    }
}

impl Rules {
    /// Says which gateway each tunnel belongs to. Packets of other tunnels are neither counted nor limited.
    pub fn follow_gateways(&mut self, gateways: HashMap<TunnelId, GatewayNo>) {
        self.gateways = Arc::new(gateways);
    }

    /// Says which levels packets of each tunnel have to pass.
    pub fn follow_levels(&mut self, levels: HashMap<TunnelId, Arc<TunnelLevels>>) {
        self.levels = Arc::new(levels);
    }

    /// The levels that packets of a tunnel have to pass.
    pub fn levels(&self, tunnel: TunnelId) -> Option<&Arc<TunnelLevels>> {
        self.levels.get(&tunnel)
    }

    /// The gateway of a tunnel.
    pub fn gateway(&self, tunnel: TunnelId) -> Option<GatewayNo> {
        self.gateways.get(&tunnel).copied()
    }

    /// The gateways of all tunnels.
    pub fn gateways(&self) -> &HashMap<TunnelId, GatewayNo> {
        &self.gateways
    }

    /// Caps an address, or frees it. What it has used of its rate goes on.
    pub fn set(&mut self, who: Inner, cap: Option<Cap>) {
        let Some(part) = self.caps.get_mut(part_of(&who)) else { return };
        let before = part.get(&who);
        if before.map(|capped| capped.cap) == cap {
            return;
        }
        let capped = cap.map(|cap| {
            let (inbound, outbound) =
                before.map(|old| (old.inbound.go_on(), old.outbound.go_on())).unwrap_or_default();
            Arc::new(Capped { cap, inbound, outbound })
        });
        let part = Arc::make_mut(part);
        let old = match capped {
            Some(capped) => {
                self.count += 1;
                part.insert(who, capped)
            }
            None => part.remove(&who),
        };
        self.count -= usize::from(old.is_some());
    }

    /// The cap of an address.
    pub fn cap(&self, who: &Inner) -> Option<&Arc<Capped>> {
        if self.count == 0 {
            return None;
        }
        self.caps.get(part_of(who))?.get(who)
    }

    /// All caps.
    pub fn caps(&self) -> impl Iterator<Item = (Inner, Cap)> + '_ {
        self.caps.iter().flat_map(|part| part.iter()).map(|(who, capped)| (*who, capped.cap))
    }

    /// Which caps are others than in an earlier value. What both share is not looked at.
    pub fn caps_since(&self, earlier: &Self) -> Vec<CapChange> {
        let mut changes = Vec::new();
        for (new, old) in self.caps.iter().zip(&earlier.caps).filter(|(new, old)| !Arc::ptr_eq(new, old)) {
            let cap = |part: &Part, who: &Inner| part.get(who).map(|capped| capped.cap);
            let gone = old.keys().filter(|who| !new.contains_key(who));
            for who in new.keys().chain(gone) {
                let (old, new) = (cap(old, who), cap(new, who));
                if old != new {
                    changes.push(CapChange { who: *who, old, new });
                }
            }
        }
        changes
    }

    /// Frees all addresses that `keep` does not know.
    pub fn retain(&mut self, keep: impl Fn(&Inner) -> bool) {
        let all = self.caps.iter().flat_map(|part| part.keys());
        let gone: Vec<Inner> = all.filter(|who| !keep(who)).copied().collect();
        gone.into_iter().for_each(|who| self.set(who, None));
    }

    /// How many addresses are capped.
    pub const fn count(&self) -> usize {
        self.count
    }
}

fn part_of(who: &Inner) -> usize {
    super::meter::fold(who.ip) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    use super::*;

    fn who(gateway: u32, n: u32) -> Inner {
        Inner { gateway: GatewayNo(gateway), ip: Ipv4Addr::from(0x0A01_0000 + n).into() }
    }

    #[test]
    fn a_cap_is_of_one_address_of_one_gateway_and_goes_again() {
        let mut rules = Rules::default();
        rules.set(who(1, 5), Some(Cap::Block));
        let blocked = |rules: &Rules, who| rules.cap(&who).is_some_and(|c| !c.admits(Direction::In, 1, 0));
        assert!(blocked(&rules, who(1, 5)));
        assert!(rules.cap(&who(2, 5)).is_none() && rules.cap(&who(1, 6)).is_none());
        let before = rules.clone();
        rules.set(who(1, 5), Some(Cap::Rate(1_000_000)));
        rules.set(who(1, 5), Some(Cap::Rate(1_000_000)));
        assert_eq!(rules.count(), 1);
        assert!(blocked(&before, who(1, 5)) && !blocked(&rules, who(1, 5)), "a snapshot stays as it is");
        rules.retain(|who| who.gateway != GatewayNo(1));
        assert_eq!(rules.count(), 0);
        rules.set(who(1, 5), None);
        assert_eq!(rules.count(), 0);
    }

    #[test]
    fn each_direction_has_the_whole_rate() {
        let mut rules = Rules::default();
        rules.set(who(1, 5), Some(Cap::Rate(8_000_000)));
        let used = |rules: &Rules, direction| {
            let cap = rules.cap(&who(1, 5)).unwrap();
            (0..1000).filter(|_| cap.admits(direction, 1_000, 0)).count()
        };
        assert_eq!(used(&rules, Direction::Out), used(&rules, Direction::In));
        // Saying a new rate again and again is no way around it.
        rules.set(who(1, 5), Some(Cap::Rate(8_000_001)));
        assert_eq!(used(&rules, Direction::Out), 0);
    }

    /// Each published on its own, as commands do it one by one. A machine under load has much more time than it takes.
    #[test]
    fn ten_thousand_caps_come_one_by_one_and_change() {
        let mut rules = Rules::default();
        let mut published = Vec::new();
        let began = Instant::now();
        for n in 0..10_000 {
            rules.set(who(1, n), Some(Cap::Rate(1_000_000)));
            published.push(rules.clone());
            published.truncate(1);
        }
        let added = began.elapsed();
        assert!(added < Duration::from_secs(10), "{added:?}");
        let began = Instant::now();
        (0..100).for_each(|n| rules.set(who(1, n), Some(Cap::Block)));
        let changed = began.elapsed();
        assert!(changed < Duration::from_secs(1), "{changed:?}");
        assert_eq!(rules.count(), 10_000);
    }
}
