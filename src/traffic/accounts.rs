//! Counts by inner address in bounded room: exact for whoever carries much.
//!
//! When the room is full, the lighter half goes: its counts are added to those of all others, and the heaviest of them is
//! the *floor*. Whoever comes after that may have been counted before, but not more than the floor says. This is lossy
//! counting (Manku and Motwani, 2002) with room instead of epochs: an addition costs a constant amount on average, and
//! whoever carries more than about the fourth part of room of all octets is never missed. While the room has never been
//! full, everything is exact.

use std::collections::{BTreeMap, HashMap};

use super::{Carried, GatewayNo, Inner};

/// What is known of one address.
#[derive(Clone, Copy, Default, Debug)]
struct Account {
    carried: Carried,
    /// What it may have carried before it got its place, at most.
    before: u64,
}

impl Account {
    const fn weight(&self) -> u64 {
        self.carried.weight().saturating_add(self.before)
    }
}

/// Counts of so many addresses at most.
#[derive(Debug)]
pub struct Accounts {
    room: usize,
    open: HashMap<Inner, Account>,
    floor: u64,
    /// What addresses carried that lost their place, by gateway.
    others: BTreeMap<GatewayNo, Carried>,
}

/// What was counted in some time.
#[derive(Default, Debug)]
pub struct Counted {
    /// By address; each of them carried at least this, and [`Self::missed`] more at most.
    pub by_address: Vec<(Inner, Carried)>,
    /// Of all others, by gateway.
    pub others: BTreeMap<GatewayNo, Carried>,
    /// What any one address carried at most that does not stand under it; 0: everything is exact.
    pub missed: u64,
}

impl Accounts {
    /// Room for so many addresses, at least two.
    pub fn new(room: usize) -> Self {
        Self { room: room.max(2), open: HashMap::new(), floor: 0, others: BTreeMap::new() }
    }

    /// Adds to what an address carried.
    pub fn add(&mut self, who: Inner, more: Carried) {
        if let Some(account) = self.open.get_mut(&who) {
            account.carried += more;
            return;
        }
        if self.open.len() >= self.room {
            self.make_room();
        }
        self.open.insert(who, Account { carried: more, before: self.floor });
    }

    /// Adds to what nobody in particular carried.
    pub fn add_others(&mut self, gateway: GatewayNo, more: Carried) {
        *self.others.entry(gateway).or_default() += more;
    }

    /// What an address carried.
    pub fn of(&self, who: &Inner) -> Option<Carried> {
        self.open.get(who).map(|account| account.carried)
    }

    /// All addresses that have a place.
    pub fn all(&self) -> impl Iterator<Item = (Inner, Carried)> + '_ {
        self.open.iter().map(|(who, account)| (*who, account.carried))
    }

    /// How many addresses have a place.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.others.is_empty()
    }

    /// Takes everything out and begins anew.
    pub fn take(&mut self) -> Counted {
        Counted {
            by_address: self.open.drain().map(|(who, account)| (who, account.carried)).collect(),
            others: std::mem::take(&mut self.others),
            missed: std::mem::take(&mut self.floor),
        }
    }

    /// Forgets the gateways that `keep` does not know.
    pub fn retain_gateways(&mut self, keep: impl Fn(GatewayNo) -> bool) {
        self.open.retain(|who, _| keep(who.gateway));
        self.others.retain(|gateway, _| keep(*gateway));
    }

    fn make_room(&mut self) {
        let mut weights: Vec<u64> = self.open.values().map(Account::weight).collect();
        let middle = weights.len() / 2;
        let (_, median, _) = weights.select_nth_unstable(middle);
        let median = *median;
        let others = &mut self.others;
        self.open.retain(|who, account| {
            let stays = account.weight() > median;
            if !stays {
                *others.entry(who.gateway).or_default() += account.carried;
            }
            stays
        });
        self.floor = self.floor.max(median);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn who(n: u32) -> Inner {
        Inner { gateway: GatewayNo(0), ip: IpAddr::from(Ipv4Addr::from(0x0A00_0000 + n)) }
    }

    fn sent(bytes: u64) -> Carried {
        Carried { bytes_out: bytes, packets_out: 1, ..Carried::default() }
    }

    /// A host that downloads while somebody scans a whole /8 through the tunnel, every sixteenth address of it.
    #[test]
    fn a_scan_takes_no_room_from_those_who_carry_much() {
        let mut accounts = Accounts::new(4096);
        let mut most = 0;
        for n in 0..1 << 20 {
            accounts.add(who(16 * n), sent(60));
            if n % 64 == 0 {
                accounts.add(who(1 << 25), sent(1_400));
            }
            most = most.max(accounts.open.capacity());
        }
        // A hash map keeps a seventh free, and doubles.
        assert!(most <= 4 * 4096, "room for {most}");
        assert_eq!(accounts.of(&who(1 << 25)).unwrap().bytes_out, (1 << 14) * 1_400, "to the octet");
        let counted = accounts.take();
        let all = counted.by_address.iter().map(|(_, c)| c.bytes()).sum::<u64>();
        let others = counted.others[&GatewayNo(0)].bytes();
        assert_eq!(all + others, (60 << 20) + (1 << 14) * 1_400, "nothing is lost in all");
    }

    #[test]
    fn what_fits_is_exact() {
        let mut accounts = Accounts::new(8);
        for n in 0..80 {
            accounts.add(who(n % 8), sent(u64::from(n)));
        }
        let counted = accounts.take();
        assert_eq!((counted.by_address.len(), counted.missed, counted.others.len()), (8, 0, 0));
        assert!(accounts.is_empty());
    }

    proptest! {
        /// Whoever has a place carried what stands there, or so much more as could be missed; whoever has none carried no
        /// more than that; and what could be missed stays in proportion.
        #[test]
        fn nobody_is_off_by_more_than_is_said(
            packets in prop::collection::vec((0u32..60, 40u64..1_500), 1..800),
            room in 2usize..20,
        ) {
            let mut accounts = Accounts::new(room);
            let mut truth: BTreeMap<u32, u64> = BTreeMap::new();
            for (n, bytes) in &packets {
                accounts.add(who(*n), sent(*bytes));
                *truth.entry(*n).or_default() += bytes;
                prop_assert!(accounts.len() <= room);
            }
            let total: u64 = truth.values().sum();
            let missed = accounts.floor;
            for (n, carried) in truth {
                let seen = accounts.of(&who(n)).map_or(0, |c| c.bytes_out);
                prop_assert!(seen <= carried && carried <= seen + missed, "{n}: {seen} of {carried}, missed {missed}");
            }
            prop_assert!(missed <= 4 * total / room as u64 + 1_500, "{missed} of {total} in {room}");
        }
    }
}
