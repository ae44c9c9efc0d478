//! Proposals as strongSwan and libreswan write them, turned into ours: what we do not speak is left out and told.

use cygnet_model::addke::{AddKe, AdditionalOffer};
use cygnet_model::proposal::{EspProposal, IkeProposal, Permit};
use cygnet_model::suite::{Encr, Group, Integ, Prf};

use super::notes::{Kind, Notes};

/// More proposals in a list are not read.
const MAX_PROPOSALS: usize = 64;

/// A line that has proposals.
#[derive(Clone, Copy)]
pub struct Line<'a> {
    /// Where it stands.
    pub line: usize,
    /// Its key.
    pub key: &'a str,
    /// Its value.
    pub value: &'a str,
}

/// One algorithm.
enum Word {
    Encr(Encr),
    Integ(Integ),
    Prf(Prf),
    Group(Group),
    Additional(AddKe, Option<Group>),
    Esn(bool),
    /// Says nothing by itself: integrity of an AEAD, no PFS.
    Nothing,
}

/// What one proposal names.
#[derive(Default)]
struct Parts {
    encrs: Vec<Encr>,
    integs: Vec<Integ>,
    prfs: Vec<Prf>,
    groups: Vec<Group>,
    additional: AdditionalOffer,
    esn: Vec<bool>,
}

fn push<T: PartialEq>(list: &mut Vec<T>, value: T) {
    if !list.contains(&value) {
        list.push(value);
    }
}

/// What strongSwan, libreswan and the kernel call what we call otherwise.
fn ours(word: &str) -> String {
    let word = word.replace('_', "");
    let named = match word.as_str() {
        "aes" | "aescbc" | "aes128cbc" | "aescbc128" => "aes128",
        "aescbc192" | "aes192cbc" => "aes192",
        "aescbc256" | "aes256cbc" => "aes256",
        "aesgcm128" | "aes128gcm" | "aesgcmc128" | "aesgcm16128" | "aes128gcm128" | "aesgcm" | "aesgcmc" => {
            "aes128gcm16"
        }
        "aesgcm256" | "aes256gcm" | "aesgcmc256" | "aesgcm16256" | "aes256gcm128" => "aes256gcm16",
        "chacha20" | "chachapoly" => "chacha20poly1305",
        "sha2" | "sha2256" | "hmacsha2256" | "hmacsha2256128" | "sha2256128" => "sha256",
        "sha2384" | "hmacsha2384" | "hmacsha2384192" => "sha384",
        "sha2512" | "hmacsha2512" | "hmacsha2512256" => "sha512",
        "sha" | "sha11" | "hmacsha1" | "hmacsha196" => "sha1",
        "prfsha" => "prfsha1",
        "curve25519" | "dh31" => "x25519",
        "3descbc" => "3des",
        _ => return word,
    };
    named.to_owned()
}

/// `ke1_mlkem768` of strongSwan: the number of an additional key exchange, and its method.
fn additional(text: &str) -> Option<(AddKe, &str)> {
    let (number, method) = text.strip_prefix("ke")?.split_once('_')?;
    Some((AddKe::new(number.parse().ok()?)?, method))
}

/// `addke1=ml_kem_768+none` of libreswan: the number, and the list of methods.
fn additional_list(text: &str) -> Option<(AddKe, &str)> {
    let (number, methods) = text.strip_prefix("addke")?.split_once('=')?;
    Some((AddKe::new(number.parse().ok()?)?, methods))
}

/// A key exchange, by its name or its number.
fn group(name: &str) -> Option<Group> {
    let number = name.strip_prefix("dh").or_else(|| name.strip_prefix("group"));
    let by_number = || number.and_then(|n| n.parse().ok()).and_then(Group::from_transform);
    Group::ALL.into_iter().find(|g| g.keyword() == name).or_else(by_number)
}

/// A method of an additional key exchange; `none` for one that may be left out.
fn method(which: AddKe, text: &str) -> Option<Word> {
    let name = ours(text);
    if name == "none" {
        return Some(Word::Additional(which, None));
    }
    group(&name).map(|g| Word::Additional(which, Some(g)))
}

fn word(text: &str) -> Option<Word> {
    if let Some((which, name)) = additional(text) {
        return method(which, name);
    }
    let name = ours(text);
    let encr = Encr::ALL.into_iter().find(|e| e.info().keyword == name).map(Word::Encr);
    let integ = || Integ::ALL.into_iter().find(|i| i.keyword() == name).map(Word::Integ);
    let prf = || Prf::ALL.into_iter().find(|p| p.keyword() == name).map(Word::Prf);
    let group = || group(&name).filter(|g| !g.is_kem()).map(Word::Group);
    let other = || match name.as_str() {
        "esn" => Some(Word::Esn(true)),
        "noesn" => Some(Word::Esn(false)),
        "none" | "modpnone" | "dh0" => Some(Word::Nothing),
        _ => None,
    };
    encr.or_else(integ).or_else(prf).or_else(group).or_else(other)
}

/// Why a word is not understood, in the words of our own configuration.
fn why_not(text: &str) -> String {
    if ["kyber", "hqc", "bike", "frodo", "sntrup"].iter().any(|kem| text.contains(kem)) {
        return "ML-KEM is the only post-quantum key exchange that is spoken".into();
    }
    let name = if text.starts_with("ke") && text.contains('_') { text.to_owned() } else { ours(text) };
    if name.contains("gcm")
        && (name.ends_with("12") || name.ends_with('8') || name.ends_with("64") || name.ends_with("96"))
    {
        return "GCM is spoken with a check value of 16 octets only".into();
    }
    match IkeProposal::read(&name, Permit::Legacy) {
        // Its list of everything known is too long for a note.
        Err(cygnet_model::proposal::ProposalError::Unknown(_)) | Ok(_) => "it is not spoken".into(),
        Err(e) => e.to_string(),
    }
}

fn parts(text: &str, at: Line<'_>, notes: &mut Notes) -> Parts {
    let mut p = Parts::default();
    let text = text.trim().to_lowercase();
    for part in text.trim_end_matches('!').split(['-', ';']).map(str::trim) {
        let (of, list) = additional_list(part).map_or((None, part), |(which, list)| (Some(which), list));
        for token in list.split('+').map(str::trim).filter(|t| !t.is_empty()) {
            match of.map_or_else(|| word(token), |which| method(which, token)) {
                Some(Word::Encr(v)) => push(&mut p.encrs, v),
                Some(Word::Integ(v)) => push(&mut p.integs, v),
                Some(Word::Prf(v)) => push(&mut p.prfs, v),
                Some(Word::Group(v)) => push(&mut p.groups, v),
                Some(Word::Additional(which, v)) => push(p.additional.get_mut(which), v),
                Some(Word::Esn(v)) => push(&mut p.esn, v),
                Some(Word::Nothing) => {}
                None => {
                    notes.add(Kind::Changed, at.line, at.key, token, format!("left out: {}", why_not(token)));
                }
            }
        }
    }
    if p.groups.is_empty() && !p.additional.is_empty() {
        let words: Vec<String> = p.additional.keywords().collect();
        let why = "left out: no key exchange is left that it could add to";
        notes.add(Kind::Changed, at.line, at.key, &words.join("-"), why);
        p.additional = AdditionalOffer::default();
    }
    p
}

/// AEADs and other ciphers cannot share a proposal (RFC 7296 §3.3); here they may have.
fn by_kind(p: &Parts) -> [(bool, Vec<Encr>); 2] {
    let of = |aead: bool| (aead, p.encrs.iter().copied().filter(|e| e.is_aead() == aead).collect());
    let aead_first = p.encrs.first().is_some_and(|e| e.is_aead());
    [of(aead_first), of(!aead_first)]
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|t| !t.is_empty()).take(MAX_PROPOSALS)
}

/// The proposals of the IKE SA; `None`: none is left, and our defaults stand for them.
pub fn ike(at: Line<'_>, notes: &mut Notes) -> Option<Vec<IkeProposal>> {
    let mut out: Vec<IkeProposal> = Vec::new();
    for text in items(at.value) {
        if text == "default" {
            IkeProposal::defaults().into_iter().for_each(|p| push(&mut out, p));
            continue;
        }
        let p = parts(text, at, notes);
        let hashes: Vec<Prf> = p.integs.iter().map(|i| i.prf()).collect();
        for (aead, encrs) in by_kind(&p).into_iter().filter(|(_, e)| !e.is_empty()) {
            let mut prfs = if p.prfs.is_empty() { hashes.clone() } else { p.prfs.clone() };
            if aead && prfs.is_empty() {
                notes.add(
                    Kind::Changed,
                    at.line,
                    at.key,
                    text,
                    "it names no PRF; prfsha256 and prfsha384 are taken",
                );
                prfs = vec![Prf::HmacSha256, Prf::HmacSha384];
            }
            let integs = if aead { Vec::new() } else { p.integs.clone() };
            if p.groups.is_empty() || prfs.is_empty() || (!aead && integs.is_empty()) {
                let why = "left out: no key exchange or hash is left of it that is spoken";
                notes.add(Kind::Changed, at.line, at.key, text, why);
                continue;
            }
            let (groups, additional) = (p.groups.clone(), p.additional.clone());
            push(&mut out, IkeProposal { encrs, integs, prfs, groups, additional });
        }
        if p.encrs.is_empty() {
            notes.add(
                Kind::Changed,
                at.line,
                at.key,
                text,
                "left out: no cipher is left of it that is spoken",
            );
        }
    }
    finish(out, IkeProposal::legacy, at, notes)
}

/// The proposals of ESP; `None`: none is left, and our defaults stand for them.
pub fn esp(at: Line<'_>, notes: &mut Notes) -> Option<Vec<EspProposal>> {
    let mut out: Vec<EspProposal> = Vec::new();
    for text in items(at.value) {
        if text == "default" {
            EspProposal::defaults().into_iter().for_each(|p| push(&mut out, p));
            continue;
        }
        let p = parts(text, at, notes);
        for (aead, encrs) in by_kind(&p).into_iter().filter(|(_, e)| !e.is_empty()) {
            let integs = if aead { Vec::new() } else { p.integs.clone() };
            if !aead && integs.is_empty() {
                let why = "left out: no integrity algorithm is left of it that is spoken";
                notes.add(Kind::Changed, at.line, at.key, text, why);
                continue;
            }
            let esn = if p.esn.is_empty() { vec![true, false] } else { p.esn.clone() };
            let (groups, additional) = (p.groups.clone(), p.additional.clone());
            push(&mut out, EspProposal { encrs, integs, groups, additional, esn });
        }
        if p.encrs.is_empty() {
            notes.add(
                Kind::Changed,
                at.line,
                at.key,
                text,
                "left out: no cipher is left of it that is spoken",
            );
        }
    }
    finish(out, EspProposal::legacy, at, notes)
}

fn finish<P>(
    out: Vec<P>,
    legacy: fn(&P) -> Vec<&'static str>,
    at: Line<'_>,
    notes: &mut Notes,
) -> Option<Vec<P>> {
    if out.is_empty() {
        let why =
            "nothing is left of it; our defaults stand in its place, and the peer has to take one of them";
        notes.add(Kind::Todo, at.line, at.key, at.value, why);
        return None;
    }
    let mut weak: Vec<&str> = Vec::new();
    out.iter().flat_map(legacy).for_each(|word| push(&mut weak, word));
    if !weak.is_empty() {
        let why = format!(
            "{} can be broken; written as legacy: true, to be dropped as soon as the peer can",
            weak.join(", ")
        );
        notes.add(Kind::Changed, at.line, at.key, at.value, why);
    }
    Some(out)
}
