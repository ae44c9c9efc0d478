//! `tunnels[].health_check`: what is probed through a tunnel, and when it counts as degraded.

use std::net::IpAddr;
use std::time::Duration;

use super::decode::{Item, Reader, Spanned};
use super::error::{Sink, Wrong, quoted, wrong};
use super::model::PlaneChoice;
use super::raw::{RawRule, RawTunnel};
use super::{fields, identity, units};
use crate::quality::{Method, Settings};

/// What is probed through a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// A host inside the remote networks that answers probes.
    pub target: IpAddr,
    /// What a probe is.
    pub probe: Method,
    /// The source of the probes inside the local networks; `None`: an own address there.
    pub source: Option<IpAddr>,
    /// When the tunnel is degraded.
    pub settings: Settings,
}

/// The same as it is written.
#[derive(Clone, Debug)]
pub(super) struct RawHealthCheck {
    pub target: Spanned<IpAddr>,
    pub probe: Method,
    pub source: Option<Spanned<IpAddr>>,
    pub settings: Settings,
}

impl RawHealthCheck {
    pub const fn resolved(&self) -> HealthCheck {
        let source = match &self.source {
            Some(source) => Some(source.value),
            None => None,
        };
        HealthCheck { target: self.target.value, probe: self.probe, source, settings: self.settings }
    }
}

/// The Echo service (RFC 862).
const ECHO_PORT: u16 = 7;
const SECOND: Duration = Duration::from_secs(1);

/// Reads the section; `None` where it has no target, which is noted then.
pub(super) fn read(item: &Item<'_>) -> Option<RawHealthCheck> {
    let r = item.map(&fields::HEALTH_CHECK)?;
    let address = |key| r.get(key).and_then(|i: Item<'_>| i.parse("an IP address", identity::unicast));
    let (target, source) = (address("target"), address("source"));
    let probe = probe(&r);
    let default = Settings::default();
    let interval = r.get("interval").and_then(|i| {
        i.parse("a duration from 1s to 5s", units::duration_within(SECOND, SECOND * 5)).map(|d| d.value)
    });
    let delay = r.get("delay").and_then(|i| {
        i.parse("a duration, as in 200ms, or off", |t| match t {
            "off" => Ok(None),
            _ => units::duration_within(SECOND / 1000, SECOND * 5)(t).map(Some),
        })
    });
    let number = |r: &Reader<'_>, key, max| {
        r.get(key).and_then(|i| i.integer(1, max)).and_then(|n| u32::try_from(n).ok())
    };
    let loss = r.get("loss").and_then(|i| i.parse("a part, as in 20%", percent));
    // What is wrong with any of it is told, whatever else is.
    let settings = Settings {
        interval: interval.unwrap_or(default.interval),
        loss: loss.map_or(default.loss, |l| l.value),
        delay: delay.map_or(default.delay, |d| d.value),
        failures: number(&r, "failures", 10).unwrap_or(default.failures),
        successes: number(&r, "successes", 100).unwrap_or(default.successes),
    };
    Some(RawHealthCheck { target: target?, probe, source, settings })
}

/// What a probe is.
fn probe(r: &Reader<'_>) -> Method {
    let word = r.get("probe").map(|i| i.word(fields::PROBES));
    let item = r.get("port");
    let port =
        item.as_ref().and_then(|i| i.integer(1, i64::from(u16::MAX))).and_then(|n| u16::try_from(n).ok());
    match (word, item) {
        (Some(Some(1)), _) => Method::Udp { port: port.unwrap_or(ECHO_PORT) },
        (None | Some(Some(_)), Some(item)) => {
            item.error(wrong("an ICMP probe has no port", "add probe: udp, or drop the key"));
            Method::Icmp
        }
        // An unknown word is noted.
        _ => Method::Icmp,
    }
}

fn percent(text: &str) -> Result<u8, Wrong> {
    let number = text.strip_suffix('%').and_then(|n| n.trim_end().parse::<u8>().ok());
    number
        .filter(|n| (1..=100).contains(n))
        .ok_or_else(|| wrong(format!("{} is not a part of all probes", quoted(text)), "write 1% to 100%"))
}

/// A probe must be a packet of the tunnel: from inside its local networks to inside the remote ones of the same rule, and
/// not let by.
pub(super) fn check(t: &RawTunnel, plane: PlaneChoice, sink: &Sink) {
    let Some(check) = &t.health_check else { return };
    let target = &check.target;
    if plane != PlaneChoice::Userspace && t.weight.is_some() && t.mark.is_some() {
        let fix = "give them networks of their own; dead peer detection moves the traffic all the same";
        let what =
            "of tunnels that share their networks and their mark none is probed with the kernel's data plane";
        sink.warning(&target.at, wrong(what, fix));
    }
    // What is wrong with the rules is noted elsewhere.
    if !t.rules.complete || !t.rules.good.iter().all(|rule| rule.remote.complete && rule.local.is_some()) {
        return;
    }
    let leads = |rule: &&RawRule| rule.remote.good.iter().any(|r| r.value.contains(target.value));
    let rules: Vec<&RawRule> = t.rules.good.iter().filter(leads).collect();
    if rules.is_empty() {
        let remotes = t.rules.good.iter().flat_map(|rule| &rule.remote.good);
        let what = format!("the probes' target {} is outside the tunnel's remote networks", target.value);
        let fix =
            format!("write the address of a host inside {}", some(remotes.map(|r| r.value.to_string())));
        sink.error(&target.at, wrong(what, fix));
        return;
    }
    if let Some(by) = t.bypass.networks.iter().find(|n| n.value.contains(target.value)) {
        let what = format!(
            "the probes' target {} is inside {} ({}), which does not go through the tunnel",
            target.value, by.value, by.at.path
        );
        sink.error(&target.at, wrong(what, "probe a host that is reached through the tunnel"));
    }
    let inside = |ip: IpAddr| rules.iter().any(|r| r.local.as_ref().is_some_and(|l| l.value.contains(ip)));
    if let Some(source) = check.source.as_ref().filter(|source| !inside(source.value)) {
        let what = format!(
            "the probes' source {} is outside the local networks from which {} is reached",
            source.value, target.value
        );
        let locals = rules.iter().filter_map(|rule| rule.local.as_ref());
        let fix = format!(
            "write an address inside {}, or drop the key for an own address there",
            some(locals.map(|l| l.value.to_string()))
        );
        sink.error(&source.at, wrong(what, fix));
    }
}

/// The first few.
fn some(blocks: impl Iterator<Item = String>) -> String {
    const SHOWN: usize = 4;
    let all: Vec<String> = blocks.collect();
    let shown = all.get(..SHOWN.min(all.len())).unwrap_or_default().join(", ");
    if all.len() > SHOWN { format!("{shown}, …") } else { shown }
}

/// A part of all probes as the file writes it.
pub fn show_percent(percent: u8) -> String {
    format!("{percent}%")
}
