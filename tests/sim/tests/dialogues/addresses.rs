//! Addresses that are not known yet, are lost, or change under a running tunnel.

use cygnet_ike::policy::TunnelPolicy;
use cygnet_model::plane::DataPlane;
use cygnet_sim::{Lab, Link, policy};

use crate::secs;

const ELSEWHERE: &str = "198.51.100.7";

/// The peer is renumbered and waits; we learn its new address from its name.
fn renumber_the_peer(lab: &mut Lab) {
    let mut moved = policy(1, 1);
    moved.local = vec![ELSEWHERE.parse().unwrap()];
    lab.gateways[1].addr = moved.local[0];
    lab.configure(1, moved);
    let mut told = policy(0, 1);
    told.remote = vec![ELSEWHERE.parse().unwrap()];
    lab.configure(0, told);
}

#[test]
fn an_address_that_is_not_known_yet_is_waited_for_without_a_failure() {
    let forget: [fn(&mut TunnelPolicy); 2] = [|p| p.remote.clear(), |p| p.local.clear()];
    for forget in forget {
        let mut unknown = policy(0, 1);
        forget(&mut unknown);
        let mut lab = Lab::new(3, Link::GOOD, [policy(1, 1), policy(1, 1)]);
        lab.restart(0, unknown);
        lab.run(secs(120));
        assert_eq!(lab.failures(0), Vec::<&str>::new());
        assert!(!lab.is_up());
        lab.configure(0, policy(0, 1));
        lab.run(secs(1));
        lab.assert_settled(1);
    }
}

#[test]
fn who_loses_its_address_begins_anew_from_the_one_it_gets() {
    let mut lab = Lab::pair(4, Link::GOOD);
    lab.run(secs(5));
    lab.assert_settled(1);
    let (mut a, mut b) = (policy(0, 1), policy(1, 1));
    a.local = vec![ELSEWHERE.parse().unwrap()];
    b.remote.clone_from(&a.local);
    lab.gateways[0].addr = a.local[0];
    lab.configure(1, b);
    lab.configure(0, a);
    lab.run(secs(5));
    lab.assert_settled(1);
    assert_eq!(lab.view(0).ike.unwrap().flow.local.ip().to_string(), ELSEWHERE);
    assert_eq!(lab.view(1).ike.unwrap().flow.remote.ip().to_string(), ELSEWHERE);
}

#[test]
fn a_peer_that_moved_is_found_at_its_new_address_before_the_old_one_is_given_up() {
    let mut lab = Lab::pair(5, Link::GOOD);
    lab.run(secs(5));
    lab.assert_settled(1);
    renumber_the_peer(&mut lab);
    let began = lab.now().mono;
    while lab.view(0).ike.is_none_or(|i| i.flow.remote.ip().to_string() != ELSEWHERE) {
        lab.run(std::time::Duration::from_millis(100));
        assert!(lab.now().mono.since(began) < secs(5), "found within a few retransmissions");
    }
    lab.run(secs(60));
    lab.assert_settled(1);
}

#[test]
fn a_name_that_has_another_answer_leaves_a_peer_that_answers_alone() {
    let mut lab = Lab::pair(6, Link::GOOD);
    lab.run(secs(5));
    let before = lab.view(0).ike.unwrap().spi_i;
    let mut told = policy(0, 1);
    told.remote = vec![ELSEWHERE.parse().unwrap()];
    lab.configure(0, told);
    lab.run(secs(120));
    assert_eq!(lab.view(0).ike.unwrap().spi_i, before);
    let mut all = Vec::new();
    lab.gateways[0].plane.counters(&mut all).unwrap();
    assert_eq!(all.len(), 2, "one pair, the one that was there");
}

/// While the SA to the old address is still there, the one that carries the traffic is the one that is shown.
#[test]
fn the_sa_that_is_shown_is_the_one_that_stays() {
    for seed in 0..20 {
        let mut lab = Lab::new(seed, Link::GOOD, [policy(0, 1), policy(1, 1)]);
        lab.run(secs(5));
        renumber_the_peer(&mut lab);
        while lab.gateways[0].endpoint.sa_count() < 2 || lab.view(0).children.len() < 2 {
            lab.run(std::time::Duration::from_millis(50));
        }
        assert_eq!(lab.view(0).ike.unwrap().flow.remote.ip().to_string(), ELSEWHERE, "seed {seed}");
    }
}
