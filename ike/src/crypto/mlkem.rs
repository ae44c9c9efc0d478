//! ML-KEM (FIPS 203) in IKEv2 (draft-ietf-ipsecme-ikev2-mlkem): the initiator sends an encapsulation key, the responder a
//! ciphertext. Every exchange has a key pair and a ciphertext of its own.

use cygnet_model::SecretBytes;
use cygnet_model::suite::Group;
use ml_kem::{
    B32, Ciphertext, Decapsulate, DecapsulationKey, EncapsulationKey, Key as Encoded, KeyExport, MlKem512,
    MlKem768, MlKem1024, Seed,
};
use zeroize::{Zeroize, Zeroizing};

use super::Random;
use super::kex::KexError;

/// Evaluates `$body` with `$Set` as the parameter set of an ML-KEM method.
macro_rules! with_set {
    ($group:expr, $Set:ident, $body:expr) => {
        match $group {
            Group::MlKem512 => {
                type $Set = MlKem512;
                $body
            }
            Group::MlKem768 => {
                type $Set = MlKem768;
                $body
            }
            _ => {
                type $Set = MlKem1024;
                $body
            }
        }
    };
}

/// A decapsulation key of any parameter set; it wipes itself.
trait Opens: Send {
    fn open(&self, ciphertext: &[u8]) -> Option<SecretBytes>;
}

macro_rules! opens {
    ($($Set:ty),*) => {$(
        impl Opens for DecapsulationKey<$Set> {
            fn open(&self, ciphertext: &[u8]) -> Option<SecretBytes> {
                let ciphertext = Ciphertext::<$Set>::try_from(ciphertext).ok()?;
                let mut secret = self.decapsulate(&ciphertext);
                let kept = SecretBytes::copy_of(&secret);
                secret.zeroize();
                Some(kept)
            }
        }
    )*};
}

opens!(MlKem512, MlKem768, MlKem1024);

/// A private key.
pub(super) struct Key {
    group: Group,
    key: Box<dyn Opens>,
}

/// Begins an exchange as the initiator: the key, and the encapsulation key for the KE payload.
pub(super) fn begin(group: Group, random: &mut dyn Random) -> (Key, Vec<u8>) {
    let mut seed = Zeroizing::new([0u8; 64]);
    random.fill(&mut *seed);
    of_seed(group, &seed)
}

fn of_seed(group: Group, seed: &[u8; 64]) -> (Key, Vec<u8>) {
    with_set!(group, Set, {
        let key = DecapsulationKey::<Set>::from_seed(Seed::from(*seed));
        let public = key.encapsulation_key().to_bytes().to_vec();
        (Key { group, key: Box::new(key) }, public)
    })
}

/// Answers as the responder: the ciphertext for the KE payload, and the shared secret.
///
/// # Errors
/// If the peer's encapsulation key is none (FIPS 203 §7.2: its length, and the modulus check).
pub(super) fn answer(
    group: Group,
    peer: &[u8],
    random: &mut dyn Random,
) -> Result<(Vec<u8>, SecretBytes), KexError> {
    let mut message = Zeroizing::new([0u8; 32]);
    random.fill(&mut *message);
    answer_with(group, peer, &message)
}

fn answer_with(group: Group, peer: &[u8], message: &[u8; 32]) -> Result<(Vec<u8>, SecretBytes), KexError> {
    with_set!(group, Set, {
        let encoded = Encoded::<EncapsulationKey<Set>>::try_from(peer).map_err(|_| KexError::PublicLength)?;
        let key = EncapsulationKey::<Set>::new(&encoded).map_err(|_| KexError::PublicValue)?;
        let (ciphertext, mut secret) = key.encapsulate_deterministic(&B32::from(*message));
        let kept = SecretBytes::copy_of(&secret);
        secret.zeroize();
        Ok((ciphertext.to_vec(), kept))
    })
}

impl Key {
    /// The shared secret of the peer's ciphertext. One that was not made for this key gives another secret, and no error (FIPS
    /// 203 §6.3): AUTH tells.
    pub fn finish(self, peer: &[u8]) -> Result<SecretBytes, KexError> {
        self.key.open(peer).ok_or(KexError::PublicLength)
    }

    pub const fn group(&self) -> Group {
        self.group
    }
}

#[cfg(test)]
mod tests {
    use ml_kem::ExpandedDecapsulationKey;

    use super::super::tests::{gunzip, hex, wycheproof};
    use super::*;

    fn field(test: &serde_json::Value, name: &str) -> Vec<u8> {
        hex(test[name].as_str().unwrap())
    }

    fn group_of(set: &str) -> Group {
        let name = set.to_lowercase().replacen("ml-kem-", "mlkem", 1);
        Group::ALL.into_iter().find(|g| g.keyword() == name).unwrap()
    }

    #[test]
    #[allow(deprecated, reason = "the vectors have expanded keys")]
    fn acvp_encapsulation_decapsulation_and_checks_of_keys() {
        let text = gunzip(include_bytes!("../../tests/vectors/mlkem_acvp.json.gz"));
        let doc: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut done = [0; 3];
        for set in doc["testGroups"].as_array().unwrap() {
            let group = group_of(set["parameterSet"].as_str().unwrap());
            for test in set["tests"].as_array().unwrap() {
                let tc = &test["tcId"];
                match set["function"].as_str().unwrap() {
                    "encapsulation" => {
                        let m = field(test, "m").try_into().unwrap();
                        let (c, k) = answer_with(group, &field(test, "ek"), &m).unwrap();
                        assert_eq!((c, k.expose()), (field(test, "c"), &*field(test, "k")), "tcId {tc}");
                        done[0] += 1;
                    }
                    "decapsulation" => with_set!(group, Set, {
                        let expanded =
                            ExpandedDecapsulationKey::<Set>::try_from(&*field(test, "dk")).unwrap();
                        let key = DecapsulationKey::<Set>::from_expanded(&expanded).unwrap();
                        let key = Key { group, key: Box::new(key) };
                        let k = key.finish(&field(test, "c")).unwrap();
                        assert_eq!(k.expose(), field(test, "k"), "tcId {tc}");
                        done[1] += 1;
                    }),
                    "encapsulationKeyCheck" => {
                        let good = answer_with(group, &field(test, "ek"), &[7; 32]).is_ok();
                        assert_eq!(good, test["testPassed"].as_bool().unwrap(), "tcId {tc}");
                        done[2] += 1;
                    }
                    // We make our own, and from seeds.
                    "decapsulationKeyCheck" => {}
                    other => panic!("{other}"),
                }
            }
        }
        assert_eq!(done, [75, 30, 30]);
    }

    #[test]
    fn wycheproof_keys_of_seeds_and_ciphertexts() {
        let n = wycheproof(include_bytes!("../../tests/vectors/mlkem_768.json.gz"), |_, test| {
            let Ok(seed) = field(test, "seed").try_into() else { return };
            let (key, public) = of_seed(Group::MlKem768, &seed);
            let secret = key.finish(&field(test, "c"));
            match test["result"].as_str().unwrap() {
                "valid" => {
                    assert_eq!(public, field(test, "ek"), "tcId {}", test["tcId"]);
                    assert_eq!(secret.unwrap().expose(), field(test, "K"), "tcId {}", test["tcId"]);
                }
                _ => assert!(secret.is_err(), "tcId {}", test["tcId"]),
            }
        });
        assert!(n > 190);
    }

    #[test]
    fn wycheproof_encapsulation_keys() {
        let n = wycheproof(include_bytes!("../../tests/vectors/mlkem_768_encaps.json.gz"), |_, test| {
            let m = field(test, "m").try_into().unwrap();
            let made = answer_with(Group::MlKem768, &field(test, "ek"), &m);
            assert_eq!(made.is_ok(), test["result"] == "valid", "tcId {}", test["tcId"]);
            if let Ok((c, k)) = made {
                assert_eq!((c, k.expose()), (field(test, "c"), &*field(test, "K")), "tcId {}", test["tcId"]);
            }
        });
        assert!(n > 250);
    }
}
