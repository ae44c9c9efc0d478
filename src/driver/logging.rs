//! Logs go to standard error, from where systemd takes them.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use cygnet_ike::DropReason;
use tracing_subscriber::EnvFilter;

/// Starts logging: info, debug with `-v`, trace with `-vv`; `CYGNET_LOG` overrides it (`tracing_subscriber` syntax).
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => "info",
        1 => "cygnet=debug,info",
        _ => "cygnet=trace,debug",
    };
    // netlink_proto prints whole messages; ours carry no keys over it, and nobody wants to read them anyway.
    let quiet = "netlink_proto=off";
    let filter = std::env::var("CYGNET_LOG").unwrap_or_else(|_| level.to_owned());
    let filter = EnvFilter::try_new(format!("{filter},{quiet}")).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // Under systemd the journal has its own clock.
    let started = if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    // A second start in one process keeps the first one's settings.
    let _ = started;
}

/// A limit for each reason of dropped datagrams, so that a flood of one kind does not hide another.
#[derive(Default)]
pub struct DropLines {
    limits: BTreeMap<&'static str, RateLimit>,
}

impl DropLines {
    /// Lines in a minute for each reason. The reasons are a closed set of less than twenty.
    const PER_MINUTE: u32 = 2;

    /// Whether a line about this reason may be printed, as [`RateLimit::admit`].
    pub fn admit(&mut self, reason: DropReason, unix: u64) -> Option<u64> {
        let limit = self.limits.entry(reason.name()).or_insert_with(|| RateLimit::new(Self::PER_MINUTE));
        limit.admit(unix)
    }
}

/// At most `per_minute` lines of a kind; the rest is counted.
pub struct RateLimit {
    per_minute: u32,
    minute: u64,
    used: u32,
    suppressed: u64,
}

impl RateLimit {
    /// A limit that starts full.
    pub const fn new(per_minute: u32) -> Self {
        Self { per_minute, minute: 0, used: 0, suppressed: 0 }
    }

    /// Whether a line may be printed at `unix` seconds; with it, how many were not since the last one.
    pub fn admit(&mut self, unix: u64) -> Option<u64> {
        if unix / 60 != self.minute {
            (self.minute, self.used) = (unix / 60, 0);
        }
        if self.used >= self.per_minute {
            self.suppressed += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t104_a_flood_makes_few_lines_and_a_count() {
        let mut limit = RateLimit::new(100);
        let printed = (0..1_000_000u32).filter(|_| limit.admit(60).is_some()).count();
        assert_eq!(printed, 100);
        assert_eq!(limit.admit(120), Some(999_900));
    }

    #[test]
    fn a_flood_of_one_reason_does_not_hide_another() {
        let mut lines = DropLines::default();
        let admitted = (0..1000).filter(|_| lines.admit(DropReason::Malformed, 60).is_some()).count();
        assert_eq!(admitted, 2);
        assert_eq!(lines.admit(DropReason::Integrity, 60), Some(0));
    }
}
