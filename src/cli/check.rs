//! `cygnet check`.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use nix::ifaddrs::getifaddrs;
use serde::Serialize;
use serde_json::json;

use super::output::{Out, Tone};
use super::{CONFIG, Exit, Failure, Outcome};
use crate::config::{self, Here, Problem, Secrets, Severity};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet check                              the installed configuration
  cygnet check new.yaml && mv new.yaml /etc/cygnet/cygnet.yaml
  cygnet check --no-secrets templates/site.yaml
  cygnet check --json new.yaml | jq '.errors[].path'

Every error comes as FILE:LINE:COLUMN: error: PATH: what is wrong; what would be right.")]
pub struct CheckArgs {
    /// The configuration
    #[arg(value_name = "FILE", default_value = CONFIG)]
    file: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Leave files with keys alone
    #[arg(long)]
    no_secrets: bool,
    /// Show the configuration with every default filled in
    #[arg(long, conflicts_with = "json")]
    resolved: bool,
}

#[derive(Serialize)]
struct InFile<'a> {
    file: &'a str,
    #[serde(flatten)]
    problem: &'a Problem,
}

/// This host; one that cannot be asked has no addresses, and is no gateway's.
fn here() -> Here {
    let all = getifaddrs().into_iter().flatten().filter_map(|a| {
        let address = a.address?;
        let v4 = address.as_sockaddr_in().map(|s| IpAddr::V4(s.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|s| IpAddr::V6(s.ip())))?;
        Some((a.interface_name, ip))
    });
    Here::new(all)
}

pub fn check(args: &CheckArgs, out: &mut Out) -> Outcome {
    let secrets = if args.no_secrets { Secrets::Skip } else { Secrets::ReadIfAllowed };
    let checked = config::check(&args.file, secrets, Some(&here()));
    let (errors, warnings): (Vec<&Problem>, Vec<&Problem>) =
        checked.problems.iter().partition(|p| p.severity == Severity::Error);
    let code = if errors.is_empty() { Exit::Done } else { Exit::Config };
    if args.json {
        // Each entry stands for itself, as a line of the text does.
        let list = |problems: &[&Problem]| -> Vec<_> {
            problems.iter().map(|p| json!(InFile { file: &checked.file, problem: p })).collect()
        };
        out.json(&json!({
            "version": 1,
            "file": checked.file,
            "valid": errors.is_empty(),
            "errors": list(&errors),
            "warnings": list(&warnings),
        }))?;
        return Ok(code);
    }
    for p in &checked.problems {
        let tone = if p.severity == Severity::Error { Tone::Bad } else { Tone::Odd };
        let line = p.one_line(&checked.file);
        // The place stays plain, so that terminals and editors still recognise it.
        let (place, words) = line.split_at(line.find(": ").map_or(0, |n| n + 2));
        let (word, rest) = words.split_at(words.find(": ").unwrap_or(0));
        let text = format!("{place}{}{rest}\n{}", out.paint(tone, word), p.excerpt());
        // Beside the resolved form, which somebody wants to keep, warnings are not the result.
        if args.resolved && errors.is_empty() {
            std::io::stderr().write_all(text.as_bytes())?;
        } else {
            out.write_all(text.as_bytes())?;
        }
    }
    if !errors.is_empty() {
        let count = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
        let mut text = count(errors.len(), "error");
        if !warnings.is_empty() {
            text = format!("{text}, {}", count(warnings.len(), "warning"));
        }
        out.line(&text)?;
        return Ok(code);
    }
    let Some(c) = checked.preview else {
        return Err(Failure::new(
            Exit::Software,
            "the configuration has no errors and yet cannot be resolved",
            "",
        ));
    };
    if args.resolved {
        let text = serde_yaml::to_string(&config::show::resolved(&c))
            .map_err(|e| Failure::new(Exit::Software, format!("cannot write YAML: {e}"), ""))?;
        // What follows from several keys, beside what can be read again.
        for (name, partners) in config::share::partners(&c) {
            let partners: Vec<&str> = partners.into_iter().collect();
            out.line(&format!("# tunnel {name} shares its flows with {}", partners.join(", ")))?;
        }
        out.line(text.trim_end())?;
        return Ok(code);
    }
    let (g, p, t) = (c.gateways.len(), c.customer_gateways.len(), c.tunnels.len());
    let line = format!(
        "{}: {} (gateways: {g}, customer gateways: {p}, tunnels: {t})",
        checked.file,
        out.paint(Tone::Good, "ok")
    );
    out.line(&line)?;
    Ok(code)
}
