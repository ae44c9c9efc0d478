use cygnet_model::addke::Additional;
use cygnet_model::id::Reqid;
use cygnet_model::selector::{IpRange, TrafficSelector};
use cygnet_model::suite::{Encr, EspSuite, Group, Integ};
use cygnet_model::tunnel::{Direction, Mark, SaId, SaSpec, UdpEncap, VolumeLimits};
use cygnet_model::{ChildId, SecretBytes, Spi, TunnelId};
use proptest::prelude::*;

use super::{SavedError, parse_sa, show_sa};

fn spec() -> SaSpec {
    let child = ChildId { tunnel: TunnelId(7), index: 2 };
    let net = |text: &str, len| TrafficSelector::cidr(text.parse().unwrap(), len).unwrap();
    let port = TrafficSelector { protocol: 6, ports: (443, 443), ..net("10.1.0.0", 24) };
    SaSpec {
        id: SaId { child, direction: Direction::Out, spi: Spi::new(0xC3F1_A2B4).unwrap() },
        reqid: Reqid::of(child).unwrap(),
        local: "192.0.2.1".parse().unwrap(),
        remote: "192.0.2.2".parse().unwrap(),
        encap: Some(UdpEncap { local_port: 4500, remote_port: 61_000 }),
        suite: EspSuite {
            encr: Encr::AesGcm16_128,
            integ: None,
            group: Some(Group::X25519),
            additional: Additional::NONE,
            esn: true,
        },
        encr_key: SecretBytes::new((0..20).collect()),
        integ_key: SecretBytes::new(Vec::new()),
        replay_window: 128,
        inner_local: vec![net("10.1.0.0", 16), port],
        inner_remote: vec![net("2001:db8::", 32)],
        limits: VolumeLimits { soft_bytes: 1, hard_bytes: 1 << 40, soft_packets: 3, hard_packets: 4 },
        mark: Some(Mark { value: 1, mask: u32::MAX }),
    }
}

/// The version, and a map: tunnel, child, outbound, SPI; addresses and ports; algorithms by their numbers; key, no integrity
/// key, window; selectors of RFC 7296 §3.13.1, ours and the peer's; limits and mark.
const VERSION_1: &str = "\
    01 af \
    00 07 01 02 02 f5 03 1ac3f1a2b4 \
    04 44c0000201 05 44c0000202 06 8219119419ee48 \
    07 a3001a00140080 02181f 03f5 \
    08 54000102030405060708090a0b0c0d0e0f10111213 09 40 0a 1880 \
    0b 5820070000100000ffff0a0100000a01ffff 0706001001bb01bb0a0100000a0100ff \
    0c 5828080000280000ffff20010db8000000000000000000000000 20010db8ffffffffffffffffffffffff \
    0d 84 01 1b0000010000000000 03 04 0e 82 01 1affffffff";

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|o| format!("{o:02x}")).collect()
}

#[test]
fn an_esp_sa_is_written_as_version_1_has_it() {
    assert_eq!(hex(show_sa(&spec()).expose()), VERSION_1.replace(' ', ""));
}

#[test]
fn an_esp_sa_comes_back_as_it_was() {
    let legacy = SaSpec {
        id: SaId { direction: Direction::In, ..spec().id },
        local: "2001:db8::1".parse().unwrap(),
        remote: "2001:db8::2".parse().unwrap(),
        encap: None,
        suite: EspSuite::plain(Encr::AesCbc192, Some(Integ::HmacSha512_256), false),
        encr_key: SecretBytes::new(vec![1; 24]),
        integ_key: SecretBytes::new(vec![2; 64]),
        replay_window: 0,
        limits: VolumeLimits::default(),
        mark: None,
        ..spec()
    };
    for spec in [spec(), legacy] {
        let read = parse_sa(show_sa(&spec).expose()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{spec:?}"));
        assert!(read.encr_key == spec.encr_key && read.integ_key == spec.integ_key);
    }
}

#[test]
fn what_cannot_be_an_esp_sa_is_refused_by_what_is_wrong() {
    let refused = |change: fn(&mut SaSpec), what: &'static str| {
        let mut spec = spec();
        change(&mut spec);
        assert_eq!(parse_sa(show_sa(&spec).expose()).err(), Some(SavedError::Value(what)));
    };
    refused(|s| s.encr_key = SecretBytes::new(vec![0; 19]), "key length");
    refused(|s| s.integ_key = SecretBytes::new(vec![0; 1]), "key length");
    refused(|s| s.suite.integ = Some(Integ::HmacSha256_128), "suite");
    refused(|s| s.replay_window = 65, "replay window");
    refused(|s| s.remote = "2001:db8::2".parse().unwrap(), "addresses");
    refused(|s| s.inner_local.clear(), "selectors");
    refused(|s| s.id.child.index = ChildId::LIMIT, "child number");
}

#[test]
fn what_a_newer_version_added_is_refused() {
    let octets = show_sa(&spec()).expose().to_vec();
    // A map of 15 entries; the new one has number 23.
    assert_eq!(octets[1], 0xAF);
    let newer = [&[1, 0xB8, 16], &octets[2..], &[23, 0]].concat();
    assert_eq!(parse_sa(&newer).err(), Some(SavedError::Unknown));
    assert_eq!(parse_sa(&[&[2], &octets[1..]].concat()).err(), Some(SavedError::Version(2)));
    // The same said in another way is not what this version writes, and an announced length is not believed.
    assert_eq!(parse_sa(&[&[0x18, 1], &octets[1..]].concat()).err(), Some(SavedError::Unknown));
    assert_eq!(
        parse_sa(&[1, 0xBB, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]).err(),
        Some(SavedError::Malformed)
    );
}

proptest! {
    #[test]
    fn any_octets_are_refused_or_mean_themselves(
        at in 0usize..200,
        octet: u8,
        len in 0usize..300,
        noise in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut octets = show_sa(&spec()).expose().to_vec();
        let at = at % octets.len();
        octets[at] = octet;
        octets.truncate(len);
        for octets in [octets, noise] {
            if let Ok(spec) = parse_sa(&octets) {
                prop_assert!(show_sa(&spec).expose() == octets);
            }
        }
    }
}

#[test]
fn ranges_that_are_no_prefix_come_back_too() {
    let range = IpRange::new("10.0.0.3".parse().unwrap(), "10.0.0.9".parse().unwrap()).unwrap();
    let mut odd = spec();
    odd.inner_local = vec![TrafficSelector { range, protocol: 17, ports: (65535, 0) }];
    assert_eq!(parse_sa(show_sa(&odd).expose()).unwrap().inner_local, odd.inner_local);
}
