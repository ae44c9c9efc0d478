//! Socket options of IPsec that nix does not have. The only unsafe code of this crate.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_xfrm::constants::{XFRM_POLICY_ALLOW, XFRM_POLICY_IN, XFRM_POLICY_OUT};
use netlink_packet_xfrm::{LifetimeConfig, Selector, UserPolicyInfo};

use crate::policy::Policy;
use crate::{convert, sa::emitted};

/// `linux/udp.h`; libc has neither.
const UDP_ENCAP: libc::c_int = 100;
const UDP_ENCAP_ESPINUDP: libc::c_int = 2;

/// Lets the packets of this socket pass in clear text whatever the policies say, in both directions: IKE must not be
/// caught by the tunnels that it makes, and neither may encapsulated ESP that arrives on it. `like` is any address of
/// the socket's family.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN; `ENOPROTOOPT` without XFRM.
pub fn bypass_policies(socket: BorrowedFd<'_>, like: IpAddr) -> io::Result<()> {
    let (level, option) = policy_option(like.is_ipv6());
    for direction in [XFRM_POLICY_IN, XFRM_POLICY_OUT] {
        let policy = UserPolicyInfo {
            selector: Selector { family: convert::family(like), ..Selector::default() },
            lifetime_cfg: LifetimeConfig::default(),
            direction,
            action: XFRM_POLICY_ALLOW,
            ..UserPolicyInfo::default()
        };
        set(socket, level, option, &emitted(&policy))?;
    }
    Ok(())
}

/// Gives a socket a policy of its own, in place of one of the same direction: what it sends goes by it, whatever the SPD says
/// (`net/xfrm/xfrm_policy.c`, `xfrm_sk_policy_lookup`). The mark and the priority do not count.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN; `ENOPROTOOPT` without XFRM.
pub fn set_policy(socket: BorrowedFd<'_>, policy: &Policy) -> io::Result<()> {
    let (level, option) = policy_option(policy.key.selector.source.0.is_ipv6());
    set(socket, level, option, &policy.as_socket_option())
}

/// Takes its policies from a socket, those of both directions.
///
/// # Errors
/// As [`set_policy`].
pub fn clear_policies(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let (level, option) = policy_option(v6);
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads nothing through a null pointer with the
    // length zero (`xfrm_user_policy`).
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::null(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const fn policy_option(v6: bool) -> (libc::c_int, libc::c_int) {
    if v6 { (libc::IPPROTO_IPV6, libc::IPV6_XFRM_POLICY) } else { (libc::IPPROTO_IP, libc::IP_XFRM_POLICY) }
}

/// Makes the kernel take ESP out of UDP datagrams that arrive on this socket (RFC 3948); IKE messages still come up
/// with their four zero octets. Such datagrams stop arriving when the socket is closed.
///
/// # Errors
/// `ENOPROTOOPT` on kernels without XFRM.
pub fn enable_esp_in_udp(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_UDP, UDP_ENCAP, &UDP_ENCAP_ESPINUDP.to_ne_bytes())
}

/// Undoes [`enable_esp_in_udp`].
///
/// # Errors
/// `ENOPROTOOPT` on kernels without it.
pub fn disable_esp_in_udp(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::IPPROTO_UDP, UDP_ENCAP, &0i32.to_ne_bytes())
}

fn set(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as it is borrowed; pointer and length are those of one slice, which
    // the kernel only reads during the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
