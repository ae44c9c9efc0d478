//! Verbs that change something: `up`, `down`, `rekey`, `reset`, `bandwidth`. They wait for the result.

use std::time::Duration;

use clap::Args;

use super::output::{Out, safe};
use super::{Global, Outcome, ask, duration, unexpected};
use crate::config::units;
use crate::control::{Request, Response};

#[derive(Args, Debug)]
pub struct TunnelArgs {
    /// The tunnel
    tunnel: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Args, Debug)]
pub struct RekeyArgs {
    /// The tunnel
    tunnel: String,
    /// Rekey the IKE SA instead of the children
    #[arg(long)]
    ike: bool,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Args, Debug)]
struct Wait {
    /// How long to wait for the result
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = seconds)]
    timeout: Duration,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet bandwidth vpc-a 200mbit
  cygnet bandwidth vpc-a unlimited --save
  cygnet bandwidth a-b 20mbit            that of a tunnel
  cygnet bandwidth tunnel:a-b 50mbit --in what it receives")]
pub struct BandwidthArgs {
    /// The gateway, or a tunnel; tunnel:NAME where both have that name
    #[arg(value_name = "GATEWAY|TUNNEL")]
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

/// A bare number means seconds here, as with other tools' `--timeout`.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(s) => Ok(Duration::from_secs(s)),
        Err(_) => duration(text),
    }
}

fn done(request: &Request, g: &Global, out: &mut Out) -> Outcome {
    match ask(g, request)? {
        Response::Done { message } => out.line(&safe(&message))?,
        _ => return Err(unexpected()),
    }
    Ok(0)
}

fn whole(wait: &Wait) -> u64 {
    wait.timeout.as_secs().max(1)
}

pub fn up(a: TunnelArgs, g: &Global, out: &mut Out) -> Outcome {
    let timeout_s = whole(&a.wait);
    done(&Request::Up { tunnel: a.tunnel, timeout_s }, g, out)
}

pub fn down(a: TunnelArgs, g: &Global, out: &mut Out) -> Outcome {
    let timeout_s = whole(&a.wait);
    done(&Request::Down { tunnel: a.tunnel, timeout_s }, g, out)
}

pub fn reset(a: TunnelArgs, g: &Global, out: &mut Out) -> Outcome {
    let timeout_s = whole(&a.wait);
    done(&Request::Reset { tunnel: a.tunnel, timeout_s }, g, out)
}

pub fn rekey(a: RekeyArgs, g: &Global, out: &mut Out) -> Outcome {
    let timeout_s = whole(&a.wait);
    done(&Request::Rekey { tunnel: a.tunnel, ike: a.ike, timeout_s }, g, out)
}

pub fn bandwidth(a: BandwidthArgs, g: &Global, out: &mut Out) -> Outcome {
    let (bps, inward) = (a.rate.0, a.inward);
    done(&Request::Bandwidth { gateway: a.name, bps, inward, save: a.save }, g, out)
}
