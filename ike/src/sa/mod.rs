//! One IKE SA: its states, and the handlers that move it from one to the next.
//!
//! ```text
//!   initiate ─▶ Preparing ─key▶ InitSent ──IKE_SA_INIT──▶ Agreeing ─secret▶ AuthSent ──IKE_AUTH──▶ Established
//!                                                            └─▶ Intermediate ─┘ (IKE_INTERMEDIATE)
//!   respond ──▶ InitTaken ─key▶ InitAnswered ──IKE_AUTH, secret──────────────────────────────────▶ Established
//!                                    └── refused ─▶ Refused (repeats its answer) ─▶ Closed
//!   Established ──rekey──▶ Rekeyed ─┐
//!               ──delete─▶ Deleting ┴▶ Closed
//! ```
//!
//! Keys and secrets are made by jobs ([`crate::jobs`]).
//!
//! A handler takes the state by value and returns the next one. Effects go into [`Ctx::out`] in the order in which they
//! must happen.

mod auth;
mod child;
mod collide;
mod create_child;
mod follow;
mod follow_up;
mod inform;
mod init;
mod intermediate;
mod keep;
mod live;
pub(crate) mod message;
mod natt;
mod parts;
mod rekey_ike;
mod respond;
mod seek;
mod window;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cygnet_model::selector::Packet;
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, IkeSpi, Now, Spi, Timestamp, TunnelId};

use crate::account;
use crate::crypto::Random;
use crate::endpoint::Config;
use crate::error::{DropReason, FailureReason, Trouble};
use crate::io::{Action, Actions, Ending, Event, Flow, Role};
use crate::jobs::{Asker, JobId, Jobs, Output, Work};
use crate::policy::{Policies, TunnelPolicy};
use crate::rate::{PeerRates, Rate};
use crate::wire::{Exchange, Header};

pub(crate) use auth::{AuthSent, Refused};
pub(crate) use child::{Child, ChildState};
pub(crate) use follow::is_another_peer;
pub(crate) use init::{Agreeing, Begin, Cookies, InitSent, Preparing, initiate, stateless};
pub(crate) use intermediate::Intermediate;
pub(crate) use keep::{Kept, show_policy};
pub(crate) use live::{Live, Task};
#[cfg(feature = "test-util")]
pub(crate) use message::Channel;
pub(crate) use parts::Parts;
pub(crate) use respond::{InitAnswered, InitTaken, respond};
pub(crate) use seek::{Ask, Seeking};
pub(crate) use window::Outstanding;

/// What handlers may use of the world.
pub(crate) struct Ctx<'a> {
    pub now: Now,
    pub random: &'a mut dyn Random,
    pub jobs: &'a mut Jobs,
    pub config: &'a Config,
    pub policies: &'a Policies,
    pub spis: &'a mut Spis,
    /// Parts of configured children.
    pub parts: &'a mut Parts,
    /// What each tunnel's authenticated peer may still ask for.
    pub rates: &'a mut BTreeMap<TunnelId, PeerRates>,
    /// How often strangers' refusals are told as accounts.
    pub claims: &'a mut Rate,
    /// How many keys of a tunnel in a row the peer did not know.
    pub refused_psks: &'a BTreeMap<TunnelId, usize>,
    /// How many established IKE SAs each tunnel has.
    pub established: &'a BTreeMap<TunnelId, u32>,
    /// SAs in the data plane.
    pub installed: &'a BTreeMap<ChildId, BTreeSet<SaId>>,
    /// Tunnels that were taken down by command and accept no peer.
    pub held: &'a BTreeSet<TunnelId>,
    pub out: &'a mut Actions,
    pub effects: &'a mut Vec<Effect>,
}

/// What handlers ask of the endpoint, since it concerns other SAs.
pub(crate) enum Effect {
    /// Take a new IKE SA in.
    Spawn(Box<IkeSa>),
    /// New keys were refused for a reason that a new IKE SA overcomes, since its IKE_AUTH negotiates no key exchange for
    /// the child (RFC 7296 §1.2): negotiate one beside this.
    Reauthenticate { spi: IkeSpi, tunnel: TunnelId, trouble: Trouble },
    /// The peer has gone on with an IKE SA whose keys an earlier process took with it: negotiate one beside this.
    Replace { spi: IkeSpi, tunnel: TunnelId },
    /// An attempt was led astray by a cookie that nobody had asked for: begin another one.
    BeginAnew { tunnel: TunnelId, packet: Option<(u16, Packet)> },
    /// Something that works now and will need attention.
    Learned { tunnel: TunnelId, trouble: Trouble },
    /// This IKE SA is established by authentication (not by rekey).
    Established { spi: IkeSpi, tunnel: TunnelId, initial_contact: bool },
}

impl Ctx<'_> {
    /// Adds an event.
    pub fn tell(&mut self, event: Event) {
        self.out.push(Action::Tell(event));
    }

    /// Counts a dropped datagram.
    pub fn dropped(&mut self, reason: DropReason, flow: Flow) {
        self.tell(Event::Dropped { reason, peer: flow.remote });
    }

    /// Whether a stranger's refusal is told of the tunnels that it may have been meant for: anybody can cause it as often as
    /// they like.
    pub fn may_tell_claim(&mut self) -> bool {
        self.claims.admit(self.now.mono, account::CLAIMS.0, account::CLAIMS.1)
    }

    /// What the authenticated peer of a tunnel may still ask for.
    pub fn rates(&mut self, tunnel: TunnelId) -> &mut PeerRates {
        self.rates.entry(tunnel).or_default()
    }

    /// Asks for a computation, whose result comes back to the IKE SA with this SPI.
    pub fn run(&mut self, sa: IkeSpi, asker: Asker, work: Work) -> JobId {
        let (id, job) = self.jobs.begin(self.now.mono, sa, asker, work);
        self.out.push(Action::Run(id, job));
        id
    }

    /// Whether strangers may make us compute more at this moment.
    pub const fn is_free_for_strangers(&self) -> bool {
        self.jobs.of_strangers() < self.config.stranger_jobs
    }

    /// Whether an SA is in place by which packets of a child leave.
    pub fn carries(&self, child: ChildId) -> bool {
        self.installed.get(&child).is_some_and(|set| set.iter().any(|sa| sa.direction == Direction::Out))
    }

    /// `base` ± 10 %.
    pub fn jitter(&mut self, base: Duration) -> Duration {
        self.within(base.mul_f64(0.9), base.mul_f64(1.1))
    }

    /// A random duration from `low` to `high`.
    pub fn within(&mut self, low: Duration, high: Duration) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX);
        low + Duration::from_nanos(self.random.below(span.saturating_add(1)))
    }

    /// A fresh nonce. 32 octets are at least half the key of any PRF that we negotiate (RFC 7296 §2.10).
    pub fn nonce(&mut self) -> Vec<u8> {
        let mut nonce = vec![0u8; 32];
        self.random.fill(&mut nonce);
        nonce
    }
}

/// SPIs in use at our end.
#[derive(Default)]
pub(crate) struct Spis {
    pub esp: BTreeSet<Spi>,
    pub ike: BTreeSet<IkeSpi>,
}

impl Spis {
    /// Chooses an inbound ESP SPI that nobody uses. Uniform over 2³² values with a few thousand taken, the loop ends
    /// after one or two draws.
    pub fn new_esp(&mut self, random: &mut dyn Random) -> Spi {
        loop {
            let [a, b, c, d, ..] = random.u64().to_be_bytes();
            if let Some(spi) = Spi::new(u32::from_be_bytes([a, b, c, d]))
                && self.esp.insert(spi)
            {
                return spi;
            }
        }
    }

    /// Chooses an IKE SPI.
    pub fn new_ike(&mut self, random: &mut dyn Random) -> IkeSpi {
        loop {
            if let Some(spi) = IkeSpi::new(random.u64())
                && self.ike.insert(spi)
            {
                return spi;
            }
        }
    }
}

/// What every state has.
pub(crate) struct Core {
    /// Our SPI, by which the endpoint knows this SA.
    pub spi: IkeSpi,
    pub role: Role,
    pub flow: Flow,
    pub created: Timestamp,
}

/// One IKE SA.
pub(crate) struct IkeSa {
    pub core: Core,
    pub state: State,
}

/// The life of an IKE SA.
pub(crate) enum State {
    /// We make a key for IKE_SA_INIT.
    Preparing(Box<Preparing>),
    /// We sent IKE_SA_INIT and wait for the answer.
    InitSent(Box<InitSent>),
    /// We have the answer, and compute the secret.
    Agreeing(Box<Agreeing>),
    /// We make additional key exchanges in IKE_INTERMEDIATE.
    Intermediate(Box<Intermediate>),
    /// We sent IKE_AUTH and wait for the answer.
    AuthSent(Box<AuthSent>),
    /// We make a key to answer IKE_SA_INIT.
    InitTaken(Box<InitTaken>),
    /// We answered IKE_SA_INIT and wait for IKE_INTERMEDIATE and IKE_AUTH, or compute the secrets to read them.
    InitAnswered(Box<InitAnswered>),
    /// We refused IKE_AUTH and keep the answer for repetitions.
    Refused(Box<Refused>),
    /// Both sides are authenticated.
    Established(Box<Live>),
    /// A newer IKE SA has the children; waits for its deletion.
    Rekeyed(Box<Live>),
    /// We asked the peer to delete it.
    Deleting(Box<Live>),
    /// Over.
    Closed(Closed),
}

/// The end of an IKE SA.
pub(crate) struct Closed {
    /// Whose it was, if that was known.
    pub policy: Option<Arc<TunnelPolicy>>,
    pub ending: Ending,
    /// One line for people, if it failed.
    pub detail: String,
    /// Whether it had been established.
    pub was_up: bool,
}

/// What a handler of an established SA decides.
pub(crate) enum Next {
    /// The state stays.
    Stay,
    /// The children moved to a newer SA.
    Rekeyed,
    /// We are deleting it.
    Deleting,
    /// It is over.
    Close(Ending, String),
}

/// Which of the three established states it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Established,
    Rekeyed,
    Deleting,
}

impl IkeSa {
    /// Handles a datagram whose header names this SA.
    pub fn on_datagram(&mut self, ctx: &mut Ctx<'_>, header: &Header, datagram: &[u8], flow: Flow) {
        // The initiator's messages carry the initiator flag for as long as the SA lives (RFC 7296 §3.1). One that
        // carries ours is a reflection.
        if header.from_initiator == (self.core.role == Role::Initiator) {
            return ctx.dropped(DropReason::Flags, flow);
        }
        let Self { core, state } = self;
        let taken = std::mem::replace(state, State::placeholder());
        *state = match taken {
            State::Preparing(s) => drop_in(State::Preparing(s), ctx, DropReason::UnexpectedExchange, flow),
            State::InitSent(s) => match (header.exchange, header.response) {
                (Exchange::IKE_SA_INIT, true) => s.on_response(core, ctx, header, datagram, flow),
                _ => drop_in(State::InitSent(s), ctx, DropReason::UnexpectedExchange, flow),
            },
            State::Agreeing(s) => {
                let repeated = (header.exchange, header.response) == (Exchange::IKE_SA_INIT, true);
                let reason = if repeated { DropReason::Duplicate } else { DropReason::UnexpectedExchange };
                drop_in(State::Agreeing(s), ctx, reason, flow)
            }
            State::Intermediate(s) => match (header.exchange, header.response) {
                (Exchange::IKE_INTERMEDIATE, true) => s.on_response(core, ctx, header, datagram),
                (Exchange::IKE_SA_INIT, true) => {
                    drop_in(State::Intermediate(s), ctx, DropReason::Duplicate, flow)
                }
                _ => drop_in(State::Intermediate(s), ctx, DropReason::UnexpectedExchange, flow),
            },
            State::AuthSent(s) => match (header.exchange, header.response) {
                (Exchange::IKE_AUTH, true) => s.on_response(core, ctx, header, datagram),
                // A repeated answer to what was before.
                (Exchange::IKE_SA_INIT | Exchange::IKE_INTERMEDIATE, true) => {
                    drop_in(State::AuthSent(s), ctx, DropReason::Duplicate, flow)
                }
                _ => drop_in(State::AuthSent(s), ctx, DropReason::UnexpectedExchange, flow),
            },
            State::InitTaken(s) => {
                let repeated = s.is_repeated(datagram);
                let reason = if repeated { DropReason::Duplicate } else { DropReason::UnexpectedExchange };
                drop_in(State::InitTaken(s), ctx, reason, flow)
            }
            State::InitAnswered(s) => match (header.exchange, header.response) {
                (Exchange::IKE_SA_INIT, false) => State::InitAnswered(s.on_repeated(ctx, datagram, flow)),
                (Exchange::IKE_INTERMEDIATE | Exchange::IKE_AUTH, false) => {
                    s.on_request(core, ctx, header, datagram, flow)
                }
                _ => drop_in(State::InitAnswered(s), ctx, DropReason::UnexpectedExchange, flow),
            },
            State::Refused(mut s) => {
                s.on_datagram(core, ctx, header, datagram, flow);
                State::Refused(s)
            }
            State::Established(mut s) => {
                let next = s.on_datagram(core, ctx, Phase::Established, header, datagram, flow);
                s.enter(core, ctx, Phase::Established, next)
            }
            State::Rekeyed(mut s) => {
                let next = s.on_datagram(core, ctx, Phase::Rekeyed, header, datagram, flow);
                s.enter(core, ctx, Phase::Rekeyed, next)
            }
            State::Deleting(mut s) => {
                let before = ctx.effects.len();
                let next = s.on_datagram(core, ctx, Phase::Deleting, header, datagram, flow);
                take_down_spawned(ctx, before);
                s.enter(core, ctx, Phase::Deleting, next)
            }
            State::Closed(c) => State::Closed(c),
        };
    }

    /// Goes on with the result of a job. One that this state does not wait for is late: it is dropped.
    pub fn on_done(&mut self, ctx: &mut Ctx<'_>, job: JobId, output: Output) {
        let Self { core, state } = self;
        let taken = std::mem::replace(state, State::placeholder());
        let mut kept = Vec::new();
        *state = match taken {
            State::Preparing(s) if s.job == job => s.on_key(core, ctx, output.key()),
            State::InitSent(s) if s.is_making(job) => s.on_key(core, ctx, output.key()),
            State::Agreeing(s) if s.job == job => s.on_secret(core, ctx, output.secret()),
            State::Intermediate(s) if s.is_waiting_for(job) => s.on_done(core, ctx, output),
            State::InitTaken(s) if s.job == job => s.on_key(core, ctx, output.key()),
            State::InitAnswered(s) => {
                let next;
                (next, kept) = s.on_done(core, ctx, job, output);
                next
            }
            State::Established(mut s) => {
                let next = s.on_done(core, ctx, Phase::Established, job, output);
                s.enter(core, ctx, Phase::Established, next)
            }
            State::Rekeyed(mut s) => {
                let next = s.on_done(core, ctx, Phase::Rekeyed, job, output);
                s.enter(core, ctx, Phase::Rekeyed, next)
            }
            State::Deleting(mut s) => {
                let before = ctx.effects.len();
                let next = s.on_done(core, ctx, Phase::Deleting, job, output);
                take_down_spawned(ctx, before);
                s.enter(core, ctx, Phase::Deleting, next)
            }
            s @ (State::Preparing(_)
            | State::InitSent(_)
            | State::Agreeing(_)
            | State::Intermediate(_)
            | State::InitTaken(_)
            | State::AuthSent(_)
            | State::Refused(_)
            | State::Closed(_)) => s,
        };
        for (flow, bytes) in kept {
            if let Ok((header, _)) = Header::decode(&bytes) {
                self.on_datagram(ctx, &header, &bytes, flow);
            }
        }
    }

    /// Does what is due.
    pub fn on_tick(&mut self, ctx: &mut Ctx<'_>) {
        let Self { core, state } = self;
        let taken = std::mem::replace(state, State::placeholder());
        *state = match taken {
            State::InitSent(s) => s.on_tick(core, ctx),
            State::Intermediate(s) => s.on_tick(core, ctx),
            State::AuthSent(s) => s.on_tick(core, ctx),
            State::InitAnswered(s) if ctx.now.mono >= s.expires => State::Closed(Closed {
                policy: None,
                ending: Ending::Failed(FailureReason::PeerUnreachable),
                detail: format!("{} began a negotiation and did not finish it", core.flow.remote),
                was_up: false,
            }),
            State::Refused(s) if ctx.now.mono >= s.until => State::Closed(s.closed()),
            s @ (State::Preparing(_)
            | State::Agreeing(_)
            | State::InitTaken(_)
            | State::InitAnswered(_)
            | State::Refused(_)
            | State::Closed(_)) => s,
            State::Established(s) => s.tick_in(core, ctx, Phase::Established),
            State::Rekeyed(s) => s.tick_in(core, ctx, Phase::Rekeyed),
            State::Deleting(s) => s.tick_in(core, ctx, Phase::Deleting),
        };
    }

    /// When [`IkeSa::on_tick`] has something to do.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        match &self.state {
            State::InitSent(s) => Some(s.next_wakeup()),
            State::Intermediate(s) => s.next_wakeup(),
            State::AuthSent(s) => Some(s.out.next),
            State::InitAnswered(s) => Some(s.expires),
            State::Refused(s) => Some(s.until),
            State::Established(s) => s.next_wakeup(Phase::Established, self.core.flow.natt),
            State::Rekeyed(s) => s.next_wakeup(Phase::Rekeyed, self.core.flow.natt),
            State::Deleting(s) => s.next_wakeup(Phase::Deleting, self.core.flow.natt),
            // A job has a deadline of its own.
            State::Preparing(_) | State::Agreeing(_) | State::InitTaken(_) | State::Closed(_) => None,
        }
    }

    /// The tunnel, once it is known.
    pub fn tunnel(&self) -> Option<TunnelId> {
        match &self.state {
            State::Preparing(s) => Some(s.policy.id),
            State::InitSent(s) => Some(s.policy.id),
            State::Agreeing(s) => Some(s.policy.id),
            State::Intermediate(s) => Some(s.policy.id),
            State::AuthSent(s) => Some(s.policy.id),
            State::InitTaken(_) | State::InitAnswered(_) | State::Refused(_) => None,
            State::Established(s) | State::Rekeyed(s) | State::Deleting(s) => Some(s.policy.id),
            State::Closed(c) => c.policy.as_ref().map(|p| p.id),
        }
    }

    /// The established SA, whatever its phase.
    pub fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Established(s) | State::Rekeyed(s) | State::Deleting(s) => Some(s),
            _ => None,
        }
    }

    /// Applies `f` to an established SA and enters what it decides. Does nothing in other states.
    pub fn with_live(
        &mut self,
        ctx: &mut Ctx<'_>,
        f: impl FnOnce(&mut Live, &mut Core, &mut Ctx<'_>, Phase) -> Next,
    ) {
        let Self { core, state } = self;
        let taken = std::mem::replace(state, State::placeholder());
        let (mut live, phase) = match taken {
            State::Established(s) => (s, Phase::Established),
            State::Rekeyed(s) => (s, Phase::Rekeyed),
            State::Deleting(s) => (s, Phase::Deleting),
            other => {
                *state = other;
                return;
            }
        };
        let next = f(&mut live, core, ctx, phase);
        *state = live.enter(core, ctx, phase, next);
    }

    /// Takes the SA down: politely if it is established, else without a word. One that goes already is left alone.
    pub fn take_down(&mut self, ctx: &mut Ctx<'_>) {
        match self.state {
            State::Established(_) => self.with_live(ctx, |live, _, ctx, _| {
                live.strip(ctx, Ending::Local);
                live.queue.push_back(Task::DeleteIke);
                Next::Deleting
            }),
            State::Rekeyed(_) | State::Deleting(_) => {}
            _ => self.drop_silently(ctx, Ending::Local),
        }
    }

    /// Ends the SA at once without telling the peer.
    pub fn drop_silently(&mut self, ctx: &mut Ctx<'_>, ending: Ending) {
        let was_up = self.live().is_some();
        let policy = self.policy().cloned();
        self.with_live(ctx, |live, _, ctx, _| {
            live.teardown(ctx, ending);
            Next::Stay
        });
        if let State::AuthSent(s) = &mut self.state {
            s.release(ctx);
        }
        self.state = State::Closed(Closed { policy, ending, detail: String::new(), was_up });
    }

    /// The policy that it was begun with, while it is one of a tunnel.
    pub fn policy(&self) -> Option<&Arc<TunnelPolicy>> {
        match &self.state {
            State::Preparing(s) => Some(&s.policy),
            State::InitSent(s) => Some(&s.policy),
            State::Agreeing(s) => Some(&s.policy),
            State::Intermediate(s) => Some(&s.policy),
            State::AuthSent(s) => Some(&s.policy),
            State::Established(s) | State::Rekeyed(s) | State::Deleting(s) => Some(&s.policy),
            State::InitTaken(_) | State::InitAnswered(_) | State::Refused(_) | State::Closed(_) => None,
        }
    }

    /// Whether it is half open from a stranger.
    pub const fn is_half_open(&self) -> bool {
        matches!(self.state, State::InitTaken(_) | State::InitAnswered(_))
    }

    /// Whether we have begun it and the peer is not authenticated yet.
    pub const fn is_beginning(&self) -> bool {
        matches!(
            self.state,
            State::Preparing(_)
                | State::InitSent(_)
                | State::Agreeing(_)
                | State::Intermediate(_)
                | State::AuthSent(_)
        )
    }
}

impl State {
    /// What stands in the SA while a handler owns its state.
    const fn placeholder() -> Self {
        Self::Closed(Closed { policy: None, ending: Ending::Local, detail: String::new(), was_up: false })
    }
}

/// An IKE SA that comes of a rekey which was on its way goes down with the one that is being deleted. `before` counts the
/// effects that were there before.
fn take_down_spawned(ctx: &mut Ctx<'_>, before: usize) {
    for mut effect in ctx.effects.split_off(before) {
        if let Effect::Spawn(sa) = &mut effect {
            sa.take_down(ctx);
        }
        ctx.effects.push(effect);
    }
}

fn drop_in(state: State, ctx: &mut Ctx<'_>, reason: DropReason, flow: Flow) -> State {
    ctx.dropped(reason, flow);
    state
}
