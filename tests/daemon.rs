//! The daemon against a host that is not as it wishes, each in a network namespace of its own. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use host::{Daemon, Host, told, until};

/// Whatever is taken is named, and neither the host nor the daemon that has it is touched.
#[test]
fn a_start_that_fails_changes_nothing() {
    let Some(host) = Host::new("a_start_that_fails_changes_nothing") else { return };
    host.sh("ip address add 192.0.2.1/24 dev out");
    let before = host.traces();

    let precious = host.path("d.sock");
    fs::write(&precious, "not a socket").unwrap();
    let (_, err) = told(&host.run(&host.config("d", 9182, "192.0.2.1")).output().unwrap());
    assert!(err.contains("no socket") && precious.exists(), "{err}");
    assert_eq!(host.traces(), before);

    let mut first = host.started("a", 9180, "192.0.2.1");
    let with_first = host.traces();
    for (name, port, words) in
        [("b", 9181, "UDP port 500: Address already in use"), ("b", 9180, "TCP 127.0.0.1:9180")]
    {
        let (code, err) = told(&host.run(&host.config(name, port, "192.0.2.1")).output().unwrap());
        assert!(code == Some(69) && err.contains(words) && err.contains("stop who uses it"), "{err}");
        assert_eq!(host.traces(), with_first);
    }
    let (code, err) = told(&host.run(&host.config("a", 9181, "192.0.2.1")).output().unwrap());
    assert!(code == Some(69) && err.contains("another daemon answers"), "{err}");
    assert!(host.path("a.sock").exists());

    assert_eq!(first.end(), Some(0));
    assert!(!host.path("a.sock").exists());
    assert_eq!(told(&host.ask("a", &["release"])).0, Some(0));
    assert_eq!(host.traces(), before);
}

/// Where a packet of the VPC for the IDC goes: into the tunnel's device, nowhere, or out in clear text.
fn way(host: &Host) -> String {
    host.sh("ip route get 10.2.0.2 from 10.1.0.2 iif far 2>&1; ip route get 10.2.0.2 from 10.1.0.1 2>&1")
}

/// Between one daemon and the next, and after a next that does not start, nothing protected leaves in clear text.
#[test]
fn guards_outlive_the_daemon_until_they_are_released() {
    let Some(host) = Host::new("guards_outlive_the_daemon_until_they_are_released") else { return };
    host.sh("ip address add 192.0.2.1/24 dev out; ip address add 10.1.0.1/16 dev far; sysctl -qw net.ipv4.ip_forward=1");
    host.sh("ip route add default via 192.0.2.2");
    let clear = way(&host);
    assert!(clear.contains("dev out"), "{clear}");
    let blocked = || {
        let way = way(&host);
        assert!(!way.contains("dev out"), "{way}");
    };
    // Before the first daemon, as at boot.
    let config = host.config("a", 9180, "192.0.2.1");
    let guard = |verb: &str| {
        let mut c = host.inside(env!("CARGO_BIN_EXE_cygnet"));
        c.arg("--control").arg(host.path("a.sock")).arg(verb);
        told(&if verb == "guard" { c.arg("--config").arg(&config) } else { &mut c }.output().unwrap())
    };
    assert_eq!(guard("guard"), (Some(0), String::new()));
    blocked();

    let mut daemon = host.started("a", 9180, "192.0.2.1");
    let (code, err) = guard("release");
    assert!(code == Some(1) && err.contains("a daemon answers"), "{err}");
    // Nor does it help to name another control socket, or to start a daemon that has one.
    let other = host.path("b.sock");
    let o = host.ask("b", &["release"]);
    let (code, err) = told(&o);
    assert!(code == Some(1) && err.contains("a daemon with another control socket"), "{err}");
    host.sh("ip address add 192.0.2.9/24 dev out");
    let (code, err) = told(&host.run(&host.config("b", 9181, "192.0.2.9")).output().unwrap());
    assert!(code == Some(69) && err.contains("the one daemon of this network namespace"), "{err}");
    assert!(!other.exists());
    blocked();
    assert_eq!(daemon.end(), Some(0));
    blocked();

    // A start that fails early, for a broken file, and late, for an address in use.
    fs::write(host.path("broken.yaml"), "gateways: nonsense\n").unwrap();
    assert_eq!(told(&host.run(&host.path("broken.yaml")).output().unwrap()).0, Some(78));
    blocked();
    let mut other = host.started("a", 9180, "192.0.2.1");
    let (code, _) = told(&host.run(&host.config("b", 9181, "192.0.2.1")).output().unwrap());
    assert_eq!(code, Some(69));
    blocked();
    assert_eq!(other.end(), Some(0));
    blocked();

    assert_eq!(guard("release"), (Some(0), String::new()));
    assert_eq!(way(&host), clear);
}

/// Who does not want guards after the daemon says so.
#[test]
fn a_configuration_may_release_the_guards_at_the_end() {
    let Some(host) = Host::new("a_configuration_may_release_the_guards_at_the_end") else { return };
    host.sh("ip address add 192.0.2.1/24 dev out");
    let before = host.traces();
    let config = host.config("a", 9180, "192.0.2.1");
    let text = fs::read_to_string(&config).unwrap().replacen("daemon: { ", "daemon: { guards: release, ", 1);
    fs::write(&config, text).unwrap();
    let mut daemon = Daemon(host.run(&config).stderr(Stdio::null()).spawn().unwrap());
    until(|| host.ask("a", &["status"]).status.code() != Some(69));
    assert_ne!(host.traces(), before);
    assert_eq!(daemon.end(), Some(0));
    assert_eq!(host.traces(), before);
}

/// A killed daemon leaves its caps; the next one has other levels, or none.
#[test]
fn caps_of_an_earlier_life_end_with_the_next_start() {
    let Some(host) = Host::new("caps_of_an_earlier_life_end_with_the_next_start") else { return };
    host.sh("ip address add 192.0.2.1/24 dev out");
    let mut first = host.started("a", 9180, "192.0.2.1");
    until(|| host.sh("tc qdisc show dev out").contains("htb"));
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    assert!(host.sh("tc qdisc show dev out").contains("htb"));
    let config = host.config("a", 9180, "192.0.2.1");
    let text = fs::read_to_string(&config).unwrap().replacen(", bandwidth: 100mbit", "", 1);
    fs::write(&config, text).unwrap();
    let _second = Daemon(host.run(&config).stderr(Stdio::null()).spawn().unwrap());
    until(|| host.ask("a", &["status"]).status.code() != Some(69));
    assert!(!host.sh("tc qdisc show dev out").contains("htb"));
}

/// A cap that somebody removes is in force again at once; a new interface gets it as well.
#[test]
fn caps_that_others_remove_are_put_back() {
    let Some(host) = Host::new("caps_that_others_remove_are_put_back") else { return };
    host.sh("ip address add 192.0.2.1/24 dev out");
    let _daemon = host.started("a", 9180, "192.0.2.1");
    let capped = || host.sh("tc class show dev out").contains("rate 100Mbit");
    until(capped);
    let began = Instant::now();
    host.sh("tc qdisc del dev out root");
    until(capped);
    assert!(began.elapsed() < Duration::from_secs(4), "told by the kernel, not found by the audit");
    host.sh(
        "ip link del out; ip link add out type veth peer name far; ip link set out up; ip link set far up",
    );
    host.sh("ip address add 192.0.2.1/24 dev out");
    until(capped);
    let events = String::from_utf8(host.ask("a", &["doctor"]).stdout).unwrap();
    assert!(!events.contains("no interface has the address"), "{events}");
}

/// Whatever of ours another program removes is there again within seconds, and the event says so.
#[test]
fn what_others_remove_is_back_within_seconds_and_told() {
    let Some(host) = Host::new("what_others_remove_is_back_within_seconds_and_told") else { return };
    host.sh("ip address add 192.0.2.1/24 dev out; ip address add 10.1.0.1/16 dev out");
    let _daemon = host.started("a", 9180, "192.0.2.1");
    let heard = host.path("events");
    let socket = host.path("a.sock");
    let mut listener = host.inside(env!("CARGO_BIN_EXE_cygnet"));
    listener.arg("--control").arg(socket).args(["events", "--json"]);
    let mut listener = listener.stdout(fs::File::create(&heard).unwrap()).spawn().unwrap();
    let events = |kind: &str, word: &str| {
        let all = fs::read_to_string(&heard).unwrap();
        all.lines().filter(|line| line.contains(kind) && line.contains(word)).count()
    };
    let look = || {
        host.sh("ip -d link show cygnet0; ip rule; ip route show table 51657; tc class show dev out; tc filter show dev out parent c960:")
    };
    let is_whole = || {
        let now = look();
        let parts = [
            "cygnet0",
            "from 10.1.0.0/16 to 10.2.0.0/16",
            "default dev cygnet0",
            "blackhole",
            "rate 100Mbit",
            "match c0000201",
        ];
        parts.iter().all(|part| now.contains(part))
    };
    if host.sh("ip link show cygnet0").is_empty() {
        println!("what_others_remove_is_back_within_seconds_and_told is skipped: the kernel's plane is used");
    } else {
        until(is_whole);
        for (damage, kind, word) in [
            ("ip link del cygnet0", "guard_repaired", "TUN device"),
            ("ip route del default dev cygnet0 table 51657", "guard_repaired", "routing rules"),
            ("ip rule del from 10.1.0.0/16 to 10.2.0.0/16", "guard_repaired", "routing rules"),
            ("ip rule flush proto 201", "guard_repaired", "routing rules"),
            ("tc filter del dev out parent c960:", "bandwidth_changed", "in force again"),
            ("tc qdisc del dev out root", "bandwidth_changed", "in force again"),
        ] {
            let before = events(kind, word);
            let began = Instant::now();
            host.sh(damage);
            until(|| is_whole() && events(kind, word) > before);
            println!("{damage}: whole and told after {:?}", began.elapsed());
            assert!(began.elapsed() < Duration::from_secs(6), "{damage}");
        }
    }
    let _ = listener.kill();
    let _ = listener.wait();
}

/// At boot, or on a standby, the daemon may be there before its address.
#[test]
fn an_address_may_come_later() {
    let Some(host) = Host::new("an_address_may_come_later") else { return };
    let _daemon = host.started("a", 9180, "192.0.2.1");
    let doctor = String::from_utf8(host.ask("a", &["doctor"]).stdout).unwrap();
    assert!(doctor.contains("no interface has the address 192.0.2.1"), "{doctor}");
    host.sh("ip address add 192.0.2.1/24 dev out");
    until(|| host.sh("tc qdisc show dev out").contains("htb"));
    let doctor = String::from_utf8(host.ask("a", &["doctor"]).stdout).unwrap();
    assert!(!doctor.contains("no interface has the address"), "{doctor}");
}

/// A gateway that lives on an interface follows it: missing at the start, renumbered, gone, back.
#[test]
fn the_address_of_an_interface_is_followed() {
    let Some(host) = Host::new("the_address_of_an_interface_is_followed") else { return };
    let _daemon = host.started("a", 9180, "{ interface: wan }");
    let doctor = String::from_utf8(host.ask("a", &["doctor"]).stdout).unwrap();
    assert!(doctor.contains("no interface of gateway vpc-a has an address"), "{doctor}");
    let bound = || {
        let mut all: Vec<String> = host
            .sh("ss -Hlnu")
            .lines()
            .filter_map(|l| l.split_ascii_whitespace().nth(3))
            .filter(|a| a.ends_with(":500") || a.ends_with(":4500"))
            .map(str::to_owned)
            .collect();
        all.sort();
        all.join(" ")
    };
    assert_eq!(bound(), "");
    host.sh("ip link add wan type veth peer name internet; ip link set wan up; ip link set internet up");
    for (change, sockets) in [
        ("ip address add 192.0.2.1/24 dev wan", "192.0.2.1:4500 192.0.2.1:500"),
        (
            "ip address add 192.0.2.9/24 dev wan; ip address del 192.0.2.1/24 dev wan; ip address add 192.0.2.9/24 dev wan",
            "192.0.2.9:4500 192.0.2.9:500",
        ),
        (
            "ip address add 2001:db8::1/64 dev wan",
            "192.0.2.9:4500 192.0.2.9:500 [2001:db8::1]:4500 [2001:db8::1]:500",
        ),
        ("ip link del wan", ""),
    ] {
        host.sh(change);
        until(|| bound() == sockets);
    }
    host.sh("ip link add wan type veth peer name internet; ip link set wan up; ip address add 192.0.2.1/24 dev wan");
    until(|| bound() == "192.0.2.1:4500 192.0.2.1:500");
    until(|| host.sh("tc class show dev wan").contains("rate 100Mbit"));
    let status = String::from_utf8(host.ask("a", &["status", "--json"]).stdout).unwrap();
    assert!(status.contains("\"192.0.2.1\""), "{status}");
}

/// A level that is not in force or not saved is not called done.
#[test]
fn a_bandwidth_that_cannot_be_kept_is_no_success() {
    let Some(host) = Host::new("a_bandwidth_that_cannot_be_kept_is_no_success") else { return };
    host.sh("ip address add 192.0.2.1/24 dev out");
    fs::write(host.path("a"), "in the way of the state directory").unwrap();
    let _daemon = host.started("a", 9180, "192.0.2.1");
    let (code, err) = told(&host.ask("a", &["bandwidth", "vpc-a", "50mbit", "--save"]));
    assert!(code == Some(1) && err.contains("50mbit") && err.contains("could not be saved"), "{err}");
    assert!(err.contains("writable"), "{err}");

    // A full disk; it is mounted for everybody, so the daemon sees it, and leaves with the test.
    fs::remove_file(host.path("a")).unwrap();
    fs::create_dir(host.path("a")).unwrap();
    let dir = host.path("a").display().to_string();
    host.sh(&format!(
        "mount -t tmpfs -o size=4k,nr_inodes=4 none {dir}; head -c 100000 /dev/zero >{dir}/full"
    ));
    let (code, err) = told(&host.ask("a", &["bandwidth", "vpc-a", "50mbit", "--save"]));
    let left = host.sh(&format!("ls {dir}; umount {dir}"));
    assert!(code == Some(1) && err.contains("No space left"), "{err}");
    assert_eq!(left, "full\n");

    host.sh("tc qdisc replace dev out root handle 7: pfifo");
    // Somebody else has the root: the level holds without a queue, and that is said.
    let answer = host.ask("a", &["bandwidth", "vpc-a", "20mbit"]);
    let said = String::from_utf8(answer.stdout).unwrap();
    assert!(
        answer.status.success() && said.contains("dropped, not queued") && said.contains("pfifo 7:"),
        "{said}"
    );
    let status = String::from_utf8(host.ask("a", &["status"]).stdout).unwrap();
    assert!(status.contains("20 Mbit/s"), "{status}");
}

/// A tunnel that waits for its first packet has no downtime; one that should be up has.
#[test]
fn downtime_is_that_of_wanted_tunnels() {
    let Some(host) = Host::new("downtime_is_that_of_wanted_tunnels") else { return };
    host.sh("ip address add 192.0.2.1/24 dev out");
    let _daemon = host.started("a", 9180, "192.0.2.1");
    let downtime = |tunnel: &str| -> f64 {
        host.ask("a", &["bandwidth", "vpc-a", "50mbit"]);
        let get = "exec 3<>/dev/tcp/127.0.0.1/9180; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        let page = host.inside("bash").args(["-c", get]).output().unwrap().stdout;
        let series =
            format!("cygnet_tunnel_downtime_seconds_total{{gateway=\"vpc-a\",tunnel=\"{tunnel}\"}} ");
        let page = String::from_utf8(page).unwrap();
        page.lines().find_map(|l| l.strip_prefix(&series)).unwrap().parse().unwrap()
    };
    until(|| downtime("a-b") > 0.5);
    assert_eq!(downtime("lazy"), 0.0);
    assert_eq!(told(&host.ask("a", &["down", "a-b"])).0, Some(0));
    let ended = downtime("a-b");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(downtime("a-b"), ended);
}

/// T104: whoever reads the log may be stuck; tunnels are not.
#[test]
fn a_stuck_log_reader_holds_up_nothing() {
    let Some(host) = Host::new("a_stuck_log_reader_holds_up_nothing") else { return };
    host.sh("ip address add 192.0.2.1/24 dev out");
    let config = host.config("a", 9180, "192.0.2.1");
    let mut run = host.run(&config);
    let mut daemon = Daemon(run.env("CYGNET_LOG", "trace").stderr(Stdio::piped()).spawn().unwrap());
    let pipe = daemon.0.stderr.as_ref().unwrap();
    nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    until(|| host.ask("a", &["status"]).status.code() != Some(69));
    // Each command makes a line; together they are more than the pipe holds.
    for n in 0..60 {
        let rate = format!("{}kbit", 1000 + n);
        assert_eq!(told(&host.ask("a", &["bandwidth", "vpc-a", &rate])).0, Some(0));
    }
    assert_eq!(daemon.end(), Some(0));
}
