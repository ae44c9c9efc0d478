//! Both ends begin the same thing at the same moment, and one message of it is lost, late or repeated.
//!
//! Each property runs over seeds, so that each of the four nonces is the lowest in some of them, and over every message of
//! both exchanges and of the deletions that follow. The run that fails is named by seed and fault.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use cygnet_ike::policy::Start;
use cygnet_ike::wire::Header;
use cygnet_ike::{Command, Input, TunnelPolicy};
use cygnet_sim::{Lab, Link, TUNNEL, net, policy, single_pairs};

use crate::{CHILD, Log, secs};

/// What happens to one datagram.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Lost,
    /// So many milliseconds late: behind the next message, or behind a repetition of itself.
    Late(u64),
    Twice,
}

/// The `number`th datagram of `sender`, counted from the collision on, meets a fault.
#[derive(Clone, Copy, Debug)]
struct Weather {
    sender: usize,
    number: usize,
    fault: Fault,
}

fn weathers(messages: usize) -> impl Iterator<Item = Weather> {
    let faults = [Fault::Lost, Fault::Late(12), Fault::Late(700), Fault::Twice];
    (0..2).flat_map(move |sender| {
        (0..messages).flat_map(move |number| faults.map(move |fault| Weather { sender, number, fault }))
    })
}

/// Which of the four nonces of two crossing exchanges is the lowest: (sender, in a response).
type Lowest = (usize, bool);

/// A datagram on its way: milliseconds left, to whom, octets.
type Held = (u64, usize, Vec<u8>);

/// Lets `begin` happen under the weather, with probes each way in every millisecond from when `ready` says so. Returns
/// the lowest of the nonces if there were four.
fn collide(
    lab: &mut Lab,
    weather: Weather,
    begin: impl FnOnce(&mut Lab),
    ready: impl Fn(&Lab) -> bool,
) -> Option<Lowest> {
    let said = Log::default();
    let again: Rc<RefCell<Vec<Held>>> = Rc::default();
    let (tapped, held) = (Rc::clone(&said), Rc::clone(&again));
    let mut count = 0;
    lab.tap = Some(Box::new(move |side, bytes| {
        tapped.borrow_mut().push((side, bytes.clone()));
        let number = count;
        count += usize::from(side == weather.sender);
        if (side, number) != (weather.sender, weather.number) {
            return Some(bytes);
        }
        match weather.fault {
            Fault::Lost => None,
            Fault::Late(ms) => {
                held.borrow_mut().push((ms, 1 - side, bytes));
                None
            }
            Fault::Twice => {
                held.borrow_mut().push((7, 1 - side, bytes.clone()));
                Some(bytes)
            }
        }
    }));
    begin(lab);
    let (mut read, mut probing) = (0, false);
    let mut nonces = BTreeSet::new();
    for _ in 0..1500 {
        lab.run(Duration::from_millis(1));
        let due: Vec<_> = {
            let mut again = again.borrow_mut();
            again.iter_mut().for_each(|(left, ..)| *left = left.saturating_sub(1));
            again.extract_if(.., |(left, ..)| *left == 0).collect()
        };
        for (_, to, bytes) in due {
            lab.inject(to, lab.flow(to), &bytes);
        }
        for (sender, bytes) in said.borrow_mut().drain(..) {
            let payloads = lab.gateways.iter().find_map(|g| g.endpoint.read(&bytes));
            let (header, _) = Header::decode(&bytes).unwrap();
            if let Some(nonce) = payloads.and_then(|p| p.nonce) {
                nonces.insert((nonce, sender, header.response));
            }
            read += 1;
        }
        probing |= ready(lab);
        if probing {
            lab.probe(0, CHILD);
            lab.probe(1, CHILD);
        }
    }
    assert!(read > 0);
    lab.run(secs(120));
    lab.tap = None;
    (nonces.len() == 4).then(|| nonces.first().map(|(_, sender, response)| (*sender, *response)).unwrap())
}

/// The four nonces, each of which must have been the lowest in some run.
fn all_four() -> BTreeSet<Lowest> {
    [(0, false), (0, true), (1, false), (1, true)].into()
}

/// The usual policies; one end takes only the second group that the other offers, so that the other's first request
/// meets INVALID_KE_PAYLOAD.
fn policies(picky: Option<usize>) -> [TunnelPolicy; 2] {
    let mut both = [policy(0, 1), policy(1, 1)];
    if let Some(side) = picky {
        both[side].children[0].proposals = vec!["aes256gcm16-ecp384".parse().unwrap()];
    }
    both
}

#[test]
fn t61_of_two_new_pairs_exactly_one_stays_whatever_happens_on_the_way() {
    for picky in [None, Some(0), Some(1)] {
        let mut lowest = BTreeSet::new();
        for (seed, weather) in (0..8).flat_map(|seed| weathers(6).map(move |w| (seed, w))) {
            let run = format!("seed {seed}, {weather:?}, INVALID_KE_PAYLOAD by {picky:?}");
            let mut lab = Lab::new(seed, Link::GOOD, policies(picky));
            lab.run(secs(1));
            let old = lab.view(0).children[0].inbound;
            let apart = lab.below(5);
            // Both: CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }
            let begin = |lab: &mut Lab| {
                lab.command(0, Command::RekeyChildren(TUNNEL));
                lab.run(Duration::from_millis(apart));
                lab.command(1, Command::RekeyChildren(TUNNEL));
            };
            lowest.extend(collide(&mut lab, weather, begin, |_| true));
            agree(&lab, 1, &run);
            assert_ne!(lab.view(0).children[0].inbound, old, "{run}");
            assert_eq!(lab.probes, (3000, 0), "{run}");
        }
        if picky.is_none() {
            assert_eq!(lowest, all_four());
        }
    }
}

#[test]
fn t61_of_two_pairs_for_a_child_that_both_ends_miss_exactly_one_stays() {
    let mut lowest = BTreeSet::new();
    for (seed, weather) in (0..16).flat_map(|seed| weathers(8).map(move |w| (seed, w))) {
        let run = format!("seed {seed}, {weather:?}");
        let mut lab = Lab::new(seed, Link::GOOD, policies(None));
        lab.run(secs(1));
        let apart = lab.below(5);
        // Both: INFORMATIONAL { D }, then CREATE_CHILD_SA { SA, Ni, KEi, TSi, TSr }
        let begin = |lab: &mut Lab| {
            for side in 0..2 {
                let sa = lab.gateways[side].plane.outbound(CHILD).map(|sa| sa.id);
                if let Some(sa) = sa {
                    lab.input(side, Input::Expired { sa, hard: true });
                }
                lab.run(Duration::from_millis(apart));
            }
        };
        // From when the child carries traffic both ways it goes on doing so.
        lowest.extend(collide(&mut lab, weather, begin, |lab| carries(lab, 0) && carries(lab, 1)));
        agree(&lab, 1, &run);
        assert!(lab.probes.0 > 0, "{run}");
        assert_eq!(lab.probes.1, 0, "{run}");
    }
    assert_eq!(lowest, all_four());
}

/// Pairs end by their hard limit at either end, while others are being made for the same child at both.
#[test]
fn a_tunnel_whose_crossing_pairs_all_end_is_up_again_by_itself() {
    for seed in 0..4000 {
        let mut lab = Lab::new(seed, Link::GOOD, policies(None));
        lab.run(secs(1));
        for _ in 0..6 {
            let side = lab.below(2) as usize;
            let sas: Vec<_> = lab.gateways[side].plane.sas.keys().copied().collect();
            let pick = lab.below(sas.len().max(1) as u64) as usize;
            if let Some(sa) = sas.get(pick).copied() {
                lab.input(side, Input::Expired { sa, hard: true });
            }
            let pause = lab.below(13);
            lab.run(Duration::from_millis(pause));
        }
        lab.run(secs(30));
        assert!(carries(&lab, 0) && carries(&lab, 1), "seed {seed}");
        // One that is redundant goes with the next sign of life.
        lab.run(secs(60));
        agree(&lab, 1, &format!("seed {seed}"));
    }
}

/// One end asks for its child as a whole and gets a pair of networks at a time, the other asks for each pair by itself.
#[test]
fn of_two_pairs_for_one_part_exactly_one_stays_while_other_parts_are_asked_for() {
    for seed in 0..60 {
        let [mut first, mut second] = policies(None);
        first.children[0].remote = (0..12).map(|n| net(&format!("10.2.{n}.0/24"))).collect();
        second.children[0].local = first.children[0].remote.clone();
        second.start = Start::Active;
        let mut lab = Lab::new(seed, Link::GOOD, [first, single_pairs(second)]);
        lab.run(secs(60));
        agree(&lab, 12, &format!("seed {seed}, before"));
        // What both ends lose both ask for, in an order of their own.
        for side in 0..2 {
            for sa in lab.gateways[side].plane.sas.keys().copied().collect::<Vec<_>>() {
                lab.input(side, Input::Expired { sa, hard: true });
            }
        }
        lab.link = Link { loss: 0, ..Link::BAD };
        lab.run(secs(60));
        lab.link = Link::GOOD;
        lab.run(secs(60));
        agree(&lab, 12, &format!("seed {seed}"));
    }
}

/// Whether what one end sends at this moment could be opened by the other.
fn carries(lab: &Lab, from: usize) -> bool {
    let outbound = lab.gateways[from].plane.outbound(CHILD).map(|sa| sa.id.spi);
    outbound.is_some_and(|spi| lab.gateways[1 - from].plane.inbound(spi).is_some())
}

#[test]
fn t62_of_two_new_ike_sas_exactly_one_stays_whatever_happens_on_the_way() {
    for refused in [None, Some(0), Some(1)] {
        let mut lowest = BTreeSet::new();
        for (seed, weather) in (0..8).flat_map(|seed| weathers(5).map(move |w| (seed, w))) {
            let run = format!("seed {seed}, {weather:?}, INVALID_KE_PAYLOAD to {refused:?}");
            let mut both = [policy(0, 2), policy(1, 2)];
            // The other end takes the second group alone.
            if let Some(side) = refused {
                both[1 - side].proposals = vec!["aes256gcm16-prfsha384-ecp384".parse().unwrap()];
            }
            let mut lab = Lab::new(seed, Link::GOOD, both);
            lab.run(secs(1));
            let before: Vec<_> = lab.view(0).children.iter().map(|c| c.inbound).collect();
            let old = lab.gateways[0].endpoint.spis()[0];
            let apart = lab.below(5);
            // Both: CREATE_CHILD_SA { SA, Ni, KEi }
            let begin = |lab: &mut Lab| {
                for side in 0..2 {
                    lab.command(side, Command::RekeyIke(TUNNEL));
                    lab.run(Duration::from_millis(apart));
                }
            };
            lowest.extend(collide(&mut lab, weather, begin, |_| true));
            agree(&lab, 2, &run);
            assert_ne!(lab.gateways[0].endpoint.spis()[0], old, "{run}");
            let after: Vec<_> = lab.view(0).children.iter().map(|c| c.inbound).collect();
            assert_eq!(after, before, "children are inherited once: {run}");
            assert_eq!(lab.probes, (3000, 0), "{run}");
        }
        if refused.is_none() {
            assert_eq!(lowest, all_four());
        }
    }
}

/// [`Lab::assert_settled`] under the name of a run.
fn agree(lab: &Lab, children: usize, run: &str) {
    let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lab.assert_settled(children)));
    assert!(settled.is_ok(), "{run}");
}

#[test]
fn a_deletion_that_overtakes_the_response_it_is_about_leaves_no_half_pair() {
    for ms in [12, 700] {
        let mut lab = Lab::pair(40, Link::GOOD);
        lab.run(secs(1));
        let sa = lab.gateways[0].plane.outbound(CHILD).unwrap().id;
        // I -> R  INFORMATIONAL { D }, I <- R
        lab.input(0, Input::Expired { sa, hard: true });
        lab.run(Duration::from_millis(8));
        // I -> R  CREATE_CHILD_SA { SA, Ni, KEi, TSi, TSr }; R cannot install what it answers, and deletes it at once:
        // I <- R  INFORMATIONAL { D }, and only then  I <- R  CREATE_CHILD_SA { SA, Nr, KEr, TSi, TSr }
        lab.gateways[1].plane.fail_next = 1;
        let late = Weather { sender: 1, number: 0, fault: Fault::Late(ms) };
        collide(&mut lab, late, |_| {}, |_| false);
        assert_eq!(lab.failures(1), ["data_plane"]);
        lab.assert_settled(1);
    }
}

/// Something that one end begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    RekeyIke,
    RekeyChild,
    /// The pair is deleted and another one made.
    ReplaceChild,
    Down,
}

fn act(lab: &mut Lab, side: usize, what: Act) {
    match what {
        Act::RekeyIke => lab.command(side, Command::RekeyIke(TUNNEL)),
        Act::RekeyChild => lab.command(side, Command::RekeyChildren(TUNNEL)),
        Act::Down => lab.command(side, Command::Down(TUNNEL)),
        Act::ReplaceChild => {
            if let Some(sa) = lab.gateways[side].plane.outbound(CHILD).map(|sa| sa.id) {
                lab.input(side, Input::Expired { sa, hard: true });
            }
        }
    }
}

/// Every pair of acts by every pair of sides, the second one so many milliseconds after the first.
fn crossings(first: &[Act], second: &[Act]) -> Vec<(usize, Act, usize, Act, u64)> {
    let mut all = Vec::new();
    for a in first {
        for b in second {
            for (x, y) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                all.extend([0, 4, 8, 13].map(|ms| (x, *a, y, *b, ms)));
            }
        }
    }
    all
}

#[test]
fn t64_a_new_ike_sa_and_whatever_a_child_is_about_end_in_agreement() {
    let crossings = crossings(&[Act::RekeyIke], &[Act::RekeyChild, Act::ReplaceChild]);
    for (n, (x, a, y, b, ms)) in crossings.into_iter().enumerate() {
        for weather in weathers(6) {
            let seed = n as u64;
            let run = format!("seed {seed}, {a:?} by {x}, {b:?} by {y} after {ms} ms, {weather:?}");
            let mut lab = Lab::new(seed, Link::GOOD, policies(None));
            lab.run(secs(1));
            let old = lab.gateways[0].endpoint.spis()[0];
            let begin = |lab: &mut Lab| {
                act(lab, x, a);
                lab.run(Duration::from_millis(ms));
                act(lab, y, b);
            };
            collide(&mut lab, weather, begin, |_| b == Act::RekeyChild);
            agree(&lab, 1, &run);
            assert_ne!(lab.gateways[0].endpoint.spis()[0], old, "{run}");
            assert_eq!(lab.probes.1, 0, "{run}");
        }
    }
}

#[test]
fn t64_a_deleted_ike_sa_takes_everything_on_its_way_with_it() {
    let all = [Act::RekeyIke, Act::RekeyChild, Act::ReplaceChild, Act::Down];
    let orders = [crossings(&[Act::Down], &all), crossings(&all, &[Act::Down])].concat();
    for (n, (x, a, y, b, ms)) in orders.into_iter().enumerate() {
        for weather in weathers(4) {
            let seed = n as u64;
            let run = format!("seed {seed}, {a:?} by {x}, {b:?} by {y} after {ms} ms, {weather:?}");
            // Nobody begins again by itself.
            let mut both = policies(None);
            both[0].start = Start::OnDemand;
            let mut lab = Lab::new(seed, Link::GOOD, both);
            lab.input(0, Input::Acquire(CHILD.into()));
            lab.run(secs(1));
            assert!(lab.is_up());
            let begin = |lab: &mut Lab| {
                act(lab, x, a);
                lab.run(Duration::from_millis(ms));
                act(lab, y, b);
            };
            collide(&mut lab, weather, begin, |_| false);
            for side in 0..2 {
                let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lab.assert_gone(side)));
                assert!(gone.is_ok(), "{run}");
                assert_eq!(lab.gateways[side].endpoint.next_wakeup(), None, "{run}");
            }
        }
    }
}
