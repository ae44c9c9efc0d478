//! ipsec.conf of libreswan 4.0 and later, with the line of ipsec.secrets as a comment.

use cygnet_model::IpRange;
use cygnet_model::addke::AddKe;
use cygnet_model::suite::{Encr, Group, Integ, Prf};
use zeroize::Zeroizing;

use super::ExportError;
use super::fit::{self, Fit, Words};
use super::mirror::{Mirror, Place};
use super::text::{Lines, hex, is_word, line, plain_dn, refuse_id, within};
use crate::config::{Identity, Start};

fn encr(e: Encr) -> Option<&'static str> {
    Some(match e {
        Encr::AesGcm16_128 => "aes_gcm128",
        Encr::AesGcm16_256 => "aes_gcm256",
        Encr::AesCbc128 => "aes128",
        Encr::AesCbc192 => "aes192",
        Encr::AesCbc256 => "aes256",
        Encr::ChaCha20Poly1305 => "chacha20_poly1305",
        Encr::TripleDesCbc => "3des",
    })
}

fn integ(i: Integ) -> Option<&'static str> {
    Some(match i {
        Integ::HmacSha256_128 => "sha2_256",
        Integ::HmacSha384_192 => "sha2_384",
        Integ::HmacSha512_256 => "sha2_512",
        Integ::HmacSha1_96 => "sha1",
    })
}

fn prf(p: Prf) -> Option<&'static str> {
    Some(match p {
        Prf::HmacSha256 => "sha2_256",
        Prf::HmacSha384 => "sha2_384",
        Prf::HmacSha512 => "sha2_512",
        Prf::HmacSha1 => "sha1",
    })
}

/// Group 2 is not built into Debian's libreswan.
fn group(g: Group) -> Option<&'static str> {
    Some(match g {
        Group::Modp1024 => return None,
        Group::Modp1536 => "modp1536",
        Group::Modp2048 => "modp2048",
        Group::Modp3072 => "modp3072",
        Group::Modp4096 => "modp4096",
        Group::Modp6144 => "modp6144",
        Group::Modp8192 => "modp8192",
        Group::Ecp256 => "dh19",
        Group::Ecp384 => "dh20",
        Group::Ecp521 => "dh21",
        Group::X25519 => "dh31",
        Group::MlKem512 | Group::MlKem768 | Group::MlKem1024 => return None,
    })
}

/// From 5.4 on, for the IKE SA alone. ML-KEM-512 is not built in.
fn more(_: AddKe, method: Group) -> Option<&'static str> {
    match method {
        Group::MlKem512 => None,
        Group::MlKem768 => Some("ml_kem_768"),
        Group::MlKem1024 => Some("ml_kem_1024"),
        other => group(other),
    }
}

const WORDS: Words = Words {
    ike: encr,
    esp: encr,
    ike_integ: integ,
    esp_integ: integ,
    prf,
    group,
    ike_more: more,
    esp_more: fit::none,
};

pub fn render(m: &Mirror<'_>, notes: &mut Vec<String>) -> Result<Zeroizing<String>, ExportError> {
    let ike = fit::ike(m, &WORDS, notes)?;
    let ike = fit::coupled(ike, |integ, prf| integ == prf, m, notes)?;
    let esp = fit::esp(m, &WORDS, notes)?;
    let near = m.near.id.as_ref().map(|id| identity(m, "the peer", id)).transpose()?;
    let far = m.far.id.as_ref().map(|id| identity(m, "our gateway", id)).transpose()?;
    let mut out = Lines::new("#");
    out.head(m);
    let single = m.children.len() == 1;
    let common = if single { m.name.to_owned() } else { format!("{}-common", m.name) };
    line!(out, "conn {common}");
    line!(out, "\tikev2=yes");
    line!(out, "\tauthby=secret");
    match &m.near.address {
        Place::Ip(ip) => line!(out, "\tleft={ip}"),
        Place::Dns(_) | Place::Unknown => line!(out, "\tleft=%defaultroute"),
    }
    if let Some(id) = &near {
        line!(out, "\tleftid={id}");
    }
    match &m.far.address {
        Place::Ip(ip) => line!(out, "\tright={ip}"),
        Place::Dns(dns) => line!(out, "\tright={dns}"),
        Place::Unknown => line!(out, "\tright=%any"),
    }
    if let Some(id) = &far {
        line!(out, "\trightid={id}");
    }
    if ike.iter().any(|f| !f.more.is_empty()) {
        line!(out, "\tintermediate=yes");
        notes.push("IKE: libreswan has additional key exchanges (addke1=) from 5.4 on".into());
    }
    line!(out, "\tike={}", ike.iter().map(ike_text).collect::<Vec<_>>().join(","));
    line!(out, "\tesp={}", esp.iter().map(esp_text).collect::<Vec<_>>().join(","));
    line!(out, "\tpfs={}", if esp.iter().any(|f| !f.groups.is_empty()) { "yes" } else { "no" });
    let mut esn: Vec<bool> = esp.iter().flat_map(|f| f.esn.iter().copied()).collect();
    esn.sort_unstable();
    esn.dedup();
    let esn = match esn.as_slice() {
        [true] => "yes",
        [false] => "no",
        _ => "either",
    };
    line!(out, "\tesn={esn}");
    let product = m.product();
    let life = |what: &str, d: std::time::Duration, notes: &mut Vec<String>| {
        within(what, d.as_secs(), 1, 86_400, product, notes)
    };
    line!(out, "\tikelifetime={}s", life("ike.lifetime", m.ike.lifetime, notes));
    line!(out, "\tsalifetime={}s", life("esp.lifetime", m.esp.lifetime, notes));
    if m.esp.bytes.is_some() {
        notes.push("esp.bytes: libreswan 4 counts no volume; our own limit renews the keys".into());
    }
    if let Some(dpd) = m.ike.dpd {
        line!(out, "\tdpddelay={}", dpd.as_secs().max(1));
        line!(out, "\tdpdtimeout={}", dpd.as_secs().max(1) * 4);
        line!(out, "\tdpdaction={}", if m.start == Start::Active { "restart" } else { "clear" });
    }
    line!(out, "\treplay-window={}", m.esp.replay_window);
    line!(out, "\tfragmentation={}", if m.ike.fragmentation { "yes" } else { "no" });
    line!(out, "\tencapsulation={}", if m.ike.encap.is_forced() { "yes" } else { "auto" });
    for (n, child) in m.children.iter().enumerate() {
        if !single {
            line!(out, "");
            line!(out, "conn {}-{}", m.name, n + 1);
            line!(out, "\talso={common}");
        }
        networks(&mut out, "left", &child.near);
        networks(&mut out, "right", &child.far);
        let auto = match m.start {
            Start::Active => "start",
            Start::Passive => "add",
            Start::OnDemand => "ondemand",
        };
        line!(out, "\tauto={auto}");
    }
    line!(out, "");
    let ids = |id: &Option<String>| id.clone().unwrap_or_else(|| "%any".into());
    out.comment(&format!("Into /etc/ipsec.d/{}.secrets, mode 0600, without the # before it:", m.name));
    let key = m.key.with_0x();
    // A coded key stands without quotes.
    let quote = if matches!(m.key, super::mirror::Key::Hex(_)) { "" } else { "\"" };
    line!(out, "# {} {} : PSK {quote}{}{quote}", ids(&near), ids(&far), key.as_str());
    if m.children.iter().any(|c| c.near.len() > 1 || c.far.len() > 1) {
        notes.push("SPD rules: libreswan 4 makes a child SA for each pair of networks".into());
    }
    Ok(out.finish())
}

fn networks(out: &mut Lines, side: &str, all: &[IpRange]) {
    match all {
        [only] => line!(out, "\t{side}subnet={only}"),
        several => {
            let text = several.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            line!(out, "\t{side}subnets={{{text}}}");
        }
    }
}

fn ike_text(f: &Fit) -> String {
    // The second place is the PRF beside an AEAD, and both beside other ciphers (libreswan 4 has no fourth).
    let hashes = if f.integs.is_empty() { &f.prfs } else { &f.integs };
    let more = |(which, words): &(AddKe, Vec<Option<&'static str>>)| {
        let words: Vec<&str> = words.iter().map(|w| w.unwrap_or("none")).collect();
        format!(";addke{}={}", which.number(), words.join("+"))
    };
    let more: String = f.more.iter().map(more).collect();
    format!("{}-{}-{}{more}", f.encrs.join("+"), hashes.join("+"), f.groups.join("+"))
}

fn esp_text(f: &Fit) -> String {
    let integs = if f.integs.is_empty() { "none".to_owned() } else { f.integs.join("+") };
    let groups = if f.groups.is_empty() { "none".to_owned() } else { f.groups.join("+") };
    format!("{}-{integs}-{groups}", f.encrs.join("+"))
}

fn identity(m: &Mirror<'_>, whose: &'static str, id: &Identity) -> Result<String, ExportError> {
    match id {
        Identity::Ip(ip) => Ok(ip.to_string()),
        Identity::Fqdn(name) if is_word(name) && !name.contains('@') => Ok(format!("@{name}")),
        Identity::Email(name) if is_word(name) && name.contains('@') => Ok(name.clone()),
        Identity::KeyId(octets) => Ok(format!("@#{}", hex(octets).as_str())),
        Identity::Dn(_) => plain_dn(id)
            .map(|dn| format!("\"{dn}\""))
            .ok_or_else(|| refuse_id(m, whose, id, "it needs escapes")),
        _ => Err(refuse_id(m, whose, id, "it is no single word")),
    }
}
