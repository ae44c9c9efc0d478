//! What is kept of IKE SAs, as octets: those of every version are read for ever, and nothing else is.
//!
//! `tests/golden/saved-1.txt` has records of version 1, each with its name, tunnel and SPI. They are the keys of a simulation,
//! and of nobody. `CYGNET_BLESS=1` adds what the file does not have; what it has stays.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use cygnet_ike::saved::{Saved, SavedError};
use cygnet_ike::{Command, Input};
use cygnet_model::tunnel::Direction;
use cygnet_sim::{Back, Lab, Link, TUNNEL, hybrid, policy, single_pairs};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/saved-1.txt");

fn hex(octets: &[u8]) -> String {
    octets.iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// The records of the golden file: name, tunnel, SPI, octets.
fn golden() -> Vec<(String, String, String, Vec<u8>)> {
    let text = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    let fields = |line: &str| {
        let f: Vec<&str> = line.split(' ').collect();
        (f[0].to_owned(), f[1].to_owned(), f[2].to_owned(), unhex(f[3]))
    };
    lines.map(fields).collect()
}

/// IKE SAs in many states, by name.
fn in_many_states() -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut take = |lab: &Lab, name: &str| {
        for side in 0..2 {
            for (n, (_, record)) in lab.gateways[side].records.all().enumerate() {
                all.insert(format!("{name}-{side}-{n}"), record.clone());
            }
        }
    };
    let step = Duration::from_millis(7);
    let up = |children| {
        let mut lab = Lab::new(5, Link::GOOD, [policy(0, children), policy(1, children)]);
        lab.run(Duration::from_secs(2));
        lab
    };
    let mut lab = up(2);
    take(&lab, "quiet");
    lab.command(0, Command::RekeyChildren(TUNNEL));
    take(&lab, "child-rekey-asked");
    lab.run(step);
    take(&lab, "child-rekey-answered");
    lab.run(step);
    take(&lab, "child-rekey-done");
    let mut lab = up(1);
    (0..2).for_each(|side| lab.command(side, Command::RekeyChildren(TUNNEL)));
    lab.run(step);
    take(&lab, "child-rekeys-cross");
    let mut lab = up(1);
    lab.command(1, Command::RekeyIke(TUNNEL));
    take(&lab, "ike-rekey-asked");
    lab.run(step);
    take(&lab, "ike-rekey-answered");
    let mut lab = up(1);
    (0..2).for_each(|side| lab.command(side, Command::RekeyIke(TUNNEL)));
    lab.run(step);
    take(&lab, "ike-rekeys-cross");
    let mut lab = up(1);
    lab.command(1, Command::Down(TUNNEL));
    take(&lab, "deleting");
    let mut lab = up(1);
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.gateways[0].dies_after = Some(usize::MAX);
    lab.run(step);
    lab.kill(0);
    lab.come_back(0, vec![policy(0, 1)], Back { renew: true, ..Back::default() });
    lab.run(step);
    take(&lab, "resumed");
    // Parts of a child, behind a NAT, with a cipher that needs integrity, and long messages in fragments.
    let mut wide = [policy(0, 1), policy(1, 1)];
    for (side, p) in wide.iter_mut().enumerate() {
        p.proposals = vec!["aes256-sha256-x25519".parse().unwrap()];
        p.children[0].proposals = vec!["aes256-sha256-x25519".parse().unwrap()];
        let nets = (0..3).map(|n| cygnet_sim::net(&format!("10.2{n}.0.0/16"))).collect();
        if side == 0 { p.children[0].remote = nets } else { p.children[0].local = nets }
    }
    let [a, mut b] = wide;
    b.remote = vec!["198.51.100.9".parse().unwrap()];
    let mut lab = Lab::new(6, Link::GOOD, [a, single_pairs(b)]);
    lab.nat.public = Some("198.51.100.9".parse().unwrap());
    lab.run(Duration::from_secs(9));
    take(&lab, "parts");
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(step);
    take(&lab, "parts-rekey");
    // With additional key exchanges, while those of new keys are on their way, and in use.
    let both = [0, 1].map(|side| {
        let mut p = policy(side, 2);
        hybrid(&mut p);
        p
    });
    let mut lab = Lab::new(7, Link::GOOD, both);
    lab.run(Duration::from_secs(2));
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(2 * step);
    take(&lab, "hybrid-child-follow-up");
    lab.run(Duration::from_secs(2));
    lab.command(1, Command::RekeyIke(TUNNEL));
    lab.run(2 * step);
    take(&lab, "hybrid-ike-follow-up");
    lab.run(Duration::from_secs(8));
    take(&lab, "hybrid");
    all
}

#[test]
fn what_version_1_kept_is_read_for_ever() {
    let golden_records = golden();
    if std::env::var_os("CYGNET_BLESS").is_some() {
        let mut text = std::fs::read_to_string(GOLDEN).unwrap_or_else(|_| {
            "# Records of IKE SAs, version 1: name, tunnel, our SPI, octets. Keys of a simulation. Lines are added, never changed.\n"
                .to_owned()
        });
        for (name, octets) in in_many_states() {
            if golden_records.iter().all(|(known, ..)| *known != name) {
                let saved = Saved::parse(&octets).unwrap();
                let _ = writeln!(text, "{name} {} {} {}", saved.tunnel().0, saved.spi(), hex(&octets));
            }
        }
        std::fs::write(GOLDEN, text).unwrap();
    }
    let golden_records = golden();
    assert!(golden_records.len() >= 20, "{} records", golden_records.len());
    for (name, tunnel, spi, octets) in golden_records {
        let saved = Saved::parse(&octets).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((saved.tunnel().0.to_string(), saved.spi().to_string()), (tunnel, spi), "{name}");
    }
}

#[test]
fn what_is_kept_now_is_read() {
    for (name, octets) in in_many_states() {
        assert!(Saved::parse(&octets).is_ok(), "{name}");
    }
}

#[test]
fn what_is_cut_is_refused_and_what_is_changed_does_no_harm() {
    let mut taken = 0;
    for (name, _, _, octets) in golden() {
        for len in 0..octets.len() {
            assert!(Saved::parse(&octets[..len]).is_err(), "{name} cut to {len}");
        }
        let longer = [octets.as_slice(), &[0]].concat();
        assert!(matches!(Saved::parse(&longer), Err(SavedError::Unknown)), "{name}");
        for at in 0..octets.len() {
            let mut changed = octets.clone();
            changed[at] ^= 1 << (at % 8);
            taken += usize::from(Saved::parse(&changed).is_ok());
        }
    }
    // Octets of keys and nonces are as good as others.
    assert!(taken > 0);
}

#[test]
fn another_version_is_refused_by_its_number() {
    let (.., mut octets) = golden().swap_remove(0);
    assert_eq!(octets[0], 1);
    octets[0] = 2;
    assert_eq!(Saved::parse(&octets).err(), Some(SavedError::Version(2)));
    let told = SavedError::Version(2).to_string();
    assert_eq!(told, "it has version 2, this program reads 1");
}

/// Prints what it costs to look at an IKE SA that was handled: `cargo test --release -p cygnet-sim --test saved -- --ignored
/// --nocapture`.
#[test]
#[ignore = "a tool for people: measures"]
fn what_keeping_costs() {
    for children in [1, 8] {
        let mut lab = Lab::new(5, Link::GOOD, [policy(0, children), policy(1, children)]);
        lab.run(Duration::from_secs(5));
        let sa = *lab.gateways[0].plane.sas.keys().find(|sa| sa.direction == Direction::In).unwrap();
        let octets = lab.gateways[0].records.all().map(|(_, r)| r.len()).sum::<usize>();
        let endpoint = &mut lab.gateways[0].endpoint;
        let (mut out, rounds, now) = (Vec::new(), 20_000, cygnet_model::Now { mono: lab_now(), unix: 0 });
        let mut of = |keep: bool| {
            let began = Instant::now();
            for _ in 0..rounds {
                endpoint.handle(now, Input::Inbound(sa), &mut out);
                if keep {
                    assert!(endpoint.take_changes().is_empty());
                }
            }
            began.elapsed().as_nanos() as f64 / f64::from(rounds) / 1000.0
        };
        let (with, without) = (of(true), of(false));
        println!(
            "{children} children, {octets} octets: {:.2} µs (input alone {without:.2} µs)",
            with - without
        );
    }
}

fn lab_now() -> cygnet_model::Timestamp {
    cygnet_model::Timestamp::from_nanos(1_005_000_000_000)
}
