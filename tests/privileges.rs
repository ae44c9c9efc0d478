//! What the daemon may do once it runs, and what it lets out: read from /proc, and tried. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use host::{Daemon, Host, told, until};
use serde_json::Value;

/// CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW.
const NEEDED: u64 = 1 << 10 | 1 << 12 | 1 << 13;
/// A user of nobody on this host.
const USER: u32 = 54_000;

/// A line of the status of a process or thread.
fn line<'a>(status: &'a str, key: &str) -> &'a str {
    let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("there is no {key} in {status}")).trim()
}

fn set(status: &str, key: &str) -> u64 {
    u64::from_str_radix(line(status, key), 16).unwrap()
}

/// The states of all threads of a process.
fn threads(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.flatten().filter_map(|t| fs::read_to_string(t.path().join("status")).ok()).collect()
}

/// The process that `run` has become, through nsenter and whatever else executes it.
fn process(daemon: &Daemon) -> u32 {
    daemon.0.id()
}

/// A running daemon with something in its `daemon` section, and flags.
fn start(host: &Host, section: &str, flags: &[&str]) -> Daemon {
    let config = host.config("a", 9180, "192.0.2.1");
    let text =
        fs::read_to_string(&config).unwrap().replacen("daemon: { ", &format!("daemon: {{ {section} "), 1);
    fs::write(&config, text).unwrap();
    let mut run = host.run(&config);
    let daemon = Daemon(run.args(flags).stderr(Stdio::null()).spawn().unwrap());
    until(|| host.ask("a", &["status"]).status.code() != Some(69));
    daemon
}

fn host(test: &str) -> Option<Host> {
    let host = Host::new(test)?;
    host.sh("ip address add 192.0.2.1/24 dev out; ip address add 10.1.0.1/16 dev far");
    Some(host)
}

/// Every thread has what it needs at most, and there is no way to get more.
#[test]
fn nothing_is_kept_that_is_not_needed() {
    let Some(host) = host("nothing_is_kept_that_is_not_needed") else { return };
    let daemon = start(&host, "data_plane: userspace, console: { listen: \"127.0.0.1:9181\" },", &[]);
    let all = threads(process(&daemon));
    let name = |t: &String| line(t, "Name").to_owned();
    for thread in &all {
        let name = name(thread);
        let inert = ["metrics", "console", "jobs", "esp-egress", "esp-ingress"].contains(&name.as_str());
        let most = if inert { 0 } else { NEEDED };
        for key in ["CapEff", "CapPrm"] {
            assert_eq!(set(thread, key) & !most, 0, "{name}: {thread}");
        }
        for key in ["CapInh", "CapAmb", "CapBnd"] {
            assert_eq!(set(thread, key), 0, "{key} of {name}: {thread}");
        }
        assert_eq!(line(thread, "NoNewPrivs"), "1", "{name}");
        assert_eq!(line(thread, "Seccomp"), "2", "{name}");
    }
    for wanted in ["cygnet", "metrics", "console", "esp-ingress"] {
        assert!(
            all.iter().any(|t| name(t) == wanted),
            "{wanted} in {:?}",
            all.iter().map(name).collect::<Vec<_>>()
        );
    }
    assert_eq!(set(&all[0], "CapEff"), NEEDED, "the loop needs them");
    let limits = fs::read_to_string(format!("/proc/{}/limits", process(&daemon))).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    let findings: Value = serde_json::from_slice(&host.ask("a", &["doctor", "--json"]).stdout).unwrap();
    for name in ["daemon's capabilities", "daemon's system calls", "daemon's files"] {
        let finding = findings["findings"].as_array().unwrap().iter().find(|f| f["name"] == name).unwrap();
        let without = name == "daemon's files" && !landlock();
        assert!(without || finding["verdict"] == "ok", "{finding}");
    }
}

/// Whether this kernel has Landlock.
fn landlock() -> bool {
    let has = cfg!(target_os = "linux")
        && Command::new("python3").args(["-c", LANDLOCK]).status().is_ok_and(|s| s.success());
    if !has {
        println!("this kernel has no Landlock");
    }
    has
}

/// landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION)
const LANDLOCK: &str = "import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(444, None, 0, 1) < 1)";

/// What a program tries that the daemon starts, or somebody who has taken the daemon over. Prints what it could do.
const ATTEMPTS: &str = r#"
import ctypes, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
could = {}
def attempt(name, what):
    try: could[name] = what() or "done"
    except OSError as e: could[name] = os.strerror(e.errno)
def call(number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), "")
x86 = os.uname().machine == "x86_64"
NEWUSER = 0x10000000
status = dict(l.rstrip("\n").split(":\t", 1) for l in open("/proc/self/status") if ":\t" in l)
for key in ("CapEff", "CapPrm", "CapAmb", "NoNewPrivs"): could[key] = status[key]
attempt("write beside", lambda: open(sys.argv[2], "w").close())
attempt("core_pattern", lambda: os.close(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)))
attempt("null", lambda: open("/dev/null", "w").close())
attempt("unshare", lambda: call(272 if x86 else 97, NEWUSER))
def clone(number, *flags):
    pid = libc.syscall(number, *flags, None, None, None, None)
    if pid == 0: os._exit(0)
    if pid < 0: raise OSError(ctypes.get_errno(), "")
    os.waitpid(pid, 0)
attempt("clone", lambda: clone(56 if x86 else 220, NEWUSER | 17))
attempt("fork", lambda: clone(56 if x86 else 220, 17))
attempt("bpf", lambda: call(321 if x86 else 280, 0, None, 0))
attempt("ptrace", lambda: call(101 if x86 else 117, 0, 0, None, None))
attempt("io_uring", lambda: call(425, 1, None))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
attempt("inet", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
with open(sys.argv[1] + ".tmp", "w") as f: json.dump(could, f)
os.rename(sys.argv[1] + ".tmp", sys.argv[1])
"#;

/// What the attempts come to, of a command for events; `beside` is a file that it tries to write.
fn attempts(host: &Host, name: &str, beside: &Path, flags: &[&str]) -> Value {
    let (script, told) = (host.path("attempts.py"), host.path(name));
    fs::write(&script, ATTEMPTS).unwrap();
    let command = format!(
        "alerts: {{ command: [/usr/bin/python3, {}, {}, {}], events: [started] }},",
        script.display(),
        told.display(),
        beside.display()
    );
    let _daemon = start(host, &command, flags);
    until(|| told.exists());
    serde_json::from_slice(&fs::read(&told).unwrap()).unwrap()
}

/// A command of the operator's has no privileges, writes where the daemon may, and makes no system call that nobody needs.
#[test]
fn what_the_daemon_starts_is_confined_as_the_daemon_is() {
    let Some(host) = host("what_the_daemon_starts_is_confined_as_the_daemon_is") else { return };
    // Neither the daemon's nor a temporary directory.
    let elsewhere = tempfile::tempdir_in("/var/lib").unwrap();
    let beside = elsewhere.path().join("planted");
    let could = attempts(&host, "confined", &beside, &[]);
    for key in ["CapEff", "CapPrm", "CapAmb"] {
        assert_eq!(could[key], "0000000000000000", "{could}");
    }
    assert_eq!(could["NoNewPrivs"], "1");
    for goes_on in ["null", "fork", "inet"] {
        assert_eq!(could[goes_on], "done", "{could}");
    }
    for refused in ["unshare", "clone", "bpf", "ptrace", "io_uring", "raw"] {
        assert_eq!(could[refused], "Operation not permitted", "{could}");
    }
    assert_eq!(could["packet"], "Address family not supported by protocol", "{could}");
    if landlock() {
        assert_eq!(
            (&could["write beside"], &could["core_pattern"]),
            (&"Permission denied".into(), &"Permission denied".into())
        );
        assert!(!beside.exists());
    }

    // Whoever needs more says so at the start; privileges there are none all the same.
    let could = attempts(&host, "free", &beside, &["--unconfined"]);
    assert_eq!((&could["CapEff"], &could["NoNewPrivs"]), (&"0000000000000000".into(), &"1".into()));
    assert!(could["write beside"] == "done" && beside.exists(), "{could}");
}

/// Confinement is for good; what a running gateway is asked for has to go on within it.
#[test]
fn a_confined_daemon_is_reloaded_and_told_to_keep_things() {
    let Some(host) = host("a_confined_daemon_is_reloaded_and_told_to_keep_things") else { return };
    let _daemon = start(&host, "data_plane: userspace,", &[]);
    let ask = |args: &[&str]| {
        let o = host.ask("a", args);
        assert_eq!(o.status.code(), Some(0), "{args:?}: {:?}", told(&o));
    };
    ask(&["bandwidth", "vpc-a", "50mbit", "--save"]);
    assert!(host.path("a/bandwidth.json").exists());
    // A key in a directory that nobody knew, an address that was not there, another port.
    let keys = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let key = keys.path().join("new.psk");
    fs::write(&key, "Zq8Yw3RtVn5Lk2Hs7Pm4Xc\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    host.sh("ip address add 192.0.2.7/24 dev out");
    let config = host.path("a.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replacen("psk_file: a-b.psk", &format!("psk_file: {}", key.display()), 1);
    let text =
        text.replace("address: 192.0.2.1,", "address: [192.0.2.1, 192.0.2.7],").replace(":9180", ":9188");
    fs::write(&config, text).unwrap();
    ask(&["apply"]);
    let bound = || host.sh("ss -Hlnu").matches("192.0.2.7:").count();
    until(|| bound() == 2);
    assert!(host.sh("ss -Hlnt").contains(":9188"));
    ask(&["handover"]);
    assert!(host.path("a.sas").exists(), "what the next life needs was written");
}

/// A crash leaves no memory behind, whatever the limits were that the daemon was started with.
#[test]
fn a_crash_leaves_no_core() {
    let Some(host) = host("a_crash_leaves_no_core") else { return };
    let config = host.config("a", 9180, "192.0.2.1");
    let script = "ulimit -c unlimited; cd \"$3\" && exec \"$1\" run --config \"$2\"";
    let mut run = host.inside("sh");
    run.args(["-c", script, "sh", env!("CARGO_BIN_EXE_cygnet")]).arg(config).arg(host.path(""));
    let mut daemon = run.stderr(Stdio::null()).spawn().unwrap();
    until(|| host.ask("a", &["status"]).status.code() != Some(69));
    let signal = Command::new("kill").args(["-ABRT", &daemon.id().to_string()]).status().unwrap();
    assert!(signal.success());
    let end = daemon.wait().unwrap();
    assert_eq!((end.signal(), end.core_dumped()), (Some(6), false));
}

/// The daemon as a user with three capabilities, as a service manager can start it.
fn as_user(host: &Host, config: &Path) -> Command {
    // Open before the user changes: the way to the program need not be open to everybody.
    let script = "exec 9<\"$1\"; exec setpriv --reuid=\"$3\" --regid=\"$3\" --clear-groups \
                  --inh-caps=-all,+net_admin,+net_bind_service,+net_raw --ambient-caps=-all,+net_admin,+net_bind_service,+net_raw \
                  /proc/self/fd/9 run --config \"$2\"";
    let mut run = host.inside("sh");
    run.args(["-c", script, "sh", env!("CARGO_BIN_EXE_cygnet")]).arg(config).arg(USER.to_string());
    run
}

/// uid 0 is not needed, and then not even another process of the same user looks into the daemon.
#[test]
fn the_daemon_runs_as_another_user_than_root() {
    let Some(host) = host("the_daemon_runs_as_another_user_than_root") else { return };
    let config = host.config("a", 9180, "192.0.2.1");
    let text =
        fs::read_to_string(&config).unwrap().replacen("daemon: { ", "daemon: { data_plane: userspace, ", 1);
    fs::write(&config, text).unwrap();
    for path in [host.path(""), config.clone(), host.path("a-b.psk")] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    let daemon = Daemon(as_user(&host, &config).stderr(Stdio::null()).spawn().unwrap());
    until(|| host.ask("a", &["status"]).status.code() != Some(69));
    let process = process(&daemon);
    for thread in threads(process) {
        assert!(line(&thread, "Uid").split_whitespace().all(|uid| uid == USER.to_string()), "{thread}");
        assert_eq!(
            set(&thread, "CapEff") & !NEEDED | set(&thread, "CapAmb") | set(&thread, "CapInh"),
            0,
            "{thread}"
        );
    }
    let socket = fs::metadata(host.path("a.sock")).unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o777), (USER, 0o660));
    until(|| host.sh("tc class show dev out").contains("rate 100Mbit"));
    let look = format!("cat /proc/{process}/environ /proc/{process}/maps");
    let user = format!("--reuid={USER} --regid={USER} --clear-groups --inh-caps=-all --bounding-set=-all");
    let looked = host.sh(&format!("setpriv {user} sh -c '{look}' 2>&1; :"));
    assert_eq!(looked.matches("Permission denied").count(), 2, "{looked}");
    // Who runs the daemon is root to it.
    let ask = format!(
        "exec 9<{}; setpriv {user} /proc/self/fd/9 --control {} bandwidth vpc-a 20mbit --save",
        env!("CARGO_BIN_EXE_cygnet"),
        host.path("a.sock").display()
    );
    host.sh(&ask);
    until(|| host.sh("tc class show dev out").contains("rate 20Mbit"));
}

/// A home directory that is closed to others stays readable for the daemon that its owner has sudo start, and is warned of.
#[test]
fn files_of_somebody_else_are_in_reach_and_warned_of() {
    let Some(host) = host("files_of_somebody_else_are_in_reach_and_warned_of") else { return };
    let config = host.config("a", 9180, "192.0.2.1");
    chown(host.path(""), Some(USER), Some(USER)).unwrap();
    fs::set_permissions(host.path(""), fs::Permissions::from_mode(0o700)).unwrap();
    let daemon = Daemon(host.run(&config).stderr(Stdio::null()).spawn().unwrap());
    until(|| host.ask("a", &["status"]).status.code() != Some(69));
    let status = fs::read_to_string(format!("/proc/{}/status", process(&daemon))).unwrap();
    assert_eq!(set(&status, "CapEff"), NEEDED | 1 << 1, "CAP_DAC_OVERRIDE");
    assert_eq!(host.ask("a", &["apply"]).status.code(), Some(0));
    let doctor = String::from_utf8(host.ask("a", &["doctor"]).stdout).unwrap();
    assert!(doctor.contains("CAP_DAC_OVERRIDE, since ") && doctor.contains("a.yaml"), "{doctor}");
}

#[path = "privileges/canary.rs"]
mod canary;

/// The files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten().map(|e| e.path());
    let (dirs, mut files): (Vec<_>, Vec<_>) = entries.partition(|p| p.is_dir());
    files.retain(|p| p.is_file());
    files.extend(dirs.iter().flat_map(|d| self::files(d)));
    files
}
