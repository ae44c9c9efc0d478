//! That a peer has proven to be who it says: a value that nothing but the check itself can make.

use cygnet_model::SecretBytes;

use crate::wire::{Auth, AuthMethod, Identity};

/// Proof that the AUTH of the peer of this name was verified. Only [`verify`] makes one, and established SAs demand it.
pub(crate) struct PeerAuthenticated(Identity);

impl PeerAuthenticated {
    /// Who it is.
    pub const fn peer(&self) -> &Identity {
        &self.0
    }

    /// The same, to be kept.
    pub fn identity(self) -> Identity {
        self.0
    }
}

/// Verifies a peer's AUTH payload in constant time. A method other than PSK is a failure (RFC 7296 §2.15).
pub(super) fn verify(auth: &Auth, expected: &SecretBytes, who: &Identity) -> Option<PeerAuthenticated> {
    let proven = auth.method == AuthMethod::SHARED_KEY_MIC && expected.ct_eq(&auth.data);
    proven.then(|| PeerAuthenticated(who.clone()))
}
