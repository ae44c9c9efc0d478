//! Rekeying the IKE SA itself (RFC 7296 §1.3.2, §2.8.2, §2.18), in both roles.
//!
//! The new IKE SA inherits the children. If both sides rekey at once the nonces decide which new SA does.

use cygnet_model::IkeSpi;
use cygnet_model::proposal::IkeProposal;
use cygnet_model::suite::{Group, IkeSuite};

use super::collide::{self, Winner};
use super::create_child::BUSY_RETRY;
use super::follow_up::{Progress, Promise, Promised};
use super::live::{REKEYED_LIFETIME, Reply, Request};
use super::message::Channel;
use super::window::Window;
use super::work::{Handled, Made, busy};
use super::{Core, Ctx, Effect, IkeSa, Live, Next, State, Task};
use crate::account::{Draft, Party, Stage};
use crate::crypto::kex::{KexError, PrivateKey};
use crate::crypto::keymat::{IkeKeys, Secrets, SkeySeed};
use crate::error::{FailureReason, Trouble};
use crate::io::{Event, RekeyKind, Role};
use crate::jobs::Work;
use crate::wire::{KeyExchange, Notify, NotifyType, Payloads};
use crate::{mismatch, policy};

/// Our request for a new IKE SA.
pub(crate) struct RekeyingIke {
    /// Our SPI of the new SA.
    pub spi: IkeSpi,
    pub(super) nonce: Vec<u8>,
    pub(super) group: Group,
    /// `None` if an earlier process had it, or if the secret is computed of it.
    pub(super) key: Option<PrivateKey>,
    pub(super) second_try: bool,
}

impl RekeyingIke {
    /// Whether the answer cannot be followed: nobody has the key any more, and no secret came of it.
    pub fn is_without_key(&self, secret: Option<&Result<Secrets, KexError>>) -> bool {
        self.key.is_none() && secret.is_none_or(is_lost)
    }
}

/// Whether there is no secret, and the peer is not to blame.
fn is_lost(secret: &Result<Secrets, KexError>) -> bool {
    matches!(secret, Err(e) if !e.blames_peer())
}

/// The new IKE SA that the peer asked for, without keys.
pub(crate) struct Successor {
    /// Our SPI of it.
    pub spi: IkeSpi,
    peer_spi: u64,
    pub(super) suite: IkeSuite,
    /// The peer's nonce, and ours.
    nonces: (Vec<u8>, Vec<u8>),
    /// Tells that it was made.
    account: Draft,
}

/// The new IKE SA of the peer's request, which ours crossed.
pub(crate) struct RekeyedByPeer {
    pub(super) sa: IkeSa,
    pub(super) nonces: (Vec<u8>, Vec<u8>),
}

impl RekeyedByPeer {
    /// Gives back the SPI of an SA that will not be.
    pub fn release(self, ctx: &mut Ctx<'_>) {
        ctx.spis.ike.remove(&self.sa.core.spi);
    }
}

impl Live {
    // -> CREATE_CHILD_SA { SA, Ni, KEi }
    pub(super) fn begin_rekey_ike(
        &mut self,
        ctx: &mut Ctx<'_>,
        group: Option<Group>,
        made: Option<Made>,
    ) -> Option<(Payloads, Request)> {
        let second_try = group.is_some();
        let wanted = self.group_for_ike(group);
        let Made { group, key, public } = made.filter(|made| Some(made.group) == wanted)?;
        let spi = ctx.spis.new_ike(ctx.random);
        let nonce = ctx.nonce();
        let payloads = Payloads {
            sa: Some(policy::offer_ike(&self.for_successor(), &spi.to_be_bytes())),
            ke: Some(KeyExchange { group: group.transform(), data: public }),
            nonce: Some(nonce.clone()),
            ..Payloads::default()
        };
        Some((
            payloads,
            Request::RekeyIke(Box::new(RekeyingIke { spi, nonce, group, key: Some(key), second_try })),
        ))
    }

    /// The group of the key exchange in a request for a new IKE SA; `asked` answers an INVALID_KE_PAYLOAD.
    pub(super) fn group_for_ike(&self, asked: Option<Group>) -> Option<Group> {
        // Not the one in use: somebody may have made us choose it.
        let first = self.for_successor().first().and_then(|p| p.groups.first()).copied();
        asked.or(first)
    }

    /// What we offer for the next IKE SA.
    fn for_successor(&self) -> Vec<IkeProposal> {
        policy::keeping(&self.policy.proposals, self.suite.prf)
    }

    /// The keys of the new SA from the old SA's SK_d, and an empty SA around them.
    #[allow(clippy::too_many_arguments, reason = "what the exchange negotiated")]
    fn successor(
        &self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        spi: IkeSpi,
        role: Role,
        suite: IkeSuite,
        spis: (u64, u64),
        seed: &SkeySeed,
        nonces: (&[u8], &[u8]),
    ) -> Option<IkeSa> {
        let (ni, nr) = nonces;
        let keys = IkeKeys::derive(suite, seed, ni, nr, spis.0.to_be_bytes(), spis.1.to_be_bytes());
        let mut channel = Channel::new(suite, &keys, spis.0, spis.1, role)?;
        channel.fragmentation = self.channel.fragmentation;
        let (policy, peer) = (self.policy.clone(), self.peer_id.clone());
        let window = Window::new(0, 0);
        let mut live = Self::bare(ctx, policy, peer, channel, suite, keys.sk_d, self.nat, window);
        live.established_unix = self.established_unix;
        let core = Core { spi, role, flow: core.flow, created: ctx.now.mono };
        Some(IkeSa { core, state: State::Established(Box::new(live)) })
    }

    /// Moves the children, and what was still to be done, into the new SA.
    fn hand_over(&mut self, ctx: &mut Ctx<'_>, mut sa: IkeSa) {
        if let State::Established(live) = &mut sa.state {
            live.children = std::mem::take(&mut self.children);
            live.lingering = std::mem::take(&mut self.lingering);
            live.seeking = std::mem::take(&mut self.seeking);
            live.packets = std::mem::take(&mut self.packets);
            live.refused_in_auth = self.refused_in_auth;
            // New keys for itself do not change what was wrong with its children's.
            (live.outdated, live.retire_at) = (self.outdated, self.retire_at);
            let wanted = |t: &Task| !matches!(t, Task::RekeyIke { .. } | Task::DeleteIke | Task::Liveness);
            live.queue.extend(std::mem::take(&mut self.queue).into_iter().filter(wanted));
            live.delayed.extend(std::mem::take(&mut self.delayed).into_iter().filter(|(_, t)| wanted(t)));
        }
        self.expire_at = ctx.now.mono + REKEYED_LIFETIME;
        self.rekey_at = self.expire_at;
        ctx.tell(Event::Rekeyed { tunnel: self.policy.id, kind: RekeyKind::Ike, failure: None });
        ctx.effects.push(Effect::Spawn(Box::new(sa)));
    }

    // <- CREATE_CHILD_SA { SA, Nr, KEr } or { N(error) }
    pub(super) fn on_ike_rekeyed(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        request: RekeyingIke,
        answer: &Payloads,
        secret: Option<Result<Secrets, KexError>>,
    ) -> Next {
        if request.is_without_key(secret.as_ref()) {
            let made = answer.sa.is_some() && answer.error().is_none();
            return self.on_answer_without_key(core, ctx, request, answer, made);
        }
        let RekeyingIke { spi, nonce, group, second_try, .. } = request;
        let sa = self.finish_ike(core, ctx, spi, &nonce, group, secret, answer);
        let theirs = self.their_rekey.take();
        let sa = match sa {
            Ok(sa) => sa,
            Err(reason) => {
                ctx.spis.ike.remove(&spi);
                return match theirs {
                    // The peer's own rekey went through; nothing is lost.
                    Some(theirs) => {
                        self.hand_over(ctx, theirs.sa);
                        Next::Rekeyed
                    }
                    None => self.ike_rekey_refused(core, ctx, reason, second_try, answer),
                };
            }
        };
        let nonce_r = answer.nonce.as_deref().unwrap_or_default();
        match theirs {
            None => {
                self.hand_over(ctx, sa);
                self.enqueue(Task::DeleteIke);
            }
            Some(theirs) => {
                let pair = (theirs.nonces.0.as_slice(), theirs.nonces.1.as_slice());
                match collide::winner((&nonce, nonce_r), pair) {
                    Winner::Ours => {
                        self.hand_over(ctx, sa);
                        self.enqueue(Task::DeleteIke);
                        let loser = Box::new(redundant(theirs.sa, ctx));
                        ctx.effects.push(Effect::Spawn(loser));
                    }
                    Winner::Theirs => {
                        self.hand_over(ctx, theirs.sa);
                        // Ours is redundant; who made it closes it, and the winner's maker closes the old one.
                        let mut sa = redundant(sa, ctx);
                        sa.with_live(ctx, |live, _, _, _| {
                            live.enqueue(Task::DeleteIke);
                            Next::Stay
                        });
                        ctx.effects.push(Effect::Spawn(Box::new(sa)));
                    }
                }
            }
        }
        Next::Rekeyed
    }

    /// An answer to a request of an earlier process, which took the private key with it. If the peer made the new IKE SA it
    /// takes that for the one in use from now on, and its children with it: they go on at both ends, and a new IKE SA is
    /// negotiated beside to take them over.
    pub(super) fn on_answer_without_key(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        request: RekeyingIke,
        answer: &Payloads,
        made: bool,
    ) -> Next {
        let RekeyingIke { spi, nonce, second_try, .. } = request;
        ctx.spis.ike.remove(&spi);
        let theirs = self.their_rekey.take();
        let nonce_r = answer.nonce.as_deref().unwrap_or_default();
        let ours_wins = |theirs: &RekeyedByPeer| {
            let pair = (theirs.nonces.0.as_slice(), theirs.nonces.1.as_slice());
            collide::winner((&nonce, nonce_r), pair) == Winner::Ours
        };
        match theirs {
            // Ours is redundant at the peer's end as well, and goes there by itself.
            Some(theirs) if !made || !ours_wins(&theirs) => {
                self.hand_over(ctx, theirs.sa);
                Next::Rekeyed
            }
            None if !made => {
                let reason =
                    answer.error().map_or(FailureReason::InvalidSyntax, |n| FailureReason::of_notify(n.kind));
                self.ike_rekey_refused(core, ctx, reason, second_try, answer)
            }
            theirs => {
                if let Some(theirs) = theirs {
                    let loser = Box::new(redundant(theirs.sa, ctx));
                    ctx.effects.push(Effect::Spawn(loser));
                }
                self.outdated = true;
                ctx.effects.push(Effect::Replace { spi: core.spi, tunnel: self.policy.id });
                Next::Stay
            }
        }
    }

    /// Checks the answer: the suite and the peer's SPI.
    pub(super) fn check_ike(
        &self,
        group: Group,
        answer: &Payloads,
    ) -> Result<(IkeSuite, u64), FailureReason> {
        if let Some(n) = answer.error() {
            return Err(FailureReason::of_notify(n.kind));
        }
        let (Some(proposals), Some(ke), Some(_)) = (&answer.sa, &answer.ke, &answer.nonce) else {
            return Err(FailureReason::InvalidSyntax);
        };
        let (suite, peer_spi) =
            policy::accept_ike(&self.for_successor(), proposals, 8).ok_or(FailureReason::NoProposalChosen)?;
        let peer_spi = <[u8; 8]>::try_from(peer_spi.as_slice()).map_err(|_| FailureReason::InvalidSyntax)?;
        let peer_spi = u64::from_be_bytes(peer_spi);
        if suite.group != group || ke.group != group.transform() {
            return Err(FailureReason::InvalidKe);
        }
        if peer_spi == 0 {
            return Err(FailureReason::InvalidSyntax);
        }
        Ok((suite, peer_spi))
    }

    /// The key exchange that an answer finishes, if it is one that [`Live::finish_ike`] takes.
    pub(super) fn secret_for_ike(&self, request: &mut RekeyingIke, answer: &Payloads) -> Option<Work> {
        self.check_ike(request.group, answer).ok()?;
        let theirs = answer.ke.as_ref()?.data.clone();
        Some(Work::Finish(request.key.take()?, theirs))
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of the request")]
    fn finish_ike(
        &self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        spi: IkeSpi,
        nonce: &[u8],
        group: Group,
        secret: Option<Result<Secrets, KexError>>,
        answer: &Payloads,
    ) -> Result<IkeSa, FailureReason> {
        let (suite, peer_spi) = self.check_ike(group, answer)?;
        let nonce_r = answer.nonce.as_deref().ok_or(FailureReason::InvalidSyntax)?;
        let secrets = secret.and_then(Result::ok).filter(|s| s.are_of(&suite.additional));
        let secrets = secrets.ok_or(FailureReason::InvalidSyntax)?;
        let seed = SkeySeed::rekeyed(self.suite.prf, &self.sk_d, &secrets, nonce, nonce_r);
        let spis = (spi.value(), peer_spi);
        let draft = Draft::authenticated(Stage::RekeyIke, Role::Initiator, core.flow.remote);
        ctx.tell(draft.ike_chosen(&self.for_successor(), None, suite).agreed(self.policy.id));
        self.successor(core, ctx, spi, Role::Initiator, suite, spis, &seed, (nonce, nonce_r))
            .ok_or(FailureReason::Internal)
    }

    fn ike_rekey_refused(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        reason: FailureReason,
        second_try: bool,
        answer: &Payloads,
    ) -> Next {
        if let Some(n) = answer.notify(NotifyType::INVALID_KE_PAYLOAD)
            && !second_try
            && let Ok(data) = <[u8; 2]>::try_from(n.data.as_slice())
            && let Some(group) = Group::from_transform(u16::from_be_bytes(data))
            && self.for_successor().iter().any(|p| p.groups.contains(&group))
        {
            self.queue.push_front(Task::RekeyIke { group: Some(group) });
            return Next::Stay;
        }
        ctx.tell(Event::Rekeyed { tunnel: self.policy.id, kind: RekeyKind::Ike, failure: Some(reason) });
        let busy = (reason == FailureReason::TemporaryFailure).then(|| self.busy_wait(ctx));
        let left = self.expire_at.since(ctx.now.mono);
        let wait = busy.unwrap_or(left / 4);
        self.enqueue_at(ctx.now.mono + wait.max(BUSY_RETRY.0), Task::RekeyIke { group: None });
        if busy.is_none() {
            let ours = self.for_successor();
            let offered = mismatch::listed(&ours);
            let detail =
                format!("{} refuses to rekey the IKE SA: {reason}; we offered {offered}", core.flow.remote);
            let by = if answer.error().is_some() { Party::Peer } else { Party::We };
            let group = answer.notify(NotifyType::INVALID_KE_PAYLOAD);
            let group = group.and_then(|n| <[u8; 2]>::try_from(n.data.as_slice()).ok());
            let sa = answer.sa.as_deref();
            let draft = Draft::authenticated(Stage::RekeyIke, Role::Initiator, core.flow.remote)
                .ike_answered(&ours, by, reason, sa, group.map(u16::from_be_bytes));
            ctx.tell(draft.refused(self.policy.id, by, reason, &detail));
            if answer.error().is_some() && reason.spares_ike_auth() {
                self.outdated = true;
                let (spi, tunnel, trouble) =
                    (core.spi, self.policy.id, Trouble { reason, detail: detail.clone() });
                ctx.effects.push(Effect::Reauthenticate { spi, tunnel, trouble });
            }
            let (tunnel, peer) = (Some(self.policy.id), core.flow.remote);
            ctx.tell(Event::Failure { tunnel, peer, reason, detail, retry_in: Some(wait) });
        }
        Next::Stay
    }

    /// Answers the peer's request for a new IKE SA; collisions with exchanges of ours were ruled out before, except
    /// with our own rekey of the IKE SA.
    pub(super) fn on_rekey_ike(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        offer: &Payloads,
        progress: &mut Progress,
    ) -> Handled {
        let refuse = |kind, data| Handled::Reply(Reply::notify(Notify::new(kind, data)));
        if self.their_rekey.is_some() {
            // Its first one waits for the answer to ours; there is one successor, not two.
            return refuse(NotifyType::TEMPORARY_FAILURE, vec![]);
        }
        if let Some(promise) = progress.take_promise() {
            return self.keep_promise_of_ike(core, ctx, promise);
        }
        let (Some(proposals), Some(ke), Some(ni)) = (&offer.sa, &offer.ke, &offer.nonce) else {
            return refuse(NotifyType::INVALID_SYNTAX, vec![]);
        };
        // A peer that offers other PRFs only gets one of them.
        let kept = self.for_successor();
        let chosen = [kept.as_slice(), self.policy.proposals.as_slice()];
        let chosen =
            chosen.into_iter().find_map(|ours| Some((ours, policy::choose_ike(ours, proposals, 8)?)));
        let Some((ours, (suite, number, peer_spi))) = chosen else {
            let (tunnel, peer) = (Some(self.policy.id), core.flow.remote);
            let reason = FailureReason::NoProposalChosen;
            let differs = mismatch::words(&mismatch::ike(&self.policy.proposals, proposals));
            let detail = format!("{peer} offers no IKE proposal that we accept for the rekey; {differs}");
            let draft = Draft::authenticated(Stage::RekeyIke, Role::Responder, peer);
            let draft = draft.ike_refused(&self.policy.proposals, proposals);
            ctx.tell(draft.refused(self.policy.id, Party::We, reason, &detail));
            ctx.tell(Event::Failure { tunnel, peer, reason, detail, retry_in: None });
            return refuse(NotifyType::NO_PROPOSAL_CHOSEN, vec![]);
        };
        if ke.group != suite.group.transform() {
            return refuse(NotifyType::INVALID_KE_PAYLOAD, suite.group.transform().to_be_bytes().to_vec());
        }
        let peer_spi = <[u8; 8]>::try_from(peer_spi.as_slice()).map_or(0, u64::from_be_bytes);
        if peer_spi == 0 {
            return refuse(NotifyType::INVALID_SYNTAX, vec![]);
        }
        let Some(worked) = progress.take_worked() else {
            return Handled::Work(suite.group, Work::Answer(suite.group, ke.data.clone()));
        };
        let (public, shared) = match worked.made {
            // The configuration has changed in the meantime.
            _ if worked.group != suite.group => return refuse(NotifyType::TEMPORARY_FAILURE, vec![]),
            Ok(made) => made,
            Err(e) if e.blames_peer() => return refuse(NotifyType::INVALID_SYNTAX, vec![]),
            Err(_) => return refuse(NotifyType::TEMPORARY_FAILURE, vec![]),
        };
        let draft = Draft::authenticated(Stage::RekeyIke, Role::Responder, core.flow.remote);
        let account = draft.ike_chosen(ours, Some(proposals), suite);
        let successor = Successor {
            spi: ctx.spis.new_ike(ctx.random),
            peer_spi,
            suite,
            nonces: (ni.clone(), ctx.nonce()),
            account,
        };
        // <- CREATE_CHILD_SA { SA, Nr, KEr, [N(ADDITIONAL_KEY_EXCHANGE)] }
        let payloads = Payloads {
            sa: Some(policy::answer_ike(suite, number, &successor.spi.to_be_bytes())),
            ke: Some(KeyExchange { group: suite.group.transform(), data: public }),
            nonce: Some(successor.nonces.1.clone()),
            ..Payloads::default()
        };
        if !suite.additional.is_empty() {
            return self.promise(ctx, offer, shared, Promised::Ike(successor), payloads);
        }
        self.make_successor(core, ctx, successor, &shared.into(), payloads)
    }

    // <- IKE_FOLLOWUP_KE { KEr(n) }
    fn keep_promise_of_ike(&mut self, core: &Core, ctx: &mut Ctx<'_>, promise: Promise) -> Handled {
        let Promise { secrets, made, last, .. } = promise;
        let Promised::Ike(successor) = made else { return Handled::Reply(busy()) };
        self.make_successor(core, ctx, successor, &secrets, Payloads { ke: last, ..Payloads::default() })
    }

    /// Makes the new IKE SA of the peer's request, and answers it.
    fn make_successor(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        successor: Successor,
        secrets: &Secrets,
        payloads: Payloads,
    ) -> Handled {
        let Successor { spi, peer_spi, suite, nonces: (ni, nr), account } = successor;
        let seed = SkeySeed::rekeyed(self.suite.prf, &self.sk_d, secrets, &ni, &nr);
        let spis = (peer_spi, spi.value());
        let Some(sa) = self.successor(core, ctx, spi, Role::Responder, suite, spis, &seed, (&ni, &nr)) else {
            ctx.spis.ike.remove(&spi);
            return Handled::Reply(busy());
        };
        ctx.tell(account.agreed(self.policy.id));
        let mut reply = Reply::with(payloads);
        if matches!(self.window.outstanding.as_ref().map(|o| &o.request), Some(Request::RekeyIke(_))) {
            self.their_rekey = Some(Box::new(RekeyedByPeer { sa, nonces: (ni, nr) }));
        } else {
            self.hand_over(ctx, sa);
            reply.next = Next::Rekeyed;
        }
        Handled::Reply(reply)
    }

    /// The peer deletes the old SA while our rekey of it is unanswered, and its own went through: it never saw ours.
    pub(super) fn adopt_their_rekey(&mut self, ctx: &mut Ctx<'_>) -> bool {
        match self.their_rekey.take() {
            Some(theirs) => {
                self.hand_over(ctx, theirs.sa);
                true
            }
            None => false,
        }
    }
}

/// Puts a new SA that lost the contest into the state that waits for its deletion.
fn redundant(mut sa: IkeSa, ctx: &mut Ctx<'_>) -> IkeSa {
    let until = ctx.now.mono + REKEYED_LIFETIME;
    sa.with_live(ctx, |live, _, _, _| {
        live.expire_at = until;
        live.rekey_at = until;
        Next::Rekeyed
    });
    sa
}
