//! The wanted table as a value.

use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::{Bypass, GuardSpec, Mark};
use proptest::prelude::*;

use super::*;
use crate::plane::testing::{guard_of, net};

fn guard(local: &[TrafficSelector], remote: &[TrafficSelector]) -> GuardSpec {
    guard_of(1, local, remote)
}

fn sets(spec: &GuardSpec) -> Vec<(String, Vec<u8>)> {
    pairs(spec, &BTreeSet::new())
        .unwrap()
        .iter()
        .map(|(shape, pair)| (shape.set(), shape.key(pair)))
        .collect()
}

#[test]
fn pairs_of_one_kind_share_a_set_and_families_never_mix() {
    let spec = guard(
        &[net("10.1.0.0/16"), net("fd01::/16")],
        &[net("10.2.0.0/16"), net("10.3.0.0/16"), net("fd02::/16")],
    );
    let found = sets(&spec);
    let names: Vec<&str> = found.iter().map(|(set, _)| set.as_str()).collect();
    assert_eq!(names, ["protected4-16-16", "protected4-16-16", "protected6-16-16"]);
    assert_eq!(found[0].1, [10, 1, 0, 0, 10, 2, 0, 0]);
    assert_eq!(found[2].1.len(), 32);
}

#[test]
fn ports_and_marks_are_part_of_the_key_each_on_its_own_word() {
    let web = TrafficSelector { protocol: 6, ports: (443, 443), ..net("10.2.0.1/32") };
    let marked =
        GuardSpec { mark: Some(Mark { value: 0xFF, mask: 0x0F }), ..guard(&[net("10.1.0.0/16")], &[web]) };
    let [(set, key)] = &sets(&marked)[..] else { panic!() };
    assert_eq!(set, "protected4-16-32-ports-0-ffff-mark-f");
    let mut expected = vec![10, 1, 0, 0, 10, 2, 0, 1];
    expected.extend(0x0Fu32.to_ne_bytes());
    expected.extend([6, 0, 0, 0, 0, 0, 0, 0, 1, 0xBB, 0, 0]);
    assert_eq!(*key, expected);
}

#[test]
fn what_look_ups_cannot_say_is_covered_by_more() {
    let opaque = TrafficSelector { protocol: 6, ports: (65535, 0), ..net("10.2.0.0/16") };
    assert_eq!(sets(&guard(&[net("10.1.0.0/16")], &[opaque]))[0].0, "protected4-16-16-protocol");
}

#[test]
fn only_equal_sides_let_decrypted_packets_go() {
    let all = net("0.0.0.0/0");
    let names: Vec<String> = sets(&guard(&[all], &[all])).into_iter().map(|(set, _)| set).collect();
    assert_eq!(names, ["either4-0-0", "protected4-0-0-symmetric"]);
    assert_eq!(sets(&guard(&[net("10.1.0.0/16")], &[all]))[0].0, "protected4-16-0");
}

#[test]
fn what_lets_go_stands_before_what_drops_and_after_what_is_narrower() {
    let wide = GuardSpec { bypass: Bypass::ATTACHED, ..guard(&[net("10.1.0.0/16")], &[net("0.0.0.0/0")]) };
    let web = TrafficSelector { protocol: 6, ports: (443, 443), ..net("0.0.0.0/0") };
    let attached = BTreeSet::from([("10.1.0.0".parse().unwrap(), 24)]);
    let mut shapes: BTreeSet<Shape> = BTreeSet::new();
    for spec in
        [wide, guard(&[net("10.1.0.0/16")], &[net("10.0.0.0/8")]), guard(&[net("10.1.0.0/16")], &[web])]
    {
        shapes.extend(pairs(&spec, &attached).unwrap().into_iter().map(|(shape, _)| shape));
    }
    let mut sorted: Vec<Shape> = shapes.into_iter().collect();
    sorted.sort_by_key(Shape::place);
    let names: Vec<String> = sorted.iter().map(Shape::set).collect();
    assert_eq!(
        names,
        [
            "either4-16-16-ports-ffff-ffff",
            "either4-16-16",
            "protected4-16-8",
            "near4-16-24-before-16",
            "near4-24-16-before-16",
            "protected4-16-0-ports-0-ffff",
            "protected4-16-0",
        ]
    );
}

#[test]
fn no_set_and_no_rule_outgrows_the_kernels_registers_and_messages() {
    let port = TrafficSelector { protocol: 17, ports: (53, 53), ..net("fd02::/16") };
    let spec = GuardSpec {
        mark: Some(Mark { value: 1, mask: 1 }),
        ..guard(&[TrafficSelector { protocol: 17, ports: (9, 9), ..net("fd01::/16") }], &[port])
    };
    let frame =
        Frame { protection: Protection::Route, own: BTreeSet::new(), nat: true, keeping: Keeping::Shared };
    for (shape, pair) in pairs(&spec, &BTreeSet::new()).unwrap() {
        assert!(shape.key(&pair).len() <= 4 * usize::from(ADDRESS));
        // Panics beyond the capacity of a message.
        frame.shape(&shape).iter().for_each(|step| drop(step.request(TABLE)));
    }
}

proptest! {
    #[test]
    fn addresses_cover_what_the_selectors_say(
        a in 0u32..64, la in 26u8..=32, b in 0u32..64, lb in 26u8..=32, from in 0u32..64, to in 0u32..64
    ) {
        let ip = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(n));
        let local = TrafficSelector::cidr(ip(a), la).unwrap();
        let remote = TrafficSelector::cidr(ip(b), lb).unwrap();
        let mut addresses = Addresses::default();
        for (shape, pair) in pairs(&guard(&[local], &[remote]), &BTreeSet::new()).unwrap().into_iter().filter(|(s, _)| s.protects()) {
            addresses.add(&shape, &pair);
        }
        let naive = local.range.contains(ip(from)) && remote.range.contains(ip(to));
        prop_assert_eq!(addresses.cover(ip(from), ip(to)), naive);
    }
}
