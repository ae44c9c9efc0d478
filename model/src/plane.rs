//! The port behind which a data plane hides: the kernel's ESP, our own, or memory.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::id::{ChildId, Spi, TunnelId};
use crate::selector::Packet;
use crate::tunnel::{GuardSpec, NewAddresses, SaId, SaSpec, TunnelSpec};

/// Which kind of plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaneKind {
    /// Linux XFRM forwards ESP.
    Kernel,
    /// Our own ESP over TUN and sockets.
    Userspace,
}

impl PlaneKind {
    /// The word used in configuration, status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// What an SA has counted since it was installed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SaCounters {
    /// Octets of inner packets.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Dropped by the replay window (inbound).
    pub replay: u64,
    /// Dropped because the integrity check failed (inbound).
    pub integrity: u64,
    /// Last sequence number sent, or highest received.
    pub sequence: u64,
}

/// How many sequence numbers an outbound SA may use beyond those that were noted for the next life of the daemon.
pub const RESERVE: u64 = 1 << 24;

/// A packet that wants a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acquire {
    /// The guarded child that it belongs to.
    pub child: ChildId,
    /// Its addresses, protocol and ports; `None` where the plane does not tell them.
    pub packet: Option<Packet>,
}

impl From<ChildId> for Acquire {
    fn from(child: ChildId) -> Self {
        Self { child, packet: None }
    }
}

/// What the plane tells on its own account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaneEvent {
    /// A packet wants a tunnel that is not open ([`crate::tunnel::GuardAction::Acquire`]).
    Acquire(Acquire),
    /// An SA reached a volume limit; after a hard one it carries nothing more.
    Expired {
        /// Which SA.
        sa: SaId,
        /// Hard limit.
        hard: bool,
    },
    /// Authenticated ESP came from a new outer address (NAT mapping changed).
    PeerMoved {
        /// The inbound SA that it came on.
        sa: SaId,
        /// Where it came from.
        remote: SocketAddr,
    },
    /// Others had removed parts of the guards, and they were put back. Until then protected packets may have passed
    /// around the tunnel.
    Repaired {
        /// What it was, as in "routing rules and routes".
        what: &'static str,
        /// How many of them.
        count: usize,
    },
    /// Rules of others stand before the guards and may take packets away from them.
    InFront {
        /// How many; 0 when they are gone.
        count: usize,
    },
    /// Events were lost (socket overrun): whoever relies on them reads the counters of all SAs.
    Lost,
}

/// Something of others that stands in the way of the guards. It is told, not touched.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Obstacle {
    /// The kind, as it is named in findings.
    pub name: &'static str,
    /// A sentence; names of others in it are escaped.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

/// Why a plane could not do what it was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlaneError {
    /// What was tried, as in "install SA c3f1a2b4 (ESP, in)".
    pub operation: String,
    /// The kind of failure.
    pub kind: PlaneErrorKind,
    /// The other side's words, or an errno's name; never contains keys.
    pub detail: String,
}

/// Kinds of failure that callers tell apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaneErrorKind {
    /// The SPI (or policy) is taken by somebody else.
    Exists,
    /// The plane has no such algorithm or feature.
    Unsupported,
    /// Permission is missing.
    Permission,
    /// A table is full or memory is short.
    Exhausted,
    /// Anything else.
    Other,
}

impl fmt::Display for PlaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.operation, self.detail)
    }
}

impl std::error::Error for PlaneError {}

/// A data plane. All calls are synchronous and idempotent: doing the same thing twice is `Ok`, removing what is not
/// there is `Ok`. After an error nothing of the failed call is left.
///
/// Guarantees that every implementation gives:
/// * from `guard` to `unguard`, no packet of the guard's selectors passes in clear text, whatever happens in between;
/// * an outbound SA is used from the moment its `install` returns, in preference to older ones of the same child;
/// * packets on an older inbound SA are accepted until its `remove`.
pub trait DataPlane {
    /// Which kind this is.
    fn kind(&self) -> PlaneKind;

    /// Takes selectors under guard. Calling it again for the same child replaces the guard without a gap.
    fn guard(&mut self, spec: &GuardSpec) -> Result<(), PlaneError>;

    /// Releases a guard. Any open tunnel of the child must be closed first.
    fn unguard(&mut self, child: ChildId) -> Result<(), PlaneError>;

    /// Opens a tunnel inside its guard, or replaces selectors and outer addresses of an open one without a gap.
    fn open_tunnel(&mut self, spec: &TunnelSpec) -> Result<(), PlaneError>;

    /// Closes a tunnel; its packets meet the guard again. Its SAs are removed with it.
    fn close_tunnel(&mut self, child: ChildId) -> Result<(), PlaneError>;

    /// Installs one SA. For a new pair the caller installs the inbound one first.
    fn install(&mut self, spec: &SaSpec) -> Result<(), PlaneError>;

    /// Goes on with an SA of an earlier life of the daemon, if that can be done without using a sequence number twice and
    /// without accepting one twice. `used` is what it has counted: nobody may have sent above its sequence number, and
    /// nothing up to it will be accepted. `false` if the plane has no such SA any more; it never begins one anew. SAs
    /// are to be restored in the order of their installation, before tunnels are opened.
    fn restore(&mut self, spec: &SaSpec, used: &SaCounters) -> Result<bool, PlaneError>;

    /// Lets an outbound SA use sequence numbers up to `last`, which the caller has noted as used. Without this call an SA
    /// stops [`RESERVE`] numbers after those it was installed or restored with, in planes whose counters end with the
    /// process.
    fn reserve(&mut self, sa: SaId, last: u64);

    /// Removes one SA and returns its last counters (zero if it was not there).
    fn remove(&mut self, sa: SaId) -> Result<SaCounters, PlaneError>;

    /// Changes the outer addresses of one SA. An address that did not change stays untouched.
    fn migrate(&mut self, sa: SaId, to: NewAddresses) -> Result<(), PlaneError>;

    /// Appends the counters of every installed SA to `out`.
    fn counters(&mut self, out: &mut Vec<(SaId, SaCounters)>) -> Result<(), PlaneError>;

    /// Appends the counters of one tunnel's SAs to `out`.
    fn counters_of(&mut self, tunnel: TunnelId, out: &mut Vec<(SaId, SaCounters)>) -> Result<(), PlaneError> {
        let mut all = Vec::new();
        self.counters(&mut all)?;
        out.extend(all.into_iter().filter(|(sa, _)| sa.child.tunnel == tunnel));
        Ok(())
    }

    /// SPIs that must not be chosen for inbound SAs because somebody else uses them with one of our addresses.
    fn foreign_spis(&mut self, local: IpAddr) -> Result<Vec<Spi>, PlaneError>;

    /// The next event, if there is one. Never blocks.
    fn next_event(&mut self) -> Option<PlaneEvent>;

    /// Becomes readable when [`DataPlane::next_event`] has something; `None` for planes that are polled.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;
}
