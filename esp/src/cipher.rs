//! The ciphers of ESP over one packet, in place: AES-GCM (RFC 4106), ChaCha20-Poly1305 (RFC 7634), AES-CBC (RFC 3602) and
//! triple DES in CBC mode (RFC 2451), with HMAC-SHA2 (RFC 4868) or HMAC-SHA1 (RFC 2404).
//!
//! IVs are made from the 64 bit sequence number, which the SA never gives out twice: for the AEADs it *is* the IV
//! (RFC 4106 §3.1, RFC 7634 §2), for CBC it is encrypted under a key of its own, so that nobody can foresee it (RFC 3602
//! §3). Two hosts that share an SA therefore repeat no IV as long as they share no sequence number.

use std::hint::black_box;

use aes::{Aes128, Aes192, Aes256};
use cbc::{Decryptor, Encryptor};
use cipher::{
    Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, BlockSizeUser,
    InnerIvInit, KeyInit,
};
use cygnet_model::SecretBytes;
use cygnet_model::suite::{Encr, EspSuite, Integ};
use des::TdesEde3;
use ring::{aead, hmac};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::error::{DropReason, SaError};
use crate::packet::HEADER_LEN;

#[cfg(test)]
mod tests;

const SALT_LEN: usize = 4;

/// One SA's keys, ready for use.
pub(crate) enum Cipher {
    Aead { key: Box<aead::LessSafeKey>, salt: [u8; SALT_LEN], esn: bool },
    Cbc { key: Box<CbcKey>, iv_key: Box<IvKey>, mac: hmac::Key, icv_len: usize, esn: bool },
}

pub(crate) enum CbcKey {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
    TripleDes(TdesEde3),
}

/// What turns a sequence number into an IV: a permutation of all blocks, so that no IV comes twice.
pub(crate) enum IvKey {
    Aes(Aes128),
    TripleDes(TdesEde3),
}

impl Cipher {
    pub fn new(suite: EspSuite, encr: &SecretBytes, integ: &SecretBytes) -> Result<Self, SaError> {
        let (key, salt) = split_key(suite.encr, encr)?;
        let odd_suite = || SaError::Suite(suite.to_string());
        let aead = |algorithm| -> Result<Self, SaError> {
            if suite.integ.is_some() {
                return Err(odd_suite());
            }
            if !integ.is_empty() {
                return Err(SaError::KeyLength { what: "integrity", want: 0, got: integ.len() });
            }
            let key = aead::UnboundKey::new(algorithm, key).map_err(|_| odd_suite())?;
            let salt = salt.try_into().map_err(|_| odd_suite())?;
            Ok(Self::Aead { key: Box::new(aead::LessSafeKey::new(key)), salt, esn: suite.esn })
        };
        let cbc = |key| -> Result<Self, SaError> {
            let algorithm = suite.integ.ok_or_else(odd_suite)?;
            if integ.len() != algorithm.key_len() {
                let (want, got) = (algorithm.key_len(), integ.len());
                return Err(SaError::KeyLength { what: "integrity", want, got });
            }
            Ok(Self::Cbc {
                key: Box::new(key),
                iv_key: Box::new(IvKey::of(suite.encr, encr).ok_or_else(odd_suite)?),
                mac: hmac::Key::new(mac_algorithm(algorithm), integ.expose()),
                icv_len: algorithm.icv_len(),
                esn: suite.esn,
            })
        };
        match suite.encr {
            Encr::AesGcm16_128 => aead(&aead::AES_128_GCM),
            Encr::AesGcm16_256 => aead(&aead::AES_256_GCM),
            Encr::ChaCha20Poly1305 => aead(&aead::CHACHA20_POLY1305),
            Encr::AesCbc128 => cbc(CbcKey::Aes128(Aes128::new_from_slice(key).map_err(|_| odd_suite())?)),
            Encr::AesCbc192 => cbc(CbcKey::Aes192(Aes192::new_from_slice(key).map_err(|_| odd_suite())?)),
            Encr::AesCbc256 => cbc(CbcKey::Aes256(Aes256::new_from_slice(key).map_err(|_| odd_suite())?)),
            Encr::TripleDesCbc => {
                cbc(CbcKey::TripleDes(TdesEde3::new_from_slice(key).map_err(|_| odd_suite())?))
            }
        }
    }

    /// Seals a packet laid out by [`crate::Layout`] whose header and plain text with trailer are in place: writes IV
    /// and ICV and encrypts. `seq` must never have been used with this key.
    pub fn seal(&self, seq: u64, packet: &mut [u8]) -> Result<(), DropReason> {
        match self {
            Self::Aead { .. } => self.seal_with_iv(seq, &seq.to_be_bytes(), packet),
            Self::Cbc { iv_key, .. } => match &**iv_key {
                IvKey::Aes(key) => {
                    let mut iv = Block::<Aes128>::from(u128::from(seq).to_be_bytes());
                    key.encrypt_block(&mut iv);
                    self.seal_with_iv(seq, &iv, packet)
                }
                IvKey::TripleDes(key) => {
                    let mut iv = Block::<TdesEde3>::from(seq.to_be_bytes());
                    key.encrypt_block(&mut iv);
                    self.seal_with_iv(seq, &iv, packet)
                }
            },
        }
    }

    fn seal_with_iv(&self, seq: u64, iv: &[u8], packet: &mut [u8]) -> Result<(), DropReason> {
        match self {
            Self::Aead { key, salt, esn } => {
                let (head, rest) = split(packet, HEADER_LEN)?;
                let (iv_field, rest) = rest.split_first_chunk_mut::<8>().ok_or(DropReason::Truncated)?;
                iv_field.copy_from_slice(iv);
                let (text, icv) = split_end(rest, aead::MAX_TAG_LEN)?;
                let nonce = nonce(salt, *iv_field);
                let tag = key.seal_in_place_separate_tag(nonce, aad(head, seq, *esn)?.as_aad(), text);
                // ring refuses only texts beyond the cipher's own limit of gigabytes.
                icv.copy_from_slice(tag.map_err(|_| DropReason::TooBig)?.as_ref());
            }
            Self::Cbc { key, mac, icv_len, esn, .. } => {
                let (signed, icv) = split_end(packet, *icv_len)?;
                let (_, rest) = split(signed, HEADER_LEN)?;
                let (iv_field, text) = split(rest, key.block_len())?;
                iv_field.copy_from_slice(iv);
                key.encrypt(iv, text)?;
                copy_truncated(icv, &sign(mac, signed, seq, *esn))?;
            }
        }
        Ok(())
    }

    /// Verifies a packet and decrypts it; the plain text with trailer is then where the cipher text was, and its length
    /// comes back. Nothing of the packet may be used after an error.
    pub fn open(&self, seq: u64, packet: &mut [u8]) -> Result<usize, DropReason> {
        match self {
            Self::Aead { key, salt, esn } => {
                let (head, rest) = split(packet, HEADER_LEN)?;
                let (iv, text) = rest.split_first_chunk_mut::<8>().ok_or(DropReason::Truncated)?;
                let text = key
                    .open_in_place(nonce(salt, *iv), aad(head, seq, *esn)?.as_aad(), text)
                    .map_err(|_| DropReason::Integrity)?;
                Ok(text.len())
            }
            Self::Cbc { key, mac, icv_len, esn, .. } => {
                let (signed, icv) = split_end(packet, *icv_len)?;
                let want = sign(mac, signed, seq, *esn);
                let want = want.as_ref().get(..*icv_len).ok_or(DropReason::Truncated)?;
                if !bool::from(want.ct_eq(icv)) {
                    return Err(DropReason::Integrity);
                }
                let (_, rest) = split(signed, HEADER_LEN)?;
                let (iv, text) = split(rest, key.block_len())?;
                key.decrypt(iv, text)?;
                Ok(text.len())
            }
        }
    }
}

/// Keys of ended SAs leave no copy on the heap. The keys of `aes` and `des` wipe themselves; those of `ring` cannot be wiped, but
/// overwritten by others. (Copies that were on the stack while a key was made are beyond reach.)
impl Drop for Cipher {
    fn drop(&mut self) {
        self.wipe();
        match self {
            Self::Aead { key, .. } => _ = black_box(&**key),
            Self::Cbc { mac, .. } => _ = black_box(&*mac),
        }
    }
}

impl Cipher {
    /// Puts keys of zeros in the place of those of `ring`.
    fn wipe(&mut self) {
        const NOTHING: [u8; 64] = [0; 64];
        match self {
            Self::Aead { key, salt, .. } => {
                let nothing = NOTHING.get(..key.algorithm().key_len()).unwrap_or(&NOTHING);
                if let Ok(nothing) = aead::UnboundKey::new(key.algorithm(), nothing) {
                    **key = aead::LessSafeKey::new(nothing);
                }
                salt.zeroize();
            }
            Self::Cbc { mac, .. } => *mac = hmac::Key::new(mac.algorithm(), &NOTHING),
        }
    }
}

impl CbcKey {
    /// Octets of a block, and of an IV.
    const fn block_len(&self) -> usize {
        match self {
            Self::Aes128(_) | Self::Aes192(_) | Self::Aes256(_) => 16,
            Self::TripleDes(_) => 8,
        }
    }

    fn encrypt(&self, iv: &[u8], text: &mut [u8]) -> Result<(), DropReason> {
        match self {
            Self::Aes128(k) => encrypt(k, iv, text),
            Self::Aes192(k) => encrypt(k, iv, text),
            Self::Aes256(k) => encrypt(k, iv, text),
            Self::TripleDes(k) => encrypt(k, iv, text),
        }
    }

    fn decrypt(&self, iv: &[u8], text: &mut [u8]) -> Result<(), DropReason> {
        match self {
            Self::Aes128(k) => decrypt(k, iv, text),
            Self::Aes192(k) => decrypt(k, iv, text),
            Self::Aes256(k) => decrypt(k, iv, text),
            Self::TripleDes(k) => decrypt(k, iv, text),
        }
    }
}

fn encrypt<C: BlockCipherEncrypt>(key: &C, iv: &[u8], text: &mut [u8]) -> Result<(), DropReason> {
    let iv = Block::<C>::try_from(iv).map_err(|_| DropReason::Truncated)?;
    Encryptor::<&C>::inner_iv_init(key, &iv).encrypt_blocks(whole_blocks::<C>(text)?);
    Ok(())
}

fn decrypt<C: BlockCipherDecrypt>(key: &C, iv: &[u8], text: &mut [u8]) -> Result<(), DropReason> {
    let iv = Block::<C>::try_from(iv).map_err(|_| DropReason::Truncated)?;
    Decryptor::<&C>::inner_iv_init(key, &iv).decrypt_blocks(whole_blocks::<C>(text)?);
    Ok(())
}

fn whole_blocks<C: BlockSizeUser>(text: &mut [u8]) -> Result<&mut [Block<C>], DropReason> {
    match Block::<C>::slice_as_chunks_mut(text) {
        (blocks, []) => Ok(blocks),
        _ => Err(DropReason::Truncated),
    }
}

/// The cipher key and the salt behind it.
fn split_key(encr: Encr, keymat: &SecretBytes) -> Result<(&[u8], &[u8]), SaError> {
    let (want, got) = (encr.keymat_len(), keymat.len());
    let bad = SaError::KeyLength { what: "cipher", want, got };
    if want != got {
        return Err(bad);
    }
    keymat.expose().split_at_checked(encr.info().key_len).ok_or(bad)
}

impl IvKey {
    /// The key that encrypts sequence numbers into CBC IVs. It must be another than that of the packets: whoever could
    /// choose a plain text block could else compute an IV ahead of time.
    fn of(cipher: Encr, encr: &SecretBytes) -> Option<Self> {
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, encr.expose()), b"cygnet ESP CBC IV");
        match cipher {
            Encr::TripleDesCbc => {
                TdesEde3::new_from_slice(derived.as_ref().first_chunk::<24>()?).ok().map(Self::TripleDes)
            }
            _ => Aes128::new_from_slice(derived.as_ref().first_chunk::<16>()?).ok().map(Self::Aes),
        }
    }
}

const fn mac_algorithm(integ: Integ) -> hmac::Algorithm {
    match integ {
        Integ::HmacSha256_128 => hmac::HMAC_SHA256,
        Integ::HmacSha384_192 => hmac::HMAC_SHA384,
        Integ::HmacSha512_256 => hmac::HMAC_SHA512,
        Integ::HmacSha1_96 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
    }
}

/// The MAC over header, IV and cipher text; with ESN the high half of the sequence number follows unsent (RFC 4303
/// §2.2.1).
fn sign(mac: &hmac::Key, signed: &[u8], seq: u64, esn: bool) -> hmac::Tag {
    let mut context = hmac::Context::with_key(mac);
    context.update(signed);
    if esn {
        context.update(&high_half(seq));
    }
    context.sign()
}

fn high_half(seq: u64) -> [u8; 4] {
    ((seq >> 32) as u32).to_be_bytes()
}

fn nonce(salt: &[u8; SALT_LEN], iv: [u8; 8]) -> aead::Nonce {
    let mut nonce = [0; SALT_LEN + 8];
    let (first, second) = nonce.split_at_mut(SALT_LEN);
    first.copy_from_slice(salt);
    second.copy_from_slice(&iv);
    aead::Nonce::assume_unique_for_key(nonce)
}

/// Additional data of the AEADs: SPI and sequence number, all 64 bits of it with ESN (RFC 4106 §5).
struct Aad {
    octets: [u8; 12],
    len: usize,
}

impl Aad {
    fn as_aad(&self) -> aead::Aad<&[u8]> {
        aead::Aad::from(self.octets.get(..self.len).unwrap_or(&self.octets))
    }
}

fn aad(head: &[u8], seq: u64, esn: bool) -> Result<Aad, DropReason> {
    let (spi, low) = head.split_at_checked(4).ok_or(DropReason::Truncated)?;
    let mut octets = [0; 12];
    let mut len = 0;
    let high = high_half(seq);
    let parts: [&[u8]; 3] = [spi, if esn { &high } else { &[] }, low];
    for part in parts {
        let field = octets.get_mut(len..len + part.len()).ok_or(DropReason::Truncated)?;
        field.copy_from_slice(part);
        len += part.len();
    }
    Ok(Aad { octets, len })
}

fn split(bytes: &mut [u8], at: usize) -> Result<(&mut [u8], &mut [u8]), DropReason> {
    bytes.split_at_mut_checked(at).ok_or(DropReason::Truncated)
}

fn split_end(bytes: &mut [u8], tail: usize) -> Result<(&mut [u8], &mut [u8]), DropReason> {
    let at = bytes.len().checked_sub(tail).ok_or(DropReason::Truncated)?;
    split(bytes, at)
}

fn copy_truncated(icv: &mut [u8], tag: &hmac::Tag) -> Result<(), DropReason> {
    icv.copy_from_slice(tag.as_ref().get(..icv.len()).ok_or(DropReason::Truncated)?);
    Ok(())
}
