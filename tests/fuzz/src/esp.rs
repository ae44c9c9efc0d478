//! ESP packets: what port 4500 carries, opening, sealing, the headers inside, the replay window.

use std::collections::BTreeSet;

use cygnet_esp::checksum::Sum;
use cygnet_esp::inner::{self, InnerHeader};
use cygnet_esp::natt::{self, Carried};
use cygnet_esp::replay::{Age, ReplayWindow};
use cygnet_esp::{DropReason, InboundSa, Layout, OutboundSa, packet};
use cygnet_model::selector::{IpRange, TrafficSelector};
use cygnet_model::suite::{Encr, EspSuite, Integ};
use cygnet_model::tunnel::{Direction, SaId, SaSpec, VolumeLimits};
use cygnet_model::{ChildId, Reqid, SecretBytes, Spi, TunnelId};

use crate::input::Input;

/// What a datagram on port 4500 carries, held against the sentences of RFC 3948.
pub fn esp_natt(data: &[u8]) {
    let want = if data.len() >= 4 && data[..4] == [0; 4] {
        Carried::Ike(&data[4..])
    } else if data.len() >= 4 {
        Carried::Esp
    } else if data == [0xFF] {
        Carried::Keepalive
    } else {
        Carried::Noise
    };
    assert_eq!(natt::classify(data), want);
    let header = packet::header(data);
    assert_eq!(header.is_some(), data.len() >= 8);
    if let Some((spi, seq)) = header {
        assert_eq!([spi.to_be_bytes(), seq.to_be_bytes()].concat(), data[..8]);
    }
}

/// Every suite of ESP, with and without ESN, in a fixed order.
pub fn suites() -> Vec<EspSuite> {
    let suites = Encr::ALL.into_iter().flat_map(|encr| {
        let integs = if encr.is_aead() { vec![None] } else { Integ::ALL.map(Some).to_vec() };
        integs.into_iter().map(move |integ| (encr, integ))
    });
    suites.flat_map(|(encr, integ)| [false, true].map(|esn| EspSuite::plain(encr, integ, esn))).collect()
}

/// An SA between any addresses, with the keys of the corpus.
pub fn sa(suite: EspSuite, direction: Direction) -> SaSpec {
    let child = ChildId { tunnel: TunnelId(1), index: 0 };
    let any = [[0; 4].into(), std::net::IpAddr::from([0; 16])].map(|a| TrafficSelector::any(IpRange::all(a)));
    SaSpec {
        id: SaId { child, direction, spi: Spi::new(0xC0FF_EE00).expect("above 255") },
        reqid: Reqid::of(child).expect("a small child"),
        local: [192, 0, 2, 1].into(),
        remote: [192, 0, 2, 2].into(),
        encap: None,
        suite,
        encr_key: SecretBytes::new((0..suite.encr.keymat_len()).map(|i| i as u8 ^ 0x5A).collect()),
        integ_key: SecretBytes::new(vec![0x55; suite.integ.map_or(0, Integ::key_len)]),
        replay_window: 64,
        inner_local: any.to_vec(),
        inner_remote: any.to_vec(),
        limits: VolumeLimits::default(),
        mark: None,
    }
}

fn inbound(suite: EspSuite) -> InboundSa {
    InboundSa::new(&sa(suite, Direction::In)).expect("a valid SA")
}

/// A suite, the outer TOS octet, and a packet: it is refused, or it was sealed with the key. Then it opens but once, with
/// any octet changed or cut off not at all, and the inner packet lies inside.
pub fn esp_open(data: &[u8]) {
    let mut input = Input(data);
    let suites = suites();
    let suite = suites[usize::from(input.u8()) % suites.len()];
    let tos = input.u8();
    let sealed = input.rest();
    let receiver = inbound(suite);
    let mut packet = sealed.to_vec();
    let Ok(authentic) = receiver.open(&mut packet, tos) else {
        assert_eq!(receiver.counters().sequence, 0, "the window moved for a packet that was not authentic");
        return;
    };
    assert_eq!(receiver.open(&mut sealed.to_vec(), tos), Err(DropReason::Replay));
    if let Ok(opened) = authentic.content {
        let inner = packet.get(opened.range.clone()).expect("the inner packet lies in the buffer");
        assert_eq!(opened.range.start, Layout::of(suite).head_len());
        assert_eq!(InnerHeader::parse(inner), Some(opened.header));
        assert_eq!(
            inner.len(),
            opened.header.total_len,
            "padding of the traffic flow is no part of the packet"
        );
    }
    let step = sealed.len().div_ceil(16).max(1);
    for at in (4..sealed.len()).step_by(step) {
        // The SPI is what finds the SA; all else is covered.
        let mut forged = sealed.to_vec();
        forged[at] ^= 1;
        assert!(inbound(suite).open(&mut forged, tos).is_err(), "octet {at} is not protected");
        assert!(inbound(suite).open(&mut sealed[..at].to_vec(), tos).is_err(), "cut at {at}");
    }
}

/// A suite, a kind of damage, and a packet: sealed and opened it is what it was, and damaged it is refused.
pub fn esp_seal(data: &[u8]) {
    let mut input = Input(data);
    let suites = suites();
    let suite = suites[usize::from(input.u8()) % suites.len()];
    let (at, flip) = (input.u16(), input.u8() | 1);
    let plain = input.rest();
    let Some(header) = InnerHeader::parse(plain) else { return };
    // As many octets as the packet says; what follows it in the buffer is not of it.
    let plain = &plain[..header.total_len];
    let sender = OutboundSa::new(&sa(suite, Direction::Out), 0).expect("a valid SA");
    let layout = sender.layout();
    let (head, len) = (layout.head_len(), layout.sealed_len(plain.len()));
    assert!(layout.max_inner(len) >= plain.len() && layout.sealed_len(layout.max_inner(len)) <= len);
    let mut sealed = vec![0; len];
    sealed[head..head + plain.len()].copy_from_slice(plain);
    let admitted = sender.admit(&header).expect("any address is admitted");
    admitted.seal(&mut sealed, plain.len()).expect("a fresh SA seals");

    let mut forged = sealed.clone();
    let place = 4 + usize::from(at) % (forged.len() - 4);
    forged[place] ^= flip;
    let receiver = inbound(suite);
    assert!(receiver.open(&mut forged, 0).is_err(), "octet {place} is not protected");
    let authentic = receiver.open(&mut sealed, 0).expect("the original");
    assert_eq!(authentic.age, Age::Newest);
    let opened = authentic.content.expect("an ordinary packet");
    assert_eq!(opened.header, header);
    assert_eq!(&sealed[opened.range], plain);
}

/// An IP packet's headers: they lie inside the packet, octets behind it do not matter, and a new TOS octet changes
/// nothing else.
pub fn esp_inner(data: &[u8]) {
    let Some(header) = InnerHeader::parse(data) else { return };
    assert!(header.header_len <= header.total_len && header.total_len <= data.len());
    assert!(header.header_len >= if header.src.is_ipv4() { 20 } else { 40 });
    assert_eq!(header.src.is_ipv4(), header.dst.is_ipv4());
    let mut packet = data[..header.total_len].to_vec();
    assert_eq!(InnerHeader::parse(&packet), Some(header));
    assert!(InnerHeader::parse(&packet[..header.total_len - 1]).is_none());
    if header.src.is_ipv4() && packet[9] == 17 && packet[6] & 0x1F == 0 && packet[7] == 0 {
        let upper = &packet[header.header_len..];
        let ports =
            upper.get(..4).map(|p| (u16::from_be_bytes([p[0], p[1]]), u16::from_be_bytes([p[2], p[3]])));
        assert_eq!(header.ports, ports);
    }
    let was_valid = header.src.is_ipv4() && Sum::default().octets(&packet[..header.header_len]).is_valid();
    let tos = header.tos ^ 0x5B;
    inner::set_tos(&mut packet, tos);
    assert_eq!(InnerHeader::parse(&packet), Some(InnerHeader { tos, ..header }));
    assert!(!was_valid || Sum::default().octets(&packet[..header.header_len]).is_valid());
    inner::set_tos(&mut packet, header.tos);
    assert!(header.src.is_ipv4() || packet == data[..header.total_len]);
}

/// The window by its definition: a set of what was seen.
struct Naive {
    top: u64,
    size: u64,
    seen: BTreeSet<u64>,
}

impl Naive {
    fn accept(&mut self, seq: u64) -> bool {
        let fresh =
            seq > self.top || self.size == 0 || (self.top - seq < self.size && !self.seen.contains(&seq));
        if seq == 0 || !fresh {
            return false;
        }
        self.seen.insert(seq);
        self.top = self.top.max(seq);
        true
    }
}

/// A window's size and numbers as steps from its upper edge, held against a set.
pub fn esp_replay(data: &[u8]) {
    let mut input = Input(data);
    let options = input.u8();
    let size = [0, 64, 96, 128, 1024, 4096][usize::from(options % 6)];
    let esn = options & 0x80 != 0;
    let mut window = ReplayWindow::new(size, esn).expect("a size that is offered");
    let mut naive = Naive { top: 0, size: u64::from(size), seen: BTreeSet::new() };
    while !input.is_empty() {
        let kind = input.u8();
        let step = u64::from(input.u16());
        let seq = match kind % 4 {
            0 => naive.top.saturating_add(step % 5),
            1 => naive.top.saturating_sub(step % 5000),
            2 => naive.top.saturating_add(step << (kind >> 4)),
            _ => step,
        };
        let seq = if esn { seq } else { seq.min(u64::from(u32::MAX)) };
        // Without a window the nearest number is meant; a step of less than half the range is told by its low half.
        let behind = if size == 0 { 1 << 31 } else { u64::from(size) };
        if seq.saturating_add(behind) > naive.top && seq < naive.top.saturating_add(1 << 31) {
            assert_eq!(window.infer(seq as u32), seq, "under {}", naive.top);
        }
        let check = window.check(seq).is_ok();
        let age = window.accept(seq);
        let newest = seq > naive.top;
        assert_eq!(age.is_ok(), naive.accept(seq), "{seq} under {}", naive.top);
        assert_eq!(check, age.is_ok());
        assert!(age.is_err() || age == Ok(if newest { Age::Newest } else { Age::Late }));
        assert_eq!(window.top(), naive.top);
    }
}
