//! Namespaces for tests on the real kernel: made by the test, with its process id in the name, gone with it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

/// Says why a test does nothing here. `CYGNET_REQUIRE` (a list of capability names with commas) makes that a failure.
pub fn skip(capability: &str, reason: &str) {
    let required = std::env::var("CYGNET_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|r| r.trim() == capability), "{capability} is required: {reason}");
    println!("skipped, {capability} is missing: {reason}");
}

/// Whether the test may make namespaces.
pub fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    skip("root", "namespaces need root");
    false
}

/// A network namespace.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new(tag: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cyg-{}-{}-{tag}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&["ip", "netns", "add", &name]);
        let netns = Self { name };
        netns.run("ip link set lo up");
        netns
    }

    /// Runs a command line (split at spaces) inside and returns its output; it must succeed.
    pub fn run(&self, command: &str) -> String {
        let output = self.try_run(command);
        assert!(
            output.status.success(),
            "{command} in {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command line inside.
    pub fn try_run(&self, command: &str) -> Output {
        self.command(command).output().expect("ip is installed")
    }

    /// Starts a command line inside, with its output kept.
    pub fn spawn(&self, command: &str) -> Running {
        let mut command = self.command(command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(Some(command.spawn().expect("ip is installed")))
    }

    fn command(&self, command: &str) -> Command {
        let mut c = Command::new("ip");
        c.args(["netns", "exec", &self.name]).args(command.split(' ')).stdin(Stdio::null());
        c
    }

    /// Runs `f` on a thread inside.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.name)).expect("namespace file");
                setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
                f()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Joins two namespaces: a veth pair named `eth0` on both sides, with these addresses (CIDR).
    pub fn join(&self, other: &Self, ours: &[&str], theirs: &[&str]) {
        self.run(&format!("ip link add eth0 type veth peer name eth0 netns {}", other.name));
        for (netns, addresses) in [(self, ours), (other, theirs)] {
            for address in addresses {
                let nodad = if address.contains(':') { " nodad" } else { "" };
                netns.run(&format!("ip addr add {address} dev eth0{nodad}"));
            }
            netns.run("ip link set eth0 up");
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A started program; ended with the value.
pub struct Running(Option<std::process::Child>);

impl Running {
    /// Waits for its end and returns what it wrote.
    pub fn output(mut self) -> String {
        let output = self.0.take().and_then(|c| c.wait_with_output().ok()).expect("output");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("program");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
