//! `cygnet status --follow`: a picture that is drawn anew on a terminal, one JSON object a line elsewhere. A daemon that is
//! away for a moment is waited for.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::interrupt::Interrupt;
use super::output::{self, Out, Tone};
use super::status::{StatusArgs, picture};
use super::{Exit, Failure, Global, Outcome, ask_within, unexpected};
use crate::control::{Request, Response};
use crate::observe::snapshot::Snapshot;
use crate::sys::terminal;

/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(15);

pub fn follow(args: &StatusArgs, g: &Global, out: &mut Out) -> Outcome {
    let interrupt = Interrupt::watch()?;
    let end = g.timeout.map(|t| Instant::now() + t);
    let left = || end.map(|end| end.saturating_duration_since(Instant::now()));
    let drawn = io::stdout().is_terminal() && !args.json;
    let mut told = Told { drawn, ..Told::default() };
    let mut last: Option<Box<Snapshot>> = None;
    loop {
        let patience = left().map_or(PATIENCE, |left| left.min(PATIENCE));
        match look(args, g, patience) {
            Ok(snapshot) => {
                told.on_snapshot(&snapshot, last.as_deref());
                let _turn = interrupt.turn();
                show(&snapshot, &told, args, g, out)?;
                last = Some(snapshot);
            }
            Err(failure) => {
                if left().is_some_and(|left| left.is_zero()) {
                    return Ok(Exit::Done);
                }
                // Who was never there is not waited for.
                let Some(last) = last.as_deref().filter(|_| is_passing(&failure)) else {
                    return Err(failure);
                };
                told.on_absence(&failure);
                if drawn {
                    let _turn = interrupt.turn();
                    show(last, &told, args, g, out)?;
                }
            }
        }
        match left() {
            Some(left) if left.is_zero() => return Ok(Exit::Done),
            Some(left) => std::thread::sleep(left.min(args.interval)),
            None => std::thread::sleep(args.interval),
        }
    }
}

fn look(args: &StatusArgs, g: &Global, patience: Duration) -> Result<Box<Snapshot>, Failure> {
    let request = Request::Status { name: args.name.clone() };
    match ask_within(g, &request, Some(patience))? {
        Response::Status { snapshot } => Ok(snapshot),
        _ => Err(unexpected()),
    }
}

/// Whether a daemon that is there again answers.
const fn is_passing(failure: &Failure) -> bool {
    matches!(failure.code, Exit::Unavailable | Exit::Temporary | Exit::Protocol)
}

/// What is said of the daemon itself: above the picture, or on stderr once.
#[derive(Default)]
struct Told {
    drawn: bool,
    away: bool,
    line: Option<String>,
}

impl Told {
    fn on_absence(&mut self, failure: &Failure) {
        if !self.away {
            self.say(format!("{}; this is what was seen last; trying again", failure.message));
        }
        self.away = true;
    }

    fn on_snapshot(&mut self, now: &Snapshot, last: Option<&Snapshot>) {
        let restarted = last.is_some_and(|last| last.started != now.started);
        if std::mem::take(&mut self.away) || restarted {
            let what = if restarted { "was started anew and answers" } else { "answers again" };
            self.say(format!("the daemon {what}, since {}", output::safe(&now.started)));
        }
    }

    fn say(&mut self, line: String) {
        if !self.drawn {
            // Nothing is left to do if even that fails.
            let _ = io::stderr().write_all(format!("cygnet: {line}\n").as_bytes());
        }
        self.line = Some(line);
    }
}

fn show(s: &Snapshot, told: &Told, args: &StatusArgs, g: &Global, out: &mut Out) -> io::Result<()> {
    if !told.drawn {
        out.json_line(s)?;
        return out.flush();
    }
    out.begin_page(terminal::rows(&io::stdout()).unwrap_or(24))?;
    if let Some(line) = &told.line {
        let tone = if told.away { Tone::Bad } else { Tone::Odd };
        out.line(&out.paint(tone, line))?;
    }
    picture(s, args, g, out)?;
    out.end_page()?;
    out.flush()
}
