//! From the configuration to what the protocol and the data plane want to know.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cygnet_ike::policy::{ChildPolicy, Encap, RemoteId, Retransmit, Start, TunnelPolicy};
use cygnet_ike::wire::Identity;
use cygnet_model::id::Reqid;
use cygnet_model::plane::PlaneKind;
use cygnet_model::registry::{Exhausted, Registry};
use cygnet_model::tunnel::{GuardAction, GuardSpec};
use cygnet_model::{ChildId, TrafficSelector, TunnelId};

use super::addresses::Outer;
use crate::config::model::{self, Auth, ChildSpec, Config, PeerAddress, Tunnel};
use crate::plane::source::Wish;
use crate::plane::user::indistinguishable;

/// What DNS said of customer gateways.
pub type Resolved = BTreeMap<String, Vec<IpAddr>>;

/// Gives numbers to the tunnels and children of a configuration.
///
/// # Errors
/// If there are none left.
pub fn register(registry: &mut Registry, config: &Config) -> Result<(), Exhausted> {
    let children = |t: &Tunnel| t.children().iter().map(|c| child_name(t, c)).collect();
    registry.follow(config.tunnels.iter().map(|t| (t.name.as_str(), children(t))))
}

/// What a child is known by as long as its tunnel is configured: the packets that it protects.
fn child_name(t: &Tunnel, c: &ChildSpec) -> String {
    let mut name = networks(&c.local, &c.remote);
    if let Some(mark) = t.mark {
        name.push_str(&format!(" mark {:#x}/{:#x}", mark.value, mark.mask));
    }
    name
}

pub(super) fn networks(local: &[TrafficSelector], remote: &[TrafficSelector]) -> String {
    let list = |all: &[TrafficSelector]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    format!("{} -> {}", list(local), list(remote))
}

/// A tunnel's children with their numbers. One without a number is not registered.
pub(super) fn numbered<'a>(
    registry: &'a Registry,
    t: &'a Tunnel,
) -> impl Iterator<Item = (ChildId, ChildSpec)> + 'a {
    let number = |c: ChildSpec| Some((registry.child(&t.name, &child_name(t, &c))?, c));
    t.children().into_iter().filter_map(number)
}

/// Where the tunnels with these numbers stand in the configuration.
pub fn places(registry: &Registry, config: &Config) -> BTreeMap<TunnelId, usize> {
    let place = |(n, t): (usize, &Tunnel)| Some((registry.tunnel(&t.name)?, n));
    config.tunnels.iter().enumerate().filter_map(place).collect()
}

fn identity(id: &model::Identity) -> Identity {
    match id {
        model::Identity::Ip(ip) => Identity::address(*ip),
        model::Identity::Fqdn(name) => Identity::fqdn(name),
        model::Identity::Email(name) => Identity::rfc822(name),
        model::Identity::Dn(name) => Identity::distinguished_name(name.to_der()),
        model::Identity::KeyId(octets) => Identity::key_id(octets.clone()),
    }
}

/// The protocol's view of every tunnel. With our own data plane ESP always travels in UDP.
pub fn policies(
    config: &Config,
    registry: &Registry,
    outer: &Outer,
    resolved: &Resolved,
    plane: PlaneKind,
    ranks: &BTreeMap<TunnelId, u8>,
) -> Vec<TunnelPolicy> {
    let make = |t: &Tunnel| {
        let local = outer.get(&t.gateway).cloned().unwrap_or_default();
        let remote = match config.customer_gateway(&t.customer_gateway).map(|c| &c.address) {
            Some(PeerAddress::Ip(ip)) => vec![*ip],
            Some(PeerAddress::Dns(name)) => resolved.get(name).cloned().unwrap_or_default(),
            None => Vec::new(),
        };
        let own = local.first().copied().unwrap_or([0, 0, 0, 0].into());
        let Auth::Psk(psk) = &t.auth;
        let id = registry.tunnel(&t.name)?;
        let rank = ranks.get(&id).copied().unwrap_or(0);
        Some(TunnelPolicy {
            id,
            name: t.name.clone(),
            local_id: t.local_id.as_ref().map_or_else(|| Identity::address(own), identity),
            remote_id: match &t.remote_id {
                model::RemoteId::Any => RemoteId::Any,
                model::RemoteId::Is(id) => RemoteId::Is(identity(id)),
            },
            local,
            remote,
            psk: psk.secret.duplicate(),
            other_psks: psk.others.iter().map(|psk| psk.secret.duplicate()).collect(),
            start: t.start,
            proposals: t.ike.proposals.clone(),
            lifetime: t.ike.lifetime,
            dpd: t.ike.dpd,
            encap: match (plane, t.ike.encap) {
                (PlaneKind::Userspace, Encap::Auto) => Encap::Force,
                (_, encap) => encap,
            },
            fragmentation: t.ike.fragmentation,
            retransmit: Retransmit {
                initial: t.ike.retransmit.first,
                factor: 2.0,
                max: t.ike.retransmit.max,
                tries: u32::from(t.ike.retransmit.tries) + 1,
            },
            children: numbered(registry, t).map(|(id, c)| (id.index, child_policy(t, c, rank))).collect(),
        })
    };
    config.tunnels.iter().filter_map(make).collect()
}

/// `rank`: how fit the tunnel is to carry traffic, which counts before its weight.
fn child_policy(t: &Tunnel, c: ChildSpec, rank: u8) -> ChildPolicy {
    ChildPolicy {
        local: c.local,
        remote: c.remote,
        proposals: t.esp.proposals.clone(),
        lifetime: t.esp.lifetime,
        bytes: t.esp.bytes.unwrap_or(0),
        replay_window: t.esp.replay_window,
        mark: t.mark,
        weight: u16::from_be_bytes([rank, t.weight]),
    }
}

/// Which source own packets into every child get.
pub fn sources(config: &Config, registry: &Registry, outer: &Outer) -> Vec<Wish> {
    let places = places(registry, config);
    let wish = |guard: GuardSpec| {
        let tunnel = config.tunnels.get(*places.get(&guard.child.tunnel)?)?;
        let outer = outer.get(&tunnel.gateway).cloned().unwrap_or_default();
        Some(Wish { tunnel: tunnel.name.clone(), source: tunnel.source, guard, outer })
    };
    guards(config, registry).into_iter().filter_map(wish).collect()
}

/// The guards of every child: what must never pass in clear text.
pub fn guards(config: &Config, registry: &Registry) -> Vec<GuardSpec> {
    let mut out = Vec::new();
    for t in &config.tunnels {
        for (child, c) in numbered(registry, t) {
            let Some(reqid) = Reqid::of(child) else { continue };
            let action = if t.start == Start::OnDemand { GuardAction::Acquire } else { GuardAction::Drop };
            out.push(GuardSpec {
                child,
                reqid,
                local: c.local,
                remote: c.remote,
                action,
                mark: t.mark,
                weight: u16::from(t.weight),
                bypass: t.bypass.clone(),
            });
        }
    }
    out
}

/// Refuses tunnels that the userspace plane would mix up, because only marks tell them apart; the configuration was checked
/// for the kernel's plane if `data_plane` is `auto`.
pub fn told_apart(config: &Config) -> anyhow::Result<()> {
    // Which numbers they have is of no matter here.
    let mut registry = Registry::default();
    let _ = register(&mut registry, config);
    let guards = guards(config, &registry);
    let Some((a, b)) = indistinguishable(&guards).into_iter().next() else { return Ok(()) };
    let name = |child: ChildId| registry.name(child.tunnel).unwrap_or("?");
    anyhow::bail!(
        "tunnels {} and {} claim the same packets and only their marks tell them apart, which the userspace data plane \
         does not see; nothing was started: use data_plane: kernel on a host that has ESP, or other networks",
        name(a),
        name(b)
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn two(a: &str, b: &str) -> Config {
        let tunnel = |name: &str, more: &str| {
            format!(
                "  - {{ name: {name}, gateway: g, customer_gateway: c{name}, auth: {{ psk: pL7v0y2QxNf8sKd3RwZtB5 }}, {more}, \
                 spd: [ {{ local: 10.1.0.0/16, remote: [10.2.0.0/16] }} ] }}\n"
            )
        };
        let text = format!(
            "gateways: [ {{ name: g, address: 192.0.2.1, networks: [10.1.0.0/16] }} ]\ncustomer_gateways: \
             [ {{ name: ca, address: 192.0.2.2 }}, {{ name: cb, address: 192.0.2.3 }} ]\ntunnels:\n{}{}",
            tunnel("a", a),
            tunnel("b", b)
        );
        crate::config::load_text(&text, Path::new("/nonexistent")).unwrap().config
    }

    /// `auto` is checked as the kernel's plane; where the host has none, the start must refuse them.
    #[test]
    fn a_start_with_our_own_plane_refuses_tunnels_that_only_marks_tell_apart() {
        let told = told_apart(&two("mark: 1/0xff", "mark: 2/0xff")).unwrap_err().to_string();
        assert!(told.contains("tunnels a and b") && told.contains("nothing was started"), "{told}");
        assert!(told_apart(&two("weight: 0", "weight: 1")).is_ok());
    }

    #[test]
    fn the_weight_of_a_tunnel_reaches_its_guards() {
        let config = two("weight: 3", "weight: 200");
        let mut registry = Registry::default();
        register(&mut registry, &config).unwrap();
        let guards = guards(&config, &registry);
        assert_eq!(guards.iter().map(|g| g.weight).collect::<Vec<_>>(), [3, 200]);
    }
}
