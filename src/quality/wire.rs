//! A probe as a packet: an ICMP or ICMPv6 echo request (RFC 792, RFC 4443 §4.1), which every host answers, or a UDP datagram
//! to an Echo service (RFC 862), for hosts behind firewalls that let no pings through; with what cygnet needs in its data.
//!
//! ```text
//!   0        8        16       20       24         28     30        32    36
//!   | MAGIC  | token  | tunnel | number | received | port | padding | SPI |
//! ```
//!
//! The *token* is drawn by each life of a daemon, so that it knows answers as its own and takes them off the way of the
//! host's other packets. A gateway of cygnet that receives a probe for one of its own addresses answers it by the tunnel by
//! which it came, whatever tunnel its packets take otherwise, and writes how many probes of this tunnel it has *received*;
//! other hosts leave that zero.
//!
//! The kernel does not tell a program by which SA a packet came. So where several tunnels have the same networks, an echo request
//! names the *SPI* of an SA of its tunnel, and the daemon of a peer whose kernel forwards ESP answers by that tunnel. Others
//! do not look there.
//!
//! An Echo service sends back what it got, so that nothing but its ports tells a datagram's direction. The data name the
//! *port* that is probed: a datagram to it asks, one from it answers, and no answer is ever answered.

use std::net::IpAddr;

use cygnet_esp::inner::InnerHeader;
use cygnet_model::{Spi, TunnelId};

use super::Method;

/// The first octets of a probe's data.
pub const MAGIC: [u8; 8] = *b"cygnetQ1";
/// Octets of a probe's data, but for the SPI.
pub const DATA_LEN: usize = 32;
/// Octets of the header before it, which ICMP and UDP have alike.
pub const HEAD_LEN: usize = 8;
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
/// Echo request and echo reply of each protocol.
const V4_ECHO: (u8, u8) = (8, 0);
const V6_ECHO: (u8, u8) = (128, 129);
/// IANA protocol numbers.
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// CS6, network control: probes are few and must tell of the tunnel, not of the traffic that fills it.
const TOS: u8 = 0xC0;
const HOP_LIMIT: u8 = 64;
/// Dynamic ports (RFC 6335 §6), of which each life of a daemon sends its datagrams from one.
const FIRST_SOURCE_PORT: u16 = 0xC000;

/// What a probe says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Whose it is.
    pub token: u64,
    /// The sender's number of the tunnel that it is to go by.
    pub tunnel: TunnelId,
    /// Its number among the tunnel's probes.
    pub seq: u32,
    /// An outbound SA of its tunnel, where several tunnels could carry it. Datagrams and answers do not tell it.
    pub by: Option<Spi>,
}

/// A probe that was received, or the answer to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Somebody probes a tunnel.
    Request(Probe),
    /// A probe was answered.
    Answer(Reply),
}

/// What the answer to a probe says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The probe.
    pub probe: Probe,
    /// How many the other end has received, if it tells.
    pub received: Option<u32>,
    /// How the probe was sent, as far as the answer shows.
    pub method: Method,
}

/// Makes a probe; `None` if the addresses are of different families.
pub fn request(probe: &Probe, method: Method, source: IpAddr, target: IpAddr) -> Option<Vec<u8>> {
    let (head, port) = match method {
        Method::Icmp => (Head::echo(false, probe), 0),
        Method::Udp { port } => (Head::Udp { from: source_port(probe.token, port), to: port }, port),
    };
    let mut data = data(probe, 0, port);
    if let (Method::Icmp, Some(spi)) = (method, probe.by) {
        data.extend_from_slice(&spi.value().to_be_bytes());
    }
    packet(source, target, head, &data)
}

/// The answer to an echo request, with how many were received.
pub fn echo_reply(probe: &Probe, source: IpAddr, target: IpAddr, received: u32) -> Option<Vec<u8>> {
    packet(source, target, Head::echo(true, probe), &data(probe, received, 0))
}

fn data(probe: &Probe, received: u32, port: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(DATA_LEN + size_of::<Spi>());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&probe.token.to_be_bytes());
    for word in [probe.tunnel.0, probe.seq, received] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(&port.to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    out
}

/// Whether a packet may be a probe, or the answer to one, by its headers alone; most of the others are told by that.
pub const fn may_be(header: &InnerHeader) -> bool {
    let datagram = header.protocol == UDP
        // Later fragments have no ports.
        && header.ports.is_some()
        && header.total_len == header.header_len + HEAD_LEN + DATA_LEN;
    datagram || header.is_icmp_echo()
}

/// Reads a packet's upper protocol, from its header on; `None` if it is neither a probe nor the answer to one.
pub fn read(protocol: u8, upper: &[u8]) -> Option<Seen> {
    let (head, data) = upper.split_first_chunk::<HEAD_LEN>()?;
    let (probe, received, port) = read_data(data)?;
    let answer = |method| Seen::Answer(Reply { probe, received, method });
    let echo = |(request, reply): (u8, u8)| match head {
        [kind, 0, ..] if *kind == request => Some(Seen::Request(Probe { by: read_spi(data), ..probe })),
        [kind, 0, ..] if *kind == reply => Some(answer(Method::Icmp)),
        _ => None,
    };
    match protocol {
        ICMP => echo(V4_ECHO),
        ICMPV6 => echo(V6_ECHO),
        UDP => {
            let [from_a, from_b, to_a, to_b, len_a, len_b, ..] = *head;
            let [from, to, len] = [[from_a, from_b], [to_a, to_b], [len_a, len_b]].map(u16::from_be_bytes);
            if usize::from(len) != HEAD_LEN + DATA_LEN || from == to {
                return None;
            }
            if to == port {
                return Some(Seen::Request(probe));
            }
            (from == port && to == source_port(probe.token, port)).then(|| answer(Method::Udp { port }))
        }
        _ => None,
    }
}

/// Reads a probe's data: the probe, how many were received, and the port that is probed, which is zero of ICMP.
pub fn read_data(data: &[u8]) -> Option<(Probe, Option<u32>, u16)> {
    let data = data.first_chunk::<DATA_LEN>()?;
    let (magic, rest) = data.split_first_chunk::<8>()?;
    let (token, rest) = rest.split_first_chunk::<8>()?;
    let (tunnel, rest) = rest.split_first_chunk::<4>()?;
    let (seq, rest) = rest.split_first_chunk::<4>()?;
    let (received, rest) = rest.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes(*rest.first_chunk::<2>()?);
    if *magic != MAGIC {
        return None;
    }
    let probe = Probe {
        token: u64::from_be_bytes(*token),
        tunnel: TunnelId(u32::from_be_bytes(*tunnel)),
        seq: u32::from_be_bytes(*seq),
        by: None,
    };
    let received = u32::from_be_bytes(*received);
    Some((probe, (received > 0).then_some(received), port))
}

fn read_spi(data: &[u8]) -> Option<Spi> {
    Spi::new(u32::from_be_bytes(*data.get(DATA_LEN..)?.first_chunk()?))
}

/// The answer to a request with these headers that [`read`] knows, with how many were received.
pub fn answer(asked: &[u8], header: &InnerHeader, received: u32) -> Option<Vec<u8>> {
    let (head, data) = asked.get(header.header_len..)?.split_first_chunk::<HEAD_LEN>()?;
    let mut data = *data.first_chunk::<DATA_LEN>()?;
    data.get_mut(24..28)?.copy_from_slice(&received.to_be_bytes());
    let head = match header.protocol {
        UDP => {
            let (from, to) = header.ports?;
            Head::Udp { from: to, to: from }
        }
        _ => {
            let [_, _, _, _, id @ ..] = *head;
            Head::Echo { reply: true, id }
        }
    };
    packet(header.dst, header.src, head, &data)
}

/// The port from which the datagrams to a port are sent, which is another one.
fn source_port(token: u64, port: u16) -> u16 {
    let [.., a, b] = token.to_be_bytes();
    let own = FIRST_SOURCE_PORT | u16::from_be_bytes([a, b]);
    if own == port { own ^ 1 } else { own }
}

/// The header of the upper protocol.
#[derive(Clone, Copy)]
enum Head {
    /// Of an ICMP or ICMPv6 echo, with identifier and sequence number.
    Echo { reply: bool, id: [u8; 4] },
    /// Of a datagram, with its ports.
    Udp { from: u16, to: u16 },
}

impl Head {
    fn echo(reply: bool, probe: &Probe) -> Self {
        let [a, b, ..] = probe.token.to_be_bytes();
        let [_, _, c, d] = probe.seq.to_be_bytes();
        Self::Echo { reply, id: [a, b, c, d] }
    }

    /// Protocol, octets with a checksum of zero, and where that stands.
    fn octets(self, v4: bool) -> (u8, [u8; HEAD_LEN], usize) {
        match self {
            Self::Echo { reply, id: [a, b, c, d] } => {
                let (protocol, (request, answer)) = if v4 { (ICMP, V4_ECHO) } else { (ICMPV6, V6_ECHO) };
                (protocol, [if reply { answer } else { request }, 0, 0, 0, a, b, c, d], 2)
            }
            Self::Udp { from, to } => {
                let ([a, b], [c, d]) = (from.to_be_bytes(), to.to_be_bytes());
                (UDP, [a, b, c, d, 0, (HEAD_LEN + DATA_LEN) as u8, 0, 0], 6)
            }
        }
    }
}

fn packet(source: IpAddr, target: IpAddr, head: Head, data: &[u8]) -> Option<Vec<u8>> {
    let (protocol, opening, checksum_at) = head.octets(source.is_ipv4());
    let mut upper = Vec::with_capacity(HEAD_LEN + data.len());
    upper.extend_from_slice(&opening);
    upper.extend_from_slice(data);
    let mut out = Vec::with_capacity(V6_LEN + upper.len());
    // What follows the addresses in the pseudo-headers of RFC 768 and RFC 8200 §8.1.
    let pseudo = u32::try_from(upper.len()).ok()? + u32::from(protocol);
    let sum = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let [len_a, len_b] = u16::try_from(V4_LEN + upper.len()).ok()?.to_be_bytes();
            // DF: a probe is small, and no fragment of one would be of use.
            out.extend_from_slice(&[0x45, TOS, len_a, len_b, 0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&target.octets());
            let header_sum = fold(sum_of(&out)).to_be_bytes();
            out.get_mut(10..12)?.copy_from_slice(&header_sum);
            // ICMP's checksum covers no addresses.
            if protocol == ICMP { 0 } else { pseudo + sum_of(&source.octets()) + sum_of(&target.octets()) }
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let [len_a, len_b] = u16::try_from(upper.len()).ok()?.to_be_bytes();
            let tos = [0x60 | TOS >> 4, (TOS & 0x0F) << 4];
            out.extend_from_slice(&[tos[0], tos[1], 0, 0, len_a, len_b, protocol, HOP_LIMIT]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&target.octets());
            pseudo + sum_of(&source.octets()) + sum_of(&target.octets())
        }
        _ => return None,
    };
    let checksum = match fold(sum + sum_of(&upper)) {
        // Zero would say that there is none (RFC 768).
        0 if protocol == UDP => u16::MAX,
        checksum => checksum,
    };
    upper.get_mut(checksum_at..checksum_at + 2)?.copy_from_slice(&checksum.to_be_bytes());
    out.extend_from_slice(&upper);
    Some(out)
}

/// The sum of 16-bit words (RFC 1071) of few octets, of which there is an even number.
fn sum_of(octets: &[u8]) -> u32 {
    octets.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xFFFF) + (sum >> 16);
    let twice = (once & 0xFFFF) + (once >> 16);
    !u16::try_from(twice).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
