use proptest::collection::vec;
use proptest::prelude::*;

use cygnet_model::selector::{IpRange, TrafficSelector};

use super::*;

fn proposal() -> impl Strategy<Value = Proposal> {
    let transform =
        (1u8..6, any::<u16>(), proptest::option::of(any::<u16>())).prop_map(|(k, id, key_bits)| Transform {
            kind: TransformType(k),
            id,
            key_bits,
            unknown_attribute: false,
        });
    (1u8..9, prop_oneof![Just(0usize), Just(4), Just(8)], vec(transform, 1..6)).prop_map(
        |(number, spi, transforms)| Proposal {
            number,
            protocol: Protocol::ESP,
            spi: vec![7; spi],
            transforms,
        },
    )
}

fn selector() -> impl Strategy<Value = TrafficSelector> {
    (any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>(), any::<u16>(), any::<bool>()).prop_map(
        |(a, b, protocol, p, q, v6)| {
            let addr = |n: u32| -> std::net::IpAddr {
                if v6 {
                    std::net::Ipv6Addr::from(u128::from(n) << 64).into()
                } else {
                    std::net::Ipv4Addr::from(n).into()
                }
            };
            TrafficSelector {
                range: IpRange::new(addr(a.min(b)), addr(a.max(b))).unwrap(),
                protocol,
                ports: (p.min(q), p.max(q)),
            }
        },
    )
}

fn payloads() -> impl Strategy<Value = Payloads> {
    let opt = proptest::option::of::<BoxedStrategy<Vec<u8>>>;
    (
        proptest::option::of(vec(proposal(), 0..4)),
        opt(vec(any::<u8>(), 16..64).boxed()),
        opt(vec(any::<u8>(), 0..64).boxed()),
        proptest::option::of(vec(selector(), 1..5)),
        vec((any::<u16>(), vec(any::<u8>(), 0..20)), 0..4),
        vec(any::<u32>(), 0..5),
        any::<bool>(),
    )
        .prop_map(|(sa, nonce, ke, ts, notifies, spis, with_ids)| {
            let mut notifies: Vec<Notify> =
                notifies.into_iter().map(|(k, d)| Notify::new(NotifyType(k | 1), d)).collect();
            // COOKIE and REKEY_SA are moved to the front when encoded; leave them out of the comparison.
            notifies.retain(|n| n.kind != NotifyType::REKEY_SA && n.kind != NotifyType::COOKIE);
            Payloads {
                sa,
                ke: ke.map(|data| KeyExchange { group: 31, data }),
                idi: with_ids.then(|| Identity::fqdn("a.example")),
                idr: with_ids.then(|| Identity::address([192, 0, 2, 1].into())),
                auth: with_ids.then(|| Auth { method: AuthMethod::SHARED_KEY_MIC, data: vec![1; 32] }),
                nonce,
                tsi: ts.clone(),
                tsr: ts,
                notifies,
                deletes: vec![Delete::Esp(spis), Delete::Ike],
                eap: false,
            }
        })
}

fn encode(p: &Payloads) -> (PayloadType, Vec<u8>) {
    let mut w = Writer::chain();
    p.encode(&mut w);
    (w.first(), w.into_chain())
}

proptest! {
    #[test]
    fn payloads_round_trip(p in payloads()) {
        let (first, chain) = encode(&p);
        prop_assert_eq!(Payloads::decode(first, &chain).unwrap(), p);
    }

    #[test]
    fn t01_any_bytes_decode_or_fail(first: u8, bytes in vec(any::<u8>(), 0..300)) {
        let _ = Payloads::decode(PayloadType(first), &bytes);
        let _ = Header::decode(&bytes);
    }

    #[test]
    fn t02_mutated_messages_never_panic_and_canonicalise(p in payloads(), at: prop::sample::Index, value: u8) {
        let (first, mut chain) = encode(&p);
        let at = at.index(chain.len());
        chain[at] = value;
        if let Ok(mut decoded) = Payloads::decode(first, &chain) {
            // Selectors of unknown types are left out; a list that is empty thereby is never said by us.
            decoded.tsi.take_if(|ts| ts.is_empty());
            decoded.tsr.take_if(|ts| ts.is_empty());
            // What was accepted can be said again, and means the same.
            let (first, again) = encode(&decoded);
            // An unknown attribute is remembered as a fact only, and we never send one.
            let known = |p: Payloads| {
                let mut sa = p.sa.unwrap_or_default();
                sa.iter_mut().flat_map(|p| &mut p.transforms).for_each(|t| t.unknown_attribute = false);
                sa
            };
            prop_assert_eq!(known(Payloads::decode(first, &again).unwrap()), known(decoded));
        }
    }

    #[test]
    fn t02_truncation_is_an_error(p in payloads(), cut: prop::sample::Index) {
        let (first, chain) = encode(&p);
        let cut = cut.index(chain.len());
        prop_assert!(Payloads::decode(first, &chain[..cut]).is_err());
    }
}

fn header_bytes(length: u32, version: u8) -> Vec<u8> {
    let mut b = vec![0u8; 28];
    b[17] = version;
    b[18] = 34;
    b[24..28].copy_from_slice(&length.to_be_bytes());
    b
}

#[test]
fn t03_length_field_must_be_the_datagrams_length() {
    assert!(Header::decode(&header_bytes(28, 0x20)).is_ok());
    for wrong in [0, 27, 29, 1 << 31, u32::MAX] {
        let e = Header::decode(&header_bytes(wrong, 0x20)).unwrap_err();
        assert_eq!(e.kind, DecodeErrorKind::LengthMismatch);
    }
    assert_eq!(Header::decode(&[0; 27]).unwrap_err().kind, DecodeErrorKind::Truncated);
}

#[test]
fn t04_endless_chains_are_cut_off() {
    let empties = |n: usize| {
        let mut chain = Vec::new();
        for i in 0..n {
            let next = if i + 1 == n { 0 } else { PayloadType::VENDOR.0 };
            chain.extend_from_slice(&[next, 0, 0, 4]);
        }
        chain
    };
    assert!(split(PayloadType::VENDOR, &empties(MAX_PAYLOADS)).is_ok());
    assert_eq!(
        split(PayloadType::VENDOR, &empties(MAX_PAYLOADS + 1)).unwrap_err().kind,
        DecodeErrorKind::TooMany
    );
    assert_eq!(split(PayloadType::VENDOR, &empties(5000)).unwrap_err().kind, DecodeErrorKind::TooMany);
    assert_eq!(split(PayloadType::VENDOR, &[33, 0, 0, 4]).unwrap_err().kind, DecodeErrorKind::Truncated);
}

#[test]
fn t06_versions() {
    assert_eq!(Header::decode(&header_bytes(28, 0x30)).unwrap_err().kind, DecodeErrorKind::MajorVersion(3));
    assert_eq!(Header::decode(&header_bytes(28, 0x10)).unwrap_err().kind, DecodeErrorKind::MajorVersion(1));
    assert!(Header::decode(&header_bytes(28, 0x21)).is_ok());
}

#[test]
fn t08_unknown_payloads_by_their_critical_bit() {
    let chain = |critical: u8| [0u8, critical, 0, 5, 9];
    assert!(Payloads::decode(PayloadType(200), &chain(0)).is_ok());
    assert_eq!(
        Payloads::decode(PayloadType(200), &chain(0x80)).unwrap_err().kind,
        DecodeErrorKind::UnsupportedCritical(200)
    );
    // On a known payload the bit means nothing.
    assert!(Payloads::decode(PayloadType::VENDOR, &chain(0x80)).is_ok());
}

#[test]
fn t09_payloads_that_stand_once_must_not_stand_twice() {
    let nonce = |next: u8| {
        let mut p = vec![next, 0, 0, 20];
        p.extend_from_slice(&[1; 16]);
        p
    };
    let mut chain = nonce(PayloadType::NONCE.0);
    chain.extend(nonce(0));
    assert_eq!(Payloads::decode(PayloadType::NONCE, &chain).unwrap_err().kind, DecodeErrorKind::Repeated);
}

#[test]
fn t11_nonce_lengths() {
    for (len, ok) in [(15, false), (16, true), (256, true), (257, false)] {
        assert_eq!(decode_nonce(&vec![0; len]).is_ok(), ok, "{len}");
    }
}

#[test]
fn t15_traffic_selectors() {
    let one = |start: [u8; 4], end: [u8; 4], ports: (u16, u16)| {
        let mut b = vec![1, 0, 0, 0, 7, 0, 0, 16];
        b.extend_from_slice(&ports.0.to_be_bytes());
        b.extend_from_slice(&ports.1.to_be_bytes());
        b.extend_from_slice(&start);
        b.extend_from_slice(&end);
        b
    };
    assert!(ts::decode(&one([10, 0, 0, 0], [10, 0, 0, 255], (0, 65535))).is_ok());
    assert!(ts::decode(&one([10, 0, 0, 0], [10, 0, 0, 255], (65535, 0))).is_ok());
    assert_eq!(ts::decode(&one([10, 0, 0, 9], [10, 0, 0, 1], (0, 1))), Err(DecodeErrorKind::BadValue));
    assert_eq!(ts::decode(&one([10, 0, 0, 0], [10, 0, 0, 1], (9, 1))), Err(DecodeErrorKind::BadValue));
    assert_eq!(ts::decode(&[0, 0, 0, 0]), Err(DecodeErrorKind::BadCount));
    assert_eq!(ts::decode(&[2, 0, 0, 0, 7, 0, 0, 4]), Err(DecodeErrorKind::Truncated));
    let mut wrong_count = one([10, 0, 0, 0], [10, 0, 0, 1], (0, 1));
    wrong_count[0] = 2;
    assert_eq!(ts::decode(&wrong_count), Err(DecodeErrorKind::BadCount));
    for len in [3u8, 7, 9, 15, 17] {
        let mut bad = one([10, 0, 0, 0], [10, 0, 0, 1], (0, 1));
        bad[7] = len;
        assert!(ts::decode(&bad).is_err(), "{len}");
    }
}

#[test]
fn t16_deletes() {
    assert_eq!(decode_delete(&[1, 0, 0, 0]), Ok(Delete::Ike));
    assert_eq!(decode_delete(&[3, 4, 0, 1, 0, 0, 1, 2]), Ok(Delete::Esp(vec![258])));
    assert!(decode_delete(&[3, 4, 0, 2, 0, 0, 1, 2]).is_err());
    assert!(decode_delete(&[3, 8, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2]).is_err());
    assert!(decode_delete(&[1, 4, 0, 1, 0, 0, 0, 1]).is_err());
    assert_eq!(decode_delete(&[2, 4, 0, 1, 0, 0, 0, 1]), Ok(Delete::Other));
}

#[test]
fn t14_identities_print_on_one_line() {
    for evil in ["a\nb", "\u{1b}[31m", "$(reboot)\0", "\"';--"] {
        let shown = Identity::fqdn(evil).to_string();
        assert!(shown.bytes().all(|b| (0x20..0x7f).contains(&b)), "{shown}");
    }
    assert!(Identity::decode(&[2, 0, 0, 0]).is_err());
    assert!(Identity::decode(&vec![2; 65_000]).is_err());
    assert!(Identity::decode(&[1, 0, 0, 0, 1, 2, 3]).is_err());
    assert_eq!(Identity::fqdn("A.Example"), Identity::fqdn("a.example"));
    assert_ne!(Identity::fqdn("a"), Identity::key_id(b"a".to_vec()));
}

#[test]
fn a_value_is_of_a_method_and_of_one_side_by_its_id_and_its_length() {
    let of = |group, len| {
        let ke = KeyExchange { group, data: vec![0; len] };
        (ke.is_offer_of(Group::MlKem768), ke.is_answer_of(Group::MlKem768))
    };
    // FIPS 203, table 3: encapsulation keys have 1,184 octets, ciphertexts 1,088.
    assert_eq!(of(36, 1184), (true, false));
    assert_eq!(of(36, 1088), (false, true));
    for (group, len) in [(35, 1184), (37, 1088), (36, 0), (36, 1183), (36, 1185)] {
        assert_eq!(of(group, len), (false, false), "{group} {len}");
    }
    let ke = KeyExchange { group: 31, data: vec![0; 32] };
    assert!(ke.is_offer_of(Group::X25519) && ke.is_answer_of(Group::X25519));
}
