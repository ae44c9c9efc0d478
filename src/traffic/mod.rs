//! Traffic control of single inner addresses: who carries how much, and who may carry no more.
//!
//! ```text
//!  packet ─▶ meter (of each thread) ─▶ rules: may it pass? ─▶ accounts ──sample──▶ history ─▶ top, status, metrics
//!                                        ▲
//!                        limits of configuration and commands
//! ```
//!
//! All of it is bounded, whoever sends: a scan over a whole network costs as much memory as a thousand hosts. Nothing here
//! does I/O; the time comes from the caller.

pub mod accounts;
pub mod bucket;
pub mod history;
pub mod level;
pub mod meter;
pub mod rules;

use std::net::IpAddr;
use std::ops::AddAssign;

/// A gateway's number, for as long as the daemon runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GatewayNo(pub u32);

/// An inner address of a gateway: of one of its hosts, not of the peer's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Inner {
    /// The gateway.
    pub gateway: GatewayNo,
    /// The address.
    pub ip: IpAddr,
}

/// What an inner address sent and received through tunnels, and what its limit dropped.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Carried {
    /// Octets of packets to it.
    pub bytes_in: u64,
    /// Packets to it.
    pub packets_in: u64,
    /// Octets of packets from it.
    pub bytes_out: u64,
    /// Packets from it.
    pub packets_out: u64,
    /// Packets of either direction that its limit dropped.
    pub dropped: u64,
}

impl Carried {
    /// Octets of both directions.
    pub const fn bytes(&self) -> u64 {
        self.bytes_in.saturating_add(self.bytes_out)
    }

    /// What decides who is worth remembering: octets, and a little for whoever is dropped all the time.
    const fn weight(&self) -> u64 {
        const OF_A_DROP: u64 = 64;
        self.bytes().saturating_add(self.dropped.saturating_mul(OF_A_DROP))
    }
}

impl AddAssign for Carried {
    fn add_assign(&mut self, more: Self) {
        self.bytes_in = self.bytes_in.saturating_add(more.bytes_in);
        self.packets_in = self.packets_in.saturating_add(more.packets_in);
        self.bytes_out = self.bytes_out.saturating_add(more.bytes_out);
        self.packets_out = self.packets_out.saturating_add(more.packets_out);
        self.dropped = self.dropped.saturating_add(more.dropped);
    }
}
