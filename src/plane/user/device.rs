//! The TUN device: how it is now, and how it is made anew when somebody deletes, renames or takes it away.

use std::sync::Arc;

use cygnet_xfrm::link::{Rtnl, RtnlError};

use super::shared::Shared;
use crate::plane::pieces;
use crate::sys::tun::{Tun, TunOffload};

/// See the [module](self).
pub(super) struct Device {
    rtnl: Rtnl,
    shared: Arc<Shared>,
    pub name: String,
    wanted: TunOffload,
    index: u32,
    /// What its MTU shall be, in octets.
    pub mtu: u16,
}

impl Device {
    /// Takes up the device from which `shared` reads.
    pub fn new(shared: Arc<Shared>, name: &str, wanted: TunOffload, mtu: u16) -> Result<Self, RtnlError> {
        let rtnl = Rtnl::open()?;
        let index = rtnl.set_up(name, mtu.into())?.index;
        Ok(Self { rtnl, shared, name: name.to_owned(), wanted, index, mtu })
    }

    /// The index of the device from which packets are read.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// How it shall be.
    pub fn wanted(&self) -> pieces::Device {
        pieces::Device { ours: true, mtu: self.mtu.into(), up: true }
    }

    /// What has its name now.
    pub fn look(&self) -> Result<Option<pieces::Device>, RtnlError> {
        let link = self.rtnl.link(&self.name)?;
        Ok(link.map(|link| pieces::Device { ours: link.index == self.index, mtu: link.mtu, up: link.up }))
    }

    /// Makes a device in the place of the one that is gone, and lets the threads go on with it. What is left of the old one
    /// goes with its last reader.
    pub fn renew(&mut self) -> Result<(), RtnlError> {
        let tun = Tun::create(&self.name, self.wanted).map_err(|e| RtnlError {
            operation: format!("create TUN device {}", self.name),
            errno: e.raw_os_error(),
            detail: e.to_string(),
        })?;
        self.index = self.rtnl.set_up(&self.name, self.mtu.into())?.index;
        self.shared.tun.store(Arc::new(tun));
        self.shared.wake();
        Ok(())
    }

    /// Takes it up with its MTU.
    pub fn set_up(&self) -> Result<(), RtnlError> {
        self.rtnl.set_up(&self.name, self.mtu.into()).map(|_| ())
    }
}
