//! Many seeds of several gateways with several tunnels between them, to which everything happens in one history: whatever
//! the order, in the end that is up which both ends have configured, and nothing else.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use cygnet_sim::fleet::{Fleet, Outcome};
use cygnet_sim::{failures, seeds};

#[test]
fn fleets_to_which_everything_happens_end_in_agreement() {
    let failed = failures(seeds(20_000), |seed| {
        Fleet::live(seed);
    });
    assert!(
        failed.is_empty(),
        "{} seeds failed: {failed:?}; CYGNET_SIM_TELL=1 CYGNET_SIM_FIRST=SEED cargo test --workspace --test fleet -- \
         --ignored --nocapture tells one",
        failed.len()
    );
}

/// Both ends ask for one child at once, and one of the two requests is answered before the other one arrives: only the end
/// whose request was the later one knows that its pair is redundant. Its peer, which knows of no collision, sends on the
/// redundant one, as the newest, so that the other one is never seen in use.
#[test]
fn a_redundant_pair_goes_though_the_peer_sends_on_it() {
    Fleet::live(18_745);
}

/// What is left of 200,000 other seeds (100,000 each from 1,000,000 and 2,000,000 on): a process goes on from records of
/// before, which lack a pair of SAs that its peer has. It answers the peer's repeated request anew, and the peer has the
/// first answer.
const OPEN: [u64; 2] = [1_088_667, 2_077_803];

/// A restart finds half of a pair gone that carried one of two pairs of networks of a rule: it is made anew.
#[test]
fn a_lost_part_of_a_rule_is_sought_beside_the_other() {
    Fleet::live(1_000_607);
}

/// A pair that was replaced comes back to life when its successor ends, after its rule went: it ends as well.
#[test]
fn a_replaced_pair_goes_with_its_rule() {
    [1_006_694, 1_054_159, 1_020_091, 1_003_761].into_iter().for_each(|seed| {
        Fleet::live(seed);
    });
}

/// The configuration has left an IKE SA behind, which goes on to carry packets, so that none asks for its successor: nobody had
/// asked for the tunnel yet, or the first try was refused.
#[test]
fn what_the_configuration_left_behind_is_replaced_though_no_packet_asks() {
    [1_078_537, 2_005_656, 2_025_400].into_iter().for_each(|seed| {
        Fleet::live(seed);
    });
}

/// An IKE SA that is not taken up, since its tunnel has another peer now, takes nothing into use while it is deleted.
#[test]
fn what_is_not_taken_up_is_not_taken_into_use() {
    Fleet::live(1_013_604);
}

/// A rule goes while two pairs of it have crossed: with the pair that was to stay goes the redundant one beside it, and then
/// its guard.
#[test]
fn a_redundant_pair_goes_with_its_rule() {
    [1_010_075, 1_063_888, 1_097_425].into_iter().for_each(|seed| {
        Fleet::live(seed);
    });
}

#[test]
#[ignore = "known: what follows from records that were rolled back (decision 0110); one of 100,000 fleets"]
fn fleets_of_rare_orders_end_in_agreement() {
    let failed: Vec<u64> =
        OPEN.into_iter().filter(|seed| std::panic::catch_unwind(|| Fleet::live(*seed)).is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Prints what histories come to: how long it took, how much was up, how much piled up at most.
#[test]
#[ignore = "a tool for people: measures"]
fn figures() {
    let mut told: Vec<_> = seeds(1000).map(Fleet::live).collect();
    let slowest = seeds(1000).zip(&told).max_by_key(|(_, t)| t.settled);
    println!("the slowest seed: {slowest:?}");
    let sum = |of: fn(&Outcome) -> usize| told.iter().map(of).sum::<usize>();
    println!("{} tunnels, {} up", sum(|t| t.tunnels.0), sum(|t| t.tunnels.1));
    let most = |of: fn(&Outcome) -> usize| told.iter().map(of).max();
    println!("at most {:?} IKE SAs and {:?} SAs of one tunnel", most(|t| t.most.0), most(|t| t.most.1));
    told.sort_by_key(|t| t.settled);
    for part in [50, 90, 99, 100] {
        println!("{part} % settled in {:?}", told[(told.len() * part / 100).saturating_sub(1)].settled);
    }
}

/// Prints what happened under one seed:
/// `CYGNET_SIM_TELL=1 CYGNET_SIM_FIRST=24 cargo test --workspace --test fleet -- --ignored --nocapture`.
#[test]
#[ignore = "a tool for people: tells the story of one seed"]
fn story() {
    let seed = seeds(1).start;
    let told = std::panic::catch_unwind(|| Fleet::live(seed));
    println!("seed {seed}: {told:?}");
    assert!(told.is_ok(), "seed {seed}");
}
