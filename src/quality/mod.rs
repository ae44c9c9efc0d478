//! How well a tunnel carries packets: probes through it, what became of them, and what follows from that.
//!
//! ```text
//!            on_tick(now) ─▶ a probe to send                 figures of the last minute ─▶ status, metrics
//!  Prober ◀─ on_answer(now, seq)   ──▶ Window ──▶ Judge ──▶ Change: degraded, recovered ─▶ events, weights
//!            on_pause()                └─▶ History: a day by the minute
//! ```
//!
//! Everything here is a value: no socket, no clock. The driver (`driver/quality.rs`) sends what is due and tells what came
//! back; how a probe looks on the wire stands in [`wire`].

pub mod health;
pub mod history;
pub mod prober;
pub mod window;
pub mod wire;

use std::time::Duration;

/// What a probe is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Method {
    /// An ICMP or ICMPv6 echo request.
    #[default]
    Icmp,
    /// A datagram to an Echo service (RFC 862).
    Udp {
        /// Where it listens.
        port: u16,
    },
}

impl Method {
    /// The word of the configuration and of the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Udp { .. } => "udp",
        }
    }

    /// The port that is probed.
    pub const fn port(self) -> Option<u16> {
        match self {
            Self::Icmp => None,
            Self::Udp { port } => Some(port),
        }
    }
}

/// When a tunnel counts as degraded, and when as recovered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Time between two probes.
    pub interval: Duration,
    /// Loss from which on the tunnel is degraded, in percent: 1 to 100.
    pub loss: u8,
    /// Mean round trip from which on it is degraded; `None`: delay does not count.
    pub delay: Option<Duration>,
    /// Probes without an answer, one after the other, after which it is degraded.
    pub failures: u32,
    /// Answers, one after the other, after which it is recovered.
    pub successes: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), loss: 20, delay: None, failures: 3, successes: 5 }
    }
}

/// What came of the probes of some time.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Figures {
    /// Probes whose fate is known.
    pub probes: u32,
    /// Those of them that were lost, on the way there or back.
    pub lost: u32,
    /// Those of them that did not get to the other end; `None` where that does not tell what it received.
    pub lost_there: Option<u32>,
    /// Round trips of the others; `None` without any.
    pub delay: Option<Delay>,
    /// Smoothed difference of successive round trips (RFC 3550 §6.4.1, of round trips instead of one way).
    pub jitter: Duration,
}

impl Figures {
    /// Lost probes as a part of all, `None` without any.
    pub fn loss_ratio(&self) -> Option<f64> {
        (self.probes > 0).then(|| f64::from(self.lost) / f64::from(self.probes))
    }
}

/// Round trips.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delay {
    /// The shortest.
    pub min: Duration,
    /// Their mean.
    pub mean: Duration,
    /// The longest.
    pub max: Duration,
}
