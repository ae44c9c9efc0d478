//! A hash function for keys that nobody outside chooses (the configured networks), in a few cycles.

use std::hash::Hasher;

/// An odd constant with well mixed bits: 2⁶⁴ divided by the golden ratio.
const ODD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Mixes 128 bits into a state.
pub(super) fn mix(state: u64, value: u128) -> u64 {
    let bytes = value.to_le_bytes();
    let (low, high) = bytes.split_at(8);
    let word = |half: &[u8]| half.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
    let folded = |a: u64| {
        let product = u128::from(a) * u128::from(ODD);
        let bytes = product.to_le_bytes();
        let (low, high) = bytes.split_at(8);
        word(low) ^ word(high)
    };
    folded(folded(state.rotate_left(23) ^ word(low)) ^ word(high).rotate_left(31) ^ ODD)
}

/// See the [module](self).
#[derive(Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(16) {
            let value = chunk.iter().fold(0, |value, octet| value << 8 | u128::from(*octet));
            self.write_u128(value);
        }
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = mix(self.0, value);
    }
}
