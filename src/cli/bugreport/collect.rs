//! Collects the parts. Whatever cannot be had is a part that says why.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::BugreportArgs;
use crate::cli::{Failure, Global, ask};
use crate::config::model::{Config, PeerAddress};
use crate::config::{self, Secrets, show};
use crate::control::{Request, Response};
use crate::diagnose::{gather, judge};
use crate::observe::snapshot::Snapshot;

/// Tunnels whose negotiations are packed, the unwell ones first.
const EXPLAINED: usize = 200;
/// How long a program of the host may take, and how much of what it says is read.
const PROGRAM: Duration = Duration::from_secs(5);
const MAX_OUTPUT: u64 = 8 << 20;
/// Digits of a number in base 16 that could be a key; marks and masks are shorter.
const KEY_DIGITS: usize = 16;

/// A file of the report.
pub struct Part {
    pub name: String,
    /// What it is, for the list.
    pub what: String,
    pub text: String,
}

impl Part {
    pub fn new(name: impl Into<String>, text: String) -> Self {
        Self { name: name.into(), what: String::new(), text }
    }

    fn of(name: impl Into<String>, what: &str, text: Result<String, Failure>) -> Self {
        let text = text.unwrap_or_else(|f| format!("not to be had: {}\n", f.message));
        Self { what: what.to_owned(), ..Self::new(name, text) }
    }
}

/// Everything, and the host names in it.
pub fn all(args: &BugreportArgs, g: &Global) -> (Vec<Part>, BTreeSet<String>) {
    let status = match ask(g, &Request::Status { name: None }) {
        Ok(Response::Status { snapshot }) => Ok(snapshot),
        Ok(_) => Err(crate::cli::unexpected()),
        Err(f) => Err(f),
    };
    let snapshot = status.as_ref().ok().map(|s| &**s);
    let mut parts =
        vec![Part::of("version.txt", "cygnet, its daemon, kernel, system", Ok(version(snapshot)))];
    let facts = match ask(g, &Request::Diagnose { tunnel: None }) {
        Ok(Response::Known { facts }) => Ok(*facts),
        Ok(_) => Err("the daemon answers something else".to_owned()),
        Err(f) => Err(f.message),
    };
    let file = facts.as_ref().map_or(args.config.clone(), |facts| facts.file.clone().into());
    let names = configuration(&file, &mut parts);
    parts.push(Part::of(
        "status.json",
        "cygnet status",
        status.as_ref().map_or_else(
            |f| Err(Failure::new(f.code, f.message.clone(), "")),
            |snapshot| Ok(pretty(snapshot)),
        ),
    ));
    for (name, what, request) in [
        ("events.jsonl", "the last events", Request::Recent { tunnels: Vec::new(), since_s: None }),
        ("doctor.json", "cygnet doctor, the daemon's part", Request::Doctor {}),
        ("plan.json", "what an apply would change", Request::Plan { file: None }),
        ("metrics.txt", "the metrics", Request::Metrics {}),
        ("recording.txt", "headers of the last IKE messages (docs/recording.md)", Request::Recording {}),
    ] {
        parts.push(Part::of(name, what, ask(g, &request).map(told)));
    }
    for (n, tunnel) in of_interest(snapshot).iter().enumerate() {
        let request = Request::Explain { tunnel: tunnel.clone() };
        parts.push(Part::of(
            format!("explain/{n:03}.json"),
            &format!("cygnet explain {}", crate::observe::one_line(tunnel)),
            ask(g, &request).map(told),
        ));
    }
    let facts = gather::gather(facts, false, &file, None);
    let causes = judge(&facts);
    let causes = json!({ "version": 1, "healthy": causes.is_empty(), "causes": causes });
    parts.push(Part::of("diagnose.json", "cygnet diagnose", Ok(pretty(&causes))));
    host(&mut parts);
    (parts, names)
}

fn version(snapshot: Option<&Snapshot>) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let os = read("/etc/os-release");
    let os = os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    format!(
        "cygnet {}\ndaemon {}, started {}, data plane {}\nkernel {}system {os}, {}\nuptime {}",
        env!("CARGO_PKG_VERSION"),
        snapshot.map_or("not there", |s| s.daemon_version.as_str()),
        snapshot.map_or("-", |s| s.started.as_str()),
        snapshot.map_or("-", |s| s.data_plane.as_str()),
        read("/proc/sys/kernel/osrelease"),
        std::env::consts::ARCH,
        read("/proc/uptime"),
    )
}

/// The resolved configuration and what is wrong with it. Files with keys are left alone.
fn configuration(file: &Path, parts: &mut Vec<Part>) -> BTreeSet<String> {
    let checked = config::check(file, Secrets::Skip, None);
    let problems: Vec<String> =
        checked.problems.iter().map(|p| format!("{}\n", p.one_line(&checked.file))).collect();
    parts.push(Part::of("problems.txt", "cygnet check --no-secrets", Ok(problems.concat())));
    let text = match &checked.preview {
        Some(config) => serde_yaml::to_string(&show::resolved(config))
            .unwrap_or_else(|e| format!("# it cannot be written: {e}\n")),
        None => "# it has errors and cannot be resolved\n".to_owned(),
    };
    parts.push(Part::of("configuration.yaml", "cygnet check --resolved --no-secrets", Ok(text)));
    checked.preview.as_ref().map(host_names).unwrap_or_default()
}

fn host_names(config: &Config) -> BTreeSet<String> {
    let of_peers = config.customer_gateways.iter().filter_map(|c| match &c.address {
        PeerAddress::Dns(name) => Some(name.clone()),
        PeerAddress::Ip(_) => None,
    });
    let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    of_peers.chain([own.trim().to_owned()]).filter(|name| name.len() > 2).collect()
}

/// Names of tunnels, those that should be up and are not first.
fn of_interest(snapshot: Option<&Snapshot>) -> Vec<String> {
    let mut tunnels: Vec<_> = snapshot.into_iter().flat_map(|s| &s.tunnels).collect();
    tunnels.sort_by_key(|t| t.state.is_up() && t.coverage.is_whole());
    tunnels.iter().take(EXPLAINED).map(|t| t.name.clone()).collect()
}

/// An answer as a file.
fn told(response: Response) -> String {
    match response {
        Response::Events { events } => {
            let line = |event| serde_json::to_string(event).map(|line| line + "\n");
            events.iter().filter_map(|event| line(event).ok()).collect()
        }
        Response::Findings { findings } => pretty(&findings),
        Response::Plan { plan, .. } => pretty(&plan),
        Response::BadConfig { problems } => pretty(&problems),
        Response::Explained { explanation } => pretty(&explanation),
        Response::Text { text } => text,
        _ => "the daemon answered something else\n".to_owned(),
    }
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).map_or_else(|e| format!("{e}\n"), |text| text + "\n")
}

/// What of ours stands in the kernel: by our marks, or by the name of our table.
fn host(parts: &mut Vec<Part>) {
    for (name, what, commands) in [
        (
            "xfrm.txt",
            "SAs without keys, and policies",
            &["ip -s xfrm state list nokeys", "ip -s xfrm policy list"][..],
        ),
        // 201 and 202 are the owners that layout.rs and source.rs give.
        (
            "routing.txt",
            "rules, and routes that are cygnet's",
            &[
                "ip -4 rule list",
                "ip -6 rule list",
                "ip -4 route list table all proto 201",
                "ip -6 route list table all proto 201",
                "ip -4 route list table all proto 202",
                "ip -6 route list table all proto 202",
            ],
        ),
        (
            "nftables.txt",
            "the wall, and levels of the kernel's plane",
            &["nft list table inet cygnet", "nft list table inet cygnet-levels"],
        ),
        ("traffic-control.txt", "queueing disciplines", &["tc -s qdisc show"]),
    ] {
        let text: String = commands.iter().map(|line| format!("# {line}\n{}\n", output_of(line))).collect();
        parts.push(Part::of(name, what, Ok(without_keys(&text))));
    }
    let stat = fs::read_to_string("/proc/net/xfrm_stat").unwrap_or_else(|e| format!("{e}\n"));
    parts.push(Part::of("xfrm-stat.txt", "the kernel's counters of IPsec", Ok(stat)));
}

/// What a program says, or why it says nothing. It is not waited for longer than [`PROGRAM`].
fn output_of(line: &str) -> String {
    let mut words = line.split(' ');
    let spawned = Command::new(words.next().unwrap_or_default())
        .args(words)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) => return format!("cannot be run: {e}\n"),
    };
    let readers = [
        child.stdout.take().map(|from| reader(Box::new(from))),
        child.stderr.take().map(|from| reader(Box::new(from))),
    ];
    let began = Instant::now();
    while began.elapsed() < PROGRAM && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // One that has ended is gone already.
    let _ = child.kill();
    let _ = child.wait();
    let said = readers.into_iter().flatten().filter_map(|reader| reader.join().ok());
    said.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
}

fn reader(from: Box<dyn Read + Send>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A part of it is better than nothing.
        let _ = from.take(MAX_OUTPUT).read_to_end(&mut bytes);
        bytes
    })
}

/// The same text without long numbers in base 16: a program that does not know `nokeys` must tell no keys either.
fn without_keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("0x") {
        let (before, from) = rest.split_at(at + 2);
        out.push_str(before);
        let digits = from.chars().take_while(char::is_ascii_hexdigit).count();
        let (number, after) = from.split_at(digits);
        out.push_str(if digits > KEY_DIGITS { "(removed)" } else { number });
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As iproute2 shows a state to root when it is not told otherwise.
    #[test]
    fn no_key_that_a_program_tells_gets_through() {
        let shown = "src 192.0.2.1 dst 192.0.2.2\n\tproto esp spi 0xc0ffee00 reqid 1 mode tunnel\n\tmark 0x1/0xffffffff\n\
                     \taead rfc4106(gcm(aes)) 0x0123456789abcdef0123456789abcdef01234567 128\n";
        let told = without_keys(shown);
        assert!(told.contains("rfc4106(gcm(aes)) 0x(removed) 128\n"), "{told}");
        assert!(told.contains("spi 0xc0ffee00 ") && told.contains("0x1/0xffffffff"), "{told}");
        assert!(!told.contains("0123456789"), "{told}");
    }

    #[test]
    fn a_program_that_is_not_there_or_does_not_end_costs_its_part_only() {
        assert!(output_of("cygnet-no-such-program").starts_with("cannot be run"));
        let began = Instant::now();
        assert_eq!(output_of("sleep 3600"), "");
        assert!(began.elapsed() < PROGRAM * 6);
    }
}
