//! IKE_FOLLOWUP_KE: the additional key exchanges of a CREATE_CHILD_SA (RFC 9370 §2.2.4), one in each, in both roles.
//!
//! ```text
//!   -> CREATE_CHILD_SA { SA, Ni, KEi, … }                       <- { SA, Nr, KEr, …, N(ADDITIONAL_KEY_EXCHANGE)(link) }
//!   -> IKE_FOLLOWUP_KE { KEi(n), N(ADDITIONAL_KEY_EXCHANGE)(link) }  <- { KEr(n), [N(ADDITIONAL_KEY_EXCHANGE)(link)] }
//! ```
//!
//! Nothing is made before the last one. For the one who asked, the request is on its way until then, whatever its exchanges are
//! called; for the one who answers, it is as if the request came then, with the choices that were made when it did: both meet
//! the state of that moment, so what collides with what is no other question than without additional key exchanges.

use std::collections::VecDeque;
use std::time::Duration;

use cygnet_model::suite::Group;
use cygnet_model::{SecretBytes, Timestamp};

use super::child::Negotiated;
use super::live::{Reply, Request};
use super::rekey_ike::Successor;
use super::window::{Answer, Outstanding};
use super::work::{Handled, Worked, busy};
use super::{Core, Ctx, Live, Next, Phase, Task};
use crate::account::Draft;
use crate::crypto::kex::{KexError, PrivateKey};
use crate::crypto::keymat::Secrets;
use crate::jobs::{Asker, Output, Work};
use crate::wire::{Exchange, KeyExchange, Notify, NotifyType, Payloads};

/// Octets of the links that we give.
const LINK: usize = 16;

/// How long a promise waits for the next of its key exchanges: longer than a peer repeats its request.
const PATIENCE: Duration = Duration::from_secs(180);

/// Where the additional key exchanges of a request of ours stand.
pub(crate) enum FollowUp {
    /// There are none, or not yet.
    No,
    /// One is under way.
    Going(Box<Chain>),
    /// An earlier process asked, and took the keys with it. The responder's nonce is left.
    Lost(Vec<u8>),
}

impl FollowUp {
    /// The exchange type of what is on its way for a request.
    pub const fn exchange_of(&self, request: &Request) -> Exchange {
        match self {
            Self::Going(chain) if chain.asked => Exchange::IKE_FOLLOWUP_KE,
            Self::No | Self::Going(_) => request.exchange(),
            Self::Lost(_) => Exchange::IKE_FOLLOWUP_KE,
        }
    }

    /// Whether a request of them is on its way.
    pub const fn is_asked(&self) -> bool {
        match self {
            Self::No => false,
            Self::Going(chain) => chain.asked,
            Self::Lost(_) => true,
        }
    }

    /// The responder's nonce, once a request of them is on its way.
    pub fn nonce(&self) -> Option<&[u8]> {
        match self {
            Self::Going(chain) if chain.asked => chain.answer.nonce.as_deref(),
            Self::No | Self::Going(_) => None,
            Self::Lost(nonce) => Some(nonce),
        }
    }
}

/// The additional key exchanges of a request whose first response is there.
pub(crate) struct Chain {
    /// The response to CREATE_CHILD_SA.
    answer: Payloads,
    /// By what the peer knows it.
    link: Vec<u8>,
    secrets: Secrets,
    /// What is still to be made; the first of them is under way.
    methods: VecDeque<Group>,
    /// Our key of it, while the response is awaited.
    key: Option<PrivateKey>,
    /// Whether the first of their requests has gone out.
    asked: bool,
}

/// How far a request of the peer has come, with what came of it until that is used.
pub(crate) enum Progress {
    /// It has just arrived.
    Asked,
    /// Its own key exchange is computed.
    Worked(Option<Worked>),
    /// All that followed are made, too.
    Followed(Option<Box<Promise>>),
}

impl Progress {
    /// What was computed, once.
    pub fn take_worked(&mut self) -> Option<Worked> {
        match self {
            Self::Worked(worked) => worked.take(),
            Self::Asked | Self::Followed(_) => None,
        }
    }

    /// What was promised, once.
    pub fn take_promise(&mut self) -> Option<Promise> {
        match self {
            Self::Followed(promise) => promise.take().map(|promise| *promise),
            Self::Asked | Self::Worked(_) => None,
        }
    }
}

/// What the peer asked for, as it was chosen when it did: it is made once the key exchanges that follow are.
pub(crate) struct Promise {
    /// The request.
    offer: Payloads,
    link: Vec<u8>,
    /// When it is given up.
    pub until: Timestamp,
    pub(super) secrets: Secrets,
    /// What is still to be made.
    methods: VecDeque<Group>,
    pub(super) made: Promised,
    /// Our value for the last of them.
    pub(super) last: Option<KeyExchange>,
}

/// What was chosen.
pub(super) enum Promised {
    Child(PromisedPair),
    Ike(Successor),
}

/// A pair of ESP SAs without keys.
pub(super) struct PromisedPair {
    pub negotiated: Negotiated,
    /// The peer's nonce, and ours.
    pub nonces: (Vec<u8>, Vec<u8>),
    /// Tells that it was made.
    pub account: Draft,
}

impl Promise {
    /// Gives back the SPI of what will not be.
    pub fn release(self, ctx: &mut Ctx<'_>) {
        match self.made {
            Promised::Child(pair) => ctx.spis.esp.remove(&pair.negotiated.inbound),
            Promised::Ike(successor) => ctx.spis.ike.remove(&successor.spi),
        };
    }
}

fn link_of(payloads: &Payloads) -> Option<&[u8]> {
    payloads.notify(NotifyType::ADDITIONAL_KEY_EXCHANGE).map(|n| n.data.as_slice())
}

/// What stands for the answer where we cannot go on and the peer has made nothing yet: it is asked again.
pub(super) fn not_made() -> Payloads {
    let notifies = vec![Notify::new(NotifyType::TEMPORARY_FAILURE, vec![])];
    Payloads { notifies, ..Payloads::default() }
}

fn linked(link: &[u8]) -> Notify {
    Notify::new(NotifyType::ADDITIONAL_KEY_EXCHANGE, link.to_vec())
}

/// The one who asked.
impl Live {
    /// A secret or a key that a request of ours waited for is there.
    pub(super) fn on_own_work(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        outstanding: Outstanding,
        output: Output,
    ) -> Next {
        let Outstanding { id, out, request, answer, follow_up } = outstanding;
        let payloads = answer.map(|a| a.payloads).unwrap_or_default();
        let chain = match follow_up {
            FollowUp::No | FollowUp::Lost(_) => {
                let secrets = output.secret().map(Secrets::from);
                let methods = self.methods_after(&request, &payloads);
                match (secrets, link_of(&payloads)) {
                    (Ok(secrets), Some(link)) if !methods.is_empty() => {
                        let link = link.to_vec();
                        Chain { answer: payloads, link, secrets, methods, key: None, asked: false }
                    }
                    // There is no going on without a link: the peer does not keep to what it chose.
                    (Ok(_), None) if !methods.is_empty() => {
                        let blame = Some(Err(KexError::PublicValue));
                        return self.conclude(core, ctx, phase, request, &payloads, blame);
                    }
                    (Err(e), _) if !methods.is_empty() && !e.blames_peer() => {
                        return self.conclude(core, ctx, phase, request, &not_made(), None);
                    }
                    (secrets, _) => {
                        return self.conclude(core, ctx, phase, request, &payloads, Some(secrets));
                    }
                }
            }
            FollowUp::Going(mut chain) if payloads.ke.is_some() => {
                match output.secret() {
                    Ok(secret) => chain.secrets.add(secret),
                    Err(e) if chain.methods.len() > 1 && !e.blames_peer() => {
                        return self.conclude(core, ctx, phase, request, &not_made(), None);
                    }
                    Err(e) => return self.conclude(core, ctx, phase, request, &chain.answer, Some(Err(e))),
                }
                chain.methods.pop_front();
                if chain.methods.is_empty() {
                    let Chain { answer, secrets, .. } = *chain;
                    return self.conclude(core, ctx, phase, request, &answer, Some(Ok(secrets)));
                }
                // The link may be another one each time.
                if let Some(link) = link_of(&payloads) {
                    chain.link = link.to_vec();
                }
                *chain
            }
            FollowUp::Going(mut chain) => {
                match output.key() {
                    Ok((key, public)) => {
                        (chain.key, chain.asked) = (Some(key), true);
                        self.send_follow_up(core, ctx, request, chain, public);
                    }
                    Err(_) => return self.conclude(core, ctx, phase, request, &not_made(), None),
                }
                return Next::Stay;
            }
        };
        // Also while the IKE SA is being deleted: strongSwan answers nothing else before the last of them.
        let Some(method) = chain.methods.front().copied() else { return Next::Stay };
        let job = ctx.run(core.spi, Asker::Known, Work::Begin(method));
        // Until the key is there the request before it counts as not answered, and is not repeated.
        let answer = Some(Answer { job, payloads: Payloads::default() });
        let follow_up = FollowUp::Going(Box::new(chain));
        self.window.outstanding = Some(Outstanding { id, out, request, answer, follow_up });
        Next::Stay
    }

    /// The additional key exchanges that the peer chose.
    fn methods_after(&self, request: &Request, answer: &Payloads) -> VecDeque<Group> {
        let additional = match request {
            Request::CreateChild(c) => self.check_child(c, answer).ok().map(|n| n.suite.additional),
            Request::RekeyIke(r) => self.check_ike(r.group, answer).ok().map(|(suite, _)| suite.additional),
            Request::DeleteChild { .. } | Request::DeleteIke | Request::Liveness => None,
        };
        additional.unwrap_or_default().iter().map(|(_, method)| method).collect()
    }

    // -> IKE_FOLLOWUP_KE { KEi(n), N(ADDITIONAL_KEY_EXCHANGE)(link) }
    fn send_follow_up(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        request: Request,
        chain: Box<Chain>,
        public: Vec<u8>,
    ) {
        let group = chain.methods.front().map_or(0, |method| method.transform());
        let payloads = Payloads {
            ke: Some(KeyExchange { group, data: public }),
            notifies: vec![linked(&chain.link)],
            ..Payloads::default()
        };
        self.send_as(core, ctx, &payloads, request, FollowUp::Going(chain));
    }

    // <- IKE_FOLLOWUP_KE { KEr(n), [N(ADDITIONAL_KEY_EXCHANGE)(link)] } or { N(error) }
    pub(super) fn on_followed(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        mut outstanding: Outstanding,
        payloads: Payloads,
    ) -> Next {
        let chain = match &mut outstanding.follow_up {
            FollowUp::Going(chain) => chain,
            FollowUp::Lost(nonce) => {
                let nonce = std::mem::take(nonce);
                return self.on_lost(core, ctx, phase, outstanding.request, &payloads, nonce);
            }
            FollowUp::No => return self.conclude(core, ctx, phase, outstanding.request, &payloads, None),
        };
        let method = chain.methods.front().copied();
        let fits = |ke: &&KeyExchange| method.is_some_and(|m| ke.is_answer_of(m));
        match (payloads.ke.as_ref().filter(fits), chain.key.take()) {
            (Some(ke), Some(key)) if payloads.error().is_none() => {
                let job = ctx.run(core.spi, Asker::Known, Work::Finish(key, ke.data.clone()));
                outstanding.answer = Some(Answer { job, payloads });
                self.window.outstanding = Some(outstanding);
                Next::Stay
            }
            // The peer has made what we cannot take.
            (None, _) if payloads.ke.is_some() && payloads.error().is_none() && chain.methods.len() == 1 => {
                let FollowUp::Going(chain) = outstanding.follow_up else { return Next::Stay };
                let blame = Some(Err(KexError::PublicValue));
                self.conclude(core, ctx, phase, outstanding.request, &chain.answer, blame)
            }
            // strongSwan says nothing more of what has lost against its own.
            (None, _) if payloads.ke.is_none() && payloads.error().is_none() => {
                self.conclude(core, ctx, phase, outstanding.request, &not_made(), None)
            }
            // As if the peer had refused what was asked for, or had said something that makes no sense.
            _ => {
                let notifies = payloads.notifies.into_iter().filter(|n| n.kind.is_error()).collect();
                let refusal = Payloads { notifies, ..Payloads::default() };
                self.conclude(core, ctx, phase, outstanding.request, &refusal, None)
            }
        }
    }

    /// Whether an answer to a request of an earlier process, which took the key with it, promises only what was asked for.
    pub(super) fn is_only_promised(&self, request: &Request, answer: &Payloads) -> bool {
        let lost = match request {
            Request::CreateChild(c) => c.is_without_key(),
            Request::RekeyIke(r) => r.key.is_none(),
            Request::DeleteChild { .. } | Request::DeleteIke | Request::Liveness => false,
        };
        lost && !self.methods_after(request, answer).is_empty()
    }

    /// An answer to the last request of an earlier process, if it is no refusal: the peer has made what was asked for.
    fn on_lost(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        request: Request,
        payloads: &Payloads,
        nonce: Vec<u8>,
    ) -> Next {
        if payloads.error().is_some() || phase == Phase::Deleting {
            return self.conclude(core, ctx, phase, request, payloads, None);
        }
        if link_of(payloads).is_some() || payloads.ke.is_none() {
            return self.conclude(core, ctx, phase, request, &not_made(), None);
        }
        let made = Payloads { nonce: Some(nonce), ..Payloads::default() };
        match request {
            Request::CreateChild(mut creating) => {
                ctx.spis.esp.remove(&creating.inbound);
                self.queue.push_front(Task::DisownChild { inbound: creating.inbound });
                let deleted = std::mem::take(&mut creating.deleted);
                self.ask_again(ctx, &creating, &deleted, &made);
                for outbound in deleted {
                    self.on_delete(ctx, outbound);
                }
                Next::Stay
            }
            Request::RekeyIke(rekeying) => self.on_answer_without_key(core, ctx, *rekeying, &made, true),
            other => self.conclude(core, ctx, phase, other, payloads, None),
        }
    }
}

/// The one who answers.
impl Live {
    /// Answers CREATE_CHILD_SA with what was chosen, to be made later.
    pub(super) fn promise(
        &mut self,
        ctx: &mut Ctx<'_>,
        offer: &Payloads,
        first: SecretBytes,
        made: Promised,
        mut payloads: Payloads,
    ) -> Handled {
        let additional = match &made {
            Promised::Child(pair) => pair.negotiated.suite.additional,
            Promised::Ike(successor) => successor.suite.additional,
        };
        let methods = additional.iter().map(|(_, method)| method).collect();
        let mut link = vec![0; LINK];
        ctx.random.fill(&mut link);
        payloads.notifies.push(linked(&link));
        let (offer, secrets) = (offer.clone(), Secrets::from(first));
        let until = ctx.now.mono + PATIENCE;
        let promise = Promise { offer, link, until, secrets, methods, made, last: None };
        // A peer with a window of one that asks for something else has given up on what it asked for before.
        if let Some(forgotten) = self.promise.replace(Box::new(promise)) {
            forgotten.release(ctx);
        }
        Handled::Reply(Reply::with(payloads))
    }

    // -> IKE_FOLLOWUP_KE { KEi(n), N(ADDITIONAL_KEY_EXCHANGE)(link) }
    pub(super) fn on_follow_up(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        payloads: &Payloads,
        worked: Option<Worked>,
    ) -> Handled {
        let refuse = |kind| Handled::Reply(Reply::notify(Notify::new(kind, vec![])));
        let known = |promise: &mut Box<Promise>| link_of(payloads) == Some(&promise.link);
        let Some(mut promise) = self.promise.take_if(known) else {
            return refuse(NotifyType::STATE_NOT_FOUND);
        };
        let method = promise.methods.front().copied();
        let fits = |ke: &&KeyExchange| method.is_some_and(|m| ke.is_offer_of(m));
        let (Some(method), Some(ke)) = (method, payloads.ke.as_ref().filter(fits)) else {
            promise.release(ctx);
            return refuse(NotifyType::INVALID_SYNTAX);
        };
        let Some(worked) = worked else {
            self.promise = Some(promise);
            return Handled::Work(method, Work::Answer(method, ke.data.clone()));
        };
        let (public, secret) = match worked.made {
            Ok(made) => made,
            Err(e) => {
                promise.release(ctx);
                return if e.blames_peer() {
                    refuse(NotifyType::INVALID_SYNTAX)
                } else {
                    Handled::Reply(busy())
                };
            }
        };
        promise.secrets.add(secret);
        promise.methods.pop_front();
        let ke = Some(KeyExchange { group: method.transform(), data: public });
        if !promise.methods.is_empty() {
            // <- IKE_FOLLOWUP_KE { KEr(n), N(ADDITIONAL_KEY_EXCHANGE)(link) }
            let notifies = vec![linked(&promise.link)];
            promise.until = ctx.now.mono + PATIENCE;
            self.promise = Some(promise);
            return Handled::Reply(Reply::with(Payloads { ke, notifies, ..Payloads::default() }));
        }
        promise.last = ke;
        let offer = std::mem::take(&mut promise.offer);
        let mut progress = Progress::Followed(Some(promise));
        let handled = self.on_create_child(core, ctx, phase, &offer, &mut progress);
        if let Some(promise) = progress.take_promise() {
            promise.release(ctx);
        }
        handled
    }
}
