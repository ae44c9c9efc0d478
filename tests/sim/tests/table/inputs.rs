//! The inputs of the table: datagrams without and with keys, and what comes from our own side.

use std::net::SocketAddr;
use std::time::Duration;

use cygnet_ike::policy::Encap;
use cygnet_ike::wire::{
    Auth, AuthMethod, Delete, Exchange, Header, Identity, KeyExchange, Notify, NotifyType, PayloadType,
    Payloads, Proposal, Protocol, Transform, TransformType, Writer,
};
use cygnet_ike::{Command, Input, TunnelPolicy};
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, Now, SecretBytes, Spi};
use cygnet_sim::{TUNNEL, net};

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

fn row(name: impl Into<String>, play: impl Fn(&mut Scene) -> Option<String> + 'static) -> Row {
    Row { name: name.into(), only_at: None, change: |_| {}, play: Box::new(play) }
}

fn arrives(scene: &mut Scene, bytes: &[u8]) -> String {
    let flow = scene.flow();
    let now = scene.lab.now();
    outcome(scene, now, Input::Datagram { flow, bytes })
}

const CHILD: ChildId = ChildId { tunnel: TUNNEL, index: 0 };

// ---- Datagrams that nobody has the keys for.

/// Every exchange with every combination of flags, in the clear and with octets in place of a sealed payload.
pub fn unauthenticated() -> Vec<Row> {
    let mut rows = Vec::new();
    for exchange in [
        Exchange::IKE_SA_INIT,
        Exchange::IKE_AUTH,
        Exchange::CREATE_CHILD_SA,
        Exchange::INFORMATIONAL,
        Exchange(99),
    ] {
        for (response, from_initiator) in [(false, false), (false, true), (true, false), (true, true)] {
            for next in [PayloadType::NONCE, PayloadType::SK] {
                let flags = if response { "response" } else { "request" };
                let of = if from_initiator { "of I" } else { "of R" };
                let body = if next == PayloadType::SK { "bad ICV" } else { "clear" };
                rows.push(row(format!("{exchange} {flags} {of}, {body}"), move |s| {
                    let (spi_i, spi_r) = s.header_spis();
                    let (request, answer) = s.ids();
                    let message_id = if response { answer } else { request };
                    let header =
                        Header { spi_i, spi_r, next, exchange, from_initiator, response, message_id };
                    let mut w = Writer::message(&header);
                    w.payload(next, |b| b.extend_from_slice(&[9; 40]));
                    Some(arrives(s, &w.finish()))
                }));
            }
        }
    }
    for message_id in [-1, 1] {
        let name = if message_id < 0 { "of the last request" } else { "one ahead" };
        rows.push(row(format!("INFORMATIONAL request of the peer, message ID {name}, bad ICV"), move |s| {
            let (spi_i, spi_r) = s.header_spis();
            let header = Header {
                spi_i,
                spi_r,
                next: PayloadType::SK,
                exchange: Exchange::INFORMATIONAL,
                from_initiator: s.peer_is_initiator()?,
                response: false,
                message_id: s.ids().0.checked_add_signed(message_id)?,
            };
            let mut w = Writer::message(&header);
            w.payload(PayloadType::SK, |b| b.extend_from_slice(&[9; 40]));
            Some(arrives(s, &w.finish()))
        }));
    }
    rows
}

// ---- Messages of the peer.

/// What the peer says under the SA's keys, and IKE_SA_INIT, which has none.
pub fn authentic() -> Vec<Row> {
    let mut rows = init();
    rows.extend(auth());
    rows.extend(create_child());
    rows.extend(informational());
    rows.extend(window());
    rows
}

/// A request of the peer with the message ID that is due.
fn request(name: &str, exchange: Exchange, p: impl Fn(&Scene) -> Payloads + 'static) -> Row {
    row(format!("{exchange} request, {name}"), move |s| {
        let (id, _) = s.ids();
        let payloads = p(s);
        let bytes = s.forge(exchange, id, false, &payloads)?;
        Some(arrives(s, &bytes))
    })
}

/// An answer of the peer with the message ID of our last request.
fn response(name: &str, exchange: Exchange, p: impl Fn(&Scene) -> Payloads + 'static) -> Row {
    row(format!("{exchange} response, {name}"), move |s| {
        let (_, id) = s.ids();
        let payloads = p(s);
        let bytes = s.forge(exchange, id, true, &payloads)?;
        Some(arrives(s, &bytes))
    })
}

fn only(kind: NotifyType, data: &[u8]) -> Payloads {
    Payloads { notifies: vec![Notify::new(kind, data.to_vec())], ..Payloads::default() }
}

fn init() -> Vec<Row> {
    let ecp384 = 20u16.to_be_bytes();
    let modp2048 = 14u16.to_be_bytes();
    let mut rows = vec![
        row("IKE_SA_INIT request, the genuine one", |s| {
            let bytes = s.said(0, Exchange::IKE_SA_INIT, false).filter(|_| s.side == 1)?;
            Some(arrives(s, &bytes))
        }),
        row("IKE_SA_INIT response, the genuine one", |s| {
            let bytes = s.said(1, Exchange::IKE_SA_INIT, true).filter(|_| s.side == 0)?;
            Some(arrives(s, &bytes))
        }),
    ];
    type Bend = fn(&mut Payloads);
    let requests: [(&str, Bend); 6] = [
        ("another nonce", |p| p.nonce = Some(vec![7; 32])),
        ("no nonce", |p| p.nonce = None),
        ("no common proposal", |p| p.sa = Some(vec![proposal(Protocol::IKE, &[], &[(1, 3, None)])])),
        ("KE of a group of lower rank", |p| p.ke = Some(KeyExchange { group: 14, data: vec![1; 256] })),
        ("KE of the wrong length", |p| p.ke = Some(KeyExchange { group: 31, data: vec![1; 31] })),
        ("a cookie that we did not give", |p| p.notifies.push(Notify::new(NotifyType::COOKIE, vec![1; 17]))),
    ];
    for (name, bend) in requests {
        rows.push(row(format!("IKE_SA_INIT request, {name}"), move |s| {
            let genuine = s.said(0, Exchange::IKE_SA_INIT, false).filter(|_| s.side == 1)?;
            let bytes = bent(&genuine, bend);
            Some(arrives(s, &bytes))
        }));
    }
    let responses: [(&str, Bend); 5] = [
        ("no nonce", |p| p.nonce = None),
        ("a suite that we did not offer", |p| {
            p.sa = Some(vec![proposal(
                Protocol::IKE,
                &[],
                &[(1, 3, None), (2, 2, None), (3, 2, None), (4, 2, None)],
            )]);
        }),
        ("KE of another group", |p| p.ke = Some(KeyExchange { group: 20, data: vec![1; 96] })),
        ("KE of the wrong length", |p| p.ke = Some(KeyExchange { group: 31, data: vec![1; 31] })),
        ("a COOKIE beside the SA", |p| p.notifies.push(Notify::new(NotifyType::COOKIE, vec![1; 16]))),
    ];
    for (name, bend) in responses {
        rows.push(row(format!("IKE_SA_INIT response, {name}"), move |s| {
            let genuine = s.said(1, Exchange::IKE_SA_INIT, true).filter(|_| s.side == 0)?;
            let bytes = bent(&genuine, bend);
            Some(arrives(s, &bytes))
        }));
    }
    let notices = [
        ("COOKIE", NotifyType::COOKIE, vec![1; 16]),
        ("COOKIE of 64 octets", NotifyType::COOKIE, vec![1; 64]),
        ("COOKIE of no octets", NotifyType::COOKIE, vec![]),
        ("COOKIE of 65 octets", NotifyType::COOKIE, vec![1; 65]),
        ("INVALID_KE_PAYLOAD", NotifyType::INVALID_KE_PAYLOAD, ecp384.to_vec()),
        ("INVALID_KE_PAYLOAD, group not offered", NotifyType::INVALID_KE_PAYLOAD, modp2048.to_vec()),
        ("INVALID_KE_PAYLOAD without a group", NotifyType::INVALID_KE_PAYLOAD, vec![]),
        ("NO_PROPOSAL_CHOSEN", NotifyType::NO_PROPOSAL_CHOSEN, vec![]),
        ("AUTHENTICATION_FAILED", NotifyType::AUTHENTICATION_FAILED, vec![]),
        ("INVALID_SYNTAX", NotifyType::INVALID_SYNTAX, vec![]),
        ("an unknown status", NotifyType(40_000), vec![]),
    ];
    for (name, kind, data) in notices {
        rows.push(row(format!("IKE_SA_INIT response, {name}"), move |s| {
            let (spi_i, _) = s.header_spis();
            let header = Header {
                spi_i,
                spi_r: 0,
                next: PayloadType::NONE,
                exchange: Exchange::IKE_SA_INIT,
                from_initiator: false,
                response: true,
                message_id: 0,
            };
            let mut w = Writer::message(&header);
            only(kind, &data).encode(&mut w);
            (s.side == 0).then(|| arrives(s, &w.finish()))
        }));
    }
    rows
}

/// A clear message with its payloads changed.
fn bent(bytes: &[u8], bend: fn(&mut Payloads)) -> Vec<u8> {
    let (header, chain) = Header::decode(bytes).unwrap();
    let mut payloads = Payloads::decode(header.next, chain).unwrap();
    bend(&mut payloads);
    let mut w = Writer::message(&header);
    payloads.encode(&mut w);
    w.finish()
}

fn auth() -> Vec<Row> {
    let exchange = Exchange::IKE_AUTH;
    // Changes at the responder, which make its answer to the very same request another one.
    let disagreements: [(&str, Change); 5] = [
        ("genuine", |_| {}),
        ("wrong PSK", |p| p[1].psk = SecretBytes::copy_of(b"another key of 32 octets length!")),
        ("unknown identity", |p| p[1].remote_id = Identity::fqdn("somebody.else")),
        ("no common proposal for the child", |p| {
            p[1].children[0].proposals = vec!["aes128-sha256".parse().unwrap()];
        }),
        ("selectors of the child unacceptable", |p| p[1].children[0].local = vec![net("172.16.0.0/16")]),
    ];
    let mut rows = Vec::new();
    for (name, change) in disagreements {
        let genuine = name == "genuine";
        let play = row(format!("{exchange} request, {name}"), move |s| {
            let bytes = s.said(0, Exchange::IKE_AUTH, false).filter(|_| s.side == 1)?;
            Some(arrives(s, &bytes))
        });
        rows.push(Row { change, only_at: (!genuine).then_some(At::InitAnswered), ..play });
    }
    rows.push(row(format!("{exchange} request, tunnel taken down by command"), |s| {
        let bytes = s.said(0, Exchange::IKE_AUTH, false).filter(|_| s.at == At::InitAnswered)?;
        s.lab.command(s.side, Command::Down(TUNNEL));
        Some(arrives(s, &bytes))
    }));
    rows.push(Row {
        change: |p| p[0].children.clear(),
        only_at: Some(At::InitAnswered),
        ..row(format!("{exchange} request, without a child"), |s| {
            let bytes = s.said(0, Exchange::IKE_AUTH, false)?;
            Some(arrives(s, &bytes))
        })
    });
    rows.push(request("without AUTH", exchange, |s| Payloads {
        idi: Some(identity(s.peer)),
        ..Payloads::default()
    }));
    rows.push(request("empty", exchange, |_| Payloads::default()));
    rows.push(malformed(exchange));
    rows.push(critical(exchange));
    for (name, change) in disagreements {
        let genuine = name == "genuine";
        let play = row(format!("{exchange} response, {name}"), move |s| {
            let bytes = s.said(1, Exchange::IKE_AUTH, true).filter(|_| s.side == 0)?;
            Some(arrives(s, &bytes))
        });
        rows.push(Row { change, only_at: (!genuine).then_some(At::AuthSent), ..play });
    }
    let proof = |method, octet| Some(Auth { method, data: vec![octet; 48] });
    rows.push(response("wrong AUTH", exchange, move |s| Payloads {
        idr: Some(identity(s.peer)),
        auth: proof(AuthMethod::SHARED_KEY_MIC, 1),
        ..Payloads::default()
    }));
    rows.push(response("AUTH of another method", exchange, move |s| Payloads {
        idr: Some(identity(s.peer)),
        auth: proof(AuthMethod::NULL, 1),
        ..Payloads::default()
    }));
    rows.push(response("another identity", exchange, move |_| Payloads {
        idr: Some(Identity::fqdn("somebody.else")),
        auth: proof(AuthMethod::SHARED_KEY_MIC, 1),
        ..Payloads::default()
    }));
    rows.push(response("empty", exchange, |_| Payloads::default()));
    for kind in [
        NotifyType::AUTHENTICATION_FAILED,
        NotifyType::INVALID_SYNTAX,
        NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD,
        NotifyType::NO_PROPOSAL_CHOSEN,
    ] {
        rows.push(response(&kind.to_string(), exchange, move |_| only(kind, &[])));
    }
    rows
}

fn identity(side: usize) -> Identity {
    Identity::address(cygnet_sim::ADDRESSES[side].parse().unwrap())
}

fn create_child() -> Vec<Row> {
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

/// The peer's SPI of a new pair.
const FRESH: u32 = 0xc0ff_ee00;

fn proposal(protocol: Protocol, spi: &[u8], transforms: &[(u8, u16, Option<u16>)]) -> Proposal {
    let transforms = transforms
        .iter()
        .map(|(kind, id, key_bits)| Transform {
            key_bits: *key_bits,
            ..Transform::plain(TransformType(*kind), *id)
        })
        .collect();
    Proposal { number: 1, protocol, spi: spi.to_vec(), transforms }
}

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

fn informational() -> Vec<Row> {
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

/// Each end believes that the other one is behind a NAT.
fn behind_nat(policies: &mut [TunnelPolicy; 2]) {
    policies.iter_mut().for_each(|p| p.encap = Encap::Force);
}

/// An authentic request whose chain of payloads breaks off.
fn malformed(exchange: Exchange) -> Row {
    chain(exchange, "malformed", PayloadType::NONCE, &[0, 0, 0, 99, 1])
}

/// An authentic request with a critical payload of a type that nobody knows.
fn critical(exchange: Exchange) -> Row {
    chain(exchange, "unknown critical payload", PayloadType(200), &[0, 0x80, 0, 8, 1, 2, 3, 4])
}

fn chain(exchange: Exchange, name: &str, first: PayloadType, chain: &'static [u8]) -> Row {
    row(format!("{exchange} request, {name}"), move |s| {
        let (id, spi) = (s.ids().0, s.peer_sa?);
        let forger = &mut s.lab.gateways[s.peer].endpoint;
        let bytes = forger.forge_chain(spi, exchange, id, false, first, chain).pop()?;
        Some(arrives(s, &bytes))
    })
}

fn window() -> Vec<Row> {
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

// ---- What comes from our own side.

/// Time, commands, and the data plane.
pub fn local() -> Vec<Row> {
    let mut rows = vec![
        row("Tick when due", |s| {
            let now = due(s)?;
            Some(outcome(s, now, Input::Tick))
        }),
        row("Tick that ends the state, if within 2 minutes", |s| {
            let end = s.lab.now().mono + Duration::from_secs(120);
            let was = state(s);
            loop {
                let now = due(s).filter(|now| now.mono <= end)?;
                let what = outcome(s, now, Input::Tick);
                if state(s) != was {
                    return Some(what);
                }
            }
        }),
    ];
    let commands = [
        Command::Up(TUNNEL),
        Command::Down(TUNNEL),
        Command::RekeyChildren(TUNNEL),
        Command::RekeyIke(TUNNEL),
        Command::Reset(TUNNEL),
        Command::Shutdown,
    ];
    for command in commands {
        let name = format!("{command:?}");
        let name = name.split('(').next().unwrap().to_owned();
        rows.push(row(format!("Command {name}"), move |s| {
            let now = s.lab.now();
            Some(outcome(s, now, Input::Command(command)))
        }));
    }
    rows.push(row("PlaneFailed", |s| {
        let now = s.lab.now();
        Some(outcome(s, now, Input::PlaneFailed { child: CHILD, detail: "no".into() }))
    }));
    for direction in [Direction::In, Direction::Out] {
        for hard in [false, true] {
            let name = format!("Expired, {direction:?}, {}", if hard { "hard" } else { "soft" });
            rows.push(row(name, move |s| {
                let (sa, now) = (ours(s, direction), s.lab.now());
                Some(outcome(s, now, Input::Expired { sa, hard }))
            }));
        }
    }
    rows.push(row("Acquire", |s| {
        let now = s.lab.now();
        Some(outcome(s, now, Input::Acquire(CHILD)))
    }));
    rows.push(row("Inbound", |s| {
        let (sa, now) = (ours(s, Direction::In), s.lab.now());
        Some(outcome(s, now, Input::Inbound(sa)))
    }));
    rows.push(row("PeerMoved, nobody behind a NAT", moved));
    rows.push(Row { change: behind_nat, ..row("PeerMoved, the peer behind a NAT", moved) });
    rows
}

fn moved(s: &mut Scene) -> Option<String> {
    let (sa, now) = (ours(s, Direction::In), s.lab.now());
    let remote = SocketAddr::new(s.flow().remote.ip(), 61_000);
    Some(outcome(s, now, Input::PeerMoved { sa, remote }))
}

/// The newest SA of the gateway under test in a direction, or one that there never was.
fn ours(s: &Scene, direction: Direction) -> SaId {
    let sas = s.lab.gateways[s.side].plane.sas.iter().filter(|(id, _)| id.direction == direction);
    let newest = sas.max_by_key(|(_, (order, _))| *order).map(|(id, _)| *id);
    newest.unwrap_or(SaId { child: CHILD, direction, spi: Spi::new(0xdead_beef).unwrap() })
}

fn due(s: &Scene) -> Option<Now> {
    let mono = s.lab.gateways[s.side].endpoint.next_wakeup()?;
    Some(Now { mono, unix: mono.as_nanos() / 1_000_000_000 })
}

fn state(s: &Scene) -> Option<&'static str> {
    s.lab.gateways[s.side].endpoint.state_name(s.sa?)
}
