use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::UdpEncap;
use cygnet_model::{Reqid, TunnelId};
use proptest::prelude::*;

use super::*;
use crate::DropReason;
use crate::inner::InnerHeader;
use crate::spd::Refusal;
use crate::testing::{CHILD, gcm, guard, ip, net, packet, spec, suites, tunnel, udp4, udp6};

/// An engine whose tunnel is open, with a pair of SAs.
fn open() -> Engine {
    let mut engine = Engine::default();
    let guard = guard(CHILD, "10.1.0.0/16", "10.2.0.0/16");
    engine.guard(&guard).unwrap();
    engine.open_tunnel(&tunnel(&guard)).unwrap();
    engine.install(&spec(gcm(), Direction::In, 0x1000)).unwrap();
    engine.install(&spec(gcm(), Direction::Out, 0x2000)).unwrap();
    engine
}

/// The SPI that a packet leaves by.
fn route(engine: &Engine, packet: &[u8]) -> Result<u32, Refusal> {
    let inner = InnerHeader::parse(packet).unwrap();
    engine.tables().spd.route(&inner).map(|(admitted, _)| admitted.sa().id().spi.value())
}

const fn refusal(reason: DropReason, acquire: Option<ChildId>) -> Refusal {
    Refusal { reason, acquire }
}

#[test]
fn a_packet_meets_no_policy_then_the_guard_then_the_sa_then_the_guard_again() {
    let mut engine = Engine::default();
    let guard = guard(CHILD, "10.1.0.0/16", "10.2.0.0/16");
    let closed = Err(refusal(DropReason::NoSa, Some(CHILD)));
    assert_eq!(route(&engine, &udp4(1)), Err(refusal(DropReason::NoPolicy, None)));
    engine.guard(&guard).unwrap();
    assert_eq!(route(&engine, &udp4(1)), closed);
    engine.open_tunnel(&tunnel(&guard)).unwrap();
    assert_eq!(route(&engine, &udp4(1)), closed);
    engine.install(&spec(gcm(), Direction::Out, 0x2000)).unwrap();
    assert_eq!(route(&engine, &udp4(1)), Ok(0x2000));
    engine.close_tunnel(CHILD);
    assert_eq!(route(&engine, &udp4(1)), closed);
    engine.unguard(CHILD).unwrap();
    assert_eq!(route(&engine, &udp4(1)), Err(refusal(DropReason::NoPolicy, None)));
}

#[test]
fn the_newest_outbound_sa_is_used_and_removal_goes_back() {
    let mut engine = open();
    engine.install(&spec(gcm(), Direction::Out, 0x3000)).unwrap();
    engine.install(&spec(gcm(), Direction::Out, 0x2000)).unwrap(); // again: changes nothing
    assert_eq!(route(&engine, &udp4(1)), Ok(0x3000));
    engine.remove(spec(gcm(), Direction::Out, 0x3000).id);
    assert_eq!(route(&engine, &udp4(1)), Ok(0x2000));
    assert_eq!(engine.remove(spec(gcm(), Direction::Out, 0x3000).id), SaCounters::default());
}

#[test]
fn old_inbound_sas_stay_until_removed() {
    let mut engine = open();
    engine.install(&spec(gcm(), Direction::In, 0x1001)).unwrap();
    for spi in [0x1000, 0x1001] {
        assert!(engine.tables().inbound(spi).is_some());
    }
    engine.remove(spec(gcm(), Direction::In, 0x1000).id);
    assert!(engine.tables().inbound(0x1000).is_none());
    engine.close_tunnel(CHILD);
    assert!(engine.tables().inbound(0x1001).is_none());
    assert!(engine.tables().inbound(7).is_none());
    let mut counters = Vec::new();
    engine.counters(&mut counters);
    assert_eq!(counters, []);
}

#[test]
fn a_snapshot_does_not_change_behind_its_reader() {
    let mut engine = open();
    let before = engine.tables();
    engine.close_tunnel(CHILD);
    assert!(before.inbound(0x1000).is_some());
    assert!(before.spd.route(&InnerHeader::parse(&udp4(1)).unwrap()).is_ok());
}

#[test]
fn narrowed_tunnels_leave_the_rest_to_the_guard() {
    let mut engine = open();
    let guard = guard(CHILD, "10.1.0.0/16", "10.2.0.0/16");
    let narrow = TunnelSpec { remote: vec![net("10.2.9.0/24")], ..tunnel(&guard) };
    engine.open_tunnel(&narrow).unwrap();
    assert_eq!(route(&engine, &udp4(1)), Err(refusal(DropReason::NoSa, Some(CHILD))));
}

/// Two children, the second with an open tunnel and an outbound SA of this SPI.
fn guarded_beside_open(first: &GuardSpec, second: &GuardSpec, spi: u32) -> Engine {
    let mut engine = Engine::default();
    engine.guard_all(&[first.clone(), second.clone()]).unwrap();
    open_out(&mut engine, second, spi);
    engine
}

fn open_out(engine: &mut Engine, guard: &GuardSpec, spi: u32) {
    engine.open_tunnel(&tunnel(guard)).unwrap();
    let mut sa = spec(gcm(), Direction::Out, spi);
    sa.id.child = guard.child;
    engine.install(&sa).unwrap();
}

const OTHER: ChildId = ChildId { tunnel: TunnelId(7), index: 0 };

#[test]
fn a_narrow_guard_blocks_even_when_a_wider_tunnel_is_open() {
    let narrow = guard(CHILD, "10.1.0.0/16", "10.2.0.0/24");
    let engine = guarded_beside_open(&narrow, &guard(OTHER, "10.0.0.0/8", "10.0.0.0/8"), 0x2000);
    assert_eq!(route(&engine, &udp4(1)), Err(refusal(DropReason::NoSa, Some(CHILD))));
}

#[test]
fn a_narrow_tunnel_is_used_inside_a_wider_guard_that_comes_first() {
    let wide = guard(CHILD, "10.0.0.0/8", "10.0.0.0/8");
    let engine = guarded_beside_open(&wide, &guard(OTHER, "10.1.0.0/16", "10.2.0.0/16"), 0x2000);
    assert_eq!(route(&engine, &udp4(1)), Ok(0x2000));
}

#[test]
fn among_equal_selectors_an_open_tunnel_goes_before_a_guard_and_the_preferred_one_first() {
    let primary = guard(OTHER, "10.1.0.0/16", "10.2.0.0/16");
    let backup = GuardSpec { weight: 1, ..guard(CHILD, "10.1.0.0/16", "10.2.0.0/16") };
    let mut engine = guarded_beside_open(&primary, &backup, 0x2000);
    assert_eq!(route(&engine, &udp4(1)), Ok(0x2000), "the backup alone is open");
    open_out(&mut engine, &primary, 0x3000);
    assert_eq!(route(&engine, &udp4(1)), Ok(0x3000), "both are open");
    engine.close_tunnel(OTHER);
    assert_eq!(route(&engine, &udp4(1)), Ok(0x2000));
    engine.close_tunnel(CHILD);
    assert_eq!(route(&engine, &udp4(1)), Err(refusal(DropReason::NoSa, Some(OTHER))));
}

/// A rule that was written anew is another child of its tunnel, and takes over from the old one without a gap.
#[test]
fn what_one_child_has_no_sa_for_goes_by_another_one_of_its_tunnel_with_the_same_networks() {
    let old = guard(CHILD, "10.1.0.0/16", "10.2.0.0/16");
    let new = guard(ChildId { index: 1, ..CHILD }, "10.1.0.0/16", "10.2.0.0/16");
    let mut engine = guarded_beside_open(&old, &new, 0x3000);
    open_out(&mut engine, &old, 0x2000);
    assert_eq!(route(&engine, &udp4(1)), Ok(0x2000), "the first one of two that are open");
    engine.remove(spec(gcm(), Direction::Out, 0x2000).id);
    assert_eq!(route(&engine, &udp4(1)), Ok(0x3000), "the old one is not closed yet");
    engine.close_tunnel(CHILD);
    assert_eq!(route(&engine, &udp4(1)), Ok(0x3000));
    // Another tunnel may lead to somebody else.
    let foreign = GuardSpec { weight: 1, ..guard(OTHER, "10.1.0.0/16", "10.2.0.0/16") };
    let mut engine = guarded_beside_open(&old, &foreign, 0x3000);
    engine.open_tunnel(&tunnel(&old)).unwrap();
    assert_eq!(route(&engine, &udp4(1)), Err(refusal(DropReason::NoSa, Some(CHILD))));
}

#[test]
fn a_part_of_a_tunnel_opens_inside_the_guard_of_another_and_nowhere_else() {
    let mut engine = Engine::default();
    engine.guard(&guard(CHILD, "10.1.0.0/16", "10.2.0.0/16")).unwrap();
    let part = ChildId { index: 9, ..CHILD };
    open_out(&mut engine, &guard(part, "10.1.0.0/16", "10.2.0.0/16"), 0x2000);
    assert_eq!(route(&engine, &udp4(1)), Ok(0x2000));
    let outside = guard(ChildId { index: 10, ..CHILD }, "10.1.0.0/16", "10.0.0.0/8");
    assert!(engine.open_tunnel(&tunnel(&outside)).is_err());
    engine.close_tunnel(part);
    assert_eq!(route(&engine, &udp4(1)), Err(refusal(DropReason::NoSa, Some(CHILD))));
}

#[test]
fn the_sas_own_selectors_count_too() {
    let mut engine = open();
    let mut narrow = spec(gcm(), Direction::Out, 0x3000);
    narrow.inner_remote = vec![net("10.2.9.0/24")];
    engine.install(&narrow).unwrap();
    assert_eq!(route(&engine, &udp4(1)), Err(refusal(DropReason::Selectors, None)));
}

#[test]
fn refused_calls_leave_nothing() {
    let mut engine = open();
    let without_encap = SaSpec { encap: None, ..spec(gcm(), Direction::In, 0x4000) };
    let error = engine.install(&without_encap).unwrap_err();
    assert_eq!(error.kind, PlaneErrorKind::Unsupported);
    assert!(error.to_string().contains("RFC 3948"), "{error}");
    let short_key =
        SaSpec { encr_key: cygnet_model::SecretBytes::new(vec![1]), ..spec(gcm(), Direction::In, 0x4000) };
    assert_eq!(engine.install(&short_key).unwrap_err().kind, PlaneErrorKind::Unsupported);
    assert!(engine.tables().inbound(0x4000).is_none());

    let other = ChildId { tunnel: TunnelId(2), index: 0 };
    let mut taken = spec(gcm(), Direction::In, 0x1000);
    taken.id.child = other;
    assert_eq!(engine.install(&taken).unwrap_err().kind, PlaneErrorKind::Exists);
    assert!(engine.open_tunnel(&tunnel(&guard(other, "10.9.0.0/16", "10.8.0.0/16"))).is_err());
    assert!(engine.unguard(CHILD).is_err());
    assert_eq!(route(&engine, &udp4(1)), Ok(0x2000));
}

#[test]
fn migration_changes_the_outer_path_only() {
    let mut engine = open();
    let to = NewAddresses {
        local: "192.0.2.9:4500".parse().unwrap(),
        remote: "198.51.100.1:1025".parse().unwrap(),
    };
    for id in [spec(gcm(), Direction::In, 0x1000).id, spec(gcm(), Direction::Out, 0x2000).id] {
        engine.migrate(id, to).unwrap();
    }
    let tables = engine.tables();
    let (admitted, path) = tables.spd.route(&InnerHeader::parse(&udp4(1)).unwrap()).unwrap();
    assert_eq!((admitted.sa().id().spi.value(), path.local, path.remote), (0x2000, to.local, to.remote));
    assert_eq!(tables.inbound(0x1000).unwrap().path.remote, to.remote);
    assert!(engine.migrate(spec(gcm(), Direction::In, 0x7777).id, to).is_err());
}

#[test]
fn ports_of_encapsulation_are_the_paths_ports() {
    let mut engine = open();
    let encap = Some(UdpEncap { local_port: 4501, remote_port: 31_000 });
    engine.install(&SaSpec { encap, ..spec(gcm(), Direction::Out, 0x5000) }).unwrap();
    let tables = engine.tables();
    let (_, path) = tables.spd.route(&InnerHeader::parse(&udp4(1)).unwrap()).unwrap();
    assert_eq!((path.local.port(), path.remote.port()), (4501, 31_000));
}

/// AES-CBC with a long ICV over IPv6 has the largest overhead: 1400 octets would make packets of 1504 and 1512.
#[test]
fn the_largest_packet_follows_from_the_suites_in_use() {
    let mut engine = open();
    let before = engine.largest_inner().unwrap();
    assert!(before > 1400, "{before}");
    let v6 = |mut sa: SaSpec| {
        (sa.local, sa.remote) = (ip("2001:db8::1"), ip("2001:db8::2"));
        sa
    };
    for (spi, suite) in (0x5000..).zip(suites()) {
        let sa = v6(spec(suite, Direction::Out, spi));
        engine.install(&sa).unwrap();
        let largest = engine.largest_inner().unwrap();
        let sealed = crate::Layout::of(suite).sealed_len(largest);
        assert!(largest <= before && 40 + 8 + sealed <= 1500, "{suite}: {largest}");
        engine.remove(sa.id);
        assert_eq!(engine.largest_inner(), Some(before), "{suite}");
    }
    engine.close_tunnel(CHILD);
    assert_eq!(engine.largest_inner(), None);
}

#[test]
fn families_do_not_mix() {
    let engine = open();
    assert_eq!(route(&engine, &udp6(1)), Err(refusal(DropReason::NoPolicy, None)));
}

proptest! {
    /// The index finds what a walk over all guards finds: the narrowest pair that covers the packet, then the lower weight,
    /// then the lower child.
    #[test]
    fn lookup_agrees_with_a_walk(
        guards in prop::collection::vec((0u8..4, 22u8..=32, 0u8..4, 22u8..=32, 0u8..2), 1..12),
        from in 0u16..1024,
        to in 0u16..1024,
    ) {
        let block = |which: u8, len: u8| {
            TrafficSelector::cidr(std::net::Ipv4Addr::new(10, 0, which, which * 37).into(), len).unwrap()
        };
        let mut engine = Engine::default();
        let mut specs = Vec::new();
        for (i, (local, local_len, remote, remote_len, weight)) in (0u16..).zip(guards) {
            let mut spec = guard(ChildId { tunnel: TunnelId(0), index: i }, "10.0.0.0/8", "10.0.0.0/8");
            spec.weight = weight.into();
            spec.local = vec![block(local, local_len)];
            spec.remote = vec![block(remote, remote_len), block((remote + 1) % 4, remote_len)];
            engine.guard(&spec).unwrap();
            specs.push(spec);
        }
        let addr = |n: u16| format!("10.0.{}.{}", n >> 8, n & 0xFF);
        let inner = packet(&addr(from), &addr(to), 17, &[0; 8], None);
        let header = InnerHeader::parse(&inner).unwrap();
        let covering = specs.iter().flat_map(|s| {
            s.local.iter().flat_map(move |l| s.remote.iter().map(move |r| (s, l, r)))
        }).filter(|(_, l, r)| l.matches(&header.source_end()) && r.matches(&header.destination_end()));
        let free = |s: &TrafficSelector| 32 - s.range.prefix_len().unwrap();
        let walked = covering.min_by_key(|(s, l, r)| (free(l) + free(r), s.weight, s.child)).map(|(s, _, _)| s);
        let found = route(&engine, &inner).unwrap_err();
        prop_assert_eq!(found.acquire, walked.map(|s| s.child));
    }
}

/// Peers that take one pair of networks into each child make several tunnels inside one guard.
#[test]
fn parts_of_a_guard_are_open_side_by_side_and_the_narrowest_carries_a_packet() {
    let mut engine = Engine::default();
    let whole = guard(CHILD, "10.1.0.0/16", "10.2.0.0/16");
    engine.guard(&whole).unwrap();
    let part = |index: u16| ChildId { index, ..CHILD };
    let mut open = |index: u16, remote: &str, out: u32| {
        let child = part(index);
        let t = TunnelSpec {
            child,
            reqid: Reqid::of(child).unwrap(),
            remote: vec![net(remote)],
            ..tunnel(&whole)
        };
        let mut sa = spec(gcm(), Direction::Out, out);
        sa.id.child = child;
        engine.install(&sa).unwrap();
        engine.open_tunnel(&t).map(|()| engine.tables())
    };
    open(2047, "10.2.0.0/17", 0x2000).unwrap();
    open(2046, "10.2.128.0/17", 0x2001).unwrap();
    open(2045, "10.2.0.7/32", 0x2002).unwrap();
    let refused = open(2044, "10.3.0.0/16", 0x2003).map(|_| ()).unwrap_err();
    assert!(refused.detail.contains("no guard"), "{refused}");
    let spi = |engine: &Engine, to: &str| route(engine, &packet("10.1.0.5", to, 17, &[0; 8], None));
    assert_eq!(spi(&engine, "10.2.0.9"), Ok(0x2000));
    assert_eq!(spi(&engine, "10.2.200.1"), Ok(0x2001));
    assert_eq!(spi(&engine, "10.2.0.7"), Ok(0x2002));
    assert!(engine.unguard(CHILD).is_err(), "its parts are open");
    engine.close_tunnel(part(2046));
    assert_eq!(spi(&engine, "10.2.200.1"), Err(refusal(DropReason::NoSa, Some(CHILD))));
    assert_eq!(spi(&engine, "10.2.0.9"), Ok(0x2000));
    engine.close_tunnel(part(2047));
    engine.close_tunnel(part(2045));
    engine.unguard(CHILD).unwrap();
}
