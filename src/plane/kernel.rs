//! The kernel's ESP as a data plane.
//!
//! What it holds: which policies are wished (`spd`) and which states are installed. The kernel is the truth;
//! after lost answers it is read anew.
//!
//! After a start, policies and states of an earlier daemon are still there. Policies stay in force until
//! [`KernelPlane::sweep`], and guards that are taken up meanwhile replace them in place, so that no packet gets out in
//! clear text between. States that are installed again with the same keys are taken over with their sequence numbers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use cygnet_esp::inner::InnerHeader;
use cygnet_model::plane::{
    Acquire, DataPlane, Obstacle, PlaneError, PlaneErrorKind, PlaneEvent, PlaneKind, SaCounters,
};
use cygnet_model::tunnel::{Direction, GuardSpec, Mark, NewAddresses, SaId, SaSpec, TunnelSpec};
use cygnet_model::{ChildId, Reqid, Spi, TunnelId};
use cygnet_reconcile::Step;
use cygnet_xfrm::dump::SaEntry;
use cygnet_xfrm::monitor::{Event, Monitor};
use cygnet_xfrm::moving::Move;
use cygnet_xfrm::policy::{Policy, PolicyAction, PolicyChange, PolicyKey};
use cygnet_xfrm::route::Prefix;
use cygnet_xfrm::sa::SaKey;
use cygnet_xfrm::{Errno, NetlinkError, Xfrm};

use super::echo::Lead;
use super::foreign;
use super::near::near;
use super::spd::{self, Layer, Spd};

/// A packet flood must not become a flood of acquires.
const ACQUIRE_INTERVAL: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug)]
pub struct KernelPlane {
    xfrm: Xfrm,
    monitor: Monitor,
    spd: Spd,
    sas: BTreeMap<SaId, Installed>,
    by_key: BTreeMap<SaKey, SaId>,
    tunnels: BTreeMap<ChildId, TunnelSpec>,
    orphans: BTreeMap<SaKey, SaEntry>,
    inherited: BTreeSet<ChildId>,
    installs: u64,
    acquires: BTreeMap<ChildId, Instant>,
    nonce: u16,
    guards: BTreeMap<ChildId, GuardSpec>,
    /// Own addresses and attached networks.
    attached: BTreeSet<Prefix>,
    /// Others changed policies since they were last seen.
    drifted: bool,
    /// How many policies there were when ours were last known to be in force; `None` after changes of ours.
    counts: Option<[u32; 3]>,
    /// When policies were last put right because others changed some, and how long that took.
    mended: Option<(Instant, Duration)>,
    /// Events to hand out.
    events: VecDeque<PlaneEvent>,
}

/// Smaller ones are reserved (RFC 4303 §2.1).
const SMALLEST_SPI: u32 = 256;

/// What is known of a state.
#[derive(Clone, Copy, Debug)]
struct Installed {
    key: SaKey,
    source: IpAddr,
    ports: Option<(u16, u16)>,
    reqid: Reqid,
    mark: Option<Mark>,
    /// Counts installations: the highest number of a child is the outbound SA to use.
    order: u64,
    /// Its last counters, once the kernel has no such state any more.
    ended: Option<SaCounters>,
}

/// What [`KernelPlane::sweep`] removed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Swept {
    /// States that nobody installed again.
    pub states: usize,
    /// Policies that no guard asks for.
    pub policies: usize,
}

impl KernelPlane {
    /// Opens the plane in the current network namespace and looks at what an earlier daemon left. Changes nothing.
    ///
    /// # Errors
    /// Without XFRM or CAP_NET_ADMIN.
    pub fn open() -> Result<Self, PlaneError> {
        let fail = |e| error("open the kernel data plane", &e);
        // Listening first: policies that acquire tell nobody otherwise.
        let monitor = Monitor::open().map_err(fail)?;
        let mut plane = Self {
            xfrm: Xfrm::open().map_err(fail)?,
            monitor,
            drifted: false,
            counts: None,
            mended: None,
            events: VecDeque::new(),
            spd: Spd::default(),
            sas: BTreeMap::new(),
            by_key: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            orphans: BTreeMap::new(),
            inherited: BTreeSet::new(),
            installs: 0,
            acquires: BTreeMap::new(),
            nonce: 0,
            guards: BTreeMap::new(),
            attached: BTreeSet::new(),
        };
        plane.monitor.watch(plane.xfrm.port()).map_err(fail)?;
        plane.observe_policies().map_err(fail)?;
        plane.inherited = plane.spd.inherit();
        let states = plane.xfrm.dump_sas().map_err(fail)?;
        plane.orphans =
            states.into_iter().filter(|s| Reqid(s.reqid).child().is_some()).map(|s| (s.key, s)).collect();
        Ok(plane)
    }

    /// States that an earlier daemon left and that nobody has installed again yet.
    pub fn orphans(&self) -> impl Iterator<Item = &SaEntry> {
        self.orphans.values()
    }

    /// Removes what an earlier daemon left and nobody has taken up again: states first, then policies that no guard
    /// asks for. Call it when all guards are up and all SAs that could be restored are installed.
    ///
    /// # Errors
    /// Goes on after errors and returns the first.
    pub fn sweep(&mut self) -> Result<Swept, PlaneError> {
        let mut first = None;
        let mut swept = Swept::default();
        for (key, state) in std::mem::take(&mut self.orphans) {
            match self.xfrm.delete_sa(key, state.mark) {
                Ok(_) => swept.states += 1,
                Err(e) => {
                    first.get_or_insert(error(&format!("remove the orphan SA {}", key.spi), &e));
                    self.orphans.insert(key, state);
                }
            }
        }
        for child in std::mem::take(&mut self.inherited) {
            self.spd.wish(Layer::Inherited, child, vec![]);
        }
        self.spd.condemn_orphans();
        swept.policies = self.spd.plan().steps().filter(|step| matches!(step, Step::Remove(_))).count();
        let result = self.apply("remove orphan policies");
        first.map_or(result, Err).map(|()| swept)
    }

    /// Reads the kernel's policies anew and puts back what is missing or was changed by others. Returns how many
    /// policies had to be put right.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn resync(&mut self) -> Result<usize, PlaneError> {
        let operation = "put the kernel's policies right";
        self.observe_policies().map_err(|e| error(operation, &e))?;
        let due = self.spd.plan().len();
        self.apply(operation).map(|()| due)
    }

    /// Looks whether all policies are still in force, as far as the kernel's numbers tell, and puts right what is not.
    /// Returns how many had to be put right.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn audit(&mut self) -> Result<usize, PlaneError> {
        if !self.drifted && self.counts.is_some() {
            // A kernel that does not tell is read each time.
            let now = self.xfrm.policy_counts().ok();
            if now == self.counts {
                return Ok(0);
            }
        }
        self.drifted = false;
        // What cannot be read now is read the next time.
        self.counts = None;
        let repaired = self.resync()?;
        self.counts = self.xfrm.policy_counts().ok();
        Ok(repaired)
    }

    /// Whether anything of ours was in the kernel when the plane was opened, or has been put there since.
    pub fn holds_policies(&self) -> bool {
        !self.spd.is_empty()
    }

    /// Follows the own addresses and attached networks, which guards may let by; see [`super::near`].
    ///
    /// # Errors
    /// As the kernel says; goes on after errors and returns the first.
    pub fn follow(&mut self, attached: &BTreeSet<Prefix>) -> Result<(), PlaneError> {
        if self.attached == *attached {
            return Ok(());
        }
        self.attached.clone_from(attached);
        for spec in self.guards.values() {
            self.spd.wish(Layer::Near, spec.child, spd::near_policies(&near(spec, attached)));
        }
        self.apply("let neighbours by")
    }

    /// What other programs have in the kernel that decides about guarded packets before the guards do.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        let theirs: Vec<Policy> = self.spd.foreign().copied().collect();
        if theirs.is_empty() {
            return Vec::new();
        }
        let ours: Vec<Policy> = self.spd.winners().collect();
        foreign::in_front(&theirs, ours.iter())
    }

    /// Closes all tunnels and removes all SAs. The guards stay in force, also after the process.
    ///
    /// # Errors
    /// Goes on after errors and returns the first.
    pub fn park(&mut self) -> Result<(), PlaneError> {
        let children: BTreeSet<ChildId> =
            self.tunnels.keys().copied().chain(self.sas.keys().map(|sa| sa.child)).collect();
        let mut first = Ok(());
        for child in children {
            let closed = self.close_tunnel(child);
            first = first.and(closed);
        }
        first
    }

    /// Removes everything of ours. From here on guarded packets pass as if there had been no gateway.
    ///
    /// # Errors
    /// Goes on after errors and returns the first.
    pub fn release(&mut self) -> Result<(), PlaneError> {
        let parked = self.park();
        self.acquires.clear();
        self.guards.clear();
        self.spd.withdraw();
        parked.and(self.apply("release the guards"))
    }

    /// Takes the selectors of many children under guard, with as few waits for the kernel as messages fit into windows.
    ///
    /// # Errors
    /// As the kernel says. Then all guards are as before.
    pub fn guard_all(&mut self, specs: &[GuardSpec]) -> Result<(), PlaneError> {
        let operation = match specs {
            [] => return Ok(()),
            [one] => format!("guard {}", name(one.child)),
            all => format!("guard {} children", all.len()),
        };
        let mut wishes = Vec::with_capacity(specs.len());
        for spec in specs {
            self.nonce = self.nonce.wrapping_add(1);
            let policies = spd::guard_policies(spec, self.nonce);
            wishes.push(policies.map_err(|e| error(&format!("guard {}", name(spec.child)), &e))?);
        }
        let keys: Vec<PolicyKey> = wishes.iter().flatten().map(|p| p.key).collect();
        let mut before = Vec::with_capacity(specs.len());
        for (spec, policies) in specs.iter().zip(wishes) {
            self.spd.weigh(spec.child, spec.weight);
            before.push((spec.child, self.spd.wish(Layer::Guard, spec.child, policies)));
        }
        let result = self.apply(&operation).and_then(|()| self.refuse_taken(&keys, &operation));
        if result.is_err() {
            // The first of several wishes of a child is what was there before.
            for (child, policies) in before.into_iter().rev() {
                self.spd.wish(Layer::Guard, child, policies);
            }
            // If this fails too, the steps stay pending and come with the next change.
            let _ = self.apply(&operation);
            return result;
        }
        for spec in specs {
            self.guards.insert(spec.child, spec.clone());
            // Where somebody else has such a place, that is told as an obstacle.
            self.spd.wish(Layer::Near, spec.child, spd::near_policies(&near(spec, &self.attached)));
        }
        self.apply(&operation)
    }

    fn observe_policies(&mut self) -> Result<(), NetlinkError> {
        self.spd.observe(self.xfrm.dump_policies()?);
        Ok(())
    }

    /// Changes the wishes of a child; after an error they are as before.
    fn change(
        &mut self,
        layer: Layer,
        child: ChildId,
        policies: Vec<Policy>,
        operation: &str,
    ) -> Result<(), PlaneError> {
        let keys: Vec<PolicyKey> = policies.iter().map(|p| p.key).collect();
        let before = self.spd.wish(layer, child, policies);
        let result = self.apply(operation).and_then(|()| self.refuse_taken(&keys, operation));
        if result.is_err() {
            self.spd.wish(layer, child, before);
            // If this fails too, the steps stay pending and come with the next change.
            let _ = self.apply(operation);
        }
        result
    }

    /// Does what is pending. Lost answers, and places that turn out to be taken, are made good by reading the policies
    /// once.
    fn apply(&mut self, operation: &str) -> Result<(), PlaneError> {
        let mut result = self.apply_once();
        let read_anew = |e: &NetlinkError| e.is_unsure() || e.errno() == Some(Errno::EEXIST);
        if result.as_ref().is_err_and(read_anew) {
            result = self.observe_policies().and_then(|()| self.apply_once());
        }
        result.map_err(|e| error(operation, &e))
    }

    /// Refuses to go on where somebody else has one of the places, and names the owner.
    fn refuse_taken(&self, keys: &[PolicyKey], operation: &str) -> Result<(), PlaneError> {
        match keys.iter().find_map(|key| self.spd.foreign_at(key)) {
            None => Ok(()),
            Some(theirs) => Err(PlaneError {
                operation: operation.to_owned(),
                kind: PlaneErrorKind::Exists,
                detail: format!(
                    "another IPsec program has a policy for the same packets, {}; take them out of one of the two \
                     configurations (ip xfrm policy shows it)",
                    foreign::describe(theirs)
                ),
            }),
        }
    }

    fn apply_once(&mut self) -> Result<(), NetlinkError> {
        let mut lost = None;
        let outcome = self.spd.plan().carry_out(|steps| {
            let changes: Vec<PolicyChange> = steps.iter().map(spd::change).collect();
            self.counts = None;
            let results = self.xfrm.change_policies(&changes).unwrap_or_else(|e| {
                lost = Some(e);
                Vec::new()
            });
            // An overrun shows again when events are asked for.
            self.drifted |= self.monitor.drain().is_err();
            for (step, _) in steps.iter().zip(&results).filter(|(_, result)| result.is_ok()) {
                self.spd.applied(step);
            }
            results
        });
        if let Some(e) = lost.or(outcome.refused.into_iter().next().map(|(_, e)| e)) {
            return Err(e);
        }
        self.spd.settled();
        Ok(())
    }

    /// Takes over a state that an earlier daemon left, if it is the same SA.
    fn adopt(&mut self, spec: &SaSpec) -> Result<bool, NetlinkError> {
        let key = SaKey::of(spec);
        let Some(orphan) = self.orphans.remove(&key) else { return Ok(false) };
        let adopted = self.adopt_orphan(spec, key, &orphan);
        if adopted.is_err() {
            // It goes with the others that nobody takes up.
            self.orphans.insert(key, orphan);
        }
        adopted
    }

    fn adopt_orphan(&mut self, spec: &SaSpec, key: SaKey, orphan: &SaEntry) -> Result<bool, NetlinkError> {
        if !self.xfrm.has_keys_of(spec)? {
            self.xfrm.delete_sa(key, orphan.mark)?;
            return Ok(false);
        }
        let installed = self.installed(spec);
        if (orphan.source, orphan.ports, orphan.reqid) != (installed.source, installed.ports, spec.reqid.0) {
            let to = Move {
                source: installed.source,
                destination: key.destination,
                ports: installed.ports,
                reqid: spec.reqid,
            };
            self.xfrm.move_sa(key, orphan.mark, &to)?;
        }
        self.note(spec.id, installed);
        Ok(true)
    }

    fn installed(&mut self, spec: &SaSpec) -> Installed {
        self.installs += 1;
        Installed::of(spec, self.installs)
    }

    fn note(&mut self, id: SaId, installed: Installed) {
        self.by_key.insert(installed.key, id);
        self.sas.insert(id, installed);
    }

    /// The outbound SA that a child shall use.
    fn newest_outbound(&self, child: ChildId) -> Option<Spi> {
        self.newest(child).map(|(id, _)| id.spi)
    }

    fn newest(&self, child: ChildId) -> Option<(&SaId, &Installed)> {
        self.of_child(child)
            .filter(|(id, sa)| id.direction == Direction::Out && sa.ended.is_none())
            .max_by_key(|(_, sa)| sa.order)
    }

    /// The SAs of a child.
    fn of_child(&self, child: ChildId) -> impl Iterator<Item = (&SaId, &Installed)> {
        let first = Spi::new(SMALLEST_SPI).map(|spi| SaId { child, direction: Direction::In, spi });
        let from = first.into_iter().flat_map(|first| self.sas.range(first..));
        from.take_while(move |(id, _)| id.child == child)
    }

    /// Makes the policies of an open tunnel say what is known of it now.
    fn refresh_tunnel(&mut self, child: ChildId, operation: &str) -> Result<(), PlaneError> {
        let Some(spec) = self.tunnels.get(&child) else { return Ok(()) };
        let policies =
            spd::tunnel_policies(spec, self.newest_outbound(child)).map_err(|e| error(operation, &e))?;
        self.change(Layer::Tunnel, child, policies, operation)
    }

    /// How a packet with this header leaves by a tunnel; `None` if no open child of it takes such packets. `contested`: others may
    /// take them as well.
    pub fn lead(&self, tunnel: TunnelId, header: &InnerHeader, contested: bool) -> Option<Lead> {
        let (from, to) = (header.source_end(), header.destination_end());
        let fits = |spec: &&TunnelSpec| {
            spec.local.iter().any(|s| s.matches(&from)) && spec.remote.iter().any(|s| s.matches(&to))
        };
        let first = ChildId { tunnel, index: 0 };
        let open = self.tunnels.range(first..).take_while(|(child, _)| child.tunnel == tunnel);
        let spec = open.map(|(_, spec)| spec).find(fits)?;
        if !contested || spec.mark.is_some() {
            return Some(Lead::Policies(spec.mark));
        }
        // Where it is, which may not be where the tunnel is said to be: a template of a state that is not there makes a larval one.
        let (_, sa) = self.newest(spec.child)?;
        let (source, destination, spi) = (sa.source, sa.key.destination, Some(sa.key.spi));
        let by = PolicyAction::Protect { source, destination, spi };
        Some(Lead::Sa(spd::socket_policy(sa.reqid, by, header.dst.is_ipv6())))
    }

    /// The tunnel of an inbound SA.
    pub fn tunnel_of(&self, spi: Spi) -> Option<TunnelId> {
        let first = SaKey { spi, destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let named = self.by_key.range(first..).take_while(|(key, _)| key.spi == spi);
        named.map(|(_, sa)| sa).find(|sa| sa.direction == Direction::In).map(|sa| sa.child.tunnel)
    }

    /// Removes the kernel's state and returns its last counters.
    fn take_state(&mut self, sa: &Installed) -> Result<SaCounters, NetlinkError> {
        if let Some(counters) = sa.ended {
            return Ok(counters);
        }
        let entry = self.xfrm.sa(sa.key, sa.mark)?;
        self.xfrm.delete_sa(sa.key, sa.mark)?;
        self.by_key.remove(&sa.key);
        Ok(entry.map_or_else(SaCounters::default, |e| e.counters))
    }

    fn event(&mut self, event: Event) -> Option<PlaneEvent> {
        match event {
            Event::Acquire { reqid, packet } => {
                let child = Reqid(reqid).child()?;
                let now = Instant::now();
                if self.acquires.get(&child).is_some_and(|last| now.duration_since(*last) < ACQUIRE_INTERVAL)
                {
                    return None;
                }
                self.acquires.insert(child, now);
                // Late events of a child that has been opened or removed meanwhile would confuse.
                (self.spd.has(Layer::Guard, child) && !self.spd.has(Layer::Tunnel, child))
                    .then_some(PlaneEvent::Acquire(Acquire { child, packet }))
            }
            Event::Expired { state, hard } => {
                let sa = *self.by_key.get(&state.key)?;
                if hard {
                    self.on_gone(state.key, state.counters);
                }
                Some(PlaneEvent::Expired { sa, hard })
            }
            Event::Policies => {
                self.drifted = true;
                None
            }
            Event::StateRemoved { key } => self.on_removed(key),
            Event::StatesFlushed => {
                let gone: Vec<SaKey> = self.by_key.keys().copied().collect();
                let ended: Vec<PlaneEvent> =
                    gone.into_iter().filter_map(|key| self.on_removed(key)).collect();
                self.events.extend(ended);
                None
            }
            Event::Mapping { key, remote, .. } => {
                Some(PlaneEvent::PeerMoved { sa: *self.by_key.get(&key)?, remote })
            }
        }
    }
}

impl KernelPlane {
    /// The kernel has no such state any more.
    fn on_gone(&mut self, key: SaKey, counters: SaCounters) -> Option<SaId> {
        let sa = self.by_key.remove(&key)?;
        if let Some(installed) = self.sas.get_mut(&sa) {
            installed.ended = Some(counters);
        }
        // If it fails, packets meet a policy whose state is gone: dropped, not sent in clear text.
        let _ = self.refresh_tunnel(sa.child, "use another SA");
        Some(sa)
    }

    /// Somebody else removed a state: for the protocol that is the same as its end.
    fn on_removed(&mut self, key: SaKey) -> Option<PlaneEvent> {
        let sa = self.on_gone(key, SaCounters::default())?;
        Some(PlaneEvent::Expired { sa, hard: true })
    }

    /// Puts policies right after others changed some.
    fn mend(&mut self) -> Option<PlaneEvent> {
        let began = Instant::now();
        // Somebody who changes policies all the time must not keep us reading all the time; the audit comes anyway.
        if self.mended.is_some_and(|(at, took)| began.duration_since(at) < took * 10) {
            self.drifted = true;
            return None;
        }
        let mended = self.resync();
        self.mended = Some((began, began.elapsed()));
        match mended {
            Ok(0) => None,
            Ok(count) => Some(PlaneEvent::Repaired { what: "policies", count }),
            // The owner tries again, and tells why it fails.
            Err(_) => Some(PlaneEvent::Lost),
        }
    }
}

impl DataPlane for KernelPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Kernel
    }

    fn guard(&mut self, spec: &GuardSpec) -> Result<(), PlaneError> {
        self.guard_all(std::slice::from_ref(spec))
    }

    fn unguard(&mut self, child: ChildId) -> Result<(), PlaneError> {
        self.acquires.remove(&child);
        self.guards.remove(&child);
        self.spd.wish(Layer::Near, child, vec![]);
        self.change(Layer::Guard, child, vec![], &format!("release the guard of {}", name(child)))
    }

    fn open_tunnel(&mut self, spec: &TunnelSpec) -> Result<(), PlaneError> {
        let operation = format!("open the tunnel of {}", name(spec.child));
        let policies = spd::tunnel_policies(spec, self.newest_outbound(spec.child))
            .map_err(|e| error(&operation, &e))?;
        self.spd.weigh(spec.child, spec.weight);
        self.change(Layer::Tunnel, spec.child, policies, &operation)?;
        self.tunnels.insert(spec.child, spec.clone());
        if self.inherited.remove(&spec.child) {
            self.spd.wish(Layer::Inherited, spec.child, vec![]);
            return self.apply(&operation);
        }
        Ok(())
    }

    fn close_tunnel(&mut self, child: ChildId) -> Result<(), PlaneError> {
        let operation = format!("close the tunnel of {}", name(child));
        self.tunnels.remove(&child);
        if self.inherited.remove(&child) {
            self.spd.wish(Layer::Inherited, child, vec![]);
        }
        let mut result = self.change(Layer::Tunnel, child, vec![], &operation);
        let ids: Vec<SaId> = self.of_child(child).map(|(id, _)| *id).collect();
        for id in ids {
            let removed = self.remove(id);
            result = result.and(removed.map(|_| ()));
        }
        result
    }

    fn install(&mut self, spec: &SaSpec) -> Result<(), PlaneError> {
        let operation = format!("install {}", sa_name(spec.id));
        let fail = |e: NetlinkError| error(&operation, &e);
        if self.sas.get(&spec.id).is_some_and(|sa| sa.ended.is_none()) {
            return Ok(());
        }
        if !self.adopt(spec).map_err(fail)? {
            match self.xfrm.add_sa(spec) {
                // It may be there or not, and what is there may be somebody else's: the keys tell.
                Err(e) if e.is_unsure() => match self.xfrm.has_keys_of(spec) {
                    Ok(true) => Ok(()),
                    _ => Err(e),
                },
                other => other,
            }
            .map_err(fail)?;
            let installed = self.installed(spec);
            self.note(spec.id, installed);
        }
        if spec.id.direction == Direction::In {
            return Ok(());
        }
        let used = self.refresh_tunnel(spec.id.child, &operation);
        if used.is_err() {
            let _ = self.remove(spec.id);
        }
        used
    }

    fn restore(&mut self, spec: &SaSpec, _used: &SaCounters) -> Result<bool, PlaneError> {
        if self.sas.get(&spec.id).is_some_and(|sa| sa.ended.is_none()) {
            return Ok(true);
        }
        self.adopt(spec).map_err(|e| error(&format!("go on with {}", sa_name(spec.id)), &e))
    }

    /// The kernel counts on without us.
    fn reserve(&mut self, _sa: SaId, _last: u64) {}

    fn remove(&mut self, sa: SaId) -> Result<SaCounters, PlaneError> {
        let operation = format!("remove {}", sa_name(sa));
        let Some(known) = self.sas.remove(&sa) else { return Ok(SaCounters::default()) };
        // Packets go by another SA, if there is one, before this one ends.
        let refreshed = match sa.direction {
            Direction::Out => self.refresh_tunnel(sa.child, &operation),
            Direction::In => Ok(()),
        };
        match self.take_state(&known) {
            Ok(counters) => refreshed.map(|()| counters),
            Err(e) => {
                self.note(sa, known);
                Err(error(&operation, &e))
            }
        }
    }

    fn migrate(&mut self, sa: SaId, to: NewAddresses) -> Result<(), PlaneError> {
        let operation = format!("move {} to {} and {}", sa_name(sa), to.local, to.remote);
        let Some(old) = self.sas.get(&sa).copied().filter(|sa| sa.ended.is_none()) else {
            return Ok(());
        };
        let (from, towards) = match sa.direction {
            Direction::Out => (to.local, to.remote),
            Direction::In => (to.remote, to.local),
        };
        let new = Installed {
            key: SaKey { destination: towards.ip(), spi: sa.spi },
            source: from.ip(),
            ports: old.ports.map(|_| (from.port(), towards.port())),
            ..old
        };
        if (new.key, new.source, new.ports) == (old.key, old.source, old.ports) {
            return Ok(());
        }
        let step = Move { source: new.source, destination: towards.ip(), ports: new.ports, reqid: old.reqid };
        self.xfrm.move_sa(old.key, old.mark, &step).map_err(|e| error(&operation, &e))?;
        self.by_key.remove(&old.key);
        self.note(sa, new);
        // The caller will open the tunnel at its new addresses; until then packets need not be lost.
        let used = sa.direction == Direction::Out && self.newest_outbound(sa.child) == Some(sa.spi);
        match self.tunnels.get_mut(&sa.child) {
            Some(tunnel) if used => {
                tunnel.outer_local = to.local.ip();
                tunnel.outer_remote = to.remote.ip();
                self.refresh_tunnel(sa.child, &operation)
            }
            _ => Ok(()),
        }
    }

    fn counters(&mut self, out: &mut Vec<(SaId, SaCounters)>) -> Result<(), PlaneError> {
        let states = self.xfrm.dump_sas().map_err(|e| error("read the counters of SAs", &e))?;
        out.extend(states.iter().filter_map(|state| Some((*self.by_key.get(&state.key)?, state.counters))));
        out.extend(self.sas.iter().filter_map(|(id, sa)| Some((*id, sa.ended?))));
        Ok(())
    }

    fn foreign_spis(&mut self, local: IpAddr) -> Result<Vec<Spi>, PlaneError> {
        let states = self.xfrm.dump_sas().map_err(|e| error("list the SPIs in use", &e))?;
        Ok(states
            .iter()
            // Ours that nobody has taken up yet go before anybody chooses an SPI.
            .filter(|s| s.key.destination == local && Reqid(s.reqid).child().is_none())
            .map(|s| s.key.spi)
            .collect())
    }

    fn next_event(&mut self) -> Option<PlaneEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            match self.monitor.next_event() {
                Ok(Some(event)) => {
                    if let Some(event) = self.event(event) {
                        return Some(event);
                    }
                }
                Ok(None) if std::mem::take(&mut self.drifted) => return self.mend(),
                Ok(None) => return None,
                // Whatever it was, events may have gone with it.
                Err(_) => return Some(PlaneEvent::Lost),
            }
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.monitor.fd())
    }
}

impl Installed {
    fn of(spec: &SaSpec, order: u64) -> Self {
        let ports = spec.encap.map(|e| match spec.id.direction {
            Direction::Out => (e.local_port, e.remote_port),
            Direction::In => (e.remote_port, e.local_port),
        });
        Self {
            key: SaKey::of(spec),
            source: spec.source(),
            ports,
            reqid: spec.reqid,
            mark: spec.mark,
            order,
            ended: None,
        }
    }
}

fn name(child: ChildId) -> String {
    format!("child {}.{}", child.tunnel.0, child.index)
}

fn sa_name(id: SaId) -> String {
    let direction = if id.direction == Direction::In { "in" } else { "out" };
    format!("SA {} (ESP, {direction})", id.spi)
}

fn error(operation: &str, e: &NetlinkError) -> PlaneError {
    let kind = match e.errno() {
        Some(Errno::EEXIST) => PlaneErrorKind::Exists,
        Some(Errno::ENOSYS | Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP) => PlaneErrorKind::Unsupported,
        Some(Errno::EPERM | Errno::EACCES) => PlaneErrorKind::Permission,
        Some(Errno::ENOMEM | Errno::ENOSPC) => PlaneErrorKind::Exhausted,
        _ if matches!(e, NetlinkError::Unfit(_)) => PlaneErrorKind::Unsupported,
        _ if matches!(e, NetlinkError::Overrun) => PlaneErrorKind::Exhausted,
        _ => PlaneErrorKind::Other,
    };
    PlaneError { operation: operation.to_owned(), kind, detail: e.to_string() }
}
