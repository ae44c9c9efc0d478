//! FortiGate (FortiOS 7.0 and later): interface mode, one phase 2 for each pair of networks.

use std::net::IpAddr;

use cygnet_model::IpRange;
use cygnet_model::addke::AddKe;
use cygnet_model::suite::{Encr, Group, Integ, Prf};
use zeroize::Zeroizing;

use super::ExportError;
use super::fit::{self, Fit, Words, number};
use super::mirror::{Mirror, Place};
use super::text::{Lines, in_quotes, is_word, key_id_text, line, refuse_id, within};
use crate::config::{Identity, Start};

fn encr(e: Encr) -> Option<&'static str> {
    Some(match e {
        Encr::AesGcm16_128 => "aes128gcm",
        Encr::AesGcm16_256 => "aes256gcm",
        Encr::AesCbc128 => "aes128",
        Encr::AesCbc192 => "aes192",
        Encr::AesCbc256 => "aes256",
        Encr::ChaCha20Poly1305 => "chacha20poly1305",
        Encr::TripleDesCbc => "3des",
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

/// Beside other ciphers than AEADs it is that of the integrity algorithm.
fn prf(p: Prf) -> Option<&'static str> {
    Some(match p {
        Prf::HmacSha256 => "prfsha256",
        Prf::HmacSha384 => "prfsha384",
        Prf::HmacSha512 => "prfsha512",
        Prf::HmacSha1 => "prfsha1",
    })
}

fn group(g: Group) -> Option<&'static str> {
    (!g.is_kem()).then_some(number(g))
}

/// From 7.6.6 on.
fn more(_: AddKe, method: Group) -> Option<&'static str> {
    method.is_kem().then_some(number(method))
}

const WORDS: Words = Words {
    ike: encr,
    esp: encr,
    ike_integ: integ,
    esp_integ: integ,
    prf,
    group,
    ike_more: more,
    esp_more: more,
};
/// The longest name of a phase 1, which is also an interface's.
const MAX_NAME: usize = 15;
/// The most methods of an additional key exchange of one number.
const MAX_ADDITIONAL: usize = 3;

pub fn render(m: &Mirror<'_>, notes: &mut Vec<String>) -> Result<Zeroizing<String>, ExportError> {
    let ike = fit::ike(m, &WORDS, notes)?;
    let ike = fit::coupled(ike, |integ, prf| prf.strip_prefix("prf") == Some(integ), m, notes)?;
    let esp = fit::esp(m, &WORDS, notes)?;
    fit::without_esn(&esp, m)?;
    let product = m.product();
    let name: String = m.name.chars().take(MAX_NAME).collect();
    if name.len() < m.name.len() {
        notes.push(format!("name: {product} takes {MAX_NAME} characters; the tunnel is called {name} there"));
    }
    let far = match &m.far.address {
        Place::Ip(ip) => Some(*ip),
        Place::Dns(_) | Place::Unknown => None,
    };
    let v6 = far.is_some_and(|ip| ip.is_ipv6());
    let mut out = Lines::new("#");
    out.head(m);
    line!(out, "config vpn ipsec phase1-interface");
    line!(out, "    edit \"{name}\"");
    line!(out, "        set interface \"wan1\"");
    line!(out, "        set ike-version 2");
    if v6 {
        line!(out, "        set ip-version 6");
    }
    match (m.near.address.ip(), v6) {
        (Some(ip), true) => line!(out, "        set local-gw6 {ip}"),
        (Some(ip), false) => line!(out, "        set local-gw {ip}"),
        (None, _) => {}
    }
    match (&m.far.address, v6) {
        (Place::Ip(ip), true) => line!(out, "        set remote-gw6 {ip}"),
        (Place::Ip(ip), false) => line!(out, "        set remote-gw {ip}"),
        (Place::Dns(dns), _) => {
            line!(out, "        set type ddns");
            line!(out, "        set remotegw-ddns \"{dns}\"");
        }
        (Place::Unknown, _) => line!(out, "        set remote-gw {}", m.far_ip()?),
    }
    line!(out, "        set net-device disable");
    if let Some(id) = &m.near.id {
        let (kind, text) = identity(m, "the peer", id)?;
        line!(out, "        set localid-type {kind}");
        line!(out, "        set localid {}", in_quotes(&text));
    }
    match &m.far.id {
        Some(id) => {
            line!(out, "        set peertype one");
            line!(out, "        set peerid {}", in_quotes(&identity(m, "our gateway", id)?.1));
        }
        None => line!(out, "        set peertype any"),
    }
    line!(out, "        set proposal {}", each_once(ike.iter().flat_map(ike_words)).join(" "));
    line!(out, "        set dhgrp {}", groups(&ike).join(" "));
    additional(&mut out, &ike, notes);
    let lifetime = within("ike.lifetime", m.ike.lifetime.as_secs(), 120, 172_800, product, notes);
    line!(out, "        set keylife {lifetime}");
    match m.ike.dpd {
        Some(dpd) => {
            let dpd = within("ike.dpd", dpd.as_secs(), 1, 3600, product, notes);
            line!(out, "        set dpd on-idle");
            line!(out, "        set dpd-retrycount 4");
            line!(out, "        set dpd-retryinterval {dpd}");
        }
        None => line!(out, "        set dpd disable"),
    }
    line!(out, "        set nattraversal {}", if m.ike.encap.is_forced() { "forced" } else { "enable" });
    line!(out, "        set fragmentation {}", if m.ike.fragmentation { "enable" } else { "disable" });
    line!(out, "        set passive-mode {}", if m.start == Start::Passive { "enable" } else { "disable" });
    line!(out, "        set psksecret \"{}\"", m.key.with_0x().as_str());
    line!(out, "    next");
    line!(out, "end");

    let pfs = groups(&esp);
    if esp.iter().any(|f| f.groups.is_empty()) && !pfs.is_empty() {
        notes.push("PFS: FortiOS has it for all proposals or for none; it has it".into());
    }
    let lifetime = within("esp.lifetime", m.esp.lifetime.as_secs(), 120, 172_800, product, notes);
    line!(out, "config vpn ipsec phase2-interface");
    for (n, (near, far)) in m.pairs().iter().enumerate() {
        line!(out, "    edit \"{name}-{}\"", n + 1);
        line!(out, "        set phase1name \"{name}\"");
        line!(out, "        set proposal {}", each_once(esp.iter().flat_map(esp_words)).join(" "));
        if pfs.is_empty() {
            line!(out, "        set pfs disable");
        } else {
            line!(out, "        set pfs enable");
            line!(out, "        set dhgrp {}", pfs.join(" "));
            additional(&mut out, &esp, notes);
        }
        if let Some(bytes) = m.esp.bytes {
            let kb = within("esp.bytes (kilobytes)", bytes / 1000, 5120, 4_294_967_295, product, notes);
            line!(out, "        set keylife-type both");
            line!(out, "        set keylifekbs {kb}");
        }
        line!(out, "        set keylifeseconds {lifetime}");
        line!(out, "        set replay {}", if m.esp.replay_window == 0 { "disable" } else { "enable" });
        line!(
            out,
            "        set auto-negotiate {}",
            if m.start == Start::Active { "enable" } else { "disable" }
        );
        subnet(&mut out, "src", near);
        subnet(&mut out, "dst", far);
        line!(out, "    next");
    }
    line!(out, "end");
    for (family, v6) in [("static", false), ("static6", true)] {
        let networks: Vec<IpRange> =
            m.far_networks().into_iter().filter(|b| b.start().is_ipv6() == v6).collect();
        if networks.is_empty() {
            continue;
        }
        line!(out, "config router {family}");
        for block in networks {
            line!(out, "    edit 0");
            line!(out, "        set dst {}", if v6 { block.to_string() } else { with_mask(&block) });
            line!(out, "        set device \"{name}\"");
            line!(out, "    next");
        }
        line!(out, "end");
    }
    if ike.iter().chain(&esp).any(|f| !f.more.is_empty()) {
        notes.push("addke: FortiOS has it from 7.6.6 on; elsewhere leave these lines out of the text".into());
    }
    notes.push(
        "interface: write the public interface for wan1, and firewall policies between it and the networks"
            .into(),
    );
    Ok(out.finish())
}

fn ike_words(f: &Fit) -> Vec<String> {
    let hashes = if f.integs.is_empty() { &f.prfs } else { &f.integs };
    f.encrs.iter().flat_map(|e| hashes.iter().map(move |h| format!("{e}-{h}"))).collect()
}

fn esp_words(f: &Fit) -> Vec<String> {
    if f.integs.is_empty() {
        return f.encrs.iter().map(|e| (*e).to_owned()).collect();
    }
    f.encrs.iter().flat_map(|e| f.integs.iter().map(move |h| format!("{e}-{h}"))).collect()
}

fn each_once<T: PartialEq>(words: impl Iterator<Item = T>) -> Vec<T> {
    let mut out = Vec::new();
    for word in words {
        if !out.contains(&word) {
            out.push(word);
        }
    }
    out
}

/// All groups; FortiOS has them for all proposals.
fn groups(fits: &[Fit]) -> Vec<&'static str> {
    each_once(fits.iter().flat_map(|f| f.groups.iter().copied()))
}

/// Additional key exchanges, which are for all proposals as well: 0 where a proposal may do without one.
fn additional(out: &mut Lines, fits: &[Fit], notes: &mut Vec<String>) {
    for which in AddKe::all() {
        let of = |f: &Fit| -> Vec<&'static str> {
            let words = f.more.iter().find(|(w, _)| *w == which).map(|(_, words)| words.as_slice());
            words.unwrap_or(&[None]).iter().map(|word| word.unwrap_or("0")).collect()
        };
        let mut words = each_once(fits.iter().flat_map(of));
        if words.len() > MAX_ADDITIONAL {
            notes.push(format!("addke: FortiOS takes {MAX_ADDITIONAL} of each number; some are left out"));
            // Those that are wanted least; whether it may be left out stays.
            let last = words.pop().filter(|word| *word == "0");
            words.truncate(MAX_ADDITIONAL - last.iter().len());
            words.extend(last);
        }
        if words != ["0"] {
            line!(out, "        set addke{} {}", which.number(), words.join(" "));
        }
    }
}

fn subnet(out: &mut Lines, side: &str, block: &IpRange) {
    if block.start().is_ipv6() {
        line!(out, "        set {side}-addr-type subnet6");
        line!(out, "        set {side}-subnet6 {block}");
    } else {
        line!(out, "        set {side}-addr-type subnet");
        line!(out, "        set {side}-subnet {}", with_mask(block));
    }
}

fn with_mask(block: &IpRange) -> String {
    match (block.start(), block.end()) {
        (IpAddr::V4(start), IpAddr::V4(end)) => {
            format!("{start} {}", std::net::Ipv4Addr::from_bits(!(start.to_bits() ^ end.to_bits())))
        }
        _ => block.to_string(),
    }
}

fn identity(
    m: &Mirror<'_>,
    whose: &'static str,
    id: &Identity,
) -> Result<(&'static str, String), ExportError> {
    match id {
        Identity::Ip(ip) => Ok(("address", ip.to_string())),
        Identity::Fqdn(name) if is_word(name) => Ok(("fqdn", name.clone())),
        Identity::Email(name) if is_word(name) => Ok(("user-fqdn", name.clone())),
        Identity::KeyId(octets) => match key_id_text(octets) {
            Some(text) => Ok(("keyid", text.to_owned())),
            None => Err(refuse_id(m, whose, id, "a key id has to be a printable word")),
        },
        Identity::Dn(_) => Err(refuse_id(m, whose, id, "it takes it from a certificate only")),
        Identity::Fqdn(_) | Identity::Email(_) => Err(refuse_id(m, whose, id, "it is no single word")),
    }
}
