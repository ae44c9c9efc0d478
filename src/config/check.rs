//! What holds between the parts of a configuration: references, SPD rules, identities. Raw sections come in, resolved
//! ones go out, and whatever is wrong is noted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cygnet_model::IpRange;
use cygnet_model::tunnel::Bypass;

use super::bandwidth::Counts;
use super::decode::{Spanned, closest};
use super::error::{At, Sink, Wrong, quoted, wrong};
use super::health_check::RawHealthCheck;
use super::model::{
    Auth, ChildSpec, Config, CustomerGateway, Daemon, Gateway, GatewayAddress, Identity, IpLimit,
    PeerAddress, PlaneChoice, RemoteId, SpdRule, Tunnel,
};
use super::raw::{Many, RawAuth, RawConfig, RawCustomer, RawGateway, RawRule, RawTunnel};
use super::spd::{self, Clash, Conflict, Holder, Pair};
use super::{health_check, quota, share};

/// A TS payload holds no more selectors (RFC 7296 §3.13).
const MAX_SELECTORS: usize = 255;
/// Networks listed in `bypass`, and pairs of them with blocks of one child: each is a policy or a rule, and a look-up.
const MAX_BYPASSED: usize = 64;
const MAX_BYPASSED_PAIRS: usize = 512;
/// The number of a child has six bits in a reqid.
const MAX_CHILDREN: usize = 64;

/// Makes the resolved configuration; `None` (with at least one error noted) if something is missing. `read_auth` turns
/// the `auth` of a tunnel into a key.
pub fn resolve(
    mut raw: RawConfig,
    sink: &Sink,
    read_auth: &mut dyn FnMut(&RawAuth) -> Option<Auth>,
) -> Option<Config> {
    unique("gateway", raw.gateways.good.iter().map(|g| &g.name), sink);
    unique("customer gateway", raw.customers.good.iter().map(|c| &c.name), sink);
    unique("tunnel", raw.tunnels.good.iter().map(|t| &t.name), sink);
    raw.gateways.good.iter().for_each(|g| check_gateway(g, sink));
    if let Some(console) = &raw.console {
        console.check(raw.daemon.metrics, sink);
    }
    let console = raw.console.take().map(|c| c.resolve(&mut *read_auth).ok_or(())).transpose();
    let book = Book::new(&raw);
    for t in &raw.tunnels.good {
        book.check_tunnel(t, sink);
    }
    book.check_overlaps(&raw.tunnels.good, sink);
    book.check_anybody(&raw.tunnels.good, sink);
    book.warn_twins(&raw.tunnels.good, sink);
    quota::check(&raw, sink);
    let auths: Vec<Option<Auth>> =
        raw.tunnels.good.iter().map(|t| t.auth.as_ref().and_then(&mut *read_auth)).collect();
    let identities: Vec<_> = raw.tunnels.good.iter().map(|t| (book.local_id(t), book.remote_id(t))).collect();
    let tunnels: Option<Vec<Tunnel>> = (raw.tunnels.good.into_iter())
        .zip(auths)
        .zip(identities)
        .map(|((t, auth), (local, remote))| tunnel(t, auth?, local, remote?))
        .collect();
    Some(Config {
        daemon: Daemon { console: console.ok()?, ..raw.daemon },
        gateways: raw.gateways.good.into_iter().map(gateway).collect::<Option<_>>()?,
        customer_gateways: raw.customers.good.into_iter().map(customer).collect::<Option<_>>()?,
        tunnels: tunnels?,
        quota: raw.quota,
    })
}

fn gateway(g: RawGateway) -> Option<Gateway> {
    Some(Gateway {
        name: g.name?.value,
        addresses: g.addresses.good.into_iter().map(|a| a.value).collect(),
        networks: g.networks.good.into_iter().map(|n| n.value).collect(),
        bandwidth: g.bandwidth,
        limits: g.limits.into_iter().map(|(ip, limit)| IpLimit { ip: ip.value, limit }).collect(),
        id: g.id.map(|i| i.value),
    })
}

fn customer(c: RawCustomer) -> Option<CustomerGateway> {
    Some(CustomerGateway {
        name: c.name?.value,
        address: c.address?.value,
        id: c.id.map(|i| i.value),
        preset: c.preset,
    })
}

fn tunnel(t: RawTunnel, auth: Auth, local_id: Option<Identity>, remote_id: RemoteId) -> Option<Tunnel> {
    let rules = t.rules.good.into_iter().map(|r| {
        let remote = r.remote.good.into_iter().map(|b| b.value).collect();
        Some(SpdRule { local: r.local?.value, remote })
    });
    Some(Tunnel {
        name: t.name?.value,
        gateway: t.gateway?.value,
        customer_gateway: t.customer?.value,
        start: t.start,
        auth,
        local_id,
        remote_id,
        spd: rules.collect::<Option<_>>()?,
        ike: t.ike,
        esp: t.esp,
        mark: t.mark,
        weight: t.weight.unwrap_or(0),
        health_check: t.health_check.as_ref().map(RawHealthCheck::resolved),
        allow_internet: t.allow_internet,
        bypass: Bypass {
            attached: t.bypass.attached,
            networks: t.bypass.networks.into_iter().map(|n| n.value).collect(),
        },
        source: t.source,
        preset: t.preset,
        bandwidth: t.bandwidth.0,
    })
}

/// Notes every name that stands twice.
fn unique<'a>(kind: &str, names: impl Iterator<Item = &'a Option<Spanned<String>>>, sink: &Sink) {
    let mut first: BTreeMap<&str, &At> = BTreeMap::new();
    for name in names.flatten() {
        if let Some(at) = first.get(name.value.as_str()) {
            let what = format!("another {kind} is called \"{}\"", name.value);
            sink.error(&name.at, wrong(what, format!("it is on line {}; rename one of them", at.line)));
        } else {
            first.insert(&name.value, &name.at);
        }
    }
}

fn check_gateway(g: &RawGateway, sink: &Sink) {
    g.networks.refuse_empty(
        sink,
        "the gateway has no networks",
        "list the VPC's CIDR blocks, as in [10.1.0.0/16]",
    );
    g.addresses.refuse_empty(
        sink,
        "the gateway has no address",
        "write an IP address or { interface: NAME }",
    );
    let mut seen: Vec<&GatewayAddress> = Vec::new();
    for a in &g.addresses.good {
        if seen.contains(&&a.value) {
            sink.error(&a.at, wrong(format!("address {} stands twice", a.value), "keep one"));
        }
        seen.push(&a.value);
    }
    for (n, network) in g.networks.good.iter().enumerate() {
        let before = g.networks.good.iter().take(n).find(|o| o.value.intersect(&network.value).is_some());
        if let Some(other) = before {
            let what = format!("{} overlaps with {} ({})", network.value, other.value, other.at.path);
            sink.error(&network.at, wrong(what, "keep the larger one"));
        }
    }
    let mut limited: BTreeMap<IpAddr, &At> = BTreeMap::new();
    for (ip, _) in &g.limits {
        if let Some(first) = limited.insert(ip.value, &ip.at) {
            let what = format!("{} has another limit", ip.value);
            sink.error(&ip.at, wrong(what, format!("it is {}; keep one", first.path)));
        }
        if g.networks.complete && !g.networks.good.iter().any(|n| n.value.contains(ip.value)) {
            let what = format!("{} is outside the gateway's networks", ip.value);
            sink.error(&ip.at, wrong(what, format!("write an address inside {}", blocks(&g.networks.good))));
        }
    }
}

fn blocks(list: &[Spanned<IpRange>]) -> String {
    const SHOWN: usize = 4;
    let mut text = list.iter().take(SHOWN).map(|n| n.value.to_string()).collect::<Vec<_>>().join(", ");
    if list.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

/// Gateways and customer gateways by name.
struct Book<'a> {
    gateways: BTreeMap<&'a str, &'a RawGateway>,
    customers: BTreeMap<&'a str, &'a RawCustomer>,
    /// Whether a name could be missing here only because its entry was unreadable.
    gateways_complete: bool,
    customers_complete: bool,
    plane: PlaneChoice,
}

fn index<T>(list: &Many<T>, name: impl Fn(&T) -> Option<&Spanned<String>>) -> (BTreeMap<&str, &T>, bool) {
    let complete = list.complete && list.good.iter().all(|x| name(x).is_some());
    // Of two with one name the first counts, as in the message of `unique`.
    let map = list.good.iter().rev().filter_map(|x| Some((name(x)?.value.as_str(), x))).collect();
    (map, complete)
}

impl<'a> Book<'a> {
    fn new(raw: &'a RawConfig) -> Self {
        let (gateways, gateways_complete) = index(&raw.gateways, |g| g.name.as_ref());
        let (customers, customers_complete) = index(&raw.customers, |c| c.name.as_ref());
        Self { gateways, customers, gateways_complete, customers_complete, plane: raw.daemon.data_plane }
    }

    fn gateway(&self, t: &RawTunnel) -> Option<&'a RawGateway> {
        self.gateways.get(t.gateway.as_ref()?.value.as_str()).copied()
    }

    fn customer(&self, t: &RawTunnel) -> Option<&'a RawCustomer> {
        self.customers.get(t.customer.as_ref()?.value.as_str()).copied()
    }

    /// What only our own data plane can count.
    fn check_bandwidth(&self, t: &RawTunnel, sink: &Sink) {
        let (bandwidth, at) = &t.bandwidth;
        if bandwidth.counts != Counts::Wire || bandwidth.is_unlimited() {
            return;
        }
        let told = wrong(
            "the kernel's data plane counts payload for a tunnel, not what is on the wire",
            "write counts: payload, or set data_plane: userspace",
        );
        match self.plane {
            PlaneChoice::Kernel => sink.error(at, told),
            PlaneChoice::Auto => sink.warning(at, told),
            PlaneChoice::Userspace => {}
        }
    }

    fn check_tunnel(&self, t: &RawTunnel, sink: &Sink) {
        let refer = |name: &Option<Spanned<String>>,
                     known: &mut dyn Iterator<Item = &'a str>,
                     complete,
                     kind: &str| {
            let Some(name) = name else { return };
            let names: Vec<&str> = known.collect();
            if complete && !names.contains(&name.value.as_str()) {
                let fix = match closest(&name.value, names.iter().copied()) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None if names.is_empty() => format!("add a {kind} of that name"),
                    None => {
                        format!("known are {}", names.iter().take(8).copied().collect::<Vec<_>>().join(", "))
                    }
                };
                sink.error(&name.at, wrong(format!("there is no {kind} {}", quoted(&name.value)), fix));
            }
        };
        refer(&t.gateway, &mut self.gateways.keys().copied(), self.gateways_complete, "gateway");
        refer(&t.customer, &mut self.customers.keys().copied(), self.customers_complete, "customer gateway");
        self.check_ends(t, sink);
        let example = "add one, as in { local: 10.1.0.0/16, remote: [10.2.0.0/16] }";
        t.rules.refuse_empty(sink, "the tunnel has no SPD rules", example);
        for rule in &t.rules.good {
            self.check_rule(t, rule, sink);
        }
        self.check_bandwidth(t, sink);
        check_children(t, sink);
        check_preset(t, sink);
        check_bypass(t, sink);
        health_check::check(t, self.plane, sink);
    }

    /// The two ends must be different, and able to reach each other.
    fn check_ends(&self, t: &RawTunnel, sink: &Sink) {
        let (Some(gateway), Some(customer)) = (self.gateway(t), self.customer(t)) else { return };
        let reference = t.customer.as_ref().map_or(&t.at, |c| &c.at);
        if let Some(Spanned { value: PeerAddress::Ip(peer), at }) = &customer.address {
            let ours = |a: &Spanned<GatewayAddress>| match &a.value {
                GatewayAddress::Ip(ip) => Some(*ip),
                GatewayAddress::Interface(_) => None,
            };
            if gateway.addresses.good.iter().any(|a| ours(a) == Some(*peer)) {
                let what = format!("both ends have the address {peer}");
                sink.error(reference, wrong(what, format!("correct {} or the gateway's address", at.path)));
                return;
            }
            let same_family =
                |a: &Spanned<GatewayAddress>| ours(a).is_none_or(|ip| ip.is_ipv4() == peer.is_ipv4());
            if gateway.addresses.complete && !gateway.addresses.good.iter().any(same_family) {
                let family = if peer.is_ipv4() { "IPv4" } else { "IPv6" };
                let what = format!("the gateway has no {family} address to reach {peer} from");
                sink.error(reference, wrong(what, format!("add an {family} address to the gateway")));
            }
        }
        // RFC 7296 §5 and the "Selfie" attack: with one PSK and one name for both ends, a peer's own message can be
        // reflected to it and passes as ours.
        if let (Some(local), Some(RemoteId::Is(remote))) = (self.local_id(t), self.remote_id(t))
            && local.same(&remote)
        {
            let ours = t.local_id.as_ref().map(|i| &i.at);
            let at = t.remote_id.as_ref().map(|i| &i.at).or(ours).unwrap_or(reference);
            let what = format!("both ends have the identity {local}");
            let fix = "give them different ones (id, local_id, remote_id): otherwise our own messages could be \
                       reflected to us";
            sink.error(at, wrong(what, fix));
        }
    }

    /// Our identity: the tunnel's, the gateway's, or the address we use towards this peer if it is known.
    fn local_id(&self, t: &RawTunnel) -> Option<Identity> {
        if let Some(id) = &t.local_id {
            return Some(id.value.clone());
        }
        let g = self.gateway(t)?;
        if let Some(id) = &g.id {
            return Some(id.value.clone());
        }
        let peer = match self.customer(t)?.address.as_ref()?.value {
            PeerAddress::Ip(ip) => Some(ip),
            PeerAddress::Dns(_) => None,
        };
        match &g
            .addresses
            .good
            .iter()
            .find(|a| match &a.value {
                GatewayAddress::Ip(ip) => peer.is_none_or(|p| p.is_ipv4() == ip.is_ipv4()),
                GatewayAddress::Interface(_) => true,
            })?
            .value
        {
            GatewayAddress::Ip(ip) => Some(Identity::Ip(*ip)),
            GatewayAddress::Interface(_) => None,
        }
    }

    /// The peer's identity: the tunnel's, the customer gateway's, or its address.
    fn remote_id(&self, t: &RawTunnel) -> Option<RemoteId> {
        if let Some(id) = &t.remote_id {
            return Some(id.value.clone());
        }
        let c = self.customer(t)?;
        if let Some(id) = &c.id {
            return Some(id.value.clone());
        }
        Some(match &c.address.as_ref()?.value {
            PeerAddress::Ip(ip) => RemoteId::Is(Identity::Ip(*ip)),
            PeerAddress::Dns(name) => RemoteId::Is(Identity::Fqdn(name.clone())),
        })
    }

    fn check_rule(&self, t: &RawTunnel, rule: &RawRule, sink: &Sink) {
        let none = Many::default();
        let networks = self.gateway(t).map_or(&none, |g| &g.networks);
        let judge = networks.complete && !networks.good.is_empty();
        let internet = |b: &Spanned<IpRange>| b.value.prefix_len() == Some(0);
        let refuse_internet = |b: &Spanned<IpRange>| {
            if internet(b) && !t.allow_internet {
                let what = format!("{} would send the whole Internet through the tunnel", b.value);
                sink.error(
                    &b.at,
                    wrong(what, "name the networks that are meant, or set allow_internet: true"),
                );
            }
        };
        if let Some(local) = &rule.local {
            refuse_internet(local);
            if judge && !internet(local) && !networks.good.iter().any(|n| n.value.covers(&local.value)) {
                let what = format!("{} is not inside the gateway's networks", local.value);
                sink.error(
                    &local.at,
                    wrong(what, format!("write a block inside {}", blocks(&networks.good))),
                );
            }
        }
        rule.remote.refuse_empty(sink, "the rule has no remote blocks", "list them, as in [10.2.0.0/16]");
        for (n, remote) in rule.remote.good.iter().enumerate() {
            refuse_internet(remote);
            if let Some(w) = self.wrong_remote(rule, n, remote, networks, judge && !internet(remote)) {
                sink.error(&remote.at, w);
            } else if self.plane != PlaneChoice::Userspace && !internet(remote) && rule.around_local(remote) {
                let what = format!("{} lies around the local block", remote.value);
                let fix = "with the kernel's data plane what this host itself sends into the local block goes by the tunnel, \
                           too; data_plane: userspace leaves attached networks alone (bypass)";
                sink.warning(&remote.at, wrong(what, fix));
            } else if wide(&remote.value) && !t.allow_internet {
                let what = format!("{} reaches far into the public Internet", remote.value);
                sink.warning(&remote.at, wrong(what, "name the networks that are meant"));
            }
        }
    }

    fn wrong_remote(
        &self,
        rule: &RawRule,
        n: usize,
        remote: &Spanned<IpRange>,
        networks: &Many<Spanned<IpRange>>,
        judge: bool,
    ) -> Option<Wrong> {
        let r = &remote.value;
        if let Some(local) = &rule.local
            && !local.value.same_family(r)
        {
            let what = format!("{r} and {} are of different address families", local.value);
            return Some(wrong(what, "no packet goes from one to the other; write two rules"));
        }
        if let Some(other) = rule.remote.good.iter().take(n).find(|o| o.value.intersect(r).is_some()) {
            return Some(wrong(
                format!("{r} overlaps with {} of the same rule", other.value),
                "keep the larger one",
            ));
        }
        // Wider than a network it is the rest of the hub's world, and inside it a spoke's part; a packet goes by the
        // narrower side. Equal, it can only be the wrong half.
        if judge && networks.good.iter().any(|net| net.value == *r) {
            let what = format!("{r} is the gateway's own network");
            return Some(wrong(
                what,
                "a remote block lies outside the gateway's networks, around one, or inside one",
            ));
        }
        if rule.local.as_ref().is_some_and(|local| local.value == *r) {
            return Some(wrong(
                format!("{r} is both the local and the remote half"),
                "write the peer's block behind remote",
            ));
        }
        None
    }

    /// No packet may be claimed twice: the host has one SPD, whatever gateways and tunnels it has.
    fn check_overlaps(&self, tunnels: &[RawTunnel], sink: &Sink) {
        let numbers: BTreeMap<&str, usize> = self.gateways.keys().copied().zip(0..).collect();
        let mut pairs: Vec<Pair<Place<'_>>> = Vec::new();
        for (tunnel, t) in tunnels.iter().enumerate() {
            let Some(gateway) = t.gateway.as_ref().and_then(|g| numbers.get(g.value.as_str())) else {
                continue;
            };
            for rule in &t.rules.good {
                let Some(local) = &rule.local else { continue };
                let blocks = rule.remote.good.iter().filter(|r| r.value.same_family(&local.value));
                pairs.extend(blocks.map(|r| Pair {
                    local: local.value,
                    remote: r.value,
                    tunnel,
                    gateway: *gateway,
                    mark: t.mark,
                    weight: t.weight,
                    key: Place { tunnel: t, rule: &rule.at, remote: &r.at },
                }));
            }
        }
        let ours = self.plane == PlaneChoice::Userspace;
        if ours {
            share::check(&pairs, sink);
        }
        let holder = if ours { Holder::Userspace } else { Holder::Kernel };
        for Conflict { earlier, later, clash } in spd::conflicts(&pairs, holder) {
            let (Some(first), Some(second)) = (pairs.get(earlier), pairs.get(later)) else { continue };
            // Within one rule `wrong_remote` has said it.
            if first.key.rule != second.key.rule {
                sink.error(second.key.remote, overlap(first, second, clash));
            }
        }
    }

    /// A tunnel that takes any identity must be known by the peer's address: nothing else tells it from another one before
    /// the key does, and the key may be the same.
    fn check_anybody(&self, tunnels: &[RawTunnel], sink: &Sink) {
        let anybody = |t: &RawTunnel| self.remote_id(t) == Some(RemoteId::Any);
        let ends = |t: &RawTunnel| {
            let gateway = t.gateway.as_ref()?.value.clone();
            Some((gateway, self.customer(t)?.address.as_ref()?.value.clone()))
        };
        for (n, t) in tunnels.iter().enumerate().filter(|(_, t)| anybody(t)) {
            let alike = |(m, o): &(usize, &RawTunnel)| {
                // Of two that take anybody the later one is told.
                *m != n && ends(o).is_some_and(|e| Some(e) == ends(t)) && (!anybody(o) || *m < n)
            };
            let Some((_, other)) = tunnels.iter().enumerate().find(alike) else { continue };
            let Some(at) = t.remote_id.as_ref().map(|i| &i.at).or(t.customer.as_ref().map(|c| &c.at)) else {
                continue;
            };
            let name = other.name.as_ref().map_or("?", |n| n.value.as_str());
            let what = format!(
                "any identity is taken, and tunnel {name} has the same gateway and the same peer's address"
            );
            let fix = "nothing tells the two apart when the peer comes: give both a remote_id, or make them one tunnel with \
                       several SPD rules";
            sink.error(at, wrong(what, fix));
        }
    }

    /// Warns of tunnels that an incoming negotiation cannot tell apart by its identities.
    fn warn_twins(&self, tunnels: &[RawTunnel], sink: &Sink) {
        let mut seen: BTreeMap<(&str, Option<Identity>, RemoteId), &Spanned<String>> = BTreeMap::new();
        for t in tunnels {
            let (Some(gateway), Some(remote), Some(name)) = (&t.gateway, self.remote_id(t), &t.name) else {
                continue;
            };
            let key = (gateway.value.as_str(), self.local_id(t), remote);
            if let Some(first) = seen.insert(key, name)
                && first.value != name.value
            {
                let what = format!("the same two identities meet in {}", first.at.path.replace(".name", ""));
                let fix = "the peer's negotiations are told apart by their traffic selectors alone; one tunnel with \
                           several SPD rules, or a local_id or remote_id of its own, is safer";
                sink.warning(&name.at, wrong(what, fix));
            }
        }
    }
}

/// Where a pair stands.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub tunnel: &'a RawTunnel,
    rule: &'a At,
    pub remote: &'a At,
}

/// What is wrong with two pairs that clash, told at the second one.
fn overlap(first: &Pair<Place<'_>>, second: &Pair<Place<'_>>, clash: Clash) -> Wrong {
    let at = first.key.remote;
    let name = |p: &Pair<Place<'_>>| p.key.tunnel.name.as_ref().map_or("?", |n| n.value.as_str()).to_owned();
    let there = format!("{} -> {} ({}, line {})", first.local, first.remote, at.path, at.line);
    let here = format!("{} -> {}", second.local, second.remote);
    let (a, b) = (name(first), name(second));
    let owners = if first.gateway == second.gateway { "" } else { " of another gateway of this host" };
    match clash {
        Clash::OneTunnel => wrong(
            format!("{here} overlaps with {there}"),
            "rules of one tunnel must differ in the local or the remote half",
        ),
        Clash::Equal => wrong(
            format!("{here} is also claimed by tunnel {a}{owners}: {there}"),
            format!(
                "if one of {a} and {b} is the backup of the other, give both a weight: 0 for the primary, more for the backup; \
                 with data_plane: userspace, if they shall share the flows, the same one"
            ),
        ),
        Clash::EqualWeight => wrong(
            format!("{here} is also claimed by tunnel {a}{owners} with the same weight: {there}"),
            format!(
                "the kernel's SPD holds one policy for a selector and a priority, so that they can share the flows with \
                 data_plane: userspace alone: set that, or give {a} and {b} different weights, 0 for the primary and more for \
                 the backup"
            ),
        ),
        Clash::EqualMarks => wrong(
            format!(
                "{here} is also claimed by tunnel {a}{owners}, and a packet may bear both marks: {there}"
            ),
            "give them marks of which no packet bears both (the same mask and different values), or the same mark and \
             different weights",
        ),
        Clash::Nested => wrong(
            format!("{here} and {there} of another gateway of this host lie one inside the other"),
            format!(
                "if the narrower one is meant to win, say so by a weight in both {a} and {b}; else change a block"
            ),
        ),
        Clash::Partial => wrong(
            format!("{here} and {there} would both claim packets such as {}", example(first, second)),
            "neither lies inside the other, so that none is the more specific: make one of them narrower or wider",
        ),
        Clash::MarksLost => wrong(
            format!("{here} is told apart from {there} by its mark alone"),
            "data plane userspace does not see marks: use the kernel's, other blocks, or the same mark",
        ),
    }
}

/// A packet that both pairs claim.
fn example<K>(a: &Pair<K>, b: &Pair<K>) -> String {
    let first = |a: &IpRange, b: &IpRange| a.intersect(b).map_or(a.start(), |both| both.start());
    format!("{} -> {}", first(&a.local, &b.local), first(&a.remote, &b.remote))
}

/// Wider than any private block (10.0.0.0/8, fc00::/7), short of everything.
fn wide(range: &IpRange) -> bool {
    let limit = if range.start().is_ipv4() { 8 } else { 7 };
    range.prefix_len().is_some_and(|len| 0 < len && len < limit)
}

/// Some products keep one pair of networks for each tunnel.
fn check_preset(t: &RawTunnel, sink: &Sink) {
    let pairs: usize = t.rules.good.iter().map(|r| r.remote.good.len()).sum();
    if let (Some(preset), Some(second)) =
        (t.in_effect.filter(|p| p.one_pair), t.rules.good.get(1).or(t.rules.good.first()))
        && pairs > 1
    {
        let what = format!("{} carries one pair of networks in a tunnel, and these are {pairs}", preset.of);
        sink.warning(&second.at, wrong(what, "write one rule with one remote network that holds them all"));
    }
}

/// What is listed in `bypass` leaves in clear text: what it takes from the rules is told where it is all or nothing.
fn check_bypass(t: &RawTunnel, sink: &Sink) {
    if let Some(first) = t.bypass.networks.get(MAX_BYPASSED) {
        let what = format!("more than {MAX_BYPASSED} networks are listed");
        sink.error(&first.at, wrong(what, "write wider blocks, or narrower SPD rules"));
    }
    let remotes = || t.rules.good.iter().flat_map(|rule| &rule.remote.good);
    for network in &t.bypass.networks {
        for remote in remotes().filter(|remote| network.value.covers(&remote.value)) {
            let what = format!(
                "{} covers all of {} ({}, line {}): none of its packets will be protected",
                network.value, remote.value, remote.at.path, remote.at.line
            );
            sink.warning(
                &network.at,
                wrong(what, "list only what shall pass beside the tunnel in clear text, or drop the rule"),
            );
        }
        if t.rules.complete && !remotes().any(|remote| remote.value.intersect(&network.value).is_some()) {
            let what =
                format!("no rule of the tunnel covers {}, so that nothing has to be let by", network.value);
            sink.warning(&network.at, wrong(what, "correct it, or take it out"));
        }
    }
}

fn check_children(t: &RawTunnel, sink: &Sink) {
    let rules: Option<Vec<SpdRule>> = (t.rules.good.iter())
        .map(|r| {
            let remote = r.remote.good.iter().map(|b| b.value).collect();
            Some(SpdRule { local: r.local.as_ref()?.value, remote })
        })
        .collect();
    let Some(rules) = rules else { return };
    let children = spd::children(&rules);
    let at = t.rules.at.clone();
    if children.len() > MAX_CHILDREN {
        let what = format!("the rules need {} child SAs, more than {MAX_CHILDREN}", children.len());
        sink.error(&at, wrong(what, "give more rules the same remote list, or make a second tunnel"));
    }
    let bypassed = |c: &ChildSpec| {
        let networks = t.bypass.networks.iter();
        let overlaps =
            |n: &Spanned<IpRange>| c.remote.iter().filter(|r| r.range.intersect(&n.value).is_some()).count();
        c.local.len() * networks.map(overlaps).sum::<usize>()
    };
    if let Some(first) = t.bypass.networks.first()
        && children.iter().any(|c| bypassed(c) > MAX_BYPASSED_PAIRS)
    {
        let what = format!(
            "the networks listed meet the blocks of one child in more than {MAX_BYPASSED_PAIRS} pairs"
        );
        sink.error(&first.at, wrong(what, "write wider blocks, or make a second tunnel"));
    }
    if children.iter().any(|c| c.local.len() > MAX_SELECTORS || c.remote.len() > MAX_SELECTORS) {
        let what = format!("a child SA would need more than {MAX_SELECTORS} blocks on one side");
        sink.error(&at, wrong(what, "write wider blocks, or make a second tunnel"));
    }
}
