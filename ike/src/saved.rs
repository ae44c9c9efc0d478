//! IKE SAs and ESP SAs as octets, so that they outlive the process.

pub(crate) mod form;
pub(crate) mod octets;
pub(crate) mod values;

use std::fmt;

use cygnet_model::tunnel::SaSpec;
use cygnet_model::{IkeSpi, SecretBytes, TunnelId};

use crate::sa::Kept;

/// One IKE SA as it can be kept outside of the process. It contains keys.
///
/// Beside the peer's authentication it is the only way to an established IKE SA: whoever can write what is read here could
/// as well read the pre-shared keys.
pub struct Saved(Kept);

impl Saved {
    /// Opens what [`Change::saved`] gave.
    ///
    /// # Errors
    /// See [`SavedError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        Kept::parse(bytes).map(Self)
    }

    /// Whose it is.
    pub const fn tunnel(&self) -> TunnelId {
        self.0.policy.id
    }

    /// Our SPI of it.
    pub const fn spi(&self) -> IkeSpi {
        self.0.core.spi
    }

    pub(crate) fn into_kept(self) -> Kept {
        self.0
    }
}

/// An IKE SA whose kept form is another one than before.
#[derive(Debug)]
pub struct Change {
    /// Our SPI of it, which is its name.
    pub spi: IkeSpi,
    /// What to keep in place of what was kept under this name; `None`: nothing any more.
    pub saved: Option<SecretBytes>,
}

/// Why octets are not what was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SavedError {
    /// They are cut, or were never ours.
    #[error("it is damaged")]
    Malformed,
    /// Another version of the program kept them.
    #[error("it has version {0}, this program reads {version}", version = VERSION)]
    Version(u32),
    /// They hold what this version knows nothing of.
    #[error("it holds what this program does not know")]
    Unknown,
    /// A field has a value that it cannot have.
    #[error("its {0} is impossible")]
    Value(&'static str),
}

/// The version of what is kept.
pub const VERSION: u32 = 1;

/// A kept IKE SA that was not taken up again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Whose.
    pub tunnel: TunnelId,
    /// Our SPI of it.
    pub spi: IkeSpi,
    /// Why.
    pub reason: Reason,
}

/// Why a kept IKE SA is not taken up again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// The configuration has no such tunnel any more.
    NoTunnel,
    /// The configuration has other identities, or another kind of path.
    OtherPeer,
    /// Its lifetime ended in the meantime.
    Expired,
    /// Another one has its SPI, or that of one of its children.
    Duplicate,
    /// Its keys do not fit its algorithms.
    Keys,
}

impl Reason {
    /// Name for metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoTunnel => "no_tunnel",
            Self::OtherPeer => "other_peer",
            Self::Expired => "expired",
            Self::Duplicate => "duplicate",
            Self::Keys => "keys",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTunnel => "the configuration has no such tunnel any more",
            Self::OtherPeer => "the configuration has other identities or another encapsulation now",
            Self::Expired => "its lifetime ended in the meantime",
            Self::Duplicate => "another SA has the same SPI",
            Self::Keys => "its keys do not fit its algorithms",
        })
    }
}

/// One ESP SA as octets.
pub fn show_sa(sa: &SaSpec) -> SecretBytes {
    octets::write(&form::Sa::from(sa))
}

/// The ESP SA that [`show_sa`] gave.
///
/// # Errors
/// See [`SavedError`].
pub fn parse_sa(bytes: &[u8]) -> Result<SaSpec, SavedError> {
    octets::read::<form::Sa<'_>>(bytes)?.open()
}

#[cfg(test)]
mod tests;
