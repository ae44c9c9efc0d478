//! A TUN device with the kernel's segmentation offloads.
//!
//! Each packet read or written has a `struct virtio_net_hdr` in front ([`cygnet_esp::segment::VnetHeader`]).

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

mod ioctl {
    // TUNSETIFF reads a `struct ifreq`, although its number says "int".
    nix::ioctl_write_ptr!(set_iff, b'T', 202, libc::c_int);
    nix::ioctl_write_int!(set_offload, b'T', 208);
}

/// Which superpackets the device hands out and takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunOffload {
    /// None.
    None,
    /// TCP.
    Tcp,
    /// TCP and UDP (Linux 6.2).
    TcpUdp,
}

/// A TUN device; it disappears when this is dropped.
#[derive(Debug)]
pub struct Tun {
    file: File,
    offload: TunOffload,
}

impl Tun {
    /// Creates the device `name` and switches on as much of `wanted` as the kernel knows. Needs CAP_NET_ADMIN. Reads do
    /// not block.
    pub fn create(name: &str, wanted: TunOffload) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
            },
        };
        // The last octet stays zero.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a name for a network interface"));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which lives through the call.
        unsafe { ioctl::set_iff(file.as_raw_fd(), (&raw const request).cast()) }?;
        let offload = [TunOffload::TcpUdp, TunOffload::Tcp]
            .into_iter()
            .filter(|offload| *offload == wanted || wanted == TunOffload::TcpUdp)
            .find(|offload| set_offload(&file, *offload).is_ok())
            .unwrap_or(TunOffload::None);
        Ok(Self { file, offload })
    }

    /// What is switched on.
    pub const fn offload(&self) -> TunOffload {
        self.offload
    }

    /// Reads one packet with its header; `WouldBlock` if there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet, its header first.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.file).write_vectored(parts)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn set_offload(file: &File, offload: TunOffload) -> io::Result<()> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let flags = match offload {
        TunOffload::None => 0,
        TunOffload::Tcp => tcp,
        TunOffload::TcpUdp => tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6,
    };
    // SAFETY: the descriptor is open; the argument is a number, not a pointer.
    unsafe { ioctl::set_offload(file.as_raw_fd(), flags.into()) }?;
    Ok(())
}
