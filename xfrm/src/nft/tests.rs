//! The words as octets, and what is read back of them.

use proptest::prelude::*;

use super::expr::{Ip, NatKind, Register};
use super::object::{ENTRIES_PER_MESSAGE, read_counter, read_keys, read_set, read_table, read_tallies};
use super::*;
use crate::codec;

fn bytes(change: &Change) -> Vec<u8> {
    let request = change.request("cygnet");
    request.payload().to_vec()
}

/// As `nft --debug=netlink add table inet cygnet` sends it: nfgenmsg, then NFTA_TABLE_NAME.
#[test]
fn a_table_is_named_in_the_family_inet() {
    let expected = [1, 0, 0, 0, 11, 0, 1, 0, b'c', b'y', b'g', b'n', b'e', b't', 0, 0];
    assert_eq!(bytes(&Change::Table(Keeping::Shared)), expected);
    let owned = bytes(&Change::Table(Keeping::OwnedAndPersistent));
    assert_eq!(owned[16..], [8, 0, 2, 0, 0, 0, 0, 6]);
}

#[test]
fn a_nat_expression_names_kind_family_and_register() {
    let register = Register::new(12).unwrap();
    let rule = Change::Rule { chain: "c", exprs: vec![Expr::Nat(NatKind::Destination, Ip::V6, register)] };
    let bytes = bytes(&rule);
    let list = codec::find(&bytes[4..], 4).unwrap();
    let expr = codec::find(list, LIST_ELEM).unwrap();
    assert_eq!(codec::find(expr, 1), Some(&b"nat\0"[..]));
    let data: Vec<_> = codec::attrs(codec::find(expr, 2).unwrap()).collect();
    // NFT_NAT_DNAT, NFPROTO_IPV6, NFT_REG32_12
    let expected: [(u16, &[u8]); 3] = [(1, &[0, 0, 0, 1]), (2, &[0, 0, 0, 10]), (3, &[0, 0, 0, 20])];
    assert_eq!(data, expected);
}

#[test]
fn registers_end_where_the_kernels_do() {
    assert!(Register::new(15).is_some());
    assert_eq!(Register::new(16), None);
}

#[test]
fn a_counter_is_read_as_it_was_written() {
    let counted = Counted { packets: 7, bytes: 1 << 40 };
    let bytes = bytes(&Change::Counter("nat".to_owned(), counted));
    assert_eq!(read_counter(&bytes), Some(("nat".to_owned(), counted)));
    assert_eq!(read_table(&bytes).as_deref(), Some("cygnet"));
}

#[test]
fn as_many_entries_as_promised_fit_a_message() {
    let entries = vec![(vec![0; 16], [0; 4]); ENTRIES_PER_MESSAGE];
    bytes(&Change::Entries { map: "m".repeat(200), entries });
}

proptest! {
    #[test]
    fn keys_are_read_as_they_were_written(len in 4usize..64, count in 1usize..40, octet: u8) {
        let keys: Vec<Vec<u8>> = (0..count.min(keys_per_message(len))).map(|i| vec![octet ^ i as u8; len]).collect();
        let bytes = bytes(&Change::Keys { set: "s".to_owned(), keys: keys.clone() });
        prop_assert_eq!(read_keys(&bytes), keys);
        prop_assert_eq!(read_set(&bytes), Some("s".to_owned()));
    }

    #[test]
    fn as_many_keys_as_promised_fit_a_message(len in 1usize..=64) {
        let keys = vec![vec![0; len]; keys_per_message(len)];
        bytes(&Change::Keys { set: "s".repeat(200), keys });
    }

    #[test]
    fn any_octets_are_read_to_an_end(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        read_counter(&payload);
        read_table(&payload);
        read_set(&payload);
        read_tallies(&payload);
        prop_assert!(read_keys(&payload).len() <= payload.len() / 4);
    }
}
