//! What is kept, by key, and how a list of changes looks as octets.
//!
//! ```text
//!  +------+-----------------+---------------+-------------+
//!  | kind | key, by kind    | length, 4     | value       |     of a deletion: kind | 0x80, and only the key
//!  +------+-----------------+---------------+-------------+
//! ```

use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, IkeSpi, SecretBytes, Spi, TunnelId};
use zeroize::Zeroizing;

/// Longest value in octets.
pub const MAX_VALUE: usize = 1 << 20;
const DELETED: u8 = 0x80;

/// What a value is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    /// That the daemon ended by handing over, and knew exactly what its SAs had counted.
    HandedOver,
    /// Bandwidth levels that were set by command.
    Levels,
    /// An IKE SA, by our SPI.
    Ike(IkeSpi),
    /// An ESP SA as it was installed.
    Sa(SaId),
    /// What an ESP SA has counted, at least.
    Count(SaId),
    /// The outer addresses to which an ESP SA has moved.
    Path(SaId),
    /// What a tunnel has counted, as it was last shown.
    Tally(TunnelId),
    /// A limit that was set by command, by a number made of its gateway and address.
    Limit(u64),
    /// What was counted of the host, exactly as it was when the daemon handed over.
    Host,
}

/// One change.
#[derive(PartialEq, Eq, Debug)]
pub enum Record {
    /// From here on the key has this value, of at most [`MAX_VALUE`] octets.
    Put(Key, SecretBytes),
    /// From here on the key has none.
    Delete(Key),
}

/// The octets are not records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl Key {
    const fn kind(self) -> u8 {
        match self {
            Self::HandedOver => 0,
            Self::Ike(_) => 1,
            Self::Sa(_) => 2,
            Self::Count(_) => 3,
            Self::Path(_) => 4,
            Self::Levels => 5,
            Self::Tally(_) => 6,
            Self::Limit(_) => 7,
            Self::Host => 8,
        }
    }

    fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::HandedOver | Self::Levels | Self::Host => {}
            Self::Ike(spi) => out.extend_from_slice(&spi.to_be_bytes()),
            Self::Limit(number) => out.extend_from_slice(&number.to_be_bytes()),
            Self::Tally(tunnel) => out.extend_from_slice(&tunnel.0.to_be_bytes()),
            Self::Sa(sa) | Self::Count(sa) | Self::Path(sa) => {
                write_sa(sa, out);
            }
        }
    }

    fn read(kind: u8, from: &mut &[u8]) -> Option<Self> {
        Some(match kind {
            0 => Self::HandedOver,
            1 => Self::Ike(IkeSpi::new(u64::from_be_bytes(take(from)?))?),
            2 => Self::Sa(read_sa(from)?),
            3 => Self::Count(read_sa(from)?),
            4 => Self::Path(read_sa(from)?),
            5 => Self::Levels,
            6 => Self::Tally(TunnelId(u32::from_be_bytes(take(from)?))),
            7 => Self::Limit(u64::from_be_bytes(take(from)?)),
            8 => Self::Host,
            _ => return None,
        })
    }
}

/// Appends an SA's identifier.
pub(super) fn write_sa(sa: SaId, out: &mut Vec<u8>) {
    out.extend_from_slice(&sa.child.tunnel.0.to_be_bytes());
    out.extend_from_slice(&sa.child.index.to_be_bytes());
    out.push(u8::from(sa.direction == Direction::Out));
    out.extend_from_slice(&sa.spi.to_be_bytes());
}

/// Takes an SA's identifier off the front.
pub(super) fn read_sa(from: &mut &[u8]) -> Option<SaId> {
    let tunnel = TunnelId(u32::from_be_bytes(take(from)?));
    let index = u16::from_be_bytes(take(from)?);
    let direction = match take(from)? {
        [0] => Direction::In,
        [1] => Direction::Out,
        [_] => return None,
    };
    let spi = Spi::new(u32::from_be_bytes(take(from)?))?;
    Some(SaId { child: ChildId { tunnel, index }, direction, spi })
}

/// Takes a field of fixed length off the front.
pub(super) fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (field, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*field)
}

impl Record {
    /// Its key.
    pub const fn key(&self) -> Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => *key,
        }
    }

    /// How many octets it takes, at most.
    pub fn room(&self) -> usize {
        match self {
            Self::Put(_, value) => 16 + value.len(),
            Self::Delete(_) => 12,
        }
    }

    /// Appends it to `out`. A buffer with too little room would leave a copy of keys behind: see [`Self::room`].
    pub fn write(&self, out: &mut Zeroizing<Vec<u8>>) {
        match self {
            Self::Put(key, value) => write_put(*key, value.expose(), out),
            Self::Delete(key) => {
                out.push(key.kind() | DELETED);
                key.write(out);
            }
        }
    }
}

fn write_put(key: Key, value: &[u8], out: &mut Zeroizing<Vec<u8>>) {
    out.push(key.kind());
    key.write(out);
    // Longer ones are refused before.
    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
    out.extend_from_slice(value);
}

/// Reads a list of records to its end.
///
/// # Errors
/// If they are anything but records.
pub fn parse(mut from: &[u8]) -> Result<Vec<Record>, Malformed> {
    let mut records = Vec::new();
    while let Some((kind, rest)) = from.split_first() {
        from = rest;
        records.push(parse_one(*kind, &mut from).ok_or(Malformed)?);
    }
    Ok(records)
}

fn parse_one(kind: u8, from: &mut &[u8]) -> Option<Record> {
    if kind & DELETED != 0 {
        return Some(Record::Delete(Key::read(kind & !DELETED, from)?));
    }
    let key = Key::read(kind, from)?;
    let len = usize::try_from(u32::from_be_bytes(take(from)?)).ok().filter(|len| *len <= MAX_VALUE)?;
    let (value, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(Record::Put(key, SecretBytes::copy_of(value)))
}
