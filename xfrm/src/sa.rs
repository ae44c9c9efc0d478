//! IPsec states (SAs): install, look at, move to new addresses, remove. RFC 4301 §4.4.2, `net/xfrm/xfrm_user.c`.
//!
//! States carry no selector of their own (XFRM_STATE_AF_UNSPEC): one state serves all selector pairs of a child, of
//! both families, and the kernel checks what comes out of it against the policies, which name the state's reqid.
//! They carry no time limits either: the kernel's follow the wall clock.

use std::net::IpAddr;

use cygnet_model::tunnel::{Direction, Mark, SaSpec, UdpEncap};
use cygnet_model::{Reqid, Spi};
use netlink_packet_core::Emitable;
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, UDP_ENCAP_ESPINUDP, XFRM_MODE_TUNNEL, XFRM_MSG_DELSA, XFRM_MSG_GETSA, XFRM_MSG_NEWSA,
    XFRM_MSG_UPDSA, XFRM_STATE_AF_UNSPEC, XFRM_STATE_ESN, XFRMA_ENCAP, XFRMA_LASTUSED, XFRMA_LTIME_VAL,
    XFRMA_MARK, XFRMA_PAD, XFRMA_REPLAY_ESN_VAL, XFRMA_REPLAY_VAL,
};
use netlink_packet_xfrm::{EncapTmpl, Id, UserSaId, UserSaInfo};
use nix::errno::Errno;
use zeroize::Zeroizing;

use crate::codec::{self, Writer};
use crate::dump::SaEntry;
use crate::error::NetlinkError;
use crate::socket::{NLM_F_CREATE, NLM_F_EXCL, Request};
use crate::{Xfrm, algo, convert};

/// Direction of the state; Linux 6.10 and later check it, earlier ones skip the attribute.
const XFRMA_SA_DIR: u16 = 33;
const SA_DIR_IN: u8 = 1;
const SA_DIR_OUT: u8 = 2;
/// The kernel's own window field ends here; larger ones need the ESN structure (with or without ESN).
const LEGACY_WINDOW: u32 = 32;
/// The kernel's largest window (XFRMA_REPLAY_ESN_MAX, 4096 bits).
const LARGEST_WINDOW: u32 = 4096;
/// Sequence numbers left out when an outbound state moves, for packets sent while it was being copied: a number used
/// twice is dropped as replay, and a gap costs nothing.
const MOVE_GAP: u64 = 4096;

/// How this kernel wants the replay structure of outbound ESN states.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Dialect {
    /// Not found out yet.
    #[default]
    Unknown,
    /// Linux 6.10 and later: no window in outbound states.
    Directed,
    /// Earlier: ESN demands a window even where it is never used.
    Undirected,
}

/// What names a state in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SaKey {
    /// Outer destination.
    pub destination: IpAddr,
    /// SPI.
    pub spi: Spi,
}

impl SaKey {
    /// The key of an SA.
    pub fn of(spec: &SaSpec) -> Self {
        Self { destination: spec.destination(), spi: spec.id.spi }
    }
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
    /// Installs an SA.
    ///
    /// # Errors
    /// `EEXIST` if the destination and SPI are taken (with the same mark); `ENOSYS` or `EPROTONOSUPPORT` if the kernel
    /// lacks the algorithm or ESP.
    pub fn add_sa(&mut self, spec: &SaSpec) -> Result<(), NetlinkError> {
        let both = [Dialect::Directed, Dialect::Undirected];
        let only = [self.dialect];
        let outbound_esn = spec.suite.esn && spec.id.direction == Direction::Out;
        let tries: &[Dialect] = if outbound_esn && self.dialect == Dialect::Unknown { &both } else { &only };
        let mut last = Err(NetlinkError::Malformed("no dialect to try"));
        for dialect in tries {
            last = self.socket_request(XFRM_MSG_NEWSA, NLM_F_CREATE | NLM_F_EXCL, state(spec, *dialect)?);
            match &last {
                Ok(()) if outbound_esn => self.dialect = *dialect,
                Err(e) if e.errno() == Some(Errno::EINVAL) => continue,
                _ => {}
            }
            break;
        }
        last
    }

    /// Removes a state; `false` if there was none.
    ///
    /// # Errors
    /// Transport errors and missing rights.
    pub fn delete_sa(&mut self, key: SaKey, mark: Option<Mark>) -> Result<bool, NetlinkError> {
        match self.socket_request(XFRM_MSG_DELSA, 0, state_id(key, mark)) {
            Ok(()) => Ok(true),
            Err(e) if e.is_absent() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Looks at a state; `None` if there is none. Keys don't come with it.
    ///
    /// # Errors
    /// Transport errors and missing rights.
    pub fn sa(&mut self, key: SaKey, mark: Option<Mark>) -> Result<Option<SaEntry>, NetlinkError> {
        let request = Request::new(XFRM_MSG_GETSA, 0, state_id(key, mark));
        absent_is_none(self.socket.query(&request, |kind, payload| SaEntry::parse(kind, payload)))
    }

    /// Whether the kernel's state has the algorithms and keys of `spec`, compared in constant time. A kernel under
    /// lockdown hides keys; then names and lengths must do.
    ///
    /// # Errors
    /// Transport errors; absence is `Ok(false)`.
    pub fn has_keys_of(&mut self, spec: &SaSpec) -> Result<bool, NetlinkError> {
        let mut want = Writer::new();
        algo::put(&mut want, &spec.suite, &spec.encr_key, &spec.integ_key)?;
        let request = Request::new(XFRM_MSG_GETSA, 0, state_id(SaKey::of(spec), spec.mark));
        let same = self.socket.query(&request, |kind, payload| {
            let (_, attributes) = convert::split(kind, payload)?;
            Some(codec::attrs(want.bytes()).all(|(kind, value)| {
                let Some(theirs) = codec::find(attributes, kind).and_then(|v| algo::name_and_key(kind, v))
                else {
                    return false;
                };
                let Some(ours) = algo::name_and_key(kind, value) else { return false };
                let hidden = theirs.1.len() == ours.1.len() && is_hidden(theirs.1);
                ours.0 == theirs.0 && (hidden || cygnet_model::SecretBytes::copy_of(ours.1).ct_eq(theirs.1))
            }))
        });
        Ok(absent_is_none(same)?.unwrap_or(false))
    }

    /// Moves a state to new addresses or ports, with its keys and sequence numbers. If only ports change it is
    /// changed in place; if the destination changes the new one is there before the old one goes; if only the source
    /// changes packets find no state for some microseconds and are dropped.
    ///
    /// # Errors
    /// `ESRCH` if there is no such state; [`NetlinkError::Unfit`] if the kernel hides the keys (lockdown): copying the
    /// zeros that it shows instead would encrypt with a known key. After an error the old state is in place if it
    /// could be restored.
    pub fn move_sa(&mut self, key: SaKey, mark: Option<Mark>, to: &Move) -> Result<(), NetlinkError> {
        let request = Request::new(XFRM_MSG_GETSA, 0, state_id(key, mark));
        let old = self.socket.query(&request, |kind, payload| {
            convert::split(kind, payload).map(|_| Zeroizing::new(payload.to_vec()))
        })?;
        let entry = SaEntry::parse(XFRM_MSG_NEWSA, &old).ok_or(NetlinkError::Malformed("state"))?;
        if codec::attrs(old.get(convert::min_len(XFRM_MSG_NEWSA)..).unwrap_or_default())
            .filter_map(|(kind, value)| algo::name_and_key(kind, value))
            .any(|(_, key)| !key.is_empty() && is_hidden(key))
        {
            return Err(NetlinkError::Unfit(
                "this kernel hides the keys of SAs (lockdown), so that they cannot move to new addresses"
                    .to_owned(),
            ));
        }
        let moved = |gap| moved_state(&old, to, gap).ok_or(NetlinkError::Malformed("state"));
        if entry.source == to.source && entry.key.destination == to.destination && entry.reqid == to.reqid.0 {
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
            let _ = self.put_back(|| moved_state(&old, &back, gap).ok_or(NetlinkError::Malformed("state")));
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

    pub(crate) fn socket_request(
        &mut self,
        kind: u16,
        flags: u16,
        payload: Writer,
    ) -> Result<(), NetlinkError> {
        self.socket.request(&Request::new(kind, flags, payload))
    }
}

fn absent_is_none<T>(result: Result<T, NetlinkError>) -> Result<Option<T>, NetlinkError> {
    match result {
        Ok(v) => Ok(Some(v)),
        Err(e) if e.is_absent() => Ok(None),
        Err(e) => Err(e),
    }
}

/// No cipher key is all zeros, except those that a kernel under lockdown shows.
fn is_hidden(key: &[u8]) -> bool {
    key.iter().all(|b| *b == 0)
}

/// The NEWSA payload of an SA.
pub(crate) fn state(spec: &SaSpec, dialect: Dialect) -> Result<Writer, NetlinkError> {
    let (source, destination) = (spec.source(), spec.destination());
    if convert::family(source) != convert::family(destination) {
        return Err(NetlinkError::Unfit(format!(
            "outer addresses {source} and {destination} are of different families"
        )));
    }
    let inbound = spec.id.direction == Direction::In;
    let replay = Replay::of(spec, dialect)?;
    let info = UserSaInfo {
        id: Id { daddr: convert::address(destination), spi: spec.id.spi.value(), proto: IPPROTO_ESP },
        saddr: convert::address(source),
        lifetime_cfg: convert::lifetimes(&spec.limits),
        reqid: spec.reqid.0,
        family: convert::family(destination),
        mode: XFRM_MODE_TUNNEL,
        replay_window: if let Replay::Legacy(window) = replay { window } else { 0 },
        flags: XFRM_STATE_AF_UNSPEC | if spec.suite.esn { XFRM_STATE_ESN } else { 0 },
        ..UserSaInfo::default()
    };
    let mut w = Writer::new();
    w.raw(&emitted(&info));
    algo::put(&mut w, &spec.suite, &spec.encr_key, &spec.integ_key)?;
    if let Replay::Structure(window) = replay {
        w.attr(XFRMA_REPLAY_ESN_VAL, &replay_structure(window));
    }
    if let Some(encap) = spec.encap {
        w.attr(XFRMA_ENCAP, &emitted(&encap_template(encap, spec.id.direction)));
    }
    if let Some(mark) = spec.mark {
        w.attr(XFRMA_MARK, &convert::mark_value(mark));
    }
    if dialect != Dialect::Undirected {
        w.attr(XFRMA_SA_DIR, &[if inbound { SA_DIR_IN } else { SA_DIR_OUT }]);
    }
    Ok(w)
}

/// Where the replay window goes.
enum Replay {
    /// The octet in the fixed part.
    Legacy(u8),
    /// XFRMA_REPLAY_ESN_VAL with a window of so many packets. Without the ESN flag it is a large 32 bit window.
    Structure(u32),
}

impl Replay {
    fn of(spec: &SaSpec, dialect: Dialect) -> Result<Self, NetlinkError> {
        if spec.id.direction == Direction::Out {
            return Ok(match (spec.suite.esn, dialect) {
                (false, _) => Self::Legacy(0),
                (true, Dialect::Directed | Dialect::Unknown) => Self::Structure(0),
                (true, Dialect::Undirected) => Self::Structure(LEGACY_WINDOW),
            });
        }
        if spec.replay_window > LARGEST_WINDOW {
            return Err(NetlinkError::Unfit(format!(
                "replay window of {} packets: the kernel's limit is {LARGEST_WINDOW}",
                spec.replay_window
            )));
        }
        Ok(match (spec.suite.esn, u8::try_from(spec.replay_window)) {
            // With ESN the window is what tells the high half (RFC 4303 appendix A): the kernel cannot do without,
            // so "off" becomes the widest.
            (true, _) if spec.replay_window == 0 => Self::Structure(LARGEST_WINDOW),
            (false, Ok(window)) if u32::from(window) <= LEGACY_WINDOW => Self::Legacy(window),
            _ => Self::Structure(spec.replay_window),
        })
    }
}

/// `struct xfrm_replay_state_esn`: bmp_len, oseq, seq, oseq_hi, seq_hi, replay_window, bitmap.
fn replay_structure(window: u32) -> Vec<u8> {
    let words = window.div_ceil(32);
    let mut out = Vec::with_capacity(24 + words as usize * 4);
    for field in [words, 0, 0, 0, 0, window] {
        out.extend_from_slice(&field.to_ne_bytes());
    }
    out.resize(out.len() + words as usize * 4, 0);
    out
}

/// Ports as they stand in packets of this direction; the kernel compares inbound source ports to notice a moved NAT
/// mapping.
fn encap_template(encap: UdpEncap, direction: Direction) -> EncapTmpl {
    let (source, destination) = match direction {
        Direction::Out => (encap.local_port, encap.remote_port),
        Direction::In => (encap.remote_port, encap.local_port),
    };
    EncapTmpl {
        encap_type: UDP_ENCAP_ESPINUDP,
        encap_sport: source,
        encap_dport: destination,
        ..EncapTmpl::default()
    }
}

/// The payload of GETSA and DELSA.
fn state_id(key: SaKey, mark: Option<Mark>) -> Writer {
    let id = UserSaId {
        daddr: convert::address(key.destination),
        spi: key.spi.value(),
        family: convert::family(key.destination),
        proto: IPPROTO_ESP,
    };
    let mut w = Writer::new();
    w.raw(&emitted(&id));
    if let Some(mark) = mark {
        w.attr(XFRMA_MARK, &convert::mark_value(mark));
    }
    w
}

/// The NEWSA payload of a state that was read from the kernel, with other addresses, ports or reqid, and with
/// outbound sequence numbers that skip `gap`.
/// `curlft` in `struct xfrm_usersa_info`: octets, packets, when it was added and first used.
const LIFETIME: std::ops::Range<usize> = 160..192;

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

pub(crate) fn emitted(value: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; value.buffer_len()];
    value.emit(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use cygnet_model::suite::{Encr, EspSuite};
    use cygnet_model::tunnel::{SaId, VolumeLimits};
    use cygnet_model::{ChildId, SecretBytes, TunnelId};

    use super::*;

    fn spec(direction: Direction, esn: bool, window: u32) -> SaSpec {
        let child = ChildId { tunnel: TunnelId(1), index: 0 };
        SaSpec {
            id: SaId { child, direction, spi: Spi::new(0xC3F1_A2B4).unwrap() },
            reqid: Reqid::of(child).unwrap(),
            local: "192.0.2.1".parse().unwrap(),
            remote: "192.0.2.2".parse().unwrap(),
            encap: Some(UdpEncap { local_port: 4500, remote_port: 61234 }),
            suite: EspSuite { encr: Encr::AesGcm16_128, integ: None, group: None, esn },
            encr_key: SecretBytes::new(vec![7; 20]),
            integ_key: SecretBytes::new(vec![]),
            replay_window: window,
            inner_local: vec![],
            inner_remote: vec![],
            limits: VolumeLimits { soft_bytes: 1000, ..VolumeLimits::default() },
            mark: Some(Mark { value: 0xFF42, mask: 0xFF }),
        }
    }

    fn attributes(w: &Writer) -> &[u8] {
        convert::split(XFRM_MSG_NEWSA, w.bytes()).unwrap().1
    }

    #[test]
    fn the_window_goes_where_the_kernel_takes_it() {
        // (direction, ESN, window) -> (octet in the fixed part, window in the structure)
        let cases = [
            (Direction::In, false, 0, 0, None),
            (Direction::In, false, 32, 32, None),
            (Direction::In, false, 64, 0, Some(64)),
            (Direction::In, false, 4096, 0, Some(4096)),
            (Direction::In, true, 64, 0, Some(64)),
            (Direction::In, true, 0, 0, Some(4096)),
            (Direction::Out, false, 4096, 0, None),
            (Direction::Out, true, 4096, 0, Some(0)),
        ];
        for (direction, esn, window, octet, structure) in cases {
            let w = state(&spec(direction, esn, window), Dialect::Unknown).unwrap();
            let info = UserSaInfo::parse(w.bytes()).unwrap();
            assert_eq!(info.replay_window, octet, "{direction:?} {esn} {window}");
            let got = codec::find(attributes(&w), XFRMA_REPLAY_ESN_VAL);
            assert_eq!(got.and_then(|v| codec::u32_at(v, 20)), structure, "{direction:?} {esn} {window}");
            if let Some(value) = got {
                assert_eq!(value.len(), 24 + structure.unwrap() as usize / 8);
            }
        }
        assert!(state(&spec(Direction::In, false, 8192), Dialect::Unknown).is_err());
    }

    #[test]
    fn ports_and_addresses_follow_the_direction() {
        let w = state(&spec(Direction::In, false, 64), Dialect::Unknown).unwrap();
        let encap = EncapTmpl::parse(codec::find(attributes(&w), XFRMA_ENCAP).unwrap()).unwrap();
        assert_eq!((encap.encap_type, encap.encap_sport, encap.encap_dport), (2, 61234, 4500));
        let info = UserSaInfo::parse(w.bytes()).unwrap();
        assert_eq!(info.id.daddr.to_ipv4().to_string(), "192.0.2.1");
        assert_eq!(info.lifetime_cfg.soft_byte_limit, 1000);
        assert_eq!(info.lifetime_cfg.hard_byte_limit, u64::MAX);
        assert_eq!(codec::find(attributes(&w), XFRMA_MARK), Some(&[0x42, 0, 0, 0, 0xFF, 0, 0, 0][..]));
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

    #[test]
    fn nothing_prints_a_key() {
        let w = state(&spec(Direction::In, false, 64), Dialect::Unknown).unwrap();
        let request = Request::new(XFRM_MSG_NEWSA, 0, w);
        let shown = format!("{request:?}");
        assert!(!shown.contains("7, 7, 7") && !shown.contains("0707"), "{shown}");
    }
}
