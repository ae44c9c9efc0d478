//! IPsec states (SAs): install, look at, move to new addresses, remove. RFC 4301 §4.4.2, `net/xfrm/xfrm_user.c`.
//!
//! States carry no selector of their own (XFRM_STATE_AF_UNSPEC): one state serves all selector pairs of a child, of
//! both families, and the kernel checks what comes out of it against the policies, which name the state's reqid.
//! They carry no time limits either: the kernel's follow the wall clock.

use std::net::IpAddr;

use cygnet_model::Spi;
use cygnet_model::tunnel::{Direction, Mark, SaSpec, UdpEncap};
use netlink_packet_core::Emitable;
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, UDP_ENCAP_ESPINUDP, XFRM_MODE_TUNNEL, XFRM_MSG_DELSA, XFRM_MSG_GETSA, XFRM_MSG_NEWSA,
    XFRM_STATE_AF_UNSPEC, XFRM_STATE_ESN, XFRMA_ENCAP, XFRMA_MARK, XFRMA_REPLAY_ESN_VAL,
};
use netlink_packet_xfrm::{EncapTmpl, Id, UserSaId, UserSaInfo};
use nix::errno::Errno;

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
    /// SPI; first, so that in their order those of one SPI stand together.
    pub spi: Spi,
    /// Outer destination.
    pub destination: IpAddr,
}

impl SaKey {
    /// The key of an SA.
    pub fn of(spec: &SaSpec) -> Self {
        Self { destination: spec.destination(), spi: spec.id.spi }
    }
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
pub(crate) fn is_hidden(key: &[u8]) -> bool {
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
pub(crate) fn state_id(key: SaKey, mark: Option<Mark>) -> Writer {
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

pub(crate) fn emitted(value: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; value.buffer_len()];
    value.emit(&mut bytes);
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use cygnet_model::suite::{Encr, EspSuite};
    use cygnet_model::tunnel::{SaId, VolumeLimits};
    use cygnet_model::{ChildId, Reqid, SecretBytes, TunnelId};

    use super::*;

    pub(crate) fn spec(direction: Direction, esn: bool, window: u32) -> SaSpec {
        let child = ChildId { tunnel: TunnelId(1), index: 0 };
        SaSpec {
            id: SaId { child, direction, spi: Spi::new(0xC3F1_A2B4).unwrap() },
            reqid: Reqid::of(child).unwrap(),
            local: "192.0.2.1".parse().unwrap(),
            remote: "192.0.2.2".parse().unwrap(),
            encap: Some(UdpEncap { local_port: 4500, remote_port: 61234 }),
            suite: EspSuite::plain(Encr::AesGcm16_128, None, esn),
            encr_key: SecretBytes::new(vec![7; 20]),
            integ_key: SecretBytes::new(vec![]),
            replay_window: window,
            inner_local: vec![],
            inner_remote: vec![],
            limits: VolumeLimits { soft_bytes: 1000, ..VolumeLimits::default() },
            mark: Some(Mark { value: 0xFF42, mask: 0xFF }),
        }
    }

    pub(crate) fn attributes(w: &Writer) -> &[u8] {
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
    fn nothing_prints_a_key() {
        let w = state(&spec(Direction::In, false, 64), Dialect::Unknown).unwrap();
        let request = Request::new(XFRM_MSG_NEWSA, 0, w);
        let shown = format!("{request:?}");
        assert!(!shown.contains("7, 7, 7") && !shown.contains("0707"), "{shown}");
    }
}
