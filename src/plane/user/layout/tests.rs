//! Layouts against a small model of the kernel's look-up.

use std::net::Ipv4Addr;

use cygnet_model::tunnel::{Bypass, Mark, Source};
use proptest::prelude::*;

use super::*;
use crate::plane::testing::{guard_of, listed, net};
use crate::plane::user::testing::{End, Lookup, lookup, walk};

const TUN: &str = "tun9";
const FIRST: u32 = 1102;
const EXIT: u32 = 2100;

struct World {
    layout: Layout,
    own: BTreeSet<IpAddr>,
}

impl World {
    fn new(guards: &[GuardSpec], own: &[&str], sockets: &[&str]) -> Self {
        Self::with_sources(guards, own, sockets, &BTreeMap::new())
    }

    fn with_sources(
        guards: &[GuardSpec],
        own: &[&str],
        sockets: &[&str],
        sources: &BTreeMap<ChildId, Source>,
    ) -> Self {
        let own: BTreeSet<IpAddr> = own.iter().map(|a| a.parse().unwrap()).collect();
        let sockets = sockets.iter().map(|a| SocketAddr::new(a.parse().unwrap(), 4500)).collect();
        let attached = own.iter().flat_map(|addr| [(*addr, 24), (*addr, 32)]).collect();
        let host = Host { tun: TUN, sockets: &sockets, own: &own, sources, attached: &attached };
        Self { layout: Layout::new(guards, &host, &mut TableNumbers::default()), own }
    }

    fn rules(&self, family: Family) -> Vec<Rule> {
        let mut rules = self.layout.place(family, FIRST, EXIT, TUN).expect("it fits");
        rules.extend((!rules.is_empty()).then(|| Rule::new(family, EXIT, Verdict::Nop, OWNER)));
        let there: BTreeSet<u32> = rules.iter().map(|rule| rule.priority).collect();
        for rule in &rules {
            if let Verdict::Goto(target) = rule.verdict {
                assert!(target > rule.priority, "{rule}: backward");
                assert!(there.contains(&target), "{rule}: nobody there");
            }
        }
        rules
    }

    fn end(&self, l: Lookup<'_>) -> End {
        walk(&self.rules(Family::of(l.destination)), &self.layout.routes, &l, &self.own).0
    }
}

fn guard(n: usize, local: &[TrafficSelector], remote: &[TrafficSelector]) -> GuardSpec {
    guard_of(u32::try_from(n).unwrap(), local, remote)
}

fn nets(n: usize, local: &str, remote: &str) -> GuardSpec {
    guard(n, &[net(local)], &[net(remote)])
}

#[test]
fn a_pair_leads_out_drops_forged_packets_and_leaves_others_alone() {
    let world = World::new(&[nets(1, "10.1.0.0/16", "10.2.0.0/16")], &["192.0.2.1"], &["192.0.2.1"]);
    for (l, end) in [
        (lookup("lan", "10.1.0.2", "10.2.0.2"), End::Tun(None)),
        (lookup("lo", "10.1.0.1", "10.2.0.2"), End::Tun(None)),
        (lookup("wan", "10.2.0.2", "10.1.0.2"), End::Dropped),
        (lookup(TUN, "10.2.0.2", "10.1.0.2"), End::Main),
        (lookup("lan", "10.3.0.2", "10.2.0.2"), End::Main),
        (lookup("lan", "10.1.0.2", "10.3.0.2"), End::Main),
        // This host has no address inside: whatever source it takes, nothing is protected.
        (lookup("lo", "-", "10.2.0.2"), End::Main),
    ] {
        assert_eq!(world.end(l), end, "{l:?}");
    }
}

#[test]
fn a_lookup_without_a_source_goes_into_the_tunnel_where_this_host_has_an_address_inside() {
    let guards = [nets(1, "10.1.0.0/16", "10.2.0.0/16"), nets(2, "fd01::/16", "fd02::/16")];
    let world = World::new(&guards, &["10.1.0.1", "192.0.2.1", "fd01::1"], &["192.0.2.1"]);
    let inner = "10.1.0.1".parse().unwrap();
    assert_eq!(world.end(lookup("lo", "-", "10.2.0.2")), End::Tun(Some(inner)));
    assert_eq!(world.end(lookup("lo", "-", "10.3.0.2")), End::Main);
    assert_eq!(world.end(lookup("lo", "-", "fd02::2")), End::Tun(None));
    assert_eq!(world.end(lookup("lo", "-", "fd03::2")), End::Main);
}

/// As with the kernel's plane.
#[test]
fn the_source_of_own_packets_is_the_one_that_is_wanted_or_the_hosts_routes_decide() {
    let guards = [nets(1, "10.1.0.0/16", "10.2.0.0/16"), nets(2, "fd01::/16", "fd02::/16")];
    let own = ["10.1.0.1", "10.1.7.1", "192.0.2.1", "fd01::1", "fd01::7"];
    let ends = |wanted: [Source; 2]| {
        let sources = guards.iter().map(|g| g.child).zip(wanted).collect();
        let world = World::with_sources(&guards, &own, &["192.0.2.1"], &sources);
        ["10.2.0.2", "fd02::2"].map(|to| world.end(lookup("lo", "-", to)))
    };
    let [v4, v6] = ["10.1.7.1", "fd01::7"].map(|a| a.parse::<IpAddr>().unwrap());
    assert_eq!(ends([v4, v6].map(Source::Address)), [End::Tun(Some(v4)), End::Tun(Some(v6))]);
    assert_eq!(ends([Source::None; 2]), [End::Main; 2]);
    // Not there; and of the other family.
    let absent = ["10.1.0.99", "10.1.7.1"].map(|a| Source::Address(a.parse().unwrap()));
    assert_eq!(ends(absent), [End::Main, End::Tun(None)]);
}

#[test]
fn the_hosts_own_way_to_the_internet_stays_its_own_unless_the_outer_address_is_guarded() {
    let guards = [nets(1, "10.1.0.0/16", "0.0.0.0/0")];
    let own = ["10.1.0.1", "192.0.2.1"];
    assert_eq!(World::new(&guards, &own, &["192.0.2.1"]).end(lookup("lo", "-", "203.0.113.9")), End::Main);
    let inside = World::new(&guards, &["10.1.0.1"], &["10.1.0.1"]);
    assert!(matches!(inside.end(lookup("lo", "-", "203.0.113.9")), End::Tun(_)));
}

#[test]
fn neighbours_are_reached_directly_under_a_guard_of_everything_unless_a_narrower_one_protects_them() {
    let mut all = nets(1, "10.1.0.0/16", "0.0.0.0/0");
    let own = ["10.1.0.1"];
    let end = |guards: &[GuardSpec], l| World::new(guards, &own, &own).end(l);
    let there = lookup("lo", "10.1.0.1", "10.1.0.2");
    assert_eq!(end(&[all.clone()], there), End::Tun(None));
    all.bypass = Bypass::ATTACHED;
    let guards = [all, nets(2, "10.1.0.0/16", "10.1.0.128/25"), nets(3, "10.1.0.7/32", "10.1.0.0/16")];
    for (from, to) in [
        ("10.1.0.1", "10.1.0.2"),
        ("10.1.0.2", "10.1.0.1"),
        ("-", "10.1.0.2"),
        ("10.1.0.1", "10.1.9.9"),
        ("10.1.9.9", "10.1.0.2"),
    ] {
        for iif in ["lan", "lo"] {
            assert_eq!(end(&guards, lookup(iif, from, to)), End::Main, "{from} to {to}");
        }
    }
    for (from, to) in [
        ("10.1.0.2", "10.1.0.200"),
        ("10.1.0.7", "10.1.0.2"),
        ("10.1.0.2", "203.0.113.1"),
        ("10.1.9.9", "10.1.8.8"),
    ] {
        assert_eq!(end(&guards, lookup("lan", from, to)), End::Tun(None), "{from} to {to}");
    }
    assert_eq!(end(&guards, lookup("lan", "203.0.113.1", "10.1.0.2")), End::Dropped);
}

#[test]
fn listed_networks_are_reached_directly_unless_a_narrower_guard_protects_them() {
    let all = GuardSpec {
        bypass: listed(&["203.0.113.0/24", "10.9.0.0/16"]),
        ..nets(1, "10.1.0.0/16", "0.0.0.0/0")
    };
    let guards = [all, nets(2, "10.1.0.0/16", "10.9.9.0/24")];
    let end = |l| World::new(&guards, &["10.1.0.1", "192.0.2.1"], &["192.0.2.1"]).end(l);
    for (from, to) in [
        ("10.1.0.2", "203.0.113.5"),
        ("203.0.113.5", "10.1.0.2"),
        ("10.1.0.2", "10.9.0.1"),
        ("-", "10.9.0.1"),
    ] {
        for iif in ["lan", "lo"] {
            assert_eq!(end(lookup(iif, from, to)), End::Main, "{from} to {to}");
        }
    }
    for (from, to) in [("10.1.0.2", "203.0.114.5"), ("10.1.0.2", "10.9.9.1"), ("10.1.0.2", "10.1.0.3")] {
        assert_eq!(end(lookup("lan", from, to)), End::Tun(None), "{from} to {to}");
    }
    let inner = "10.1.0.1".parse().unwrap();
    assert_eq!(end(lookup("lo", "-", "10.9.9.1")), End::Tun(Some(inner)), "the narrower guard's own packets");
    assert_eq!(end(lookup("wan", "203.0.114.5", "10.1.0.2")), End::Dropped);
}

/// A guard around another one lets nothing by that is the inner one's, and the inner one lets by what it says.
#[test]
fn what_a_narrow_guard_lets_by_is_not_taken_by_the_wide_one_around_it() {
    let mut wide = nets(1, "10.1.0.0/16", "0.0.0.0/0");
    let mut narrow = nets(2, "10.1.0.0/16", "10.0.0.0/8");
    (wide.bypass, narrow.bypass) = (Bypass::ATTACHED, Bypass::ATTACHED);
    let world = World::new(&[wide, narrow], &["10.1.0.1"], &["192.0.2.1"]);
    assert_eq!(world.end(lookup("lan", "10.1.0.1", "10.1.0.2")), End::Main);
    assert_eq!(world.end(lookup("lan", "10.1.0.1", "10.2.0.2")), End::Tun(None));
}

#[test]
fn many_remotes_of_one_local_cost_one_rule() {
    let guards: Vec<GuardSpec> = (0..1000)
        .map(|n| nets(n, "10.1.0.0/16", &format!("10.{}.{}.0/24", 100 + n / 256, n % 256)))
        .collect();
    let world = World::new(&guards, &["10.1.0.1"], &["192.0.2.1"]);
    let out = world.layout.rules[&Family::V4].outward.plain.len();
    assert_eq!(out, 1);
    let rules = world.rules(Family::V4);
    for (l, end, most) in [
        (lookup("lan", "10.1.0.2", "10.101.3.2"), End::Tun(None), 20),
        (lookup("lan", "10.1.0.2", "10.110.3.2"), End::Main, 20),
        (lookup("wan", "10.101.3.2", "10.1.0.2"), End::Dropped, 60),
        (lookup("lan", "172.16.0.1", "172.17.0.1"), End::Main, 20),
    ] {
        let (got, met) = walk(&rules, &world.layout.routes, &l, &world.own);
        assert_eq!(got, end, "{l:?}");
        assert!(met <= most, "{met} rules for {l:?}");
    }
}

#[test]
fn ten_thousand_locals_fit_and_a_lookup_meets_a_few_dozen_rules() {
    let guards: Vec<GuardSpec> = (0..10_000)
        .map(|n| {
            let host = format!("{}.{}", n / 256, n % 256);
            nets(n, &format!("10.{host}.0/24"), &format!("172.{}.{}.0/24", 16 + n / 256, n % 256))
        })
        .collect();
    let world = World::new(&guards, &[], &["192.0.2.1"]);
    let rules = world.rules(Family::V4);
    println!("{} rules", rules.len());
    for n in [0, 1, 4711, 9999] {
        let (local, remote) =
            (format!("10.{}.{}.7", n / 256, n % 256), format!("172.{}.{}.7", 16 + n / 256, n % 256));
        for (l, end) in [
            (lookup("lan", &local, &remote), End::Tun(None)),
            (lookup("wan", &remote, &local), End::Dropped),
            (lookup("lan", &local, "192.168.0.1"), End::Main),
        ] {
            let (got, met) = walk(&rules, &world.layout.routes, &l, &world.own);
            assert_eq!(got, end, "{l:?}");
            assert!(met <= 110, "{met} rules for {l:?}");
        }
    }
}

#[test]
fn protocol_and_ports_are_exchanged_with_the_ends() {
    let web = TrafficSelector { protocol: 6, ports: (80, 443), ..net("10.2.0.1/32") };
    let world = World::new(&[guard(1, &[net("10.1.0.0/16")], &[web])], &[], &[]);
    let out = lookup("lan", "10.1.0.2", "10.2.0.1");
    assert_eq!(world.end(out), End::Main, "UDP");
    assert_eq!(world.end(Lookup { protocol: 6, ports: (5, 80), ..out }), End::Tun(None));
    assert_eq!(world.end(Lookup { protocol: 6, ports: (80, 5), ..out }), End::Main);
    let back = lookup("wan", "10.2.0.1", "10.1.0.2");
    assert_eq!(world.end(Lookup { protocol: 6, ports: (80, 5), ..back }), End::Dropped);
    assert_eq!(world.end(Lookup { protocol: 6, ports: (5, 80), ..back }), End::Main);
}

#[test]
fn what_rules_cannot_say_is_covered_by_more() {
    for selector in [
        TrafficSelector { protocol: 1, ports: (0x0800, 0x08FF), ..net("10.2.0.0/16") },
        TrafficSelector { protocol: 6, ports: (65535, 0), ..net("10.2.0.0/16") },
    ] {
        let world = World::new(&[guard(1, &[net("10.1.0.0/16")], &[selector])], &[], &[]);
        let l = Lookup { protocol: selector.protocol, ..lookup("lan", "10.1.0.2", "10.2.0.2") };
        assert_eq!(world.end(l), End::Tun(None));
    }
}

#[test]
fn a_mark_is_part_of_the_rule() {
    let mark = Some(Mark { value: 3, mask: 0xFF });
    let world = World::new(&[GuardSpec { mark, ..nets(1, "10.1.0.0/16", "10.2.0.0/16") }], &[], &[]);
    let l = lookup("lan", "10.1.0.2", "10.2.0.2");
    assert_eq!(world.end(l), End::Main);
    assert_eq!(world.end(Lookup { mark: 0xA03, ..l }), End::Tun(None));
}

#[test]
fn ranges_fall_apart_into_prefixes_up_to_a_limit() {
    let range = |from: &str, to: &str| {
        TrafficSelector::any(IpRange::new(from.parse().unwrap(), to.parse().unwrap()).unwrap())
    };
    let world = World::new(&[guard(1, &[net("10.1.0.0/16")], &[range("10.2.0.1", "10.2.0.6")])], &[], &[]);
    for (last, end) in [(0, End::Main), (1, End::Tun(None)), (6, End::Tun(None)), (7, End::Main)] {
        assert_eq!(world.end(lookup("lan", "10.1.0.2", &format!("10.2.0.{last}"))), end);
    }
    let odd = range("0.0.0.1", "255.255.255.254");
    assert!(sort(&guard(1, &[odd], &[odd])).is_none());
}

#[test]
fn overlapping_sides_go_into_the_tunnel() {
    let world = World::new(&[nets(1, "10.1.0.0/16", "0.0.0.0/0")], &[], &["192.0.2.1"]);
    assert_eq!(world.end(lookup("lan", "10.1.0.2", "10.1.9.9")), End::Tun(None));
    assert_eq!(world.end(lookup("wan", "203.0.113.1", "10.1.0.2")), End::Dropped);
    assert_eq!(world.end(lookup("wan", "203.0.113.1", "10.3.0.2")), End::Main);
}

#[test]
fn equal_sides_let_decrypted_packets_go_behind_all_other_guards() {
    let guards = [nets(1, "0.0.0.0/0", "0.0.0.0/0"), nets(2, "10.1.0.0/16", "10.2.0.0/16")];
    let world = World::new(&guards, &[], &["192.0.2.1"]);
    assert_eq!(world.end(lookup(TUN, "10.7.0.1", "10.8.0.1")), End::Main);
    assert_eq!(world.end(lookup(TUN, "10.1.0.1", "10.2.0.1")), End::Tun(None));
    assert_eq!(world.end(lookup("lan", "10.7.0.1", "10.8.0.1")), End::Tun(None));
}

#[test]
fn ike_is_let_around_by_address_and_port() {
    let world = World::new(&[nets(1, "0.0.0.0/0", "0.0.0.0/0")], &["192.0.2.1"], &["192.0.2.1"]);
    let ike = lookup("lo", "192.0.2.1", "198.51.100.1");
    for port in [500, 4500] {
        assert_eq!(world.end(Lookup { ports: (port, 500), ..ike }), End::Main);
        assert_eq!(world.end(Lookup { iif: "lan", ports: (port, 500), ..ike }), End::Tun(None));
    }
    assert!(matches!(world.end(ike), End::Tun(_)));
}

#[test]
fn a_guard_of_one_family_needs_nothing_of_the_other() {
    let world = World::new(&[nets(1, "10.1.0.0/16", "10.2.0.0/16")], &[], &["192.0.2.1", "2001:db8::1"]);
    assert_eq!(world.layout.families().collect::<Vec<_>>(), [Family::V4]);
    assert_eq!(world.rules(Family::V6), []);
}

/// Few addresses, so that prefixes nest, meet and overlap often.
fn prefix() -> impl Strategy<Value = TrafficSelector> {
    (0u32..64, 0u8..=6).prop_map(|(host, len)| {
        let len = if len == 0 { 0 } else { 26 + len };
        TrafficSelector::cidr(IpAddr::V4(Ipv4Addr::from(0x0A00_0000 + host)), len).unwrap()
    })
}

proptest! {
    /// Whatever is guarded ends in the TUN or nowhere; whatever is not guarded in either direction goes its way.
    #[test]
    fn every_guarded_lookup_ends_in_the_tun_or_nowhere_and_no_other_does(
        sides in prop::collection::vec(
            (prop::collection::vec(prefix(), 1..3), prop::collection::vec(prefix(), 1..7)), 1..12,
        ),
        leaf_heavy in 0usize..60,
    ) {
        let mut guards: Vec<GuardSpec> =
            sides.iter().enumerate().map(|(n, (local, remote))| guard(n, local, remote)).collect();
        // Enough others to make the trees deep.
        guards.extend((0..leaf_heavy).map(|n| {
            nets(100 + n, &format!("172.16.{n}.0/24"), &format!("172.17.{n}.0/24"))
        }));
        let world = World::new(&guards, &[], &[]);
        let rules = world.rules(Family::V4);
        let addr = |host: u32| IpAddr::V4(Ipv4Addr::from(0x0A00_0000 + host));
        let any = |list: &[TrafficSelector], a: IpAddr| list.iter().any(|s| s.range.contains(a));
        for (from, to) in (0..64).step_by(3).flat_map(|f| (0..64).step_by(5).map(move |t| (f, t))) {
            let (source, destination) = (addr(from), addr(to));
            let out = guards.iter().any(|g| any(&g.local, source) && any(&g.remote, destination));
            let back = guards.iter().any(|g| any(&g.remote, source) && any(&g.local, destination));
            let base = lookup("lan", "-", "10.0.0.0");
            for iif in ["lan", "lo"] {
                let l = Lookup { iif, source: Some(source), destination, ..base };
                let (end, _) = walk(&rules, &world.layout.routes, &l, &world.own);
                if out {
                    prop_assert!(end != End::Main, "{:?}", l);
                } else if back && iif == "lan" {
                    prop_assert_eq!(end, End::Dropped, "{:?}", l);
                } else {
                    prop_assert_eq!(end, End::Main, "{:?}", l);
                }
                if out && !back {
                    prop_assert_eq!(end, End::Tun(None), "{:?}", l);
                }
            }
        }
    }
}
