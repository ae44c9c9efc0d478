//! What two ends of a tunnel must agree on when it has been quiet for a while, and what must be left when nothing is up.

use std::collections::BTreeSet;

use cygnet_ike::policy::{ChildPolicy, TunnelPolicy};
use cygnet_ike::view::TunnelState;
use cygnet_model::selector::{PacketEnd, TrafficSelector, narrow, within};
use cygnet_model::{ChildId, TunnelId};

use crate::{Lab, TUNNEL};

/// One end of a tunnel: a gateway, and its number of the tunnel.
pub(crate) type End = (usize, TunnelId);

/// Ends a check with a sentence if something is not so.
macro_rules! ensure {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(format!($($words)+));
        }
    };
}
pub(crate) use ensure;

/// The pairs of networks, ours and the peer's, that two policies of a tunnel have in common for each of our children.
pub(crate) fn common<'a>(
    own: &'a TunnelPolicy,
    peer: &'a TunnelPolicy,
) -> impl Iterator<Item = (&'a ChildPolicy, Vec<(TrafficSelector, TrafficSelector)>)> {
    own.children.iter().map(|(_, own)| {
        let mut pairs = Vec::new();
        for (_, peer) in peer.children.iter() {
            let l = narrow(&own.local, &peer.remote, usize::MAX);
            let r = narrow(&own.remote, &peer.local, usize::MAX);
            pairs.extend(l.iter().flat_map(|l| r.iter().map(|r| (*l, *r))));
        }
        (own, pairs)
    })
}

impl Lab {
    /// What must hold whenever it has been quiet for a while: both ends hold the same SAs, each child once, and nothing
    /// else.
    pub fn assert_settled(&self, children: usize) {
        for side in 0..2 {
            let view = self.view(side);
            assert_eq!(view.children.len(), children, "seed {}: children of gateway {side}", self.seed);
            let open = self.gateways[side].plane.tunnels.len();
            assert_eq!(open, children, "seed {}: open tunnels of gateway {side}", self.seed);
        }
        self.assert_consistent();
    }

    /// The same, however many children there are: parts of one that crossed may stay beside it.
    pub fn assert_consistent(&self) {
        let seed = self.seed;
        let agreed = self.agree([(0, TUNNEL), (1, TUNNEL)]);
        assert!(agreed.is_ok(), "seed {seed}: {agreed:?}");
        for side in 0..2 {
            let own = &self.gateways[side];
            let view = self.view(side);
            let children = view.children.len();
            let open = view.children.iter().map(|c| c.id).collect::<BTreeSet<_>>().len();
            assert_eq!(own.endpoint.sa_count(), 1, "seed {seed}: IKE SAs of gateway {side}");
            assert_eq!(own.plane.sas.len(), 2 * children, "seed {seed}: {:?}", own.plane.sas.keys());
            assert_eq!(own.plane.tunnels.len(), open, "seed {seed}: open tunnels of gateway {side}");
            assert_eq!(own.endpoint.reserved(), (1, children), "seed {seed}: leaked SPIs at gateway {side}");
        }
    }

    /// Whether both ends of a tunnel have one IKE SA and the same pairs of SAs with the same keys, and nothing beside them.
    pub(crate) fn agree(&self, ends: [End; 2]) -> Result<(), String> {
        for ((side, tunnel), (other, _)) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let (own, peer) = (&self.gateways[side], &self.gateways[other]);
            let view =
                own.endpoint.view(tunnel).ok_or_else(|| format!("gateway {side} has no {tunnel:?}"))?;
            ensure!(view.state == TunnelState::Up, "{tunnel:?} of gateway {side} is {:?}", view.state);
            let ike = own.endpoint.spis_of(tunnel);
            ensure!(ike.len() == 1, "{tunnel:?} of gateway {side} has {} IKE SAs", ike.len());
            let sas = own.plane.sas.keys().filter(|sa| sa.child.tunnel == tunnel);
            let (sas, pairs) = (sas.count(), view.children.len());
            ensure!(sas == 2 * pairs, "{tunnel:?} of gateway {side} has {sas} SAs for {pairs} pairs");
            let ids: BTreeSet<ChildId> = view.children.iter().map(|c| c.id).collect();
            let open: BTreeSet<ChildId> =
                own.plane.tunnels.keys().copied().filter(|child| child.tunnel == tunnel).collect();
            ensure!(open == ids, "gateway {side} has {open:?} open and {ids:?} in use");
            for c in &view.children {
                let out = own.plane.outbound(c.id).ok_or_else(|| format!("{:?} has no way out", c.id))?;
                let inbound = peer.plane.inbound(out.id.spi);
                let inbound =
                    inbound.ok_or_else(|| format!("gateway {other} lacks {:?} of {side}", out.id))?;
                ensure!(inbound.encr_key.ct_eq(out.encr_key.expose()), "keys of {:?} differ", out.id);
                ensure!(inbound.inner_remote == out.inner_local, "selectors of {:?} differ", out.id);
                ensure!(inbound.suite == out.suite, "suites of {:?} differ", out.id);
            }
        }
        Ok(())
    }

    /// Whether a packet from the first address of `local` to that of `remote` gets from a gateway to another one.
    fn passes_to(&self, from: usize, to: usize, local: &TrafficSelector, remote: &TrafficSelector) -> bool {
        let (source, destination) = (first(local), first(remote));
        let Some(out) = self.gateways[from].plane.carrier(&source, &destination) else { return false };
        let Some(inbound) = self.gateways[to].plane.inbound(out.id.spi) else { return false };
        let inside = inbound.inner_remote.iter().any(|s| s.matches(&source))
            && inbound.inner_local.iter().any(|s| s.matches(&destination));
        inside && inbound.encr_key.ct_eq(out.encr_key.expose())
    }

    /// The same between two gateways.
    pub fn passes(&self, side: usize, local: &TrafficSelector, remote: &TrafficSelector) -> bool {
        self.passes_to(side, 1 - side, local, remote)
    }

    /// The reference: what two policies have in common passes, each pair of networks both ways, and nothing else is open.
    /// Each gateway's own account of its coverage says the same. To be asked when it has been quiet for a while.
    pub fn assert_coverage(&self, policies: &[TunnelPolicy; 2]) {
        let covered = self.cover([(0, &policies[0]), (1, &policies[1])]);
        assert!(covered.is_ok(), "seed {}: {covered:?}", self.seed);
        self.assert_inside(policies);
    }

    /// The same of one tunnel between any two gateways.
    pub(crate) fn cover(&self, ends: [(usize, &TunnelPolicy); 2]) -> Result<(), String> {
        for ((side, ours), (other, theirs)) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let (mut whole, mut all) = (0, 0);
            for (own, common) in common(ours, theirs) {
                all += own.local.len() * own.remote.len();
                let configured = |(l, r): &&(_, _)| own.local.contains(l) && own.remote.contains(r);
                whole += common.iter().filter(configured).count();
                // Of thousands of pairs that look alike a few tell as much as all.
                for (l, r) in common.iter().step_by(1 + common.len() / 64) {
                    let passes = self.passes_to(side, other, l, r);
                    ensure!(passes, "{l} -> {r} of {} does not pass at {side}", ours.name);
                }
                let some = |all: &'_ [TrafficSelector]| all.iter().take(8).copied().collect::<Vec<_>>();
                for (l, r) in
                    some(&own.local).iter().flat_map(|l| some(&own.remote).into_iter().map(move |r| (l, r)))
                {
                    let agreed =
                        common.iter().any(|(a, b)| l.intersect(a).is_some() && r.intersect(b).is_some());
                    let passes = !agreed && self.passes_to(side, other, l, &r);
                    ensure!(!passes, "{l} -> {r} passes at {side}, which the other end does not allow");
                }
            }
            let view = self.gateways[side].endpoint.view(ours.id).ok_or("no view")?;
            let said = (view.coverage.covered, view.coverage.pairs);
            ensure!(said == (whole, all), "{} of gateway {side}: {:?}", ours.name, view.coverage);
        }
        Ok(())
    }

    /// At any moment: no tunnel is open for more than its gateway's configuration protects.
    pub fn assert_inside(&self, policies: &[TunnelPolicy; 2]) {
        for (side, policy) in policies.iter().enumerate() {
            let inside = self.inside(side, std::slice::from_ref(policy));
            assert!(inside.is_ok(), "seed {}: {inside:?}", self.seed);
        }
    }

    /// The same of a gateway with several tunnels.
    pub(crate) fn inside(&self, side: usize, policies: &[TunnelPolicy]) -> Result<(), String> {
        for t in self.gateways[side].plane.tunnels.values() {
            let fits = |c: &ChildPolicy| within(&t.local, &c.local) && within(&t.remote, &c.remote);
            let policy = policies.iter().find(|p| p.id == t.child.tunnel);
            ensure!(
                policy.is_some_and(|p| p.children.iter().any(|(_, c)| fits(c))),
                "{t:?} of gateway {side} is wider than its rules"
            );
        }
        Ok(())
    }

    /// What must hold when nothing is up: no SA, no timer that keeps one, nothing in the data plane.
    pub fn assert_gone(&self, side: usize) {
        let g = &self.gateways[side];
        assert_eq!(g.endpoint.sa_count(), 0, "seed {}: IKE SAs of gateway {side}", self.seed);
        assert_eq!(g.endpoint.reserved(), (0, 0), "seed {}: SPIs of gateway {side}", self.seed);
        assert_eq!(g.endpoint.parts(), 0, "seed {}: numbers of parts at gateway {side}", self.seed);
        assert!(g.plane.sas.is_empty() && g.plane.tunnels.is_empty(), "seed {}: {side}", self.seed);
    }
}

/// The first address of a selector, as the end of a packet.
pub(crate) fn first(s: &TrafficSelector) -> PacketEnd {
    PacketEnd {
        addr: s.range.start(),
        protocol: if s.protocol == 0 { 17 } else { s.protocol },
        port: Some(s.ports.0),
    }
}
