//! DNS names of customer gateways, asked of the system's resolver: one task for each name.
//!
//! A name is asked for again when its answer has come to its end ([`super::dns`]), after a failure soon and then less and
//! less often, and at once when there is reason to believe that its answer has changed: its gateway does not answer, or
//! somebody comes from an address that nobody is known by. Strangers can make such reasons, so that there is a shortest
//! time between two questions for them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::dns;

/// How often a name is asked for if nobody says for how long its answer holds (`/etc/hosts`, say).
const REGULAR: Duration = Duration::from_secs(30);
/// A shorter time to live than this is not followed.
const FLOOR: Duration = Duration::from_secs(5);
/// Nor a longer one than this: an error in a zone shall be mended within the hour.
const CEILING: Duration = Duration::from_secs(3600);
/// A cache has forgotten an answer when it has ended, not before.
const MARGIN: Duration = Duration::from_millis(500);
/// The shortest time between two questions for a name for somebody else's reasons.
const SHORTEST: Duration = Duration::from_secs(3);
/// After the first failure; twice as long after each one more.
const RETRY: Duration = Duration::from_millis(500);
/// But no longer than this.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What became of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The name stands for these addresses, at least one, sorted.
    Addresses(Vec<IpAddr>),
    /// The resolver's words.
    Failed(String),
}

/// An answer and the name that it is for.
pub(super) type Resolved = (String, Answer);

/// Who knows names.
trait Names: Clone + Send + 'static {
    /// The addresses of a name.
    fn addresses(&self, name: &str) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send;
    /// For how long it stands for them; `None` if nobody says.
    fn holds(&self, name: &str, addresses: &[IpAddr]) -> impl Future<Output = Option<Duration>> + Send;
}

/// The system's resolver, and the servers that it is configured with.
#[derive(Clone)]
struct System;

impl Names for System {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|a| a.ip()).collect())
    }

    async fn holds(&self, name: &str, addresses: &[IpAddr]) -> Option<Duration> {
        // Read each time, as the system's resolver does: networks come and go.
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        dns::holds(&dns::servers(&text), name, addresses).await
    }
}

/// Asks for names, again and again.
#[derive(Default)]
pub(super) struct Resolver {
    asked: BTreeMap<String, Asked>,
}

/// A name that is asked for until this is dropped.
struct Asked {
    wake: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Resolver {
    /// Starts to ask for those of `names` that are new, and stops to ask for those that are gone.
    pub fn follow(&mut self, names: BTreeSet<String>, out: &mpsc::Sender<Resolved>) {
        self.follow_by(&System, names, out);
    }

    fn follow_by(&mut self, by: &impl Names, names: BTreeSet<String>, out: &mpsc::Sender<Resolved>) {
        self.asked.retain(|name, _| names.contains(name));
        for name in names {
            self.asked.entry(name).or_insert_with_key(|name| {
                let wake = Arc::new(Notify::new());
                let task = tokio::spawn(ask(by.clone(), name.clone(), Arc::clone(&wake), out.clone()));
                Asked { wake, task: task.abort_handle() }
            });
        }
    }

    /// Whether a name is asked for. An answer may come after it has gone.
    pub fn asks_for(&self, name: &str) -> bool {
        self.asked.contains_key(name)
    }

    /// There is reason to ask for a name now.
    pub fn hurry(&self, name: &str) {
        if let Some(asked) = self.asked.get(name) {
            asked.wake.notify_one();
        }
    }

    /// There is reason to ask for all of them now.
    pub fn hurry_all(&self) {
        self.asked.values().for_each(|asked| asked.wake.notify_one());
    }
}

/// How long to wait after an answer that holds for so long.
fn regular(holds: Option<Duration>) -> Duration {
    holds.map_or(REGULAR, |ttl| ttl.clamp(FLOOR, CEILING) + MARGIN)
}

/// How long to wait after so many failures in a row, the last one included.
fn retry(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (RETRY * 2u32.saturating_pow(doublings)).min(RETRY_MAX)
}

async fn ask(names: impl Names, name: String, wake: Arc<Notify>, out: mpsc::Sender<Resolved>) {
    let mut failures = 0;
    loop {
        let asked = Instant::now();
        let found = names.addresses(&name).await.map(|mut addresses| {
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        });
        let answer = match found {
            Ok(addresses) if addresses.is_empty() => Answer::Failed("it has no address".to_owned()),
            Ok(addresses) => Answer::Addresses(addresses),
            Err(e) => Answer::Failed(e.to_string()),
        };
        if out.send((name.clone(), answer.clone())).await.is_err() {
            return;
        }
        let wait = match &answer {
            Answer::Addresses(addresses) => {
                failures = 0;
                regular(names.holds(&name, addresses).await)
            }
            Answer::Failed(_) => {
                failures += 1;
                retry(failures)
            }
        };
        // Who hurries during the question has its answer.
        if tokio::time::timeout_at(asked + wait, wake.notified()).await.is_ok() {
            tokio::time::sleep_until(asked + SHORTEST).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_time_to_live_is_followed_between_floor_and_ceiling_and_a_failure_soon() {
        let secs = Duration::from_secs;
        assert_eq!(regular(None), REGULAR);
        assert_eq!(regular(Some(secs(0))), FLOOR + MARGIN);
        assert_eq!(regular(Some(secs(300))), secs(300) + MARGIN);
        assert_eq!(regular(Some(secs(86_400))), CEILING + MARGIN);
        let waits: Vec<u128> = (1..9).map(|n| retry(n).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(retry(u32::MAX), RETRY_MAX);
    }

    /// Knows every name, and tells who was asked for.
    #[derive(Clone)]
    struct Told(mpsc::UnboundedSender<String>);

    impl Names for Told {
        async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
            self.0.send(name.to_owned()).map_err(io::Error::other)?;
            Ok(vec![[192, 0, 2, 1].into()])
        }

        async fn holds(&self, _: &str, _: &[IpAddr]) -> Option<Duration> {
            None
        }
    }

    #[tokio::test]
    async fn names_that_stay_are_asked_for_once_and_those_that_go_no_more() {
        let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let (told, mut asked) = mpsc::unbounded_channel();
        let by = Told(told);
        let (out, _answers) = mpsc::channel(64);
        let mut resolver = Resolver::default();
        for (wanted, new) in [(&["a", "b"][..], &["a", "b"][..]), (&["b", "c"], &["c"]), (&[], &[])] {
            resolver.follow_by(&by, names(wanted), &out);
            let mut first = BTreeSet::new();
            for _ in new {
                first.insert(asked.recv().await.unwrap());
            }
            assert_eq!(first, names(new));
            // Each name that is asked for has a way to answer, and nobody else has.
            while out.strong_count() != 1 + wanted.len() {
                tokio::task::yield_now().await;
            }
            assert!(asked.try_recv().is_err(), "one that stays was asked for anew");
            assert!(wanted.iter().all(|name| resolver.asks_for(name)) && !resolver.asks_for("d"));
        }
    }

    /// Knows one address; how long that holds is asked of a real server.
    #[derive(Clone)]
    struct Known {
        server: SocketAddr,
        asked: mpsc::UnboundedSender<Instant>,
    }

    impl Names for Known {
        async fn addresses(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            self.asked.send(Instant::now()).map_err(io::Error::other)?;
            Ok(vec![[192, 0, 2, 1].into()])
        }

        async fn holds(&self, name: &str, addresses: &[IpAddr]) -> Option<Duration> {
            dns::holds(&[self.server], name, addresses).await
        }
    }

    /// The server says six seconds, which is more than the floor and less than what is waited without a word.
    #[tokio::test]
    async fn a_name_is_asked_for_again_when_the_servers_answer_ends() {
        let (server, questions) = dns::tests::server(6, &[[192, 0, 2, 1]]).await;
        let (asked, mut times) = mpsc::unbounded_channel();
        let (out, mut answers) = mpsc::channel(8);
        let task =
            tokio::spawn(ask(Known { server, asked }, "gw.example.org".into(), Arc::new(Notify::new()), out));
        let first = times.recv().await.unwrap();
        let second = tokio::time::timeout(Duration::from_secs(20), times.recv()).await.unwrap().unwrap();
        let apart = second - first;
        assert!(apart >= Duration::from_secs(6) && apart < Duration::from_secs(15), "{apart:?}");
        assert!(matches!(answers.recv().await, Some((_, Answer::Addresses(_)))));
        assert!(questions.load(Ordering::Relaxed) >= 1);
        task.abort();
    }
}
