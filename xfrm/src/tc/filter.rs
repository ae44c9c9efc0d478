//! u32 filters on our root qdisc: which packets belong to which class. u32 is in every kernel with traffic control;
//! cls_fw and flower are not.

use std::net::IpAddr;

use super::{Handle, TCA_KIND, TCA_OPTIONS, Tc, TcMessage};
use crate::codec::{self, Writer};
use crate::error::NetlinkError;
use crate::socket::{NLM_F_CREATE, NLM_F_EXCL, Request};

const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TC_U32_TERMINAL: u8 = 1;
/// Length of the head of `struct tc_u32_sel`, and of each key behind it.
const SEL: usize = 16;
const KEY: usize = 16;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86DD;
/// Our filters' preferences: IKE is looked for first. Families need different ones: a preference has one protocol.
const PREFERENCE_IKE_V4: u16 = 0xC960;
const PREFERENCE_IKE_V6: u16 = 0xC962;
const PREFERENCE_V4: u16 = 0xC964;
const PREFERENCE_V6: u16 = 0xC966;
const UDP: u32 = 17;

/// Which packets of an address a filter is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Traffic {
    /// All of them.
    All,
    /// IKE on port 500.
    Ike,
    /// IKE on port 4500: UDP with the non-ESP marker (RFC 3948 §2.2).
    IkeBesideEsp,
}

impl Traffic {
    const ALL: [Self; 3] = [Self::All, Self::Ike, Self::IkeBesideEsp];
}

/// Packets from this outer source address belong to this class. The root qdisc's own handle stands for the direct way,
/// which is not shaped and goes before all classes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FilterSpec {
    /// Source address of packets on the wire.
    pub source: IpAddr,
    /// Which of them.
    pub traffic: Traffic,
    /// Where they go.
    pub class: Handle,
}

/// A filter that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filter {
    /// What it does.
    pub spec: FilterSpec,
    handle: Handle,
}

impl Filter {
    /// A filter that no kernel has.
    #[doc(hidden)]
    pub const fn for_tests(spec: FilterSpec) -> Self {
        Self { spec, handle: Handle(0) }
    }
}

impl Tc {
    /// Adds a filter. Adding the same one twice makes two: look first with [`Self::filters`].
    ///
    /// # Errors
    /// As the kernel says; `ENOENT` if it has no u32.
    pub fn add_filter(&mut self, interface: u32, spec: &FilterSpec) -> Result<(), NetlinkError> {
        let w = put(interface, Handle(0), spec);
        self.socket.request(&Request::new(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, w))
    }

    /// Removes a filter. `Ok` if it is not there.
    ///
    /// # Errors
    /// Transport errors and missing rights.
    pub fn delete_filter(&mut self, interface: u32, filter: &Filter) -> Result<(), NetlinkError> {
        let mut w = message(interface, filter.handle, &filter.spec).writer();
        w.attr_text(TCA_KIND, "u32");
        match self.socket.request(&Request::new(RTM_DELTFILTER, 0, w)) {
            Err(e) if e.is_absent() => Ok(()),
            other => other,
        }
    }

    /// Our filters on our root qdisc.
    ///
    /// # Errors
    /// Transport errors; `EINVAL` if the qdisc is not there.
    pub fn filters(&mut self, interface: u32) -> Result<Vec<Filter>, NetlinkError> {
        let message = TcMessage { interface, handle: Handle(0), parent: Handle::OURS, info: 0 };
        self.socket.dump(&Request::new(RTM_GETTFILTER, 0, message.writer()), |kind, payload| {
            Ok((kind == RTM_NEWTFILTER).then(|| parse(payload, interface)).flatten())
        })
    }
}

const fn preference(spec: &FilterSpec) -> (u16, u16) {
    match (spec.source, spec.traffic) {
        (IpAddr::V4(_), Traffic::All) => (PREFERENCE_V4, ETH_P_IP),
        (IpAddr::V6(_), Traffic::All) => (PREFERENCE_V6, ETH_P_IPV6),
        (IpAddr::V4(_), _) => (PREFERENCE_IKE_V4, ETH_P_IP),
        (IpAddr::V6(_), _) => (PREFERENCE_IKE_V6, ETH_P_IPV6),
    }
}

fn message(interface: u32, handle: Handle, spec: &FilterSpec) -> TcMessage {
    let (preference, protocol) = preference(spec);
    let info = u32::from(preference) << 16 | u32::from(protocol.to_be());
    TcMessage { interface, handle, parent: Handle::OURS, info }
}

pub(crate) fn put(interface: u32, handle: Handle, spec: &FilterSpec) -> Writer {
    let mut w = message(interface, handle, spec).writer();
    w.attr_text(TCA_KIND, "u32");
    w.nest(TCA_OPTIONS, |w| put_options(w, spec));
    w
}

/// A word of the packet from the IP header on: its offset, which bits count, and what they must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    at: u32,
    mask: u32,
    value: u32,
}

/// What a filter looks at. Packets with IP options or extension headers are nobody's IKE, and later fragments have no
/// ports.
fn keys(spec: &FilterSpec) -> Vec<Key> {
    let key = |at, mask, value| Key { at, mask, value };
    let (mut keys, udp) = match spec.source {
        IpAddr::V4(a) => (vec![key(12, u32::MAX, a.to_bits())], 20),
        IpAddr::V6(a) => {
            let words =
                a.octets().as_chunks::<4>().0.iter().map(|w| u32::from_be_bytes(*w)).collect::<Vec<_>>();
            ((8..).step_by(4).zip(words).map(|(at, word)| key(at, u32::MAX, word)).collect(), 40)
        }
    };
    let port = match spec.traffic {
        Traffic::All => return keys,
        Traffic::Ike => 500,
        Traffic::IkeBesideEsp => 4500,
    };
    match spec.source {
        IpAddr::V4(_) => {
            keys.extend([key(0, 0x0F00_0000, 0x0500_0000), key(4, 0x1FFF, 0), key(8, 0xFF_0000, UDP << 16)]);
        }
        IpAddr::V6(_) => keys.push(key(4, 0xFF00, UDP << 8)),
    }
    keys.push(key(udp, 0xFFFF_0000, port << 16));
    if spec.traffic == Traffic::IkeBesideEsp {
        keys.push(key(udp + 8, u32::MAX, 0));
    }
    keys
}

fn put_options(w: &mut Writer, spec: &FilterSpec) {
    let keys = keys(spec);
    let mut sel = Vec::with_capacity(SEL + keys.len() * KEY);
    // struct tc_u32_sel: flags, offshift, nkeys, pad, offmask, off, offoff, hoff, hmask.
    sel.extend_from_slice(&[TC_U32_TERMINAL, 0, u8::try_from(keys.len()).unwrap_or(0), 0]);
    sel.resize(SEL, 0);
    for key in keys {
        // struct tc_u32_key: mask, value (both as on the wire), offset, offset mask.
        sel.extend_from_slice(&key.mask.to_be_bytes());
        sel.extend_from_slice(&key.value.to_be_bytes());
        sel.extend_from_slice(&key.at.to_ne_bytes());
        sel.extend_from_slice(&[0; 4]);
    }
    w.attr_u32(TCA_U32_CLASSID, spec.class.0);
    w.attr(TCA_U32_SEL, &sel);
}

/// `None` for hash tables, which come with the filters, and for filters that are not of ours.
pub(crate) fn parse(payload: &[u8], interface: u32) -> Option<Filter> {
    let (message, attributes) = TcMessage::parse(payload)?;
    (message.interface == interface && message.parent == Handle::OURS).then_some(())?;
    let options = codec::find(attributes, TCA_OPTIONS)?;
    let class = Handle(codec::u32_at(codec::find(options, TCA_U32_CLASSID)?, 0)?);
    let found: Vec<Key> = codec::find(options, TCA_U32_SEL)?
        .get(SEL..)?
        .chunks_exact(KEY)
        .map(|key| {
            let word = |at| codec::u32_at(key, at).map(u32::from_be);
            Some(Key { mask: word(0)?, value: word(4)?, at: codec::u32_at(key, 8)? })
        })
        .collect::<Option<_>>()?;
    let word = |at| found.iter().find(|k| k.at == at && k.mask == u32::MAX).map(|k| k.value);
    let source = match message.info >> 16 {
        p if p == u32::from(PREFERENCE_V4) || p == u32::from(PREFERENCE_IKE_V4) => {
            IpAddr::V4(word(12)?.into())
        }
        p if p == u32::from(PREFERENCE_V6) || p == u32::from(PREFERENCE_IKE_V6) => {
            let words = [word(8)?, word(12)?, word(16)?, word(20)?];
            IpAddr::V6(words.into_iter().fold(0u128, |all, w| all << 32 | u128::from(w)).into())
        }
        _ => return None,
    };
    let spec = Traffic::ALL
        .map(|traffic| FilterSpec { source, traffic, class })
        .into_iter()
        .find(|spec| keys(spec) == found && u32::from(preference(spec).0) == message.info >> 16)?;
    Some(Filter { spec, handle: message.handle })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_reads_back_as_it_was_written() {
        for source in ["192.0.2.1", "2001:db8::1"] {
            for traffic in Traffic::ALL {
                let spec =
                    FilterSpec { source: source.parse().unwrap(), traffic, class: Handle::class(0x1A2B) };
                let w = put(3, Handle(0x8000_0800), &spec);
                assert_eq!(parse(w.bytes(), 3), Some(Filter { spec, handle: Handle(0x8000_0800) }));
                assert_eq!(parse(w.bytes(), 4), None);
            }
        }
    }
}
