//! Bandwidth levels, as the configuration writes them: one rate for what is sent, or `{ out: …, in: …, counts: … }`.

use cygnet_model::tunnel::Direction;

use super::error::Wrong;
use super::units;

/// Which octets of a packet a level counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counts {
    /// Those on the line: the outer packet with its Ethernet header.
    Wire,
    /// Those of the packet inside the tunnel.
    Payload,
}

impl Counts {
    /// Its word in the configuration, which is its place in `fields::COUNTS`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Payload => "payload",
        }
    }
}

/// What a gateway or a tunnel may carry in each direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bandwidth {
    /// Bits per second towards the public network; `None`: as much as there is.
    pub out: Option<u64>,
    /// Bits per second that come from there; `None`: as much as there is.
    pub inward: Option<u64>,
    /// Which octets count.
    pub counts: Counts,
}

impl Bandwidth {
    /// A gateway's where the file says nothing: its line is what it pays for.
    pub const GATEWAY: Self = Self { out: None, inward: None, counts: Counts::Wire };
    /// A tunnel's where the file says nothing: what its users see, and what both data planes can count.
    pub const TUNNEL: Self = Self { out: None, inward: None, counts: Counts::Payload };

    /// The level of a direction.
    pub const fn of(&self, direction: Direction) -> Option<u64> {
        match direction {
            Direction::Out => self.out,
            Direction::In => self.inward,
        }
    }

    /// Whether nothing is capped.
    pub const fn is_unlimited(&self) -> bool {
        self.out.is_none() && self.inward.is_none()
    }
}

/// A rate, or `unlimited`.
pub fn level(text: &str) -> Result<Option<u64>, Wrong> {
    if text == "unlimited" { Ok(None) } else { units::rate(text).map(Some) }
}

/// As [`level`] reads it.
pub fn show_level(bps: Option<u64>) -> String {
    bps.map_or_else(|| "unlimited".to_owned(), units::show_rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_read_as_they_are_written_and_nonsense_is_refused() {
        for text in ["unlimited", "5mbit", "1gbit", "1kbit", "100gbit"] {
            assert_eq!(level(text).map(show_level).ok().as_deref(), Some(text));
        }
        for text in ["0", "0mbit", "1000000000000", "1tbit", "1000gbit", "100.1gbit", "-1mbit", "", "none"] {
            let wrong = level(text).unwrap_err();
            assert!(!wrong.what.is_empty() && !wrong.fix.is_empty(), "{text}");
        }
    }
}
