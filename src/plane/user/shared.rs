//! What the plane's owner and its two threads share: tables by epoch, events, counters.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use cygnet_esp::DropReason;
use cygnet_esp::engine::Tables;
use cygnet_model::plane::PlaneEvent;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::egress;
use super::probes::Probes;
use super::socket::EspSocket;
use crate::plane::probing::Outgoing;
use crate::shaping::pause::Pause;
use crate::sys::tun::Tun;
use crate::traffic::meter::Traffic;

/// Receives IKE messages that came in on the sockets of the plane: our address, the peer's, and the message without
/// its non-ESP marker. It is called on the plane's thread and must be quick.
pub type IkeSink = Box<dyn Fn(SocketAddr, SocketAddr, &[u8]) + Send + Sync>;

pub(super) struct Shared {
    /// Another one after somebody deleted the device.
    pub tun: ArcSwap<Tun>,
    /// Published by the owner after each change; a thread looks at the newest for each batch.
    pub tables: ArcSwap<Tables>,
    pub sockets: ArcSwap<Vec<Arc<EspSocket>>>,
    pub events: Events,
    pub drops: Drops,
    /// The egress thread stands still while somebody wants it.
    pub pause: Arc<Pause>,
    /// Counts and limits of inner addresses.
    pub traffic: Arc<Traffic>,
    pub ike_sink: IkeSink,
    /// Probes of tunnels.
    pub probes: Probes,
    /// Packets wait for their inbound SAs: the ingress thread wants to know about new ones.
    pub early: AtomicBool,
    /// Wakes each thread out of its poll.
    pub wake: [EventFd; 3],
    pub stop: AtomicBool,
}

impl Shared {
    /// Makes the threads look at the sockets and at `stop` again.
    pub fn wake(&self) {
        for wake in &self.wake {
            // Fails only when the counter is at its limit, and then the thread is awake.
            let _ = wake.write(1);
        }
    }

    /// Hands probes, or answers to them, to the egress thread.
    pub fn send_probes(&self, packets: impl IntoIterator<Item = Outgoing>) {
        self.probes.push(packets);
        if let Some(egress) = self.wake.get(egress::WAKE) {
            // Fails only when the counter is at its limit, and then the thread is awake.
            let _ = egress.write(1);
        }
    }

    pub fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }
}

/// An eventfd that does not block.
pub(super) fn event_fd() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

/// Events on their way to the owner. Bounded: an owner that does not listen is told that it missed some.
pub(super) struct Events {
    queue: Mutex<Queue>,
    readable: EventFd,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<PlaneEvent>,
    lost: bool,
}

const MAX_EVENTS: usize = 4096;

impl Events {
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: Mutex::default(), readable: event_fd()? })
    }

    pub fn push(&self, event: PlaneEvent) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.events.len() < MAX_EVENTS {
            queue.events.push_back(event);
        } else {
            queue.lost = true;
        }
        let _ = self.readable.write(1);
    }

    pub fn pop(&self) -> Option<PlaneEvent> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let event = queue.events.pop_front();
        if event.is_some() {
            return event;
        }
        if std::mem::take(&mut queue.lost) {
            return Some(PlaneEvent::Lost);
        }
        // Under the lock, so that no event slips in between; `WouldBlock` if nothing was signalled.
        let _ = self.readable.read();
        None
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}

/// Dropped packets by reason.
pub(super) struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Drops {
    pub fn new() -> Self {
        Self([const { AtomicU64::new(0) }; DropReason::ALL.len()])
    }

    pub fn count(&self, reason: DropReason, packets: usize) {
        if let Some(counter) = self.0.get(reason.index()) {
            counter.fetch_add(packets as u64, Relaxed);
        }
    }

    pub fn all(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().zip(&self.0).map(|(reason, count)| (reason, count.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use cygnet_model::{ChildId, TunnelId};

    use super::*;

    #[test]
    fn events_come_in_order_and_loss_is_told_at_the_end() {
        let events = Events::new().unwrap();
        let acquire = |n| PlaneEvent::Acquire(ChildId { tunnel: TunnelId(n), index: 0 }.into());
        for n in 0..MAX_EVENTS as u32 + 3 {
            events.push(acquire(n));
        }
        for n in 0..MAX_EVENTS as u32 {
            assert_eq!(events.pop(), Some(acquire(n)));
        }
        assert_eq!(events.pop(), Some(PlaneEvent::Lost));
        assert_eq!(events.pop(), None);
        assert!(events.readable.read().is_err(), "nothing is signalled any more");
    }
}
