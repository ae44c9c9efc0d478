//! The ESP packet (RFC 4303 §2): where its parts lie and how long it gets.
//!
//! ```text
//!   0        4        8        8+iv                                             len-icv      len
//!   ┌────────┬────────┬────────┬──────────────┬─────────┬─────────┬─────────────┬────────────┐
//!   │  SPI   │ seq lo │   IV   │ inner packet │ 1,2,3,… │ pad len │ next header │    ICV     │
//!   └────────┴────────┴────────┴──────────────┴─────────┴─────────┴─────────────┴────────────┘
//!   ╰───────── head ──────────╯╰───────────────── encrypted ────────────────────╯
//! ```

use cygnet_model::suite::EspSuite;

/// SPI and sequence number.
pub const HEADER_LEN: usize = 8;
/// Pad length and next header.
pub const TRAILER_LEN: usize = 2;
/// Next header of an IPv4 packet (IANA "Assigned Internet Protocol Numbers").
pub const NEXT_IPV4: u8 = 4;
/// Next header of an IPv6 packet.
pub const NEXT_IPV6: u8 = 41;
/// "No next header": a dummy packet (RFC 4303 §2.6).
pub const NEXT_NONE: u8 = 59;

/// Sizes of one suite's packets, in octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    iv_len: usize,
    icv_len: usize,
    /// What the encrypted part is a multiple of: the cipher's block, at least 4 (RFC 4303 §2.4).
    align: usize,
}

impl Layout {
    /// The layout of a suite.
    pub fn of(suite: EspSuite) -> Self {
        let info = suite.encr.info();
        Self { iv_len: info.iv_len, icv_len: suite.icv_len(), align: info.block_len.max(4) }
    }

    /// Where the inner packet begins.
    pub const fn head_len(&self) -> usize {
        HEADER_LEN + self.iv_len
    }

    /// Length of the ICV.
    pub const fn icv_len(&self) -> usize {
        self.icv_len
    }

    /// Padding after an inner packet of `inner_len` octets: the least that aligns the trailer.
    pub const fn pad_len(&self, inner_len: usize) -> usize {
        (inner_len + TRAILER_LEN).next_multiple_of(self.align) - inner_len - TRAILER_LEN
    }

    /// Length of the whole ESP packet around an inner packet of `inner_len` octets.
    pub const fn sealed_len(&self, inner_len: usize) -> usize {
        self.head_len() + inner_len + self.pad_len(inner_len) + TRAILER_LEN + self.icv_len
    }

    /// The longest inner packet whose ESP packet has at most `budget` octets.
    pub const fn max_inner(&self, budget: usize) -> usize {
        let room = budget.saturating_sub(self.head_len() + self.icv_len);
        (room - room % self.align).saturating_sub(TRAILER_LEN)
    }

    /// Whether an ESP packet of this length can exist.
    pub(crate) const fn fits(&self, len: usize) -> bool {
        match len.checked_sub(self.head_len() + self.icv_len) {
            Some(text) => text >= self.align && text.is_multiple_of(self.align),
            None => false,
        }
    }
}

/// SPI and low half of the sequence number of an ESP packet; `None` if it is shorter than that.
pub fn header(packet: &[u8]) -> Option<(u32, u32)> {
    let (spi, rest) = packet.split_first_chunk::<4>()?;
    let seq = rest.first_chunk::<4>()?;
    Some((u32::from_be_bytes(*spi), u32::from_be_bytes(*seq)))
}

/// Writes padding, pad length and next header behind an inner packet: `tail` is everything between it and the ICV.
pub(crate) fn write_trailer(tail: &mut [u8], next_header: u8) {
    let Some((pad, [pad_len, next])) = tail.split_last_chunk_mut::<TRAILER_LEN>() else { return };
    *pad_len = pad.len() as u8;
    *next = next_header;
    for (i, octet) in pad.iter_mut().enumerate() {
        *octet = i as u8 + 1;
    }
}

/// Takes the trailer off a decrypted text: length of what precedes the padding, and the next header. `None` if the pad
/// length passes the text or the padding is not 1, 2, 3, … (RFC 4303 §2.4 tells receivers to inspect it).
pub(crate) fn read_trailer(text: &[u8]) -> Option<(usize, u8)> {
    let (body, [pad_len, next]) = text.split_last_chunk::<TRAILER_LEN>()?;
    let inner_len = body.len().checked_sub(usize::from(*pad_len))?;
    let pad = body.get(inner_len..)?;
    pad.iter().zip(1..=u8::MAX).all(|(octet, want)| *octet == want).then_some((inner_len, *next))
}

#[cfg(test)]
mod tests {
    use cygnet_model::suite::{Encr, Integ};

    use super::*;

    fn layouts() -> [Layout; 3] {
        let suite = |encr, integ| Layout::of(EspSuite::plain(encr, integ, false));
        [
            suite(Encr::AesGcm16_128, None),
            suite(Encr::AesCbc256, Some(Integ::HmacSha512_256)),
            suite(Encr::AesCbc128, Some(Integ::HmacSha256_128)),
        ]
    }

    #[test]
    fn max_inner_is_the_inverse_of_sealed_len() {
        for layout in layouts() {
            for budget in 80..3000 {
                let inner = layout.max_inner(budget);
                assert!(layout.sealed_len(inner) <= budget);
                assert!(layout.sealed_len(inner + 1) > budget);
                assert!(layout.fits(layout.sealed_len(inner)));
            }
        }
    }

    #[test]
    fn trailer_round_trips_and_padding_is_inspected() {
        for pad in 0..=255usize {
            let mut text = vec![0xAA; 20 + pad + TRAILER_LEN];
            write_trailer(&mut text[20..], NEXT_IPV4);
            assert_eq!(read_trailer(&text), Some((20, NEXT_IPV4)));
            if pad > 0 {
                text[20 + pad - 1] ^= 1;
                assert_eq!(read_trailer(&text), None);
            }
        }
        assert_eq!(read_trailer(&[5, NEXT_IPV4]), None);
        assert_eq!(read_trailer(&[1]), None);
    }
}
