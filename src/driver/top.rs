//! Answers who uses the gateways the most, and whose datagrams were refused.

use std::net::IpAddr;
use std::time::Duration;

use super::{Daemon, clock};
use crate::config::limit::show_limit;
use crate::config::model::PeerAddress;
use crate::observe::rfc3339;
use crate::observe::top::{IpPeak, IpTotals, LoudPeer, MOST_IPS, TopPeers, TopTunnels, TunnelTotals};
use crate::traffic::history::{Peak, Seen};

impl Daemon {
    /// What tunnels have carried by now: all of them, or those of one gateway.
    pub(super) fn top_tunnels(&mut self, gateway: Option<&str>) -> TopTunnels {
        self.count_now();
        self.collect_traffic();
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
            ips: self.top_ips(gateway),
            counts_ips: self.plane.ips_trouble().is_none(),
        }
    }

    /// Inner addresses that are busy: all of them, or those of one gateway.
    fn top_ips(&self, gateway: Option<&str>) -> Vec<IpTotals> {
        let only = gateway.map(|name| self.limits.no(name));
        let names = self.limits.names();
        let busy = self.traffic.busy(|no| only.is_none_or(|only| only == Some(no)), MOST_IPS);
        let totals = |s: Seen| {
            let gateway = *names.get(&s.who.gateway)?;
            Some(IpTotals {
                gateway: gateway.to_owned(),
                ip: s.who.ip,
                bytes_in: s.total.bytes_in,
                packets_in: s.total.packets_in,
                bytes_out: s.total.bytes_out,
                packets_out: s.total.packets_out,
                dropped: s.total.dropped,
                now_in: s.now.0,
                now_out: s.now.1,
                minute_in: s.minute.0,
                minute_out: s.minute.1,
                day_in: s.day.0,
                day_out: s.day.1,
                limit: self.limit_shown(gateway, &s.who.ip),
            })
        };
        busy.into_iter().filter_map(totals).collect()
    }

    fn limit_shown(&self, gateway: &str, ip: &IpAddr) -> Option<String> {
        self.limits.get(gateway, ip).map(|set| show_limit(set.limit))
    }

    /// When inner addresses were at their busiest.
    pub(super) fn top_peaks(&mut self, gateway: Option<&str>, since_s: u64) -> Vec<IpPeak> {
        self.collect_traffic();
        let now = clock::now();
        let only = gateway.map(|name| self.limits.no(name));
        let names = self.limits.names();
        let since = now.mono - Duration::from_secs(since_s.min(24 * 3600));
        let peaks = self.traffic.peaks(|no| only.is_none_or(|only| only == Some(no)), since, MOST_IPS);
        let shown = |p: Peak| {
            let gateway = *names.get(&p.who.gateway)?;
            Some(IpPeak {
                gateway: gateway.to_owned(),
                ip: p.who.ip,
                bytes_in: p.bytes.0,
                bytes_out: p.bytes.1,
                peak_bps: p.most.saturating_mul(8) / 60,
                peak_at: rfc3339(now.unix.saturating_sub(now.mono.since(p.at).as_secs())),
                limit: self.limit_shown(gateway, &p.who.ip),
            })
        };
        peaks.into_iter().filter_map(shown).collect()
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
