//! The readers and writers of kernel messages, for tests that have no kernel. Payloads are what follows the netlink
//! header.

use cygnet_model::tunnel::SaSpec;

use crate::dump::{self, SaEntry};
use crate::error::NetlinkError;
use crate::moving::{self, Move};
use crate::policy::Policy;
use crate::sa::{self, Dialect};
use crate::tc::{Class, ClassSpec, Filter, FilterSpec, Handle, Qdisc, class, filter, qdisc};

/// A state, from an XFRM_MSG_NEWSA payload.
pub fn read_state(kind: u16, payload: &[u8]) -> Option<SaEntry> {
    SaEntry::parse(kind, payload)
}

/// The payload that installs an SA, in the words of Linux 6.10 and later.
///
/// # Errors
/// [`NetlinkError::Unfit`] for what the kernel cannot hold.
pub fn write_state(spec: &SaSpec) -> Result<Vec<u8>, NetlinkError> {
    Ok(sa::state(spec, Dialect::Directed)?.bytes().to_vec())
}

/// The payload that moves a state, made of the payload that showed it.
pub fn write_moved_state(old: &[u8], to: &Move, gap: u64) -> Option<Vec<u8>> {
    Some(moving::moved_state(old, to, gap)?.bytes().to_vec())
}

/// A policy, from an XFRM_MSG_NEWPOLICY payload.
pub fn read_policy(kind: u16, payload: &[u8]) -> Option<Policy> {
    dump::parse_policy(kind, payload)
}

/// The payload that puts a policy.
pub fn write_policy(policy: &Policy) -> Vec<u8> {
    policy.put_request().payload().to_vec()
}

/// A qdisc of an interface, from an RTM_NEWQDISC payload.
pub fn read_qdisc(payload: &[u8], interface: u32) -> Option<Qdisc> {
    qdisc::parse(payload, interface)
}

/// A class of ours, from an RTM_NEWTCLASS payload.
pub fn read_class(payload: &[u8], interface: u32) -> Option<Class> {
    class::parse(payload, interface)
}

/// The payload that puts a class.
pub fn write_class(interface: u32, spec: &ClassSpec) -> Vec<u8> {
    class::put(interface, spec).bytes().to_vec()
}

/// A filter of ours, from an RTM_NEWTFILTER payload.
pub fn read_filter(payload: &[u8], interface: u32) -> Option<Filter> {
    filter::parse(payload, interface)
}

/// The payload that adds a filter.
pub fn write_filter(interface: u32, spec: &FilterSpec) -> Vec<u8> {
    filter::put(interface, Handle(0), spec).bytes().to_vec()
}

pub use crate::socket::testing::{answer, messages};
