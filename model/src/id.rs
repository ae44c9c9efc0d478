//! Identifiers as newtypes, so that an ESP SPI, an IKE SPI and a reqid cannot be swapped by accident.

use std::fmt;
use std::num::NonZeroU64;

/// An ESP security parameter index. Values 0..=255 are reserved (RFC 4303 §2.1) and cannot be held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(u32);

impl Spi {
    /// Takes the SPI in host byte order; `None` for the reserved values 0..=255.
    pub const fn new(value: u32) -> Option<Self> {
        if value > 255 { Some(Self(value)) } else { None }
    }

    /// The SPI in host byte order.
    pub const fn value(self) -> u32 {
        self.0
    }

    /// The SPI as it stands on the wire.
    pub const fn to_be_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spi({self})")
    }
}

/// One side's IKE SA SPI: eight octets, never zero (RFC 7296 §3.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IkeSpi(NonZeroU64);

impl IkeSpi {
    /// Takes the SPI in host byte order; `None` for zero.
    pub const fn new(value: u64) -> Option<Self> {
        match NonZeroU64::new(value) {
            Some(v) => Some(Self(v)),
            None => None,
        }
    }

    /// The SPI in host byte order.
    pub const fn value(self) -> u64 {
        self.0.get()
    }

    /// The SPI as it stands on the wire.
    pub const fn to_be_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IkeSpi({self})")
    }
}

/// A configured tunnel. Its number belongs to its name for as long as that is configured; see [`crate::registry`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TunnelId(pub u32);

impl TunnelId {
    /// Numbers are below this, since a [`Reqid`] has room for no more; the last one is [`ChildId::LAST`]'s.
    pub const LIMIT: u32 = (1 << TUNNEL_BITS) - 1;
}

/// One child of a tunnel: what a pair of ESP SAs serves. It outlives every generation of keys.
///
/// A configured child (a set of SPD rules) has one, by which its guard goes. Where a peer takes only a part of it into
/// one pair of SAs, each part has a child of its own while it is there, with an index from the upper end
/// (see [`ChildId::LIMIT`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChildId {
    /// The tunnel that the child belongs to.
    pub tunnel: TunnelId,
    /// The number of the child in its tunnel, or that of a part.
    pub index: u16,
}

impl ChildId {
    /// Indices are below this, since a [`Reqid`] has room for no more. Parts of configured children count from here
    /// downwards to [`ChildId::CONFIGURED`].
    pub const LIMIT: u16 = 1 << CHILD_BITS;

    /// Indices of configured children are below this, those of parts are not.
    pub const CONFIGURED: u16 = 1 << (CHILD_BITS - 1);

    /// The last child that a [`Reqid`] can name: no configuration has it, so that a probe of the kernel may.
    pub const LAST: Self = Self { tunnel: TunnelId((1 << TUNNEL_BITS) - 1), index: Self::LIMIT - 1 };
}

/// Bits of a reqid that number the child.
const CHILD_BITS: u32 = 11;

/// Bits of a reqid that number the tunnel.
const TUNNEL_BITS: u32 = 17;

/// The number that ties kernel policies to kernel states. Ours carry a mark in the top four bits, by which a restart
/// knows them from others' (see [`Reqid::OURS`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reqid(pub u32);

impl Reqid {
    /// Top four bits of every reqid that cygnet uses.
    pub const OURS: u32 = 0xC << 28;

    /// The reqid of a child: our mark, 17 bits of tunnel and 11 bits of child. `None` beyond those ranges.
    pub const fn of(child: ChildId) -> Option<Self> {
        if child.tunnel.0 < (1 << TUNNEL_BITS) && child.index < ChildId::LIMIT {
            Some(Self(Self::OURS | (child.tunnel.0 << CHILD_BITS) | child.index as u32))
        } else {
            None
        }
    }

    /// The child that a reqid of ours stands for; `None` for reqids of others.
    pub const fn child(self) -> Option<ChildId> {
        if self.0 & (0xF << 28) != Self::OURS {
            return None;
        }
        let tunnel = TunnelId((self.0 & !Self::OURS) >> CHILD_BITS);
        Some(ChildId { tunnel, index: (self.0 & (ChildId::LIMIT as u32 - 1)) as u16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_spis_cannot_be_held() {
        assert_eq!(Spi::new(0), None);
        assert_eq!(Spi::new(255), None);
        assert_eq!(Spi::new(256).map(Spi::value), Some(256));
        assert_eq!(IkeSpi::new(0), None);
    }

    #[test]
    fn reqid_round_trips_and_knows_its_own() {
        for (tunnel, index) in [(4711, 9), ((1 << 17) - 1, 2047), (0, 0)] {
            let child = ChildId { tunnel: TunnelId(tunnel), index };
            assert_eq!(Reqid::of(child).unwrap().child(), Some(child));
        }
        assert_eq!(Reqid::of(ChildId::LAST), Some(Reqid(0xCFFF_FFFF)));
        assert_eq!(Reqid(1).child(), None);
        assert_eq!(Reqid(0xD000_0000).child(), None);
        assert_eq!(Reqid::of(ChildId { tunnel: TunnelId(1 << 17), index: 0 }), None);
        assert_eq!(Reqid::of(ChildId { tunnel: TunnelId(0), index: 2048 }), None);
    }

    /// Those that earlier versions made, with 0xC9 on top, are swept like any other of ours.
    #[test]
    fn reqids_of_earlier_versions_are_known_as_ours() {
        assert!(Reqid(0xC900_0000).child().is_some());
        assert!(Reqid(0xC9FF_FFFF).child().is_some());
    }
}
