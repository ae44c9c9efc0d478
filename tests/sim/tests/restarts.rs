//! Many seeds of processes that die at random moments in bad weather and go on from what was kept, sometimes from what was
//! kept too long ago, sometimes with a data plane that has lost some SAs: whatever the order, both ends agree in the end.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::time::Duration;

use cygnet_ike::policy::Start;
use cygnet_ike::{Command, Input, TunnelPolicy};
use cygnet_model::ChildId;
use cygnet_model::tunnel::SaId;
use cygnet_sim::{Back, Lab, Link, Pace, TUNNEL, failures, hybrid, net, policy, seeds, single_pairs};

/// What a seed is about, beside the weather.
#[derive(Clone, Copy)]
struct Plan {
    children: u8,
    /// Gateway 0 is behind a NAT.
    nat: bool,
    both_active: bool,
    /// Each child has networks that gateway 0 takes one by one.
    split: bool,
    /// New keys come without a key exchange of their own.
    without_pfs: bool,
    /// Records may be too old.
    stale: bool,
    /// Only one end's file may be rolled back: of two that are, and a request of the time before that is still on its way,
    /// nobody could know (decision 0110), and while key exchanges take long one usually is.
    one_file: bool,
    /// Data planes may have lost SAs.
    lossy: bool,
    /// With additional key exchanges.
    hybrid: bool,
}

/// The address that the NAT gives gateway 0.
const PUBLIC: &str = "198.51.100.9";

impl Plan {
    const fn new(seed: u64) -> Self {
        Self {
            children: 1 + (seed % 3) as u8,
            nat: seed % 5 == 2,
            both_active: seed % 4 == 1 && seed % 5 != 2,
            split: seed % 7 == 5,
            without_pfs: seed % 6 == 4,
            stale: seed % 8 == 3,
            one_file: false,
            lossy: seed % 8 >= 5,
            hybrid: false,
        }
    }

    fn policy(self, side: usize) -> TunnelPolicy {
        let mut p = policy(side, self.children);
        if side == 1 {
            if self.both_active {
                p.start = Start::Active;
            }
            if self.nat {
                p.remote = vec![PUBLIC.parse().unwrap()];
            }
        }
        if self.split {
            for (c, n) in p.children.values_mut().zip(0..) {
                let many = || vec![net(&format!("10.20.{n}.0/24")), net(&format!("10.21.{n}.0/24"))];
                if side == 0 {
                    c.remote = many();
                } else {
                    c.local = many();
                }
            }
            if side == 0 {
                p = single_pairs(p);
            }
        }
        if self.hybrid {
            hybrid(&mut p);
        }
        if self.without_pfs {
            p.children.values_mut().for_each(|c| c.proposals = vec!["aes256gcm16".parse().unwrap()]);
        }
        p
    }

    fn policies(self) -> [TunnelPolicy; 2] {
        [self.policy(0), self.policy(1)]
    }

    /// The process of a gateway is started, if it does not run.
    fn revive(self, lab: &mut Lab, side: usize) {
        if lab.gateways[side].alive {
            return;
        }
        let behind = if self.stale && lab.below(2) == 0 { 1 + lab.below(8) as usize } else { 0 };
        let behind = if self.one_file && side == 1 { 0 } else { behind };
        let sas: Vec<SaId> = lab.gateways[side].plane.sas.keys().copied().collect();
        let gone = if self.lossy && lab.below(2) == 0 { lab.below(1000) } else { 0 };
        let lost: BTreeSet<SaId> = sas.into_iter().filter(|_| lab.below(1000) < gone).collect();
        let renew = lab.below(4) == 0;
        lab.come_back(side, vec![self.policy(side)], Back { behind, lost, renew, ..Back::default() });
    }

    fn happen(self, lab: &mut Lab) {
        let side = lab.below(2) as usize;
        match lab.below(8) {
            0..=2 => {
                // Now, or in the middle of what comes next.
                if lab.below(2) == 0 {
                    lab.kill(side);
                } else {
                    lab.gateways[side].dies_after = Some(lab.below(6) as usize);
                }
            }
            3 => lab.command(side, Command::RekeyChildren(TUNNEL)),
            4 => lab.command(side, Command::RekeyIke(TUNNEL)),
            5 => {
                let sas: Vec<_> = lab.gateways[side].plane.sas.keys().copied().collect();
                let pick = lab.below(sas.len().max(1) as u64) as usize;
                let hard = lab.below(2) == 0;
                if let Some(sa) = sas.get(pick) {
                    lab.input(side, Input::Expired { sa: *sa, hard });
                }
            }
            6 => {
                let index = lab.below(u64::from(self.children)) as u16;
                lab.probe(side, ChildId { tunnel: TUNNEL, index });
            }
            _ => (0..2).for_each(|side| self.revive(lab, side)),
        }
    }
}

fn storm(seed: u64) {
    storm_at(Plan::new(seed), seed, Pace::AT_ONCE);
}

/// The same with key exchanges that take long or are never done.
fn slow_storm(seed: u64) {
    let plan = Plan { one_file: true, ..Plan::new(seed) };
    storm_at(plan, seed, if seed.is_multiple_of(2) { Pace::SLOW } else { Pace::LOSSY });
}

/// The same with additional key exchanges, of which some are half made when a process dies.
fn hybrid_storm(seed: u64) {
    let plan = Plan { hybrid: true, one_file: true, ..Plan::new(seed) };
    storm_at(plan, seed, [Pace::AT_ONCE, Pace::SLOW, Pace::LOSSY][(seed / 3 % 3) as usize]);
}

fn storm_at(plan: Plan, seed: u64, pace: Pace) {
    let policies = plan.policies();
    let mut lab = Lab::new(seed, Link::BAD, plan.policies());
    lab.set_pace(pace);
    lab.nat.public = plan.nat.then(|| PUBLIC.parse().unwrap());
    lab.run(Duration::from_secs(20));
    for _ in 0..10 {
        plan.happen(&mut lab);
        let pause = 1 + lab.below(4000);
        lab.run(Duration::from_millis(pause));
        lab.assert_inside(&policies);
    }
    // The weather clears, and whoever is dead comes back.
    lab.link = Link::GOOD;
    lab.set_pace(Pace { loss: 0, ..pace });
    for side in 0..2 {
        lab.gateways[side].dies_after = None;
        plan.revive(&mut lab, side);
    }
    lab.run(Duration::from_secs(600));
    let wakes = lab.wakes.clone();
    lab.run(Duration::from_secs(300));
    for (side, before) in wakes.into_iter().enumerate() {
        let woken = lab.wakes[side] - before;
        assert!(woken < 150, "seed {seed}: {woken} timers in five quiet minutes at gateway {side}");
    }
    lab.assert_consistent();
    lab.assert_coverage(&policies);

    (0..2).for_each(|side| lab.command(side, Command::Shutdown));
    lab.run(Duration::from_secs(120));
    (0..2).for_each(|side| lab.assert_gone(side));
}

/// On a good link, with records as they must be: nothing is lost, whatever was on its way. One end dies at a time, and not
/// while it still mends what the last death had interrupted: an IKE SA that is only half negotiated is not kept.
fn calm(seed: u64) {
    let plan = Plan { stale: false, lossy: false, nat: false, split: false, ..Plan::new(seed) };
    let mut lab = Lab::new(seed, Link::GOOD, plan.policies());
    lab.run(Duration::from_secs(5));
    let mut next = lab.now().mono;
    for step in 0..8000u64 {
        // While one IKE SA takes the place of another one, both would make new keys.
        let settled = lab.gateways.iter().all(|g| !g.alive || g.endpoint.sa_count() == 1);
        if step % 500 == 0 && settled {
            let side = lab.below(2) as usize;
            match lab.below(3) {
                0 => lab.command(side, Command::RekeyIke(TUNNEL)),
                _ => lab.command(side, Command::RekeyChildren(TUNNEL)),
            }
            if lab.below(4) == 0 {
                lab.command(1 - side, Command::RekeyChildren(TUNNEL));
            }
        }
        let now = lab.now().mono;
        let armed = lab.gateways.iter().any(|g| g.dies_after.is_some());
        match lab.gateways.iter().position(|g| !g.alive) {
            Some(dead) if now >= next => {
                plan.revive(&mut lab, dead);
                next = now + Duration::from_millis(700);
            }
            None if now >= next && !armed && lab.below(50) == 0 => {
                // Everything that it was about to do, and nothing after it.
                let side = lab.below(2) as usize;
                lab.gateways[side].dies_after = Some(usize::MAX);
                next = now + Duration::from_millis(lab.below(400));
            }
            _ => {}
        }
        for side in 0..2 {
            lab.probe(side, ChildId { tunnel: TUNNEL, index: 0 });
        }
        lab.run(Duration::from_millis(1));
        assert_eq!(lab.probes.1, 0, "seed {seed}: packets were lost");
    }
}

#[test]
fn processes_that_die_in_bad_weather_end_in_agreement() {
    let failed = failures(seeds(5_000), storm);
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
}

#[test]
fn slow_processes_that_die_in_bad_weather_end_in_agreement() {
    let failed = failures(seeds(2000), slow_storm);
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
}

#[test]
fn hybrid_processes_that_die_in_bad_weather_end_in_agreement() {
    let failed = failures(seeds(2000), hybrid_storm);
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
}

#[test]
fn processes_that_die_on_a_good_link_lose_no_packet() {
    let failed = failures(seeds(500), calm);
    assert!(failed.is_empty(), "{} seeds failed: {failed:?}", failed.len());
}

/// Prints what happened under one seed, with `CYGNET_SIM_CALM=1` on a good link, with `CYGNET_SIM_SLOW=1` slowly, with
/// `CYGNET_SIM_HYBRID=1` of the hybrid ones:
/// `CYGNET_SIM_TELL=1 CYGNET_SIM_FIRST=24 cargo test -p cygnet-sim --test restarts -- --ignored --nocapture`.
#[test]
#[ignore = "a tool for people: tells the story of one seed"]
fn story() {
    let seed = seeds(1).start;
    let run = if std::env::var_os("CYGNET_SIM_CALM").is_some() {
        calm
    } else if std::env::var_os("CYGNET_SIM_SLOW").is_some() {
        slow_storm
    } else if std::env::var_os("CYGNET_SIM_HYBRID").is_some() {
        hybrid_storm
    } else {
        storm
    };
    let told = std::panic::catch_unwind(|| run(seed));
    assert!(told.is_ok(), "seed {seed}");
}
