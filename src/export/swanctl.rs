//! swanctl.conf of strongSwan. Its proposals are written as ours.

use std::fmt::Display;

use cygnet_model::addke::AdditionalOffer;
use cygnet_model::suite::Group;
use zeroize::Zeroizing;

use super::ExportError;
use super::mirror::{Mirror, Place};
use super::text::{Lines, hex, in_quotes, is_word, line, plain_dn};
use crate::config::{DpdAction, Identity, Start};

/// Longest retry interval that means "as long as it takes".
const FOREVER: u8 = 0;

pub fn render(m: &Mirror<'_>, notes: &mut Vec<String>) -> Result<Zeroizing<String>, ExportError> {
    let mut out = Lines::new("#");
    out.head(m);
    // A dot would be a level of its own.
    let name = m.name.replace('.', "_");
    line!(out, "connections {{");
    line!(out, "  {name} {{");
    line!(out, "    version = 2");
    if let Place::Ip(ip) = &m.near.address {
        line!(out, "    local_addrs = {ip}");
    }
    match &m.far.address {
        Place::Ip(ip) => line!(out, "    remote_addrs = {ip}"),
        Place::Dns(dns) => line!(out, "    remote_addrs = {dns}"),
        Place::Unknown => line!(out, "    remote_addrs = %any"),
    }
    line!(out, "    proposals = {}", list(&m.ike.proposals));
    line!(out, "    rekey_time = {}s", m.ike.lifetime.as_secs());
    line!(out, "    dpd_delay = {}s", m.ike.dpd.map_or(0, |d| d.as_secs().max(1)));
    line!(out, "    keyingtries = {FOREVER}");
    line!(out, "    mobike = no");
    if !m.ike.fragmentation {
        line!(out, "    fragmentation = no");
    }
    if m.ike.encap.is_forced() {
        line!(out, "    encap = yes");
    }
    let near = m.near.id.as_ref().map(identity);
    let far = m.far.id.as_ref().map(identity);
    line!(out, "    local {{");
    line!(out, "      auth = psk");
    if let Some(id) = &near {
        line!(out, "      id = {id}");
    }
    line!(out, "    }}");
    line!(out, "    remote {{");
    line!(out, "      auth = psk");
    line!(out, "      id = {}", far.as_deref().unwrap_or("%any"));
    line!(out, "    }}");
    line!(out, "    children {{");
    for (n, child) in m.children.iter().enumerate() {
        let number = if m.children.len() > 1 { format!("-{}", n + 1) } else { String::new() };
        line!(out, "      {name}{number} {{");
        line!(out, "        local_ts = {}", list(&child.near));
        line!(out, "        remote_ts = {}", list(&child.far));
        line!(out, "        esp_proposals = {}", list(&m.esp.proposals));
        line!(out, "        rekey_time = {}s", m.esp.lifetime.as_secs());
        // 0: volume does not count.
        line!(out, "        rekey_bytes = {}", m.esp.bytes.unwrap_or(0));
        line!(out, "        replay_window = {}", m.esp.replay_window);
        let action = match m.start {
            Start::Active => "start",
            Start::Passive => "none",
            Start::OnDemand => "trap",
        };
        line!(out, "        start_action = {action}");
        let dpd = match (m.start, m.esp.dpd_action) {
            (Start::OnDemand, _) => "trap",
            (Start::Active, DpdAction::Restart | DpdAction::Clear) => "restart",
            (Start::Passive, _) => "clear",
        };
        line!(out, "        dpd_action = {dpd}");
        line!(out, "      }}");
    }
    line!(out, "    }}");
    line!(out, "  }}");
    line!(out, "}}");
    line!(out, "secrets {{");
    line!(out, "  ike-{name} {{");
    for (n, id) in near.iter().chain(&far).enumerate() {
        line!(out, "    id-{} = {id}", n + 1);
    }
    line!(out, "    secret = \"{}\"", m.key.with_0x().as_str());
    line!(out, "  }}");
    line!(out, "}}");
    let kem = |offer: &AdditionalOffer| offer.methods().any(Group::is_kem);
    if m.ike.proposals.iter().any(|p| kem(&p.additional))
        || m.esp.proposals.iter().any(|p| kem(&p.additional))
    {
        notes.push(
            "mlkem: strongSwan has it from 6.0 on, by its plugin ml, or by openssl, botan or wolfssl if they have it; without any \
             of them it selects it all the same and fails: then leave these proposals out of the text"
                .into(),
        );
    }
    if m.esp.proposals.iter().any(|p| p.esn.contains(&true)) {
        notes.push(
            "esn: strongSwan's ESP in userspace (kernel-libipsec) has none; with it, leave esn out of esp_proposals".into(),
        );
    }
    if m.start == Start::Passive {
        notes.push("start: we begin; start_action = start makes strongSwan begin as well".into());
    }
    Ok(out.finish())
}

fn list<T: Display>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// An identity as strongSwan reads it, whatever it looks like: by its type where a word would be taken for another one.
fn identity(id: &Identity) -> String {
    match id {
        Identity::Ip(ip) => ip.to_string(),
        Identity::Fqdn(name) if plain_name(name) => name.clone(),
        Identity::Fqdn(name) if is_word(name) => format!("fqdn:{name}"),
        Identity::Fqdn(name) => in_quotes(&format!("fqdn:#{}", hex(name.as_bytes()).as_str())),
        Identity::Email(name) if is_word(name) => format!("rfc822:{name}"),
        Identity::Email(name) => in_quotes(&format!("rfc822:#{}", hex(name.as_bytes()).as_str())),
        Identity::KeyId(octets) => in_quotes(&format!("@#{}", hex(octets).as_str())),
        Identity::Dn(name) => plain_dn(id).map_or_else(
            || in_quotes(&format!("asn1dn:#{}", hex(&name.to_der()).as_str())),
            |text| in_quotes(&text),
        ),
    }
}

/// A DNS name that nothing else can be.
fn plain_name(name: &str) -> bool {
    let label = |l: &str| !l.is_empty() && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    name.contains('.') && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.split('.').all(label)
}
