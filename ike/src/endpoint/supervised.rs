//! How each tunnel is kept up, with the moments of the next tries in order, and which tunnels have changed since somebody
//! last asked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use cygnet_model::{Timestamp, TunnelId};

use crate::error::Trouble;

/// How one tunnel is kept up.
#[derive(Default)]
pub(super) struct Supervision {
    /// It should be up.
    pub wanted: bool,
    /// Failures since it was last up.
    pub failures: u32,
    /// When it will be tried again. In the past while it waits for its turn.
    pub retry_at: Option<Timestamp>,
    /// IKE SAs that were negotiated in a row to replace one whose keys could not be renewed, and when the next may be.
    pub renewals: (u32, Timestamp),
    /// What works now and will need attention.
    pub lesson: Option<Trouble>,
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Supervised {
    of: BTreeMap<TunnelId, Supervision>,
    /// Tries that are not due yet.
    retries: BTreeSet<(Timestamp, TunnelId)>,
    changed: BTreeSet<TunnelId>,
}

impl Supervised {
    /// How a tunnel is kept up.
    pub fn get(&self, id: &TunnelId) -> Option<&Supervision> {
        self.of.get(id)
    }

    /// The same to be changed.
    pub fn get_mut(&mut self, id: &TunnelId) -> Option<Edit<'_>> {
        let Self { of, retries, changed } = self;
        let of = of.get_mut(id)?;
        Some(Edit { id: *id, before: of.retry_at, of, retries, changed })
    }

    /// Takes a tunnel in, unless it is there.
    pub fn enroll(&mut self, id: TunnelId, new: impl FnOnce() -> Supervision) {
        if !self.of.contains_key(&id) {
            let new = new();
            self.retries.extend(new.retry_at.map(|at| (at, id)));
            self.of.insert(id, new);
        }
        self.changed.insert(id);
    }

    /// Forgets a tunnel.
    pub fn remove(&mut self, id: &TunnelId) {
        if let Some(at) = self.of.remove(id).and_then(|gone| gone.retry_at) {
            self.retries.remove(&(at, *id));
        }
        self.changed.remove(id);
    }

    /// When the next try is due.
    pub fn next_retry(&self) -> Option<Timestamp> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// A tunnel whose try is due. It is given once, and keeps its `retry_at` until it is tried.
    pub fn due(&mut self, now: Timestamp) -> Option<TunnelId> {
        let (at, id) = *self.retries.first().filter(|(at, _)| *at <= now)?;
        self.retries.remove(&(at, id));
        Some(id)
    }

    /// Notes that something of a tunnel may look different now.
    pub fn note(&mut self, id: TunnelId) {
        if self.of.contains_key(&id) {
            self.changed.insert(id);
        }
    }

    /// Tunnels that may look different than when this was last asked.
    pub fn take_changed(&mut self) -> BTreeSet<TunnelId> {
        std::mem::take(&mut self.changed)
    }
}

/// A tunnel's supervision while it is being changed.
pub(super) struct Edit<'a> {
    id: TunnelId,
    before: Option<Timestamp>,
    of: &'a mut Supervision,
    retries: &'a mut BTreeSet<(Timestamp, TunnelId)>,
    changed: &'a mut BTreeSet<TunnelId>,
}

impl Deref for Edit<'_> {
    type Target = Supervision;

    fn deref(&self) -> &Supervision {
        self.of
    }
}

impl DerefMut for Edit<'_> {
    fn deref_mut(&mut self) -> &mut Supervision {
        self.of
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        if self.of.retry_at != self.before {
            if let Some(before) = self.before {
                self.retries.remove(&(before, self.id));
            }
            self.retries.extend(self.of.retry_at.map(|at| (at, self.id)));
        }
        self.changed.insert(self.id);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_next_try_is_the_earliest_of_all(
            steps in prop::collection::vec((0u32..4, prop::option::of(1u64..20), 0u8..4), 0..60),
        ) {
            let mut s = Supervised::default();
            let mut given: BTreeSet<TunnelId> = BTreeSet::new();
            for (id, at, step) in steps {
                let (id, at) = (TunnelId(id), at.map(Timestamp::from_nanos));
                match step {
                    0 => {
                        let known = s.get(&id).is_some();
                        s.enroll(id, || Supervision { retry_at: at, ..Supervision::default() });
                        if !known { given.remove(&id); }
                    }
                    1 => s.remove(&id),
                    2 => {
                        if let Some(mut edit) = s.get_mut(&id) {
                            if edit.retry_at != at { given.remove(&id); }
                            edit.retry_at = at;
                        }
                    }
                    _ => given.extend(s.due(at.unwrap_or_default())),
                }
                let walked = (0..4).map(TunnelId)
                    .filter(|id| !given.contains(id))
                    .filter_map(|id| s.get(&id)?.retry_at)
                    .min();
                prop_assert_eq!(s.next_retry(), walked);
            }
        }
    }
}
