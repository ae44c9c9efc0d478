//! From what is seen to what is wanted, as steps in an order that leaks nothing.
//!
//! | phase | steps | because |
//! |---|---|---|
//! | 1 | what rests goes | it must not come to life by the steps below |
//! | 2 | what holds comes, or changes in place | packets are held by the new before the old goes |
//! | 3 | what lets by goes | while both the old and the new hold |
//! | 4 | what lets by comes | everything that holds is there, the narrow within the wide as well |
//! | 5 | what holds goes | nothing lets by any more what it held |
//!
//! A packet that is held both by what is seen and by what is wanted is held after each step: until phase 4 begins
//! everything that holds it by either is there and nothing lets by that did not before; from then on everything that is
//! wanted is there. This needs that a phase begins only when the one before was done whole: see [`Plan::carry_out`].

use std::collections::{BTreeMap, BTreeSet};

use crate::object::{Effect, Object, Step};

const PHASES: usize = 5;

/// What is wanted and what is seen in one place.
#[derive(Clone, Debug)]
pub struct At<O> {
    /// What shall be there.
    pub want: Option<O>,
    /// What is there. More than one is possible where the kernel does not look for equal ones.
    pub seen: Vec<O>,
}

impl<O> Default for At<O> {
    fn default() -> Self {
        Self { want: None, seen: Vec::new() }
    }
}

/// Steps in phases.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan<O> {
    phases: [Vec<Step<O>>; PHASES],
    taken: Vec<O>,
}

/// The steps from `seen` to `want`. Nothing is touched that is not `owned`: an object that is wanted in the place of such a
/// one, or upon it, has no step ([`Plan::taken`]).
pub fn plan<O: Object>(
    want: impl IntoIterator<Item = O>,
    seen: impl IntoIterator<Item = O>,
    owned: impl Fn(&O) -> bool,
) -> Plan<O> {
    let mut places: BTreeMap<O::Place, At<O>> = BTreeMap::new();
    for object in want {
        let place = object.place();
        places.entry(place).or_default().want = Some(object);
    }
    for object in seen {
        let place = object.place();
        places.entry(place).or_default().seen.push(object);
    }
    plan_at(places, owned)
}

/// The same for some places alone, in their order; what is not among them is as wanted.
pub fn plan_at<O: Object>(
    places: impl IntoIterator<Item = (O::Place, At<O>)>,
    owned: impl Fn(&O) -> bool,
) -> Plan<O> {
    let mut plan = Plan::default();
    let mut withheld = BTreeSet::new();
    let mut gone = BTreeSet::new();
    for (place, At { want, seen }) in places {
        let is_taken = seen.iter().any(|object| !owned(object));
        let Some(want) = want else {
            let goes_along = |object: &O| object.rests_on().is_some_and(|under| gone.contains(&under));
            let ours = seen.into_iter().filter(|object| owned(object) && !goes_along(object));
            ours.for_each(|object| plan.remove(object));
            if !is_taken {
                gone.insert(place);
            }
            continue;
        };
        let under = [want.rests_on(), want.holds_on_to()];
        if is_taken || under.iter().flatten().any(|under| withheld.contains(under)) {
            withheld.insert(place);
            plan.taken.push(want);
            continue;
        }
        match seen.iter().position(|object| object.is(&want)) {
            Some(kept) => {
                let spare = seen.into_iter().enumerate().filter(|(at, _)| *at != kept);
                spare.for_each(|(_, object)| plan.remove(object));
            }
            None if seen.is_empty() => plan.make(Step::Add(want)),
            None => {
                plan.make(Step::Put(want));
                seen.into_iter().skip(1).for_each(|object| plan.remove(object));
            }
        }
    }
    // What rests on others goes before them.
    for (at, phase) in plan.phases.iter_mut().enumerate() {
        if at % 2 == 0 {
            phase.reverse();
        }
    }
    plan
}

impl<O> Default for Plan<O> {
    fn default() -> Self {
        Self { phases: [const { Vec::new() }; PHASES], taken: Vec::new() }
    }
}

/// What became of a plan.
#[derive(Debug)]
pub struct Outcome<O, E> {
    /// Steps that were done.
    pub done: usize,
    /// Those that were refused, with the reason. Later phases were not begun then.
    pub refused: Vec<(Step<O>, E)>,
}

impl<O> Plan<O> {
    /// Whether all is as wanted, but for what is [taken](Self::taken).
    pub fn is_empty(&self) -> bool {
        self.phases.iter().all(Vec::is_empty)
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.phases.iter().map(Vec::len).sum()
    }

    /// The steps in their order.
    pub fn steps(&self) -> impl Iterator<Item = &Step<O>> {
        self.phases.iter().flatten()
    }

    /// What is wanted in places that others have, or upon these.
    pub fn taken(&self) -> &[O] {
        &self.taken
    }

    /// Hands the steps of each phase to `run`, which answers each in its order and stops where it likes. The next phase
    /// begins when all of it was done.
    pub fn carry_out<E>(self, mut run: impl FnMut(&[Step<O>]) -> Vec<Result<(), E>>) -> Outcome<O, E> {
        let mut outcome = Outcome { done: 0, refused: Vec::new() };
        for phase in self.phases.into_iter().filter(|phase| !phase.is_empty()) {
            let results = run(&phase);
            let is_whole = results.len() == phase.len();
            for (step, result) in phase.into_iter().zip(results) {
                match result {
                    Ok(()) => outcome.done += 1,
                    Err(e) => outcome.refused.push((step, e)),
                }
            }
            if !is_whole || !outcome.refused.is_empty() {
                break;
            }
        }
        outcome
    }
}

impl<O: Object> Plan<O> {
    fn make(&mut self, step: Step<O>) {
        let at = if step.object().effect() == Effect::LetsBy { 3 } else { 1 };
        self.push(at, step);
    }

    fn remove(&mut self, object: O) {
        let at = match object.effect() {
            Effect::Rests => 0,
            Effect::LetsBy => 2,
            Effect::Holds => 4,
        };
        self.push(at, Step::Remove(object));
    }

    fn push(&mut self, at: usize, step: Step<O>) {
        if let Some(phase) = self.phases.get_mut(at) {
            phase.push(step);
        }
    }
}
