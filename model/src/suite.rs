//! The algorithms that cygnet speaks: one table with IANA numbers (registry "Internet Key Exchange Version 2 (IKEv2)
//! Parameters"), sizes and names. Everything else refers to it.

use std::fmt;

use crate::addke::Additional;

/// Encryption algorithm with its key length (transform type 1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Encr {
    /// AES-GCM with a 16 octet ICV and a 128 bit key (RFC 4106, RFC 5282).
    AesGcm16_128,
    /// AES-GCM with a 16 octet ICV and a 256 bit key.
    AesGcm16_256,
    /// AES-CBC with a 128 bit key (RFC 3602).
    AesCbc128,
    /// AES-CBC with a 192 bit key.
    AesCbc192,
    /// AES-CBC with a 256 bit key.
    AesCbc256,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
    /// Triple DES in CBC mode (RFC 2451). Legacy: blocks of 64 bits.
    TripleDesCbc,
}

/// What a row of the encryption table says. Sizes in octets.
#[derive(Clone, Copy, Debug)]
pub struct EncrInfo {
    /// IANA transform id.
    pub transform: u16,
    /// Value of the Key Length attribute in bits; `None` where the algorithm has a fixed key and must not carry one.
    pub key_bits: Option<u16>,
    /// Cipher key, without the salt.
    pub key_len: usize,
    /// Salt taken from the end of the keying material (AEAD nonces), else 0.
    pub salt_len: usize,
    /// Explicit IV on the wire.
    pub iv_len: usize,
    /// Integrity check value that the cipher itself makes; 0 for ciphers that need an [`Integ`].
    pub icv_len: usize,
    /// Padding granularity of the cipher (at least 1).
    pub block_len: usize,
    /// Name in proposals.
    pub keyword: &'static str,
}

impl Encr {
    /// Every algorithm, strongest choice first.
    pub const ALL: [Self; 7] = [
        Self::AesGcm16_256,
        Self::ChaCha20Poly1305,
        Self::AesGcm16_128,
        Self::AesCbc256,
        Self::AesCbc192,
        Self::AesCbc128,
        Self::TripleDesCbc,
    ];

    /// The table row.
    pub const fn info(self) -> EncrInfo {
        const fn gcm(bits: u16, keyword: &'static str) -> EncrInfo {
            EncrInfo {
                transform: 20,
                key_bits: Some(bits),
                key_len: bits as usize / 8,
                salt_len: 4,
                iv_len: 8,
                icv_len: 16,
                block_len: 1,
                keyword,
            }
        }
        const fn cbc(bits: u16, keyword: &'static str) -> EncrInfo {
            EncrInfo {
                transform: 12,
                key_bits: Some(bits),
                key_len: bits as usize / 8,
                salt_len: 0,
                iv_len: 16,
                icv_len: 0,
                block_len: 16,
                keyword,
            }
        }
        match self {
            Self::AesGcm16_128 => gcm(128, "aes128gcm16"),
            Self::AesGcm16_256 => gcm(256, "aes256gcm16"),
            Self::AesCbc128 => cbc(128, "aes128"),
            Self::AesCbc192 => cbc(192, "aes192"),
            Self::AesCbc256 => cbc(256, "aes256"),
            Self::ChaCha20Poly1305 => EncrInfo {
                transform: 28,
                key_bits: None,
                key_len: 32,
                salt_len: 4,
                iv_len: 8,
                icv_len: 16,
                block_len: 1,
                keyword: "chacha20poly1305",
            },
            Self::TripleDesCbc => EncrInfo {
                transform: 3,
                key_bits: None,
                key_len: 24,
                salt_len: 0,
                iv_len: 8,
                icv_len: 0,
                block_len: 8,
                keyword: "3des",
            },
        }
    }

    /// Whether it is spoken only where the configuration asks for it (RFC 8221 §5, RFC 8247 §2.1).
    pub const fn is_legacy(self) -> bool {
        matches!(self, Self::TripleDesCbc)
    }

    /// Octets under one key beyond which blocks that collide begin to tell of the plain text; `None` where no SA gets there.
    /// At 1 GiB of 64 bit blocks one collision has a chance of 1 in 2000.
    pub const fn volume_limit(self) -> Option<u64> {
        match self {
            Self::TripleDesCbc => Some(1 << 30),
            _ => None,
        }
    }

    /// Whether the cipher authenticates by itself (combined mode).
    pub const fn is_aead(self) -> bool {
        self.info().icv_len > 0
    }

    /// Keying material to take for this cipher: key and salt, in octets.
    pub const fn keymat_len(self) -> usize {
        self.info().key_len + self.info().salt_len
    }

    /// The algorithm of a transform id and its Key Length attribute; `None` if we don't speak it.
    pub fn from_transform(transform: u16, key_bits: Option<u16>) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.info().transform == transform && e.info().key_bits == key_bits)
    }
}

/// Pseudorandom function (transform type 2), RFC 4868.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256.
    HmacSha256,
    /// PRF_HMAC_SHA2_384.
    HmacSha384,
    /// PRF_HMAC_SHA2_512.
    HmacSha512,
    /// PRF_HMAC_SHA1 (RFC 2104). Legacy.
    HmacSha1,
}

impl Prf {
    /// Every PRF.
    pub const ALL: [Self; 4] = [Self::HmacSha256, Self::HmacSha384, Self::HmacSha512, Self::HmacSha1];

    /// IANA transform id.
    pub const fn transform(self) -> u16 {
        match self {
            Self::HmacSha256 => 5,
            Self::HmacSha384 => 6,
            Self::HmacSha512 => 7,
            Self::HmacSha1 => 2,
        }
    }

    /// Length of output and of preferred key, in octets.
    pub const fn output_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
            Self::HmacSha1 => 20,
        }
    }

    /// Whether it is spoken only where the configuration asks for it (RFC 8247 §2.2).
    pub const fn is_legacy(self) -> bool {
        matches!(self, Self::HmacSha1)
    }

    /// Name in proposals.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::HmacSha256 => "prfsha256",
            Self::HmacSha384 => "prfsha384",
            Self::HmacSha512 => "prfsha512",
            Self::HmacSha1 => "prfsha1",
        }
    }

    /// The PRF of a transform id.
    pub fn from_transform(transform: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.transform() == transform)
    }
}

/// Integrity algorithm (transform type 3), RFC 4868 and RFC 2404.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Integ {
    /// AUTH_HMAC_SHA2_256_128.
    HmacSha256_128,
    /// AUTH_HMAC_SHA2_384_192.
    HmacSha384_192,
    /// AUTH_HMAC_SHA2_512_256.
    HmacSha512_256,
    /// AUTH_HMAC_SHA1_96. Legacy.
    HmacSha1_96,
}

impl Integ {
    /// Every integrity algorithm.
    pub const ALL: [Self; 4] =
        [Self::HmacSha256_128, Self::HmacSha384_192, Self::HmacSha512_256, Self::HmacSha1_96];

    /// IANA transform id.
    pub const fn transform(self) -> u16 {
        match self {
            Self::HmacSha256_128 => 12,
            Self::HmacSha384_192 => 13,
            Self::HmacSha512_256 => 14,
            Self::HmacSha1_96 => 2,
        }
    }

    /// Key length in octets (the output length of the hash).
    pub const fn key_len(self) -> usize {
        match self {
            Self::HmacSha256_128 => 32,
            Self::HmacSha384_192 => 48,
            Self::HmacSha512_256 => 64,
            Self::HmacSha1_96 => 20,
        }
    }

    /// Length of the truncated check value in octets.
    pub const fn icv_len(self) -> usize {
        match self {
            Self::HmacSha1_96 => 12,
            _ => self.key_len() / 2,
        }
    }

    /// Whether it is spoken only where the configuration asks for it (RFC 8221 §6, RFC 8247 §2.3).
    pub const fn is_legacy(self) -> bool {
        matches!(self, Self::HmacSha1_96)
    }

    /// Name in proposals.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::HmacSha256_128 => "sha256",
            Self::HmacSha384_192 => "sha384",
            Self::HmacSha512_256 => "sha512",
            Self::HmacSha1_96 => "sha1",
        }
    }

    /// The PRF over the same hash, which proposals without an explicit PRF imply.
    pub const fn prf(self) -> Prf {
        match self {
            Self::HmacSha256_128 => Prf::HmacSha256,
            Self::HmacSha384_192 => Prf::HmacSha384,
            Self::HmacSha512_256 => Prf::HmacSha512,
            Self::HmacSha1_96 => Prf::HmacSha1,
        }
    }

    /// The algorithm of a transform id.
    pub fn from_transform(transform: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|i| i.transform() == transform)
    }
}

/// Key exchange method (transform type 4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Group {
    /// Curve25519 (RFC 8031).
    X25519,
    /// 256-bit random ECP group (RFC 5903).
    Ecp256,
    /// 384-bit random ECP group (RFC 5903).
    Ecp384,
    /// 521-bit random ECP group (RFC 5903).
    Ecp521,
    /// 1024-bit MODP group (RFC 7296 appendix B.2). Legacy.
    Modp1024,
    /// 1536-bit MODP group (RFC 3526). Legacy.
    Modp1536,
    /// 2048-bit MODP group (RFC 3526).
    Modp2048,
    /// 3072-bit MODP group (RFC 3526).
    Modp3072,
    /// 4096-bit MODP group (RFC 3526).
    Modp4096,
    /// 6144-bit MODP group (RFC 3526).
    Modp6144,
    /// 8192-bit MODP group (RFC 3526).
    Modp8192,
    /// ML-KEM-512 (FIPS 203, draft-ietf-ipsecme-ikev2-mlkem). Only as an additional key exchange, like the other two.
    MlKem512,
    /// ML-KEM-768.
    MlKem768,
    /// ML-KEM-1024.
    MlKem1024,
}

impl Group {
    /// Every method, preferred first.
    pub const ALL: [Self; 14] = [
        Self::X25519,
        Self::Ecp256,
        Self::Ecp384,
        Self::Ecp521,
        Self::Modp3072,
        Self::Modp4096,
        Self::Modp6144,
        Self::Modp8192,
        Self::Modp2048,
        Self::Modp1536,
        Self::Modp1024,
        Self::MlKem768,
        Self::MlKem1024,
        Self::MlKem512,
    ];

    /// IANA transform id.
    pub const fn transform(self) -> u16 {
        match self {
            Self::Modp1024 => 2,
            Self::Modp1536 => 5,
            Self::Modp2048 => 14,
            Self::Modp3072 => 15,
            Self::Modp4096 => 16,
            Self::Modp6144 => 17,
            Self::Modp8192 => 18,
            Self::Ecp256 => 19,
            Self::Ecp384 => 20,
            Self::Ecp521 => 21,
            Self::X25519 => 31,
            Self::MlKem512 => 35,
            Self::MlKem768 => 36,
            Self::MlKem1024 => 37,
        }
    }

    /// Length of the value in the initiator's KE payload, in octets: a public value (ECP: x and y, RFC 5903 §7), or an
    /// encapsulation key.
    pub const fn offer_len(self) -> usize {
        match self {
            Self::Modp1024 => 128,
            Self::Modp1536 => 192,
            Self::Modp2048 => 256,
            Self::Modp3072 => 384,
            Self::Modp4096 => 512,
            Self::Modp6144 => 768,
            Self::Modp8192 => 1024,
            Self::Ecp256 => 64,
            Self::Ecp384 => 96,
            Self::Ecp521 => 132,
            Self::X25519 => 32,
            Self::MlKem512 => 800,
            Self::MlKem768 => 1184,
            Self::MlKem1024 => 1568,
        }
    }

    /// The same for the responder's: a public value, or a ciphertext.
    pub const fn answer_len(self) -> usize {
        match self {
            Self::MlKem512 => 768,
            Self::MlKem768 => 1088,
            _ => self.offer_len(),
        }
    }

    /// Whether it is a key encapsulation mechanism: the responder can begin nothing before it has the initiator's value.
    pub const fn is_kem(self) -> bool {
        matches!(self, Self::MlKem512 | Self::MlKem768 | Self::MlKem1024)
    }

    /// Whether it is spoken only where the configuration asks for it (RFC 8247 §2.4).
    pub const fn is_legacy(self) -> bool {
        matches!(self, Self::Modp1024 | Self::Modp1536)
    }

    /// Name in proposals.
    pub const fn keyword(self) -> &'static str {
        match self {
            Self::Modp1024 => "modp1024",
            Self::Modp1536 => "modp1536",
            Self::Modp2048 => "modp2048",
            Self::Modp3072 => "modp3072",
            Self::Modp4096 => "modp4096",
            Self::Modp6144 => "modp6144",
            Self::Modp8192 => "modp8192",
            Self::Ecp256 => "ecp256",
            Self::Ecp384 => "ecp384",
            Self::Ecp521 => "ecp521",
            Self::X25519 => "x25519",
            Self::MlKem512 => "mlkem512",
            Self::MlKem768 => "mlkem768",
            Self::MlKem1024 => "mlkem1024",
        }
    }

    /// The method of a transform id.
    pub fn from_transform(transform: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|g| g.transform() == transform)
    }
}

/// The algorithms of one IKE SA, as negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IkeSuite {
    /// Cipher of the SK payload.
    pub encr: Encr,
    /// Integrity algorithm; `None` exactly when `encr` is an AEAD.
    pub integ: Option<Integ>,
    /// Pseudorandom function.
    pub prf: Prf,
    /// Key exchange of IKE_SA_INIT.
    pub group: Group,
    /// Those of IKE_INTERMEDIATE (RFC 9370).
    pub additional: Additional,
}

/// The algorithms of one pair of ESP SAs, as negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EspSuite {
    /// Cipher.
    pub encr: Encr,
    /// Integrity algorithm; `None` exactly when `encr` is an AEAD.
    pub integ: Option<Integ>,
    /// The additional key exchange of this child (PFS); `None` for the first child and without PFS.
    pub group: Option<Group>,
    /// Those that follow it (RFC 9370).
    pub additional: Additional,
    /// Extended (64 bit) sequence numbers, RFC 4303 §2.2.1.
    pub esn: bool,
}

impl EspSuite {
    /// One without a key exchange of its own, as the first child's.
    pub const fn plain(encr: Encr, integ: Option<Integ>, esn: bool) -> Self {
        Self { encr, integ, group: None, additional: Additional::NONE, esn }
    }

    /// Octets of the integrity check value on the wire.
    pub fn icv_len(self) -> usize {
        self.integ.map_or(self.encr.info().icv_len, Integ::icv_len)
    }
}

impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encr.info().keyword)?;
        if let Some(i) = self.integ {
            write!(f, "-{}", i.keyword())?;
        }
        write!(f, "-{}-{}{}", self.prf.keyword(), self.group.keyword(), self.additional)
    }
}

impl fmt::Display for EspSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encr.info().keyword)?;
        if let Some(i) = self.integ {
            write!(f, "-{}", i.keyword())?;
        }
        if let Some(g) = self.group {
            write!(f, "-{}{}", g.keyword(), self.additional)?;
        }
        if self.esn { f.write_str("-esn") } else { Ok(()) }
    }
}
