//! The endpoint: every IKE SA of a gateway behind one door.
//!
//! It finds the SA that a datagram belongs to, admits strangers, keeps tunnels up, and knows when to be woken. Protocol
//! decisions are made in `crate::sa`.

#[cfg(feature = "test-util")]
mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, IkeSpi, Now, Spi, Timestamp, TunnelId};

use crate::cookie::Cookies;
use crate::crypto::Random;
use crate::crypto::kex::KeyExchange;
use crate::error::{DropReason, FailureReason};
use crate::io::{Action, Actions, Command, Ending, Event, Flow, Input, Role};
use crate::policy::{self, Policies, Start, TunnelPolicy};
use crate::sa::{self, ChildState, Closed, Ctx, Effect, IkeSa, Next, Spis, State, Task};
use crate::view::{self, TunnelView};
use crate::wire::{DecodeErrorKind, Exchange, HEADER_LEN, Header, Notify, NotifyType, Payloads};

/// Limits and ports.
#[derive(Clone, Debug)]
pub struct Config {
    /// UDP port of IKE (500).
    pub ike_port: u16,
    /// UDP port shared with ESP (4500).
    pub natt_port: u16,
    /// Half-open SAs of strangers from which on cookies are demanded.
    pub cookie_threshold: usize,
    /// Half-open SAs of strangers beyond which none are admitted.
    pub half_open_limit: usize,
    /// Half-open SAs that one address may have.
    pub half_open_per_peer: usize,
    /// First and longest wait before a tunnel that failed is tried again; between, the wait doubles.
    pub retry: (Duration, Duration),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ike_port: 500,
            natt_port: 4500,
            cookie_threshold: 32,
            half_open_limit: 4096,
            half_open_per_peer: 64,
            retry: (Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}

/// How one tunnel is kept up.
#[derive(Default)]
struct Supervision {
    /// It should be up.
    wanted: bool,
    /// Failures since it was last up.
    failures: u32,
    /// When it will be tried again.
    retry_at: Option<Timestamp>,
}

/// Answers to strangers with another major version, at most one in this time.
const VERSION_NOTICE_INTERVAL: Duration = Duration::from_secs(1);

/// Every IKE SA of this machine.
pub struct Endpoint {
    config: Config,
    random: Box<dyn Random>,
    kex: Box<dyn KeyExchange>,
    policies: Policies,
    supervision: BTreeMap<TunnelId, Supervision>,
    /// Tunnels that were taken down by command: they stay down, whoever asks, until a command takes them up.
    held: BTreeSet<TunnelId>,
    spis: Spis,
    sas: BTreeMap<IkeSpi, IkeSa>,
    by_tunnel: BTreeMap<TunnelId, BTreeSet<IkeSpi>>,
    established: BTreeMap<TunnelId, u32>,
    /// Half-open SAs of strangers by their address and SPI, to know repeated requests by.
    half_open: BTreeMap<(SocketAddr, u64), IkeSpi>,
    wakeups: BTreeSet<(Timestamp, IkeSpi)>,
    wakeup_of: BTreeMap<IkeSpi, Timestamp>,
    /// SAs in the data plane, by child: a tunnel is closed with its last outbound SA.
    installed: BTreeMap<ChildId, BTreeSet<SaId>>,
    cookies: Cookies,
    version_notice: Option<Timestamp>,
}

impl Endpoint {
    /// An endpoint without tunnels.
    pub fn new(config: Config, now: Now, mut random: Box<dyn Random>, kex: Box<dyn KeyExchange>) -> Self {
        let cookies = Cookies::new(now.mono, random.as_mut());
        Self {
            config,
            random,
            kex,
            policies: Policies::new(),
            supervision: BTreeMap::new(),
            held: BTreeSet::new(),
            spis: Spis::default(),
            sas: BTreeMap::new(),
            by_tunnel: BTreeMap::new(),
            established: BTreeMap::new(),
            half_open: BTreeMap::new(),
            wakeups: BTreeSet::new(),
            wakeup_of: BTreeMap::new(),
            installed: BTreeMap::new(),
            cookies,
            version_notice: None,
        }
    }

    /// Keeps SPIs that others use out of the choice.
    pub fn reserve_spis(&mut self, spis: impl IntoIterator<Item = Spi>) {
        self.spis.esp.extend(spis);
    }

    /// Takes over a set of tunnels. New active ones start at once; those that are gone are deleted at the peer; SAs of
    /// those that changed keep the policy that they were negotiated with until they are rekeyed or reset.
    pub fn set_policies(&mut self, now: Now, policies: Vec<TunnelPolicy>, out: &mut Actions) {
        let new: Policies = policies.into_iter().map(|p| (p.id, Arc::new(p))).collect();
        let gone: Vec<TunnelId> = self.policies.keys().filter(|id| !new.contains_key(id)).copied().collect();
        for id in gone {
            self.handle(now, Input::Command(Command::Down(id)), out);
            self.supervision.remove(&id);
            self.held.remove(&id);
        }
        for (id, policy) in &new {
            self.supervision.entry(*id).or_insert_with(|| Supervision {
                wanted: policy.start == Start::Active,
                failures: 0,
                retry_at: (policy.start == Start::Active).then_some(now.mono),
            });
        }
        self.policies = new;
    }

    /// Takes one input and appends what is to be done. The only door.
    pub fn handle(&mut self, now: Now, input: Input<'_>, out: &mut Actions) {
        let before = out.len();
        match input {
            Input::Datagram { flow, bytes } => self.on_datagram(now, flow, bytes, out),
            Input::Tick => self.on_tick(now, out),
            Input::Command(command) => self.on_command(now, command, out),
            Input::PlaneFailed { child, detail } => self.on_plane_failed(now, child, detail, out),
            Input::Expired { sa, hard } => {
                self.each_established(now, sa.child.tunnel, out, |live, _, ctx, _| {
                    live.on_volume(ctx, sa, hard);
                    Next::Stay
                });
            }
            Input::Acquire(child) => self.on_acquire(now, child, out),
            Input::Inbound(sa) => self.each_established(now, sa.child.tunnel, out, |live, _, ctx, _| {
                if let Some(c) = live.children.iter().find(|c| c.inbound == sa.spi) {
                    live.last_in = ctx.now.mono;
                    if c.pending.is_some() && !c.contested {
                        live.switch_pending(ctx);
                    }
                    live.on_seen(ctx, Some(sa.spi));
                }
                Next::Stay
            }),
            Input::PeerMoved { sa, remote } => {
                self.each_established(now, sa.child.tunnel, out, |live, core, ctx, _| {
                    let ours = live.children.iter().any(|c| c.inbound == sa.spi);
                    if ours && live.nat.remote && !live.nat.local && core.flow.remote != remote {
                        live.move_to(core, ctx, remote);
                    }
                    Next::Stay
                });
            }
        }
        self.close_tunnels(before, out);
    }

    /// When [`Input::Tick`] has something to do; `None` if nothing will happen by itself.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        let retry = self.supervision.values().filter_map(|s| s.retry_at).min();
        let sa = self.wakeups.first().map(|(at, _)| *at);
        [retry, sa].into_iter().flatten().min()
    }

    /// Whether no IKE SA is left, as after [`Command::Shutdown`].
    pub fn is_idle(&self) -> bool {
        self.sas.is_empty()
    }

    /// Whether a tunnel has any IKE SA, even one on its way out.
    pub fn has_sas(&self, tunnel: TunnelId) -> bool {
        self.by_tunnel.get(&tunnel).is_some_and(|set| !set.is_empty())
    }

    /// How many half-open SAs of strangers there are.
    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    /// How many IKE SAs there are, in any state.
    pub fn sa_count(&self) -> usize {
        self.sas.len()
    }

    /// How many SPIs are reserved: of IKE SAs, and of inbound ESP SAs. For tests that look for leaks.
    #[cfg(feature = "test-util")]
    pub fn reserved(&self) -> (usize, usize) {
        (self.spis.ike.len(), self.spis.esp.len())
    }

    /// One tunnel as an operator wants to see it; `None` if there is no such tunnel.
    pub fn view(&self, tunnel: TunnelId) -> Option<TunnelView> {
        let policy = self.policies.get(&tunnel)?;
        let s = self.supervision.get(&tunnel)?;
        let sas = self.by_tunnel.get(&tunnel).into_iter().flatten().filter_map(|spi| self.sas.get(spi));
        Some(view::tunnel(policy, s.wanted, self.held.contains(&tunnel), s.failures, s.retry_at, sas))
    }

    /// Runs `f` on one SA and takes care of what follows from it.
    fn with_sa(
        &mut self,
        now: Now,
        spi: IkeSpi,
        out: &mut Actions,
        f: impl FnOnce(&mut IkeSa, &mut Ctx<'_>),
    ) {
        let Some(mut sa) = self.take(spi) else { return };
        let mut effects = Vec::new();
        let mut ctx = self.context(now, out, &mut effects);
        f(&mut sa, &mut ctx);
        self.put(now, sa, out);
        self.apply(now, effects, out);
    }

    fn context<'a>(&'a mut self, now: Now, out: &'a mut Actions, effects: &'a mut Vec<Effect>) -> Ctx<'a> {
        Ctx {
            now,
            random: self.random.as_mut(),
            kex: self.kex.as_ref(),
            config: &self.config,
            policies: &self.policies,
            spis: &mut self.spis,
            established: &self.established,
            held: &self.held,
            out,
            effects,
        }
    }

    /// Takes an SA out of the tables; [`Endpoint::put`] brings it back.
    fn take(&mut self, spi: IkeSpi) -> Option<IkeSa> {
        let sa = self.sas.remove(&spi)?;
        if let Some(at) = self.wakeup_of.remove(&spi) {
            self.wakeups.remove(&(at, spi));
        }
        if let Some(tunnel) = sa.tunnel() {
            if let Some(set) = self.by_tunnel.get_mut(&tunnel) {
                set.remove(&spi);
            }
            if matches!(sa.state, State::Established(_))
                && let Some(n) = self.established.get_mut(&tunnel)
            {
                *n = n.saturating_sub(1);
            }
        }
        Some(sa)
    }

    fn put(&mut self, now: Now, sa: IkeSa, out: &mut Actions) {
        let spi = sa.core.spi;
        if !sa.is_half_open() {
            self.half_open.retain(|_, s| *s != spi);
        }
        if let State::Closed(closed) = sa.state {
            self.spis.ike.remove(&spi);
            return self.on_closed(now, spi, sa.core.flow, closed, out);
        }
        if let Some(at) = sa.next_wakeup() {
            self.wakeups.insert((at, spi));
            self.wakeup_of.insert(spi, at);
        }
        if let Some(tunnel) = sa.tunnel() {
            self.by_tunnel.entry(tunnel).or_default().insert(spi);
            if matches!(sa.state, State::Established(_)) {
                *self.established.entry(tunnel).or_default() += 1;
            }
        }
        self.sas.insert(spi, sa);
    }

    fn apply(&mut self, now: Now, effects: Vec<Effect>, out: &mut Actions) {
        for effect in effects {
            match effect {
                Effect::Spawn(sa) => {
                    let spi = sa.core.spi;
                    self.put(now, *sa, out);
                    // It may have inherited something to do.
                    self.with_sa(now, spi, out, |sa, ctx| sa.with_live(ctx, |_, _, _, _| Next::Stay));
                    if let Some(tunnel) = self.sas.get(&spi).and_then(IkeSa::tunnel) {
                        self.deduplicate(now, tunnel, out);
                    }
                }
                Effect::Established { spi, tunnel, initial_contact } => {
                    self.on_established(now, spi, tunnel, initial_contact, out);
                }
            }
        }
    }

    fn on_datagram(&mut self, now: Now, flow: Flow, bytes: &[u8], out: &mut Actions) {
        let drop = |out: &mut Actions, reason| {
            out.push(Action::Tell(Event::Dropped { reason, peer: flow.remote }));
        };
        let header = match Header::decode(bytes) {
            Ok((header, _)) => header,
            Err(e) => {
                if let DecodeErrorKind::MajorVersion(major) = e.kind {
                    self.on_other_version(now, flow, major, bytes, out);
                    return drop(out, DropReason::Version);
                }
                return drop(out, DropReason::Malformed);
            }
        };
        let (ours, theirs) =
            if header.from_initiator { (header.spi_r, header.spi_i) } else { (header.spi_i, header.spi_r) };
        let Some(ours) = IkeSpi::new(ours) else {
            if header.exchange == Exchange::IKE_SA_INIT && !header.response && header.from_initiator {
                return self.on_stranger(now, &header, flow, bytes, out);
            }
            return drop(out, DropReason::UnknownSpi);
        };
        let fits = match self.sas.get(&ours).map(|sa| &sa.state) {
            None => return drop(out, DropReason::UnknownSpi),
            // The responder's SPI is not known yet.
            Some(State::InitSent(_)) => true,
            Some(State::InitAnswered(s)) => s.spi_i == theirs,
            Some(State::Established(s) | State::Rekeyed(s) | State::Deleting(s)) => {
                (s.channel.spi_i, s.channel.spi_r) == (header.spi_i, header.spi_r)
            }
            Some(State::AuthSent(s)) => (s.channel.spi_i, s.channel.spi_r) == (header.spi_i, header.spi_r),
            Some(State::Refused(s)) => s.spi_i == theirs,
            Some(State::Closed(_)) => true,
        };
        if !fits {
            return drop(out, DropReason::UnknownSpi);
        }
        self.with_sa(now, ours, out, |sa, ctx| sa.on_datagram(ctx, &header, bytes, flow));
    }

    /// An IKE_SA_INIT request from somebody without an SA.
    fn on_stranger(&mut self, now: Now, header: &Header, flow: Flow, bytes: &[u8], out: &mut Actions) {
        let drop = |out: &mut Actions, reason| {
            out.push(Action::Tell(Event::Dropped { reason, peer: flow.remote }));
        };
        if let Some(spi) = self.half_open.get(&(flow.remote, header.spi_i)) {
            let spi = *spi;
            return self.with_sa(now, spi, out, |sa, ctx| sa.on_datagram(ctx, header, bytes, flow));
        }
        if policy::candidates(&self.policies, flow.local.ip(), flow.remote.ip()).next().is_none() {
            return drop(out, DropReason::UnknownPeer);
        }
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
        if self.half_open.len() >= self.config.cookie_threshold && !returned && complete {
            let fresh = self.cookies.make(now.mono, random, nonce, ip, header.spi_i);
            if cookie.is_some() {
                drop(out, DropReason::BadCookie);
            }
            let notify = Notify::new(NotifyType::COOKIE, fresh);
            let mut effects = Vec::new();
            return sa::stateless(&mut self.context(now, out, &mut effects), header, flow, notify);
        }
        let from = (SocketAddr::new(ip, 0), 0);
        let of_peer = self.half_open.range(from..).take_while(|((a, _), _)| a.ip() == ip).count();
        if self.half_open.len() >= self.config.half_open_limit || of_peer >= self.config.half_open_per_peer {
            return drop(out, DropReason::HalfOpenLimit);
        }
        let mut effects = Vec::new();
        let made = sa::respond(&mut self.context(now, out, &mut effects), header, bytes, payloads, flow);
        if let Some(sa) = made {
            self.half_open.insert((flow.remote, header.spi_i), sa.core.spi);
            self.put(now, sa, out);
        }
    }

    /// Tells a peer of a newer version which one we speak (RFC 7296 §2.5), rarely.
    fn on_other_version(&mut self, now: Now, flow: Flow, major: u8, bytes: &[u8], out: &mut Actions) {
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

    fn on_tick(&mut self, now: Now, out: &mut Actions) {
        while let Some((at, spi)) = self.wakeups.first().copied()
            && at <= now.mono
        {
            self.with_sa(now, spi, out, |sa, ctx| sa.on_tick(ctx));
            // A timer that stays due would never let us out.
            if self.wakeup_of.get(&spi).is_some_and(|next| *next <= now.mono) {
                self.wakeups.remove(&(at, spi));
                let later = now.mono + Duration::from_millis(10);
                self.wakeups.insert((later, spi));
                self.wakeup_of.insert(spi, later);
            }
        }
        let due: Vec<TunnelId> = self
            .supervision
            .iter()
            .filter(|(_, s)| s.retry_at.is_some_and(|at| at <= now.mono))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if let Some(s) = self.supervision.get_mut(&id) {
                s.retry_at = None;
            }
            self.initiate(now, id, out);
        }
    }

    /// Begins an IKE SA for a tunnel unless one exists or is being negotiated by us.
    fn initiate(&mut self, now: Now, id: TunnelId, out: &mut Actions) {
        let Some(policy) = self.policies.get(&id).cloned() else { return };
        if self.is_served(id) {
            return;
        }
        let mut effects = Vec::new();
        match sa::initiate(&mut self.context(now, out, &mut effects), &policy) {
            Ok(sa) => self.put(now, sa, out),
            Err(reason) => {
                let peer = (policy.local.first().copied().unwrap_or([0, 0, 0, 0].into()), 0).into();
                let detail = format!("cannot begin a negotiation: {reason}");
                self.failed(now, id, peer, reason, detail, out);
            }
        }
    }

    /// Whether a tunnel has an IKE SA, or we are negotiating one. Those on their way out do not count.
    fn is_served(&self, id: TunnelId) -> bool {
        self.by_tunnel
            .get(&id)
            .into_iter()
            .flatten()
            .filter_map(|spi| self.sas.get(spi))
            .any(|sa| matches!(sa.state, State::InitSent(_) | State::AuthSent(_) | State::Established(_)))
    }

    /// Notes a failure and when the tunnel is tried again.
    fn failed(
        &mut self,
        now: Now,
        id: TunnelId,
        peer: SocketAddr,
        reason: FailureReason,
        detail: String,
        out: &mut Actions,
    ) {
        let (first, longest) = self.config.retry;
        let on_demand = self.policies.get(&id).is_some_and(|p| p.start == Start::OnDemand);
        let others = self.is_served(id);
        let mut retry_in = None;
        if let Some(s) = self.supervision.get_mut(&id) {
            let wait = first.saturating_mul(1 << s.failures.min(10)).min(longest);
            s.failures = s.failures.saturating_add(1);
            if s.wanted && !others && !on_demand {
                // 75 % to 125 %, so that many gateways do not come at once.
                let spread = self.random.below(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) / 2 + 1);
                let wait = wait.mul_f64(0.75) + Duration::from_millis(spread);
                s.retry_at = Some(now.mono + wait);
                retry_in = Some(wait);
            }
        }
        out.push(Action::Tell(Event::Failure { tunnel: Some(id), peer, reason, detail, retry_in }));
    }

    fn on_closed(&mut self, now: Now, spi: IkeSpi, flow: Flow, closed: Closed, out: &mut Actions) {
        let Some(policy) = closed.policy else {
            if let Ending::Failed(reason) = closed.ending {
                let (peer, detail) = (flow.remote, closed.detail);
                let event = Event::Failure { tunnel: None, peer, reason, detail, retry_in: None };
                out.push(Action::Tell(event));
            }
            return;
        };
        let tunnel = policy.id;
        if closed.was_up {
            out.push(Action::Tell(Event::IkeDown { tunnel, spi, ending: closed.ending }));
        }
        match closed.ending {
            Ending::Failed(reason) => self.failed(now, tunnel, flow.remote, reason, closed.detail, out),
            Ending::Peer => {
                let others = self.is_served(tunnel);
                let wait = self.config.retry.0;
                let spread = self.random.below(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) + 1);
                // What waits for traffic goes on waiting for it; "up" said by command is as good as "active".
                let restart = policy.start != Start::OnDemand && !others;
                if let Some(s) = self.supervision.get_mut(&tunnel)
                    && s.wanted
                    && restart
                {
                    s.retry_at = Some(now.mono + wait + Duration::from_millis(spread));
                }
            }
            Ending::Local | Ending::Replaced => {}
        }
    }

    /// A new IKE SA was authenticated: what becomes of older ones of the same tunnel?
    fn on_established(
        &mut self,
        now: Now,
        spi: IkeSpi,
        tunnel: TunnelId,
        initial_contact: bool,
        out: &mut Actions,
    ) {
        if let Some(s) = self.supervision.get_mut(&tunnel) {
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
        self.deduplicate(now, tunnel, out);
    }

    /// The established SAs of a tunnel.
    fn established_of(&self, tunnel: TunnelId) -> impl Iterator<Item = (IkeSpi, &IkeSa)> {
        let spis = self.by_tunnel.get(&tunnel).into_iter().flatten();
        spis.filter_map(|spi| Some((*spi, self.sas.get(spi)?)))
            .filter(|(_, sa)| matches!(sa.state, State::Established(_)))
    }

    /// When both ends initiated at once there are two IKE SAs: the one with the highest SPIs stays. Both ends come to
    /// this verdict, and who initiated a superfluous one deletes it.
    fn deduplicate(&mut self, now: Now, tunnel: TunnelId, out: &mut Actions) {
        let spis = |sa: &IkeSa| sa.live().map(|l| (l.channel.spi_i, l.channel.spi_r));
        let Some(best) = self.established_of(tunnel).filter_map(|(_, sa)| spis(sa)).max() else { return };
        let losers: Vec<IkeSpi> = self
            .established_of(tunnel)
            .filter(|(_, sa)| sa.core.role == Role::Initiator && spis(sa).is_some_and(|s| s < best))
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

    fn each_established(
        &mut self,
        now: Now,
        tunnel: TunnelId,
        out: &mut Actions,
        mut f: impl FnMut(&mut sa::Live, &mut sa::Core, &mut Ctx<'_>, sa::Phase) -> Next,
    ) {
        let spis: Vec<IkeSpi> = self.by_tunnel.get(&tunnel).into_iter().flatten().copied().collect();
        for spi in spis {
            if self.sas.get(&spi).is_some_and(|sa| matches!(sa.state, State::Established(_))) {
                self.with_sa(now, spi, out, |sa, ctx| sa.with_live(ctx, &mut f));
            }
        }
    }

    fn on_command(&mut self, now: Now, command: Command, out: &mut Actions) {
        match command {
            Command::Up(id) => self.up(now, id, out),
            Command::Down(id) => self.down(now, id, out),
            Command::RekeyChildren(id) => self.each_established(now, id, out, |live, _, _, _| {
                let active: Vec<_> = live
                    .children
                    .iter_mut()
                    .filter(|c| c.state == ChildState::Active)
                    .map(|c| {
                        c.state = ChildState::Rekeying;
                        c.inbound
                    })
                    .collect();
                for inbound in active {
                    live.enqueue(Task::RekeyChild { inbound, group: None });
                }
                Next::Stay
            }),
            Command::RekeyIke(id) => self.each_established(now, id, out, |live, _, _, _| {
                live.enqueue(Task::RekeyIke { group: None });
                Next::Stay
            }),
            Command::Reset(id) => {
                let spis: Vec<IkeSpi> = self.by_tunnel.get(&id).into_iter().flatten().copied().collect();
                for spi in spis {
                    self.with_sa(now, spi, out, |sa, ctx| sa.drop_silently(ctx, Ending::Local));
                }
                if self.supervision.get(&id).is_some_and(|s| s.wanted) {
                    self.initiate(now, id, out);
                }
            }
            Command::Shutdown => {
                let ids: Vec<TunnelId> = self.policies.keys().copied().collect();
                for id in ids {
                    self.down(now, id, out);
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

    fn up(&mut self, now: Now, id: TunnelId, out: &mut Actions) {
        let Some(s) = self.supervision.get_mut(&id) else { return };
        (s.wanted, s.failures, s.retry_at) = (true, 0, None);
        self.held.remove(&id);
        self.initiate(now, id, out);
        self.each_established(now, id, out, |live, _, _, _| {
            let count = u16::try_from(live.policy.children.len()).unwrap_or(u16::MAX);
            for index in 0..count {
                if !live.has_child(index) {
                    live.enqueue(Task::CreateChild { index, group: None });
                }
            }
            Next::Stay
        });
    }

    fn down(&mut self, now: Now, id: TunnelId, out: &mut Actions) {
        if let Some(s) = self.supervision.get_mut(&id) {
            (s.wanted, s.retry_at) = (false, None);
            self.held.insert(id);
        }
        let spis: Vec<IkeSpi> = self.by_tunnel.get(&id).into_iter().flatten().copied().collect();
        for spi in spis {
            self.with_sa(now, spi, out, |sa, ctx| sa.take_down(ctx));
        }
    }

    fn on_acquire(&mut self, now: Now, child: ChildId, out: &mut Actions) {
        let Some(s) = self.supervision.get_mut(&child.tunnel) else { return };
        // While a tunnel waits for its next try, packets do not hurry it; nor do they undo a command.
        if s.retry_at.is_some() || self.held.contains(&child.tunnel) {
            return;
        }
        s.wanted = true;
        self.initiate(now, child.tunnel, out);
        self.each_established(now, child.tunnel, out, |live, _, _, _| {
            let waits = live
                .delayed
                .iter()
                .any(|(_, t)| matches!(t, Task::CreateChild { index, .. } if *index == child.index));
            if !live.has_child(child.index) && !waits {
                live.enqueue(Task::CreateChild { index: child.index, group: None });
            }
            Next::Stay
        });
    }

    /// The data plane refused a pair: the peer must not send on it.
    fn on_plane_failed(&mut self, now: Now, child: ChildId, detail: String, out: &mut Actions) {
        let mut peer = None;
        self.each_established(now, child.tunnel, out, |live, core, ctx, _| {
            peer = Some(core.flow.remote);
            // One that is redundant and only waits for the other to be in use would be needed if that one failed later.
            let waits = |spi| live.children.iter().any(|c| c.closes == Some(spi));
            let failed =
                |c: &&sa::Child| c.id == child && (c.state != ChildState::Deleting || waits(c.inbound));
            let newest = live.children.iter().rev().find(failed);
            if let Some(inbound) = newest.map(|c| c.inbound) {
                for c in &mut live.children {
                    if c.closes == Some(inbound) {
                        c.closes = None;
                    }
                    if c.inbound == inbound {
                        c.state = ChildState::Deleting;
                    }
                }
                live.enqueue(Task::DeleteChild { inbound });
                let wait = ctx.jitter(Duration::from_secs(10));
                live.enqueue_at(ctx.now.mono + wait, Task::CreateChild { index: child.index, group: None });
            }
            Next::Stay
        });
        let reason = FailureReason::DataPlane;
        if let Some(peer) = peer {
            let tunnel = Some(child.tunnel);
            out.push(Action::Tell(Event::Failure { tunnel, peer, reason, detail, retry_in: None }));
        }
    }

    /// Keeps count of the SAs in the data plane and closes the tunnels of children that have no outbound SA any more.
    fn close_tunnels(&mut self, from: usize, out: &mut Actions) {
        let mut touched = BTreeSet::new();
        for action in out.iter().skip(from) {
            match action {
                Action::InstallSa(spec) => {
                    self.installed.entry(spec.id.child).or_default().insert(spec.id);
                }
                Action::RemoveSa(id) => {
                    if let Some(set) = self.installed.get_mut(&id.child)
                        && set.remove(id)
                        && id.direction == Direction::Out
                    {
                        touched.insert(id.child);
                    }
                }
                _ => {}
            }
        }
        for child in touched {
            let Some(set) = self.installed.get(&child) else { continue };
            if !set.iter().any(|id| id.direction == Direction::Out) {
                out.push(Action::CloseTunnel(child));
            }
        }
    }
}
