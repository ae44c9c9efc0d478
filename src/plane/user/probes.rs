//! Probes of tunnels pass beside the TUN device: they go by the tunnel that is probed, whatever tunnel carries its packets,
//! and what comes back does not bother the host.
//!
//! ```text
//!   driver ─▶ queue ─▶ egress thread ─▶ that child's outbound SA
//!   driver ◀─ sink ◀── ingress thread ◀─ an answer to one of ours
//!                      ingress thread ◀─ a peer's probe for an address of ours ─▶ queue ─▶ the child by which it came
//! ```

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwapOption;
use cygnet_esp::inner::InnerHeader;
use cygnet_model::ChildId;

use crate::plane::probing::{Answer, Outgoing, Probing, Received};
use crate::quality::wire::{self, Seen};

/// Probes that wait for the egress thread at most; those beyond are lost, as by a full link.
const QUEUE: usize = 16_384;

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

/// What is to be done with a packet.
pub(super) enum Verdict {
    /// It is none of this; it goes to the host.
    Pass,
    /// It has been dealt with.
    Taken,
    /// It is a probe, and this its answer.
    Answered(Outgoing),
}

/// Looks at a packet that came by a child.
pub(super) fn look(
    received: &mut Received,
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
            // What is too many the host may answer.
            let count = received.count(child.tunnel, &probe, Instant::now());
            match count.and_then(|count| wire::answer(packet, header, count)) {
                Some(packet) => {
                    Verdict::Answered(Outgoing { children: vec![child], packet, contested: false })
                }
                None => Verdict::Pass,
            }
        }
        _ => Verdict::Pass,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use std::sync::mpsc;

    use cygnet_model::TunnelId;

    use super::*;
    use crate::plane::probing::By;
    use crate::quality::Method;
    use crate::quality::wire::Probe;

    const CHILD: ChildId = ChildId { tunnel: TunnelId(3), index: 0 };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn look(received: &mut Received, probing: &Probing, packet: &[u8]) -> Verdict {
        let header = InnerHeader::parse(packet).unwrap();
        super::look(received, probing, CHILD, packet, &header)
    }

    const METHODS: [Method; 2] = [Method::Icmp, Method::Udp { port: 7 }];

    #[test]
    fn a_peers_probe_is_answered_where_it_came_and_counted() {
        for method in METHODS {
            let by = By { method, from: ip("10.2.0.1"), to: ip("10.1.0.1") };
            let (tx, answers) = mpsc::channel();
            let own = BTreeSet::from([ip("10.2.0.1")]);
            let theirs = Probing { token: 2, own, sink: Box::new(|_| ()) };
            let sink = Box::new(move |answer| tx.send(answer).unwrap());
            // An answer is none of the probes that are answered for this address.
            let ours = Probing { token: 1, own: BTreeSet::from([ip("10.1.0.1")]), sink };
            let (mut there, mut here) = (Received::default(), Received::default());
            for n in 1..=3 {
                let probe = Probe { token: 1, tunnel: TunnelId(9), seq: 100 + n, by: None };
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
        let probe = Probe { token: 1, tunnel: TunnelId(9), seq: 1, by: None };
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
        let earlier = Probe { token: 1, tunnel: TunnelId(9), seq: 1, by: None };
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
        let probe = Probe { token: 1, tunnel: TunnelId(9), seq: 1, by: None };
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
        let one = || Outgoing { children: vec![CHILD], packet: Vec::new(), contested: false };
        probes.push((0..QUEUE + 5).map(|_| one()));
        let mut count = 0;
        while probes.pop().is_some() {
            count += 1;
        }
        assert_eq!(count, QUEUE);
    }
}
