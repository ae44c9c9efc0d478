//! Raw ICMP sockets that get echo requests and replies and nothing else, by a filter in the kernel.

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
const V4_ECHO: [u32; 2] = [0, 8];
const V6_ECHO: [u32; 2] = [128, 129];

/// Opens a socket of a family that does not block. Needs CAP_NET_RAW.
///
/// # Errors
/// What the kernel says.
pub fn echo_socket(v6: bool) -> io::Result<Socket> {
    let (domain, protocol) =
        if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
    if v6 {
        let mut blocked = [u32::MAX; 8];
        for kind in V6_ECHO {
            if let Some(word) = blocked.get_mut((kind / 32) as usize) {
                *word &= !(1 << (kind % 32));
            }
        }
        filter(&socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &blocked)?;
    } else {
        let [reply, request] = V4_ECHO.map(|kind| 1 << kind);
        filter(&socket, libc::SOL_RAW, ICMP_FILTER, &[!(reply | request)])?;
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
