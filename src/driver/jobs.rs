//! Does the protocol's jobs beside the loop, on as many processors as there are.
//!
//! ```text
//!  loop ──Job──▶ queue of peers ───┐
//!       ──Job──▶ queue of strangers┴─▶ workers ──Output──▶ loop
//! ```
//!
//! What known peers wait for comes before what strangers ask for. The queue is bounded: what has no place in it is done by
//! the loop itself, which then takes less in; so is what is not worth the way ([`is_worth_the_way`]). Nobody waits for a
//! worker: at the end of the process it ends with it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use cygnet_ike::crypto::Random;
use cygnet_ike::{Asker, Effort, Job, JobId, Output};
use tokio::sync::mpsc;

use crate::privileges;

/// Jobs that wait for a worker, at most. A key and the peer's public value each: about a kilobyte.
const QUEUE: usize = 4096;

/// More workers than this have nothing to do: the loop feeds them.
const MAX_WORKERS: usize = 8;

/// Whether a job shall go to a worker. `others_wait`: the loop has something else to do meanwhile. Where it has not, a short
/// job costs less than to wake a worker, and to be woken by it.
pub(super) const fn is_worth_the_way(job: &Job, others_wait: bool) -> bool {
    match job.effort() {
        Effort::Slight => false,
        Effort::Short => others_wait,
        Effort::Long => true,
    }
}

/// Jobs that wait.
#[derive(Default)]
struct Queue {
    known: VecDeque<(JobId, Job)>,
    strangers: VecDeque<(JobId, Job)>,
    /// Workers that sleep.
    idle: usize,
    /// Nobody takes results any more.
    closed: bool,
}

impl Queue {
    fn len(&self) -> usize {
        self.known.len() + self.strangers.len()
    }

    fn pop(&mut self) -> Option<(JobId, Job)> {
        self.known.pop_front().or_else(|| self.strangers.pop_front())
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that holds it can panic half-way.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` when there will be none.
    fn next(&self) -> Option<(JobId, Job)> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.pop() {
                return Some(job);
            }
            queue.idle += 1;
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

/// The workers, and what waits for them.
pub(super) struct Workers {
    shared: Arc<Shared>,
    running: usize,
}

impl Workers {
    /// Starts them: one for each processor but one, which the loop has. Results come by `done`, and each worker has a source of
    /// random octets from `random`.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start<R: Random + 'static>(
        done: &mpsc::Sender<(JobId, Output)>,
        random: impl Fn() -> R,
    ) -> std::io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with(processors.saturating_sub(1).clamp(1, MAX_WORKERS), done, random)
    }

    fn with<R: Random + 'static>(
        running: usize,
        done: &mpsc::Sender<(JobId, Output)>,
        random: impl Fn() -> R,
    ) -> std::io::Result<Self> {
        let workers = Self { shared: Arc::default(), running };
        for _ in 0..running {
            let (shared, done, mut random) = (Arc::clone(&workers.shared), done.clone(), random());
            std::thread::Builder::new().name("jobs".to_owned()).spawn(move || {
                privileges::give_up_all();
                while let Some((id, job)) = shared.next() {
                    if done.blocking_send((id, job.run(&mut random))).is_err() {
                        return;
                    }
                }
            })?;
        }
        Ok(workers)
    }

    /// Hands a job to the workers. If too many wait already, it comes back.
    #[expect(
        clippy::result_large_err,
        reason = "a queue that refuses gives back what it refuses, as channels do"
    )]
    pub fn take(&self, id: JobId, job: Job) -> Result<(), (JobId, Job)> {
        let mut queue = self.shared.lock();
        if self.running == 0 || queue.len() >= QUEUE {
            return Err((id, job));
        }
        match job.asker() {
            Asker::Known => queue.known.push_back((id, job)),
            Asker::Stranger => queue.strangers.push_back((id, job)),
        }
        let wake = queue.idle > 0;
        drop(queue);
        if wake {
            self.shared.filled.notify_one();
        }
        Ok(())
    }
}

impl Drop for Workers {
    /// What waits is wiped; what is being done ends by itself.
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        queue.known.clear();
        queue.strangers.clear();
        drop(queue);
        self.shared.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use cygnet_ike::policy::{Encap, Retransmit, Start};
    use cygnet_ike::wire::Identity;
    use cygnet_ike::{Action, Command, Config, Endpoint, Flow, Input, TunnelPolicy};
    use cygnet_model::{Now, SecretBytes, Timestamp, TunnelId};

    use super::*;
    use crate::driver::os_random;

    fn now() -> Now {
        Now { mono: Timestamp::from_nanos(1_000_000_000_000), unix: 0 }
    }

    /// A gateway with one tunnel to a peer.
    fn endpoint(own: [u8; 4], peer: [u8; 4]) -> Endpoint {
        let mut endpoint = Endpoint::new(Config::default(), now(), Box::new(os_random()));
        let policy = TunnelPolicy {
            id: TunnelId(0),
            name: "t".into(),
            local: vec![own.into()],
            remote: vec![peer.into()],
            local_id: Identity::address(own.into()),
            remote_id: Identity::address(peer.into()).into(),
            psk: SecretBytes::copy_of(b"a key that is only for this test"),
            other_psks: Vec::new(),
            start: Start::Passive,
            proposals: vec!["aes256gcm16-prfsha384-x25519".parse().unwrap()],
            lifetime: Duration::from_secs(86_400),
            dpd: None,
            encap: Encap::Auto,
            fragmentation: true,
            retransmit: Retransmit::default(),
            children: Vec::<cygnet_ike::policy::ChildPolicy>::new().into(),
        };
        endpoint.set_policies(now(), vec![policy], &mut Vec::new());
        endpoint
    }

    /// Jobs of a stranger who asks, and of us who begin.
    fn jobs() -> [(JobId, Job); 2] {
        let (a, b) = ([192, 0, 2, 1], [192, 0, 2, 2]);
        let (mut ours, mut theirs) = (endpoint(a, b), endpoint(b, a));
        let run = |out: Vec<Action>| {
            out.into_iter().find_map(|a| if let Action::Run(id, job) = a { Some((id, job)) } else { None })
        };
        let begin = |endpoint: &mut Endpoint| {
            let mut out = Vec::new();
            endpoint.handle(now(), Input::Command(Command::Up(TunnelId(0))), &mut out);
            run(out).unwrap()
        };
        let (id, job) = begin(&mut ours);
        let mut out = Vec::new();
        ours.handle(now(), Input::Done(id, job.run(&mut os_random())), &mut out);
        let request =
            out.iter().find_map(|a| if let Action::Send { bytes, .. } = a { Some(bytes) } else { None });
        let flow = Flow { local: (b, 500).into(), remote: (a, 500).into(), natt: false };
        let mut out = Vec::new();
        theirs.handle(now(), Input::Datagram { flow, bytes: request.unwrap() }, &mut out);
        [run(out).unwrap(), begin(&mut endpoint(a, b))]
    }

    #[test]
    fn every_job_is_done_once() {
        let (tx, mut rx) = mpsc::channel(16);
        let workers = Workers::with(3, &tx, os_random).unwrap();
        let mut left = BTreeMap::new();
        for _ in 0..20 {
            for (id, job) in jobs() {
                *left.entry(id).or_insert(0) += 1;
                workers.take(id, job).unwrap();
            }
        }
        for _ in 0..40 {
            let (id, output) = rx.blocking_recv().unwrap();
            assert_eq!(format!("{output:?}"), "Ok");
            *left.get_mut(&id).unwrap() -= 1;
        }
        assert!(left.values().all(|n| *n == 0), "{left:?}");
    }

    #[test]
    fn known_peers_come_before_strangers() {
        let shared = Shared::default();
        let [(stranger, s), (known, k)] = jobs();
        assert_eq!((s.asker(), k.asker()), (Asker::Stranger, Asker::Known));
        let workers = Workers { shared: Arc::new(shared), running: 1 };
        workers.take(stranger, s).unwrap();
        workers.take(known, k).unwrap();
        let next = || workers.shared.next().unwrap().0;
        assert_eq!([next(), next()], [known, stranger]);
    }

    #[test]
    fn what_has_no_place_in_the_queue_comes_back() {
        let workers = Workers { shared: Arc::default(), running: 1 };
        let mut refused = 0;
        for _ in 0..QUEUE / 2 + 4 {
            refused += jobs().into_iter().filter_map(|(id, job)| workers.take(id, job).err()).count();
        }
        assert_eq!((refused, workers.shared.lock().len()), (8, QUEUE));
    }

    #[test]
    fn workers_end_when_nobody_wants_results() {
        let (tx, rx) = mpsc::channel(16);
        let workers = Workers::with(2, &tx, os_random).unwrap();
        let shared = Arc::downgrade(&workers.shared);
        drop((workers, rx));
        let began = Instant::now();
        while shared.strong_count() > 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "a worker goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
