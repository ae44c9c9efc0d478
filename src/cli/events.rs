//! `cygnet events` and `cygnet logs`: what happens, and what happened.

use std::time::{Duration, Instant};

use clap::Args;

use super::output::{Out, Tone, safe};
use super::{Exit, Failure, Global, Outcome, ask, duration, names, refused, unexpected};
use crate::config::closest;
use crate::control::client::{Client, Next};
use crate::control::{Request, Response};
use crate::observe::events::{Event, Kind, codes};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet events                               everything, from now on
  cygnet events --tunnel a-b --since 1h       what happened to a tunnel, and what happens from now on
  cygnet events --since 1d --no-follow --code no_proposal_chosen --json
  cygnet events --grep 192.0.2.7 --timeout 1m

The daemon keeps the last 2000 events, and the last 200 of each tunnel, of more than 500 tunnels fewer. Under systemd the
journal has all of them:
journalctl -u cygnet CYGNET_TUNNEL=a-b.")]
pub struct EventsArgs {
    /// Only events of this tunnel; may be said more than once
    #[arg(short, long, value_name = "TUNNEL", add = names::tunnels())]
    tunnel: Vec<String>,
    /// Also what was kept, not older than this, as in 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// End after what was kept
    #[arg(long)]
    no_follow: bool,
    #[command(flatten)]
    filter: Filter,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet logs a-b --since 1h
  cygnet logs a-b --code tunnel_failed --code peer_unreachable
  cygnet logs a-b --grep proposal --json | jq -r .message")]
pub struct LogsArgs {
    /// The tunnel
    #[arg(add = names::tunnels())]
    tunnel: String,
    /// Not older than this, as in 10m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    #[command(flatten)]
    filter: Filter,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Filter {
    /// Only events of this kind, or for this reason; may be said more than once
    #[arg(long, value_name = "CODE", value_parser = code)]
    code: Vec<String>,
    /// Only events in which this text stands, in capitals or not
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
}

/// A code that there is.
fn code(text: &str) -> Result<String, String> {
    if codes().any(|c| c == text) {
        return Ok(text.to_owned());
    }
    Err(match closest(text, codes()) {
        Some(near) => format!("there is no such code; did you mean {near}?"),
        None => "there is no such code; write one as in tunnel_failed or peer_unreachable".to_owned(),
    })
}

impl Filter {
    fn admits(&self, event: &Event) -> bool {
        let of_code = |c: &String| *c == event.code || c == event.event.name();
        let holds = |text: &String| {
            let text = text.to_lowercase();
            let about = [&event.tunnel, &event.gateway, &event.child, &event.peer].into_iter().flatten();
            let mut fields = about.map(String::as_str).chain([event.message.as_str(), &event.code]);
            fields.any(|field| field.to_lowercase().contains(&text))
        };
        (self.code.is_empty() || self.code.iter().any(of_code)) && self.grep.as_ref().is_none_or(holds)
    }
}

fn show(event: &Event, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        return Ok(out.json_line(event)?);
    }
    let tone = if event.event.is_bad() { Tone::Bad } else { Tone::Plain };
    let kind = out.paint(tone, &format!("{:<18}", event.event.name()));
    let about = event.tunnel.as_deref().or(event.gateway.as_deref()).unwrap_or("-");
    let line = format!("{}  {kind}  {}  {}", safe(&event.time), safe(about), safe(&event.message));
    Ok(out.line(line.trim_end())?)
}

pub fn events(args: &EventsArgs, g: &Global, out: &mut Out) -> Outcome {
    // Listening comes first: nothing is missed between what was kept and what comes.
    let stream = if args.no_follow { None } else { Some(listen(g)?) };
    let kept = kept(args, g)?;
    let last = kept.last().map_or(0, |event| event.seq);
    for event in kept.iter().filter(|e| args.filter.admits(e)) {
        show(event, args.json, out)?;
    }
    out.flush()?;
    let Some(mut stream) = stream else { return Ok(Exit::Done) };
    let end = g.timeout.map(|t| Instant::now() + t);
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Exit::Done);
        }
        let event = match stream.next_within(left)? {
            Next::Message(message) => match *message {
                Response::Event { event } => *event,
                _ => return Err(unexpected()),
            },
            Next::Late => return Ok(Exit::Done),
            Next::End => return Err(Failure::new(Exit::Unavailable, "the daemon hung up", "")),
        };
        let wanted = args.tunnel.is_empty() || event.tunnel.as_ref().is_some_and(|t| args.tunnel.contains(t));
        let new = event.seq == 0 || event.seq > last;
        // That events were lost is for everybody.
        if event.event == Kind::Lost || wanted && new && args.filter.admits(&event) {
            show(&event, args.json, out)?;
            out.flush()?;
        }
    }
}

fn listen(g: &Global) -> Result<Client, Failure> {
    let mut client = Client::connect_within(&g.control, g.timeout)?;
    match client.ask(&Request::Events {})? {
        Response::Streaming {} => Ok(client),
        Response::Error { kind, message, hint } => Err(refused(kind, &message, &hint)),
        _ => Err(unexpected()),
    }
}

/// What was kept, as far as it is wanted. Names of tunnels are checked by it, too.
fn kept(args: &EventsArgs, g: &Global) -> Result<Vec<Event>, Failure> {
    let since_s = match args.since {
        Some(since) => Some(since.as_secs()),
        None if args.no_follow => None,
        None if args.tunnel.is_empty() => return Ok(Vec::new()),
        None => Some(0),
    };
    match ask(g, &Request::Recent { tunnels: args.tunnel.clone(), since_s })? {
        Response::Events { .. } if args.since.is_none() && !args.no_follow => Ok(Vec::new()),
        Response::Events { events } => Ok(events),
        _ => Err(unexpected()),
    }
}

pub fn logs(args: LogsArgs, g: &Global, out: &mut Out) -> Outcome {
    let request = Request::Logs { tunnel: args.tunnel, since_s: args.since.map(|d| d.as_secs()) };
    let Response::Events { events } = ask(g, &request)? else { return Err(unexpected()) };
    for event in events.iter().filter(|e| args.filter.admits(e)) {
        show(event, args.json, out)?;
    }
    Ok(Exit::Done)
}
