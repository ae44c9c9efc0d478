//! The responder's IKE_AUTH: who asks, whether that is proven, and the answer.

use std::sync::Arc;
use std::time::Duration;

use cygnet_model::{SecretBytes, Timestamp, TunnelId};

use super::proof::{PeerAuthenticated, verify};
use super::{Computing, Derived, Secret, derive, error_notify, internal, padded, psk_auth};
use crate::account::{self, Draft, Offer, Party, Stage};
use crate::crypto::keymat::ChildKeys;
use crate::error::{DropReason, FailureReason, Trouble};
use crate::io::{Action, Ending, Event, Flow, Role};
use crate::jobs::{Asker, JobId, Output, Work};
use crate::mismatch;
use crate::policy::{self, TunnelPolicy};
use crate::rate::Rate;
use crate::sa;
use crate::sa::child::{self, NewPair};
use crate::sa::message::{Channel, Opened, asks_again};
use crate::sa::window::{REPEATS, Window};
use crate::sa::{Closed, Core, Ctx, Effect, InitAnswered, Live, State};
use crate::wire::{
    Auth, AuthMethod, DecodeError, Exchange, HEADER_LEN, Header, Identity, Notify, NotifyType, Payloads,
};

/// How often the peer of a tunnel may make a new IKE SA by authentication: one in this time, and so many at once.
const HANDSHAKES: (Duration, u32) = (Duration::from_secs(2), 16);

/// How long a refusal is kept for repetitions of the request.
const REFUSAL_LIFETIME: Duration = Duration::from_secs(30);

/// A refused IKE_AUTH or IKE_INTERMEDIATE: the answer stays for repetitions, and nothing else does.
pub(crate) struct Refused {
    pub spi_i: u64,
    /// The exchange that was refused, and its message ID.
    pub exchange: (Exchange, u32),
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
        let repeated = (header.exchange, header.message_id) == self.exchange && !header.response;
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

/// Why a responder refuses IKE_AUTH or IKE_INTERMEDIATE as a whole.
pub(super) struct Refusal {
    pub notify: Notify,
    /// Whose peer it is, if that is proven: what a stranger does is no tunnel's failure.
    pub policy: Option<Arc<TunnelPolicy>>,
    pub reason: FailureReason,
    pub detail: String,
    /// What it was about, for the tunnels that may be meant.
    pub accounts: Vec<(TunnelId, Draft)>,
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

    /// A request under the keys of IKE_SA_INIT: of IKE_INTERMEDIATE as long as additional key exchanges are to be made, then of
    /// IKE_AUTH.
    pub fn on_request(
        mut self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
        flow: Flow,
    ) -> State {
        if header.message_id != self.mixing.due() {
            if let Err(reason) = self.mixing.repeat(core, ctx, header, datagram) {
                ctx.dropped(reason, flow);
            }
            return State::InitAnswered(self);
        }
        if self.mixing.is_working() {
            return sa::drop_in(State::InitAnswered(self), ctx, DropReason::Duplicate, flow);
        }
        let derived = match std::mem::replace(&mut self.secret, Secret::None) {
            Secret::Due(key, public) => {
                if !ctx.is_free_for_strangers() {
                    // The peer repeats its request.
                    self.secret = Secret::Due(key, public);
                    return sa::drop_in(State::InitAnswered(self), ctx, DropReason::Busy, flow);
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
                return sa::drop_in(State::InitAnswered(self), ctx, DropReason::Integrity, flow);
            }
            Secret::Known(derived) => derived,
        };
        self.secret = Secret::Known(derived);
        if header.exchange == Exchange::IKE_INTERMEDIATE {
            return self.on_intermediate(core, ctx, header, datagram, flow);
        }
        self.on_auth_request(core, ctx, header, datagram, flow)
    }

    fn on_auth_request(
        mut self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
        flow: Flow,
    ) -> State {
        if self.next_method().is_some() {
            // What was agreed on is not left out.
            return sa::drop_in(State::InitAnswered(self), ctx, DropReason::UnexpectedExchange, flow);
        }
        let Some(derived) = self.secret.known_mut() else { return State::InitAnswered(self) };
        let result = match derived.channel.open(header, datagram) {
            Ok(Opened::Partial) => return State::InitAnswered(self),
            Ok(Opened::Message(result)) => result,
            Err(reason) => return sa::drop_in(State::InitAnswered(self), ctx, reason, flow),
        };
        core.flow = flow;
        let now = ctx.now.mono;
        match result.map_err(|e| malformed(&e, flow)).and_then(|p| self.authenticate(ctx, p, flow)) {
            Ok((policy, ..)) if !ctx.rates(policy.id).handshakes.admit(now, HANDSHAKES.0, HANDSHAKES.1) => {
                // The peer repeats its request, and may be let in then.
                sa::drop_in(State::InitAnswered(self), ctx, DropReason::RateLimit, flow)
            }
            Ok((policy, payloads, padded, proof)) => {
                self.establish(core, ctx, (policy, padded), payloads, proof)
            }
            Err(refusal) => self.refuse(core, ctx, (Exchange::IKE_AUTH, header.message_id), refusal),
        }
    }

    /// What was computed is there: an answer to IKE_INTERMEDIATE, or the secret of IKE_SA_INIT, if there is one. Gives what has
    /// arrived in the meantime.
    pub fn on_done(
        mut self: Box<Self>,
        core: &Core,
        ctx: &mut Ctx<'_>,
        job: JobId,
        output: Output,
    ) -> (State, Vec<(Flow, Vec<u8>)>) {
        if self.is_mixing(job) {
            return (self.on_mixed(core, ctx, output.answer()), Vec::new());
        }
        let kept = self.on_secret(core, ctx, job, output);
        (State::InitAnswered(self), kept)
    }

    fn on_secret(
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

    /// Finds the tunnel whose identities fit and whose PSK the peer proves to know; with it comes the [`padded`] PSK.
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
        let intermediate = self.mixing.int_auth.octets(self.mixing.due());
        let padded = |psk: &SecretBytes| padded(self.suite.prf, psk);
        let expected = |padded: &SecretBytes| {
            let (message, nonce) = (&self.request, &self.nonce_r);
            psk_auth(self.suite.prf, padded, message, nonce, &derived.keys.sk_pi, idi, &intermediate)
        };
        if named.is_empty() {
            let decoy = padded(&SecretBytes::copy_of(&self.nonce_r));
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
        let proof = |padded: SecretBytes| Some((verify(auth, &expected(&padded), idi)?, padded));
        let mut proven: Vec<(&Arc<TunnelPolicy>, (PeerAuthenticated, SecretBytes))> =
            named.iter().filter_map(|p| Some((p, p.psks().map(padded).find_map(proof)?))).collect();
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
            return Err(refusal(kind, proven.first().map(|(p, _)| *p), reason, detail));
        }
        // Several tunnels between the same two identities: the one whose selectors fit.
        let fits = |p: &TunnelPolicy| child::find(p, &payloads, false, None, |_| false, |_| false).is_ok();
        let at = if proven.len() > 1 { proven.iter().position(|(p, _)| fits(p)).unwrap_or(0) } else { 0 };
        // We answer with the key that the peer knows.
        let (policy, (proof, padded)) = proven.swap_remove(at);
        let policy = Arc::clone(policy);
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
        Ok((policy, payloads, padded, proof))
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

    pub(super) fn refuse(
        mut self: Box<Self>,
        core: &Core,
        ctx: &mut Ctx<'_>,
        exchange: (Exchange, u32),
        refusal: Refusal,
    ) -> State {
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
            return sa::drop_in(State::InitAnswered(self), ctx, DropReason::Integrity, core.flow);
        };
        let sealed = channel.seal(exchange.0, exchange.1, true, &payloads, ctx.random);
        let answer = sealed.unwrap_or_default();
        for bytes in &answer {
            ctx.out.push(Action::Send { flow: core.flow, bytes: bytes.clone() });
        }
        let until = ctx.now.mono + REFUSAL_LIFETIME;
        let refused =
            Refused { spi_i: self.spi_i, exchange, answer, repeats: Rate::default(), channel, until };
        State::Refused(Box::new(refused))
    }

    // R -> I  IKE_AUTH { IDr, AUTH, SAr2, TSi, TSr } or { IDr, AUTH, N(error) }
    fn establish(
        self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        (policy, padded): (Arc<TunnelPolicy>, SecretBytes),
        payloads: Payloads,
        proof: PeerAuthenticated,
    ) -> State {
        let account = self.of_peer(&policy, &proof, &payloads, core.flow);
        let this = *self;
        let id = this.mixing.due();
        let intermediate = this.mixing.int_auth.octets(id);
        let Some(Derived { keys, mut channel }) = this.secret.into_known() else { return internal(policy) };
        // The fragmentation of the tunnel itself counts, now that it is known.
        channel.fragmentation = this.fragmentation && policy.fragmentation;
        let (message, nonce, own) = (&this.response, &this.nonce_i, &policy.local_id);
        let auth = psk_auth(this.suite.prf, &padded, message, nonce, &keys.sk_pr, own, &intermediate);
        let mut answer = Payloads {
            idr: Some(policy.local_id.clone()),
            auth: Some(Auth { method: AuthMethod::SHARED_KEY_MIC, data: auth.expose().to_vec() }),
            ..Payloads::default()
        };
        let initial_contact = payloads.notify(NotifyType::INITIAL_CONTACT).is_some();
        let sk_d = keys.sk_d.duplicate();
        let nat = this.nat.unwrap_or_default();
        let window = Window::new(0, id);
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
        let sealed = live.channel.seal(Exchange::IKE_AUTH, id, true, &answer, ctx.random);
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
