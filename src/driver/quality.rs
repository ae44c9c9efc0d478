//! Sends the probes that are due, takes what comes back, and lets the tunnels' weights follow from it. What it means is
//! decided in [`crate::quality`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cygnet_ike::crypto::Random;
use cygnet_model::plane::PlaneKind;
use cygnet_model::tunnel::{Direction, Source};
use cygnet_model::{ChildId, Now, Timestamp, TunnelId};
use tokio::sync::mpsc;

use super::addresses::HostAddresses;
use super::{Daemon, clock, os_random, policy};
use crate::config::model::{Config, HealthCheck, Tunnel};
use crate::config::share;
use crate::observe::events::Kind;
use crate::observe::rfc3339;
use crate::observe::snapshot::{MinuteStatus, QualityStatus};
use crate::plane::probing::{Answer, By, Outgoing, Probing};
use crate::quality::health::{Cause, Change, Health};
use crate::quality::prober::Prober;
use crate::quality::wire::{self, Probe};
use crate::quality::{Figures, history};

/// Answers on their way to the loop.
pub(super) const ANSWER_QUEUE: usize = 16_384;
/// Probes that are due within this time leave together.
const TOGETHER: Duration = Duration::from_millis(5);

/// An answer with the time at which it came.
pub(super) type Answered = (Timestamp, Answer);

/// The health checks of all tunnels.
pub(super) struct Quality {
    /// By this answers are known as ours.
    token: u64,
    watched: BTreeMap<TunnelId, Watched>,
    /// When each of them has something to do.
    due: BTreeSet<(Timestamp, TunnelId)>,
    /// Not before this.
    free_at: Timestamp,
    /// Tunnels that share selectors with another one, so that their health decides who carries the packets.
    rivals: BTreeSet<TunnelId>,
    /// The tunnels with which each tunnel shares flows.
    partners: BTreeMap<TunnelId, Vec<TunnelId>>,
    /// Own addresses as of the last look.
    own: BTreeSet<IpAddr>,
    answers: mpsc::Sender<Answered>,
}

/// One tunnel's health check.
struct Watched {
    check: HealthCheck,
    prober: Prober,
    at: Timestamp,
    /// Since when it is as healthy as it is.
    since: Now,
    way: Way,
}

/// How probes go.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Way {
    /// From this address by this child.
    By(IpAddr, ChildId),
    /// There is none, for this reason.
    None(&'static str),
}

const NO_SOURCE: &str = "this host has no address inside the local networks to send probes from; give an interface one, or \
                         set health_check.source";
const SHARED: &str = "another tunnel has the same networks and the same mark, and with the kernel's data plane marked probes go by \
                      the one that carries; give them networks or marks of their own";
const NOT_OWN: &str =
    "health_check.source is no address of this host, which it must be with the kernel's data plane";

impl Watched {
    /// Whether an answer is one to the probes that are sent, by addresses and port.
    fn asked_for(&self, by: &By) -> bool {
        (by.method, by.from) == (self.check.probe, self.check.target)
            && matches!(self.way, Way::By(source, _) if source == by.to)
    }

    /// Who is probed, for people.
    fn target(&self) -> String {
        let target = self.check.target;
        self.check
            .probe
            .port()
            .map_or_else(|| target.to_string(), |port| format!("UDP port {port} of {target}"))
    }
}

impl Quality {
    pub fn new(answers: mpsc::Sender<Answered>) -> Self {
        let mut token = [0; 8];
        os_random().fill(&mut token);
        Self {
            token: u64::from_be_bytes(token),
            watched: BTreeMap::new(),
            due: BTreeSet::new(),
            free_at: Timestamp::default(),
            rivals: BTreeSet::new(),
            partners: BTreeMap::new(),
            own: BTreeSet::new(),
            answers,
        }
    }

    /// By this answers are known as ours.
    pub const fn token(&self) -> u64 {
        self.token
    }

    /// When the loop has to look at it.
    pub fn wakeup(&self, now: Timestamp) -> Option<tokio::time::Instant> {
        let (at, _) = self.due.first()?;
        Some(tokio::time::Instant::now() + (*at).max(self.free_at).since(now))
    }

    /// The tunnels that are probed.
    pub fn watched(&self) -> impl Iterator<Item = TunnelId> {
        self.watched.keys().copied()
    }

    /// How fit each tunnel is to carry packets that others could carry as well, if less than fully; see [`Health::rank`].
    pub fn ranks(&self) -> BTreeMap<TunnelId, u8> {
        let rank =
            |(id, w): (&TunnelId, &Watched)| Some((*id, w.prober.health().rank())).filter(|(_, r)| *r > 0);
        self.watched.iter().filter(|(id, _)| self.rivals.contains(id)).filter_map(rank).collect()
    }

    /// The tunnels with which each tunnel shares flows.
    pub const fn partners(&self) -> &BTreeMap<TunnelId, Vec<TunnelId>> {
        &self.partners
    }

    fn plan(&mut self, id: TunnelId, at: Timestamp) {
        let Some(watched) = self.watched.get_mut(&id) else { return };
        self.due.remove(&(std::mem::replace(&mut watched.at, at), id));
        self.due.insert((at, id));
    }
}

impl Daemon {
    /// Brings the health checks in line with the configuration.
    pub(super) fn follow_checks(&mut self) {
        let now = clock::now();
        self.quality.rivals = rivals(&self.config, &self.places);
        let ids = |names: BTreeSet<&str>| names.into_iter().filter_map(|n| self.registry.tunnel(n)).collect();
        let partners = share::partners(&self.config).into_iter();
        let partners =
            partners.filter_map(|(name, of)| Some((self.registry.tunnel(name)?, ids(of)))).collect();
        self.quality.partners = partners;
        let checked: BTreeMap<TunnelId, HealthCheck> =
            self.places.keys().filter_map(|id| Some((*id, self.tunnel(*id)?.health_check?))).collect();
        let quality = &mut self.quality;
        quality.watched.retain(|id, _| checked.contains_key(id));
        quality.due.retain(|(_, id)| checked.contains_key(id));
        let room = history::room(checked.len());
        for (id, check) in checked {
            match quality.watched.get_mut(&id) {
                // What is known of another host, or by other probes, says nothing of this one.
                Some(w) if (w.check.target, w.check.probe) == (check.target, check.probe) => {
                    w.prober.set(check.settings, now.mono);
                    w.check = check;
                }
                _ => {
                    // Spread over the interval, so that thousands do not leave in one moment.
                    let part = check.settings.interval * (id.0.wrapping_mul(2_654_435_761) >> 22) / 1024;
                    let prober = Prober::new(check.settings, now.mono + part);
                    // Unlike any that is found, so that what is found is told.
                    let way = Way::None("");
                    quality.watched.insert(id, Watched { check, prober, at: now.mono, since: now, way });
                }
            }
            let wakeup = quality.watched.get_mut(&id).map(|w| {
                w.prober.history_mut().set_room(room);
                w.prober.next_wakeup()
            });
            if let Some(at) = wakeup {
                quality.plan(id, at);
            }
        }
        self.quality.own.clear();
        self.follow_probe_sources();
    }

    /// Follows the host's addresses, from which probes leave and for which the peers' are answered.
    pub(super) fn follow_probe_sources(&mut self) {
        let own: BTreeSet<IpAddr> = HostAddresses::read().all().collect();
        if own == self.quality.own {
            return;
        }
        self.quality.own = own;
        let plane = self.choice.plane;
        let mut answered = self.quality.own.clone();
        let ids: Vec<TunnelId> = self.quality.watched.keys().copied().collect();
        for id in ids {
            let Some(t) = self.tunnel(id) else { continue };
            let Some(check) = t.health_check else { continue };
            let way = self.way(t, &check).unwrap_or(Way::None(NO_SOURCE));
            let way = match (plane, way) {
                (PlaneKind::Kernel, Way::By(..)) if t.mark.is_some() && self.quality.rivals.contains(&id) => {
                    Way::None(SHARED)
                }
                (PlaneKind::Kernel, Way::By(source, _)) if !self.quality.own.contains(&source) => {
                    Way::None(NOT_OWN)
                }
                (_, way) => way,
            };
            answered.extend(check.source);
            let Some(watched) = self.quality.watched.get_mut(&id) else { continue };
            if watched.way == way {
                continue;
            }
            watched.way = way.clone();
            if let Way::None(why) = way {
                let message = format!("the tunnel's health is not checked: {why}");
                self.tell_tunnel(id, Kind::Warning, &message);
            }
        }
        let answers = self.quality.answers.clone();
        let sink = Box::new(move |answer| {
            // A full queue drops: the probe counts as lost, which with so many at once it may.
            let _ = answers.try_send((clock::now().mono, answer));
        });
        self.plane.follow_probing(Probing { token: self.quality.token, own: answered, sink });
    }

    /// The source of a tunnel's probes, and the child whose selectors they fit.
    fn way(&self, t: &Tunnel, check: &HealthCheck) -> Option<Way> {
        let children: Vec<_> = policy::numbered(&self.registry, t).collect();
        let child = |source: IpAddr| {
            let holds = |all: &[cygnet_model::TrafficSelector], ip| all.iter().any(|s| s.range.contains(ip));
            children.iter().find(|(_, c)| holds(&c.local, source) && holds(&c.remote, check.target))
        };
        let written = match t.source {
            Source::Address(address) => Some(address),
            Source::Auto | Source::None => None,
        };
        let own = written
            .into_iter()
            .filter(|ip| self.quality.own.contains(ip))
            .chain(self.quality.own.iter().copied());
        let mut sources = check.source.into_iter().chain(own.filter(|_| check.source.is_none()));
        sources.find_map(|source| Some(Way::By(source, child(source)?.0)))
    }

    /// Sends the probes that are due, and takes note of those that were not answered in time.
    pub(super) fn probe(&mut self) {
        let now = clock::now().mono;
        self.quality.free_at = now + TOGETHER;
        let mut due = Vec::new();
        while let Some((at, id)) = self.quality.due.first().copied().filter(|(at, _)| *at <= now) {
            self.quality.due.remove(&(at, id));
            due.push(id);
        }
        let (mut packets, mut changes) = (Vec::new(), Vec::new());
        for id in due {
            let memory = self.tunnels.get(&id);
            let Some(w) = self.quality.watched.get_mut(&id) else { continue };
            let (up, way) = (memory.is_some_and(|m| m.is_up()), w.way.clone());
            let next = match way {
                Way::By(source, child) if up => {
                    let ticked = w.prober.on_tick(now);
                    changes.extend(ticked.change.map(|change| (id, change)));
                    let contested = self.quality.rivals.contains(&id);
                    // Where several parts carry a child, the one that the packet fits.
                    let parts = memory.into_iter().flat_map(|m| m.sas.iter().map(|(sa, _)| sa));
                    let parts = parts.filter(|sa| sa.direction == Direction::Out);
                    let view = ticked.send.filter(|_| contested).and_then(|_| self.endpoint.view(id));
                    let newest = view.and_then(|v| v.children.into_iter().max_by_key(|c| c.made));
                    let by = newest.map(|child| child.outbound);
                    let token = self.quality.token;
                    let probe = ticked.send.map(|seq| Probe { token, tunnel: id, seq, by });
                    let HealthCheck { target, probe: method, .. } = w.check;
                    if let Some(packet) = probe.and_then(|p| wire::request(&p, method, source, target)) {
                        let others = parts.map(|sa| sa.child).filter(|other| *other != child);
                        let children = std::iter::once(child).chain(others).collect();
                        packets.push(Outgoing { children, packet, contested });
                    }
                    w.prober.next_wakeup()
                }
                Way::By(..) | Way::None(_) => {
                    w.prober.on_pause();
                    now + w.check.settings.interval
                }
            };
            self.quality.plan(id, next);
        }
        self.plane.probe(packets);
        self.on_quality(changes);
    }

    /// Takes answers to probes that came by sockets.
    pub(super) fn take_echoes(&mut self) {
        // A flood of them must not keep the loop from all else; the rest is taken with the next ones.
        for _ in 0..4 {
            if !self.plane.take_answers() {
                break;
            }
        }
    }

    /// Takes answers to probes.
    pub(super) fn on_answers(&mut self, answers: impl IntoIterator<Item = Answered>) {
        let mut changes = Vec::new();
        for (at, Answer { tunnel, seq, received, by }) in answers {
            let Some(w) = self.quality.watched.get_mut(&tunnel).filter(|w| w.asked_for(&by)) else {
                continue;
            };
            changes.extend(w.prober.on_answer(at, seq, received).map(|change| (tunnel, change)));
            let next = w.prober.next_wakeup();
            self.quality.plan(tunnel, next);
        }
        self.on_quality(changes);
    }

    /// Lets traffic follow what has changed, then tells of it.
    fn on_quality(&mut self, changes: Vec<(TunnelId, Change)>) {
        if changes.is_empty() {
            return;
        }
        let now = clock::now();
        for (id, _) in &changes {
            if let Some(w) = self.quality.watched.get_mut(id) {
                w.since = now;
            }
        }
        if changes.iter().any(|(id, _)| self.quality.rivals.contains(id)) {
            self.apply_policies();
        }
        for (id, change) in changes {
            let Some(w) = self.quality.watched.get(&id) else { continue };
            let figures = w.prober.figures(now.mono);
            let shared = self.quality.rivals.contains(&id);
            let (kind, message) = match change {
                Change::Degraded(cause) => (Kind::QualityDegraded, degraded(w, cause, &figures, shared)),
                Change::Recovered => {
                    let back =
                        if shared { "; it carries its packets again if its weight says so" } else { "" };
                    (
                        Kind::QualityRecovered,
                        format!("{} answers as it should: {}{back}", w.target(), words(&figures)),
                    )
                }
                // It was told that it is degraded.
                Change::Turned(_) => continue,
            };
            self.tell_tunnel(id, kind, &message);
        }
    }

    /// The names of the tunnels with which one shares its flows.
    pub(super) fn shares_with(&self, id: TunnelId) -> Vec<String> {
        let partners = self.quality.partners.get(&id).into_iter().flatten();
        partners.filter_map(|id| Some(self.tunnel(*id)?.name.clone())).collect()
    }

    /// How well a tunnel carries packets; `None` if it has no health check.
    pub(super) fn quality_status(&self, id: TunnelId, now: Timestamp) -> Option<QualityStatus> {
        let w = self.quality.watched.get(&id)?;
        let figures = w.prober.figures(now);
        let health = w.prober.health();
        let (source, problem) = match &w.way {
            Way::By(source, _) => (Some(source.to_string()), None),
            Way::None(why) => (None, Some((*why).to_owned())),
        };
        let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
        Some(QualityStatus {
            health: health.name().to_owned(),
            cause: match health {
                Health::Degraded(cause) => Some(cause.name().to_owned()),
                Health::Unknown | Health::Good => None,
            },
            since: rfc3339(clock::unix_of(w.since, clock::now())),
            probe: w.check.probe.name().to_owned(),
            target: w.check.target.to_string(),
            port: w.check.probe.port(),
            source,
            problem,
            probes: figures.probes,
            lost: figures.lost,
            lost_there: figures.lost_there,
            loss_ratio: figures.loss_ratio(),
            delay_ms: figures.delay.map(|d| ms(d.mean)),
            delay_min_ms: figures.delay.map(|d| ms(d.min)),
            delay_max_ms: figures.delay.map(|d| ms(d.max)),
            jitter_ms: figures.delay.map(|_| ms(figures.jitter)),
        })
    }

    /// A tunnel's quality by the minute, the oldest first; `None` if it has no health check.
    pub(super) fn quality_minutes(&self, id: TunnelId, since_s: u64) -> Option<Vec<MinuteStatus>> {
        let w = self.quality.watched.get(&id)?;
        let now = clock::now();
        let from = now.mono - Duration::from_secs(since_s);
        let minute = |m: history::Minute| {
            let at = Timestamp::from_nanos(u64::from(m.minute) * 60_000_000_000);
            let [min, mean, max] = m.delay_us.map(|us| f64::from(us) / 1e3);
            let answered = (m.lost < m.probes).then_some(());
            MinuteStatus {
                time: rfc3339(now.unix.saturating_sub(now.mono.since(at).as_secs())),
                probes: m.probes,
                lost: m.lost,
                loss_ratio: if m.probes > 0 { f64::from(m.lost) / f64::from(m.probes) } else { 0.0 },
                delay_ms: answered.map(|()| mean),
                delay_min_ms: answered.map(|()| min),
                delay_max_ms: answered.map(|()| max),
                jitter_ms: answered.map(|()| f64::from(m.jitter_us) / 1e3),
            }
        };
        Some(w.prober.history().since(from).map(minute).collect())
    }
}

/// Tunnels that can carry something in place of another one: they have a pair of networks, and the mark, in common.
fn rivals(config: &Config, places: &BTreeMap<TunnelId, usize>) -> BTreeSet<TunnelId> {
    let mut claims: BTreeMap<String, BTreeSet<TunnelId>> = BTreeMap::new();
    for (id, place) in places {
        let Some(t) = config.tunnels.get(*place) else { continue };
        for child in t.children() {
            for (local, remote) in child.local.iter().flat_map(|l| child.remote.iter().map(move |r| (l, r))) {
                claims.entry(format!("{local} -> {remote} {:?}", t.mark)).or_default().insert(*id);
            }
        }
    }
    claims.into_values().filter(|of| of.len() > 1).flatten().collect()
}

fn degraded(w: &Watched, cause: Cause, figures: &Figures, shared: bool) -> String {
    let target = w.target();
    let settings = &w.check.settings;
    let what = match cause {
        Cause::NoAnswer => format!("{target} has not answered {} probes in a row", settings.failures),
        Cause::Loss => format!("{} % of the last probes of {target}, or more, were lost", settings.loss),
        Cause::Delay => {
            let limit = settings.delay.unwrap_or_default().as_millis();
            format!("the answers of {target} take {limit} ms or more")
        }
    };
    let then = if shared {
        "a tunnel with the same networks carries its packets, if one is fit"
    } else {
        "no other tunnel has the same networks"
    };
    format!("{what}; in the last minute {}; {then}", words(figures))
}

/// Figures in a sentence.
fn words(f: &Figures) -> String {
    let there = match f.lost_there {
        Some(there) if f.lost > 0 => format!(" ({there} on the way there)"),
        _ => String::new(),
    };
    let loss = f.loss_ratio().unwrap_or(0.0) * 100.0;
    let delay = f.delay.map_or_else(String::new, |d| {
        let ms = |d: Duration| d.as_secs_f64() * 1e3;
        format!(
            ", delay {:.1} ms ({:.1} to {:.1}), jitter {:.1} ms",
            ms(d.mean),
            ms(d.min),
            ms(d.max),
            ms(f.jitter)
        )
    });
    format!("{} of {} probes lost{there}, {loss:.1} %{delay}", f.lost, f.probes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use cygnet_model::registry::Registry;

    use super::*;
    use crate::quality::Method;

    #[test]
    fn an_answer_comes_from_where_the_probe_was_sent() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let by = |method, from, to| By { method, from: ip(from), to: ip(to) };
        let (settings, now) = (crate::quality::Settings::default(), clock::now());
        let child = ChildId { tunnel: TunnelId(1), index: 0 };
        let watched = |probe| Watched {
            check: HealthCheck { target: ip("10.2.0.1"), probe, source: None, settings },
            prober: Prober::new(settings, now.mono),
            at: now.mono,
            since: now,
            way: Way::By(ip("10.1.0.1"), child),
        };
        let methods = [Method::Icmp, Method::Udp { port: 7 }, Method::Udp { port: 8 }];
        for method in methods {
            let w = watched(method);
            for other in methods {
                assert_eq!(w.asked_for(&by(other, "10.2.0.1", "10.1.0.1")), other == method, "{other:?}");
            }
            assert!(!w.asked_for(&by(method, "10.2.0.2", "10.1.0.1")), "of another host");
            assert!(!w.asked_for(&by(method, "10.2.0.1", "10.1.0.2")), "to another address");
        }
    }

    #[test]
    fn rivals_have_networks_in_common() {
        let tunnel = |name: &str, more: &str, remote: &str| {
            format!(
                "  - {{ name: {name}, gateway: g, customer_gateway: c{name}, auth: {{ psk: pL7v0y2QxNf8sKd3RwZtB5 }}, {more} \
                 spd: [ {{ local: 10.1.0.0/16, remote: [{remote}] }} ] }}\n"
            )
        };
        let text = format!(
            "gateways: [ {{ name: g, address: 192.0.2.1, networks: [10.1.0.0/16] }} ]\ncustomer_gateways: [ {{ name: ca, \
             address: 192.0.2.2 }}, {{ name: cb, address: 192.0.2.3 }}, {{ name: cc, address: 192.0.2.4 }}, {{ name: cd, \
             address: 192.0.2.5 }}, {{ name: ce, address: 192.0.2.6 }} ]\ntunnels:\n{}{}{}{}{}",
            tunnel("a", "weight: 0,", "10.2.0.0/16"),
            tunnel("b", "weight: 1,", "10.2.0.0/16"),
            tunnel("c", "weight: 0,", "10.3.0.0/16, 10.4.0.0/16"),
            tunnel("d", "weight: 1,", "10.4.0.0/16"),
            tunnel("e", "", "10.5.0.0/16"),
        );
        let config = crate::config::load_text(&text, Path::new("/nonexistent")).unwrap().config;
        let mut registry = Registry::default();
        policy::register(&mut registry, &config).unwrap();
        let found = rivals(&config, &policy::places(&registry, &config));
        assert_eq!(found, ["a", "b", "c", "d"].iter().filter_map(|name| registry.tunnel(name)).collect());
    }
}
