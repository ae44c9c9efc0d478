//! `cygnet run`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::output::safe;
use super::{CONFIG, Failure, Global, Outcome, exit};
use crate::config::{self, Loaded};

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
    for warning in &loaded.warnings {
        super::output::complain(&warning.one_line(&safe(&args.config.to_string_lossy())), "");
    }
    log(g.verbose);
    match start(&args.config, loaded) {
        Ok(()) => Ok(0),
        Err(e) => Err(Failure::new(exit::SOFTWARE, safe(&format!("{e:#}")), "")),
    }
}

/// Sends the log to stderr: `info`, with `-v` `debug`, with `-vv` `trace`; CYGNET_LOG (as in `info,cygnet_ike=debug`)
/// says it in full. Under systemd the journal adds the time.
fn log(verbose: u8) {
    let level = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let wanted = std::env::var("CYGNET_LOG").unwrap_or_else(|_| level.to_owned());
    // Below `warn` this crate writes whole netlink messages.
    let filter = EnvFilter::new(format!("{wanted},netlink_proto=warn"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    // A subscriber that is there already (in tests) stays.
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().try_init()
    } else {
        log.try_init()
    };
}

/// The seam to the daemon's loop: returns when the daemon has ended.
fn start(_path: &Path, _loaded: Loaded) -> anyhow::Result<()> {
    anyhow::bail!("this build has no driver")
}
