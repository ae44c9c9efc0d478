//! Progress of what takes a while: one line on stderr, on terminals only, and only if it does take a while.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::output::{safe, span};

/// What is done sooner needs no line.
const SOON: Duration = Duration::from_millis(500);
/// How often the line is drawn.
const EVERY: Duration = Duration::from_secs(1);
/// Longest line: one that wraps could not be drawn over.
const WIDTH: usize = 78;

/// A line that is there until this is dropped.
pub struct Progress {
    /// Whether it is over; whoever draws holds it.
    over: Arc<Mutex<bool>>,
    _stop: Option<Sender<()>>,
}

impl Progress {
    /// Says what is under way.
    pub fn new(what: impl Into<String>) -> Self {
        Self::looking(what, || None)
    }

    /// The same, and what a look says about it, each second.
    pub fn looking(
        what: impl Into<String>,
        mut look: impl FnMut() -> Option<String> + Send + 'static,
    ) -> Self {
        let over = Arc::new(Mutex::new(false));
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        if dumb || !io::stderr().is_terminal() {
            return Self { over, _stop: None };
        }
        let (stop, stopped) = channel::<()>();
        let (what, began, state) = (what.into(), Instant::now(), Arc::clone(&over));
        // Without a thread there is no line, and nothing else is missing.
        let _ = std::thread::Builder::new().name("progress".into()).spawn(move || {
            let mut wait = SOON;
            while matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout)) {
                wait = EVERY;
                let seen = look();
                let over = state.lock().unwrap_or_else(PoisonError::into_inner);
                if *over {
                    return;
                }
                draw(&line(&what, began.elapsed(), seen.as_deref()));
            }
        });
        Self { over, _stop: Some(stop) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        if self._stop.is_some() {
            draw("");
        }
    }
}

fn draw(line: &str) {
    // A terminal that takes nothing is told nothing.
    let _ = io::stderr().write_all(format!("\r{line}\x1b[K").as_bytes());
}

fn line(what: &str, took: Duration, seen: Option<&str>) -> String {
    let mut line = format!("{what}: {}", span(took.as_secs()));
    if let Some(seen) = seen {
        line.push_str(&format!(", {}", safe(seen)));
    }
    line.chars().take(WIDTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_fits_a_terminal() {
        assert_eq!(line("x", Duration::from_secs(3), Some("up\u{1b}[2J")), "x: 3s, up\\u{1b}[2J");
        assert_eq!(line(&"x".repeat(500), Duration::ZERO, None).chars().count(), WIDTH);
    }
}
