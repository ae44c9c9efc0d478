//! Answering a request for a child, or for new keys of one or of the IKE SA.

use std::time::Duration;

use cygnet_model::{SecretBytes, Spi};

use super::Created;
use crate::account::{Draft, Offer, Party, Stage};
use crate::crypto::keymat::{ChildKeys, Secrets};
use crate::error::{DropReason, FailureReason};
use crate::io::{Event, RekeyKind, Role};
use crate::jobs::Work;
use crate::policy;
use crate::sa::child::{self, NewPair};
use crate::sa::collide::{self, Asked, Ours, Verdict, Winner};
use crate::sa::follow_up::{Progress, Promise, Promised, PromisedPair};
use crate::sa::live::{Reply, Request, Resumed};
use crate::sa::work::{Handled, busy};
use crate::sa::{ChildState, Core, Ctx, Live, Phase, Task};
use crate::wire::{KeyExchange, Notify, NotifyType, Payloads, Protocol};

/// Wait before we rekey what the peer tried to rekey, and we refused.
const OUR_TURN: Duration = Duration::from_secs(30);

/// How often the peer may ask for children: one in this time, and so many at once beside four for each configured pair of
/// networks.
const CHILDREN: (Duration, u32) = (Duration::from_millis(50), 64);

/// How often the peer may ask for new IKE SAs. A replaced one stays for [`crate::sa::live::REKEYED_LIFETIME`] at most.
const IKE_REKEYS: (Duration, u32) = (Duration::from_secs(5), 16);

/// Most pairs of the peer that our own one may turn out to be the same as.
const MAX_THEIRS: usize = 64;

impl Live {
    /// Whether the peer may ask for new keys now. An honest one is far below these rates, also where every pair of
    /// networks has SAs of its own.
    fn admits(&self, ctx: &mut Ctx<'_>, offer: &Payloads) -> bool {
        let now = ctx.now.mono;
        let rates = ctx.rates(self.policy.id);
        if is_for_ike(offer) {
            return rates.rekeys.admit(now, IKE_REKEYS.0, IKE_REKEYS.1);
        }
        let pairs = self.policy.children.iter().map(|(_, c)| c.local.len().saturating_mul(c.remote.len()));
        let pairs = u32::try_from(pairs.fold(0, usize::saturating_add)).unwrap_or(u32::MAX);
        rates.children.admit(now, CHILDREN.0, CHILDREN.1.saturating_add(pairs.saturating_mul(4)))
    }

    /// Answers CREATE_CHILD_SA of any kind. One that needs a key exchange changes nothing before that is computed; then the
    /// same request comes here again, with what was computed, and meets the state of that moment. So it does once more when
    /// further key exchanges followed (`follow_up`).
    pub(in crate::sa) fn on_create_child(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        offer: &Payloads,
        progress: &mut Progress,
    ) -> Handled {
        let later = || Handled::Reply(busy());
        // One that a newer IKE SA has replaced makes no keys that would be preferred to the newer one's, to go a moment later.
        if phase != Phase::Established || self.retire_at.is_some() {
            return later();
        }
        if matches!(progress, Progress::Asked) && !self.admits(ctx, offer) {
            ctx.dropped(DropReason::RateLimit, core.flow);
            return later();
        }
        // Children whose record may be too old do not move to an IKE SA that would not know that any more.
        if is_for_ike(offer) && matches!(self.resumed, Resumed::Unasked | Resumed::Asked) {
            return later();
        }
        if is_for_ike(offer) {
            return match collide::verdict(Asked::RekeyIke, self.ours(None)) {
                Verdict::Later => later(),
                Verdict::Proceed | Verdict::ProceedAndCompare => {
                    self.on_rekey_ike(core, ctx, offer, progress)
                }
            };
        }
        let Some(n) = offer.notify(NotifyType::REKEY_SA).cloned() else {
            return match collide::verdict(Asked::CreateChild, self.ours(None)) {
                Verdict::Later => later(),
                Verdict::Proceed | Verdict::ProceedAndCompare => {
                    match self.answer_child(core, ctx, offer, None, progress) {
                        Answered::Made(reply, made) => {
                            self.compare_created(ctx, made);
                            Handled::Reply(reply)
                        }
                        Answered::Not(handled) => handled,
                    }
                }
            };
        };
        // REKEY_SA names the SPI that the peer receives on, which is our outbound one (RFC 7296 §1.3.3).
        let named = <[u8; 4]>::try_from(n.spi.as_slice()).ok().filter(|_| n.protocol == Protocol::ESP);
        let old = named.and_then(|spi| {
            let spi = u32::from_be_bytes(spi);
            self.children.iter().find(|c| c.outbound.value() == spi)
        });
        let Some(old) = old else {
            if matches!(self.ours(None), Ours::CreateChild | Ours::RekeyOtherChild) {
                // It may name the very pair that our own request is making: the response is still on its way.
                return later();
            }
            // Both fields are ours to write, so an odd protocol of the peer is not echoed.
            let spi = named.map(|s| s.to_vec()).unwrap_or_default();
            let kind = NotifyType::CHILD_SA_NOT_FOUND;
            let notify = Notify { protocol: Protocol::ESP, spi, kind, data: vec![] };
            return Handled::Reply(Reply::notify(notify));
        };
        let (old, state) = (old.inbound, old.state);
        let verdict = match state {
            ChildState::Deleting | ChildState::Replaced => Verdict::Later,
            ChildState::Active | ChildState::Rekeying => {
                collide::verdict(Asked::RekeyChild, self.ours(Some(old)))
            }
        };
        if verdict == Verdict::Later {
            return later();
        }
        let (reply, made) = match self.answer_child(core, ctx, offer, Some(old), progress) {
            Answered::Made(reply, made) => (reply, made),
            Answered::Not(handled) => return handled,
        };
        if let Some(Request::CreateChild(c)) = self.window.outstanding.as_mut().map(|o| &mut o.request)
            && c.rekeys.is_none()
            && let Some(theirs) = c.theirs.iter_mut().find(|theirs| theirs.inbound == old)
        {
            theirs.inbound = made.inbound;
        }
        if verdict == Verdict::ProceedAndCompare
            && let Some(Request::CreateChild(c)) = self.window.outstanding.as_mut().map(|o| &mut o.request)
        {
            let new = made.inbound;
            c.theirs = vec![made];
            if let Some(child) = self.children.iter_mut().find(|c| c.inbound == new) {
                child.contested = true;
            }
        }
        if let Some(c) = self.children.iter_mut().find(|c| c.inbound == old) {
            c.state = ChildState::Replaced;
        }
        ctx.tell(Event::Rekeyed { tunnel: self.policy.id, kind: RekeyKind::Child, failure: None });
        Handled::Reply(reply)
    }

    /// We refused new keys for a pair, which will end then. The peer has the first try to overcome that; ours, which leads
    /// to a new IKE SA if the peer refuses it in turn, comes soon and not only when our own lifetime is over.
    fn try_soon(&mut self, ctx: &mut Ctx<'_>, rekeys: Option<Spi>, reason: FailureReason) {
        let at = ctx.now.mono + ctx.jitter(OUR_TURN);
        let pair = self.children.iter_mut().find(|c| Some(c.inbound) == rekeys);
        if let Some(c) = pair.filter(|_| reason.spares_ike_auth()) {
            c.rekey_at = c.rekey_at.min(at);
        }
    }

    /// The peer made a pair for a child that we may be making one for ourselves: then one of the two is redundant. RFC 7296
    /// has this rule for rekeys only (§2.8.1), but without it both pairs would stay for ever. A peer that does not know it
    /// keeps both, which does no harm.
    fn compare_created(&mut self, ctx: &mut Ctx<'_>, theirs: Created) {
        // The answer to our request for the very same came before the peer's request, which may have been under way for
        // longer, and we may be asking for another part by now.
        let made = self.created.iter().position(|ours| ours.id == theirs.id);
        let ours = made.map(|at| self.created.swap_remove(at));
        // It may have gone since, and another one may be on its way.
        let active =
            |inbound| self.children.iter().any(|c| c.inbound == inbound && c.state == ChildState::Active);
        if let Some(ours) = ours.filter(|ours| active(ours.inbound)) {
            let (a, b) = (&ours.nonces, &theirs.nonces);
            if collide::winner((&a.0, &a.1), (&b.0, &b.1)) == Winner::Theirs {
                self.on_redundant(ctx, ours.inbound, theirs.inbound);
            }
            return;
        }
        // Which of several parts that it makes meanwhile is the one that we get, if any, the answer will say.
        if let Some(Request::CreateChild(c)) = self.window.outstanding.as_mut().map(|o| &mut o.request)
            && c.rekeys.is_none()
            && c.of == ctx.parts.configured(theirs.id)
            && c.theirs.len() < MAX_THEIRS
        {
            c.theirs.push(theirs);
        }
    }

    /// Whether the peer may not have known, when it asked for a pair for this child, that we had made one, and we are
    /// rekeying that by now. It will see that it needs none.
    fn is_rekeying_created(&self, is_like: impl Fn(&crate::sa::Child) -> bool) -> bool {
        self.created.iter().any(|made| {
            let rekeying =
                |c: &crate::sa::Child| c.inbound == made.inbound && c.state == ChildState::Rekeying;
            self.children.iter().any(|c| rekeying(c) && is_like(c))
        })
    }

    /// What we have on its way, seen from a request about the pair `same`.
    fn ours(&self, same: Option<Spi>) -> Ours {
        match self.window.outstanding.as_ref().map(|o| &o.request) {
            None | Some(Request::Liveness) => Ours::Nothing,
            Some(Request::CreateChild(c)) => match c.rekeys {
                None => Ours::CreateChild,
                old if old == same => Ours::RekeySameChild,
                Some(_) => Ours::RekeyOtherChild,
            },
            Some(Request::DeleteChild { inbound }) if Some(*inbound) == same => Ours::DeleteSameChild,
            Some(Request::DeleteChild { .. }) => Ours::DeleteOtherChild,
            Some(Request::RekeyIke(_)) => Ours::RekeyIke,
            Some(Request::DeleteIke) => Ours::DeleteIke,
        }
    }

    /// Makes a pair as the peer asks.
    fn answer_child(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        offer: &Payloads,
        rekeys: Option<Spi>,
        progress: &mut Progress,
    ) -> Answered {
        let refuse = |kind, data| Answered::Not(Handled::Reply(Reply::notify(Notify::new(kind, data))));
        let stage = if rekeys.is_some() { Stage::RekeyChild } else { Stage::Child };
        let draft = Draft::authenticated(stage, Role::Responder, core.flow.remote);
        let only = rekeys.and_then(|old| Some(self.children.iter().find(|c| c.inbound == old)?.of));
        if !self.has_room() {
            return refuse(NotifyType::NO_ADDITIONAL_SAS, vec![]);
        }
        if let Some(promise) = progress.take_promise() {
            return self.keep_promise_of_child(core, ctx, rekeys, promise);
        }
        let found = match child::find(
            &self.policy,
            offer,
            true,
            only,
            |i| self.has_child(i),
            |spi| self.is_bound(spi),
        ) {
            Ok(found) => found,
            Err(unfit) => {
                let (tunnel, peer) = (Some(self.policy.id), core.flow.remote);
                let detail = child::refusal_detail(&unfit, peer, offer);
                let reason = unfit.reason;
                let draft = draft.child_refused(&self.policy, Offer(offer), reason, &unfit.differs, true);
                ctx.tell(draft.refused(self.policy.id, Party::We, reason, &detail));
                ctx.tell(Event::Failure { tunnel, peer, reason, detail, retry_in: None });
                self.try_soon(ctx, rekeys, reason);
                return refuse(unfit.notify, vec![]);
            }
        };
        if self.is_crowded(&found) {
            ctx.dropped(DropReason::TooManyChildren, core.flow);
            // Those that were rekeyed are the peer's to delete; one that does not do it is helped.
            let replaced = |c: &&crate::sa::Child| found.is_like(c) && c.state == ChildState::Replaced;
            if let Some(inbound) = self.children.iter().find(replaced).map(|c| c.inbound) {
                self.enqueue(Task::DeleteChild { inbound });
                return refuse(NotifyType::TEMPORARY_FAILURE, vec![]);
            }
            return refuse(NotifyType::NO_ADDITIONAL_SAS, vec![]);
        }
        if rekeys.is_none() && self.is_rekeying_created(|c| found.is_like(c)) {
            return refuse(NotifyType::TEMPORARY_FAILURE, vec![]);
        }
        let Some(ni) = &offer.nonce else { return refuse(NotifyType::INVALID_SYNTAX, vec![]) };
        let (mut shared, mut ke) = (None::<SecretBytes>, None);
        if let Some(group) = found.suite().group {
            let theirs = offer.ke.as_ref().filter(|k| k.group == group.transform());
            let Some(theirs) = theirs else {
                return refuse(NotifyType::INVALID_KE_PAYLOAD, group.transform().to_be_bytes().to_vec());
            };
            let Some(worked) = progress.take_worked() else {
                return Answered::Not(Handled::Work(group, Work::Answer(group, theirs.data.clone())));
            };
            match worked.made {
                // The configuration has changed in the meantime.
                _ if worked.group != group => return refuse(NotifyType::TEMPORARY_FAILURE, vec![]),
                Ok((public, secret)) => {
                    shared = Some(secret);
                    ke = Some(KeyExchange { group: group.transform(), data: public });
                }
                Err(e) if e.blames_peer() => return refuse(NotifyType::INVALID_SYNTAX, vec![]),
                Err(_) => return refuse(NotifyType::TEMPORARY_FAILURE, vec![]),
            }
        }
        let nr = ctx.nonce();
        let number = found.number;
        let account = found.account(draft, &self.policy, Offer(offer), true);
        let negotiated = found.negotiate(ctx);
        let inbound = negotiated.inbound;
        let payloads = Payloads {
            sa: Some(policy::answer_esp(negotiated.suite, number, inbound.to_be_bytes())),
            ke,
            nonce: Some(nr.clone()),
            tsi: Some(negotiated.remote.clone()),
            tsr: Some(negotiated.local.clone()),
            ..Payloads::default()
        };
        let pair = PromisedPair { negotiated, nonces: (ni.clone(), nr), account };
        match shared {
            Some(shared) if !pair.negotiated.suite.additional.is_empty() => {
                Answered::Not(self.promise(ctx, offer, shared, Promised::Child(pair), payloads))
            }
            shared => self.make_child(core, ctx, rekeys, pair, shared.map(Secrets::from), payloads),
        }
    }

    // <- IKE_FOLLOWUP_KE { KEr(n) }
    fn keep_promise_of_child(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        rekeys: Option<Spi>,
        promise: Promise,
    ) -> Answered {
        let Promise { secrets, made, last, .. } = promise;
        let Promised::Child(pair) = made else { return Answered::Not(Handled::Reply(busy())) };
        let crossed = rekeys.is_none() && self.is_rekeying_created(|c| pair.negotiated.is_like(c));
        if crossed || self.is_bound(pair.negotiated.outbound) {
            ctx.spis.esp.remove(&pair.negotiated.inbound);
            return Answered::Not(Handled::Reply(busy()));
        }
        self.make_child(core, ctx, rekeys, pair, Some(secrets), Payloads { ke: last, ..Payloads::default() })
    }

    /// Installs the pair that the peer asked for, and answers.
    fn make_child(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        rekeys: Option<Spi>,
        pair: PromisedPair,
        secrets: Option<Secrets>,
        payloads: Payloads,
    ) -> Answered {
        let PromisedPair { negotiated, nonces, account } = pair;
        let inbound = negotiated.inbound;
        let (prf, suite) = (self.suite.prf, &negotiated.suite);
        let keys = ChildKeys::derive(prf, &self.sk_d, secrets.as_ref(), &nonces.0, &nonces.1, suite);
        let pair = NewPair { negotiated, keys, role: Role::Responder };
        let Some(id) = self.install(core, ctx, pair, rekeys) else {
            let notify = Notify::new(NotifyType::NO_ADDITIONAL_SAS, vec![]);
            return Answered::Not(Handled::Reply(Reply::notify(notify)));
        };
        ctx.tell(account.agreed(self.policy.id));
        Answered::Made(Reply::with(payloads), Created { id, inbound, nonces })
    }
}

/// What became of a request for a pair.
enum Answered {
    /// It was made.
    Made(Reply, Created),
    /// It was not, or not yet.
    Not(Handled),
}

/// Whether a CREATE_CHILD_SA request is about the IKE SA itself.
fn is_for_ike(offer: &Payloads) -> bool {
    offer.sa.as_ref().and_then(|s| s.first()).is_some_and(|p| p.protocol == Protocol::IKE)
}
