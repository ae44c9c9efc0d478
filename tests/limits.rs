//! Limits of single inner addresses between two gateways with data plane userspace, each in a network namespace of its own,
//! with real traffic. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use host::{Daemon, Host, told, until};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// The gateway that limits, with hosts 10.1.0.5 and 10.1.0.6, and its peer.
struct Pair {
    ours: Host,
    theirs: Host,
    daemon: Daemon,
    _peer: Daemon,
}

const PEER: &str = "10.2.0.1";
const GREEDY: &str = "10.1.0.5";
const NEIGHBOUR: &str = "10.1.0.6";

impl Pair {
    fn up(test: &str, limits: &str) -> Option<Self> {
        let (ours, theirs) = Host::wired(test)?;
        ours.sh("ip address add 10.1.0.5/16 dev far; ip address add 10.1.0.6/16 dev far");
        configure(&ours, "a", ("192.0.2.1", "10.1.0.0/16"), ("192.0.2.2", "10.2.0.0/16"), ("active", limits));
        configure(
            &theirs,
            "b",
            ("192.0.2.2", "10.2.0.0/16"),
            ("192.0.2.1", "10.1.0.0/16"),
            ("passive", "[]"),
        );
        let (peer, daemon) = (theirs.running("b"), ours.running("a"));
        let pair = Self { ours, theirs, daemon, _peer: peer };
        until(|| pair.pings(NEIGHBOUR));
        Some(pair)
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_slice(&self.ours.ask("a", args).stdout).unwrap()
    }

    fn says(&self, args: &[&str]) -> String {
        let o = self.ours.ask("a", args);
        assert_eq!(told(&o), (Some(0), String::new()), "{args:?}");
        String::from_utf8(o.stdout).unwrap()
    }

    fn pings(&self, from: &str) -> bool {
        self.ours.sh(&format!("ping -c 2 -i 0.2 -W 1 -I {from} {PEER}")).contains(" 0% packet loss")
    }

    /// The SPIs of the IKE SA and of the ESP SAs.
    fn spis(&self) -> [Value; 3] {
        let status = self.json(&["status", "--json"]);
        let t = &status["tunnels"][0];
        [t["ike"]["spi_i"].clone(), t["children"][0]["spi_in"].clone(), t["children"][0]["spi_out"].clone()]
    }

    /// What is told of the limits: (address, limit, whose word).
    fn limits(&self) -> Vec<(String, String, String)> {
        let answer = self.json(&["limit", "own", "--json"]);
        let word = |l: &Value, key: &str| l[key].as_str().unwrap().to_owned();
        let all = answer["limits"].as_array().unwrap().iter();
        all.map(|l| (word(l, "ip"), word(l, "rate"), word(l, "origin"))).collect()
    }
}

fn configure(host: &Host, name: &str, own: (&str, &str), other: (&str, &str), what: (&str, &str)) {
    host.keep_key();
    let dir = host.dir.path().display();
    let ((address, network), (peer, remote), (start, limits)) = (own, other, what);
    let text = format!(
        "daemon: {{ control_socket: {dir}/{name}.sock, state_dir: {dir}/{name}, data_plane: userspace }}
gateways: [ {{ name: own, address: {address}, networks: [{network}], limits: {limits} }} ]
customer_gateways: [ {{ name: other, address: {peer} }} ]
tunnels:
  - {{ name: a-b, gateway: own, customer_gateway: other, auth: {{ psk_file: a-b.psk }}, start: {start}, esp: {{ bytes: unlimited }},
      spd: [ {{ local: {network}, remote: [{remote}] }} ] }}
"
    );
    fs::write(host.path(&format!("{name}.yaml")), text).unwrap();
}

/// A TCP connection that carries as much as it can, until it is dropped.
struct Stream {
    stop: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    fn open(from: &Host, source: &str, to: &Host, sink: &str) -> Self {
        let (stop, carried) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let source: SocketAddr = format!("{source}:0").parse().unwrap();
        let sink: SocketAddr = format!("{sink}:0").parse().unwrap();
        let listener = to.thread(move || TcpListener::bind(sink).unwrap()).join().unwrap();
        let target = listener.local_addr().unwrap();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&carried));
        let receiver = std::thread::spawn(move || {
            listener.set_nonblocking(true).unwrap();
            let mut stream = loop {
                match listener.accept() {
                    Ok((stream, _)) => break stream,
                    Err(_) if stopped.load(Relaxed) => return,
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            };
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut buffer = vec![0; 1 << 16];
            while !stopped.load(Relaxed) {
                if let Ok(n) = stream.read(&mut buffer) {
                    count.fetch_add(n as u64, Relaxed);
                }
            }
        });
        let stopped = Arc::clone(&stop);
        let sender = from.thread(move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&source.into()).unwrap();
            socket.connect_timeout(&target.into(), Duration::from_secs(10)).unwrap();
            let mut stream = TcpStream::from(socket);
            stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            let data = vec![7; 1 << 16];
            while !stopped.load(Relaxed) {
                let _ = stream.write(&data);
            }
        });
        Self { stop, carried, threads: vec![receiver, sender] }
    }

    /// Bits of payload in a second, over some time from now on.
    fn rate(&self, over: Duration) -> f64 {
        let (began, before) = (Instant::now(), self.carried.load(Relaxed));
        std::thread::sleep(over);
        (self.carried.load(Relaxed) - before) as f64 * 8.0 / began.elapsed().as_secs_f64()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The story: somebody downloads at night, is found, and is capped; the others have their room back, and nothing else has
/// changed.
#[test]
fn one_address_is_found_and_capped_and_the_rest_is_not_touched() {
    let Some(pair) = Pair::up("one_address_is_found_and_capped_and_the_rest_is_not_touched", "[]") else {
        return;
    };
    let spis = pair.spis();
    let second = Duration::from_secs(1);
    for outwards in [true, false] {
        let way = |ip| match outwards {
            true => Stream::open(&pair.ours, ip, &pair.theirs, PEER),
            false => Stream::open(&pair.theirs, PEER, &pair.ours, ip),
        };
        let (greedy, neighbour) = (way(GREEDY), way(NEIGHBOUR));
        std::thread::sleep(second);
        let top = pair.json(&["top", "own", "--json"]);
        let seen: Vec<&str> =
            top["ips"].as_array().unwrap().iter().map(|ip| ip["ip"].as_str().unwrap()).collect();
        assert!(seen.contains(&GREEDY) && seen.contains(&NEIGHBOUR), "{top:#}");
        let one = &top["ips"][0];
        let (with, against) = if outwards { ("tx_bps", "rx_bps") } else { ("rx_bps", "tx_bps") };
        assert!(one[with].as_u64() > one[against].as_u64(), "{one:#}");

        assert_eq!(
            pair.says(&["limit", "own", GREEDY, "20mbit"]),
            "limit of 10.1.0.5 of own is now 20mbit\n"
        );
        // What was on the way, and TCP's notice of it.
        std::thread::sleep(second * 2);
        let (capped, free) = (greedy.rate(second * 6), neighbour.rate(second));
        println!(
            "outwards {outwards}: capped to 20 Mbit/s it has {:.2}, the neighbour {:.0}",
            capped / 1e6,
            free / 1e6
        );
        // Payload is a little less than packets.
        assert!((12e6..22e6).contains(&capped), "{capped}");
        assert!(free > 1.5 * capped, "{free}");

        assert_eq!(
            pair.says(&["limit", "own", GREEDY, "unlimited"]),
            "limit of 10.1.0.5 of own is now unlimited\n"
        );
        until(|| greedy.rate(second) > 25e6);
    }
    let metrics = pair.ours.metrics("a");
    for series in [
        "cygnet_ip_bytes_total{gateway=\"own\",ip=\"10.1.0.5\"} ",
        "cygnet_ip_bytes_total{gateway=\"own\",ip=\"10.1.0.6\"} ",
        "cygnet_qos_drops_total{gateway=\"own\",class=\"ip\"} ",
    ] {
        let value =
            metrics.lines().find_map(|l| l.strip_prefix(series)).unwrap_or_else(|| panic!("{series}"));
        assert!(value.parse::<f64>().unwrap() > 0.0, "{series}{value}");
    }
    let peaks = pair.json(&["top", "own", "--since", "1h", "--json"]);
    assert!(peaks["peaks"][0]["peak_bps"].as_u64() > Some(0), "{peaks:#}");
    assert_eq!(pair.spis(), spis, "no key was made for it");
}

#[test]
fn a_blocked_address_passes_nothing_either_way_and_others_pass() {
    let test = "a_blocked_address_passes_nothing_either_way_and_others_pass";
    let Some(pair) = Pair::up(test, "[ { ip: 10.1.0.6, rate: 50mbit } ]") else { return };
    assert!(pair.pings(GREEDY) && pair.pings(NEIGHBOUR));
    pair.says(&["limit", "own", GREEDY, "block"]);
    let from_peer = |to: &str| pair.theirs.sh(&format!("ping -c 2 -i 0.2 -W 1 -I {PEER} {to}"));
    assert!(!pair.pings(GREEDY) && from_peer(GREEDY).contains("100% packet loss"));
    assert!(pair.pings(NEIGHBOUR) && from_peer(NEIGHBOUR).contains(" 0% packet loss"));
    let metrics = pair.ours.metrics("a");
    assert!(
        metrics.contains("cygnet_ip_limit_bits_per_second{gateway=\"own\",ip=\"10.1.0.5\"} 0\n"),
        "{metrics}"
    );
    assert!(metrics.contains("cygnet_ip_limit_bits_per_second{gateway=\"own\",ip=\"10.1.0.6\"} 50000000\n"));
    let blocked =
        metrics.lines().find_map(|l| l.strip_prefix("cygnet_plane_drops_total{reason=\"ip_block\"} "));
    assert!(blocked.unwrap().parse::<u64>().unwrap() >= 4);
    let status = pair.json(&["status", "--json"]);
    assert_eq!(
        status["gateways"][0]["limits"],
        serde_json::json!({"rates": 1, "blocked": 1, "by_command": 1})
    );
    pair.says(&["limit", "own", GREEDY, "unlimited"]);
    assert!(pair.pings(GREEDY));
}

/// Command over saved over configuration; what was saved outlives the daemon, what was only said a crash; a file that says
/// something else of an address has the last word.
#[test]
fn limits_outlive_the_daemon_and_follow_the_file() {
    let Some(mut pair) =
        Pair::up("limits_outlive_the_daemon_and_follow_the_file", "[ { ip: 10.1.0.7, rate: 7mbit } ]")
    else {
        return;
    };
    let is = |ip: &str, rate: &str, origin: &str| (ip.to_owned(), rate.to_owned(), origin.to_owned());
    pair.says(&["limit", "own", GREEDY, "5mbit", "--save"]);
    pair.says(&["limit", "own", NEIGHBOUR, "block"]);
    pair.says(&["limit", "own", "10.1.0.7", "unlimited", "--save"]);
    let all = [
        is(GREEDY, "5mbit", "saved"),
        is(NEIGHBOUR, "block", "command"),
        is("10.1.0.7", "unlimited", "saved"),
    ];
    assert_eq!(pair.limits(), all);

    // A crash: all of it goes on.
    pair.daemon.0.kill().unwrap();
    pair.daemon.0.wait().unwrap();
    pair.daemon = pair.ours.running("a");
    assert_eq!(pair.limits(), all);
    until(|| pair.pings(GREEDY));
    assert!(!pair.pings(NEIGHBOUR));

    // A file that changes what it says of one address, and nothing of the others.
    let config = pair.ours.path("a.yaml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("7mbit", "8mbit")).unwrap();
    let plan = pair.ours.ask("a", &["plan"]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(
        plan.contains("limits of 2 addresses of own stay") && plan.contains("limits of 1 addresses"),
        "{plan}"
    );
    pair.says(&["apply"]);
    let now = [
        is(GREEDY, "5mbit", "saved"),
        is(NEIGHBOUR, "block", "command"),
        is("10.1.0.7", "8mbit", "configuration"),
    ];
    assert_eq!(pair.limits(), now);

    // The end, and another beginning.
    assert_eq!(pair.daemon.end(), Some(0));
    pair.daemon = pair.ours.running("a");
    assert_eq!(pair.limits(), [is(GREEDY, "5mbit", "saved"), is("10.1.0.7", "8mbit", "configuration")]);
    // A file that was changed while nobody looked has the last word as well.
    assert_eq!(pair.daemon.end(), Some(0));
    fs::write(&config, text.replace("7mbit }", "8mbit }, { ip: 10.1.0.5, rate: block }")).unwrap();
    pair.daemon = pair.ours.running("a");
    let file = [is(GREEDY, "block", "configuration"), is("10.1.0.7", "8mbit", "configuration")];
    assert_eq!(pair.limits(), file);
    pair.says(&["limit", "own", GREEDY, "unlimited", "--save"]);
    assert_eq!(pair.limits(), [is(GREEDY, "unlimited", "saved"), file[1].clone()]);
}

#[test]
fn bad_limits_are_refused_and_change_nothing() {
    let Some(pair) = Pair::up("bad_limits_are_refused_and_change_nothing", "[]") else { return };
    pair.says(&["limit", "own", GREEDY, "5mbit"]);
    let before = pair.limits();
    fs::write(pair.ours.path("mixed"), "10.1.0.9 1mbit\n10.3.0.9 1mbit\n").unwrap();
    fs::write(pair.ours.path("typo"), "10.1.0.9 1mbit\n10.1.0.10 fast\n").unwrap();
    let file = |name: &str| pair.ours.path(name).display().to_string();
    for (args, code, words) in [
        (vec!["limit", "own", "10.3.0.9", "1mbit"], 1, "outside the networks of own"),
        (vec!["limit", "nobody", GREEDY, "1mbit"], 64, "no gateway \"nobody\""),
        (vec!["limit", "own", GREEDY, "0mbit"], 64, "out of range"),
        (vec!["limit", "own", GREEDY, "1000000000000"], 64, "no unit"),
        (vec!["limit", "own", GREEDY, "1000000000000bit"], 64, "out of range"),
        (vec!["limit", "own", "10.1.0.0/24", "1mbit"], 64, "invalid value"),
        (vec!["limit", "own", "::ffff:10.1.0.9", "1mbit"], 64, "write 10.1.0.9"),
        (vec!["limit", "own", "--file", &file("mixed")], 1, "10.3.0.9"),
        (vec!["limit", "own", "--file", &file("typo")], 64, "typo:2"),
        (vec!["limit", "own", "--file", "/nonexistent"], 74, "cannot read"),
        (vec!["limit", "nobody"], 64, "no gateway"),
    ] {
        let (got, err) = told(&pair.ours.ask("a", &args));
        assert!(got == Some(code) && err.contains(words), "{args:?}: {got:?} {err}");
        assert_eq!(pair.limits(), before, "{args:?}");
    }
    fs::write(pair.ours.path("nobody"), "# nobody\n").unwrap();
    assert_eq!(pair.says(&["limit", "own", "--file", &file("nobody")]), "no limit of own was changed\n");
    assert_eq!(pair.limits(), before);
    // As the file has them.
    for (rate, word) in [("0", "block"), ("-1", "unlimited")] {
        let told = format!("limit of {GREEDY} of own is now {word}\n");
        assert_eq!(pair.says(&["limit", "own", GREEDY, rate]), told);
    }
}

/// Ten thousand limits in one go, and one more beside them; generous times, for a machine that is busy with other tests.
#[test]
fn ten_thousand_limits_come_at_once_and_one_changes_at_once() {
    let Some(pair) = Pair::up("ten_thousand_limits_come_at_once_and_one_changes_at_once", "[]") else {
        return;
    };
    let lines: String = (0..10_000).map(|n| format!("10.1.{}.{} 5mbit\n", 10 + n / 250, n % 250)).collect();
    fs::write(pair.ours.path("many"), lines).unwrap();
    let began = Instant::now();
    let file = pair.ours.path("many").display().to_string();
    assert_eq!(pair.says(&["limit", "own", "--file", &file, "--save"]), "10000 limits of own are in force\n");
    let added = began.elapsed();
    assert!(added < Duration::from_secs(10), "{added:?}");
    let began = Instant::now();
    for n in 0..20 {
        pair.says(&["limit", "own", &format!("10.1.10.{n}"), "6mbit"]);
    }
    let changed = began.elapsed() / 20;
    println!("10000 limits were added in {added:?}; a change took {changed:?} with the start of the command");
    assert!(changed < Duration::from_secs(2), "{changed:?}");
    assert_eq!(pair.limits().len(), 10_000);
    assert!(pair.pings(NEIGHBOUR));
    let metrics = pair.ours.metrics("a");
    assert_eq!(metrics.matches("\ncygnet_ip_limit_bits_per_second{").count(), 100, "bounded");
}
