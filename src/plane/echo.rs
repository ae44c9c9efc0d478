//! Probes of tunnels while the kernel forwards ESP: ICMP by one raw socket for each family, UDP by one more. The kernel's
//! policies take a probe into the tunnel by its addresses, like any packet of the host; so it goes by the tunnel that carries
//! these addresses, and of several with the same networks only one can be probed.

mod udp;

use std::io::{self, IoSlice, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use cygnet_esp::inner::InnerHeader;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg};
use socket2::Socket;

use crate::plane::user::Answer;
use crate::quality::wire::{self, HEAD_LEN, Seen};
use crate::sys::icmp::echo_socket;

/// Longer packets are none of ours.
const LONGEST: usize = 256;
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The sockets.
pub struct EchoSockets {
    token: u64,
    v4: Family,
    /// `None` where the host has no IPv6.
    v6: Option<Family>,
}

/// Those of one family.
struct Family {
    icmp: Socket,
    udp: Socket,
}

impl Family {
    fn open(v6: bool, token: u64) -> io::Result<Self> {
        Ok(Self { icmp: echo_socket(v6)?, udp: udp::open(v6, token)? })
    }
}

impl EchoSockets {
    /// Opens them for probes with this token. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(token: u64) -> io::Result<Self> {
        Ok(Self { token, v4: Family::open(false, token)?, v6: Family::open(true, token).ok() })
    }

    fn families(&self) -> impl Iterator<Item = &Family> {
        std::iter::once(&self.v4).chain(&self.v6)
    }

    /// Descriptors that become readable when answers come.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.families().flat_map(|family| [family.icmp.as_fd(), family.udp.as_fd()])
    }

    /// Sends a packet that [`wire::request`] made. Its source must be an address of this host.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` if the source is none of its addresses.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidInput);
        let header = InnerHeader::parse(packet).ok_or_else(malformed)?;
        let upper = packet.get(header.header_len..).ok_or_else(malformed)?;
        let family = if header.dst.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
        let family = family.ok_or(io::ErrorKind::Unsupported)?;
        match (header.protocol, header.ports) {
            (UDP, Some((_, port))) => {
                let data = upper.get(HEAD_LEN..).ok_or_else(malformed)?;
                udp::send(&family.udp, data, header.src, SocketAddr::new(header.dst, port))
            }
            _ => send_from(&family.icmp, &[IoSlice::new(upper)], header.src, SocketAddr::new(header.dst, 0)),
        }
    }

    /// Takes the answers that have come, so many at most of each socket.
    pub fn receive(&self, most: usize) -> Vec<Answer> {
        let mut out = Vec::new();
        for (family, protocol) in self.families().zip([ICMP, ICMPV6]) {
            let mut socket = &family.icmp;
            let mut buffer = [0; LONGEST];
            for _ in 0..most {
                // "Nothing there", or an ICMP error about a probe, which counts as lost then.
                let Ok(len) = socket.read(&mut buffer) else { break };
                out.extend(buffer.get(..len).and_then(|packet| read(packet, protocol, self.token)));
            }
            udp::receive(&family.udp, self.token, most, &mut out);
        }
        out
    }
}

/// Sends by a socket that is bound to no address, from one of them.
fn send_from(socket: &Socket, data: &[IoSlice<'_>], source: IpAddr, target: SocketAddr) -> io::Result<()> {
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    match (source, target) {
        (IpAddr::V4(source), SocketAddr::V4(target)) => {
            let address = |octets| libc::in_addr { s_addr: u32::from_ne_bytes(octets) };
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: address(source.octets()),
                ipi_addr: address([0; 4]),
            };
            sendmsg(
                fd,
                data,
                &[ControlMessage::Ipv4PacketInfo(&info)],
                flags,
                Some(&SockaddrIn::from(target)),
            )?;
        }
        (IpAddr::V6(source), SocketAddr::V6(target)) => {
            let info =
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 };
            sendmsg(
                fd,
                data,
                &[ControlMessage::Ipv6PacketInfo(&info)],
                flags,
                Some(&SockaddrIn6::from(target)),
            )?;
        }
        _ => return Err(io::ErrorKind::Unsupported.into()),
    }
    Ok(())
}

/// An echo reply to one of our probes. IPv4 comes with its header (raw(7)), IPv6 without (RFC 3542 §3).
fn read(packet: &[u8], protocol: u8, token: u64) -> Option<Answer> {
    let header_len = if protocol == ICMP { usize::from(packet.first()? & 0x0F) * 4 } else { 0 };
    match wire::read(protocol, packet.get(header_len..)?)? {
        // Of an echo reply the addresses say nothing more.
        Seen::Answer(reply) if reply.probe.token == token => {
            Some(Answer::new(&reply, Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()))
        }
        Seen::Answer(_) | Seen::Request(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use cygnet_model::TunnelId;

    use super::*;
    use crate::plane::user::By;
    use crate::quality::Method;
    use crate::quality::wire::Probe;

    const PROBE: Probe = Probe { token: 77, tunnel: TunnelId(5), seq: 9 };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn opened() -> Option<EchoSockets> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: raw sockets need root");
            return None;
        }
        Some(EchoSockets::open(PROBE.token).unwrap())
    }

    fn answered(sockets: &EchoSockets, what: &str) -> Vec<Answer> {
        let began = Instant::now();
        loop {
            let answers = sockets.receive(10);
            if !answers.is_empty() {
                return answers;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "no answer to {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// This host answers itself, from and to two addresses of its loopback network.
    #[test]
    fn a_probe_leaves_from_its_source_and_its_answer_is_known() {
        let Some(sockets) = opened() else { return };
        for (source, target) in [("127.0.0.9", "127.0.0.10"), ("::1", "::1")] {
            let packet = wire::request(&PROBE, Method::Icmp, ip(source), ip(target)).unwrap();
            if sockets.send(&packet).is_err() && source == "::1" {
                eprintln!("no IPv6 here");
                continue;
            }
            let expected = Answer { tunnel: PROBE.tunnel, seq: PROBE.seq, received: None, by: By::Icmp };
            assert_eq!(answered(&sockets, source), [expected]);
        }
        // Of others nothing is sent.
        let foreign = wire::request(&PROBE, Method::Icmp, ip("203.0.113.77"), ip("127.0.0.1")).unwrap();
        assert!(sockets.send(&foreign).is_err());
    }

    /// An Echo service gives back what it gets; somebody else tries to be it, or to be heard at all.
    #[test]
    fn a_datagram_is_answered_by_the_port_that_was_probed_alone() {
        let Some(sockets) = opened() else { return };
        for (source, target) in [("127.0.0.9", "127.0.0.10"), ("::1", "::1")] {
            let Ok(service) = UdpSocket::bind((ip(target), 0)) else {
                eprintln!("no IPv6 here");
                continue;
            };
            let at = service.local_addr().unwrap();
            let packet =
                wire::request(&PROBE, Method::Udp { port: at.port() }, ip(source), ip(target)).unwrap();
            sockets.send(&packet).unwrap();
            let mut data = [0; LONGEST];
            let (len, from) = service.recv_from(&mut data).unwrap();
            assert_eq!(from.ip(), ip(source));
            for changed in [0, 7, 8, 15] {
                let mut other = data;
                other[changed] ^= 1;
                service.send_to(&other[..len], from).unwrap();
            }
            service.send_to(&[], from).unwrap();
            let family = if from.is_ipv4() { &sockets.v4 } else { sockets.v6.as_ref().unwrap() };
            let heard = (&family.udp).read(&mut [0; LONGEST]).unwrap_err();
            assert_eq!(heard.kind(), io::ErrorKind::WouldBlock, "what has not our token wakes nobody");
            let stranger = UdpSocket::bind((ip(target), 0)).unwrap();
            stranger.send_to(&data[..len], from).unwrap();
            assert_eq!(service.send_to(&data[..len], from).unwrap(), len);
            let by = By::Udp { from: at, to: ip(source) };
            let expected = Answer { tunnel: PROBE.tunnel, seq: PROBE.seq, received: None, by };
            assert_eq!(answered(&sockets, source), [expected]);
            assert_eq!(sockets.receive(10), []);
        }
    }
}
