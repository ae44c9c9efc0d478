//! The messages of IKE_SA_INIT and IKE_AUTH, genuine and bent.

use cygnet_ike::Command;
use cygnet_ike::wire::{
    Auth, AuthMethod, Exchange, Header, Identity, KeyExchange, Notify, NotifyType, PayloadType, Payloads,
    Protocol, Writer,
};
use cygnet_model::SecretBytes;
use cygnet_sim::{TUNNEL, net};

use crate::inputs::{Row, arrives, critical, malformed, only, proposal, request, response, row};
use crate::states::{At, Change};

pub fn init() -> Vec<Row> {
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

pub fn auth() -> Vec<Row> {
    let exchange = Exchange::IKE_AUTH;
    // Changes at the responder, which make its answer to the very same request another one.
    let disagreements: [(&str, Change); 5] = [
        ("genuine", |_| {}),
        ("wrong PSK", |p| p[1].psk = SecretBytes::copy_of(b"another key of 32 octets length!")),
        ("unknown identity", |p| p[1].remote_id = Identity::fqdn("somebody.else").into()),
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
        change: |p| p[0].children = Vec::new().into(),
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
