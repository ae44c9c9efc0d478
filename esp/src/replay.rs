//! The anti-replay window (RFC 4303 §3.4.3) and the high half of extended sequence numbers (RFC 4303 appendix A).
//!
//! The window is a ring of 64 bit words; sequence number `s` owns bit `s % 64` of word `s / 64 % words`. One word more
//! than the window needs makes words that leave the window disjoint from those that enter it. To move it costs one
//! store for each word passed, never more than the ring.
//!
//! The order of use is the caller's duty: [`ReplayWindow::infer`], [`ReplayWindow::check`], verify the ICV, and only
//! then [`ReplayWindow::accept`], which moves the window.

use crate::error::SaError;

/// Receive side of an SA's sequence numbers. The first packet has number 1.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// Highest number accepted; 0 before the first.
    top: u64,
    /// Packets in the window; 0 when replay detection is off.
    size: u64,
    esn: bool,
    ring: Box<[u64]>,
}

/// The number was seen already or lies left of the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replayed;

/// Whether a packet is newer than everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Age {
    /// Above the highest number accepted so far.
    Newest,
    /// Within the window.
    Late,
}

impl ReplayWindow {
    /// A window of `size` packets: 0 (off), or 64 to 4096 in steps of 32.
    pub fn new(size: u32, esn: bool) -> Result<Self, SaError> {
        if size != 0 && (!(64..=4096).contains(&size) || !size.is_multiple_of(32)) {
            return Err(SaError::Window(size));
        }
        let words = if size == 0 { 0 } else { (size.div_ceil(64) + 1).next_power_of_two() };
        Ok(Self { top: 0, size: u64::from(size), esn, ring: vec![0; words as usize].into_boxed_slice() })
    }

    /// A window of `size` packets that has seen everything up to `top`.
    pub fn above(top: u64, size: u32, esn: bool) -> Result<Self, SaError> {
        let mut window = Self::new(size, esn)?;
        window.top = top;
        // Words that the window leaves are cleared when they come in again, so that all may be full.
        window.ring.fill(u64::MAX);
        if top == 0 {
            window.ring.fill(0);
        }
        // The word of `top` has bits of numbers that are still to come.
        let at = window.word(top);
        if let Some(word) = window.ring.get_mut(at) {
            *word &= bit(top) | (bit(top) - 1);
        }
        Ok(window)
    }

    /// The highest number accepted.
    pub const fn top(&self) -> u64 {
        self.top
    }

    /// The whole sequence number of a packet that shows `low`. Without ESN that is `low` itself. With ESN it is the
    /// number nearest to the window whose low half is `low` (RFC 4303 §A2.2). A gap of 2³² packets and more cannot be
    /// told; such packets then fail their integrity check.
    pub fn infer(&self, low: u32) -> u64 {
        if !self.esn {
            return u64::from(low);
        }
        // Without replay detection the nearest number is meant, which is a window of half the range.
        let size = if self.size == 0 { 1 << 31 } else { self.size };
        let bottom = i128::from(self.top) - i128::from(size) + 1;
        // The first number from `bottom` on that ends in `low`.
        let ahead = (i128::from(low) - bottom).rem_euclid(1 << 32);
        // The RFC's formula would put some packets before the first one. There are none; but a sender that took over
        // from another host may begin high.
        u64::try_from(bottom + ahead).unwrap_or(u64::from(low))
    }

    /// Whether a packet may still be accepted; to be asked before its integrity is verified, to save that work.
    pub fn check(&self, seq: u64) -> Result<(), Replayed> {
        if self.size == 0 || seq > self.top {
            return if seq == 0 { Err(Replayed) } else { Ok(()) };
        }
        if seq == 0 || self.top - seq >= self.size {
            return Err(Replayed);
        }
        match self.ring.get(self.word(seq)) {
            Some(word) if word & bit(seq) == 0 => Ok(()),
            _ => Err(Replayed),
        }
    }

    /// Notes a packet whose integrity was verified. Checks again, because another thread may have been faster.
    pub fn accept(&mut self, seq: u64) -> Result<Age, Replayed> {
        self.check(seq)?;
        let age = if seq > self.top { Age::Newest } else { Age::Late };
        if self.size == 0 {
            self.top = self.top.max(seq);
            return Ok(age);
        }
        if age == Age::Newest {
            self.advance(seq);
        }
        let at = self.word(seq);
        if let Some(word) = self.ring.get_mut(at) {
            *word |= bit(seq);
        }
        Ok(age)
    }

    /// Moves the upper edge to `seq` and clears the words that come in.
    fn advance(&mut self, seq: u64) {
        let passed = (seq / 64 - self.top / 64).min(self.ring.len() as u64);
        for i in 1..=passed {
            let at = self.word((self.top / 64).wrapping_add(i).wrapping_mul(64));
            if let Some(word) = self.ring.get_mut(at) {
                *word = 0;
            }
        }
        self.top = seq;
    }

    /// Place in the ring; its length is a power of two.
    const fn word(&self, seq: u64) -> usize {
        (seq / 64) as usize & self.ring.len().wrapping_sub(1)
    }
}

const fn bit(seq: u64) -> u64 {
    1 << (seq % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The window by its definition: a set of what was seen.
    struct Naive {
        top: u64,
        size: u64,
        seen: BTreeSet<u64>,
    }

    impl Naive {
        fn accept(&mut self, seq: u64) -> bool {
            if seq == 0 || (seq <= self.top && self.top - seq >= self.size) || !self.seen.insert(seq) {
                return false;
            }
            self.top = self.top.max(seq);
            let bottom = self.top.saturating_sub(self.size);
            self.seen = self.seen.split_off(&bottom);
            true
        }
    }

    /// xorshift: a seeded stream for the long runs.
    fn stream(mut x: u64) -> impl FnMut() -> u64 {
        move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        }
    }

    #[test]
    fn a_million_numbers_agree_with_a_naive_set_for_each_size() {
        for size in [64u32, 96, 1024, 4096] {
            let mut window = ReplayWindow::new(size, true).unwrap();
            let mut naive = Naive { top: 0, size: u64::from(size), seen: BTreeSet::new() };
            let mut random = stream(0x9E37_79B9_7F4A_7C15 ^ u64::from(size));
            for _ in 0..1_000_000 {
                let r = random();
                let near = u64::from(size) * 2;
                let seq = match r % 100 {
                    0 => naive.top + 1 + (r >> 32) % (near * 40),
                    1..=40 => naive.top + 1 + (r >> 32) % 3,
                    _ => (naive.top + 4).saturating_sub((r >> 32) % near),
                };
                assert_eq!(window.check(seq).is_ok(), window.clone_accepts(seq), "{seq}");
                assert_eq!(window.accept(seq).is_ok(), naive.accept(seq), "{seq} under {}", naive.top);
                assert_eq!(window.top(), naive.top);
            }
        }
    }

    impl ReplayWindow {
        /// What `accept` would say, without its effect; the full copy is made only now and then, it is slow.
        fn clone_accepts(&self, seq: u64) -> bool {
            if seq.is_multiple_of(64) { self.clone().accept(seq).is_ok() } else { self.check(seq).is_ok() }
        }
    }

    #[test]
    fn check_alone_never_moves_the_window() {
        let mut window = ReplayWindow::new(64, false).unwrap();
        window.accept(10).unwrap();
        window.check(1_000_000).unwrap();
        assert_eq!(window.top(), 10);
        assert_eq!(window.accept(9), Ok(Age::Late));
        assert_eq!(window.accept(9), Err(Replayed));
        assert_eq!(window.accept(11), Ok(Age::Newest));
    }

    #[test]
    fn window_of_size_n_takes_exactly_n_numbers() {
        let mut window = ReplayWindow::new(64, false).unwrap();
        window.accept(100).unwrap();
        assert_eq!(window.check(36), Err(Replayed));
        assert_eq!(window.check(37), Ok(()));
        assert_eq!(window.check(0), Err(Replayed));
    }

    proptest! {
        #[test]
        fn a_window_above_a_number_takes_nothing_up_to_it_and_everything_beyond_once(
            top in 0u64..1 << 40, words in 2u32..=128, steps in proptest::collection::vec(0u64..9000, 1..60),
        ) {
            let mut window = ReplayWindow::above(top, words * 32, true).unwrap();
            prop_assert_eq!(window.top(), top);
            for back in 0..5000.min(top) {
                prop_assert_eq!(window.check(top - back), Err(Replayed));
            }
            let size = u64::from(words * 32);
            let mut naive = Naive { top, size, seen: (top.saturating_sub(size)..=top).collect() };
            for step in steps {
                let seq = (naive.top + 2000).saturating_sub(step);
                prop_assert_eq!(window.accept(seq).is_ok(), naive.accept(seq), "{} under {}", seq, naive.top);
            }
        }
    }

    #[test]
    fn odd_sizes_are_refused() {
        for size in [1, 32, 63, 65, 4097, 4128, u32::MAX] {
            assert!(ReplayWindow::new(size, false).is_err(), "{size}");
        }
    }

    #[test]
    fn switched_off_it_takes_everything_but_zero() {
        let mut window = ReplayWindow::new(0, false).unwrap();
        assert_eq!(window.accept(7), Ok(Age::Newest));
        assert_eq!(window.accept(7), Ok(Age::Late));
        assert_eq!(window.accept(0), Err(Replayed));
    }

    #[test]
    fn esn_may_begin_anywhere_in_the_first_half() {
        let window = ReplayWindow::new(64, true).unwrap();
        assert_eq!(window.infer(1), 1);
        assert_eq!(window.infer(u32::MAX), u64::from(u32::MAX));
    }

    proptest! {
        /// Any number less than 2^32 above the window's lower edge is recognised by its low half.
        #[test]
        fn esn_is_inferred_up_to_a_gap_of_2_32(top in 0u64..1 << 48, ahead in 0u64..(1 << 32) - 64, back in 0u64..64) {
            let mut window = ReplayWindow::new(64, true).unwrap();
            window.top = top;
            prop_assert_eq!(window.infer((top + ahead) as u32), top + ahead);
            if back <= top {
                prop_assert_eq!(window.infer((top - back) as u32), top - back);
            }
        }
    }
}
