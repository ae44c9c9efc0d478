//! Tools of the tests: suites, keys, inner packets.

use std::net::IpAddr;

use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::{Encr, EspSuite, Integ};
use cygnet_model::tunnel::{
    Bypass, Direction, GuardAction, GuardSpec, SaId, SaSpec, TunnelSpec, UdpEncap, VolumeLimits,
};
use cygnet_model::{ChildId, Reqid, SecretBytes, Spi, TunnelId};

use crate::checksum::{Sum, pseudo_header};

pub const CHILD: ChildId = ChildId { tunnel: TunnelId(1), index: 0 };

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> TrafficSelector {
    let (addr, len) = text.split_once('/').unwrap();
    TrafficSelector::cidr(ip(addr), len.parse().unwrap()).unwrap()
}

/// Every suite that we speak, with and without ESN.
pub fn suites() -> Vec<EspSuite> {
    let mut all = Vec::new();
    for encr in Encr::ALL {
        let integs: Vec<Option<Integ>> =
            if encr.is_aead() { vec![None] } else { Integ::ALL.into_iter().map(Some).collect() };
        for integ in integs {
            all.extend([false, true].map(|esn| EspSuite::plain(encr, integ, esn)));
        }
    }
    all
}

pub fn gcm() -> EspSuite {
    EspSuite::plain(Encr::AesGcm16_128, None, false)
}

/// An SA of `CHILD` between 10.1/16, fd01::/16 here and 10.2/16, fd02::/16 there.
pub fn spec(suite: EspSuite, direction: Direction, spi: u32) -> SaSpec {
    SaSpec {
        id: SaId { child: CHILD, direction, spi: Spi::new(spi).unwrap() },
        reqid: Reqid::of(CHILD).unwrap(),
        local: ip("192.0.2.1"),
        remote: ip("192.0.2.2"),
        encap: Some(UdpEncap { local_port: 4500, remote_port: 4500 }),
        suite,
        encr_key: SecretBytes::new((0..suite.encr.keymat_len() as u8).collect()),
        integ_key: SecretBytes::new(vec![0x55; suite.integ.map_or(0, Integ::key_len)]),
        replay_window: 1024,
        inner_local: vec![net("10.1.0.0/16"), net("fd01::/16")],
        inner_remote: vec![net("10.2.0.0/16"), net("fd02::/16")],
        limits: VolumeLimits::default(),
        mark: None,
    }
}

/// A guard that wants a tunnel for packets between two networks.
pub fn guard(child: ChildId, local: &str, remote: &str) -> GuardSpec {
    GuardSpec {
        child,
        reqid: Reqid::of(child).unwrap(),
        local: vec![net(local)],
        remote: vec![net(remote)],
        action: GuardAction::Acquire,
        mark: None,
        weight: 0,
        bypass: Bypass::NONE,
    }
}

/// The tunnel behind a guard, between 192.0.2.1 and 192.0.2.2.
pub fn tunnel(guard: &GuardSpec) -> TunnelSpec {
    TunnelSpec {
        child: guard.child,
        reqid: guard.reqid,
        local: guard.local.clone(),
        remote: guard.remote.clone(),
        outer_local: ip("192.0.2.1"),
        outer_remote: ip("192.0.2.2"),
        mark: None,
        weight: guard.weight,
    }
}

/// The other end's view: local and remote exchanged.
pub fn mirrored(mut spec: SaSpec) -> SaSpec {
    std::mem::swap(&mut spec.local, &mut spec.remote);
    std::mem::swap(&mut spec.inner_local, &mut spec.inner_remote);
    spec.id.direction = match spec.id.direction {
        Direction::In => Direction::Out,
        Direction::Out => Direction::In,
    };
    spec
}

/// An IP packet with right checksums around `upper`, whose own checksum stands at `checksum_at`, if it has one.
pub fn packet(src: &str, dst: &str, protocol: u8, upper: &[u8], checksum_at: Option<usize>) -> Vec<u8> {
    let (src, dst) = (ip(src), ip(dst));
    let mut p = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let len = (20 + upper.len()) as u16;
            let mut p = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 7, 0x40, 0, 64, protocol, 0, 0];
            p.extend(src.octets());
            p.extend(dst.octets());
            let sum = Sum::default().octets(&p).checksum();
            p[10..12].copy_from_slice(&sum);
            p
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let len = upper.len() as u16;
            let mut p = vec![0x60, 0, 0, 0, (len >> 8) as u8, len as u8, protocol, 64];
            p.extend(src.octets());
            p.extend(dst.octets());
            p
        }
        _ => panic!("mixed families"),
    };
    let header_len = p.len();
    p.extend(upper);
    if let Some(at) = checksum_at {
        let addresses = if header_len == 20 { 12..20 } else { 8..40 };
        p[header_len + at..header_len + at + 2].fill(0);
        let sum = pseudo_header(&p[addresses], protocol, upper.len() as u16).octets(&p[header_len..]);
        p[header_len + at..header_len + at + 2].copy_from_slice(&sum.checksum());
    }
    p
}

/// A UDP packet from 10.1.0.1 to 10.2.0.1 with `len` octets of payload.
pub fn udp4(len: usize) -> Vec<u8> {
    packet("10.1.0.1", "10.2.0.1", 17, &udp_upper(len), Some(6))
}

/// The same over IPv6.
pub fn udp6(len: usize) -> Vec<u8> {
    packet("fd01::1", "fd02::1", 17, &udp_upper(len), Some(6))
}

fn udp_upper(len: usize) -> Vec<u8> {
    let total = (8 + len) as u16;
    let mut upper = vec![0x12, 0x34, 0, 53, (total >> 8) as u8, total as u8, 0, 0];
    upper.extend((0..len).map(|i| (i * 7) as u8));
    upper
}
