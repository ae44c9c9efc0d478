//! The control socket from both ends: a fake driver answers, the binary and hostile clients ask.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cygnet::config::lines::{Key, Place};
use cygnet::control::client::Client;
use cygnet::control::proto::LimitStatus;
use cygnet::control::{Access, Ask, ErrorKind, Request, Response, frame, server};
use cygnet::observe::events::{Event, Kind};
use cygnet::observe::explain::{Explanation, explain};
use cygnet::observe::snapshot::{Role as PairRole, *};
use cygnet::observe::top::{IpPeak, IpTotals, LoudPeer, TopPeers, TopTunnels, TunnelTotals};
use cygnet_ike::account::{Account, Role};
use cygnet_model::{Now, Timestamp};
use proptest::prelude::*;
use tokio::sync::{broadcast, mpsc};

/// A server with a driver that answers by the book, on threads of its own.
struct Fake {
    dir: tempfile::TempDir,
    events: broadcast::Sender<Event>,
    _runtime: tokio::runtime::Runtime,
}

fn tunnel(name: &str, state: TunnelState) -> TunnelStatus {
    TunnelStatus {
        made_s: 0,
        name: name.into(),
        gateway: "vpc-a".into(),
        customer_gateway: "idc-b".into(),
        state,
        since: "2026-01-01T00:00:00Z".into(),
        last_error: None,
        start: "active".into(),
        wanted: true,
        retry_in_s: None,
        path: None,
        ike: None,
        children: vec![],
        coverage: CoverageStatus::default(),
        rules: vec![],
        unanswered_s: None,
        quality: None,
        shares_with: vec![],
        warnings: vec![],
        bandwidth: None,
        bandwidth_in: None,
        legacy: LegacyStatus::default(),
    }
}

/// Of a rule of two remote networks the peer took one and refused the other.
fn partly() -> TunnelStatus {
    let nets = ["10.2.0.0/16", "10.3.0.0/16"].map(str::to_owned);
    let missing = MissingStatus { local: "10.1.0.0/16".into(), remote: nets[1].clone(), partly: false };
    let refused = "ts_unacceptable: 192.0.2.2:4500 answers CREATE_CHILD_SA for 10.1.0.0/16 -> 10.3.0.0/16 with \
                   TS_UNACCEPTABLE";
    TunnelStatus {
        last_error: Some(refused.into()),
        coverage: CoverageStatus { pairs: 2, covered: 1, missing: vec![missing] },
        rules: vec![RuleStatus {
            local: vec!["10.1.0.0/16".into()],
            remote: nets.to_vec(),
            state: RuleState::Up,
            pairs: 2,
            covered: 1,
            last_error: Some(refused.into()),
            retry_in_s: Some(75),
        }],
        ..tunnel("a-e", TunnelState::Up)
    }
}

fn snapshot() -> Snapshot {
    let child = ChildStatus {
        local: vec!["10.1.0.0/16".into()],
        remote: vec!["10.2.0.0/16".into()],
        spi_in: "c0ffee00".into(),
        spi_out: "0badcafe".into(),
        proposal: "aes256gcm16-x25519-esn".into(),
        bytes_in: 123_456_789,
        packets_in: 98_765,
        bytes_out: 1536,
        packets_out: 12,
        drops: Drops { replay: 3, integrity: 0 },
        rekey_in_s: 3000,
        expires_in_s: Some(3600),
        age_s: 600,
        rule: Some(0),
    };
    let up = TunnelStatus {
        path: Some(PathStatus { local: "192.0.2.1:4500".into(), remote: "192.0.2.2:4500".into() }),
        ike: Some(IkeStatus {
            spi_i: "0011223344556677".into(),
            spi_r: "8899aabbccddeeff".into(),
            role: IkeRole::Initiator,
            proposal: "aes256gcm16-prfsha384-x25519".into(),
            nat: Nat::Remote,
            rekey_in_s: 80_000,
            peer_id: Some("idc-b.example.net".into()),
        }),
        children: vec![child],
        ..tunnel("a-b", TunnelState::Up)
    };
    let failed = TunnelStatus {
        last_error: Some("no matching proposal (configured x, received \u{1b}[31my)\nnext".into()),
        retry_in_s: Some(12),
        ..tunnel("a-c", TunnelState::Failed)
    };
    let again = TunnelStatus {
        last_error: Some("peer_unreachable: 192.0.2.9:500 does not answer IKE_SA_INIT".into()),
        ..tunnel("a-d", TunnelState::Failed)
    };
    Snapshot {
        data_plane: "userspace".into(),
        data_plane_reason: "the kernel has no ESP".into(),
        daemon_version: "0.0.0".into(),
        started: "2026-01-01T00:00:00Z".into(),
        gateways: vec![GatewayStatus {
            name: "vpc-a".into(),
            address: "192.0.2.1".into(),
            bandwidth_bps: Some(100_000_000),
            bandwidth_origin: cygnet::observe::snapshot::Origin::default(),
            bandwidth_in: None,
            tx_bps: 1_500_000,
            rx_bps: 0,
            role: PairRole::Single,
            used: QuotaUse::default(),
            limits: LimitCount { rates: 2, blocked: 1, by_command: 1 },
        }],
        tunnels: vec![up.into(), failed.into(), again.into(), partly().into()],
        ..Snapshot::default()
    }
}

/// The answer to `status`, of everything or of one tunnel.
fn of(name: Option<&str>) -> Response {
    let mut snapshot = snapshot();
    snapshot.tunnels.retain(|t| name.is_none_or(|name| t.name == name));
    if snapshot.tunnels.is_empty() {
        return Response::error(ErrorKind::NotFound, "there is no such tunnel");
    }
    Response::Status { snapshot: Box::new(snapshot) }
}

/// What `explain` answers: an authentication that succeeded, or a refusal before it.
fn explanation(tunnel: &str) -> Explanation {
    use cygnet_ike::account::{Item, Outcome, Party, Stage, Standing, Topic, Verdict, Why};
    let good = |topic, ours: &str, theirs: Option<&str>, what: &str, why| Item {
        topic,
        ours: ours.into(),
        theirs: theirs.map(Into::into),
        verdict: Verdict::Chosen(what.into(), why),
    };
    let bad = |topic, ours: &str, theirs: Option<&str>, why: &str| Item {
        topic,
        ours: ours.into(),
        theirs: theirs.map(Into::into),
        verdict: Verdict::Refused { by: Party::We, why: why.into() },
    };
    let (us, they) = ("ID_IPV4_ADDR \"192.0.2.1\"", "ID_FQDN \"idc-b.example\"");
    let agreed = Account {
        stage: Stage::Auth,
        role: Role::Responder,
        peer: "192.0.2.2:4500".parse().unwrap(),
        standing: Standing::Authenticated,
        outcome: Outcome::Agreed,
        items: vec![
            good(
                Topic::IkeProposal,
                "aes256gcm16-prfsha384-x25519, aes256-sha256-modp2048",
                Some("aes256-sha256-modp2048, aes128-sha1-[key exchange group 99]"),
                "aes256-sha256-modp2048",
                Why::FirstCommon,
            ),
            good(Topic::OurIdentity, us, None, us, Why::Configured),
            good(Topic::PeerIdentity, "anybody", Some(they), they, Why::Anybody),
            good(Topic::Authentication, "pre-shared key", None, "pre-shared key", Why::Proven),
            good(Topic::OurNetworks, "10.1.0.0/16", Some("10.0.0.0/8"), "10.1.0.0/16", Why::Configured),
            Item {
                topic: Topic::ChildKeyExchange,
                ours: "none".into(),
                theirs: Some("x25519".into()),
                verdict: Verdict::Ahead("the first rekey will be refused".into()),
            },
        ],
    };
    let refused = Account {
        stage: Stage::Init,
        role: Role::Responder,
        standing: Standing::Claimed,
        outcome: Outcome::Refused {
            by: Party::We,
            reason: cygnet_ike::FailureReason::NoProposalChosen,
            detail: "192.0.2.2:500 offers no IKE proposal that we accept \u{1b}[2J".into(),
        },
        items: vec![
            bad(
                Topic::IkeProposal,
                "aes256gcm16-prfsha384-x25519",
                Some("aes128-sha1-modp1024, aes128-sha256-modp2048"),
                "encryption: the peer offers aes128, we want aes256gcm16",
            ),
            bad(Topic::KeyExchange, "x25519", Some("modp1024, modp2048"), "no group in common"),
            Item {
                topic: Topic::Authentication,
                ours: "pre-shared key".into(),
                theirs: None,
                verdict: Verdict::Open,
            },
        ],
        ..agreed.clone()
    };
    let at = |s: u64| Now { mono: Timestamp::from_nanos(s * 1_000_000_000), unix: 1_767_225_600 + s };
    let (older, newer) = ((at(100), agreed), (at(200), refused));
    let told = if tunnel == "a-b" { vec![&older] } else { vec![&newer, &older] };
    let place = |key: Key| {
        let (line, path, written) = match key {
            Key::IkeProposals => (12, "tunnels[0].ike.proposals", true),
            _ => (7, "tunnels[0].esp.proposals", false),
        };
        Some(("/etc/cygnet/cygnet.yaml".to_owned(), Place { line, path: path.into(), written }))
    };
    explain(tunnel, if tunnel == "new" { &[] } else { &told }, at(275), &place)
}

/// A host that is downloading and has a limit, one that is blocked, and one that has long been quiet.
fn ips(looks: u64) -> Vec<IpTotals> {
    let quiet = IpTotals {
        gateway: "vpc-a".into(),
        ip: "10.1.0.7".parse().unwrap(),
        bytes_in: 900_000,
        packets_in: 900,
        bytes_out: 0,
        packets_out: 0,
        dropped: 0,
        now_in: 0,
        now_out: 0,
        minute_in: 0,
        minute_out: 0,
        day_in: 900_000,
        day_out: 0,
        limit: None,
    };
    let blocked = IpTotals {
        ip: "fd01::9".parse().unwrap(),
        bytes_in: 0,
        dropped: 7 * looks,
        limit: Some("block".into()),
        ..quiet.clone()
    };
    let busy = IpTotals {
        ip: "10.1.0.5".parse().unwrap(),
        bytes_in: 250_000 * looks,
        minute_in: 15_000_000,
        limit: Some("2mbit".into()),
        ..quiet.clone()
    };
    vec![quiet, blocked, busy]
}

fn peaks(since_s: u64) -> Vec<IpPeak> {
    vec![IpPeak {
        gateway: "vpc-a".into(),
        ip: "10.1.0.5".parse().unwrap(),
        bytes_in: 1_000_000 * since_s,
        bytes_out: 0,
        peak_bps: 95_000_000,
        peak_at: "2026-01-01T03:17:00Z".into(),
        limit: None,
    }]
}

fn limits() -> Vec<LimitStatus> {
    let status = |ip: &str, rate: &str, origin, dropped| LimitStatus {
        ip: ip.parse().unwrap(),
        rate: rate.into(),
        origin,
        dropped,
    };
    vec![status("10.1.0.5", "2mbit", Origin::Saved, 12), status("fd01::9", "block", Origin::Configuration, 0)]
}

/// The last events: two about a tunnel, one about none.
fn kept() -> Vec<Event> {
    let event = |seq, event: Event| Event { seq, ..event };
    vec![
        event(1, Event::new(1, Kind::Started, "the daemon is ready")),
        event(2, Event::new(2, Kind::TunnelUp, "up").tunnel("a-b")),
        event(3, Event::new(3, Kind::TunnelFailed, "no").tunnel("a-b").code(Some("no_proposal_chosen"))),
    ]
}

async fn driver(mut asks: mpsc::Receiver<Ask>) {
    // Holding a reply open is how the driver lets a client wait.
    let mut waiting = Vec::new();
    let mut looks = 0;
    while let Some(Ask { request, reply }) = asks.recv().await {
        let answer = match request {
            Request::Status { name } => of(name.as_deref()),
            Request::Up { tunnel, .. } if tunnel == "a-b" => Response::done("tunnel a-b is up"),
            Request::Up { tunnel, .. } if tunnel == "slow" => {
                waiting.push(reply);
                continue;
            }
            Request::Up { .. } | Request::Down { .. } => {
                Response::error(ErrorKind::NotFound, "there is no such tunnel")
            }
            Request::Rekey { ike, .. } => {
                Response::done(if ike { "IKE SA rekeyed" } else { "children rekeyed" })
            }
            Request::RekeyAll { gateway, ike, timeout_s } => {
                Response::done(format!("{gateway:?} {ike} {timeout_s}"))
            }
            Request::Reset { .. } => Response::error(ErrorKind::Failed, "no matching\u{1b}[2J proposal"),
            Request::Bandwidth { bps, inward: true, .. } => Response::done(format!("{bps:?} inward")),
            Request::Bandwidth { bps, .. } => Response::done(format!("{bps:?}")),
            Request::Limit { limits, save, .. } => Response::done(format!("{limits:?} {save}")),
            Request::Limits { .. } => Response::Limits { limits: limits() },
            Request::TopPeaks { since_s, .. } => Response::TopPeaks { peaks: peaks(since_s) },
            Request::Handover {} => Response::done("the tunnels are left to the next daemon"),
            Request::Logs { .. } => {
                Response::Events { events: vec![Event::new(0, Kind::TunnelUp, "up").tunnel("a-b")] }
            }
            Request::Quality { .. } => Response::Quality {
                minutes: vec![MinuteStatus {
                    time: "2026-01-01T00:00:00Z".into(),
                    probes: 60,
                    lost: 3,
                    loss_ratio: 0.05,
                    delay_ms: Some(21.25),
                    delay_min_ms: Some(20.0),
                    delay_max_ms: Some(30.5),
                    jitter_ms: None,
                }],
            },
            Request::Plan { .. } => {
                Response::Plan { plan: Box::new(cygnet::config::diff::Plan::default()), applied: false }
            }
            Request::Apply { .. } => {
                Response::BadConfig { problems: vec!["a.yaml:1:1: error: x: bad\u{1b}[2J; fix".into()] }
            }
            Request::TopTunnels { gateway: Some(name) } if name != "vpc-a" => {
                Response::error(ErrorKind::NotFound, "there is no such gateway")
            }
            Request::TopTunnels { .. } => {
                // A second between two looks, and a thousand octets.
                looks += 1;
                let busy = TunnelTotals {
                    tunnel: "a-b".into(),
                    gateway: "vpc-a".into(),
                    bytes_out: looks * 1000,
                    packets_out: looks * 10,
                    ..TunnelTotals::default()
                };
                let idle = TunnelTotals { tunnel: "a-c".into(), ..busy.clone() };
                let idle = TunnelTotals { bytes_out: 5_000_000, packets_out: 9, ..idle };
                Response::TopTunnels {
                    top: TopTunnels {
                        at_ns: looks * 1_000_000_000,
                        tunnels: vec![idle, busy],
                        ips: ips(looks),
                        counts_ips: true,
                    },
                }
            }
            Request::TopPeers {} => {
                let loud = LoudPeer {
                    source: "203.0.113.9".into(),
                    refused: 12,
                    over: 0,
                    reasons: [("unknown_peer".into(), 2), ("cookie_demanded".into(), 10)].into(),
                    last_s: 3,
                    customer_gateway: None,
                };
                let ours = LoudPeer {
                    source: "2001:db8::/64".into(),
                    refused: 5,
                    over: 2,
                    reasons: [("mal\u{1b}[2Jformed".into(), 3)].into(),
                    last_s: 200,
                    customer_gateway: Some("idc-b".into()),
                };
                Response::TopPeers { top: TopPeers { window_s: 300, peers: vec![loud, ours] } }
            }
            Request::Explain { tunnel } => {
                Response::Explained { explanation: Box::new(explanation(&tunnel)) }
            }
            Request::Diagnose { .. } => Response::error(ErrorKind::NotFound, "there is no such tunnel"),
            Request::Doctor {} => Response::Findings { findings: vec![] },
            Request::Names {} => {
                Response::Names { tunnels: vec!["a-b".into(), "b-a".into()], gateways: vec!["vpc-a".into()] }
            }
            Request::Recent { tunnels, .. } if tunnels.iter().any(|t| t == "nobody") => {
                Response::error(ErrorKind::NotFound, "there is no such tunnel")
            }
            Request::Recent { .. } => Response::Events { events: kept() },
            Request::Metrics {} | Request::Recording {} => Response::Text { text: "text\n".into() },
            Request::Events {} => panic!("the driver never sees this"),
        };
        let _ = reply.send(answer);
    }
}

impl Fake {
    fn new() -> Self {
        Self::open_to(Access::default())
    }

    fn open_to(access: Access) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (tx, rx) = mpsc::channel(8);
        let (events, _) = broadcast::channel(16);
        let (path, sender) = (dir.path().join("control.sock"), events.clone());
        let socket = runtime.block_on(async { server::bind(&path, access).unwrap() });
        runtime.spawn(driver(rx));
        runtime.spawn(server::serve(socket, tx, sender));
        Self { dir, events, _runtime: runtime }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn raw(&self) -> UnixStream {
        let s = UnixStream::connect(self.path()).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        s
    }

    fn ask(&self, request: &Request) -> Response {
        Client::connect(&self.path()).unwrap().ask(request).unwrap()
    }

    fn cli(&self, args: &[&str]) -> (i32, String, String) {
        let o = Command::new(env!("CARGO_BIN_EXE_cygnet"))
            .arg("--control")
            .arg(self.path())
            .args(args)
            .output()
            .unwrap();
        (o.status.code().unwrap(), String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap())
    }
}

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

#[test]
fn status_output_is_the_golden_one() {
    let fake = Fake::new();
    let (code, out, _) = fake.cli(&["status"]);
    let (_, full, _) = fake.cli(&["status", "a-b"]);
    assert_eq!(code, 1);
    let (code, json, _) = fake.cli(&["status", "--json"]);
    assert_eq!(code, 1);
    let told = format!("$ cygnet status\n{out}\n$ cygnet status a-b\n{full}\n$ cygnet status --json\n{json}");
    assert!(!out.contains('\x1b'));
    common::golden("tests/golden/status.txt", &told);
    assert_eq!(fake.cli(&["status", "a-b"]).0, 0);
    assert_eq!(fake.cli(&["status", "nobody"]).0, 64);
}

#[test]
fn explain_output_is_the_golden_one() {
    let fake = Fake::new();
    let mut told = String::new();
    for (code, args) in [
        (0, &["explain", "a-b"][..]),
        // What nobody has proven came after it, and is shown besides.
        (0, &["explain", "a-c"]),
        (0, &["explain", "--all", "a-c", "--json"]),
        (1, &["explain", "new"]),
    ] {
        let (got, out, err) = fake.cli(args);
        assert_eq!((got, &*err), (code, ""), "{args:?}");
        assert!(!out.contains('\x1b'));
        told.push_str(&format!("$ cygnet {}\n{out}\n", args.join(" ")));
    }
    common::golden("tests/golden/explain.txt", &told);
}

#[test]
fn verbs_exit_as_their_answers_say() {
    let fake = Fake::new();
    let (code, out, err) = fake.cli(&["up", "a-b"]);
    assert_eq!((code, &*out, &*err), (0, "tunnel a-b is up\n", ""));
    assert_eq!(fake.cli(&["down", "nobody"]).0, 64);
    assert_eq!(fake.cli(&["rekey", "a-b", "--ike"]).1, "IKE SA rekeyed\n");
    assert_eq!(fake.cli(&["rekey", "a-b"]).1, "children rekeyed\n");
    assert_eq!(fake.cli(&["rekey", "--all"]).1, "None false 600\n");
    let of_gateway = ["rekey", "--all", "--gateway", "vpc-a", "--ike", "--timeout", "5s"];
    assert_eq!(fake.cli(&of_gateway).1, "Some(\"vpc-a\") true 5\n");
    for wrong in [&["rekey"][..], &["rekey", "a-b", "--all"], &["rekey", "a-b", "--gateway", "vpc-a"]] {
        assert_eq!(fake.cli(wrong).0, 64, "{wrong:?}");
    }
    assert_eq!(fake.cli(&["bandwidth", "vpc-a", "1gbit"]).1, "Some(1000000000)\n");
    assert_eq!(fake.cli(&["bandwidth", "vpc-a", "unlimited"]).1, "None\n");
    assert_eq!(fake.cli(&["bandwidth", "tunnel:a-b", "5mbit", "--in"]).1, "Some(5000000) inward\n");
    for rate in ["0", "0mbit", "1000000000000", "11tbit"] {
        let (code, _, err) = fake.cli(&["bandwidth", "vpc-a", rate]);
        assert!(code == 64 && err.contains("write"), "{rate}: {code} {err}");
    }
    let asked = "[LimitAsk { ip: 10.1.0.5, rate: \"1500kbit\" }] true\n";
    assert_eq!(fake.cli(&["limit", "vpc-a", "10.1.0.5", "1.5mbit", "--save"]).1, asked);
    let lines = fake.dir.path().join("limits");
    std::fs::write(&lines, "# address, limit\n\n10.1.0.5 block  # at night\nfd01::9   unlimited\n").unwrap();
    let asked =
        "[LimitAsk { ip: 10.1.0.5, rate: \"block\" }, LimitAsk { ip: fd01::9, rate: \"unlimited\" }] false\n";
    assert_eq!(fake.cli(&["limit", "vpc-a", "--file", lines.to_str().unwrap()]).1, asked);
    let (_, out, _) = fake.cli(&["limit", "vpc-a"]);
    assert!(
        out.contains("10.1.0.5  2mbit") && out.contains("saved") && out.contains("configuration"),
        "{out}"
    );
    let (code, _, err) = fake.cli(&["reset", "a-b"]);
    assert_eq!(code, 1);
    assert!(!err.contains('\x1b') && err.contains("no matching"));
    let (code, out, _) = fake.cli(&["logs", "a-b"]);
    assert_eq!((code, out.as_str()), (0, "1970-01-01T00:00:00Z  tunnel_up           a-b  up\n"));
    let (code, out, _) = fake.cli(&["quality", "a-b", "--since", "10m"]);
    let row: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((code, row), (0, vec!["2026-01-01T00:00:00Z", "60", "3", "5.0", "21.2", "20.0", "30.5", "-"]));
}

#[test]
fn top_shows_the_busiest_tunnels_and_the_loudest_strangers() {
    let fake = Fake::new();
    let (code, out, err) = fake.cli(&["top", "--span", "10ms"]);
    assert_eq!((code, &*err), (0, ""));
    let rows: Vec<Vec<&str>> = out.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[1][..4], ["a-b", "vpc-a", "8", "kbit/s"], "{out}");
    assert_eq!(rows[2][..4], ["a-c", "vpc-a", "0", "bit/s"], "{out}");
    assert!(out.contains("\nADDRESS") && out.contains("2mbit") && out.contains("block"), "{out}");
    let (code, out, err) = fake.cli(&["top", "vpc-a", "--since", "1h"]);
    assert!(code == 0 && out.contains("10.1.0.5") && out.contains("2026-01-01T03:17:00Z"), "{out}{err}");
    let (_, json, _) = fake.cli(&["top", "vpc-a", "--since", "1h", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["peaks"][0]["bytes_in"], 3_600_000_000_u64);
    let (_, json, _) = fake.cli(&["top", "vpc-a", "--span", "10ms", "--count", "1", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["tunnels"][0]["tx_bps"].as_u64(), json["tunnels"][1].as_object()), (Some(8000), None));
    assert_eq!(fake.cli(&["top", "nobody"]).0, 64);
    assert_eq!(fake.cli(&["top", "--span", "0s"]).0, 64);

    let (code, out, _) = fake.cli(&["top", "--peers"]);
    assert!(code == 0 && !out.contains('\u{1b}'), "{out}");
    assert!(out.contains("203.0.113.9"), "{out}");
    assert!(out.contains("cookie_demanded 10, unknown_peer 2"), "{out}");
    assert!(out.lines().last().unwrap().contains("≤ 5"), "{out}");
    assert!(out.contains("idc-b"), "{out}");
}

#[test]
fn a_wait_ends_with_75_when_time_is_up() {
    let fake = Fake::new();
    let started = Instant::now();
    let (code, _, err) = fake.cli(&["up", "slow", "--timeout", "1s"]);
    assert_eq!(code, 75, "{err}");
    assert!(err.contains("not done after 1 s"), "{err}");
    assert!((1..4).contains(&started.elapsed().as_secs()));
}

#[test]
fn events_are_one_json_object_a_line() {
    let fake = Fake::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_cygnet"))
        .arg("--control")
        .arg(fake.path())
        .args(["events", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    while fake.events.receiver_count() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    for n in 0..3 {
        fake.events.send(Event::new(n, Kind::TunnelUp, "up\nand away").tunnel("a-b")).unwrap();
    }
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for n in 0..3 {
        let event: Event = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!((event.unix, event.event), (n, Kind::TunnelUp));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn events_that_were_kept_are_filtered_and_none_comes_twice() {
    let fake = Fake::new();
    let seqs = |args: &[&str]| {
        let (code, out, err) = fake.cli(&[&["events", "--json", "--no-follow"], args].concat());
        assert_eq!(code, 0, "{err}");
        let seq = |l: &str| serde_json::from_str::<Event>(l).unwrap().seq;
        out.lines().map(seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&[]), [1, 2, 3]);
    assert_eq!(seqs(&["--code", "no_proposal_chosen"]), [3]);
    assert_eq!(seqs(&["--code", "tunnel_failed", "--code", "started"]), [1, 3]);
    assert_eq!(seqs(&["--grep", "READY"]), [1]);
    assert_eq!(fake.cli(&["events", "--tunnel", "nobody"]).0, 64);

    let mut child = Command::new(env!("CARGO_BIN_EXE_cygnet"))
        .arg("--control")
        .arg(fake.path())
        .args(["events", "--json", "--since", "1h", "--tunnel", "a-b", "--timeout", "60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut next = || serde_json::from_str::<Event>(&lines.next().unwrap().unwrap()).unwrap().seq;
    // The fake's answer has one of another tunnel's, too: what was asked for is the daemon's to choose.
    assert_eq!([next(), next(), next()], [1, 2, 3]);
    for (seq, tunnel) in [(3, "a-b"), (4, "other"), (5, "a-b")] {
        fake.events.send(Event { seq, ..Event::new(9, Kind::TunnelUp, "up").tunnel(tunnel) }).unwrap();
    }
    assert_eq!(next(), 5);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_stream_ends_when_its_time_is_up() {
    let fake = Fake::new();
    assert_eq!(fake.cli(&["events", "--timeout", "200ms"]).0, 0);
    let (code, out, err) = fake.cli(&["status", "--follow", "--interval", "100ms", "--timeout", "1s"]);
    assert_eq!((code, &*err), (0, ""));
    let looks: Vec<Snapshot> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(looks.len() > 1 && looks.iter().all(|s| s.tunnels.len() == 4));
}

/// A daemon that is there and says nothing: stopped, or busy.
#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for_longer_than_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let o = Command::new(env!("CARGO_BIN_EXE_cygnet"))
        .arg("--control")
        .arg(&path)
        .args(["status", "--timeout", "300ms"])
        .output()
        .unwrap();
    let err = String::from_utf8(o.stderr).unwrap();
    assert!(o.status.code() == Some(75) && err.contains("has not answered within 300ms"), "{err}");
}

#[test]
fn following_ends_with_0_at_ctrl_c_and_outlives_the_daemon() {
    let fake = Fake::new();
    let (path, errors) = (fake.path(), fake.dir.path().join("errors"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_cygnet"))
        .arg("--control")
        .arg(&path)
        .args(["status", "--follow", "--interval", "100ms"])
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    lines.next().unwrap().unwrap();
    let aside = path.with_extension("away");
    std::fs::rename(&path, &aside).unwrap();
    let said = |words: &str| {
        let began = Instant::now();
        while !std::fs::read_to_string(&errors).unwrap().contains(words) {
            assert!(began.elapsed() < Duration::from_secs(30), "{words}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    said("is not reachable");
    std::fs::rename(&aside, &path).unwrap();
    said("answers again");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    // Whole lines to the end.
    for line in lines {
        serde_json::from_str::<Snapshot>(&line.unwrap()).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_terminal_gets_one_picture_drawn_over_the_other() {
    let fake = Fake::new();
    let exe = env!("CARGO_BIN_EXE_cygnet");
    let line = format!(
        "stty rows 12 cols 80; {exe} --control {} status --follow --interval 100ms --timeout 1s",
        fake.path().display()
    );
    let o = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let out = String::from_utf8_lossy(&o.stdout);
    let pages: Vec<&str> = out.split("\x1b[H").skip(1).collect();
    assert!(o.status.success() && pages.len() > 1, "{out:?}");
    for page in pages {
        assert!(page.contains("more lines") && page.matches('\n').count() < 12, "{page:?}");
        assert!(page.trim_end().ends_with("\x1b[?7h\x1b[J"), "{page:?}");
    }
}

#[test]
fn what_is_done_is_said_in_json_too() {
    let fake = Fake::new();
    for args in
        [&["up", "a-b"][..], &["bandwidth", "vpc-a", "1gbit"], &["limit", "vpc-a", "10.1.0.5", "block"]]
    {
        let (code, out, _) = fake.cli(&[args, &["--json"]].concat());
        let v: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &v["version"], &v["done"]), (0, &1.into(), &true.into()), "{args:?}");
    }
}

#[test]
fn completions_know_the_daemons_names() {
    let fake = Fake::new();
    let completed = |line: &[&str]| {
        let path = fake.path();
        let line: Vec<&str> = [&["cygnet", "--control", path.to_str().unwrap()], line].concat();
        let o = Command::new(env!("CARGO_BIN_EXE_cygnet"))
            .env("CYGNET_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", (line.len() - 1).to_string())
            .env("_CLAP_IFS", " ")
            .arg("--")
            .args(line)
            .output()
            .unwrap();
        String::from_utf8(o.stdout).unwrap()
    };
    assert_eq!(completed(&["up", "a"]), "a-b");
    assert_eq!(completed(&["limit", ""]).split(' ').next(), Some("vpc-a"));
    let all = completed(&["status", ""]);
    assert!(["a-b", "b-a", "vpc-a"].iter().all(|name| all.contains(name)), "{all}");
    assert_eq!(completed(&["events", "--tunnel", "b"]), "b-a");
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
