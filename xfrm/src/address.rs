//! Which addresses this host has, and which interface has one. Links, addresses and routes that are *made* are another
//! module's business.

use std::net::IpAddr;

use crate::codec::{self, Writer};
use crate::error::NetlinkError;
use crate::route::{Family, Prefix};
use crate::socket::Request;
use crate::tc::Tc;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
pub(crate) const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFADDRMSG: usize = 8;
const IFINFOMSG: usize = 16;
const IFF_LOOPBACK: u32 = 8;

/// Interfaces that are, or are in, a VRF: their addresses are not local outside of it.
pub(crate) fn vrf_request() -> Request {
    let mut w = Writer::new();
    w.raw(&[0; IFINFOMSG]);
    Request::new(RTM_GETLINK, 0, w)
}

/// The index in an RTM_NEWLINK message, if the interface is a VRF or in one.
pub(crate) fn parse_vrf(kind: u16, payload: &[u8]) -> Option<u32> {
    if kind != RTM_NEWLINK {
        return None;
    }
    let info = codec::find(payload.get(IFINFOMSG..)?, IFLA_LINKINFO)?;
    let is_vrf = |which| codec::find(info, which).is_some_and(|name| codec::text(name) == "vrf");
    (is_vrf(IFLA_INFO_KIND) || is_vrf(IFLA_INFO_SLAVE_KIND)).then(|| codec::u32_at(payload, 4)).flatten()
}

/// A network interface.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Interface {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in octets.
    pub mtu: u32,
    /// Whether packets on it never leave the host.
    pub loopback: bool,
}

/// An address of this host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OwnAddress {
    /// The address.
    pub address: IpAddr,
    /// The attached network: on a point-to-point link the other end.
    pub network: Prefix,
    /// Index of the interface that has it.
    pub interface: u32,
}

impl OwnAddress {
    pub(crate) fn list_request(family: Family) -> Request {
        let mut w = Writer::new();
        w.raw(&[family.number(), 0, 0, 0, 0, 0, 0, 0]);
        Request::new(RTM_GETADDR, 0, w)
    }

    /// Reads the payload of an RTM_NEWADDR message.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let family = Family::from_number(codec::u8_at(payload, 0)?)?;
        let prefix_len = codec::u8_at(payload, 1)?;
        let attributes = payload.get(IFADDRMSG..)?;
        let other = family.address(codec::find(attributes, IFA_ADDRESS)?)?;
        let address = codec::find(attributes, IFA_LOCAL).map_or(Some(other), |own| family.address(own))?;
        Some(Self { address, network: (other, prefix_len), interface: codec::u32_at(payload, 4)? })
    }
}

impl Tc {
    /// The interface that has `address`; `None` if none has.
    ///
    /// # Errors
    /// Transport errors.
    pub fn interface_of(&mut self, address: IpAddr) -> Result<Option<Interface>, NetlinkError> {
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut w = Writer::new();
        w.raw(&[u8::try_from(family).unwrap_or(0), 0, 0, 0, 0, 0, 0, 0]);
        let indices = self.socket.dump(&Request::new(RTM_GETADDR, 0, w), |kind, payload| {
            Ok((kind == RTM_NEWADDR).then(|| interface_with(payload, address)).flatten())
        })?;
        indices.first().map(|index| self.interface(*index)).transpose()
    }

    /// An interface by its index.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub fn interface(&mut self, index: u32) -> Result<Interface, NetlinkError> {
        let mut w = Writer::new();
        let mut header = [0u8; IFINFOMSG];
        if let Some(field) = header.get_mut(4..8) {
            field.copy_from_slice(&index.to_ne_bytes());
        }
        w.raw(&header);
        self.socket.query(&Request::new(RTM_GETLINK, 0, w), |kind, payload| {
            if kind != RTM_NEWLINK {
                return None;
            }
            let attributes = payload.get(IFINFOMSG..)?;
            Some(Interface {
                index: codec::u32_at(payload, 4)?,
                name: codec::text(codec::find(attributes, IFLA_IFNAME)?),
                mtu: codec::find(attributes, IFLA_MTU).and_then(|v| codec::u32_at(v, 0)).unwrap_or(1500),
                loopback: codec::u32_at(payload, 8)? & IFF_LOOPBACK != 0,
            })
        })
    }
}

/// The index in a NEWADDR payload, if it is about `address`. On point-to-point links IFA_ADDRESS is the other end and
/// IFA_LOCAL is ours; IPv6 often has IFA_ADDRESS alone.
fn interface_with(payload: &[u8], address: IpAddr) -> Option<u32> {
    let attributes = payload.get(IFADDRMSG..)?;
    let value = codec::find(attributes, IFA_LOCAL).or_else(|| codec::find(attributes, IFA_ADDRESS))?;
    let same = match address {
        IpAddr::V4(a) => a.octets() == value,
        IpAddr::V6(a) => a.octets() == value,
    };
    same.then(|| codec::u32_at(payload, 4)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_on_the_loopback_interface() {
        let mut tc = Tc::open().unwrap();
        let Some(lo) = tc.interface_of("127.0.0.1".parse().unwrap()).unwrap() else {
            println!("skipped: this namespace has no 127.0.0.1");
            return;
        };
        assert!(lo.loopback && lo.index == 1);
        assert_eq!(tc.interface_of("192.0.2.77".parse().unwrap()).unwrap(), None);
    }
}
