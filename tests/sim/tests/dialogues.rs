//! Scenarios as dialogues of two gateways.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use cygnet_ike::wire::{Exchange, Header, Notify, NotifyType, PayloadType, Payloads, Writer};
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

/// A message that is one notification.
fn notify(kind: NotifyType) -> Payloads {
    Payloads { notifies: vec![Notify::new(kind, vec![])], ..Payloads::default() }
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

/// A request for a child as gateway 0 or 1 would make it, with an SPI of its own.
fn child_request(from: usize, spi: u32) -> Payloads {
    use cygnet_ike::wire::{KeyExchange, Proposal, Protocol, Transform, TransformType};
    let plain = |kind, id| Transform::plain(kind, id);
    let transforms = vec![
        Transform { key_bits: Some(256), ..plain(TransformType::ENCR, 20) },
        plain(TransformType::KE, 31),
        plain(TransformType::ESN, 1),
    ];
    let spi = spi.to_be_bytes().to_vec();
    let nets = |side: usize| Some(vec![cygnet_sim::net(&format!("10.{}.0.0/24", side + 1))]);
    Payloads {
        sa: Some(vec![Proposal { number: 1, protocol: Protocol::ESP, spi, transforms }]),
        ke: Some(KeyExchange { group: 31, data: vec![1; 32] }),
        nonce: Some(vec![2; 32]),
        tsi: nets(from),
        tsr: nets(1 - from),
        ..Payloads::default()
    }
}

#[test]
fn t67_an_spi_of_the_peer_that_is_reserved_or_bound_is_refused() {
    for rekey in [false, true] {
        for reserved in [false, true] {
            let mut lab = Lab::pair(16, Link::GOOD);
            lab.run(secs(1));
            let bound = lab.view(1).children[0].outbound.value();
            // I -> R  CREATE_CHILD_SA { [N(REKEY_SA)], SA(SPI), Ni, KEi, TSi, TSr }
            let mut request = child_request(0, if reserved { 255 } else { bound });
            if rekey {
                let spi = bound.to_be_bytes().to_vec();
                let protocol = cygnet_ike::wire::Protocol::ESP;
                request.notifies.push(Notify { protocol, spi, kind: NotifyType::REKEY_SA, data: vec![] });
            }
            lab.forge(0, Exchange::CREATE_CHILD_SA, false, &request);
            // I <- R  CREATE_CHILD_SA { N(NO_PROPOSAL_CHOSEN) }
            assert_eq!(lab.failures(1), ["no_proposal_chosen"]);
            lab.run(Duration::from_millis(10));
            lab.assert_settled(1);
        }
    }
}

/// A request for a new IKE SA, with a nonce of this octet.
fn ike_request(octet: u8) -> Payloads {
    use cygnet_ike::wire::{KeyExchange, Proposal, Protocol, Transform, TransformType};
    let plain = |kind, id| Transform::plain(kind, id);
    let transforms = vec![
        Transform { key_bits: Some(256), ..plain(TransformType::ENCR, 20) },
        plain(TransformType::PRF, 6),
        plain(TransformType::KE, 31),
    ];
    Payloads {
        sa: Some(vec![Proposal { number: 1, protocol: Protocol::IKE, spi: vec![octet; 8], transforms }]),
        ke: Some(KeyExchange { group: 31, data: vec![1; 32] }),
        nonce: Some(vec![octet; 32]),
        ..Payloads::default()
    }
}

#[test]
fn a_peer_that_asks_for_two_successors_gets_one_and_no_spi_is_lost() {
    let mut lab = Lab::pair(17, Link::GOOD);
    lab.run(secs(1));
    lab.link.loss = 1000;
    // R -> I  CREATE_CHILD_SA { SA, Ni, KEi }, lost
    lab.command(1, Command::RekeyIke(TUNNEL));
    assert_eq!(lab.gateways[1].endpoint.reserved().0, 2);
    // I -> R  the same from the other side, twice
    lab.forge(0, Exchange::CREATE_CHILD_SA, false, &ike_request(1));
    assert_eq!(lab.gateways[1].endpoint.reserved().0, 3);
    lab.forge(0, Exchange::CREATE_CHILD_SA, false, &ike_request(2));
    assert_eq!(lab.gateways[1].endpoint.reserved().0, 3);
    // Nobody answers any more.
    lab.run(secs(120));
    lab.assert_gone(1);
}

/// An IKE_SA_INIT response that anybody could send who saw the request.
fn forged_init(lab: &Lab, spi_r: u64, payloads: &Payloads) -> Vec<u8> {
    let spi = lab.gateways[0].endpoint.spis()[0];
    let mut w = Writer::message(&Header {
        spi_i: spi.value(),
        spi_r,
        next: PayloadType::NONE,
        exchange: Exchange::IKE_SA_INIT,
        from_initiator: false,
        response: true,
        message_id: 0,
    });
    payloads.encode(&mut w);
    w.finish()
}

#[test]
fn t31_the_true_answer_wins_over_forged_ones_that_came_before() {
    let mut forged: Vec<Payloads> = [
        NotifyType::NO_PROPOSAL_CHOSEN,
        NotifyType::INVALID_SYNTAX,
        NotifyType::AUTHENTICATION_FAILED,
        NotifyType::INVALID_MAJOR_VERSION,
        NotifyType(9999),
    ]
    .map(notify)
    .into();
    // T34: a group that was not offered.
    let modp2048 = 14u16.to_be_bytes().to_vec();
    forged.push(Payloads {
        notifies: vec![Notify::new(NotifyType::INVALID_KE_PAYLOAD, modp2048)],
        ..Payloads::default()
    });
    // A chosen suite with a key exchange value that cannot be one.
    let mut bad = ike_request(1);
    bad.sa.iter_mut().flatten().for_each(|p| p.spi.clear());
    bad.ke.iter_mut().for_each(|ke| ke.data.truncate(31));
    forged.push(bad);
    for (n, payloads) in forged.iter().enumerate() {
        let mut lab = Lab::pair(18, Link::GOOD);
        lab.run(Duration::from_millis(1));
        // I -> R  IKE_SA_INIT, and before the answer: ? -> I  { N(error) }
        let bytes = forged_init(&lab, 99, payloads);
        for _ in 0..20 {
            lab.inject(0, lab.flow(0), &bytes);
        }
        assert_eq!(lab.gateways[0].endpoint.sa_count(), 1, "case {n}");
        assert_eq!(lab.sent[0], 1, "case {n}: nothing is sent because of it");
        lab.run(Duration::from_millis(100));
        lab.assert_settled(1);
        assert!(lab.failures(0).is_empty(), "case {n}");
    }
}

#[test]
fn t34_a_group_that_was_not_offered_is_a_failure_and_never_taken() {
    let mut lab = Lab::pair(19, Link { loss: 1000, ..Link::GOOD });
    lab.run(Duration::from_millis(1));
    let group = Notify::new(NotifyType::INVALID_KE_PAYLOAD, 14u16.to_be_bytes().to_vec());
    let payloads = Payloads { notifies: vec![group], ..Payloads::default() };
    let bytes = forged_init(&lab, 0, &payloads);
    lab.inject(0, lab.flow(0), &bytes);
    // Other answers have a few seconds yet.
    lab.run(secs(4));
    assert_eq!(lab.failures(0), ["invalid_ke_payload"]);
}

#[test]
fn an_ike_auth_without_a_child_is_refused_as_a_whole() {
    let mut policies = [policy(0, 1), policy(1, 1)];
    policies[0].children.clear();
    let mut lab = Lab::new(20, Link::GOOD, policies);
    // I -> R  IKE_AUTH { IDi, IDr, AUTH }, I <- R  IKE_AUTH { N(INVALID_SYNTAX) }: no IKE SA at either end.
    lab.run(Duration::from_millis(100));
    assert_eq!((lab.failures(0), lab.failures(1)), (vec!["invalid_syntax"], vec!["invalid_syntax"]));
    assert_eq!(lab.gateways[0].endpoint.sa_count(), 0);
    assert!(!lab.is_up() && lab.view(1).ike.is_none());
}

#[test]
fn an_authentic_request_of_a_strange_exchange_is_answered() {
    for exchange in [Exchange(99), Exchange::IKE_AUTH] {
        let mut lab = Lab::pair(21, Link::GOOD);
        lab.run(secs(1));
        let sent = lab.sent[1];
        // I -> R  exchange {}, I <- R  exchange { N(INVALID_SYNTAX) }
        lab.forge(0, exchange, false, &Payloads::default());
        assert_eq!(lab.sent[1], sent + 1);
        lab.assert_gone(1);
    }
}

#[test]
fn a_pair_that_we_cannot_take_is_deleted_at_the_peer() {
    let mut lab = Lab::pair(22, Link::GOOD);
    lab.run(secs(1));
    // I -> R  CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }
    lab.link.loss = 1000;
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.link = Link::GOOD;
    // I <- R  CREATE_CHILD_SA { SA, Nr, KEr, TSi, TSr }, with selectors wider than we asked for
    let mut answer = child_request(0, 0xc0ff_ee00);
    answer.tsr = Some(vec![cygnet_sim::net("0.0.0.0/0")]);
    let sent = lab.sent[0];
    lab.forge(1, Exchange::CREATE_CHILD_SA, true, &answer);
    assert_eq!(lab.failures(0), ["ts_unacceptable"]);
    // I -> R  INFORMATIONAL { D(our SPI of it) }
    assert_eq!(lab.sent[0], sent + 1);
    assert_eq!(lab.gateways[0].endpoint.reserved(), (1, 1));
    assert_eq!(lab.gateways[0].plane.sas.len(), 2, "the old pair stays");
}

/// Datagrams by sender.
type Log = Rc<RefCell<Vec<(usize, Vec<u8>)>>>;

/// Records what is said from now on.
fn record(lab: &mut Lab) -> Log {
    let log = Log::default();
    let tapped = Rc::clone(&log);
    lab.tap = Some(Box::new(move |side, bytes| {
        tapped.borrow_mut().push((side, bytes.clone()));
        Some(bytes)
    }));
    log
}

#[test]
fn t21_a_repeated_request_gets_the_same_octets_and_does_nothing() {
    let mut rekey = child_request(0, 0xc0ff_ee00);
    rekey.notifies.push(Notify::new(NotifyType::REKEY_SA, vec![]));
    let requests = [
        (Exchange::INFORMATIONAL, Payloads::default()),
        (Exchange::CREATE_CHILD_SA, child_request(0, 0xc0ff_ee00)),
        (Exchange::CREATE_CHILD_SA, rekey),
        (Exchange::CREATE_CHILD_SA, ike_request(1)),
    ];
    for (exchange, payloads) in requests {
        let mut lab = Lab::pair(23, Link::GOOD);
        lab.run(secs(1));
        lab.link.loss = 1000;
        let log = record(&mut lab);
        let bytes = lab.forged(0, exchange, false, &payloads);
        lab.inject(1, lab.flow(1), &bytes);
        let after_one = (lab.gateways[1].endpoint.reserved(), lab.gateways[1].plane.sas.len());
        for _ in 0..99 {
            lab.inject(1, lab.flow(1), &bytes);
        }
        let log = log.borrow();
        assert_eq!(log.len(), 100);
        assert!(log.iter().all(|answer| *answer == log[0]));
        assert_eq!((lab.gateways[1].endpoint.reserved(), lab.gateways[1].plane.sas.len()), after_one);
    }
}

#[test]
fn t22_another_request_under_the_same_message_id_is_not_looked_at() {
    let mut lab = Lab::pair(24, Link::GOOD);
    lab.run(secs(1));
    let log = record(&mut lab);
    let deletes = vec![cygnet_ike::wire::Delete::Ike];
    let deletion = Payloads { deletes, ..Payloads::default() };
    let first = lab.forged(0, Exchange::INFORMATIONAL, false, &Payloads::default());
    let other = lab.forged(0, Exchange::INFORMATIONAL, false, &deletion);
    for bytes in [first, other] {
        lab.inject(1, lab.flow(1), &bytes);
    }
    assert_eq!(log.borrow()[0], log.borrow()[1]);
    assert!(lab.is_up());
}

#[test]
fn t23_message_ids_outside_the_window_are_dropped_and_never_wrap() {
    let mut lab = Lab::pair(25, Link::GOOD);
    lab.run(secs(1));
    let (own, peer) = (lab.gateways[0].endpoint.spis()[0], lab.gateways[1].endpoint.spis()[0]);
    let (due, _) = lab.gateways[1].endpoint.message_ids(peer).unwrap();
    let sent = lab.sent[1];
    for id in [due + 1, due + 2, due + 1000, due - 2, u32::MAX] {
        let none = Payloads::default();
        let bytes = lab.gateways[0].endpoint.forge(own, Exchange::INFORMATIONAL, id, false, &none);
        lab.inject(1, lab.flow(1), &bytes[0]);
    }
    assert_eq!(lab.gateways[1].drops["message_id"], 5);
    assert_eq!(lab.sent[1], sent);

    // Long before the end the IKE SA is rekeyed.
    lab.gateways[0].endpoint.set_message_ids(own, (1 << 31) + 1, 0);
    lab.gateways[1].endpoint.set_message_ids(peer, 0, (1 << 31) + 1);
    lab.run(secs(60));
    lab.assert_settled(1);
    assert_ne!(lab.gateways[0].endpoint.spis(), [own]);

    // At the end it is closed, and the last ID is never used.
    let (own, peer) = (lab.gateways[0].endpoint.spis()[0], lab.gateways[1].endpoint.spis()[0]);
    lab.gateways[0].endpoint.set_message_ids(own, u32::MAX - 1, 0);
    lab.gateways[1].endpoint.set_message_ids(peer, 0, u32::MAX - 1);
    lab.link.loss = 1000;
    for id in [u32::MAX - 1, u32::MAX, u32::MAX] {
        let none = Payloads::default();
        let bytes = lab.gateways[0].endpoint.forge(own, Exchange::INFORMATIONAL, id, false, &none);
        lab.inject(1, lab.flow(1), &bytes[0]);
    }
    assert_eq!(lab.gateways[1].drops["message_id"], 7);
    lab.link = Link::GOOD;
    lab.run(secs(120));
    assert_ne!(lab.gateways[1].endpoint.spis(), [peer]);
    lab.assert_settled(1);
}

#[test]
fn t24_answers_that_nobody_waits_for_are_dropped() {
    let mut lab = Lab::pair(26, Link::GOOD);
    lab.run(secs(1));
    let unexpected = |lab: &Lab| lab.gateways[0].drops.get("unexpected_response").copied().unwrap_or(0);
    // Unasked, and once more to the exchange that ended.
    lab.forge(1, Exchange::INFORMATIONAL, true, &Payloads::default());
    lab.forge(1, Exchange::CREATE_CHILD_SA, true, &notify(NotifyType::CHILD_SA_NOT_FOUND));
    assert_eq!(unexpected(&lab), 2);
    // The right message ID with the wrong exchange.
    lab.link.loss = 1000;
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.link = Link::GOOD;
    lab.forge(1, Exchange::INFORMATIONAL, true, &Payloads::default());
    assert_eq!(unexpected(&lab), 3);
    lab.run(secs(10));
    lab.assert_settled(1);
    assert!(lab.failures(0).is_empty());
}

/// Lets so many datagrams pass, then none.
fn stop_after(lab: &mut Lab, mut count: usize) {
    lab.tap = Some(Box::new(move |_, bytes| {
        let pass = count > 0;
        count = count.saturating_sub(1);
        pass.then_some(bytes)
    }));
}

#[test]
fn t29_a_half_open_ike_sa_makes_no_child() {
    for payloads in [child_request(0, 0xc0ff_ee00), ike_request(1), Payloads::default()] {
        let mut lab = Lab::pair(27, Link::GOOD);
        // I -> R  IKE_SA_INIT, I <- R; IKE_AUTH is lost
        stop_after(&mut lab, 2);
        lab.run(Duration::from_millis(100));
        // I -> R  CREATE_CHILD_SA under the right keys, and with the message ID of IKE_AUTH
        lab.forge(0, Exchange::CREATE_CHILD_SA, false, &payloads);
        let g = &lab.gateways[1];
        assert_eq!(g.endpoint.state_name(g.endpoint.spis()[0]), Some("InitAnswered"));
        assert_eq!(g.endpoint.reserved(), (1, 0));
        assert!(g.plane.sas.is_empty() && g.events.is_empty());
        // I -> R  IKE_AUTH again
        lab.tap = None;
        lab.run(secs(1));
        lab.assert_settled(1);
    }
}

#[test]
fn t30_a_forged_ike_auth_is_dropped_and_the_good_one_accepted() {
    // The third datagram is IKE_AUTH, the fourth its answer.
    for (bent, at) in [(3, 1), (4, 0)] {
        let mut lab = Lab::pair(28, Link::GOOD);
        let mut number = 0;
        lab.tap = Some(Box::new(move |_, mut bytes| {
            number += 1;
            if number == bent {
                *bytes.last_mut().unwrap() ^= 1;
            }
            Some(bytes)
        }));
        lab.run(Duration::from_millis(100));
        assert_eq!(lab.gateways[at].drops["integrity"], 1);
        assert_eq!(lab.gateways[at].endpoint.sa_count(), 1);
        assert!(!lab.is_up());
        lab.run(secs(1));
        lab.assert_settled(1);
        assert!(lab.failures(at).is_empty());
    }
}

#[test]
fn t32_a_cookie_comes_back_in_front_and_nothing_else_changes() {
    for (len, taken) in [(0, false), (1, true), (17, true), (64, true), (65, false)] {
        let mut lab = Lab::pair(29, Link { loss: 1000, ..Link::GOOD });
        let log = record(&mut lab);
        lab.run(Duration::from_millis(1));
        let cookie = vec![7; len];
        let payloads = Payloads {
            notifies: vec![Notify::new(NotifyType::COOKIE, cookie.clone())],
            ..Payloads::default()
        };
        let bytes = forged_init(&lab, 0, &payloads);
        lab.inject(0, lab.flow(0), &bytes);
        let log = log.borrow();
        assert_eq!(log.len(), if taken { 2 } else { 1 }, "{len} octets");
        if taken {
            let (before, after) = (&log[0].1, &log[1].1);
            assert_eq!(after[16], PayloadType::NOTIFY.0);
            assert_eq!(after[28..36], [PayloadType::SA.0, 0, 0, 8 + len as u8, 0, 0, 0x40, 0x06]);
            assert_eq!(after[36..36 + len], cookie);
            assert_eq!(after[36 + len..], before[28..], "the rest is unchanged");
        }
    }
}

#[test]
fn t32_ever_new_cookies_are_given_up_on() {
    let mut lab = Lab::pair(30, Link { loss: 1000, ..Link::GOOD });
    lab.run(Duration::from_millis(1));
    for octet in 1..=5 {
        assert!(lab.failures(0).is_empty(), "round {octet}");
        let notifies = vec![Notify::new(NotifyType::COOKIE, vec![octet; 16])];
        let bytes = forged_init(&lab, 0, &Payloads { notifies, ..Payloads::default() });
        lab.inject(0, lab.flow(0), &bytes);
    }
    assert_eq!(lab.failures(0), ["cookie_loop"]);
}

#[test]
fn t32_under_a_flood_strangers_must_bring_a_cookie_back() {
    let mut lab = Lab::pair(31, Link::GOOD);
    let log = record(&mut lab);
    lab.run(Duration::from_millis(1));
    let genuine = log.borrow()[0].1.clone();
    // ? -> R  IKE_SA_INIT under many SPIs
    for n in 0..40u64 {
        let mut bytes = genuine.clone();
        bytes[..8].copy_from_slice(&(n + 1).to_be_bytes());
        lab.inject(1, lab.flow(1), &bytes);
    }
    assert_eq!(lab.gateways[1].endpoint.half_open(), 32, "those beyond got a cookie, and no state");
    // I -> R  IKE_SA_INIT, I <- R  { N(COOKIE) }, I -> R  { N(COOKIE), ... }
    lab.run(Duration::from_millis(100));
    assert!(lab.is_up());
    assert_eq!(lab.sent[0], 3);
}

#[test]
fn t45_our_own_messages_reflected_lead_nowhere() {
    let mut lab = Lab::pair(32, Link { loss: 1000, ..Link::GOOD });
    let log = record(&mut lab);
    let mut seen = 0;
    // Whatever gateway 0 says comes back to it as if from the peer.
    for _ in 0..50 {
        lab.run(Duration::from_millis(100));
        let said = log.borrow()[seen..].to_vec();
        seen += said.len();
        for (_, bytes) in said.iter().filter(|(side, _)| *side == 0) {
            lab.inject(0, lab.flow(0), bytes);
        }
        assert!(lab.gateways[0].plane.sas.is_empty() && lab.view(0).ike.is_none());
    }
    assert!(lab.failures(0).contains(&"unknown_identity"), "{:?}", lab.failures(0));
    assert!(lab.failures(0).contains(&"authentication_failed"), "{:?}", lab.failures(0));

    // Signs of life, rekeys and deletions.
    for command in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL), Command::Down(TUNNEL)] {
        for side in [0, 1] {
            let mut lab = Lab::pair(33, Link::GOOD);
            lab.run(secs(1));
            lab.link.loss = 1000;
            let log = record(&mut lab);
            lab.command(side, command);
            let bytes = log.borrow()[0].1.clone();
            let state = |lab: &Lab| (lab.gateways[side].endpoint.reserved(), lab.sent[side]);
            let before = state(&lab);
            lab.inject(side, lab.flow(side), &bytes);
            assert_eq!(state(&lab), before);
            assert_eq!(lab.gateways[side].drops.values().sum::<u64>(), 1);
        }
    }
}

/// Gateway 1, which has asked nothing yet, answers the request of gateway 0 that it never got.
fn refuse_unseen(lab: &mut Lab, kind: NotifyType) {
    lab.forge(1, Exchange::CREATE_CHILD_SA, true, &notify(kind));
    let spi = lab.gateways[1].endpoint.spis()[0];
    let (due, _) = lab.gateways[1].endpoint.message_ids(spi).unwrap();
    lab.gateways[1].endpoint.set_message_ids(spi, 0, due + 1);
}

#[test]
fn t63_a_busy_peer_is_asked_again_later_and_later() {
    for command in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
        let mut lab = Lab::pair(34, Link::GOOD);
        lab.run(secs(1));
        lab.link.loss = 1000;
        lab.command(0, command);
        let (mut asked, mut sent) = (0, lab.sent[0] - 1);
        for _ in 0..280 {
            // -> CREATE_CHILD_SA, <- { N(TEMPORARY_FAILURE) }
            if lab.sent[0] > sent {
                asked += 1;
                refuse_unseen(&mut lab, NotifyType::TEMPORARY_FAILURE);
            }
            sent = lab.sent[0];
            lab.run(Duration::from_millis(100));
        }
        assert!((2..=6).contains(&asked), "{asked} times in half a minute");
        lab.link = Link::GOOD;
        lab.run(secs(120));
        lab.assert_settled(1);
        assert!(lab.failures(0).is_empty(), "{:?}", lab.failures(0));
    }
}

#[test]
fn t63_a_pair_that_the_peer_has_lost_is_made_anew_once() {
    let mut lab = Lab::pair(35, Link::GOOD);
    lab.run(secs(1));
    lab.link.loss = 1000;
    // -> CREATE_CHILD_SA { N(REKEY_SA), ... }, <- { N(CHILD_SA_NOT_FOUND) }
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.link = Link::GOOD;
    refuse_unseen(&mut lab, NotifyType::CHILD_SA_NOT_FOUND);
    // -> CREATE_CHILD_SA { SA, Ni, KEi, TSi, TSr }, <- the same
    lab.run(secs(10));
    assert!(lab.is_up());
    assert_eq!((lab.view(0).children.len(), lab.gateways[0].plane.sas.len()), (1, 2));
    assert_eq!(lab.gateways[0].endpoint.reserved(), (1, 1));
}

#[test]
fn t73_initial_contact_counts_in_an_authentic_ike_auth_only() {
    // In another exchange.
    let mut lab = Lab::pair(36, Link::GOOD);
    let log = record(&mut lab);
    lab.run(secs(1));
    lab.forge(0, Exchange::INFORMATIONAL, false, &notify(NotifyType::INITIAL_CONTACT));
    lab.run(Duration::from_millis(10));
    lab.assert_settled(1);

    // In IKE_SA_INIT, where nobody is authenticated.
    let genuine = log.borrow()[0].1.clone();
    let (header, chain) = Header::decode(&genuine).unwrap();
    let mut payloads = Payloads::decode(header.next, chain).unwrap();
    payloads.notifies.push(Notify::new(NotifyType::INITIAL_CONTACT, vec![]));
    let mut w = Writer::message(&Header { spi_i: 99, ..header });
    payloads.encode(&mut w);
    lab.inject(1, lab.flow(1), &w.finish());
    assert_eq!(lab.gateways[1].endpoint.sa_count(), 2);
    assert_eq!(lab.view(1).children.len(), 1);

    // From somebody at the peer's address who does not have the key, or is somebody else.
    type Change = fn(&mut cygnet_ike::TunnelPolicy);
    let changes: [Change; 2] = [
        |p| p.psk = cygnet_model::SecretBytes::copy_of(b"guessed"),
        |p| p.local_id = cygnet_ike::wire::Identity::fqdn("somebody.else"),
    ];
    for change in changes {
        let mut lab = Lab::pair(37, Link::GOOD);
        lab.run(secs(1));
        let held = lab.view(1).children[0].inbound;
        let mut other = policy(0, 1);
        change(&mut other);
        lab.restart(0, other);
        lab.run(secs(5));
        assert!(!lab.failures(1).is_empty());
        assert_eq!(lab.view(1).children[0].inbound, held);
    }
}

#[test]
fn t75_a_refused_first_child_leaves_the_ike_sa_up_and_is_tried_again_ever_more_rarely() {
    let mut policies = [policy(0, 1), policy(1, 1)];
    policies[1].children[0].local = vec![cygnet_sim::net("172.16.0.0/16")];
    let mut lab = Lab::new(38, Link::GOOD, policies);
    // I -> R  IKE_AUTH, I <- R  IKE_AUTH { IDr, AUTH, N(TS_UNACCEPTABLE) }
    lab.run(Duration::from_millis(100));
    let spi = lab.gateways[0].endpoint.spis();
    lab.run(secs(600));
    assert_eq!(lab.gateways[0].endpoint.spis(), spi);
    assert!(lab.gateways.iter().all(|g| g.plane.sas.is_empty() && g.endpoint.reserved() == (1, 0)));
    let failures = lab.failures(0);
    assert!(failures.iter().all(|f| *f == "ts_unacceptable"));
    assert!((5..=9).contains(&failures.len()), "{} in ten minutes", failures.len());
}
