//! Proposals as the configuration writes them: keywords joined by `-`, as strongSwan's users know them.
//!
//! A proposal names one or more algorithms of each kind; the peers pick one of each. An AEAD and a cipher that needs an
//! integrity algorithm cannot share a proposal (RFC 7296 §3.3). Legacy algorithms are read only where they are permitted.

use std::fmt;

use crate::addke::{AddKe, AdditionalOffer};
use crate::suite::{Encr, EspSuite, Group, IkeSuite, Integ, Prf};

/// What one IKE SA proposal offers, each list in order of preference and never empty except `integs`, which is empty
/// exactly when `encrs` are AEADs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IkeProposal {
    /// Ciphers.
    pub encrs: Vec<Encr>,
    /// Integrity algorithms.
    pub integs: Vec<Integ>,
    /// Pseudorandom functions.
    pub prfs: Vec<Prf>,
    /// Key exchange methods of IKE_SA_INIT.
    pub groups: Vec<Group>,
    /// Additional key exchanges (RFC 9370).
    pub additional: AdditionalOffer,
}

/// What one ESP proposal offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EspProposal {
    /// Ciphers, never empty.
    pub encrs: Vec<Encr>,
    /// Integrity algorithms; empty exactly when `encrs` are AEADs.
    pub integs: Vec<Integ>,
    /// Key exchange methods for children made after the first (PFS). Empty: no PFS.
    pub groups: Vec<Group>,
    /// Additional key exchanges that follow (RFC 9370); none where there are no groups.
    pub additional: AdditionalOffer,
    /// Acceptable values of "extended sequence numbers", preferred first, never empty.
    pub esn: Vec<bool>,
}

/// Which algorithms a proposal may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permit {
    /// Those that are sound.
    Sound,
    /// Legacy ones as well (`legacy: true`): SHA-1, MODP with 1024 and 1536 bits, triple DES.
    Legacy,
}

/// Why a proposal was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposalError {
    /// A keyword that no table knows.
    #[error("unknown algorithm \"{token}\"; known are {known}", token = .0.escape_debug(), known = keywords())]
    Unknown(String),
    /// An algorithm that cygnet refuses because it is broken or too weak (RFC 8247, RFC 8221).
    #[error("\"{token}\" is too weak (RFC 8247, RFC 8221) and is not supported; use {instead}", token = .0.escape_debug(), instead = .1)]
    Weak(String, &'static str),
    /// An algorithm that is spoken only on request.
    #[error(
        "\"{token}\" is too weak (RFC 8247, RFC 8221) and not permitted; use {instead}, or write legacy: true beside the \
         proposals if the peer has nothing better",
        token = .0.escape_debug(), instead = .1
    )]
    Legacy(String, &'static str),
    /// A kind of algorithm is missing.
    #[error("names no {0}; {1}")]
    Missing(&'static str, &'static str),
    /// Combined-mode and other ciphers in one proposal.
    #[error("mixes combined-mode ciphers (AEAD) with others; write two proposals (RFC 7296 §3.3)")]
    MixedAead,
    /// An integrity algorithm next to a combined-mode cipher.
    #[error(
        "names an integrity algorithm (\"{0}\") beside a combined-mode cipher; use \"{1}\" for the PRF or drop it"
    )]
    NeedlessInteg(&'static str, &'static str),
    /// An algorithm of a kind that has no place in ESP.
    #[error("\"{0}\" has no place in an ESP proposal")]
    NotForEsp(String),
    /// An algorithm of a kind that has no place in IKE.
    #[error("\"{0}\" has no place in an IKE proposal")]
    NotForIke(String),
    /// Commas: several proposals in one text.
    #[error(
        "holds several proposals; write a list, as in [aes256gcm16-prfsha384-x25519, aes256-sha256-modp2048]"
    )]
    Several,
    /// An algorithm that is sound, and not there.
    #[error("\"{0}\" is not supported; use {1}")]
    Absent(String, &'static str),
    /// A post-quantum method where the first key exchange stands.
    #[error(
        "\"{0}\" is an additional key exchange (RFC 9370); write a group before it, as in x25519-ke1_{0}"
    )]
    OnlyAdditional(&'static str),
    /// Additional key exchanges without a first one.
    #[error("\"{0}\" adds to a key exchange that is not there; write a group before it, as in x25519-{0}")]
    NothingToAddTo(String),
    /// The number of an additional key exchange.
    #[error("\"{token}\" is none of the seven additional key exchanges; write ke1_ to ke7_ before a group", token = .0.escape_debug())]
    AdditionalNumber(String),
    /// Whatever is chosen of it, two of its key exchanges are the same.
    #[error(
        "leaves no way in which each of its key exchanges is another one (RFC 9370); name a further method"
    )]
    Alike,
    /// A keyword stands twice.
    #[error("names \"{0}\" twice")]
    Twice(String),
}

fn keywords() -> String {
    let mut all: Vec<&str> = Vec::new();
    all.extend(Encr::ALL.iter().filter(|e| !e.is_legacy()).map(|e| e.info().keyword));
    all.extend(Integ::ALL.iter().filter(|i| !i.is_legacy()).map(|i| i.keyword()));
    all.extend(Prf::ALL.iter().filter(|p| !p.is_legacy()).map(|p| p.keyword()));
    all.extend(Group::ALL.iter().filter(|g| !g.is_legacy() && !g.is_kem()).map(|g| g.keyword()));
    all.extend(["ke1_mlkem768", "ke1_mlkem1024", "esn", "noesn"]);
    all.join(", ")
}

/// What to write instead of a group that we refuse or lack.
const GROUPS: &str = "x25519, ecp256, ecp384, modp3072 or modp4096";
/// The same for ciphers.
const CIPHERS: &str = "aes256gcm16 or aes256";
/// The same for hashes.
const HASHES: &str = "sha256 or prfsha256";

/// One keyword's meaning.
enum Token {
    Encr(Encr),
    Integ(Integ),
    Prf(Prf),
    Group(Group),
    Additional(AddKe, Option<Group>),
    Esn(bool),
}

impl Token {
    /// What to write instead of a legacy algorithm; `None` for the others.
    const fn legacy_instead(&self) -> Option<&'static str> {
        match self {
            Self::Encr(e) if e.is_legacy() => Some(CIPHERS),
            Self::Integ(i) if i.is_legacy() => Some(HASHES),
            Self::Prf(p) if p.is_legacy() => Some(HASHES),
            Self::Group(g) | Self::Additional(_, Some(g)) if g.is_legacy() => Some(GROUPS),
            _ => None,
        }
    }
}

fn permitted(word: &str, permit: Permit) -> Result<Token, ProposalError> {
    let token = token(word)?;
    match token.legacy_instead() {
        Some(instead) if permit == Permit::Sound => Err(ProposalError::Legacy(word.into(), instead)),
        _ => Ok(token),
    }
}

fn token(word: &str) -> Result<Token, ProposalError> {
    if let Some(e) = Encr::ALL.into_iter().find(|e| e.info().keyword == word) {
        return Ok(Token::Encr(e));
    }
    if let Some(i) = Integ::ALL.into_iter().find(|i| i.keyword() == word) {
        return Ok(Token::Integ(i));
    }
    if let Some(p) = Prf::ALL.into_iter().find(|p| p.keyword() == word) {
        return Ok(Token::Prf(p));
    }
    if let Some(g) = Group::ALL.into_iter().find(|g| g.keyword() == word) {
        return Ok(Token::Group(g));
    }
    if let Some((number, method)) = word.strip_prefix("ke").and_then(|rest| rest.split_once('_')) {
        return additional(word, number, method);
    }
    // Groups by their numbers, as routers name them.
    if let Some(number) = word.strip_prefix("dh").or_else(|| word.strip_prefix("group")) {
        return match number.parse().ok().filter(|_| !number.starts_with(['0', '+'])) {
            Some(1 | 22..=26) => Err(ProposalError::Weak(word.into(), GROUPS)),
            Some(27..=30 | 32) => Err(ProposalError::Absent(word.into(), GROUPS)),
            Some(n) => Group::from_transform(n).map(Token::Group).ok_or(ProposalError::Unknown(word.into())),
            None => Err(ProposalError::Unknown(word.into())),
        };
    }
    match word {
        "esn" => Ok(Token::Esn(true)),
        "noesn" => Ok(Token::Esn(false)),
        "curve25519" => Ok(Token::Group(Group::X25519)),
        "aes128gcm" => Ok(Token::Encr(Encr::AesGcm16_128)),
        "aes256gcm" => Ok(Token::Encr(Encr::AesGcm16_256)),
        "aes128cbc" => Ok(Token::Encr(Encr::AesCbc128)),
        "aes256cbc" => Ok(Token::Encr(Encr::AesCbc256)),
        "chacha20" => Ok(Token::Encr(Encr::ChaCha20Poly1305)),
        "sha2" => Ok(Token::Integ(Integ::HmacSha256_128)),
        "aes128gcm128" => Ok(Token::Encr(Encr::AesGcm16_128)),
        "aes256gcm128" => Ok(Token::Encr(Encr::AesGcm16_256)),
        "aes" => Ok(Token::Encr(Encr::AesCbc128)),
        "sha2_256" => Ok(Token::Integ(Integ::HmacSha256_128)),
        "sha2_384" => Ok(Token::Integ(Integ::HmacSha384_192)),
        "sha2_512" => Ok(Token::Integ(Integ::HmacSha512_256)),
        "sha" => Ok(Token::Integ(Integ::HmacSha1_96)),
        "des" | "null" | "blowfish" | "cast128" => Err(ProposalError::Weak(word.into(), CIPHERS)),
        "md5" | "prfmd5" => Err(ProposalError::Weak(word.into(), HASHES)),
        "aes192cbc" => Ok(Token::Encr(Encr::AesCbc192)),
        "aes192gcm" | "aes192gcm16" | "aes192gcm128" => {
            Err(ProposalError::Absent(word.into(), "aes256gcm16 or aes256, which the peer will have as well"))
        }
        "curve448" | "x448" => Err(ProposalError::Absent(word.into(), GROUPS)),
        "modp768" | "modp1024s160" | "modp2048s224" | "modp2048s256" | "ecp192" | "ecp224" => {
            Err(ProposalError::Weak(word.into(), GROUPS))
        }
        _ => Err(ProposalError::Unknown(word.into())),
    }
}

/// `ke1_mlkem768`: the number and the method of an additional key exchange.
fn additional(word: &str, number: &str, method: &str) -> Result<Token, ProposalError> {
    let number = number.parse().ok().filter(|_| number.len() == 1).and_then(AddKe::new);
    let number = number.ok_or_else(|| ProposalError::AdditionalNumber(word.into()))?;
    if method == "none" {
        return Ok(Token::Additional(number, None));
    }
    match token(method)? {
        Token::Group(group) => Ok(Token::Additional(number, Some(group))),
        _ => Err(ProposalError::Unknown(word.into())),
    }
}

#[derive(Default)]
struct Parts {
    encrs: Vec<Encr>,
    integs: Vec<Integ>,
    prfs: Vec<Prf>,
    groups: Vec<Group>,
    additional: AdditionalOffer,
    esn: Vec<bool>,
}

fn push<T: PartialEq>(list: &mut Vec<T>, value: T, word: &str) -> Result<(), ProposalError> {
    if list.contains(&value) {
        return Err(ProposalError::Twice(word.into()));
    }
    list.push(value);
    Ok(())
}

fn parts(text: &str, permit: Permit) -> Result<Parts, ProposalError> {
    let mut p = Parts::default();
    // As people paste them: capitals, the mark of a strict proposal (ours always are), and the group behind a semicolon.
    let text = text.trim().to_lowercase();
    let text = text.strip_suffix('!').unwrap_or(&text);
    if text.contains(',') {
        return Err(ProposalError::Several);
    }
    for word in text.split(['-', ';']) {
        match permitted(word, permit)? {
            Token::Encr(v) => push(&mut p.encrs, v, word)?,
            Token::Integ(v) => push(&mut p.integs, v, word)?,
            Token::Prf(v) => push(&mut p.prfs, v, word)?,
            Token::Group(v) if v.is_kem() => return Err(ProposalError::OnlyAdditional(v.keyword())),
            Token::Group(v) => push(&mut p.groups, v, word)?,
            Token::Additional(which, method) => push(p.additional.get_mut(which), method, word)?,
            Token::Esn(v) => push(&mut p.esn, v, word)?,
        }
    }
    if p.groups.is_empty()
        && let Some(word) = p.additional.keywords().next()
    {
        return Err(ProposalError::NothingToAddTo(word));
    }
    let agrees = |group: &Group| p.additional.choose(&p.additional, Some(*group)).is_some();
    if !p.groups.is_empty() && !p.groups.iter().any(agrees) {
        return Err(ProposalError::Alike);
    }
    let aeads = p.encrs.iter().filter(|e| e.is_aead()).count();
    if p.encrs.is_empty() {
        return Err(ProposalError::Missing("cipher", "begin with one, as in aes256gcm16-x25519"));
    }
    if aeads != 0 && aeads != p.encrs.len() {
        return Err(ProposalError::MixedAead);
    }
    match p.integs.first() {
        Some(i) if aeads != 0 => return Err(ProposalError::NeedlessInteg(i.keyword(), i.prf().keyword())),
        None if aeads == 0 => {
            return Err(ProposalError::Missing("integrity algorithm", "add one, as in aes256-sha256"));
        }
        _ => {}
    }
    Ok(p)
}

impl std::str::FromStr for IkeProposal {
    type Err = ProposalError;

    /// Reads a proposal of sound algorithms.
    fn from_str(text: &str) -> Result<Self, ProposalError> {
        Self::read(text, Permit::Sound)
    }
}

impl std::str::FromStr for EspProposal {
    type Err = ProposalError;

    /// Reads a proposal of sound algorithms.
    fn from_str(text: &str) -> Result<Self, ProposalError> {
        Self::read(text, Permit::Sound)
    }
}

impl IkeProposal {
    /// Reads a proposal of permitted algorithms.
    ///
    /// # Errors
    /// [`ProposalError`] says which word is wrong, and what would be right.
    pub fn read(text: &str, permit: Permit) -> Result<Self, ProposalError> {
        let mut p = parts(text, permit)?;
        if let Some(esn) = p.esn.first() {
            return Err(ProposalError::NotForIke(if *esn { "esn" } else { "noesn" }.into()));
        }
        if p.prfs.is_empty() {
            p.prfs = p.integs.iter().map(|i| i.prf()).collect();
        }
        if p.prfs.is_empty() {
            return Err(ProposalError::Missing("PRF", "add one, as in aes256gcm16-prfsha384-x25519"));
        }
        if p.groups.is_empty() {
            return Err(ProposalError::Missing("key exchange group", "add one, as in -x25519"));
        }
        Ok(Self {
            encrs: p.encrs,
            integs: p.integs,
            prfs: p.prfs,
            groups: p.groups,
            additional: p.additional,
        })
    }

    /// The keywords of its legacy algorithms.
    pub fn legacy(&self) -> Vec<&'static str> {
        let prfs = self.prfs.iter().filter(|p| p.is_legacy()).map(|p| p.keyword());
        legacy(&self.encrs, &self.integs, &self.groups).chain(more(&self.additional)).chain(prfs).collect()
    }
}

fn legacy(encrs: &[Encr], integs: &[Integ], groups: &[Group]) -> impl Iterator<Item = &'static str> {
    let encrs = encrs.iter().filter(|e| e.is_legacy()).map(|e| e.info().keyword);
    let integs = integs.iter().filter(|i| i.is_legacy()).map(|i| i.keyword());
    let groups = groups.iter().filter(|g| g.is_legacy()).map(|g| g.keyword());
    encrs.chain(integs).chain(groups)
}

fn more(additional: &AdditionalOffer) -> impl Iterator<Item = &'static str> + '_ {
    additional.methods().filter(|g| g.is_legacy()).map(Group::keyword)
}

impl EspProposal {
    /// Reads a proposal of permitted algorithms.
    ///
    /// # Errors
    /// [`ProposalError`] says which word is wrong, and what would be right.
    pub fn read(text: &str, permit: Permit) -> Result<Self, ProposalError> {
        let mut p = parts(text, permit)?;
        if let Some(prf) = p.prfs.first() {
            return Err(ProposalError::NotForEsp(prf.keyword().into()));
        }
        if p.esn.is_empty() {
            p.esn = vec![true, false];
        }
        let Parts { encrs, integs, groups, additional, esn, .. } = p;
        Ok(Self { encrs, integs, groups, additional, esn })
    }

    /// The keywords of its legacy algorithms.
    pub fn legacy(&self) -> Vec<&'static str> {
        legacy(&self.encrs, &self.integs, &self.groups).chain(more(&self.additional)).collect()
    }
}

impl IkeProposal {
    /// The defaults: AES-256-GCM and ChaCha20-Poly1305 first, AES-CBC with SHA-2 for peers that lack them.
    pub fn defaults() -> Vec<Self> {
        let groups = vec![Group::X25519, Group::Ecp384, Group::Ecp256, Group::Modp3072, Group::Modp2048];
        vec![
            Self {
                encrs: vec![Encr::AesGcm16_256, Encr::ChaCha20Poly1305, Encr::AesGcm16_128],
                integs: vec![],
                prfs: vec![Prf::HmacSha384, Prf::HmacSha256, Prf::HmacSha512],
                groups: groups.clone(),
                additional: AdditionalOffer::default(),
            },
            Self {
                encrs: vec![Encr::AesCbc256, Encr::AesCbc128],
                integs: vec![Integ::HmacSha256_128, Integ::HmacSha384_192, Integ::HmacSha512_256],
                prfs: vec![Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512],
                groups,
                additional: AdditionalOffer::default(),
            },
        ]
    }

    /// Whether `suite` is one of the combinations offered.
    pub fn allows(&self, suite: &IkeSuite) -> bool {
        self.encrs.contains(&suite.encr)
            && suite.integ.map_or(self.integs.is_empty(), |i| self.integs.contains(&i))
            && self.prfs.contains(&suite.prf)
            && self.groups.contains(&suite.group)
            && self.additional.allows(&suite.additional)
    }
}

impl EspProposal {
    /// The defaults, with PFS over the groups of [`IkeProposal::defaults`].
    pub fn defaults() -> Vec<Self> {
        IkeProposal::defaults()
            .into_iter()
            .map(|p| Self {
                encrs: p.encrs,
                integs: p.integs,
                groups: p.groups,
                additional: p.additional,
                esn: vec![true, false],
            })
            .collect()
    }

    /// Whether `suite` is one of the combinations offered. The key exchange is not looked at in children that have
    /// none of their own, as the first one never has (RFC 7296 §1.2).
    pub fn allows(&self, suite: &EspSuite) -> bool {
        self.encrs.contains(&suite.encr)
            && suite.integ.map_or(self.integs.is_empty(), |i| self.integs.contains(&i))
            && suite
                .group
                .is_none_or(|g| self.groups.contains(&g) && self.additional.allows(&suite.additional))
            && self.esn.contains(&suite.esn)
    }
}

fn join(f: &mut fmt::Formatter<'_>, words: impl Iterator<Item = String>) -> fmt::Result {
    f.write_str(&words.collect::<Vec<_>>().join("-"))
}

impl fmt::Display for IkeProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(
            f,
            (self.encrs.iter().map(|e| e.info().keyword))
                .chain(self.integs.iter().map(|i| i.keyword()))
                .chain(self.prfs.iter().map(|p| p.keyword()))
                .chain(self.groups.iter().map(|g| g.keyword()))
                .map(str::to_owned)
                .chain(self.additional.keywords()),
        )
    }
}

impl fmt::Display for EspProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(
            f,
            (self.encrs.iter().map(|e| e.info().keyword))
                .chain(self.integs.iter().map(|i| i.keyword()))
                .chain(self.groups.iter().map(|g| g.keyword()))
                .map(str::to_owned)
                .chain(self.additional.keywords())
                .chain(self.esn.iter().map(|e| if *e { "esn" } else { "noesn" }.to_owned())),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contract_examples_parse() {
        let p: IkeProposal = "aes256gcm16-prfsha384-x25519".parse().unwrap();
        assert_eq!(
            (p.encrs, p.prfs, p.groups),
            (vec![Encr::AesGcm16_256], vec![Prf::HmacSha384], vec![Group::X25519])
        );
        let p: IkeProposal = "aes256-sha256-modp2048".parse().unwrap();
        assert_eq!((p.integs, p.prfs), (vec![Integ::HmacSha256_128], vec![Prf::HmacSha256]));
        let p: EspProposal = "aes256gcm16-x25519".parse().unwrap();
        assert_eq!((p.groups, p.esn), (vec![Group::X25519], vec![true, false]));
    }

    #[test]
    fn proposals_are_read_as_people_paste_them() {
        let ike = |t: &str| t.parse::<IkeProposal>();
        let plain = ike("aes256-sha256-modp2048");
        for text in [
            "AES256-SHA256-MODP2048",
            "aes256-sha2-dh14!",
            "aes256-sha256;modp2048",
            " aes256cbc-sha2_256-group14 ",
        ] {
            assert_eq!(ike(text), plain, "{text}");
        }
        assert_eq!(ike("aes256gcm-prfsha384-dh31"), ike("aes256gcm16-prfsha384-x25519"));
        assert_eq!("AES128GCM;DH19!".parse::<EspProposal>(), "aes128gcm16-ecp256".parse::<EspProposal>());
        assert_eq!(ike("aes256-sha256-modp2048,aes128-sha256-modp2048"), Err(ProposalError::Several));
        assert!(matches!(ike("aes256-sha256-dh1"), Err(ProposalError::Weak(..))));
        assert!(matches!(ike("aes256-sha256-dh2"), Err(ProposalError::Legacy(..))));
        assert_eq!(ike("aes256-sha256-group21"), ike("aes256-sha256-ecp521"));
        assert!(matches!(ike("aes256-sha256-group32"), Err(ProposalError::Absent(..))));
        assert!(matches!(ike("aes192gcm-prfsha256-modp2048"), Err(ProposalError::Absent(..))));
        assert_eq!(ike("aes192cbc-sha256-dh18"), ike("aes192-sha256-modp8192"));
        for odd in ["dh", "dh014", "dh+14", "group99", "dh70000", "!", "-", ";"] {
            assert!(matches!(ike(&format!("aes256-sha256-{odd}")), Err(ProposalError::Unknown(_))), "{odd}");
        }
    }

    #[test]
    fn additional_key_exchanges_are_read_and_printed() {
        let text = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_ecp384-ke2_none";
        let p: IkeProposal = text.parse().unwrap();
        assert_eq!(p.groups, [Group::X25519]);
        let of = |n| p.additional.get(AddKe::new(n).unwrap()).clone();
        assert_eq!(of(1), [Some(Group::MlKem768)]);
        assert_eq!(of(2), [Some(Group::Ecp384), None]);
        assert_eq!(p.to_string(), text);
        let esp: EspProposal = "aes256gcm16-ecp384-KE1_MLKEM1024-noesn".parse().unwrap();
        assert_eq!(esp.to_string(), "aes256gcm16-ecp384-ke1_mlkem1024-noesn");
        let ike = |t: &str| t.parse::<IkeProposal>().unwrap_err().to_string();
        for (word, says) in [
            ("mlkem768", "x25519-ke1_mlkem768"),
            ("x25519-ke8_mlkem768", "ke1_ to ke7_"),
            ("x25519-ke0_mlkem768", "ke1_ to ke7_"),
            ("x25519-ke1_sha256", "unknown algorithm"),
            ("x25519-ke1_mlkem768-ke1_mlkem768", "twice"),
            ("ke1_mlkem768", "write a group before it"),
            ("ecp384-ke1_ecp384", "each of its key exchanges is another one"),
            ("x25519-ke1_mlkem768-ke2_mlkem768", "each of its key exchanges is another one"),
            ("x25519-ke1_modp1024", "legacy: true"),
        ] {
            let told = ike(&format!("aes256gcm16-prfsha384-{word}"));
            assert!(told.contains(says), "{word}: {told}");
        }
        assert!(matches!(
            "aes256gcm16-ke1_mlkem768".parse::<EspProposal>(),
            Err(ProposalError::NothingToAddTo(_))
        ));
    }

    #[test]
    fn defaults_print_as_what_they_parse_from() {
        for p in IkeProposal::defaults() {
            assert_eq!(p.to_string().parse::<IkeProposal>().unwrap(), p);
        }
        for p in EspProposal::defaults() {
            assert_eq!(p.to_string().parse::<EspProposal>().unwrap(), p);
        }
    }

    #[test]
    fn legacy_algorithms_are_read_only_where_they_are_permitted() {
        for (text, word) in [
            ("3des-sha256-modp2048", "3des"),
            ("aes128-sha1-modp2048", "sha1"),
            ("aes128-sha-modp2048", "sha"),
            ("aes256gcm16-prfsha1-x25519", "prfsha1"),
            ("aes128-sha256-modp1024", "modp1024"),
            ("aes128-sha256-dh5", "dh5"),
        ] {
            let told = text.parse::<IkeProposal>().unwrap_err();
            assert!(matches!(&told, ProposalError::Legacy(w, _) if w == word), "{text}: {told}");
            assert!(told.to_string().contains("legacy: true"), "{told}");
            assert!(!IkeProposal::read(text, Permit::Legacy).unwrap().legacy().is_empty(), "{text}");
        }
        let esp = "3des-sha1-modp1024".parse::<EspProposal>().unwrap_err();
        assert!(matches!(esp, ProposalError::Legacy(..)));
        let ike = IkeProposal::read("3DES-SHA1-MODP1024", Permit::Legacy).unwrap();
        assert_eq!(ike.legacy(), ["3des", "sha1", "modp1024", "prfsha1"]);
        let esp = EspProposal::read("3des-sha1-dh2", Permit::Legacy).unwrap();
        assert_eq!(
            (esp.legacy(), esp.to_string().as_str()),
            (vec!["3des", "sha1", "modp1024"], "3des-sha1-modp1024-esn-noesn")
        );
        // What is broken stays out.
        for text in ["des-sha1-modp1024", "3des-md5-modp1024", "3des-sha1-modp768", "aes128-sha1-dh22"] {
            assert!(
                matches!(IkeProposal::read(text, Permit::Legacy), Err(ProposalError::Weak(..))),
                "{text}"
            );
        }
    }

    #[test]
    fn defaults_offer_nothing_legacy() {
        assert!(IkeProposal::defaults().iter().all(|p| p.legacy().is_empty()));
        assert!(EspProposal::defaults().iter().all(|p| p.legacy().is_empty()));
    }

    #[test]
    fn each_mistake_has_its_own_answer() {
        let ike = |t: &str| t.parse::<IkeProposal>().unwrap_err();
        let esp = |t: &str| t.parse::<EspProposal>().unwrap_err();
        assert!(matches!(ike("aes256gcm16-prfmd5-x25519"), ProposalError::Weak(..)));
        assert!(matches!(ike("aes256-sha256-modp768"), ProposalError::Weak(..)));
        assert!(matches!(ike("aes256gcm16-x25519"), ProposalError::Missing("PRF", _)));
        assert!(matches!(ike("aes256-sha256"), ProposalError::Missing("key exchange group", _)));
        assert!(matches!(ike("aes256-x25519"), ProposalError::Missing("integrity algorithm", _)));
        assert!(matches!(ike("sha256-x25519"), ProposalError::Missing("cipher", _)));
        assert!(matches!(ike("aes256-aes256gcm16-sha256-x25519"), ProposalError::MixedAead));
        assert!(matches!(ike("aes256gcm16-sha256-x25519"), ProposalError::NeedlessInteg(..)));
        assert!(matches!(ike("aes256-sha256-sha256-x25519"), ProposalError::Twice(_)));
        assert!(matches!(ike("aes256-sha256-x25519-esn"), ProposalError::NotForIke(_)));
        assert!(matches!(ike("rot13"), ProposalError::Unknown(_)));
        assert!(matches!(ike(""), ProposalError::Unknown(_)));
        assert!(matches!(esp("aes256gcm16-prfsha256"), ProposalError::NotForEsp(_)));
    }
}
