//! How a tunnel comes up, and how it does not.

use std::time::Duration;

use cygnet_ike::Command;
use cygnet_ike::policy::Encap;
use cygnet_ike::recording::Recorder;
use cygnet_sim::{Lab, Link, TUNNEL, policy};

use crate::secs;

#[test]
fn a_tunnel_comes_up_in_two_exchanges() {
    let mut lab = Lab::pair(1, Link::GOOD);
    // I -> R  IKE_SA_INIT, I <- R, I -> R  IKE_AUTH, I <- R
    lab.run(Duration::from_millis(100));
    lab.assert_settled(1);
    assert_eq!(lab.sent, [2, 2]);
}

/// RFC 7296 §2.23: whoever begins may begin on port 4500. A filter that lets nothing else pass is no obstacle then.
#[test]
fn who_begins_on_port_4500_uses_no_other() {
    let mut both = [policy(0, 1), policy(1, 1)];
    both[0].encap = Encap::FromStart;
    let mut lab = Lab::new(1, Link::GOOD, both);
    lab.recording = Some((0, Recorder::default()));
    lab.run(Duration::from_millis(100));
    lab.assert_settled(1);
    let (_, recorder) = lab.recording.as_ref().unwrap();
    let text = recorder.text(lab.now());
    assert!(text.contains(":4500 ") && !text.contains(":500 "), "{text}");
}

#[test]
fn several_children_follow_the_first() {
    let mut lab = Lab::new(1, Link::GOOD, [policy(0, 3), policy(1, 3)]);
    lab.run(secs(1));
    lab.assert_settled(3);
}

#[test]
fn two_active_ends_agree_on_one_sa() {
    for seed in 0..50 {
        let mut both = [policy(0, 1), policy(1, 1)];
        both[1].start = cygnet_ike::policy::Start::Active;
        let mut lab = Lab::new(seed, Link::GOOD, both);
        lab.run(secs(30));
        lab.assert_settled(1);
    }
}

#[test]
fn disagreements_have_names_at_both_ends() {
    // (what is changed at gateway 1, failure told by 0, failure told by 1)
    type Change = fn(&mut cygnet_ike::TunnelPolicy);
    let cases: [(Change, &str, &str); 5] = [
        (
            |p| p.psk = cygnet_model::SecretBytes::copy_of(b"another key of 32 octets length!"),
            "authentication_failed",
            "authentication_failed",
        ),
        (
            |p| p.remote_id = cygnet_ike::wire::Identity::fqdn("somebody.else").into(),
            "authentication_failed",
            "unknown_identity",
        ),
        (
            |p| p.proposals = vec!["aes128-sha256-modp2048".parse().unwrap()],
            "no_proposal_chosen",
            "no_proposal_chosen",
        ),
        (
            |p| p.children[0].proposals = vec!["aes128-sha256-modp2048".parse().unwrap()],
            "no_proposal_chosen",
            "no_proposal_chosen",
        ),
        (
            |p| p.children[0].local = vec![cygnet_sim::net("172.16.0.0/16")],
            "ts_unacceptable",
            "ts_unacceptable",
        ),
    ];
    for (n, (change, at_0, at_1)) in cases.into_iter().enumerate() {
        let mut policies = [policy(0, 1), policy(1, 1)];
        change(&mut policies[1]);
        let mut lab = Lab::new(8, Link::GOOD, policies);
        lab.run(secs(4));
        assert_eq!(lab.failures(0).first(), Some(&at_0), "case {n}: {:?}", lab.failures(0));
        assert_eq!(lab.failures(1).first(), Some(&at_1), "case {n}: {:?}", lab.failures(1));
        assert!(lab.gateways.iter().all(|g| g.plane.sas.is_empty()), "case {n}");
        // It goes on trying, and comes up once the other end is put right.
        lab.restart(1, policy(1, 1));
        lab.run(secs(700));
        lab.assert_settled(1);
    }
}

/// `remote_id: any`: the key decides, whatever name comes with it, in both roles.
#[test]
fn a_peer_of_any_name_is_let_in_by_its_key_and_shown_by_its_name() {
    use cygnet_ike::policy::RemoteId;
    use cygnet_ike::wire::Identity;
    for any in [0, 1] {
        let named = 1 - any;
        let mut policies = [policy(0, 1), policy(1, 1)];
        policies[named].local_id = Identity::fqdn("whoever.example");
        policies[any].remote_id = RemoteId::Any;
        let mut lab = Lab::new(8, Link::GOOD, policies);
        lab.run(secs(4));
        lab.assert_settled(1);
        assert_eq!(lab.view(any).ike.unwrap().peer_id, Identity::fqdn("whoever.example"));
        lab.command(0, Command::RekeyIke(TUNNEL));
        lab.run(secs(10));
        lab.assert_settled(1);
        assert_eq!(lab.view(any).ike.unwrap().peer_id, Identity::fqdn("whoever.example"), "after a rekey");

        // Neither a wrong key nor our own name, which would be our own message sent back.
        type Change = fn(&mut cygnet_ike::TunnelPolicy, Identity);
        let changes: [(Change, &str); 2] = [
            (
                |p, _| p.psk = cygnet_model::SecretBytes::copy_of(b"another key of 32 octets length!"),
                "authentication_failed",
            ),
            (|p, ours| p.local_id = ours, "unknown_identity"),
        ];
        for (change, reason) in changes {
            let mut policies = [policy(0, 1), policy(1, 1)];
            policies[any].remote_id = RemoteId::Any;
            let ours = policies[any].local_id.clone();
            change(&mut policies[named], ours);
            let mut lab = Lab::new(8, Link::GOOD, policies);
            lab.run(secs(4));
            assert!(!lab.is_up());
            assert!(lab.failures(any).contains(&reason), "{any}: {:?}", lab.failures(any));
        }
    }
}

/// A tunnel that names its peer goes before one that takes anybody, whatever their order.
#[test]
fn of_two_tunnels_the_one_that_names_the_peer_is_taken() {
    use cygnet_ike::policy::RemoteId;
    use cygnet_model::TunnelId;
    let mut lab = Lab::new(8, Link::GOOD, [policy(0, 1), policy(1, 1)]);
    let any = cygnet_ike::TunnelPolicy { id: TunnelId(0), remote_id: RemoteId::Any, ..policy(1, 1) };
    let named = cygnet_ike::TunnelPolicy { id: TunnelId(1), ..policy(1, 1) };
    lab.configure_all(1, vec![any, named]);
    lab.restart(0, policy(0, 1));
    lab.run(secs(4));
    assert!(lab.gateways[1].endpoint.view(TunnelId(1)).unwrap().ike.is_some());
    assert!(lab.gateways[1].endpoint.view(TunnelId(0)).unwrap().ike.is_none());
}

#[test]
fn t33_cookies_and_other_groups_cost_round_trips_only() {
    let mut policies = [policy(0, 1), policy(1, 1)];
    policies[1].proposals = vec!["aes256gcm16-prfsha384-ecp384".parse().unwrap()];
    policies[1].children[0].proposals = vec!["aes256gcm16-ecp384".parse().unwrap()];
    let mut lab = Lab::new(9, Link::GOOD, policies);
    lab.run(secs(1));
    lab.assert_settled(1);
    assert_eq!(lab.sent, [3, 3], "INVALID_KE_PAYLOAD costs one round trip");
    // A child rekey meets the same answer.
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(secs(10));
    lab.assert_settled(1);
}

#[test]
fn an_ike_auth_without_a_child_is_refused_as_a_whole() {
    let mut policies = [policy(0, 1), policy(1, 1)];
    policies[0].children = Vec::new().into();
    let mut lab = Lab::new(20, Link::GOOD, policies);
    // I -> R  IKE_AUTH { IDi, IDr, AUTH }, I <- R  IKE_AUTH { N(INVALID_SYNTAX) }: no IKE SA at either end.
    lab.run(Duration::from_millis(100));
    assert_eq!((lab.failures(0), lab.failures(1)), (vec!["invalid_syntax"], vec!["invalid_syntax"]));
    assert_eq!(lab.gateways[0].endpoint.sa_count(), 0);
    assert!(!lab.is_up() && lab.view(1).ike.is_none());
}

#[test]
fn t75_a_refused_first_child_leaves_the_ike_sa_up_and_is_tried_again_ever_more_rarely() {
    let mut policies = [policy(0, 1), policy(1, 1)];
    policies[1].children[0].local = vec![cygnet_sim::net("172.16.0.0/16")];
    let mut lab = Lab::new(38, Link::GOOD, policies);
    // I -> R  IKE_AUTH, I <- R  IKE_AUTH { IDr, AUTH, N(TS_UNACCEPTABLE) }
    lab.run(Duration::from_millis(100));
    let spi = lab.gateways[0].endpoint.spis();
    lab.run(secs(600));
    assert_eq!(lab.gateways[0].endpoint.spis(), spi);
    assert!(lab.gateways.iter().all(|g| g.plane.sas.is_empty() && g.endpoint.reserved() == (1, 0)));
    let failures = lab.failures(0);
    assert!(failures.iter().all(|f| *f == "ts_unacceptable"));
    assert!((5..=9).contains(&failures.len()), "{} in ten minutes", failures.len());
}

/// An address in an FQDN reads like the address, and is another identity.
#[test]
fn the_refusal_of_an_identity_tells_type_and_value_of_both() {
    use cygnet_ike::wire::Identity;
    let mut policies = [policy(0, 1), policy(1, 1)];
    policies[0].local_id = Identity::fqdn("192.0.2.9");
    policies[1].remote_id = Identity::address([192, 0, 2, 9].into()).into();
    let mut lab = Lab::new(8, Link::GOOD, policies);
    lab.run(secs(4));
    let told = (lab.gateways[1].events.iter()).find_map(|(_, e)| match e {
        cygnet_ike::Event::Failure { detail, .. } => Some(detail.clone()),
        _ => None,
    });
    let told = told.unwrap_or_default();
    assert!(told.contains("ID_FQDN \"192.0.2.9\"") && told.contains("ID_IPV4_ADDR \"192.0.2.9\""), "{told}");
}
