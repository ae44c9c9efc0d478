//! Whether a configuration is that of the host on which it is checked, and what is missing on this host then.
//!
//! A configuration is usually written somewhere else, where addresses say nothing. So a gateway is judged only where one of
//! its outer addresses is: there it will run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cygnet_model::IpRange;
use cygnet_model::tunnel::Source;

use super::decode::Spanned;
use super::error::{Sink, wrong};
use super::model::GatewayAddress;
use super::raw::{RawConfig, RawGateway, RawRule, RawTunnel};

/// The addresses of a host with their interfaces.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Here {
    interfaces: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

impl Here {
    /// A host with these addresses. Those of the loopback network and link-local ones do not count.
    pub fn new(addresses: impl IntoIterator<Item = (String, IpAddr)>) -> Self {
        let counts = |ip: &IpAddr| match ip {
            IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
            IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
        };
        let (interfaces, addresses) = addresses.into_iter().filter(|(_, ip)| counts(ip)).unzip();
        Self { interfaces, addresses }
    }

    fn has(&self, gateway: &RawGateway) -> bool {
        gateway.addresses.good.iter().any(|address| match &address.value {
            GatewayAddress::Ip(ip) => self.addresses.contains(ip),
            GatewayAddress::Interface(name) => self.interfaces.contains(name),
        })
    }

    /// Whether an own address that a tunnel's own packets may have lies inside a block.
    fn is_inside(&self, block: &IpRange, source: Source) -> bool {
        let fits = |ip: &IpAddr| match source {
            Source::Address(wanted) if wanted.is_ipv4() == ip.is_ipv4() => wanted == *ip,
            _ => true,
        };
        self.addresses.iter().any(|ip| fits(ip) && block.contains(*ip))
    }
}

/// Warns of rules whose remote networks this host's own packets cannot reach by the tunnel, because no address of this host is
/// inside the local networks.
pub(super) fn warn_sourceless(config: &RawConfig, here: &Here, sink: &Sink) {
    for tunnel in config.tunnels.good.iter().filter(|t| t.source != Source::None) {
        let gateway = config.gateways.good.iter().find(|g| {
            g.name.as_ref().zip(tunnel.gateway.as_ref()).is_some_and(|(g, named)| g.value == named.value)
        });
        if gateway.is_some_and(|gateway| here.has(gateway)) {
            warn_of(tunnel, here, sink);
        }
    }
}

fn warn_of(tunnel: &RawTunnel, here: &Here, sink: &Sink) {
    // Rules with the same remote list are one child, and any of its local blocks will do.
    let mut children: BTreeMap<(bool, Vec<IpRange>), Vec<&Spanned<IpRange>>> = BTreeMap::new();
    for (rule, local) in tunnel.rules.good.iter().filter_map(|rule| Some((rule, rule.local.as_ref()?))) {
        let remote = led(rule);
        if !remote.is_empty() {
            children.entry((local.value.start().is_ipv4(), remote)).or_default().push(local);
        }
    }
    for locals in children.values().filter(|l| !l.iter().any(|l| here.is_inside(&l.value, tunnel.source))) {
        let Some(first) = locals.first() else { continue };
        let wanted = match tunnel.source {
            Source::Address(ip) if ip.is_ipv4() == first.value.start().is_ipv4() => {
                format!("source {ip} is not an address of this host inside {}", first.value)
            }
            _ => format!("this host has no address inside {}", first.value),
        };
        let what = format!("{wanted}: its own packets to the remote networks go outside of the tunnel");
        sink.warning(&first.at, wrong(what, "give an interface such an address, or set source: none"));
    }
}

/// The remote blocks to which own packets are led; those to everything keep the outer address.
fn led(rule: &RawRule) -> Vec<IpRange> {
    let mut remote: Vec<IpRange> =
        rule.remote.good.iter().map(|r| r.value).filter(|r| r.prefix_len() != Some(0)).collect();
    remote.sort();
    remote
}
