//! From packets to superpackets: neighbours of a TCP or UDP flow are joined, so that the TUN device is written once for
//! dozens of them.
//!
//! The packets of a batch lie in one buffer, the arena; joining them copies nothing. A superpacket is its first packet
//! and then only payloads. Rules are those of the kernel's own GRO: headers equal, sequence numbers without gap, sizes
//! equal but for the last, checksums right. Whatever is special (flags, options of IP, fragments) passes alone and
//! closes the flow's train, so that no flow is reordered.

use std::io::IoSlice;
use std::ops::Range;

use crate::checksum::{Sum, pseudo_header};
use crate::inner::{InnerHeader, protocol};
use crate::segment::{
    Gso, TCP_CHECKSUM_AT, TCP_FLAGS_AT, TCP_PSH, UDP_CHECKSUM_AT, UDP_HEADER_LEN, VNET_LEN, VnetHeader,
    is_segmentable, store, sum_ipv4_header,
};

/// Packets in one superpacket; the kernel takes at most so many UDP segments.
const MAX_PARTS: usize = 64;
/// Length of a superpacket that every kernel takes.
const MAX_LEN: usize = 65_535;
/// How many trains back a packet looks for its flow.
const LOOK_BACK: usize = 16;
const TCP_ACK: u8 = 0x10;

/// What may be joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Joins {
    /// Nothing: the device takes no superpackets.
    Nothing,
    /// TCP.
    Tcp,
    /// TCP and UDP.
    TcpUdp,
}

/// Joins packets of a batch. Its memory is kept from batch to batch.
pub struct Coalescer {
    joins: Joins,
    trains: Vec<Train>,
    /// Packets of all trains, each with the place of the next one in its train.
    parts: Vec<(Range<usize>, Option<usize>)>,
    /// Device headers of the trains while they are handed out.
    headers: Vec<[u8; VNET_LEN]>,
}

/// A superpacket in the making.
struct Train {
    /// Place of the last part.
    last: usize,
    first: usize,
    count: usize,
    /// Of a flow; `None` for packets of no flow.
    flow: Option<u32>,
    /// Takes no more packets.
    closed: bool,
    shape: Option<Shape>,
    /// Total length.
    len: usize,
    next_seq: u32,
    /// The first packet's checksum was seen to be right.
    verified: bool,
    push: bool,
}

/// Where a joinable packet's parts lie.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    version: u8,
    protocol: u8,
    upper: usize,
    payload: usize,
    /// Payload octets.
    size: usize,
}

impl Coalescer {
    /// A coalescer for a device that takes such superpackets.
    pub const fn new(joins: Joins) -> Self {
        Self { joins, trains: Vec::new(), parts: Vec::new(), headers: Vec::new() }
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    /// Adds the packet at `range` of the arena, whose headers are `inner`.
    pub fn push(&mut self, arena: &[u8], range: Range<usize>, inner: &InnerHeader) {
        let Some(packet) = arena.get(range.clone()) else { return };
        let flow = flow_of(inner).filter(|_| self.joins != Joins::Nothing);
        let joins_udp = self.joins == Joins::TcpUdp;
        let shape = Shape::of(packet, inner).filter(|shape| joins_udp || shape.protocol == protocol::TCP);
        let (seq, push) = shape.map_or((0, false), |shape| shape.sequence(packet));
        let place = self.parts.len();
        if let Some(flow) = flow
            && let Some(train) = self.trains.iter_mut().rev().take(LOOK_BACK).find(|t| t.flow == Some(flow))
        {
            let next = shape.filter(|shape| {
                let head = self.parts.get(train.first).and_then(|(head, _)| arena.get(head.clone()));
                head.is_some_and(|head| train.takes(head, packet, *shape, seq))
            });
            if let Some(shape) = next {
                if let Some((_, link)) = self.parts.get_mut(train.last) {
                    *link = Some(place);
                }
                train.append(place, shape, push);
                self.parts.push((range, None));
                return;
            }
            train.closed = true;
        }
        self.trains.push(Train {
            last: place,
            first: place,
            count: 1,
            flow,
            closed: push || shape.is_none(),
            shape,
            len: packet.len(),
            next_seq: seq.wrapping_add(shape.map_or(0, |s| s.size as u32)),
            verified: false,
            push,
        });
        self.parts.push((range, None));
    }

    /// Hands out every train as a list of slices, the header for the device first, in the order of arrival, with the
    /// number of packets in it. The batch is empty afterwards.
    pub fn flush(&mut self, arena: &mut [u8], mut emit: impl FnMut(&[IoSlice<'_>], usize)) {
        self.headers.clear();
        for train in &self.trains {
            if train.count > 1
                && let Some((head, _)) = self.parts.get(train.first)
                && let Some(head) = arena.get_mut(head.clone())
            {
                train.write_headers(head);
            }
            self.headers.push(train.vnet().to_bytes());
        }
        let mut slices = Vec::with_capacity(MAX_PARTS + 1);
        for (train, vnet) in self.trains.iter().zip(&self.headers) {
            slices.clear();
            slices.push(IoSlice::new(vnet));
            let mut at = Some(train.first);
            let mut skip = 0;
            while let Some((range, next)) = at.and_then(|at| self.parts.get(at)) {
                slices.push(IoSlice::new(arena.get(range.start + skip..range.end).unwrap_or(&[])));
                skip = train.shape.map_or(0, |shape| shape.payload);
                at = *next;
            }
            emit(&slices, train.count);
        }
        self.trains.clear();
        self.parts.clear();
    }
}

impl Train {
    /// Whether `packet` continues the train that `head` began.
    fn takes(&mut self, head: &[u8], packet: &[u8], shape: Shape, seq: u32) -> bool {
        let Some(first) = self.shape else { return false };
        let fits = !self.closed
            && self.count < MAX_PARTS
            && self.len + shape.size <= MAX_LEN
            && shape.size <= first.size
            && Shape { size: 0, ..shape } == Shape { size: 0, ..first }
            && (shape.protocol == protocol::UDP || seq == self.next_seq)
            && first.same_headers(head, packet, self.count)
            && shape.checksum_is_right(packet);
        if fits && !self.verified {
            self.verified = first.checksum_is_right(head);
        }
        fits && self.verified
    }

    fn append(&mut self, place: usize, shape: Shape, push: bool) {
        self.last = place;
        self.count += 1;
        self.len += shape.size;
        self.next_seq = self.next_seq.wrapping_add(shape.size as u32);
        self.push |= push;
        // A short packet or a push ends a train, as in the kernel.
        self.closed = push || self.shape.is_some_and(|first| shape.size < first.size);
    }

    fn vnet(&self) -> VnetHeader {
        let Some(shape) = self.shape.filter(|_| self.count > 1) else { return VnetHeader::PLAIN };
        let (gso, csum_offset) = match (shape.protocol, shape.version) {
            (protocol::UDP, _) => (Gso::Udp, UDP_CHECKSUM_AT),
            (_, 4) => (Gso::TcpV4, TCP_CHECKSUM_AT),
            _ => (Gso::TcpV6, TCP_CHECKSUM_AT),
        };
        VnetHeader {
            needs_csum: true,
            gso,
            hdr_len: shape.payload as u16,
            gso_size: shape.size as u16,
            csum_start: shape.upper as u16,
            csum_offset: csum_offset as u16,
        }
    }

    /// Lengths, push flag and partial checksum of the superpacket, written into its first packet. The slices exist, the
    /// shape was taken from them.
    fn write_headers(&self, head: &mut [u8]) -> Option<()> {
        let shape = self.shape?;
        let upper_len = u16::try_from(self.len - shape.upper).ok()?;
        let pseudo = pseudo_header(shape.addresses(head)?, shape.protocol, upper_len).folded();
        let (ip, upper) = head.split_at_mut_checked(shape.upper)?;
        if shape.version == 4 {
            store(ip.get_mut(2..)?, u16::try_from(self.len).ok()?.to_be_bytes())?;
            sum_ipv4_header(ip)?;
        } else {
            store(ip.get_mut(4..)?, upper_len.to_be_bytes())?;
        }
        if shape.protocol == protocol::TCP {
            if self.push {
                *upper.get_mut(TCP_FLAGS_AT)? |= TCP_PSH;
            }
            store(upper.get_mut(TCP_CHECKSUM_AT..)?, pseudo)
        } else {
            store(upper.get_mut(4..)?, upper_len.to_be_bytes())?;
            store(upper.get_mut(UDP_CHECKSUM_AT..)?, pseudo)
        }
    }
}

impl Shape {
    /// The shape of a packet that may be joined with others.
    fn of(packet: &[u8], inner: &InnerHeader) -> Option<Self> {
        let version = packet.first()? >> 4;
        let plain_ip = match version {
            // No options, and neither a fragment nor followed by fragments. A superpacket gets a new header checksum, so
            // a damaged header must not come into one.
            4 => {
                inner.header_len == 20
                    && *packet.get(6)? & 0x3F == 0
                    && *packet.get(7)? == 0
                    && Sum::default().octets(packet.get(..20)?).is_valid()
            }
            _ => inner.header_len == 40,
        };
        if !plain_ip {
            return None;
        }
        let upper = inner.header_len;
        let payload = match inner.protocol {
            protocol::TCP => {
                let flags = packet.get(upper + TCP_FLAGS_AT)?;
                let len = usize::from(packet.get(upper + 12)? >> 4) * 4;
                if flags & !TCP_PSH != TCP_ACK || len < 20 {
                    return None;
                }
                upper + len
            }
            protocol::UDP => {
                let claimed = usize::from(u16::from_be_bytes(*packet.get(upper + 4..)?.first_chunk::<2>()?));
                // Zero is "no checksum", which a superpacket cannot say.
                if claimed != packet.len() - upper
                    || packet.get(upper + UDP_CHECKSUM_AT..upper + 8)? == [0, 0]
                {
                    return None;
                }
                upper + UDP_HEADER_LEN
            }
            _ => return None,
        };
        let size = packet.len().checked_sub(payload).filter(|size| *size > 0)?;
        Some(Self { version, protocol: inner.protocol, upper, payload, size })
    }

    /// Sequence number and push flag of a TCP segment.
    fn sequence(&self, packet: &[u8]) -> (u32, bool) {
        if self.protocol != protocol::TCP {
            return (0, false);
        }
        let upper = packet.get(self.upper..).unwrap_or(&[]);
        let seq = upper.get(4..).and_then(|s| s.first_chunk::<4>()).map_or(0, |s| u32::from_be_bytes(*s));
        (seq, upper.get(TCP_FLAGS_AT).is_some_and(|flags| flags & TCP_PSH != 0))
    }

    /// Whether the headers agree in all that a superpacket has but once. `packet` is number `count` behind `head`.
    fn same_headers(&self, head: &[u8], packet: &[u8], count: usize) -> bool {
        let same = |range: Range<usize>| head.get(range.clone()) == packet.get(range);
        let ip = match self.version {
            // TOS; flags; TTL and protocol; addresses. With "don't fragment" the identification does not matter, else
            // it must count up, as it will when the superpacket is cut again.
            4 => {
                same(0..2) && same(6..10) && same(12..20) && {
                    let id = |p: &[u8]| {
                        p.get(4..).and_then(|s| s.first_chunk::<2>()).map_or(0, |s| u16::from_be_bytes(*s))
                    };
                    head.get(6).is_some_and(|flags| flags & 0x40 != 0)
                        || id(packet) == id(head).wrapping_add(count as u16)
                }
            }
            _ => same(0..4) && same(6..40),
        };
        let upper = self.upper;
        ip && same(upper..upper + 4)
            && (self.protocol == protocol::UDP
                // Acknowledgement, header length; window; urgent pointer and options. Flags are all the same but push.
                || same(upper + 8..upper + 13) && same(upper + 14..upper + 16) && same(upper + 18..self.payload))
    }

    fn addresses<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        if self.version == 4 { packet.get(12..20) } else { packet.get(8..40) }
    }

    fn checksum_is_right(&self, packet: &[u8]) -> bool {
        let sum = || -> Option<Sum> {
            let upper = packet.get(self.upper..)?;
            let pseudo =
                pseudo_header(self.addresses(packet)?, self.protocol, u16::try_from(upper.len()).ok()?);
            Some(pseudo.octets(upper))
        };
        sum().is_some_and(Sum::is_valid)
    }
}

/// A number for the flow of a TCP or UDP packet. Equal numbers of different flows cost only a missed chance.
fn flow_of(inner: &InnerHeader) -> Option<u32> {
    if !is_segmentable(inner.protocol) {
        return None;
    }
    let fold = |addr: std::net::IpAddr| match addr {
        std::net::IpAddr::V4(a) => u32::from(a),
        std::net::IpAddr::V6(a) => {
            let bits = u128::from(a);
            [0, 32, 64, 96].into_iter().fold(0u32, |sum, shift| sum.rotate_left(5) ^ (bits >> shift) as u32)
        }
    };
    let (source, destination) = inner.ports?;
    let ports = u32::from(source) << 16 | u32::from(destination);
    let mixed = fold(inner.src).wrapping_mul(0x9E37_79B1) ^ fold(inner.dst).rotate_left(16) ^ ports;
    Some(mixed.wrapping_mul(0x85EB_CA77) ^ u32::from(inner.protocol))
}

#[cfg(test)]
mod tests;
