//! Why a packet was dropped, and why an SA could not be built.

use std::fmt;

/// Every reason for which a packet ends here. The name is the metric label, the log field and the test's expectation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// Too short to be ESP, or not a multiple of what its cipher needs.
    Truncated,
    /// No inbound SA has this SPI.
    UnknownSpi,
    /// Left of the replay window, or seen before (RFC 4303 §3.4.3).
    Replay,
    /// The integrity check failed.
    Integrity,
    /// The padding is not 1, 2, 3, … or longer than the packet (RFC 4303 §2.4).
    Padding,
    /// The next header is neither an IP packet nor a dummy.
    NextHeader,
    /// A dummy packet (next header 59, RFC 4303 §2.6); not an error.
    Dummy,
    /// What should be an IP packet is none.
    Malformed,
    /// The inner packet lies outside the SA's selectors (RFC 4301 §5.1, §5.2).
    Selectors,
    /// Congestion was marked outside on a packet that cannot carry the mark (RFC 6040 §4.2).
    Ecn,
    /// No guard or tunnel covers the packet.
    NoPolicy,
    /// The tunnel is not open or has no outbound SA yet.
    NoSa,
    /// The SA has used up its volume.
    Limit,
    /// The SA has used up its sequence numbers (RFC 4303 §3.3.3).
    Sequence,
    /// No more sequence numbers are reserved for this life of the daemon; see
    /// [`cygnet_model::plane::DataPlane::reserve`].
    Reserve,
    /// The limit of the inner address lets no more pass at this moment.
    IpRate,
    /// The inner address is blocked.
    IpBlock,
    /// The bandwidth level of the tunnel or gateway lets no more pass at this moment.
    Bandwidth,
    /// The packet does not fit the buffer or the path.
    TooBig,
    /// The socket refused it (the network is unreachable, say).
    Socket,
    /// The socket's queue was full, and others must not wait for it.
    SocketFull,
    /// The TUN refused it.
    Tun,
}

impl DropReason {
    /// Every reason.
    pub const ALL: [Self; 22] = [
        Self::Truncated,
        Self::UnknownSpi,
        Self::Replay,
        Self::Integrity,
        Self::Padding,
        Self::NextHeader,
        Self::Dummy,
        Self::Malformed,
        Self::Selectors,
        Self::Ecn,
        Self::NoPolicy,
        Self::NoSa,
        Self::Limit,
        Self::Sequence,
        Self::Reserve,
        Self::IpRate,
        Self::IpBlock,
        Self::Bandwidth,
        Self::TooBig,
        Self::Socket,
        Self::SocketFull,
        Self::Tun,
    ];

    /// The name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::UnknownSpi => "unknown_spi",
            Self::Replay => "replay",
            Self::Integrity => "integrity",
            Self::Padding => "padding",
            Self::NextHeader => "next_header",
            Self::Dummy => "dummy",
            Self::Malformed => "malformed",
            Self::Selectors => "selectors",
            Self::Ecn => "ecn",
            Self::NoPolicy => "no_policy",
            Self::NoSa => "no_sa",
            Self::Limit => "limit",
            Self::Sequence => "sequence",
            Self::Reserve => "reserve",
            Self::IpRate => "ip_rate",
            Self::IpBlock => "ip_block",
            Self::Bandwidth => "bandwidth",
            Self::TooBig => "too_big",
            Self::Socket => "socket",
            Self::SocketFull => "socket_full",
            Self::Tun => "tun",
        }
    }

    /// The place of the reason in [`DropReason::ALL`], for tables of counters.
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why an SA could not be built from its description.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SaError {
    /// A key is not of the length that its algorithm has.
    #[error("the {what} key has {got} octets instead of {want}")]
    KeyLength {
        /// "cipher" or "integrity".
        what: &'static str,
        /// Octets wanted.
        want: usize,
        /// Octets given.
        got: usize,
    },
    /// A combined-mode cipher with an integrity algorithm, or another cipher without one.
    #[error("the suite {0} does not go together (RFC 4303 §3.2.3)")]
    Suite(String),
    /// The replay window is neither 0 nor 64..=4096 in steps of 32.
    #[error("a replay window of {0} packets; it must be 0 (off) or 64 to 4096 in steps of 32")]
    Window(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_at_their_index_under_distinct_names() {
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), i);
            assert!(DropReason::ALL.iter().filter(|r| r.name() == reason.name()).count() == 1);
        }
    }
}
