//! From one superpacket to the packets it stands for: TCP and UDP segmentation of what a TUN device with
//! `IFF_VNET_HDR` hands out, checksums included.
//!
//! The kernel leaves the sum of the pseudo header in the checksum field, with the length of the whole superpacket; each
//! segment's checksum is that sum with the length exchanged, plus its own octets. So addresses need not be looked at,
//! and routing headers do no harm.

use crate::checksum::Sum;
use crate::inner::{InnerHeader, protocol};

/// Length of `struct virtio_net_hdr` (linux/virtio_net.h).
pub const VNET_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

pub(crate) const TCP_CHECKSUM_AT: usize = 16;
pub(crate) const UDP_CHECKSUM_AT: usize = 6;
pub(crate) const UDP_HEADER_LEN: usize = 8;
pub(crate) const TCP_FLAGS_AT: usize = 13;
pub(crate) const TCP_FIN: u8 = 0x01;
pub(crate) const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// How a superpacket is to be segmented.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gso {
    /// It is an ordinary packet.
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams of equal length.
    Udp,
}

/// The header in front of each packet of a TUN device with `IFF_VNET_HDR`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VnetHeader {
    /// The checksum at `csum_start + csum_offset` is partial.
    pub needs_csum: bool,
    /// Kind of superpacket.
    pub gso: Gso,
    /// Octets of headers in front of the payload.
    pub hdr_len: u16,
    /// Payload octets of each segment.
    pub gso_size: u16,
    /// Where the checksum begins to count.
    pub csum_start: u16,
    /// Where it is stored, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The header of an ordinary packet whose checksums are complete.
    pub const PLAIN: Self =
        Self { needs_csum: false, gso: Gso::None, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    /// Reads a header; `None` for kinds of superpackets that were not asked for.
    pub fn from_bytes(bytes: [u8; VNET_LEN]) -> Option<Self> {
        let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1] = bytes;
        Some(Self {
            needs_csum: flags & NEEDS_CSUM != 0,
            gso: match gso & !GSO_ECN {
                GSO_NONE => Gso::None,
                GSO_TCPV4 => Gso::TcpV4,
                GSO_TCPV6 => Gso::TcpV6,
                GSO_UDP_L4 => Gso::Udp,
                _ => return None,
            },
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([s0, s1]),
            csum_start: u16::from_ne_bytes([c0, c1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// The header as the device wants it.
    pub const fn to_bytes(self) -> [u8; VNET_LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [s0, s1] = self.gso_size.to_ne_bytes();
        let [c0, c1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        let gso = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        [if self.needs_csum { NEEDS_CSUM } else { 0 }, gso, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

/// A superpacket (or an ordinary packet) and the segments it falls into.
pub struct Superpacket<'a> {
    packet: &'a [u8],
    kind: Kind,
    /// Where the upper protocol begins.
    upper: usize,
    /// Where the payload begins.
    payload: usize,
    size: usize,
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Copied as it is.
    Whole,
    /// Copied, then the checksum `offset` behind `upper` is completed.
    Unsummed {
        offset: usize,
    },
    Tcp,
    Udp,
}

impl<'a> Superpacket<'a> {
    /// Takes a packet with its headers; `None` if they contradict each other.
    pub fn new(vnet: &VnetHeader, packet: &'a [u8], inner: &InnerHeader) -> Option<Self> {
        let packet = packet.get(..inner.total_len)?;
        let whole = Self { packet, kind: Kind::Whole, upper: 0, payload: packet.len(), size: 0, count: 1 };
        if !vnet.needs_csum {
            return (vnet.gso == Gso::None).then_some(whole);
        }
        let (upper, offset) = (usize::from(vnet.csum_start), usize::from(vnet.csum_offset));
        let ip_len = if inner.src.is_ipv4() { 20 } else { 40 };
        if upper < ip_len || packet.len() < upper + offset + 2 {
            return None;
        }
        let (kind, checksum_at, upper_len) = match vnet.gso {
            Gso::None => return Some(Self { kind: Kind::Unsummed { offset }, upper, ..whole }),
            Gso::TcpV4 | Gso::TcpV6 => {
                let len = usize::from(packet.get(upper + 12)? >> 4) * 4;
                (Kind::Tcp, TCP_CHECKSUM_AT, len)
            }
            Gso::Udp => (Kind::Udp, UDP_CHECKSUM_AT, UDP_HEADER_LEN),
        };
        let payload = upper + upper_len;
        let size = usize::from(vnet.gso_size);
        let smallest = if kind == Kind::Tcp { 20 } else { UDP_HEADER_LEN };
        if offset != checksum_at || upper_len < smallest || size == 0 || packet.len() < payload {
            return None;
        }
        let count = (packet.len() - payload).div_ceil(size).max(1);
        Some(Self { packet, kind, upper, payload, size, count })
    }

    /// Number of segments, at least 1.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Length of segment `i` with its headers. All but the last have the same.
    pub fn segment_len(&self, i: usize) -> usize {
        self.payload + self.piece(i).len()
    }

    fn piece(&self, i: usize) -> &'a [u8] {
        let end = self.packet.len();
        let start = (self.payload + i * self.size).min(end);
        self.packet.get(start..(start + self.size).min(end)).unwrap_or(&[])
    }

    /// Writes segment `i` to `out`, which is [`Superpacket::segment_len`] long. `None` if it is not.
    pub fn write(&self, i: usize, out: &mut [u8]) -> Option<()> {
        if out.len() != self.segment_len(i) {
            return None;
        }
        let (headers, body) = out.split_at_mut_checked(self.payload)?;
        headers.copy_from_slice(self.packet.get(..self.payload)?);
        body.copy_from_slice(self.piece(i));
        match self.kind {
            Kind::Whole => {}
            Kind::Unsummed { offset } => {
                let sum = Sum::default().octets(out.get(self.upper..)?).checksum();
                store(out.get_mut(self.upper + offset..)?, never_zero(sum))?;
            }
            Kind::Tcp | Kind::Udp => {
                let (ip, upper) = headers.split_at_mut_checked(self.upper)?;
                set_ip_len(ip, self.payload + body.len(), u16::try_from(i).ok()?)?;
                self.finish(i, upper, body)?;
            }
        }
        Some(())
    }

    /// The upper header of a segment.
    fn finish(&self, i: usize, upper: &mut [u8], body: &[u8]) -> Option<()> {
        let old_len = u16::try_from(self.packet.len() - self.upper).ok()?;
        let new_len = u16::try_from(upper.len() + body.len()).ok()?;
        let checksum_at = if self.kind == Kind::Tcp {
            let seq = upper.get_mut(4..)?.first_chunk_mut::<4>()?;
            let offset = u32::try_from(i * self.size).ok()?;
            *seq = u32::from_be_bytes(*seq).wrapping_add(offset).to_be_bytes();
            let flags = upper.get_mut(TCP_FLAGS_AT)?;
            if i + 1 < self.count {
                *flags &= !(TCP_FIN | TCP_PSH);
            }
            if i > 0 {
                *flags &= !TCP_CWR;
            }
            TCP_CHECKSUM_AT
        } else {
            store(upper.get_mut(4..)?, new_len.to_be_bytes())?;
            UDP_CHECKSUM_AT
        };
        let field = upper.get_mut(checksum_at..)?.first_chunk_mut::<2>()?;
        let pseudo = Sum::default().field(*field).minus(old_len).plus(new_len);
        *field = [0; 2];
        // The upper header has an even length, so the body may follow in the same sum.
        let sum = pseudo.octets(upper).octets(body).checksum();
        let sum = if self.kind == Kind::Udp { never_zero(sum) } else { sum };
        store(upper.get_mut(checksum_at..)?, sum)
    }
}

/// Length, and for IPv4 identification and header checksum, of segment `i`.
fn set_ip_len(ip: &mut [u8], len: usize, i: u16) -> Option<()> {
    if ip.first()? >> 4 == 6 {
        return store(ip.get_mut(4..)?, u16::try_from(len.checked_sub(40)?).ok()?.to_be_bytes());
    }
    store(ip.get_mut(2..)?, u16::try_from(len).ok()?.to_be_bytes())?;
    let id = ip.get_mut(4..)?.first_chunk_mut::<2>()?;
    *id = u16::from_be_bytes(*id).wrapping_add(i).to_be_bytes();
    sum_ipv4_header(ip)
}

/// Computes the checksum of an IPv4 header; `ip` holds nothing else.
pub(crate) fn sum_ipv4_header(ip: &mut [u8]) -> Option<()> {
    store(ip.get_mut(10..)?, [0; 2])?;
    let sum = Sum::default().octets(ip).checksum();
    store(ip.get_mut(10..)?, sum)
}

pub(crate) fn store(at: &mut [u8], value: [u8; 2]) -> Option<()> {
    *at.first_chunk_mut::<2>()? = value;
    Some(())
}

/// A computed UDP checksum of zero is sent as all ones, zero means "none" (RFC 768). For other protocols both mean the
/// same.
const fn never_zero(sum: [u8; 2]) -> [u8; 2] {
    if sum[0] == 0 && sum[1] == 0 { [0xFF; 2] } else { sum }
}

/// Protocols whose superpackets exist.
pub(crate) const fn is_segmentable(proto: u8) -> bool {
    matches!(proto, protocol::TCP | protocol::UDP)
}

#[cfg(test)]
mod tests;
