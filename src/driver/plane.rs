//! The data plane that was chosen, with what each kind needs besides [`DataPlane`], and the wall behind it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use cygnet_esp::DropReason;
use cygnet_esp::inner::InnerHeader;
use cygnet_ike::crypto::Random as _;
use cygnet_model::plane::{DataPlane, Obstacle, PlaneError, PlaneErrorKind, PlaneKind};
use cygnet_model::tunnel::{GuardSpec, Source};
use cygnet_model::{ChildId, TunnelId};
use cygnet_xfrm::address::OwnAddress;
use cygnet_xfrm::link::RtnlError;
use cygnet_xfrm::routing::Routing;

use crate::config::model::Guards;
use crate::plane::echo::{EchoSockets, Heard};
use crate::plane::ips;
use crate::plane::kernel::KernelPlane;
use crate::plane::levels::{self, Keeper, Wanted};
use crate::plane::near;
use crate::plane::probing::{Outgoing, Probing, Received};
use crate::plane::source::{self, Wish};
use crate::plane::user::{IkeSink, UserPlane, UserPlaneConfig};
use crate::plane::wall::{Protection, Wall};
use crate::quality::wire;
use crate::shaping::pause::Pause;
use crate::traffic::accounts::Counted;
use crate::traffic::meter::Traffic;
use crate::traffic::rules::Rules;

/// Answers of each family that are taken in one go.
const ANSWERS: usize = 256;

/// One of the two planes, and the wall.
pub struct Plane {
    esp: Esp,
    wall: Wall,
    /// Bandwidth levels that the kernel's plane keeps.
    levels: levels::Table,
    /// Counts and limits of inner addresses that it keeps.
    ips: ips::Table,
    /// For questions about addresses; without it nothing is let by.
    routing: Option<Routing>,
    /// Which sources own packets get.
    wishes: Vec<Wish>,
    /// What follows from them, with the kernel's plane.
    layout: source::Layout,
    /// The addresses for which [`Self::layout`] was found out.
    looked_at: Option<BTreeSet<OwnAddress>>,
    /// Rules and routes of the layout that others had removed, until it is told.
    put_back: usize,
    /// What probes go by with the kernel's plane.
    echo: Option<EchoSockets>,
    /// Where their answers go.
    probing: Option<Probing>,
    /// The peers' probes that the daemon answers.
    probed: Received,
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
                let mut seed = [0; 16];
                super::os_random().fill(&mut seed);
                let config =
                    UserPlaneConfig { seed: u128::from_ne_bytes(seed), ..UserPlaneConfig::default() };
                let plane = UserPlane::new(&config, ike_sink)?;
                (Esp::User(Box::new(plane)), Protection::Device(config.tun_name))
            }
        };
        let routing = Routing::open().inspect_err(|e| tracing::warn!(error = %e, "own addresses")).ok();
        let mut plane = Self {
            esp,
            wall: Wall::open(protection, own),
            levels: levels::Table::default(),
            ips: ips::Table::default(),
            routing,
            put_back: 0,
            echo: None,
            probing: None,
            probed: Received::default(),
            wishes: Vec::new(),
            layout: source::Layout::default(),
            looked_at: None,
        };
        plane.follow_addresses()?;
        Ok(plane)
    }

    /// Follows the own addresses and attached networks, which guards may let by.
    pub fn follow_addresses(&mut self) -> Result<(), PlaneError> {
        let Some(routing) = &mut self.routing else { return Ok(()) };
        let failed = |e: RtnlError| PlaneError {
            operation: "look for own addresses".to_owned(),
            kind: PlaneErrorKind::Other,
            detail: e.to_string(),
        };
        let own = near::own_addresses(routing).map_err(failed)?;
        let usable = near::sources(routing, &own).map_err(failed)?;
        let attached = near::attached(&own);
        self.wall.follow_attached(&attached);
        if matches!(self.esp, Esp::User(_)) && self.looked_at.as_ref() == Some(&usable) {
            return Ok(());
        }
        let layout = source::layout(&self.wishes, &usable);
        let is_same = self.looked_at.replace(usable).is_some() && layout == self.layout;
        self.layout = layout;
        match &mut self.esp {
            Esp::Kernel(p) => {
                let followed = p.follow(&attached);
                if self.wishes.is_empty() {
                    return followed;
                }
                let brought = source::apply(routing, &self.layout).map_err(|e| PlaneError {
                    operation: "give own packets a source inside the tunnels".to_owned(),
                    kind: PlaneErrorKind::Other,
                    detail: e.to_string(),
                });
                match &brought {
                    Ok(count) if is_same => self.put_back += count,
                    Ok(_) => {}
                    // What comes later then was not removed by others.
                    Err(_) => self.looked_at = None,
                }
                followed.and(brought.map(|_| ()))
            }
            // It follows by itself.
            Esp::User(_) => Ok(()),
        }
    }

    /// Gives own packets sources inside the tunnels, from here on as addresses come and go.
    pub fn follow_sources(&mut self, wishes: Vec<Wish>) -> Result<(), PlaneError> {
        if let Esp::User(p) = &mut self.esp {
            let wanted = |w: &Wish| (w.guard.child, w.source);
            let said = wishes.iter().filter(|w| w.source != Source::Auto);
            p.follow_sources(said.map(wanted).collect())?;
        }
        self.wishes = wishes;
        self.looked_at = None;
        self.follow_addresses()
    }

    /// Tunnels for which this host has no address inside the local networks: its own packets go outside of them.
    pub const fn sourceless(&self) -> &BTreeSet<String> {
        &self.layout.missing
    }

    /// The calls that both kinds have. Guards go by [`Self::guard_all`], or the wall misses them.
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

    /// Packets that our own plane dropped, by reason; nothing with the kernel's.
    pub fn drops(&self) -> Vec<(DropReason, u64)> {
        match &self.esp {
            Esp::Kernel(_) => Vec::new(),
            Esp::User(p) => p.drops().collect(),
        }
    }

    /// Whose packets are whose, and what inner addresses may carry, as was said last.
    pub fn rules(&self) -> Rules {
        match &self.esp {
            Esp::Kernel(_) => self.ips.wanted(),
            Esp::User(p) => p.traffic().rules(),
        }
    }

    /// Puts such rules in force; [`Self::ips_trouble`] says whether they are.
    pub fn publish(&mut self, rules: Rules) {
        match &self.esp {
            Esp::Kernel(_) => self.ips.put(rules),
            Esp::User(p) => p.traffic().publish(rules),
        }
    }

    /// What inner addresses carried since the last call.
    pub fn take_carried(&mut self) -> Vec<Counted> {
        match &self.esp {
            Esp::Kernel(_) => self.ips.take(),
            Esp::User(p) => p.traffic().take().into(),
        }
    }

    /// Why inner addresses are neither counted nor limited on this host.
    pub fn ips_trouble(&self) -> Option<&str> {
        match &self.esp {
            Esp::Kernel(_) => self.ips.trouble(),
            Esp::User(_) => None,
        }
    }

    /// Puts counts and limits of the kernel's plane back if others removed or changed them; says whether they had.
    pub fn mend_ips(&mut self) -> bool {
        matches!(self.esp, Esp::Kernel(_)) && self.ips.mend()
    }

    /// Where our own plane counts and limits; `None` with the kernel's plane.
    pub fn traffic(&self) -> Option<&Traffic> {
        match &self.esp {
            Esp::Kernel(_) => None,
            Esp::User(p) => Some(p.traffic()),
        }
    }

    /// By what our own plane sends nothing for a moment; `None` with the kernel's, which nobody can hold up.
    pub fn pause(&self) -> Option<Arc<Pause>> {
        match &self.esp {
            Esp::Kernel(_) => None,
            Esp::User(p) => Some(p.pause()),
        }
    }

    /// Bandwidth levels that the kernel's plane shall keep; ours has them in [`Self::traffic`].
    ///
    /// # Errors
    /// Why they are not in force, as a sentence.
    pub fn put_levels(&mut self, wanted: Wanted) -> Result<(), String> {
        self.levels.put(wanted)
    }

    /// Puts them back if others removed or changed them; says whether they had.
    ///
    /// # Errors
    /// As [`Self::put_levels`].
    pub fn mend_levels(&mut self) -> Result<bool, String> {
        self.levels.mend()
    }

    /// Packets that levels of the kernel's plane dropped; the counts never go back.
    pub fn level_drops(&mut self) -> Vec<(Keeper, u64)> {
        self.levels.drops()
    }

    /// Octets that levels of gateways in the kernel's plane let pass, as of the last [`Self::level_drops`].
    pub fn level_passed(&self) -> Vec<(Keeper, u64)> {
        self.levels.passed()
    }

    /// Opens what probes go by, if that is not the plane itself.
    pub fn open_probing(&mut self, token: u64) {
        if matches!(self.esp, Esp::Kernel(_)) {
            let opened =
                EchoSockets::open(token).inspect_err(|e| tracing::warn!(error = %e, "no probes can be sent"));
            self.echo = opened.ok();
        }
    }

    /// Says where answers to probes go, and for which addresses the peers' probes are answered: with the kernel's plane those that
    /// name an SA; the kernel answers any, as other pings.
    pub fn follow_probing(&mut self, probing: Probing) {
        match &self.esp {
            Esp::User(p) => p.follow_probing(probing),
            Esp::Kernel(_) => self.probing = Some(probing),
        }
    }

    /// Sends probes, each by one of its own children. Of those that cannot be sent nobody hears: they count as lost.
    pub fn probe(&self, packets: Vec<Outgoing>) {
        match &self.esp {
            Esp::User(_) if packets.is_empty() => {}
            Esp::User(p) => p.probe(packets),
            Esp::Kernel(p) => {
                let Some(echo) = &self.echo else { return };
                for Outgoing { children, packet, contested } in packets {
                    let Some(child) = children.first() else { continue };
                    send(p, echo, child.tunnel, &packet, contested);
                }
            }
        }
    }

    /// Descriptors that become readable when answers come that [`Self::take_answers`] has to take.
    pub fn echo_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.echo.iter().flat_map(EchoSockets::fds)
    }

    /// Takes answers of the kernel's plane, and answers the peers' probes. Says whether there may be more.
    pub fn take_answers(&mut self) -> bool {
        let (Some(echo), Some(probing), Esp::Kernel(p)) = (&self.echo, &self.probing, &self.esp) else {
            return false;
        };
        let (heard, more) = echo.receive(ANSWERS);
        for heard in heard {
            match heard {
                Heard::Answer(answer) => (probing.sink)(answer),
                Heard::Asked { probe, from, to } if probing.own.contains(&to) => {
                    let Some(tunnel) = probe.by.and_then(|spi| p.tunnel_of(spi)) else { continue };
                    let count = self.probed.count(tunnel, &probe, Instant::now());
                    let packet = count.and_then(|count| wire::echo_reply(&probe, to, from, count));
                    let Some(packet) = packet else { continue };
                    send(p, echo, tunnel, &packet, true);
                }
                Heard::Asked { .. } => {}
            }
        }
        more
    }

    /// The wall.
    pub const fn wall(&mut self) -> &mut Wall {
        &mut self.wall
    }

    /// Takes the selectors of many children under guard.
    pub fn guard_all(&mut self, specs: &[GuardSpec]) -> Result<(), PlaneError> {
        match &mut self.esp {
            Esp::Kernel(p) => p.guard_all(specs)?,
            Esp::User(p) => p.guard_all(specs)?,
        }
        specs.iter().for_each(|spec| self.wall.guard(spec));
        Ok(())
    }

    /// Releases the guards of children whose tunnels are closed. Goes on after errors and returns the first.
    pub fn unguard_all(&mut self, children: &[ChildId]) -> Result<(), PlaneError> {
        let released = match &mut self.esp {
            Esp::Kernel(p) => {
                let mut first = Ok(());
                for child in children {
                    let released = p.unguard(*child);
                    first = first.and(released);
                }
                first
            }
            Esp::User(p) => p.unguard_all(children),
        };
        if released.is_ok() {
            children.iter().for_each(|child| self.wall.unguard(*child));
        }
        released
    }

    /// Gives our own plane a 4500 socket to read.
    pub fn add_socket(&mut self, local: SocketAddr, socket: UdpSocket) -> Result<(), PlaneError> {
        match &mut self.esp {
            Esp::Kernel(_) => Ok(()),
            Esp::User(p) => p.add_socket(local, socket),
        }
    }

    /// Takes a socket back that [`Self::add_socket`] gave.
    pub fn remove_socket(&mut self, local: SocketAddr) -> Result<(), PlaneError> {
        match &mut self.esp {
            Esp::Kernel(_) => Ok(()),
            Esp::User(p) => p.remove_socket(local),
        }
    }

    /// Builds the wall and removes routing rules of an earlier daemon that nobody wants any more, once all guards are in
    /// force.
    pub fn settle(&mut self) -> Result<(), PlaneError> {
        self.wall.settle();
        match &mut self.esp {
            Esp::Kernel(_) => Ok(()),
            Esp::User(p) => {
                // Of an earlier daemon with the kernel's plane.
                self.ips.remove();
                if let Err(e) = self.levels.remove() {
                    tracing::warn!("{e}");
                }
                p.settle()
            }
        }
    }

    /// Removes SAs and tunnels of an earlier daemon with which nobody goes on.
    pub fn sweep(&mut self) -> Result<(), PlaneError> {
        match &mut self.esp {
            Esp::Kernel(p) => p.sweep().map(|_| ()),
            Esp::User(_) => Ok(()),
        }
    }

    /// Comes to rest: our own plane carries nothing more, and its counters stay as they are. The kernel goes on.
    pub fn rest(&mut self) {
        if let Esp::User(p) = &mut self.esp {
            p.rest();
        }
    }

    /// Leaves everything in force for the next life of the daemon: with the kernel's plane the tunnels, with ours the
    /// guards. As a crash would.
    pub fn leave(self) {}

    /// Puts right what others changed, after events were lost.
    pub fn resync(&mut self) -> Result<(), PlaneError> {
        match &mut self.esp {
            Esp::Kernel(p) => p.resync().map(|_| ()),
            Esp::User(p) => p.resync().map(|_| ()),
        }
    }

    /// Looks whether the guards and what belongs to them are still in force and puts them right; says what had to be put
    /// right, and how many of it.
    pub fn audit(&mut self) -> [(&'static str, Result<usize, PlaneError>); 2] {
        let policies = match &mut self.esp {
            Esp::Kernel(p) => p.audit(),
            // It looks by itself, and tells by events.
            Esp::User(_) => Ok(0),
        };
        let sources = Ok(std::mem::take(&mut self.put_back));
        [("policies", policies), ("routes that give own packets their source", sources)]
    }

    /// What of others stands in the way of the guards.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        match &self.esp {
            Esp::Kernel(p) => p.obstacles(),
            Esp::User(p) => p.obstacles(),
        }
    }

    /// Becomes readable when the wall may have been changed by others.
    pub fn wall_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wall.event_fd()
    }

    /// Ends the plane: tunnels are closed, and the guards stay in force or go, the wall behind them at last.
    pub fn end(self, guards: Guards) -> Result<(), PlaneError> {
        let Self { esp, mut wall, mut levels, mut ips, .. } = self;
        ips.remove();
        if let Err(e) = levels.remove() {
            tracing::error!("{e}");
        }
        let ended = match (esp, guards) {
            (Esp::Kernel(mut p), Guards::Keep) => p.park(),
            (Esp::Kernel(mut p), Guards::Release) => {
                let sources = source::release().map_err(|e| PlaneError {
                    operation: "remove routes of own packets".to_owned(),
                    kind: PlaneErrorKind::Other,
                    detail: e.to_string(),
                });
                p.release().and(sources.map(|_| ()))
            }
            // The TUN device goes with the plane; the rules lead into a blackhole from then on.
            (Esp::User(p), Guards::Keep) => {
                drop(p);
                Ok(())
            }
            (Esp::User(p), Guards::Release) => p.shut_down(),
        };
        match guards {
            Guards::Keep => ended,
            Guards::Release => ended.and(wall.release()),
        }
    }
}

/// Sends a packet by a tunnel of the kernel's plane, if one of its open children takes it.
fn send(plane: &KernelPlane, echo: &EchoSockets, tunnel: TunnelId, packet: &[u8], contested: bool) {
    let lead = InnerHeader::parse(packet).and_then(|header| plane.lead(tunnel, &header, contested));
    let Some(lead) = lead else { return };
    if let Err(e) = echo.send(packet, &lead) {
        tracing::debug!(error = %e, "a probe was not sent");
    }
}
