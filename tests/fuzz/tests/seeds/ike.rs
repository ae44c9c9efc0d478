//! Seeds of the IKE targets. Names begin with the case of the hardening list that they come from, where there is one.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use cygnet_fuzz::fixed::{channel, ike_suites};
use cygnet_ike::Command;
use cygnet_ike::io::Role;
use cygnet_ike::recording::Recorder;
use cygnet_ike::wire::{
    Auth, AuthMethod, Delete, Exchange, HEADER_LEN, Header, Identity, Notify, NotifyType, PayloadType,
    Payloads, Proposal, Protocol, Transform, TransformType, Writer, ts,
};
use cygnet_model::selector::{IpRange, TrafficSelector};
use cygnet_sim::{Lab, Link, Seeded, TUNNEL};

use super::{seed, unhex};

/// Every datagram of a handshake, both rekeys and a deletion, and what gateway 0 recorded of them.
fn story() -> (Vec<Vec<u8>>, String) {
    let log: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
    let tapped = Rc::clone(&log);
    // The first request is sent before anybody can listen, and again a second later.
    let mut lab = Lab::pair(7, Link { loss: 1000, ..Link::GOOD });
    lab.link = Link::GOOD;
    lab.recording = Some((0, Recorder::default()));
    lab.tap = Some(Box::new(move |_, octets| {
        tapped.borrow_mut().push(octets.clone());
        Some(octets)
    }));
    lab.run(Duration::from_secs(5));
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(Duration::from_secs(1));
    lab.command(1, Command::RekeyIke(TUNNEL));
    lab.run(Duration::from_secs(1));
    lab.command(1, Command::Down(TUNNEL));
    lab.run(Duration::from_secs(1));
    let (_, recorder) = lab.recording.take().unwrap();
    let text = recorder.text(lab.now());
    drop(lab);
    (log.take(), text)
}

/// What a gateway hands in: as it was written, without its first line, and with one line cut.
pub fn recording() {
    let (_, text) = story();
    seed("recording", "story", &text);
    seed("recording", "no-title", text.split_once('\n').unwrap().1);
    seed("recording", "cut", text.trim_end().trim_end_matches(|c| c != ' '));
    seed("recording", "empty", format!("{}\n", cygnet_ike::recording::TITLE));
}

/// Recorded datagrams, each exchange and direction once, under names such as `03-create_child_sa-response`.
fn recorded() -> Vec<(String, Vec<u8>)> {
    let mut out: Vec<(String, Vec<u8>)> = Vec::new();
    for octets in story().0 {
        if out.iter().any(|(_, o)| *o == octets) {
            continue;
        }
        let (header, _) = Header::decode(&octets).unwrap();
        let kind = if header.response { "response" } else { "request" };
        let name = format!("{:02}-{}-{kind}", out.len(), header.exchange.to_string().to_lowercase());
        out.push((name, octets));
    }
    out
}

pub fn header() {
    for (name, octets) in recorded() {
        seed("ike_header", &name, &octets);
    }
    let plain = |version: u8, flags: u8, length: u32| {
        let mut octets = vec![0x11; 16];
        octets.extend([41, version, 37, flags, 0, 0, 0, 1]);
        octets.extend(length.to_be_bytes());
        octets
    };
    for length in [0, 27, 29, 1 << 31, u32::MAX] {
        seed("ike_header", &format!("t03-length-{length}"), plain(0x20, 0x08, length));
    }
    seed("ike_header", "t03-short", &plain(0x20, 0x08, 27)[..27]);
    for version in [0x10, 0x21, 0x30, 0xFF] {
        seed("ike_header", &format!("t06-version-{version:02x}"), plain(version, 0x08, 28));
    }
    seed("ike_header", "t07-reserved-flags", plain(0x20, 0xFF, 28));
    seed("ike_header", "keepalive", [0xFF]);
}

fn net(a: [u8; 4], len: u8) -> TrafficSelector {
    TrafficSelector::cidr(a.into(), len).unwrap()
}

fn proposal(protocol: Protocol, spi: Vec<u8>, number: u8) -> Proposal {
    let mut transforms = vec![Transform { key_bits: Some(256), ..Transform::plain(TransformType::ENCR, 20) }];
    if protocol == Protocol::IKE {
        transforms.push(Transform::plain(TransformType::PRF, 6));
        transforms.extend([31, 20, 14].map(|id| Transform::plain(TransformType::KE, id)));
    } else {
        transforms.extend([0, 1].map(|id| Transform::plain(TransformType::ESN, id)));
    }
    Proposal { number, protocol, spi, transforms }
}

/// What our own exchanges carry inside of SK.
fn inside() -> Vec<(&'static str, Payloads)> {
    let ts = |a: u8| Some(vec![net([10, a, 0, 0], 16), net([10, a, 0, 9], 32)]);
    let esp = |spi: u8| Some(vec![proposal(Protocol::ESP, vec![0xC0, 0xFF, 0xEE, spi], 1)]);
    let auth = Payloads {
        idi: Some(Identity::address([192, 0, 2, 1].into())),
        idr: Some(Identity::fqdn("gw.example.org")),
        auth: Some(Auth { method: AuthMethod::SHARED_KEY_MIC, data: vec![0xA5; 48] }),
        sa: esp(1),
        tsi: ts(1),
        tsr: ts(2),
        notifies: vec![Notify::new(NotifyType::INITIAL_CONTACT, vec![])],
        ..Payloads::default()
    };
    let rekey = Notify {
        protocol: Protocol::ESP,
        spi: vec![0xC0, 0xFF, 0xEE, 1],
        kind: NotifyType::REKEY_SA,
        data: vec![],
    };
    let ke = cygnet_ike::wire::KeyExchange { group: 31, data: vec![9; 32] };
    let child = Payloads {
        sa: esp(2),
        ke: Some(ke.clone()),
        nonce: Some(vec![7; 32]),
        tsi: ts(1),
        tsr: ts(2),
        notifies: vec![rekey],
        ..Payloads::default()
    };
    let ike = Payloads {
        sa: Some(vec![proposal(Protocol::IKE, vec![3; 8], 1), proposal(Protocol::IKE, vec![3; 8], 2)]),
        ke: Some(ke),
        nonce: Some(vec![8; 256]),
        ..Payloads::default()
    };
    let delete = |d: Delete| Payloads { deletes: vec![d], ..Payloads::default() };
    let refused = Payloads {
        notifies: vec![Notify::new(NotifyType::INVALID_KE_PAYLOAD, vec![0, 19])],
        ..Payloads::default()
    };
    vec![
        ("auth-request", auth),
        ("rekey-child", child),
        ("rekey-ike", ike),
        ("delete-child", delete(Delete::Esp(vec![0xC0FF_EE01, 0xC0FF_EE02]))),
        ("delete-ike", delete(Delete::Ike)),
        ("invalid-ke", refused),
        ("empty", Payloads::default()),
    ]
}

fn chain(p: &Payloads) -> (u8, Vec<u8>) {
    let mut w = Writer::chain();
    p.encode(&mut w);
    (w.first().0, w.into_chain())
}

/// One payload as a whole chain.
fn lone(kind: PayloadType, body: &[u8]) -> Vec<u8> {
    let mut w = Writer::chain();
    w.payload(kind, |b| b.extend_from_slice(body));
    [&[kind.0], &*w.into_chain()].concat()
}

pub fn payloads() {
    for (name, octets) in recorded() {
        let (header, rest) = Header::decode(&octets).unwrap();
        if header.exchange == Exchange::IKE_SA_INIT {
            seed("ike_payloads", &name, [&[header.next.0], rest].concat());
        }
    }
    for (name, payloads) in inside() {
        let (first, chain) = chain(&payloads);
        seed("ike_payloads", name, [&[first], &*chain].concat());
    }
    let lone_seed = |name: &str, kind, body: &[u8]| seed("ike_payloads", name, lone(kind, body));
    for length in [0u8, 1, 2, 3, 5, 8] {
        let octets = [PayloadType::NONCE.0, 0, 0, 0, length, 1, 2, 3];
        seed("ike_payloads", &format!("t02-length-{length}"), octets);
    }
    seed("ike_payloads", "t02-length-65535", [PayloadType::NOTIFY.0, 0, 0, 0xFF, 0xFF, 0, 0, 0x40, 4]);
    let empties = |n: usize| {
        let mut octets = vec![PayloadType::VENDOR.0];
        (0..n).for_each(|i| octets.extend([if i + 1 == n { 0 } else { PayloadType::VENDOR.0 }, 0, 0, 4]));
        octets
    };
    for n in [64, 65, 5000] {
        seed("ike_payloads", &format!("t04-{n}-empty-payloads"), empties(n));
    }
    seed("ike_payloads", "t04-next-beyond-the-end", [PayloadType::VENDOR.0, 33, 0, 0, 4]);
    seed("ike_payloads", "t08-critical-unknown", [200, 0, 0x80, 0, 5, 9]);
    seed("ike_payloads", "t08-unknown", [200, 0, 0, 0, 5, 9]);
    let mut twice = lone(PayloadType::NONCE, &[1; 16]);
    twice[1] = PayloadType::NONCE.0;
    twice.extend(&lone(PayloadType::NONCE, &[2; 16])[1..]);
    seed("ike_payloads", "t09-two-nonces", twice);
    for len in [15, 16, 256, 257] {
        lone_seed(&format!("t11-nonce-{len}"), PayloadType::NONCE, &vec![1; len]);
    }
    // Proposal: last, reserved, length, number, protocol, SPI size, transforms. Transform: last, reserved, length, kind,
    // reserved, id, attributes.
    for (name, body) in [
        ("t12-no-proposal", ""),
        ("t12-no-transform", "0000000801010000"),
        ("t12-count-wrong", "0000001401010002 0300000c0100000c800e0080"),
        ("t12-last-flag-wrong", "0200001401010001 0000000c0100000c800e0080"),
        ("t12-proposal-length-3", "0000000301010000"),
        ("t12-spi-beyond-the-end", "00000008 0103ff00"),
        ("t12-no-key-length", "0000001001010001 000000080100000c"),
        ("t12-key-length-65535", "0000001401010001 0000000c0100000c800effff"),
        ("t12-two-key-lengths", "0000001801010001 000000100100000c800e0080800e0100"),
        ("t12-long-attribute", "0000001c01010001 000000140100000c 800e0080 00120004 01020304"),
        ("t12-attribute-beyond-the-end", "0000001401010001 0000000c0100000c0012ffff"),
        ("t12-unknown-transform-type", "0000001001010001 000000085f000001"),
        ("t12-transform-length-0", "0000001001010001 000000000100000c"),
    ] {
        lone_seed(name, PayloadType::SA, &unhex(&body.replace(' ', "")));
    }
    for (name, body) in
        [("t13-ke-unknown-group", "0401000000"), ("t13-ke-empty", "001f0000"), ("t13-ke-short", "001f")]
    {
        lone_seed(name, PayloadType::KE, &unhex(body));
    }
    let delete = |protocol: u8, size: u8, count: u16, spis: usize| {
        let mut body = vec![protocol, size];
        body.extend(count.to_be_bytes());
        body.resize(4 + spis, 0xC0);
        body
    };
    lone_seed("t16-16000-spis", PayloadType::DELETE, &delete(3, 4, 16_000, 64_000));
    lone_seed("t16-count-wrong", PayloadType::DELETE, &delete(3, 4, 2, 4));
    lone_seed("t16-size-8", PayloadType::DELETE, &delete(3, 8, 1, 8));
    lone_seed("t16-size-0", PayloadType::DELETE, &delete(3, 0, 65_535, 0));
    lone_seed("t16-ike-with-spis", PayloadType::DELETE, &delete(1, 4, 1, 4));
    lone_seed("t16-ah", PayloadType::DELETE, &delete(2, 4, 1, 4));
    lone_seed("t17-unknown-error", PayloadType::NOTIFY, &[0, 0, 0x3F, 0xFF]);
    lone_seed("t17-rekey-of-ah", PayloadType::NOTIFY, &[2, 4, 0x40, 9, 0, 0, 1, 0]);
    lone_seed("t17-spi-beyond-the-end", PayloadType::NOTIFY, &[3, 200, 0x40, 9, 0, 0, 1, 0]);
    lone_seed("t32-cookie-after-nonce", PayloadType::NOTIFY, &[0, 0, 0x40, 6, 1, 2, 3, 4]);
    lone_seed("t19-sk-inside", PayloadType::SK, &[0; 24]);
    lone_seed("t54-eap", PayloadType::EAP, &[3, 1, 0, 4]);
}

pub fn identity() {
    let id = |name: &str, kind: u8, data: &[u8]| {
        seed("ike_identity", name, [&[kind, 0, 0, 0], data].concat());
    };
    id("ipv4", 1, &[192, 0, 2, 1]);
    id("ipv6", 5, &[0xFD; 16]);
    id("fqdn", 2, b"gw.Example.org");
    id("mail", 3, b"ops@example.org");
    id("key-id", 11, &[0, 1, 0xFE, 0xFF]);
    id("t14-broken-dn", 9, &unhex("3081ff310b3009060355040613025553"));
    id("t14-empty", 2, b"");
    id("t14-one-octet", 2, b"a");
    id("t14-control-characters", 2, b"a\0b\nc\x1b[31m$(reboot)`'\"\\%s\xff\xc2\x85");
    id("t14-ipv4-of-3", 1, &[192, 0, 2]);
    id("t14-ipv4-of-5", 1, &[192, 0, 2, 1, 1]);
    id("t14-ipv6-of-4", 5, &[192, 0, 2, 1]);
    id("t14-limit", 2, &[b'a'; 1024]);
    id("t14-limit-and-one", 2, &[b'a'; 1025]);
    id("unknown-type", 200, b"whoever");
    seed("ike_identity", "t02-three-octets", [2, 0, 0]);
    seed("ike_identity", "t07-reserved-octets", [2, 1, 2, 3, b'a']);
}

pub fn selectors() {
    let encoded = |list: &[TrafficSelector]| {
        let mut out = Vec::new();
        ts::encode(list, &mut out);
        out
    };
    let v4 = net([10, 1, 0, 0], 16);
    let v6 = TrafficSelector::cidr("2001:db8::".parse().unwrap(), 32).unwrap();
    let tcp = TrafficSelector { protocol: 6, ports: (443, 443), ..v4 };
    let one = encoded(&[v4]);
    let changed = |at: usize, value: u8| {
        let mut out = one.clone();
        out[at] = value;
        out
    };
    let s = |name: &str, octets: &[u8]| seed("ike_selectors", name, octets);
    s("one", &one);
    s("mixed", &encoded(&[v4, v6, tcp, TrafficSelector { ports: (65535, 0), ..tcp }]));
    s("t15-255", &encoded(&vec![v4; 255]));
    let mut too_many = encoded(&vec![v4; 255]);
    too_many.extend(&one[4..]);
    s("t15-256", &too_many);
    s("t15-none", &[0, 0, 0, 0]);
    s("t15-count-0", &changed(0, 0));
    s("t15-count-2", &changed(0, 2));
    for len in [0, 3, 4, 7, 9, 15, 17] {
        s(&format!("t15-length-{len}"), &changed(7, len));
    }
    s("t15-start-after-end", &changed(12, 11));
    s("t15-ports-reversed", &[&one[..8], &[0, 9, 0, 1], &one[12..]].concat());
    s("t15-opaque", &[&one[..8], &[0xFF, 0xFF, 0, 0], &one[12..]].concat());
    s("t15-ipv4-as-ipv6", &changed(4, 8));
    s("t15-unknown-type", &changed(4, 9));
    s("t15-unknown-type-and-known", &[&[2], &changed(4, 9)[1..], &one[4..]].concat());
    s("t02-three-octets", &[1, 0, 0]);

    // Limit, then two lists: their lengths, and for each selector both ends, protocol and ports.
    let n = |name: &str, octets: &[u8]| seed("ike_narrow", name, octets);
    n("equal", &[3, 1, 0, 15, 0, 0, 0, 1, 0, 15, 0, 0, 0]);
    n("inside", &[3, 1, 0, 15, 0, 0, 0, 1, 4, 7, 6, 1, 3]);
    n("crossing", &[3, 2, 0, 9, 0, 0, 4, 5, 15, 6, 2, 6, 2, 3, 12, 0, 0, 0, 8, 8, 6, 3, 3]);
    n("disjoint", &[3, 1, 0, 3, 0, 0, 0, 1, 4, 7, 0, 0, 0]);
    n("opaque", &[3, 1, 0, 15, 0, 7, 0, 1, 0, 15, 0, 0, 0]);
    n("opaque-and-ports", &[0, 2, 0, 15, 6, 7, 0, 0, 15, 6, 1, 3, 1, 0, 15, 6, 7, 0]);
    n("other-protocols", &[3, 1, 0, 15, 1, 0, 0, 1, 0, 15, 2, 0, 0]);
    n(
        "limit",
        &[0, 3, 0, 1, 0, 0, 0, 4, 5, 0, 0, 0, 8, 9, 0, 0, 0, 3, 0, 0, 0, 0, 0, 4, 4, 0, 0, 0, 8, 8, 0, 0, 0],
    );
    let any = TrafficSelector::any(IpRange::all([0, 0, 0, 0].into()));
    s("everything", &encoded(&[any]));
}

pub fn sealed() {
    let messages = inside();
    for (i, suite) in ike_suites().into_iter().enumerate() {
        let (_, payloads) = &messages[i % messages.len()];
        let mut sender = channel(suite, Role::Initiator, false);
        let mut random = Seeded::new(1);
        let datagrams = sender.seal(Exchange::INFORMATIONAL, 1, false, payloads, &mut random).unwrap();
        seed("ike_open", &format!("suite-{i}"), [&[i as u8, 0], &*datagrams[0]].concat());
    }
    // Fragments: the notification does not fit one datagram.
    let large =
        Payloads { notifies: vec![Notify::new(NotifyType(40_000), vec![0x5A; 3000])], ..Payloads::default() };
    for (i, suite) in ike_suites().into_iter().enumerate().step_by(3) {
        let mut sender = channel(suite, Role::Initiator, true);
        let mut random = Seeded::new(2);
        let datagrams = sender.seal(Exchange::IKE_AUTH, 1, false, &large, &mut random).unwrap();
        for (n, datagram) in datagrams.iter().enumerate().take(2) {
            seed(
                "ike_open",
                &format!("t43-suite-{i}-fragment-{}", n + 1),
                [&[i as u8, 1], &**datagram].concat(),
            );
        }
        seed("ike_open", &format!("t43-suite-{i}-not-negotiated"), [&[i as u8, 0], &*datagrams[0]].concat());
    }
    let datagram = |next: u8, body: &[u8]| {
        let mut out = vec![0x11; 16];
        out.extend([next, 0x20, 37, 0x08, 0, 0, 0, 1]);
        out.extend(((HEADER_LEN + body.len()) as u32).to_be_bytes());
        out.extend(body);
        out
    };
    for (name, next, body) in [
        ("t19-shorter-than-its-icv", 46, &[0u8, 0, 0, 8, 1, 2, 3, 4][..]),
        ("t19-payload-before", 41, &[46, 0, 0, 8, 0, 0, 0x40, 0, 0, 0, 0, 4]),
        ("t19-payload-after", 46, &[0, 0, 0, 4, 0, 0, 0, 4]),
        ("t43-number-0", 53, &[0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0]),
        ("t43-total-65535", 53, &[0, 0, 0, 12, 0, 1, 0xFF, 0xFF, 0, 0, 0, 0]),
        ("t44-no-sk", 41, &[0, 0, 0, 8, 0, 0, 0x40, 0]),
    ] {
        seed("ike_open", name, [&[0, 1], &*datagram(next, body)].concat());
    }
    let vectors: serde_json::Value =
        serde_json::from_str(&super::file("esp/tests/vectors/rfc7634.json")).unwrap();
    let packet = unhex(vectors["ike"]["packet"].as_str().unwrap());
    seed("ike_open", "rfc7634-appendix-b", [&[2, 0], &*packet].concat());

    // Suite, options, order of the fragments, place and kind of damage, first payload, chain.
    for (i, (name, payloads)) in messages.iter().enumerate() {
        let (first, chain) = chain(payloads);
        let head = [i as u8, i as u8 & 3, 0, 0, 7 * i as u8, 1, first];
        seed("ike_seal", name, [&head, &*chain].concat());
    }
    for len in [1100, 1140, 2256, 9000] {
        let (first, chain) = chain(&Payloads {
            notifies: vec![Notify::new(NotifyType(40_000), vec![1; len])],
            ..Payloads::default()
        });
        for suite in [0, 4] {
            let head = [suite, 1, 0x82, 0, 40, 0x80, first];
            seed("ike_seal", &format!("t43-{len}-octets-suite-{suite}"), [&head, &*chain].concat());
        }
    }
}

pub fn endpoint() {
    let e = |name: &str, octets: &[u8]| seed("endpoint", name, octets);
    // See the target: the low half of an octet is the instruction, the rest says where and how.
    let wait = |ms_log: u8| [0, ms_log];
    let up = [wait(12), wait(12)].concat();
    e("handshake", &up);
    e("replay-everything", &(0..28u8).flat_map(|i| [0x03, 0, i, 0x83, 0, i]).collect::<Vec<u8>>());
    e("replay-when-up", &[up.clone(), (0..28u8).flat_map(|i| [0x03, 0, i, 0, 3]).collect()].concat());
    e("reflected", &[up.clone(), (0..20u8).flat_map(|i| [0x43, 0, i]).collect()].concat());
    e("from-elsewhere", &(0..20u8).flat_map(|i| [0x13, 0, i]).collect::<Vec<u8>>());
    e(
        "damaged",
        &(0..20u8).flat_map(|i| [0x05, 0, i, 0, 17 + i, 0xFF, 0, 20 + 3 * i, i]).collect::<Vec<u8>>(),
    );
    e(
        "damaged-when-up",
        &[up.clone(), (4..20u8).flat_map(|i| [0x04, 0, i, 0, 30 + i, 1]).collect()].concat(),
    );
    e("rekeys", &[up.clone(), vec![10, 0, 6, 11, 0, 10, 0x8A, 0x8B, 0, 12, 10, 11]].concat());
    e(
        "crossing-rekeys",
        &[up.clone(), vec![10, 0x8A, 0, 12, 11, 0x8B, 0, 12, 10, 0x8B, 0, 3, 11, 0x8A]].concat(),
    );
    e("down-and-up", &[up.clone(), vec![9, 0, 8, 8, 0, 12, 0x89, 0, 4, 0x88, 9, 8]].concat());
    e("resets", &[up.clone(), vec![12, 0, 4, 0x8C, 0, 10, 12, 0x8C]].concat());
    e("plane-fails", &[vec![14, 2, 0x8E, 2], up.clone(), vec![14, 1, 10, 0, 12, 0x8E, 1, 10]].concat());
    let volume = vec![0x2F, 0, 0, 0, 8, 0x3F, 0, 1, 0, 8, 0xAF, 0, 0, 0xBF, 0, 1, 0, 12];
    e("limits", &[up.clone(), volume].concat());
    e("moves", &[up.clone(), vec![0x1F, 0, 0, 0x9F, 0, 1, 0x0F, 0, 0, 13, 0x8D]].concat());
    let hello = [&[0x17, 28][..], &[1; 8], &[0; 8], &[33, 0x20, 34, 8, 0, 0, 0, 0, 0, 0, 0, 28]].concat();
    e("strangers", &hello.repeat(20));
    e("noise", &[0x07, 3, 1, 2, 3, 0x87, 0, 0x27, 1, 0xFF]);
}

/// The records of every state that were kept as examples.
pub fn saved() {
    let text = super::file("tests/golden/saved-1.txt");
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let fields: Vec<&str> = line.split(' ').collect();
        seed("ike_saved", fields[0], unhex(fields[3]));
    }
    let specs = in_the_plane();
    for (n, spec) in specs.iter().enumerate() {
        seed("ike_saved", &format!("esp-{n}"), cygnet_ike::saved::show_sa(spec).expose());
    }
}

/// The ESP SAs of a tunnel that is up.
fn in_the_plane() -> Vec<cygnet_model::tunnel::SaSpec> {
    let mut lab = Lab::pair(7, Link::GOOD);
    lab.run(Duration::from_secs(5));
    lab.gateways[0].plane.sas.values().map(|(_, spec)| spec.duplicate()).collect()
}
