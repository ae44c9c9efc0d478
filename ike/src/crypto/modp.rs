//! The MODP groups 14, 15 and 16 (RFC 3526), generator 2, in constant time.
//!
//! Exponents are short: at least twice the strength of the group (RFC 3526 §8, RFC 7296 §5), which makes an exchange
//! several times cheaper than with exponents as long as the prime.

use std::sync::OnceLock;

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};
use cygnet_model::SecretBytes;
use cygnet_model::suite::Group;
use zeroize::Zeroize;

use super::kex::KexError;

const P2048: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
    EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
    83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
    15728E5A8AACAA68FFFFFFFFFFFFFFFF\
";
const P3072: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
    EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
    83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
    15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
    ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C\
    BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF\
";
const P4096: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
    EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
    83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
    15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
    ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C\
    BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7\
    88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8DBBBC2DB04DE8EF92E8EFC141FBECAA6\
    287C59474E6BC05D99B2964FA090C3A2233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9\
    93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF\
";

/// One group's parameters, computed once.
pub(super) struct Modp {
    params: BoxedMontyParams,
    /// Octets of the prime.
    len: usize,
    /// Bits of private exponents.
    exponent_bits: u32,
}

impl Modp {
    /// The parameters of a MODP group; `None` for other groups.
    pub(super) fn of(group: Group) -> Option<&'static Self> {
        static CELLS: [OnceLock<Modp>; 3] = [const { OnceLock::new() }; 3];
        let (index, hex, exponent_bits) = match group {
            Group::Modp2048 => (0usize, P2048, 256),
            Group::Modp3072 => (1, P3072, 320),
            Group::Modp4096 => (2, P4096, 384),
            Group::X25519 | Group::Ecp256 | Group::Ecp384 => return None,
        };
        Some(CELLS.get(index)?.get_or_init(|| Self::new(hex, exponent_bits)))
    }

    fn new(hex: &str, exponent_bits: u32) -> Self {
        let bytes: Vec<u8> = (hex.as_bytes().chunks(2))
            .map(|pair| {
                let text = std::str::from_utf8(pair).expect("the constants above are ASCII");
                u8::from_str_radix(text, 16).expect("the constants above are hexadecimal")
            })
            .collect();
        let prime = BoxedUint::from_be_slice_vartime(&bytes);
        let odd = Odd::new(prime).into_option().expect("the primes of RFC 3526 are odd");
        Self { params: BoxedMontyParams::new_vartime(odd), len: bytes.len(), exponent_bits }
    }

    /// Octets of a private exponent.
    pub(super) const fn exponent_len(&self) -> usize {
        self.exponent_bits as usize / 8
    }

    /// `2^exponent mod p`, as long as the prime.
    pub(super) fn public(&self, exponent: &SecretBytes) -> Vec<u8> {
        let mut two = vec![0u8; self.len];
        if let Some(last) = two.last_mut() {
            *last = 2;
        }
        self.power(&two, exponent).expose().to_vec()
    }

    /// `peer^exponent mod p`, after checking `1 < peer < p − 1` (RFC 6989 §2.1).
    pub(super) fn shared(&self, exponent: &SecretBytes, peer: &[u8]) -> Result<SecretBytes, KexError> {
        if peer.len() != self.len {
            return Err(KexError::PublicLength);
        }
        let bits = self.params.bits_precision();
        let y = BoxedUint::from_be_slice(peer, bits).map_err(|_| KexError::PublicValue)?;
        let one = BoxedUint::one_with_precision(bits);
        let p: &BoxedUint = self.params.modulus().as_ref();
        let p_minus_1 = p.wrapping_sub(&one);
        if y <= one || y >= p_minus_1 {
            return Err(KexError::PublicValue);
        }
        Ok(self.power(peer, exponent))
    }

    fn power(&self, base: &[u8], exponent: &SecretBytes) -> SecretBytes {
        let bits = self.params.bits_precision();
        let base =
            BoxedUint::from_be_slice(base, bits).expect("callers pass as many octets as the prime has");
        let mut exp = BoxedUint::from_be_slice(exponent.expose(), self.exponent_bits)
            .expect("exponents are made with this length");
        let mut result =
            BoxedMontyForm::new(base, &self.params).pow_bounded_exp(&exp, self.exponent_bits).retrieve();
        let secret = SecretBytes::copy_of(&result.to_be_bytes());
        exp.zeroize();
        result.zeroize();
        secret
    }
}
