//! Health checks and alerts of gateways, each in a network namespace of its own, with real
//! traffic. Loss is made by nft(8), of ESP only. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;
#[path = "quality/https.rs"]
mod https;
#[path = "quality/kernel.rs"]
mod kernel;
#[path = "quality/netem.rs"]
mod netem;
#[path = "quality/pair.rs"]
mod pair;
#[path = "quality/share.rs"]
mod share;
#[path = "quality/udp.rs"]
mod udp;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cygnet_model::SecretBytes;
use host::{Daemon, Host, told, until};
use pair::{Family, Pair, SECRET};
use serde_json::Value;

/// Datagrams from one gateway to the other, a hundred a second, until it is stopped.
struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<Vec<(Instant, u32)>>,
}

impl Stream {
    fn open(pair: &Pair, from: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (source, target) = (pair.inner.address(from), pair.inner.address(1 - from));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = mpsc::channel();
        let receiver = pair.hosts[1 - from].thread(move || {
            let socket = UdpSocket::bind((target, 7100)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            ready.send(()).unwrap();
            let (mut taken, mut buffer) = (Vec::new(), [0; 4]);
            while !stopped.load(Relaxed) {
                if socket.recv(&mut buffer).is_ok() {
                    taken.push((Instant::now(), u32::from_be_bytes(buffer)));
                }
            }
            taken
        });
        is_ready.recv().unwrap();
        let stopped = Arc::clone(&stop);
        let sender = pair.hosts[from].thread(move || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            let mut n = 0u32;
            while !stopped.load(Relaxed) {
                n += 1;
                let _ = socket.send_to(&n.to_be_bytes(), (target, 7100));
                std::thread::sleep(Duration::from_millis(10));
            }
            n
        });
        Self { stop, sender, receiver }
    }

    /// How many were sent and lost, and the longest time without any.
    fn close(self) -> (u32, u32, Duration) {
        self.stop.store(true, Relaxed);
        let (sent, taken) = (self.sender.join().unwrap(), self.receiver.join().unwrap());
        let gap = taken.windows(2).map(|pair| pair[1].0 - pair[0].0).max().unwrap_or(Duration::MAX);
        (sent, sent.saturating_sub(taken.len() as u32), gap)
    }
}

const QUICK: &str = "interval: 1s, failures: 2, successes: 4";

fn check(inner: Family, side: usize) -> String {
    format!("health_check: {{ target: \"{}\", {QUICK} }},", inner.address(1 - side))
}

/// Both wires are up; the first one loses all ESP while IKE goes on. The other tunnel carries the packets until the first
/// one has answered for a while.
#[test]
fn a_backup_takes_over_within_two_seconds_and_gives_back_without_flapping() {
    let Some(pair) = Pair::new("a_backup_takes_over_within_two_seconds_and_gives_back_without_flapping")
    else {
        return;
    };
    takes_over_and_gives_back(pair);
}

fn takes_over_and_gives_back(mut pair: Pair) {
    for side in [1, 0] {
        let check = check(pair.inner, side);
        let text = pair.text(side, &[&check, &check], "metrics: { listen: off }");
        pair.start(side, &text);
    }
    for (side, name) in [(0, "t0"), (0, "t1"), (1, "t0"), (1, "t1")] {
        until(|| pair.health(side, name) == "good");
    }
    let streams = [Stream::open(&pair, 0), Stream::open(&pair, 1)];
    pair.carries("t0", "t1");
    pair.lose(&[0, 1], "wire0", 1);
    for side in [0, 1] {
        until(|| pair.health(side, "t0") == "degraded");
        assert_eq!(pair.health(side, "t1"), "good", "side {side}");
    }
    pair.carries("t1", "t0");
    // New keys take the packets nowhere else.
    for rekey in [["rekey", "t1"].as_slice(), &["rekey", "t1", "--ike"]] {
        let o = pair.hosts[0].ask("x", rekey);
        assert_eq!(o.status.code(), Some(0), "{:?}", told(&o));
        pair.carries("t1", "t0");
    }
    pair.lose_nothing();
    for side in [0, 1] {
        until(|| pair.health(side, "t0") == "good");
    }
    pair.carries("t0", "t1");
    for (side, stream) in streams.into_iter().enumerate() {
        let (sent, lost, gap) = stream.close();
        println!("from {side}: {lost} of {sent} lost, {} ms the longest gap", gap.as_millis());
        // Two seconds, and what a machine with other things to do adds.
        assert!(gap < Duration::from_secs(6), "from {side}: {gap:?}");
        for (event, of) in [("quality_degraded", "t0"), ("quality_recovered", "t0")] {
            assert_eq!(pair.count(side, of, event), 1, "{event} of {of}, side {side}");
        }
        assert_eq!(pair.count(side, "t1", "quality_degraded"), 0, "the backup was well all the time");
    }
}

#[test]
fn loss_is_measured_with_its_direction_and_told_once() {
    let Some(mut pair) = Pair::new("loss_is_measured_with_its_direction_and_told_once") else { return };
    let text = pair.text(1, &[""], "metrics: { listen: off }");
    pair.start(1, &text);
    let check = "health_check: { target: 10.2.0.1, failures: 10, loss: 20%, successes: 3 },";
    let text = pair.text(0, &[check], "metrics: { listen: \"127.0.0.1:9180\" }");
    pair.start(0, &text);
    until(|| pair.health(0, "t0") == "good");
    pair.lose(&[0], "wire0", 3);
    let began = Instant::now();
    while pair.health(0, "t0") != "degraded" {
        assert!(began.elapsed() < Duration::from_secs(60), "{:#}", pair.tunnel(0, "t0")["quality"]);
        std::thread::sleep(Duration::from_millis(200));
    }
    std::thread::sleep(Duration::from_secs(20));
    let quality = &pair.tunnel(0, "t0")["quality"];
    println!("{quality:#}");
    assert_eq!(quality["target"], "10.2.0.1");
    assert_eq!(quality["source"], "10.1.0.1");
    let ratio = quality["loss_ratio"].as_f64().unwrap();
    assert!((0.15..0.4).contains(&ratio), "every third one is dropped: {ratio}");
    let (lost, there) = (quality["lost"].as_u64().unwrap(), quality["lost_there"].as_u64().unwrap());
    // What was lost after the last answer is not known to be lost on the way there yet.
    assert!(there <= lost && there * 2 >= lost, "{there} of {lost} on the way there, and none back");
    let text = String::from_utf8(pair.hosts[0].ask("x", &["status", "t0"]).stdout).unwrap();
    assert!(text.contains("health        degraded (loss) since"), "{text}");
    let get = "exec 3<>/dev/tcp/127.0.0.1/9180; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    let metrics =
        String::from_utf8(pair.hosts[0].inside("bash").args(["-c", get]).output().unwrap().stdout).unwrap();
    for series in [
        "cygnet_probe_loss_ratio{gateway=\"g0\",tunnel=\"t0\",probe=\"icmp\"} 0.",
        "cygnet_probe_delay_seconds{gateway=\"g0\",tunnel=\"t0\",probe=\"icmp\"} ",
        "cygnet_probe_jitter_seconds{gateway=\"g0\",tunnel=\"t0\",probe=\"icmp\"} ",
        "cygnet_tunnel_degraded{gateway=\"g0\",tunnel=\"t0\"} 1",
    ] {
        assert!(metrics.contains(series), "{series}");
    }
    let minutes = pair.json(0, &["quality", "t0", "--json"]);
    let minutes = minutes.as_array().unwrap();
    assert!(
        minutes.iter().any(|m| m["lost"].as_u64() > Some(0) && m["delay_ms"].as_f64() > Some(0.0)),
        "{minutes:#?}"
    );
    pair.lose_nothing();
    until(|| pair.health(0, "t0") == "good");
    assert_eq!(pair.count(0, "t0", "quality_degraded"), 1);
    assert_eq!(pair.count(0, "t0", "quality_recovered"), 1);
}

/// A health check comes, changes and goes without anything else; a bad one changes nothing.
#[test]
fn health_checks_follow_the_configuration() {
    let Some(mut pair) = Pair::new("health_checks_follow_the_configuration") else { return };
    let daemon = "metrics: { listen: off }";
    for side in [1, 0] {
        let text = pair.text(side, &[""], daemon);
        pair.start(side, &text);
    }
    until(|| pair.tunnel(0, "t0")["state"] == "up");
    let spis = |pair: &Pair| {
        let t = pair.tunnel(0, "t0");
        (t["ike"]["spi_i"].clone(), t["children"][0]["spi_in"].clone())
    };
    let before = spis(&pair);
    let o = pair.hosts[0].ask("x", &["quality", "t0"]);
    assert_eq!(o.status.code(), Some(1), "{:?}", told(&o));
    assert!(told(&o).1.contains("has no health check"));
    let apply = |pair: &Pair, check: &str| {
        pair.write(0, &pair.text(0, &[check], daemon));
        pair.hosts[0].ask("x", &["apply"])
    };
    let o = apply(&pair, "health_check: { target: 10.2.0.1 },");
    assert_eq!(o.status.code(), Some(0), "{:?}", told(&o));
    until(|| pair.health(0, "t0") == "good");
    let o = apply(&pair, "health_check: { target: 10.9.0.1 },");
    assert_eq!(o.status.code(), Some(78));
    assert!(told(&o).1.contains("outside the tunnel's remote networks"), "{:?}", told(&o));
    assert_eq!(pair.tunnel(0, "t0")["quality"]["target"], "10.2.0.1");
    // Nobody is there.
    let o = apply(&pair, "health_check: { target: 10.2.0.77, failures: 2 },");
    assert_eq!(o.status.code(), Some(0), "{:?}", told(&o));
    until(|| pair.health(0, "t0") == "degraded");
    assert_eq!(pair.tunnel(0, "t0")["quality"]["cause"], "no_answer");
    let o = apply(&pair, "");
    assert_eq!(o.status.code(), Some(0), "{:?}", told(&o));
    assert_eq!(pair.tunnel(0, "t0")["quality"], Value::Null);
    assert_eq!(spis(&pair), before, "the tunnel has not noticed");
}

/// A small HTTP server: gives back the requests' signatures and bodies, and answers the first one with an error.
fn hook(host: &Host) -> (u16, mpsc::Receiver<(String, String)>) {
    let listener = host.thread(|| TcpListener::bind("127.0.0.1:0").unwrap()).join().unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut signature, mut len) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let Some((name, value)) = line.split_once(':') else {
                    if line.trim().is_empty() { break } else { continue }
                };
                match name.to_ascii_lowercase().as_str() {
                    "x-cygnet-signature" => signature = value.trim().to_owned(),
                    "content-length" => len = value.trim().parse().unwrap(),
                    _ => {}
                }
            }
            let mut body = vec![0; len];
            reader.read_exact(&mut body).unwrap();
            let status = if n == 0 { "503 Service Unavailable" } else { "204 No Content" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            if tx.send((signature, String::from_utf8(body).unwrap())).is_err() {
                return;
            }
        }
    });
    (port, rx)
}

#[test]
fn events_reach_the_webhook_signed_and_the_command() {
    let Some(mut pair) = Pair::new("events_reach_the_webhook_signed_and_the_command") else { return };
    let (port, posted) = hook(&pair.hosts[0]);
    let script = pair.hosts[0].path("alert");
    let heard = pair.hosts[0].path("heard");
    fs::write(&script, "#!/bin/sh\n/usr/bin/cat >>\"$1\"\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = format!(
        "metrics: {{ listen: \"127.0.0.1:9180\" }}, alerts: {{ webhook: {{ url: \"http://127.0.0.1:{port}/hook\", secret_file: \
         hook.secret }}, command: [{}, {}], events: [started, config_applied] }}",
        script.display(),
        heard.display()
    );
    let text = pair.text(0, &[""], &daemon);
    pair.start(0, &text);
    let wait = Duration::from_secs(20);
    let first = posted.recv_timeout(wait).unwrap();
    let again = posted.recv_timeout(wait).unwrap();
    assert_eq!(first, again, "what was refused for the moment is sent again");
    let o = pair.hosts[0].ask("x", &["apply"]);
    assert_eq!(o.status.code(), Some(0), "{:?}", told(&o));
    let next = posted.recv_timeout(wait).unwrap();
    for ((signature, body), event) in [(first, "started"), (next, "config_applied")] {
        let secret = SecretBytes::copy_of(SECRET.as_bytes());
        assert_eq!(signature, cygnet::alerts::signature(&secret, body.as_bytes()));
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["event"], event);
        assert!(body["message"].is_string() && body["unix"].is_u64());
    }
    until(|| fs::read_to_string(&heard).is_ok_and(|text| text.lines().count() == 2));
    let text = fs::read_to_string(&heard).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|e| e["event"] == "started"));
    assert!(events.iter().any(|e| e["event"] == "config_applied"));
    let get = "exec 3<>/dev/tcp/127.0.0.1/9180; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
    until(|| {
        let o = pair.hosts[0].inside("bash").args(["-c", get]).output().unwrap();
        let metrics = String::from_utf8(o.stdout).unwrap();
        ["webhook", "command"].iter().all(|channel| {
            metrics.contains(&format!("cygnet_alerts_total{{channel=\"{channel}\",result=\"delivered\"}} 2"))
        })
    });
}

/// A webhook that takes connections and never answers, and a command that hangs.
#[test]
fn alerts_that_nobody_takes_are_dropped_and_the_tunnel_does_not_notice() {
    let Some(mut pair) = Pair::new("alerts_that_nobody_takes_are_dropped_and_the_tunnel_does_not_notice")
    else {
        return;
    };
    let silent = pair.hosts[0].thread(|| TcpListener::bind("127.0.0.1:0").unwrap()).join().unwrap();
    let daemon = format!(
        "metrics: {{ listen: \"127.0.0.1:9180\" }}, alerts: {{ webhook: {{ url: \"http://{}/hook\" }}, \
         command: [/bin/sleep, \"25\"], events: [limit_changed] }}",
        silent.local_addr().unwrap()
    );
    for (side, daemon) in [(1, "metrics: { listen: off }"), (0, daemon.as_str())] {
        let text = pair.text(side, &[""], daemon);
        pair.start(side, &text);
    }
    until(|| pair.tunnel(0, "t0")["state"] == "up");
    let stream = Stream::open(&pair, 0);
    let limit = format!(
        "for n in $(seq 400); do {} --control {} limit g0 10.1.0.9 ${{n}}mbit >/dev/null || echo failed; done",
        env!("CARGO_BIN_EXE_cygnet"),
        pair.hosts[0].path("x.sock").display()
    );
    assert_eq!(pair.hosts[0].sh(&limit), "");
    let (sent, lost, gap) = stream.close();
    assert!(lost <= 5, "{lost} of {sent} lost, {gap:?} the longest gap");
    assert_eq!(pair.tunnel(0, "t0")["state"], "up");
    let metrics = pair.hosts[0].metrics("x");
    for channel in ["webhook", "command"] {
        let name = format!("cygnet_alerts_total{{channel=\"{channel}\",result=\"dropped\"}} ");
        let dropped: u32 = metrics.lines().find_map(|l| l.strip_prefix(&name)).unwrap().parse().unwrap();
        // 256 wait, and some were begun.
        assert!((100..=144).contains(&dropped), "{channel}: {dropped} of 400 are dropped");
    }
}
