//! CREATE_CHILD_SA for ESP: new children and new keys for them (RFC 7296 §1.3.1, §1.3.3, §2.8), in both roles.

mod answer;
mod ask;

use std::time::Duration;

use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::Group;
use cygnet_model::{ChildId, Spi};

use super::Ask;
use crate::account::Stage;
use crate::crypto::kex::PrivateKey;

/// First wait before a rekey that met TEMPORARY_FAILURE is tried again (RFC 7296 §2.25 leaves it open).
pub(super) const BUSY_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(2500));

/// Our CREATE_CHILD_SA request for a child.
pub(crate) struct CreatingChild {
    /// Index of the configured child.
    pub(super) of: u16,
    /// What is asked for of it, if the pair is new.
    pub(super) ask: Ask,
    /// The selectors that we offered, our side.
    pub(super) local: Vec<TrafficSelector>,
    /// The peer's side.
    pub(super) remote: Vec<TrafficSelector>,
    /// Inbound SPI of the pair to replace.
    pub(super) rekeys: Option<Spi>,
    /// Inbound SPI of the new pair.
    pub inbound: Spi,
    pub(super) nonce: Vec<u8>,
    pub(super) key: Key,
    /// Whether INVALID_KE_PAYLOAD was answered once already.
    pub(super) second_try: bool,
    /// What the peer made at the same time: new keys for the same pair, or a pair for the same child.
    pub(super) theirs: Vec<Created>,
    /// SPIs that the peer deleted in the meantime and that we do not know: one of them may come in the answer.
    pub(super) deleted: Vec<u32>,
}

/// The private key of a request.
pub(super) enum Key {
    /// No key exchange was offered.
    None,
    /// It waits for the answer.
    Held(Group, PrivateKey),
    /// The answer is there, and the secret is computed of it.
    Used(Group),
    /// An earlier process had it.
    Lost(Group),
}

/// A pair with the nonces of the exchange that made it.
pub(crate) struct Created {
    pub id: ChildId,
    pub inbound: Spi,
    pub(super) nonces: (Vec<u8>, Vec<u8>),
}

/// Most unknown SPIs that we remember to be deleted.
const MAX_DELETED: usize = 16;

impl CreatingChild {
    /// The configured child that it asks something new of.
    pub const fn seeks(&self) -> Option<u16> {
        if self.rekeys.is_none() { Some(self.of) } else { None }
    }

    /// Whether an earlier process took the key with it.
    pub const fn is_without_key(&self) -> bool {
        matches!(self.key, Key::Lost(_))
    }

    const fn stage(&self) -> Stage {
        if self.rekeys.is_none() { Stage::Child } else { Stage::RekeyChild }
    }

    /// Remembers a deletion that may have overtaken the response.
    pub fn on_unknown_deleted(&mut self, outbound: u32) {
        if self.deleted.len() < MAX_DELETED {
            self.deleted.push(outbound);
        }
    }
}
