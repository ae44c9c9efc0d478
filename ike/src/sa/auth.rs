//! The IKE_AUTH exchange (RFC 7296 §1.2, §2.15) in both roles, with pre-shared keys.

use std::sync::Arc;
use std::time::Duration;

use cygnet_model::selector::{Packet, TrafficSelector};
use cygnet_model::suite::{IkeSuite, Prf};
use cygnet_model::{SecretBytes, Spi, Timestamp, TunnelId};

use super::child::{self, NewPair, Offered};
use super::message::{Channel, Opened, asks_again};
use super::natt::Nat;
use super::seek;
use super::window::{Outgoing, REPEATS, Retried, Window};
use super::{Ask, Closed, Core, Ctx, Effect, InitAnswered, Live, State};
use crate::account::{self, Draft, Offer, Party, Stage};
use crate::coverage::networks;
use crate::crypto::kex::PrivateKey;
use crate::crypto::keymat::{ChildKeys, IkeKeys, SkeySeed};
use crate::crypto::prf::prf;
use crate::error::{DropReason, FailureReason, Trouble};
use crate::io::{Action, Ending, Event, Flow, Role};
use crate::jobs::{Asker, JobId, Output, Work};
use crate::mismatch;
use crate::policy::{self, TunnelPolicy};
use crate::rate::Rate;
use crate::wire::{
    Auth, AuthMethod, DecodeError, DecodeErrorKind, Exchange, HEADER_LEN, Header, Identity, Notify,
    NotifyType, Payloads,
};

/// Notifications that end an IKE SA without a Delete: in the answer to IKE_AUTH, whatever stands beside them, and in an
/// INFORMATIONAL request by which the initiator refuses that answer (RFC 7296 §2.21.2).
pub(super) const FATAL: [NotifyType; 3] =
    [NotifyType::AUTHENTICATION_FAILED, NotifyType::INVALID_SYNTAX, NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD];

/// How often the peer of a tunnel may make a new IKE SA by authentication: one in this time, and so many at once.
const HANDSHAKES: (Duration, u32) = (Duration::from_secs(2), 16);

/// How long a refusal is kept for repetitions of the request.
const REFUSAL_LIFETIME: Duration = Duration::from_secs(30);

/// `prf(prf(PSK, "Key Pad for IKEv2"), <SignedOctets>)` where SignedOctets are the signer's first message, the other
/// side's nonce and `prf(SK_p, identity)` (RFC 7296 §2.15).
fn psk_auth(
    alg: Prf,
    psk: &SecretBytes,
    message: &[u8],
    nonce: &[u8],
    sk_p: &SecretBytes,
    id: &Identity,
) -> SecretBytes {
    let padded = prf(alg, psk.expose(), &[b"Key Pad for IKEv2"]);
    let maced_id = prf(alg, sk_p.expose(), &[&id.body()]);
    prf(alg, padded.expose(), &[message, nonce, maced_id.expose()])
}

/// Proof that the AUTH of the peer of this name was verified. Only this module makes one, and established SAs demand it.
pub(crate) struct PeerAuthenticated(Identity);

impl PeerAuthenticated {
    /// Who it is.
    pub const fn peer(&self) -> &Identity {
        &self.0
    }

    /// The same, to be kept.
    pub fn identity(self) -> Identity {
        self.0
    }
}

/// Verifies a peer's AUTH payload in constant time. A method other than PSK is a failure (RFC 7296 §2.15).
fn verify(auth: &Auth, expected: &SecretBytes, who: &Identity) -> Option<PeerAuthenticated> {
    let proven = auth.method == AuthMethod::SHARED_KEY_MIC && expected.ct_eq(&auth.data);
    proven.then(|| PeerAuthenticated(who.clone()))
}

/// What the initiator knows after IKE_SA_INIT, but for the shared secret.
pub(crate) struct InitDone {
    pub suite: IkeSuite,
    pub nonce_i: Vec<u8>,
    pub nonce_r: Vec<u8>,
    pub spi_r: u64,
    pub request: Vec<u8>,
    pub response: Vec<u8>,
    pub nat: Nat,
    pub fragmentation: bool,
    /// The packet that wants a child, and the index of that.
    pub packet: Option<(u16, Packet)>,
    /// Whether the responder may have answered another request than we think: one of them had a cookie.
    pub doubtful: bool,
}

/// The initiator's state until the answer to IKE_AUTH.
pub(crate) struct AuthSent {
    pub policy: Arc<TunnelPolicy>,
    suite: IkeSuite,
    keys: IkeKeys,
    pub channel: Channel,
    nonce_i: Vec<u8>,
    nonce_r: Vec<u8>,
    /// The responder's IKE_SA_INIT message, which its AUTH covers.
    response: Vec<u8>,
    nat: Nat,
    /// Inbound SPI of the first child.
    inbound: Spi,
    /// The selectors that we offered for it: ours, the peer's.
    offered: (Vec<TrafficSelector>, Vec<TrafficSelector>),
    packet: Option<(u16, Packet)>,
    doubtful: bool,
    pub out: Outgoing,
}

/// The keys of an IKE SA that is not authenticated yet.
pub(crate) struct Derived {
    pub keys: IkeKeys,
    pub channel: Channel,
}

/// What the responder knows of the shared secret.
pub(crate) enum Secret {
    /// Our private key and the peer's public value: the costly step waits until IKE_AUTH is there.
    Due(PrivateKey, Vec<u8>),
    /// It is being computed.
    Computing(Computing),
    /// The keys that came of it.
    Known(Box<Derived>),
    /// The peer's public value has none.
    None,
}

/// What arrives of IKE_AUTH while the keys are computed that are needed to read it.
pub(crate) struct Computing {
    job: JobId,
    kept: Vec<(Flow, Vec<u8>)>,
    octets: usize,
}

/// Most datagrams that are kept while keys are computed, and most octets of them: IKE_AUTH in fragments, with certificates.
const KEPT: (usize, usize) = (32, 32 * 1024);

impl Computing {
    /// Keeps a datagram, unless it is there already or there are too many.
    fn keep(&mut self, datagram: &[u8], flow: Flow) -> Result<(), DropReason> {
        if self.kept.iter().any(|(_, bytes)| bytes == datagram) {
            return Err(DropReason::Duplicate);
        }
        let octets = self.octets + datagram.len();
        if self.kept.len() >= KEPT.0 || octets > KEPT.1 {
            return Err(DropReason::Busy);
        }
        self.octets = octets;
        self.kept.push((flow, datagram.to_vec()));
        Ok(())
    }
}

impl Secret {
    /// The keys, if they are known.
    pub fn known(&self) -> Option<&Derived> {
        match self {
            Self::Known(derived) => Some(derived),
            Self::Due(..) | Self::Computing(_) | Self::None => None,
        }
    }

    /// The same, to be used.
    pub fn known_mut(&mut self) -> Option<&mut Derived> {
        match self {
            Self::Known(derived) => Some(derived),
            Self::Due(..) | Self::Computing(_) | Self::None => None,
        }
    }

    /// The same, to be kept.
    fn into_known(self) -> Option<Derived> {
        match self {
            Self::Known(derived) => Some(*derived),
            Self::Due(..) | Self::Computing(_) | Self::None => None,
        }
    }
}

fn derive(
    suite: IkeSuite,
    shared: &SecretBytes,
    nonces: (&[u8], &[u8]),
    spis: (u64, u64),
    role: Role,
    fragmentation: bool,
) -> Option<Derived> {
    let seed = SkeySeed::initial(suite.prf, nonces.0, nonces.1, shared);
    let keys = IkeKeys::derive(suite, &seed, nonces.0, nonces.1, spis.0.to_be_bytes(), spis.1.to_be_bytes());
    let mut channel = Channel::new(suite, &keys, spis.0, spis.1, role)?;
    channel.fragmentation = fragmentation;
    Some(Derived { keys, channel })
}

impl AuthSent {
    // I -> R  IKE_AUTH { IDi, IDr, AUTH, SAi2, TSi, TSr, N(INITIAL_CONTACT) }
    pub fn start(
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        policy: Arc<TunnelPolicy>,
        done: InitDone,
        shared: &SecretBytes,
    ) -> State {
        let spis = (core.spi.value(), done.spi_r);
        let nonces = (&*done.nonce_i, &*done.nonce_r);
        let derived = derive(done.suite, shared, nonces, spis, Role::Initiator, done.fragmentation);
        let Some(Derived { keys, mut channel }) = derived else { return internal(policy) };
        let inbound = ctx.spis.new_esp(ctx.random);
        let auth = psk_auth(
            done.suite.prf,
            policy.psk_after(ctx.refused_psks.get(&policy.id).copied().unwrap_or(0)),
            &done.request,
            &done.nonce_r,
            &keys.sk_pi,
            &policy.local_id,
        );
        let mut notifies = Vec::new();
        if ctx.established.get(&policy.id).copied().unwrap_or(0) == 0 {
            notifies.push(Notify::new(NotifyType::INITIAL_CONTACT, vec![]));
        }
        let (of, first) = policy.children.first().map_or((0, None), |(of, child)| (of, Some(child)));
        let packet = done.packet.filter(|(wanted, _)| *wanted == of).map(|(_, packet)| packet);
        let offered = first.map(|c| seek::led_by(packet, &c.local, &c.remote)).unwrap_or_default();
        let payloads = Payloads {
            idi: Some(policy.local_id.clone()),
            idr: policy.remote_id.asked(),
            auth: Some(Auth { method: AuthMethod::SHARED_KEY_MIC, data: auth.expose().to_vec() }),
            sa: first.map(|c| policy::offer_esp(&c.proposals, inbound.to_be_bytes(), false)),
            tsi: first.map(|_| offered.0.clone()),
            tsr: first.map(|_| offered.1.clone()),
            notifies,
            ..Payloads::default()
        };
        let Some(datagrams) = channel.seal(Exchange::IKE_AUTH, 1, false, &payloads, ctx.random) else {
            return internal(policy);
        };
        let out = Outgoing::send(ctx, &policy, core.flow, datagrams);
        State::AuthSent(Box::new(Self {
            policy,
            suite: done.suite,
            keys,
            channel,
            nonce_i: done.nonce_i,
            nonce_r: done.nonce_r,
            response: done.response,
            nat: done.nat,
            inbound,
            offered,
            packet: done.packet,
            doubtful: done.doubtful,
            out,
        }))
    }

    /// Gives back the SPI that was reserved.
    pub fn release(&self, ctx: &mut Ctx<'_>) {
        ctx.spis.esp.remove(&self.inbound);
    }

    pub fn on_tick(mut self: Box<Self>, core: &mut Core, ctx: &mut Ctx<'_>) -> State {
        let policy = self.policy.clone();
        match self.out.on_tick(ctx, &policy, core.flow) {
            Retried::Waiting => State::AuthSent(self),
            Retried::GaveUp => {
                let detail = format!("{} does not answer IKE_AUTH", core.flow.remote);
                let account = self.draft(core).turned_away(&policy, FailureReason::PeerUnreachable);
                ctx.tell(account.unanswered(policy.id, &detail));
                self.fail(ctx, FailureReason::PeerUnreachable, detail)
            }
        }
    }

    /// The account of what was agreed on so far. Nothing of it is authenticated yet.
    fn draft(&self, core: &Core) -> Draft {
        let draft = Draft::claimed(Stage::Auth, Role::Initiator, core.flow.remote);
        draft.ike_chosen(&self.policy.proposals, None, self.suite)
    }

    /// The peer refuses us before it has proven to be itself.
    fn turned_away(
        self: Box<Self>,
        core: &Core,
        ctx: &mut Ctx<'_>,
        reason: FailureReason,
        detail: String,
    ) -> State {
        let account = self.draft(core).turned_away(&self.policy, reason);
        ctx.tell(account.refused(self.policy.id, Party::Peer, reason, &detail));
        self.fail(ctx, reason, detail)
    }

    fn fail(self: Box<Self>, ctx: &mut Ctx<'_>, reason: FailureReason, detail: String) -> State {
        self.release(ctx);
        let ending = Ending::Failed(reason);
        State::Closed(Closed { policy: Some(self.policy), ending, detail, was_up: false })
    }

    // R -> I  IKE_AUTH { IDr, AUTH, SAr2, TSi, TSr } or { IDr, AUTH, N(error) } or { N(error) }
    pub fn on_response(
        mut self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
    ) -> State {
        if header.message_id != 1 {
            return super::drop_in(State::AuthSent(self), ctx, DropReason::UnexpectedResponse, core.flow);
        }
        let payloads = match self.channel.open(header, datagram) {
            Ok(Opened::Message(Ok(payloads))) => payloads,
            Ok(Opened::Partial) => return State::AuthSent(self),
            Ok(Opened::Message(Err(e))) => {
                let detail = format!("the answer of {} to IKE_AUTH is a {e}", core.flow.remote);
                return self.refuse(
                    core,
                    ctx,
                    FailureReason::InvalidSyntax,
                    detail,
                    NotifyType::INVALID_SYNTAX,
                );
            }
            Err(reason) => return super::drop_in(State::AuthSent(self), ctx, reason, core.flow),
        };
        self.out.answered(ctx, &self.policy);
        let peer = core.flow.remote;
        if let Some(n) = payloads.notifies.iter().find(|n| FATAL.contains(&n.kind)) {
            if n.kind == NotifyType::AUTHENTICATION_FAILED && self.doubtful {
                return self.begin_anew(ctx);
            }
            let detail = format!("{peer} answers IKE_AUTH with {}", n.kind);
            return self.turned_away(core, ctx, FailureReason::of_notify(n.kind), detail);
        }
        let (Some(idr), Some(auth)) = (&payloads.idr, &payloads.auth) else {
            let (reason, what) = match payloads.error() {
                Some(n) => (FailureReason::of_notify(n.kind), n.kind.to_string()),
                None => (FailureReason::InvalidSyntax, "neither identity nor error".to_owned()),
            };
            return self.turned_away(core, ctx, reason, format!("{peer} answers IKE_AUTH with {what}"));
        };
        if !self.policy.remote_id.admits(idr, &self.policy.local_id) {
            let (got, wanted) = (idr.with_kind(), self.policy.remote_id.with_kind());
            let detail = format!("{peer} identifies as {got}, configured is {wanted}");
            let account = self.draft(core).named(&self.policy, idr, None);
            ctx.tell(account.refused(self.policy.id, Party::We, FailureReason::UnknownIdentity, &detail));
            let notify = NotifyType::AUTHENTICATION_FAILED;
            return self.refuse(core, ctx, FailureReason::UnknownIdentity, detail, notify);
        }
        let keys = &self.keys;
        let expected = |psk| psk_auth(self.suite.prf, psk, &self.response, &self.nonce_i, &keys.sk_pr, idr);
        let Some(proof) = self.policy.psks().find_map(|psk| verify(auth, &expected(psk), idr)) else {
            let detail = format!("{peer} does not prove to be {idr}: its AUTH payload is wrong");
            let account = self.draft(core).unproven(&self.policy, idr, auth.method);
            ctx.tell(account.refused(
                self.policy.id,
                Party::We,
                FailureReason::AuthenticationFailed,
                &detail,
            ));
            let notify = NotifyType::AUTHENTICATION_FAILED;
            return self.refuse(core, ctx, FailureReason::AuthenticationFailed, detail, notify);
        };
        self.establish(core, ctx, payloads, proof)
    }

    /// The responder took our AUTH for wrong, and may be right: a cookie that it never gave made us sign another request than
    /// the one that it answered. Another attempt begins at once, which is not taken in again.
    fn begin_anew(self: Box<Self>, ctx: &mut Ctx<'_>) -> State {
        self.release(ctx);
        ctx.effects.push(Effect::BeginAnew { tunnel: self.policy.id, packet: self.packet });
        let (ending, detail) = (Ending::Replaced, String::new());
        State::Closed(Closed { policy: Some(self.policy), ending, detail, was_up: false })
    }

    /// Tells the peer why its answer is not accepted, in an exchange of its own without waiting for the end of it
    /// (RFC 7296 §2.21.2), and closes.
    fn refuse(
        mut self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        reason: FailureReason,
        detail: String,
        notify: NotifyType,
    ) -> State {
        let payloads = Payloads { notifies: vec![Notify::new(notify, vec![])], ..Payloads::default() };
        let sealed = self.channel.seal(Exchange::INFORMATIONAL, 2, false, &payloads, ctx.random);
        for bytes in sealed.into_iter().flatten() {
            ctx.out.push(Action::Send { flow: core.flow, bytes });
        }
        self.fail(ctx, reason, detail)
    }

    fn establish(
        self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        payloads: Payloads,
        proof: PeerAuthenticated,
    ) -> State {
        let this = *self;
        let of = this.policy.children.first().map_or(0, |(of, _)| of);
        let account = Draft::authenticated(Stage::Auth, Role::Initiator, core.flow.remote)
            .ike_chosen(&this.policy.proposals, None, this.suite)
            .known(&this.policy, proof.peer(), None);
        let offered = Offered {
            of,
            inbound: this.inbound,
            local: &this.offered.0,
            remote: &this.offered.1,
            with_ke: false,
        };
        let pair = child::accept(&this.policy, &offered, &payloads, |_| false);
        let pair = pair.map(|negotiated| {
            let (prf, sk_d) = (this.suite.prf, &this.keys.sk_d);
            let keys = ChildKeys::derive(prf, sk_d, None, &this.nonce_i, &this.nonce_r, &negotiated.suite);
            NewPair { keys, negotiated, role: Role::Initiator }
        });
        let sk_d = this.keys.sk_d.duplicate();
        let window = Window::new(2, 0);
        let mut live =
            Live::new(core, ctx, this.policy, this.channel, this.suite, sk_d, this.nat, window, proof);
        live.packets.extend(this.packet.filter(|(of, _)| *of != 0));
        ctx.effects.push(Effect::Established {
            spi: core.spi,
            tunnel: live.policy.id,
            initial_contact: false,
        });
        match pair {
            Ok(pair) => {
                let n = &pair.negotiated;
                let made = (&*n.local, &*n.remote);
                let child = live.policy.children.get(of);
                let account = match child {
                    Some(c) => {
                        let wanted = (&*c.local, &*c.remote);
                        account.child_chosen(&c.proposals, wanted, None, n.suite, made, false)
                    }
                    None => account,
                };
                ctx.tell(account.agreed(live.policy.id));
                if live.install(core, ctx, pair, None).is_some() {
                    live.seek_rest(core, ctx, of);
                }
            }
            Err(unfit) => {
                ctx.spis.esp.remove(&this.inbound);
                live.disown(this.inbound, &payloads);
                let nets = live.asked(of, Ask::Whole).map_or_else(String::new, |(l, r)| networks(&l, &r));
                let detail = live.answer_detail(core, "IKE_AUTH", &nets, of, &payloads, &unfit);
                ctx.tell(live.account_of_answer(
                    account,
                    (of, Ask::Whole),
                    &payloads,
                    &unfit,
                    &detail,
                    false,
                ));
                live.refused_in_auth = unfit.reason.spares_ike_auth();
                live.refused(core, ctx, of, Ask::Whole, Trouble { reason: unfit.reason, detail });
            }
        }
        live.want_other_children();
        live.pump(core, ctx);
        State::Established(Box::new(live))
    }
}

fn internal(policy: Arc<TunnelPolicy>) -> State {
    State::Closed(Closed {
        policy: Some(policy),
        ending: Ending::Failed(FailureReason::Internal),
        detail: "the keys of the IKE SA could not be taken into use".to_owned(),
        was_up: false,
    })
}

/// A refused IKE_AUTH: the answer stays for repetitions, and nothing else does.
pub(crate) struct Refused {
    pub spi_i: u64,
    answer: Vec<Vec<u8>>,
    repeats: Rate,
    channel: Channel,
    pub until: Timestamp,
}

impl Refused {
    pub fn on_datagram(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
        flow: Flow,
    ) {
        let repeated = header.exchange == Exchange::IKE_AUTH && !header.response && header.message_id == 1;
        if !repeated || !asks_again(header, datagram) {
            return ctx.dropped(DropReason::UnexpectedExchange, flow);
        }
        if let Err(reason) = self.channel.authenticate(header, datagram) {
            return ctx.dropped(reason, flow);
        }
        if !self.repeats.admit(ctx.now.mono, REPEATS.0, REPEATS.1) {
            return ctx.dropped(DropReason::RateLimit, flow);
        }
        // Where the request came from that was refused, whoever copies it.
        for bytes in &self.answer {
            ctx.out.push(Action::Send { flow: core.flow, bytes: bytes.clone() });
        }
    }

    pub fn closed(self) -> Closed {
        // The failure was told when it happened.
        Closed { policy: None, ending: Ending::Local, detail: String::new(), was_up: false }
    }
}

/// Why a responder refuses IKE_AUTH as a whole.
struct Refusal {
    notify: Notify,
    /// Whose peer it is, if that is proven: what a stranger does is no tunnel's failure.
    policy: Option<Arc<TunnelPolicy>>,
    reason: FailureReason,
    detail: String,
    /// What it was about, for the tunnels that may be meant.
    accounts: Vec<(TunnelId, Draft)>,
}

impl InitAnswered {
    /// The account of what was agreed on so far with the peer of a tunnel.
    fn draft(&self, draft: Draft, policy: &TunnelPolicy) -> Draft {
        let request = Header::decode(&self.request)
            .ok()
            .and_then(|(header, _)| Payloads::decode(header.next, self.request.get(HEADER_LEN..)?).ok());
        let offered = request.and_then(|p| p.sa).unwrap_or_default();
        draft.ike_chosen(&policy.proposals, Some(&offered), self.suite)
    }

    /// Accounts of tunnels that a peer without proof may have meant.
    fn claims(
        &self,
        ctx: &mut Ctx<'_>,
        policies: &[Arc<TunnelPolicy>],
        flow: Flow,
        about: impl Fn(Draft, &TunnelPolicy) -> Draft,
    ) -> Vec<(TunnelId, Draft)> {
        if !ctx.may_tell_claim() {
            return Vec::new();
        }
        let of = |p: &Arc<TunnelPolicy>| {
            let draft = Draft::claimed(Stage::Auth, Role::Responder, flow.remote);
            (p.id, about(self.draft(draft, p), p))
        };
        policies.iter().take(account::TOLD).map(of).collect()
    }

    pub fn on_auth_request(
        mut self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
        flow: Flow,
    ) -> State {
        if header.message_id != 1 {
            return super::drop_in(State::InitAnswered(self), ctx, DropReason::MessageId, flow);
        }
        let derived = match std::mem::replace(&mut self.secret, Secret::None) {
            Secret::Due(key, public) => {
                if !ctx.is_free_for_strangers() {
                    // The peer repeats its request.
                    self.secret = Secret::Due(key, public);
                    return super::drop_in(State::InitAnswered(self), ctx, DropReason::Busy, flow);
                }
                let job = ctx.run(core.spi, Asker::Stranger, Work::Finish(key, public));
                let kept = vec![(flow, datagram.to_vec())];
                self.secret = Secret::Computing(Computing { job, kept, octets: datagram.len() });
                return State::InitAnswered(self);
            }
            Secret::Computing(mut computing) => {
                let kept = computing.keep(datagram, flow);
                self.secret = Secret::Computing(computing);
                if let Err(reason) = kept {
                    ctx.dropped(reason, flow);
                }
                return State::InitAnswered(self);
            }
            Secret::None => {
                return super::drop_in(State::InitAnswered(self), ctx, DropReason::Integrity, flow);
            }
            Secret::Known(derived) => derived,
        };
        self.secret = Secret::Known(derived);
        let Some(derived) = self.secret.known_mut() else { return State::InitAnswered(self) };
        let result = match derived.channel.open(header, datagram) {
            Ok(Opened::Partial) => return State::InitAnswered(self),
            Ok(Opened::Message(result)) => result,
            Err(reason) => return super::drop_in(State::InitAnswered(self), ctx, reason, flow),
        };
        core.flow = flow;
        let now = ctx.now.mono;
        match result.map_err(|e| malformed(&e, flow)).and_then(|p| self.authenticate(ctx, p, flow)) {
            Ok((policy, ..)) if !ctx.rates(policy.id).handshakes.admit(now, HANDSHAKES.0, HANDSHAKES.1) => {
                // The peer repeats its request, and may be let in then.
                super::drop_in(State::InitAnswered(self), ctx, DropReason::RateLimit, flow)
            }
            Ok((policy, payloads, psk, proof)) => self.establish(core, ctx, (policy, psk), payloads, proof),
            Err(refusal) => self.refuse(core, ctx, refusal),
        }
    }

    /// The secret is there, or there is none. Gives what has arrived in the meantime.
    pub fn on_done(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        job: JobId,
        output: Output,
    ) -> Vec<(Flow, Vec<u8>)> {
        let computing = match std::mem::replace(&mut self.secret, Secret::None) {
            Secret::Computing(computing) if computing.job == job => computing,
            other => {
                self.secret = other;
                return Vec::new();
            }
        };
        match output.secret() {
            Ok(shared) => {
                let spis = (self.spi_i, core.spi.value());
                let nonces = (&*self.nonce_i, &*self.nonce_r);
                let derived = derive(self.suite, &shared, nonces, spis, Role::Responder, self.fragmentation);
                self.secret = derived.map_or(Secret::None, |derived| Secret::Known(Box::new(derived)));
                computing.kept
            }
            Err(e) => {
                // Degenerate public value (RFC 6989): there is no secret, hence nobody to answer to. The place stays
                // taken until its time is over, or it would be free to ask for the same again.
                if e.blames_peer() {
                    let peer = core.flow.remote;
                    ctx.tell(Event::Failure {
                        tunnel: None,
                        peer,
                        reason: FailureReason::InvalidSyntax,
                        detail: format!("the key exchange value of {peer} is not usable"),
                        retry_in: None,
                    });
                }
                Vec::new()
            }
        }
    }

    /// Finds the tunnel whose identities fit and whose PSK the peer proves to know.
    ///
    /// A peer that names an unknown identity and one that has the wrong key get the same answer, after the same work:
    /// with no candidate a MAC is computed all the same.
    fn authenticate(
        &self,
        ctx: &mut Ctx<'_>,
        payloads: Payloads,
        flow: Flow,
    ) -> Result<(Arc<TunnelPolicy>, Payloads, SecretBytes, PeerAuthenticated), Refusal> {
        let refusal = |kind, policy: Option<&Arc<TunnelPolicy>>, reason, detail| Refusal {
            notify: Notify::new(kind, vec![]),
            policy: policy.cloned(),
            reason,
            detail,
            accounts: Vec::new(),
        };
        let (Some(idi), Some(auth)) = (&payloads.idi, &payloads.auth) else {
            let detail = format!("IKE_AUTH of {} lacks identity or AUTH", flow.remote);
            let kind = if payloads.eap || payloads.idi.is_some() {
                // Without AUTH the initiator asks for EAP (RFC 7296 §2.16), which we do not speak.
                NotifyType::AUTHENTICATION_FAILED
            } else {
                NotifyType::INVALID_SYNTAX
            };
            return Err(refusal(kind, None, FailureReason::InvalidSyntax, detail));
        };
        let Some(derived) = self.secret.known() else {
            return Err(refusal(
                NotifyType::AUTHENTICATION_FAILED,
                None,
                FailureReason::Internal,
                "no keys".to_owned(),
            ));
        };
        let policies = ctx.policies;
        let candidates = policies.between(flow.local.ip(), flow.remote.ip());
        let by_address = candidates.map_or(&[][..], |candidates| candidates.all());
        let named: Vec<_> = candidates
            .into_iter()
            .flat_map(|candidates| candidates.of_peer(idi, payloads.idr.as_ref()))
            .cloned()
            .collect();
        let expected = |psk: &SecretBytes| {
            psk_auth(self.suite.prf, psk, &self.request, &self.nonce_r, &derived.keys.sk_pi, idi)
        };
        if named.is_empty() {
            let decoy = SecretBytes::copy_of(&self.nonce_r);
            let _ = expected(&decoy).ct_eq(&auth.data);
            let wanted = payloads.idr.as_ref().map_or_else(|| "anybody".to_owned(), Identity::with_kind);
            let configured = by_address.first().map_or_else(String::new, |p| {
                let more = by_address.len().saturating_sub(1);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let (remote, local) = (p.remote_id.with_kind(), p.local_id.with_kind());
                format!("; tunnel {} has {remote} and {local}{more}", p.name)
            });
            let detail = format!(
                "{} identifies as {} and wants {wanted}: no tunnel has these identities{configured}",
                flow.remote,
                idi.with_kind()
            );
            let reason = FailureReason::UnknownIdentity;
            let accounts = self.claims(ctx, by_address, flow, |d, p| d.named(p, idi, payloads.idr.as_ref()));
            let refusal = refusal(NotifyType::AUTHENTICATION_FAILED, None, reason, detail);
            return Err(Refusal { accounts, ..refusal });
        }
        let mut proven: Vec<(&Arc<TunnelPolicy>, &SecretBytes, PeerAuthenticated)> = named
            .iter()
            .filter_map(|p| p.psks().find_map(|psk| Some((p, psk, verify(auth, &expected(psk), idi)?))))
            .collect();
        if proven.is_empty() {
            let detail = format!("{} does not prove to be {idi}: its AUTH payload is wrong", flow.remote);
            let reason = FailureReason::AuthenticationFailed;
            let accounts = self.claims(ctx, &named, flow, |d, p| d.unproven(p, idi, auth.method));
            let refusal = refusal(NotifyType::AUTHENTICATION_FAILED, None, reason, detail);
            return Err(Refusal { accounts, ..refusal });
        }
        if payloads.sa.is_none() || payloads.tsi.is_none() || payloads.tsr.is_none() {
            // An IKE SA without a child needs an extension that we do not offer (RFC 6023).
            let detail = format!("IKE_AUTH of {} lacks a payload of its child", flow.remote);
            let (kind, reason) = (NotifyType::INVALID_SYNTAX, FailureReason::InvalidSyntax);
            return Err(refusal(kind, proven.first().map(|(p, ..)| *p), reason, detail));
        }
        // Several tunnels between the same two identities: the one whose selectors fit.
        let fits = |p: &TunnelPolicy| child::find(p, &payloads, false, None, |_| false, |_| false).is_ok();
        let at = proven.iter().position(|(p, ..)| fits(p)).unwrap_or(0);
        let (policy, psk, proof) = proven.swap_remove(at);
        // We answer with the key that the peer knows.
        let (policy, psk) = (Arc::clone(policy), psk.duplicate());
        if ctx.held.contains(&policy.id) {
            let detail = format!("{} was refused: the tunnel was taken down by command", flow.remote);
            let kind = NotifyType::AUTHENTICATION_FAILED;
            let accounts = vec![(policy.id, self.of_peer(&policy, &proof, &payloads, flow))];
            let refusal = refusal(kind, Some(&policy), FailureReason::Held, detail);
            return Err(Refusal { accounts, ..refusal });
        }
        // The suite was chosen before the peer was known; hold it against this tunnel's own policy.
        if !policy.proposals.iter().any(|p| p.allows(&self.suite)) {
            let detail =
                format!("{} negotiated {}, which this tunnel does not allow", flow.remote, self.suite);
            let (kind, reason) = (NotifyType::NO_PROPOSAL_CHOSEN, FailureReason::NoProposalChosen);
            let draft = Draft::authenticated(Stage::Auth, Role::Responder, flow.remote);
            let draft = draft.ike_refused(&policy.proposals, &policy::answer_ike(self.suite, 1, &[]));
            let accounts = vec![(policy.id, draft.known(&policy, proof.peer(), payloads.idr.as_ref()))];
            return Err(Refusal { accounts, ..refusal(kind, Some(&policy), reason, detail) });
        }
        Ok((policy, payloads, psk, proof))
    }

    /// The account with a peer that has proven to be it.
    fn of_peer(
        &self,
        policy: &TunnelPolicy,
        proof: &PeerAuthenticated,
        payloads: &Payloads,
        flow: Flow,
    ) -> Draft {
        let draft = Draft::authenticated(Stage::Auth, Role::Responder, flow.remote);
        self.draft(draft, policy).known(policy, proof.peer(), payloads.idr.as_ref())
    }

    fn refuse(mut self: Box<Self>, core: &Core, ctx: &mut Ctx<'_>, refusal: Refusal) -> State {
        for (tunnel, draft) in refusal.accounts {
            ctx.tell(draft.refused(tunnel, Party::We, refusal.reason, &refusal.detail));
        }
        ctx.tell(Event::Failure {
            tunnel: refusal.policy.map(|p| p.id),
            peer: core.flow.remote,
            reason: refusal.reason,
            detail: refusal.detail,
            retry_in: None,
        });
        let payloads = Payloads { notifies: vec![refusal.notify], ..Payloads::default() };
        let secret = std::mem::replace(&mut self.secret, Secret::None);
        let Some(Derived { mut channel, .. }) = secret.into_known() else {
            return super::drop_in(State::InitAnswered(self), ctx, DropReason::Integrity, core.flow);
        };
        let sealed = channel.seal(Exchange::IKE_AUTH, 1, true, &payloads, ctx.random);
        let answer = sealed.unwrap_or_default();
        for bytes in &answer {
            ctx.out.push(Action::Send { flow: core.flow, bytes: bytes.clone() });
        }
        let until = ctx.now.mono + REFUSAL_LIFETIME;
        let refused = Refused { spi_i: self.spi_i, answer, repeats: Rate::default(), channel, until };
        State::Refused(Box::new(refused))
    }

    // R -> I  IKE_AUTH { IDr, AUTH, SAr2, TSi, TSr } or { IDr, AUTH, N(error) }
    fn establish(
        self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        (policy, psk): (Arc<TunnelPolicy>, SecretBytes),
        payloads: Payloads,
        proof: PeerAuthenticated,
    ) -> State {
        let account = self.of_peer(&policy, &proof, &payloads, core.flow);
        let this = *self;
        let Some(Derived { keys, mut channel }) = this.secret.into_known() else { return internal(policy) };
        // The fragmentation of the tunnel itself counts, now that it is known.
        channel.fragmentation = this.fragmentation && policy.fragmentation;
        let auth =
            psk_auth(this.suite.prf, &psk, &this.response, &this.nonce_i, &keys.sk_pr, &policy.local_id);
        let mut answer = Payloads {
            idr: Some(policy.local_id.clone()),
            auth: Some(Auth { method: AuthMethod::SHARED_KEY_MIC, data: auth.expose().to_vec() }),
            ..Payloads::default()
        };
        let initial_contact = payloads.notify(NotifyType::INITIAL_CONTACT).is_some();
        let sk_d = keys.sk_d.duplicate();
        let nat = this.nat.unwrap_or_default();
        let window = Window::new(0, 1);
        let mut live = Live::new(core, ctx, policy, channel, this.suite, sk_d, nat, window, proof);
        let chosen = child::find(&live.policy, &payloads, false, None, |_| false, |_| false);
        let offered = payloads.sa.as_deref().unwrap_or_default();
        let ours = live.policy.children.first().map_or(&[][..], |(_, c)| &c.proposals);
        let ahead = mismatch::pfs_ahead(ours, offered);
        let account = match &ahead {
            Some(differs) => account.child_ahead(ours, Offer(&payloads), differs),
            None => account,
        };
        match chosen {
            Ok(found) => {
                let account = found.account(account, &live.policy, Offer(&payloads), false);
                ctx.tell(account.agreed(live.policy.id));
                let number = found.number;
                let negotiated = found.negotiate(ctx);
                let (suite, inbound) = (negotiated.suite, negotiated.inbound.to_be_bytes());
                let (local, remote) = (negotiated.local.clone(), negotiated.remote.clone());
                let keys = ChildKeys::derive(
                    this.suite.prf,
                    &live.sk_d,
                    None,
                    &this.nonce_i,
                    &this.nonce_r,
                    &negotiated.suite,
                );
                let pair = NewPair { negotiated, keys, role: Role::Responder };
                match live.install(core, ctx, pair, None) {
                    Some(_) => {
                        answer.sa = Some(policy::answer_esp(suite, number, inbound));
                        (answer.tsi, answer.tsr) = (Some(remote), Some(local));
                    }
                    None => answer.notifies.push(Notify::new(NotifyType::NO_ADDITIONAL_SAS, vec![])),
                }
            }
            Err(unfit) => {
                answer.notifies.push(Notify::new(unfit.notify, vec![]));
                let (tunnel, peer, reason) = (live.policy.id, core.flow.remote, unfit.reason);
                let detail = child::refusal_detail(&unfit, peer, &payloads);
                let offer = Offer(&payloads);
                let account = account.child_refused(&live.policy, offer, reason, &unfit.differs, false);
                ctx.tell(account.refused(tunnel, Party::We, reason, &detail));
                ctx.tell(Event::Failure { tunnel: Some(tunnel), peer, reason, detail, retry_in: None });
            }
        }
        if let Some(differs) = ahead {
            let detail =
                format!("the rekey of the child that {} made will fail: {differs}", core.flow.remote);
            let trouble = Trouble { reason: FailureReason::NoProposalChosen, detail };
            ctx.effects.push(Effect::Learned { tunnel: live.policy.id, trouble });
        }
        let sealed = live.channel.seal(Exchange::IKE_AUTH, 1, true, &answer, ctx.random);
        live.window.respond(ctx, core.flow, sealed.unwrap_or_default());
        ctx.effects.push(Effect::Established { spi: core.spi, tunnel: live.policy.id, initial_contact });
        State::Established(Box::new(live))
    }
}

fn malformed(e: &DecodeError, flow: Flow) -> Refusal {
    Refusal {
        notify: error_notify(e),
        policy: None,
        accounts: Vec::new(),
        reason: FailureReason::InvalidSyntax,
        detail: format!("IKE_AUTH of {} is a {e}", flow.remote),
    }
}

/// The notification that answers an authentic but malformed message (RFC 7296 §2.21, §2.5).
pub(super) fn error_notify(e: &DecodeError) -> Notify {
    match e.kind {
        DecodeErrorKind::UnsupportedCritical(kind) => {
            Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind])
        }
        _ => Notify::new(NotifyType::INVALID_SYNTAX, vec![]),
    }
}
