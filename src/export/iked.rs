//! iked.conf of OpenIKED.

use cygnet_model::suite::{Encr, Group, Integ, Prf};
use zeroize::Zeroizing;

use super::ExportError;
use super::fit::{self, Fit, Words};
use super::mirror::{Key, Mirror, Place};
use super::text::{Lines, is_word, line, refuse_id};
use crate::config::{Identity, Start};

fn ike(e: Encr) -> Option<&'static str> {
    Some(match e {
        Encr::AesGcm16_128 => "aes-128-gcm",
        Encr::AesGcm16_256 => "aes-256-gcm",
        Encr::AesCbc128 => "aes-128",
        Encr::AesCbc192 => "aes-192",
        Encr::AesCbc256 => "aes-256",
        Encr::TripleDesCbc => "3des",
        Encr::ChaCha20Poly1305 => return None,
    })
}

fn esp(e: Encr) -> Option<&'static str> {
    match e {
        Encr::ChaCha20Poly1305 => Some("chacha20-poly1305"),
        other => ike(other),
    }
}

fn integ(i: Integ) -> Option<&'static str> {
    Some(match i {
        Integ::HmacSha256_128 => "hmac-sha2-256",
        Integ::HmacSha384_192 => "hmac-sha2-384",
        Integ::HmacSha512_256 => "hmac-sha2-512",
        Integ::HmacSha1_96 => "hmac-sha1",
    })
}

fn prf(p: Prf) -> Option<&'static str> {
    Some(match p {
        Prf::HmacSha256 => "hmac-sha2-256",
        Prf::HmacSha384 => "hmac-sha2-384",
        Prf::HmacSha512 => "hmac-sha2-512",
        Prf::HmacSha1 => "hmac-sha1",
    })
}

fn group(g: Group) -> Option<&'static str> {
    match g {
        Group::X25519 => Some("curve25519"),
        Group::MlKem512 | Group::MlKem768 | Group::MlKem1024 => None,
        other => Some(other.keyword()),
    }
}

const WORDS: Words = Words {
    ike,
    esp,
    ike_integ: integ,
    esp_integ: integ,
    prf,
    group,
    ike_more: fit::none,
    esp_more: fit::none,
};

pub fn render(m: &Mirror<'_>, notes: &mut Vec<String>) -> Result<Zeroizing<String>, ExportError> {
    let ike = fit::ike(m, &WORDS, notes)?;
    let esp = fit::esp(m, &WORDS, notes)?;
    let near = m.near.id.as_ref().map(|id| identity(m, "the peer", id)).transpose()?;
    let far = m.far.id.as_ref().map(|id| identity(m, "our gateway", id)).transpose()?;
    let mut out = Lines::new("#");
    out.head(m);
    if m.ike.encap.is_forced() {
        notes.push("encap: iked puts ESP into UDP where it detects NAT, which our end makes it do".into());
    }
    let mode = match m.start {
        Start::Active => "active",
        Start::Passive => "passive",
        Start::OnDemand => {
            notes.push("start: iked has nothing that waits for a packet; its text begins at once".into());
            "active"
        }
    };
    // One policy is one child of all its pairs; each policy must be an IKE SA of its own.
    for (n, child) in m.children.iter().enumerate() {
        let number = if m.children.len() > 1 { format!("-{}", n + 1) } else { String::new() };
        if n > 0 {
            line!(out, "");
        }
        line!(out, "ikev2 \"{}{number}\" {mode} esp \\", m.name);
        for near in &child.near {
            for far in &child.far {
                line!(out, "\tfrom {near} to {far} \\");
            }
        }
        let near_place = match &m.near.address {
            Place::Ip(ip) => format!("local {ip} "),
            Place::Dns(_) | Place::Unknown => String::new(),
        };
        match &m.far.address {
            Place::Ip(ip) => line!(out, "\t{near_place}peer {ip} \\"),
            Place::Dns(dns) => line!(out, "\t{near_place}peer {dns} \\"),
            Place::Unknown => line!(out, "\t{near_place}peer any \\"),
        }
        ike.iter().for_each(|f| line!(out, "\tikesa {} \\", suite(f)));
        esp.iter().for_each(|f| line!(out, "\tchildsa {}{} \\", suite(f), esn(f)));
        if let Some(id) = &near {
            line!(out, "\tsrcid {id} \\");
        }
        if let Some(id) = &far {
            line!(out, "\tdstid {id} \\");
        }
        let bytes = m.esp.bytes.map_or_else(String::new, |b| format!(" bytes {b}"));
        let (ike_life, esp_life) = (m.ike.lifetime.as_secs(), m.esp.lifetime.as_secs());
        line!(out, "\tikelifetime {ike_life} lifetime {esp_life}{bytes} \\");
        let key = m.key.with_0x();
        match m.key {
            Key::Hex(_) => line!(out, "\tpsk {}", key.as_str()),
            Key::Text(_) | Key::Placeholder => line!(out, "\tpsk \"{}\"", key.as_str()),
        }
    }
    if m.children.len() > 1 {
        notes.push(
            "SPD rules: iked makes an IKE SA for each policy; it has one for each of our child SAs".into(),
        );
    }
    if m.ike.fragmentation {
        notes.push("fragmentation: in iked it is global; write: set fragmentation".into());
    }
    if let Some(dpd) = m.ike.dpd {
        notes.push(format!(
            "dpd: in iked it is global; write: set dpd_check_interval {}",
            dpd.as_secs().max(1)
        ));
    }
    notes.push("replay_window: iked has no such setting".into());
    Ok(out.finish())
}

fn suite(f: &Fit) -> String {
    let words = |key: &str, list: &[&str]| list.iter().map(|w| format!("{key} {w}")).collect::<Vec<_>>();
    let groups = if f.groups.is_empty() { vec!["group none".to_owned()] } else { words("group", &f.groups) };
    [words("auth", &f.integs), words("enc", &f.encrs), words("prf", &f.prfs), groups].concat().join(" ")
}

fn esn(f: &Fit) -> &'static str {
    match f.esn.as_slice() {
        [true] => " esn",
        [false] => " noesn",
        [true, ..] => " esn noesn",
        _ => " noesn esn",
    }
}

/// iked finds out an identity's type by its looks.
fn identity(m: &Mirror<'_>, whose: &'static str, id: &Identity) -> Result<String, ExportError> {
    match id {
        Identity::Ip(ip) => Ok(ip.to_string()),
        Identity::Fqdn(name)
            if is_word(name) && !name.contains(['@', ':']) && name.parse::<std::net::IpAddr>().is_err() =>
        {
            Ok(name.clone())
        }
        Identity::Email(name) if is_word(name) && name.contains('@') => Ok(name.clone()),
        Identity::Fqdn(_) | Identity::Email(_) => {
            Err(refuse_id(m, whose, id, "it would be taken for another type"))
        }
        Identity::KeyId(_) => Err(refuse_id(m, whose, id, "it has no key ids")),
        Identity::Dn(_) => {
            Err(refuse_id(m, whose, id, "it takes names of certificates only with certificates"))
        }
    }
}
