//! The Security Association payload (RFC 7296 §3.3): proposals of transforms.
//!
//! Decoding checks structure only. What a proposal means, and whether a strange one is merely skipped, is decided in
//! `crate::policy`.

use super::iana::{ATTRIBUTE_KEY_LENGTH, Protocol, TransformType};
use super::reader::Reader;
use super::{DecodeErrorKind, writer};

/// One transform with its only defined attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transform {
    /// What it is for.
    pub kind: TransformType,
    /// Number in the registry of its kind.
    pub id: u16,
    /// Key Length attribute, in bits.
    pub key_bits: Option<u16>,
    /// Whether it carries an attribute that we do not know; such a transform must not be chosen (RFC 7296 §3.3.6).
    pub unknown_attribute: bool,
}

impl Transform {
    /// A transform without attributes.
    pub const fn plain(kind: TransformType, id: u16) -> Self {
        Self { kind, id, key_bits: None, unknown_attribute: false }
    }
}

/// One proposal: one protocol, one SPI, any number of transforms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Number; counts from 1 in offers and repeats the chosen one in answers.
    pub number: u8,
    /// ESP or IKE here.
    pub protocol: Protocol,
    /// Sender's SPI: empty in IKE_SA_INIT, 8 octets when an IKE SA is rekeyed, 4 for ESP.
    pub spi: Vec<u8>,
    /// Transforms in the sender's order of preference.
    pub transforms: Vec<Transform>,
}

/// Most proposals, and most transforms in one, that we look at. Real offers have below ten and below fifty.
const MAX_PROPOSALS: usize = 32;
const MAX_TRANSFORMS: usize = 255;

/// Decodes an SA payload's body.
pub fn decode(body: &[u8]) -> Result<Vec<Proposal>, DecodeErrorKind> {
    let mut out = Vec::new();
    let mut r = Reader::new(body);
    while !r.is_empty() {
        if out.len() == MAX_PROPOSALS {
            return Err(DecodeErrorKind::TooMany);
        }
        let more = r.u8()?;
        r.u8()?;
        let len = usize::from(r.u16()?);
        let mut p = Reader::new(r.take(len.checked_sub(4).ok_or(DecodeErrorKind::BadLength)?)?);
        // "Last substruc" is redundant with the payload length; it is checked so that no two readings exist.
        if (more == 0) != r.is_empty() || (more != 0 && more != 2) {
            return Err(DecodeErrorKind::BadValue);
        }
        let (number, protocol, spi_len, count) = (p.u8()?, p.u8()?, p.u8()?, p.u8()?);
        let spi = p.take(usize::from(spi_len))?.to_vec();
        let transforms = decode_transforms(&mut p, usize::from(count))?;
        out.push(Proposal { number, protocol: Protocol(protocol), spi, transforms });
    }
    Ok(out)
}

fn decode_transforms(p: &mut Reader<'_>, count: usize) -> Result<Vec<Transform>, DecodeErrorKind> {
    let mut out = Vec::new();
    while !p.is_empty() {
        if out.len() == MAX_TRANSFORMS {
            return Err(DecodeErrorKind::TooMany);
        }
        let more = p.u8()?;
        p.u8()?;
        let len = usize::from(p.u16()?);
        let mut t = Reader::new(p.take(len.checked_sub(4).ok_or(DecodeErrorKind::BadLength)?)?);
        if (more == 0) != p.is_empty() || (more != 0 && more != 3) {
            return Err(DecodeErrorKind::BadValue);
        }
        let kind = TransformType(t.u8()?);
        t.u8()?;
        let mut transform = Transform::plain(kind, t.u16()?);
        while !t.is_empty() {
            let (format, value) = (t.u16()?, t.u16()?);
            match format {
                ATTRIBUTE_KEY_LENGTH if transform.key_bits.is_none() => transform.key_bits = Some(value),
                _ => {
                    transform.unknown_attribute = true;
                    if format & 0x8000 == 0 {
                        t.take(usize::from(value))?;
                    }
                }
            }
        }
        out.push(transform);
    }
    if out.len() != count {
        return Err(DecodeErrorKind::BadCount);
    }
    Ok(out)
}

/// Appends an SA payload's body.
pub fn encode(proposals: &[Proposal], out: &mut Vec<u8>) {
    for (n, p) in proposals.iter().enumerate() {
        let start = out.len();
        out.extend_from_slice(&[if n + 1 == proposals.len() { 0 } else { 2 }, 0, 0, 0]);
        let count = u8::try_from(p.transforms.len()).unwrap_or(u8::MAX);
        out.extend_from_slice(&[p.number, p.protocol.0, u8::try_from(p.spi.len()).unwrap_or(u8::MAX), count]);
        out.extend_from_slice(&p.spi);
        for (m, t) in p.transforms.iter().enumerate() {
            let t_start = out.len();
            out.extend_from_slice(&[if m + 1 == p.transforms.len() { 0 } else { 3 }, 0, 0, 0, t.kind.0, 0]);
            out.extend_from_slice(&t.id.to_be_bytes());
            if let Some(bits) = t.key_bits {
                out.extend_from_slice(&ATTRIBUTE_KEY_LENGTH.to_be_bytes());
                out.extend_from_slice(&bits.to_be_bytes());
            }
            let len = out.len() - t_start;
            writer::patch_u16(out, t_start + 2, len);
        }
        let len = out.len() - start;
        writer::patch_u16(out, start + 2, len);
    }
}
