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
/// Our filters' preference. Families need different ones: a preference has one protocol.
const PREFERENCE_V4: u16 = 0xC964;
const PREFERENCE_V6: u16 = 0xC966;

/// Packets from this outer source address belong to this class.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FilterSpec {
    /// Source address of packets on the wire.
    pub source: IpAddr,
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
        let mut w = message(interface, filter.handle, filter.spec.source).writer();
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

const fn preference(source: IpAddr) -> (u16, u16) {
    match source {
        IpAddr::V4(_) => (PREFERENCE_V4, ETH_P_IP),
        IpAddr::V6(_) => (PREFERENCE_V6, ETH_P_IPV6),
    }
}

fn message(interface: u32, handle: Handle, source: IpAddr) -> TcMessage {
    let (preference, protocol) = preference(source);
    let info = u32::from(preference) << 16 | u32::from(protocol.to_be());
    TcMessage { interface, handle, parent: Handle::OURS, info }
}

pub(crate) fn put(interface: u32, handle: Handle, spec: &FilterSpec) -> Writer {
    let mut w = message(interface, handle, spec.source).writer();
    w.attr_text(TCA_KIND, "u32");
    w.nest(TCA_OPTIONS, |w| put_options(w, spec));
    w
}

/// Matches the words of the source address at its offset in the IP header.
fn put_options(w: &mut Writer, spec: &FilterSpec) {
    let (octets, at) = match spec.source {
        IpAddr::V4(a) => (a.octets().to_vec(), 12u32),
        IpAddr::V6(a) => (a.octets().to_vec(), 8u32),
    };
    let words = octets.len() / 4;
    let mut sel = Vec::with_capacity(SEL + words * KEY);
    // struct tc_u32_sel: flags, offshift, nkeys, pad, offmask, off, offoff, hoff, hmask.
    sel.extend_from_slice(&[TC_U32_TERMINAL, 0, u8::try_from(words).unwrap_or(0), 0]);
    sel.resize(SEL, 0);
    for (word, offset) in octets.chunks(4).zip((at..).step_by(4)) {
        // struct tc_u32_key: mask, value (both as on the wire), offset, offset mask.
        sel.extend_from_slice(&[0xFF; 4]);
        sel.extend_from_slice(word);
        sel.extend_from_slice(&offset.to_ne_bytes());
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
    let sel = codec::find(options, TCA_U32_SEL)?;
    let mut words = sel.get(SEL..)?.chunks_exact(KEY).map(|key| {
        let value: Option<[u8; 4]> = key.get(4..8).and_then(|v| v.try_into().ok());
        value
    });
    let source = match message.info >> 16 {
        p if p == u32::from(PREFERENCE_V4) => IpAddr::from(words.next()??),
        p if p == u32::from(PREFERENCE_V6) => {
            let octets: Vec<u8> = words.collect::<Option<Vec<_>>>()?.concat();
            IpAddr::from(<[u8; 16]>::try_from(octets).ok()?)
        }
        _ => return None,
    };
    Some(Filter { spec: FilterSpec { source, class }, handle: message.handle })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_reads_back_as_it_was_written() {
        for source in ["192.0.2.1", "2001:db8::1"] {
            let spec = FilterSpec { source: source.parse().unwrap(), class: Handle::class(0x1A2B) };
            let w = put(3, Handle(0x8000_0800), &spec);
            assert_eq!(parse(w.bytes(), 3), Some(Filter { spec, handle: Handle(0x8000_0800) }));
            assert_eq!(parse(w.bytes(), 4), None);
        }
    }
}
