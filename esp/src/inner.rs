//! The inner packet: what selectors, ECN and segmentation need to know of its headers, and nothing more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cygnet_model::selector::PacketEnd;

use crate::checksum;

/// IANA protocol numbers that are looked at.
pub(crate) mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const DEST_OPTIONS: u8 = 60;
    pub const SCTP: u8 = 132;
    pub const MOBILITY: u8 = 135;
    pub const UDP_LITE: u8 = 136;
}

/// More extension headers than this make a packet malformed: nobody sends them, and a walk must end.
const MAX_EXTENSIONS: usize = 16;

/// The facts of an IP packet's headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InnerHeader {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// The upper protocol, behind IPv6 extension headers.
    pub protocol: u8,
    /// Source and destination port, or twice `type << 8 | code` of ICMP (RFC 4301 §4.4.1.1). `None` where the packet
    /// shows none: later fragments, other protocols.
    pub ports: Option<(u16, u16)>,
    /// Whether it is a part of a datagram, the first one or a later one.
    pub fragment: bool,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of the packet by its own account; what follows in the buffer is not part of it.
    pub total_len: usize,
    /// Where the upper protocol begins.
    pub header_len: usize,
}

impl InnerHeader {
    /// Reads the headers of the packet at the start of `bytes`; `None` if that is no complete IPv4 or IPv6 packet.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match version(bytes)? {
            4 => parse_v4(bytes),
            6 => parse_v6(bytes),
            _ => None,
        }
    }

    /// Whether it is an echo request or reply (RFC 792, RFC 4443 §4.1).
    pub const fn is_icmp_echo(&self) -> bool {
        let kind = match self.ports {
            Some((kind_and_code, _)) => kind_and_code >> 8,
            None => return false,
        };
        match self.protocol {
            protocol::ICMP => matches!(kind, 0 | 8),
            protocol::ICMPV6 => matches!(kind, 128 | 129),
            _ => false,
        }
    }

    /// Source and destination port, where these tell flows between two addresses apart.
    pub(crate) const fn flow_ports(&self) -> Option<(u16, u16)> {
        match self.protocol {
            protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDP_LITE => {
                self.ports
            }
            _ => None,
        }
    }

    /// The end that sent the packet, as selectors see it.
    pub const fn source_end(&self) -> PacketEnd {
        let port = match self.ports {
            Some((source, _)) => Some(source),
            None => None,
        };
        PacketEnd { addr: self.src, protocol: self.protocol, port }
    }

    /// The end that shall receive the packet.
    pub const fn destination_end(&self) -> PacketEnd {
        let port = match self.ports {
            Some((_, destination)) => Some(destination),
            None => None,
        };
        PacketEnd { addr: self.dst, protocol: self.protocol, port }
    }
}

/// The IP version of a packet.
pub fn version(bytes: &[u8]) -> Option<u8> {
    bytes.first().map(|octet| octet >> 4)
}

/// Writes DSCP and ECN into an IP header, and the IPv4 header checksum that follows from it.
pub fn set_tos(packet: &mut [u8], tos: u8) {
    match packet {
        [first, old_tos, rest @ ..] if *first >> 4 == 4 => {
            if let Some(field) = rest.get_mut(8..).and_then(|r| r.first_chunk_mut::<2>()) {
                *field = checksum::update(*field, [*first, *old_tos], [*first, tos]);
                *old_tos = tos;
            }
        }
        [first, second, ..] if *first >> 4 == 6 => {
            *first = 0x60 | tos >> 4;
            *second = tos << 4 | *second & 0x0F;
        }
        _ => {}
    }
}

fn parse_v4(bytes: &[u8]) -> Option<InnerHeader> {
    let header = bytes.first_chunk::<20>()?;
    let [first, tos, len_a, len_b, _, _, frag_a, frag_b, _, proto, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
        *header;
    let header_len = usize::from(first & 0x0F) * 4;
    let total_len = usize::from(u16::from_be_bytes([len_a, len_b]));
    if header_len < 20 || total_len < header_len || bytes.len() < total_len {
        return None;
    }
    let place = u16::from_be_bytes([frag_a, frag_b]);
    let later_fragment = place & 0x1FFF != 0;
    let upper = bytes.get(header_len..total_len)?;
    Some(InnerHeader {
        src: Ipv4Addr::new(s0, s1, s2, s3).into(),
        dst: Ipv4Addr::new(d0, d1, d2, d3).into(),
        protocol: proto,
        ports: if later_fragment { None } else { ports(proto, upper) },
        // An offset, or more fragments behind it (RFC 791 §3.1).
        fragment: place & 0x3FFF != 0,
        tos,
        total_len,
        header_len,
    })
}

fn parse_v6(bytes: &[u8]) -> Option<InnerHeader> {
    let (header, _) = bytes.split_first_chunk::<40>()?;
    let [first, second, _, _, len_a, len_b, next, _, addresses @ ..] = header;
    let (src, dst) = addresses.split_first_chunk::<16>()?;
    let dst = dst.first_chunk::<16>()?;
    let total_len = 40 + usize::from(u16::from_be_bytes([*len_a, *len_b]));
    let packet = bytes.get(..total_len)?;
    let mut header_len = 40;
    let mut protocol = *next;
    let (mut fragment, mut later_fragment) = (false, false);
    for _ in 0..MAX_EXTENSIONS {
        let rest = packet.get(header_len..)?;
        let len = match protocol {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DEST_OPTIONS => {
                (usize::from(*rest.get(1)?) + 1) * 8
            }
            protocol::AH => (usize::from(*rest.get(1)?) + 2) * 4,
            protocol::FRAGMENT => {
                let place = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]);
                later_fragment = place & 0xFFF8 != 0;
                // One that is neither later nor has more behind it is a whole datagram (RFC 6946).
                fragment |= place & 0xFFF9 != 0;
                8
            }
            _ => {
                return Some(InnerHeader {
                    src: Ipv6Addr::from(*src).into(),
                    dst: Ipv6Addr::from(*dst).into(),
                    protocol,
                    ports: if later_fragment { None } else { ports(protocol, rest) },
                    fragment,
                    tos: *first << 4 | *second >> 4,
                    total_len,
                    header_len,
                });
            }
        };
        protocol = *rest.first()?;
        header_len += len;
        if later_fragment {
            // What follows is the middle of something, not a header; the loop ends at `protocol` whatever it is.
            let rest_is = InnerHeader {
                src: Ipv6Addr::from(*src).into(),
                dst: Ipv6Addr::from(*dst).into(),
                protocol,
                ports: None,
                fragment,
                tos: *first << 4 | *second >> 4,
                total_len,
                header_len,
            };
            return (header_len <= total_len).then_some(rest_is);
        }
    }
    None
}

fn ports(proto: u8, upper: &[u8]) -> Option<(u16, u16)> {
    match proto {
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDP_LITE => {
            let [a, b, c, d] = *upper.first_chunk::<4>()?;
            Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let both = u16::from_be_bytes(*upper.first_chunk::<2>()?);
            Some((both, both))
        }
        protocol::MOBILITY => {
            let both = u16::from(*upper.get(2)?) << 8;
            Some((both, both))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A minimal IPv4 UDP packet from 10.1.0.1:4660 to 10.2.0.1:53 with a right header checksum.
    fn v4() -> Vec<u8> {
        let mut p = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1];
        p.extend([0x12, 0x34, 0, 53, 0, 8, 0, 0]);
        let sum = checksum::Sum::default().octets(&p[..20]).checksum();
        p[10..12].copy_from_slice(&sum);
        p
    }

    fn v6(extensions: &[(u8, &[u8])], last: u8, payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0x6B, 0x80, 0, 0, 0, 0, 0, 64];
        p.extend([0xfd; 16]);
        p.extend([0xfe; 16]);
        let mut at = 6;
        for (kind, body) in extensions {
            p[at] = *kind;
            at = p.len();
            p.extend(*body);
        }
        p[at] = last;
        p.extend(payload);
        let len = (p.len() - 40) as u16;
        p[4..6].copy_from_slice(&len.to_be_bytes());
        p
    }

    #[test]
    fn ipv4_shows_its_ports() {
        let header = InnerHeader::parse(&v4()).unwrap();
        assert_eq!(header.ports, Some((0x1234, 53)));
        assert_eq!((header.protocol, header.total_len, header.header_len), (17, 28, 20));
    }

    #[test]
    fn later_fragments_show_no_ports() {
        let mut p = v4();
        p[7] = 1;
        assert_eq!(InnerHeader::parse(&p).unwrap().ports, None);
        let fragment: &[u8] = &[0, 0, 0x01, 0x00, 0, 0, 0, 1];
        let header = InnerHeader::parse(&v6(&[(44, fragment)], 17, &[1; 16])).unwrap();
        assert_eq!((header.protocol, header.ports), (17, None));
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        let options: &[u8] = &[0; 8];
        let fragment: &[u8] = &[0, 0, 0, 1, 0, 0, 0, 1];
        let p = v6(&[(0, options), (60, options), (44, fragment)], 6, &[0, 80, 0, 81, 0, 0]);
        let header = InnerHeader::parse(&p).unwrap();
        assert_eq!((header.protocol, header.ports, header.header_len), (6, Some((80, 81)), 64));
        assert_eq!(header.tos, 0xB8);
    }

    #[test]
    fn icmp_type_and_code_stand_for_ports() {
        let p = v6(&[], 58, &[128, 3, 0, 0]);
        assert_eq!(InnerHeader::parse(&p).unwrap().ports, Some((0x8003, 0x8003)));
    }

    #[test]
    fn endless_extension_headers_are_malformed() {
        let options: &[u8] = &[60, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(InnerHeader::parse(&v6(&[(60, options); 40], 17, &[0; 8])), None);
    }

    #[test]
    fn lengths_that_lie_are_malformed() {
        for len in [0, 19, 29, 65535u16] {
            let mut p = v4();
            p[2..4].copy_from_slice(&len.to_be_bytes());
            assert_eq!(InnerHeader::parse(&p), None, "{len}");
        }
        for first in [0x44, 0x55, 0x00, 0x75] {
            let mut p = v4();
            p[0] = first;
            assert!(InnerHeader::parse(&p).is_none_or(|h| h.header_len <= h.total_len));
        }
    }

    #[test]
    fn tos_is_set_with_a_right_checksum() {
        let mut p = v4();
        set_tos(&mut p, 0xB9);
        assert_eq!(p[1], 0xB9);
        assert!(checksum::Sum::default().octets(&p[..20]).is_valid());
        let mut p = v6(&[], 17, &[0; 8]);
        set_tos(&mut p, 0x2F);
        assert_eq!(InnerHeader::parse(&p).unwrap().tos, 0x2F);
        assert_eq!(p[0] >> 4, 6);
    }

    proptest! {
        #[test]
        fn nothing_panics_and_lengths_hold(mut bytes in prop::collection::vec(any::<u8>(), 0..120), v in prop::sample::select(vec![0x45u8, 0x60])) {
            if let Some(first) = bytes.first_mut() { *first = v; }
            if let Some(header) = InnerHeader::parse(&bytes) {
                prop_assert!(header.header_len <= header.total_len && header.total_len <= bytes.len());
            }
            set_tos(&mut bytes, 3);
        }
    }
}
