//! The kernel's names for the algorithms of [`cygnet_model::suite`] (`net/xfrm/xfrm_algo.c`) and how their keys lie
//! in attributes.

use cygnet_model::SecretBytes;
use cygnet_model::suite::{Encr, EspSuite, Integ};
use netlink_packet_xfrm::constants::{XFRMA_ALG_AEAD, XFRMA_ALG_AUTH_TRUNC, XFRMA_ALG_CRYPT};

use crate::codec::{self, Writer};
use crate::error::NetlinkError;

/// Length of the name field in `struct xfrm_algo*`.
const NAME: usize = 64;
/// Of the attributes that hold keys: where the key length (in bits) is, and where the key begins.
const KEY_BITS_AT: usize = NAME;

/// The kernel's name of a cipher.
pub const fn cipher_name(encr: Encr) -> &'static str {
    match encr {
        Encr::AesGcm16_128 | Encr::AesGcm16_256 => "rfc4106(gcm(aes))",
        Encr::ChaCha20Poly1305 => "rfc7539esp(chacha20,poly1305)",
        Encr::AesCbc128 | Encr::AesCbc192 | Encr::AesCbc256 => "cbc(aes)",
        Encr::TripleDesCbc => "cbc(des3_ede)",
    }
}

/// The kernel's name of an integrity algorithm.
pub const fn integrity_name(integ: Integ) -> &'static str {
    match integ {
        Integ::HmacSha256_128 => "hmac(sha256)",
        Integ::HmacSha384_192 => "hmac(sha384)",
        Integ::HmacSha512_256 => "hmac(sha512)",
        Integ::HmacSha1_96 => "hmac(sha1)",
    }
}

/// Appends the algorithms with their keys.
///
/// # Errors
/// [`NetlinkError::Unfit`] if the lengths of the keys are not those of the suite, or an integrity algorithm is
/// missing or too many. The kernel would take such keys for another algorithm.
pub fn put(
    w: &mut Writer,
    suite: &EspSuite,
    encr_key: &SecretBytes,
    integ_key: &SecretBytes,
) -> Result<(), NetlinkError> {
    let encr = suite.encr.info();
    if encr_key.len() != suite.encr.keymat_len() {
        return Err(unfit("cipher key", encr.keyword, encr_key.len(), suite.encr.keymat_len()));
    }
    let name = name_field(cipher_name(suite.encr));
    match (suite.encr.is_aead(), suite.integ) {
        (true, None) => {
            let icv_bits = bits(encr.icv_len);
            w.attr_parts(XFRMA_ALG_AEAD, &[&name, &bits(encr_key.len()), &icv_bits, encr_key.expose()]);
        }
        (false, Some(integ)) => {
            if integ_key.len() != integ.key_len() {
                return Err(unfit("integrity key", integ.keyword(), integ_key.len(), integ.key_len()));
            }
            w.attr_parts(XFRMA_ALG_CRYPT, &[&name, &bits(encr_key.len()), encr_key.expose()]);
            let name = name_field(integrity_name(integ));
            w.attr_parts(
                XFRMA_ALG_AUTH_TRUNC,
                &[&name, &bits(integ_key.len()), &bits(integ.icv_len()), integ_key.expose()],
            );
        }
        (true, Some(_)) | (false, None) => {
            return Err(NetlinkError::Unfit(format!(
                "{} with the wrong number of integrity algorithms",
                encr.keyword
            )));
        }
    }
    Ok(())
}

fn unfit(what: &str, keyword: &str, len: usize, want: usize) -> NetlinkError {
    NetlinkError::Unfit(format!("{what} of {len} octets for {keyword}, which takes {want}"))
}

fn bits(octets: usize) -> [u8; 4] {
    u32::try_from(octets * 8).unwrap_or(0).to_ne_bytes()
}

fn name_field(name: &str) -> [u8; NAME] {
    let mut field = [0; NAME];
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    field
}

/// The name and the key in an attribute that holds a key; `None` for other attributes.
pub(crate) fn name_and_key(kind: u16, value: &[u8]) -> Option<(String, &[u8])> {
    use netlink_packet_xfrm::constants::{XFRMA_ALG_AUTH, XFRMA_ALG_COMP};
    let key_at = match kind {
        XFRMA_ALG_AEAD | XFRMA_ALG_AUTH_TRUNC => NAME + 8,
        XFRMA_ALG_CRYPT | XFRMA_ALG_AUTH | XFRMA_ALG_COMP => NAME + 4,
        _ => return None,
    };
    let bits = usize::try_from(codec::u32_at(value, KEY_BITS_AT)?).ok()?;
    let key = value.get(key_at..key_at.checked_add(bits.div_ceil(8))?)?;
    Some((codec::text(value.get(..NAME)?), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(encr: Encr, integ: Option<Integ>) -> EspSuite {
        EspSuite::plain(encr, integ, false)
    }

    #[test]
    fn gcm_is_one_attribute_with_key_and_salt() {
        let mut w = Writer::new();
        let key = SecretBytes::new((0..36).collect());
        put(&mut w, &suite(Encr::AesGcm16_256, None), &key, &SecretBytes::new(vec![])).unwrap();
        let value = codec::find(w.bytes(), XFRMA_ALG_AEAD).unwrap();
        assert_eq!((codec::u32_at(value, 64), codec::u32_at(value, 68)), (Some(288), Some(128)));
        let (name, k) = name_and_key(XFRMA_ALG_AEAD, value).unwrap();
        assert_eq!((name.as_str(), k.len()), ("rfc4106(gcm(aes))", 36));
    }

    #[test]
    fn cbc_with_sha256_is_truncated_to_128_bits() {
        // The kernel's default for hmac(sha256) without an explicit truncation is 96 bits, which no RFC has.
        let mut w = Writer::new();
        let (k, i) = (SecretBytes::new(vec![1; 32]), SecretBytes::new(vec![2; 32]));
        put(&mut w, &suite(Encr::AesCbc256, Some(Integ::HmacSha256_128)), &k, &i).unwrap();
        let value = codec::find(w.bytes(), XFRMA_ALG_AUTH_TRUNC).unwrap();
        assert_eq!((codec::u32_at(value, 64), codec::u32_at(value, 68)), (Some(256), Some(128)));
    }

    #[test]
    fn keys_of_wrong_length_are_refused_without_showing_them() {
        let key = SecretBytes::new(vec![0xAB; 32]);
        let e = put(&mut Writer::new(), &suite(Encr::AesGcm16_256, None), &key, &SecretBytes::new(vec![]))
            .unwrap_err();
        assert_eq!(e.to_string(), "cipher key of 32 octets for aes256gcm16, which takes 36");
    }
}
