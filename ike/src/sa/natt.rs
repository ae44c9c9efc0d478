//! NAT detection (RFC 7296 §2.23): each side hashes the addresses it believes in; who sees other ones knows of a NAT.

use std::net::{IpAddr, SocketAddr};

use ring::digest;

use crate::io::Flow;
use crate::policy::Encap;
use crate::wire::{Notify, NotifyType, Payloads};

/// Who is behind a NAT, as far as the hashes tell. Forced encapsulation looks like one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Nat {
    /// We are.
    pub local: bool,
    /// The peer is.
    pub remote: bool,
}

/// `SHA1(SPIi | SPIr | address | port)`.
fn hash(spi_i: u64, spi_r: u64, addr: SocketAddr) -> Vec<u8> {
    let mut ctx = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    ctx.update(&spi_i.to_be_bytes());
    ctx.update(&spi_r.to_be_bytes());
    match addr.ip() {
        IpAddr::V4(a) => ctx.update(&a.octets()),
        IpAddr::V6(a) => ctx.update(&a.octets()),
    }
    ctx.update(&addr.port().to_be_bytes());
    ctx.finish().as_ref().to_vec()
}

/// The two notifications of an IKE_SA_INIT message. Where encapsulation is forced the source hash is one that no address has,
/// which makes the peer believe in a NAT and encapsulate.
pub(crate) fn notifies(spi_i: u64, spi_r: u64, flow: &Flow, encap: Encap) -> [Notify; 2] {
    let source = match encap {
        Encap::Auto => hash(spi_i, spi_r, flow.local),
        Encap::Force | Encap::FromStart => hash(!spi_i, spi_r, flow.local),
    };
    [
        Notify::new(NotifyType::NAT_DETECTION_SOURCE_IP, source),
        Notify::new(NotifyType::NAT_DETECTION_DESTINATION_IP, hash(spi_i, spi_r, flow.remote)),
    ]
}

/// What a received IKE_SA_INIT message tells; `None` if the peer does not support NAT traversal.
pub(crate) fn detect(payloads: &Payloads, spi_i: u64, spi_r: u64, flow: &Flow) -> Option<Nat> {
    let of = |kind| payloads.notifies.iter().filter(move |n| n.kind == kind);
    let source = NotifyType::NAT_DETECTION_SOURCE_IP;
    let destination = NotifyType::NAT_DETECTION_DESTINATION_IP;
    if of(source).next().is_none() || of(destination).next().is_none() {
        return None;
    }
    let (local, remote) = (hash(spi_i, spi_r, flow.local), hash(spi_i, spi_r, flow.remote));
    Some(Nat {
        local: !of(destination).any(|n| n.data == local),
        remote: !of(source).any(|n| n.data == remote),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(local: &str, remote: &str) -> Flow {
        Flow { local: local.parse().unwrap(), remote: remote.parse().unwrap(), natt: false }
    }

    fn seen(encap: Encap, sender: &Flow, receiver: &Flow) -> Option<Nat> {
        let payloads = Payloads { notifies: notifies(1, 2, sender, encap).to_vec(), ..Payloads::default() };
        detect(&payloads, 1, 2, receiver)
    }

    #[test]
    fn the_side_behind_a_nat_is_named() {
        let a = flow("10.0.0.1:500", "192.0.2.2:500");
        let straight = flow("192.0.2.2:500", "10.0.0.1:500");
        let translated = flow("192.0.2.2:500", "192.0.2.99:61000");
        let dnat = flow("172.16.0.2:500", "10.0.0.1:500");
        assert_eq!(seen(Encap::Auto, &a, &straight), Some(Nat::default()));
        assert_eq!(seen(Encap::Auto, &a, &translated), Some(Nat { local: false, remote: true }));
        assert_eq!(seen(Encap::Auto, &a, &dnat), Some(Nat { local: true, remote: false }));
        assert_eq!(seen(Encap::Force, &a, &straight), Some(Nat { local: false, remote: true }));
        assert_eq!(detect(&Payloads::default(), 1, 2, &a), None);
    }
}
