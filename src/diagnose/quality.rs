//! What a tunnel's health check says of a tunnel that is up.

use super::cause::{Cause, Found};
use crate::observe::snapshot::QualityStatus;

/// The cause in the figures of a health check, if there is one.
pub(super) fn judge(q: &QualityStatus) -> Option<Found> {
    if let Some(why) = &q.problem {
        // Most say behind a semicolon what to do.
        let (why, fix) = why.split_once("; ").unwrap_or((
            why,
            "write health_check.source, an address of this host inside the tunnel's local networks",
        ));
        return Some(Found::new(
            Cause::NotProbed,
            format!("the health check of {} sends nothing: {why}", q.target),
            fix,
        ));
    }
    let at = q.port.map_or_else(String::new, |port| format!(", UDP port {port}"));
    match q.cause.as_deref()? {
        "no_answer" => {
            let service = match q.port {
                Some(port) => format!("an Echo service at UDP port {port}"),
                None => "its answers to pings".to_owned(),
            };
            Some(Found::new(
                Cause::TargetSilent,
                format!("{}{at} does not answer the health check", q.target),
                format!(
                    "check {} itself, {service} and the firewalls on both ways, or name another target",
                    q.target
                ),
            ))
        }
        _ => {
            let loss =
                q.loss_ratio.map_or_else(String::new, |part| format!("{:.0} % are lost", part * 100.0));
            let delay = q.delay_ms.map_or_else(String::new, |ms| format!("a round trip takes {ms:.0} ms"));
            let figures = [loss, delay].into_iter().filter(|f| !f.is_empty()).collect::<Vec<_>>().join(", ");
            Some(Found::new(
                Cause::LineDegraded,
                format!("of the last probes to {}{at} {figures}", q.target),
                "measure the line between the outer addresses (mtr), and whether a bandwidth level or a link is full; cygnet quality shows since when",
            ))
        }
    }
}
