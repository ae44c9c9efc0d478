//! Layouts brought about in a kernel in memory that refuses what a kernel refuses, and that is disturbed: where packets go
//! is asked after each step.

use cygnet_model::tunnel::GuardSpec;
use cygnet_reconcile::{Stuck, bring};
use proptest::prelude::*;

use super::super::layout::Host as LayoutHost;
use super::super::testing::{End, lookup, walk};
use super::*;
use crate::plane::testing::{guard_of, net};

const TUN: &str = "tun9";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Refusal {
    Exists,
    Absent,
    Fault,
}

/// What a kernel has of ours.
#[derive(Clone, Default, Debug)]
struct State {
    device: Option<pieces::Device>,
    /// In their order.
    rules: Vec<Rule>,
    routes: BTreeSet<Route>,
}

#[derive(Default)]
struct Kernel {
    now: State,
    /// After each step.
    history: Vec<State>,
    /// Which calls are refused, from the last on.
    faults: Vec<bool>,
}

const UP: pieces::Device = pieces::Device { ours: true, mtu: 1400, up: true };

impl Kernel {
    fn step(&mut self, step: &Step<Piece>) -> Result<(), Refusal> {
        let State { device, rules, routes } = &mut self.now;
        let place = |route: &Route| Piece::Route(*route).place();
        match step {
            Step::Add(Piece::Device(_)) if device.is_some() => return Err(Refusal::Exists),
            Step::Add(Piece::Device(new)) | Step::Put(Piece::Device(new)) => *device = Some(*new),
            Step::Remove(Piece::Device(_)) => panic!("nobody removes the device"),
            Step::Add(Piece::Rule { rule, .. }) => {
                let at = rules
                    .partition_point(|there| (there.family, there.priority) <= (rule.family, rule.priority));
                rules.insert(at, rule.clone());
            }
            Step::Put(Piece::Rule { .. }) => panic!("rules do not change"),
            Step::Remove(Piece::Rule { rule, .. }) => {
                let at = rules.iter().position(|there| there == rule).ok_or(Refusal::Absent)?;
                rules.remove(at);
            }
            Step::Add(Piece::Route(route)) | Step::Put(Piece::Route(route)) => {
                let there = routes.iter().find(|there| place(there) == place(route)).copied();
                let has_link = device.is_some_and(|device| device.ours && device.up);
                match (step, there) {
                    (Step::Add(_), Some(_)) => return Err(Refusal::Exists),
                    _ if matches!(route.via, Via::Link(_)) && !has_link => return Err(Refusal::Absent),
                    (_, Some(there)) => {
                        routes.remove(&there);
                    }
                    _ => {}
                }
                routes.insert(*route);
            }
            Step::Remove(Piece::Route(route)) => {
                if !routes.remove(route) {
                    return Err(Refusal::Absent);
                }
            }
        }
        self.history.push(self.now.clone());
        Ok(())
    }

    fn is_faulty(&mut self) -> bool {
        self.faults.pop().unwrap_or(false)
    }

    /// Somebody else takes something away.
    fn disturb(&mut self, how: Disturbance) {
        let State { device, rules, routes } = &mut self.now;
        match how {
            Disturbance::Rule(which) if !rules.is_empty() => {
                rules.remove(which.index(rules.len()));
            }
            Disturbance::Route(which) if !routes.is_empty() => {
                let route = *routes.iter().nth(which.index(routes.len())).unwrap();
                routes.remove(&route);
            }
            Disturbance::Device => {
                *device = None;
                routes.retain(|route| route.via == Via::Blackhole);
            }
            Disturbance::AllRules => rules.clear(),
            Disturbance::Rule(_) | Disturbance::Route(_) | Disturbance::Nothing => {}
        }
        self.history.clear();
    }
}

impl World for Kernel {
    type Object = Piece;
    type Error = Refusal;

    fn look(&mut self) -> Result<Vec<Piece>, Refusal> {
        if self.is_faulty() {
            return Err(Refusal::Fault);
        }
        let State { device, rules, routes } = self.now.clone();
        let device = device.map(Piece::Device).into_iter();
        Ok(device
            .chain(routes.into_iter().map(Piece::Route))
            .chain(rules.into_iter().map(Piece::rule))
            .collect())
    }

    fn run(&mut self, steps: &[Step<Piece>]) -> Vec<Result<(), Refusal>> {
        let mut answers = Vec::new();
        for step in steps {
            let answer = if self.is_faulty() { Err(Refusal::Fault) } else { self.step(step) };
            answers.push(answer);
        }
        answers
    }
}

#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Nothing,
    Rule(prop::sample::Index),
    Route(prop::sample::Index),
    Device,
    AllRules,
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    let which = any::<prop::sample::Index>();
    prop_oneof![
        Just(Disturbance::Nothing),
        which.clone().prop_map(Disturbance::Rule),
        which.prop_map(Disturbance::Route),
        Just(Disturbance::Device),
        Just(Disturbance::AllRules),
    ]
}

const NETS: [&str; 6] =
    ["10.1.0.0/16", "10.1.7.0/24", "10.2.0.0/16", "10.3.0.0/16", "10.3.9.0/24", "0.0.0.0/0"];

fn guards() -> impl Strategy<Value = Vec<GuardSpec>> {
    let pair = (0..NETS.len() - 1, 0..NETS.len()).prop_filter("two networks", |(l, r)| l != r);
    prop::collection::vec(pair, 1..7).prop_map(|pairs| {
        let guard =
            |(n, (l, r)): (usize, (usize, usize))| guard_of(n as u32 + 1, &[net(NETS[l])], &[net(NETS[r])]);
        pairs.into_iter().enumerate().map(guard).collect()
    })
}

/// A layout and the tables that it has used.
fn wanted(goal: &mut Goal, guards: &[GuardSpec], tables: &mut TableNumbers) {
    let sockets = BTreeSet::from(["192.0.2.1:4500".parse().unwrap()]);
    let own = BTreeSet::from(["10.1.0.1".parse().unwrap()]);
    let (sources, attached) = Default::default();
    let host = LayoutHost { tun: TUN, sockets: &sockets, own: &own, sources: &sources, attached: &attached };
    let layout = Layout::new(guards, &host, tables);
    let (first, exit) = windows::PLACED;
    goal.rules = Family::ALL.map(|family| (family, layout.place(family, first, exit, TUN).unwrap())).into();
    goal.routes = layout.routes;
}

fn go(kernel: &mut Kernel, goal: &mut Goal) -> Result<usize, Stuck<Piece, Refusal>> {
    bring(kernel, |_, seen| goal.plan(seen, Some(UP)).unwrap().0)
}

/// How look-ups between all networks end, from the local side and from outside.
fn ends(state: &State) -> Vec<(String, End)> {
    let own = BTreeSet::from(["10.1.0.1".parse().unwrap()]);
    let addresses = ["10.1.0.2", "10.1.7.2", "10.2.0.2", "10.3.0.2", "10.3.9.2", "203.0.113.9"];
    let mut ends = Vec::new();
    for from in addresses.into_iter().chain(["-"]) {
        for to in addresses {
            for iif in ["lan", "lo"] {
                let (end, _) = walk(&state.rules, &state.routes, &lookup(iif, from, to), &own);
                ends.push((format!("{from} to {to} by {iif}"), end));
            }
        }
    }
    ends
}

/// What was kept from passing, and is in the end, was kept from it after each step; and what is nobody's, and was nobody's
/// before somebody disturbed what was `intact`, was let alone.
fn assert_held(intact: &State, before: &State, kernel: &Kernel) -> Result<(), TestCaseError> {
    let (before, after) = (ends(before), ends(&kernel.now));
    let intact = ends(intact);
    for (at, state) in kernel.history.iter().enumerate() {
        for (((now, before), after), intact) in ends(state).into_iter().zip(&before).zip(&after).zip(&intact)
        {
            if before.1 != End::Main && after.1 != End::Main {
                prop_assert!(now.1 != End::Main, "{} passes after step {at}", now.0);
            }
            if [intact.1, before.1, after.1] == [End::Main; 3] {
                prop_assert!(now.1 == End::Main, "{} is caught after step {at}", now.0);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Guards come into force, change, are disturbed, and survive a restart, and whatever is refused on the way is made
    /// good later.
    #[test]
    fn layouts_take_each_others_place_and_nothing_leaks(
        first in guards(),
        second in guards(),
        how in disturbance(),
        restart in any::<bool>(),
        faults in prop::collection::vec(any::<bool>(), 0..12),
    ) {
        let (mut kernel, mut goal, mut tables) =
            (Kernel::default(), Goal::default(), TableNumbers::default());
        kernel.now.device = Some(UP);
        wanted(&mut goal, &first, &mut tables);
        go(&mut kernel, &mut goal).unwrap();
        if restart {
            kernel.disturb(Disturbance::Device);
            kernel.now.device = Some(UP);
            let windows = Family::ALL.map(|family| {
                let rules: Vec<Rule> =
                    kernel.now.rules.iter().filter(|rule| rule.family == family).cloned().collect();
                (family, windows::open(family, &rules))
            });
            let inherited = Inherited { windows: windows.into(), routes: kernel.now.routes.clone() };
            tables = TableNumbers::beyond(&kernel.now.routes);
            goal = Goal { inherited: Some(inherited), ..Goal::default() };
        }
        let intact = kernel.now.clone();
        kernel.disturb(how);
        let before = kernel.now.clone();
        kernel.faults = faults;
        wanted(&mut goal, &second, &mut tables);
        let mut tries = 0;
        while go(&mut kernel, &mut goal).is_err() {
            tries += 1;
            prop_assert!(tries < 30);
        }
        assert_held(&intact, &before, &kernel)?;

        let (settling, _) = (kernel.now.clone(), kernel.history.clear());
        goal.inherited = None;
        go(&mut kernel, &mut goal).unwrap();
        assert_held(&settling, &settling, &kernel)?;
        prop_assert_eq!(go(&mut kernel, &mut goal).unwrap(), 0, "the second time nothing is left to do");
        let (mut fresh, mut anew) = (Kernel::default(), Goal::default());
        fresh.now.device = Some(UP);
        wanted(&mut anew, &second, &mut TableNumbers::default());
        go(&mut fresh, &mut anew).unwrap();
        prop_assert_eq!(ends(&kernel.now), ends(&fresh.now));
        prop_assert_eq!(&kernel.now.routes.len(), &fresh.now.routes.len(), "no route is left over");
        prop_assert!(goal.left.is_empty());
        prop_assert_eq!(kernel.now.rules.len(), fresh.now.rules.len(), "no rule is left over");
    }

    /// All of it goes, whatever there is.
    #[test]
    fn what_nobody_wants_goes(first in guards(), how in disturbance()) {
        let (mut kernel, mut goal, mut tables) =
            (Kernel::default(), Goal::default(), TableNumbers::default());
        wanted(&mut goal, &first, &mut tables);
        go(&mut kernel, &mut goal).unwrap();
        kernel.disturb(how);
        go(&mut kernel, &mut Goal::default()).unwrap();
        prop_assert!(kernel.now.rules.is_empty() && kernel.now.routes.is_empty());
    }
}

#[test]
fn a_device_that_somebody_deleted_is_made_anew_with_its_routes_alone() {
    let (mut kernel, mut goal) = (Kernel::default(), Goal::default());
    kernel.now.device = Some(UP);
    let guard = guard_of(1, &[net("10.1.0.0/16")], &[net("10.2.0.0/16")]);
    wanted(&mut goal, &[guard], &mut TableNumbers::default());
    go(&mut kernel, &mut goal).unwrap();
    let rules = kernel.now.rules.clone();
    kernel.disturb(Disturbance::Device);
    let (_, repaired) = goal.plan(kernel.look().unwrap(), Some(UP)).unwrap();
    assert!(repaired.device && repaired.count > 0, "{repaired:?}");
    go(&mut kernel, &mut goal).unwrap();
    assert_eq!(kernel.now.device, Some(UP));
    assert_eq!(kernel.now.rules, rules);
    assert_eq!(kernel.now.routes, goal.routes);
}

#[test]
fn a_device_of_somebody_else_with_our_name_is_not_touched_and_guards_hold() {
    let (mut kernel, mut goal) = (Kernel::default(), Goal::default());
    let theirs = pieces::Device { ours: false, mtu: 1500, up: false };
    kernel.now.device = Some(theirs);
    let guard = guard_of(1, &[net("10.1.0.0/16")], &[net("10.2.0.0/16")]);
    wanted(&mut goal, &[guard], &mut TableNumbers::default());
    go(&mut kernel, &mut goal).unwrap();
    assert_eq!(kernel.now.device, Some(theirs));
    let (plan, _) = goal.plan(kernel.look().unwrap(), Some(UP)).unwrap();
    assert!(!plan.taken().is_empty(), "it is told");
    let way = lookup("lan", "10.1.0.2", "10.2.0.2");
    assert_eq!(walk(&kernel.now.rules, &kernel.now.routes, &way, &BTreeSet::new()).0, End::Dropped);
}

#[test]
fn four_windows_of_earlier_processes_leave_no_room() {
    let full: Vec<Rule> = (0..4)
        .map(|window| Rule::new(Family::V4, FIRST_PRIORITY + window * 1000 + 5, Verdict::Blackhole, OWNER))
        .collect();
    let kept = windows::open(Family::V4, &full);
    assert_eq!(kept.len(), 4);
    let one = [Rule::new(Family::V4, windows::PLACED.0, Verdict::Nop, OWNER)];
    assert!(windows::next(Family::V4, &one, &full, Some(&kept)).is_err());
}
