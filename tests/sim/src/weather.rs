//! Weather out of a recording (`cygnet bugreport`): what one end saw come and go tells which messages were lost, late or
//! repeated, and the same happens to the messages of a laboratory.
//!
//! One end does not see everything. A request that was answered only when it was sent again counts as lost on its way there,
//! although perhaps the answer was; a request of the peer's that never came is unknown; times on the way are half the time
//! until the answer. Fragments are not told apart: exchanges with them have fair weather. Nothing is known of contents: the
//! laboratory's gateways have its own policies, keys and peers of our own kind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cygnet_ike::recording::Sighting;
use cygnet_ike::wire::{Exchange, Header, PayloadType};
use cygnet_model::Timestamp;

/// Longest time on the way: an answer that took longer is one to something else.
const LONGEST: Duration = Duration::from_secs(60);

/// Which end began an exchange.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Begun {
    /// The one that recorded.
    Here,
    /// The other one.
    There,
}

/// One transmission of a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Transmission {
    begun: Begun,
    /// Counts exchanges of that end from 0.
    exchange: usize,
    response: bool,
    /// Counts transmissions of the same message from 0.
    nth: usize,
}

/// What becomes of a transmission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It vanishes.
    Lost,
    /// It arrives.
    Arrives {
        /// Time on the way; `None`: as the link has it.
        after: Option<Duration>,
        /// How often, at least once.
        copies: usize,
    },
}

/// Counts exchanges by the ends that began them, and transmissions.
#[derive(Clone, Default, Debug)]
struct Count {
    exchanges: BTreeMap<(u64, Begun, u32), usize>,
    begun: [usize; 2],
    transmissions: BTreeMap<(Begun, usize, bool), usize>,
}

impl Count {
    fn next(&mut self, begun: Begun, h: &Header) -> Transmission {
        let next = &mut self.begun[begun as usize];
        let exchange = *self.exchanges.entry((h.spi_i, begun, h.message_id)).or_insert_with(|| {
            *next += 1;
            *next - 1
        });
        let count = self.transmissions.entry((begun, exchange, h.response)).or_default();
        *count += 1;
        Transmission { begun, exchange, response: h.response, nth: *count - 1 }
    }
}

/// The weather of an IKE SA.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Which gateway of the laboratory stands for the one that recorded: the initiator is 0.
    pub here: usize,
    /// Whether it begins with the IKE SA; else with the first exchange after IKE_AUTH.
    pub from_beginning: bool,
    fates: BTreeMap<Transmission, Fate>,
    count: Count,
}

/// Requests that wait for their answer.
#[derive(Default)]
struct Open {
    waiting: Vec<(Transmission, Timestamp)>,
    /// The answer that was sent or came last.
    answer: Option<Transmission>,
}

impl Weather {
    /// The weather that a recording tells of one IKE SA; `None` if it has nothing of it.
    pub fn of(recording: &[Sighting], spi_i: u64) -> Option<Self> {
        let mine: Vec<&Sighting> = recording.iter().filter(|s| s.header.spi_i == spi_i).collect();
        let first = mine.first()?;
        let initiator = first.header.from_initiator == first.sent;
        let begun = |s: &Sighting| if s.sent != s.header.response { Begun::Here } else { Begun::There };
        let fragmented: BTreeSet<(Begun, u32)> = (mine.iter())
            .filter(|s| s.payloads.first() == Some(&PayloadType::SKF))
            .map(|s| (begun(s), s.header.message_id))
            .collect();
        let mut weather = Self {
            here: usize::from(!initiator),
            from_beginning: first.header.exchange == Exchange::IKE_SA_INIT,
            fates: BTreeMap::new(),
            count: Count::default(),
        };
        let mut count = Count::default();
        let mut open: BTreeMap<(Begun, usize), Open> = BTreeMap::new();
        for s in mine {
            let begun = begun(s);
            let transmission = count.next(begun, &s.header);
            // They are counted, so that what follows stays in its place.
            if fragmented.contains(&(begun, s.header.message_id)) {
                continue;
            }
            let open = open.entry((begun, transmission.exchange)).or_default();
            match begun {
                Begun::Here => weather.on_own(s, transmission, open),
                Begun::There => weather.on_peers(s, transmission, open),
            }
        }
        Some(weather)
    }

    /// A message of an exchange that we began.
    fn on_own(&mut self, s: &Sighting, transmission: Transmission, open: &mut Open) {
        if !s.header.response {
            // Until an answer comes.
            self.fates.insert(transmission, Fate::Lost);
            open.waiting.push((transmission, s.at));
            return;
        }
        let Some((answered, sent)) = open.waiting.pop() else {
            // The same answer once more; in the laboratory it is not sent again but arrives again.
            if let Some(Fate::Arrives { copies, .. }) = open.answer.and_then(|a| self.fates.get_mut(&a)) {
                *copies += 1;
            }
            return;
        };
        open.waiting.clear();
        let after = Some((s.at.since(sent) / 2).min(LONGEST));
        let nth = open.answer.map_or(0, |last| last.nth + 1);
        let answer = Transmission { nth, ..transmission };
        for arrived in [answered, answer] {
            self.fates.insert(arrived, Fate::Arrives { after, copies: 1 });
        }
        open.answer = Some(answer);
    }

    /// A message of an exchange that the peer began.
    fn on_peers(&mut self, s: &Sighting, transmission: Transmission, open: &mut Open) {
        if s.header.response {
            self.fates.insert(transmission, Fate::Arrives { after: None, copies: 1 });
            open.answer = Some(transmission);
        } else if let Some(answer) = open.answer.take() {
            // Asked again, the peer had not got it.
            self.fates.insert(answer, Fate::Lost);
        }
    }

    /// What becomes of a message that gateway `side` of the laboratory sends; `None`: as the link has it.
    pub fn fate(&mut self, side: usize, message: &[u8]) -> Option<Fate> {
        let (h, _) = Header::decode(message).ok()?;
        if !self.from_beginning && matches!(h.exchange, Exchange::IKE_SA_INIT | Exchange::IKE_AUTH) {
            return None;
        }
        let begun = if (side == self.here) != h.response { Begun::Here } else { Begun::There };
        let transmission = self.count.next(begun, &h);
        let known = self.fates.get(&transmission).copied();
        // The laboratory's timers are others. What was not sent in an exchange of which all is known did not get through.
        known.or_else(|| (begun == Begun::Here && self.knows(transmission.exchange)).then_some(Fate::Lost))
    }

    /// Whether an exchange that the recording end began is in the recording.
    fn knows(&self, exchange: usize) -> bool {
        let first = Transmission { begun: Begun::Here, exchange, response: false, nth: 0 };
        self.fates.contains_key(&first)
    }

    /// How many messages of each exchange are lost: of ours, then of the peer's.
    pub fn losses(&self, begun: Begun) -> Vec<usize> {
        let mut losses = Vec::new();
        for (t, fate) in self.fates.iter().filter(|(t, _)| t.begun == begun) {
            if losses.len() <= t.exchange {
                losses.resize(t.exchange + 1, 0);
            }
            losses[t.exchange] += usize::from(*fate == Fate::Lost);
        }
        losses
    }
}
