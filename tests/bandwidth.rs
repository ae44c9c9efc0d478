//! Bandwidth levels of tunnels and gateways between two hosts with data plane userspace, each in a network namespace of its own,
//! with real traffic. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use host::{Daemon, Host, told, until};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

const US: &str = "10.1.0.1";
const FIRST: &str = "10.2.0.1";
const SECOND: &str = "10.3.0.1";
const MBIT: f64 = 1e6;
/// Octets of the packets inside the tunnel.
const PACKET: usize = 1_200;

/// Our gateway `own` with the tunnels `a-b` to 10.2.0.0/16 and `a-c` to 10.3.0.0/16, which end on one other host.
struct Pair {
    ours: Host,
    theirs: Host,
    daemon: Daemon,
    _peer: Daemon,
}

impl Pair {
    /// `gateway` and `tunnel` are what the file says of `own` and of `a-b` besides.
    fn up(test: &str, gateway: &str, tunnel: &str) -> Option<Self> {
        Self::up_on(test, gateway, tunnel, |_, _| {})
    }

    /// The same after the two hosts were wired in another way.
    fn up_on(test: &str, gateway: &str, tunnel: &str, rewire: impl FnOnce(&Host, &Host)) -> Option<Self> {
        let (ours, theirs) = Host::wired(test)?;
        rewire(&ours, &theirs);
        theirs.sh("ip address add 192.0.2.3/32 dev lo; ip address add 10.3.0.1/16 dev far");
        let dir = |host: &Host, name: &str| {
            host.keep_key();
            let dir = host.dir.path().display();
            format!(
                "daemon: {{ control_socket: {dir}/{name}.sock, state_dir: {dir}/{name}, data_plane: userspace }}"
            )
        };
        let auth = "auth: { psk_file: a-b.psk }, esp: { bytes: unlimited }";
        let own = format!(
            "{}
gateways: [ {{ name: own, address: 192.0.2.1, networks: [10.1.0.0/16]{gateway} }} ]
customer_gateways: [ {{ name: b, address: 192.0.2.2 }}, {{ name: c, address: 192.0.2.3 }} ]
tunnels:
  - {{ name: a-b, gateway: own, customer_gateway: b, {auth}, spd: [ {{ local: 10.1.0.0/16, remote: [10.2.0.0/16] }} ]{tunnel} }}
  - {{ name: a-c, gateway: own, customer_gateway: c, {auth}, spd: [ {{ local: 10.1.0.0/16, remote: [10.3.0.0/16] }} ] }}
",
            dir(&ours, "a")
        );
        fs::write(ours.path("a.yaml"), own).unwrap();
        let other = format!(
            "{}
gateways:
  - {{ name: b, address: 192.0.2.2, networks: [10.2.0.0/16] }}
  - {{ name: c, address: 192.0.2.3, networks: [10.3.0.0/16] }}
customer_gateways: [ {{ name: a, address: 192.0.2.1 }} ]
tunnels:
  - {{ name: a-b, gateway: b, customer_gateway: a, start: passive, {auth}, spd: [ {{ local: 10.2.0.0/16, remote: [10.1.0.0/16] }} ] }}
  - {{ name: a-c, gateway: c, customer_gateway: a, start: passive, {auth}, spd: [ {{ local: 10.3.0.0/16, remote: [10.1.0.0/16] }} ] }}
",
            dir(&theirs, "b")
        );
        fs::write(theirs.path("b.yaml"), other).unwrap();
        let (peer, daemon) = (theirs.running("b"), ours.running("a"));
        let pair = Self { ours, theirs, daemon, _peer: peer };
        for to in [FIRST, SECOND] {
            until(|| pair.ping(to, 2).contains(" 0% packet loss"));
        }
        Some(pair)
    }

    fn ping(&self, to: &str, count: u32) -> String {
        self.ours.sh(&format!("ping -q -c {count} -i 0.2 -W 1 -I {US} {to}"))
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_slice(&self.ours.ask("a", args).stdout).unwrap()
    }

    fn says(&self, args: &[&str]) -> String {
        let o = self.ours.ask("a", args);
        assert_eq!(told(&o), (Some(0), String::new()), "{args:?}");
        String::from_utf8(o.stdout).unwrap()
    }

    /// The SPIs of all SAs.
    fn spis(&self) -> Vec<Value> {
        let status = self.json(&["status", "--json"]);
        let of = |t: &Value| {
            [
                t["ike"]["spi_i"].clone(),
                t["children"][0]["spi_in"].clone(),
                t["children"][0]["spi_out"].clone(),
            ]
        };
        status["tunnels"].as_array().unwrap().iter().flat_map(of).collect()
    }

    /// What is told of a level of a tunnel: bits per second, and whose word.
    fn level(&self, tunnel: usize, key: &str) -> (u64, String) {
        let level = self.json(&["status", "--json"])["tunnels"][tunnel][key].clone();
        (level["bps"].as_u64().unwrap_or(0), level["origin"].as_str().unwrap_or("none").to_owned())
    }

    fn metric(&self, series: &str) -> Option<f64> {
        self.ours.metrics("a").lines().find_map(|l| l.strip_prefix(series)?.trim().parse().ok())
    }

    /// The next life goes on with the tunnels.
    fn hand_over(&mut self) {
        assert_eq!(told(&self.ours.ask("a", &["handover"])).0, Some(0));
        assert_eq!(self.daemon.0.wait().unwrap().code(), Some(0));
        self.daemon = self.ours.running("a");
    }

    fn outwards(&self, to: &str, offered: f64) -> Flood {
        Flood::open((&self.ours, US), (&self.theirs, to), offered)
    }

    fn inwards(&self, from: &str, offered: f64) -> Flood {
        Flood::open((&self.theirs, from), (&self.ours, US), offered)
    }
}

/// Datagrams at a rate, until it is dropped.
struct Flood {
    /// Of the receiver.
    stop: Arc<AtomicBool>,
    /// Of the sender.
    quiet: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    came: Arc<AtomicU64>,
    /// Of a packet inside the tunnel.
    octets: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    fn open(from: (&Host, &str), to: (&Host, &str), bits_per_second: f64) -> Self {
        Self::steady(from, to, bits_per_second, u64::MAX)
    }

    /// One that does not make up for more than so many packets at once when the machine has let it wait: a burst is no rate.
    fn steady(from: (&Host, &str), to: (&Host, &str), bits_per_second: f64, at_once: u64) -> Self {
        Self::sized(from, to, bits_per_second, at_once, PACKET)
    }

    fn sized(
        (from, source): (&Host, &str),
        (to, sink): (&Host, &str),
        bits_per_second: f64,
        at_once: u64,
        octets: usize,
    ) -> Self {
        let (stop, quiet) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (sent, came) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (source, sink): (SocketAddr, SocketAddr) =
            (format!("{source}:0").parse().unwrap(), format!("{sink}:0").parse().unwrap());
        let receiver = to.thread(move || UdpSocket::bind(sink).unwrap()).join().unwrap();
        let target = receiver.local_addr().unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        // Whatever the machine does meanwhile, what comes is counted.
        setsockopt(&receiver, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&came));
        let receiving = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    count.fetch_add(1, Relaxed);
                }
            }
        });
        let (stopped, count) = (Arc::clone(&quiet), Arc::clone(&sent));
        let sending = from.thread(move || {
            let socket = UdpSocket::bind(source).unwrap();
            socket.connect(target).unwrap();
            let (began, data) = (Instant::now(), vec![7; octets - 28]);
            let mut left_out = 0;
            while !stopped.load(Relaxed) {
                let due = (began.elapsed().as_secs_f64() * bits_per_second / 8.0 / octets as f64) as u64;
                let behind = due - left_out - count.load(Relaxed);
                left_out += behind.saturating_sub(at_once);
                while count.load(Relaxed) < due - left_out {
                    let _ = socket.send(&data);
                    count.fetch_add(1, Relaxed);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { stop, quiet, sent, came, octets, threads: vec![receiving, sending] }
    }

    /// Ends the sending, and gives how many packets were sent.
    fn hush(&mut self) -> u64 {
        self.quiet.store(true, Relaxed);
        if let Some(sending) = self.threads.pop() {
            sending.join().unwrap();
        }
        self.sent.load(Relaxed)
    }

    /// Packets that were sent, and that came, once no more come.
    fn outcome(&mut self) -> (u64, u64) {
        let sent = self.hush();
        loop {
            let came = self.came.load(Relaxed);
            std::thread::sleep(Duration::from_millis(500));
            if self.came.load(Relaxed) == came {
                return (sent, came);
            }
        }
    }

    /// Bits per second of packets inside the tunnel that arrive, over some time from now on.
    fn rate(&self, over: Duration) -> f64 {
        let (began, before) = (Instant::now(), self.came.load(Relaxed));
        std::thread::sleep(over);
        (self.came.load(Relaxed) - before) as f64 * self.octets as f64 * 8.0 / began.elapsed().as_secs_f64()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.quiet.store(true, Relaxed);
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

const SECOND_LONG: Duration = Duration::from_secs(1);

/// The rate once the first burst has passed; a busy machine may be slower, never faster.
fn settled(flood: &Flood) -> f64 {
    std::thread::sleep(SECOND_LONG);
    flood.rate(SECOND_LONG * 3)
}

fn is_near(rate: f64, level: f64) -> bool {
    println!(
        "{:.3} Mbit/s at a level of {:.3}: {:+.2} %",
        rate / MBIT,
        level / MBIT,
        (rate / level - 1.0) * 100.0
    );
    (0.85 * level..1.03 * level).contains(&rate)
}

#[test]
fn the_level_of_a_tunnel_holds_both_ways_and_changes_while_traffic_flows() {
    let test = "the_level_of_a_tunnel_holds_both_ways_and_changes_while_traffic_flows";
    let Some(mut pair) = Pair::up(test, "", ", bandwidth: { out: 5mbit, in: 4mbit }") else { return };
    let spis = pair.spis();
    assert_eq!(pair.level(0, "bandwidth"), (5_000_000, "configuration".to_owned()));
    assert_eq!(pair.level(0, "bandwidth_in"), (4_000_000, "configuration".to_owned()));
    {
        let out = pair.outwards(FIRST, 30.0 * MBIT);
        assert!(is_near(settled(&out), 5.0 * MBIT));
        // Its neighbour sends as if there were none.
        let neighbour = pair.outwards(SECOND, 10.0 * MBIT);
        let rate = settled(&neighbour);
        assert!(rate > 9.0 * MBIT, "{rate}");
        assert_eq!(pair.says(&["bandwidth", "a-b", "10mbit"]), "bandwidth of tunnel a-b is now 10mbit\n");
        assert!(is_near(settled(&out), 10.0 * MBIT));
        let rate = neighbour.rate(SECOND_LONG);
        assert!(rate > 8.5 * MBIT, "{rate}");
    }
    {
        let inward = pair.inwards(FIRST, 30.0 * MBIT);
        assert!(is_near(settled(&inward), 4.0 * MBIT));
        assert_eq!(
            pair.says(&["bandwidth", "tunnel:a-b", "8mbit", "--in"]),
            "bandwidth of tunnel a-b inwards is now 8mbit\n"
        );
        assert!(is_near(settled(&inward), 8.0 * MBIT));
    }
    assert_eq!(pair.spis(), spis, "no key was made for it");
    until(|| {
        let drops =
            |class| pair.metric(&format!("cygnet_qos_drops_total{{gateway=\"own\",class=\"{class}\"}}"));
        drops("tunnel") > Some(1_000.0) && drops("tunnel_in") > Some(1_000.0)
    });
    let limit = "cygnet_tunnel_bandwidth_limit_bits_per_second{gateway=\"own\",tunnel=\"a-b\",direction=";
    let drops = "cygnet_tunnel_bandwidth_drops_total{gateway=\"own\",tunnel=\"a-b\",direction=";
    for direction in ["out", "in"] {
        assert!(pair.metric(&format!("{drops}\"{direction}\"}}")) > Some(1_000.0), "{direction}");
    }
    assert_eq!(pair.metric(&format!("{limit}\"out\"}}")), Some(10_000_000.0));
    assert_eq!(pair.metric(&format!("{limit}\"in\"}}")), Some(8_000_000.0));
    assert!(pair.metric("cygnet_plane_drops_total{reason=\"bandwidth\"}") > Some(2_000.0));

    // What was counted of the host is handed over as well.
    let all = [
        "cygnet_plane_drops_total{reason=\"bandwidth\"}".to_owned(),
        "cygnet_qos_drops_total{gateway=\"own\",class=\"tunnel\"}".to_owned(),
        format!("{drops}\"out\"}}"),
        format!("{drops}\"in\"}}"),
        "cygnet_ip_bytes_total{gateway=\"own\",ip=\"10.1.0.1\"}".to_owned(),
        "cygnet_ike_rtt_seconds_count".to_owned(),
    ];
    let counted = |pair: &Pair| all.clone().map(|series| pair.metric(&series).unwrap_or(0.0));
    let before = counted(&pair);
    assert!(before.iter().all(|count| *count > 0.0), "{all:?}: {before:?}");
    pair.hand_over();
    let after = counted(&pair);
    assert!(before.iter().zip(&after).all(|(before, after)| after >= before), "{before:?}, then {after:?}");
}

/// Below its level a tunnel loses nothing, whatever the level becomes meanwhile.
#[test]
fn changes_above_the_rate_lose_no_packet() {
    let Some(pair) = Pair::up("changes_above_the_rate_lose_no_packet", ", bandwidth: 50mbit", "") else {
        return;
    };
    let spis = pair.spis();
    let mut flood = pair.outwards(FIRST, 1.0 * MBIT);
    for (tunnel, gateway) in
        [("20mbit", "20mbit"), ("10mbit", "10mbit"), ("unlimited", "100mbit"), ("5mbit", "5mbit")]
    {
        pair.says(&["bandwidth", "a-b", tunnel]);
        pair.says(&["bandwidth", "own", gateway]);
        std::thread::sleep(Duration::from_millis(200));
    }
    let sent = flood.hush();
    assert!(sent > 50, "{sent}");
    // The last one is on the way for a moment.
    until(|| flood.came.load(Relaxed) == sent);
    assert_eq!(pair.spis(), spis);
}

/// The kernel takes an interface out of service while its root qdisc is exchanged: nothing is sent meanwhile.
#[test]
fn a_gateways_first_and_last_level_lose_no_packet() {
    let Some(pair) = Pair::up("a_gateways_first_and_last_level_lose_no_packet", "", "") else { return };
    let shaped = || pair.ours.sh("tc qdisc show dev wire").contains("htb c960:");
    // What is lost because a thread has no processor for long is none of an exchange, and has counts of its own.
    let starved = || {
        let count = |host: &Host, ask: &str| host.sh(ask).trim().parse::<u64>().unwrap();
        count(&pair.ours, "awk '/cygnet0:/ { print $13 }' /proc/net/dev")
            + count(&pair.theirs, "awk '/^Udp: [0-9]/ { print $6 }' /proc/net/snmp")
    };
    let before = starved();
    let rate = 1_000.0 * PACKET as f64 * 8.0;
    let mut flood = Flood::steady((&pair.ours, US), (&pair.theirs, FIRST), rate, 16);
    for _ in 0..20 {
        for level in ["500mbit", "400mbit", "unlimited"] {
            pair.says(&["bandwidth", "own", level]);
            assert_eq!(shaped(), level != "unlimited");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let (sent, came) = flood.outcome();
    let starved = starved() - before;
    println!(
        "20 first and 20 last levels: {sent} sent, {} lost, {starved} for want of a processor",
        sent - came
    );
    assert!(sent > 2_000, "{sent}");
    assert_eq!(sent, came + starved, "{}", pair.ours.sh("ip -s link show wire; ip -s link show cygnet0"));
}

/// Each packet that waited in vain is counted once, also segments of superpackets; the count outlives its queue.
#[test]
fn what_the_queue_of_a_gateway_drops_is_counted_and_never_goes_back() {
    let test = "what_the_queue_of_a_gateway_drops_is_counted_and_never_goes_back";
    let Some(mut pair) = Pair::up(test, ", bandwidth: 2mbit", "") else { return };
    let dropped = |pair: &Pair| {
        pair.metric("cygnet_qos_drops_total{gateway=\"own\",class=\"gateway\"}").unwrap() as u64
    };
    assert_eq!(dropped(&pair), 0);
    let overload = |pair: &Pair| {
        let mut flood = pair.outwards(FIRST, 10.0 * MBIT);
        std::thread::sleep(SECOND_LONG * 2);
        let (sent, came) = flood.outcome();
        sent - came
    };
    let first = overload(&pair);
    println!(
        "{first} packets lost, {} counted; {}",
        dropped(&pair),
        pair.ours.sh("tc -s class show dev wire")
    );
    assert!(first > 300 && dropped(&pair) == first, "{first} {}", dropped(&pair));
    pair.says(&["bandwidth", "own", "unlimited"]);
    assert_eq!(dropped(&pair), first, "the queue is gone");
    pair.says(&["bandwidth", "own", "2mbit"]);
    let second = overload(&pair);
    assert!(second > 300 && dropped(&pair) == first + second, "{first} {second} {}", dropped(&pair));
    pair.hand_over();
    assert_eq!(dropped(&pair), first + second, "the next life finds the queue as it was");
    let third = overload(&pair);
    assert!(third > 300 && dropped(&pair) == first + second + third, "{third} {}", dropped(&pair));
}

/// What is used of a level is what the level lets pass, in the octets that it counts, whatever is offered.
#[test]
fn the_use_of_a_level_is_what_it_lets_pass_in_what_it_counts() {
    let test = "the_use_of_a_level_is_what_it_lets_pass_in_what_it_counts";
    let Some(pair) = Pair::up(test, ", bandwidth: { out: 5mbit, in: 4mbit }", "") else { return };
    let flood = |outwards: bool, octets: usize, packets: f64| {
        let (us, them) = ((&pair.ours, US), (&pair.theirs, FIRST));
        let (from, to) = if outwards { (us, them) } else { (them, us) };
        Flood::sized(from, to, packets * octets as f64 * 8.0, u64::MAX, octets)
    };
    let figures = || {
        // The burst is over.
        std::thread::sleep(SECOND_LONG);
        pair.ours.metrics("a");
        std::thread::sleep(SECOND_LONG * 3);
        let usage = pair.metric("cygnet_bandwidth_usage_ratio{gateway=\"own\"}");
        let status = pair.json(&["status", "--json"])["gateways"][0].clone();
        let mbit = |key: &str| status[key].as_f64().map(|bps| bps / MBIT);
        let used = (mbit("bandwidth_used_bps"), mbit("bandwidth_in_used_bps"));
        let figures = (usage.unwrap_or(-1.0), used.0.unwrap_or(-1.0), used.1.unwrap_or(-1.0));
        println!("used {:.3}, {:.3} Mbit/s out, {:.3} in", figures.0, figures.1, figures.2);
        figures
    };
    // A busy machine lets less pass, never more.
    let is_full = |part: f64| (0.75..1.04).contains(&part);
    // Six times the level, and half as much inside as a quarter more than the level on the wire.
    for (octets, packets) in [(PACKET, 3_000.0), (60, 6_000.0)] {
        {
            let _out = flood(true, octets, packets);
            let (usage, tx, _) = figures();
            assert!(is_full(usage) && is_full(tx / 5.0), "{octets} octets on the wire: {usage}, {tx}");
        }
        let _inward = flood(false, octets, packets);
        let (_, _, rx) = figures();
        assert!(is_full(rx / 4.0), "{octets} octets on the wire inwards: {rx}");
    }
    let config = pair.ours.path("a.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let payload = "{ out: 2mbit, in: 1mbit, counts: payload }";
    fs::write(&config, text.replace("{ out: 5mbit, in: 4mbit }", payload)).unwrap();
    pair.says(&["apply"]);
    {
        let (_out, _inward) = (flood(true, 60, 6_000.0), flood(false, 60, 6_000.0));
        let (usage, tx, rx) = figures();
        assert!(is_full(usage) && is_full(tx / 2.0) && is_full(rx), "payload: {usage}, {tx}, {rx}");
    }
    // Without a level nothing of it is used; what the packets inside had is shown in either case.
    pair.says(&["bandwidth", "own", "unlimited"]);
    let _out = flood(true, 60, 4_000.0);
    let (usage, used, _) = figures();
    assert!(usage < 0.0 && used < 0.0, "unlimited: {usage}, {used}");
    let tx = pair.json(&["status", "--json"])["gateways"][0]["tx_bps"].as_f64().unwrap();
    let inside = 4_000.0 * 60.0 * 8.0;
    assert!((0.75..1.04).contains(&(tx / inside)), "unlimited: {tx}");
}

/// `status`, `top` and the exporter are fed by one sampler: what the tunnels carried, their gateway and its addresses carried.
#[test]
fn every_view_tells_the_same_of_what_was_carried() {
    let Some(pair) = Pair::up("every_view_tells_the_same_of_what_was_carried", "", "") else { return };
    let mut floods = [pair.outwards(FIRST, 3e6), pair.outwards(SECOND, 1e6), pair.inwards(FIRST, 2e6)];
    std::thread::sleep(SECOND_LONG * 4);
    // While traffic flows: both of one moment, and of the same span.
    let told = pair.json(&["status", "--json"])["gateways"][0].clone();
    let top = pair.json(&["top", "own", "--span", "3s", "--json"]);
    let sum = |tunnels: &Value, key: &str| -> f64 {
        tunnels.as_array().unwrap().iter().map(|t| t[key].as_f64().unwrap()).sum()
    };
    for (key, offered) in [("tx_bps", 4e6), ("rx_bps", 2e6)] {
        let (gateway, tunnels) = (told[key].as_f64().unwrap(), sum(&top["tunnels"], key));
        println!("{key}: {gateway} by status, {tunnels} by top");
        assert!((0.8..1.1).contains(&(gateway / offered)), "{key}: {gateway} by status");
        assert!((0.8..1.1).contains(&(tunnels / offered)), "{key}: {tunnels} by top");
        let (addresses, tunnels) = (sum(&top["ips"], key), sum(&top["tunnels"], key));
        assert!((0.99..1.01).contains(&(addresses / tunnels)), "{key}: {addresses} by address, {tunnels}");
    }
    for flood in &mut floods {
        flood.outcome();
    }
    // At rest, to the octet.
    let series = |metric: &str| -> f64 {
        let page = pair.ours.metrics("a");
        let of_metric =
            page.lines().filter_map(|l| l.strip_prefix(metric)?.strip_prefix('{')?.rsplit_once("} "));
        of_metric.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
    };
    let both_ways = |of: &Value| sum(of, "bytes_in") + sum(of, "bytes_out");
    let same = || {
        let top = pair.json(&["top", "own", "--json"]);
        let (tunnels, addresses) = (both_ways(&top["tunnels"]), both_ways(&top["ips"]));
        let status = both_ways(&pair.json(&["status", "--json"])["tunnels"]);
        let exported = (series("cygnet_sa_bytes_total"), series("cygnet_ip_bytes_total"));
        println!("{tunnels} by tunnel, {addresses} by address, {status} by status, {exported:?} exported");
        assert!(tunnels > 2e6, "{top:#}");
        [addresses, status, exported.0, exported.1].iter().all(|told| *told == tunnels)
    };
    until(same);
    // Whatever keys carried it.
    assert_eq!(pair.ours.ask("a", &["rekey", "a-b"]).status.code(), Some(0));
    until(same);
}

/// The level stands on the bond, not on the interfaces in it, and stays there when the active one fails.
#[test]
fn a_level_stands_on_a_bond_and_on_a_vlan_over_it() {
    let test = "a_level_stands_on_a_bond_and_on_a_vlan_over_it";
    for dev in ["bond0", "bond0.7"] {
        let mut has_it = false;
        let rewire = |ours: &Host, theirs: &Host| {
            let (a, b) = (ours.holder.id(), theirs.holder.id());
            let second = format!("ip link add spare netns {a} type veth peer name spare netns {b}");
            assert!(Command::new("sh").args(["-c", &second]).status().unwrap().success());
            for (host, n) in [(ours, 1), (theirs, 2)] {
                let made = host
                    .sh("ip link add bond0 type bond mode active-backup miimon 20 && ip link set bond0 up &&
                     ip link add link bond0 name bond0.7 type vlan id 7 && echo made");
                has_it = made.contains("made");
                if has_it {
                    host.sh(&format!(
                        "ip address flush dev wire
                         for i in wire spare; do ip link set $i down; ip link set $i master bond0; ip link set $i up; done
                         ip link set bond0.7 up; ip address add 192.0.2.{n}/24 dev {dev}"
                    ));
                }
            }
        };
        let Some(pair) = Pair::up_on(test, ", bandwidth: 2mbit", "", rewire) else { return };
        if !has_it {
            println!("{test} is skipped: the kernel has no bond or no VLAN");
            return;
        }
        let qdiscs = || pair.ours.sh("tc qdisc show");
        let roots: Vec<String> =
            qdiscs().lines().filter(|l| l.contains("htb c960:")).map(str::to_owned).collect();
        assert!(roots.len() == 1 && roots[0].contains(&format!(" dev {dev} root")), "{}", qdiscs());
        // Low rates: an emulated machine does not get far.
        let out = pair.outwards(FIRST, 8.0 * MBIT);
        // ESP, UDP, IPv4 and Ethernet around the packet; a VLAN's tag is not counted on top of it.
        let level = 2.0 * MBIT * PACKET as f64 / (PACKET as f64 + 30.0 + 8.0 + 20.0 + 14.0);
        println!("{dev}:");
        assert!(is_near(settled(&out), level));
        let active =
            || pair.ours.sh("ip -d -o link show bond0 | grep -o 'active_slave [a-z]*' | cut -d' ' -f2");
        let first = active();
        assert!(!first.is_empty());
        pair.ours.sh(&format!("ip link set {} down", first.trim()));
        until(|| !active().is_empty() && active() != first);
        println!("{dev}, by the other one:");
        assert!(is_near(settled(&out), level));
    }
}

#[test]
fn a_gateways_level_holds_inwards_in_payload_and_beside_qdiscs_of_others() {
    let test = "a_gateways_level_holds_inwards_in_payload_and_beside_qdiscs_of_others";
    let Some(pair) = Pair::up(test, ", bandwidth: { out: 6mbit, in: 5mbit, counts: payload }", "") else {
        return;
    };
    let both = |one: &Flood, two: &Flood| {
        std::thread::sleep(SECOND_LONG);
        let before = two.came.load(Relaxed);
        let began = Instant::now();
        let one = one.rate(SECOND_LONG * 3);
        one + (two.came.load(Relaxed) - before) as f64 * PACKET as f64 * 8.0 / began.elapsed().as_secs_f64()
    };
    {
        let (one, two) = (pair.inwards(FIRST, 20.0 * MBIT), pair.inwards(SECOND, 20.0 * MBIT));
        assert!(is_near(both(&one, &two), 5.0 * MBIT), "its tunnels share it");
    }
    {
        let (one, two) = (pair.outwards(FIRST, 20.0 * MBIT), pair.outwards(SECOND, 20.0 * MBIT));
        assert!(is_near(both(&one, &two), 6.0 * MBIT), "its tunnels share it");
    }
    assert!(!pair.ours.sh("tc qdisc show dev wire").contains("htb"), "traffic control counts the wire");

    // On the wire again, but somebody else has the root of the interface, and keeps it.
    assert_eq!(pair.says(&["bandwidth", "own", "unlimited"]), "bandwidth of own is now unlimited\n");
    pair.ours.sh("tc qdisc add dev wire root handle 7: tbf rate 400mbit burst 100k latency 50ms");
    let before = pair.ours.sh("tc qdisc show dev wire");
    let config = pair.ours.path("a.yaml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("{ out: 6mbit, in: 5mbit, counts: payload }", "8mbit")).unwrap();
    pair.says(&["apply"]);
    {
        let out = pair.outwards(FIRST, 30.0 * MBIT);
        // ESP, UDP, IPv4 and Ethernet around the packet.
        let wire = PACKET as f64 / (PACKET as f64 + 30.0 + 8.0 + 20.0 + 14.0);
        assert!(is_near(settled(&out), 8.0 * MBIT * wire));
    }
    assert_eq!(pair.ours.sh("tc qdisc show dev wire"), before);
    pair.ours.sh("tc qdisc del dev wire root");
    // The queue comes back when its place is free.
    until(|| pair.ours.sh("tc qdisc show dev wire").contains("htb c960:"));
}

/// Packets leave by another interface than the one with the gateway's address, and then by a third.
#[test]
fn a_level_follows_the_way_of_the_packets() {
    let Some(pair) = Pair::up("a_level_follows_the_way_of_the_packets", ", bandwidth: 8mbit", "") else {
        return;
    };
    let (a, b) = (pair.ours.holder.id(), pair.theirs.holder.id());
    let shaped =
        |dev: &str| pair.ours.sh(&format!("tc class show dev {dev}")).contains("rate 8Mbit ceil 8Mbit");
    assert!(shaped("wire"));
    let link = format!(
        "ip link add wide netns {a} type veth peer name wide netns {b}
         nsenter --net -t {a} ip link set wide up; nsenter --net -t {b} ip link set wide up"
    );
    assert!(Command::new("sh").args(["-c", &link]).status().unwrap().success());
    // A VLAN where the kernel has them.
    for host in [&pair.ours, &pair.theirs] {
        host.sh("ip link add link wide name wide.7 type vlan id 7; ip link set wide.7 up");
    }
    let has_vlan = pair.ours.sh("ip -br link").contains("wide.7");
    let dev = if has_vlan { "wide.7" } else { "wide" };
    println!("the other interface is {dev}");
    pair.ours.sh(&format!("ip address add 198.51.100.1/24 dev {dev}"));
    pair.theirs.sh(&format!("ip address add 198.51.100.2/24 dev {dev}"));
    for host in [&pair.ours, &pair.theirs] {
        host.sh("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done");
    }
    // One of the two peers is behind the other interface: each has the level, and both together no more.
    pair.ours.sh(&format!("ip route add 192.0.2.2 via 198.51.100.2 dev {dev}"));
    until(|| shaped(dev) && shaped("wire"));
    {
        let (one, two) = (pair.outwards(FIRST, 20.0 * MBIT), pair.outwards(SECOND, 20.0 * MBIT));
        std::thread::sleep(SECOND_LONG * 2);
        let before = two.came.load(Relaxed);
        let one = one.rate(SECOND_LONG * 3);
        let two = (two.came.load(Relaxed) - before) as f64 * PACKET as f64 * 8.0 / 3.0;
        println!("{:.2} and {:.2} Mbit/s by two interfaces", one / MBIT, two / MBIT);
        assert!(one > MBIT && two > MBIT && one + two < 8.2 * MBIT, "{one} {two}");
    }
    pair.ours.sh(&format!("ip route add 192.0.2.3 via 198.51.100.2 dev {dev}"));
    until(|| shaped(dev) && !pair.ours.sh("tc qdisc show dev wire").contains("htb"));
}

/// Command over saved over configuration; what was saved outlives the daemon, what was only said a crash; a file that says
/// something else has the last word.
#[test]
fn levels_of_tunnels_outlive_the_daemon_and_follow_the_file() {
    let test = "levels_of_tunnels_outlive_the_daemon_and_follow_the_file";
    let Some(mut pair) = Pair::up(test, "", ", bandwidth: 5mbit") else { return };
    let is = |bps: u64, origin: &str| (bps, origin.to_owned());
    pair.says(&["bandwidth", "a-b", "7mbit", "--save"]);
    pair.says(&["bandwidth", "a-c", "9mbit", "--in"]);
    let all = |pair: &Pair| [pair.level(0, "bandwidth"), pair.level(1, "bandwidth_in")];
    assert_eq!(all(&pair), [is(7_000_000, "saved"), is(9_000_000, "command")]);
    pair.daemon.0.kill().unwrap();
    pair.daemon.0.wait().unwrap();
    pair.daemon = pair.ours.running("a");
    assert_eq!(all(&pair), [is(7_000_000, "saved"), is(9_000_000, "command")]);
    assert_eq!(pair.daemon.end(), Some(0));
    pair.daemon = pair.ours.running("a");
    assert_eq!(all(&pair), [is(7_000_000, "saved"), is(0, "none")]);
    assert!(
        pair.says(&["status", "a-b"]).contains("out 7 Mbit/s (saved)"),
        "{}",
        pair.says(&["status", "a-b"])
    );

    let config = pair.ours.path("a.yaml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("bandwidth: 5mbit", "bandwidth: { out: 6mbit, in: 3mbit }")).unwrap();
    let plan = pair.says(&["plan"]);
    let words = "the bandwidth of tunnel a-b, 7mbit as set by command, gives way";
    assert!(plan.contains(words) && plan.contains("bandwidth: 5mbit -> 6mbit"), "{plan}");
    pair.says(&["apply"]);
    assert_eq!(pair.level(0, "bandwidth"), is(6_000_000, "configuration"));
    assert_eq!(pair.level(0, "bandwidth_in"), is(3_000_000, "configuration"));
    let saved = |pair: &Pair| fs::read_to_string(pair.ours.path("a").join("bandwidth.json")).unwrap();
    assert!(!saved(&pair).contains("a-b"));

    // And if it is changed while nobody looks.
    pair.says(&["bandwidth", "a-b", "7mbit", "--save"]);
    assert_eq!(pair.daemon.end(), Some(0));
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("bandwidth: { out: 6mbit, in: 3mbit }", "bandwidth: 4mbit")).unwrap();
    pair.daemon = pair.ours.running("a");
    assert_eq!(pair.level(0, "bandwidth"), is(4_000_000, "configuration"));
    assert!(!saved(&pair).contains("a-b"));
}

#[test]
fn bad_levels_are_refused_and_change_nothing() {
    let Some(pair) = Pair::up("bad_levels_are_refused_and_change_nothing", "", ", bandwidth: 5mbit") else {
        return;
    };
    let gateway = |pair: &Pair| pair.json(&["status", "--json"])["gateways"][0]["bandwidth_bps"].clone();
    let before = gateway(&pair);
    for (args, code, words) in [
        (["bandwidth", "nobody", "5mbit"], 64, "no gateway or tunnel \"nobody\""),
        (["bandwidth", "tunnel:own", "5mbit"], 64, "no gateway or tunnel"),
        (["bandwidth", "gateway:a-b", "5mbit"], 64, "no gateway or tunnel"),
        (["bandwidth", "a-b", "0"], 64, "no unit"),
        (["bandwidth", "a-b", "0mbit"], 64, "out of range"),
        (["bandwidth", "own", "1000000000000"], 64, "no unit"),
        (["bandwidth", "own", "1000gbit"], 64, "out of range"),
        (["bandwidth", "own", "1tbit"], 64, "write 1kbit to 100gbit"),
    ] {
        let (got, err) = told(&pair.ours.ask("a", &args));
        assert!(got == Some(code) && err.contains(words), "{args:?}: {got:?} {err}");
    }
    // Who asks without the command line is looked at as well.
    for bps in ["0", "1", "1000000000000"] {
        let mut socket = UnixStream::connect(pair.ours.path("a.sock")).unwrap();
        let ask = format!("{{\"verb\":\"bandwidth\",\"gateway\":\"a-b\",\"bps\":{bps},\"save\":true}}");
        socket.write_all(&u32::try_from(ask.len()).unwrap().to_be_bytes()).unwrap();
        socket.write_all(ask.as_bytes()).unwrap();
        let mut len = [0; 4];
        socket.read_exact(&mut len).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(len) as usize];
        socket.read_exact(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("is out of range"), "{bps}: {answer}");
    }
    assert_eq!(pair.level(0, "bandwidth"), (5_000_000, "configuration".to_owned()));
    assert_eq!(gateway(&pair), before);
    let lowest = "bandwidth of own is now 1kbit; its queue keeps it as 16kbit\n";
    assert_eq!(pair.says(&["bandwidth", "own", "1kbit"]), lowest);
}
