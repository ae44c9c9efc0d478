//! The wire: bytes into values that can only hold what is well formed, and back.
//!
//! Decoding happens in two steps, because most of a message is encrypted: [`Header::decode`] for the clear part, then
//! [`Payloads::decode`] for a chain of payloads, clear or opened.

pub mod dn;
pub mod header;
pub mod iana;
mod id;
pub mod reader;
pub mod sa;
pub mod ts;
pub mod writer;

use std::fmt;

use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::Group;

pub use header::{HEADER_LEN, Header};
pub use iana::{AuthMethod, Exchange, NotifyType, PayloadType, Protocol, TransformType};
pub use id::Identity;
pub(crate) use id::IdentityBucket;
use reader::Reader;
pub use sa::{Proposal, Transform};
pub use writer::Writer;

/// Malformed bytes: which payload, where in it, and what is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecodeError {
    /// The payload at fault; `NONE` for the header or the chain itself.
    pub payload: PayloadType,
    /// Offset of that payload (or field) in the chain or message.
    pub offset: usize,
    /// What is wrong.
    pub kind: DecodeErrorKind,
}

/// What can be wrong with bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeErrorKind {
    /// They end too early.
    Truncated,
    /// A length field contradicts what it measures.
    BadLength,
    /// The header's length is not the datagram's.
    LengthMismatch,
    /// A count contradicts what it counts.
    BadCount,
    /// A field has a value that it must not have.
    BadValue,
    /// Something follows the end.
    TrailingOctets,
    /// More elements than we look at.
    TooMany,
    /// A payload that may stand once stands twice.
    Repeated,
    /// IKE of another major version.
    MajorVersion(u8),
    /// A payload type that we do not know, marked critical.
    UnsupportedCritical(u8),
}

impl DecodeErrorKind {
    /// Name for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::BadLength => "bad_length",
            Self::LengthMismatch => "length_mismatch",
            Self::BadCount => "bad_count",
            Self::BadValue => "bad_value",
            Self::TrailingOctets => "trailing_octets",
            Self::TooMany => "too_many",
            Self::Repeated => "repeated_payload",
            Self::MajorVersion(_) => "major_version",
            Self::UnsupportedCritical(_) => "unsupported_critical_payload",
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.payload == PayloadType::NONE {
            write!(f, "malformed message at octet {}: {}", self.offset, self.kind.name())
        } else {
            write!(f, "malformed {} payload at octet {}: {}", self.payload, self.offset, self.kind.name())
        }
    }
}

impl std::error::Error for DecodeError {}

/// Most payloads in one chain. IKE_AUTH with a long certificate chain has about twenty.
pub const MAX_PAYLOADS: usize = 64;

/// One link of a chain.
#[derive(Clone, Copy, Debug)]
pub struct RawPayload<'a> {
    /// Type.
    pub kind: PayloadType,
    /// Critical bit; means something for unknown types only (RFC 7296 §2.5).
    pub critical: bool,
    /// What follows the generic header.
    pub body: &'a [u8],
    /// Type of the next payload. For SK and SKF: of the first one inside.
    pub next: PayloadType,
    /// Where the payload starts in the chain.
    pub offset: usize,
}

/// Splits a chain into payloads. Stops after an SK or SKF payload, which must be the last (RFC 7296 §3.14).
pub fn split(first: PayloadType, chain: &[u8]) -> Result<Vec<RawPayload<'_>>, DecodeError> {
    // As many as most messages have.
    let mut out = Vec::with_capacity(8);
    let mut kind = first;
    let mut r = Reader::new(chain);
    while kind != PayloadType::NONE {
        let offset = chain.len() - r.remaining();
        let fail = |e| DecodeError { payload: kind, offset, kind: e };
        if out.len() == MAX_PAYLOADS {
            return Err(fail(DecodeErrorKind::TooMany));
        }
        let next = PayloadType(r.u8().map_err(fail)?);
        let critical = r.u8().map_err(fail)? & 0x80 != 0;
        let len = usize::from(r.u16().map_err(fail)?);
        let body_len = len.checked_sub(4).ok_or_else(|| fail(DecodeErrorKind::BadLength))?;
        let body = r.take(body_len).map_err(fail)?;
        out.push(RawPayload { kind, critical, body, next, offset });
        if kind == PayloadType::SK || kind == PayloadType::SKF {
            break;
        }
        kind = next;
    }
    if !r.is_empty() {
        let offset = chain.len() - r.remaining();
        return Err(DecodeError {
            payload: PayloadType::NONE,
            offset,
            kind: DecodeErrorKind::TrailingOctets,
        });
    }
    Ok(out)
}

/// A key exchange payload (RFC 7296 §3.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyExchange {
    /// Transform id of the method.
    pub group: u16,
    /// Public value.
    pub data: Vec<u8>,
}

impl KeyExchange {
    /// Whether it is an initiator's value of the method whose turn it is (RFC 9370 §2.2.2, §2.2.4), by its id and its length;
    /// what is in it is checked when the secret is computed.
    pub fn is_offer_of(&self, method: Group) -> bool {
        self.group == method.transform() && self.data.len() == method.offer_len()
    }

    /// The same for a responder's value.
    pub fn is_answer_of(&self, method: Group) -> bool {
        self.group == method.transform() && self.data.len() == method.answer_len()
    }
}

/// An AUTH payload (RFC 7296 §3.8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Auth {
    /// Method.
    pub method: AuthMethod,
    /// Its data.
    pub data: Vec<u8>,
}

/// A notification (RFC 7296 §3.10).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notify {
    /// Protocol of `spi`; NONE if there is no SPI.
    pub protocol: Protocol,
    /// SPI that the notification is about, or empty.
    pub spi: Vec<u8>,
    /// What is notified.
    pub kind: NotifyType,
    /// Data, by kind.
    pub data: Vec<u8>,
}

impl Notify {
    /// A notification about the IKE SA as a whole.
    pub const fn new(kind: NotifyType, data: Vec<u8>) -> Self {
        Self { protocol: Protocol::NONE, spi: Vec::new(), kind, data }
    }
}

/// A Delete payload (RFC 7296 §3.11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Delete {
    /// The IKE SA that carries the message.
    Ike,
    /// ESP SAs by the SPIs that the sender expects in packets to it.
    Esp(Vec<u32>),
    /// SAs of a protocol that we do not speak.
    Other,
}

/// The payloads of one message, each kind at most once where the RFC says so.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "the names are the RFC's own")]
pub struct Payloads {
    pub sa: Option<Vec<Proposal>>,
    pub ke: Option<KeyExchange>,
    pub idi: Option<Identity>,
    pub idr: Option<Identity>,
    pub auth: Option<Auth>,
    pub nonce: Option<Vec<u8>>,
    pub tsi: Option<Vec<TrafficSelector>>,
    pub tsr: Option<Vec<TrafficSelector>>,
    pub notifies: Vec<Notify>,
    pub deletes: Vec<Delete>,
    /// Whether an EAP payload was there (we do not speak it).
    pub eap: bool,
}

impl Payloads {
    /// Decodes a chain. Unknown payloads are skipped, or refused if critical (RFC 7296 §2.5). Certificates, vendor
    /// ids and configuration payloads are skipped.
    pub fn decode(first: PayloadType, chain: &[u8]) -> Result<Self, DecodeError> {
        let mut out = Self::default();
        for raw in split(first, chain)? {
            out.add(&raw).map_err(|kind| DecodeError { payload: raw.kind, offset: raw.offset, kind })?;
        }
        Ok(out)
    }

    fn add(&mut self, raw: &RawPayload<'_>) -> Result<(), DecodeErrorKind> {
        fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), DecodeErrorKind> {
            if slot.replace(value).is_some() { Err(DecodeErrorKind::Repeated) } else { Ok(()) }
        }
        match raw.kind {
            PayloadType::SA => once(&mut self.sa, sa::decode(raw.body)?),
            PayloadType::KE => once(&mut self.ke, decode_ke(raw.body)?),
            PayloadType::IDI => once(&mut self.idi, Identity::decode(raw.body)?),
            PayloadType::IDR => once(&mut self.idr, Identity::decode(raw.body)?),
            PayloadType::AUTH => once(&mut self.auth, decode_auth(raw.body)?),
            PayloadType::NONCE => once(&mut self.nonce, decode_nonce(raw.body)?),
            PayloadType::TSI => once(&mut self.tsi, ts::decode(raw.body)?),
            PayloadType::TSR => once(&mut self.tsr, ts::decode(raw.body)?),
            PayloadType::NOTIFY => {
                self.notifies.push(decode_notify(raw.body)?);
                Ok(())
            }
            PayloadType::DELETE => {
                self.deletes.push(decode_delete(raw.body)?);
                Ok(())
            }
            PayloadType::EAP => {
                self.eap = true;
                Ok(())
            }
            // SK inside SK, or SK in a chain that should be clear: never well formed here.
            PayloadType::SK | PayloadType::SKF => Err(DecodeErrorKind::BadValue),
            PayloadType::CERT | PayloadType::CERTREQ | PayloadType::VENDOR | PayloadType::CP => Ok(()),
            _ if raw.critical => Err(DecodeErrorKind::UnsupportedCritical(raw.kind.0)),
            _ => Ok(()),
        }
    }

    /// The first notification of a kind.
    pub fn notify(&self, kind: NotifyType) -> Option<&Notify> {
        self.notifies.iter().find(|n| n.kind == kind)
    }

    /// The first error notification.
    pub fn error(&self) -> Option<&Notify> {
        self.notifies.iter().find(|n| n.kind.is_error())
    }

    /// Appends the payloads to a message in the RFC's usual order.
    pub fn encode(&self, w: &mut Writer) {
        let cookie = |n: &&Notify| n.kind == NotifyType::COOKIE || n.kind == NotifyType::REKEY_SA;
        // COOKIE must come first (RFC 7296 §2.6), REKEY_SA customarily does.
        for n in self.notifies.iter().filter(cookie) {
            encode_notify(w, n);
        }
        let id = |w: &mut Writer, kind, id: &Option<Identity>| {
            if let Some(id) = id {
                w.payload(kind, |b| b.extend_from_slice(&id.body()));
            }
        };
        id(w, PayloadType::IDI, &self.idi);
        id(w, PayloadType::IDR, &self.idr);
        if let Some(auth) = &self.auth {
            w.payload(PayloadType::AUTH, |b| {
                b.extend_from_slice(&[auth.method.0, 0, 0, 0]);
                b.extend_from_slice(&auth.data);
            });
        }
        if let Some(proposals) = &self.sa {
            w.payload(PayloadType::SA, |b| sa::encode(proposals, b));
        }
        if let Some(ke) = &self.ke {
            w.payload(PayloadType::KE, |b| {
                b.extend_from_slice(&ke.group.to_be_bytes());
                b.extend_from_slice(&[0, 0]);
                b.extend_from_slice(&ke.data);
            });
        }
        if let Some(nonce) = &self.nonce {
            w.payload(PayloadType::NONCE, |b| b.extend_from_slice(nonce));
        }
        if let Some(ts) = &self.tsi {
            w.payload(PayloadType::TSI, |b| ts::encode(ts, b));
        }
        if let Some(ts) = &self.tsr {
            w.payload(PayloadType::TSR, |b| ts::encode(ts, b));
        }
        for n in self.notifies.iter().filter(|n| !cookie(n)) {
            encode_notify(w, n);
        }
        for d in &self.deletes {
            encode_delete(w, d);
        }
    }
}

fn decode_ke(body: &[u8]) -> Result<KeyExchange, DecodeErrorKind> {
    let mut r = Reader::new(body);
    let group = r.u16()?;
    r.u16()?;
    Ok(KeyExchange { group, data: r.take_rest().to_vec() })
}

fn decode_auth(body: &[u8]) -> Result<Auth, DecodeErrorKind> {
    let mut r = Reader::new(body);
    let method = AuthMethod(r.u8()?);
    r.take(3)?;
    Ok(Auth { method, data: r.take_rest().to_vec() })
}

/// Nonces have 16 to 256 octets (RFC 7296 §3.9).
fn decode_nonce(body: &[u8]) -> Result<Vec<u8>, DecodeErrorKind> {
    if (16..=256).contains(&body.len()) { Ok(body.to_vec()) } else { Err(DecodeErrorKind::BadLength) }
}

fn decode_notify(body: &[u8]) -> Result<Notify, DecodeErrorKind> {
    let mut r = Reader::new(body);
    let protocol = Protocol(r.u8()?);
    let spi_len = usize::from(r.u8()?);
    let kind = NotifyType(r.u16()?);
    let spi = r.take(spi_len)?.to_vec();
    Ok(Notify { protocol, spi, kind, data: r.take_rest().to_vec() })
}

fn encode_notify(w: &mut Writer, n: &Notify) {
    w.payload(PayloadType::NOTIFY, |b| {
        b.extend_from_slice(&[n.protocol.0, u8::try_from(n.spi.len()).unwrap_or(u8::MAX)]);
        b.extend_from_slice(&n.kind.0.to_be_bytes());
        b.extend_from_slice(&n.spi);
        b.extend_from_slice(&n.data);
    });
}

fn decode_delete(body: &[u8]) -> Result<Delete, DecodeErrorKind> {
    let mut r = Reader::new(body);
    let protocol = Protocol(r.u8()?);
    let spi_len = usize::from(r.u8()?);
    let count = usize::from(r.u16()?);
    if count.checked_mul(spi_len) != Some(r.remaining()) {
        return Err(DecodeErrorKind::BadCount);
    }
    match (protocol, spi_len) {
        (Protocol::IKE, 0) if count == 0 => Ok(Delete::Ike),
        (Protocol::ESP, 4) => {
            let mut spis = Vec::with_capacity(count);
            while !r.is_empty() {
                spis.push(r.u32()?);
            }
            Ok(Delete::Esp(spis))
        }
        (Protocol::IKE | Protocol::ESP, _) => Err(DecodeErrorKind::BadLength),
        _ => Ok(Delete::Other),
    }
}

fn encode_delete(w: &mut Writer, d: &Delete) {
    w.payload(PayloadType::DELETE, |b| match d {
        Delete::Ike => b.extend_from_slice(&[Protocol::IKE.0, 0, 0, 0]),
        Delete::Esp(spis) => {
            b.extend_from_slice(&[Protocol::ESP.0, 4]);
            b.extend_from_slice(&u16::try_from(spis.len()).unwrap_or(u16::MAX).to_be_bytes());
            for spi in spis {
                b.extend_from_slice(&spi.to_be_bytes());
            }
        }
        Delete::Other => b.extend_from_slice(&[Protocol::NONE.0, 0, 0, 0]),
    });
}

#[cfg(test)]
mod tests;
