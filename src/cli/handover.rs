//! `cygnet handover`: the end of a daemon whose tunnels go on.

use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::output::Out;
use super::progress::Progress;
use super::{Exit, Failure, Global, Outcome, refused, unexpected};
use crate::control::client::{Client, ClientError};
use crate::control::{Request, Response};

/// How long a daemon that has handed over may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often its process is looked for.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Args, Debug)]
#[command(
    after_help = "The peers are told nothing: SAs, guards and caps stay, and a daemon that is started on this host before \
                  it is booted anew goes on with them, whatever its version, without a new negotiation. With the kernel's \
                  data plane packets pass meanwhile. cygnet.service does this when it is restarted; systemctl stop ends \
                  the tunnels.

Examples:
  cygnet handover && cygnet run     another version goes on with the tunnels
  cygnet handover --if-restarting cygnet.service"
)]
pub struct HandoverArgs {
    /// Do so only if systemd is about to restart this unit; otherwise do nothing
    #[arg(long, value_name = "UNIT")]
    if_restarting: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub fn handover(args: &HandoverArgs, g: &Global, out: &mut Out) -> Outcome {
    if let Some(unit) = &args.if_restarting
        && !is_restarting(unit)?
    {
        out.done("no restart is under way; the daemon ends politely", args.json)?;
        return Ok(Exit::Done);
    }
    let mut client = match Client::connect_within(&g.control, g.timeout) {
        Ok(client) => client,
        // It is gone already; that was no handover, but nothing is left to be done.
        Err(ClientError::Unreachable { .. }) if args.if_restarting.is_some() && !main_process_lives() => {
            return Ok(Exit::Done);
        }
        Err(e) => return Err(e.into()),
    };
    let process = client.peer_process();
    let _progress = Progress::new("handing over");
    match client.ask(&Request::Handover {})? {
        Response::Done { message } => {
            // Whoever starts the next daemon now finds neither socket nor device in use.
            wait_for_end(process, g.timeout.unwrap_or(PATIENCE))?;
            out.done(&message, args.json)?;
            Ok(Exit::Done)
        }
        Response::Error { kind, message, hint } => Err(refused(kind, &message, &hint)),
        _ => Err(unexpected()),
    }
}

/// Whether the process that systemd is about to stop is there. If so it listens elsewhere than we think.
fn main_process_lives() -> bool {
    let named = std::env::var("MAINPID").ok().and_then(|pid| pid.parse::<u32>().ok());
    named.is_some_and(lives)
}

/// Whether there is such a process, which need not be in our /proc: units see what they may trace there (`ProtectProc=`).
fn lives(process: u32) -> bool {
    let Ok(pid) = i32::try_from(process) else { return false };
    if kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
        return false;
    }
    // A zombie holds nothing any more.
    let state = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    !state.rsplit(") ").next().is_some_and(|s| s.starts_with('Z'))
}

fn wait_for_end(process: Option<u32>, patience: Duration) -> Result<(), Failure> {
    let Some(process) = process else { return Ok(()) };
    let began = Instant::now();
    loop {
        if !lives(process) {
            return Ok(());
        }
        if began.elapsed() > patience {
            let message = format!("the daemon has left its tunnels, but its process {process} does not end");
            return Err(Failure::new(Exit::Temporary, message, "end it before the next one is started"));
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether systemd has a job that restarts this unit.
fn is_restarting(unit: &str) -> Result<bool, Failure> {
    let asked = Command::new("systemctl")
        .args(["list-jobs", "--no-legend", "--plain", "--full", "--no-pager", "--", unit])
        .output();
    match asked {
        Ok(answer) if answer.status.success() => Ok(restarts(&String::from_utf8_lossy(&answer.stdout), unit)),
        Ok(answer) => {
            let why = String::from_utf8_lossy(&answer.stderr);
            Err(unasked(super::output::safe(why.trim())))
        }
        Err(e) => Err(unasked(e.to_string())),
    }
}

fn unasked(why: String) -> Failure {
    let message = format!("systemctl does not tell whether the unit is about to be restarted: {why}");
    Failure::new(Exit::Unavailable, message, "the daemon is told to end politely, and its tunnels begin anew")
}

/// Whether a list of jobs (number, unit, type, state) has a restart of this unit.
fn restarts(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next() == Some(unit) && matches!(fields.next(), Some("restart" | "try-restart"))
    })
}

#[cfg(test)]
mod tests {
    use super::restarts;

    #[test]
    fn only_a_restart_of_this_unit_hands_over() {
        let jobs = "1215 cygnet.service       restart running\n1216 other.service stop waiting\n";
        assert!(restarts(jobs, "cygnet.service"));
        assert!(!restarts(jobs, "other.service"));
        for others in [
            "",
            "No jobs running.\n",
            "7 cygnet.service stop running\n",
            "7 cygnet.service start running\n",
            "7 not-cygnet.service restart running\n",
            "7 cygnet.service.d restart running\n",
        ] {
            assert!(!restarts(others, "cygnet.service"), "{others}");
        }
    }
}
