//! A small world of network namespaces for the userspace data plane, torn down when dropped.
//!
//! ```text
//!   host-a ── gw-a ── transit ── gw-b ── host-b
//!   10.1.0.2  .1   192.0.2.x  198.51.100.x  .1  10.2.0.2         (fd01::/64, fd02::/64 likewise)
//! ```
//!
//! The transit hop counts inner addresses that it sees in clear text, on arrival, whether it could forward them or not.
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use cygnet::plane::user::{IkeSink, UserPlane, UserPlaneConfig};
use cygnet_model::plane::DataPlane;
use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::{EspSuite, Integ};
use cygnet_model::tunnel::{
    Bypass, Direction, GuardAction, GuardSpec, SaId, SaSpec, TunnelSpec, UdpEncap, VolumeLimits,
};
use cygnet_model::{ChildId, Reqid, SecretBytes, Spi, TunnelId};
use nix::sched::{CloneFlags, setns};

pub const CHILD: ChildId = ChildId { tunnel: TunnelId(1), index: 0 };
pub const OUTER: [&str; 2] = ["192.0.2.1", "198.51.100.1"];
pub const INNER_V4: [&str; 2] = ["10.1.0.0/16", "10.2.0.0/16"];
pub const INNER_V6: [&str; 2] = ["fd01::/16", "fd02::/16"];

/// Whether namespaces can be made here; if not, says why the test is skipped.
pub fn possible(test: &str) -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if !std::path::Path::new("/dev/net/tun").exists() {
        "/dev/net/tun"
    } else if Command::new("ip").arg("-V").output().is_err() {
        "the ip command (iproute2)"
    } else if Command::new("nft").arg("-v").output().is_err() {
        "the nft command (nftables)"
    } else {
        return true;
    };
    println!("{test} skipped: it needs {missing}");
    false
}

pub struct Lab {
    prefix: String,
    names: &'static [&'static str],
}

/// One namespace.
#[derive(Clone)]
pub struct Ns(String);

impl Ns {
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs a command in the namespace; its words are separated by spaces.
    pub fn output(&self, command: &str) -> Output {
        Command::new("ip").args(["netns", "exec", &self.0]).args(command.split(' ')).output().unwrap()
    }

    /// Runs a command that must succeed and returns what it printed.
    pub fn run(&self, command: &str) -> String {
        let output = self.output(command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {command}: {text}{errors}", self.0);
        text
    }

    /// Runs a command that takes away what a plane puts back and tidies at the same time. Programs that list and then
    /// remove one by one stop with an error when something is gone already; they are run again, as people would.
    pub fn take_away(&self, command: &str) {
        for _ in 0..9 {
            let output = self.output(command);
            if output.status.success() {
                return;
            }
            if !String::from_utf8_lossy(&output.stderr).contains("No such") {
                break;
            }
        }
        self.run(command);
    }

    /// Calls `work` on a thread inside the namespace. Sockets made there stay there.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }

    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Whether one of some pings of `bytes` comes back.
    pub fn pings(&self, from: &str, to: &str, bytes: usize) -> bool {
        self.output(&format!("ping -q -c 3 -i 0.05 -W 1 -s {bytes} -I {from} {to}")).status.success()
    }
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    fn empty(names: &'static [&'static str]) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let lab = Self { prefix: format!("cyg-{}-{number}", std::process::id()), names };
        for name in names {
            let ns = lab.ns(name);
            sh(&format!("ip netns add {}", ns.0));
            ns.run("ip link set lo up");
            // A router cannot ask for its IPv6 neighbours until its link-local address has passed the test for duplicates,
            // which takes seconds. Nobody else is here.
            ns.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        }
        lab
    }

    /// The two gateways alone, on one wire; their inner addresses are 10.1.0.1 and 10.2.0.1.
    pub fn pair() -> Self {
        let lab = Self::empty(&["gw-a", "gw-b"]);
        let (a, b) = (lab.ns("gw-a"), lab.ns("gw-b"));
        sh(&format!("ip link add wan netns {} type veth peer name wan netns {}", a.0, b.0));
        for (ns, ours, theirs, inner) in
            [(a, OUTER[0], OUTER[1], "10.1.0.1"), (b, OUTER[1], OUTER[0], "10.2.0.1")]
        {
            ns.run("ip link set wan up");
            ns.run(&format!("ip addr add {ours}/32 dev wan"));
            ns.run(&format!("ip addr add {inner}/32 dev lo"));
            ns.run(&format!("ip route add {theirs} dev wan"));
        }
        lab
    }

    /// The whole world of the picture.
    pub fn new() -> Self {
        let lab = Self::empty(&["host-a", "gw-a", "transit", "gw-b", "host-b"]);
        for (a, a_dev, b, b_dev) in [
            ("host-a", "lan", "gw-a", "lan"),
            ("gw-a", "wan", "transit", "to-a"),
            ("gw-b", "wan", "transit", "to-b"),
            ("host-b", "lan", "gw-b", "lan"),
        ] {
            let (a, b) = (lab.ns(a), lab.ns(b));
            sh(&format!("ip link add {a_dev} netns {} type veth peer name {b_dev} netns {}", a.0, b.0));
            a.run(&format!("ip link set {a_dev} up"));
            b.run(&format!("ip link set {b_dev} up"));
        }
        for (ns, dev, v4, v6) in [
            ("host-a", "lan", "10.1.0.2/24", "fd01::2/64"),
            ("gw-a", "lan", "10.1.0.1/24", "fd01::1/64"),
            ("gw-a", "wan", "192.0.2.1/24", "2001:db8:a::1/64"),
            ("transit", "to-a", "192.0.2.254/24", "2001:db8:a::fe/64"),
            ("transit", "to-b", "198.51.100.254/24", "2001:db8:b::fe/64"),
            ("gw-b", "wan", "198.51.100.1/24", "2001:db8:b::1/64"),
            ("gw-b", "lan", "10.2.0.1/24", "fd02::1/64"),
            ("host-b", "lan", "10.2.0.2/24", "fd02::2/64"),
        ] {
            let ns = lab.ns(ns);
            ns.run(&format!("ip addr add {v4} dev {dev}"));
            ns.run(&format!("ip addr add {v6} dev {dev} nodad"));
        }
        for (ns, v4, v6) in [
            ("host-a", "10.1.0.1", "fd01::1"),
            ("gw-a", "192.0.2.254", "2001:db8:a::fe"),
            ("gw-b", "198.51.100.254", "2001:db8:b::fe"),
            ("host-b", "10.2.0.1", "fd02::1"),
        ] {
            lab.ns(ns).run(&format!("ip route add default via {v4}"));
            lab.ns(ns).run(&format!("ip -6 route add default via {v6}"));
        }
        for ns in ["gw-a", "transit", "gw-b"] {
            lab.ns(ns).run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        }
        let transit = lab.ns("transit");
        for line in [
            "add table inet leak",
            "add chain inet leak in { type filter hook prerouting priority -300; }",
            "add counter inet leak clear",
            "add rule inet leak in ip saddr 10.0.0.0/8 counter name clear",
            "add rule inet leak in ip daddr 10.0.0.0/8 counter name clear",
            "add rule inet leak in ip6 saddr fd00::/8 counter name clear",
            "add rule inet leak in ip6 daddr fd00::/8 counter name clear",
        ] {
            transit.run(&format!("nft {line}"));
        }
        lab
    }

    pub fn ns(&self, name: &str) -> Ns {
        Ns(format!("{}-{name}", self.prefix))
    }

    /// Packets with inner addresses that the transit hop saw in clear text.
    pub fn leaked(&self) -> u64 {
        let text = self.ns("transit").run("nft list counter inet leak clear");
        text.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap()
    }

    /// A plane in gateway 0 or 1 with its socket, nothing guarded yet.
    pub fn plane(&self, side: usize, offload: bool, ike_sink: IkeSink) -> UserPlane {
        let ns = self.ns(["gw-a", "gw-b"][side]);
        ns.inside(move || {
            let config = UserPlaneConfig { tun_name: "cygtest0".to_owned(), mtu: 1400, offload, seed: 0 };
            let mut plane = UserPlane::new(&config, ike_sink).unwrap();
            let local: SocketAddr = SocketAddr::new(OUTER[side].parse().unwrap(), 4500);
            plane.add_socket(local, UdpSocket::bind(local).unwrap()).unwrap();
            plane
        })
    }

    /// Planes in both gateways with guards, open tunnels and SAs.
    pub fn tunnel(&self, suite: EspSuite, offload: bool) -> [UserPlane; 2] {
        [0, 1].map(|side| {
            let mut plane = self.plane(side, offload, Box::new(|_, _, _| {}));
            plane.guard(&guard(side)).unwrap();
            open(&mut plane, side, suite);
            plane
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.names {
            let _ = Command::new("ip").args(["netns", "del", self.ns(name).name()]).status();
        }
    }
}

fn sh(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

pub fn net(text: &str) -> TrafficSelector {
    let (addr, len) = text.split_once('/').unwrap();
    TrafficSelector::cidr(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
}

pub fn guard(side: usize) -> GuardSpec {
    GuardSpec {
        child: CHILD,
        reqid: Reqid::of(CHILD).unwrap(),
        local: vec![net(INNER_V4[side]), net(INNER_V6[side])],
        remote: vec![net(INNER_V4[1 - side]), net(INNER_V6[1 - side])],
        action: GuardAction::Acquire,
        mark: None,
        weight: 0,
        bypass: Bypass::NONE,
    }
}

pub fn tunnel(side: usize) -> TunnelSpec {
    let GuardSpec { child, reqid, local, remote, mark, weight, .. } = guard(side);
    let (outer_local, outer_remote) = (outer(side), outer(1 - side));
    TunnelSpec { child, reqid, local, remote, outer_local, outer_remote, mark, weight }
}

pub fn outer(side: usize) -> IpAddr {
    OUTER[side].parse().unwrap()
}

/// Opens the tunnel with a pair of SAs whose keys both sides derive from the direction.
pub fn open(plane: &mut UserPlane, side: usize, suite: EspSuite) {
    plane.open_tunnel(&tunnel(side)).unwrap();
    plane.install(&sa(side, Direction::In, suite)).unwrap();
    plane.install(&sa(side, Direction::Out, suite)).unwrap();
}

pub fn sa(side: usize, direction: Direction, suite: EspSuite) -> SaSpec {
    let sender = if direction == Direction::Out { side } else { 1 - side };
    let TunnelSpec { child, reqid, local, remote, outer_local, outer_remote, mark, .. } = tunnel(side);
    SaSpec {
        id: SaId { child, direction, spi: Spi::new(0xC000_0001 + sender as u32).unwrap() },
        reqid,
        local: outer_local,
        remote: outer_remote,
        encap: Some(UdpEncap { local_port: 4500, remote_port: 4500 }),
        suite,
        encr_key: SecretBytes::new(vec![0x10 + sender as u8; suite.encr.keymat_len()]),
        integ_key: SecretBytes::new(vec![0x20 + sender as u8; suite.integ.map_or(0, Integ::key_len)]),
        replay_window: 1024,
        inner_local: local,
        inner_remote: remote,
        limits: VolumeLimits::default(),
        mark,
    }
}
