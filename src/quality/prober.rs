//! The probes of one tunnel: when one is due, which are on their way, and what their fate says.
//!
//! A probe has two deadlines. After its *patience* it is missed, and that decides about the tunnel's health; the next one
//! leaves at once then, so that as many in a row as it takes are missed within one interval, and a tunnel that is dead is
//! known within two. After its *grace* it is lost and counts so. An answer in between is late, not lost: it counts as
//! answered, and takes back what the judge believed.

use std::collections::VecDeque;
use std::time::Duration;

use cygnet_model::Timestamp;

use super::health::{Change, Health, Judge};
use super::history::History;
use super::window::{Outcome, Window};
use super::{Figures, Settings};

/// The least patience. What a host that is busy takes to answer.
const MIN_PATIENCE: Duration = Duration::from_millis(100);
/// The least grace.
const MIN_GRACE: Duration = Duration::from_secs(2);
/// Probes on their way at most.
const ON_THE_WAY: usize = 64;

/// A probe that is on its way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: u32,
    at: Timestamp,
    missed: bool,
}

/// Round trips, smoothed as in RFC 6298 §2.
#[derive(Clone, Copy, Debug)]
struct Smoothed {
    mean: Duration,
    deviation: Duration,
}

/// Probes one tunnel.
#[derive(Clone, Debug)]
pub struct Prober {
    settings: Settings,
    next_at: Timestamp,
    seq: u32,
    on_the_way: VecDeque<Sent>,
    round_trip: Option<Smoothed>,
    /// Number and count of the first probe of which the other end told how many it has received, and its last count.
    received: Option<Received>,
    window: Window,
    history: History,
    judge: Judge,
}

#[derive(Clone, Copy, Debug)]
struct Received {
    /// Number of a probe less the count when it came: how many had not come before that nobody knows of.
    base: u32,
    last: (u32, u32),
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Due {
    /// A probe with this number is to be sent.
    pub send: Option<u32>,
    /// The tunnel's health has changed.
    pub change: Option<Change>,
}

impl Prober {
    /// Probes from `first` on.
    pub fn new(settings: Settings, first: Timestamp) -> Self {
        Self {
            settings,
            next_at: first,
            seq: 0,
            on_the_way: VecDeque::new(),
            round_trip: None,
            received: None,
            window: Window::default(),
            history: History::default(),
            judge: Judge::default(),
        }
    }

    /// Goes by other settings from here on, and keeps what is known.
    pub fn set(&mut self, settings: Settings, now: Timestamp) {
        if settings.interval != self.settings.interval {
            self.next_at = self.next_at.min(now + settings.interval);
        }
        self.settings = settings;
    }

    /// Does what is due, one thing after the other.
    pub fn on_tick(&mut self, now: Timestamp) -> Due {
        let mut change = None;
        let patience = self.patience();
        let missed = self.on_the_way.iter_mut().filter(|p| !p.missed && p.at + patience <= now);
        let missed = missed.map(|p| p.missed = true).count();
        for _ in 0..missed {
            change = merged(change, self.judge.missed(now, &self.settings));
        }
        if missed > 0 && self.judge.is_in_doubt(&self.settings) {
            self.next_at = now;
        }
        let grace = self.grace();
        while let Some(lost) = self.on_the_way.front().filter(|p| p.at + grace <= now).copied() {
            self.on_the_way.pop_front();
            // One that was not looked at before its grace was over was missed, too.
            let late = if lost.missed { None } else { self.judge.missed(now, &self.settings) };
            self.note(now, Outcome::Lost);
            let judged = self.judge.lost(now, &self.settings, self.window.recent());
            change = merged(merged(change, late), judged);
        }
        let mut send = None;
        if now >= self.next_at {
            // The rhythm is kept unless it was slept through.
            let next = self.next_at + self.settings.interval;
            self.next_at = if next > now { next } else { now + self.settings.interval };
            if self.on_the_way.len() < ON_THE_WAY {
                self.seq = self.seq.wrapping_add(1);
                self.on_the_way.push_back(Sent { seq: self.seq, at: now, missed: false });
                send = Some(self.seq);
            }
        }
        self.followed(change);
        Due { send, change }
    }

    /// A probe was answered. `received`: how many of ours the other end has received so far, if it tells. An answer that
    /// nobody waits for any more, or a second one, changes nothing.
    pub fn on_answer(&mut self, now: Timestamp, seq: u32, received: Option<u32>) -> Option<Change> {
        let at = self.on_the_way.iter().position(|p| p.seq == seq)?;
        let sent = self.on_the_way.remove(at)?;
        let delay = now.since(sent.at);
        self.smooth(delay);
        let lost_there = received.and_then(|count| self.lost_there(seq, count));
        self.note(now, Outcome::Answered { delay, lost_there });
        let change = self.judge.answered(now, &self.settings, self.window.recent());
        self.followed(change);
        change
    }

    /// The tunnel is not up: what is on its way says nothing. Its health stays as it is until it is up again.
    pub fn on_pause(&mut self) {
        self.on_the_way.clear();
        self.received = None;
    }

    /// When [`Self::on_tick`] has something to do.
    pub fn next_wakeup(&self) -> Timestamp {
        let (patience, grace) = (self.patience(), self.grace());
        let missed = self.on_the_way.iter().find(|p| !p.missed).map(|p| p.at + patience);
        let lost = self.on_the_way.front().map(|p| p.at + grace);
        [missed, lost].into_iter().flatten().fold(self.next_at, Timestamp::min)
    }

    /// How the tunnel is.
    pub const fn health(&self) -> Health {
        self.judge.health()
    }

    /// Answers in a row that it takes to recover.
    pub fn needed(&self) -> u32 {
        self.judge.needed(&self.settings)
    }

    /// The figures of the last minute.
    pub fn figures(&self, now: Timestamp) -> Figures {
        self.window.figures(now)
    }

    /// Minute by minute.
    pub const fn history(&self) -> &History {
        &self.history
    }

    /// The same, to bound it.
    pub const fn history_mut(&mut self) -> &mut History {
        &mut self.history
    }

    /// After how long a probe is missed: a part of the interval, or longer where round trips are.
    fn patience(&self) -> Duration {
        let interval = self.settings.interval;
        let least = (interval / self.settings.failures.max(1)).max(MIN_PATIENCE);
        self.round_trip.map_or(interval, |r| r.mean + r.deviation * 4).clamp(least, interval.max(least))
    }

    fn grace(&self) -> Duration {
        MIN_GRACE.max(self.settings.interval)
    }

    fn smooth(&mut self, delay: Duration) {
        self.round_trip = Some(match self.round_trip {
            None => Smoothed { mean: delay, deviation: delay / 2 },
            Some(r) => Smoothed {
                deviation: (r.deviation * 3 + r.mean.abs_diff(delay)) / 4,
                mean: (r.mean * 7 + delay) / 8,
            },
        });
    }

    /// How many probes up to this one have not got to the other end, which has received `count`; counted from the first one
    /// of which that is known.
    fn lost_there(&mut self, seq: u32, count: u32) -> Option<u32> {
        let fresh = Received { base: seq.wrapping_sub(count), last: (seq, count) };
        let known = self.received.get_or_insert(fresh);
        // Another life of the other end counts from the beginning; answers that overtook each other do not.
        if seq > known.last.0 && count < known.last.1 {
            *known = fresh;
        }
        if seq > known.last.0 {
            known.last = (seq, count);
        }
        seq.checked_sub(known.base)?.checked_sub(count)
    }

    fn note(&mut self, now: Timestamp, outcome: Outcome) {
        self.window.note(now, outcome);
        self.history.note(now, outcome);
    }

    /// What led to a change has done so, and counts in no further one.
    fn followed(&mut self, change: Option<Change>) {
        if change.is_some() {
            self.window.begin_anew();
        }
    }
}

/// What two changes of one moment come to.
const fn merged(first: Option<Change>, second: Option<Change>) -> Option<Change> {
    match (first, second) {
        (Some(Change::Degraded(_)), Some(Change::Turned(cause))) => Some(Change::Degraded(cause)),
        (first, None) => first,
        (_, second) => second,
    }
}

#[cfg(test)]
mod tests;
