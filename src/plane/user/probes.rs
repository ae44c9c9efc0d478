//! Probes of tunnels pass beside the TUN device: they go by the tunnel that is probed, whatever tunnel carries its packets,
//! and what comes back does not bother the host.
//!
//! ```text
//!   driver ─▶ queue ─▶ egress thread ─▶ that child's outbound SA
//!   driver ◀─ sink ◀── ingress thread ◀─ an answer to one of ours
//!                      ingress thread ◀─ a peer's probe for an address of ours ─▶ queue ─▶ the child by which it came
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use cygnet_esp::inner::InnerHeader;
use cygnet_model::{ChildId, TunnelId};

use crate::quality::Method;
use crate::quality::wire::{self, Reply, Seen};

/// Probes that wait for the egress thread at most; those beyond are lost, as by a full link.
const QUEUE: usize = 16_384;

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

/// What the ingress thread has to know.
pub struct Probing {
    /// By this answers are known as ours.
    pub token: u64,
    /// Addresses for which the peers' probes are answered.
    pub own: BTreeSet<IpAddr>,
    /// Where answers go.
    pub sink: AnswerSink,
}

/// A probe, or an answer, on its way to the egress thread.
pub struct Outgoing {
    /// The children by one of which it may go, the first one that can.
    pub children: Vec<ChildId>,
    /// The inner packet.
    pub packet: Vec<u8>,
}

/// What the threads share.
#[derive(Default)]
pub(super) struct Probes {
    queue: Mutex<VecDeque<Outgoing>>,
    pub probing: ArcSwapOption<Probing>,
}

impl Probes {
    /// Puts packets on their way; the egress thread has to be woken.
    pub fn push(&self, packets: impl IntoIterator<Item = Outgoing>) {
        let mut queue = self.queue();
        let room = QUEUE.saturating_sub(queue.len());
        queue.extend(packets.into_iter().take(room));
    }

    /// Takes the next one.
    pub fn pop(&self) -> Option<Outgoing> {
        self.queue().pop_front()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Outgoing>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the ingress thread keeps: how many probes of each tunnel it has received, by whose they are.
#[derive(Default)]
pub(super) struct Received(BTreeMap<TunnelId, (u64, TunnelId, u32)>);

/// What is to be done with a packet.
pub(super) enum Verdict {
    /// It is none of this; it goes to the host.
    Pass,
    /// It has been dealt with.
    Taken,
    /// It is a probe, and this its answer.
    Answered(Outgoing),
}

impl Received {
    /// Looks at a packet that came by a child.
    pub fn look(
        &mut self,
        probing: &Probing,
        child: ChildId,
        packet: &[u8],
        header: &InnerHeader,
    ) -> Verdict {
        let upper = packet.get(header.header_len..).unwrap_or_default();
        match wire::read(header.protocol, upper) {
            Some(Seen::Answer(reply)) if reply.probe.token == probing.token => {
                (probing.sink)(Answer::new(&reply, header.src, header.dst));
                Verdict::Taken
            }
            Some(Seen::Request(probe)) if probing.own.contains(&header.dst) => {
                let (token, tunnel, count) =
                    self.0.entry(child.tunnel).or_insert((probe.token, probe.tunnel, 0));
                if (*token, *tunnel) != (probe.token, probe.tunnel) {
                    (*token, *tunnel, *count) = (probe.token, probe.tunnel, 0);
                }
                *count = count.saturating_add(1);
                match wire::answer(packet, header, *count) {
                    Some(packet) => Verdict::Answered(Outgoing { children: vec![child], packet }),
                    None => Verdict::Pass,
                }
            }
            _ => Verdict::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::quality::wire::Probe;

    const CHILD: ChildId = ChildId { tunnel: TunnelId(3), index: 0 };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn look(received: &mut Received, probing: &Probing, packet: &[u8]) -> Verdict {
        let header = InnerHeader::parse(packet).unwrap();
        received.look(probing, CHILD, packet, &header)
    }

    const METHODS: [Method; 2] = [Method::Icmp, Method::Udp { port: 7 }];

    #[test]
    fn a_peers_probe_is_answered_where_it_came_and_counted() {
        for (method, by) in METHODS
            .into_iter()
            .zip([By::Icmp, By::Udp { from: "10.2.0.1:7".parse().unwrap(), to: ip("10.1.0.1") }])
        {
            let (tx, answers) = mpsc::channel();
            let own = BTreeSet::from([ip("10.2.0.1")]);
            let theirs = Probing { token: 2, own, sink: Box::new(|_| ()) };
            let sink = Box::new(move |answer| tx.send(answer).unwrap());
            // An answer is none of the probes that are answered for this address.
            let ours = Probing { token: 1, own: BTreeSet::from([ip("10.1.0.1")]), sink };
            let (mut there, mut here) = (Received::default(), Received::default());
            for n in 1..=3 {
                let probe = Probe { token: 1, tunnel: TunnelId(9), seq: 100 + n };
                let packet = wire::request(&probe, method, ip("10.1.0.1"), ip("10.2.0.1")).unwrap();
                let Verdict::Answered(answer) = look(&mut there, &theirs, &packet) else {
                    panic!("not answered")
                };
                assert_eq!(answer.children, [CHILD]);
                assert!(matches!(look(&mut here, &ours, &answer.packet), Verdict::Taken));
                let expected = Answer { tunnel: TunnelId(9), seq: 100 + n, received: Some(n), by };
                assert_eq!(answers.try_recv().unwrap(), expected);
            }
        }
    }

    #[test]
    fn what_is_for_others_goes_to_the_host() {
        let own = BTreeSet::from([ip("10.2.0.1")]);
        let probing = Probing { token: 2, own, sink: Box::new(|_| panic!("not ours")) };
        let mut received = Received::default();
        let probe = Probe { token: 1, tunnel: TunnelId(9), seq: 1 };
        for method in METHODS {
            // For a host behind us, and the answer to a probe of a host behind us.
            let request = wire::request(&probe, method, ip("10.1.0.1"), ip("10.2.0.9")).unwrap();
            assert!(matches!(look(&mut received, &probing, &request), Verdict::Pass));
            let asked = InnerHeader::parse(&request).unwrap();
            let answer = wire::answer(&request, &asked, 0).unwrap();
            assert!(matches!(look(&mut received, &probing, &answer), Verdict::Pass));
        }
    }

    /// Two gateways would send each other the answers to answers for ever.
    #[test]
    fn the_answer_to_a_probe_of_an_earlier_life_is_not_answered() {
        let own = BTreeSet::from([ip("10.1.0.1")]);
        let probing = Probing { token: 2, own, sink: Box::new(|_| panic!("not ours")) };
        let earlier = Probe { token: 1, tunnel: TunnelId(9), seq: 1 };
        for method in METHODS {
            let request = wire::request(&earlier, method, ip("10.1.0.1"), ip("10.2.0.1")).unwrap();
            let asked = InnerHeader::parse(&request).unwrap();
            // Of a gateway that counts, and of a host that does not.
            for count in [5, 0] {
                let answer = wire::answer(&request, &asked, count).unwrap();
                let verdict = look(&mut Received::default(), &probing, &answer);
                assert!(matches!(verdict, Verdict::Pass), "{method:?}, {count}");
            }
        }
    }

    /// A service of the host at the same port gets what is not a probe.
    #[test]
    fn datagrams_without_a_probe_in_them_go_to_the_host() {
        let own = BTreeSet::from([ip("10.2.0.1")]);
        let probing = Probing { token: 2, own, sink: Box::new(|_| panic!("not ours")) };
        let probe = Probe { token: 1, tunnel: TunnelId(9), seq: 1 };
        let packet = wire::request(&probe, METHODS[1], ip("10.1.0.1"), ip("10.2.0.1")).unwrap();
        let header = InnerHeader::parse(&packet).unwrap();
        assert!(wire::may_be(&header));
        for at in header.header_len + wire::HEAD_LEN..header.header_len + wire::HEAD_LEN + wire::MAGIC.len() {
            let mut other = packet.clone();
            other[at] ^= 1;
            assert!(matches!(look(&mut Received::default(), &probing, &other), Verdict::Pass));
        }
    }

    #[test]
    fn the_queue_is_bounded() {
        let probes = Probes::default();
        let one = || Outgoing { children: vec![CHILD], packet: Vec::new() };
        probes.push((0..QUEUE + 5).map(|_| one()));
        let mut count = 0;
        while probes.pop().is_some() {
            count += 1;
        }
        assert_eq!(count, QUEUE);
    }
}
