//! What the kernel says about IPsec: attributes, datagrams of messages, states, policies, events.

use cygnet_model::Reqid;
use cygnet_model::tunnel::Mark;
use cygnet_xfrm::codec::{self, Writer};
use cygnet_xfrm::dump::SaEntry;
use cygnet_xfrm::monitor::Event;
use cygnet_xfrm::moving::Move;
use cygnet_xfrm::policy::PolicyAction;
use cygnet_xfrm::testing;

use crate::input::{Input, is_one_line};

/// XFRM_MSG_NEWSA.
const NEWSA: u16 = 0x10;
/// XFRM_MSG_NEWPOLICY.
const NEWPOLICY: u16 = 0x13;
/// Octets of `struct xfrm_usersa_info`.
const SA_INFO: usize = 224;

/// Attributes: values lie in the buffer in order, and written again they are read as the same.
pub fn netlink_attributes(data: &[u8]) {
    let list: Vec<(u16, &[u8])> = codec::attrs(data).collect();
    let end = data.as_ptr() as usize + data.len();
    let mut at = data.as_ptr() as usize;
    for (_, value) in &list {
        let start = value.as_ptr() as usize;
        assert!(start >= at + 4 && start + value.len() <= end);
        at = start + value.len();
    }
    assert!(list.len() <= data.len() / 4);
    for (kind, _) in &list {
        let first = list.iter().find(|(k, _)| k == kind).map(|(_, v)| *v);
        assert_eq!(codec::find(data, *kind), first);
    }
    if data.len() < Writer::CAPACITY {
        let mut w = Writer::new();
        list.iter().for_each(|(kind, value)| w.attr(*kind, value));
        assert!(w.bytes().len() <= codec::aligned(data.len()));
        assert!(codec::attrs(w.bytes()).eq(list));
    }
    let text = codec::text(data);
    assert!(is_one_line(&text) && text.len() <= 3 * data.len());
}

/// A datagram of messages: payloads are no more than the datagram has, and a refusal is one line.
pub fn netlink_messages(data: &[u8]) {
    let Ok(messages) = testing::messages(&mut data.to_vec()) else { return };
    let octets: usize = messages.iter().map(|(_, payload)| 16 + payload.len()).sum();
    assert!(octets <= data.len() && messages.len() <= data.len() / 16);
    for (kind, payload) in messages {
        for flags in [0, 0x100, 0x200, 0x300] {
            match testing::answer(flags, &payload) {
                Ok(()) => assert_eq!(payload.get(..4), Some(&[0; 4][..])),
                Err(e) => {
                    let told = e.to_string();
                    assert!(is_one_line(&told) && told.len() <= 200 + 3 * payload.len(), "{told}");
                }
            }
        }
        state_of(kind, &payload);
        policy_of(kind, &payload);
        event_of(kind, &payload);
    }
}

/// A state as the kernel shows it: reads the same from a copy with other addresses, apart from these.
pub fn xfrm_state(data: &[u8]) {
    state_of(NEWSA, data);
}

fn state_of(kind: u16, payload: &[u8]) {
    let Some(entry) = testing::read_state(kind, payload) else { return };
    assert!(kind == NEWSA && payload.len() >= SA_INFO);
    check_entry(&entry);
    let to = Move {
        source: [198, 51, 100, 1].into(),
        destination: [198, 51, 100, 2].into(),
        ports: Some((4500, 4501)),
        reqid: Reqid(7),
    };
    for gap in [0, 4096, u64::MAX] {
        let Some(moved) = testing::write_moved_state(payload, &to, gap) else { continue };
        // The volume so far is an attribute of its own.
        assert!(moved.len() <= codec::aligned(payload.len()) + 36);
        let moved = testing::read_state(NEWSA, &moved).expect("what we write can be read");
        assert_eq!((moved.source, moved.key.destination, moved.reqid), (to.source, to.destination, 7));
        assert_eq!(moved.key.spi, entry.key.spi);
        assert_eq!(moved.ports.is_some(), entry.ports.is_some());
        assert!(moved.ports.is_none_or(|p| p == (4500, 4501)));
        assert_eq!((moved.mark, moved.replay_window), (entry.mark, entry.replay_window));
        assert!(moved.counters.sequence >= entry.counters.sequence, "numbers would be used again");
        assert!(gap > 0 || moved.counters.sequence == entry.counters.sequence);
    }
}

fn check_entry(entry: &SaEntry) {
    assert!(entry.key.spi.value() > 255);
    assert_eq!(entry.source.is_ipv4(), entry.key.destination.is_ipv4());
    assert!(entry.mark.is_none_or(|m| m.value != 0 || m.mask != 0));
    let _ = entry.is_inbound();
}

/// A policy as the kernel shows it: what we read of it can be put, and reads the same.
pub fn xfrm_policy(data: &[u8]) {
    policy_of(NEWPOLICY, data);
}

fn policy_of(kind: u16, payload: &[u8]) {
    let Some(mut policy) = testing::read_policy(kind, payload) else { return };
    assert_eq!(kind, NEWPOLICY);
    let selector = &policy.key.selector;
    assert_eq!(selector.source.0.is_ipv4(), selector.destination.0.is_ipv4());
    if let PolicyAction::Protect { source, destination, .. } = policy.action {
        assert_eq!(source.is_ipv4(), destination.is_ipv4());
    }
    // Bits of a mark outside of its mask mean nothing and are not written.
    policy.key.mark = (policy.key.mark)
        .map(|m| Mark { value: m.value & m.mask, ..m })
        .filter(|m| m.value != 0 || m.mask != 0);
    let again = testing::read_policy(NEWPOLICY, &testing::write_policy(&policy));
    assert_eq!(again, Some(policy));
    assert_eq!(policy.key.selector.reversed().reversed(), policy.key.selector);
}

/// The type of a notification and its payload: events are about states that a dump would show as well.
pub fn xfrm_event(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.u16();
    event_of(kind, input.rest());
}

fn event_of(kind: u16, payload: &[u8]) {
    match Event::parse(kind, payload) {
        None | Some(Event::Acquire { .. } | Event::Policies | Event::StatesFlushed) => {}
        Some(Event::StateRemoved { key }) => {
            // `struct xfrm_usersa_id`: address, then SPI.
            assert_eq!(payload[16..20], key.spi.to_be_bytes());
        }
        Some(Event::Expired { state, hard }) => {
            check_entry(&state);
            // A state, then eight octets that say which limit; then the attributes.
            let shown = [&payload[..SA_INFO], &payload[SA_INFO + 8..]].concat();
            assert_eq!(testing::read_state(NEWSA, &shown), Some(state));
            assert_eq!(hard, payload[SA_INFO] != 0);
        }
        Some(Event::Mapping { key, remote, .. }) => {
            assert_eq!(key.destination.is_ipv4(), remote.is_ipv4());
        }
    }
}
