//! Protection of one direction of an IKE SA: the SK and SKF payloads (RFC 7296 §3.14, RFC 5282, RFC 7634).
//!
//! ```text
//!  | IKE header … SK generic header (… SKF header) |   IV   | encrypted: payloads, padding, pad length |  ICV  |
//!  |<------------ additional data (AEAD) --------->|
//!  |<------------------------ covered by the HMAC (CBC) ---------------------------->|
//! ```

use aes::{Aes128, Aes192, Aes256};
use cipher::{
    Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, BlockSizeUser,
    KeyInit, KeyIvInit,
};
use cygnet_model::SecretBytes;
use cygnet_model::suite::{Encr, Integ};
use des::TdesEde3;
use ring::{aead, hmac};
use subtle::ConstantTimeEq;

use super::Random;

/// The integrity check failed, or the plaintext inside is not formed as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenError;

/// One direction's cipher. A key belongs to one direction of one SA; the sending side counts its IVs here.
pub enum SkCipher {
    /// Combined mode; the IV is a counter, so it never repeats under the key (RFC 5282 §3.1).
    Aead {
        /// The algorithm.
        algorithm: &'static aead::Algorithm,
        /// Its key. Expanded, it is fifteen times as large, and an IKE SA has a message every few seconds at most: so it is
        /// expanded for each of them.
        key: SecretBytes,
        /// Salt in front of the IV.
        salt: [u8; 4],
        /// IVs that were not used yet.
        ivs: Ivs,
    },
    /// CBC with HMAC, encrypt then MAC.
    Cbc {
        /// The block cipher.
        encr: Encr,
        /// Its key.
        key: SecretBytes,
        /// MAC key.
        mac: Box<hmac::Key>,
        /// Algorithm of the MAC.
        integ: Integ,
    },
}

/// The IVs of one key: a counter that ends before it can come round.
#[derive(Clone, Copy, Debug)]
pub struct Ivs {
    next: u64,
    left: u64,
}

impl Ivs {
    /// Half of all values. A counter may begin anywhere and pass zero, since it never reaches its beginning again.
    const MOST: u64 = 1 << 63;

    /// Those of a fresh key.
    pub const fn fresh() -> Self {
        Self { next: 0, left: Self::MOST }
    }

    /// Those of a key under which an earlier process has sealed messages. Which IVs it used is not known for sure: what was
    /// kept may be older than its last message. A random beginning meets them with a probability of (used + to be used) /
    /// 2⁶⁴, which message IDs keep below 2⁻²⁴ in theory; it is 2⁻⁴³ for a million messages each.
    pub fn resumed(random: &mut dyn Random) -> Self {
        Self { next: random.u64(), left: Self::MOST }
    }

    /// The next one; `None` when they are used up.
    fn draw(&mut self) -> Option<[u8; 8]> {
        self.left = self.left.checked_sub(1)?;
        let iv = self.next.to_be_bytes();
        self.next = self.next.wrapping_add(1);
        Some(iv)
    }

    /// Leaves so many, for tests that look at the end.
    #[cfg(test)]
    pub(super) const fn leave(&mut self, left: u64) {
        self.left = left;
    }
}

impl SkCipher {
    /// Goes on with a key under which messages were sealed before.
    pub fn resume(&mut self, random: &mut dyn Random) {
        // The IVs of the other modes are random in any case.
        if let Self::Aead { ivs, .. } = self {
            *ivs = Ivs::resumed(random);
        }
    }

    /// Takes the keys of one direction; `None` if their lengths do not fit the algorithms.
    pub fn new(
        encr: Encr,
        integ: Option<Integ>,
        encr_key: &SecretBytes,
        integ_key: &SecretBytes,
    ) -> Option<Self> {
        let algorithm = match encr {
            Encr::AesGcm16_128 => &aead::AES_128_GCM,
            Encr::AesGcm16_256 => &aead::AES_256_GCM,
            Encr::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
            Encr::AesCbc128 | Encr::AesCbc192 | Encr::AesCbc256 | Encr::TripleDesCbc => {
                let integ = integ?;
                let algorithm = match integ {
                    Integ::HmacSha256_128 => hmac::HMAC_SHA256,
                    Integ::HmacSha384_192 => hmac::HMAC_SHA384,
                    Integ::HmacSha512_256 => hmac::HMAC_SHA512,
                    Integ::HmacSha1_96 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
                };
                let fits = encr_key.len() == encr.keymat_len() && integ_key.len() == integ.key_len();
                let mac = Box::new(hmac::Key::new(algorithm, integ_key.expose()));
                return fits.then(|| Self::Cbc { encr, key: encr_key.duplicate(), mac, integ });
            }
        };
        let (key, salt) = encr_key.expose().split_at_checked(encr.info().key_len)?;
        expanded(algorithm, key)?;
        let (key, salt) = (SecretBytes::copy_of(key), salt.try_into().ok()?);
        Some(Self::Aead { algorithm, key, salt, ivs: Ivs::fresh() })
    }

    /// Octets that [`SkCipher::seal`] adds to `len` octets of payloads: IV, padding, pad length and ICV.
    pub fn overhead(&self, len: usize) -> usize {
        match self {
            Self::Aead { .. } => 8 + 1 + 16,
            Self::Cbc { encr, integ, .. } => {
                let info = encr.info();
                info.iv_len + padding(len, info.block_len) + 1 + integ.icv_len()
            }
        }
    }

    /// Appends IV, ciphertext and ICV of `plain` to `message`, whose octets so far are authenticated too. All length
    /// fields in `message` must already count what is appended. `None` when the IVs of the key are used up.
    #[must_use]
    pub fn seal(&mut self, message: &mut Vec<u8>, plain: &[u8], random: &mut dyn Random) -> Option<()> {
        let aad_len = message.len();
        match self {
            Self::Aead { algorithm, key, salt, ivs } => {
                let key = expanded(algorithm, key.expose())?;
                let iv = ivs.draw()?;
                message.extend_from_slice(&iv);
                let start = message.len();
                message.extend_from_slice(plain);
                message.push(0);
                let (aad, rest) = message.split_at_mut_checked(aad_len)?;
                let body = rest.get_mut(start - aad_len..)?;
                let tag =
                    key.seal_in_place_separate_tag(nonce(*salt, iv), aead::Aad::from(&*aad), body).ok()?;
                message.extend_from_slice(tag.as_ref());
            }
            Self::Cbc { encr, key, mac, integ } => {
                let mut iv = vec![0u8; encr.info().iv_len];
                random.fill(&mut iv);
                message.extend_from_slice(&iv);
                let start = message.len();
                message.extend_from_slice(plain);
                let pad = padding(plain.len(), encr.info().block_len);
                message.resize(message.len() + pad, 0);
                message.push(u8::try_from(pad).ok()?);
                cbc_encrypt(*encr, key.expose(), &iv, message.get_mut(start..)?)?;
                let tag = hmac::sign(mac, message);
                message.extend_from_slice(tag.as_ref().get(..integ.icv_len())?);
            }
        }
        Some(())
    }

    /// Opens `sealed` (IV, ciphertext, ICV), which in the message follows `aad`. Returns the payloads without padding.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut plain = match self {
            Self::Aead { algorithm, key, salt, .. } => {
                let key = expanded(algorithm, key.expose()).ok_or(OpenError)?;
                let (iv, body) = sealed.split_first_chunk::<8>().ok_or(OpenError)?;
                let mut body = body.to_vec();
                let len = key
                    .open_in_place(nonce(*salt, *iv), aead::Aad::from(aad), &mut body)
                    .map_err(|_| OpenError)?
                    .len();
                body.truncate(len);
                body
            }
            Self::Cbc { encr, key, mac, integ } => {
                let split = sealed.len().checked_sub(integ.icv_len()).ok_or(OpenError)?;
                let (covered, icv) = sealed.split_at_checked(split).ok_or(OpenError)?;
                let mut ctx = hmac::Context::with_key(mac);
                ctx.update(aad);
                ctx.update(covered);
                let tag = ctx.sign();
                let want = tag.as_ref().get(..integ.icv_len()).ok_or(OpenError)?;
                if !bool::from(want.ct_eq(icv)) {
                    return Err(OpenError);
                }
                let (iv, body) = covered.split_at_checked(encr.info().iv_len).ok_or(OpenError)?;
                let mut body = body.to_vec();
                cbc_decrypt(*encr, key.expose(), iv, &mut body).ok_or(OpenError)?;
                body
            }
        };
        let pad = usize::from(*plain.last().ok_or(OpenError)?);
        let len = plain.len().checked_sub(pad + 1).ok_or(OpenError)?;
        plain.truncate(len);
        Ok(plain)
    }
}

/// A key as its algorithm works with it; `None` if its length is not the algorithm's.
fn expanded(algorithm: &'static aead::Algorithm, key: &[u8]) -> Option<aead::LessSafeKey> {
    Some(aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, key).ok()?))
}

fn nonce(salt: [u8; 4], iv: [u8; 8]) -> aead::Nonce {
    let [a, b, c, d] = salt;
    let [e, f, g, h, i, j, k, l] = iv;
    aead::Nonce::assume_unique_for_key([a, b, c, d, e, f, g, h, i, j, k, l])
}

/// Octets of padding that make `len` octets and the pad length whole blocks.
const fn padding(len: usize, block: usize) -> usize {
    (block - (len + 1) % block) % block
}

/// Splits whole blocks; `None` if octets are left over or there are none.
fn blocks<C: BlockSizeUser>(data: &mut [u8]) -> Option<&mut [Block<C>]> {
    let (blocks, rest) = Block::<C>::slice_as_chunks_mut(data);
    (rest.is_empty() && !blocks.is_empty()).then_some(blocks)
}

fn cbc_encrypt(encr: Encr, key: &[u8], iv: &[u8], data: &mut [u8]) -> Option<()> {
    fn with<C: BlockCipherEncrypt + KeyInit>(key: &[u8], iv: &[u8], data: &mut [u8]) -> Option<()> {
        cbc::Encryptor::<C>::new_from_slices(key, iv).ok()?.encrypt_blocks(blocks::<C>(data)?);
        Some(())
    }
    match encr {
        Encr::AesCbc128 => with::<Aes128>(key, iv, data),
        Encr::AesCbc192 => with::<Aes192>(key, iv, data),
        Encr::AesCbc256 => with::<Aes256>(key, iv, data),
        Encr::TripleDesCbc => with::<TdesEde3>(key, iv, data),
        Encr::AesGcm16_128 | Encr::AesGcm16_256 | Encr::ChaCha20Poly1305 => None,
    }
}

fn cbc_decrypt(encr: Encr, key: &[u8], iv: &[u8], data: &mut [u8]) -> Option<()> {
    fn with<C: BlockCipherDecrypt + KeyInit>(key: &[u8], iv: &[u8], data: &mut [u8]) -> Option<()> {
        cbc::Decryptor::<C>::new_from_slices(key, iv).ok()?.decrypt_blocks(blocks::<C>(data)?);
        Some(())
    }
    match encr {
        Encr::AesCbc128 => with::<Aes128>(key, iv, data),
        Encr::AesCbc192 => with::<Aes192>(key, iv, data),
        Encr::AesCbc256 => with::<Aes256>(key, iv, data),
        Encr::TripleDesCbc => with::<TdesEde3>(key, iv, data),
        Encr::AesGcm16_128 | Encr::AesGcm16_256 | Encr::ChaCha20Poly1305 => None,
    }
}
