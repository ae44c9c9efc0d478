//! What a page shows, as JSON: a head with the gateways, and a line for each tunnel. A view is made once for all who look, and so
//! are the messages of [the stream](super::stream) that carry it: who looks shares their octets.

use std::sync::{Mutex, OnceLock, PoisonError};

use hyper::body::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::record::{Of, Point, Record};
use crate::observe::Published;
use crate::observe::snapshot::TunnelStatus;

/// Messages of changes that a view keeps for others who need the same. Most who look have the view before it, or one of all lines
/// ago.
const KEPT: usize = 4;

/// Everything that a page shows at first.
#[derive(Default, Debug)]
pub struct View {
    /// How many came before it.
    number: u64,
    /// The first view since which the same tunnels were in the same places.
    placed: u64,
    /// What is not of a tunnel.
    head: String,
    /// The first view with this head.
    head_since: u64,
    /// A line for each tunnel, in the order of the configuration.
    rows: Vec<Row>,
    /// The message with all of it.
    all: OnceLock<Bytes>,
    /// Messages with so many lines.
    changes: Mutex<Vec<(usize, Bytes)>>,
}

/// A tunnel's line.
#[derive(Debug)]
struct Row {
    name: String,
    json: String,
    /// The first view with this line.
    since: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    gateway: &'a str,
    peer: &'a str,
    state: &'a str,
    since: &'a str,
    wanted: bool,
    pairs: u64,
    covered: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unanswered_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<&'a str>,
    /// Null until there are two samples.
    rate: Option<Point>,
}

impl View {
    /// Of what is published, with the rates that are remembered.
    pub fn of(p: &Published, record: &Record) -> Self {
        let rows = p.snapshot.tunnels.iter().map(|t| row(t, record)).collect();
        Self { head: head(p, record).to_string(), rows, ..Self::default() }
    }

    /// As the one that follows another.
    pub fn after(mut self, before: &Self) -> Self {
        self.number = before.number + 1;
        let placed = self.rows.len() == before.rows.len()
            && self.rows.iter().zip(&before.rows).all(|(a, b)| a.name == b.name);
        self.placed = if placed { before.placed } else { self.number };
        self.head_since = if self.head == before.head { before.head_since } else { self.number };
        for (row, was) in self.rows.iter_mut().zip(&before.rows) {
            row.since = if row.json == was.json { was.since } else { self.number };
        }
        self
    }

    /// How many came before it.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The message with all of it.
    pub fn whole(&self) -> Bytes {
        self.all.get_or_init(|| self.message("all", || self.rows.iter())).clone()
    }

    /// The message for somebody who has an earlier view, by its number: the head and the lines that changed since then, or all of it
    /// where tunnels came, went or changed places. `None` if nothing did.
    pub fn since(&self, shown: u64) -> Option<Bytes> {
        if shown < self.placed {
            return Some(self.whole());
        }
        let changed = || self.rows.iter().filter(|row| row.since > shown);
        let count = changed().count();
        if count == 0 && self.head_since <= shown {
            return None;
        }
        // What changed since a view has changed since all earlier ones: as many lines are the same lines.
        let mut made = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, message)) = made.iter().find(|(n, _)| *n == count) {
            return Some(message.clone());
        }
        let message = self.message("change", changed);
        if made.len() < KEPT {
            made.push((count, message.clone()));
        }
        Some(message)
    }

    /// JSON has no line breaks of its own, so it is one line of data.
    fn message<'a, R: Iterator<Item = &'a Row>>(&self, name: &str, rows: impl Fn() -> R) -> Bytes {
        let room = self.head.len() + rows().map(|row| row.json.len() + 1).sum::<usize>() + 64;
        let mut out = String::with_capacity(room);
        out.extend(["event: ", name, "\ndata: {\"head\":", &self.head, ",\"tunnels\":["]);
        for (n, row) in rows().enumerate() {
            if n > 0 {
                out.push(',');
            }
            out.push_str(&row.json);
        }
        out.push_str("]}\n\n");
        Bytes::from(out)
    }
}

fn row(t: &TunnelStatus, record: &Record) -> Row {
    let line = Line {
        name: &t.name,
        gateway: &t.gateway,
        peer: &t.customer_gateway,
        state: t.state.name(),
        since: &t.since,
        wanted: t.wanted,
        pairs: t.coverage.pairs,
        covered: t.coverage.covered,
        error: t.last_error.as_deref(),
        unanswered_s: t.unanswered_s,
        health: t.quality.as_ref().map(|q| q.health.as_str()),
        rate: record.rate(Of::Tunnel(&t.name)),
    };
    // No map with keys that are not text, so nothing can fail.
    Row { name: t.name.clone(), json: serde_json::to_string(&line).unwrap_or_default(), since: 0 }
}

fn head(p: &Published, record: &Record) -> Value {
    let s = &p.snapshot;
    let gateways = s.gateways.iter().map(|g| {
        json!({
            "name": g.name, "address": g.address, "bandwidth_bps": g.bandwidth_bps,
            "bandwidth_origin": g.bandwidth_origin, "bandwidth_used_bps": g.bandwidth_used_bps,
            "bandwidth_in": g.bandwidth_in, "bandwidth_in_used_bps": g.bandwidth_in_used_bps, "used": g.used, "limits": g.limits,
            "rate": record.rate(Of::Gateway(&g.name)),
        })
    });
    json!({
        "version": s.daemon_version, "data_plane": s.data_plane, "data_plane_reason": s.data_plane_reason,
        "started": s.started, "config_ok": s.config_ok, "half_open": s.half_open, "flood": s.flood,
        "plane_drops": s.plane_drops, "obstacles": s.obstacles, "wall": s.wall, "quota": s.quota,
        "gateways": gateways.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A view with a head and lines.
    pub fn view(head: &str, rows: &[(&str, &str)]) -> View {
        let row = |(name, json): &(&str, &str)| Row { name: (*name).into(), json: (*json).into(), since: 0 };
        View { head: head.into(), rows: rows.iter().map(row).collect(), ..View::default() }
    }

    fn change(json: &str) -> Option<Bytes> {
        Some(Bytes::from(format!("event: change\ndata: {json}\n\n")))
    }

    #[test]
    fn only_what_changed_is_sent() {
        let before = view("{}", &[("a", "1"), ("b", "2")]);
        let after = |view: View| view.after(&before).since(before.number());
        assert_eq!(after(view("{}", &[("a", "1"), ("b", "2")])), None);
        assert_eq!(after(view("{}", &[("a", "1"), ("b", "3")])), change(r#"{"head":{},"tunnels":[3]}"#));
        assert_eq!(after(view("7", &[("a", "1"), ("b", "2")])), change(r#"{"head":7,"tunnels":[]}"#));
    }

    #[test]
    fn whoever_missed_views_gets_what_changed_in_any_of_them() {
        let first = view("{}", &[("a", "1"), ("b", "2"), ("c", "3")]);
        let second = view("{}", &[("a", "4"), ("b", "2"), ("c", "3")]).after(&first);
        let third = view("{}", &[("a", "4"), ("b", "5"), ("c", "3")]).after(&second);
        assert_eq!(third.since(first.number()), change(r#"{"head":{},"tunnels":[4,5]}"#));
        assert_eq!(third.since(second.number()), change(r#"{"head":{},"tunnels":[5]}"#));
        assert_eq!(third.since(third.number()), None);
    }

    #[test]
    fn other_tunnels_or_another_order_are_sent_as_a_whole() {
        let before = view("{}", &[("a", "1"), ("b", "2")]);
        for rows in [&[("a", "1")][..], &[("b", "2"), ("a", "1")], &[("a", "1"), ("b", "2"), ("c", "3")]] {
            let other = view("{}", rows).after(&before);
            assert_eq!(other.since(before.number()), Some(other.whole()));
            // Also for somebody who comes back to the same tunnels after others.
            let back = view("{}", &[("a", "1"), ("b", "2")]).after(&other);
            assert_eq!(back.since(before.number()), Some(back.whole()));
            assert_eq!(back.since(back.number()), None);
        }
    }

    #[test]
    fn all_who_look_share_the_octets_of_a_message() {
        let first = view("{}", &[("a", "1"), ("b", "2")]);
        let second = view("{}", &[("a", "3"), ("b", "2")]).after(&first);
        let third = view("{}", &[("a", "4"), ("b", "2")]).after(&second);
        assert_eq!(third.whole().as_ptr(), third.whole().as_ptr());
        let of = |shown: &View| third.since(shown.number()).unwrap();
        assert_eq!(of(&second).as_ptr(), of(&second).as_ptr());
        assert_eq!(of(&first).as_ptr(), of(&second).as_ptr(), "the same lines since an earlier view");
    }
}
