//! Asking for a child, or for new keys of one, and what comes of the answer.

use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::Group;
use cygnet_model::{ChildId, Spi};

use super::{BUSY_RETRY, Created, CreatingChild, Key};
use crate::account::{Draft, Party};
use crate::coverage::networks;
use crate::crypto::kex::KexError;
use crate::crypto::keymat::{ChildKeys, Secrets};
use crate::error::{FailureReason, Trouble};
use crate::io::{Ending, Event, RekeyKind, Role};
use crate::jobs::Work;
use crate::policy;
use crate::sa::child::{self, NewPair, Offered, Unfit};
use crate::sa::collide::{self, Winner};
use crate::sa::live::Request;
use crate::sa::seek;
use crate::sa::work::Made;
use crate::sa::{Ask, ChildState, Core, Ctx, Effect, Live, Next, Task};
use crate::wire::{KeyExchange, Notify, NotifyType, Payloads, Protocol};

impl Live {
    // -> CREATE_CHILD_SA { SA, Ni, [KEi], TSi, TSr }
    pub(in crate::sa) fn begin_create_child(
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
    pub(in crate::sa) fn begin_rekey_child(
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
    pub(in crate::sa) fn rekeyable(&self, inbound: Spi) -> Option<&crate::sa::Child> {
        self.children.iter().find(|c| c.inbound == inbound && c.state == ChildState::Rekeying)
    }

    /// The group of the key exchange in a request about a configured child; `asked` answers an INVALID_KE_PAYLOAD.
    pub(in crate::sa) fn group_for_child(&self, of: u16, asked: Option<Group>) -> Option<Group> {
        let first = || self.policy.children.get(of)?.proposals.first()?.groups.first().copied();
        asked.or_else(first)
    }

    /// Puts off what concerns a pair that the peer may not know yet: it has not shown that it got our response.
    pub(in crate::sa) fn defer(&mut self, ctx: &mut Ctx<'_>, task: Task) {
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
    pub(in crate::sa) fn on_child_created(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        mut creating: CreatingChild,
        answer: &Payloads,
        secret: Option<Result<Secrets, KexError>>,
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
        secret: Option<Result<Secrets, KexError>>,
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
    pub(in crate::sa) fn check_child(
        &self,
        creating: &CreatingChild,
        answer: &Payloads,
    ) -> Result<child::Negotiated, Unfit> {
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
    pub(in crate::sa) fn secret_for_child(
        &self,
        creating: &mut CreatingChild,
        answer: &Payloads,
    ) -> Option<Work> {
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
        secret: Option<Result<Secrets, KexError>>,
    ) -> Result<NewPair, Unfit> {
        let negotiated = self.check_child(creating, answer)?;
        let nonce = answer.nonce.as_ref().ok_or_else(Unfit::syntax)?;
        let secrets = match (negotiated.suite.group, &creating.key) {
            (None, _) => None,
            (Some(chosen), Key::Used(sent)) if chosen == *sent => match secret {
                Some(Ok(secrets)) if secrets.are_of(&negotiated.suite.additional) => Some(secrets),
                // The configuration has changed in the meantime.
                Some(Ok(_)) => return Err(Unfit::lost()),
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
            secrets.as_ref(),
            &creating.nonce,
            nonce,
            &negotiated.suite,
        );
        Ok(NewPair { negotiated, keys, role: Role::Initiator })
    }

    /// The peer made the pair that an earlier process asked for, and the keys cannot be known any more: it is deleted at the
    /// peer, and asked for anew. Until then what it was to replace goes on.
    pub(in crate::sa) fn ask_again(
        &mut self,
        ctx: &mut Ctx<'_>,
        creating: &CreatingChild,
        deleted: &[u32],
        answer: &Payloads,
    ) {
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
    pub(in crate::sa) fn disown(&mut self, inbound: Spi, answer: &Payloads) {
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
    pub(in crate::sa) fn account_of_answer(
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
    pub(in crate::sa) fn answer_detail(
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
    fn redundant(&self, ctx: &Ctx<'_>, id: ChildId, n: child::Negotiated) -> crate::sa::Child {
        crate::sa::Child {
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
            expire_at: ctx.now.mono + crate::sa::live::REKEYED_LIFETIME,
            pending: None,
            switch_at: None,
            opens: None,
            replaces: None,
            contested: false,
            unseen: false,
            closes: None,
        }
    }
}
