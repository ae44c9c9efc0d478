//! A day of a tunnel's quality by the minute, in little memory.

use std::collections::VecDeque;
use std::time::Duration;

use cygnet_model::Timestamp;

use super::window::Outcome;

/// Minutes of a day: more are not kept.
pub const DAY: usize = 24 * 60;
/// Minutes that all tunnels keep together; each one of 20 octets and a little more.
const OF_ALL: usize = 1_500_000;
/// Each tunnel keeps as many, however many tunnels there are.
const FEWEST: usize = 60;

/// How many minutes each of so many tunnels keeps.
pub fn room(tunnels: usize) -> usize {
    (OF_ALL / tunnels.max(1)).clamp(FEWEST, DAY)
}

/// What came of the probes of one minute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Minute {
    /// Which one, in minutes of the clock by which [`Timestamp`]s are.
    pub minute: u32,
    /// Probes whose fate became known in it.
    pub probes: u16,
    /// Those that were lost.
    pub lost: u16,
    /// Round trips of the others in microseconds: shortest, mean, longest. Zero without any.
    pub delay_us: [u32; 3],
    /// Mean difference of successive round trips in microseconds.
    pub jitter_us: u32,
}

/// The minute that is not over yet.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    minute: u32,
    probes: u32,
    lost: u32,
    min: u64,
    max: u64,
    sum: u64,
    differences: u64,
    before: Option<u64>,
}

/// Minutes of one tunnel, the oldest first.
#[derive(Clone, Debug)]
pub struct History {
    minutes: VecDeque<Minute>,
    open: Option<Open>,
    room: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { minutes: VecDeque::new(), open: None, room: DAY }
    }
}

impl History {
    /// Keeps at most so many minutes from here on.
    pub fn set_room(&mut self, room: usize) {
        self.room = room;
        while self.minutes.len() > room {
            self.minutes.pop_front();
        }
    }

    /// Notes what became of a probe.
    pub fn note(&mut self, now: Timestamp, outcome: Outcome) {
        let minute = minute_of(now);
        if self.open.is_some_and(|open| open.minute != minute)
            && let Some(open) = self.open.take()
        {
            if self.minutes.len() >= self.room {
                self.minutes.pop_front();
            }
            self.minutes.push_back(open.close());
        }
        let open = self.open.get_or_insert(Open { minute, min: u64::MAX, ..Open::default() });
        open.probes += 1;
        match outcome {
            Outcome::Lost => open.lost += 1,
            Outcome::Answered { delay, .. } => {
                let us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
                (open.min, open.max) = (open.min.min(us), open.max.max(us));
                open.sum = open.sum.saturating_add(us);
                let difference = open.before.replace(us).map_or(0, |before| before.abs_diff(us));
                open.differences = open.differences.saturating_add(difference);
            }
        }
    }

    /// The minutes from a moment on, the oldest first; the last one may not be over.
    pub fn since(&self, from: Timestamp) -> impl Iterator<Item = Minute> {
        let from = minute_of(from);
        let all = self.minutes.iter().copied().chain(self.open.map(|open| open.close()));
        all.filter(move |minute| minute.minute >= from)
    }
}

impl Open {
    fn close(self) -> Minute {
        let answered = u64::from(self.probes - self.lost);
        let short = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let mean = |sum: u64, of: u64| sum.checked_div(of).unwrap_or(0);
        let min = if answered > 0 { self.min } else { 0 };
        Minute {
            minute: self.minute,
            probes: u16::try_from(self.probes).unwrap_or(u16::MAX),
            lost: u16::try_from(self.lost).unwrap_or(u16::MAX),
            delay_us: [min, mean(self.sum, answered), self.max].map(short),
            jitter_us: short(mean(self.differences, answered.saturating_sub(1))),
        }
    }
}

fn minute_of(at: Timestamp) -> u32 {
    u32::try_from(at.as_nanos() / Duration::from_secs(60).as_nanos() as u64).unwrap_or(u32::MAX)
}
