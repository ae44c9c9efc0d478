//! Many seeds of configurations that change under living tunnels in bad weather: whatever the order, when both ends have the
//! same configuration in the end, that is what is up, and nothing else.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use cygnet_ike::wire::Identity;
use cygnet_ike::{Command, Input, TunnelPolicy};
use cygnet_sim::version::{Choices, Version};
use cygnet_sim::{Lab, Link, TUNNEL, failures, net, policy, seeds};

/// The policy of an end that has made these choices.
fn chosen(version: Version, side: usize) -> TunnelPolicy {
    let mut p = policy(side, 3);
    let choices = Choices {
        dpd: Duration::from_secs(7),
        ike: Duration::from_secs(7200),
        child: Duration::from_secs(600),
        network: net("10.2.77.0/24"),
        names: ["a.example", "b.example"].map(Identity::fqdn),
    };
    version.apply(side, &mut p, &choices);
    p
}

fn random(lab: &mut Lab) -> Version {
    Version(lab.below(1 << Version::CHOICES) as u16)
}

fn storm(seed: u64) {
    let began = Version(0);
    let mut lab = Lab::new(seed, Link::BAD, [chosen(began, 0), chosen(began, 1)]);
    let mut at = [random(&mut lab); 2];
    for side in [0, 1] {
        lab.configure(side, chosen(at[side], side));
    }
    lab.run(Duration::from_secs(20));
    for _ in 0..6 {
        let side = lab.below(2) as usize;
        match lab.below(8) {
            0..=3 => {
                at[side] = at[side].but(lab.below(u64::from(Version::CHOICES)));
                lab.configure(side, chosen(at[side], side));
            }
            4 => {
                at[side] = at[1 - side];
                lab.configure(side, chosen(at[side], side));
            }
            5 => lab.command(side, Command::RekeyChildren(TUNNEL)),
            6 => lab.command(side, Command::RekeyIke(TUNNEL)),
            _ => {
                let sas: Vec<_> = lab.gateways[side].plane.sas.keys().copied().collect();
                let pick = lab.below(sas.len().max(1) as u64) as usize;
                let hard = lab.below(2) == 0;
                if let Some(sa) = sas.get(pick) {
                    lab.input(side, Input::Expired { sa: *sa, hard });
                }
            }
        }
        let pause = 1 + lab.below(4000);
        lab.run(Duration::from_millis(pause));
    }
    // The weather clears, and the end that is behind follows.
    lab.link = Link::GOOD;
    let last = lab.below(2) as usize;
    lab.configure(1 - last, chosen(at[last], 1 - last));
    let policies = [chosen(at[last], 0), chosen(at[last], 1)];
    lab.run(Duration::from_secs(900));
    // A rekey of a moment ago still has its old inbound SA.
    let lingers = |lab: &Lab| {
        (0..2).any(|side| lab.gateways[side].plane.sas.len() != 2 * lab.view(side).children.len())
    };
    if lingers(&lab) {
        lab.run(Duration::from_secs(20));
    }
    lab.assert_consistent();
    let children = lab.view(0).children.len();
    assert!((policies[0].children.len()..6).contains(&children), "seed {seed}: {children} children");
    lab.assert_coverage(&policies);

    lab.command(0, Command::Shutdown);
    lab.command(1, Command::Shutdown);
    lab.run(Duration::from_secs(120));
    lab.assert_gone(0);
    lab.assert_gone(1);
}

#[test]
fn configurations_that_change_in_bad_weather_end_in_agreement() {
    let failed = failures(seeds(20_000), storm);
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
}
