//! Logs go to standard error, or to the journal with their fields if that is where standard error leads. A thread writes the
//! former, so that a reader that is stuck costs lines and never holds up the loop.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::journal::{self, Journal};

/// Starts logging: info, debug with `-v`, trace with `-vv`; `CYGNET_LOG` overrides it (`tracing_subscriber` syntax).
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => "info",
        1 => "cygnet=debug,info",
        _ => "cygnet=trace,debug",
    };
    // netlink_proto prints whole messages; ours carry no keys over it, and nobody wants to read them anyway.
    let quiet = "netlink_proto=off";
    let filter = std::env::var("CYGNET_LOG").unwrap_or_else(|_| level.to_owned());
    let filter = EnvFilter::try_new(format!("{filter},{quiet}")).unwrap_or_else(|_| EnvFilter::new("info"));
    let in_journal = journal::is_stderr();
    if in_journal && let Ok(journal) = Journal::open(|line| drop(Line(line))) {
        let _ = tracing_subscriber::registry().with(filter).with(journal).try_init();
        return;
    }
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Line(Vec::new()))
        .with_target(false)
        .with_ansi(crate::colors::wanted(io::stderr().is_terminal()));
    // Under systemd the journal has its own clock.
    let started = if in_journal { builder.without_time().try_init() } else { builder.try_init() };
    // A second start in one process keeps the first one's settings.
    let _ = started;
}

/// Lines that wait for the writer.
const QUEUE: usize = 4096;
/// How long lines are collected that come close together: a writer that waits for each has to be woken for each.
const COLLECT: Duration = Duration::from_millis(5);
/// How long the last lines may take at the end.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

enum Told {
    Line(Vec<u8>),
    /// Everything before is written when this one is dropped.
    Flush(SyncSender<()>),
}

static WRITER: OnceLock<SyncSender<Told>> = OnceLock::new();
static LOST: AtomicU64 = AtomicU64::new(0);

fn writer() -> &'static SyncSender<Told> {
    WRITER.get_or_init(|| {
        let (sender, lines) = sync_channel(QUEUE);
        if let Err(e) = std::thread::Builder::new().name("log".into()).spawn(move || write(&lines)) {
            let _ = writeln!(io::stderr(), "there will be no log: {e}");
        }
        sender
    })
}

fn write(lines: &Receiver<Told>) {
    let mut text = Vec::new();
    while let Ok(first) = lines.recv() {
        // Whoever flushes waits.
        if matches!(first, Told::Line(_)) {
            std::thread::sleep(COLLECT);
        }
        let lost = LOST.swap(0, Ordering::Relaxed);
        // Nothing is left to do if standard error does not take it.
        if lost > 0 {
            let _ = writeln!(io::stderr(), "{lost} lines were lost because nobody read them");
        }
        let mut flushed = Vec::new();
        text.clear();
        for told in std::iter::once(first).chain(lines.try_iter().take(QUEUE)) {
            match told {
                Told::Line(line) => text.extend_from_slice(&line),
                Told::Flush(done) => flushed.push(done),
            }
        }
        let _ = io::stderr().write_all(&text);
        drop(flushed);
    }
}

/// How long the last lines may hold up a daemon whose tunnels wait for the next one.
pub const IN_PASSING: Duration = Duration::from_millis(50);

/// Waits until what was logged is written, but not for a reader that is stuck.
pub fn flush(patience: Duration) {
    let (done, flushed) = sync_channel(0);
    if writer().try_send(Told::Flush(done)).is_ok() {
        let _ = flushed.recv_timeout(patience);
    }
}

/// A line on its way; it goes out when it is dropped.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if writer().try_send(Told::Line(std::mem::take(&mut self.0))).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A limit for each subject, so that a flood about one does not hide another. The subjects are a closed set: reasons, or
/// reasons of configured tunnels.
pub struct LineLimits<S> {
    per_minute: u32,
    limits: BTreeMap<S, RateLimit>,
}

impl<S: Ord> LineLimits<S> {
    /// So many lines in a minute for each subject.
    pub const fn new(per_minute: u32) -> Self {
        Self { per_minute, limits: BTreeMap::new() }
    }

    /// Forgets subjects that are gone.
    pub fn forget(&mut self, gone: impl Fn(&S) -> bool) {
        self.limits.retain(|subject, _| !gone(subject));
    }

    /// Whether a line about this subject may be printed, as [`RateLimit::admit`].
    pub fn admit(&mut self, subject: S, unix: u64) -> Option<u64> {
        self.limits.entry(subject).or_insert_with(|| RateLimit::new(self.per_minute)).admit(unix)
    }
}

/// At most `per_minute` lines of a kind; the rest is counted.
pub struct RateLimit {
    per_minute: u32,
    minute: u64,
    used: u32,
    suppressed: u64,
}

impl RateLimit {
    /// A limit that starts full.
    pub const fn new(per_minute: u32) -> Self {
        Self { per_minute, minute: 0, used: 0, suppressed: 0 }
    }

    /// Whether a line may be printed at `unix` seconds; with it, how many were not since the last one.
    pub fn admit(&mut self, unix: u64) -> Option<u64> {
        if unix / 60 != self.minute {
            (self.minute, self.used) = (unix / 60, 0);
        }
        if self.used >= self.per_minute {
            self.suppressed += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use cygnet_ike::DropReason;

    use super::*;

    #[test]
    fn t104_a_flood_makes_few_lines_and_a_count() {
        let mut limit = RateLimit::new(100);
        let printed = (0..1_000_000u32).filter(|_| limit.admit(60).is_some()).count();
        assert_eq!(printed, 100);
        assert_eq!(limit.admit(120), Some(999_900));
    }

    #[test]
    fn a_flood_of_one_reason_does_not_hide_another() {
        let mut lines = LineLimits::new(2);
        let admitted = (0..1000).filter(|_| lines.admit(DropReason::Malformed, 60).is_some()).count();
        assert_eq!(admitted, 2);
        assert_eq!(lines.admit(DropReason::Integrity, 60), Some(0));
    }
}
