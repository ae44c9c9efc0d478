//! Tunnels that share the flows of a rule (ECMP): which ones do, and by which of them a flow goes.
//!
//! Of the open tunnels that have the rule and the lowest weight, so that nothing but their numbers tells them apart, each
//! carries a part of the flows. A flow goes by the tunnel with the highest score for it (rendezvous hashing, Thaler and
//! Ravishankar 1998): it stays there while that tunnel does, whatever becomes of the others, and comes back to it.
//!
//! What a peer has narrowed is no common rule: only an entry beside a guard of its own tunnel with the same selectors
//! shares, so that no peer gets packets of another one by asking for less than it may.

use std::hash::{DefaultHasher, Hash, Hasher};

use cygnet_model::ChildId;
use cygnet_model::tunnel::MAX_SHARERS;

use super::{Entry, Layer, Spd, mix};
use crate::inner::InnerHeader;

impl Entry {
    fn is_of_tunnel(&self, other: &Self) -> bool {
        self.rank.child.tunnel == other.rank.child.tunnel
    }

    /// Whether nothing but the child decides between two entries for the same packets.
    fn is_level_with(&self, other: &Self) -> bool {
        self.pair == other.pair && self.rank.is_equal_but_for_child(&other.rank)
    }
}

/// Notes which entries of a place share, after one has come or gone. They are sorted by rank.
pub(super) fn find(entries: &mut [Entry]) {
    entries.iter_mut().for_each(|entry| entry.shares = false);
    let is_tunnel = |entry: &&Entry| entry.rank.layer == Layer::Tunnel;
    if entries.iter().filter(is_tunnel).nth(1).is_none() {
        return;
    }
    let has_rule = |entry: &Entry| {
        let mut guards = entries.iter().filter(|guard| guard.rank.layer == Layer::Guard);
        guards.any(|guard| guard.pair == entry.pair && guard.is_of_tunnel(entry))
    };
    // Of several children of one tunnel the first one carries, as everywhere.
    let is_first = |at: usize, entry: &Entry| {
        let mut before = entries.iter().take(at);
        !before.any(|other| other.is_level_with(entry) && other.is_of_tunnel(entry))
    };
    let able: Vec<Entry> = (entries.iter().enumerate())
        .filter(|(at, entry)| is_tunnel(entry) && has_rule(entry) && is_first(*at, entry))
        .map(|(_, entry)| *entry)
        .collect();
    for entry in entries.iter_mut() {
        let mut level = able.iter().filter(|other| other.is_level_with(entry));
        entry.shares = level.clone().any(|other| other.rank.child == entry.rank.child)
            && level.any(|other| !other.is_of_tunnel(entry));
    }
}

impl Spd {
    /// The child by which a packet goes that several share; the first one if none of them has an SA. `first` is the entry that
    /// decides about it, and `behind` are those behind it in its place.
    #[inline(never)]
    pub(super) fn share(&self, first: &Entry, behind: &[Entry], inner: &InnerHeader) -> ChildId {
        let flow = self.flow(inner);
        let entries = std::iter::once(first).chain(behind);
        let level = entries.take_while(|entry| entry.rank.is_equal_but_for_child(&first.rank));
        let sharers = level.filter(|entry| entry.shares && entry.pair == first.pair).take(MAX_SHARERS);
        let mut best = None;
        for child in sharers.map(|entry| entry.rank.child) {
            // By the tunnel: its children change with its keys.
            let score = mix::mix(flow, u128::from(child.tunnel.0));
            if best.is_none_or(|(highest, _)| score > highest) && self.has_sa(child) {
                best = Some((score, child));
            }
        }
        best.map_or(first.rank.child, |(_, child)| child)
    }

    fn has_sa(&self, child: ChildId) -> bool {
        self.policy(child).is_some_and(|policy| policy.outbound.is_some())
    }

    /// The number of a packet's flow. Parts of a datagram have none but that of their addresses, all of them: only the first
    /// one shows ports, and in IPv6 they may show different protocols.
    fn flow(&self, inner: &InnerHeader) -> u64 {
        let mut number = DefaultHasher::new();
        (self.seed, inner.src, inner.dst).hash(&mut number);
        if !inner.fragment {
            (inner.protocol, inner.flow_ports()).hash(&mut number);
        }
        number.finish()
    }
}

#[cfg(test)]
mod tests;
