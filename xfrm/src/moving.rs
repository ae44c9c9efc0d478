//! Moving an SA to new addresses, ports or another reqid, with its keys, sequence numbers and counters.
//!
//! Linux 7.2 does it in one step (XFRM_MSG_MIGRATE_STATE, `Documentation/networking/xfrm/xfrm_migrate_state.rst`), in which
//! no packet finds the SA missing and no key comes to user space. Earlier kernels are shown a copy: the new state is made
//! of what they tell of the old one.

use std::net::IpAddr;

use cygnet_model::Reqid;
use cygnet_model::tunnel::Mark;
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, UDP_ENCAP_ESPINUDP, XFRM_MSG_GETSA, XFRM_MSG_NEWSA, XFRM_MSG_UPDSA, XFRMA_ENCAP,
    XFRMA_LASTUSED, XFRMA_LTIME_VAL, XFRMA_PAD, XFRMA_REPLAY_ESN_VAL, XFRMA_REPLAY_VAL,
};
use netlink_packet_xfrm::{EncapTmpl, UserSaId, UserSaInfo};
use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::codec::{self, Writer};
use crate::dump::SaEntry;
use crate::error::NetlinkError;
use crate::sa::{SaKey, emitted, is_hidden, state_id};
use crate::socket::{NLM_F_CREATE, NLM_F_EXCL, Request};
use crate::{Xfrm, algo, convert};

/// Linux 7.2 and later, `include/uapi/linux/xfrm.h`.
const XFRM_MSG_MIGRATE_STATE: u16 = 0x29;
/// Sequence numbers left out when an outbound state moves, for packets sent while it was being copied: a number used
/// twice is dropped as replay, and a gap costs nothing.
const MOVE_GAP: u64 = 4096;

/// `curlft` in `struct xfrm_usersa_info`: octets, packets, when it was added and first used.
const LIFETIME: std::ops::Range<usize> = 160..192;

/// Whether this kernel moves a state in one step.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum OneStep {
    /// Not found out yet.
    #[default]
    Unknown,
    Yes,
    No,
}

/// Where a state shall move to; the rest stays, sequence numbers included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// New outer source.
    pub source: IpAddr,
    /// New outer destination.
    pub destination: IpAddr,
    /// New ports, from the outer source to the outer destination; only for states that are encapsulated already.
    pub ports: Option<(u16, u16)>,
    /// New reqid.
    pub reqid: Reqid,
}

impl Xfrm {
    /// Moves a state to new addresses, ports or another reqid, with its keys, sequence numbers and counters. Where the
    /// kernel cannot do it in one step: if only ports change the state is changed in place; if the destination changes
    /// the new one is there before the old one goes, and outbound numbers skip some that may be in use; if only the source
    /// or the reqid changes packets find no state for some microseconds and are dropped.
    ///
    /// # Errors
    /// `ESRCH` if there is no such state, `EEXIST` if another has the place; [`NetlinkError::Unfit`] if a kernel without
    /// the one step hides the keys (lockdown): copying the zeros that it shows instead would encrypt with a known key.
    /// After an error the old state is in place if it could be restored.
    pub fn move_sa(&mut self, key: SaKey, mark: Option<Mark>, to: &Move) -> Result<(), NetlinkError> {
        let request = Request::new(XFRM_MSG_GETSA, 0, state_id(key, mark));
        let old = self.socket.query(&request, |kind, payload| {
            convert::split(kind, payload).map(|_| Zeroizing::new(payload.to_vec()))
        })?;
        let entry = SaEntry::parse(XFRM_MSG_NEWSA, &old).ok_or(NetlinkError::Malformed("state"))?;
        let only_ports =
            entry.source == to.source && entry.key.destination == to.destination && entry.reqid == to.reqid.0;
        if !only_ports && self.moves_in_one_step()? {
            let step = migration(&old, key, mark, to).ok_or(NetlinkError::Malformed("state"))?;
            return self.socket_request(XFRM_MSG_MIGRATE_STATE, 0, step);
        }
        self.copy_sa(key, mark, to, &old, &entry, only_ports)
    }

    /// Whether this kernel moves states in one step. It is asked to move one that is not there: a kernel that knows how
    /// finds that out.
    ///
    /// # Errors
    /// Transport errors.
    pub fn moves_in_one_step(&mut self) -> Result<bool, NetlinkError> {
        if self.one_step == OneStep::Unknown {
            // A reserved SPI, which no state has (RFC 4303 §2.1).
            let (here, nothing) = (IpAddr::from([127, 0, 0, 1]), UserSaInfo::default());
            let to = Move { source: here, destination: here, ports: None, reqid: Reqid(0) };
            let asked = self.socket_request(XFRM_MSG_MIGRATE_STATE, 0, step(here, 1, None, &nothing, &to));
            self.one_step = match asked {
                Err(e) if e.errno() == Some(Errno::ESRCH) => OneStep::Yes,
                Err(e) if e.errno().is_none() => return Err(e),
                // EINVAL: no such message; ENOPROTOOPT: built without it.
                _ => OneStep::No,
            };
        }
        Ok(self.one_step == OneStep::Yes)
    }

    /// Makes a state anew from what the kernel tells of the old one.
    fn copy_sa(
        &mut self,
        key: SaKey,
        mark: Option<Mark>,
        to: &Move,
        old: &[u8],
        entry: &SaEntry,
        only_ports: bool,
    ) -> Result<(), NetlinkError> {
        if codec::attrs(old.get(convert::min_len(XFRM_MSG_NEWSA)..).unwrap_or_default())
            .filter_map(|(kind, value)| algo::name_and_key(kind, value))
            .any(|(_, key)| !key.is_empty() && is_hidden(key))
        {
            return Err(NetlinkError::Unfit(
                "this kernel hides the keys of SAs (lockdown), so that they cannot move to new addresses"
                    .to_owned(),
            ));
        }
        let moved = |gap| moved_state(old, to, gap).ok_or(NetlinkError::Malformed("state"));
        if only_ports {
            return self.socket_request(XFRM_MSG_UPDSA, 0, moved(0)?);
        }
        let (create, gap) = (NLM_F_CREATE | NLM_F_EXCL, if entry.is_inbound() { 0 } else { MOVE_GAP });
        if key.destination != to.destination {
            self.socket_request(XFRM_MSG_NEWSA, create, moved(gap)?)?;
            self.delete_sa(key, mark)?;
            return Ok(());
        }
        self.delete_sa(key, mark)?;
        if let Err(e) = self.put_back(|| moved(gap)) {
            let back = Move { source: entry.source, ports: None, reqid: Reqid(entry.reqid), ..*to };
            let _ = self.put_back(|| moved_state(old, &back, gap).ok_or(NetlinkError::Malformed("state")));
            return Err(e);
        }
        Ok(())
    }

    /// Installs a state in the place of one that was removed just now. A packet that came in between, under a policy
    /// that names the SPI, has made a larval state there: that one is updated.
    fn put_back(&mut self, state: impl Fn() -> Result<Writer, NetlinkError>) -> Result<(), NetlinkError> {
        match self.socket_request(XFRM_MSG_NEWSA, NLM_F_CREATE | NLM_F_EXCL, state()?) {
            Err(e) if e.errno() == Some(Errno::EEXIST) => self.socket_request(XFRM_MSG_UPDSA, 0, state()?),
            other => other,
        }
    }
}

/// The payload that moves a state which was read from the kernel in one step.
pub(crate) fn migration(old: &[u8], key: SaKey, mark: Option<Mark>, to: &Move) -> Option<Writer> {
    let (fixed, attributes) = convert::split(XFRM_MSG_NEWSA, old)?;
    let info = UserSaInfo::parse(fixed).ok()?;
    let mut w = step(key.destination, key.spi.value(), mark, &info, to);
    // What is not named stays as it was: encapsulation is named for the sake of its ports.
    if let (Some((source, destination)), Some(value)) = (to.ports, codec::find(attributes, XFRMA_ENCAP)) {
        let mut encap = EncapTmpl::parse(value).ok()?;
        encap.encap_type = UDP_ENCAP_ESPINUDP;
        (encap.encap_sport, encap.encap_dport) = (source, destination);
        w.attr(XFRMA_ENCAP, &emitted(&encap));
    }
    Some(w)
}

/// `struct xfrm_user_migrate_state`, 132 octets: the state's name, its new destination and source, its mark, and the rest as
/// it shall be, which for the selector is as `info` has it.
fn step(destination: IpAddr, spi: u32, mark: Option<Mark>, info: &UserSaInfo, to: &Move) -> Writer {
    let id = UserSaId {
        daddr: convert::address(destination),
        spi,
        family: convert::family(destination),
        proto: IPPROTO_ESP,
    };
    let mut fixed = emitted(&id);
    fixed.extend(emitted(&convert::address(to.destination)));
    fixed.extend(emitted(&convert::address(to.source)));
    fixed.extend(mark.map_or([0; 8], convert::mark_value));
    fixed.extend(emitted(&info.selector));
    fixed.extend(to.reqid.0.to_ne_bytes());
    // No flags: the selector is the one given, and an offload stays.
    fixed.extend(0u32.to_ne_bytes());
    fixed.extend(convert::family(to.destination).to_ne_bytes());
    fixed.extend([0; 2]);
    let mut w = Writer::new();
    w.raw(&fixed);
    w
}

/// The NEWSA payload of a state that was read from the kernel, with other addresses, ports or reqid, and with
/// outbound sequence numbers that skip `gap`.
pub(crate) fn moved_state(old: &[u8], to: &Move, gap: u64) -> Option<Writer> {
    // What is written is longer than what was read by the volume alone; a state with more attributes than that is none
    // of ours.
    if old.len() + codec::aligned(4 + LIFETIME.len()) > Writer::CAPACITY {
        return None;
    }
    let (fixed, attributes) = convert::split(XFRM_MSG_NEWSA, old)?;
    let mut info = UserSaInfo::parse(fixed).ok()?;
    info.saddr = convert::address(to.source);
    info.id.daddr = convert::address(to.destination);
    info.family = convert::family(to.destination);
    info.reqid = to.reqid.0;
    let mut w = Writer::new();
    w.raw(&emitted(&info));
    // What it has carried counts on, or its limits would begin anew.
    w.attr(XFRMA_LTIME_VAL, fixed.get(LIFETIME)?);
    for (kind, value) in codec::attrs(attributes) {
        match kind {
            XFRMA_LASTUSED | XFRMA_PAD | XFRMA_LTIME_VAL => {}
            XFRMA_ENCAP => {
                let mut encap = EncapTmpl::parse(value).ok()?;
                if let Some((source, destination)) = to.ports {
                    encap.encap_sport = source;
                    encap.encap_dport = destination;
                }
                w.attr(kind, &emitted(&encap));
            }
            XFRMA_REPLAY_VAL => {
                // oseq is the first of three words.
                let oseq = skip(u64::from(codec::u32_at(value, 0)?), gap).min(u64::from(u32::MAX));
                w.attr_parts(kind, &[&u32::try_from(oseq).ok()?.to_ne_bytes(), value.get(4..)?]);
            }
            XFRMA_REPLAY_ESN_VAL => {
                let low = codec::u32_at(value, 4)?;
                let high = codec::u32_at(value, 12)?;
                let oseq = skip(u64::from(high) << 32 | u64::from(low), gap);
                let (low, high) = (oseq & u64::from(u32::MAX), oseq >> 32);
                w.attr_parts(
                    kind,
                    &[
                        value.get(..4)?,
                        &u32::try_from(low).ok()?.to_ne_bytes(),
                        value.get(8..12)?,
                        &u32::try_from(high).ok()?.to_ne_bytes(),
                        value.get(16..)?,
                    ],
                );
            }
            _ => w.attr(kind, value),
        }
    }
    Some(w)
}

/// A state that has sent nothing (inbound ones never do) needs no gap.
fn skip(oseq: u64, gap: u64) -> u64 {
    if oseq == 0 { 0 } else { oseq.saturating_add(gap) }
}

#[cfg(test)]
mod tests {
    use cygnet_model::tunnel::Direction;

    use super::*;
    use crate::sa::tests::{attributes, spec};
    use crate::sa::{Dialect, state};

    #[test]
    fn one_step_names_the_state_and_says_all_that_would_not_be_kept() {
        let spec = spec(Direction::In, false, 64);
        let old = state(&spec, Dialect::Unknown).unwrap();
        let to = Move {
            source: "2001:db8::2".parse().unwrap(),
            destination: "2001:db8::1".parse().unwrap(),
            ports: Some((7, 4500)),
            reqid: Reqid(9),
        };
        let w = migration(old.bytes(), SaKey::of(&spec), spec.mark, &to).unwrap();
        let (fixed, attributes) = w.bytes().split_at(132);
        assert_eq!(fixed[..4], [192, 0, 2, 1]);
        assert_eq!(fixed[16..24], [0xC3, 0xF1, 0xA2, 0xB4, 2, 0, 50, 0]);
        assert_eq!((fixed[39], fixed[55]), (1, 2), "destination before source");
        assert_eq!(fixed[56..64], [0x42, 0, 0, 0, 0xFF, 0, 0, 0]);
        assert_eq!(fixed[64..120], old.bytes()[..56], "the selector stays");
        assert_eq!(fixed[120..132], [9, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0]);
        let encap = EncapTmpl::parse(codec::find(attributes, XFRMA_ENCAP).unwrap()).unwrap();
        assert_eq!((encap.encap_type, encap.encap_sport, encap.encap_dport), (2, 7, 4500));
    }

    #[test]
    fn a_moved_outbound_state_skips_numbers_that_may_be_in_use() {
        let w = state(&spec(Direction::Out, true, 64), Dialect::Undirected).unwrap();
        let mut bytes = w.bytes().to_vec();
        // oseq of the structure: behind the attribute's header and bmp_len.
        let value = codec::find(attributes(&w), XFRMA_REPLAY_ESN_VAL).unwrap();
        let at = value.as_ptr() as usize - w.bytes().as_ptr() as usize + 4;
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        let to = Move {
            source: "192.0.2.9".parse().unwrap(),
            destination: "192.0.2.2".parse().unwrap(),
            ports: Some((1, 2)),
            reqid: Reqid(7),
        };
        let moved = moved_state(&bytes, &to, MOVE_GAP).unwrap();
        let esn = codec::find(attributes(&moved), XFRMA_REPLAY_ESN_VAL).unwrap();
        assert_eq!((codec::u32_at(esn, 4), codec::u32_at(esn, 12)), (Some(4095), Some(1)));
        let encap = EncapTmpl::parse(codec::find(attributes(&moved), XFRMA_ENCAP).unwrap()).unwrap();
        assert_eq!((encap.encap_sport, encap.encap_dport), (1, 2));
    }
}
