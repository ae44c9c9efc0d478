//! The two clocks of the daemon, read once for each input.

use std::time::{SystemTime, UNIX_EPOCH};

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
