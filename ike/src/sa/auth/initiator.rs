//! The initiator's IKE_AUTH: its request, and what the answer makes of it.

use std::sync::Arc;

use cygnet_model::Spi;
use cygnet_model::selector::{Packet, TrafficSelector};
use cygnet_model::suite::IkeSuite;

use super::proof::{PeerAuthenticated, verify};
use super::{Derived, FATAL, InitDone, internal, padded, psk_auth};
use crate::account::{Draft, Party, Stage};
use crate::coverage::networks;
use crate::crypto::keymat::{ChildKeys, IkeKeys};
use crate::error::{DropReason, FailureReason, Trouble};
use crate::io::{Action, Ending, Role};
use crate::policy::{self, TunnelPolicy};
use crate::sa;
use crate::sa::child::{self, NewPair, Offered};
use crate::sa::intermediate::IntAuth;
use crate::sa::message::{Channel, Opened};
use crate::sa::natt::Nat;
use crate::sa::seek;
use crate::sa::window::{Outgoing, Retried, Window};
use crate::sa::{Ask, Closed, Core, Ctx, Effect, Live, State};
use crate::wire::{Auth, AuthMethod, Exchange, Header, Notify, NotifyType, Payloads};

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
    /// What its AUTH covers of IKE_INTERMEDIATE.
    intermediate: Vec<u8>,
    /// Message ID of IKE_AUTH.
    pub id: u32,
    nat: Nat,
    /// Inbound SPI of the first child.
    inbound: Spi,
    /// The selectors that we offered for it: ours, the peer's.
    offered: (Vec<TrafficSelector>, Vec<TrafficSelector>),
    packet: Option<(u16, Packet)>,
    doubtful: bool,
    pub out: Outgoing,
}

impl AuthSent {
    // I -> R  IKE_AUTH { IDi, IDr, AUTH, SAi2, TSi, TSr, N(INITIAL_CONTACT) }
    pub fn start(
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        policy: Arc<TunnelPolicy>,
        done: InitDone,
        derived: Derived,
        int_auth: IntAuth,
        id: u32,
    ) -> State {
        let Derived { keys, mut channel } = derived;
        let intermediate = int_auth.octets(id);
        let inbound = ctx.spis.new_esp(ctx.random);
        let psk = policy.psk_after(ctx.refused_psks.get(&policy.id).copied().unwrap_or(0));
        let auth = psk_auth(
            done.suite.prf,
            &padded(done.suite.prf, psk),
            &done.request,
            &done.nonce_r,
            &keys.sk_pi,
            &policy.local_id,
            &intermediate,
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
        let Some(datagrams) = channel.seal(Exchange::IKE_AUTH, id, false, &payloads, ctx.random) else {
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
            intermediate,
            id,
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
        if header.message_id != self.id {
            return sa::drop_in(State::AuthSent(self), ctx, DropReason::UnexpectedResponse, core.flow);
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
            Err(reason) => return sa::drop_in(State::AuthSent(self), ctx, reason, core.flow),
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
        let expected = |psk| {
            let (prf, message, nonce) = (self.suite.prf, &self.response, &self.nonce_i);
            psk_auth(prf, &padded(prf, psk), message, nonce, &keys.sk_pr, idr, &self.intermediate)
        };
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
        let sealed = self.channel.seal(Exchange::INFORMATIONAL, self.id + 1, false, &payloads, ctx.random);
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
        let window = Window::new(this.id + 1, 0);
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
