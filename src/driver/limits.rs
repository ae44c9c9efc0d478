//! Limits of single inner addresses: what the configuration says, over it what was saved, and over that what was set by
//! command. The last word counts: a configuration that says something else about an address than before ends its override.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use cygnet_model::registry::Registry;

use super::answer::Sought;
use super::{Daemon, saved};
use crate::config::limit::{self, show_limit};
use crate::config::model::{Config, Gateway, Limit, Tunnel};
use crate::control::proto::{LimitAsk, LimitStatus};
use crate::control::{ErrorKind, Response};
use crate::observe::events::Kind;
use crate::observe::snapshot::{LimitCount, Origin};
use crate::store::kept::KeptLimit;
use crate::traffic::rules::{Cap, Rules};
use crate::traffic::{GatewayNo, Inner};

/// Addresses of a gateway that may have limits beside those of its configuration.
const MAX_SET: usize = 65_536;

/// A limit in force.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Set {
    /// What the address may use.
    pub limit: Limit,
    /// By whose word.
    pub origin: Origin,
}

/// Limits by address.
pub(super) type OfGateway = BTreeMap<IpAddr, Set>;

/// Numbers of gateways, and their limits.
#[derive(Default)]
pub(super) struct Limits {
    numbers: BTreeMap<String, GatewayNo>,
    last: u32,
    of: BTreeMap<String, OfGateway>,
    /// What outlives the daemon's end.
    saved: saved::Limits,
}

impl Limits {
    /// What the configuration and the state directory say.
    pub fn begin(config: &Config) -> Self {
        let mut limits = Self { saved: saved::limits(config), ..Self::default() };
        limits.number(config);
        limits.of = configured(config);
        for (gateway, saved) in &limits.saved {
            let Some((of, gateway)) = limits.of.get_mut(gateway).zip(config.gateway(gateway)) else {
                continue;
            };
            let file = of_file(gateway);
            for (ip, saved) in saved.iter().filter(|(ip, _)| limit::is_inside(gateway, **ip)) {
                // The last word counts: a file that was changed while nobody looked.
                if file.get(ip).copied() == saved.configured {
                    of.insert(*ip, Set { limit: saved.limit, origin: Origin::Saved });
                } else {
                    tracing::info!(gateway = %gateway.name, %ip, "a saved limit gives way to what the file says");
                }
            }
        }
        limits
    }

    /// Takes over the limits that were set by command in an earlier life that was not told to end.
    pub fn take_over(&mut self, config: &Config, kept: Vec<KeptLimit>) {
        let mut files: HashMap<String, BTreeMap<IpAddr, Limit>> = HashMap::new();
        for KeptLimit { gateway: name, ip, set, configured } in kept {
            let Some(gateway) = config.gateway(&name) else { continue };
            let file = files.entry(name.clone()).or_insert_with(|| of_file(gateway));
            let (Some(set), said) = (limit::parse(&set).ok(), file.get(&ip).copied().map(show_limit)) else {
                continue;
            };
            // The last word counts: a file that was changed while nobody looked.
            if said == configured && limit::is_inside(gateway, ip) {
                self.of.entry(name).or_default().insert(ip, Set { limit: set, origin: Origin::Command });
            }
        }
    }

    fn number(&mut self, config: &Config) {
        self.numbers.retain(|name, _| config.gateway(name).is_some());
        for gateway in &config.gateways {
            self.numbers.entry(gateway.name.clone()).or_insert_with(|| {
                self.last = self.last.wrapping_add(1);
                GatewayNo(self.last)
            });
        }
    }

    /// The number of a gateway.
    pub fn no(&self, gateway: &str) -> Option<GatewayNo> {
        self.numbers.get(gateway).copied()
    }

    /// Names by number.
    pub fn names(&self) -> HashMap<GatewayNo, &str> {
        self.numbers.iter().map(|(name, no)| (*no, name.as_str())).collect()
    }

    /// Limits of a gateway.
    pub fn of(&self, gateway: &str) -> impl Iterator<Item = (&IpAddr, &Set)> {
        self.of.get(gateway).into_iter().flatten()
    }

    /// The limit of an address, if it has one.
    pub fn get(&self, gateway: &str, ip: &IpAddr) -> Option<Set> {
        self.of.get(gateway)?.get(ip).copied()
    }

    /// How many there are.
    pub fn count(&self, gateway: &str) -> LimitCount {
        let mut count = LimitCount::default();
        for (_, set) in self.of(gateway) {
            match set.limit {
                Limit::Rate(_) => count.rates += 1,
                Limit::Block => count.blocked += 1,
                Limit::Unlimited => continue,
            }
            count.by_command += usize::from(set.origin != Origin::Configuration);
        }
        count
    }

    /// Brings the rules of a data plane in line: whose tunnels are whose, and who may carry how much.
    pub fn rules(&self, config: &Config, registry: &Registry, mut rules: Rules) -> Rules {
        let tunnel = |t: &Tunnel| Some((registry.tunnel(&t.name)?, self.no(&t.gateway)?));
        rules.follow_gateways(config.tunnels.iter().filter_map(tunnel).collect());
        let wanted: HashMap<Inner, Cap> = self
            .of
            .iter()
            .filter_map(|(name, of)| Some((self.no(name)?, of)))
            .flat_map(|(gateway, of)| of.iter().map(move |(ip, set)| (Inner { gateway, ip: *ip }, set)))
            .filter_map(|(who, set)| Some((who, cap(set.limit)?)))
            .collect();
        rules.retain(|who| wanted.contains_key(who));
        wanted.into_iter().for_each(|(who, cap)| rules.set(who, Some(cap)));
        rules
    }
}

/// What a limit means for a data plane.
pub(super) const fn cap(limit: Limit) -> Option<Cap> {
    match limit {
        Limit::Rate(bps) => Some(Cap::Rate(bps)),
        Limit::Block => Some(Cap::Block),
        Limit::Unlimited => None,
    }
}

fn of_file(gateway: &Gateway) -> BTreeMap<IpAddr, Limit> {
    gateway.limits.iter().map(|l| (l.ip, l.limit)).collect()
}

fn configured(config: &Config) -> BTreeMap<String, OfGateway> {
    let set = |(ip, limit)| (ip, Set { limit, origin: Origin::Configuration });
    config.gateways.iter().map(|g| (g.name.clone(), of_file(g).into_iter().map(set).collect())).collect()
}

impl Daemon {
    /// Brings the data plane in line with tunnels, gateways and limits.
    pub(super) fn follow_traffic(&mut self) {
        let known: HashSet<GatewayNo> = self.limits.numbers.values().copied().collect();
        self.traffic.retain_gateways(|no| known.contains(&no));
        self.plane.publish(self.limits.rules(&self.config, &self.registry, self.plane.rules()));
        if let Some(why) = self.limits_trouble() {
            tracing::error!("{why}");
        }
    }

    /// How many limits of a gateway are in force.
    pub(super) fn limits_in_force(&self, gateway: &str) -> LimitCount {
        if self.plane.ips_trouble().is_some() { LimitCount::default() } else { self.limits.count(gateway) }
    }

    /// Why limits are not in force on this host, if there are any.
    pub(super) fn limits_trouble(&self) -> Option<String> {
        let why = self.plane.ips_trouble()?;
        let caps = |g: &&Gateway| {
            let count = self.limits.count(&g.name);
            count.rates + count.blocked > 0
        };
        let gateways: Vec<&str> = self.config.gateways.iter().filter(caps).map(|g| g.name.as_str()).collect();
        (!gateways.is_empty())
            .then(|| format!("limits of single addresses of {} are not in force: {why}", gateways.join(", ")))
    }

    /// Changes limits at once: all of them, or none.
    pub(super) fn change_limits(&mut self, gateway: &str, asked: &[LimitAsk], save: bool) -> Response {
        let Some(config) = self.config.gateway(gateway) else {
            return self.unknown(Sought::Gateway, gateway);
        };
        let refuse = |message: String, hint: &str| Response::Error {
            kind: ErrorKind::Failed,
            message: format!("no limit was changed: {message}"),
            hint: hint.to_owned(),
        };
        if asked.is_empty() {
            return Response::done(format!("no limit of {gateway} was changed"));
        }
        let mut changes: Vec<(IpAddr, Limit)> = Vec::with_capacity(asked.len());
        for LimitAsk { ip, rate } in asked {
            let ip = *ip;
            if let Err(w) = limit::is_plain(ip) {
                return refuse(w.what, &w.fix);
            }
            if !limit::is_inside(config, ip) {
                let networks: Vec<String> = config.networks.iter().take(4).map(ToString::to_string).collect();
                let hint = format!("name an address inside {}", networks.join(", "));
                return refuse(format!("{ip} is outside the networks of {gateway}"), &hint);
            }
            match limit::parse(rate) {
                Ok(limit) => changes.push((ip, limit)),
                Err(w) => return refuse(format!("{ip}: {}", w.what), &w.fix),
            }
        }
        if let Some(why) = self.plane.ips_trouble() {
            return refuse(why.to_owned(), "cygnet bandwidth caps the gateway as a whole");
        }
        let of = self.limits.of.get(gateway);
        let before = of.map_or(0, BTreeMap::len);
        let is_new = |(ip, limit): &&(IpAddr, Limit)| {
            *limit != Limit::Unlimited && !of.is_some_and(|of| of.contains_key(ip))
        };
        let more = changes.iter().filter(is_new).count();
        if more > 0 && before.saturating_add(more) > MAX_SET.max(config.limits.len()) {
            return refuse(
                format!("{gateway} has {before} limits, and {MAX_SET} are possible"),
                "lift some: cygnet limit GATEWAY IP unlimited",
            );
        }
        self.put_limits(gateway, &changes, save)
    }

    fn put_limits(&mut self, gateway: &str, changes: &[(IpAddr, Limit)], save: bool) -> Response {
        let Some(no) = self.limits.no(gateway) else { return self.unknown(Sought::Gateway, gateway) };
        let file = self.config.gateway(gateway).map(of_file).unwrap_or_default();
        let before = self.plane.rules();
        let mut rules = before.clone();
        for (ip, limit) in changes {
            rules.set(Inner { gateway: no, ip: *ip }, cap(*limit));
        }
        self.plane.publish(rules);
        if let Some(why) = self.plane.ips_trouble().map(str::to_owned) {
            self.plane.publish(before);
            return Response::Error {
                kind: ErrorKind::Failed,
                message: format!("no limit was changed: {why}"),
                hint: "cygnet doctor says what this host lacks".to_owned(),
            };
        }
        let saved = self.limits.saved.get(gateway);
        let of = self.limits.of.entry(gateway.to_owned()).or_default();
        let mut kept = Vec::new();
        for (ip, limit) in changes {
            let says_nothing = *limit == Limit::Unlimited
                && !file.contains_key(ip)
                && !saved.is_some_and(|s| s.contains_key(ip));
            let set = Set { limit: *limit, origin: Origin::Command };
            let _ = if says_nothing { of.remove(ip) } else { of.insert(*ip, set) };
            let configured = file.get(ip).copied().map(show_limit);
            let value = (!says_nothing).then(|| (show_limit(*limit), configured));
            kept.push((*ip, value));
        }
        let message = match changes {
            [(ip, limit)] => format!("limit of {ip} of {gateway} is now {}", show_limit(*limit)),
            all => format!("{} limits of {gateway} are in force", all.len()),
        };
        self.announce_gateway(Kind::LimitChanged, gateway, &message);
        self.keep_limits(gateway, kept);
        if save && let Err(e) = self.save_limits(gateway, changes) {
            return super::answer::unsaved(&self.config, &message, &e, "limits");
        }
        Response::done(message)
    }

    fn save_limits(&mut self, gateway: &str, changes: &[(IpAddr, Limit)]) -> std::io::Result<()> {
        let file = self.config.gateway(gateway).map(of_file).unwrap_or_default();
        let mut all = self.limits.saved.clone();
        let saved = all.entry(gateway.to_owned()).or_default();
        for (ip, limit) in changes {
            // Lifting a limit that the configuration does not set leaves nothing to say.
            let _ = if *limit == Limit::Unlimited && !file.contains_key(ip) {
                saved.remove(ip)
            } else {
                saved.insert(*ip, saved::SavedLimit { limit: *limit, configured: file.get(ip).copied() })
            };
        }
        saved::keep_limits(&self.config, &all)?;
        self.limits.saved = all;
        let of = self.limits.of.entry(gateway.to_owned()).or_default();
        let mut forgotten = Vec::new();
        for (ip, limit) in changes {
            if *limit == Limit::Unlimited && !file.contains_key(ip) {
                of.remove(ip);
            } else {
                of.insert(*ip, Set { limit: *limit, origin: Origin::Saved });
            }
            forgotten.push((*ip, None));
        }
        self.keep_limits(gateway, forgotten);
        Ok(())
    }

    /// Limits of a gateway, with what they dropped.
    pub(super) fn list_limits(&mut self, gateway: &str) -> Option<Vec<LimitStatus>> {
        let no = self.limits.no(gateway)?;
        self.collect_traffic();
        let status = |(ip, set): (&IpAddr, &Set)| LimitStatus {
            ip: *ip,
            rate: show_limit(set.limit),
            origin: set.origin,
            dropped: self.traffic.of(Inner { gateway: no, ip: *ip }).total.dropped,
        };
        Some(self.limits.of(gateway).map(status).collect())
    }

    /// What becomes of limits that were set by command under a new configuration.
    pub(super) fn limit_notes(&self, new: &Config) -> Vec<String> {
        let mut notes = Vec::new();
        for gateway in &new.gateways {
            let (mut stay, mut go) = (0u32, 0u32);
            let file = of_file(gateway);
            let old = self.config.gateway(&gateway.name).map(of_file).unwrap_or_default();
            for (ip, set) in self.limits.of(&gateway.name) {
                if set.origin != Origin::Configuration {
                    let stays = old.get(ip) == file.get(ip) && limit::is_inside(gateway, *ip);
                    *(if stays { &mut stay } else { &mut go }) += 1;
                }
            }
            if stay > 0 {
                notes.push(format!("limits of {stay} addresses of {} stay as set by command", gateway.name));
            }
            if go > 0 {
                notes.push(format!(
                    "limits of {go} addresses of {} as set by command give way to what the file says",
                    gateway.name
                ));
            }
        }
        notes
    }

    /// Takes over the limits of a new configuration; what was set by command stays where the file says of the address what
    /// it said before.
    pub(super) fn follow_limits(&mut self, new: &Config) {
        let mut of = configured(new);
        let mut forget = Vec::new();
        for (name, sets) in &self.limits.of {
            let (Some(gateway), Some(limits)) = (new.gateway(name), of.get_mut(name)) else {
                forget.extend(sets.keys().map(|ip| (name.clone(), *ip)));
                continue;
            };
            let file = of_file(gateway);
            let old = self.config.gateway(name).map(of_file).unwrap_or_default();
            for (ip, set) in sets.iter().filter(|(_, set)| set.origin != Origin::Configuration) {
                if old.get(ip) == file.get(ip) && limit::is_inside(gateway, *ip) {
                    limits.insert(*ip, *set);
                } else {
                    forget.push((name.clone(), *ip));
                }
            }
        }
        let mut saved = self.limits.saved.clone();
        saved.retain(|name, _| new.gateway(name).is_some());
        for (gateway, ip) in forget {
            saved.get_mut(&gateway).map(|of| of.remove(&ip));
            self.keep_limits(&gateway, vec![(ip, None)]);
        }
        if saved != self.limits.saved {
            if let Err(e) = saved::keep_limits(&self.config, &saved) {
                tracing::warn!(error = %e, "saved limits that were given up come back with the next start");
            }
            self.limits.saved = saved;
        }
        self.limits.of = of;
        self.limits.number(new);
    }
}
