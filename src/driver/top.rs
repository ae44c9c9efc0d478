//! Answers who uses the gateways the most, and whose datagrams were refused.

use std::net::IpAddr;

use super::{Daemon, clock};
use crate::config::model::PeerAddress;
use crate::observe::top::{LoudPeer, TopPeers, TopTunnels, TunnelTotals};

impl Daemon {
    /// What tunnels have carried by now: all of them, or those of one gateway.
    pub(super) fn top_tunnels(&mut self, gateway: Option<&str>) -> TopTunnels {
        self.count_now();
        let tunnels = self.config.tunnels.iter().filter(|t| gateway.is_none_or(|name| t.gateway == name));
        let totals = |name: &str| self.counters.tunnels.get(name).map(|c| c.totals()).unwrap_or_default();
        TopTunnels {
            at_ns: clock::now().mono.as_nanos(),
            tunnels: tunnels
                .map(|t| {
                    let carried = totals(&t.name);
                    TunnelTotals {
                        tunnel: t.name.clone(),
                        gateway: t.gateway.clone(),
                        bytes_in: carried.bytes_in,
                        packets_in: carried.packets_in,
                        bytes_out: carried.bytes_out,
                        packets_out: carried.packets_out,
                    }
                })
                .collect(),
        }
    }

    /// Strangers whose datagrams were refused, the loudest first.
    pub(super) fn top_peers(&mut self) -> TopPeers {
        let now = clock::now().mono;
        let (window, loudest) = self.strangers.loudest(now);
        let peer = |(source, heard): (IpAddr, crate::observe::strangers::Heard)| LoudPeer {
            source: match source {
                IpAddr::V4(_) => source.to_string(),
                IpAddr::V6(_) => format!("{source}/64"),
            },
            refused: heard.count,
            over: heard.over,
            reasons: heard.reasons.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect(),
            last_s: now.since(heard.last).as_secs(),
            customer_gateway: self.said_to_be_at(source),
        };
        TopPeers { window_s: window.as_secs(), peers: loudest.into_iter().map(peer).collect() }
    }

    /// The customer gateway that is configured, or known by DNS, to have an address.
    fn said_to_be_at(&self, source: IpAddr) -> Option<String> {
        let network = |ip: IpAddr| crate::observe::strangers::network(ip);
        let found = self.config.customer_gateways.iter().find(|c| match &c.address {
            PeerAddress::Ip(ip) => network(*ip) == source,
            PeerAddress::Dns(name) => {
                self.resolved.get(name).is_some_and(|all| all.iter().any(|ip| network(*ip) == source))
            }
        });
        found.map(|c| c.name.clone())
    }
}
