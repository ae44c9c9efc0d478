use std::io::Read;

use cygnet_model::SecretBytes;
use cygnet_model::suite::{Encr, EspSuite, Integ};
use serde_json::Value;

use super::*;
use crate::packet::Layout;
use crate::testing::suites;

#[test]
fn draft_mcgrew_gcm_packets_are_exact_both_ways() {
    let file = json(include_bytes!("../../tests/vectors/rfc4106_esp_gcm.json"));
    let mut done = 0;
    for test in file["tests"].as_array().unwrap() {
        let encr = match test["key"].as_str().unwrap().len() {
            32 => Encr::AesGcm16_128,
            64 => Encr::AesGcm16_256,
            48 => continue, // 192 bit keys are not spoken
            other => panic!("{other}"),
        };
        let esn = test["esn"].as_bool().unwrap();
        let high = if esn { number(&test["seq_hi"]) } else { 0 };
        let seq = high << 32 | number(&test["seq_lo"]);
        let keymat = [hex(&test["key"]), hex(&test["salt"])].concat();
        exact(suite(encr, None, esn), &keymat, seq, &hex(&test["plaintext"]), &hex(&test["esp_packet"]));
        done += 1;
    }
    assert_eq!(done, 13);
}

#[test]
fn rfc_7634_appendix_a_is_exact_both_ways() {
    let file = json(include_bytes!("../../tests/vectors/rfc7634.json"));
    let test = &file["esp"];
    let keymat = [hex(&test["key"]), hex(&test["salt"])].concat();
    let packet = [hex(&test["spi_seq"]), hex(&test["iv"]), hex(&test["ciphertext_icv"])].concat();
    exact(suite(Encr::ChaCha20Poly1305, None, false), &keymat, 5, &hex(&test["plaintext"]), &packet);
}

/// The RFC's packet has no ICV; ours is compared up to there.
#[test]
fn rfc_3602_case_5_is_exact() {
    let file = json(include_bytes!("../../tests/vectors/rfc3602_cbc.json"));
    let test = &file["tests"][0];
    let suite = suite(Encr::AesCbc128, Some(Integ::HmacSha256_128), false);
    let cipher =
        Cipher::new(suite, &SecretBytes::new(hex(&test["key"])), &SecretBytes::new(vec![1; 32])).unwrap();
    let (iv, text) = (hex(&test["iv"]), hex(&test["plaintext"]));
    let mut packet =
        [hex(&test["spi"]), hex(&test["seq"]), vec![0; 16], text.clone(), vec![0; suite.icv_len()]].concat();
    cipher.seal_with_iv(1, &iv, &mut packet).unwrap();
    let end = 24 + text.len();
    assert_eq!(packet[8..24], iv);
    assert_eq!(packet[24..end], hex(&test["ciphertext"]));
    assert_eq!(cipher.open(1, &mut packet), Ok(text.len()));
    assert_eq!(packet[24..end], text);
}

#[test]
fn wycheproof_aes_gcm() {
    let algorithm = |bits| match bits {
        128 => Some(&aead::AES_128_GCM),
        256 => Some(&aead::AES_256_GCM),
        _ => None,
    };
    assert!(wycheproof_aead(include_bytes!("../../tests/vectors/aes_gcm.json.gz"), algorithm) > 100);
}

#[test]
fn wycheproof_chacha20_poly1305() {
    let file = include_bytes!("../../tests/vectors/chacha20_poly1305.json.gz");
    assert!(wycheproof_aead(file, |_| Some(&aead::CHACHA20_POLY1305)) > 200);
}

#[test]
fn wycheproof_aes_cbc() {
    let mut done = 0;
    for_each(include_bytes!("../../tests/vectors/aes_cbc_pkcs5.json.gz"), |_, test| {
        let key = hex(&test["key"]);
        let key = match key.len() {
            16 => CbcKey::Aes128(Aes128::new_from_slice(&key).unwrap()),
            24 => CbcKey::Aes192(Aes192::new_from_slice(&key).unwrap()),
            _ => CbcKey::Aes256(Aes256::new_from_slice(&key).unwrap()),
        };
        let iv = hex(&test["iv"]);
        let mut text = hex(&test["ct"]);
        let opened = key.decrypt(&iv, &mut text).is_ok() && unpad(&mut text).is_some();
        assert_eq!(opened && text == hex(&test["msg"]), test["result"] == "valid", "{}", test["tcId"]);
        if test["result"] == "valid" {
            let pad = 16 - text.len() % 16;
            text.extend(std::iter::repeat_n(pad as u8, pad));
            key.encrypt(&iv, &mut text).unwrap();
            assert_eq!(text, hex(&test["ct"]));
        }
        done += 1;
    });
    assert!(done > 150);
}

#[test]
fn wycheproof_hmac_sha2_as_truncated_by_rfc_4868() {
    let files: [(&[u8], Integ); 3] = [
        (include_bytes!("../../tests/vectors/hmac_sha256.json.gz"), Integ::HmacSha256_128),
        (include_bytes!("../../tests/vectors/hmac_sha384.json.gz"), Integ::HmacSha384_192),
        (include_bytes!("../../tests/vectors/hmac_sha512.json.gz"), Integ::HmacSha512_256),
    ];
    for (file, integ) in files {
        let mut done = 0;
        for_each(file, |_, test| {
            let key = hmac::Key::new(mac_algorithm(integ), &hex(&test["key"]));
            let mut icv = hex(&test["tag"]);
            let wanted = icv.clone();
            copy_truncated(&mut icv, &sign(&key, &hex(&test["msg"]), 0, false)).unwrap();
            assert_eq!(icv == wanted, test["result"] == "valid", "{integ:?} {}", test["tcId"]);
            done += 1;
        });
        assert!(done > 100);
    }
}

#[test]
fn cbc_ivs_are_neither_foreseeable_counters_nor_repeated() {
    for encr in [Encr::AesCbc256, Encr::TripleDesCbc] {
        let suite = suite(encr, Some(Integ::HmacSha256_128), false);
        let cipher = cipher_of(suite);
        let end = 8 + encr.info().iv_len;
        let mut seen = std::collections::BTreeSet::new();
        for seq in 1..=5000u64 {
            let mut packet = vec![0; end + 16 + 16];
            cipher.seal(seq, &mut packet).unwrap();
            assert!(packet[8..end].chunks(8).all(|part| part != seq.to_be_bytes()));
            assert!(seen.insert(packet[8..end].to_vec()));
        }
    }
}

/// NIST SP 800-67 appendix B.1 has the blocks in ECB mode; with CBC's IV taken in, the same key makes them here. (K1, K2, K3
/// are its three keys, the text is "The qufck brown fox jump".)
#[test]
fn triple_des_encrypts_the_blocks_of_sp_800_67() {
    let key: [u64; 3] = [0x0123_4567_89AB_CDEF, 0x2345_6789_ABCD_EF01, 0x4567_89AB_CDEF_0123];
    let key: Vec<u8> = key.iter().flat_map(|k| k.to_be_bytes()).collect();
    let key = CbcKey::TripleDes(TdesEde3::new_from_slice(&key).unwrap());
    let text = [0x5468_6520_7175_6663u64, 0x6B20_6272_6F77_6E20, 0x666F_7820_6A75_6D70];
    let want = [0xA826_FD8C_E53B_855Fu64, 0xCCE2_1C81_1225_6FE6, 0x68D5_C05D_D9B6_B900];
    for (text, want) in text.into_iter().zip(want) {
        let mut block = text.to_be_bytes();
        key.encrypt(&[0; 8], &mut block).unwrap();
        assert_eq!(u64::from_be_bytes(block), want);
        key.decrypt(&[0; 8], &mut block).unwrap();
        assert_eq!(u64::from_be_bytes(block), text);
    }
}

/// RFC 2202 §3, cases 1 and 2, truncated as RFC 2404 says.
#[test]
fn hmac_sha1_96_is_that_of_rfc_2202() {
    let cases: [(&[u8], &[u8], [u8; 12]); 2] = [
        (&[0x0b; 20], b"Hi There", [0xb6, 0x17, 0x31, 0x86, 0x55, 0x05, 0x72, 0x64, 0xe2, 0x8b, 0xc0, 0xb6]),
        (
            b"Jefe",
            b"what do ya want for nothing?",
            [0xef, 0xfc, 0xdf, 0x6a, 0xe5, 0xeb, 0x2f, 0xa2, 0xd2, 0x74, 0x16, 0xd5],
        ),
    ];
    for (key, text, want) in cases {
        let key = hmac::Key::new(mac_algorithm(Integ::HmacSha1_96), key);
        let mut icv = [0; 12];
        copy_truncated(&mut icv, &sign(&key, text, 0, false)).unwrap();
        assert_eq!(icv, want);
    }
    assert_eq!(Integ::HmacSha1_96.icv_len(), 12);
}

#[test]
fn with_esn_the_unsent_half_is_authenticated() {
    for suite in suites() {
        let (cipher, layout) = (cipher_of(suite), Layout::of(suite));
        let mut packet = vec![7; layout.sealed_len(100)];
        let seq = 1 << 32 | 9;
        cipher.seal(seq, &mut packet).unwrap();
        let mut copy = packet.clone();
        let other_half = cipher.open(9, &mut copy);
        assert_eq!(other_half.is_err(), suite.esn, "{suite}");
        assert!(cipher.open(seq, &mut packet).is_ok());
    }
}

#[test]
fn keys_of_wrong_length_and_odd_suites_are_refused() {
    let key = |n| SecretBytes::new(vec![0; n]);
    let gcm = suite(Encr::AesGcm16_128, None, false);
    assert!(matches!(Cipher::new(gcm, &key(19), &key(0)), Err(SaError::KeyLength { want: 20, got: 19, .. })));
    assert!(matches!(Cipher::new(gcm, &key(20), &key(1)), Err(SaError::KeyLength { what: "integrity", .. })));
    let both = suite(Encr::AesGcm16_128, Some(Integ::HmacSha256_128), false);
    assert!(matches!(Cipher::new(both, &key(20), &key(32)), Err(SaError::Suite(_))));
    let neither = suite(Encr::AesCbc128, None, false);
    assert!(matches!(Cipher::new(neither, &key(16), &key(0)), Err(SaError::Suite(_))));
}

/// Seals `text` and compares with `packet`; opens `packet` and compares with `text`; opens it with one bit changed.
/// What `Drop` does before the memory is given back: whoever finds it finds the key of nobody.
#[test]
fn a_wiped_cipher_seals_like_one_of_zeros() {
    for suite in suites() {
        let key = |octet| SecretBytes::new(vec![octet; suite.encr.keymat_len()]);
        let mac = |octet| SecretBytes::new(vec![octet; suite.integ.map_or(0, Integ::key_len)]);
        let sealed = |cipher: &Cipher| {
            let mut packet = vec![0x45; Layout::of(suite).sealed_len(40)];
            cipher.seal(7, &mut packet).unwrap();
            packet
        };
        // The block cipher of CBC wipes itself, so only its MAC is exchanged.
        let kept = if suite.integ.is_some() { 0x11 } else { 0 };
        let mut cipher = Cipher::new(suite, &key(0x11), &mac(0x22)).unwrap();
        let zeros = Cipher::new(suite, &key(kept), &mac(0)).unwrap();
        assert_ne!(sealed(&cipher), sealed(&zeros), "{suite}");
        cipher.wipe();
        assert_eq!(sealed(&cipher), sealed(&zeros), "{suite}");
    }
}

fn exact(suite: EspSuite, keymat: &[u8], seq: u64, text: &[u8], packet: &[u8]) {
    let cipher = Cipher::new(suite, &SecretBytes::copy_of(keymat), &SecretBytes::new(vec![])).unwrap();
    let mut sealed = packet.to_vec();
    sealed[16..].fill(0);
    sealed[16..16 + text.len()].copy_from_slice(text);
    cipher.seal_with_iv(seq, &packet[8..16], &mut sealed).unwrap();
    assert_eq!(sealed, packet);
    assert_eq!(cipher.open(seq, &mut sealed), Ok(text.len()));
    assert_eq!(&sealed[16..16 + text.len()], text);
    let mut forged = packet.to_vec();
    *forged.last_mut().unwrap() ^= 0x80;
    assert_eq!(cipher.open(seq, &mut forged), Err(DropReason::Integrity));
}

/// ESP fixes the lengths of additional data and ICV, so the vectors meet the algorithm itself. Returns how many did.
fn wycheproof_aead(file: &[u8], algorithm: impl Fn(u64) -> Option<&'static aead::Algorithm>) -> usize {
    let mut done = 0;
    for_each(file, |group, test| {
        let fits = group["ivSize"] == 96 && group["tagSize"] == 128;
        let Some(algorithm) = algorithm(group["keySize"].as_u64().unwrap()).filter(|_| fits) else { return };
        let key = aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, &hex(&test["key"])).unwrap());
        let nonce = || aead::Nonce::try_assume_unique_for_key(&hex(&test["iv"])).unwrap();
        let mut text = [hex(&test["ct"]), hex(&test["tag"])].concat();
        let opened = key.open_in_place(nonce(), aead::Aad::from(hex(&test["aad"])), &mut text);
        assert_eq!(
            opened.is_ok_and(|text| *text == *hex(&test["msg"])),
            test["result"] == "valid",
            "{}",
            test["tcId"]
        );
        if test["result"] == "valid" {
            let mut text = hex(&test["msg"]);
            let tag = key
                .seal_in_place_separate_tag(nonce(), aead::Aad::from(hex(&test["aad"])), &mut text)
                .unwrap();
            assert_eq!((text, tag.as_ref()), (hex(&test["ct"]), hex(&test["tag"]).as_slice()));
        }
        done += 1;
    });
    done
}

fn unpad(text: &mut Vec<u8>) -> Option<()> {
    let pad = usize::from(*text.last()?);
    let ok = (1..=16).contains(&pad)
        && text.len() >= pad
        && text[text.len() - pad..].iter().all(|o| usize::from(*o) == pad);
    text.truncate(text.len() - if ok { pad } else { 0 });
    ok.then_some(())
}

fn cipher_of(suite: EspSuite) -> Cipher {
    let key = |n| SecretBytes::new(vec![3; n]);
    Cipher::new(suite, &key(suite.encr.keymat_len()), &key(suite.integ.map_or(0, Integ::key_len))).unwrap()
}

const fn suite(encr: Encr, integ: Option<Integ>, esn: bool) -> EspSuite {
    EspSuite::plain(encr, integ, esn)
}

fn for_each(file: &[u8], mut test: impl FnMut(&Value, &Value)) {
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut text).unwrap();
    for group in json(&text)["testGroups"].as_array().unwrap() {
        for one in group["tests"].as_array().unwrap() {
            test(group, one);
        }
    }
}

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

fn number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap(), 16).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    text.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
