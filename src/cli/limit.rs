//! `cygnet limit`: what single inner addresses of a gateway may use.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::output::{Out, Tone, safe};
use super::{Exit, Failure, Global, Outcome, ask, names, unexpected};
use crate::config::limit::{address, parse, show_limit};
use crate::control::proto::{LimitAsk, LimitStatus};
use crate::control::{Request, Response};
use crate::observe::snapshot::Origin;

#[derive(Args, Debug)]
#[command(
    after_help = "A rate holds in each direction on its own. Nothing else is touched: no tunnel, no SA, no other address.

Examples:
  cygnet limit vpc-a 10.1.0.5 10mbit
  cygnet limit vpc-a 10.1.0.5 block
  cygnet limit vpc-a 10.1.0.5 unlimited --save
  cygnet limit vpc-a --file limits.txt      lines of an address and a rate; - is standard input
  cygnet limit vpc-a                        the limits in force"
)]
pub struct LimitArgs {
    /// The gateway
    #[arg(add = names::gateways())]
    gateway: String,
    /// The inner address, inside the gateway's networks
    #[arg(requires = "rate", value_parser = inner_address)]
    ip: Option<IpAddr>,
    /// The new limit: a rate, as in 10mbit, block (or 0) or unlimited (or -1)
    #[arg(value_parser = limit_word, allow_negative_numbers = true)]
    rate: Option<String>,
    /// Take addresses and limits from the lines of a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ip", "rate"])]
    file: Option<PathBuf>,
    /// Keep it also over the end of the daemon
    #[arg(long)]
    save: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

fn inner_address(text: &str) -> Result<IpAddr, String> {
    address(text).map_err(|w| format!("{}; {}", w.what, w.fix))
}

/// A limit in the words of the configuration.
fn limit_word(text: &str) -> Result<String, String> {
    parse(text).map(show_limit).map_err(|w| format!("{}; {}", w.what, w.fix))
}

pub fn limit(args: &LimitArgs, g: &Global, out: &mut Out) -> Outcome {
    let limits = match (args.ip, &args.rate, &args.file) {
        (Some(ip), Some(rate), _) => vec![LimitAsk { ip, rate: rate.clone() }],
        (_, _, Some(file)) => read(file)?,
        _ if args.save => {
            return Err(Failure::new(
                Exit::Usage,
                "there is nothing to save",
                "cygnet limit GATEWAY IP RATE --save",
            ));
        }
        _ => return list(args, g, out),
    };
    let request = Request::Limit { gateway: args.gateway.clone(), limits, save: args.save };
    super::tunnel::done(&request, args.json, g, out)
}

/// Longest file: more does not fit one request.
const MAX_FILE: u64 = 512 * 1024;

fn read(file: &Path) -> Result<Vec<LimitAsk>, Failure> {
    let shown = safe(&file.to_string_lossy());
    let failed = |e: std::io::Error| Failure::new(Exit::Io, format!("cannot read {shown}: {e}"), "");
    let mut text = String::new();
    let from: &mut dyn Read = match file.to_str() {
        Some("-") => &mut std::io::stdin(),
        _ => &mut std::fs::File::open(file).map_err(failed)?,
    };
    from.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(Failure::new(Exit::Usage, format!("{shown} is too long"), "split it: 512 KiB at most"));
    }
    let mut limits = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let wrong = |what: String, fix: &str| {
            Failure::new(
                Exit::Usage,
                format!("{shown}:{}: {}; no limit was changed", n + 1, safe(&what)),
                fix,
            )
        };
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let (ip, rate) = match (words.next(), words.next(), words.next()) {
            (None, ..) => continue,
            (Some(ip), Some(rate), None) => (ip, rate),
            _ => return Err(wrong("not an address and a limit".into(), "write lines like: 10.1.0.5 10mbit")),
        };
        let ip = address(ip).map_err(|w| wrong(w.what, &w.fix))?;
        let rate = parse(rate).map(show_limit).map_err(|w| wrong(w.what, &w.fix))?;
        limits.push(LimitAsk { ip, rate });
    }
    Ok(limits)
}

fn list(args: &LimitArgs, g: &Global, out: &mut Out) -> Outcome {
    let limits = match ask(g, &Request::Limits { gateway: args.gateway.clone() })? {
        Response::Limits { limits } => limits,
        _ => return Err(unexpected()),
    };
    if args.json {
        out.json(&json!({ "version": 1, "gateway": args.gateway, "limits": limits }))?;
        return Ok(Exit::Done);
    }
    if limits.is_empty() {
        out.line("no address is limited")?;
        return Ok(Exit::Done);
    }
    let plain = |text: String| (Tone::Plain, text);
    let row = |l: &LimitStatus| {
        let origin = match l.origin {
            Origin::Configuration => "configuration",
            Origin::Command => "command",
            Origin::Saved => "saved",
        };
        vec![
            plain(l.ip.to_string()),
            plain(safe(&l.rate)),
            plain(origin.into()),
            plain(l.dropped.to_string()),
        ]
    };
    let rows: Vec<_> = limits.iter().map(row).collect();
    out.table(&["ADDRESS", "LIMIT", "SET BY", "DROPPED"], &rows)?;
    Ok(Exit::Done)
}
