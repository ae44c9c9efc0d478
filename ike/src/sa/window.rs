//! Message IDs, retransmission and the response cache (RFC 7296 §2.1–§2.3). The window is one request each way.

use std::time::Duration;

use cygnet_model::Timestamp;
use cygnet_model::suite::Group;

use super::Ctx;
use super::follow_up::FollowUp;
use super::live::Request;
use crate::error::DropReason;
use crate::io::{Action, Event, Flow};
use crate::jobs::JobId;
use crate::policy::TunnelPolicy;
use crate::rate::Rate;
use crate::wire::{Exchange, Payloads};

/// The message ID after which there is none. Never used.
const LAST: u32 = u32::MAX;

/// A request on its way: its octets, and when they go out again.
pub(crate) struct Outgoing {
    pub datagrams: Vec<Vec<u8>>,
    tries: u32,
    wait: Duration,
    sent: Timestamp,
    /// When the next repetition is due.
    pub next: Timestamp,
}

/// What a timer did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Retried {
    /// It was not due, or the request went out again.
    Waiting,
    /// Every try was in vain.
    GaveUp,
}

impl Outgoing {
    /// Sends a request for the first time.
    pub fn send(ctx: &mut Ctx<'_>, policy: &TunnelPolicy, flow: Flow, datagrams: Vec<Vec<u8>>) -> Self {
        for bytes in &datagrams {
            ctx.out.push(Action::Send { flow, bytes: bytes.clone() });
        }
        let wait = policy.retransmit.initial;
        Self { datagrams, tries: 1, wait, sent: ctx.now.mono, next: ctx.now.mono + ctx.jitter(wait) }
    }

    /// A request that an earlier process sent. It is due at once and has all its tries: that nobody answered while nobody
    /// listened says nothing.
    pub fn resumed(now: Timestamp, policy: &TunnelPolicy, datagrams: Vec<Vec<u8>>) -> Self {
        Self { datagrams, tries: 1, wait: policy.retransmit.initial, sent: now, next: now }
    }

    /// Adds a datagram that goes out with the repetitions only.
    pub fn repeat_too(&mut self, datagram: Vec<u8>) {
        self.datagrams.push(datagram);
    }

    /// Whether it was sent more than twice without an answer.
    pub const fn is_repeated(&self) -> bool {
        self.tries > 2
    }

    /// Repeats the very same octets if it is time, or gives up.
    pub fn on_tick(&mut self, ctx: &mut Ctx<'_>, policy: &TunnelPolicy, flow: Flow) -> Retried {
        if ctx.now.mono < self.next {
            return Retried::Waiting;
        }
        if self.tries >= policy.retransmit.tries {
            return Retried::GaveUp;
        }
        self.tries += 1;
        self.wait = self.wait.mul_f64(policy.retransmit.factor.max(1.0)).min(policy.retransmit.max);
        self.next = ctx.now.mono + ctx.jitter(self.wait);
        self.sent = ctx.now.mono;
        for bytes in &self.datagrams {
            ctx.out.push(Action::Send { flow, bytes: bytes.clone() });
        }
        ctx.tell(Event::Retransmit(policy.id));
        Retried::Waiting
    }

    /// Tells how long the answer took, if it is clear which transmission it answers.
    pub fn answered(&self, ctx: &mut Ctx<'_>, policy: &TunnelPolicy) {
        if self.tries == 1 {
            let took = ctx.now.mono.since(self.sent);
            ctx.tell(Event::RoundTrip(policy.id, took));
        }
    }
}

/// A request that waits for its response.
pub(crate) struct Outstanding {
    pub id: u32,
    pub out: Outgoing,
    pub request: Request,
    /// The response, once it is there and waits for its secret.
    pub answer: Option<Answer>,
    /// The key exchanges that follow what was asked for.
    pub follow_up: FollowUp,
}

/// A response that cannot be taken before a secret is computed: for the rest of the protocol it is still on its way.
pub(crate) struct Answer {
    pub job: JobId,
    pub payloads: Payloads,
}

/// A request of the peer that cannot be answered before a key exchange is computed: for the rest of the protocol it is still
/// on its way.
pub(crate) struct Working {
    pub job: JobId,
    pub id: u32,
    pub exchange: Exchange,
    pub payloads: Payloads,
    /// The group of the key exchange.
    pub group: Group,
}

impl Outstanding {
    /// When the request is to be sent again; `None` if it is answered.
    pub fn next_repetition(&self) -> Option<Timestamp> {
        self.answer.is_none().then_some(self.out.next)
    }

    /// Whether it was sent more than twice without an answer.
    pub const fn is_unanswered(&self) -> bool {
        self.answer.is_none() && self.out.is_repeated()
    }
}

/// Both directions' message IDs of one IKE SA.
pub(crate) struct Window {
    /// ID of our next request.
    pub next_request: u32,
    /// Our request on its way.
    pub outstanding: Option<Outstanding>,
    /// ID of the peer's next request.
    pub expected: u32,
    /// That request, while its answer is computed.
    pub working: Option<Working>,
    /// Our response to the request before that.
    cached: Option<Cached>,
}

/// A response, for whoever has not got it.
struct Cached {
    datagrams: Vec<Vec<u8>>,
    repeats: Rate,
}

/// How often a response is repeated: once in this time, and so many times at once. Peers wait longer than that, and networks
/// repeat less.
pub(super) const REPEATS: (Duration, u32) = (Duration::from_millis(500), 4);

/// How a request's ID stands to the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// The one that is due.
    Due,
    /// That one again, while its answer is computed: it is neither lost nor done twice.
    Working,
    /// The one before: the response is repeated if the request is authentic, and nothing else is done.
    Repeated,
    /// Any other.
    Outside,
}

impl Window {
    /// A window after `sent` requests of ours and `received` of the peer's.
    pub fn new(sent: u32, received: u32) -> Self {
        Self { next_request: sent, outstanding: None, expected: received, working: None, cached: None }
    }

    /// Where a request's ID stands.
    pub fn place(&self, id: u32) -> Place {
        if id == LAST {
            // It would stay due for ever, and could be replayed.
            Place::Outside
        } else if id == self.expected {
            if self.working.is_some() { Place::Working } else { Place::Due }
        } else if id.checked_add(1) == Some(self.expected) {
            Place::Repeated
        } else {
            Place::Outside
        }
    }

    /// Sends the response to the request that is due, and keeps it for repetitions.
    pub fn respond(&mut self, ctx: &mut Ctx<'_>, flow: Flow, datagrams: Vec<Vec<u8>>) {
        self.expected = self.expected.saturating_add(1);
        for bytes in &datagrams {
            ctx.out.push(Action::Send { flow, bytes: bytes.clone() });
        }
        self.cached = Some(Cached { datagrams, repeats: Rate::default() });
    }

    /// The response to the peer's last request.
    pub fn answer(&self) -> Option<&[Vec<u8>]> {
        self.cached.as_ref().map(|c| c.datagrams.as_slice())
    }

    /// Keeps for repetitions what an earlier process answered.
    pub fn remember(&mut self, datagrams: Vec<Vec<u8>>) {
        self.cached = Some(Cached { datagrams, repeats: Rate::default() });
    }

    /// Repeats the last response, or says why not. The caller has seen that the request is authentic.
    pub fn repeat(&mut self, ctx: &mut Ctx<'_>, flow: Flow) -> Result<(), DropReason> {
        let cached = self.cached.as_mut().ok_or(DropReason::Duplicate)?;
        if !cached.repeats.admit(ctx.now.mono, REPEATS.0, REPEATS.1) {
            return Err(DropReason::RateLimit);
        }
        for bytes in &cached.datagrams {
            ctx.out.push(Action::Send { flow, bytes: bytes.clone() });
        }
        Ok(())
    }

    /// Whether no ID is left in one direction: the IKE SA is of no use any more.
    pub const fn exhausted(&self) -> bool {
        self.next_request == LAST || self.expected == LAST
    }

    /// Whether so many IDs are used that the IKE SA must be rekeyed (RFC 7296 §2.2: they never wrap).
    pub const fn worn(&self) -> bool {
        self.next_request > 1 << 31 || self.expected > 1 << 31
    }
}
