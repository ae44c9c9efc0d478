//! Counts and limits what a data plane's thread carries, packet by packet. What a packet costs here is a comparison: each
//! thread gathers what it saw of an address in a place of its own, and takes a lock once for a batch.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use cygnet_esp::DropReason;
use cygnet_model::TunnelId;
use cygnet_model::tunnel::Direction;

use super::accounts::{Accounts, Counted};
use super::level::{Size, TunnelLevels};
use super::rules::{Cap, Capped, Rules};
use super::{Carried, Inner};

/// Addresses that each direction keeps apart between two samples.
const ROOM: usize = 16_384;
/// Places of a thread, a power of two.
const PLACES: usize = 64;
/// Packets after which a batch is at its end, however many of them were dropped.
const BATCH: usize = 4096;

/// What a plane's owner and its threads share.
#[derive(Debug)]
pub struct Traffic {
    rules: Arc<ArcSwap<Rules>>,
    inbound: Mutex<Accounts>,
    outbound: Mutex<Accounts>,
    /// Where the clock of the buckets begins.
    epoch: Instant,
}

impl Default for Traffic {
    fn default() -> Self {
        let accounts = || Mutex::new(Accounts::new(ROOM));
        Self { rules: Arc::default(), inbound: accounts(), outbound: accounts(), epoch: Instant::now() }
    }
}

impl Traffic {
    /// The rules in force.
    pub fn rules(&self) -> Rules {
        Rules::clone(&self.rules.load())
    }

    /// Puts rules in force: threads look at them with their next batch.
    pub fn publish(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
    }

    /// What was carried since the last call, one value for each direction.
    pub fn take(&self) -> [Counted; 2] {
        [Direction::In, Direction::Out]
            .map(|d| self.accounts(d).lock().unwrap_or_else(PoisonError::into_inner).take())
    }

    const fn accounts(&self, direction: Direction) -> &Mutex<Accounts> {
        match direction {
            Direction::In => &self.inbound,
            Direction::Out => &self.outbound,
        }
    }
}

/// What a thread saw of one address in a batch.
struct Place {
    tunnel: TunnelId,
    ip: IpAddr,
    /// `None`: the tunnel's gateway is not known, and nothing is counted.
    who: Option<Inner>,
    capped: Option<Arc<Capped>>,
    levels: Option<Arc<TunnelLevels>>,
    carried: Carried,
}

/// A thread's end, for one direction.
pub struct Meter {
    direction: Direction,
    traffic: Arc<Traffic>,
    rules: Cache<Arc<ArcSwap<Rules>>, Arc<Rules>>,
    places: Vec<Option<Place>>,
    /// Which places are taken.
    used: Vec<usize>,
    packets: usize,
    /// The time of this batch, once somebody has a rate.
    now_ns: Option<u64>,
}

/// A packet's address while the packet, or the segments that it falls into, is worked on.
pub struct Flow<'a> {
    place: &'a mut Place,
    now_ns: &'a mut Option<u64>,
    epoch: Instant,
    direction: Direction,
}

impl Meter {
    /// A meter of packets in one direction.
    pub fn new(traffic: Arc<Traffic>, direction: Direction) -> Self {
        let rules = Cache::new(Arc::clone(&traffic.rules));
        let places = (0..PLACES).map(|_| None).collect();
        Self { direction, traffic, rules, places, used: Vec::with_capacity(PLACES), packets: 0, now_ns: None }
    }

    /// A packet of an inner address of ours, in a tunnel.
    #[inline]
    pub fn flow(&mut self, tunnel: TunnelId, ip: IpAddr) -> Option<Flow<'_>> {
        self.packets += 1;
        let at = fold(ip) as usize % PLACES;
        let known = |place: &Place| place.ip == ip && place.tunnel == tunnel;
        if !self.places.get(at)?.as_ref().is_some_and(known) {
            self.settle(at, tunnel, ip);
        }
        let place = self.places.get_mut(at)?.as_mut()?;
        Some(Flow { place, now_ns: &mut self.now_ns, epoch: self.traffic.epoch, direction: self.direction })
    }

    /// Gives a place to an address.
    fn settle(&mut self, at: usize, tunnel: TunnelId, ip: IpAddr) {
        let rules = self.rules.load();
        let who = rules.gateway(tunnel).map(|gateway| Inner { gateway, ip });
        let capped = who.and_then(|who| rules.cap(&who)).cloned();
        let levels = rules.levels(tunnel).cloned();
        let Some(place) = self.places.get_mut(at) else { return };
        let carried = Carried::default();
        match place.replace(Place { tunnel, ip, who, capped, levels, carried }) {
            Some(old) => self.book([old]),
            None => self.used.push(at),
        }
    }

    /// Whether it is time for [`Self::flush`] although packets are still coming.
    pub const fn is_full(&self) -> bool {
        self.packets >= BATCH
    }

    /// Ends a batch: what was counted can be seen, and the next packet is looked at by the newest rules.
    pub fn flush(&mut self) {
        self.packets = 0;
        self.now_ns = None;
        let mut used = std::mem::take(&mut self.used);
        let places = &mut self.places;
        let taken: Vec<Place>;
        let one;
        // One address is what most batches have.
        if let [at] = used[..] {
            one = places.get_mut(at).and_then(Option::take);
            self.book(one);
        } else if !used.is_empty() {
            taken = used.iter().filter_map(|at| places.get_mut(*at)?.take()).collect();
            self.book(taken);
        }
        used.clear();
        self.used = used;
    }

    fn book(&self, places: impl IntoIterator<Item = Place>) {
        let mut accounts =
            self.traffic.accounts(self.direction).lock().unwrap_or_else(PoisonError::into_inner);
        for place in places {
            if let Some(who) = place.who.filter(|_| place.carried != Carried::default()) {
                accounts.add(who, place.carried);
            }
        }
    }
}

impl Flow<'_> {
    /// Whether the limit of the address, and the levels of its tunnel and gateway, let a packet pass now.
    ///
    /// # Errors
    /// The reason for which the packet ends here; it is counted.
    #[inline]
    pub fn admit(&mut self, size: Size) -> Result<(), DropReason> {
        if self.place.capped.is_none() && self.place.levels.is_none() {
            return Ok(());
        }
        self.admit_limited(size)
    }

    fn admit_limited(&mut self, size: Size) -> Result<(), DropReason> {
        let epoch = self.epoch;
        let now = *self.now_ns.get_or_insert_with(|| nanos(epoch));
        if let Some(capped) = &self.place.capped
            && !capped.admits(self.direction, size.payload as u64, now)
        {
            self.place.carried.dropped += 1;
            return Err(match capped.cap() {
                Cap::Rate(_) => DropReason::IpRate,
                Cap::Block => DropReason::IpBlock,
            });
        }
        match &self.place.levels {
            Some(levels) if !levels.admit(self.direction, size, now) => Err(DropReason::Bandwidth),
            _ => Ok(()),
        }
    }

    /// Notes that so many octets have passed.
    #[inline]
    pub fn carried(&mut self, bytes: usize) {
        let carried = &mut self.place.carried;
        match self.direction {
            Direction::In => {
                carried.bytes_in += bytes as u64;
                carried.packets_in += 1;
            }
            Direction::Out => {
                carried.bytes_out += bytes as u64;
                carried.packets_out += 1;
            }
        }
    }
}

fn nanos(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// An address in few bits. Whoever chooses addresses that meet gains nothing but a lock for each of his packets.
pub(super) fn fold(ip: IpAddr) -> u32 {
    let wide = match ip {
        IpAddr::V4(ip) => u32::from(ip),
        IpAddr::V6(ip) => {
            let bits = u128::from(ip);
            (bits >> 96) as u32 ^ (bits >> 64) as u32 ^ (bits >> 32) as u32 ^ bits as u32
        }
    };
    let half = wide ^ wide >> 16;
    half ^ half >> 8
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use super::super::GatewayNo;
    use super::*;

    fn ip(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0A01_0000 + n).into()
    }

    fn who(n: u32) -> Inner {
        Inner { gateway: GatewayNo(3), ip: ip(n) }
    }

    fn traffic(caps: &[(u32, Cap)]) -> Arc<Traffic> {
        let traffic = Arc::new(Traffic::default());
        let mut rules = traffic.rules();
        rules.follow_gateways(HashMap::from([(TunnelId(1), GatewayNo(3))]));
        caps.iter().for_each(|(n, cap)| rules.set(who(*n), Some(*cap)));
        traffic.publish(rules);
        traffic
    }

    fn pass(meter: &mut Meter, n: u32, bytes: usize) -> Result<(), DropReason> {
        let mut flow = meter.flow(TunnelId(1), ip(n)).unwrap();
        flow.admit(Size::new(bytes, bytes + 30, true))?;
        flow.carried(bytes);
        Ok(())
    }

    /// Far more addresses than places, so that they meet.
    #[test]
    fn each_packet_is_counted_once_and_of_its_address() {
        let traffic = traffic(&[]);
        let mut meter = Meter::new(Arc::clone(&traffic), Direction::Out);
        for round in 0..10 {
            for n in 0..1_000 {
                pass(&mut meter, n, 100 + n as usize).unwrap();
            }
            if round % 3 == 0 {
                meter.flush();
            }
        }
        meter.flow(TunnelId(2), ip(1)).unwrap().carried(100);
        meter.flush();
        let [inbound, outbound] = traffic.take();
        assert!(inbound.by_address.is_empty());
        let counted: HashMap<Inner, Carried> = outbound.by_address.into_iter().collect();
        assert_eq!(counted.len(), 1_000, "a tunnel of no gateway is nobody's");
        for n in 0..1_000 {
            let c = counted[&who(n)];
            assert_eq!((c.bytes_out, c.packets_out, c.bytes_in), (10 * (100 + u64::from(n)), 10, 0));
        }
        assert!(traffic.take()[1].by_address.is_empty());
    }

    #[test]
    fn limits_drop_and_count_and_leave_neighbours_alone() {
        let traffic = traffic(&[(5, Cap::Block), (6, Cap::Rate(8_000))]);
        let mut meter = Meter::new(Arc::clone(&traffic), Direction::In);
        assert_eq!(pass(&mut meter, 5, 60), Err(DropReason::IpBlock));
        let of_6 = (0..100).filter(|_| pass(&mut meter, 6, 1_000).is_ok()).count();
        assert_eq!(of_6, 6, "a burst, and then the rate");
        assert_eq!(pass(&mut meter, 6, 1_000), Err(DropReason::IpRate));
        assert!((0..100).all(|_| pass(&mut meter, 7, 1_000).is_ok()));
        // New rules count from the next batch on.
        let mut rules = traffic.rules();
        rules.set(who(5), None);
        traffic.publish(rules);
        meter.flush();
        assert_eq!(pass(&mut meter, 5, 60), Ok(()));
        meter.flush();
        let counted: HashMap<Inner, Carried> = traffic.take()[0].by_address.drain(..).collect();
        assert_eq!((counted[&who(5)].dropped, counted[&who(5)].packets_in), (1, 1));
        assert_eq!((counted[&who(6)].dropped, counted[&who(6)].bytes_in), (95, 6_000));
        assert_eq!(counted[&who(7)].dropped, 0);
    }

    #[test]
    fn the_level_of_a_tunnel_is_shared_by_its_addresses_and_drops_by_a_name_of_its_own() {
        use super::super::level::Level;
        use crate::config::model::Counts;

        let traffic = traffic(&[]);
        let level = Arc::new(Level::new(8_000, Counts::Payload));
        let mut rules = traffic.rules();
        let levels = TunnelLevels { out: vec![Arc::clone(&level)], inward: vec![] };
        rules.follow_levels(HashMap::from([(TunnelId(1), Arc::new(levels))]));
        traffic.publish(rules);
        let mut meter = Meter::new(Arc::clone(&traffic), Direction::Out);
        let passed = (0..100).filter(|n| pass(&mut meter, *n, 1_000).is_ok()).count();
        assert_eq!((passed, level.dropped()), (6, 94), "the least burst");
        assert_eq!(pass(&mut meter, 7, 1_000), Err(DropReason::Bandwidth));
        let mut inward = Meter::new(traffic, Direction::In);
        assert!((0..100).all(|n| pass(&mut inward, n, 1_000).is_ok()));
    }

    #[test]
    fn a_flood_that_is_dropped_ends_a_batch_as_well() {
        let traffic = traffic(&[(5, Cap::Block)]);
        let mut meter = Meter::new(traffic, Direction::Out);
        let before = (0..).take_while(|_| pass(&mut meter, 5, 60).is_err() && !meter.is_full()).count();
        assert!(before < 10_000);
        meter.flush();
        assert!(!meter.is_full());
    }
}
