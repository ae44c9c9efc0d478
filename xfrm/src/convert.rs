//! Between the vocabulary of cygnet and the structures of netlink-packet-xfrm.

use std::net::IpAddr;

use cygnet_model::selector::{Packet, PacketEnd};
use cygnet_model::tunnel::Mark;
use netlink_packet_xfrm::constants::{AF_INET, AF_INET6};
use netlink_packet_xfrm::{Address, LifetimeConfig, Selector, XFRM_INF};

/// Shortest payload that each message type must have before anything looks into it. netlink-packet-xfrm slices
/// message bodies without asking for their length and would panic.
pub(crate) const fn min_len(kind: u16) -> usize {
    use netlink_packet_xfrm::constants as c;
    match kind {
        c::XFRM_MSG_NEWSA | c::XFRM_MSG_UPDSA => netlink_packet_xfrm::XFRM_USER_SA_INFO_LEN,
        c::XFRM_MSG_NEWPOLICY | c::XFRM_MSG_UPDPOLICY => netlink_packet_xfrm::XFRM_USER_POLICY_INFO_LEN,
        c::XFRM_MSG_ACQUIRE => netlink_packet_xfrm::XFRM_USER_ACQUIRE_LEN,
        c::XFRM_MSG_EXPIRE => netlink_packet_xfrm::XFRM_USER_EXPIRE_LEN,
        c::XFRM_MSG_MAPPING => netlink_packet_xfrm::XFRM_USER_MAPPING_LEN,
        // struct xfrm_usersa_id
        c::XFRM_MSG_DELSA => 24,
        // Types that nobody here reads.
        _ => usize::MAX,
    }
}

/// Splits the payload of a message into its fixed part, if that is whole, and its attributes.
pub(crate) fn split(kind: u16, payload: &[u8]) -> Option<(&[u8], &[u8])> {
    payload.split_at_checked(min_len(kind))
}

pub(crate) const fn family(addr: IpAddr) -> u16 {
    match addr {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

pub(crate) fn address(addr: IpAddr) -> Address {
    Address::from_ip(&addr)
}

pub(crate) fn ip(address: &Address, family: u16) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::V4(address.to_ipv4())),
        AF_INET6 => Some(IpAddr::V6(address.to_ipv6())),
        _ => None,
    }
}

/// The packet that an acquire is about: the kernel makes its selector from the flow (`xfrm_init_tempstate` in
/// `net/xfrm/xfrm_state.c`). `None` if it is no single packet's.
pub(crate) fn packet(selector: &Selector) -> Option<Packet> {
    let (source, destination) =
        (ip(&selector.saddr, selector.family)?, ip(&selector.daddr, selector.family)?);
    let whole = if source.is_ipv4() { 32 } else { 128 };
    if selector.prefixlen_s != whole || selector.prefixlen_d != whole || selector.proto == 0 {
        return None;
    }
    let (sport, dport) = (selector.sport, selector.dport);
    let ports = match selector.proto {
        // Type and code stand where the ports do; IKE has both in one number, at both ends (RFC 7296 §3.13.1).
        ICMP | ICMPV6 => {
            let kind = (sport << 8) | (dport & 0xff);
            Some((kind, kind))
        }
        TCP | UDP | SCTP | DCCP | UDPLITE => Some((sport, dport)),
        _ => None,
    };
    let end = |addr, port| PacketEnd { addr, protocol: selector.proto, port };
    Some(Packet::between(&end(source, ports.map(|p| p.0)), &end(destination, ports.map(|p| p.1))))
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

/// A mark of zero is how the kernel shows objects without one.
pub(crate) fn mark(attribute: Option<&[u8]>) -> Option<Mark> {
    let mark = netlink_packet_xfrm::Mark::parse(attribute?).ok()?;
    (mark.mask != 0 || mark.value != 0).then_some(Mark { value: mark.value, mask: mark.mask })
}

pub(crate) fn mark_value(mark: Mark) -> [u8; 8] {
    // The kernel keeps the value as given and compares `packet & mask` with it: bits outside would never match.
    let mut out = [0; 8];
    let (value, mask) = out.split_at_mut(4);
    value.copy_from_slice(&(mark.value & mark.mask).to_ne_bytes());
    mask.copy_from_slice(&mark.mask.to_ne_bytes());
    out
}

/// The kernel's limits: zero would mean "at once" for volumes, so "none" is infinity.
pub(crate) fn lifetimes(limits: &cygnet_model::tunnel::VolumeLimits) -> LifetimeConfig {
    let or_none = |n: u64| if n == 0 { XFRM_INF } else { n };
    LifetimeConfig {
        soft_byte_limit: or_none(limits.soft_bytes),
        hard_byte_limit: or_none(limits.hard_bytes),
        soft_packet_limit: or_none(limits.soft_packets),
        hard_packet_limit: or_none(limits.hard_packets),
        ..LifetimeConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acquire_names_its_packet_by_addresses_protocol_and_ports() {
        let of = |proto, sport: u16, dport: u16| Selector {
            saddr: address("10.1.0.7".parse().unwrap()),
            daddr: address("10.2.0.9".parse().unwrap()),
            sport,
            dport,
            family: AF_INET,
            prefixlen_s: 32,
            prefixlen_d: 32,
            proto,
            ..Selector::default()
        };
        let told = |s: &Selector| packet(s).map(|p| format!("{} {}", p.local, p.remote)).unwrap_or_default();
        assert_eq!(told(&of(TCP, 40_000, 443)), "10.1.0.7/32[6/40000] 10.2.0.9/32[6/443]");
        assert_eq!(told(&of(ICMP, 8, 0)), "10.1.0.7/32[1/2048] 10.2.0.9/32[1/2048]");
        assert_eq!(told(&of(47, 0, 0)), "10.1.0.7/32[47] 10.2.0.9/32[47]");
        assert_eq!(told(&Selector { prefixlen_d: 24, ..of(TCP, 1, 2) }), "");
        assert_eq!(told(&of(0, 0, 0)), "");
    }
}
