//! A day of traffic by the minute, in bounded room, and the totals that follow from it.
//!
//! Each minute keeps its busiest addresses and the sum of all others. Whoever was among the busiest of any minute of the
//! last day has totals, which count on in every minute, busy or not; so a counter that was once shown never goes back while
//! it is shown. With a gateway whose network is scanned all day long it takes some ten megabytes; as a rule some hundred
//! kilobytes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use cygnet_model::Timestamp;

use super::accounts::{Accounts, Counted};
use super::{Carried, GatewayNo, Inner};

/// How many minutes are kept.
const DAY: usize = 24 * 60;
/// Addresses of a minute, shared by all gateways.
const OF_A_MINUTE: usize = 256;
/// Addresses that are kept apart within the minute that is not over.
const ROOM: usize = 16_384;
const MINUTE: Duration = Duration::from_secs(60);

/// What one address carried in a minute.
#[derive(Clone, Copy, Debug)]
struct Entry {
    who: Inner,
    bytes_in: u64,
    bytes_out: u64,
}

/// A minute that is over.
#[derive(Debug)]
struct Minute {
    number: u64,
    busiest: Box<[Entry]>,
}

/// What is known of an address beside the minute that is not over.
#[derive(Clone, Copy, Default, Debug)]
struct Known {
    total: Carried,
    /// In minutes in which it was among the busiest: how many, and what it carried.
    minutes: u32,
    day_in: u64,
    day_out: u64,
    /// The last minute that is over in which it carried anything, and what.
    last: u64,
    last_in: u64,
    last_out: u64,
}

/// What an address carried in all, in the last full minute and in a day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The address.
    pub who: Inner,
    /// Since it was first seen.
    pub total: Carried,
    /// Octets to and from it in the last full minute.
    pub minute: (u64, u64),
    /// In the last day and the minute that is not over.
    pub day: (u64, u64),
    /// In the minute that is not over.
    pub now: (u64, u64),
}

/// When an address was at its busiest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peak {
    /// The address.
    pub who: Inner,
    /// Octets to and from it in the time that was asked for.
    pub bytes: (u64, u64),
    /// Octets of both directions in its busiest minute.
    pub most: u64,
    /// When that minute began.
    pub at: Timestamp,
}

/// See the [module](self).
#[derive(Debug)]
pub struct History {
    /// The minute that is not over.
    number: u64,
    /// What addresses carried in it of which nothing else is known: they compete for room.
    current: Accounts,
    /// And those that are known, whose counters must not go back, however many others come.
    of_known: HashMap<Inner, Carried>,
    minutes: VecDeque<Minute>,
    known: HashMap<Inner, Known>,
    /// What the limits of each gateway dropped, in all.
    dropped: BTreeMap<GatewayNo, u64>,
    /// Of the minute that is not over: what any one address carried at most that is not under its name.
    missed: u64,
}

impl Default for History {
    fn default() -> Self {
        Self {
            number: 0,
            current: Accounts::new(ROOM),
            of_known: HashMap::new(),
            minutes: VecDeque::new(),
            known: HashMap::new(),
            dropped: BTreeMap::new(),
            missed: 0,
        }
    }
}

impl History {
    /// Adds what was carried since the last call. It counts for the minute in which it is told.
    pub fn note(&mut self, now: Timestamp, counted: Counted) {
        self.roll(now);
        self.missed = self.missed.saturating_add(counted.missed);
        for (who, carried) in counted.by_address {
            if self.known.contains_key(&who) {
                *self.of_known.entry(who).or_default() += carried;
            } else {
                self.current.add(who, carried);
            }
            self.drop_of(who.gateway, carried.dropped);
        }
        for (gateway, carried) in counted.others {
            self.current.add_others(gateway, carried);
            self.drop_of(gateway, carried.dropped);
        }
    }

    fn drop_of(&mut self, gateway: GatewayNo, packets: u64) {
        if packets > 0 {
            *self.dropped.entry(gateway).or_default() += packets;
        }
    }

    /// Packets that limits of single addresses dropped, by gateway.
    pub fn dropped(&self, gateway: GatewayNo) -> u64 {
        self.dropped.get(&gateway).copied().unwrap_or(0)
    }

    /// Ends minutes that are over.
    fn roll(&mut self, now: Timestamp) {
        let number = minute_of(now);
        if number <= self.number {
            return;
        }
        self.close();
        self.number = number;
        while let Some(oldest) = self.minutes.front()
            && oldest.number + DAY as u64 <= number
        {
            let oldest = self.minutes.pop_front();
            oldest.into_iter().for_each(|minute| self.forget(&minute.busiest));
        }
    }

    fn close(&mut self) {
        let mut all = self.current.take().by_address;
        all.extend(self.of_known.drain());
        self.missed = 0;
        let gateways = all.iter().map(|(who, _)| who.gateway);
        let gateways = gateways.collect::<std::collections::BTreeSet<_>>().len();
        // Each gateway has its part, so that a busy one does not hide the others.
        let part = (OF_A_MINUTE / gateways.max(1)).max(1);
        all.sort_unstable_by_key(|(who, carried)| (who.gateway, std::cmp::Reverse(carried.weight()), who.ip));
        let mut busiest = Vec::new();
        for of_gateway in all.chunk_by(|a, b| a.0.gateway == b.0.gateway) {
            for (n, (who, carried)) in of_gateway.iter().enumerate() {
                let known = match self.known.get_mut(who) {
                    Some(known) => known,
                    None if n < part => self.known.entry(*who).or_default(),
                    None => continue,
                };
                known.total += *carried;
                (known.last, known.last_in, known.last_out) =
                    (self.number, carried.bytes_in, carried.bytes_out);
                if n < part {
                    known.minutes += 1;
                    known.day_in = known.day_in.saturating_add(carried.bytes_in);
                    known.day_out = known.day_out.saturating_add(carried.bytes_out);
                    let (bytes_in, bytes_out) = (carried.bytes_in, carried.bytes_out);
                    busiest.push(Entry { who: *who, bytes_in, bytes_out });
                }
            }
        }
        // More gateways than that have no part each.
        if busiest.len() > OF_A_MINUTE {
            busiest
                .sort_unstable_by_key(|e: &Entry| std::cmp::Reverse(e.bytes_in.saturating_add(e.bytes_out)));
            let left = busiest.split_off(OF_A_MINUTE);
            self.forget(&left);
        }
        if !busiest.is_empty() {
            self.minutes.push_back(Minute { number: self.number, busiest: busiest.into() });
        }
    }

    fn forget(&mut self, entries: &[Entry]) {
        for entry in entries {
            let Some(known) = self.known.get_mut(&entry.who) else { continue };
            known.minutes = known.minutes.saturating_sub(1);
            known.day_in = known.day_in.saturating_sub(entry.bytes_in);
            known.day_out = known.day_out.saturating_sub(entry.bytes_out);
            if known.minutes == 0 {
                self.known.remove(&entry.who);
            }
        }
    }

    /// Counts on from what an address had carried in an earlier life. It is known for a day from now on, whatever it does.
    pub fn resume(&mut self, now: Timestamp, totals: impl IntoIterator<Item = (Inner, Carried)>) {
        self.roll(now);
        let mut entries = Vec::new();
        for (who, total) in totals {
            let known = self.known.entry(who).or_default();
            known.total = total;
            known.minutes += 1;
            entries.push(Entry { who, bytes_in: 0, bytes_out: 0 });
        }
        if !entries.is_empty() {
            self.minutes.push_back(Minute { number: self.number, busiest: entries.into() });
        }
    }

    /// Forgets the gateways that `keep` does not know.
    pub fn retain_gateways(&mut self, keep: impl Fn(GatewayNo) -> bool) {
        self.current.retain_gateways(&keep);
        self.of_known.retain(|who, _| keep(who.gateway));
        self.known.retain(|who, _| keep(who.gateway));
        self.dropped.retain(|gateway, _| keep(*gateway));
        for minute in &mut self.minutes {
            if minute.busiest.iter().any(|entry| !keep(entry.who.gateway)) {
                let kept = minute.busiest.iter().filter(|entry| keep(entry.who.gateway));
                minute.busiest = kept.copied().collect();
            }
        }
    }

    /// What is known of an address.
    pub fn of(&self, who: Inner) -> Seen {
        let known = self.known.get(&who).copied().unwrap_or_default();
        let current = self.of_known.get(&who).copied().or_else(|| self.current.of(&who));
        self.seen(who, &known, current.unwrap_or_default())
    }

    /// What addresses carried in the minute that is not over.
    fn now(&self) -> impl Iterator<Item = (Inner, Carried)> + '_ {
        self.current.all().chain(self.of_known.iter().map(|(who, carried)| (*who, *carried)))
    }

    /// All addresses of which something is known.
    fn all(&self) -> impl Iterator<Item = Seen> + '_ {
        let now = |who| self.of_known.get(who).copied().unwrap_or_default();
        let known = self.known.iter().map(move |(who, known)| self.seen(*who, known, now(who)));
        known.chain(self.current.all().map(|(who, carried)| self.seen(who, &Known::default(), carried)))
    }

    /// Addresses that carried something in this minute or the last, the busiest first, `count` at most.
    pub fn busy(&self, of: impl Fn(GatewayNo) -> bool, count: usize) -> Vec<Seen> {
        let lately =
            |s: &Seen| s.minute.0.saturating_add(s.minute.1).saturating_add(s.now.0).saturating_add(s.now.1);
        // Whoever is blocked carries nothing and is of interest.
        let dropped = |s: &Seen| s.total.dropped;
        let some = self.all().filter(|s| of(s.who.gateway) && (lately(s) > 0 || dropped(s) > 0));
        most(some.collect(), count, |s| (lately(s), dropped(s)))
    }

    /// The addresses of a gateway that carried the most in a day.
    pub fn of_the_day(&self, gateways: usize, count: usize) -> Vec<Seen> {
        let mut by_gateway: BTreeMap<GatewayNo, Vec<Seen>> = BTreeMap::new();
        for seen in self.all() {
            by_gateway.entry(seen.who.gateway).or_default().push(seen);
        }
        let each = by_gateway.into_values().take(gateways);
        each.flat_map(|all| most(all, count, |s| (s.day.0.saturating_add(s.day.1), 0))).collect()
    }

    /// Who was busy since a time, by the busiest minute, `count` at most.
    pub fn peaks(&self, of: impl Fn(GatewayNo) -> bool, since: Timestamp, count: usize) -> Vec<Peak> {
        let first = minute_of(since);
        let mut peaks: HashMap<Inner, Peak> = HashMap::new();
        let mut add = |number: u64, entry: Entry| {
            let at = Timestamp::from_nanos(number.saturating_mul(MINUTE.as_nanos() as u64));
            let peak = peaks.entry(entry.who).or_insert(Peak { who: entry.who, bytes: (0, 0), most: 0, at });
            peak.bytes.0 = peak.bytes.0.saturating_add(entry.bytes_in);
            peak.bytes.1 = peak.bytes.1.saturating_add(entry.bytes_out);
            let both = entry.bytes_in.saturating_add(entry.bytes_out);
            if both > peak.most {
                (peak.most, peak.at) = (both, at);
            }
        };
        for minute in self.minutes.iter().filter(|minute| minute.number >= first) {
            minute.busiest.iter().filter(|e| of(e.who.gateway)).for_each(|e| add(minute.number, *e));
        }
        for (who, c) in self.now().filter(|(who, _)| of(who.gateway)) {
            add(self.number, Entry { who, bytes_in: c.bytes_in, bytes_out: c.bytes_out });
        }
        let mut all: Vec<Peak> = peaks.into_values().collect();
        all.sort_unstable_by_key(|p| (std::cmp::Reverse(p.most), p.who));
        all.truncate(count);
        all
    }

    /// With what it carried in the minute that is not over.
    const fn seen(&self, who: Inner, known: &Known, current: Carried) -> Seen {
        let mut total = known.total;
        total.bytes_in = total.bytes_in.saturating_add(current.bytes_in);
        total.packets_in = total.packets_in.saturating_add(current.packets_in);
        total.bytes_out = total.bytes_out.saturating_add(current.bytes_out);
        total.packets_out = total.packets_out.saturating_add(current.packets_out);
        total.dropped = total.dropped.saturating_add(current.dropped);
        Seen {
            who,
            total,
            minute: if known.last + 1 == self.number { (known.last_in, known.last_out) } else { (0, 0) },
            day: (
                known.day_in.saturating_add(current.bytes_in),
                known.day_out.saturating_add(current.bytes_out),
            ),
            now: (current.bytes_in, current.bytes_out),
        }
    }

    /// What any one address carried at most in this minute that is not under its name; 0: everything is exact.
    pub const fn missed(&self) -> u64 {
        self.missed
    }
}

fn minute_of(at: Timestamp) -> u64 {
    at.as_nanos() / MINUTE.as_nanos() as u64
}

/// The first ones by a weight, the heaviest first.
fn most<W: Ord>(mut all: Vec<Seen>, count: usize, weight: impl Fn(&Seen) -> W) -> Vec<Seen> {
    let order = |s: &Seen| (std::cmp::Reverse(weight(s)), s.who);
    if count < all.len() {
        all.select_nth_unstable_by_key(count, order);
        all.truncate(count);
    }
    all.sort_unstable_by_key(order);
    all
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn who(n: u32) -> Inner {
        Inner { gateway: GatewayNo(0), ip: Ipv4Addr::from(0x0A00_0000 + n).into() }
    }

    fn at(minute: u64) -> Timestamp {
        Timestamp::from_nanos(minute * 60_000_000_000 + 1)
    }

    fn counted(all: impl IntoIterator<Item = (Inner, u64)>) -> Counted {
        let carried = |n| Carried { bytes_out: n, packets_out: 1, ..Carried::default() };
        let by_address = all.into_iter().map(|(who, n)| (who, carried(n))).collect();
        Counted { by_address, ..Counted::default() }
    }

    #[test]
    fn a_minute_ends_and_a_day_is_forgotten() {
        let mut h = History::default();
        h.note(at(10), counted([(who(1), 100)]));
        h.note(at(10), counted([(who(1), 11)]));
        let s = h.of(who(1));
        assert_eq!((s.total.bytes_out, s.minute, s.day), (111, (0, 0), (0, 111)));
        h.note(at(11), counted([(who(1), 1)]));
        let s = h.of(who(1));
        assert_eq!((s.total.bytes_out, s.minute, s.day), (112, (0, 111), (0, 112)));
        h.note(at(20), counted([]));
        assert_eq!(h.of(who(1)).minute, (0, 0), "the last minute was a quiet one");
        h.note(at(10 + 1440), counted([]));
        assert_eq!(h.of(who(1)).day, (0, 1), "the first minute is a day ago");
        assert_eq!(h.of(who(1)).total.bytes_out, 112);
        h.note(at(20 + 1440), counted([]));
        assert!(h.known.is_empty() && h.minutes.is_empty());
    }

    #[test]
    fn who_caused_the_spike_of_the_night_is_known_in_the_morning() {
        let mut h = History::default();
        for minute in 0..480 {
            let usual = (1..40).map(|n| (who(n), 1_000_000));
            let spike = (minute == 197).then_some((who(77), 3_000_000));
            h.note(at(minute), counted(usual.chain(spike)));
        }
        h.note(at(480), counted([]));
        let peaks = h.peaks(|_| true, at(0), 3);
        assert_eq!((peaks[0].who, peaks[0].most, minute_of(peaks[0].at)), (who(77), 3_000_000, 197));
        assert_eq!(peaks[1].bytes, (0, 480_000_000));
        assert!(h.peaks(|_| true, at(200), 99).iter().all(|p| p.who != who(77)));
        assert!(h.peaks(|gateway| gateway == GatewayNo(1), at(0), 9).is_empty());
    }

    /// A day of scanning, each minute others, beside one host that works.
    #[test]
    fn a_day_of_scans_is_bounded_and_the_busiest_stay_exact() {
        let mut h = History::default();
        let mut shown = 0;
        for minute in 0..1500u32 {
            // Always more than a minute keeps, and now and then more than there is room for.
            let addresses = if minute % 50 == 0 { 6_000 } else { 200 };
            for part in 0..4 {
                let first = 1000 + (minute * 4 + part) * 6_000;
                let scan = (first..first + addresses).map(|n| (who(n), 60));
                h.note(at(minute.into()), counted(scan.chain([(who(1), 5_000)])));
                let total = h.of(who(1)).total.bytes_out;
                assert!(total >= shown, "a counter that is shown never goes back");
                shown = total;
            }
        }
        assert_eq!(shown, 1500 * 4 * 5_000);
        assert!(h.minutes.len() <= DAY && h.minutes.iter().all(|m| m.busiest.len() <= OF_A_MINUTE));
        assert!(h.known.len() <= DAY * OF_A_MINUTE && h.current.len() <= ROOM);
        assert!(h.of_known.len() <= h.known.len());
        assert_eq!(h.busy(|_| true, 1)[0].who, who(1));
        assert_eq!(h.of_the_day(10, 1)[0].who, who(1));
    }

    /// Who has carried much before, and in this minute less than each of very many others.
    #[test]
    fn a_counter_that_was_shown_does_not_go_back_beside_a_scan() {
        let mut h = History::default();
        h.note(at(1), counted([(who(1), 22_000_000)]));
        h.note(at(2), counted([(who(1), 300)]));
        for part in 0..10 {
            let first = 1000 + part * 6_000;
            h.note(at(2), counted((first..first + 6_000).map(|n| (who(n), 400))));
            assert_eq!(h.of(who(1)).total.bytes_out, 22_000_300);
            assert_eq!(h.of_the_day(1, 1)[0].total.bytes_out, 22_000_300);
        }
        h.note(at(3), counted([(who(1), 5)]));
        let s = h.of(who(1));
        assert_eq!(
            (s.total.bytes_out, s.total.packets_out, s.minute, s.now),
            (22_000_305, 3, (0, 300), (0, 5))
        );
        assert_eq!(
            h.peaks(|_| true, at(3), 9),
            [Peak { who: who(1), bytes: (0, 5), most: 5, at: at_minute(3) }]
        );
        h.retain_gateways(|_| false);
        assert!(h.of_known.is_empty() && h.peaks(|_| true, at(0), 9).is_empty());
    }

    #[test]
    fn a_next_life_counts_on_and_forgets_after_a_day() {
        let mut h = History::default();
        let total = Carried { bytes_in: 5, packets_in: 1, bytes_out: 100, packets_out: 2, dropped: 3 };
        h.resume(at(10), [(who(1), total), (who(2), Carried::default())]);
        assert_eq!((h.of(who(1)).total, h.of(who(1)).day), (total, (0, 0)));
        h.note(at(10), counted([(who(1), 7)]));
        assert_eq!(h.of(who(1)).total.bytes_out, 107);
        assert_eq!(h.dropped(GatewayNo(0)), 0, "what is counted by gateway is handed over by itself");
        h.note(at(9 + 1440), counted([]));
        assert_eq!((h.of(who(1)).total.bytes_out, h.known.len()), (107, 2));
        h.note(at(11 + 1440), counted([]));
        assert!(h.known.is_empty());
    }

    fn at_minute(minute: u64) -> Timestamp {
        Timestamp::from_nanos(minute * 60_000_000_000)
    }

    #[test]
    fn a_busy_gateway_does_not_hide_the_others() {
        let mut h = History::default();
        let other = Inner { gateway: GatewayNo(7), ..who(5) };
        h.note(at(1), counted((0..1000).map(|n| (who(n), 1_000)).chain([(other, 10)])));
        h.note(at(2), counted([]));
        assert_eq!(h.of(other).day, (0, 10));
        assert_eq!(h.of_the_day(10, 5).len(), 6);
        h.retain_gateways(|gateway| gateway == GatewayNo(7));
        assert_eq!(h.busy(|_| true, 10).len(), 1);
    }
}
