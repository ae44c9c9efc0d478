//! Netlink attributes: a writer that appends to one buffer and a reader that walks one, both checked.
//!
//! ```text
//!  0               2               4
//!  +---------------+---------------+----------------+-----+
//!  | length (w/o   | type          | value          | pad |
//!  |  padding)     | (14 bits)     |                 | to 4|
//!  +---------------+---------------+----------------+-----+
//! ```
//! All numbers are in host order unless a field says otherwise (`linux/netlink.h`).

use zeroize::Zeroize;

const ALIGN: usize = 4;
const HEADER: usize = 4;
/// The two top bits of an attribute's type are flags (nested, network byte order).
const TYPE_MASK: u16 = 0x3FFF;

/// Rounds up to the alignment of netlink.
pub const fn aligned(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// Builds the payload of a message. The buffer has a fixed capacity, so that no octet (it may be part of a key) is
/// left behind in memory by a reallocation, and it is wiped when dropped.
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Enough for any message of ours: the largest is a policy or an SA with a 4096 packet replay window.
    pub const CAPACITY: usize = 4096;

    /// An empty payload.
    pub fn new() -> Self {
        Self { bytes: Vec::with_capacity(Self::CAPACITY) }
    }

    /// Appends raw octets and pads them.
    ///
    /// # Panics
    /// If [`Self::CAPACITY`] is exceeded: sizes are ours, not the peer's.
    pub fn raw(&mut self, bytes: &[u8]) {
        assert!(
            aligned(self.bytes.len() + bytes.len()) <= Self::CAPACITY,
            "netlink payload beyond its capacity"
        );
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// Appends an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        self.attr_parts(kind, &[value]);
    }

    /// Appends an attribute whose value is the concatenation of `parts`.
    pub fn attr_parts(&mut self, kind: u16, parts: &[&[u8]]) {
        let len = HEADER + parts.iter().map(|p| p.len()).sum::<usize>();
        assert!(self.bytes.len() + aligned(len) <= Self::CAPACITY, "netlink payload beyond its capacity");
        let len = u16::try_from(len).expect("bounded by the capacity");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// Appends a 32 bit attribute in host order.
    pub fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Appends a 64 bit attribute in host order.
    pub fn attr_u64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Appends a text attribute with its final NUL.
    pub fn attr_text(&mut self, kind: u16, text: &str) {
        self.attr_parts(kind, &[text.as_bytes(), &[0]]);
    }

    /// Appends an attribute that holds what `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attr(kind, &[]);
        fill(self);
        let len = u16::try_from(self.bytes.len() - start).expect("bounded by the capacity");
        if let Some(field) = self.bytes.get_mut(start..start + 2) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// The octets so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writer({} octets)", self.bytes.len())
    }
}

/// The attributes in `bytes`, in order. A broken length ends the walk: what follows cannot be located.
pub fn attrs(bytes: &[u8]) -> Attrs<'_> {
    Attrs { rest: bytes }
}

/// See [`attrs`].
#[derive(Clone)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, kind) = (u16_at(self.rest, 0)?, u16_at(self.rest, 2)?);
        let value = self.rest.get(HEADER..usize::from(len))?;
        self.rest = self.rest.get(aligned(usize::from(len))..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    }
}

/// The value of the first attribute of a type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// An octet at an offset.
pub fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// A 16 bit number in host order at an offset.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// A 32 bit number in host order at an offset.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// A 64 bit number in host order at an offset.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// A text that ends at its first NUL, or at its end; control characters are replaced, since it may be logged.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default())
        .chars()
        .map(|c| if c.is_control() { '\u{FFFD}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let mut w = Writer::new();
        w.attr(1, &[0xAA]);
        w.nest(2, |w| w.attr_u32(3, 7));
        assert_eq!(w.bytes(), [5, 0, 1, 0, 0xAA, 0, 0, 0, 12, 0, 2, 0, 8, 0, 3, 0, 7, 0, 0, 0]);
        let inner = find(w.bytes(), 2).unwrap();
        assert_eq!(find(inner, 3).and_then(|v| u32_at(v, 0)), Some(7));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(list in prop::collection::vec((0u16..0x3FFF, prop::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let mut w = Writer::new();
            for (kind, value) in &list {
                w.attr(*kind, value);
            }
            let back: Vec<_> = attrs(w.bytes()).map(|(k, v)| (k, v.to_vec())).collect();
            prop_assert_eq!(back, list);
        }

        #[test]
        fn any_octets_are_walked_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(attrs(&bytes).count() <= 50);
        }
    }
}
