//! What an SA has carried, and where it stops.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use cygnet_model::plane::SaCounters;
use cygnet_model::tunnel::VolumeLimits;

use crate::error::DropReason;

/// A limit that was just reached; each is reported once for each SA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Time for new keys.
    Soft,
    /// The SA carries nothing more.
    Hard,
}

/// Counts packets and octets against limits. Threads may share it; with several of them a hard limit is kept to within
/// one packet each.
pub(crate) struct Volume {
    packets: AtomicU64,
    bytes: AtomicU64,
    limits: VolumeLimits,
    soft_said: AtomicBool,
    hard_said: AtomicBool,
}

impl Volume {
    /// Goes on from what an SA had carried already.
    pub fn after(limits: VolumeLimits, carried: &SaCounters) -> Self {
        Self {
            packets: AtomicU64::new(carried.packets),
            bytes: AtomicU64::new(carried.bytes),
            limits,
            soft_said: AtomicBool::new(false),
            hard_said: AtomicBool::new(false),
        }
    }

    pub fn packets(&self) -> u64 {
        self.packets.load(Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Whether the SA may carry one more packet.
    pub fn check(&self) -> Result<(), DropReason> {
        let VolumeLimits { hard_bytes, hard_packets, .. } = self.limits;
        if reached(hard_bytes, self.bytes()) || reached(hard_packets, self.packets()) {
            return Err(DropReason::Limit);
        }
        Ok(())
    }

    /// Counts a packet.
    pub fn add(&self, bytes: usize) -> Option<Limit> {
        let bytes = self.bytes.fetch_add(bytes as u64, Relaxed) + bytes as u64;
        let packets = self.packets.fetch_add(1, Relaxed) + 1;
        let VolumeLimits { soft_bytes, hard_bytes, soft_packets, hard_packets } = self.limits;
        if reached(hard_bytes, bytes) || reached(hard_packets, packets) {
            return self.say(Limit::Hard);
        }
        if reached(soft_bytes, bytes) || reached(soft_packets, packets) {
            return self.say(Limit::Soft);
        }
        None
    }

    /// Reports a limit unless it was reported already.
    pub fn say(&self, limit: Limit) -> Option<Limit> {
        let said = match limit {
            Limit::Soft => &self.soft_said,
            Limit::Hard => &self.hard_said,
        };
        // The load keeps the cache line shared once the limit was said.
        (!said.load(Relaxed) && !said.swap(true, Relaxed)).then_some(limit)
    }
}

const fn reached(limit: u64, value: u64) -> bool {
    limit != 0 && value >= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(limits: VolumeLimits) -> Volume {
        Volume::after(limits, &SaCounters::default())
    }

    #[test]
    fn a_limit_counts_what_was_carried_before() {
        let limits = VolumeLimits { hard_bytes: 200, ..VolumeLimits::default() };
        let volume = Volume::after(limits, &SaCounters { bytes: 150, packets: 2, ..SaCounters::default() });
        assert_eq!(volume.add(50), Some(Limit::Hard));
        assert_eq!((volume.packets(), volume.check()), (3, Err(DropReason::Limit)));
    }

    #[test]
    fn each_limit_is_said_once_and_the_hard_one_stops() {
        let volume = fresh(VolumeLimits { soft_bytes: 200, hard_packets: 4, ..VolumeLimits::default() });
        let mut said = Vec::new();
        for _ in 0..4 {
            volume.check().unwrap();
            said.push(volume.add(100));
        }
        assert_eq!(said, [None, Some(Limit::Soft), None, Some(Limit::Hard)]);
        assert_eq!(volume.check(), Err(DropReason::Limit));
        assert_eq!((volume.packets(), volume.bytes()), (4, 400));
    }

    #[test]
    fn zero_means_no_limit() {
        let volume = fresh(VolumeLimits::default());
        assert_eq!(volume.add(usize::MAX / 2), None);
        volume.check().unwrap();
    }
}
