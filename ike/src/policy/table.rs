//! Every tunnel by its number, and by what a stranger shows before anything is known of it: the two addresses, and then
//! the identities. A look-up does not walk the tunnels that it is not about.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use cygnet_model::TunnelId;

use super::{RemoteId, TunnelPolicy};
use crate::wire::{Identity, IdentityBucket};

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Policies {
    of: BTreeMap<TunnelId, Arc<TunnelPolicy>>,
    between: HashMap<(IpAddr, IpAddr), Candidates>,
}

/// The tunnels between one address of ours and one of a peer, in the order of their numbers.
#[derive(Default)]
pub(crate) struct Candidates {
    all: Vec<Arc<TunnelPolicy>>,
    /// The first with each list of IKE proposals.
    by_proposals: Vec<Arc<TunnelPolicy>>,
    /// Those that expect a peer by its identity.
    named: HashMap<IdentityBucket, Vec<Arc<TunnelPolicy>>>,
    /// Those that take anybody.
    any: Vec<Arc<TunnelPolicy>>,
}

impl Candidates {
    /// All of them.
    pub fn all(&self) -> &[Arc<TunnelPolicy>] {
        &self.all
    }

    /// The first of those with the same IKE proposals: what one of these offers, they all do.
    pub fn by_proposals(&self) -> &[Arc<TunnelPolicy>] {
        &self.by_proposals
    }

    /// Those whose peer may be this one, who asks for `wanted` if it asks for anybody. Who is expected by name goes before
    /// whoever comes.
    pub fn of_peer<'a>(
        &'a self,
        peer: &'a Identity,
        wanted: Option<&'a Identity>,
    ) -> impl Iterator<Item = &'a Arc<TunnelPolicy>> {
        let named = self.named.get(&peer.bucket()).into_iter().flatten();
        named
            .chain(&self.any)
            .filter(|p| p.remote_id.admits(peer, &p.local_id))
            .filter(move |p| wanted.is_none_or(|wanted| *wanted == p.local_id))
    }

    fn add(&mut self, policy: &Arc<TunnelPolicy>) {
        self.all.push(Arc::clone(policy));
        if !self.by_proposals.iter().any(|p| p.proposals == policy.proposals) {
            self.by_proposals.push(Arc::clone(policy));
        }
        match &policy.remote_id {
            RemoteId::Any => self.any.push(Arc::clone(policy)),
            RemoteId::Is(id) => self.named.entry(id.bucket()).or_default().push(Arc::clone(policy)),
        }
    }
}

impl Policies {
    /// The tunnel of that number.
    pub fn get(&self, id: &TunnelId) -> Option<&Arc<TunnelPolicy>> {
        self.of.get(id)
    }

    /// All numbers.
    pub fn keys(&self) -> impl Iterator<Item = &TunnelId> {
        self.of.keys()
    }

    /// All of them by their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (TunnelId, &Arc<TunnelPolicy>)> {
        self.of.iter().map(|(id, policy)| (*id, policy))
    }

    /// The tunnels that a stranger from `remote` at our address `local` could belong to, if there are any.
    pub fn between(&self, local: IpAddr, remote: IpAddr) -> Option<&Candidates> {
        self.between.get(&(local, remote))
    }
}

impl FromIterator<Arc<TunnelPolicy>> for Policies {
    fn from_iter<T: IntoIterator<Item = Arc<TunnelPolicy>>>(policies: T) -> Self {
        let of: BTreeMap<TunnelId, Arc<TunnelPolicy>> = policies.into_iter().map(|p| (p.id, p)).collect();
        let mut between: HashMap<(IpAddr, IpAddr), Candidates> = HashMap::new();
        for policy in of.values() {
            let pairs = policy.local.iter().flat_map(|l| policy.remote.iter().map(move |r| (*l, *r)));
            // An address may be written twice.
            let pairs: BTreeSet<(IpAddr, IpAddr)> = pairs.collect();
            for pair in pairs {
                between.entry(pair).or_default().add(policy);
            }
        }
        Self { of, between }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cygnet_model::SecretBytes;
    use proptest::prelude::*;

    use super::super::{Children, Encap, Retransmit, Start};
    use super::*;

    fn address(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    fn identity(n: u8) -> Identity {
        match n {
            0 => Identity::fqdn("berlin.example"),
            1 => Identity::fqdn("Berlin.Example"),
            2 => Identity::rfc822("berlin.example"),
            3 => Identity::address(address(1)),
            _ => Identity::key_id(vec![n]),
        }
    }

    fn policy(
        id: u32,
        local: u8,
        remote: &[u8],
        own: u8,
        peer: Option<u8>,
        proposals: u8,
    ) -> Arc<TunnelPolicy> {
        let proposals = ["aes256gcm16-prfsha384-x25519", "aes256-sha256-modp2048"]
            .iter()
            .take(1 + usize::from(proposals))
            .map(|text| text.parse().unwrap())
            .collect();
        Arc::new(TunnelPolicy {
            id: TunnelId(id),
            name: String::new(),
            local: vec![address(local)],
            remote: remote.iter().map(|n| address(*n)).collect(),
            local_id: identity(own),
            remote_id: peer.map_or(RemoteId::Any, |n| RemoteId::Is(identity(n))),
            psk: SecretBytes::copy_of(b"secret"),
            other_psks: Vec::new(),
            start: Start::Passive,
            proposals,
            lifetime: Duration::from_secs(3600),
            dpd: None,
            encap: Encap::Auto,
            fragmentation: true,
            retransmit: Retransmit::default(),
            children: Children::default(),
        })
    }

    fn ids<'a>(policies: impl IntoIterator<Item = &'a Arc<TunnelPolicy>>) -> Vec<u32> {
        policies.into_iter().map(|p| p.id.0).collect()
    }

    proptest! {
        #[test]
        fn a_look_up_finds_what_a_walk_over_all_tunnels_finds(
            list in prop::collection::vec(
                (0u8..2, prop::collection::vec(0u8..3, 0..3), 0u8..5, prop::option::of(0u8..5), 0u8..2), 0..12),
            local in 0u8..2, remote in 0u8..3, peer in 0u8..5, wanted in prop::option::of(0u8..5),
        ) {
            let all: Vec<_> = (0..).zip(&list)
                .map(|(id, (local, remote, own, peer, p))| policy(id, *local, remote, *own, *peer, *p))
                .collect();
            let table: Policies = all.iter().cloned().collect();
            let (local, remote) = (address(local), address(remote));
            let (peer, wanted) = (identity(peer), wanted.map(identity));
            let walked: Vec<_> =
                all.iter().filter(|p| p.local.contains(&local) && p.remote.contains(&remote)).collect();
            let found = table.between(local, remote);
            prop_assert_eq!(found.is_some(), !walked.is_empty());
            let none = Candidates::default();
            let found = found.unwrap_or(&none);
            prop_assert_eq!(ids(found.all()), ids(walked.iter().copied()));
            let mut first: Vec<&Arc<TunnelPolicy>> = Vec::new();
            for p in &walked {
                if !first.iter().any(|f| f.proposals == p.proposals) {
                    first.push(p);
                }
            }
            prop_assert_eq!(ids(found.by_proposals()), ids(first));
            let mut of_peer: Vec<_> = walked.into_iter()
                .filter(|p| p.remote_id.admits(&peer, &p.local_id))
                .filter(|p| wanted.as_ref().is_none_or(|w| *w == p.local_id))
                .collect();
            of_peer.sort_by_key(|p| p.remote_id == RemoteId::Any);
            prop_assert_eq!(ids(found.of_peer(&peer, wanted.as_ref())), ids(of_peer));
        }
    }
}
