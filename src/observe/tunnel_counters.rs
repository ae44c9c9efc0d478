//! What is counted of one tunnel: over all generations of its keys, and on from where an earlier life of the daemon was.

use std::collections::BTreeMap;
use std::time::Duration;

use cygnet_model::Timestamp;
use cygnet_model::plane::SaCounters;
use cygnet_model::tunnel::{Direction, SaId};

use super::few::Few;

/// What a tunnel carried.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// Octets of inner packets received.
    pub bytes_in: u64,
    /// Packets received.
    pub packets_in: u64,
    /// Octets of inner packets sent.
    pub bytes_out: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Dropped by the replay window.
    pub replay: u64,
    /// Dropped because the integrity check failed.
    pub integrity: u64,
}

impl Totals {
    fn add(&mut self, direction: Direction, c: &SaCounters) {
        let (bytes, packets) = match direction {
            Direction::In => (&mut self.bytes_in, &mut self.packets_in),
            Direction::Out => (&mut self.bytes_out, &mut self.packets_out),
        };
        *bytes = bytes.saturating_add(c.bytes);
        *packets = packets.saturating_add(c.packets);
        self.replay = self.replay.saturating_add(c.replay);
        self.integrity = self.integrity.saturating_add(c.integrity);
    }
}

/// What was rekeyed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RekeyKind {
    /// The IKE SA.
    Ike,
    /// A child.
    Child,
}

/// What the next life of the daemon needs to count on: what was counted by now, and what each SA had counted by then.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// What the tunnel had carried.
    pub totals: Totals,
    /// Of which its SAs had counted this.
    pub sas: BTreeMap<SaId, SaCounters>,
    /// Rekeys: of the IKE SA and of children, each failed and succeeded.
    pub rekeys: [[u64; 2]; 2],
    /// Failed attempts by the name of their reason.
    pub failures: BTreeMap<String, u64>,
    /// How long it was down until it last came up.
    pub downtime: Duration,
    /// Since when it is down.
    pub down_since: Option<Timestamp>,
}

/// How the last IKE requests of a tunnel fared. Requests are sent when there is something to say, and keepalives when
/// nothing has been heard for a while.
#[derive(Clone, Copy, Default, Debug)]
pub struct Path {
    /// A bit for each of the last transmissions, the youngest lowest: set if it had to be repeated.
    lost: u32,
    /// How many bits count.
    sent: u32,
    delay: Option<Duration>,
}

impl Path {
    /// Transmissions that count.
    pub const WINDOW: u32 = 32;

    fn on_sent(&mut self, lost: bool) {
        self.lost = self.lost << 1 | u32::from(lost);
        self.sent = (self.sent + 1).min(Self::WINDOW);
    }

    /// A request had to be sent again.
    pub fn on_retransmit(&mut self) {
        self.on_sent(true);
    }

    /// A request was answered, so long after it was last sent.
    pub fn on_answer(&mut self, took: Duration) {
        self.on_sent(false);
        // The smoothing of RFC 6298 §2.3: an eighth of each new one.
        self.delay = Some(self.delay.map_or(took, |delay| (delay * 7 + took) / 8));
    }

    /// How many of the last transmissions were lost, as a part of all, and the mean round trip; `None` before any answer.
    pub fn measured(&self) -> Option<(f64, Duration)> {
        let delay = self.delay?;
        Some((f64::from(self.lost.count_ones()) / f64::from(self.sent.max(1)), delay))
    }
}

/// One tunnel's counters.
#[derive(Clone, Default, Debug)]
pub struct TunnelCounters {
    /// Its gateway, a label.
    pub gateway: String,
    /// What SAs that are gone carried, and all of them in earlier lives of the daemon.
    retired: Totals,
    live: Few<SaId, SaCounters>,
    /// What of an SA's own count stands in `retired` already.
    before: Few<SaId, SaCounters>,
    /// An earlier life told what it had counted.
    resumed: bool,
    /// Attempts that failed, by reason; none of a reason that is not there.
    pub failures: BTreeMap<&'static str, u64>,
    rekeys: [[u64; 2]; 2],
    /// Time without traffic passing although it should.
    downtime: Duration,
    down_since: Option<Timestamp>,
    /// How the last IKE requests fared.
    pub path: Path,
}

impl TunnelCounters {
    /// What it carried so far.
    pub fn totals(&self) -> Totals {
        let mut totals = self.retired;
        self.live.iter().for_each(|(sa, c)| totals.add(sa.direction, c));
        totals
    }

    /// How many rekeys of a kind succeeded or failed.
    pub fn rekeys(&self, kind: RekeyKind, ok: bool) -> u64 {
        self.rekeys[usize::from(kind == RekeyKind::Child)][usize::from(ok)]
    }

    /// How long it was down until `now`.
    pub fn downtime(&self, now: Timestamp) -> Duration {
        self.downtime + self.down_since.map_or(Duration::ZERO, |t| now.since(t))
    }

    /// What the next life of the daemon needs to count on.
    pub fn tally(&self) -> Tally {
        let counted = |(sa, live): (&SaId, &SaCounters)| (*sa, sum(live, self.before.get(sa)));
        Tally {
            totals: self.totals(),
            sas: self.live.iter().map(counted).collect(),
            rekeys: self.rekeys,
            failures: self.failures.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect(),
            downtime: self.downtime,
            down_since: self.down_since,
        }
    }

    /// Counts on from what an earlier life had counted. Failures are taken of the reasons that are known.
    pub(super) fn resume(&mut self, tally: Tally, reasons: &[&'static str]) {
        self.retired = tally.totals;
        self.before = tally.sas.into();
        self.resumed = true;
        self.rekeys = tally.rekeys;
        (self.downtime, self.down_since) = (tally.downtime, tally.down_since);
        let known = |(reason, n): (String, u64)| Some((*reasons.iter().find(|r| **r == reason)?, n));
        self.failures = tally.failures.into_iter().filter_map(known).collect();
    }

    /// Goes on with an SA of an earlier life, which has counted so much by now.
    pub(super) fn go_on(&mut self, sa: SaId, now: &SaCounters) {
        let before = match self.before.get(&sa) {
            // Our own plane may have gone back to what was noted last.
            Some(noted) => least(noted, now),
            // The earlier life did not come to tell of it, hence counted nothing of it.
            None if self.resumed => SaCounters::default(),
            None => *now,
        };
        self.before.insert(sa, before);
    }

    /// Whether an SA's count is the one that is known.
    pub(super) fn knows(&self, sa: SaId, now: &SaCounters) -> bool {
        self.live.get(&sa) == Some(&since(now, self.before.get(&sa)))
    }

    /// Notes what an installed SA counts.
    pub(super) fn sample(&mut self, sa: SaId, now: &SaCounters) {
        let now = since(now, self.before.get(&sa));
        let seen = self.live.of(sa);
        let back = now.bytes < seen.bytes
            || now.packets < seen.packets
            || now.replay < seen.replay
            || now.integrity < seen.integrity;
        let before = std::mem::replace(seen, now);
        if back {
            self.retired.add(sa.direction, &before);
        }
    }

    /// Notes the last counters of an SA that is removed.
    pub(super) fn retire(&mut self, sa: SaId, last: &SaCounters) {
        let last = since(last, self.before.remove(&sa).as_ref());
        let seen = self.live.remove(&sa).unwrap_or_default();
        // A plane that has already lost the SA answers with zeros.
        let last = SaCounters {
            bytes: last.bytes.max(seen.bytes),
            packets: last.packets.max(seen.packets),
            replay: last.replay.max(seen.replay),
            integrity: last.integrity.max(seen.integrity),
            sequence: 0,
        };
        self.retired.add(sa.direction, &last);
    }

    /// Whether it is noted as up, or as none of our business.
    pub(super) const fn is_noted_up(&self) -> bool {
        self.down_since.is_none()
    }

    /// Notes whether it passes traffic, if it should.
    pub(super) fn set_up(&mut self, up: bool, now: Timestamp) {
        match (up, self.down_since) {
            (true, Some(since)) => {
                self.downtime += now.since(since);
                self.down_since = None;
            }
            (false, None) => self.down_since = Some(now),
            _ => {}
        }
    }

    /// Notes the end of a rekey.
    pub(super) fn rekeyed(&mut self, kind: RekeyKind, ok: bool) {
        self.rekeys[usize::from(kind == RekeyKind::Child)][usize::from(ok)] += 1;
    }
}

/// Takes each counter of one with that of the other, which may not be there.
fn each(a: &SaCounters, b: &SaCounters, f: fn(u64, u64) -> u64) -> SaCounters {
    SaCounters {
        bytes: f(a.bytes, b.bytes),
        packets: f(a.packets, b.packets),
        replay: f(a.replay, b.replay),
        integrity: f(a.integrity, b.integrity),
        sequence: a.sequence,
    }
}

/// What was counted since then.
fn since(now: &SaCounters, before: Option<&SaCounters>) -> SaCounters {
    before.map_or(*now, |before| each(now, before, u64::saturating_sub))
}

/// What was counted in all.
fn sum(now: &SaCounters, before: Option<&SaCounters>) -> SaCounters {
    before.map_or(*now, |before| each(now, before, u64::saturating_add))
}

fn least(a: &SaCounters, b: &SaCounters) -> SaCounters {
    each(a, b, u64::min)
}
