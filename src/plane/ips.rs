//! Counts and limits of single inner addresses behind the kernel's ESP: a table of nf_tables that knows a packet's gateway by
//! the reqid of its SA, and its host by the address inside.
//!
//! ```text
//!  map gateways      tunnel (bits of the reqid)  -> gateway
//!  chain limit-out   postrouting   in blocked, or above limited-out  -> refuse-out: count in dropped-out, drop
//!  chain count-out   postrouting, behind the bandwidth levels        -> count in carried-out, else of all others
//!  …-in              prerouting    the same of what came out of an SA
//! ```
//! Each set is there for both families. A limit is changed in place; everything else makes the table anew, in one transaction,
//! so that no packet passes unlimited. Counts of addresses that were idle for a while go, so that a scan ends.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cygnet_model::TunnelId;
use cygnet_model::tunnel::Direction;
use cygnet_xfrm::nft::expr::{Base, Ip, Meta, Register, Verdict, Way};
use cygnet_xfrm::nft::object::{ENTRIES_PER_MESSAGE, LIMITED_PER_MESSAGE};
use cygnet_xfrm::nft::{Chain, ChainKind, Change, Excess, Expr, Hook, Keeping, Nft, keys_per_message};

use super::levels::{tunnel_key, tunnel_mask};
use crate::traffic::accounts::Counted;
use crate::traffic::rules::{Cap, Rules};
use crate::traffic::{Carried, GatewayNo, Inner};

/// The table's name.
const TABLE: &str = "cygnet-ips";
const GATEWAYS: &str = "gateways";
/// Addresses that are counted apart, of each family and direction.
const ROOM: u32 = 16_384;
/// From so many on, room is made.
const CROWDED: usize = ROOM as usize / 4 * 3;
/// After so long without packets an address is not counted apart any more. Many times the interval of sampling.
const IDLE: Duration = Duration::from_secs(120);
/// `nft`'s numbers of data types. Numbers are shown as marks: its integers have no size of their own, and it cannot list
/// compound keys with them.
const TYPE_MARK: u32 = 19;
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_BITS: u32 = 6;
/// Where the key of a packet begins: the gateway, and from the next register on the address.
const KEY: u8 = 1;

/// The sets of one direction and one family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Part {
    direction: Direction,
    ip: Ip,
}

const PARTS: [Part; 4] = [
    Part { direction: Direction::Out, ip: Ip::V4 },
    Part { direction: Direction::Out, ip: Ip::V6 },
    Part { direction: Direction::In, ip: Ip::V4 },
    Part { direction: Direction::In, ip: Ip::V6 },
];

impl Part {
    const fn limit_chain(self) -> &'static str {
        match self.direction {
            Direction::Out => "limit-out",
            Direction::In => "limit-in",
        }
    }

    const fn count_chain(self) -> &'static str {
        match self.direction {
            Direction::Out => "count-out",
            Direction::In => "count-in",
        }
    }

    const fn refuse_chain(self) -> &'static str {
        match (self.direction, self.ip) {
            (Direction::Out, Ip::V4) => "refuse-out-v4",
            (Direction::Out, Ip::V6) => "refuse-out-v6",
            (Direction::In, Ip::V4) => "refuse-in-v4",
            (Direction::In, Ip::V6) => "refuse-in-v6",
        }
    }

    fn set(self, kind: &str) -> String {
        let direction = match self.direction {
            Direction::Out => "out",
            Direction::In => "in",
        };
        format!("{kind}-{direction}-{}", self.family())
    }

    const fn family(self) -> &'static str {
        match self.ip {
            Ip::V4 => "v4",
            Ip::V6 => "v6",
        }
    }

    fn blocked(self) -> String {
        self.set("blocked")
    }

    fn limited(self) -> String {
        self.set("limited")
    }

    fn carried(self) -> String {
        self.set("carried")
    }

    fn others(self) -> String {
        self.set("others")
    }

    fn dropped(self) -> String {
        self.set("dropped")
    }

    const fn key_len(self) -> u32 {
        match self.ip {
            Ip::V4 => 4 + 4,
            Ip::V6 => 4 + 16,
        }
    }

    const fn key_type(self) -> u32 {
        let address = match self.ip {
            Ip::V4 => TYPE_IPV4,
            Ip::V6 => TYPE_IPV6,
        };
        TYPE_MARK << TYPE_BITS | address
    }

    const fn has(self, ip: IpAddr) -> bool {
        matches!((self.ip, ip), (Ip::V4, IpAddr::V4(_)) | (Ip::V6, IpAddr::V6(_)))
    }

    const fn carried_by(self, packets: u64, bytes: u64) -> Carried {
        match self.direction {
            Direction::Out => {
                Carried { bytes_in: 0, packets_in: 0, bytes_out: bytes, packets_out: packets, dropped: 0 }
            }
            Direction::In => {
                Carried { bytes_in: bytes, packets_in: packets, bytes_out: 0, packets_out: 0, dropped: 0 }
            }
        }
    }

    /// Loads a packet's gateway and, if asked, its inner address of ours behind it; ends the rule for packets of another
    /// family and for those of no tunnel.
    fn load(self, with_address: bool) -> Option<Vec<Expr>> {
        let (first, key, address) = (Register::new(0)?, Register::new(KEY)?, Register::new(KEY + 1)?);
        let way = match self.direction {
            Direction::Out => Way::Out,
            Direction::In => Way::In,
        };
        // Ours is the source of what is sent and the destination of what comes.
        let (offset, len) = match (self.direction, self.ip) {
            (Direction::Out, Ip::V4) => (12, 4),
            (Direction::In, Ip::V4) => (16, 4),
            (Direction::Out, Ip::V6) => (8, 16),
            (Direction::In, Ip::V6) => (24, 16),
        };
        let mut exprs = vec![
            Expr::Meta(Meta::Family, first),
            Expr::Equals(first, vec![self.ip.number()]),
            Expr::Reqid(way, first),
            Expr::Mask(first, tunnel_mask().to_ne_bytes().to_vec()),
            Expr::Look { map: GATEWAYS.to_owned(), key: first, to: key },
        ];
        if with_address {
            exprs.push(Expr::Payload { base: Base::Network, offset, len, to: address });
        }
        Some(exprs)
    }

    /// The sets, and the chain of those that are refused.
    fn make(self, out: &mut Vec<Change>) {
        let (key_len, key_type) = (self.key_len(), self.key_type());
        out.push(Change::Set { name: self.blocked(), key_len, key_type });
        out.push(Change::LimitedSet { name: self.limited(), key_len, key_type });
        for name in [self.carried(), self.dropped()] {
            out.push(Change::TallySet { name, key_len, key_type, room: ROOM, idle: IDLE });
        }
        // One key for each gateway, so that this one is never full.
        let name = self.others();
        out.push(Change::TallySet { name, key_len: 4, key_type: TYPE_MARK, room: ROOM, idle: IDLE });
        out.push(Change::Branch(self.refuse_chain()));
    }

    fn rules(self, out: &mut Vec<Change>) -> Option<()> {
        let key = Register::new(KEY)?;
        let refuse = || Expr::Verdict(Verdict::Goto(self.refuse_chain()));
        let mut rule = |chain, with_address, end: Vec<Expr>| {
            let exprs = self.load(with_address)?.into_iter().chain(end).collect();
            out.push(Change::Rule { chain, exprs });
            Some(())
        };
        rule(self.limit_chain(), true, vec![Expr::InSet(self.blocked(), key), refuse()])?;
        rule(self.limit_chain(), true, vec![Expr::InSet(self.limited(), key), refuse()])?;
        rule(self.refuse_chain(), true, vec![Expr::Tally(self.dropped(), key)])?;
        let accept = Expr::Verdict(Verdict::Accept);
        rule(self.count_chain(), true, vec![Expr::Tally(self.carried(), key), accept])?;
        rule(self.count_chain(), false, vec![Expr::Tally(self.others(), key)])?;
        // Whether or not there was room to count it.
        let exprs = vec![Expr::Verdict(Verdict::Drop)];
        out.push(Change::Rule { chain: self.refuse_chain(), exprs });
        Some(())
    }

    /// Steps that put caps into the sets.
    fn cap(self, caps: &[(Inner, Cap)], out: &mut Vec<Change>) {
        let mine = || caps.iter().filter(|(who, _)| self.has(who.ip));
        let blocked: Vec<Vec<u8>> =
            mine().filter(|(_, cap)| *cap == Cap::Block).map(|(who, _)| key(who)).collect();
        let chunks = blocked.chunks(keys_per_message(self.key_len() as usize));
        out.extend(chunks.map(|keys| Change::Keys { set: self.blocked(), keys: keys.to_vec() }));
        let rate = |(who, cap): &(Inner, Cap)| match cap {
            Cap::Rate(bps) => Some((key(who), Excess { octets_per_second: bps / 8 })),
            Cap::Block => None,
        };
        let limited: Vec<(Vec<u8>, Excess)> = mine().filter_map(rate).collect();
        let chunks = limited.chunks(LIMITED_PER_MESSAGE);
        out.extend(chunks.map(|keys| Change::LimitedKeys { set: self.limited(), keys: keys.to_vec() }));
    }

    /// Steps that take caps out of the sets.
    fn free(self, caps: &[(Inner, Cap)], out: &mut Vec<Change>) {
        for (set, is_block) in [(self.blocked(), true), (self.limited(), false)] {
            let keys: Vec<Vec<u8>> = caps
                .iter()
                .filter(|(who, cap)| self.has(who.ip) && (*cap == Cap::Block) == is_block)
                .map(|(who, _)| key(who))
                .collect();
            let chunks = keys.chunks(keys_per_message(self.key_len() as usize));
            out.extend(chunks.map(|keys| Change::RemoveKeys { set: set.clone(), keys: keys.to_vec() }));
        }
    }
}

/// A gateway and an address as the kernel has them in its registers.
fn key(who: &Inner) -> Vec<u8> {
    let gateway = who.gateway.0.to_ne_bytes();
    match who.ip {
        IpAddr::V4(ip) => [&gateway[..], &ip.octets()].concat(),
        IpAddr::V6(ip) => [&gateway[..], &ip.octets()].concat(),
    }
}

fn read_key(key: &[u8]) -> Option<Inner> {
    let (gateway, address) = key.split_first_chunk::<4>()?;
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(address) {
        Ipv4Addr::from(v4).into()
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into()
    };
    Some(Inner { gateway: GatewayNo(u32::from_ne_bytes(*gateway)), ip })
}

/// The transaction that makes the table what it shall be, whatever it was.
fn all(rules: &Rules) -> Vec<Change> {
    // Making it first lets it be removed where it was not.
    let mut out = vec![Change::Table(Keeping::Shared), Change::RemoveTable];
    if rules.gateways().is_empty() {
        return out;
    }
    out.push(Change::Table(Keeping::Shared));
    // Limits in front of the bandwidth levels, counts behind them.
    for (name, hook, priority) in [
        ("limit-out", Hook::Postrouting, -151),
        ("count-out", Hook::Postrouting, -149),
        ("limit-in", Hook::Prerouting, -151),
        ("count-in", Hook::Prerouting, -149),
    ] {
        out.push(Change::Chain(Chain { name, kind: ChainKind::Filter, hook, priority }));
    }
    out.push(Change::Map { name: GATEWAYS.to_owned(), key_len: 4, key_type: TYPE_MARK });
    let entry = |(tunnel, no): (&TunnelId, &GatewayNo)| Some((tunnel_key(*tunnel)?, no.0.to_ne_bytes()));
    let gateways: Vec<(Vec<u8>, [u8; 4])> = rules.gateways().iter().filter_map(entry).collect();
    for entries in gateways.chunks(ENTRIES_PER_MESSAGE) {
        out.push(Change::Entries { map: GATEWAYS.to_owned(), entries: entries.to_vec() });
    }
    let caps: Vec<(Inner, Cap)> = rules.caps().collect();
    for part in PARTS {
        part.make(&mut out);
        part.cap(&caps, &mut out);
        // Registers that there are not would leave packets unlimited; there are sixteen.
        part.rules(&mut out);
    }
    out
}

/// The steps between two sets of caps.
fn between(old: &Rules, new: &Rules) -> Vec<Change> {
    let changes = new.caps_since(old);
    let freed: Vec<(Inner, Cap)> = changes.iter().filter_map(|c| Some((c.who, c.old?))).collect();
    let capped: Vec<(Inner, Cap)> = changes.iter().filter_map(|c| Some((c.who, c.new?))).collect();
    let mut out = Vec::new();
    for part in PARTS {
        part.free(&freed, &mut out);
        part.cap(&capped, &mut out);
    }
    out
}

/// Counters of one set as they were read last.
type LastRead = HashMap<Vec<u8>, cygnet_xfrm::nft::Counted>;

/// Holds the table.
#[derive(Default, Debug)]
pub struct Table {
    nft: Option<Nft>,
    wanted: Rules,
    /// Rules that stand there since the last transaction; `None`: nothing was said yet, or it was refused.
    rules: Option<usize>,
    /// Why nothing is in force.
    trouble: Option<String>,
    last: HashMap<String, LastRead>,
}

impl Table {
    /// What was put in force last.
    pub fn wanted(&self) -> Rules {
        self.wanted.clone()
    }

    /// Why limits are not in force and nothing is counted.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Puts rules in force. What [`Self::trouble`] says afterwards is how it went; the limits before stay in force then.
    pub fn put(&mut self, rules: Rules) {
        let old = std::mem::replace(&mut self.wanted, rules);
        let is_same_table = self.rules.is_some() && old.gateways() == self.wanted.gateways();
        let steps = if is_same_table { between(&old, &self.wanted) } else { Vec::new() };
        if is_same_table && steps.is_empty() {
            return;
        }
        let changed = is_same_table
            && self.nft.as_mut().is_some_and(|nft| {
                // Others may have changed the table: then it is made anew.
                nft.commit(&steps).is_ok()
            });
        if !changed {
            self.make();
        }
    }

    /// Puts the table back if others have changed or removed it; says whether they had.
    pub fn mend(&mut self) -> bool {
        if self.wanted.gateways().is_empty() {
            return false;
        }
        let found = self.nft.as_mut().and_then(|nft| nft.rules().ok());
        if found.is_some() && found == self.rules {
            return false;
        }
        let was_there = self.rules.is_some();
        self.make();
        was_there && self.rules.is_some()
    }

    /// Removes the table, also that of an earlier daemon.
    pub fn remove(&mut self) {
        self.wanted = Rules::default();
        self.make();
    }

    /// What was carried and dropped since the last call, one value for each direction and family.
    pub fn take(&mut self) -> Vec<Counted> {
        if self.rules.is_none() || self.wanted.gateways().is_empty() {
            return Vec::new();
        }
        PARTS.into_iter().map(|part| self.take_part(part)).collect()
    }

    fn take_part(&mut self, part: Part) -> Counted {
        let mut counted = Counted::default();
        let mut of = HashMap::<Inner, Carried>::new();
        let read = self.read(&part.carried());
        for (key, packets, bytes) in read.since {
            if let Some(who) = read_key(&key) {
                *of.entry(who).or_default() += part.carried_by(packets, bytes);
            }
        }
        for (key, packets, _) in self.read(&part.dropped()).since {
            if let Some(who) = read_key(&key) {
                *of.entry(who).or_default() += Carried { dropped: packets, ..Carried::default() };
            }
        }
        for (key, packets, bytes) in self.read(&part.others()).since {
            if let Ok(gateway) = <[u8; 4]>::try_from(&key[..]) {
                let carried = part.carried_by(packets, bytes);
                // Any one of them may have carried all of it.
                counted.missed = counted.missed.max(carried.bytes());
                counted.others.insert(GatewayNo(u32::from_ne_bytes(gateway)), carried);
            }
        }
        counted.by_address = of.into_iter().collect();
        if read.count >= CROWDED {
            self.empty(part.carried());
        }
        counted
    }

    /// What a set has counted since it was read last.
    fn read(&mut self, set: &str) -> Read {
        let Some(Ok(now)) = self.nft.as_mut().map(|nft| nft.tallies(set)) else { return Read::default() };
        let now: LastRead = now.into_iter().collect();
        let last = self.last.remove(set).unwrap_or_default();
        let since = now.iter().filter_map(|(key, now)| {
            // One that was gone meanwhile begins anew.
            let before = last.get(key).filter(|b| b.packets <= now.packets && b.bytes <= now.bytes);
            let before = before.copied().unwrap_or_default();
            let (packets, bytes) = (now.packets - before.packets, now.bytes - before.bytes);
            (packets > 0).then(|| (key.clone(), packets, bytes))
        });
        let read = Read { since: since.collect(), count: now.len() };
        self.last.insert(set.to_owned(), now);
        read
    }

    /// Makes room for whoever comes: those who carry much are back with their next packet.
    fn empty(&mut self, set: String) {
        self.last.remove(&set);
        if let Some(Err(e)) = self.nft.as_mut().map(|nft| nft.commit(&[Change::Empty(set)])) {
            tracing::debug!(error = %e, "no room for counts of more addresses");
        }
    }

    fn make(&mut self) {
        self.rules = None;
        self.last.clear();
        let before = self.trouble.take();
        self.trouble = self.try_make().err();
        if let Some(why) = self.trouble.as_ref().filter(|why| before.as_ref() != Some(*why)) {
            tracing::warn!("{why}");
        }
    }

    fn try_make(&mut self) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| {
            format!("inner addresses are neither counted nor limited: nf_tables: {e}")
        };
        let is_empty = self.wanted.gateways().is_empty();
        let nft = match self.nft.take().map_or_else(|| Nft::open(TABLE), Ok) {
            Ok(nft) => self.nft.insert(nft),
            Err(_) if is_empty => return Ok(()),
            Err(e) => return Err(failed(&e)),
        };
        // A kernel without nf_tables has nothing to remove.
        if is_empty && !nft.is_there().unwrap_or(false) {
            self.rules = Some(0);
            return Ok(());
        }
        let changes = all(&self.wanted);
        nft.commit(&changes).map_err(|e| failed(&e))?;
        self.rules = Some(changes.iter().filter(|c| matches!(c, Change::Rule { .. })).count());
        Ok(())
    }
}

/// What was read of a set.
#[derive(Default)]
struct Read {
    /// Keys with packets and octets that are new.
    since: Vec<(Vec<u8>, u64, u64)>,
    /// Keys that the set has.
    count: usize,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn rules() -> Rules {
        let mut rules = Rules::default();
        rules.follow_gateways((0..300).map(|n| (TunnelId(n), GatewayNo(n / 10))).collect());
        for n in 0..1_000u32 {
            let cap = if n % 3 == 0 { Cap::Block } else { Cap::Rate(u64::from(n) * 1_000) };
            let ip = if n % 2 == 0 {
                IpAddr::from(Ipv4Addr::from(0x0A00_0000 + n))
            } else {
                IpAddr::from(Ipv6Addr::from(0x2001_0DB8 << 96 | u128::from(n)))
            };
            rules.set(Inner { gateway: GatewayNo(n % 30), ip }, Some(cap));
        }
        rules
    }

    fn keys(changes: &[Change], removed: bool) -> BTreeMap<String, usize> {
        let mut sums = BTreeMap::new();
        for change in changes {
            let (set, count) = match change {
                Change::Keys { set, keys } if !removed => (set, keys.len()),
                Change::LimitedKeys { set, keys } if !removed => (set, keys.len()),
                Change::RemoveKeys { set, keys } if removed => (set, keys.len()),
                _ => continue,
            };
            *sums.entry(set.clone()).or_default() += count;
        }
        sums
    }

    #[test]
    fn every_step_fits_a_message_and_every_cap_is_in_one_set_of_each_direction() {
        let changes = all(&rules());
        changes.iter().for_each(|change| drop(change.request(TABLE)));
        let sums = keys(&changes, false);
        for direction in ["in", "out"] {
            let of = |kind: &str| {
                let families = ["v4", "v6"].iter();
                families.map(|family| sums[&format!("{kind}-{direction}-{family}")]).sum::<usize>()
            };
            assert_eq!((of("blocked"), of("limited")), (334, 666), "{direction}");
        }
        assert_eq!(changes.iter().filter(|c| matches!(c, Change::Rule { .. })).count(), 4 * 6);
    }

    #[test]
    fn what_is_refused_is_dropped_whether_or_not_it_can_be_counted() {
        let changes = all(&rules());
        for part in PARTS {
            let last = changes.iter().rev().find_map(|change| match change {
                Change::Rule { chain, exprs } if *chain == part.refuse_chain() => Some(exprs),
                _ => None,
            });
            assert_eq!(last, Some(&vec![Expr::Verdict(Verdict::Drop)]));
        }
    }

    #[test]
    fn one_limit_that_changes_touches_its_own_keys_only() {
        let old = rules();
        let who = |n: u32| Inner { gateway: GatewayNo(n % 30), ip: Ipv4Addr::from(0x0A00_0000 + n).into() };
        let mut new = old.clone();
        new.set(who(0), Some(Cap::Rate(1)));
        new.set(who(2), Some(Cap::Rate(5)));
        new.set(who(4), None);
        new.set(who(8), Some(Cap::Rate(8_000)));
        let changes = between(&old, &new);
        let counts = |sums: BTreeMap<String, usize>| {
            ["blocked-out-v4", "limited-out-v4", "blocked-in-v4", "limited-in-v4"]
                .map(|set| sums.get(set).copied().unwrap_or_default())
        };
        assert_eq!(counts(keys(&changes, true)), [1, 2, 1, 2], "the last one had that rate before");
        assert_eq!(counts(keys(&changes, false)), [0, 2, 0, 2]);
        assert_eq!(between(&new, &new.clone()), []);
    }

    #[test]
    fn keys_are_read_as_they_were_written() {
        for ip in ["10.1.2.3", "2001:db8::7"] {
            let who = Inner { gateway: GatewayNo(70_000), ip: ip.parse().unwrap() };
            assert_eq!(read_key(&key(&who)), Some(who));
        }
        assert_eq!((read_key(&[0; 7]), read_key(&[])), (None, None));
    }

    #[test]
    fn no_tunnels_are_no_table() {
        assert_eq!(all(&Rules::default()), [Change::Table(Keeping::Shared), Change::RemoveTable]);
    }
}
