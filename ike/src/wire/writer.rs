//! Builds messages: headers, payload chains and lengths that are patched once they are known.

use super::header::{HEADER_LEN, Header};
use super::iana::PayloadType;

/// A message or payload chain under construction.
///
/// The "next payload" octet of each payload is written when its successor begins, so callers just append payloads in
/// order.
#[derive(Default)]
pub struct Writer {
    out: Vec<u8>,
    /// Where the type of the next payload goes; `None` before the first payload of a bare chain.
    next_at: Option<usize>,
    first: PayloadTypeCell,
}

/// Type of a bare chain's first payload.
#[derive(Clone, Copy)]
struct PayloadTypeCell(PayloadType);

impl Default for PayloadTypeCell {
    fn default() -> Self {
        Self(PayloadType::NONE)
    }
}

impl Writer {
    /// A chain without IKE header, as goes inside an SK payload.
    pub fn chain() -> Self {
        Self::default()
    }

    /// A message: the header comes first, its length is patched by [`Writer::finish`].
    pub fn message(header: &Header) -> Self {
        let mut out = Vec::with_capacity(512);
        header.encode(&mut out);
        Self { out, next_at: Some(16), first: PayloadTypeCell::default() }
    }

    /// Appends a payload whose body is written by `body`.
    pub fn payload(&mut self, kind: PayloadType, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.begin(kind);
        body(&mut self.out);
        let len = self.out.len().saturating_sub(start);
        patch_u16(&mut self.out, start.saturating_add(2), len);
    }

    /// Links a new payload and writes its generic header with length zero; returns where it starts.
    fn begin(&mut self, kind: PayloadType) -> usize {
        match self.next_at {
            Some(at) => {
                if let Some(slot) = self.out.get_mut(at) {
                    *slot = kind.0;
                }
            }
            None => self.first = PayloadTypeCell(kind),
        }
        let start = self.out.len();
        self.out.extend_from_slice(&[0, 0, 0, 0]);
        self.next_at = Some(start);
        start
    }

    /// Type of the first payload of a bare chain.
    pub const fn first(&self) -> PayloadType {
        self.first.0
    }

    /// The chain's octets.
    pub fn into_chain(self) -> Vec<u8> {
        self.out
    }

    /// The message with its length patched.
    pub fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.out.len()).unwrap_or(u32::MAX);
        if let Some(slot) = self.out.get_mut(HEADER_LEN - 4..HEADER_LEN) {
            slot.copy_from_slice(&len.to_be_bytes());
        }
        self.out
    }
}

/// Writes `value` into two octets at `at`. Our own payloads stay far below 64 KiB.
pub(super) fn patch_u16(out: &mut [u8], at: usize, value: usize) {
    if let Some(slot) = out.get_mut(at..at.saturating_add(2)) {
        slot.copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes());
    }
}
