//! The endpoint: every IKE SA of a gateway behind one door.
//!
//! It finds the SA that a datagram belongs to and knows when to be woken; [`strangers`] are admitted, and tunnels are kept
//! up by [`supervise`]. Protocol decisions are made in `crate::sa`.

mod half_open;
mod pace;
mod policies;
mod restore;
mod strangers;
mod supervise;
mod supervised;
#[cfg(feature = "test-util")]
mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, IkeSpi, Now, Spi, Timestamp, TunnelId};

use self::half_open::HalfOpen;
use self::pace::Pace;
use self::supervised::Supervised;
use crate::cookie::Cookies;
use crate::crypto::Random;
use crate::error::{DropReason, FailureReason};
use crate::io::{Action, Actions, Event, Flow, Input, RekeyKind};
use crate::jobs::{JobId, Jobs, Output};
use crate::policy::Policies;
use crate::rate::{PeerRates, Rate};
use crate::sa::{self, ChildState, Ctx, Effect, IkeSa, Next, Parts, Spis, State, Task};
use crate::view::{self, TunnelView};
use crate::wire::{DecodeErrorKind, Exchange, Header};

/// Jobs on their way from which on no negotiation is begun by itself.
const MAX_JOBS: usize = 1024;

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
    /// Half-open SAs that one address may have, or twice its tunnels, before it must bring a cookie back.
    pub half_open_per_peer: usize,
    /// Key exchanges that strangers may make us compute at the same time.
    pub stranger_jobs: usize,
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
            // More than one peer of our own kind begins at once.
            stranger_jobs: 512,
            retry: (Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}

/// Every IKE SA of this machine.
pub struct Endpoint {
    config: Config,
    random: Box<dyn Random>,
    /// Computations that are waited for.
    jobs: Jobs,
    policies: Policies,
    supervision: Supervised,
    /// Negotiations that are due.
    beginnings: Pace,
    /// Tunnels that are to be deleted at the end.
    endings: Pace,
    /// Tunnels that were taken down by command: they stay down, whoever asks, until a command takes them up.
    held: BTreeSet<TunnelId>,
    spis: Spis,
    parts: Parts,
    rates: BTreeMap<TunnelId, PeerRates>,
    /// Accounts of strangers' refusals.
    claims: Rate,
    /// Where a tunnel has several keys: how many in a row the peer did not know.
    refused_psks: BTreeMap<TunnelId, usize>,
    sas: BTreeMap<IkeSpi, IkeSa>,
    by_tunnel: BTreeMap<TunnelId, BTreeSet<IkeSpi>>,
    established: BTreeMap<TunnelId, u32>,
    half_open: HalfOpen,
    wakeups: BTreeSet<(Timestamp, IkeSpi)>,
    wakeup_of: BTreeMap<IkeSpi, Timestamp>,
    /// SAs in the data plane, by child: a tunnel is closed with its last outbound SA.
    installed: BTreeMap<ChildId, BTreeSet<SaId>>,
    /// Tunnels that are open in the data plane.
    open: BTreeSet<ChildId>,
    cookies: Cookies,
    version_notice: Option<Timestamp>,
    keeping: restore::Keeping,
}

impl Endpoint {
    /// An endpoint without tunnels.
    pub fn new(config: Config, now: Now, mut random: Box<dyn Random>) -> Self {
        let cookies = Cookies::new(now.mono, random.as_mut());
        Self {
            config,
            random,
            jobs: Jobs::default(),
            policies: Policies::default(),
            supervision: Supervised::default(),
            beginnings: Pace::of_beginnings(),
            endings: Pace::of_endings(),
            held: BTreeSet::new(),
            spis: Spis::default(),
            parts: Parts::default(),
            rates: BTreeMap::new(),
            claims: Rate::default(),
            refused_psks: BTreeMap::new(),
            sas: BTreeMap::new(),
            by_tunnel: BTreeMap::new(),
            established: BTreeMap::new(),
            half_open: HalfOpen::default(),
            wakeups: BTreeSet::new(),
            wakeup_of: BTreeMap::new(),
            installed: BTreeMap::new(),
            open: BTreeSet::new(),
            cookies,
            version_notice: None,
            keeping: restore::Keeping::default(),
        }
    }

    /// Keeps SPIs that others use out of the choice.
    pub fn reserve_spis(&mut self, spis: impl IntoIterator<Item = Spi>) {
        self.spis.esp.extend(spis);
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
            Input::Carried { sa, bytes, grown, span } => self.on_carried(now, sa, bytes, (grown, span), out),
            Input::Acquire(acquire) => self.on_acquire(now, acquire, out),
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
            Input::Done(job, output) => self.on_done(now, job, output, out),
        }
        self.begin_waiting(now, out);
        self.end_waiting(now, out);
        self.close_tunnels(now, before, out);
    }

    /// When [`Input::Tick`] has something to do; `None` if nothing will happen by itself.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        let retry = self.supervision.next_retry();
        let sa = self.wakeups.first().map(|(at, _)| *at);
        // Without room for it nothing begins before a job is done.
        let beginning = self.beginnings.next_place().filter(|_| self.has_room_to_begin());
        [retry, sa, beginning, self.endings.next_place(), self.jobs.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Tunnels that may look different ([`Endpoint::view`]) than when this was last asked.
    pub fn take_changed(&mut self) -> BTreeSet<TunnelId> {
        self.supervision.take_changed()
    }

    /// Whether no IKE SA is left, as after [`crate::Command::Shutdown`].
    pub fn is_idle(&self) -> bool {
        self.sas.is_empty()
    }

    /// Whether a tunnel has any IKE SA, even one on its way out.
    pub fn has_sas(&self, tunnel: TunnelId) -> bool {
        self.by_tunnel.get(&tunnel).is_some_and(|set| !set.is_empty())
    }

    /// Whether any SA of a configured child, or of a part of it, is in the data plane.
    pub fn is_carried(&self, child: ChildId) -> bool {
        let first = ChildId { index: 0, ..child };
        let of_tunnel = self.installed.range(first..).take_while(|(id, _)| id.tunnel == child.tunnel);
        of_tunnel
            .filter(|(_, sas)| !sas.is_empty())
            .any(|(id, _)| *id == child || self.parts.configured(*id) == child.index)
    }

    /// How many half-open SAs of strangers there are.
    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    /// How many of them there may be.
    pub const fn half_open_limit(&self) -> usize {
        self.config.half_open_limit
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

    /// How many parts of configured children have numbers of their own. For tests that look for leaks.
    #[cfg(feature = "test-util")]
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// One tunnel as an operator wants to see it; `None` if there is no such tunnel.
    pub fn view(&self, tunnel: TunnelId) -> Option<TunnelView> {
        let policy = self.policies.get(&tunnel)?;
        let s = self.supervision.get(&tunnel)?;
        let sas = self.by_tunnel.get(&tunnel).into_iter().flatten().filter_map(|spi| self.sas.get(spi));
        let held = self.held.contains(&tunnel);
        let view = view::tunnel(policy, s.wanted, held, s.failures, s.retry_at, sas);
        Some(TunnelView { lesson: s.lesson.clone(), ..view })
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
            jobs: &mut self.jobs,
            config: &self.config,
            policies: &self.policies,
            spis: &mut self.spis,
            parts: &mut self.parts,
            rates: &mut self.rates,
            claims: &mut self.claims,
            refused_psks: &self.refused_psks,
            established: &self.established,
            installed: &self.installed,
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
            self.supervision.note(tunnel);
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
        self.keeping.touch(&sa);
        if !sa.is_half_open() {
            self.half_open.remove(spi);
        }
        if !sa.is_beginning() {
            self.beginnings.leave(spi);
        }
        if let State::Closed(closed) = sa.state {
            self.endings.leave(spi);
            self.spis.ike.remove(&spi);
            return self.on_closed(now, spi, sa.core.flow, closed, out);
        }
        if let Some(at) = sa.next_wakeup() {
            self.wakeups.insert((at, spi));
            self.wakeup_of.insert(spi, at);
        }
        if let Some(tunnel) = sa.tunnel() {
            self.supervision.note(tunnel);
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
                    // It may have inherited something to do, and a policy that has changed while it was made.
                    self.with_sa(now, spi, out, |sa, ctx| sa.follow(ctx));
                    if let Some(tunnel) = self.sas.get(&spi).and_then(IkeSa::tunnel) {
                        self.deduplicate(now, tunnel, out);
                    }
                }
                Effect::Reauthenticate { spi, tunnel, trouble } => {
                    self.reauthenticate(now, spi, tunnel, trouble, out);
                }
                Effect::Replace { spi, tunnel } => {
                    // One that ends by now needs no successor of its own.
                    if self.sas.get(&spi).is_some_and(|sa| matches!(sa.state, State::Established(_))) {
                        self.replace(now, spi, tunnel, out);
                    }
                }
                Effect::BeginAnew { tunnel, packet } => {
                    if let Some(mut s) = self.supervision.get_mut(&tunnel) {
                        s.retry_at = None;
                    }
                    let begin = sa::Begin { packet, cookies: sa::Cookies::Doubted };
                    self.initiate(now, tunnel, begin, out);
                }
                Effect::Learned { tunnel, trouble } => {
                    self.learn(tunnel, trouble, out);
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
            Some(State::Preparing(_) | State::InitSent(_)) => true,
            Some(State::Agreeing(s)) => s.spi_r == theirs,
            Some(State::InitTaken(s)) => s.spi_i == theirs,
            Some(State::InitAnswered(s)) => s.spi_i == theirs,
            Some(State::Established(s) | State::Rekeyed(s) | State::Deleting(s)) => {
                (s.channel.spi_i, s.channel.spi_r) == (header.spi_i, header.spi_r)
            }
            Some(State::Intermediate(s)) => s.spis() == (header.spi_i, header.spi_r),
            Some(State::AuthSent(s)) => (s.channel.spi_i, s.channel.spi_r) == (header.spi_i, header.spi_r),
            Some(State::Refused(s)) => s.spi_i == theirs,
            Some(State::Closed(_)) => true,
        };
        if !fits {
            return drop(out, DropReason::UnknownSpi);
        }
        self.with_sa(now, ours, out, |sa, ctx| sa.on_datagram(ctx, &header, bytes, flow));
    }

    fn on_done(&mut self, now: Now, job: JobId, output: Output, out: &mut Actions) {
        // What is late was given up, and what nobody asked for is nobody's.
        if self.jobs.end(job) {
            self.with_sa(now, job.sa, out, |sa, ctx| sa.on_done(ctx, job, output));
        }
    }

    /// Whether one more negotiation may begin: those before it must have their keys, or nobody would wait for them any more
    /// when they are made.
    fn has_room_to_begin(&self) -> bool {
        self.jobs.len() < MAX_JOBS
    }

    fn on_tick(&mut self, now: Now, out: &mut Actions) {
        while let Some(job) = self.jobs.overdue(now.mono) {
            self.on_done(now, job, Output::late(), out);
        }
        while let Some((at, spi)) = self.wakeups.first().copied()
            && at <= now.mono
        {
            self.with_sa(now, spi, out, |sa, ctx| sa.on_tick(ctx));
            self.look_elsewhere(now, spi, out);
            // A timer that stays due is a fault, which simulations find. A daemon that has one goes on, a little busier.
            if self.wakeup_of.get(&spi).is_some_and(|next| *next <= now.mono) {
                debug_assert!(false, "a timer of {spi} stays due");
                self.wakeups.remove(&(at, spi));
                let later = now.mono + Duration::from_millis(10);
                self.wakeups.insert((later, spi));
                self.wakeup_of.insert(spi, later);
            }
        }
        while let Some(id) = self.supervision.due(now.mono) {
            let peer = self.policies.get(&id).and_then(|policy| policy.addresses());
            match peer {
                Some((_, peer)) => self.beginnings.wait(peer, id),
                // Whoever looks for the addresses brings them by `set_policies`.
                None => {
                    if let Some(mut s) = self.supervision.get_mut(&id) {
                        s.retry_at = None;
                    }
                }
            }
        }
    }

    /// Begins negotiations that are due, as many as have a place.
    fn begin_waiting(&mut self, now: Now, out: &mut Actions) {
        while self.has_room_to_begin()
            && let Some(id) = self.beginnings.next(now.mono)
        {
            let Some(mut s) = self.supervision.get_mut(&id) else { continue };
            // Something else may have been decided meanwhile.
            if s.retry_at.take_if(|at| *at <= now.mono).is_some() {
                drop(s);
                self.initiate(now, id, sa::Begin::default(), out);
            }
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

    /// What an SA carries is told often, and seldom has consequences.
    fn on_carried(&mut self, now: Now, sa: SaId, bytes: u64, lately: (u64, Duration), out: &mut Actions) {
        let is_due = |spi: &IkeSpi| match self.sas.get(spi).map(|sa| &sa.state) {
            Some(State::Established(live)) => live.is_nearly_used_up(now.mono, sa, bytes, lately),
            _ => false,
        };
        if self.by_tunnel.get(&sa.child.tunnel).into_iter().flatten().any(is_due) {
            self.each_established(now, sa.child.tunnel, out, |live, _, ctx, _| {
                live.on_volume(ctx, sa, false);
                Next::Stay
            });
        }
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
                let index = ctx.parts.configured(child);
                live.enqueue_at(ctx.now.mono + wait, Task::CreateChild { index, group: None });
            }
            Next::Stay
        });
        let reason = FailureReason::DataPlane;
        if let Some(peer) = peer {
            let tunnel = Some(child.tunnel);
            out.push(Action::Tell(Event::Failure { tunnel, peer, reason, detail, retry_in: None }));
        }
    }

    /// Keeps count of the SAs in the data plane, closes the tunnels of children that have no outbound SA any more, and
    /// takes back the numbers of parts that have no SA at all.
    fn close_tunnels(&mut self, now: Now, from: usize, out: &mut Actions) {
        let mut at = from;
        let mut touched = BTreeSet::new();
        while at < out.len() {
            touched.extend(self.count(out.get(at..).unwrap_or_default()));
            at = out.len();
            let silent: Vec<ChildId> = touched
                .iter()
                .filter(|(_, direction)| *direction == Direction::Out)
                .map(|(child, _)| *child)
                .filter(|child| self.installed.get(child).is_some_and(|set| !carries(set)))
                .collect();
            for child in silent {
                // A newer IKE SA may hold a pair that it has not begun to send on.
                self.each_established(now, child.tunnel, out, |live, _, ctx, _| {
                    live.switch_waiting(ctx, Some(child));
                    Next::Stay
                });
            }
        }
        for (child, direction) in touched.iter().copied() {
            let Some(set) = self.installed.get(&child) else { continue };
            // The last one need not be an outbound one: a pair may end before it has begun to be sent on.
            let ended = if direction == Direction::Out { !carries(set) } else { set.is_empty() };
            if ended && self.open.remove(&child) {
                out.push(Action::CloseTunnel(child));
            }
        }
        for child in touched.into_iter().map(|(child, _)| child) {
            if self.installed.get(&child).is_some_and(BTreeSet::is_empty) {
                self.installed.remove(&child);
                self.parts.release(child);
            }
        }
    }

    /// Counts what actions install and remove, and returns of which children something was removed. Forgets what was
    /// learnt of failing rekeys when one succeeds.
    fn count(&mut self, actions: &[Action]) -> BTreeSet<(ChildId, Direction)> {
        let mut touched = BTreeSet::new();
        for action in actions {
            match action {
                Action::OpenTunnel(spec) => {
                    self.open.insert(spec.child);
                }
                Action::InstallSa(spec) => {
                    self.installed.entry(spec.id.child).or_default().insert(spec.id);
                }
                Action::RemoveSa(id) => {
                    if let Some(set) = self.installed.get_mut(&id.child)
                        && set.remove(id)
                    {
                        touched.insert((id.child, id.direction));
                    }
                }
                Action::Tell(Event::Rekeyed { tunnel, kind: RekeyKind::Child, failure: None }) => {
                    if let Some(mut s) = self.supervision.get_mut(tunnel) {
                        (s.lesson, s.renewals) = (None, Default::default());
                    }
                }
                _ => {}
            }
        }
        touched
    }
}

/// Whether packets can leave by one of these SAs.
fn carries(set: &BTreeSet<SaId>) -> bool {
    set.iter().any(|id| id.direction == Direction::Out)
}
