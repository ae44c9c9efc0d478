//! MikroTik RouterOS 7, as commands for its terminal.

use cygnet_model::suite::{Encr, Group, Integ, Prf};
use zeroize::Zeroizing;

use super::ExportError;
use super::fit::{self, Fit, Words};
use super::mirror::{Mirror, Place};
use super::text::{Lines, is_word, key_id_text, line, refuse_id};
use crate::config::{Identity, Start};

fn ike(e: Encr) -> Option<&'static str> {
    Some(match e {
        Encr::AesCbc128 => "aes-128",
        Encr::AesCbc192 => "aes-192",
        Encr::AesCbc256 => "aes-256",
        Encr::TripleDesCbc => "3des",
        Encr::AesGcm16_128 | Encr::AesGcm16_256 | Encr::ChaCha20Poly1305 => return None,
    })
}

fn esp(e: Encr) -> Option<&'static str> {
    Some(match e {
        Encr::AesGcm16_128 => "aes-128-gcm",
        Encr::AesGcm16_256 => "aes-256-gcm",
        Encr::AesCbc128 => "aes-128-cbc",
        Encr::AesCbc192 => "aes-192-cbc",
        Encr::AesCbc256 => "aes-256-cbc",
        Encr::TripleDesCbc => "3des",
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

/// Proposals of ESP know SHA-2 with 256 and 512 bits only.
fn esp_integ(i: Integ) -> Option<&'static str> {
    if i == Integ::HmacSha384_192 { None } else { integ(i) }
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
        Group::X25519 | Group::MlKem512 | Group::MlKem768 | Group::MlKem1024 => None,
        other => Some(other.keyword()),
    }
}

const WORDS: Words =
    Words { ike, esp, ike_integ: integ, esp_integ, prf, group, ike_more: fit::none, esp_more: fit::none };

pub fn render(m: &Mirror<'_>, notes: &mut Vec<String>) -> Result<Zeroizing<String>, ExportError> {
    let ike = fit::ike(m, &WORDS, notes)?;
    let ike = fit::coupled(ike, |integ, prf| integ == prf, m, notes)?;
    let hash = ike.first().and_then(|f| f.integs.first()).copied().unwrap_or("sha256");
    if ike.len() > 1 || ike.iter().any(|f| f.integs.len() > 1) {
        notes.push(format!("IKE: RouterOS has one profile with one hash: our first proposal, with {hash}"));
    }
    let Some(ike) = ike.into_iter().next() else { return Err(ExportError::NoTunnel) };
    let esp = fit::esp(m, &WORDS, notes)?;
    fit::without_esn(&esp, m)?;
    let (pfs, esp) = fit::one_pfs(esp, m, notes);
    let name = m.name;
    let mut out = Lines::new("#");
    out.head(m);
    line!(out, "/ip ipsec profile");
    let dpd = m.ike.dpd.map_or_else(
        || "dpd-interval=disable-dpd".into(),
        |d| format!("dpd-interval={}s dpd-maximum-failures=4", d.as_secs().max(1)),
    );
    line!(
        out,
        "add name=\"{name}\" enc-algorithm={} hash-algorithm={hash} dh-group={} lifetime={}s {dpd} nat-traversal=yes",
        ike.encrs.join(","),
        ike.groups.join(","),
        m.ike.lifetime.as_secs(),
    );
    line!(out, "/ip ipsec proposal");
    let all = |pick: fn(&Fit) -> &Vec<&'static str>| {
        let mut words: Vec<&str> = Vec::new();
        for word in esp.iter().flat_map(pick) {
            if !words.contains(word) {
                words.push(word);
            }
        }
        words.join(",")
    };
    line!(
        out,
        "add name=\"{name}\" enc-algorithms={} auth-algorithms=\"{}\" lifetime={}s pfs-group={}",
        all(|f| &f.encrs),
        all(|f| &f.integs),
        m.esp.lifetime.as_secs(),
        pfs.group.unwrap_or("none"),
    );
    line!(out, "/ip ipsec peer");
    let near = m.near.address.ip().map_or_else(String::new, |ip| format!(" local-address={ip}"));
    let far = match &m.far.address {
        Place::Ip(ip) => ip.to_string(),
        Place::Dns(dns) => dns.clone(),
        Place::Unknown => m.far_ip()?.to_string(),
    };
    let passive = if m.start == Start::Passive { " passive=yes send-initial-contact=no" } else { "" };
    line!(out, "add name=\"{name}\" address={far}{near} exchange-mode=ike2 profile=\"{name}\"{passive}");
    line!(out, "/ip ipsec identity");
    let my_id = match &m.near.id {
        Some(id) => format!(" my-id={}", identity(m, "the peer", id)?),
        None => String::new(),
    };
    let remote_id = match &m.far.id {
        Some(id) => format!(" remote-id={}", identity(m, "our gateway", id)?),
        None => " remote-id=ignore".into(),
    };
    line!(
        out,
        "add peer=\"{name}\" auth-method=pre-shared-key generate-policy=no{my_id}{remote_id} secret=\"{}\"",
        m.key.with_0x().as_str(),
    );
    line!(out, "/ip ipsec policy");
    for (near, far) in m.pairs() {
        line!(
            out,
            "add peer=\"{name}\" tunnel=yes src-address={near} dst-address={far} proposal=\"{name}\" action=encrypt level=unique",
        );
    }
    notes.push(
        "NAT: what the router masquerades has to leave these networks out (action=accept before it in chain srcnat)".into(),
    );
    if m.esp.bytes.is_some() {
        notes
            .push("esp.bytes: RouterOS counts no volume in a proposal; our own limit renews the keys".into());
    }
    if m.ike.encap.is_forced() {
        notes
            .push("encap: RouterOS puts ESP into UDP where it detects NAT, which our end makes it do".into());
    }
    if m.start == Start::OnDemand {
        notes.push(
            "start: RouterOS begins when a packet meets a policy, and as soon as the peer is enabled".into(),
        );
    }
    notes.push("replay_window: RouterOS has no such setting".into());
    Ok(out.finish())
}

fn identity(m: &Mirror<'_>, whose: &'static str, id: &Identity) -> Result<String, ExportError> {
    match id {
        Identity::Ip(ip) => Ok(format!("address:{ip}")),
        Identity::Fqdn(name) if is_word(name) => Ok(format!("fqdn:{name}")),
        Identity::Email(name) if is_word(name) => Ok(format!("user-fqdn:{name}")),
        Identity::KeyId(octets) => match key_id_text(octets) {
            Some(text) => Ok(format!("key-id:{text}")),
            None => Err(refuse_id(m, whose, id, "a key id has to be a printable word")),
        },
        Identity::Dn(_) => Err(refuse_id(m, whose, id, "it takes it from a certificate only")),
        Identity::Fqdn(_) | Identity::Email(_) => Err(refuse_id(m, whose, id, "it is no single word")),
    }
}
