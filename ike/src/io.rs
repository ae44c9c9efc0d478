//! The whole contract between the protocol and its driver: inputs, actions, events.
//!
//! The driver feeds [`Input`]s to [`crate::Endpoint::handle`] and performs the [`Action`]s that come out, in order. If
//! an action on the data plane fails it skips the later plane actions of the same child in that list and feeds
//! [`Input::PlaneFailed`] back before it takes anything else in; the protocol then deletes the child at the peer and tries
//! again later.

use std::net::SocketAddr;
use std::time::Duration;

pub use cygnet_model::negotiation::Role;
use cygnet_model::plane::Acquire;
use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::{EspSuite, IkeSuite};
use cygnet_model::tunnel::{NewAddresses, SaId, SaSpec, TunnelSpec};
use cygnet_model::{ChildId, IkeSpi, Spi, TunnelId};

use crate::account::Account;
use crate::error::{DropReason, FailureReason, Trouble};
use crate::jobs::{Job, JobId, Output};

/// Where a datagram came from or goes to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flow {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Whether the port is the one shared with ESP (4500), where IKE carries the non-ESP marker (RFC 3948 §2.2). The
    /// driver strips and adds the marker.
    pub natt: bool,
}

/// What the world tells the protocol.
#[derive(Debug)]
pub enum Input<'a> {
    /// A datagram, without non-ESP marker.
    Datagram {
        /// Where from.
        flow: Flow,
        /// Its octets.
        bytes: &'a [u8],
    },
    /// Time has passed; see [`crate::Endpoint::next_wakeup`].
    Tick,
    /// Somebody wants something.
    Command(Command),
    /// An action on the data plane failed.
    PlaneFailed {
        /// Whose.
        child: ChildId,
        /// One line for the operator, without keys.
        detail: String,
    },
    /// An SA reached a volume limit.
    Expired {
        /// Which.
        sa: SaId,
        /// It carries nothing more.
        hard: bool,
    },
    /// What an SA has carried, as read from its counters every few seconds; nothing is told of one that stands still.
    Carried {
        /// Which.
        sa: SaId,
        /// Octets of inner packets so far.
        bytes: u64,
        /// How many of them since its counters were read before.
        grown: u64,
        /// How long ago that was; [`Duration::MAX`] if they never were.
        span: Duration,
    },
    /// A guarded packet wants a tunnel.
    Acquire(Acquire),
    /// Authenticated ESP came in on this SA since the last such input.
    Inbound(SaId),
    /// Authenticated, newer ESP came from another address than before.
    PeerMoved {
        /// On which inbound SA.
        sa: SaId,
        /// From where.
        remote: SocketAddr,
    },
    /// What [`Action::Run`] asked for is computed. Late, unknown or repeated results are ignored.
    Done(JobId, Output),
}

/// What an operator or the supervisor wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Bring the tunnel up now and keep it up.
    Up(TunnelId),
    /// Take it down and leave it down.
    Down(TunnelId),
    /// New keys for every child.
    RekeyChildren(TunnelId),
    /// A new IKE SA.
    RekeyIke(TunnelId),
    /// Drop everything of the tunnel without asking the peer, then start anew.
    Reset(TunnelId),
    /// Delete every SA politely, as before the daemon ends, one after the other as the peers answer; said again, all that
    /// are left at once. No retries afterwards.
    Shutdown,
}

/// What the driver shall do.
#[derive(Debug)]
pub enum Action {
    /// Send a datagram; the driver adds the non-ESP marker on NAT-T flows.
    Send {
        /// Where to.
        flow: Flow,
        /// The IKE message.
        bytes: Vec<u8>,
    },
    /// Send a NAT keepalive: the single octet 0xFF, without marker (RFC 3948 §2.3).
    Keepalive(Flow),
    /// Open a tunnel, or replace its selectors and addresses.
    OpenTunnel(TunnelSpec),
    /// Close it; its SAs are gone already.
    CloseTunnel(ChildId),
    /// Install an SA. Only authenticated code makes this action.
    InstallSa(Box<SaSpec>),
    /// Remove an SA.
    RemoveSa(SaId),
    /// Change an SA's outer addresses.
    Migrate(SaId, NewAddresses),
    /// Compute something ([`Job::run`]), anywhere and at any time, and tell the result by [`Input::Done`].
    Run(JobId, Job),
    /// Something happened that people or metrics want to know.
    Tell(Event),
}

/// How an SA ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// We were told to.
    Local,
    /// The peer deleted it.
    Peer,
    /// Replaced by a newer one.
    Replaced,
    /// It failed.
    Failed(FailureReason),
}

/// What was rekeyed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RekeyKind {
    /// A pair of ESP SAs.
    Child,
    /// The IKE SA.
    Ike,
}

impl RekeyKind {
    /// Name for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Child => "child",
            Self::Ike => "ike",
        }
    }
}

/// Facts for people and metrics; nothing depends on them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An IKE SA is established.
    IkeUp {
        /// Whose.
        tunnel: TunnelId,
        /// Our SPI of it.
        spi: IkeSpi,
        /// Our role.
        role: Role,
        /// Algorithms.
        suite: IkeSuite,
        /// Addresses.
        flow: Flow,
    },
    /// An IKE SA of an earlier process was taken up again, with these pairs of ESP SAs.
    Restored {
        /// Whose.
        tunnel: TunnelId,
        /// Our SPI of it.
        spi: IkeSpi,
        /// How many pairs there are to stay.
        children: usize,
    },
    /// An IKE SA is gone.
    IkeDown {
        /// Whose.
        tunnel: TunnelId,
        /// Our SPI of it.
        spi: IkeSpi,
        /// Why.
        ending: Ending,
    },
    /// A pair of ESP SAs carries traffic.
    ChildUp {
        /// Which child.
        child: ChildId,
        /// Inbound SPI.
        inbound: Spi,
        /// Outbound SPI.
        outbound: Spi,
        /// Algorithms.
        suite: EspSuite,
        /// Selectors as negotiated, our side.
        local: Vec<TrafficSelector>,
        /// The peer's side.
        remote: Vec<TrafficSelector>,
    },
    /// A pair is gone, and with it the child's connectivity unless a newer pair exists.
    ChildDown {
        /// Which child.
        child: ChildId,
        /// Inbound SPI.
        inbound: Spi,
        /// Selectors that it had, our side.
        local: Vec<TrafficSelector>,
        /// The peer's side.
        remote: Vec<TrafficSelector>,
        /// Why.
        ending: Ending,
    },
    /// A rekey ended.
    Rekeyed {
        /// Whose.
        tunnel: TunnelId,
        /// Of what.
        kind: RekeyKind,
        /// `None` if it succeeded.
        failure: Option<FailureReason>,
    },
    /// Something works now and will need attention.
    Lesson {
        /// Whose.
        tunnel: TunnelId,
        /// What.
        trouble: Trouble,
    },
    /// A negotiation failed.
    Failure {
        /// Whose, if known.
        tunnel: Option<TunnelId>,
        /// The peer.
        peer: SocketAddr,
        /// Why.
        reason: FailureReason,
        /// One line: what was tried, what came back. Text from the peer is escaped.
        detail: String,
        /// When it will be tried again.
        retry_in: Option<Duration>,
    },
    /// A negotiation is over, whatever came of it.
    Negotiated {
        /// Whose. Of a stranger's ([`crate::account::Standing::Claimed`]): one that has its address for a peer's.
        tunnel: TunnelId,
        /// Topic by topic.
        account: Box<Account>,
    },
    /// A datagram was dropped.
    Dropped {
        /// Why.
        reason: DropReason,
        /// From where.
        peer: SocketAddr,
    },
    /// While many SAs were half open, a stranger was asked to come again with a cookie (RFC 7296 §2.6).
    CookieDemanded(SocketAddr),
    /// A stranger brought a valid cookie back.
    CookieReturned(SocketAddr),
    /// A request was sent again.
    Retransmit(TunnelId),
    /// A request was answered, after this time since it was (last) sent.
    RoundTrip(TunnelId, Duration),
}

/// The list that [`crate::Endpoint::handle`] fills.
pub type Actions = Vec<Action>;
