//! The IKE header (RFC 7296 §3.1).
//!
//! ```text
//!  0                   1                   2                   3
//!  |                       IKE SA Initiator's SPI                  | 0
//!  |                       IKE SA Responder's SPI                  | 8
//!  | Next Payload  | MjVer | MnVer | Exchange Type |     Flags     | 16
//!  |                          Message ID                           | 20
//!  |                            Length                             | 24
//! ```

use super::iana::{Exchange, FLAG_INITIATOR, FLAG_RESPONSE, PayloadType};
use super::reader::Reader;
use super::{DecodeError, DecodeErrorKind};

/// Octets of the header.
pub const HEADER_LEN: usize = 28;

/// A decoded header. SPIs may be zero here, as they are in the first message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Initiator's SPI.
    pub spi_i: u64,
    /// Responder's SPI.
    pub spi_r: u64,
    /// Type of the first payload.
    pub next: PayloadType,
    /// Exchange type.
    pub exchange: Exchange,
    /// Whether the sender is the original initiator of the IKE SA.
    pub from_initiator: bool,
    /// Whether this is a response.
    pub response: bool,
    /// Message ID.
    pub message_id: u32,
}

impl Header {
    /// Decodes the header of a datagram and checks that its length field is the datagram's length.
    ///
    /// Reserved flags and minor versions are ignored (RFC 7296 §2.5); another major version is an error.
    pub fn decode(datagram: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let at = |offset, kind| DecodeError { payload: PayloadType::NONE, offset, kind };
        let mut r = Reader::new(datagram);
        let mut read = || {
            Ok((r.u64()?, r.u64()?, r.u8()?, r.u8()?, r.u8()?, r.u8()?, r.u32()?, r.u32()?, r.take_rest()))
        };
        let (spi_i, spi_r, next, version, exchange, flags, message_id, length, rest) =
            read().map_err(|kind| at(0, kind))?;
        if version >> 4 != 2 {
            return Err(at(17, DecodeErrorKind::MajorVersion(version >> 4)));
        }
        if usize::try_from(length).ok() != Some(datagram.len()) {
            return Err(at(24, DecodeErrorKind::LengthMismatch));
        }
        let header = Self {
            spi_i,
            spi_r,
            next: PayloadType(next),
            exchange: Exchange(exchange),
            from_initiator: flags & FLAG_INITIATOR != 0,
            response: flags & FLAG_RESPONSE != 0,
            message_id,
        };
        Ok((header, rest))
    }

    /// Appends the header with length zero; version 2.0, reserved bits clear.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.spi_i.to_be_bytes());
        out.extend_from_slice(&self.spi_r.to_be_bytes());
        let flags = if self.from_initiator { FLAG_INITIATOR } else { 0 }
            | if self.response { FLAG_RESPONSE } else { 0 };
        out.extend_from_slice(&[self.next.0, 0x20, self.exchange.0, flags]);
        out.extend_from_slice(&self.message_id.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
    }
}
