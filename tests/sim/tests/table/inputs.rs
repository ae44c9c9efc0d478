//! One kind of input as a row of the table, and the tools that make its messages.

use cygnet_ike::policy::Encap;
use cygnet_ike::wire::{
    Exchange, Notify, NotifyType, PayloadType, Payloads, Proposal, Protocol, Transform, TransformType,
};
use cygnet_ike::{Input, TunnelPolicy};

use crate::outcome::outcome;
use crate::states::{At, Change, Scene};

/// One kind of input.
pub struct Row {
    pub name: String,
    /// The only state that it is meant for; `None` for any.
    pub only_at: Option<At>,
    /// What the two gateways are configured to, beyond the usual.
    pub change: Change,
    /// Gives the input to the gateway and tells the outcome; `None` if it cannot exist in that state.
    #[allow(clippy::type_complexity, reason = "a row is written as a closure")]
    pub play: Box<dyn Fn(&mut Scene) -> Option<String>>,
}

pub fn row(name: impl Into<String>, play: impl Fn(&mut Scene) -> Option<String> + 'static) -> Row {
    Row { name: name.into(), only_at: None, change: |_| {}, play: Box::new(play) }
}

pub fn arrives(scene: &mut Scene, bytes: &[u8]) -> String {
    let flow = scene.flow();
    let now = scene.lab.now();
    outcome(scene, now, Input::Datagram { flow, bytes })
}

/// A request of the peer with the message ID that is due.
pub fn request(name: &str, exchange: Exchange, p: impl Fn(&Scene) -> Payloads + 'static) -> Row {
    row(format!("{exchange} request, {name}"), move |s| {
        let (id, _) = s.ids();
        let payloads = p(s);
        let bytes = s.forge(exchange, id, false, &payloads)?;
        Some(arrives(s, &bytes))
    })
}

/// An answer of the peer with the message ID of our last request.
pub fn response(name: &str, exchange: Exchange, p: impl Fn(&Scene) -> Payloads + 'static) -> Row {
    row(format!("{exchange} response, {name}"), move |s| {
        let (_, id) = s.ids();
        let payloads = p(s);
        let bytes = s.forge(exchange, id, true, &payloads)?;
        Some(arrives(s, &bytes))
    })
}

pub fn only(kind: NotifyType, data: &[u8]) -> Payloads {
    Payloads { notifies: vec![Notify::new(kind, data.to_vec())], ..Payloads::default() }
}

/// An authentic request whose chain of payloads breaks off.
pub fn malformed(exchange: Exchange) -> Row {
    chain(exchange, "malformed", PayloadType::NONCE, &[0, 0, 0, 99, 1])
}

/// An authentic request with a critical payload of a type that nobody knows.
pub fn critical(exchange: Exchange) -> Row {
    chain(exchange, "unknown critical payload", PayloadType(200), &[0, 0x80, 0, 8, 1, 2, 3, 4])
}

pub fn chain(exchange: Exchange, name: &str, first: PayloadType, chain: &'static [u8]) -> Row {
    row(format!("{exchange} request, {name}"), move |s| {
        let (id, spi) = (s.ids().0, s.peer_sa?);
        let forger = &mut s.lab.gateways[s.peer].endpoint;
        let bytes = forger.forge_chain(spi, exchange, id, false, first, chain).pop()?;
        Some(arrives(s, &bytes))
    })
}

pub fn proposal(protocol: Protocol, spi: &[u8], transforms: &[(u8, u16, Option<u16>)]) -> Proposal {
    let transforms = transforms
        .iter()
        .map(|(kind, id, key_bits)| Transform {
            key_bits: *key_bits,
            ..Transform::plain(TransformType(*kind), *id)
        })
        .collect();
    Proposal { number: 1, protocol, spi: spi.to_vec(), transforms }
}

/// Each end believes that the other one is behind a NAT.
pub fn behind_nat(policies: &mut [TunnelPolicy; 2]) {
    policies.iter_mut().for_each(|p| p.encap = Encap::Force);
}
