//! From the configuration to what the protocol and the data plane want to know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cygnet_ike::policy::{ChildPolicy, Encap, Retransmit, Start, TunnelPolicy};
use cygnet_ike::wire::Identity;
use cygnet_model::id::Reqid;
use cygnet_model::plane::PlaneKind;
use cygnet_model::tunnel::{GuardAction, GuardSpec};
use cygnet_model::{ChildId, TunnelId};
use nix::ifaddrs::getifaddrs;

use crate::config::model::{self, Auth, Config, GatewayAddress, PeerAddress, Tunnel};

/// What DNS said of customer gateways.
pub type Resolved = BTreeMap<String, Vec<IpAddr>>;

/// A tunnel's number: its place in the configuration.
pub fn tunnel_id(index: usize) -> TunnelId {
    TunnelId(u32::try_from(index).unwrap_or(u32::MAX))
}

/// The outer addresses of a gateway at this moment.
pub fn addresses(gateway: &model::Gateway) -> Vec<IpAddr> {
    let mut out = Vec::new();
    for address in &gateway.addresses {
        match address {
            GatewayAddress::Ip(ip) => out.push(*ip),
            GatewayAddress::Interface(name) => out.extend(interface_addresses(name)),
        }
    }
    out
}

/// Addresses of an interface that can be reached from elsewhere.
fn interface_addresses(name: &str) -> Vec<IpAddr> {
    host_addresses()
        .into_iter()
        .filter(|(interface, _)| interface == name)
        .map(|(_, ip)| ip)
        .filter(|ip| match ip {
            IpAddr::V4(a) => !a.is_link_local(),
            IpAddr::V6(a) => !a.is_unicast_link_local(),
        })
        .collect()
}

/// Every address of this host with its interface.
fn host_addresses() -> Vec<(String, IpAddr)> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    all.filter_map(|a| {
        let address = a.address?;
        let v4 = address.as_sockaddr_in().map(|s| IpAddr::V4(s.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|s| IpAddr::V6(s.ip())))?;
        Some((a.interface_name, ip))
    })
    .collect()
}

/// Outer addresses of gateways that no interface has at this moment.
pub fn absent(config: &Config) -> BTreeSet<IpAddr> {
    let here: BTreeSet<IpAddr> = host_addresses().into_iter().map(|(_, ip)| ip).collect();
    config.gateways.iter().flat_map(addresses).filter(|ip| !here.contains(ip)).collect()
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
pub fn policies(config: &Config, resolved: &Resolved, plane: PlaneKind) -> Vec<TunnelPolicy> {
    let make = |(index, t): (usize, &Tunnel)| {
        let local = config.gateway(&t.gateway).map(addresses).unwrap_or_default();
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
