//! The exporter: the text against the rules of both formats, and the HTTP server against bad clients.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod common;
#[path = "common/growth.rs"]
mod growth;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cygnet::observe::catalogue::{self, Type};
use cygnet::observe::counters::{Cookies, Counters, Histogram, RekeyKind, Tally, XFRM_STATISTICS};
use cygnet::observe::prometheus::{Format, render};
use cygnet::observe::qos::{Count, Place};
use cygnet::observe::snapshot::*;
use cygnet::observe::{Published, Subscriber, TrafficPage, channel, http};
use cygnet_model::plane::SaCounters;
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, Spi, Timestamp, TunnelId};

use growth::assert_linear;

fn rule(local: &[&str], state: RuleState) -> RuleStatus {
    RuleStatus {
        local: local.iter().map(|s| (*s).to_owned()).collect(),
        remote: vec!["10.3.0.0/16".into(), "10.4.0.0/16".into()],
        state,
        pairs: 2,
        covered: 1,
        last_error: None,
        retry_in_s: None,
    }
}

fn published(tunnels: usize) -> Published {
    let names: Vec<String> = (0..tunnels).map(|n| format!("t{n}")).collect();
    let mut counters = Counters::default();
    counters.configure(names.iter().map(|n| ("vpc-a", n.as_str())));
    for (n, name) in names.iter().enumerate() {
        let id = |direction| SaId {
            child: ChildId { tunnel: TunnelId(n as u32), index: 0 },
            direction,
            spi: Spi::new(4096).unwrap(),
        };
        let counted = SaCounters { bytes: 1000, packets: 10, replay: 1, integrity: 2, sequence: 9 };
        counters.sample(name, id(Direction::In), counted);
        counters.sample(name, id(Direction::Out), SaCounters { replay: 0, integrity: 0, ..counted });
        counters.rekeyed(name, RekeyKind::Child, true);
        counters.failed(name, "no_proposal_chosen");
        counters.set_up(name, false, Timestamp::from_nanos(0));
    }
    counters.at = Timestamp::from_nanos(1_500_000_000);
    counters.retransmits = 7;
    counters.sampling_cpu = Duration::from_millis(1250);
    counters.cookies = Cookies { demanded: 9, returned: 4 };
    for name in &names {
        counters.answered(name, Duration::from_millis(20));
    }
    for (n, reason) in cygnet_esp::DropReason::ALL.iter().enumerate() {
        counters.plane_drops.insert(reason.name(), n as u64);
    }
    counters.dropped("cookie_invalid");
    counters.rtt = Histogram::default();
    counters.rtt.observe(Duration::from_millis(3));
    counters.rtt.observe(Duration::from_secs(60));
    counters.read_xfrm_stat("XfrmInError             \t0\nXfrmInNoStates \t42\n");
    counters.alerts = [(("webhook", "delivered"), 3), (("command", "dropped"), 1)].into();
    let dropped = |tunnel, packets| {
        let place = Place { tunnel, ..Place::of("vpc-a", "tunnel") };
        Count { place, part: 0, packets }
    };
    let of_tunnels = names.iter().map(|name| dropped(Some((name.clone(), Direction::Out)), 3));
    let others = [dropped(None, 0), Count { place: Place::of("vpc-a", "gateway"), part: 2, packets: 5 }];
    counters.qos_drops.read("test", of_tunnels.chain(others));
    let tunnel = |name: &String| TunnelStatus {
        made_s: 0,
        name: name.clone(),
        gateway: "vpc-a".into(),
        customer_gateway: "idc-b".into(),
        state: TunnelState::Failed,
        since: String::new(),
        last_error: None,
        start: "active".into(),
        wanted: true,
        retry_in_s: None,
        path: None,
        ike: None,
        bytes_in: 0,
        bytes_out: 0,
        children: vec![],
        coverage: CoverageStatus { pairs: 4, covered: 1, missing: vec![] },
        rules: vec![rule(&["10.1.0.0/16"], RuleState::Up), rule(&["10.2.0.0/16"; 9], RuleState::Failed)],
        unanswered_s: (name.as_str() == "a-b").then_some(30),
        quality: (name.as_str() == "a-b").then(|| QualityStatus {
            health: "degraded".into(),
            cause: Some("loss".into()),
            since: String::new(),
            probe: "udp".into(),
            target: "10.2.0.1".into(),
            port: Some(7),
            source: Some("10.1.0.1".into()),
            problem: None,
            probes: 60,
            lost: 15,
            lost_there: None,
            loss_ratio: Some(0.25),
            delay_ms: Some(21.5),
            delay_min_ms: Some(20.0),
            delay_max_ms: Some(30.0),
            jitter_ms: Some(0.5),
        }),
        shares_with: vec![],
        warnings: vec![],
        bandwidth: Some(LevelStatus { bps: 20_000_000, origin: Origin::Saved }),
        bandwidth_in: None,
        legacy: LegacyStatus { ike: vec!["modp1024".into(), "sha1".into()], esp: vec![] },
    };
    let gateway = GatewayStatus {
        name: "vpc-a".into(),
        address: "192.0.2.1".into(),
        bandwidth_bps: Some(100_000_000),
        bandwidth_origin: Origin::default(),
        bandwidth_in: Some(LevelStatus { bps: 200_000_000, origin: Origin::Command }),
        tx_bps: 23_000_000,
        bandwidth_used_bps: Some(25_000_000),
        bandwidth_in_used_bps: None,
        rx_bps: 0,
        role: Role::Single,
        used: QuotaUse { tunnels: 1, customer_gateways: 1, rules: 2, remotes: 9 },
        limits: LimitCount::default(),
    };
    let snapshot = Snapshot {
        data_plane: "kernel".into(),
        daemon_version: "0.0.0".into(),
        quota: [
            ("gateways", 1, Some(10)),
            ("customer_gateways", 1, None),
            ("tunnels_per_gateway", 1, Some(20)),
        ]
        .map(|(key, used, limit)| (key.to_owned(), QuotaStatus { used, limit }))
        .into(),
        wall: WallStatus {
            in_force: true,
            drops: [("bypass".into(), 0), ("nat".into(), 3)].into(),
            repairs: 1,
            gaps: vec![],
        },
        gateways: vec![gateway],
        tunnels: names.iter().map(|name| tunnel(name).into()).collect(),
        ..Snapshot::default()
    };
    let gateway = std::sync::Arc::<str>::from("vpc-a");
    let ip = |text: &str| text.parse().unwrap();
    let traffic = TrafficPage {
        bytes: vec![(gateway.clone(), ip("10.1.0.5"), 1_234), (gateway.clone(), ip("fd01::9"), 5)],
        limits: vec![(gateway.clone(), ip("10.1.0.5"), 10_000_000), (gateway, ip("fd01::9"), 0)],
    };
    Published { snapshot, counters, traffic: traffic.into() }
}

#[test]
fn the_text_is_the_golden_one() {
    let p = published(1);
    let both = format!("{}\n{}", render(&p, Format::Text), render(&p, Format::OpenMetrics));
    common::golden("tests/golden/metrics.txt", &both);
}

/// What promtool checks: every sample has its family's HELP and TYPE before it, families are not torn apart, no series
/// stands twice, counters end in _total, histograms are cumulative and end with +Inf = count.
fn check(text: &str, open: bool) -> BTreeMap<String, f64> {
    let mut series: BTreeMap<String, f64> = BTreeMap::new();
    let mut done = BTreeSet::new();
    let (mut family, mut kind) = (String::new(), String::new());
    let mut last_bucket = 0.0;
    for line in text.lines() {
        if line == "# EOF" {
            assert!(open);
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && done.insert(name.to_owned()), "{name} comes twice");
            name.clone_into(&mut family);
            continue;
        }
        if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').unwrap();
            assert!(open && name == family && name.ends_with(&format!("_{unit}")), "{line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, t) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert!(["counter", "gauge", "histogram", "info"].contains(&t));
            t.clone_into(&mut kind);
            assert!(kind != "counter" || open || name.ends_with("_total"), "{name}");
            assert!(!open || !name.ends_with("_total"));
            continue;
        }
        let (id, value) = line.rsplit_once(' ').unwrap();
        let name = id.split('{').next().unwrap();
        assert!(
            name.starts_with("cygnet_")
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        );
        let expected: &[&str] = match (&*kind, open) {
            ("counter", true) => &["_total"],
            ("info", true) => &["_info"],
            ("histogram", _) => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        assert!(expected.iter().any(|s| name == format!("{family}{s}")), "{name} is not of family {family}");
        let value: f64 = value.parse().unwrap();
        assert!(series.insert(id.to_owned(), value).is_none(), "{id} comes twice");
        if name.ends_with("_bucket") {
            assert!(value >= last_bucket);
            last_bucket = value;
        }
        if name.ends_with("_count") {
            assert_eq!(value, last_bucket);
        }
    }
    assert_eq!(open, text.ends_with("# EOF\n"));
    series
}

/// Every family is written, also while it has no samples, in the order of the catalogue, and no other.
#[test]
fn the_page_is_the_catalogue() {
    for (format, name) in [
        (Format::Text, catalogue::Family::sample as fn(&catalogue::Family) -> String),
        (Format::OpenMetrics, |f| f.name.to_owned()),
    ] {
        for page in [render(&published(2), format), render(&Published::default(), format)] {
            let written: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("# HELP ")).collect();
            let listed: Vec<String> =
                catalogue::ALL.iter().map(|f| format!("{} {}", name(f), f.help)).collect();
            assert_eq!(written, listed);
        }
    }
    let page = render(&published(2), Format::Text);
    for (id, _) in check(&page, false) {
        let (sample, labels) = id.split_once('{').unwrap_or((&id, "}"));
        let Some(family) = catalogue::ALL.iter().find(|f| f.sample() == sample) else {
            assert!(catalogue::ALL.iter().any(|f| f.kind == Type::Histogram && sample.starts_with(f.name)));
            continue;
        };
        let mut names = Vec::new();
        let mut rest = labels;
        while let Some((label, after)) = rest.split_once("=\"") {
            names.push(label.trim_start_matches(','));
            rest = after.split_once('"').unwrap().1;
        }
        assert_eq!(names, family.labels, "{id}");
    }
}

/// All the metrics of CONTRACT.md, but those of what cygnet does not do yet.
#[test]
fn the_contract_is_kept() {
    let text = render(&published(1), Format::Text);
    let series: Vec<String> = check(&text, false).into_keys().collect();
    for wanted in [
        "cygnet_tunnel_up{gateway,tunnel}",
        "cygnet_tunnel_downtime_seconds_total{gateway,tunnel}",
        "cygnet_sa_bytes_total{gateway,tunnel,direction}",
        "cygnet_sa_packets_total{gateway,tunnel,direction}",
        "cygnet_sa_drops_total{gateway,tunnel,reason}",
        "cygnet_sa_lifetime_remaining_seconds{gateway,tunnel}",
        "cygnet_rekeys_total{gateway,tunnel,kind,result}",
        "cygnet_ike_failures_total{tunnel,reason}",
        "cygnet_ike_retransmits_total{}",
        "cygnet_ike_rtt_seconds_bucket{le}",
        "cygnet_ike_half_open{}",
        "cygnet_ike_dropped_total{reason}",
        "cygnet_probe_loss_ratio{gateway,tunnel,probe}",
        "cygnet_probe_delay_seconds{gateway,tunnel,probe}",
        "cygnet_bandwidth_limit_bits_per_second{gateway}",
        "cygnet_bandwidth_usage_ratio{gateway}",
        "cygnet_qos_drops_total{gateway,class}",
        "cygnet_tunnel_bandwidth_drops_total{gateway,tunnel,direction}",
        "cygnet_xfrm_stat_total{name}",
        "cygnet_data_plane_info{plane}",
        "cygnet_ha_role{gateway}",
        "cygnet_quota_used{gateway,kind}",
        "cygnet_config_last_apply_success{}",
        "cygnet_build_info{version}",
    ] {
        let (name, labels) = wanted.strip_suffix('}').unwrap().split_once('{').unwrap();
        let labels: Vec<&str> = labels.split(',').filter(|l| !l.is_empty()).collect();
        let fits = |id: &String| {
            let (n, rest) = id.split_once('{').unwrap_or((id, ""));
            n == name && labels.iter().all(|l| rest.contains(&format!("{l}=\"")))
        };
        assert!(series.iter().any(fits), "{wanted}");
    }
}

/// Every reason of both planes is there by name, and what a newer kernel may count.
#[test]
fn every_reason_for_a_drop_has_a_series() {
    let mut p = published(1);
    let newest: String = XFRM_STATISTICS.iter().enumerate().map(|(n, s)| format!("{s:<24}\t{n}\n")).collect();
    p.counters
        .read_xfrm_stat(&format!("{newest}XfrmOutOf\"tomorrow\t7\nnonsense\n{}\t1\n", "X".repeat(5000)));
    let text = render(&p, Format::Text);
    let series = check(&text, false);
    for (n, name) in XFRM_STATISTICS.iter().enumerate() {
        assert_eq!(series[&format!("cygnet_xfrm_stat_total{{name=\"{name}\"}}")], n as f64);
    }
    assert_eq!(series["cygnet_xfrm_stat_total{name=\"XfrmOutOf\\\"tomorrow\"}"], 7.0);
    assert!(!text.contains("XXXX") && !text.contains("nonsense"));
    let flood: String = (0..10_000).map(|n| format!("New{n} 1\n")).collect();
    (0..10).for_each(|n| p.counters.read_xfrm_stat(&flood.replace("New", &format!("N{n}x"))));
    assert!(p.counters.xfrm_stats.len() <= 128);
    for (n, reason) in cygnet_esp::DropReason::ALL.iter().enumerate() {
        assert_eq!(series[&format!("cygnet_plane_drops_total{{reason=\"{}\"}}", reason.name())], n as f64);
    }
}

/// A counter that an earlier life of the daemon has shown is never below that in the next one.
#[test]
fn a_next_life_counts_on() {
    let before = published(3);
    let mut after = published(3);
    after.counters = Counters::default();
    after.counters.reasons = vec!["no_proposal_chosen"];
    after.counters.at = before.counters.at;
    after.counters.configure([("vpc-a", "t0"), ("vpc-a", "t1"), ("vpc-a", "t2")]);
    for (name, counters) in before.counters.tunnels.iter() {
        let tally: Tally = counters.tally();
        assert_eq!(tally.sas.len(), 2);
        after.counters.resume(name, tally);
    }
    let of = |p: &Published| check(&render(p, Format::Text), false);
    let (old, new) = (of(&before), of(&after));
    // What levels dropped is counted by who keeps them, and begins anew with them.
    let goes_on = |id: &str| {
        id.contains("_total{") && id.contains("tunnel=") && !id.starts_with("cygnet_tunnel_bandwidth_drops")
    };
    for (id, value) in old.iter().filter(|(id, _)| goes_on(id)) {
        assert_eq!(new[id], *value, "{id}");
    }
}

#[test]
fn both_formats_keep_their_rules() {
    let p = published(20);
    let (text, open) =
        (check(&render(&p, Format::Text), false), check(&render(&p, Format::OpenMetrics), true));
    assert_eq!(text.len(), open.len());
    assert_eq!(text["cygnet_sa_bytes_total{gateway=\"vpc-a\",tunnel=\"t3\",direction=\"in\"}"], 1000.0);
    assert_eq!(text["cygnet_bandwidth_usage_ratio{gateway=\"vpc-a\"}"], 0.25);
    assert_eq!(text["cygnet_tunnel_downtime_seconds_total{gateway=\"vpc-a\",tunnel=\"t0\"}"], 1.5);
}

/// T103: labels are escaped, and the number of series follows from the configuration.
#[test]
fn labels_are_escaped_and_series_bounded() {
    let mut p = published(1);
    p.snapshot.gateways[0].name = "a\"b\\c\nd".into();
    let text = render(&p, Format::Text);
    assert!(text.contains("{gateway=\"a\\\"b\\\\c\\nd\"}"));
    check(&text, false);
    let count = |n| check(&render(&published(n), Format::Text), false).len();
    let (none, one) = (count(0), count(1));
    assert_eq!(count(50), none + 50 * (one - none));
    // A stranger's tunnel makes no series.
    p.counters.failed("stranger", "x");
    p.counters.rekeyed("stranger", RekeyKind::Ike, true);
    assert!(!render(&p, Format::Text).contains("\"stranger\""));
}

/// T102: a page costs as much as it has tunnels. `scripts/bench scale` says how much that is.
#[test]
fn the_work_of_a_page_is_linear_in_its_tunnels() {
    assert_linear(250, published, |page| assert!(!render(page, Format::Text).is_empty()));
}

fn served(subscriber: Subscriber) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // It serves until the test program ends.
    std::mem::forget(http::spawn(listener, subscriber).unwrap());
    addr
}

fn get(addr: std::net::SocketAddr, request: &str) -> String {
    let mut s = TcpStream::connect(addr).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    s.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = s.read_to_string(&mut answer);
    answer
}

#[test]
fn the_server_serves_metrics_and_nothing_else() {
    let (publisher, subscriber) = channel();
    let addr = served(subscriber);
    publisher.send(Arc::new(published(2))).unwrap();
    let ask = |what: &str, more: &str| {
        get(addr, &format!("{what} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n"))
    };
    let text = ask("GET /metrics", "");
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("text/plain; version=0.0.4"), "{text}");
    check(text.split_once("\r\n\r\n").unwrap().1, false);
    let open = ask("GET /metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n");
    check(open.split_once("\r\n\r\n").unwrap().1, true);
    // A new value is served at once, although the old text was kept.
    publisher.send(Arc::new(published(3))).unwrap();
    assert!(ask("GET /metrics", "").contains("tunnel=\"t2\""));
    assert!(ask("GET /", "").starts_with("HTTP/1.1 404"));
    assert!(ask("POST /metrics", "").starts_with("HTTP/1.1 405"));
    assert!(ask("HEAD /metrics", "").ends_with("\r\n\r\n"));
    let huge = ask("GET /metrics", &format!("X: {}\r\n", "x".repeat(100_000)));
    assert!(!huge.starts_with("HTTP/1.1 200"), "{huge}");
    assert!(ask("GET /metrics", "").starts_with("HTTP/1.1 200"));
}

/// T102: slow clients neither block others nor stay.
#[test]
fn slow_clients_are_let_go() {
    let (_publisher, subscriber) = channel();
    let addr = served(subscriber);
    let mut slow: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(addr).unwrap()).collect();
    slow.iter_mut().for_each(|s| s.write_all(b"GET /metrics HTTP/1.1\r\nX: ").unwrap());
    let started = Instant::now();
    let text = get(addr, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200") && started.elapsed() < Duration::from_secs(4));
    let one = &mut slow[0];
    one.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut rest = Vec::new();
    let _ = one.read_to_end(&mut rest);
    assert!(started.elapsed() < Duration::from_secs(15));
}

/// A thousand connections that say nothing do not keep a scrape out.
#[test]
fn idle_clients_make_room() {
    let (_publisher, subscriber) = channel();
    let addr = served(subscriber);
    let _idle: Vec<TcpStream> = (0..1000).map_while(|_| TcpStream::connect(addr).ok()).collect();
    let started = Instant::now();
    let text = get(addr, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200") && started.elapsed() < Duration::from_secs(4), "{text}");
}
