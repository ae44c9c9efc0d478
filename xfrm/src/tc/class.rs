//! HTB classes of our root qdisc: one for each thing that has a rate.

use super::{Handle, HtbRates, TCA_KIND, TCA_OPTIONS, Tc, TcMessage, stats::QueueStats};
use crate::codec::{self, Writer};
use crate::error::NetlinkError;
use crate::socket::{NLM_F_CREATE, NLM_F_REPLACE, Request};

const RTM_NEWTCLASS: u16 = 40;
const RTM_DELTCLASS: u16 = 41;
const RTM_GETTCLASS: u16 = 42;

/// A class that shall exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClassSpec {
    /// Name; the major number is ours.
    pub handle: Handle,
    /// Rates.
    pub rates: HtbRates,
}

/// A class that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class {
    /// Name.
    pub handle: Handle,
    /// Rates as the kernel holds them.
    pub rates: HtbRates,
    /// Counters of the class with all below it.
    pub stats: QueueStats,
}

impl Tc {
    /// Adds a class to our root qdisc, or changes its rates in place: packets that wait stay. `mtu` is that of the
    /// interface in octets.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn put_class(&mut self, interface: u32, spec: &ClassSpec, mtu: u32) -> Result<(), NetlinkError> {
        let w = put(interface, spec);
        self.socket.request(&Request::new(RTM_NEWTCLASS, NLM_F_CREATE | NLM_F_REPLACE, w))?;
        // After the class, so that the queue never admits what the old rate could not drain.
        self.put_queue(interface, spec.handle, &spec.rates, mtu)
    }

    /// Removes a class; no filter may point to it any more. `Ok` if it is not there.
    ///
    /// # Errors
    /// `EBUSY` if a filter points to it.
    pub fn delete_class(&mut self, interface: u32, handle: Handle) -> Result<(), NetlinkError> {
        let message = TcMessage { interface, handle, parent: Handle::OURS, info: 0 };
        match self.socket.request(&Request::new(RTM_DELTCLASS, 0, message.writer())) {
            Err(e) if e.is_absent() => Ok(()),
            other => other,
        }
    }

    /// The classes of our root qdisc with their counters; none if it is not there.
    ///
    /// # Errors
    /// Transport errors.
    pub fn classes(&mut self, interface: u32) -> Result<Vec<Class>, NetlinkError> {
        let message = TcMessage { interface, handle: Handle(0), parent: Handle(0), info: 0 };
        self.socket.dump(&Request::new(RTM_GETTCLASS, 0, message.writer()), |kind, payload| {
            Ok((kind == RTM_NEWTCLASS).then(|| parse(payload, interface)).flatten())
        })
    }
}

pub(crate) fn put(interface: u32, spec: &ClassSpec) -> Writer {
    let message = TcMessage { interface, handle: spec.handle, parent: Handle::OURS, info: 0 };
    let mut w = message.writer();
    w.attr_text(TCA_KIND, "htb");
    w.nest(TCA_OPTIONS, |w| spec.rates.put(w));
    w
}

pub(crate) fn parse(payload: &[u8], interface: u32) -> Option<Class> {
    let (message, attributes) = TcMessage::parse(payload)?;
    (message.interface == interface && message.handle.is_ours()).then_some(())?;
    Some(Class {
        handle: message.handle,
        rates: HtbRates::parse(codec::find(attributes, TCA_OPTIONS)?)?,
        stats: QueueStats::parse(attributes),
    })
}
