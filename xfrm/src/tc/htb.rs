//! Attributes of the HTB qdisc and its classes (`net/sched/sch_htb.c`).

use crate::codec::{self, Writer};

const TCA_HTB_PARMS: u16 = 1;
const TCA_HTB_INIT: u16 = 2;
const TCA_HTB_RATE64: u16 = 6;
const TCA_HTB_CEIL64: u16 = 7;
const VERSION: u32 = 3;
/// With this link layer the kernel computes transmission times itself and needs no rate tables.
pub(super) const LINKLAYER_ETHERNET: u8 = 1;
/// Times are given in units of 64 ns (PSCHED_SHIFT).
const TICK_NS: u64 = 64;

/// Rate and bursts of a class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HtbRates {
    /// Bits per second that the class may always send.
    pub rate_bps: u64,
    /// Bits per second that it may send if its parent has some left.
    pub ceil_bps: u64,
    /// Octets that may go at once.
    pub burst: u32,
    /// Octets that go before the next class of the same level has its turn.
    pub quantum: u32,
}

impl HtbRates {
    /// A hard cap with a burst of 4 ms, and at least ten full frames: smaller ones waste rate where timers are late,
    /// larger ones show as jitter behind us.
    pub const fn cap(rate_bps: u64) -> Self {
        let octets_per_ms = rate_bps / 8 / 1000;
        Self {
            rate_bps,
            ceil_bps: rate_bps,
            burst: clamp(octets_per_ms * 4, 15_140, 4 << 20),
            quantum: clamp(octets_per_ms, 1_514, 60_000),
        }
    }

    pub(super) fn put(&self, w: &mut Writer) {
        let (rate, ceil) = (self.rate_bps / 8, self.ceil_bps / 8);
        let mut parms = Vec::with_capacity(44);
        for octets in [rate, ceil] {
            // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
            parms.extend_from_slice(&[0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
            parms.extend_from_slice(&u32::try_from(octets).unwrap_or(u32::MAX).to_ne_bytes());
        }
        let (level, prio) = (0u32, 0u32);
        for field in [ticks(self.burst, rate), ticks(self.burst, ceil), self.quantum, level, prio] {
            parms.extend_from_slice(&field.to_ne_bytes());
        }
        w.attr(TCA_HTB_PARMS, &parms);
        // Rates of 34 Gbit/s and more do not fit the structure.
        w.attr_u64(TCA_HTB_RATE64, rate);
        w.attr_u64(TCA_HTB_CEIL64, ceil);
    }

    pub(super) fn parse(options: &[u8]) -> Option<Self> {
        let parms = codec::find(options, TCA_HTB_PARMS)?;
        let wide = |kind| codec::find(options, kind).and_then(|v| codec::u64_at(v, 0));
        let rate = wide(TCA_HTB_RATE64).or_else(|| codec::u32_at(parms, 8).map(u64::from))?;
        let ceil = wide(TCA_HTB_CEIL64).or_else(|| codec::u32_at(parms, 20).map(u64::from))?;
        let burst =
            u128::from(codec::u32_at(parms, 24)?) * u128::from(TICK_NS) * u128::from(rate) / 1_000_000_000;
        Some(Self {
            rate_bps: rate.saturating_mul(8),
            ceil_bps: ceil.saturating_mul(8),
            burst: u32::try_from(burst).unwrap_or(u32::MAX),
            quantum: codec::u32_at(parms, 32)?,
        })
    }
}

/// `struct tc_htb_glob`: version, rate2quantum, default class, debug, direct packets. Default class 0 is the direct way.
pub(super) fn put_init(w: &mut Writer) {
    let rate2quantum = 10;
    let mut glob = Vec::with_capacity(20);
    for field in [VERSION, rate2quantum, 0, 0, 0] {
        glob.extend_from_slice(&field.to_ne_bytes());
    }
    w.attr(TCA_HTB_INIT, &glob);
}

/// The time that `octets` take at `rate` octets per second.
pub(super) fn ticks(octets: u32, rate: u64) -> u32 {
    let ns = u128::from(octets) * 1_000_000_000 / u128::from(rate.max(1));
    u32::try_from(ns.div_ceil(u128::from(TICK_NS))).unwrap_or(u32::MAX)
}

pub(super) const fn clamp(value: u64, low: u32, high: u32) -> u32 {
    if value < low as u64 {
        low
    } else if value > high as u64 {
        high
    } else {
        value as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_back_as_they_were_written() {
        for mbit in [1u64, 10, 50, 1_000, 50_000, 100_000] {
            let rates = HtbRates::cap(mbit * 1_000_000);
            let mut w = Writer::new();
            rates.put(&mut w);
            assert_eq!(codec::find(w.bytes(), TCA_HTB_PARMS).map(<[u8]>::len), Some(44));
            let back = HtbRates::parse(w.bytes()).unwrap();
            assert_eq!(
                (back.rate_bps, back.ceil_bps, back.quantum),
                (rates.rate_bps, rates.ceil_bps, rates.quantum)
            );
            // A tick of 64 ns is 800 octets at 100 Gbit/s.
            assert!(
                back.burst.abs_diff(rates.burst) <= 1 + u32::try_from(mbit / 125).unwrap(),
                "{back:?} {rates:?}"
            );
        }
    }

    #[test]
    fn bursts_are_milliseconds_not_seconds() {
        assert_eq!(HtbRates::cap(10_000_000).burst, 15_140);
        assert_eq!(HtbRates::cap(1_000_000_000).burst, 500_000);
    }
}
