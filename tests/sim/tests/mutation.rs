//! A million mutated datagrams against endpoints in every state: no panic, no unbounded growth, and the tunnel stays.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use cygnet_ike::{Command, Flow};
use cygnet_sim::{Lab, Link, TUNNEL};

/// Datagrams by sender.
type Datagrams = Vec<(usize, Vec<u8>)>;

/// How many inputs. `CYGNET_MUTATIONS=n` overrides it.
fn inputs() -> u64 {
    std::env::var("CYGNET_MUTATIONS").ok().and_then(|v| v.parse().ok()).unwrap_or(1_000_000)
}

/// Every datagram of a handshake, both rekeys and a deletion, by sender.
fn recording(seed: u64) -> Datagrams {
    let log: Rc<RefCell<Datagrams>> = Rc::default();
    let mut lab = Lab::pair(seed, Link { loss: 1000, ..Link::GOOD });
    let tapped = Rc::clone(&log);
    lab.tap = Some(Box::new(move |side, bytes| {
        tapped.borrow_mut().push((side, bytes.clone()));
        Some(bytes)
    }));
    lab.link = Link::GOOD;
    lab.run(Duration::from_secs(5));
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(Duration::from_secs(1));
    lab.command(1, Command::RekeyIke(TUNNEL));
    lab.run(Duration::from_secs(1));
    drop(lab);
    log.take()
}

fn mutate(lab: &mut Lab, bytes: &mut Vec<u8>) {
    for _ in 0..=lab.below(3) {
        let at = lab.below(bytes.len().max(1) as u64) as usize;
        match lab.below(6) {
            0 if !bytes.is_empty() => bytes[at] = lab.below(256) as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << lab.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at.min(bytes.len()), lab.below(256) as u8),
            4 if bytes.len() >= 2 => {
                let value = [0u16, 1, 3, 4, 5, 0x7fff, 0xffff][lab.below(7) as usize].to_be_bytes();
                let at = at.min(bytes.len() - 2);
                bytes[at..at + 2].copy_from_slice(&value);
            }
            _ => bytes.extend_from_within(at.min(bytes.len())..),
        }
        bytes.truncate(4096);
    }
    // A right length field lets the mutation through to what lies behind it.
    if bytes.len() >= 28 && lab.below(4) > 0 {
        let len = (bytes.len() as u32).to_be_bytes();
        bytes[24..28].copy_from_slice(&len);
    }
}

#[test]
fn a_million_mutated_datagrams_do_no_harm() {
    let total = inputs();
    let mut done = 0;
    let mut round = 0;
    while done < total {
        // The same seed makes the same SPIs and keys, so that the recorded datagrams meet the SAs that they belong to.
        let recorded = recording(round);
        let mut lab = Lab::pair(round, Link::GOOD);
        for step in 0..500 {
            // Early steps hit half-open SAs, later ones established ones.
            lab.run(Duration::from_millis(if step < 100 { 1 } else { 20 }));
            for _ in 0..40 {
                let pick = lab.below(recorded.len() as u64) as usize;
                let (sender, mut bytes) = recorded[pick].clone();
                mutate(&mut lab, &mut bytes);
                let to = if lab.below(8) == 0 { sender } else { 1 - sender };
                let [a, b] =
                    cygnet_sim::ADDRESSES.map(|a| (a.parse::<std::net::IpAddr>().unwrap(), 500).into());
                let (local, remote) = if to == 0 { (a, b) } else { (b, a) };
                lab.inject(to, Flow { local, remote, natt: false }, &bytes);
                done += 1;
            }
        }
        for g in &lab.gateways {
            assert!(g.endpoint.sa_count() < 200, "round {round}: {} SAs", g.endpoint.sa_count());
        }
        // The storm over, the true peers still agree.
        lab.run(Duration::from_secs(700));
        lab.assert_settled(1);
        round += 1;
    }
}
