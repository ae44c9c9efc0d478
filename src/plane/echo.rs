//! Probes of tunnels while the kernel forwards ESP: ICMP by one raw socket for each family. The kernel's policies take a
//! probe into the tunnel by its addresses, like any packet of the host; so it goes by the tunnel that carries these addresses,
//! and of several with the same networks only one can be probed.

use std::io::{self, IoSlice, Read};
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use cygnet_esp::inner::InnerHeader;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg};
use socket2::Socket;

use crate::quality::wire::{self, Seen};
use crate::sys::icmp::echo_socket;

/// Longer packets are none of ours.
const LONGEST: usize = 256;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The sockets.
pub struct EchoSockets {
    v4: Socket,
    /// `None` where the host has no IPv6.
    v6: Option<Socket>,
}

impl EchoSockets {
    /// Opens them. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        Ok(Self { v4: echo_socket(false)?, v6: echo_socket(true).ok() })
    }

    /// Descriptors that become readable when answers come.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(&self.v4), self.v6.as_ref()].into_iter().flatten().map(AsFd::as_fd)
    }

    /// Sends a packet that [`wire::request`] made. Its source must be an address of this host.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` if the source is none of its addresses.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidInput);
        let header = InnerHeader::parse(packet).ok_or_else(malformed)?;
        let upper = [IoSlice::new(packet.get(header.header_len..).ok_or_else(malformed)?)];
        let flags = MsgFlags::MSG_DONTWAIT;
        match (header.src, header.dst, &self.v6) {
            (IpAddr::V4(source), IpAddr::V4(target), _) => {
                let address = |octets| libc::in_addr { s_addr: u32::from_ne_bytes(octets) };
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: address(source.octets()),
                    ipi_addr: address([0; 4]),
                };
                let to = SockaddrIn::from(SocketAddrV4::new(target, 0));
                let ancillary = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(self.v4.as_raw_fd(), &upper, &ancillary, flags, Some(&to))?;
            }
            (IpAddr::V6(source), IpAddr::V6(target), Some(v6)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: 0,
                };
                let to = SockaddrIn6::from(SocketAddrV6::new(target, 0, 0, 0));
                let ancillary = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(v6.as_raw_fd(), &upper, &ancillary, flags, Some(&to))?;
            }
            _ => return Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
        Ok(())
    }

    /// Takes the answers that have come, so many at most of each family.
    pub fn receive(&self, most: usize) -> Vec<Seen> {
        let mut out = Vec::new();
        for (socket, protocol) in [(Some(&self.v4), ICMP), (self.v6.as_ref(), ICMPV6)] {
            let Some(mut socket) = socket else { continue };
            let mut buffer = [0; LONGEST];
            for _ in 0..most {
                // "Nothing there", or an ICMP error about a probe, which counts as lost then.
                let Ok(len) = socket.read(&mut buffer) else { break };
                out.extend(buffer.get(..len).and_then(|packet| read(packet, protocol)));
            }
        }
        out
    }
}

/// IPv4 comes with its header (raw(7)), IPv6 without (RFC 3542 §3).
fn read(packet: &[u8], protocol: u8) -> Option<Seen> {
    let header_len = if protocol == ICMP { usize::from(packet.first()? & 0x0F) * 4 } else { 0 };
    wire::read(packet, protocol, header_len)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use cygnet_model::TunnelId;

    use super::*;
    use crate::quality::wire::Probe;

    /// This host answers itself, from and to two addresses of its loopback network.
    #[test]
    fn a_probe_leaves_from_its_source_and_its_answer_is_known() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: raw sockets need root");
            return;
        }
        let sockets = EchoSockets::open().unwrap();
        let probe = Probe { token: 77, tunnel: TunnelId(5), seq: 9 };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (source, target) in [("127.0.0.9", "127.0.0.10"), ("::1", "::1")] {
            let packet = wire::request(&probe, ip(source), ip(target)).unwrap();
            if sockets.send(&packet).is_err() && source == "::1" {
                eprintln!("no IPv6 here");
                continue;
            }
            let began = Instant::now();
            let seen = loop {
                // Others may ping at the same time.
                let seen = sockets
                    .receive(10)
                    .into_iter()
                    .find(|seen| matches!(seen, Seen::Answer(p, _) if *p == probe));
                if let Some(seen) = seen {
                    break seen;
                }
                assert!(began.elapsed() < Duration::from_secs(10), "no answer to {source}");
                std::thread::sleep(Duration::from_millis(10));
            };
            assert_eq!(seen, Seen::Answer(probe, None));
        }
        // Of others nothing is sent.
        let foreign = wire::request(&probe, ip("203.0.113.77"), ip("127.0.0.1")).unwrap();
        assert!(sockets.send(&foreign).is_err());
    }
}
