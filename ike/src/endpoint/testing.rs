//! What tests may look at and say in an endpoint's name. Not part of the daemon.

use cygnet_model::{IkeSpi, TunnelId};

use super::Endpoint;
use crate::sa::{Channel, IkeSa, State};
use crate::wire::{Exchange, HEADER_LEN, Header, PayloadType, Payloads, Writer};

impl Endpoint {
    /// Our SPIs of all IKE SAs, in the order in which the SAs began.
    pub fn spis(&self) -> Vec<IkeSpi> {
        let mut all: Vec<_> = self.sas.values().map(|sa| (sa.core.created, sa.core.spi)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, spi)| spi).collect()
    }

    /// Our SPIs of one tunnel's IKE SAs, in any state.
    pub fn spis_of(&self, tunnel: TunnelId) -> Vec<IkeSpi> {
        self.by_tunnel.get(&tunnel).into_iter().flatten().copied().collect()
    }

    /// How many jobs are waited for.
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// The name of an IKE SA's state.
    pub fn state_name(&self, spi: IkeSpi) -> Option<&'static str> {
        self.sas.get(&spi).map(|sa| sa.state.name())
    }

    /// Both SPIs of an IKE SA as they stand in headers, the initiator's first. Zero for one that is not known yet.
    pub fn header_spis(&self, spi: IkeSpi) -> Option<(u64, u64)> {
        let sa = self.sas.get(&spi)?;
        match &sa.state {
            State::Preparing(_) | State::InitSent(_) => Some((spi.value(), 0)),
            State::Agreeing(s) => Some((spi.value(), s.spi_r)),
            State::InitTaken(s) => Some((s.spi_i, spi.value())),
            State::InitAnswered(s) => Some((s.spi_i, spi.value())),
            State::Intermediate(s) => Some(s.spis()),
            State::AuthSent(s) => Some((s.channel.spi_i, s.channel.spi_r)),
            State::Refused(s) => Some((s.spi_i, spi.value())),
            State::Established(s) | State::Rekeyed(s) | State::Deleting(s) => {
                Some((s.channel.spi_i, s.channel.spi_r))
            }
            State::Closed(_) => None,
        }
    }

    /// The message IDs that an IKE SA listens for: of the peer's next request, and of the answer to our last request.
    pub fn message_ids(&self, spi: IkeSpi) -> Option<(u32, u32)> {
        match &self.sas.get(&spi)?.state {
            State::Preparing(_) | State::InitSent(_) | State::InitTaken(_) => Some((0, 0)),
            State::InitAnswered(s) => Some((s.mixing.due(), 0)),
            State::Agreeing(_) => Some((0, 1)),
            State::Intermediate(s) => Some((0, s.id())),
            State::AuthSent(s) => Some((0, s.id)),
            State::Refused(s) => Some((s.exchange.1 + 1, 0)),
            State::Established(s) | State::Rekeyed(s) | State::Deleting(s) => {
                Some((s.window.expected, s.window.next_request.saturating_sub(1)))
            }
            State::Closed(_) => None,
        }
    }

    /// Pretends that so many requests have gone each way, so that a test sees the end of the message IDs.
    pub fn set_message_ids(&mut self, spi: IkeSpi, sent: u32, received: u32) {
        if let Some(State::Established(s)) = self.sas.get_mut(&spi).map(|sa| &mut sa.state) {
            (s.window.next_request, s.window.expected) = (sent, received);
        }
    }

    /// Seals payloads under an IKE SA's keys, as a peer would that does not keep to the protocol.
    pub fn forge(
        &mut self,
        spi: IkeSpi,
        exchange: Exchange,
        message_id: u32,
        response: bool,
        payloads: &Payloads,
    ) -> Vec<Vec<u8>> {
        let mut chain = Writer::chain();
        payloads.encode(&mut chain);
        let first = chain.first();
        self.forge_chain(spi, exchange, message_id, response, first, &chain.into_chain())
    }

    /// The same for a chain of any octets. Never fragments.
    pub fn forge_chain(
        &mut self,
        spi: IkeSpi,
        exchange: Exchange,
        message_id: u32,
        response: bool,
        first: PayloadType,
        chain: &[u8],
    ) -> Vec<Vec<u8>> {
        let random = self.random.as_mut();
        let channel = self.sas.get_mut(&spi).and_then(channel);
        channel
            .and_then(|c| c.seal_one(exchange, message_id, response, first, chain, None, random))
            .into_iter()
            .collect()
    }

    /// Reads a message of either direction, if we have the keys.
    pub fn read(&self, datagram: &[u8]) -> Option<Payloads> {
        let (header, _) = Header::decode(datagram).ok()?;
        if header.exchange == Exchange::IKE_SA_INIT {
            return Payloads::decode(header.next, datagram.get(HEADER_LEN..)?).ok();
        }
        self.sas.values().filter_map(channel_ref).find_map(|c| c.read(&header, datagram))
    }
}

impl State {
    const fn name(&self) -> &'static str {
        match self {
            Self::Preparing(_) => "Preparing",
            Self::InitSent(_) => "InitSent",
            Self::Agreeing(_) => "Agreeing",
            Self::Intermediate(_) => "Intermediate",
            Self::AuthSent(_) => "AuthSent",
            Self::InitTaken(_) => "InitTaken",
            Self::InitAnswered(_) => "InitAnswered",
            Self::Refused(_) => "Refused",
            Self::Established(_) => "Established",
            Self::Rekeyed(_) => "Rekeyed",
            Self::Deleting(_) => "Deleting",
            Self::Closed(_) => "Closed",
        }
    }
}

fn channel(sa: &mut IkeSa) -> Option<&mut Channel> {
    match &mut sa.state {
        State::Intermediate(s) => Some(s.channel_mut()),
        State::AuthSent(s) => Some(&mut s.channel),
        State::InitAnswered(s) => s.secret.known_mut().map(|d| &mut d.channel),
        State::Established(s) | State::Rekeyed(s) | State::Deleting(s) => Some(&mut s.channel),
        State::Preparing(_)
        | State::InitSent(_)
        | State::Agreeing(_)
        | State::InitTaken(_)
        | State::Refused(_)
        | State::Closed(_) => None,
    }
}

fn channel_ref(sa: &IkeSa) -> Option<&Channel> {
    match &sa.state {
        State::Intermediate(s) => Some(s.channel()),
        State::AuthSent(s) => Some(&s.channel),
        State::InitAnswered(s) => s.secret.known().map(|d| &d.channel),
        State::Established(s) | State::Rekeyed(s) | State::Deleting(s) => Some(&s.channel),
        State::Preparing(_)
        | State::InitSent(_)
        | State::Agreeing(_)
        | State::InitTaken(_)
        | State::Refused(_)
        | State::Closed(_) => None,
    }
}
