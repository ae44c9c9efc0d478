//! A daemon on a host of its own: a network namespace, and a directory for its configuration and state.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

pub mod pair;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// A network namespace and a directory for configurations.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub holder: Child,
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A daemon that is told to end when the test does.
pub struct Daemon(pub Child);

impl Daemon {
    pub fn end(&mut self) -> Option<i32> {
        let _ = Command::new("kill").arg(self.0.id().to_string()).stderr(Stdio::null()).status();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

impl Host {
    pub fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("{test} is skipped: network namespaces need root");
            return None;
        }
        let holder = Command::new("unshare").args(["--net", "sleep", "300"]).spawn().unwrap();
        let host = Self { dir: tempfile::tempdir().unwrap(), holder };
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", host.holder.id());
        until(|| fs::read_link(&theirs).is_ok_and(|ns| ns != own));
        // Addresses that are still being proven unique would appear in the midst of a test.
        host.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0");
        host.sh("ip link set lo up; ip link add out type veth peer name far; ip link set out up; ip link set far up");
        until(|| host.sh("ip -6 route show table local").matches("local fe80").count() == 2);
        Some(host)
    }

    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "-t", &self.holder.id().to_string(), "--", program]);
        command
    }

    pub fn sh(&self, script: &str) -> String {
        let o = self.inside("sh").args(["-c", script]).output().unwrap();
        String::from_utf8(o.stdout).unwrap()
    }

    /// What a daemon could leave behind.
    pub fn traces(&self) -> String {
        self.sh("ip rule; ip -6 rule; ip -br link | cut -d' ' -f1; ip xfrm policy; tc qdisc show dev out | sed 's/direct_packets_stat [0-9]*//'; ip route show table all")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the key of `psk_file: a-b.psk`.
    pub fn keep_key(&self) {
        let key = self.path("a-b.psk");
        fs::write(&key, "pL7v0y2QxNf8sKd3RwZtB5\n").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A configuration with a control socket, state directory and exporter of its own.
    pub fn config(&self, name: &str, port: u16, address: &str) -> PathBuf {
        self.keep_key();
        let dir = self.dir.path().display();
        let text = format!(
            "daemon: {{ control_socket: {dir}/{name}.sock, state_dir: {dir}/{name}, metrics: {{ listen: \"127.0.0.1:{port}\" }} }}
gateways: [ {{ name: vpc-a, address: {address}, networks: [10.1.0.0/16], bandwidth: 100mbit }} ]
customer_gateways: [ {{ name: idc-b, address: 192.0.2.2 }} ]
tunnels:
  - {{ name: a-b, gateway: vpc-a, customer_gateway: idc-b, auth: {{ psk_file: a-b.psk }},
      spd: [ {{ local: 10.1.0.0/16, remote: [10.2.0.0/16] }} ] }}
  - {{ name: lazy, gateway: vpc-a, customer_gateway: idc-b, auth: {{ psk_file: a-b.psk }}, start: on-demand,
      spd: [ {{ local: 10.1.0.0/16, remote: [10.3.0.0/16] }} ] }}
"
        );
        let path = self.path(&format!("{name}.yaml"));
        fs::write(&path, text).unwrap();
        path
    }

    pub fn run(&self, config: &PathBuf) -> Command {
        let mut command = self.inside(env!("CARGO_BIN_EXE_cygnet"));
        command.arg("run").arg("--config").arg(config);
        command
    }

    /// A daemon of [`Self::config`] that is ready.
    pub fn started(&self, name: &str, port: u16, address: &str) -> Daemon {
        self.config(name, port, address);
        self.running(name)
    }

    /// A daemon of the configuration `NAME.yaml` that is ready. Its log goes to the end of the file `log`.
    pub fn running(&self, name: &str) -> Daemon {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let config = self.path(&format!("{name}.yaml"));
        let daemon = Daemon(self.run(&config).stderr(log).spawn().unwrap());
        until(|| self.ask(name, &["status"]).status.code() != Some(69));
        daemon
    }

    /// Two hosts on one wire, 192.0.2.1 with 10.1.0.0/16 behind it and 192.0.2.2 with 10.2.0.0/16.
    pub fn wired(test: &str) -> Option<(Self, Self)> {
        let (ours, theirs) = (Self::new(test)?, Self::new(test)?);
        let (a, b) = (ours.holder.id(), theirs.holder.id());
        let wire = format!("ip link add wire netns {a} type veth peer name wire netns {b}");
        assert!(Command::new("sh").args(["-c", &wire]).status().unwrap().success());
        for (host, n) in [(&ours, 1), (&theirs, 2)] {
            host.sh(&format!(
                "ip address add 192.0.2.{n}/24 dev wire; ip link set wire up; ip address add 10.{n}.0.1/16 dev far"
            ));
        }
        Some((ours, theirs))
    }

    /// Does something in this namespace, on a thread of its own.
    pub fn thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let ns = fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        std::thread::spawn(move || {
            setns(ns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// The exporter's page, with what was counted until now.
    pub fn metrics(&self, name: &str) -> String {
        // A question for all of them has the counters read.
        self.ask(name, &["status"]);
        let get = "exec 3<>/dev/tcp/127.0.0.1/9180; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3";
        String::from_utf8(self.inside("bash").args(["-c", get]).output().unwrap().stdout).unwrap()
    }

    pub fn ask(&self, name: &str, args: &[&str]) -> Output {
        let socket = self.path(&format!("{name}.sock"));
        self.inside(env!("CARGO_BIN_EXE_cygnet")).arg("--control").arg(socket).args(args).output().unwrap()
    }
}

pub fn until(mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(20), "it did not come to pass");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn told(o: &Output) -> (Option<i32>, String) {
    (o.status.code(), String::from_utf8_lossy(&o.stderr).into_owned())
}
