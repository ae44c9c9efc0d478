use std::io::Read;

use cygnet_model::SecretBytes;
use cygnet_model::addke::Additional;
use cygnet_model::suite::{Encr, EspSuite, Group, IkeSuite, Integ, Prf};
use ring::hmac;

use super::cipher::SkCipher;
use super::kex::{self, KexError, PrivateKey, Provider};
use super::keymat::{ChildKeys, IkeKeys, Secrets, SkeySeed};
use super::*;

pub(crate) struct Counting(pub u8);

impl Random for Counting {
    fn fill(&mut self, out: &mut [u8]) {
        for b in out {
            self.0 = self.0.wrapping_mul(5).wrapping_add(17);
            *b = self.0;
        }
    }
}

/// A key by the libraries of production.
fn begin(group: Group, random: &mut dyn Random) -> (PrivateKey, Vec<u8>) {
    kex::begin(Provider::Real, group, random).unwrap()
}

pub(crate) fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

pub(crate) fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    text
}

/// One case of the NIST file: fields by name.
type Case = std::collections::BTreeMap<String, String>;

/// NIST CAVS 17.3 `ikev2.fax` (see tests/vectors/README.md): hash, octets of DKM and of child DKM, fields.
fn nist_cases() -> Vec<(hmac::Algorithm, usize, usize, Case)> {
    let text = gunzip(include_bytes!("../../tests/vectors/ikev2.fax.gz"));
    let (mut hash, mut dkm, mut child) = (hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, 0, 0);
    let mut cases: Vec<(hmac::Algorithm, usize, usize, Case)> = Vec::new();
    for line in text.lines().map(str::trim) {
        match line {
            "[SHA-1]" => hash = hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            "[SHA-256]" => hash = hmac::HMAC_SHA256,
            "[SHA-384]" => hash = hmac::HMAC_SHA384,
            "[SHA-512]" => hash = hmac::HMAC_SHA512,
            _ => {}
        }
        let octets = |prefix: &str| {
            line.strip_prefix(prefix)
                .and_then(|r| r.strip_suffix(']'))
                .map(|n| n.trim().parse::<usize>().unwrap() / 8)
        };
        if let Some(n) = octets("[DKM length =") {
            dkm = n;
        }
        if let Some(n) = octets("[Child SA DKM length =") {
            child = n;
        }
        if line.starts_with("COUNT") {
            cases.push((hash, dkm, child, Case::new()));
        } else if let Some((name, value)) = line.split_once(" = ")
            && !line.starts_with('[')
        {
            cases.last_mut().unwrap().3.insert(name.into(), value.into());
        }
    }
    cases
}

#[test]
fn nist_ikev2_kdf() {
    let cases = nist_cases();
    assert_eq!(cases.len(), 900);
    let mut typed = 0;
    for (hash, dkm_len, child_len, case) in cases {
        let f = |name: &str| hex(&case[name]);
        let (ni, nr, spi_i, spi_r) = (f("Ni"), f("Nr"), f("SPIi"), f("SPIr"));
        let (shared, shared_new) = (SecretBytes::new(f("g^ir")), SecretBytes::new(f("g^ir (new)")));
        let key = |octets: &[u8]| hmac::Key::new(hash, octets);
        let seed = prf::keyed(&key(&[&ni[..], &nr[..]].concat()), &[shared.expose()]);
        assert_eq!(seed.expose(), f("SKEYSEED"));
        let dkm = prf::plus(&key(seed.expose()), &[&ni, &nr, &spi_i, &spi_r], dkm_len).unwrap();
        assert_eq!(dkm.expose(), f("DKM"));
        let sk_d = SecretBytes::copy_of(&dkm.expose()[..seed.len()]);
        let child = prf::plus(&key(sk_d.expose()), &[&ni, &nr], child_len).unwrap();
        assert_eq!(child.expose(), f("DKM(Child SA)"));
        let child = prf::plus(&key(sk_d.expose()), &[shared_new.expose(), &ni, &nr], child_len).unwrap();
        assert_eq!(child.expose(), f("DKM(Child SA D-H)"));
        let rekeyed = prf::keyed(&key(sk_d.expose()), &[shared_new.expose(), &ni, &nr]);
        assert_eq!(rekeyed.expose(), f("SKEYSEED(Rekey)"));

        // The same through the typed stages, for the functions that we negotiate.
        let Some(prf) = Prf::ALL.into_iter().find(|p| p.output_len() == seed.len()) else { continue };
        typed += 1;
        let secrets = Secrets::from(shared_new.duplicate());
        assert_eq!(SkeySeed::initial(prf, &ni, &nr, &shared).expose(), f("SKEYSEED"));
        assert_eq!(SkeySeed::rekeyed(prf, &sk_d, &secrets, &ni, &nr).expose(), f("SKEYSEED(Rekey)"));
        let integ = Some(Integ::HmacSha256_128);
        let suite = IkeSuite {
            encr: Encr::AesCbc256,
            integ,
            prf,
            group: Group::X25519,
            additional: Additional::NONE,
        };
        let seed = SkeySeed::initial(prf, &ni, &nr, &shared);
        let keys =
            IkeKeys::derive(suite, &seed, &ni, &nr, spi_i.try_into().unwrap(), spi_r.try_into().unwrap());
        let parts =
            [&keys.sk_d, &keys.sk_ai, &keys.sk_ar, &keys.sk_ei, &keys.sk_er, &keys.sk_pi, &keys.sk_pr];
        let joined: Vec<u8> = parts.iter().flat_map(|p| p.expose().to_vec()).collect();
        let n = joined.len().min(dkm_len);
        assert_eq!(joined[..n], f("DKM")[..n]);
        let esp = EspSuite::plain(Encr::AesGcm16_128, None, false);
        for (shared, name) in [(None, "DKM(Child SA)"), (Some(&secrets), "DKM(Child SA D-H)")] {
            let ck = ChildKeys::derive(prf, &keys.sk_d, shared, &ni, &nr, &esp);
            let want = f(name);
            assert_eq!((ck.encr_i.expose(), ck.encr_r.expose()), (&want[..20], &want[20..40]));
            assert!(ck.integ_i.is_empty() && ck.integ_r.is_empty());
        }
    }
    assert_eq!(typed, 900);
}

#[test]
fn both_sides_of_every_group_agree() {
    let mut random = Counting(1);
    for group in Group::ALL {
        let (a, a_public) = begin(group, &mut random);
        assert_eq!(a_public.len(), group.offer_len());
        let (b_public, s2) = kex::answer(Provider::Real, group, &a_public, &mut random).unwrap();
        assert_eq!(b_public.len(), group.answer_len());
        let s1 = a.finish(&b_public).unwrap();
        assert!(s1.ct_eq(s2.expose()), "{group:?}");
        let want = match group {
            Group::X25519 => 32,
            Group::Ecp256 | Group::Ecp384 | Group::Ecp521 => group.offer_len() / 2,
            _ if group.is_kem() => 32,
            _ => group.offer_len(),
        };
        assert_eq!(s1.len(), want);
    }
}

#[test]
fn t13_bad_public_values_never_make_a_secret() {
    let mut random = Counting(3);
    for group in Group::ALL.into_iter().filter(|g| !g.is_kem()) {
        let n = group.offer_len();
        let mut one = vec![0u8; n];
        one[n - 1] = 1;
        let mut bad: Vec<(&str, Vec<u8>)> = vec![
            ("empty", vec![]),
            ("short", vec![2; n - 1]),
            ("long", vec![2; n + 1]),
            ("zeros", vec![0; n]),
        ];
        if group != Group::X25519 {
            bad.push(("one", one.clone()));
            bad.push(("beyond the field", vec![0xff; n]));
        } else {
            bad.push(("low order 1", {
                let mut v = vec![0; 32];
                v[0] = 1;
                v
            }));
            bad.push(("low order", hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")));
        }
        for (what, value) in bad {
            let (key, _) = begin(group, &mut random);
            assert!(key.finish(&value).is_err(), "{group:?} accepts {what}");
        }
    }
    // A ciphertext of another key is no error of the method, and gives a secret that nobody else has (FIPS 203 §6.3).
    for group in Group::ALL.into_iter().filter(|g| g.is_kem()) {
        for n in [0, group.answer_len() - 1, group.answer_len() + 1] {
            let (key, _) = begin(group, &mut random);
            assert_eq!(key.finish(&vec![7; n]).err(), Some(KexError::PublicLength), "{group:?} {n}");
        }
        for n in [0, group.offer_len() - 1, group.offer_len() + 1] {
            let made = kex::answer(Provider::Real, group, &vec![7; n], &mut random);
            assert_eq!(made.err(), Some(KexError::PublicLength), "{group:?} {n}");
        }
        let beyond = vec![0xff; group.offer_len()];
        let made = kex::answer(Provider::Real, group, &beyond, &mut random);
        assert_eq!(made.err(), Some(KexError::PublicValue), "{group:?}");
    }
    // p − 1 of group 14: the prime ends in all ones, so only the last octet differs.
    let (key, public) = begin(Group::Modp2048, &mut random);
    assert_eq!(public.len(), 256);
    assert_eq!(key.finish(&[0xff; 255]).err(), Some(KexError::PublicLength));
}

/// Wycheproof: https://github.com/C2SP/wycheproof (see tests/vectors/README.md).
pub(super) fn wycheproof(
    bytes: &[u8],
    mut check: impl FnMut(&serde_json::Value, &serde_json::Value),
) -> usize {
    let doc: serde_json::Value = serde_json::from_str(&gunzip(bytes)).unwrap();
    let mut n = 0;
    for group in doc["testGroups"].as_array().unwrap() {
        for test in group["tests"].as_array().unwrap() {
            check(group, test);
            n += 1;
        }
    }
    n
}

#[test]
fn wycheproof_x25519_through_ring() {
    // ring makes its own private keys, so the vectors can only test the public side: every public value that is marked
    // as giving an all-zero secret must be refused, every other one accepted.
    let n = wycheproof(include_bytes!("../../tests/vectors/x25519.json.gz"), |_, test| {
        let public = hex(test["public"].as_str().unwrap());
        let zero = hex(test["shared"].as_str().unwrap()).iter().all(|b| *b == 0);
        let (key, _) = begin(Group::X25519, &mut Counting(9));
        assert_eq!(key.finish(&public).is_err(), zero, "tcId {}", test["tcId"]);
    });
    assert!(n > 500);
}

#[test]
fn wycheproof_ecdh_public_values() {
    let files: [(&[u8], Group); 3] = [
        (include_bytes!("../../tests/vectors/ecdh_secp256r1_ecpoint.json.gz"), Group::Ecp256),
        (include_bytes!("../../tests/vectors/ecdh_secp384r1_ecpoint.json.gz"), Group::Ecp384),
        (include_bytes!("../../tests/vectors/ecdh_secp521r1_ecpoint.json.gz"), Group::Ecp521),
    ];
    for (bytes, group) in files {
        let n = wycheproof(bytes, |_, test| {
            let public = hex(test["public"].as_str().unwrap());
            // KE payloads carry uncompressed points without the leading 4.
            let Some((4, wire)) = public.split_first() else { return };
            let (key, _) = begin(group, &mut Counting(7));
            let ok = test["result"].as_str().unwrap() != "invalid";
            assert_eq!(key.finish(wire).is_ok(), ok, "{group:?} tcId {}", test["tcId"]);
        });
        assert!(n > 300);
    }
}

#[test]
fn wycheproof_hmac_as_prf() {
    let files: [(&[u8], Prf); 3] = [
        (include_bytes!("../../tests/vectors/hmac_sha256.json.gz"), Prf::HmacSha256),
        (include_bytes!("../../tests/vectors/hmac_sha384.json.gz"), Prf::HmacSha384),
        (include_bytes!("../../tests/vectors/hmac_sha512.json.gz"), Prf::HmacSha512),
    ];
    for (bytes, alg) in files {
        wycheproof(bytes, |group, test| {
            let tag = hex(test["tag"].as_str().unwrap());
            let full =
                prf::prf(alg, &hex(test["key"].as_str().unwrap()), &[&hex(test["msg"].as_str().unwrap())]);
            let len = group["tagSize"].as_u64().unwrap() as usize / 8;
            assert_eq!(full.expose()[..len] == tag[..], test["result"] == "valid", "tcId {}", test["tcId"]);
        });
    }
}

fn ciphers() -> Vec<(SkCipher, SkCipher)> {
    let mut all = Vec::new();
    for encr in Encr::ALL {
        for integ in Integ::ALL {
            let integ = (!encr.is_aead()).then_some(integ);
            let ek = SecretBytes::new((0..encr.keymat_len()).map(|i| i as u8).collect());
            let ik = SecretBytes::new(vec![7; integ.map_or(0, Integ::key_len)]);
            let make = || SkCipher::new(encr, integ, &ek, &ik).unwrap();
            all.push((make(), make()));
        }
    }
    all
}

#[test]
fn sealed_messages_open_and_bent_ones_do_not() {
    for (mut tx, rx) in ciphers() {
        for len in [0usize, 1, 15, 16, 17, 200] {
            let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut message = vec![9u8; 32];
            tx.seal(&mut message, &plain, &mut Counting(5)).unwrap();
            assert_eq!(message.len(), 32 + len + tx.overhead(len));
            assert_eq!(rx.open(&message[..32], &message[32..]).unwrap(), plain);
            for at in 0..message.len() {
                let mut bent = message.clone();
                bent[at] ^= 1;
                assert!(rx.open(&bent[..32], &bent[32..]).is_err(), "bit flip at {at}");
            }
            for cut in 32..message.len() {
                assert!(rx.open(&message[..32], &message[32..cut]).is_err(), "cut to {cut}");
            }
        }
    }
}

#[test]
fn t84_ivs_of_combined_modes_never_repeat() {
    let (mut tx, _) = ciphers().remove(0);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10_000 {
        let mut message = Vec::new();
        tx.seal(&mut message, b"x", &mut Counting(5)).unwrap();
        assert!(seen.insert(message[..8].to_vec()));
    }
    if let SkCipher::Aead { ivs, .. } = &mut tx {
        ivs.leave(1);
    }
    assert!(tx.seal(&mut Vec::new(), b"x", &mut Counting(5)).is_some());
    assert!(tx.seal(&mut Vec::new(), b"x", &mut Counting(5)).is_none());
}

/// A random source that gives the same number for ever.
struct Always(u64);

impl Random for Always {
    fn fill(&mut self, out: &mut [u8]) {
        out.iter_mut().zip(self.0.to_be_bytes().into_iter().cycle()).for_each(|(o, b)| *o = b);
    }
}

#[test]
fn a_resumed_key_goes_on_from_a_random_iv_and_past_zero() {
    let (mut tx, rx) = ciphers().remove(0);
    tx.resume(&mut Always(u64::MAX - 1));
    for want in [u64::MAX - 1, u64::MAX, 0, 1] {
        let mut message = b"header".to_vec();
        tx.seal(&mut message, b"x", &mut Counting(5)).unwrap();
        assert_eq!(message[6..14], want.to_be_bytes());
        assert_eq!(rx.open(b"header", &message[6..]), Ok(b"x".to_vec()));
    }
}

#[test]
fn keys_of_wrong_length_make_no_cipher() {
    let short = SecretBytes::new(vec![1; 35]);
    assert!(SkCipher::new(Encr::AesGcm16_256, None, &short, &SecretBytes::new(vec![])).is_none());
    assert!(SkCipher::new(Encr::AesCbc256, None, &short, &short).is_none());
}
