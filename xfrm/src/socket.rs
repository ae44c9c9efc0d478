//! A blocking netlink socket that never takes silence for success.
//!
//! * Every message asks for an acknowledgement (NLM_F_ACK) and is only done when it came.
//! * NETLINK_CAP_ACK: refusals don't echo our message, which may hold keys. NETLINK_EXT_ACK: the kernel says why.
//! * Batches go in windows of at most 128 messages and 64 KiB, so that their acknowledgements fit the receive buffer.
//! * Lost answers (ENOBUFS) and missed deadlines are errors of the whole call: the caller reads the kernel's state anew.
//! * Buffers are wiped after use; nothing here prints a message.
//!
//! A socket that sends never joins multicast groups: notifications carry the sequence number of whoever caused them,
//! so they could pass for answers. [`NetlinkSocket::monitor`] makes the other kind, which only listens.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use zeroize::Zeroize;

use crate::codec::{self, Writer, aligned};
use crate::error::NetlinkError;

const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_MULTI: u16 = 0x02;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Set on an acknowledgement without an echo of the request.
const NLM_F_CAPPED: u16 = 0x100;
/// Set on an acknowledgement with attributes (extended acknowledgement).
const NLM_F_ACK_TLVS: u16 = 0x200;
/// Whole table, `NLM_F_ROOT | NLM_F_MATCH`.
const NLM_F_DUMP: u16 = 0x300;

/// Request: replace an existing object.
pub const NLM_F_REPLACE: u16 = 0x100;
/// Request: fail if it exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// Request: make it if it does not exist.
pub const NLM_F_CREATE: u16 = 0x400;
/// Request: put it behind those that are there.
pub const NLM_F_APPEND: u16 = 0x800;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLMSGERR_ATTR_MSG: u16 = 1;
const HEADER: usize = 16;

/// Messages in flight; 256 acknowledgements fit the smallest usual receive buffer.
const WINDOW: usize = 128;
/// Octets in one datagram.
const DATAGRAM: usize = 64 * 1024;
/// The kernel fills dumps up to 32 KiB per datagram if we offer at least that much.
const RECEIVE: usize = 64 * 1024;
/// Asked of the kernel for acknowledgements and events; counted with overhead by the kernel.
const RECEIVE_QUEUE: usize = 8 * 1024 * 1024;
const DUMP_ATTEMPTS: u32 = 8;

/// One message to the kernel.
#[derive(Debug)]
pub struct Request {
    kind: u16,
    flags: u16,
    payload: Writer,
}

impl Request {
    /// A message of type `kind`; REQUEST and ACK flags are added by the socket.
    pub const fn new(kind: u16, flags: u16, payload: Writer) -> Self {
        Self { kind, flags, payload }
    }

    /// What follows the header.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn payload(&self) -> &[u8] {
        self.payload.bytes()
    }

    /// Octets on the wire.
    fn len(&self) -> usize {
        HEADER + self.payload.bytes().len()
    }
}

/// See the [module](self).
pub struct NetlinkSocket {
    socket: Socket,
    port: u32,
    sequence: u32,
    deadline: Duration,
    send: Vec<u8>,
    receive: Vec<u8>,
}

impl std::fmt::Debug for NetlinkSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetlinkSocket").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// One message from the kernel, as it lies in the receive buffer.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    /// Port of the socket whose request caused it.
    cause: u32,
    payload: &'a mut [u8],
}

/// What an answer means for the request that it belongs to.
enum Verdict {
    Done,
    Refused(NetlinkError),
}

impl NetlinkSocket {
    /// Opens a socket for requests in the current network namespace; `protocol` is one of
    /// `netlink_sys::protocols`.
    ///
    /// # Errors
    /// [`NetlinkError::Open`]; `EPROTONOSUPPORT` means that the kernel lacks the protocol.
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let this = Self::make(protocol)?;
        // Refused by kernels before 4.20 only; there, dumps are filtered by us.
        let _ = this.socket.set_netlink_get_strict_chk(true);
        Ok(this)
    }

    /// Opens a socket that only listens to multicast groups.
    ///
    /// # Errors
    /// [`NetlinkError::Open`], also if a group cannot be joined.
    pub fn monitor(protocol: isize, groups: &[u32]) -> Result<Self, NetlinkError> {
        let this = Self::make(protocol)?;
        for group in groups {
            this.socket.add_membership(*group).map_err(|e| open_error(protocol, &e))?;
        }
        Ok(this)
    }

    fn make(protocol: isize) -> Result<Self, NetlinkError> {
        let open = |e| open_error(protocol, &e);
        let mut socket = Socket::new(protocol).map_err(open)?;
        let port = socket.bind_auto().map_err(open)?.port_number();
        socket.set_cap_ack(true).map_err(open)?;
        socket.set_ext_ack(true).map_err(open)?;
        // Without CAP_NET_ADMIN of the first user namespace only the system's maximum can be had.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_QUEUE).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_QUEUE);
        }
        Ok(Self {
            socket,
            port,
            sequence: 0,
            deadline: Duration::from_secs(5),
            send: Vec::with_capacity(DATAGRAM),
            receive: vec![0; RECEIVE],
        })
    }

    /// The number by which the kernel names this socket as the cause of what it notifies others of.
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Starts to listen to another multicast group.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] if it cannot be joined.
    pub fn join(&mut self, protocol: isize, group: u32) -> Result<(), NetlinkError> {
        self.socket.add_membership(group).map_err(|e| open_error(protocol, &e))
    }

    /// Sets how long a call may wait for the kernel.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Sets how many octets of answers or events may wait, with the kernel's overhead; more are lost.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_queue(&mut self, octets: usize) -> Result<(), NetlinkError> {
        Ok(setsockopt(&self.socket, sockopt::RcvBuf, &octets)?)
    }

    /// Readable when [`Self::next_event`] has something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends one message and waits for its acknowledgement.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] if the kernel says no; others if the answer did not come.
    pub fn request(&mut self, request: &Request) -> Result<(), NetlinkError> {
        self.submit(std::slice::from_ref(request))?.pop().unwrap_or(Err(NetlinkError::Malformed("no answer")))
    }

    /// Sends messages in order and waits for all acknowledgements. The result has one entry for each message: a
    /// refused one does not stop those after it.
    ///
    /// # Errors
    /// Of the whole call if answers were lost: then it is unknown which messages took effect.
    pub fn submit(&mut self, requests: &[Request]) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let mut results = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let mut octets = 0;
            let fit = rest
                .iter()
                .take(WINDOW)
                .take_while(|r| {
                    octets += aligned(r.len());
                    octets <= DATAGRAM
                })
                .count()
                .max(1);
            let (window, later) = rest.split_at(fit);
            self.exchange_window(window, &mut results)?;
            rest = later;
        }
        Ok(results)
    }

    /// Sends messages between two that frame them, all in one datagram, which the kernel takes as a whole or not at all
    /// (nfnetlink batches). The frame is not acknowledged by itself.
    ///
    /// # Errors
    /// The first refusal, with the index of the message in `requests` if it was one of them: then nothing took effect.
    pub fn transact(
        &mut self,
        begin: &Request,
        requests: &[Request],
        end: &Request,
    ) -> Result<(), (Option<usize>, NetlinkError)> {
        let whole = |e| (None, e);
        let octets = requests.iter().map(|r| aligned(r.len())).sum::<usize>() + 2 * HEADER + 64;
        if octets > DATAGRAM {
            // A datagram must fit the send queue with some overhead of the kernel.
            let room = octets.saturating_mul(2);
            if setsockopt(&self.socket, sockopt::SndBufForce, &room).is_err() {
                setsockopt(&self.socket, sockopt::SndBuf, &room).map_err(|e| whole(e.into()))?;
            }
        }
        let count = u32::try_from(requests.len() + 2)
            .map_err(|_| whole(NetlinkError::Malformed("batch too long")))?;
        if self.sequence.checked_add(count).is_none() {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        self.push(begin, 0).map_err(whole)?;
        for request in requests {
            self.push(request, NLM_F_ACK).map_err(whole)?;
        }
        self.push(end, 0).map_err(whole)?;
        self.flush().map_err(whole)?;

        let mut answered = vec![false; requests.len()];
        let mut open = requests.len();
        let mut refused = None;
        let result = self.receive_until(|m| {
            // The first message is the frame: what it is refused for concerns all.
            let Ok(offset) = usize::try_from(m.sequence.wrapping_sub(first)) else { return Ok(None) };
            if m.kind != NLMSG_ERROR || offset > requests.len() + 1 {
                return Ok(None);
            }
            let index = offset.checked_sub(1).filter(|i| *i < requests.len());
            if let Verdict::Refused(e) = verdict(m.flags, m.payload) {
                refused.get_or_insert((index, e));
                if index.is_none() {
                    return Ok(Some(Verdict::Done));
                }
            }
            if let Some(done) = index.and_then(|i| answered.get_mut(i)) {
                open -= usize::from(!std::mem::replace(done, true));
            }
            Ok((open == 0).then_some(Verdict::Done))
        });
        match (refused, result) {
            (Some(refusal), _) => Err(refusal),
            (None, Ok(_)) => Ok(()),
            (None, Err(e)) => Err(whole(e)),
        }
    }

    /// Sends one message that the kernel answers with one object before the acknowledgement, and gives the object's
    /// type and payload to `read`. The payload is wiped afterwards.
    ///
    /// # Errors
    /// As [`Self::request`]; [`NetlinkError::Malformed`] if no object came or `read` returned `None`.
    pub fn query<T>(
        &mut self,
        request: &Request,
        mut read: impl FnMut(u16, &mut [u8]) -> Option<T>,
    ) -> Result<T, NetlinkError> {
        let sequence = self.send(std::slice::from_ref(request), 0)?;
        let mut found = None;
        let verdict = self.receive_until(|m| {
            if m.sequence != sequence {
                return Ok(None);
            }
            if m.kind == NLMSG_ERROR {
                return Ok(Some(verdict(m.flags, m.payload)));
            }
            found = read(m.kind, m.payload);
            Ok(None)
        })?;
        match verdict {
            Verdict::Refused(e) => Err(e),
            Verdict::Done => {
                found.ok_or(NetlinkError::Malformed("the object asked for is missing or broken"))
            }
        }
    }

    /// Reads a whole table. `read` gets type and payload of each object and returns what to keep; the payload is
    /// wiped afterwards. A dump that the kernel calls interrupted is started anew.
    ///
    /// # Errors
    /// [`NetlinkError::Unsteady`] after 8 interrupted dumps; else as [`Self::request`], and what `read` returns.
    pub fn dump<T>(
        &mut self,
        request: &Request,
        mut read: impl FnMut(u16, &mut [u8]) -> Result<Option<T>, NetlinkError>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(std::slice::from_ref(request), NLM_F_DUMP)?;
            let mut objects = Vec::new();
            let mut interrupted = false;
            let mut failure = None;
            let verdict = self.receive_until(|m| {
                if m.sequence != sequence {
                    return Ok(None);
                }
                interrupted |= m.flags & NLM_F_DUMP_INTR != 0;
                match m.kind {
                    NLMSG_ERROR | NLMSG_DONE => return Ok(Some(verdict_of_dump(&m))),
                    // The rest of a dump must be read off the socket even if an object cannot be understood.
                    _ => match read(m.kind, m.payload) {
                        Ok(object) => objects.extend(object),
                        Err(e) => failure = Some(e),
                    },
                }
                // A table that fits one datagram may come without MULTI; then no DONE follows.
                Ok((m.flags & NLM_F_MULTI == 0).then_some(Verdict::Done))
            })?;
            match (verdict, failure) {
                (Verdict::Refused(e), _) if e.errno() == Some(Errno::EINTR) => {}
                (Verdict::Refused(e), _) | (Verdict::Done, Some(e)) => return Err(e),
                (Verdict::Done, None) if interrupted => {}
                (Verdict::Done, None) => return Ok(objects),
            }
        }
        Err(NetlinkError::Unsteady(DUMP_ATTEMPTS))
    }

    /// For monitors: gives each message of the next datagram to `read`, or returns `false` if there is none.
    /// Never blocks.
    ///
    /// # Errors
    /// [`NetlinkError::Overrun`] if events were lost.
    pub fn next_event(&mut self, mut read: impl FnMut(u16, &mut [u8])) -> Result<bool, NetlinkError> {
        self.next_notice(|kind, _, payload| read(kind, payload))
    }

    /// As [`Self::next_event`], with the port of the socket whose request caused the message between type and payload;
    /// 0 is the kernel itself.
    ///
    /// # Errors
    /// [`NetlinkError::Overrun`] if events were lost.
    pub fn next_notice(&mut self, mut read: impl FnMut(u16, u32, &mut [u8])) -> Result<bool, NetlinkError> {
        let Some(len) = self.receive_datagram()? else { return Ok(false) };
        let result = each_message(&mut self.receive, len, |m| {
            read(m.kind, m.cause, m.payload);
            Ok(None::<()>)
        });
        wipe(&mut self.receive, len);
        result.map(|_| true)
    }

    fn exchange_window(
        &mut self,
        window: &[Request],
        results: &mut Vec<Result<(), NetlinkError>>,
    ) -> Result<(), NetlinkError> {
        let first = self.send(window, 0)?;
        let mut answers: Vec<Option<Result<(), NetlinkError>>> = window.iter().map(|_| None).collect();
        let mut open = window.len();
        self.receive_until(|m| {
            // An answer to an earlier call that ran into its deadline has a sequence number before ours.
            let Ok(index) = usize::try_from(m.sequence.wrapping_sub(first)) else { return Ok(None) };
            let Some(slot) = answers.get_mut(index) else { return Ok(None) };
            if m.kind == NLMSG_ERROR && slot.is_none() {
                *slot = Some(match verdict(m.flags, m.payload) {
                    Verdict::Done => Ok(()),
                    Verdict::Refused(e) => Err(e),
                });
                open -= 1;
            }
            Ok((open == 0).then_some(Verdict::Done))
        })?;
        results.extend(answers.into_iter().flatten());
        Ok(())
    }

    /// Sends messages in one datagram and returns the sequence number of the first; the others follow it.
    fn send(&mut self, requests: &[Request], extra: u16) -> Result<u32, NetlinkError> {
        // Numbers start at one after the wrap too: zero is what unsolicited messages carry.
        let count = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        if self.sequence.checked_add(count).is_none() {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        let ack = if extra == 0 { NLM_F_ACK } else { 0 };
        for request in requests {
            self.push(request, extra | ack)?;
        }
        self.flush()?;
        Ok(first)
    }

    /// Appends one message to what will be sent, under the next sequence number.
    fn push(&mut self, request: &Request, extra: u16) -> Result<(), NetlinkError> {
        self.sequence += 1;
        let len = u32::try_from(request.len()).map_err(|_| NetlinkError::Malformed("message too long"))?;
        let flags = request.flags | extra | NLM_F_REQUEST;
        self.send.extend_from_slice(&len.to_ne_bytes());
        self.send.extend_from_slice(&request.kind.to_ne_bytes());
        self.send.extend_from_slice(&flags.to_ne_bytes());
        self.send.extend_from_slice(&self.sequence.to_ne_bytes());
        self.send.extend_from_slice(&0u32.to_ne_bytes());
        self.send.extend_from_slice(request.payload.bytes());
        self.send.resize(aligned(self.send.len()), 0);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), NetlinkError> {
        let result = self.socket.send_to(&self.send, &SocketAddr::new(0, 0), 0);
        // Only what was written: the room behind it, of a large message once, was wiped before.
        self.send.as_mut_slice().zeroize();
        self.send.clear();
        result?;
        Ok(())
    }

    /// Reads messages until `handle` returns a verdict or the deadline passes.
    fn receive_until(
        &mut self,
        mut handle: impl FnMut(Message<'_>) -> Result<Option<Verdict>, NetlinkError>,
    ) -> Result<Verdict, NetlinkError> {
        let end = Instant::now() + self.deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NetlinkError::Timeout(
                    u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX),
                ));
            }
            // Rounded up: a wait of zero would spin through the last millisecond.
            let wait = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let Some(len) = self.receive_datagram()? else { continue };
            let result = each_message(&mut self.receive, len, &mut handle);
            wipe(&mut self.receive, len);
            if let Some(verdict) = result? {
                return Ok(verdict);
            }
        }
    }

    /// Reads one datagram of the kernel into `self.receive`; `None` if there is none now.
    fn receive_datagram(&mut self) -> Result<Option<usize>, NetlinkError> {
        loop {
            let mut buffer = self.receive.as_mut_slice();
            match self.socket.recv_from(&mut buffer, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
                Ok((len, from)) => {
                    if len > self.receive.len() {
                        // Part of it is gone: as good as lost.
                        wipe(&mut self.receive, RECEIVE);
                        return Err(NetlinkError::Overrun);
                    }
                    // Other processes may send to us as well; only the kernel has port 0.
                    if from.port_number() == 0 {
                        return Ok(Some(len));
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Drop for NetlinkSocket {
    fn drop(&mut self) {
        self.receive.zeroize();
    }
}

fn wipe(buffer: &mut [u8], len: usize) {
    if let Some(used) = buffer.get_mut(..len) {
        used.zeroize();
    }
}

fn open_error(protocol: isize, e: &std::io::Error) -> NetlinkError {
    let protocol = match protocol {
        netlink_sys::protocols::NETLINK_XFRM => "XFRM",
        netlink_sys::protocols::NETLINK_NETFILTER => "netfilter",
        _ => "route",
    };
    NetlinkError::Open { protocol, errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)) }
}

/// Walks the messages of a datagram until `handle` returns something.
fn each_message<T>(
    buffer: &mut [u8],
    len: usize,
    mut handle: impl FnMut(Message<'_>) -> Result<Option<T>, NetlinkError>,
) -> Result<Option<T>, NetlinkError> {
    let mut at = 0;
    while at + HEADER <= len {
        let short = NetlinkError::Malformed("a message is longer than its datagram");
        let message = buffer.get_mut(at..len).ok_or_else(|| short.clone())?;
        let header = |field: Option<u32>| field.ok_or(NetlinkError::Malformed("short header"));
        let length = header(codec::u32_at(message, 0))? as usize;
        let kind_flags = (codec::u16_at(message, 4), codec::u16_at(message, 6));
        let (Some(kind), Some(flags)) = kind_flags else { return Err(short) };
        let sequence = header(codec::u32_at(message, 8))?;
        let cause = header(codec::u32_at(message, 12))?;
        let payload = message.get_mut(HEADER..length).ok_or(short)?;
        match kind {
            NLMSG_NOOP => {}
            NLMSG_OVERRUN => return Err(NetlinkError::Overrun),
            _ => {
                if let Some(result) = handle(Message { kind, flags, sequence, cause, payload })? {
                    return Ok(Some(result));
                }
            }
        }
        at += aligned(length);
    }
    Ok(None)
}

/// Reads an NLMSG_ERROR: error number (0 is an acknowledgement), header of the request, then attributes.
fn verdict(flags: u16, payload: &[u8]) -> Verdict {
    let Some(code) = codec::u32_at(payload, 0) else {
        return Verdict::Refused(NetlinkError::Malformed("short acknowledgement"));
    };
    if code == 0 {
        return Verdict::Done;
    }
    let echoed = if flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        codec::u32_at(payload, 4).map_or(HEADER, |len| aligned(len as usize))
    };
    Verdict::Refused(refused(flags, code, payload.get(4 + echoed..).unwrap_or_default()))
}

/// Reads the end of a dump: NLMSG_DONE has the attributes right behind the number.
fn verdict_of_dump(m: &Message<'_>) -> Verdict {
    if m.kind == NLMSG_ERROR {
        return verdict(m.flags, m.payload);
    }
    match codec::u32_at(m.payload, 0) {
        Some(code) if code.cast_signed() < 0 => {
            Verdict::Refused(refused(m.flags, code, m.payload.get(4..).unwrap_or_default()))
        }
        _ => Verdict::Done,
    }
}

fn refused(flags: u16, code: u32, attributes: &[u8]) -> NetlinkError {
    let errno = Errno::from_raw(code.cast_signed().wrapping_neg());
    let message = (flags & NLM_F_ACK_TLVS != 0)
        .then(|| codec::find(attributes, NLMSGERR_ATTR_MSG).map(codec::text))
        .flatten();
    NetlinkError::Refused { errno, message }
}

/// What [`crate::testing`] hands out of here.
#[cfg(feature = "test-util")]
pub(crate) mod testing {
    use super::*;

    /// The messages of a datagram, each as type and payload.
    ///
    /// # Errors
    /// [`NetlinkError::Malformed`] if lengths contradict each other, [`NetlinkError::Overrun`] if the datagram says so.
    pub fn messages(datagram: &mut [u8]) -> Result<Vec<(u16, Vec<u8>)>, NetlinkError> {
        let mut out = Vec::new();
        each_message(datagram, datagram.len(), |m| {
            out.push((m.kind, m.payload.to_vec()));
            Ok(None::<()>)
        })?;
        Ok(out)
    }

    /// What an NLMSG_ERROR payload says about the request.
    ///
    /// # Errors
    /// The refusal that it is.
    pub fn answer(flags: u16, payload: &[u8]) -> Result<(), NetlinkError> {
        match verdict(flags, payload) {
            Verdict::Done => Ok(()),
            Verdict::Refused(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A capped refusal with a sentence, as Linux 6.18 sends it for an unknown AEAD.
    fn refusal(text: &str) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&(-38i32).to_ne_bytes());
        w.raw(&[0; HEADER]);
        w.attr_text(NLMSGERR_ATTR_MSG, text);
        w.bytes().to_vec()
    }

    #[test]
    fn a_refusal_carries_the_kernels_sentence() {
        let bytes = refusal("Requested AEAD algorithm not found");
        let Verdict::Refused(e) = verdict(NLM_F_CAPPED | NLM_F_ACK_TLVS, &bytes) else {
            panic!("taken for success")
        };
        assert_eq!(e.to_string(), "kernel says \"Requested AEAD algorithm not found\" (ENOSYS)");
    }

    #[test]
    fn control_characters_of_the_kernel_do_not_reach_logs() {
        let bytes = refusal("a\nb");
        let Verdict::Refused(e) = verdict(NLM_F_CAPPED | NLM_F_ACK_TLVS, &bytes) else {
            panic!("taken for success")
        };
        assert!(!e.to_string().contains('\n'));
    }

    #[test]
    fn broken_datagrams_are_errors_not_panics() {
        for len in 0..64usize {
            for fill in [0u8, 1, 0x7F, 0xFF] {
                let mut bytes = vec![fill; len];
                let _ = each_message(&mut bytes, len, |_| Ok(None::<()>));
            }
        }
        // length < header
        let mut bytes = vec![0u8; 32];
        bytes[0] = 8;
        assert!(each_message(&mut bytes, 32, |_| Ok(None::<()>)).is_err());
    }

    #[test]
    fn a_request_without_rights_or_sense_is_refused_not_lost() {
        let mut socket = NetlinkSocket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        // RTM_GETLINK for an interface that cannot exist.
        let mut w = Writer::new();
        w.raw(&[0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0x7F, 0, 0, 0, 0, 0, 0, 0, 0]);
        let e = socket.request(&Request::new(18, 0, w)).unwrap_err();
        assert_eq!(e.errno(), Some(Errno::ENODEV));
    }

    #[test]
    fn a_dump_of_links_ends() {
        let mut socket = NetlinkSocket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        let mut w = Writer::new();
        w.raw(&[0; 16]);
        let links = socket.dump(&Request::new(18, 0, w), |kind, _| Ok(Some(kind))).unwrap();
        assert!(links.iter().all(|k| *k == 16) && !links.is_empty());
    }
}
