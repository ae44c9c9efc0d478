//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept in native byte order: ones' complement addition does not care (RFC 1071 §2.B), as long as fields are
//! read and written in native order too. Only numbers that are *meant* (lengths) are brought into network order first.

/// A running ones' complement sum, in native byte order and not yet folded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds octets. Only the last piece of a sum may have an odd length.
    #[must_use]
    pub fn octets(self, bytes: &[u8]) -> Self {
        // Choosing the function costs as much as summing a header does.
        let sum = if bytes.len() < WIDE { lanes(bytes) } else { wide_lanes(bytes) };
        Self(self.0 + sum)
    }

    /// Adds a number that stands in the packet in network order.
    #[must_use]
    pub fn plus(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// Adds a 16 bit field as it stands in the packet.
    #[must_use]
    pub fn field(self, field: [u8; 2]) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(field)))
    }

    /// Takes a number away again.
    #[must_use]
    pub fn minus(self, value: u16) -> Self {
        Self(self.0 + u64::from(!value.to_be()))
    }

    /// The sum folded to 16 bits, as it stands in a packet: what a *partial* checksum field holds.
    pub fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// The checksum field that makes the sum come out right.
    pub fn checksum(self) -> [u8; 2] {
        let [a, b] = self.folded();
        [!a, !b]
    }

    /// Whether the sum, the checksum field included, shows an undamaged packet.
    pub fn is_valid(self) -> bool {
        self.folded() == [0xFF, 0xFF]
    }
}

/// From this length on, in octets, the processor's widest vectors pay.
const WIDE: usize = 128;

/// The sum of 16 bit words, not folded, for what processors have beyond the vectors that every x86-64 has.
#[multiversion::multiversion(targets("x86_64+avx2"))]
fn wide_lanes(bytes: &[u8]) -> u64 {
    if multiversion::target::target_cfg_f!(target_feature = "avx2") {
        // Eight lanes of 32 bits into 64 bit sums. No lane can overflow below 16 GiB; a check for it would keep compilers
        // from turning this into vector additions.
        sum_with(bytes, |lane, word| lane.wrapping_add(word))
    } else {
        // Narrower vectors have no widening addition: one number after the other takes half the time.
        lanes(bytes)
    }
}

/// The sum of 16 bit words, not folded.
fn lanes(bytes: &[u8]) -> u64 {
    sum_with(bytes, |lane, word| lane + word)
}

#[inline(always)]
fn sum_with(bytes: &[u8], add: impl Fn(u64, u64) -> u64) -> u64 {
    let mut lanes = [0u64; 8];
    let (chunks, rest) = bytes.as_chunks::<32>();
    for chunk in chunks {
        let (words, _) = chunk.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = add(*lane, u64::from(u32::from_ne_bytes(*word)));
        }
    }
    let mut sum = lanes.into_iter().map(|lane| (lane & 0xFFFF_FFFF) + (lane >> 32)).sum::<u64>();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        sum += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = rest {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

/// The pseudo header of TCP and UDP: addresses, protocol and length (RFC 9293 §3.1, RFC 8200 §8.1). `addresses` are the
/// octets of source and destination as they stand in the IP header.
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: u16) -> Sum {
    Sum::default().octets(addresses).plus(u16::from(protocol)).plus(len)
}

/// A checksum field after one 16 bit word that it covers changed from `old` to `new` (RFC 1624, equation 3).
pub fn update(field: [u8; 2], old: [u8; 2], new: [u8; 2]) -> [u8; 2] {
    let [a, b] = field;
    let [c, d] = old;
    Sum::default().field([!a, !b]).field([!c, !d]).field(new).checksum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 by the letter.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn example_of_rfc_1071() {
        let sum = Sum::default().octets(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn sums_agree_with_the_naive_one(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let fast = u16::from_be_bytes(Sum::default().octets(&bytes).checksum());
            let slow = naive(&bytes);
            // 0x0000 and 0xFFFF are the same number.
            prop_assert!(fast == slow || (fast ^ slow == 0xFFFF && (fast == 0 || slow == 0)), "{fast:x} {slow:x}");
        }

        #[test]
        fn update_equals_computing_anew(mut bytes in prop::collection::vec(1u8..255, 40), new in 1u16..0xFFFF) {
            let before = Sum::default().octets(&bytes).checksum();
            let old = [bytes[10], bytes[11]];
            bytes[10..12].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new.to_be_bytes()), Sum::default().octets(&bytes).checksum());
        }

        #[test]
        fn sub_takes_back_what_add_added(bytes in prop::collection::vec(1u8..255, 40), n in 1u16..0xFFFF) {
            let sum = Sum::default().octets(&bytes);
            prop_assert_eq!(sum.plus(n).minus(n).checksum(), sum.checksum());
        }
    }
}
