//! Events leave for people who do not read the journal: posted to a webhook, or handed to a command.
//!
//! ```text
//!                     ┌─▶ queue ─▶ one thread:    POST, signed, again and again for some minutes ─▶ webhook
//!   event ─▶ Alerts ──┤
//!                     └─▶ queue ─▶ a few threads: the program, the event on its standard input
//! ```
//!
//! The loop never waits for any of it: queues are bounded, and what does not fit is counted. An event is the same JSON object
//! as a line of `cygnet events --json`. What waits when the daemon ends is lost.

mod command;
mod webhook;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::config::model;
use crate::observe::events::Event;

pub use self::webhook::signature;

/// Events that wait for one way out.
const QUEUE: usize = 256;

/// What became of the events of one way out, over all configurations.
#[derive(Default, Debug)]
pub struct Counts {
    /// They arrived.
    pub delivered: AtomicU64,
    /// They did not, after all attempts.
    pub failed: AtomicU64,
    /// There was no room for them.
    pub dropped: AtomicU64,
}

/// What became of events, by way out.
#[derive(Clone, Default, Debug)]
pub struct AllCounts {
    /// Of the webhook.
    pub webhook: Arc<Counts>,
    /// Of the command.
    pub command: Arc<Counts>,
}

impl AllCounts {
    /// Ways out and results with their counts, as metrics name them.
    pub fn all(&self) -> impl Iterator<Item = ((&'static str, &'static str), u64)> + '_ {
        [("webhook", &self.webhook), ("command", &self.command)].into_iter().flat_map(|(way, counts)| {
            [("delivered", &counts.delivered), ("failed", &counts.failed), ("dropped", &counts.dropped)]
                .map(|(result, count)| ((way, result), count.load(Relaxed)))
        })
    }
}

/// Tells events to whom the configuration names. Dropping it ends what it began: each event that waits gets one attempt.
pub struct Alerts {
    config: model::Alerts,
    ways: Vec<Way>,
    ended: Arc<AtomicBool>,
}

struct Way {
    queue: SyncSender<Arc<str>>,
    counts: Arc<Counts>,
}

/// What a thread works on.
struct Work {
    queue: Receiver<Arc<str>>,
    counts: Arc<Counts>,
    /// Nobody waits for a second attempt any more.
    ended: Arc<AtomicBool>,
}

impl Alerts {
    /// Starts what a configuration asks for.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn start(config: &model::Alerts, counts: &AllCounts) -> io::Result<Self> {
        let ended = Arc::<AtomicBool>::default();
        let mut ways = Vec::new();
        let mut way = |counts: &Arc<Counts>| {
            let (tx, rx) = sync_channel(QUEUE);
            ways.push(Way { queue: tx, counts: Arc::clone(counts) });
            Work { queue: rx, counts: Arc::clone(counts), ended: Arc::clone(&ended) }
        };
        if let Some(hook) = &config.webhook {
            webhook::start(hook.clone(), way(&counts.webhook))?;
        }
        if !config.command.is_empty() {
            command::start(&config.command, way(&counts.command))?;
        }
        Ok(Self { config: config.clone(), ways, ended })
    }

    /// What it was started with.
    pub const fn config(&self) -> &model::Alerts {
        &self.config
    }

    /// Tells an event, if it is one of those that are wanted.
    pub fn tell(&self, event: &Event) {
        if self.ways.is_empty() || !self.config.events.contains(&event.event) {
            return;
        }
        let Ok(body) = serde_json::to_string(event) else { return };
        let body: Arc<str> = body.into();
        for way in &self.ways {
            match way.queue.try_send(Arc::clone(&body)) {
                Ok(()) => {}
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    way.counts.dropped.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

impl Drop for Alerts {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
    }
}

impl Work {
    fn is_over(&self) -> bool {
        self.ended.load(Relaxed)
    }
}

impl Counts {
    fn count(&self, delivered: bool) {
        let count = if delivered { &self.delivered } else { &self.failed };
        count.fetch_add(1, Relaxed);
    }
}
