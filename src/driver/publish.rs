//! Makes the snapshot that everybody else reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cygnet_ike::coverage::{Coverage, MissingPair};
use cygnet_ike::io::Role;
use cygnet_ike::view::{self, ChildView, ConfiguredState, ConfiguredView, IkeView, TunnelView};
use cygnet_model::plane::SaCounters;
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{Now, Timestamp, TunnelId};

use super::levels::LevelKey;
use super::rates::Rates;
use super::tell::lesson_words;
use super::{Daemon, clock};
use crate::config::model::{Config, Start, Tunnel};
use crate::observe::counters::Totals;
use crate::observe::snapshot::{
    ChildStatus, CoverageStatus, Drops, FloodStatus, GatewayStatus, IkeRole, IkeStatus, LegacyStatus,
    MissingStatus, Nat, PathStatus, QuotaStatus, QuotaUse, RuleState, RuleStatus, Snapshot, TunnelState,
    TunnelStatus, WallStatus,
};
use crate::observe::{Published, rfc3339};

/// Changes that come closer together are published together.
const PUBLISH_DELAY: Duration = Duration::from_millis(500);
/// Answered commands are published at once, but for no larger part of the time than one in so many.
const PUBLISH_PART: u32 = 20;

/// A page on which nothing changes is made anew once in so many samples: in a minute.
const TURNS: usize = 12;

/// What was published of tunnels, to be published again as far as nothing has changed.
#[derive(Default)]
pub(super) struct Pages {
    /// In the order of the file; `None` if it has to be made anew.
    of: Option<Vec<Arc<TunnelStatus>>>,
    /// Tunnels that changed since.
    stale: BTreeSet<TunnelId>,
    /// From when on there may be another snapshot before its time.
    free_at: Option<tokio::time::Instant>,
    /// Whose turn it is to be made anew, of so many as [`TURNS`].
    turn: usize,
}

impl Pages {
    /// Forgets all pages: the configuration is another one, or somebody wants to see ages of this moment.
    pub fn begin_anew(&mut self) {
        self.of = None;
    }

    /// Notes that a tunnel has changed; the endpoint notes by itself what it changes.
    pub fn note(&mut self, id: TunnelId) {
        self.stale.insert(id);
    }
}

/// What is remembered of a tunnel between snapshots.
pub(super) struct TunnelMemory {
    /// Address and port of the other end of its last IKE SA.
    pub(super) peer: Option<String>,
    state: TunnelState,
    since: Now,
    /// Pairs of networks that are carried.
    covered: usize,
    pub last_error: Option<String>,
    /// Counters of each SA when they were last read, in the order of their ids.
    pub sas: Box<[(SaId, SaCounters)]>,
    /// When that was.
    pub counted_at: Timestamp,
}

impl TunnelMemory {
    pub fn new(now: Now) -> Self {
        Self {
            peer: None,
            state: TunnelState::Connecting,
            since: now,
            covered: 0,
            last_error: None,
            sas: Box::default(),
            counted_at: now.mono,
        }
    }
}

impl TunnelMemory {
    /// Whether the tunnel was up when its state was last noted.
    pub const fn is_up(&self) -> bool {
        self.state.is_up()
    }
}

impl Daemon {
    /// Publishes what a command changed before the command is answered; where many come one after the other, a moment
    /// later, and together.
    pub(super) fn publish_soon(&mut self) {
        let now = tokio::time::Instant::now();
        match self.pages.free_at {
            Some(at) if now < at => {
                let at = self.publish_at.map_or(at, |other| at.min(other));
                self.publish_at = Some(at);
            }
            _ => self.publish(),
        }
    }

    /// Publishes a snapshot with the octets and packets of the last sample. It costs as much as has changed since the one
    /// before, and a little for each tunnel.
    pub(super) fn publish(&mut self) {
        let began = tokio::time::Instant::now();
        self.counters.at = clock::now().mono;
        self.publish_at = None;
        // The snapshot notes the tunnels' states, which count.
        let snapshot = self.snapshot();
        // A next life never begins below what was shown.
        self.keep_tallies();
        let published =
            Published { snapshot, counters: self.counters.clone(), traffic: Arc::clone(&self.traffic_page) };
        self.publisher.send_replace(Arc::new(published));
        let took = began.elapsed().saturating_mul(PUBLISH_PART).min(PUBLISH_DELAY);
        self.pages.free_at = Some(began + took);
    }

    /// Notes in which state a tunnel is, since when, and whether it should pass traffic and does not. Gives what was looked
    /// at, of a tunnel that is configured.
    fn note_state(&mut self, id: TunnelId) -> Option<TunnelView> {
        let now = clock::now();
        let view = self.endpoint.view(id)?;
        let state = tunnel_state(view.state);
        let t = self.places.get(&id).and_then(|n| self.config.tunnels.get(*n))?;
        // Neither a tunnel that was taken down nor one that waits for its first packet is missed.
        let idle = state == TunnelState::Waiting && t.start == Start::OnDemand;
        self.counters.set_up(&t.name, state.is_up() || idle || state == TunnelState::Down, now.mono);
        let memory = self.tunnels.get_mut(&id)?;
        // A rekey does not make a tunnel younger.
        if memory.state != state && !(memory.state.is_up() && state.is_up()) {
            memory.since = now;
        }
        memory.state = state;
        if std::mem::replace(&mut memory.covered, view.coverage.covered) != view.coverage.covered {
            self.tell_coverage(id, &view);
        }
        Some(view)
    }

    /// Notes the states of tunnels to which something has happened.
    pub(super) fn note_states(&mut self) {
        for id in std::mem::take(&mut self.in_change) {
            self.note_state(id);
        }
    }

    /// Sees to it that readers soon learn of a tunnel's change.
    pub(super) fn changed(&mut self, id: TunnelId) {
        // Several things happen to it at once.
        self.in_change.insert(id);
        self.pages.note(id);
        self.publish_at.get_or_insert_with(|| tokio::time::Instant::now() + PUBLISH_DELAY);
    }

    /// Has the pages made anew that say what changes by itself: of tunnels that are probed or suspected, and of some others
    /// in turn. Ages, and what is left of lifetimes, count from when a page was made.
    pub(super) fn age_pages(&mut self) {
        let turn = (self.pages.turn + 1) % TURNS;
        self.pages.turn = turn;
        let in_turn = self.places.iter().filter(|(_, place)| *place % TURNS == turn).map(|(id, _)| *id);
        let suspects = self.passage.suspects().map(|child| child.tunnel);
        self.pages.stale.extend(in_turn.chain(suspects).chain(self.quality.watched()));
    }

    /// Everything at this moment.
    fn snapshot(&mut self) -> Snapshot {
        let tunnels = self.tunnel_pages(clock::now().mono);
        Snapshot { tunnels, ..self.frame() }
    }

    /// Everything but the tunnels.
    fn frame(&mut self) -> Snapshot {
        let gateways = (self.config.gateways.iter())
            .map(|g| {
                let rates = self.rates.get(&g.name);
                let out_key = LevelKey::gateway(&g.name);
                let out = self.level(&out_key);
                let addresses: Vec<String> =
                    self.outer.get(&g.name).into_iter().flatten().map(ToString::to_string).collect();
                GatewayStatus {
                    name: g.name.clone(),
                    address: addresses.join(", "),
                    bandwidth_bps: out.bps,
                    bandwidth_origin: out.origin,
                    bandwidth_in: self.level(&out_key.inward()).status(),
                    tx_bps: rates.map_or(0, Rates::tx_bps),
                    rx_bps: rates.map_or(0, Rates::rx_bps),
                    bandwidth_used_bps: rates.and_then(Rates::out_used_bps),
                    bandwidth_in_used_bps: rates.and_then(Rates::in_used_bps),
                    role: crate::observe::snapshot::Role::Single,
                    used: self.used.get(&g.name).copied().unwrap_or_default(),
                    limits: self.limits_in_force(&g.name),
                }
            })
            .collect();
        let wall = self.plane.wall();
        let wall = WallStatus {
            in_force: wall.stands(),
            drops: wall.drops().into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
            repairs: wall.repairs(),
            gaps: wall.gaps().map(str::to_owned).collect(),
        };
        Snapshot {
            wall,
            quota: self.quotas.clone(),
            data_plane: self.choice.plane.name().to_owned(),
            data_plane_reason: self.choice.reason.clone(),
            started: rfc3339(clock::unix_of(self.started, clock::now())),
            config_ok: self.config_ok,
            obstacles: self.obstacle_findings(),
            half_open: count(self.endpoint.half_open()),
            flood: FloodStatus {
                half_open_limit: count(self.endpoint.half_open_limit()),
                cookies_demanded: self.counters.cookies.demanded,
                cookies_returned: self.counters.cookies.returned,
                dropped: named(&self.counters.ike_dropped),
            },
            plane_drops: named(&self.counters.plane_drops),
            gateways,
            ..Snapshot::default()
        }
    }

    /// All tunnels in the order of the file, those made anew that have changed.
    fn tunnel_pages(&mut self, now: Timestamp) -> Vec<Arc<TunnelStatus>> {
        self.note_states();
        let mut stale = self.endpoint.take_changed();
        stale.append(&mut self.pages.stale);
        let mut pages = self.pages.of.take();
        // A page has its tunnel's place only while each tunnel has one.
        if let Some(pages) = pages.as_mut().filter(|pages| pages.len() == self.config.tunnels.len()) {
            for id in stale {
                let status = self.page(id, now);
                let place = self.places.get(&id).and_then(|place| pages.get_mut(*place));
                if let Some((page, status)) = place.zip(status) {
                    *page = status;
                }
            }
        } else {
            let ids: Vec<TunnelId> =
                self.config.tunnels.iter().filter_map(|t| self.registry.tunnel(&t.name)).collect();
            let mut all = Vec::with_capacity(ids.len());
            all.extend(ids.into_iter().filter_map(|id| self.page(id, now)));
            pages = Some(all);
        }
        let pages = pages.unwrap_or_default();
        self.pages.of = Some(pages.clone());
        pages
    }

    /// One tunnel with its gateway, or one gateway with its tunnels, with counters of this moment. A tunnel's name counts
    /// first.
    pub(super) fn status_of(&mut self, name: &str) -> Option<Snapshot> {
        let now = clock::now().mono;
        let tunnel = self.registry.tunnel(name).filter(|id| self.places.contains_key(id));
        let of_gateway = |t: &&Tunnel| t.gateway == name;
        let ids: Vec<TunnelId> = match tunnel {
            Some(id) => vec![id],
            None => {
                self.config.gateway(name)?;
                let all = self.config.tunnels.iter().filter(of_gateway);
                all.filter_map(|t| self.registry.tunnel(&t.name)).collect()
            }
        };
        let (mut counted, mut told) = (Vec::new(), Vec::new());
        for id in &ids {
            counted.clear();
            match self.plane.port().counters_of(*id, &mut counted) {
                Ok(()) => {
                    counted.sort_unstable_by_key(|(sa, _)| *sa);
                    self.note_counted(*id, &counted, now, &mut told);
                }
                Err(e) => tracing::warn!(error = %e, "counters"),
            }
        }
        told.into_iter().for_each(|told| self.input(told));
        let mut tunnels = Vec::new();
        tunnels.extend(ids.into_iter().filter_map(|id| self.page(id, now)));
        let gateway = tunnels.first().map_or_else(|| name.to_owned(), |t| t.gateway.clone());
        let mut snapshot = self.frame();
        snapshot.gateways.retain(|g| g.name == gateway);
        Some(Snapshot { tunnels, ..snapshot })
    }

    /// The page of a tunnel at this moment, whose state is noted with it.
    fn page(&mut self, id: TunnelId, now: Timestamp) -> Option<Arc<TunnelStatus>> {
        let view = self.note_state(id)?;
        self.tunnel_status(id, &view, now).map(Arc::new)
    }

    fn tunnel_status(&self, id: TunnelId, view: &TunnelView, now: Timestamp) -> Option<TunnelStatus> {
        let t = self.tunnel(id)?;
        let memory = self.tunnels.get(&id)?;
        let state = memory.state;
        let in_s = |at: Timestamp| at.since(now).as_secs();
        let wanted = t.start == Start::Active && state != TunnelState::Down;
        let totals = self.counters.tunnels.get(&*t.name).map_or_else(Totals::default, |t| t.totals());
        Some(TunnelStatus {
            made_s: now.as_nanos() / 1_000_000_000,
            name: t.name.clone(),
            gateway: t.gateway.clone(),
            customer_gateway: t.customer_gateway.clone(),
            state,
            since: rfc3339(clock::unix_of(memory.since, clock::now())),
            last_error: memory.last_error.clone(),
            start: t.start.name().to_owned(),
            wanted,
            retry_in_s: view.retry_at.map(in_s),
            path: view
                .ike
                .as_ref()
                .map(|i| PathStatus { local: i.flow.local.to_string(), remote: i.flow.remote.to_string() }),
            ike: view.ike.as_ref().map(|i| ike_status(i, now)),
            bytes_in: totals.bytes_in,
            bytes_out: totals.bytes_out,
            children: view
                .children
                .iter()
                .map(|c| child_status(c, &view.configured, &memory.sas, now))
                .collect(),
            coverage: coverage_status(&view.coverage),
            unanswered_s: self.unanswered(id, now),
            quality: self.quality_status(id, now),
            shares_with: self.shares_with(id),
            rules: view.configured.iter().map(|c| rule_status(c, now)).collect(),
            bandwidth: self.level(&LevelKey::tunnel(&t.name)).status(),
            bandwidth_in: self.level(&LevelKey::tunnel(&t.name).inward()).status(),
            legacy: legacy(t),
            warnings: view.lesson.iter().map(|t| crate::observe::one_line(&lesson_words(t))).collect(),
        })
    }
}

/// The legacy algorithms that a tunnel offers and takes.
pub(super) fn legacy(t: &Tunnel) -> LegacyStatus {
    let words =
        |all: Vec<&str>| all.into_iter().collect::<BTreeSet<_>>().into_iter().map(str::to_owned).collect();
    LegacyStatus {
        ike: words(t.ike.proposals.iter().flat_map(|p| p.legacy()).collect()),
        esp: words(t.esp.proposals.iter().flat_map(|p| p.legacy()).collect()),
    }
}

const fn tunnel_state(state: view::TunnelState) -> TunnelState {
    match state {
        view::TunnelState::Down => TunnelState::Down,
        view::TunnelState::Connecting => TunnelState::Connecting,
        view::TunnelState::Up => TunnelState::Up,
        view::TunnelState::Rekeying => TunnelState::Rekeying,
        view::TunnelState::Waiting => TunnelState::Waiting,
        view::TunnelState::Failed => TunnelState::Failed,
    }
}

fn named(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// What quotas count, by gateway.
pub(super) fn quota_use(config: &Config) -> BTreeMap<String, QuotaUse> {
    let mut used: BTreeMap<String, QuotaUse> = BTreeMap::new();
    let mut peers: BTreeSet<(&str, &str)> = BTreeSet::new();
    for t in &config.tunnels {
        let of = used.entry(t.gateway.clone()).or_default();
        of.tunnels += 1;
        of.customer_gateways += usize::from(peers.insert((&t.gateway, &t.customer_gateway)));
        of.rules = of.rules.max(t.spd.len());
        of.remotes = of.remotes.max(t.spd.iter().map(|rule| rule.remote.len()).max().unwrap_or(0));
    }
    used
}

/// What quotas count, by their keys, and how much there may be.
pub(super) fn quotas(config: &Config) -> BTreeMap<String, QuotaStatus> {
    let most = |of: &dyn Fn(&Tunnel) -> &str| {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        config.tunnels.iter().for_each(|t| *counts.entry(of(t)).or_default() += 1);
        counts.into_values().max().unwrap_or(0)
    };
    let used = |key: &str| match key {
        "gateways" => config.gateways.len(),
        "customer_gateways" => config.customer_gateways.len(),
        "tunnels_per_gateway" => most(&|t| &t.gateway),
        "tunnels_per_customer" => most(&|t| &t.customer_gateway),
        "rules_per_tunnel" => config.tunnels.iter().map(|t| t.spd.len()).max().unwrap_or(0),
        _ => config.tunnels.iter().flat_map(|t| &t.spd).map(|r| r.remote.len()).max().unwrap_or(0),
    };
    let each = config.quota.each().into_iter();
    each.map(|(key, limit)| (key.to_owned(), QuotaStatus { used: used(key), limit })).collect()
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn coverage_status(c: &Coverage) -> CoverageStatus {
    let missing = |m: &MissingPair| MissingStatus {
        local: m.local.to_string(),
        remote: m.remote.to_string(),
        partly: m.partly,
    };
    CoverageStatus {
        pairs: count(c.pairs),
        covered: count(c.covered),
        missing: c.missing.iter().map(missing).collect(),
    }
}

fn rule_status(c: &ConfiguredView, now: Timestamp) -> RuleStatus {
    RuleStatus {
        local: c.local.iter().map(ToString::to_string).collect(),
        remote: c.remote.iter().map(ToString::to_string).collect(),
        state: match c.state {
            ConfiguredState::Up => RuleState::Up,
            ConfiguredState::Connecting => RuleState::Connecting,
            ConfiguredState::Failed => RuleState::Failed,
            ConfiguredState::Down => RuleState::Down,
        },
        pairs: count(c.coverage.pairs),
        covered: count(c.coverage.covered),
        last_error: c
            .trouble
            .as_ref()
            .map(|t| crate::observe::one_line(&format!("{}: {}; {}", t.reason, t.detail, t.reason.hint()))),
        retry_in_s: c.retry_at.map(|at| at.since(now).as_secs()),
    }
}

fn ike_status(i: &IkeView, now: Timestamp) -> IkeStatus {
    IkeStatus {
        spi_i: format!("{:016x}", i.spi_i),
        spi_r: format!("{:016x}", i.spi_r),
        role: match i.role {
            Role::Initiator => IkeRole::Initiator,
            Role::Responder => IkeRole::Responder,
        },
        proposal: i.suite.to_string(),
        nat: match (i.nat_local, i.nat_remote) {
            (false, false) => Nat::None,
            (true, false) => Nat::Local,
            (false, true) => Nat::Remote,
            (true, true) => Nat::Both,
        },
        rekey_in_s: i.rekey_at.since(now).as_secs(),
        peer_id: Some(crate::observe::one_line(&i.peer_id.to_string())),
    }
}

/// What an SA had counted; nothing if it was not there.
pub(super) fn counted(sas: &[(SaId, SaCounters)], sa: SaId) -> SaCounters {
    sas.iter().find(|(id, _)| *id == sa).map(|(_, counted)| *counted).unwrap_or_default()
}

fn child_status(
    c: &ChildView,
    rules: &[ConfiguredView],
    sas: &[(SaId, SaCounters)],
    now: Timestamp,
) -> ChildStatus {
    let rule = rules.iter().position(|rule| rule.index == c.of);
    let of = |direction, spi| counted(sas, SaId { child: c.id, direction, spi });
    let (inbound, outbound) = (of(Direction::In, c.inbound), of(Direction::Out, c.outbound));
    ChildStatus {
        local: c.local.iter().map(ToString::to_string).collect(),
        remote: c.remote.iter().map(ToString::to_string).collect(),
        spi_in: c.inbound.to_string(),
        spi_out: c.outbound.to_string(),
        proposal: c.suite.to_string(),
        bytes_in: inbound.bytes,
        packets_in: inbound.packets,
        bytes_out: outbound.bytes,
        packets_out: outbound.packets,
        drops: Drops { replay: inbound.replay, integrity: inbound.integrity },
        rekey_in_s: c.rekey_at.since(now).as_secs(),
        expires_in_s: Some(c.expire_at.since(now).as_secs()),
        age_s: now.since(c.made).as_secs(),
        rule: rule.and_then(|n| u16::try_from(n).ok()),
    }
}
