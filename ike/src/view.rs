//! What an operator sees of a tunnel: a value made on request, from which status and metrics are printed.

use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::{EspSuite, IkeSuite};
use cygnet_model::{ChildId, Spi, Timestamp};

use crate::io::{Flow, Role};
use crate::policy::{Start, TunnelPolicy};
use crate::sa::{ChildState, IkeSa, Live, State};

/// State of a tunnel in the words of `cygnet status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelState {
    /// Taken down by an operator.
    Down,
    /// Being negotiated.
    Connecting,
    /// Every child carries traffic.
    Up,
    /// Up, with new keys being negotiated.
    Rekeying,
    /// Passive or on demand, and nobody has come yet.
    Waiting,
    /// The last try failed; another one will follow.
    Failed,
}

/// One tunnel.
#[derive(Clone, Debug)]
pub struct TunnelView {
    /// In one word.
    pub state: TunnelState,
    /// The IKE SA in use.
    pub ike: Option<IkeView>,
    /// Pairs of ESP SAs that are there to stay, the newest of a child last.
    pub children: Vec<ChildView>,
    /// When it is tried again.
    pub retry_at: Option<Timestamp>,
}

/// An IKE SA.
#[derive(Clone, Debug)]
pub struct IkeView {
    /// Initiator's SPI.
    pub spi_i: u64,
    /// Responder's SPI.
    pub spi_r: u64,
    /// Our role.
    pub role: Role,
    /// Algorithms.
    pub suite: IkeSuite,
    /// Addresses.
    pub flow: Flow,
    /// Whether we are behind a NAT.
    pub nat_local: bool,
    /// Whether the peer is, or forces encapsulation.
    pub nat_remote: bool,
    /// When it will be rekeyed.
    pub rekey_at: Timestamp,
    /// Since when it is up, in seconds since 1970.
    pub since_unix: u64,
}

/// A pair of ESP SAs.
#[derive(Clone, Debug)]
pub struct ChildView {
    /// Which child.
    pub id: ChildId,
    /// SPI of packets to us.
    pub inbound: Spi,
    /// SPI of packets to the peer.
    pub outbound: Spi,
    /// Algorithms.
    pub suite: EspSuite,
    /// Our side.
    pub local: Vec<TrafficSelector>,
    /// The peer's side.
    pub remote: Vec<TrafficSelector>,
    /// When it will be rekeyed.
    pub rekey_at: Timestamp,
    /// When it must be gone.
    pub expire_at: Timestamp,
}

pub(crate) fn tunnel<'a>(
    policy: &TunnelPolicy,
    wanted: bool,
    held: bool,
    failures: u32,
    retry_at: Option<Timestamp>,
    sas: impl Iterator<Item = &'a IkeSa>,
) -> TunnelView {
    let mut view = TunnelView { state: TunnelState::Down, ike: None, children: Vec::new(), retry_at };
    let (mut connecting, mut rekeying) = (false, false);
    for sa in sas {
        match &sa.state {
            State::Established(live) => {
                // With two of them, as for a moment after both ends initiated, the last one is as good as the other.
                view.ike = Some(ike(sa, live));
                rekeying |= live.is_rekeying();
                let stays = |s| matches!(s, ChildState::Active | ChildState::Rekeying);
                for c in live.children.iter().filter(|c| stays(c.state)) {
                    view.children.push(ChildView {
                        id: c.id,
                        inbound: c.inbound,
                        outbound: c.outbound,
                        suite: c.suite,
                        local: c.local.clone(),
                        remote: c.remote.clone(),
                        rekey_at: c.rekey_at,
                        expire_at: c.expire_at,
                    });
                }
            }
            State::InitSent(_) | State::AuthSent(_) => connecting = true,
            _ => {}
        }
    }
    let count = policy.children.len();
    let complete = (0..count).all(|i| view.children.iter().any(|c| usize::from(c.id.index) == i));
    view.state = match (&view.ike, complete) {
        (Some(_), true) if rekeying => TunnelState::Rekeying,
        (Some(_), true) => TunnelState::Up,
        (Some(_), false) => TunnelState::Connecting,
        (None, _) if connecting => {
            if failures > 0 {
                TunnelState::Failed
            } else {
                TunnelState::Connecting
            }
        }
        (None, _) if held => TunnelState::Down,
        (None, _) if retry_at.is_some() && failures > 0 => TunnelState::Failed,
        (None, _) if retry_at.is_some() => TunnelState::Connecting,
        (None, _) if policy.start != Start::Active => TunnelState::Waiting,
        (None, _) if wanted => TunnelState::Connecting,
        (None, _) => TunnelState::Down,
    };
    view
}

fn ike(sa: &IkeSa, live: &Live) -> IkeView {
    IkeView {
        spi_i: live.channel.spi_i,
        spi_r: live.channel.spi_r,
        role: sa.core.role,
        suite: live.suite,
        flow: sa.core.flow,
        nat_local: live.nat.local,
        nat_remote: live.nat.remote,
        rekey_at: live.rekey_at,
        since_unix: live.established_unix,
    }
}
