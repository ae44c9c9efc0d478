//! Many rules as a search tree, so that a look-up meets a few dozen of them whatever their number.
//!
//! The kernel walks its rules one by one, at some ten nanoseconds each. A rule may send the walk on to another priority,
//! though (`goto`), and the kernel follows that by a pointer. So the rules are put into *blocks*, one priority each:
//!
//! ```text
//!   block of region G:  rules that concern all of G, or are few
//!                       from H goto block of H            (some regions H inside G that do not overlap)
//!                       from I goto block of I
//!                       from G goto EXIT                  nothing else concerns a packet that came here
//! ```
//!
//! A region bounds the source or the destination, whichever sets the rules apart better. A look-up that has no source
//! matches no `from` at all, so it walks the first block only.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cygnet_xfrm::route::{Family, Prefix};
use cygnet_xfrm::rule::{Rule, Verdict};

/// Regions into which a block sends: each packet tests them all.
const FAN: usize = 4;

/// A tree whose rules have their place in it, but no priorities yet. The first block is the root.
pub(super) struct Tree {
    blocks: Vec<Block>,
}

#[derive(Default)]
struct Block {
    rules: Vec<Rule>,
    /// A region as a rule that matches it, and the block for it.
    jumps: Vec<(Rule, usize)>,
    /// The block's own region in the same form; `None` for the root.
    region: Option<Rule>,
}

impl Tree {
    /// Arranges rules so that no more than `leaf` of them are in one block if they can be set apart by their prefixes.
    /// Their priorities do not matter.
    pub fn new(rules: Vec<Rule>, leaf: usize) -> Self {
        let mut tree = Self { blocks: vec![Block::default()] };
        tree.fill(0, rules, leaf);
        tree
    }

    /// Priorities that the tree takes; none without rules.
    pub fn len(&self) -> usize {
        if self.is_empty() { 0 } else { self.blocks.len() }
    }

    fn is_empty(&self) -> bool {
        self.blocks.iter().all(|block| block.rules.is_empty() && block.jumps.is_empty())
    }

    /// The rules in the order in which the kernel shall walk them, with priorities from `first` on. Packets that match
    /// none go on at priority `exit`.
    pub fn rules(&self, first: u32, exit: u32) -> Vec<Rule> {
        let mut out = Vec::new();
        if self.is_empty() {
            return out;
        }
        for (priority, block) in (first..).zip(&self.blocks) {
            out.extend(block.rules.iter().map(|rule| Rule { priority, ..rule.clone() }));
            out.extend(block.jumps.iter().map(|(region, to)| Rule {
                priority,
                verdict: Verdict::Goto(first + u32::try_from(*to).unwrap_or(0)),
                ..region.clone()
            }));
            let model = block.region.clone().or_else(|| {
                let any = block.rules.first().or(block.jumps.first().map(|(region, _)| region))?;
                Some(Rule::new(any.family, 0, Verdict::Nop, any.owner))
            });
            out.extend(model.map(|region| Rule { priority, verdict: Verdict::Goto(exit), ..region }));
        }
        out
    }

    fn fill(&mut self, at: usize, rules: Vec<Rule>, leaf: usize) {
        let distinct = |side: Side| rules.iter().map(|rule| side.of(rule)).collect::<BTreeSet<_>>().len();
        let (sources, destinations) = (distinct(Side::Source), distinct(Side::Destination));
        let (mut here, mut jumps) = (rules, Vec::new());
        if here.len() > leaf && sources.max(destinations) > 1 {
            let side = if sources >= destinations { Side::Source } else { Side::Destination };
            let (wide, regions) = split(here, side);
            here = wide;
            for (region, inside) in regions {
                let Some(first) = inside.first() else { continue };
                if inside.len() == 1 {
                    here.extend(inside);
                    continue;
                }
                let region = side.rule(region, first);
                let block = self.blocks.len();
                self.blocks.push(Block { region: Some(region.clone()), ..Block::default() });
                jumps.push((region, block));
                self.fill(block, inside, leaf);
            }
        }
        if let Some(block) = self.blocks.get_mut(at) {
            block.rules = here;
            block.jumps = jumps;
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

impl Side {
    fn of(self, rule: &Rule) -> Prefix {
        let prefix = match self {
            Self::Source => rule.source,
            Self::Destination => rule.destination,
        };
        prefix.unwrap_or_else(|| rule.family.everything())
    }

    /// A rule that matches a region, of the owner and family of `like`.
    fn rule(self, region: Prefix, like: &Rule) -> Rule {
        let any = Rule::new(like.family, 0, Verdict::Nop, like.owner);
        match self {
            Self::Source => Rule { source: Some(region), ..any },
            Self::Destination => Rule { destination: Some(region), ..any },
        }
    }
}

/// Sorts rules into at most [`FAN`] regions that do not overlap, and those that reach over a whole region's parent.
fn split(rules: Vec<Rule>, side: Side) -> (Vec<Rule>, Vec<(Prefix, Vec<Rule>)>) {
    let mut wide = Vec::new();
    let Some(all) = common(&rules, side) else { return (rules, Vec::new()) };
    let mut regions = vec![(all, rules)];
    while regions.len() < FAN {
        let splittable = regions.iter().enumerate().filter(|(_, (region, inside))| {
            inside.len() > 1 && inside.iter().any(|rule| side.of(rule).1 > region.1)
        });
        let Some((at, _)) = splittable.max_by_key(|(_, (_, inside))| inside.len()) else { break };
        let (region, inside) = regions.swap_remove(at);
        let (equal, narrow): (Vec<Rule>, Vec<Rule>) =
            inside.into_iter().partition(|rule| side.of(rule).1 == region.1);
        wide.extend(equal);
        let (ones, zeros): (Vec<Rule>, Vec<Rule>) =
            narrow.into_iter().partition(|rule| bit(side.of(rule).0, region.1));
        for half in [zeros, ones] {
            regions.extend(common(&half, side).map(|region| (region, half)));
        }
    }
    (wide, regions)
}

/// The longest prefix that holds the prefixes of all rules.
fn common(rules: &[Rule], side: Side) -> Option<Prefix> {
    let (first, len) = side.of(rules.first()?);
    let len = rules.iter().map(|rule| side.of(rule)).fold(len, |len, (addr, other)| {
        let same = (number(first) ^ number(addr)).leading_zeros();
        len.min(other).min(u8::try_from(same).unwrap_or(u8::MAX))
    });
    Some((masked(first, len), len))
}

/// The address with its bits at the top.
fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
        IpAddr::V6(a) => u128::from(a),
    }
}

fn bit(addr: IpAddr, at: u8) -> bool {
    number(addr) >> (127 - u32::from(at.min(127))) & 1 == 1
}

/// The address without the bits behind a prefix.
pub(super) fn masked(addr: IpAddr, len: u8) -> IpAddr {
    let kept = match len {
        0 => 0,
        len => number(addr) & u128::MAX << (128 - u32::from(len.min(128))),
    };
    match Family::of(addr) {
        Family::V4 => IpAddr::V4(u32::try_from(kept >> 96).unwrap_or(0).into()),
        Family::V6 => IpAddr::V6(kept.into()),
    }
}
