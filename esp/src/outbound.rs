//! The sending half of a pair of SAs (RFC 4303 §3.3).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cygnet_model::plane::SaCounters;
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
    volume: Volume,
}

/// Proof that a packet (or the train of packets that a superpacket stands for) lies inside the SA's selectors.
pub struct Admitted<'a>(&'a OutboundSa);

impl OutboundSa {
    /// Builds the SA. Its first packet gets the sequence number `used + 1`; a fresh SA has used 0, one that is taken
    /// over from another host must name a number that no host can have used.
    pub fn new(spec: &SaSpec, used: u64) -> Result<Self, SaError> {
        Ok(Self {
            id: spec.id,
            cipher: Cipher::new(spec.suite, &spec.encr_key, &spec.integ_key)?,
            layout: Layout::of(spec.suite),
            local: spec.inner_local.clone(),
            remote: spec.inner_remote.clone(),
            last: AtomicU64::new(used),
            // The last 2^32 extended numbers stay unused, so that racing threads cannot pass the end.
            end: if spec.suite.esn { u64::MAX - u64::from(u32::MAX) } else { u64::from(u32::MAX) },
            volume: Volume::new(spec.limits),
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
        // One step past the end for each refused packet is harmless: `last` is 64 bits wide and `end` leaves room.
        if self.last.load(Relaxed) >= self.end {
            return Err(DropReason::Sequence);
        }
        let seq = self.last.fetch_add(1, Relaxed) + 1;
        if seq > self.end {
            return Err(DropReason::Sequence);
        }
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
