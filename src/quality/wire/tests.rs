use super::*;

const PROBE: Probe = Probe { token: 0x0123_4567_89AB_CDEF, tunnel: TunnelId(7), seq: 70_000, by: None };
const METHODS: [Method; 3] = [Method::Icmp, Method::Udp { port: 7 }, Method::Udp { port: 60_000 }];

fn ends() -> [(IpAddr, IpAddr); 2] {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    [(ip("10.1.0.1"), ip("10.2.0.2")), (ip("fd01::1"), ip("fd02::ffff:2"))]
}

/// The sum over everything with its checksum is zero (RFC 1071 §1).
fn sums_up(packet: &[u8], header: &InnerHeader) -> bool {
    let upper = &packet[header.header_len..];
    let pseudo = |addresses: &[u8]| sum_of(addresses) + upper.len() as u32 + u32::from(header.protocol);
    match header.src {
        IpAddr::V4(_) => {
            let pseudo = if header.protocol == ICMP { 0 } else { pseudo(&packet[12..20]) };
            fold(sum_of(&packet[..header.header_len])) == 0 && fold(pseudo + sum_of(upper)) == 0
        }
        IpAddr::V6(_) => fold(pseudo(&packet[8..40]) + sum_of(upper)) == 0,
    }
}

fn seen(packet: &[u8]) -> Option<Seen> {
    let header = InnerHeader::parse(packet)?;
    may_be(&header).then(|| read(header.protocol, &packet[header.header_len..]))?
}

#[test]
fn a_probe_is_an_echo_request_or_a_datagram_whose_answer_is_known() {
    for (method, (source, target)) in METHODS.into_iter().flat_map(|m| ends().map(|e| (m, e))) {
        let packet = request(&PROBE, method, source, target).unwrap();
        let header = InnerHeader::parse(&packet).unwrap();
        assert_eq!((header.src, header.dst, header.total_len), (source, target, packet.len()));
        assert!(sums_up(&packet, &header), "{method:?}");
        assert_eq!(seen(&packet), Some(Seen::Request(PROBE)));

        let answer = answer(&packet, &header, 3).unwrap();
        let header = InnerHeader::parse(&answer).unwrap();
        assert_eq!((header.src, header.dst), (target, source));
        assert!(sums_up(&answer, &header), "{method:?}");
        assert_eq!(seen(&answer), Some(Seen::Answer(Reply { probe: PROBE, received: Some(3), method })));
    }
    let [(v4, _), (v6, _)] = ends();
    assert_eq!(request(&PROBE, Method::Icmp, v4, v6), None);
}

/// Packed and summed by Python (`struct`, RFC 1071), field by field as RFC 768, RFC 791 and RFC 8200 have them.
#[test]
fn a_datagram_is_as_another_program_makes_it() {
    let data = "6379676e657451310123456789abcdef00000007000111700000000000070000";
    let expected = [
        format!("45c0003c00004000401125ec0a0100010a020002cdef00070028ec6f{data}"),
        format!(
            "6c00000000281140fd010000000000000000000000000001fd0200000000000000000000ffff0002cdef00070028066e{data}"
        ),
    ];
    for ((source, target), expected) in ends().into_iter().zip(expected) {
        let packet = request(&PROBE, Method::Udp { port: 7 }, source, target).unwrap();
        let hex: String = packet.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(hex, expected);
    }
}

/// A checksum of zero would say that there is none, which IPv6 forbids.
#[test]
fn no_datagram_goes_without_a_checksum() {
    let method = Method::Udp { port: 7 };
    for (source, target) in ends() {
        let at = if source.is_ipv4() { V4_LEN } else { V6_LEN } + 6;
        // The numbers run through all sums.
        let turned = (0..=u32::from(u16::MAX)).find_map(|seq| {
            let packet = request(&Probe { seq, ..PROBE }, method, source, target).unwrap();
            assert_ne!(packet[at..at + 2], [0, 0]);
            (packet[at..at + 2] == [0xFF, 0xFF]).then_some(packet)
        });
        let packet = turned.unwrap();
        assert!(sums_up(&packet, &InnerHeader::parse(&packet).unwrap()));
    }
}

/// A host that answers changes nothing but type and checksum, or turns the ports round.
#[test]
fn the_answer_of_another_host_tells_no_count() {
    let [(source, target), _] = ends();
    let mut packet = request(&PROBE, Method::Icmp, source, target).unwrap();
    packet[V4_LEN] = V4_ECHO.1;
    let mut reply = Reply { probe: PROBE, received: None, method: Method::Icmp };
    assert_eq!(seen(&packet), Some(Seen::Answer(reply)));

    for (source, target) in ends() {
        reply.method = Method::Udp { port: 7 };
        let packet = request(&PROBE, reply.method, source, target).unwrap();
        assert_eq!(seen(&echoed(packet)), Some(Seen::Answer(reply)));
    }
}

/// What an Echo service makes of a datagram, as far as ports go.
fn echoed(mut packet: Vec<u8>) -> Vec<u8> {
    let at = InnerHeader::parse(&packet).unwrap().header_len;
    packet[at..at + 4].rotate_left(2);
    packet
}

#[test]
fn an_answer_to_other_ports_is_none() {
    let [(source, target), _] = ends();
    for method in [Method::Udp { port: 7 }, Method::Udp { port: 0xCDEF }] {
        let packet = echoed(request(&PROBE, method, source, target).unwrap());
        assert!(matches!(seen(&packet), Some(Seen::Answer(_))));
        for at in V4_LEN..V4_LEN + 6 {
            for bit in 0..8 {
                let mut other = packet.clone();
                other[at] ^= 1 << bit;
                assert_eq!(seen(&other), None, "octet {at}, bit {bit}");
            }
        }
    }
    // From a port to itself a datagram has no direction.
    let mut packet = request(&PROBE, Method::Udp { port: 7 }, source, target).unwrap();
    packet.copy_within(V4_LEN + 2..V4_LEN + 4, V4_LEN);
    assert_eq!(seen(&packet), None);
}

#[test]
fn what_is_cut_short_or_of_others_is_no_probe() {
    let [(source, target), _] = ends();
    for method in METHODS {
        let packet = request(&PROBE, method, source, target).unwrap();
        let protocol = InnerHeader::parse(&packet).unwrap().protocol;
        for len in 0..packet.len() - V4_LEN {
            assert_eq!(read(protocol, &packet[V4_LEN..V4_LEN + len]), None);
        }
        let mut other = packet.clone();
        other[V4_LEN + HEAD_LEN] ^= 0x40;
        assert_eq!(seen(&other), None);
        let other = if protocol == ICMP { UDP } else { ICMP };
        assert_eq!(read(other, &packet[V4_LEN..]), None);
        let nowhere = InnerHeader { header_len: packet.len(), ..InnerHeader::parse(&packet).unwrap() };
        assert_eq!(answer(&packet, &nowhere, 1), None);
    }
    let packet = request(&PROBE, Method::Icmp, source, target).unwrap();
    for at in [V4_LEN, V4_LEN + 1] {
        let mut other = packet.clone();
        other[at] ^= 0x40;
        assert_eq!(seen(&other), None, "octet {at}");
    }
    // A later fragment begins with what looks like a probe.
    let mut fragment = request(&PROBE, Method::Udp { port: 7 }, source, target).unwrap();
    fragment[7] = 1;
    assert_eq!(seen(&fragment), None);
    // Longer ones are no probes.
    let mut longer = request(&PROBE, Method::Udp { port: 7 }, source, target).unwrap();
    longer.push(0);
    longer[3] += 1;
    assert_eq!(seen(&longer), None);
}

/// The last four octets of the data, which others do not read.
#[test]
fn an_echo_request_names_its_sa() {
    let by = Spi::new(0xC0DE_1234);
    for (source, target) in ends() {
        let named = request(&Probe { by, ..PROBE }, Method::Icmp, source, target).unwrap();
        let header = InnerHeader::parse(&named).unwrap();
        assert!(sums_up(&named, &header));
        assert_eq!(&named[named.len() - 4..], [0xC0, 0xDE, 0x12, 0x34]);
        assert_eq!(seen(&named), Some(Seen::Request(Probe { by, ..PROBE })));
        // The answer is that to one without: known by the header, or by what it said alone.
        let reply = answer(&named, &header, 3).unwrap();
        let unnamed = request(&PROBE, Method::Icmp, source, target).unwrap();
        assert_eq!(answer(&unnamed, &InnerHeader::parse(&unnamed).unwrap(), 3).unwrap(), reply);
        assert_eq!(echo_reply(&Probe { by, ..PROBE }, target, source, 3).unwrap(), reply);
        // A datagram has its length, which earlier versions check.
        let method = Method::Udp { port: 7 };
        let datagram = request(&Probe { by, ..PROBE }, method, source, target).unwrap();
        assert_eq!(datagram, request(&PROBE, method, source, target).unwrap());
        // 0 to 255 are no SPIs (RFC 4303 §2.1).
        let mut reserved = named;
        let at = reserved.len() - 4;
        reserved[at..].copy_from_slice(&[0, 0, 0, 255]);
        assert_eq!(seen(&reserved), Some(Seen::Request(PROBE)));
    }
}
