//! Additional key exchanges (RFC 9370): up to seven beside the first one, so that a classic and a post-quantum method protect
//! the same keys, and both would have to be broken.
//!
//! Each has a transform type of its own, ADDKE1 to ADDKE7. They are written `ke1_mlkem768` and so on, as strongSwan's users
//! know them.

use std::fmt;

use crate::suite::Group;

/// Which of the seven: ADDKE1 to ADDKE7, which are made in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AddKe(u8);

impl AddKe {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// The IANA transform type before that of ADDKE1.
    const BASE: u8 = 5;

    /// The one of this number, 1 to 7.
    pub fn new(number: u8) -> Option<Self> {
        (1..=7).contains(&number).then_some(Self(number))
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=7).map(Self)
    }

    /// Its number, 1 to 7.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// IANA transform type, 6 to 12.
    pub const fn transform_type(self) -> u8 {
        Self::BASE + self.0
    }

    /// The one of a transform type.
    pub fn from_transform_type(number: u8) -> Option<Self> {
        Self::new(number.checked_sub(Self::BASE)?)
    }

    const fn index(self) -> usize {
        self.0 as usize - 1
    }
}

/// One value for each of the seven.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PerAddKe<T>([T; AddKe::COUNT]);

impl<T> PerAddKe<T> {
    /// The value of one.
    #[expect(clippy::indexing_slicing, reason = "an AddKe is 1 to 7")]
    pub const fn get(&self, which: AddKe) -> &T {
        &self.0[which.index()]
    }

    /// The same, to be changed.
    #[expect(clippy::indexing_slicing, reason = "an AddKe is 1 to 7")]
    pub const fn get_mut(&mut self, which: AddKe) -> &mut T {
        &mut self.0[which.index()]
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (AddKe, &T)> {
        AddKe::all().zip(&self.0)
    }
}

/// The additional key exchanges that two ends agreed on, each of another method.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Additional(PerAddKe<Option<Group>>);

impl Additional {
    /// None.
    pub const NONE: Self = Self(PerAddKe([None; AddKe::COUNT]));

    /// Adds one. What was there before is replaced.
    pub const fn set(&mut self, which: AddKe, method: Group) {
        *self.0.get_mut(which) = Some(method);
    }

    /// The method of one.
    pub const fn get(&self, which: AddKe) -> Option<Group> {
        *self.0.get(which)
    }

    /// Those that there are, in the order in which they are made (RFC 9370 §2.2.2).
    pub fn iter(&self) -> impl Iterator<Item = (AddKe, Group)> + '_ {
        self.0.iter().filter_map(|(which, method)| Some((which, (*method)?)))
    }

    /// The method of the one that comes next, when so many are made; `None` after the last.
    pub fn after(&self, made: u32) -> Option<Group> {
        self.iter().nth(made as usize).map(|(_, method)| method)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

impl fmt::Display for Additional {
    /// `-ke1_mlkem768`, behind the other keywords of a suite; nothing if there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(which, method)| write!(f, "-{}", keyword(which, Some(method))))
    }
}

/// The additional key exchanges that a proposal names: for each of the seven the acceptable methods, preferred first. `None`
/// among them: it may be left out. Empty: it is left out.
pub type AdditionalOffer = PerAddKe<Vec<Option<Group>>>;

impl AdditionalOffer {
    /// Whether a proposal names none.
    pub fn is_empty(&self) -> bool {
        self.iter().all(|(_, methods)| methods.is_empty())
    }

    /// The offer of exactly this.
    pub fn only(chosen: &Additional) -> Self {
        let mut offer = Self::default();
        for (which, method) in chosen.iter() {
            *offer.get_mut(which) = vec![Some(method)];
        }
        offer
    }

    /// What both ends can make, by the order of this one: of each the first method that the other end names too and that no
    /// other key exchange of the negotiation uses (RFC 9370 §2.2.1 wants them to differ). `None` if there is one on which they
    /// cannot agree.
    pub fn choose(&self, theirs: &Self, first: Option<Group>) -> Option<Additional> {
        let mut used: Vec<Group> = first.into_iter().collect();
        self.choose_from(1, theirs, &mut used, Additional::NONE)
    }

    /// The same of those from this number on, beside what is used before. At most as many ways are tried as our own lists
    /// have, whatever a peer names.
    fn choose_from(
        &self,
        number: u8,
        theirs: &Self,
        used: &mut Vec<Group>,
        chosen: Additional,
    ) -> Option<Additional> {
        const LEFT_OUT: &[Option<Group>] = &[None];
        let Some(which) = AddKe::new(number) else { return Some(chosen) };
        let of = |offer| -> &[Option<Group>] {
            let methods: &Vec<_> = Self::get(offer, which);
            if methods.is_empty() { LEFT_OUT } else { methods }
        };
        let theirs_here = of(theirs);
        for method in of(self).iter().filter(|method| theirs_here.contains(method)) {
            let mut with = chosen;
            if let Some(method) = *method {
                if used.contains(&method) {
                    continue;
                }
                with.set(which, method);
                used.push(method);
            }
            if let Some(all) = self.choose_from(number + 1, theirs, used, with) {
                return Some(all);
            }
            if method.is_some() {
                used.pop();
            }
        }
        None
    }

    /// Whether these are among what is offered.
    pub fn allows(&self, chosen: &Additional) -> bool {
        self.iter().all(|(which, methods)| {
            let method = chosen.get(which);
            methods.contains(&method) || (methods.is_empty() && method.is_none())
        })
    }

    /// The keywords of all methods.
    pub fn keywords(&self) -> impl Iterator<Item = String> + '_ {
        self.iter().flat_map(|(which, methods)| methods.iter().map(move |method| keyword(which, *method)))
    }

    /// Every method that is named.
    pub fn methods(&self) -> impl Iterator<Item = Group> + '_ {
        self.iter().flat_map(|(_, methods)| methods.iter().copied().flatten())
    }
}

/// `ke1_mlkem768`, or `ke1_none` for one that may be left out.
pub fn keyword(which: AddKe, method: Option<Group>) -> String {
    format!("ke{}_{}", which.number(), method.map_or("none", Group::keyword))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(all: &[(u8, &[Option<Group>])]) -> AdditionalOffer {
        let mut offer = AdditionalOffer::default();
        for (number, methods) in all {
            *offer.get_mut(AddKe::new(*number).unwrap()) = methods.to_vec();
        }
        offer
    }

    const A: Option<Group> = Some(Group::MlKem768);
    const B: Option<Group> = Some(Group::MlKem1024);
    const C: Option<Group> = Some(Group::Ecp384);

    #[test]
    fn each_is_agreed_on_by_itself_and_no_method_is_taken_twice() {
        let chosen = |ours: &AdditionalOffer, theirs: &AdditionalOffer| {
            ours.choose(theirs, Some(Group::X25519))
                .map(|c| c.iter().map(|(w, g)| (w.number(), g)).collect::<Vec<_>>())
        };
        let ours = offer(&[(1, &[A, B])]);
        assert_eq!(chosen(&ours, &offer(&[(1, &[B, A])])), Some(vec![(1, Group::MlKem768)]));
        assert_eq!(chosen(&ours, &offer(&[(1, &[B])])), Some(vec![(1, Group::MlKem1024)]));
        assert_eq!(chosen(&ours, &offer(&[(1, &[C])])), None);
        // What one end leaves out the other must be able to leave out.
        assert_eq!(chosen(&ours, &offer(&[])), None);
        assert_eq!(chosen(&offer(&[]), &ours), None);
        assert_eq!(chosen(&offer(&[(1, &[A, None])]), &offer(&[])), Some(vec![]));
        assert_eq!(chosen(&ours, &offer(&[(1, &[A]), (2, &[None, C])])), Some(vec![(1, Group::MlKem768)]));
        // The second one is another method than the first, and neither is that of the KE payload.
        let twice = offer(&[(1, &[A, B]), (3, &[A, B])]);
        assert_eq!(chosen(&twice, &twice), Some(vec![(1, Group::MlKem768), (3, Group::MlKem1024)]));
        assert_eq!(offer(&[(1, &[C])]).choose(&offer(&[(1, &[C])]), C), None);
        // What is preferred gives way to what makes the rest possible.
        let narrow = offer(&[(1, &[A, B]), (2, &[A])]);
        assert_eq!(chosen(&narrow, &narrow), Some(vec![(1, Group::MlKem1024), (2, Group::MlKem768)]));
    }

    #[test]
    fn the_next_one_is_that_of_the_next_number_that_there_is() {
        let mut chosen = Additional::NONE;
        chosen.set(AddKe(4), Group::Ecp384);
        chosen.set(AddKe(2), Group::MlKem768);
        let next = [0, 1, 2, u32::MAX].map(|made| chosen.after(made));
        assert_eq!(next, [A, C, None, None]);
        assert_eq!(Additional::NONE.after(0), None);
    }

    #[test]
    fn what_was_chosen_is_allowed_and_is_shown_in_the_words_of_the_configuration() {
        let ours = offer(&[(1, &[A, None]), (2, &[C])]);
        let chosen = ours.choose(&offer(&[(2, &[C])]), None).unwrap();
        assert!(ours.allows(&chosen) && AdditionalOffer::only(&chosen).allows(&chosen));
        assert!(!ours.allows(&Additional::NONE));
        assert_eq!(chosen.to_string(), "-ke2_ecp384");
        assert_eq!(ours.keywords().collect::<Vec<_>>(), ["ke1_mlkem768", "ke1_none", "ke2_ecp384"]);
        assert_eq!(Additional::NONE.to_string(), "");
        assert_eq!(AddKe::all().map(AddKe::transform_type).collect::<Vec<_>>(), [6, 7, 8, 9, 10, 11, 12]);
        assert!(AddKe::all().all(|a| AddKe::from_transform_type(a.transform_type()) == Some(a)));
        assert_eq!((AddKe::from_transform_type(5), AddKe::from_transform_type(13)), (None, None));
    }
}
