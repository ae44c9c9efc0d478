//! Datagrams to Echo services, by one socket for each family. A socket has no port before the first probe leaves; from then on
//! a filter in the kernel lets nothing into it but what bears our token, so that strangers who find the port wake nobody.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::{LONGEST, send_from};
use crate::plane::user::Answer;
use crate::quality::Method;
use crate::quality::wire::{self, HEAD_LEN, MAGIC, Reply};

/// Opens a socket of a family that does not block, and gets nothing but datagrams with this token.
///
/// # Errors
/// What the kernel says.
pub fn open(v6: bool, token: u64) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if v6 {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    socket.attach_filter(&only(token))?;
    Ok(socket)
}

/// Sends a probe's data. The kernel gives it a header, with the socket's own port.
///
/// # Errors
/// What the kernel says.
pub fn send(socket: &Socket, data: &[u8], source: IpAddr, target: SocketAddr) -> io::Result<()> {
    send_from(socket, &[IoSlice::new(data)], source, target)
}

/// Takes the answers that have come, so many at most.
pub fn receive(socket: &Socket, token: u64, most: usize, out: &mut Vec<Answer>) {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    for _ in 0..most {
        let mut buffer = [0; LONGEST];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags);
        // "Nothing there". Errors of ICMP are not told to a socket that is not connected: such a probe is lost.
        let Ok(message) = message else { break };
        let to = message.cmsgs().into_iter().flatten().find_map(own_address);
        let from = message.address.as_ref().and_then(peer);
        let len = message.bytes;
        let (Some(from), Some(to)) = (from, to) else { continue };
        out.extend(buffer.get(..len).and_then(|data| read(data, token, from, to)));
    }
}

/// An answer comes from the port that was probed, to the one from which the socket sent.
fn read(data: &[u8], token: u64, from: SocketAddr, to: IpAddr) -> Option<Answer> {
    let (probe, received, port) = wire::read_data(data)?;
    let reply = Reply { probe, received, method: Method::Udp { port } };
    (probe.token == token && from.port() == port).then(|| Answer::new(&reply, from.ip(), to))
}

fn peer(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port()))))
}

/// To which address a datagram came.
fn own_address(info: ControlMessageOwned) -> Option<IpAddr> {
    match info {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes())),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    }
}

/// A program for the kernel (`linux/filter.h`) that lets pass what has magic and token behind the UDP header, where it begins to
/// read. What is shorter is dropped by the loading itself.
fn only(token: u64) -> [SockFilter; 10] {
    const WORD_AT: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUALS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let [[a, b], [c, d]] = [u64::from_be_bytes(MAGIC), token].map(|v| [(v >> 32) as u32, v as u32]);
    let at = |n: u32| SockFilter::new(WORD_AT, 0, 0, HEAD_LEN as u32 + 4 * n);
    // What is not equal goes to the last step.
    let equals = |word, to_the_last| SockFilter::new(EQUALS, 0, to_the_last, word);
    [
        at(0),
        equals(a, 7),
        at(1),
        equals(b, 5),
        at(2),
        equals(c, 3),
        at(3),
        equals(d, 1),
        SockFilter::new(ANSWER, 0, 0, u32::MAX),
        SockFilter::new(ANSWER, 0, 0, 0),
    ]
}
