//! A process dies, at any point, and another one goes on with its SAs: the peer cannot tell.

use std::collections::BTreeSet;
use std::time::Duration;

use cygnet_ike::policy::{RemoteId, Start};
use cygnet_ike::saved::Reason;
use cygnet_ike::wire::Identity;
use cygnet_ike::{Command, Event, TunnelPolicy as Policy};
use cygnet_model::ChildId;
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_sim::{Back, Lab, Link, TUNNEL, copies, copy, net, policy};

use crate::{CHILD, record, secs};

/// All SPIs that gateway `side` uses: of its IKE SA, and of its pairs.
fn spis(lab: &Lab, side: usize) -> ((u64, u64), BTreeSet<(u32, u32)>) {
    let view = lab.view(side);
    let ike = view.ike.unwrap();
    let pairs = view.children.iter().map(|c| (c.inbound.value(), c.outbound.value())).collect();
    ((ike.spi_i, ike.spi_r), pairs)
}

fn up(children: u8) -> (Lab, [Policy; 2]) {
    let both = [policy(0, children), policy(1, children)];
    let mut lab = Lab::new(47, Link::GOOD, copies(&both));
    lab.run(secs(2));
    lab.assert_settled(usize::from(children));
    (lab, both)
}

/// Lets time pass with a probe of the first child each way in every millisecond.
fn run_with_probes(lab: &mut Lab, span: Duration) {
    for _ in 0..span.as_millis() {
        lab.probe(0, CHILD);
        lab.probe(1, CHILD);
        lab.run(Duration::from_millis(1));
    }
}

/// How often an event was told.
fn told(lab: &Lab, side: usize, is: impl Fn(&Event) -> bool) -> usize {
    lab.gateways[side].events.iter().filter(|(_, e)| is(e)).count()
}

#[test]
fn a_quiet_restart_changes_no_key_and_loses_no_packet() {
    for side in [0, 1] {
        for renew in [false, true] {
            let (mut lab, both) = up(3);
            let before = [spis(&lab, 0), spis(&lab, 1)];
            lab.gateways[side].events.clear();
            lab.kill(side);
            run_with_probes(&mut lab, secs(1));
            let refused = lab.come_back(side, vec![copy(&both[side])], Back { renew, ..Back::default() });
            assert_eq!(refused, []);
            let log = record(&mut lab);
            run_with_probes(&mut lab, secs(5));
            assert_eq!(lab.probes.1, 0, "gateway {side}, renew {renew}");
            lab.run(secs(10));
            lab.assert_settled(3);
            lab.assert_coverage(&both);
            let after = [spis(&lab, 0), spis(&lab, 1)];
            // The first that is asked is whether the peer lives; with new keys for all, one exchange for each follows.
            if renew {
                assert!(after[side].1.is_disjoint(&before[side].1));
                assert_eq!(after[side].0, before[side].0);
            } else {
                assert_eq!(after, before);
                assert_eq!(log.borrow().len(), 2, "a question and its answer");
            }
            assert_eq!(told(&lab, side, |e| matches!(e, Event::Restored { children: 3, .. })), 1);
            assert_eq!(told(&lab, side, |e| matches!(e, Event::IkeUp { .. } | Event::ChildUp { .. })), 0);

            // And everything goes on as ever.
            lab.command(side, Command::RekeyChildren(TUNNEL));
            run_with_probes(&mut lab, secs(2));
            lab.command(1 - side, Command::RekeyIke(TUNNEL));
            run_with_probes(&mut lab, secs(2));
            assert_eq!(lab.probes.1, 0, "gateway {side}, renew {renew}");
            lab.run(secs(20));
            lab.assert_settled(3);
            (0..2).for_each(|s| lab.command(s, Command::Shutdown));
            lab.run(secs(5));
            (0..2).for_each(|s| lab.assert_gone(s));
        }
    }
}

#[test]
fn both_ends_may_restart_at_the_same_time() {
    let (mut lab, both) = up(2);
    let before = [spis(&lab, 0), spis(&lab, 1)];
    lab.kill(0);
    lab.kill(1);
    run_with_probes(&mut lab, secs(100));
    for side in [0, 1] {
        assert_eq!(lab.come_back(side, vec![copy(&both[side])], Back::default()), []);
    }
    run_with_probes(&mut lab, secs(5));
    assert_eq!(([spis(&lab, 0), spis(&lab, 1)], lab.probes.1), (before, 0));
    lab.assert_settled(2);
}

/// What is said in the exchanges of which one end dies in the middle.
#[derive(Clone, Copy, Debug)]
enum Talk {
    Liveness,
    RekeyChild,
    RekeyIke,
    /// Both ends at once.
    RekeyChildTwice,
    RekeyIkeTwice,
    CreateChild,
    DeleteChild,
    DeleteIke,
}

/// Children that there are in the end, by this gateway's doing.
fn begin(lab: &mut Lab, both: &mut [Policy; 2], talk: Talk, side: usize) -> usize {
    let children = both[0].children.len();
    match talk {
        Talk::Liveness => {
            // Silence makes both ask.
            lab.run(Duration::from_millis(27_900));
            return children;
        }
        Talk::RekeyChild => lab.command(side, Command::RekeyChildren(TUNNEL)),
        Talk::RekeyChildTwice => (0..2).for_each(|s| lab.command(s, Command::RekeyChildren(TUNNEL))),
        Talk::RekeyIke => lab.command(side, Command::RekeyIke(TUNNEL)),
        Talk::RekeyIkeTwice => (0..2).for_each(|s| lab.command(s, Command::RekeyIke(TUNNEL))),
        Talk::DeleteIke => {
            both[side].start = Start::Passive;
            both[1 - side].start = Start::Passive;
            lab.configure(1 - side, copy(&both[1 - side]));
            lab.command(side, Command::Down(TUNNEL));
            return 0;
        }
        Talk::CreateChild => {
            let index = u16::try_from(children).unwrap();
            for s in [1 - side, side] {
                let more = policy(s, u8::try_from(children + 1).unwrap()).children[index].clone();
                both[s].children.insert(index, more);
                lab.configure(s, copy(&both[s]));
            }
            return children + 1;
        }
        Talk::DeleteChild => {
            for s in [side, 1 - side] {
                both[s].children.remove(1);
            }
            lab.configure(side, copy(&both[side]));
            return children - 1;
        }
    }
    children
}

/// One end dies while the two talk, `after` milliseconds into it, having performed `actions` of what it was about to do.
/// Whoever comes back goes on, and in the end both agree. Nothing is lost of what was carried, as long as what was kept had
/// also been done.
fn dies_in(talk: Talk, speaker: usize, dies: usize, after: u64, actions: usize) {
    let case = format!("{talk:?} of {speaker}, {dies} dies after {after} ms and {actions} actions");
    let (mut lab, mut both) = up(2);
    if after == 0 {
        lab.gateways[dies].dies_after = Some(actions);
    }
    let children = begin(&mut lab, &mut both, talk, speaker);
    let carried = !matches!(talk, Talk::DeleteIke) && actions == usize::MAX;
    let pass = |lab: &mut Lab, span| if carried { run_with_probes(lab, span) } else { lab.run(span) };
    pass(&mut lab, Duration::from_millis(after));
    if after > 0 {
        lab.gateways[dies].dies_after = Some(actions);
    }
    pass(&mut lab, Duration::from_millis(300));
    lab.kill(dies);
    pass(&mut lab, Duration::from_millis(700));
    lab.configure_dead(1 - dies, copy(&both[1 - dies]));
    let refused = lab.come_back(dies, vec![copy(&both[dies])], Back::default());
    assert_eq!(refused, [], "{case}");
    pass(&mut lab, secs(4));
    assert_eq!(lab.probes.1, 0, "{case}: packets lost");
    lab.run(secs(300));
    if children == 0 {
        lab.assert_gone(dies);
        return lab.assert_gone(1 - dies);
    }
    let held = |lab: &Lab| (0..2).any(|s| lab.gateways[s].endpoint.sa_count() != 1);
    assert!(!held(&lab), "{case}: {:?}", [0, 1].map(|s| lab.gateways[s].endpoint.sa_count()));
    lab.assert_settled(children);
    lab.assert_coverage(&both);
}

fn at_every_moment(talk: Talk) {
    for speaker in [0, 1] {
        for dies in [0, 1] {
            for after in [0, 1, 6, 11, 16, 21, 26, 31] {
                for actions in [usize::MAX, 0, 1, 2, 3] {
                    dies_in(talk, speaker, dies, after, actions);
                }
            }
        }
    }
}

#[test]
fn an_end_may_die_in_any_liveness_check() {
    at_every_moment(Talk::Liveness);
}

#[test]
fn an_end_may_die_in_any_rekey_of_children() {
    at_every_moment(Talk::RekeyChild);
}

#[test]
fn an_end_may_die_in_any_rekey_of_the_ike_sa() {
    at_every_moment(Talk::RekeyIke);
}

#[test]
fn an_end_may_die_while_rekeys_of_children_cross() {
    at_every_moment(Talk::RekeyChildTwice);
}

#[test]
fn an_end_may_die_while_rekeys_of_the_ike_sa_cross() {
    at_every_moment(Talk::RekeyIkeTwice);
}

#[test]
fn an_end_may_die_while_a_child_is_made() {
    at_every_moment(Talk::CreateChild);
}

#[test]
fn an_end_may_die_while_a_child_is_deleted() {
    at_every_moment(Talk::DeleteChild);
}

#[test]
fn an_end_may_die_while_the_ike_sa_is_deleted() {
    at_every_moment(Talk::DeleteIke);
}

/// A tunnel that is gone is ended at the peer; one with another identity as well, and begun anew.
#[test]
fn what_fits_the_configuration_no_more_is_refused_and_the_peer_is_told() {
    let (mut lab, mut both) = up(2);
    lab.kill(0);
    lab.gateways[1].events.clear();
    let spi = lab.gateways[0].endpoint.spis()[0];
    both[1].start = Start::Passive;
    lab.configure(1, copy(&both[1]));
    let refused = lab.come_back(0, vec![], Back::default());
    assert_eq!(
        refused.iter().map(|r| (r.tunnel, r.spi, r.reason)).collect::<Vec<_>>(),
        [(TUNNEL, spi, Reason::NoTunnel)]
    );
    lab.run(secs(2));
    lab.assert_gone(0);
    lab.assert_gone(1);

    let (mut lab, mut both) = up(2);
    lab.kill(0);
    let name = Identity::fqdn("elsewhere.example");
    both[0].local_id = name.clone();
    both[1].remote_id = RemoteId::Is(name);
    let refused = lab.come_back(0, vec![copy(&both[0])], Back::default());
    assert_eq!(refused.iter().map(|r| r.reason).collect::<Vec<_>>(), [Reason::OtherPeer]);
    lab.configure(1, copy(&both[1]));
    lab.run(secs(10));
    lab.assert_settled(2);
    lab.assert_coverage(&both);
}

#[test]
fn what_expired_in_the_meantime_is_refused() {
    let (mut lab, both) = up(1);
    lab.kill(0);
    lab.kill(1);
    lab.run(secs(90_000));
    let refused = lab.come_back(0, vec![copy(&both[0])], Back::default());
    assert_eq!(refused.iter().map(|r| r.reason).collect::<Vec<_>>(), [Reason::Expired]);
    lab.come_back(1, vec![copy(&both[1])], Back::default());
    lab.run(secs(10));
    lab.assert_settled(1);
}

/// Each kind of change while the process was away, as a running one would follow it.
#[test]
fn a_policy_that_changed_meanwhile_is_followed() {
    type Change = fn(&mut Policy, usize);
    let changes: [(&str, Change, usize); 6] = [
        ("nothing that SAs have", |p, _| p.dpd = Some(secs(9)), 3),
        (
            "algorithms of a child",
            |p, _| p.children[1].proposals.insert(0, "aes128gcm16-ecp384".parse().unwrap()),
            3,
        ),
        (
            "algorithms of the IKE SA",
            |p, _| p.proposals.insert(0, "aes128gcm16-prfsha256-ecp384".parse().unwrap()),
            3,
        ),
        ("one child less", |p, _| drop(p.children.remove(2)), 2),
        ("one child more", |p, s| p.children.insert(3, policy(s, 4).children[3].clone()), 4),
        (
            "other networks under the same number",
            |p, s| {
                let mut c = policy(s, 9).children[8].clone();
                c.weight = 3;
                p.children.insert(2, c);
            },
            3,
        ),
    ];
    for (what, change, children) in changes {
        for side in [0, 1] {
            let (mut lab, mut both) = up(3);
            lab.kill(side);
            (0..2).for_each(|s| change(&mut both[s], s));
            assert_eq!(lab.come_back(side, vec![copy(&both[side])], Back::default()), [], "{what}");
            lab.configure(1 - side, copy(&both[1 - side]));
            lab.run(secs(30));
            assert_eq!(lab.view(side).children.len(), children, "{what}");
            lab.assert_settled(children);
            lab.assert_coverage(&both);
        }
    }
}

#[test]
fn a_pair_that_the_data_plane_has_lost_a_half_of_is_made_anew() {
    for side in [0, 1] {
        for directions in [vec![Direction::In], vec![Direction::Out], vec![Direction::In, Direction::Out]] {
            let (mut lab, both) = up(2);
            let before = spis(&lab, side).1;
            let second = ChildId { index: 1, ..CHILD };
            let gone = |sa: &SaId| sa.child == second && directions.contains(&sa.direction);
            let lost: BTreeSet<SaId> = lab.gateways[side].plane.sas.keys().copied().filter(gone).collect();
            assert_eq!(lost.len(), directions.len());
            lab.kill(side);
            let refused = lab.come_back(side, vec![copy(&both[side])], Back { lost, ..Back::default() });
            assert_eq!(refused, []);
            // The other child does not notice.
            run_with_probes(&mut lab, secs(2));
            assert_eq!(lab.probes.1, 0);
            lab.run(secs(10));
            lab.assert_settled(2);
            lab.assert_coverage(&both);
            assert_eq!(before.intersection(&spis(&lab, side).1).count(), 1);
        }
    }
}

/// A child that nobody knows any more does not stay in the data plane.
#[test]
fn sas_without_an_owner_are_removed() {
    let (mut lab, both) = up(2);
    lab.kill(0);
    let policies = vec![copy(&both[0])];
    lab.gateways[0].records = Default::default();
    assert_eq!(lab.come_back(0, policies, Back::default()), []);
    assert!(lab.gateways[0].plane.sas.is_empty() && lab.gateways[0].plane.tunnels.is_empty());
    lab.run(secs(5));
    lab.assert_settled(2);
}

/// Records of before an exchange: whatever it was, the two ends agree again soon, under keys that both have.
#[test]
fn records_that_are_too_old_are_found_out() {
    for talk in [Talk::CreateChild, Talk::RekeyChild, Talk::RekeyIke, Talk::DeleteChild] {
        for speaker in [0, 1] {
            for side in [0, 1] {
                for behind in 1..=6 {
                    let (mut lab, mut both) = up(2);
                    let children = begin(&mut lab, &mut both, talk, speaker);
                    lab.run(secs(2));
                    lab.configure(1 - speaker, copy(&both[1 - speaker]));
                    // Both ends have asked for it, and one of two pairs is closed once the peer shows that it has the other.
                    lab.run(secs(if matches!(talk, Talk::CreateChild) { 40 } else { 8 }));
                    lab.assert_settled(children);
                    lab.kill(side);
                    lab.come_back(side, vec![copy(&both[side])], Back { behind, ..Back::default() });
                    lab.run(secs(200));
                    let case = format!("{talk:?} of {speaker}, {side} is {behind} behind");
                    assert_eq!(lab.view(side).children.len(), children, "{case}");
                    lab.assert_settled(children);
                    let (here, there) = (net("10.1.0.0/24"), net("10.2.0.0/24"));
                    assert!(lab.passes(0, &here, &there) && lab.passes(1, &there, &here), "{case}");
                }
            }
        }
    }
}

/// Two ways to see that a record is too old, each at once: the peer answers our first question with what it had answered to
/// something else, and it asks for something that comes after what we know.
#[test]
fn a_message_id_that_was_used_gives_old_records_away() {
    // What the peer sees after the record was written, for how many milliseconds, and what shows it.
    let cases = [
        // -> CREATE_CHILD_SA, whose answer comes again to an INFORMATIONAL with its message ID
        ("an answer", (0, Command::RekeyChildren(TUNNEL)), 8, None),
        // <- CREATE_CHILD_SA, INFORMATIONAL, and now the next one
        ("a request", (1, Command::RekeyChildren(TUNNEL)), 1000, Some(Command::RekeyIke(TUNNEL))),
    ];
    for (what, (speaker, command), time, shows) in cases {
        let (mut lab, both) = up(2);
        let old = lab.gateways[0].records.clone();
        lab.command(speaker, command);
        lab.run(Duration::from_millis(time));
        lab.kill(0);
        lab.gateways[0].records = old;
        lab.gateways[0].events.clear();
        assert_eq!(lab.come_back(0, vec![copy(&both[0])], Back::default()), []);
        if let Some(command) = shows {
            lab.command(1, command);
        }
        lab.run(secs(8));
        assert_eq!(lab.failures(0), ["state_lost"], "{what}");
        lab.run(secs(60));
        lab.assert_settled(2);
        lab.assert_coverage(&both);
    }
}

#[test]
fn what_did_not_change_is_not_given_out_and_what_is_half_open_neither() {
    let (mut lab, _) = up(1);
    lab.run(secs(3));
    let quiet = |lab: &mut Lab, side: usize| lab.gateways[side].endpoint.take_changes().len();
    assert_eq!((quiet(&mut lab, 0), quiet(&mut lab, 1)), (0, 0));
    // Traffic, and what is counted of it, is no news.
    let before = lab.gateways[0].records.all().map(|(_, r)| r.clone()).collect::<Vec<_>>();
    for _ in 0..50 {
        lab.probe(0, CHILD);
        lab.probe(1, CHILD);
        lab.run(Duration::from_millis(100));
    }
    let after = lab.gateways[0].records.all().map(|(_, r)| r.clone()).collect::<Vec<_>>();
    assert!(before == after);

    let mut lab = Lab::pair(3, Link::GOOD);
    lab.run(Duration::from_millis(11));
    assert!(lab.gateways.iter().all(|g| g.endpoint.sa_count() == 1 && g.records.all().next().is_none()));
}
