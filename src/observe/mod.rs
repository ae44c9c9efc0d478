//! What the daemon shows of itself: one status type, counters that never go back, events, and the exporter.
//!
//! The driver owns [`counters::Counters`] and [`history::History`] and publishes a [`Published`] value now and then;
//! everybody else reads that value, so that no reader can hold up the driver.

pub mod accounts;
pub mod catalogue;
pub mod causes;
pub mod counters;
pub mod events;
pub mod explain;
mod exposition;
mod few;
pub mod handed;
pub mod history;
pub mod http;
pub mod passage;
pub mod prometheus;
pub mod qos;
pub mod snapshot;
pub mod strangers;
pub mod top;
pub mod tunnel_counters;

use std::net::IpAddr;
use std::sync::Arc;

use counters::Counters;
use snapshot::Snapshot;
use tokio::sync::watch;

/// What readers see: a snapshot and the counters of the same moment.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Objects and their states.
    pub snapshot: Snapshot,
    /// Everything that only grows.
    pub counters: Counters,
    /// Inner addresses.
    pub traffic: Arc<TrafficPage>,
}

/// The inner addresses that carry the most, and the limits of some: as many as a monitoring system can bear.
#[derive(Clone, Debug, Default)]
pub struct TrafficPage {
    /// Octets of both directions, by gateway and address.
    pub bytes: Vec<(Arc<str>, IpAddr, u64)>,
    /// Limits in bits per second; 0: blocked.
    pub limits: Vec<(Arc<str>, IpAddr, u64)>,
}

/// The driver's end: `send` replaces what readers see.
pub type Publisher = watch::Sender<Arc<Published>>;
/// A reader's end.
pub type Subscriber = watch::Receiver<Arc<Published>>;

/// Makes both ends.
pub fn channel() -> (Publisher, Subscriber) {
    watch::channel(Arc::new(Published::default()))
}

/// Seconds since 1970 as RFC 3339 in UTC.
pub fn rfc3339(unix: u64) -> String {
    let (days, second) = (unix / 86_400, unix % 86_400);
    // Civil date from a day count, after Howard Hinnant's `civil_from_days`; eras of 400 years begin on 1 March.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * m + 2) / 5 + 1;
    let month = if m < 10 { m + 3 } else { m - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (h, min, s) = (second / 3600, second % 3600 / 60, second % 60);
    // Digit by digit: `format!` takes ten times as long, and every event has a time.
    let mut text = String::with_capacity("2026-12-31T23:59:59Z".len());
    for (number, least, after) in
        [(year, 4, '-'), (month, 2, '-'), (day, 2, 'T'), (h, 2, ':'), (min, 2, ':'), (s, 2, 'Z')]
    {
        let digits = number.checked_ilog10().map_or(1, |places| places + 1).max(least);
        let digit = |place| char::from_digit((number / 10u64.pow(place) % 10) as u32, 10);
        text.extend((0..digits).rev().filter_map(digit).chain([after]));
    }
    text
}

/// Text made fit for one line of a log or terminal: control and reordering characters are escaped, the length is cut.
pub fn one_line(text: &str) -> String {
    const MAX: usize = 500;
    // Most texts are ours, and fit as they are.
    if text.len() <= MAX && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return text.to_owned();
    }
    let mut out = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == MAX {
            out.push('…');
            break;
        }
        if c == '"' || c == '\'' || c == '\\' {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (1_767_225_600, "2026-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_800, "10000-01-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(unix), text);
        }
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(one_line("a\nb\u{1b}[31m\u{202e}\"x\""), "a\\nb\\u{1b}[31m\\u{202e}\"x\"");
        assert_eq!(one_line(&"x".repeat(10_000)).chars().count(), 501);
    }
}
