//! What an established IKE SA has computed ([`crate::jobs`]): keys for our own requests before they are sent, secrets for the answers
//! to them, and answers to the peer.

use cygnet_model::SecretBytes;
use cygnet_model::suite::Group;

use super::follow_up::Progress;
use super::live::{Reply, Request};
use super::window::{Outstanding, Working};
use super::{Core, Ctx, Live, Next, Phase, Task};
use crate::crypto::kex::{KexError, PrivateKey};
use crate::jobs::{Asker, JobId, Output, Work};
use crate::wire::{Exchange, Notify, NotifyType, Payloads};

/// What becomes of a request of the peer.
#[expect(clippy::large_enum_variant, reason = "it is taken apart where it is returned")]
pub(crate) enum Handled {
    /// It is answered.
    Reply(Reply),
    /// A key exchange in this group comes first.
    Work(Group, Work),
}

/// A key exchange that was computed for an answer to the peer.
pub(crate) struct Worked {
    pub group: Group,
    /// Our public value, and the shared secret.
    pub made: Result<(Vec<u8>, SecretBytes), KexError>,
}

/// A key that was made for a request of ours.
pub(crate) struct Made {
    pub group: Group,
    pub key: PrivateKey,
    pub public: Vec<u8>,
}

/// A key is being made.
pub(super) struct Pending;

/// The key for our next request.
pub(crate) enum NextKey {
    None,
    /// It is being made. The task that wants it stays at the head of the queue.
    Making(JobId, Group),
    Ready(Made),
}

/// The answer that asks the peer to come again later.
pub(super) fn busy() -> Reply {
    Reply::notify(Notify::new(NotifyType::TEMPORARY_FAILURE, vec![]))
}

impl Live {
    /// Goes on with the result of a job; see [`crate::jobs`].
    pub fn on_done(
        &mut self,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        phase: Phase,
        job: JobId,
        output: Output,
    ) -> Next {
        if let Some(working) = self.window.working.take_if(|w| w.job == job) {
            let Working { id, exchange, payloads, group, .. } = working;
            let worked = Worked { group, made: output.answer() };
            let handled = match exchange {
                Exchange::IKE_FOLLOWUP_KE => self.on_follow_up(core, ctx, phase, &payloads, Some(worked)),
                _ => self.on_create_child(core, ctx, phase, &payloads, &mut Progress::Worked(Some(worked))),
            };
            let reply = match handled {
                Handled::Reply(reply) => reply,
                Handled::Work(..) => busy(),
            };
            return self.answer(core, ctx, phase, (exchange, id), reply);
        }
        let answers = |o: &mut Outstanding| o.answer.as_ref().is_some_and(|a| a.job == job);
        if let Some(outstanding) = self.window.outstanding.take_if(answers) {
            return self.on_own_work(core, ctx, phase, outstanding, output);
        }
        if let NextKey::Making(id, group) = self.key
            && id == job
        {
            self.key = NextKey::None;
            match output.key() {
                Ok((key, public)) => self.key = NextKey::Ready(Made { group, key, public }),
                Err(_) => {
                    let waiting = self.queue.front().copied().filter(|t| self.group_for(*t) == Some(group));
                    if let Some(task) = waiting {
                        self.queue.pop_front();
                        self.defer(ctx, task);
                    }
                }
            }
        }
        Next::Stay
    }

    /// The key that a task needs, if it needs one. `Err` while it is made.
    pub(super) fn key_for(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        task: Task,
    ) -> Result<Option<Made>, Pending> {
        let Some(wanted) = self.group_for(task) else { return Ok(None) };
        match std::mem::replace(&mut self.key, NextKey::None) {
            NextKey::Ready(made) if made.group == wanted => Ok(Some(made)),
            NextKey::Making(job, group) if group == wanted => {
                self.key = NextKey::Making(job, group);
                Err(Pending)
            }
            NextKey::None | NextKey::Ready(_) | NextKey::Making(..) => {
                let job = ctx.run(core.spi, Asker::Known, Work::Begin(wanted));
                self.key = NextKey::Making(job, wanted);
                Err(Pending)
            }
        }
    }

    /// The group of the key exchange that a task begins with; `None` if it has none, or there is nothing to do.
    fn group_for(&self, task: Task) -> Option<Group> {
        match task {
            Task::CreateChild { index, group } => {
                self.next_ask(index)?;
                self.group_for_child(index, group)
            }
            Task::RekeyChild { inbound, group } => {
                let child = self.rekeyable(inbound).filter(|c| c.pending.is_none())?;
                self.group_for_child(child.of, group)
            }
            Task::RekeyIke { group } => self.group_for_ike(group),
            Task::DeleteChild { .. } | Task::DisownChild { .. } | Task::DeleteIke | Task::Liveness => None,
        }
    }

    /// The key exchange that must be finished before a response can be taken.
    pub(super) fn secret_for(&self, phase: Phase, request: &mut Request, answer: &Payloads) -> Option<Work> {
        match request {
            Request::CreateChild(_)
                if phase == Phase::Deleting
                    && answer.notify(NotifyType::ADDITIONAL_KEY_EXCHANGE).is_none() =>
            {
                None
            }
            Request::CreateChild(c) => self.secret_for_child(c, answer),
            Request::RekeyIke(r) => self.secret_for_ike(r, answer),
            Request::DeleteChild { .. } | Request::DeleteIke | Request::Liveness => None,
        }
    }
}
