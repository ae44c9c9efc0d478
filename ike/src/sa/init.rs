//! The initiator's IKE_SA_INIT exchange (RFC 7296 §1.2, §2.6, §2.7), and what messages of it both roles send.

use std::sync::Arc;
use std::time::Duration;

use cygnet_model::selector::Packet;
use cygnet_model::suite::{Group, IkeSuite};
use cygnet_model::{SecretBytes, Timestamp};

use super::auth::{InitDone, derive, internal};
use super::intermediate;
use super::natt::{self, Nat};
use super::window::{Outgoing, Retried};
use super::{Closed, Core, Ctx, IkeSa, State};
use crate::account::{Draft, Party, Stage};
use crate::crypto::kex::{KexError, PrivateKey};
use crate::error::{DropReason, FailureReason};
use crate::io::{Action, Ending, Event, Flow, Role};
use crate::jobs::{Asker, JobId, Work};
use crate::mismatch;
use crate::policy::{self, Encap, TunnelPolicy};
use crate::wire::{
    Exchange, Header, KeyExchange, Notify, NotifyType, PayloadType, Payloads, Proposal, Writer,
};

/// Most rounds of COOKIE and INVALID_KE_PAYLOAD before we give up on the peer.
const MAX_ROUNDS: u8 = 4;

/// How long we wait for a better answer after an error that anybody may have sent (RFC 7296 §2.21.1).
const HINT_PATIENCE: Duration = Duration::from_secs(3);

/// How long a cookie waits, in an attempt that doubts it, for an answer that shows that it was not needed.
const COOKIE_PATIENCE: Duration = Duration::from_secs(1);

/// What an attempt does with a cookie that it is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cookies {
    /// It brings it back at once (RFC 7296 §2.6).
    Trusted,
    /// An attempt before this one may have failed because of a forged one: it waits for a better answer first.
    Doubted,
}

/// How an IKE SA is begun.
#[derive(Debug)]
pub(crate) struct Begin {
    /// The packet that wants a child, and the index of that.
    pub packet: Option<(u16, Packet)>,
    pub cookies: Cookies,
}

impl Default for Begin {
    fn default() -> Self {
        Self { packet: None, cookies: Cookies::Trusted }
    }
}

/// The initiator's state until it has a key for IKE_SA_INIT.
pub(crate) struct Preparing {
    pub policy: Arc<TunnelPolicy>,
    group: Group,
    begin: Begin,
    pub job: JobId,
}

/// The initiator's state until the answer to IKE_SA_INIT.
pub(crate) struct InitSent {
    pub policy: Arc<TunnelPolicy>,
    nonce: Vec<u8>,
    current: Attempt,
    /// With other groups, before somebody asked for the current one: the answer to each of them still counts, since
    /// INVALID_KE_PAYLOAD is not authenticated.
    earlier: Vec<Attempt>,
    /// Another group that was asked for, and the job that makes a key of it. Until then the current request goes on.
    making: Option<(JobId, Group)>,
    cookie: Option<Vec<u8>>,
    /// A cookie that is not believed yet, and when it is.
    doubted: Option<(Vec<u8>, Timestamp)>,
    begin: Begin,
    rounds: u8,
    out: Outgoing,
    /// The first error notification, and when we believe it.
    hint: Option<Hint>,
}

/// Why the negotiation ends, unless a better answer comes.
struct Hint {
    reason: FailureReason,
    detail: String,
    until: Timestamp,
    account: Event,
}

/// What an answer says that refuses, or that we cannot take.
struct Said<'a> {
    by: Party,
    reason: FailureReason,
    detail: String,
    /// What it chooses.
    sa: Option<&'a [Proposal]>,
    /// The group that it wants.
    group: Option<u16>,
}

/// A request with one group.
struct Attempt {
    group: Group,
    key: PrivateKey,
    public: Vec<u8>,
    /// The request as it went out last: AUTH covers it.
    message: Vec<u8>,
}

/// The initiator's state from the answer to IKE_SA_INIT until the secret is there.
pub(crate) struct Agreeing {
    pub policy: Arc<TunnelPolicy>,
    pub spi_r: u64,
    done: InitDone,
    pub job: JobId,
}

/// Starts an IKE SA towards a tunnel's peer. `Err` if there is no address or no group.
pub(crate) fn initiate(
    ctx: &mut Ctx<'_>,
    policy: &Arc<TunnelPolicy>,
    begin: Begin,
) -> Result<IkeSa, FailureReason> {
    let (local, remote) = policy.addresses().ok_or(FailureReason::NoPeerAddress)?;
    // RFC 7296 §2.23: whoever begins may do so on port 4500.
    let natt = policy.encap == Encap::FromStart;
    let port = if natt { ctx.config.natt_port } else { ctx.config.ike_port };
    let flow = Flow { local: (local, port).into(), remote: (remote, port).into(), natt };
    let group = *policy.proposals.first().and_then(|p| p.groups.first()).ok_or(FailureReason::InvalidKe)?;
    let spi = ctx.spis.new_ike(ctx.random);
    let core = Core { spi, role: Role::Initiator, flow, created: ctx.now.mono };
    let job = ctx.run(spi, Asker::Known, Work::Begin(group));
    let preparing = Preparing { policy: policy.clone(), group, begin, job };
    Ok(IkeSa { core, state: State::Preparing(Box::new(preparing)) })
}

impl Preparing {
    /// The key is there: IKE_SA_INIT goes out.
    pub fn on_key(
        self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        key: Result<(PrivateKey, Vec<u8>), KexError>,
    ) -> State {
        let Self { policy, group, begin, .. } = self;
        let (key, public) = match key {
            Ok(made) => made,
            Err(e) => return closed(policy, FailureReason::Internal, no_key(e)),
        };
        let nonce = ctx.nonce();
        let message = request(&policy, core, group, &public, &nonce, None);
        let out = Outgoing::send(ctx, &policy, core.flow, vec![message.clone()]);
        State::InitSent(Box::new(InitSent {
            policy,
            nonce,
            current: Attempt { group, key, public, message },
            earlier: Vec::new(),
            making: None,
            cookie: None,
            doubted: None,
            begin,
            rounds: 0,
            out,
            hint: None,
        }))
    }
}

fn no_key(e: KexError) -> String {
    format!("no key for a key exchange could be made: {e}")
}

fn closed(policy: Arc<TunnelPolicy>, reason: FailureReason, detail: String) -> State {
    let ending = Ending::Failed(reason);
    State::Closed(Closed { policy: Some(policy), ending, detail, was_up: false })
}

// I -> R  IKE_SA_INIT { [N(COOKIE)], SAi1, KEi, Ni, N(NAT_DETECTION_*), N(IKEV2_FRAGMENTATION_SUPPORTED),
//                       N(INTERMEDIATE_EXCHANGE_SUPPORTED) }
fn request(
    policy: &TunnelPolicy,
    core: &Core,
    group: Group,
    public: &[u8],
    nonce: &[u8],
    cookie: Option<&[u8]>,
) -> Vec<u8> {
    let spi_i = core.spi.value();
    let mut notifies = Vec::new();
    notifies.extend(cookie.map(|c| Notify::new(NotifyType::COOKIE, c.to_vec())));
    notifies.extend(natt::notifies(spi_i, 0, &core.flow, policy.encap));
    if policy.fragmentation {
        notifies.push(Notify::new(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, vec![]));
    }
    if policy.proposals.iter().any(|p| !p.additional.is_empty()) {
        notifies.push(Notify::new(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED, vec![]));
    }
    let payloads = Payloads {
        sa: Some(policy::offer_ike(&policy.proposals, &[])),
        ke: Some(KeyExchange { group: group.transform(), data: public.to_vec() }),
        nonce: Some(nonce.to_vec()),
        notifies,
        ..Payloads::default()
    };
    clear_message(spi_i, 0, true, false, &payloads)
}

/// An IKE_SA_INIT message.
pub(super) fn clear_message(
    spi_i: u64,
    spi_r: u64,
    from_initiator: bool,
    response: bool,
    payloads: &Payloads,
) -> Vec<u8> {
    let mut w = Writer::message(&Header {
        spi_i,
        spi_r,
        next: PayloadType::NONE,
        exchange: Exchange::IKE_SA_INIT,
        from_initiator,
        response,
        message_id: 0,
    });
    payloads.encode(&mut w);
    w.finish()
}

/// A response to IKE_SA_INIT that makes no state: an error or a cookie.
pub(crate) fn stateless(ctx: &mut Ctx<'_>, header: &Header, flow: Flow, notify: Notify) {
    let payloads = Payloads { notifies: vec![notify], ..Payloads::default() };
    let bytes = clear_message(header.spi_i, 0, false, true, &payloads);
    ctx.out.push(Action::Send { flow, bytes });
}

impl InitSent {
    pub fn next_wakeup(&self) -> Timestamp {
        let hint = self.hint.as_ref().map(|hint| hint.until);
        let cookie = self.doubted.as_ref().map(|(_, until)| *until);
        [hint, cookie].into_iter().flatten().fold(self.out.next, Timestamp::min)
    }

    pub fn on_tick(mut self: Box<Self>, core: &mut Core, ctx: &mut Ctx<'_>) -> State {
        if let Some(hint) = self.hint.take_if(|hint| ctx.now.mono >= hint.until) {
            ctx.tell(hint.account);
            return self.close(hint.reason, hint.detail);
        }
        if let Some((cookie, _)) = self.doubted.take_if(|(_, until)| ctx.now.mono >= *until) {
            self.cookie = Some(cookie);
            return self.again(core, ctx);
        }
        let policy = self.policy.clone();
        match self.out.on_tick(ctx, &policy, core.flow) {
            Retried::Waiting => State::InitSent(self),
            Retried::GaveUp => {
                // No better answer will come.
                if let Some(hint) = self.hint.take() {
                    ctx.tell(hint.account);
                    return self.close(hint.reason, hint.detail);
                }
                let detail = format!("{} does not answer IKE_SA_INIT", core.flow.remote);
                let draft = Draft::claimed(Stage::Init, Role::Initiator, core.flow.remote);
                let reason = FailureReason::PeerUnreachable;
                let draft = draft.ike_answered(&self.policy.proposals, Party::Peer, reason, None, None);
                ctx.tell(draft.unanswered(self.policy.id, &detail));
                self.close(FailureReason::PeerUnreachable, detail)
            }
        }
    }

    fn close(self: Box<Self>, reason: FailureReason, detail: String) -> State {
        closed(self.policy, reason, detail)
    }

    // R -> I  IKE_SA_INIT { SAr1, KEr, Nr, … } or { N(COOKIE) } or { N(INVALID_KE_PAYLOAD) } or { N(error) }
    pub fn on_response(
        self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
        flow: Flow,
    ) -> State {
        let chain = datagram.get(crate::wire::HEADER_LEN..).unwrap_or(&[]);
        let Ok(payloads) = Payloads::decode(header.next, chain) else {
            return super::drop_in(State::InitSent(self), ctx, DropReason::Malformed, flow);
        };
        if header.message_id != 0 {
            return super::drop_in(State::InitSent(self), ctx, DropReason::MessageId, flow);
        }
        if payloads.sa.is_none() {
            if let Some(cookie) = payloads.notify(NotifyType::COOKIE) {
                return self.on_cookie(core, ctx, &cookie.data, flow);
            }
            if let Some(n) = payloads.notify(NotifyType::INVALID_KE_PAYLOAD) {
                return self.on_invalid_ke(core, ctx, &n.data, flow);
            }
            return self.on_error(ctx, &payloads, flow);
        }
        match self.accept(header, &payloads) {
            Ok((suite, peer_public, nonce_r)) => {
                let nat = natt::detect(&payloads, header.spi_i, header.spi_r, &core.flow);
                let fragmentation = self.policy.fragmentation
                    && payloads.notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED).is_some();
                self.proceed(
                    core,
                    ctx,
                    header.spi_r,
                    datagram,
                    suite,
                    peer_public,
                    nonce_r,
                    nat,
                    fragmentation,
                )
            }
            Err((reason, what)) => {
                let detail = format!("the answer of {} to IKE_SA_INIT {what}", flow.remote);
                let sa = payloads.sa.as_deref();
                self.take_hint(ctx, Said { by: Party::We, reason, detail, sa, group: None }, flow)
            }
        }
    }

    /// Checks an answer that carries an SA payload.
    #[allow(clippy::type_complexity, reason = "three parts of one message, used at once by the only caller")]
    fn accept(
        &self,
        header: &Header,
        payloads: &Payloads,
    ) -> Result<(IkeSuite, Vec<u8>, Vec<u8>), (FailureReason, &'static str)> {
        let (Some(sa), Some(ke), Some(nonce)) = (&payloads.sa, &payloads.ke, &payloads.nonce) else {
            return Err((FailureReason::InvalidSyntax, "lacks a payload"));
        };
        if header.spi_r == 0 {
            return Err((FailureReason::InvalidSyntax, "has no responder SPI"));
        }
        let (suite, _) = policy::accept_ike(&self.policy.proposals, sa, 0)
            .ok_or((FailureReason::NoProposalChosen, "chooses what we did not propose"))?;
        if !suite.additional.is_empty()
            && payloads.notify(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED).is_none()
        {
            return Err((
                FailureReason::NoProposalChosen,
                "chooses additional key exchanges without IKE_INTERMEDIATE",
            ));
        }
        let tried = std::iter::once(&self.current).chain(&self.earlier).any(|a| a.group == suite.group);
        if !tried || ke.group != suite.group.transform() {
            return Err((FailureReason::InvalidKe, "uses another key exchange group than its choice"));
        }
        // Checked here, where the key is still ours: nobody has proven to be the peer, so the true answer may yet come.
        if ke.data.len() != suite.group.answer_len() {
            return Err((FailureReason::InvalidSyntax, "has a key exchange value of the wrong length"));
        }
        Ok((suite, ke.data.clone(), nonce.clone()))
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of the answer")]
    fn proceed(
        self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        spi_r: u64,
        response: &[u8],
        suite: IkeSuite,
        peer_public: Vec<u8>,
        nonce_r: Vec<u8>,
        nat: Option<Nat>,
        fragmentation: bool,
    ) -> State {
        let this = *self;
        this.out.answered(ctx, &this.policy);
        let answers = |a: &Attempt| a.group == suite.group;
        let attempt = std::iter::once(this.current).chain(this.earlier).find(answers);
        let Some(Attempt { key, message, .. }) = attempt else {
            // `accept` takes none that we did not try.
            return closed(
                this.policy,
                FailureReason::InvalidKe,
                "no key of ours for the chosen group".into(),
            );
        };
        let wants_natt = nat.is_some_and(|n| n.local || n.remote || this.policy.encap.is_forced());
        if wants_natt {
            // Port float (RFC 7296 §2.23): everything after IKE_SA_INIT goes through 4500.
            core.flow.local.set_port(ctx.config.natt_port);
            core.flow.remote.set_port(ctx.config.natt_port);
            core.flow.natt = true;
        }
        let job = ctx.run(core.spi, Asker::Known, Work::Finish(key, peer_public));
        let done = InitDone {
            suite,
            nonce_i: this.nonce,
            nonce_r,
            spi_r,
            request: message,
            response: response.to_vec(),
            nat: nat.unwrap_or_default(),
            fragmentation,
            packet: this.begin.packet,
            // An answer does not tell which of two requests with one group it is about.
            doubtful: this.cookie.is_some() && this.begin.cookies == Cookies::Trusted,
        };
        State::Agreeing(Box::new(Agreeing { policy: this.policy, spi_r, done, job }))
    }

    /// RFC 7296 §2.6: the same request again, with the cookie in front and nothing else changed.
    ///
    /// Anybody can forge a cookie. A responder that did not ask for one has answered the request before, and AUTH must cover
    /// the request that it took: if it refuses ours, another attempt begins that doubts cookies (see `AuthSent`).
    fn on_cookie(
        mut self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        cookie: &[u8],
        flow: Flow,
    ) -> State {
        if !(1..=64).contains(&cookie.len()) {
            return super::drop_in(State::InitSent(self), ctx, DropReason::Malformed, flow);
        }
        if self.cookie.as_deref() == Some(cookie) {
            // A repeated answer to the request before.
            return super::drop_in(State::InitSent(self), ctx, DropReason::Duplicate, flow);
        }
        if self.begin.cookies == Cookies::Doubted && self.cookie.is_none() {
            let until = ctx.now.mono + COOKIE_PATIENCE;
            self.doubted.get_or_insert((cookie.to_vec(), until));
            return State::InitSent(self);
        }
        self.cookie = Some(cookie.to_vec());
        self.again(core, ctx)
    }

    /// RFC 7296 §1.2: the responder names the group it wants.
    fn on_invalid_ke(
        mut self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        data: &[u8],
        flow: Flow,
    ) -> State {
        let wanted =
            <[u8; 2]>::try_from(data).ok().and_then(|b| Group::from_transform(u16::from_be_bytes(b)));
        let offered = |g: &Group| self.policy.proposals.iter().any(|p| p.groups.contains(g));
        match wanted.filter(offered) {
            Some(group) if group == self.current.group || self.making.is_some() => {
                super::drop_in(State::InitSent(self), ctx, DropReason::Duplicate, flow)
            }
            Some(_) if self.rounds >= MAX_ROUNDS => {
                let detail = format!("{} wants ever other key exchange groups", flow.remote);
                self.take_hint(ctx, Said::group(detail, None), flow)
            }
            Some(group) => {
                let known = self.earlier.iter().position(|a| a.group == group);
                let Some(next) = known.map(|at| self.earlier.swap_remove(at)) else {
                    let job = ctx.run(core.spi, Asker::Known, Work::Begin(group));
                    self.making = Some((job, group));
                    return State::InitSent(self);
                };
                self.go_over_to(core, ctx, next)
            }
            None => {
                let group = <[u8; 2]>::try_from(data).ok().map(u16::from_be_bytes);
                let named = group.map_or_else(|| "another".to_owned(), mismatch::name_of_group);
                let ours = mismatch::listed(&self.policy.proposals);
                let detail = format!("{} wants key exchange group {named}; we offered {ours}", flow.remote);
                self.take_hint(ctx, Said::group(detail, group), flow)
            }
        }
    }

    /// Whether it waits for this job.
    pub fn is_making(&self, job: JobId) -> bool {
        self.making.is_some_and(|(id, _)| id == job)
    }

    /// The key of the group that was asked for is there.
    pub fn on_key(
        mut self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        key: Result<(PrivateKey, Vec<u8>), KexError>,
    ) -> State {
        let Some((_, group)) = self.making.take() else { return State::InitSent(self) };
        match key {
            Ok((key, public)) => {
                self.go_over_to(core, ctx, Attempt { group, key, public, message: Vec::new() })
            }
            Err(e) => self.close(FailureReason::Internal, no_key(e)),
        }
    }

    fn go_over_to(mut self: Box<Self>, core: &mut Core, ctx: &mut Ctx<'_>, next: Attempt) -> State {
        let last = std::mem::replace(&mut self.current, next);
        self.earlier.push(last);
        self.again(core, ctx)
    }

    fn again(mut self: Box<Self>, core: &mut Core, ctx: &mut Ctx<'_>) -> State {
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS {
            let detail = format!("{} wants ever new cookies or groups", core.flow.remote);
            return self.close(FailureReason::CookieLoop, detail);
        }
        let a = &mut self.current;
        a.message = request(&self.policy, core, a.group, &a.public, &self.nonce, self.cookie.as_deref());
        let policy = self.policy.clone();
        self.out = Outgoing::send(ctx, &policy, core.flow, vec![a.message.clone()]);
        // A responder that has answered an earlier one takes no other under the same SPI.
        self.earlier.iter().for_each(|a| self.out.repeat_too(a.message.clone()));
        State::InitSent(self)
    }

    fn on_error(self: Box<Self>, ctx: &mut Ctx<'_>, payloads: &Payloads, flow: Flow) -> State {
        match payloads.error() {
            Some(n) => {
                let offered = match n.kind {
                    NotifyType::NO_PROPOSAL_CHOSEN => {
                        format!("; we offered {}", mismatch::listed(&self.policy.proposals))
                    }
                    _ => String::new(),
                };
                let detail = format!("{} answers IKE_SA_INIT with {}{offered}", flow.remote, n.kind);
                let reason = FailureReason::of_notify(n.kind);
                self.take_hint(ctx, Said { by: Party::Peer, reason, detail, sa: None, group: None }, flow)
            }
            None => super::drop_in(State::InitSent(self), ctx, DropReason::Malformed, flow),
        }
    }

    /// Notes an unauthenticated refusal. Anybody on the path can forge one, so the true answer still wins if it comes
    /// soon (RFC 7296 §2.21.1).
    fn take_hint(mut self: Box<Self>, ctx: &mut Ctx<'_>, said: Said<'_>, flow: Flow) -> State {
        ctx.dropped(DropReason::UnauthenticatedNotify, flow);
        if self.hint.is_none() {
            let until = ctx.now.mono + HINT_PATIENCE;
            let Said { by, reason, detail, sa, group } = said;
            let draft = Draft::claimed(Stage::Init, Role::Initiator, flow.remote);
            let draft = draft.ike_answered(&self.policy.proposals, by, reason, sa, group);
            let account = draft.refused(self.policy.id, by, reason, &detail);
            self.hint = Some(Hint { reason, detail, until, account });
        }
        State::InitSent(self)
    }
}

impl Said<'_> {
    /// The peer wants another group, this one if it is known.
    const fn group(detail: String, group: Option<u16>) -> Self {
        Self { by: Party::Peer, reason: FailureReason::InvalidKe, detail, sa: None, group }
    }
}

impl Agreeing {
    /// The secret is there: IKE_INTERMEDIATE or IKE_AUTH goes out.
    pub fn on_secret(
        self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        secret: Result<SecretBytes, KexError>,
    ) -> State {
        let this = *self;
        match secret {
            Ok(secret) => {
                let (policy, done) = (this.policy, this.done);
                let spis = (core.spi.value(), done.spi_r);
                let nonces = (&*done.nonce_i, &*done.nonce_r);
                match derive(done.suite, &secret, nonces, spis, Role::Initiator, done.fragmentation) {
                    Some(derived) => intermediate::proceed(core, ctx, policy, done, derived),
                    None => internal(policy),
                }
            }
            Err(e) => {
                let detail = format!("key exchange with {} failed: {e}", core.flow.remote);
                let reason =
                    if e.blames_peer() { FailureReason::InvalidSyntax } else { FailureReason::Internal };
                closed(this.policy, reason, detail)
            }
        }
    }
}
