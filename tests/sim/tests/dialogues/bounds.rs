//! What an authenticated peer may have of us: it is who it says, and may still be out of its mind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cygnet_ike::TunnelPolicy;
use cygnet_ike::wire::Exchange;
use cygnet_model::TunnelId;
use cygnet_sim::{Lab, Link, net, policy};

use crate::{child_request, secs};

#[test]
fn a_peer_gets_four_pairs_with_the_same_selectors_and_no_more() {
    let mut lab = Lab::pair(60, Link::GOOD);
    lab.run(secs(1));
    let before = lab.gateways[1].plane.sas.len();
    for n in 0..300 {
        // I -> R  CREATE_CHILD_SA { SA, Ni, KEi, TSi, TSr }, slower than any limit in time
        lab.forge(0, Exchange::CREATE_CHILD_SA, false, &child_request(0, 0xc000_0000 + n));
        lab.run(Duration::from_millis(60));
    }
    assert_eq!(before, 2);
    assert_eq!(lab.view(1).children.len(), 4);
    assert_eq!(lab.gateways[1].endpoint.reserved(), (1, 4));
    assert_eq!(lab.gateways[1].drops["too_many_children"], 297, "counted by name");
}

#[test]
fn a_peer_that_asks_for_one_address_at_a_time_gets_a_bounded_number_of_parts() {
    let mut lab = Lab::pair(61, Link::GOOD);
    lab.run(secs(1));
    for n in 0..700u32 {
        let mut request = child_request(0, 0xc000_0000 + n);
        request.tsi = Some(vec![net(&format!("10.1.0.{}/32", n % 256))]);
        request.tsr = Some(vec![net(&format!("10.2.0.{}/32", n / 256))]);
        lab.forge(0, Exchange::CREATE_CHILD_SA, false, &request);
        lab.run(Duration::from_millis(60));
    }
    assert_eq!(lab.view(1).children.len(), 514, "512, and twice the configured pair");
    assert!(lab.gateways[1].endpoint.parts() <= 514);
    assert!(lab.gateways[1].drops["too_many_children"] >= 180);
}

#[test]
fn a_peer_in_a_hurry_is_told_to_come_again_later() {
    let mut lab = Lab::pair(62, Link::GOOD);
    lab.run(secs(1));
    let secrets = std::sync::Arc::clone(&lab.gateways[1].secrets);
    let before = secrets.load(Ordering::Relaxed);
    for n in 0..2000u32 {
        let mut request = child_request(0, 0xc000_0000 + n);
        request.tsi = Some(vec![net(&format!("10.1.0.{}/32", n % 256))]);
        lab.forge(0, Exchange::CREATE_CHILD_SA, false, &request);
    }
    let done = secrets.load(Ordering::Relaxed) - before;
    assert_eq!(done, 68, "key exchanges of 2000 requests in one moment");
    assert_eq!(lab.gateways[1].drops["rate_limit"], 2000 - 68);
}

#[test]
fn of_many_ike_sas_of_one_tunnel_the_oldest_end() {
    let mut lab = Lab::new(63, Link::GOOD, [policy(0, 1), policy(1, 1)]);
    // I -> R  IKE_SA_INIT, IKE_AUTH of sixty at once, which R takes for one and the same tunnel
    let many: Vec<TunnelPolicy> = (0..60).map(|n| TunnelPolicy { id: TunnelId(n), ..policy(0, 1) }).collect();
    lab.configure_all(0, many);
    for _ in 0..60 {
        lab.run(secs(1));
        let g = &lab.gateways[1];
        let established = g
            .endpoint
            .spis()
            .iter()
            .filter(|spi| g.endpoint.state_name(**spi) == Some("Established"))
            .count();
        assert!(established <= 4, "{established} IKE SAs");
    }
    assert!(lab.gateways[1].drops["too_many_ike_sas"] > 0, "counted by name");
    assert!(lab.gateways[1].drops["rate_limit"] > 0, "{:?}", lab.gateways[1].drops);
    assert!(lab.view(1).ike.is_some());
}
