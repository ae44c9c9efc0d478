//! How a layout of rules gets into the place of another without a moment in which a guard is open, as a pure function.
//!
//! A search tree of rules cannot be changed rule by rule: a packet could be sent into a block that is not there yet. So
//! there are four *windows* of priorities, each with room for a whole layout:
//!
//! ```text
//!   W     nop                  the anchor: where the window before ends
//!   W+1   goto next window     the gate: there while the window is closed
//!   W+2…  the contents
//! ```
//!
//! [`next`] looks at the rules and says what to bring about now. Nothing is remembered, so that a process which is killed
//! between any two steps, or somebody who removes a rule, is no other case than the first start:
//!
//! 1. the frame: all anchors, and gates of the windows that are empty;
//! 2. the contents of a closed window, which do nothing yet;
//! 3. once these are seen to be whole: its gate goes (what it hid holds packets from then on), then the gate of the window
//!    that was open before comes. In between both are in force.
//!
//! The contents of a window that has been closed do nothing any more. The kernel walks all rules for each that it removes,
//! so many are removed little by little, when nobody waits for it.

use std::collections::BTreeSet;

use cygnet_reconcile::Effect;
use cygnet_xfrm::route::Family;
use cygnet_xfrm::rule::{Rule, Verdict};

use super::layout::OWNER;
use crate::plane::pieces::Piece;

/// The first priority of ours. Rules before it (but the kernel's own at 0) see guarded packets first.
pub const FIRST_PRIORITY: u32 = 1100;
const WINDOW: u32 = 1000;
const WINDOWS: u32 = 4;
/// The last one: unconcerned packets go on behind it.
pub const LAST_PRIORITY: u32 = FIRST_PRIORITY + WINDOWS * WINDOW;
/// Where a layout begins that is placed in the first window, and where packets go on that it does not concern.
pub(super) const PLACED: (u32, u32) = (FIRST_PRIORITY + 2, FIRST_PRIORITY + WINDOW);

/// So many rules of closed windows are removed at once. Each costs the kernel a walk over all.
pub(super) const AT_ONCE: usize = 64;

/// What to bring about now in one family.
#[derive(Default, Debug)]
pub(super) struct Next {
    /// What shall be there, and what of it, or instead of it, is. All else stays as it is.
    pub want: Vec<Piece>,
    pub seen: Vec<Piece>,
    /// Whether the wanted layout alone is in force: then routes that only others need may go.
    pub is_last: bool,
    /// What is left in closed windows and is not to be removed now, in the order of the kernel.
    pub left: Vec<Rule>,
    /// How many rules of the wanted layout and its frame are not there.
    pub missing: usize,
}

/// All windows hold what earlier processes left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoRoom;

/// What a family's rules of ours, in the order of the kernel, want next so that `wanted` (placed in the first window) is in
/// force. `kept` are windows that an earlier process left open, until they may be closed.
pub(super) fn next(
    family: Family,
    wanted: &[Rule],
    rules: &[Rule],
    kept: Option<&BTreeSet<u32>>,
) -> Result<Next, NoRoom> {
    if wanted.is_empty() && kept.is_none_or(BTreeSet::is_empty) {
        // The end, in which nobody needs to be held any more, or nothing yet.
        let seen = rules.iter().cloned().map(Piece::rule).collect();
        return Ok(Next { seen, is_last: true, ..Next::default() });
    }
    let is_kept = |window: u32| kept.is_some_and(|kept| kept.contains(&window));
    let windows: Vec<Seen<'_>> = (0..WINDOWS).map(|window| Seen::of(window, family, rules)).collect();
    let has_wanted = |seen: &&Seen<'_>| !is_kept(seen.window) && seen.holds(wanted);
    let whole = windows.iter().filter(has_wanted).min_by_key(|seen| seen.is_gated);
    let frame = |is_open: &dyn Fn(&Seen<'_>) -> bool| -> Vec<Rule> {
        let gates = windows.iter().filter(|seen| !is_open(seen)).map(|seen| gate(family, seen.window));
        let anchors = (0..WINDOWS).map(|window| anchor(family, window));
        gates.chain(anchors).chain([Rule::new(family, LAST_PRIORITY, Verdict::Nop, OWNER)]).collect()
    };
    let absent = |wanted: &[Rule]| wanted.iter().filter(|rule| !rules.contains(rule)).count();
    let of_frame = rules.iter().filter(|rule| is_frame(family, rule));

    if let Some(whole) = whole {
        let want = frame(&|seen| seen.window == whole.window || is_kept(seen.window));
        let missing = absent(&want);
        let mut seen: Vec<Piece> = of_frame.cloned().map(piece).collect();
        if kept.is_none() {
            let strays =
                rules.iter().filter(|rule| !is_frame(family, rule) && window_of(rule.priority).is_none());
            seen.extend(strays.cloned().map(Piece::rule));
        }
        let mut left: Vec<Rule> = windows
            .iter()
            .filter(|seen| seen.is_gated && seen.window != whole.window)
            .flat_map(|seen| seen.contents.iter().copied().cloned())
            .collect();
        if left.len() <= AT_ONCE {
            seen.extend(contents(std::mem::take(&mut left), Effect::Rests));
        }
        return Ok(Next { want: want.into_iter().map(piece).collect(), seen, is_last: true, left, missing });
    }

    // What is in force is in an open window; it stays.
    let free = windows
        .iter()
        .filter(|seen| !is_kept(seen.window) && (seen.is_gated || seen.contents.is_empty()))
        .min_by_key(|seen| seen.contents.len());
    let Some(free) = free else {
        // Two layouts of ours are open, neither of which is wanted. The first decides.
        let last = windows.iter().rev().find(|seen| !is_kept(seen.window)).ok_or(NoRoom)?;
        let want = vec![piece(gate(family, last.window))];
        return Ok(Next { want, missing: wanted.len(), ..Next::default() });
    };
    let open = windows.iter().filter(|seen| !seen.is_gated).map(|seen| seen.contents.len()).max();
    let missing = wanted.len().saturating_sub(open.unwrap_or(0)).max(1);
    let want = frame(&|seen| !seen.is_gated && !seen.contents.is_empty());
    if absent(&want) > 0 {
        let missing = missing + absent(&want);
        let want: Vec<Piece> = want.into_iter().map(piece).collect();
        let seen = of_frame.cloned().map(piece).filter(|piece| want.contains(piece)).collect();
        return Ok(Next { want, seen, missing, ..Next::default() });
    }
    let shifted = wanted.iter().map(|rule| shifted(rule, free.window)).collect();
    Ok(Next {
        want: contents(shifted, Effect::Holds),
        seen: contents(free.contents.iter().copied().cloned().collect(), Effect::Rests),
        missing,
        ..Next::default()
    })
}

/// The windows that are open with something in them: what an earlier process left in force.
pub(super) fn open(family: Family, rules: &[Rule]) -> BTreeSet<u32> {
    let windows = (0..WINDOWS).map(|window| Seen::of(window, family, rules));
    windows.filter(|seen| !seen.is_gated && !seen.contents.is_empty()).map(|seen| seen.window).collect()
}

/// A window as it is.
struct Seen<'a> {
    window: u32,
    is_gated: bool,
    contents: Vec<&'a Rule>,
}

impl<'a> Seen<'a> {
    fn of(window: u32, family: Family, rules: &'a [Rule]) -> Self {
        let gate = gate(family, window);
        let inside = |rule: &&Rule| window_of(rule.priority) == Some(window) && !is_frame(family, rule);
        Self { window, is_gated: rules.contains(&gate), contents: rules.iter().filter(inside).collect() }
    }

    /// Whether a layout is in it, no more and no less.
    fn holds(&self, wanted: &[Rule]) -> bool {
        let is_in_place = |(have, want): (&&Rule, &Rule)| {
            have.priority == want.priority + self.window * WINDOW && **have == shifted(want, self.window)
        };
        self.contents.len() == wanted.len() && self.contents.iter().zip(wanted).all(is_in_place)
    }
}

/// A rule of the first window in another one.
fn shifted(rule: &Rule, window: u32) -> Rule {
    let by = window * WINDOW;
    let verdict = match rule.verdict {
        Verdict::Goto(target) => Verdict::Goto(target + by),
        other => other,
    };
    Rule { priority: rule.priority + by, verdict, ..rule.clone() }
}

/// Rules in the order of the kernel, each with its place among those of its priority.
fn contents(rules: Vec<Rule>, effect: Effect) -> Vec<Piece> {
    let mut before = (0, 0);
    let place = |rule: Rule| {
        before = if before.0 == rule.priority { (rule.priority, before.1 + 1) } else { (rule.priority, 0) };
        Piece::Rule { at: before.1, rule, effect }
    };
    rules.into_iter().map(place).collect()
}

/// A rule of the frame: a gate hides what would hold packets.
fn piece(rule: Rule) -> Piece {
    let is_gate = matches!(rule.verdict, Verdict::Goto(_));
    Piece::Rule { rule, at: 0, effect: if is_gate { Effect::LetsBy } else { Effect::Holds } }
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

fn is_frame(family: Family, rule: &Rule) -> bool {
    if rule.priority == LAST_PRIORITY {
        return *rule == Rule::new(family, LAST_PRIORITY, Verdict::Nop, OWNER);
    }
    window_of(rule.priority).is_some_and(|window| match rule.priority - base(window) {
        0 => *rule == anchor(family, window),
        1 => *rule == gate(family, window),
        _ => false,
    })
}
