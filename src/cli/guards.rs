//! `cygnet guard` and `cygnet release`: the guards without a daemon.

use std::path::PathBuf;

use clap::Args;

use super::output::{Out, safe};
use super::{CONFIG, Failure, Global, Outcome, exit};
use crate::control::client::Client;
use crate::plane::residue;
use crate::{config, driver, privileges};

#[derive(Args, Debug)]
#[command(
    after_help = "For the time before the daemon runs: protected packets are blocked from here on, and a daemon that \
                  starts takes the guards over without a gap. cygnet-guard.service does this before the network is up."
)]
pub struct GuardArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Needed after a daemon has ended for good: its guards stay in force until then, unless the \
                  configuration says \"guards: release\". From here on protected packets are routed like any other, \
                  in clear text. No configuration is read; what is cygnet's carries its mark."
)]
pub struct ReleaseArgs {}

pub fn guard(args: &GuardArgs, g: &Global, out: &mut Out) -> Outcome {
    refuse_beside_a_daemon(g, "it guards already")?;
    privileges::keep_no_traces();
    let loaded = config::load(&args.config).map_err(|errors| {
        let message = format!("the configuration has errors\n{errors}");
        Failure::new(exit::CONFIG, message, "guards that were in force still are; nothing was changed")
    })?;
    let children = driver::guard(&loaded.config).map_err(|e| super::run::failure(&e))?;
    out.line(&format!("{children} guards are in force"))?;
    Ok(0)
}

pub fn release(_: &ReleaseArgs, g: &Global, out: &mut Out) -> Outcome {
    refuse_beside_a_daemon(g, "stop it first: systemctl stop cygnet")?;
    match residue::release() {
        Ok(r) => {
            out.line(&format!(
                "released: {} policies, {} SAs, {} routing rules",
                r.policies, r.states, r.rules
            ))?;
            Ok(0)
        }
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(|e| safe(&e.to_string())).collect();
            Err(Failure::new(exit::FAILED, errors.join("\n"), "what could be released is released"))
        }
    }
}

fn refuse_beside_a_daemon(g: &Global, hint: &str) -> Result<(), Failure> {
    if Client::connect(&g.control).is_err() {
        return Ok(());
    }
    let message = format!("a daemon answers on {}", safe(&g.control.to_string_lossy()));
    Err(Failure::new(exit::FAILED, message, hint))
}
