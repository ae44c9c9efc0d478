//! Words that both dialects share: identities, addresses, networks, times.

use std::net::IpAddr;
use std::time::Duration;

use cygnet_model::IpRange;

use super::conn::Place;
use crate::config::identity::{self, Identity, RemoteId};

/// More networks on one side are not read.
pub const MAX_NETWORKS: usize = 256;
/// A range that takes more blocks is refused.
const MAX_BLOCKS: usize = 16;

/// What is said of marks.
pub const MARKED: &str = "packets need this mark before they meet the tunnel: a rule of nftables sets it, as a VTI or script did before";
/// What is said of shunts.
pub const SHUNT: &str =
    "what passes in clear text stands in bypass of the tunnel around it; nothing is dropped by rule";
/// What is said of further addresses.
pub const MORE_OF_OURS: &str = "the first one is taken; a gateway's address may be a list";
/// The same of the peer's.
pub const MORE_OF_THEIRS: &str =
    "the first one is taken; a second address of the peer is a second customer gateway and tunnel";

/// An identity as both swans write it.
pub fn remote_id(text: &str) -> Result<RemoteId, String> {
    let text = text.trim();
    match text {
        "%any" | "%any4" | "%any6" | "*" => return Ok(RemoteId::Any),
        "" => return Err("the identity is empty".into()),
        _ if text.starts_with('%') => return Err("it depends on what is found at run time".into()),
        _ => {}
    }
    own_id(text).map(RemoteId::Is)
}

/// The same where it must be one.
pub fn own_id(text: &str) -> Result<Identity, String> {
    let text = text.trim();
    let read = |t: String| identity::identity(&t).map_err(|w| format!("{}; {}", w.what, w.fix));
    let from_hex = |hex: &str| identity::from_hex(hex).filter(|o| !o.is_empty());
    let typed = |kind: &str, value: &str| match value.strip_prefix('#').map(from_hex) {
        Some(Some(octets)) => match String::from_utf8(octets) {
            Ok(value) => read(format!("{kind}:{value}")),
            Err(_) => Err("it is no text".to_owned()),
        },
        Some(None) => Err("what follows # is not hexadecimal".to_owned()),
        None => read(format!("{kind}:{value}")),
    };
    if let Some(hex) = text.strip_prefix("@#") {
        let hex = hex.strip_prefix("0x").unwrap_or(hex);
        return from_hex(hex).map(Identity::KeyId).ok_or_else(|| "what follows @# is not hexadecimal".into());
    }
    if let Some(key_id) = text.strip_prefix("@[").and_then(|t| t.strip_suffix(']')) {
        return read(format!("keyid-text:{key_id}"));
    }
    if text.starts_with("@~") {
        return Err("names in DER are not read; write dn: and its parts".into());
    }
    if let Some(email) = text.strip_prefix("@@") {
        return typed("email", email);
    }
    if let Some(name) = text.strip_prefix('@') {
        return typed("fqdn", name);
    }
    if let Some((kind, value)) = text.split_once(':') {
        match kind {
            "fqdn" | "dns" => return typed("fqdn", value),
            "rfc822" | "email" | "userfqdn" => return typed("email", value),
            "keyid" => {
                return match value.strip_prefix('#') {
                    Some(hex) => from_hex(hex)
                        .map(Identity::KeyId)
                        .ok_or_else(|| "what follows # is not hexadecimal".into()),
                    None => read(format!("keyid-text:{value}")),
                };
            }
            "ipv4" | "ipv6" => return read(format!("ip:{value}")),
            "asn1dn" if value.starts_with('#') => {
                return Err("names in DER are not read; write dn: and its parts".into());
            }
            "asn1dn" => return read(format!("dn:{value}")),
            _ => {}
        }
    }
    if text.parse::<IpAddr>().is_ok() {
        return read(text.to_owned());
    }
    if text.contains('*') || text.starts_with('^') {
        return Err("patterns match more than one identity".into());
    }
    if text.contains('=') {
        // strongSwan also writes /C=DE/O=Example.
        let slashed = text.strip_prefix('/').map(|t| t.replace('/', ", "));
        return read(format!("dn:{}", slashed.as_deref().unwrap_or(text)));
    }
    if text.contains('@') {
        return typed("email", text);
    }
    typed("fqdn", text)
}

/// The place of an end: the first that is named, and the others.
pub fn place(text: &str) -> Result<(Place, Vec<String>), String> {
    let mut words = text.split([',', ' ', '\t']).map(str::trim).filter(|w| !w.is_empty());
    let Some(first) = words.next() else { return Ok((Place::Unknown, Vec::new())) };
    let others: Vec<String> = words.take(MAX_NETWORKS).map(str::to_owned).collect();
    let place = match first {
        "%any" | "%any4" | "%any6" | "%group" | "%opportunistic" | "0.0.0.0" | "::" | "%dynamic" => {
            Place::Any
        }
        "%defaultroute" => Place::Unknown,
        _ => match first.strip_prefix('%') {
            Some(interface) => {
                identity::interface_name(interface).map(Place::Interface).map_err(|w| w.what)?
            }
            None => match first.parse::<IpAddr>() {
                Ok(ip) => Place::Ip(ip),
                // A subnet or range of peers.
                Err(_) if first.contains('/') || is_range(first) => Place::Any,
                Err(_) => identity::host_name(first).map(Place::Dns).map_err(|w| w.what)?,
            },
        },
    };
    Ok((place, others))
}

fn is_range(text: &str) -> bool {
    text.split_once('-').is_some_and(|(a, b)| a.parse::<IpAddr>().is_ok() && b.parse::<IpAddr>().is_ok())
}

/// Networks of one side, and what is to be said about them.
#[derive(Debug, Default)]
pub struct Networks {
    /// The blocks; empty: the end's own address.
    pub blocks: Vec<IpRange>,
    /// What became something else, or nothing.
    pub remarks: Vec<String>,
}

/// Reads networks as both swans write them: blocks, addresses, ranges, `dynamic`, each perhaps with protocol and port.
pub fn networks(text: &str) -> Result<Networks, String> {
    let mut out = Networks::default();
    let text = text.trim().trim_start_matches('{').trim_end_matches('}');
    for word in text.split([',', ' ', '\t']).map(str::trim).filter(|w| !w.is_empty()) {
        if out.blocks.len() >= MAX_NETWORKS {
            return Err(format!("more than {MAX_NETWORKS} networks"));
        }
        let (block, ports) = match word.split_once('[') {
            Some((block, ports)) => (block, Some(ports.trim_end_matches(']'))),
            None => (word, None),
        };
        if let Some(ports) = ports.filter(|p| !p.is_empty() && *p != "any" && *p != "%any") {
            out.remarks.push(format!(
                "[{ports}]: rules are for all protocols and ports, and the tunnel protects all of the network's packets"
            ));
        }
        match block {
            "dynamic" | "%dynamic" => continue,
            _ if block.starts_with("vhost:") || block.starts_with("vnet:") || block.starts_with('%') => {
                return Err("virtual networks of remote users have no counterpart".into());
            }
            _ => {}
        }
        if let Some((first, last)) = block.split_once('-') {
            let range = first.parse().ok().zip(last.parse().ok()).and_then(|(a, b)| IpRange::new(a, b));
            let range = range.ok_or("it is no range of addresses")?;
            let prefixes = range.prefixes();
            if prefixes.len() > MAX_BLOCKS {
                return Err(format!("the range takes more than {MAX_BLOCKS} blocks"));
            }
            if prefixes.len() > 1 {
                out.remarks.push(format!("{block}: the range is written as {} blocks", prefixes.len()));
            }
            out.blocks.extend(prefixes.into_iter().filter_map(|(a, l)| IpRange::cidr(a, l)));
            continue;
        }
        out.blocks.push(cidr(block, &mut out.remarks)?);
    }
    // The same one twice, or one inside another, says nothing more.
    out.blocks = crate::config::draft::outermost(out.blocks);
    Ok(out)
}

fn cidr(text: &str, remarks: &mut Vec<String>) -> Result<IpRange, String> {
    let (addr, len) = text.split_once('/').unwrap_or((text, ""));
    let addr: IpAddr = addr.parse().map_err(|_| "it is no network".to_owned())?;
    let width = if addr.is_ipv4() { 32 } else { 128 };
    let len = match len {
        "" => width,
        // As in 10.0.0.0/255.0.0.0.
        mask if mask.contains('.') => {
            let mask: std::net::Ipv4Addr = mask.parse().map_err(|_| "it is no network".to_owned())?;
            let ones = mask.to_bits().leading_ones();
            if mask.to_bits().count_ones() != ones {
                return Err("its mask has holes".into());
            }
            u8::try_from(ones).unwrap_or(width)
        }
        len => len.parse().ok().filter(|l| *l <= width).ok_or_else(|| "it is no network".to_owned())?,
    };
    let block = IpRange::cidr(addr, len).ok_or_else(|| "it is no network".to_owned())?;
    if block.start() != addr {
        remarks.push(format!("{addr}/{len}: it is the network {block}"));
    }
    Ok(block)
}

/// A time: seconds, or a number and a unit.
pub fn time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale = match unit.trim() {
        "" | "s" | "sec" | "secs" => 1,
        "m" | "min" | "mins" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err("it is no time".into()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
    seconds.map(Duration::from_secs).ok_or_else(|| "it is no time".into())
}

/// A number, perhaps with K, M or G.
pub fn number(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale = match unit.trim() {
        "" | "B" => 1,
        "k" | "K" | "KiB" => 1 << 10,
        "m" | "M" | "MiB" => 1 << 20,
        "g" | "G" | "GiB" => 1 << 30,
        _ => return Err("it is no number".into()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or_else(|| "it is no number".into())
}

/// Yes or no.
pub fn yes(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "yes" | "true" | "1" | "on" | "enabled" | "insist" | "force" | "always" | "propose" | "permit" => {
            Some(true)
        }
        "no" | "false" | "0" | "off" | "disabled" | "never" => Some(false),
        _ => None,
    }
}

/// A name of ours made of one of theirs: what has no place in it becomes `-`.
pub fn name(text: &str) -> String {
    let ok = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = text.chars().map(ok).take(56).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "unnamed".into() } else { name.to_owned() }
}
