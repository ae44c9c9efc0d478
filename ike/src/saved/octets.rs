//! CBOR (RFC 8949) of what is kept, and of single values in it. What is read is held against what this version would write:
//! anything else, from a newer version or from nobody, is refused and not read in part.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use cygnet_model::SecretBytes;
use cygnet_model::selector::TrafficSelector;
use minicbor::bytes::ByteSlice;
use minicbor::decode::{Decode, Decoder, Error};
use minicbor::encode::{Encode, Encoder, Error as EncodeError, Write};
use zeroize::Zeroizing;

use super::{SavedError, VERSION};
use crate::wire::Identity;
use crate::wire::reader::Reader;
use crate::wire::ts;

/// Octets that are borrowed: from what is kept when it is written, from the file when it is read.
pub type Octets<'a> = &'a ByteSlice;

/// A growing buffer that leaves nothing behind: its octets are wiped wherever they were.
struct Wiped(Zeroizing<Vec<u8>>);

impl Write for Wiped {
    type Error = Infallible;

    fn write_all(&mut self, octets: &[u8]) -> Result<(), Infallible> {
        let needed = self.0.len().saturating_add(octets.len());
        if self.0.capacity() < needed {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.saturating_mul(2)));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(octets);
        Ok(())
    }
}

/// Writes a record under the version of this program.
pub fn write<T: Encode<()>>(record: &T) -> SecretBytes {
    let mut encoder = Encoder::new(Wiped(Zeroizing::new(Vec::with_capacity(2048))));
    // Writing to memory does not fail, and no value of ours is without an encoding.
    let written = encoder.u32(VERSION).and_then(|e| e.encode(record));
    debug_assert!(written.is_ok());
    SecretBytes::new(std::mem::take(&mut *encoder.into_writer().0))
}

/// Reads a record, all of it and nothing but it.
pub fn read<'a, T: Decode<'a, ()> + Encode<()>>(octets: &'a [u8]) -> Result<T, SavedError> {
    let mut decoder = Decoder::new(octets);
    let version = decoder.u32().map_err(|_| SavedError::Malformed)?;
    if version != VERSION {
        return Err(SavedError::Version(version));
    }
    let record: T = decoder.decode().map_err(|_| SavedError::Malformed)?;
    if write(&record).expose() == octets { Ok(record) } else { Err(SavedError::Unknown) }
}

/// An IP address: 4 or 16 octets.
#[derive(Clone, Copy)]
pub struct Ip(pub IpAddr);

impl<C> Encode<C> for Ip {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        match self.0 {
            IpAddr::V4(a) => e.bytes(&a.octets())?.ok(),
            IpAddr::V6(a) => e.bytes(&a.octets())?.ok(),
        }
    }
}

impl<'b, C> Decode<'b, C> for Ip {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        let octets = d.bytes()?;
        let (four, sixteen) = (<[u8; 4]>::try_from(octets), <[u8; 16]>::try_from(octets));
        let address = four.map(IpAddr::from).or(sixteen.map(IpAddr::from));
        address.map(Self).map_err(|_| Error::message("an address has 4 or 16 octets"))
    }
}

/// Address and port; with IPv6 also flow label and scope, which tell neighbours of several links apart.
#[derive(Clone, Copy)]
pub struct Socket(pub SocketAddr);

impl<C> Encode<C> for Socket {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        match self.0 {
            SocketAddr::V4(a) => {
                let mut octets = [0; 6];
                octets[..4].copy_from_slice(&a.ip().octets());
                octets[4..].copy_from_slice(&a.port().to_be_bytes());
                e.bytes(&octets)?.ok()
            }
            SocketAddr::V6(a) => {
                let mut octets = [0; 26];
                octets[..16].copy_from_slice(&a.ip().octets());
                octets[16..18].copy_from_slice(&a.port().to_be_bytes());
                octets[18..22].copy_from_slice(&a.flowinfo().to_be_bytes());
                octets[22..].copy_from_slice(&a.scope_id().to_be_bytes());
                e.bytes(&octets)?.ok()
            }
        }
    }
}

impl<'b, C> Decode<'b, C> for Socket {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        let octets = d.bytes()?;
        let mut r = Reader::new(octets);
        let read = match octets.len() {
            6 => (|| Ok(SocketAddr::from((r.array::<4>()?, r.u16()?))))(),
            _ => (|| {
                let (ip, port) = (r.array::<16>()?.into(), r.u16()?);
                Ok(SocketAddrV6::new(ip, port, r.u32()?, r.u32()?).into())
            })(),
        };
        let read: Result<_, crate::wire::DecodeErrorKind> = read;
        match (read, r.finish()) {
            (Ok(socket), Ok(())) => Ok(Self(socket)),
            _ => Err(Error::message("address and port have 6 or 26 octets")),
        }
    }
}

/// Traffic selectors one after the other, each as RFC 7296 §3.13.1 has it.
pub struct Nets<'a>(pub Cow<'a, [TrafficSelector]>);

impl<'a> From<&'a [TrafficSelector]> for Nets<'a> {
    fn from(nets: &'a [TrafficSelector]) -> Self {
        Self(Cow::Borrowed(nets))
    }
}

impl<'a> From<&'a Vec<TrafficSelector>> for Nets<'a> {
    fn from(nets: &'a Vec<TrafficSelector>) -> Self {
        Self(Cow::Borrowed(nets))
    }
}

impl<C> Encode<C> for Nets<'_> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        let mut octets = Vec::with_capacity(self.0.len() * 16);
        self.0.iter().for_each(|s| ts::append(s, &mut octets));
        e.bytes(&octets)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Nets<'_> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        let mut r = Reader::new(d.bytes()?);
        let mut nets = Vec::new();
        while !r.is_empty() {
            match ts::next(&mut r) {
                Ok(Some(s)) => nets.push(s),
                _ => return Err(Error::message("a traffic selector of RFC 7296")),
            }
        }
        Ok(Self(Cow::Owned(nets)))
    }
}

/// An identity as the body of an ID payload (RFC 7296 §3.5).
pub struct Id<'a>(pub Cow<'a, Identity>);

impl<C> Encode<C> for Id<'_> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&self.0.body())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Id<'_> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, Error> {
        let id = Identity::decode(d.bytes()?).map_err(|_| Error::message("an identity of RFC 7296"))?;
        Ok(Self(Cow::Owned(id)))
    }
}
