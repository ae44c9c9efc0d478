//! A server of the control socket whose driver answers by the book.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cygnet::config::lines::{Key, Place};
use cygnet::control::client::Client;
use cygnet::control::proto::LimitStatus;
use cygnet::control::{Access, Ask, ErrorKind, Request, Response, server};
use cygnet::observe::events::{Event, Kind};
use cygnet::observe::explain::{Explanation, explain};
use cygnet::observe::snapshot::{Role as PairRole, *};
use cygnet::observe::top::{IpPeak, IpTotals, LoudPeer, TopPeers, TopTunnels, TunnelTotals};
use cygnet_ike::account::{Account, Role};
use cygnet_model::{Now, Timestamp};
use tokio::sync::{broadcast, mpsc};

/// A server with a driver that answers by the book, on threads of its own.
pub struct Fake {
    pub dir: tempfile::TempDir,
    pub events: broadcast::Sender<Arc<Event>>,
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
        bytes_in: 0,
        bytes_out: 0,
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
        bytes_in: 9_876_543_210,
        bytes_out: 4096,
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
            bandwidth_used_bps: None,
            bandwidth_in_used_bps: None,
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
    pub fn new() -> Self {
        Self::open_to(Access::default())
    }

    pub fn open_to(access: Access) -> Self {
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

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    pub fn raw(&self) -> UnixStream {
        let s = UnixStream::connect(self.path()).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        s
    }

    pub fn ask(&self, request: &Request) -> Response {
        Client::connect(&self.path()).unwrap().ask(request).unwrap()
    }

    pub fn cli(&self, args: &[&str]) -> (i32, String, String) {
        let o = Command::new(env!("CARGO_BIN_EXE_cygnet"))
            .arg("--control")
            .arg(self.path())
            .args(args)
            .output()
            .unwrap();
        (o.status.code().unwrap(), String::from_utf8(o.stdout).unwrap(), String::from_utf8(o.stderr).unwrap())
    }
}
