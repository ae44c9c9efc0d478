//! Bandwidth levels of gateways and tunnels: what the configuration says, over it what was saved, and over that what was set by
//! command. The last word counts: a configuration that says something else of a level than before ends its override.
//!
//! Who keeps a level: what a gateway sends is queued by traffic control ([`crate::shaping`]); the rest is kept where the tunnel
//! of a packet is known, by the threads of our own plane ([`crate::traffic::level`]) or by nf_tables
//! ([`crate::plane::levels`]), which drop. Decision 0220 says why.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cygnet_model::TunnelId;
use cygnet_model::tunnel::Direction;

use super::answer::Sought;
pub(super) use super::level_key::{LevelKey, Owner};
use super::{Daemon, saved};
use crate::config::bandwidth::{Counts, show_level};
use crate::config::model::{Config, Tunnel};
use crate::config::units;
use crate::control::{ErrorKind, Response};
use crate::observe::events::Kind;
use crate::observe::qos::{Count, Place};
use crate::observe::snapshot::{LevelStatus, Origin};
use crate::plane::levels::{Keeper, Rate, Wanted};
use crate::shaping::apply::{Shaper, ShapingError};
use crate::shaping::plan::LOWEST_BPS;
use crate::traffic::level::{Level as Kept, TunnelLevels};

/// A bandwidth level in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Level {
    /// Bits per second; `None`: unlimited.
    pub bps: Option<u64>,
    /// Where it comes from.
    pub origin: Origin,
}

impl Level {
    /// As it is told; `None` for none.
    pub fn status(self) -> Option<LevelStatus> {
        self.bps.map(|bps| LevelStatus { bps, origin: self.origin })
    }
}

/// Levels by what they are of. All gateways are in it; of tunnels those that have a level, or had one set.
pub(super) type Levels = BTreeMap<LevelKey, Level>;

fn configured(config: &Config) -> Levels {
    let level = |bps| Level { bps, origin: Origin::Configuration };
    let gateways = config.gateways.iter().flat_map(|g| {
        let key = LevelKey::gateway(&g.name);
        [(key.clone(), level(g.bandwidth.out)), (key.inward(), level(g.bandwidth.inward))]
    });
    let tunnels = config.tunnels.iter().flat_map(|t| {
        let key = LevelKey::tunnel(&t.name);
        [(key.clone(), t.bandwidth.out), (key.inward(), t.bandwidth.inward)]
    });
    let tunnels = tunnels.filter(|(_, bps)| bps.is_some()).map(|(key, bps)| (key, level(bps)));
    gateways.chain(tunnels).collect()
}

/// Counts by whose level they are of.
type Counted = Vec<(LevelKey, u64)>;

/// What the data plane holds of the levels, and who holds the rest.
#[derive(Default)]
pub(super) struct InForce {
    /// Levels that our own threads keep.
    kept: BTreeMap<LevelKey, Arc<Kept>>,
    /// Gateways whose traffic control does not stand, or stands on several interfaces: the data plane keeps their level, too.
    without_queue: BTreeSet<String>,
    /// Why levels are not in force in the kernel's plane.
    trouble: Option<String>,
}

impl InForce {
    /// Packets that levels of our own threads dropped.
    fn drops(&self) -> impl Iterator<Item = (LevelKey, u64)> {
        self.kept.iter().map(|(key, level)| (key.clone(), level.dropped()))
    }

    /// Octets that levels of our own threads let pass.
    fn passed(&self) -> impl Iterator<Item = (LevelKey, u64)> {
        self.kept.iter().map(|(key, level)| (key.clone(), level.passed()))
    }
}

impl Daemon {
    /// The level in force; unlimited if there is none.
    pub(super) fn level(&self, key: &LevelKey) -> Level {
        let none = Level { bps: None, origin: Origin::Configuration };
        self.bandwidth.get(key).copied().unwrap_or(none)
    }

    /// What becomes of levels that were set by command: the last word counts, whoever says it.
    pub(super) fn level_notes(&self, new: &Config) -> Vec<String> {
        let note = |(key, level): (&LevelKey, &Level)| {
            let stays = self.override_stays(key, new)?;
            let (words, set) = (key.words(), show_level(level.bps));
            Some(if stays {
                format!("the {words} stays at {set}, as set by command")
            } else {
                format!("the {words}, {set} as set by command, gives way to what the file says")
            })
        };
        self.bandwidth.iter().filter_map(note).collect()
    }

    /// Whether a level that was set by command stays in force under a new configuration; `None` if there is none.
    fn override_stays(&self, key: &LevelKey, new: &Config) -> Option<bool> {
        if self.bandwidth.get(key)?.origin == Origin::Configuration {
            return None;
        }
        Some(key.configured(&self.config)? == key.configured(new)?)
    }

    /// The levels of the configuration, over them those that were saved, and over them those that were set in an earlier
    /// life that was not told to end.
    pub(super) fn set_levels(&mut self) {
        self.bandwidth = configured(&self.config);
        for (name, saved::SavedLevel { bps, configured }) in saved::levels(&self.config) {
            let key = LevelKey::parse(&name);
            let before = self.level(&key);
            // The last word counts: a file that was changed while nobody looked.
            if configured.is_some() && configured != key.configured(&self.config) {
                let (saved, file) = (show_level(bps), show_level(before.bps));
                tracing::info!(level = %name, "bandwidth is {file}, as the file says since it was saved as {saved}");
                self.forget_saved(&key);
                continue;
            }
            self.bandwidth.insert(key, Level { bps, origin: Origin::Saved });
            if before.bps != bps {
                let (saved, configured) = (show_level(bps), show_level(before.bps));
                tracing::info!(level = %name, "bandwidth is {saved}, as saved, instead of {configured}");
            }
        }
        let set = self.taken_up.as_mut().map(|t| std::mem::take(&mut t.levels)).unwrap_or_default();
        for (name, level) in set {
            let key = LevelKey::parse(&name);
            if key.configured(&self.config) == Some(level.configured) {
                self.bandwidth.insert(key, Level { bps: level.set, origin: Origin::Command });
            }
        }
    }

    /// Takes over the levels of a new configuration.
    pub(super) fn follow_levels(&mut self, new: &Config) {
        let mut levels = configured(new);
        for (key, level) in &self.bandwidth {
            match self.override_stays(key, new) {
                None => {}
                Some(true) => {
                    levels.insert(key.clone(), *level);
                }
                Some(false) => self.forget_saved(key),
            }
        }
        self.bandwidth = levels;
    }

    fn forget_saved(&self, key: &LevelKey) {
        if let Err(e) = saved::forget(&self.config, &key.to_string()) {
            tracing::warn!(level = %key, error = %e, "a saved bandwidth level is still in the state directory");
        }
    }

    /// Changes a level at once, or nothing. `name` is that of a gateway, else of a tunnel; `gateway:` or `tunnel:` before it
    /// says which.
    pub(super) fn change_bandwidth(
        &mut self,
        name: &str,
        bps: Option<u64>,
        inward: bool,
        save: bool,
    ) -> Response {
        let Some(key) = self.level_named(name, inward) else {
            return self.unknown(Sought::Either, name);
        };
        if let Some(wrong) = bps.filter(|bps| !(units::MIN_RATE..=units::MAX_RATE).contains(bps)) {
            return Response::Error {
                kind: ErrorKind::Failed,
                message: format!("the {} was not changed: {wrong} bit/s is out of range", key.words()),
                hint: "write 1kbit to 100gbit, or unlimited".to_owned(),
            };
        }
        let before = self.bandwidth.insert(key.clone(), Level { bps, origin: Origin::Command });
        let errors = self.put_level(&key);
        if bps.is_some() && !errors.is_empty() {
            match before {
                Some(before) => self.bandwidth.insert(key.clone(), before),
                None => self.bandwidth.remove(&key),
            };
            self.put_level(&key);
            return Response::Error {
                kind: ErrorKind::Failed,
                message: format!("the {} was not changed: {}", key.words(), errors.join("; ")),
                hint: "cygnet doctor shows what this host offers".to_owned(),
            };
        }
        let mut message = format!("{} is now {}", key.words(), show_level(bps));
        if bps.is_some() && self.is_without_queue(&key) {
            let why = self.shaping_troubles.first().map_or("it leaves by several interfaces", String::as_str);
            message.push_str(&format!("; what is beyond is dropped, not queued: {why}"));
        }
        if bps.is_some_and(|bps| bps < LOWEST_BPS) && self.is_queued(&key) {
            message.push_str(&format!("; its queue keeps it as {}", units::show_rate(LOWEST_BPS)));
        }
        self.announce_level(&key, &message);
        self.keep_levels();
        if save {
            if let Err(e) = saved::keep(&self.config, &key, bps) {
                return super::answer::unsaved(&self.config, &message, &e, "bandwidth");
            }
            self.bandwidth.insert(key, Level { bps, origin: Origin::Saved });
            self.keep_levels();
        }
        Response::done(message)
    }

    /// Whether the data plane keeps a gateway's level that traffic control should keep.
    fn is_without_queue(&self, key: &LevelKey) -> bool {
        matches!(key, LevelKey { owner: Owner::Gateway(name), inward: false } if self.in_force.without_queue.contains(name))
            && key.bandwidth(&self.config).is_some_and(|b| b.counts == Counts::Wire)
    }

    /// Whether traffic control keeps a level.
    pub(super) fn is_queued(&self, key: &LevelKey) -> bool {
        matches!(key, LevelKey { owner: Owner::Gateway(name), inward: false } if !self.in_force.without_queue.contains(name))
            && key.bandwidth(&self.config).is_some_and(|b| b.counts == Counts::Wire)
    }

    fn level_named(&self, name: &str, inward: bool) -> Option<LevelKey> {
        let gateway = |name: &str| self.config.gateway(name).map(|_| LevelKey::gateway(name));
        let tunnel = |name: &str| self.config.tunnel(name).map(|_| LevelKey::tunnel(name));
        let key = match name.split_once(':') {
            Some(("gateway", name)) => gateway(name),
            Some(("tunnel", name)) => tunnel(name),
            _ => gateway(name).or_else(|| tunnel(name)),
        }?;
        Some(LevelKey { inward, ..key })
    }

    fn announce_level(&mut self, key: &LevelKey, message: &str) {
        match &key.owner {
            Owner::Gateway(name) => self.announce_gateway(Kind::BandwidthChanged, name, message),
            Owner::Tunnel(name) => {
                if let Some(id) = self.registry.tunnel(name) {
                    self.changed(id);
                }
                self.announce_tunnel(Kind::BandwidthChanged, name, message);
            }
        }
    }

    /// Puts a level that has changed in force. Gives the reasons why it is not; what is wrong with others is in the log.
    fn put_level(&mut self, key: &LevelKey) -> Vec<String> {
        if let LevelKey { owner: Owner::Gateway(_), inward: false } = key {
            self.shape();
            if self.is_queued(key) {
                return Vec::new();
            }
        } else {
            self.follow_plane_levels();
        }
        let counts = key.bandwidth(&self.config).map(|b| b.counts);
        let trouble = self.in_force.trouble.clone().into_iter();
        match (&key.owner, counts) {
            (Owner::Tunnel(_), Some(Counts::Wire)) if self.plane.traffic().is_none() => {
                trouble.chain([WIRE_OF_A_TUNNEL.to_owned()]).collect()
            }
            _ => trouble.collect(),
        }
    }

    /// Brings traffic control and the data plane in line with the bandwidth levels.
    pub(super) fn shape(&mut self) {
        // What goes takes its counts along.
        self.sample_shaping();
        let errors = self.shape_interfaces();
        self.without_queue(&errors);
        self.follow_plane_levels();
    }

    fn shape_interfaces(&mut self) -> Vec<ShapingError> {
        let gateways: Vec<_> = (self.config.gateways.iter())
            .map(|g| crate::shaping::apply::Gateway {
                name: g.name.clone(),
                addresses: self.outer.get(&g.name).cloned().unwrap_or_default(),
                peers: self.outer_peers_of(&g.name),
                // What traffic control sees is on the wire.
                bandwidth_bps: self
                    .level(&LevelKey::gateway(&g.name))
                    .bps
                    .filter(|_| g.bandwidth.counts == Counts::Wire),
            })
            .collect();
        // Also without any level: an earlier life of the daemon may have left some.
        let opened = self.shaper.take().map_or_else(|| Shaper::open(self.plane.pause()), Ok);
        let shaper = match opened {
            Ok(shaper) => self.shaper.insert(shaper),
            Err(e) if gateways.iter().all(|g| g.bandwidth_bps.is_none()) => {
                tracing::debug!(error = %e, "no traffic control");
                return Vec::new();
            }
            Err(e) => return vec![e],
        };
        shaper.apply(gateways).err().unwrap_or_default()
    }

    /// Notes for which gateways the data plane keeps the level because traffic control cannot, or cannot alone. Says whether
    /// they are others than before.
    pub(super) fn without_queue(&mut self, errors: &[ShapingError]) -> bool {
        let several = |name: &str| self.shaper.as_ref().is_some_and(|s| s.interfaces_of(name) > 1);
        let concerned = |name: &str| errors.iter().any(|e| e.concerns(name));
        let now: BTreeSet<String> = (self.config.gateways.iter())
            .filter(|g| concerned(&g.name) || several(&g.name))
            .map(|g| g.name.clone())
            .collect();
        for e in errors {
            let told = e.to_string();
            if !self.shaping_troubles.contains(&told) {
                tracing::warn!(error = %told, "the data plane keeps the level instead: what is beyond is dropped, not queued");
            }
        }
        self.shaping_troubles = errors.iter().map(ToString::to_string).collect();
        let changed = self.in_force.without_queue != now;
        self.in_force.without_queue = now;
        changed
    }

    /// Addresses at which customer gateways of a gateway are, as far as they are known.
    fn outer_peers_of(&self, gateway: &str) -> BTreeSet<std::net::IpAddr> {
        use crate::config::model::PeerAddress;
        let customers: BTreeSet<&str> = (self.config.tunnels.iter())
            .filter(|t| t.gateway == gateway)
            .map(|t| t.customer_gateway.as_str())
            .collect();
        let addresses = |name: &str| match self.config.customer_gateway(name).map(|c| &c.address) {
            Some(PeerAddress::Ip(ip)) => vec![*ip],
            Some(PeerAddress::Dns(name)) => self.resolved.get(name).cloned().unwrap_or_default(),
            None => Vec::new(),
        };
        customers.into_iter().flat_map(addresses).collect()
    }

    /// Brings what the data plane keeps itself in line with the levels.
    pub(super) fn follow_plane_levels(&mut self) {
        // What goes takes its counts along.
        self.sample_levels();
        if self.plane.traffic().is_some() {
            self.follow_own_levels();
        } else {
            self.follow_kernel_levels();
        }
    }

    fn follow_own_levels(&mut self) {
        let mut kept = BTreeMap::new();
        for (key, level) in &self.bandwidth {
            let Some((bps, bandwidth)) = level.bps.zip(key.bandwidth(&self.config)) else { continue };
            if self.is_queued(key) {
                continue;
            }
            let level = match self.in_force.kept.get(key) {
                Some(level) => level.follow(bps, bandwidth.counts),
                None => Arc::new(Kept::new(bps, bandwidth.counts)),
            };
            kept.insert(key.clone(), level);
        }
        let of = |key: LevelKey| kept.get(&key).cloned();
        let of_tunnel = |t: &Tunnel| {
            let (tunnel, gateway) = (LevelKey::tunnel(&t.name), LevelKey::gateway(&t.gateway));
            let levels = TunnelLevels {
                out: of(tunnel.clone()).into_iter().chain(of(gateway.clone())).collect(),
                inward: of(tunnel.inward()).into_iter().chain(of(gateway.inward())).collect(),
            };
            (!levels.is_empty()).then_some(levels)
        };
        let levels: HashMap<TunnelId, Arc<TunnelLevels>> = if kept.is_empty() {
            HashMap::new()
        } else {
            let all = self.config.tunnels.iter();
            all.filter_map(|t| Some((self.registry.tunnel(&t.name)?, Arc::new(of_tunnel(t)?)))).collect()
        };
        if let Some(traffic) = self.plane.traffic() {
            let mut rules = traffic.rules();
            rules.follow_levels(levels);
            traffic.publish(rules);
        }
        self.in_force.kept = kept;
    }

    fn follow_kernel_levels(&mut self) {
        let mut wanted = Wanted::default();
        for (key, level) in &self.bandwidth {
            let Some((bps, bandwidth)) = level.bps.zip(key.bandwidth(&self.config)) else { continue };
            match (&key.owner, bandwidth.counts, key.direction()) {
                (Owner::Tunnel(name), Counts::Payload, direction) => {
                    if let Some(id) = self.registry.tunnel(name) {
                        wanted.tunnels(direction).insert(id, Rate { bps });
                    }
                }
                (Owner::Tunnel(_), Counts::Wire, _) => {}
                (Owner::Gateway(name), Counts::Wire, Direction::Out) => {
                    // Else traffic control does it.
                    if self.in_force.without_queue.contains(name) {
                        let addresses = self.outer.get(name).into_iter().flatten().copied().collect();
                        wanted.departures.insert(name.clone(), (addresses, Rate { bps }));
                    }
                }
                (Owner::Gateway(name), Counts::Payload, direction) => {
                    let of = self.config.tunnels.iter().filter(|t| t.gateway == *name);
                    let tunnels = of.filter_map(|t| self.registry.tunnel(&t.name)).collect();
                    wanted.gateways(direction).insert(name.clone(), (tunnels, Rate { bps }));
                }
                (Owner::Gateway(name), Counts::Wire, Direction::In) => {
                    let addresses = self.outer.get(name).into_iter().flatten().copied().collect();
                    wanted.arrivals.insert(name.clone(), (addresses, Rate { bps }));
                }
            }
        }
        let before = self.in_force.trouble.take();
        self.in_force.trouble = self.plane.put_levels(wanted).err();
        if let Some(why) = self.in_force.trouble.as_ref().filter(|why| before.as_ref() != Some(why)) {
            tracing::error!("{why}");
        }
    }

    /// Why levels of the configuration are not in force with the kernel's plane.
    pub(super) fn levels_trouble(&self) -> Option<String> {
        if self.plane.traffic().is_some() {
            return None;
        }
        let wire = |(key, level): (&LevelKey, &Level)| {
            let bandwidth = key.bandwidth(&self.config)?;
            let is_one = matches!(key.owner, Owner::Tunnel(_)) && bandwidth.counts == Counts::Wire;
            (is_one && level.bps.is_some())
                .then(|| format!("the {} is not in force: {WIRE_OF_A_TUNNEL}", key.words()))
        };
        self.in_force.trouble.clone().or_else(|| self.bandwidth.iter().find_map(wire))
    }

    /// Takes the counts of what levels dropped and let pass, but for those of queues.
    pub(super) fn sample_levels(&mut self) {
        let (drops, passed): (Counted, Counted) = if self.plane.traffic().is_some() {
            (self.in_force.drops().collect(), self.in_force.passed().collect())
        } else {
            let key = |keeper: &Keeper| match keeper {
                Keeper::Tunnel(id, way) => Some((LevelKey::tunnel(self.registry.name(*id)?), *way)),
                Keeper::Gateway(name, way) => Some((LevelKey::gateway(name), *way)),
            };
            let keyed = |(keeper, count)| {
                let (key, way) = key(&keeper)?;
                Some((LevelKey { inward: way == Direction::In, ..key }, count))
            };
            let drops = self.plane.level_drops().into_iter().filter_map(keyed).collect();
            (drops, self.plane.level_passed().into_iter().filter_map(keyed).collect())
        };
        self.passed.buckets = passed.into_iter().collect();
        let count = |(key, packets): (LevelKey, u64)| {
            Some(Count { place: dropped_at(&key, &self.config)?, part: 0, packets })
        };
        self.counters.qos_drops.read("levels", drops.into_iter().filter_map(count));
    }
}

/// As what monitoring sees packets that a level dropped; `None` if its owner is not configured any more.
fn dropped_at(key: &LevelKey, config: &Config) -> Option<Place> {
    Some(match &key.owner {
        Owner::Gateway(name) => {
            Place::of(&config.gateway(name)?.name, if key.inward { "gateway_in" } else { "gateway_cap" })
        }
        Owner::Tunnel(name) => Place {
            tunnel: Some((name.clone(), key.direction())),
            ..Place::of(&config.tunnel(name)?.gateway, if key.inward { "tunnel_in" } else { "tunnel" })
        },
    })
}

const WIRE_OF_A_TUNNEL: &str =
    "the kernel's data plane counts payload for a tunnel; write counts: payload, or data_plane: userspace";
