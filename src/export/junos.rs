//! Juniper Junos (SRX), as set commands.

use std::net::IpAddr;

use cygnet_model::suite::{Encr, Group, Integ, Prf};
use zeroize::Zeroizing;

use super::ExportError;
use super::fit::{self, Words};
use super::mirror::{Key, Mirror, Place};
use super::text::{Lines, PLACEHOLDER, is_word, key_id_text, line, refuse_id, within};
use crate::config::{Identity, Start};

/// Without GCM in IKE: which PRF Junos takes with it depends on its version.
fn ike(e: Encr) -> Option<&'static str> {
    Some(match e {
        Encr::AesCbc128 => "aes-128-cbc",
        Encr::AesCbc192 => "aes-192-cbc",
        Encr::AesCbc256 => "aes-256-cbc",
        Encr::TripleDesCbc => "3des-cbc",
        Encr::AesGcm16_128 | Encr::AesGcm16_256 | Encr::ChaCha20Poly1305 => return None,
    })
}

fn esp(e: Encr) -> Option<&'static str> {
    match e {
        Encr::AesGcm16_128 => Some("aes-128-gcm"),
        Encr::AesGcm16_256 => Some("aes-256-gcm"),
        other => ike(other),
    }
}

fn integ(i: Integ) -> Option<&'static str> {
    Some(match i {
        Integ::HmacSha256_128 => "sha-256",
        Integ::HmacSha384_192 => "sha-384",
        Integ::HmacSha512_256 => "sha-512",
        Integ::HmacSha1_96 => "sha1",
    })
}

fn esp_integ(i: Integ) -> Option<&'static str> {
    Some(match i {
        Integ::HmacSha256_128 => "hmac-sha-256-128",
        Integ::HmacSha384_192 => "hmac-sha-384",
        Integ::HmacSha512_256 => "hmac-sha-512",
        Integ::HmacSha1_96 => "hmac-sha1-96",
    })
}

/// The PRF is that of the integrity algorithm.
fn prf(p: Prf) -> Option<&'static str> {
    Some(match p {
        Prf::HmacSha256 => "sha-256",
        Prf::HmacSha384 => "sha-384",
        Prf::HmacSha512 => "sha-512",
        Prf::HmacSha1 => "sha1",
    })
}

fn group(g: Group) -> Option<&'static str> {
    Some(match g {
        Group::Modp1024 => "group2",
        Group::Modp1536 => "group5",
        Group::Modp2048 => "group14",
        Group::Modp3072 => "group15",
        Group::Modp4096 => "group16",
        Group::Ecp256 => "group19",
        Group::Ecp384 => "group20",
        Group::Ecp521 => "group21",
        Group::Modp6144 | Group::Modp8192 | Group::X25519 => return None,
        Group::MlKem512 | Group::MlKem768 | Group::MlKem1024 => return None,
    })
}

const WORDS: Words =
    Words { ike, esp, ike_integ: integ, esp_integ, prf, group, ike_more: fit::none, esp_more: fit::none };

pub fn render(m: &Mirror<'_>, notes: &mut Vec<String>) -> Result<Zeroizing<String>, ExportError> {
    let ike = fit::ike(m, &WORDS, notes)?;
    let ike = fit::coupled(ike, |integ, prf| integ == prf, m, notes)?;
    let ike = fit::first_of_each(ike, "IKE", m, notes);
    let esp = fit::esp(m, &WORDS, notes)?;
    let (pfs, esp) = fit::one_pfs(esp, m, notes);
    let esp = fit::first_of_each(esp, "ESP", m, notes);
    let product = m.product();
    let name = &m.name.replace('.', "_");
    let mut out = Lines::new("#");
    out.head(m);
    let lifetime = within("ike.lifetime", m.ike.lifetime.as_secs(), 180, 86_400, product, notes);
    for (n, f) in ike.iter().enumerate() {
        let p = format!("set security ike proposal {name}-{}", n + 1);
        line!(out, "{p} authentication-method pre-shared-keys");
        line!(out, "{p} dh-group {}", f.groups.join(" "));
        line!(out, "{p} authentication-algorithm {}", f.integs.join(" "));
        line!(out, "{p} encryption-algorithm {}", f.encrs.join(" "));
        line!(out, "{p} lifetime-seconds {lifetime}");
    }
    let names = |count: usize| {
        let all: Vec<String> = (1..=count).map(|n| format!("{name}-{n}")).collect();
        if count == 1 { all.concat() } else { format!("[ {} ]", all.join(" ")) }
    };
    line!(out, "set security ike policy {name} proposals {}", names(ike.len()));
    let key = format!("set security ike policy {name} pre-shared-key");
    match &m.key {
        Key::Placeholder => line!(out, "{key} ascii-text \"{PLACEHOLDER}\""),
        Key::Text(text) => line!(out, "{key} ascii-text \"{}\"", text.as_str()),
        Key::Hex(hex) => line!(out, "{key} hexadecimal {}", hex.as_str()),
    }
    let g = format!("set security ike gateway {name}");
    line!(out, "{g} version v2-only");
    line!(out, "{g} ike-policy {name}");
    match &m.far.address {
        Place::Ip(ip) => line!(out, "{g} address {ip}"),
        Place::Dns(dns) => line!(out, "{g} address {dns}"),
        Place::Unknown => line!(out, "{g} address {}", m.far_ip()?),
    }
    if let Some(ip) = m.near.address.ip() {
        line!(out, "{g} local-address {ip}");
    }
    line!(out, "{g} external-interface ge-0/0/0.0");
    if let Some(id) = &m.near.id {
        line!(out, "{g} local-identity {}", identity(m, "the peer", id)?);
    }
    if let Some(id) = &m.far.id {
        line!(out, "{g} remote-identity {}", identity(m, "our gateway", id)?);
    }
    if let Some(dpd) = m.ike.dpd {
        let dpd = within("ike.dpd", dpd.as_secs(), 10, 60, product, notes);
        line!(out, "{g} dead-peer-detection probe-idle-tunnel");
        line!(out, "{g} dead-peer-detection interval {dpd}");
        line!(out, "{g} dead-peer-detection threshold 4");
    }
    if !m.ike.fragmentation {
        line!(out, "{g} fragmentation disable");
    }
    let lifetime = within("esp.lifetime", m.esp.lifetime.as_secs(), 180, 86_400, product, notes);
    for (n, f) in esp.iter().enumerate() {
        let p = format!("set security ipsec proposal {name}-{}", n + 1);
        line!(out, "{p} protocol esp");
        line!(out, "{p} encryption-algorithm {}", f.encrs.join(" "));
        if !f.integs.is_empty() {
            line!(out, "{p} authentication-algorithm {}", f.integs.join(" "));
        }
        line!(out, "{p} lifetime-seconds {lifetime}");
        if let Some(bytes) = m.esp.bytes {
            let kb = within("esp.bytes (kilobytes)", bytes / 1000, 64, 4_294_967_294, product, notes);
            line!(out, "{p} lifetime-kilobytes {kb}");
        }
        if f.esn == [true] {
            line!(out, "{p} extended-sequence-number");
        }
    }
    if let Some(group) = pfs.group {
        line!(out, "set security ipsec policy {name} perfect-forward-secrecy keys {group}");
    }
    line!(out, "set security ipsec policy {name} proposals {}", names(esp.len()));
    let v = format!("set security ipsec vpn {name}");
    line!(out, "{v} bind-interface st0.0");
    line!(out, "{v} ike gateway {name}");
    line!(out, "{v} ike ipsec-policy {name}");
    let start = match m.start {
        Start::Active => "immediately",
        Start::Passive => "responder-only",
        Start::OnDemand => "on-traffic",
    };
    line!(out, "{v} establish-tunnels {start}");
    if m.esp.replay_window == 0 {
        line!(out, "{v} ike no-anti-replay");
    }
    for (n, (near, far)) in m.pairs().iter().enumerate() {
        line!(out, "{v} traffic-selector ts{} local-ip {near}", n + 1);
        line!(out, "{v} traffic-selector ts{} remote-ip {far}", n + 1);
    }
    line!(out, "set interfaces st0 unit 0 family inet");
    if m.pairs().iter().any(|(near, _)| near.start().is_ipv6()) {
        line!(out, "set interfaces st0 unit 0 family inet6");
    }
    notes.push(
        "interface: write the public interface for ge-0/0/0.0 and a free unit for st0.0, put it into a zone, and let the \
         security policies pass the networks; routes come with the traffic selectors"
            .into(),
    );
    if m.ike.encap.is_forced() {
        notes.push("encap: Junos puts ESP into UDP where it detects NAT, which our end makes it do".into());
    }
    Ok(out.finish())
}

fn identity(m: &Mirror<'_>, whose: &'static str, id: &Identity) -> Result<String, ExportError> {
    match id {
        Identity::Ip(IpAddr::V4(ip)) => Ok(format!("inet {ip}")),
        Identity::Ip(IpAddr::V6(ip)) => Ok(format!("inet6 {ip}")),
        Identity::Fqdn(name) if is_word(name) => Ok(format!("hostname {name}")),
        Identity::Email(name) if is_word(name) => Ok(format!("user-at-hostname \"{name}\"")),
        Identity::KeyId(octets) => match key_id_text(octets) {
            Some(text) => Ok(format!("key-id \"{text}\"")),
            None => Err(refuse_id(m, whose, id, "a key id has to be a printable word")),
        },
        Identity::Dn(_) => Err(refuse_id(m, whose, id, "it takes it from a certificate only")),
        Identity::Fqdn(_) | Identity::Email(_) => Err(refuse_id(m, whose, id, "it is no single word")),
    }
}
