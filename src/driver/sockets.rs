//! UDP sockets of IKE: ports 500 and 4500 on each address of each gateway.
//!
//! Reading is a task for each socket, which hands datagrams to the loop by a bounded channel: when the loop is busy the
//! kernel's buffer fills, and then the kernel drops. Sending never waits; what does not go out is retransmitted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use cygnet_ike::Flow;
use cygnet_model::plane::PlaneKind;
use nix::sys::socket::{setsockopt, sockopt};
use sd_notify::NotifyState;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Port of IKE.
pub const IKE_PORT: u16 = 500;
/// Port shared by IKE and ESP in UDP (RFC 3948).
pub const NATT_PORT: u16 = 4500;
/// Room for datagrams that wait for the loop; a rekey of thousands of SAs comes in bursts.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Largest datagram.
const MAX_DATAGRAM: usize = 65_535;

/// An IKE message and where it came from.
pub type Received = (Flow, Vec<u8>);

/// Sockets that the service manager kept while no daemon ran, by the address that they are bound to.
pub type Inherited = BTreeMap<SocketAddr, UdpSocket>;

/// The sending halves.
#[derive(Default)]
pub struct Sockets {
    by_local: BTreeMap<SocketAddr, (UdpSocket, Option<Reader>)>,
    inherited: Inherited,
}

/// Takes what the service manager kept (`sd_listen_fds(3)`). To be called before anything else opens a descriptor.
pub fn inherited() -> Inherited {
    let mut sockets = Inherited::new();
    for (fd, _) in crate::sys::inherited::take() {
        match bound_udp(fd) {
            Some((local, socket)) => drop(sockets.insert(local, socket)),
            // Closed by now. What it was kept for is unknown, so that it stays with the manager.
            None => tracing::debug!("an inherited descriptor is no bound UDP socket"),
        }
    }
    sockets
}

/// The descriptor as a UDP socket, if it is one that is bound to a port.
fn bound_udp(fd: OwnedFd) -> Option<(SocketAddr, UdpSocket)> {
    let socket = Socket::from(fd);
    let local = socket.local_addr().ok()?.as_socket()?;
    let udp = socket.r#type().ok()? == Type::DGRAM && socket.protocol().ok()? == Some(Protocol::UDP);
    (udp && local.port() != 0).then(|| (local, socket.into()))
}

/// The name under which the service manager keeps a socket.
fn kept_name(local: SocketAddr) -> String {
    // A colon would end the name.
    local.to_string().replace(':', "_").replace(['[', ']'], "")
}

/// Has the service manager keep a socket for the next life of the daemon: datagrams that come meanwhile wait in it, and ESP
/// in UDP stays with the kernel's tunnels. Without a manager nothing happens.
fn keep(local: SocketAddr, socket: &UdpSocket) {
    let name = kept_name(local);
    // A pending ICMP error is no reason to let go of it.
    let state = [NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")];
    if let Err(e) = sd_notify::notify_with_fds(&state, &[socket.as_fd()]) {
        tracing::debug!(%local, error = %e, "the service manager does not keep this socket");
    }
}

/// Has the service manager let go of a socket.
fn let_go(local: SocketAddr) {
    let name = kept_name(local);
    let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
}

/// A reading task; it ends with this.
struct Reader(AbortHandle);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Binds one port of one address. Needs CAP_NET_BIND_SERVICE for port 500.
fn bind(local: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    if local.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // An address may come later than the daemon: at boot, by DHCP or from another host. IPv6 sockets take it, too.
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    // Without CAP_NET_ADMIN the default buffer must do.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    socket.bind(&local.into())?;
    Ok(socket.into())
}

/// A socket that an earlier life of the daemon had bound.
fn again(socket: UdpSocket, local: SocketAddr, plane: PlaneKind) -> io::Result<UdpSocket> {
    socket.set_nonblocking(true)?;
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    if local.port() == NATT_PORT && plane == PlaneKind::Userspace {
        // The kernel must leave ESP to our own plane. Where it knows of none, it took none.
        let _ = cygnet_xfrm::sockopt::disable_esp_in_udp(socket.as_fd());
    }
    if plane == PlaneKind::Kernel {
        // Our own plane reads trains of datagrams, which neither the kernel's ESP nor IKE can.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &false);
    }
    Ok(socket)
}

impl Sockets {
    /// Prefers these to new ones.
    pub fn with(inherited: Inherited) -> Self {
        Self { inherited, ..Self::default() }
    }

    /// Has the service manager keep no socket: there will be nothing that they are for.
    pub fn let_go_of_all(&self) {
        self.by_local.keys().copied().for_each(let_go);
    }

    /// Closes what was inherited and is of no use.
    pub fn close_inherited(&mut self) {
        for local in std::mem::take(&mut self.inherited).into_keys() {
            tracing::info!(%local, "a socket of an earlier life is not used any more");
            let_go(local);
        }
    }

    /// Binds both ports of an address. Port 500 is read by a task; port 4500 too with the kernel's data plane, which
    /// takes ESP out before. With ours the 4500 socket is returned, for the plane to read. The address need not be there
    /// yet.
    pub fn open(
        &mut self,
        address: IpAddr,
        plane: PlaneKind,
        received: &mpsc::Sender<Received>,
    ) -> io::Result<Option<UdpSocket>> {
        let opened = self.open_ports(address, plane, received);
        if opened.is_err() {
            self.close(address);
        }
        opened
    }

    fn open_ports(
        &mut self,
        address: IpAddr,
        plane: PlaneKind,
        received: &mpsc::Sender<Received>,
    ) -> io::Result<Option<UdpSocket>> {
        let mut for_plane = None;
        for port in [IKE_PORT, NATT_PORT] {
            let local = SocketAddr::new(address, port);
            let opened = match self.inherited.remove(&local) {
                Some(socket) => again(socket, local, plane),
                None => bind(local),
            };
            let socket = opened.map_err(|e| io::Error::new(e.kind(), format!("UDP port {port}: {e}")))?;
            if let Err(e) = cygnet_xfrm::sockopt::bypass_policies(socket.as_fd(), address)
                && plane == PlaneKind::Kernel
            {
                return Err(e);
            }
            let sender = socket.try_clone()?;
            let reader = match (port, plane) {
                (NATT_PORT, PlaneKind::Userspace) => {
                    for_plane = Some(socket);
                    None
                }
                (NATT_PORT, PlaneKind::Kernel) => {
                    cygnet_xfrm::sockopt::enable_esp_in_udp(socket.as_fd())?;
                    Some(spawn_reader(socket, local, true, received.clone())?)
                }
                _ => Some(spawn_reader(socket, local, false, received.clone())?),
            };
            keep(local, &sender);
            self.by_local.insert(local, (sender, reader));
        }
        Ok(for_plane)
    }

    /// Closes both ports of an address, as far as they are open.
    pub fn close(&mut self, address: IpAddr) {
        let of_address = |local: &SocketAddr| local.ip() == address;
        self.by_local.keys().filter(|local| of_address(local)).for_each(|local| let_go(*local));
        self.by_local.retain(|local, _| !of_address(local));
    }

    /// The addresses that are open.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.by_local.keys().map(SocketAddr::ip).collect()
    }

    /// Sends an IKE message, with the non-ESP marker where the port is shared with ESP.
    pub fn send(&self, flow: &Flow, message: &[u8]) -> io::Result<()> {
        if flow.natt {
            let mut marked = Vec::with_capacity(message.len() + 4);
            marked.extend_from_slice(&[0; 4]);
            marked.extend_from_slice(message);
            self.send_raw(flow, &marked)
        } else {
            self.send_raw(flow, message)
        }
    }

    /// Sends a NAT keepalive (RFC 3948 §2.3).
    pub fn keepalive(&self, flow: &Flow) -> io::Result<()> {
        self.send_raw(flow, &[0xff])
    }

    fn send_raw(&self, flow: &Flow, bytes: &[u8]) -> io::Result<()> {
        let (socket, _) = self.by_local.get(&flow.local).ok_or(io::ErrorKind::AddrNotAvailable)?;
        socket.send_to(bytes, flow.remote).map(|_| ())
    }
}

fn spawn_reader(
    socket: UdpSocket,
    local: SocketAddr,
    natt: bool,
    received: mpsc::Sender<Received>,
) -> io::Result<Reader> {
    // Only for what can be read: a socket that is also watched for room wakes the loop after each message that is sent.
    #[allow(deprecated, reason = "the replacement is unsafe, and a socket meets its condition")]
    let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
    let task = tokio::spawn(async move {
        let mut buffer = vec![0u8; MAX_DATAGRAM];
        loop {
            let (len, remote) = match socket.async_io(Interest::READABLE, |s| s.recv_from(&mut buffer)).await
            {
                Ok(received) => received,
                // An ICMP error for something that we sent; the protocol's own timers decide.
                Err(e) => {
                    tracing::debug!(%local, error = %e, "receive");
                    continue;
                }
            };
            let bytes = buffer.get(..len).unwrap_or_default();
            let message = match (natt, bytes.strip_prefix(&[0u8; 4])) {
                (false, _) => bytes,
                (true, Some(message)) => message,
                // A keepalive, or ESP that the kernel did not take.
                (true, None) => continue,
            };
            let flow = Flow { local, remote, natt };
            if received.send((flow, message.to_vec())).await.is_err() {
                return;
            }
        }
    });
    Ok(Reader(task.abort_handle()))
}
