//! The UDP sockets that carry ESP and IKE, and what the kernel can do for them.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::sys::socket::{setsockopt, sockopt};

/// Octets of socket buffers: several superpackets must fit while a thread is busy.
const BUFFER: usize = 8 << 20;

/// A socket on port 4500 of one of our addresses.
#[derive(Debug)]
pub(super) struct EspSocket {
    local: SocketAddr,
    socket: UdpSocket,
    gso: AtomicBool,
    gro: bool,
}

impl EspSocket {
    /// Prepares a bound socket. `local` is the address under which SAs will name it.
    pub fn new(local: SocketAddr, socket: UdpSocket, offload: bool) -> io::Result<Self> {
        match local {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::IpRecvTos, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvTClass, &true)?,
        }
        // More than the system's limit needs a capability, which we may lack in a container; less still works.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER));
        let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &BUFFER));
        let gro = offload && setsockopt(&socket, sockopt::UdpGroSegment, &true).is_ok();
        // Setting the option to zero changes nothing and shows whether the kernel knows it.
        let gso = offload && setsockopt(&socket, sockopt::UdpGsoSegment, &0).is_ok();
        Ok(Self { local, socket, gso: AtomicBool::new(gso), gro })
    }

    /// The address under which SAs name it.
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether trains of datagrams may be sent in one.
    pub fn gso(&self) -> bool {
        self.gso.load(Relaxed)
    }

    /// The device below cannot cut trains after all.
    pub fn without_gso(&self) {
        self.gso.store(false, Relaxed);
    }

    /// Whether the kernel joins what it receives.
    pub const fn gro(&self) -> bool {
        self.gro
    }
}

impl AsFd for EspSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
