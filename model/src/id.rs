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

/// A configured tunnel. The daemon numbers tunnels when it loads the configuration; the number of a tunnel does not
/// change while the daemon runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TunnelId(pub u32);

/// One child of a tunnel: the set of SPD rules that a pair of ESP SAs serves. It outlives every generation of keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChildId {
    /// The tunnel that the child belongs to.
    pub tunnel: TunnelId,
    /// The position of the child in the tunnel's configuration.
    pub index: u16,
}

/// The number that ties kernel policies to kernel states. Ours carry a mark in the top byte, by which a restart knows
/// them from others' (see [`Reqid::OURS`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Reqid(pub u32);

impl Reqid {
    /// Top byte of every reqid that cygnet uses.
    pub const OURS: u32 = 0xC9 << 24;

    /// The reqid of a child: our mark, 18 bits of tunnel and 6 bits of child. `None` beyond those ranges.
    pub const fn of(child: ChildId) -> Option<Self> {
        if child.tunnel.0 < (1 << 18) && child.index < (1 << 6) {
            Some(Self(Self::OURS | (child.tunnel.0 << 6) | child.index as u32))
        } else {
            None
        }
    }

    /// The child that a reqid of ours stands for; `None` for reqids of others.
    pub const fn child(self) -> Option<ChildId> {
        if self.0 & 0xFF00_0000 != Self::OURS {
            return None;
        }
        Some(ChildId { tunnel: TunnelId((self.0 & 0x00FF_FFFF) >> 6), index: (self.0 & 0x3F) as u16 })
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
        let child = ChildId { tunnel: TunnelId(4711), index: 9 };
        assert_eq!(Reqid::of(child).unwrap().child(), Some(child));
        assert_eq!(Reqid(1).child(), None);
        assert_eq!(Reqid::of(ChildId { tunnel: TunnelId(1 << 18), index: 0 }), None);
    }
}
