//! Bandwidth levels behind the kernel's ESP: a table of nf_tables that drops what exceeds them. It knows a packet's tunnel by
//! the reqid of its SA, which stays over rekeys. What a gateway sends on the wire is here only where traffic control cannot keep it.
//!
//! ```text
//!  prerouting    arrivals: ESP to an outer address     more than the gateway's level on the wire -> drop
//!                opened:   packets out of an SA        more than the tunnel's, the gateway's     -> drop
//!  postrouting   sealed:   packets on the way into one more than the tunnel's, the gateway's     -> drop
//!                departures: ESP from an outer address  more than the gateway's level on the wire -> drop
//! ```
//! What is dropped is counted first, by tunnel and by gateway; of a gateway also what comes to its level. Everything is one transaction, so that no packet sees half of it.
//! Buckets begin anew with it, full; counts go on ([`Table::drops`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cygnet_model::tunnel::Direction;
use cygnet_model::{ChildId, Reqid, TunnelId};
use cygnet_xfrm::NetlinkError;
use cygnet_xfrm::nft::expr::{Base, Ip, Meta, Register, Verdict, Way};
use cygnet_xfrm::nft::object::LIMITED_PER_MESSAGE;
use cygnet_xfrm::nft::{
    Chain, ChainKind, Change, Counted, Excess, Expr, Hook, Keeping, Nft, keys_per_message,
};

/// The table's name.
const TABLE: &str = "cygnet-levels";
/// `nft`'s numbers of data types, for people who list sets.
const TYPE_INTEGER: u32 = 4;
const KEY: u32 = 4;
const ARRIVALS: &str = "arrivals";
const DEPARTURES: &str = "departures";
/// Counts of tunnels, of a chain of that direction.
const REFUSED_OUT: &str = "refuse-out";
const REFUSED_IN: &str = "refuse-in";
/// After so long without a dropped packet the kernel forgets a tunnel's count, which is known here by then.
const IDLE: Duration = Duration::from_secs(3600);
const ESP: u8 = 50;
const UDP: u8 = 17;
const NATT: [u8; 2] = 4500u16.to_be_bytes();

/// Bits per second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// The number.
    pub bps: u64,
}

impl From<Rate> for Excess {
    fn from(rate: Rate) -> Self {
        Self { octets_per_second: rate.bps / 8 }
    }
}

/// Whose level drops packets, and which way they go.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Keeper {
    /// A tunnel's.
    Tunnel(TunnelId, Direction),
    /// A gateway's.
    Gateway(String, Direction),
}

/// Levels of tunnels, and those that the tunnels of a gateway share, in one direction; they count payload.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct OneWay {
    tunnels: BTreeMap<TunnelId, Rate>,
    gateways: BTreeMap<String, (BTreeSet<TunnelId>, Rate)>,
}

/// Levels of gateways, with their outer addresses.
pub type ByAddress = BTreeMap<String, (BTreeSet<IpAddr>, Rate)>;

/// What the table shall keep.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Wanted {
    out: OneWay,
    inward: OneWay,
    /// What may come to the outer addresses of a gateway; it counts the outer packets without their link layer.
    pub arrivals: ByAddress,
    /// The same of what leaves from them.
    pub departures: ByAddress,
}

impl Wanted {
    /// Levels of tunnels.
    pub const fn tunnels(&mut self, direction: Direction) -> &mut BTreeMap<TunnelId, Rate> {
        &mut self.one_way(direction).tunnels
    }

    /// Levels of gateways, with their tunnels.
    pub const fn gateways(
        &mut self,
        direction: Direction,
    ) -> &mut BTreeMap<String, (BTreeSet<TunnelId>, Rate)> {
        &mut self.one_way(direction).gateways
    }

    const fn one_way(&mut self, direction: Direction) -> &mut OneWay {
        match direction {
            Direction::Out => &mut self.out,
            Direction::In => &mut self.inward,
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The transaction that makes the table what it shall be, whatever it was.
    fn changes(&self) -> Vec<Change> {
        // Making it first lets it be removed where it was not.
        let mut out = vec![Change::Table(Keeping::Shared), Change::RemoveTable];
        if self.is_empty() {
            return out;
        }
        out.push(Change::Table(Keeping::Shared));
        let hooks = [Hook::Postrouting, Hook::Prerouting];
        for ((direction, levels), hook) in self.by_payload().into_iter().zip(hooks) {
            if *levels != OneWay::default() {
                let name = sealed_or_opened(direction);
                out.push(Change::Chain(Chain { name, kind: ChainKind::Filter, hook, priority: -150 }));
                levels.put(direction, &mut out);
            }
        }
        // Before conntrack, which has nothing to say of ESP, and before addresses are translated.
        let hooks = [(Hook::Postrouting, -150), (Hook::Prerouting, -310)];
        for ((direction, levels, chain), (hook, priority)) in self.by_wire().into_iter().zip(hooks) {
            if !levels.is_empty() {
                out.push(Change::Chain(Chain { name: chain, kind: ChainKind::Filter, hook, priority }));
            }
            for (n, (addresses, rate)) in levels.values().enumerate() {
                let limit = format!("{chain}-{n}");
                out.extend(kept(&limit, *rate));
                let esp = addresses.iter().flat_map(|address| outer_esp(*address, direction, &limit));
                out.extend(esp.map(|exprs| Change::Rule { chain, exprs }));
            }
        }
        out
    }

    const fn by_payload(&self) -> [(Direction, &OneWay); 2] {
        [(Direction::Out, &self.out), (Direction::In, &self.inward)]
    }

    const fn by_wire(&self) -> [(Direction, &ByAddress, &'static str); 2] {
        [(Direction::Out, &self.departures, DEPARTURES), (Direction::In, &self.arrivals, ARRIVALS)]
    }

    /// The counters of the table, which have the names of limits, with whose they are.
    fn counters(&self) -> BTreeMap<String, Keeper> {
        let named = |chain: &'static str, direction| {
            move |(n, name): (usize, &String)| {
                (format!("{chain}-{n}"), Keeper::Gateway(name.clone(), direction))
            }
        };
        let payload = self.by_payload().into_iter().flat_map(|(direction, levels)| {
            levels.gateways.keys().enumerate().map(named(sealed_or_opened(direction), direction))
        });
        let wire = self
            .by_wire()
            .into_iter()
            .flat_map(|(direction, levels, chain)| levels.keys().enumerate().map(named(chain, direction)));
        payload.chain(wire).collect()
    }

    /// Whose levels there are.
    fn keepers(&self) -> BTreeSet<Keeper> {
        let tunnels = self.by_payload().into_iter().flat_map(|(direction, levels)| {
            levels.tunnels.keys().map(move |id| Keeper::Tunnel(*id, direction))
        });
        tunnels.chain(self.counters().into_values()).collect()
    }
}

/// The chain in which packets are seen that SAs take in, or have let out.
const fn sealed_or_opened(direction: Direction) -> &'static str {
    match direction {
        Direction::Out => "sealed",
        Direction::In => "opened",
    }
}

/// The chain of packets that exceed a tunnel's level, and the set that has their counts.
const fn refused(direction: Direction) -> &'static str {
    match direction {
        Direction::Out => REFUSED_OUT,
        Direction::In => REFUSED_IN,
    }
}

impl OneWay {
    fn put(&self, direction: Direction, out: &mut Vec<Change>) {
        let Some(at) = Register::new(0) else { return };
        let chain = sealed_or_opened(direction);
        let way = match direction {
            Direction::Out => Way::Out,
            Direction::In => Way::In,
        };
        let tunnel_of_packet =
            || [Expr::Reqid(way, at), Expr::Mask(at, tunnel_mask().to_ne_bytes().to_vec())];
        if !self.tunnels.is_empty() {
            let set = format!("{chain}-tunnels");
            out.push(Change::LimitedSet { name: set.clone(), key_len: KEY, key_type: TYPE_INTEGER });
            let keys: Vec<(Vec<u8>, Excess)> = self
                .tunnels
                .iter()
                .filter_map(|(id, rate)| Some((tunnel_key(*id)?, (*rate).into())))
                .collect();
            let chunks = keys.chunks(LIMITED_PER_MESSAGE);
            out.extend(chunks.map(|keys| Change::LimitedKeys { set: set.clone(), keys: keys.to_vec() }));
            let refuse = refused(direction);
            out.push(Change::TallySet {
                name: refuse.to_owned(),
                key_len: KEY,
                key_type: TYPE_INTEGER,
                // Keys that are forgotten take room for a while.
                room: u32::try_from(self.tunnels.len() * 2 + 8).unwrap_or(u32::MAX),
                idle: IDLE,
            });
            out.push(Change::Branch(refuse));
            let exprs = tunnel_of_packet()
                .into_iter()
                .chain([Expr::InSet(set, at), Expr::Verdict(Verdict::Goto(refuse))]);
            out.push(Change::Rule { chain, exprs: exprs.collect() });
            let exprs = tunnel_of_packet().into_iter().chain([Expr::Tally(refuse.to_owned(), at)]);
            out.push(Change::Rule { chain: refuse, exprs: exprs.collect() });
            // Whether or not there was room to count it.
            out.push(Change::Rule { chain: refuse, exprs: vec![Expr::Verdict(Verdict::Drop)] });
        }
        for (n, (tunnels, rate)) in self.gateways.values().enumerate() {
            let (set, limit) = (format!("{chain}-gateway-{n}"), format!("{chain}-{n}"));
            out.push(Change::Set { name: set.clone(), key_len: KEY, key_type: TYPE_INTEGER });
            let keys: Vec<Vec<u8>> = tunnels.iter().filter_map(|id| tunnel_key(*id)).collect();
            let chunks = keys.chunks(keys_per_message(KEY as usize));
            out.extend(chunks.map(|keys| Change::Keys { set: set.clone(), keys: keys.to_vec() }));
            out.extend(kept(&limit, *rate));
            let exprs = tunnel_of_packet().into_iter().chain([Expr::InSet(set, at)]).chain(keep(&limit));
            out.push(Change::Rule { chain, exprs: exprs.collect() });
        }
    }
}

/// The counter of what comes to a gateway's level, whether it is dropped or not.
fn offered(limit: &str) -> String {
    format!("{limit}-offered")
}

/// A gateway's level and its counters.
fn kept(limit: &str, rate: Rate) -> [Change; 3] {
    [
        Change::Limit(limit.to_owned(), rate.into()),
        Change::Counter(limit.to_owned(), Counted::default()),
        Change::Counter(offered(limit), Counted::default()),
    ]
}

/// The end of a rule of packets that a gateway's level is about.
fn keep(limit: &str) -> [Expr; 4] {
    [
        Expr::Count(offered(limit)),
        Expr::Exceeds(limit.to_owned()),
        Expr::Count(limit.to_owned()),
        Expr::Verdict(Verdict::Drop),
    ]
}

/// The bits of a reqid that say which tunnel it is of.
pub(super) const fn tunnel_mask() -> u32 {
    !(ChildId::LIMIT as u32 - 1)
}

/// How the kernel loads the reqids of a tunnel, without the bits of the child; `None` for tunnels that have none.
pub(super) fn tunnel_key(tunnel: TunnelId) -> Option<Vec<u8>> {
    let reqid = Reqid::of(ChildId { tunnel, index: 0 })?;
    Some((reqid.0 & tunnel_mask()).to_ne_bytes().to_vec())
}

/// Rules for ESP that comes to an address or leaves from it, bare and in UDP. IKE does not count, nor do keepalives.
fn outer_esp(address: IpAddr, direction: Direction, limit: &str) -> Vec<Vec<Expr>> {
    let Some(at) = Register::new(0) else { return Vec::new() };
    let (family, octets) = match address {
        IpAddr::V4(a) => (Ip::V4, a.octets().to_vec()),
        IpAddr::V6(a) => (Ip::V6, a.octets().to_vec()),
    };
    // Where the header has the destination, or the source, and the port at that end.
    let (offset, port) = match (direction, address) {
        (Direction::In, IpAddr::V4(_)) => (16, 2),
        (Direction::Out, IpAddr::V4(_)) => (12, 0),
        (Direction::In, IpAddr::V6(_)) => (24, 2),
        (Direction::Out, IpAddr::V6(_)) => (8, 0),
    };
    let len = octets.len() as u32;
    let transport = |offset, len| Expr::Payload { base: Base::Transport, offset, len, to: at };
    let begin = |protocol| {
        vec![
            // NFPROTO_IPV4 or NFPROTO_IPV6.
            Expr::Meta(Meta::Family, at),
            Expr::Equals(at, vec![family.number()]),
            Expr::Payload { base: Base::Network, offset, len, to: at },
            Expr::Equals(at, octets.clone()),
            Expr::Meta(Meta::Protocol, at),
            Expr::Equals(at, vec![protocol]),
        ]
    };
    let bare = begin(ESP).into_iter().chain(keep(limit)).collect();
    let in_udp = [
        transport(port, 2),
        Expr::Equals(at, NATT.to_vec()),
        // The non-ESP marker (RFC 3948 §2.2); shorter datagrams end the rule.
        transport(8, 4),
        Expr::Differs(at, vec![0; 4]),
    ];
    let in_udp = begin(UDP).into_iter().chain(in_udp).chain(keep(limit)).collect();
    vec![bare, in_udp]
}

/// Holds the table.
#[derive(Default, Debug)]
pub struct Table {
    nft: Option<Nft>,
    wanted: Wanted,
    /// Rules that stand there since the last transaction; `None`: nothing was said yet, or it was refused.
    rules: Option<usize>,
    /// Packets that were dropped, by whose level.
    dropped: Total,
    /// Octets that levels of gateways let pass.
    passed: Total,
}

type ByKeeper = BTreeMap<Keeper, u64>;

/// What was counted by one table after the other, by whose level.
#[derive(Default, Debug)]
struct Total {
    all: ByKeeper,
    /// The part of the table in force.
    last: ByKeeper,
}

impl Total {
    /// Takes what the table in force has counted; `grown` says by how much a count is more than it was.
    fn read(&mut self, now: ByKeeper, grown: impl Fn(u64, u64) -> u64) {
        for (keeper, count) in &now {
            let seen = self.last.get(keeper).copied().unwrap_or(0);
            let all = self.all.entry(keeper.clone()).or_default();
            *all = all.saturating_add(grown(*count, seen));
        }
        self.last = now;
    }

    fn told(&self) -> Vec<(Keeper, u64)> {
        self.all.iter().map(|(keeper, count)| (keeper.clone(), *count)).collect()
    }
}

impl Table {
    /// Makes these the only levels.
    ///
    /// # Errors
    /// A sentence; the levels before stay in force then.
    pub fn put(&mut self, wanted: Wanted) -> Result<(), String> {
        if self.rules.is_some() && self.wanted == wanted {
            return Ok(());
        }
        // What was not wanted any more was asked for since.
        let wanted_until_now = self.wanted.keepers();
        for total in [&mut self.dropped, &mut self.passed] {
            total.all.retain(|keeper, _| wanted_until_now.contains(keeper));
        }
        self.drops();
        self.wanted = wanted;
        self.make()
    }

    /// Puts the table back if others have changed or removed it; says whether they had.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn mend(&mut self) -> Result<bool, String> {
        if self.wanted.is_empty() {
            return Ok(false);
        }
        let found = self.nft.as_mut().and_then(|nft| nft.rules().ok());
        if found.is_some() && found == self.rules {
            return Ok(false);
        }
        self.drops();
        self.make().map(|()| true)
    }

    /// Removes the table, also that of an earlier daemon.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn remove(&mut self) -> Result<(), String> {
        self.wanted = Wanted::default();
        self.make()
    }

    /// Packets that levels dropped, by whose they are. A count goes on while its level changes, and goes with the change after the
    /// one that took the level away.
    pub fn drops(&mut self) -> Vec<(Keeper, u64)> {
        if let Ok((dropped, passed)) = self.counted() {
            self.dropped.read(dropped, |count, seen| count.checked_sub(seen).unwrap_or(count));
            // The difference of two counters that are read one after the other: it may seem to go back by a packet.
            self.passed.read(passed, u64::saturating_sub);
        }
        self.dropped.told()
    }

    /// Octets that levels of gateways let pass, as of the last [`Self::drops`], by whose they are; as long as those counts.
    pub fn passed(&self) -> Vec<(Keeper, u64)> {
        self.passed.told()
    }

    /// What the table in force has counted: packets that were dropped, octets that passed.
    fn counted(&mut self) -> Result<(ByKeeper, ByKeeper), NetlinkError> {
        let mut passed = ByKeeper::new();
        let (Some(_), Some(nft)) = (self.rules, &mut self.nft) else { return Ok((ByKeeper::new(), passed)) };
        let mut out: ByKeeper = self.wanted.keepers().into_iter().map(|keeper| (keeper, 0)).collect();
        let of = self.wanted.counters();
        if !of.is_empty() {
            let counters: BTreeMap<String, Counted> = nft.counters()?.into_iter().collect();
            for (name, keeper) in of {
                let Some((dropped, all)) = counters.get(&name).zip(counters.get(&offered(&name))) else {
                    continue;
                };
                out.insert(keeper.clone(), dropped.packets);
                passed.insert(keeper, all.bytes.saturating_sub(dropped.bytes));
            }
        }
        for (direction, levels) in self.wanted.by_payload() {
            if levels.tunnels.is_empty() {
                continue;
            }
            let keys: BTreeMap<Vec<u8>, TunnelId> =
                levels.tunnels.keys().filter_map(|id| Some((tunnel_key(*id)?, *id))).collect();
            let tallies = nft.tallies(refused(direction))?.into_iter();
            let of = |key: &[u8]| keys.get(key).map(|id| Keeper::Tunnel(*id, direction));
            out.extend(tallies.filter_map(|(key, counted)| Some((of(&key)?, counted.packets))));
        }
        Ok((out, passed))
    }

    fn make(&mut self) -> Result<(), String> {
        self.rules = None;
        // What it counts begins anew.
        self.dropped.last.clear();
        self.passed.last.clear();
        let failed = |e: &dyn std::fmt::Display| format!("bandwidth levels are not in force: nf_tables: {e}");
        let nft = match self.nft.take().map_or_else(|| Nft::open(TABLE), Ok) {
            Ok(nft) => self.nft.insert(nft),
            Err(_) if self.wanted.is_empty() => return Ok(()),
            Err(e) => return Err(failed(&e)),
        };
        // A kernel without nf_tables has nothing to remove.
        if self.wanted.is_empty() && !nft.is_there().unwrap_or(false) {
            self.rules = Some(0);
            return Ok(());
        }
        let changes = self.wanted.changes();
        nft.commit(&changes).map_err(|e| failed(&e))?;
        self.rules = Some(changes.iter().filter(|c| matches!(c, Change::Rule { .. })).count());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        let mut wanted = Wanted::default();
        for n in 0..100 {
            wanted.tunnels(Direction::Out).insert(TunnelId(n), Rate { bps: 8_000_000 });
        }
        wanted
            .gateways(Direction::In)
            .insert("g".into(), ([TunnelId(1), TunnelId(2)].into(), Rate { bps: 80_000 }));
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap());
        wanted.arrivals.insert("g".into(), (addresses.into(), Rate { bps: 10_000_000_000_000 }));
        wanted.departures.insert("g".into(), (["192.0.2.1".parse().unwrap()].into(), Rate { bps: 1_000 }));
        wanted
    }

    #[test]
    fn every_step_fits_a_message_and_children_of_a_tunnel_share_its_key() {
        let changes = wanted().changes();
        changes.iter().for_each(|change| drop(change.request(TABLE)));
        let rules = changes.iter().filter(|c| matches!(c, Change::Rule { .. })).count();
        assert_eq!(rules, 3 + 1 + 4 + 2, "tunnels, a gateway, an address of each family bare and in UDP");
        for (tunnel, index) in [(1, 0), (1, 7), (1, 2047)] {
            let reqid = Reqid::of(ChildId { tunnel: TunnelId(tunnel), index }).unwrap();
            assert_eq!((reqid.0 & tunnel_mask()).to_ne_bytes().to_vec(), tunnel_key(TunnelId(1)).unwrap());
        }
        assert_ne!(tunnel_key(TunnelId(1)), tunnel_key(TunnelId(2)));
    }

    #[test]
    fn nothing_wanted_is_no_table() {
        assert_eq!(Wanted::default().changes(), [Change::Table(Keeping::Shared), Change::RemoveTable]);
    }
}
