//! Where the guards of the plane stand in the kernel: what is guarded, and the rules and routes that follow from it and
//! from this host's addresses. Shared by the plane's owner, who changes the guards, and by the thread that mends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use cygnet_model::ChildId;
use cygnet_model::tunnel::{GuardSpec, Source};
use cygnet_xfrm::address::OwnAddress;
use cygnet_xfrm::link::RtnlError;
use cygnet_xfrm::route::Family;
use cygnet_xfrm::rule::Rule;

use super::device::Device;
use super::layout::{Host, Layout};
use super::rules::{Repaired, Rules};
use crate::plane::near::attached;

/// See the [module](self).
pub(super) struct Placement {
    rules: Rules,
    guards: BTreeMap<ChildId, GuardSpec>,
    sockets: BTreeSet<SocketAddr>,
    own: BTreeSet<OwnAddress>,
    /// Those of them that can be a source.
    usable: BTreeSet<IpAddr>,
    sources: BTreeMap<ChildId, Source>,
}

impl Placement {
    /// Takes note of what an earlier process left.
    pub fn new(device: Device) -> Result<Self, RtnlError> {
        let mut rules = Rules::open(Some(device))?;
        let own = rules.own_addresses()?;
        let usable = rules.sources(&own)?;
        Ok(Self {
            rules,
            guards: BTreeMap::new(),
            sockets: BTreeSet::new(),
            own,
            usable,
            sources: BTreeMap::new(),
        })
    }

    /// The index of the TUN device, which changes when somebody deletes it and it is made anew.
    pub fn tun_index(&self) -> u32 {
        self.rules.device().map_or(0, Device::index)
    }

    /// Changes the MTU of the TUN device.
    pub fn set_mtu(&mut self, mtu: u16) -> Result<(), RtnlError> {
        self.rules.set_mtu(mtu)
    }

    /// Sets guards and takes others away, in one step. After an error all is as before.
    pub fn guard<'a>(
        &mut self,
        set: impl IntoIterator<Item = &'a GuardSpec>,
        take: &[ChildId],
    ) -> Result<(), RtnlError> {
        let mut before = BTreeMap::new();
        for child in take {
            before.insert(*child, self.guards.remove(child));
        }
        for guard in set {
            let old = self.guards.insert(guard.child, guard.clone());
            before.entry(guard.child).or_insert(old);
        }
        let result = self.lay_out();
        if result.is_err() {
            for (child, old) in before {
                match old {
                    Some(old) => self.guards.insert(child, old),
                    None => self.guards.remove(&child),
                };
            }
        }
        result
    }

    /// Keeps IKE and ESP of one of our addresses out of the tunnels, or no longer. After an error all is as before.
    pub fn bypass(&mut self, local: SocketAddr, wanted: bool) -> Result<(), RtnlError> {
        let changed = if wanted { self.sockets.insert(local) } else { self.sockets.remove(&local) };
        if !changed {
            return Ok(());
        }
        let result = self.lay_out();
        if result.is_err() {
            if wanted {
                self.sockets.remove(&local)
            } else {
                self.sockets.insert(local)
            };
        }
        result
    }

    fn lay_out(&mut self) -> Result<(), RtnlError> {
        let Self { rules, guards, sockets, own, usable, sources } = self;
        let attached = attached(own.iter());
        let tun = rules.device().map(|device| device.name.clone()).unwrap_or_default();
        let host = Host { tun: &tun, sockets, own: usable, sources, attached: &attached };
        let layout = Layout::new(guards.values(), &host, &mut rules.tables);
        rules.apply(&layout)
    }

    /// Which source own packets into each child get. After an error all is as before.
    pub fn follow_sources(&mut self, sources: BTreeMap<ChildId, Source>) -> Result<(), RtnlError> {
        if sources == self.sources {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.sources, sources);
        let result = self.lay_out();
        if result.is_err() {
            self.sources = before;
        }
        result
    }

    /// Follows changes of this host's addresses.
    pub fn follow_addresses(&mut self) -> Result<(), RtnlError> {
        let now = self.rules.own_addresses()?;
        let usable = self.rules.sources(&now)?;
        if now == self.own && usable == self.usable {
            return Ok(());
        }
        let before = (std::mem::replace(&mut self.own, now), std::mem::replace(&mut self.usable, usable));
        let result = self.lay_out();
        if result.is_err() {
            (self.own, self.usable) = before;
        }
        result
    }

    /// Puts back what others have taken away: the device or its state, routes, rules.
    pub fn repair(&mut self) -> Result<Repaired, RtnlError> {
        self.rules.repair()
    }

    /// See [`Rules::settle`].
    pub fn settle(&mut self) -> Result<(), RtnlError> {
        self.rules.settle()
    }

    /// Removes all rules and routes of ours.
    pub fn release(&mut self) -> Result<(), RtnlError> {
        self.guards.clear();
        self.rules.release()
    }

    /// See [`Rules::tidy`].
    pub fn tidy(&mut self) -> Result<bool, RtnlError> {
        self.rules.tidy()
    }

    /// See [`Rules::in_front`].
    pub fn in_front(&self) -> &[Rule] {
        self.rules.in_front()
    }

    /// See [`Rules::trouble`].
    pub fn trouble(&self) -> Option<&str> {
        self.rules.trouble()
    }

    /// Whether this host has addresses of a family at all.
    pub fn has_family(&mut self, family: Family) -> Result<bool, RtnlError> {
        self.rules.has_family(family)
    }
}
