//! Several pairs of SAs for one rule, and what becomes of networks that a peer leaves out.

use cygnet_ike::error::FailureReason;
use cygnet_ike::policy::Start;
use cygnet_ike::view::{ConfiguredState, TunnelState};
use cygnet_ike::wire::{Exchange, Header, NotifyType};
use cygnet_ike::{Command, Event, TunnelPolicy};
use cygnet_model::ChildId;
use cygnet_model::selector::TrafficSelector;
use cygnet_sim::{Lab, Link, TUNNEL, copies, net, policy, single_pairs};

use crate::{notify, record, secs};

/// One rule of one local network and `n` remote ones at gateway 0, and its mirror image at gateway 1.
fn one_rule(n: u8) -> [TunnelPolicy; 2] {
    let mut both = [policy(0, 1), policy(1, 1)];
    let many: Vec<_> = (0..n).map(|k| net(&format!("10.2.{k}.0/24"))).collect();
    both[0].children[0].remote.clone_from(&many);
    both[1].children[0].local = many;
    both
}

fn ids(lab: &Lab, side: usize) -> Vec<ChildId> {
    let mut ids: Vec<_> = lab.view(side).children.iter().map(|c| c.id).collect();
    ids.sort_unstable();
    ids
}

fn failures(lab: &Lab, side: usize) -> Vec<String> {
    let detail = |e: &Event| match e {
        Event::Failure { reason, detail, .. } => Some(format!("{reason}: {detail}")),
        _ => None,
    };
    lab.gateways[side].events.iter().filter_map(|(_, e)| detail(e)).collect()
}

#[test]
fn pairs_that_a_peer_makes_one_by_one_live_side_by_side_each_with_its_own_name() {
    let [ours, theirs] = one_rule(3);
    let mut both = [ours, single_pairs(theirs)];
    (both[0].start, both[1].start) = (Start::Passive, Start::Active);
    let mut lab = Lab::new(1, Link::GOOD, copies(&both));
    // 1 -> 0  IKE_AUTH { TSi 10.2.0/24 }, CREATE_CHILD_SA { TSi 10.2.1/24 }, CREATE_CHILD_SA { TSi 10.2.2/24 }
    lab.run(secs(5));
    lab.assert_settled(3);
    lab.assert_coverage(&both);
    let before = ids(&lab, 0);
    assert!(before.windows(2).all(|w| w[0] != w[1]), "{before:?}");
    let reqids: std::collections::BTreeSet<_> =
        lab.gateways[0].plane.sas.values().map(|s| s.1.reqid).collect();
    assert_eq!(reqids.len(), 3);
    // Whoever rekeys what: the parts stay what they are.
    for side in [0, 1] {
        for command in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
            lab.command(side, command);
            lab.run(secs(10));
            lab.assert_settled(3);
            lab.assert_coverage(&both);
            assert_eq!(ids(&lab, 0), before, "{command:?} of {side}");
        }
    }
    lab.command(1, Command::Down(TUNNEL));
    lab.run(secs(10));
    lab.assert_gone(0);
    lab.assert_gone(1);
}

#[test]
fn what_a_peer_leaves_out_of_its_answer_is_asked_for_pair_by_pair() {
    for (local, remote) in [(1u8, 3u8), (2, 2)] {
        let mut both = one_rule(remote);
        let locals: Vec<_> = (0..local).map(|k| net(&format!("10.1.{k}.0/24"))).collect();
        both[0].children[0].local.clone_from(&locals);
        both[1].children[0].remote = locals;
        let both = both.map(|p| if p.start == Start::Passive { single_pairs(p) } else { p });
        let mut lab = Lab::new(2, Link::GOOD, copies(&both));
        lab.run(secs(5));
        lab.assert_settled(usize::from(local * remote));
        lab.assert_coverage(&both);
        assert_eq!(failures(&lab, 0), Vec::<String>::new());
        // One pair ends at the peer: the others go on, and it is made again.
        let gone = lab.view(0).children[1].clone();
        let delete = cygnet_ike::wire::Delete::Esp(vec![gone.outbound.value()]);
        let payloads = cygnet_ike::wire::Payloads { deletes: vec![delete], ..Default::default() };
        lab.forge(1, Exchange::INFORMATIONAL, false, &payloads);
        let kept = usize::from(local * remote) - 1;
        assert_eq!(lab.view(0).coverage.covered, kept);
        assert_eq!(lab.view(0).state, TunnelState::Up);
        lab.run(secs(10));
        assert_eq!(lab.view(0).coverage.covered, kept + 1);
    }
}

#[test]
fn a_network_that_the_peer_does_not_have_is_named_and_asked_for_ever_more_rarely() {
    let mut both = one_rule(2);
    both[1].children[0].local.pop();
    let mut lab = Lab::new(3, Link::GOOD, copies(&both));
    lab.run(secs(600));
    lab.assert_coverage(&both);
    let view = lab.view(0);
    assert_eq!((view.state, view.coverage.covered, view.coverage.pairs), (TunnelState::Up, 1, 2));
    assert_eq!(view.coverage.missing[0].remote, net("10.2.1.0/24"));
    let trouble = view.configured[0].trouble.as_ref().expect("the refusal");
    assert_eq!(trouble.reason, FailureReason::TsUnacceptable);
    assert!(trouble.detail.contains("10.1.0.0/24 -> 10.2.1.0/24"), "{}", trouble.detail);
    assert!(view.configured[0].retry_at.is_some());
    let told = failures(&lab, 0);
    assert!((5..=9).contains(&told.len()), "{} in ten minutes", told.len());
    // The responder says what it has, and what was offered.
    let refused = failures(&lab, 1);
    let words = "our networks: the peer offers 10.2.1.0/24, we want 10.2.0.0/24";
    assert!(refused.iter().all(|f| f.contains(words)), "{refused:?}");
}

#[test]
fn a_peer_that_wants_single_pairs_is_asked_pair_by_pair() {
    let [ours, theirs] = one_rule(2);
    let both = [ours, single_pairs(theirs)];
    for kind in [NotifyType::SINGLE_PAIR_REQUIRED, NotifyType::TS_UNACCEPTABLE] {
        let mut lab = Lab::new(4, Link::GOOD, copies(&both));
        lab.run(secs(2));
        // All of it ends, and the list as a whole is refused.
        let deletes = lab.view(0).children.iter().map(|c| c.outbound.value()).collect();
        let deletes = vec![cygnet_ike::wire::Delete::Esp(deletes)];
        lab.forge(
            1,
            Exchange::INFORMATIONAL,
            false,
            &cygnet_ike::wire::Payloads { deletes, ..Default::default() },
        );
        lab.tap = Some(Box::new(|side, bytes| {
            let asks = Header::decode(&bytes).is_ok_and(|(h, _)| h.exchange == Exchange::CREATE_CHILD_SA);
            (side == 1 || !asks).then_some(bytes)
        }));
        lab.run(secs(6));
        lab.tap = None;
        let log = record(&mut lab);
        lab.forge(1, Exchange::CREATE_CHILD_SA, true, &notify(kind));
        lab.run(std::time::Duration::from_millis(2));
        let read = |(side, bytes): &(usize, Vec<u8>)| lab.gateways[*side].endpoint.read(bytes);
        let asked: Vec<_> = log.borrow().iter().filter(|(side, _)| *side == 0).filter_map(read).collect();
        assert_eq!(asked[0].tsr, Some(vec![net("10.2.0.0/24")]), "{kind}");
    }
}

/// TCP to one port out of everything, as some peers answer.
#[test]
fn a_narrowing_to_one_protocol_is_shown_and_not_asked_for_again() {
    let mut both = one_rule(1);
    let web = TrafficSelector { protocol: 6, ports: (443, 443), ..net("10.2.0.0/24") };
    both[1].children[0].local = vec![web];
    let mut lab = Lab::new(5, Link::GOOD, copies(&both));
    lab.run(secs(60));
    let view = lab.view(0);
    assert_eq!((view.state, view.coverage.covered, view.coverage.pairs), (TunnelState::Up, 0, 1));
    assert!(view.coverage.missing[0].partly);
    assert_eq!(view.configured[0].state, ConfiguredState::Up);
    lab.assert_settled(1);
    assert!(lab.passes(0, &net("10.1.0.0/24"), &web));
    assert_eq!(
        lab.sent,
        [2, 2].map(|handshake: u64| handshake + 1),
        "nothing but the handshake and one sign of life"
    );
}

#[test]
fn one_child_of_two_refused_leaves_the_tunnel_up_and_is_named() {
    let mut both = [policy(0, 2), policy(1, 2)];
    both[1].children[1].local = vec![net("172.16.0.0/16")];
    let mut lab = Lab::new(6, Link::GOOD, copies(&both));
    lab.run(secs(60));
    lab.assert_coverage(&both);
    let view = lab.view(0);
    assert_eq!(view.state, TunnelState::Up);
    let states: Vec<_> = view.configured.iter().map(|c| c.state).collect();
    assert_eq!(states, [ConfiguredState::Up, ConfiguredState::Failed]);
    assert!(failures(&lab, 0).iter().all(|f| f.contains("10.1.1.0/24 -> 10.2.1.0/24")));
    assert_eq!(view.coverage.missing[0].local, net("10.1.1.0/24"));
}

/// One end demands PFS and the other one does not: RFC 7296 §1.2 lets the first child come up all the same.
fn pfs_at(side: usize) -> [TunnelPolicy; 2] {
    let mut both = [policy(0, 1), policy(1, 1)];
    both[1 - side].children[0].proposals = vec!["aes256gcm16".parse().unwrap()];
    both
}

#[test]
fn where_the_ends_do_not_agree_on_pfs_a_new_ike_sa_takes_over_without_a_gap_and_both_say_why() {
    for (pfs, rekeyer) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut both = pfs_at(pfs);
        both[rekeyer].children[0].lifetime = secs(600);
        let mut lab = Lab::new(7, Link::GOOD, copies(&both));
        lab.run(secs(1));
        lab.assert_settled(1);
        assert_eq!(lab.view(0).lesson, None);
        // Three lifetimes of the shorter keys, with a packet each way in each 10 ms.
        for _ in 0..180_000 {
            lab.probe(0, crate::CHILD);
            lab.probe(1, crate::CHILD);
            lab.run(std::time::Duration::from_millis(10));
        }
        assert_eq!(lab.probes.1, 0, "PFS at {pfs}, {rekeyer} rekeys: lost packets");
        lab.run(secs(30));
        lab.assert_coverage(&both);
        assert!(lab.gateways[0].events.iter().any(|(_, e)| matches!(e, Event::IkeUp { .. })));
        let words = ["the peer offers x25519", "the peer offers none"];
        let refused = failures(&lab, 1 - rekeyer);
        let expected = words[usize::from(rekeyer != pfs)];
        assert!(refused.iter().any(|f| f.contains(expected)), "{refused:?}");
        assert!(
            failures(&lab, rekeyer).iter().any(|f| f.contains("NO_PROPOSAL_CHOSEN; we offered aes256gcm16"))
        );
        let lesson = lab.view(rekeyer).lesson.expect("what was learnt");
        assert_eq!(lesson.reason, FailureReason::NoProposalChosen);
    }
}

#[test]
fn a_peer_that_allows_no_child_beside_the_first_gets_a_new_ike_sa_for_new_keys() {
    let mut lab = Lab::pair(8, Link::GOOD);
    lab.run(secs(1));
    let before = lab.view(0).ike.unwrap().spi_i;
    lab.tap = Some(Box::new(|side, bytes| (side == 0).then_some(bytes)));
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(std::time::Duration::from_millis(6));
    lab.tap = None;
    lab.forge(1, Exchange::CREATE_CHILD_SA, true, &notify(NotifyType::NO_ADDITIONAL_SAS));
    lab.run(secs(20));
    assert_ne!(lab.view(0).ike.unwrap().spi_i, before);
    assert_eq!(lab.view(0).coverage.covered, 1);
}

/// Whatever ends the first child's keys where PFS differs, the tunnel comes back by itself.
#[test]
fn no_end_of_keys_leaves_a_tunnel_that_only_a_reset_brings_back() {
    for pfs in [0, 1] {
        for side in [0, 1] {
            let both = pfs_at(pfs);
            let mut lab = Lab::new(9, Link::GOOD, copies(&both));
            lab.run(secs(1));
            for hard in [true, false] {
                let sa = *lab.gateways[side].plane.sas.keys().next().unwrap();
                lab.input(side, cygnet_ike::Input::Expired { sa, hard });
                lab.run(secs(60));
                lab.assert_coverage(&both);
                lab.assert_settled(1);
            }
            // The data plane refuses the pair of the new IKE SA too.
            lab.gateways[side].plane.fail_next = 2;
            lab.command(side, Command::RekeyChildren(TUNNEL));
            lab.run(secs(120));
            lab.assert_coverage(&both);
            lab.assert_settled(1);
        }
    }
}

/// RFC 7296 §2.9: the packet that makes us ask leads the selectors, and a responder that narrows must take what leads. A
/// responder that took its first rule would leave the packet out.
#[test]
fn the_packet_that_asks_for_a_child_decides_what_it_is_narrowed_to() {
    use cygnet_ike::Input;
    use cygnet_ike::policy::Start;
    use cygnet_model::plane::Acquire;
    use cygnet_model::selector::{Packet, PacketEnd};
    for (subnet, of) in [(1, 0), (0, 0), (1, 1)] {
        let mut both = [policy(0, 1), policy(1, 2)];
        both[0].start = Start::OnDemand;
        // One rule around both of the peer's; in the last case it is the second one, asked for by CREATE_CHILD_SA.
        both[0].children[0].local = vec![net("10.1.0.0/16")];
        both[0].children[0].remote = vec![net("10.2.0.0/16")];
        if of == 1 {
            let wide = both[0].children[0].clone();
            both[0].children = vec![policy(0, 3).children[2].clone(), wide].into();
            let [first, second] = [0, 1].map(|n| both[1].children[n].clone());
            both[1].children = vec![policy(1, 3).children[2].clone(), first, second].into();
        }
        let mut lab = Lab::new(61, Link::GOOD, both);
        lab.run(secs(1));
        let end = |side: usize, port| PacketEnd {
            addr: format!("10.{}.{subnet}.7", side + 1).parse().unwrap(),
            protocol: 6,
            port: Some(port),
        };
        let packet = Some(Packet::between(&end(0, 40_000), &end(1, 443)));
        let child = cygnet_model::ChildId { tunnel: TUNNEL, index: of };
        lab.input(0, Input::Acquire(Acquire { child, packet }));
        lab.run(std::time::Duration::from_millis(100));
        let mut ups = lab.gateways[0].events.iter().filter_map(|(_, e)| match e {
            cygnet_ike::Event::ChildUp { local, remote, .. } => Some((local.clone(), remote.clone())),
            _ => None,
        });
        let wanted = [0, 1].map(|side| vec![net(&format!("10.{}.{subnet}.0/24", side + 1))]);
        let at = usize::from(of);
        assert_eq!(ups.nth(at), Some(wanted.clone().into()), "subnet {subnet}, rule {of}");
    }
}
