//! What can be asked over the control socket, and what is answered.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::frame::{self, FrameError};
use crate::config::diff::Plan;
use crate::diagnose::facts::DaemonFacts;
use crate::observe::events::Event;
use crate::observe::explain::Explanation;
use crate::observe::snapshot::{Finding, MinuteStatus, Origin, Snapshot};
use crate::observe::top::{IpPeak, TopPeers, TopTunnels};

/// A question to the daemon. Who may ask it says [`Request::role`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All objects and their states. Answered by [`Response::Status`].
    Status {
        /// Only this tunnel with its gateway, or this gateway with its tunnels.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Brings a tunnel up; done when it carries traffic.
    Up {
        /// The tunnel.
        tunnel: String,
        /// How long the client waits.
        timeout_s: u64,
    },
    /// Takes a tunnel down and keeps it down; done when its SAs are gone.
    Down {
        /// The tunnel.
        tunnel: String,
        /// How long the client waits.
        timeout_s: u64,
    },
    /// Makes new keys; done when they are in use.
    Rekey {
        /// The tunnel.
        tunnel: String,
        /// Those of the IKE SA instead of the children's.
        ike: bool,
        /// How long the client waits.
        timeout_s: u64,
    },
    /// The same for all tunnels that are up; done when the last one has new keys, or has failed.
    RekeyAll {
        /// Only those of this gateway.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gateway: Option<String>,
        /// Those of the IKE SAs instead of the children's.
        ike: bool,
        /// How long the client waits.
        timeout_s: u64,
    },
    /// Drops all state of a tunnel without asking the peer, and begins anew as its configuration says; done when the
    /// state is gone.
    Reset {
        /// The tunnel.
        tunnel: String,
        /// How long the client waits.
        timeout_s: u64,
    },
    /// Changes the bandwidth of a gateway or a tunnel, effective at once.
    Bandwidth {
        /// The gateway; else the tunnel of this name. `gateway:` or `tunnel:` before it says which.
        gateway: String,
        /// Bits per second; null: no cap. Whoever says nothing has not asked for that.
        #[serde(deserialize_with = "Option::deserialize")]
        bps: Option<u64>,
        /// Of what comes in, instead of what goes out.
        #[serde(default, skip_serializing_if = "is_false")]
        inward: bool,
        /// Whether to keep it over a restart.
        save: bool,
    },
    /// Changes limits of inner addresses, effective at once: all of them, or none.
    Limit {
        /// The gateway.
        gateway: String,
        /// The addresses with their limits.
        limits: Vec<LimitAsk>,
        /// Whether to keep them over a restart.
        save: bool,
    },
    /// The limits of a gateway. Answered by [`Response::Limits`].
    Limits {
        /// The gateway.
        gateway: String,
    },
    /// The difference between what runs and a file. Answered by [`Response::Plan`].
    Plan {
        /// The file, absolute; null: the one that the daemon was started with.
        file: Option<String>,
    },
    /// Makes that difference, or nothing if any of it cannot be made. Answered by [`Response::Plan`].
    Apply {
        /// As for [`Request::Plan`].
        file: Option<String>,
    },
    /// The last events of a tunnel. Answered by [`Response::Events`].
    Logs {
        /// The tunnel.
        tunnel: String,
        /// Not older than this many seconds; null: all that are kept.
        since_s: Option<u64>,
    },
    /// A tunnel's quality by the minute. Answered by [`Response::Quality`].
    Quality {
        /// The tunnel.
        tunnel: String,
        /// How far to look back, a day at most.
        since_s: u64,
    },
    /// What tunnels have carried. Answered by [`Response::TopTunnels`].
    TopTunnels {
        /// Only those of this gateway.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gateway: Option<String>,
    },
    /// When inner addresses were at their busiest. Answered by [`Response::TopPeaks`].
    TopPeaks {
        /// Only those of this gateway.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gateway: Option<String>,
        /// How far to look back, a day at most.
        since_s: u64,
    },
    /// Strangers whose datagrams were refused. Answered by [`Response::TopPeers`].
    TopPeers {},
    /// The last negotiations of a tunnel. Answered by [`Response::Explained`].
    Explain {
        /// The tunnel.
        tunnel: String,
    },
    /// What `diagnose` has to know. Answered by [`Response::Known`].
    Diagnose {
        /// The tunnel; null: all, as far as they are looked at.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tunnel: Option<String>,
    },
    /// What the daemon knows of its host. Answered by [`Response::Findings`].
    Doctor {},
    /// How tunnels and gateways are called. Answered by [`Response::Names`].
    Names {},
    /// The last events, whatever they are about. Answered by [`Response::Events`].
    Recent {
        /// Only those of these tunnels; empty: all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tunnels: Vec<String>,
        /// Not older than this many seconds; null: all that are kept.
        since_s: Option<u64>,
    },
    /// What metrics would be served, as Prometheus text. Answered by [`Response::Text`].
    Metrics {},
    /// Headers of the last IKE messages (docs/recording.md). Answered by [`Response::Text`].
    Recording {},
    /// Ends the daemon and leaves its tunnels to the next one. Answered when everything is left; the
    /// process ends right after.
    Handover {},
    /// Events from now on. Answered by [`Response::Event`]s until the client hangs up; the driver never sees this.
    Events {},
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
const fn is_false(b: &bool) -> bool {
    !*b
}

/// The limit that an inner address shall have.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct LimitAsk {
    /// The address.
    pub ip: IpAddr,
    /// A rate as the configuration writes it, `block` or `unlimited`.
    pub rate: String,
}

/// The limit that an inner address has.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LimitStatus {
    /// The address.
    pub ip: IpAddr,
    /// A rate as the configuration writes it, `block` or `unlimited`.
    pub rate: String,
    /// Where it comes from.
    pub origin: Origin,
    /// Packets that it dropped, as far back as is known.
    pub dropped: u64,
}

/// What a client may do; each may what those before it may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Looks, and changes nothing.
    Reader,
    /// Also changes what runs, within the configuration that the daemon was started with.
    Admin,
    /// Also names files, and has the daemon end.
    Root,
}

/// How long a client waits for a configuration to be read and applied.
const CONFIGURATION_S: u64 = 120;

impl Request {
    /// Who may ask this.
    pub const fn role(&self) -> Role {
        self.manners().0
    }

    /// How long the client is ready to wait, in seconds, if it said so.
    pub const fn timeout_s(&self) -> Option<u64> {
        self.manners().1
    }

    const fn manners(&self) -> (Role, Option<u64>) {
        match self {
            Self::Status { .. }
            | Self::Limits { .. }
            | Self::Logs { .. }
            | Self::Quality { .. }
            | Self::TopTunnels { .. }
            | Self::TopPeaks { .. }
            | Self::TopPeers {}
            | Self::Explain { .. }
            | Self::Diagnose { .. }
            | Self::Doctor {}
            | Self::Names {}
            | Self::Recent { .. }
            | Self::Metrics {}
            | Self::Recording {}
            | Self::Events {} => (Role::Reader, None),
            Self::Up { timeout_s, .. }
            | Self::Down { timeout_s, .. }
            | Self::Rekey { timeout_s, .. }
            | Self::RekeyAll { timeout_s, .. }
            | Self::Reset { timeout_s, .. } => (Role::Admin, Some(*timeout_s)),
            Self::Bandwidth { .. } | Self::Limit { .. } => (Role::Admin, None),
            // What is wrong with a file is said in its own words, and readers need not be able to read it.
            Self::Plan { file: None } | Self::Apply { file: None } => (Role::Admin, Some(CONFIGURATION_S)),
            // A file of any name may be anybody's.
            Self::Plan { file: Some(_) } | Self::Apply { file: Some(_) } => {
                (Role::Root, Some(CONFIGURATION_S))
            }
            Self::Handover {} => (Role::Root, None),
        }
    }
}

/// The daemon's answer.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Response {
    /// To `status`.
    Status {
        /// Everything.
        snapshot: Box<Snapshot>,
    },
    /// What was asked for is done.
    Done {
        /// What was done, in a sentence.
        message: String,
    },
    /// To `plan` and `apply`.
    Plan {
        /// The difference.
        plan: Box<Plan>,
        /// Whether it was made.
        applied: bool,
    },
    /// To `plan` and `apply` of a file that cannot be used. Nothing was changed.
    BadConfig {
        /// One line for each error and warning, as `cygnet check` says it.
        problems: Vec<String>,
    },
    /// To `logs`, oldest first.
    Events {
        /// The events.
        events: Vec<Event>,
    },
    /// To `quality`.
    Quality {
        /// The minutes, the oldest first.
        minutes: Vec<MinuteStatus>,
    },
    /// To `top`.
    TopTunnels {
        /// What they carried.
        top: TopTunnels,
    },
    /// To `top --since`.
    TopPeaks {
        /// The busiest, busiest first.
        peaks: Vec<IpPeak>,
    },
    /// To `limit` without an address.
    Limits {
        /// In the order of their addresses.
        limits: Vec<LimitStatus>,
    },
    /// To `top --peers`.
    TopPeers {
        /// Who they are.
        top: TopPeers,
    },
    /// To `explain`.
    Explained {
        /// What was negotiated.
        explanation: Box<Explanation>,
    },
    /// To `diagnose`.
    Known {
        /// What is known.
        facts: Box<DaemonFacts>,
    },
    /// To `doctor`.
    Findings {
        /// What was found.
        findings: Vec<Finding>,
    },
    /// To `names`.
    Names {
        /// Tunnels, in the order of the configuration.
        tunnels: Vec<String>,
        /// Gateways, likewise.
        gateways: Vec<String>,
    },
    /// To `metrics` and `recording`.
    Text {
        /// Lines.
        text: String,
    },
    /// The beginning of a stream of events.
    Streaming {},
    /// One of them.
    Event {
        /// The event.
        event: Box<Event>,
    },
    /// It was not done.
    Error {
        /// The kind of failure.
        kind: ErrorKind,
        /// What went wrong, in a sentence.
        message: String,
        /// What to do about it; empty if nothing.
        #[serde(default)]
        hint: String,
    },
}

impl Response {
    /// An error without a hint.
    pub fn error(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Error { kind, message: message.into(), hint: String::new() }
    }

    /// That something is done.
    pub fn done(message: impl Into<String>) -> Self {
        Self::Done { message: message.into() }
    }

    /// Reads an answer, the body of a frame. Before serde reads a value whose kind stands inside of it, it keeps a copy of
    /// all of it; the status of ten thousand tunnels is read without.
    pub fn read(body: &[u8]) -> Result<Self, FrameError> {
        #[derive(Deserialize)]
        enum Tag {
            #[serde(rename = "status")]
            Status,
        }
        #[derive(Deserialize)]
        struct Status {
            #[serde(rename = "answer")]
            _answer: Tag,
            snapshot: Box<Snapshot>,
        }
        if body.starts_with(br#"{"answer":"status","#) {
            return frame::decode(body).map(|Status { snapshot, .. }| Self::Status { snapshot });
        }
        frame::decode(body)
    }
}

/// Kinds of failure that a client tells apart.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request makes no sense to the daemon.
    BadRequest,
    /// There is no object of that name.
    NotFound,
    /// The client may not ask.
    Permission,
    /// Too many clients.
    Busy,
    /// It was not done in time; the daemon goes on trying.
    Timeout,
    /// It was tried and failed.
    Failed,
    /// The daemon is about to end.
    Stopping,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

impl ErrorKind {
    /// Every kind that this version tells.
    pub const ALL: &[Self] = &[
        Self::BadRequest,
        Self::NotFound,
        Self::Permission,
        Self::Busy,
        Self::Timeout,
        Self::Failed,
        Self::Stopping,
    ];

    /// The word in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::NotFound => "not-found",
            Self::Permission => "permission",
            Self::Busy => "busy",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_failure_are_called_what_they_are_in_json() {
        for kind in ErrorKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }

    #[test]
    fn a_level_without_a_rate_is_no_request_for_none() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        let none = r#"{"verb":"bandwidth","gateway":"g","bps":null,"save":false}"#;
        assert!(matches!(read(none), Ok(Request::Bandwidth { bps: None, .. })));
        assert!(read(&none.replace(r#""bps":null,"#, "")).is_err());
    }

    #[test]
    fn an_answer_is_read_as_it_was_written_in_whatever_order() {
        let status = Response::Status { snapshot: Box::default() };
        let frame = frame::encode(&status).unwrap();
        assert_eq!(Response::read(&frame[4..]).unwrap(), status);
        let other = serde_json::json!({ "snapshot": Snapshot::default(), "answer": "status" }).to_string();
        assert_eq!(Response::read(other.as_bytes()).unwrap(), status);
        let done = Response::done("said");
        assert_eq!(Response::read(&frame::encode(&done).unwrap()[4..]).unwrap(), done);
        assert!(Response::read(br#"{"answer":"status","snapshot":1}"#).is_err());
        assert!(Response::read(br#"{"answer":"status","answer":"status"}"#).is_err());
    }
}
