//! The IKE_AUTH exchange (RFC 7296 §1.2, §2.15) in both roles, with pre-shared keys.

mod initiator;
mod mixing;
mod proof;
mod responder;

use std::sync::Arc;

use cygnet_model::SecretBytes;
use cygnet_model::selector::Packet;
use cygnet_model::suite::{IkeSuite, Prf};

use super::message::Channel;
use super::natt::Nat;
use super::{Closed, State};
use crate::crypto::kex::PrivateKey;
use crate::crypto::keymat::{IkeKeys, SkeySeed};
use crate::crypto::prf::prf;
use crate::error::{DropReason, FailureReason};
use crate::io::{Ending, Flow, Role};
use crate::jobs::JobId;
use crate::policy::TunnelPolicy;
use crate::wire::{DecodeError, DecodeErrorKind, Identity, Notify, NotifyType};

pub(crate) use self::initiator::AuthSent;
pub(crate) use self::mixing::Mixing;
pub(crate) use self::proof::PeerAuthenticated;
pub(crate) use self::responder::Refused;

/// Notifications that end an IKE SA without a Delete: in the answer to IKE_AUTH, whatever stands beside them, and in an
/// INFORMATIONAL request by which the initiator refuses that answer (RFC 7296 §2.21.2).
pub(super) const FATAL: [NotifyType; 3] =
    [NotifyType::AUTHENTICATION_FAILED, NotifyType::INVALID_SYNTAX, NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD];

/// `prf(PSK, "Key Pad for IKEv2")`: what both ends sign with (RFC 7296 §2.15).
fn padded(alg: Prf, psk: &SecretBytes) -> SecretBytes {
    prf(alg, psk.expose(), &[b"Key Pad for IKEv2"])
}

/// `prf(padded PSK, <SignedOctets>)` where SignedOctets are the signer's first message, the other
/// side's nonce and `prf(SK_p, identity)` (RFC 7296 §2.15), and what IKE_INTERMEDIATE was about (RFC 9242 §3.3.2).
fn psk_auth(
    alg: Prf,
    padded: &SecretBytes,
    message: &[u8],
    nonce: &[u8],
    sk_p: &SecretBytes,
    id: &Identity,
    intermediate: &[u8],
) -> SecretBytes {
    let maced_id = prf(alg, sk_p.expose(), &[&id.body()]);
    prf(alg, padded.expose(), &[message, nonce, maced_id.expose(), intermediate])
}

/// What the initiator knows after IKE_SA_INIT, but for the shared secret.
pub(crate) struct InitDone {
    pub suite: IkeSuite,
    pub nonce_i: Vec<u8>,
    pub nonce_r: Vec<u8>,
    pub spi_r: u64,
    pub request: Vec<u8>,
    pub response: Vec<u8>,
    pub nat: Nat,
    pub fragmentation: bool,
    /// The packet that wants a child, and the index of that.
    pub packet: Option<(u16, Packet)>,
    /// Whether the responder may have answered another request than we think: one of them had a cookie.
    pub doubtful: bool,
}

/// The keys of an IKE SA that is not authenticated yet.
pub(crate) struct Derived {
    pub keys: IkeKeys,
    pub channel: Channel,
}

/// What the responder knows of the shared secret.
pub(crate) enum Secret {
    /// Our private key and the peer's public value: the costly step waits until IKE_AUTH is there.
    Due(PrivateKey, Vec<u8>),
    /// It is being computed.
    Computing(Computing),
    /// The keys that came of it.
    Known(Box<Derived>),
    /// The peer's public value has none.
    None,
}

/// What arrives of IKE_AUTH while the keys are computed that are needed to read it.
pub(crate) struct Computing {
    job: JobId,
    kept: Vec<(Flow, Vec<u8>)>,
    octets: usize,
}

/// Most datagrams that are kept while keys are computed, and most octets of them: IKE_AUTH in fragments, with certificates.
const KEPT: (usize, usize) = (32, 32 * 1024);

impl Computing {
    /// Keeps a datagram, unless it is there already or there are too many.
    fn keep(&mut self, datagram: &[u8], flow: Flow) -> Result<(), DropReason> {
        if self.kept.iter().any(|(_, bytes)| bytes == datagram) {
            return Err(DropReason::Duplicate);
        }
        let octets = self.octets + datagram.len();
        if self.kept.len() >= KEPT.0 || octets > KEPT.1 {
            return Err(DropReason::Busy);
        }
        self.octets = octets;
        self.kept.push((flow, datagram.to_vec()));
        Ok(())
    }
}

impl Secret {
    /// The keys, if they are known.
    pub fn known(&self) -> Option<&Derived> {
        match self {
            Self::Known(derived) => Some(derived),
            Self::Due(..) | Self::Computing(_) | Self::None => None,
        }
    }

    /// The same, to be used.
    pub fn known_mut(&mut self) -> Option<&mut Derived> {
        match self {
            Self::Known(derived) => Some(derived),
            Self::Due(..) | Self::Computing(_) | Self::None => None,
        }
    }

    /// The same, to be kept.
    fn into_known(self) -> Option<Derived> {
        match self {
            Self::Known(derived) => Some(*derived),
            Self::Due(..) | Self::Computing(_) | Self::None => None,
        }
    }
}

pub(super) fn derive(
    suite: IkeSuite,
    shared: &SecretBytes,
    nonces: (&[u8], &[u8]),
    spis: (u64, u64),
    role: Role,
    fragmentation: bool,
) -> Option<Derived> {
    let seed = SkeySeed::initial(suite.prf, nonces.0, nonces.1, shared);
    of_seed(suite, &seed, nonces, spis, role, fragmentation)
}

fn of_seed(
    suite: IkeSuite,
    seed: &SkeySeed,
    (ni, nr): (&[u8], &[u8]),
    spis: (u64, u64),
    role: Role,
    fragmentation: bool,
) -> Option<Derived> {
    let keys = IkeKeys::derive(suite, seed, ni, nr, spis.0.to_be_bytes(), spis.1.to_be_bytes());
    let mut channel = Channel::new(suite, &keys, spis.0, spis.1, role)?;
    channel.fragmentation = fragmentation;
    Some(Derived { keys, channel })
}

impl Derived {
    /// The keys after one more key exchange (RFC 9370 §2.2.2).
    pub fn further(&self, suite: IkeSuite, shared: &SecretBytes, nonces: (&[u8], &[u8])) -> Option<Self> {
        let seed = SkeySeed::further(suite.prf, &self.keys.sk_d, shared, nonces.0, nonces.1);
        let c = &self.channel;
        of_seed(suite, &seed, nonces, (c.spi_i, c.spi_r), c.role, c.fragmentation)
    }
}

pub(super) fn internal(policy: Arc<TunnelPolicy>) -> State {
    State::Closed(Closed {
        policy: Some(policy),
        ending: Ending::Failed(FailureReason::Internal),
        detail: "the keys of the IKE SA could not be taken into use".to_owned(),
        was_up: false,
    })
}

/// The notification that answers an authentic but malformed message (RFC 7296 §2.21, §2.5).
pub(super) fn error_notify(e: &DecodeError) -> Notify {
    match e.kind {
        DecodeErrorKind::UnsupportedCritical(kind) => {
            Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind])
        }
        _ => Notify::new(NotifyType::INVALID_SYNTAX, vec![]),
    }
}
