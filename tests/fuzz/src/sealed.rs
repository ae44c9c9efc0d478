//! Sealed IKEv2 messages under keys that everybody knows: the SK payload, and fragments.

use cygnet_ike::crypto::keymat::IkeKeys;
use cygnet_ike::io::Role;
use cygnet_ike::testing::Channel;
use cygnet_ike::wire::{Exchange, PayloadType, Payloads};
use cygnet_model::SecretBytes;
use cygnet_model::addke::Additional;
use cygnet_model::suite::{Encr, Group, IkeSuite, Integ, Prf};
use cygnet_sim::Seeded;

use crate::ike::{said, sayable};
use crate::input::Input;

/// SPIs of the two ends.
const SPIS: (u64, u64) = (0x0011_2233_4455_6677, 0x8899_AABB_CCDD_EEFF);
/// Fragments are not larger than this, in octets.
const DATAGRAM: usize = 1228;

/// Every cipher of IKE once, in a fixed order.
pub fn ike_suites() -> Vec<IkeSuite> {
    let suite = |encr: Encr| IkeSuite {
        encr,
        integ: (!encr.is_aead()).then_some(Integ::HmacSha256_128),
        prf: Prf::HmacSha256,
        group: Group::X25519,
        additional: Additional::NONE,
    };
    Encr::ALL.into_iter().map(suite).collect()
}

/// One end of an IKE SA with the keys of the corpus.
pub fn channel(suite: IkeSuite, role: Role, fragmentation: bool) -> Channel {
    let key = |n: u8, len: usize| SecretBytes::new((0..len).map(|i| n ^ (i as u8).wrapping_mul(7)).collect());
    let (encr, integ) = (suite.encr.keymat_len(), suite.integ.map_or(0, Integ::key_len));
    let keys = IkeKeys {
        sk_d: key(1, 32),
        sk_ai: key(2, integ),
        sk_ar: key(3, integ),
        sk_ei: key(4, encr),
        sk_er: key(5, encr),
        sk_pi: key(6, 32),
        sk_pr: key(7, 32),
    };
    Channel::new(suite, &keys, SPIS, role, fragmentation).expect("keys of the suite's lengths")
}

/// A suite, whether fragments are taken, and a datagram from the initiator: it is refused, or it was sealed with the key.
/// Then it opens again as the same, and with any octet changed or cut off it does not.
pub fn ike_open(data: &[u8]) {
    let mut input = Input(data);
    let suites = ike_suites();
    let suite = suites[usize::from(input.u8()) % suites.len()];
    let fragmentation = input.u8() & 1 != 0;
    let datagram = input.rest();
    let open = |datagram: &[u8]| channel(suite, Role::Responder, fragmentation).open(datagram);
    let Ok(opened) = open(datagram) else { return };
    assert_eq!(open(datagram), Ok(opened));
    let step = datagram.len().div_ceil(16).max(1);
    for at in (0..datagram.len()).step_by(step) {
        let mut forged = datagram.to_vec();
        forged[at] ^= 1;
        assert!(open(&forged).is_err(), "octet {at} is not protected");
        assert!(open(&datagram[..at]).is_err(), "cut at {at}");
    }
}

/// A suite, a kind of damage, and a message: it passes sealed, in any order of its fragments, and nothing else passes.
pub fn ike_seal(data: &[u8]) {
    let mut input = Input(data);
    let suites = ike_suites();
    let suite = suites[usize::from(input.u8()) % suites.len()];
    let options = input.u8();
    let (fragmentation, response) = (options & 1 != 0, options & 2 != 0);
    let (turn, at, flip) = (input.u8(), input.u16(), input.u8() | 1);
    let first = PayloadType(input.u8());
    let Ok(payloads) = Payloads::decode(first, input.rest()) else { return };
    let meant = sayable(payloads);
    let plain = said(&meant).1.len();

    let mut sender = channel(suite, Role::Initiator, fragmentation);
    let mut receiver = channel(suite, Role::Responder, fragmentation);
    let mut random = Seeded::new(u64::from(at));
    let sealed = sender.seal(Exchange::INFORMATIONAL, 7, response, &meant, &mut random);
    let Some(mut datagrams) = sealed else {
        assert!(plain > 65_000 && !fragmentation, "{plain} octets cannot be sealed");
        return;
    };
    if datagrams.len() > 1 {
        assert!(fragmentation && datagrams.iter().all(|d| d.len() <= DATAGRAM));
    }
    let mut forged = datagrams[usize::from(turn) % datagrams.len()].clone();
    let place = usize::from(at) % forged.len();
    forged[place] ^= flip;
    let turned = usize::from(turn) % datagrams.len();
    datagrams.rotate_left(turned);
    if turn & 0x80 != 0 {
        datagrams.reverse();
    }
    let last = datagrams.len() - 1;
    for (i, datagram) in datagrams.iter().enumerate() {
        assert!(receiver.open(&forged).is_err(), "a forged datagram passed: octet {place} ^ {flip}");
        match receiver.open(datagram).expect("a true datagram") {
            None => assert!(i < last, "the last fragment completes the message"),
            Some(opened) => {
                assert_eq!(i, last);
                assert_eq!(opened, Ok(meant.clone()));
            }
        }
    }
}
