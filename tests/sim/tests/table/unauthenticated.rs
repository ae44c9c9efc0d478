//! Datagrams that nobody has the keys for.

use cygnet_ike::wire::{Exchange, Header, PayloadType, Writer};

use crate::inputs::{Row, arrives, row};

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
