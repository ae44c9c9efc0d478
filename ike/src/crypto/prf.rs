//! The pseudorandom functions and prf+ (RFC 7296 §2.13).

use cygnet_model::SecretBytes;
use cygnet_model::suite::Prf;
use ring::hmac;
use zeroize::Zeroize;

const fn algorithm(prf: Prf) -> hmac::Algorithm {
    match prf {
        Prf::HmacSha256 => hmac::HMAC_SHA256,
        Prf::HmacSha384 => hmac::HMAC_SHA384,
        Prf::HmacSha512 => hmac::HMAC_SHA512,
        Prf::HmacSha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
    }
}

/// `prf(key, part | part | …)`; [`Prf::output_len`] octets.
pub fn prf(alg: Prf, key: &[u8], parts: &[&[u8]]) -> SecretBytes {
    keyed(&hmac::Key::new(algorithm(alg), key), parts)
}

/// One application of a keyed hash; the hash is the caller's choice, which lets tests run vectors of hashes that we do
/// not negotiate.
pub(super) fn keyed(key: &hmac::Key, parts: &[&[u8]]) -> SecretBytes {
    let mut ctx = hmac::Context::with_key(key);
    for part in parts {
        ctx.update(part);
    }
    SecretBytes::copy_of(ctx.sign().as_ref())
}

/// The first `len` octets of `prf+(key, seed)`; `None` beyond the 255 blocks that prf+ defines.
pub fn prf_plus(alg: Prf, key: &[u8], seed: &[&[u8]], len: usize) -> Option<SecretBytes> {
    plus(&hmac::Key::new(algorithm(alg), key), seed, len)
}

/// prf+ over any keyed hash.
pub(super) fn plus(key: &hmac::Key, seed: &[&[u8]], len: usize) -> Option<SecretBytes> {
    // With room for the last block, so that nothing is left elsewhere.
    let mut out = Vec::with_capacity(len.checked_add(64)?);
    let mut previous = 0;
    for counter in 1..=u8::MAX {
        if out.len() >= len {
            break;
        }
        let mut ctx = hmac::Context::with_key(key);
        ctx.update(out.get(previous..).unwrap_or_default());
        seed.iter().for_each(|part| ctx.update(part));
        ctx.update(&[counter]);
        previous = out.len();
        out.extend_from_slice(ctx.sign().as_ref());
    }
    if out.len() < len {
        out.zeroize();
        return None;
    }
    let taken = SecretBytes::copy_of(out.get(..len)?);
    out.zeroize();
    Some(taken)
}
