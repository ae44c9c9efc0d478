//! Causes that are made on purpose on hosts of their own, and `cygnet diagnose` that names them. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;

use std::fs;

use host::pair::Pair;
use host::{Daemon, until};
use serde_json::Value;

/// The names of the causes that a gateway finds for its tunnel, or of a file without a daemon.
fn causes(pair: &Pair, side: usize, more: &[&str]) -> Vec<String> {
    let (code, text) = pair.ask(side, &[&["diagnose", "a-b", "--json"], more].concat());
    let told: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let found = told["causes"].as_array().unwrap();
    assert_eq!(code, Some(i32::from(!found.is_empty())), "{text}");
    for f in found {
        let line = |key: &str| f[key].as_str().unwrap_or_default();
        assert!(!line("detail").is_empty() && !line("fix").is_empty() && !line("fix").contains('\n'), "{f}");
    }
    found.iter().map(|f| f["cause"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn found(pair: &Pair, side: usize, expected: &[&str]) {
    assert_eq!(causes(pair, side, &[]), expected, "{}", pair.ask(side, &["diagnose", "a-b"]).1);
}

/// Takes another configuration over.
#[track_caller]
fn apply(pair: &Pair, side: usize, text: &str) {
    pair.write(side, text);
    let (code, told) = pair.ask(side, &["apply"]);
    assert_eq!(code, Some(0), "{told}");
}

/// Ends the tunnel at both ends and tries once more from gateway 0, which may fail.
fn again(pair: &Pair) {
    pair.ask(0, &["down", "a-b"]);
    until(|| !pair.ask(1, &["status", "a-b", "--json"]).1.contains("\"spi_in\""));
    pair.ask(0, &["up", "a-b", "--timeout", "8s"]);
}

fn up(pair: &Pair) -> [Daemon; 2] {
    let b = pair.start(1, &pair.text(1));
    let a = pair.start(0, &pair.text(0));
    assert_eq!(pair.ask(0, &["up", "a-b"]).0, Some(0));
    until(|| pair.pings());
    [a, b]
}

/// What can be found without a daemon: it is the first cause, and the configuration is walked all the same.
#[test]
fn without_a_daemon_the_configuration_is_walked() {
    let Some(pair) = Pair::new("without_a_daemon_the_configuration_is_walked") else { return };
    let walk = |text: &str| {
        let path = pair.write(0, text);
        causes(&pair, 0, &["--config", path.to_str().unwrap()])
    };
    let text = pair.text(0);
    assert_eq!(walk(&text), ["daemon-unreachable", "peer-not-listening"]);
    assert_eq!(walk(&text.replace("networks", "netwroks"))[..2], ["daemon-unreachable", "config-invalid"]);
    let elsewhere = text.replace("address: 192.0.2.1,", "address: 203.0.113.7,");
    assert_eq!(walk(&elsewhere), ["daemon-unreachable", "address-absent"]);
    let here = text.replace("address: 198.51.100.1", "address: 192.0.2.1");
    let here = here.replace("address: 192.0.2.1, networks", "address: { interface: wan }, networks");
    assert_eq!(walk(&here), ["daemon-unreachable", "peer-is-here"]);
    // Nobody answers for names here.
    pair.gateways[0].sh("ip route del default");
    let named = text.replace("address: 198.51.100.1", "address: idc-b.example.invalid");
    assert_eq!(walk(&named), ["daemon-unreachable", "name-unresolved"]);
    assert_eq!(walk(&text), ["daemon-unreachable", "no-route"]);
}

/// "The tunnel is up but ping fails."
#[test]
fn what_keeps_packets_from_passing_a_tunnel_that_is_up_is_named() {
    let Some(pair) = Pair::new("what_keeps_packets_from_passing_a_tunnel_that_is_up_is_named") else {
        return;
    };
    let _daemons = up(&pair);
    let [a, b] = &pair.gateways;
    found(&pair, 0, &[]);
    found(&pair, 1, &[]);
    let (code, text) = pair.ask(0, &["diagnose"]);
    assert!(code == Some(0) && text.contains("nothing found"), "{text}");

    // Host and routes.
    for (damage, repair, expected) in [
        ("sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", &["forwarding-off"][..]),
        (
            "ip rule add pref 1000 from 10.1.0.0/16 to 10.2.0.0/16 lookup main",
            "ip rule del pref 1000",
            &["policy-in-front", "route-around"],
        ),
        ("ip addr del 10.1.0.1/24 dev lan", "ip addr add 10.1.0.1/24 dev lan", &["local-not-attached"]),
    ] {
        a.sh(damage);
        until(|| {
            causes(&pair, 0, &[]) == expected || {
                println!("{damage}: {:?}", causes(&pair, 0, &[]));
                false
            }
        });
        a.sh(repair);
        until(|| causes(&pair, 0, &[]).is_empty());
    }

    // Fresh keys, so that their counters tell of what comes now.
    let fresh = || {
        assert_eq!(pair.ask(0, &["rekey", "a-b"]).0, Some(0));
        for _ in 0..3 {
            pair.pings();
        }
    };
    pair.inner[1].sh("ip route del default");
    fresh();
    found(&pair, 0, &["nothing-comes-back"]);
    found(&pair, 1, &["nothing-answers"]);
    pair.inner[1].sh("ip route add default via 10.2.0.1");
    assert!(pair.pings());
    a.sh("nft add table ip t; nft 'add chain ip t f { type filter hook forward priority 0; policy drop; }'");
    fresh();
    found(&pair, 0, &["firewall-forward"]);
    a.sh("nft delete table ip t");
    assert!(pair.pings());
    found(&pair, 0, &[]);

    // Health checks: of a host that is not there, and of one that is.
    let checked = |check: &str| {
        let text = pair.text(0);
        let with = format!("    start: active\n    health_check: {{ {check} }}\n");
        let text = text.replace("    start: active\n", &with);
        apply(&pair, 0, &text);
    };
    checked("target: 10.2.7.7, interval: 1s, failures: 2");
    // Perhaps nothing else passes in the meantime.
    until(|| causes(&pair, 0, &[]).contains(&"target-silent".to_owned()));
    checked("target: 10.2.0.2, interval: 1s, loss: 20%");
    until(|| pair.ask(0, &["status", "a-b", "--json"]).1.contains("\"good\""));
    found(&pair, 0, &[]);
    // Of two probes one gets through, so that never three in a row are missed.
    b.sh("nft add table ip t; nft 'add chain ip t i { type filter hook forward priority 0; }'");
    b.sh("nft 'add rule ip t i icmp type echo-request numgen inc mod 2 0 drop'");
    until(|| causes(&pair, 0, &[]) == ["line-degraded"]);
    b.sh("nft delete table ip t");
    apply(&pair, 0, &pair.text(0));
    found(&pair, 0, &[]);

    assert_eq!(pair.ask(0, &["down", "a-b"]).0, Some(0));
    found(&pair, 0, &["taken-down"]);
    found(&pair, 1, &["waits-for-peer"]);
    assert_eq!(pair.ask(0, &["up", "a-b"]).0, Some(0));
    assert!(pair.pings());

    // A narrower link behind the router.
    pair.router.sh("ip link set to-2 mtu 1300");
    b.sh("ip link set wan mtu 1300");
    assert!(causes(&pair, 0, &[]).contains(&"path-mtu".to_owned()));
    pair.router.sh("ip link set to-2 mtu 1500");
    b.sh("ip link set wan mtu 1500");
    a.sh("ip route flush cache");

    // The configuration.
    let text = pair.text(0);
    pair.write(0, &text.replace("esp:\n", "esp:\n      lifetime: 2h\n"));
    found(&pair, 0, &["config-not-applied"]);
    pair.write(0, "gateways: nonsense\n");
    found(&pair, 0, &["config-invalid"]);
    // The peer has less than we.
    apply(&pair, 0, &text.replace("remote: [10.2.0.0/16]", "remote: [10.2.0.0/16, 10.3.0.0/16]"));
    until(|| causes(&pair, 0, &[]).contains(&"partly-carried".to_owned()));
    apply(&pair, 0, &text);
    until(|| causes(&pair, 0, &[]).is_empty());
    // New keys that the peer refuses, which the first ones were not.
    apply(&pair, 1, &pair.text(1).replace("[aes256gcm16-x25519]", "[aes256gcm16-ecp384]"));
    pair.ask(0, &["rekey", "a-b"]);
    until(|| {
        causes(&pair, 1, &[]) == ["pfs"]
            || causes(&pair, 0, &[]).iter().any(|c| c == "esp-proposal" || c == "pfs")
    });
    apply(&pair, 1, &pair.text(1));
}

/// What the two ends do not agree about, as each of them sees it.
#[test]
fn what_the_ends_do_not_agree_about_is_named_at_both() {
    let Some(pair) = Pair::new("what_the_ends_do_not_agree_about_is_named_at_both") else { return };
    let _daemons = up(&pair);
    let [ours, theirs] = [pair.text(0), pair.text(1)];
    let narrow = |text: &str, from: &str, to: &str| text.replace(from, to);
    let tunnel = "    start: passive\n";
    for (a, b, expected) in [
        (
            ours.clone(),
            narrow(&theirs, "prfsha384-x25519]", "prfsha256-ecp384]"),
            ["ike-proposal", "ike-proposal"],
        ),
        (
            ours.clone(),
            narrow(&theirs, "prfsha384-x25519]", "prfsha384-ecp384]"),
            ["ike-proposal", "key-exchange"],
        ),
        (
            ours.clone(),
            narrow(&theirs, tunnel, "    start: passive\n    remote_id: paris.example\n"),
            ["refused-by-peer", "peer-identity"],
        ),
        (
            narrow(&ours, "    start: active\n", "    start: active\n    remote_id: lyon.example\n"),
            theirs.clone(),
            ["refused-by-peer", "own-identity"],
        ),
        (
            ours.clone(),
            narrow(&theirs, "[aes256gcm16-x25519]", "[aes128gcm16-x25519]"),
            ["esp-proposal", "esp-proposal"],
        ),
        (
            narrow(&ours, "remote: [10.2.0.0/16]", "remote: [10.2.0.0/17]"),
            narrow(&theirs, "local: 10.2.0.0/16", "local: 10.2.128.0/17"),
            ["networks", "networks"],
        ),
    ] {
        apply(&pair, 0, &a);
        apply(&pair, 1, &b);
        again(&pair);
        until(|| !causes(&pair, 1, &[]).contains(&"waits-for-peer".to_owned()));
        found(&pair, 0, &expected[..1]);
        found(&pair, 1, &expected[1..]);
    }
    // Another key: the file is changed under the same name.
    apply(&pair, 0, &ours);
    fs::write(pair.path("2.psk"), "another-key-altogether-Q7\n").unwrap();
    apply(&pair, 1, &theirs);
    again(&pair);
    found(&pair, 0, &["refused-by-peer"]);
    found(&pair, 1, &["pre-shared-key"]);
    fs::write(pair.path("2.psk"), "pL7v0y2QxNf8sKd3RwZtB5\n").unwrap();
    apply(&pair, 1, &theirs);
    again(&pair);
    found(&pair, 0, &[]);
}

/// What is in the way of IKE and ESP.
#[test]
fn what_keeps_ike_from_passing_is_named() {
    let Some(pair) = Pair::new("what_keeps_ike_from_passing_is_named") else { return };
    let mut daemons = up(&pair);
    let a = &pair.gateways[0];
    let drop = |net: &host::pair::Net, hook: &str, what: &str| {
        net.sh(&format!(
            "nft add table ip t; nft 'add chain ip t c {{ type filter hook {hook} priority 0; }}'; nft 'add rule ip t c {what}'"
        ));
    };
    let router = &pair.router;
    for (net, hook, what, expected) in [
        (router, "forward", "udp dport 500 drop", "udp-500-filtered"),
        (router, "forward", "udp dport 4500 drop", "udp-4500-filtered"),
        (router, "forward", "udp dport { 500, 4500 } reject with icmp type admin-prohibited", "prohibited"),
        (router, "forward", "udp dport { 500, 4500 } drop", "peer-silent"),
        (a, "output", "udp dport 500 drop", "local-firewall"),
    ] {
        pair.ask(0, &["reset", "a-b"]);
        drop(net, hook, what);
        pair.ask(0, &["reset", "a-b"]);
        until(|| pair.ask(0, &["status", "a-b", "--json"]).1.contains("\"failed\""));
        found(&pair, 0, &[expected]);
        net.sh("nft delete table ip t");
    }
    for (net, damage, repair, expected) in [
        (
            router,
            "ip route add unreachable 198.51.100.1/32",
            "ip route del unreachable 198.51.100.1/32",
            "peer-unreachable",
        ),
        (a, "ip route del default", "ip route add default via 192.0.2.254", "no-route"),
        (router, "ip link set to-1 down", "ip link set to-1 up", "link-down"),
    ] {
        net.sh(damage);
        pair.ask(0, &["reset", "a-b"]);
        until(|| pair.ask(0, &["status", "a-b", "--json"]).1.contains("\"failed\""));
        until(|| causes(&pair, 0, &[]) == [expected]);
        net.sh(repair);
    }
    // The peer has a tunnel to somebody else.
    apply(&pair, 1, &pair.text(1).replace("address: 192.0.2.1", "address: 192.0.2.77"));
    pair.ask(0, &["reset", "a-b"]);
    until(|| pair.ask(0, &["explain", "a-b", "--json"]).1.contains("\"unanswered\""));
    until(|| pair.ask(0, &["status", "a-b", "--json"]).1.contains("\"failed\""));
    found(&pair, 0, &["peer-ignores-us"]);
    // It has nobody who would answer.
    daemons[1].end();
    until(|| causes(&pair, 0, &[]) == ["peer-not-listening"]);
    // A tunnel that has nothing to do.
    apply(&pair, 0, &pair.text(0).replace("start: active", "start: on-demand"));
    pair.ask(0, &["reset", "a-b"]);
    let _b = pair.start(1, &pair.text(1));
    until(|| causes(&pair, 0, &[]) == ["waits-for-traffic"]);
}
