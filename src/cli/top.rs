//! `cygnet top`: who uses a gateway the most, and which strangers knock the loudest.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::output::{Out, Tone, bytes, rate, safe, span};
use super::{Failure, Global, Outcome, ask, duration, exit, unexpected};
use crate::control::{Request, Response};
use crate::observe::top::{self, LoudPeer, TopPeers, TopTunnels, TunnelRate};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet top                    tunnels by what they carry in a second
  cygnet top vpc-a --span 10s   of one gateway, over ten seconds
  cygnet top --peers            whose datagrams were refused the most")]
pub struct TopArgs {
    /// Only tunnels of this gateway
    #[arg(conflicts_with = "peers")]
    gateway: Option<String>,
    /// Strangers whose datagrams were refused, instead of tunnels
    #[arg(long)]
    peers: bool,
    /// How long to look
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration, conflicts_with = "peers")]
    span: Duration,
    /// How many to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    count: usize,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Longest look, well below what the daemon grants a silent client.
const LONGEST: Duration = Duration::from_secs(3600);

pub fn top(args: &TopArgs, g: &Global, out: &mut Out) -> Outcome {
    if args.peers {
        let Response::TopPeers { top } = ask(g, &Request::TopPeers {})? else { return Err(unexpected()) };
        return peers(&top, args, out);
    }
    if args.span.is_zero() || args.span > LONGEST {
        return Err(Failure::new(exit::USAGE, "--span is a time up to an hour", "cygnet top --span 10s"));
    }
    let before = look(args, g)?;
    std::thread::sleep(args.span);
    let now = look(args, g)?;
    let rates = top::rates(&before, &now);
    let shown = rates.get(..args.count.min(rates.len())).unwrap_or_default();
    if args.json {
        let seconds = now.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
        out.json(&json!({ "version": 1, "span_s": seconds, "tunnels": shown }))?;
        return Ok(0);
    }
    let plain = |text: String| (Tone::Plain, text);
    let row = |t: &TunnelRate| {
        vec![
            plain(safe(&t.totals.tunnel)),
            plain(safe(&t.totals.gateway)),
            plain(rate(t.tx_bps)),
            plain(rate(t.rx_bps)),
            plain(t.tx_pps.to_string()),
            plain(t.rx_pps.to_string()),
            plain(bytes(t.totals.bytes_out)),
            plain(bytes(t.totals.bytes_in)),
        ]
    };
    let rows: Vec<_> = shown.iter().map(row).collect();
    let head = ["TUNNEL", "GATEWAY", "OUT", "IN", "OUT PKT/S", "IN PKT/S", "OUT IN ALL", "IN IN ALL"];
    out.table(&head, &rows)?;
    if rates.len() > shown.len() {
        out.line(&format!("and {} more", rates.len() - shown.len()))?;
    }
    Ok(0)
}

fn look(args: &TopArgs, g: &Global) -> Result<TopTunnels, Failure> {
    match ask(g, &Request::TopTunnels { gateway: args.gateway.clone() })? {
        Response::TopTunnels { top } => Ok(top),
        _ => Err(unexpected()),
    }
}

fn peers(top: &TopPeers, args: &TopArgs, out: &mut Out) -> Outcome {
    let shown = top.peers.get(..args.count.min(top.peers.len())).unwrap_or_default();
    if args.json {
        out.json(&json!({ "version": 1, "window_s": top.window_s, "peers": shown }))?;
        return Ok(0);
    }
    if shown.is_empty() {
        out.line("no datagram was refused lately")?;
        return Ok(0);
    }
    out.line(&format!("refused in the last {}; an address proves nothing\n", span(top.window_s)))?;
    let plain = |text: String| (Tone::Plain, text);
    let row = |p: &LoudPeer| {
        let mut reasons: Vec<_> = p.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let reasons: Vec<String> = reasons.iter().map(|(r, n)| format!("{} {n}", safe(r))).collect();
        let count = if p.over > 0 { format!("≤ {}", p.refused) } else { p.refused.to_string() };
        vec![
            plain(safe(&p.source)),
            plain(count),
            plain(format!("{} ago", span(p.last_s))),
            plain(p.customer_gateway.as_deref().map_or_else(|| "-".to_owned(), safe)),
            plain(reasons.join(", ")),
        ]
    };
    let rows: Vec<_> = shown.iter().map(row).collect();
    out.table(&["SOURCE", "REFUSED", "LAST", "CUSTOMER GATEWAY", "REASONS"], &rows)?;
    Ok(0)
}
