//! The loop: look, plan, do, and look again until nothing is left to do.

use crate::object::{Object, Step};
use crate::plan::{Outcome, Plan};

/// So often is looked before it is given up. A change takes two or three; more are needed only against somebody else's.
const LOOKS: usize = 8;

/// Something that holds objects: the kernel, or a model of it.
pub trait World {
    /// Its objects.
    type Object: Object;
    /// Why it refuses something.
    type Error;

    /// What is there now, ours and others', as far as it matters.
    ///
    /// # Errors
    /// If it cannot be known; a list that was cut short is no answer.
    fn look(&mut self) -> Result<Vec<Self::Object>, Self::Error>;

    /// Does steps in their order and answers each. It may stop early; what it does not answer was not done, or nobody
    /// knows.
    fn run(&mut self, steps: &[Step<Self::Object>]) -> Vec<Result<(), Self::Error>>;
}

/// Why a world is not as wanted. What was done stays done, and the next attempt goes on from there.
#[derive(Debug)]
pub enum Stuck<O, E> {
    /// It could not be looked at.
    Blind(E),
    /// A step is refused again and again.
    Refused(Box<Step<O>>, E),
    /// Every step was taken, and yet it never looks as wanted: somebody else works against us.
    Restless,
}

/// Brings a world to where `next` has no more steps for what is seen. Returns how many were done. A refusal is not the
/// end: it may have come too late, or the answer to what was done may have been lost, so the world is looked at once more.
///
/// # Errors
/// See [`Stuck`].
pub fn bring<W: World>(
    world: &mut W,
    mut next: impl FnMut(&mut W, Vec<W::Object>) -> Plan<W::Object>,
) -> Result<usize, Stuck<W::Object, W::Error>> {
    let mut total = 0;
    let mut before: Option<<W::Object as Object>::Place> = None;
    for _ in 0..LOOKS {
        let seen = world.look().map_err(Stuck::Blind)?;
        let plan = next(world, seen);
        if plan.is_empty() {
            return Ok(total);
        }
        let Outcome { done, refused } = plan.carry_out(|steps| world.run(steps));
        total += done;
        let Some((step, error)) = refused.into_iter().next() else {
            before = None;
            continue;
        };
        let place = step.object().place();
        if before.as_ref() == Some(&place) {
            return Err(Stuck::Refused(Box::new(step), error));
        }
        before = Some(place);
    }
    Err(Stuck::Restless)
}
