//! The rules and routes in the kernel that are ours: put in force without a moment in which a guard is open, and put back
//! when others remove them.
//!
//! A search tree of rules cannot be changed rule by rule: a packet could be sent into a block that is not there yet. So
//! there are four *windows* of priorities, each with room for a whole layout:
//!
//! ```text
//!   W     nop                  where the window before ends
//!   W+1   goto next window     the gate: there while the window is closed
//!   W+2…  the layout
//! ```
//!
//! A layout is written into a closed window and read back; then its gate is removed, and the gate of the window that was open
//! before is added. Each step leaves at least one whole layout in force. What an earlier process left stays open beside
//! ours until [`Rules::settle`].
//!
//! The contents of a window that has been closed do nothing any more. The kernel walks all rules for each that it removes,
//! so many are removed little by little, when nobody waits for it ([`Rules::tidy`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cygnet_xfrm::address::OwnAddress;
use cygnet_xfrm::link::RtnlError;
use cygnet_xfrm::route::{Family, Route};
use cygnet_xfrm::routing::Routing;
use cygnet_xfrm::rule::{Rule, Verdict};

use super::layout::{Layout, OWNER, TableNumbers};
use crate::plane::near;

/// The first priority of ours. Rules before it (but the kernel's own at 0) see guarded packets first.
pub const FIRST_PRIORITY: u32 = 1100;
const WINDOW: u32 = 1000;
const WINDOWS: u32 = 4;
/// The last one: unconcerned packets go on behind it.
pub const LAST_PRIORITY: u32 = FIRST_PRIORITY + WINDOWS * WINDOW;
const END: u32 = LAST_PRIORITY;

/// So many rules are removed at once. Each costs the kernel a walk over all.
const AT_ONCE: usize = 64;

/// See the [module](self).
pub(super) struct Rules {
    routing: Routing,
    tun: String,
    families: BTreeMap<Family, Windows>,
    /// Routes that shall be there.
    routes: BTreeSet<Route>,
    /// Of an earlier process, until settled.
    inherited: BTreeSet<Route>,
    /// Rules of others that the last [`Self::repair`] saw in front of ours.
    front: Vec<Rule>,
    pub tables: TableNumbers,
}

/// The windows of one family.
#[derive(Default)]
struct Windows {
    /// Our rules in the order of the kernel, as far as we know.
    present: Vec<Rule>,
    /// The window that is ours and open.
    open: Option<u32>,
    /// Windows that an earlier process left open.
    inherited: BTreeSet<u32>,
    /// The layout of the open window, at its priorities.
    wanted: Vec<Rule>,
}

/// The window of a priority.
fn window_of(priority: u32) -> Option<u32> {
    let at = priority.checked_sub(FIRST_PRIORITY)? / WINDOW;
    (at < WINDOWS).then_some(at)
}

const fn base(window: u32) -> u32 {
    FIRST_PRIORITY + window * WINDOW
}

const fn anchor(family: Family, window: u32) -> Rule {
    Rule::new(family, base(window), Verdict::Nop, OWNER)
}

const fn gate(family: Family, window: u32) -> Rule {
    Rule::new(family, base(window) + 1, Verdict::Goto(base(window + 1)), OWNER)
}

fn is_content(rule: &Rule) -> bool {
    window_of(rule.priority).is_some_and(|window| rule.priority > base(window) + 1)
}

impl Windows {
    fn of(present: Vec<Rule>) -> Self {
        let contents = present.iter().filter(|rule| is_content(rule));
        let filled: BTreeSet<u32> = contents.filter_map(|rule| window_of(rule.priority)).collect();
        let closed = |window: &u32| {
            present
                .iter()
                .any(|r| r.verdict == Verdict::Goto(base(window + 1)) && r.priority == base(*window) + 1)
        };
        let inherited = filled.into_iter().filter(|window| !closed(window)).collect();
        Self { present, open: None, inherited, wanted: Vec::new() }
    }

    /// Whether a rule is left in a window that is closed.
    fn is_left_over(&self, rule: &Rule) -> bool {
        is_content(rule)
            && window_of(rule.priority).is_some_and(|w| self.open != Some(w) && !self.inherited.contains(&w))
    }

    /// The contents of closed windows, in the order of the kernel.
    fn left_over(&self) -> impl Iterator<Item = &Rule> {
        self.present.iter().filter(|rule| self.is_left_over(rule))
    }

    /// All rules that shall be there: anchors, gates of closed windows, and the open window's layout.
    fn expected(&self, family: Family) -> Vec<Rule> {
        let Some(open) = self.open else { return Vec::new() };
        let mut out = Vec::new();
        for window in 0..WINDOWS {
            out.push(anchor(family, window));
            if window == open {
                out.extend(self.wanted.iter().cloned());
            } else if !self.inherited.contains(&window) {
                out.push(gate(family, window));
            }
        }
        out.push(Rule::new(family, END, Verdict::Nop, OWNER));
        out
    }
}

impl Rules {
    /// Connects and takes note of what an earlier process left. `tun` is the name of the TUN device.
    pub fn open(tun: &str) -> Result<Self, RtnlError> {
        let mut routing = Routing::open()?;
        let mut families = BTreeMap::new();
        let mut inherited = BTreeSet::new();
        for family in Family::ALL {
            families.insert(family, Windows::of(ours(&mut routing, family)?));
            inherited.extend(routing.routes(family, OWNER)?);
        }
        let tables = TableNumbers::beyond(&inherited);
        Ok(Self {
            routing,
            tun: tun.to_owned(),
            families,
            routes: BTreeSet::new(),
            inherited,
            front: Vec::new(),
            tables,
        })
    }

    /// How many rules of ours there are.
    pub fn count(&self) -> usize {
        self.families.values().map(|windows| windows.present.len()).sum()
    }

    /// Puts a layout in force in place of the one before. After an error the one before is in force.
    pub fn apply(&mut self, layout: &Layout) -> Result<(), RtnlError> {
        let added: Vec<Route> =
            layout.routes.difference(&self.routes).filter(|r| !self.inherited.contains(r)).copied().collect();
        // A drop before the device that it stands behind.
        self.routing.add_routes(&added)?;
        for family in Family::ALL {
            self.put(family, |first, exit, tun| layout.place(family, first, exit, tun))?;
        }
        let gone: Vec<Route> = self.routes.difference(&layout.routes).copied().collect();
        self.routes.clone_from(&layout.routes);
        self.routing.remove_routes(&gone)
    }

    /// Writes a layout into a closed window of a family and opens that in place of the open one.
    fn put(
        &mut self,
        family: Family,
        place: impl Fn(u32, u32, &str) -> Option<Vec<Rule>>,
    ) -> Result<(), RtnlError> {
        let (routing, tun) = (&mut self.routing, self.tun.as_str());
        let windows = self.families.entry(family).or_default();
        let rules_in = |window: u32| {
            let full = || RtnlError {
                operation: format!("lay out {family:?} routing rules"),
                errno: None,
                detail: format!("the guards need more than {WINDOW} priorities"),
            };
            place(base(window) + 2, base(window + 1), tun).ok_or_else(full)
        };
        if let Some(open) = windows.open
            && rules_in(open)? == windows.wanted
        {
            return Ok(());
        }
        let contents = |w: &u32| windows.left_over().filter(|r| window_of(r.priority) == Some(*w)).count();
        let free = (0..WINDOWS)
            .filter(|w| Some(*w) != windows.open && !windows.inherited.contains(w))
            .min_by_key(contents);
        let free = free.ok_or_else(|| RtnlError {
            operation: "put routing rules in force".to_owned(),
            errno: None,
            detail: "rules of earlier processes take all the room; see: ip rule".to_owned(),
        })?;
        let new = rules_in(free)?;
        if new.is_empty() && windows.open.is_none() {
            return Ok(());
        }
        if new.is_empty() && windows.inherited.is_empty() {
            *windows = Windows { present: clear(routing, family)?, ..Windows::default() };
            return Ok(());
        }
        let failed = write(routing, family, windows, free, &new).err();
        windows.present = ours(routing, family)?;
        let complete =
            windows.present.iter().filter(|r| is_content(r) && window_of(r.priority) == Some(free));
        if failed.is_some() || !complete.eq(new.iter()) {
            // Closed, so that it may stay if it cannot be removed.
            let _ = empty(routing, windows, free);
            return Err(failed.unwrap_or_else(|| RtnlError {
                operation: "put routing rules in force".to_owned(),
                errno: None,
                detail: "the kernel took them, but shows others; does somebody else remove them?".to_owned(),
            }));
        }
        routing.remove_rules(&[gate(family, free)])?;
        let old = windows.open.replace(free);
        windows.wanted = new;
        if let Some(old) = old {
            routing.add_rules(&[gate(family, old)])?;
        }
        windows.present = ours(routing, family)?;
        Self::tidy_if_few(routing, family, windows)
    }

    /// Empties closed windows, unless they have so much in them that somebody would have to wait for it.
    fn tidy_if_few(routing: &mut Routing, family: Family, windows: &mut Windows) -> Result<(), RtnlError> {
        let left: Vec<Rule> = windows.left_over().take(AT_ONCE + 1).cloned().collect();
        if left.is_empty() || left.len() > AT_ONCE {
            return Ok(());
        }
        routing.remove_rules(&left)?;
        windows.present = ours(routing, family)?;
        Ok(())
    }

    /// Removes some of what is left in closed windows. Says whether there is more.
    pub fn tidy(&mut self) -> Result<bool, RtnlError> {
        let mut more = false;
        for windows in self.families.values_mut() {
            let left: Vec<Rule> = windows.left_over().take(AT_ONCE).cloned().collect();
            self.routing.remove_rules(&left)?;
            let gone: BTreeSet<&Rule> = left.iter().collect();
            windows.present.retain(|rule| !gone.contains(rule));
            more |= windows.left_over().next().is_some();
        }
        Ok(more)
    }

    /// Closes and removes what an earlier process left, to be called when all guards are in force.
    pub fn settle(&mut self) -> Result<(), RtnlError> {
        for (family, windows) in &mut self.families {
            for window in std::mem::take(&mut windows.inherited) {
                self.routing.add_rules(&[gate(*family, window)])?;
            }
            let expected: BTreeSet<Rule> = windows.expected(*family).into_iter().collect();
            windows.present = ours(&mut self.routing, *family)?;
            let stray =
                windows.present.iter().filter(|rule| !expected.contains(rule) && !windows.is_left_over(rule));
            self.routing.remove_rules(&stray.cloned().collect::<Vec<_>>())?;
            windows.present = ours(&mut self.routing, *family)?;
            Self::tidy_if_few(&mut self.routing, *family, windows)?;
        }
        let stale: Vec<Route> = self.inherited.difference(&self.routes).copied().collect();
        self.routing.remove_routes(&stale)?;
        self.inherited.clear();
        Ok(())
    }

    /// Adds again what somebody else took away; says how many rules and routes that were.
    pub fn repair(&mut self) -> Result<usize, RtnlError> {
        let mut repaired = 0;
        let mut present = BTreeSet::new();
        for family in Family::ALL {
            present.extend(self.routing.routes(family, OWNER)?);
        }
        let lost: Vec<Route> = self.routes.difference(&present).copied().collect();
        self.routing.add_routes(&lost)?;
        repaired += lost.len();
        self.front.clear();
        let families: Vec<Family> = self.families.keys().copied().collect();
        for family in families {
            let Some(windows) = self.families.get_mut(&family) else { continue };
            let expected = windows.expected(family);
            let (own, others): (Vec<Rule>, Vec<Rule>) =
                self.routing.rules(family)?.into_iter().partition(|rule| rule.owner == OWNER);
            windows.present = own;
            if windows.open.is_some() {
                self.front.extend(others.into_iter().filter(is_in_front));
            }
            // Of inherited windows nothing is known but that they are there; what is left in closed ones does nothing.
            let known = |r: &&Rule| {
                window_of(r.priority).is_none_or(|w| !windows.inherited.contains(&w))
                    && !windows.is_left_over(r)
            };
            if windows.open.is_none()
                || windows.present.iter().filter(known).eq(expected.iter().filter(known))
            {
                continue;
            }
            let there: BTreeSet<&Rule> = windows.present.iter().collect();
            repaired += expected.iter().filter(|rule| !there.contains(rule)).count().max(1);
            self.rewrite(family)?;
        }
        Ok(repaired)
    }

    /// Writes the layout that is in force once more, into another window.
    fn rewrite(&mut self, family: Family) -> Result<(), RtnlError> {
        let Some(windows) = self.families.get_mut(&family) else { return Ok(()) };
        let Some(open) = windows.open else { return Ok(()) };
        let wanted = std::mem::take(&mut windows.wanted);
        let moved = |first: u32| -> Vec<Rule> {
            let from = base(open) + 2;
            let shift = |priority: u32| priority - from + first;
            wanted
                .iter()
                .map(|rule| {
                    let verdict = match rule.verdict {
                        Verdict::Goto(target) => Verdict::Goto(shift(target)),
                        other => other,
                    };
                    Rule { priority: shift(rule.priority), verdict, ..rule.clone() }
                })
                .collect()
        };
        let result = self.put(family, |first, _, _| Some(moved(first)));
        if result.is_err()
            && let Some(windows) = self.families.get_mut(&family)
            && windows.wanted.is_empty()
        {
            windows.wanted.clone_from(&wanted);
        }
        result
    }

    /// Removes all rules and routes of ours.
    pub fn release(&mut self) -> Result<(), RtnlError> {
        for family in Family::ALL {
            clear(&mut self.routing, family)?;
            let all = self.routing.routes(family, OWNER)?;
            self.routing.remove_routes(&all)?;
        }
        self.families.clear();
        self.routes.clear();
        self.inherited.clear();
        Ok(())
    }

    /// Rules of others that see packets before ours do and may take them.
    pub fn in_front(&mut self) -> Result<Vec<Rule>, RtnlError> {
        let mut out = Vec::new();
        for (family, _) in self.families.iter().filter(|(_, windows)| windows.open.is_some()) {
            let rules = self.routing.rules(*family)?;
            out.extend(rules.into_iter().filter(is_in_front));
        }
        Ok(out)
    }

    /// The same as the last [`Self::repair`] saw it.
    pub fn seen_in_front(&self) -> &[Rule] {
        &self.front
    }

    /// Whether the kernel has rules of a family at all.
    pub fn has_family(&mut self, family: Family) -> Result<bool, RtnlError> {
        Ok(!self.routing.rules(family)?.is_empty())
    }

    /// The addresses of this host that packets of its own may have, with the networks attached by them.
    pub fn own_addresses(&mut self) -> Result<BTreeSet<OwnAddress>, RtnlError> {
        near::own_addresses(&mut self.routing)
    }

    /// Those of them that can be a route's source.
    pub fn sources(&mut self, own: &BTreeSet<OwnAddress>) -> Result<BTreeSet<IpAddr>, RtnlError> {
        Ok(near::sources(&mut self.routing, own)?.into_iter().map(|own| own.address).collect())
    }
}

fn is_in_front(rule: &Rule) -> bool {
    rule.owner != OWNER && (1..FIRST_PRIORITY).contains(&rule.priority) && rule.verdict != Verdict::Nop
}

fn ours(routing: &mut Routing, family: Family) -> Result<Vec<Rule>, RtnlError> {
    let mut rules = routing.rules(family)?;
    rules.retain(|rule| rule.owner == OWNER);
    Ok(rules)
}

/// Removes all rules of ours and gives what is left. Those that point to others go first: while there are any, the kernel
/// looks through all rules at each removal.
fn clear(routing: &mut Routing, family: Family) -> Result<Vec<Rule>, RtnlError> {
    let all = ours(routing, family)?;
    let (jumps, rest): (Vec<Rule>, Vec<Rule>) =
        all.into_iter().partition(|rule| matches!(rule.verdict, Verdict::Goto(_)));
    routing.remove_rules(&jumps)?;
    routing.remove_rules(&rest)?;
    ours(routing, family)
}

/// Fills a window that is closed first. From the highest priority down: what a rule points to is there before it, and the
/// kernel finds each place at the head of its list.
fn write(
    routing: &mut Routing,
    family: Family,
    windows: &Windows,
    window: u32,
    new: &[Rule],
) -> Result<(), RtnlError> {
    let mut frame = vec![Rule::new(family, END, Verdict::Nop, OWNER)];
    for at in (0..WINDOWS).rev() {
        let open = Some(at) == windows.open || windows.inherited.contains(&at);
        frame.extend((!open).then(|| gate(family, at)));
        frame.push(anchor(family, at));
    }
    frame.retain(|rule| !windows.present.contains(rule));
    routing.add_rules(&frame)?;
    empty(routing, windows, window)?;
    let mut blocks: Vec<&[Rule]> = new.chunk_by(|a, b| a.priority == b.priority).collect();
    blocks.reverse();
    routing.add_rules(&blocks.concat())
}

/// Removes the contents of a closed window, in the order of the kernel.
fn empty(routing: &mut Routing, windows: &Windows, window: u32) -> Result<(), RtnlError> {
    let contents = windows.present.iter().filter(|r| is_content(r) && window_of(r.priority) == Some(window));
    routing.remove_rules(&contents.cloned().collect::<Vec<_>>())
}
