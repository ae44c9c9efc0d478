//! What people who help get to see: names that are corrected, events with fields, the journal, the report.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use host::pair::Pair;
use host::{Daemon, Host, told, until};

/// The key of the tests' tunnels; no part of it may ever be seen.
const KEY: &str = "pL7v0y2QxNf8sKd3RwZtB5";

/// The files of an archive, by their names without its directory.
fn unpacked(archive: &[u8]) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for file in tar::Archive::new(flate2::read::GzDecoder::new(archive)).entries().unwrap() {
        let mut file = file.unwrap();
        let name = file.path().unwrap().to_str().unwrap().split_once('/').unwrap().1.to_owned();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        files.insert(name, text);
    }
    files
}

#[test]
fn names_that_there_are_not_are_corrected() {
    let Some(host) = Host::new("names_that_there_are_not_are_corrected") else { return };
    let _daemon = host.started("a", 19480, "127.0.0.1");
    for (args, near) in [
        (&["up", "lasy"][..], "lazy"),
        (&["status", "vpc-b"], "vpc-a"),
        (&["explain", "ab"], "a-b"),
        (&["limit", "vpca", "10.1.0.5", "1mbit"], "vpc-a"),
        (&["bandwidth", "lazi", "1mbit"], "lazy"),
        (&["events", "--tunnel", "a-bb"], "a-b"),
    ] {
        let (code, err) = told(&host.ask("a", args));
        assert!(code == Some(64) && err.contains(&format!("did you mean \"{near}\"?")), "{args:?}: {err}");
    }
    let (_, err) = told(&host.ask("a", &["up", "something-else"]));
    assert!(!err.contains("did you mean"), "{err}");
}

/// A pair whose tunnel is up, and whose report is made in many ways.
#[test]
fn a_report_holds_what_helps_and_no_key() {
    let Some(pair) = Pair::new("a_report_holds_what_helps_and_no_key") else { return };
    let _there = pair.start(1, &pair.text(1));
    let _here = pair.start(0, &pair.text(0));
    until(|| pair.ask(0, &["status"]).0 == Some(0));
    pair.ask(0, &["rekey", "a-b"]);

    let report = |args: &[&str]| {
        let mut command = pair.gateways[0].inside(env!("CARGO_BIN_EXE_cygnet"));
        command.arg("--control").arg(pair.path("1.sock")).args(["bugreport", "--output", "-"]).args(args);
        let o = command.output().unwrap();
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
        unpacked(&o.stdout)
    };
    let files = report(&[]);
    for (name, words) in [
        ("contents.txt", "recording.txt"),
        ("version.txt", "data plane userspace"),
        ("configuration.yaml", "psk_file"),
        ("status.json", "\"state\": \"up\""),
        ("events.jsonl", "\"event\":\"tunnel_up\""),
        ("explain/000.json", "\"agreed\""),
        ("doctor.json", "verdict"),
        ("diagnose.json", "\"version\": 1"),
        ("plan.json", "steps"),
        ("metrics.txt", "cygnet_tunnel_up{"),
        ("routing.txt", "# ip -4 rule list"),
        ("recording.txt", "# cygnet-recording 1"),
    ] {
        let text = files.get(name).unwrap_or_else(|| panic!("{name} is not in {:?}", files.keys()));
        assert!(text.contains(words), "{name}: {text}");
    }
    let recording = cygnet_ike::recording::parse(&files["recording.txt"]).unwrap();
    let exchanges: Vec<u8> = recording.iter().map(|s| s.header.exchange.0).collect();
    assert!([34, 35, 36].iter().all(|kind| exchanges.contains(kind)), "{exchanges:?}");

    let anonymous = report(&["--anonymous"]);
    for (name, text) in files.iter().chain(&anonymous) {
        assert!(!text.contains(KEY), "{name} holds a key");
        // Of the secret in base 16 and in pieces, too.
        let hex: String = KEY.bytes().map(|b| format!("{b:02x}")).collect();
        assert!(!text.contains(&hex[..16]) && !text.contains(&KEY[..8]), "{name} holds a part of a key");
    }
    for (name, text) in &anonymous {
        for address in ["192.0.2.1", "198.51.100.1", "10.1.0.", "10.2.0."] {
            assert!(!text.contains(address), "{name} holds {address}: {text}");
        }
    }
    assert!(serde_json::from_str::<serde_json::Value>(&anonymous["status.json"]).is_ok());

    // Without a daemon the rest is there; nobody else may read it, and nothing is written over.
    let path = pair.path("report.tar.gz");
    let without = || {
        let mut command = pair.gateways[0].inside(env!("CARGO_BIN_EXE_cygnet"));
        command.args(["--control", "/nonexistent.sock", "bugreport", "--config"]).arg(pair.path("1.yaml"));
        command.arg("--output").arg(&path).output().unwrap()
    };
    assert_eq!(without().status.code(), Some(0));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let files = unpacked(&fs::read(&path).unwrap());
    assert!(files["status.json"].contains("not to be had") && files["configuration.yaml"].contains("a-b"));
    assert_eq!(without().status.code(), Some(74));
}

/// Whoever starts the daemon as systemd does, and puts another journal in the place of the system's.
fn in_journal(host: &Host, config: &Path, journal: &Path) -> Daemon {
    let log = host.path("log");
    let stderr = fs::File::create(&log).unwrap();
    let meta = stderr.metadata().unwrap();
    let script = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && mount --bind {} /run/systemd/journal \
         && exec {} run --config {}",
        journal.display(),
        env!("CARGO_BIN_EXE_cygnet"),
        config.display()
    );
    let mut command = host.inside("unshare");
    command
        .args(["--mount", "sh", "-c", &script])
        .env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
    Daemon(command.stderr(Stdio::from(stderr)).spawn().unwrap())
}

#[test]
fn the_journal_gets_fields() {
    let Some(host) = Host::new("the_journal_gets_fields") else { return };
    let config = host.config("j", 19481, "127.0.0.1");
    let journal = host.path("journal");
    fs::create_dir(&journal).unwrap();
    let socket = UnixDatagram::bind(journal.join("socket")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let _daemon = in_journal(&host, &config, &journal);
    until(|| host.ask("j", &["status"]).status.code() != Some(69));
    host.ask("j", &["bandwidth", "tunnel:lazy", "5mbit"]);

    let mut entries: Vec<String> = Vec::new();
    let mut buffer = vec![0; 65536];
    until(|| {
        while let Ok(len) = socket.recv(&mut buffer) {
            entries.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
        entries.iter().any(|e| e.contains("CYGNET_CODE=bandwidth_changed\n"))
    });
    let ready = entries.iter().find(|e| e.starts_with("MESSAGE=the daemon is ready\n")).unwrap();
    assert!(ready.contains("\nPRIORITY=6\nSYSLOG_IDENTIFIER=cygnet\nCYGNET_CODE=started\n"), "{ready}");
    let about = entries.iter().find(|e| e.contains("CYGNET_CODE=bandwidth_changed\n")).unwrap();
    assert!(about.contains("\nCYGNET_TUNNEL=lazy\n"), "{about}");
    assert!(entries.iter().all(|e| !e.contains(KEY)));
    assert_eq!(fs::read_to_string(host.path("log")).unwrap(), "", "nothing goes both ways");
}

/// Output that was led elsewhere keeps its lines, although the variable is inherited.
#[test]
fn a_log_that_is_not_the_journal_has_lines() {
    let Some(host) = Host::new("a_log_that_is_not_the_journal_has_lines") else { return };
    let config = host.config("l", 19482, "127.0.0.1");
    let log = host.path("log");
    let mut run: Command = host.run(&config);
    let stderr = fs::File::create(&log).unwrap();
    let _daemon = Daemon(run.env("JOURNAL_STREAM", "1:1").stderr(Stdio::from(stderr)).spawn().unwrap());
    until(|| fs::read_to_string(&log).unwrap().contains("the daemon is ready"));
    assert!(fs::read_to_string(&log).unwrap().contains("code=\"started\""));
}
