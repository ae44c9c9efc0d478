//! The command line. One file for each group of verbs; results go to stdout, everything else to stderr, and the exit
//! code follows sysexits where it says something.

mod bugreport;
mod check;
mod diagnose;
mod doctor;
mod events;
mod exit;
mod explain;
mod export;
mod follow;
mod generate;
mod guards;
mod handover;
mod import;
mod interrupt;
mod limit;
mod names;
mod output;
mod plan;
mod progress;
mod quality;
mod reference;
mod run;
mod status;
mod top;
mod tunnel;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::control::client::{Client, ClientError};
use crate::control::{ErrorKind, Request, Response};
use exit::Exit;
use output::Out;

/// The default configuration.
pub const CONFIG: &str = "/etc/cygnet/cygnet.yaml";
/// The default control socket.
pub const SOCKET: &str = "/run/cygnet/control.sock";

const EXAMPLES: &str = "Examples:
  cygnet check /etc/cygnet/cygnet.yaml     everything that is wrong, with line and column
  cygnet run --config ./lab.yaml           the daemon, in the foreground
  cygnet plan; cygnet apply                what a changed file would do; do it
  cygnet status                            gateways and tunnels at a glance
  cygnet status --follow                   the same, drawn anew every two seconds
  cygnet up a-b --timeout 10s              bring a tunnel up and wait for it
  cygnet events --tunnel a-b --since 1h    what happened to it, and what happens from now on
  cygnet export-peer a-b --format swanctl  the configuration of a tunnel's other end
  cygnet import /etc/ipsec.conf            a configuration from that of strongSwan or libreswan
  cygnet bandwidth vpc-a 200mbit           change a gateway's bandwidth, effective at once
  cygnet limit vpc-a 10.1.0.5 10mbit       cap one of its inner addresses
  cygnet bugreport                         what somebody who helps has to see, without keys";

#[derive(Parser, Debug)]
#[command(
    name = "cygnet",
    version,
    about = "An IKEv2 site-to-site VPN gateway for Linux",
    max_term_width = 100,
    after_help = format!("{EXAMPLES}\n\n{}", exit::help().trim_end())
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args, Debug)]
struct Global {
    /// The daemon's control socket
    #[arg(long, global = true, value_name = "SOCKET", default_value = SOCKET)]
    control: PathBuf,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    color: Color,
    /// Tell more; twice: even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// How long to wait for the daemon: seconds, or as in 5m. Without it 30s for up, down, rekey and reset, 2m for plan and
    /// apply, else 15s. A stream ends by itself after this time
    #[arg(long, global = true, value_name = "DURATION", value_parser = seconds)]
    timeout: Option<Duration>,
}

/// When to use colours.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Color {
    /// On terminals, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run the daemon in the foreground
    Run(run::RunArgs),
    /// Check a configuration, without a daemon and without root
    Check(check::CheckArgs),
    /// Show the difference between the running gateway and a file, and what making it would cost
    Plan(plan::PlanArgs),
    /// Make the running gateway what a file says, or change nothing
    Apply(plan::ApplyArgs),
    /// Show gateways, tunnels and SAs; exit 1 if a tunnel that should be up is not
    Status(status::StatusArgs),
    /// Bring a tunnel up and wait until it carries traffic
    #[command(after_help = "Examples:
  cygnet up a-b
  cygnet up a-b --timeout 10s && ping -c 1 10.2.0.1")]
    Up(tunnel::TunnelArgs),
    /// Take a tunnel down and keep it down
    #[command(after_help = "Examples:
  cygnet down a-b
  cygnet down a-b --timeout 5s --json")]
    Down(tunnel::TunnelArgs),
    /// Make new keys for a tunnel
    #[command(after_help = "Examples:
  cygnet rekey a-b             the keys of its ESP SAs
  cygnet rekey a-b --ike       those of its IKE SA")]
    Rekey(tunnel::RekeyArgs),
    /// Drop all state of a tunnel and begin anew
    #[command(after_help = "Examples:
  cygnet reset a-b")]
    Reset(tunnel::TunnelArgs),
    /// Change the bandwidth of a gateway or a tunnel, effective at once
    Bandwidth(tunnel::BandwidthArgs),
    /// Limit inner addresses of a gateway, effective at once, or show the limits
    Limit(limit::LimitArgs),
    /// Show who uses the gateways the most, or which strangers knock the loudest
    Top(top::TopArgs),
    /// Follow what happens
    Events(events::EventsArgs),
    /// Show the last events of a tunnel
    Logs(events::LogsArgs),
    /// Show how well a tunnel carried packets, minute by minute: loss, delay, jitter
    Quality(quality::QualityArgs),
    /// Pack what somebody who helps has to see into one file, without keys
    Bugreport(bugreport::BugreportArgs),
    /// Find out why a tunnel is not up, or is up and passes nothing
    Diagnose(diagnose::DiagnoseArgs),
    /// Show the last negotiation of a tunnel: offered, wanted, chosen or refused, and why
    Explain(explain::ExplainArgs),
    /// End the daemon and leave its tunnels to the next one, which goes on with them
    Handover(handover::HandoverArgs),
    /// Put the guards in force without a daemon, as before the network is up
    Guard(guards::GuardArgs),
    /// Release the guards of a daemon that has ended
    Release(guards::ReleaseArgs),
    /// Show what this host offers and what stands in the way
    Doctor(doctor::DoctorArgs),
    /// Write the mirrored configuration of a tunnel for its other end
    ExportPeer(export::ExportArgs),
    /// Turn a swanctl.conf or ipsec.conf into a configuration
    Import(import::ImportArgs),
    /// Make a strong pre-shared key
    Psk(generate::PskArgs),
    /// Write completions for a shell
    Completions(generate::CompletionsArgs),
    /// Write the JSON schema of the configuration
    #[command(after_help = "Examples:
  cygnet schema > cygnet.schema.json")]
    Schema,
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Man(generate::ManArgs),
    /// Write the references of docs/reference into a directory
    #[command(hide = true)]
    Reference(generate::ReferenceArgs),
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
struct Failure {
    code: Exit,
    message: String,
    hint: String,
}

impl Failure {
    fn new(code: Exit, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }
}

impl From<std::io::Error> for Failure {
    /// Of writing results; a reader that went away wanted no more of them.
    fn from(e: std::io::Error) -> Self {
        if e.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Done, "", "");
        }
        Self::new(Exit::Io, format!("cannot write: {e}"), "")
    }
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        let (code, hint) = match &e {
            ClientError::Unreachable { .. } => (
                Exit::Unavailable,
                "is it running? See: systemctl status cygnet, or name its socket with --control",
            ),
            ClientError::Permission { .. } => {
                (Exit::Permission, "run as root or as a member of group cygnet")
            }
            ClientError::Silent { .. } => (
                Exit::Temporary,
                "it may be busy, or stopped; see: systemctl status cygnet, and give it more with --timeout",
            ),
            ClientError::Broken(_) => (Exit::Protocol, "does the daemon have the version of this command?"),
        };
        Self::new(code, output::safe(&e.to_string()), hint)
    }
}

/// How a command ended that did what it was asked for.
type Outcome = Result<Exit, Failure>;

/// Runs the program with `args` (the first one is its name).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    if names::complete(Cli::command) {
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are results; everything else is a usage error.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { Exit::Usage } else { Exit::Done }.code());
        }
    };
    let mut out = Out::new(cli.global.color);
    match dispatch(cli, &mut out).and_then(|code| Ok(out.flush().map(|()| code)?)) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            output::complain(&failure.message, &failure.hint);
            ExitCode::from(failure.code.code())
        }
    }
}

fn dispatch(cli: Cli, out: &mut Out) -> Outcome {
    let g = &cli.global;
    match cli.verb {
        Verb::Run(args) => run::run(&args, g),
        Verb::Check(args) => check::check(&args, out),
        Verb::Plan(args) => plan::plan(&args, g, out),
        Verb::Apply(args) => plan::apply(&args, g, out),
        Verb::Status(args) => status::status(&args, g, out),
        Verb::Up(args) => tunnel::up(args, g, out),
        Verb::Down(args) => tunnel::down(args, g, out),
        Verb::Rekey(args) => tunnel::rekey(args, g, out),
        Verb::Reset(args) => tunnel::reset(args, g, out),
        Verb::Bandwidth(args) => tunnel::bandwidth(args, g, out),
        Verb::Limit(args) => limit::limit(&args, g, out),
        Verb::Top(args) => top::top(&args, g, out),
        Verb::Events(args) => events::events(&args, g, out),
        Verb::Logs(args) => events::logs(args, g, out),
        Verb::Quality(args) => quality::quality(args, g, out),
        Verb::Bugreport(args) => bugreport::bugreport(&args, g, out),
        Verb::Diagnose(args) => diagnose::diagnose(&args, g, out),
        Verb::Explain(args) => explain::explain(&args, g, out),
        Verb::Handover(args) => handover::handover(&args, g, out),
        Verb::Guard(args) => guards::guard(&args, g, out),
        Verb::Release(args) => guards::release(&args, g, out),
        Verb::Doctor(args) => doctor::doctor(&args, g, out),
        Verb::ExportPeer(args) => export::export_peer(&args, out),
        Verb::Import(args) => import::import(&args, out),
        Verb::Psk(args) => generate::psk(&args, out),
        Verb::Completions(args) => generate::completions(&args, out),
        Verb::Schema => generate::schema(out),
        Verb::Man(args) => generate::man(&args, Cli::command()),
        Verb::Reference(args) => generate::references(&args, Cli::command()),
    }
}

/// Asks the daemon; its errors become ours.
fn ask(g: &Global, request: &Request) -> Result<Response, Failure> {
    ask_within(g, request, g.timeout)
}

/// The same, by this time instead of what the user said.
fn ask_within(g: &Global, request: &Request, patience: Option<Duration>) -> Result<Response, Failure> {
    match Client::connect_within(&g.control, patience)?.ask(request)? {
        Response::Error { kind, message, hint } => Err(refused(kind, &message, &hint)),
        response => Ok(response),
    }
}

fn refused(kind: ErrorKind, message: &str, hint: &str) -> Failure {
    let code = match kind {
        ErrorKind::Permission => Exit::Permission,
        ErrorKind::Timeout | ErrorKind::Busy => Exit::Temporary,
        ErrorKind::Stopping => Exit::Unavailable,
        ErrorKind::NotFound => Exit::Usage,
        ErrorKind::BadRequest => Exit::Protocol,
        ErrorKind::Failed | ErrorKind::Other => Exit::Failed,
    };
    Failure::new(code, output::safe(message), output::safe(hint))
}

/// The failure of an answer that does not belong to the question.
fn unexpected() -> Failure {
    let hint = "does the daemon have the version of this command?";
    Failure::new(Exit::Protocol, "the daemon answered something else", hint)
}

/// A bare number means seconds here, as with other tools' `--timeout`.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(s) => Ok(Duration::from_secs(s)),
        Err(_) => duration(text),
    }
}

/// Reads `30s`, `5m` and the like for a flag.
fn duration(text: &str) -> Result<Duration, String> {
    crate::config::units::duration(text).map_err(|w| format!("{}; {}", w.what, w.fix))
}

#[cfg(test)]
mod tests;
