//! Bandwidth levels and limits of inner addresses that the kernel's data plane keeps, with real ESP. What needs ESP or nf_tables
//! skips where the kernel has none; run it in the lab with `scripts/vm-lab qemu -- TESTBINARY`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tools of tests, outside of test functions"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use cygnet::plane::ips;
use cygnet::plane::levels::{Keeper, Rate, Table, Wanted};
use cygnet::traffic::rules::{Cap, Rules};
use cygnet::traffic::{Carried, GatewayNo, Inner};
use cygnet_model::TunnelId;
use cygnet_model::tunnel::Direction;

mod sites;
use sites::support::{Netns, is_root, skip};
use sites::*;

/// Megabits per second of inner packets of 1,200 octets that arrive, once the first burst has passed, while more are sent.
fn arriving((from, source): (&Site, &str), (at, sink): (&Site, &str), offered_mbit: u32) -> f64 {
    const PACKET: usize = 1200;
    let (warm, measured) = (Duration::from_millis(2500), Duration::from_secs(4));
    let sink = at.netns.enter(|| UdpSocket::bind((sink, 0)).unwrap());
    let source = from.netns.enter(|| UdpSocket::bind((source, 0)).unwrap());
    source.connect(sink.local_addr().unwrap()).unwrap();
    sink.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (began, mut sent) = (Instant::now(), 0.0);
            while began.elapsed() < warm + measured {
                while sent < began.elapsed().as_secs_f64() * f64::from(offered_mbit) * 1e6 / 8.0 {
                    let _ = source.send(&[7; PACKET - 28]);
                    sent += PACKET as f64;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let (began, mut buffer, mut came) = (Instant::now(), [0; 2048], 0u32);
        while began.elapsed() < warm + measured {
            let is_one = sink.recv(&mut buffer).is_ok();
            came += u32::from(is_one && began.elapsed() > warm);
        }
        f64::from(came) * PACKET as f64 * 8e-6 / measured.as_secs_f64()
    })
}

#[test]
fn levels_that_the_kernel_keeps_hold_both_ways() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    up(&mut a, &mut b);
    let out = |mbit| arriving((&a, "10.1.0.1"), (&b, "10.2.0.1"), mbit);
    let inward = |mbit| arriving((&b, "10.2.0.1"), (&a, "10.1.0.1"), mbit);
    let mut table = a.netns.enter(Table::default);
    let one = |direction, mbit: u64| {
        let mut wanted = Wanted::default();
        wanted.tunnels(direction).insert(child().tunnel, Rate { bps: mbit * 1_000_000 });
        wanted.tunnels(direction).insert(TunnelId(99), Rate { bps: 1_000_000 });
        wanted
    };
    // Low rates: an emulated machine does not get far.
    if let Err(e) = a.netns.enter(|| table.put(one(Direction::Out, 1))) {
        return skip("nft-inet", &e);
    }
    is_near("out", out(4), 1.0);
    let dropped = |table: &mut Table| -> BTreeMap<Keeper, u64> {
        a.netns.enter(|| table.drops()).into_iter().collect()
    };
    let tunnel = |direction| Keeper::Tunnel(child().tunnel, direction);
    let first = dropped(&mut table);
    assert!(
        first[&tunnel(Direction::Out)] > 300 && first[&Keeper::Tunnel(TunnelId(99), Direction::Out)] == 0,
        "{first:?}"
    );
    let put = |table: &mut Table, wanted: Wanted| a.netns.enter(|| table.put(wanted)).unwrap();
    put(&mut table, one(Direction::Out, 2));
    is_near("out, changed", out(6), 2.0);
    let second = dropped(&mut table);
    println!("dropped: {first:?}, then {second:?}");
    assert!(second[&tunnel(Direction::Out)] > first[&tunnel(Direction::Out)] + 300);
    put(&mut table, one(Direction::In, 1));
    is_near("in", inward(4), 1.0);
    let third = dropped(&mut table);
    assert!(
        third[&tunnel(Direction::In)] > 300
            && third[&tunnel(Direction::Out)] == second[&tunnel(Direction::Out)],
        "{third:?}"
    );

    let mut shared = Wanted::default();
    let tunnels = BTreeSet::from([child().tunnel, TunnelId(98)]);
    shared.gateways(Direction::Out).insert("vpc-a".to_owned(), (tunnels, Rate { bps: 1_000_000 }));
    put(&mut table, shared);
    is_near("a gateway's, out", out(4), 1.0);
    let gateway = |direction| Keeper::Gateway("vpc-a".to_owned(), direction);
    assert!(dropped(&mut table)[&gateway(Direction::Out)] > 300);

    // ESP-GCM adds 34 octets with padding, the outer header 20.
    let (outer, on_the_wire) = (Rate { bps: 1_000_000 }, 1200.0 / 1254.0);
    let mut arrivals = Wanted::default();
    arrivals.arrivals.insert("vpc-a".to_owned(), ([ip(A)].into(), outer));
    put(&mut table, arrivals);
    is_near("a gateway's, in, on the wire", inward(4), on_the_wire);
    assert!(dropped(&mut table)[&gateway(Direction::In)] > 300);
    let mut departures = Wanted::default();
    departures.departures.insert("vpc-a".to_owned(), ([ip(A)].into(), outer));
    put(&mut table, departures);
    is_near("a gateway's, out, on the wire", out(4), on_the_wire);
    put(&mut table, Wanted::default());
    assert!(out(4) > 1.5, "nothing is left of it");
}

#[test]
fn a_table_of_levels_is_mended_and_goes() {
    if !is_root() {
        return;
    }
    let netns = Netns::new("levels");
    let mut table = netns.enter(Table::default);
    let mut wanted = Wanted::default();
    for n in 0..100 {
        wanted.tunnels(Direction::Out).insert(TunnelId(n), Rate { bps: 5_000_000 });
    }
    wanted
        .gateways(Direction::In)
        .insert("g".to_owned(), ([TunnelId(1)].into(), Rate { bps: 1_000_000_000 }));
    let most = Rate { bps: 10_000_000_000_000 };
    wanted.arrivals.insert("g".to_owned(), ([ip(A), ip("2001:db8::1")].into(), most));
    if let Err(e) = netns.enter(|| table.put(wanted.clone())) {
        return skip("nft-inet", &e);
    }
    let rules = || netns.run("nft list table inet cygnet-levels");
    println!("{}", rules());
    assert_eq!(rules().matches("625000 bytes/second").count(), 101 - 1, "{}", rules());
    assert!(!netns.enter(|| table.mend()).unwrap());
    netns.run("nft delete table inet cygnet-levels");
    assert!(netns.enter(|| table.mend()).unwrap());
    netns.run("nft flush chain inet cygnet-levels sealed");
    assert!(netns.enter(|| table.mend()).unwrap());
    assert!(rules().contains("cygnet-levels"));
    // Another daemon finds it and removes what it does not want.
    netns.enter(|| Table::default().put(Wanted::default())).unwrap();
    assert!(!netns.run("nft list tables").contains("cygnet-levels"));
}

/// Needs nf_tables, but no ESP: what comes looks like it.
#[test]
fn what_a_level_drops_is_counted_over_changes_of_the_table() {
    if !is_root() {
        return;
    }
    let (from, at) = (Netns::new("from"), Netns::new("at"));
    from.join(&at, &["192.0.2.1/24"], &["192.0.2.2/24"]);
    let wanted = |bps| {
        let mut wanted = Wanted::default();
        wanted.arrivals.insert("g".to_owned(), ([ip("192.0.2.2")].into(), Rate { bps }));
        wanted.tunnels(Direction::In).insert(TunnelId(7), Rate { bps });
        wanted
    };
    let mut table = at.enter(Table::default);
    if let Err(e) = at.enter(|| table.put(wanted(8_000))) {
        return skip("nft-inet", &e);
    }
    let sink = at.enter(|| UdpSocket::bind("192.0.2.2:4500").unwrap());
    sink.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let source = from.enter(|| UdpSocket::bind("192.0.2.1:4500").unwrap());
    source.connect("192.0.2.2:4500").unwrap();
    // Pauses leave room in the socket, whatever the machine does besides.
    let lost = |count: usize| {
        let mut came = 0;
        for _ in 0..count / 25 {
            (0..25).for_each(|_| drop(source.send(&[0x5A; 1000])));
            while sink.recv(&mut [0; 2048]).is_ok() {
                came += 1;
            }
        }
        (count - came) as u64
    };
    let dropped = |table: &mut Table| {
        let all: BTreeMap<Keeper, u64> = at.enter(|| table.drops()).into_iter().collect();
        assert_eq!(all[&Keeper::Tunnel(TunnelId(7), Direction::In)], 0, "nothing of it came");
        all[&Keeper::Gateway("g".to_owned(), Direction::In)]
    };
    let first = lost(200);
    assert!(first > 50, "{first}");
    assert_eq!(dropped(&mut table), first);
    at.enter(|| table.put(wanted(16_000))).unwrap();
    let second = lost(200);
    assert!(second > 50, "{second}");
    // Not asked for before the table is made anew, and by the table that another program left nothing of.
    at.enter(|| table.put(wanted(24_000))).unwrap();
    at.run("nft delete table inet cygnet-levels");
    assert!(at.enter(|| table.mend()).unwrap());
    assert_eq!(dropped(&mut table), first + second);
    let passed: BTreeMap<Keeper, u64> = table.passed().into_iter().collect();
    // With the headers of UDP and IPv4.
    assert_eq!(passed[&Keeper::Gateway("g".to_owned(), Direction::In)], (400 - first - second) * 1028);
    println!("{first} and {second} of 200 dropped, and counted");
}

/// Never more than the level; how little less is a benchmark's business, since a machine under load offers too little.
fn is_near(what: &str, got: f64, level: f64) {
    println!("{what}: {got:.3} Mbit/s of {level}: {:+.2} %", (got / level - 1.0) * 100.0);
    assert!((0.5 * level..1.03 * level).contains(&got), "{what}: {got}");
}

const GATEWAY: GatewayNo = GatewayNo(7);

fn who(address: &str) -> Inner {
    Inner { gateway: GATEWAY, ip: ip(address) }
}

fn rules(caps: &[(&str, Cap)]) -> Rules {
    let mut rules = Rules::default();
    rules.follow_gateways(HashMap::from([(child().tunnel, GATEWAY), (TunnelId(98), GatewayNo(8))]));
    caps.iter().for_each(|(address, cap)| rules.set(who(address), Some(*cap)));
    rules
}

/// What was carried since the last call, by address.
fn taken(site: &Site, table: &mut ips::Table) -> HashMap<Inner, Carried> {
    let mut sums = HashMap::<Inner, Carried>::new();
    for counted in site.netns.enter(|| table.take()) {
        assert!(counted.others.is_empty(), "there is room: {:?}", counted.others);
        counted.by_address.into_iter().for_each(|(who, carried)| *sums.entry(who).or_default() += carried);
    }
    sums
}

#[test]
fn inner_addresses_are_counted_and_limited_in_the_kernel_both_ways() {
    let Some((mut a, mut b)) = esp_sites() else { return };
    up(&mut a, &mut b);
    a.netns.run("ip addr add 10.1.0.5/16 dev lo");
    a.netns.run("ip addr add 10.1.0.6/16 dev lo");
    let mut table = a.netns.enter(ips::Table::default);
    a.netns.enter(|| table.put(rules(&[])));
    if let Some(why) = table.trouble() {
        return skip("nft-inet", why);
    }
    let pings = |from: &str| {
        let flags = format!("ping -n -q -i 0.01 -W 2 -c 20 -s 972 -I {from} 10.2.0.1");
        a.netns.try_run(&flags).status.success()
    };
    assert!(pings("10.1.0.5") && pings("10.1.0.6") && pings("10.1.0.6"));
    let counted = taken(&a, &mut table);
    let of = |packets| Carried {
        bytes_in: packets * 1000,
        packets_in: packets,
        bytes_out: packets * 1000,
        packets_out: packets,
        dropped: 0,
    };
    assert_eq!(counted, HashMap::from([(who("10.1.0.5"), of(20)), (who("10.1.0.6"), of(40))]));
    assert_eq!(taken(&a, &mut table), HashMap::new(), "nothing since");

    // One is blocked, and the other does not notice.
    a.netns.enter(|| table.put(rules(&[("10.1.0.5", Cap::Block)])));
    assert!(!pings("10.1.0.5") && pings("10.1.0.6"));
    let counted = taken(&a, &mut table);
    assert_eq!(counted[&who("10.1.0.6")], of(20));
    assert_eq!(counted[&who("10.1.0.5")], Carried { dropped: 20, ..Carried::default() });

    // A rate, in place; then another one, then none.
    let out = |from, mbit| arriving((&a, from), (&b, "10.2.0.1"), mbit);
    let inward = |to, mbit| arriving((&b, "10.2.0.1"), (&a, to), mbit);
    let mut limited = |caps: &[(&str, Cap)]| {
        a.netns.enter(|| table.put(rules(caps)));
        assert_eq!(table.trouble(), None);
    };
    limited(&[("10.1.0.5", Cap::Rate(1_000_000))]);
    is_near("out", out("10.1.0.5", 4), 1.0);
    is_near("in", inward("10.1.0.5", 4), 1.0);
    assert!(out("10.1.0.6", 4) > 1.5, "a neighbour");
    limited(&[("10.1.0.5", Cap::Rate(2_000_000))]);
    is_near("out, changed", out("10.1.0.5", 6), 2.0);
    limited(&[]);
    assert!(out("10.1.0.5", 8) > 2.5, "nothing is left of it");
    assert!(taken(&a, &mut table)[&who("10.1.0.5")].dropped > 100);
}

#[test]
fn a_table_of_limits_changes_in_place_and_is_mended() {
    if !is_root() {
        return;
    }
    let netns = Netns::new("limits");
    let mut table = netns.enter(ips::Table::default);
    let mut many = rules(&[]);
    for n in 0..10_000u32 {
        let ip = std::net::Ipv4Addr::from(0x0A01_0000 + n).into();
        many.set(Inner { gateway: GATEWAY, ip }, Some(Cap::Rate(8_000_000)));
    }
    many.set(who("2001:db8::5"), Some(Cap::Block));
    let began = Instant::now();
    netns.enter(|| table.put(many.clone()));
    if let Some(why) = table.trouble() {
        return skip("nft-inet", why);
    }
    println!("10,000 limits: {:?}", began.elapsed());
    let limits = |netns: &Netns| {
        netns.run("nft list set inet cygnet-ips limited-out-v4").matches("limit rate").count()
    };
    // The set itself says once more what its elements have.
    let own = limits(&netns) - 10_000;
    assert!(own <= 1, "{own}");
    let began = Instant::now();
    for n in 0..100u32 {
        let ip = std::net::Ipv4Addr::from(0x0A01_0000 + n).into();
        many.set(Inner { gateway: GATEWAY, ip }, (n % 2 == 0).then_some(Cap::Block));
        netns.enter(|| table.put(many.clone()));
    }
    println!("a change: {:?}", began.elapsed() / 100);
    assert_eq!(table.trouble(), None);
    assert_eq!(limits(&netns) - own, 9_900);
    assert!(netns.run("nft list set inet cygnet-ips blocked-in-v6").contains("2001:db8::5"));
    assert!(!netns.enter(|| table.mend()));
    netns.run("nft delete table inet cygnet-ips");
    assert!(netns.enter(|| table.mend()));
    assert_eq!(limits(&netns) - own, 9_900);
    // A change on top of what another program took away.
    netns.run("nft flush set inet cygnet-ips limited-out-v4");
    many.set(who("10.1.0.150"), None);
    netns.enter(|| table.put(many.clone()));
    assert_eq!((table.trouble(), limits(&netns) - own), (None, 9_899));
    netns.enter(|| table.remove());
    assert!(!netns.run("nft list tables").contains("cygnet-ips"));
}
