//! Events: what happened, for people and for programs. One JSON object a line.

use std::borrow::Cow;

use cygnet_ike::{DropReason, FailureReason};
use serde::{Deserialize, Serialize};

use super::{one_line, rfc3339};

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Event {
    /// When, RFC 3339.
    pub time: String,
    /// The same in seconds since 1970, for arithmetic.
    pub unix: u64,
    /// What kind of thing.
    pub event: Kind,
    /// The tunnel it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// The gateway it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The pair of networks, or the pairs, that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<String>,
    /// The other end that it is about: address and port, or how the configuration names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The reason, if there is one, else the kind: what to search for.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub code: Cow<'static, str>,
    /// Counts the events of a life of the daemon from 1; 0 where nobody counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub seq: u64,
    /// A sentence; escaped, so that it stays one line.
    pub message: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_empty(text: &str) -> bool {
    text.is_empty()
}

/// Declares the kinds with their words in JSON.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// Kinds of events.
        #[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
        pub enum Kind {
            $($(#[$doc])* #[serde(rename = $name)] $kind,)*
            /// A kind that this version does not know.
            #[serde(other, rename = "other")]
            Other,
        }

        impl Kind {
            /// Every kind that this version tells.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The word in JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                    Self::Other => "other",
                }
            }
        }
    };
}

kinds! {
    /// The daemon is ready.
    Started = "started",
    /// Tunnels of an earlier life of the daemon go on.
    Restored = "restored",
    /// The daemon is about to end.
    Stopping = "stopping",
    /// A configuration took effect.
    ConfigApplied = "config_applied",
    /// A configuration was refused; the old one stays.
    ConfigRefused = "config_refused",
    /// A negotiation began.
    TunnelConnecting = "tunnel_connecting",
    /// A tunnel came up.
    TunnelUp = "tunnel_up",
    /// A tunnel carries more or fewer of its configured pairs of networks than before.
    Coverage = "coverage",
    /// A tunnel went down.
    TunnelDown = "tunnel_down",
    /// The tunnel is up, and nothing seems to pass it.
    TrafficSuspect = "traffic_suspect",
    /// Packets come in again.
    TrafficPasses = "traffic_passes",
    /// Probes through a tunnel say that it is not fit to carry traffic.
    QualityDegraded = "quality_degraded",
    /// They say that it is again.
    QualityRecovered = "quality_recovered",
    /// An attempt failed.
    TunnelFailed = "tunnel_failed",
    /// The IKE SA got new keys.
    IkeRekeyed = "ike_rekeyed",
    /// A child got new keys.
    ChildRekeyed = "child_rekeyed",
    /// Something works now and will need attention.
    Warning = "warning",
    /// A rekey failed.
    RekeyFailed = "rekey_failed",
    /// The peer does not answer.
    PeerDead = "peer_dead",
    /// The peer's outer address changed.
    PeerMoved = "peer_moved",
    /// A bandwidth changed.
    BandwidthChanged = "bandwidth_changed",
    /// The limit of an inner address changed.
    LimitChanged = "limit_changed",
    /// The data plane refused something, or lost events.
    DataPlane = "data_plane",
    /// Others had removed guards; they are in force again.
    GuardRepaired = "guard_repaired",
    /// Something of others decides about protected packets before the guards do.
    GuardObstructed = "guard_obstructed",
    /// Somebody was refused before proving to be anybody; a limited number of them is told.
    PeerRefused = "peer_refused",
    /// A datagram was dropped; a limited number of them is told.
    DatagramDropped = "datagram_dropped",
    /// Events were lost because the reader was slow.
    Lost = "lost",
}

/// Every code that an event of this version can have: kinds, and reasons for failures and drops.
pub fn codes() -> impl Iterator<Item = &'static str> {
    let kinds = Kind::ALL.iter().map(|kind| kind.name());
    let failures = FailureReason::ALL.iter().map(|reason| reason.name());
    kinds.chain(failures).chain(DropReason::ALL.iter().map(|reason| reason.name()))
}

impl Kind {
    /// Whether somebody should look.
    pub const fn is_bad(self) -> bool {
        matches!(
            self,
            Self::ConfigRefused
                | Self::TunnelDown
                | Self::TunnelFailed
                | Self::TrafficSuspect
                | Self::QualityDegraded
                | Self::RekeyFailed
                | Self::Warning
                | Self::PeerDead
                | Self::GuardRepaired
                | Self::DatagramDropped
                | Self::PeerRefused
                | Self::GuardObstructed
                | Self::Lost
        )
    }

    /// The kind with a name; `None` for those that nothing is called.
    pub fn of_name(name: &str) -> Option<Self> {
        let word = serde_json::Value::String(name.to_owned());
        serde_json::from_value(word).ok().filter(|kind| *kind != Self::Other)
    }
}

impl Event {
    /// An event about the daemon as a whole. `message` may hold text of strangers: it is escaped here.
    pub fn new(unix: u64, event: Kind, message: &str) -> Self {
        Self {
            time: rfc3339(unix),
            unix,
            event,
            tunnel: None,
            gateway: None,
            child: None,
            peer: None,
            code: event.name().into(),
            seq: 0,
            message: one_line(message),
        }
    }

    /// The same about a tunnel.
    #[must_use]
    pub fn tunnel(self, name: &str) -> Self {
        Self { tunnel: Some(name.to_owned()), ..self }
    }

    /// The same about a gateway.
    #[must_use]
    pub fn gateway(self, name: &str) -> Self {
        Self { gateway: Some(name.to_owned()), ..self }
    }

    /// The same about some pairs of networks.
    #[must_use]
    pub fn child(self, networks: Option<&str>) -> Self {
        Self { child: networks.map(one_line), ..self }
    }

    /// The same about another end.
    #[must_use]
    pub fn peer(self, peer: Option<&str>) -> Self {
        Self { peer: peer.map(one_line), ..self }
    }

    /// The same for a reason.
    #[must_use]
    pub fn code(self, reason: Option<&'static str>) -> Self {
        match reason {
            Some(reason) => Self { code: reason.into(), ..self },
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T14: one event, one line, whatever the peer wrote.
    #[test]
    fn an_event_is_one_line_of_json() {
        let event = Event::new(0, Kind::TunnelFailed, "peer said \"x\"\nINFO fine\u{1b}[0m").tunnel("a-b");
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(line.lines().count(), 1);
        assert!(!event.message.chars().any(char::is_control));
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
        assert_eq!(Kind::of_name("moon_phase"), None);
        for kind in Kind::ALL {
            assert_eq!(Kind::of_name(kind.name()), Some(*kind));
        }
        let all: Vec<&str> = codes().collect();
        assert!(all.contains(&"tunnel_up") && all.contains(&"no_proposal_chosen"), "{all:?}");
        for word in crate::config::fields::ALERT_EVENTS {
            assert_eq!(Kind::of_name(word).map(Kind::name), Some(*word));
        }
        let newer = line.replace("tunnel_failed", "moon_phase");
        assert_eq!(serde_json::from_str::<Event>(&newer).unwrap().event, Kind::Other);
    }
}
