//! Scenarios as dialogues of two gateways.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use cygnet_ike::{Command, Input};
use cygnet_model::ChildId;
use cygnet_sim::{Lab, Link, TUNNEL, policy};

const CHILD: ChildId = ChildId { tunnel: TUNNEL, index: 0 };

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_tunnel_comes_up_in_two_exchanges() {
    let mut lab = Lab::pair(1, Link::GOOD);
    // I -> R  IKE_SA_INIT, I <- R, I -> R  IKE_AUTH, I <- R
    lab.run(Duration::from_millis(100));
    lab.assert_settled(1);
    assert_eq!(lab.sent, [2, 2]);
}

#[test]
fn several_children_follow_the_first() {
    let mut lab = Lab::new(1, Link::GOOD, [policy(0, 3), policy(1, 3)]);
    lab.run(secs(1));
    lab.assert_settled(3);
}

#[test]
fn a_child_is_rekeyed_without_loss_from_either_side() {
    for side in [0, 1] {
        let mut lab = Lab::pair(2, Link::GOOD);
        lab.run(secs(1));
        let before = lab.view(0).children[0].inbound;
        for step in 0..2000 {
            if step == 300 {
                lab.command(side, Command::RekeyChildren(TUNNEL));
            }
            lab.probe(0, CHILD);
            lab.probe(1, CHILD);
            lab.run(Duration::from_millis(1));
        }
        lab.run(secs(10));
        lab.assert_settled(1);
        assert_ne!(lab.view(0).children[0].inbound, before);
        assert_eq!(lab.probes, (4000, 0), "side {side}");
    }
}

#[test]
fn the_ike_sa_is_rekeyed_and_children_stay() {
    for side in [0, 1] {
        let mut lab = Lab::new(3, Link::GOOD, [policy(0, 2), policy(1, 2)]);
        lab.run(secs(1));
        let (spi, child) = (lab.view(0).ike.unwrap().spi_i, lab.view(0).children[0].inbound);
        lab.command(side, Command::RekeyIke(TUNNEL));
        for _ in 0..1000 {
            lab.probe(0, CHILD);
            lab.run(Duration::from_millis(1));
        }
        lab.run(secs(5));
        lab.assert_settled(2);
        assert_ne!(lab.view(0).ike.unwrap().spi_i, spi);
        assert_eq!(lab.view(0).children[0].inbound, child, "children keep their keys");
        assert_eq!(lab.probes.1, 0);
    }
}

#[test]
fn t61_both_sides_rekey_the_same_child_at_once() {
    for seed in 0..50 {
        let mut lab = Lab::pair(seed, Link::GOOD);
        lab.run(secs(1));
        lab.command(0, Command::RekeyChildren(TUNNEL));
        lab.command(1, Command::RekeyChildren(TUNNEL));
        for _ in 0..500 {
            lab.probe(0, CHILD);
            lab.probe(1, CHILD);
            lab.run(Duration::from_millis(1));
        }
        lab.run(secs(10));
        lab.assert_settled(1);
        assert_eq!(lab.probes.1, 0, "seed {seed}");
    }
}

#[test]
fn t62_both_sides_rekey_the_ike_sa_at_once() {
    for seed in 0..50 {
        let mut lab = Lab::new(seed, Link::GOOD, [policy(0, 2), policy(1, 2)]);
        lab.run(secs(1));
        lab.command(0, Command::RekeyIke(TUNNEL));
        lab.command(1, Command::RekeyIke(TUNNEL));
        lab.run(secs(100));
        lab.assert_settled(2);
    }
}

#[test]
fn t72_a_tunnel_taken_down_is_gone_at_both_ends_and_stays_so() {
    for side in [0, 1] {
        let mut lab = Lab::pair(4, Link::GOOD);
        lab.run(secs(1));
        lab.command(side, Command::Down(TUNNEL));
        lab.run(Duration::from_millis(200));
        lab.assert_gone(0);
        lab.assert_gone(1);
        lab.run(secs(60));
        // Whoever asks: the active side goes on trying if it was the other end's wish.
        assert!(!lab.is_up() && lab.view(0).children.is_empty() && lab.view(1).children.is_empty());
        assert_eq!(lab.failures(1).contains(&"held"), side == 1);
        lab.command(side, Command::Up(TUNNEL));
        lab.run(secs(90));
        assert!(lab.is_up());
    }
}

#[test]
fn t26_a_silent_peer_is_given_up_and_tried_again() {
    let mut lab = Lab::pair(5, Link { loss: 1000, ..Link::GOOD });
    lab.run(secs(600));
    let failures = lab.failures(0);
    assert!((5..30).contains(&failures.len()), "{}", failures.len());
    assert!(failures.iter().all(|f| *f == "peer_unreachable"));
    assert!(lab.sent[0] < 150, "{} datagrams in ten minutes", lab.sent[0]);
    lab.link = Link::GOOD;
    lab.run(secs(120));
    lab.assert_settled(1);
}

#[test]
fn t36_a_dead_peer_is_noticed() {
    let mut lab = Lab::pair(6, Link::GOOD);
    lab.run(secs(1));
    lab.link.loss = 1000;
    lab.run(secs(30 + 45));
    assert_eq!(lab.failures(0), ["peer_unreachable"]);
    assert!(lab.gateways[0].plane.sas.is_empty());
}

#[test]
fn either_end_may_restart() {
    for side in [0, 1] {
        let mut lab = Lab::pair(7, Link::GOOD);
        lab.run(secs(5));
        lab.restart(side, policy(side, 1));
        lab.run(secs(120));
        lab.assert_settled(1);
    }
}

#[test]
fn two_active_ends_agree_on_one_sa() {
    for seed in 0..50 {
        let mut both = [policy(0, 1), policy(1, 1)];
        both[1].start = cygnet_ike::policy::Start::Active;
        let mut lab = Lab::new(seed, Link::GOOD, both);
        lab.run(secs(30));
        lab.assert_settled(1);
    }
}

#[test]
fn disagreements_have_names_at_both_ends() {
    // (what is changed at gateway 1, failure told by 0, failure told by 1)
    type Change = fn(&mut cygnet_ike::TunnelPolicy);
    let cases: [(Change, &str, &str); 5] = [
        (
            |p| p.psk = cygnet_model::SecretBytes::copy_of(b"another key of 32 octets length!"),
            "authentication_failed",
            "authentication_failed",
        ),
        (
            |p| p.remote_id = cygnet_ike::wire::Identity::fqdn("somebody.else"),
            "authentication_failed",
            "unknown_identity",
        ),
        (
            |p| p.proposals = vec!["aes128-sha256-modp2048".parse().unwrap()],
            "no_proposal_chosen",
            "no_proposal_chosen",
        ),
        (
            |p| p.children[0].proposals = vec!["aes128-sha256-modp2048".parse().unwrap()],
            "no_proposal_chosen",
            "no_proposal_chosen",
        ),
        (
            |p| p.children[0].local = vec![cygnet_sim::net("172.16.0.0/16")],
            "ts_unacceptable",
            "ts_unacceptable",
        ),
    ];
    for (n, (change, at_0, at_1)) in cases.into_iter().enumerate() {
        let mut policies = [policy(0, 1), policy(1, 1)];
        change(&mut policies[1]);
        let mut lab = Lab::new(8, Link::GOOD, policies);
        lab.run(secs(4));
        assert_eq!(lab.failures(0).first(), Some(&at_0), "case {n}: {:?}", lab.failures(0));
        assert_eq!(lab.failures(1).first(), Some(&at_1), "case {n}: {:?}", lab.failures(1));
        assert!(lab.gateways.iter().all(|g| g.plane.sas.is_empty()), "case {n}");
        // It goes on trying, and comes up once the other end is put right.
        lab.restart(1, policy(1, 1));
        lab.run(secs(700));
        lab.assert_settled(1);
    }
}

#[test]
fn t33_cookies_and_other_groups_cost_round_trips_only() {
    let mut policies = [policy(0, 1), policy(1, 1)];
    policies[1].proposals = vec!["aes256gcm16-prfsha384-ecp384".parse().unwrap()];
    policies[1].children[0].proposals = vec!["aes256gcm16-ecp384".parse().unwrap()];
    let mut lab = Lab::new(9, Link::GOOD, policies);
    lab.run(secs(1));
    lab.assert_settled(1);
    assert_eq!(lab.sent, [3, 3], "INVALID_KE_PAYLOAD costs one round trip");
    // A child rekey meets the same answer.
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(secs(10));
    lab.assert_settled(1);
}

#[test]
fn a_nat_is_found_and_passed() {
    let mut policies = [policy(0, 1), policy(1, 1)];
    policies[1].remote = vec!["198.51.100.9".parse().unwrap()];
    let mut lab = Lab::new(10, Link::GOOD, policies);
    lab.run(secs(1));
    // Not up: gateway 1 does not know 192.0.2.1. Now through the NAT.
    lab.nat.public = Some("198.51.100.9".parse().unwrap());
    lab.run(secs(60));
    lab.assert_settled(1);
    let (a, b) = (lab.view(0).ike.unwrap(), lab.view(1).ike.unwrap());
    assert_eq!((a.nat_local, a.nat_remote, b.nat_local, b.nat_remote), (true, false, false, true));
    assert_eq!(a.flow.remote.port(), 4500);
    assert_eq!(b.flow.remote.ip(), "198.51.100.9".parse::<std::net::IpAddr>().unwrap());
    let encap = lab.gateways[1].plane.outbound(CHILD).unwrap().encap.unwrap();
    assert_eq!(encap.remote_port, b.flow.remote.port());

    // T85: the NAT forgets and maps anew; the next authentic message moves everything.
    lab.nat.ports.clear();
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(secs(10));
    lab.assert_settled(1);
    let moved = lab.view(1).ike.unwrap().flow.remote.port();
    assert_ne!(moved, encap.remote_port);
    assert_eq!(lab.gateways[1].plane.outbound(CHILD).unwrap().encap.unwrap().remote_port, moved);
}

#[test]
fn lifetimes_are_kept_by_rekeying() {
    let mut policies = [policy(0, 2), policy(1, 2)];
    for p in &mut policies {
        p.lifetime = secs(600);
        p.children.iter_mut().for_each(|c| c.lifetime = secs(180));
    }
    let mut lab = Lab::new(11, Link::GOOD, policies);
    lab.run(secs(1));
    for _ in 0..3600 {
        lab.probe(0, CHILD);
        lab.probe(1, CHILD);
        lab.run(secs(1));
    }
    lab.run(secs(100));
    assert_eq!(lab.probes.1, 0);
    assert!(lab.is_up());
    assert!(lab.failures(0).is_empty(), "{:?}", lab.failures(0));
    let rekeys =
        lab.gateways[0].events.iter().filter(|(_, e)| matches!(e, cygnet_ike::Event::Rekeyed { .. })).count();
    assert!(rekeys > 40, "{rekeys}");
}

#[test]
fn t68_a_hard_limit_while_new_keys_are_on_their_way_leaves_the_tunnel_open() {
    for (asks, ends) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for ms in 0..25 {
            let mut lab = Lab::pair(9, Link::GOOD);
            lab.run(secs(1));
            let sa = lab.gateways[ends].plane.outbound(CHILD).unwrap().id;
            // I -> R  CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }, and the limit before, between or behind
            lab.command(asks, Command::RekeyChildren(TUNNEL));
            lab.run(Duration::from_millis(ms));
            lab.input(ends, Input::Expired { sa, hard: true });
            lab.run(secs(20));
            lab.assert_settled(1);
        }
    }
}

#[test]
fn t74_a_pair_that_the_plane_refused_and_that_ends_before_its_deletion_is_gone_at_both_ends() {
    let mut lab = Lab::pair(9, Link::GOOD);
    lab.run(secs(1));
    // I -> R  CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }, and R cannot install what it answers
    lab.gateways[1].plane.fail_next = 1;
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(Duration::from_millis(200));
    let sa = lab.gateways[1].plane.outbound(CHILD).unwrap().id;
    lab.input(1, Input::Expired { sa, hard: true });
    lab.run(secs(30));
    lab.assert_settled(1);
}

#[test]
fn t74_a_plane_that_refuses_is_told_to_the_peer_and_tried_again() {
    for side in [0, 1] {
        let mut lab = Lab::pair(12, Link::GOOD);
        lab.gateways[side].plane.fail_next = 1;
        lab.run(secs(2));
        assert!(lab.failures(side).contains(&"data_plane"), "{:?}", lab.failures(side));
        lab.run(secs(60));
        lab.assert_settled(1);
    }
}
