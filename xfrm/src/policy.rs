//! IPsec policies (SPD entries): what must be protected, what is blocked. RFC 4301 §4.4.1, `net/xfrm/xfrm_policy.c`.
//!
//! The kernel tells policies apart by direction, selector and mark, not by priority: there is one policy for a
//! selector, and replacing it (UPDPOLICY) puts the new one in before the old one goes, so that no packet passes
//! between. Every policy of ours carries our reqid in its template, blocking ones too (the kernel keeps templates of
//! blocking policies and does not look at them).

use std::net::IpAddr;

use cygnet_model::Spi;
use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::Mark;
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, XFRM_MODE_TUNNEL, XFRM_MSG_DELPOLICY, XFRM_MSG_GETSPDINFO, XFRM_MSG_NEWPOLICY,
    XFRM_MSG_UPDPOLICY, XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK, XFRM_POLICY_FWD, XFRM_POLICY_IN,
    XFRM_POLICY_OUT, XFRMA_MARK, XFRMA_TMPL,
};
use netlink_packet_xfrm::{LifetimeConfig, Selector, UserPolicyId, UserPolicyInfo, UserTemplate};

use crate::codec::{self, Writer};
use crate::error::NetlinkError;
use crate::sa::emitted;
use crate::socket::Request;
use crate::{Xfrm, convert};

/// `struct xfrmu_spdinfo` in an answer to GETSPDINFO.
const XFRMA_SPD_INFO: u16 = 1;

/// Where the kernel asks a policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PolicyDirection {
    /// Packets for this host.
    In,
    /// Packets that leave, made here or forwarded.
    Out,
    /// Packets that came in and go on.
    Forward,
}

impl PolicyDirection {
    /// All three.
    pub const ALL: [Self; 3] = [Self::In, Self::Out, Self::Forward];

    const fn code(self) -> u8 {
        match self {
            Self::In => XFRM_POLICY_IN,
            Self::Out => XFRM_POLICY_OUT,
            Self::Forward => XFRM_POLICY_FWD,
        }
    }
}

/// A port as value and mask; mask 0 is any port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortMask {
    /// Value.
    pub value: u16,
    /// Mask.
    pub mask: u16,
}

impl PortMask {
    /// Any port.
    pub const ANY: Self = Self { value: 0, mask: 0 };
    const fn one(value: u16) -> Self {
        Self { value, mask: u16::MAX }
    }
}

/// Which packets, in the kernel's terms: CIDR blocks and masked ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PolicySelector {
    /// Source block.
    pub source: (IpAddr, u8),
    /// Destination block, of the same family.
    pub destination: (IpAddr, u8),
    /// IP protocol, 0 is any.
    pub protocol: u8,
    /// Source port; ICMP type for protocols 1 and 58.
    pub source_port: PortMask,
    /// Destination port; ICMP code for protocols 1 and 58.
    pub destination_port: PortMask,
}

impl PolicySelector {
    /// The same packets in the other direction. ICMP types and codes stay: they do not belong to an end.
    pub const fn reversed(self) -> Self {
        let icmp = is_icmp(self.protocol);
        Self {
            source: self.destination,
            destination: self.source,
            source_port: if icmp { self.source_port } else { self.destination_port },
            destination_port: if icmp { self.destination_port } else { self.source_port },
            ..self
        }
    }

    pub(crate) fn of(s: &Selector) -> Option<Self> {
        Some(Self {
            source: (convert::ip(&s.saddr, s.family)?, s.prefixlen_s),
            destination: (convert::ip(&s.daddr, s.family)?, s.prefixlen_d),
            protocol: s.proto,
            source_port: PortMask { value: s.sport, mask: s.sport_mask },
            destination_port: PortMask { value: s.dport, mask: s.dport_mask },
        })
    }

    fn to_kernel(self) -> Selector {
        Selector {
            saddr: convert::address(self.source.0),
            prefixlen_s: self.source.1,
            daddr: convert::address(self.destination.0),
            prefixlen_d: self.destination.1,
            family: convert::family(self.source.0),
            proto: self.protocol,
            sport: self.source_port.value,
            sport_mask: self.source_port.mask,
            dport: self.destination_port.value,
            dport_mask: self.destination_port.mask,
            ..Selector::default()
        }
    }
}

/// What the kernel knows a policy by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PolicyKey {
    /// Direction.
    pub direction: PolicyDirection,
    /// Selector.
    pub selector: PolicySelector,
    /// Mark.
    pub mark: Option<Mark>,
}

impl PolicyKey {
    const fn order(&self) -> (PolicyDirection, PolicySelector, Option<(u32, u32)>) {
        let mark = match self.mark {
            Some(m) => Some((m.value & m.mask, m.mask)),
            None => None,
        };
        (self.direction, self.selector, mark)
    }
}

impl PartialOrd for PolicyKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PolicyKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// What happens to packets of a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyAction {
    /// They are dropped.
    Block,
    /// They pass in clear text.
    Allow,
    /// They pass by ESP in tunnel mode with the policy's reqid between these outer addresses, or not at all. The
    /// unspecified address as source means any; inbound it accepts a peer that moved.
    Protect {
        /// Outer source.
        source: IpAddr,
        /// Outer destination.
        destination: IpAddr,
        /// The one state to use; `None` leaves it to the kernel, which takes the state with the latest second of
        /// the wall clock, and any of those added in the same second.
        spi: Option<Spi>,
    },
}

/// A policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// What the kernel knows it by.
    pub key: PolicyKey,
    /// Lower numbers are asked first.
    pub priority: u32,
    /// Binds it to states, and tells whose it is; 0 without a template.
    pub reqid: u32,
    /// What happens.
    pub action: PolicyAction,
}

impl Policy {
    fn template(&self) -> Option<UserTemplate> {
        let (source, destination, spi) = match self.action {
            PolicyAction::Allow => return None,
            PolicyAction::Protect { source, destination, spi } => (source, destination, spi),
            // Only there to carry the reqid.
            PolicyAction::Block => (self.key.selector.source.0, self.key.selector.destination.0, None),
        };
        let mut t = UserTemplate {
            family: convert::family(destination),
            saddr: convert::address(source),
            reqid: self.reqid,
            mode: XFRM_MODE_TUNNEL,
            ..UserTemplate::default()
        };
        t.id.daddr = convert::address(destination);
        t.id.proto = IPPROTO_ESP;
        t.id.spi = spi.map_or(0, Spi::value);
        Some(t)
    }

    pub(crate) fn put_request(&self) -> Request {
        self.request(XFRM_MSG_UPDPOLICY)
    }

    /// The value of the socket options `IP_XFRM_POLICY` and `IPV6_XFRM_POLICY` (`net/xfrm/xfrm_user.c`, `xfrm_compile_policy`): the
    /// policy, and its template behind it. It has no mark there.
    pub(crate) fn as_socket_option(&self) -> Vec<u8> {
        let mut out = emitted(&self.info());
        out.extend(self.template().map(|template| emitted(&template)).unwrap_or_default());
        out
    }

    fn info(&self) -> UserPolicyInfo {
        UserPolicyInfo {
            selector: self.key.selector.to_kernel(),
            lifetime_cfg: LifetimeConfig::default(),
            priority: self.priority,
            direction: self.key.direction.code(),
            action: if self.action == PolicyAction::Block { XFRM_POLICY_BLOCK } else { XFRM_POLICY_ALLOW },
            ..UserPolicyInfo::default()
        }
    }

    fn request(&self, kind: u16) -> Request {
        let mut w = Writer::new();
        w.raw(&emitted(&self.info()));
        if let Some(template) = self.template() {
            w.attr(XFRMA_TMPL, &emitted(&template));
        }
        if let Some(mark) = self.key.mark {
            w.attr(XFRMA_MARK, &convert::mark_value(mark));
        }
        Request::new(kind, 0, w)
    }
}

/// One step on the kernel's SPD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PolicyChange {
    /// Adds a policy where there is none with the same key; refused with `EEXIST` otherwise, whoever has it.
    Add(Policy),
    /// Replaces the policy with the same key without a gap, or adds it.
    Put(Policy),
    /// Removes a policy; one that is not there counts as removed.
    Delete(PolicyKey),
}

impl PolicyChange {
    fn request(&self) -> Request {
        match self {
            Self::Add(policy) => policy.request(XFRM_MSG_NEWPOLICY),
            Self::Put(policy) => policy.put_request(),
            Self::Delete(key) => {
                let id = UserPolicyId {
                    selector: key.selector.to_kernel(),
                    direction: key.direction.code(),
                    ..UserPolicyId::default()
                };
                let mut w = Writer::new();
                w.raw(&emitted(&id));
                if let Some(mark) = key.mark {
                    w.attr(XFRMA_MARK, &convert::mark_value(mark));
                }
                Request::new(XFRM_MSG_DELPOLICY, 0, w)
            }
        }
    }
}

impl Xfrm {
    /// Applies changes in order; one result each.
    ///
    /// # Errors
    /// Of the whole call if answers were lost: then policies must be dumped.
    pub fn change_policies(
        &mut self,
        changes: &[PolicyChange],
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let requests: Vec<Request> = changes.iter().map(PolicyChange::request).collect();
        let mut results = self.socket.submit(&requests)?;
        for (change, result) in changes.iter().zip(&mut results) {
            if matches!(change, PolicyChange::Delete(_))
                && result.as_ref().is_err_and(NetlinkError::is_absent)
            {
                *result = Ok(());
            }
        }
        Ok(results)
    }

    /// How many policies the network namespace has inbound, outbound and forwarding, whoever made them. Costs next to
    /// nothing however many there are.
    ///
    /// # Errors
    /// Transport errors, and an answer without the numbers.
    pub fn policy_counts(&mut self) -> Result<[u32; 3], NetlinkError> {
        let mut w = Writer::new();
        w.raw(&0u32.to_ne_bytes());
        self.socket.query(&Request::new(XFRM_MSG_GETSPDINFO, 0, w), |_, payload| {
            let info = codec::find(payload.get(4..)?, XFRMA_SPD_INFO)?;
            Some([codec::u32_at(info, 0)?, codec::u32_at(info, 4)?, codec::u32_at(info, 8)?])
        })
    }
}

const fn is_icmp(protocol: u8) -> bool {
    protocol == 1 || protocol == 58
}

/// The outbound selectors (source ours, destination the peer's) of every combination of a local and a remote traffic
/// selector; combinations of different families or protocols mean nothing and are left out.
///
/// # Errors
/// [`NetlinkError::Unfit`] for what the kernel cannot express (OPAQUE ports, ranges of ICMP codes over several types)
/// and beyond `limit` selectors.
pub fn expand(
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
    limit: usize,
) -> Result<Vec<PolicySelector>, NetlinkError> {
    let mut out = Vec::new();
    for l in local {
        for r in remote {
            if l.range.start().is_ipv4() != r.range.start().is_ipv4() {
                continue;
            }
            let protocol = match (l.protocol, r.protocol) {
                (0, p) | (p, 0) => p,
                (a, b) if a == b => a,
                _ => continue,
            };
            let ports = ports(protocol, l, r)?;
            let (sources, destinations) = (l.range.prefixes(), r.range.prefixes());
            if out.len() + ports.len() * sources.len() * destinations.len() > limit {
                return Err(NetlinkError::Unfit(format!(
                    "the traffic selectors make more than {limit} kernel policies; use CIDR blocks instead of ranges"
                )));
            }
            for source in &sources {
                for destination in &destinations {
                    out.extend(ports.iter().map(|(source_port, destination_port)| PolicySelector {
                        source: *source,
                        destination: *destination,
                        protocol,
                        source_port: *source_port,
                        destination_port: *destination_port,
                    }));
                }
            }
        }
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

fn ports(
    protocol: u8,
    local: &TrafficSelector,
    remote: &TrafficSelector,
) -> Result<Vec<(PortMask, PortMask)>, NetlinkError> {
    if let Some(opaque) = [local, remote].into_iter().find(|s| s.ports.0 > s.ports.1) {
        return Err(NetlinkError::Unfit(format!(
            "the kernel has no OPAQUE ports (traffic selector {opaque})"
        )));
    }
    if is_icmp(protocol) {
        return icmp(local, remote);
    }
    let (sources, destinations) = (port_masks(local.ports), port_masks(remote.ports));
    Ok(sources.iter().flat_map(|s| destinations.iter().map(|d| (*s, *d))).collect())
}

/// ICMP type and code, which RFC 7296 §3.13.1 puts into the port fields as one 16 bit number; the kernel has the type
/// in the source port and the code in the destination port.
fn icmp(
    local: &TrafficSelector,
    remote: &TrafficSelector,
) -> Result<Vec<(PortMask, PortMask)>, NetlinkError> {
    let range = match (local.any_port(), remote.any_port()) {
        (true, true) => return Ok(vec![(PortMask::ANY, PortMask::ANY)]),
        (false, true) => local.ports,
        (true, false) => remote.ports,
        (false, false) => (local.ports.0.max(remote.ports.0), local.ports.1.min(remote.ports.1)),
    };
    let [(first_type, first_code), (last_type, last_code)] = [range.0, range.1].map(|n| (n >> 8, n & 0xFF));
    match (first_code, last_code) {
        _ if range.0 > range.1 => Ok(vec![]),
        (0, 0xFF) => Ok((first_type..=last_type).map(|t| (PortMask::one(t), PortMask::ANY)).collect()),
        _ if first_type == last_type => Ok((first_code..=last_code)
            .map(|code| (PortMask::one(first_type), PortMask::one(code)))
            .collect()),
        _ => Err(NetlinkError::Unfit("the kernel cannot match ICMP codes over several types".to_owned())),
    }
}

/// The fewest masked values that make up a range of ports.
fn port_masks((first, last): (u16, u16)) -> Vec<PortMask> {
    let (mut at, last) = (u32::from(first), u32::from(last));
    let mut out = Vec::new();
    while at <= last {
        let mut size = 1u32;
        while size < 0x1_0000 && at % (size * 2) == 0 && at + size * 2 - 1 <= last {
            size *= 2;
        }
        let mask = 0xFFFF & !(size - 1);
        // Both are below 2^16 by construction.
        out.push(PortMask { value: (at & 0xFFFF) as u16, mask: mask as u16 });
        at += size;
    }
    out
}

#[cfg(test)]
mod tests {
    use cygnet_model::IpRange;
    use proptest::prelude::*;

    use super::*;

    fn ts(cidr: &str) -> TrafficSelector {
        let (addr, len) = cidr.split_once('/').unwrap();
        TrafficSelector::cidr(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
    }

    #[test]
    fn families_are_never_mixed() {
        let all = [ts("10.0.0.0/8"), ts("2001:db8::/32")];
        let out = expand(&all, &all, 100).unwrap();
        assert_eq!(out.len(), 2);
        assert!(out.iter().all(|s| s.source.0.is_ipv4() == s.destination.0.is_ipv4()));
    }

    #[test]
    fn a_range_becomes_blocks_and_too_many_are_refused() {
        let range = IpRange::new("10.0.0.1".parse().unwrap(), "10.0.0.254".parse().unwrap()).unwrap();
        let odd = [TrafficSelector::any(range)];
        assert_eq!(expand(&odd, &[ts("10.2.0.0/16")], 100).unwrap().len(), 14);
        let e = expand(&odd, &odd, 100).unwrap_err().to_string();
        assert!(e.contains("more than 100 kernel policies"), "{e}");
    }

    #[test]
    fn icmp_types_are_source_ports_and_stay_there() {
        let ping = TrafficSelector { protocol: 1, ports: (0x0800, 0x08FF), ..ts("10.1.0.0/16") };
        let out = expand(&[ping], &[ts("10.2.0.0/16")], 10).unwrap();
        let [s] = out[..] else { panic!("{out:?}") };
        assert_eq!((s.source_port, s.destination_port), (PortMask::one(8), PortMask::ANY));
        assert_eq!(s.reversed().source_port, PortMask::one(8));
    }

    #[test]
    fn opaque_ports_are_refused_rather_than_widened() {
        let opaque = TrafficSelector { ports: (65535, 0), ..ts("10.1.0.0/16") };
        assert!(expand(&[opaque], &[ts("10.2.0.0/16")], 10).is_err());
    }

    #[test]
    fn a_policy_reads_back_as_it_was_written() {
        for action in [
            PolicyAction::Block,
            PolicyAction::Protect {
                source: "192.0.2.1".parse().unwrap(),
                destination: "192.0.2.2".parse().unwrap(),
                spi: Spi::new(0xC3F1_A2B4),
            },
        ] {
            let selector = expand(&[ts("10.1.0.0/16")], &[ts("10.2.3.0/24")], 10).unwrap()[0];
            let policy = Policy {
                key: PolicyKey {
                    direction: PolicyDirection::Out,
                    selector,
                    mark: Some(Mark { value: 5, mask: 0xFF }),
                },
                priority: 1234,
                reqid: 0xC900_0040,
                action,
            };
            let mut w = Writer::new();
            w.raw(&emitted(&UserPolicyInfo {
                selector: selector.to_kernel(),
                priority: 1234,
                direction: XFRM_POLICY_OUT,
                action: u8::from(action == PolicyAction::Block),
                ..UserPolicyInfo::default()
            }));
            w.attr(XFRMA_TMPL, &emitted(&policy.template().unwrap()));
            w.attr(XFRMA_MARK, &convert::mark_value(Mark { value: 5, mask: 0xFF }));
            let back =
                crate::dump::parse_policy(netlink_packet_xfrm::constants::XFRM_MSG_NEWPOLICY, w.bytes());
            assert_eq!(back, Some(policy));
        }
    }

    proptest! {
        #[test]
        fn port_masks_are_exactly_the_range(a: u16, b: u16, probe: u16) {
            let (first, last) = (a.min(b), a.max(b));
            let masks = port_masks((first, last));
            prop_assert!(masks.len() <= 30);
            for p in [probe, first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                let hits = masks.iter().filter(|m| p & m.mask == m.value).count();
                prop_assert_eq!(hits, usize::from(first <= p && p <= last));
            }
        }
    }

    /// `struct xfrm_userpolicy_info` and one `struct xfrm_user_tmpl` (`include/uapi/linux/xfrm.h`), of 168 and 64 octets with 64 bits.
    #[test]
    fn a_sockets_policy_has_the_inner_family_and_its_template_the_outer_one() {
        let any: IpAddr = "::".parse().unwrap();
        let policy = Policy {
            key: PolicyKey {
                direction: PolicyDirection::Out,
                selector: PolicySelector {
                    source: (any, 0),
                    destination: (any, 0),
                    protocol: 0,
                    source_port: PortMask::ANY,
                    destination_port: PortMask::ANY,
                },
                mark: None,
            },
            priority: 1,
            reqid: 0x0102_0304,
            action: PolicyAction::Protect {
                source: "192.0.2.1".parse().unwrap(),
                destination: "192.0.2.2".parse().unwrap(),
                spi: Spi::new(0xC0DE_1234),
            },
        };
        let value = policy.as_socket_option();
        assert_eq!(value.len(), 168 + 64);
        let (info, template) = value.split_at(168);
        assert_eq!(info[40..42], (libc::AF_INET6 as u16).to_ne_bytes(), "sel.family");
        assert_eq!((info[160], info[161]), (XFRM_POLICY_OUT, XFRM_POLICY_ALLOW));
        assert_eq!(template[..4], [192, 0, 2, 2], "id.daddr");
        assert_eq!(template[16..20], [0xC0, 0xDE, 0x12, 0x34], "id.spi");
        assert_eq!(template[20], IPPROTO_ESP);
        assert_eq!(template[24..26], (libc::AF_INET as u16).to_ne_bytes(), "family");
        assert_eq!(template[28..32], [192, 0, 2, 1], "saddr");
        assert_eq!(template[44..48], 0x0102_0304u32.to_ne_bytes(), "reqid");
        assert_eq!(template[48], XFRM_MODE_TUNNEL);
    }
}
