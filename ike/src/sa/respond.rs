//! The responder's IKE_SA_INIT exchange (RFC 7296 §1.2, §2.7): a stranger's request is taken in, and answered when there is a key.

use std::sync::Arc;
use std::time::Duration;

use cygnet_model::Timestamp;
use cygnet_model::suite::IkeSuite;

use super::auth::{Mixing, Secret};
use super::init::{clear_message, stateless};
use super::natt::{self, Nat};
use super::window::REPEATS;
use super::{Closed, Core, Ctx, IkeSa, State};
use crate::account::{self, Draft, Party, Stage};
use crate::crypto::kex::{KexError, PrivateKey};
use crate::error::{DropReason, FailureReason};
use crate::io::{Action, Ending, Event, Flow, Role};
use crate::jobs::{Asker, JobId, Work};
use crate::mismatch;
use crate::policy::{self, TunnelPolicy};
use crate::rate::Rate;
use crate::wire::{Header, KeyExchange, Notify, NotifyType, Payloads};

/// How long a stranger may take from IKE_SA_INIT to IKE_AUTH.
const HALF_OPEN_LIFETIME: Duration = Duration::from_secs(30);

/// The responder's state until it has a key to answer IKE_SA_INIT with.
pub(crate) struct InitTaken {
    policy: Arc<TunnelPolicy>,
    suite: IkeSuite,
    /// Number of the chosen proposal.
    number: u8,
    nonce_i: Vec<u8>,
    /// The peer's public value.
    theirs: Vec<u8>,
    request: Vec<u8>,
    nat: Option<Nat>,
    fragmentation: bool,
    pub spi_i: u64,
    pub job: JobId,
}

/// The responder's state until IKE_AUTH.
pub(crate) struct InitAnswered {
    pub suite: IkeSuite,
    pub nonce_i: Vec<u8>,
    pub nonce_r: Vec<u8>,
    pub secret: Secret,
    /// Where the additional key exchanges stand.
    pub mixing: Mixing,
    pub request: Vec<u8>,
    pub response: Vec<u8>,
    pub nat: Option<Nat>,
    pub fragmentation: bool,
    pub spi_i: u64,
    repeats: Rate,
    pub expires: Timestamp,
}

/// Takes a stranger's IKE_SA_INIT in. `None` if it was refused, with or without a stateless answer.
pub(crate) fn respond(
    ctx: &mut Ctx<'_>,
    header: &Header,
    datagram: &[u8],
    payloads: Payloads,
    flow: Flow,
) -> Option<IkeSa> {
    let between = ctx.policies.between(flow.local.ip(), flow.remote.ip())?;
    let (candidates, candidates_all) = (between.by_proposals(), between.all());
    let (Some(sa), Some(ke), Some(nonce_i)) = (&payloads.sa, payloads.ke, payloads.nonce) else {
        stateless(ctx, header, flow, Notify::new(NotifyType::INVALID_SYNTAX, vec![]));
        return None;
    };
    let intermediate =
        payloads.notifies.iter().any(|n| n.kind == NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED);
    // Additional key exchanges have no other place (RFC 9370 §2.2.1).
    let usable: Vec<_> =
        sa.iter().filter(|p| intermediate || !policy::wants_intermediate(p)).cloned().collect();
    let chosen = candidates.iter().find_map(|p| Some((p, policy::choose_ike(&p.proposals, &usable, 0)?)));
    let Some((policy, (suite, number, _))) = chosen else {
        let ours: Vec<_> = candidates.iter().take(8).flat_map(|p| p.proposals.iter().cloned()).collect();
        stateless(ctx, header, flow, Notify::new(NotifyType::NO_PROPOSAL_CHOSEN, vec![]));
        let detail = format!(
            "{} offers no IKE proposal that we accept; {}",
            flow.remote,
            mismatch::words(&mismatch::ike(&ours, sa))
        );
        let detail = if usable.len() < sa.len() {
            format!("{detail}; its additional key exchanges come without IKE_INTERMEDIATE (RFC 9242)")
        } else {
            detail
        };
        let told = if ctx.may_tell_claim() { account::TOLD } else { 0 };
        for p in candidates_all.iter().take(told) {
            let draft =
                Draft::claimed(Stage::Init, Role::Responder, flow.remote).ike_refused(&p.proposals, sa);
            let reason = FailureReason::NoProposalChosen;
            ctx.tell(draft.refused(p.id, Party::We, reason, &detail));
        }
        ctx.tell(Event::Failure {
            // Anybody can send this from any address: it says nothing of a tunnel.
            tunnel: None,
            peer: flow.remote,
            reason: FailureReason::NoProposalChosen,
            detail,
            retry_in: None,
        });
        return None;
    };
    if ke.group != suite.group.transform() {
        let group = suite.group.transform().to_be_bytes().to_vec();
        stateless(ctx, header, flow, Notify::new(NotifyType::INVALID_KE_PAYLOAD, group));
        return None;
    }
    if ke.data.len() != suite.group.offer_len() {
        stateless(ctx, header, flow, Notify::new(NotifyType::INVALID_SYNTAX, vec![]));
        return None;
    }
    if !ctx.is_free_for_strangers() {
        ctx.dropped(DropReason::Busy, flow);
        return None;
    }
    let policy = Arc::clone(policy);
    let their_nat = Payloads { notifies: payloads.notifies, ..Payloads::default() };
    let nat = natt::detect(&their_nat, header.spi_i, 0, &flow);
    let fragmentation = their_nat.notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED).is_some();
    let fragmentation = fragmentation && policy.fragmentation;
    let spi = ctx.spis.new_ike(ctx.random);
    let core = Core { spi, role: Role::Responder, flow, created: ctx.now.mono };
    let taken = InitTaken {
        policy,
        suite,
        number,
        nonce_i,
        theirs: ke.data,
        request: datagram.to_vec(),
        nat,
        fragmentation,
        spi_i: header.spi_i,
        job: ctx.run(spi, Asker::Stranger, Work::Begin(suite.group)),
    };
    Some(IkeSa { core, state: State::InitTaken(Box::new(taken)) })
}

impl InitTaken {
    /// Whether a datagram is the request that is about to be answered.
    pub fn is_repeated(&self, datagram: &[u8]) -> bool {
        self.request == datagram
    }

    // R -> I  IKE_SA_INIT { SAr1, KEr, Nr, N(NAT_DETECTION_*), N(IKEV2_FRAGMENTATION_SUPPORTED),
    //                       N(INTERMEDIATE_EXCHANGE_SUPPORTED) }
    pub fn on_key(
        self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        key: Result<(PrivateKey, Vec<u8>), KexError>,
    ) -> State {
        let this = self;
        let Ok((key, public)) = key else {
            // The peer repeats its request.
            let detail = String::new();
            return State::Closed(Closed { policy: None, ending: Ending::Local, detail, was_up: false });
        };
        let nonce_r = ctx.nonce();
        let mut notifies = Vec::new();
        if this.nat.is_some() {
            notifies.extend(natt::notifies(this.spi_i, core.spi.value(), &core.flow, this.policy.encap));
        }
        if this.fragmentation {
            notifies.push(Notify::new(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, vec![]));
        }
        if !this.suite.additional.is_empty() {
            notifies.push(Notify::new(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED, vec![]));
        }
        let answer = Payloads {
            sa: Some(policy::answer_ike(this.suite, this.number, &[])),
            ke: Some(KeyExchange { group: this.suite.group.transform(), data: public }),
            nonce: Some(nonce_r.clone()),
            notifies,
            ..Payloads::default()
        };
        let response = clear_message(this.spi_i, core.spi.value(), false, true, &answer);
        ctx.out.push(Action::Send { flow: core.flow, bytes: response.clone() });
        State::InitAnswered(Box::new(InitAnswered {
            suite: this.suite,
            nonce_i: this.nonce_i,
            nonce_r,
            secret: Secret::Due(key, this.theirs),
            mixing: Mixing::default(),
            request: this.request,
            response,
            nat: this.nat,
            fragmentation: this.fragmentation,
            spi_i: this.spi_i,
            repeats: Rate::default(),
            expires: core.created + HALF_OPEN_LIFETIME,
        }))
    }
}

impl InitAnswered {
    /// The same IKE_SA_INIT once more: the same answer. Another one under the same SPI is not ours to answer.
    pub fn on_repeated(mut self: Box<Self>, ctx: &mut Ctx<'_>, datagram: &[u8], flow: Flow) -> Box<Self> {
        if datagram != self.request {
            ctx.dropped(DropReason::Duplicate, flow);
        } else if self.repeats.admit(ctx.now.mono, REPEATS.0, REPEATS.1) {
            ctx.out.push(Action::Send { flow, bytes: self.response.clone() });
        } else {
            ctx.dropped(DropReason::RateLimit, flow);
        }
        self
    }
}
