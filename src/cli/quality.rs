//! `cygnet quality`.

use std::time::Duration;

use clap::Args;

use super::output::{Out, Tone, safe};
use super::{Exit, Global, Outcome, ask, duration, names, unexpected};
use crate::control::{Request, Response};
use crate::observe::snapshot::MinuteStatus;

/// A day: no more is kept.
const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet quality a-b               the last hour, minute by minute
  cygnet quality a-b --since 1d --json | jq '.[] | select(.loss_ratio > 0.01)'

The tunnel needs a health_check. Of ten thousand tunnels each keeps fewer minutes than a day has.")]
pub struct QualityArgs {
    /// The tunnel
    #[arg(add = names::tunnels())]
    tunnel: String,
    /// How far to look back, a day at most
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    since: Duration,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub fn quality(args: QualityArgs, g: &Global, out: &mut Out) -> Outcome {
    let request = Request::Quality { tunnel: args.tunnel, since_s: args.since.min(DAY).as_secs() };
    let Response::Quality { minutes } = ask(g, &request)? else { return Err(unexpected()) };
    if args.json {
        out.json(&minutes)?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = minutes.iter().map(row).collect();
    out.table(&["MINUTE", "PROBES", "LOST", "LOSS %", "DELAY ms", "MIN", "MAX", "JITTER ms"], &rows)?;
    Ok(Exit::Done)
}

fn row(m: &MinuteStatus) -> Vec<(Tone, String)> {
    let plain = |text: String| (Tone::Plain, text);
    let ms = |value: Option<f64>| plain(value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}")));
    let loss = if m.lost > 0 { Tone::Odd } else { Tone::Plain };
    vec![
        plain(safe(&m.time)),
        plain(m.probes.to_string()),
        plain(m.lost.to_string()),
        (loss, format!("{:.1}", m.loss_ratio * 100.0)),
        ms(m.delay_ms),
        ms(m.delay_min_ms),
        ms(m.delay_max_ms),
        ms(m.jitter_ms),
    ]
}
