//! The way in: UDP → open → TUN, on one thread. IKE messages leave it by the sink.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use cygnet_esp::coalesce::{Coalescer, Joins};
use cygnet_esp::engine::{Inbound, Tables};
use cygnet_esp::inbound::Opened;
use cygnet_esp::natt::{self, Carried};
use cygnet_esp::replay::Age;
use cygnet_esp::{DropReason, Limit, packet};
use cygnet_model::ChildId;
use cygnet_model::plane::PlaneEvent;
use cygnet_model::tunnel::{Direction, SaId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::early::Early;
use super::probes::{self, Verdict};
use super::shared::Shared;
use super::socket::EspSocket;
use crate::plane::probing::Received;
use crate::quality::wire;
use crate::sys::mmsg::{self, Receiver};
use crate::sys::tun::TunOffload;
use crate::traffic::level::Size;
use crate::traffic::meter::Meter;

/// Which eventfd wakes this thread.
pub(super) const WAKE: usize = 1;
/// Datagrams (or trains of them) in one call.
const SLOTS: usize = 64;
const FEWEST_SLOTS: usize = 4;
/// Longest UDP payload, and some cache lines more: slots at distances of a power of two would all begin in the same few
/// sets of the processor's caches.
const SLOT_LEN: usize = 65_536 + 5 * 64;
/// Octets in one call beyond which the next takes less; about what stays in a core's cache until it is opened and written.
const ENOUGH: usize = 192 << 10;
/// At most one event about an SA's peer in this time.
const MOVED_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Ingress {
    receiver: Receiver,
    received: Vec<mmsg::Received>,
    /// Slots of the next call.
    slots: usize,
    early: Early,
    /// The tables in which what waits has been looked for.
    early_seen: Option<Arc<Tables>>,
    opener: Opener,
}

/// From ESP to packets on the device.
struct Opener {
    shared: Arc<Shared>,
    coalescer: Coalescer,
    meter: Meter,
    /// Peers' probes.
    probed: Received,
    /// When each SA's peer was last said to have moved.
    moved: BTreeMap<SaId, Instant>,
}

impl Ingress {
    pub fn new(shared: Arc<Shared>) -> Self {
        let joins = match shared.tun.load().offload() {
            TunOffload::None => Joins::Nothing,
            TunOffload::Tcp => Joins::Tcp,
            TunOffload::TcpUdp => Joins::TcpUdp,
        };
        let meter = Meter::new(Arc::clone(&shared.traffic), Direction::In);
        Self {
            receiver: Receiver::new(SLOTS, SLOT_LEN),
            received: Vec::with_capacity(SLOTS),
            slots: FEWEST_SLOTS,
            early: Early::default(),
            early_seen: None,
            opener: Opener {
                shared,
                coalescer: Coalescer::new(joins),
                meter,
                probed: Received::default(),
                moved: BTreeMap::new(),
            },
        }
    }

    /// Runs until the plane stops.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.opener.shared);
        while !shared.stopping() {
            if !self.early.is_empty() {
                self.take_early(&shared);
            }
            let sockets = shared.sockets.load_full();
            for socket in Self::wait(&shared, &sockets, self.early.until()) {
                self.serve(socket);
            }
        }
    }

    /// Sleeps until sockets have something, somebody wakes us, or a time has come.
    fn wait<'a>(
        shared: &Shared,
        sockets: &'a [Arc<EspSocket>],
        until: Option<Instant>,
    ) -> Vec<&'a EspSocket> {
        let Some(wake) = shared.wake.get(WAKE) else { return Vec::new() };
        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let millis = until.saturating_duration_since(Instant::now()).as_millis() + 1;
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        if poll(&mut fds, timeout).is_err() {
            return Vec::new();
        }
        let ready = |fd: &PollFd<'_>| fd.any() == Some(true);
        if fds.first().is_some_and(ready) {
            let _ = wake.read();
        }
        fds.iter().skip(1).zip(sockets).filter(|(fd, _)| ready(fd)).map(|(_, socket)| &**socket).collect()
    }

    /// Takes one call's worth of datagrams from a socket and writes what they carry to the device.
    fn serve(&mut self, socket: &EspSocket) {
        let mut received = std::mem::take(&mut self.received);
        received.clear();
        // Errors of a UDP socket (an ICMP answer, a race for the datagram) concern nobody here.
        let _ = self.receiver.receive(socket.as_fd(), self.slots, &mut received);
        self.slots = next_slots(self.slots, &received);
        let shared = Arc::clone(&self.opener.shared);
        let tables = shared.tables.load();
        let mut sad = Sad { tables: &tables, last: None };
        for train in &received {
            for start in train.range.clone().step_by(train.segment) {
                let range = start..(start + train.segment).min(train.range.end);
                if let Err(reason) = self.take(&mut sad, socket.local(), range, train) {
                    shared.drops.count(reason, 1);
                }
            }
        }
        self.received = received;
        self.opener.flush(self.receiver.arena());
    }

    fn take(
        &mut self,
        sad: &mut Sad<'_>,
        local: SocketAddr,
        range: Range<usize>,
        train: &mmsg::Received,
    ) -> Result<(), DropReason> {
        let arena = self.receiver.arena();
        let datagram = arena.get_mut(range.clone()).ok_or(DropReason::Truncated)?;
        match natt::classify(datagram) {
            Carried::Ike(message) => {
                (self.opener.shared.ike_sink)(local, train.from, message);
                return Ok(());
            }
            Carried::Keepalive => return Ok(()),
            Carried::Noise => return Err(DropReason::Truncated),
            Carried::Esp => {}
        }
        let (spi, _) = packet::header(datagram).ok_or(DropReason::Truncated)?;
        let Some(inbound) = sad.inbound(spi) else {
            let kept = self.early.keep(spi, datagram, train.from, train.tos, Instant::now());
            return if kept { Ok(()) } else { Err(DropReason::UnknownSpi) };
        };
        self.opener.open(inbound, arena, range, train.from, train.tos)
    }

    /// Takes the packets whose SAs have come, and gives up those that waited in vain.
    fn take_early(&mut self, shared: &Shared) {
        shared.early.store(true, Ordering::Relaxed);
        // Whoever publishes tables stores them and then reads the flag: either we see the tables or they see the flag.
        fence(Ordering::SeqCst);
        let tables = shared.tables.load_full();
        let now = Instant::now();
        // Strangers decide how much waits: it is looked through when something may have come of it, not for each batch.
        let same = self.early_seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &tables));
        if same && self.early.until().is_some_and(|until| until > now) {
            return;
        }
        let (ready, late) = self.early.take(|spi| tables.inbound(spi).is_some(), now);
        shared.drops.count(DropReason::UnknownSpi, late);
        let mut arena = Vec::with_capacity(ready.iter().map(|packet| packet.esp.len()).sum());
        for packet in ready {
            let range = arena.len()..arena.len() + packet.esp.len();
            arena.extend_from_slice(&packet.esp);
            let opened = match packet::header(&packet.esp).and_then(|(spi, _)| tables.inbound(spi)) {
                Some(inbound) => self.opener.open(inbound, &mut arena, range, packet.from, packet.tos),
                None => Err(DropReason::UnknownSpi),
            };
            if let Err(reason) = opened {
                shared.drops.count(reason, 1);
            }
        }
        self.opener.flush(&mut arena);
        if self.early.is_empty() {
            shared.early.store(false, Ordering::Relaxed);
        }
        self.early_seen = (!self.early.is_empty()).then_some(tables);
    }
}

/// Inbound SAs, of which neighbours on the way usually have the same.
struct Sad<'a> {
    tables: &'a Tables,
    last: Option<(u32, &'a Inbound)>,
}

impl<'a> Sad<'a> {
    fn inbound(&mut self, spi: u32) -> Option<&'a Inbound> {
        if let Some((last, inbound)) = self.last
            && last == spi
        {
            return Some(inbound);
        }
        let inbound = self.tables.inbound(spi)?;
        self.last = Some((spi, inbound));
        Some(inbound)
    }
}

/// How many slots the next call gets, after one that brought `received` in so many.
fn next_slots(slots: usize, received: &[mmsg::Received]) -> usize {
    if received.iter().map(|train| train.range.len()).sum::<usize>() > ENOUGH {
        (slots / 2).max(FEWEST_SLOTS)
    } else if received.len() == slots {
        (slots * 2).min(SLOTS)
    } else {
        slots
    }
}

impl Opener {
    /// Opens the ESP packet that lies somewhere in an arena, in place, for the next [`Opener::flush`].
    fn open(
        &mut self,
        inbound: &Inbound,
        arena: &mut [u8],
        range: Range<usize>,
        from: SocketAddr,
        tos: u8,
    ) -> Result<(), DropReason> {
        let datagram = arena.get_mut(range.clone()).ok_or(DropReason::Truncated)?;
        let authentic = inbound.sa.open(datagram, tos)?;
        if authentic.age == Age::Newest && inbound.path.remote != from {
            self.peer_moved(inbound.sa.id(), from);
        }
        if let Some(limit) = authentic.limit {
            let hard = limit == Limit::Hard;
            self.shared.events.push(PlaneEvent::Expired { sa: inbound.sa.id(), hard });
        }
        let opened = authentic.content?;
        if wire::may_be(&opened.header) && self.take_probe(inbound.sa.id().child, datagram, &opened) {
            return Ok(());
        }
        if let Some(mut flow) = self.meter.flow(inbound.sa.id().child.tunnel, opened.header.dst) {
            flow.admit(Size::new(opened.range.len(), range.len(), from.is_ipv4()))?;
            flow.carried(opened.range.len());
        }
        let inner = range.start + opened.range.start..range.start + opened.range.end;
        self.coalescer.push(arena, inner, &opened.header);
        Ok(())
    }

    /// Takes a packet off the host's way if it is an answer to a probe of ours, or a probe that is answered here.
    fn take_probe(&mut self, child: ChildId, datagram: &[u8], opened: &Opened) -> bool {
        let Some(packet) = datagram.get(opened.range.clone()) else { return false };
        let probing = self.shared.probes.probing.load();
        let Some(probing) = probing.as_deref() else { return false };
        match probes::look(&mut self.probed, probing, child, packet, &opened.header) {
            Verdict::Pass => false,
            Verdict::Taken => true,
            Verdict::Answered(answer) => {
                self.shared.send_probes([answer]);
                true
            }
        }
    }

    fn peer_moved(&mut self, sa: SaId, remote: SocketAddr) {
        let now = Instant::now();
        if self.moved.get(&sa).is_some_and(|then| now.duration_since(*then) < MOVED_EVERY) {
            return;
        }
        self.moved.retain(|_, then| now.duration_since(*then) < MOVED_EVERY);
        self.moved.insert(sa, now);
        self.shared.events.push(PlaneEvent::PeerMoved { sa, remote });
    }

    /// Writes what was opened in an arena to the device.
    fn flush(&mut self, arena: &mut [u8]) {
        self.meter.flush();
        if self.coalescer.is_empty() {
            return;
        }
        let Self { shared, coalescer, .. } = self;
        let tun = shared.tun.load();
        coalescer.flush(arena, |parts, packets| {
            if tun.write(parts).is_err() {
                shared.drops.count(DropReason::Tun, packets);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trains(count: usize, len: usize) -> Vec<mmsg::Received> {
        let from = ([127, 0, 0, 1], 4500).into();
        vec![mmsg::Received { range: 0..len, segment: len.min(1_400), from, tos: 0 }; count]
    }

    #[test]
    fn many_small_datagrams_go_in_one_call_and_few_long_trains() {
        let after =
            |start: usize, len: usize| (0..10).fold(start, |slots, _| next_slots(slots, &trains(slots, len)));
        assert_eq!(after(FEWEST_SLOTS, 100), SLOTS);
        assert_eq!(after(SLOTS, 65_000), FEWEST_SLOTS);
        // Some of both: neither more nor less.
        assert_eq!(next_slots(16, &trains(3, 1_400)), 16);
    }
}
