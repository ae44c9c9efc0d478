//! The 521 bit random ECP group (group 21, RFC 5903), which ring lacks.
//!
//! Coordinates have a fixed length of 66 octets, leading zeros kept (RFC 5903 §7): 132 octets in a KE payload, and 66 of
//! shared secret, which is the x coordinate alone.

use cygnet_model::SecretBytes;
use cygnet_model::suite::Group;
use p521::elliptic_curve::ecdh::diffie_hellman;
use p521::elliptic_curve::sec1::ToSec1Point;
use p521::{PublicKey, SecretKey};

use super::Random;
use super::kex::KexError;

/// Octets of a private key.
const SCALAR_LEN: usize = 66;

/// Draws after which the random source is called broken. One draw in 2¹⁰⁰ fails when it works.
const DRAWS: usize = 8;

/// Begins an exchange.
pub(super) fn begin(random: &mut dyn Random) -> Result<(Key, Vec<u8>), KexError> {
    for _ in 0..DRAWS {
        let mut scalar = vec![0u8; SCALAR_LEN];
        random.fill(&mut scalar);
        // 521 bits: one of the first octet.
        if let Some(first) = scalar.first_mut() {
            *first &= 1;
        }
        if let Some(key) = Key::of(&SecretBytes::new(scalar)) {
            let public = key.public();
            return Ok((key, public));
        }
    }
    Err(KexError::Local)
}

/// A private key; it wipes itself.
pub(super) struct Key(SecretKey);

impl Key {
    /// The key of a scalar; `None` if it is zero or not below the order of the group.
    fn of(scalar: &SecretBytes) -> Option<Self> {
        SecretKey::from_slice(scalar.expose()).ok().map(Self)
    }

    /// x and y, as the KE payload carries them.
    fn public(&self) -> Vec<u8> {
        let point = self.0.public_key().to_sec1_point(false);
        // Behind the octet that says "uncompressed".
        point.as_bytes().get(1..).unwrap_or_default().to_vec()
    }

    pub fn finish(self, peer: &[u8]) -> Result<SecretBytes, KexError> {
        if peer.len() != Group::Ecp521.offer_len() {
            return Err(KexError::PublicLength);
        }
        let mut point = Vec::with_capacity(peer.len() + 1);
        point.push(4);
        point.extend_from_slice(peer);
        // Refuses coordinates beyond the field and points that are not on the curve (RFC 6989 §2.3).
        let peer = PublicKey::from_sec1_bytes(&point).map_err(|_| KexError::PublicValue)?;
        let shared = diffie_hellman(self.0.to_nonzero_scalar(), peer.as_affine());
        Ok(SecretBytes::copy_of(shared.raw_secret_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        text.as_bytes()
            .chunks(2)
            .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
            .collect()
    }

    fn key(scalar: &str) -> Key {
        Key::of(&SecretBytes::new(hex(scalar))).unwrap()
    }

    const I: &str = "0037ADE9 319A89F4 DABDB3EF 411AACCC A5123C61 ACAB57B5 393DCE47 608172A0 95AA85A3 0FE1C295 2C6771D9 \
        37BA9777 F5957B26 39BAB072 462F68C2 7A57382D 4A52";
    const KE_I: &str = "0015417E 84DBF28C 0AD3C278 713349DC 7DF153C8 97A1891B D98BAB43 57C9ECBE E1E3BF42 E00B8E38 0AEAE57C \
        2D107564 94188594 2AF5A7F4 601723C4 195D176C ED3E017C AE20B664 1D2EEB69 5786D8C9 46146239 D099E18E 1D5A514C \
        739D7CB4 A10AD8A7 88015AC4 05D7799D C75E7B7D 5B6CF226 1A6A7F15 07438BF0 1BEB6CA3 926F9582";
    const R: &str = "0145BA99 A847AF43 793FDD0E 872E7CDF A16BE30F DC780F97 BCCC3F07 8380201E 9C677D60 0B343757 A3BDBF2A \
        3163E4C2 F869CCA7 458AA4A4 EFFC311F 5CB15168 5EB9";
    const KE_R: &str = "00D0B397 5AC4B799 F5BEA16D 5E13E9AF 971D5E9B 984C9F39 728B5E57 39735A21 9B97C356 436ADC6E 95BB0352 \
        F6BE64A6 C2912D4E F2D0433C ED2B6171 640012D9 460F015C 68226383 956E3BD0 66E797B6 23C27CE0 EAC2F551 A10C2C72 \
        4D985207 7B87220B 6536C5C4 08A1D2AE BB8E86D6 78AE49CB 57091F47 32296579 AB44FCD1 7F0FC56A";
    const SHARED: &str = "01144C7D 79AE6956 BC8EDB8E 7C787C45 21CB086F A64407F9 7894E5E6 B2D79B04 D1427E73 CA4BAA24 \
        0A347868 59810C06 B3C715A3 A8CC3151 F2BEE417 996D19F3 DDEA";

    #[test]
    fn rfc_5903_section_8_3_is_exact_both_ways() {
        let (i, r) = (key(I), key(R));
        assert_eq!((i.public(), r.public()), (hex(KE_I), hex(KE_R)));
        assert_eq!(i.finish(&hex(KE_R)).unwrap().expose(), hex(SHARED));
        assert_eq!(r.finish(&hex(KE_I)).unwrap().expose(), hex(SHARED));
    }

    /// The x coordinates of the RFC begin with a zero octet, as every second one does with seven zero bits.
    #[test]
    fn leading_zeros_stay_in_public_values_and_secrets() {
        // The generator's own y begins with 0x01, its x with 0x00c6; a few multiples of it meet every case.
        let mut short = 0;
        for n in 1..=600u32 {
            let mut scalar = vec![0; SCALAR_LEN];
            scalar[SCALAR_LEN - 4..].copy_from_slice(&n.to_be_bytes());
            let key = Key::of(&SecretBytes::new(scalar)).unwrap();
            let public = key.public();
            assert_eq!(public.len(), 132, "{n}");
            short += usize::from(public[..2] == [0, 0] || public[66..68] == [0, 0]);
            let secret = key_one().finish(&public).unwrap();
            assert_eq!(secret.expose(), &public[..66], "the secret with key 1 is the x of the peer");
        }
        assert!(short > 0, "no coordinate with a zero octet behind the first");
    }

    fn key_one() -> Key {
        let mut scalar = vec![0; SCALAR_LEN];
        scalar[SCALAR_LEN - 1] = 1;
        Key::of(&SecretBytes::new(scalar)).unwrap()
    }

    #[test]
    fn a_point_beside_the_curve_or_without_its_zeros_makes_no_secret() {
        let good = hex(KE_R);
        for at in [1, 65, 67, 131] {
            let mut bent = good.clone();
            bent[at] ^= 1;
            assert_eq!(key(I).finish(&bent).err(), Some(KexError::PublicValue), "octet {at}");
        }
        assert_eq!(key(I).finish(&good[1..]).err(), Some(KexError::PublicLength));
        assert!(Key::of(&SecretBytes::new(vec![0; SCALAR_LEN])).is_none());
        assert!(Key::of(&SecretBytes::new(vec![0xff; SCALAR_LEN])).is_none());
    }
}
