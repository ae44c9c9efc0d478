//! How often something may happen, for what an authenticated peer or a stranger asks for.

use std::time::Duration;

use cygnet_model::Timestamp;

/// At most so many at once, and one in each interval in the long run (the generic cell rate algorithm, ITU-T I.371).
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Rate {
    /// When everything that was admitted would have come, had it kept to the interval.
    due: Timestamp,
}

impl Rate {
    /// Whether one more may happen now. What is refused does not count.
    pub fn admit(&mut self, now: Timestamp, interval: Duration, burst: u32) -> bool {
        let due = self.due.max(now);
        if due.since(now) > interval.saturating_mul(burst.saturating_sub(1)) {
            return false;
        }
        self.due = due + interval;
        true
    }
}

/// How often the authenticated peer of a tunnel may ask.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct PeerRates {
    /// CREATE_CHILD_SA for children.
    pub children: Rate,
    /// CREATE_CHILD_SA for a new IKE SA.
    pub rekeys: Rate,
    /// New IKE SAs by authentication.
    pub handshakes: Rate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_in_each_interval() {
        let mut rate = Rate::default();
        let start = Timestamp::from_nanos(1_000_000_000_000);
        let second = Duration::from_secs(1);
        let admitted = |rate: &mut Rate, at| (0..100).filter(|_| rate.admit(at, second, 8)).count();
        assert_eq!(admitted(&mut rate, start), 8);
        assert_eq!(admitted(&mut rate, start), 0);
        assert_eq!(admitted(&mut rate, start + second), 1);
        assert_eq!(admitted(&mut rate, start + second * 3), 2);
        assert_eq!(admitted(&mut rate, start + second * 1000), 8, "rest does not add up");
    }
}
