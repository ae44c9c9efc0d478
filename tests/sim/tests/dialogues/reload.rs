//! The configuration changes under living tunnels.

use std::time::Duration;

use cygnet_ike::policy::{ChildPolicy, RemoteId, Start};
use cygnet_ike::wire::Identity;
use cygnet_ike::{Command, TunnelPolicy as Policy};
use cygnet_model::{SecretBytes, Spi};
use cygnet_sim::{Lab, Link, TUNNEL, copies, copy, net, policy};

use crate::{CHILD, secs};

/// SPIs of the IKE SA and of the children, inbound.
fn keys(lab: &Lab) -> (u64, Vec<Spi>) {
    let view = lab.view(0);
    let mut children: Vec<Spi> = view.children.iter().map(|c| c.inbound).collect();
    children.sort_unstable();
    (view.ike.unwrap().spi_i, children)
}

/// Lets time pass, in which a packet between the first networks gets through both ways at every moment.
fn run_without_a_gap(lab: &mut Lab, span: Duration) {
    let (here, there) = (net("10.1.0.0/24"), net("10.2.0.0/24"));
    let step = Duration::from_millis(1);
    for _ in 0..span.as_millis() {
        lab.run(step);
        assert!(lab.passes(0, &here, &there), "no way out at {:?}", lab.now());
        assert!(
            lab.passes(1, &there, &here),
            "no way back at {:?}: {:?} and {:?}",
            lab.now(),
            lab.view(0).children,
            lab.view(1).children
        );
    }
}

fn up(children: u8) -> (Lab, [Policy; 2]) {
    let both = [policy(0, children), policy(1, children)];
    let mut lab = Lab::new(21, Link::GOOD, copies(&both));
    lab.run(secs(2));
    lab.assert_settled(usize::from(children));
    (lab, both)
}

#[test]
fn the_same_configuration_again_changes_nothing_and_sends_nothing() {
    let (mut lab, both) = up(2);
    let (before, sent) = (keys(&lab), lab.sent.clone());
    for side in [0, 1] {
        lab.configure(side, copy(&both[side]));
    }
    lab.run(secs(5));
    assert_eq!((keys(&lab), lab.sent), (before, sent));
}

/// What needs no new keys is changed in place; what needs some gets them while the old ones carry the traffic.
#[test]
fn each_change_costs_what_it_must_and_no_packet() {
    type Change = fn(&mut Policy);
    // What changes, whether the IKE SA gets new keys, and whether the first child does. The second one never does.
    let changes: [(&str, Change, bool, bool); 9] = [
        ("dpd", |p| p.dpd = Some(secs(5)), false, false),
        ("psk", |p| p.psk = SecretBytes::copy_of(b"another horse"), false, false),
        ("start", |p| p.start = Start::OnDemand, false, false),
        ("weight", |p| p.children[0].weight = 7, false, false),
        ("ike lifetime", |p| p.lifetime = secs(7200), true, false),
        (
            "ike proposals",
            // While one end has not followed yet, there is still one that both take.
            |p| p.proposals.insert(0, "aes128gcm16-prfsha256-ecp384".parse().unwrap()),
            true,
            false,
        ),
        ("esp lifetime", |p| p.children[0].lifetime = secs(600), false, true),
        (
            "esp proposals",
            |p| p.children[0].proposals.insert(0, "aes128gcm16-ecp384".parse().unwrap()),
            false,
            true,
        ),
        ("window", |p| p.children[0].replay_window = 256, false, true),
    ];
    for (what, change, ike, child) in changes {
        for first in [0, 1] {
            let (mut lab, both) = up(2);
            let before = keys(&lab);
            let spi = lab.view(0).children[0].inbound;
            for side in [first, 1 - first] {
                lab.configure(side, with(&both[side], change));
                run_without_a_gap(&mut lab, Duration::from_millis(300));
            }
            run_without_a_gap(&mut lab, secs(15));
            let after = keys(&lab);
            assert_eq!(after.0 != before.0, ike, "{what}: IKE SA");
            assert_eq!(!after.1.contains(&spi), child, "{what}: first child");
            assert_eq!(
                before.1.iter().filter(|s| after.1.contains(s)).count(),
                2 - usize::from(child),
                "{what}"
            );
            assert_eq!(after.1.len(), 2, "{what}");
        }
    }
}

#[test]
fn networks_come_and_go_while_the_others_carry_on() {
    for first in [0, 1] {
        let (mut lab, mut both) = up(2);
        let kept = lab.view(0).children[1].inbound;
        // 10.1.0/24 <-> 10.2.0/24 becomes 10.1.0/24 <-> 10.2.0/24, 10.2.9/24, which is another child.
        let wider = |old: &ChildPolicy, side: usize| {
            let mut new = old.clone();
            if side == 0 { &mut new.remote } else { &mut new.local }.push(net("10.2.9.0/24"));
            new
        };
        for side in [first, 1 - first] {
            let old = both[side].children.remove(0).unwrap();
            both[side].children.insert(2, wider(&old, side));
            lab.configure(side, copy(&both[side]));
            run_without_a_gap(&mut lab, secs(2));
        }
        run_without_a_gap(&mut lab, secs(30));
        lab.assert_coverage(&both);
        assert!(lab.view(0).children.iter().any(|c| c.inbound == kept), "the other child was touched");
        // And back again, with nothing left of it.
        for side in [1 - first, first] {
            let old = both[side].children.remove(2).unwrap();
            let mut narrow = old.clone();
            if side == 0 { &mut narrow.remote } else { &mut narrow.local }.pop();
            both[side].children.insert(3, narrow);
            lab.configure(side, copy(&both[side]));
            run_without_a_gap(&mut lab, secs(2));
        }
        run_without_a_gap(&mut lab, secs(30));
        lab.assert_coverage(&both);
        lab.assert_settled(2);
        assert!(lab.view(0).children.iter().any(|c| c.inbound == kept), "the other child was touched");
    }
}

#[test]
fn a_network_that_is_gone_is_gone_at_both_ends() {
    let (mut lab, mut both) = up(2);
    both[0].children.remove(1);
    lab.configure(0, copy(&both[0]));
    lab.run(secs(5));
    assert_eq!((lab.view(0).children.len(), lab.view(1).children.len()), (1, 1));
    assert_eq!(lab.gateways[0].plane.tunnels.len(), 1);
    assert_eq!(lab.gateways[1].plane.tunnels.len(), 1, "the peer may not send what we do not take");
}

/// Other identities are proven by a new IKE SA beside the old one, which carries the traffic until then, however late the
/// other end follows.
#[test]
fn other_identities_are_proven_beside_the_sa_that_carries_the_traffic() {
    for first in [0, 1] {
        let (mut lab, mut both) = up(2);
        let before = keys(&lab);
        both[0].local_id = Identity::fqdn("a.example");
        both[1].remote_id = RemoteId::Is(Identity::fqdn("a.example"));
        lab.configure(first, copy(&both[first]));
        run_without_a_gap(&mut lab, secs(20));
        assert_eq!(keys(&lab).1, before.1, "nothing better was there");
        lab.configure(1 - first, copy(&both[1 - first]));
        run_without_a_gap(&mut lab, secs(90));
        lab.assert_settled(2);
        assert_ne!(keys(&lab).0, before.0);
    }
}

#[test]
fn a_tunnel_that_failed_is_tried_at_once_when_its_configuration_changes() {
    let mut wrong = policy(0, 1);
    wrong.psk = SecretBytes::copy_of(b"not the key of this tunnel");
    let mut lab = Lab::new(22, Link::GOOD, [wrong, policy(1, 1)]);
    lab.run(secs(600));
    assert!(!lab.is_up());
    lab.configure(0, policy(0, 1));
    lab.run(secs(1));
    lab.assert_settled(1);
}

#[test]
fn a_tunnel_that_was_taken_down_stays_down_whatever_changes() {
    let (mut lab, both) = up(1);
    lab.command(0, Command::Down(TUNNEL));
    lab.run(secs(5));
    lab.configure(0, with(&both[0], |p| p.children[0].lifetime = secs(600)));
    lab.run(secs(60));
    lab.assert_gone(0);
    lab.command(0, Command::Up(TUNNEL));
    lab.run(secs(2));
    lab.assert_settled(1);
}

#[test]
fn who_shall_begin_now_begins_and_who_shall_not_stays_up() {
    let mut passive = policy(0, 1);
    passive.start = Start::Passive;
    let mut lab = Lab::new(23, Link::GOOD, [passive, policy(1, 1)]);
    lab.run(secs(5));
    lab.assert_gone(0);
    lab.configure(0, policy(0, 1));
    lab.run(secs(2));
    lab.assert_settled(1);
    let before = keys(&lab);
    lab.configure(0, with(&policy(0, 1), |p| p.start = Start::Passive));
    lab.run(secs(60));
    assert_eq!(keys(&lab), before);
    lab.probe(0, CHILD);
    lab.run(secs(1));
    assert_eq!(lab.probes.1, 0);
}

/// A policy with a change.
fn with(policy: &Policy, change: impl FnOnce(&mut Policy)) -> Policy {
    let mut changed = copy(policy);
    change(&mut changed);
    changed
}

/// A key is exchanged at one end after the other, whoever begins and whenever a new IKE SA is needed meanwhile.
#[test]
fn two_keys_are_good_while_one_is_exchanged_for_the_other() {
    let key = |text: &str| SecretBytes::copy_of(text.as_bytes());
    let keys = |p: &Policy, first: &str, second: Option<&str>| {
        with(p, |p| {
            p.psk = key(first);
            p.other_psks = second.into_iter().map(key).collect();
        })
    };
    for first in [0, 1] {
        for initiator in [0, 1] {
            let mut both = [policy(0, 1), policy(1, 1)].map(|p| keys(&p, "old", None));
            for (side, p) in both.iter_mut().enumerate() {
                p.start = if side == initiator { Start::Active } else { Start::Passive };
            }
            let mut lab = Lab::new(24, Link::GOOD, copies(&both));
            lab.run(secs(2));
            lab.assert_settled(1);
            for step in [Some("old"), None] {
                for side in [first, 1 - first] {
                    lab.configure(side, keys(&both[side], "new", step));
                    run_without_a_gap(&mut lab, secs(1));
                    // At this moment of all the SA is lost and must be made anew.
                    lab.command(initiator, Command::Reset(TUNNEL));
                    lab.run(secs(10));
                    assert!(lab.is_up(), "{first} is the first to have {step:?}, {initiator} begins");
                }
            }
            // One that neither end has configured any more is worth nothing.
            lab.configure(1 - initiator, keys(&both[1 - initiator], "old", None));
            lab.command(initiator, Command::Reset(TUNNEL));
            lab.run(secs(60));
            assert!(!lab.is_up());
        }
    }
}

/// The gateway's address is another one, which no interface has: what is known of the SAs goes with them, so that a guard that
/// is not configured any more can go, and packets are not led to a tunnel that is no more.
#[test]
fn an_address_that_goes_takes_all_that_is_known_of_its_sas_along() {
    let (mut lab, [ours, _]) = up(1);
    assert!(lab.gateways[0].endpoint.is_carried(CHILD));
    lab.configure(0, Policy { local: vec![], ..copy(&ours) });
    assert!(!lab.gateways[0].endpoint.is_carried(CHILD), "without an address nothing is carried");
    assert!(lab.gateways[0].plane.outbound(CHILD).is_none());
    lab.configure(0, copy(&ours));
    lab.run(secs(90));
    lab.assert_settled(1);
    lab.configure_all(0, vec![]);
    lab.run(secs(10));
    assert!(!lab.gateways[0].endpoint.is_carried(CHILD), "a tunnel that is gone carries nothing");
}
