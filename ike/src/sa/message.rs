//! Sealed messages of one IKE SA: the SK payload, and fragmentation into SKF payloads (RFC 7383).

use std::collections::BTreeMap;

use cygnet_model::SecretBytes;
use cygnet_model::suite::IkeSuite;

use crate::crypto::Random;
use crate::crypto::cipher::SkCipher;
use crate::crypto::keymat::IkeKeys;
use crate::error::DropReason;
use crate::io::Role;
use crate::wire::reader::Reader;
use crate::wire::{DecodeError, Exchange, HEADER_LEN, Header, PayloadType, Payloads, Writer, split};

/// Largest IKE message that is not fragmented, in octets: what fits the IPv6 minimum MTU of 1280 after IP, UDP and the
/// non-ESP marker.
const FRAGMENT_SIZE: usize = 1228;

/// Most fragments of one message that we take. 64 KiB, the limit of reassembly, need 54 of ours.
const MAX_FRAGMENTS: u16 = 128;

/// Most octets of one message in reassembly.
const MAX_REASSEMBLY: usize = 64 * 1024;

/// Seals and opens the messages of one IKE SA.
pub(crate) struct Channel {
    pub spi_i: u64,
    pub spi_r: u64,
    pub role: Role,
    /// What the ciphers were made of, for whoever keeps the IKE SA.
    pub keys: ChannelKeys,
    tx: SkCipher,
    rx: SkCipher,
    /// Whether the peer takes fragments.
    pub fragmentation: bool,
    requests: Reassembly,
    responses: Reassembly,
}

/// Keys of both directions (RFC 7296 §2.14). Those of integrity are empty with combined modes.
pub(crate) struct ChannelKeys {
    pub sk_ei: SecretBytes,
    pub sk_er: SecretBytes,
    pub sk_ai: SecretBytes,
    pub sk_ar: SecretBytes,
}

/// What opening a datagram gave.
#[allow(clippy::large_enum_variant, reason = "lives for one call, on the stack")]
pub(crate) enum Opened {
    /// A whole message; the inner error is authentic, so it deserves an answer.
    Message(Result<Payloads, DecodeError>),
    /// A fragment of a message that is not complete yet.
    Partial,
}

/// A whole message without what protects it.
pub(crate) struct Plain {
    pub payloads: Result<Payloads, DecodeError>,
    pub content: Content,
}

/// A whole message as it stands before encryption and fragmentation, which is what IKE_AUTH proves of IKE_INTERMEDIATE:
/// `IntAuth_A | IntAuth_P` of RFC 9242 §3.3.2, the header with adjusted lengths and the inner payloads.
pub(crate) struct Content(Vec<u8>);

impl Content {
    /// Of a datagram of the message (any fragment has the same header), the octet of its SK header that holds the critical bit
    /// and what is reserved, and the inner payloads with the type of the first one. `None` if it is too long for an SK payload.
    fn of(datagram: &[u8], reserved: u8, first: PayloadType, plain: &[u8]) -> Option<Self> {
        let payload = 4 + plain.len();
        let mut octets = Vec::with_capacity(HEADER_LEN + payload);
        octets.extend_from_slice(datagram.get(..16)?);
        octets.push(PayloadType::SK.0);
        octets.extend_from_slice(datagram.get(17..24)?);
        octets.extend_from_slice(&u32::try_from(HEADER_LEN + payload).ok()?.to_be_bytes());
        octets.extend_from_slice(&[first.0, reserved]);
        octets.extend_from_slice(&u16::try_from(payload).ok()?.to_be_bytes());
        octets.extend_from_slice(plain);
        Some(Self(octets))
    }

    pub fn octets(&self) -> &[u8] {
        &self.0
    }

    /// Of a message that another implementation made.
    #[cfg(test)]
    pub const fn of_octets(octets: Vec<u8>) -> Self {
        Self(octets)
    }
}

/// The inner payloads of a whole message, as they were opened.
struct Chain {
    first: PayloadType,
    reserved: u8,
    plain: Vec<u8>,
}

impl Channel {
    /// Takes the ciphers of an IKE SA into use. `None` if the keys do not fit the suite, which derived keys do.
    pub fn new(suite: IkeSuite, keys: &IkeKeys, spi_i: u64, spi_r: u64, role: Role) -> Option<Self> {
        let keys = ChannelKeys {
            sk_ei: keys.sk_ei.duplicate(),
            sk_er: keys.sk_er.duplicate(),
            sk_ai: keys.sk_ai.duplicate(),
            sk_ar: keys.sk_ar.duplicate(),
        };
        Self::with(suite, keys, spi_i, spi_r, role)
    }

    fn with(suite: IkeSuite, keys: ChannelKeys, spi_i: u64, spi_r: u64, role: Role) -> Option<Self> {
        let cipher = |e: &SecretBytes, a: &SecretBytes| SkCipher::new(suite.encr, suite.integ, e, a);
        let from_i = cipher(&keys.sk_ei, &keys.sk_ai)?;
        let from_r = cipher(&keys.sk_er, &keys.sk_ar)?;
        let (tx, rx) = match role {
            Role::Initiator => (from_i, from_r),
            Role::Responder => (from_r, from_i),
        };
        let (requests, responses) = (Reassembly::default(), Reassembly::default());
        Some(Self { spi_i, spi_r, role, keys, tx, rx, fragmentation: false, requests, responses })
    }

    /// The same for an IKE SA of an earlier process: the IVs go on from a random one, since nobody knows for sure which of
    /// them were used.
    pub fn resumed(
        suite: IkeSuite,
        keys: ChannelKeys,
        spi_i: u64,
        spi_r: u64,
        role: Role,
        random: &mut dyn Random,
    ) -> Option<Self> {
        let mut channel = Self::with(suite, keys, spi_i, spi_r, role)?;
        channel.tx.resume(random);
        Some(channel)
    }

    /// Seals payloads into one datagram, or several if they are large and the peer takes fragments. `None` only when
    /// the cipher's IVs are used up.
    pub fn seal(
        &mut self,
        exchange: Exchange,
        message_id: u32,
        response: bool,
        payloads: &Payloads,
        random: &mut dyn Random,
    ) -> Option<Vec<Vec<u8>>> {
        let (first, plain) = inner(payloads);
        self.seal_chain(exchange, message_id, response, (first, &plain), random)
    }

    /// The same, with what IKE_AUTH proves of the message.
    pub fn seal_proven(
        &mut self,
        exchange: Exchange,
        message_id: u32,
        response: bool,
        payloads: &Payloads,
        random: &mut dyn Random,
    ) -> Option<(Vec<Vec<u8>>, Content)> {
        let (first, plain) = inner(payloads);
        let datagrams = self.seal_chain(exchange, message_id, response, (first, &plain), random)?;
        let content = Content::of(datagrams.first()?, 0, first, &plain)?;
        Some((datagrams, content))
    }

    fn seal_chain(
        &mut self,
        exchange: Exchange,
        message_id: u32,
        response: bool,
        (first, plain): (PayloadType, &[u8]),
        random: &mut dyn Random,
    ) -> Option<Vec<Vec<u8>>> {
        let whole = HEADER_LEN + 4 + plain.len() + self.tx.overhead(plain.len());
        if !self.fragmentation || whole <= FRAGMENT_SIZE {
            return Some(vec![self.seal_one(exchange, message_id, response, first, plain, None, random)?]);
        }
        // The largest plaintext whose sealed fragment still fits; 64 covers headers, and IV, padding and ICV of any suite.
        let room = FRAGMENT_SIZE - HEADER_LEN - 8 - 64;
        let total = u16::try_from(plain.len().div_ceil(room)).ok()?;
        let mut out = Vec::new();
        for (part, number) in plain.chunks(room).zip(1u16..) {
            let next = if number == 1 { first } else { PayloadType::NONE };
            let fragment = Some((number, total));
            out.push(self.seal_one(exchange, message_id, response, next, part, fragment, random)?);
        }
        Some(out)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one datagram")]
    pub fn seal_one(
        &mut self,
        exchange: Exchange,
        message_id: u32,
        response: bool,
        first: PayloadType,
        plain: &[u8],
        fragment: Option<(u16, u16)>,
        random: &mut dyn Random,
    ) -> Option<Vec<u8>> {
        let kind = if fragment.is_some() { PayloadType::SKF } else { PayloadType::SK };
        let header = Header {
            spi_i: self.spi_i,
            spi_r: self.spi_r,
            next: kind,
            exchange,
            from_initiator: self.role == Role::Initiator,
            response,
            message_id,
        };
        let mut out = Vec::with_capacity(HEADER_LEN + 64 + plain.len());
        header.encode(&mut out);
        out.extend_from_slice(&[first.0, 0, 0, 0]);
        if let Some((number, total)) = fragment {
            out.extend_from_slice(&number.to_be_bytes());
            out.extend_from_slice(&total.to_be_bytes());
        }
        // Lengths are covered by the integrity check, so they are written before sealing.
        let length = out.len() + plain.len() + self.tx.overhead(plain.len());
        out.get_mut(24..28)?.copy_from_slice(&u32::try_from(length).ok()?.to_be_bytes());
        let payload = u16::try_from(length - HEADER_LEN).ok()?;
        out.get_mut(HEADER_LEN + 2..HEADER_LEN + 4)?.copy_from_slice(&payload.to_be_bytes());
        self.tx.seal(&mut out, plain, random)?;
        Some(out)
    }

    /// Reads a whole message of either direction, for tests.
    #[cfg(feature = "test-util")]
    pub fn read(&self, header: &Header, datagram: &[u8]) -> Option<Payloads> {
        let payloads = split(header.next, datagram.get(HEADER_LEN..)?).ok()?;
        let sealed = payloads.first().filter(|p| p.kind == PayloadType::SK)?;
        let aad = datagram.get(..HEADER_LEN + 4)?;
        let own = header.from_initiator == (self.role == Role::Initiator);
        let plain = if own { &self.tx } else { &self.rx }.open(aad, sealed.body).ok()?;
        Payloads::decode(sealed.next, &plain).ok()
    }

    /// Whether a datagram that was taken before is really the peer's, without taking it again.
    pub fn authenticate(&self, header: &Header, datagram: &[u8]) -> Result<(), DropReason> {
        let chain = datagram.get(HEADER_LEN..).ok_or(DropReason::Malformed)?;
        let payloads = split(header.next, chain).map_err(|_| DropReason::Malformed)?;
        let [sealed] = payloads.as_slice() else { return Err(DropReason::Malformed) };
        let fields = match sealed.kind {
            PayloadType::SK => 0,
            PayloadType::SKF => 4,
            _ => return Err(DropReason::Malformed),
        };
        let aad = datagram.get(..HEADER_LEN + 4 + fields).ok_or(DropReason::Malformed)?;
        let body = sealed.body.get(fields..).ok_or(DropReason::Malformed)?;
        self.rx.open(aad, body).map(|_| ()).map_err(|_| DropReason::Integrity)
    }

    /// Opens a datagram whose header was decoded. Nothing is known of the sender unless this succeeds.
    pub fn open(&mut self, header: &Header, datagram: &[u8]) -> Result<Opened, DropReason> {
        Ok(match self.open_chain(header, datagram)? {
            Some(chain) => Opened::Message(Payloads::decode(chain.first, &chain.plain)),
            None => Opened::Partial,
        })
    }

    /// The same, with what IKE_AUTH proves of the message; `None` for a fragment of one that is not complete yet.
    pub fn open_proven(&mut self, header: &Header, datagram: &[u8]) -> Result<Option<Plain>, DropReason> {
        let Some(Chain { first, reserved, plain }) = self.open_chain(header, datagram)? else {
            return Ok(None);
        };
        let content = Content::of(datagram, reserved, first, &plain).ok_or(DropReason::Malformed)?;
        Ok(Some(Plain { payloads: Payloads::decode(first, &plain), content }))
    }

    fn open_chain(&mut self, header: &Header, datagram: &[u8]) -> Result<Option<Chain>, DropReason> {
        let chain = datagram.get(HEADER_LEN..).ok_or(DropReason::Malformed)?;
        let payloads = split(header.next, chain).map_err(|_| DropReason::Malformed)?;
        // The encrypted payload is the only one: what stands before it would be believed without need.
        let [sealed] = payloads.as_slice() else { return Err(DropReason::Malformed) };
        let reserved = *chain.get(1).ok_or(DropReason::Malformed)?;
        match sealed.kind {
            PayloadType::SK => {
                let aad = datagram.get(..HEADER_LEN + 4).ok_or(DropReason::Malformed)?;
                let plain = self.rx.open(aad, sealed.body).map_err(|_| DropReason::Integrity)?;
                Ok(Some(Chain { first: sealed.next, reserved, plain }))
            }
            PayloadType::SKF if self.fragmentation => {
                let (number, total) = fragment_numbers(sealed.body)?;
                let aad = datagram.get(..HEADER_LEN + 8).ok_or(DropReason::Malformed)?;
                let body = sealed.body.get(4..).ok_or(DropReason::Malformed)?;
                let plain = self.rx.open(aad, body).map_err(|_| DropReason::Integrity)?;
                let reassembly = if header.response { &mut self.responses } else { &mut self.requests };
                reassembly.add(header.message_id, number, total, (sealed.next, reserved), plain)
            }
            PayloadType::SKF => Err(DropReason::Fragment),
            _ => Err(DropReason::Malformed),
        }
    }
}

/// The type of the first payload, and all of them.
fn inner(payloads: &Payloads) -> (PayloadType, Vec<u8>) {
    let mut chain = Writer::chain();
    payloads.encode(&mut chain);
    (chain.first(), chain.into_chain())
}

fn fragment_numbers(body: &[u8]) -> Result<(u16, u16), DropReason> {
    let mut r = Reader::new(body);
    let (number, total) = (r.u16(), r.u16());
    let (Ok(number), Ok(total)) = (number, total) else { return Err(DropReason::Malformed) };
    if number == 0 || number > total || total > MAX_FRAGMENTS {
        return Err(DropReason::Fragment);
    }
    Ok((number, total))
}

/// Whether a repeated datagram asks for the response again: whole messages do, of fragments only the first
/// (RFC 7383 §2.6.1).
pub(crate) fn asks_again(header: &Header, datagram: &[u8]) -> bool {
    match header.next {
        PayloadType::SKF => {
            let body = datagram.get(HEADER_LEN + 4..).unwrap_or(&[]);
            matches!(fragment_numbers(body), Ok((1, _)))
        }
        _ => true,
    }
}

/// The fragments of one message in one direction.
#[derive(Default)]
struct Reassembly {
    message_id: u32,
    total: u16,
    /// Of the first fragment: the type of the first payload, and the octet of the header that holds what is reserved.
    first: Option<(PayloadType, u8)>,
    parts: BTreeMap<u16, Vec<u8>>,
    octets: usize,
}

impl Reassembly {
    /// Takes an authenticated fragment; returns the whole chain with the last one.
    fn add(
        &mut self,
        message_id: u32,
        number: u16,
        total: u16,
        head: (PayloadType, u8),
        plain: Vec<u8>,
    ) -> Result<Option<Chain>, DropReason> {
        // A larger total means that the sender chose smaller fragments: start over. A smaller one is an old copy
        // (RFC 7383 §2.6).
        if message_id != self.message_id || total > self.total {
            *self = Self { message_id, total, ..Self::default() };
        } else if total < self.total || self.parts.contains_key(&number) {
            return Err(DropReason::Fragment);
        }
        self.octets = self.octets.saturating_add(plain.len());
        if self.octets > MAX_REASSEMBLY {
            *self = Self::default();
            return Err(DropReason::Fragment);
        }
        if number == 1 {
            self.first = Some(head);
        }
        self.parts.insert(number, plain);
        if self.parts.len() < usize::from(total) {
            return Ok(None);
        }
        let done = std::mem::take(self);
        let (first, reserved) = done.first.ok_or(DropReason::Fragment)?;
        let plain = done.parts.into_values().flatten().collect();
        Ok(Some(Chain { first, reserved, plain }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: (PayloadType, u8) = (PayloadType::SA, 0);
    const OTHER: (PayloadType, u8) = (PayloadType::NONE, 0);

    proptest! {
        #[test]
        fn t43_reassembly_is_exact_or_refuses(
            order in Just((1u16..=9).collect::<Vec<_>>()).prop_shuffle(),
            repeat in 0usize..9,
            wrong_total in 0u16..20,
        ) {
            let mut r = Reassembly::default();
            let part = |n: u16| vec![n as u8; usize::from(n)];
            let mut done = None;
            for (i, n) in order.iter().enumerate() {
                if i == repeat && i > 0 {
                    prop_assert!(r.add(7, order[0], 9, FIRST, part(order[0])).is_err());
                }
                if wrong_total < 9 && wrong_total > 0 && i == 4 {
                    prop_assert!(r.add(7, 1, wrong_total, FIRST, vec![]).is_err());
                }
                done = r.add(7, *n, 9, FIRST, part(*n)).unwrap();
                prop_assert_eq!(done.is_some(), i == 8);
            }
            let want: Vec<u8> = (1u16..=9).flat_map(part).collect();
            prop_assert_eq!(done.unwrap().plain, want);
        }
    }

    #[test]
    fn t43_totals_may_grow_and_octets_are_bounded() {
        let mut r = Reassembly::default();
        assert!(r.add(1, 1, 2, FIRST, vec![1]).unwrap().is_none());
        assert!(r.add(1, 1, 3, FIRST, vec![2]).unwrap().is_none(), "starts over");
        assert!(r.add(1, 2, 3, OTHER, vec![3]).unwrap().is_none());
        assert_eq!(r.add(1, 3, 3, OTHER, vec![4]).unwrap().unwrap().plain, [2, 3, 4]);
        for n in 1..=64 {
            assert!(r.add(2, n, 100, FIRST, vec![0; 1024]).is_ok());
        }
        assert!(r.add(2, 65, 100, FIRST, vec![0; 1024]).is_err());
        for (number, total) in [(0u16, 1u16), (2, 1), (1, 0), (1, 65535)] {
            let body = [number.to_be_bytes(), total.to_be_bytes()].concat();
            assert_eq!(fragment_numbers(&body), Err(DropReason::Fragment), "{number}/{total}");
        }
    }
}
