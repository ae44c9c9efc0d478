//! The responder's IKE_INTERMEDIATE: additional key exchanges of a stranger (RFC 9370 §2.2.2); see `sa/intermediate.rs`.

use cygnet_model::SecretBytes;
use cygnet_model::suite::Group;

use super::error_notify;
use super::responder::Refusal;
use crate::crypto::kex::KexError;
use crate::error::{DropReason, FailureReason};
use crate::io::{Action, Flow};
use crate::jobs::{Asker, JobId, Work};
use crate::rate::Rate;
use crate::sa;
use crate::sa::intermediate::IntAuth;
use crate::sa::message::{Channel, Content, Plain, asks_again};
use crate::sa::window::REPEATS;
use crate::sa::{Core, Ctx, InitAnswered, State};
use crate::wire::{Exchange, Header, KeyExchange, Notify, NotifyType, Payloads};
/// Largest message of IKE_INTERMEDIATE that a stranger's place is worth, in octets. The value of no method has 2,000.
const LARGEST: usize = 16 * 1024;

/// Where the responder's IKE_INTERMEDIATE exchanges stand.
#[derive(Default)]
pub(crate) struct Mixing {
    /// How many have ended.
    done: u32,
    pub int_auth: IntAuth,
    /// The request that is being answered.
    working: Option<Working>,
    last: Option<Last>,
}

/// A request whose answer is being computed.
struct Working {
    job: JobId,
    method: Group,
    request: Content,
}

/// The last response, and the keys of the exchange.
struct Last {
    channel: Channel,
    answer: Vec<Vec<u8>>,
    repeats: Rate,
}

impl Mixing {
    /// Message ID of the request that is due. That of IKE_SA_INIT was 0.
    pub const fn due(&self) -> u32 {
        self.done + 1
    }

    /// Whether the answer to the request that is due is being computed.
    pub const fn is_working(&self) -> bool {
        self.working.is_some()
    }

    /// Repeats the last response, if a datagram is the request for it, in whatever form that is sent again (RFC 9242 §3.3.2).
    pub fn repeat(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let before = header.exchange == Exchange::IKE_INTERMEDIATE && header.message_id == self.done;
        let last = self.last.as_mut().filter(|_| before).ok_or(DropReason::MessageId)?;
        if !asks_again(header, datagram) {
            return Err(DropReason::Duplicate);
        }
        last.channel.authenticate(header, datagram)?;
        if !last.repeats.admit(ctx.now.mono, REPEATS.0, REPEATS.1) {
            return Err(DropReason::RateLimit);
        }
        for bytes in &last.answer {
            // Where the request came from that was answered, whoever copies it.
            ctx.out.push(Action::Send { flow: core.flow, bytes: bytes.clone() });
        }
        Ok(())
    }
}

impl InitAnswered {
    /// The additional key exchange that comes next; `None` when all are made.
    pub fn next_method(&self) -> Option<Group> {
        self.suite.additional.after(self.mixing.done)
    }

    // I -> R  IKE_INTERMEDIATE { KEi(n) }
    pub(super) fn on_intermediate(
        mut self: Box<Self>,
        core: &mut Core,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
        flow: Flow,
    ) -> State {
        let Some(method) = self.next_method() else {
            return sa::drop_in(State::InitAnswered(self), ctx, DropReason::UnexpectedExchange, flow);
        };
        if !ctx.is_free_for_strangers() {
            // The peer repeats its request.
            return sa::drop_in(State::InitAnswered(self), ctx, DropReason::Busy, flow);
        }
        let Some(derived) = self.secret.known_mut() else { return State::InitAnswered(self) };
        let Plain { payloads, content } = match derived.channel.open_proven(header, datagram) {
            Ok(Some(plain)) if plain.content.octets().len() > LARGEST => {
                return sa::drop_in(State::InitAnswered(self), ctx, DropReason::Malformed, flow);
            }
            Ok(Some(plain)) => plain,
            Ok(None) => return State::InitAnswered(self),
            Err(reason) => return sa::drop_in(State::InitAnswered(self), ctx, reason, flow),
        };
        core.flow = flow;
        let exchange = (Exchange::IKE_INTERMEDIATE, header.message_id);
        let payloads = match payloads {
            Ok(payloads) => payloads,
            Err(e) => {
                let detail = format!("IKE_INTERMEDIATE of {} is a {e}", flow.remote);
                return self.refuse(core, ctx, exchange, refusal(error_notify(&e), detail));
            }
        };
        if let Some(n) = payloads.error() {
            let detail = format!("{} ends the negotiation in IKE_INTERMEDIATE with {}", flow.remote, n.kind);
            let notify = Notify::new(NotifyType::INVALID_SYNTAX, vec![]);
            return self.refuse(core, ctx, exchange, refusal(notify, detail));
        }
        let Some(ke) = payloads.ke.filter(|ke| ke.is_offer_of(method)) else {
            return self.refuse(core, ctx, exchange, no_value(method, flow));
        };
        let job = ctx.run(core.spi, Asker::Stranger, Work::Answer(method, ke.data));
        self.mixing.working = Some(Working { job, method, request: content });
        State::InitAnswered(self)
    }

    /// Whether the answer to IKE_INTERMEDIATE waits for this job.
    pub(super) fn is_mixing(&self, job: JobId) -> bool {
        self.mixing.working.as_ref().is_some_and(|w| w.job == job)
    }

    // R -> I  IKE_INTERMEDIATE { KEr(n) }
    pub(super) fn on_mixed(
        mut self: Box<Self>,
        core: &Core,
        ctx: &mut Ctx<'_>,
        made: Result<(Vec<u8>, SecretBytes), KexError>,
    ) -> State {
        let Some(Working { method, request, .. }) = self.mixing.working.take() else {
            return State::InitAnswered(self);
        };
        let id = self.mixing.due();
        let (public, shared) = match made {
            Ok(made) => made,
            Err(e) if e.blames_peer() => {
                let exchange = (Exchange::IKE_INTERMEDIATE, id);
                return self.refuse(core, ctx, exchange, no_value(method, core.flow));
            }
            // The peer repeats its request.
            Err(_) => return State::InitAnswered(self),
        };
        let (suite, nonces) = (self.suite, (&*self.nonce_i, &*self.nonce_r));
        let Some(derived) = self.secret.known_mut() else { return State::InitAnswered(self) };
        let ke = Some(KeyExchange { group: method.transform(), data: public });
        let payloads = Payloads { ke, ..Payloads::default() };
        let exchange = Exchange::IKE_INTERMEDIATE;
        let sealed = derived.channel.seal_proven(exchange, id, true, &payloads, ctx.random);
        let (Some((answer, response)), Some(further)) = (sealed, derived.further(suite, &shared, nonces))
        else {
            return State::InitAnswered(self);
        };
        self.mixing.int_auth.add(suite.prf, &derived.keys, &request, &response);
        let before = std::mem::replace(derived, further);
        for bytes in &answer {
            ctx.out.push(Action::Send { flow: core.flow, bytes: bytes.clone() });
        }
        self.mixing.last = Some(Last { channel: before.channel, answer, repeats: Rate::default() });
        self.mixing.done += 1;
        State::InitAnswered(self)
    }
}

fn refusal(notify: Notify, detail: String) -> Refusal {
    Refusal { notify, policy: None, reason: FailureReason::InvalidSyntax, detail, accounts: Vec::new() }
}

/// The value that the peer sent is none of the method (RFC 9370 leaves the error open; FIPS 203 §7.2 demands the check).
fn no_value(method: Group, flow: Flow) -> Refusal {
    let detail = format!("IKE_INTERMEDIATE of {} has no usable value of {}", flow.remote, method.keyword());
    refusal(Notify::new(NotifyType::INVALID_SYNTAX, vec![]), detail)
}
