//! Doors for tests into what the crate keeps to itself.

use cygnet_model::suite::IkeSuite;

use crate::crypto::Random;
use crate::crypto::keymat::IkeKeys;
use crate::error::DropReason;
use crate::io::Role;
use crate::sa::message::{self, Opened};
use crate::wire::{DecodeError, Exchange, Header, Payloads};

/// One end's sealed messages; see `sa::message`.
pub struct Channel(message::Channel);

impl Channel {
    /// Takes keys into use; `None` if they do not fit the suite.
    pub fn new(
        suite: IkeSuite,
        keys: &IkeKeys,
        spis: (u64, u64),
        role: Role,
        fragmentation: bool,
    ) -> Option<Self> {
        let mut channel = message::Channel::new(suite, keys, spis.0, spis.1, role)?;
        channel.fragmentation = fragmentation;
        Some(Self(channel))
    }

    /// Seals payloads into one datagram or several; `None` if they do not fit.
    pub fn seal(
        &mut self,
        exchange: Exchange,
        message_id: u32,
        response: bool,
        payloads: &Payloads,
        random: &mut dyn Random,
    ) -> Option<Vec<Vec<u8>>> {
        self.0.seal(exchange, message_id, response, payloads, random)
    }

    /// Opens a datagram: a whole message (`Err` inside: authentic and malformed), or `None` while fragments are missing.
    ///
    /// # Errors
    /// Whatever makes the datagram a stranger's.
    #[allow(clippy::type_complexity, reason = "three outcomes that tests tell apart")]
    pub fn open(&mut self, datagram: &[u8]) -> Result<Option<Result<Payloads, DecodeError>>, DropReason> {
        let (header, _) = Header::decode(datagram).map_err(|_| DropReason::Malformed)?;
        match self.0.open(&header, datagram)? {
            Opened::Message(message) => Ok(Some(message)),
            Opened::Partial => Ok(None),
        }
    }
}
