//! Time as a value: the driver reads the clocks once for each input and passes them in.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on a clock that goes on during suspend and is not set (CLOCK_BOOTTIME), in nanoseconds since its origin.
///
/// Unlike `std::time::Instant` it can be stored, sent and replayed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A point `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    /// Saturates at the end of time (584 years).
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    /// Saturates at the origin.
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t+{}.{:06}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1_000)
    }
}

/// Both clocks, read once per input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Drives every timer and lifetime.
    pub mono: Timestamp,
    /// Seconds since 1970 by the wall clock; for certificates, logs and `since` fields only.
    pub unix: u64,
}
