//! Traffic Selector payloads (RFC 7296 §3.13).

use std::net::IpAddr;

use cygnet_model::selector::{IpRange, TrafficSelector};

use super::DecodeErrorKind;
use super::iana::{TS_IPV4_ADDR_RANGE, TS_IPV6_ADDR_RANGE};
use super::reader::Reader;

/// Decodes a TS payload's body. Selectors of unknown types are left out (RFC 7296 §3.13.1 lets the responder narrow
/// them away); none at all, or a wrong count, is an error.
pub fn decode(body: &[u8]) -> Result<Vec<TrafficSelector>, DecodeErrorKind> {
    let mut r = Reader::new(body);
    let count = r.u8()?;
    r.take(3)?;
    let mut seen = 0u8;
    let mut out = Vec::new();
    while !r.is_empty() {
        seen = seen.checked_add(1).ok_or(DecodeErrorKind::BadCount)?;
        out.extend(next(&mut r)?);
    }
    if seen == 0 || seen != count {
        return Err(DecodeErrorKind::BadCount);
    }
    Ok(out)
}

/// Reads one selector; `None` if it is of an unknown type.
pub(crate) fn next(r: &mut Reader<'_>) -> Result<Option<TrafficSelector>, DecodeErrorKind> {
    let kind = r.u8()?;
    let protocol = r.u8()?;
    let len = usize::from(r.u16()?);
    let mut s = Reader::new(r.take(len.checked_sub(4).ok_or(DecodeErrorKind::BadLength)?)?);
    let (start, end): (IpAddr, IpAddr);
    let ports = match kind {
        TS_IPV4_ADDR_RANGE => {
            let ports = (s.u16()?, s.u16()?);
            (start, end) = (s.array::<4>()?.into(), s.array::<4>()?.into());
            ports
        }
        TS_IPV6_ADDR_RANGE => {
            let ports = (s.u16()?, s.u16()?);
            (start, end) = (s.array::<16>()?.into(), s.array::<16>()?.into());
            ports
        }
        _ => return Ok(None),
    };
    s.finish()?;
    // start > end is allowed for ports only, and only as OPAQUE.
    if ports.0 > ports.1 && ports != (65535, 0) {
        return Err(DecodeErrorKind::BadValue);
    }
    let range = IpRange::new(start, end).ok_or(DecodeErrorKind::BadValue)?;
    Ok(Some(TrafficSelector { range, protocol, ports }))
}

/// Appends a TS payload's body; at most 255 selectors.
pub fn encode(selectors: &[TrafficSelector], out: &mut Vec<u8>) {
    out.extend_from_slice(&[u8::try_from(selectors.len()).unwrap_or(u8::MAX), 0, 0, 0]);
    for s in selectors.iter().take(255) {
        append(s, out);
    }
}

/// Appends one selector.
pub(crate) fn append(s: &TrafficSelector, out: &mut Vec<u8>) {
    let (kind, len) = match s.range.start() {
        IpAddr::V4(_) => (TS_IPV4_ADDR_RANGE, 16u16),
        IpAddr::V6(_) => (TS_IPV6_ADDR_RANGE, 40u16),
    };
    out.extend_from_slice(&[kind, s.protocol]);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&s.ports.0.to_be_bytes());
    out.extend_from_slice(&s.ports.1.to_be_bytes());
    for addr in [s.range.start(), s.range.end()] {
        match addr {
            IpAddr::V4(a) => out.extend_from_slice(&a.octets()),
            IpAddr::V6(a) => out.extend_from_slice(&a.octets()),
        }
    }
}
