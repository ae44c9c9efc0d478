//! The receiving half of a pair of SAs (RFC 4303 §3.4).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use cygnet_model::plane::SaCounters;
use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::{SaId, SaSpec};

use crate::cipher::Cipher;
use crate::ecn;
use crate::error::{DropReason, SaError};
use crate::inner::{self, InnerHeader};
use crate::packet::{self, Layout};
use crate::replay::{Age, ReplayWindow};
use crate::volume::{Limit, Volume};

/// An inbound SA. Threads may share it; they meet only in the replay window, and only for the look at it.
pub struct InboundSa {
    id: SaId,
    cipher: Cipher,
    layout: Layout,
    local: Vec<TrafficSelector>,
    remote: Vec<TrafficSelector>,
    window: Mutex<ReplayWindow>,
    volume: Volume,
    replayed: AtomicU64,
    forged: AtomicU64,
}

/// A packet whose integrity is proven. Even if its content was dropped, its sender holds the keys.
#[derive(PartialEq, Eq, Debug)]
pub struct Authentic {
    /// Whether it is newer than all before it: only such a packet tells where the peer is now (RFC 7296 §2.23).
    pub age: Age,
    /// A limit that it reached.
    pub limit: Option<Limit>,
    /// What it carried.
    pub content: Result<Opened, DropReason>,
}

/// An inner packet that may be forwarded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Where it lies in the ESP packet's buffer.
    pub range: Range<usize>,
    /// Its headers, as they are after the ECN field was brought over.
    pub header: InnerHeader,
}

impl InboundSa {
    /// Builds the SA.
    pub fn new(spec: &SaSpec) -> Result<Self, SaError> {
        Self::after(spec, &SaCounters::default())
    }

    /// Builds an SA that has received something before: nothing up to the sequence number of `seen` is accepted.
    pub fn after(spec: &SaSpec, seen: &SaCounters) -> Result<Self, SaError> {
        Ok(Self {
            id: spec.id,
            cipher: Cipher::new(spec.suite, &spec.encr_key, &spec.integ_key)?,
            layout: Layout::of(spec.suite),
            local: spec.inner_local.clone(),
            remote: spec.inner_remote.clone(),
            window: Mutex::new(ReplayWindow::above(seen.sequence, spec.replay_window, spec.suite.esn)?),
            volume: Volume::after(spec.limits, seen),
            replayed: AtomicU64::new(0),
            forged: AtomicU64::new(0),
        })
    }

    /// Its name.
    pub const fn id(&self) -> SaId {
        self.id
    }

    /// What it has counted.
    pub fn counters(&self) -> SaCounters {
        SaCounters {
            bytes: self.volume.bytes(),
            packets: self.volume.packets(),
            replay: self.replayed.load(Relaxed),
            integrity: self.forged.load(Relaxed),
            sequence: self.with_window(|window| window.top()),
        }
    }

    /// Opens an ESP packet in place. `outer_tos` is the TOS or traffic class octet of the outer header. An error means
    /// that nothing is proven about the sender.
    pub fn open(&self, packet: &mut [u8], outer_tos: u8) -> Result<Authentic, DropReason> {
        let (_, low) = packet::header(packet).ok_or(DropReason::Truncated)?;
        if !self.layout.fits(packet.len()) {
            return Err(DropReason::Truncated);
        }
        self.volume.check()?;
        let expected = self.with_window(|window| {
            let seq = window.infer(low);
            window.check(seq).is_ok().then_some(seq)
        });
        let seq = expected.ok_or_else(|| self.replay())?;
        let text_len = self.cipher.open(seq, packet).inspect_err(|_| {
            self.forged.fetch_add(1, Relaxed);
        })?;
        let age = self.with_window(|window| window.accept(seq)).map_err(|_| self.replay())?;
        let content = self.inspect(packet, text_len, outer_tos);
        let inner_len = content.as_ref().map_or(0, |opened| opened.range.len());
        let limit = self.volume.add(inner_len);
        Ok(Authentic { age, limit, content })
    }

    /// From plain text with trailer to an inner packet.
    fn inspect(&self, packet: &mut [u8], text_len: usize, outer_tos: u8) -> Result<Opened, DropReason> {
        let head_len = self.layout.head_len();
        let text = packet.get_mut(head_len..head_len + text_len).ok_or(DropReason::Truncated)?;
        let (inner_len, next_header) = packet::read_trailer(text).ok_or(DropReason::Padding)?;
        let version = match next_header {
            packet::NEXT_IPV4 => 4,
            packet::NEXT_IPV6 => 6,
            packet::NEXT_NONE => return Err(DropReason::Dummy),
            _ => return Err(DropReason::NextHeader),
        };
        let inner = text.get_mut(..inner_len).ok_or(DropReason::Truncated)?;
        if inner::version(inner) != Some(version) {
            return Err(DropReason::Malformed);
        }
        // Octets behind the inner packet's own length are traffic flow padding (RFC 4303 §2.7).
        let mut header = InnerHeader::parse(inner).ok_or(DropReason::Malformed)?;
        let (source, destination) = (header.source_end(), header.destination_end());
        if !self.remote.iter().any(|s| s.matches(&source))
            || !self.local.iter().any(|s| s.matches(&destination))
        {
            return Err(DropReason::Selectors);
        }
        let tos = ecn::inner(header.tos, outer_tos).ok_or(DropReason::Ecn)?;
        if tos != header.tos {
            inner::set_tos(inner, tos);
            header.tos = tos;
        }
        Ok(Opened { range: head_len..head_len + header.total_len, header })
    }

    fn replay(&self) -> DropReason {
        self.replayed.fetch_add(1, Relaxed);
        DropReason::Replay
    }

    fn with_window<T>(&self, look: impl FnOnce(&mut ReplayWindow) -> T) -> T {
        // No code under the lock can panic halfway through a change; a poisoned window is still a right one.
        look(&mut self.window.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
