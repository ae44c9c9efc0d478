//! What a data plane is asked to hold: guards, tunnels and SAs.
//!
//! Three layers with three lifetimes. A *guard* lives as long as the configuration: whatever its selectors match leaves
//! encrypted or not at all. A *tunnel* opens inside a guard while a child is negotiated: it names the outer addresses
//! and the narrowed selectors. *SAs* are the generations of keys of a tunnel; a rekey touches nothing else.

use std::net::{IpAddr, SocketAddr};

use crate::id::{ChildId, Reqid, Spi};
use crate::secret::SecretBytes;
use crate::selector::{IpRange, TrafficSelector};
use crate::suite::EspSuite;

/// No more tunnels than these share the flows of a rule: each packet asks every one of them for its score.
pub const MAX_SHARERS: usize = 32;

/// What shall happen to a guarded packet while no tunnel is open for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuardAction {
    /// Drop and count.
    Drop,
    /// Drop and count, and raise [`crate::plane::PlaneEvent::Acquire`] (at most one a second for each child).
    Acquire,
}

/// What is reached directly although a guard covers it: between the guard's local selectors and these, both ways, but not
/// where another selector, narrower than the one that covers them, protects the packets.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Bypass {
    /// This host's own addresses and attached networks inside the local selectors: a guard of everything (0.0.0.0/0) would
    /// otherwise lead a host's packets to its neighbours, and to this host, into the tunnel.
    pub attached: bool,
    /// These, as far as the remote selectors cover them.
    pub networks: Vec<IpRange>,
}

impl Bypass {
    /// Nothing.
    pub const NONE: Self = Self { attached: false, networks: Vec::new() };
    /// What is attached.
    pub const ATTACHED: Self = Self { attached: true, networks: Vec::new() };
}

/// Which source the gateway's own packets to a remote network get, if their socket has no address.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Source {
    /// An address of this host inside the local selectors, if there is one.
    #[default]
    Auto,
    /// What the host's routes say.
    None,
    /// This one, while the host has it; the other family as with [`Self::Auto`].
    Address(IpAddr),
}

/// A kernel mark as value and mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Value.
    pub value: u32,
    /// Mask.
    pub mask: u32,
}

/// Selectors that must never pass in clear text. Every combination of a local and a remote selector is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuardSpec {
    /// The child that may open a tunnel for them.
    pub child: ChildId,
    /// Ties policies and states; see [`Reqid::of`].
    pub reqid: Reqid,
    /// Our side, never empty.
    pub local: Vec<TrafficSelector>,
    /// The peer's side, never empty.
    pub remote: Vec<TrafficSelector>,
    /// While no tunnel is open.
    pub action: GuardAction,
    /// Policies and states apply to packets with this mark only.
    pub mark: Option<Mark>,
    /// Which of several children with equal selectors is preferred: the lower one, 0 for a primary. Equal ones of several
    /// tunnels share the flows in our own plane; elsewhere, and among those of one tunnel, the lower child goes first.
    pub weight: u16,
    /// What is reached directly nevertheless.
    pub bypass: Bypass,
}

/// An open tunnel: selectors as negotiated, and the outer addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelSpec {
    /// The child.
    pub child: ChildId,
    /// As in the guard.
    pub reqid: Reqid,
    /// Our side as negotiated (never wider than the guard), never empty.
    pub local: Vec<TrafficSelector>,
    /// The peer's side as negotiated, never empty.
    pub remote: Vec<TrafficSelector>,
    /// Our outer address.
    pub outer_local: IpAddr,
    /// The peer's outer address.
    pub outer_remote: IpAddr,
    /// As in the guard.
    pub mark: Option<Mark>,
    /// As in the guard.
    pub weight: u16,
}

/// Direction of an SA, as seen from here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// From the peer.
    In,
    /// To the peer.
    Out,
}

/// Names one SA of one child.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SaId {
    /// The child it serves.
    pub child: ChildId,
    /// Inbound or outbound.
    pub direction: Direction,
    /// Inbound: chosen by us. Outbound: chosen by the peer.
    pub spi: Spi,
}

/// UDP encapsulation (RFC 3948): the ports on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpEncap {
    /// Our port.
    pub local_port: u16,
    /// The peer's port, as we see it.
    pub remote_port: u16,
}

/// Volume limits of an SA; zero means none. Time limits are the daemon's (a kernel's follow the wall clock).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VolumeLimits {
    /// Octets at which [`crate::plane::PlaneEvent::Expired`] is raised with `hard: false`.
    pub soft_bytes: u64,
    /// Octets at which the SA stops.
    pub hard_bytes: u64,
    /// Packets at which the soft event is raised.
    pub soft_packets: u64,
    /// Packets at which the SA stops.
    pub hard_packets: u64,
}

/// One generation of keys in one direction.
#[derive(Debug)]
pub struct SaSpec {
    /// Child, direction, SPI.
    pub id: SaId,
    /// As in the guard.
    pub reqid: Reqid,
    /// Our outer address.
    pub local: IpAddr,
    /// The peer's outer address.
    pub remote: IpAddr,
    /// UDP encapsulation, if negotiated.
    pub encap: Option<UdpEncap>,
    /// Algorithms.
    pub suite: EspSuite,
    /// Cipher key followed by the salt, [`crate::suite::Encr::keymat_len`] octets.
    pub encr_key: SecretBytes,
    /// Integrity key; empty for combined-mode ciphers.
    pub integ_key: SecretBytes,
    /// Anti-replay window in packets (inbound), 0 = off, else 64..=4096 and a multiple of 32.
    pub replay_window: u32,
    /// Selectors as negotiated, our side; an inner packet outside them is dropped (RFC 4301 §5.2).
    pub inner_local: Vec<TrafficSelector>,
    /// Selectors as negotiated, the peer's side.
    pub inner_remote: Vec<TrafficSelector>,
    /// Volume limits.
    pub limits: VolumeLimits,
    /// As in the guard.
    pub mark: Option<Mark>,
}

impl SaSpec {
    /// An explicit copy, keys included; for planes that must be able to hand the SA to another thread.
    pub fn duplicate(&self) -> Self {
        Self {
            id: self.id,
            reqid: self.reqid,
            local: self.local,
            remote: self.remote,
            encap: self.encap,
            suite: self.suite,
            encr_key: self.encr_key.duplicate(),
            integ_key: self.integ_key.duplicate(),
            replay_window: self.replay_window,
            inner_local: self.inner_local.clone(),
            inner_remote: self.inner_remote.clone(),
            limits: self.limits,
            mark: self.mark,
        }
    }

    /// Outer source address.
    pub fn source(&self) -> IpAddr {
        if self.id.direction == Direction::Out { self.local } else { self.remote }
    }

    /// Outer destination address.
    pub fn destination(&self) -> IpAddr {
        if self.id.direction == Direction::Out { self.remote } else { self.local }
    }
}

/// New outer addresses of an SA after the peer moved (RFC 7296 §2.23).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewAddresses {
    /// Our end; the port is that of UDP encapsulation.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
}
