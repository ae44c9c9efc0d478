//! Jobs of the protocol: done at once, after a random time and in any order, never, or when a test says so.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cygnet_ike::{Action, Input, Job, JobId};
use cygnet_model::{Now, Timestamp};

use crate::{Gateway, Lab};

/// How fast a gateway's jobs are done.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Shortest and longest time; a wide range reorders.
    pub delay: (Duration, Duration),
    /// Jobs that are never done, permille.
    pub loss: u64,
    /// None is done before a test says so ([`Lab::do_jobs`]).
    pub held: bool,
}

impl Pace {
    /// No sooner asked than done.
    pub const AT_ONCE: Self = Self { delay: (Duration::ZERO, Duration::ZERO), loss: 0, held: false };
    /// Up to two seconds, which is longer than a peer waits for an answer.
    pub const SLOW: Self = Self { delay: (Duration::ZERO, Duration::from_secs(2)), loss: 0, held: false };
    /// The same, and some are never done.
    pub const LOSSY: Self = Self { loss: 30, ..Self::SLOW };
    /// When a test says so.
    pub const HELD: Self = Self { held: true, ..Self::AT_ONCE };
}

/// Jobs that are not done yet, in the order in which they were asked for.
#[derive(Default)]
pub(crate) struct Waiting(Vec<(Option<Timestamp>, JobId, Job)>);

impl Waiting {
    /// When the next one is done by itself.
    pub fn next(&self) -> Option<Timestamp> {
        self.0.iter().filter_map(|(at, ..)| *at).min()
    }

    fn take_due(&mut self, now: Timestamp) -> Option<(JobId, Job)> {
        let due =
            self.0.iter().enumerate().filter_map(|(n, (at, ..))| Some((at.filter(|at| *at <= now)?, n)));
        let (_, n) = due.min()?;
        let (_, id, job) = self.0.remove(n);
        Some((id, job))
    }
}

impl Gateway {
    /// The jobs that are not done yet, by name.
    pub fn jobs(&self) -> Vec<String> {
        self.waiting.0.iter().map(|(.., job)| format!("{job:?}")).collect()
    }
}

impl Lab {
    /// Both gateways do their jobs at this pace, each with luck of its own.
    pub fn set_pace(&mut self, pace: Pace) {
        self.gateways.iter_mut().for_each(|g| g.pace = pace);
    }

    /// Takes jobs that the protocol asks for.
    pub(crate) fn take_jobs(&mut self, side: usize, jobs: Vec<(JobId, Job)>) {
        let pace = self.gateways[side].pace;
        for (id, job) in jobs {
            if pace.delay.1.is_zero() && !pace.held {
                self.finish(side, id, job);
                continue;
            }
            if pace.loss > 0 && self.below(1000) < pace.loss {
                continue;
            }
            let span = u64::try_from((pace.delay.1 - pace.delay.0).as_nanos()).expect("a short delay");
            let at = self.now + pace.delay.0 + Duration::from_nanos(self.below(span + 1));
            self.gateways[side].waiting.0.push(((!pace.held).then_some(at), id, job));
        }
    }

    /// Does what is due at this moment.
    pub(crate) fn do_due_jobs(&mut self) {
        for side in 0..self.gateways.len() {
            while let Some((id, job)) = self.gateways[side].waiting.take_due(self.now) {
                self.finish(side, id, job);
            }
        }
    }

    /// Does the jobs that wait at this moment, in the order in which they were asked for.
    pub fn do_jobs(&mut self, side: usize) {
        for (_, id, job) in std::mem::take(&mut self.gateways[side].waiting.0) {
            self.finish(side, id, job);
        }
    }

    /// Loses the jobs that wait at this moment.
    pub fn lose_jobs(&mut self, side: usize) {
        self.gateways[side].waiting.0.clear();
    }

    /// Feeds an input to a gateway and does the jobs that come of it, and performs nothing else.
    pub fn handle(&mut self, side: usize, now: Now, input: Input<'_>) -> Vec<Action> {
        let g = &mut self.gateways[side];
        let mut out = Vec::new();
        g.endpoint.handle(now, input, &mut out);
        while let Some(at) = out.iter().position(|a| matches!(a, Action::Run(..))) {
            if let Action::Run(id, job) = out.remove(at) {
                let output = job.run_toy(&mut g.random);
                g.endpoint.handle(now, Input::Done(id, output), &mut out);
            }
        }
        out
    }

    fn finish(&mut self, side: usize, id: JobId, job: Job) {
        let g = &mut self.gateways[side];
        g.secrets.fetch_add(u64::from(job.makes_secret()), Ordering::Relaxed);
        let output = job.run_toy(&mut g.random);
        self.input(side, Input::Done(id, output));
    }
}
