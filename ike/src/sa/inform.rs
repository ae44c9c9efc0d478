//! INFORMATIONAL exchanges (RFC 7296 §1.4): deletion of children and IKE SAs, errors, and signs of life.

use std::time::Duration;

use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{Spi, Timestamp};

use super::auth::FATAL;
use super::child::volume;
use super::live::{Reply, Request};
use super::{ChildState, Core, Ctx, Live, Next, Phase, Task};
use crate::error::FailureReason;
use crate::io::Ending;
use crate::policy::Start;
use crate::wire::{Delete, NotifyType, Payloads};

/// Wait before a child that the peer deleted is made again.
const RECREATE: Duration = Duration::from_secs(1);

/// How long what is left of a pair's volume must last at the rate of the moment: a rekey may meet loss.
const VOLUME_MARGIN: Duration = Duration::from_secs(30);

// -> INFORMATIONAL { D(inbound SPI) }
pub(super) fn begin_disown_child(inbound: Spi) -> (Payloads, Request) {
    let deletes = vec![Delete::Esp(vec![inbound.value()])];
    (Payloads { deletes, ..Payloads::default() }, Request::DeleteChild { inbound })
}

impl Live {
    // -> INFORMATIONAL { D(inbound SPI) }
    pub(super) fn begin_delete_child(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        inbound: Spi,
    ) -> Option<(Payloads, Request)> {
        let child = self.children.iter_mut().find(|c| c.inbound == inbound)?;
        let carries = child.is_to_stay() && child.pending.is_none();
        child.state = ChildState::Deleting;
        if carries && self.policy.children.get(child.of).is_none() {
            child.step_back(core, ctx);
        }
        if child.pending.is_some() {
            self.defer(ctx, Task::DeleteChild { inbound });
            return None;
        }
        Some(begin_disown_child(inbound))
    }

    // -> INFORMATIONAL { D(IKE) }
    pub(super) fn begin_delete_ike(&mut self, ctx: &mut Ctx<'_>) -> (Payloads, Request) {
        self.teardown(ctx, Ending::Local);
        (Payloads { deletes: vec![Delete::Ike], ..Payloads::default() }, Request::DeleteIke)
    }

    /// The peer has confirmed that a pair is gone.
    pub(super) fn on_child_deleted(&mut self, ctx: &mut Ctx<'_>, inbound: Spi) {
        if let Some(child) = self.remove_child(ctx, inbound)
            && !self.has(child.id)
        {
            ctx.tell(child.down(Ending::Local));
        }
    }

    /// A pair reached the end of its lifetime before it was replaced: it carries nothing any more (RFC 7296 §2.8).
    pub(super) fn on_child_expired(&mut self, ctx: &mut Ctx<'_>, inbound: Spi) {
        let Some(child) = self.children.iter_mut().find(|c| c.inbound == inbound) else { return };
        let asked = matches!(
            self.window.outstanding.as_ref().map(|o| &o.request),
            Some(Request::DeleteChild { inbound: i }) if *i == inbound
        );
        if asked {
            // The deletion is on its way; do not wait for the peer any longer.
            self.on_child_deleted(ctx, inbound);
            return;
        }
        let old = std::mem::replace(&mut child.state, ChildState::Deleting);
        child.expire_at = ctx.now.mono + super::live::REKEYED_LIFETIME;
        let of = child.of;
        let sa = child.sa(Direction::Out);
        let down = child.down(Ending::Failed(FailureReason::LifetimeExpired));
        let never_used = child.pending.take().is_some();
        self.succeed(ctx, inbound);
        if !never_used {
            ctx.out.push(crate::io::Action::RemoveSa(sa));
        }
        self.enqueue(Task::DeleteChild { inbound });
        let was_in_use = matches!(old, ChildState::Active | ChildState::Rekeying);
        if was_in_use && !self.has(sa.child) {
            ctx.tell(down);
            self.enqueue(Task::CreateChild { index: of, group: None });
        }
    }

    /// The data plane reports that an SA has carried as much as it may.
    pub fn on_volume(&mut self, ctx: &mut Ctx<'_>, sa: SaId, hard: bool) {
        let named = |c: &&mut super::Child| match sa.direction {
            Direction::In => c.inbound == sa.spi,
            Direction::Out => c.outbound == sa.spi,
        };
        let Some(child) = self.children.iter_mut().find(named) else { return };
        let inbound = child.inbound;
        if hard {
            self.on_child_expired(ctx, inbound);
        } else if child.state == ChildState::Active {
            child.state = ChildState::Rekeying;
            self.enqueue(Task::RekeyChild { inbound, group: None });
        }
    }

    /// Whether what is left of an SA's volume will not last long at the rate of late, octets in a time, so that new keys
    /// are to be asked for as at the soft limit.
    pub fn is_nearly_used_up(
        &self,
        now: Timestamp,
        sa: SaId,
        bytes: u64,
        (grown, span): (u64, Duration),
    ) -> bool {
        let outbound = sa.direction == Direction::Out;
        let named = |c: &&super::Child| if outbound { c.outbound == sa.spi } else { c.inbound == sa.spi };
        let Some(child) = self.children.iter().find(named) else { return false };
        let limit = self.policy.children.get(child.of).map_or(0, |c| volume(c.bytes, child.suite));
        let span = span.min(now.since(child.made)).as_millis();
        let soon = u128::from(grown).saturating_mul(VOLUME_MARGIN.as_millis()).checked_div(span).unwrap_or(0);
        let left = u128::from(limit.saturating_sub(bytes));
        // A pair that lasts no longer than that by nature gets new keys after a quarter of its volume.
        limit > 0 && left < soon && bytes > limit / 4 && child.state == ChildState::Active
    }

    /// Answers an INFORMATIONAL request.
    pub(super) fn on_informational(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        request: &Payloads,
    ) -> Reply {
        let mut reply = Reply::with(Payloads::default());
        if request.deletes.contains(&Delete::Ike) {
            // Everything goes with the IKE SA; the answer is empty (RFC 7296 §1.4.1).
            let replaced = self.adopt_their_rekey(ctx) || phase != Phase::Established;
            let ending = if replaced { Ending::Replaced } else { Ending::Peer };
            reply.next = Next::Close(ending, format!("{} deleted the IKE SA", core.flow.remote));
            return reply;
        }
        if let Some(n) = request.notifies.iter().find(|n| FATAL.contains(&n.kind)) {
            let (reason, what) = match n.kind {
                NotifyType::AUTHENTICATION_FAILED => {
                    (FailureReason::AuthenticationFailed, "refuses our identity or key")
                }
                _ => (FailureReason::InvalidSyntax, "does not understand our answer to IKE_AUTH"),
            };
            let detail = format!("{} {what}: {}", core.flow.remote, n.kind);
            let ending = match phase {
                Phase::Established => Ending::Failed(reason),
                Phase::Rekeyed | Phase::Deleting => Ending::Replaced,
            };
            reply.next = Next::Close(ending, detail);
            return reply;
        }
        let mut gone = Vec::new();
        for spi in request.deletes.iter().flat_map(|d| match d {
            Delete::Esp(spis) => spis.as_slice(),
            Delete::Ike | Delete::Other => &[],
        }) {
            if let Some(inbound) = self.on_delete(ctx, *spi) {
                gone.push(inbound.value());
            }
        }
        if !gone.is_empty() {
            reply.payloads.deletes.push(Delete::Esp(gone));
        }
        reply
    }

    /// The peer deletes a pair. Returns our SPI for the answer, unless we are deleting the pair ourselves at this moment
    /// (RFC 7296 §1.4.1) or do not have it.
    pub(super) fn on_delete(&mut self, ctx: &mut Ctx<'_>, outbound: u32) -> Option<Spi> {
        let Some(child) = self.children.iter().find(|c| c.outbound.value() == outbound) else {
            if let Some(Request::CreateChild(c)) = self.window.outstanding.as_mut().map(|o| &mut o.request) {
                c.on_unknown_deleted(outbound);
            }
            return None;
        };
        let (inbound, state) = (child.inbound, child.state);
        let ours_on_its_way = matches!(
            self.window.outstanding.as_ref().map(|o| &o.request),
            Some(Request::DeleteChild { inbound: i }) if *i == inbound
        );
        if let Some(child) = self.remove_child(ctx, inbound)
            && !self.has(child.id)
            && matches!(state, ChildState::Active | ChildState::Rekeying)
        {
            ctx.tell(child.down(Ending::Peer));
            if self.policy.start == Start::Active {
                let wait = self.remake_wait(child.of, ctx.now.mono.since(child.made), RECREATE);
                let at = ctx.now.mono + ctx.jitter(wait);
                self.enqueue_at(at, Task::CreateChild { index: child.of, group: None });
            }
        }
        (!ours_on_its_way).then_some(inbound)
    }
}
