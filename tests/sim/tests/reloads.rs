//! Many seeds of configurations that change under living tunnels in bad weather: whatever the order, when both ends have the
//! same configuration in the end, that is what is up, and nothing else.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use cygnet_ike::policy::RemoteId;
use cygnet_ike::wire::Identity;
use cygnet_ike::{Command, Input, TunnelPolicy};
use cygnet_model::SecretBytes;
use cygnet_sim::{Lab, Link, TUNNEL, net, policy};

/// How many seeds. `CYGNET_SIM_SEEDS=n` overrides it, `CYGNET_SIM_FIRST=n` starts elsewhere.
fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let first = number("CYGNET_SIM_FIRST").unwrap_or(0);
    first..first + number("CYGNET_SIM_SEEDS").unwrap_or(default)
}

/// One of many configurations of a tunnel. Each bit is a choice that the two ends may make at different times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Version(u16);

impl Version {
    const CHOICES: u32 = 9;

    fn random(lab: &mut Lab) -> Self {
        Self(lab.below(1 << Self::CHOICES) as u16)
    }

    /// The same but for one choice, as an operator changes it.
    fn neighbour(self, lab: &mut Lab) -> Self {
        Self(self.0 ^ 1 << lab.below(u64::from(Self::CHOICES)))
    }

    const fn chose(self, choice: u32) -> bool {
        self.0 >> choice & 1 == 1
    }

    fn policy(self, side: usize) -> TunnelPolicy {
        let mut p = policy(side, 3);
        if self.chose(0) {
            p.dpd = Some(Duration::from_secs(7));
        }
        let keys = ["one horse of thirty-two octets!!", "another horse, as long as that!!"];
        let key = |n: usize| SecretBytes::copy_of(keys[n].as_bytes());
        let first = usize::from(self.chose(1));
        (p.psk, p.other_psks) = (key(first), vec![key(1 - first)]);
        if self.chose(2) {
            p.lifetime = Duration::from_secs(7200);
        }
        if self.chose(3) {
            p.proposals.insert(0, "aes128gcm16-prfsha256-ecp384".parse().unwrap());
        }
        if self.chose(4) {
            p.children[0].lifetime = Duration::from_secs(600);
            p.children[0].weight = 9;
        }
        if self.chose(5) {
            p.children[1].proposals.insert(0, "aes128gcm16-ecp384".parse().unwrap());
        }
        // A network joins the first rule, which makes another child of it.
        if self.chose(6) {
            let mut wide = p.children.remove(0).unwrap();
            if side == 0 { &mut wide.remote } else { &mut wide.local }.push(net("10.2.77.0/24"));
            p.children.insert(10, wide);
        }
        if self.chose(7) {
            p.children.remove(2);
        }
        if self.chose(8) {
            let name = |side: usize| Identity::fqdn(["a.example", "b.example"][side]);
            (p.local_id, p.remote_id) = (name(side), RemoteId::Is(name(1 - side)));
        }
        p
    }
}

fn storm(seed: u64) {
    let began = Version(0);
    let mut lab = Lab::new(seed, Link::BAD, [began.policy(0), began.policy(1)]);
    let mut at = [Version::random(&mut lab); 2];
    for side in [0, 1] {
        lab.configure(side, at[side].policy(side));
    }
    lab.run(Duration::from_secs(20));
    for _ in 0..6 {
        let side = lab.below(2) as usize;
        match lab.below(8) {
            0..=3 => {
                at[side] = at[side].neighbour(&mut lab);
                lab.configure(side, at[side].policy(side));
            }
            4 => {
                at[side] = at[1 - side];
                lab.configure(side, at[side].policy(side));
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
    lab.configure(1 - last, at[last].policy(1 - last));
    let policies = [at[last].policy(0), at[last].policy(1)];
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
    let failed: Vec<u64> =
        seeds(20_000).filter(|seed| std::panic::catch_unwind(|| storm(*seed)).is_err()).collect();
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
}
