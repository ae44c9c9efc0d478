//! Keying material in its stages (RFC 7296 §2.14, §2.17, §2.18): shared secret → SKEYSEED → SK_* → KEYMAT.
//! Each stage consumes or borrows the one before; none can be printed.

use cygnet_model::SecretBytes;
use cygnet_model::addke::Additional;
use cygnet_model::suite::{EspSuite, IkeSuite, Integ, Prf};

use super::prf::{prf, prf_plus};

/// The secrets of the key exchanges of one CREATE_CHILD_SA: of its own, and of the additional ones that followed
/// (RFC 9370 §2.2.4).
pub struct Secrets {
    first: SecretBytes,
    additional: Vec<SecretBytes>,
}

impl From<SecretBytes> for Secrets {
    fn from(first: SecretBytes) -> Self {
        Self { first, additional: Vec::new() }
    }
}

impl Secrets {
    /// Adds the one of the next additional key exchange.
    pub fn add(&mut self, secret: SecretBytes) {
        self.additional.push(secret);
    }

    /// Whether there is one of each of these additional key exchanges.
    pub fn are_of(&self, additional: &Additional) -> bool {
        self.additional.len() == additional.iter().count()
    }

    /// `SK (0) | Ni | Nr | SK (1) | … | SK (n)`.
    fn around<'a>(&'a self, nonces: &[&'a [u8]]) -> Vec<&'a [u8]> {
        let more = self.additional.iter().map(SecretBytes::expose);
        std::iter::once(self.first.expose()).chain(nonces.iter().copied()).chain(more).collect()
    }
}

/// SKEYSEED, from which an IKE SA's keys come.
pub struct SkeySeed(SecretBytes);

impl SkeySeed {
    /// `prf(Ni | Nr, g^ir)` for the first IKE SA (RFC 7296 §2.14).
    pub fn initial(alg: Prf, ni: &[u8], nr: &[u8], shared: &SecretBytes) -> Self {
        let key = [ni, nr].concat();
        Self(prf(alg, &key, &[shared.expose()]))
    }

    /// `prf(SK_d (old), g^ir (new) | Ni | Nr)` for a rekeyed one, with the old SA's PRF (RFC 7296 §2.18), followed by the
    /// secrets of additional key exchanges (RFC 9370 §2.2.4).
    pub fn rekeyed(old: Prf, sk_d: &SecretBytes, secrets: &Secrets, ni: &[u8], nr: &[u8]) -> Self {
        Self(prf(old, sk_d.expose(), &secrets.around(&[ni, nr])))
    }

    /// `prf(SK_d (before), SK (n) | Ni | Nr)` after the nth additional key exchange in IKE_INTERMEDIATE, with the nonces of
    /// IKE_SA_INIT (RFC 9370 §2.2.2).
    pub fn further(alg: Prf, sk_d: &SecretBytes, shared: &SecretBytes, ni: &[u8], nr: &[u8]) -> Self {
        Self(prf(alg, sk_d.expose(), &[shared.expose(), ni, nr]))
    }

    #[cfg(test)]
    pub(crate) fn expose(&self) -> &[u8] {
        self.0.expose()
    }
}

/// The seven keys of an IKE SA, each as long as its algorithm wants; AEAD keys include the salt (RFC 5282 §7.1).
#[allow(missing_docs, reason = "the names are the RFC's own")]
pub struct IkeKeys {
    pub sk_d: SecretBytes,
    pub sk_ai: SecretBytes,
    pub sk_ar: SecretBytes,
    pub sk_ei: SecretBytes,
    pub sk_er: SecretBytes,
    pub sk_pi: SecretBytes,
    pub sk_pr: SecretBytes,
}

/// Cuts keying material into keys, in order.
struct Cutter<'a>(&'a [u8]);

impl Cutter<'_> {
    fn cut(&mut self, n: usize) -> SecretBytes {
        let (head, tail) = self.0.split_at_checked(n).unwrap_or((self.0, &[]));
        self.0 = tail;
        SecretBytes::copy_of(head)
    }
}

impl IkeKeys {
    /// `{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)`.
    pub fn derive(
        suite: IkeSuite,
        seed: &SkeySeed,
        ni: &[u8],
        nr: &[u8],
        spi_i: [u8; 8],
        spi_r: [u8; 8],
    ) -> Self {
        let prf_len = suite.prf.output_len();
        let integ = suite.integ.map_or(0, Integ::key_len);
        let encr = suite.encr.keymat_len();
        let len = 3 * prf_len + 2 * integ + 2 * encr;
        let keymat = prf_plus(suite.prf, seed.0.expose(), &[ni, nr, &spi_i, &spi_r], len)
            .expect("an IKE SA needs at most 400 octets, prf+ yields 5100 at least");
        let mut c = Cutter(keymat.expose());
        Self {
            sk_d: c.cut(prf_len),
            sk_ai: c.cut(integ),
            sk_ar: c.cut(integ),
            sk_ei: c.cut(encr),
            sk_er: c.cut(encr),
            sk_pi: c.cut(prf_len),
            sk_pr: c.cut(prf_len),
        }
    }
}

/// The keys of one pair of ESP SAs: first those that protect packets from the exchange's initiator.
pub struct ChildKeys {
    /// Cipher key and salt, initiator to responder.
    pub encr_i: SecretBytes,
    /// Integrity key, initiator to responder.
    pub integ_i: SecretBytes,
    /// Cipher key and salt, responder to initiator.
    pub encr_r: SecretBytes,
    /// Integrity key, responder to initiator.
    pub integ_r: SecretBytes,
}

impl ChildKeys {
    /// `KEYMAT = prf+(SK_d, [g^ir (new)] | Ni | Nr)`, cut as RFC 7296 §2.17 says, with the secrets of additional key exchanges
    /// behind (RFC 9370 §2.2.4). Nonces are those of the exchange that makes the child.
    pub fn derive(
        alg: Prf,
        sk_d: &SecretBytes,
        secrets: Option<&Secrets>,
        ni: &[u8],
        nr: &[u8],
        suite: &EspSuite,
    ) -> Self {
        let encr = suite.encr.keymat_len();
        let integ = suite.integ.map_or(0, Integ::key_len);
        let seed = secrets.map_or_else(|| vec![ni, nr], |secrets| secrets.around(&[ni, nr]));
        let keymat = prf_plus(alg, sk_d.expose(), &seed, 2 * (encr + integ))
            .expect("a child needs at most 200 octets, prf+ yields 5100 at least");
        let mut c = Cutter(keymat.expose());
        Self { encr_i: c.cut(encr), integ_i: c.cut(integ), encr_r: c.cut(encr), integ_r: c.cut(integ) }
    }
}
