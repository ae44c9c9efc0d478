//! A rate in one atomic number: the generic cell rate algorithm (ITU-T I.371), which is a token bucket that remembers the
//! time at which it will be full again instead of a level and a time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How long a burst at the rate may be: a little longer than TCP stays silent after it lost the end of a flight (200 ms, RFC
/// 6298 as Linux has it), so that it can make up for it.
const BURST_NS: u64 = 250_000_000;
/// A burst of more octets is of no use to anybody.
const MOST_BURST: u64 = 8_000_000;
/// A burst of so many octets is always possible, or the lowest rates would pass nothing at all.
const LEAST_BURST: u64 = 6_000;

/// When the bucket will be full, in nanoseconds of the caller's clock.
#[derive(Default, Debug)]
pub struct Bucket(AtomicU64);

impl Bucket {
    /// Whether so many octets may pass now at a rate in bits per second. If so, they have.
    pub fn take(&self, bps: u64, bytes: u64, now_ns: u64) -> bool {
        let cost = time_of(bytes, bps);
        let burst = BURST_NS.min(time_of(MOST_BURST, bps)).max(time_of(LEAST_BURST, bps));
        let after = |full: u64| {
            // Used up at a much lower rate: at this one it would be no more than empty, and one packet passes.
            let stale = full > now_ns.saturating_add(burst.saturating_mul(2));
            let empty = now_ns.saturating_add(burst.saturating_sub(cost));
            let full = if stale { empty } else { full.max(now_ns) }.saturating_add(cost);
            (full - now_ns <= burst).then_some(full)
        };
        self.0.try_update(Relaxed, Relaxed, after).is_ok()
    }

    /// One that is as full as this one, for another rate.
    pub fn go_on(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Relaxed)))
    }
}

/// How long so many octets take at a rate, in nanoseconds.
const fn time_of(bytes: u64, bps: u64) -> u64 {
    let bits = bytes.saturating_mul(8_000_000_000);
    match bits.checked_div(bps) {
        Some(ns) => ns,
        None => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_rate_is_not_kept_waiting_for_what_a_lower_one_used_up() {
        let slow = Bucket::default();
        assert!(slow.take(1_000, 6_000, 0), "48 s at this rate");
        assert!(!slow.take(1_000, 6_000, 1_000_000_000));
        let fast = slow.go_on();
        let mut passed = 0;
        for ms in 1_000..2_000u64 {
            passed += u64::from(fast.take(100_000_000, 12_500, ms * 1_000_000));
        }
        assert!(
            (990..=1_000).contains(&passed),
            "a second at 100 Mbit/s in packets of 12500 octets: {passed}"
        );
    }

    /// Octets that pass in ten seconds of somebody who sends twice the rate in packets of `bytes`.
    fn passed(bps: u64, bytes: u64) -> u64 {
        let bucket = Bucket::default();
        let gap = time_of(bytes, 2 * bps).max(1);
        let mut sum = 0;
        let mut now = 77;
        while now < 10_000_000_000 {
            sum += if bucket.take(bps, bytes, now) { bytes } else { 0 };
            now += gap;
        }
        sum
    }

    #[test]
    fn a_rate_is_kept_from_slow_to_fast() {
        for bps in [64_000, 1_000_000, 10_000_000, 1_000_000_000] {
            for bytes in [64, 1_400] {
                let rate = passed(bps, bytes) * 8 / 10;
                let burst = (BURST_NS / 1_000_000 * bps / 1000).max(8 * LEAST_BURST) / 10;
                let off = rate.abs_diff(bps);
                assert!(off <= burst + bps / 50, "{bps} with {bytes}: {rate}");
            }
        }
    }

    #[test]
    fn the_slowest_rate_passes_a_packet_now_and_then() {
        let bucket = Bucket::default();
        let second = |s: u64| s * 1_000_000_000;
        assert!((0..4).all(|_| bucket.take(1_000, 1_500, second(0))));
        assert!(!bucket.take(1_000, 1_500, second(11)));
        assert!(bucket.take(1_000, 1_500, second(12)));
    }

    #[test]
    fn the_fastest_rate_has_a_burst_that_can_be_borne() {
        let bucket = Bucket::default();
        let at_once = (0..1_000_000u64).take_while(|_| bucket.take(100_000_000_000, 1_000, 1)).count();
        assert_eq!(at_once, 8_000);
    }

    #[test]
    fn waiting_saves_no_more_than_a_burst() {
        let bucket = Bucket::default();
        let hour = 3_600_000_000_000;
        let at_once = (0..100_000).filter(|_| bucket.take(8_000_000, 1_000, hour)).count();
        assert_eq!(at_once, 250, "250 ms at 1 MB/s");
        assert!(!bucket.go_on().take(80_000_000, 10_000_000, hour), "a new rate is no new burst");
    }
}
