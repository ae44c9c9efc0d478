//! Guards as routing rules: what leads protected packets into the TUN, and what keeps them from ever going around it.
//!
//! ```text
//!   priority
//!   0      lookup local                                     (the kernel's)
//!   3100…  iif lo, from our address, UDP 500 and 4500       goto 3999       IKE and ESP themselves
//!   3210   iif lo                                           goto 3399       sent by this host: cannot be forged
//!   3210   iif TUN                                          goto 3399       decrypted
//!   3220…  from LOCAL∩REMOTE to LOCAL∩REMOTE                goto 3399       could be either way
//!   3300…  from REMOTE to LOCAL                             blackhole       claims to come from the tunnel, does not
//!   3399                                                    nop
//!   3400…  from LOCAL to REMOTE                             lookup 51657
//!   3500…  iif TUN, from LOCAL to REMOTE, both the same     goto 3999       see `of_guard`
//!   3600…  from LOCAL to REMOTE, both the same              lookup 51657
//!   3999                                                    nop
//!   …                                                                       rules of others, main table
//!
//!   table 51657:  default dev TUN;  blackhole default (worst metric)
//! ```
//!
//! When the process dies, the TUN goes and its route with it; the blackhole and all rules stay, so nothing leaks. The
//! next start finds them by their owner's mark ([`OWNER`]) and takes them over.
//!
//! What routing rules cannot see: cleartext that claims to come from the tunnel and is addressed to this host itself
//! (the local table comes first), and later fragments of packets whose selector names ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use cygnet_model::selector::{TrafficSelector, within};
use cygnet_model::tunnel::GuardSpec;
use cygnet_xfrm::link::{Rtnl, RtnlError};
use cygnet_xfrm::route::{DefaultRoute, Family, Rule, Verdict, Via};

/// `rtm_protocol` of every rule and route of ours.
pub(super) const OWNER: u8 = 0xC9;
/// The private table.
pub(super) const TABLE: u32 = 0xC9C9;
const BYPASS: u32 = 3100;
const SKIP: u32 = 3210;
const EITHER: u32 = 3220;
const INWARD: u32 = 3300;
const OUTWARD_BEGIN: u32 = 3399;
const OUTWARD: u32 = 3400;
const SYMMETRIC_BACK: u32 = 3500;
const SYMMETRIC: u32 = 3600;
const END: u32 = 3999;

const TUN_METRIC: u32 = 10;
const BLACKHOLE_METRIC: u32 = 4_000_000_000;

/// A guard that falls apart into more rules than this is refused: the kernel walks them for each packet.
pub(super) const MAX_RULES: usize = 4096;

const UDP: u8 = 17;
const IKE_PORT: u16 = 500;
/// Protocols whose "ports" in a selector are types and codes, which rules cannot match.
const TYPED: [u8; 3] = [1, 58, 135];

/// The rules in the kernel that are ours, and who wants them.
pub(super) struct Rules {
    rtnl: Rtnl,
    present: BTreeSet<Rule>,
    /// How often each is wanted: guards may overlap.
    wanted: BTreeMap<Rule, u32>,
}

impl Rules {
    /// Connects and takes note of what an earlier process left.
    pub fn open() -> Result<Self, RtnlError> {
        let rtnl = Rtnl::open()?;
        let present = rtnl.rules(OWNER)?.into_iter().collect();
        Ok(Self { rtnl, present, wanted: BTreeMap::new() })
    }

    /// How many rules of ours there are.
    pub fn count(&self) -> usize {
        self.present.len()
    }

    pub const fn rtnl(&self) -> &Rtnl {
        &self.rtnl
    }

    /// Exchanges `old` rules for `new` ones, the new ones first. After an error nothing has changed.
    pub fn replace(&mut self, old: &[Rule], new: &[Rule]) -> Result<(), RtnlError> {
        let mut wanted = self.wanted.clone();
        for rule in new {
            *wanted.entry(rule.clone()).or_default() += 1;
        }
        for rule in old {
            if let Some(count) = wanted.get_mut(rule) {
                *count -= 1;
                if *count == 0 {
                    wanted.remove(rule);
                }
            }
        }
        let add: BTreeSet<Rule> = new.iter().filter(|rule| !self.present.contains(rule)).cloned().collect();
        let remove: BTreeSet<Rule> = old.iter().filter(|rule| !wanted.contains_key(rule)).cloned().collect();
        self.change(&add, &remove)?;
        self.wanted = wanted;
        Ok(())
    }

    /// Adds again what somebody else took away; says how many rules that were.
    pub fn repair(&mut self) -> Result<usize, RtnlError> {
        self.present = self.rtnl.rules(OWNER)?.into_iter().collect();
        let missing: BTreeSet<Rule> =
            self.wanted.keys().filter(|r| !self.present.contains(r)).cloned().collect();
        self.change(&missing, &BTreeSet::new())?;
        Ok(missing.len())
    }

    /// Removes what nobody wants: left by an earlier process with another configuration.
    pub fn settle(&mut self) -> Result<(), RtnlError> {
        let stale = self.present.iter().filter(|rule| !self.wanted.contains_key(rule)).cloned().collect();
        self.change(&BTreeSet::new(), &stale)
    }

    /// Removes all rules of ours and the table's routes.
    pub fn release(&mut self) -> Result<(), RtnlError> {
        let all = std::mem::take(&mut self.present);
        self.wanted.clear();
        self.change(&BTreeSet::new(), &all)?;
        for route in self.rtnl.default_routes(TABLE)?.into_iter().filter(|route| route.owner == OWNER) {
            self.rtnl.remove_default_route(route)?;
        }
        Ok(())
    }

    fn change(&mut self, add: &BTreeSet<Rule>, remove: &BTreeSet<Rule>) -> Result<(), RtnlError> {
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        match self.rtnl.change_rules(add.iter().cloned().collect(), remove.iter().cloned().collect()) {
            Ok(()) => {
                self.present.extend(add.iter().cloned());
                self.present.retain(|rule| !remove.contains(rule));
                Ok(())
            }
            Err(error) => {
                // Whatever was reached before it failed: the kernel knows. If it cannot tell either, what we believed
                // is at worst repeated.
                if let Ok(now) = self.rtnl.rules(OWNER) {
                    self.present = now.into_iter().collect();
                }
                Err(error)
            }
        }
    }
}

/// Default routes of the private table: the drop first, so that there is no moment without it.
pub(super) fn routes(family: Family, tun: u32) -> [DefaultRoute; 2] {
    let route = |via, metric| DefaultRoute { family, table: TABLE, via, metric, owner: OWNER };
    [route(Via::Blackhole, BLACKHOLE_METRIC), route(Via::Link(tun), TUN_METRIC)]
}

/// The rules that stand whatever is guarded.
pub(super) fn frame(family: Family, tun: &str) -> Vec<Rule> {
    let from = |iif: &str| Rule {
        iif: Some(iif.to_owned()),
        ..Rule::new(family, SKIP, Verdict::Goto(OUTWARD_BEGIN), OWNER)
    };
    vec![
        Rule::new(family, END, Verdict::Nop, OWNER),
        Rule::new(family, OUTWARD_BEGIN, Verdict::Nop, OWNER),
        from("lo"),
        from(tun),
    ]
}

/// The rules that keep IKE and ESP of one of our addresses out of the tunnel, whatever the guards cover.
pub(super) fn bypass(local: SocketAddr) -> Vec<Rule> {
    let (family, host_len) = match local.ip() {
        IpAddr::V4(_) => (Family::V4, 32),
        IpAddr::V6(_) => (Family::V6, 128),
    };
    let ports = BTreeSet::from([IKE_PORT, local.port()]);
    ports
        .into_iter()
        .map(|port| {
            by_shape(Rule {
                iif: Some("lo".to_owned()),
                source: (!local.ip().is_unspecified()).then_some((local.ip(), host_len)),
                ip_protocol: Some(UDP),
                source_ports: Some((port, port)),
                ..Rule::new(family, BYPASS, Verdict::Goto(END), OWNER)
            })
        })
        .collect()
}

/// The rules of a guard, both directions; `None` if there are too many. Where a rule cannot say what a selector says, it
/// covers more.
///
/// Where both sides overlap, addresses cannot tell the directions apart. Such packets go into the tunnel: dropping them
/// would stop the tunnel, and forged ones are not delivered in clear text this way either. If both sides are the same
/// altogether (0.0.0.0/0 on both, say), even decrypted packets look as if they belonged into the tunnel; those that come
/// out of the TUN and belong into no other tunnel are let go.
pub(super) fn of_guard(spec: &GuardSpec, tun: &str) -> Option<Vec<Rule>> {
    let (local, remote) = (spec.local.as_slice(), spec.remote.as_slice());
    let pairs = || local.iter().flat_map(|l| remote.iter().map(move |r| (l, r)));
    let both: Vec<TrafficSelector> = pairs().filter_map(|(l, r)| l.intersect(r)).collect();
    let symmetric = within(local, &both) && within(remote, &both);
    let mut rules = BTreeSet::new();
    let mut add = |iif: Option<&str>, from: &[TrafficSelector], to: &[TrafficSelector], priority, verdict| {
        for (from, to) in from.iter().flat_map(|f| to.iter().map(move |t| (f, t))) {
            let between = between(from, to, priority, verdict, spec)?;
            rules.extend(between.into_iter().map(|rule| Rule { iif: iif.map(str::to_owned), ..rule }));
            if rules.len() > MAX_RULES {
                return None;
            }
        }
        Some(())
    };
    add(None, &both, &both, EITHER, Verdict::Goto(OUTWARD_BEGIN))?;
    add(None, remote, local, INWARD, Verdict::Blackhole)?;
    if symmetric {
        add(Some(tun), local, remote, SYMMETRIC_BACK, Verdict::Goto(END))?;
        add(None, local, remote, SYMMETRIC, Verdict::Table(TABLE))?;
    } else {
        add(None, local, remote, OUTWARD, Verdict::Table(TABLE))?;
    }
    Some(rules.into_iter().collect())
}

/// The rules for the packets from one selector to another.
fn between(
    from: &TrafficSelector,
    to: &TrafficSelector,
    priority: u32,
    verdict: Verdict,
    spec: &GuardSpec,
) -> Option<Vec<Rule>> {
    let protocol = match (from.protocol, to.protocol) {
        (0, any) | (any, 0) => any,
        (a, b) if a == b => a,
        // No packet has two protocols.
        _ => return Some(Vec::new()),
    };
    let (sources, destinations) = (from.range.prefixes(), to.range.prefixes());
    if sources.len() * destinations.len() > MAX_RULES {
        return None;
    }
    // The kernel does not show prefixes of length 0, and has none.
    let prefix = |prefix: &(IpAddr, u8)| (prefix.1 > 0).then_some(*prefix);
    let pairs = sources.iter().flat_map(|s| destinations.iter().map(move |d| (s, d)));
    let of_one_family = pairs.filter(|(s, d)| Family::of(s.0) == Family::of(d.0));
    let rule = |(source, destination): (&(IpAddr, u8), &(IpAddr, u8))| {
        by_shape(Rule {
            source: prefix(source),
            destination: prefix(destination),
            ip_protocol: (protocol != 0).then_some(protocol),
            source_ports: ports(from, protocol),
            destination_ports: ports(to, protocol),
            mark: spec.mark.map(|mark| (mark.value, mark.mask)),
            ..Rule::new(Family::of(source.0), priority, verdict, OWNER)
        })
    };
    Some(of_one_family.map(rule).collect())
}

/// A selector's ports, if a rule can say them: rules know no port 0, and neither OPAQUE (first > last) nor types.
fn ports(selector: &TrafficSelector, protocol: u8) -> Option<(u16, u16)> {
    let (first, last) = selector.ports;
    let sayable = !selector.any_port() && first <= last && last > 0 && !TYPED.contains(&protocol);
    sayable.then_some((first.max(1), last))
}

/// Adds a number to the priority for the set of fields that the rule has. When rules are added or removed, the kernel
/// takes a field that is not given for "any rule will do", so that a wide rule would pass for, or remove, a narrow one
/// of the same priority. Among rules with the same fields it compares all of them.
fn by_shape(rule: Rule) -> Rule {
    let fields = [
        rule.source.is_some(),
        rule.destination.is_some(),
        rule.ip_protocol.is_some(),
        rule.source_ports.is_some(),
        rule.destination_ports.is_some(),
        rule.mark.is_some(),
    ];
    let shape = fields.into_iter().fold(0, |shape, field| shape * 2 + u32::from(field));
    Rule { priority: rule.priority + shape, ..rule }
}

#[cfg(test)]
mod tests {
    use cygnet_model::selector::IpRange;
    use cygnet_model::tunnel::GuardAction;
    use cygnet_model::{ChildId, Reqid, TunnelId};

    use super::*;

    fn guard(local: &[TrafficSelector], remote: &[TrafficSelector]) -> GuardSpec {
        let child = ChildId { tunnel: TunnelId(1), index: 0 };
        GuardSpec {
            child,
            reqid: Reqid::of(child).unwrap(),
            local: local.to_vec(),
            remote: remote.to_vec(),
            action: GuardAction::Drop,
            mark: None,
        }
    }

    fn rules_of(spec: &GuardSpec) -> Option<Vec<Rule>> {
        of_guard(spec, "tun9")
    }

    fn net(text: &str) -> TrafficSelector {
        let (addr, len) = text.split_once('/').unwrap();
        TrafficSelector::cidr(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
    }

    #[test]
    fn each_pair_of_one_family_gets_a_rule_for_each_direction() {
        let rules = rules_of(&guard(
            &[net("10.1.0.0/16"), net("fd01::/16")],
            &[net("10.2.0.0/16"), net("fd02::/16")],
        ));
        let rules = rules.unwrap();
        let shown: Vec<_> =
            rules.iter().map(|r| (r.source.unwrap().0, r.destination.unwrap().0, r.verdict)).collect();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(
            shown,
            [
                (ip("10.2.0.0"), ip("10.1.0.0"), Verdict::Blackhole),
                (ip("10.1.0.0"), ip("10.2.0.0"), Verdict::Table(TABLE)),
                (ip("fd02::"), ip("fd01::"), Verdict::Blackhole),
                (ip("fd01::"), ip("fd02::"), Verdict::Table(TABLE)),
            ]
        );
    }

    #[test]
    fn protocol_and_ports_are_exchanged_with_the_ends() {
        let web = TrafficSelector { protocol: 6, ports: (80, 443), ..net("10.2.0.1/32") };
        let rules = rules_of(&guard(&[net("10.1.0.0/16")], &[web])).unwrap();
        let [inward, outward] = rules.as_slice() else { panic!("{rules:?}") };
        assert_eq!((inward.source_ports, inward.destination_ports), (Some((80, 443)), None));
        assert_eq!((outward.source_ports, outward.destination_ports), (None, Some((80, 443))));
        assert_eq!((inward.ip_protocol, outward.ip_protocol), (Some(6), Some(6)));
    }

    #[test]
    fn what_rules_cannot_say_is_covered_by_more() {
        for selector in [
            TrafficSelector { protocol: 1, ports: (0x0800, 0x08FF), ..net("10.2.0.0/16") },
            TrafficSelector { protocol: 6, ports: (65535, 0), ..net("10.2.0.0/16") },
        ] {
            let rules = rules_of(&guard(&[net("0.0.0.0/0")], &[selector])).unwrap();
            let rules: Vec<_> = rules.into_iter().filter(|r| r.priority >= INWARD).collect();
            assert!(rules.iter().all(|r| r.source_ports.is_none() && r.destination_ports.is_none()));
            assert!(rules.iter().any(|r| r.source.is_none()), "0.0.0.0/0 is no prefix at all");
        }
    }

    #[test]
    fn ranges_fall_apart_into_prefixes_up_to_a_limit() {
        let range = |from: &str, to: &str| {
            TrafficSelector::any(IpRange::new(from.parse().unwrap(), to.parse().unwrap()).unwrap())
        };
        let some = rules_of(&guard(&[net("10.1.0.0/16")], &[range("10.2.0.1", "10.2.0.6")])).unwrap();
        assert_eq!(some.len(), 8);
        let odd = range("0.0.0.1", "255.255.255.254");
        assert_eq!(rules_of(&guard(&[odd], &[odd])), None);
    }

    #[test]
    fn overlapping_sides_go_into_the_tunnel() {
        let rules = rules_of(&guard(&[net("10.1.0.0/16")], &[net("0.0.0.0/0")])).unwrap();
        let first = &rules[0];
        let lan = Some(("10.1.0.0".parse().unwrap(), 16));
        assert_eq!(
            (first.source, first.destination, first.verdict),
            (lan, lan, Verdict::Goto(OUTWARD_BEGIN))
        );
        assert_eq!(rules.len(), 3);
    }

    #[test]
    fn equal_sides_let_decrypted_packets_go_behind_all_other_guards() {
        let all = [net("0.0.0.0/0")];
        let rules = rules_of(&guard(&all, &all)).unwrap();
        let back: Vec<_> = rules.iter().filter(|r| r.iif.as_deref() == Some("tun9")).collect();
        assert_eq!(
            back.iter().map(|r| (r.priority, r.verdict)).collect::<Vec<_>>(),
            [(3500, Verdict::Goto(END))]
        );
        assert!(rules.iter().any(|r| r.priority > 3500 && r.verdict == Verdict::Table(TABLE)));
    }

    #[test]
    fn ike_is_let_around_by_address_and_port() {
        let rules = bypass("192.0.2.1:4500".parse().unwrap());
        assert_eq!(rules.iter().map(|r| r.source_ports.unwrap().0).collect::<Vec<_>>(), [500, 4500]);
        assert!(rules.iter().all(|r| r.verdict == Verdict::Goto(END) && r.iif.as_deref() == Some("lo")));
    }
}
