//! IKE SAs that leave the process, and come back in the next one. Decision 0110 says what is kept and why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cygnet_model::selector::within;
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, IkeSpi, Now, SecretBytes, Spi, TunnelId};

use super::Endpoint;
use crate::io::{Action, Actions, Event};
use crate::policy::{Policies, TunnelPolicy};
use crate::sa::{Child, ChildState, Ctx, IkeSa, Kept, Live, Next, State, Task, is_another_peer, show_policy};
use crate::saved::{Change, Reason, Refused, Saved};

/// Within this time after a restart each peer is asked whether it still knows what we know. Not all of them at once.
const ASK: Duration = Duration::from_secs(3);

/// What is kept at this moment.
#[derive(Default)]
pub(super) struct Keeping {
    /// IKE SAs that may have changed since.
    dirty: BTreeSet<IkeSpi>,
    /// Whose it is, and SHA-256 of what was given out last: as good as the octets, and nothing to be kept secret.
    given: BTreeMap<IkeSpi, (TunnelId, [u8; 32])>,
    /// The kept form of each tunnel's policy, which is the same most of the time. Of what is configured it stays while the
    /// tunnel is down.
    policies: BTreeMap<TunnelId, (Arc<TunnelPolicy>, SecretBytes)>,
}

impl Keeping {
    /// An SA was handled. Half-open ones are not kept.
    pub(super) fn touch(&mut self, sa: &IkeSa) {
        let spi = sa.core.spi;
        if sa.live().is_some() || self.given.contains_key(&spi) {
            self.dirty.insert(spi);
        } else {
            // It ended before anybody asked.
            self.dirty.remove(&spi);
        }
    }

    /// These policies are configured now. What was made of others goes, with their keys; where they are in use, it is made
    /// anew.
    pub(super) fn follow(&mut self, now: &Policies) {
        self.policies.retain(|id, (policy, _)| now.get(id).is_some_and(|now| Arc::ptr_eq(now, policy)));
    }

    /// A tunnel is down: of its policy stays only what is still configured.
    fn rest(&mut self, tunnel: TunnelId, now: &Policies) {
        let made_of = self.policies.get(&tunnel).map(|(policy, _)| policy);
        if !made_of.zip(now.get(&tunnel)).is_some_and(|(policy, now)| Arc::ptr_eq(policy, now)) {
            self.policies.remove(&tunnel);
        }
    }

    fn policy(&mut self, policy: &Arc<TunnelPolicy>) -> &[u8] {
        // Without the room that writing left.
        let shown = || (Arc::clone(policy), show_policy(policy).duplicate());
        let entry = self.policies.entry(policy.id).or_insert_with(shown);
        if !Arc::ptr_eq(&entry.0, policy) {
            *entry = shown();
        }
        entry.1.expose()
    }
}

impl Endpoint {
    /// The IKE SAs whose kept form is another one than at the last call. To be kept before the actions of the same
    /// [`Endpoint::handle`] are performed, so that what is kept is never behind what the peer has seen.
    ///
    /// What cannot be kept now must be removed and not left as it was: see [`Endpoint::restore`].
    ///
    /// Costs nothing for SAs that were not handled since, and some microseconds for those that were.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for spi in std::mem::take(&mut self.keeping.dirty) {
            let sa = self.sas.get(&spi);
            let saved = sa.and_then(|sa| sa.keep(self.keeping.policy(&sa.live()?.policy)));
            let Some(saved) = saved else {
                if let Some((tunnel, _)) = self.keeping.given.remove(&spi) {
                    changes.push(Change { spi, saved: None });
                    if self.by_tunnel.get(&tunnel).is_none_or(BTreeSet::is_empty) {
                        self.keeping.rest(tunnel, &self.policies);
                    }
                }
                continue;
            };
            let Some(tunnel) = sa.and_then(IkeSa::tunnel) else { continue };
            let given = (tunnel, digest(&saved));
            if self.keeping.given.insert(spi, given) != Some(given) {
                changes.push(Change { spi, saved: Some(saved) });
            }
        }
        changes
    }

    /// Takes up what an earlier process left, in place of the first [`Endpoint::set_policies`]. What is kept of the SAs has
    /// to be of the same boot of the machine, whose clock their times are of.
    ///
    /// `present` are the ESP SAs that the data plane took up again, with their sequence numbers. With `renew` the plane does
    /// not know exactly what it had received, and every pair gets new keys soon.
    ///
    /// SAs that are older than what the peer knows do no harm to keys, and are found out: by the first exchange, or by the
    /// peer's. The one thing that relies on the order of writing is an outbound SA that was about to be taken into use: it
    /// is installed if it is not `present`.
    ///
    /// Tunnels that the data plane holds open without an SA are the caller's to close, before or after.
    ///
    /// The changes are to be taken and kept before the actions are performed, as ever. Returns what was not taken up; the
    /// peer is told of it where that is possible.
    pub fn restore(
        &mut self,
        now: Now,
        policies: Vec<TunnelPolicy>,
        saved: Vec<Saved>,
        present: &BTreeSet<SaId>,
        renew: bool,
        out: &mut Actions,
    ) -> Vec<Refused> {
        let before = out.len();
        self.set_policies(now, policies, out);
        let mut refused = Vec::new();
        let mut back = Vec::new();
        let mut touched: BTreeSet<ChildId> = present.iter().map(|sa| sa.child).collect();
        let mut all: Vec<Kept> = saved.into_iter().map(Saved::into_kept).collect();
        // Of several pairs for one child the newest is used, as it was.
        all.sort_by_key(|kept| (kept.established, kept.core.spi));
        for kept in all {
            let (tunnel, spi) = (kept.policy.id, kept.core.spi);
            touched.extend(kept.children.iter().map(|c| c.id));
            // Whatever becomes of it, what was kept under its name has to go.
            self.keeping.given.entry(spi).or_insert((tunnel, [0; 32]));
            self.keeping.dirty.insert(spi);
            match self.take_up(now, kept, present, out) {
                Ok(()) => back.push(spi),
                Err(reason) => refused.push(Refused { tunnel, spi, reason }),
            }
        }
        for sa in present.iter().filter(|sa| !self.installed.get(&sa.child).is_some_and(|s| s.contains(sa))) {
            out.push(Action::RemoveSa(*sa));
        }
        for spi in back {
            self.go_on(now, spi, renew, out);
        }
        self.close_tunnels(now, before, out);
        for child in touched {
            if !self.open.contains(&child) {
                out.push(Action::CloseTunnel(child));
            }
            if !self.installed.contains_key(&child) {
                self.parts.release(child);
            }
        }
        let served: Vec<TunnelId> = self.policies.keys().copied().filter(|id| self.is_served(*id)).collect();
        for id in served {
            if let Some(mut s) = self.supervision.get_mut(&id) {
                s.retry_at = None;
            }
        }
        refused
    }

    /// Puts one IKE SA into the tables. What fits the configuration no more goes on with the one that it had, and ends.
    fn take_up(
        &mut self,
        now: Now,
        kept: Kept,
        present: &BTreeSet<SaId>,
        out: &mut Actions,
    ) -> Result<(), Reason> {
        if now.mono >= kept.expire_at {
            return Err(Reason::Expired);
        }
        let (ike, esp) = kept.spis();
        let distinct: (BTreeSet<&IkeSpi>, BTreeSet<&Spi>) = (ike.iter().collect(), esp.iter().collect());
        if (distinct.0.len(), distinct.1.len()) != (ike.len(), esp.len())
            || ike.iter().any(|spi| self.spis.ike.contains(spi) || self.sas.contains_key(spi))
            || esp.iter().any(|spi| self.spis.esp.contains(spi))
        {
            return Err(Reason::Duplicate);
        }
        let id = kept.policy.id;
        let new = self.policies.get(&id).filter(|new| new.name == kept.policy.name).cloned();
        let fits = match &new {
            None => Err(Reason::NoTunnel),
            Some(new) if is_another_peer(&kept.policy, new) => Err(Reason::OtherPeer),
            Some(_) => Ok(()),
        };
        let policy = match (new, fits) {
            (Some(new), Ok(())) => {
                let was = kept.policy.with_the_rest_of(&new);
                if was == *new { new } else { Arc::new(was) }
            }
            _ => {
                let local = vec![kept.core.flow.local.ip()];
                Arc::new(TunnelPolicy { local, ..kept.policy.with_remote(kept.policy.remote.clone()) })
            }
        };
        let spi = kept.core.spi;
        let Some(mut sa) = kept.resume(now, &policy, self.random.as_mut()) else { return Err(Reason::Keys) };
        self.spis.ike.extend(ike);
        self.spis.esp.extend(esp);
        self.place_children(&mut sa, present, fits.is_ok());
        self.put(now, sa, out);
        if fits.is_err() {
            self.with_sa(now, spi, out, |sa, ctx| sa.take_down(ctx));
        }
        fits
    }

    /// Notes the parts and the installed SAs of the children. What has no place among them is left out. Of an SA that does not
    /// go on nothing more is taken into use: its tunnels are closed.
    fn place_children(&mut self, sa: &mut IkeSa, present: &BTreeSet<SaId>, goes_on: bool) {
        let (State::Established(live) | State::Rekeyed(live) | State::Deleting(live)) = &mut sa.state else {
            return;
        };
        for c in &mut live.children {
            self.parts.restore(c.id, c.of, &c.local, &c.remote);
            let (inbound, outbound) = (c.sa(Direction::In), c.sa(Direction::Out));
            // It was taken into use after this was kept, or answers would find nobody who receives them.
            let waits = !present.contains(&outbound) && present.contains(&inbound);
            c.pending.take_if(|_| !(waits && goes_on));
            for id in [inbound, outbound].into_iter().filter(|id| present.contains(id)) {
                self.installed.entry(id.child).or_default().insert(id);
            }
        }
        let known = |sa: &SaId| {
            sa.child.index < ChildId::CONFIGURED || live.children.iter().any(|c| c.id == sa.child)
        };
        let spis = &mut self.spis.esp;
        live.lingering.retain(|(_, sa)| {
            let stays = present.contains(sa) && known(sa);
            if !stays {
                spis.remove(&sa.spi);
            }
            stays
        });
        for (_, id) in &live.lingering {
            self.installed.entry(id.child).or_default().insert(*id);
        }
    }

    /// Goes on with an IKE SA that was taken up: opens its tunnels, mends what the data plane has lost, follows a policy that
    /// changed in the meantime, and lets it ask the peer.
    fn go_on(&mut self, now: Now, spi: IkeSpi, renew: bool, out: &mut Actions) {
        let Some(State::Established(_)) = self.sas.get(&spi).map(|sa| &sa.state) else { return };
        self.with_sa(now, spi, out, |sa, ctx| {
            let policies = ctx.policies;
            let wanted = sa.tunnel().and_then(|id| policies.get(&id)).cloned();
            sa.with_live(ctx, |live, core, ctx, _| {
                live.drop_incomplete(ctx, wanted.as_deref());
                live.open_tunnels(core, ctx);
                let at = ctx.now.mono + ctx.within(Duration::ZERO, ASK);
                live.delayed.push((at, Task::Liveness));
                for c in live.children.iter_mut().filter(|c| renew && c.state == ChildState::Active) {
                    c.rekey_at = c.rekey_at.min(at);
                }
                let children = live.children.iter().filter(|c| c.is_to_stay()).count();
                ctx.tell(Event::Restored { tunnel: live.policy.id, spi, children });
                Next::Stay
            });
            sa.follow(ctx);
        });
        let Some(sa) = self.sas.get(&spi) else { return };
        let Some((tunnel, outdated)) = sa.live().map(|live| (live.policy.id, live.outdated)) else { return };
        let flow = sa.core.flow;
        if let Some(new) = self.policies.get(&tunnel).cloned()
            && !new.local.is_empty()
            && (!new.local.contains(&flow.local.ip()) || !new.remote.contains(&flow.remote.ip()))
        {
            self.follow_addresses(now, tunnel, out);
        }
        if outdated {
            self.replace(now, spi, tunnel, out);
        }
    }
}

fn digest(saved: &SecretBytes) -> [u8; 32] {
    let mut octets = [0; 32];
    octets.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, saved.expose()).as_ref());
    octets
}

impl Live {
    /// Ends pairs of which the data plane has lost a half, and those that carry more than the configuration allows now. The
    /// peer is told, and what they carried is sought again.
    fn drop_incomplete(&mut self, ctx: &mut Ctx<'_>, policy: Option<&TunnelPolicy>) {
        let mut ended = BTreeSet::new();
        // What one of them was to replace is needed after all, and may be incomplete in turn.
        loop {
            let lost = self.incomplete(ctx, policy);
            if lost.is_empty() {
                break;
            }
            for c in self.children.iter_mut().filter(|c| lost.contains(&c.inbound)) {
                // It does not take the place of another one that goes.
                c.pending = None;
                if c.is_to_stay() {
                    ended.insert(c.of);
                }
            }
            for inbound in lost {
                self.remove_child(ctx, inbound);
                self.enqueue(Task::DisownChild { inbound });
            }
        }
        for of in ended {
            // Other pairs of the same rule may be whole, and do not carry what this one did.
            self.seek(of);
        }
    }

    fn incomplete(&self, ctx: &Ctx<'_>, policy: Option<&TunnelPolicy>) -> Vec<Spi> {
        let has = |id: SaId| ctx.installed.get(&id.child).is_some_and(|set| set.contains(&id));
        let fits = |c: &Child| {
            let configured = policy.and_then(|p| p.children.get(c.of));
            configured.is_none_or(|p| within(&c.local, &p.local) && within(&c.remote, &p.remote))
        };
        let whole = |c: &Child| has(c.sa(Direction::In)) && has(c.sa(Direction::Out));
        // What waits does so beside another pair that carries. Where there is none it may have been in use, and its sequence
        // numbers would come again.
        let own: BTreeSet<SaId> = self.children.iter().map(|c| c.sa(Direction::Out)).collect();
        let waits = |c: &Child| {
            let carries =
                |o: &Child| o.inbound != c.inbound && (o.id == c.id || c.opens.is_some()) && whole(o);
            let elsewhere = |id: &SaId| id.direction == Direction::Out && !own.contains(id);
            let installed = ctx.installed.get(&c.id);
            c.pending.is_some()
                && has(c.sa(Direction::In))
                && (self.children.iter().any(carries)
                    || installed.is_some_and(|set| set.iter().any(elsewhere)))
        };
        // Of one that is about to be deleted nothing is needed any more.
        let used = self.children.iter().filter(|c| c.state != ChildState::Deleting);
        used.filter(|c| !(whole(c) || waits(c)) || !fits(c)).map(|c| c.inbound).collect()
    }
}
