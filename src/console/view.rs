//! What a page shows, as JSON: a head with the gateways, and a line for each tunnel. Made once for all who look.

use serde::Serialize;
use serde_json::{Value, json};

use super::record::{Of, Point, Record};
use crate::observe::Published;
use crate::observe::snapshot::TunnelStatus;

/// Everything that a page shows at first.
#[derive(Default, Debug)]
pub struct View {
    /// What is not of a tunnel.
    pub head: String,
    /// A line for each tunnel, in the order of the configuration.
    pub rows: Vec<Row>,
}

/// A tunnel's line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The line as JSON.
    pub json: String,
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
        Self { head: head(p, record).to_string(), rows }
    }

    /// All of it.
    pub fn whole(&self) -> String {
        self.write(self.rows.iter())
    }

    /// What is another one than in `before`; `None` if nothing is. Where tunnels came, went or changed places, all of it.
    pub fn since(&self, before: &Self) -> Option<(Change, String)> {
        let same = self.rows.len() == before.rows.len()
            && self.rows.iter().zip(&before.rows).all(|(a, b)| a.name == b.name);
        if !same {
            return Some((Change::Whole, self.whole()));
        }
        let mut changed =
            self.rows.iter().zip(&before.rows).filter(|(a, b)| a != b).map(|(a, _)| a).peekable();
        if changed.peek().is_none() && self.head == before.head {
            return None;
        }
        Some((Change::Parts, self.write(changed)))
    }

    fn write<'a>(&self, rows: impl Iterator<Item = &'a Row>) -> String {
        let mut out = format!("{{\"head\":{},\"tunnels\":[", self.head);
        for (n, row) in rows.enumerate() {
            if n > 0 {
                out.push(',');
            }
            out.push_str(&row.json);
        }
        out.push_str("]}");
        out
    }
}

/// How much of a view is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Everything.
    Whole,
    /// The head and the lines that changed.
    Parts,
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
    Row { name: t.name.clone(), json: serde_json::to_string(&line).unwrap_or_default() }
}

fn head(p: &Published, record: &Record) -> Value {
    let s = &p.snapshot;
    let gateways = s.gateways.iter().map(|g| {
        json!({
            "name": g.name, "address": g.address, "bandwidth_bps": g.bandwidth_bps,
            "bandwidth_origin": g.bandwidth_origin, "bandwidth_in": g.bandwidth_in, "used": g.used, "limits": g.limits,
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
mod tests {
    use super::*;

    fn view(rows: &[(&str, &str)]) -> View {
        let rows = rows.iter().map(|(name, json)| Row { name: (*name).into(), json: (*json).into() });
        View { head: "{}".into(), rows: rows.collect() }
    }

    #[test]
    fn only_what_changed_is_sent() {
        let before = view(&[("a", "1"), ("b", "2")]);
        assert_eq!(view(&[("a", "1"), ("b", "2")]).since(&before), None);
        let parts = |json: &str| Some((Change::Parts, json.to_owned()));
        assert_eq!(view(&[("a", "1"), ("b", "3")]).since(&before), parts(r#"{"head":{},"tunnels":[3]}"#));
        let other_head = View { head: "7".into(), ..view(&[("a", "1"), ("b", "2")]) };
        assert_eq!(other_head.since(&before), parts(r#"{"head":7,"tunnels":[]}"#));
    }

    #[test]
    fn other_tunnels_or_another_order_are_sent_as_a_whole() {
        let before = view(&[("a", "1"), ("b", "2")]);
        for rows in [&[("a", "1")][..], &[("b", "2"), ("a", "1")], &[("a", "1"), ("b", "2"), ("c", "3")]] {
            assert_eq!(view(rows).since(&before).map(|(change, _)| change), Some(Change::Whole));
        }
    }
}
