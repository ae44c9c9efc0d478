//! Scenarios as dialogues of two gateways.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod addresses;
mod attacks;
mod bounds;
mod bring_up;
mod children;
mod collisions;
mod ending;
mod explain;
mod hybrid;
mod jobs;
mod messages;
mod middle;
mod rekey;
mod reload;
mod restart;
mod surroundings;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use cygnet_ike::wire::{Notify, NotifyType, Payloads};
use cygnet_model::ChildId;
use cygnet_sim::{Lab, TUNNEL};

const CHILD: ChildId = ChildId { tunnel: TUNNEL, index: 0 };

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A message that is one notification.
fn notify(kind: NotifyType) -> Payloads {
    Payloads { notifies: vec![Notify::new(kind, vec![])], ..Payloads::default() }
}

/// A request for a child as gateway 0 or 1 would make it, with an SPI of its own.
fn child_request(from: usize, spi: u32) -> Payloads {
    use cygnet_ike::wire::{KeyExchange, Proposal, Protocol, Transform, TransformType};
    let plain = |kind, id| Transform::plain(kind, id);
    let transforms = vec![
        Transform { key_bits: Some(256), ..plain(TransformType::ENCR, 20) },
        plain(TransformType::KE, 31),
        plain(TransformType::ESN, 1),
    ];
    let spi = spi.to_be_bytes().to_vec();
    let nets = |side: usize| Some(vec![cygnet_sim::net(&format!("10.{}.0.0/24", side + 1))]);
    Payloads {
        sa: Some(vec![Proposal { number: 1, protocol: Protocol::ESP, spi, transforms }]),
        ke: Some(KeyExchange { group: 31, data: vec![1; 32] }),
        nonce: Some(vec![2; 32]),
        tsi: nets(from),
        tsr: nets(1 - from),
        ..Payloads::default()
    }
}

/// A request for a new IKE SA, with a nonce of this octet.
fn ike_request(octet: u8) -> Payloads {
    use cygnet_ike::wire::{KeyExchange, Proposal, Protocol, Transform, TransformType};
    let plain = |kind, id| Transform::plain(kind, id);
    let transforms = vec![
        Transform { key_bits: Some(256), ..plain(TransformType::ENCR, 20) },
        plain(TransformType::PRF, 6),
        plain(TransformType::KE, 31),
    ];
    Payloads {
        sa: Some(vec![Proposal { number: 1, protocol: Protocol::IKE, spi: vec![octet; 8], transforms }]),
        ke: Some(KeyExchange { group: 31, data: vec![1; 32] }),
        nonce: Some(vec![octet; 32]),
        ..Payloads::default()
    }
}

/// Datagrams by sender.
type Log = Rc<RefCell<Vec<(usize, Vec<u8>)>>>;

/// Records what is said from now on.
fn record(lab: &mut Lab) -> Log {
    let log = Log::default();
    let tapped = Rc::clone(&log);
    lab.tap = Some(Box::new(move |side, bytes| {
        tapped.borrow_mut().push((side, bytes.clone()));
        Some(bytes)
    }));
    log
}
