//! What happened goes to the log, the history, the counters and whoever listens.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use cygnet_ike::coverage::{MissingPair, networks};
use cygnet_ike::error::Trouble;
use cygnet_ike::io::{Ending, Event as IkeEvent, RekeyKind};
use cygnet_ike::view::TunnelView;
use cygnet_ike::{DropReason, FailureReason};
use cygnet_model::TunnelId;

use super::{Daemon, clock};
use crate::config::model::PeerAddress;
use crate::observe::counters;
use crate::observe::events::{Event, Kind};

/// What a stranger was told who has to bring a cookie back.
const COOKIE_DEMANDED: &str = "cookie_demanded";

/// Why a stranger's negotiation counts as dropped.
pub(super) const REFUSED: &str = "refused";

/// What a line about a tunnel is about, for the limit on such lines: a peer can cause each of them as often as it likes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Subject {
    /// A kind of event.
    Kind(&'static str),
    /// A failure, by its reason.
    Failure(FailureReason),
}

/// Lines in a minute about each reason for which strangers are refused.
pub(super) const OF_STRANGERS: u32 = 5;

/// Lines in a minute about each reason for which datagrams are dropped.
pub(super) const OF_DROPS: u32 = 2;

/// Lines in a minute about each subject of each tunnel. A tunnel with hundreds of pairs of networks comes up, or gets new
/// keys, in as many lines.
pub(super) const OF_A_TUNNEL: u32 = 500;

/// The same of failures.
pub(super) const OF_FAILURES: u32 = 20;

impl Daemon {
    /// A tunnel's name.
    pub(super) fn tunnel_name(&self, id: TunnelId) -> Option<String> {
        self.registry.name(id).map(str::to_owned)
    }

    /// Tells of the daemon as a whole.
    pub(super) fn announce(&mut self, kind: Kind, message: &str) {
        self.publish_event(Event::new(clock::now().unix, kind, message), false);
    }

    /// Tells of a gateway.
    pub(super) fn announce_gateway(&mut self, kind: Kind, gateway: &str, message: &str) {
        self.publish_event(Event::new(clock::now().unix, kind, message).gateway(gateway), false);
    }

    /// Tells of a tunnel what somebody asked for: each time.
    pub(super) fn announce_tunnel(&mut self, kind: Kind, tunnel: &str, message: &str) {
        self.publish_event(Event::new(clock::now().unix, kind, message).tunnel(tunnel), false);
    }

    /// An event goes to the log, odd ones as a warning, and to whoever wants to know.
    fn publish_event(&mut self, mut event: Event, odd: bool) {
        self.told += 1;
        event.seq = self.told;
        log(&event, odd);
        let event = Arc::new(event);
        self.history.record(clock::now().mono, &event);
        if let Some(alerts) = &self.alerts {
            alerts.tell(&event);
        }
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    /// Tells of a tunnel, at a level that fits the kind.
    pub(super) fn tell_tunnel(&mut self, id: TunnelId, kind: Kind, message: &str) {
        self.tell_tunnel_about(id, kind, &About::default(), message);
    }

    fn tell_tunnel_about(&mut self, id: TunnelId, kind: Kind, about: &About, message: &str) {
        self.tell_tunnel_as(id, kind, Subject::Kind(kind.name()), about, message, kind.is_bad());
    }

    /// Tells that something of a tunnel ended; when we ended it nobody has to look.
    fn tell_ending(&mut self, id: TunnelId, ending: Ending, child: Option<String>, message: &str) {
        let subject = Subject::Kind(Kind::TunnelDown.name());
        let code = match ending {
            Ending::Failed(reason) => Some(reason.name()),
            Ending::Local | Ending::Peer | Ending::Replaced => None,
        };
        let about = About { child, code, ..About::default() };
        self.tell_tunnel_as(id, Kind::TunnelDown, subject, &about, message, ending != Ending::Local);
    }

    /// The other end of a tunnel: as it was seen last, else as it is configured.
    fn peer_of(&self, id: TunnelId) -> Option<Cow<'_, str>> {
        if let Some(seen) = self.tunnels.get(&id).and_then(|memory| memory.peer.as_deref()) {
            return Some(seen.into());
        }
        let customer = &self.tunnel(id)?.customer_gateway;
        Some(match &self.config.customer_gateway(customer)?.address {
            PeerAddress::Ip(ip) => ip.to_string().into(),
            PeerAddress::Dns(name) => name.into(),
        })
    }

    fn note_peer(&mut self, id: TunnelId, peer: SocketAddr) {
        if let Some(memory) = self.tunnels.get_mut(&id) {
            memory.peer = Some(peer.to_string());
        }
    }

    fn tell_tunnel_as(
        &mut self,
        id: TunnelId,
        kind: Kind,
        subject: Subject,
        about: &About,
        message: &str,
        odd: bool,
    ) {
        self.changed(id);
        let unix = clock::now().unix;
        let limits = match subject {
            Subject::Kind(_) => &mut self.tunnel_lines,
            Subject::Failure(_) => &mut self.failure_lines,
        };
        let Some(name) = self.registry.name(id) else { return };
        let Some(missed) = limits.admit((id, subject), unix) else { return };
        let peer = about.peer.map(|peer| peer.to_string().into()).or_else(|| self.peer_of(id));
        let message: Cow<'_, str> = match missed {
            0 => message.into(),
            _ => format!("{message}{}", missed_words(missed)).into(),
        };
        let event = Event::new(unix, kind, &message)
            .tunnel(name)
            .child(about.child.as_deref())
            .peer(peer.as_deref())
            .code(about.code);
        self.publish_event(event, odd);
    }

    /// Tells how much of a tunnel's configured pairs of networks is carried, which has changed.
    pub(super) fn tell_coverage(&mut self, id: TunnelId, view: &TunnelView) {
        let Some(name) = self.registry.name(id) else { return };
        let c = &view.coverage;
        let mut message = format!("{} of {} pairs of networks are carried", c.covered, c.pairs);
        let missing: Vec<String> = c.missing.iter().take(8).map(missing_words).collect();
        if !missing.is_empty() {
            let more = if c.pairs - c.covered > missing.len() { ", …" } else { "" };
            message.push_str(&format!("; missing: {}{more}", missing.join(", ")));
        }
        let peer = self.peer_of(id);
        let event =
            Event::new(clock::now().unix, Kind::Coverage, &message).tunnel(name).peer(peer.as_deref());
        // On its way up a tunnel is incomplete as a matter of course.
        self.publish_event(event, c.covered < c.pairs && view.ike.is_some() && view.is_settled());
    }

    /// Takes an event of the protocol.
    pub(super) fn tell(&mut self, event: IkeEvent) {
        match event {
            IkeEvent::IkeUp { tunnel, spi, role, suite, flow } => {
                self.note_peer(tunnel, flow.remote);
                let message =
                    format!("IKE SA {spi} with {} established as {}: {suite}", flow.remote, role.name());
                self.tell_tunnel(tunnel, Kind::TunnelConnecting, &message);
            }
            IkeEvent::Restored { tunnel, spi, children } => {
                let message = format!("IKE SA {spi} taken up again with {children} pairs of SAs");
                self.tell_tunnel(tunnel, Kind::TunnelUp, &message);
            }
            IkeEvent::IkeDown { tunnel, spi, ending } => {
                let why = ending_words(ending);
                match ending {
                    Ending::Replaced => tracing::debug!(%spi, "IKE SA {why}"),
                    _ => self.tell_ending(tunnel, ending, None, &format!("IKE SA {spi} {why}")),
                }
            }
            IkeEvent::ChildUp { child, inbound, outbound, suite, local, remote } => {
                let nets = format!("{local:?} === {remote:?}");
                let message = format!("up: SPIs {inbound} in, {outbound} out, {suite}: {nets}");
                let about = About { child: Some(networks(&local, &remote)), ..About::default() };
                self.tell_tunnel_about(child.tunnel, Kind::TunnelUp, &about, &message);
                // While something is missing, why it is missing stays to be read.
                let is_whole = |v: TunnelView| v.ike.is_some() && v.coverage.is_whole();
                if let Some(memory) = self.tunnels.get_mut(&child.tunnel)
                    && memory.last_error.is_some()
                    && self.endpoint.view(child.tunnel).is_some_and(is_whole)
                {
                    memory.last_error = None;
                }
            }
            IkeEvent::ChildDown { child, inbound, local, remote, ending } => {
                let nets = networks(&local, &remote);
                let message = format!("child {nets} (SPI {inbound}) {}", ending_words(ending));
                self.tell_ending(child.tunnel, ending, Some(nets), &message);
            }
            IkeEvent::Rekeyed { tunnel, kind, failure } => self.tell_rekeyed(tunnel, kind, failure),
            IkeEvent::Lesson { tunnel, trouble } => {
                self.tell_tunnel(tunnel, Kind::Warning, &lesson_words(&trouble));
            }
            IkeEvent::Failure { tunnel, peer, reason, detail, retry_in } => {
                let again =
                    retry_in.map_or_else(String::new, |d| format!("; next try in {} s", d.as_secs().max(1)));
                let hint = reason.hint();
                let line = format!("{reason}: {detail}{again}; {hint}");
                let Some(id) = tunnel else {
                    self.counters.dropped(REFUSED);
                    self.strangers.note(peer.ip(), reason.name(), clock::now().mono);
                    self.tell_stranger(peer, reason, &line);
                    return;
                };
                if let Some(name) = self.tunnel_name(id) {
                    self.counters.failed(&name, reason.name());
                }
                if let Some(memory) = self.tunnels.get_mut(&id) {
                    // When the next attempt is due stands beside it, and this stays to be read after it.
                    let error = format!("{reason}: {detail}; {hint}");
                    memory.last_error = Some(crate::observe::one_line(&error));
                }
                let about = About { peer: Some(peer), code: Some(reason.name()), child: None };
                self.tell_tunnel_as(id, Kind::TunnelFailed, Subject::Failure(reason), &about, &line, true);
                self.waiters_failed(id, None, &format!("{reason}: {detail}{again}"), hint);
            }
            IkeEvent::Negotiated { tunnel, account } => {
                // One that the configuration has no more is not kept.
                if self.places.contains_key(&tunnel) {
                    self.accounts.keep(tunnel, clock::now(), *account);
                }
            }
            IkeEvent::Dropped { reason, peer } => {
                if reason == DropReason::UnknownPeer {
                    // Perhaps one of ours, from a new address.
                    self.resolver.hurry_all();
                }
                self.counters.dropped(reason.name());
                self.strangers.note(peer.ip(), reason.name(), clock::now().mono);
                self.tell_dropped(reason, peer);
            }
            IkeEvent::CookieDemanded(peer) => {
                self.counters.cookies.demanded += 1;
                self.strangers.note(peer.ip(), COOKIE_DEMANDED, clock::now().mono);
            }
            IkeEvent::CookieReturned(_) => self.counters.cookies.returned += 1,
            IkeEvent::Retransmit(tunnel) => {
                if let Some(name) = self.registry.name(tunnel) {
                    self.counters.retransmitted(name);
                }
                self.suspect_address(tunnel);
            }
            IkeEvent::RoundTrip(tunnel, took) => {
                if let Some(name) = self.registry.name(tunnel) {
                    self.counters.answered(name, took);
                }
            }
        }
    }

    /// Tells of somebody who was refused before proving to be anybody: it is about no tunnel, and anybody can cause it.
    fn tell_stranger(&mut self, peer: SocketAddr, reason: FailureReason, line: &str) {
        let unix = clock::now().unix;
        let Some(missed) = self.stranger_lines.admit(reason, unix) else { return };
        let message = format!("{peer} was refused: {line}{}", missed_words(missed));
        let peer = peer.to_string();
        let event = Event::new(unix, Kind::PeerRefused, &message).peer(Some(&peer)).code(Some(reason.name()));
        self.publish_event(event, true);
    }

    /// Tells of a dropped datagram, within a limit: anybody can send as many as they like.
    fn tell_dropped(&mut self, reason: DropReason, peer: SocketAddr) {
        let unix = clock::now().unix;
        let Some(missed) = self.drop_lines.admit(reason, unix) else { return };
        if reason.is_ordinary() {
            tracing::debug!(%peer, reason = reason.name(), suppressed = missed, "datagram dropped");
            return;
        }
        let message = format!("{reason}: a datagram of {peer} was dropped{}", missed_words(missed));
        let peer = peer.to_string();
        let event =
            Event::new(unix, Kind::DatagramDropped, &message).peer(Some(&peer)).code(Some(reason.name()));
        self.publish_event(event, true);
    }

    fn tell_rekeyed(
        &mut self,
        tunnel: TunnelId,
        kind: RekeyKind,
        failure: Option<cygnet_ike::FailureReason>,
    ) {
        let name = self.tunnel_name(tunnel).unwrap_or_default();
        let counted = match kind {
            RekeyKind::Child => counters::RekeyKind::Child,
            RekeyKind::Ike => counters::RekeyKind::Ike,
        };
        self.counters.rekeyed(&name, counted, failure.is_none());
        let told = match kind {
            RekeyKind::Child => Kind::ChildRekeyed,
            RekeyKind::Ike => Kind::IkeRekeyed,
        };
        match failure {
            None => {
                self.tell_tunnel(tunnel, told, &format!("{} rekeyed", kind_words(kind)));
                self.waiters_rekeyed(tunnel, kind);
                self.sweep_renewed(tunnel, kind);
            }
            Some(reason) => {
                let message = format!("{} not rekeyed: {reason}", kind_words(kind));
                let about = About { code: Some(reason.name()), ..About::default() };
                self.tell_tunnel_about(tunnel, Kind::RekeyFailed, &about, &message);
                self.waiters_failed(tunnel, Some(kind), &message, reason.hint());
                self.sweep_failed(tunnel, &message);
            }
        }
    }
}

/// What an event is about, beside its tunnel; who the peer is, is known without.
#[derive(Default)]
struct About {
    child: Option<String>,
    peer: Option<SocketAddr>,
    code: Option<&'static str>,
}

/// A line of the log with the event's fields.
fn log(event: &Event, odd: bool) {
    let (tunnel, gateway) = (event.tunnel.as_deref(), event.gateway.as_deref());
    let (child, peer, code) = (event.child.as_deref(), event.peer.as_deref(), &*event.code);
    if odd {
        tracing::warn!(tunnel, gateway, child, peer, code, "{}", event.message);
    } else {
        tracing::info!(tunnel, gateway, child, peer, code, "{}", event.message);
    }
}

/// How many of a kind were not told, if any.
fn missed_words(missed: u64) -> String {
    if missed > 0 { format!(", after {missed} of which nothing was said") } else { String::new() }
}

/// What will need attention, although it works now.
pub(super) fn lesson_words(trouble: &Trouble) -> String {
    format!(
        "new keys are refused: {}; until both ends agree, a new IKE SA brings them each time; {}",
        trouble.detail,
        trouble.reason.hint()
    )
}

/// A pair of networks that is missing.
pub(super) fn missing_words(pair: &MissingPair) -> String {
    let partly = if pair.partly { " (narrowed by the peer)" } else { "" };
    format!("{} -> {}{partly}", pair.local, pair.remote)
}

const fn kind_words(kind: RekeyKind) -> &'static str {
    match kind {
        RekeyKind::Child => "child",
        RekeyKind::Ike => "IKE SA",
    }
}

fn ending_words(ending: Ending) -> String {
    match ending {
        Ending::Local => "deleted by us".to_owned(),
        Ending::Peer => "deleted by the peer".to_owned(),
        Ending::Replaced => "replaced".to_owned(),
        Ending::Failed(reason) => format!("failed: {reason}"),
    }
}
