//! Every cause from facts that show it and nothing else.

use std::collections::BTreeSet;

use cygnet_xfrm::lookup::LinkState;

use super::*;
use crate::diagnose::facts::{ConfigFacts, Inner, Known, Places};
use crate::observe::explain::{Explanation, Negotiation, Point};
use crate::observe::snapshot::{
    ChildStatus, CoverageStatus, LegacyStatus, MissingStatus, QualityStatus, TunnelState, TunnelStatus,
};

const LAN: u32 = 2;
const WAN: u32 = 3;
const TUN: u32 = 4;

fn link(index: u32, name: &str) -> LinkState {
    LinkState { index, name: name.into(), mtu: 1500, up: true, carrier: true, loopback: false }
}

const fn out(link: u32) -> Way {
    Way::Out { link, gateway: None, mtu: None }
}

fn child() -> ChildStatus {
    serde_json::from_str(
        r#"{"local": [], "remote": [], "spi_in": "", "spi_out": "", "proposal": "", "bytes_in": 1, "packets_in": 9,
            "bytes_out": 1, "packets_out": 9, "drops": {"replay": 0, "integrity": 0}, "rekey_in_s": 1}"#,
    )
    .unwrap()
}

fn status() -> TunnelStatus {
    TunnelStatus {
        made_s: 0,
        name: "a-b".into(),
        gateway: "here".into(),
        customer_gateway: "there".into(),
        state: TunnelState::Up,
        since: String::new(),
        last_error: None,
        start: "active".into(),
        wanted: true,
        retry_in_s: None,
        path: None,
        ike: None,
        bytes_in: 0,
        bytes_out: 0,
        children: vec![child()],
        coverage: CoverageStatus { pairs: 1, covered: 1, missing: vec![] },
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

fn negotiation(outcome: &str, topics: Vec<Point>) -> Negotiation {
    Negotiation {
        time: String::new(),
        ago_s: 1,
        exchange: "ike-auth".into(),
        role: "initiator".into(),
        peer: "198.51.100.1:500".into(),
        authenticated: outcome == "agreed",
        outcome: outcome.into(),
        by: None,
        reason: None,
        detail: None,
        topics,
    }
}

fn refused(topic: &str, why: &str) -> Point {
    Point {
        topic: topic.into(),
        ours: "x".into(),
        theirs: Some("y".into()),
        result: "refused".into(),
        chosen: None,
        why: Some(why.into()),
        change: None,
    }
}

/// A gateway whose only tunnel carries traffic in both directions.
fn healthy() -> Facts {
    let own: IpAddr = [192, 0, 2, 1].into();
    let known = Known {
        name: "a-b".into(),
        status: Some(status()),
        own: vec![own],
        peer_name: None,
        peers: vec![[198, 51, 100, 1].into()],
        inner: vec![([10, 1, 0, 2].into(), [10, 2, 0, 1].into())],
        places: Places::default(),
        explanation: Some(Explanation {
            version: 1,
            tunnel: "a-b".into(),
            negotiations: vec![negotiation("agreed", vec![])],
        }),
    };
    Facts {
        daemon: Ok(DaemonFacts {
            data_plane: "userspace".into(),
            file: "/etc/cygnet/cygnet.yaml".into(),
            wall: true,
            obstacles: vec![],
            findings: vec![],
            tunnels: vec![],
        }),
        config: ConfigFacts::default(),
        host: HostFacts {
            links: vec![link(LAN, "lan"), link(WAN, "wan"), link(TUN, "cygnet0")],
            addresses: BTreeSet::from([own]),
            forwarding: (Some(true), Some(true)),
            dropping: Some(vec![]),
            ..HostFacts::default()
        },
        tunnels: vec![TunnelFacts {
            known,
            resolved: None,
            outer: Some(out(WAN)),
            probed: None,
            inner: Some(Inner { to_remote: out(TUN), to_local: out(LAN) }),
        }],
        named: true,
    }
}

/// The same, and the tunnel is not up, although the peer answers.
fn down(state: TunnelState) -> Facts {
    let mut f = healthy();
    tunnel_of(&mut f).state = state;
    f.tunnels[0].known.explanation =
        Some(Explanation { version: 1, tunnel: String::new(), negotiations: vec![] });
    probes(&mut f, Echo::Answer, Echo::Answer);
    f
}

fn tunnel_of(f: &mut Facts) -> &mut TunnelStatus {
    f.tunnels[0].known.status.as_mut().unwrap()
}

/// Gives the tunnel a health check with this result.
fn probed<'a>(f: &'a mut Facts, health: &str, cause: Option<&str>) -> &'a mut QualityStatus {
    tunnel_of(f).quality.insert(QualityStatus {
        health: health.into(),
        cause: cause.map(str::to_owned),
        since: String::new(),
        probe: "icmp".into(),
        target: "10.2.0.1".into(),
        port: None,
        source: None,
        problem: None,
        probes: 20,
        lost: 5,
        lost_there: None,
        loss_ratio: Some(0.25),
        delay_ms: None,
        delay_min_ms: None,
        delay_max_ms: None,
        jitter_ms: None,
    })
}

fn probes(f: &mut Facts, ike: Echo, natt: Echo) {
    f.tunnels[0].probed = Some(Probed { ike, natt });
}

fn told(f: &mut Facts, n: Negotiation) {
    f.tunnels[0].known.explanation.as_mut().unwrap().negotiations.insert(0, n);
}

fn finding(f: &mut Facts, name: &str, verdict: Verdict, detail: &str) {
    let finding = Finding { name: name.into(), verdict, detail: detail.into(), fix: String::new() };
    f.daemon.as_mut().unwrap().findings.push(finding);
}

fn filter(f: &mut Facts, place: Place) {
    let all = f.host.dropping.as_mut().unwrap();
    all.push(Dropping { place, family: "ip", table: "filter".into(), chain: "X".into() });
}

/// The facts of each cause.
fn facts_of(cause: Cause) -> Facts {
    let router: Option<IpAddr> = Some([192, 0, 2, 254].into());
    let mut f = match cause.layer() {
        crate::diagnose::Layer::Reach | crate::diagnose::Layer::Names | crate::diagnose::Layer::Route => {
            down(TunnelState::Failed)
        }
        crate::diagnose::Layer::Negotiation => down(TunnelState::Failed),
        _ => healthy(),
    };
    let refuse = |f: &mut Facts, topics: Vec<Point>| told(f, negotiation("refused", topics));
    match cause {
        Cause::DaemonUnreachable => {
            f.daemon = Err("not reachable".into());
            f.tunnels.clear();
        }
        Cause::ConfigInvalid => f.config.errors = vec!["a.yaml:1:1: error: x".into()],
        Cause::ConfigNotApplied => f.config.changed = true,
        Cause::TakenDown => tunnel_of(&mut f).state = TunnelState::Down,
        Cause::WaitsForTraffic => {
            f = down(TunnelState::Waiting);
            tunnel_of(&mut f).start = "on-demand".into();
        }
        Cause::WaitsForPeer => {
            f = down(TunnelState::Waiting);
            tunnel_of(&mut f).start = "passive".into();
        }
        Cause::NameUnresolved => {
            f.tunnels[0].known.peer_name = Some("idc.example".into());
            f.tunnels[0].known.peers.clear();
            f.tunnels[0].resolved = Some(Err("Name or service not known".into()));
        }
        Cause::AddressAbsent => f.host.addresses = [IpAddr::from([127, 0, 0, 1])].into(),
        Cause::PortTaken => {
            finding(&mut f, "address", Verdict::Error, "UDP 500 and 4500 of 192.0.2.1 cannot be used")
        }
        Cause::PeerIsHere => f.tunnels[0].outer = Some(Way::Local),
        Cause::NoRoute => f.tunnels[0].outer = Some(Way::Nowhere(Dead::NoRoute)),
        Cause::LinkDown => f.host.links[1].carrier = false,
        Cause::OuterIntoTunnel => f.tunnels[0].outer = Some(out(TUN)),
        Cause::LocalFirewall => probes(&mut f, Echo::RefusedHere, Echo::Answer),
        Cause::FirewallInput => {
            f = down(TunnelState::Waiting);
            filter(&mut f, Place::Input);
            probes(&mut f, Echo::Silence, Echo::Silence);
        }
        Cause::PeerUnreachable => probes(&mut f, Echo::Unreachable(router), Echo::Silence),
        Cause::Prohibited => probes(&mut f, Echo::Prohibited(router), Echo::Silence),
        Cause::PeerNotListening => probes(&mut f, Echo::PortUnreachable, Echo::PortUnreachable),
        Cause::Udp500Filtered => probes(&mut f, Echo::Silence, Echo::Answer),
        Cause::Udp4500Filtered => probes(&mut f, Echo::Answer, Echo::Silence),
        Cause::PeerSilent => probes(&mut f, Echo::Silence, Echo::Silence),
        Cause::PeerIgnoresUs => told(&mut f, negotiation("unanswered", vec![])),
        Cause::IkeProposal => refuse(&mut f, vec![refused("ike-proposal", "encryption: …; PRF: …")]),
        Cause::KeyExchange => refuse(
            &mut f,
            vec![
                refused("ike-proposal", "key exchange group: …"),
                refused("key-exchange", "no group in common"),
            ],
        ),
        Cause::PeerIdentity => refuse(&mut f, vec![refused("peer-identity", "the peer is somebody else")]),
        Cause::OwnIdentity => {
            refuse(&mut f, vec![refused("our-identity", "the peer asks for somebody else")])
        }
        Cause::PresharedKey => refuse(&mut f, vec![refused("authentication", "another key")]),
        Cause::RefusedByPeer => {
            let all = ["our-identity", "peer-identity", "authentication"];
            refuse(&mut f, all.map(|topic| refused(topic, "untold")).to_vec());
        }
        Cause::EspProposal => {
            refuse(&mut f, vec![refused("esp-proposal", "untold"), refused("child-key-exchange", "untold")]);
        }
        Cause::Pfs => refuse(&mut f, vec![refused("child-key-exchange", "key exchange group: …")]),
        Cause::Networks => refuse(&mut f, vec![refused("our-networks", "…"), refused("peer-networks", "…")]),
        Cause::PeerError => {
            let reason = Some("invalid_syntax".into());
            told(&mut f, Negotiation { reason, ..negotiation("refused", vec![]) });
        }
        Cause::PlaneRefused => {
            f = down(TunnelState::Failed);
            tunnel_of(&mut f).last_error = Some("data_plane: no such AEAD".into());
        }
        Cause::EspBlocked => {
            f.tunnels.clear();
            f.daemon = Err("not reachable".into());
            f.config.wants_kernel = true;
            f.host.no_esp = Some(("blocked".into(), "take it out".into()));
        }
        Cause::PartlyCarried => {
            let missing = MissingStatus { local: "l".into(), remote: "r".into(), partly: false };
            tunnel_of(&mut f).coverage = CoverageStatus { pairs: 2, covered: 1, missing: vec![missing] };
        }
        Cause::PeerForgot => finding(&mut f, "drops", Verdict::Warning, "unknown_spi: …"),
        Cause::Replayed => finding(&mut f, "drops", Verdict::Warning, "replay: …"),
        Cause::Altered => finding(&mut f, "drops", Verdict::Warning, "XfrmInStateProtoError: …"),
        Cause::NetworksDiffer => finding(&mut f, "drops", Verdict::Warning, "selectors: …"),
        Cause::TooBig => finding(&mut f, "drops", Verdict::Warning, "too_big: …"),
        Cause::PolicyInFront => {
            let what =
                Finding { name: "x".into(), verdict: Verdict::Error, detail: "d".into(), fix: "f".into() };
            f.daemon.as_mut().unwrap().obstacles.push(what);
        }
        Cause::WallDown => f.daemon.as_mut().unwrap().wall = false,
        Cause::ForwardingOff => f.host.forwarding.0 = Some(false),
        Cause::IpsecOff => finding(&mut f, "host", Verdict::Warning, "net.ipv4.conf.wan.disable_xfrm is set"),
        Cause::ReversePath => {
            f.daemon.as_mut().unwrap().data_plane = "kernel".into();
            f.host.strict = ["wan".to_owned()].into();
            f.tunnels[0].inner = Some(Inner { to_remote: out(LAN), to_local: out(LAN) });
        }
        Cause::RouteAround => f.tunnels[0].inner = Some(Inner { to_remote: out(WAN), to_local: out(LAN) }),
        Cause::NoInnerRoute => {
            f.tunnels[0].inner = Some(Inner { to_remote: Way::Nowhere(Dead::NoRoute), to_local: out(LAN) });
        }
        Cause::LocalNotAttached => {
            f.tunnels[0].inner = Some(Inner { to_remote: out(TUN), to_local: out(WAN) })
        }
        Cause::FirewallForward => {
            filter(&mut f, Place::Forward);
            tunnel_of(&mut f).children[0].packets_out = 0;
        }
        Cause::PathMtu => f.tunnels[0].outer = Some(Way::Out { link: WAN, gateway: None, mtu: Some(1400) }),
        Cause::NothingComesBack => tunnel_of(&mut f).children[0].packets_in = 0,
        Cause::NothingAnswers => tunnel_of(&mut f).children[0].packets_out = 0,
        Cause::NotProbed => probed(&mut f, "unknown", None).problem = Some("no own address there".into()),
        Cause::TargetSilent => {
            probed(&mut f, "degraded", Some("no_answer"));
        }
        Cause::LineDegraded => {
            probed(&mut f, "degraded", Some("delay")).delay_ms = Some(412.3);
        }
    }
    f
}

#[test]
fn each_cause_is_found_alone_and_says_what_to_do_in_one_line() {
    for cause in Cause::ALL {
        let found = judge(&facts_of(*cause));
        let expected = match cause {
            // Without a daemon that is told first.
            Cause::EspBlocked => vec![Cause::DaemonUnreachable, *cause],
            _ => vec![*cause],
        };
        assert_eq!(found.iter().map(|f| f.cause).collect::<Vec<_>>(), expected, "{found:#?}");
        for f in &found {
            assert!(!f.detail.is_empty() && !f.fix.is_empty(), "{f:?}");
            assert!(!format!("{}{}", f.detail, f.fix).contains('\n'), "{f:?}");
        }
    }
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    assert_eq!(judge(&healthy()), []);
    // Idle is not ill, nor is a filter that lets the tunnel through.
    let mut idle = healthy();
    tunnel_of(&mut idle).children[0] = ChildStatus { packets_in: 0, packets_out: 0, ..child() };
    assert_eq!(judge(&idle), []);
    // What leaves by this tunnel comes back by another one.
    let mut sharing = healthy();
    tunnel_of(&mut sharing).children[0].packets_in = 0;
    tunnel_of(&mut sharing).shares_with = vec!["a-c".into()];
    assert_eq!(judge(&sharing), []);
    let mut good = healthy();
    probed(&mut good, "good", None);
    assert_eq!(judge(&good), []);
    let mut filtered = healthy();
    filter(&mut filtered, Place::Forward);
    filter(&mut filtered, Place::Input);
    assert_eq!(judge(&filtered), []);
    // A strict filter where packets go back the way they came.
    let mut strict = healthy();
    strict.host.strict = ["lan", "wan", "cygnet0"].map(str::to_owned).into();
    assert_eq!(judge(&strict), []);
}

#[test]
fn probes_that_this_host_does_not_forward_are_no_cause_of_their_own() {
    let mut f = facts_of(Cause::ForwardingOff);
    probed(&mut f, "degraded", Some("no_answer"));
    assert_eq!(judge(&f).iter().map(|f| f.cause).collect::<Vec<_>>(), [Cause::ForwardingOff]);
}

/// A tunnel that waits as it shall is told to whoever asks about it, and is no fault of a gateway.
#[test]
fn waiting_is_told_of_a_tunnel_that_was_asked_for() {
    let mut f = facts_of(Cause::WaitsForPeer);
    assert_eq!(judge(&f).len(), 1);
    f.named = false;
    assert_eq!(judge(&f), []);
}

#[test]
fn what_strangers_say_of_a_tunnel_that_is_up_is_no_cause_and_what_was_overcome_neither() {
    let mut f = healthy();
    told(&mut f, negotiation("refused", vec![refused("ike-proposal", "x")]));
    assert_eq!(judge(&f), []);
    // The peer itself refuses new keys.
    let refusal = Negotiation {
        authenticated: true,
        exchange: "rekey-child".into(),
        ..negotiation("refused", vec![refused("esp-proposal", "x")])
    };
    told(&mut f, refusal);
    assert_eq!(judge(&f)[0].cause, Cause::EspProposal);
    told(&mut f, negotiation("agreed", vec![]));
    assert_eq!(judge(&f), []);
}

#[test]
fn the_manual_lists_every_cause() {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/troubleshooting.md")).unwrap();
    for cause in Cause::ALL {
        let row = format!("| `{}` | {} | {} |", cause.name(), cause.layer().name(), cause.meaning());
        assert!(text.contains(&row), "docs/troubleshooting.md lacks: {row}");
    }
    let rows = text.lines().filter(|l| l.starts_with("| `")).count();
    assert_eq!(rows, Cause::ALL.len(), "a cause that there is no more");
}

/// One datagram with the peer's address as its source is enough for a claim.
#[test]
fn what_nobody_has_proven_hides_nothing() {
    let claim = || Negotiation {
        role: "responder".into(),
        ..negotiation("refused", vec![refused("ike-proposal", "encryption: …; PRF: …")])
    };
    let causes = |f: &Facts| judge(f).into_iter().map(|f| f.cause).collect::<Vec<_>>();
    let mut f = down(TunnelState::Failed);
    told(&mut f, claim());
    assert_eq!(causes(&f), [Cause::IkeProposal], "all that there is");
    probes(&mut f, Echo::Silence, Echo::Silence);
    assert_eq!(causes(&f), [Cause::PeerSilent], "whoever it was, the peer does not answer");
    let proven = Negotiation {
        authenticated: true,
        ..negotiation("refused", vec![refused("esp-proposal", "encryption: …")])
    };
    f.tunnels[0].known.explanation.as_mut().unwrap().negotiations.push(proven);
    assert_eq!(causes(&f), [Cause::EspProposal]);
    let mut f = down(TunnelState::Failed);
    told(&mut f, negotiation("unanswered", vec![]));
    told(&mut f, claim());
    assert_eq!(causes(&f), [Cause::PeerIgnoresUs]);
}
