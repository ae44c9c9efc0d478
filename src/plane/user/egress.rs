//! The way out: TUN → policy → seal → UDP, on one thread.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cygnet_esp::engine::Tables;
use cygnet_esp::inner::InnerHeader;
use cygnet_esp::segment::{Superpacket, VNET_LEN, VnetHeader};
use cygnet_esp::{DropReason, Limit, ecn};
use cygnet_model::ChildId;
use cygnet_model::plane::{Acquire, PlaneEvent};
use cygnet_model::selector::{Packet, PacketEnd};
use cygnet_model::tunnel::Direction;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::batch::{Batch, Train};
use super::shared::Shared;
use super::socket::EspSocket;
use crate::plane::probing::Outgoing as Probe;
use crate::sys::mmsg::{Outgoing, Sender};
use crate::sys::tun::Tun;
use crate::traffic::level::Size;
use crate::traffic::meter::Meter;

/// Which eventfd wakes this thread.
pub(super) const WAKE: usize = 0;
/// Longest superpacket of a TUN device with its header.
const READ_LEN: usize = VNET_LEN + 65_536;
/// At most one acquire a child in this time.
const ACQUIRE_EVERY: Duration = Duration::from_secs(1);
/// How long a full socket may hold up the thread for a whole batch before its packets are dropped, if there is no other
/// socket whose packets would wait with it. Other tunnels wait as long.
const SEND_PATIENCE: Duration = Duration::from_millis(2);

pub(super) struct Egress {
    shared: Arc<Shared>,
    batch: Batch,
    meter: Meter,
    sender: Sender,
    outgoing: Vec<Outgoing>,
    /// When each child was last asked for.
    asked: BTreeMap<ChildId, Instant>,
}

impl Egress {
    pub fn new(shared: Arc<Shared>, gso: bool) -> Self {
        let meter = Meter::new(Arc::clone(&shared.traffic), Direction::Out);
        Self {
            shared,
            batch: Batch::new(gso),
            meter,
            sender: Sender::default(),
            outgoing: Vec::new(),
            asked: BTreeMap::new(),
        }
    }

    /// Runs until the plane stops.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut buffer = vec![0; READ_LEN];
        while !shared.stopping() {
            shared.pause.obey();
            let (tables, tun) = (shared.tables.load(), shared.tun.load());
            let drained = loop {
                match tun.read(&mut buffer) {
                    Ok(len) => {
                        let packet = buffer.get(..len).unwrap_or(&[]);
                        if let Err(reason) = self.take(&tables, packet) {
                            shared.drops.count(reason, 1);
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // Anything but "empty" (the device is down) passes too, or a new wake-up tells of the end.
                    Err(_) => break true,
                }
                if self.batch.is_full() || self.meter.is_full() {
                    break false;
                }
            };
            self.take_probes(&tables);
            self.flush();
            if drained {
                shared.pause.rest(|| self.wait(&tun));
            }
        }
        shared.pause.end();
    }

    /// Sleeps until the device has a packet or somebody wakes us.
    fn wait(&self, tun: &Tun) {
        let Some(wake) = self.shared.wake.get(WAKE) else { return };
        let mut fds =
            [PollFd::new(tun.as_fd(), PollFlags::POLLIN), PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            return;
        }
        if fds.last().is_some_and(|fd| fd.any() == Some(true)) {
            let _ = wake.read();
        }
        // A device that is down or gone is always "in error": do not spin on it.
        let down = |fd: &PollFd<'_>| fd.revents().is_some_and(|r| r.contains(PollFlags::POLLERR));
        if fds.first().is_some_and(down) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// One packet from the device: finds its SA, cuts it into segments and seals each.
    fn take(&mut self, tables: &Tables, bytes: &[u8]) -> Result<(), DropReason> {
        let (vnet, packet) = bytes.split_first_chunk::<VNET_LEN>().ok_or(DropReason::Malformed)?;
        let vnet = VnetHeader::from_bytes(*vnet).ok_or(DropReason::Malformed)?;
        let inner = InnerHeader::parse(packet).ok_or(DropReason::Malformed)?;
        let (sa, path) = tables.spd.route(&inner).map_err(|refusal| {
            if let Some(child) = refusal.acquire {
                self.acquire(child, &inner);
            }
            refusal.reason
        })?;
        let superpacket = Superpacket::new(&vnet, packet, &inner).ok_or(DropReason::Malformed)?;
        let layout = sa.sa().layout();
        let tos = ecn::outer(inner.tos);
        let mut flow = self.meter.flow(sa.sa().id().child.tunnel, inner.src);
        for i in 0..superpacket.count() {
            let len = superpacket.segment_len(i);
            // What comes behind it may be shorter, and pass.
            let size = Size::new(len, layout.sealed_len(len), path.remote.is_ipv4());
            if let Some(Err(reason)) = flow.as_mut().map(|flow| flow.admit(size)) {
                self.shared.drops.count(reason, 1);
                continue;
            }
            let head = layout.head_len();
            let limit = self.batch.push(layout.sealed_len(len), path, tos, |out| {
                let place = out.get_mut(head..head + len).ok_or(DropReason::TooBig)?;
                superpacket.write(i, place).ok_or(DropReason::Malformed)?;
                sa.seal(out, len)
            })?;
            if let Some(flow) = &mut flow {
                flow.carried(len);
            }
            if let Some(limit) = limit {
                let hard = limit == Limit::Hard;
                self.shared.events.push(PlaneEvent::Expired { sa: sa.sa().id(), hard });
            }
        }
        Ok(())
    }

    /// Seals the probes that wait. Their fate is watched by whoever sent them; nothing is counted here.
    fn take_probes(&mut self, tables: &Tables) {
        while let Some(Probe { children, packet, .. }) = self.shared.probes.pop() {
            let Some(inner) = InnerHeader::parse(&packet) else { continue };
            let ways = children.into_iter().filter_map(|child| tables.spd.route_by(child, &inner).ok());
            for (sa, path) in ways.take(1) {
                let (layout, tos, len) = (sa.sa().layout(), ecn::outer(inner.tos), packet.len());
                let head = layout.head_len();
                let sealed = self.batch.push(layout.sealed_len(len), path, tos, |out| {
                    out.get_mut(head..head + len).ok_or(DropReason::TooBig)?.copy_from_slice(&packet);
                    sa.seal(out, len)
                });
                if let Ok(Some(limit)) = sealed {
                    let hard = limit == Limit::Hard;
                    self.shared.events.push(PlaneEvent::Expired { sa: sa.sa().id(), hard });
                }
            }
            if self.batch.is_full() {
                self.flush();
            }
        }
    }

    fn acquire(&mut self, child: ChildId, inner: &InnerHeader) {
        let now = Instant::now();
        if self.asked.get(&child).is_some_and(|then| now.duration_since(*then) < ACQUIRE_EVERY) {
            return;
        }
        self.asked.retain(|_, then| now.duration_since(*then) < ACQUIRE_EVERY);
        self.asked.insert(child, now);
        let end = |addr, port| PacketEnd { addr, protocol: inner.protocol, port };
        let local = end(inner.src, inner.ports.map(|p| p.0));
        let remote = end(inner.dst, inner.ports.map(|p| p.1));
        let packet = Some(Packet::between(&local, &remote));
        self.shared.events.push(PlaneEvent::Acquire(Acquire { child, packet }));
    }

    /// Sends the batch: runs of trains that leave by the same socket go in one call.
    fn flush(&mut self) {
        self.meter.flush();
        if self.batch.is_empty() {
            return;
        }
        let sockets = self.shared.sockets.load();
        let mut patience = if sockets.len() == 1 { SEND_PATIENCE } else { Duration::ZERO };
        for run in self.batch.trains().chunk_by(|a, b| a.path.local == b.path.local) {
            let socket = run.first().and_then(|train| sockets.iter().find(|s| s.local() == train.path.local));
            let Some(socket) = socket else {
                self.shared.drops.count(DropReason::Socket, run.iter().map(|train| train.count).sum());
                continue;
            };
            let mut pipe = Pipe {
                shared: &self.shared,
                socket,
                patience: &mut patience,
                arena: self.batch.arena(),
                sender: &mut self.sender,
                outgoing: &mut self.outgoing,
            };
            pipe.send_trains(run);
        }
        self.batch.clear();
    }
}

/// One socket while a batch is sent.
struct Pipe<'a> {
    shared: &'a Shared,
    socket: &'a EspSocket,
    /// What is left of it.
    patience: &'a mut Duration,
    arena: &'a [u8],
    sender: &'a mut Sender,
    outgoing: &'a mut Vec<Outgoing>,
}

impl Pipe<'_> {
    fn send_trains(&mut self, mut trains: &[Train]) {
        while !trains.is_empty() {
            if !self.socket.gso() {
                for train in trains {
                    self.send_single(train);
                }
                return;
            }
            self.outgoing.clear();
            self.outgoing.extend(trains.iter().map(Train::outgoing));
            let sent = match self.send_patiently(0) {
                Ok(sent) => sent,
                Err(error) => {
                    let Some(first) = trains.first() else { return };
                    // EIO: the device cannot compute checksums. EINVAL, EMSGSIZE: the segments exceed the path's MTU;
                    // single datagrams may be fragmented.
                    match error {
                        Errno::EIO if first.count > 1 => self.socket.without_gso(),
                        Errno::EINVAL | Errno::EMSGSIZE if first.count > 1 => {}
                        _ => {
                            self.refused(error, first.count);
                            trains = trains.get(1..).unwrap_or(&[]);
                            continue;
                        }
                    }
                    self.send_single(first);
                    1
                }
            };
            trains = trains.get(sent..).unwrap_or(&[]);
        }
    }

    fn send_single(&mut self, train: &Train) {
        self.outgoing.clear();
        self.outgoing.extend(train.single());
        let mut at = 0;
        while at < self.outgoing.len() {
            match self.send_patiently(at) {
                Ok(sent) => at += sent.max(1),
                Err(error) => {
                    self.refused(error, 1);
                    at += 1;
                }
            }
        }
    }

    /// Sends from `outgoing[from]` on and waits for a full socket as long as there is patience.
    fn send_patiently(&mut self, from: usize) -> Result<usize, Errno> {
        loop {
            let rest = self.outgoing.get(from..).unwrap_or(&[]);
            match self.sender.send(self.socket.as_fd(), self.arena, rest) {
                Ok(sent) => return Ok(sent),
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                    Errno::EINTR => {}
                    Errno::EAGAIN if !self.patience.is_zero() && !self.shared.stopping() => {
                        let begin = Instant::now();
                        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                        let left = PollTimeout::try_from(self.patience.as_millis().max(1))
                            .unwrap_or(PollTimeout::ZERO);
                        let _ = poll(&mut fds, left);
                        *self.patience = self.patience.saturating_sub(begin.elapsed());
                    }
                    errno => return Err(errno),
                },
            }
        }
    }

    fn refused(&self, error: Errno, packets: usize) {
        let reason = match error {
            Errno::EMSGSIZE => DropReason::TooBig,
            Errno::EAGAIN | Errno::ENOBUFS => DropReason::SocketFull,
            _ => DropReason::Socket,
        };
        self.shared.drops.count(reason, packets);
    }
}
