//! `cygnet plan` and `cygnet apply`: the difference between the running gateway and a file.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::output::{Out, Tone, safe};
use super::progress::Progress;
use super::{Exit, Failure, Global, Outcome, ask, unexpected};
use crate::config::diff::{Action, Change, Impact, Plan, Step};
use crate::control::{Request, Response};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet plan                               what a reload would do
  cygnet plan --config new.yaml             what another file would do
  cygnet plan --detailed-exitcode           0 nothing to do, 2 something, others: an error

Each object is untouched, changed in place, rekeyed (new keys while the traffic goes on), or restarted: a tunnel is
authenticated anew beside its old SAs, a key of the daemon waits for its restart.")]
pub struct PlanArgs {
    /// The file; without it, the one that the daemon was started with
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Exit with 2 if there is something to change
    #[arg(long)]
    detailed_exitcode: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet apply                              what SIGHUP and systemctl reload do
  cygnet apply --config new.yaml            run another file, until the next reload or restart

A file with errors, or one that cannot be made, changes nothing.")]
pub struct ApplyArgs {
    /// The file; without it, the one that the daemon was started with
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub fn plan(args: &PlanArgs, g: &Global, out: &mut Out) -> Outcome {
    let (plan, _) = ask_for("comparing", g, &Request::Plan { file: absolute(args.config.as_deref())? })?;
    show(&plan, false, args.json, out)?;
    Ok(if args.detailed_exitcode && plan.changes() { Exit::Changes } else { Exit::Done })
}

pub fn apply(args: &ApplyArgs, g: &Global, out: &mut Out) -> Outcome {
    let (plan, applied) =
        ask_for("applying", g, &Request::Apply { file: absolute(args.config.as_deref())? })?;
    show(&plan, applied, args.json, out)?;
    Ok(Exit::Done)
}

/// The daemon has another working directory.
fn absolute(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let Some(file) = file else { return Ok(None) };
    let path = std::path::absolute(file)?;
    match path.into_os_string().into_string() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Failure::new(Exit::Usage, "the name of the file is no UTF-8", "")),
    }
}

fn ask_for(what: &str, g: &Global, request: &Request) -> Result<(Plan, bool), Failure> {
    let _progress = Progress::new(what);
    match ask(g, request)? {
        Response::Plan { plan, applied } => Ok((*plan, applied)),
        Response::BadConfig { problems } => {
            let lines: Vec<String> = problems.iter().map(|p| safe(p)).collect();
            let message = format!("the configuration has errors; nothing was changed\n{}", lines.join("\n"));
            Err(Failure::new(Exit::Config, message, "cygnet check shows where"))
        }
        _ => Err(unexpected()),
    }
}

fn show(plan: &Plan, applied: bool, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        let value = json!({
            "version": 1,
            "changes": plan.changes(),
            "applied": applied,
            "steps": plan.steps,
            "notes": plan.notes,
        });
        return Ok(out.json(&value)?);
    }
    for step in plan.steps.iter().filter(|s| s.action != Action::Keep) {
        step_lines(step, out)?;
    }
    for note in &plan.notes {
        out.line(&format!("note: {}", safe(note)))?;
    }
    let untouched = plan.steps.iter().filter(|s| s.action == Action::Keep).count();
    let line = match (plan.changes(), applied) {
        (false, _) => "nothing to change".to_owned(),
        (true, true) => format!("applied; {untouched} objects untouched"),
        (true, false) => format!("{untouched} objects untouched; cygnet apply makes the rest so"),
    };
    out.line(&line)?;
    Ok(())
}

fn step_lines(step: &Step, out: &mut Out) -> std::io::Result<()> {
    let (sign, tone, what) = match step.action {
        Action::Add => ("+", Tone::Good, "new"),
        Action::Remove => ("-", Tone::Bad, "removed"),
        Action::Change | Action::Keep => ("~", Tone::Odd, step.impact.name()),
    };
    let name = format!("{} {}", step.object.name(), safe(&step.name));
    out.line(&format!("{} {}: {what}", out.paint(tone, sign), out.paint(Tone::Bold, name.trim_end())))?;
    let most = step.impact;
    step.changes.iter().try_for_each(|c| out.line(&change_line(c, most)))
}

fn change_line(c: &Change, most: Impact) -> String {
    let value = |v: &Option<String>| v.as_deref().map_or_else(|| "(none)".to_owned(), safe);
    let values = match (&c.before, &c.after) {
        (None, None) => "(changed)".to_owned(),
        (before, after) => format!("{} -> {}", value(before), value(after)),
    };
    let impact = if c.impact == most { String::new() } else { format!("  ({})", c.impact.name()) };
    format!("    {}: {values}{impact}", safe(&c.field))
}
