//! Two gateways that health checks, alerts and shared networks are tried on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use super::host::{Daemon, Host, until};

/// What webhooks are signed with.
pub const SECRET: &str = "tJ4mVq8wLx2zRn6kYs0p";

/// Two gateways with two wires between them, and an inner address of each family.
pub struct Pair {
    pub hosts: [Host; 2],
    pub daemons: Vec<Daemon>,
    pub planes: [&'static str; 2],
    /// Of what family the tunnels' ends are.
    pub outer: Family,
    /// And their networks.
    pub inner: Family,
}

/// Of what family addresses are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// A gateway's inner address.
    pub const fn address(self, side: usize) -> &'static str {
        match self {
            Self::V4 => ["10.1.0.1", "10.2.0.1"][side],
            Self::V6 => ["fd01::1", "fd02::1"][side],
        }
    }

    /// The network behind a gateway.
    pub const fn network(self, side: usize) -> &'static str {
        match self {
            Self::V4 => ["10.1.0.0/16", "10.2.0.0/16"][side],
            Self::V6 => ["fd01::/16", "fd02::/16"][side],
        }
    }

    /// A gateway's address on a wire.
    pub fn outer(self, wire: usize, side: usize) -> String {
        match self {
            Self::V4 => format!("{}.{}", ["192.0.2", "198.51.100"][wire], side + 1),
            Self::V6 => format!("2001:db8:{wire}::{}", side + 1),
        }
    }
}

impl Pair {
    pub fn new(test: &str) -> Option<Self> {
        let hosts = [Host::new(test)?, Host::new(test)?];
        let (a, b) = (hosts[0].holder.id(), hosts[1].holder.id());
        for wire in ["wire0", "wire1"] {
            let make = format!("ip link add {wire} netns {a} type veth peer name {wire} netns {b}");
            assert!(Command::new("sh").args(["-c", &make]).status().unwrap().success());
        }
        for (host, n) in hosts.iter().zip(1..) {
            host.sh(&format!(
                "ip address add 192.0.2.{n}/24 dev wire0; ip link set wire0 up; ip address add 198.51.100.{n}/24 dev wire1
                 ip link set wire1 up; ip address add 10.{n}.0.1/16 dev far; ip address add fd0{n}::1/16 dev far nodad
                 for wire in 0 1; do ip address add 2001:db8:$wire::{n}/64 dev wire$wire nodad; done"
            ));
        }
        Some(Self {
            hosts,
            daemons: Vec::new(),
            planes: ["userspace"; 2],
            outer: Family::V4,
            inner: Family::V4,
        })
    }

    /// The configuration of one side: a tunnel by each wire, with the same networks, of which `checks` says more.
    pub fn text(&self, side: usize, checks: &[&str], daemon: &str) -> String {
        let dir = self.hosts[side].dir.path().display();
        let (start, plane) = (["active", "passive"][side], self.planes[side]);
        let (own, remote) = (self.inner.network(side), self.inner.network(1 - side));
        let mut text = format!(
            "daemon: {{ control_socket: {dir}/x.sock, state_dir: {dir}/x, data_plane: {plane}, {daemon} }}
gateways:
"
        );
        for wire in [0, 1] {
            let address = self.outer.outer(wire, side);
            text.push_str(&format!(
                "  - {{ name: g{wire}, address: \"{address}\", networks: [\"{own}\"] }}\n"
            ));
        }
        text.push_str("customer_gateways:\n");
        for wire in [0, 1] {
            let address = self.outer.outer(wire, 1 - side);
            text.push_str(&format!("  - {{ name: c{wire}, address: \"{address}\" }}\n"));
        }
        text.push_str("tunnels:\n");
        for (wire, check) in checks.iter().enumerate() {
            text.push_str(&format!(
                "  - {{ name: t{wire}, gateway: g{wire}, customer_gateway: c{wire}, auth: {{ psk_file: a-b.psk }}, start: {start},
      weight: {wire}, {check} spd: [ {{ local: \"{own}\", remote: [\"{remote}\"] }} ] }}\n"
            ));
        }
        text
    }

    pub fn write(&self, side: usize, text: &str) {
        let host = &self.hosts[side];
        host.keep_key();
        let secret = host.path("hook.secret");
        fs::write(&secret, SECRET).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(host.path("x.yaml"), text).unwrap();
    }

    pub fn start(&mut self, side: usize, text: &str) {
        self.write(side, text);
        self.daemons.push(self.hosts[side].running("x"));
    }

    pub fn json(&self, side: usize, args: &[&str]) -> Value {
        serde_json::from_slice(&self.hosts[side].ask("x", args).stdout).unwrap()
    }

    pub fn tunnel(&self, side: usize, name: &str) -> Value {
        self.json(side, &["status", name, "--json"])["tunnels"][0].clone()
    }

    pub fn health(&self, side: usize, name: &str) -> String {
        self.tunnel(side, name)["quality"]["health"].as_str().unwrap_or_default().to_owned()
    }

    pub fn packets_out(&self, name: &str) -> u64 {
        self.tunnel(0, name)["children"][0]["packets_out"].as_u64().unwrap()
    }

    /// Waits until a tunnel has carried some packets more; the other one carries few besides probes meanwhile.
    pub fn carries(&self, name: &str, other: &str) {
        let before = (self.packets_out(name), self.packets_out(other));
        until(|| self.packets_out(name) > before.0 + 150);
        let others = self.packets_out(other) - before.1;
        assert!(others < 75, "{name} carries, and {other} has carried {others} packets");
    }

    /// How often the log of a tunnel has an event.
    pub fn count(&self, side: usize, name: &str, event: &str) -> usize {
        let log = String::from_utf8(self.hosts[side].ask("x", &["logs", name, "--json"]).stdout).unwrap();
        log.lines().filter(|line| line.contains(&format!("\"event\":\"{event}\""))).count()
    }

    /// Drops every so manieth ESP packet that leaves by a wire, at both ends or at one.
    pub fn lose(&self, sides: &[usize], wire: &str, every: u32) {
        let which = if every > 1 { format!("numgen inc mod {every} 0") } else { String::new() };
        for side in sides {
            let add = format!("nft add rule inet lossy out oifname {wire}");
            // What follows the UDP header is an SPI; IKE begins with four zero octets (RFC 3948 §2.2).
            let rule = format!(
                "nft add table inet lossy && nft 'add chain inet lossy out {{ type filter hook output priority 0; }}' && {add} udp \
                 dport 4500 @th,64,32 != 0 {which} drop && {add} meta l4proto esp {which} drop && echo made"
            );
            let host = &self.hosts[*side];
            if host.sh(&rule) != "made\n" {
                // User-Mode Linux has no netfilter, but classifiers.
                assert_eq!(every, 1, "nft is needed");
                let (add, ip, udp_data) = match self.outer {
                    Family::V4 => (format!("tc filter add dev {wire} egress protocol ip"), "ip", 28),
                    Family::V6 => (format!("tc filter add dev {wire} egress protocol ipv6"), "ip6", 48),
                };
                let encapsulated = format!("match {ip} protocol 17 0xff match {ip} dport 4500 0xffff");
                let by_tc = format!(
                    "tc qdisc add dev {wire} clsact && {add} pref 1 u32 match {ip} protocol 50 0xff action drop && {add} pref 2 \
                     u32 {encapsulated} match u32 0 0xffffffff at {udp_data} action pass && \
                     {add} pref 3 u32 {encapsulated} action drop && echo made"
                );
                assert_eq!(host.sh(&by_tc), "made\n");
            }
        }
    }

    pub fn lose_nothing(&self) {
        let undo = "nft delete table inet lossy || tc qdisc delete dev wire0 clsact";
        self.hosts.iter().for_each(|host| drop(host.sh(undo)));
    }
}
