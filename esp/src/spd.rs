//! The outbound policy database (RFC 4301 §4.4.1): which child an inner packet belongs to.
//!
//! Guards and open tunnels are entries of the same table. The narrowest entry that covers a packet decides, whatever it
//! is: a guard of 10.1.0.0/16 means that this network shall not go by the tunnel of 10.0.0.0/8 either. Among equally
//! narrow ones an open tunnel goes before a guard, then the lower weight, then the lower child; tunnels with the same rule
//! and the same weight share its flows (`share.rs`). A closed tunnel's packet never falls through to a wider one.
//!
//! To find it without walking all entries, they are sorted by their *shape* (the lengths of both prefixes; ranges are cut
//! into prefixes first), narrow shapes first. A look-up asks one hash table for each shape; a configuration has a handful
//! of shapes, however many tunnels it has.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::IpAddr;
use std::sync::Arc;

use cygnet_model::ChildId;
use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::GuardAction;

use self::mix::Mix;
use crate::engine::{Outbound, OuterPath};
use crate::error::DropReason;
use crate::inner::InnerHeader;
use crate::outbound::Admitted;
use crate::parts::Parts;

mod mix;
mod share;

/// Selectors of both ends; every combination is meant.
#[derive(Clone, Copy, Debug)]
pub struct Selectors<'a> {
    /// Our side.
    pub local: &'a [TrafficSelector],
    /// The peer's side.
    pub remote: &'a [TrafficSelector],
}

/// More pairs of prefixes than this are refused for one child.
pub const MAX_PAIRS: usize = 4096;

impl Selectors<'_> {
    /// The pairs of prefixes that selectors fall apart into; `None` if there are more than [`MAX_PAIRS`].
    fn pairs(&self) -> Option<Vec<(Shape, Key, Pair)>> {
        let mut out = Vec::new();
        for local in self.local {
            for remote in self.remote.iter().filter(|remote| remote.range.same_family(&local.range)) {
                let (sources, destinations) = (local.range.prefixes(), remote.range.prefixes());
                if out.len() + sources.len() * destinations.len() > MAX_PAIRS {
                    return None;
                }
                let pair = Pair { local: *local, remote: *remote };
                for (source, local_len) in sources {
                    out.extend(destinations.iter().map(|(destination, remote_len)| {
                        let shape = Shape::new(source.is_ipv6(), local_len, *remote_len);
                        (shape, (number(source), number(*destination)), pair)
                    }));
                }
            }
        }
        Some(out)
    }
}

/// One local and one remote selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pair {
    local: TrafficSelector,
    remote: TrafficSelector,
}

impl Pair {
    fn covers(&self, inner: &InnerHeader) -> bool {
        self.local.matches(&inner.source_end()) && self.remote.matches(&inner.destination_end())
    }
}

/// What an entry stands for; those that come first win among equally narrow ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Layer {
    /// While a tunnel is open.
    Tunnel,
    /// While the child is configured.
    Guard,
}

/// Where an entry stands among those with prefixes of the same length: lower wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Rank {
    any_protocol: bool,
    ports: u32,
    layer: Layer,
    weight: u16,
    child: ChildId,
}

impl Rank {
    /// Whether nothing but the child decides between two.
    fn is_equal_but_for_child(&self, other: &Self) -> bool {
        Self { child: other.child, ..*self } == *other
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    rank: Rank,
    pair: Pair,
    /// Whether it shares the flows of its pair with entries of other tunnels; kept by [`share::find`].
    shares: bool,
}

impl Entry {
    fn new(layer: Layer, child: ChildId, weight: u16, pair: Pair) -> Self {
        Self { rank: rank(layer, child, weight, &pair), pair, shares: false }
    }
}

/// Lengths of both prefixes. Ordered from narrow to wide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Shape {
    free_bits: u16,
    v6: bool,
    local_len: u8,
    remote_len: u8,
}

impl Shape {
    fn new(v6: bool, local_len: u8, remote_len: u8) -> Self {
        let both = if v6 { 256 } else { 64 };
        let free_bits = both - u16::from(local_len) - u16::from(remote_len);
        Self { free_bits, v6, local_len, remote_len }
    }
}

/// Both networks of a pair of prefixes, their bits at the top.
type Key = (u128, u128);
type Places = HashMap<Key, Vec<Entry>, BuildHasherDefault<Mix>>;

/// What is done with the packets of one child.
#[derive(Clone)]
pub struct Policy {
    /// While no tunnel is open.
    pub action: GuardAction,
    /// The newest outbound SA.
    pub outbound: Option<Arc<Outbound>>,
}

/// A packet that stays here, and the child that would like to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: DropReason,
    /// The child to be opened for it, if its guard wishes so.
    pub acquire: Option<ChildId>,
}

/// All entries, ready for lookup. Cheap to clone; a change copies a small part.
#[derive(Clone, Default)]
pub struct Spd {
    shapes: Vec<(Shape, Parts<Places>)>,
    policies: Parts<HashMap<ChildId, Policy>>,
    /// By this flows get their numbers.
    seed: u128,
}

impl Spd {
    /// An empty one. `seed`: what nobody outside knows, so that nobody can tell by which of several tunnels a flow goes.
    pub(crate) fn seeded(seed: u128) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Whether selectors can be entered: they do not fall apart into too many prefixes.
    pub(crate) fn accepts(selectors: Selectors<'_>) -> bool {
        selectors.pairs().is_some()
    }

    /// Enters the selectors of a child; those that [`Self::accepts`] refuses are not entered.
    pub(crate) fn enter(&mut self, layer: Layer, child: ChildId, weight: u16, selectors: Selectors<'_>) {
        for (shape, key, pair) in selectors.pairs().unwrap_or_default() {
            let at = match self.shapes.binary_search_by_key(&shape, |(shape, _)| *shape) {
                Ok(at) => at,
                Err(at) => {
                    self.shapes.insert(at, (shape, Parts::default()));
                    at
                }
            };
            let parts = self.shapes.get_mut(at).map(|(_, parts)| parts);
            let Some(part) = parts.and_then(|parts| parts.get_mut(part_of(key))) else { continue };
            let entries = part.entry(key).or_default();
            let entry = Entry::new(layer, child, weight, pair);
            let at = entries.partition_point(|e| e.rank < entry.rank);
            if entries.is_empty() {
                // Most networks have one owner.
                entries.reserve_exact(1);
            }
            entries.insert(at, entry);
            share::find(entries);
        }
    }

    /// Takes back what [`Self::enter`] entered with the same arguments.
    pub(crate) fn withdraw(&mut self, layer: Layer, child: ChildId, weight: u16, selectors: Selectors<'_>) {
        for (shape, key, pair) in selectors.pairs().unwrap_or_default() {
            let Ok(at) = self.shapes.binary_search_by_key(&shape, |(shape, _)| *shape) else { continue };
            let parts = self.shapes.get_mut(at).map(|(_, parts)| parts);
            let Some(part) = parts.and_then(|parts| parts.get_mut(part_of(key))) else { continue };
            let Some(entries) = part.get_mut(&key) else { continue };
            let gone = Entry::new(layer, child, weight, pair);
            if let Some(at) = entries.iter().position(|e| e.rank == gone.rank && e.pair == gone.pair) {
                entries.remove(at);
                share::find(entries);
            }
            if entries.is_empty() {
                part.remove(&key);
            }
        }
        self.shapes.retain(|(_, parts)| parts.iter().any(|part| !part.is_empty()));
    }

    /// Sets what is done with a child's packets, or forgets the child.
    pub(crate) fn set_policy(&mut self, child: ChildId, policy: Option<Policy>) {
        let Some(part) = self.policies.get_mut(child.tunnel.0.into()) else { return };
        match policy {
            Some(policy) => part.insert(child, policy),
            None => part.remove(&child),
        };
    }

    fn policy(&self, child: ChildId) -> Option<&Policy> {
        self.policies.get(child.tunnel.0.into())?.get(&child)
    }

    /// The way of an inner packet: an SA that admits it, and the outer addresses.
    pub fn route(&self, inner: &InnerHeader) -> Result<(Admitted<'_>, &OuterPath), Refusal> {
        let drop = |reason| Refusal { reason, acquire: None };
        let (first, behind) = self.decisive(inner).ok_or(drop(DropReason::NoPolicy))?;
        let rank = &first.rank;
        let child = if first.shares { self.share(first, behind, inner) } else { rank.child };
        let policy = self.policy(child);
        let open = policy.filter(|_| rank.layer == Layer::Tunnel).map(|policy| policy.outbound.as_ref());
        let Some(outbound) = open.and_then(|own| own.or_else(|| self.successor(child, behind, inner))) else {
            let asks = policy.is_some_and(|policy| policy.action == GuardAction::Acquire);
            return Err(Refusal { reason: DropReason::NoSa, acquire: asks.then_some(child) });
        };
        Ok((outbound.sa.admit(inner).map_err(drop)?, &outbound.path))
    }

    /// What carries a packet of a child that is open and has no SA: another child of the same tunnel that has the same networks. A rule
    /// that the configuration has written anew is another child, and the last SA of the old one goes before that is closed.
    #[cold]
    fn successor(&self, child: ChildId, behind: &[Entry], inner: &InnerHeader) -> Option<&Arc<Outbound>> {
        let beside = |e: &&Entry| e.rank.layer == Layer::Tunnel && e.rank.child.tunnel == child.tunnel;
        let mut fit = behind.iter().filter(beside).filter(|entry| entry.pair.covers(inner));
        fit.find_map(|entry| self.policy(entry.rank.child)?.outbound.as_ref())
    }

    /// The way of an inner packet by one child, whatever other child claims such packets as well.
    pub fn route_by(
        &self,
        child: ChildId,
        inner: &InnerHeader,
    ) -> Result<(Admitted<'_>, &OuterPath), DropReason> {
        let outbound =
            self.policy(child).and_then(|policy| policy.outbound.as_ref()).ok_or(DropReason::NoSa)?;
        Ok((outbound.sa.admit(inner)?, &outbound.path))
    }

    /// The entry that decides about a packet, and those behind it in its place.
    fn decisive(&self, inner: &InnerHeader) -> Option<(&Entry, &[Entry])> {
        let (source, destination) = (number(inner.src), number(inner.dst));
        let v6 = inner.dst.is_ipv6();
        let mut best: Option<(u16, &Entry, &[Entry])> = None;
        for (shape, parts) in self.shapes.iter().filter(|(shape, _)| shape.v6 == v6) {
            if best.is_some_and(|(free_bits, ..)| free_bits < shape.free_bits) {
                break;
            }
            let key = (masked(source, shape.local_len), masked(destination, shape.remote_len));
            let Some(entries) = parts.get(part_of(key)).and_then(|part| part.get(&key)) else { continue };
            let mut behind = entries.iter();
            let Some(entry) = behind.find(|entry| entry.pair.covers(inner)) else { continue };
            if best.is_none_or(|(_, best, _)| entry.rank < best.rank) {
                best = Some((shape.free_bits, entry, behind.as_slice()));
            }
        }
        best.map(|(_, entry, behind)| (entry, behind))
    }
}

fn rank(layer: Layer, child: ChildId, weight: u16, pair: &Pair) -> Rank {
    let span = |selector: &TrafficSelector| {
        let (first, last) = selector.ports;
        u32::from(last.saturating_sub(first))
    };
    Rank {
        any_protocol: pair.local.protocol == 0 && pair.remote.protocol == 0,
        ports: span(&pair.local) + span(&pair.remote),
        layer,
        weight,
        child,
    }
}

fn part_of((source, destination): Key) -> u64 {
    // The bits that prefixes keep are at the top.
    mix::mix(mix::mix(0, source), destination)
}

/// The address with its bits at the top.
fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
        IpAddr::V6(a) => u128::from(a),
    }
}

fn masked(address: u128, len: u8) -> u128 {
    if len == 0 { 0 } else { address & (u128::MAX << (128 - u32::from(len.min(128)))) }
}
