//! Raw ICMP sockets that get echo requests, or replies, and nothing else: a filter in the kernel, so that other messages do not wake us.

use std::ffi::c_int;
use std::io;
use std::mem::size_of_val;
use std::os::fd::AsRawFd;

use nix::libc::{self, c_void, socklen_t};
use socket2::{Domain, Protocol, Socket, Type};

/// `ICMP_FILTER` (`linux/icmp.h`): a set bit blocks the type of its number.
const ICMP_FILTER: c_int = 1;
/// `ICMPV6_FILTER` (`linux/icmpv6.h`): likewise, of 256 types.
const ICMPV6_FILTER: c_int = 1;

/// What a socket gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Echo {
    /// Echo requests.
    Request,
    /// Echo replies.
    Reply,
}

impl Echo {
    /// The type of the message, of ICMPv6 (RFC 4443 §4) or ICMP (RFC 792).
    const fn number(self, v6: bool) -> u32 {
        match (self, v6) {
            (Self::Request, false) => 8,
            (Self::Reply, false) => 0,
            (Self::Request, true) => 128,
            (Self::Reply, true) => 129,
        }
    }
}

/// Opens a socket of a family that does not block. Needs CAP_NET_RAW.
///
/// # Errors
/// What the kernel says.
pub fn echo_socket(v6: bool, echo: Echo) -> io::Result<Socket> {
    let (domain, protocol) =
        if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
    let number = echo.number(v6);
    if v6 {
        let mut blocked = [u32::MAX; 8];
        if let Some(word) = blocked.get_mut((number / 32) as usize) {
            *word &= !(1 << (number % 32));
        }
        filter(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &blocked)?;
    } else {
        filter(&socket, libc::SOL_RAW, ICMP_FILTER, &[!(1 << number)])?;
    }
    Ok(socket)
}

fn filter(socket: &Socket, level: c_int, name: c_int, blocked: &[u32]) -> io::Result<()> {
    let len = socklen_t::try_from(size_of_val(blocked)).unwrap_or(0);
    // SAFETY: the descriptor is open, and `blocked` is readable for `len` octets while the call lasts; the kernel keeps none
    // of it.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, blocked.as_ptr().cast::<c_void>(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
