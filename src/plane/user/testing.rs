//! A small model of the kernel's look-up (net/core/fib_rules.c): rules in their order, tables by longest prefix.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use cygnet_model::selector::IpRange;
use cygnet_xfrm::route::{Prefix, Route, Via};
use cygnet_xfrm::rule::{Rule, Verdict};

/// How a look-up ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Tun(Option<IpAddr>),
    Dropped,
    /// The ordinary way.
    Main,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup<'a> {
    pub iif: &'a str,
    pub source: Option<IpAddr>,
    pub destination: IpAddr,
    pub protocol: u8,
    pub ports: (u16, u16),
    pub mark: u32,
}

pub(super) fn lookup<'a>(iif: &'a str, source: &str, destination: &str) -> Lookup<'a> {
    let source = (source != "-").then(|| source.parse().unwrap());
    Lookup { iif, source, destination: destination.parse().unwrap(), protocol: 17, ports: (9, 9), mark: 0 }
}

fn holds((net, len): Prefix, addr: IpAddr) -> bool {
    IpRange::cidr(net, len).unwrap().contains(addr)
}

fn matches(rule: &Rule, l: &Lookup<'_>) -> bool {
    let source = match (rule.source, l.source, l.destination) {
        (None, _, _) => true,
        (Some(prefix), Some(source), _) => holds(prefix, source),
        // fib4_rule_match compares with 0.0.0.0, fib6_rule_match refuses unless it may ask later.
        (Some(prefix), None, IpAddr::V4(_)) => holds(prefix, Ipv4Addr::UNSPECIFIED.into()),
        (Some(_), None, IpAddr::V6(_)) => rule.find_source,
    };
    let port = |range: Option<(u16, u16)>, port| range.is_none_or(|(a, b)| a <= port && port <= b);
    source
        && rule.destination.is_none_or(|prefix| holds(prefix, l.destination))
        && rule.iif.as_ref().is_none_or(|iif| iif == l.iif)
        && rule.ip_protocol.is_none_or(|p| p == l.protocol)
        && port(rule.source_ports, l.ports.0)
        && port(rule.destination_ports, l.ports.1)
        && rule.mark.is_none_or(|(value, mask)| l.mark & mask == value)
}

/// Walks; also says how many rules were met.
pub(super) fn walk(
    rules: &[Rule],
    routes: &BTreeSet<Route>,
    l: &Lookup<'_>,
    own: &BTreeSet<IpAddr>,
) -> (End, usize) {
    let (mut at, mut met) = (0, 0);
    while let Some(rule) = rules.get(at) {
        assert!(met <= rules.len(), "a circle");
        at += 1;
        met += 1;
        if !matches(rule, l) {
            continue;
        }
        match rule.verdict {
            Verdict::Nop | Verdict::Other(_) => {}
            Verdict::Blackhole => return (End::Dropped, met),
            Verdict::Goto(target) => {
                // While nobody is there, the kernel goes on with the next rule.
                if let Some(to) = rules.iter().position(|r| r.priority == target) {
                    at = to;
                }
            }
            Verdict::Table(table) => {
                let found = routes
                    .iter()
                    .filter(|r| r.table == table && holds(r.destination, l.destination))
                    .max_by_key(|r| (r.destination.1, std::cmp::Reverse(r.metric)));
                let source_fits = |r: &Rule| {
                    l.source.is_some()
                        || !r.find_source
                        || r.source.is_none_or(|p| own.iter().any(|addr| holds(p, *addr)))
                };
                match found {
                    Some(r) if r.via == Via::Blackhole => return (End::Dropped, met),
                    Some(r) if source_fits(rule) => return (End::Tun(r.source), met),
                    _ => {}
                }
            }
        }
    }
    (End::Main, met)
}
