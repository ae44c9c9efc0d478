//! What takes long leaves the protocol as a [`Job`] and comes back as an [`Output`]: whoever drives the protocol computes
//! it where and when it likes, and tells the result by [`crate::Input::Done`].
//!
//! ```text
//!   message ─▶ handler ─▶ Action::Run(id, job) ···▶ job.run() ···▶ Input::Done(id, output) ─▶ handler ─▶ answer
//! ```
//!
//! A message that needs a job is treated as if it were still on its way: it takes effect when the result is there, against
//! the state of that moment. So a slow job is a slow network, and what may happen in the meantime is what may happen
//! anyway. Jobs own what they need and know nothing of the SA that waits for them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use cygnet_model::suite::Group;
use cygnet_model::{IkeSpi, SecretBytes, Timestamp};

use crate::crypto::Random;
use crate::crypto::kex::{self, KexError, PrivateKey, Provider};

/// When nobody waits for a result any more. Peers have given up by then, and half-open SAs are gone.
const DEADLINE: Duration = Duration::from_secs(30);

/// The name of a job. No two jobs of one [`crate::Endpoint`] have the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobId {
    /// Our SPI of the IKE SA that waits for it.
    pub sa: IkeSpi,
    /// How many jobs there were before it.
    pub number: u64,
}

/// Who makes us compute something.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Asker {
    /// An authenticated peer, or we ourselves.
    Known,
    /// Somebody who has proven nothing.
    Stranger,
}

/// A computation. It is wiped when it is dropped, done or not, as far as the libraries do so; its secrets are not printed.
pub struct Job {
    work: Work,
    asker: Asker,
}

/// What is to be computed.
pub(crate) enum Work {
    /// A private key, and the public value for the KE payload.
    Begin(Group),
    /// The shared secret of a private key and the peer's public value.
    Finish(PrivateKey, Vec<u8>),
    /// Both at once, for an answer to the peer's public value.
    Answer(Group, Vec<u8>),
}

/// What a job gave.
pub struct Output(Result<Made, KexError>);

enum Made {
    Key(PrivateKey, Vec<u8>),
    Secret(SecretBytes),
    Answer(Vec<u8>, SecretBytes),
}

/// What a job takes, for whoever decides where it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// No longer than the way to another thread and back: a key of one of the fast curves, some 10 to 30 µs.
    Slight,
    /// A few times that: a secret of one of the fast curves. Worth the way when others wait meanwhile.
    Short,
    /// Up to tens of milliseconds.
    Long,
}

impl Job {
    /// Computes it. Takes from some microseconds to tens of milliseconds, as the group has it; needs nothing but a source of
    /// random octets.
    pub fn run(self, random: &mut dyn Random) -> Output {
        self.run_with(Provider::Real, random)
    }

    /// The same with arithmetic that is a hash: fast, reproducible, and worthless against anybody.
    #[cfg(feature = "test-util")]
    pub fn run_toy(self, random: &mut dyn Random) -> Output {
        self.run_with(Provider::Toy, random)
    }

    fn run_with(self, provider: Provider, random: &mut dyn Random) -> Output {
        Output(match self.work {
            Work::Begin(group) => kex::begin(provider, group, random).map(|(key, own)| Made::Key(key, own)),
            Work::Finish(key, peer) => key.finish(&peer).map(Made::Secret),
            Work::Answer(group, peer) => {
                kex::answer(provider, group, &peer, random).map(|(own, secret)| Made::Answer(own, secret))
            }
        })
    }

    /// Who makes us compute it: what known peers wait for comes first.
    pub const fn asker(&self) -> Asker {
        self.asker
    }

    /// The group that it is about.
    pub const fn group(&self) -> Group {
        match &self.work {
            Work::Begin(group) | Work::Answer(group, _) => *group,
            Work::Finish(key, _) => key.group(),
        }
    }

    /// How long it takes, beside the way to another thread and back.
    pub const fn effort(&self) -> Effort {
        match (&self.work, self.group()) {
            (Work::Begin(_), Group::X25519 | Group::Ecp256) => Effort::Slight,
            (_, Group::X25519 | Group::Ecp256 | Group::MlKem512 | Group::MlKem768 | Group::MlKem1024) => {
                Effort::Short
            }
            _ => Effort::Long,
        }
    }

    /// Whether a shared secret comes of it, and not only a key of our own.
    pub const fn makes_secret(&self) -> bool {
        matches!(self.work, Work::Finish(..) | Work::Answer(..))
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.work {
            Work::Begin(_) => "Begin",
            Work::Finish(..) => "Finish",
            Work::Answer(..) => "Answer",
        };
        write!(f, "{what}({:?}, {:?})", self.group(), self.asker)
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Ok(_) => f.write_str("Ok"),
            Err(e) => write!(f, "{e:?}"),
        }
    }
}

impl Output {
    /// What stands for a result that did not come in time.
    pub(crate) const fn late() -> Self {
        Self(Err(KexError::Late))
    }

    /// What [`Work::Begin`] gave.
    pub(crate) fn key(self) -> Result<(PrivateKey, Vec<u8>), KexError> {
        match self.0? {
            Made::Key(key, public) => Ok((key, public)),
            Made::Secret(_) | Made::Answer(..) => Err(KexError::Local),
        }
    }

    /// What [`Work::Finish`] gave.
    pub(crate) fn secret(self) -> Result<SecretBytes, KexError> {
        match self.0? {
            Made::Secret(secret) => Ok(secret),
            Made::Key(..) | Made::Answer(..) => Err(KexError::Local),
        }
    }

    /// What [`Work::Answer`] gave: our public value, and the shared secret.
    pub(crate) fn answer(self) -> Result<(Vec<u8>, SecretBytes), KexError> {
        match self.0? {
            Made::Answer(public, secret) => Ok((public, secret)),
            Made::Key(..) | Made::Secret(_) => Err(KexError::Local),
        }
    }
}

/// The jobs whose results are waited for.
#[derive(Default)]
pub(crate) struct Jobs {
    begun: u64,
    running: BTreeMap<JobId, Asker>,
    strangers: usize,
    /// In the order of their deadlines, which is the order in which they began. The first one runs.
    deadlines: VecDeque<(Timestamp, JobId)>,
}

impl Jobs {
    /// Names a job.
    pub fn begin(&mut self, now: Timestamp, sa: IkeSpi, asker: Asker, work: Work) -> (JobId, Job) {
        let id = JobId { sa, number: self.begun };
        self.begun += 1;
        self.running.insert(id, asker);
        self.strangers += usize::from(asker == Asker::Stranger);
        self.deadlines.push_back((now + DEADLINE, id));
        (id, Job { work, asker })
    }

    /// A result is there, or not waited for any more. `false` if it was neither before.
    pub fn end(&mut self, id: JobId) -> bool {
        let Some(asker) = self.running.remove(&id) else { return false };
        self.strangers -= usize::from(asker == Asker::Stranger);
        while self.deadlines.front().is_some_and(|(_, id)| !self.running.contains_key(id)) {
            self.deadlines.pop_front();
        }
        true
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// How many of them strangers have made us compute.
    pub const fn of_strangers(&self) -> usize {
        self.strangers
    }

    /// When the next one is not waited for any more.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    /// One whose time is over.
    pub fn overdue(&self, now: Timestamp) -> Option<JobId> {
        self.deadlines.front().filter(|(at, _)| *at <= now).map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Timestamp {
        Timestamp::from_nanos(1_000_000_000 * s)
    }

    #[test]
    fn a_result_counts_once_and_not_after_its_time() {
        let mut jobs = Jobs::default();
        let sa = IkeSpi::new(7).unwrap();
        let mut begin = |now, asker| jobs.begin(at(now), sa, asker, Work::Begin(Group::X25519)).0;
        let (a, b, c) = (begin(0, Asker::Known), begin(1, Asker::Stranger), begin(2, Asker::Stranger));
        assert_eq!((jobs.len(), jobs.of_strangers(), jobs.next_deadline()), (3, 2, Some(at(30))));
        assert!(jobs.end(b));
        assert!(!jobs.end(b), "once");
        assert_eq!(jobs.of_strangers(), 1);
        assert_eq!(jobs.overdue(at(29)), None);
        assert_eq!(jobs.overdue(at(30)), Some(a));
        assert!(jobs.end(a));
        assert_eq!(jobs.next_deadline(), Some(at(32)), "what has ended keeps nobody awake");
        assert!(jobs.end(c));
        assert_eq!((jobs.len(), jobs.of_strangers(), jobs.next_deadline()), (0, 0, None));
    }

    #[test]
    fn neither_jobs_nor_outputs_show_what_they_hold() {
        let mut jobs = Jobs::default();
        let mut random = crate::crypto::tests::Counting(1);
        let sa = IkeSpi::new(7).unwrap();
        let (_, job) = jobs.begin(at(0), sa, Asker::Known, Work::Begin(Group::Modp2048));
        let output = job.run(&mut random);
        assert_eq!(format!("{output:?}"), "Ok");
        let (key, public) = output.key().unwrap();
        let (_, job) = jobs.begin(at(0), sa, Asker::Stranger, Work::Finish(key, public));
        assert_eq!(format!("{job:?}"), "Finish(Modp2048, Stranger)");
        assert_eq!(format!("{:?}", job.run(&mut random)), "Ok");
        assert_eq!(format!("{:?}", Output::late()), "Late");
    }
}
