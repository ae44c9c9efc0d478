//! An established IKE SA: its requests and timers, and the dispatch of what the peer sends.
//!
//! Exchanges that we start are [`Task`]s in a queue; with a window of one the next begins when the one before has ended.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cygnet_model::selector::Packet;
use cygnet_model::suite::{Group, IkeSuite};
use cygnet_model::tunnel::{Direction, NewAddresses, SaId};
use cygnet_model::{SecretBytes, Spi, Timestamp};

use super::auth::{PeerAuthenticated, error_notify};
use super::create_child::{BUSY_RETRY, Created, CreatingChild};
use super::follow_up::{FollowUp, Progress, Promise, not_made};
use super::inform::begin_disown_child;
use super::message::{Channel, Opened, asks_again};
use super::natt::Nat;
use super::rekey_ike::{RekeyedByPeer, RekeyingIke};
use super::window::{Answer, Outgoing, Outstanding, Place, Retried, Window, Working};
use super::work::{Handled, NextKey};
use super::{Child, ChildState, Closed, Core, Ctx, Next, Phase, Seeking, State};
use crate::crypto::kex::KexError;
use crate::crypto::keymat::Secrets;
use crate::error::{DropReason, FailureReason};
use crate::io::{Action, Ending, Event, Flow};
use crate::jobs::Asker;
use crate::policy::TunnelPolicy;
use crate::wire::{Exchange, Header, Identity, Notify, NotifyType, Payloads};

/// A NAT forgets a mapping after as little as 30 s (RFC 3948 §4 proposes 20 s).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How long a replaced IKE SA waits for its deletion.
pub(super) const REKEYED_LIFETIME: Duration = Duration::from_secs(90);

/// An exchange that we want to start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// A new pair for what is missing of a configured child; the group answers an INVALID_KE_PAYLOAD.
    CreateChild { index: u16, group: Option<Group> },
    /// New keys for a pair, named by its inbound SPI.
    RekeyChild { inbound: Spi, group: Option<Group> },
    /// A new IKE SA.
    RekeyIke { group: Option<Group> },
    /// The end of a pair.
    DeleteChild { inbound: Spi },
    /// The end of a pair that the peer has and we never took into use.
    DisownChild { inbound: Spi },
    /// The end of this IKE SA.
    DeleteIke,
    /// Is the peer there?
    Liveness,
}

/// A request on its way, with what its answer needs.
pub(crate) enum Request {
    CreateChild(Box<CreatingChild>),
    RekeyIke(Box<RekeyingIke>),
    DeleteChild { inbound: Spi },
    DeleteIke,
    Liveness,
}

impl Request {
    /// Gives back what the request had reserved.
    pub fn release(self, ctx: &mut Ctx<'_>) {
        match self {
            Self::CreateChild(c) => {
                ctx.spis.esp.remove(&c.inbound);
            }
            Self::RekeyIke(r) => {
                ctx.spis.ike.remove(&r.spi);
            }
            Self::DeleteChild { .. } | Self::DeleteIke | Self::Liveness => {}
        }
    }
}

/// What a request of the peer leads to.
pub(crate) struct Reply {
    pub payloads: Payloads,
    /// Actions that come after the response is sent.
    pub after: Vec<Action>,
    pub next: Next,
}

impl Reply {
    /// An answer that changes nothing.
    pub fn with(payloads: Payloads) -> Self {
        Self { payloads, after: Vec::new(), next: Next::Stay }
    }

    /// An answer that is one notification.
    pub fn notify(notify: Notify) -> Self {
        Self::with(Payloads { notifies: vec![notify], ..Payloads::default() })
    }
}

/// An established IKE SA.
pub(crate) struct Live {
    pub policy: Arc<TunnelPolicy>,
    /// Who the peer has proven to be.
    pub peer_id: Identity,
    pub channel: Channel,
    pub suite: IkeSuite,
    pub sk_d: SecretBytes,
    pub nat: Nat,
    pub window: Window,
    pub children: Vec<Child>,
    /// Inbound SAs of removed pairs, until packets on their way have arrived.
    pub lingering: Vec<(Timestamp, SaId)>,
    pub queue: VecDeque<Task>,
    /// The key for the first of them that wants one.
    pub key: NextKey,
    /// Tasks for later.
    pub delayed: Vec<(Timestamp, Task)>,
    /// The children that we made since the peer's last request: at most one pair of each.
    pub created: Vec<Created>,
    /// The peer's rekey of this IKE SA, while our own is on its way.
    pub their_rekey: Option<Box<RekeyedByPeer>>,
    /// What the peer asked for and gets once the key exchanges that follow are made.
    pub promise: Option<Box<Promise>>,
    /// The peer refused the first child in IKE_AUTH because of its algorithms: another IKE_AUTH will not help.
    pub refused_in_auth: bool,
    /// It is to be replaced by a new IKE SA, because rekeys fail.
    pub outdated: bool,
    /// When it is deleted, since a newer one carries the tunnel.
    pub retire_at: Option<Timestamp>,
    pub rekey_at: Timestamp,
    pub expire_at: Timestamp,
    /// Last authenticated sign of life of the peer.
    pub last_in: Timestamp,
    pub(super) last_out: Timestamp,
    /// What is missing of configured children, and why.
    pub seeking: BTreeMap<u16, Seeking>,
    /// Packets that want configured children, until these are asked for.
    pub packets: BTreeMap<u16, Packet>,
    /// Times in a row that the peer put a rekey off.
    pub put_off: u32,
    /// When authentication or the rekey that made this SA ended.
    pub established: Timestamp,
    pub established_unix: u64,
    /// Whether it is an earlier process's.
    pub resumed: Resumed,
}

/// How an IKE SA of an earlier process proves that what was kept of it is what the peer knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resumed {
    /// It needs no proof.
    No,
    /// The first thing that we ask will be whether the peer lives: if its answer is one to something else we are behind, and
    /// no key came of it.
    Unasked,
    /// We have asked.
    Asked,
    /// It was taken up again, and the peer has answered.
    Proven,
}

impl Live {
    /// An IKE SA without children. The proof shows that the peer was authenticated.
    #[allow(clippy::too_many_arguments, reason = "what two exchanges negotiated")]
    pub fn new(
        core: &Core,
        ctx: &mut Ctx<'_>,
        policy: Arc<TunnelPolicy>,
        channel: Channel,
        suite: IkeSuite,
        sk_d: SecretBytes,
        nat: Nat,
        window: Window,
        proof: PeerAuthenticated,
    ) -> Self {
        let live = Self::bare(ctx, policy, proof.identity(), channel, suite, sk_d, nat, window);
        ctx.tell(Event::IkeUp {
            tunnel: live.policy.id,
            spi: core.spi,
            role: core.role,
            suite,
            flow: core.flow,
        });
        live
    }

    /// The same for a rekeyed IKE SA, which inherits the authentication of the old one (RFC 7296 §2.18).
    #[allow(clippy::too_many_arguments, reason = "what two exchanges negotiated")]
    pub fn bare(
        ctx: &mut Ctx<'_>,
        policy: Arc<TunnelPolicy>,
        peer_id: Identity,
        channel: Channel,
        suite: IkeSuite,
        sk_d: SecretBytes,
        nat: Nat,
        window: Window,
    ) -> Self {
        let now = ctx.now.mono;
        let lifetime = policy.lifetime;
        let margin = ctx.within(lifetime / 10, lifetime / 5);
        Self {
            policy,
            peer_id,
            channel,
            suite,
            sk_d,
            nat,
            window,
            children: Vec::new(),
            lingering: Vec::new(),
            queue: VecDeque::new(),
            key: NextKey::None,
            delayed: Vec::new(),
            created: Vec::new(),
            their_rekey: None,
            promise: None,
            refused_in_auth: false,
            outdated: false,
            retire_at: None,
            rekey_at: now + lifetime - margin,
            expire_at: now + lifetime,
            last_in: now,
            last_out: now,
            seeking: BTreeMap::new(),
            packets: BTreeMap::new(),
            put_off: 0,
            established: now,
            established_unix: ctx.now.unix,
            resumed: Resumed::No,
        }
    }

    /// Turns a handler's decision into the next state.
    pub fn enter(mut self: Box<Self>, core: &mut Core, ctx: &mut Ctx<'_>, phase: Phase, next: Next) -> State {
        match (next, phase) {
            (Next::Close(ending, detail), _) => {
                self.teardown(ctx, ending);
                State::Closed(Closed { policy: Some(self.policy), ending, detail, was_up: true })
            }
            (Next::Stay, Phase::Established) => {
                self.pump(core, ctx);
                if self.window.outstanding.is_none() && self.queue.is_empty() {
                    self.seek_missing(ctx, core.role);
                }
                State::Established(self)
            }
            (Next::Rekeyed, _) | (Next::Stay, Phase::Rekeyed) => {
                self.pump(core, ctx);
                State::Rekeyed(self)
            }
            (Next::Deleting, _) | (Next::Stay, Phase::Deleting) => {
                self.pump(core, ctx);
                State::Deleting(self)
            }
        }
    }

    /// Handles one datagram of this SA.
    pub fn on_datagram(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        header: &Header,
        datagram: &[u8],
        flow: Flow,
    ) -> Next {
        let known = matches!(
            header.exchange,
            Exchange::CREATE_CHILD_SA | Exchange::INFORMATIONAL | Exchange::IKE_FOLLOWUP_KE
        );
        let clear = header.exchange == Exchange::IKE_SA_INIT;
        let place = self.window.place(header.message_id);
        // A request of another exchange that proves to be the peer's deserves an answer (RFC 7296 §2.21.3).
        if !known && (header.response || (clear && place == Place::Due) || place == Place::Outside) {
            ctx.dropped(DropReason::UnexpectedExchange, flow);
            return Next::Stay;
        }
        if header.response {
            return self.on_response(core, ctx, phase, header, datagram, flow);
        }
        match place {
            Place::Due => self.on_request(core, ctx, phase, header, datagram, flow),
            Place::Working => {
                ctx.dropped(DropReason::Duplicate, flow);
                Next::Stay
            }
            Place::Repeated => {
                if asks_again(header, datagram) {
                    let authentic = self.channel.authenticate(header, datagram);
                    // A copy of the request may come from anywhere: the answer goes where the peer is known to be, or to
                    // where a new request would lead us.
                    let to = if self.follows(&flow) { flow } else { core.flow };
                    if let Err(reason) = authentic.and_then(|()| self.window.repeat(ctx, to)) {
                        ctx.dropped(reason, flow);
                    }
                }
                Next::Stay
            }
            Place::Outside => {
                ctx.dropped(DropReason::MessageId, flow);
                if self.is_behind(header, datagram) {
                    return behind(core, phase);
                }
                Next::Stay
            }
        }
    }

    fn on_request(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        header: &Header,
        datagram: &[u8],
        flow: Flow,
    ) -> Next {
        let opened = match self.channel.open(header, datagram) {
            Ok(Opened::Message(result)) => result,
            Ok(Opened::Partial) => return Next::Stay,
            Err(reason) => {
                ctx.dropped(reason, flow);
                return Next::Stay;
            }
        };
        self.last_in = ctx.now.mono;
        self.peer_at(core, ctx, flow);
        // With a window of one, a new request means that the peer has our last response, hence its new inbound SAs.
        self.switch_pending(ctx);
        self.on_seen(ctx, None);
        let reply = match opened {
            Err(e) => Reply::notify(error_notify(&e)),
            Ok(payloads)
                if matches!(header.exchange, Exchange::CREATE_CHILD_SA | Exchange::IKE_FOLLOWUP_KE) =>
            {
                let handled = match header.exchange {
                    Exchange::IKE_FOLLOWUP_KE => self.on_follow_up(core, ctx, phase, &payloads, None),
                    _ => self.on_create_child(core, ctx, phase, &payloads, &mut Progress::Asked),
                };
                match handled {
                    Handled::Reply(reply) => reply,
                    Handled::Work(group, work) => {
                        let job = ctx.run(core.spi, Asker::Known, work);
                        let (id, exchange) = (header.message_id, header.exchange);
                        self.window.working = Some(Working { job, id, exchange, payloads, group });
                        return Next::Stay;
                    }
                }
            }
            Ok(p) if header.exchange == Exchange::INFORMATIONAL => {
                self.on_informational(core, ctx, phase, &p)
            }
            Ok(_) => Reply::notify(Notify::new(NotifyType::INVALID_SYNTAX, vec![])),
        };
        self.answer(core, ctx, phase, (header.exchange, header.message_id), reply)
    }

    /// Answers the request that is due.
    pub(super) fn answer(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        (exchange, id): (Exchange, u32),
        mut reply: Reply,
    ) -> Next {
        // What the peer asks for next it asks for knowing what we made. What it has asked for before that is still under way.
        if self.promise.is_none() {
            self.created.clear();
        }
        if reply.payloads.notify(NotifyType::INVALID_SYNTAX).is_some() {
            let detail = format!("{} sent an {exchange} request that makes no sense", core.flow.remote);
            reply.next = fatal(phase, detail);
        }
        let sealed = self.channel.seal(exchange, id, true, &reply.payloads, ctx.random);
        self.window.respond(ctx, core.flow, sealed.unwrap_or_default());
        self.last_out = ctx.now.mono;
        ctx.out.extend(reply.after);
        reply.next
    }

    fn on_response(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        header: &Header,
        datagram: &[u8],
        flow: Flow,
    ) -> Next {
        if self.window.outstanding.as_ref().is_none_or(|o| {
            o.answer.is_some() || o.id != header.message_id || o.exchange() != header.exchange
        }) {
            ctx.dropped(DropReason::UnexpectedResponse, flow);
            if self.is_behind(header, datagram) {
                return behind(core, phase);
            }
            return Next::Stay;
        }
        let payloads = match self.channel.open(header, datagram) {
            Ok(Opened::Message(Ok(payloads))) => payloads,
            // The peer's answer makes no sense; the exchange has failed, and `Payloads` without anything says so.
            Ok(Opened::Message(Err(_))) => Payloads::default(),
            Ok(Opened::Partial) => return Next::Stay,
            Err(reason) => {
                ctx.dropped(reason, flow);
                return Next::Stay;
            }
        };
        let Some(mut o) = self.window.outstanding.take() else { return Next::Stay };
        self.last_in = ctx.now.mono;
        o.out.answered(ctx, &self.policy);
        if payloads.notify(NotifyType::INVALID_SYNTAX).is_some() {
            o.request.release(ctx);
            let peer = core.flow.remote;
            return fatal(phase, format!("{peer} takes our {} request for malformed", header.exchange));
        }
        if o.follow_up.is_asked() {
            return self.on_followed(core, ctx, phase, o, payloads);
        }
        if let Some(work) = self.secret_for(phase, &mut o.request, &payloads) {
            let job = ctx.run(core.spi, Asker::Known, work);
            o.answer = Some(Answer { job, payloads });
            self.window.outstanding = Some(o);
            return Next::Stay;
        }
        if self.is_only_promised(&o.request, &payloads) {
            return self.conclude(core, ctx, phase, o.request, &not_made(), None);
        }
        self.conclude(core, ctx, phase, o.request, &payloads, None)
    }

    /// Takes a response, with the secret that it needed.
    pub(super) fn conclude(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        request: Request,
        payloads: &Payloads,
        secret: Option<Result<Secrets, KexError>>,
    ) -> Next {
        match request {
            // It goes with the IKE SA, whose deletion waited for this answer. A new IKE SA is taken down by itself.
            request @ Request::CreateChild(_) if phase == Phase::Deleting => {
                request.release(ctx);
                Next::Stay
            }
            request @ Request::RekeyIke(_)
                if phase == Phase::Deleting && payloads.error().is_some() && self.their_rekey.is_none() =>
            {
                request.release(ctx);
                Next::Stay
            }
            // Nothing that the peer made of it is followed any more.
            Request::RekeyIke(r)
                if phase == Phase::Deleting
                    && self.their_rekey.is_none()
                    && r.is_without_key(secret.as_ref()) =>
            {
                Request::RekeyIke(r).release(ctx);
                Next::Stay
            }
            Request::CreateChild(c) => self.on_child_created(core, ctx, *c, payloads, secret),
            Request::RekeyIke(r) => self.on_ike_rekeyed(core, ctx, *r, payloads, secret),
            Request::DeleteChild { inbound } => {
                self.on_child_deleted(ctx, inbound);
                Next::Stay
            }
            Request::DeleteIke => {
                let ending = if phase == Phase::Rekeyed { Ending::Replaced } else { Ending::Local };
                Next::Close(ending, String::new())
            }
            Request::Liveness if self.resumed == Resumed::Asked => {
                self.resumed = Resumed::Proven;
                // The peer repeats its answer to a deletion of ours that we know nothing of.
                if payloads.deletes.is_empty() { Next::Stay } else { behind(core, phase) }
            }
            Request::Liveness => Next::Stay,
        }
    }

    /// Whether a message outside of the window shows that what was kept of an IKE SA of an earlier process is too old: it
    /// asks for something that comes after what we know, which the peer does not do before it has the answer to what is
    /// before (RFC 7296 §2.3), or it answers a request that we know nothing of.
    fn is_behind(&self, header: &Header, datagram: &[u8]) -> bool {
        // A request whose answer is here and waits for a job is answered.
        let outstanding = self.window.outstanding.as_ref().filter(|o| o.answer.is_none());
        let ours = outstanding.map_or(self.window.next_request, |o| o.id);
        let after = match header.response {
            true => header.message_id >= ours,
            false => header.message_id > self.window.expected,
        };
        self.resumed != Resumed::No && after && self.channel.authenticate(header, datagram).is_ok()
    }

    /// What comes first of an IKE SA of an earlier process, whatever waits; see [`Resumed`]. What ends needs no proof; nor can
    /// a pair wait that we disown, since the peer sends on it as soon as it hears anything of us.
    fn ask_first(&mut self, task: Task) -> Task {
        if self.resumed != Resumed::Unasked || matches!(task, Task::DeleteIke | Task::DisownChild { .. }) {
            return task;
        }
        self.resumed = Resumed::Asked;
        if task != Task::Liveness {
            self.queue.push_front(task);
        }
        self.delayed.retain(|(_, t)| *t != Task::Liveness);
        Task::Liveness
    }

    /// Starts what is queued, as far as the window allows.
    pub fn pump(&mut self, core: &mut Core, ctx: &mut Ctx<'_>) {
        while self.window.outstanding.is_none() {
            let Some(task) = self.queue.pop_front() else {
                // Whoever wanted it does not want it any more.
                self.key = NextKey::None;
                return;
            };
            let task = self.ask_first(task);
            let Ok(key) = self.key_for(core, ctx, task) else {
                self.queue.push_front(task);
                return;
            };
            let begun = match task {
                Task::CreateChild { index, group } => self.begin_create_child(ctx, index, group, key),
                Task::RekeyChild { inbound, group } => self.begin_rekey_child(ctx, inbound, group, key),
                Task::RekeyIke { group } => self.begin_rekey_ike(ctx, group, key),
                Task::DeleteChild { inbound } => self.begin_delete_child(core, ctx, inbound),
                Task::DisownChild { inbound } => Some(begin_disown_child(inbound)),
                Task::DeleteIke => Some(self.begin_delete_ike(ctx)),
                Task::Liveness => Some((Payloads::default(), Request::Liveness)),
            };
            if let Some((payloads, request)) = begun {
                self.send(core, ctx, &payloads, request);
            }
        }
    }

    fn send(&mut self, core: &Core, ctx: &mut Ctx<'_>, payloads: &Payloads, request: Request) {
        self.send_as(core, ctx, payloads, request, FollowUp::No);
    }

    /// Sends a request, or one that follows it.
    pub(super) fn send_as(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        payloads: &Payloads,
        request: Request,
        follow_up: FollowUp,
    ) {
        let id = self.window.next_request;
        if self.window.exhausted() {
            // The next tick ends the IKE SA.
            request.release(ctx);
            return;
        }
        let exchange = follow_up.exchange_of(&request);
        let Some(datagrams) = self.channel.seal(exchange, id, false, payloads, ctx.random) else {
            // No IV is left under this key. The lifetime ends long before.
            request.release(ctx);
            return;
        };
        self.window.next_request = id.saturating_add(1);
        self.last_out = ctx.now.mono;
        let out = Outgoing::send(ctx, &self.policy, core.flow, datagrams);
        self.window.outstanding = Some(Outstanding { id, out, request, answer: None, follow_up });
    }

    /// Adds a task unless the same one waits already.
    pub fn enqueue(&mut self, task: Task) {
        if !self.queue.contains(&task) {
            self.queue.push_back(task);
        }
    }

    /// Adds a task for later, unless it waits already.
    pub fn enqueue_at(&mut self, at: Timestamp, task: Task) {
        if !self.delayed.iter().any(|(_, t)| *t == task) {
            self.delayed.push((at, task));
        }
    }

    /// Whether new keys are being negotiated.
    pub fn is_rekeying(&self) -> bool {
        let outstanding = self.window.outstanding.as_ref().map(|o| &o.request);
        self.children.iter().any(|c| c.state == ChildState::Rekeying || c.pending.is_some())
            || matches!(outstanding, Some(Request::RekeyIke(_)))
    }

    /// After IKE_AUTH made the first child, the initiator makes the others.
    pub fn want_other_children(&mut self) {
        for index in self.configured().into_iter().skip(1) {
            self.enqueue(Task::CreateChild { index, group: None });
        }
    }

    /// How long to wait after TEMPORARY_FAILURE to a rekey: longer each time, for minutes in all (RFC 7296 §2.25).
    pub fn busy_wait(&mut self, ctx: &mut Ctx<'_>) -> Duration {
        let factor = 1 << self.put_off.min(5);
        self.put_off = self.put_off.saturating_add(1);
        ctx.within(BUSY_RETRY.0 * factor, BUSY_RETRY.1 * factor)
    }

    /// Whether it is of a rekey, and the peer has never said anything on it.
    pub fn is_unheard(&self) -> bool {
        let answered = match &self.window.outstanding {
            Some(o) => o.id > 0,
            None => self.window.next_request > 0,
        };
        self.window.expected == 0 && !answered
    }

    /// When [`Live::tick_in`] has something to do.
    pub fn next_wakeup(&self, phase: Phase, natt: bool) -> Option<Timestamp> {
        // An SA that is on its way out keeps nothing up any more.
        let stays = phase == Phase::Established;
        let dpd = self.policy.dpd.filter(|_| stays && self.window.outstanding.is_none());
        let dpd = dpd.map(|d| self.last_in + d);
        let rekey = (stays && self.rekey_at < self.expire_at).then_some(self.rekey_at);
        let keepalive = (natt && self.nat.local).then_some(self.last_out + KEEPALIVE_INTERVAL);
        let children = self.children.iter().filter(|_| stays).map(|c| match c.state {
            ChildState::Active => c.rekey_at,
            ChildState::Rekeying | ChildState::Replaced | ChildState::Deleting => c.expire_at,
        });
        [Some(self.expire_at), rekey, dpd, keepalive]
            .into_iter()
            .flatten()
            .chain(children)
            .chain(self.children.iter().filter(|c| c.pending.is_some()).filter_map(|c| c.switch_at))
            .chain(self.children.iter().filter(|_| stays).filter_map(Child::presumed_at))
            .chain(self.retire_at)
            .chain(self.promise.as_ref().map(|promise| promise.until))
            .chain(self.window.outstanding.as_ref().and_then(Outstanding::next_repetition))
            .chain(self.delayed.iter().map(|(at, _)| *at))
            .chain(self.lingering.iter().map(|(at, _)| *at))
            .min()
    }

    /// Does what is due and enters the next state.
    pub fn tick_in(mut self: Box<Self>, core: &mut Core, ctx: &mut Ctx<'_>, phase: Phase) -> State {
        let next = self.tick(core, ctx, phase);
        self.enter(core, ctx, phase, next)
    }

    fn tick(&mut self, core: &mut Core, ctx: &mut Ctx<'_>, phase: Phase) -> Next {
        let now = ctx.now.mono;
        if let Some(o) = &mut self.window.outstanding
            && o.answer.is_none()
            && o.out.on_tick(ctx, &self.policy, core.flow) == Retried::GaveUp
        {
            if phase != Phase::Established {
                return Next::Close(Ending::Replaced, String::new());
            }
            let detail = format!("{} does not answer; the tunnel is taken down", core.flow.remote);
            return Next::Close(Ending::Failed(FailureReason::PeerUnreachable), detail);
        }
        for (_, task) in self.delayed.extract_if(.., |(at, _)| *at <= now) {
            if !self.queue.contains(&task) {
                self.queue.push_back(task);
            }
        }
        for (_, sa) in self.lingering.extract_if(.., |(at, _)| *at <= now) {
            ctx.out.push(Action::RemoveSa(sa));
            ctx.spis.esp.remove(&sa.spi);
        }
        if let Some(promise) = self.promise.take_if(|promise| promise.until <= now) {
            promise.release(ctx);
        }
        if phase == Phase::Established {
            self.close_by_time(ctx);
        }
        if now >= self.expire_at || self.window.exhausted() {
            if phase != Phase::Established {
                return Next::Close(Ending::Replaced, String::new());
            }
            let detail =
                "the lifetime or the message IDs of the IKE SA ended before it was rekeyed".to_owned();
            return Next::Close(Ending::Failed(FailureReason::LifetimeExpired), detail);
        }
        self.switch_waiting(ctx, None);
        if self.retire_at.take_if(|at| *at <= now).is_some() && phase == Phase::Established {
            self.queue.push_front(Task::DeleteIke);
            return Next::Deleting;
        }
        if phase == Phase::Established {
            self.tick_lifetimes(ctx);
            if self.policy.dpd.is_some_and(|d| now >= self.last_in + d) && self.window.outstanding.is_none() {
                self.enqueue(Task::Liveness);
                // One question at a time; the answer, or giving up on it, decides.
                self.last_in = now;
            }
        }
        if core.flow.natt && self.nat.local && now >= self.last_out + KEEPALIVE_INTERVAL {
            ctx.out.push(Action::Keepalive(core.flow));
            self.last_out = now;
        }
        Next::Stay
    }

    fn tick_lifetimes(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.mono;
        // Once: whatever comes of it has its own time to be tried again.
        if self.rekey_at < self.expire_at && (now >= self.rekey_at || self.window.worn()) {
            self.enqueue(Task::RekeyIke { group: None });
            self.rekey_at = self.expire_at;
        }
        let mut expired = Vec::new();
        for c in &mut self.children {
            if now >= c.expire_at {
                expired.push(c.inbound);
            } else if c.state == ChildState::Active && now >= c.rekey_at {
                c.state = ChildState::Rekeying;
                self.queue.push_back(Task::RekeyChild { inbound: c.inbound, group: None });
            }
        }
        for inbound in expired {
            self.on_child_expired(ctx, inbound);
        }
    }

    /// Whether an authentic request from elsewhere may come from the peer: it is behind a NAT, and we are not.
    const fn follows(&self, flow: &Flow) -> bool {
        flow.natt && self.nat.remote && !self.nat.local
    }

    /// Takes note of the address that an authentic, new request came from (RFC 7296 §2.23): a peer behind a NAT may
    /// have got a new mapping. One that is not does not move, and if we are behind a NAT ourselves we do not follow.
    fn peer_at(&mut self, core: &mut Core, ctx: &mut Ctx<'_>, flow: Flow) {
        if flow.remote != core.flow.remote && self.follows(&flow) {
            self.move_to(core, ctx, flow.remote);
        }
    }

    /// Follows the peer to a new address: later messages and all SAs.
    pub fn move_to(&mut self, core: &mut Core, ctx: &mut Ctx<'_>, remote: SocketAddr) {
        core.flow.remote = remote;
        let to = NewAddresses { local: core.flow.local, remote };
        for c in &mut self.children {
            ctx.out.push(Action::Migrate(c.sa(Direction::In), to));
            match &mut c.pending {
                Some(spec) => {
                    spec.remote = remote.ip();
                    if let Some(encap) = &mut spec.encap {
                        encap.remote_port = remote.port();
                    }
                }
                None => ctx.out.push(Action::Migrate(c.sa(Direction::Out), to)),
            }
        }
        for (_, sa) in &self.lingering {
            ctx.out.push(Action::Migrate(*sa, to));
        }
    }
}

/// What was kept is older than what the peer knows: nothing of it can be relied on.
fn behind(core: &Core, phase: Phase) -> Next {
    let ending = match phase {
        Phase::Established => Ending::Failed(FailureReason::StateLost),
        Phase::Rekeyed | Phase::Deleting => Ending::Replaced,
    };
    let detail =
        format!("{} knows of exchanges after those that were kept over the restart", core.flow.remote);
    Next::Close(ending, detail)
}

/// INVALID_SYNTAX, whoever says it to an authentic request, ends the IKE SA without a Delete (RFC 7296 §2.21.3).
fn fatal(phase: Phase, detail: String) -> Next {
    let ending = match phase {
        Phase::Established => Ending::Failed(FailureReason::InvalidSyntax),
        Phase::Rekeyed | Phase::Deleting => Ending::Replaced,
    };
    Next::Close(ending, detail)
}

impl Request {
    /// The exchange type that carries the request.
    pub const fn exchange(&self) -> Exchange {
        match self {
            Self::CreateChild(_) | Self::RekeyIke(_) => Exchange::CREATE_CHILD_SA,
            Self::DeleteChild { .. } | Self::DeleteIke | Self::Liveness => Exchange::INFORMATIONAL,
        }
    }
}

impl Outstanding {
    /// The exchange type of the request.
    pub const fn exchange(&self) -> Exchange {
        self.follow_up.exchange_of(&self.request)
    }
}
