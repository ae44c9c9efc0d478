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
    let mut out = Vec::with_capacity(len.checked_add(64)?);
    let mut block: Option<SecretBytes> = None;
    for counter in 1..=u8::MAX {
        if out.len() >= len {
            break;
        }
        let previous = block.as_ref().map_or(&[][..], SecretBytes::expose);
        let mut parts = Vec::with_capacity(seed.len() + 2);
        parts.push(previous);
        parts.extend_from_slice(seed);
        let count = [counter];
        parts.push(&count);
        let next = keyed(key, &parts);
        out.extend_from_slice(next.expose());
        block = Some(next);
    }
    if out.len() < len {
        out.zeroize();
        return None;
    }
    let taken = SecretBytes::copy_of(out.get(..len)?);
    out.zeroize();
    Some(taken)
}
