//! Child SAs of an IKE SA: finding the configured child that fits, installing and removing pairs of ESP SAs.

use std::net::SocketAddr;
use std::time::Duration;

use cygnet_model::id::Reqid;
use cygnet_model::selector::{TrafficSelector, narrow, same, within};
use cygnet_model::suite::{EspSuite, Group};
use cygnet_model::tunnel::{Direction, Mark, SaId, SaSpec, TunnelSpec, UdpEncap, VolumeLimits};
use cygnet_model::{ChildId, Spi, Timestamp};

use super::{Core, Ctx, Live, Task};
use crate::account::{Draft, Offer};
use crate::coverage::list;
use crate::crypto::keymat::ChildKeys;
use crate::error::FailureReason;
use crate::io::{Action, Ending, Event, Role};
use crate::mismatch::{self, Differs, Mismatch};
use crate::policy::{self, TunnelPolicy};
use crate::wire::{NotifyType, Payloads};

/// Most selectors of one side of a child that we negotiate.
const MAX_SELECTORS: usize = 128;

/// Most pairs of SAs that one IKE SA holds.
const MAX_PAIRS: usize = 2 * ChildId::LIMIT as usize;

/// Most pairs with the same selectors: two that both ends made at once, each with its successor.
const MAX_ALIKE: usize = 4;

/// Most pairs of one configured child beside twice its pairs of networks: a peer may ask for one address at a time.
const MAX_NARROWED: usize = 512;

/// How long an old inbound SA still takes packets that were on their way.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// How long a responder's new pair waits beside one of another IKE SA until it is sent on: long enough for the response
/// to arrive, and for the request to be repeated if it does not.
const SWITCH: Duration = Duration::from_secs(1);

/// How long a pair that the peer asked for has to be there until it is taken for known at the peer: longer than peers wait
/// before they repeat a request.
const PRESUMED: Duration = Duration::from_secs(60);

/// Without extended sequence numbers an SA ends at 2³² packets (RFC 4303 §3.3.3); it is rekeyed at three quarters.
const SEQUENCE_LIMIT: u64 = u32::MAX as u64;

/// What a fast link carries while a rekey meets loss: 4 s of 10 Gbit/s, in which a request is sent four times.
const MARGIN: u64 = 5_000_000_000;

/// The volume at which new keys are asked for: what is left must outlast a rekey that meets loss, even if the traffic has only
/// just begun. At least a tenth is left, and no more than half.
fn soft_volume(bytes: u64) -> u64 {
    bytes - MARGIN.clamp(bytes / 10, (bytes / 2).max(bytes / 10))
}

/// Octets after which a pair must be gone: what is configured, or what its cipher bears; 0 = no limit.
pub(super) fn volume(configured: u64, suite: EspSuite) -> u64 {
    match (suite.encr.volume_limit(), configured) {
        (Some(limit), 0) => limit,
        (Some(limit), configured) => configured.min(limit),
        (None, configured) => configured,
    }
}

/// Where a pair of SAs stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChildState {
    /// Nothing is going on.
    Active,
    /// We want new keys for it, or are negotiating them.
    Rekeying,
    /// The peer made a newer pair and will delete this one.
    Replaced,
    /// We want it deleted, or have asked for it.
    Deleting,
}

/// A pair of ESP SAs.
pub(crate) struct Child {
    pub id: ChildId,
    /// Index of the configured child that it is, or is a part of.
    pub of: u16,
    pub inbound: Spi,
    pub outbound: Spi,
    pub suite: EspSuite,
    /// Mark of its packets.
    pub mark: Option<Mark>,
    pub local: Vec<TrafficSelector>,
    pub remote: Vec<TrafficSelector>,
    pub state: ChildState,
    /// When it was negotiated.
    pub made: Timestamp,
    pub rekey_at: Timestamp,
    pub expire_at: Timestamp,
    /// The outbound SA, while the peer may not have the inbound half of it yet.
    pub pending: Option<Box<SaSpec>>,
    /// When it is taken into use all the same: where it replaces nothing there is no rekey to tell the moment.
    pub switch_at: Option<Timestamp>,
    /// The tunnel as it is from then on, if another child carries some of its packets until then.
    pub opens: Option<TunnelSpec>,
    /// The pair that this one replaces, while it is there.
    pub replaces: Option<Spi>,
    /// Our own rekey of the same pair is on its way too: nonces will decide.
    pub contested: bool,
    /// The peer asked for it and has not shown yet that it got our response.
    pub unseen: bool,
    /// Our own pair for the same child that is redundant beside this one. It is closed once the peer is known to have this.
    pub closes: Option<Spi>,
}

/// A pair as negotiated, without keys.
pub(crate) struct Negotiated {
    /// Index of the configured child.
    pub of: u16,
    pub suite: EspSuite,
    pub inbound: Spi,
    pub outbound: Spi,
    pub local: Vec<TrafficSelector>,
    pub remote: Vec<TrafficSelector>,
}

/// A pair with its keys, ready to be installed.
pub(crate) struct NewPair {
    pub negotiated: Negotiated,
    pub keys: ChildKeys,
    /// Our role in the exchange that made it.
    pub role: Role,
}

/// A configured child that fits a peer's offer.
pub(crate) struct Found {
    of: u16,
    suite: EspSuite,
    /// Number of the chosen proposal.
    pub number: u8,
    outbound: Spi,
    local: Vec<TrafficSelector>,
    remote: Vec<TrafficSelector>,
}

impl Found {
    /// Reserves our SPI.
    pub fn negotiate(self, ctx: &mut Ctx<'_>) -> Negotiated {
        let inbound = ctx.spis.new_esp(ctx.random);
        let Self { of, suite, outbound, local, remote, .. } = self;
        Negotiated { of, suite, inbound, outbound, local, remote }
    }

    pub const fn suite(&self) -> EspSuite {
        self.suite
    }

    /// Adds to the account of the exchange what was chosen of the peer's offer.
    pub fn account(&self, draft: Draft, policy: &TunnelPolicy, offer: Offer<'_>, with_ke: bool) -> Draft {
        let Some(c) = policy.children.get(self.of) else { return draft };
        let (wanted, made) = ((&*c.local, &*c.remote), (&*self.local, &*self.remote));
        draft.child_chosen(&c.proposals, wanted, Some(offer), self.suite, made, with_ke)
    }

    /// Whether a pair has the same selectors.
    pub fn is_like(&self, c: &Child) -> bool {
        c.is_of(self.of, &self.local, &self.remote)
    }
}

impl Negotiated {
    /// Whether a pair has the same selectors.
    pub fn is_like(&self, c: &Child) -> bool {
        c.is_of(self.of, &self.local, &self.remote)
    }
}

impl Child {
    fn is_of(&self, of: u16, local: &[TrafficSelector], remote: &[TrafficSelector]) -> bool {
        self.of == of && same(&self.local, local) && same(&self.remote, remote)
    }
}

/// An offer of a child that is refused, or an answer to ours that cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unfit {
    /// What a responder answers.
    pub notify: NotifyType,
    pub reason: FailureReason,
    /// What the two ends do not have in common.
    pub differs: Vec<Mismatch>,
}

impl Unfit {
    fn new(notify: NotifyType, reason: FailureReason, differs: Vec<Mismatch>) -> Self {
        Self { notify, reason, differs }
    }

    /// The answer carries another group than the one that we sent.
    pub fn group(sent: Group, got: u16) -> Self {
        let offered =
            Group::from_transform(got).map_or_else(|| format!("number {got}"), |g| g.keyword().to_owned());
        let differs =
            vec![Mismatch { what: Differs::KeyExchange, offered, wanted: sent.keyword().to_owned() }];
        Self::new(NotifyType::INVALID_KE_PAYLOAD, FailureReason::InvalidKe, differs)
    }

    pub fn syntax() -> Self {
        Self::new(NotifyType::INVALID_SYNTAX, FailureReason::InvalidSyntax, Vec::new())
    }

    /// It answers a request of an earlier process, which took the private key with it.
    pub const fn lost() -> Self {
        Self { notify: NotifyType::TEMPORARY_FAILURE, reason: FailureReason::StateLost, differs: Vec::new() }
    }

    fn proposal(differs: Vec<Mismatch>) -> Self {
        Self::new(NotifyType::NO_PROPOSAL_CHOSEN, FailureReason::NoProposalChosen, differs)
    }

    fn spi(spi: [u8; 4]) -> Self {
        let offered = format!("{:08x}", u32::from_be_bytes(spi));
        let wanted = "one above 255 that no other pair has".to_owned();
        Self::proposal(vec![Mismatch { what: Differs::Spi, offered, wanted }])
    }
}

/// Finds the child that fits a peer's offer best: one that covers the first selectors of both sides, which are those of the
/// packet that made the peer ask, or its first choice (RFC 7296 §2.9), then one whose selectors match as a whole, then one
/// that has no SAs yet, then the first. `only` restricts the search to the child being rekeyed; `bound` knows the SPIs that we send to already.
pub(crate) fn find(
    policy: &TunnelPolicy,
    offer: &Payloads,
    with_ke: bool,
    only: Option<u16>,
    taken: impl Fn(u16) -> bool,
    bound: impl Fn(Spi) -> bool,
) -> Result<Found, Unfit> {
    let (Some(sa), Some(tsi), Some(tsr)) = (&offer.sa, &offer.tsi, &offer.tsr) else {
        return Err(Unfit::syntax());
    };
    let mut refusal: Option<Unfit> = None;
    let mut best: Option<((bool, bool, bool), Found)> = None;
    let first = |ours: &[TrafficSelector], theirs: &[TrafficSelector]| {
        theirs.first().is_some_and(|first| within(&[*first], ours))
    };
    for (of, c) in policy.children.iter() {
        if only.is_some_and(|o| o != of) {
            continue;
        }
        let local = narrow(&c.local, tsr, MAX_SELECTORS);
        let remote = narrow(&c.remote, tsi, MAX_SELECTORS);
        if local.is_empty() || remote.is_empty() {
            continue;
        }
        let Some((suite, number, spi)) = policy::choose_esp(&c.proposals, sa, with_ke) else {
            refusal = Some(Unfit::proposal(mismatch::esp(&c.proposals, sa, with_ke)));
            continue;
        };
        // The reserved SPIs 0..=255 cannot be sent to (RFC 4303 §2.1), and one that is bound would give two SAs one name.
        let Some(outbound) = Spi::new(u32::from_be_bytes(spi)).filter(|spi| !bound(*spi)) else {
            refusal = Some(Unfit::spi(spi));
            continue;
        };
        let wanted = first(&c.local, tsr) && first(&c.remote, tsi);
        let score = (wanted, same(&local, &c.local) && same(&remote, &c.remote), !taken(of));
        if best.as_ref().is_none_or(|(s, _)| score > *s) {
            best = Some((score, Found { of, suite, number, outbound, local, remote }));
        }
    }
    best.map(|(_, found)| found).ok_or_else(|| {
        refusal.unwrap_or_else(|| {
            let ours = |side: fn(&policy::ChildPolicy) -> &Vec<TrafficSelector>| {
                let fitting = policy.children.iter().filter(|(of, _)| only.is_none_or(|o| o == *of));
                fitting.flat_map(|(_, c)| side(c)).copied().collect::<Vec<_>>()
            };
            let wanted = (&*ours(|c| &c.local), &*ours(|c| &c.remote));
            let differs = mismatch::networks(wanted, (tsr, tsi));
            Unfit::new(NotifyType::TS_UNACCEPTABLE, FailureReason::TsUnacceptable, differs)
        })
    })
}

/// What we offered for a child.
pub(crate) struct Offered<'a> {
    /// Index of the configured child.
    pub of: u16,
    pub inbound: Spi,
    pub local: &'a [TrafficSelector],
    pub remote: &'a [TrafficSelector],
    /// Whether key exchange was offered, which it is not in IKE_AUTH.
    pub with_ke: bool,
}

/// Checks a responder's answer to our offer of a child: what it chose must be ours, and its selectors within ours.
pub(crate) fn accept(
    policy: &TunnelPolicy,
    offered: &Offered<'_>,
    answer: &Payloads,
    bound: impl Fn(Spi) -> bool,
) -> Result<Negotiated, Unfit> {
    if let Some(n) = answer.error() {
        return Err(Unfit::new(n.kind, FailureReason::of_notify(n.kind), Vec::new()));
    }
    let Offered { of, inbound, local, remote, with_ke } = *offered;
    let child = policy.children.get(of);
    let (Some(sa), Some(tsi), Some(tsr), Some(child)) = (&answer.sa, &answer.tsi, &answer.tsr, child) else {
        return Err(Unfit::syntax());
    };
    let Some((suite, spi)) = policy::accept_esp(&child.proposals, sa, with_ke) else {
        return Err(Unfit::proposal(mismatch::esp(&child.proposals, sa, with_ke)));
    };
    let Some(outbound) = Spi::new(u32::from_be_bytes(spi)).filter(|spi| !bound(*spi)) else {
        return Err(Unfit::spi(spi));
    };
    let fits = !tsi.is_empty() && !tsr.is_empty() && within(tsi, local) && within(tsr, remote);
    if !fits {
        let side = |what, offered: &[_], wanted: &[_]| {
            (!within(offered, wanted)).then(|| Mismatch {
                what,
                offered: list(offered),
                wanted: list(wanted),
            })
        };
        let differs = [side(Differs::OurNetworks, tsi, local), side(Differs::TheirNetworks, tsr, remote)];
        let differs = differs.into_iter().flatten().collect();
        return Err(Unfit::new(NotifyType::TS_UNACCEPTABLE, FailureReason::TsUnacceptable, differs));
    }
    // The selectors of the packet that made us ask may stand beside those that cover them.
    let (local, remote) = (narrow(tsi, tsi, tsi.len()), narrow(tsr, tsr, tsr.len()));
    Ok(Negotiated { of, suite, inbound, outbound, local, remote })
}

/// One line about an offer of a child that nothing fits.
pub(crate) fn refusal_detail(unfit: &Unfit, peer: SocketAddr, offer: &Payloads) -> String {
    let differs = mismatch::words(&unfit.differs);
    let nets = |ts: &Option<Vec<TrafficSelector>>| list(ts.as_deref().unwrap_or_default());
    match unfit.reason {
        FailureReason::TsUnacceptable => {
            let differs = if differs.is_empty() { "no SPD rule has both".to_owned() } else { differs };
            format!(
                "{peer} offers its networks [{}] to our [{}]: no SPD rule of this tunnel fits; {differs}",
                nets(&offer.tsi),
                nets(&offer.tsr)
            )
        }
        FailureReason::NoProposalChosen => format!(
            "{peer} offers no ESP proposal that we accept for its networks [{}] to our [{}]; {differs}",
            nets(&offer.tsi),
            nets(&offer.tsr)
        ),
        _ => format!("{peer} offers a child that lacks a payload"),
    }
}

impl Live {
    /// Installs a pair: the inbound SA first, then the outbound one, unless the peer still has to learn of it while
    /// another pair carries the traffic (we are the responder of a rekey; see [`Live::switch_pending`]).
    ///
    /// Returns the child that the pair serves; `None`, with the pair given back to the peer, if there is no number left
    /// for it.
    pub fn install(
        &mut self,
        core: &Core,
        ctx: &mut Ctx<'_>,
        pair: NewPair,
        replaces: Option<Spi>,
    ) -> Option<ChildId> {
        let NewPair { negotiated: n, keys, role } = pair;
        let old = replaces.and_then(|spi| self.children.iter().find(|c| c.inbound == spi));
        let id = match old {
            Some(old) => {
                ctx.parts.change(old.id, &n.local, &n.remote);
                Some(old.id)
            }
            None => ctx.parts.place(&self.policy, n.of, &n.local, &n.remote),
        };
        let c = self.policy.children.get(n.of);
        let (Some(id), Some(reqid), Some(c)) = (id, id.and_then(Reqid::of), c) else {
            ctx.spis.esp.remove(&n.inbound);
            if role == Role::Initiator {
                self.enqueue(Task::DisownChild { inbound: n.inbound });
            }
            return None;
        };
        let (in_keys, out_keys) = match role {
            Role::Initiator => ((keys.encr_r, keys.integ_r), (keys.encr_i, keys.integ_i)),
            Role::Responder => ((keys.encr_i, keys.integ_i), (keys.encr_r, keys.integ_r)),
        };
        let (soft_packets, hard_packets) =
            if n.suite.esn { (0, 0) } else { (SEQUENCE_LIMIT / 4 * 3, SEQUENCE_LIMIT) };
        let bytes = volume(c.bytes, n.suite);
        let limits =
            VolumeLimits { soft_bytes: soft_volume(bytes), hard_bytes: bytes, soft_packets, hard_packets };
        let flow = core.flow;
        // Not every peer on port 4500 encapsulates: with MOBIKE it goes there without any NAT (RFC 4555 §3.3).
        let behind_nat = self.nat.local || self.nat.remote || self.policy.encap.is_forced();
        let spec = |direction, spi, (encr_key, integ_key)| SaSpec {
            id: SaId { child: id, direction, spi },
            reqid,
            local: flow.local.ip(),
            remote: flow.remote.ip(),
            encap: (flow.natt && behind_nat)
                .then_some(UdpEncap { local_port: flow.local.port(), remote_port: flow.remote.port() }),
            suite: n.suite,
            encr_key,
            integ_key,
            replay_window: c.replay_window,
            inner_local: n.local.clone(),
            inner_remote: n.remote.clone(),
            limits,
            mark: c.mark,
        };
        let inbound = Box::new(spec(Direction::In, n.inbound, in_keys));
        let outbound = Box::new(spec(Direction::Out, n.outbound, out_keys));
        let mut tunnel = TunnelSpec {
            child: id,
            reqid,
            local: n.local.clone(),
            remote: n.remote.clone(),
            outer_local: flow.local.ip(),
            outer_remote: flow.remote.ip(),
            mark: c.mark,
            weight: c.weight,
        };
        // A rekey touches keys only: the tunnel stays as it is unless its selectors changed, or it was closed because the
        // old pair ended first.
        let same = old
            .is_some_and(|o| o.state != ChildState::Deleting && o.local == n.local && o.remote == n.remote);
        let lifetime = c.lifetime;
        // A pair that we have just made ourselves is known to be at the peer, and carries the traffic for the time being.
        let first = replaces.is_none();
        let just_made = self.created.iter().find(|made| made.id == id).map(|made| made.inbound);
        let replaces = replaces.or_else(|| {
            just_made.filter(|spi| self.children.iter().any(|c| c.inbound == *spi && c.is_to_stay()))
        });
        ctx.out.push(Action::InstallSa(inbound));
        // Something may carry the child already: another IKE SA, which this one is to replace, or another pair, beside
        // which the peer wants one.
        let alike = self.children.iter().any(|c| c.id != id && c.carries_like(&n.local, &n.remote));
        let beside = replaces.is_none() && (ctx.carries(id) || alike);
        let switch_at = beside.then(|| ctx.now.mono + SWITCH);
        let mut pending = None;
        if role == Role::Responder && (replaces.is_some() || beside) {
            pending = Some(outbound);
        } else {
            ctx.out.push(Action::InstallSa(outbound));
        }
        let mut opens = None;
        if pending.is_some() && alike {
            // Until then the packets are the other's.
            opens = Some(tunnel.clone());
            tunnel.weight = u16::MAX;
        }
        if !same {
            ctx.out.push(Action::OpenTunnel(tunnel));
        }
        if first {
            let (inbound, outbound) = (n.inbound, n.outbound);
            let (local, remote) = (n.local.clone(), n.remote.clone());
            ctx.tell(Event::ChildUp { child: id, inbound, outbound, suite: n.suite, local, remote });
        }
        let margin = ctx.within(lifetime / 10, lifetime / 5);
        self.put_off = 0;
        if self.children.is_empty() {
            // Most IKE SAs have one.
            self.children.reserve_exact(1);
        }
        self.children.push(Child {
            id,
            of: n.of,
            made: ctx.now.mono,
            inbound: n.inbound,
            outbound: n.outbound,
            suite: n.suite,
            mark: c.mark,
            local: n.local,
            remote: n.remote,
            state: ChildState::Active,
            rekey_at: ctx.now.mono + lifetime - margin,
            expire_at: ctx.now.mono + lifetime,
            pending,
            switch_at,
            opens,
            replaces,
            contested: false,
            unseen: role == Role::Responder,
            closes: None,
        });
        self.found(n.of);
        Some(id)
    }

    /// Whether the peer has as many pairs with the same selectors, or of the same configured child, as any honest one has.
    pub fn is_crowded(&self, found: &Found) -> bool {
        let alike = self.children.iter().filter(|c| found.is_like(c)).count();
        let of_child = self.children.iter().filter(|c| c.of == found.of).count();
        let pairs = self.policy.children.get(found.of);
        let pairs = pairs.map_or(0, |c| c.local.len().saturating_mul(c.remote.len()));
        alike >= MAX_ALIKE || of_child >= pairs.saturating_mul(2).saturating_add(MAX_NARROWED)
    }

    /// Whether there is room for another pair: the peer is authenticated, but not unbounded.
    pub fn has_room(&self) -> bool {
        self.children.len() < MAX_PAIRS
    }

    /// The peer is known to have got our response about a pair, or about all of them: it sends on that one, or asks for
    /// something else.
    pub fn on_seen(&mut self, ctx: &mut Ctx<'_>, inbound: Option<Spi>) {
        let mut redundant = Vec::new();
        for c in self.children.iter_mut().filter(|c| c.unseen && inbound.is_none_or(|i| i == c.inbound)) {
            c.unseen = false;
            redundant.extend(c.closes.take());
        }
        for spi in redundant {
            self.close_redundant(ctx, spi);
        }
    }

    /// Two pairs were made for one child at the same time, and ours is the redundant one.
    pub fn on_redundant(&mut self, ctx: &mut Ctx<'_>, ours: Spi, theirs: Spi) {
        // The peer may have deleted its own one in the meantime, or we may be about to.
        if self.queue.contains(&Task::DeleteChild { inbound: theirs }) {
            return;
        }
        let stays = self.children.iter_mut().find(|c| c.inbound == theirs && c.is_to_stay());
        let Some(stays) = stays else { return };
        if stays.unseen {
            stays.closes = Some(ours);
            if let Some(c) = self.children.iter_mut().find(|c| c.inbound == ours) {
                c.state = ChildState::Deleting;
            }
        } else {
            self.close_redundant(ctx, ours);
        }
    }

    /// Closes what is redundant beside pairs that the peer must have by now: it would have asked again without our response. It
    /// need not send on them, since it may know of no collision and take the redundant one, as the newest.
    pub fn close_by_time(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.mono;
        let due = self.children.iter_mut().filter(|c| c.presumed_at().is_some_and(|at| at <= now));
        for spi in due.filter_map(|c| c.closes.take()).collect::<Vec<_>>() {
            self.close_redundant(ctx, spi);
        }
    }

    fn close_redundant(&mut self, ctx: &mut Ctx<'_>, inbound: Spi) {
        let Some(c) = self.children.iter_mut().find(|c| c.inbound == inbound) else { return };
        c.state = ChildState::Deleting;
        // From here on we send on the pair that stays.
        ctx.out.push(Action::RemoveSa(c.sa(Direction::Out)));
        self.enqueue(Task::DeleteChild { inbound });
    }

    /// Starts to send on pairs whose inbound half the peer is known to have.
    pub fn switch_pending(&mut self, ctx: &mut Ctx<'_>) {
        for child in self.children.iter_mut().filter(|c| !c.contested) {
            child.switch(ctx);
        }
    }

    /// Starts to send on what replaces a pair, which ends: whether or not the peer has it yet, and whatever a contest would
    /// say. Before the old pair is removed, because the tunnel is closed with the last outbound SA.
    pub fn succeed(&mut self, ctx: &mut Ctx<'_>, old: Spi) {
        for child in self.children.iter_mut().filter(|c| c.replaces == Some(old)) {
            child.switch(ctx);
        }
    }

    /// Starts to send on pairs that have waited long enough, or on those of `child` at once, because nothing else carries
    /// it any more.
    pub fn switch_waiting(&mut self, ctx: &mut Ctx<'_>, child: Option<ChildId>) {
        let now = ctx.now.mono;
        for c in &mut self.children {
            let due = match child {
                Some(id) => c.id == id && !c.contested,
                None => c.switch_at.is_some_and(|at| at <= now),
            };
            if due {
                c.switch(ctx);
            }
        }
    }

    /// Takes a pair out. The outbound SA goes at once, the inbound one after packets on their way have arrived.
    pub fn remove_child(&mut self, ctx: &mut Ctx<'_>, inbound: Spi) -> Option<Child> {
        self.succeed(ctx, inbound);
        let at = self.children.iter().position(|c| c.inbound == inbound)?;
        let child = self.children.remove(at);
        if child.pending.is_none() {
            ctx.out.push(Action::RemoveSa(child.sa(Direction::Out)));
        }
        self.lingering.push((ctx.now.mono + LINGER, child.sa(Direction::In)));
        // What it was to replace is needed after all: the peer could not take the new keys.
        let again = self.children.iter().any(|c| child.replaces.is_some() && c.replaces == child.replaces);
        let replaced = |c: &Child| Some(c.inbound) == child.replaces && c.state == ChildState::Replaced;
        if !again && self.children.iter().any(replaced) {
            self.revive(child.replaces);
        }
        // What was redundant beside it as well.
        self.revive(child.closes);
        Some(child)
    }

    /// A pair that was about to end is needed after all, unless the configuration has its rule no more: when it lost that, only
    /// pairs that were there to stay were told to end.
    fn revive(&mut self, inbound: Option<Spi>) {
        let Some(c) = self.children.iter_mut().find(|c| Some(c.inbound) == inbound) else { return };
        c.state = ChildState::Active;
        let (inbound, of) = (c.inbound, c.of);
        if self.policy.children.get(of).is_none() {
            self.enqueue(Task::DeleteChild { inbound });
        }
    }

    /// Whether the peer receives on this SPI already.
    pub fn is_bound(&self, spi: Spi) -> bool {
        self.children.iter().any(|c| c.outbound == spi)
    }

    /// Whether anything of a configured child has a pair that is there to stay.
    pub fn has_child(&self, of: u16) -> bool {
        self.children.iter().any(|c| c.of == of && c.is_to_stay())
    }

    /// Whether a child, or a part of one, has a pair that is there to stay.
    pub fn has(&self, id: ChildId) -> bool {
        self.children.iter().any(|c| c.id == id && c.is_to_stay())
    }

    /// Removes everything from the data plane at once and forgets what was still to be done, before the IKE SA ends. A
    /// request on its way stays: until it is answered there is no room in the peer's window for another one.
    pub fn strip(&mut self, ctx: &mut Ctx<'_>, ending: Ending) {
        self.queue.clear();
        self.delayed.clear();
        for child in std::mem::take(&mut self.children) {
            if child.pending.is_none() {
                ctx.out.push(Action::RemoveSa(child.sa(Direction::Out)));
            }
            ctx.out.push(Action::RemoveSa(child.sa(Direction::In)));
            ctx.spis.esp.remove(&child.inbound);
            if matches!(child.state, ChildState::Active | ChildState::Rekeying) {
                ctx.tell(child.down(ending));
            }
        }
        for (_, sa) in std::mem::take(&mut self.lingering) {
            ctx.out.push(Action::RemoveSa(sa));
            ctx.spis.esp.remove(&sa.spi);
        }
    }

    /// The same, and nothing more is expected of the peer.
    pub fn teardown(&mut self, ctx: &mut Ctx<'_>, ending: Ending) {
        self.strip(ctx, ending);
        if let Some(o) = self.window.outstanding.take() {
            o.request.release(ctx);
        }
        if let Some(theirs) = self.their_rekey.take() {
            theirs.release(ctx);
        }
        if let Some(promise) = self.promise.take() {
            promise.release(ctx);
        }
    }
}

impl Child {
    /// When what is redundant beside it is closed even if the peer has not shown that it has this one.
    pub fn presumed_at(&self) -> Option<Timestamp> {
        self.closes.map(|_| self.made + PRESUMED)
    }

    /// Starts to send on it, if that waited. One that lost a contest is never sent on, nor is one that the data plane
    /// refused: it only waits to be known, to be deleted.
    fn switch(&mut self, ctx: &mut Ctx<'_>) {
        if self.state == ChildState::Replaced {
            return;
        }
        self.switch_at = None;
        let spec = self.pending.take().filter(|_| self.is_to_stay());
        if let Some(spec) = spec {
            self.contested = false;
            let remote = spec.remote;
            ctx.out.push(Action::InstallSa(spec));
            if let Some(tunnel) = self.opens.take() {
                ctx.out.push(Action::OpenTunnel(TunnelSpec { outer_remote: remote, ..tunnel }));
            }
        }
    }

    /// Whether it carries packets, some of which have the same two selectors as others.
    fn carries_like(&self, local: &[TrafficSelector], remote: &[TrafficSelector]) -> bool {
        let common = |a: &[TrafficSelector], b: &[TrafficSelector]| a.iter().any(|s| b.contains(s));
        self.pending.is_none()
            && self.is_to_stay()
            && common(&self.local, local)
            && common(&self.remote, remote)
    }

    /// The event of its end.
    pub fn down(&self, ending: Ending) -> Event {
        let (local, remote) = (self.local.clone(), self.remote.clone());
        Event::ChildDown { child: self.id, inbound: self.inbound, local, remote, ending }
    }

    /// Whether nobody has replaced it or wants it deleted.
    pub const fn is_to_stay(&self) -> bool {
        matches!(self.state, ChildState::Active | ChildState::Rekeying)
    }

    /// One of the two SAs.
    pub fn sa(&self, direction: Direction) -> SaId {
        let spi = if direction == Direction::In { self.inbound } else { self.outbound };
        SaId { child: self.id, direction, spi }
    }
}
