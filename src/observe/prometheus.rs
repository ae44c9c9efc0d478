//! The metrics of CONTRACT.md: which values the families of the [catalogue](super::catalogue) have. A pure function of what
//! is published.

use cygnet_model::tunnel::Direction;

use super::Published;
use super::catalogue::{self as family, Family};
use super::counters::{RTT_BOUNDS, RekeyKind, TunnelCounters};
use super::exposition::{Subject, Writer};
use super::snapshot::{QualityStatus, Role, RuleState, RuleStatus, TunnelStatus};

pub use super::exposition::Format;

/// Octets that a tunnel's samples take, roughly.
const TUNNEL: usize = 5 << 10;

/// Writes everything.
pub fn render(p: &Published, format: Format) -> String {
    let mut w = Writer::new(format, (16 << 10) + p.snapshot.tunnels.len() * TUNNEL);
    states(&mut w, p);
    counts(&mut w, p);
    ike(&mut w, p);
    gateways(&mut w, p);
    daemon(&mut w, p);
    w.end()
}

/// What tunnels are.
fn states(w: &mut Writer, p: &Published) {
    let all: Vec<(Subject, &TunnelStatus)> = (p.snapshot.tunnels.iter())
        .map(|t| (Subject::new(&[("gateway", &t.gateway), ("tunnel", &t.name)]), &**t))
        .collect();
    let mut each = |family: &Family, value: fn(&TunnelStatus) -> f64| {
        w.family(family);
        for (subject, t) in &all {
            w.sample_of(subject, &[], value(t));
        }
    };
    each(&family::TUNNEL_UP, |t| f64::from(u8::from(t.state.is_up())));
    each(&family::TUNNEL_WANTED, |t| f64::from(u8::from(t.wanted)));
    each(&family::TUNNEL_COVERAGE, |t| t.coverage.ratio());
    each(&family::TUNNEL_UNANSWERED, |t| f64::from(u8::from(t.unanswered_s.is_some())));
    w.family(&family::LEGACY_ALGORITHMS);
    for (subject, t) in &all {
        w.sample_of(subject, &["ike"], t.legacy.ike.len());
        w.sample_of(subject, &["esp"], t.legacy.esp.len());
    }
    w.family(&family::CHILD_UP);
    for (subject, t) in &all {
        for (n, rule) in t.rules.iter().enumerate() {
            w.sample_of(subject, &[&child_label(n, rule)], u8::from(rule.state == RuleState::Up));
        }
    }
    let now_s = p.counters.at.as_nanos() / 1_000_000_000;
    w.family(&family::SA_LIFETIME);
    for (subject, t) in &all {
        let left = t.children.iter().map(|c| c.expires_in_s.unwrap_or(c.rekey_in_s)).min();
        let passed = now_s.saturating_sub(t.made_s);
        w.sample_of(subject, &[], left.map_or(0, |left| left.saturating_sub(passed)));
    }
}

/// What tunnels have counted.
fn counts(w: &mut Writer, p: &Published) {
    struct Counted<'a> {
        subject: Subject,
        tunnel: &'a str,
        counters: &'a TunnelCounters,
    }
    let all: Vec<Counted<'_>> = (p.counters.tunnels.iter())
        .map(|(tunnel, counters)| Counted {
            subject: Subject::new(&[("gateway", &counters.gateway), ("tunnel", tunnel)]),
            tunnel,
            counters,
        })
        .collect();
    w.family(&family::TUNNEL_DOWNTIME);
    for c in &all {
        w.sample_of(&c.subject, &[], c.counters.downtime(p.counters.at).as_secs_f64());
    }
    let totals: Vec<_> = all.iter().map(|c| (&c.subject, c.counters.totals())).collect();
    w.family(&family::SA_BYTES);
    for (subject, t) in &totals {
        w.sample_of(subject, &["in"], t.bytes_in);
        w.sample_of(subject, &["out"], t.bytes_out);
    }
    w.family(&family::SA_PACKETS);
    for (subject, t) in &totals {
        w.sample_of(subject, &["in"], t.packets_in);
        w.sample_of(subject, &["out"], t.packets_out);
    }
    w.family(&family::SA_DROPS);
    for (subject, t) in &totals {
        w.sample_of(subject, &["replay"], t.replay);
        w.sample_of(subject, &["integrity"], t.integrity);
    }
    w.family(&family::REKEYS);
    for c in &all {
        for (kind, word) in [(RekeyKind::Ike, "ike"), (RekeyKind::Child, "child")] {
            w.sample_of(&c.subject, &[word, "ok"], c.counters.rekeys(kind, true));
            w.sample_of(&c.subject, &[word, "failed"], c.counters.rekeys(kind, false));
        }
    }
    w.family(&family::IKE_FAILURES);
    for c in &all {
        let subject = Subject::new(&[("tunnel", c.tunnel)]);
        let failures = &c.counters.failures;
        for reason in &p.counters.reasons {
            w.sample_of(&subject, &[reason], failures.get(reason).copied().unwrap_or(0));
        }
        for (reason, count) in failures.iter().filter(|(reason, _)| !p.counters.reasons.contains(reason)) {
            w.sample_of(&subject, &[reason], count);
        }
    }
    let measured = || all.iter().filter_map(|c| Some((&c.subject, c.counters.path.measured()?)));
    w.family(&family::PROBE_LOSS);
    for (subject, (loss, _)) in measured() {
        w.sample_of(subject, &["ike"], loss);
    }
    let probed: Vec<(Subject, &QualityStatus)> = (p.snapshot.tunnels.iter())
        .filter_map(|t| {
            Some((Subject::new(&[("gateway", &t.gateway), ("tunnel", &t.name)]), t.quality.as_ref()?))
        })
        .collect();
    let gauge = |value: fn(&QualityStatus) -> Option<f64>, w: &mut Writer| {
        for (subject, q, value) in probed.iter().filter_map(|(subject, q)| Some((subject, q, value(q)?))) {
            w.sample_of(subject, &[&q.probe], value);
        }
    };
    gauge(|q| q.loss_ratio, w);
    w.family(&family::PROBE_DELAY);
    for (subject, (_, delay)) in measured() {
        w.sample_of(subject, &["ike"], delay.as_secs_f64());
    }
    gauge(|q| Some(q.delay_ms? / 1e3), w);
    w.family(&family::PROBE_JITTER);
    gauge(|q| Some(q.jitter_ms? / 1e3), w);
    w.family(&family::TUNNEL_DEGRADED);
    for (subject, q) in &probed {
        w.sample_of(subject, &[], u8::from(q.health == "degraded"));
    }
    w.family(&family::ALERTS);
    for ((channel, result), count) in &p.counters.alerts {
        w.sample(&[channel, result], count);
    }
}

/// A configured child by its networks. Where they are many, the first ones and the child's position, so that no two
/// children look alike.
fn child_label(position: usize, rule: &RuleStatus) -> String {
    const SHOWN: usize = 8;
    if rule.local.len() <= SHOWN && rule.remote.len() <= SHOWN {
        return rule.networks();
    }
    let side = |all: &[String]| {
        let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(" ");
        if all.len() > SHOWN { format!("{shown} and {} more", all.len() - SHOWN) } else { shown }
    };
    format!("{} -> {} (rule {position})", side(&rule.local), side(&rule.remote))
}

fn ike(w: &mut Writer, p: &Published) {
    let c = &p.counters;
    w.family(&family::IKE_RETRANSMITS);
    w.sample(&[], c.retransmits);
    w.family(&family::IKE_HALF_OPEN);
    w.sample(&[], p.snapshot.half_open);
    w.family(&family::IKE_HALF_OPEN_LIMIT);
    w.sample(&[], p.snapshot.flood.half_open_limit);
    w.family(&family::IKE_COOKIES);
    w.sample(&["demanded"], c.cookies.demanded);
    w.sample(&["returned"], c.cookies.returned);
    w.family(&family::IKE_DROPPED);
    for (reason, count) in &c.ike_dropped {
        w.sample(&[reason], count);
    }
    w.family(&family::IKE_RTT);
    let bounds = RTT_BOUNDS.iter().map(|b| format!("{b:?}")).chain([String::from("+Inf")]);
    w.histogram(bounds.zip(c.rtt.buckets), c.rtt.sum);
}

fn gateways(w: &mut Writer, p: &Published) {
    let gateways = &p.snapshot.gateways;
    let limited = || gateways.iter().filter_map(|g| Some((g, g.bandwidth_bps.filter(|b| *b > 0)?)));
    w.family(&family::BANDWIDTH_LIMIT);
    for (g, limit) in limited() {
        w.sample(&[&g.name], limit);
    }
    w.family(&family::BANDWIDTH_USAGE);
    for (g, limit) in limited() {
        w.sample(&[&g.name], g.bandwidth_used_bps.unwrap_or(0) as f64 / limit as f64);
    }
    w.family(&family::BANDWIDTH_IN_LIMIT);
    for (g, level) in gateways.iter().filter_map(|g| Some((g, g.bandwidth_in?))) {
        w.sample(&[&g.name], level.bps);
    }
    w.family(&family::TUNNEL_BANDWIDTH_LIMIT);
    for t in &p.snapshot.tunnels {
        let directions = [("in", t.bandwidth_in), ("out", t.bandwidth)];
        for (direction, level) in directions.into_iter().filter_map(|(d, level)| Some((d, level?))) {
            w.sample(&[&t.gateway, &t.name, direction], level.bps);
        }
    }
    w.family(&family::QOS_DROPS);
    for (gateway, class, packets) in p.counters.qos_drops.by_class() {
        w.sample(&[gateway, class], packets);
    }
    w.family(&family::TUNNEL_BANDWIDTH_DROPS);
    for (gateway, tunnel, direction, packets) in p.counters.qos_drops.by_tunnel() {
        let direction = match direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        w.sample(&[gateway, tunnel, direction], packets);
    }
    w.family(&family::IP_BYTES);
    for (gateway, ip, bytes) in &p.traffic.bytes {
        w.sample(&[gateway, &ip.to_string()], *bytes);
    }
    w.family(&family::IP_LIMIT);
    for (gateway, ip, bps) in &p.traffic.limits {
        w.sample(&[gateway, &ip.to_string()], *bps);
    }
    w.family(&family::HA_ROLE);
    for g in gateways {
        let role = match g.role {
            Role::Single => 0,
            Role::Active => 1,
            Role::Standby => 2,
        };
        w.sample(&[&g.name], role);
    }
    w.family(&family::QUOTA_USED);
    for g in gateways {
        let used = &g.used;
        w.sample(&[&g.name, "tunnels"], used.tunnels);
        w.sample(&[&g.name, "customer_gateways"], used.customer_gateways);
        w.sample(&[&g.name, "rules"], used.rules);
        w.sample(&[&g.name, "remotes"], used.remotes);
    }
    let whole = ["gateways", "customer_gateways", "tunnels_per_customer"];
    let quota = |key: &str| p.snapshot.quota.get(key).copied().unwrap_or_default();
    for kind in whole {
        w.sample(&["", kind], quota(kind).used);
    }
    w.family(&family::QUOTA_LIMIT);
    for g in gateways {
        let keys = [
            ("tunnels", "tunnels_per_gateway"),
            ("rules", "rules_per_tunnel"),
            ("remotes", "remotes_per_rule"),
        ];
        for (kind, key) in keys {
            if let Some(limit) = quota(key).limit {
                w.sample(&[&g.name, kind], limit);
            }
        }
    }
    for kind in whole {
        if let Some(limit) = quota(kind).limit {
            w.sample(&["", kind], limit);
        }
    }
}

fn daemon(w: &mut Writer, p: &Published) {
    w.family(&family::PLANE_DROPS);
    for (reason, count) in &p.counters.plane_drops {
        w.sample(&[reason], count);
    }
    w.family(&family::XFRM_STAT);
    for (name, count) in &p.counters.xfrm_stats {
        w.sample(&[name], count);
    }
    w.family(&family::GUARD_DROPS);
    for (reason, count) in &p.snapshot.wall.drops {
        w.sample(&[reason], count);
    }
    w.family(&family::SAMPLING_CPU);
    w.sample(&[], p.counters.sampling_cpu.as_secs_f64());
    w.family(&family::GUARD_REPAIRS);
    w.sample(&[], p.snapshot.wall.repairs);
    w.family(&family::GUARD_WHOLE);
    w.sample(&[], u8::from(p.snapshot.wall.in_force && p.snapshot.wall.gaps.is_empty()));
    w.family(&family::DATA_PLANE);
    w.sample(&[&p.snapshot.data_plane], 1);
    w.family(&family::CONFIG_SUCCESS);
    w.sample(&[], u8::from(p.snapshot.config_ok));
    w.family(&family::BUILD);
    w.sample(&[&p.snapshot.daemon_version], 1);
}
