//! What the last negotiation of a tunnel that is not up says, or the last attempt to renew one that is.

use super::cause::{Cause, Found};
use crate::observe::explain::{Explanation, Negotiation, Point};

/// The causes in a tunnel's last negotiation. `up`: it failed before, if it did. `begins`: we do. What nobody has proven says
/// nothing here.
pub(super) fn judge(e: &Explanation, up: bool, begins: bool) -> Vec<Found> {
    let claimed = e.negotiations.iter().filter(|n| n.is_claim()).map(|n| n.ago_s).min();
    // Whoever leaves the beginning to the peer tries to renew what there is when the configuration changes, and no more.
    let renewal = |n: &Negotiation| !n.authenticated || n.exchange.starts_with("rekey");
    let stale = |n: &Negotiation| !begins && renewal(n) && claimed.is_some_and(|ago| ago <= n.ago_s);
    let counting = e.negotiations.iter().filter(|n| !n.is_claim() && !stale(n));
    // What came before the last success has been overcome.
    let fresh = counting.take_while(|n| n.outcome != "agreed");
    // Of a tunnel that is up and whole what was refused once matters no more, but for new keys.
    let counts = |n: &&Negotiation| !up || (n.authenticated && n.exchange.starts_with("rekey"));
    let refused = fresh.filter(|n| n.outcome == "refused").filter(counts);
    let mut all: Vec<Found> = refused.take(1).flat_map(causes).collect();
    let ahead =
        |n: &Negotiation| n.topics.iter().find(|p| p.result == "ahead").map(|p| found(Cause::Pfs, n, p));
    all.extend(e.negotiations.iter().find_map(ahead).filter(|_| up));
    all
}

/// The causes in what somebody said last who came from the peer's address and proved nothing: all that there is, where the
/// peer begins and is refused.
pub(super) fn claims(e: &Explanation) -> Vec<Found> {
    let agreed = e.negotiations.iter().filter(|n| n.outcome == "agreed").map(|n| n.ago_s).min();
    let newer = |n: &&Negotiation| agreed.is_none_or(|ago| n.ago_s <= ago);
    let refused = e.negotiations.iter().filter(|n| n.is_claim() && n.outcome == "refused").filter(newer);
    refused.take(1).flat_map(causes).collect()
}

fn causes(n: &Negotiation) -> Vec<Found> {
    let refused: Vec<&Point> = n.topics.iter().filter(|p| p.result == "refused").collect();
    let has = |topic: &str| refused.iter().find(|p| p.topic == topic).copied();
    // The peer keeps to itself which of the three it was (RFC 7296 §2.21.2).
    if let (Some(point), Some(_), Some(_)) =
        (has("our-identity"), has("peer-identity"), has("authentication"))
    {
        return vec![found(Cause::RefusedByPeer, n, point)];
    }
    let only_group = |p: &Point| {
        p.why.as_deref().is_some_and(|why| why.starts_with("key exchange group:") && !why.contains(';'))
    };
    let mut out: Vec<Found> = Vec::new();
    for point in &refused {
        let cause = match point.topic.as_str() {
            "ike-proposal" if only_group(point) => continue,
            "ike-proposal" => Cause::IkeProposal,
            // It is a part of the proposal.
            "key-exchange" if has("ike-proposal").is_some_and(|p| !only_group(p)) => continue,
            "key-exchange" => Cause::KeyExchange,
            "our-identity" => Cause::OwnIdentity,
            "peer-identity" => Cause::PeerIdentity,
            "authentication" => Cause::PresharedKey,
            "esp-proposal" => Cause::EspProposal,
            "child-key-exchange" if has("esp-proposal").is_some() => continue,
            "child-key-exchange" => Cause::Pfs,
            _ => Cause::Networks,
        };
        if out.iter().all(|f| f.cause != cause) {
            out.push(found(cause, n, point));
        }
    }
    if out.is_empty() {
        let reason = n.reason.as_deref().unwrap_or_default();
        let detail = n.detail.clone().unwrap_or_else(|| reason.to_owned());
        out.push(match reason {
            // Someone took it down there, or here; here it is told as that.
            "held" => return out,
            "data_plane" => Found::new(Cause::PlaneRefused, detail, "run cygnet doctor"),
            _ => Found::new(Cause::PeerError, detail, "look into the peer's log at this time"),
        });
    }
    out
}

fn found(cause: Cause, n: &Negotiation, p: &Point) -> Found {
    let theirs = p.theirs.as_deref().map_or_else(String::new, |t| format!(", the peer has {t}"));
    let why = p.why.as_deref().unwrap_or_default();
    let unproven = if n.authenticated { "" } else { " (not authenticated)" };
    let detail = format!("{why}: we have {}{theirs}{unproven}", p.ours);
    let fix = p.change.as_ref().map_or_else(
        || "compare the configurations of both ends".to_owned(),
        |c| format!("{} {}: {}", c.place, c.key, c.how),
    );
    Found::new(cause, detail, fix)
}
