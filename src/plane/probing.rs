//! What both planes know of probes of tunnels: what goes, what comes back, and what is counted for the peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cygnet_model::{ChildId, TunnelId};

use crate::quality::Method;
use crate::quality::wire::{Probe, Reply};

/// An answer to one of our probes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The tunnel that was probed.
    pub tunnel: TunnelId,
    /// Which probe.
    pub seq: u32,
    /// How many the other end has received, if it tells.
    pub received: Option<u32>,
    /// By what it came.
    pub by: By,
}

impl Answer {
    /// What a packet between these addresses says.
    pub const fn new(reply: &Reply, from: IpAddr, to: IpAddr) -> Self {
        let by = By { method: reply.method, from, to };
        Self { tunnel: reply.probe.tunnel, seq: reply.probe.seq, received: reply.received, by }
    }
}

/// By what an answer came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct By {
    /// An echo reply, or a datagram from this port to the one from which probes of it are sent.
    pub method: Method,
    /// Who sent it.
    pub from: IpAddr,
    /// To which address.
    pub to: IpAddr,
}

/// Receives answers. It is called on the plane's thread and must be quick.
pub type AnswerSink = Box<dyn Fn(Answer) + Send + Sync>;

/// What whoever receives probes and answers has to know.
pub struct Probing {
    /// By this answers are known as ours.
    pub token: u64,
    /// Addresses for which the peers' probes are answered.
    pub own: BTreeSet<IpAddr>,
    /// Where answers go.
    pub sink: AnswerSink,
}

/// A probe, or an answer, on its way.
pub struct Outgoing {
    /// The children by one of which it may go, the first one that can.
    pub children: Vec<ChildId>,
    /// The inner packet.
    pub packet: Vec<u8>,
    /// Whether the host's policies may take such a packet into another tunnel.
    pub contested: bool,
}

/// Probes of one sender that are answered in a second at most; ours leave every 100 ms at most, while in doubt.
const ANSWERED_A_SECOND: u32 = 32;
/// Senders whose probes of a tunnel are counted and answered. One more may be a new life of one of them; the rest are none.
const SENDERS: usize = 4;
/// After so long a silence a sender's place may be another one's.
const SILENT: Duration = Duration::from_secs(10);

/// The peers' probes, by the tunnels by which they came.
#[derive(Default)]
pub struct Received(BTreeMap<TunnelId, Vec<Sender>>);

/// Whose probes come by a tunnel, and how many have.
struct Sender {
    whose: (u64, TunnelId),
    count: u32,
    heard: Instant,
    /// The second that runs, and how many came in it.
    second: (Instant, u32),
}

impl Received {
    /// Counts a probe that came by a tunnel, and says how many of its sender's have by now: that is what its answer tells. `None`: it is one
    /// of too many, and not to be answered. Whoever floods spends nobody's turn but their own.
    pub fn count(&mut self, by: TunnelId, probe: &Probe, now: Instant) -> Option<u32> {
        let whose = (probe.token, probe.tunnel);
        let senders = self.0.entry(by).or_default();
        if !senders.iter().any(|s| s.whose == whose) {
            senders.retain(|s| now.saturating_duration_since(s.heard) < SILENT);
            if senders.len() >= SENDERS {
                return None;
            }
            senders.push(Sender { whose, count: 0, heard: now, second: (now, 0) });
        }
        let sender = senders.iter_mut().find(|s| s.whose == whose)?;
        sender.heard = now;
        sender.count = sender.count.saturating_add(1);
        if now.saturating_duration_since(sender.second.0) >= Duration::from_secs(1) {
            sender.second = (now, 0);
        }
        sender.second.1 = sender.second.1.saturating_add(1);
        (sender.second.1 <= ANSWERED_A_SECOND).then_some(sender.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: TunnelId = TunnelId(1);

    fn probe(token: u64) -> Probe {
        Probe { token, tunnel: TunnelId(7), seq: 1, by: None }
    }

    #[test]
    fn probes_are_counted_by_tunnel_and_sender() {
        let (now, mut received) = (Instant::now(), Received::default());
        assert_eq!(received.count(T, &probe(5), now), Some(1));
        assert_eq!(received.count(T, &probe(5), now), Some(2));
        assert_eq!(received.count(TunnelId(2), &probe(5), now), Some(1), "by another tunnel");
        assert_eq!(received.count(T, &probe(6), now), Some(1), "another life");
        assert_eq!(received.count(T, &probe(5), now), Some(3), "what is still on its way of the one before");
    }

    #[test]
    fn a_flood_is_not_answered_and_takes_nobody_elses_turn() {
        let (now, mut received) = (Instant::now(), Received::default());
        received.count(T, &probe(5), now);
        let answered = (0..1000).filter_map(|_| received.count(T, &probe(6), now)).count();
        assert_eq!(answered as u32, ANSWERED_A_SECOND);
        // With ever new tokens no more than a few are heard, and none in the place of who was there.
        let answered = (100..1100).filter_map(|token| received.count(T, &probe(token), now)).count();
        assert_eq!(answered, SENDERS - 2);
        assert_eq!(received.count(T, &probe(5), now), Some(2));
        let later = now + Duration::from_secs(1);
        assert_eq!(received.count(T, &probe(6), later), Some(1001), "all that came are counted");
        let at_last = later + SILENT;
        assert_eq!(received.count(T, &probe(9), at_last), Some(1), "who is silent gives up the place");
    }
}
