//! One daemon for each network namespace: whoever came second would take up, or sweep away, what the first has in the kernel.
//!
//! The seat is a UDP socket at a loopback address and port of its own. It belongs to the network namespace, whatever
//! files its processes see; it ends with whoever holds it, however that ends; and below port 1024 only those can take it who may
//! take the port of a gateway as well.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// An address that nobody else has a use for. Nothing is sent or received here.
const SEAT: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 67, 89, 78), 1);

/// Held as long as it lives.
#[derive(Debug)]
pub struct Seat {
    _held: Socket,
}

/// Takes the seat of this network namespace.
///
/// # Errors
/// `AddrInUse` if another daemon has it; else what the kernel says.
pub fn take() -> io::Result<Seat> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // As long as the loopback interface is down the address is none of ours.
    socket.set_freebind_v4(true)?;
    socket.bind(&SocketAddr::from(SEAT).into())?;
    Ok(Seat { _held: socket })
}

/// Whether a daemon has the seat of this network namespace.
pub fn is_taken() -> bool {
    take().is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
}
