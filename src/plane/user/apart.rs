//! What this plane cannot keep apart: a packet that goes through a TUN device loses its mark, so that two children whose
//! selectors meet and differ by their marks would get each other's packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cygnet_model::ChildId;
use cygnet_model::tunnel::{GuardSpec, Mark};

/// Pairs of children whose selectors meet while their marks differ: the earlier child and the later one. At most one pair
/// for each later child. It costs nothing where no guard has a mark.
pub fn indistinguishable<'a>(guards: impl IntoIterator<Item = &'a GuardSpec>) -> Vec<(ChildId, ChildId)> {
    let guards: Vec<&GuardSpec> = guards.into_iter().collect();
    if guards.iter().all(|guard| guard.mark.is_none()) {
        return Vec::new();
    }
    // Remote ranges by where they begin. Those still open when another begins are its only rivals.
    let mut begins: Vec<(IpAddr, IpAddr, usize)> = Vec::new();
    for (at, guard) in guards.iter().enumerate() {
        begins.extend(guard.remote.iter().map(|remote| (remote.range.start(), remote.range.end(), at)));
    }
    begins.sort_unstable();
    let mut open: BTreeMap<MarkKey, Open> = BTreeMap::new();
    let mut found: BTreeMap<usize, usize> = BTreeMap::new();
    for (start, end, at) in begins {
        let Some(guard) = guards.get(at) else { continue };
        let own = key(guard.mark);
        for (mark, rivals) in &mut open {
            // Those that ended before this one begins.
            let alive = rivals.split_off(&(start, 0));
            *rivals = alive;
            if *mark == own {
                continue;
            }
            let meets =
                |other: &&(IpAddr, usize)| guards.get(other.1).is_some_and(|other| meet(guard, other));
            if let Some((_, other)) = rivals.iter().find(meets) {
                found.entry(at.max(*other)).or_insert(at.min(*other));
            }
        }
        open.entry(own).or_default().insert((end, at));
    }
    let child = |at: usize| guards.get(at).map(|guard| guard.child);
    found.into_iter().filter_map(|(later, earlier)| child(earlier).zip(child(later))).collect()
}

/// Value and mask; guards without a mark are alike.
type MarkKey = Option<(u32, u32)>;
/// Ends of ranges that have begun, with the guards that they belong to.
type Open = BTreeSet<(IpAddr, usize)>;

fn key(mark: Option<Mark>) -> MarkKey {
    mark.map(|mark| (mark.value & mark.mask, mark.mask))
}

fn meet(a: &GuardSpec, b: &GuardSpec) -> bool {
    let both = |a: &[cygnet_model::TrafficSelector], b: &[cygnet_model::TrafficSelector]| {
        a.iter().any(|a| b.iter().any(|b| a.intersect(b).is_some()))
    };
    both(&a.local, &b.local) && both(&a.remote, &b.remote)
}

#[cfg(test)]
mod tests {
    use cygnet_model::TrafficSelector;
    use proptest::prelude::*;

    use super::*;
    use crate::plane::testing::{guard_of, net};

    fn guard(n: u32, remote: TrafficSelector, mark: Option<u32>) -> GuardSpec {
        let mark = mark.map(|value| Mark { value, mask: u32::MAX });
        GuardSpec { mark, ..guard_of(n, &[net("10.1.0.0/16")], &[remote]) }
    }

    fn pairs(guards: &[GuardSpec]) -> Vec<(u32, u32)> {
        indistinguishable(guards).into_iter().map(|(a, b)| (a.tunnel.0, b.tunnel.0)).collect()
    }

    #[test]
    fn equal_selectors_are_told_apart_by_nothing_but_their_mark() {
        let (a, b) = (net("10.2.0.0/16"), net("10.2.3.0/24"));
        assert_eq!(pairs(&[guard(1, a, Some(1)), guard(2, a, Some(2))]), [(1, 2)]);
        assert_eq!(pairs(&[guard(1, a, None), guard(2, b, Some(2))]), [(1, 2)]);
        assert_eq!(pairs(&[guard(1, b, Some(1)), guard(2, a, Some(2))]), [(1, 2)], "whichever is wider");
        assert_eq!(pairs(&[guard(1, a, Some(1)), guard(2, a, Some(1))]), [], "the same mark");
        assert_eq!(pairs(&[guard(1, a, Some(1)), guard(2, net("10.3.0.0/16"), Some(2))]), [], "far apart");
        let elsewhere = GuardSpec { local: vec![net("10.9.0.0/16")], ..guard(2, a, Some(2)) };
        assert_eq!(pairs(&[guard(1, a, Some(1)), elsewhere]), [], "other local networks");
    }

    proptest! {
        #[test]
        fn every_meeting_is_found(list in prop::collection::vec((0u8..8, 26u8..=32, 0u32..3), 1..12)) {
            let guards: Vec<GuardSpec> = (0..).zip(&list).map(|(n, (host, len, mark))| {
                let remote = TrafficSelector::cidr(IpAddr::from([10, 2, 0, host * 8]), *len).unwrap();
                guard(n, remote, (*mark > 0).then_some(*mark))
            }).collect();
            let differ = |a: &GuardSpec, b: &GuardSpec| a.mark != b.mark && meet(a, b);
            let expected = (0..guards.len()).filter(|at| guards[..*at].iter().any(|o| differ(o, &guards[*at])));
            let found: Vec<usize> = pairs(&guards).into_iter().map(|(_, later)| later as usize).collect();
            let expected: Vec<usize> = expected.collect();
            prop_assert_eq!(found.is_empty(), expected.is_empty());
            prop_assert!(found.iter().all(|at| expected.contains(at)));
        }
    }
}
