//! `cygnet diagnose`: why a tunnel is not up, or is up and passes nothing.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::output::{Out, Tone, safe};
use super::progress::Progress;
use super::{CONFIG, Exit, Failure, Global, Outcome, ask, names, unexpected};
use crate::control::{Request, Response};
use crate::diagnose::facts::DaemonFacts;
use crate::diagnose::{Found, gather, judge};

#[derive(Args, Debug)]
#[command(
    after_help = "Walks the configuration, names, routes, UDP 500 and 4500, the negotiation, SAs, policies, forwarding and
filters, MTU and traffic, and names each cause that it finds with its fix. Peers of tunnels that are not up are sent a
datagram on both ports; nothing is changed. docs/troubleshooting.md explains every cause.

Examples:
  cygnet diagnose                 all tunnels
  cygnet diagnose a-b             one of them
  cygnet diagnose --json | jq -r '.causes[].cause'

Exit code 0 if nothing was found, else 1."
)]
pub struct DiagnoseArgs {
    /// The tunnel; without it, all
    #[arg(add = names::tunnels())]
    tunnel: Option<String>,
    /// The configuration to look at where no daemon answers
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub fn diagnose(args: &DiagnoseArgs, g: &Global, out: &mut Out) -> Outcome {
    let progress = Progress::new("looking and probing");
    let daemon = daemon(args, g)?;
    let changed = daemon.is_ok() && differs(g);
    let facts = gather::gather(daemon, changed, &args.config, args.tunnel.as_deref());
    let causes = judge(&facts);
    drop(progress);
    let code = if causes.is_empty() { Exit::Done } else { Exit::Failed };
    let names: Vec<&str> = facts.tunnels.iter().map(|t| t.known.name.as_str()).collect();
    if args.json {
        out.json(&json!({ "version": 1, "healthy": causes.is_empty(), "tunnels": names, "causes": causes }))?;
        return Ok(code);
    }
    if causes.is_empty() {
        let of = match names.as_slice() {
            [one] => format!("tunnel {}", safe(one)),
            all => format!("{} tunnels", all.len()),
        };
        out.line(&format!("{}  {of}: nothing found that is wrong", out.paint(Tone::Good, "ok")))?;
    }
    causes.iter().try_for_each(|f| show(f, out))?;
    Ok(code)
}

/// The daemon's facts, or why there are none.
fn daemon(args: &DiagnoseArgs, g: &Global) -> Result<Result<DaemonFacts, String>, Failure> {
    match ask(g, &Request::Diagnose { tunnel: args.tunnel.clone() }) {
        Ok(Response::Known { facts }) => Ok(Ok(*facts)),
        Ok(_) => Err(unexpected()),
        // Without a daemon there is still the configuration.
        Err(f) if f.code == Exit::Unavailable => Ok(Err(f.message)),
        Err(f) => Err(f),
    }
}

/// Whether the daemon's file says something else than what runs. What is wrong with a file is found by reading it.
fn differs(g: &Global) -> bool {
    matches!(ask(g, &Request::Plan { file: None }), Ok(Response::Plan { plan, .. }) if plan.changes())
}

fn show(f: &Found, out: &mut Out) -> std::io::Result<()> {
    let whose = f.tunnel.as_deref().map_or_else(String::new, |t| format!("{}: ", safe(t)));
    let name = out.paint(Tone::Bad, f.cause.name());
    out.line(&format!("{name}  {whose}{}", safe(&f.detail)))?;
    out.line(&format!("    fix: {}", safe(&f.fix)))
}
