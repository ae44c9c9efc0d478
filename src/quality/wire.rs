//! A probe as a packet: an ICMP or ICMPv6 echo request (RFC 792, RFC 4443 §4.1), which every host answers, with what
//! cygnet needs in its data.
//!
//! ```text
//!   0        8        16       20       24         28        32
//!   | MAGIC  | token  | tunnel | number | received | padding |
//! ```
//!
//! The *token* is drawn by each life of a daemon, so that it knows answers as its own and takes them off the way of the
//! host's other packets. A gateway of cygnet that receives a probe for one of its own addresses answers it by the tunnel by
//! which it came, whatever tunnel its packets take otherwise, and writes how many probes of this tunnel it has *received*;
//! other hosts leave that zero.

use std::net::IpAddr;

use cygnet_model::TunnelId;

const MAGIC: [u8; 8] = *b"cygnetQ1";
const DATA_LEN: usize = 32;
const ICMP_LEN: usize = 8;
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
/// Echo request and echo reply of each protocol.
const V4_ECHO: (u8, u8) = (8, 0);
const V6_ECHO: (u8, u8) = (128, 129);
/// IANA protocol numbers.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// CS6, network control: probes are few and must tell of the tunnel, not of the traffic that fills it.
const TOS: u8 = 0xC0;
const HOP_LIMIT: u8 = 64;

/// What a probe says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Whose it is.
    pub token: u64,
    /// The sender's number of the tunnel that it is to go by.
    pub tunnel: TunnelId,
    /// Its number among the tunnel's probes.
    pub seq: u32,
}

/// A probe that was received, or the answer to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Somebody probes a tunnel.
    Request(Probe),
    /// A probe was answered.
    Answer(Probe, Option<u32>),
}

/// Makes a probe; `None` if the addresses are of different families.
pub fn request(probe: &Probe, source: IpAddr, target: IpAddr) -> Option<Vec<u8>> {
    let mut data = [0; DATA_LEN];
    let fields: [&[u8]; 4] =
        [&MAGIC, &probe.token.to_be_bytes(), &probe.tunnel.0.to_be_bytes(), &probe.seq.to_be_bytes()];
    let mut at = 0;
    for field in fields {
        data.get_mut(at..at + field.len())?.copy_from_slice(field);
        at += field.len();
    }
    let [a, b, ..] = probe.token.to_be_bytes();
    let [_, _, c, d] = probe.seq.to_be_bytes();
    packet(source, target, false, [a, b, c, d], &data)
}

/// Reads a packet whose upper protocol begins at `header_len`; `None` if it is none of these.
pub fn read(packet: &[u8], protocol: u8, header_len: usize) -> Option<Seen> {
    let (request, reply) = match protocol {
        ICMP => V4_ECHO,
        ICMPV6 => V6_ECHO,
        _ => return None,
    };
    let (head, data) = packet.get(header_len..)?.split_first_chunk::<ICMP_LEN>()?;
    let data = data.first_chunk::<DATA_LEN>()?;
    let (magic, rest) = data.split_first_chunk::<8>()?;
    let (token, rest) = rest.split_first_chunk::<8>()?;
    let (tunnel, rest) = rest.split_first_chunk::<4>()?;
    let (seq, rest) = rest.split_first_chunk::<4>()?;
    let received = u32::from_be_bytes(*rest.first_chunk::<4>()?);
    if *magic != MAGIC {
        return None;
    }
    let probe = Probe {
        token: u64::from_be_bytes(*token),
        tunnel: TunnelId(u32::from_be_bytes(*tunnel)),
        seq: u32::from_be_bytes(*seq),
    };
    match head {
        [kind, 0, ..] if *kind == request => Some(Seen::Request(probe)),
        [kind, 0, ..] if *kind == reply => Some(Seen::Answer(probe, (received > 0).then_some(received))),
        _ => None,
    }
}

/// The answer to a request with these headers that [`read`] knows, from `source` to `target`, with how many were received.
pub fn answer(
    asked: &[u8],
    header_len: usize,
    source: IpAddr,
    target: IpAddr,
    received: u32,
) -> Option<Vec<u8>> {
    let upper = asked.get(header_len..)?;
    let [_, _, _, _, id @ ..] = *upper.first_chunk::<ICMP_LEN>()?;
    let mut data = *upper.get(ICMP_LEN..)?.first_chunk::<DATA_LEN>()?;
    data.get_mut(24..28)?.copy_from_slice(&received.to_be_bytes());
    packet(source, target, true, id, &data)
}

fn packet(
    source: IpAddr,
    target: IpAddr,
    reply: bool,
    id: [u8; 4],
    data: &[u8; DATA_LEN],
) -> Option<Vec<u8>> {
    let upper_len = ICMP_LEN + DATA_LEN;
    let which = |(request, answer): (u8, u8)| if reply { answer } else { request };
    let mut upper = vec![0; ICMP_LEN];
    upper.get_mut(4..8)?.copy_from_slice(&id);
    upper.extend_from_slice(data);
    let mut out = Vec::with_capacity(V6_LEN + upper_len);
    let sum = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let [len_a, len_b] = u16::try_from(V4_LEN + upper_len).ok()?.to_be_bytes();
            // DF: a probe is small, and no fragment of one would be of use.
            out.extend_from_slice(&[0x45, TOS, len_a, len_b, 0, 0, 0x40, 0, HOP_LIMIT, ICMP, 0, 0]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&target.octets());
            let header_sum = fold(sum_of(&out)).to_be_bytes();
            out.get_mut(10..12)?.copy_from_slice(&header_sum);
            *upper.first_mut()? = which(V4_ECHO);
            sum_of(&upper)
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let [len_a, len_b] = u16::try_from(upper_len).ok()?.to_be_bytes();
            out.extend_from_slice(&[
                0x60 | TOS >> 4,
                (TOS & 0x0F) << 4,
                0,
                0,
                len_a,
                len_b,
                ICMPV6,
                HOP_LIMIT,
            ]);
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&target.octets());
            *upper.first_mut()? = which(V6_ECHO);
            // The pseudo-header (RFC 8200 §8.1).
            let pseudo = sum_of(&source.octets()) + sum_of(&target.octets());
            pseudo + u32::try_from(upper_len).ok()? + u32::from(ICMPV6) + sum_of(&upper)
        }
        _ => return None,
    };
    upper.get_mut(2..4)?.copy_from_slice(&fold(sum).to_be_bytes());
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
mod tests {
    use cygnet_esp::inner::InnerHeader;

    use super::*;

    const PROBE: Probe = Probe { token: 0x0123_4567_89AB_CDEF, tunnel: TunnelId(7), seq: 70_000 };

    fn ends() -> [(IpAddr, IpAddr); 2] {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        [(ip("10.1.0.1"), ip("10.2.0.2")), (ip("fd01::1"), ip("fd02::ffff:2"))]
    }

    /// The sum over everything with its checksum is zero (RFC 1071 §1).
    fn sums_up(packet: &[u8], header: &InnerHeader) -> bool {
        let upper = &packet[header.header_len..];
        match header.src {
            IpAddr::V4(_) => fold(sum_of(&packet[..header.header_len])) == 0 && fold(sum_of(upper)) == 0,
            IpAddr::V6(_) => {
                let pseudo = sum_of(&packet[8..40]) + upper.len() as u32 + u32::from(ICMPV6);
                fold(pseudo + sum_of(upper)) == 0
            }
        }
    }

    #[test]
    fn a_probe_is_an_echo_request_whose_answer_is_known() {
        for (source, target) in ends() {
            let packet = request(&PROBE, source, target).unwrap();
            let header = InnerHeader::parse(&packet).unwrap();
            assert_eq!((header.src, header.dst, header.total_len), (source, target, packet.len()));
            assert!(sums_up(&packet, &header));
            assert_eq!(read(&packet, header.protocol, header.header_len), Some(Seen::Request(PROBE)));

            let answer = answer(&packet, header.header_len, target, source, 3).unwrap();
            let header = InnerHeader::parse(&answer).unwrap();
            assert_eq!((header.src, header.dst), (target, source));
            assert!(sums_up(&answer, &header));
            let seen = read(&answer, header.protocol, header.header_len);
            assert_eq!(seen, Some(Seen::Answer(PROBE, Some(3))));
        }
        let [(v4, _), (v6, _)] = ends();
        assert_eq!(request(&PROBE, v4, v6), None);
    }

    /// A host that answers changes nothing but type and checksum.
    #[test]
    fn the_answer_of_another_host_tells_no_count() {
        let [(source, target), _] = ends();
        let mut packet = request(&PROBE, source, target).unwrap();
        packet[V4_LEN] = V4_ECHO.1;
        assert_eq!(read(&packet, ICMP, V4_LEN), Some(Seen::Answer(PROBE, None)));
    }

    #[test]
    fn what_is_cut_short_or_of_others_is_no_probe() {
        let [(source, target), _] = ends();
        let packet = request(&PROBE, source, target).unwrap();
        for len in 0..packet.len() - 4 {
            assert_eq!(read(&packet[..len], ICMP, V4_LEN), None);
        }
        for at in [V4_LEN, V4_LEN + 1, V4_LEN + ICMP_LEN] {
            let mut other = packet.clone();
            other[at] ^= 0x40;
            assert_eq!(read(&other, ICMP, V4_LEN), None, "octet {at}");
        }
        assert_eq!(read(&packet, 17, V4_LEN), None);
        assert_eq!(read(&packet, ICMP, usize::MAX / 2), None);
        assert_eq!(answer(&packet, packet.len(), target, source, 1), None);
    }
}
