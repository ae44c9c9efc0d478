use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use cygnet_model::tunnel::{Direction, GuardSpec, TunnelSpec};
use cygnet_model::{ChildId, TunnelId};
use proptest::prelude::*;

use crate::engine::Engine;
use crate::error::DropReason;
use crate::inner::InnerHeader;
use crate::testing::{self, gcm, net, packet, spec, tunnel};

const fn child(tunnel: u32) -> ChildId {
    ChildId { tunnel: TunnelId(tunnel), index: 0 }
}

fn guard(child: ChildId) -> GuardSpec {
    testing::guard(child, "10.1.0.0/16", "10.2.0.0/16")
}

/// Opens a tunnel with an outbound SA whose SPI is 0x1000 and the tunnel's number.
fn open(engine: &mut Engine, spec_of: &TunnelSpec) {
    let mut sa = spec(gcm(), Direction::Out, 0x1000 + spec_of.child.tunnel.0);
    sa.id.child = spec_of.child;
    engine.install(&sa).unwrap();
    engine.open_tunnel(spec_of).unwrap();
}

/// So many open tunnels with the same rule and weight.
fn sharing(seed: u128, tunnels: impl IntoIterator<Item = u32>) -> Engine {
    let mut engine = Engine::seeded(seed);
    for n in tunnels {
        let guard = guard(child(n));
        engine.guard(&guard).unwrap();
        open(&mut engine, &tunnel(&guard));
    }
    engine
}

fn way(engine: &Engine, packet: &[u8]) -> Result<u32, DropReason> {
    let inner = InnerHeader::parse(packet).unwrap();
    engine
        .tables()
        .spd
        .route(&inner)
        .map(|(admitted, _)| admitted.sa().id().child.tunnel.0)
        .map_err(|r| r.reason)
}

/// A datagram of flow `n`: other ports, and now and then other hosts.
fn datagram(n: u32) -> Vec<u8> {
    let [_, _, high, low] = n.to_be_bytes();
    packet(&format!("10.1.{}.7", n % 5), "10.2.0.1", 17, &[high, low, 0, 53, 0, 8, 0, 0], None)
}

/// By which tunnel each of some flows goes.
fn ways(engine: &Engine, flows: u32) -> Vec<u32> {
    (0..flows).map(|n| way(engine, &datagram(n)).unwrap()).collect()
}

fn reweigh(engine: &mut Engine, n: u32, weight: u16) {
    engine.open_tunnel(&TunnelSpec { weight, ..tunnel(&guard(child(n))) }).unwrap();
}

#[test]
fn each_of_the_tunnels_carries_its_part_of_the_flows() {
    for (seed, count) in (0..).zip([2u32, 3, 4, 7]) {
        let engine = sharing(seed, 1..=count);
        let mut parts = BTreeMap::<u32, u32>::new();
        ways(&engine, 8_000).into_iter().for_each(|tunnel| *parts.entry(tunnel).or_default() += 1);
        let fair = 8_000 / count;
        // Six times the deviation of fair dice, at the least.
        let all = (1..=count).all(|n| parts.get(&n).is_some_and(|part| part.abs_diff(fair) < 270));
        assert!(all, "{count} tunnels: {parts:?}");
    }
}

#[test]
fn the_seed_decides_which_way_a_flow_goes() {
    let [a, b] = [1, 2].map(|seed| ways(&sharing(seed, 1..=2), 1_000));
    let moved = a.iter().zip(&b).filter(|(a, b)| a != b).count();
    assert!((400..600).contains(&moved), "{moved}");
}

/// Two flows of one host, one flow to two ports, two pings and a ping with another number.
#[test]
fn ports_tell_flows_apart_and_nothing_else_of_the_upper_header_does() {
    let engine = sharing(3, 1..=8);
    let ways = |protocol, upper: fn(u16) -> [u8; 8]| {
        let ways = (0..200)
            .map(|n| way(&engine, &packet("10.1.0.1", "10.2.0.1", protocol, &upper(n), None)).unwrap());
        ways.collect::<std::collections::BTreeSet<_>>().len()
    };
    let first = |n: u16| [(n >> 8) as u8, n as u8, 0, 1, 2, 3, 4, 5];
    let second = |n: u16| [0, 1, (n >> 8) as u8, n as u8, 2, 3, 4, 5];
    for protocol in [6, 17, 33, 132, 136] {
        assert_eq!((ways(protocol, first), ways(protocol, second)), (8, 8), "protocol {protocol}");
    }
    for protocol in [1, 47, 50, 89] {
        assert_eq!((ways(protocol, first), ways(protocol, second)), (1, 1), "protocol {protocol}");
    }
}

#[test]
fn parts_of_a_datagram_go_the_same_way() {
    let engine = sharing(4, 1..=8);
    for n in 0..100u8 {
        let (from, to) = (format!("10.1.0.{n}"), "10.2.0.1");
        let part = |flags_and_offset: u16, upper: [u8; 8]| {
            let mut part = packet(&from, to, 17, &upper, None);
            part[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
            way(&engine, &part).unwrap()
        };
        let first = part(0x2000, [0x12, n, 0, 53, 0, 24, 0, 0]);
        let rest = [(0x2001, [n; 8]), (0x0002, [0xEE; 8])].map(|(place, upper)| part(place, upper));
        assert_eq!(rest, [first; 2]);
    }
}

/// The first part shows what is behind its destination options, and the others these options' number.
#[test]
fn parts_of_an_ipv6_datagram_go_the_same_way_whatever_protocol_they_show() {
    let mut engine = Engine::seeded(5);
    for n in 1..=8 {
        let guard =
            GuardSpec { local: vec![net("fd01::/16")], remote: vec![net("fd02::/16")], ..guard(child(n)) };
        engine.guard(&guard).unwrap();
        open(&mut engine, &tunnel(&guard));
    }
    for n in 1..100u8 {
        let part = |place: u16, rest: [u8; 16]| {
            let [high, low] = place.to_be_bytes();
            let upper = [&[60, 0, high, low, 0, 0, 0, n], rest.as_slice()].concat();
            way(&engine, &packet(&format!("fd01::{n}"), "fd02::1", 44, &upper, None)).unwrap()
        };
        let first = part(0x0001, [17, 0, 1, 4, 0, 0, 0, 0, 0x12, n, 0, 53, 0, 24, 0, 0]);
        assert_eq!([part(0x0011, [n; 16]), part(0x0020, [0; 16])], [first; 2]);
    }
}

#[test]
fn a_backup_carries_nothing_while_one_that_shares_is_better_and_everything_when_none_is() {
    let mut engine = sharing(6, 1..=3);
    reweigh(&mut engine, 3, 1);
    let before = ways(&engine, 500);
    assert!(before.iter().all(|tunnel| *tunnel < 3) && before.contains(&1) && before.contains(&2));
    reweigh(&mut engine, 1, 0x200);
    assert_eq!(ways(&engine, 500), [2; 500], "1 does not answer");
    reweigh(&mut engine, 2, 0x200);
    assert_eq!(ways(&engine, 500), [3; 500], "neither of them does");
    reweigh(&mut engine, 3, 0x201);
    assert_eq!(ways(&engine, 500), before, "none does: as if all did");
}

#[test]
fn a_tunnel_without_an_sa_has_no_part_and_without_any_the_guard_decides() {
    let mut engine = sharing(7, 1..=3);
    let sa = |n: u32| {
        let mut sa = spec(gcm(), Direction::Out, 0x1000 + n).id;
        sa.child = child(n);
        sa
    };
    engine.remove(sa(2));
    let left = ways(&engine, 500);
    assert!(!left.contains(&2) && left.contains(&1) && left.contains(&3));
    engine.remove(sa(1));
    engine.remove(sa(3));
    assert_eq!(way(&engine, &datagram(1)), Err(DropReason::NoSa));
    (1..=3).for_each(|n| engine.close_tunnel(child(n)));
    assert_eq!(way(&engine, &datagram(1)), Err(DropReason::NoSa));
}

/// A peer that takes less than it may gets what is its own, and no part of what another rule says.
#[test]
fn what_a_peer_has_narrowed_is_not_shared_with_the_owner_of_the_narrow_rule() {
    let mut engine = Engine::seeded(8);
    let wide = GuardSpec { remote: vec![net("10.0.0.0/8")], ..guard(child(2)) };
    let narrow = guard(child(1));
    engine.guard_all(&[wide.clone(), narrow.clone()]).unwrap();
    open(&mut engine, &tunnel(&narrow));
    open(&mut engine, &TunnelSpec { remote: narrow.remote.clone(), ..tunnel(&wide) });
    assert_eq!(ways(&engine, 500), [1; 500]);
}

/// While keys change, or a peer that forgot makes a second pair, a tunnel has two children with the same selectors.
#[test]
fn two_children_of_one_tunnel_are_one_way_and_its_flows_stay_its_own() {
    let mut engine = sharing(9, 1..=2);
    let before = ways(&engine, 1_000);
    let second = ChildId { index: 2047, ..child(2) };
    open(&mut engine, &TunnelSpec { child: second, ..tunnel(&guard(child(2))) });
    assert_eq!(ways(&engine, 1_000), before);
    engine.close_tunnel(child(2));
    assert_eq!(ways(&engine, 1_000), before, "the second one has them now");
    let mut alone = sharing(9, [1]);
    open(&mut alone, &TunnelSpec { child: ChildId { index: 2047, ..child(1) }, ..tunnel(&guard(child(1))) });
    assert_eq!(ways(&alone, 10), [1; 10]);
}

/// The guard of a rule may come, change and go while tunnels are open.
#[test]
fn guards_that_are_taken_again_change_no_way() {
    let mut engine = sharing(10, 1..=4);
    let before = ways(&engine, 500);
    engine.guard_all(&[guard(child(3)), guard(child(1))]).unwrap();
    assert_eq!(ways(&engine, 500), before);
    engine.close_tunnel(child(4));
    engine.unguard(child(4)).unwrap();
    let after = ways(&engine, 500);
    assert!(before.iter().zip(&after).all(|(before, after)| *before == 4 || before == after));
}

proptest! {
    /// Whatever tunnels come and go: a flow moves only if its tunnel is gone, or to one that has come.
    #[test]
    fn flows_move_with_their_tunnel_alone(
        seed in any::<u128>(),
        tunnels in prop::collection::btree_set(0u32..200, 2..12),
        steps in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..8),
    ) {
        let all: Vec<u32> = tunnels.into_iter().collect();
        let mut engine = sharing(seed, all.iter().copied());
        let mut fit: BTreeMap<u32, bool> = all.iter().map(|n| (*n, true)).collect();
        let first = ways(&engine, 300);
        let mut before = first.clone();
        for (which, is_fit) in steps {
            let n = all[which.index(all.len())];
            let was_fit = fit.insert(n, is_fit) == Some(true);
            reweigh(&mut engine, n, if is_fit { 0 } else { 0x100 });
            let after = ways(&engine, 300);
            let some_fit = |fit: &BTreeMap<u32, bool>| fit.values().any(|fit| *fit);
            let had_any = { let mut old = fit.clone(); old.insert(n, was_fit); some_fit(&old) };
            if some_fit(&fit) && had_any {
                for (before, after) in before.iter().zip(&after).filter(|(before, after)| before != after) {
                    prop_assert!(if is_fit { *after == n } else { *before == n }, "{before} -> {after}, {n} is {is_fit}");
                }
                prop_assert!(after.iter().all(|way| fit[way]));
            }
            before = after;
        }
        for n in all {
            reweigh(&mut engine, n, 0);
        }
        prop_assert_eq!(ways(&engine, 300), first, "all are back");
    }

    /// The order in which tunnels come is of no matter.
    #[test]
    fn the_way_of_a_flow_follows_from_the_tunnels_alone(seed in any::<u128>(), count in 2u32..9) {
        prop_assert_eq!(ways(&sharing(seed, 1..=count), 100), ways(&sharing(seed, (1..=count).rev()), 100));
    }

    /// Addresses alone spread, too: many hosts that send what has no ports.
    #[test]
    fn hosts_spread_what_has_no_ports(seed in any::<u128>()) {
        let engine = sharing(seed, 1..=2);
        let ways = (0..1_000u32).map(|n| {
            let from = Ipv4Addr::from(0x0A01_0000 + n).to_string();
            way(&engine, &packet(&from, "10.2.0.1", 50, &[0; 8], None)).unwrap()
        });
        let firsts = ways.filter(|way| *way == 1).count();
        prop_assert!((350..650).contains(&firsts), "{firsts}");
    }
}
