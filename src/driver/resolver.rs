//! DNS names of customer gateways, asked of the system's resolver: one task for each name.
//!
//! A name is asked for again after a while, and at once when there is reason to believe that its answer has changed: its
//! gateway does not answer, or somebody comes from an address that nobody is known by. Strangers can make such reasons,
//! so that a name has a shortest time between two questions.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// How often a name is asked for without a reason. The system's resolver may answer from its cache.
const REGULAR: Duration = Duration::from_secs(30);
/// The shortest time between two questions for a name.
const SHORTEST: Duration = Duration::from_secs(3);

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

/// Asks for names, again and again.
#[derive(Default)]
pub(super) struct Resolver {
    hurry: BTreeMap<String, Arc<Notify>>,
}

impl Resolver {
    /// Starts to ask for `names`, and goes on for as long as somebody listens.
    pub fn spawn(names: impl IntoIterator<Item = String>, out: &mpsc::Sender<Resolved>) -> Self {
        let mut hurry = BTreeMap::new();
        for name in names {
            let wake = Arc::new(Notify::new());
            tokio::spawn(ask(name.clone(), Arc::clone(&wake), out.clone()));
            hurry.insert(name, wake);
        }
        Self { hurry }
    }

    /// There is reason to ask for a name now.
    pub fn hurry(&self, name: &str) {
        if let Some(wake) = self.hurry.get(name) {
            wake.notify_one();
        }
    }

    /// There is reason to ask for all of them now.
    pub fn hurry_all(&self) {
        self.hurry.values().for_each(|wake| wake.notify_one());
    }
}

async fn ask(name: String, wake: Arc<Notify>, out: mpsc::Sender<Resolved>) {
    loop {
        let asked = Instant::now();
        let answer = match tokio::net::lookup_host((name.as_str(), 0)).await {
            Ok(found) => {
                let mut addresses: Vec<IpAddr> = found.map(|a| a.ip()).collect();
                addresses.sort_unstable();
                addresses.dedup();
                if addresses.is_empty() {
                    Answer::Failed("it has no address".to_owned())
                } else {
                    Answer::Addresses(addresses)
                }
            }
            Err(e) => Answer::Failed(e.to_string()),
        };
        // Without an answer there is reason to ask again.
        let wait = if matches!(answer, Answer::Failed(_)) { SHORTEST } else { REGULAR };
        if out.send((name.clone(), answer)).await.is_err() {
            return;
        }
        // Who hurries during the question has its answer.
        let _ = tokio::time::timeout(wait, wake.notified()).await;
        tokio::time::sleep_until(asked + SHORTEST).await;
    }
}
