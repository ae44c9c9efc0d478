//! Key exchange behind a trait: ring's curves, P-521 and our MODP groups in production, a cheap stand-in in simulations.

use cygnet_model::SecretBytes;
use cygnet_model::suite::Group;
use ring::agreement;

use super::Random;
use super::modp::Modp;
use super::p521;

/// Why a key exchange failed. All but `Local` blame the peer's public value (RFC 6989).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KexError {
    /// It has the wrong length for the group.
    #[error("public value has the wrong length for the group")]
    PublicLength,
    /// It is not a value of the group, or a degenerate one.
    #[error("public value is not a usable member of the group")]
    PublicValue,
    /// The random source failed.
    #[error("the random source failed")]
    Local,
}

/// Starts key exchanges.
pub trait KeyExchange: Send {
    /// Makes a private key; returns it with the public value for the KE payload ([`Group::public_len`] octets).
    fn start(
        &self,
        group: Group,
        random: &mut dyn Random,
    ) -> Result<(Box<dyn PrivateKey>, Vec<u8>), KexError>;
}

/// A private key for one exchange.
pub trait PrivateKey: Send {
    /// The shared secret with the peer's public value, after the checks that the group demands.
    fn finish(self: Box<Self>, peer: &[u8]) -> Result<SecretBytes, KexError>;
}

/// The production provider.
pub struct RingKex;

impl KeyExchange for RingKex {
    fn start(
        &self,
        group: Group,
        random: &mut dyn Random,
    ) -> Result<(Box<dyn PrivateKey>, Vec<u8>), KexError> {
        if let Some(modp) = Modp::of(group) {
            let mut exponent = vec![0u8; modp.exponent_len()];
            random.fill(&mut exponent);
            // The top bit set keeps the exponent at full length.
            if let Some(first) = exponent.first_mut() {
                *first |= 0x80;
            }
            let exponent = SecretBytes::new(exponent);
            let public = modp.public(&exponent);
            return Ok((Box::new(ModpKey { modp, exponent }), public));
        }
        if group == Group::Ecp521 {
            return p521::start(random);
        }
        let algorithm = match group {
            Group::Ecp256 => &agreement::ECDH_P256,
            Group::Ecp384 => &agreement::ECDH_P384,
            _ => &agreement::X25519,
        };
        // ring accepts no random source but its own.
        let rng = ring::rand::SystemRandom::new();
        let key = agreement::EphemeralPrivateKey::generate(algorithm, &rng).map_err(|_| KexError::Local)?;
        let public = key.compute_public_key().map_err(|_| KexError::Local)?;
        let bytes = public.as_ref();
        // KE payloads carry x and y without the point format octet (RFC 5903 §7).
        let wire = if group == Group::X25519 { bytes } else { bytes.get(1..).unwrap_or(bytes) };
        Ok((Box::new(CurveKey { group, key }), wire.to_vec()))
    }
}

struct ModpKey {
    modp: &'static Modp,
    exponent: SecretBytes,
}

impl PrivateKey for ModpKey {
    fn finish(self: Box<Self>, peer: &[u8]) -> Result<SecretBytes, KexError> {
        self.modp.shared(&self.exponent, peer)
    }
}

struct CurveKey {
    group: Group,
    key: agreement::EphemeralPrivateKey,
}

impl PrivateKey for CurveKey {
    fn finish(self: Box<Self>, peer: &[u8]) -> Result<SecretBytes, KexError> {
        if peer.len() != self.group.public_len() {
            return Err(KexError::PublicLength);
        }
        let mut point = Vec::with_capacity(peer.len() + 1);
        if self.group != Group::X25519 {
            point.push(4);
        }
        point.extend_from_slice(peer);
        // ring checks that the point is on the curve, and refuses an all-zero X25519 result.
        let peer = agreement::UnparsedPublicKey::new(self.key.algorithm(), point);
        agreement::agree_ephemeral(self.key, &peer, SecretBytes::copy_of).map_err(|_| KexError::PublicValue)
    }
}

/// A stand-in whose arithmetic is a hash: fast, reproducible, and worthless against anybody.
#[cfg(feature = "test-util")]
pub mod testing {
    use super::*;

    /// Commutative by construction: `shared = H(min(a, b) | max(a, b))` where the public value is the private one.
    pub struct ToyKex;

    struct ToyKey(Vec<u8>);

    impl KeyExchange for ToyKex {
        fn start(
            &self,
            group: Group,
            random: &mut dyn Random,
        ) -> Result<(Box<dyn PrivateKey>, Vec<u8>), KexError> {
            let mut public = vec![0u8; group.public_len()];
            random.fill(&mut public);
            Ok((Box::new(ToyKey(public.clone())), public))
        }
    }

    impl PrivateKey for ToyKey {
        fn finish(self: Box<Self>, peer: &[u8]) -> Result<SecretBytes, KexError> {
            if peer.len() != self.0.len() {
                return Err(KexError::PublicLength);
            }
            if peer.iter().all(|octet| *octet == 0) {
                return Err(KexError::PublicValue);
            }
            let (a, b) = if self.0.as_slice() < peer { (&*self.0, peer) } else { (peer, &*self.0) };
            let mut ctx = ring::digest::Context::new(&ring::digest::SHA256);
            ctx.update(a);
            ctx.update(b);
            Ok(SecretBytes::copy_of(ctx.finish().as_ref()))
        }
    }
}
