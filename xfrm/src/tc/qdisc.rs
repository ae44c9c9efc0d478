//! The root qdisc of an interface: whose it is, making it ours, giving it back.

use super::{Handle, ROOT, TCA_KIND, TCA_OPTIONS, Tc, TcMessage, htb, stats::QueueStats};
use crate::codec;
use crate::error::NetlinkError;
use crate::socket::{NLM_F_CREATE, NLM_F_EXCL, Request};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;

/// A qdisc.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qdisc {
    /// Its handle; 0 for those that the kernel put there by itself.
    pub handle: Handle,
    /// The class it sits in.
    pub parent: Handle,
    /// As in `tc`.
    pub kind: String,
    /// Counters.
    pub stats: QueueStats,
}

impl Qdisc {
    /// A root qdisc that no kernel has.
    #[doc(hidden)]
    pub fn for_tests(handle: Handle, kind: &str) -> Self {
        Self { handle, parent: ROOT, kind: kind.to_owned(), stats: QueueStats::default() }
    }
}

/// Who put the root qdisc there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RootOwner {
    /// The kernel (noqueue, mq, pfifo_fast, or what `net.core.default_qdisc` says): it comes back when ours goes.
    Default,
    /// We.
    Ours,
    /// Somebody else: not to be touched.
    Foreign(Qdisc),
}

impl Tc {
    /// All qdiscs of an interface.
    ///
    /// # Errors
    /// `ENODEV` if there is no such interface.
    pub fn qdiscs(&mut self, interface: u32) -> Result<Vec<Qdisc>, NetlinkError> {
        let message = TcMessage { interface, handle: Handle(0), parent: Handle(0), info: 0 };
        self.socket.dump(&Request::new(RTM_GETQDISC, 0, message.writer()), |kind, payload| {
            Ok((kind == RTM_NEWQDISC).then(|| parse(payload, interface)).flatten())
        })
    }

    /// The interfaces whose root qdisc is ours.
    ///
    /// # Errors
    /// Transport errors.
    pub fn our_roots(&mut self) -> Result<Vec<u32>, NetlinkError> {
        let message = TcMessage { interface: 0, handle: Handle(0), parent: Handle(0), info: 0 };
        self.socket.dump(&Request::new(RTM_GETQDISC, 0, message.writer()), |kind, payload| {
            let found = (kind == RTM_NEWQDISC).then(|| TcMessage::parse(payload)).flatten();
            Ok(found.and_then(|(m, _)| {
                let q = parse(payload, m.interface)?;
                (q.parent == ROOT && is_ours(&q)).then_some(m.interface)
            }))
        })
    }

    /// Who owns the root qdisc of an interface.
    ///
    /// # Errors
    /// `ENODEV` if there is no such interface.
    pub fn root_owner(&mut self, interface: u32) -> Result<RootOwner, NetlinkError> {
        let root = self.qdiscs(interface)?.into_iter().find(|q| q.parent == ROOT);
        Ok(match root {
            Some(q) if is_ours(&q) => RootOwner::Ours,
            Some(q) if q.handle != Handle(0) => RootOwner::Foreign(q),
            Some(_) | None => RootOwner::Default,
        })
    }

    /// Puts our HTB at the root. The caller has made sure by [`Self::root_owner`] that this takes nobody's place.
    ///
    /// # Errors
    /// `ENOENT` if the kernel has no HTB; `EEXIST` if somebody else put one there meanwhile.
    pub fn add_root(&mut self, interface: u32) -> Result<(), NetlinkError> {
        let message = TcMessage { interface, handle: Handle::OURS, parent: ROOT, info: 0 };
        let mut w = message.writer();
        w.attr_text(TCA_KIND, "htb");
        w.nest(TCA_OPTIONS, htb::put_init);
        // EXCL counts explicit qdiscs only: defaults may be replaced.
        self.socket.request(&Request::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, w))
    }

    /// Removes our root qdisc with all that hangs on it; the kernel puts its default back. `Ok` if it is not there.
    ///
    /// # Errors
    /// Transport errors and missing rights.
    pub fn delete_root(&mut self, interface: u32) -> Result<(), NetlinkError> {
        match self.root_owner(interface) {
            Ok(RootOwner::Ours) => {}
            Ok(RootOwner::Default | RootOwner::Foreign(_)) => return Ok(()),
            Err(e) if e.is_absent() => return Ok(()),
            Err(e) => return Err(e),
        }
        let message = TcMessage { interface, handle: Handle::OURS, parent: ROOT, info: 0 };
        self.socket.request(&Request::new(RTM_DELQDISC, 0, message.writer()))
    }
}

fn is_ours(q: &Qdisc) -> bool {
    q.handle == Handle::OURS && q.kind == "htb"
}

pub(crate) fn parse(payload: &[u8], interface: u32) -> Option<Qdisc> {
    let (message, attributes) = TcMessage::parse(payload)?;
    (message.interface == interface).then_some(())?;
    Some(Qdisc {
        handle: message.handle,
        parent: message.parent,
        kind: codec::text(codec::find(attributes, TCA_KIND)?),
        stats: QueueStats::parse(attributes),
    })
}
