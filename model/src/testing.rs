//! A data plane in memory: it holds what it was told, checks the caller's duties, and fails when asked to.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use crate::id::{ChildId, Spi};
use crate::plane::{DataPlane, PlaneError, PlaneErrorKind, PlaneEvent, PlaneKind, SaCounters};
use crate::selector::{PacketEnd, TrafficSelector};
use crate::tunnel::{Direction, GuardSpec, NewAddresses, SaId, SaSpec, TunnelSpec};

/// The plane of simulations.
#[derive(Default)]
pub struct MemoryPlane {
    /// Guards in force.
    pub guards: BTreeMap<ChildId, GuardSpec>,
    /// Open tunnels.
    pub tunnels: BTreeMap<ChildId, TunnelSpec>,
    /// SAs, each with the order of its installation.
    pub sas: BTreeMap<SaId, (u64, SaSpec)>,
    /// Events to hand out.
    pub events: VecDeque<PlaneEvent>,
    /// SPIs reported as foreign.
    pub foreign: Vec<Spi>,
    /// The next so many `install` and `open_tunnel` calls fail.
    pub fail_next: u32,
    /// What fails was done nevertheless, as with an answer that got lost.
    pub unsure: bool,
    installed: u64,
}

impl MemoryPlane {
    /// The outbound SA that a packet of `child` would leave by: the one installed last.
    pub fn outbound(&self, child: ChildId) -> Option<&SaSpec> {
        self.tunnels.get(&child)?;
        self.sas
            .iter()
            .filter(|(id, _)| id.child == child && id.direction == Direction::Out)
            .max_by_key(|(_, (order, _))| *order)
            .map(|(_, (_, spec))| spec)
    }

    /// The outbound SA that a packet would leave by: the newest one of the open tunnel with the narrowest selectors that
    /// match, as real planes choose. Of several that share the flows it names the first one; any of them would do.
    pub fn carrier(&self, source: &PacketEnd, destination: &PacketEnd) -> Option<&SaSpec> {
        let narrowest = |all: &[TrafficSelector], end: &PacketEnd| {
            all.iter().filter(|s| s.matches(end)).map(TrafficSelector::width).min()
        };
        let width = |t: &TunnelSpec| {
            let (local, remote) = (narrowest(&t.local, source)?, narrowest(&t.remote, destination)?);
            Some(local + remote)
        };
        let open = self.tunnels.values().filter_map(|t| Some((width(t)?, t.weight, t.child)));
        self.outbound(open.min()?.2)
    }

    /// The inbound SA with an SPI.
    pub fn inbound(&self, spi: Spi) -> Option<&SaSpec> {
        self.sas
            .iter()
            .find(|(id, _)| id.direction == Direction::In && id.spi == spi)
            .map(|(_, (_, spec))| spec)
    }

    fn fault(&mut self, operation: &str) -> Result<(), PlaneError> {
        if self.fail_next == 0 {
            return Ok(());
        }
        self.fail_next -= 1;
        Err(PlaneError {
            operation: operation.to_owned(),
            kind: PlaneErrorKind::Other,
            detail: "fault injected by the test".to_owned(),
        })
    }
}

impl DataPlane for MemoryPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Userspace
    }

    fn guard(&mut self, spec: &GuardSpec) -> Result<(), PlaneError> {
        self.guards.insert(spec.child, spec.clone());
        Ok(())
    }

    fn unguard(&mut self, child: ChildId) -> Result<(), PlaneError> {
        assert!(!self.tunnels.contains_key(&child), "unguard of {child:?} while its tunnel is open");
        self.guards.remove(&child);
        Ok(())
    }

    fn open_tunnel(&mut self, spec: &TunnelSpec) -> Result<(), PlaneError> {
        let fault = self.fault("open tunnel");
        if fault.is_ok() || self.unsure {
            self.tunnels.insert(spec.child, spec.clone());
        }
        fault
    }

    fn close_tunnel(&mut self, child: ChildId) -> Result<(), PlaneError> {
        self.tunnels.remove(&child);
        self.sas.retain(|id, _| id.child != child);
        Ok(())
    }

    fn install(&mut self, spec: &SaSpec) -> Result<(), PlaneError> {
        let fault = self.fault("install SA");
        if fault.is_err() && !self.unsure {
            return fault;
        }
        if spec.id.direction == Direction::Out {
            let inbound = self.sas.keys().any(|i| i.child == spec.id.child && i.direction == Direction::In);
            assert!(inbound, "outbound SA {:?} before any inbound one", spec.id);
        }
        assert_eq!(spec.encr_key.len(), spec.suite.encr.keymat_len());
        self.installed += 1;
        let order = self.installed;
        self.sas.entry(spec.id).or_insert_with(|| (order, spec.duplicate()));
        fault
    }

    fn restore(&mut self, spec: &SaSpec, _used: &SaCounters) -> Result<bool, PlaneError> {
        self.fault("restore")?;
        Ok(self.sas.contains_key(&spec.id))
    }

    fn reserve(&mut self, _sa: SaId, _last: u64) {}

    fn remove(&mut self, sa: SaId) -> Result<SaCounters, PlaneError> {
        self.sas.remove(&sa);
        Ok(SaCounters::default())
    }

    fn migrate(&mut self, sa: SaId, to: NewAddresses) -> Result<(), PlaneError> {
        if let Some((_, spec)) = self.sas.get_mut(&sa) {
            spec.local = to.local.ip();
            spec.remote = to.remote.ip();
            if let Some(encap) = &mut spec.encap {
                encap.local_port = to.local.port();
                encap.remote_port = to.remote.port();
            }
        }
        Ok(())
    }

    fn counters(&mut self, out: &mut Vec<(SaId, SaCounters)>) -> Result<(), PlaneError> {
        out.extend(self.sas.keys().map(|id| (*id, SaCounters::default())));
        Ok(())
    }

    fn foreign_spis(&mut self, _local: IpAddr) -> Result<Vec<Spi>, PlaneError> {
        Ok(self.foreign.clone())
    }

    fn next_event(&mut self) -> Option<PlaneEvent> {
        self.events.pop_front()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
