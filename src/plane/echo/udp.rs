//! Datagrams to Echo services, by one socket for each family. A socket has no port before the first probe leaves; from then on
//! nothing gets into it but what bears our token.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::filter::{self, Behind};
use super::tell_own_address;
use crate::plane::probing::Answer;
use crate::quality::Method;
use crate::quality::wire::{self, Reply};

/// Opens a socket of a family that does not block, and gets nothing but datagrams with this token.
///
/// # Errors
/// What the kernel says.
pub fn open(v6: bool, token: u64) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    tell_own_address(&socket, v6)?;
    filter::attach(&socket, Behind::Nothing, Some(token))?;
    Ok(socket)
}

/// An answer comes from the port that was probed, to the address from which the socket sent.
pub fn read(data: &[u8], token: u64, from: SocketAddr, to: IpAddr) -> Option<Answer> {
    let (probe, received, port) = wire::read_data(data)?;
    let reply = Reply { probe, received, method: Method::Udp { port } };
    (probe.token == token && from.port() == port).then(|| Answer::new(&reply, from.ip(), to))
}
