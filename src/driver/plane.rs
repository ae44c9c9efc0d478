//! The data plane that was chosen, with what each kind needs besides [`DataPlane`].

use std::net::{SocketAddr, UdpSocket};

use cygnet_model::plane::{DataPlane, Obstacle, PlaneError, PlaneKind};
use cygnet_model::tunnel::GuardSpec;

use crate::config::model::Guards;
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

    /// Takes a socket back that [`Self::add_socket`] gave.
    pub fn remove_socket(&mut self, local: SocketAddr) -> Result<(), PlaneError> {
        match self {
            Self::Kernel(_) => Ok(()),
            Self::User(p) => p.remove_socket(local),
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

    /// Looks whether the guards are still in force and puts them right; says how much had to be put right.
    pub fn audit(&mut self) -> Result<usize, PlaneError> {
        match self {
            Self::Kernel(p) => p.audit(),
            // It looks by itself, and tells by events.
            Self::User(_) => Ok(0),
        }
    }

    /// What of others stands in the way of the guards.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        match self {
            Self::Kernel(p) => p.obstacles(),
            Self::User(p) => p.obstacles(),
        }
    }

    /// Ends the plane: tunnels are closed, and the guards stay in force or go.
    pub fn end(self, guards: Guards) -> Result<(), PlaneError> {
        match (self, guards) {
            (Self::Kernel(mut p), Guards::Keep) => p.park(),
            (Self::Kernel(mut p), Guards::Release) => p.release(),
            // The TUN device goes with the plane; the rules lead into a blackhole from then on.
            (Self::User(p), Guards::Keep) => {
                drop(p);
                Ok(())
            }
            (Self::User(p), Guards::Release) => p.shut_down(),
        }
    }
}
