//! `cygnet run`.

use std::path::PathBuf;

use clap::Args;

use super::{CONFIG, Failure, Global, Outcome, exit};
use crate::{config, driver};

#[derive(Args, Debug)]
#[command(
    after_help = "Ready means: systemd is told so, and the control socket answers. SIGTERM ends the daemon."
)]
pub struct RunArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
}

pub fn run(args: &RunArgs, g: &Global) -> Outcome {
    let loaded = config::load(&args.config).map_err(|errors| {
        Failure::new(exit::CONFIG, format!("the configuration has errors\n{errors}"), "nothing was started")
    })?;
    match driver::run(&args.config, loaded, g.verbose) {
        Ok(()) => Ok(0),
        Err(e) => Err(Failure::new(exit::SOFTWARE, super::output::safe(&format!("{e:#}")), "")),
    }
}
