//! X25519 and the random ECP groups 256 and 384 (RFC 8031, RFC 5903), by ring.

use cygnet_model::SecretBytes;
use cygnet_model::suite::Group;
use ring::agreement;

use super::kex::KexError;

/// A private key.
pub(super) struct Key {
    group: Group,
    key: agreement::EphemeralPrivateKey,
}

/// Begins an exchange. ring accepts no random source but its own.
pub(super) fn begin(group: Group) -> Result<(Key, Vec<u8>), KexError> {
    let algorithm = match group {
        Group::Ecp256 => &agreement::ECDH_P256,
        Group::Ecp384 => &agreement::ECDH_P384,
        _ => &agreement::X25519,
    };
    let rng = ring::rand::SystemRandom::new();
    let key = agreement::EphemeralPrivateKey::generate(algorithm, &rng).map_err(|_| KexError::Local)?;
    let public = key.compute_public_key().map_err(|_| KexError::Local)?;
    let bytes = public.as_ref();
    // KE payloads carry x and y without the point format octet (RFC 5903 §7).
    let wire = if group == Group::X25519 { bytes } else { bytes.get(1..).unwrap_or(bytes) };
    Ok((Key { group, key }, wire.to_vec()))
}

impl Key {
    pub fn finish(self, peer: &[u8]) -> Result<SecretBytes, KexError> {
        let mut point = Vec::with_capacity(peer.len() + 1);
        if self.group != Group::X25519 {
            point.push(4);
        }
        point.extend_from_slice(peer);
        // ring checks that the point is on the curve, and refuses an all-zero X25519 result.
        let peer = agreement::UnparsedPublicKey::new(self.key.algorithm(), point);
        agreement::agree_ephemeral(self.key, &peer, SecretBytes::copy_of).map_err(|_| KexError::PublicValue)
    }

    pub const fn group(&self) -> Group {
        self.group
    }
}
