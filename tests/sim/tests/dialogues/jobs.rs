//! What happens while a key exchange is computed: whatever needs it is as if it were still on its way.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cygnet_ike::Command;
use cygnet_ike::policy::TunnelPolicy;
use cygnet_ike::wire::{Exchange, Header, KeyExchange, Notify, NotifyType, Payloads};
use cygnet_model::{SecretBytes, TunnelId};
use cygnet_sim::{Back, Lab, Link, Pace, TUNNEL, net, policy};

use crate::{CHILD, child_request, ike_request, record, secs};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A tunnel that is up, at whose end `held` jobs wait for the test from now on.
fn up(seed: u64, held: usize) -> Lab {
    let mut lab = Lab::pair(seed, Link::GOOD);
    lab.run(secs(2));
    assert!(lab.is_up());
    lab.gateways[held].pace = Pace::HELD;
    lab
}

/// What a gateway has dropped for a reason.
fn dropped(lab: &Lab, side: usize, reason: &str) -> u64 {
    lab.gateways[side].drops.get(reason).copied().unwrap_or(0)
}

/// The requests and answers of an exchange that a gateway sent.
fn said(log: &crate::Log, side: usize, exchange: Exchange, response: bool) -> Vec<Vec<u8>> {
    let fits =
        |b: &[u8]| Header::decode(b).is_ok_and(|(h, _)| (h.exchange, h.response) == (exchange, response));
    log.borrow().iter().filter(|(s, b)| *s == side && fits(b)).map(|(_, b)| b.clone()).collect()
}

#[test]
fn nothing_is_sent_before_the_key_is_there_and_a_late_key_is_dropped() {
    let mut lab = Lab::pair(1, Link::GOOD);
    lab.run(secs(1));
    lab.command(0, Command::Down(TUNNEL));
    lab.run(secs(1));
    lab.set_pace(Pace::HELD);
    let before = lab.sent.clone();
    lab.command(0, Command::Up(TUNNEL));
    lab.run(secs(3));
    assert_eq!(lab.sent, before);
    assert_eq!(lab.gateways[0].jobs(), ["Begin(X25519, Known)"], "one, however long it takes");
    assert_eq!(lab.view(0).state, cygnet_ike::view::TunnelState::Connecting);
    lab.command(0, Command::Down(TUNNEL));
    lab.do_jobs(0);
    lab.run(secs(1));
    assert_eq!(lab.sent, before);
    lab.assert_gone(0);
    assert_eq!(lab.gateways[0].endpoint.jobs(), 0);
}

#[test]
fn a_repeated_init_request_is_neither_lost_nor_done_twice() {
    let mut lab = Lab::pair(2, Link::GOOD);
    lab.gateways[1].pace = Pace::HELD;
    let log = record(&mut lab);
    // I -> R  IKE_SA_INIT, and again, while R makes its key
    lab.run(ms(6));
    assert_eq!(lab.gateways[1].jobs(), ["Begin(X25519, Stranger)"]);
    assert_eq!(lab.gateways[1].endpoint.half_open(), 1, "it has its place");
    lab.run(secs(2));
    let requests = said(&log, 0, Exchange::IKE_SA_INIT, false).len();
    assert!(requests > 1);
    assert_eq!(lab.gateways[1].jobs().len(), 1);
    assert_eq!(dropped(&lab, 1, "duplicate"), requests as u64 - 1);
    // Another one under the same SPI is not the one that is being answered.
    let mut other = said(&log, 0, Exchange::IKE_SA_INIT, false)[0].clone();
    *other.last_mut().unwrap() ^= 1;
    lab.inject(1, lab.flow(1), &other);
    assert_eq!((lab.gateways[1].jobs().len(), dropped(&lab, 1, "unexpected_exchange")), (1, 1));
    // I <- R  one answer
    lab.do_jobs(1);
    assert_eq!(said(&log, 1, Exchange::IKE_SA_INIT, true).len(), 1);
    lab.gateways[1].pace = Pace::AT_ONCE;
    lab.run(secs(5));
    lab.assert_settled(1);
}

#[test]
fn the_first_request_goes_on_while_the_key_of_another_group_is_made() {
    let lost = || Link { loss: 1000, ..Link::GOOD };
    let asked = |lab: &mut Lab, group: u16| {
        let notify = Notify::new(NotifyType::INVALID_KE_PAYLOAD, group.to_be_bytes().to_vec());
        let payloads = Payloads { notifies: vec![notify], ..Payloads::default() };
        let spi = lab.gateways[0].endpoint.spis()[0];
        let header = Header {
            spi_i: spi.value(),
            spi_r: 0,
            next: cygnet_ike::wire::PayloadType::NONE,
            exchange: Exchange::IKE_SA_INIT,
            from_initiator: false,
            response: true,
            message_id: 0,
        };
        let mut w = cygnet_ike::wire::Writer::message(&header);
        payloads.encode(&mut w);
        lab.inject(0, lab.flow(0), &w.finish());
    };
    // ? -> I  N(INVALID_KE_PAYLOAD) for P-384, which nobody asked for; the answer of R to the first request comes before the
    // key of it.
    let mut lab = Lab::pair(3, lost());
    let log = record(&mut lab);
    lab.run(ms(1));
    lab.gateways[0].pace = Pace::HELD;
    asked(&mut lab, 20);
    asked(&mut lab, 20);
    assert_eq!(lab.gateways[0].jobs(), ["Begin(Ecp384, Known)"]);
    lab.link = Link::GOOD;
    lab.run(secs(2));
    assert_eq!(lab.gateways[0].jobs(), ["Begin(Ecp384, Known)", "Finish(X25519, Known)"]);
    assert!(said(&log, 0, Exchange::IKE_SA_INIT, false).len() > 1, "repeated");
    lab.do_jobs(0);
    lab.gateways[0].pace = Pace::AT_ONCE;
    lab.run(secs(2));
    lab.assert_settled(1);
}

#[test]
fn an_answer_is_taken_once_and_the_request_not_repeated_while_its_secret_is_computed() {
    let mut lab = Lab::pair(4, Link::GOOD);
    let log = record(&mut lab);
    lab.run(ms(6));
    lab.gateways[0].pace = Pace::HELD;
    // I <- R  IKE_SA_INIT
    lab.run(ms(6));
    assert_eq!(lab.gateways[0].jobs(), ["Finish(X25519, Known)"]);
    let answer = said(&log, 1, Exchange::IKE_SA_INIT, true)[0].clone();
    for _ in 0..3 {
        lab.inject(0, lab.flow(0), &answer);
    }
    assert_eq!(dropped(&lab, 0, "duplicate"), 3);
    lab.run(secs(5));
    assert_eq!(said(&log, 0, Exchange::IKE_SA_INIT, false).len(), 1);
    assert_eq!(lab.gateways[0].jobs().len(), 1);
    lab.gateways[0].pace = Pace::AT_ONCE;
    lab.do_jobs(0);
    lab.run(secs(1));
    lab.assert_settled(1);
    // I -> R  IKE_AUTH, and the rekeys below: none of it twice
    assert_eq!(said(&log, 0, Exchange::IKE_AUTH, false).len(), 1);
}

#[test]
fn ike_auth_in_fragments_waits_whole_for_the_secret_that_opens_it() {
    let mut policies = [policy(0, 1), policy(1, 1)];
    for (side, p) in policies.iter_mut().enumerate() {
        for c in p.children.values_mut() {
            let nets = |i: usize| (0..60).map(|k| net(&format!("10.{}.0.{}/32", i + 1, 2 * k))).collect();
            (c.local, c.remote) = (nets(side), nets(1 - side));
        }
    }
    let mut lab = Lab::new(5, Link::GOOD, policies);
    let log = record(&mut lab);
    lab.run(ms(11));
    lab.gateways[1].pace = Pace::HELD;
    // I -> R  IKE_AUTH in fragments, all of them, and all of them again
    lab.run(secs(3));
    let fragments = said(&log, 0, Exchange::IKE_AUTH, false);
    assert!(fragments.len() >= 4, "{} datagrams", fragments.len());
    assert_eq!(lab.gateways[1].jobs(), ["Finish(X25519, Stranger)"]);
    assert!(dropped(&lab, 1, "duplicate") >= 2);
    lab.gateways[1].pace = Pace::AT_ONCE;
    lab.do_jobs(1);
    // I <- R  IKE_AUTH, at once and not with the next repetition
    lab.run(ms(10));
    lab.assert_settled(1);
    assert_eq!(lab.gateways[1].secrets.load(Ordering::Relaxed), 1);
}

#[test]
fn what_is_kept_for_a_secret_is_bounded() {
    let mut lab = Lab::pair(6, Link::GOOD);
    let log = record(&mut lab);
    lab.run(ms(11));
    lab.gateways[1].pace = Pace::HELD;
    lab.run(ms(6));
    let auth = said(&log, 0, Exchange::IKE_AUTH, false)[0].clone();
    // ? -> R  a thousand that look like it
    for n in 0..1000u16 {
        let mut forged = auth.clone();
        let at = forged.len() - 2;
        forged[at..].copy_from_slice(&n.to_be_bytes());
        lab.inject(1, lab.flow(1), &forged);
    }
    assert!(dropped(&lab, 1, "busy") >= 900, "{:?}", lab.gateways[1].drops);
    lab.gateways[1].pace = Pace::AT_ONCE;
    lab.do_jobs(1);
    lab.run(secs(5));
    lab.assert_settled(1);
}

#[test]
fn a_request_is_answered_once_and_nothing_else_has_a_place_meanwhile() {
    for rekey in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
        let mut lab = up(7, 1);
        let log = record(&mut lab);
        // I -> R  CREATE_CHILD_SA, and again, while R computes
        lab.command(0, rekey);
        lab.run(secs(2));
        let requests = said(&log, 0, Exchange::CREATE_CHILD_SA, false);
        assert!(requests.len() > 1);
        assert_eq!(lab.gateways[1].jobs(), ["Answer(X25519, Known)"]);
        assert_eq!(dropped(&lab, 1, "duplicate"), requests.len() as u64 - 1);
        let (before, reserved) = (lab.gateways[1].plane.sas.len(), lab.gateways[1].endpoint.reserved());
        assert_eq!((before, reserved), (2, (1, 1)), "nothing is made yet");
        // I -> R  the next message ID, which is outside of the window before the answer (RFC 7296 §2.3)
        let (own, peer) = (lab.gateways[0].endpoint.spis()[0], lab.gateways[1].endpoint.spis()[0]);
        let (due, _) = lab.gateways[1].endpoint.message_ids(peer).unwrap();
        let delete = Payloads { deletes: vec![cygnet_ike::wire::Delete::Ike], ..Payloads::default() };
        let early = lab.gateways[0]
            .endpoint
            .forge(own, Exchange::INFORMATIONAL, due + 1, false, &delete)
            .pop()
            .unwrap();
        lab.inject(1, lab.flow(1), &early);
        assert_eq!(dropped(&lab, 1, "message_id"), 1);
        assert!(lab.is_up() || lab.view(1).ike.is_some());
        // I <- R  one answer
        lab.do_jobs(1);
        assert_eq!(said(&log, 1, Exchange::CREATE_CHILD_SA, true).len(), 1);
        lab.gateways[1].pace = Pace::AT_ONCE;
        lab.run(secs(10));
        lab.assert_settled(1);
        assert_eq!(lab.gateways[1].secrets.load(Ordering::Relaxed), 2);
    }
}

#[test]
fn our_request_is_sent_when_its_key_is_there_and_its_answer_taken_once() {
    for rekey in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
        let mut lab = up(8, 0);
        let log = record(&mut lab);
        lab.command(0, rekey);
        lab.command(0, rekey);
        lab.run(ms(100));
        assert_eq!(lab.gateways[0].jobs(), ["Begin(X25519, Known)"]);
        assert!(said(&log, 0, Exchange::CREATE_CHILD_SA, false).is_empty());
        // I -> R  CREATE_CHILD_SA; I <- R
        lab.do_jobs(0);
        lab.run(ms(100));
        assert_eq!(lab.gateways[0].jobs(), ["Finish(X25519, Known)"]);
        let answer = said(&log, 1, Exchange::CREATE_CHILD_SA, true)[0].clone();
        lab.inject(0, lab.flow(0), &answer);
        assert_eq!(dropped(&lab, 0, "unexpected_response"), 1);
        lab.run(secs(10));
        assert_eq!(said(&log, 0, Exchange::CREATE_CHILD_SA, false).len(), 1, "it is answered");
        lab.gateways[0].pace = Pace::AT_ONCE;
        lab.do_jobs(0);
        lab.run(secs(10));
        lab.assert_settled(1);
    }
}

/// Of an IKE SA that an earlier process has left, an answer to what we know nothing of tells that our record is too old.
/// This one we know.
#[test]
fn an_answer_that_comes_twice_does_not_end_an_ike_sa_that_was_taken_up() {
    for rekey in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
        let mut lab = up(13, 0);
        lab.gateways[0].pace = Pace::AT_ONCE;
        assert!(lab.replace_process(0, vec![policy(0, 1)]).is_empty());
        lab.run(secs(10));
        lab.assert_settled(1);
        lab.gateways[0].pace = Pace::HELD;
        let log = record(&mut lab);
        lab.command(0, rekey);
        lab.do_jobs(0);
        lab.run(ms(100));
        assert_eq!(lab.gateways[0].jobs(), ["Finish(X25519, Known)"]);
        let answer = said(&log, 1, Exchange::CREATE_CHILD_SA, true)[0].clone();
        lab.inject(0, lab.flow(0), &answer);
        assert_eq!(dropped(&lab, 0, "unexpected_response"), 1);
        assert_eq!(lab.failures(0), [""; 0], "{rekey:?}");
        lab.gateways[0].pace = Pace::AT_ONCE;
        lab.do_jobs(0);
        lab.run(secs(10));
        lab.assert_settled(1);
    }
}

#[test]
fn the_peers_rekey_that_comes_while_ours_is_computed_collides_with_it_as_ever() {
    for (ours, theirs) in [
        (Command::RekeyChildren(TUNNEL), Command::RekeyChildren(TUNNEL)),
        (Command::RekeyIke(TUNNEL), Command::RekeyIke(TUNNEL)),
        (Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)),
        (Command::RekeyIke(TUNNEL), Command::RekeyChildren(TUNNEL)),
    ] {
        for seed in 0..20 {
            let mut lab = up(seed, 0);
            lab.command(0, ours);
            lab.do_jobs(0);
            lab.run(ms(50));
            assert_eq!(lab.gateways[0].jobs(), ["Finish(X25519, Known)"], "{ours:?} {theirs:?}");
            lab.command(1, theirs);
            lab.run(ms(50));
            for _ in 0..4 {
                lab.probe(0, CHILD);
                lab.probe(1, CHILD);
                lab.do_jobs(0);
                lab.run(ms(50));
            }
            lab.gateways[0].pace = Pace::AT_ONCE;
            lab.do_jobs(0);
            lab.run(secs(120));
            lab.assert_settled(1);
            assert_eq!(lab.probes.1, 0, "seed {seed}: {ours:?} {theirs:?}");
        }
    }
}

#[test]
fn a_tunnel_that_is_taken_down_meanwhile_goes() {
    for side in 0..2 {
        for (rekey, steps) in [
            (Command::RekeyChildren(TUNNEL), 1),
            (Command::RekeyIke(TUNNEL), 1),
            (Command::RekeyIke(TUNNEL), 0),
        ] {
            let mut lab = up(9, side);
            lab.command(0, rekey);
            lab.run(ms(50));
            if side == 0 {
                (0..steps).for_each(|_| lab.do_jobs(0));
                lab.run(ms(50));
            }
            assert_eq!(lab.gateways[side].jobs().len(), 1);
            lab.command(side, Command::Down(TUNNEL));
            assert!(lab.gateways[side].plane.sas.is_empty(), "at once");
            lab.run(ms(50));
            lab.do_jobs(side);
            lab.gateways[side].pace = Pace::AT_ONCE;
            lab.run(secs(5));
            lab.do_jobs(side);
            lab.command(1 - side, Command::Down(TUNNEL));
            lab.run(secs(200));
            lab.assert_gone(0);
            lab.assert_gone(1);
            assert_eq!(lab.gateways[side].endpoint.jobs(), 0);
        }
    }
}

#[test]
fn a_process_that_dies_meanwhile_goes_on_as_before_the_message() {
    for rekey in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
        for side in 0..2 {
            for steps in 0..2 {
                let mut lab = up(10, side);
                lab.command(0, rekey);
                (0..steps).for_each(|_| {
                    lab.do_jobs(side);
                    lab.run(ms(50));
                });
                lab.run(ms(50));
                let policies = vec![policy(side, 1)];
                lab.gateways[side].pace = Pace::AT_ONCE;
                lab.kill(side);
                let refused = lab.come_back(side, policies, Back::default());
                assert!(refused.is_empty());
                for _ in 0..3000 {
                    lab.probe(0, CHILD);
                    lab.probe(1, CHILD);
                    lab.run(ms(1));
                }
                lab.run(secs(100));
                lab.assert_settled(1);
                assert_eq!(lab.probes.1, 0, "{rekey:?} at {side} after {steps}");
            }
        }
    }
}

#[test]
fn another_configuration_that_comes_meanwhile_is_the_one_that_counts() {
    let mut lab = up(11, 1);
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(ms(50));
    assert_eq!(lab.gateways[1].jobs(), ["Answer(X25519, Known)"]);
    // R wants P-384 from now on.
    let mut changed = policy(1, 1);
    changed.children.values_mut().for_each(|c| c.proposals = vec!["aes256gcm16-ecp384".parse().unwrap()]);
    lab.configure(1, changed);
    lab.gateways[1].pace = Pace::AT_ONCE;
    lab.do_jobs(1);
    lab.run(secs(60));
    lab.assert_settled(1);
    let suite = lab.view(1).children[0].suite;
    assert_eq!(suite.group, Some(cygnet_model::suite::Group::Ecp384), "{suite}");
}

#[test]
fn a_result_that_never_comes_is_given_up() {
    // Of the first exchange, at either end: it begins anew.
    for side in 0..2 {
        let mut lab = Lab::pair(12, Link::GOOD);
        lab.gateways[side].pace = Pace::HELD;
        lab.command(0, Command::Reset(TUNNEL));
        lab.run(secs(1));
        lab.lose_jobs(side);
        lab.run(secs(31));
        lab.gateways[side].pace = Pace::AT_ONCE;
        lab.do_jobs(side);
        lab.run(secs(120));
        lab.assert_settled(1);
    }
    // Of a rekey: whoever asked tries again later.
    for rekey in [Command::RekeyChildren(TUNNEL), Command::RekeyIke(TUNNEL)] {
        for side in 0..2 {
            for steps in 0..2 {
                let mut lab = up(13, side);
                lab.command(0, rekey);
                (0..steps).for_each(|_| {
                    lab.do_jobs(side);
                    lab.run(ms(50));
                });
                lab.run(ms(50));
                lab.lose_jobs(side);
                lab.gateways[side].pace = Pace::AT_ONCE;
                for _ in 0..2000 {
                    lab.probe(0, CHILD);
                    lab.probe(1, CHILD);
                    lab.run(ms(100));
                }
                assert!(lab.is_up(), "{rekey:?} at {side} after {steps}: {:?}", lab.gateways[0].events);
                assert_eq!(lab.gateways[side].endpoint.jobs(), 0);
                assert_eq!(lab.probes.1, 0, "{rekey:?} at {side} after {steps}");
            }
        }
    }
}

#[test]
fn strangers_have_a_bounded_number_of_key_exchanges_and_known_peers_have_theirs() {
    let mut lab = Lab::pair(14, Link::GOOD);
    let log = record(&mut lab);
    lab.run(secs(1));
    let genuine = said(&log, 0, Exchange::IKE_SA_INIT, false)[0].clone();
    let (header, _) = Header::decode(&genuine).unwrap();
    let mut payloads = Payloads::decode(header.next, &genuine[28..]).unwrap();
    lab.gateways[1].pace = Pace::HELD;
    let mut asked = 0;
    for n in 1..=2000u64 {
        payloads.nonce = Some(n.to_be_bytes().repeat(4));
        payloads.notifies.retain(|p| p.kind != NotifyType::COOKIE);
        let bytes = |payloads: &Payloads| {
            let mut w = cygnet_ike::wire::Writer::message(&Header { spi_i: n, ..header });
            payloads.encode(&mut w);
            w.finish()
        };
        // ? -> R  IKE_SA_INIT, from as many ports as there are
        let mut flow = lab.flow(1);
        flow.remote.set_port(1024 + n as u16);
        let before = log.borrow().len();
        lab.inject(1, flow, &bytes(&payloads));
        // The cookie that it is asked for comes back.
        let answer = log.borrow().get(before).map(|(_, b)| b.clone());
        if let Some(answer) = answer {
            let (header, _) = Header::decode(&answer).unwrap();
            let cookie = Payloads::decode(header.next, &answer[28..]).unwrap().notifies.remove(0);
            assert_eq!(cookie.kind, NotifyType::COOKIE);
            asked += 1;
            payloads.notifies.insert(0, cookie);
            lab.inject(1, flow, &bytes(&payloads));
        }
    }
    assert_eq!(asked, 2000 - 32, "the cookie comes first");
    assert_eq!(lab.gateways[1].jobs().len(), 512);
    assert_eq!(dropped(&lab, 1, "busy"), 2000 - 512);
    assert_eq!(lab.gateways[1].endpoint.half_open(), 512, "what is not computed has no place");
    // I -> R  CREATE_CHILD_SA is not held up by that
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(ms(50));
    assert_eq!(lab.gateways[1].jobs().last().unwrap(), "Answer(X25519, Known)");
    lab.gateways[1].pace = Pace::AT_ONCE;
    lab.do_jobs(1);
    lab.run(secs(200));
    lab.assert_settled(1);
}

#[test]
fn values_of_no_use_are_refused_as_ever() {
    // Zeros are what the toy takes for a degenerate value.
    for ike in [false, true] {
        let mut lab = up(15, 1);
        let mut request = if ike { ike_request(3) } else { child_request(0, 0xc000_0001) };
        request.ke = Some(KeyExchange { group: 31, data: vec![0; 32] });
        lab.forge(0, Exchange::CREATE_CHILD_SA, false, &request);
        assert_eq!(lab.gateways[1].jobs(), ["Answer(X25519, Known)"]);
        lab.do_jobs(1);
        assert_eq!(lab.failures(1), ["invalid_syntax"]);
    }
}

#[test]
fn slow_jobs_of_many_tunnels_lose_no_request() {
    let tunnel = |side: usize, n: u32| {
        let id = |of: usize| cygnet_ike::wire::Identity::fqdn(&format!("{}-{n}.example", ["a", "b"][of]));
        let nets = |of: usize| vec![net(&format!("10.{}.{n}.0/24", 100 + of))];
        let mut p = policy(side, 1);
        p.children.values_mut().for_each(|c| (c.local, c.remote) = (nets(side), nets(1 - side)));
        TunnelPolicy {
            id: TunnelId(n),
            local_id: id(side),
            remote_id: id(1 - side).into(),
            psk: SecretBytes::copy_of(b"another key of 32 octets length!"),
            ..p
        }
    };
    let mut lab = Lab::new(16, Link::GOOD, [tunnel(0, 0), tunnel(1, 0)]);
    lab.set_pace(Pace { delay: (ms(1), ms(60)), ..Pace::AT_ONCE });
    for side in [1, 0] {
        lab.configure_all(side, (0..200).map(|n| tunnel(side, n)).collect());
    }
    lab.run(secs(20));
    for n in 0..200 {
        let view = lab.gateways[0].endpoint.view(TunnelId(n)).unwrap();
        assert_eq!(view.state, cygnet_ike::view::TunnelState::Up, "tunnel {n}");
    }
    assert!(lab.gateways.iter().all(|g| g.drops.is_empty()), "{:?}", lab.gateways[1].drops);
}
