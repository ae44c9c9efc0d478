//! IKE_INTERMEDIATE (RFC 9242), which carries the additional key exchanges of a new IKE SA (RFC 9370 §2.2.2): one in each, and
//! each changes the keys of what comes after.
//!
//! ```text
//!   I -> R  IKE_INTERMEDIATE { KEi(n) }        protected by the keys before it
//!   R -> I  IKE_INTERMEDIATE { KEr(n) }        by the same
//! ```
//!
//! Nothing of it is authenticated until IKE_AUTH, whose proofs cover every octet of it.

use std::sync::Arc;

use cygnet_model::SecretBytes;
use cygnet_model::suite::{Group, Prf};

use super::auth::{Derived, InitDone, internal};
use super::message::{Content, Plain};
use super::window::{Outgoing, Retried};
use super::{AuthSent, Closed, Core, Ctx, State};
use crate::account::{Draft, Party, Stage};
use crate::crypto::kex::{KexError, PrivateKey};
use crate::crypto::keymat::IkeKeys;
use crate::crypto::prf::prf;
use crate::error::{DropReason, FailureReason};
use crate::io::{Ending, Role};
use crate::jobs::{Asker, JobId, Output, Work};
use crate::policy::TunnelPolicy;
use crate::wire::{Exchange, Header, KeyExchange, Payloads};

/// What both ends said in IKE_INTERMEDIATE, as AUTH covers it (RFC 9242 §3.3.2).
#[derive(Default)]
pub(crate) struct IntAuth(Option<(SecretBytes, SecretBytes)>);

impl IntAuth {
    /// Takes note of one exchange, under the keys that protected it.
    pub fn add(&mut self, alg: Prf, keys: &IkeKeys, request: &Content, response: &Content) {
        let (i, r) = self.0.as_ref().map_or((&[][..], &[][..]), |(i, r)| (i.expose(), r.expose()));
        let i = prf(alg, keys.sk_pi.expose(), &[i, request.octets()]);
        let r = prf(alg, keys.sk_pr.expose(), &[r, response.octets()]);
        self.0 = Some((i, r));
    }

    /// `IntAuth_iN | IntAuth_rN | IKE_AUTH_MID`; nothing if there was no such exchange.
    pub fn octets(&self, message_id: u32) -> Vec<u8> {
        match &self.0 {
            Some((i, r)) => [i.expose(), r.expose(), &message_id.to_be_bytes()].concat(),
            None => Vec::new(),
        }
    }
}

/// The initiator's state while additional key exchanges are made.
pub(crate) struct Intermediate {
    pub policy: Arc<TunnelPolicy>,
    done: InitDone,
    derived: Derived,
    auth: IntAuth,
    /// Message ID of the exchange under way.
    id: u32,
    method: Group,
    step: Step,
}

/// Where the exchange under way stands.
enum Step {
    /// A key is made.
    Preparing(JobId),
    /// The request is on its way.
    Asked { key: PrivateKey, request: Content, out: Outgoing },
    /// The response is there, and the secret is computed of it.
    Agreeing { job: JobId, request: Content, response: Content },
}

/// Goes on after IKE_SA_INIT: with the additional key exchanges that were agreed on, if any, and then with IKE_AUTH.
pub(super) fn proceed(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    policy: Arc<TunnelPolicy>,
    done: InitDone,
    derived: Derived,
) -> State {
    next(core, ctx, (policy, done, derived, IntAuth::default()), 1)
}

fn next(
    core: &mut Core,
    ctx: &mut Ctx<'_>,
    (policy, done, derived, auth): (Arc<TunnelPolicy>, InitDone, Derived, IntAuth),
    id: u32,
) -> State {
    // Message ID 0 was IKE_SA_INIT, whose key exchange was the first one.
    let Some(method) = done.suite.additional.after(id - 1) else {
        return AuthSent::start(core, ctx, policy, done, derived, auth, id);
    };
    let job = ctx.run(core.spi, Asker::Known, Work::Begin(method));
    let step = Step::Preparing(job);
    State::Intermediate(Box::new(Intermediate { policy, done, derived, auth, id, method, step }))
}

impl Intermediate {
    /// Both SPIs, the initiator's first.
    pub const fn spis(&self) -> (u64, u64) {
        (self.derived.channel.spi_i, self.derived.channel.spi_r)
    }

    /// Message ID of the exchange under way.
    #[cfg(feature = "test-util")]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The keys of the exchange under way, for tests.
    #[cfg(feature = "test-util")]
    pub const fn channel(&self) -> &super::Channel {
        &self.derived.channel
    }

    /// The same, to be used.
    #[cfg(feature = "test-util")]
    pub const fn channel_mut(&mut self) -> &mut super::Channel {
        &mut self.derived.channel
    }

    /// When [`Self::on_tick`] has something to do.
    pub const fn next_wakeup(&self) -> Option<cygnet_model::Timestamp> {
        match &self.step {
            Step::Asked { out, .. } => Some(out.next),
            Step::Preparing(_) | Step::Agreeing { .. } => None,
        }
    }

    /// Whether it waits for this job.
    pub fn is_waiting_for(&self, id: JobId) -> bool {
        match self.step {
            Step::Preparing(job) | Step::Agreeing { job, .. } => job == id,
            Step::Asked { .. } => false,
        }
    }

    /// What it waited for is computed: a key for the request, or the secret.
    pub fn on_done(mut self: Box<Self>, core: &mut Core, ctx: &mut Ctx<'_>, output: Output) -> State {
        match self.step {
            Step::Preparing(_) => match output.key() {
                Ok((key, public)) => self.ask(core, ctx, key, public),
                Err(e) => self.failed(core, ctx, e),
            },
            Step::Agreeing { ref request, ref response, .. } => match output.secret() {
                Ok(secret) => {
                    self.auth.add(self.done.suite.prf, &self.derived.keys, request, response);
                    self.go_on(core, ctx, &secret)
                }
                Err(e) => self.failed(core, ctx, e),
            },
            Step::Asked { .. } => State::Intermediate(self),
        }
    }

    // I -> R  IKE_INTERMEDIATE { KEi(n) }
    fn ask(mut self: Box<Self>, core: &Core, ctx: &mut Ctx<'_>, key: PrivateKey, public: Vec<u8>) -> State {
        let ke = Some(KeyExchange { group: self.method.transform(), data: public });
        let payloads = Payloads { ke, ..Payloads::default() };
        let exchange = Exchange::IKE_INTERMEDIATE;
        let sealed = self.derived.channel.seal_proven(exchange, self.id, false, &payloads, ctx.random);
        let Some((datagrams, request)) = sealed else { return internal(self.policy) };
        let out = Outgoing::send(ctx, &self.policy, core.flow, datagrams);
        self.step = Step::Asked { key, request, out };
        State::Intermediate(self)
    }

    /// Takes the new keys into use.
    fn go_on(self: Box<Self>, core: &mut Core, ctx: &mut Ctx<'_>, secret: &SecretBytes) -> State {
        let Self { policy, done, derived, auth, id, .. } = *self;
        match derived.further(done.suite, secret, (&done.nonce_i, &done.nonce_r)) {
            Some(derived) => next(core, ctx, (policy, done, derived, auth), id + 1),
            None => internal(policy),
        }
    }

    pub fn on_tick(mut self: Box<Self>, core: &Core, ctx: &mut Ctx<'_>) -> State {
        let policy = Arc::clone(&self.policy);
        let Step::Asked { out, .. } = &mut self.step else { return State::Intermediate(self) };
        match out.on_tick(ctx, &policy, core.flow) {
            Retried::Waiting => State::Intermediate(self),
            Retried::GaveUp => {
                let detail = format!("{} does not answer {}", core.flow.remote, self.what());
                ctx.tell(self.draft(core).unanswered(policy.id, &detail));
                self.close(FailureReason::PeerUnreachable, detail)
            }
        }
    }

    // R -> I  IKE_INTERMEDIATE { KEr(n) } or { N(error) }
    pub fn on_response(
        mut self: Box<Self>,
        core: &Core,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
    ) -> State {
        if header.message_id != self.id || !matches!(self.step, Step::Asked { .. }) {
            let reason = DropReason::UnexpectedResponse;
            return super::drop_in(State::Intermediate(self), ctx, reason, core.flow);
        }
        let Plain { payloads, content } = match self.derived.channel.open_proven(header, datagram) {
            Ok(Some(plain)) => plain,
            Ok(None) => return State::Intermediate(self),
            Err(reason) => return super::drop_in(State::Intermediate(self), ctx, reason, core.flow),
        };
        if let Step::Asked { out, .. } = &self.step {
            out.answered(ctx, &self.policy);
        }
        let peer = core.flow.remote;
        let payloads = match payloads {
            Ok(payloads) => payloads,
            Err(e) => {
                let detail = format!("the answer of {peer} to {} is a {e}", self.what());
                return self.refused(core, ctx, Party::We, FailureReason::InvalidSyntax, detail);
            }
        };
        if let Some(n) = payloads.error() {
            let detail =
                format!("{peer} answers {} with {}; it may lack a method that it chose", self.what(), n.kind);
            return self.refused(core, ctx, Party::Peer, FailureReason::of_notify(n.kind), detail);
        }
        let Some(ke) = payloads.ke.filter(|ke| ke.is_answer_of(self.method)) else {
            let detail = format!("the answer of {peer} to {} has no value of that method", self.what());
            return self.refused(core, ctx, Party::We, FailureReason::InvalidSyntax, detail);
        };
        let this = *self;
        let Step::Asked { key, request, .. } = this.step else { return internal(this.policy) };
        let job = ctx.run(core.spi, Asker::Known, Work::Finish(key, ke.data));
        let step = Step::Agreeing { job, request, response: content };
        State::Intermediate(Box::new(Self { step, ..this }))
    }

    /// The exchange, for messages.
    fn what(&self) -> String {
        format!("IKE_INTERMEDIATE (additional key exchange {})", self.method.keyword())
    }

    /// The account of what was agreed on so far. Nothing of it is authenticated yet.
    fn draft(&self, core: &Core) -> Draft {
        let draft = Draft::claimed(Stage::Init, Role::Initiator, core.flow.remote);
        draft.ike_chosen(&self.policy.proposals, None, self.done.suite)
    }

    fn failed(self: Box<Self>, core: &Core, ctx: &mut Ctx<'_>, e: KexError) -> State {
        let reason = if e.blames_peer() { FailureReason::InvalidSyntax } else { FailureReason::Internal };
        let detail = format!("{} with {} failed: {e}", self.what(), core.flow.remote);
        self.refused(core, ctx, Party::We, reason, detail)
    }

    fn refused(
        self: Box<Self>,
        core: &Core,
        ctx: &mut Ctx<'_>,
        by: Party,
        reason: FailureReason,
        detail: String,
    ) -> State {
        ctx.tell(self.draft(core).refused(self.policy.id, by, reason, &detail));
        self.close(reason, detail)
    }

    fn close(self: Box<Self>, reason: FailureReason, detail: String) -> State {
        let ending = Ending::Failed(reason);
        State::Closed(Closed { policy: Some(self.policy), ending, detail, was_up: false })
    }
}

#[cfg(test)]
mod tests {
    use cygnet_model::addke::Additional;
    use cygnet_model::suite::{Encr, EspSuite, IkeSuite};
    use serde_json::Value;

    use super::*;
    use crate::crypto::keymat::{ChildKeys, Secrets, SkeySeed};
    use crate::crypto::tests::{gunzip, hex};

    const PRF: Prf = Prf::HmacSha384;

    fn field(of: &Value, name: &str) -> Vec<u8> {
        hex(of[name].as_str().unwrap())
    }

    fn secret(of: &Value, name: &str) -> SecretBytes {
        SecretBytes::new(field(of, name))
    }

    fn assert_keys(keys: &IkeKeys, of: &Value) {
        let all = [&keys.sk_d, &keys.sk_ei, &keys.sk_er, &keys.sk_pi, &keys.sk_pr];
        for (key, name) in all.into_iter().zip(["sk_d", "sk_ei", "sk_er", "sk_pi", "sk_pr"]) {
            assert_eq!(key.expose(), field(of, name), "{name}");
        }
    }

    /// The secrets of ML-KEM-768 and of ECP-384, which stand one behind the other.
    fn secrets(of: &Value) -> Secrets {
        let mut secrets = Secrets::from(secret(of, "shared"));
        let additional = field(of, "additional");
        let (kem, ecp) = additional.split_at(32);
        secrets.add(SecretBytes::copy_of(kem));
        secrets.add(SecretBytes::copy_of(ecp));
        secrets
    }

    /// Every step from the first secret to the keys of a rekeyed IKE SA, as two strongSwans had them.
    #[test]
    fn keys_and_proofs_are_those_of_another_implementation() {
        let text = gunzip(include_bytes!("../../tests/vectors/intermediate_strongswan.json.gz"));
        let doc: Value = serde_json::from_str(&text).unwrap();
        let (nonces, additional) = (field(&doc, "nonces"), Additional::NONE);
        let (ni, nr) = nonces.split_at(32);
        let suite =
            IkeSuite { encr: Encr::AesGcm16_256, integ: None, prf: PRF, group: Group::X25519, additional };
        let exchanges = doc["exchanges"].as_array().unwrap();
        let header = field(&exchanges[0], "request");
        let (spi_i, spi_r) = (header[..8].try_into().unwrap(), header[8..16].try_into().unwrap());
        let derive = |seed: &SkeySeed| IkeKeys::derive(suite, seed, ni, nr, spi_i, spi_r);

        let generations = doc["generations"].as_array().unwrap();
        let mut keys = derive(&SkeySeed::initial(PRF, ni, nr, &secret(&generations[0], "shared")));
        assert_keys(&keys, &generations[0]);
        let mut int_auth = IntAuth::default();
        assert!(int_auth.octets(1).is_empty());
        for (exchange, after) in exchanges.iter().zip(&generations[1..]) {
            let content = |name| Content::of_octets(field(exchange, name));
            int_auth.add(PRF, &keys, &content("request"), &content("response"));
            let so_far =
                [field(exchange, "int_auth_i"), field(exchange, "int_auth_r"), vec![0, 0, 0, 9]].concat();
            assert_eq!(int_auth.octets(9), so_far);
            keys = derive(&SkeySeed::further(PRF, &keys.sk_d, &secret(after, "shared"), ni, nr));
            assert_keys(&keys, after);
        }
        assert_eq!(generations.len(), 3);

        let proofs = doc["auth"].as_array().unwrap();
        for proof in proofs {
            let octets = field(proof, "octets");
            assert!(octets.ends_with(&int_auth.octets(3)), "IKE_AUTH was message 3");
            let padded = prf(PRF, &field(proof, "secret"), &[b"Key Pad for IKEv2"]);
            assert_eq!(prf(PRF, padded.expose(), &[&octets]).expose(), field(proof, "auth"));
        }
        assert_eq!(proofs.len(), 2);

        let esp = EspSuite::plain(Encr::AesGcm16_256, None, false);
        let assert_child = |made: &ChildKeys, of: &Value| {
            assert_eq!(made.encr_i.expose(), field(of, "encr_i"));
            assert_eq!(made.encr_r.expose(), field(of, "encr_r"));
        };
        let first = ChildKeys::derive(PRF, &keys.sk_d, None, ni, nr, &esp);
        assert_child(&first, &doc["first_child"]);
        let child = &doc["child"];
        let seed = field(child, "seed");
        let (ni, nr) = (&seed[32..64], &seed[64..96]);
        let renewed = ChildKeys::derive(PRF, &keys.sk_d, Some(&secrets(child)), ni, nr, &esp);
        assert_child(&renewed, child);
        let rekeyed = &doc["rekeyed"];
        let nonces = field(rekeyed, "nonces");
        let (ni, nr) = nonces.split_at(32);
        let seed = SkeySeed::rekeyed(PRF, &keys.sk_d, &secrets(rekeyed), ni, nr);
        assert_eq!(seed.expose(), field(rekeyed, "skeyseed"));
    }
}
