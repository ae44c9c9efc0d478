//! Two gateways on hosts of their own, each with a network behind it, and a router between them.
//!
//! ```text
//!   inner-a ── a ── router ── b ── inner-b
//!   10.1.0.2  .1  192.0.2.1 .254  198.51.100.254 .1  10.2.0.1  10.2.0.2
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{Daemon, told, until};

/// Outer addresses of the gateways.
pub const OUTER: [&str; 2] = ["192.0.2.1", "198.51.100.1"];

/// A network namespace.
pub struct Net(Child);

impl Net {
    fn new() -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "300"]).spawn().unwrap();
        let net = Self(holder);
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", net.0.id());
        until(|| fs::read_link(&theirs).is_ok_and(|ns| ns != own));
        net.sh(
            "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0; ip link set lo up",
        );
        net
    }

    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "-t", &self.0.id().to_string(), "--", program]);
        command
    }

    /// Runs a script that must succeed.
    pub fn sh(&self, script: &str) -> String {
        let o = self.inside("sh").args(["-ec", script]).output().unwrap();
        assert!(o.status.success(), "{script}: {}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// See the [module](self).
pub struct Pair {
    pub dir: tempfile::TempDir,
    pub gateways: [Net; 2],
    pub router: Net,
    pub inner: [Net; 2],
}

impl Pair {
    pub fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("{test} is skipped: network namespaces need root");
            return None;
        }
        let pair = Self {
            dir: tempfile::tempdir().unwrap(),
            gateways: [Net::new(), Net::new()],
            router: Net::new(),
            inner: [Net::new(), Net::new()],
        };
        for (side, transit) in [(0, "192.0.2"), (1, "198.51.100")] {
            let (gateway, inner, n) = (&pair.gateways[side], &pair.inner[side], side + 1);
            let (router, behind) = (pair.router.0.id(), inner.0.id());
            gateway.sh(&format!(
                "ip link add wan type veth peer name to-{n} netns {router}
                 ip link add lan type veth peer name lan netns {behind}
                 ip addr add {transit}.1/24 dev wan; ip addr add 10.{n}.0.1/24 dev lan
                 ip link set wan up; ip link set lan up; ip route add default via {transit}.254
                 sysctl -qw net.ipv4.ip_forward=1"
            ));
            pair.router.sh(&format!("ip addr add {transit}.254/24 dev to-{n}; ip link set to-{n} up"));
            inner.sh(&format!(
                "ip addr add 10.{n}.0.2/24 dev lan; ip link set lan up; ip route add default via 10.{n}.0.1"
            ));
        }
        pair.router.sh("sysctl -qw net.ipv4.ip_forward=1");
        Some(pair)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The configuration of a gateway, one key a line, so that lines can be named.
    pub fn text(&self, side: usize) -> String {
        let (n, other) = (side + 1, 2 - side);
        let dir = self.dir.path().display();
        let start = ["active", "passive"][side];
        format!(
            "daemon:
  control_socket: {dir}/{n}.sock
  state_dir: {dir}/{n}
  data_plane: userspace
  metrics: {{ listen: off }}
gateways:
  - {{ name: here, address: {}, networks: [10.{n}.0.0/16] }}
customer_gateways:
  - {{ name: there, address: {} }}
tunnels:
  - name: a-b
    gateway: here
    customer_gateway: there
    start: {start}
    auth: {{ psk_file: {n}.psk }}
    spd:
      - {{ local: 10.{n}.0.0/16, remote: [10.{other}.0.0/16] }}
    ike:
      proposals: [aes256gcm16-prfsha384-x25519]
      retransmit: {{ first: 500ms, max: 1s, tries: 2 }}
    esp:
      proposals: [aes256gcm16-x25519]
",
            OUTER[side],
            OUTER[1 - side],
        )
    }

    /// Writes the configuration of a gateway, with the same key as the other one has.
    pub fn write(&self, side: usize, text: &str) -> PathBuf {
        let n = side + 1;
        let key = self.path(&format!("{n}.psk"));
        if !key.exists() {
            fs::write(&key, "pL7v0y2QxNf8sKd3RwZtB5\n").unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let path = self.path(&format!("{n}.yaml"));
        fs::write(&path, text).unwrap();
        path
    }

    /// A running daemon.
    pub fn start(&self, side: usize, text: &str) -> Daemon {
        let path = self.write(side, text);
        let mut run = self.gateways[side].inside(env!("CARGO_BIN_EXE_cygnet"));
        let daemon = Daemon(run.arg("run").arg("--config").arg(path).stderr(Stdio::null()).spawn().unwrap());
        until(|| self.ask(side, &["status"]).0 != Some(69));
        daemon
    }

    /// What a command says, and how it ends.
    pub fn ask(&self, side: usize, args: &[&str]) -> (Option<i32>, String) {
        let socket = self.path(&format!("{}.sock", side + 1));
        let mut command = self.gateways[side].inside(env!("CARGO_BIN_EXE_cygnet"));
        let o = command.arg("--control").arg(socket).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&o.stdout).into_owned();
        (o.status.code(), text + &told(&o).1)
    }

    /// Whether a host behind gateway 0 reaches one behind gateway 1.
    pub fn pings(&self) -> bool {
        let mut ping = self.inner[0].inside("ping");
        ping.args(["-q", "-c", "2", "-i", "0.1", "-W", "1", "10.2.0.2"]).output().unwrap().status.success()
    }
}
