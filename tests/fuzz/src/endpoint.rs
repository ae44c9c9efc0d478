//! The whole protocol: two gateways, a stranger who saw everything, and an operator who cannot make up his mind.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use cygnet_ike::view::TunnelState;
use cygnet_ike::{Command, Flow, Input as Told};
use cygnet_model::ChildId;
use cygnet_sim::{ADDRESSES, Lab, Link, TUNNEL};

use crate::input::Input;

const SEED: u64 = 7;

/// Datagrams by sender.
type Datagrams = Vec<(usize, Vec<u8>)>;

/// A program: octet by octet it lets time pass, replays and damages what was sent, sends its own, gives commands,
/// and reports what a data plane may report. No step makes
/// more than one SA, and when it is over the true
/// gateways agree again.
pub fn endpoint(data: &[u8]) {
    // The first request is sent before anybody can listen, and again a second later.
    let mut lab = Lab::pair(SEED, Link { loss: 1000, ..Link::GOOD });
    lab.link = Link::GOOD;
    let heard: Rc<RefCell<Datagrams>> = Rc::default();
    let tapped = Rc::clone(&heard);
    lab.tap = Some(Box::new(move |side, octets| {
        tapped.borrow_mut().push((side, octets.clone()));
        Some(octets)
    }));
    let mut program = Input(data);
    for steps in 1..=64 {
        if program.is_empty() {
            break;
        }
        let step = program.u8();
        let side = usize::from(step >> 7);
        match step & 0x0F {
            0..=2 => lab.run(Duration::from_millis(1 << (program.u8() % 13))),
            3..=6 => {
                // Something that was sent, the latest first, as it was or with up to three octets changed.
                let back = program.below(heard.borrow().len().max(1));
                let Some((sender, mut octets)) = heard.borrow().iter().rev().nth(back).cloned() else {
                    continue;
                };
                for _ in 3..step & 0x0F {
                    let at = program.below(octets.len());
                    octets[at] = program.u8();
                }
                let to = if step & 0x40 != 0 { sender } else { 1 - sender };
                lab.inject(to, flow(to, step), &octets);
            }
            7 => {
                let len = usize::from(program.u8());
                lab.inject(side, flow(side, step), program.take(len));
            }
            8 => lab.command(side, Command::Up(TUNNEL)),
            9 => lab.command(side, Command::Down(TUNNEL)),
            10 => lab.command(side, Command::RekeyChildren(TUNNEL)),
            11 => lab.command(side, Command::RekeyIke(TUNNEL)),
            12 => lab.command(side, Command::Reset(TUNNEL)),
            13 => lab.input(side, Told::Acquire(ChildId { tunnel: TUNNEL, index: 0 }.into())),
            14 => lab.gateways[side].plane.fail_next = u32::from(program.u8() % 3),
            _ => {
                let sas: Vec<_> = lab.gateways[side].plane.sas.keys().copied().collect();
                if let Some(sa) = sas.get(program.below(sas.len().max(1))) {
                    let told = match step >> 4 & 3 {
                        0 => Told::Inbound(*sa),
                        1 => Told::PeerMoved { sa: *sa, remote: SocketAddr::from(([203, 0, 113, 9], 9)) },
                        hard => Told::Expired { sa: *sa, hard: hard == 3 },
                    };
                    lab.input(side, told);
                }
            }
        }
        for gateway in &lab.gateways {
            let sas = gateway.endpoint.sa_count();
            // One of our own, one of the peer, and no more than one for each datagram or command.
            assert!(sas <= 2 + steps, "{sas} SAs after {steps} steps");
        }
    }
    for side in 0..2 {
        lab.gateways[side].plane.fail_next = 0;
        lab.command(side, Command::Up(TUNNEL));
    }
    lab.run(Duration::from_secs(700));
    assert_settled(&lab);
}

/// Both ends hold one IKE SA, one pair and one open tunnel, what they send on the other can open, and nothing leaks.
fn assert_settled(lab: &Lab) {
    for (own, peer) in [(0, 1), (1, 0)] {
        let view = lab.view(own);
        assert_eq!(view.state, TunnelState::Up, "gateway {own}");
        assert_eq!(view.children.len(), 1, "pairs of gateway {own}");
        let (own, peer) = (&lab.gateways[own], &lab.gateways[peer]);
        assert_eq!(own.endpoint.sa_count(), 1);
        assert_eq!(own.endpoint.reserved(), (1, 1), "leaked SPIs");
        assert_eq!((own.plane.tunnels.len(), own.plane.sas.len()), (1, 2));
        let outbound = own.plane.outbound(view.children[0].id).expect("an outbound SA");
        let inbound = peer.plane.inbound(outbound.id.spi).expect("the peer's half of it");
        assert!(inbound.encr_key.ct_eq(outbound.encr_key.expose()));
        assert_eq!(inbound.inner_remote, outbound.inner_local);
    }
}

/// From the other gateway or from elsewhere, on either port.
fn flow(to: usize, step: u8) -> Flow {
    let [own, peer]: [IpAddr; 2] = [to, 1 - to].map(|i| ADDRESSES[i].parse().expect("an address"));
    let stranger = IpAddr::from([198, 51, 100, 7]);
    let natt = step & 0x20 != 0;
    let port = if natt { 4500 } else { 500 };
    let remote = if step & 0x10 != 0 { stranger } else { peer };
    Flow { local: (own, port).into(), remote: (remote, port).into(), natt }
}
