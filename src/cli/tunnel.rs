//! Verbs that change something: `up`, `down`, `rekey`, `reset`, `bandwidth`. They wait for the result.

use std::time::Duration;

use clap::Args;

use super::output::{Out, safe};
use super::progress::Progress;
use super::{Exit, Global, Outcome, ask, names, unexpected};
use crate::config::units;
use crate::control::client::Client;
use crate::control::{Request, Response};

#[derive(Args, Debug)]
pub struct TunnelArgs {
    /// The tunnel
    #[arg(add = names::tunnels())]
    tunnel: String,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet rekey a-b                       new keys for the tunnel's children
  cygnet rekey a-b --ike                 and for its IKE SA
  cygnet rekey --all --gateway vpc-a     for all tunnels of a gateway, 64 at a time")]
pub struct RekeyArgs {
    /// The tunnel
    #[arg(add = names::tunnels(), required_unless_present = "all", conflicts_with = "all")]
    tunnel: Option<String>,
    /// All tunnels that are up; what has begun goes on if this command is ended
    #[arg(long)]
    all: bool,
    /// Of all tunnels only those of this gateway
    #[arg(long, requires = "all", conflicts_with = "tunnel", add = names::gateways())]
    gateway: Option<String>,
    /// Rekey the IKE SA instead of the children
    #[arg(long)]
    ike: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// How long the result is waited for if nobody says otherwise.
const WAIT: Duration = Duration::from_secs(30);
/// The same of all tunnels at once.
const WAIT_FOR_ALL: Duration = Duration::from_secs(600);

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet bandwidth vpc-a 200mbit
  cygnet bandwidth vpc-a unlimited --save
  cygnet bandwidth a-b 20mbit                that of a tunnel
  cygnet bandwidth tunnel:a-b 50mbit --in    what it receives")]
pub struct BandwidthArgs {
    /// The gateway, or a tunnel; tunnel:NAME where both have that name
    #[arg(value_name = "GATEWAY|TUNNEL", add = names::all())]
    name: String,
    /// The new rate, as in 200mbit, or unlimited
    #[arg(value_parser = rate)]
    rate: Rate,
    /// Cap what comes in instead of what goes out
    #[arg(long = "in")]
    inward: bool,
    /// Keep it also over the end of the daemon
    #[arg(long)]
    save: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// A rate or none, as a type of its own: clap would take an `Option` for an optional argument.
#[derive(Clone, Copy, Debug)]
struct Rate(Option<u64>);

fn rate(text: &str) -> Result<Rate, String> {
    match text {
        "unlimited" => Ok(Rate(None)),
        _ => units::rate(text).map(|bps| Rate(Some(bps))).map_err(|w| format!("{}; {}", w.what, w.fix)),
    }
}

/// Asks for something that is done when it is answered, and says so.
pub(super) fn done(request: &Request, json: bool, g: &Global, out: &mut Out) -> Outcome {
    match ask(g, request)? {
        Response::Done { message } => out.done(&message, json)?,
        _ => return Err(unexpected()),
    }
    Ok(Exit::Done)
}

/// The daemon counts whole seconds.
fn whole(g: &Global) -> u64 {
    g.timeout.unwrap_or(WAIT).as_secs().max(1)
}

/// Shows that a tunnel is waited for, and in which state it is.
fn waiting(what: &str, tunnel: &str, g: &Global) -> Progress {
    let (control, name) = (g.control.clone(), tunnel.to_owned());
    Progress::looking(format!("{what} tunnel {}", safe(tunnel)), move || {
        let mut client = Client::connect_within(&control, Some(Duration::from_secs(1))).ok()?;
        let request = Request::Status { name: Some(name.clone()) };
        let Ok(Response::Status { snapshot }) = client.ask(&request) else { return None };
        let tunnel = snapshot.tunnels.iter().find(|t| t.name == name)?;
        Some(tunnel.state.name().to_owned())
    })
}

pub fn up(a: TunnelArgs, g: &Global, out: &mut Out) -> Outcome {
    let _progress = waiting("bringing up", &a.tunnel, g);
    done(&Request::Up { tunnel: a.tunnel, timeout_s: whole(g) }, a.json, g, out)
}

pub fn down(a: TunnelArgs, g: &Global, out: &mut Out) -> Outcome {
    let _progress = waiting("taking down", &a.tunnel, g);
    done(&Request::Down { tunnel: a.tunnel, timeout_s: whole(g) }, a.json, g, out)
}

pub fn reset(a: TunnelArgs, g: &Global, out: &mut Out) -> Outcome {
    let _progress = waiting("resetting", &a.tunnel, g);
    done(&Request::Reset { tunnel: a.tunnel, timeout_s: whole(g) }, a.json, g, out)
}

pub fn rekey(a: RekeyArgs, g: &Global, out: &mut Out) -> Outcome {
    let Some(tunnel) = a.tunnel else {
        let _progress = Progress::new("making new keys for all tunnels");
        let timeout_s = g.timeout.unwrap_or(WAIT_FOR_ALL).as_secs().max(1);
        return done(&Request::RekeyAll { gateway: a.gateway, ike: a.ike, timeout_s }, a.json, g, out);
    };
    let _progress = waiting("making new keys for", &tunnel, g);
    done(&Request::Rekey { tunnel, ike: a.ike, timeout_s: whole(g) }, a.json, g, out)
}

pub fn bandwidth(a: BandwidthArgs, g: &Global, out: &mut Out) -> Outcome {
    let (bps, inward) = (a.rate.0, a.inward);
    done(&Request::Bandwidth { gateway: a.name, bps, inward, save: a.save }, a.json, g, out)
}
