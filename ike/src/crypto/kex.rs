//! Key exchange: which library computes which method.
//!
//! | group | library |
//! |---|---|
//! | X25519, P-256, P-384 | ring (`curves`) |
//! | P-521 | RustCrypto's p521 (`p521`) |
//! | MODP | our own exponentiation on RustCrypto's crypto-bigint (`modp`) |
//! | ML-KEM | RustCrypto's ml-kem (`mlkem`) |
//!
//! Nothing outside of this module and those four knows. Values go over the wire as KE payloads carry them.

use cygnet_model::SecretBytes;
use cygnet_model::suite::Group;

use super::{Random, curves, mlkem, modp, p521};

/// Why a key exchange failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KexError {
    /// The peer's public value has the wrong length for the group.
    #[error("public value has the wrong length for the group")]
    PublicLength,
    /// It is not a value of the group, or a degenerate one (RFC 6989).
    #[error("public value is not a usable member of the group")]
    PublicValue,
    /// The random source failed.
    #[error("the random source failed")]
    Local,
    /// It was not computed in time.
    #[error("it was not computed in time")]
    Late,
}

impl KexError {
    /// Whether the peer's public value is to blame.
    pub const fn blames_peer(self) -> bool {
        matches!(self, Self::PublicLength | Self::PublicValue)
    }
}

/// Who computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Provider {
    /// The libraries of this module's table.
    Real,
    /// A stand-in whose arithmetic is a hash: fast, reproducible, and worthless against anybody.
    #[cfg(feature = "test-util")]
    Toy,
}

/// A private key for one exchange. It has no printable form.
pub struct PrivateKey(Key);

enum Key {
    Curve(curves::Key),
    P521(p521::Key),
    Modp(modp::Key),
    MlKem(mlkem::Key),
    #[cfg(feature = "test-util")]
    Toy(toy::Key),
}

/// Makes a private key; returns it with the value for our KE payload ([`Group::offer_len`] octets).
///
/// # Errors
/// If there are no random numbers.
pub fn begin(
    provider: Provider,
    group: Group,
    random: &mut dyn Random,
) -> Result<(PrivateKey, Vec<u8>), KexError> {
    match provider {
        Provider::Real => begin_real(group, random),
        #[cfg(feature = "test-util")]
        Provider::Toy => {
            let (key, public) = toy::begin(group, group.offer_len(), random);
            Ok((PrivateKey(Key::Toy(key)), public))
        }
    }
}

/// Answers the value of the initiator's KE payload: the value for ours ([`Group::answer_len`] octets), and the shared secret.
///
/// # Errors
/// If the peer's value is none of the group, or there are no random numbers.
pub fn answer(
    provider: Provider,
    group: Group,
    peer: &[u8],
    random: &mut dyn Random,
) -> Result<(Vec<u8>, SecretBytes), KexError> {
    if peer.len() != group.offer_len() {
        return Err(KexError::PublicLength);
    }
    match provider {
        Provider::Real if group.is_kem() => mlkem::answer(group, peer, random),
        #[cfg(feature = "test-util")]
        Provider::Toy if group.is_kem() => {
            let (key, own) = toy::begin(group, group.answer_len(), random);
            Ok((own, key.finish(peer)?))
        }
        _ => {
            let (key, own) = begin(provider, group, random)?;
            Ok((own, key.finish(peer)?))
        }
    }
}

fn begin_real(group: Group, random: &mut dyn Random) -> Result<(PrivateKey, Vec<u8>), KexError> {
    if let Some(modp) = modp::Modp::of(group) {
        let (key, public) = modp::begin(group, modp, random);
        return Ok((PrivateKey(Key::Modp(key)), public));
    }
    if group == Group::Ecp521 {
        let (key, public) = p521::begin(random)?;
        return Ok((PrivateKey(Key::P521(key)), public));
    }
    if group.is_kem() {
        let (key, public) = mlkem::begin(group, random);
        return Ok((PrivateKey(Key::MlKem(key)), public));
    }
    let (key, public) = curves::begin(group)?;
    Ok((PrivateKey(Key::Curve(key)), public))
}

impl PrivateKey {
    /// The shared secret with the value of the responder's KE payload, after the checks that the method demands. With a method
    /// whose values are alike at both ends it serves the responder as well.
    ///
    /// # Errors
    /// If the value is none of the group.
    pub fn finish(self, peer: &[u8]) -> Result<SecretBytes, KexError> {
        if peer.len() != self.group().answer_len() {
            return Err(KexError::PublicLength);
        }
        match self.0 {
            Key::Curve(key) => key.finish(peer),
            Key::P521(key) => key.finish(peer),
            Key::Modp(key) => key.finish(peer),
            Key::MlKem(key) => key.finish(peer),
            #[cfg(feature = "test-util")]
            Key::Toy(key) => key.finish(peer),
        }
    }

    /// The group that it is of.
    pub const fn group(&self) -> Group {
        match &self.0 {
            Key::Curve(key) => key.group(),
            Key::P521(_) => Group::Ecp521,
            Key::Modp(key) => key.group(),
            Key::MlKem(key) => key.group(),
            #[cfg(feature = "test-util")]
            Key::Toy(key) => key.group(),
        }
    }
}

#[cfg(feature = "test-util")]
mod toy {
    use super::*;

    /// Commutative by construction: `shared = H(min(a, b) | max(a, b))` where the public value is the private one.
    /// Those of a KEM have two lengths.
    pub(super) struct Key(Group, Vec<u8>);

    pub(super) fn begin(group: Group, octets: usize, random: &mut dyn Random) -> (Key, Vec<u8>) {
        let mut public = vec![0u8; octets];
        random.fill(&mut public);
        (Key(group, public.clone()), public)
    }

    impl Key {
        pub fn finish(self, peer: &[u8]) -> Result<SecretBytes, KexError> {
            if peer.iter().all(|octet| *octet == 0) {
                return Err(KexError::PublicValue);
            }
            let (a, b) = if self.1.as_slice() < peer { (&*self.1, peer) } else { (peer, &*self.1) };
            let mut ctx = ring::digest::Context::new(&ring::digest::SHA256);
            ctx.update(a);
            ctx.update(b);
            Ok(SecretBytes::copy_of(ctx.finish().as_ref()))
        }

        pub const fn group(&self) -> Group {
            self.0
        }
    }
}
