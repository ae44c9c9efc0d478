//! Many datagrams in one system call: recvmmsg(2) and sendmmsg(2) with the control messages for segmentation
//! (`UDP_SEGMENT`, `UDP_GRO`) and for DSCP and ECN.
//!
//! nix has both calls, but sends the same control messages with every datagram, while segment sizes differ here.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// Room for the control messages of a datagram: those asked for here and what the socket's owner may have asked for.
const CONTROL_LEN: usize = 160;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// A train of datagrams of one sender, as `UDP_GRO` joins them, or a single one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// Where it lies in the arena.
    pub range: Range<usize>,
    /// Length of each datagram but the last.
    pub segment: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// TOS or traffic class of the outer header.
    pub tos: u8,
}

/// Receives into an arena of slots, one for each datagram of a call.
pub struct Receiver {
    arena: Vec<u8>,
    slot_len: usize,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the raw pointers in `iovecs` and `headers` are written and used within one call of `receive` only.
unsafe impl Send for Receiver {}

impl Receiver {
    /// A receiver of up to `slots` datagrams a call, each up to `slot_len` octets.
    pub fn new(slots: usize, slot_len: usize) -> Self {
        // SAFETY: all of these are C structures for which zero octets are a valid value.
        let (name, iovec, header) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            arena: vec![0; slots * slot_len],
            slot_len,
            names: vec![name; slots],
            controls: vec![Control([0; CONTROL_LEN]); slots],
            iovecs: vec![iovec; slots],
            headers: vec![header; slots],
        }
    }

    /// Where the datagrams of the last call lie.
    pub fn arena(&mut self) -> &mut [u8] {
        &mut self.arena
    }

    /// Receives what is there, without waiting, into at most `limit` slots, and appends it to `out`.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        limit: usize,
        out: &mut Vec<Received>,
    ) -> io::Result<()> {
        let limit = limit.min(self.headers.len());
        let slots = self.arena.chunks_exact_mut(self.slot_len).zip(&mut self.names).zip(&mut self.controls);
        let slots = slots.take(limit);
        for (((slot, name), control), (iovec, header)) in
            slots.zip(self.iovecs.iter_mut().zip(&mut self.headers))
        {
            *iovec = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            header.msg_len = 0;
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL_LEN as _;
            header.msg_hdr.msg_flags = 0;
        }
        // SAFETY: each of the first `limit` headers, of which there are as many, points to a slot, a name and a control
        // buffer of the lengths it states; all of them belong to `self`, are borrowed mutably here, and outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                limit as libc::c_uint,
                // Signed in glibc, unsigned in musl.
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (i, header) in self.headers.iter().take(count).enumerate() {
            // A datagram longer than its slot is not whole; with UDP it cannot be.
            if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
                continue;
            }
            let Some(from) = peer(header) else { continue };
            let len = header.msg_len as usize;
            let (segment, tos) = control_values(header);
            let start = i * self.slot_len;
            out.push(Received {
                range: start..start + len,
                segment: segment.unwrap_or(len).max(1),
                from,
                tos,
            });
        }
        Ok(())
    }
}

fn peer(header: &libc::mmsghdr) -> Option<SocketAddr> {
    let name = &header.msg_hdr;
    // SAFETY: `msg_name` points to a `sockaddr_storage` of the receiver that the kernel has filled with
    // `msg_namelen` octets.
    let addr = unsafe { SockaddrStorage::from_raw(name.msg_name.cast(), Some(name.msg_namelen)) }?;
    if let Some(v4) = addr.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    addr.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()))
}

/// Segment size and TOS from the control messages.
fn control_values(header: &libc::mmsghdr) -> (Option<usize>, u8) {
    let (mut segment, mut tos) = (None, 0);
    // SAFETY: the header's control buffer was filled by the kernel, so that CMSG_FIRSTHDR and CMSG_NXTHDR lead from
    // message to message within it and end with null. The data of these
    // three kinds are one octet, an int, and an int, and nothing is read of a message that is shorter.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&header.msg_hdr);
        // (glibc and musl give `cmsg_len` different types.)
        #[allow(clippy::unnecessary_cast, reason = "necessary with the other C library")]
        while let Some(message) = at.as_ref() {
            let data = libc::CMSG_DATA(at);
            let holds = |octets: usize| message.cmsg_len as usize >= libc::CMSG_LEN(octets as u32) as usize;
            match (message.cmsg_level, message.cmsg_type) {
                _ if !holds(1) => {}
                (libc::IPPROTO_IP, libc::IP_TOS) => tos = data.read(),
                _ if !holds(size_of::<libc::c_int>()) => {}
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    tos = data.cast::<libc::c_int>().read_unaligned() as u8
                }
                _ => {}
            }
            at = libc::CMSG_NXTHDR(&header.msg_hdr, at);
        }
    }
    (segment.filter(|size| *size > 0), tos)
}

/// A datagram to be sent, or a train of datagrams that the kernel shall cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    /// Where it lies in the arena.
    pub range: Range<usize>,
    /// Length of each datagram but the last; `None` for a single one.
    pub segment: Option<u16>,
    /// Where to.
    pub to: SocketAddr,
    /// TOS or traffic class of the outer header.
    pub tos: u8,
}

/// Sends datagrams. Its memory is kept from call to call.
#[derive(Default)]
pub struct Sender {
    names: Vec<SockaddrStorage>,
    controls: Vec<Control>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the raw pointers in `iovecs` and `headers` are written and used within one call of `send` only.
unsafe impl Send for Sender {}

impl Sender {
    /// Sends as many of `datagrams` as the socket takes, without waiting, and returns how many that were. An error means
    /// that the first one was refused.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        arena: &[u8],
        datagrams: &[Outgoing],
    ) -> io::Result<usize> {
        self.names.clear();
        self.names.extend(datagrams.iter().map(|d| SockaddrStorage::from(d.to)));
        self.controls.resize(datagrams.len().max(self.controls.len()), Control([0; CONTROL_LEN]));
        self.iovecs.clear();
        self.headers.clear();
        for datagram in datagrams {
            let bytes = arena.get(datagram.range.clone()).unwrap_or(&[]);
            self.iovecs
                .push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        }
        for (((datagram, name), control), iovec) in
            datagrams.iter().zip(&self.names).zip(&mut self.controls).zip(&mut self.iovecs)
        {
            // SAFETY: a C structure for which zero octets are a valid value.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = name.len();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL_LEN as _;
            let len = write_control(&header.msg_hdr, datagram);
            header.msg_hdr.msg_controllen = len as _;
            if len == 0 {
                header.msg_hdr.msg_control = ptr::null_mut();
            }
            self.headers.push(header);
        }
        // SAFETY: every header points to octets of `arena` (which the kernel only reads), a name and a control buffer of
        // the lengths it states; all of them outlive the call.
        let count = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

/// Writes a datagram's control messages into the header's buffer and returns their length.
fn write_control(header: &libc::msghdr, datagram: &Outgoing) -> usize {
    let mut used = 0;
    // SAFETY: the header's buffer is CONTROL_LEN octets long and aligned for `cmsghdr`, which is enough for two messages
    // with an int each; CMSG_FIRSTHDR and CMSG_NXTHDR stay within it.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        if let Some(segment) = datagram.segment {
            put(at, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
            used += libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
            at = at.cast::<u8>().add(used).cast();
        }
        if datagram.tos != 0 {
            let (level, kind) = match datagram.to {
                SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS),
                SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            put(at, level, kind, libc::c_int::from(datagram.tos));
            used += libc::CMSG_SPACE(size_of::<libc::c_int>() as u32) as usize;
        }
    }
    used
}

/// Writes one control message.
///
/// # Safety
/// `at` must point to `CMSG_SPACE(size_of::<T>())` writable octets, aligned for `cmsghdr`.
unsafe fn put<T>(at: *mut libc::cmsghdr, level: libc::c_int, kind: libc::c_int, value: T) {
    // SAFETY: the caller's promise.
    unsafe {
        (*at).cmsg_level = level;
        (*at).cmsg_type = kind;
        (*at).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as _;
        libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    fn pair(addr: &str) -> (UdpSocket, UdpSocket) {
        let (a, b) = (UdpSocket::bind(addr).unwrap(), UdpSocket::bind(addr).unwrap());
        setsockopt(&b, sockopt::IpRecvTos, &true).ok();
        setsockopt(&b, sockopt::Ipv6RecvTClass, &true).ok();
        (a, b)
    }

    fn collect(receiver: &mut Receiver, socket: &UdpSocket) -> Vec<(Vec<u8>, Received)> {
        let mut out = Vec::new();
        receiver.receive(socket.as_fd(), usize::MAX, &mut out).unwrap();
        out.into_iter().map(|r| (receiver.arena()[r.range.clone()].to_vec(), r)).collect()
    }

    #[test]
    fn datagrams_arrive_with_sender_and_tos() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = pair(addr);
            let to = b.local_addr().unwrap();
            let arena = [1, 2, 3, 4, 5];
            let out = [
                Outgoing { range: 0..2, segment: None, to, tos: 0xB8 },
                Outgoing { range: 2..5, segment: None, to, tos: 0 },
            ];
            assert_eq!(Sender::default().send(a.as_fd(), &arena, &out).unwrap(), 2);
            let got = collect(&mut Receiver::new(8, 2048), &b);
            let seen: Vec<_> = got.iter().map(|(bytes, r)| (bytes.clone(), r.tos, r.segment)).collect();
            assert_eq!(seen, [(vec![1, 2], 0xB8, 2), (vec![3, 4, 5], 0, 3)]);
            assert_eq!(got[0].1.from, a.local_addr().unwrap());
        }
    }

    #[test]
    fn trains_are_cut_and_joined_by_the_kernel() {
        let (a, b) = pair("127.0.0.1:0");
        let gro = setsockopt(&b, sockopt::UdpGroSegment, &true).is_ok();
        let arena: Vec<u8> = (0..=249).collect();
        let train = Outgoing { range: 0..250, segment: Some(100), to: b.local_addr().unwrap(), tos: 0b10 };
        Sender::default().send(a.as_fd(), &arena, &[train]).unwrap();
        let got = collect(&mut Receiver::new(8, 65_536), &b);
        if gro && got.len() == 1 {
            assert_eq!((got[0].1.segment, got[0].1.tos), (100, 0b10));
        } else {
            assert_eq!(got.iter().map(|(bytes, _)| bytes.len()).collect::<Vec<_>>(), [100, 100, 50]);
        }
        assert_eq!(got.into_iter().flat_map(|(bytes, _)| bytes).collect::<Vec<_>>(), arena);
    }

    #[test]
    fn nothing_there_would_block() {
        let (_, b) = pair("127.0.0.1:0");
        let error = Receiver::new(2, 64).receive(b.as_fd(), 2, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
