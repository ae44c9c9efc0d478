//! Cisco IOS-XE 16.12 and later: a virtual tunnel interface whose access list says what is protected (multi-SA VTI).

use std::net::{IpAddr, Ipv4Addr};

use cygnet_model::IpRange;
use cygnet_model::addke::AddKe;
use cygnet_model::suite::{Encr, Group, Integ, Prf};
use zeroize::Zeroizing;

use super::ExportError;
use super::fit::{self, Words, number};
use super::mirror::{Key, Mirror};
use super::text::{Lines, PLACEHOLDER, is_word, key_id_text, line, refuse_id, within};
use crate::config::{Identity, Start};

fn ike(e: Encr) -> Option<&'static str> {
    Some(match e {
        Encr::AesGcm16_128 => "aes-gcm-128",
        Encr::AesGcm16_256 => "aes-gcm-256",
        Encr::AesCbc128 => "aes-cbc-128",
        Encr::AesCbc192 => "aes-cbc-192",
        Encr::AesCbc256 => "aes-cbc-256",
        Encr::TripleDesCbc => "3des",
        Encr::ChaCha20Poly1305 => return None,
    })
}

fn esp(e: Encr) -> Option<&'static str> {
    Some(match e {
        Encr::AesGcm16_128 => "esp-gcm 128",
        Encr::AesGcm16_256 => "esp-gcm 256",
        Encr::AesCbc128 => "esp-aes 128",
        Encr::AesCbc192 => "esp-aes 192",
        Encr::AesCbc256 => "esp-aes 256",
        Encr::TripleDesCbc => "esp-3des",
        Encr::ChaCha20Poly1305 => return None,
    })
}

fn integ(i: Integ) -> Option<&'static str> {
    Some(match i {
        Integ::HmacSha256_128 => "sha256",
        Integ::HmacSha384_192 => "sha384",
        Integ::HmacSha512_256 => "sha512",
        Integ::HmacSha1_96 => "sha1",
    })
}

fn esp_integ(i: Integ) -> Option<&'static str> {
    Some(match i {
        Integ::HmacSha256_128 => "esp-sha256-hmac",
        Integ::HmacSha384_192 => "esp-sha384-hmac",
        Integ::HmacSha512_256 => "esp-sha512-hmac",
        Integ::HmacSha1_96 => "esp-sha-hmac",
    })
}

fn prf(p: Prf) -> Option<&'static str> {
    Some(match p {
        Prf::HmacSha256 => "sha256",
        Prf::HmacSha384 => "sha384",
        Prf::HmacSha512 => "sha512",
        Prf::HmacSha1 => "sha1",
    })
}

fn group(g: Group) -> Option<&'static str> {
    match g {
        Group::X25519 | Group::Modp6144 | Group::Modp8192 => None,
        Group::MlKem512 | Group::MlKem768 | Group::MlKem1024 => None,
        other => Some(number(other)),
    }
}

/// ML-KEM from 26.1 on, as the only additional key exchange.
fn more(which: AddKe, method: Group) -> Option<&'static str> {
    (which.number() == 1 && method.is_kem()).then_some(method.keyword())
}

const WORDS: Words =
    Words { ike, esp, ike_integ: integ, esp_integ, prf, group, ike_more: more, esp_more: more };

pub fn render(m: &Mirror<'_>, notes: &mut Vec<String>) -> Result<Zeroizing<String>, ExportError> {
    let ike = fit::ike(m, &WORDS, notes)?;
    let esp = fit::esp(m, &WORDS, notes)?;
    fit::without_esn(&esp, m)?;
    let (pfs, esp) = fit::one_pfs(esp, m, notes);
    let esp = fit::first_of_each(esp, "ESP", m, notes);
    let (near, far) = (m.near_ip()?, m.far_ip()?);
    let pairs = pairs(m, notes)?;
    let product = m.product();
    let name = m.name;
    let mut out = Lines::new("!");
    out.head(m);
    // Proposals: a list for each kind of algorithm.
    for (n, f) in ike.iter().enumerate() {
        line!(out, "crypto ikev2 proposal {name}-{}", n + 1);
        line!(out, " encryption {}", f.encrs.join(" "));
        if !f.integs.is_empty() {
            line!(out, " integrity {}", f.integs.join(" "));
        }
        // Without it, the PRF is that of the integrity algorithm.
        if f.prfs != f.integs {
            line!(out, " prf {}", f.prfs.join(" "));
        }
        line!(out, " group {}", f.groups.join(" "));
        for (_, words) in &f.more {
            let methods: Vec<&str> = words.iter().copied().flatten().collect();
            let optional = if words.contains(&None) { " optional" } else { "" };
            line!(out, " pqc {}{optional}", methods.join(" "));
        }
    }
    line!(out, "crypto ikev2 policy {name}");
    line!(out, " match address local {near}");
    (1..=ike.len()).for_each(|n| line!(out, " proposal {name}-{n}"));
    line!(out, "crypto ikev2 keyring {name}");
    line!(out, " peer {name}");
    line!(out, "  address {far}");
    match &m.key {
        Key::Placeholder => line!(out, "  pre-shared-key {PLACEHOLDER}"),
        Key::Text(text) => line!(out, "  pre-shared-key {}", text.as_str()),
        Key::Hex(hex) => line!(out, "  pre-shared-key hex {}", hex.as_str()),
    }
    line!(out, "crypto ikev2 profile {name}");
    let any = Identity::Ip(far);
    line!(out, " match identity remote {}", remote_identity(m, m.far.id.as_ref().unwrap_or(&any))?);
    if let Some(id) = &m.near.id {
        line!(out, " identity local {}", identity(m, "the peer", id)?);
    }
    line!(out, " authentication remote pre-share");
    line!(out, " authentication local pre-share");
    line!(out, " keyring local {name}");
    let lifetime = within("ike.lifetime", m.ike.lifetime.as_secs(), 120, 86_400, product, notes);
    line!(out, " lifetime {lifetime}");
    if let Some(dpd) = m.ike.dpd {
        let dpd = within("ike.dpd", dpd.as_secs(), 10, 3600, product, notes);
        line!(out, " dpd {dpd} 5 periodic");
    }
    if m.ike.fragmentation {
        // Global; it is on as soon as one side has it.
        line!(out, "crypto ikev2 fragmentation");
    }
    for (n, f) in esp.iter().enumerate() {
        let words = [f.encrs.clone(), f.integs.clone()].concat().join(" ");
        line!(out, "crypto ipsec transform-set {name}-{} {words}", n + 1);
        line!(out, " mode tunnel");
    }
    line!(out, "crypto ipsec profile {name}");
    let sets: Vec<String> = (1..=esp.len()).map(|n| format!("{name}-{n}")).collect();
    line!(out, " set transform-set {}", sets.join(" "));
    if let Some(group) = pfs.group {
        let more: String = pfs.more.iter().map(|(_, word)| format!(" pqc {word}")).collect();
        line!(out, " set pfs group{group}{more}");
    }
    line!(out, " set ikev2-profile {name}");
    let lifetime = within("esp.lifetime", m.esp.lifetime.as_secs(), 120, 2_592_000, product, notes);
    line!(out, " set security-association lifetime seconds {lifetime}");
    match m.esp.bytes {
        Some(bytes) => {
            let kb = within("esp.bytes (kilobytes)", bytes / 1000, 2560, 4_294_967_295, product, notes);
            line!(out, " set security-association lifetime kilobytes {kb}");
        }
        None => line!(out, " set security-association lifetime kilobytes disable"),
    }
    let windows = [64, 128, 256, 512, 1024];
    if m.esp.replay_window > 0 {
        let window = windows.into_iter().find(|w| *w >= m.esp.replay_window).unwrap_or(1024);
        line!(out, " set security-association replay window-size {window}");
    } else {
        line!(out, " set security-association replay disable");
    }
    line!(out, " reverse-route");
    line!(out, "ip access-list extended {name}");
    for (near, far) in &pairs {
        line!(out, " permit ip {} {}", wildcard(near), wildcard(far));
    }
    line!(out, "interface Tunnel1");
    line!(out, " description {name}");
    line!(out, " ip unnumbered GigabitEthernet1");
    line!(out, " tunnel source {near}");
    line!(out, " tunnel mode ipsec {}", if far.is_ipv4() { "ipv4" } else { "ipv6 v4-overlay" });
    line!(out, " tunnel destination {far}");
    line!(out, " tunnel protection ipsec policy ipv4 {name}");
    line!(out, " tunnel protection ipsec profile {name}");
    notes.push(
        "interface: write the number of a free tunnel interface for Tunnel1, and the public interface for GigabitEthernet1"
            .into(),
    );
    if ike.iter().any(|f| !f.more.is_empty()) || !pfs.more.is_empty() {
        notes.push(
            "pqc: IOS-XE has it from 26.1 on, on some platforms (show crypto pqc-support); elsewhere leave it out of the text"
                .into(),
        );
    }
    if m.ike.encap.is_forced() {
        notes.push("encap: IOS-XE puts ESP into UDP where it detects NAT, which our end makes it do".into());
    }
    match m.start {
        Start::Active => {}
        Start::Passive | Start::OnDemand => {
            notes.push("start: IOS-XE begins as soon as the interface is up; both ends may begin".into());
        }
    }
    Ok(out.finish())
}

/// The pairs of IPv4; the interface is one of that family.
fn pairs(m: &Mirror<'_>, notes: &mut Vec<String>) -> Result<Vec<(IpRange, IpRange)>, ExportError> {
    let all = m.pairs();
    let v4: Vec<_> = all.iter().copied().filter(|(near, _)| near.start().is_ipv4()).collect();
    if v4.is_empty() {
        let why = "the text has an interface for IPv4 networks only";
        return Err(ExportError::Networks { product: m.product(), why });
    }
    if v4.len() < all.len() {
        notes.push("SPD rules: IPv6 networks need a second tunnel interface (tunnel mode ipsec ... v6-overlay), which the \
                    text does not have"
            .into());
    }
    Ok(v4)
}

/// A block as address and inverted mask.
fn wildcard(block: &IpRange) -> String {
    match (block.start(), block.end()) {
        (IpAddr::V4(_), IpAddr::V4(_)) if block.prefix_len() == Some(0) => "any".into(),
        (IpAddr::V4(start), IpAddr::V4(_)) if block.prefix_len() == Some(32) => format!("host {start}"),
        (IpAddr::V4(start), IpAddr::V4(end)) => {
            format!("{start} {}", Ipv4Addr::from_bits(start.to_bits() ^ end.to_bits()))
        }
        (start, _) => start.to_string(),
    }
}

fn identity(m: &Mirror<'_>, whose: &'static str, id: &Identity) -> Result<String, ExportError> {
    match id {
        Identity::Ip(ip) => Ok(format!("address {ip}")),
        Identity::Fqdn(name) if is_word(name) => Ok(format!("fqdn {name}")),
        Identity::Email(name) if is_word(name) => Ok(format!("email {name}")),
        Identity::KeyId(octets) => match key_id_text(octets) {
            Some(text) => Ok(format!("key-id {text}")),
            None => Err(refuse_id(m, whose, id, "a key id has to be a printable word")),
        },
        Identity::Dn(_) => Err(refuse_id(m, whose, id, "it takes it from a certificate only")),
        Identity::Fqdn(_) | Identity::Email(_) => Err(refuse_id(m, whose, id, "it is no single word")),
    }
}

fn remote_identity(m: &Mirror<'_>, id: &Identity) -> Result<String, ExportError> {
    match id {
        Identity::Ip(IpAddr::V4(ip)) => Ok(format!("address {ip} 255.255.255.255")),
        Identity::Ip(ip) => Ok(format!("address {ip}/128")),
        other => identity(m, "our gateway", other),
    }
}
