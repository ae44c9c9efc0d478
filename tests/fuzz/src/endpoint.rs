//! The whole protocol: two gateways, a stranger who saw everything, and an operator who cannot make up his mind.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use cygnet_ike::{Command, Flow, Input as Told};
use cygnet_model::ChildId;
use cygnet_sim::{ADDRESSES, Lab, Link, TUNNEL};

use crate::input::Input;

const SEED: u64 = 7;

/// Datagrams by sender.
type Recording = Vec<(usize, Vec<u8>)>;

/// Every datagram of a handshake, both rekeys and a deletion. The same seed makes the same keys, so that they mean
/// something to the gateways under test.
pub fn recording() -> &'static Recording {
    static RECORDING: OnceLock<Recording> = OnceLock::new();
    RECORDING.get_or_init(|| {
        let log: Rc<RefCell<Recording>> = Rc::default();
        let tapped = Rc::clone(&log);
        // The first requests are sent before anybody can listen, and again a second later.
        let mut lab = Lab::pair(SEED, Link { loss: 1000, ..Link::GOOD });
        lab.tap = Some(Box::new(move |side, octets| {
            tapped.borrow_mut().push((side, octets.clone()));
            Some(octets)
        }));
        lab.link = Link::GOOD;
        lab.run(Duration::from_secs(5));
        lab.command(0, Command::RekeyChildren(TUNNEL));
        lab.run(Duration::from_secs(1));
        lab.command(1, Command::RekeyIke(TUNNEL));
        lab.run(Duration::from_secs(1));
        lab.command(1, Command::Down(TUNNEL));
        lab.run(Duration::from_secs(1));
        drop(lab);
        log.take()
    })
}

/// A program: octet by octet it lets time pass, replays and damages recorded datagrams, sends its own, gives commands,
/// and reports what a data plane may report. The number of SAs stays bounded throughout, and when it is over the true
/// gateways agree again.
pub fn endpoint(data: &[u8]) {
    let recorded = recording();
    let mut lab = Lab::pair(SEED, Link::GOOD);
    let mut program = Input(data);
    let mut strangers = 0;
    for _ in 0..64 {
        if program.is_empty() {
            break;
        }
        let step = program.u8();
        let side = usize::from(step >> 7);
        match step & 0x0F {
            0..=2 => lab.run(Duration::from_millis(1 << (program.u8() % 13))),
            3..=6 => {
                // As it was, or with up to three octets changed.
                let (sender, octets) = &recorded[program.below(recorded.len())];
                let mut octets = octets.clone();
                for _ in 3..step & 0x0F {
                    let at = program.below(octets.len());
                    octets[at] = program.u8();
                }
                let to = if step & 0x40 != 0 { *sender } else { 1 - *sender };
                lab.inject(to, flow(to, step), &octets);
                strangers += 1;
            }
            7 => {
                let len = usize::from(program.u8());
                lab.inject(side, flow(side, step), program.take(len));
                strangers += 1;
            }
            8 => lab.command(side, Command::Up(TUNNEL)),
            9 => lab.command(side, Command::Down(TUNNEL)),
            10 => lab.command(side, Command::RekeyChildren(TUNNEL)),
            11 => lab.command(side, Command::RekeyIke(TUNNEL)),
            12 => lab.command(side, Command::Reset(TUNNEL)),
            13 => lab.input(side, Told::Acquire(ChildId { tunnel: TUNNEL, index: 0 })),
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
            assert!(sas <= 12 + strangers, "{sas} SAs after {strangers} strange datagrams");
        }
    }
    for side in 0..2 {
        lab.gateways[side].plane.fail_next = 0;
        lab.command(side, Command::Up(TUNNEL));
    }
    lab.run(Duration::from_secs(700));
    lab.assert_settled(1);
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
