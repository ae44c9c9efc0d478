//! The bandwidth of gateways on a real interface. Root, iperf3.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tools of tests, outside of test functions")]

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use cygnet::shaping::apply::{Gateway, Shaper};

#[path = "../xfrm/tests/support/mod.rs"]
mod support;
use support::{Netns, is_root, skip};

const CAPPED: &str = "192.0.2.1";
const FREE: &str = "192.0.2.9";
const PEER: &str = "192.0.2.2";

fn gateway(mbit: Option<u64>) -> Vec<Gateway> {
    vec![Gateway {
        name: "vpc-a".to_owned(),
        peers: std::collections::BTreeSet::new(),
        addresses: vec![CAPPED.parse().unwrap(), "2001:db8::1".parse().unwrap()],
        bandwidth_bps: mbit.map(|m| m * 1_000_000),
    }]
}

fn pair() -> (Netns, Netns) {
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    a.join(&b, &["192.0.2.1/24", "192.0.2.9/24", "2001:db8::1/64"], &["192.0.2.2/24", "2001:db8::2/64"]);
    (a, b)
}

fn iperf3_is_missing() -> bool {
    let missing = Command::new("iperf3").arg("--version").output().is_err();
    if missing {
        skip("iperf3", "the program is not installed");
    }
    missing
}

/// Megabits per second of each second, as the receiver saw it: the capped side is iperf3's server and sends (-R).
fn megabits(json: &str) -> Vec<f64> {
    let json: serde_json::Value = serde_json::from_str(json).expect("iperf3 JSON");
    let intervals = json["intervals"].as_array().expect("intervals");
    intervals.iter().map(|i| i["sum"]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e6).collect()
}

#[test]
fn a_new_rate_takes_effect_on_running_traffic() {
    if !is_root() || iperf3_is_missing() {
        return;
    }
    let (a, b) = pair();
    let _server = a.spawn("iperf3 -s");
    let mut shaper = a.enter(|| Shaper::open(None).unwrap());
    shaper.apply(gateway(Some(10))).unwrap();
    std::thread::sleep(Duration::from_millis(500));

    let client = b.spawn(&format!("iperf3 -c {CAPPED} -R -t 8 -J"));
    std::thread::sleep(Duration::from_millis(4000));
    assert!(shaper.change("vpc-a", Some(50_000_000)).unwrap());
    let rates = megabits(&client.output());
    println!("Mbit/s by second, 10 mbit until 4 s, then 50 mbit: {rates:.1?}");
    // TCP starts in the first second; in which the change falls depends on how busy the machine is.
    let (slow, fast) = (|r: &f64| (8.0..11.5).contains(r), |r: &f64| (40.0..56.0).contains(r));
    let changed = rates.iter().skip(1).position(|r| !slow(r)).unwrap() + 1;
    assert!(changed >= 2 && rates[changed..].iter().filter(|r| fast(r)).count() >= 2, "{rates:?}");
    assert!(rates.iter().all(|r| *r < 56.0), "{rates:?}");

    // A server that has not noticed yet that the client before is gone has no interval for the next one.
    let again = || megabits(&b.run(&format!("iperf3 -c {FREE} -R -t 1 -J"))).first().copied();
    let free = (0..10).find_map(|_| {
        std::thread::sleep(Duration::from_millis(300));
        again()
    });
    let free = free.expect("the server is free again");
    println!("Mbit/s of another address on the same interface: {free:.0}");
    // More than the level lets by; an emulated machine has not much more to give.
    assert!(free > 60.0, "traffic of others must not be shaped: {free}");

    let stats = shaper.stats().unwrap();
    println!("{stats:?}");
    assert!(stats[0].stats.bytes > 20_000_000 && stats[0].bandwidth_bps == 50_000_000);
}

#[test]
fn ipv6_packets_are_capped_too() {
    if !is_root() || iperf3_is_missing() {
        return;
    }
    let (a, b) = pair();
    let _server = a.spawn("iperf3 -s");
    let mut shaper = a.enter(|| Shaper::open(None).unwrap());
    shaper.apply(gateway(Some(10))).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let rates = megabits(&b.run("iperf3 -c 2001:db8::1 -R -t 3 -J"));
    println!("Mbit/s by second over IPv6, 10 mbit: {rates:.1?}");
    assert!((8.0..11.5).contains(&rates[2]), "{rates:?}");
}

#[test]
fn applying_twice_changes_nothing_and_the_interface_is_given_back() {
    if !is_root() {
        return;
    }
    let (a, _b) = pair();
    let before = a.run("tc qdisc show dev eth0");
    let mut shaper = a.enter(|| Shaper::open(None).unwrap());
    shaper.apply(gateway(Some(10))).unwrap();
    let once = [a.run("tc class show dev eth0"), a.run("tc filter show dev eth0 parent c960:")];
    shaper.apply(gateway(Some(10))).unwrap();
    // Another daemon after a crash finds it and changes nothing either.
    let mut second = a.enter(|| Shaper::open(None).unwrap());
    second.apply(gateway(Some(10))).unwrap();
    assert_eq!([a.run("tc class show dev eth0"), a.run("tc filter show dev eth0 parent c960:")], once);
    assert!(once[0].contains("rate 10Mbit ceil 10Mbit"), "{once:?}");
    assert!(once[1].contains("match c0000201/ffffffff at 12"), "{once:?}");

    second.remove_all().unwrap();
    assert_eq!(a.run("tc qdisc show dev eth0"), before);
}

/// Sends datagrams of a kilo-octet as fast as the interface takes them, from `port` of the capped address.
fn flood(port: u16, seconds: u64) {
    let socket = UdpSocket::bind((CAPPED, port)).unwrap();
    socket.connect((PEER, 9)).unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        // The queue is full most of the time.
        let _ = socket.send(&[0x5A; 1000]);
    }
}

/// How many of twenty IKE messages arrive, and the longest that one of them took.
fn ike_through(a: &Netns, b: &Netns, port: u16, marker: &[u8]) -> (usize, Duration) {
    let at_peer = b.enter(|| UdpSocket::bind((PEER, 600)).unwrap());
    at_peer.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let socket = a.enter(|| UdpSocket::bind((CAPPED, port)).unwrap());
    socket.connect((PEER, 600)).unwrap();
    let message = [marker, &[0x21; 300][..]].concat();
    let mut longest = Duration::ZERO;
    let arrived = (0..20).filter(|_| {
        let sent = Instant::now();
        socket.send(&message).unwrap();
        let came = at_peer.recv(&mut [0; 400]).is_ok();
        longest = longest.max(sent.elapsed());
        came
    });
    (arrived.count(), longest)
}

/// Who fills the level does not stop the exchanges that keep the tunnel up, and what waits does not wait for long.
#[test]
fn ike_passes_a_full_level_and_the_queue_is_short() {
    if !is_root() {
        return;
    }
    let (a, b) = pair();
    let mut shaper = a.enter(|| Shaper::open(None).unwrap());
    shaper.apply(gateway(Some(1))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| a.enter(|| flood(7777, 5)));
        std::thread::sleep(Duration::from_millis(500));
        for (port, marker) in [(500, &[][..]), (4500, &[0; 4])] {
            let (arrived, longest) = ike_through(&a, &b, port, marker);
            println!("port {port}: {arrived} of 20 IKE messages, the slowest in {longest:?}");
            assert_eq!(arrived, 20, "port {port}");
        }
        // Now and then it is nearly empty, because the sender has no processor.
        let backlog = |_| {
            std::thread::sleep(Duration::from_millis(30));
            shaper.stats().unwrap()[0].stats.backlog_bytes
        };
        let waiting: Vec<u32> = (0..40).map(backlog).collect();
        println!("octets that wait at 1 Mbit/s: {waiting:?}");
        assert!(
            waiting.iter().all(|octets| *octets <= 4 * 1522) && waiting.iter().any(|octets| *octets > 2000)
        );
    });
}

#[test]
fn a_root_qdisc_of_somebody_else_is_left_alone() {
    if !is_root() {
        return;
    }
    let (a, _b) = pair();
    a.run("tc qdisc add dev eth0 root handle 7: tbf rate 1mbit burst 10k latency 50ms");
    let before = a.run("tc qdisc show dev eth0");
    let mut shaper = a.enter(|| Shaper::open(None).unwrap());
    let errors = shaper.apply(gateway(Some(10))).unwrap_err();
    println!("{}", errors[0]);
    assert!(errors[0].to_string().contains("queueing discipline tbf 7: that cygnet did not make"));
    shaper.remove_all().unwrap();
    assert_eq!(a.run("tc qdisc show dev eth0"), before);
}

#[test]
fn an_address_that_nobody_has_is_named() {
    if !is_root() {
        return;
    }
    let a = Netns::new("a");
    let mut shaper = a.enter(|| Shaper::open(None).unwrap());
    let errors = shaper.apply(gateway(Some(10))).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "the bandwidth 10mbit of gateway \"vpc-a\" is not in force: no interface has its address 192.0.2.1"
    );
}
