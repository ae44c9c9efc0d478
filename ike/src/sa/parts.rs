//! Who is who among the pairs of one tunnel: each pair of ESP SAs serves a configured child as a whole, or a part of it.
//!
//! Peers that take one pair of networks into one pair of SAs (RFC 7296 §2.9) make several of them for one configured
//! child. Each part has a [`ChildId`] of its own, so that its selectors, reqid and counters are its own. The numbers
//! belong to the tunnel and not to an IKE SA: a part keeps its number when the IKE SA under it is replaced.

use std::collections::BTreeMap;

use cygnet_model::selector::{TrafficSelector, same, within};
use cygnet_model::{ChildId, TunnelId};

use crate::policy::TunnelPolicy;

/// A part of a configured child.
struct Part {
    /// Index of the configured child.
    of: u16,
    local: Vec<TrafficSelector>,
    remote: Vec<TrafficSelector>,
}

/// The parts of all tunnels.
#[derive(Default)]
pub(crate) struct Parts(BTreeMap<ChildId, Part>);

impl Parts {
    /// The child that selectors within configured child `of` belong to: the configured child itself if they are all of
    /// it, the part that they cover if there is one, else a new part. `None` if every number of the tunnel is in use.
    pub fn place(
        &mut self,
        policy: &TunnelPolicy,
        of: u16,
        local: &[TrafficSelector],
        remote: &[TrafficSelector],
    ) -> Option<ChildId> {
        let configured = policy.children.get(of)?;
        if same(local, &configured.local) && same(remote, &configured.remote) {
            return Some(ChildId { tunnel: policy.id, index: of });
        }
        let all = |p: &&mut Part| p.of == of && within(&p.local, local) && within(&p.remote, remote);
        let mut known = self.0.range_mut(Self::range(policy.id)).map(|(id, part)| (*id, part));
        if let Some((id, part)) = known.find(|(_, part)| all(part)) {
            (part.local, part.remote) = (local.to_vec(), remote.to_vec());
            return Some(id);
        }
        let numbers = ChildId::CONFIGURED..ChildId::LIMIT;
        let mut free = numbers.rev().map(|index| ChildId { tunnel: policy.id, index });
        let id = free.find(|id| !self.0.contains_key(id))?;
        self.0.insert(id, Part { of, local: local.to_vec(), remote: remote.to_vec() });
        Some(id)
    }

    /// Takes up a part of an earlier process under its number. The number of a configured child is nobody else's.
    pub fn restore(&mut self, id: ChildId, of: u16, local: &[TrafficSelector], remote: &[TrafficSelector]) {
        if id.index >= ChildId::CONFIGURED {
            self.0.insert(id, Part { of, local: local.to_vec(), remote: remote.to_vec() });
        }
    }

    /// Notes what a part carries after a rekey.
    pub fn change(&mut self, id: ChildId, local: &[TrafficSelector], remote: &[TrafficSelector]) {
        if let Some(part) = self.0.get_mut(&id) {
            (part.local, part.remote) = (local.to_vec(), remote.to_vec());
        }
    }

    /// The index of the configured child that a child is, or is a part of.
    pub fn configured(&self, id: ChildId) -> u16 {
        self.0.get(&id).map_or(id.index, |part| part.of)
    }

    /// Gives a part's number back. The number of a configured child is its own for ever.
    pub fn release(&mut self, id: ChildId) {
        self.0.remove(&id);
    }

    /// How many parts there are, for tests that look for leaks.
    #[cfg(feature = "test-util")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    const fn range(tunnel: TunnelId) -> std::ops::RangeInclusive<ChildId> {
        ChildId { tunnel, index: 0 }..=ChildId { tunnel, index: u16::MAX }
    }
}
