//! TCP through two userspace data planes with fixed keys, on one wire between two namespaces: throughput, and the CPU
//! time of both planes for each octet. One JSON object a line on standard output.
//!
//! Both planes run as threads of this process and iperf3 does not, so the process's CPU time is the planes' own.
//!
//! Usage: `esp [--seconds N] [--streams N] [--suite KEYWORD] [--no-offload]`
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for people stops at the first surprise"
)]

#[path = "../tests/netns/mod.rs"]
mod netns;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cygnet_model::plane::DataPlane;
use cygnet_model::suite::{Encr, EspSuite, Integ};
use netns::Lab;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};

struct Options {
    seconds: u64,
    streams: u64,
    suites: Vec<EspSuite>,
    offloads: Vec<bool>,
}

fn main() {
    let options = options();
    if !netns::possible("bench esp") {
        std::process::exit(77);
    }
    for suite in &options.suites {
        for offload in &options.offloads {
            println!("{}", measure(*suite, *offload, &options));
        }
    }
}

fn measure(suite: EspSuite, offload: bool, options: &Options) -> Value {
    let lab = Lab::pair();
    let mut planes = lab.tunnel(suite, offload);
    let (a, b) = (lab.ns("gw-a"), lab.ns("gw-b"));
    assert!(a.pings("10.1.0.1", "10.2.0.1", 56), "the tunnel does not carry");
    for plane in &mut planes {
        let mut sas = Vec::new();
        plane.counters(&mut sas).unwrap();
        sas.iter().for_each(|(sa, _)| plane.reserve(*sa, u64::MAX));
    }
    let mut server = Command::new("ip")
        .args(["netns", "exec", b.name(), "iperf3", "--server", "--one-off", "--bind", "10.2.0.1"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let (cpu, begin) = (cpu_time(), Instant::now());
    let client = format!(
        "iperf3 --client 10.2.0.1 --bind 10.1.0.1 --json --time {} --parallel {}",
        options.seconds, options.streams
    );
    let report: Value = serde_json::from_str(&a.run(&client)).unwrap();
    let (cpu, elapsed) = (cpu_time() - cpu, begin.elapsed());
    server.wait().unwrap();
    let end = &report["end"];
    let bytes = end["sum_received"]["bytes"].as_f64().unwrap();
    let drops: serde_json::Map<String, Value> = planes
        .iter()
        .flat_map(|plane| plane.drops().collect::<Vec<_>>())
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.name().to_owned(), json!(count)))
        .collect();
    json!({
        "bench": "esp",
        "peer": "cygnet userspace",
        "suite": suite.to_string(),
        "offload": offload,
        "streams": options.streams,
        "seconds": (elapsed.as_secs_f64() * 10.0).round() / 10.0,
        "tcp_gbit_s": round(end["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e9),
        "retransmits": end["sum_sent"]["retransmits"],
        "cpu_ns_per_byte": round(cpu.as_nanos() as f64 / bytes),
        "drops": drops,
    })
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// CPU time of all threads of this process, in user mode and in the kernel.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

fn options() -> Options {
    let aead = |encr| EspSuite::plain(encr, None, false);
    let mut options = Options {
        seconds: 5,
        streams: 1,
        suites: vec![aead(Encr::AesGcm16_128), aead(Encr::ChaCha20Poly1305)],
        offloads: vec![true, false],
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| usage());
        match word.as_str() {
            "--seconds" => options.seconds = value().parse().unwrap_or_else(|_| usage()),
            "--streams" => options.streams = value().parse().unwrap_or_else(|_| usage()),
            "--suite" => {
                let keyword = value();
                let encr = Encr::ALL.into_iter().find(|e| e.info().keyword == keyword);
                let encr = encr.unwrap_or_else(|| usage());
                let integ = (!encr.is_aead()).then_some(Integ::HmacSha256_128);
                options.suites = vec![EspSuite { integ, ..aead(encr) }];
            }
            "--no-offload" => options.offloads = vec![false],
            "--offload" => options.offloads = vec![true],
            // Cargo passes this to every benchmark.
            "--bench" => {}
            _ => usage(),
        }
    }
    options
}

fn usage() -> ! {
    eprintln!("usage: esp [--seconds N] [--streams N] [--suite KEYWORD] [--offload|--no-offload]");
    std::process::exit(64)
}
