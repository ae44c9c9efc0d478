//! `cygnet guard` and `cygnet release`: the guards without a daemon.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::output::{Out, safe};
use super::{CONFIG, Exit, Failure, Global, Outcome};
use crate::control::client::Client;
use crate::plane::residue;
use crate::sys::seat;
use crate::{config, driver, privileges};

#[derive(Args, Debug)]
#[command(
    after_help = "For the time before the daemon runs: protected packets are blocked from here on, and a daemon that \
                  starts takes the guards over without a gap. cygnet-guard.service does this before the network is up.

Examples:
  cygnet guard
  cygnet guard --config new.yaml"
)]
pub struct GuardArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Needed after a daemon has ended for good: its guards stay in force until then, unless the \
                  configuration says \"guards: release\". From here on protected packets are routed like any other, \
                  in clear text. No configuration is read; what is cygnet's carries its mark.

Examples:
  systemctl stop cygnet; cygnet release"
)]
pub struct ReleaseArgs {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub fn guard(args: &GuardArgs, g: &Global, out: &mut Out) -> Outcome {
    refuse_beside_a_daemon(g, "it guards already")?;
    privileges::keep_no_traces();
    let loaded = config::load(&args.config).map_err(|errors| {
        let message = format!("the configuration has errors\n{errors}");
        Failure::new(Exit::Config, message, "guards that were in force still are; nothing was changed")
    })?;
    let children = driver::guard(&loaded.config).map_err(|e| super::run::failure(&e))?;
    if args.json {
        out.json(&json!({ "version": 1, "guards": children }))?;
    } else {
        out.line(&format!("{children} guards are in force"))?;
    }
    Ok(Exit::Done)
}

pub fn release(args: &ReleaseArgs, g: &Global, out: &mut Out) -> Outcome {
    refuse_beside_a_daemon(g, "stop it first: systemctl stop cygnet")?;
    match residue::release() {
        Ok(r) if args.json => {
            out.json(&json!({
                "version": 1, "policies": r.policies, "states": r.states, "rules": r.rules
            }))?;
            Ok(Exit::Done)
        }
        Ok(r) => {
            out.line(&format!(
                "released: {} policies, {} SAs, {} routing rules",
                r.policies, r.states, r.rules
            ))?;
            Ok(Exit::Done)
        }
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(|e| safe(&e.to_string())).collect();
            Err(Failure::new(Exit::Failed, errors.join("\n"), "what could be released is released"))
        }
    }
}

fn refuse_beside_a_daemon(g: &Global, hint: &str) -> Result<(), Failure> {
    let message = if Client::connect_within(&g.control, g.timeout).is_ok() {
        format!("a daemon answers on {}", safe(&g.control.to_string_lossy()))
    } else if seat::is_taken() {
        "a daemon with another control socket runs in this network namespace".to_owned()
    } else {
        return Ok(());
    };
    Err(Failure::new(Exit::Failed, message, hint))
}
