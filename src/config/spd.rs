//! SPD rules: which of them conflict, and which children they make. Pure set arithmetic.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use cygnet_model::tunnel::Mark;
use cygnet_model::{IpRange, TrafficSelector};

use super::model::{ChildSpec, SpdRule};

/// Half a rule: one local block and one remote block of one family, with whose it is.
#[derive(Clone, Copy, Debug)]
pub struct Pair<K> {
    /// Our side.
    pub local: IpRange,
    /// The peer's side.
    pub remote: IpRange,
    /// Number of the tunnel.
    pub tunnel: usize,
    /// Number of the gateway.
    pub gateway: usize,
    /// What marks the packets of the tunnel.
    pub mark: Option<Mark>,
    /// The weight of the tunnel, if it was written.
    pub weight: Option<u8>,
    /// What the caller calls it.
    pub key: K,
}

/// Why two pairs must not stand beside each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clash {
    /// They meet, and are of one tunnel.
    OneTunnel,
    /// They are equal, and nothing says which tunnel is the primary.
    Equal,
    /// They are equal, and so are the weights of their tunnels, which the kernel cannot hold side by side.
    EqualWeight,
    /// They are equal and their marks are not, but packets may bear both.
    EqualMarks,
    /// One lies inside the other, they are of different gateways, and not both have a weight.
    Nested,
    /// They meet and neither lies inside the other.
    Partial,
    /// They meet, and only marks, which the data plane loses, tell them apart.
    MarksLost,
}

/// Two pairs, as positions in the list, that clash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// The one that comes first in the list.
    pub earlier: usize,
    /// The other one.
    pub later: usize,
    /// Why.
    pub clash: Clash,
}

/// Whose SPD the pairs will stand in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// The kernel's, or it may become that: marks keep tunnels apart, and equal pairs need an order.
    Kernel,
    /// That of our own plane, which sees no marks: tunnels with equal pairs and equal weights share the flows.
    Userspace,
}

/// Whether a packet may bear both marks.
pub fn compatible(a: Option<Mark>, b: Option<Mark>) -> bool {
    let ((a, a_mask), (b, b_mask)) = (bits(a), bits(b));
    (a ^ b) & a_mask & b_mask == 0
}

/// Value and mask; without a mark both are 0, which every packet bears.
fn bits(mark: Option<Mark>) -> (u32, u32) {
    mark.map_or((0, 0), |m| (m.value & m.mask, m.mask))
}

impl<K> Pair<K> {
    /// What is wrong with two pairs whose marks are compatible, if anything. `outer` is not the narrower one.
    fn clash<L>(&self, outer: &Pair<L>, holder: Holder) -> Option<Clash> {
        let same = bits(self.mark) == bits(outer.mark);
        let inside = outer.local.covers(&self.local) && outer.remote.covers(&self.remote);
        let equal = self.local == outer.local && self.remote == outer.remote;
        match (self.weight, outer.weight) {
            _ if self.tunnel == outer.tunnel => Some(Clash::OneTunnel),
            _ if !same && holder == Holder::Userspace => Some(Clash::MarksLost),
            _ if !inside => Some(Clash::Partial),
            (Some(a), Some(b)) if equal && same => {
                (a == b && holder == Holder::Kernel).then_some(Clash::EqualWeight)
            }
            _ if equal && !same => Some(Clash::EqualMarks),
            _ if equal => Some(Clash::Equal),
            (Some(_), Some(_)) => None,
            _ => (self.gateway != outer.gateway).then_some(Clash::Nested),
        }
    }
}

/// The local blocks of one remote block and one mark, findable by containment in both directions.
#[derive(Default)]
struct Locals {
    by_start: BTreeMap<(IpAddr, u8), Vec<usize>>,
    /// The prefix lengths there are, so that only they are probed.
    lengths: BTreeSet<u8>,
}

fn length(range: &IpRange) -> u8 {
    range.prefix_len().unwrap_or(128)
}

impl Locals {
    /// The pairs whose block is `range` or contains it.
    fn around(&self, range: &IpRange) -> impl Iterator<Item = usize> {
        // A block that contains `range` begins where `range` would if cut to its length.
        let lists = self.lengths.range(..=length(range)).filter_map(|len| {
            let outer = IpRange::cidr(range.start(), *len)?;
            self.by_start.get(&(outer.start(), *len))
        });
        lists.flatten().copied()
    }

    /// A pair whose block lies inside `range` and is not `range`.
    fn within(&self, range: &IpRange) -> Option<usize> {
        let own = length(range);
        let inside = (range.start(), 0)..=(range.end(), u8::MAX);
        let mut narrower = self.by_start.range(inside).filter(|((_, len), _)| *len > own);
        narrower.find_map(|(_, list)| list.first().copied())
    }

    fn insert(&mut self, range: &IpRange, n: usize) {
        self.by_start.entry((range.start(), length(range))).or_default().push(n);
        self.lengths.insert(length(range));
    }
}

/// What was seen of one remote block, by mask and value of the marks: the marks of tenants usually share a mask, and one
/// look-up finds the compatible one.
type ByMark = BTreeMap<u32, BTreeMap<u32, Locals>>;

fn compatible_locals(by_mark: &ByMark, mark: Option<Mark>) -> impl Iterator<Item = &Locals> {
    let (value, mask) = bits(mark);
    by_mark.iter().flat_map(move |(other_mask, values)| {
        let same = values.get(&value).filter(|_| *other_mask == mask);
        let others = (*other_mask != mask).then_some(values).into_iter().flatten();
        let common = mask & other_mask;
        same.into_iter()
            .chain(others.filter(move |(other, _)| (value ^ *other) & common == 0).map(|(_, locals)| locals))
    })
}

/// What clashes among the pairs of a host, in the order of the list; for each pair at most one earlier one is named.
///
/// A packet goes by the narrowest pair that covers it, so pairs that lie one inside the other may stand beside each other
/// if they have one owner, and tunnels that share a rule, or back it up, may claim the same packets.
///
/// CIDR blocks either contain one another or are disjoint, so looking up the containing blocks is enough: the cost grows
/// with n · log n and not with n².
pub fn conflicts<K>(pairs: &[Pair<K>], holder: Holder) -> Vec<Conflict> {
    // Wider ones first: what is found of those before is never inside, but for a local block beside a wider remote one.
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|n| (pairs.get(*n).map(|p| (length(&p.remote), length(&p.local))), *n));
    let mut seen: HashMap<(IpAddr, u8), ByMark> = HashMap::new();
    let mut lengths: BTreeSet<(bool, u8)> = BTreeSet::new();
    let mut found = Vec::new();
    for n in order {
        let Some(pair) = pairs.get(n) else { continue };
        let (own, v4) = (length(&pair.remote), pair.remote.start().is_ipv4());
        let mark = if holder == Holder::Kernel { pair.mark } else { None };
        let around = lengths.range((v4, 0)..=(v4, own)).filter_map(|(_, len)| {
            let outer = IpRange::cidr(pair.remote.start(), *len)?;
            seen.get(&(outer.start(), *len))
        });
        let hit = around
            .flat_map(|by_mark| compatible_locals(by_mark, mark))
            .flat_map(|locals| locals.around(&pair.local).chain(locals.within(&pair.local)))
            .find_map(|other| Some((other, pair.clash(pairs.get(other)?, holder)?)));
        if let Some((other, clash)) = hit {
            found.push(Conflict { earlier: n.min(other), later: n.max(other), clash });
        }
        let (value, mask) = bits(mark);
        let by_mark = seen.entry((pair.remote.start(), own)).or_default();
        by_mark.entry(mask).or_default().entry(value).or_default().insert(&pair.local, n);
        lengths.insert((v4, own));
    }
    found.sort_unstable_by_key(|c| (c.earlier, c.later));
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
    use crate::growth::assert_linear;

    fn block(text: &str) -> IpRange {
        super::super::identity::cidr(text).unwrap()
    }

    fn pair(tunnel: usize, gateway: usize, local: &str, remote: &str) -> Pair<()> {
        let (local, remote) = (block(local), block(remote));
        Pair { local, remote, tunnel, gateway, mark: None, weight: None, key: () }
    }

    fn clashes(pairs: &[Pair<()>]) -> Vec<Clash> {
        conflicts(pairs, Holder::Kernel).into_iter().map(|c| c.clash).collect()
    }

    fn marked(pair: Pair<()>, value: u32, mask: u32) -> Pair<()> {
        Pair { mark: Some(Mark { value, mask }), ..pair }
    }

    fn weighted(pair: Pair<()>, weight: u8) -> Pair<()> {
        Pair { weight: Some(weight), ..pair }
    }

    /// PRODUCT.md's own example.
    #[test]
    fn rules_conflict_only_if_both_halves_overlap() {
        let mut pairs = vec![
            pair(0, 0, "10.0.0.0/24", "192.168.0.0/24"),
            pair(0, 0, "10.0.0.0/24", "192.168.1.0/24"),
            pair(0, 0, "10.0.1.0/24", "192.168.2.0/24"),
            pair(0, 0, "10.0.2.0/24", "192.168.2.0/24"),
        ];
        assert_eq!(clashes(&pairs), []);
        pairs.push(pair(0, 0, "10.0.0.0/24", "192.168.1.0/24"));
        let clash = Clash::OneTunnel;
        assert_eq!(conflicts(&pairs, Holder::Kernel), [Conflict { earlier: 1, later: 4, clash }]);
        pairs.pop();
        pairs.push(pair(0, 0, "10.0.1.0/24", "192.168.1.0/24"));
        assert_eq!(clashes(&pairs), []);
    }

    #[test]
    fn equal_pairs_are_a_primary_and_a_backup_or_refused_on_the_whole_host() {
        let [a, b] = [0, 1].map(|n| pair(n, n, "10.1.0.0/16", "10.2.0.0/16"));
        assert_eq!(clashes(&[a, b]), [Clash::Equal], "two gateways share one host");
        assert_eq!(clashes(&[a, weighted(b, 1)]), [Clash::Equal], "both say it");
        assert_eq!(clashes(&[weighted(a, 1), weighted(b, 1)]), [Clash::EqualWeight]);
        assert_eq!(conflicts(&[weighted(a, 1), weighted(b, 1)], Holder::Userspace), [], "they share");
        assert_eq!(conflicts(&[a, weighted(b, 0)], Holder::Userspace).len(), 1, "both say it");
        assert_eq!(clashes(&[weighted(a, 0), weighted(b, 1)]), []);
    }

    #[test]
    fn marks_keep_pairs_apart_if_no_packet_bears_both_and_the_plane_sees_them() {
        let [a, b] = [0, 1].map(|n| pair(n, n, "10.1.0.0/16", "10.2.0.0/16"));
        let exclusive = [marked(a, 1, 0xff), marked(b, 2, 0xff)];
        assert_eq!(clashes(&exclusive), []);
        assert_eq!(clashes(&[marked(a, 1, 0xf), marked(b, 0x10, 0xf0)]), [Clash::EqualMarks]);
        assert_eq!(clashes(&[a, marked(b, 1, 0xff)]), [Clash::EqualMarks]);
        let lost: Vec<Clash> = conflicts(&exclusive, Holder::Userspace).iter().map(|c| c.clash).collect();
        assert_eq!(lost, [Clash::MarksLost]);
        assert!(
            conflicts(&[marked(a, 1, 0xff), pair(1, 0, "10.1.0.0/16", "10.3.0.0/16")], Holder::Userspace)
                .is_empty()
        );
    }

    #[test]
    fn nested_pairs_have_one_owner_or_weights() {
        let hub = pair(0, 0, "10.0.0.0/8", "10.2.0.0/16");
        let inner = |gateway| pair(1, gateway, "10.1.0.0/16", "10.2.0.0/16");
        assert_eq!(clashes(&[hub, inner(0)]), []);
        assert_eq!(clashes(&[inner(0), hub]), [], "in any order");
        assert_eq!(clashes(&[hub, inner(1)]), [Clash::Nested]);
        assert_eq!(clashes(&[weighted(hub, 0), weighted(inner(1), 0)]), []);
        assert_eq!(clashes(&[hub, Pair { tunnel: 0, ..inner(0) }]), [Clash::OneTunnel]);
    }

    #[test]
    fn pairs_that_cross_are_refused_whoever_owns_them() {
        let (a, b) = (pair(0, 0, "10.1.0.0/16", "10.2.3.0/24"), pair(1, 0, "10.1.2.0/24", "10.2.0.0/16"));
        assert_eq!(clashes(&[a, b]), [Clash::Partial]);
        assert_eq!(clashes(&[weighted(a, 0), weighted(b, 1)]), [Clash::Partial]);
        assert_eq!(clashes(&[marked(a, 1, 1), marked(b, 0, 1)]), []);
    }

    /// Tenants with the same networks and a mark each, and spokes inside one hub: neither costs n².
    #[test]
    fn the_work_of_comparing_pairs_is_linear_in_their_number() {
        let block = |n: u32, len| IpRange::cidr(IpAddr::V4((0x0a00_0000 + n).into()), len).unwrap();
        let of = |n: u32, local, remote, mark: Option<u32>| Pair {
            mark: mark.map(|value| Mark { value, mask: u32::MAX }),
            ..Pair { local, remote, ..pair(n as usize, 0, "10.0.0.0/8", "10.0.0.0/8") }
        };
        let crossing = |n: u32| {
            if n.is_multiple_of(2) { (block(0, 8), block(0, 24)) } else { (block(0, 24), block(0, 8)) }
        };
        let none = |pairs: &Vec<Pair<()>>| assert!(conflicts(pairs, Holder::Kernel).is_empty());
        let all = |n: usize, pair: &dyn Fn(u32) -> Pair<()>| (0..n as u32).map(pair).collect::<Vec<_>>();
        assert_linear(1_250, |n| all(n, &|n| of(n, block(0, 16), block(1 << 16, 16), Some(n + 1))), none);
        assert_linear(1_250, |n| all(n, &|n| of(n, crossing(n).0, crossing(n).1, Some(n + 1))), none);
        let spoke = |n| of(n, block(0, 8), block(n << 8, 24), None);
        assert_linear(1_250, |n| all(n, &spoke), none);
        let hub = || of(10_000, block(0, 8), block(0, 8), None);
        assert_linear(1_250, |n| all(n, &spoke).into_iter().chain([hub()]).collect(), none);
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
        fn conflicts_agree_with_comparing_all(
            list in prop::collection::vec(
                ((small_block(), small_block()), (0usize..4, 0usize..2), prop::option::of((0u32..4, 1u32..4)), prop::option::of(0u8..2)),
                0..12,
            ),
            ours in any::<bool>(),
        ) {
            let holder = if ours { Holder::Userspace } else { Holder::Kernel };
            let pairs: Vec<Pair<()>> = (list.into_iter())
                .map(|((local, remote), (tunnel, gateway), mark, weight)| Pair {
                    local, remote, tunnel, gateway, weight, key: (),
                    mark: mark.map(|(value, mask)| Mark { value: value & mask, mask }),
                })
                .collect();
            let clash = |a: &Pair<()>, b: &Pair<()>| {
                let meet = a.local.intersect(&b.local).is_some() && a.remote.intersect(&b.remote).is_some();
                let apart = holder == Holder::Kernel && !compatible(a.mark, b.mark);
                let inside = |a: &Pair<()>, b: &Pair<()>| b.local.covers(&a.local) && b.remote.covers(&a.remote);
                if !meet || apart { None } else if inside(a, b) { a.clash(b, holder) } else { b.clash(a, holder) }
            };
            let found = conflicts(&pairs, holder);
            for c in &found {
                prop_assert!(c.earlier < c.later);
                prop_assert_eq!(clash(&pairs[c.earlier], &pairs[c.later]), Some(c.clash));
            }
            let any = (0..pairs.len()).any(|a| (0..a).any(|b| clash(&pairs[a], &pairs[b]).is_some()));
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
