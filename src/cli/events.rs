//! `cygnet events` and `cygnet logs`.

use std::time::Duration;

use clap::Args;

use super::output::{Out, Tone, safe};
use super::{Failure, Global, Outcome, ask, duration, exit, refused, unexpected};
use crate::control::client::Client;
use crate::control::{Request, Response};
use crate::observe::events::Event;

#[derive(Args, Debug)]
pub struct EventsArgs {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Example: cygnet logs a-b --since 1h")]
pub struct LogsArgs {
    /// The tunnel
    tunnel: String,
    /// Not older than this, as in 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

fn show(event: &Event, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        let line = serde_json::to_string(event).map_err(std::io::Error::from)?;
        return Ok(out.line(&line)?);
    }
    let tone = if event.event.is_bad() { Tone::Bad } else { Tone::Plain };
    let kind = out.paint(tone, &format!("{:<18}", event.event.name()));
    let about = event.tunnel.as_deref().or(event.gateway.as_deref()).unwrap_or("-");
    let line = format!("{}  {kind}  {}  {}", safe(&event.time), safe(about), safe(&event.message));
    Ok(out.line(line.trim_end())?)
}

pub fn events(args: &EventsArgs, g: &Global, out: &mut Out) -> Outcome {
    let mut client = Client::connect(&g.control)?;
    match client.ask(&Request::Events {})? {
        Response::Streaming {} => {}
        Response::Error { kind, message, hint } => return Err(refused(kind, &message, &hint)),
        _ => return Err(unexpected()),
    }
    loop {
        match client.next_response()? {
            Some(Response::Event { event }) => show(&event, args.json, out)?,
            Some(_) => return Err(unexpected()),
            None => return Err(Failure::new(exit::UNAVAILABLE, "the daemon hung up", "")),
        }
        out.flush()?;
    }
}

pub fn logs(args: LogsArgs, g: &Global, out: &mut Out) -> Outcome {
    let request = Request::Logs { tunnel: args.tunnel, since_s: args.since.map(|d| d.as_secs()) };
    let Response::Events { events } = ask(g, &request)? else { return Err(unexpected()) };
    for event in &events {
        show(event, args.json, out)?;
    }
    Ok(0)
}
