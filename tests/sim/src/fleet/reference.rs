//! The reference: what must be up, from the configurations, from who is alive and from what operators said, without a look
//! at the protocol.

use std::collections::BTreeSet;

use cygnet_ike::policy::{Start, TunnelPolicy};
use cygnet_model::{ChildId, TunnelId};

use super::plan::{Kind, Tunnel};
use super::{Fleet, Word};
use crate::agree::{End, common, ensure};

/// What becomes of a tunnel in fair weather.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shall {
    /// Everything that both ends have configured passes, and nothing else.
    BeUp,
    /// Neither end has any SA of it.
    BeDown,
    /// Nobody begins, but what was up stays.
    StayAsItIs,
}

impl Fleet {
    /// What must become of a tunnel.
    pub(super) fn shall(&self, t: &Tunnel) -> Shall {
        let [Some(a), Some(b)] = self.entries[t.number] else { return Shall::BeDown };
        let word = |end: usize| {
            let id = self.policy(t.ends[end], t)?.id;
            self.words.get(&(t.ends[end], id)).copied()
        };
        let begins = |end: usize, entry| t.start(end, entry) != Start::Passive || word(end) == Some(Word::Up);
        let held = (0..2).any(|end| word(end) == Some(Word::Down));
        match () {
            () if self.never(t) || held => Shall::BeDown,
            () if t.ends.iter().any(|end| !self.lab.gateways[*end].alive) => Shall::BeDown,
            () if begins(0, a) || begins(1, b) => Shall::BeUp,
            () => Shall::StayAsItIs,
        }
    }

    /// Whether nothing of it may be up at any moment, whatever happens.
    fn never(&self, t: &Tunnel) -> bool {
        match t.kind {
            Kind::Usual => false,
            Kind::BothWait => !self.roused.contains(&t.number),
            Kind::WrongKey => true,
        }
    }

    /// Whether everything is as it must be. To be asked when the weather has been fair for some minutes.
    pub(super) fn is_as_it_must_be(&self) -> Result<(), String> {
        for t in &self.plan.tunnels {
            let shall = self.shall(t);
            let ends = t.ends.map(|gateway| Some((gateway, self.policy(gateway, t)?)));
            let done = match (shall, &ends) {
                (Shall::BeUp, [Some(a), Some(b)]) => self.is_up([*a, *b]),
                (Shall::StayAsItIs, [Some(a), Some(b)]) => {
                    let down = self.is_down(a.0, a.1.id).and_then(|()| self.is_down(b.0, b.1.id));
                    down.or_else(|_| self.is_up([*a, *b]))
                }
                _ => ends.into_iter().flatten().try_for_each(|(gateway, p)| self.is_down(gateway, p.id)),
            };
            done.map_err(|e| format!("{} shall {shall:?}: {e}", t.name()))?;
        }
        (0..self.plan.gateways).try_for_each(|gateway| self.has_nothing_else(gateway))
    }

    fn is_up(&self, ends: [(usize, &TunnelPolicy); 2]) -> Result<(), String> {
        let named: [End; 2] = ends.map(|(gateway, p)| (gateway, p.id));
        self.lab.agree(named)?;
        self.lab.cover(ends)?;
        let pairs: usize = common(ends[0].1, ends[1].1).map(|(_, pairs)| pairs.len()).sum();
        for (gateway, tunnel) in named {
            let children = self.lab.gateways[gateway].endpoint.view(tunnel).map_or(0, |v| v.children.len());
            // Where a result was given up in a collision an old pair may stay beside a new one (decision 0150).
            ensure!(
                children <= 2 * pairs,
                "gateway {gateway} has {children} children for {pairs} pairs of networks"
            );
        }
        Ok(())
    }

    /// A dead gateway's kernel goes on; of the others it is asked.
    fn is_down(&self, gateway: usize, tunnel: TunnelId) -> Result<(), String> {
        let g = &self.lab.gateways[gateway];
        if !g.alive {
            return Ok(());
        }
        let view = g.endpoint.view(tunnel).ok_or("no view")?;
        ensure!(view.ike.is_none() && view.children.is_empty(), "gateway {gateway} has it {:?}", view.state);
        ensure!(!g.plane.sas.keys().any(|sa| sa.child.tunnel == tunnel), "gateway {gateway} has SAs of it");
        ensure!(!g.plane.tunnels.keys().any(|c| c.tunnel == tunnel), "gateway {gateway} has it open");
        Ok(())
    }

    /// A gateway holds what belongs to its tunnels and nothing of those that it has no more.
    fn has_nothing_else(&self, gateway: usize) -> Result<(), String> {
        let (g, policies) = (&self.lab.gateways[gateway], &self.running[gateway]);
        if !g.alive {
            return Ok(());
        }
        self.lab.inside(gateway, policies)?;
        let configured: BTreeSet<ChildId> = (policies.iter())
            .flat_map(|p| p.children.iter().map(|(index, _)| ChildId { tunnel: p.id, index }))
            .collect();
        let guards: BTreeSet<ChildId> = g.plane.guards.keys().copied().collect();
        ensure!(guards == configured, "gateway {gateway} guards {guards:?} and not {configured:?}");
        let (mut ike, mut pairs) = (0, 0);
        for p in policies {
            ike += g.endpoint.spis_of(p.id).len();
            pairs += g.endpoint.view(p.id).map_or(0, |view| view.children.len());
        }
        let sas = (g.endpoint.sa_count(), g.plane.sas.len(), g.endpoint.reserved().1);
        // Those of strangers that were refused stay half open for a while.
        ensure!(
            sas.0 >= ike && (sas.1, sas.2) == (2 * pairs, pairs),
            "gateway {gateway}: {sas:?} for {ike}, {pairs}"
        );
        Ok(())
    }

    /// At any moment: what is configured is guarded, and nothing piles up.
    pub(super) fn assert_bounds(&mut self) {
        for (gateway, g) in self.lab.gateways.iter().enumerate() {
            let seed = self.seed;
            for p in &self.running[gateway] {
                for (index, c) in p.children.iter() {
                    let guard = g.plane.guards.get(&ChildId { tunnel: p.id, index });
                    let whole = guard.is_some_and(|g| g.local == c.local && g.remote == c.remote);
                    assert!(whole, "seed {seed}: gateway {gateway} does not guard {} {index}", p.name);
                }
                let ike = g.endpoint.spis_of(p.id).len();
                let sas = g.plane.sas.keys().filter(|sa| sa.child.tunnel == p.id).count();
                self.most = (self.most.0.max(ike), self.most.1.max(sas));
                assert!(ike <= MOST_IKE_SAS, "seed {seed}: {ike} IKE SAs of {} at gateway {gateway}", p.name);
                assert!(sas <= MOST_SAS, "seed {seed}: {sas} SAs of {} at gateway {gateway}", p.name);
            }
            for sa in g.plane.sas.keys() {
                let t = &self.plan.tunnels[self.number(gateway, sa.child.tunnel)];
                assert!(!self.never(t), "seed {seed}: {sa:?} of gateway {gateway}, which never may be");
            }
            for child in g.plane.tunnels.keys() {
                let known = g.plane.guards.keys().any(|c| c.tunnel == child.tunnel);
                assert!(known, "seed {seed}: {child:?} of gateway {gateway} is open without a guard");
            }
        }
    }
}

/// IKE SAs of one tunnel at one end, in any state: four that are established, and as many that begin or end.
const MOST_IKE_SAS: usize = 8;
/// SAs of one tunnel in one data plane: six pairs, the old ones among them, for each of the four pairs of networks.
const MOST_SAS: usize = 48;
