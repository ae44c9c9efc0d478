//! What a kind of object says of itself, and what can be done with one.

/// What an object does to packets that a guard covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Keeps packets from passing in clear text, carries what does, or has nothing to do with it: comes first, goes last.
    Holds,
    /// Lets packets by, or hides what would hold them: comes last, goes first.
    LetsBy,
    /// Does nothing where it stands, but might when something opens: is cleared away before anything else is done.
    Rests,
}

/// An object of the kernel as far as it matters here.
pub trait Object: Clone {
    /// Where it is. The kernel has one object in each place. The order is that in which objects are added: what others
    /// rest on comes before them.
    type Place: Ord + Clone;

    /// Its place.
    fn place(&self) -> Self::Place;

    /// Whether this one, as the kernel shows it, is what is wanted in its place.
    fn is(&self, wanted: &Self) -> bool;

    /// What it does to packets.
    fn effect(&self) -> Effect {
        Effect::Holds
    }

    /// What must be there before it, and takes it along when it goes.
    fn rests_on(&self) -> Option<Self::Place> {
        None
    }

    /// What must be there before it, and cannot go while it is there.
    fn holds_on_to(&self) -> Option<Self::Place> {
        None
    }
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step<O> {
    /// Makes it where nothing is. Where something is after all, whoever has it, the step is to be refused.
    Add(O),
    /// Makes it out of the object of ours that is in its place, without a gap.
    Put(O),
    /// Takes away what was seen.
    Remove(O),
}

impl<O> Step<O> {
    /// The object that is there afterwards, or is not.
    pub const fn object(&self) -> &O {
        match self {
            Self::Add(object) | Self::Put(object) | Self::Remove(object) => object,
        }
    }
}
