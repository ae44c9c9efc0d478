//! A kernel in memory that refuses what a kernel refuses, and can be made to refuse more.

use std::collections::BTreeMap;

use crate::{Object, Step, World};

/// Why a step was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Something is in its place (EEXIST).
    Exists,
    /// What it is about, or rests on, is not there (ENOENT).
    Absent,
    /// Something holds on to it (EBUSY).
    Busy,
    /// As the test wants it (ENOBUFS, ENOMEM, a dump that was interrupted).
    Fault,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Kernel<O: Object> {
    objects: BTreeMap<O::Place, Vec<O>>,
    /// Faults to come: each call to `look` or step takes one; `true` is refused.
    pub faults: Vec<bool>,
    /// What it held after each step that it took.
    pub history: Vec<Vec<O>>,
}

impl<O: Object> Kernel<O> {
    /// A kernel that holds some objects.
    pub fn new(objects: impl IntoIterator<Item = O>) -> Self {
        let mut kernel = Self { objects: BTreeMap::new(), faults: Vec::new(), history: Vec::new() };
        for object in objects {
            kernel.objects.entry(object.place()).or_default().push(object);
        }
        kernel
    }

    /// What it holds, in the order of places.
    pub fn objects(&self) -> Vec<O> {
        self.objects.values().flatten().cloned().collect()
    }

    /// Takes an object away behind everybody's back, with what rests on it.
    pub fn lose(&mut self, place: &O::Place) {
        self.objects.remove(place);
        let on_it: Vec<O::Place> = self
            .objects
            .iter()
            .filter(|(_, objects)| objects.iter().any(|o| o.rests_on().as_ref() == Some(place)))
            .map(|(place, _)| place.clone())
            .collect();
        on_it.iter().for_each(|place| self.lose(place));
    }

    /// Does one step.
    ///
    /// # Errors
    /// As the kernel would.
    pub fn step(&mut self, step: &Step<O>) -> Result<(), Refusal> {
        let object = step.object();
        let place = object.place();
        let is_there = |place: Option<O::Place>| place.is_none_or(|p| self.objects.contains_key(&p));
        match step {
            Step::Add(_) if self.objects.contains_key(&place) => return Err(Refusal::Exists),
            Step::Put(_) | Step::Remove(_) if !self.objects.contains_key(&place) => {
                return Err(Refusal::Absent);
            }
            Step::Add(_) | Step::Put(_) => {
                if !(is_there(object.rests_on()) && is_there(object.holds_on_to())) {
                    return Err(Refusal::Absent);
                }
                let there = self.objects.entry(place).or_default();
                match there.first_mut() {
                    Some(first) => *first = object.clone(),
                    None => there.push(object.clone()),
                }
            }
            Step::Remove(_) => {
                let all = self.objects.get(&place).map_or(&[][..], Vec::as_slice);
                let at = all.iter().position(|there| there.is(object)).ok_or(Refusal::Absent)?;
                let is_last = all.len() == 1;
                let holds = |other: &O| {
                    other.holds_on_to().as_ref() == Some(&place) && other.rests_on().as_ref() != Some(&place)
                };
                if is_last && self.objects.values().flatten().any(holds) {
                    return Err(Refusal::Busy);
                }
                if is_last {
                    self.lose(&place);
                } else if let Some(all) = self.objects.get_mut(&place) {
                    all.remove(at);
                }
            }
        }
        self.history.push(self.objects());
        Ok(())
    }

    fn is_faulty(&mut self) -> bool {
        self.faults.pop().unwrap_or(false)
    }
}

impl<O: Object> World for Kernel<O> {
    type Object = O;
    type Error = Refusal;

    fn look(&mut self) -> Result<Vec<O>, Refusal> {
        if self.is_faulty() { Err(Refusal::Fault) } else { Ok(self.objects()) }
    }

    fn run(&mut self, steps: &[Step<O>]) -> Vec<Result<(), Refusal>> {
        let one = |step| if self.is_faulty() { Err(Refusal::Fault) } else { self.step(step) };
        steps.iter().map(one).collect()
    }
}
