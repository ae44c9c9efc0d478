//! CREATE_CHILD_SA for ESP: new children and new keys for them (RFC 7296 §1.3.1, §1.3.3, §2.8), in both roles.

use std::time::Duration;

use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::Group;
use cygnet_model::{ChildId, SecretBytes, Spi};

use super::child::{self, NewPair, Offered, Unfit};
use super::collide::{self, Asked, Ours, Verdict, Winner};
use super::live::{Reply, Request, Resumed};
use super::seek;
use super::work::{Handled, Made, Worked, busy};
use super::{Ask, ChildState, Core, Ctx, Effect, Live, Next, Phase, Task};
use crate::account::{Draft, Offer, Party, Stage};
use crate::coverage::networks;
use crate::crypto::kex::{KexError, PrivateKey};
use crate::crypto::keymat::ChildKeys;
use crate::error::{DropReason, FailureReason, Trouble};
use crate::io::{Ending, Event, RekeyKind, Role};
use crate::jobs::Work;
use crate::policy;
use crate::wire::{KeyExchange, Notify, NotifyType, Payloads, Protocol};

/// First wait before a rekey that met TEMPORARY_FAILURE is tried again (RFC 7296 §2.25 leaves it open).
pub(super) const BUSY_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(2500));

/// Wait before we rekey what the peer tried to rekey, and we refused.
const OUR_TURN: Duration = Duration::from_secs(30);

/// Our CREATE_CHILD_SA request for a child.
pub(crate) struct CreatingChild {
    /// Index of the configured child.
    pub(super) of: u16,
    /// What is asked for of it, if the pair is new.
    pub(super) ask: Ask,
    /// The selectors that we offered, our side.
    pub(super) local: Vec<TrafficSelector>,
    /// The peer's side.
    pub(super) remote: Vec<TrafficSelector>,
    /// Inbound SPI of the pair to replace.
    pub(super) rekeys: Option<Spi>,
    /// Inbound SPI of the new pair.
    pub inbound: Spi,
    pub(super) nonce: Vec<u8>,
    pub(super) key: Key,
    /// Whether INVALID_KE_PAYLOAD was answered once already.
    pub(super) second_try: bool,
    /// What the peer made at the same time: new keys for the same pair, or a pair for the same child.
    pub(super) theirs: Vec<Created>,
    /// SPIs that the peer deleted in the meantime and that we do not know: one of them may come in the answer.
    pub(super) deleted: Vec<u32>,
}

/// The private key of a request.
pub(super) enum Key {
    /// No key exchange was offered.
    None,
    /// It waits for the answer.
    Held(Group, PrivateKey),
    /// The answer is there, and the secret is computed of it.
    Used(Group),
    /// An earlier process had it.
    Lost(Group),
}

/// A pair with the nonces of the exchange that made it.
pub(crate) struct Created {
    pub id: ChildId,
    pub inbound: Spi,
    pub(super) nonces: (Vec<u8>, Vec<u8>),
}

/// How often the peer may ask for children: one in this time, and so many at once beside four for each configured pair of
/// networks.
const CHILDREN: (Duration, u32) = (Duration::from_millis(50), 64);

/// How often the peer may ask for new IKE SAs. A replaced one stays for [`super::live::REKEYED_LIFETIME`] at most.
const IKE_REKEYS: (Duration, u32) = (Duration::from_secs(5), 16);

/// Most pairs of the peer that our own one may turn out to be the same as.
const MAX_THEIRS: usize = 64;

/// Most unknown SPIs that we remember to be deleted.
const MAX_DELETED: usize = 16;

impl CreatingChild {
    /// The configured child that it asks something new of.
    pub const fn seeks(&self) -> Option<u16> {
        if self.rekeys.is_none() { Some(self.of) } else { None }
    }

    const fn stage(&self) -> Stage {
        if self.rekeys.is_none() { Stage::Child } else { Stage::RekeyChild }
    }

    /// Remembers a deletion that may have overtaken the response.
    pub fn on_unknown_deleted(&mut self, outbound: u32) {
        if self.deleted.len() < MAX_DELETED {
            self.deleted.push(outbound);
        }
    }
}

impl Live {
    // -> CREATE_CHILD_SA { SA, Ni, [KEi], TSi, TSr }
    pub(super) fn begin_create_child(
        &mut self,
        ctx: &mut Ctx<'_>,
        index: u16,
        group: Option<Group>,
        key: Option<Made>,
    ) -> Option<(Payloads, Request)> {
        let ask = self.next_ask(index)?;
        let (local, remote) = self.asked(index, ask)?;
        let (local, remote) = seek::led_by(self.packets.remove(&index), &local, &remote);
        if let Some(seeking) = self.seeking.get_mut(&index) {
            seeking.retry_at = None;
        }
        self.begin_child(ctx, (index, ask), (local, remote), None, (group, key))
    }

    // -> CREATE_CHILD_SA { N(REKEY_SA), SA, Ni, [KEi], TSi, TSr }
    pub(super) fn begin_rekey_child(
        &mut self,
        ctx: &mut Ctx<'_>,
        inbound: Spi,
        group: Option<Group>,
        key: Option<Made>,
    ) -> Option<(Payloads, Request)> {
        let child = self.rekeyable(inbound)?;
        // The whole scope in use, and no more (RFC 7296 §2.9.2).
        let (of, nets) = (child.of, (child.local.clone(), child.remote.clone()));
        if child.pending.is_some() {
            self.defer(ctx, Task::RekeyChild { inbound, group });
            return None;
        }
        let (mut payloads, request) =
            self.begin_child(ctx, (of, Ask::Whole), nets, Some(inbound), (group, key))?;
        payloads.notifies.push(Notify {
            protocol: Protocol::ESP,
            spi: inbound.to_be_bytes().to_vec(),
            kind: NotifyType::REKEY_SA,
            data: vec![],
        });
        Some((payloads, request))
    }

    /// A pair that waits for new keys: the peer may have replaced or deleted it while the task waited.
    pub(super) fn rekeyable(&self, inbound: Spi) -> Option<&super::Child> {
        self.children.iter().find(|c| c.inbound == inbound && c.state == ChildState::Rekeying)
    }

    /// The group of the key exchange in a request about a configured child; `asked` answers an INVALID_KE_PAYLOAD.
    pub(super) fn group_for_child(&self, of: u16, asked: Option<Group>) -> Option<Group> {
        let first = || self.policy.children.get(of)?.proposals.first()?.groups.first().copied();
        asked.or_else(first)
    }

    /// Puts off what concerns a pair that the peer may not know yet: it has not shown that it got our response.
    pub(super) fn defer(&mut self, ctx: &mut Ctx<'_>, task: Task) {
        let at = ctx.now.mono + ctx.within(BUSY_RETRY.0, BUSY_RETRY.1);
        self.enqueue_at(at, task);
    }

    fn begin_child(
        &mut self,
        ctx: &mut Ctx<'_>,
        (of, ask): (u16, Ask),
        (local, remote): (Vec<TrafficSelector>, Vec<TrafficSelector>),
        rekeys: Option<Spi>,
        (group, made): (Option<Group>, Option<Made>),
    ) -> Option<(Payloads, Request)> {
        let c = self.policy.children.get(of)?;
        let (key, ke) = match (self.group_for_child(of, group), made) {
            (Some(wanted), Some(Made { group, key, public })) if group == wanted => {
                (Key::Held(group, key), Some(KeyExchange { group: group.transform(), data: public }))
            }
            (Some(_), _) => return None,
            (None, _) => (Key::None, None),
        };
        let inbound = ctx.spis.new_esp(ctx.random);
        let nonce = ctx.nonce();
        let payloads = Payloads {
            sa: Some(policy::offer_esp(&c.proposals, inbound.to_be_bytes(), true)),
            ke,
            nonce: Some(nonce.clone()),
            tsi: Some(local.clone()),
            tsr: Some(remote.clone()),
            ..Payloads::default()
        };
        let creating = CreatingChild {
            of,
            ask,
            local,
            remote,
            rekeys,
            inbound,
            nonce,
            key,
            second_try: group.is_some(),
            theirs: Vec::new(),
            deleted: Vec::new(),
        };
        Some((payloads, Request::CreateChild(Box::new(creating))))
    }

    // <- CREATE_CHILD_SA { SA, Nr, [KEr], TSi, TSr } or { N(error) }
    pub(super) fn on_child_created(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        mut creating: CreatingChild,
        answer: &Payloads,
        secret: Option<Result<SecretBytes, KexError>>,
    ) -> Next {
        let deleted = std::mem::take(&mut creating.deleted);
        self.take_created(core, ctx, creating, &deleted, answer, secret);
        // A deletion that overtook this answer.
        for outbound in deleted {
            self.on_delete(ctx, outbound);
        }
        Next::Stay
    }

    fn take_created(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        creating: CreatingChild,
        deleted: &[u32],
        answer: &Payloads,
        secret: Option<Result<SecretBytes, KexError>>,
    ) {
        let pair = match self.finish_child(&creating, answer, secret) {
            Ok(pair) => pair,
            Err(unfit) => {
                ctx.spis.esp.remove(&creating.inbound);
                self.disown(creating.inbound, answer);
                if unfit.reason == FailureReason::StateLost {
                    return self.ask_again(ctx, &creating, deleted, answer);
                }
                self.child_refused(core, ctx, &creating, answer, &unfit);
                return;
            }
        };
        self.tell_made(core, ctx, &creating, &pair);
        let nonce_r = answer.nonce.as_deref().unwrap_or_default();
        let judge = |theirs: &Created| {
            let (ni, nr) = &theirs.nonces;
            (theirs.id, theirs.inbound, collide::winner((&creating.nonce, nonce_r), (ni, nr)))
        };
        let verdicts: Vec<_> = creating.theirs.iter().map(judge).collect();
        let Some(old) = creating.rekeys else {
            let Some(id) = self.install(core, ctx, pair, None) else { return };
            // Two parts of one child do not make one another redundant, nor does one that has ended since.
            let there = |spi| self.children.iter().any(|c| c.inbound == spi);
            match verdicts.into_iter().find(|(theirs, spi, _)| *theirs == id && there(*spi)) {
                Some((_, theirs, Winner::Theirs)) => self.on_redundant(ctx, creating.inbound, theirs),
                // The peer deletes its own one, if it does as we do; else both are used.
                Some((.., Winner::Ours)) => {}
                None => {
                    let nonces = (creating.nonce, nonce_r.to_vec());
                    let inbound = creating.inbound;
                    self.created.retain(|made| made.id != id);
                    self.created.push(Created { id, inbound, nonces });
                }
            }
            self.seek_rest(core, ctx, creating.of);
            return;
        };
        // The peer answered a question about the old pair, so it has it.
        self.on_seen(ctx, Some(old));
        // What the peer has ended already is no better than what it made since, whatever the nonces say.
        let ended = deleted.contains(&pair.negotiated.outbound.value());
        let winner = |(id, theirs, winner)| (id, theirs, if ended { Winner::Theirs } else { winner });
        match verdicts.into_iter().next().map(winner) {
            Some((id, theirs, Winner::Theirs)) => {
                // Ours is redundant; who made it closes it (RFC 7296 §2.8.1). It is never taken into use here.
                self.uncontest(theirs);
                let child = self.redundant(ctx, id, pair.negotiated);
                self.children.push(child);
                self.queue.push_front(Task::DeleteChild { inbound: creating.inbound });
                return;
            }
            Some((_, theirs, Winner::Ours)) => {
                // The peer will delete its own one. We never send on it.
                if let Some(c) = self.children.iter_mut().find(|c| c.inbound == theirs) {
                    c.state = ChildState::Replaced;
                    c.contested = true;
                }
            }
            None => {}
        }
        let of = creating.of;
        self.install(core, ctx, pair, Some(old));
        if let Some(c) = self.children.iter_mut().find(|c| c.inbound == old) {
            c.state = ChildState::Deleting;
            self.queue.push_front(Task::DeleteChild { inbound: old });
        }
        // Whoever is about to be compared goes on under its new name.
        if let Some(made) = self.created.iter_mut().find(|made| made.inbound == old) {
            made.inbound = creating.inbound;
        }
        ctx.tell(Event::Rekeyed { tunnel: self.policy.id, kind: RekeyKind::Child, failure: None });
        // An answer may be narrower than what was in use, although it must not (RFC 7296 §2.9.2).
        if self.next_ask(of).is_some() && !self.seeking.contains_key(&of) {
            self.enqueue(Task::CreateChild { index: of, group: None });
        }
    }

    /// Checks the answer.
    fn check_child(&self, creating: &CreatingChild, answer: &Payloads) -> Result<child::Negotiated, Unfit> {
        let offered = Offered {
            of: creating.of,
            inbound: creating.inbound,
            local: &creating.local,
            remote: &creating.remote,
            with_ke: true,
        };
        child::accept(&self.policy, &offered, answer, |spi| self.is_bound(spi))
    }

    /// The key exchange that an answer finishes, if it is one that [`Live::finish_child`] takes.
    pub(super) fn secret_for_child(&self, creating: &mut CreatingChild, answer: &Payloads) -> Option<Work> {
        let chosen = self.check_child(creating, answer).ok()?.suite.group?;
        let ke = answer.ke.as_ref().filter(|ke| ke.group == chosen.transform())?;
        answer.nonce.as_ref()?;
        match std::mem::replace(&mut creating.key, Key::Used(chosen)) {
            Key::Held(sent, key) if sent == chosen => Some(Work::Finish(key, ke.data.clone())),
            other => {
                creating.key = other;
                None
            }
        }
    }

    /// Checks the answer and derives the keys.
    fn finish_child(
        &self,
        creating: &CreatingChild,
        answer: &Payloads,
        secret: Option<Result<SecretBytes, KexError>>,
    ) -> Result<NewPair, Unfit> {
        let negotiated = self.check_child(creating, answer)?;
        let nonce = answer.nonce.as_ref().ok_or_else(Unfit::syntax)?;
        let shared = match (negotiated.suite.group, &creating.key) {
            (None, _) => None,
            (Some(chosen), Key::Used(sent)) if chosen == *sent => match secret {
                Some(Ok(secret)) => Some(secret),
                Some(Err(e)) if e.blames_peer() => return Err(Unfit::syntax()),
                Some(Err(_)) | None => return Err(Unfit::lost()),
            },
            (Some(chosen), Key::Held(sent, _)) if chosen == *sent => {
                let ke = answer.ke.as_ref().ok_or_else(Unfit::syntax)?;
                return Err(Unfit::group(*sent, ke.group));
            }
            (Some(chosen), Key::Lost(sent)) if chosen == *sent => return Err(Unfit::lost()),
            (Some(chosen), Key::Held(sent, _) | Key::Used(sent) | Key::Lost(sent)) => {
                return Err(Unfit::group(*sent, chosen.transform()));
            }
            (Some(_), Key::None) => return Err(Unfit::syntax()),
        };
        let keys = ChildKeys::derive(
            self.suite.prf,
            &self.sk_d,
            shared.as_ref(),
            &creating.nonce,
            nonce,
            &negotiated.suite,
        );
        Ok(NewPair { negotiated, keys, role: Role::Initiator })
    }

    /// The peer made the pair that an earlier process asked for, and the keys cannot be known any more: it is deleted at the
    /// peer, and asked for anew. Until then what it was to replace goes on.
    fn ask_again(&mut self, ctx: &mut Ctx<'_>, creating: &CreatingChild, deleted: &[u32], answer: &Payloads) {
        let of = creating.of;
        let Some(old) = creating.rekeys else {
            return self.enqueue(Task::CreateChild { index: of, group: None });
        };
        let nonce_r = answer.nonce.as_deref().unwrap_or_default();
        let there = |spi| self.children.iter().any(|c| c.inbound == spi);
        match creating.theirs.first().filter(|theirs| there(theirs.inbound)) {
            Some(theirs) => {
                let (ni, nr) = &theirs.nonces;
                // What the peer has ended already is no better than what it made since.
                let made =
                    answer.sa.iter().flatten().filter_map(|p| <[u8; 4]>::try_from(p.spi.as_slice()).ok());
                let ended = made.map(u32::from_be_bytes).any(|spi| deleted.contains(&spi)) || !there(old);
                let winner = collide::winner((&creating.nonce, nonce_r), (ni, nr));
                match if ended { Winner::Theirs } else { winner } {
                    Winner::Theirs => self.uncontest(theirs.inbound),
                    // The peer ends its own one and keeps ours, which we end: the old pair stays and gets new keys then.
                    Winner::Ours => {
                        let soon = ctx.now.mono + BUSY_RETRY.0;
                        for c in &mut self.children {
                            if c.inbound == theirs.inbound {
                                (c.state, c.contested) = (ChildState::Replaced, true);
                            } else if c.inbound == old {
                                c.rekey_at = c.rekey_at.min(soon);
                            }
                        }
                    }
                }
            }
            None if self.has_inbound(old) => self.enqueue(Task::RekeyChild { inbound: old, group: None }),
            None => self.enqueue(Task::CreateChild { index: of, group: None }),
        }
    }

    fn has_inbound(&self, inbound: Spi) -> bool {
        self.children.iter().any(|c| c.inbound == inbound && c.is_to_stay())
    }

    /// An answer without an error that we cannot take made a pair at the peer's end (RFC 7296 §2.21: "clean up the IKE
    /// state, for example by sending a Delete for a bad SA").
    pub(super) fn disown(&mut self, inbound: Spi, answer: &Payloads) {
        if answer.sa.is_some() && answer.error().is_none() {
            self.queue.push_front(Task::DisownChild { inbound });
        }
    }

    fn child_refused(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        creating: &CreatingChild,
        answer: &Payloads,
        unfit: &Unfit,
    ) {
        let reason = unfit.reason;
        if !creating.theirs.is_empty() {
            // What the peer asked for went through; nothing is lost.
            for theirs in &creating.theirs {
                self.uncontest(theirs.inbound);
            }
            if creating.rekeys.is_none() {
                self.seek_rest(core, ctx, creating.of);
            }
            return;
        }
        if let Some(n) = answer.notify(NotifyType::INVALID_KE_PAYLOAD)
            && !creating.second_try
            && let Some(group) = self.wanted_group(creating.of, &n.data)
        {
            self.queue.push_front(match creating.rekeys {
                Some(inbound) => Task::RekeyChild { inbound, group: Some(group) },
                None => Task::CreateChild { index: creating.of, group: Some(group) },
            });
            return;
        }
        let nets = networks(&creating.local, &creating.remote);
        let exchange = if creating.rekeys.is_some() { "the rekey" } else { "CREATE_CHILD_SA" };
        let detail = self.answer_detail(core, exchange, &nets, creating.of, answer, unfit);
        let stage = creating.stage();
        let draft = Draft::authenticated(stage, Role::Initiator, core.flow.remote);
        let asked = (&*creating.local, &*creating.remote);
        ctx.tell(self.account_of(draft, creating.of, asked, answer, unfit, &detail, true));
        let trouble = Trouble { reason, detail };
        let Some(old) = creating.rekeys else {
            if !self.has_child(creating.of) {
                self.reauthenticate(core, ctx, creating.of, answer, &trouble);
            }
            self.refused(core, ctx, creating.of, creating.ask, trouble);
            return;
        };
        ctx.tell(Event::Rekeyed { tunnel: self.policy.id, kind: RekeyKind::Child, failure: Some(reason) });
        if answer.notify(NotifyType::CHILD_SA_NOT_FOUND).is_some() {
            // The peer has lost the pair: so do we, and make another (RFC 7296 §2.25).
            if let Some(c) = self.remove_child(ctx, old) {
                ctx.tell(c.down(Ending::Peer));
                self.enqueue(Task::CreateChild { index: c.of, group: None });
            }
            return;
        }
        // Try again while the old pair lasts: soon if the peer was busy, else a few times before the end.
        let busy = (reason == FailureReason::TemporaryFailure).then(|| self.busy_wait(ctx));
        if let Some(c) =
            self.children.iter_mut().find(|c| c.inbound == old && c.state == ChildState::Rekeying)
        {
            let left = c.expire_at.since(ctx.now.mono);
            let wait = busy.unwrap_or(left / 4);
            c.state = ChildState::Active;
            c.rekey_at = ctx.now.mono + wait.max(BUSY_RETRY.0);
        }
        if busy.is_none() {
            self.reauthenticate(core, ctx, creating.of, answer, &trouble);
            let (tunnel, peer) = (Some(self.policy.id), core.flow.remote);
            ctx.tell(Event::Failure { tunnel, peer, reason, detail: trouble.detail, retry_in: None });
        }
    }

    /// Asks for a new IKE SA beside this one, if that can bring what was refused: its IKE_AUTH makes the first child, and
    /// negotiates no key exchange for it.
    fn reauthenticate(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        of: u16,
        answer: &Payloads,
        trouble: &Trouble,
    ) {
        if of != 0 || answer.error().is_none() || !trouble.reason.spares_ike_auth() || self.refused_in_auth {
            return;
        }
        self.outdated = true;
        let (spi, tunnel) = (core.spi, self.policy.id);
        ctx.effects.push(Effect::Reauthenticate { spi, tunnel, trouble: trouble.clone() });
    }

    /// Tells that the peer took what we offered.
    fn tell_made(&self, core: &Core, ctx: &mut Ctx<'_>, creating: &CreatingChild, pair: &NewPair) {
        let (n, draft) =
            (&pair.negotiated, Draft::authenticated(creating.stage(), Role::Initiator, core.flow.remote));
        let Some(c) = self.policy.children.get(creating.of) else { return };
        let (asked, made) = ((&*creating.local, &*creating.remote), (&*n.local, &*n.remote));
        let draft = draft.child_chosen(&c.proposals, asked, None, n.suite, made, true);
        ctx.tell(draft.agreed(self.policy.id));
    }

    /// The account of an answer of the peer to `ask` that is a refusal, or that we cannot take.
    pub(super) fn account_of_answer(
        &self,
        draft: Draft,
        (of, ask): (u16, Ask),
        answer: &Payloads,
        unfit: &Unfit,
        detail: &str,
        with_ke: bool,
    ) -> Event {
        let asked = self.asked(of, ask).unwrap_or_default();
        self.account_of(draft, of, (&asked.0, &asked.1), answer, unfit, detail, with_ke)
    }

    #[allow(clippy::too_many_arguments, reason = "what the two ends said")]
    fn account_of(
        &self,
        draft: Draft,
        of: u16,
        asked: (&[TrafficSelector], &[TrafficSelector]),
        answer: &Payloads,
        unfit: &Unfit,
        detail: &str,
        with_ke: bool,
    ) -> Event {
        let by = if answer.error().is_some() { Party::Peer } else { Party::We };
        let proposals = self.policy.children.get(of).map_or(&[][..], |c| &c.proposals);
        let group = answer
            .notify(NotifyType::INVALID_KE_PAYLOAD)
            .and_then(|n| <[u8; 2]>::try_from(n.data.as_slice()).ok())
            .map(u16::from_be_bytes);
        let (reason, differs) = (unfit.reason, &unfit.differs);
        let draft = draft.child_answered(proposals, asked, answer, reason, differs, group, with_ke);
        draft.refused(self.policy.id, by, reason, detail)
    }

    /// One line about an answer of the peer that is a refusal, or that we cannot take.
    pub(super) fn answer_detail(
        &self,
        core: &Core,
        exchange: &str,
        nets: &str,
        of: u16,
        answer: &Payloads,
        unfit: &Unfit,
    ) -> String {
        let peer = core.flow.remote;
        let Some(n) = answer.error() else {
            let differs = crate::mismatch::words(&unfit.differs);
            let sep = if differs.is_empty() { "" } else { "; " };
            return format!(
                "the answer of {peer} to {exchange} for {nets} cannot be taken: {}{sep}{differs}",
                unfit.reason
            );
        };
        let proposals = self.policy.children.get(of).map_or(&[][..], |c| &c.proposals);
        let offered = match n.kind {
            NotifyType::NO_PROPOSAL_CHOSEN | NotifyType::INVALID_KE_PAYLOAD => {
                let all = crate::mismatch::listed(proposals);
                let pfs = proposals.iter().any(|p| !p.groups.is_empty());
                let pfs = if pfs { "with a key exchange group (PFS)" } else { "without one (no PFS)" };
                format!("; we offered {all}, {pfs}")
            }
            _ => String::new(),
        };
        format!("{peer} answers {exchange} for {nets} with {}{offered}", n.kind)
    }

    fn wanted_group(&self, index: u16, data: &[u8]) -> Option<Group> {
        let group = Group::from_transform(u16::from_be_bytes(data.try_into().ok()?))?;
        let child = self.policy.children.get(index)?;
        child.proposals.iter().any(|p| p.groups.contains(&group)).then_some(group)
    }

    /// The peer's pair stays; it is used as soon as the peer is known to have it.
    fn uncontest(&mut self, inbound: Spi) {
        if let Some(c) = self.children.iter_mut().find(|c| c.inbound == inbound) {
            c.contested = false;
        }
    }

    /// A pair that exists only to be deleted.
    fn redundant(&self, ctx: &Ctx<'_>, id: ChildId, n: child::Negotiated) -> super::Child {
        super::Child {
            id,
            of: n.of,
            made: ctx.now.mono,
            inbound: n.inbound,
            outbound: n.outbound,
            suite: n.suite,
            mark: None,
            local: n.local,
            remote: n.remote,
            state: ChildState::Deleting,
            rekey_at: self.expire_at,
            expire_at: ctx.now.mono + super::live::REKEYED_LIFETIME,
            pending: None,
            switch_at: None,
            opens: None,
            replaces: None,
            contested: false,
            unseen: false,
            closes: None,
        }
    }

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
    /// same request comes here again, with what was computed, and meets the state of that moment.
    pub(super) fn on_create_child(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        offer: &Payloads,
        worked: Option<Worked>,
    ) -> Handled {
        let later = || Handled::Reply(busy());
        // One that a newer IKE SA has replaced makes no keys that would be preferred to the newer one's, to go a moment later.
        if phase != Phase::Established || self.retire_at.is_some() {
            return later();
        }
        if worked.is_none() && !self.admits(ctx, offer) {
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
                Verdict::Proceed | Verdict::ProceedAndCompare => self.on_rekey_ike(core, ctx, offer, worked),
            };
        }
        let Some(n) = offer.notify(NotifyType::REKEY_SA).cloned() else {
            return match collide::verdict(Asked::CreateChild, self.ours(None)) {
                Verdict::Later => later(),
                Verdict::Proceed | Verdict::ProceedAndCompare => {
                    match self.answer_child(core, ctx, offer, None, worked) {
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
        let (reply, made) = match self.answer_child(core, ctx, offer, Some(old), worked) {
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
    fn is_rekeying_created(&self, found: &child::Found) -> bool {
        self.created.iter().any(|made| {
            let rekeying = |c: &super::Child| c.inbound == made.inbound && c.state == ChildState::Rekeying;
            self.children.iter().any(|c| rekeying(c) && found.is_like(c))
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
        worked: Option<Worked>,
    ) -> Answered {
        let refuse = |kind, data| Answered::Not(Handled::Reply(Reply::notify(Notify::new(kind, data))));
        let stage = if rekeys.is_some() { Stage::RekeyChild } else { Stage::Child };
        let draft = Draft::authenticated(stage, Role::Responder, core.flow.remote);
        let only = rekeys.and_then(|old| Some(self.children.iter().find(|c| c.inbound == old)?.of));
        if !self.has_room() {
            return refuse(NotifyType::NO_ADDITIONAL_SAS, vec![]);
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
            let replaced = |c: &&super::Child| found.is_like(c) && c.state == ChildState::Replaced;
            if let Some(inbound) = self.children.iter().find(replaced).map(|c| c.inbound) {
                self.enqueue(Task::DeleteChild { inbound });
                return refuse(NotifyType::TEMPORARY_FAILURE, vec![]);
            }
            return refuse(NotifyType::NO_ADDITIONAL_SAS, vec![]);
        }
        if rekeys.is_none() && self.is_rekeying_created(&found) {
            return refuse(NotifyType::TEMPORARY_FAILURE, vec![]);
        }
        let Some(ni) = &offer.nonce else { return refuse(NotifyType::INVALID_SYNTAX, vec![]) };
        let (mut shared, mut ke) = (None, None);
        if let Some(group) = found.suite().group {
            let theirs = offer.ke.as_ref().filter(|k| k.group == group.transform());
            let Some(theirs) = theirs else {
                return refuse(NotifyType::INVALID_KE_PAYLOAD, group.transform().to_be_bytes().to_vec());
            };
            let Some(worked) = worked else {
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
        let keys = ChildKeys::derive(self.suite.prf, &self.sk_d, shared.as_ref(), ni, &nr, &negotiated.suite);
        let inbound = negotiated.inbound;
        let payloads = Payloads {
            sa: Some(policy::answer_esp(negotiated.suite, number, inbound.to_be_bytes())),
            ke,
            nonce: Some(nr.clone()),
            tsi: Some(negotiated.remote.clone()),
            tsr: Some(negotiated.local.clone()),
            ..Payloads::default()
        };
        let pair = NewPair { negotiated, keys, role: Role::Responder };
        let Some(id) = self.install(core, ctx, pair, rekeys) else {
            return refuse(NotifyType::NO_ADDITIONAL_SAS, vec![]);
        };
        ctx.tell(account.agreed(self.policy.id));
        Answered::Made(Reply::with(payloads), Created { id, inbound, nonces: (ni.clone(), nr) })
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
