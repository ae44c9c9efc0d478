//! Bandwidth levels of tunnels and gateways as a data plane's threads keep them: a rate that is shared by all packets of one
//! direction. What is beyond is dropped; nothing waits here. (What a gateway sends is queued by traffic control instead where
//! the host allows it: [`crate::shaping`].)

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cygnet_model::tunnel::Direction;

use super::bucket::Bucket;
use crate::config::model::Counts;

/// Octets of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Of the packet inside the tunnel.
    pub payload: usize,
    /// Of the outer packet, with its Ethernet header.
    pub wire: usize,
}

/// Ethernet, IPv4 and UDP headers around what a datagram carries.
const AROUND_V4: usize = 14 + 20 + 8;
/// The same of IPv6.
const AROUND_V6: usize = 14 + 40 + 8;

impl Size {
    /// That of a packet in a UDP datagram of so many octets.
    pub const fn new(payload: usize, datagram: usize, is_v4: bool) -> Self {
        Self { payload, wire: datagram + if is_v4 { AROUND_V4 } else { AROUND_V6 } }
    }
}

/// A level in force, with what was used of it.
#[derive(Debug)]
pub struct Level {
    bps: u64,
    counts: Counts,
    bucket: Bucket,
    passed: AtomicU64,
    dropped: AtomicU64,
}

impl Level {
    /// A level of which nothing is used.
    pub fn new(bps: u64, counts: Counts) -> Self {
        let (passed, dropped) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { bps, counts, bucket: Bucket::default(), passed, dropped }
    }

    /// The same if nothing changes, else one that goes on from what was used and counted.
    pub fn follow(self: &Arc<Self>, bps: u64, counts: Counts) -> Arc<Self> {
        if (self.bps, self.counts) == (bps, counts) {
            return Arc::clone(self);
        }
        let before = if self.counts == counts { self.passed() } else { 0 };
        let (passed, dropped) = (AtomicU64::new(before), AtomicU64::new(self.dropped()));
        Arc::new(Self { bps, counts, bucket: self.bucket.go_on(), passed, dropped })
    }

    /// Octets that it let pass, as it counts them.
    pub fn passed(&self) -> u64 {
        self.passed.load(Relaxed)
    }

    /// Packets that it dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn admits(&self, size: Size, now_ns: u64) -> bool {
        let octets = match self.counts {
            Counts::Wire => size.wire,
            Counts::Payload => size.payload,
        };
        let admitted = self.bucket.take(self.bps, octets as u64, now_ns);
        if admitted {
            self.passed.fetch_add(octets as u64, Relaxed);
        } else {
            self.dropped.fetch_add(1, Relaxed);
        }
        admitted
    }
}

/// The levels that packets of a tunnel have to pass, in this order.
#[derive(Clone, Default, Debug)]
pub struct TunnelLevels {
    /// Of what is sent: the tunnel's, the gateway's.
    pub out: Vec<Arc<Level>>,
    /// Of what is received.
    pub inward: Vec<Arc<Level>>,
}

impl TunnelLevels {
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.out.is_empty() && self.inward.is_empty()
    }

    /// Whether a packet passes now. One that the gateway's level drops has used its tunnel's all the same: it would have left
    /// the host on a wider line.
    pub fn admit(&self, direction: Direction, size: Size, now_ns: u64) -> bool {
        let levels = match direction {
            Direction::Out => &self.out,
            Direction::In => &self.inward,
        };
        levels.iter().all(|level| level.admits(size, now_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: u64 = 1_000_000;
    /// A packet of a full Ethernet frame through AES-GCM in UDP.
    const FULL: Size = Size { payload: 1_400, wire: 1_500 };

    /// Bits of `count` octets per second that pass from the second second on, of `offered` for ten seconds.
    fn kept(levels: &TunnelLevels, offered: u64, octets: fn(Size) -> usize) -> u64 {
        let gap = FULL.wire as u64 * 8_000_000_000 / offered;
        let passed = |now: &u64| levels.admit(Direction::Out, FULL, *now) && *now >= 1_000_000_000;
        let count = (0..11_000_000_000u64).step_by(gap as usize).filter(passed).count();
        count as u64 * octets(FULL) as u64 * 8 / 10
    }

    fn of(bps: &[u64], counts: Counts) -> TunnelLevels {
        let out = bps.iter().map(|bps| Arc::new(Level::new(*bps, counts))).collect();
        TunnelLevels { out, inward: vec![] }
    }

    #[test]
    fn a_level_is_kept_to_a_hundredth_in_the_octets_that_it_counts() {
        for mbit in [5, 10, 20, 50, 100, 1_000] {
            let bps = mbit * MBIT;
            for (counts, octets) in
                [(Counts::Wire, (|s| s.wire) as fn(Size) -> usize), (Counts::Payload, |s| s.payload)]
            {
                let kept = kept(&of(&[bps], counts), 3 * bps, octets);
                assert!(kept.abs_diff(bps) < bps / 100, "{mbit} mbit, {counts:?}: {kept}");
            }
        }
    }

    #[test]
    fn the_narrower_of_two_levels_counts_and_each_counts_its_drops() {
        let levels = of(&[10 * MBIT, 4 * MBIT], Counts::Wire);
        let kept = kept(&levels, 20 * MBIT, |s| s.wire);
        assert!(kept.abs_diff(4 * MBIT) < MBIT / 25, "{kept}");
        assert!(levels.out.iter().all(|level| level.dropped() > 1_000));
        assert!(levels.admit(Direction::In, FULL, 0), "the other direction has none");
    }

    #[test]
    fn a_level_that_stays_is_the_same_and_a_new_rate_goes_on() {
        let level = Arc::new(Level::new(MBIT, Counts::Wire));
        assert!(Arc::ptr_eq(&level, &level.follow(MBIT, Counts::Wire)));
        while level.admits(FULL, 0) {}
        let faster = level.follow(2 * MBIT, Counts::Wire);
        assert_eq!((faster.dropped(), faster.passed()), (1, level.passed()));
        assert!(level.passed() > 0 && level.passed().is_multiple_of(FULL.wire as u64));
        assert!((0..200).filter(|_| faster.admits(FULL, 0)).count() < 30, "no new burst");
    }
}
