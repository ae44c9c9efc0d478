//! SPD rules: which of them conflict, and which children they make. Pure set arithmetic.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use cygnet_model::{IpRange, TrafficSelector};

use super::model::{ChildSpec, SpdRule};

/// Half a rule: one local block and one remote block, with the caller's way of naming it.
#[derive(Clone, Copy, Debug)]
pub struct Pair<K> {
    /// Our side.
    pub local: IpRange,
    /// The peer's side.
    pub remote: IpRange,
    /// What the caller calls it.
    pub key: K,
}

/// The locals of one remote block, findable by containment in both directions.
#[derive(Default)]
struct Locals {
    by_start: BTreeMap<(IpAddr, u8), usize>,
    /// How many blocks there are of each prefix length, so that only lengths in use are probed.
    lengths: BTreeMap<(bool, u8), usize>,
}

fn length(range: &IpRange) -> u8 {
    range.prefix_len().unwrap_or(128)
}

impl Locals {
    /// A block that overlaps with `range`.
    fn overlapping(&self, range: &IpRange) -> Option<usize> {
        let own = length(range);
        let v4 = range.start().is_ipv4();
        // A block that contains `range` begins where `range` would if cut to its length.
        for (family, len) in self.lengths.keys() {
            if *family == v4
                && *len <= own
                && let Some(outer) = IpRange::cidr(range.start(), *len)
                && let Some(n) = self.by_start.get(&(outer.start(), *len))
            {
                return Some(*n);
            }
        }
        // A block inside `range` begins inside it.
        let inside = (range.start(), 0)..=(range.end(), u8::MAX);
        self.by_start.range(inside).find(|((a, len), _)| range.contains(*a) && *len > own).map(|(_, n)| *n)
    }

    fn insert(&mut self, range: &IpRange, n: usize) {
        let len = length(range);
        self.by_start.entry((range.start(), len)).or_insert(n);
        *self.lengths.entry((range.start().is_ipv4(), len)).or_default() += 1;
    }
}

/// Pairs of one gateway whose local *and* remote halves both overlap, as positions `(earlier, later)` in `pairs`. For
/// each pair at most one earlier one is named. CIDR blocks either contain one another or are disjoint, so looking up
/// the containing blocks is enough: the cost grows with n · log n and not with n².
pub fn conflicts<K>(pairs: &[Pair<K>]) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    let remote_of = |n: &usize| pairs.get(*n).map(|p| length(&p.remote));
    order.sort_by_key(|n| (remote_of(n), *n));
    let mut seen: HashMap<(IpAddr, u8), Locals> = HashMap::new();
    let mut lengths: BTreeMap<(bool, u8), ()> = BTreeMap::new();
    let mut found = Vec::new();
    for n in order {
        let Some(pair) = pairs.get(n) else { continue };
        let (own, v4) = (length(&pair.remote), pair.remote.start().is_ipv4());
        let hit = lengths.keys().filter(|(f, len)| *f == v4 && *len <= own).find_map(|(_, len)| {
            let outer = IpRange::cidr(pair.remote.start(), *len)?;
            seen.get(&(outer.start(), *len))?.overlapping(&pair.local)
        });
        if let Some(other) = hit {
            found.push((n.min(other), n.max(other)));
        }
        seen.entry((pair.remote.start(), own)).or_default().insert(&pair.local, n);
        lengths.insert((v4, own), ());
    }
    found.sort_unstable();
    found
}

/// The children of a tunnel. A child protects every local × every remote, so only rules with the same set of remotes
/// may share one; anything else would protect more than the rules say.
pub fn children(rules: &[SpdRule]) -> Vec<ChildSpec> {
    let mut out: Vec<ChildSpec> = Vec::new();
    let mut index: HashMap<Vec<IpRange>, usize> = HashMap::new();
    for rule in rules {
        let mut key = rule.remote.clone();
        key.sort();
        let local = TrafficSelector::any(rule.local);
        if let Some(child) = index.get(&key).and_then(|n| out.get_mut(*n)) {
            child.local.push(local);
            continue;
        }
        index.insert(key, out.len());
        let remote = rule.remote.iter().copied().map(TrafficSelector::any).collect();
        out.push(ChildSpec { local: vec![local], remote });
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(text: &str) -> IpRange {
        super::super::identity::cidr(text).unwrap()
    }

    fn pairs(rules: &[(&str, &[&str])]) -> Vec<Pair<usize>> {
        (rules.iter().enumerate())
            .flat_map(|(key, (local, remotes))| {
                remotes.iter().map(move |r| Pair { local: block(local), remote: block(r), key })
            })
            .collect()
    }

    /// PRODUCT.md's own example.
    #[test]
    fn rules_conflict_only_if_both_halves_overlap() {
        let mut rules: Vec<(&str, &[&str])> = vec![
            ("10.0.0.0/24", &["192.168.0.0/24", "192.168.1.0/24"]),
            ("10.0.1.0/24", &["192.168.2.0/24"]),
            ("10.0.2.0/24", &["192.168.2.0/24"]),
        ];
        assert_eq!(conflicts(&pairs(&rules)), vec![]);
        rules.push(("10.0.0.0/24", &["192.168.1.0/24"]));
        assert_eq!(conflicts(&pairs(&rules)), vec![(1, 4)]);
        rules.pop();
        rules.push(("10.0.1.0/24", &["192.168.1.0/24"]));
        assert_eq!(conflicts(&pairs(&rules)), vec![]);
    }

    #[test]
    fn children_share_only_equal_remotes() {
        let rule = |local: &str, remote: &[&str]| SpdRule {
            local: block(local),
            remote: remote.iter().map(|r| block(r)).collect(),
        };
        let rules = [
            rule("10.0.0.0/24", &["192.168.0.0/24", "192.168.1.0/24"]),
            rule("10.0.1.0/24", &["192.168.2.0/24"]),
            rule("10.0.2.0/24", &["192.168.1.0/24", "192.168.0.0/24"]),
        ];
        let shown: Vec<String> =
            children(&rules).iter().map(|c| format!("{:?} -> {:?}", c.local, c.remote)).collect();
        assert_eq!(
            shown,
            [
                "[10.0.0.0/24, 10.0.2.0/24] -> [192.168.0.0/24, 192.168.1.0/24]",
                "[10.0.1.0/24] -> [192.168.2.0/24]"
            ]
        );
    }

    fn small_block() -> impl Strategy<Value = IpRange> {
        (0u32..8, 29u8..=32).prop_map(|(a, len)| IpRange::cidr(IpAddr::V4(a.into()), len).unwrap())
    }

    proptest! {
        #[test]
        fn conflicts_agree_with_comparing_all(list in prop::collection::vec((small_block(), small_block()), 0..12)) {
            let pairs: Vec<Pair<()>> = list.iter().map(|(l, r)| Pair { local: *l, remote: *r, key: () }).collect();
            let overlap = |a: &Pair<()>, b: &Pair<()>| {
                a.local.intersect(&b.local).is_some() && a.remote.intersect(&b.remote).is_some()
            };
            let found = conflicts(&pairs);
            for (a, b) in &found {
                prop_assert!(a < b && overlap(&pairs[*a], &pairs[*b]));
            }
            let any = (0..pairs.len()).any(|a| (0..a).any(|b| overlap(&pairs[a], &pairs[b])));
            prop_assert_eq!(any, !found.is_empty());
        }

        #[test]
        fn children_protect_what_the_rules_say(
            list in prop::collection::vec((small_block(), prop::collection::vec(small_block(), 1..4)), 1..6),
        ) {
            let rules: Vec<SpdRule> =
                list.into_iter().map(|(local, remote)| SpdRule { local, remote }).collect();
            let kids = children(&rules);
            let has = |list: &[TrafficSelector], a: u32| list.iter().any(|s| s.range.contains(IpAddr::V4(a.into())));
            for (l, r) in (0..8).flat_map(|l| (0..8).map(move |r| (l, r))) {
                let want = rules.iter().any(|x| {
                    x.local.contains(IpAddr::V4(l.into())) && x.remote.iter().any(|b| b.contains(IpAddr::V4(r.into())))
                });
                prop_assert_eq!(kids.iter().any(|c| has(&c.local, l) && has(&c.remote, r)), want);
            }
        }
    }
}
