//! ESP that arrives before its SA.
//!
//! A responder installs the SAs of a child before its answer is on the way, and may send on them at once; so may a peer
//! whose answer we have but not yet worked through. Such packets are kept for a moment instead of being lost. What is
//! kept is bounded, whoever sends it: when the places are full, the newest are dropped, as all would be without this.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a packet waits for its SA: some times what an exchange takes between here and the next continent.
const PATIENCE: Duration = Duration::from_millis(250);
const MAX_PACKETS: usize = 512;
const MAX_OCTETS: usize = 512 << 10;

/// A packet whose SPI is not known yet.
pub(super) struct Packet {
    /// The ESP packet.
    pub esp: Vec<u8>,
    /// Who sent it.
    pub from: SocketAddr,
    /// TOS or traffic class of the outer header.
    pub tos: u8,
    spi: u32,
    until: Instant,
}

/// Packets that wait, the oldest first.
#[derive(Default)]
pub(super) struct Early {
    packets: VecDeque<Packet>,
    octets: usize,
}

impl Early {
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Keeps a copy of a packet; false where there is no room.
    pub fn keep(&mut self, spi: u32, esp: &[u8], from: SocketAddr, tos: u8, now: Instant) -> bool {
        if self.packets.len() >= MAX_PACKETS || self.octets + esp.len() > MAX_OCTETS {
            return false;
        }
        self.octets += esp.len();
        self.packets.push_back(Packet { esp: esp.to_vec(), from, tos, spi, until: now + PATIENCE });
        true
    }

    /// Packets whose SPI has become known, in the order in which they came, and how many others have waited long enough.
    pub fn take(&mut self, known: impl Fn(u32) -> bool, now: Instant) -> (Vec<Packet>, usize) {
        let (ready, waiting): (Vec<_>, Vec<_>) = self.packets.drain(..).partition(|packet| known(packet.spi));
        let count = waiting.len();
        self.packets = waiting.into_iter().filter(|packet| packet.until > now).collect();
        self.octets = self.packets.iter().map(|packet| packet.esp.len()).sum();
        (ready, count - self.packets.len())
    }

    /// When the first has waited long enough.
    pub fn until(&self) -> Option<Instant> {
        self.packets.front().map(|packet| packet.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4500);

    #[test]
    fn packets_wait_for_their_spi_in_order_and_not_for_ever() {
        let (mut early, start) = (Early::default(), Instant::now());
        for (n, spi) in [1, 2, 1, 3].into_iter().enumerate() {
            assert!(early.keep(spi, &[n as u8], FROM, 0, start));
        }
        let (ready, late) = early.take(|spi| spi == 1, start + PATIENCE / 2);
        assert_eq!(ready.iter().map(|p| p.esp[0]).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(late, 0);
        assert_eq!(early.until(), Some(start + PATIENCE));
        let (ready, late) = early.take(|spi| spi == 3, start + PATIENCE);
        assert_eq!((ready.len(), late), (1, 1));
        assert!(early.is_empty() && early.until().is_none());
    }

    #[test]
    fn what_waits_is_bounded_in_packets_and_octets() {
        let now = Instant::now();
        let mut early = Early::default();
        assert_eq!(
            (0..2 * MAX_PACKETS).filter(|_| early.keep(1, &[0; 64], FROM, 0, now)).count(),
            MAX_PACKETS
        );
        let mut early = Early::default();
        assert_eq!(
            (0..100).filter(|_| early.keep(1, &[0; 65_000], FROM, 0, now)).count(),
            MAX_OCTETS / 65_000
        );
        let (_, late) = early.take(|_| false, now + PATIENCE);
        assert_eq!(late, MAX_OCTETS / 65_000);
        assert!(early.keep(1, &[0; 65_000], FROM, 0, now), "the room is free again");
    }
}
