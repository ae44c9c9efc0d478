//! What a stranger, or a man in the middle, may try.

use std::time::Duration;

use cygnet_ike::wire::{Exchange, Header, Notify, NotifyType, PayloadType, Payloads, Writer};
use cygnet_ike::{Command, Event};
use cygnet_model::suite::Group;
use cygnet_sim::{Lab, Link, TUNNEL, policy};

use crate::{child_request, ike_request, notify, record, secs};

/// An IKE_SA_INIT response that anybody could send who saw the request.
pub fn forged_init(lab: &Lab, spi_r: u64, payloads: &Payloads) -> Vec<u8> {
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

/// A cookie that the responder never gave makes us sign another request than the one that it answered. That costs a round
/// trip and no more, however often somebody does it.
#[test]
fn a_forged_cookie_keeps_nobody_out() {
    for always in [false, true] {
        let mut lab = Lab::pair(18, Link::GOOD);
        let mut forged = 0;
        for _ in 0..200 {
            lab.run(Duration::from_millis(1));
            let g = &lab.gateways[0].endpoint;
            let asks = g.spis().first().is_some_and(|spi| g.state_name(*spi) == Some("InitSent"));
            // I -> R  IKE_SA_INIT, and before the answer: ? -> I  { N(COOKIE) }
            if asks && (always || forged == 0) {
                let notifies = vec![Notify::new(NotifyType::COOKIE, vec![7; 16])];
                let bytes = forged_init(&lab, 0, &Payloads { notifies, ..Payloads::default() });
                lab.inject(0, lab.flow(0), &bytes);
                forged += 1;
            }
        }
        assert!(forged > 0 && lab.is_up(), "{:?}", lab.failures(0));
        // The refusal is kept for a while.
        lab.run(secs(40));
        lab.assert_settled(1);
        assert!(lab.failures(0).is_empty(), "{:?}", lab.failures(0));
    }
}

/// The attempt that doubts cookies brings one back all the same if nothing better comes.
#[test]
fn a_cookie_that_is_needed_is_brought_back_even_after_a_forged_one() {
    let mut lab = Lab::pair(31, Link::GOOD);
    let log = record(&mut lab);
    lab.run(Duration::from_millis(1));
    let notifies = vec![Notify::new(NotifyType::COOKIE, vec![7; 16])];
    let bytes = forged_init(&lab, 0, &Payloads { notifies, ..Payloads::default() });
    lab.inject(0, lab.flow(0), &bytes);
    let genuine = log.borrow()[0].1.clone();
    // The first request is answered; from then on the table is full of strangers.
    lab.run(Duration::from_millis(8));
    for n in 0..40u64 {
        let mut bytes = genuine.clone();
        bytes[..8].copy_from_slice(&(n + 1).to_be_bytes());
        lab.inject(1, lab.flow(1), &bytes);
    }
    lab.run(secs(3));
    assert!(lab.is_up(), "{:?}", lab.failures(0));
    assert!(lab.failures(0).is_empty());
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
    assert_eq!(lab.gateways[1].cookies, (8, 0));
    // I -> R  IKE_SA_INIT, I <- R  { N(COOKIE) }, I -> R  { N(COOKIE), ... }
    lab.run(Duration::from_millis(100));
    assert!(lab.is_up());
    assert_eq!(lab.sent[0], 3);
    assert_eq!(lab.gateways[1].cookies, (9, 1));
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
fn what_happens_before_authentication_is_no_tunnels_failure() {
    type Change = fn(&mut cygnet_ike::TunnelPolicy);
    let changes: [(Change, &str); 3] = [
        (|p| p.proposals = vec!["aes128-sha256-modp2048".parse().unwrap()], "no_proposal_chosen"),
        (|p| p.psk = cygnet_model::SecretBytes::copy_of(b"guessed"), "authentication_failed"),
        (|p| p.local_id = cygnet_ike::wire::Identity::fqdn("somebody.else"), "unknown_identity"),
    ];
    for (change, reason) in changes {
        // ? -> R  from the peer's address
        let mut stranger = policy(0, 1);
        change(&mut stranger);
        let mut lab = Lab::new(38, Link::GOOD, [stranger, policy(1, 1)]);
        lab.run(secs(5));
        assert!(lab.failures(1).contains(&reason));
        // The initiator's failure is that of its tunnel; the responder does not know whose it is.
        for (side, known) in [(0, true), (1, false)] {
            for (_, event) in &lab.gateways[side].events {
                if let cygnet_ike::Event::Failure { tunnel, .. } = event {
                    assert_eq!(tunnel.is_some(), known, "{reason} at {side}");
                }
            }
        }
    }
}

/// An INVALID_KE_PAYLOAD for one of the groups that the usual policy offers.
fn wants_group(transform: u16) -> Payloads {
    let group = Notify::new(NotifyType::INVALID_KE_PAYLOAD, transform.to_be_bytes().to_vec());
    Payloads { notifies: vec![group], ..Payloads::default() }
}

/// The group of the IKE SAs that a gateway has had.
fn groups(lab: &Lab, side: usize) -> Vec<Group> {
    let events = lab.gateways[side].events.iter();
    events
        .filter_map(|(_, e)| if let Event::IkeUp { suite, .. } = e { Some(suite.group) } else { None })
        .collect()
}

#[test]
fn nobody_in_the_middle_chooses_the_group() {
    // The first request arrives, or is swallowed too.
    for swallowed in [false, true] {
        let mut lab = Lab::pair(39, Link { loss: if swallowed { 1000 } else { 0 }, ..Link::GOOD });
        lab.run(Duration::from_millis(1));
        lab.link = Link::GOOD;
        // ? -> I  { N(INVALID_KE_PAYLOAD, ecp384) }, which is offered, but not first
        let bytes = forged_init(&lab, 0, &wants_group(20));
        lab.inject(0, lab.flow(0), &bytes);
        lab.run(secs(5));
        lab.assert_settled(1);
        assert_eq!(groups(&lab, 0), [Group::X25519], "first request swallowed: {swallowed}");
        assert!(lab.failures(0).is_empty());
    }
}

#[test]
fn ever_other_groups_are_no_reason_to_give_up() {
    let mut lab = Lab::pair(40, Link::GOOD);
    lab.run(Duration::from_millis(1));
    for n in 0..20 {
        let bytes = forged_init(&lab, 0, &wants_group(if n % 2 == 0 { 20 } else { 31 }));
        lab.inject(0, lab.flow(0), &bytes);
    }
    lab.run(secs(5));
    lab.assert_settled(1);
    assert_eq!(groups(&lab, 0), [Group::X25519]);
    assert!(lab.failures(0).is_empty());
}

#[test]
fn a_rekey_begins_with_the_first_group_of_the_list_again() {
    let mut both = [policy(0, 1), policy(1, 1)];
    let narrow = vec!["aes256gcm16-prfsha384-ecp384".parse().unwrap()];
    let wide = std::mem::replace(&mut both[1].proposals, narrow);
    let mut lab = Lab::new(41, Link::GOOD, both);
    lab.run(secs(1));
    assert_eq!(groups(&lab, 0), [Group::Ecp384], "the only one in common");
    // R allows the better group from now on; the IKE SA that is begun under its new policy is rekeyed by I.
    lab.configure(1, cygnet_ike::TunnelPolicy { proposals: wide, ..policy(1, 1) });
    lab.command(0, Command::Reset(TUNNEL));
    lab.run(secs(30));
    let log = record(&mut lab);
    // I -> R  CREATE_CHILD_SA { SA, Ni, KEi(x25519) }
    lab.command(0, Command::RekeyIke(TUNNEL));
    let request = lab.gateways[0].endpoint.read(&log.borrow()[0].1).unwrap();
    assert_eq!(request.ke.unwrap().group, 31);
}

/// IKE_SA_INIT requests under these SPIs from the peer's own address, by somebody who brings cookies back.
fn share_the_address(lab: &mut Lab, genuine: &[u8], spis: std::ops::Range<u64>) {
    for spi in spis {
        let (header, chain) = Header::decode(genuine).unwrap();
        let header = Header { spi_i: spi, ..header };
        let mut payloads = Payloads::decode(header.next, chain).unwrap();
        for _ in 0..2 {
            let mut w = Writer::message(&header);
            payloads.encode(&mut w);
            let log = record(lab);
            lab.inject(1, lab.flow(1), &w.finish());
            let said = log.borrow().clone();
            let answer = said.iter().filter_map(|(_, bytes)| lab.gateways[1].endpoint.read(bytes)).next();
            let cookie = answer.and_then(|a| a.notify(NotifyType::COOKIE).cloned());
            let Some(cookie) = cookie else { break };
            payloads.notifies.insert(0, cookie);
        }
    }
    lab.tap = None;
}

#[test]
fn whoever_shares_the_address_cannot_keep_the_peer_out() {
    let mut lab = Lab::pair(42, Link { loss: 1000, ..Link::GOOD });
    let log = record(&mut lab);
    lab.run(Duration::from_millis(1));
    let genuine = log.borrow()[0].1.clone();
    share_the_address(&mut lab, &genuine, 1..101);
    assert_eq!(lab.gateways[1].endpoint.half_open(), 100);
    lab.link = Link::GOOD;
    lab.run(secs(2));
    assert!(lab.is_up());
    assert!(!lab.gateways[1].drops.contains_key("half_open_limit"));
}

#[test]
fn a_degenerate_key_exchange_value_keeps_its_place_until_its_time_is_over() {
    let mut lab = Lab::pair(43, Link { loss: 1000, ..Link::GOOD });
    let log = record(&mut lab);
    lab.run(Duration::from_millis(1));
    let (header, chain) = Header::decode(&log.borrow()[0].1).map(|(h, c)| (h, c.to_vec())).unwrap();
    let mut payloads = Payloads::decode(header.next, &chain).unwrap();
    payloads.ke.iter_mut().for_each(|ke| ke.data.fill(0));
    let mut w = Writer::message(&Header { spi_i: 77, ..header });
    payloads.encode(&mut w);
    lab.inject(1, lab.flow(1), &w.finish());
    let spi_r = lab.gateways[1].endpoint.spis()[0].value();
    // ? -> R  IKE_AUTH, which makes R compute the secret
    let header = Header { spi_i: 77, spi_r, exchange: Exchange::IKE_AUTH, message_id: 1, ..header };
    for _ in 0..10 {
        lab.inject(1, lab.flow(1), &Writer::message(&header).finish());
    }
    assert_eq!(lab.gateways[1].endpoint.half_open(), 1);
    assert_eq!(lab.failures(1), ["invalid_syntax"], "told once");
    lab.run(secs(31));
    assert_eq!(lab.gateways[1].endpoint.half_open(), 0);
}
