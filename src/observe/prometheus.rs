//! The metrics of CONTRACT.md as text: the Prometheus format and OpenMetrics. A pure function of what is published.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::Published;
use super::counters::{RTT_BOUNDS, RekeyKind};
use super::snapshot::{RuleState, RuleStatus};

/// Which text format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Prometheus 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header asks for.
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    /// The `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Counter,
    Gauge,
    Info,
    Histogram,
}

/// Units as OpenMetrics wants them named: what a family's name ends with.
const UNITS: [&str; 4] = ["seconds", "bytes", "ratio", "bits_per_second"];

struct Writer {
    out: String,
    format: Format,
}

/// Escapes a label's value.
fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

impl Writer {
    /// Begins a family. `name` is without `_total` and `_info`; gives the name of its samples.
    fn family(&mut self, name: &str, kind: Type, help: &str) -> String {
        let sample = match kind {
            Type::Counter => format!("{name}_total"),
            Type::Info => format!("{name}_info"),
            Type::Gauge | Type::Histogram => name.to_owned(),
        };
        let word = match (kind, self.format) {
            (Type::Counter, _) => "counter",
            (Type::Info, Format::OpenMetrics) => "info",
            (Type::Gauge | Type::Info, _) => "gauge",
            (Type::Histogram, _) => "histogram",
        };
        let head = if self.format == Format::OpenMetrics { name } else { &sample };
        let _ = writeln!(self.out, "# HELP {head} {help}\n# TYPE {head} {word}");
        if self.format == Format::OpenMetrics
            && let Some(unit) = UNITS.iter().find(|u| name.ends_with(&format!("_{u}")))
        {
            let _ = writeln!(self.out, "# UNIT {head} {unit}");
        }
        sample
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.out.push_str(name);
        for (n, (label, text)) in labels.iter().enumerate() {
            self.out.push(if n == 0 { '{' } else { ',' });
            let _ = write!(self.out, "{label}=\"");
            escape(&mut self.out, text);
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

/// Writes everything.
pub fn render(p: &Published, format: Format) -> String {
    let mut w = Writer { out: String::with_capacity(4096 + p.snapshot.tunnels.len() * 2048), format };
    tunnels(&mut w, p);
    ike(&mut w, p);
    gateways(&mut w, p);
    daemon(&mut w, p);
    if format == Format::OpenMetrics {
        w.out.push_str("# EOF\n");
    }
    w.out
}

fn tunnels(w: &mut Writer, p: &Published) {
    let name = w.family("cygnet_tunnel_up", Type::Gauge, "1 if traffic passes through the tunnel.");
    for t in &p.snapshot.tunnels {
        w.sample(&name, &[("gateway", &t.gateway), ("tunnel", &t.name)], u8::from(t.state.is_up()));
    }
    let name = w.family(
        "cygnet_tunnel_coverage_ratio",
        Type::Gauge,
        "Configured pairs of networks that the tunnel carries, as a part of all.",
    );
    for t in &p.snapshot.tunnels {
        w.sample(&name, &[("gateway", &t.gateway), ("tunnel", &t.name)], t.coverage.ratio());
    }
    let name = w.family(
        "cygnet_tunnel_unanswered",
        Type::Gauge,
        "1 if packets leave by the tunnel and none have come in for a while.",
    );
    for t in &p.snapshot.tunnels {
        w.sample(&name, &[("gateway", &t.gateway), ("tunnel", &t.name)], u8::from(t.unanswered_s.is_some()));
    }
    let name = w.family(
        "cygnet_legacy_algorithms",
        Type::Gauge,
        "Algorithms among the tunnel's proposals that are spoken only because the configuration asks for them.",
    );
    for t in &p.snapshot.tunnels {
        for (protocol, all) in [("ike", &t.legacy.ike), ("esp", &t.legacy.esp)] {
            let labels = [("gateway", &*t.gateway), ("tunnel", &*t.name), ("protocol", protocol)];
            w.sample(&name, &labels, all.len());
        }
    }
    let name = w.family("cygnet_child_up", Type::Gauge, "1 if traffic of the configured child passes.");
    for t in &p.snapshot.tunnels {
        for (n, rule) in t.rules.iter().enumerate() {
            let up = u8::from(rule.state == RuleState::Up);
            let child = child_label(n, rule);
            w.sample(&name, &[("gateway", &t.gateway), ("tunnel", &t.name), ("child", &child)], up);
        }
    }
    let now_s = p.counters.at.as_nanos() / 1_000_000_000;
    let name = w.family(
        "cygnet_sa_lifetime_remaining_seconds",
        Type::Gauge,
        "Time until the first child's keys end; 0 without any.",
    );
    for t in &p.snapshot.tunnels {
        let left = t.children.iter().map(|c| c.expires_in_s.unwrap_or(c.rekey_in_s)).min();
        let passed = now_s.saturating_sub(t.made_s);
        let left = left.map_or(0, |left| left.saturating_sub(passed));
        w.sample(&name, &[("gateway", &t.gateway), ("tunnel", &t.name)], left);
    }
    let all = || p.counters.tunnels.iter().map(|(tunnel, c)| (&**tunnel, c));
    let name = w.family(
        "cygnet_tunnel_downtime_seconds",
        Type::Counter,
        "Time the tunnel passed no traffic although it was wanted.",
    );
    for (tunnel, c) in all() {
        let down = c.downtime(p.counters.at).as_secs_f64();
        w.sample(&name, &[("gateway", &c.gateway), ("tunnel", tunnel)], down);
    }
    let bytes = w.family("cygnet_sa_bytes", Type::Counter, "Octets of inner packets.");
    for (tunnel, c) in all() {
        let t = c.totals();
        for (direction, value) in [("in", t.bytes_in), ("out", t.bytes_out)] {
            w.sample(&bytes, &[("gateway", &c.gateway), ("tunnel", tunnel), ("direction", direction)], value);
        }
    }
    let packets = w.family("cygnet_sa_packets", Type::Counter, "Inner packets.");
    for (tunnel, c) in all() {
        let t = c.totals();
        for (direction, value) in [("in", t.packets_in), ("out", t.packets_out)] {
            w.sample(
                &packets,
                &[("gateway", &c.gateway), ("tunnel", tunnel), ("direction", direction)],
                value,
            );
        }
    }
    let drops = w.family("cygnet_sa_drops", Type::Counter, "Packets that an inbound SA dropped.");
    for (tunnel, c) in all() {
        let t = c.totals();
        for (reason, value) in [("replay", t.replay), ("integrity", t.integrity)] {
            w.sample(&drops, &[("gateway", &c.gateway), ("tunnel", tunnel), ("reason", reason)], value);
        }
    }
    let name = w.family("cygnet_rekeys", Type::Counter, "Rekeys that ended.");
    for (tunnel, c) in all() {
        for (kind, word) in [(RekeyKind::Ike, "ike"), (RekeyKind::Child, "child")] {
            for (ok, result) in [(true, "ok"), (false, "failed")] {
                let labels =
                    [("gateway", &*c.gateway), ("tunnel", tunnel), ("kind", word), ("result", result)];
                w.sample(&name, &labels, c.rekeys(kind, ok));
            }
        }
    }
    let name = w.family("cygnet_ike_failures", Type::Counter, "Negotiations that failed.");
    for (tunnel, c) in all() {
        let reasons: BTreeSet<&str> = p.counters.reasons.iter().chain(c.failures.keys()).copied().collect();
        for reason in reasons {
            let count = c.failures.get(reason).copied().unwrap_or(0);
            w.sample(&name, &[("tunnel", tunnel), ("reason", reason)], count);
        }
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
    let name = w.family("cygnet_ike_retransmits", Type::Counter, "IKE requests that were sent again.");
    w.sample(&name, &[], c.retransmits);
    let name = w.family("cygnet_ike_half_open", Type::Gauge, "IKE SAs that wait for the peer's IKE_AUTH.");
    w.sample(&name, &[], p.snapshot.half_open);
    let name = w.family("cygnet_ike_dropped", Type::Counter, "IKE datagrams that were dropped.");
    for (reason, value) in &c.ike_dropped {
        w.sample(&name, &[("reason", reason)], value);
    }
    let name = w.family("cygnet_ike_rtt_seconds", Type::Histogram, "Round trips of IKE exchanges.");
    let mut sum = 0;
    let bounds = RTT_BOUNDS.iter().map(|b| format!("{b:?}")).chain([String::from("+Inf")]);
    for (bound, count) in bounds.zip(c.rtt.buckets) {
        sum += count;
        w.sample(&format!("{name}_bucket"), &[("le", &bound)], sum);
    }
    w.sample(&format!("{name}_sum"), &[], c.rtt.sum);
    w.sample(&format!("{name}_count"), &[], sum);
}

fn gateways(w: &mut Writer, p: &Published) {
    let gateways = &p.snapshot.gateways;
    let limited = || gateways.iter().filter_map(|g| Some((g, g.bandwidth_bps.filter(|b| *b > 0)?)));
    let name =
        w.family("cygnet_bandwidth_limit_bits_per_second", Type::Gauge, "Cap on what the gateway sends.");
    for (g, limit) in limited() {
        w.sample(&name, &[("gateway", &g.name)], limit);
    }
    let name = w.family(
        "cygnet_bandwidth_usage_ratio",
        Type::Gauge,
        "What the gateway sends, as a part of its cap.",
    );
    for (g, limit) in limited() {
        w.sample(&name, &[("gateway", &g.name)], g.tx_bps as f64 / limit as f64);
    }
    let name = w.family("cygnet_qos_drops", Type::Counter, "Packets that traffic control dropped.");
    for ((gateway, class), value) in &p.counters.qos_drops {
        w.sample(&name, &[("gateway", gateway), ("class", class)], value.total);
    }
}

fn daemon(w: &mut Writer, p: &Published) {
    let name = w.family("cygnet_xfrm_stat", Type::Counter, "The kernel's XFRM statistics.");
    for (stat, value) in &p.counters.xfrm_stats {
        w.sample(&name, &[("name", stat)], value);
    }
    let help = "Packets that were about to leave in clear text around their tunnel.";
    let name = w.family("cygnet_guard_drops", Type::Counter, help);
    for (reason, count) in &p.snapshot.wall.drops {
        w.sample(&name, &[("reason", reason)], count);
    }
    let help = "How often a change of others to the last guard was undone.";
    let name = w.family("cygnet_guard_repairs", Type::Counter, help);
    w.sample(&name, &[], p.snapshot.wall.repairs);
    let help =
        "1 if the last guard behind NAT and foreign rules is in force, with nothing that it does not defend.";
    let name = w.family("cygnet_guard_whole", Type::Gauge, help);
    w.sample(&name, &[], u8::from(p.snapshot.wall.in_force && p.snapshot.wall.gaps.is_empty()));
    let name = w.family("cygnet_data_plane", Type::Info, "Who handles ESP.");
    w.sample(&name, &[("plane", &p.snapshot.data_plane)], 1);
    let help = "1 if the last configuration that was asked for is in effect.";
    let name = w.family("cygnet_config_last_apply_success", Type::Gauge, help);
    w.sample(&name, &[], u8::from(p.snapshot.config_ok));
    let name = w.family("cygnet_build", Type::Info, "The daemon's version.");
    w.sample(&name, &[("version", &p.snapshot.daemon_version)], 1);
}
