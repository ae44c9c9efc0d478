//! What the world does to a tunnel: NAT, a data plane that refuses, limits of SAs.

use std::time::Duration;

use cygnet_ike::{Command, Input};
use cygnet_model::ChildId;
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_sim::{Lab, Link, TUNNEL, policy};

use crate::{CHILD, secs};

#[test]
fn who_is_behind_a_nat_keeps_its_mapping_alive_and_nobody_else_does() {
    let mut lab = Lab::pair(10, Link::GOOD);
    lab.run(secs(300));
    assert_eq!(lab.keepalives, [0, 0], "without NAT");

    let mut policies = [policy(0, 1), policy(1, 1)];
    policies[1].remote = vec!["198.51.100.9".parse().unwrap()];
    // Without liveness checks, whose messages keep the mapping too.
    policies.iter_mut().for_each(|p| p.dpd = None);
    let mut lab = Lab::new(10, Link::GOOD, policies);
    lab.nat.public = Some("198.51.100.9".parse().unwrap());
    lab.run(secs(10));
    lab.assert_settled(1);
    let before = lab.keepalives.clone();
    lab.run(secs(200));
    assert_eq!(lab.keepalives, [before[0] + 10, 0], "one in 20 s");
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
    let old = lab.view(0).children.first().map(|c| c.inbound);
    // I -> R  CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }, and R cannot install what it answers
    lab.gateways[1].plane.fail_next = 1;
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(Duration::from_millis(200));
    let spi = lab.gateways[0].plane.sas.keys().filter(|id| id.direction == Direction::In).map(|id| id.spi);
    let spi = spi.filter(|spi| Some(*spi) != old).max().unwrap();
    let sa = SaId { child: CHILD, direction: Direction::Out, spi };
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
fn t74_a_pair_that_the_plane_refused_is_not_rekeyed_while_its_deletion_waits() {
    let mut lab = Lab::new(9, Link::GOOD, [policy(0, 2), policy(1, 2)]);
    lab.run(secs(1));
    // R -> I  INFORMATIONAL { D } of the other child, lost: nothing else may be asked until it is answered.
    let other = ChildId { index: 1, ..CHILD };
    let sa = lab.gateways[1].plane.outbound(other).unwrap().id;
    lab.link.loss = 1000;
    lab.input(1, Input::Expired { sa, hard: true });
    lab.link = Link::GOOD;
    // The plane of R has no open tunnel for the first child.
    lab.gateways[1].plane.tunnels.remove(&CHILD);
    lab.input(1, Input::PlaneFailed { child: CHILD, detail: "no device".into() });
    // I -> R  CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, KEi, TSi, TSr }, I <- R  { N(TEMPORARY_FAILURE) }
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(secs(60));
    lab.assert_settled(2);
}
