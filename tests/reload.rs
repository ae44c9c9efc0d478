//! The running daemon follows its configuration, each in a network namespace of its own. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use host::{Daemon, Host, until};
use serde_json::Value;

/// A host with a running daemon, and its configuration.
struct Running {
    host: Host,
    daemon: Daemon,
}

impl Running {
    fn new(test: &str) -> Option<Self> {
        let host = Host::new(test)?;
        host.sh("ip address add 192.0.2.1/24 dev out; ip address add 10.1.0.1/16 dev far; ip route add default via 192.0.2.2");
        host.sh("sysctl -qw net.ipv4.ip_forward=1");
        let daemon = host.started("a", 9180, "192.0.2.1");
        Some(Self { host, daemon })
    }

    fn text(&self) -> String {
        fs::read_to_string(self.host.path("a.yaml")).unwrap()
    }

    /// Edits the daemon's own file.
    fn edit(&self, change: impl FnOnce(String) -> String) {
        fs::write(self.host.path("a.yaml"), change(self.text())).unwrap();
    }

    fn ask(&self, args: &[&str]) -> (Option<i32>, String) {
        let o = self.host.ask("a", args);
        let text = String::from_utf8_lossy(&o.stdout).into_owned() + &String::from_utf8_lossy(&o.stderr);
        (o.status.code(), text)
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_slice(&self.host.ask("a", args).stdout).unwrap()
    }

    fn status(&self) -> Value {
        self.json(&["status", "--json"])
    }

    /// Where a packet of the VPC for that address goes.
    fn way(&self, to: &str) -> String {
        self.host.sh(&format!(
            "ip route get {to} from 10.1.0.2 iif far 2>&1; ip route get {to} from 10.1.0.1 2>&1"
        ))
    }

    fn guarded(&self, to: &str) -> bool {
        !self.way(to).contains("dev out")
    }
}

/// (kind and name, action, impact) of what is not kept.
fn steps(plan: &Value) -> Vec<(String, String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let steps = plan["steps"].as_array().unwrap().iter().filter(|s| s["action"] != "keep");
    steps
        .map(|s| {
            (format!("{} {}", text(&s["object"]), text(&s["name"])), text(&s["action"]), text(&s["impact"]))
        })
        .collect()
}

fn step(what: &str, action: &str, impact: &str) -> (String, String, String) {
    (what.to_owned(), action.to_owned(), impact.to_owned())
}

#[test]
fn a_plan_is_shown_and_nothing_happens_until_it_is_applied() {
    let Some(r) = Running::new("a_plan_is_shown_and_nothing_happens_until_it_is_applied") else { return };
    assert_eq!(r.ask(&["plan", "--detailed-exitcode"]), (Some(0), "nothing to change\n".to_owned()));
    r.edit(|t| {
        t.replace("remote: [10.3.0.0/16]", "remote: [10.4.0.0/16]")
            .replace("name: a-b,", "name: a-b, ike: { dpd: 5s },")
    });
    let (code, text) = r.ask(&["plan", "--detailed-exitcode"]);
    assert_eq!(code, Some(2));
    for line in
        ["~ tunnel a-b: in place", "    ike.dpd: 30s -> 5s", "~ tunnel lazy: rekey", "3 objects untouched"]
    {
        assert!(text.contains(line), "{text}");
    }
    let plan = r.json(&["plan", "--json"]);
    assert_eq!((&plan["changes"], &plan["applied"]), (&Value::Bool(true), &Value::Bool(false)));
    let expected = [step("tunnel a-b", "change", "in-place"), step("tunnel lazy", "change", "rekey")];
    assert_eq!(steps(&plan), expected);
    assert!(r.guarded("10.3.0.2") && !r.guarded("10.4.0.2"), "it was only a plan");

    let applied = r.json(&["apply", "--json"]);
    assert_eq!((steps(&applied), &applied["applied"]), (steps(&plan), &Value::Bool(true)));
    assert!(!r.guarded("10.3.0.2") && r.guarded("10.4.0.2") && r.guarded("10.2.0.2"));
    assert_eq!(r.ask(&["apply"]), (Some(0), "nothing to change\n".to_owned()));
}

#[test]
fn a_file_with_errors_changes_nothing_and_is_told() {
    let Some(r) = Running::new("a_file_with_errors_changes_nothing_and_is_told") else { return };
    let good = r.text();
    r.edit(|t| {
        t.replace("remote: [10.3.0.0/16]", "remote: [10.4.0.0/16]")
            .replace("start: on-demand", "start: sometimes")
    });
    for verb in ["plan", "apply"] {
        let (code, text) = r.ask(&[verb]);
        assert_eq!(code, Some(78), "{text}");
        assert!(
            text.contains("a.yaml:7:") && text.contains("start") && text.contains("nothing was changed"),
            "{text}"
        );
    }
    assert!(r.guarded("10.3.0.2") && !r.guarded("10.4.0.2"));
    let scrape = || {
        let get = "exec 3<>/dev/tcp/127.0.0.1/9180; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        String::from_utf8(r.host.inside("bash").args(["-c", get]).output().unwrap().stdout).unwrap()
    };
    assert!(scrape().contains("cygnet_config_last_apply_success 0"));
    // By signal as well; and once it is right, it is taken.
    let hup = || Command::new("kill").args(["-HUP", &r.daemon.0.id().to_string()]).status().unwrap();
    hup();
    r.edit(|_| good.replace("remote: [10.3.0.0/16]", "remote: [10.4.0.0/16]"));
    hup();
    until(|| r.guarded("10.4.0.2"));
    until(|| scrape().contains("cygnet_config_last_apply_success 1"));
}

/// What cannot be made is not half made.
#[test]
fn what_cannot_be_prepared_changes_nothing() {
    let Some(r) = Running::new("what_cannot_be_prepared_changes_nothing") else { return };
    r.host.sh("ip address add 192.0.2.7/24 dev out");
    let good = r.text();
    let squatter = |sort: &str, listen: &str| {
        let script = format!(
            "import socket, time; s = socket.socket(socket.AF_INET, socket.{sort}); s.bind({listen}); \
             s.listen(1) if s.type == socket.SOCK_STREAM else None; print('up', flush=True); time.sleep(60)"
        );
        let mut child =
            r.host.inside("python3").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
        child
    };
    let before = r.host.traces();
    for (sort, listen, change, words) in [
        (
            "SOCK_DGRAM",
            "('192.0.2.7', 4500)",
            ("address: 192.0.2.1", "address: [192.0.2.1, 192.0.2.7]"),
            "192.0.2.7",
        ),
        ("SOCK_STREAM", "('127.0.0.1', 9199)", ("127.0.0.1:9180", "127.0.0.1:9199"), "TCP 127.0.0.1:9199"),
    ] {
        let mut taken = squatter(sort, listen);
        r.edit(|_| {
            good.replace("remote: [10.3.0.0/16]", "remote: [10.4.0.0/16]").replace(change.0, change.1)
        });
        let (code, text) = r.ask(&["apply"]);
        assert!(code == Some(1) && text.contains("nothing was changed") && text.contains(words), "{text}");
        assert_eq!(r.host.traces(), before);
        taken.kill().unwrap();
        taken.wait().unwrap();
        assert_eq!(r.ask(&["apply"]).0, Some(0));
        assert!(r.guarded("10.4.0.2") && !r.guarded("10.3.0.2"));
        r.edit(|_| good.clone());
        assert_eq!(r.ask(&["apply"]).0, Some(0));
        until(|| r.host.traces() == before);
    }
}

/// A tunnel is its name, not its line.
#[test]
fn tunnels_come_go_and_change_places() {
    let Some(r) = Running::new("tunnels_come_go_and_change_places") else { return };
    let names = |s: &Value| -> Vec<String> {
        s["tunnels"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&r.status()), ["a-b", "lazy"]);
    assert_eq!(r.ask(&["down", "a-b"]).0, Some(0));
    let third = "  - { name: first, gateway: vpc-a, customer_gateway: idc-b, auth: { psk_file: a-b.psk }, start: passive,
      spd: [ { local: 10.1.0.0/16, remote: [10.9.0.0/16] } ] }\n";
    r.edit(|t| t.replace("tunnels:\n", &format!("tunnels:\n{third}")));
    let applied = r.json(&["apply", "--json"]);
    assert_eq!(steps(&applied), [step("tunnel first", "add", "in-place")]);
    let status = r.status();
    assert_eq!(names(&status), ["first", "a-b", "lazy"]);
    assert_eq!(status["tunnels"][1]["state"], "down", "what was taken down by command stays down");
    assert!(r.guarded("10.9.0.2"));
    // One goes: the others are what they were, and its networks are routed like any other.
    r.edit(|t| {
        let at = t.find("  - { name: a-b,").unwrap();
        let end = t[at..].find("  - { name: lazy").unwrap() + at;
        format!("{}{}", &t[..at], &t[end..])
    });
    assert_eq!(steps(&r.json(&["apply", "--json"])), [step("tunnel a-b", "remove", "in-place")]);
    assert_eq!(names(&r.status()), ["first", "lazy"]);
    assert!(!r.guarded("10.2.0.2") && r.guarded("10.3.0.2") && r.guarded("10.9.0.2"));
    let (code, text) = r.ask(&["logs", "a-b"]);
    assert!(code == Some(64) && text.contains("there is no tunnel"), "{text}");
    // The numbers outlive a restart.
    let kept = fs::read_to_string(r.host.path("a").join("registry.json")).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(
        (&kept["tunnels"]["first"]["number"], &kept["tunnels"]["lazy"]["number"]),
        (&2.into(), &1.into())
    );
    assert_eq!(kept["next"], 3);
}

/// The last word counts: a level set by command stays until the file says something else.
#[test]
fn levels_set_by_command_give_way_when_the_file_changes() {
    let Some(r) = Running::new("levels_set_by_command_give_way_when_the_file_changes") else { return };
    let level = || {
        let g = r.status()["gateways"][0].clone();
        (g["bandwidth_bps"].as_u64().unwrap(), g["bandwidth_origin"].as_str().unwrap().to_owned())
    };
    let is = |mbit: u64, origin: &str| assert_eq!(level(), (mbit * 1_000_000, origin.to_owned()));
    is(100, "configuration");
    assert_eq!(r.ask(&["bandwidth", "vpc-a", "50mbit"]).0, Some(0));
    is(50, "command");
    assert_eq!(r.ask(&["bandwidth", "vpc-a", "40mbit", "--save"]).0, Some(0));
    is(40, "saved");
    r.edit(|t| t.replace("name: a-b,", "name: a-b, ike: { dpd: 5s },"));
    let (_, text) = r.ask(&["apply"]);
    assert!(text.contains("stays at 40mbit"), "{text}");
    is(40, "saved");
    r.edit(|t| t.replace("100mbit", "20mbit"));
    let (_, text) = r.ask(&["plan"]);
    assert!(
        text.contains("bandwidth: 100mbit -> 20mbit") && text.contains("40mbit as set by command, gives way"),
        "{text}"
    );
    assert_eq!(r.ask(&["apply"]).0, Some(0));
    is(20, "configuration");
    until(|| r.host.sh("tc class show dev out").contains("rate 20Mbit"));
    assert!(!fs::read_to_string(r.host.path("a").join("bandwidth.json")).unwrap().contains("vpc-a"));
}

#[test]
fn the_exporter_and_outer_addresses_move_while_running() {
    let Some(r) = Running::new("the_exporter_and_outer_addresses_move_while_running") else { return };
    let answers = |at: &str| {
        let get = format!(
            "exec 3<>/dev/tcp/{} && printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3",
            at.replace(':', "/")
        );
        let page = r.host.inside("bash").args(["-c", &get]).stderr(Stdio::null()).output().unwrap().stdout;
        String::from_utf8_lossy(&page).contains("cygnet_build_info")
    };
    let bound = |address: &str| r.host.sh("ss -Hlnu").contains(&format!("{address}:4500"));
    assert!(answers("127.0.0.1:9180") && bound("192.0.2.1"));
    r.host.sh("ip address add 192.0.2.8/24 dev out");
    for (from, to) in [("127.0.0.1:9180", "127.0.0.1:9190"), ("127.0.0.1:9190", "0.0.0.0:9190")] {
        r.edit(|t| t.replace(from, to).replace("address: 192.0.2.1", "address: 192.0.2.8"));
        let (code, text) = r.ask(&["apply"]);
        assert_eq!(code, Some(0), "{text}");
        until(|| answers("127.0.0.1:9190"));
        assert!(!answers("127.0.0.1:9180"));
        until(|| bound("192.0.2.8") && !bound("192.0.2.1"));
    }
    r.edit(|t| t.replace("0.0.0.0:9190", "off"));
    assert_eq!(r.ask(&["apply"]).0, Some(0));
    until(|| !answers("127.0.0.1:9190"));
    // What only a restart can change says so, and the daemon can still be reached.
    let dir = r.host.path("").display().to_string();
    r.edit(|t| t.replace(&format!("state_dir: {dir}a,"), &format!("state_dir: {dir}elsewhere,")));
    let plan = r.json(&["plan", "--json"]);
    assert_eq!(steps(&plan), [step("daemon ", "change", "restart")], "{plan}");
    assert_eq!(r.ask(&["apply"]).0, Some(0));
    assert_eq!(steps(&r.json(&["plan", "--json"])), steps(&plan), "it still waits for the restart");
}

#[test]
fn the_console_follows_its_configuration() {
    let Some(r) = Running::new("the_console_follows_its_configuration") else { return };
    let token = r.host.path("console.token");
    let write = |key: &str| {
        fs::write(&token, key).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let says = |at: &str, key: &str| {
        let get = format!(
            "exec 3<>/dev/tcp/{} && printf 'GET /api/session HTTP/1.1\\r\\nHost: {at}\\r\\nConnection: close\\r\\n\
             Authorization: Bearer {key}\\r\\n\\r\\n' >&3 && cat <&3",
            at.replace(':', "/")
        );
        let page = r.host.inside("bash").args(["-c", &get]).stderr(Stdio::null()).output().unwrap().stdout;
        let text = String::from_utf8_lossy(&page).into_owned();
        text.contains("may_change").then(|| text.contains("\"may_change\":true"))
    };
    const OLD: &str = "0x00112233445566778899aabbccddeeff";
    const NEW: &str = "0xffeeddccbbaa99887766554433221100";
    let (first, second) = ("127.0.0.1:9191", "127.0.0.1:9192");
    assert_eq!(says(first, OLD), None);
    write(OLD);
    r.edit(|t| {
        t.replace(
            "state_dir:",
            &format!("console: {{ listen: \"{first}\", token_file: console.token }}, state_dir:"),
        )
    });
    let (code, text) = r.ask(&["apply"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!((says(first, OLD), says(first, NEW)), (Some(true), Some(false)));
    // The same file with another token.
    write(NEW);
    assert_eq!(r.ask(&["apply"]).0, Some(0));
    assert_eq!((says(first, OLD), says(first, NEW)), (Some(false), Some(true)));
    // An address that is taken changes nothing.
    let taken = "127.0.0.1:9193";
    let holder = r.host.thread(move || TcpListener::bind(taken).unwrap()).join().unwrap();
    r.edit(|t| t.replace(first, taken));
    let (code, text) = r.ask(&["apply"]);
    assert!(code != Some(0) && text.contains(&format!("cannot serve the console on TCP {taken}")), "{text}");
    assert_eq!(says(first, NEW), Some(true));
    drop(holder);
    r.edit(|t| t.replace(taken, second));
    let (code, text) = r.ask(&["apply"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!((says(first, NEW), says(second, NEW)), (None, Some(true)));
    r.edit(|t| t.replace(second, "off"));
    assert_eq!(r.ask(&["apply"]).0, Some(0));
    assert_eq!(says(second, NEW), None);
}

#[test]
fn another_file_may_be_tried_by_root() {
    let Some(r) = Running::new("another_file_may_be_tried_by_root") else { return };
    let other = r.host.path("other.yaml");
    fs::write(&other, r.text().replace("remote: [10.3.0.0/16]", "remote: [10.4.0.0/16]")).unwrap();
    let file = other.display().to_string();
    assert_eq!(r.ask(&["apply", "--config", &file]).0, Some(0));
    assert!(r.guarded("10.4.0.2") && !r.guarded("10.3.0.2"));
    // Its own file is the one that a reload reads.
    assert_eq!(r.ask(&["apply"]).0, Some(0));
    assert!(r.guarded("10.3.0.2") && !r.guarded("10.4.0.2"));
    let (code, text) = r.ask(&["plan", "--config", "/nonexistent.yaml"]);
    assert!(code == Some(78) && text.contains("/nonexistent.yaml"), "{text}");
}
