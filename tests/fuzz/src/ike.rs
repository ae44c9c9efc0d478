//! Cleartext IKEv2: header, payloads, identities, traffic selectors.

use std::net::{IpAddr, Ipv4Addr};

use cygnet_ike::wire::{
    DecodeErrorKind, HEADER_LEN, Header, Identity, NotifyType, PayloadType, Payloads, Writer, ts,
};
use cygnet_model::selector::{IpRange, PacketEnd, TrafficSelector, narrow, within};

use crate::input::{Input, is_one_line};

/// A datagram's header: says again what it read, apart from what RFC 7296 tells receivers to ignore, and refuses for the
/// reason that three comparisons give.
pub fn ike_header(data: &[u8]) {
    let length = data.get(24..28).map(|l| u32::from_be_bytes([l[0], l[1], l[2], l[3]]) as usize);
    match Header::decode(data) {
        Ok((header, rest)) => {
            assert_eq!(rest, &data[HEADER_LEN..]);
            assert_eq!(length, Some(data.len()));
            let mut said = Vec::new();
            header.encode(&mut said);
            let mut canonical = data[..HEADER_LEN].to_vec();
            canonical[17] = 0x20;
            canonical[19] &= 0x28;
            canonical[24..].fill(0);
            assert_eq!(said, canonical);
        }
        Err(e) => {
            let want = match data.get(17) {
                Some(version) if data.len() >= HEADER_LEN && version >> 4 != 2 => {
                    DecodeErrorKind::MajorVersion(version >> 4)
                }
                _ if data.len() >= HEADER_LEN => DecodeErrorKind::LengthMismatch,
                _ => DecodeErrorKind::Truncated,
            };
            assert_eq!(e.kind, want);
            assert!(want != DecodeErrorKind::LengthMismatch || length != Some(data.len()));
            assert!(is_one_line(&e.to_string()));
        }
    }
}

/// What a message means to us, without what we never say: selectors of unknown types, unknown attributes, EAP.
pub fn sayable(mut p: Payloads) -> Payloads {
    p.tsi.take_if(|ts| ts.is_empty());
    p.tsr.take_if(|ts| ts.is_empty());
    p.sa.iter_mut().flatten().flat_map(|p| &mut p.transforms).for_each(|t| t.unknown_attribute = false);
    p.eap = false;
    p.notifies.sort_by_key(|n| n.kind != NotifyType::COOKIE && n.kind != NotifyType::REKEY_SA);
    p
}

/// Type of the first payload and the chain, as we would send it.
pub fn said(p: &Payloads) -> (PayloadType, Vec<u8>) {
    let mut w = Writer::chain();
    p.encode(&mut w);
    (w.first(), w.into_chain())
}

/// Type of the first payload, then a chain: what is understood can be said again, in no more octets, and means the same.
pub fn ike_payloads(data: &[u8]) {
    let Some((first, chain)) = data.split_first() else { return };
    match Payloads::decode(PayloadType(*first), chain) {
        Ok(read) => {
            let meant = sayable(read);
            let (first, octets) = said(&meant);
            assert!(octets.len() <= chain.len(), "{} octets became {}", chain.len(), octets.len());
            let again = Payloads::decode(first, &octets).expect("what we say is well formed");
            assert_eq!(again, meant);
            assert_eq!(said(&again), (first, octets), "one meaning, one form");
        }
        Err(e) => {
            assert!(e.offset <= chain.len());
            assert!(is_one_line(&e.to_string()));
        }
    }
}

/// The body of an ID payload: comes back but for its reserved octets, and prints on one line of bounded length.
pub fn ike_identity(data: &[u8]) {
    let Ok(identity) = Identity::decode(data) else { return };
    let mut canonical = data.to_vec();
    canonical[1..4].fill(0);
    assert_eq!(identity.body(), canonical);
    assert_eq!(Identity::decode(&canonical).as_ref(), Ok(&identity));
    let shown = identity.to_string();
    assert!(shown.len() <= 600 && shown.bytes().all(|b| (0x20..0x7f).contains(&b)), "{shown}");
    // Another type is another identity, whatever the octets; a name in the other case is the same one.
    let mut other = canonical.clone();
    other[0] ^= 0x80;
    assert!(Identity::decode(&other).as_ref() != Ok(&identity));
    canonical[4..].make_ascii_uppercase();
    let upper = Identity::decode(&canonical).expect("the same lengths");
    let is_name = matches!(data[0], 2 | 3);
    assert_eq!(upper == identity, is_name || identity.body() == canonical);
}

/// The body of a TS payload, held against a reader by fixed offsets.
pub fn ike_selectors(data: &[u8]) {
    let read = ts::decode(data);
    assert_eq!(read.as_ref().ok(), naive_selectors(data).as_ref());
    let Ok(read) = read else { return };
    assert!(read.len() <= data.len() / 16);
    if read.is_empty() {
        return;
    }
    let mut said = Vec::new();
    ts::encode(&read, &mut said);
    assert!(said.len() <= data.len());
    assert_eq!(ts::decode(&said), Ok(read));
}

/// RFC 7296 §3.13.1 by the letter.
fn naive_selectors(data: &[u8]) -> Option<Vec<TrafficSelector>> {
    let count = usize::from(*data.first()?);
    let (mut at, mut seen, mut out) = (4, 0, Vec::new());
    while at != data.len() {
        seen += 1;
        let number = |i: usize| Some(u16::from_be_bytes([*data.get(at + i)?, *data.get(at + i + 1)?]));
        let len = usize::from(number(2)?);
        let octets = data.get(at..)?.get(..len.max(4))?;
        let range = match (octets[0], len) {
            (7, 16) => {
                let addr =
                    |i: usize| IpAddr::from(<[u8; 4]>::try_from(&octets[i..i + 4]).unwrap_or_default());
                IpRange::new(addr(8), addr(12))
            }
            (8, 40) => {
                let addr =
                    |i: usize| IpAddr::from(<[u8; 16]>::try_from(&octets[i..i + 16]).unwrap_or_default());
                IpRange::new(addr(8), addr(24))
            }
            (7 | 8, _) | (_, 0..4) => return None,
            _ => {
                at += len;
                continue;
            }
        };
        let ports = (number(4)?, number(6)?);
        if ports.0 > ports.1 && ports != (65535, 0) {
            return None;
        }
        out.push(TrafficSelector { range: range?, protocol: octets[1], ports });
        at += len;
    }
    (seen > 0 && seen == count).then_some(out)
}

/// Two short lists of selectors over sixteen addresses: narrowing means what both lists mean, packet by packet.
pub fn ike_narrow(data: &[u8]) {
    let mut input = Input(data);
    let limit = 1 + usize::from(input.u8() % 4);
    let mut list =
        || -> Vec<TrafficSelector> { (0..input.u8() % 4).map(|_| small_selector(&mut input)).collect() };
    let (ours, theirs) = (list(), list());
    let narrowed = narrow(&ours, &theirs, 255);
    assert!(narrowed.len() <= ours.len() * theirs.len());
    assert!(within(&narrowed, &ours) && within(&narrowed, &theirs));
    for (i, a) in narrowed.iter().enumerate() {
        assert!(narrowed.iter().enumerate().all(|(j, b)| i == j || !b.covers(a)), "{narrowed:?}");
    }
    let short = narrow(&ours, &theirs, limit);
    assert!(short.len() <= limit && within(&short, &ours) && within(&short, &theirs));
    assert_eq!(short.is_empty(), narrowed.is_empty());
    for addr in 0..16u32 {
        for protocol in 1..4u8 {
            for port in [None, Some(0), Some(1), Some(3), Some(6), Some(7), Some(9), Some(65535)] {
                let end = PacketEnd { addr: Ipv4Addr::from(addr).into(), protocol, port };
                let is_in = |list: &[TrafficSelector]| list.iter().any(|s| s.matches(&end));
                assert_eq!(is_in(&narrowed), is_in(&ours) && is_in(&theirs), "{end:?}");
            }
        }
    }
}

fn small_selector(input: &mut Input<'_>) -> TrafficSelector {
    let [a, b, protocol, p, q] = input.array();
    let addr = |n: u8| IpAddr::from(Ipv4Addr::from(u32::from(n % 16)));
    let (a, b) = (addr(a), addr(b));
    let (p, q) = (u16::from(p % 8), u16::from(q % 8));
    let ports = match (p, q) {
        (7, 0) => (65535, 0),
        (p, q) if p == q => (0, 65535),
        (p, q) => (p.min(q), p.max(q)),
    };
    let range = IpRange::new(a.min(b), a.max(b)).expect("in order and of one family");
    TrafficSelector { range, protocol: protocol % 4, ports }
}
