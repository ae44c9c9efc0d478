//! Additional key exchanges (RFC 9242, RFC 9370): of new IKE SAs, of rekeys and of children, and whom they do not believe.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use cygnet_ike::wire::{Exchange, HEADER_LEN, Header, KeyExchange, Notify, NotifyType, Payloads};
use cygnet_ike::{Command, Event, TunnelPolicy};
use cygnet_sim::{Lab, Link, TUNNEL, policy};

use crate::{CHILD, record, secs};

const IKE: &str = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_mlkem1024";
const ESP: &str = "aes256gcm16-x25519-ke1_mlkem768-ke3_ecp384";
/// One whose messages are no longer than others.
const SHORT: &str = "aes256gcm16-prfsha384-x25519-ke1_ecp384";

fn read<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> Vec<T> {
    text.split(',').map(|p| p.parse().unwrap()).collect()
}

fn with(side: usize, ike: &str, esp: &str) -> TunnelPolicy {
    let mut p = policy(side, 1);
    p.proposals = read(ike);
    p.children.values_mut().for_each(|c| c.proposals = read(esp));
    p
}

fn lab(seed: u64, ike: &str, esp: &str) -> Lab {
    Lab::new(seed, Link::GOOD, [0, 1].map(|side| with(side, ike, esp)))
}

/// Sender, exchange and message ID of what was said, fragments and repetitions counted once.
fn said(log: &[(usize, Vec<u8>)]) -> Vec<(usize, Exchange, u32)> {
    let of = |(side, bytes): &(usize, Vec<u8>)| {
        let (header, _) = Header::decode(bytes).unwrap();
        (*side, header.exchange, header.message_id)
    };
    let mut all: Vec<_> = log.iter().map(of).collect();
    all.dedup();
    all
}

#[test]
fn they_come_between_ike_sa_init_and_ike_auth_one_by_one() {
    let mut lab = lab(90, IKE, ESP);
    let log = record(&mut lab);
    lab.run(secs(1));
    lab.assert_settled(1);
    let there_and_back = |exchange, id| [(0, exchange, id), (1, exchange, id)];
    let wanted = [
        there_and_back(Exchange::IKE_SA_INIT, 0),
        there_and_back(Exchange::IKE_INTERMEDIATE, 1),
        there_and_back(Exchange::IKE_INTERMEDIATE, 2),
        there_and_back(Exchange::IKE_AUTH, 3),
    ];
    assert_eq!(said(&log.borrow()), wanted.concat());
    // An encapsulation key does not fit into one datagram, and none is larger than what passes anywhere.
    let intermediate = |bytes: &[u8]| Header::decode(bytes).unwrap().0.exchange == Exchange::IKE_INTERMEDIATE;
    let datagrams = log.borrow().iter().filter(|(_, bytes)| intermediate(bytes)).count();
    assert!(datagrams > 4, "{datagrams}");
    assert!(log.borrow().iter().all(|(_, bytes)| bytes.len() <= 1232));
    assert_eq!(lab.view(0).ike.unwrap().suite.to_string(), IKE);
    assert_eq!(
        lab.view(0).children[0].suite.to_string(),
        "aes256gcm16-esn",
        "the first child has none of its own"
    );
}

#[test]
fn new_keys_of_a_child_and_of_the_ike_sa_have_them_too_and_nothing_is_lost() {
    for side in [0, 1] {
        let mut lab = lab(91, IKE, ESP);
        lab.run(secs(1));
        let before = (lab.view(0).ike.unwrap().spi_i, lab.view(0).children[0].inbound);
        let log = record(&mut lab);
        for step in 0..4000 {
            match step {
                300 => lab.command(side, Command::RekeyChildren(TUNNEL)),
                2000 => lab.command(side, Command::RekeyIke(TUNNEL)),
                _ => {}
            }
            lab.probe(0, CHILD);
            lab.probe(1, CHILD);
            lab.run(Duration::from_millis(1));
        }
        lab.run(secs(10));
        lab.assert_settled(1);
        assert_eq!(lab.probes, (8000, 0), "side {side}");
        let after = lab.view(0);
        assert_ne!((after.ike.unwrap().spi_i, after.children[0].inbound), before);
        assert_eq!(lab.view(0).ike.unwrap().suite.to_string(), IKE);
        assert_eq!(lab.view(0).children[0].suite.to_string(), format!("{ESP}-esn"));
        let said = said(&log.borrow());
        let count = |who, what| said.iter().filter(|(s, e, _)| (*s, *e) == (who, what)).count();
        for end in [side, 1 - side] {
            assert_eq!(count(end, Exchange::CREATE_CHILD_SA), 2);
            assert_eq!(count(end, Exchange::IKE_FOLLOWUP_KE), 4, "two of each");
        }
    }
}

#[test]
fn whatever_is_lost_of_them_is_sent_again() {
    for lost in 0..24 {
        let mut lab = lab(92, IKE, ESP);
        let mut number = 0;
        lab.tap = Some(Box::new(move |_, bytes| {
            number += 1;
            (number != lost + 1).then_some(bytes)
        }));
        lab.run(secs(4));
        lab.command((lost % 2) as usize, Command::RekeyIke(TUNNEL));
        lab.run(secs(100));
        lab.assert_settled(1);
        assert_eq!(lab.view(0).ike.unwrap().suite.to_string(), IKE, "datagram {lost}");
        assert!(lab.failures(0).is_empty() && lab.failures(1).is_empty(), "datagram {lost}");
    }
}

/// T57.
#[test]
fn an_altered_octet_of_ike_intermediate_is_dropped_and_the_true_message_taken() {
    for (at, nth) in (HEADER_LEN..HEADER_LEN + 40).zip([3, 4].into_iter().cycle()) {
        let mut lab = lab(93, SHORT, ESP);
        let mut number = 0;
        lab.tap = Some(Box::new(move |_, mut bytes| {
            number += 1;
            if number == nth {
                bytes[at] ^= 0x10;
            }
            Some(bytes)
        }));
        lab.run(secs(3));
        lab.assert_settled(1);
        let drops = &lab.gateways[if nth == 3 { 1 } else { 0 }].drops;
        assert_eq!(drops.values().sum::<u64>(), 1, "octet {at}: {drops:?}");
    }
}

/// Loses the initiator's IKE_INTERMEDIATE, and gives what it said.
fn intercept(lab: &mut Lab) -> Rc<RefCell<Vec<Vec<u8>>>> {
    let taken = Rc::new(RefCell::new(Vec::new()));
    let kept = Rc::clone(&taken);
    lab.tap = Some(Box::new(move |side, bytes| {
        let (header, _) = Header::decode(&bytes).unwrap();
        if side == 0 && header.exchange == Exchange::IKE_INTERMEDIATE {
            kept.borrow_mut().push(bytes);
            return None;
        }
        Some(bytes)
    }));
    lab.run(Duration::from_millis(200));
    taken
}

/// T57: somebody who has broken the first key exchange, and with it the keys of IKE_INTERMEDIATE, changes what the other keys
/// do not depend on.
#[test]
fn who_knows_the_keys_of_ike_intermediate_changes_nothing_of_it() {
    for changed in [false, true] {
        let mut lab = lab(94, SHORT, ESP);
        let taken = intercept(&mut lab);
        let mut payloads = lab.gateways[0].endpoint.read(&taken.borrow()[0]).unwrap();
        if changed {
            payloads.notifies.push(Notify::new(NotifyType(40_000), vec![7]));
        }
        // I -> R  IKE_INTERMEDIATE { KEi(1), N(…) }
        lab.forge(0, Exchange::IKE_INTERMEDIATE, false, &payloads);
        lab.run(Duration::from_millis(200));
        assert_eq!(lab.is_up(), !changed);
        if changed {
            assert!(lab.failures(1).contains(&"authentication_failed"), "{:?}", lab.failures(1));
            assert!(lab.gateways.iter().all(|g| g.plane.sas.is_empty()));
        }
    }
}

#[test]
fn what_was_agreed_on_is_not_left_out() {
    let mut lab = lab(95, SHORT, ESP);
    intercept(&mut lab);
    // I -> R  IKE_AUTH, at once and under the right keys
    lab.forge(0, Exchange::IKE_AUTH, false, &Payloads::default());
    let g = &lab.gateways[1];
    assert_eq!(g.endpoint.state_name(g.endpoint.spis()[0]), Some("InitAnswered"));
    assert_eq!(g.drops["unexpected_exchange"], 1);
    lab.tap = None;
    lab.run(secs(2));
    lab.assert_settled(1);
}

/// T57: no value, one of another method, or one of another length.
#[test]
fn a_value_that_is_none_of_the_method_ends_the_negotiation() {
    let ke = |group, octets: usize| Some(KeyExchange { group, data: vec![9; octets] });
    for ke in [None, ke(20, 95), ke(20, 97), ke(20, 0), ke(36, 1184), ke(31, 32)] {
        let mut lab = lab(96, SHORT, ESP);
        intercept(&mut lab);
        let shown = format!("{:?}", ke.as_ref().map(|ke| (ke.group, ke.data.len())));
        lab.forge(0, Exchange::IKE_INTERMEDIATE, false, &Payloads { ke, ..Payloads::default() });
        let g = &lab.gateways[1];
        assert_eq!(g.endpoint.state_name(g.endpoint.spis()[0]), Some("Refused"), "{shown}");
        assert_eq!(g.endpoint.jobs(), 0);
        lab.run(Duration::from_millis(200));
        // R -> I  IKE_INTERMEDIATE { N(INVALID_SYNTAX) }
        assert_eq!(lab.failures(0), ["invalid_syntax"], "{shown}");
    }
}

#[test]
fn a_peer_without_them_gets_the_proposal_without_them_or_is_told_what_is_missing() {
    let classic = "aes256gcm16-prfsha384-x25519";
    for (first, second) in [(0, 1), (1, 0)] {
        let either = with(first, &format!("{IKE},{classic}"), &format!("{ESP},aes256gcm16-x25519"));
        let mut both = [either, with(second, classic, "aes256gcm16-x25519")];
        both.sort_by_key(|p| p.start == cygnet_ike::policy::Start::Passive);
        let mut lab = Lab::new(97, Link::GOOD, both);
        lab.run(secs(1));
        lab.command(first, Command::RekeyChildren(TUNNEL));
        lab.command(second, Command::RekeyIke(TUNNEL));
        lab.run(secs(10));
        lab.assert_settled(1);
        assert_eq!(lab.view(0).ike.unwrap().suite.to_string(), classic);
        assert_eq!(lab.view(0).children[0].suite.to_string(), "aes256gcm16-x25519-esn");
    }
    let only = [with(0, IKE, ESP), with(1, classic, ESP)];
    let mut lab = Lab::new(98, Link::GOOD, only);
    lab.run(secs(5));
    let told = lab.gateways[1].events.iter().find_map(|(_, e)| match e {
        Event::Failure { detail, .. } => Some(detail.clone()),
        _ => None,
    });
    let told = told.unwrap();
    assert!(told.contains("additional key exchange: the peer offers mlkem768, we want none"), "{told}");
}

#[test]
fn a_follow_up_that_nobody_waits_for_changes_nothing() {
    let mut lab = lab(99, IKE, ESP);
    lab.run(secs(1));
    let log = record(&mut lab);
    for notifies in [vec![], vec![Notify::new(NotifyType::ADDITIONAL_KEY_EXCHANGE, vec![1; 16])]] {
        let ke = Some(KeyExchange { group: 36, data: vec![1; 1184] });
        // -> IKE_FOLLOWUP_KE { KEi(1), [N(ADDITIONAL_KEY_EXCHANGE)] }
        lab.forge(0, Exchange::IKE_FOLLOWUP_KE, false, &Payloads { ke, notifies, ..Payloads::default() });
        // <- IKE_FOLLOWUP_KE { N(STATE_NOT_FOUND) }
        let answer = log.borrow().last().unwrap().1.clone();
        let answer = lab.gateways[0].endpoint.read(&answer).unwrap();
        assert!(answer.notify(NotifyType::STATE_NOT_FOUND).is_some());
    }
    assert!(lab.is_up());
}

#[test]
fn an_end_that_dies_between_them_leaves_nothing_half_made() {
    for (dies, after) in [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)] {
        for command in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
            let mut lab = lab(100, IKE, ESP);
            lab.run(secs(1));
            let (mut number, followed) = (0, Rc::new(RefCell::new(false)));
            let seen = Rc::clone(&followed);
            lab.tap = Some(Box::new(move |_, bytes| {
                let (header, _) = Header::decode(&bytes).unwrap();
                if header.exchange == Exchange::IKE_FOLLOWUP_KE {
                    number += 1;
                    *seen.borrow_mut() = number > after;
                }
                Some(bytes)
            }));
            lab.command(0, command);
            while !*followed.borrow() {
                lab.run(Duration::from_millis(1));
            }
            lab.tap = None;
            lab.kill(dies);
            lab.run(secs(1));
            let back = cygnet_sim::Back::default();
            lab.come_back(dies, vec![with(dies, IKE, ESP)], back);
            lab.run(secs(200));
            lab.assert_consistent();
            assert!(lab.is_up(), "{dies} after {after}: {command:?}");
            let reserved: Vec<_> = lab.gateways.iter().map(|g| g.endpoint.reserved()).collect();
            assert_eq!(reserved, [(1, 1); 2], "{dies} after {after}: {command:?}");
        }
    }
}

/// Runs until the request of a follow-up was seen so many times, and loses what this end says of it from then on.
fn until_follow_up(lab: &mut Lab, requests: usize, lost_of: usize) {
    let seen = Rc::new(RefCell::new(0));
    let (count, mut last) = (Rc::clone(&seen), None);
    lab.tap = Some(Box::new(move |side, bytes| {
        let (header, _) = Header::decode(&bytes).unwrap();
        if header.exchange != Exchange::IKE_FOLLOWUP_KE {
            return Some(bytes);
        }
        if !header.response && last.replace(header.message_id) != Some(header.message_id) {
            *count.borrow_mut() += 1;
        }
        (side != lost_of || *count.borrow() < requests).then_some(bytes)
    }));
    while *seen.borrow() < requests {
        lab.run(Duration::from_millis(1));
    }
    lab.run(Duration::from_millis(50));
}

#[test]
fn what_was_promised_under_an_older_policy_is_not_made_under_the_new_one() {
    let narrower = ["aes256gcm16-prfsha384-x25519-ke1_mlkem1024", "aes256gcm16-x25519-ke1_mlkem1024"];
    for command in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
        let mut lab = lab(101, IKE, ESP);
        lab.run(secs(1));
        lab.command(0, command);
        until_follow_up(&mut lab, 2, 0);
        for side in [1, 0] {
            lab.configure(side, with(side, narrower[0], narrower[1]));
        }
        lab.tap = None;
        lab.run(secs(200));
        lab.assert_settled(1);
        for side in [0, 1] {
            let view = lab.view(side);
            assert_eq!(view.ike.unwrap().suite.to_string(), narrower[0], "{command:?}");
            assert_eq!(view.children[0].suite.to_string(), format!("{}-esn", narrower[1]), "{command:?}");
        }
    }
}

#[test]
fn whatever_a_follow_up_is_answered_with_the_tunnel_stays_and_gets_new_keys() {
    let error = |kind| crate::notify(kind);
    let ke = |group, octets: usize| Payloads {
        ke: Some(KeyExchange { group, data: vec![7; octets] }),
        ..Payloads::default()
    };
    let answers = [
        Payloads::default(),
        error(NotifyType::STATE_NOT_FOUND),
        error(NotifyType::TEMPORARY_FAILURE),
        error(NotifyType::NO_PROPOSAL_CHOSEN),
        ke(36, 1087),
        ke(20, 96),
        ke(37, 1567),
    ];
    for command in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
        for (n, answer) in answers.iter().enumerate() {
            // The second is the last one: the peer has made what was asked for, and what refuses it lies.
            for nth in if answer.ke.is_some() { [1, 2].as_slice() } else { &[1] } {
                let nth = *nth;
                let mut lab = lab(102, IKE, "aes256gcm16-x25519-ke1_mlkem768-ke2_mlkem1024");
                lab.run(secs(1));
                lab.command(0, command);
                until_follow_up(&mut lab, nth, 1);
                // <- IKE_FOLLOWUP_KE
                lab.forge(1, Exchange::IKE_FOLLOWUP_KE, true, answer);
                lab.tap = None;
                lab.run(secs(1200));
                let what = format!("answer {n} to follow-up {nth} of {command:?}");
                assert!(lab.is_up(), "{what}");
                lab.assert_consistent();
                lab.command(0, command);
                lab.run(secs(100));
                lab.assert_settled(1);
            }
        }
    }
}

#[test]
fn an_end_that_goes_in_the_middle_of_them_is_gone() {
    for side in [0, 1] {
        for command in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
            let mut lab = lab(103, IKE, ESP);
            lab.run(secs(1));
            lab.command(0, command);
            until_follow_up(&mut lab, 1, 1);
            lab.command(side, Command::Shutdown);
            lab.command(1 - side, Command::Shutdown);
            lab.tap = None;
            lab.run(secs(120));
            (0..2).for_each(|side| lab.assert_gone(side));
        }
    }
}

#[test]
fn a_promise_that_nobody_comes_back_for_is_forgotten() {
    for command in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
        let mut lab = lab(104, IKE, ESP);
        lab.run(secs(1));
        lab.command(0, command);
        until_follow_up(&mut lab, 1, 0);
        let reserved = lab.gateways[1].endpoint.reserved();
        assert_eq!(reserved.0 + reserved.1, 3, "{command:?}");
        lab.kill(0);
        lab.run(secs(20));
        assert_eq!(lab.gateways[1].endpoint.reserved(), reserved, "{command:?}");
        // Longer than that, and shorter than it takes to miss the peer.
        let mut quiet = with(1, IKE, ESP);
        quiet.dpd = None;
        lab.configure(1, quiet);
        lab.run(secs(200));
        assert_eq!(lab.gateways[1].endpoint.reserved(), (1, 1), "{command:?}");
    }
}
