//! `cygnet status`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::output::{Out, Tone, bytes, rate, safe, span};
use super::{Exit, Global, Outcome, ask, names, unexpected};
use crate::control::{Request, Response};
use crate::observe::snapshot::{
    GatewayStatus, LevelStatus, MissingStatus, Nat, Origin, QualityStatus, RuleState, Snapshot, TunnelState,
    TunnelStatus,
};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet status                 everything at a glance
  cygnet status a-b             one tunnel (or gateway) in full
  cygnet status --json | jq '.tunnels[] | select(.state != \"up\")'
  cygnet status --follow        drawn anew every two seconds, until Ctrl-C
  cygnet status --follow --interval 10s --timeout 1h >status.jsonl

Exit code 0 if every tunnel that should be up is up and carries all its networks, else 1. With --follow it is 0, and what is
not a terminal gets one JSON object a line; a daemon that is restarted meanwhile is waited for.")]
pub struct StatusArgs {
    /// Only this gateway or tunnel
    #[arg(add = names::all())]
    pub name: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
    /// Show it again and again, until Ctrl-C or the time of --timeout
    #[arg(short, long)]
    follow: bool,
    /// How often, with --follow
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval, requires = "follow")]
    pub interval: Duration,
}

/// Shortest interval: what is shown shall not cost more than it is worth.
const SHORTEST: Duration = Duration::from_millis(100);

fn interval(text: &str) -> Result<Duration, String> {
    match super::seconds(text)? {
        d if d < SHORTEST => Err("it is too short; write 100ms or more".to_owned()),
        d => Ok(d),
    }
}

pub fn status(args: &StatusArgs, g: &Global, out: &mut Out) -> Outcome {
    if args.follow {
        return super::follow::follow(args, g, out);
    }
    let request = Request::Status { name: args.name.clone() };
    let Response::Status { snapshot } = ask(g, &request)? else { return Err(unexpected()) };
    let code = if snapshot.healthy() { Exit::Done } else { Exit::Failed };
    if args.json {
        out.json(&snapshot)?;
        return Ok(code);
    }
    picture(&snapshot, args, g, out)?;
    Ok(code)
}

/// The overview, and tunnels in full where they were asked for.
pub fn picture(s: &Snapshot, args: &StatusArgs, g: &Global, out: &mut Out) -> std::io::Result<()> {
    overview(s, g.verbose, out)?;
    if args.name.is_some() || g.verbose > 0 {
        s.tunnels.iter().try_for_each(|t| detail(t, out))?;
    }
    Ok(())
}

/// A gateway's bandwidth, and by whose word if it is not the configuration's.
fn level(g: &GatewayStatus) -> String {
    let used = |bps: u64, used: Option<u64>| {
        let percent = used.map(|used| (u128::from(used) * 100).div_ceil(u128::from(bps.max(1))));
        format!("{}{}", rate(bps), percent.map_or_else(String::new, |p| format!(", {p} % used")))
    };
    let out = g.bandwidth_bps.map_or("unlimited".into(), |bps| used(bps, g.bandwidth_used_bps));
    let out = said(out, g.bandwidth_origin);
    match g.bandwidth_in {
        None => out,
        Some(inward) => {
            format!("{out}; in {}", said(used(inward.bps, g.bandwidth_in_used_bps), inward.origin))
        }
    }
}

/// A tunnel's levels, if it has any.
fn levels(t: &TunnelStatus) -> Option<String> {
    let word =
        |way, level: Option<LevelStatus>| level.map(|l| format!("{way} {}", said(rate(l.bps), l.origin)));
    let words: Vec<String> =
        [word("out", t.bandwidth), word("in", t.bandwidth_in)].into_iter().flatten().collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// A level, and by whose word if it is not the configuration's.
fn said(level: String, origin: Origin) -> String {
    match origin {
        Origin::Configuration => level,
        Origin::Command => format!("{level} (by command)"),
        Origin::Saved => format!("{level} (saved)"),
    }
}

/// How many inner addresses are limited.
fn limited(g: &GatewayStatus) -> String {
    let l = &g.limits;
    let parts = [(l.rates, "to a rate"), (l.blocked, "blocked"), (l.by_command, "by command")];
    let words: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    format!("{}; see: cygnet limit {}", words.join(", "), safe(&g.name))
}

fn plain(text: impl Into<String>) -> (Tone, String) {
    (Tone::Plain, safe(&text.into()))
}

fn tone(state: TunnelState) -> Tone {
    match state {
        TunnelState::Up | TunnelState::Rekeying => Tone::Good,
        TunnelState::Connecting | TunnelState::Waiting => Tone::Odd,
        TunnelState::Down | TunnelState::Failed => Tone::Bad,
    }
}

/// Who asks for IKE SAs and has proven nothing, if that was ever more than usual.
fn strangers(s: &Snapshot) -> Option<String> {
    let f = &s.flood;
    // A peer that is about to authenticate is half open for a moment.
    let many = s.half_open > f.half_open_limit / 10;
    (many || f.cookies_demanded > 0).then(|| {
        format!(
            "strangers: {} IKE SAs half open of {} at most; {} were asked for a cookie, {} brought it back; see: cygnet top \
             --peers",
            s.half_open, f.half_open_limit, f.cookies_demanded, f.cookies_returned
        )
    })
}

/// Counts by reason, without those of nothing.
fn counts(drops: &BTreeMap<String, u64>) -> String {
    let words = drops.iter().filter(|(_, n)| **n > 0).map(|(reason, n)| format!("{} {n}", safe(reason)));
    words.collect::<Vec<_>>().join(", ")
}

fn overview(s: &Snapshot, verbose: u8, out: &mut Out) -> std::io::Result<()> {
    let gateway = |g: &GatewayStatus| {
        vec![plain(&g.name), plain(&g.address), plain(level(g)), plain(rate(g.tx_bps)), plain(rate(g.rx_bps))]
    };
    out.line(&format!("data plane: {} ({})\n", safe(&s.data_plane), safe(&s.data_plane_reason)))?;
    for o in &s.obstacles {
        out.line(&format!("{} {}", out.paint(Tone::Bad, "error:"), safe(&o.detail)))?;
        out.line(&format!("       {}\n", safe(&o.fix)))?;
    }
    // Nothing is said of a wall that stands and had nothing to do.
    for (reason, count) in s.wall.drops.iter().filter(|(_, count)| **count > 0) {
        let words = format!(
            "kept from leaving in clear text ({}): {count} packets; see: cygnet doctor\n",
            safe(reason)
        );
        out.line(&out.paint(Tone::Odd, &words))?;
    }
    for gap in &s.wall.gaps {
        out.line(&out.paint(Tone::Odd, &format!("not defended: {}\n", safe(gap))))?;
    }
    if let Some(words) = strangers(s) {
        out.line(&out.paint(Tone::Odd, &format!("{words}\n")))?;
    }
    if verbose > 0 {
        for (what, drops) in
            [("IKE datagrams", &s.flood.dropped), ("packets of the data plane", &s.plane_drops)]
        {
            let words = counts(drops);
            if !words.is_empty() {
                out.line(&format!("dropped {what}: {words}\n"))?;
            }
        }
    }
    let rows: Vec<_> = s.gateways.iter().map(gateway).collect();
    out.table(&["GATEWAY", "ADDRESS", "BANDWIDTH", "OUT", "IN"], &rows)?;
    for g in s.gateways.iter().filter(|g| !g.limits.is_none()) {
        out.line(&format!("\n{}: inner addresses limited: {}", safe(&g.name), limited(g)))?;
    }
    out.line("")?;
    let tunnel = |t: &Arc<TunnelStatus>| {
        vec![
            plain(&t.name),
            plain(&t.gateway),
            plain(&t.customer_gateway),
            state(t),
            plain(&t.since),
            plain(bytes(t.bytes_out)),
            plain(bytes(t.bytes_in)),
        ]
    };
    let rows: Vec<_> = s.tunnels.iter().map(tunnel).collect();
    out.table(&["TUNNEL", "GATEWAY", "CUSTOMER GATEWAY", "STATE", "SINCE", "OUT", "IN"], &rows)?;
    // Long sentences would tear the table apart.
    let mut between = "\n";
    for t in &s.tunnels {
        let whole = t.coverage.is_whole();
        let error = t.last_error.as_ref().filter(|_| !t.state.is_up() || !whole);
        let next = next_attempt(t).map(|when| format!("next attempt {when}"));
        let missing = missing(t).filter(|_| t.state.is_up());
        let degraded = t.quality.as_ref().filter(|q| q.health == "degraded");
        let degraded = degraded.map(|q| format!("degraded since {}: {}", q.since, figures(q)));
        let warnings = degraded.into_iter().chain(t.warnings.iter().cloned());
        let words: Vec<String> =
            missing.into_iter().chain(error.cloned()).chain(next).chain(warnings).collect();
        if !words.is_empty() {
            let name = out.paint(tone(t.state), &safe(&t.name));
            out.line(&format!("{between}{name}: {}", safe(&words.join("; "))))?;
            between = "";
        }
    }
    let quotas: Vec<String> = (s.quota.iter())
        .filter_map(|(key, q)| Some(format!("{} {}/{}", key.replace('_', " "), q.used, q.limit?)))
        .collect();
    if !quotas.is_empty() {
        out.line(&format!("\nquota: {}", safe(&quotas.join(", "))))?;
    }
    if !s.config_ok {
        let warning = out.paint(Tone::Odd, "the last configuration was refused; an older one is in effect");
        out.line(&format!("\n{warning}"))?;
    }
    Ok(())
}

/// A tunnel's state; if it is up for a part of its networks only, for how much.
fn state(t: &TunnelStatus) -> (Tone, String) {
    if t.state.is_up() && !t.coverage.is_whole() {
        let text = format!("{} {}/{}", t.state.name(), t.coverage.covered, t.coverage.pairs);
        return (Tone::Odd, text);
    }
    (tone(t.state), t.state.name().to_owned())
}

/// The pairs of networks that a tunnel does not carry.
fn missing(t: &TunnelStatus) -> Option<String> {
    let c = &t.coverage;
    if c.is_whole() {
        return None;
    }
    let pair = |m: &MissingStatus| {
        let partly = if m.partly { " (narrowed by the peer)" } else { "" };
        format!("{} -> {}{partly}", m.local, m.remote)
    };
    let mut text = c.missing.iter().take(4).map(pair).collect::<Vec<_>>().join(", ");
    if c.pairs - c.covered > 4 {
        text.push_str(", …");
    }
    Some(format!("{} of {} pairs of networks are carried; missing: {text}", c.covered, c.pairs))
}

/// When a tunnel is tried again, if it is.
fn next_attempt(t: &TunnelStatus) -> Option<String> {
    match t.retry_in_s {
        Some(s) => Some(format!("in {}", span(s))),
        None if t.wanted && t.state == TunnelState::Failed => Some("is under way".to_owned()),
        None => None,
    }
}

/// What probes told in the last minute.
fn figures(q: &QualityStatus) -> String {
    let target = q.port.map_or_else(|| q.target.clone(), |port| format!("UDP port {port} of {}", q.target));
    let Some(loss) = q.loss_ratio else { return format!("no answer of {target} is known yet") };
    let there = match q.lost_there {
        Some(there) if q.lost > 0 => format!(" ({there} on the way there)"),
        _ => String::new(),
    };
    let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    format!(
        "{target}: {} of {} probes lost{there}, {:.1} %, delay {} ms ({} to {}), jitter {} ms",
        q.lost,
        q.probes,
        loss * 100.0,
        ms(q.delay_ms),
        ms(q.delay_min_ms),
        ms(q.delay_max_ms),
        ms(q.jitter_ms)
    )
}

fn detail(t: &TunnelStatus, out: &mut Out) -> std::io::Result<()> {
    let title = out.paint(Tone::Bold, &format!("tunnel {}", safe(&t.name)));
    out.line(&format!("\n{title}"))?;
    let mut field = |name: &str, value: String| out.line(&format!("  {name:<14}{}", safe(&value)));
    field("state", format!("{} since {}, start: {}", t.state.name(), t.since, t.start))?;
    if let Some(when) = next_attempt(t) {
        field("next attempt", when)?;
    }
    if let Some(error) = &t.last_error {
        field("last error", error.clone())?;
    }
    if let Some(missing) = missing(t) {
        field("coverage", missing)?;
    }
    if let Some(s) = t.unanswered_s {
        field("traffic", format!("packets leave and none have come in for {}", span(s)))?;
    }
    if let Some(q) = &t.quality {
        let cause =
            q.cause.as_ref().map_or_else(String::new, |cause| format!(" ({})", cause.replace('_', " ")));
        field("health", format!("{}{cause} since {}; {}", q.health, q.since, figures(q)))?;
        if let Some(problem) = &q.problem {
            field("", problem.clone())?;
        }
    }
    if !t.shares_with.is_empty() {
        field("shares flows", format!("with {}", t.shares_with.join(", ")))?;
    }
    for warning in &t.warnings {
        field("warning", warning.clone())?;
    }
    if let Some(p) = &t.path {
        field("path", format!("{} -> {}", p.local, p.remote))?;
    }
    if let Some(ike) = &t.ike {
        let nat = match ike.nat {
            Nat::None => "no NAT",
            Nat::Local => "we are behind NAT",
            Nat::Remote => "the peer is behind NAT",
            Nat::Both => "both are behind NAT",
        };
        let role = serde_json::to_value(ike.role).ok();
        let role = role.as_ref().and_then(|r| r.as_str()).unwrap_or_default();
        field("ike", format!("{}_i {}_r, {role}, {nat}", ike.spi_i, ike.spi_r))?;
        field("", format!("{}, new keys in {}", ike.proposal, span(ike.rekey_in_s)))?;
        if let Some(id) = &ike.peer_id {
            field("peer", id.clone())?;
        }
    }
    if let Some(levels) = levels(t) {
        field("bandwidth", levels)?;
    }
    for r in t.rules.iter().filter(|r| r.state != RuleState::Up || r.covered < r.pairs) {
        let again = r.retry_in_s.map_or_else(String::new, |s| format!(", asked for again in {}", span(s)));
        field(
            "rule",
            format!("{}: {}, {} of {} pairs{again}", r.networks(), r.state.name(), r.covered, r.pairs),
        )?;
        if let Some(error) = &r.last_error {
            field("", error.clone())?;
        }
    }
    for c in &t.children {
        field("child", format!("{} -> {}", c.local.join(" "), c.remote.join(" ")))?;
        field(
            "",
            format!(
                "{}_in {}_out, {}, {} old, new keys in {}",
                c.spi_in,
                c.spi_out,
                c.proposal,
                span(c.age_s),
                span(c.rekey_in_s)
            ),
        )?;
        field(
            "",
            format!(
                "out {} in {} packets, in {} in {} packets",
                bytes(c.bytes_out),
                c.packets_out,
                bytes(c.bytes_in),
                c.packets_in
            ),
        )?;
        if c.drops.replay + c.drops.integrity > 0 {
            field(
                "dropped",
                format!("{} replayed, {} with a bad check value", c.drops.replay, c.drops.integrity),
            )?;
        }
    }
    Ok(())
}
