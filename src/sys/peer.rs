//! The supplementary groups of the process at the other end of a Unix socket, as the kernel knows them (Linux 4.13): those
//! that it had when it connected, whatever any directory of users says.

use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc::{self, c_void, gid_t, socklen_t};

/// NGROUPS_MAX: nobody can have more.
const MAX: usize = 65536;

/// The groups, without the primary one unless it is among them as well.
///
/// # Errors
/// What the kernel says.
pub fn groups(socket: &impl AsFd) -> io::Result<Vec<gid_t>> {
    let mut groups: Vec<gid_t> = vec![0; 32];
    loop {
        let size = groups.len() * size_of::<gid_t>();
        let mut length = socklen_t::try_from(size).unwrap_or(0);
        // SAFETY: the descriptor is open through the call; `groups` is writable for `length` octets, of which the kernel says
        // in `length` how many it wrote, or would.
        let answer = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS as c_int,
                groups.as_mut_ptr().cast::<c_void>(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<gid_t>();
        match Errno::result(answer) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err(Errno::ERANGE) if groups.len() < count && count <= MAX => groups.resize(count, 0),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_groups_of_this_process_are_those_of_its_peer() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut ours: Vec<gid_t> = nix::unistd::getgroups().unwrap().iter().map(|g| g.as_raw()).collect();
        let mut told = groups(&one).unwrap();
        ours.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, ours);
    }
}
