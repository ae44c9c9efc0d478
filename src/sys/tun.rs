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
    nix::ioctl_read!(features, b'T', 207, libc::c_uint);
}

/// `IFF_BACKPRESSURE` (`linux/if_tun.h`, Linux 7.3): a full ring stops the queue, so that packets wait in the qdisc and are dropped
/// by its rules, instead of at the ring.
const BACKPRESSURE: libc::c_int = 0x80;

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
    /// Creates the device `name` and switches on as much of `wanted` as the kernel knows, and that a full device pushes back
    /// if it can. Needs CAP_NET_ADMIN. Reads do not block.
    pub fn create(name: &str, wanted: TunOffload) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | backpressure(&file);
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
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

/// The flag, if the kernel has it: one that does not takes any flag and does nothing.
fn backpressure(file: &File) -> libc::c_int {
    let mut features: libc::c_uint = 0;
    // SAFETY: the descriptor is open, and the kernel writes one number, which lives through the call.
    match unsafe { ioctl::features(file.as_raw_fd(), &raw mut features) } {
        Ok(_) => features as libc::c_int & BACKPRESSURE,
        Err(_) => 0,
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

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    const DATAGRAM: usize = 100;
    /// What its ring has room for.
    const RING: usize = 500;

    /// How many of `count` datagrams that are sent while nobody reads can be read afterwards.
    fn kept(count: usize) -> (usize, bool) {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let tun = Tun::create("push0", TunOffload::None).unwrap();
        let up = "ip link set push0 up && ip addr add 10.9.0.1/24 dev push0 && ip link show push0";
        let link = Command::new("sh").args(["-c", up]).output().unwrap();
        assert!(link.status.success(), "{}", String::from_utf8_lossy(&link.stderr));
        println!("{}", String::from_utf8_lossy(&link.stdout));
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        for _ in 0..count {
            socket.send_to(&[7; DATAGRAM], "10.9.0.2:9").unwrap();
        }
        let (mut came, mut last) = (0, Instant::now());
        while last.elapsed() < Duration::from_millis(300) {
            // Header of the device, IPv4, UDP; the host sends other things as well.
            match tun.read(&mut [0; 2048]) {
                Ok(len) => {
                    came += usize::from(len == 10 + 28 + DATAGRAM);
                    last = Instant::now();
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        (came, backpressure(&tun.file) != 0)
    }

    #[test]
    fn a_full_device_pushes_back_where_the_kernel_can() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: network namespaces need root");
            return;
        }
        let (came, can) = std::thread::spawn(|| kept(RING + 150)).join().unwrap();
        println!("{came} of {} datagrams; the kernel has backpressure: {can}", RING + 150);
        if can {
            assert_eq!(came, RING + 150, "the qdisc keeps what the ring has no room for");
        } else {
            assert!(came <= RING, "{came}");
        }
    }
}
