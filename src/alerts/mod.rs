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
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

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
    /// There was no room for them, or no time before a configuration that tells events otherwise.
    pub dropped: AtomicU64,
    /// Programs that run for them.
    running: AtomicUsize,
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

/// Tells events to whom the configuration names. Dropping it ends what it began: what waits is posted as long as the webhook answers, and
/// handed to no command.
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
    queue: Mutex<Receiver<Arc<str>>>,
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
            Work { queue: Mutex::new(rx), counts: Arc::clone(counts), ended: Arc::clone(&ended) }
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
    /// The next event; `None` when there will be no more.
    fn next(&self) -> Option<Arc<str>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::{Duration, Instant};
    use std::{fs, thread};

    use super::*;
    use crate::observe::events::Kind;

    fn config(command: &[&str], url: Option<String>) -> model::Alerts {
        let webhook = url.map(|url| model::Webhook { url, secret: None, secret_file: None });
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        model::Alerts { webhook, command, events: vec![Kind::Warning] }
    }

    fn tell(alerts: &Alerts, times: u64) {
        (0..times).for_each(|n| alerts.tell(&Event::new(n, Kind::Warning, "x")));
    }

    /// How many processes have been started with these words.
    fn running(command: &[&str]) -> usize {
        let wanted = format!("{}\0", command.join("\0"));
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes.filter(|p| fs::read_to_string(p.path().join("cmdline")).is_ok_and(|c| c == wanted)).count()
    }

    fn told(counts: &Counts) -> [u64; 3] {
        [&counts.delivered, &counts.failed, &counts.dropped].map(|count| count.load(Relaxed))
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(25), "{what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn what_neither_the_webhook_nor_the_command_takes_is_dropped_and_counted() {
        let counts = AllCounts::default();
        // The system takes connections, and nobody ever answers.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", silent.local_addr().unwrap());
        let alerts = Alerts::start(&config(&["/bin/sleep", "6.125"], Some(url)), &counts).unwrap();
        // What is under way waits no longer.
        tell(&alerts, 4);
        until("four programs run", || counts.command.running.load(Relaxed) == 4);
        let _posted = silent.accept().unwrap();
        let began = Instant::now();
        tell(&alerts, 396);
        assert!(began.elapsed() < Duration::from_secs(2), "events wait for nobody: {:?}", began.elapsed());
        assert_eq!(told(&counts.command), [0, 0, 400 - 4 - QUEUE as u64]);
        assert_eq!(told(&counts.webhook), [0, 0, 400 - 1 - QUEUE as u64]);
        drop(alerts);
        // What the programs under way and one attempt take, and not what all that waits would take.
        until("each event is accounted for once it is over", || {
            [&counts.command, &counts.webhook].iter().all(|c| told(c).iter().sum::<u64>() == 400)
        });
        assert_eq!(told(&counts.command), [4, 0, 396]);
        assert_eq!(told(&counts.webhook), [0, 1, 399]);
    }

    #[test]
    fn four_programs_run_at_once_however_often_the_configuration_changes() {
        let counts = AllCounts::default();
        let mut most = 0;
        for n in 0..6 {
            let command = ["/bin/sleep", "3.0625"];
            let alerts = Alerts::start(&config(&command, None), &counts).unwrap();
            tell(&alerts, 40);
            if n == 0 {
                until("four programs run", || running(&command) == 4);
            }
            thread::sleep(Duration::from_millis(100));
            most = most.max(running(&command));
        }
        assert_eq!(most, 4);
        until("what is over ends soon", || told(&counts.command).iter().sum::<u64>() == 6 * 40);
        // A place that is free again serves the next configuration.
        let delivered = told(&counts.command)[0];
        let alerts = Alerts::start(&config(&["/bin/true"], None), &counts).unwrap();
        tell(&alerts, 8);
        until("programs run again", || told(&counts.command)[0] == delivered + 8);
    }
}
