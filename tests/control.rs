//! The control socket from both ends: what verbs print and how they exit is here, who is let in stands in `seats`; a driver
//! that answers by the book stands in for the daemon (`fake`).
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod common;
#[path = "control/fake.rs"]
mod fake;
#[path = "control/seats.rs"]
mod seats;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cygnet::observe::events::{Event, Kind};
use cygnet::observe::snapshot::*;

use fake::Fake;

#[test]
fn status_output_is_the_golden_one() {
    let fake = Fake::new();
    let (code, out, _) = fake.cli(&["status"]);
    let (_, full, _) = fake.cli(&["status", "a-b"]);
    assert_eq!(code, 1);
    let (code, json, _) = fake.cli(&["status", "--json"]);
    assert_eq!(code, 1);
    let told = format!("$ cygnet status\n{out}\n$ cygnet status a-b\n{full}\n$ cygnet status --json\n{json}");
    assert!(!out.contains('\x1b'));
    common::golden("tests/golden/status.txt", &told);
    assert_eq!(fake.cli(&["status", "a-b"]).0, 0);
    assert_eq!(fake.cli(&["status", "nobody"]).0, 64);
}

#[test]
fn explain_output_is_the_golden_one() {
    let fake = Fake::new();
    let mut told = String::new();
    for (code, args) in [
        (0, &["explain", "a-b"][..]),
        // What nobody has proven came after it, and is shown besides.
        (0, &["explain", "a-c"]),
        (0, &["explain", "--all", "a-c", "--json"]),
        (1, &["explain", "new"]),
    ] {
        let (got, out, err) = fake.cli(args);
        assert_eq!((got, &*err), (code, ""), "{args:?}");
        assert!(!out.contains('\x1b'));
        told.push_str(&format!("$ cygnet {}\n{out}\n", args.join(" ")));
    }
    common::golden("tests/golden/explain.txt", &told);
}

#[test]
fn verbs_exit_as_their_answers_say() {
    let fake = Fake::new();
    let (code, out, err) = fake.cli(&["up", "a-b"]);
    assert_eq!((code, &*out, &*err), (0, "tunnel a-b is up\n", ""));
    assert_eq!(fake.cli(&["down", "nobody"]).0, 64);
    assert_eq!(fake.cli(&["rekey", "a-b", "--ike"]).1, "IKE SA rekeyed\n");
    assert_eq!(fake.cli(&["rekey", "a-b"]).1, "children rekeyed\n");
    assert_eq!(fake.cli(&["rekey", "--all"]).1, "None false 600\n");
    let of_gateway = ["rekey", "--all", "--gateway", "vpc-a", "--ike", "--timeout", "5s"];
    assert_eq!(fake.cli(&of_gateway).1, "Some(\"vpc-a\") true 5\n");
    for wrong in [&["rekey"][..], &["rekey", "a-b", "--all"], &["rekey", "a-b", "--gateway", "vpc-a"]] {
        assert_eq!(fake.cli(wrong).0, 64, "{wrong:?}");
    }
    assert_eq!(fake.cli(&["bandwidth", "vpc-a", "1gbit"]).1, "Some(1000000000)\n");
    assert_eq!(fake.cli(&["bandwidth", "vpc-a", "unlimited"]).1, "None\n");
    assert_eq!(fake.cli(&["bandwidth", "tunnel:a-b", "5mbit", "--in"]).1, "Some(5000000) inward\n");
    for rate in ["0", "0mbit", "1000000000000", "1tbit", "1000gbit"] {
        let (code, _, err) = fake.cli(&["bandwidth", "vpc-a", rate]);
        assert!(code == 64 && err.contains("write"), "{rate}: {code} {err}");
    }
    let asked = "[LimitAsk { ip: 10.1.0.5, rate: \"1500kbit\" }] true\n";
    assert_eq!(fake.cli(&["limit", "vpc-a", "10.1.0.5", "1.5mbit", "--save"]).1, asked);
    let lines = fake.dir.path().join("limits");
    std::fs::write(&lines, "# address, limit\n\n10.1.0.5 block  # at night\nfd01::9   unlimited\n").unwrap();
    let asked =
        "[LimitAsk { ip: 10.1.0.5, rate: \"block\" }, LimitAsk { ip: fd01::9, rate: \"unlimited\" }] false\n";
    assert_eq!(fake.cli(&["limit", "vpc-a", "--file", lines.to_str().unwrap()]).1, asked);
    let (_, out, _) = fake.cli(&["limit", "vpc-a"]);
    assert!(
        out.contains("10.1.0.5  2mbit") && out.contains("saved") && out.contains("configuration"),
        "{out}"
    );
    let (code, _, err) = fake.cli(&["reset", "a-b"]);
    assert_eq!(code, 1);
    assert!(!err.contains('\x1b') && err.contains("no matching"));
    let (code, out, _) = fake.cli(&["logs", "a-b"]);
    assert_eq!((code, out.as_str()), (0, "1970-01-01T00:00:00Z  tunnel_up           a-b  up\n"));
    let (code, out, _) = fake.cli(&["quality", "a-b", "--since", "10m"]);
    let row: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((code, row), (0, vec!["2026-01-01T00:00:00Z", "60", "3", "5.0", "21.2", "20.0", "30.5", "-"]));
}

#[test]
fn top_shows_the_busiest_tunnels_and_the_loudest_strangers() {
    let fake = Fake::new();
    let (code, out, err) = fake.cli(&["top", "--span", "10ms"]);
    assert_eq!((code, &*err), (0, ""));
    let rows: Vec<Vec<&str>> = out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[1][..4], ["a-b", "vpc-a", "8", "kbit/s"], "{out}");
    assert_eq!(rows[2][..4], ["a-c", "vpc-a", "0", "bit/s"], "{out}");
    assert!(out.contains("\nADDRESS") && out.contains("2mbit") && out.contains("block"), "{out}");
    let (code, out, err) = fake.cli(&["top", "vpc-a", "--since", "1h"]);
    assert!(code == 0 && out.contains("10.1.0.5") && out.contains("2026-01-01T03:17:00Z"), "{out}{err}");
    let (_, json, _) = fake.cli(&["top", "vpc-a", "--since", "1h", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["peaks"][0]["bytes_in"], 3_600_000_000_u64);
    let (_, json, _) = fake.cli(&["top", "vpc-a", "--span", "10ms", "--count", "1", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["tunnels"][0]["tx_bps"].as_u64(), json["tunnels"][1].as_object()), (Some(8000), None));
    assert_eq!(fake.cli(&["top", "nobody"]).0, 64);
    assert_eq!(fake.cli(&["top", "--span", "0s"]).0, 64);

    let (code, out, _) = fake.cli(&["top", "--peers"]);
    assert!(code == 0 && !out.contains('\u{1b}'), "{out}");
    assert!(out.contains("203.0.113.9"), "{out}");
    assert!(out.contains("cookie_demanded 10, unknown_peer 2"), "{out}");
    assert!(out.lines().last().unwrap().contains("≤ 5"), "{out}");
    assert!(out.contains("idc-b"), "{out}");
}

#[test]
fn a_wait_ends_with_75_when_time_is_up() {
    let fake = Fake::new();
    let started = Instant::now();
    let (code, _, err) = fake.cli(&["up", "slow", "--timeout", "1s"]);
    assert_eq!(code, 75, "{err}");
    assert!(err.contains("not done after 1 s"), "{err}");
    assert!((1..4).contains(&started.elapsed().as_secs()));
}

#[test]
fn events_are_one_json_object_a_line() {
    let fake = Fake::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_cygnet"))
        .arg("--control")
        .arg(fake.path())
        .args(["events", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    while fake.events.receiver_count() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    for n in 0..3 {
        fake.events.send(Event::new(n, Kind::TunnelUp, "up\nand away").tunnel("a-b").into()).unwrap();
    }
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for n in 0..3 {
        let event: Event = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!((event.unix, event.event), (n, Kind::TunnelUp));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn events_that_were_kept_are_filtered_and_none_comes_twice() {
    let fake = Fake::new();
    let seqs = |args: &[&str]| {
        let (code, out, err) = fake.cli(&[&["events", "--json", "--no-follow"], args].concat());
        assert_eq!(code, 0, "{err}");
        let seq = |l: &str| serde_json::from_str::<Event>(l).unwrap().seq;
        out.lines().map(seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&[]), [1, 2, 3]);
    assert_eq!(seqs(&["--code", "no_proposal_chosen"]), [3]);
    assert_eq!(seqs(&["--code", "tunnel_failed", "--code", "started"]), [1, 3]);
    assert_eq!(seqs(&["--grep", "READY"]), [1]);
    assert_eq!(fake.cli(&["events", "--tunnel", "nobody"]).0, 64);

    let mut child = Command::new(env!("CARGO_BIN_EXE_cygnet"))
        .arg("--control")
        .arg(fake.path())
        .args(["events", "--json", "--since", "1h", "--tunnel", "a-b", "--timeout", "60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut next = || serde_json::from_str::<Event>(&lines.next().unwrap().unwrap()).unwrap().seq;
    // The fake's answer has one of another tunnel's, too: what was asked for is the daemon's to choose.
    assert_eq!([next(), next(), next()], [1, 2, 3]);
    for (seq, tunnel) in [(3, "a-b"), (4, "other"), (5, "a-b")] {
        fake.events.send(Event { seq, ..Event::new(9, Kind::TunnelUp, "up").tunnel(tunnel) }.into()).unwrap();
    }
    assert_eq!(next(), 5);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_stream_ends_when_its_time_is_up() {
    let fake = Fake::new();
    assert_eq!(fake.cli(&["events", "--timeout", "200ms"]).0, 0);
    let (code, out, err) = fake.cli(&["status", "--follow", "--interval", "100ms", "--timeout", "1s"]);
    assert_eq!((code, &*err), (0, ""));
    let looks: Vec<Snapshot> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(looks.len() > 1 && looks.iter().all(|s| s.tunnels.len() == 4));
}

/// A daemon that is there and says nothing: stopped, or busy.
#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for_longer_than_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let o = Command::new(env!("CARGO_BIN_EXE_cygnet"))
        .arg("--control")
        .arg(&path)
        .args(["status", "--timeout", "300ms"])
        .output()
        .unwrap();
    let err = String::from_utf8(o.stderr).unwrap();
    assert!(o.status.code() == Some(75) && err.contains("has not answered within 300ms"), "{err}");
}

#[test]
fn following_ends_with_0_at_ctrl_c_and_outlives_the_daemon() {
    let fake = Fake::new();
    let (path, errors) = (fake.path(), fake.dir.path().join("errors"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_cygnet"))
        .arg("--control")
        .arg(&path)
        .args(["status", "--follow", "--interval", "100ms"])
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    lines.next().unwrap().unwrap();
    let aside = path.with_extension("away");
    std::fs::rename(&path, &aside).unwrap();
    let said = |words: &str| {
        let began = Instant::now();
        while !std::fs::read_to_string(&errors).unwrap().contains(words) {
            assert!(began.elapsed() < Duration::from_secs(30), "{words}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    said("is not reachable");
    std::fs::rename(&aside, &path).unwrap();
    said("answers again");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    // Whole lines to the end.
    for line in lines {
        serde_json::from_str::<Snapshot>(&line.unwrap()).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_terminal_gets_one_picture_drawn_over_the_other() {
    let fake = Fake::new();
    let exe = env!("CARGO_BIN_EXE_cygnet");
    let line = format!(
        "stty rows 12 cols 80; {exe} --control {} status --follow --interval 100ms --timeout 1s",
        fake.path().display()
    );
    let o = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let out = String::from_utf8_lossy(&o.stdout);
    let pages: Vec<&str> = out.split("\x1b[H").skip(1).collect();
    assert!(o.status.success() && pages.len() > 1, "{out:?}");
    for page in pages {
        assert!(page.contains("more lines") && page.matches('\n').count() < 12, "{page:?}");
        assert!(page.trim_end().ends_with("\x1b[?7h\x1b[J"), "{page:?}");
    }
}

#[test]
fn what_is_done_is_said_in_json_too() {
    let fake = Fake::new();
    for args in
        [&["up", "a-b"][..], &["bandwidth", "vpc-a", "1gbit"], &["limit", "vpc-a", "10.1.0.5", "block"]]
    {
        let (code, out, _) = fake.cli(&[args, &["--json"]].concat());
        let v: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &v["version"], &v["done"]), (0, &1.into(), &true.into()), "{args:?}");
    }
}

#[test]
fn completions_know_the_daemons_names() {
    let fake = Fake::new();
    let completed = |line: &[&str]| {
        let path = fake.path();
        let line: Vec<&str> = [&["cygnet", "--control", path.to_str().unwrap()], line].concat();
        let o = Command::new(env!("CARGO_BIN_EXE_cygnet"))
            .env("CYGNET_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (line.len() - 1).to_string())
            .env("_CLAP_IFS", " ")
            .arg("--")
            .args(line)
            .output()
            .unwrap();
        String::from_utf8(o.stdout).unwrap()
    };
    assert_eq!(completed(&["up", "a"]), "a-b");
    assert_eq!(completed(&["limit", ""]).split(' ').next(), Some("vpc-a"));
    let all = completed(&["status", ""]);
    assert!(["a-b", "b-a", "vpc-a"].iter().all(|name| all.contains(name)), "{all}");
    assert_eq!(completed(&["events", "--tunnel", "b"]), "b-a");
}
