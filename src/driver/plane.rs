//! The data plane that was chosen, with what each kind needs besides [`DataPlane`].

use std::net::{SocketAddr, UdpSocket};

use cygnet_model::ChildId;
use cygnet_model::plane::{DataPlane, PlaneError, PlaneKind};
use cygnet_model::tunnel::GuardSpec;

use crate::plane::kernel::KernelPlane;
use crate::plane::user::{IkeSink, UserPlane, UserPlaneConfig};

/// One of the two.
pub enum Plane {
    /// The kernel forwards ESP.
    Kernel(Box<KernelPlane>),
    /// We do.
    User(Box<UserPlane>),
}

impl Plane {
    /// Opens the plane. `ike_sink` gets the IKE messages that our own plane finds among ESP.
    pub fn open(kind: PlaneKind, ike_sink: IkeSink) -> Result<Self, PlaneError> {
        Ok(match kind {
            PlaneKind::Kernel => Self::Kernel(Box::new(KernelPlane::open()?)),
            PlaneKind::Userspace => {
                Self::User(Box::new(UserPlane::new(&UserPlaneConfig::default(), ike_sink)?))
            }
        })
    }

    /// The calls that both kinds have.
    pub fn port(&mut self) -> &mut dyn DataPlane {
        match self {
            Self::Kernel(p) => p.as_mut(),
            Self::User(p) => p.as_mut(),
        }
    }

    /// The same, for questions.
    pub fn port_ref(&self) -> &dyn DataPlane {
        match self {
            Self::Kernel(p) => p.as_ref(),
            Self::User(p) => p.as_ref(),
        }
    }

    /// Gives our own plane a 4500 socket to read.
    pub fn add_socket(&mut self, local: SocketAddr, socket: UdpSocket) -> Result<(), PlaneError> {
        match self {
            Self::Kernel(_) => Ok(()),
            Self::User(p) => p.add_socket(local, socket),
        }
    }

    /// Takes the selectors of many children under guard.
    pub fn guard_all(&mut self, specs: &[GuardSpec]) -> Result<(), PlaneError> {
        match self {
            Self::Kernel(p) => specs.iter().try_for_each(|spec| p.guard(spec)),
            Self::User(p) => p.guard_all(specs),
        }
    }

    /// Releases the guards of many children; their tunnels must be closed.
    pub fn unguard_all(&mut self, children: &[ChildId]) -> Result<(), PlaneError> {
        match self {
            Self::Kernel(p) => children.iter().try_for_each(|child| p.unguard(*child)),
            Self::User(p) => p.unguard_all(children),
        }
    }

    /// Removes what an earlier daemon left and nobody wants any more, once all guards are in force.
    pub fn settle(&mut self) -> Result<(), PlaneError> {
        match self {
            Self::Kernel(p) => p.sweep().map(|_| ()),
            Self::User(p) => p.settle(),
        }
    }

    /// Puts right what others changed, after events were lost.
    pub fn resync(&mut self) -> Result<(), PlaneError> {
        match self {
            Self::Kernel(p) => p.resync().map(|_| ()),
            Self::User(p) => p.resync().map(|_| ()),
        }
    }

    /// Ends the plane. Guards must have been released.
    pub fn shut_down(self) -> Result<(), PlaneError> {
        match self {
            Self::Kernel(_) => Ok(()),
            Self::User(p) => p.shut_down(),
        }
    }
}
