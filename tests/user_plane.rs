//! Two userspace data planes in network namespaces, with real packets. Needs root.
// clippy knows tests by their attribute; helpers of integration tests have none.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod netns;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use cygnet::plane::user::UserPlane;
use cygnet_model::plane::{Acquire, DataPlane, PlaneErrorKind, PlaneEvent};
use cygnet_model::suite::{Encr, EspSuite, Integ};
use cygnet_model::tunnel::{
    Bypass, Direction, GuardAction, GuardSpec, Mark, NewAddresses, SaId, SaSpec, Source, UdpEncap,
    VolumeLimits,
};
use cygnet_model::{ChildId, Reqid, Spi, TunnelId};
use cygnet_xfrm::route::Family;
use cygnet_xfrm::routing::Routing;
use netns::{CHILD, Lab, OUTER, guard, net, open, possible, sa};

const GCM: EspSuite = EspSuite::plain(Encr::AesGcm16_256, None, true);
const HOSTS: [(&str, &str); 2] = [("10.1.0.2", "10.2.0.2"), ("fd01::2", "fd02::2")];

#[test]
fn ping_and_tcp_pass_both_ways_and_nothing_in_clear() {
    if !possible("ping_and_tcp_pass_both_ways_and_nothing_in_clear") {
        return;
    }
    let cbc = EspSuite::plain(Encr::AesCbc256, Some(Integ::HmacSha384_192), false);
    let chacha = EspSuite::plain(Encr::ChaCha20Poly1305, None, false);
    for (suite, offload) in [(GCM, true), (GCM, false), (cbc, true), (chacha, true)] {
        let lab = Lab::new();
        let mut planes = lab.tunnel(suite, offload);
        println!("{suite}: {:?}", planes[0].offloads());
        let (a, b) = (lab.ns("host-a"), lab.ns("host-b"));
        for (at_a, at_b) in HOSTS {
            // 3000 octets leave the host as fragments.
            for bytes in [0, 56, 1372, 3000] {
                assert!(a.pings(at_a, at_b, bytes), "{suite} offload {offload}: ping of {bytes} to {at_b}");
            }
            assert!(b.pings(at_b, at_a, 56));
            transfer(&lab, ("host-a", at_a), ("host-b", at_b), 20 << 20);
            transfer(&lab, ("host-b", at_b), ("host-a", at_a), 20 << 20);
        }
        assert_eq!(lab.leaked(), 0);
        // What one side sent the other has received, nothing was dropped for a bad reason.
        let [(sent, _), (_, received)] = [0, 1].map(|side| counters(&mut planes[side]));
        assert_eq!((sent.packets, sent.bytes), (received.packets, received.bytes));
        assert!(sent.bytes > 20 << 20);
        for plane in &planes {
            let drops: Vec<_> =
                plane.drops().filter(|(reason, n)| *n > 0 && reason.name() != "no_policy").collect();
            assert_eq!(drops, [], "{suite}");
        }
    }
}

#[test]
fn a_killed_plane_leaks_nothing_and_the_next_one_takes_over() {
    if !possible("a_killed_plane_leaks_nothing_and_the_next_one_takes_over") {
        return;
    }
    let lab = Lab::new();
    let [plane_a, mut plane_b] = lab.tunnel(GCM, true);
    let a = lab.ns("host-a");
    assert!(a.pings("10.1.0.2", "10.2.0.2", 56));

    // Dropping is what a crash does: the device goes, the rules stay.
    drop(plane_a);
    let talk = || {
        for (from, to) in HOSTS {
            assert!(!a.pings(from, to, 56));
            let (from, to): (SocketAddr, SocketAddr) = (addr(from, 0), addr(to, 9));
            a.inside(move || {
                let socket = UdpSocket::bind(from).unwrap();
                (0..50).for_each(|_| drop(socket.send_to(b"secret", to)));
            });
        }
    };
    talk();
    assert_eq!(lab.leaked(), 0, "after the plane died");

    // The next one begins with an empty policy: still closed.
    let mut plane_a = lab.plane(0, true, Box::new(|_, _, _| {}));
    talk();
    assert_eq!(lab.leaked(), 0, "before the guards were asked for again");
    plane_a.guard(&guard(0)).unwrap();
    plane_a.settle().unwrap();
    // Fresh keys are the daemon's duty; the peer's window makes the old ones useless here, so it gets them anew too.
    open(&mut plane_a, 0, GCM);
    for direction in [Direction::In, Direction::Out] {
        plane_b.remove(sa(1, direction, GCM).id).unwrap();
        plane_b.install(&sa(1, direction, GCM)).unwrap();
    }
    assert!(a.pings("10.1.0.2", "10.2.0.2", 56));
    assert_eq!(lab.leaked(), 0);

    // A clean stop gives the traffic free, and shows that the detector sees what it should.
    plane_a.close_tunnel(CHILD).unwrap();
    plane_a.shut_down().unwrap();
    talk();
    assert!(lab.leaked() > 0, "the detector works");
    for family in ["-4", "-6"] {
        let rules = lab.ns("gw-a").run(&format!("ip {family} rule"));
        assert!(!rules.contains("proto 201"), "{rules}");
        let routes = lab.ns("gw-a").run(&format!("ip {family} route show table all"));
        assert!(!routes.contains("51657"), "{routes}");
    }
}

#[test]
fn guards_outlive_tunnels_and_stale_ones_are_settled() {
    if !possible("guards_outlive_tunnels_and_stale_ones_are_settled") {
        return;
    }
    let lab = Lab::new();
    let [mut plane, _other] = lab.tunnel(GCM, true);
    let a = lab.ns("host-a");
    plane.close_tunnel(CHILD).unwrap();
    assert!(!a.pings("10.1.0.2", "10.2.0.2", 56));
    let mut other = guard(0);
    other.remote = vec![net("10.3.0.0/16")];
    plane.guard(&other).unwrap();
    assert_eq!(lab.leaked(), 0);
    assert!(!a.pings("10.1.0.2", "10.2.0.2", 56));
    assert!(lab.leaked() > 0, "10.2/16 is not guarded any more");
    drop(plane);

    let mut plane = lab.plane(0, true, Box::new(|_, _, _| {}));
    plane.guard(&guard(0)).unwrap();
    let rules = || lab.ns("gw-a").run("ip rule");
    assert!(rules().contains("10.3.0.0/16") && rules().contains("10.2.0.0/16"));
    plane.settle().unwrap();
    assert!(!rules().contains("10.3.0.0/16") && rules().contains("10.2.0.0/16"));
    plane.unguard(CHILD).unwrap();
    assert!(!rules().contains("10.2.0.0/16"));
}

#[test]
fn rules_and_routes_that_others_removed_come_back_at_once() {
    if !possible("rules_and_routes_that_others_removed_come_back_at_once") {
        return;
    }
    let lab = Lab::new();
    let [mut plane, _other] = lab.tunnel(GCM, true);
    let (a, gw) = (lab.ns("host-a"), lab.ns("gw-a"));
    gw.run("ip rule add from 10.9.0.0/16 priority 3401 lookup main");
    for damage in [
        "ip rule del from 10.1.0.0/16 to 10.2.0.0/16 lookup 51657",
        "ip rule del iif lo proto 201",
        "ip route flush table 51657",
        "ip -6 route flush table 51657",
        "ip link set cygtest0 down",
        "ip -6 rule flush proto 201",
        "ip rule flush proto 201",
    ] {
        while plane.next_event().is_some() {}
        gw.take_away(damage);
        let begin = Instant::now();
        let event = loop {
            match plane.next_event() {
                Some(PlaneEvent::Repaired { count, .. }) => break Some(count),
                _ if begin.elapsed() > Duration::from_secs(2) => break None,
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        println!("{damage}: {event:?} after {:?}", begin.elapsed());
        assert!(event.is_some_and(|count| count > 0), "{damage}");
        for (from, to) in HOSTS {
            assert!(a.pings(from, to, 56), "{damage}");
        }
    }
    assert_eq!(plane.resync().unwrap(), 0);
    plane.close_tunnel(CHILD).unwrap();
    plane.shut_down().unwrap();
    assert!(gw.run("ip rule").contains("10.9.0.0/16"), "a rule of somebody else stays");
}

/// A device that somebody deletes, renames or takes into another namespace: packets are dropped meanwhile, not let out, and
/// the same plane carries them again.
#[test]
fn a_device_that_others_remove_is_made_anew_and_told() {
    if !possible("a_device_that_others_remove_is_made_anew_and_told") {
        return;
    }
    let lab = Lab::new();
    let [mut plane, _other] = lab.tunnel(GCM, true);
    let (a, gw) = (lab.ns("host-a"), lab.ns("gw-a"));
    let elsewhere = format!("ip link set cygtest0 netns {}", lab.ns("host-b").name());
    for damage in ["ip link del cygtest0", "ip link set cygtest0 down name gone0", &elsewhere] {
        while plane.next_event().is_some() {}
        let stop = Arc::new(AtomicBool::new(false));
        let talker = a.spawn({
            let stop = Arc::clone(&stop);
            move || {
                let socket = UdpSocket::bind(addr("10.1.0.2", 0)).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let _ = socket.send_to(b"secret", addr("10.2.0.2", 9));
                }
            }
        });
        let begin = Instant::now();
        if !gw.output(damage).status.success() {
            println!("this kernel refuses: {damage}");
            stop.store(true, Ordering::Relaxed);
            talker.join().unwrap();
            continue;
        }
        let told = loop {
            match plane.next_event() {
                Some(PlaneEvent::Repaired { what: "TUN device", .. }) => break true,
                _ if begin.elapsed() > Duration::from_secs(5) => break false,
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        println!("{damage}: told {told} after {:?}", begin.elapsed());
        assert!(told, "{damage}: {}", gw.run("ip link"));
        stop.store(true, Ordering::Relaxed);
        talker.join().unwrap();
        for (from, to) in HOSTS {
            assert!(a.pings(from, to, 56), "{damage}");
        }
        transfer(&lab, ("host-b", "10.2.0.2"), ("host-a", "10.1.0.2"), 1 << 20);
        assert_eq!(lab.leaked(), 0, "{damage}");
    }
    assert_eq!(plane.resync().unwrap(), 0);
    plane.close_tunnel(CHILD).unwrap();
    plane.shut_down().unwrap();
}

/// A route of another source in the place of ours would be refused: it is put there instead, and there is no moment in which
/// own packets have none.
#[test]
fn the_source_of_own_packets_changes_in_place() {
    if !possible("the_source_of_own_packets_changes_in_place") {
        return;
    }
    let lab = Lab::new();
    let gw = lab.ns("gw-a");
    gw.run("ip addr add 10.1.0.77/24 dev lan");
    let [mut plane, _other] = lab.tunnel(GCM, true);
    for source in ["10.1.0.77", "10.1.0.1"] {
        let chosen = Source::Address(source.parse().unwrap());
        plane.follow_sources([(CHILD, chosen)].into()).unwrap();
        let routes = gw.run("ip route show table 51658");
        assert!(routes.contains(&format!("src {source}")), "{source}: {routes}");
    }
}

#[test]
fn a_rule_of_others_before_the_guards_is_told() {
    if !possible("a_rule_of_others_before_the_guards_is_told") {
        return;
    }
    let lab = Lab::new();
    let [mut plane, _other] = lab.tunnel(GCM, true);
    assert_eq!(plane.obstacles(), []);
    let gw = lab.ns("gw-a");
    let mut expect = |count| {
        let begin = Instant::now();
        while plane.next_event() != Some(PlaneEvent::InFront { count }) {
            assert!(begin.elapsed() < Duration::from_secs(5), "{count}");
            std::thread::sleep(Duration::from_millis(5));
        }
        plane.obstacles()
    };
    gw.run("ip rule add from 10.1.0.0/16 priority 100 lookup main");
    let told = expect(1);
    assert!(told.len() == 1 && told[0].what.ends_with("100: from 10.1.0.0/16 lookup 254"), "{told:?}");
    gw.run("ip rule del priority 100");
    assert_eq!(expect(0), []);
}

/// A socket that is bound to no address is routed before it has a source.
#[test]
fn own_packets_without_a_source_go_by_the_tunnel_or_not_at_all() {
    if !possible("own_packets_without_a_source_go_by_the_tunnel_or_not_at_all") {
        return;
    }
    let lab = Lab::new();
    let [mut plane, _other] = lab.tunnel(GCM, true);
    let gw = lab.ns("gw-a");
    let talk = || {
        for (any, to) in [("0.0.0.0", "10.2.0.2"), ("::", "fd02::2")] {
            gw.inside(move || {
                let socket = UdpSocket::bind(addr(any, 0)).unwrap();
                (0..20).for_each(|_| drop(socket.send_to(b"secret", addr(to, 9))));
            });
        }
        ["10.2.0.2", "fd02::2"]
            .map(|to| gw.output(&format!("ping -q -c 2 -i 0.05 -W 1 {to}")).status.success())
    };
    assert_eq!(talk(), [true, true], "with the tunnel's own source");
    assert_eq!(lab.leaked(), 0);
    plane.close_tunnel(CHILD).unwrap();
    assert_eq!(talk(), [false, false]);
    assert_eq!(lab.leaked(), 0, "while the tunnel is closed");

    // The address moves; the guard follows it.
    gw.run("ip addr del 10.1.0.1/24 dev lan");
    gw.run("ip addr add 10.1.0.77/24 dev lan");
    let begin = Instant::now();
    while !gw.run("ip route show table 51658").contains("10.1.0.77") {
        assert!(begin.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(10));
    }
    talk();
    assert_eq!(lab.leaked(), 0, "after the address moved");
}

/// Forwarding is decided by both ends: the remote network of one guard is not the remote network of another's hosts.
#[test]
fn packets_between_ends_of_different_guards_go_their_ordinary_way() {
    if !possible("packets_between_ends_of_different_guards_go_their_ordinary_way") {
        return;
    }
    let lab = Lab::new();
    let [mut plane, _other] = lab.tunnel(GCM, true);
    let pair = |n: u32, local: &str, remote: &str| {
        let child = ChildId { tunnel: TunnelId(n), index: 0 };
        let reqid = Reqid::of(child).unwrap();
        GuardSpec { child, reqid, local: vec![net(local)], remote: vec![net(remote)], ..guard(0) }
    };
    plane.guard_all(&[pair(2, "10.1.7.0/24", "10.3.0.0/16"), pair(3, "10.8.0.0/16", "10.4.0.0/16")]).unwrap();
    let a = lab.ns("host-a");
    let seen = |to: &str| {
        let before = lab.leaked();
        a.pings("10.1.0.2", to, 56);
        lab.leaked() > before
    };
    assert!(seen("10.3.0.2") && seen("10.4.0.2"));
    assert!(!seen("10.2.0.2"));
}

/// Over IPv6 AES-CBC with SHA-512 would need 1512 octets for a packet of 1400.
#[test]
fn the_device_promises_what_the_suite_can_carry() {
    if !possible("the_device_promises_what_the_suite_can_carry") {
        return;
    }
    let lab = Lab::new();
    let mut plane = lab.plane(0, true, Box::new(|_, _, _| {}));
    let mtu = || {
        let text = lab.ns("gw-a").run("ip link show dev cygtest0");
        text.split("mtu ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse::<u32>().unwrap()
    };
    plane.guard(&guard(0)).unwrap();
    plane.open_tunnel(&netns::tunnel(0)).unwrap();
    let cbc = EspSuite::plain(Encr::AesCbc256, Some(Integ::HmacSha512_256), false);
    let mut long = sa(0, Direction::Out, cbc);
    (long.local, long.remote) = ("2001:db8:a::1".parse().unwrap(), "2001:db8:b::1".parse().unwrap());
    plane.install(&long).unwrap();
    assert_eq!(mtu(), 1390);
    plane
        .install(&SaSpec {
            id: SaId { spi: Spi::new(4711).unwrap(), ..long.id },
            ..sa(0, Direction::Out, GCM)
        })
        .unwrap();
    assert_eq!(mtu(), 1390, "the old SA is still there");
    plane.remove(long.id).unwrap();
    assert_eq!(mtu(), 1400);
}

#[test]
fn neighbours_are_reached_directly_under_a_guard_of_everything() {
    if !possible("neighbours_are_reached_directly_under_a_guard_of_everything") {
        return;
    }
    let lab = Lab::new();
    let mut plane = lab.plane(0, true, Box::new(|_, _, _| {}));
    let (host, gw) = (lab.ns("host-a"), lab.ns("gw-a"));
    let mut all = guard(0);
    all.remote = vec![net("0.0.0.0/0"), net("::/0")];
    let reaches = || {
        [("10.1.0.1", "10.1.0.2"), ("fd01::1", "fd01::2")].map(|(ours, theirs)| {
            host.pings(theirs, ours, 56)
                && gw.pings(ours, theirs, 56)
                && gw.output(&format!("ping -q -c 1 -W 1 {theirs}")).status.success()
        })
    };
    plane.guard(&all).unwrap();
    assert_eq!(reaches(), [false, false]);
    all.bypass = Bypass::ATTACHED;
    plane.guard(&all).unwrap();
    assert_eq!(reaches(), [true, true]);
    for (from, to) in HOSTS {
        assert!(!host.pings(from, to, 56));
    }
    assert_eq!(lab.leaked(), 0, "the tunnel is closed");
}

/// In both directions, by hosts and by the gateway, and nothing beside what is listed.
#[test]
fn listed_networks_are_reached_directly_under_a_guard_of_everything() {
    if !possible("listed_networks_are_reached_directly_under_a_guard_of_everything") {
        return;
    }
    let lab = Lab::new();
    let mut plane = lab.plane(0, true, Box::new(|_, _, _| {}));
    let (host, gw, transit) = (lab.ns("host-a"), lab.ns("gw-a"), lab.ns("transit"));
    transit.run("ip route add 10.1.0.0/16 via 192.0.2.1");
    transit.run("ip addr add 203.0.113.1/32 dev lo");
    transit.run("ip addr add 203.0.113.200/32 dev lo");
    let mut all = guard(0);
    all.remote = vec![net("0.0.0.0/0"), net("::/0")];
    all.bypass = Bypass { attached: true, networks: vec![net("203.0.113.0/25").range] };
    plane.guard(&all).unwrap();
    assert!(host.pings("10.1.0.2", "203.0.113.1", 56) && transit.pings("203.0.113.1", "10.1.0.2", 56));
    assert!(gw.pings("10.1.0.1", "203.0.113.1", 56) && gw.pings("192.0.2.1", "203.0.113.1", 56));
    let passed = lab.leaked();
    assert!(!host.pings("10.1.0.2", "203.0.113.200", 56) && !gw.pings("10.1.0.1", "203.0.113.200", 56));
    assert_eq!(lab.leaked(), passed, "what is not listed leaves by the tunnel or not at all");
    all.bypass = Bypass::ATTACHED;
    plane.guard(&all).unwrap();
    assert!(!host.pings("10.1.0.2", "203.0.113.1", 56));
}

/// All tunnels of a gateway share its socket: while that is full, each batch waits for it a moment at most.
#[test]
fn a_full_socket_drops_at_once_and_holds_nobody_up() {
    if !possible("a_full_socket_drops_at_once_and_holds_nobody_up") {
        return;
    }
    let lab = Lab::new();
    let [plane, _other] = lab.tunnel(GCM, true);
    lab.ns("gw-a").run("tc qdisc add dev wan root tbf rate 8kbit burst 1600 limit 200000000");
    let host = lab.ns("host-a");
    let send = move |lens: Vec<usize>| {
        host.inside(move || {
            let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
            for (n, len) in lens.into_iter().enumerate() {
                socket.send_to(&vec![0; len], "10.2.0.2:9").unwrap();
                if n % 100 == 99 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
    };
    let begin = Instant::now();
    while dropped(&plane, "socket_full") == 0 && begin.elapsed() < Duration::from_secs(30) {
        send(vec![1300; 2000]);
    }
    std::thread::sleep(Duration::from_millis(500));
    let before = dropped(&plane, "socket_full");
    assert!(before > 0, "the socket is full");
    // None joins the train of the one before it, so that each is sent by itself.
    send((0..60).map(|n| 100 + n).collect());
    std::thread::sleep(Duration::from_secs(1));
    let counted = dropped(&plane, "socket_full") - before;
    assert!(counted >= 55, "{counted} of 60 have been decided about after a second");
}

#[test]
fn guards_that_only_marks_tell_apart_are_refused_and_both_named() {
    if !possible("guards_that_only_marks_tell_apart_are_refused_and_both_named") {
        return;
    }
    let lab = Lab::new();
    let mut plane = lab.plane(0, true, Box::new(|_, _, _| {}));
    let marked = |n, value| GuardSpec {
        child: ChildId { tunnel: TunnelId(n), index: 0 },
        mark: Some(Mark { value, mask: u32::MAX }),
        ..guard(0)
    };
    plane.guard(&marked(4, 1)).unwrap();
    let error = plane.guard(&marked(5, 2)).unwrap_err();
    assert_eq!(error.kind, PlaneErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.contains("child 5.0") && text.contains("child 4.0") && text.contains("userspace"), "{text}");
    plane.guard(&marked(5, 1)).unwrap();
}

#[test]
fn ten_thousand_guards_are_put_in_force_and_released_in_seconds() {
    if !possible("ten_thousand_guards_are_put_in_force_and_released_in_seconds") {
        return;
    }
    let lab = Lab::new();
    for distinct_locals in [false, true] {
        let mut plane = lab.plane(0, true, Box::new(|_, _, _| {}));
        let guards: Vec<GuardSpec> = (0..10_000)
            .map(|n| {
                let child = ChildId { tunnel: TunnelId(n), index: 0 };
                let (b, c) = (n / 256, n % 256);
                let local =
                    if distinct_locals { format!("10.{b}.{c}.0/24") } else { "10.1.0.0/16".to_owned() };
                GuardSpec {
                    child,
                    reqid: Reqid::of(child).unwrap(),
                    local: vec![net(&local)],
                    remote: vec![net(&format!("172.{}.{c}.0/24", 100 + b))],
                    ..guard(0)
                }
            })
            .collect();
        let begin = Instant::now();
        plane.guard_all(&guards).unwrap();
        plane.settle().unwrap();
        let start = begin.elapsed();
        let rules = lab.ns("gw-a").run("ip rule").lines().count();
        let children: Vec<ChildId> = guards.iter().map(|guard| guard.child).collect();
        let begin = Instant::now();
        plane.unguard_all(&children).unwrap();
        plane.shut_down().unwrap();
        let end = begin.elapsed();
        println!("distinct locals {distinct_locals}: {rules} rules, start {start:?}, end {end:?}");
        assert!(start < Duration::from_secs(8) && end < Duration::from_secs(8), "{start:?} {end:?}");
    }
}

/// Guards whose rules are many are changed without waiting until the old rules are gone; those do nothing and go later.
#[test]
fn rules_that_many_guards_leave_behind_are_closed_at_once_and_removed_later() {
    if !possible("rules_that_many_guards_leave_behind_are_closed_at_once_and_removed_later") {
        return;
    }
    let lab = Lab::new();
    let mut plane = lab.plane(0, true, Box::new(|_, _, _| {}));
    let guards: Vec<GuardSpec> = (0..200)
        .map(|n| {
            let child = ChildId { tunnel: TunnelId(n), index: 0 };
            GuardSpec {
                child,
                reqid: Reqid::of(child).unwrap(),
                local: vec![net(&format!("10.100.{n}.0/24"))],
                remote: vec![net(&format!("172.20.{n}.0/24"))],
                ..guard(0)
            }
        })
        .collect();
    let ours =
        || Routing::open().unwrap().rules(Family::V4).unwrap().iter().filter(|r| r.owner == 201).count();
    let rules = || lab.ns("gw-a").inside(ours);
    plane.guard_all(&guards[..100]).unwrap();
    plane.settle().unwrap();
    let half = rules();
    plane.guard_all(&guards[100..]).unwrap();
    let at_once = rules();
    let way = || lab.ns("gw-a").run("ip route get 172.20.150.1 from 10.100.150.1 iif lo");
    assert!(way().contains("cygtest0"), "in force at once: {}", way());
    let end = Instant::now() + Duration::from_secs(20);
    let mut all = at_once;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        let now = rules();
        if now < 2 * half + 50 && now == all {
            break;
        }
        all = now;
    }
    assert!(all < 2 * half + 50, "{all} rules of 200 guards, {half} of 100");
    assert!(at_once > all, "the old rules were still there: {at_once}, and {all} in the end");
    assert!(way().contains("cygtest0"), "{}", way());
    plane.shut_down().unwrap();
    assert_eq!(rules(), 0);
}

/// The kernel refuses to cut trains into datagrams that exceed the path's MTU; it may fragment single ones.
#[test]
fn a_path_narrower_than_the_packets_still_carries_them() {
    if !possible("a_path_narrower_than_the_packets_still_carries_them") {
        return;
    }
    let lab = Lab::new();
    let planes = lab.tunnel(GCM, true);
    for (ns, dev) in [("gw-a", "wan"), ("transit", "to-a")] {
        lab.ns(ns).run(&format!("ip link set {dev} mtu 1300"));
    }
    transfer(&lab, ("host-a", "10.1.0.2"), ("host-b", "10.2.0.2"), 2 << 20);
    transfer(&lab, ("host-b", "10.2.0.2"), ("host-a", "10.1.0.2"), 2 << 20);
    assert!(planes[0].offloads().udp_segment, "it is the path, not the device");
}

/// T78: cleartext that claims to come out of the tunnel.
#[test]
fn forged_cleartext_is_not_forwarded() {
    if !possible("forged_cleartext_is_not_forwarded") {
        return;
    }
    let lab = Lab::new();
    let (host, transit) = (lab.ns("host-a"), lab.ns("transit"));
    transit.run("ip addr add 10.2.0.9/32 dev lo");
    transit.run("ip route add 10.1.0.0/16 via 192.0.2.1");
    // Reverse path filtering would hide the rules' work.
    for dev in ["all", "wan", "lan"] {
        lab.ns("gw-a").run(&format!("sysctl -qw net.ipv4.conf.{dev}.rp_filter=0"));
    }
    let listener = host.inside(|| UdpSocket::bind("10.1.0.2:7777").unwrap());
    listener.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let forge = || {
        transit.inside(|| UdpSocket::bind("10.2.0.9:7").unwrap().send_to(b"forged", "10.1.0.2:7777").unwrap())
    };
    forge();
    assert!(listener.recv(&mut [0; 16]).is_ok(), "without a guard it arrives");
    let _planes = lab.tunnel(GCM, true);
    forge();
    assert!(listener.recv(&mut [0; 16]).is_err(), "under guard it does not");
}

#[test]
fn everything_may_be_guarded_without_catching_ike_and_esp() {
    if !possible("everything_may_be_guarded_without_catching_ike_and_esp") {
        return;
    }
    let lab = Lab::new();
    let mut planes = lab.tunnel(GCM, true);
    for (side, plane) in planes.iter_mut().enumerate() {
        let mut all = guard(side);
        all.local = vec![net("0.0.0.0/0"), net("::/0")];
        all.remote.clone_from(&all.local);
        plane.guard(&all).unwrap();
    }
    assert!(lab.ns("host-a").pings("10.1.0.2", "10.2.0.2", 56));
    // "Too big" messages from the gateway to its own network are under such a guard, too, so hosts must know.
    for host in ["host-a", "host-b"] {
        lab.ns(host).run("ip link set lan mtu 1400");
    }
    transfer(&lab, ("host-a", "10.1.0.2"), ("host-b", "10.2.0.2"), 1 << 20);
    assert_eq!(lab.leaked(), 0);
}

#[test]
fn ike_goes_to_the_sink_and_keepalives_nowhere() {
    if !possible("ike_goes_to_the_sink_and_keepalives_nowhere") {
        return;
    }
    let lab = Lab::new();
    let (sink, messages) = mpsc::channel();
    let plane = lab.plane(
        0,
        true,
        Box::new(move |local, remote, bytes| {
            sink.send((local, remote, bytes.to_vec())).unwrap();
        }),
    );
    let from = lab.ns("gw-b").inside(|| {
        let socket = UdpSocket::bind(addr(OUTER[1], 4500)).unwrap();
        for message in [&[0xFF][..], &[0, 0, 0, 0, 1, 2, 3], &[9, 9, 9], &[0, 0, 0, 0, 4]] {
            socket.send_to(message, addr(OUTER[0], 4500)).unwrap();
        }
        socket.local_addr().unwrap()
    });
    let expect = |bytes: &[u8]| {
        let got = messages.recv_timeout(Duration::from_secs(2)).unwrap();
        assert_eq!(got, (addr(OUTER[0], 4500), from, bytes.to_vec()));
    };
    expect(&[1, 2, 3]);
    expect(&[4]);
    assert!(messages.recv_timeout(Duration::from_millis(100)).is_err());
    assert_eq!(dropped(&plane, "truncated"), 1);
}

/// A responder sends on new SAs before its answer is here.
#[test]
fn packets_that_come_before_their_sa_wait_for_it_a_moment() {
    if !possible("packets_that_come_before_their_sa_wait_for_it_a_moment") {
        return;
    }
    let lab = Lab::new();
    let [mut plane, mut peer] = lab.tunnel(GCM, true);
    let inbound = sa(0, Direction::In, GCM);
    let socket = lab.ns("host-a").inside(|| UdpSocket::bind("10.1.0.2:7000").unwrap());
    let send = || {
        lab.ns("host-b")
            .inside(|| UdpSocket::bind("10.2.0.2:0").unwrap().send_to(&[7], "10.1.0.2:7000").unwrap())
    };
    // On a busy machine the moment may be over before the SA is there.
    let arrives = (0..20).any(|_| {
        plane.remove(inbound.id).unwrap();
        let sent = counters(&mut peer).0.packets;
        send();
        while counters(&mut peer).0.packets == sent {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(20));
        plane.install(&inbound).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.recv(&mut [0; 8]).is_ok()
    });
    assert!(arrives, "a packet that came before its SA is delivered");
    // What waits in vain is dropped and counted, and it is bounded whoever sends it.
    let before = dropped(&plane, "unknown_spi");
    lab.ns("gw-b").inside(|| {
        let socket = UdpSocket::bind(addr(OUTER[1], 0)).unwrap();
        for n in 0..2_000_u32 {
            socket.send_to(&[0xAB; 1_200], addr(OUTER[0], 4500)).unwrap();
            if n % 50 == 49 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let end = Instant::now() + Duration::from_secs(5);
    while dropped(&plane, "unknown_spi") < before + 2_000 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(dropped(&plane, "unknown_spi"), before + 2_000);
}

#[test]
fn the_plane_tells_of_demand_limits_and_moved_peers() {
    if !possible("the_plane_tells_of_demand_limits_and_moved_peers") {
        return;
    }
    let lab = Lab::new();
    let mut planes = [0, 1].map(|side| lab.plane(side, true, Box::new(|_, _, _| {})));
    let a = lab.ns("host-a");
    for (side, plane) in planes.iter_mut().enumerate() {
        plane.guard(&guard(side)).unwrap();
    }
    // Demand, and not more than once a second.
    assert!(!a.pings("10.1.0.2", "10.2.0.2", 56));
    // It names the packet: an echo request, whose type and code stand where ports would.
    let Some(PlaneEvent::Acquire(Acquire { child: CHILD, packet: Some(packet) })) =
        next_event(&mut planes[0])
    else {
        panic!("nothing asked for the tunnel");
    };
    let ends = (packet.local.to_string(), packet.remote.to_string());
    assert_eq!(ends, ("10.1.0.2/32[1/2048]".into(), "10.2.0.2/32[1/2048]".into()));
    assert!(dropped(&planes[0], "no_sa") >= 3);
    let mut silent = guard(0);
    silent.action = GuardAction::Drop;
    planes[0].guard(&silent).unwrap();
    while planes[0].next_event().is_some() {}
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!a.pings("10.1.0.2", "10.2.0.2", 56));
    assert_eq!(planes[0].next_event(), None);

    // The peer seems to be behind a NAT that moved it: our side believes in port 31000.
    open(&mut planes[1], 1, GCM);
    planes[0].open_tunnel(&netns::tunnel(0)).unwrap();
    let mut inbound = sa(0, Direction::In, GCM);
    inbound.encap = Some(UdpEncap { local_port: 4500, remote_port: 31_000 });
    let mut outbound = sa(0, Direction::Out, GCM);
    outbound.limits = VolumeLimits { soft_packets: 2, hard_packets: 4, ..VolumeLimits::default() };
    planes[0].install(&inbound).unwrap();
    planes[0].install(&outbound).unwrap();
    assert!(a.pings("10.1.0.2", "10.2.0.2", 56));
    let remote = addr(OUTER[1], 4500);
    let mut events = Vec::new();
    while let Some(event) = next_event(&mut planes[0]) {
        events.push(event);
    }
    let moved = PlaneEvent::PeerMoved { sa: inbound.id, remote };
    assert_eq!(events.iter().filter(|e| **e == moved).count(), 1, "{events:?}");
    assert!(events.contains(&PlaneEvent::Expired { sa: outbound.id, hard: false }), "{events:?}");
    planes[0].migrate(inbound.id, NewAddresses { local: addr(OUTER[0], 4500), remote }).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    a.pings("10.1.0.2", "10.2.0.2", 56);
    assert_eq!(next_event(&mut planes[0]), Some(PlaneEvent::Expired { sa: outbound.id, hard: true }));
    assert_eq!(next_event(&mut planes[0]), None);
    let (sent, _) = counters(&mut planes[0]);
    assert_eq!(sent.packets, 4);
}

#[test]
fn packets_that_do_not_fit_are_told_so_by_the_kernel() {
    if !possible("packets_that_do_not_fit_are_told_so_by_the_kernel") {
        return;
    }
    let lab = Lab::new();
    let _planes = lab.tunnel(GCM, true);
    let a = lab.ns("host-a");
    let output = a.output("ping -c 1 -W 1 -M do -s 1400 -I 10.1.0.2 10.2.0.2");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("mtu = 1400") || text.contains("mtu=1400"), "{text}");
}

fn counters(plane: &mut UserPlane) -> (cygnet_model::plane::SaCounters, cygnet_model::plane::SaCounters) {
    let mut all = Vec::new();
    plane.counters(&mut all).unwrap();
    let of = |direction| all.iter().find(|(id, _)| id.direction == direction).unwrap().1;
    (of(Direction::Out), of(Direction::In))
}

fn dropped(plane: &UserPlane, name: &str) -> u64 {
    plane.drops().find(|(reason, _)| reason.name() == name).unwrap().1
}

fn next_event(plane: &mut UserPlane) -> Option<PlaneEvent> {
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        if let Some(event) = plane.next_event() {
            return Some(event);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

fn addr(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// Sends `len` octets by TCP and compares sums at the end.
fn transfer(lab: &Lab, from: (&str, &'static str), to: (&str, &'static str), len: usize) {
    let (source, sink) = (from.1, to.1);
    let listener = lab.ns(to.0).inside(move || TcpListener::bind(addr(sink, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (mut buffer, mut total, mut sum) = (vec![0; 1 << 16], 0, 0);
        loop {
            let n = stream.read(&mut buffer).unwrap();
            if n == 0 {
                return (total, sum, peer.ip());
            }
            sum = buffer[..n].iter().enumerate().fold(sum, |sum, (i, octet)| digest(sum, total + i, *octet));
            total += n;
        }
    });
    let sent = lab.ns(from.0).inside(move || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let data: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        stream.write_all(&data).unwrap();
        data.iter().enumerate().fold(0, |sum, (i, octet)| digest(sum, i, *octet))
    });
    assert_eq!(receiver.join().unwrap(), (len, sent, source.parse().unwrap()));
}

fn digest(sum: u64, i: usize, octet: u8) -> u64 {
    sum.rotate_left(5) ^ (u64::from(octet) + i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
