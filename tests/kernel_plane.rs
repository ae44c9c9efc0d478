//! The kernel's data plane through its port. What needs ESP skips where the kernel has none; run it in the lab with
//! `scripts/vm-lab uml -- TESTBINARY`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tools of tests, outside of test functions")]

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use cygnet::plane::echo::{EchoSockets, Heard, Lead};
use cygnet::plane::near;
use cygnet::plane::source::{self, Wish};
use cygnet::quality::Method;
use cygnet::quality::wire::{self, Probe};
use cygnet::shaping::apply::{Gateway, Shaper};
use cygnet_esp::inner::InnerHeader;
use cygnet_model::plane::{Acquire, DataPlane, PlaneErrorKind, PlaneEvent, SaCounters};
use cygnet_model::tunnel::{
    Bypass, Direction, GuardAction, GuardSpec, Mark, NewAddresses, SaSpec, Source, UdpEncap, VolumeLimits,
};
use cygnet_model::{ChildId, Reqid, SecretBytes, Spi, TrafficSelector, TunnelId};
use cygnet_xfrm::policy::{Policy, PolicyAction, PolicyDirection, PolicyKey, PolicySelector, PortMask};
use cygnet_xfrm::routing::Routing;
use cygnet_xfrm::{probe, sockopt};

mod sites;
use sites::support::skip;
use sites::*;

#[test]
fn a_guard_blocks_from_its_first_to_its_last_call() {
    let Some((mut a, mut b)) = sites() else { return };
    assert!(pings(&a, 2), "the namespaces are joined in clear text");
    a.guard(GuardAction::Drop);
    a.guard(GuardAction::Drop);
    assert!(!pings(&a, 2));
    a.open(A);
    assert!(!pings(&a, 2), "an open tunnel without an SA sends nothing");
    a.plane.close_tunnel(child()).unwrap();
    assert!(!pings(&a, 2));
    a.plane.unguard(child()).unwrap();
    a.plane.unguard(child()).unwrap();
    assert!(pings(&a, 2));
    // What comes in for a guarded network is dropped as well.
    b.guard(GuardAction::Drop);
    assert!(!pings(&a, 2));
    assert_eq!(a.netns.run("ip xfrm policy").trim(), "");
}

#[test]
fn a_guard_that_acquires_asks_once_and_lets_nothing_pass() {
    let Some((mut a, _b)) = sites() else { return };
    a.guard(GuardAction::Acquire);
    assert!(!pings(&a, 20));
    // The packet is named. The first one that asks is none yet: ping connects a UDP socket to learn its source, and the
    // look-up of a route is enough.
    let asks = |event| match event {
        PlaneEvent::Acquire(Acquire { child, packet: Some(p) }) => {
            (child, p.local.to_string(), p.remote.to_string())
        }
        other => panic!("{other:?}"),
    };
    let (asked, local, remote) = asks(wait_for("an acquire", || a.plane.next_event()));
    assert_eq!(asked, child());
    let named = |end: &str, address: &str| end.starts_with(&format!("{address}/32[")) && end.contains('/');
    assert!(named(&local, "10.1.0.1") && named(&remote, "10.2.0.1"), "{local} {remote}");
    assert!(local.contains("[17/") || local.contains("[1/"), "of UDP, or of the echo request: {local}");
    assert_eq!(a.plane.next_event(), None);
    // Taking the guard up again asks again, without waiting for the kernel's larval state to expire.
    std::thread::sleep(Duration::from_millis(1100));
    a.guard(GuardAction::Acquire);
    assert!(!pings(&a, 2));
    assert_eq!(asks(wait_for("a second acquire", || a.plane.next_event())).0, child());
}

/// `ip xfrm policy flush`, a script that tidies up: the guards are back before anybody would notice.
#[test]
fn guards_that_others_remove_are_put_back_and_told() {
    let Some((mut a, _b)) = sites() else { return };
    a.guard(GuardAction::Drop);
    let before = policies(&a.netns);
    for (removal, count) in [
        ("ip xfrm policy flush", 3),
        ("ip xfrm policy delete src 10.1.0.0/16 dst 10.2.0.0/16 dir out", 1),
        ("ip xfrm policy deleteall", 3),
    ] {
        a.netns.run(removal);
        let told = wait_for("an event", || a.plane.next_event());
        assert_eq!(told, PlaneEvent::Repaired { what: "policies", count }, "{removal}");
        assert_eq!(policies(&a.netns), before, "{removal}");
        assert!(!pings(&a, 2));
        assert_eq!(a.plane.next_event(), None, "own changes are no event");
        // Repairs that follow each other closely are left to the audit.
        std::thread::sleep(Duration::from_millis(100));
    }
    // The audit needs no event.
    assert_eq!(a.plane.audit().unwrap(), 0);
    a.netns.run("ip xfrm policy flush");
    assert_eq!(a.plane.audit().unwrap(), 3);
    assert_eq!(policies(&a.netns), before);
    assert_eq!(a.plane.audit().unwrap(), 0);
}

/// The kernel has one place for a selector. Taking it would end somebody else's tunnel, and giving it up later would
/// open what they guard.
#[test]
fn the_place_of_another_program_is_refused_with_its_owner() {
    let Some((mut a, _b)) = sites() else { return };
    a.netns.run(
        "ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority 399999 tmpl src 192.0.2.1 dst 192.0.2.2 \
         proto esp reqid 7 mode tunnel",
    );
    let before = a.netns.run("ip xfrm policy");
    let (local, remote) = a.inner();
    let spec = GuardSpec {
        child: child(),
        reqid: reqid(),
        local,
        remote,
        action: GuardAction::Drop,
        mark: None,
        weight: 0,
        bypass: Bypass::NONE,
    };
    let e = a.plane.guard(&spec).unwrap_err();
    assert_eq!(e.kind, PlaneErrorKind::Exists);
    assert!(e.detail.contains("10.1.0.0/16 to 10.2.0.0/16 (out, priority 399999, reqid 7)"), "{e}");
    assert_eq!(a.netns.run("ip xfrm policy"), before, "nothing is left of what was refused");
    a.plane.release().unwrap();
    assert_eq!(a.netns.run("ip xfrm policy"), before);
}

#[test]
fn a_policy_that_is_asked_before_a_guard_is_told() {
    let Some((mut a, _b)) = sites() else { return };
    a.guard(GuardAction::Drop);
    assert_eq!(a.plane.obstacles(), []);
    a.netns.run("ip xfrm policy add src 10.1.0.0/16 dst 0.0.0.0/0 dir out priority 100 action allow");
    a.plane.audit().unwrap();
    let told = a.plane.obstacles();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].what.contains("clear text") && told[0].what.contains("priority 100"), "{told:?}");
    a.netns.run("ip xfrm policy delete src 10.1.0.0/16 dst 0.0.0.0/0 dir out");
    a.plane.audit().unwrap();
    assert_eq!(a.plane.obstacles(), []);
    // In the place of a guard; the others are put right all the same.
    a.netns.run("ip xfrm policy update src 10.1.0.0/16 dst 10.2.0.0/16 dir out action allow");
    a.netns.run("ip xfrm policy delete src 10.2.0.0/16 dst 10.1.0.0/16 dir in");
    assert_eq!(
        wait_for("an event", || a.plane.next_event()),
        PlaneEvent::Repaired { what: "policies", count: 1 }
    );
    assert_eq!(a.plane.obstacles().len(), 1, "{:?}", a.plane.obstacles());
    a.netns.run("ip xfrm policy delete src 10.1.0.0/16 dst 10.2.0.0/16 dir out");
    wait_for("the guard", || (a.plane.audit().unwrap() > 0).then_some(()));
    assert!(a.plane.obstacles().is_empty() && !pings(&a, 2));
}

/// What ends a plane leaves its guards; what releases it leaves nothing.
#[test]
fn neighbours_are_reached_directly_under_a_guard_of_everything_and_follow_the_addresses() {
    let Some((mut a, b)) = sites() else { return };
    // A neighbour in the local network, and one that is far away but for the wire of this test.
    a.netns.run("ip addr add 10.3.0.1/24 dev eth0");
    b.netns.run("ip addr add 10.3.0.2/24 dev eth0");
    let near = |a: &Site| {
        let asks = a.netns.try_run("ping -n -q -c 1 -W 1 -I 10.3.0.1 10.3.0.2").status.success();
        let is_asked = b.netns.try_run("ping -n -q -c 1 -W 1 -I 10.3.0.2 10.3.0.1").status.success();
        assert_eq!(asks, is_asked);
        asks
    };
    let far = |a: &Site| a.netns.try_run("ping -n -q -c 1 -W 1 -I 10.3.0.1 10.2.0.1").status.success();
    assert!(near(&a) && far(&a), "there is a way without guards");
    let all = GuardSpec {
        child: child(),
        reqid: reqid(),
        local: vec![ts("10.3.0.0/16")],
        remote: vec![ts("0.0.0.0/0")],
        action: GuardAction::Drop,
        mark: None,
        weight: 0,
        bypass: Bypass::NONE,
    };
    let attached = BTreeSet::from([(ip("10.3.0.0"), 24), (ip("10.3.0.1"), 32)]);
    a.plane.follow(&attached).unwrap();
    a.plane.guard(&all).unwrap();
    assert!(!near(&a) && !far(&a));
    a.plane.guard(&GuardSpec { bypass: Bypass::ATTACHED, ..all.clone() }).unwrap();
    assert!(near(&a) && !far(&a));
    // What is listed passes, attached or not, and what is not listed does not.
    let listed = Bypass { attached: false, networks: vec![ts("10.2.0.0/24").range] };
    a.plane.guard(&GuardSpec { bypass: listed, ..all.clone() }).unwrap();
    assert!(!near(&a) && far(&a));
    a.plane.guard(&GuardSpec { bypass: Bypass::ATTACHED, ..all.clone() }).unwrap();
    assert!(near(&a) && !far(&a));
    // A guard that means the neighbour is asked before.
    let other = ChildId { tunnel: TunnelId(9), index: 0 };
    let narrower =
        GuardSpec { child: other, reqid: Reqid::of(other).unwrap(), remote: vec![ts("10.3.0.2/32")], ..all };
    a.plane.guard(&narrower).unwrap();
    assert!(!near(&a));
    a.plane.unguard(other).unwrap();
    assert!(near(&a));
    a.plane.follow(&BTreeSet::new()).unwrap();
    assert!(!near(&a) && !far(&a));
    a.plane.follow(&attached).unwrap();
    assert!(near(&a));
    // They are ours: another life finds them, and a release ends them.
    let mut a = a.restart();
    assert!(near(&a));
    a.plane.release().unwrap();
    assert_eq!(a.netns.run("ip xfrm policy").trim(), "");
}

#[test]
fn own_packets_get_a_source_inside_the_tunnel_and_others_keep_theirs() {
    let Some((a, b)) = sites() else { return };
    let ns = &a.netns;
    ns.run("sysctl -qw net.ipv4.ip_forward=1");
    ns.run("ip link add lan type veth peer name host");
    ns.run("ip link set lan up");
    ns.run("ip addr add 10.3.0.1/24 dev lan");
    ns.run("ip addr add fd03::1/64 dev lan nodad");
    ns.run("ip addr add 2001:db8::1/64 dev eth0 nodad");
    ns.run("ip route add default via 192.0.2.2");
    ns.run("ip -6 route add default via 2001:db8::2");
    let (local, remote) =
        (vec![ts("10.3.0.0/16"), ts("fd03::/16")], vec![ts("10.4.0.0/16"), ts("fd04::/16")]);
    let guard = GuardSpec {
        child: child(),
        reqid: reqid(),
        local,
        remote,
        action: GuardAction::Drop,
        mark: None,
        weight: 0,
        bypass: Bypass::NONE,
    };
    let wish =
        Wish { tunnel: "t".to_owned(), source: Source::Auto, guard, outer: vec![ip(A), ip("2001:db8::1")] };
    let follow = |wishes: &[Wish]| {
        ns.enter(|| {
            let mut routing = Routing::open().unwrap();
            let layout = source::layout(wishes, &near::own_addresses(&mut routing).unwrap());
            (source::apply(&mut routing, &layout).unwrap(), layout.missing)
        })
    };
    // What a socket without an address gets.
    let chosen = |to: &str| {
        ns.enter(|| {
            let any = if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect((ip(to), 7000)).unwrap();
            socket.local_addr().unwrap().ip()
        })
    };
    let to_all = || ["10.4.0.1", "fd04::1", "10.5.0.1", "fd05::1"].map(chosen);
    let outer = [A, "2001:db8::1", A, "2001:db8::1"].map(ip);
    let inner = ["10.3.0.1", "fd03::1", A, "2001:db8::1"].map(ip);
    assert_eq!(to_all(), outer);
    assert_eq!(follow(std::slice::from_ref(&wish)), (4, BTreeSet::new()));
    assert_eq!(to_all(), inner);
    assert_eq!(follow(std::slice::from_ref(&wish)).0, 0, "as it is already");
    for damage in
        ["ip rule del priority 5200", "ip -6 rule del priority 5200", "ip route flush table 3388997632"]
    {
        ns.run(damage);
        assert_eq!(follow(std::slice::from_ref(&wish)).0, 1, "{damage}");
        assert_eq!(to_all(), inner);
    }
    // Another source takes the place of the first.
    ns.run("ip addr add 10.3.0.7/24 dev lan");
    let other = Wish { source: Source::Address(ip("10.3.0.7")), ..wish.clone() };
    assert_eq!(follow(std::slice::from_ref(&other)).0, 1);
    assert_eq!(chosen("10.4.0.1"), ip("10.3.0.7"));
    follow(std::slice::from_ref(&wish));
    ns.run("ip addr del 10.3.0.7/24 dev lan");
    let forwarded = ns.run("ip route get 10.4.0.1 from 10.3.0.9 iif lan");
    assert!(forwarded.contains("via 192.0.2.2 dev eth0"), "{forwarded}");
    // Routes go with their link and are put back.
    ns.run("ip link set lan down");
    ns.run("ip link set lan up");
    ns.run("ip addr add fd03::1/64 dev lan nodad");
    assert!(follow(std::slice::from_ref(&wish)).0 > 0);
    assert_eq!(to_all(), inner);
    ns.run("ip addr flush dev lan");
    assert_eq!(follow(std::slice::from_ref(&wish)).1, BTreeSet::from(["t".to_owned()]));
    assert_eq!(to_all(), outer);
    follow(&[wish]);
    assert_eq!(ns.enter(|| source::release().unwrap()), 0);
    assert!(!(ns.run("ip rule") + &ns.run("ip -6 rule")).contains("5200:"));
    drop(b);
}

#[test]
fn guards_outlive_a_plane_until_they_are_released() {
    let Some((mut a, _b)) = sites() else { return };
    a.guard(GuardAction::Drop);
    a.open(A);
    a.plane.park().unwrap();
    let mut a = a.restart();
    assert!(!pings(&a, 2));
    assert!(a.plane.holds_policies());
    a.plane.release().unwrap();
    assert_eq!(a.netns.run("ip xfrm policy").trim(), "");
    assert!(pings(&a, 2));
}

#[test]
fn states_that_others_remove_are_told_as_ended() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    up(&mut a, &mut b);
    assert!(pings(&a, 2));
    a.netns.run("ip xfrm state flush");
    let mut told = Vec::new();
    wait_for("two events", || {
        told.extend(a.plane.next_event());
        (told.len() == 2).then_some(())
    });
    assert!(told.iter().all(|e| matches!(e, PlaneEvent::Expired { hard: true, .. })), "{told:?}");
    assert!(!pings(&a, 2), "without states nothing passes, in clear text neither");
    install(&mut a, &mut b, 1);
    assert!(pings(&a, 2), "new states carry at once");
}

#[test]
fn policies_and_states_of_others_are_never_touched() {
    let Some((mut a, _b)) = sites() else { return };
    a.netns.run("ip xfrm policy add src 10.9.0.0/16 dst 10.8.0.0/16 dir out priority 7 action block");
    a.netns.run(
        "ip xfrm policy add src 10.7.0.0/16 dst 10.8.0.0/16 dir out priority 13172800 tmpl src 192.0.2.1 dst \
         192.0.2.2 proto esp reqid 4 mode tunnel",
    );
    let before = a.netns.run("ip xfrm policy");
    a.guard(GuardAction::Drop);
    a.open(A);
    a = a.restart();
    a.plane.sweep().unwrap();
    assert_eq!(a.netns.run("ip xfrm policy"), before);
}

#[test]
fn what_a_killed_daemon_left_keeps_blocking_until_it_is_swept() {
    let Some((mut a, b)) = sites() else { return };
    a.guard(GuardAction::Drop);
    let received =
        || b.netns.run("cat /sys/class/net/eth0/statistics/rx_packets").trim().parse::<u64>().unwrap();
    let flood = a.netns.spawn("ping -n -q -i 0.002 -w 3 10.2.0.1");
    let before = received();
    for _ in 0..20 {
        a = a.restart();
        a.guard(GuardAction::Drop);
        assert_eq!(a.plane.sweep().unwrap().policies, 0);
    }
    drop(flood);
    let leaked = received() - before;
    println!(
        "20 restarts under a flood of pings, {leaked} packets (neighbour discovery, ARP) at the other side"
    );
    assert!(leaked < 10);
    // Somebody flushes: the next look puts things right.
    a.netns.run("ip xfrm policy flush");
    assert!(pings(&a, 1));
    assert_eq!(a.plane.resync().unwrap(), 3);
    assert!(!pings(&a, 1));
    // The configuration no longer has it.
    a = a.restart();
    assert!(!pings(&a, 1));
    assert_eq!(a.plane.sweep().unwrap().policies, 3);
    assert!(pings(&a, 1));
}

#[test]
fn selectors_that_the_kernel_cannot_have_are_refused_whole() {
    let Some((mut a, _b)) = sites() else { return };
    let (local, remote) = a.inner();
    let opaque = TrafficSelector { ports: (65535, 0), ..remote[0] };
    let spec = GuardSpec {
        child: child(),
        reqid: reqid(),
        local,
        remote: vec![remote[0], opaque],
        action: GuardAction::Drop,
        mark: None,
        weight: 0,
        bypass: Bypass::NONE,
    };
    let e = a.plane.guard(&spec).unwrap_err();
    assert_eq!(e.kind, PlaneErrorKind::Unsupported);
    println!("{e}");
    assert_eq!(a.netns.run("ip xfrm policy").trim(), "");
}

#[test]
fn without_esp_an_sa_is_refused_with_the_kernels_words() {
    let Some((mut a, _b)) = sites() else { return };
    if probe::probe().has_esp() {
        println!("skipped: this kernel has ESP");
        return;
    }
    let e = a.plane.install(&a.sa(Direction::In, 0)).unwrap_err();
    println!("{e}");
    assert_eq!(e.kind, PlaneErrorKind::Unsupported);
}

#[test]
fn rekeys_lose_no_packet_and_use_the_new_keys_at_once() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    up(&mut a, &mut b);
    assert!(pings(&a, 3));
    let flood = a.netns.spawn("ping -n -q -i 0.01 -W 2 -c 400 10.2.0.1");
    for n in 1..40 {
        install(&mut a, &mut b, n);
        let used = SPI + n * 2 + 1;
        wait_for("traffic on the new SA", || (a.counters()[&used].packets > 0).then_some(()));
        for site in [&mut a, &mut b] {
            for direction in [Direction::Out, Direction::In] {
                let old = site.sa(direction, n - 1).id;
                site.plane.remove(old).unwrap();
            }
        }
    }
    let summary = flood.output();
    println!("{summary}");
    assert!(summary.contains(" 0% packet loss"), "{summary}");
    assert_eq!(a.counters().len(), 2);
}

#[test]
fn when_the_newest_outbound_sa_goes_the_one_before_takes_over() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    up(&mut a, &mut b);
    install(&mut a, &mut b, 1);
    assert!(pings(&a, 3));
    let last = a.plane.remove(a.sa(Direction::Out, 1).id).unwrap();
    assert_eq!(last.packets, 3);
    assert!(pings(&a, 3));
    assert_eq!(a.counters()[&(SPI + 1)].packets, 3);
    assert_eq!(a.plane.remove(a.sa(Direction::Out, 1).id).unwrap(), SaCounters::default());
}

#[test]
fn a_clock_that_is_set_back_does_not_bring_old_keys_back() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    if std::env::var("CYGNET_LAB").is_err() {
        return skip("vm", "the clock is only set inside scripts/vm-lab");
    }
    up(&mut a, &mut b);
    assert!(pings(&a, 3));
    a.netns.run("date -s 2020-01-01");
    install(&mut a, &mut b, 1);
    assert!(pings(&a, 3));
    assert_eq!(a.counters()[&(SPI + 3)].packets, 3);
}

#[test]
fn a_restart_takes_over_what_is_there_and_traffic_goes_on() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    up(&mut a, &mut b);
    assert!(pings(&a, 5));
    let flood = a.netns.spawn("ping -n -q -i 0.01 -W 2 -c 200 10.2.0.1");
    for _ in 0..5 {
        a = a.restart();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(a.plane.orphans().count(), 2);
        a.guard(GuardAction::Drop);
        a.open(A);
        for direction in [Direction::In, Direction::Out] {
            a.plane.install(&a.sa(direction, 0)).unwrap();
        }
        assert_eq!(a.plane.orphans().count(), 0);
        assert_eq!(a.plane.sweep().unwrap(), Default::default());
    }
    let summary = flood.output();
    assert!(summary.contains(" 0% packet loss"), "{summary}");
    assert!(a.counters()[&(SPI + 1)].packets > 200, "counters and sequence numbers go on");

    // An SA that comes back with other keys is not taken over.
    a = a.restart();
    a.guard(GuardAction::Drop);
    a.open(A);
    let mut other = a.sa(Direction::Out, 0);
    other.encr_key = SecretBytes::new(vec![9; 20]);
    a.plane.install(&other).unwrap();
    assert_eq!(a.counters()[&(SPI + 1)].packets, 0);
    assert!(!pings(&a, 2), "B cannot decrypt that");
    // The inbound one was not installed again.
    assert_eq!(a.plane.sweep().unwrap().states, 1);
}

#[test]
fn an_sa_is_restored_as_it_is_or_not_at_all() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    up(&mut a, &mut b);
    assert!(pings(&a, 5));
    let none = SaCounters::default();
    a = a.restart();
    a.guard(GuardAction::Drop);
    for direction in [Direction::In, Direction::Out, Direction::Out] {
        assert_eq!(a.plane.restore(&a.sa(direction, 0), &none), Ok(true));
    }
    assert!(pings(&a, 1), "the tunnel of the last life is still open");
    a.open(A);
    assert_eq!(a.plane.sweep().unwrap(), Default::default());
    assert!(pings(&a, 3));
    assert_eq!(a.counters()[&(SPI + 1)].packets, 9);

    // One with other keys is not the one that was kept, and its numbers would begin anew.
    a = a.restart();
    a.guard(GuardAction::Drop);
    let mut other = a.sa(Direction::Out, 0);
    other.encr_key = SecretBytes::new(vec![9; 20]);
    assert_eq!(a.plane.restore(&other, &none), Ok(false));
    assert_eq!(a.plane.restore(&a.sa(Direction::Out, 0), &none), Ok(false));
    assert!(a.counters().is_empty());
    assert_eq!(a.plane.sweep().unwrap().states, 1);
    assert!(!pings(&a, 1));
}

#[test]
fn an_sa_moves_to_new_outer_addresses() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    up(&mut a, &mut b);
    assert!(pings(&a, 5));
    let flood = a.netns.spawn("ping -n -q -i 0.01 -W 2 -c 100 10.2.0.1");
    std::thread::sleep(Duration::from_millis(300));
    let before = a.counters();
    let new: SocketAddr = "192.0.2.11:500".parse().unwrap();
    let peer: SocketAddr = "192.0.2.2:500".parse().unwrap();
    for site in [&mut a, &mut b] {
        let (local, remote) = if site.at_a { (new, peer) } else { (peer, new) };
        for direction in [Direction::In, Direction::Out] {
            let id = site.sa(direction, 0).id;
            site.plane.migrate(id, NewAddresses { local, remote }).unwrap();
            site.plane.migrate(id, NewAddresses { local, remote }).unwrap();
        }
        site.open("192.0.2.11");
    }
    let summary = flood.output();
    println!("{summary}");
    assert!(pings(&a, 5));
    // Volume limits are about the key, wherever it is used.
    for (spi, after) in a.counters() {
        assert!(
            after.packets > before[&spi].packets && after.bytes > before[&spi].bytes,
            "{spi:x}: {after:?}"
        );
    }
    let states = a.netns.run("ip xfrm state");
    assert!(states.contains("src 192.0.2.11 dst 192.0.2.2") && !states.contains("192.0.2.1 "), "{states}");
}

#[test]
fn an_sa_that_reached_its_hard_limit_still_tells_its_counters() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    for site in [&mut a, &mut b] {
        site.guard(GuardAction::Drop);
        site.open(A);
    }
    let limits = VolumeLimits { soft_packets: 2, hard_packets: 4, ..VolumeLimits::default() };
    for site in [&mut a, &mut b] {
        for direction in [Direction::In, Direction::Out] {
            let spec = site.sa(direction, 0);
            let limits = if site.at_a && direction == Direction::Out { limits } else { spec.limits };
            site.plane.install(&SaSpec { limits, ..spec }).unwrap();
        }
    }
    pings(&a, 8);
    let sa = a.sa(Direction::Out, 0).id;
    for hard in [false, true] {
        let event = wait_for("an expire event", || a.plane.next_event());
        assert_eq!(event, PlaneEvent::Expired { sa, hard });
    }
    let last = a.plane.remove(sa).unwrap();
    assert!(last.packets >= 4, "{last:?}");
    assert!(!pings(&a, 1), "and nothing leaves in clear text");
}

/// An IKE socket as the daemon has it: outside all policies, taking ESP out of UDP.
fn ike_socket(site: &Site, address: &str) -> UdpSocket {
    site.netns.enter(|| {
        let socket = UdpSocket::bind((address, 4500)).unwrap();
        sockopt::bypass_policies(socket.as_fd(), ip(address)).unwrap();
        sockopt::enable_esp_in_udp(socket.as_fd()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    })
}

#[test]
fn a_tunnel_for_everything_does_not_swallow_its_own_ike() {
    let Some((mut a, mut b)) = sites() else { return };
    // IPv6 between neighbours, to see that the guard of ::/0 does not cut them off from each other.
    a.netns.run("ip addr add 2001:db8::1/64 dev eth0 nodad");
    b.netns.run("ip addr add 2001:db8::2/64 dev eth0 nodad");
    let sockets = [ike_socket(&a, A), ike_socket(&b, B)];
    for site in [&mut a, &mut b] {
        site.everything = true;
        site.guard(GuardAction::Drop);
        site.open(A);
    }
    assert!(!pings(&a, 1));
    assert!(!a.netns.try_run("ping -n -W 1 -c 1 192.0.2.2").status.success());
    assert!(!a.netns.try_run("ping -n -W 1 -c 1 2001:db8::2").status.success());
    let v6 = ike_socket(&a, "2001:db8::1");
    v6.send_to(b"x", ("2001:db8::2", 500)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let neighbour = a.netns.run("ip -6 neigh show 2001:db8::2");
    assert!(neighbour.contains("lladdr"), "neighbour discovery must work: {neighbour}");
    let message = [0, 0, 0, 0, 1, 2, 3];
    sockets[0].send_to(&message, (B, 4500)).unwrap();
    let mut buffer = [0; 16];
    let (len, from) = sockets[1].recv_from(&mut buffer).expect("IKE passes");
    assert_eq!((&buffer[..len], from), (&message[..], SocketAddr::new(ip(A), 4500)));

    if !probe::probe().has_esp() {
        return skip("kernel-esp", "only IKE was tried");
    }
    let encap = Some(UdpEncap { local_port: 4500, remote_port: 4500 });
    for site in [&mut a, &mut b] {
        for direction in [Direction::In, Direction::Out] {
            let spec = site.sa(direction, 0);
            site.plane.install(&SaSpec { encap, ..spec }).unwrap();
        }
    }
    assert!(pings(&a, 3));
    assert!(a.netns.try_run("ping -n -W 1 -c 1 192.0.2.2").status.success(), "this goes by the tunnel too");
}

#[test]
fn the_bandwidth_of_a_gateway_caps_its_esp() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    up(&mut a, &mut b);
    let _server = a.netns.spawn("iperf3 -s");
    std::thread::sleep(Duration::from_millis(500));
    let mut shaper = a.netns.enter(|| Shaper::open(None).unwrap());
    let gateway = |mbit: u64| Gateway {
        name: "vpc-a".to_owned(),
        addresses: vec![ip(A)],
        peers: std::collections::BTreeSet::new(),
        bandwidth_bps: Some(mbit * 1_000_000),
    };
    // Low rates: an emulated machine does not get far.
    for mbit in [2u64, 4] {
        shaper.apply(vec![gateway(mbit)]).unwrap();
        let json = b.netns.run("iperf3 -c 10.1.0.1 -R -t 4 -J");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let got = json["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6;
        println!("{mbit} mbit: {got:.2} Mbit/s of TCP inside the tunnel");
        // ESP, outer and inner headers take about a tenth; what is missing then says how busy the machine is.
        assert!((0.5 * mbit as f64..mbit as f64).contains(&got), "{got}");
    }
}

#[test]
fn a_taken_spi_is_told_apart_and_listed() {
    let Some((mut a, _b)) = esp_sites() else { return };
    a.netns.run(&format!(
        "ip xfrm state add src {B} dst {A} proto esp spi {SPI:#x} reqid 1 mode tunnel aead rfc4106(gcm(aes)) \
         0x0102030405060708090a0b0c0d0e0f1011121314 128"
    ));
    assert_eq!(a.plane.foreign_spis(ip(A)).unwrap(), [Spi::new(SPI).unwrap()]);
    let e = a.plane.install(&a.sa(Direction::In, 0)).unwrap_err();
    println!("{e}");
    assert_eq!(e.kind, PlaneErrorKind::Exists);
}

/// Of a socket, to leave by the SA of this generation.
fn by_sa(n: u32) -> Lead {
    let selector = PolicySelector {
        source: (ip("0.0.0.0"), 0),
        destination: (ip("0.0.0.0"), 0),
        protocol: 0,
        source_port: PortMask::ANY,
        destination_port: PortMask::ANY,
    };
    Lead::Sa(Policy {
        key: PolicyKey { direction: PolicyDirection::Out, selector, mark: None },
        priority: 0,
        reqid: reqid().0,
        action: PolicyAction::Protect { source: ip(A), destination: ip(B), spi: Spi::new(SPI + n * 2 + 1) },
    })
}

#[test]
fn a_probe_leaves_by_the_sa_that_is_named_or_not_at_all() {
    let Some((mut a, mut b)) = sites() else { return };
    let sockets = a.netns.enter(|| EchoSockets::open(77)).unwrap();
    let send = |seq, lead| {
        let probe = Probe { token: 77, tunnel: child().tunnel, seq, by: None };
        let packet = wire::request(&probe, Method::Icmp, ip("10.1.0.1"), ip("10.2.0.1")).unwrap();
        sockets.send(&packet, &lead)
    };
    let answered = || {
        wait_for("an answer", || {
            sockets.receive(10).0.into_iter().find_map(|heard| match heard {
                Heard::Answer(answer) => Some(answer.seq),
                Heard::Asked { .. } => None,
            })
        })
    };
    // There is no such SA, and no guard: without the socket's policy it would arrive.
    let _ = send(1, by_sa(50));
    send(2, Lead::Policies(None)).unwrap();
    assert_eq!(answered(), 2, "the policy is off the socket again");
    // Where packets with a mark have a policy of their own, a probe with that mark meets it.
    let mark = Mark { value: 7, mask: u32::MAX };
    a.netns.run("ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out mark 7 action block");
    assert!(send(3, Lead::Policies(Some(mark))).is_err());
    send(4, Lead::Policies(None)).unwrap();
    assert_eq!(answered(), 4, "the mark is off the socket again");
    let report = probe::probe();
    if !report.has_esp() {
        return skip("kernel-esp", &report.ciphers[0].1.reason);
    }
    up(&mut a, &mut b);
    install(&mut a, &mut b, 1);
    let header = wire::request(
        &Probe { token: 77, tunnel: child().tunnel, seq: 9, by: None },
        Method::Icmp,
        ip("10.1.0.1"),
        ip("10.2.0.1"),
    )
    .and_then(|packet| InnerHeader::parse(&packet))
    .unwrap();
    assert_eq!(a.plane.lead(child().tunnel, &header, false), Some(Lead::Policies(None)));
    let elsewhere = InnerHeader { dst: ip("10.3.0.1"), ..header };
    assert_eq!(a.plane.lead(child().tunnel, &elsewhere, true), None);
    assert_eq!(a.plane.lead(TunnelId(99), &header, true), None);
    let newest = a.plane.lead(child().tunnel, &header, true).unwrap();
    assert_eq!(b.plane.tunnel_of(Spi::new(SPI + 1).unwrap()), Some(child().tunnel), "inbound there");
    assert_eq!(a.plane.tunnel_of(Spi::new(SPI + 1).unwrap()), None, "and outbound here");
    let packets = |a: &mut Site| [0, 1].map(|n| a.counters()[&(SPI + n * 2 + 1)].packets);
    assert_eq!(packets(&mut a), [0, 0]);
    send(5, by_sa(0)).unwrap();
    assert_eq!((answered(), packets(&mut a)), (5, [1, 0]));
    send(6, newest).unwrap();
    assert_eq!((answered(), packets(&mut a)), (6, [1, 1]));
}
