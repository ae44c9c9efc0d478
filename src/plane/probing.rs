//! What both planes know of probes of tunnels: what goes, what comes back, and what is counted for the peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
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
        let by = match reply.method {
            Method::Icmp => By::Icmp,
            Method::Udp { port } => By::Udp { from: SocketAddr::new(from, port), to },
        };
        Self { tunnel: reply.probe.tunnel, seq: reply.probe.seq, received: reply.received, by }
    }
}

/// By what an answer came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// An echo reply.
    Icmp,
    /// A datagram to the port from which probes of its port are sent.
    Udp {
        /// Who sent it.
        from: SocketAddr,
        /// To which address.
        to: IpAddr,
    },
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

/// Probes of a tunnel that are answered in a second at most, by whomever they are; ours leave every 100 ms at most, while in doubt.
const ANSWERED_A_SECOND: u32 = 32;

/// The peers' probes, by the tunnels by which they came.
#[derive(Default)]
pub struct Received(BTreeMap<TunnelId, Counted>);

/// Whose probes come by a tunnel, and how many have.
struct Counted {
    whose: (u64, TunnelId),
    count: u32,
    /// The second that runs, and how many came in it.
    second: (Instant, u32),
}

impl Received {
    /// Counts a probe that came by a tunnel, and says how many have by now: that is what its answer tells. Another life of its sender
    /// begins anew. `None`: it is one of too many, and not to be answered.
    pub fn count(&mut self, by: TunnelId, probe: &Probe, now: Instant) -> Option<u32> {
        let whose = (probe.token, probe.tunnel);
        let known = self.0.entry(by).or_insert(Counted { whose, count: 0, second: (now, 0) });
        if known.whose != whose {
            (known.whose, known.count) = (whose, 0);
        }
        known.count = known.count.saturating_add(1);
        if now.saturating_duration_since(known.second.0) >= Duration::from_secs(1) {
            known.second = (now, 0);
        }
        known.second.1 = known.second.1.saturating_add(1);
        (known.second.1 <= ANSWERED_A_SECOND).then_some(known.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_counted_by_tunnel_and_life_and_a_flood_is_not_answered() {
        let (now, mut received) = (Instant::now(), Received::default());
        let probe = |token| Probe { token, tunnel: TunnelId(7), seq: 1, by: None };
        assert_eq!(received.count(TunnelId(1), &probe(5), now), Some(1));
        assert_eq!(received.count(TunnelId(1), &probe(5), now), Some(2));
        assert_eq!(received.count(TunnelId(2), &probe(5), now), Some(1), "by another tunnel");
        assert_eq!(received.count(TunnelId(1), &probe(6), now), Some(1), "another life");
        let answered = (0..1000).filter_map(|_| received.count(TunnelId(1), &probe(6), now)).count();
        assert_eq!(answered as u32, ANSWERED_A_SECOND - 3);
        assert_eq!(received.count(TunnelId(2), &probe(5), now), Some(2));
        let later = now + Duration::from_secs(1);
        assert_eq!(received.count(TunnelId(1), &probe(6), later), Some(1002), "all that came are counted");
    }
}
