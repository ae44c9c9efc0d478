//! The data plane that was chosen, with what each kind needs besides [`DataPlane`], and the wall behind it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;

use cygnet_model::plane::{DataPlane, PlaneError, PlaneKind};
use cygnet_model::tunnel::GuardSpec;

use crate::plane::kernel::KernelPlane;
use crate::plane::user::{IkeSink, UserPlane, UserPlaneConfig};
use crate::plane::wall::{Protection, Wall};

/// One of the two planes, and the wall.
pub struct Plane {
    esp: Esp,
    wall: Wall,
}

enum Esp {
    /// The kernel forwards ESP.
    Kernel(Box<KernelPlane>),
    /// We do.
    User(Box<UserPlane>),
}

impl Plane {
    /// Opens the plane. `own` are the outer addresses; `ike_sink` gets the IKE messages that our own plane finds among
    /// ESP.
    pub fn open(
        kind: PlaneKind,
        own: impl IntoIterator<Item = IpAddr>,
        ike_sink: IkeSink,
    ) -> Result<Self, PlaneError> {
        let (esp, protection) = match kind {
            PlaneKind::Kernel => (Esp::Kernel(Box::new(KernelPlane::open()?)), Protection::Route),
            PlaneKind::Userspace => {
                let config = UserPlaneConfig::default();
                let plane = UserPlane::new(&config, ike_sink)?;
                (Esp::User(Box::new(plane)), Protection::Device(config.tun_name))
            }
        };
        Ok(Self { esp, wall: Wall::open(protection, own) })
    }

    /// The calls that both kinds have. Guards go by [`Self::guard`], or the wall misses them.
    pub fn port(&mut self) -> &mut dyn DataPlane {
        match &mut self.esp {
            Esp::Kernel(p) => p.as_mut(),
            Esp::User(p) => p.as_mut(),
        }
    }

    /// The same, for questions.
    pub fn port_ref(&self) -> &dyn DataPlane {
        match &self.esp {
            Esp::Kernel(p) => p.as_ref(),
            Esp::User(p) => p.as_ref(),
        }
    }

    /// The wall, for questions.
    pub const fn wall(&mut self) -> &mut Wall {
        &mut self.wall
    }

    /// Takes selectors under guard.
    pub fn guard(&mut self, spec: &GuardSpec) -> Result<(), PlaneError> {
        self.port().guard(spec)?;
        self.wall.guard(spec);
        Ok(())
    }

    /// Gives our own plane a 4500 socket to read.
    pub fn add_socket(&mut self, local: SocketAddr, socket: UdpSocket) -> Result<(), PlaneError> {
        match &mut self.esp {
            Esp::Kernel(_) => Ok(()),
            Esp::User(p) => p.add_socket(local, socket),
        }
    }

    /// Removes what an earlier daemon left and nobody wants any more, once all guards are in force, and builds the wall.
    pub fn settle(&mut self) -> Result<(), PlaneError> {
        self.wall.settle();
        match &mut self.esp {
            Esp::Kernel(p) => p.sweep().map(|_| ()),
            Esp::User(p) => p.settle(),
        }
    }

    /// Puts right what others changed, after events were lost.
    pub fn resync(&mut self) -> Result<(), PlaneError> {
        match &mut self.esp {
            Esp::Kernel(p) => p.resync().map(|_| ()),
            Esp::User(p) => p.resync().map(|_| ()),
        }
    }

    /// Becomes readable when the wall may have been changed by others.
    pub fn wall_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wall.event_fd()
    }

    /// Ends the plane and takes the wall down. Guards must have been released.
    pub fn shut_down(mut self) -> Result<(), PlaneError> {
        let wall = self.wall.release();
        let esp = match self.esp {
            Esp::Kernel(_) => Ok(()),
            Esp::User(p) => p.shut_down(),
        };
        esp.and(wall)
    }
}
