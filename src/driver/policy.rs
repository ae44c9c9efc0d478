//! From the configuration to what the protocol and the data plane want to know.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cygnet_ike::policy::{ChildPolicy, Encap, Retransmit, Start, TunnelPolicy};
use cygnet_ike::wire::Identity;
use cygnet_model::id::Reqid;
use cygnet_model::plane::PlaneKind;
use cygnet_model::tunnel::{GuardAction, GuardSpec};
use cygnet_model::{ChildId, TunnelId};

use super::addresses::Outer;
use crate::config::model::{self, Auth, Config, PeerAddress, Tunnel};
use crate::plane::source::Wish;

/// What DNS said of customer gateways.
pub type Resolved = BTreeMap<String, Vec<IpAddr>>;

/// A tunnel's number: its place in the configuration.
pub fn tunnel_id(index: usize) -> TunnelId {
    TunnelId(u32::try_from(index).unwrap_or(u32::MAX))
}

fn identity(id: &model::Identity) -> Identity {
    match id {
        model::Identity::Ip(ip) => Identity::address(*ip),
        model::Identity::Fqdn(name) => Identity::fqdn(name),
        model::Identity::Email(name) => Identity::rfc822(name),
        model::Identity::KeyId(octets) => Identity::key_id(octets.clone()),
    }
}

/// The protocol's view of every tunnel. With our own data plane ESP always travels in UDP.
pub fn policies(config: &Config, outer: &Outer, resolved: &Resolved, plane: PlaneKind) -> Vec<TunnelPolicy> {
    let make = |(index, t): (usize, &Tunnel)| {
        let local = outer.get(&t.gateway).cloned().unwrap_or_default();
        let remote = match config.customer_gateway(&t.customer_gateway).map(|c| &c.address) {
            Some(PeerAddress::Ip(ip)) => vec![*ip],
            Some(PeerAddress::Dns(name)) => resolved.get(name).cloned().unwrap_or_default(),
            None => Vec::new(),
        };
        let own = local.first().copied().unwrap_or([0, 0, 0, 0].into());
        let Auth::Psk(psk) = &t.auth;
        TunnelPolicy {
            id: tunnel_id(index),
            name: t.name.clone(),
            local_id: t.local_id.as_ref().map_or_else(|| Identity::address(own), identity),
            remote_id: identity(&t.remote_id),
            local,
            remote,
            psk: psk.secret.duplicate(),
            start: match t.start {
                model::Start::Active => Start::Active,
                model::Start::Passive => Start::Passive,
                model::Start::OnDemand => Start::OnDemand,
            },
            proposals: t.ike.proposals.clone(),
            lifetime: t.ike.lifetime,
            dpd: t.ike.dpd,
            encap: match (plane, t.ike.encap) {
                (PlaneKind::Userspace, _) | (_, model::Encap::Force) => Encap::Force,
                (PlaneKind::Kernel, model::Encap::Auto) => Encap::Auto,
            },
            fragmentation: t.ike.fragmentation,
            retransmit: Retransmit {
                initial: t.ike.retransmit.first,
                factor: 2.0,
                max: t.ike.retransmit.max,
                tries: u32::from(t.ike.retransmit.tries) + 1,
            },
            children: children(t),
        }
    };
    config.tunnels.iter().enumerate().map(make).collect()
}

fn children(t: &Tunnel) -> Vec<ChildPolicy> {
    t.children()
        .into_iter()
        .map(|c| ChildPolicy {
            local: c.local,
            remote: c.remote,
            proposals: t.esp.proposals.clone(),
            lifetime: t.esp.lifetime,
            bytes: t.esp.bytes.unwrap_or(0),
            replay_window: t.esp.replay_window,
            mark: t.mark,
        })
        .collect()
}

/// Which source own packets into every child get.
pub fn sources(config: &Config, outer: &Outer) -> Vec<Wish> {
    let wish = |guard: GuardSpec| {
        let index = usize::try_from(guard.child.tunnel.0).ok()?;
        let tunnel = config.tunnels.get(index)?;
        let outer = outer.get(&tunnel.gateway).cloned().unwrap_or_default();
        Some(Wish { tunnel: tunnel.name.clone(), source: tunnel.source, guard, outer })
    };
    guards(config).into_iter().filter_map(wish).collect()
}

/// The guards of every child: what must never pass in clear text.
pub fn guards(config: &Config) -> Vec<GuardSpec> {
    let mut out = Vec::new();
    for (index, t) in config.tunnels.iter().enumerate() {
        for (c, n) in t.children().into_iter().zip(0u16..) {
            let child = ChildId { tunnel: tunnel_id(index), index: n };
            let Some(reqid) = Reqid::of(child) else { continue };
            let action =
                if t.start == model::Start::OnDemand { GuardAction::Acquire } else { GuardAction::Drop };
            out.push(GuardSpec {
                child,
                reqid,
                local: c.local,
                remote: c.remote,
                action,
                mark: t.mark,
                weight: 0,
                bypass: t.bypass,
            });
        }
    }
    out
}
