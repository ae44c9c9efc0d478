//! The sending half of a pair of SAs (RFC 4303 §3.3).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cygnet_model::plane::{RESERVE, SaCounters};
use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::{SaId, SaSpec};

use crate::cipher::Cipher;
use crate::error::{DropReason, SaError};
use crate::inner::InnerHeader;
use crate::packet::{self, Layout};
use crate::volume::{Limit, Volume};

/// An outbound SA. Threads may share it: each packet draws its own sequence number.
pub struct OutboundSa {
    id: SaId,
    cipher: Cipher,
    layout: Layout,
    local: Vec<TrafficSelector>,
    remote: Vec<TrafficSelector>,
    /// The last sequence number given out.
    last: AtomicU64,
    /// The last one there is.
    end: u64,
    /// The last one that may be given out, as far as somebody has noted it for the next life of the process.
    reserved: AtomicU64,
    volume: Volume,
}

/// Proof that a packet (or the train of packets that a superpacket stands for) lies inside the SA's selectors.
pub struct Admitted<'a>(&'a OutboundSa);

impl OutboundSa {
    /// Builds the SA. Its first packet gets the sequence number `used + 1`; a fresh SA has used 0, one that is taken
    /// over from another host must name a number that no host can have used.
    pub fn new(spec: &SaSpec, used: u64) -> Result<Self, SaError> {
        Self::after(spec, &SaCounters { sequence: used, ..SaCounters::default() })
    }

    /// Builds an SA that has carried something before. No earlier life of it may have used a sequence number above
    /// that of `used`.
    pub fn after(spec: &SaSpec, used: &SaCounters) -> Result<Self, SaError> {
        Ok(Self {
            id: spec.id,
            cipher: Cipher::new(spec.suite, &spec.encr_key, &spec.integ_key)?,
            layout: Layout::of(spec.suite),
            local: spec.inner_local.clone(),
            remote: spec.inner_remote.clone(),
            last: AtomicU64::new(used.sequence),
            reserved: AtomicU64::new(used.sequence.saturating_add(RESERVE)),
            // The last 2^32 extended numbers stay unused, so that racing threads cannot pass the end.
            end: if spec.suite.esn { u64::MAX - u64::from(u32::MAX) } else { u64::from(u32::MAX) },
            volume: Volume::after(spec.limits, used),
        })
    }

    /// Its name.
    pub const fn id(&self) -> SaId {
        self.id
    }

    /// The layout of its packets.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// What it has counted.
    pub fn counters(&self) -> SaCounters {
        SaCounters {
            bytes: self.volume.bytes(),
            packets: self.volume.packets(),
            replay: 0,
            integrity: 0,
            sequence: self.last.load(Relaxed).min(self.end),
        }
    }

    /// Lets the SA use sequence numbers up to `last`, which somebody has noted as used. It never takes any back.
    pub fn reserve(&self, last: u64) {
        self.reserved.fetch_max(last, Relaxed);
    }

    /// Checks an inner packet against the selectors (RFC 4301 §5.1).
    pub fn admit(&self, inner: &InnerHeader) -> Result<Admitted<'_>, DropReason> {
        let (source, destination) = (inner.source_end(), inner.destination_end());
        if self.local.iter().any(|s| s.matches(&source))
            && self.remote.iter().any(|s| s.matches(&destination))
        {
            Ok(Admitted(self))
        } else {
            Err(DropReason::Selectors)
        }
    }

    /// The next sequence number. It never cycles (RFC 4303 §3.3.3).
    fn draw(&self) -> Result<(u64, Option<Limit>), DropReason> {
        let spent = |seq: u64| {
            if seq > self.end {
                Err(DropReason::Sequence)
            } else if seq > self.reserved.load(Relaxed) {
                Err(DropReason::Reserve)
            } else {
                Ok(())
            }
        };
        // One step past the end for each racing thread is harmless: `last` is 64 bits wide and `end` leaves room.
        spent(self.last.load(Relaxed).saturating_add(1))?;
        let seq = self.last.fetch_add(1, Relaxed) + 1;
        spent(seq)?;
        let limit = if seq == self.end {
            self.volume.say(Limit::Hard)
        } else if seq > self.end - self.end / 16 {
            // The last sixteenth: time for new keys, whatever the volume limits say.
            self.volume.say(Limit::Soft)
        } else {
            None
        };
        Ok((seq, limit))
    }
}

impl Admitted<'_> {
    /// The SA.
    pub const fn sa(&self) -> &OutboundSa {
        self.0
    }

    /// Seals one inner packet in place. `packet` is [`Layout::sealed_len`] long and holds the inner packet at
    /// [`Layout::head_len`]; afterwards it is the ESP packet. Tells when a limit was reached by it.
    pub fn seal(&self, packet: &mut [u8], inner_len: usize) -> Result<Option<Limit>, DropReason> {
        let Self(sa) = self;
        let layout = sa.layout;
        if packet.len() != layout.sealed_len(inner_len) {
            return Err(DropReason::TooBig);
        }
        let head_len = layout.head_len();
        let next_header = match packet.get(head_len).map(|octet| octet >> 4) {
            Some(4) => packet::NEXT_IPV4,
            Some(6) => packet::NEXT_IPV6,
            _ => return Err(DropReason::Malformed),
        };
        sa.volume.check()?;
        let (seq, ending) = sa.draw()?;
        let tail_end = packet.len() - layout.icv_len();
        if let Some(tail) = packet.get_mut(head_len + inner_len..tail_end) {
            packet::write_trailer(tail, next_header);
        }
        if let Some((header, _)) = packet.split_first_chunk_mut::<{ packet::HEADER_LEN }>() {
            let [s0, s1, s2, s3] = sa.id.spi.to_be_bytes();
            let [n0, n1, n2, n3] = (seq as u32).to_be_bytes();
            *header = [s0, s1, s2, s3, n0, n1, n2, n3];
        }
        sa.cipher.seal(seq, packet)?;
        Ok(sa.volume.add(inner_len).or(ending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{gcm, spec, udp4};

    /// What the next life of the process takes for used is all that this one may use.
    #[test]
    fn an_outbound_sa_stops_where_its_reserved_numbers_end() {
        let used = SaCounters { sequence: 7, packets: 3, bytes: 90, ..SaCounters::default() };
        let out = OutboundSa::after(&spec(gcm(), cygnet_model::tunnel::Direction::Out, 0xC0FF_EE01), &used)
            .unwrap();
        let inner = udp4(0);
        let header = InnerHeader::parse(&inner).unwrap();
        let send = || {
            let mut packet = vec![0; out.layout().sealed_len(inner.len())];
            packet[out.layout().head_len()..][..inner.len()].copy_from_slice(&inner);
            out.admit(&header).unwrap().seal(&mut packet, inner.len())?;
            Ok(u64::from(u32::from_be_bytes(packet[4..8].try_into().unwrap())))
        };
        assert_eq!(send(), Ok(8));
        assert_eq!((out.counters().packets, out.counters().sequence), (4, 8));
        out.last.store(7 + RESERVE - 1, Relaxed);
        assert_eq!(send(), Ok(7 + RESERVE));
        assert_eq!((send(), send()), (Err(DropReason::Reserve), Err(DropReason::Reserve)));
        out.reserve(5);
        assert_eq!(send(), Err(DropReason::Reserve), "nothing is taken back");
        out.reserve(7 + RESERVE + 1);
        assert_eq!((send(), send()), (Ok(7 + RESERVE + 1), Err(DropReason::Reserve)));
    }
}
