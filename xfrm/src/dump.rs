//! Reading the kernel's states and policies back.
//!
//! Dumps carry keys to whoever may read them; here they are neither copied nor returned.

use std::net::IpAddr;

use cygnet_model::Spi;
use cygnet_model::plane::SaCounters;
use cygnet_model::tunnel::Mark;
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, XFRM_MSG_GETPOLICY, XFRM_MSG_GETSA, XFRM_MSG_NEWPOLICY, XFRM_MSG_NEWSA, XFRMA_ENCAP,
    XFRMA_MARK, XFRMA_PROTO, XFRMA_REPLAY_ESN_VAL, XFRMA_REPLAY_VAL, XFRMA_TMPL,
};
use netlink_packet_xfrm::{EncapTmpl, UserPolicyInfo, UserSaInfo, UserTemplate};

use crate::codec::{self, Writer};
use crate::error::NetlinkError;
use crate::policy::{Policy, PolicyAction, PolicyDirection, PolicyKey, PolicySelector};
use crate::sa::SaKey;
use crate::socket::Request;
use crate::{Xfrm, convert};

/// A state as the kernel holds it, without its keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SaEntry {
    /// Destination and SPI.
    pub key: SaKey,
    /// Outer source.
    pub source: IpAddr,
    /// Reqid, ours or another's.
    pub reqid: u32,
    /// Mark.
    pub mark: Option<Mark>,
    /// Ports of UDP encapsulation, from source to destination.
    pub ports: Option<(u16, u16)>,
    /// What the kernel counted. Octets are those of inner packets in both directions: outbound, the outer header is
    /// reserved but not yet part of the packet when it is counted (measured on 6.1, 6.12 and 7.3).
    pub counters: SaCounters,
    /// When it was added, by the wall clock.
    pub added_unix: u64,
    /// Replay window in packets; 0 in most outbound states.
    pub replay_window: u32,
    oseq: u64,
    iseq: u64,
    direction: Option<u8>,
}

const XFRMA_SA_DIR: u16 = 33;

impl SaEntry {
    /// Reads a NEWSA payload; `None` if it is not a whole ESP state.
    pub(crate) fn parse(kind: u16, payload: &[u8]) -> Option<Self> {
        if kind != XFRM_MSG_NEWSA {
            return None;
        }
        let (fixed, attributes) = convert::split(kind, payload)?;
        let info = UserSaInfo::parse(fixed).ok()?;
        Self::of(&info, attributes)
    }

    /// `None` for other protocols and for larval states, which have no SPI yet.
    pub(crate) fn of(info: &UserSaInfo, attributes: &[u8]) -> Option<Self> {
        if info.id.proto != IPPROTO_ESP {
            return None;
        }
        let (mut oseq, mut iseq, mut window) = (0, 0, u32::from(info.replay_window));
        let wide = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        if let Some(v) = codec::find(attributes, XFRMA_REPLAY_ESN_VAL) {
            oseq = wide(codec::u32_at(v, 12)?, codec::u32_at(v, 4)?);
            iseq = wide(codec::u32_at(v, 16)?, codec::u32_at(v, 8)?);
            window = codec::u32_at(v, 20)?;
        } else if let Some(v) = codec::find(attributes, XFRMA_REPLAY_VAL) {
            oseq = codec::u32_at(v, 0)?.into();
            iseq = codec::u32_at(v, 4)?.into();
        }
        let ports = match codec::find(attributes, XFRMA_ENCAP) {
            Some(v) => EncapTmpl::parse(v).ok().map(|e| (e.encap_sport, e.encap_dport)),
            None => None,
        };
        Some(Self {
            key: SaKey {
                destination: convert::ip(&info.id.daddr, info.family)?,
                spi: Spi::new(info.id.spi)?,
            },
            source: convert::ip(&info.saddr, info.family)?,
            reqid: info.reqid,
            mark: convert::mark(codec::find(attributes, XFRMA_MARK)),
            ports,
            counters: SaCounters {
                bytes: info.lifetime_cur.bytes,
                packets: info.lifetime_cur.packets,
                replay: u64::from(info.stats.replay_window) + u64::from(info.stats.replay),
                integrity: info.stats.integrity_failed.into(),
                sequence: oseq.max(iseq),
            },
            added_unix: info.lifetime_cur.add_time,
            replay_window: window,
            oseq,
            iseq,
            direction: codec::find(attributes, XFRMA_SA_DIR).and_then(|v| codec::u8_at(v, 0)),
        })
    }

    /// Whether packets come in by this state, as far as the kernel tells: Linux 6.10 and later know; before, a state
    /// that has sent or that has no replay window is taken for an outbound one.
    pub fn is_inbound(&self) -> bool {
        match self.direction {
            Some(d) => d == 1,
            None => self.oseq == 0 && (self.iseq > 0 || self.replay_window > 0),
        }
    }
}

impl Xfrm {
    /// All ESP states of the network namespace, larval ones left out.
    ///
    /// # Errors
    /// Transport errors and missing rights.
    pub fn dump_sas(&mut self) -> Result<Vec<SaEntry>, NetlinkError> {
        let mut w = Writer::new();
        w.attr(XFRMA_PROTO, &[IPPROTO_ESP]);
        self.socket
            .dump(&Request::new(XFRM_MSG_GETSA, 0, w), |kind, payload| Ok(SaEntry::parse(kind, payload)))
    }

    /// All policies of the network namespace that can be expressed as [`Policy`]: others (of sockets, bound to
    /// interfaces) are none of ours. One with several templates is shown with its first.
    ///
    /// # Errors
    /// Transport errors and missing rights.
    pub fn dump_policies(&mut self) -> Result<Vec<Policy>, NetlinkError> {
        self.socket.dump(&Request::new(XFRM_MSG_GETPOLICY, 0, Writer::new()), |kind, payload| {
            Ok(parse_policy(kind, payload))
        })
    }
}

pub(crate) fn parse_policy(kind: u16, payload: &[u8]) -> Option<Policy> {
    use netlink_packet_xfrm::constants as c;
    if kind != XFRM_MSG_NEWPOLICY {
        return None;
    }
    let (fixed, attributes) = convert::split(kind, payload)?;
    let info = UserPolicyInfo::parse(fixed).ok()?;
    if info.selector.ifindex != 0
        || info.selector.user != 0
        || codec::find(attributes, c::XFRMA_IF_ID).is_some_and(|v| v != [0; 4])
        || codec::find(attributes, c::XFRMA_POLICY_TYPE).is_some_and(|v| codec::u8_at(v, 0) != Some(0))
    {
        return None;
    }
    let direction = match info.direction {
        c::XFRM_POLICY_IN => PolicyDirection::In,
        c::XFRM_POLICY_OUT => PolicyDirection::Out,
        c::XFRM_POLICY_FWD => PolicyDirection::Forward,
        _ => return None,
    };
    let templates = codec::find(attributes, XFRMA_TMPL).unwrap_or_default();
    let template = match templates.len() {
        0 => None,
        _ => Some(UserTemplate::parse(templates.get(..netlink_packet_xfrm::XFRM_USER_TEMPLATE_LEN)?).ok()?),
    };
    let action = match (info.action, &template) {
        (c::XFRM_POLICY_BLOCK, _) => PolicyAction::Block,
        (_, None) => PolicyAction::Allow,
        (_, Some(t)) => PolicyAction::Protect {
            source: convert::ip(&t.saddr, t.family)?,
            destination: convert::ip(&t.id.daddr, t.family)?,
            spi: Spi::new(t.id.spi),
        },
    };
    Some(Policy {
        key: PolicyKey {
            direction,
            selector: PolicySelector::of(&info.selector)?,
            mark: convert::mark(codec::find(attributes, XFRMA_MARK)),
        },
        priority: info.priority,
        reqid: template.map_or(0, |t| t.reqid),
        action,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_octets_of_the_kernel_make_the_readers_panic(
            kind in 0x10u16..0x29,
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let _ = SaEntry::parse(kind, &bytes);
            let _ = parse_policy(kind, &bytes);
            let _ = crate::monitor::Event::parse(kind, &bytes);
        }
    }
}
