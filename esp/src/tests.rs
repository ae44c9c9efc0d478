//! SAs end to end: what comes out of one half goes into the other, and nothing else does.

use cygnet_model::SecretBytes;
use cygnet_model::suite::EspSuite;
use cygnet_model::tunnel::{Direction, SaSpec, VolumeLimits};
use proptest::prelude::*;

use crate::cipher::Cipher;
use crate::inner::InnerHeader;
use crate::replay::Age;
use crate::testing::{gcm, mirrored, packet, spec, suites, udp4, udp6};
use crate::{DropReason, InboundSa, Layout, Limit, OutboundSa, inner, packet as esp};

const SPI: u32 = 0xC0FF_EE01;

#[test]
fn every_suite_carries_every_size_of_both_families() {
    for suite in suites() {
        let (out, inn) = pair(suite);
        let step = if suite.encr.is_aead() { 1 } else { 7 };
        for len in (0..=1500).step_by(step) {
            for inner in [udp4(len), udp6(len)] {
                let mut sealed = seal(&out, &inner);
                assert_eq!(sealed.len(), out.layout().sealed_len(inner.len()));
                let opened = inn.open(&mut sealed, 0).unwrap();
                assert_eq!(opened.age, Age::Newest);
                assert_eq!(&sealed[opened.content.unwrap().range], &inner, "{suite}, {len} octets");
            }
        }
        assert_eq!(out.counters().packets, inn.counters().packets);
        assert_eq!(out.counters().bytes, inn.counters().bytes);
    }
}

/// T82: any flipped bit, any cut octet.
#[test]
fn no_altered_packet_opens() {
    for suite in suites() {
        let (out, inn) = pair(suite);
        let sealed = seal(&out, &udp4(90));
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            // The sequence number of another, not yet seen packet may be claimed; its integrity then fails.
            let reason = inn.open(&mut forged, 0).unwrap_err();
            let in_spi = bit < 32 && !suite.encr.is_aead();
            assert!(
                matches!(reason, DropReason::Integrity | DropReason::Replay),
                "{suite} {bit} {reason} {in_spi}"
            );
            if !(32..64).contains(&bit) {
                assert_eq!(reason, DropReason::Integrity, "{suite} bit {bit}");
            }
        }
        for len in 0..sealed.len() {
            let reason = inn.open(&mut sealed[..len].to_vec(), 0).unwrap_err();
            assert!(
                matches!(reason, DropReason::Integrity | DropReason::Truncated),
                "{suite} {len} {reason}"
            );
        }
        for extra in [1, 3, 4, 16] {
            let mut longer = sealed.clone();
            longer.resize(sealed.len() + extra, 0);
            assert!(inn.open(&mut longer, 0).is_err());
        }
        assert_eq!(inn.counters().packets, 0);
        assert!(inn.open(&mut sealed.clone(), 0).is_ok(), "forgeries must not move the window");
        assert_eq!(inn.open(&mut sealed.clone(), 0).unwrap_err(), DropReason::Replay);
        assert!(inn.counters().replay > 0 && inn.counters().integrity > 0);
    }
}

#[test]
fn late_packets_are_accepted_once_within_the_window() {
    let (out, inn) = pair(gcm());
    let mut packets: Vec<_> = (0..2000).map(|_| seal(&out, &udp4(10))).collect();
    assert_eq!(inn.open(&mut packets[1500].clone(), 0).unwrap().age, Age::Newest);
    assert_eq!(inn.open(&mut packets[1499].clone(), 0).unwrap().age, Age::Late);
    assert_eq!(inn.open(&mut packets[1500], 0).unwrap_err(), DropReason::Replay);
    assert_eq!(inn.open(&mut packets[1500 - 1023].clone(), 0).unwrap().age, Age::Late);
    assert_eq!(inn.open(&mut packets[1500 - 1024], 0).unwrap_err(), DropReason::Replay);
}

#[test]
fn strange_contents_are_dropped_for_their_reason() {
    let v4 = udp4(10);
    let cases: Vec<(&str, Vec<u8>, DropReason)> = vec![
        ("dummy", trailer(vec![0xEE; 20], esp::NEXT_NONE), DropReason::Dummy),
        ("transport mode", trailer(v4.clone(), 6), DropReason::NextHeader),
        ("IPv4 called IPv6", trailer(v4.clone(), 41), DropReason::Malformed),
        ("nothing called IPv4", trailer(vec![], 4), DropReason::Malformed),
        ("half a packet", trailer(v4[..21].to_vec(), 4), DropReason::Malformed),
        ("wrong padding", [v4.clone(), vec![2, 1, 2, 4]].concat(), DropReason::Padding),
        ("endless padding", vec![9, 9, 255, 4], DropReason::Padding),
        (
            "from inside",
            trailer(packet("10.1.0.1", "10.1.0.2", 17, &v4[20..], None), 4),
            DropReason::Selectors,
        ),
        (
            "to outside",
            trailer(packet("10.2.0.1", "10.3.0.2", 17, &v4[20..], None), 4),
            DropReason::Selectors,
        ),
    ];
    for suite in suites() {
        let (_, inn) = pair(suite);
        for (seq, (name, text, reason)) in (1u64..).zip(&cases) {
            let mut sealed = forge(suite, seq, aligned(suite, text.clone()));
            let opened = inn.open(&mut sealed, 0).unwrap();
            assert_eq!(opened.content, Err(*reason), "{suite} {name}");
        }
        assert_eq!(inn.counters().packets, cases.len() as u64);
    }
}

#[test]
fn traffic_flow_padding_is_cut_off() {
    let (_, inn) = pair(gcm());
    let inner = udp4(9);
    let padded = [inner.clone(), vec![0; 333]].concat();
    let mut sealed = forge(gcm(), 1, trailer(padded, esp::NEXT_IPV4));
    let opened = inn.open(&mut sealed, 0).unwrap().content.unwrap();
    assert_eq!(&sealed[opened.range], &inner);
}

#[test]
fn congestion_marks_come_through_or_the_packet_is_dropped() {
    let (out, inn) = pair(gcm());
    let mut capable = udp4(10);
    inner::set_tos(&mut capable, 0xB8 | 0b10);
    let mut sealed = seal(&out, &capable);
    let opened = inn.open(&mut sealed, 0b11).unwrap().content.unwrap();
    assert_eq!(opened.header.tos, 0xB8 | 0b11);
    assert_eq!(InnerHeader::parse(&sealed[opened.range.clone()]).unwrap().tos, 0xB8 | 0b11);
    assert!(crate::checksum::Sum::default().octets(&sealed[opened.range][..20]).is_valid());
    let mut sealed = seal(&out, &udp4(10));
    assert_eq!(inn.open(&mut sealed, 0b11).unwrap().content, Err(DropReason::Ecn));
}

#[test]
fn outbound_packets_outside_the_selectors_are_refused() {
    let (out, _) = pair(gcm());
    for (src, dst) in [("10.1.0.1", "10.3.0.1"), ("10.3.0.1", "10.2.0.1"), ("10.2.0.1", "10.1.0.1")] {
        let inner = packet(src, dst, 17, &[0; 8], None);
        let header = InnerHeader::parse(&inner).unwrap();
        assert_eq!(out.admit(&header).err(), Some(DropReason::Selectors));
    }
}

/// T70: the numbers end, they do not begin again.
#[test]
fn exhausted_sequence_numbers_stop_the_sa() {
    let used = u64::from(u32::MAX) - 3;
    let out = OutboundSa::new(&spec(gcm(), Direction::Out, SPI), used).unwrap();
    let inner = udp4(1);
    let header = InnerHeader::parse(&inner).unwrap();
    let said: Vec<_> = (0..5)
        .map(|_| out.admit(&header).unwrap().seal(&mut laid_out(out.layout(), &inner), inner.len()))
        .collect();
    assert_eq!(
        said,
        [
            Ok(Some(Limit::Soft)),
            Ok(None),
            Ok(Some(Limit::Hard)),
            Err(DropReason::Sequence),
            Err(DropReason::Sequence)
        ]
    );
    assert_eq!(out.counters().sequence, u64::from(u32::MAX));
}

#[test]
fn with_esn_the_low_half_wraps_and_the_receiver_follows() {
    for suite in suites().into_iter().filter(|s| s.esn) {
        let start = u64::from(u32::MAX) - 10;
        let out = OutboundSa::new(&spec(suite, Direction::Out, SPI), start).unwrap();
        let inn = InboundSa::new(&mirrored(spec(suite, Direction::Out, SPI))).unwrap();
        for _ in 0..20 {
            let mut sealed = seal(&out, &udp4(5));
            assert_eq!(inn.open(&mut sealed, 0).unwrap().age, Age::Newest);
        }
        assert_eq!(inn.counters().sequence, start + 20);
    }
}

/// T71: a peer that counts without ESN, and a gap beyond recognition.
#[test]
fn esn_disagreement_is_refused_cleanly() {
    let esn = EspSuite { esn: true, ..gcm() };
    let inn = InboundSa::new(&mirrored(spec(esn, Direction::Out, SPI))).unwrap();
    let without = OutboundSa::new(&spec(gcm(), Direction::Out, SPI), 0).unwrap();
    assert_eq!(inn.open(&mut seal(&without, &udp4(5)), 0).unwrap_err(), DropReason::Integrity);
    let far = OutboundSa::new(&spec(esn, Direction::Out, SPI), 5 << 32).unwrap();
    assert_eq!(inn.open(&mut seal(&far, &udp4(5)), 0).unwrap_err(), DropReason::Integrity);
}

#[test]
fn volume_limits_hold_in_both_directions() {
    let limits = VolumeLimits { soft_packets: 2, hard_packets: 3, ..VolumeLimits::default() };
    let limited = || SaSpec { limits, ..spec(gcm(), Direction::Out, SPI) };
    let out = OutboundSa::new(&limited(), 0).unwrap();
    let free = OutboundSa::new(&spec(gcm(), Direction::Out, SPI), 0).unwrap();
    let inn = InboundSa::new(&mirrored(limited())).unwrap();
    let inner = udp4(1);
    let header = InnerHeader::parse(&inner).unwrap();
    let mut said = Vec::new();
    for _ in 0..4 {
        said.push(out.admit(&header).unwrap().seal(&mut laid_out(out.layout(), &inner), inner.len()));
        let received = inn.open(&mut seal(&free, &inner), 0).map(|authentic| authentic.limit);
        assert_eq!(received, *said.last().unwrap());
    }
    assert_eq!(said, [Ok(None), Ok(Some(Limit::Soft)), Ok(Some(Limit::Hard)), Err(DropReason::Limit)]);
}

/// T84: threads that share an SA draw different numbers, and with an AEAD the number is the nonce.
#[test]
fn no_sequence_number_is_drawn_twice_by_threads() {
    let (out, _) = pair(gcm());
    let inner = udp4(0);
    let draw = || {
        (0..50_000)
            .map(|_| u32::from_be_bytes(seal(&out, &inner)[4..8].try_into().unwrap()))
            .collect::<Vec<_>>()
    };
    let mut all: Vec<u32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(draw)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_unstable();
    assert!(all.iter().copied().eq(1..=200_000));
}

proptest! {
    /// Whatever arrives and however it was bent, an answer comes and no panic.
    #[test]
    fn mutated_and_random_input_never_panics(
        which in 0usize..16,
        noise in prop::collection::vec(any::<u8>(), 0..200),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let all = suites();
        let suite = all[which % all.len()];
        let (out, inn) = pair(suite);
        prop_assert!(inn.open(&mut noise.clone(), 0xFF).is_err());
        let mut sealed = seal(&out, &udp4(60));
        let whole = sealed.clone();
        for (at, value) in flips {
            let at = at.index(sealed.len());
            sealed[at] = value;
        }
        sealed.truncate(cut.index(sealed.len() + 1));
        prop_assert_eq!(inn.open(&mut sealed.clone(), 0).is_ok(), sealed == whole);
    }

    /// Also what the peer itself sends may be nonsense.
    #[test]
    fn authentic_nonsense_never_panics(mut text in prop::collection::vec(any::<u8>(), 1..200), next in prop::sample::select(vec![4u8, 41, 59, 0])) {
        let (_, inn) = pair(gcm());
        text.resize(text.len().next_multiple_of(4), 0);
        let end = text.len();
        text[end - 1] = next;
        text[end - 2] = 0;
        let mut sealed = forge(gcm(), 1, text);
        prop_assert!(inn.open(&mut sealed, 0).unwrap().content.is_err());
    }
}

fn pair(suite: EspSuite) -> (OutboundSa, InboundSa) {
    let out = OutboundSa::new(&spec(suite, Direction::Out, SPI), 0).unwrap();
    (out, InboundSa::new(&mirrored(spec(suite, Direction::Out, SPI))).unwrap())
}

fn laid_out(layout: Layout, inner: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; layout.sealed_len(inner.len())];
    buffer[layout.head_len()..layout.head_len() + inner.len()].copy_from_slice(inner);
    buffer
}

fn seal(out: &OutboundSa, inner: &[u8]) -> Vec<u8> {
    let mut buffer = laid_out(out.layout(), inner);
    let header = InnerHeader::parse(inner).unwrap();
    out.admit(&header).unwrap().seal(&mut buffer, inner.len()).unwrap();
    buffer
}

/// Right padding and a next header behind `text`, aligned to 4.
fn trailer(mut text: Vec<u8>, next: u8) -> Vec<u8> {
    let pad = (text.len() + 2).next_multiple_of(4) - text.len() - 2;
    text.extend((1..=pad as u8).chain([pad as u8, next]));
    text
}

/// Makes a text with trailer fit the cipher's block: right padding is made longer, wrong padding gets octets before it.
fn aligned(suite: EspSuite, text: Vec<u8>) -> Vec<u8> {
    let block = suite.encr.info().block_len.max(4);
    let missing = text.len().next_multiple_of(block) - text.len();
    if missing == 0 {
        return text;
    }
    let (pad, next) = (usize::from(text[text.len() - 2]), text[text.len() - 1]);
    match text.len().checked_sub(pad + 2) {
        Some(body) if pad < 200 && text[body..text.len() - 2].iter().zip(1..).all(|(o, want)| *o == want) => {
            let pad = pad + missing;
            [text[..body].to_vec(), (1..=pad as u8).chain([pad as u8, next]).collect()].concat()
        }
        _ => [vec![0; missing], text].concat(),
    }
}

/// An ESP packet around any text, made with the keys of [`spec`].
fn forge(suite: EspSuite, seq: u64, text: Vec<u8>) -> Vec<u8> {
    let SaSpec { encr_key, integ_key, .. } = spec(suite, Direction::Out, SPI);
    let cipher = Cipher::new(suite, &encr_key, &SecretBytes::copy_of(integ_key.expose())).unwrap();
    let iv = vec![0; suite.encr.info().iv_len];
    let head = [SPI.to_be_bytes(), (seq as u32).to_be_bytes()].concat();
    let mut packet = [head, iv, text, vec![0; suite.icv_len()]].concat();
    cipher.seal(seq, &mut packet).unwrap();
    packet
}
