//! A recording of the last messages: of each IKE SA what stands in clear in their headers, and when and which way they
//! went. For those who look for a fault later, and for the simulator (`docs/recording.md` says how it is written down).
//!
//! It is bounded whoever sends: strangers share one ring until we answer them as somebody, and of IKE SAs the ones that
//! never got beyond IKE_SA_INIT give way first. Nothing of a payload is kept but its type, and of encrypted ones none but the
//! outer one and the first inner one, which stand in clear.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;

use cygnet_model::{Now, Timestamp};

use crate::io::Flow;
use crate::wire::{Exchange, HEADER_LEN, Header, PayloadType, split};

/// Messages kept of an IKE SA: its beginning and an exchange of each kind, with retransmissions.
pub const PER_SA: usize = 32;
/// IKE SAs of which messages are kept.
pub const SAS: usize = 4096;
/// Messages kept of those who are nobody yet.
pub const OF_STRANGERS: usize = 256;
/// Types of payloads kept of a message.
const PAYLOADS: usize = 12;
/// First line of a recording.
pub const TITLE: &str = "# cygnet-recording 1";

/// A message as it was seen at our end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// When, by the clock of the boot.
    pub at: Timestamp,
    /// Whether we sent it.
    pub sent: bool,
    /// Where from and where to.
    pub flow: Flow,
    /// Its header.
    pub header: Header,
    /// Octets, with the header and without non-ESP marker.
    pub length: u32,
    /// Types of payloads in clear. After SK or SKF: the type of the first one inside.
    pub payloads: Vec<PayloadType>,
}

/// The same in as little room as it takes.
#[derive(Clone, Copy)]
struct Kept {
    at: Timestamp,
    flow: u8,
    sent: bool,
    header: Header,
    length: u32,
    payloads: [u8; PAYLOADS],
}

#[derive(Default)]
struct Ring {
    /// Ways that messages took; of an IKE SA there are few.
    flows: Vec<Flow>,
    messages: VecDeque<Kept>,
    turn: Turn,
}

/// When an IKE SA gives way to others: the least goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Turn {
    /// It got beyond IKE_SA_INIT.
    established: bool,
    /// How many messages had been kept when it was touched last.
    touched: u64,
}

/// What the last messages were.
#[derive(Default)]
pub struct Recorder {
    /// By the initiator's SPI, which an IKE SA has from its first message on.
    sas: BTreeMap<u64, Ring>,
    /// The same in the order in which they gave way when that was looked at last. Meanwhile they can only have moved back.
    turns: BTreeSet<(Turn, u64)>,
    strangers: VecDeque<(Flow, Kept)>,
    touches: u64,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("sas", &self.sas.len()).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Takes a datagram that came in, without non-ESP marker. One that is no message is not kept: it is counted elsewhere.
    pub fn received(&mut self, at: Timestamp, flow: Flow, bytes: &[u8]) {
        let Some(kept) = kept(at, false, bytes) else { return };
        if self.sas.contains_key(&kept.header.spi_i) {
            self.keep(flow, kept);
        } else {
            self.keep_of_stranger(flow, kept);
        }
    }

    /// Takes a message that goes out.
    pub fn sent(&mut self, at: Timestamp, flow: Flow, bytes: &[u8]) {
        let Some(kept) = kept(at, true, bytes) else { return };
        let h = &kept.header;
        // A stranger who is asked for a cookie, or for another group, or who is told to go away, is nobody yet.
        if h.response && h.spi_r == 0 && !self.sas.contains_key(&h.spi_i) {
            self.keep_of_stranger(flow, kept);
        } else {
            self.keep(flow, kept);
        }
    }

    fn keep_of_stranger(&mut self, flow: Flow, kept: Kept) {
        if self.strangers.len() == OF_STRANGERS {
            self.strangers.pop_front();
        }
        self.strangers.push_back((flow, kept));
    }

    fn keep(&mut self, flow: Flow, kept: Kept) {
        let spi = kept.header.spi_i;
        self.touches += 1;
        if !self.sas.contains_key(&spi) {
            self.make_room();
            let mut ring = Ring::default();
            // What it said before it was somebody belongs to it.
            self.strangers.retain(|(flow, kept)| {
                let other = kept.header.spi_i != spi;
                if !other {
                    ring.push(*flow, *kept);
                }
                other
            });
            self.turns.insert((ring.turn, spi));
            self.sas.insert(spi, ring);
        }
        if let Some(ring) = self.sas.get_mut(&spi) {
            ring.turn.touched = self.touches;
            ring.turn.established |= kept.header.exchange != Exchange::IKE_SA_INIT;
            ring.push(flow, kept);
        }
    }

    fn make_room(&mut self) {
        if self.sas.len() < SAS {
            return;
        }
        while let Some((then, spi)) = self.turns.pop_first() {
            match self.sas.get(&spi).map(|ring| ring.turn) {
                Some(now) if now != then => self.turns.insert((now, spi)),
                _ => return drop(self.sas.remove(&spi)),
            };
        }
    }

    /// Everything that is kept: each IKE SA's messages together, in the order in which they were seen.
    pub fn sightings(&self) -> Vec<Sighting> {
        let of_sas = self.sas.values().flat_map(|ring| {
            ring.messages.iter().filter_map(|kept| Some(kept.shown(*ring.flows.get(usize::from(kept.flow))?)))
        });
        of_sas.chain(self.strangers.iter().map(|(flow, kept)| kept.shown(*flow))).collect()
    }

    /// The recording in text, as it is read by [`parse`]. `now` ties its clock to that of the world.
    pub fn text(&self, now: Now) -> String {
        let mut text = format!("{TITLE}\n# clock {} is unix {}\n", seconds(now.mono), now.unix);
        for sighting in self.sightings() {
            text.push_str(&sighting.to_string());
            text.push('\n');
        }
        text
    }
}

impl Ring {
    fn push(&mut self, flow: Flow, kept: Kept) {
        let place = self.flows.iter().position(|known| *known == flow).unwrap_or_else(|| {
            // A peer that moves all the time is told apart no more.
            if self.flows.len() < usize::from(u8::MAX) {
                self.flows.reserve_exact(1);
                self.flows.push(flow);
            }
            self.flows.len() - 1
        });
        if self.messages.len() == PER_SA {
            self.messages.pop_front();
        }
        self.messages.push_back(Kept { flow: u8::try_from(place).unwrap_or(0), ..kept });
    }
}

impl Kept {
    fn shown(&self, flow: Flow) -> Sighting {
        let payloads = self.payloads.iter().take_while(|kind| **kind != 0).map(|kind| PayloadType(*kind));
        Sighting {
            at: self.at,
            sent: self.sent,
            flow,
            header: self.header,
            length: self.length,
            payloads: payloads.collect(),
        }
    }
}

/// What is kept of a message; `None` if it is none.
fn kept(at: Timestamp, sent: bool, bytes: &[u8]) -> Option<Kept> {
    let (header, chain) = Header::decode(bytes).ok()?;
    let mut payloads = [0; PAYLOADS];
    // Of a chain that is broken the header tells the first type.
    let all = split(header.next, chain).unwrap_or_default();
    let behind = all.last().map_or(header.next, |raw| raw.next);
    let kinds = all.iter().map(|raw| raw.kind).chain([behind]);
    for (slot, kind) in payloads.iter_mut().zip(kinds) {
        *slot = kind.0;
    }
    let length = u32::try_from(bytes.len()).ok()?;
    Some(Kept { at, flow: 0, sent, header, length, payloads })
}

fn seconds(at: Timestamp) -> String {
    let micros = at.as_nanos() / 1000;
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = &self.header;
        let payloads: Vec<String> = self.payloads.iter().map(|p| p.0.to_string()).collect();
        write!(
            f,
            "{:016x} {:016x} {} {} {} {} {} {} {}{} {} {} {}",
            h.spi_i,
            h.spi_r,
            seconds(self.at),
            if self.sent { "sent" } else { "received" },
            self.flow.local,
            self.flow.remote,
            if self.flow.natt { "natt" } else { "plain" },
            h.exchange.0,
            if h.from_initiator { "I" } else { "R" },
            if h.response { "r" } else { "q" },
            h.message_id,
            self.length,
            if payloads.is_empty() { "-".to_owned() } else { payloads.join(",") },
        )
    }
}

/// What is wrong with a recording.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordingError {
    /// It does not begin as one of this version.
    Title,
    /// A line is none of a message; lines count from 1.
    Line(usize),
}

impl fmt::Display for RecordingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Title => write!(f, "not a recording: it does not begin with \"{TITLE}\""),
            Self::Line(n) => write!(f, "line {n} of the recording is not a message"),
        }
    }
}

impl std::error::Error for RecordingError {}

/// Reads what [`Recorder::text`] has written.
///
/// # Errors
/// At the first line that is something else.
pub fn parse(text: &str) -> Result<Vec<Sighting>, RecordingError> {
    let mut lines = text.lines().enumerate();
    if lines.next().is_none_or(|(_, line)| line != TITLE) {
        return Err(RecordingError::Title);
    }
    lines
        .filter(|(_, line)| !line.starts_with('#') && !line.is_empty())
        .map(|(n, line)| sighting(line).ok_or(RecordingError::Line(n + 1)))
        .collect()
}

fn sighting(line: &str) -> Option<Sighting> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [spi_i, spi_r, at, way, local, remote, port, exchange, flags, id, length, payloads] = fields[..]
    else {
        return None;
    };
    let one_of = |text: &str, yes: &str, no: &str| match text {
        _ if text == yes => Some(true),
        _ if text == no => Some(false),
        _ => None,
    };
    let (whole, micros) = at.split_once('.').filter(|(_, micros)| micros.len() == 6)?;
    let micros = whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)?;
    let (from, kind) = flags.split_at_checked(1)?;
    let types = if payloads == "-" { "" } else { payloads };
    let types: Option<Vec<PayloadType>> =
        types.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().ok().map(PayloadType)).collect();
    let payloads = types.filter(|types| types.len() <= PAYLOADS)?;
    let hex = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok())?;
    let local: SocketAddr = local.parse().ok()?;
    Some(Sighting {
        at: Timestamp::from_nanos(micros.checked_mul(1000)?),
        sent: one_of(way, "sent", "received")?,
        flow: Flow { local, remote: remote.parse().ok()?, natt: one_of(port, "natt", "plain")? },
        header: Header {
            spi_i: hex(spi_i)?,
            spi_r: hex(spi_r)?,
            next: payloads.first().copied().unwrap_or(PayloadType::NONE),
            exchange: Exchange(exchange.parse().ok()?),
            from_initiator: one_of(from, "I", "R")?,
            response: one_of(kind, "r", "q")?,
            message_id: id.parse().ok()?,
        },
        length: length.parse().ok().filter(|n| *n as usize >= HEADER_LEN)?,
        payloads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow {
            local: "192.0.2.1:500".parse().unwrap(),
            remote: "192.0.2.2:500".parse().unwrap(),
            natt: false,
        }
    }

    /// A message with one payload of this type, and a body that must not be found again.
    fn message(spi_i: u64, spi_r: u64, exchange: Exchange, id: u32, response: bool) -> Vec<u8> {
        let next = if exchange == Exchange::IKE_SA_INIT { PayloadType::NONCE } else { PayloadType::SK };
        let from_initiator = true;
        let header = Header { spi_i, spi_r, next, exchange, from_initiator, response, message_id: id };
        let mut out = Vec::new();
        header.encode(&mut out);
        let inner = if next == PayloadType::SK { PayloadType::IDI.0 } else { 0 };
        out.extend_from_slice(&[inner, 0, 0, 24]);
        out.extend_from_slice(b"CANARYCANARYCANARY!!");
        let len = u32::try_from(out.len()).unwrap();
        out[24..28].copy_from_slice(&len.to_be_bytes());
        out
    }

    #[test]
    fn a_recording_is_read_as_it_was_written_and_holds_no_content() {
        let mut r = Recorder::default();
        let at = |ms: u64| Timestamp::from_nanos(ms * 1_000_000);
        r.sent(at(1), flow(), &message(7, 0, Exchange::IKE_SA_INIT, 0, false));
        r.received(at(2), flow(), &message(7, 9, Exchange::IKE_SA_INIT, 0, true));
        r.sent(at(3), flow(), &message(7, 9, Exchange::IKE_AUTH, 1, false));
        r.received(at(4), flow(), b"noise");
        let text = r.text(Now { mono: at(10_500), unix: 1_767_225_600 });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], [TITLE, "# clock 10.500000 is unix 1767225600"]);
        let last = "0000000000000007 0000000000000009 0.003000 sent 192.0.2.1:500 192.0.2.2:500 plain 35 Iq 1 52 46,35";
        assert_eq!(lines[4..], [last]);
        assert!(!text.contains("CANARY") && !text.contains("43414e"), "{text}");
        assert_eq!(parse(&text).unwrap(), r.sightings());
        assert_eq!(parse("# something else\n"), Err(RecordingError::Title));
        assert_eq!(parse(&text.replace("sent", "lost")), Err(RecordingError::Line(3)));
    }

    /// T: whoever sends what, the recording is bounded, and who is known is not displaced by who is not.
    #[test]
    fn strangers_fill_their_own_ring_only() {
        let mut r = Recorder::default();
        let at = Timestamp::default();
        for id in 0..100 {
            r.sent(at, flow(), &message(1, 2, Exchange::INFORMATIONAL, id, false));
        }
        for spi in 100..100_000 {
            r.received(at, flow(), &message(spi, 0, Exchange::IKE_SA_INIT, 0, false));
            r.sent(at, flow(), &message(spi, 0, Exchange::IKE_SA_INIT, 0, true));
        }
        assert_eq!((r.sas.len(), r.strangers.len()), (1, OF_STRANGERS));
        assert_eq!(r.sas[&1].messages.len(), PER_SA);
        // Those who bring a cookie back are answered as somebody, and are many all the same.
        for spi in 100..100 + 2 * SAS as u64 {
            r.sent(at, flow(), &message(spi, spi, Exchange::IKE_SA_INIT, 0, true));
        }
        assert!(r.sas.len() == SAS && r.turns.len() == SAS && r.sas.contains_key(&1));
    }

    #[test]
    fn who_was_silent_for_longest_gives_way() {
        let mut r = Recorder::default();
        let at = Timestamp::default();
        let sas = SAS as u64;
        for spi in (1..=sas).chain([1, 3]) {
            r.sent(at, flow(), &message(spi, 9, Exchange::INFORMATIONAL, 0, false));
        }
        for spi in sas + 1..=sas + 2 {
            r.sent(at, flow(), &message(spi, 9, Exchange::INFORMATIONAL, 0, false));
        }
        let gone: Vec<u64> = (1..=sas + 2).filter(|spi| !r.sas.contains_key(spi)).collect();
        assert_eq!((gone, r.sas.len(), r.turns.len()), (vec![2, 4], SAS, SAS));
    }

    #[test]
    fn who_becomes_somebody_takes_along_what_he_said_before() {
        let mut r = Recorder::default();
        let at = Timestamp::default();
        r.received(at, flow(), &message(5, 0, Exchange::IKE_SA_INIT, 0, false));
        r.sent(at, flow(), &message(5, 6, Exchange::IKE_SA_INIT, 0, true));
        assert_eq!((r.sas[&5].messages.len(), r.strangers.len()), (2, 0));
    }
}
