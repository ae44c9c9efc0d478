//! What becomes of living tunnels when the configuration changes under them.
//!
//! Nothing is torn down to be built anew: what can be changed in place is, what needs other keys is rekeyed, and what
//! needs another authentication is negotiated beside the SA that carries the traffic, which goes when its successor
//! has its children.

use std::collections::BTreeMap;
use std::sync::Arc;

use cygnet_model::{IkeSpi, Now, TunnelId};

use super::Endpoint;
use super::supervised::Supervision;
use crate::io::{Actions, Command, Ending, Input};
use crate::policy::{Start, TunnelPolicy};
use crate::sa::{IkeSa, State, is_another_peer};

impl Endpoint {
    /// Takes over a set of tunnels: new active ones start at once; those that are gone are deleted at the peer; of those
    /// that changed, living SAs follow (see the module). Calling it again with the same set does nothing.
    pub fn set_policies(&mut self, now: Now, policies: Vec<TunnelPolicy>, out: &mut Actions) {
        let mut new: BTreeMap<TunnelId, Arc<TunnelPolicy>> =
            policies.into_iter().map(|p| (p.id, Arc::new(p))).collect();
        let gone: Vec<TunnelId> = self.policies.keys().filter(|id| !new.contains_key(id)).copied().collect();
        for id in gone {
            self.handle(now, Input::Command(Command::Down(id)), out);
            self.supervision.remove(&id);
            self.held.remove(&id);
            self.rates.remove(&id);
            self.refused_psks.remove(&id);
        }
        let from = out.len();
        for (id, policy) in &new {
            self.supervision.enroll(*id, || Supervision {
                wanted: policy.start == Start::Active,
                retry_at: (policy.start == Start::Active).then_some(now.mono),
                ..Supervision::default()
            });
        }
        for (id, policy) in &mut new {
            // An SA whose policy is the current one is known by it.
            if let Some(old) = self.policies.get(id).filter(|old| *old == policy) {
                *policy = Arc::clone(old);
            }
        }
        let before = std::mem::replace(&mut self.policies, new.into_values().collect());
        self.keeping.follow(&self.policies);
        for (id, old) in before.iter() {
            let Some(new) = self.policies.get(&id).cloned() else { continue };
            if Arc::ptr_eq(old, &new) {
                continue;
            }
            self.refused_psks.remove(&id);
            self.follow_start(id, old.start, new.start);
            self.follow_policy(now, id, out);
            if (&old.local, &old.remote) != (&new.local, &new.remote) {
                self.follow_addresses(now, id, out);
            }
        }
        self.close_tunnels(now, from, out);
    }

    /// Who begins has changed: a tunnel that is up stays so.
    fn follow_start(&mut self, id: TunnelId, old: Start, new: Start) {
        if old == new || self.held.contains(&id) {
            return;
        }
        if let Some(mut s) = self.supervision.get_mut(&id) {
            s.wanted = new == Start::Active;
            if !s.wanted {
                s.retry_at = None;
            }
        }
    }

    fn follow_policy(&mut self, now: Now, id: TunnelId, out: &mut Actions) {
        let spis: Vec<IkeSpi> = self.by_tunnel.get(&id).into_iter().flatten().copied().collect();
        for spi in spis {
            self.with_sa(now, spi, out, |sa, ctx| {
                // What is being negotiated was begun with what does not hold any more.
                if sa.is_beginning() {
                    sa.drop_silently(ctx, Ending::Local);
                } else {
                    sa.follow(ctx);
                }
            });
        }
        // What goes on to carry packets, though the configuration has left it behind, keeps them from asking for its successor.
        let asks = self.policies.get(&id).is_some_and(|new| {
            new.start == Start::OnDemand
                && !self.held.contains(&id)
                && self.established_of(id).any(|(_, sa)| is_unfit(sa, new))
        });
        if let Some(mut s) = self.supervision.get_mut(&id)
            && (s.wanted || asks)
        {
            s.wanted = true;
            // What was wrong before says nothing of now.
            (s.failures, s.retry_at, s.lesson) = (0, Some(now.mono), None);
        }
    }
}

/// Whether an SA is to be replaced by one that fits the policy.
pub(super) fn is_unfit(sa: &IkeSa, policy: &TunnelPolicy) -> bool {
    matches!(&sa.state, State::Established(live) if is_another_peer(&live.policy, policy))
}
