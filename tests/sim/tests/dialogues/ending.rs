//! How tunnels end: by command, by silence, by a restart, by a message that makes no sense.

use std::time::Duration;

use cygnet_ike::Command;
use cygnet_ike::wire::{Exchange, NotifyType, Payloads};
use cygnet_sim::{Lab, Link, TUNNEL, policy};

use crate::{notify, secs};

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
fn a_deletion_waits_for_the_answer_that_is_due() {
    for (side, command) in [
        (0, Command::RekeyChildren(TUNNEL)),
        (1, Command::RekeyChildren(TUNNEL)),
        (0, Command::RekeyIke(TUNNEL)),
        (1, Command::RekeyIke(TUNNEL)),
    ] {
        let mut lab = Lab::pair(13, Link::GOOD);
        lab.run(secs(1));
        // -> CREATE_CHILD_SA, lost. The window is one: nothing else may be asked until it is answered.
        lab.link.loss = 1000;
        lab.command(side, command);
        lab.link = Link::GOOD;
        lab.command(side, Command::Down(TUNNEL));
        assert!(lab.gateways[side].plane.sas.is_empty(), "traffic ends at once");
        // -> the same again, <- its answer, -> INFORMATIONAL { D(IKE) }
        lab.run(Duration::from_millis(900));
        lab.assert_gone(0);
        lab.assert_gone(1);
    }
}

#[test]
fn down_and_up_in_the_middle_of_a_rekey_leave_one_ike_sa() {
    let commands = [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)];
    for (seed, link) in (0..100).flat_map(|seed| [(seed, Link::GOOD), (seed, Link::BAD)]) {
        let mut lab = Lab::pair(seed, link);
        lab.run(secs(60));
        let side = lab.below(2) as usize;
        let command = commands[lab.below(2) as usize];
        for other in [side, 1 - side].into_iter().take(1 + lab.below(2) as usize) {
            lab.command(other, command);
        }
        let wait = lab.below(30);
        lab.run(Duration::from_millis(wait));
        lab.command(side, Command::Down(TUNNEL));
        assert!(lab.gateways[side].plane.sas.is_empty());
        let wait = lab.below(30);
        lab.run(Duration::from_millis(wait));
        lab.command(side, Command::Up(TUNNEL));
        lab.run(secs(30));
        lab.link = Link::GOOD;
        lab.run(secs(200));
        lab.assert_settled(1);
    }
}

#[test]
fn a_malformed_authentic_request_is_answered_and_ends_the_ike_sa_at_both_ends() {
    for side in [0, 1] {
        let mut lab = Lab::pair(14, Link::GOOD);
        lab.run(secs(1));
        // -> CREATE_CHILD_SA {}, a request that lacks everything, and <- { N(INVALID_SYNTAX) }
        lab.forge(1 - side, Exchange::CREATE_CHILD_SA, false, &Payloads::default());
        assert_eq!(lab.gateways[side].endpoint.sa_count(), 0);
        assert!(lab.gateways[side].plane.sas.is_empty());
        assert!(lab.failures(side).contains(&"invalid_syntax"));
        // A new one is negotiated, and what the other end had is replaced.
        lab.run(secs(90));
        lab.assert_settled(1);

        // -> CREATE_CHILD_SA { N(REKEY_SA), ... }, <- { N(INVALID_SYNTAX) }
        let mut lab = Lab::pair(14, Link::GOOD);
        lab.run(secs(1));
        lab.link.loss = 1000;
        lab.command(side, Command::RekeyChildren(TUNNEL));
        lab.link = Link::GOOD;
        lab.forge(1 - side, Exchange::CREATE_CHILD_SA, true, &notify(NotifyType::INVALID_SYNTAX));
        lab.assert_gone(side);
        lab.run(secs(90));
        lab.assert_settled(1);
    }
}

#[test]
fn an_initiator_that_cannot_read_our_ike_auth_ends_the_ike_sa() {
    for kind in [
        NotifyType::AUTHENTICATION_FAILED,
        NotifyType::INVALID_SYNTAX,
        NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD,
    ] {
        let mut lab = Lab::pair(15, Link::GOOD);
        lab.run(Duration::from_millis(100));
        // I -> R  INFORMATIONAL { N(kind) }, I <- R  INFORMATIONAL {}
        lab.forge(0, Exchange::INFORMATIONAL, false, &notify(kind));
        lab.assert_gone(1);
    }
}
