//! A living IKE SA and its children follow a changed policy of the same peer.

use std::collections::BTreeMap;
use std::sync::Arc;

use cygnet_model::id::Reqid;
use cygnet_model::tunnel::{Mark, TunnelSpec};

use super::{Child, ChildState, Core, Ctx, IkeSa, Live, Next, State, Task};
use crate::io::Action;
use crate::policy::{ChildPolicy, TunnelPolicy};

/// What a child has to do to follow its policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Follow {
    Nothing,
    /// Only its place among others that claim the same packets.
    Weight,
    /// Other algorithms, lifetimes or limits: they come with new keys.
    Rekey,
}

fn step(old: &ChildPolicy, new: &ChildPolicy) -> Follow {
    let weighed = ChildPolicy { weight: new.weight, ..old.clone() };
    match () {
        () if old == new => Follow::Nothing,
        () if weighed == *new => Follow::Weight,
        () => Follow::Rekey,
    }
}

/// Whether an established SA proves less than the policy asks for, or was set up for another kind of path: only a new
/// authentication helps.
pub(crate) fn is_another_peer(old: &TunnelPolicy, new: &TunnelPolicy) -> bool {
    (&old.local_id, &old.remote_id, old.encap.is_forced())
        != (&new.local_id, &new.remote_id, new.encap.is_forced())
}

impl IkeSa {
    /// Follows the policy of its tunnel, if it is established and that is still about the same peer. Begins what waits.
    pub fn follow(&mut self, ctx: &mut Ctx<'_>) {
        if !matches!(self.state, State::Established(_)) {
            return;
        }
        self.with_live(ctx, |live, core, ctx, _| {
            let new = ctx.policies.get(&live.policy.id).filter(|new| !is_another_peer(&live.policy, new));
            if let Some(new) = new.cloned() {
                live.follow(core, ctx, &new);
            }
            Next::Stay
        });
    }
}

impl Live {
    /// Takes a changed policy over: children that are new are asked for, those that changed get new keys, and those that
    /// are gone end after what is new is there.
    fn follow(&mut self, core: &Core, ctx: &mut Ctx<'_>, new: &Arc<TunnelPolicy>) {
        // By its first addresses it is known whether the peer has left one of them.
        let policy = if self.policy.remote == new.remote {
            Arc::clone(new)
        } else {
            Arc::new(new.with_remote(self.policy.remote.clone()))
        };
        let old = std::mem::replace(&mut self.policy, policy);
        // What was chosen by the old one is not made under the new one. The peer asks anew (RFC 9370 §2.2.4).
        if (&old.proposals, &old.children) != (&new.proposals, &new.children)
            && let Some(promise) = self.promise.take()
        {
            promise.release(ctx);
        }
        if (&old.proposals, old.lifetime) != (&new.proposals, new.lifetime) {
            self.enqueue(Task::RekeyIke { group: None });
        }
        for (index, child) in new.children.iter() {
            match old.children.get(index).map(|before| step(before, child)) {
                None => self.seek(index),
                Some(Follow::Nothing) => {}
                Some(Follow::Weight) => self.weigh(core, ctx, index, child),
                Some(Follow::Rekey) => {
                    self.weigh(core, ctx, index, child);
                    self.renew_children(|of| of == index);
                    // What was refused with the old one may be taken with the new one.
                    self.seek(index);
                }
            }
        }
        let gone = |of: u16| new.children.get(of).is_none();
        self.seeking.retain(|of, _| !gone(*of));
        let pointless = |t: &Task| matches!(t, Task::CreateChild { index, .. } if gone(*index));
        self.queue.retain(|t| !pointless(t));
        self.delayed.retain(|(_, t)| !pointless(t));
        let ends: Vec<_> =
            self.children.iter().filter(|c| gone(c.of) && c.is_to_stay()).map(|c| c.inbound).collect();
        for inbound in ends {
            self.enqueue(Task::DeleteChild { inbound });
        }
    }

    /// Makes new keys for what is carried of some configured children.
    pub fn renew_children(&mut self, wanted: impl Fn(u16) -> bool) {
        let mut renewed = Vec::new();
        for c in self.children.iter_mut().filter(|c| c.state == ChildState::Active && wanted(c.of)) {
            c.state = ChildState::Rekeying;
            renewed.push(c.inbound);
        }
        for inbound in renewed {
            self.enqueue(Task::RekeyChild { inbound, group: None });
        }
    }

    /// Opens the tunnels of everything that is carried, as an earlier process had opened them.
    pub fn open_tunnels(&self, core: &Core, ctx: &mut Ctx<'_>) {
        let mut newest = BTreeMap::new();
        for c in &self.children {
            // One that goes keeps its child's tunnel open if there is no other.
            if c.is_to_stay() || !newest.get(&c.id).is_some_and(|other: &&Child| other.is_to_stay()) {
                newest.insert(c.id, c);
            }
        }
        newest.retain(|id, c| c.is_to_stay() || ctx.carries(*id));
        for c in newest.into_values() {
            let weight = match self.policy.children.get(c.of) {
                Some(policy) if c.opens.is_none() => policy.weight,
                // Until it is taken into use the packets are another one's.
                _ => u16::MAX,
            };
            c.weigh(core, ctx, c.mark, weight);
        }
    }

    /// Tells the data plane the weight of what is carried of a configured child.
    fn weigh(&self, core: &Core, ctx: &mut Ctx<'_>, of: u16, policy: &ChildPolicy) {
        for c in self.children.iter().filter(|c| c.of == of && c.is_to_stay()) {
            c.weigh(core, ctx, policy.mark, policy.weight);
        }
    }
}

impl Child {
    /// Leaves the packets that others claim as well to them, before the peer is told that this pair ends.
    pub fn step_back(&self, core: &Core, ctx: &mut Ctx<'_>) {
        self.weigh(core, ctx, self.mark, u16::MAX);
    }

    fn weigh(&self, core: &Core, ctx: &mut Ctx<'_>, mark: Option<Mark>, weight: u16) {
        let Some(reqid) = Reqid::of(self.id) else { return };
        ctx.out.push(Action::OpenTunnel(TunnelSpec {
            child: self.id,
            reqid,
            local: self.local.clone(),
            remote: self.remote.clone(),
            outer_local: core.flow.local.ip(),
            outer_remote: core.flow.remote.ip(),
            mark,
            weight,
        }));
    }
}
