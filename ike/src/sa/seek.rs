//! Asking the peer for what is configured and not carried: a child as a whole first, and pair by pair for what a peer
//! leaves out of its answer (RFC 7296 §2.9) or takes only alone (SINGLE_PAIR_REQUIRED, and TS_UNACCEPTABLE to a list).
//!
//! One *round* asks for each pair at most once. What is still refused at its end is asked for again in another round,
//! ever more rarely.

use std::collections::BTreeSet;
use std::time::Duration;

use cygnet_model::Timestamp;
use cygnet_model::selector::{Packet, TrafficSelector, within};

use super::live::Request;
use super::{Core, Ctx, Live, Task};
use crate::coverage::{self, Networks};
use crate::error::{FailureReason, Trouble};
use crate::io::{Event, Role};
use crate::policy::{ChildPolicy, Start};

/// First and longest wait before a child that failed is tried again.
const CHILD_RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Most requests of one round for one child.
const MAX_ASKED: usize = 64;

/// Refusals in a round after which it ends if nothing at all of the child is carried.
const HOPELESS: usize = 8;

/// A part that lived shorter than this and was deleted by the peer is made again only after a wait that grows: a peer
/// that keeps one part of a child would otherwise go round for ever.
pub(super) const SETTLED: Duration = Duration::from_secs(60);

/// How long something may be missing before we ask for it without another reason. Longer than a peer takes that asks for
/// one pair after the other.
const MEND: Duration = Duration::from_secs(10);

/// Selectors of a request, led by those of the packet that made us ask, if it belongs to them (RFC 7296 §2.9): a responder
/// that cannot take all of them knows which part is wanted now.
pub(super) fn led_by(
    packet: Option<Packet>,
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    let whole = |first: Option<&TrafficSelector>, all: &[TrafficSelector]| {
        // One that is asked for as it is needs not be named twice.
        let first = first.filter(|f| !all.contains(f)).copied();
        first.into_iter().chain(all.iter().copied()).collect()
    };
    let packet = packet.filter(|p| within(&[p.local], local) && within(&[p.remote], remote));
    (whole(packet.as_ref().map(|p| &p.local), local), whole(packet.as_ref().map(|p| &p.remote), remote))
}

/// What one request asks for of a configured child.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Ask {
    /// All its selectors.
    Whole,
    /// One local and one remote selector, by their positions.
    Pair(u16, u16),
}

/// The search for what is missing of one configured child.
#[derive(Default)]
pub(crate) struct Seeking {
    /// What was asked for in this round and refused.
    tried: BTreeSet<Ask>,
    /// Rounds in a row that left something refused.
    failures: u32,
    /// Why, as last seen.
    pub trouble: Option<Trouble>,
    /// When the next round begins by itself.
    pub retry_at: Option<Timestamp>,
    /// Before this, packets that want the child do not begin one.
    patient_until: Timestamp,
}

impl Seeking {
    /// How long to wait before the next round.
    fn wait(&mut self) -> Duration {
        let wait = CHILD_RETRY.0.saturating_mul(1 << self.failures.min(10)).min(CHILD_RETRY.1);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

/// A refusal that may be about the combination of what was asked for, and not about each of it.
const fn is_piecewise(reason: FailureReason) -> bool {
    matches!(reason, FailureReason::TsUnacceptable | FailureReason::SinglePair)
}

/// Whether one pair of SAs carries all of a child, which spares looking at each pair of networks.
fn is_whole(child: &ChildPolicy, carried: &[Networks<'_>]) -> bool {
    carried.iter().any(|(l, r)| within(&child.local, l) && within(&child.remote, r))
}

impl Live {
    /// The numbers of the configured children.
    pub fn configured(&self) -> Vec<u16> {
        self.policy.children.iter().map(|(index, _)| index).collect()
    }

    /// What is carried of a configured child by pairs that are there to stay.
    fn carried(&self, of: u16) -> Vec<Networks<'_>> {
        let stays = self.children.iter().filter(|c| c.of == of && c.is_to_stay());
        stays.map(|c| (c.local.as_slice(), c.remote.as_slice())).collect()
    }

    /// What to ask for next; `None` if everything is carried at least in part, or was asked for in this round.
    pub fn next_ask(&self, of: u16) -> Option<Ask> {
        let child = self.policy.children.get(of)?;
        let carried = self.carried(of);
        let tried = self.seeking.get(&of).map(|s| &s.tried);
        let fresh = |ask: &Ask| tried.is_none_or(|t| !t.contains(ask) && t.len() <= MAX_ASKED);
        if carried.is_empty() && fresh(&Ask::Whole) {
            return Some(Ask::Whole);
        }
        if child.local.len().saturating_mul(child.remote.len()) < 2 {
            return None;
        }
        if is_whole(child, &carried) {
            return None;
        }
        (0u16..).zip(&child.local).find_map(|(l, local)| {
            (0u16..).zip(&child.remote).find_map(|(r, remote)| {
                let ask = Ask::Pair(l, r);
                let wanted = fresh(&ask) && !coverage::touches(&[*local], &[*remote], &carried);
                wanted.then_some(ask)
            })
        })
    }

    /// The selectors of a request.
    pub fn asked(&self, of: u16, ask: Ask) -> Option<(Vec<TrafficSelector>, Vec<TrafficSelector>)> {
        let child = self.policy.children.get(of)?;
        match ask {
            Ask::Whole => Some((child.local.clone(), child.remote.clone())),
            Ask::Pair(l, r) => {
                Some((vec![*child.local.get(usize::from(l))?], vec![*child.remote.get(usize::from(r))?]))
            }
        }
    }

    /// Whether packets that want a child have to wait, because it was refused a short while ago.
    pub fn is_patient(&self, ctx: &Ctx<'_>, of: u16) -> bool {
        self.seeking.get(&of).is_some_and(|s| ctx.now.mono < s.patient_until)
    }

    /// Whether the peer is being asked for something of a configured child, or is about to be.
    pub fn is_seeking(&self, of: u16) -> bool {
        let asked = match self.window.outstanding.as_ref().map(|o| &o.request) {
            Some(Request::CreateChild(c)) => c.seeks() == Some(of),
            _ => false,
        };
        asked || self.queue.iter().any(|t| matches!(t, Task::CreateChild { index, .. } if *index == of))
    }

    /// Sees to it that a child of which nothing is carried is asked for some time. Whatever took the child away has usually seen
    /// to that already, and sooner; but exchanges that cross may each count on the pair that the other one ends.
    pub fn seek_missing(&mut self, ctx: &mut Ctx<'_>, role: Role) {
        let ours = match self.policy.start {
            Start::Active => true,
            // Taken up by command, or by the peer, whose business it is then.
            Start::Passive => role == Role::Initiator,
            // The next packet asks.
            Start::OnDemand => false,
        };
        if !ours || self.outdated {
            return;
        }
        for of in self.configured() {
            let later = |(_, task): &(Timestamp, Task)| matches!(task, Task::CreateChild { index, .. } if *index == of);
            let waits = self.delayed.iter().any(later) || self.is_patient(ctx, of);
            // Of what is carried in part, the rest is sought by whoever made that part.
            if waits || !self.carried(of).is_empty() || self.next_ask(of).is_none() {
                continue;
            }
            let at = ctx.now.mono + ctx.jitter(MEND);
            self.enqueue_at(at, Task::CreateChild { index: of, group: None });
        }
    }

    /// Begins a round at once, whatever was refused before.
    pub fn seek(&mut self, of: u16) {
        if let Some(seeking) = self.seeking.get_mut(&of) {
            seeking.tried.clear();
            seeking.retry_at = None;
        }
        if self.next_ask(of).is_some() {
            self.enqueue(Task::CreateChild { index: of, group: None });
        }
    }

    /// A pair of SAs was made: what was in its way is gone if nothing more is missing.
    pub fn found(&mut self, of: u16) {
        let Some(child) = self.policy.children.get(of) else { return };
        let carried = self.carried(of);
        let missing = !is_whole(child, &carried)
            && coverage::pairs_of(child).any(|(l, r)| !coverage::touches(&[l], &[r], &carried));
        if !missing {
            self.seeking.remove(&of);
        }
    }

    /// A request of ours was answered with a pair: goes on with what that left out.
    pub fn seek_rest(&mut self, core: &Core, ctx: &mut Ctx<'_>, of: u16) {
        self.found(of);
        self.go_on(core, ctx, of, false);
    }

    /// A request for a child, or for a pair of it, was refused: goes on with the others, or later.
    pub fn refused(&mut self, core: &Core, ctx: &mut Ctx<'_>, of: u16, ask: Ask, trouble: Trouble) {
        let hopeless =
            self.carried(of).is_empty() && self.seeking.get(&of).is_some_and(|s| s.tried.len() >= HOPELESS);
        let over = !is_piecewise(trouble.reason) || hopeless;
        let seeking = self.seeking.entry(of).or_default();
        seeking.tried.insert(ask);
        // What a list is refused for matters less than what one pair is.
        seeking.trouble = Some(trouble);
        self.go_on(core, ctx, of, over);
    }

    fn go_on(&mut self, core: &Core, ctx: &mut Ctx<'_>, of: u16, over: bool) {
        if !over && self.next_ask(of).is_some() {
            return self.enqueue(Task::CreateChild { index: of, group: None });
        }
        let active = self.policy.start == Start::Active;
        let Some(seeking) = self.seeking.get_mut(&of) else { return };
        seeking.tried.clear();
        let Some(trouble) = seeking.trouble.clone() else { return };
        let wait = seeking.wait();
        let wait = ctx.jitter(wait);
        let again = active || trouble.reason == FailureReason::TemporaryFailure;
        if let Some(seeking) = self.seeking.get_mut(&of) {
            seeking.patient_until = ctx.now.mono + wait;
            seeking.retry_at = again.then_some(seeking.patient_until);
        }
        if again {
            self.enqueue_at(ctx.now.mono + wait, Task::CreateChild { index: of, group: None });
        }
        let (reason, detail) = (trouble.reason, trouble.detail);
        let (tunnel, peer) = (Some(self.policy.id), core.flow.remote);
        ctx.tell(Event::Failure { tunnel, peer, reason, detail, retry_in: again.then_some(wait) });
    }

    /// How long to wait before something of a child is made again that the peer deleted when it was `age` old.
    pub fn remake_wait(&mut self, of: u16, age: Duration, first: Duration) -> Duration {
        if age >= SETTLED || self.carried(of).is_empty() {
            return first;
        }
        self.seeking.entry(of).or_default().wait()
    }
}
