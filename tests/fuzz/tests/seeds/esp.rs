//! Seeds of the ESP targets.

use cygnet_esp::OutboundSa;
use cygnet_esp::checksum::{Sum, pseudo_header};
use cygnet_esp::inner::InnerHeader;
use cygnet_esp::segment::{Gso, VnetHeader};
use cygnet_fuzz::fixed::{sa, suites};
use cygnet_model::tunnel::Direction;

use super::{file, seed, unhex};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// An IP packet around `upper`, whose checksum at `checksum_at` is made right.
fn packet(v6: bool, protocol: u8, upper: &[u8], checksum_at: Option<usize>) -> Vec<u8> {
    let mut p = Vec::new();
    if v6 {
        p.extend([0x60, 0, 0, 0]);
        p.extend((upper.len() as u16).to_be_bytes());
        p.extend([protocol, 64]);
        p.extend([0xFD; 16]);
        p.extend([0xFE; 16]);
    } else {
        p.extend([0x45, 0]);
        p.extend((20 + upper.len() as u16).to_be_bytes());
        p.extend([0, 7, 0x40, 0, 64, protocol, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1]);
        let sum = Sum::default().octets(&p).checksum();
        p[10..12].copy_from_slice(&sum);
    }
    let start = p.len();
    p.extend(upper);
    if let Some(at) = checksum_at {
        p[start + at..start + at + 2].fill(0);
        let addresses = if v6 { 8..40 } else { 12..20 };
        let sum = pseudo_header(&p[addresses], protocol, upper.len() as u16).octets(&p[start..]).checksum();
        p[start + at..start + at + 2].copy_from_slice(&sum);
    }
    p
}

fn udp(v6: bool, len: usize) -> Vec<u8> {
    let mut upper = vec![0x12, 0x34, 0, 53];
    upper.extend((8 + len as u16).to_be_bytes());
    upper.extend([0, 0]);
    upper.extend((0..len).map(|i| (i * 7) as u8));
    packet(v6, UDP, &upper, Some(6))
}

fn tcp(v6: bool, seq: u32, len: usize, flags: u8) -> Vec<u8> {
    let mut upper = vec![0x12, 0x34, 0, 80];
    upper.extend(seq.to_be_bytes());
    upper.extend([1, 2, 3, 4, 0x80, flags, 0xAA, 0xBB, 0, 0, 0, 0, 1, 1, 8, 10, 9, 9, 9, 9, 8, 8, 8, 8]);
    upper.extend((0..len).map(|i| (seq as usize + i) as u8));
    packet(v6, TCP, &upper, Some(16))
}

/// Inner packets by name.
fn inner() -> Vec<(String, Vec<u8>)> {
    let mut all = vec![
        ("udp4".into(), udp(false, 30)),
        ("udp6".into(), udp(true, 30)),
        ("tcp4".into(), tcp(false, 1000, 40, 0x18)),
        ("tcp6".into(), tcp(true, 1000, 40, 0x10)),
        ("icmp4".into(), packet(false, 1, &[8, 0, 0, 0, 1, 2, 3, 4], None)),
        ("icmp6".into(), packet(true, 58, &[128, 0, 0, 0, 1, 2, 3, 4], None)),
        ("empty4".into(), packet(false, 59, &[], None)),
    ];
    let mut fragment = udp(false, 30);
    fragment[6..8].copy_from_slice(&[0x20, 0x04]);
    all.push(("later-fragment4".into(), fragment));
    let mut options = vec![0x46, 0x03, 0, 28, 0, 7, 0, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1, 1, 1, 1, 0];
    options.extend([0, 80, 0, 81]);
    all.push(("options4".into(), options));
    // Hop-by-hop, routing, fragment (first), destination options, then UDP.
    let extensions = [
        &[43, 0, 1, 4, 0, 0, 0, 0][..],
        &[44, 0, 0, 0, 0, 0, 0, 0],
        &[60, 0, 0, 1, 0, 0, 0, 9],
        &[17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x12, 0x34, 0, 53, 0, 8, 0, 0],
    ]
    .concat();
    all.push(("extensions6".into(), packet(true, 0, &extensions, None)));
    let later = [&[17, 0, 0, 0x08, 0, 0, 0, 9][..], &[1; 8]].concat();
    all.push(("later-fragment6".into(), packet(true, 44, &later, None)));
    let many: Vec<u8> = (0..20).flat_map(|_| [60, 0, 1, 4, 0, 0, 0, 0]).collect();
    all.push(("t82-twenty-extensions6".into(), packet(true, 60, &many, None)));
    all.push(("t82-extension-beyond-the-end6".into(), packet(true, 0, &[17, 255, 1, 4, 0, 0, 0, 0], None)));
    all.push(("ah6".into(), packet(true, 51, &[6, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 80, 0, 81], None)));
    let vectors: serde_json::Value =
        serde_json::from_str(&file("esp/tests/vectors/rfc4106_esp_gcm.json")).unwrap();
    for (n, test) in vectors["tests"].as_array().unwrap().iter().enumerate() {
        let plain = unhex(test["plaintext"].as_str().unwrap());
        if InnerHeader::parse(&plain).is_some() && n % 3 == 0 {
            all.push((format!("rfc4106-{:02}", n + 1), plain));
        }
    }
    all
}

pub fn packets() {
    for (name, octets) in [
        ("t20-empty", &[][..]),
        ("t20-keepalive", &[0xFF]),
        ("t20-two-octets", &[0xFF, 0xFF]),
        ("t20-three-octets", &[0, 0, 0]),
        ("t20-marker-only", &[0, 0, 0, 0]),
        ("t20-reserved-spi", &[0, 0, 0, 255, 0, 0, 0, 1, 9]),
        ("ike", &[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("esp", &[0xC0, 0xFF, 0xEE, 0, 0, 0, 0, 1, 9, 9, 9, 9]),
        ("seven-octets", &[0xC0, 0xFF, 0xEE, 0, 0, 0, 0]),
    ] {
        seed("esp_natt", name, octets);
    }
    for (name, octets) in inner() {
        seed("esp_inner", &name, &octets);
    }
    let mut short = udp(false, 30);
    short.pop();
    seed("esp_inner", "t82-cut", &short);
    for (name, at, value) in
        [("t82-header-length-4", 0, 0x41), ("t82-version-5", 0, 0x55), ("t82-total-length-0", 3, 0)]
    {
        let mut octets = udp(false, 30);
        octets[at] = value;
        seed("esp_inner", name, octets);
    }
    // Suite, place and kind of damage, packet.
    let inner = inner();
    for (i, (name, octets)) in inner.iter().enumerate() {
        let suite = (i * 3 % suites().len()) as u8;
        seed("esp_seal", name, [&[suite, 0, 5 * i as u8, 1], &**octets].concat());
    }
    // Suite, outer TOS octet, ESP packet.
    for (i, suite) in suites().into_iter().enumerate() {
        let sender = OutboundSa::new(&sa(suite, Direction::Out), 0).unwrap();
        let sealed = |plain: &[u8]| {
            let (layout, header) = (sender.layout(), InnerHeader::parse(plain).unwrap());
            let mut packet = vec![0; layout.sealed_len(plain.len())];
            packet[layout.head_len()..layout.head_len() + plain.len()].copy_from_slice(plain);
            sender.admit(&header).unwrap().seal(&mut packet, plain.len()).unwrap();
            packet
        };
        let plain = &inner[i % 7].1;
        if i % 5 == 0 {
            // Octets behind the inner packet's own end (RFC 4303 §2.7).
            let padded = sealed(&[plain, &[0; 37][..]].concat());
            seed("esp_open", &format!("suite-{i:02}-flow-padding"), [&[i as u8, 0], &*padded].concat());
        }
        let sealed = sealed(plain);
        seed("esp_open", &format!("suite-{i:02}"), [&[i as u8, 0], &*sealed].concat());
        if i % 6 == 0 {
            seed("esp_open", &format!("suite-{i:02}-congestion"), [&[i as u8, 3], &*sealed].concat());
            seed(
                "esp_open",
                &format!("t82-suite-{i:02}-cut"),
                [&[i as u8, 0], &sealed[..sealed.len() - 1]].concat(),
            );
        }
    }
    let vectors: serde_json::Value =
        serde_json::from_str(&file("esp/tests/vectors/rfc4106_esp_gcm.json")).unwrap();
    let packet = unhex(vectors["tests"][0]["esp_packet"].as_str().unwrap());
    seed("esp_open", "rfc4106-01", [&[0, 0], &*packet].concat());
    seed("esp_open", "t20-spi-only", [0, 0, 0xC0, 0xFF, 0xEE, 0]);
}

pub fn offloads() {
    let mut n = 0;
    for v6 in [false, true] {
        for (protocol, len, size) in
            [(TCP, 2500, 1000u16), (UDP, 1700, 500), (TCP, 900, 900), (TCP, 0, 1), (UDP, 100, 7)]
        {
            let (mut p, at, gso) = if protocol == TCP {
                (tcp(v6, u32::MAX - 9, len, 0x19), 16, if v6 { Gso::TcpV6 } else { Gso::TcpV4 })
            } else {
                (udp(v6, len), 6, Gso::Udp)
            };
            let start = if v6 { 40 } else { 20 };
            let addresses = if v6 { 8..40 } else { 12..20 };
            let partial = pseudo_header(&p[addresses], protocol, (p.len() - start) as u16).folded();
            p[start + at..start + at + 2].copy_from_slice(&partial);
            let vnet = VnetHeader {
                needs_csum: true,
                gso,
                hdr_len: (p.len() - len) as u16,
                gso_size: size,
                csum_start: start as u16,
                csum_offset: at as u16,
            };
            let s = |name: &str, vnet: VnetHeader| {
                let name = format!("{n:02}-{name}");
                seed("esp_segment", &name, [&vnet.to_bytes(), &*p].concat());
            };
            s("superpacket", vnet);
            if n % 3 == 0 {
                s("unsummed", VnetHeader { gso: Gso::None, ..vnet });
                s("plain", VnetHeader::PLAIN);
                s("size-0", VnetHeader { gso_size: 0, ..vnet });
                s("size-65535", VnetHeader { gso_size: u16::MAX, ..vnet });
                s("start-60000", VnetHeader { csum_start: 60_000, ..vnet });
                s("start-24", VnetHeader { csum_start: 24, ..vnet });
                s("offset-elsewhere", VnetHeader { csum_offset: 4, ..vnet });
                s(
                    "other-kind",
                    VnetHeader { gso: if gso == Gso::Udp { Gso::TcpV4 } else { Gso::Udp }, ..vnet },
                );
            }
            n += 1;
        }
    }

    let c = |name: &str, joins: u8, packets: &[Vec<u8>]| {
        let mut out = vec![joins];
        for p in packets {
            out.extend((p.len() as u16).to_be_bytes());
            out.extend(p);
        }
        seed("esp_coalesce", name, out);
    };
    let train = |v6: bool| vec![tcp(v6, 100, 60, 0x10), tcp(v6, 160, 60, 0x10), tcp(v6, 220, 30, 0x18)];
    c("tcp4", 0, &train(false));
    c("tcp6", 1, &train(true));
    c("nothing", 2, &train(false));
    c("udp", 0, &vec![udp(false, 50); 4]);
    c("udp-not-joined", 1, &vec![udp(false, 50); 4]);
    c("a-gap", 0, &[tcp(false, 100, 60, 0x10), tcp(false, 161, 60, 0x10)]);
    c("fin-between", 0, &[tcp(false, 100, 60, 0x10), tcp(false, 160, 60, 0x11), tcp(false, 220, 60, 0x10)]);
    c("a-longer-one", 0, &[tcp(false, 100, 30, 0x10), tcp(false, 130, 60, 0x10)]);
    c("two-flows", 0, &[train(false), train(true), vec![udp(true, 9), udp(true, 9)], train(false)].concat());
    c("wraps", 0, &[tcp(false, u32::MAX - 59, 60, 0x10), tcp(false, 0, 60, 0x10)]);
    let mut broken = train(false);
    broken[1][50] ^= 1;
    c("wrong-checksum", 0, &broken);
    broken[0][50] ^= 1;
    c("wrong-checksum-first", 0, &broken);
    let mut options = train(false);
    options.iter_mut().for_each(|p| p[0] = 0x46);
    c("options", 0, &options);
    let inner: Vec<Vec<u8>> = inner().into_iter().map(|(_, p)| p).collect();
    c("all-sorts", 0, &inner);
    let mut no_ports = udp(false, 0);
    no_ports.truncate(22);
    no_ports[3] = 22;
    c("udp-without-ports", 0, &[no_ports.clone(), udp(false, 9), no_ports]);
    c("ninety", 0, &(0..90).map(|i| tcp(false, i * 8, 8, 0x10)).collect::<Vec<_>>());
}

pub fn replay() {
    let r = |name: &str, octets: &[u8]| seed("esp_replay", name, octets);
    let steps = |options: u8, list: &[(u8, u16)]| {
        let mut out = vec![options];
        list.iter().for_each(|(kind, step)| {
            out.push(*kind);
            out.extend(step.to_be_bytes());
        });
        out
    };
    for size in 0..6 {
        for esn in [0, 0x80] {
            // Forward, back to both sides of the lower edge, again, a jump, back again.
            let list = [
                (0, 1),
                (0, 1),
                (2, 100),
                (1, 63),
                (1, 64),
                (1, 65),
                (1, 95),
                (1, 96),
                (1, 63),
                (2, 5000),
                (1, 1),
                (1, 1),
                (1, 127),
                (1, 128),
                (1, 1023),
                (1, 1024),
                (1, 4095),
                (1, 4096),
                (3, 0),
                (0, 0),
                (0, 4),
            ];
            r(&format!("edges-{size}-{esn:02x}"), &steps(options(size, esn), &list));
        }
    }
    let high: Vec<(u8, u16)> = (0..6).flat_map(|_| [(0xE2, 65535), (1, 7), (1, 70), (0, 1)]).collect();
    r("t71-esn-far-ahead", &steps(options(1, 0x80), &high));
    r("t71-no-esn-at-the-end", &steps(options(1, 0), &high));
    let down: Vec<(u8, u16)> = (0..200).rev().map(|n| (3, n)).collect();
    r("backwards", &steps(options(3, 0), &down));
}

/// An octet that chooses the size and whether there is ESN, as the target reads it.
fn options(size: u8, esn: u8) -> u8 {
    if esn == 0 { size } else { (0x80u8..).find(|o| o % 6 == size).unwrap() }
}
