//! Probes of tunnels while the kernel forwards ESP: for each family a raw socket for ICMP, one that hears the peers' probes, and one for UDP.
//!
//! The kernel's policies take a probe into the tunnel by its addresses, like any packet of the host. Where several tunnels have these
//! addresses, the socket gets a policy of its own while a probe leaves, which names the SA; and what comes of the peers' probes that
//! name theirs is handed on, to be answered by the same tunnel. The kernel answers them as well, by the tunnel that carries.

mod filter;
mod udp;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use cygnet_esp::inner::InnerHeader;
use cygnet_model::tunnel::Mark;
use cygnet_xfrm::policy::Policy;
use cygnet_xfrm::sockopt::{clear_policies, set_policy};
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg,
    sendmsg, setsockopt, sockopt,
};
use socket2::Socket;

use crate::plane::probing::Answer;
use crate::quality::wire::{self, HEAD_LEN, Probe, Seen};
use crate::sys::icmp::{Echo, echo_socket};

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
    /// Gets answers to our probes, and sends.
    icmp: Socket,
    /// Gets the peers' probes, so that whoever sends many takes no room from the answers.
    asked: Socket,
    udp: Socket,
}

/// How a packet finds its tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lead {
    /// By the host's policies, as a packet with this mark.
    Policies(Option<Mark>),
    /// By the SA that this policy names, whatever the host's policies say.
    Sa(Policy),
}

/// What came by the sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// One of our probes was answered.
    Answer(Answer),
    /// Somebody probes one of our addresses, and says by which SA.
    Asked {
        /// The probe.
        probe: Probe,
        /// Who asks.
        from: IpAddr,
        /// The address that is probed.
        to: IpAddr,
    },
}

impl Family {
    fn open(v6: bool, token: u64) -> io::Result<Self> {
        let behind = if v6 { filter::Behind::Nothing } else { filter::Behind::Ipv4 };
        let raw = |echo, token| {
            let socket = echo_socket(v6, echo)?;
            filter::attach(&socket, behind, token)?;
            tell_own_address(&socket, v6)?;
            Ok::<_, io::Error>(socket)
        };
        let (icmp, asked) = (raw(Echo::Reply, Some(token))?, raw(Echo::Request, None)?);
        Ok(Self { icmp, asked, udp: udp::open(v6, token)? })
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

    /// Descriptors that become readable when something comes.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.families().flat_map(|family| [family.icmp.as_fd(), family.asked.as_fd(), family.udp.as_fd()])
    }

    /// Sends a packet that [`wire`] made. Its source must be an address of this host. Another lead than the host's policies for
    /// packets without a mark needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` if the source is none of its addresses.
    pub fn send(&self, packet: &[u8], lead: &Lead) -> io::Result<()> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidInput);
        let header = InnerHeader::parse(packet).ok_or_else(malformed)?;
        let upper = packet.get(header.header_len..).ok_or_else(malformed)?;
        let family = if header.dst.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
        let family = family.ok_or(io::ErrorKind::Unsupported)?;
        let (socket, data, port) = match (header.protocol, header.ports) {
            // The kernel gives it a header, with the socket's own port.
            (UDP, Some((_, port))) => (&family.udp, upper.get(HEAD_LEN..).ok_or_else(malformed)?, port),
            _ => (&family.icmp, upper, 0),
        };
        let send = || send_from(socket, data, header.src, SocketAddr::new(header.dst, port));
        match lead {
            Lead::Policies(None) => send(),
            Lead::Policies(Some(mark)) => {
                setsockopt(socket, sockopt::Mark, &mark.value)?;
                let sent = send();
                sent.and(setsockopt(socket, sockopt::Mark, &0).map_err(io::Error::from))
            }
            Lead::Sa(policy) => {
                set_policy(socket.as_fd(), policy)?;
                let sent = send();
                sent.and(clear_policies(socket.as_fd(), header.dst.is_ipv6()))
            }
        }
    }

    /// Takes what has come, so many at most of each socket, of the peers' probes a part of that. Says whether there may be more.
    pub fn receive(&self, most: usize) -> (Vec<Heard>, bool) {
        let (mut out, mut more) = (Vec::new(), false);
        for (family, protocol) in self.families().zip([ICMP, ICMPV6]) {
            let mut read = |packet: &[u8], from: SocketAddr, to| {
                out.extend(self.read(packet, protocol, from.ip(), to));
            };
            more |= take(&family.icmp, most, &mut read) >= most;
            let few = most.div_ceil(4);
            more |= take(&family.asked, few, &mut read) >= few;
            let taken = take(&family.udp, most, |data, from, to| {
                out.extend(udp::read(data, self.token, from, to).map(Heard::Answer));
            });
            more |= taken >= most;
        }
        (out, more)
    }

    /// What an echo request or reply says. IPv4 comes with its header (raw(7)), IPv6 without (RFC 3542 §3).
    fn read(&self, packet: &[u8], protocol: u8, from: IpAddr, to: IpAddr) -> Option<Heard> {
        let header_len = if protocol == ICMP { usize::from(packet.first()? & 0x0F) * 4 } else { 0 };
        match wire::read(protocol, packet.get(header_len..)?)? {
            Seen::Answer(reply) if reply.probe.token == self.token => {
                Some(Heard::Answer(Answer::new(&reply, from, to)))
            }
            Seen::Request(probe) if probe.by.is_some() => Some(Heard::Asked { probe, from, to }),
            Seen::Answer(_) | Seen::Request(_) => None,
        }
    }
}

/// Lets the kernel say to which address a packet came.
fn tell_own_address(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    Ok(())
}

/// Takes what has come by a socket, so many at most: what, from whom, and to which address. Returns how many there were.
fn take(socket: &Socket, most: usize, mut each: impl FnMut(&[u8], SocketAddr, IpAddr)) -> usize {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    for taken in 0..most {
        let mut buffer = [0; LONGEST];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags);
        // "Nothing there". Errors of ICMP are not told to a socket that is not connected: such a probe is lost.
        let Ok(message) = message else { return taken };
        let to = message.cmsgs().into_iter().flatten().find_map(own_address);
        let from = message.address.as_ref().and_then(peer);
        let len = message.bytes;
        if let (Some(data), Some(from), Some(to)) = (buffer.get(..len), from, to) {
            each(data, from, to);
        }
    }
    most
}

fn peer(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}

fn own_address(info: ControlMessageOwned) -> Option<IpAddr> {
    match info {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes())),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    }
}

/// Sends by a socket that is bound to no address, from one of them.
fn send_from(socket: &Socket, data: &[u8], source: IpAddr, target: SocketAddr) -> io::Result<()> {
    let (fd, flags, data) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT, &[IoSlice::new(data)]);
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    use cygnet_model::{Spi, TunnelId};

    use super::*;
    use crate::plane::probing::By;
    use crate::quality::Method;

    const PLAIN: Lead = Lead::Policies(None);
    const PROBE: Probe = Probe { token: 77, tunnel: TunnelId(5), seq: 9, by: None };

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

    fn heard(sockets: &EchoSockets, what: &str) -> Vec<Heard> {
        let began = Instant::now();
        loop {
            let (heard, _) = sockets.receive(10);
            if !heard.is_empty() {
                return heard;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "nothing of {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// This host answers itself, from and to two addresses of its loopback network.
    #[test]
    fn a_probe_leaves_from_its_source_and_its_answer_is_known() {
        let Some(sockets) = opened() else { return };
        for (source, target) in [("127.0.0.9", "127.0.0.10"), ("::1", "::1")] {
            let packet = wire::request(&PROBE, Method::Icmp, ip(source), ip(target)).unwrap();
            if sockets.send(&packet, &PLAIN).is_err() && source == "::1" {
                eprintln!("no IPv6 here");
                continue;
            }
            let by = By { method: Method::Icmp, from: ip(target), to: ip(source) };
            let expected = Answer { tunnel: PROBE.tunnel, seq: PROBE.seq, received: None, by };
            assert_eq!(heard(&sockets, source), [Heard::Answer(expected)]);
        }
        // Of others nothing is sent.
        let foreign = wire::request(&PROBE, Method::Icmp, ip("203.0.113.77"), ip("127.0.0.1")).unwrap();
        assert!(sockets.send(&foreign, &PLAIN).is_err());
    }

    /// The kernel answers as well. What names no SA, or is no probe, is left to it alone.
    #[test]
    fn a_probe_that_names_its_sa_is_heard_by_whom_it_asks() {
        let Some(sockets) = opened() else { return };
        for (source, target) in [("127.0.0.9", "127.0.0.10"), ("::1", "::1")] {
            let probe = Probe { by: Spi::new(4711), ..PROBE };
            let packet = wire::request(&probe, Method::Icmp, ip(source), ip(target)).unwrap();
            if sockets.send(&packet, &PLAIN).is_err() && source == "::1" {
                eprintln!("no IPv6 here");
                continue;
            }
            let asked = Heard::Asked { probe, from: ip(source), to: ip(target) };
            let by = By { method: Method::Icmp, from: ip(target), to: ip(source) };
            let answer = Answer { tunnel: PROBE.tunnel, seq: PROBE.seq, received: None, by };
            let mut both = Vec::new();
            while both.len() < 2 {
                both.extend(heard(&sockets, source));
            }
            assert!(both.contains(&asked) && both.contains(&Heard::Answer(answer)), "{both:?}");
            // The answer to it that tells how many came is known as such.
            let reply = wire::echo_reply(&probe, ip(target), ip(source), 9).unwrap();
            sockets.send(&reply, &PLAIN).unwrap();
            assert_eq!(heard(&sockets, source), [Heard::Answer(Answer { received: Some(9), ..answer })]);
        }
    }

    /// Sockets that let in any echo hear both, ours none of them.
    #[test]
    fn pings_of_others_wake_nobody() {
        let Some(sockets) = opened() else { return };
        for (source, target) in [("127.0.0.9", "127.0.0.10"), ("::1", "::1")] {
            let mut packet = wire::request(&PROBE, Method::Icmp, ip(source), ip(target)).unwrap();
            // One more here and one less there: the checksum stays right.
            let magic = packet.len() - wire::DATA_LEN;
            packet[magic + 5] += 1;
            packet[magic + 7] -= 1;
            let any = [Echo::Request, Echo::Reply].map(|echo| echo_socket(source == "::1", echo).unwrap());
            any.iter().for_each(|socket| tell_own_address(socket, source == "::1").unwrap());
            if sockets.send(&packet, &PLAIN).is_err() && source == "::1" {
                eprintln!("no IPv6 here");
                continue;
            }
            let (began, mut echoes) = (Instant::now(), [0, 0]);
            while echoes != [1, 1] {
                let taken: Vec<usize> = any.iter().map(|socket| take(socket, 10, |_, _, _| ())).collect();
                echoes = [echoes[0] + taken[0], echoes[1] + taken[1]];
                assert!(began.elapsed() < Duration::from_secs(10), "{echoes:?} of {source}");
            }
            assert_eq!(sockets.receive(10).0, [], "{source}");
        }
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
            sockets.send(&packet, &PLAIN).unwrap();
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
            let nothing = (&family.udp).read(&mut [0; LONGEST]).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock, "what has not our token wakes nobody");
            let stranger = UdpSocket::bind((ip(target), 0)).unwrap();
            stranger.send_to(&data[..len], from).unwrap();
            assert_eq!(service.send_to(&data[..len], from).unwrap(), len);
            let by = By { method: Method::Udp { port: at.port() }, from: at.ip(), to: ip(source) };
            let expected = Answer { tunnel: PROBE.tunnel, seq: PROBE.seq, received: None, by };
            assert_eq!(heard(&sockets, source), [Heard::Answer(expected)]);
            assert_eq!(sockets.receive(10).0, []);
        }
    }
}
