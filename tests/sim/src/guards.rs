//! Guards as the daemon's driver puts and releases them: put before anything else of a configuration is done, released when
//! the child has no SA any more.

use std::collections::BTreeSet;

use cygnet_ike::policy::{Start, TunnelPolicy};
use cygnet_model::ChildId;
use cygnet_model::id::Reqid;
use cygnet_model::plane::DataPlane;
use cygnet_model::tunnel::{Bypass, GuardAction, GuardSpec};

use crate::Lab;

impl Lab {
    /// Puts the guards of a configuration, and lets those go that it does not have.
    pub(crate) fn guard(&mut self, side: usize, policies: &[TunnelPolicy]) {
        let g = &mut self.gateways[side];
        let mut kept = BTreeSet::new();
        for p in policies {
            let action = if p.start == Start::OnDemand { GuardAction::Acquire } else { GuardAction::Drop };
            for (index, c) in p.children.iter() {
                let child = ChildId { tunnel: p.id, index };
                kept.insert(child);
                let spec = GuardSpec {
                    child,
                    reqid: Reqid::of(child).expect("a small number"),
                    local: c.local.clone(),
                    remote: c.remote.clone(),
                    action,
                    mark: c.mark,
                    weight: c.weight,
                    bypass: Bypass::NONE,
                };
                if g.plane.guards.get(&child) != Some(&spec) {
                    g.plane.guard(&spec).expect("guarding never fails");
                }
            }
        }
        g.leaving.extend(g.plane.guards.keys().copied());
        g.leaving.retain(|child| !kept.contains(child));
    }

    /// Releases the guards of children that the configuration has no more and that have no SA any more.
    pub(crate) fn release_left(&mut self, side: usize) {
        let g = &mut self.gateways[side];
        if g.leaving.is_empty() || !g.alive {
            return;
        }
        let free: Vec<ChildId> =
            g.leaving.iter().copied().filter(|child| !g.endpoint.is_carried(*child)).collect();
        for child in free {
            g.plane.unguard(child).expect("releasing never fails");
            g.leaving.remove(&child);
        }
    }
}
