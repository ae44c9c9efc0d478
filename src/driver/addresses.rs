//! Outer addresses follow the host, and those of customer gateways their names: sockets are opened and closed, and the
//! protocol is told, while the daemon runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use cygnet_ike::FailureReason;
use cygnet_ike::io::Event as IkeEvent;
use cygnet_model::TunnelId;
use nix::ifaddrs::getifaddrs;

use super::resolver::Answer;
use super::{Daemon, sockets};
use crate::config::model::{Config, Gateway, GatewayAddress, PeerAddress};

/// `ifa_flags` of addresses that nothing may be sent from (`linux/if_addr.h`): tentative, and found to be a duplicate.
const UNUSABLE: u32 = 0x40 | 0x08;

/// The outer addresses of each gateway, by its name, preferred first.
pub(super) type Outer = BTreeMap<String, Vec<IpAddr>>;

/// Every usable address of this host with its interface, at this moment.
pub(super) struct HostAddresses(Vec<(String, IpAddr)>);

impl HostAddresses {
    /// Asks the system. What it does not tell is not there.
    pub fn read() -> Self {
        let unusable = unusable(&fs::read_to_string("/proc/net/if_inet6").unwrap_or_default());
        let Ok(all) = getifaddrs() else { return Self(Vec::new()) };
        let usable = all.filter_map(|a| {
            let address = a.address?;
            let v4 = address.as_sockaddr_in().map(|s| IpAddr::V4(s.ip()));
            let ip = v4.or_else(|| address.as_sockaddr_in6().map(|s| IpAddr::V6(s.ip())))?;
            (!unusable.contains(&ip)).then_some((a.interface_name, ip))
        });
        Self(usable.collect())
    }

    /// All of them but those that mean something on this host only.
    pub(super) fn all(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.iter().map(|(_, ip)| *ip).filter(|ip| match ip {
            IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
            IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
        })
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|(_, ip)| *ip == address)
    }

    /// Addresses of an interface that can be reached from elsewhere.
    fn of_interface<'a>(&'a self, name: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
        self.0.iter().filter(move |(interface, _)| interface == name).map(|(_, ip)| *ip).filter(|ip| match ip
        {
            IpAddr::V4(a) => !a.is_link_local(),
            IpAddr::V6(a) => !a.is_unicast_link_local(),
        })
    }

    /// The outer addresses of a gateway at this moment; those that are written as addresses count whether they are
    /// there or not.
    pub fn of(&self, gateway: &Gateway) -> Vec<IpAddr> {
        let mut out: Vec<IpAddr> = Vec::new();
        for address in &gateway.addresses {
            match address {
                GatewayAddress::Ip(ip) => out.push(*ip),
                GatewayAddress::Interface(name) => out.extend(self.of_interface(name)),
            }
        }
        // An interface may be named beside one of its addresses.
        let mut seen = BTreeSet::new();
        out.retain(|ip| seen.insert(*ip));
        out
    }

    /// The outer addresses of all gateways.
    pub fn outer(&self, config: &Config) -> Outer {
        config.gateways.iter().map(|g| (g.name.clone(), self.of(g))).collect()
    }
}

/// Addresses in the text of `/proc/net/if_inet6` that nothing may be sent from: address, interface's number, prefix
/// length, scope, flags, interface's name; numbers in hexadecimal.
fn unusable(text: &str) -> BTreeSet<IpAddr> {
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        (flags & UNUSABLE != 0).then_some(IpAddr::V6(Ipv6Addr::from_bits(address)))
    };
    text.lines().filter_map(parse).collect()
}

impl Daemon {
    /// Follows the host's addresses: says what is missing, opens and closes sockets, tells the protocol, and caps what
    /// has come.
    pub(super) fn look_for_addresses(&mut self) {
        let host = HostAddresses::read();
        let outer = host.outer(&self.config);
        let all: BTreeSet<IpAddr> = outer.values().flatten().copied().collect();
        let absent: BTreeSet<IpAddr> = all.iter().filter(|ip| !host.has(**ip)).copied().collect();
        for address in absent.difference(&self.absent) {
            tracing::warn!(%address, "no interface has this address of a gateway; its tunnels wait for it");
        }
        for (name, _) in outer.iter().filter(|(_, addresses)| addresses.is_empty()) {
            if self.outer.get(name).is_none_or(|before| !before.is_empty()) {
                tracing::warn!(gateway = %name, "no interface of this gateway has an address; its tunnels wait for one");
            }
        }
        let came: Vec<IpAddr> = self.absent.difference(&absent).copied().collect();
        self.absent = absent;
        for address in &came {
            tracing::info!(%address, "an interface has this address of a gateway now");
        }
        // Before anything is sent from a new one.
        self.plane.wall().follow(all.iter().copied());
        if let Err(e) = self.plane.follow_addresses() {
            tracing::warn!(error = %e, "own addresses and neighbours are not followed");
        }
        for tunnel in self.plane.sourceless().difference(&self.sourceless) {
            tracing::warn!(
                tunnel,
                "this host has no address inside the local networks of the tunnel: its own packets to the remote networks \
                 go outside of it; give an interface such an address, or set source: none"
            );
        }
        self.sourceless.clone_from(self.plane.sourceless());
        let changed = outer != self.outer;
        self.outer = outer;
        let opened = self.follow_sockets(&all);
        if changed {
            self.apply_policies();
        }
        if changed || opened || !came.is_empty() {
            self.shape();
        }
    }

    /// Opens sockets on addresses that have none and closes those of addresses that are no gateway's any more. Says
    /// whether any was opened.
    fn follow_sockets(&mut self, wanted: &BTreeSet<IpAddr>) -> bool {
        for gone in self.sockets.addresses().difference(wanted).copied().collect::<Vec<_>>() {
            tracing::info!(address = %gone, "the gateway has lost this address");
            self.close_address(gone);
        }
        let mut opened = false;
        for address in wanted.difference(&self.sockets.addresses()).copied().collect::<Vec<_>>() {
            match self.open_address(address) {
                Ok(()) => {
                    tracing::info!(%address, "listening on this address of a gateway");
                    self.closed.remove(&address);
                    opened = true;
                }
                Err(e) if self.closed.insert(address) => {
                    tracing::error!(%address, error = %format!("{e:#}"), "this address of a gateway cannot be used");
                }
                Err(_) => {}
            }
        }
        self.closed.retain(|address| wanted.contains(address));
        opened
    }

    /// Closes the sockets of an address.
    pub(super) fn close_address(&mut self, address: IpAddr) {
        self.sockets.close(address);
        if let Err(e) = self.plane.remove_socket((address, sockets::NATT_PORT).into()) {
            tracing::warn!(error = %e, %address, "data plane");
        }
    }

    /// Opens sockets on an address, and lets the data plane have its own.
    pub(super) fn open_address(&mut self, address: IpAddr) -> anyhow::Result<()> {
        let for_plane = self.sockets.open(address, self.choice.plane, &self.received)?;
        let handed = match for_plane {
            Some(socket) => self.plane.add_socket((address, sockets::NATT_PORT).into(), socket),
            None => Ok(()),
        };
        match handed.and_then(|()| self.plane.port().foreign_spis(address)) {
            Ok(foreign) => {
                self.endpoint.reserve_spis(foreign);
                Ok(())
            }
            Err(e) => {
                self.sockets.close(address);
                Err(e.into())
            }
        }
    }

    /// The resolver has answered for a name.
    pub(super) fn on_resolved(&mut self, name: &str, answer: Answer) {
        if !self.resolver.asks_for(name) {
            return;
        }
        match answer {
            Answer::Addresses(addresses) => {
                self.unresolved.remove(name);
                if self.resolved.get(name) != Some(&addresses) {
                    tracing::info!(name, ?addresses, "customer gateway resolved");
                    self.resolved.insert(name.to_owned(), addresses);
                    self.apply_policies();
                    // Packets to it may leave by another interface.
                    self.shape();
                }
            }
            // A name that stops to resolve keeps its last addresses: the peer is probably still there.
            Answer::Failed(_) if self.resolved.contains_key(name) => {}
            Answer::Failed(why) => {
                if self.unresolved.insert(name.to_owned()) {
                    self.tell_unresolved(name, &why);
                }
            }
        }
    }

    /// Tells the tunnels of a name, once, that it cannot be resolved.
    fn tell_unresolved(&mut self, name: &str, why: &str) {
        let detail = format!("the name {name} cannot be resolved ({why}); it is asked for again");
        let concerned: Vec<TunnelId> = (self.config.tunnels.iter())
            .filter(|t| self.dns_name(&t.customer_gateway).is_some_and(|n| n == name))
            .filter_map(|t| self.registry.tunnel(&t.name))
            .collect();
        for tunnel in concerned {
            self.tell(IkeEvent::Failure {
                tunnel: Some(tunnel),
                peer: ([0, 0, 0, 0], 0).into(),
                reason: FailureReason::NoPeerAddress,
                detail: detail.clone(),
                retry_in: None,
            });
        }
    }

    /// There is reason to believe that a tunnel's peer has another address.
    pub(super) fn suspect_address(&self, tunnel: TunnelId) {
        let name = self.tunnel(tunnel).and_then(|t| self.dns_name(&t.customer_gateway));
        if let Some(name) = name {
            self.resolver.hurry(name);
        }
    }

    fn dns_name(&self, customer: &str) -> Option<&str> {
        match &self.config.customer_gateway(customer)?.address {
            PeerAddress::Dns(name) => Some(name),
            PeerAddress::Ip(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_not_used_before_it_is_known_to_be_unique() {
        let text = "fe80000000000000dcad00fffe000001 02 40 20 80     out
20010db8000000000000000000000001 02 40 00 c0     out
20010db8000000000000000000000002 02 40 00 80     out
20010db8000000000000000000000003 02 40 00 88     out
not a line
";
        let found = unusable(text);
        let ips: Vec<IpAddr> = ["2001:db8::1", "2001:db8::3"].iter().map(|t| t.parse().unwrap()).collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ips);
    }

    #[test]
    fn an_interface_beside_its_address_counts_once_and_in_order() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let host = HostAddresses(vec![
            ("out".to_owned(), ip("192.0.2.1")),
            ("out".to_owned(), ip("169.254.1.1")),
            ("out".to_owned(), ip("fe80::1")),
            ("out".to_owned(), ip("2001:db8::1")),
            ("lan".to_owned(), ip("10.1.0.1")),
        ]);
        let gateway = Gateway {
            name: "a".to_owned(),
            addresses: vec![
                GatewayAddress::Ip(ip("2001:db8::1")),
                GatewayAddress::Interface("out".to_owned()),
            ],
            networks: vec![],
            bandwidth: crate::config::model::Bandwidth::GATEWAY,
            limits: vec![],
            id: None,
        };
        assert_eq!(host.of(&gateway), [ip("2001:db8::1"), ip("192.0.2.1")]);
        assert!(!host.has(ip("192.0.2.9")));
    }
}
