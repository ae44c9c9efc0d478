//! What an operator sees of a tunnel: a value made on request, from which status and metrics are printed.

use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::{EspSuite, IkeSuite};
use cygnet_model::{ChildId, Spi, Timestamp};

use crate::coverage::{self, Coverage, Networks};
use crate::error::Trouble;
use crate::io::{Flow, Role};
use crate::policy::{ChildPolicy, Start, TunnelPolicy};
use crate::sa::{ChildState, IkeSa, Live, State};
use crate::wire::Identity;

/// State of a tunnel in the words of `cygnet status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelState {
    /// Taken down by an operator.
    Down,
    /// Being negotiated.
    Connecting,
    /// An IKE SA is there and at least one child carries traffic; [`TunnelView::coverage`] tells how much.
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
    /// The configured children, and how each of them is.
    pub configured: Vec<ConfiguredView>,
    /// What the configuration protects, and what the SAs carry.
    pub coverage: Coverage,
    /// When it is tried again.
    pub retry_at: Option<Timestamp>,
    /// What works now and will need attention, as that the two ends do not agree on PFS.
    pub lesson: Option<Trouble>,
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
    /// Who the peer has proven to be.
    pub peer_id: Identity,
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

/// How a configured child is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfiguredState {
    /// It carries traffic, all of it or a part.
    Up,
    /// It is being negotiated, or its turn is still to come.
    Connecting,
    /// The peer, or the data plane, refused it.
    Failed,
    /// There is no IKE SA for it.
    Down,
}

/// A configured child.
#[derive(Clone, Debug)]
pub struct ConfiguredView {
    /// Its number.
    pub index: u16,
    /// Our side.
    pub local: Vec<TrafficSelector>,
    /// The peer's side.
    pub remote: Vec<TrafficSelector>,
    /// How it is.
    pub state: ConfiguredState,
    /// Whether the peer is being asked for something of it at this moment.
    pub seeking: bool,
    /// How much of it is carried.
    pub coverage: Coverage,
    /// Why it, or the rest of it, is not carried.
    pub trouble: Option<Trouble>,
    /// When what is missing is asked for again.
    pub retry_at: Option<Timestamp>,
}

impl TunnelView {
    /// Whether nothing more will come by itself soon: everything is carried, or what is not was refused.
    pub fn is_settled(&self) -> bool {
        self.configured
            .iter()
            .all(|c| c.coverage.is_whole() || (c.state != ConfiguredState::Connecting && !c.seeking))
    }
}

/// A pair of ESP SAs.
#[derive(Clone, Debug)]
pub struct ChildView {
    /// Which child.
    pub id: ChildId,
    /// Index of the configured child that it is, or is a part of.
    pub of: u16,
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
    /// When it was negotiated.
    pub made: Timestamp,
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
    let mut view = TunnelView {
        state: TunnelState::Down,
        ike: None,
        children: Vec::new(),
        configured: policy.children.iter().map(|(index, child)| not_connected(index, child)).collect(),
        coverage: Coverage::default(),
        retry_at,
        lesson: None,
    };
    let (mut connecting, mut rekeying) = (false, false);
    let mut best = None;
    for sa in sas {
        match &sa.state {
            State::Established(live) => {
                // Of two, one is about to go, or the older one may be.
                let rank = (live.retire_at.is_none(), !live.outdated, live.established);
                if best.is_none_or(|best| rank > best) {
                    best = Some(rank);
                    view.ike = Some(ike(sa, live));
                }
                rekeying |= live.is_rekeying();
                let stays = |s| matches!(s, ChildState::Active | ChildState::Rekeying);
                for c in live.children.iter().filter(|c| stays(c.state)) {
                    view.children.push(ChildView {
                        id: c.id,
                        of: c.of,
                        made: c.made,
                        inbound: c.inbound,
                        outbound: c.outbound,
                        suite: c.suite,
                        local: c.local.clone(),
                        remote: c.remote.clone(),
                        rekey_at: c.rekey_at,
                        expire_at: c.expire_at,
                    });
                }
                for c in &mut view.configured {
                    note(c, live);
                }
            }
            _ if sa.is_beginning() => connecting = true,
            _ => {}
        }
    }
    for (c, (_, child)) in view.configured.iter_mut().zip(policy.children.iter()) {
        let carried: Vec<Networks<'_>> = (view.children.iter().filter(|v| v.of == c.index))
            .map(|v| (v.local.as_slice(), v.remote.as_slice()))
            .collect();
        c.coverage = coverage::coverage(child, &carried);
        if !carried.is_empty() {
            c.state = ConfiguredState::Up;
        }
        if c.coverage.is_whole() {
            (c.trouble, c.retry_at) = (None, None);
        }
        view.coverage.add(c.coverage.clone());
    }
    let carries = view.configured.iter().any(|c| c.state == ConfiguredState::Up);
    let refused = view.configured.iter().all(|c| c.state == ConfiguredState::Failed);
    view.state = match (&view.ike, carries) {
        (Some(_), true) if rekeying => TunnelState::Rekeying,
        (Some(_), true) => TunnelState::Up,
        (Some(_), false) if refused => TunnelState::Failed,
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

/// A configured child of a tunnel without an IKE SA.
fn not_connected(index: u16, child: &ChildPolicy) -> ConfiguredView {
    ConfiguredView {
        index,
        local: child.local.clone(),
        remote: child.remote.clone(),
        state: ConfiguredState::Down,
        seeking: false,
        coverage: Coverage::default(),
        trouble: None,
        retry_at: None,
    }
}

/// Notes what an IKE SA knows of a configured child.
fn note(c: &mut ConfiguredView, live: &Live) {
    let of = c.index;
    let seeking = live.seeking.get(&of);
    c.seeking |= live.is_seeking(of);
    c.trouble = seeking.and_then(|s| s.trouble.clone());
    c.retry_at = seeking.and_then(|s| s.retry_at);
    c.state = if c.trouble.is_some() { ConfiguredState::Failed } else { ConfiguredState::Connecting };
}

fn ike(sa: &IkeSa, live: &Live) -> IkeView {
    IkeView {
        spi_i: live.channel.spi_i,
        spi_r: live.channel.spi_r,
        role: sa.core.role,
        peer_id: live.peer_id.clone(),
        suite: live.suite,
        flow: sa.core.flow,
        nat_local: live.nat.local,
        nat_remote: live.nat.remote,
        rekey_at: live.rekey_at,
        since_unix: live.established_unix,
    }
}
