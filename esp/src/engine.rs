//! What a data plane was told, as a value: guards, tunnels and SAs, and the tables that threads read.
//!
//! [`Engine`] follows the rules of [`cygnet_model::plane::DataPlane`] (idempotent, nothing left after an error, an
//! outbound SA is used from its installation on); a plane adds sockets and devices. [`Tables`] is an immutable snapshot:
//! a plane publishes a new one after each call, and its threads go on with the old one until they look again.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeBounds;
use std::sync::Arc;

use cygnet_model::plane::{PlaneError, PlaneErrorKind, SaCounters};
use cygnet_model::selector::within;
use cygnet_model::tunnel::{Direction, GuardAction, GuardSpec, NewAddresses, SaId, SaSpec, TunnelSpec};
use cygnet_model::{ChildId, Spi, TunnelId};

use crate::inbound::InboundSa;
use crate::outbound::OutboundSa;
use crate::parts::Parts;
use crate::spd::{Layer, MAX_PAIRS, Policy, Selectors, Spd};

/// The outer addresses of an SA with their UDP ports (RFC 3948).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OuterPath {
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
}

/// An outbound SA and where its packets go.
pub struct Outbound {
    /// The SA.
    pub sa: Arc<OutboundSa>,
    /// Its outer addresses.
    pub path: OuterPath,
}

/// Octets that every path is supposed to carry in one packet.
const OUTER_MTU: usize = 1500;
const UDP_HEADER_LEN: usize = 8;

impl Outbound {
    /// The longest inner packet that fits an outer one of [`OUTER_MTU`].
    fn largest_inner(&self) -> usize {
        let ip_header = if self.path.remote.is_ipv4() { 20 } else { 40 };
        self.sa.layout().max_inner(OUTER_MTU - ip_header - UDP_HEADER_LEN)
    }
}

/// An inbound SA and where its packets should come from.
#[derive(Clone)]
pub struct Inbound {
    /// The SA.
    pub sa: Arc<InboundSa>,
    /// Its outer addresses.
    pub path: OuterPath,
}

/// Inbound SAs by SPI.
type Part = HashMap<Spi, Inbound>;

/// What threads read: a snapshot that costs little to clone.
#[derive(Clone, Default)]
pub struct Tables {
    inbound: Parts<Part>,
    /// Outbound policies.
    pub spd: Spd,
}

impl Tables {
    /// The inbound SA with an SPI (as it stands in a packet, in host order).
    pub fn inbound(&self, spi: u32) -> Option<&Inbound> {
        let spi = Spi::new(spi)?;
        self.inbound.get(spi.value().into())?.get(&spi)
    }

    fn part_mut(&mut self, spi: Spi) -> Option<&mut Part> {
        self.inbound.get_mut(spi.value().into())
    }
}

/// Guards, tunnels and SAs.
#[derive(Default)]
pub struct Engine {
    guards: BTreeMap<ChildId, GuardSpec>,
    tunnels: BTreeMap<ChildId, TunnelSpec>,
    inbound: BTreeMap<SaId, Spi>,
    /// Each child's outbound SAs, the newest last.
    outbound: BTreeMap<ChildId, Vec<Arc<Outbound>>>,
    /// How many outbound SAs carry inner packets up to a length.
    largest: BTreeMap<usize, usize>,
    tables: Tables,
}

impl Engine {
    /// An empty one. By the seed, which nobody outside knows, flows are spread over tunnels that share them: with another one,
    /// in the next life of the process for instance, they may go other ways.
    pub fn seeded(seed: u128) -> Self {
        Self { tables: Tables { spd: Spd::seeded(seed), ..Tables::default() }, ..Self::default() }
    }

    /// The tables as they are now.
    pub fn tables(&self) -> Tables {
        self.tables.clone()
    }

    /// The guard of a child.
    pub fn guard_of(&self, child: ChildId) -> Option<&GuardSpec> {
        self.guards.get(&child)
    }

    /// Guards in force.
    pub fn guards(&self) -> impl Iterator<Item = &GuardSpec> {
        self.guards.values()
    }

    /// Takes selectors under guard, or changes a guard.
    pub fn guard(&mut self, spec: &GuardSpec) -> Result<(), PlaneError> {
        self.guard_all(std::slice::from_ref(spec))
    }

    /// The same for many children in one step. After an error nothing has changed.
    pub fn guard_all(&mut self, specs: &[GuardSpec]) -> Result<(), PlaneError> {
        if let Some(spec) = specs.iter().find(|spec| spec.local.is_empty() || spec.remote.is_empty()) {
            let what = format!("guard child {}", Name(spec.child));
            return Err(error(what, PlaneErrorKind::Other, "it has no selectors on one side"));
        }
        if let Some(spec) = specs.iter().find(|spec| !Spd::accepts(of_guard(spec))) {
            return Err(too_many(format!("guard child {}", Name(spec.child))));
        }
        for spec in specs {
            // The new one first: nobody sees the table in between, but it costs nothing.
            self.tables.spd.enter(Layer::Guard, spec.child, spec.weight, of_guard(spec));
            if let Some(old) = self.guards.insert(spec.child, spec.clone()) {
                self.tables.spd.withdraw(Layer::Guard, old.child, old.weight, of_guard(&old));
            }
            self.refresh(spec.child);
        }
        Ok(())
    }

    /// Whether a guard may be released: its tunnel must be closed.
    pub fn may_unguard(&self, child: ChildId) -> Result<(), PlaneError> {
        if self.opens_in(child) {
            let what = format!("release the guard of child {}", Name(child));
            return Err(error(what, PlaneErrorKind::Other, "its tunnel is open; close that first"));
        }
        Ok(())
    }

    /// Whether a tunnel is open inside the guard of a child: its own, or one of another that has no guard itself.
    fn opens_in(&self, child: ChildId) -> bool {
        let Some(guard) = self.guards.get(&child) else { return self.tunnels.contains_key(&child) };
        let inside = |open: &TunnelSpec| {
            open.child == child
                || (!self.guards.contains_key(&open.child)
                    && within(&open.local, &guard.local)
                    && within(&open.remote, &guard.remote))
        };
        self.tunnels.range(siblings(child)).any(|(_, open)| inside(open))
    }

    /// Releases a guard.
    pub fn unguard(&mut self, child: ChildId) -> Result<(), PlaneError> {
        self.unguard_all(&[child])
    }

    /// Releases many guards in one step. After an error nothing has changed.
    pub fn unguard_all(&mut self, children: &[ChildId]) -> Result<(), PlaneError> {
        for child in children {
            self.may_unguard(*child)?;
        }
        for child in children {
            if let Some(old) = self.guards.remove(child) {
                self.tables.spd.withdraw(Layer::Guard, old.child, old.weight, of_guard(&old));
                self.refresh(*child);
            }
        }
        Ok(())
    }

    /// Opens a tunnel, or changes an open one. Its selectors must be guarded, by its own child or by another of the same
    /// tunnel.
    pub fn open_tunnel(&mut self, spec: &TunnelSpec) -> Result<(), PlaneError> {
        let what = || format!("open the tunnel of child {}", Name(spec.child));
        if !self.is_guarded(spec) {
            return Err(error(what(), PlaneErrorKind::Other, "it has no guard; guard its selectors first"));
        }
        if !Spd::accepts(of_tunnel(spec)) {
            return Err(too_many(what()));
        }
        self.tables.spd.enter(Layer::Tunnel, spec.child, spec.weight, of_tunnel(spec));
        if let Some(old) = self.tunnels.insert(spec.child, spec.clone()) {
            self.tables.spd.withdraw(Layer::Tunnel, old.child, old.weight, of_tunnel(&old));
        }
        self.refresh(spec.child);
        Ok(())
    }

    fn is_guarded(&self, spec: &TunnelSpec) -> bool {
        let covers =
            |guard: &GuardSpec| within(&spec.local, &guard.local) && within(&spec.remote, &guard.remote);
        self.guards.contains_key(&spec.child)
            || self.guards.range(siblings(spec.child)).any(|(_, guard)| covers(guard))
    }

    /// Closes a tunnel and removes its SAs.
    pub fn close_tunnel(&mut self, child: ChildId) {
        if let Some(old) = self.tunnels.remove(&child) {
            self.tables.spd.withdraw(Layer::Tunnel, old.child, old.weight, of_tunnel(&old));
        }
        for outbound in self.outbound.remove(&child).unwrap_or_default() {
            self.forget_length(&outbound);
        }
        self.refresh(child);
        let first = Spi::new(SMALLEST_SPI).map(|spi| SaId { child, direction: Direction::In, spi });
        let of_child = first.into_iter().flat_map(|first| self.inbound.range(first..));
        let gone: Vec<SaId> = of_child.map(|(sa, _)| *sa).take_while(|sa| sa.child == child).collect();
        for sa in gone {
            self.remove(sa);
        }
    }

    /// Installs an SA.
    pub fn install(&mut self, spec: &SaSpec) -> Result<(), PlaneError> {
        self.install_after(spec, &SaCounters::default())
    }

    /// Installs an SA that has carried something before; see [`OutboundSa::after`] and [`InboundSa::after`].
    pub fn install_after(&mut self, spec: &SaSpec, used: &SaCounters) -> Result<(), PlaneError> {
        let id = spec.id;
        let refuse = |kind, detail: &str| error(format!("install {}", SaName(id)), kind, detail);
        let Some(encap) = spec.encap else {
            return Err(refuse(
                PlaneErrorKind::Unsupported,
                "the userspace data plane carries ESP in UDP only (RFC 3948); force UDP encapsulation for this peer",
            ));
        };
        let path = OuterPath {
            local: SocketAddr::new(spec.local, encap.local_port),
            remote: SocketAddr::new(spec.remote, encap.remote_port),
        };
        let refuse_sa = |e: crate::SaError| refuse(PlaneErrorKind::Unsupported, &e.to_string());
        match id.direction {
            Direction::In => {
                if self.inbound.contains_key(&id) {
                    return Ok(());
                }
                if self.tables.inbound(id.spi.value()).is_some() {
                    return Err(refuse(PlaneErrorKind::Exists, "another child uses this SPI"));
                }
                let sa = Arc::new(InboundSa::after(spec, used).map_err(refuse_sa)?);
                self.inbound.insert(id, id.spi);
                if let Some(part) = self.tables.part_mut(id.spi) {
                    part.insert(id.spi, Inbound { sa, path });
                }
            }
            Direction::Out => {
                let sas = self.outbound.entry(id.child).or_default();
                if sas.iter().any(|o| o.sa.id() == id) {
                    return Ok(());
                }
                let sa = Arc::new(OutboundSa::after(spec, used).map_err(refuse_sa)?);
                let outbound = Arc::new(Outbound { sa, path });
                *self.largest.entry(outbound.largest_inner()).or_default() += 1;
                sas.push(outbound);
                self.refresh(id.child);
            }
        }
        Ok(())
    }

    /// Lets an outbound SA use sequence numbers up to `last`.
    pub fn reserve(&self, sa: SaId, last: u64) {
        let sas = self.outbound.get(&sa.child).into_iter().flatten();
        sas.filter(|o| o.sa.id() == sa).for_each(|o| o.sa.reserve(last));
    }

    /// Removes an SA; zeros come back if it was not there.
    pub fn remove(&mut self, sa: SaId) -> SaCounters {
        match sa.direction {
            Direction::In => {
                let known = self.inbound.remove(&sa).and_then(|spi| self.tables.part_mut(spi)?.remove(&spi));
                known.map_or_else(SaCounters::default, |inbound| inbound.sa.counters())
            }
            Direction::Out => {
                let Some(sas) = self.outbound.get_mut(&sa.child) else { return SaCounters::default() };
                let Some(at) = sas.iter().position(|o| o.sa.id() == sa) else { return SaCounters::default() };
                let gone = sas.remove(at);
                if sas.is_empty() {
                    self.outbound.remove(&sa.child);
                }
                self.forget_length(&gone);
                self.refresh(sa.child);
                gone.sa.counters()
            }
        }
    }

    /// Changes the outer addresses of an SA.
    pub fn migrate(&mut self, sa: SaId, to: NewAddresses) -> Result<(), PlaneError> {
        let path = OuterPath { local: to.local, remote: to.remote };
        let found = match sa.direction {
            Direction::In => {
                let entry = self.inbound.get(&sa).and_then(|spi| self.tables.part_mut(*spi)?.get_mut(spi));
                entry.map(|inbound| inbound.path = path)
            }
            Direction::Out => {
                let sas = self.outbound.get_mut(&sa.child);
                let entry = sas.and_then(|sas| sas.iter_mut().find(|o| o.sa.id() == sa));
                let moved = entry.map(|outbound| {
                    let new = Arc::new(Outbound { sa: Arc::clone(&outbound.sa), path });
                    (std::mem::replace(outbound, Arc::clone(&new)), new)
                });
                moved.map(|(old, new)| {
                    *self.largest.entry(new.largest_inner()).or_default() += 1;
                    self.forget_length(&old);
                })
            }
        };
        found.ok_or_else(|| {
            error(format!("move {}", SaName(sa)), PlaneErrorKind::Other, "there is no such SA")
        })?;
        self.refresh(sa.child);
        Ok(())
    }

    /// The longest inner packet that every outbound SA can carry over a path of 1500 octets; `None` without an SA.
    pub fn largest_inner(&self) -> Option<usize> {
        self.largest.keys().next().copied()
    }

    fn forget_length(&mut self, outbound: &Outbound) {
        let length = outbound.largest_inner();
        if let Some(count) = self.largest.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                self.largest.remove(&length);
            }
        }
    }

    /// Appends the counters of every SA.
    pub fn counters(&self, out: &mut Vec<(SaId, SaCounters)>) {
        out.reserve(self.inbound.len() + self.outbound.len());
        self.counters_within(.., .., out);
    }

    /// Appends the counters of one tunnel's SAs.
    pub fn counters_of(&self, tunnel: TunnelId, out: &mut Vec<(SaId, SaCounters)>) {
        let children = siblings(ChildId { tunnel, index: 0 });
        let Some((low, high)) = Spi::new(SMALLEST_SPI).zip(Spi::new(u32::MAX)) else { return };
        let sa = |child: ChildId, direction, spi| SaId { child, direction, spi };
        let sas = sa(*children.start(), Direction::In, low)..=sa(*children.end(), Direction::Out, high);
        self.counters_within(sas, children, out);
    }

    fn counters_within(
        &self,
        sas: impl RangeBounds<SaId>,
        children: impl RangeBounds<ChildId>,
        out: &mut Vec<(SaId, SaCounters)>,
    ) {
        let inbound = self.inbound.range(sas).filter_map(|(id, spi)| {
            self.tables.inbound(spi.value()).map(|inbound| (*id, inbound.sa.counters()))
        });
        out.extend(inbound);
        let outbound = self.outbound.range(children).flat_map(|(_, sas)| sas);
        out.extend(outbound.map(|o| (o.sa.id(), o.sa.counters())));
    }

    /// After a change of a child's guard, tunnel or SAs.
    fn refresh(&mut self, child: ChildId) {
        let guard = self.guards.get(&child);
        let outbound = self.outbound.get(&child).and_then(|sas| sas.last()).cloned();
        let known = guard.is_some() || outbound.is_some();
        let action = guard.map_or(GuardAction::Drop, |guard| guard.action);
        self.tables.spd.set_policy(child, known.then_some(Policy { action, outbound }));
    }
}

/// Smaller ones are reserved (RFC 4303 §2.1).
const SMALLEST_SPI: u32 = 256;

/// Every child of the same IPsec tunnel.
const fn siblings(of: ChildId) -> std::ops::RangeInclusive<ChildId> {
    let tunnel = of.tunnel;
    ChildId { tunnel, index: 0 }..=ChildId { tunnel, index: u16::MAX }
}

fn of_guard(spec: &GuardSpec) -> Selectors<'_> {
    Selectors { local: &spec.local, remote: &spec.remote }
}

fn of_tunnel(spec: &TunnelSpec) -> Selectors<'_> {
    Selectors { local: &spec.local, remote: &spec.remote }
}

fn too_many(operation: String) -> PlaneError {
    let detail = format!(
        "its selectors fall apart into more than {MAX_PAIRS} pairs of prefixes; use prefixes, not ranges"
    );
    PlaneError { operation, kind: PlaneErrorKind::Unsupported, detail }
}

fn error(operation: String, kind: PlaneErrorKind, detail: &str) -> PlaneError {
    PlaneError { operation, kind, detail: detail.to_owned() }
}

struct Name(ChildId);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.tunnel.0, self.0.index)
    }
}

struct SaName(SaId);

impl fmt::Display for SaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.0.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        write!(f, "SA {} (ESP, {direction}, child {})", self.0.spi, Name(self.0.child))
    }
}

#[cfg(test)]
mod tests;
