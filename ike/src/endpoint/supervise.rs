//! Keeping tunnels up: commands, first packets, retries, and what becomes of a tunnel when an IKE SA of it begins or ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cygnet_model::plane::Acquire;
use cygnet_model::{IkeSpi, Now, TunnelId};

use super::Endpoint;
use super::policies::is_unfit;
use crate::error::{DropReason, FailureReason, Trouble};
use crate::io::{Action, Actions, Command, Ending, Event, Flow, Role};
use crate::policy::{Start, TunnelPolicy};
use crate::sa::{self, Closed, IkeSa, Next, Outstanding, State, Task};

/// First and longest wait between new IKE SAs that are to replace one whose keys cannot be renewed.
const RENEWAL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Most established IKE SAs of one tunnel: two that both ends made at once, and what each is to replace.
const MAX_IKE_SAS: usize = 4;

/// How long an IKE SA stays when a newer one has its child.
const RETIRE: Duration = Duration::from_secs(5);

impl Endpoint {
    pub(super) fn on_command(&mut self, now: Now, command: Command, out: &mut Actions) {
        match command {
            Command::Up(id) => self.up(now, id, out),
            Command::Down(id) => self.down(now, id, out),
            // An IKE SA that goes, since a newer one has its children, makes no new keys.
            Command::RekeyChildren(id) => self.each_established(now, id, out, |live, _, _, _| {
                if live.retire_at.is_none() {
                    live.renew_children(|_| true);
                }
                Next::Stay
            }),
            Command::RekeyIke(id) => self.each_established(now, id, out, |live, _, _, _| {
                if live.retire_at.is_none() {
                    live.enqueue(Task::RekeyIke { group: None });
                }
                Next::Stay
            }),
            Command::Reset(id) => {
                let spis: Vec<IkeSpi> = self.by_tunnel.get(&id).into_iter().flatten().copied().collect();
                for spi in spis {
                    self.with_sa(now, spi, out, |sa, ctx| sa.drop_silently(ctx, Ending::Local));
                }
                if self.supervision.get(&id).is_some_and(|s| s.wanted) {
                    self.initiate(now, id, sa::Begin::default(), out);
                    if let Some(mut s) = self.supervision.get_mut(&id) {
                        s.retry_at = s.retry_at.filter(|_| s.failures > 0);
                    }
                }
            }
            Command::Shutdown => {
                for id in self.endings.drain() {
                    self.take_down(now, id, out);
                }
                let ids: Vec<TunnelId> = self.policies.keys().copied().collect();
                for id in ids {
                    self.hold(id);
                    let mut sas = self.by_tunnel.get(&id).into_iter().flatten();
                    if let Some(sa) = sas.next().and_then(|spi| self.sas.get(spi)) {
                        self.endings.wait(sa.core.flow.remote.ip(), id);
                    }
                }
                // Strangers and refusals need no farewell.
                let rest: Vec<IkeSpi> =
                    self.sas.iter().filter(|(_, sa)| sa.live().is_none()).map(|(spi, _)| *spi).collect();
                for spi in rest {
                    self.with_sa(now, spi, out, |sa, ctx| sa.drop_silently(ctx, Ending::Local));
                }
            }
        }
    }

    pub(super) fn on_acquire(&mut self, now: Now, acquire: Acquire, out: &mut Actions) {
        let Acquire { child, packet } = acquire;
        let Some(mut s) = self.supervision.get_mut(&child.tunnel) else { return };
        // While a tunnel waits for its next try, packets do not hurry it; nor do they undo a command.
        if s.retry_at.is_some() || self.held.contains(&child.tunnel) {
            return;
        }
        s.wanted = true;
        drop(s);
        let of = self.parts.configured(child);
        let packet = packet.map(|packet| (of, packet));
        self.initiate(now, child.tunnel, sa::Begin { packet, ..sa::Begin::default() }, out);
        self.each_established(now, child.tunnel, out, |live, _, ctx, _| {
            let waits = live
                .delayed
                .iter()
                .any(|(_, t)| matches!(t, Task::CreateChild { index, .. } if *index == of));
            if !waits && !live.is_patient(ctx, of) {
                live.packets.extend(packet);
                live.seek(of);
            }
            Next::Stay
        });
    }

    pub(super) fn up(&mut self, now: Now, id: TunnelId, out: &mut Actions) {
        let Some(mut s) = self.supervision.get_mut(&id) else { return };
        (s.wanted, s.failures, s.retry_at) = (true, 0, None);
        drop(s);
        self.held.remove(&id);
        self.initiate(now, id, sa::Begin::default(), out);
        self.each_established(now, id, out, |live, _, _, _| {
            for index in live.configured() {
                live.seek(index);
            }
            Next::Stay
        });
    }

    pub(super) fn down(&mut self, now: Now, id: TunnelId, out: &mut Actions) {
        self.hold(id);
        self.take_down(now, id, out);
    }

    /// Nothing more is begun for a tunnel.
    fn hold(&mut self, id: TunnelId) {
        if let Some(mut s) = self.supervision.get_mut(&id) {
            (s.wanted, s.retry_at) = (false, None);
            self.held.insert(id);
        }
    }

    fn take_down(&mut self, now: Now, id: TunnelId, out: &mut Actions) {
        let spis: Vec<IkeSpi> = self.by_tunnel.get(&id).into_iter().flatten().copied().collect();
        for spi in spis {
            self.with_sa(now, spi, out, |sa, ctx| sa.take_down(ctx));
        }
    }

    /// Deletes tunnels at the end, as many as have a place.
    pub(super) fn end_waiting(&mut self, now: Now, out: &mut Actions) {
        while let Some(id) = self.endings.next(now.mono) {
            let spis: Vec<IkeSpi> = self.by_tunnel.get(&id).into_iter().flatten().copied().collect();
            for sa in spis.iter().filter_map(|spi| self.sas.get(spi)) {
                self.endings.enter(sa.core.spi, sa.core.flow.remote.ip(), now.mono);
            }
            self.take_down(now, id, out);
        }
    }

    /// The addresses of a tunnel have changed, ours or the peer's.
    ///
    /// What leaves from an address that we have lost, or waits for an answer of one that is not the peer's any more, is
    /// given up and begun anew. An established SA with an address that the peer may have left is asked whether it lives;
    /// see [`Endpoint::look_elsewhere`] for what follows if it does not.
    pub(super) fn follow_addresses(&mut self, now: Now, id: TunnelId, out: &mut Actions) {
        let Some(policy) = self.policies.get(&id).cloned() else { return };
        let spis: Vec<IkeSpi> = self.by_tunnel.get(&id).into_iter().flatten().copied().collect();
        for spi in spis {
            self.with_sa(now, spi, out, |sa, ctx| {
                let here = policy.local.contains(&sa.core.flow.local.ip());
                let left = has_left(sa, &policy);
                match sa.state {
                    _ if !here => sa.drop_silently(ctx, Ending::Local),
                    _ if left && sa.is_beginning() => sa.drop_silently(ctx, Ending::Local),
                    State::Established(_) if left => sa.with_live(ctx, |live, _, _, _| {
                        live.enqueue(Task::Liveness);
                        Next::Stay
                    }),
                    _ => {}
                }
            });
        }
        if let Some(mut s) = self.supervision.get_mut(&id)
            && s.wanted
        {
            // What was wrong with other addresses says nothing of these.
            (s.failures, s.retry_at) = (0, Some(now.mono));
        }
    }

    /// If an established SA gets no answer from an address that is not the peer's any more, a new one is begun with the
    /// address that is, while the old one goes on trying.
    pub(super) fn look_elsewhere(&mut self, now: Now, spi: IkeSpi, out: &mut Actions) {
        let Some(sa) = self.sas.get(&spi) else { return };
        let State::Established(live) = &sa.state else { return };
        let unanswered = live.window.outstanding.as_ref().is_some_and(Outstanding::is_unanswered);
        let id = live.policy.id;
        let Some(policy) = self.policies.get(&id).filter(|p| has_left(sa, p)).cloned() else { return };
        let wanted = self.supervision.get(&id).is_some_and(|s| s.wanted && s.retry_at.is_none());
        let others = self
            .by_tunnel
            .get(&id)
            .into_iter()
            .flatten()
            .filter(|other| **other != spi)
            .filter_map(|other| self.sas.get(other))
            .any(|sa| policy.remote.contains(&sa.core.flow.remote.ip()));
        if unanswered && wanted && !others {
            self.begin(now, &policy, sa::Begin::default(), out);
        }
    }

    /// Begins an IKE SA for a tunnel unless one exists or is being negotiated by us, or an address is not known yet.
    pub(super) fn initiate(&mut self, now: Now, id: TunnelId, begin: sa::Begin, out: &mut Actions) {
        let Some(policy) = self.policies.get(&id).cloned() else { return };
        // Whoever looks for the addresses says why there are none, and brings them by `set_policies`.
        if self.is_served(id) || policy.local.is_empty() || policy.remote.is_empty() {
            return;
        }
        self.begin(now, &policy, begin, out);
    }

    fn begin(&mut self, now: Now, policy: &Arc<TunnelPolicy>, begin: sa::Begin, out: &mut Actions) {
        let id = policy.id;
        let mut effects = Vec::new();
        match sa::initiate(&mut self.context(now, out, &mut effects), policy, begin) {
            Ok(sa) => {
                self.beginnings.enter(sa.core.spi, sa.core.flow.remote.ip(), now.mono);
                self.put(now, sa, out);
            }
            Err(reason) => {
                let peer = (policy.local.first().copied().unwrap_or([0, 0, 0, 0].into()), 0).into();
                let detail = format!("cannot begin a negotiation: {reason}");
                self.failed(now, id, peer, reason, detail, out);
            }
        }
    }

    /// Begins an IKE SA beside the one named, whose keys, or whose child's keys, the peer refuses to renew. When it is
    /// established the old one is retired (see [`Endpoint::deduplicate`]). Refusals in a row lead to ever rarer tries.
    pub(super) fn reauthenticate(
        &mut self,
        now: Now,
        old: IkeSpi,
        tunnel: TunnelId,
        trouble: Trouble,
        out: &mut Actions,
    ) {
        if self.policies.get(&tunnel).is_some() {
            self.learn(tunnel, trouble, out);
            self.replace(now, old, tunnel, out);
        }
    }

    /// Begins an IKE SA beside one that is outdated.
    pub(super) fn replace(&mut self, now: Now, old: IkeSpi, tunnel: TunnelId, out: &mut Actions) {
        let Some(policy) = self.policies.get(&tunnel).cloned() else { return };
        let newer = |sa: &IkeSa| match &sa.state {
            _ if sa.is_beginning() => true,
            State::Established(live) => sa.core.spi != old && !live.outdated,
            _ => false,
        };
        let spis = self.by_tunnel.get(&tunnel).into_iter().flatten();
        if spis.filter_map(|spi| self.sas.get(spi)).any(newer) {
            // One that is up already has not been told yet that it takes this one's place.
            return self.deduplicate(now, tunnel, out);
        }
        let Some(mut s) = self.supervision.get_mut(&tunnel) else { return };
        if self.held.contains(&tunnel) || now.mono < s.renewals.1 {
            return;
        }
        let wait = RENEWAL.0.saturating_mul(1 << s.renewals.0.min(10)).min(RENEWAL.1);
        s.renewals = (s.renewals.0.saturating_add(1), now.mono + wait);
        drop(s);
        let mut effects = Vec::new();
        let mut ctx = self.context(now, out, &mut effects);
        if let Ok(sa) = sa::initiate(&mut ctx, &policy, sa::Begin::default()) {
            self.put(now, sa, out);
        }
    }

    /// Keeps what will need attention, and tells it once.
    pub(super) fn learn(&mut self, tunnel: TunnelId, trouble: Trouble, out: &mut Actions) {
        let Some(mut s) = self.supervision.get_mut(&tunnel) else { return };
        if s.lesson.as_ref() != Some(&trouble) {
            s.lesson = Some(trouble.clone());
            out.push(Action::Tell(Event::Lesson { tunnel, trouble }));
        }
    }

    /// Whether a tunnel has an IKE SA, or we are negotiating one. Those on their way out do not count, nor do those that
    /// the configuration has left behind.
    pub(super) fn is_served(&self, id: TunnelId) -> bool {
        self.by_tunnel
            .get(&id)
            .into_iter()
            .flatten()
            .filter_map(|spi| self.sas.get(spi))
            .filter(|sa| self.policies.get(&id).is_none_or(|policy| !is_unfit(sa, policy)))
            .any(|sa| sa.is_beginning() || matches!(sa.state, State::Established(_)))
    }

    /// Whether packets ask for a tunnel by themselves when there is any need of it. While an IKE SA that the configuration has
    /// left behind carries them, none does.
    fn is_asked_for(&self, id: TunnelId) -> bool {
        let on_demand = self.policies.get(&id).is_some_and(|p| p.start == Start::OnDemand);
        on_demand && self.established_of(id).next().is_none()
    }

    /// Notes a failure and when the tunnel is tried again.
    pub(super) fn failed(
        &mut self,
        now: Now,
        id: TunnelId,
        peer: SocketAddr,
        reason: FailureReason,
        detail: String,
        out: &mut Actions,
    ) {
        let (first, longest) = self.config.retry;
        let begins = !self.is_served(id) && !self.is_asked_for(id);
        let mut retry_in = None;
        if let Some(mut s) = self.supervision.get_mut(&id) {
            let wait = first.saturating_mul(1 << s.failures.min(10)).min(longest);
            s.failures = s.failures.saturating_add(1);
            if s.wanted && begins {
                // 75 % to 125 %, so that many gateways do not come at once.
                let spread = self.random.below(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) / 2 + 1);
                let wait = wait.mul_f64(0.75) + Duration::from_millis(spread);
                s.retry_at = Some(now.mono + wait);
                retry_in = Some(wait);
            }
        }
        out.push(Action::Tell(Event::Failure { tunnel: Some(id), peer, reason, detail, retry_in }));
    }

    pub(super) fn on_closed(&mut self, now: Now, spi: IkeSpi, flow: Flow, closed: Closed, out: &mut Actions) {
        let Some(policy) = closed.policy else {
            if let Ending::Failed(reason) = closed.ending {
                let (peer, detail) = (flow.remote, closed.detail);
                let event = Event::Failure { tunnel: None, peer, reason, detail, retry_in: None };
                out.push(Action::Tell(event));
            }
            return;
        };
        let tunnel = policy.id;
        if closed.ending == Ending::Failed(FailureReason::AuthenticationFailed)
            && !closed.was_up
            && !policy.other_psks.is_empty()
        {
            *self.refused_psks.entry(tunnel).or_default() += 1;
        }
        if closed.was_up {
            out.push(Action::Tell(Event::IkeDown { tunnel, spi, ending: closed.ending }));
        }
        self.keep_one(now, tunnel, out);
        match closed.ending {
            Ending::Failed(reason) => self.failed(now, tunnel, flow.remote, reason, closed.detail, out),
            Ending::Peer => {
                // What waits for traffic goes on waiting for it; "up" said by command is as good as "active".
                let begins = !self.is_served(tunnel) && !self.is_asked_for(tunnel);
                let wait = self.config.retry.0;
                let spread = self.random.below(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) + 1);
                if let Some(mut s) = self.supervision.get_mut(&tunnel)
                    && s.wanted
                    && begins
                {
                    s.retry_at = Some(now.mono + wait + Duration::from_millis(spread));
                }
            }
            // One that was superfluous goes, and in the same moment the peer ends the one that was to stay.
            Ending::Local | Ending::Replaced => {
                let lost = !self.is_served(tunnel) && !self.is_asked_for(tunnel);
                if let Some(mut s) = self.supervision.get_mut(&tunnel)
                    && s.wanted
                    && lost
                {
                    s.retry_at.get_or_insert(now.mono + self.config.retry.0);
                }
            }
        }
    }

    /// A new IKE SA was authenticated: what becomes of older ones of the same tunnel?
    pub(super) fn on_established(
        &mut self,
        now: Now,
        spi: IkeSpi,
        tunnel: TunnelId,
        initial_contact: bool,
        out: &mut Actions,
    ) {
        if let Some(mut s) = self.supervision.get_mut(&tunnel) {
            (s.failures, s.retry_at) = (0, None);
        }
        let Some(created) = self.sas.get(&spi).map(|sa| sa.core.created) else { return };
        if initial_contact {
            // "The only IKE SA between these identities" (RFC 7296 §2.4): said before this one began, so it holds for
            // those that were up by then and not for one that was negotiated at the same time.
            let before = |live: &sa::Live| live.established < created;
            let old: Vec<IkeSpi> = self
                .established_of(tunnel)
                .filter(|(s, sa)| *s != spi && sa.live().is_some_and(before))
                .map(|(s, _)| s)
                .collect();
            for other in old {
                self.with_sa(now, other, out, |sa, ctx| sa.drop_silently(ctx, Ending::Replaced));
            }
        }
        self.hold_unseen(now, spi, tunnel, out);
        self.deduplicate(now, tunnel, out);
        self.make_room(now, spi, tunnel, out);
    }

    /// A peer that begins another IKE SA may never have got our answer about the one before: that is not sent on because its
    /// time has come, but only if the peer shows that it has it.
    fn hold_unseen(&mut self, now: Now, newest: IkeSpi, tunnel: TunnelId, out: &mut Actions) {
        let answered = |sa: &IkeSa| sa.core.role == Role::Responder;
        if !self.sas.get(&newest).is_some_and(answered) {
            return;
        }
        let before = self.established_of(tunnel).filter(|(spi, sa)| *spi != newest && answered(sa));
        let before: Vec<IkeSpi> = before.map(|(spi, _)| spi).collect();
        let all = self.by_tunnel.get(&tunnel).into_iter().flatten().filter_map(|spi| self.sas.get(spi));
        // One that the peer asked for in a rekey, and then neither spoke on nor deleted the old one for: it could not follow
        // our answer, and this one is to take its place.
        let unfinished = all.into_iter().any(|sa| matches!(sa.state, State::Rekeyed(_)));
        for spi in before {
            self.with_sa(now, spi, out, |sa, ctx| {
                sa.with_live(ctx, |live, _, ctx, _| {
                    if unfinished && live.is_unheard() {
                        live.retire_at.get_or_insert(ctx.now.mono + RETIRE);
                    }
                    live.children.iter_mut().filter(|c| c.unseen).for_each(|c| c.switch_at = None);
                    Next::Stay
                });
            });
        }
    }

    /// Ends the oldest IKE SAs of a tunnel beside the newest: a peer that makes one after the other has lost them, or means
    /// no good.
    fn make_room(&mut self, now: Now, newest: IkeSpi, tunnel: TunnelId, out: &mut Actions) {
        let mut others: Vec<_> = self
            .established_of(tunnel)
            .filter(|(spi, _)| *spi != newest)
            .filter_map(|(spi, sa)| Some((sa.live()?.established, spi, sa.core.flow.remote)))
            .collect();
        others.sort_unstable();
        let surplus = others.len().saturating_sub(MAX_IKE_SAS - 1);
        for (_, spi, peer) in others.into_iter().take(surplus) {
            out.push(Action::Tell(Event::Dropped { reason: DropReason::TooManyIkeSas, peer }));
            self.with_sa(now, spi, out, |sa, ctx| sa.take_down(ctx));
        }
    }

    /// The established SAs of a tunnel.
    pub(super) fn established_of(&self, tunnel: TunnelId) -> impl Iterator<Item = (IkeSpi, &IkeSa)> {
        let spis = self.by_tunnel.get(&tunnel).into_iter().flatten();
        spis.filter_map(|spi| Some((*spi, self.sas.get(spi)?)))
            .filter(|(_, sa)| matches!(sa.state, State::Established(_)))
    }

    /// When both ends initiated at once there are two IKE SAs: the one with the highest SPIs stays. Both ends come to
    /// this verdict, and who initiated a superfluous one deletes it.
    ///
    /// One that is outdated, because its keys cannot be renewed, because the peer has left its address or because the
    /// configuration has other identities now, goes in any case: a moment later, so that both ends use the new one by then.
    pub(super) fn deduplicate(&mut self, now: Now, tunnel: TunnelId, out: &mut Actions) {
        let policy = self.policies.get(&tunnel).cloned();
        let left = |sa: &IkeSa| policy.as_ref().is_some_and(|p| has_left(sa, p));
        let unfit = |sa: &IkeSa| policy.as_ref().is_some_and(|p| is_unfit(sa, p));
        let outdated = |sa: &IkeSa| left(sa) || unfit(sa) || sa.live().is_some_and(|l| l.outdated);
        let first = policy.as_ref().and_then(|p| p.children.first()).map_or(0, |(index, _)| index);
        let first = |sa: &IkeSa| sa.live().is_some_and(|l| l.has_child(first));
        let fresh: Vec<bool> =
            self.established_of(tunnel).filter(|(_, sa)| !outdated(sa)).map(|(_, sa)| first(sa)).collect();
        // One that has not got the child yet does not take its place.
        let goes = |sa: &IkeSa| outdated(sa) && fresh.iter().any(|has| *has || !first(sa));
        let old: Vec<IkeSpi> =
            self.established_of(tunnel).filter(|(_, sa)| goes(sa)).map(|(spi, _)| spi).collect();
        self.retire(now, &old, out);
        let spis = |sa: &IkeSa| sa.live().map(|l| (l.channel.spi_i, l.channel.spi_r));
        // One that goes is no reason for others to go.
        let current = || self.established_of(tunnel).filter(|(_, sa)| !outdated(sa) && !retires(sa));
        let Some((best, begun)) = current().filter_map(|(_, sa)| Some((spis(sa)?, sa.core.created))).max()
        else {
            return;
        };
        let old: Vec<IkeSpi> = current()
            .filter(|(_, sa)| sa.core.role == Role::Initiator && spis(sa).is_some_and(|s| s < best))
            .filter(|(_, sa)| sa.live().is_some_and(|live| live.established < begun))
            .map(|(spi, _)| spi)
            .collect();
        self.retire(now, &old, out);
        let losers: Vec<IkeSpi> = self
            .established_of(tunnel)
            .filter(|(_, sa)| sa.core.role == Role::Initiator && spis(sa).is_some_and(|s| s < best))
            .filter(|(spi, sa)| !outdated(sa) && !retires(sa) && !old.contains(spi))
            .map(|(spi, _)| spi)
            .collect();
        for loser in losers {
            self.with_sa(now, loser, out, |sa, ctx| {
                sa.with_live(ctx, |live, _, _, _| {
                    live.queue.push_front(Task::DeleteIke);
                    Next::Deleting
                });
            });
        }
    }

    /// IKE SAs that were about to go stay if what was to carry the tunnel in their place has ended; of several, one does.
    fn keep_one(&mut self, now: Now, tunnel: TunnelId, out: &mut Actions) {
        if self.established_of(tunnel).any(|(_, sa)| !retires(sa)) {
            return;
        }
        let all: Vec<IkeSpi> = self.established_of(tunnel).map(|(spi, _)| spi).collect();
        for spi in &all {
            self.with_sa(now, *spi, out, |sa, ctx| {
                sa.with_live(ctx, |live, _, _, _| {
                    live.retire_at = None;
                    Next::Stay
                });
            });
        }
        if all.len() > 1 {
            self.deduplicate(now, tunnel, out);
        }
    }

    /// Lets IKE SAs go a moment later.
    fn retire(&mut self, now: Now, old: &[IkeSpi], out: &mut Actions) {
        for spi in old {
            self.with_sa(now, *spi, out, |sa, ctx| {
                sa.with_live(ctx, |live, _, ctx, _| {
                    live.retire_at.get_or_insert(ctx.now.mono + RETIRE);
                    Next::Stay
                });
            });
        }
    }
}

/// Whether an established SA is about to go, since another one has taken its place.
fn retires(sa: &IkeSa) -> bool {
    sa.live().is_some_and(|live| live.retire_at.is_some())
}

/// Whether an SA goes to an address that was the peer's when it began and is not any more. A peer that was followed
/// through a NAT to an address that nobody has configured has not left.
fn has_left(sa: &IkeSa, now: &TunnelPolicy) -> bool {
    let remote = sa.core.flow.remote.ip();
    let Some(then) = sa.policy() else { return false };
    then.remote.contains(&remote) && !now.remote.is_empty() && !now.remote.contains(&remote)
}
