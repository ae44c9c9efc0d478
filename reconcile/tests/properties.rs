//! What holds of every plan, over made-up states of a kernel with all kinds of objects.

use std::collections::BTreeSet;

use cygnet_reconcile::testing::{Kernel, Refusal};
use cygnet_reconcile::{Effect, Object, Step, Stuck, World, bring, plan};
use proptest::prelude::*;

/// Each kind that cygnet has, in the order in which they come; numbers stand for names, prefixes, tables and rates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Link(u8),
    Address { link: u8, n: u8 },
    Route { n: u8, out_of: Option<u8> },
    Rule { n: u8, to: u8 },
    Policy { prefix: Prefix, action: Action },
    Qdisc { link: u8 },
    Class { link: u8, n: u8, rate: u8 },
    Filter { link: u8, n: u8, class: u8 },
    Table { version: u8 },
}

/// Packets are numbers below 16; a prefix covers those that agree with it in the first bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Prefix {
    bits: u8,
    len: u8,
}

impl Prefix {
    fn new(bits: u8, len: u8) -> Self {
        Self { bits: bits >> (4 - len) << (4 - len), len }
    }

    fn covers(self, packet: u8) -> bool {
        Self::new(packet, self.len) == self
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Action {
    Block,
    Protect(u8),
    Allow,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Thing {
    kind: Kind,
    ours: bool,
}

fn ours(kind: Kind) -> Thing {
    Thing { kind, ours: true }
}

impl Object for Thing {
    type Place = Kind;

    /// The kind with what may change in place taken out.
    fn place(&self) -> Kind {
        match self.kind {
            Kind::Route { n, .. } => Kind::Route { n, out_of: None },
            Kind::Policy { prefix, .. } => Kind::Policy { prefix, action: Action::Block },
            Kind::Class { link, n, .. } => Kind::Class { link, n, rate: 0 },
            Kind::Table { .. } => Kind::Table { version: 0 },
            kind => kind,
        }
    }

    fn is(&self, wanted: &Self) -> bool {
        self.kind == wanted.kind
    }

    fn effect(&self) -> Effect {
        let lets_by = matches!(self.kind, Kind::Policy { action: Action::Allow, .. });
        if lets_by { Effect::LetsBy } else { Effect::Holds }
    }

    fn rests_on(&self) -> Option<Kind> {
        match self.kind {
            Kind::Route { out_of: Some(link), .. } | Kind::Address { link, .. } | Kind::Qdisc { link } => {
                Some(Kind::Link(link))
            }
            Kind::Class { link, .. } | Kind::Filter { link, .. } => Some(Kind::Qdisc { link }),
            _ => None,
        }
    }

    fn holds_on_to(&self) -> Option<Kind> {
        match self.kind {
            Kind::Filter { link, class, .. } => Some(Kind::Class { link, n: class, rate: 0 }),
            Kind::Rule { to, .. } => Some(Kind::Route { n: to, out_of: None }),
            _ => None,
        }
    }
}

/// Whether a packet cannot pass in clear text: the narrowest policy that covers it says so.
fn is_held(objects: &[Thing], packet: u8) -> bool {
    let policies = objects.iter().filter_map(|thing| match thing.kind {
        Kind::Policy { prefix, action } if prefix.covers(packet) => Some((prefix.len, action)),
        _ => None,
    });
    policies.max_by_key(|(len, _)| *len).is_some_and(|(_, action)| action != Action::Allow)
}

fn kind() -> impl Strategy<Value = Kind> {
    let action = prop_oneof![Just(Action::Block), (0u8..2).prop_map(Action::Protect), Just(Action::Allow)];
    prop_oneof![
        (0u8..2).prop_map(Kind::Link),
        (0u8..2, 0u8..2).prop_map(|(link, n)| Kind::Address { link, n }),
        (0u8..3, prop::option::of(0u8..2)).prop_map(|(n, out_of)| Kind::Route { n, out_of }),
        (0u8..3, 0u8..3).prop_map(|(n, to)| Kind::Rule { n, to }),
        (0u8..16, 0u8..4, action)
            .prop_map(|(bits, len, action)| Kind::Policy { prefix: Prefix::new(bits, len), action }),
        (0u8..2).prop_map(|link| Kind::Qdisc { link }),
        (0u8..2, 0u8..3, 0u8..3).prop_map(|(link, n, rate)| Kind::Class { link, n, rate }),
        (0u8..2, 0u8..2, 0u8..3).prop_map(|(link, n, class)| Kind::Filter { link, n, class }),
        (0u8..2).prop_map(|version| Kind::Table { version }),
    ]
}

/// A state that a kernel can be in: one object in each place, upon what it needs.
fn state(foreign: bool) -> impl Strategy<Value = Vec<Thing>> {
    let owner = if foreign { prop::bool::weighted(0.75).boxed() } else { Just(true).boxed() };
    prop::collection::vec((kind(), owner), 0..24).prop_map(|mut things| {
        things.sort_unstable();
        let mut kernel = Kernel::new([]);
        for (kind, ours) in things {
            let _ = kernel.step(&Step::Add(Thing { kind, ours }));
        }
        kernel.objects()
    })
}

/// Ours and others', of which the latter do not rest on the former.
fn seen() -> impl Strategy<Value = Vec<Thing>> {
    state(true).prop_map(|mut things| {
        let needs = |of: &Thing| [of.rests_on(), of.holds_on_to()].into_iter().flatten();
        for _ in 0..4 {
            let needed: BTreeSet<Kind> = things.iter().filter(|thing| !thing.ours).flat_map(needs).collect();
            things.iter_mut().filter(|t| needed.contains(&t.place())).for_each(|thing| thing.ours = false);
        }
        things
    })
}

fn step_by_step(kernel: &mut Kernel<Thing>, want: &[Thing]) -> Result<usize, Stuck<Thing, Refusal>> {
    bring(kernel, |_, seen| plan(want.iter().copied(), seen, |thing| thing.ours))
}

/// What is there in the end: others' objects, and of ours what is wanted and not in their way; where it is, ours stays as
/// it was, unless what it rests on is wanted no more and takes it along.
fn wanted_in_the_end(want: &[Thing], seen: &[Thing]) -> Vec<Thing> {
    let plan = plan(want.iter().copied(), seen.iter().copied(), |thing| thing.ours);
    let taken: BTreeSet<Thing> = plan.taken().iter().copied().collect();
    let places: BTreeSet<Kind> = taken.iter().map(Object::place).collect();
    let wanted: BTreeSet<Kind> = want.iter().map(Object::place).collect();
    let stays = |thing: &&Thing| !thing.ours || places.contains(&thing.place());
    let goes_along = |thing: &Thing| {
        let under = thing.rests_on().and_then(|under| seen.iter().find(|t| t.place() == under));
        under.is_some_and(|under| under.ours && !wanted.contains(&under.place()))
    };
    let mut end: Vec<Thing> =
        seen.iter().filter(stays).filter(|t| !t.ours || !goes_along(t)).copied().collect();
    end.extend(want.iter().filter(|thing| !taken.contains(thing)));
    end.sort_unstable_by_key(Object::place);
    end
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_plan_reaches_what_is_wanted_and_the_next_one_is_empty(want in state(false), seen in seen()) {
        let end = wanted_in_the_end(&want, &seen);
        let mut kernel = Kernel::new(seen.clone());
        let plan = plan(want.iter().copied(), seen, |thing| thing.ours);
        for step in plan.steps() {
            prop_assert_eq!(kernel.step(step), Ok(()), "{:?} of {:?}", step, plan);
        }
        prop_assert_eq!(kernel.objects(), end);
        prop_assert_eq!(step_by_step(&mut kernel, &want).unwrap(), 0);
    }

    #[test]
    fn a_plan_that_was_cut_short_is_gone_on_with(
        want in state(false), seen in seen(), cut in 0usize..30,
    ) {
        let end = wanted_in_the_end(&want, &seen);
        let mut kernel = Kernel::new(seen.clone());
        let plan = plan(want.iter().copied(), seen, |thing| thing.ours);
        for step in plan.steps().take(cut) {
            kernel.step(step).unwrap();
        }
        step_by_step(&mut kernel, &want).unwrap();
        prop_assert_eq!(kernel.objects(), end);
    }

    #[test]
    fn what_is_as_wanted_and_what_is_not_ours_has_no_step(want in state(false), seen in seen()) {
        let plan = plan(want.iter().copied(), seen.iter().copied(), |thing| thing.ours);
        for step in plan.steps() {
            let there = seen.iter().find(|thing| thing.place() == step.object().place());
            prop_assert!(there.is_none_or(|there| there.ours), "{step:?} in the place of {there:?}");
            let is_unchanged = there.is_some_and(|there| want.contains(there));
            prop_assert!(!is_unchanged, "{step:?} of what is as wanted");
        }
    }

    #[test]
    fn what_is_held_before_and_after_is_held_after_each_step(want in state(false), seen in seen()) {
        let mut kernel = Kernel::new(seen.clone());
        step_by_step(&mut kernel, &want).unwrap();
        let end = kernel.objects();
        for packet in (0..16).filter(|packet| is_held(&seen, *packet) && is_held(&end, *packet)) {
            for (at, objects) in kernel.history.iter().enumerate() {
                prop_assert!(is_held(objects, packet), "packet {packet} after step {at}: {objects:?}");
            }
        }
    }

    /// Faults in any place: what is held stays held, nothing of others is touched, and the attempts after the faults
    /// make it whole.
    #[test]
    fn refusals_leave_guards_in_force_and_are_made_good_later(
        want in state(false), seen in seen(), faults in prop::collection::vec(any::<bool>(), 0..20),
    ) {
        let end = wanted_in_the_end(&want, &seen);
        let mut kernel = Kernel::new(seen.clone());
        kernel.faults = faults;
        for _ in 0..25 {
            if step_by_step(&mut kernel, &want).is_ok() {
                break;
            }
        }
        prop_assert_eq!(kernel.objects(), end.clone());
        for packet in (0..16).filter(|packet| is_held(&seen, *packet) && is_held(&end, *packet)) {
            prop_assert!(kernel.history.iter().all(|objects| is_held(objects, packet)), "packet {packet}");
        }
        for foreign in seen.iter().filter(|thing| !thing.ours) {
            prop_assert!(kernel.history.iter().all(|objects| objects.contains(foreign)), "{foreign:?}");
        }
    }

    #[test]
    fn what_somebody_takes_away_comes_back(want in state(false), which in any::<prop::sample::Index>()) {
        let mut kernel = Kernel::new(want.clone());
        prop_assume!(!want.is_empty());
        kernel.lose(&which.get(&want).place());
        prop_assert!(step_by_step(&mut kernel, &want).unwrap() > 0);
        prop_assert_eq!(kernel.objects(), want);
    }
}

#[test]
fn a_narrow_guard_comes_before_what_a_wide_one_lets_by_and_goes_after_it() {
    let policy = |bits, len, action| ours(Kind::Policy { prefix: Prefix::new(bits, len), action });
    let (wide, by) = (policy(0, 0, Action::Block), policy(0, 1, Action::Allow));
    let narrow = policy(0, 2, Action::Block);
    let there = plan([wide, by, narrow], [wide], |thing| thing.ours);
    assert_eq!(there.steps().cloned().collect::<Vec<_>>(), [Step::Add(narrow), Step::Add(by)]);
    let back = plan([wide], [wide, by, narrow], |thing| thing.ours);
    assert_eq!(back.steps().cloned().collect::<Vec<_>>(), [Step::Remove(by), Step::Remove(narrow)]);
}

#[test]
fn what_goes_along_with_what_it_rests_on_has_no_step_of_its_own() {
    let seen = [
        Kind::Link(0),
        Kind::Qdisc { link: 0 },
        Kind::Class { link: 0, n: 1, rate: 1 },
        Kind::Filter { link: 0, n: 1, class: 1 },
    ]
    .map(ours);
    let steps = plan([seen[0]], seen, |thing| thing.ours);
    assert_eq!(steps.steps().cloned().collect::<Vec<_>>(), [Step::Remove(seen[1])]);
}

#[test]
fn what_stays_in_the_way_of_others_goes_with_what_it_rests_on() {
    let route = |link| ours(Kind::Route { n: 0, out_of: Some(link) });
    let (taken, old) = (Thing { kind: Kind::Link(0), ours: false }, ours(Kind::Link(1)));
    let want = [ours(Kind::Link(0)), route(0)];
    let mut kernel = Kernel::new([taken, old, route(1)]);
    let plan = plan(want, kernel.objects(), |thing| thing.ours);
    assert_eq!(
        (plan.taken(), plan.steps().cloned().collect::<Vec<_>>()),
        (&want[..], vec![Step::Remove(old)])
    );
    step_by_step(&mut kernel, &want).unwrap();
    assert_eq!(kernel.objects(), [taken], "nothing is left that leads nowhere");
}

#[test]
fn a_step_that_is_refused_again_is_told_and_later_phases_do_not_begin() {
    struct Stubborn(Kernel<Thing>);
    impl World for Stubborn {
        type Object = Thing;
        type Error = Refusal;
        fn look(&mut self) -> Result<Vec<Thing>, Refusal> {
            self.0.look()
        }
        fn run(&mut self, steps: &[Step<Thing>]) -> Vec<Result<(), Refusal>> {
            let is_refused = |step: &Step<Thing>| matches!(step, Step::Add(_));
            steps.iter().map(|s| if is_refused(s) { Err(Refusal::Fault) } else { self.0.step(s) }).collect()
        }
    }
    let policy = |len| ours(Kind::Policy { prefix: Prefix::new(0, len), action: Action::Block });
    let mut world = Stubborn(Kernel::new([policy(1)]));
    let stuck = bring(&mut world, |_, seen| plan([policy(2)], seen, |thing| thing.ours));
    assert!(
        matches!(&stuck, Err(Stuck::Refused(step, Refusal::Fault)) if matches!(**step, Step::Add(_))),
        "{stuck:?}"
    );
    assert_eq!(world.0.objects(), [policy(1)], "the old one goes when the new one is there");
}
