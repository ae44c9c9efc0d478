//! Whether a tunnel is fit to carry traffic, decided with hysteresis: it is hard to change one's mind, and harder each time.
//!
//! ```text
//!   unknown ── an answer ──▶ good ── failures in a row, or too much loss or delay ──▶ degraded
//!      └──── failures in a row ────────────────────────────────────────────────────────▶ │
//!                             ▲                                                          │
//!                             └── successes in a row (more after each relapse), and calm ─┘
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use cygnet_model::Timestamp;

use super::Settings;
use super::window::Recent;

/// Loss and delay are judged by as many probes at least.
const FEWEST: u32 = 10;
/// Relapses within this time make it harder to recover.
const RELAPSE: Duration = Duration::from_secs(600);
/// As many times the answers in a row are doubled at most.
const DOUBLINGS: usize = 3;
/// A loss has gone when it is this part of the one that counts as degraded; a delay likewise.
const LOSS_CALM: (u32, u32) = (1, 2);
const DELAY_CALM: (u32, u32) = (4, 5);

/// How a tunnel is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Nothing is known yet.
    Unknown,
    /// Fit to carry traffic.
    Good,
    /// Another tunnel should carry it, if there is one.
    Degraded(Cause),
}

impl Health {
    /// The word in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Good => "good",
            Self::Degraded(_) => "degraded",
        }
    }

    /// Where a tunnel stands among others that could carry the same packets: lower is better. Their weights decide between
    /// equal ones.
    pub const fn rank(self) -> u8 {
        match self {
            Self::Unknown | Self::Good => 0,
            Self::Degraded(Cause::Loss | Cause::Delay) => 1,
            Self::Degraded(Cause::NoAnswer) => 2,
        }
    }
}

/// Why a tunnel is degraded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// Probes are not answered.
    NoAnswer,
    /// Too many of them are lost.
    Loss,
    /// They take too long.
    Delay,
}

impl Cause {
    /// The word in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoAnswer => "no_answer",
            Self::Loss => "loss",
            Self::Delay => "delay",
        }
    }
}

/// What has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It was fit and is not any more.
    Degraded(Cause),
    /// It was degraded already, and is so for another reason now.
    Turned(Cause),
    /// It is fit again.
    Recovered,
}

/// Judges one tunnel.
#[derive(Clone, Debug)]
pub struct Judge {
    health: Health,
    /// Probes in a row that were not answered in time, and that were.
    misses: u32,
    answers: u32,
    /// When it became degraded lately, the last time last.
    relapses: VecDeque<Timestamp>,
}

impl Default for Judge {
    fn default() -> Self {
        Self { health: Health::Unknown, misses: 0, answers: 0, relapses: VecDeque::new() }
    }
}

impl Judge {
    /// How the tunnel is.
    pub const fn health(&self) -> Health {
        self.health
    }

    /// Whether one probe more or less decides: probes are missed, and not yet enough of them to say so.
    pub const fn is_in_doubt(&self, settings: &Settings) -> bool {
        self.misses > 0
            && self.misses < settings.failures
            && !matches!(self.health, Health::Degraded(Cause::NoAnswer))
    }

    /// Answers in a row that it takes to recover.
    pub fn needed(&self, settings: &Settings) -> u32 {
        let relapses = self.relapses.len().saturating_sub(1).min(DOUBLINGS);
        settings.successes.saturating_mul(1 << relapses)
    }

    /// A probe was not answered in time.
    pub fn missed(&mut self, now: Timestamp, settings: &Settings) -> Option<Change> {
        self.answers = 0;
        self.misses = self.misses.saturating_add(1);
        if self.misses < settings.failures {
            return None;
        }
        self.degrade(now, Cause::NoAnswer)
    }

    /// A probe was answered; `recent` are the last ones, that one among them.
    pub fn answered(&mut self, now: Timestamp, settings: &Settings, recent: Recent) -> Option<Change> {
        self.misses = 0;
        self.answers = self.answers.saturating_add(1);
        match self.health {
            Health::Unknown => {
                self.health = Health::Good;
                None
            }
            Health::Good => self.weigh(now, settings, recent),
            Health::Degraded(cause) => {
                let calm = match cause {
                    // What was lost meanwhile is no matter once answers come.
                    Cause::NoAnswer => true,
                    Cause::Loss | Cause::Delay => is_calm(settings, recent),
                };
                if self.answers < self.needed(settings) || !calm {
                    return None;
                }
                self.health = Health::Good;
                Some(Change::Recovered)
            }
        }
    }

    /// A probe is lost for good; `recent` are the last ones, that one among them.
    pub fn lost(&mut self, now: Timestamp, settings: &Settings, recent: Recent) -> Option<Change> {
        match self.health {
            Health::Unknown | Health::Degraded(_) => None,
            Health::Good => self.weigh(now, settings, recent),
        }
    }

    fn weigh(&mut self, now: Timestamp, settings: &Settings, recent: Recent) -> Option<Change> {
        if recent.probes < FEWEST {
            return None;
        }
        if recent.lost * 100 >= u32::from(settings.loss) * recent.probes {
            return self.degrade(now, Cause::Loss);
        }
        let slow = settings.delay.is_some_and(|limit| recent.mean.is_some_and(|mean| mean >= limit));
        slow.then(|| self.degrade(now, Cause::Delay)).flatten()
    }

    fn degrade(&mut self, now: Timestamp, cause: Cause) -> Option<Change> {
        let before = std::mem::replace(&mut self.health, Health::Degraded(cause));
        self.answers = 0;
        match before {
            Health::Degraded(same) if same == cause => None,
            Health::Degraded(_) => Some(Change::Turned(cause)),
            Health::Unknown | Health::Good => {
                self.relapses.retain(|at| now.since(*at) < RELAPSE);
                self.relapses.push_back(now);
                if self.relapses.len() > DOUBLINGS + 1 {
                    self.relapses.pop_front();
                }
                Some(Change::Degraded(cause))
            }
        }
    }
}

fn is_calm(settings: &Settings, recent: Recent) -> bool {
    let (part, of) = LOSS_CALM;
    let loss = recent.lost * 100 * of <= u32::from(settings.loss) * recent.probes * part;
    let (part, of) = DELAY_CALM;
    let delay = settings.delay.is_none_or(|limit| recent.mean.is_none_or(|mean| mean * of <= limit * part));
    recent.probes >= FEWEST && loss && delay
}
