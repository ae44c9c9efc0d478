//! What the peer says under the keys of an established IKE SA, within its window and outside of it.

use cygnet_ike::Input;
use cygnet_ike::wire::{Delete, Exchange, KeyExchange, Notify, NotifyType, Payloads, Protocol};
use cygnet_model::tunnel::Direction;
use cygnet_sim::net;

use crate::inputs::{Row, arrives, behind_nat, critical, malformed, only, proposal, request, response, row};
use crate::outcome::outcome;
use crate::states::Scene;

pub fn create_child() -> Vec<Row> {
    let exchange = Exchange::CREATE_CHILD_SA;
    let mut rows = vec![
        request("new child", exchange, |s| child(s, FRESH)),
        request("new child, no nonce", exchange, |s| Payloads { nonce: None, ..child(s, FRESH) }),
        request("new child, no KE where PFS is demanded", exchange, |s| Payloads {
            ke: None,
            ..child(s, FRESH)
        }),
        request("new child, KE of a group of lower rank", exchange, |s| Payloads {
            ke: Some(KeyExchange { group: 20, data: vec![3; 96] }),
            ..child(s, FRESH)
        }),
        request("new child, KE of a group not allowed", exchange, |s| Payloads {
            ke: Some(KeyExchange { group: 14, data: vec![3; 256] }),
            ..child(s, FRESH)
        }),
        request("new child, no proposal with PFS", exchange, |s| Payloads {
            sa: Some(vec![proposal(
                Protocol::ESP,
                &FRESH.to_be_bytes(),
                &[(1, 20, Some(256)), (5, 0, None)],
            )]),
            ke: None,
            ..child(s, FRESH)
        }),
        request("new child, no common proposal", exchange, |s| Payloads {
            sa: Some(vec![proposal(Protocol::ESP, &FRESH.to_be_bytes(), &[(1, 3, None), (5, 0, None)])]),
            ..child(s, FRESH)
        }),
        request("new child, selectors unacceptable", exchange, |s| Payloads {
            tsr: Some(vec![net("172.16.0.0/16")]),
            ..child(s, FRESH)
        }),
        request("new child, reserved SPI", exchange, |s| child(s, 255)),
        request("new child, SPI in use", exchange, |s| child(s, spi(s, Age::Newest))),
        request("rekey of the child", exchange, |s| rekey(s, spi(s, Age::Newest), FRESH)),
        row("CREATE_CHILD_SA request, rekey of the older pair", |s| {
            let old = spi(s, Age::Oldest);
            let payloads = rekey(s, old, FRESH);
            let bytes = s.forge(Exchange::CREATE_CHILD_SA, s.ids().0, false, &payloads)?;
            (old != spi(s, Age::Newest)).then(|| arrives(s, &bytes))
        }),
        request("rekey of the child to the same SPI", exchange, |s| {
            rekey(s, spi(s, Age::Newest), spi(s, Age::Newest))
        }),
        request("rekey of the child, no proposal", exchange, |s| Payloads {
            sa: Some(vec![proposal(Protocol::ESP, &FRESH.to_be_bytes(), &[(1, 3, None), (5, 0, None)])]),
            ..rekey(s, spi(s, Age::Newest), FRESH)
        }),
        request("rekey of the child, selectors unacceptable", exchange, |s| Payloads {
            tsr: Some(vec![net("172.16.0.0/16")]),
            ..rekey(s, spi(s, Age::Newest), FRESH)
        }),
        request("rekey of an unknown SPI", exchange, |s| rekey(s, 0xdead_beef, FRESH)),
        request("rekey of an AH SA", exchange, |s| {
            let mut p = rekey(s, spi(s, Age::Newest), FRESH);
            p.notifies[0].protocol = Protocol::AH;
            p
        }),
        request("rekey of the IKE SA", exchange, |_| new_ike(31, 32)),
        request("rekey of the IKE SA, group of lower rank", exchange, |_| new_ike(20, 96)),
        request("rekey of the IKE SA, group not allowed", exchange, |_| new_ike(14, 256)),
        request("rekey of the IKE SA, no KE", exchange, |_| Payloads { ke: None, ..new_ike(31, 32) }),
        request("rekey of the IKE SA, no proposal", exchange, |_| Payloads {
            sa: Some(vec![proposal(Protocol::IKE, &[5; 8], &[(1, 3, None)])]),
            ..new_ike(31, 32)
        }),
        request("rekey of the IKE SA, SPI zero", exchange, |_| {
            let mut p = new_ike(31, 32);
            p.sa.iter_mut().flatten().for_each(|p| p.spi = vec![0; 8]);
            p
        }),
        row("CREATE_CHILD_SA request, rekey of the IKE SA, twice", |s| {
            let (id, _) = s.ids();
            let one = s.forge(Exchange::CREATE_CHILD_SA, id, false, &new_ike(31, 32))?;
            let mut other = new_ike(31, 32);
            other.nonce = Some(vec![6; 32]);
            let two = s.forge(Exchange::CREATE_CHILD_SA, id + 1, false, &other)?;
            arrives(s, &one);
            Some(arrives(s, &two))
        }),
        request("empty", exchange, |_| Payloads::default()),
        malformed(exchange),
        critical(exchange),
        row("CREATE_CHILD_SA response, the genuine one", |s| {
            let ours = s.said(s.side, Exchange::CREATE_CHILD_SA, false)?;
            let answer = match s.said(s.peer, Exchange::CREATE_CHILD_SA, true) {
                Some(answer) => answer,
                None => s.peers_answer(&ours)?,
            };
            Some(arrives(s, &answer))
        }),
        response("empty", exchange, |_| Payloads::default()),
        response("selectors wider than ours", exchange, |s| Payloads {
            tsr: Some(vec![net("0.0.0.0/0")]),
            tsi: Some(vec![net("0.0.0.0/0")]),
            ..child(s, FRESH)
        }),
        response("SPI in use", exchange, |s| {
            let p = child(s, spi(s, Age::Newest));
            Payloads { tsi: p.tsr, tsr: p.tsi, ..p }
        }),
    ];
    let errors = [
        (NotifyType::TEMPORARY_FAILURE, vec![]),
        (NotifyType::CHILD_SA_NOT_FOUND, vec![]),
        (NotifyType::NO_PROPOSAL_CHOSEN, vec![]),
        (NotifyType::TS_UNACCEPTABLE, vec![]),
        (NotifyType::NO_ADDITIONAL_SAS, vec![]),
        (NotifyType::INVALID_KE_PAYLOAD, vec![0, 20]),
        (NotifyType::INVALID_KE_PAYLOAD, vec![0, 14]),
        (NotifyType::INVALID_SYNTAX, vec![]),
        (NotifyType(9999), vec![]),
    ];
    for (kind, data) in errors {
        let group = match data.as_slice() {
            [0, 20] => ", group offered",
            [0, 14] => ", group not offered",
            _ => "",
        };
        rows.push(response(&format!("{kind}{group}"), exchange, move |_| only(kind, &data)));
    }
    rows
}

pub fn informational() -> Vec<Row> {
    let exchange = Exchange::INFORMATIONAL;
    let delete = |d: Delete| Payloads { deletes: vec![d], ..Payloads::default() };
    let mut rows = vec![
        request("empty", exchange, |_| Payloads::default()),
        request("delete of the child", exchange, move |s| delete(Delete::Esp(vec![spi(s, Age::Newest)]))),
        row("INFORMATIONAL request, delete of the older pair", move |s| {
            let old = spi(s, Age::Oldest);
            let bytes = s.forge(exchange, s.ids().0, false, &delete(Delete::Esp(vec![old])))?;
            (old != spi(s, Age::Newest)).then(|| arrives(s, &bytes))
        }),
        request("delete of an unknown SPI", exchange, move |_| delete(Delete::Esp(vec![0xdead_beef]))),
        request("delete of the IKE SA", exchange, move |_| delete(Delete::Ike)),
        row("INFORMATIONAL request, delete after the peer's own rekey", move |s| {
            let (id, _) = s.ids();
            let one = s.forge(Exchange::CREATE_CHILD_SA, id, false, &new_ike(31, 32))?;
            let two = s.forge(exchange, id + 1, false, &delete(Delete::Ike))?;
            let what = arrives(s, &one);
            what.contains("{SA KE N}").then(|| arrives(s, &two))
        }),
        request("an unknown status", exchange, |_| only(NotifyType(40_000), &[])),
        request("an unknown error", exchange, |_| only(NotifyType(9999), &[])),
        request("INITIAL_CONTACT", exchange, |_| only(NotifyType::INITIAL_CONTACT, &[])),
        request("AUTHENTICATION_FAILED", exchange, |_| only(NotifyType::AUTHENTICATION_FAILED, &[])),
        request("INVALID_SYNTAX", exchange, |_| only(NotifyType::INVALID_SYNTAX, &[])),
        malformed(exchange),
        critical(exchange),
        response("empty", exchange, |_| Payloads::default()),
        response("INVALID_SYNTAX", exchange, |_| only(NotifyType::INVALID_SYNTAX, &[])),
        request("empty", Exchange(99), |_| Payloads::default()),
        response("empty", Exchange(99), |_| Payloads::default()),
    ];
    let moved = row("INFORMATIONAL request, empty, from a moved peer", move |s| {
        let bytes = s.forge(exchange, s.ids().0, false, &Payloads::default())?;
        let mut flow = s.flow();
        flow.natt = true;
        flow.local.set_port(4500);
        flow.remote.set_port(61_000);
        let now = s.lab.now();
        s.at.is_live().then(|| outcome(s, now, Input::Datagram { flow, bytes: &bytes }))
    });
    rows.push(Row { change: behind_nat, ..moved });
    rows
}

pub fn window() -> Vec<Row> {
    let at = |name: &str, offset: i64| {
        row(format!("INFORMATIONAL request, {name}"), move |s| {
            let id = u32::try_from(i64::from(s.ids().0) + offset).ok()?;
            let p = Payloads { deletes: vec![Delete::Ike], ..Payloads::default() };
            let bytes = s.forge(Exchange::INFORMATIONAL, id, false, &p)?;
            Some(arrives(s, &bytes))
        })
    };
    let rows = vec![
        at("message ID one behind", -1),
        at("message ID two behind", -2),
        at("message ID one ahead", 1),
        at("message ID far ahead", 1000),
        row("INFORMATIONAL request, repeated", |s| {
            let bytes = s.forge(Exchange::INFORMATIONAL, s.ids().0, false, &Payloads::default())?;
            arrives(s, &bytes);
            Some(arrives(s, &bytes))
        }),
        row("INFORMATIONAL response, message ID one ahead", |s| {
            let bytes = s.forge(Exchange::INFORMATIONAL, s.ids().1 + 1, true, &Payloads::default())?;
            Some(arrives(s, &bytes))
        }),
        row("our own last message, reflected", |s| {
            let bytes = s.log.iter().rev().find(|(side, _)| *side == s.side).map(|(_, b)| b.clone())?;
            Some(arrives(s, &bytes))
        }),
    ];
    rows
}

/// The peer's SPI of a new pair.
const FRESH: u32 = 0xc0ff_ee00;

/// A request for a child as the peer would make it: AES-GCM-256, X25519, no ESN.
fn child(s: &Scene, spi: u32) -> Payloads {
    let suite = [(1, 20, Some(256)), (4, 31, None), (5, 0, None)];
    let nets = |side: usize| Some(vec![net(&format!("10.{}.0.0/24", side + 1))]);
    Payloads {
        sa: Some(vec![proposal(Protocol::ESP, &spi.to_be_bytes(), &suite)]),
        ke: Some(KeyExchange { group: 31, data: vec![3; 32] }),
        nonce: Some(vec![4; 32]),
        tsi: nets(s.peer),
        tsr: nets(s.side),
        ..Payloads::default()
    }
}

fn rekey(s: &Scene, old: u32, new: u32) -> Payloads {
    let mut p = child(s, new);
    p.notifies.push(Notify {
        protocol: Protocol::ESP,
        spi: old.to_be_bytes().to_vec(),
        kind: NotifyType::REKEY_SA,
        data: vec![],
    });
    p
}

fn new_ike(group: u16, len: usize) -> Payloads {
    let suite = [(1, 20, Some(256)), (2, 6, None), (4, 31, None), (4, 20, None)];
    Payloads {
        sa: Some(vec![proposal(Protocol::IKE, &[5; 8], &suite)]),
        ke: Some(KeyExchange { group, data: vec![3; len] }),
        nonce: Some(vec![4; 32]),
        ..Payloads::default()
    }
}

/// Which pair of the child.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    Oldest,
    Newest,
}

/// The SPI that the peer receives on, by which it names a pair.
fn spi(s: &Scene, age: Age) -> u32 {
    let of = |side: usize, direction| {
        let sas = s.lab.gateways[side].plane.sas.iter().filter(move |(id, _)| id.direction == direction);
        let mut all: Vec<_> = sas.map(|(id, (order, _))| (*order, id.spi.value())).collect();
        all.sort_unstable();
        let pick = if age == Age::Oldest { all.first() } else { all.last() };
        pick.map(|(_, spi)| *spi)
    };
    of(s.side, Direction::Out).or_else(|| of(s.peer, Direction::In)).unwrap_or(0xc0ff_ee01)
}
