//! `cygnet top`: which tunnels and inner addresses use a gateway the most, now or at their busiest, and which strangers
//! knock the loudest.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::output::{Out, Tone, bytes, rate, safe, span};
use super::progress::Progress;
use super::{Exit, Failure, Global, Outcome, ask, duration, names, unexpected};
use crate::config::units::show_duration;
use crate::control::{Request, Response};
use crate::observe::top::{self, IpPeak, IpRate, LoudPeer, TopPeers, TopTunnels, TunnelRate};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet top                    tunnels and inner addresses by what they carry in a second
  cygnet top vpc-a --span 10s   of one gateway, over ten seconds
  cygnet top vpc-a --since 8h   when inner addresses were at their busiest, by the minute
  cygnet top --peers            whose datagrams were refused the most")]
pub struct TopArgs {
    /// Only tunnels and inner addresses of this gateway
    #[arg(conflicts_with = "peers", add = names::gateways())]
    gateway: Option<String>,
    /// Strangers whose datagrams were refused, instead of tunnels
    #[arg(long)]
    peers: bool,
    /// Inner addresses at their busiest minute, this far back, a day at most
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with_all = ["peers", "span"])]
    since: Option<Duration>,
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
    if let Some(since) = args.since {
        let request = Request::TopPeaks { gateway: args.gateway.clone(), since_s: since.as_secs() };
        let Response::TopPeaks { peaks } = ask(g, &request)? else { return Err(unexpected()) };
        return busiest(&peaks, args, out);
    }
    if args.span.is_zero() || args.span > LONGEST {
        return Err(Failure::new(Exit::Usage, "--span is a time up to an hour", "cygnet top --span 10s"));
    }
    let before = look(args, g)?;
    {
        let _progress = Progress::new(format!("looking for {}", show_duration(args.span)));
        std::thread::sleep(args.span);
    }
    let now = look(args, g)?;
    let rates = top::rates(&before, &now);
    let shown = first(&rates, args);
    let ips = top::ip_rates(&before, &now);
    if args.json {
        let seconds = now.at_ns.saturating_sub(before.at_ns) as f64 / 1e9;
        out.json(&json!({ "version": 1, "span_s": seconds, "tunnels": shown, "ips": first(&ips, args) }))?;
        return Ok(Exit::Done);
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
    if !ips.is_empty() {
        addresses(&ips, args, out)?;
    } else if !now.counts_ips {
        out.line("\nthis kernel counts no inner addresses: it has no nf_tables of the family inet")?;
    }
    Ok(Exit::Done)
}

/// As many as shall be shown.
fn first<'a, T>(all: &'a [T], args: &TopArgs) -> &'a [T] {
    all.get(..args.count.min(all.len())).unwrap_or_default()
}

fn addresses(ips: &[IpRate], args: &TopArgs, out: &mut Out) -> std::io::Result<()> {
    let plain = |text: String| (Tone::Plain, text);
    let row = |ip: &IpRate| {
        let t = &ip.totals;
        vec![
            plain(t.ip.to_string()),
            plain(safe(&t.gateway)),
            plain(rate(ip.tx_bps)),
            plain(rate(ip.rx_bps)),
            plain(bytes(t.minute_out.saturating_add(t.minute_in))),
            plain(bytes(t.day_out)),
            plain(bytes(t.day_in)),
            plain(ip.dropped_pps.to_string()),
            plain(t.limit.as_deref().map_or_else(|| "-".to_owned(), safe)),
        ]
    };
    let shown = first(ips, args);
    let rows: Vec<_> = shown.iter().map(row).collect();
    let head =
        ["ADDRESS", "GATEWAY", "OUT", "IN", "LAST MINUTE", "OUT IN A DAY", "IN IN A DAY", "DROPS/S", "LIMIT"];
    out.line("")?;
    out.table(&head, &rows)?;
    if ips.len() > shown.len() {
        out.line(&format!("and {} more", ips.len() - shown.len()))?;
    }
    Ok(())
}

fn busiest(peaks: &[IpPeak], args: &TopArgs, out: &mut Out) -> Outcome {
    let shown = first(peaks, args);
    if args.json {
        out.json(&json!({ "version": 1, "peaks": shown }))?;
        return Ok(Exit::Done);
    }
    if shown.is_empty() {
        out.line("no inner address carried anything in that time")?;
        return Ok(Exit::Done);
    }
    let plain = |text: String| (Tone::Plain, text);
    let row = |p: &IpPeak| {
        vec![
            plain(p.ip.to_string()),
            plain(safe(&p.gateway)),
            plain(rate(p.peak_bps)),
            plain(safe(&p.peak_at)),
            plain(bytes(p.bytes_out)),
            plain(bytes(p.bytes_in)),
            plain(p.limit.as_deref().map_or_else(|| "-".to_owned(), safe)),
        ]
    };
    let rows: Vec<_> = shown.iter().map(row).collect();
    out.table(&["ADDRESS", "GATEWAY", "BUSIEST MINUTE", "AT", "OUT", "IN", "LIMIT"], &rows)?;
    Ok(Exit::Done)
}

fn look(args: &TopArgs, g: &Global) -> Result<TopTunnels, Failure> {
    match ask(g, &Request::TopTunnels { gateway: args.gateway.clone() })? {
        Response::TopTunnels { top } => Ok(top),
        _ => Err(unexpected()),
    }
}

fn peers(top: &TopPeers, args: &TopArgs, out: &mut Out) -> Outcome {
    let shown = first(&top.peers, args);
    if args.json {
        out.json(&json!({ "version": 1, "window_s": top.window_s, "peers": shown }))?;
        return Ok(Exit::Done);
    }
    if shown.is_empty() {
        out.line("no datagram was refused lately")?;
        return Ok(Exit::Done);
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
    Ok(Exit::Done)
}
