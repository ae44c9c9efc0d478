//! How many negotiations we begin, or how many IKE SAs we delete, at once. A thousand that are due in the same moment would
//! be more than sockets and peers take in, and what is lost there comes half a second later.
//!
//! Each takes a *place* until the peer has answered to the end, and no longer than [`HOLD`]: a peer that is far away, or
//! not there at all, delays the others a little and never stops them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

use cygnet_model::{IkeSpi, Timestamp, TunnelId};

/// How long a place is kept for an answer.
const HOLD: Duration = Duration::from_millis(100);

/// See the [module](self).
pub(super) struct Pace {
    /// Places for one peer's address.
    per_peer: usize,
    /// Places for all.
    in_all: usize,
    /// Tunnels that wait for a place, by their peer's address, in the order in which they came.
    waiting: BTreeMap<IpAddr, VecDeque<TunnelId>>,
    /// Whose turn it was last.
    last: Option<IpAddr>,
    places: HashMap<IkeSpi, IpAddr>,
    taken: HashMap<IpAddr, usize>,
    /// Until when places are kept.
    ends: VecDeque<(Timestamp, IkeSpi)>,
}

impl Pace {
    /// The pace of negotiations. A peer of our own kind demands cookies from a number of half-open SAs on that is not
    /// reached by these.
    pub fn of_beginnings() -> Self {
        Self::new(32, 256)
    }

    /// The pace of deletions, which cost less.
    pub fn of_endings() -> Self {
        Self::new(64, 512)
    }

    fn new(per_peer: usize, in_all: usize) -> Self {
        Self {
            per_peer,
            in_all,
            waiting: BTreeMap::new(),
            last: None,
            places: HashMap::new(),
            taken: HashMap::new(),
            ends: VecDeque::new(),
        }
    }

    /// Puts a tunnel at the end of its peer's line.
    pub fn wait(&mut self, peer: IpAddr, id: TunnelId) {
        self.waiting.entry(peer).or_default().push_back(id);
    }

    /// The next tunnel for which there is a place.
    pub fn next(&mut self, now: Timestamp) -> Option<TunnelId> {
        while let Some((_, spi)) = self.ends.front().copied().filter(|(at, _)| *at <= now) {
            self.ends.pop_front();
            self.leave(spi);
        }
        if self.places.len() >= self.in_all {
            return None;
        }
        // Peers without a place are few, since there are so many places only. They have their turns one after the other, so
        // that none waits for the whole line of another.
        let free = |peer: &IpAddr| self.taken.get(peer).is_none_or(|taken| *taken < self.per_peer);
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.waiting.range((after, Bound::Unbounded)).map(|(peer, _)| *peer);
        let peer = later.chain(self.waiting.keys().copied()).find(free)?;
        self.last = Some(peer);
        let line = self.waiting.get_mut(&peer)?;
        let id = line.pop_front();
        if line.is_empty() {
            self.waiting.remove(&peer);
        }
        id
    }

    /// Everybody who waits, each in turn, whether there is a place or not.
    pub fn drain(&mut self) -> impl Iterator<Item = TunnelId> + use<> {
        std::mem::take(&mut self.waiting).into_values().flatten()
    }

    /// Something has begun.
    pub fn enter(&mut self, spi: IkeSpi, peer: IpAddr, now: Timestamp) {
        if self.places.insert(spi, peer).is_none() {
            *self.taken.entry(peer).or_default() += 1;
            self.ends.push_back((now + HOLD, spi));
        }
    }

    /// It has ended, or has had its time.
    pub fn leave(&mut self, spi: IkeSpi) {
        let Some(peer) = self.places.remove(&spi) else { return };
        if let Some(taken) = self.taken.get_mut(&peer) {
            *taken = taken.saturating_sub(1);
            if *taken == 0 {
                self.taken.remove(&peer);
            }
        }
    }

    /// When a place becomes free that somebody waits for.
    pub fn next_place(&self) -> Option<Timestamp> {
        self.ends.front().filter(|_| !self.waiting.is_empty()).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_nanos(1_000_000 * ms)
    }

    fn spi(n: u32) -> IkeSpi {
        IkeSpi::new(u64::from(n) + 1).unwrap()
    }

    /// Begins what may begin; gives how many these were.
    fn begin(pace: &mut Pace, now: Timestamp, of: impl Fn(TunnelId) -> IpAddr) -> Vec<u32> {
        let mut begun = Vec::new();
        while let Some(id) = pace.next(now) {
            pace.enter(spi(id.0), of(id), now);
            begun.push(id.0);
        }
        begun
    }

    #[test]
    fn peers_that_do_not_answer_keep_nobody_waiting() {
        let mut pace = Pace::of_beginnings();
        for dead in 0..8 {
            (0..1000).for_each(|n| pace.wait(peer(dead), TunnelId(u32::from(dead) * 1000 + n)));
        }
        pace.wait(peer(200), TunnelId(9999));
        let of = |id: TunnelId| peer(if id.0 == 9999 { 200 } else { u8::try_from(id.0 / 1000).unwrap() });
        let begun = begin(&mut pace, at(0), of);
        assert_eq!(begun.len(), 256);
        assert!(begun.iter().take(9).any(|id| *id == 9999), "the ninth peer has the ninth place: {begun:?}");
    }

    #[test]
    fn a_peer_gets_so_many_at_once_and_the_next_as_it_answers() {
        let mut pace = Pace::of_beginnings();
        (0..100).for_each(|n| pace.wait(peer(1), TunnelId(n)));
        let of = |_| peer(1);
        assert_eq!(begin(&mut pace, at(0), of), (0..32).collect::<Vec<_>>());
        assert!(begin(&mut pace, at(1), of).is_empty());
        pace.leave(spi(3));
        pace.leave(spi(3));
        pace.leave(spi(4));
        assert_eq!(begin(&mut pace, at(2), of), [32, 33]);
    }

    #[test]
    fn a_peer_that_is_silent_holds_up_neither_others_nor_its_own_tunnels_for_ever() {
        let mut pace = Pace::of_beginnings();
        (0..64).for_each(|n| pace.wait(peer(1), TunnelId(n)));
        (64..70).for_each(|n| pace.wait(peer(2), TunnelId(n)));
        let of = |id: TunnelId| if id.0 < 64 { peer(1) } else { peer(2) };
        let begun = begin(&mut pace, at(0), of);
        assert_eq!(begun.len(), 38, "32 of the one and all of the other");
        assert_eq!(pace.next_place(), Some(at(100)));
        assert!(begin(&mut pace, at(99), of).is_empty());
        assert_eq!(begin(&mut pace, at(100), of), (32..64).collect::<Vec<_>>());
        assert_eq!(pace.next_place(), None, "nobody waits");
    }

    #[test]
    fn many_peers_share_the_places() {
        let mut pace = Pace::of_beginnings();
        let of = |id: TunnelId| IpAddr::from([10, 0, (id.0 >> 8) as u8, id.0 as u8]);
        (0..1000).for_each(|n| pace.wait(of(TunnelId(n)), TunnelId(n)));
        assert_eq!(begin(&mut pace, at(0), of).len(), 256);
        pace.leave(spi(7));
        assert_eq!(begin(&mut pace, at(1), of).len(), 1);
    }
}
