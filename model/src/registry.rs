//! Which tunnel and which child has which number. Names come and go with the configuration; a number that has been given
//! out is not given to another tunnel, so that what the kernel or a client still knows by it is never taken for something
//! else.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{ChildId, TunnelId};

/// Numbers of tunnels and of their children, by name.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Registry {
    tunnels: BTreeMap<String, Entry>,
    names: BTreeMap<TunnelId, String>,
    /// The next number of a tunnel.
    next: u32,
}

/// A tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    id: TunnelId,
    children: BTreeMap<String, u16>,
    /// Where the search for the next number of a child begins.
    next: u16,
}

/// A tunnel as it is kept: name, number, the next number of a child, and the children by what they protect.
pub type Row = (String, u32, u16, BTreeMap<String, u16>);

/// All numbers have been given out: whoever begins anew may count from 0 again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exhausted;

impl Registry {
    /// Takes over a configuration: tunnels by name, each with the names of its children. What is new gets numbers, what
    /// stays keeps them, what is gone is forgotten.
    ///
    /// # Errors
    /// If there is no number left; nothing has changed then.
    pub fn follow<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = (&'a str, Vec<String>)>,
    ) -> Result<(), Exhausted> {
        let mut next = self.next;
        let mut tunnels = BTreeMap::new();
        for (name, children) in wanted {
            let entry = match self.tunnels.get(name) {
                Some(entry) => entry.clone(),
                None => {
                    let id = TunnelId(next);
                    next = next.checked_add(1).filter(|n| *n <= TunnelId::LIMIT).ok_or(Exhausted)?;
                    Entry { id, children: BTreeMap::new(), next: 0 }
                }
            };
            tunnels.insert(name.to_owned(), entry.follow(children)?);
        }
        self.next = next;
        self.names = tunnels.iter().map(|(name, entry)| (entry.id, name.clone())).collect();
        self.tunnels = tunnels;
        Ok(())
    }

    /// The number of a tunnel.
    pub fn tunnel(&self, name: &str) -> Option<TunnelId> {
        self.tunnels.get(name).map(|entry| entry.id)
    }

    /// The name of a tunnel that is there.
    pub fn name(&self, id: TunnelId) -> Option<&str> {
        self.names.get(&id).map(String::as_str)
    }

    /// The number of a child of a tunnel.
    pub fn child(&self, tunnel: &str, child: &str) -> Option<ChildId> {
        let entry = self.tunnels.get(tunnel)?;
        Some(ChildId { tunnel: entry.id, index: *entry.children.get(child)? })
    }

    /// Whether so many numbers have been given out that it is better to count from 0 again where nothing is known by them.
    pub const fn is_worn(&self) -> bool {
        self.next > TunnelId::LIMIT / 2
    }

    /// What is to be kept: the next number of a tunnel, and the tunnels.
    pub fn rows(&self) -> (u32, impl Iterator<Item = Row>) {
        let row = |(name, e): (&String, &Entry)| (name.clone(), e.id.0, e.next, e.children.clone());
        (self.next, self.tunnels.iter().map(row))
    }

    /// What was kept. `None` if it makes no sense, as with one number for two.
    pub fn from_rows(next: u32, rows: impl IntoIterator<Item = Row>) -> Option<Self> {
        let mut registry = Self { next, ..Self::default() };
        for (name, id, next, children) in rows {
            let numbers: BTreeSet<u16> = children.values().copied().collect();
            let good = id < registry.next
                && registry.next <= TunnelId::LIMIT
                && numbers.len() == children.len()
                && numbers.last().is_none_or(|n| *n < ChildId::CONFIGURED);
            let id = TunnelId(id);
            if !good || registry.names.insert(id, name.clone()).is_some() {
                return None;
            }
            let entry = Entry { id, children, next: next % ChildId::CONFIGURED };
            if registry.tunnels.insert(name, entry).is_some() {
                return None;
            }
        }
        Some(registry)
    }
}

impl Entry {
    /// The same with these children. Numbers go round, so that one that was given up rests as long as possible.
    fn follow(mut self, wanted: Vec<String>) -> Result<Self, Exhausted> {
        let mut children = BTreeMap::new();
        let mut new = Vec::new();
        for name in wanted {
            match self.children.get(&name) {
                Some(index) => {
                    children.insert(name, *index);
                }
                None => new.push(name),
            }
        }
        // Those that go now are still in use for a moment.
        let mut taken: BTreeSet<u16> = self.children.values().copied().collect();
        for name in new {
            let round = (self.next..ChildId::CONFIGURED).chain(0..self.next);
            let index = round.into_iter().find(|index| !taken.contains(index)).ok_or(Exhausted)?;
            taken.insert(index);
            self.next = (index + 1) % ChildId::CONFIGURED;
            children.insert(name, index);
        }
        self.children = children;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(list: &[(&'static str, &[&str])]) -> Vec<(&'static str, Vec<String>)> {
        list.iter().map(|(t, c)| (*t, c.iter().map(|c| (*c).to_owned()).collect())).collect()
    }

    #[test]
    fn numbers_stay_whatever_the_order_and_whoever_goes() {
        let mut r = Registry::default();
        r.follow(names(&[("a", &["x", "y"]), ("b", &["x"])])).unwrap();
        assert_eq!((r.tunnel("a"), r.tunnel("b")), (Some(TunnelId(0)), Some(TunnelId(1))));
        r.follow(names(&[("c", &[]), ("b", &["z", "x"])])).unwrap();
        assert_eq!(
            (r.tunnel("a"), r.tunnel("b"), r.tunnel("c")),
            (None, Some(TunnelId(1)), Some(TunnelId(2)))
        );
        assert_eq!(r.child("b", "x"), Some(ChildId { tunnel: TunnelId(1), index: 0 }));
        assert_eq!(r.child("b", "z"), Some(ChildId { tunnel: TunnelId(1), index: 1 }));
        assert_eq!((r.name(TunnelId(1)), r.name(TunnelId(0))), (Some("b"), None));
        r.follow(names(&[("a", &[])])).unwrap();
        assert_eq!(r.tunnel("a"), Some(TunnelId(3)), "it is another one of that name");
    }

    #[test]
    fn what_makes_no_sense_is_not_taken_back() {
        let row = |name: &str, id, children: &[(&str, u16)]| {
            (name.to_owned(), id, 0, children.iter().map(|(n, i)| ((*n).to_owned(), *i)).collect())
        };
        assert!(Registry::from_rows(2, [row("a", 0, &[("x", 0)]), row("b", 1, &[])]).is_some());
        for (next, rows) in [
            (2, vec![row("a", 0, &[]), row("b", 0, &[])]),
            (1, vec![row("a", 1, &[])]),
            (TunnelId::LIMIT + 1, vec![row("a", 1, &[])]),
            (2, vec![row("a", 1, &[("x", 3), ("y", 3)])]),
            (2, vec![row("a", 1, &[("x", ChildId::CONFIGURED)])]),
            (2, vec![row("a", 0, &[]), row("a", 1, &[])]),
        ] {
            assert_eq!(Registry::from_rows(next, rows.clone()), None, "{rows:?}");
        }
    }

    #[test]
    fn who_has_no_number_left_says_so_and_changes_nothing() {
        let mut r = Registry::from_rows(TunnelId::LIMIT, []).unwrap();
        assert!(r.is_worn());
        let before = r.clone();
        assert_eq!(r.follow(names(&[("a", &[])])), Err(Exhausted));
        assert_eq!(r, before);
    }

    proptest! {
        /// Over any history: a number never goes to another tunnel, children of one tunnel never share one, one that is
        /// kept stays, and what is written down reads back as the same.
        #[test]
        fn numbers_are_never_given_to_another(
            history in proptest::collection::vec(
                proptest::collection::btree_map(0u8..6, proptest::collection::btree_set(0u8..5, 0..4), 0..6), 1..30),
        ) {
            let mut r = Registry::default();
            let mut owner: BTreeMap<TunnelId, String> = BTreeMap::new();
            for wanted in history {
                let before = r.clone();
                let all: Vec<(String, Vec<String>)> = wanted
                    .iter()
                    .map(|(t, c)| (t.to_string(), c.iter().map(ToString::to_string).collect()))
                    .collect();
                r.follow(all.iter().map(|(t, c)| (t.as_str(), c.clone()))).unwrap();
                for (tunnel, children) in &all {
                    let id = r.tunnel(tunnel).unwrap();
                    match before.tunnel(tunnel) {
                        Some(old) => prop_assert_eq!(old, id),
                        None => prop_assert!(owner.insert(id, tunnel.clone()).is_none(), "it was given out before"),
                    }
                    let mut seen = BTreeSet::new();
                    for child in children {
                        let now = r.child(tunnel, child).unwrap();
                        prop_assert!(seen.insert(now.index));
                        match before.child(tunnel, child) {
                            Some(old) => prop_assert_eq!(old, now),
                            None => prop_assert!(before.tunnels.get(tunnel).is_none_or(|e| !e.children.values().any(|i| *i == now.index))),
                        }
                    }
                }
                let (next, rows) = r.rows();
                prop_assert_eq!(Registry::from_rows(next, rows), Some(r.clone()));
            }
        }
    }
}
