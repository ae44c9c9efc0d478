//! Which seeds a test tries, and which of them fail.

use std::ops::Range;

/// So many seeds. `CYGNET_SIM_SEEDS=n` overrides it, `CYGNET_SIM_FIRST=n` starts elsewhere.
pub fn seeds(default: u64) -> Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let first = number("CYGNET_SIM_FIRST").unwrap_or(0);
    first..first + number("CYGNET_SIM_SEEDS").unwrap_or(default)
}

/// The seeds under which a run panics. Two threads share them.
pub fn failures(
    range: Range<u64>,
    run: impl Fn(u64) + Copy + Send + Sync + std::panic::RefUnwindSafe,
) -> Vec<u64> {
    let half = range.start + (range.end - range.start) / 2;
    let of = |range: Range<u64>| -> Vec<u64> {
        range.filter(|seed| std::panic::catch_unwind(|| run(*seed)).is_err()).collect()
    };
    std::thread::scope(|threads| {
        let other = threads.spawn(|| of(half..range.end));
        let mut failed = of(range.start..half);
        failed.extend(other.join().expect("panics are caught above"));
        failed
    })
}
