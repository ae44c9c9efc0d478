use proptest::prelude::*;

use super::*;
use crate::checksum::pseudo_header;
use crate::testing::packet;

/// A superpacket as the kernel hands it out: complete IP header, partial checksum.
fn superpacket(v6: bool, proto: u8, len: usize, size: u16, flags: u8) -> (VnetHeader, Vec<u8>) {
    let (src, dst) = if v6 { ("fd01::1", "fd02::1") } else { ("10.1.0.1", "10.2.0.1") };
    let (upper, at) = upper(proto, len, flags);
    let mut p = packet(src, dst, proto, &upper, None);
    let start = p.len() - upper.len();
    let addresses = if v6 { 8..40 } else { 12..20 };
    let partial = pseudo_header(&p[addresses], proto, upper.len() as u16).folded();
    p[start + at..start + at + 2].copy_from_slice(&partial);
    let gso = match (proto, v6) {
        (protocol::UDP, _) => Gso::Udp,
        (_, false) => Gso::TcpV4,
        _ => Gso::TcpV6,
    };
    let hdr_len = (p.len() - len) as u16;
    let vnet = VnetHeader {
        needs_csum: true,
        gso,
        hdr_len,
        gso_size: size,
        csum_start: start as u16,
        csum_offset: at as u16,
    };
    (vnet, p)
}

fn upper(proto: u8, len: usize, flags: u8) -> (Vec<u8>, usize) {
    let body = (0..len).map(|i| (i % 251) as u8);
    if proto == protocol::UDP {
        let total = (8 + len) as u16;
        let mut h = vec![0x12, 0x34, 0, 53, (total >> 8) as u8, total as u8, 0, 0];
        h.extend(body);
        (h, UDP_CHECKSUM_AT)
    } else {
        let mut h =
            vec![0x12, 0x34, 0, 80, 0xFF, 0xFF, 0xFF, 0xF0, 1, 2, 3, 4, 0x80, flags, 0xAA, 0xBB, 0, 0, 0, 0];
        h.extend([1, 1, 8, 10, 9, 9, 9, 9, 8, 8, 8, 8]);
        h.extend(body);
        (h, TCP_CHECKSUM_AT)
    }
}

fn cut(vnet: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let inner = InnerHeader::parse(packet).unwrap();
    let superpacket = Superpacket::new(vnet, packet, &inner).unwrap();
    (0..superpacket.count())
        .map(|i| {
            let mut out = vec![0xEE; superpacket.segment_len(i)];
            superpacket.write(i, &mut out).unwrap();
            out
        })
        .collect()
}

/// Checks lengths and checksums of one segment and returns its upper header and payload.
fn inspect(segment: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let inner = InnerHeader::parse(segment).unwrap();
    assert_eq!(inner.total_len, segment.len());
    let v4 = segment[0] >> 4 == 4;
    if v4 {
        assert!(Sum::default().octets(&segment[..20]).is_valid());
    }
    let upper = &segment[inner.header_len..];
    let addresses = if v4 { 12..20 } else { 8..40 };
    assert!(pseudo_header(&segment[addresses], inner.protocol, upper.len() as u16).octets(upper).is_valid());
    let header_len = if inner.protocol == protocol::UDP { 8 } else { 32 };
    (upper[..header_len].to_vec(), upper[header_len..].to_vec())
}

#[test]
fn flags_and_numbers_of_tcp_segments() {
    let (vnet, packet) = superpacket(false, protocol::TCP, 2500, 1000, 0x10 | TCP_PSH | TCP_FIN | TCP_CWR);
    let segments = cut(&vnet, &packet);
    assert_eq!(segments.iter().map(Vec::len).collect::<Vec<_>>(), [1052, 1052, 552]);
    let heads: Vec<_> = segments.iter().map(|s| inspect(s).0).collect();
    assert_eq!(heads.iter().map(|h| h[TCP_FLAGS_AT]).collect::<Vec<_>>(), [0x90, 0x10, 0x19]);
    // The sequence number wraps.
    assert_eq!(heads.iter().map(|h| h[4..8].to_vec()).collect::<Vec<_>>()[1], 984u32.to_be_bytes());
    assert_eq!(segments.iter().map(|s| s[5]).collect::<Vec<_>>(), [7, 8, 9]);
}

#[test]
fn an_ordinary_packet_gets_its_checksum() {
    for proto in [protocol::TCP, protocol::UDP] {
        let (vnet, packet) = superpacket(false, proto, 100, 0, 0x10);
        let segments = cut(&VnetHeader { gso: Gso::None, ..vnet }, &packet);
        assert_eq!(segments.len(), 1);
        assert_eq!(inspect(&segments[0]).1.len(), 100);
        assert_eq!(cut(&VnetHeader::PLAIN, &packet), [packet]);
    }
}

#[test]
fn contradictions_are_refused() {
    let (vnet, packet) = superpacket(false, protocol::TCP, 3000, 1000, 0x10);
    let inner = InnerHeader::parse(&packet).unwrap();
    for bad in [
        VnetHeader { gso_size: 0, ..vnet },
        VnetHeader { csum_start: 60_000, ..vnet },
        VnetHeader { csum_start: 3, ..vnet },
        VnetHeader { csum_offset: 6, ..vnet },
        VnetHeader { needs_csum: false, ..vnet },
    ] {
        assert!(Superpacket::new(&bad, &packet, &inner).is_none(), "{bad:?}");
    }
    // The upper protocol begins inside the IPv6 header.
    let (vnet, packet) = superpacket(true, protocol::UDP, 100, 50, 0);
    let inner = InnerHeader::parse(&packet).unwrap();
    let bad = VnetHeader { csum_start: 24, ..vnet };
    assert!(Superpacket::new(&bad, &packet, &inner).is_none());
    assert_eq!(VnetHeader::from_bytes([0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
}

proptest! {
    #[test]
    fn segments_make_up_the_superpacket(v6: bool, udp: bool, len in 1usize..20_000, size in 400u16..9000) {
        let proto = if udp { protocol::UDP } else { protocol::TCP };
        let (vnet, packet) = superpacket(v6, proto, len, size, 0x10);
        prop_assert_eq!(VnetHeader::from_bytes(vnet.to_bytes()), Some(vnet));
        let mut payload = Vec::new();
        let segments = cut(&vnet, &packet);
        prop_assert_eq!(segments.len(), len.div_ceil(usize::from(size)));
        for segment in &segments {
            let (head, body) = inspect(segment);
            prop_assert!(body.len() <= usize::from(size));
            if !udp {
                let seq = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                prop_assert_eq!(seq, 0xFFFF_FFF0u32.wrapping_add(payload.len() as u32));
            }
            payload.extend(body);
        }
        prop_assert_eq!(&payload[..], &packet[packet.len() - len..]);
    }

    #[test]
    fn random_headers_never_panic(bytes in any::<[u8; VNET_LEN]>(), mut packet in prop::collection::vec(any::<u8>(), 20..200)) {
        packet[0] = 0x45;
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        if let (Some(vnet), Some(inner)) = (VnetHeader::from_bytes(bytes), InnerHeader::parse(&packet))
            && let Some(superpacket) = Superpacket::new(&vnet, &packet, &inner)
        {
            for i in 0..superpacket.count() {
                let mut out = vec![0; superpacket.segment_len(i)];
                superpacket.write(i, &mut out);
            }
        }
    }
}
