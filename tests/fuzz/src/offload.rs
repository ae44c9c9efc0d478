//! Superpackets: cutting them, joining packets to them.

use std::collections::BTreeMap;
use std::ops::Range;

use cygnet_esp::checksum::{Sum, pseudo_header};
use cygnet_esp::coalesce::{Coalescer, Joins};
use cygnet_esp::inner::InnerHeader;
use cygnet_esp::segment::{Gso, Superpacket, VNET_LEN, VnetHeader};

use crate::input::Input;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// A superpacket that is cut into more octets than this is left alone, for the sake of speed.
const MAX_CUT: usize = 1 << 20;

/// The device's header and a packet: segments are of the lengths promised, and their payloads make up the superpacket's.
/// If the device's header told the truth, so do the segments' checksums.
pub fn esp_segment(data: &[u8]) {
    let mut input = Input(data);
    let octets: [u8; VNET_LEN] = input.array();
    let packet = input.rest();
    let Some(vnet) = VnetHeader::from_bytes(octets) else { return };
    assert_eq!(VnetHeader::from_bytes(vnet.to_bytes()), Some(vnet));
    let Some(inner) = InnerHeader::parse(packet) else { return };
    let Some(superpacket) = Superpacket::new(&vnet, packet, &inner) else { return };
    let packet = &packet[..inner.total_len];
    let count = superpacket.count();
    assert!(count >= 1 && count <= packet.len());
    if count.saturating_mul(superpacket.segment_len(0)) > MAX_CUT {
        return;
    }
    let segments = cut(&superpacket);
    if vnet.gso == Gso::None {
        assert_eq!(segments.len(), 1);
        let changed: Vec<usize> = (0..packet.len()).filter(|i| segments[0][*i] != packet[*i]).collect();
        let at = usize::from(vnet.csum_start) + usize::from(vnet.csum_offset);
        assert!(changed.iter().all(|i| vnet.needs_csum && (at..at + 2).contains(i)), "{changed:?}");
        return;
    }
    // Headers are repeated, payload is not: what all segments have too much is their headers but one.
    let total: usize = segments.iter().map(Vec::len).sum();
    let headers = if count > 1 {
        assert_eq!((total - packet.len()) % (count - 1), 0);
        (total - packet.len()) / (count - 1)
    } else {
        assert_eq!(total, packet.len());
        total
    };
    let size = usize::from(vnet.gso_size);
    let payload: Vec<u8> = segments.iter().flat_map(|s| s[headers..].iter().copied()).collect();
    assert_eq!(payload, packet[headers..]);
    for (i, segment) in segments.iter().enumerate() {
        assert!(count == 1 || segment.len() == headers + size || i + 1 == count);
        assert!(segment.len() <= headers + size || count == 1);
    }
    if is_true(&vnet, &inner, packet) {
        for segment in &segments {
            let again = InnerHeader::parse(segment).expect("a segment is a packet");
            assert_eq!((again.total_len, again.src, again.dst), (segment.len(), inner.src, inner.dst));
            assert!(checksums_are_right(segment, &again));
        }
    }
}

fn cut(superpacket: &Superpacket<'_>) -> Vec<Vec<u8>> {
    let segment = |i: usize| {
        let mut out = vec![0xEE; superpacket.segment_len(i)];
        superpacket.write(i, &mut out).expect("a segment of the length that was asked for");
        out.push(0);
        assert!(superpacket.write(i, &mut out).is_none(), "a wrong length is refused");
        out.pop();
        out
    };
    (0..superpacket.count()).map(segment).collect()
}

/// The octets of the IP header that are the addresses.
const fn addresses(inner: &InnerHeader) -> Range<usize> {
    if inner.src.is_ipv4() { 12..20 } else { 8..40 }
}

/// Whether the device's header describes this packet, as the kernel's do: the right kind and places, and the checksum
/// field holds the sum of the pseudo header.
fn is_true(vnet: &VnetHeader, inner: &InnerHeader, packet: &[u8]) -> bool {
    let kind = match (inner.protocol, inner.src.is_ipv4()) {
        (UDP, _) => (Gso::Udp, 6),
        (TCP, true) => (Gso::TcpV4, 16),
        (TCP, false) => (Gso::TcpV6, 16),
        _ => return false,
    };
    // Behind a routing header the destination is another one; the kernel's sum knows, this function does not.
    let plain = inner.header_len == if inner.src.is_ipv4() { 20 } else { 40 } && inner.ports.is_some();
    let upper_len = packet.len() - inner.header_len;
    let at = inner.header_len + kind.1;
    let (Ok(len), Some(field)) = (u16::try_from(upper_len), packet.get(at..at + 2)) else { return false };
    let pseudo = pseudo_header(&packet[addresses(inner)], inner.protocol, len).folded();
    plain
        && kind == (vnet.gso, usize::from(vnet.csum_offset))
        && usize::from(vnet.csum_start) == inner.header_len
        && field == pseudo
}

fn checksums_are_right(packet: &[u8], inner: &InnerHeader) -> bool {
    let ip = !inner.src.is_ipv4() || Sum::default().octets(&packet[..inner.header_len]).is_valid();
    let upper = &packet[inner.header_len..];
    let Ok(len) = u16::try_from(upper.len()) else { return false };
    ip && pseudo_header(&packet[addresses(inner)], inner.protocol, len).octets(upper).is_valid()
}

/// What may be joined, then packets, each behind its length: every packet comes out once, none overtakes another of its
/// flow, and a superpacket that is cut again is what went in.
pub fn esp_coalesce(data: &[u8]) {
    let mut input = Input(data);
    let joins = [Joins::TcpUdp, Joins::Tcp, Joins::Nothing][usize::from(input.u8() % 3)];
    let mut coalescer = Coalescer::new(joins);
    let mut arena = Vec::new();
    let mut packets: Vec<(Range<usize>, InnerHeader)> = Vec::new();
    while !input.is_empty() && packets.len() < 200 {
        let len = usize::from(input.u16());
        let octets = input.take(len);
        if let Some(inner) = InnerHeader::parse(octets) {
            // What was the ESP header lies between them.
            arena.extend([0xEE; 16]);
            packets.push((arena.len()..arena.len() + inner.total_len, inner));
            arena.extend(&octets[..inner.total_len]);
        }
    }
    for (range, inner) in &packets {
        coalescer.push(&arena, range.clone(), inner);
    }
    assert_eq!(coalescer.is_empty(), packets.is_empty());
    let before = arena.clone();
    let base = arena.as_ptr() as usize;
    let mut trains = Vec::new();
    coalescer.flush(&mut arena, |slices, count| {
        // Slices are pieces of the arena; where they lie tells which packets they are of.
        let places: Vec<usize> = slices[1..].iter().map(|s| s.as_ptr() as usize - base).collect();
        let octets = slices[1..].iter().flat_map(|s| s.iter().copied()).collect::<Vec<u8>>();
        trains.push((slices[0].to_vec(), octets, places, count));
    });
    assert!(coalescer.is_empty());

    let mut order = Vec::new();
    for (vnet, octets, places, count) in trains {
        assert_eq!(places.len(), count);
        let members: Vec<usize> = (places.iter())
            .map(|at| packets.iter().position(|(r, _)| r.contains(at)).expect("a piece of a packet"))
            .collect();
        let vnet = <[u8; VNET_LEN]>::try_from(vnet).expect("the header comes first");
        let vnet = VnetHeader::from_bytes(vnet).expect("a kind that we know");
        let again = InnerHeader::parse(&octets).expect("a packet");
        assert_eq!(again.total_len, octets.len());
        if count == 1 {
            assert_eq!(
                (vnet, octets.as_slice()),
                (VnetHeader::PLAIN, &before[packets[members[0]].0.clone()])
            );
        } else {
            assert!(joins != Joins::Nothing && (joins == Joins::TcpUdp || again.protocol == TCP));
            assert!(is_true(&vnet, &again, &octets));
            let superpacket = Superpacket::new(&vnet, &octets, &again).expect("what we join can be cut");
            let segments = cut(&superpacket);
            assert_eq!(segments.len(), count);
            for (segment, member) in segments.iter().zip(&members) {
                let (range, inner) = &packets[*member];
                assert!(checksums_are_right(segment, inner));
                assert_eq!(forgetful(segment, inner), forgetful(&before[range.clone()], inner));
            }
        }
        order.extend(members);
    }
    let mut sorted = order.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..packets.len()).collect::<Vec<_>>(), "every packet once");
    let mut flows: BTreeMap<_, usize> = BTreeMap::new();
    for member in order {
        let inner = &packets[member].1;
        // Packets without ports have no flow that could be kept in order.
        if inner.ports.is_none() || !matches!(inner.protocol, TCP | UDP) {
            continue;
        }
        let key = (inner.src, inner.dst, inner.protocol, inner.ports);
        if let Some(last) = flows.insert(key, member) {
            assert!(last < member, "packet {member} overtook {last}");
        }
    }
}

/// A packet without what joining may lose: the push flag moves to the end, the identification of a packet that is never
/// fragmented means nothing, and checksums follow from the rest.
fn forgetful(packet: &[u8], inner: &InnerHeader) -> Vec<u8> {
    let mut out = packet.to_vec();
    let upper = inner.header_len;
    if inner.src.is_ipv4() {
        out[10..12].fill(0);
        if out[6] & 0x40 != 0 {
            out[4..6].fill(0);
        }
    }
    if inner.protocol == TCP {
        out[upper + 13] &= !0x08;
        out[upper + 16..upper + 18].fill(0);
    } else {
        out[upper + 6..upper + 8].fill(0);
    }
    out
}
