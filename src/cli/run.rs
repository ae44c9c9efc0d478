//! `cygnet run`.

use std::io;
use std::path::PathBuf;

use clap::Args;
use cygnet_model::plane::{PlaneError, PlaneErrorKind};

use super::{CONFIG, Exit, Failure, Global, Outcome};
use crate::privileges::{self, Confinement};
use crate::{config, driver};

#[derive(Args, Debug)]
#[command(
    after_help = "Ready means: systemd is told so, and the control socket answers. SIGTERM ends the daemon; \
                  the guards stay in force until it runs again, or until cygnet release.

Examples:
  cygnet run
  cygnet run --config ./lab.yaml -v
  CYGNET_LOG=cygnet=debug cygnet run     what the log tells, by part of the program"
)]
pub struct RunArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Go without Landlock and seccomp, which programs of daemon.alerts inherit; capabilities are dropped all the same
    #[arg(long)]
    unconfined: bool,
}

pub fn run(args: &RunArgs, g: &Global) -> Outcome {
    privileges::keep_no_traces();
    let loaded = config::load(&args.config).map_err(|errors| {
        Failure::new(Exit::Config, format!("the configuration has errors\n{errors}"), "nothing was started")
    })?;
    let confinement = if args.unconfined { Confinement::CapabilitiesOnly } else { Confinement::Full };
    match driver::run(&args.config, loaded, g.verbose, confinement) {
        Ok(()) => Ok(Exit::Done),
        Err(e) => Err(failure(&e)),
    }
}

/// What the daemon, or a part of it, could not do.
pub(super) fn failure(e: &anyhow::Error) -> Failure {
    let (code, hint) = advice(e);
    Failure::new(code, super::output::safe(&format!("{e:#}")), hint)
}

/// Exit code and advice by what the system said.
fn advice(e: &anyhow::Error) -> (Exit, &'static str) {
    let io = e.chain().find_map(|c| c.downcast_ref::<io::Error>()).map(io::Error::kind);
    let plane = e.chain().find_map(|c| c.downcast_ref::<PlaneError>()).map(|p| p.kind);
    // The planes hand on the system's words only.
    let exhausted = format!("{e:#}").contains("(os error 24)");
    match (io, plane) {
        (Some(io::ErrorKind::PermissionDenied), _) | (_, Some(PlaneErrorKind::Permission)) => {
            (Exit::Permission, "run as root, or with CAP_NET_ADMIN, CAP_NET_BIND_SERVICE and CAP_NET_RAW")
        }
        (Some(io::ErrorKind::AddrInUse), _) => {
            (Exit::Unavailable, "stop who uses it (ss -lnptu and ss -lnpx name it), or configure another one")
        }
        _ if exhausted => {
            (Exit::Software, "raise the limit of open files: ulimit -n, or LimitNOFILE= of the service")
        }
        _ => (Exit::Software, "cygnet doctor shows what this host offers"),
    }
}
