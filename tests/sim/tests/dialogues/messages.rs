//! Message IDs, repetitions, and answers that nobody waits for.

use std::net::SocketAddr;
use std::time::Duration;

use cygnet_ike::wire::{Exchange, Header, Notify, NotifyType, Payloads};
use cygnet_ike::{Action, Command, Flow, Input};
use cygnet_sim::{Lab, Link, TUNNEL, policy};

use crate::{child_request, ike_request, notify, record, secs};

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
        assert_eq!(log.len(), 5, "the answer, and so many repetitions in one moment");
        assert_eq!(lab.gateways[1].drops["rate_limit"], 95);
        assert!(log.iter().all(|answer| *answer == log[0]));
        assert_eq!((lab.gateways[1].endpoint.reserved(), lab.gateways[1].plane.sas.len()), after_one);
    }
}

/// Where the datagrams go that a gateway sends because of one.
fn answered_to(lab: &mut Lab, side: usize, flow: Flow, bytes: &[u8]) -> Vec<SocketAddr> {
    let out = lab.handle(side, lab.now(), Input::Datagram { flow, bytes });
    let to = |action: &Action| match action {
        Action::Send { flow, .. } => Some(flow.remote),
        _ => None,
    };
    out.iter().filter_map(to).collect()
}

#[test]
fn a_repeated_request_is_answered_to_the_peer_alone_and_only_if_it_is_authentic() {
    // An established IKE SA, and one that was refused.
    for refused in [false, true] {
        let mut stranger = policy(0, 1);
        if refused {
            stranger.psk = cygnet_model::SecretBytes::copy_of(b"guessed");
        }
        let mut lab = Lab::new(26, Link::GOOD, [stranger, policy(1, 1)]);
        let log = record(&mut lab);
        lab.run(Duration::from_millis(100));
        // I -> R  IKE_AUTH, the last request that R has answered
        let said = log.borrow().clone();
        let is_auth = |bytes: &[u8]| Header::decode(bytes).unwrap().0.exchange == Exchange::IKE_AUTH;
        let request = said.into_iter().rev().find(|(side, bytes)| *side == 0 && is_auth(bytes)).unwrap().1;
        let peer = lab.flow(1);
        let elsewhere = Flow { remote: ([198, 51, 100, 7], 4500).into(), ..peer };
        assert_eq!(answered_to(&mut lab, 1, peer, &request), [peer.remote]);
        assert_eq!(answered_to(&mut lab, 1, elsewhere, &request), [peer.remote]);
        // The header alone, and the message with a bent ICV.
        let mut header = request[..28].to_vec();
        header[16] = 0;
        header[24..28].copy_from_slice(&28u32.to_be_bytes());
        let mut bent = request;
        *bent.last_mut().unwrap() ^= 1;
        for forged in [header, bent] {
            assert!(answered_to(&mut lab, 1, peer, &forged).is_empty());
        }
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
