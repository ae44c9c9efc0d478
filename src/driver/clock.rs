//! The two clocks of the daemon, read once for each input.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cygnet_model::{Now, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME, which goes on during suspend and is not set, and the wall clock.
pub fn now() -> Now {
    let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has CLOCK_BOOTTIME since 2.6.39");
    let seconds = u64::try_from(boot.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(boot.tv_nsec()).unwrap_or(0);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Now { mono: Timestamp::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos)), unix }
}

/// How long this thread has been on a processor.
pub fn on_processor() -> Duration {
    let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("Linux has CLOCK_THREAD_CPUTIME_ID since 2.6.12");
    spent.into()
}

/// Corrections of the wall clock that are smaller leave what was noted as it was, in seconds.
const SLIGHT: u64 = 60;

/// What the wall clock, as it is set now, says of an earlier moment. A host without a clock of its own boots in the past
/// and is set right later; what began meanwhile has its age all the same.
pub fn unix_of(then: Now, now: Now) -> u64 {
    let by_age = now.unix.saturating_sub(now.mono.since(then.mono).as_secs());
    if by_age.abs_diff(then.unix) <= SLIGHT { then.unix } else { by_age }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(mono: u64, unix: u64) -> Now {
        Now { mono: Timestamp::from_nanos(mono * 1_000_000_000), unix }
    }

    #[test]
    fn what_is_ten_seconds_old_stays_so_when_the_wall_clock_is_set() {
        let then = at(100, 1_800_000_000);
        assert_eq!(unix_of(then, at(110, 1_800_000_010)), 1_800_000_000);
        assert_eq!(unix_of(then, at(110, 1_800_086_410)), 1_800_086_400, "a day ahead");
        assert_eq!(unix_of(then, at(110, 1_799_913_610)), 1_799_913_600, "a day back");
        assert_eq!(unix_of(then, at(110, 1_800_000_012)), 1_800_000_000, "a slight correction is none");
        assert_eq!(unix_of(then, at(110, 5)), 0, "before 1970");
    }
}
