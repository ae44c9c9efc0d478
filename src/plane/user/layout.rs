//! Guards as routing rules and routes, as a pure function: what leads protected packets into the TUN, and what keeps
//! them from ever going around it. Nothing else is led there: a packet that no guard means goes its ordinary way.
//!
//! The rules of a family, in the order in which a packet meets them:
//!
//! ```text
//!   1  iif lo, from our address, UDP 500 and 4500    leave      IKE and ESP themselves
//!      iif TUN                                       go to 6    decrypted
//!   2  between LOCAL and what is let by              leave      see `bypassed`; what a narrower guard means: TUN, before
//!      without a source, to REMOTE                   TUN        see below
//!   3  iif lo                                        go to 6    sent by this host: cannot be forged
//!   4  from LOCAL∩REMOTE to LOCAL∩REMOTE             go to 6    could be either way
//!   5  from REMOTE to LOCAL                          blackhole  claims to come from the tunnel, does not
//!   6  from LOCAL to REMOTE                          TUN
//!   7  iif TUN, from LOCAL to REMOTE, both the same  leave      see `sort`
//!      from LOCAL to REMOTE, both the same           TUN
//! ```
//!
//! 4, 5 and 6 may be many, so each is a search tree ([`super::tree`]), and where one prefix has many on the other side,
//! a single rule for it looks into a table of its own with a route for each of those: the kernel finds that in a trie,
//! and goes on with the next rule when there is none. "TUN" is the table [`TABLE`] or a route with the same two ways: out
//! of the device, and a blackhole for when there is no device.
//!
//! A socket without an address is routed *before* it has a source: no `from LOCAL` sees that look-up, nor is there
//! another one for UDP and ICMP (TCP looks twice). If this host has an address inside LOCAL, such look-ups to REMOTE are
//! led into the TUN and get that address. IPv4 knows them by the source 0.0.0.0/32. IPv6 matches no source then, not
//! even ::/128; its rules can ask what source would be chosen ([`Rule::find_source`]). Look-ups to everything
//! (0.0.0.0/0, ::/0) are left alone, unless the outer address itself is inside LOCAL: the host's own traffic to the
//! Internet has the outer address.
//!
//! What routing rules cannot see: cleartext that claims to come from the tunnel and is addressed to this host itself
//! (the local table comes first; the wall stops it), and later fragments of packets whose selector names ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cygnet_model::ChildId;
use cygnet_model::selector::{IpRange, TrafficSelector, within};
use cygnet_model::tunnel::{GuardSpec, Source};
use cygnet_xfrm::route::{Family, Prefix, Route, Via};
use cygnet_xfrm::rule::{Rule, Verdict};

use super::tree::Tree;
use crate::plane::near::{free_bits, networks};

/// `rtm_protocol` of every rule and route of ours.
pub(super) const OWNER: u8 = 0xC9;
/// Stands for the index of the TUN device in routes. No link has it, and the device gets another one when it is made anew.
pub(super) const DEVICE: u32 = 0;
/// The kernel's own (`RT_TABLE_MAIN`).
const MAIN: u32 = 254;
/// The table that leads everything into the TUN.
pub(super) const TABLE: u32 = 0xC9C9;
/// Destinations of look-ups without a source (IPv6: of those that shall have a certain one).
const SOURCELESS: u32 = 0xC9CA;
/// Tables of prefixes with many on the other side are numbered from here on.
pub(super) const FIRST_TABLE: u32 = 0xC900_0000;
/// A prefix with more than these on the other side gets a table.
const PAIRS: usize = 4;

const TUN_METRIC: u32 = 10;
const BLACKHOLE_METRIC: u32 = 4_000_000_000;

/// A guard that falls apart into more pairs of prefixes than this is refused.
pub(super) const MAX_PAIRS: usize = 4096;

const UDP: u8 = 17;
const IKE_PORT: u16 = 500;
/// Protocols whose "ports" in a selector are types and codes, which rules cannot match.
const TYPED: [u8; 3] = [1, 58, 135];

/// What a layout is made for.
pub(super) struct Host<'a> {
    /// Name of the TUN device.
    pub tun: &'a str,
    /// Our ends of IKE and ESP.
    pub sockets: &'a BTreeSet<SocketAddr>,
    /// Addresses of this host, without those of the loopback network and link-local ones.
    pub own: &'a BTreeSet<IpAddr>,
    /// Which source own packets into a child get; [`Source::Auto`] where nothing is said.
    pub sources: &'a BTreeMap<ChildId, Source>,
    /// These addresses and the networks that are attached with them, as prefixes.
    pub attached: &'a BTreeSet<Prefix>,
}

/// Tables in use, so that a prefix keeps its table.
#[derive(Default)]
pub(super) struct TableNumbers {
    of: BTreeMap<(Way, Prefix), u32>,
    next: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Inward,
    Outward,
}

impl TableNumbers {
    /// Numbers that differ from those of an earlier process.
    pub fn beyond<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Self {
        let last = routes.into_iter().map(|route| route.table).filter(|table| *table >= FIRST_TABLE).max();
        Self { of: BTreeMap::new(), next: last.map_or(0, |last| last - FIRST_TABLE + 1) }
    }

    fn number(&mut self, way: Way, prefix: Prefix) -> u32 {
        let next = &mut self.next;
        let number = *self.of.entry((way, prefix)).or_insert_with(|| {
            *next += 1;
            *next - 1
        });
        FIRST_TABLE.saturating_add(number)
    }
}

/// Rules of a family, sorted; priorities come with [`Rules::place`].
#[derive(Default)]
struct Rules {
    bypass: BTreeSet<Rule>,
    /// What is let by and what narrower guards protect of it, by the width of the guard, narrow ones first.
    levels: BTreeMap<u32, Level>,
    sourceless: BTreeSet<Rule>,
    either: Kind,
    inward: Kind,
    outward: Kind,
    back: BTreeSet<Rule>,
    symmetric: BTreeSet<Rule>,
}

/// Rules for guards of one width, the bits that their selectors leave free.
#[derive(Default)]
struct Level {
    /// What they let by.
    near: BTreeSet<Rule>,
    /// What they protect of that which wider ones let by.
    protected: BTreeSet<Rule>,
}

/// Rules of one step.
#[derive(Default)]
struct Kind {
    /// With more than prefixes. They are few.
    special: BTreeSet<Rule>,
    /// Prefixes alone.
    plain: BTreeSet<Rule>,
}

impl Kind {
    fn add(&mut self, rule: Rule) {
        if is_plain(&rule) {
            self.plain.insert(rule)
        } else {
            self.special.insert(rule)
        };
    }
}

/// Whether a rule looks at prefixes alone.
fn is_plain(rule: &Rule) -> bool {
    let prefixes = Rule {
        source: rule.source,
        destination: rule.destination,
        ..Rule::new(rule.family, rule.priority, rule.verdict, rule.owner)
    };
    prefixes == *rule
}

/// What shall be in the kernel. See the [module](self).
#[derive(Default)]
pub(super) struct Layout {
    rules: BTreeMap<Family, Rules>,
    /// Of all tables.
    pub routes: BTreeSet<Route>,
}

impl Layout {
    /// The layout for some guards. Those are skipped that [`sort`] refuses.
    pub fn new<'a>(
        guards: impl IntoIterator<Item = &'a GuardSpec>,
        host: &Host<'_>,
        tables: &mut TableNumbers,
    ) -> Self {
        let mut layout = Self::default();
        let mut outward: BTreeMap<(Family, Prefix), BTreeSet<Prefix>> = BTreeMap::new();
        let mut inward: BTreeMap<(Family, Prefix), BTreeSet<Prefix>> = BTreeMap::new();
        let mut accepted = Vec::new();
        for guard in guards {
            let Some(sorted) = sort(guard) else { continue };
            for rule in sorted.either {
                layout.of(&rule).either.add(rule);
            }
            for (many, rules, kind) in
                [(&mut outward, sorted.outward, Way::Outward), (&mut inward, sorted.inward, Way::Inward)]
            {
                for rule in rules {
                    let rules = layout.of(&rule);
                    let kind = match kind {
                        Way::Outward => &mut rules.outward,
                        Way::Inward => &mut rules.inward,
                    };
                    let everything = rule.family.everything();
                    let ends = (rule.source.unwrap_or(everything), rule.destination.unwrap_or(everything));
                    let family = rule.family;
                    let plain = is_plain(&rule);
                    kind.add(rule);
                    if plain {
                        many.entry((family, ends.0)).or_default().insert(ends.1);
                    }
                }
            }
            for rule in sorted.symmetric {
                let leave = Rule { iif: Some(host.tun.to_owned()), verdict: Verdict::Nop, ..rule.clone() };
                layout.of(&rule).back.insert(leave);
                layout.of(&rule).symmetric.insert(rule);
            }
            accepted.push(guard);
        }
        layout.tables(outward, Way::Outward, tables);
        layout.tables(inward, Way::Inward, tables);
        for guard in &accepted {
            layout.bypassed(guard, &accepted, host);
        }
        let mut sources = BTreeMap::new();
        for guard in accepted {
            layout.sourceless(guard, host, &mut sources);
        }
        layout.routes.extend(sources.into_iter().map(|(destination, source)| Route {
            source: Some(source),
            ..route(SOURCELESS, destination, Via::Link(DEVICE), TUN_METRIC)
        }));
        for (family, rules) in &mut layout.rules {
            rules.bypass =
                host.sockets.iter().flat_map(|s| bypass(*s)).filter(|r| r.family == *family).collect();
            let everything = family.everything();
            layout.routes.extend(both_ways(TABLE, everything));
        }
        layout
    }

    fn of(&mut self, rule: &Rule) -> &mut Rules {
        self.rules.entry(rule.family).or_default()
    }

    /// Gives each prefix that has many on its other side a table in place of its rules.
    fn tables(
        &mut self,
        many: BTreeMap<(Family, Prefix), BTreeSet<Prefix>>,
        way: Way,
        tables: &mut TableNumbers,
    ) {
        for ((family, source), destinations) in many.into_iter().filter(|(_, d)| d.len() > PAIRS) {
            let rules = self.rules.entry(family).or_default();
            let (kind, verdict) = match way {
                Way::Outward => (&mut rules.outward, Verdict::Table(TABLE)),
                Way::Inward => (&mut rules.inward, Verdict::Blackhole),
            };
            let pair = |destination: Prefix| Rule {
                source: some(source),
                destination: some(destination),
                ..Rule::new(family, 0, verdict, OWNER)
            };
            for destination in &destinations {
                kind.plain.remove(&pair(*destination));
            }
            let table = tables.number(way, source);
            let to_table = Rule::new(family, 0, Verdict::Table(table), OWNER);
            kind.plain.insert(Rule { source: some(source), ..to_table });
            for destination in destinations {
                match way {
                    Way::Outward => self.routes.extend(both_ways(table, destination)),
                    Way::Inward => {
                        self.routes.insert(route(table, destination, Via::Blackhole, BLACKHOLE_METRIC));
                    }
                }
            }
        }
    }

    /// What is reached directly although a guard covers it; see [`crate::plane::near`].
    fn bypassed(&mut self, guard: &GuardSpec, all: &[&GuardSpec], host: &Host<'_>) {
        for (near, covering) in networks(guard, host.attached) {
            for local in guard.local.iter().filter(|local| local.range.same_family(&near)) {
                let width = free_bits(&covering.range) + free_bits(&local.range);
                for (from, to) in [(local.range, near), (near, local.range)] {
                    self.let_by(from, to, width, all, host);
                }
            }
        }
    }

    /// Lets packets from one range to another by, but for those of selectors narrower than `width` bits.
    fn let_by(&mut self, from: IpRange, to: IpRange, width: u32, all: &[&GuardSpec], host: &Host<'_>) {
        for guard in all {
            let narrow =
                guard.local.iter().flat_map(|l| guard.remote.iter().map(move |r| (l, r))).filter(|(l, r)| {
                    l.range.intersect(&from).is_some()
                        && r.range.intersect(&to).is_some()
                        && free_bits(&l.range) + free_bits(&r.range) < width
                });
            for (local, remote) in narrow {
                let width = free_bits(&local.range) + free_bits(&remote.range);
                for rule in between(local, remote, Verdict::Table(TABLE), guard).unwrap_or_default() {
                    let sourceless =
                        own_source(local, remote, guard, host).and_then(|own| sourceless(&rule, own));
                    let level = self.of(&rule).levels.entry(width).or_default();
                    level.protected.extend(sourceless);
                    level.protected.insert(rule);
                }
            }
        }
        for (source, destination) in
            from.prefixes().into_iter().flat_map(|f| to.prefixes().into_iter().map(move |t| (f, t)))
        {
            let family = Family::of(source.0);
            let rule = Rule {
                source: some(source),
                destination: some(destination),
                ..Rule::new(family, 0, Verdict::Nop, OWNER)
            };
            let near = &mut self.of(&rule).levels.entry(width).or_default().near;
            // The source would be chosen inside, so the look-up without one is let by, too.
            match family {
                Family::V4 => {
                    let nowhere = Some((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 32));
                    near.insert(Rule { source: nowhere, ..rule.clone() });
                }
                Family::V6 => {
                    let main = Rule { verdict: Verdict::Table(MAIN), find_source: true, ..rule.clone() };
                    near.insert(main);
                }
            }
            near.insert(rule);
        }
    }

    /// What look-ups without a source need for one guard; `sources` are those that destinations get.
    fn sourceless(&mut self, guard: &GuardSpec, host: &Host<'_>, sources: &mut BTreeMap<Prefix, IpAddr>) {
        for local in &guard.local {
            for remote in guard.remote.iter().filter(|remote| remote.range.same_family(&local.range)) {
                let Some(own) = own_source(local, remote, guard, host) else { continue };
                let Some(rules) = between(local, remote, Verdict::Table(TABLE), guard) else { continue };
                for rule in rules {
                    let destination = rule.destination.unwrap_or(rule.family.everything());
                    let of = self.of(&rule);
                    if let Some(found) = sourceless(&rule, own) {
                        let is_table = found.verdict == Verdict::Table(SOURCELESS);
                        if is_table {
                            sources.entry(destination).or_insert(own.address());
                        }
                        // One rule for all that is in the table.
                        let destination =
                            found.destination.filter(|_| !is_table || found.family == Family::V6);
                        of.sourceless.insert(Rule { destination, ..found });
                    }
                }
            }
        }
    }

    /// The rules of a family in the order in which the kernel shall walk them, with priorities from `first` to below
    /// `exit`, where unconcerned packets go on. `None` if they do not fit.
    pub fn place(&self, family: Family, first: u32, exit: u32, tun: &str) -> Option<Vec<Rule>> {
        let Some(rules) = self.rules.get(&family) else { return Some(Vec::new()) };
        let room = exit.checked_sub(first)?;
        (2..16).find_map(|power| rules.place(family, first, exit, tun, 1 << power, room))
    }

    #[cfg(test)]
    fn families(&self) -> impl Iterator<Item = Family> {
        self.rules.keys().copied()
    }
}

impl Rules {
    fn place(
        &self,
        family: Family,
        first: u32,
        exit: u32,
        tun: &str,
        leaf: usize,
        room: u32,
    ) -> Option<Vec<Rule>> {
        let tree = |kind: &Kind| Tree::new(kind.plain.iter().cloned().collect(), leaf);
        let (either, inward, outward) = (tree(&self.either), tree(&self.inward), tree(&self.outward));
        let len = |tree: &Tree| u32::try_from(tree.len()).ok();
        let levels = u32::try_from(self.levels.len()).ok()?.checked_mul(2)?;
        let sourceless_at = first.checked_add(2)?.checked_add(levels)?;
        let either_at = sourceless_at + 3;
        let inward_at = either_at + len(&either)?;
        // One for the special rules of each.
        let outward_at = inward_at + 1 + len(&inward)?;
        let symmetric_at = outward_at + 2 + len(&outward)?;
        if symmetric_at + 3 > first + room {
            return None;
        }
        let at = |priority: u32, verdict: Option<Verdict>| {
            move |rule: &Rule| Rule { priority, verdict: verdict.unwrap_or(rule.verdict), ..rule.clone() }
        };
        let any = |priority, verdict| Rule::new(family, priority, verdict, OWNER);
        let to_outward = Verdict::Goto(outward_at);
        let leave = Verdict::Goto(exit);
        let mut out: Vec<Rule> = Vec::new();
        out.extend(self.bypass.iter().map(at(first, Some(leave))));
        out.push(Rule { iif: Some(tun.to_owned()), ..any(first + 1, to_outward) });
        for (level, priority) in self.levels.values().zip((first + 2..).step_by(2)) {
            out.extend(level.near.iter().map(|rule| {
                let verdict = if rule.verdict == Verdict::Nop { leave } else { rule.verdict };
                Rule { priority, verdict, ..rule.clone() }
            }));
            out.extend(level.protected.iter().map(at(priority + 1, None)));
        }
        out.extend(self.sourceless.iter().map(at(sourceless_at, None)));
        out.push(Rule { iif: Some("lo".to_owned()), ..any(sourceless_at + 1, to_outward) });
        out.extend(self.either.special.iter().map(at(sourceless_at + 2, Some(to_outward))));
        let hit = |rule: Rule| match rule.verdict {
            Verdict::Nop => Rule { verdict: to_outward, ..rule },
            _ => rule,
        };
        out.extend(either.rules(either_at, inward_at).into_iter().map(hit));
        out.push(any(inward_at, Verdict::Nop));
        out.extend(self.inward.special.iter().map(at(inward_at, None)));
        out.extend(inward.rules(inward_at + 1, outward_at));
        out.push(any(outward_at, Verdict::Nop));
        out.extend(self.outward.special.iter().map(at(outward_at + 1, None)));
        out.extend(outward.rules(outward_at + 2, symmetric_at));
        out.push(any(symmetric_at, Verdict::Nop));
        out.extend(self.back.iter().map(at(symmetric_at + 1, Some(leave))));
        out.extend(self.symmetric.iter().map(at(symmetric_at + 2, None)));
        Some(out)
    }
}

/// The source that look-ups without one get.
#[derive(Clone, Copy)]
enum Own {
    /// This one, or with IPv6 another one inside that the kernel chooses.
    Any(IpAddr),
    /// This one alone.
    Fixed(IpAddr),
}

impl Own {
    const fn address(self) -> IpAddr {
        match self {
            Self::Any(address) | Self::Fixed(address) => address,
        }
    }
}

/// The source for look-ups without one to a remote selector, if they are led into the TUN: an address of this host inside
/// the local selector, the one that is wanted. To everything they are led only if the outer address is inside, too.
fn own_source(
    local: &TrafficSelector,
    remote: &TrafficSelector,
    guard: &GuardSpec,
    host: &Host<'_>,
) -> Option<Own> {
    let inside = |addr: IpAddr| guard.local.iter().any(|local| local.range.contains(addr));
    if remote.range.prefix_len() == Some(0) && !host.sockets.iter().any(|socket| inside(socket.ip())) {
        return None;
    }
    let has = |addr: &IpAddr| local.range.contains(*addr);
    match host.sources.get(&guard.child).copied().unwrap_or_default() {
        Source::None => None,
        Source::Address(wanted) if wanted.is_ipv4() == local.range.start().is_ipv4() => {
            host.own.get(&wanted).copied().filter(has).map(Own::Fixed)
        }
        Source::Auto | Source::Address(_) => host.own.iter().copied().find(has).map(Own::Any),
    }
}

/// What a rule of a guard is for look-ups without a source; `None` if it sees these by itself.
fn sourceless(rule: &Rule, own: Own) -> Option<Rule> {
    match (rule.family, own) {
        // What the rule says of the source is asked once a route has given one.
        (Family::V6, own) => rule.source.is_some().then(|| {
            let verdict = match own {
                Own::Fixed(_) if is_plain(rule) => Verdict::Table(SOURCELESS),
                Own::Fixed(_) | Own::Any(_) => rule.verdict,
            };
            Rule { find_source: true, verdict, ..rule.clone() }
        }),
        (Family::V4, _) => {
            let table = if is_plain(rule) { SOURCELESS } else { TABLE };
            let nowhere = Some((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 32));
            Some(Rule { source: nowhere, verdict: Verdict::Table(table), ..rule.clone() })
        }
    }
}

/// The rules of one guard, without priorities. Those of `either` have the verdict [`Verdict::Nop`].
pub(super) struct Sorted {
    either: Vec<Rule>,
    inward: Vec<Rule>,
    outward: Vec<Rule>,
    symmetric: Vec<Rule>,
}

impl Sorted {
    /// Whether there are rules of a family.
    pub fn has(&self, family: Family) -> bool {
        self.outward.iter().chain(&self.symmetric).any(|rule| rule.family == family)
    }
}

/// The rules of a guard, both directions; `None` if there are too many. Where a rule cannot say what a selector says, it
/// covers more.
///
/// Where both sides overlap, addresses cannot tell the directions apart. Such packets go into the tunnel: dropping them
/// would stop the tunnel, and forged ones are not delivered in clear text this way either. If both sides are the same
/// altogether (0.0.0.0/0 on both, say), even decrypted packets look as if they belonged into the tunnel; those that come
/// out of the TUN and belong into no other tunnel are let go.
pub(super) fn sort(guard: &GuardSpec) -> Option<Sorted> {
    let (local, remote) = (guard.local.as_slice(), guard.remote.as_slice());
    let both: Vec<TrafficSelector> =
        local.iter().flat_map(|l| remote.iter().filter_map(move |r| l.intersect(r))).collect();
    let is_symmetric = within(local, &both) && within(remote, &both);
    let mut count = 0;
    let mut all = |from: &[TrafficSelector], to: &[TrafficSelector], verdict| {
        let mut out = BTreeSet::new();
        for (from, to) in from.iter().flat_map(|f| to.iter().map(move |t| (f, t))) {
            out.extend(between(from, to, verdict, guard)?);
            if count + out.len() > MAX_PAIRS {
                return None;
            }
        }
        count += out.len();
        Some(out.into_iter().collect::<Vec<Rule>>())
    };
    let either = all(&both, &both, Verdict::Nop)?;
    let inward = all(remote, local, Verdict::Blackhole)?;
    let out = all(local, remote, Verdict::Table(TABLE))?;
    let (outward, symmetric) = if is_symmetric { (Vec::new(), out) } else { (out, Vec::new()) };
    Some(Sorted { either, inward, outward, symmetric })
}

/// The rules that keep IKE and ESP of one of our addresses out of the tunnel, whatever the guards cover.
fn bypass(local: SocketAddr) -> impl Iterator<Item = Rule> {
    let (family, host_len) = match local.ip() {
        IpAddr::V4(_) => (Family::V4, 32),
        IpAddr::V6(_) => (Family::V6, 128),
    };
    let ports = BTreeSet::from([IKE_PORT, local.port()]);
    ports.into_iter().map(move |port| Rule {
        iif: Some("lo".to_owned()),
        source: (!local.ip().is_unspecified()).then_some((local.ip(), host_len)),
        ip_protocol: Some(UDP),
        source_ports: Some((port, port)),
        ..Rule::new(family, 0, Verdict::Nop, OWNER)
    })
}

/// The rules for the packets from one selector to another; `None` if they are too many.
fn between(
    from: &TrafficSelector,
    to: &TrafficSelector,
    verdict: Verdict,
    guard: &GuardSpec,
) -> Option<Vec<Rule>> {
    let protocol = match (from.protocol, to.protocol) {
        (0, any) | (any, 0) => any,
        (a, b) if a == b => a,
        // No packet has two protocols.
        _ => return Some(Vec::new()),
    };
    if !from.range.same_family(&to.range) {
        return Some(Vec::new());
    }
    let (sources, destinations) = (from.range.prefixes(), to.range.prefixes());
    if sources.len() * destinations.len() > MAX_PAIRS {
        return None;
    }
    let rule = |source: Prefix, destination: Prefix| Rule {
        source: some(source),
        destination: some(destination),
        ip_protocol: (protocol != 0).then_some(protocol),
        source_ports: ports(from, protocol),
        destination_ports: ports(to, protocol),
        mark: guard.mark.map(|mark| (mark.value, mark.mask)),
        ..Rule::new(Family::of(source.0), 0, verdict, OWNER)
    };
    Some(
        sources
            .iter()
            .flat_map(|s| destinations.iter().map(move |d| (*s, *d)))
            .map(|(s, d)| rule(s, d))
            .collect(),
    )
}

/// The kernel does not show prefixes of length 0, and has none.
fn some(prefix: Prefix) -> Option<Prefix> {
    (prefix.1 > 0).then_some(prefix)
}

/// A selector's ports, if a rule can say them: rules know no port 0, and neither OPAQUE (first > last) nor types.
fn ports(selector: &TrafficSelector, protocol: u8) -> Option<(u16, u16)> {
    let (first, last) = selector.ports;
    let sayable = !selector.any_port() && first <= last && last > 0 && !TYPED.contains(&protocol);
    sayable.then_some((first.max(1), last))
}

fn route(table: u32, destination: Prefix, via: Via, metric: u32) -> Route {
    let family = Family::of(destination.0);
    Route { family, table, destination, via, metric, source: None, owner: OWNER }
}

/// Into the TUN, and nowhere while there is none.
fn both_ways(table: u32, destination: Prefix) -> [Route; 2] {
    [
        route(table, destination, Via::Blackhole, BLACKHOLE_METRIC),
        route(table, destination, Via::Link(DEVICE), TUN_METRIC),
    ]
}

#[cfg(test)]
mod tests;
