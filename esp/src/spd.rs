//! The outbound policy database (RFC 4301 §4.4.1): which child an inner packet belongs to.
//!
//! Policies are tried in the order of their children, as configured, and the first whose guard covers the packet
//! decides; a closed tunnel's packet never falls through to a later policy. To find the candidates without walking all
//! policies, the addresses are cut at every border of a remote selector, and each piece lists the policies that reach
//! into it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cygnet_model::ChildId;
use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::GuardAction;

use crate::engine::{Outbound, OuterPath};
use crate::error::DropReason;
use crate::inner::InnerHeader;
use crate::outbound::Admitted;

/// Selectors of both ends; every combination is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selectors {
    /// Our side.
    pub local: Vec<TrafficSelector>,
    /// The peer's side.
    pub remote: Vec<TrafficSelector>,
}

impl Selectors {
    /// How much they mean; see [`TrafficSelector::width`].
    pub(crate) fn width(&self) -> u32 {
        let widest = |all: &[TrafficSelector]| all.iter().map(TrafficSelector::width).max().unwrap_or(0);
        widest(&self.local) + widest(&self.remote)
    }

    fn cover(&self, inner: &InnerHeader) -> bool {
        let (source, destination) = (inner.source_end(), inner.destination_end());
        self.local.iter().any(|s| s.matches(&source)) && self.remote.iter().any(|s| s.matches(&destination))
    }
}

/// What is done with the packets of one child.
#[derive(Clone)]
pub struct Policy {
    /// The child.
    pub child: ChildId,
    /// What never leaves in clear text.
    pub guard: Selectors,
    /// While no tunnel is open.
    pub action: GuardAction,
    /// Its open tunnels, the narrowest first: one for the child as a whole, or one for each part that the peer took.
    pub open: Vec<Open>,
}

/// An open tunnel inside a guard.
#[derive(Clone)]
pub struct Open {
    /// What it carries.
    pub selectors: Selectors,
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

/// All policies, ready for lookup. Made anew when a policy changes, cheap to clone when only SAs do.
#[derive(Clone, Default)]
pub struct Spd {
    policies: Vec<Arc<Policy>>,
    index: Arc<Index>,
}

impl Spd {
    /// Takes policies in the order in which they shall be tried.
    pub fn new(policies: Vec<Arc<Policy>>) -> Self {
        let index = Arc::new(Index::new(&policies));
        Self { policies, index }
    }

    /// Puts `policy` in the place of the one for the same child. Its guard must be the same as before.
    pub(crate) fn replace(&mut self, policy: Arc<Policy>) {
        if let Some(place) = self.policies.iter_mut().find(|p| p.child == policy.child) {
            *place = policy;
        }
    }

    /// The way of an inner packet: an SA that admits it, and the outer addresses.
    pub fn route(&self, inner: &InnerHeader) -> Result<(Admitted<'_>, &OuterPath), Refusal> {
        let drop = |reason| Refusal { reason, acquire: None };
        let policy = self
            .index
            .candidates(inner.dst)
            .iter()
            .filter_map(|at| self.policies.get(*at as usize))
            .find(|policy| policy.guard.cover(inner))
            .ok_or(drop(DropReason::NoPolicy))?;
        let open = policy.open.iter().find(|open| open.selectors.cover(inner));
        let Some(outbound) = open.and_then(|open| open.outbound.as_ref()) else {
            let acquire = (policy.action == GuardAction::Acquire).then_some(policy.child);
            return Err(Refusal { reason: DropReason::NoSa, acquire });
        };
        Ok((outbound.sa.admit(inner).map_err(drop)?, &outbound.path))
    }
}

/// For each family, the pieces of the address space in ascending order: first address, and the policies that matter.
#[derive(Default)]
struct Index {
    v4: Vec<(u128, Box<[u32]>)>,
    v6: Vec<(u128, Box<[u32]>)>,
}

impl Index {
    fn new(policies: &[Arc<Policy>]) -> Self {
        Self { v4: pieces(policies, IpAddr::is_ipv4), v6: pieces(policies, IpAddr::is_ipv6) }
    }

    fn candidates(&self, addr: IpAddr) -> &[u32] {
        let pieces = if addr.is_ipv4() { &self.v4 } else { &self.v6 };
        let at = pieces.partition_point(|(start, _)| *start <= number(addr));
        at.checked_sub(1).and_then(|i| pieces.get(i)).map_or(&[], |(_, list)| list)
    }
}

fn pieces(policies: &[Arc<Policy>], family: fn(&IpAddr) -> bool) -> Vec<(u128, Box<[u32]>)> {
    // At each border: who begins and who ends there. A policy may have several overlapping selectors, so ends are
    // counted.
    let mut borders: BTreeMap<u128, Vec<(u32, i32)>> = BTreeMap::new();
    for (at, policy) in (0u32..).zip(policies) {
        for range in policy.guard.remote.iter().map(|s| s.range).filter(|r| family(&r.start())) {
            borders.entry(number(range.start())).or_default().push((at, 1));
            if let Some(after) = number(range.end()).checked_add(1) {
                borders.entry(after).or_default().push((at, -1));
            }
        }
    }
    let mut depth: BTreeMap<u32, i32> = BTreeMap::new();
    let mut active = BTreeSet::new();
    let mut out = Vec::with_capacity(borders.len());
    for (start, changes) in borders {
        for (at, change) in changes {
            let depth = depth.entry(at).or_default();
            *depth += change;
            if *depth > 0 {
                active.insert(at)
            } else {
                active.remove(&at)
            };
        }
        out.push((start, active.iter().copied().collect()));
    }
    out
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}
