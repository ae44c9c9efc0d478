//! What became of the last probes: the figures of a minute, and the few by which loss and delay are judged.

use std::collections::VecDeque;
use std::time::Duration;

use cygnet_model::Timestamp;

use super::{Delay, Figures};

/// Figures are of this time.
pub const SPAN: Duration = Duration::from_secs(60);
/// Loss and delay are judged by at most as many of the last probes.
const JUDGED: usize = 20;
/// Outcomes that are kept at most. At one probe a second, with those that are sent to make sure, a minute has no more.
const ROOM: usize = 512;

/// What became of a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing came back.
    Lost,
    /// It was answered.
    Answered {
        /// Round trip.
        delay: Duration,
        /// Probes that had not got to the other end until then, if it tells.
        lost_there: Option<u32>,
    },
}

/// The last probes, as far as a judgement needs them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recent {
    /// How many.
    pub probes: u32,
    /// How many of them were lost.
    pub lost: u32,
    /// Mean round trip of the others.
    pub mean: Option<Duration>,
}

/// Outcomes of the last minute.
#[derive(Clone, Debug, Default)]
pub struct Window {
    outcomes: VecDeque<(Timestamp, Outcome)>,
    /// As many of the last ones count in the next judgement.
    fresh: usize,
    before: Option<Duration>,
    /// In nanoseconds.
    jitter: f64,
}

impl Window {
    /// Notes what became of a probe.
    pub fn note(&mut self, now: Timestamp, outcome: Outcome) {
        if let Outcome::Answered { delay, .. } = outcome {
            let before = self.before.replace(delay).unwrap_or(delay);
            self.jitter += (delay.abs_diff(before).as_nanos() as f64 - self.jitter) / 16.0;
        }
        if self.outcomes.len() == ROOM {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back((now, outcome));
        self.fresh = (self.fresh + 1).min(JUDGED);
        // Those that are judged stay, however old.
        while self.outcomes.len() > JUDGED
            && self.outcomes.front().is_some_and(|(at, _)| now.since(*at) > SPAN)
        {
            self.outcomes.pop_front();
        }
    }

    /// What was before counts in no further judgement.
    pub fn begin_anew(&mut self) {
        self.fresh = 0;
    }

    /// The last ones.
    pub fn recent(&self) -> Recent {
        let last = self.outcomes.iter().rev().take(self.fresh).map(|(_, outcome)| outcome);
        let (probes, lost, delays) = tally(last);
        Recent { probes, lost, mean: delays.map(|d| d.mean) }
    }

    /// The figures of the last minute.
    pub fn figures(&self, now: Timestamp) -> Figures {
        let within = || self.outcomes.iter().filter(|(at, _)| now.since(*at) <= SPAN).map(|(_, o)| o);
        let (probes, lost, delay) = tally(within());
        let mut there = within().filter_map(|outcome| match outcome {
            Outcome::Answered { lost_there, .. } => *lost_there,
            Outcome::Lost => None,
        });
        let first = there.next();
        let last = there.next_back();
        // One that is answered by another life of the other end begins to count anew.
        let lost_there = first.zip(last).map(|(first, last)| last.saturating_sub(first).min(lost));
        Figures { probes, lost, lost_there, delay, jitter: Duration::from_nanos(self.jitter as u64) }
    }
}

fn tally<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> (u32, u32, Option<Delay>) {
    let (mut probes, mut lost, mut sum) = (0u32, 0u32, Duration::ZERO);
    let (mut min, mut max) = (Duration::MAX, Duration::ZERO);
    for outcome in outcomes {
        probes += 1;
        match outcome {
            Outcome::Lost => lost += 1,
            Outcome::Answered { delay, .. } => {
                sum = sum.saturating_add(*delay);
                (min, max) = (min.min(*delay), max.max(*delay));
            }
        }
    }
    let answered = probes - lost;
    let delay = (answered > 0).then(|| Delay { min, mean: sum / answered.max(1), max });
    (probes, lost, delay)
}
