//! Several gateways with several tunnels between them, to which everything happens in one history: bad weather, ways that
//! are cut, jobs that are slow or lost, data planes that refuse, processes that die and come back from what was kept now,
//! before, or not at all, and configurations that change at one end or both.
//!
//! `plan` says what a seed is about, `events` what happens, `reference` what must be up in the end and what must hold
//! at any moment, `traffic` sends packets through it.
//!
//! What it does not have: NAT and addresses that change (both are in other tests, of two gateways); files that are rolled
//! back at both ends of one tunnel (decision 0110); data planes that tell of a failure after something else has come in
//! (the driver calls them and waits).

mod events;
mod plan;
mod reference;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cygnet_ike::{Command, TunnelPolicy};
use cygnet_model::TunnelId;
use cygnet_model::registry::Registry;
use cygnet_model::tunnel::SaId;

use self::plan::{Entry, Plan, Tunnel, address, child_name};
use self::reference::Shall;
use crate::{Back, Lab, Link, Pace, Seeded, copy};

/// See the [module](self).
pub struct Fleet {
    lab: Lab,
    seed: u64,
    plan: Plan,
    /// What the configurations of both ends say of each tunnel; `None`: nothing.
    entries: Vec<[Option<Entry>; 2]>,
    /// Each gateway's numbers, which outlive its processes.
    registries: Vec<Registry>,
    /// What each gateway follows, or followed when it died.
    running: Vec<Vec<TunnelPolicy>>,
    /// Which tunnel a gateway's number means, or has meant.
    numbers: BTreeMap<(usize, TunnelId), usize>,
    /// What operators have told running gateways of their tunnels.
    words: BTreeMap<(usize, TunnelId), Word>,
    /// Tunnels that were ever taken up by command.
    roused: BTreeSet<usize>,
    /// Most IKE SAs and SAs of one tunnel at one end so far.
    most: (usize, usize),
}

/// The last word of an operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    Up,
    Down,
}

/// Who follows a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Process {
    Runs,
    Begins,
}

/// What a history came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// How long the weather had to be fair.
    pub settled: Duration,
    /// How many tunnels there may have been, and how many were up in the end.
    pub tunnels: (usize, usize),
    /// Most IKE SAs and SAs of one tunnel at one end.
    pub most: (usize, usize),
}

/// Pauses between events: shorter than an exchange, and longer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(4));
/// How long the weather is fair before it is asked what is up, and how much longer it may take: a peer that is silent is
/// found out after a minute, and what failed is tried again after up to five.
const FAIR: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(900));

impl Fleet {
    fn new(seed: u64) -> Self {
        let plan = Plan::random(&mut Seeded::new(seed ^ 0x0f1e_e700_0000_0000));
        let mut lab = Lab::of(seed, Link::BAD, (0..plan.gateways).map(address));
        lab.set_pace(plan.pace);
        let mut fleet = Self {
            seed,
            entries: vec![[None; 2]; plan.tunnels.len()],
            registries: vec![Registry::default(); plan.gateways],
            running: (0..plan.gateways).map(|_| Vec::new()).collect(),
            numbers: BTreeMap::new(),
            words: BTreeMap::new(),
            roused: BTreeSet::new(),
            most: (0, 0),
            plan,
            lab,
        };
        for tunnel in 0..fleet.entries.len() {
            let entry = Entry::random(&mut fleet.lab.random);
            fleet.entries[tunnel] = [Some(entry); 2];
            if fleet.lab.below(8) == 0 {
                let end = fleet.lab.below(2) as usize;
                fleet.entries[tunnel][end] = None;
            }
        }
        if fleet.lab.tells {
            eprintln!("{:#?}", fleet.plan);
        }
        (0..fleet.plan.gateways).for_each(|gateway| fleet.reload(gateway));
        fleet
    }

    /// Lives through one seed.
    ///
    /// # Panics
    /// If anything is not as it must be.
    pub fn live(seed: u64) -> Outcome {
        let mut fleet = Self::new(seed);
        fleet.run(Duration::from_secs(8));
        for _ in 0..8 + fleet.lab.below(32) {
            fleet.happen();
            // Many things happen while an exchange is on its way.
            let longest = if fleet.lab.below(2) == 0 { PAUSE.0 } else { PAUSE.1 };
            let pause = fleet.lab.below(longest.as_nanos() as u64);
            fleet.run(Duration::from_nanos(pause));
        }
        fleet.clear_up();
        let settled = fleet.settle();
        let up = fleet.plan.tunnels.iter().filter(|t| fleet.shall(t) == Shall::BeUp).count();
        fleet.end();
        Outcome { settled, tunnels: (fleet.plan.tunnels.len(), up), most: fleet.most }
    }

    /// Lets time pass, and packets, and looks at what must always hold.
    fn run(&mut self, span: Duration) {
        self.lab.run(span);
        self.traffic();
        self.assert_bounds();
    }

    /// What a gateway's configuration says by now, with its numbers.
    fn policies(&mut self, gateway: usize) -> Vec<TunnelPolicy> {
        let mut all = Vec::new();
        for t in &self.plan.tunnels {
            let end = t.end(gateway);
            let entry = end.and_then(|end| Some((end, self.entries[t.number][end]?)));
            all.extend(entry.map(|(end, entry)| (t.number, t.policy(end, entry))));
        }
        let registry = &mut self.registries[gateway];
        let names = |p: &TunnelPolicy| p.children.iter().map(|(_, c)| child_name(c)).collect();
        registry.follow(all.iter().map(|(_, p)| (p.name.as_str(), names(p)))).expect("enough numbers");
        let mut numbered = Vec::new();
        for (number, mut p) in all {
            p.id = registry.tunnel(&p.name).expect("it was registered");
            let child = |c: &_| registry.child(&p.name, &child_name(c)).expect("it was registered").index;
            p.children = p.children.iter().map(|(_, c)| (child(c), c.clone())).collect();
            self.numbers.insert((gateway, p.id), number);
            numbered.push(p);
        }
        numbered
    }

    /// The same, for a process that is about to follow it.
    fn next(&mut self, gateway: usize, process: Process) -> Vec<TunnelPolicy> {
        let policies = self.policies(gateway);
        let before = std::mem::replace(&mut self.running[gateway], policies.iter().map(copy).collect());
        let start = |of: &[TunnelPolicy], id| of.iter().find(|p| p.id == id).map(|p| p.start);
        self.words.retain(|(of, id), word| {
            // What "up" has begun another choice of who begins ends; what is "down" stays so. A new process knows neither.
            let same = start(&before, *id) == start(&policies, *id) || *word == Word::Down;
            *of != gateway || (process == Process::Runs && same && start(&policies, *id).is_some())
        });
        policies
    }

    /// A gateway follows its configuration, if its process runs.
    fn reload(&mut self, gateway: usize) {
        if !self.lab.gateways[gateway].alive {
            return;
        }
        let policies = self.next(gateway, Process::Runs);
        let names = || policies.iter().map(|p| (&p.name, p.id.0, p.start)).collect::<Vec<_>>();
        self.lab.remark(gateway, format_args!("reloads {:?}", names()));
        self.lab.configure_all(gateway, policies);
    }

    /// The process of a gateway is started, if it does not run.
    fn revive(&mut self, gateway: usize) {
        if self.lab.gateways[gateway].alive {
            return;
        }
        let stale = self.plan.stale.contains(&gateway) && self.lab.below(2) == 0;
        let behind = if stale { 1 + self.lab.below(8) as usize } else { 0 };
        let gone = if self.lab.below(4) == 0 { self.lab.below(1000) } else { 0 };
        let sas: Vec<SaId> = self.lab.gateways[gateway].plane.sas.keys().copied().collect();
        let lost: BTreeSet<SaId> = sas.into_iter().filter(|_| self.lab.below(1000) < gone).collect();
        let renew = self.lab.below(4) == 0;
        let forgotten = self.lab.below(8) == 0;
        self.come_back(gateway, Back { behind, forgotten, lost, renew });
    }

    fn come_back(&mut self, gateway: usize, back: Back) {
        let policies = self.next(gateway, Process::Begins);
        self.lab.come_back(gateway, policies, back);
    }

    /// The weather clears, whoever is dead comes back but perhaps one, and the ends of most tunnels say the same.
    fn clear_up(&mut self) {
        self.lab.remark(0, "has fair weather");
        self.lab.link = Link::GOOD;
        self.lab.cut.clear();
        self.lab.set_pace(Pace { loss: 0, ..self.plan.pace });
        for g in &mut self.lab.gateways {
            g.plane.fail_next = 0;
            g.dies_after = None;
        }
        let dead = self.lab.below(8 * self.plan.gateways as u64) as usize;
        if dead < self.plan.gateways {
            self.lab.kill(dead);
        }
        for tunnel in 0..self.entries.len() {
            let from = self.lab.below(2) as usize;
            let same = self.lab.below(4) > 0;
            let said = self.entries[tunnel][from];
            match (said, &mut self.entries[tunnel][1 - from]) {
                (_, other) if same => *other = said,
                (Some(said), Some(other)) => {
                    let differ = |choice: &u32| !said.version.agrees(other.version, *choice);
                    let common = self.plan.common_choices(tunnel).filter(differ);
                    other.version = common.fold(other.version, |v, choice| v.but(u64::from(choice)));
                }
                _ => {}
            }
        }
        for gateway in (0..self.plan.gateways).filter(|gateway| *gateway != dead) {
            self.revive(gateway);
            self.reload(gateway);
        }
    }

    /// Everything becomes as it must be. How long it took.
    fn settle(&mut self) -> Duration {
        let mut passed = Duration::ZERO;
        loop {
            let step = if passed < FAIR.0 { Duration::from_secs(30) } else { Duration::from_secs(7) };
            self.run(step);
            passed += step;
            if passed >= FAIR.0 {
                match self.is_as_it_must_be() {
                    Ok(()) => return passed,
                    Err(e) => {
                        self.lab.remark(0, format_args!("and the others: {e}"));
                        assert!(passed < FAIR.1, "seed {}: {e}", self.seed);
                    }
                }
            }
        }
    }

    /// And everything can be taken down again.
    fn end(&mut self) {
        let alive: Vec<usize> = (0..self.plan.gateways).filter(|g| self.lab.gateways[*g].alive).collect();
        alive.iter().for_each(|gateway| self.lab.command(*gateway, Command::Shutdown));
        self.lab.run(Duration::from_secs(120));
        for gateway in alive {
            self.lab.assert_gone(gateway);
            let jobs = self.lab.gateways[gateway].endpoint.jobs();
            assert_eq!(jobs, 0, "seed {}: jobs of gateway {gateway}", self.seed);
        }
    }

    /// The policy that a gateway follows for a tunnel.
    fn policy(&self, gateway: usize, tunnel: &Tunnel) -> Option<&TunnelPolicy> {
        let mine = |p: &&TunnelPolicy| self.numbers.get(&(gateway, p.id)) == Some(&tunnel.number);
        self.running[gateway].iter().find(mine)
    }

    /// Which tunnel of the plan a gateway's number means, or has meant.
    fn number(&self, gateway: usize, tunnel: TunnelId) -> usize {
        *self.numbers.get(&(gateway, tunnel)).expect("a number that was given")
    }
}
