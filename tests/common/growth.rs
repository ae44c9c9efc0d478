//! How work grows with its size. A thread's own processor time is compared with itself, so that neither another machine nor a
//! busy one changes the verdict.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The processor time that this thread takes for some work.
fn took(work: impl FnOnce()) -> Duration {
    let clock = ClockId::CLOCK_THREAD_CPUTIME_ID;
    let now = || clock_gettime(clock).map_or_else(|e| panic!("{e}"), Duration::from);
    let began = now();
    work();
    now() - began
}

/// Eight times the size takes about eight times the work. Work that grows with the square would take 64 times as much, each
/// time that it is tried; others on the same core make some tries longer.
///
/// # Panics
/// If it takes more than 24 times as much at each of ten tries.
pub fn assert_linear<T>(size: usize, prepare: impl Fn(usize) -> T, work: impl Fn(&T)) {
    let (small, large) = (prepare(size), prepare(8 * size));
    let mut tries = Vec::new();
    for _ in 0..10 {
        let (short, long) = (took(|| work(&small)), took(|| work(&large)));
        if long < 24 * short {
            return;
        }
        tries.push((short, long));
    }
    panic!("{size} and {}: {tries:?}", 8 * size);
}
