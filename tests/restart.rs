//! A gateway that is handed over, killed or started as another version goes on with its tunnels. Two gateways with data
//! plane userspace, each in a network namespace of its own. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;

use std::fs;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;

use host::{Daemon, Host, told, until};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// The gateway that is restarted, and its peer.
struct Pair {
    ours: Host,
    theirs: Host,
    daemon: Daemon,
    _peer: Daemon,
}

const OURS: &str = "192.0.2.1";
const THEIRS: &str = "192.0.2.2";

impl Pair {
    fn up(test: &str) -> Option<Self> {
        let (ours, theirs) = Self::hosts(test)?;
        let peer = theirs.running("b");
        let daemon = ours.running("a");
        let pair = Self { ours, theirs, daemon, _peer: peer };
        until(|| pair.is_up());
        Some(pair)
    }

    /// Two hosts with a network each, and a wire between them.
    fn hosts(test: &str) -> Option<(Host, Host)> {
        let (ours, theirs) = Host::wired(test)?;
        ours.sh("ip route add default via 192.0.2.2");
        theirs.sh("ip route add default via 192.0.2.1");
        configure(&ours, "a", (OURS, "10.1.0.0/16"), (THEIRS, "10.2.0.0/16"), "active");
        configure(&theirs, "b", (THEIRS, "10.2.0.0/16"), (OURS, "10.1.0.0/16"), "passive");
        Some((ours, theirs))
    }

    fn status(&self) -> Value {
        status(&self.ours, "a")
    }

    fn is_up(&self) -> bool {
        self.status()["tunnels"][0]["state"] == "up"
            && status(&self.theirs, "b")["tunnels"][0]["state"] == "up"
            && self.passes()
    }

    fn passes(&self) -> bool {
        self.ours.sh("ping -c 1 -W 1 -I 10.1.0.1 10.2.0.1").contains("1 received")
    }

    /// The SPIs of the IKE SA and of the ESP SAs, as both ends say.
    fn spis(&self) -> (Value, Value) {
        let of = |s: Value| {
            let t = &s["tunnels"][0];
            let child = &t["children"][0];
            (t["ike"]["spi_i"].clone(), [child["spi_in"].clone(), child["spi_out"].clone()].into())
        };
        let ((ike, esp), (their_ike, _)) = (of(self.status()), of(status(&self.theirs, "b")));
        assert_eq!(ike, their_ike);
        (ike, esp)
    }

    fn kill(&mut self) {
        self.daemon.0.kill().unwrap();
        self.daemon.0.wait().unwrap();
    }

    fn start(&mut self) {
        self.daemon = self.ours.running("a");
    }

    fn events(&self) -> String {
        String::from_utf8(self.ours.ask("a", &["logs", "a-b", "--json"]).stdout).unwrap()
    }
}

fn configure(host: &Host, name: &str, own: (&str, &str), other: (&str, &str), start: &str) {
    host.keep_key();
    let dir = host.dir.path().display();
    let (address, network) = own;
    let (peer, remote) = other;
    let text = format!(
        "daemon: {{ control_socket: {dir}/{name}.sock, state_dir: {dir}/{name}, data_plane: userspace }}
gateways: [ {{ name: own, address: {address}, networks: [{network}] }} ]
customer_gateways: [ {{ name: other, address: {peer} }} ]
tunnels:
  - {{ name: a-b, gateway: own, customer_gateway: other, auth: {{ psk_file: a-b.psk }}, start: {start},
      spd: [ {{ local: {network}, remote: [{remote}] }} ] }}
"
    );
    fs::write(host.path(&format!("{name}.yaml")), text).unwrap();
}

fn log(host: &Host) -> String {
    fs::read_to_string(host.path("log")).unwrap_or_default()
}

fn status(host: &Host, name: &str) -> Value {
    serde_json::from_slice(&host.ask(name, &["status", "--json"]).stdout).unwrap_or_default()
}

#[test]
fn a_daemon_that_hands_over_leaves_its_tunnels_to_the_next() {
    let Some(mut pair) = Pair::up("a_daemon_that_hands_over_leaves_its_tunnels_to_the_next") else { return };
    let before = pair.spis();
    for _ in 0..3 {
        let (code, err) = told(&pair.ours.ask("a", &["handover"]));
        assert_eq!((code, err.as_str()), (Some(0), ""));
        // Where nobody carries it, it is blocked.
        assert!(!pair.ours.sh("ip route get 10.2.0.1 from 10.1.0.1 2>&1").contains("dev wire"));
        assert_eq!(pair.daemon.0.wait().unwrap().code(), Some(0));
        pair.start();
        assert!(pair.passes());
        assert_eq!(pair.spis(), before);
    }
    assert!(log(&pair.ours).contains("1 IKE SAs and 2 ESP SAs of an earlier life"), "{}", log(&pair.ours));
    // What goes on can be renewed, from both ends.
    for (host, name) in [(&pair.ours, "a"), (&pair.theirs, "b")] {
        for kind in [&["rekey", "a-b"][..], &["rekey", "--ike", "a-b"]] {
            assert_eq!(told(&host.ask(name, kind)), (Some(0), String::new()));
        }
    }
    assert!(pair.passes());
    assert_ne!(pair.spis(), before);
}

#[test]
fn a_killed_daemon_s_tunnels_go_on_and_get_new_keys() {
    let Some(mut pair) = Pair::up("a_killed_daemon_s_tunnels_go_on_and_get_new_keys") else { return };
    for _ in 0..3 {
        let (ike, esp) = pair.spis();
        pair.kill();
        pair.start();
        // What was received before is not known exactly: the old keys go soon.
        until(|| pair.spis().1 != esp && pair.passes());
        assert_eq!(pair.spis().0, ike, "the IKE SA goes on");
    }
}

#[test]
fn a_daemon_that_is_told_to_end_leaves_nothing_to_go_on_with() {
    let Some(mut pair) = Pair::up("a_daemon_that_is_told_to_end_leaves_nothing_to_go_on_with") else {
        return;
    };
    let before = pair.spis();
    assert_eq!(fs::metadata(pair.ours.path("a.sas")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(pair.daemon.end(), Some(0));
    assert!(!pair.ours.path("a.sas").exists());
    until(|| status(&pair.theirs, "b")["tunnels"][0]["ike"].is_null());
    pair.start();
    until(|| pair.is_up());
    assert_ne!(pair.spis(), before);
}

/// Whatever is wrong with it is named, and the tunnel begins anew.
#[test]
fn what_was_kept_is_refused_if_it_is_not_as_it_was_kept() {
    let Some(mut pair) = Pair::up("what_was_kept_is_refused_if_it_is_not_as_it_was_kept") else { return };
    let (sas, secret) = (pair.ours.path("a.sas"), pair.ours.path("a/seal.key"));
    let change = |at: usize, by: u8| {
        let mut octets = fs::read(&sas).unwrap();
        octets[at] ^= by;
        fs::write(&sas, octets).unwrap();
    };
    let cut = || fs::write(&sas, &fs::read(&sas).unwrap()[..50]).unwrap();
    let open = || fs::set_permissions(&sas, fs::Permissions::from_mode(0o640)).unwrap();
    let ways: [(&str, &dyn Fn()); 8] = [
        ("forged", &|| change(200, 1)),
        ("forged", &|| fs::remove_file(&secret).unwrap()),
        ("version", &|| change(9, 2)),
        ("format", &|| change(0, 1)),
        ("other_boot", &|| change(15, 1)),
        ("other_host", &|| change(35, 1)),
        ("cut", &cut),
        ("permissions", &open),
    ];
    for (reason, spoil) in ways {
        let before = pair.spis();
        pair.kill();
        fs::write(pair.ours.path("log"), "").unwrap();
        spoil();
        pair.start();
        until(|| pair.is_up() && pair.spis().0 != before.0);
        let log = log(&pair.ours);
        assert!(log.contains("are not taken up") && log.contains(reason), "{reason}: {log}");
    }
}

/// As after `control_socket` was another one for a while: the peer has long had other SAs.
#[test]
fn what_an_earlier_life_than_the_last_left_is_refused() {
    let Some(mut pair) = Pair::up("what_an_earlier_life_than_the_last_left_is_refused") else { return };
    let sas = pair.ours.path("a.sas");
    pair.kill();
    let first = fs::read(&sas).unwrap();
    pair.start();
    until(|| pair.is_up());
    pair.kill();
    let (before, last) = (header(&first), fs::read(&sas).unwrap());
    assert_ne!(before, header(&last), "each life has a file of its own");
    fs::write(&sas, first).unwrap();
    pair.start();
    until(|| pair.is_up());
    assert!(log(&pair.ours).contains("reason=\"forged\""), "{}", log(&pair.ours));
}

/// What tells two files apart: the header, with the number of the life that wrote it.
fn header(file: &[u8]) -> &[u8] {
    &file[..100]
}

#[test]
fn a_daemon_killed_while_it_wrote_goes_on_with_what_was_whole() {
    let Some(mut pair) = Pair::up("a_daemon_killed_while_it_wrote_goes_on_with_what_was_whole") else {
        return;
    };
    let before = pair.spis().0;
    pair.kill();
    let sas = pair.ours.path("a.sas");
    let mut octets = fs::read(&sas).unwrap();
    octets.extend_from_slice(&[0; 11]);
    fs::write(&sas, octets).unwrap();
    pair.start();
    assert!(log(&pair.ours).contains("killed while it noted a change"), "{}", log(&pair.ours));
    until(|| pair.is_up());
    assert_eq!(pair.spis().0, before);
}

#[test]
fn the_next_life_follows_the_configuration_as_it_is_then() {
    let Some(mut pair) = Pair::up("the_next_life_follows_the_configuration_as_it_is_then") else { return };
    let before = pair.spis();
    let file = pair.ours.path("a.yaml");
    let text = fs::read_to_string(&file).unwrap();
    // One more rule, which the peer does not have: the old one is not touched.
    fs::write(
        &file,
        text.replace(
            "remote: [10.2.0.0/16] }",
            "remote: [10.2.0.0/16] }, { local: 10.1.0.0/16, remote: [10.9.0.0/16] }",
        ),
    )
    .unwrap();
    assert_eq!(told(&pair.ours.ask("a", &["handover"])).0, Some(0));
    pair.daemon.0.wait().unwrap();
    pair.start();
    assert!(pair.passes());
    assert_eq!(pair.spis().0, before.0);
    // Another tunnel in its place: its SAs are not this one's.
    fs::write(&file, text.replace("name: a-b", "name: c-d").replace("10.2.0.0", "10.3.0.0")).unwrap();
    assert_eq!(told(&pair.ours.ask("a", &["handover"])).0, Some(0));
    pair.daemon.0.wait().unwrap();
    pair.start();
    assert!(!pair.passes());
    assert!(!pair.ours.sh("ip route get 10.3.0.1 from 10.1.0.1 2>&1").contains("dev wire"));
    assert_eq!(pair.status()["tunnels"][0]["children"], Value::Array(vec![]));
    assert!(log(&pair.ours).contains("no_tunnel"), "{}", log(&pair.ours));
}

#[test]
fn the_next_life_may_be_another_binary() {
    let Some(mut pair) = Pair::up("the_next_life_may_be_another_binary") else { return };
    let before = pair.spis();
    let newer = pair.ours.path("cygnet-newer");
    fs::copy(env!("CARGO_BIN_EXE_cygnet"), &newer).unwrap();
    assert_eq!(told(&pair.ours.ask("a", &["handover"])).0, Some(0));
    pair.daemon.0.wait().unwrap();
    let mut command = pair.ours.inside(newer.to_str().unwrap());
    command.args(["run", "--config"]).arg(pair.ours.path("a.yaml")).stderr(Stdio::null());
    pair.daemon = Daemon(command.spawn().unwrap());
    until(|| pair.ours.ask("a", &["status"]).status.code() != Some(69));
    assert!(pair.passes());
    assert_eq!(pair.spis(), before);
}

/// Binds a UDP socket on a host.
fn bound(host: &Host, address: &'static str) -> UdpSocket {
    let ns = fs::File::open(format!("/proc/{}/ns/net", host.holder.id())).unwrap();
    let bind = move || {
        setns(ns, CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind(address).unwrap()
    };
    std::thread::spawn(bind).join().unwrap()
}

/// As the service manager does it: descriptors from 3 on.
fn started_with(host: &Host, sockets: &[&UdpSocket; 2], notify: &str) -> Daemon {
    let fds: Vec<OwnedFd> = sockets.iter().map(|s| OwnedFd::from(s.try_clone().unwrap())).collect();
    let [first, second] = fds.try_into().unwrap();
    let script = "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=x:y; exec \"$@\"";
    let mut command = host.inside("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_cygnet"), "run", "--config"]);
    command.arg(host.path("a.yaml")).env("NOTIFY_SOCKET", notify);
    let log = fs::File::options().create(true).append(true).open(host.path("log")).unwrap();
    let daemon = Daemon(command.stdin(first).stdout(second).stderr(log).spawn().unwrap());
    until(|| host.ask("a", &["status"]).status.code() != Some(69));
    daemon
}

#[test]
fn sockets_that_the_service_manager_kept_are_used_again_and_others_let_go() {
    let test = "sockets_that_the_service_manager_kept_are_used_again_and_others_let_go";
    let Some((ours, theirs)) = Pair::hosts(test) else { return };
    let manager = UnixDatagram::bind(ours.path("notify")).unwrap();
    manager.set_nonblocking(true).unwrap();
    let notify = ours.path("notify").to_str().unwrap().to_owned();
    let said = || {
        let mut all = String::new();
        let mut buffer = [0; 4096];
        while let Ok(len) = manager.recv(&mut buffer) {
            all.push_str(std::str::from_utf8(&buffer[..len]).unwrap());
            all.push('\n');
        }
        all
    };
    // One that fits, and one of an address that the configuration does not have.
    let natt = bound(&ours, "192.0.2.1:4500");
    let other = bound(&ours, "10.1.0.1:4500");
    let peer = theirs.running("b");
    let daemon = started_with(&ours, &[&natt, &other], &notify);
    let all = said();
    assert!(all.contains("FDSTORE=1\nFDNAME=192.0.2.1_4500\nFDPOLL=0"), "{all}");
    assert!(all.contains("FDNAME=192.0.2.1_500\n"), "{all}");
    assert!(all.contains("FDSTOREREMOVE=1\nFDNAME=10.1.0.1_4500"), "{all}");
    drop(other);
    assert_eq!(ours.sh("ss -Hlun sport = :4500").lines().count(), 1);
    let mut pair = Pair { ours, theirs, daemon, _peer: peer };
    until(|| pair.is_up());
    let before = pair.spis().0;
    // The daemon is killed; what comes meanwhile waits in the socket and is not refused.
    let ike = bound_beside(&pair.ours);
    pair.kill();
    assert!(pair.ours.sh("ss -Hlun sport = :4500").contains("192.0.2.1:4500"));
    pair.daemon = started_with(&pair.ours, &[&natt, &ike], &notify);
    until(|| pair.is_up());
    assert_eq!(pair.spis().0, before);
}

/// A socket that is no gateway's, of another kind of address.
fn bound_beside(host: &Host) -> UdpSocket {
    bound(host, "[::1]:4500")
}

/// systemd says by the unit's job why it stops it.
#[test]
fn the_unit_hands_over_only_if_it_is_restarted() {
    let Some(mut pair) = Pair::up("the_unit_hands_over_only_if_it_is_restarted") else { return };
    let fake = pair.ours.path("systemctl");
    let said = |job: &str| {
        let script = format!("#!/bin/sh\necho '17 cygnet.service {job} running'\n");
        fs::write(&fake, script).unwrap();
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = pair.ours.inside(env!("CARGO_BIN_EXE_cygnet"));
        command.env("PATH", format!("{}:/usr/bin:/bin", pair.ours.dir.path().display()));
        command.arg("--control").arg(pair.ours.path("a.sock"));
        told(&command.args(["handover", "--if-restarting", "cygnet.service"]).output().unwrap())
    };
    assert_eq!(said("stop"), (Some(0), String::new()));
    assert!(pair.passes());
    assert_eq!(said("restart"), (Some(0), String::new()));
    assert_eq!(pair.daemon.0.wait().unwrap().code(), Some(0));
    assert!(pair.ours.path("a.sas").exists());
    // A daemon that is gone needs no handing over.
    assert_eq!(said("restart"), (Some(0), String::new()));
    let before = status(&pair.theirs, "b")["tunnels"][0]["ike"]["spi_i"].clone();
    pair.start();
    assert_eq!(pair.spis().0, before);
    assert!(pair.events().contains("taken up again"), "{}", pair.events());
}

/// Bandwidth levels are as much in force as the tunnels.
#[test]
fn levels_stay_in_force_over_a_handover_and_a_kill() {
    let Some(mut pair) = Pair::up("levels_stay_in_force_over_a_handover_and_a_kill") else { return };
    assert_eq!(told(&pair.ours.ask("a", &["bandwidth", "own", "70mbit"])), (Some(0), String::new()));
    let class = |pair: &Pair| pair.ours.sh("tc class show dev wire | grep -v default");
    let before = class(&pair);
    assert!(before.contains("ceil 70Mbit"), "{before}");
    let changes = pair.ours.path("changes");
    let watch = format!("exec tc monitor >{}", changes.display());
    let mut monitor = Daemon(pair.ours.inside("sh").args(["-c", &watch]).spawn().unwrap());
    for kill in [false, true] {
        if kill {
            pair.kill();
        } else {
            assert_eq!(told(&pair.ours.ask("a", &["handover"])).0, Some(0));
            pair.daemon.0.wait().unwrap();
        }
        assert_eq!(class(&pair), before);
        pair.start();
        assert_eq!(class(&pair), before);
    }
    monitor.end();
    let seen = fs::read_to_string(&changes).unwrap();
    assert!(!seen.contains("deleted qdisc htb") && !seen.contains("deleted class htb"), "{seen}");
    // Unless the file says something new meanwhile.
    pair.kill();
    let file = pair.ours.path("a.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("networks: [10.1.0.0/16]", "networks: [10.1.0.0/16], bandwidth: 30mbit"))
        .unwrap();
    pair.start();
    assert!(class(&pair).contains("ceil 30Mbit"), "{}", class(&pair));
}
