//! The userspace data plane: a TUN device, UDP sockets, and [`cygnet_esp`] between them on two plain threads.
//!
//! ```text
//!                 ┌───────────────── egress thread ─────────────────┐
//!   rules ─► TUN ─┤ read superpacket ─ policy ─ segment ─ seal ─ join ├─► UDP 4500 ─► peer
//!                 └─────────────────────────────────────────────────┘
//!                 ┌───────────────── ingress thread ────────────────┐
//!   hosts ◄─ TUN ─┤ write superpacket ◄ join ◄ open ◄ receive trains  ├◄─ UDP 4500 ◄─ peer
//!                 └──────────────────────────────┬──────────────────┘
//!                                                └─► IKE sink ─► the daemon
//! ```
//!
//! The owner ([`UserPlane`]) changes an [`Engine`] and publishes its tables by swap; the threads never wait for it. ESP
//! is always encapsulated in UDP (RFC 3948): only UDP has segmentation and receive offload, and the kernel's calls, not
//! ciphers, are what a packet costs.
//!
//! Guards are routing rules and routes, see `layout`; a third thread puts them back when others remove them. What goes into the TUN and finds no SA is dropped and counted.

mod apart;
mod batch;
mod device;
mod early;
mod egress;
mod ingress;
mod layout;
mod mend;
mod placement;
mod probes;
mod rules;
mod shared;
mod socket;
#[cfg(test)]
mod testing;
mod tree;
mod windows;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use arc_swap::ArcSwap;
use cygnet_esp::DropReason;
use cygnet_esp::engine::{Engine, Tables};
use cygnet_model::plane::{
    DataPlane, Obstacle, PlaneError, PlaneErrorKind, PlaneEvent, PlaneKind, SaCounters,
};
use cygnet_model::tunnel::{GuardSpec, NewAddresses, SaId, SaSpec, Source, TunnelSpec};
use cygnet_model::{ChildId, Spi, TunnelId};
use cygnet_xfrm::link::RtnlError;
use cygnet_xfrm::route::Family;
use cygnet_xfrm::routing::Watch;
use nix::errno::Errno;

pub use self::apart::indistinguishable;
use self::device::Device;
use self::placement::Placement;
use self::rules::Rules;
pub use self::rules::{FIRST_PRIORITY, LAST_PRIORITY};
pub use self::shared::IkeSink;
use self::shared::{Drops, Events, Shared};
use self::socket::EspSocket;
use crate::plane::probing::{Outgoing, Probing};
use crate::privileges;
use crate::shaping::pause::Pause;
use crate::sys::tun::{Tun, TunOffload};
use crate::traffic::meter::Traffic;

/// How the plane is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserPlaneConfig {
    /// Name of the TUN device, at most 15 octets.
    pub tun_name: String,
    /// Largest MTU of the TUN device in octets. The kernel tells senders of longer packets about it, and TCP's segment size
    /// follows from it. While an SA is installed whose packets would exceed 1500 octets with it, the device gets less.
    pub mtu: u16,
    /// Whether to use the kernel's offloads where they exist. Off for comparison and for finding faults.
    pub offload: bool,
    /// What nobody outside knows: by it flows are spread over tunnels that share them.
    pub seed: u128,
}

impl Default for UserPlaneConfig {
    fn default() -> Self {
        Self { tun_name: "cygnet0".to_owned(), mtu: 1400, offload: true, seed: 0 }
    }
}

/// What the kernel does for the plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offloads {
    /// Superpackets of the TUN device.
    pub tun: TunOffload,
    /// Every socket sends trains (`UDP_SEGMENT`).
    pub udp_segment: bool,
    /// Every socket receives trains (`UDP_GRO`).
    pub udp_gro: bool,
}

/// The userspace data plane of one network namespace. Dropping it stops the threads and leaves the guards' rules in
/// force, as a crash would; [`UserPlane::shut_down`] takes them away.
pub struct UserPlane {
    engine: Engine,
    shared: Arc<Shared>,
    placement: Arc<Mutex<Placement>>,
    /// Whether the kernel has IPv6.
    has_v6: bool,
    offload: bool,
    /// As configured.
    mtu: u16,
    /// As the device has it.
    device_mtu: u16,
    threads: Vec<thread::JoinHandle<()>>,
}

impl UserPlane {
    /// Creates the TUN device, its routes and the frame of rules, and starts the threads, all in the network namespace
    /// of the calling thread. Needs CAP_NET_ADMIN. Rules of an earlier process stay in force; see
    /// [`UserPlane::settle`].
    pub fn new(config: &UserPlaneConfig, ike_sink: IkeSink) -> Result<Self, PlaneError> {
        let operation = "set up the userspace data plane";
        let wanted = if config.offload { TunOffload::TcpUdp } else { TunOffload::None };
        let name = &config.tun_name;
        let tun = Tun::create(name, wanted).map_err(|e| from_io(&format!("create TUN device {name}"), &e))?;
        let failed = |e: RtnlError| from_rtnl(operation, &e);
        let io_failed = |e: io::Error| from_io(operation, &e);
        let shared = Arc::new(Shared {
            tun: ArcSwap::from_pointee(tun),
            tables: ArcSwap::from_pointee(Tables::default()),
            sockets: ArcSwap::from_pointee(Vec::new()),
            events: Events::new().map_err(io_failed)?,
            drops: Drops::new(),
            pause: Arc::default(),
            traffic: Arc::default(),
            probes: probes::Probes::default(),
            ike_sink,
            early: AtomicBool::new(false),
            wake: [
                shared::event_fd().map_err(io_failed)?,
                shared::event_fd().map_err(io_failed)?,
                shared::event_fd().map_err(io_failed)?,
            ],
            stop: AtomicBool::new(false),
        });
        let device = Device::new(Arc::clone(&shared), name, wanted, config.mtu).map_err(failed)?;
        let mut placement = Placement::new(device).map_err(failed)?;
        let has_v6 = placement.has_family(Family::V6).map_err(failed)?;
        let watch = Watch::open(layout::OWNER, placement.tun_index()).map_err(failed)?;
        let placement = Arc::new(Mutex::new(placement));
        let mut plane = Self {
            engine: Engine::seeded(config.seed),
            shared: Arc::clone(&shared),
            placement: Arc::clone(&placement),
            has_v6,
            offload: config.offload,
            mtu: config.mtu,
            device_mtu: config.mtu,
            threads: Vec::new(),
        };
        // If one thread cannot be started, dropping `plane` ends those before it.
        let egress = egress::Egress::new(Arc::clone(&shared), config.offload);
        plane
            .spawn("esp-egress", move || {
                privileges::give_up_all();
                egress.run();
            })
            .map_err(io_failed)?;
        let ingress = ingress::Ingress::new(Arc::clone(&shared));
        plane
            .spawn("esp-ingress", move || {
                privileges::give_up_all();
                ingress.run();
            })
            .map_err(io_failed)?;
        let mend = mend::Mend::new(shared, placement, watch);
        plane.spawn("guard-mend", move || mend.run()).map_err(io_failed)?;
        Ok(plane)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(body)?);
        Ok(())
    }

    /// Takes over the receiving side of a socket that is bound to UDP port 4500 of one of our addresses; `local` is how
    /// SAs name it. From now on its datagrams are ESP or go to the IKE sink. The caller may keep a duplicate of the
    /// socket and send IKE by it (with the non-ESP marker), but must not read from it. IKE and ESP from this address
    /// are kept out of the tunnels. A socket for the same address is replaced.
    pub fn add_socket(&mut self, local: SocketAddr, socket: UdpSocket) -> Result<(), PlaneError> {
        let operation = format!("use UDP socket {local}");
        let socket = EspSocket::new(local, socket, self.offload).map_err(|e| from_io(&operation, &e))?;
        self.placement().bypass(local, true).map_err(|e| from_rtnl(&operation, &e))?;
        self.change_sockets(|sockets| {
            sockets.retain(|s| s.local() != local);
            sockets.push(Arc::new(socket));
        });
        Ok(())
    }

    /// Gives up the socket of an address, if there is one.
    pub fn remove_socket(&mut self, local: SocketAddr) -> Result<(), PlaneError> {
        if self.has_socket(local) {
            self.change_sockets(|sockets| sockets.retain(|s| s.local() != local));
            let operation = format!("give up UDP socket {local}");
            self.placement().bypass(local, false).map_err(|e| from_rtnl(&operation, &e))?;
        }
        Ok(())
    }

    fn has_socket(&self, local: SocketAddr) -> bool {
        self.shared.sockets.load().iter().any(|s| s.local() == local)
    }

    fn change_sockets(&self, change: impl FnOnce(&mut Vec<Arc<EspSocket>>)) {
        let mut sockets = Vec::clone(&self.shared.sockets.load());
        change(&mut sockets);
        self.shared.sockets.store(Arc::new(sockets));
        self.shared.wake();
    }

    /// Removes rules that an earlier process left and nobody has asked for since: to be called once every configured
    /// guard is in force.
    pub fn settle(&mut self) -> Result<(), PlaneError> {
        self.placement().settle().map_err(|e| from_rtnl("remove guards of an earlier run", &e))
    }

    /// Puts back rules and routes of ours that others have removed (a network manager that tidies up, say), and tells
    /// how many rules that were. Until then protected traffic may have passed around the tunnel.
    pub fn resync(&mut self) -> Result<usize, PlaneError> {
        let repaired = self.placement().repair();
        let repaired = repaired.map_err(|e| from_rtnl("restore the guards' rules and routes", &e))?;
        Ok(repaired.count + usize::from(repaired.device))
    }

    /// Rules of others that see packets before the guards do and may lead them around the tunnel, and what keeps the guards
    /// from being restored; as of the last look, seconds ago at most.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        let placement = self.placement();
        let in_front = placement.in_front().iter().take(16).map(|rule| Obstacle {
            name: "rule_in_front",
            what: format!(
                "a routing rule of another program is asked before the guards about some of their packets: {rule}"
            ),
            fix: format!("give it a priority above {LAST_PRIORITY}, or let it match nothing of the tunnels"),
        });
        let trouble = placement.trouble().map(|why| Obstacle {
            name: "not_restored",
            what: format!("the device, routes or rules of the guards are not as they should be: {why}"),
            fix: "see: ip link, ip rule, ip route show table all; it is tried again every few seconds"
                .to_owned(),
        });
        in_front.chain(trouble).collect()
    }

    /// By what the thread that sends stands still.
    pub fn pause(&self) -> Arc<Pause> {
        Arc::clone(&self.shared.pause)
    }

    fn placement(&self) -> MutexGuard<'_, Placement> {
        self.placement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the plane and releases every guard: from here on the kernel routes protected traffic like any other.
    pub fn shut_down(mut self) -> Result<(), PlaneError> {
        self.stop();
        self.placement().release().map_err(|e| from_rtnl("release the guards", &e))
    }

    /// Stops carrying packets for good; guards stay, and counters can still be read.
    pub fn rest(&mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.wake();
        for thread in self.threads.drain(..) {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }

    /// Packets dropped since the start, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        self.shared.drops.all()
    }

    /// Counts and limits of inner addresses.
    pub fn traffic(&self) -> &Traffic {
        &self.shared.traffic
    }

    /// From here on answers to probes go where this says, and peers' probes are answered for these addresses.
    pub fn follow_probing(&self, probing: Probing) {
        self.shared.probes.probing.store(Some(Arc::new(probing)));
    }

    /// Sends probes, each by its own children. Those without an SA are dropped.
    pub fn probe(&self, packets: Vec<Outgoing>) {
        self.shared.send_probes(packets);
    }

    /// What the kernel does for us.
    pub fn offloads(&self) -> Offloads {
        let sockets = self.shared.sockets.load();
        Offloads {
            tun: self.shared.tun.load().offload(),
            udp_segment: sockets.iter().all(|s| s.gso()),
            udp_gro: sockets.iter().all(|s| s.gro()),
        }
    }

    fn publish(&self) {
        self.shared.tables.store(Arc::new(self.engine.tables()));
    }

    /// Publishes after a change of SAs, and makes the device say what they carry.
    fn publish_sas(&mut self) -> Result<(), PlaneError> {
        self.publish();
        fence(SeqCst);
        if self.shared.early.load(Relaxed)
            && let Some(ingress) = self.shared.wake.get(ingress::WAKE)
        {
            // Fails only when the counter is at its limit, and then the thread is awake.
            let _ = ingress.write(1);
        }
        let room = self.engine.largest_inner().and_then(|largest| u16::try_from(largest).ok());
        let mtu = room.map_or(self.mtu, |room| room.min(self.mtu));
        // Whoever mends may be at work for a moment.
        if mtu != self.device_mtu {
            let set = self.placement().set_mtu(mtu);
            set.map_err(|e| from_rtnl("set the MTU of the TUN device", &e))?;
            self.device_mtu = mtu;
        }
        Ok(())
    }

    /// Whether routing rules can say a guard, or why not.
    fn may_guard(&self, spec: &GuardSpec) -> Result<(), PlaneError> {
        let refuse = |detail: String| PlaneError {
            operation: "guard selectors by routing rules".to_owned(),
            kind: PlaneErrorKind::Unsupported,
            detail,
        };
        let sorted = layout::sort(spec).ok_or_else(|| {
            refuse(format!("they take more than {} rules; use prefixes instead of ranges", layout::MAX_PAIRS))
        })?;
        if sorted.has(Family::V6) && !self.has_v6 {
            return Err(refuse("this host has no IPv6".to_owned()));
        }
        Ok(())
    }

    /// Whether the guards with these put in place can be told apart in the TUN, or which cannot.
    fn may_tell_apart(&self, specs: &[GuardSpec]) -> Result<(), PlaneError> {
        let new: BTreeSet<ChildId> = specs.iter().map(|spec| spec.child).collect();
        let kept = self.engine.guards().filter(|guard| !new.contains(&guard.child));
        match indistinguishable(kept.chain(specs)).first() {
            None => Ok(()),
            Some((a, b)) => {
                let name = |child: &ChildId| format!("{}.{}", child.tunnel.0, child.index);
                Err(PlaneError {
                    operation: format!("guard child {}", name(b)),
                    kind: PlaneErrorKind::Unsupported,
                    detail: format!(
                        "data plane userspace cannot tell its packets from those of child {}: the selectors meet and only                          the marks differ, which a TUN device does not keep; give them other selectors, or use data plane                          kernel",
                        name(a)
                    ),
                })
            }
        }
    }

    /// Which source own packets into each child get; [`Source::Auto`] where nothing is said. After an error all is as
    /// before.
    pub fn follow_sources(&mut self, sources: BTreeMap<ChildId, Source>) -> Result<(), PlaneError> {
        let followed = self.placement().follow_sources(sources);
        followed.map_err(|e| from_rtnl("give own packets a source inside the tunnels", &e))
    }

    /// Takes the selectors of many children under guard in one step, which costs little more than one alone. After an
    /// error all is as before.
    pub fn guard_all(&mut self, specs: &[GuardSpec]) -> Result<(), PlaneError> {
        for spec in specs {
            self.may_guard(spec)?;
        }
        self.may_tell_apart(specs)?;
        let before: Vec<(ChildId, Option<GuardSpec>)> =
            specs.iter().map(|spec| (spec.child, self.engine.guard_of(spec.child).cloned())).collect();
        // Policy before rules: a packet that the rules lead into the TUN shall find its guard there.
        self.engine.guard_all(specs)?;
        self.publish();
        let result = self.placement().guard(specs, &[]);
        if let Err(error) = result {
            let (old, new): (Vec<_>, Vec<_>) = before.into_iter().partition(|(_, old)| old.is_some());
            self.engine.guard_all(&old.into_iter().filter_map(|(_, old)| old).collect::<Vec<_>>())?;
            self.engine.unguard_all(&new.into_iter().map(|(child, _)| child).collect::<Vec<_>>())?;
            self.publish();
            return Err(from_rtnl("guard selectors by routing rules", &error));
        }
        Ok(())
    }

    /// Releases the guards of many children in one step. Their tunnels must be closed.
    pub fn unguard_all(&mut self, children: &[ChildId]) -> Result<(), PlaneError> {
        for child in children {
            self.engine.may_unguard(*child)?;
        }
        self.placement().guard(&[], children).map_err(|e| from_rtnl("release guards", &e))?;
        self.engine.unguard_all(children)?;
        self.publish();
        Ok(())
    }
}

impl Drop for UserPlane {
    fn drop(&mut self) {
        self.stop();
    }
}

impl DataPlane for UserPlane {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Userspace
    }

    fn guard(&mut self, spec: &GuardSpec) -> Result<(), PlaneError> {
        self.guard_all(std::slice::from_ref(spec))
    }

    fn unguard(&mut self, child: ChildId) -> Result<(), PlaneError> {
        self.unguard_all(&[child])
    }

    fn open_tunnel(&mut self, spec: &TunnelSpec) -> Result<(), PlaneError> {
        self.engine.open_tunnel(spec)?;
        self.publish();
        Ok(())
    }

    fn close_tunnel(&mut self, child: ChildId) -> Result<(), PlaneError> {
        self.engine.close_tunnel(child);
        self.publish_sas()
    }

    fn install(&mut self, spec: &SaSpec) -> Result<(), PlaneError> {
        self.engine.install(spec)?;
        self.publish_sas()
    }

    fn restore(&mut self, spec: &SaSpec, used: &SaCounters) -> Result<bool, PlaneError> {
        self.engine.install_after(spec, used)?;
        self.publish_sas()?;
        Ok(true)
    }

    fn reserve(&mut self, sa: SaId, last: u64) {
        self.engine.reserve(sa, last);
    }

    fn remove(&mut self, sa: SaId) -> Result<SaCounters, PlaneError> {
        let counters = self.engine.remove(sa);
        self.publish_sas()?;
        Ok(counters)
    }

    fn migrate(&mut self, sa: SaId, to: NewAddresses) -> Result<(), PlaneError> {
        self.engine.migrate(sa, to)?;
        self.publish_sas()
    }

    fn counters(&mut self, out: &mut Vec<(SaId, SaCounters)>) -> Result<(), PlaneError> {
        self.engine.counters(out);
        Ok(())
    }

    fn counters_of(&mut self, tunnel: TunnelId, out: &mut Vec<(SaId, SaCounters)>) -> Result<(), PlaneError> {
        self.engine.counters_of(tunnel, out);
        Ok(())
    }

    /// Nobody else receives ESP on our sockets.
    fn foreign_spis(&mut self, _local: IpAddr) -> Result<Vec<Spi>, PlaneError> {
        Ok(Vec::new())
    }

    fn next_event(&mut self) -> Option<PlaneEvent> {
        self.shared.events.pop()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.events.as_fd())
    }
}

/// Whether routing rules of an earlier daemon are in force.
pub(super) fn guards_stand() -> bool {
    Rules::open(None).and_then(|mut rules| rules.count()).is_ok_and(|count| count > 0)
}

/// Removes the routing rules and routes of a daemon that has ended; says how many rules there were.
pub(super) fn release_guards() -> Result<usize, PlaneError> {
    let failed = |e: RtnlError| from_rtnl("release the guards of an earlier run", &e);
    let mut rules = Rules::open(None).map_err(failed)?;
    let count = rules.count().map_err(failed)?;
    rules.release().map_err(failed)?;
    Ok(count)
}

fn kind_of(errno: Option<i32>) -> PlaneErrorKind {
    match errno.map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => PlaneErrorKind::Permission,
        Some(Errno::EBUSY | Errno::EEXIST) => PlaneErrorKind::Exists,
        Some(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => PlaneErrorKind::Unsupported,
        Some(Errno::ENOMEM | Errno::ENOBUFS | Errno::EMFILE | Errno::ENFILE) => PlaneErrorKind::Exhausted,
        _ => PlaneErrorKind::Other,
    }
}

fn from_rtnl(operation: &str, error: &RtnlError) -> PlaneError {
    PlaneError { operation: operation.to_owned(), kind: kind_of(error.errno), detail: error.to_string() }
}

fn from_io(operation: &str, error: &io::Error) -> PlaneError {
    PlaneError {
        operation: operation.to_owned(),
        kind: kind_of(error.raw_os_error()),
        detail: error.to_string(),
    }
}
