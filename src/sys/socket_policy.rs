//! The IPsec policy of one socket: what it sends goes by it, whatever the host's policies say (`net/xfrm/xfrm_policy.c`,
//! `xfrm_sk_policy_lookup`).

use std::ffi::c_int;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc::{self, c_void, socklen_t};
use socket2::Socket;

/// `linux/in.h`.
const IP_XFRM_POLICY: c_int = 17;
/// `linux/in6.h`.
const IPV6_XFRM_POLICY: c_int = 35;

/// Gives a socket the policy that [`cygnet_xfrm::policy::Policy::as_socket_option`] made, in place of one of the same direction. Needs
/// CAP_NET_ADMIN.
///
/// # Errors
/// What the kernel says; `ENOPROTOOPT` if it has no XFRM.
pub fn set(socket: &Socket, v6: bool, policy: &[u8]) -> io::Result<()> {
    let len = socklen_t::try_from(policy.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    option(socket, v6, policy.as_ptr().cast(), len)
}

/// Takes them from it, those of both directions.
///
/// # Errors
/// As [`set`].
pub fn clear(socket: &Socket, v6: bool) -> io::Result<()> {
    option(socket, v6, std::ptr::null(), 0)
}

fn option(socket: &Socket, v6: bool, value: *const c_void, len: socklen_t) -> io::Result<()> {
    let (level, name) =
        if v6 { (libc::IPPROTO_IPV6, IPV6_XFRM_POLICY) } else { (libc::IPPROTO_IP, IP_XFRM_POLICY) };
    // SAFETY: the descriptor is open, and `value` is readable for `len` octets while the call lasts, none of them if it is null;
    // the kernel keeps a copy.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
