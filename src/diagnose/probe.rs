//! Whether UDP reaches a peer and comes back: a datagram to each of its IKE ports, which any IKEv2 answers, and what the
//! network says to it.
//!
//! The datagram is an IKE header of major version 3, to which a peer answers which version it speaks (RFC 7296 §2.5), and
//! which begins nothing. It is not what a peer demands of honest ones, so that silence alone proves nothing.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};

/// How often a datagram is sent, and how long an answer is waited for each time: a peer of our own kind answers such a
/// datagram once in a second.
const TRIES: u32 = 3;
const WAIT: Duration = Duration::from_millis(1200);
/// How often the socket is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// What became of the datagrams to one port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Echo {
    /// The peer answers.
    Answer,
    /// Nobody listens there.
    PortUnreachable,
    /// This router, or the peer itself, says that the host or the network cannot be reached.
    Unreachable(Option<IpAddr>),
    /// This one says that it may not be.
    Prohibited(Option<IpAddr>),
    /// This host refuses to send it.
    RefusedHere,
    /// Nothing came back.
    Silence,
    /// The datagram could not be sent for another reason.
    Unsent(String),
}

/// What became of the datagrams to a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probed {
    /// UDP 500.
    pub ike: Echo,
    /// UDP 4500.
    pub natt: Echo,
}

/// Probes both ports at the same time.
pub fn probe(own: Option<IpAddr>, peer: IpAddr) -> Probed {
    std::thread::scope(|scope| {
        let natt = scope.spawn(|| echo(own, SocketAddr::new(peer, 4500), true));
        let ike = echo(own, SocketAddr::new(peer, 500), false);
        let natt = natt.join().unwrap_or_else(|_| Echo::Unsent("the probe failed".to_owned()));
        Probed { ike, natt }
    })
}

/// Sends one datagram as large as the link takes, which makes routers tell if the way beyond takes less.
pub fn push(own: Option<IpAddr>, peer: IpAddr, link_mtu: u32) {
    let headers: u32 = if peer.is_ipv4() { 28 } else { 48 };
    let size = usize::try_from(link_mtu.saturating_sub(headers)).unwrap_or(0).min(9000);
    let Ok(socket) = connect(own, SocketAddr::new(peer, 4500)) else { return };
    // What cannot be sent tells as much: the kernel knows the way's MTU already.
    let _ = socket.send(&vec![0xff; size]);
    std::thread::sleep(Duration::from_millis(150));
}

fn connect(own: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let own = own.filter(|own| own.is_ipv4() == to.is_ipv4()).unwrap_or(any);
    let socket = UdpSocket::bind(SocketAddr::new(own, 0))?;
    socket.set_nonblocking(true)?;
    let told = if to.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)
    };
    told.map_err(io::Error::from)?;
    socket.connect(to)?;
    Ok(socket)
}

fn echo(own: Option<IpAddr>, to: SocketAddr, natt: bool) -> Echo {
    let socket = match connect(own, to) {
        Ok(socket) => socket,
        Err(e) => return unsent(&e),
    };
    let message = message(natt);
    for _ in 0..TRIES {
        // An error of the datagram before it may be told here, and says nothing of this one.
        if let Err(e) = socket.send(&message) {
            match queued(&socket) {
                Some(echo) => return echo,
                None => return unsent(&e),
            }
        }
        let until = Instant::now() + WAIT;
        while Instant::now() < until {
            if let Some(echo) = queued(&socket) {
                return echo;
            }
            let mut buffer = [0u8; 512];
            match socket.recv(&mut buffer) {
                Ok(_) => return Echo::Answer,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(LOOK),
                Err(_) => {}
            }
        }
    }
    Echo::Silence
}

fn unsent(e: &io::Error) -> Echo {
    match e.raw_os_error() {
        Some(libc::EPERM) => Echo::RefusedHere,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => Echo::Unreachable(None),
        Some(libc::EACCES) => Echo::Prohibited(None),
        _ => Echo::Unsent(e.to_string()),
    }
}

/// What the network has said to what was sent.
fn queued(socket: &UdpSocket) -> Option<Echo> {
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let mut none = [io::IoSliceMut::new(&mut [])];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut none, Some(&mut space), flags).ok()?;
    message.cmsgs().ok()?.find_map(|m| match m {
        ControlMessageOwned::Ipv4RecvErr(e, from) => {
            let from = from.map(|a| IpAddr::from(u32::from_be(a.sin_addr.s_addr).to_be_bytes()));
            icmp(&e, from)
        }
        ControlMessageOwned::Ipv6RecvErr(e, from) => {
            icmp6(&e, from.map(|a| IpAddr::from(a.sin6_addr.s6_addr)))
        }
        _ => None,
    })
}

/// ICMP (RFC 792, RFC 1812 §5.2.7.1).
fn icmp(e: &libc::sock_extended_err, from: Option<IpAddr>) -> Option<Echo> {
    if e.ee_origin != libc::SO_EE_ORIGIN_ICMP {
        // This host says so itself: nobody answers on the link.
        let unreachable = e.ee_errno == libc::EHOSTUNREACH as u32 || e.ee_errno == libc::ENETUNREACH as u32;
        return unreachable.then_some(Echo::Unreachable(None));
    }
    match (e.ee_type, e.ee_code) {
        (3, 3) => Some(Echo::PortUnreachable),
        (3, 9 | 10 | 13) => Some(Echo::Prohibited(from)),
        (3, 4) => None,
        (3, _) => Some(Echo::Unreachable(from)),
        _ => None,
    }
}

/// ICMPv6 (RFC 4443 §3.1).
fn icmp6(e: &libc::sock_extended_err, from: Option<IpAddr>) -> Option<Echo> {
    if e.ee_origin != libc::SO_EE_ORIGIN_ICMP6 {
        let unreachable = e.ee_errno == libc::EHOSTUNREACH as u32 || e.ee_errno == libc::ENETUNREACH as u32;
        return unreachable.then_some(Echo::Unreachable(None));
    }
    match (e.ee_type, e.ee_code) {
        (1, 4) => Some(Echo::PortUnreachable),
        (1, 1 | 5 | 6) => Some(Echo::Prohibited(from)),
        (1, _) => Some(Echo::Unreachable(from)),
        _ => None,
    }
}

/// An IKE header of major version 3, with the non-ESP marker on the port that is shared with ESP.
fn message(natt: bool) -> Vec<u8> {
    let mut out = if natt { vec![0; 4] } else { Vec::new() };
    // An initiator's SPI that says what it is.
    out.extend_from_slice(b"diagnose");
    out.extend_from_slice(&[0; 8]);
    // No payload, version 3.0, IKE_SA_INIT, from the initiator, message 0, 28 octets.
    out.extend_from_slice(&[0, 0x30, 34, 0x08, 0, 0, 0, 0, 0, 0, 0, 28]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(origin: u8, kind: u8, code: u8) -> libc::sock_extended_err {
        libc::sock_extended_err {
            ee_errno: 0,
            ee_origin: origin,
            ee_type: kind,
            ee_code: code,
            ee_pad: 0,
            ee_info: 0,
            ee_data: 0,
        }
    }

    #[test]
    fn what_routers_say_is_told_apart() {
        let router: Option<IpAddr> = Some([192, 0, 2, 254].into());
        let of = |code| icmp(&error(libc::SO_EE_ORIGIN_ICMP, 3, code), router);
        assert_eq!(of(3), Some(Echo::PortUnreachable));
        assert_eq!(of(13), Some(Echo::Prohibited(router)));
        assert_eq!(of(1), Some(Echo::Unreachable(router)));
        assert_eq!(of(4), None, "a matter of size");
        assert_eq!(icmp6(&error(libc::SO_EE_ORIGIN_ICMP6, 1, 1), router), Some(Echo::Prohibited(router)));
        assert_eq!(icmp6(&error(libc::SO_EE_ORIGIN_ICMP6, 2, 0), router), None);
    }

    #[test]
    fn a_port_that_is_closed_says_so_and_one_that_answers_too() {
        let here: IpAddr = [127, 0, 0, 1].into();
        let server = UdpSocket::bind((here, 0)).unwrap();
        let to = server.local_addr().unwrap();
        let answers = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((len, buffer[17]), (28, 0x30));
            server.send_to(b"x", from).unwrap();
        });
        assert_eq!(echo(Some(here), to, false), Echo::Answer);
        answers.join().unwrap();
        assert_eq!(echo(Some(here), to, false), Echo::PortUnreachable);
    }

    #[test]
    fn the_message_is_a_header_that_says_its_length() {
        assert_eq!(message(false).len(), 28);
        assert_eq!(message(true)[..4], [0; 4]);
    }
}
