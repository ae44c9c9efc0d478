//! Who is let in, with which rights, and what becomes of whoever misbehaves.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cygnet::control::client::Client;
use cygnet::control::{Access, Ask, ErrorKind, Request, Response, frame, server};
use proptest::prelude::*;
use tokio::sync::{broadcast, mpsc};

use crate::fake::Fake;

#[test]
fn the_socket_is_for_its_owner_and_group_only() {
    let fake = Fake::new();
    let mode = std::fs::metadata(fake.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

/// Groups of nobody on this host.
const READERS: u32 = 54_001;
const ADMINS: u32 = 54_002;

/// The command line as a user without privileges runs it, with these supplementary groups; exit code and what it says.
fn as_user(fake: &Fake, groups: &str, args: &[&str]) -> (Option<i32>, String) {
    // Open before the user changes: the way to the program need not be open to everybody.
    let script = "exec 9<\"$1\"; groups=$2; shift 2; \
                  exec setpriv --reuid=54000 --regid=54000 --groups=\"$groups\" /proc/self/fd/9 \"$@\"";
    let o = Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_cygnet"), groups, "--control"])
        .arg(fake.path())
        .args(args)
        .output()
        .unwrap();
    (o.status.code(), String::from_utf8(o.stderr).unwrap())
}

/// A role by groups: some look, some change what runs, and only root names files or ends the daemon.
#[test]
fn readers_look_admins_change_and_root_names_files() {
    if !nix::unistd::geteuid().is_root() {
        println!(
            "readers_look_admins_change_and_root_names_files is skipped: it needs root, to become others"
        );
        return;
    }
    let gid = |g| Some(nix::unistd::Gid::from_raw(g));
    let fake = Fake::open_to(Access { readers: gid(READERS), admins: gid(ADMINS) });
    std::fs::set_permissions(fake.dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let (reader, admin) = (READERS.to_string(), format!("{ADMINS},{READERS}"));
    let (code, err) = as_user(&fake, "54000", &["status"]);
    assert!(code == Some(77) && err.contains("no permission to use"), "{code:?} {err}");
    for look in [&["status", "a-b"][..], &["explain", "a-b"], &["top", "--json"], &["limit", "vpc-a"]] {
        let (code, err) = as_user(&fake, &reader, look);
        assert!(code == Some(0) && err.is_empty(), "{look:?}: {code:?} {err}");
    }
    let order: [&[&str]; 8] = [
        &["up", "a-b"],
        &["down", "a-b"],
        &["rekey", "a-b"],
        &["rekey", "--all"],
        &["reset", "a-b"],
        &["bandwidth", "vpc-a", "10mbit"],
        &["limit", "vpc-a", "10.1.0.5", "block"],
        &["plan"],
    ];
    for order in order {
        let (code, err) = as_user(&fake, &reader, order);
        assert!(
            code == Some(77) && err.contains("may look") && err.contains("admin_group"),
            "{order:?}: {code:?} {err}"
        );
        let (code, err) = as_user(&fake, &admin, order);
        assert!(code != Some(77), "{order:?}: {err}");
    }
    for (order, why) in [
        (&["apply"][..], "may look"),
        (&["plan", "--config", "/etc/hostname"], "only root may name a file"),
        (&["handover"], "only root may have the daemon end"),
    ] {
        let who = if order.len() == 1 && order == ["apply"] { &reader } else { &admin };
        let (code, err) = as_user(&fake, who, order);
        assert!(code == Some(77) && err.contains(why), "{order:?}: {code:?} {err}");
    }
}

#[test]
fn a_second_daemon_is_refused_and_a_stale_socket_is_replaced() {
    let fake = Fake::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let error = server::bind(&fake.path(), Access::default()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        let stale = fake.dir.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let socket = server::bind(&stale, Access::default()).unwrap();
        assert!(stale.exists());
        drop(socket);
        assert!(!stale.exists());
    });
}

/// T101: too large, half, garbage, and what is left for others meanwhile.
#[test]
fn hostile_clients_are_let_go_and_others_served() {
    let fake = Fake::new();
    let mut large = fake.raw();
    large.write_all(&(100u32 << 20).to_be_bytes()).unwrap();
    let mut half = fake.raw();
    half.write_all(&[0, 0]).unwrap();
    let mut garbage = fake.raw();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut wrong = fake.raw();
    wrong.write_all(&frame::encode(&serde_json::json!({ "verb": "status", "extra": 1 })).unwrap()).unwrap();
    for hostile in [&mut large, &mut garbage, &mut wrong] {
        let mut prefix = [0; 4];
        hostile.read_exact(&mut prefix).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(prefix) as usize];
        hostile.read_exact(&mut answer).unwrap();
        let answer: Response = frame::decode(&answer).unwrap();
        assert!(matches!(answer, Response::Error { kind: ErrorKind::BadRequest, .. }), "{answer:?}");
    }
    assert!(matches!(fake.ask(&Request::Status { name: None }), Response::Status { .. }));
    let mut rest = Vec::new();
    half.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

/// T101: whoever connects and says nothing is bounded, and keeps nobody of the same rights out.
#[test]
fn a_crowd_of_idle_clients_is_bounded_and_keeps_nobody_out() {
    let fake = Fake::new();
    let crowd: Vec<UnixStream> = (0..300).map(|_| fake.raw()).collect();
    for _ in 0..20 {
        assert!(matches!(fake.ask(&Request::Status { name: None }), Response::Status { .. }));
    }
    // As many as there are seats still sit there; the others were sent away.
    let sits = |mut s: &UnixStream| {
        s.set_nonblocking(true).unwrap();
        s.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    };
    let sitting = crowd.iter().filter(|s| sits(s)).count();
    assert!((1..=64).contains(&sitting), "{sitting}");
}

#[test]
fn a_client_that_hangs_up_stops_waiting_for() {
    let (tx, mut rx) = mpsc::channel::<Ask>(1);
    let (events, _) = broadcast::channel(1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let socket = runtime.block_on(async { server::bind(&path, Access::default()).unwrap() });
    runtime.spawn(server::serve(socket, tx, events));
    let mut client = UnixStream::connect(&path).unwrap();
    let request = Request::Up { tunnel: "a".into(), timeout_s: 600 };
    client.write_all(&frame::encode(&request).unwrap()).unwrap();
    let mut ask = runtime.block_on(async { rx.recv().await }).unwrap();
    assert_eq!(ask.request, request);
    drop(client);
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(5), ask.reply.closed()).await })
        .unwrap();
}

#[test]
fn a_daemon_that_ends_says_so() {
    let (tx, mut rx) = mpsc::channel::<Ask>(1);
    let (events, _) = broadcast::channel(1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let socket = runtime.block_on(async { server::bind(&path, Access::default()).unwrap() });
    let serving = runtime.spawn(server::serve(socket, tx, events));
    runtime.spawn(async move { drop(rx.recv().await) });
    let answer = Client::connect(Path::new(&path)).unwrap().ask(&Request::Status { name: None }).unwrap();
    assert!(matches!(answer, Response::Error { kind: ErrorKind::Stopping, .. }), "{answer:?}");
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), serving).await }).unwrap().unwrap();
    assert!(!path.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_frame_panics(body in prop::collection::vec(any::<u8>(), 0..200), prefix: [u8; 4]) {
        let _ = frame::decode::<Request>(&body);
        let _ = frame::decode::<Response>(&body);
        if let Ok(n) = frame::length(prefix, frame::MAX_REQUEST) {
            prop_assert!(n <= frame::MAX_REQUEST);
        }
    }

    #[test]
    fn mutated_requests_never_panic(at in 0usize..80, with: u8) {
        let request = Request::Rekey { tunnel: "a-b".into(), ike: true, timeout_s: 30 };
        let mut body = frame::encode(&request).unwrap()[4..].to_vec();
        let n = at % body.len();
        body[n] = with;
        if let Ok(read) = frame::decode::<Request>(&body) {
            let again: Request = frame::decode(&frame::encode(&read).unwrap()[4..]).unwrap();
            prop_assert_eq!(again, read);
        }
    }
}
