//! New keys for children and for the IKE SA, by one end or by both at once.

use std::time::Duration;

use cygnet_ike::io::Ending;
use cygnet_ike::wire::{Exchange, Notify, NotifyType};
use cygnet_ike::{Command, Event, Input};
use cygnet_model::tunnel::Direction;
use cygnet_sim::{Lab, Link, TUNNEL, policy};

use crate::{CHILD, child_request, ike_request, notify, secs};

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
        // The old IKE SA was replaced; nobody took the tunnel down.
        let endings = lab.gateways.iter().flat_map(|g| &g.events).filter_map(|(_, e)| match e {
            Event::IkeDown { ending, .. } => Some(*ending),
            _ => None,
        });
        assert_eq!(endings.collect::<Vec<_>>(), [Ending::Replaced, Ending::Replaced]);
    }
}

/// The two ends prefer different PRFs, and whoever answers chooses. A PRF that changed with each rekey would be one that some
/// peers cannot follow.
#[test]
fn the_successor_of_an_ike_sa_has_its_prf() {
    let mut both = [policy(0, 1), policy(1, 1)];
    let read = |text: &str| text.split(',').map(|p| p.parse().unwrap()).collect();
    both[0].proposals = read("aes256gcm16-prfsha256-x25519,aes256gcm16-prfsha384-ecp384");
    both[1].proposals = read("aes256gcm16-prfsha384-ecp384,aes256gcm16-prfsha256-x25519");
    let mut lab = Lab::new(4, Link::GOOD, both);
    lab.run(secs(1));
    let before = lab.view(0).ike.unwrap();
    for side in [1, 0, 1] {
        lab.command(side, Command::RekeyIke(TUNNEL));
        lab.run(secs(8));
        lab.assert_settled(1);
        let after = lab.view(0).ike.unwrap();
        assert_ne!(after.spi_i, before.spi_i);
        assert_eq!(after.suite, before.suite, "side {side}");
    }
    assert!(lab.failures(0).is_empty() && lab.failures(1).is_empty());
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
fn lifetimes_are_kept_by_rekeying() {
    let mut policies = [policy(0, 2), policy(1, 2)];
    for p in &mut policies {
        p.lifetime = secs(600);
        p.children.values_mut().for_each(|c| c.lifetime = secs(180));
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
fn volume_is_left_for_a_rekey_that_meets_loss() {
    let mut both = [policy(0, 1), policy(1, 1)];
    both.iter_mut().for_each(|p| p.children[0].bytes = 1_843_200_000);
    let mut lab = Lab::new(44, Link::GOOD, both);
    lab.run(secs(1));
    for g in &lab.gateways {
        for (_, spec) in g.plane.sas.values() {
            let left = spec.limits.hard_bytes - spec.limits.soft_bytes;
            // Two repetitions come within 1.5 s; 2.9 Gbit/s is what a gateway carries.
            assert!(left > 362_500_000 * 2, "{left} octets are left");
        }
    }
}

/// A daemon that takes up SAs of an earlier life reads their counters for the first time.
#[test]
fn what_is_read_for_the_first_time_was_carried_since_there_is_the_pair() {
    let mut both = [policy(0, 1), policy(1, 1)];
    both.iter_mut().for_each(|p| p.children[0].bytes = 100_000_000_000);
    let mut lab = Lab::new(46, Link::GOOD, both);
    lab.run(secs(100));
    let sa = *lab.gateways[0].plane.sas.keys().next().unwrap();
    let old = lab.view(0).children[0].inbound;
    let told = |span| Input::Carried { sa, bytes: 40_000_000_000, grown: 40_000_000_000, span };
    lab.input(0, told(Duration::MAX));
    lab.run(secs(5));
    assert_eq!(lab.view(0).children[0].inbound, old, "0.4 GB a second leave time");
    lab.input(0, told(secs(5)));
    lab.run(secs(5));
    assert_ne!(lab.view(0).children[0].inbound, old, "8 GB a second do not");
}

#[test]
fn new_keys_are_asked_for_when_what_is_left_lasts_less_than_half_a_minute() {
    // Octets in each 5 s, and when the first rekey is due: with 30 s left at that rate, never before a quarter.
    for (grown, due) in [(2_000_000_000u64, 88_000_000_000u64), (10_000_000_000, 40_000_000_000)] {
        for direction in [Direction::In, Direction::Out] {
            let mut both = [policy(0, 1), policy(1, 1)];
            both.iter_mut().for_each(|p| p.children[0].bytes = 100_000_000_000);
            let mut lab = Lab::new(45, Link::GOOD, both);
            lab.run(secs(1));
            let sa = *lab.gateways[0].plane.sas.keys().find(|id| id.direction == direction).unwrap();
            let old = lab.view(0).children[0].inbound;
            for n in 1.. {
                lab.input(0, Input::Carried { sa, bytes: n * grown, grown, span: secs(5) });
                lab.run(secs(5));
                let rekeyed = lab.view(0).children.iter().all(|c| c.inbound != old);
                assert_eq!(rekeyed, n * grown > due, "{n} times {grown} octets of {direction:?}");
                if rekeyed {
                    break;
                }
            }
            lab.run(secs(10));
            lab.assert_settled(1);
        }
    }
}
