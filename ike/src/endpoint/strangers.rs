//! Admitting strangers: requests for a new IKE SA, behind cookies and limits, and answers that keep no state.

use std::time::Duration;

use cygnet_model::{IkeSpi, Now};

use super::Endpoint;
use crate::error::DropReason;
use crate::io::{Action, Actions, Event, Flow};
use crate::sa;
use crate::wire::{DecodeErrorKind, HEADER_LEN, Header, Notify, NotifyType, Payloads};

/// Answers to strangers with another major version, at most one in this time.
const VERSION_NOTICE_INTERVAL: Duration = Duration::from_secs(1);

impl Endpoint {
    /// An IKE_SA_INIT request from somebody without an SA.
    pub(super) fn on_stranger(
        &mut self,
        now: Now,
        header: &Header,
        flow: Flow,
        bytes: &[u8],
        out: &mut Actions,
    ) {
        let drop = |out: &mut Actions, reason| {
            out.push(Action::Tell(Event::Dropped { reason, peer: flow.remote }));
        };
        if let Some(spi) = self.half_open.find(flow.remote, header.spi_i) {
            return self.with_sa(now, spi, out, |sa, ctx| sa.on_datagram(ctx, header, bytes, flow));
        }
        let Some(candidates) = self.policies.between(flow.local.ip(), flow.remote.ip()) else {
            return drop(out, DropReason::UnknownPeer);
        };
        let tunnels = candidates.all().len();
        let chain = bytes.get(HEADER_LEN..).unwrap_or_default();
        if header.message_id != 0 || IkeSpi::new(header.spi_i).is_none() {
            return drop(out, DropReason::MessageId);
        }
        let payloads = match Payloads::decode(header.next, chain) {
            Ok(payloads) => payloads,
            Err(e) => {
                if let DecodeErrorKind::UnsupportedCritical(kind) = e.kind {
                    let notify = Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind]);
                    let mut effects = Vec::new();
                    sa::stateless(&mut self.context(now, out, &mut effects), header, flow, notify);
                }
                return drop(out, DropReason::Malformed);
            }
        };
        let nonce = payloads.nonce.as_deref().unwrap_or_default();
        let cookie = payloads.notify(NotifyType::COOKIE).map(|n| n.data.as_slice());
        let (ip, random) = (flow.remote.ip(), self.random.as_mut());
        let returned =
            cookie.is_some_and(|c| self.cookies.check(now.mono, random, c, nonce, ip, header.spi_i));
        // What cannot become an IKE SA is refused without one: the cookie might be longer than the question.
        let complete = payloads.sa.is_some() && payloads.ke.is_some() && payloads.nonce.is_some();
        let of_peer = self.half_open.of_address(ip);
        // Whoever shares the address, or forges it, may have filled its places; who brings a cookie back is heard all the
        // same.
        let full = of_peer >= self.config.half_open_per_peer.max(tunnels.saturating_mul(2));
        let busy = full || self.half_open.len() >= self.config.cookie_threshold;
        if busy && !returned && complete {
            let fresh = self.cookies.make(now.mono, random, nonce, ip, header.spi_i);
            if cookie.is_some() {
                drop(out, DropReason::BadCookie);
            }
            out.push(Action::Tell(Event::CookieDemanded(flow.remote)));
            let notify = Notify::new(NotifyType::COOKIE, fresh);
            let mut effects = Vec::new();
            return sa::stateless(&mut self.context(now, out, &mut effects), header, flow, notify);
        }
        if returned {
            out.push(Action::Tell(Event::CookieReturned(flow.remote)));
        }
        if self.half_open.len() >= self.config.half_open_limit {
            return drop(out, DropReason::HalfOpenLimit);
        }
        let mut effects = Vec::new();
        let made = sa::respond(&mut self.context(now, out, &mut effects), header, bytes, payloads, flow);
        if let Some(sa) = made {
            self.half_open.add(flow.remote, header.spi_i, sa.core.spi);
            self.put(now, sa, out);
        }
    }

    /// Tells a peer of a newer version which one we speak (RFC 7296 §2.5), rarely.
    pub(super) fn on_other_version(
        &mut self,
        now: Now,
        flow: Flow,
        major: u8,
        bytes: &[u8],
        out: &mut Actions,
    ) {
        let recent = self.version_notice.is_some_and(|t| now.mono.since(t) < VERSION_NOTICE_INTERVAL);
        let mut as_v2 = bytes.to_vec();
        if let Some(version) = as_v2.get_mut(17) {
            *version = 0x20;
        }
        if major <= 2 || recent {
            return;
        }
        if let Ok((header, _)) = Header::decode(&as_v2)
            && !header.response
        {
            self.version_notice = Some(now.mono);
            let notify = Notify::new(NotifyType::INVALID_MAJOR_VERSION, vec![]);
            let mut effects = Vec::new();
            sa::stateless(&mut self.context(now, out, &mut effects), &header, flow, notify);
        }
    }
}
