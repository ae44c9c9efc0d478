//! Many seeds of bad weather: every run must end in agreement.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use cygnet_ike::policy::Start;
use cygnet_ike::{Command, Input, TunnelPolicy};
use cygnet_model::{ChildId, SecretBytes};
use cygnet_sim::{Lab, Link, Pace, TUNNEL, failures, hybrid, net, policy, seeds, single_pairs};

/// Where the gateways are wrongly configured, failing cleanly is the right ending.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Psk,
    Proposal,
    Selectors,
}

impl Wrong {
    /// What both ends call it.
    const fn reason(self) -> &'static str {
        match self {
            Self::Psk => "authentication_failed",
            Self::Proposal => "no_proposal_chosen",
            Self::Selectors => "ts_unacceptable",
        }
    }

    fn apply(self, p: &mut TunnelPolicy) {
        match self {
            Self::Psk => p.psk = SecretBytes::copy_of(b"another key of 32 octets length!"),
            Self::Proposal => p.proposals = vec!["aes128-sha256-modp2048".parse().unwrap()],
            Self::Selectors => p.children.values_mut().for_each(|c| c.local = vec![net("172.16.0.0/16")]),
        }
    }
}

/// What a seed is about, beside the weather.
struct Plan {
    children: u8,
    /// Gateway 0 is behind a NAT.
    nat: bool,
    both_active: bool,
    /// So many selectors that IKE_AUTH and CREATE_CHILD_SA come in fragments, and nothing larger passes.
    wide: bool,
    /// One rule of several networks at one end; this end takes one pair of them into each child.
    split: Option<usize>,
    /// A network of gateway 1 that its peer does not have in its rules, where there are several.
    missing: bool,
    /// Only this end demands PFS. One child: others would never come up.
    pfs: Option<usize>,
    wrong: Option<Wrong>,
    /// With additional key exchanges.
    hybrid: bool,
}

/// The address that the NAT gives gateway 0.
const PUBLIC: &str = "198.51.100.9";

/// What passes without fragments of IP, as UDP payload: IPv6's minimum MTU.
const PATH: usize = 1232;

impl Plan {
    fn new(seed: u64) -> Self {
        let wrong = [Wrong::Psk, Wrong::Proposal, Wrong::Selectors];
        let wrong = (seed % 25 == 7).then(|| wrong[(seed / 25 % 3) as usize]);
        let nat = seed % 5 == 2;
        let pfs = (seed % 13 == 4 && wrong.is_none()).then_some((seed / 13 % 2) as usize);
        let wide = seed % 7 == 3 && pfs.is_none();
        let split =
            (seed % 6 == 5 && !wide && pfs.is_none() && wrong.is_none()).then_some((seed / 6 % 2) as usize);
        Self {
            children: if pfs.is_some() { 1 } else { 1 + (seed % 3) as u8 },
            nat,
            both_active: seed % 4 == 1 && !nat && wrong.is_none(),
            wide,
            split,
            missing: split.is_some() && seed % 18 == 5,
            pfs,
            wrong,
            hybrid: false,
        }
    }

    fn policy(&self, side: usize) -> TunnelPolicy {
        let mut p = policy(side, self.children);
        if side == 1 {
            if self.both_active {
                p.start = Start::Active;
            }
            if self.nat {
                p.remote = vec![PUBLIC.parse().unwrap()];
            }
        }
        if self.wide {
            for (c, n) in p.children.values_mut().zip(0..) {
                let nets =
                    |i: usize| (0..60).map(|k| net(&format!("10.{}.{n}.{}/32", i + 1, 2 * k))).collect();
                (c.local, c.remote) = (nets(side), nets(1 - side));
            }
        }
        if let Some(end) = self.split {
            // Child c of n has n + 1 networks at gateway 1's side.
            let more = 1 + self.children;
            for (c, n) in p.children.values_mut().zip(0..) {
                let many = |but: bool| {
                    let nets = (0..more).map(|k| net(&format!("10.{}.{n}.0/24", 20 + k)));
                    nets.skip(usize::from(but)).collect::<Vec<_>>()
                };
                if side == 0 {
                    c.remote = many(self.missing);
                } else {
                    c.local = many(false);
                }
            }
            if side == end {
                p = single_pairs(p);
            }
        }
        if self.hybrid {
            hybrid(&mut p);
        }
        if self.pfs.is_some_and(|end| end != side) {
            p.children.values_mut().for_each(|c| c.proposals = vec!["aes256gcm16".parse().unwrap()]);
        }
        if side == 1
            && let Some(wrong) = self.wrong
        {
            wrong.apply(&mut p);
        }
        p
    }

    /// How many pairs of SAs there are when everything is up.
    fn parts(&self, policies: &[TunnelPolicy; 2]) -> usize {
        match self.split {
            Some(end) => policies[end].children.len(),
            None => usize::from(self.children),
        }
    }

    /// Something happens that is no weather.
    fn happen(&self, lab: &mut Lab) {
        let side = lab.below(2) as usize;
        match lab.below(16) {
            0..=2 => lab.command(side, Command::RekeyChildren(TUNNEL)),
            3 | 4 => lab.command(side, Command::RekeyIke(TUNNEL)),
            5 => {
                lab.command(0, Command::RekeyChildren(TUNNEL));
                lab.command(1, Command::RekeyIke(TUNNEL));
            }
            6 => {
                lab.command(0, Command::RekeyIke(TUNNEL));
                lab.command(1, Command::RekeyIke(TUNNEL));
            }
            7 => {
                lab.command(0, Command::RekeyChildren(TUNNEL));
                lab.command(1, Command::RekeyChildren(TUNNEL));
            }
            8 => lab.restart(side, self.policy(side)),
            9 | 10 => lab.gateways[side].plane.fail_next = 1 + lab.below(2) as u32,
            11..=13 => {
                let sas: Vec<_> = lab.gateways[side].plane.sas.keys().copied().collect();
                let pick = lab.below(sas.len().max(1) as u64) as usize;
                let hard = lab.below(2) == 0;
                if let Some(sa) = sas.get(pick) {
                    lab.input(side, Input::Expired { sa: *sa, hard });
                }
            }
            14 => {
                let index = lab.below(self.policy(side).children.len() as u64) as u16;
                lab.input(side, Input::Acquire(ChildId { tunnel: TUNNEL, index }.into()));
            }
            // The NAT forgets, and gives new ports.
            _ => lab.nat.ports.clear(),
        }
    }
}

fn storm(seed: u64, pace: Pace) {
    storm_of(&Plan::new(seed), seed, pace);
}

fn storm_of(plan: &Plan, seed: u64, pace: Pace) {
    let mut lab = Lab::new(seed, Link::BAD, [plan.policy(0), plan.policy(1)]);
    lab.set_pace(pace);
    lab.nat.public = plan.nat.then(|| PUBLIC.parse().unwrap());
    if plan.wide {
        lab.tap = Some(Box::new(|_, bytes| (bytes.len() <= PATH).then_some(bytes)));
    }
    lab.run(Duration::from_secs(20));
    let policies = [plan.policy(0), plan.policy(1)];
    for _ in 0..6 {
        plan.happen(&mut lab);
        let pause = 1 + lab.below(4000);
        lab.run(Duration::from_millis(pause));
        lab.assert_inside(&policies);
    }
    // The weather clears; whatever was half done must end.
    lab.link = Link::GOOD;
    lab.set_pace(Pace { loss: 0, ..pace });
    lab.gateways.iter_mut().for_each(|g| g.plane.fail_next = 0);
    lab.run(Duration::from_secs(600));
    let wakes = lab.wakes.clone();
    lab.run(Duration::from_secs(300));
    for (side, before) in wakes.into_iter().enumerate() {
        let woken = lab.wakes[side] - before;
        assert!(woken < 150, "seed {seed}: {woken} timers in five quiet minutes at gateway {side}");
    }
    match plan.wrong {
        None => {
            // Where keys are renewed by new IKE SAs, one may be on its way at the moment of asking.
            if plan.pfs.is_some() && lab.gateways.iter().any(|g| g.endpoint.sa_count() != 1) {
                lab.run(Duration::from_secs(60));
            }
            // Where a result was given up in a collision, an old pair may stay beside a new one, both in use.
            if pace.loss > 0 {
                lab.assert_consistent();
            } else if !plan.missing {
                lab.assert_settled(plan.parts(&policies));
            }
            lab.assert_coverage(&policies);
        }
        Some(wrong) => assert_refused(&lab, seed, wrong),
    }

    // And everything can be taken down again.
    lab.command(0, Command::Shutdown);
    lab.command(1, Command::Shutdown);
    lab.run(Duration::from_secs(120));
    for side in 0..2 {
        lab.assert_gone(side);
        assert_eq!(lab.gateways[side].endpoint.jobs(), 0, "seed {seed}: jobs of gateway {side}");
    }
}

/// Nothing is in place, and both ends say why.
fn assert_refused(lab: &Lab, seed: u64, wrong: Wrong) {
    for side in 0..2 {
        let g = &lab.gateways[side];
        assert!(g.plane.sas.is_empty() && g.plane.tunnels.is_empty(), "seed {seed}: gateway {side}");
        assert!(lab.view(side).children.is_empty(), "seed {seed}: gateway {side}");
        let failures = lab.failures(side);
        assert!(failures.contains(&wrong.reason()), "seed {seed}: {wrong:?} at {side}: {failures:?}");
        // The IKE SA is of use even if no child is.
        let ike = matches!(wrong, Wrong::Selectors);
        assert_eq!(lab.view(side).ike.is_some(), ike, "seed {seed}: gateway {side}");
        assert!(g.endpoint.sa_count() <= 3, "seed {seed}: {} SAs at {side}", g.endpoint.sa_count());
    }
}

#[test]
fn ten_thousand_handshakes_and_rekeys_in_bad_weather_end_in_agreement() {
    weather(seeds(10_000), Pace::AT_ONCE);
}

/// Key exchanges that take longer than a peer waits, and end in another order than they began.
#[test]
fn handshakes_and_rekeys_of_slow_gateways_in_bad_weather_end_in_agreement() {
    weather(seeds(3000), Pace::SLOW);
}

/// The same, and some never end.
#[test]
fn handshakes_and_rekeys_of_gateways_that_lose_results_end_in_agreement() {
    weather(seeds(3000), Pace::LOSSY);
}

/// Additional key exchanges: up to three more exchanges for each new key, and whatever collides meanwhile.
#[test]
fn hybrid_handshakes_and_rekeys_in_bad_weather_end_in_agreement() {
    let failed = failures(seeds(3000), |seed| {
        let pace = [Pace::AT_ONCE, Pace::SLOW, Pace::LOSSY][(seed / 3 % 3) as usize];
        storm_of(&Plan { hybrid: true, ..Plan::new(seed) }, seed, pace);
    });
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
}

fn weather(all: std::ops::Range<u64>, pace: Pace) {
    let failed = failures(all, |seed| storm(seed, pace));
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
}

/// Rare orders of events beyond the usual range: an outdated IKE SA that is rekeyed, or that meets a newer one too late; pairs
/// for one part that cross while others are asked for, or after one of them has ended.
#[test]
fn seeds_of_rare_orders_end_in_agreement() {
    for seed in [721, 7445, 8021, 26_251, 27_902, 40_512, 51_911, 79_411, 95_437] {
        storm(seed, Pace::AT_ONCE);
    }
}

/// Prints what happened under one seed, with `CYGNET_SIM_PACE=slow` or `lossy` at that pace, with `CYGNET_SIM_HYBRID=1` of the
/// hybrid ones: `CYGNET_SIM_FIRST=24 cargo test -p cygnet-sim --test storm -- --ignored --nocapture`.
#[test]
#[ignore = "a tool for people: tells the story of one seed"]
fn story() {
    let seed = seeds(1).start;
    let pace = match std::env::var("CYGNET_SIM_PACE").as_deref() {
        Ok("slow") => Pace::SLOW,
        Ok("lossy") => Pace::LOSSY,
        _ => Pace::AT_ONCE,
    };
    let hybrid = std::env::var_os("CYGNET_SIM_HYBRID").is_some();
    let told = std::panic::catch_unwind(|| storm_of(&Plan { hybrid, ..Plan::new(seed) }, seed, pace));
    assert!(told.is_ok(), "seed {seed}");
}
