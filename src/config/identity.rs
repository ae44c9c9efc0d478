//! Names and addresses as the configuration writes them: object names, IKE identities, DNS names, CIDR blocks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cygnet_model::IpRange;

use super::dn::Dn;
use super::error::{Wrong, quoted, wrong};

/// An IKE identity (RFC 7296 §3.5) in the forms that a configuration can name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Identity {
    /// ID_IPV4_ADDR or ID_IPV6_ADDR.
    Ip(IpAddr),
    /// ID_FQDN.
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Email(String),
    /// ID_KEY_ID.
    KeyId(Vec<u8>),
    /// ID_DER_ASN1_DN.
    Dn(Dn),
}

/// Who the peer of a tunnel may be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RemoteId {
    /// Whoever knows the key.
    Any,
    /// This one.
    Is(Identity),
}

impl fmt::Display for RemoteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str(ANY),
            Self::Is(id) => id.fmt(f),
        }
    }
}

/// The word for whoever knows the key.
const ANY: &str = "any";

/// Reads the identity of a peer: any, or what [`identity`] reads.
pub fn remote_id(text: &str) -> Result<RemoteId, Wrong> {
    if text == ANY { Ok(RemoteId::Any) } else { identity(text).map(RemoteId::Is) }
}

/// How long an identity may be; longer ones do not fit an AUTH exchange without fragmentation.
const MAX_IDENTITY: usize = 255;

impl Identity {
    /// The type and octets of the ID payload.
    pub fn to_wire(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Ip(IpAddr::V4(a)) => (1, a.octets().to_vec()),
            Self::Fqdn(name) => (2, name.as_bytes().to_vec()),
            Self::Email(name) => (3, name.as_bytes().to_vec()),
            Self::Ip(IpAddr::V6(a)) => (5, a.octets().to_vec()),
            Self::Dn(name) => (9, name.to_der()),
            Self::KeyId(id) => (11, id.clone()),
        }
    }

    /// Whether both mean the same one; DNS names are compared without regard to case.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fqdn(a), Self::Fqdn(b)) | (Self::Email(a), Self::Email(b)) => a.eq_ignore_ascii_case(b),
            (a, b) => a == b,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(a) => write!(f, "{a}"),
            // A text that alone would be taken for something else needs its type.
            Self::Fqdn(name) if identity(name).as_ref() == Ok(self) => f.write_str(name),
            Self::Fqdn(name) => write!(f, "fqdn:{name}"),
            Self::Email(name) if identity(name).as_ref() == Ok(self) => f.write_str(name),
            Self::Email(name) => write!(f, "email:{name}"),
            Self::Dn(name) => write!(f, "dn:{name}"),
            Self::KeyId(id) => {
                f.write_str("keyid:")?;
                id.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    }
}

/// Reads an identity: IP address, DNS name, `user@host`, or a type and what it carries: `ip:`, `fqdn:`, `email:`, `dn:`,
/// `keyid:` with hexadecimal digits, `keyid-text:`.
pub fn identity(text: &str) -> Result<Identity, Wrong> {
    let fix = "write an IP address, a DNS name, user@host, or a type before it: ip:, fqdn:, email:, dn:, keyid: and \
               hexadecimal digits, keyid-text:";
    if text.is_empty() {
        return Err(wrong("the identity is empty", fix));
    }
    if text == ANY {
        let fix = "name the one that we are; fqdn:any is the name";
        return Err(wrong("any can only be said of the peer", fix));
    }
    if text.len() > MAX_IDENTITY {
        return Err(wrong(format!("the identity has more than {MAX_IDENTITY} octets"), fix));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Identity::Ip(ip));
    }
    // Peers send what their owners typed, whatever its type (an address as FQDN), so a type takes any text.
    match text.split_once(':') {
        Some(("ip", text)) => return ip(text).map(Identity::Ip),
        Some(("fqdn", text)) => return typed("fqdn:", text).map(Identity::Fqdn),
        Some(("email", text)) => return typed("email:", text).map(Identity::Email),
        Some(("keyid-text", text)) => return typed("keyid-text:", text).map(|t| Identity::KeyId(t.into())),
        Some(("dn", text)) => return Dn::read(text).map(Identity::Dn),
        Some(("keyid", hex)) => {
            return match from_hex(hex) {
                Some(id) if !id.is_empty() => Ok(Identity::KeyId(id)),
                _ => Err(wrong(
                    "what follows keyid: is not an even number of hexadecimal digits",
                    "write keyid:c0ffee, or keyid-text: and the text",
                )),
            };
        }
        _ => {}
    }
    if let Some(name) = text.strip_prefix('@') {
        return host_name(name).map(Identity::Fqdn).map_err(|_| {
            let fix = "write a DNS name behind @, or fqdn: before a text that is none";
            wrong(format!("{} is not a DNS name", quoted(name)), fix)
        });
    }
    if let Some((user, host)) = text.split_once('@') {
        let user_ok =
            !user.is_empty() && user.chars().all(|c| c.is_ascii_alphanumeric() || "._+-=~".contains(c));
        return match host_name(host) {
            Ok(_) if user_ok => Ok(Identity::Email(text.to_owned())),
            _ => Err(wrong(format!("{} is not of the form user@host", quoted(text)), fix)),
        };
    }
    match host_name(text) {
        Ok(name) => Ok(Identity::Fqdn(name)),
        Err(_) => Err(wrong(format!("{} is not an identity", quoted(text)), fix)),
    }
}

/// The text behind the type of an identity: printable ASCII, which no terminal and no peer can mistake.
fn typed(kind: &str, text: &str) -> Result<String, Wrong> {
    let edge = text.starts_with(' ') || text.ends_with(' ');
    if text.is_empty() || edge || !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        let what = format!("{} behind {kind} is not a printable text", quoted(text));
        return Err(wrong(what, "write ASCII characters, without a space at either end"));
    }
    Ok(text.to_owned())
}

/// Reads hexadecimal digits, two for an octet.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|n| u8::from_str_radix(text.get(n..n + 2)?, 16).ok()).collect()
}

/// A DNS name. A last label of digits is refused, because it can only be a misspelt IPv4 address.
pub fn host_name(text: &str) -> Result<String, Wrong> {
    let fix = "write an IP address or a DNS name, as in vpn.example.org";
    let labels: Vec<&str> = text.split('.').collect();
    let label_ok = |l: &&str| {
        (1..=63).contains(&l.len())
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if labels.last().is_some_and(|l| !l.is_empty() && l.bytes().all(|b| b.is_ascii_digit())) {
        return Err(wrong(format!("{} is not an IP address", quoted(text)), fix));
    }
    if text.len() > 253 || !labels.iter().all(label_ok) {
        return Err(wrong(format!("{} is neither an IP address nor a DNS name", quoted(text)), fix));
    }
    Ok(text.to_owned())
}

/// The name of a gateway, customer gateway or tunnel. It ends up in file names, labels and command lines.
pub fn object_name(text: &str) -> Result<String, Wrong> {
    let fix =
        "write 1 to 63 letters, digits, \".\", \"_\" or \"-\", the first one a letter, a digit or \"_\"";
    let ok = (1..=63).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !text.starts_with(['.', '-']);
    if ok { Ok(text.to_owned()) } else { Err(wrong(format!("{} is not a usable name", quoted(text)), fix)) }
}

/// A network interface's name, by the kernel's rule.
pub fn interface_name(text: &str) -> Result<String, Wrong> {
    let ok = (1..=15).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && text != "."
        && text != "..";
    if ok {
        Ok(text.to_owned())
    } else {
        Err(wrong(
            format!("{} is not an interface's name", quoted(text)),
            "write 1 to 15 printable characters without \"/\" and \":\"",
        ))
    }
}

/// A CIDR block; a lone address is a block of one. Host bits must be zero.
pub fn cidr(text: &str) -> Result<IpRange, Wrong> {
    let fix = "write a CIDR block, as in 10.1.0.0/16 or fd00:1::/48";
    let (addr, len) = match text.split_once('/') {
        Some((a, l)) => (a, Some(l)),
        None => (text, None),
    };
    let addr: IpAddr =
        addr.parse().map_err(|_| wrong(format!("{} is not a CIDR block", quoted(text)), fix))?;
    let width = if addr.is_ipv4() { 32 } else { 128 };
    let len = match len {
        None => width,
        Some(l) if l.bytes().all(|b| b.is_ascii_digit()) && (1..=3).contains(&l.len()) => l
            .parse::<u8>()
            .ok()
            .filter(|l| *l <= width)
            .ok_or_else(|| wrong(format!("prefix length /{l} is longer than an address"), fix))?,
        Some(_) => return Err(wrong(format!("{} has no prefix length after \"/\"", quoted(text)), fix)),
    };
    let range = IpRange::cidr(addr, len)
        .ok_or_else(|| wrong(format!("{} is not a CIDR block", quoted(text)), fix))?;
    if range.start() != addr {
        return Err(wrong(
            format!("{} has bits set beyond its prefix", quoted(text)),
            format!("write {range}, or {addr}/{width} for the single address"),
        ));
    }
    Ok(range)
}

/// An address that a host can have towards others.
pub fn unicast(text: &str) -> Result<IpAddr, Wrong> {
    let addr = ip(text)?;
    let refuse = |why: &str| Err(wrong(format!("{addr} is {why}"), "write the address of a host"));
    match addr {
        a if a.is_unspecified() => refuse("the unspecified address"),
        a if a.is_multicast() => refuse("a multicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => refuse("the broadcast address"),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => refuse("an IPv4 address in IPv6 form"),
        a => Ok(a),
    }
}

/// An IP address.
pub fn ip(text: &str) -> Result<IpAddr, Wrong> {
    text.parse().map_err(|_| {
        let fix = "write an IPv4 or IPv6 address without a prefix length";
        wrong(format!("{} is not an IP address", quoted(text)), fix)
    })
}

/// Why a customer gateway must not have this address, or nothing.
pub fn forbidden_peer(addr: IpAddr) -> Option<&'static str> {
    match addr {
        IpAddr::V4(a) => forbidden_peer_v4(a),
        IpAddr::V6(a) => forbidden_peer_v6(a),
    }
}

fn forbidden_peer_v4(a: Ipv4Addr) -> Option<&'static str> {
    match a.octets() {
        [255, 255, 255, 255] => Some("the broadcast address"),
        [0, ..] => Some("in 0.0.0.0/8, which means \"this network\""),
        [127, ..] => Some("in 127.0.0.0/8, the loopback network"),
        [169, 254, ..] => Some("in 169.254.0.0/16, the link-local network"),
        [224..=239, ..] => Some("in 224.0.0.0/4, the multicast network"),
        [1..=126, 0, 0, 0] => Some("the network address of a class A network"),
        [1..=126, 255, 255, 255] => Some("the broadcast address of a class A network"),
        [128..=191, _, 0, 0] => Some("the network address of a class B network"),
        [128..=191, _, 255, 255] => Some("the broadcast address of a class B network"),
        [192..=223, _, _, 0] => Some("the network address of a class C network"),
        [192..=223, _, _, 255] => Some("the broadcast address of a class C network"),
        _ => None,
    }
}

fn forbidden_peer_v6(a: Ipv6Addr) -> Option<&'static str> {
    match a {
        a if a.is_unspecified() => Some("the unspecified address"),
        a if a.is_loopback() => Some("the loopback address"),
        a if a.is_multicast() => Some("a multicast address"),
        a if a.is_unicast_link_local() => Some("a link-local address"),
        a if a.to_ipv4_mapped().is_some() => Some("an IPv4 address in IPv6 form"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_have_their_types() {
        let wire = |t| identity(t).unwrap().to_wire();
        assert_eq!(wire("192.0.2.1"), (1, vec![192, 0, 2, 1]));
        assert_eq!(wire("gw.example.org"), (2, b"gw.example.org".to_vec()));
        assert_eq!(wire("@gw"), (2, b"gw".to_vec()));
        assert_eq!(wire("ops@example.org"), (3, b"ops@example.org".to_vec()));
        assert_eq!(wire("2001:db8::1").0, 5);
        assert_eq!(wire("keyid:c0FFee"), (11, vec![0xc0, 0xff, 0xee]));
    }

    #[test]
    fn any_is_said_of_peers_only_and_as_a_name_with_its_type() {
        assert_eq!(remote_id("any"), Ok(RemoteId::Any));
        assert_eq!(RemoteId::Any.to_string(), "any");
        assert_eq!(remote_id("gw.example.org"), identity("gw.example.org").map(RemoteId::Is));
        assert!(identity("any").unwrap_err().what.contains("of the peer"));
        let name = Identity::Fqdn("any".to_owned());
        assert_eq!((identity("fqdn:any"), name.to_string().as_str()), (Ok(name.clone()), "fqdn:any"));
    }

    /// FortiGate sends addresses as FQDN, Palo Alto and Cloudflare text as key id, others a name of their certificate.
    #[test]
    fn a_type_before_it_takes_what_peers_send_and_shows_as_what_reads_back() {
        let cases: [(&str, u8, &[u8]); 7] = [
            ("fqdn:192.0.2.9", 2, b"192.0.2.9"),
            ("fqdn:branch office 7", 2, b"branch office 7"),
            ("email:ops", 3, b"ops"),
            ("keyid-text:branch-7@example", 11, b"branch-7@example"),
            ("keyid:6f70", 11, b"op"),
            ("ip:192.0.2.9", 1, &[192, 0, 2, 9]),
            ("dn:CN=a", 9, b"\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x13\x01a"),
        ];
        for (text, kind, octets) in cases {
            let id = identity(text).unwrap();
            assert_eq!(id.to_wire(), (kind, octets.to_vec()), "{text}");
            assert_eq!(identity(&id.to_string()).as_ref(), Ok(&id), "{text}");
        }
        let told = identity("@192.0.2.9").unwrap_err();
        assert!(told.what.contains("not a DNS name") && told.fix.contains("fqdn:"), "{told:?}");
    }

    /// T14: whatever a stranger puts in an identity is refused, or harmless when printed.
    #[test]
    fn hostile_identities_are_refused() {
        let long = "a".repeat(65_000);
        for bad in [
            "",
            "a\0b",
            "a\nb",
            "\u{1b}[31m",
            "$(reboot)",
            "a\"b",
            "CN=x, O=y",
            "keyid:",
            "keyid:0",
            "keyid-text:",
            "fqdn:a\nb",
            "fqdn: a",
            "email:é",
            "ip:gw",
            "dn:CN",
            "a@",
            "@b@c",
        ]
        .into_iter()
        .chain([long.as_str(), "10.0.0.256", "1.2.3", "%any", "*", "é.example"])
        {
            let error = identity(bad).unwrap_err();
            assert!(!error.what.chars().any(char::is_control), "{}", error.what);
            assert!(error.what.len() < 400);
        }
    }

    #[test]
    fn forbidden_addresses_are_those_of_the_product() {
        for bad in "0.0.0.0 255.255.255.255 224.0.0.1 239.9.9.9 127.0.0.1 169.254.1.1 10.0.0.0 10.255.255.255 126.0.0.0 \
            172.16.0.0 172.16.255.255 191.255.255.255 192.0.2.0 192.0.2.255 223.1.1.0 :: ::1 ff02::1 fe80::1 ::ffff:1.2.3.4"
            .split_whitespace()
        {
            assert!(forbidden_peer(bad.parse().unwrap()).is_some(), "{bad}");
        }
        for good in "192.0.2.2 10.0.0.1 10.1.0.0 10.0.255.255 172.16.1.0 172.16.0.255 1.2.3.0 2001:db8::1"
            .split_whitespace()
        {
            assert_eq!(forbidden_peer(good.parse().unwrap()), None, "{good}");
        }
    }

    #[test]
    fn cidr_blocks_must_be_exact() {
        assert_eq!(cidr("10.1.0.0/16").unwrap().to_string(), "10.1.0.0/16");
        assert_eq!(cidr("fd00::1").unwrap().to_string(), "fd00::1/128");
        assert!(cidr("10.1.2.3/16").unwrap_err().fix.contains("10.1.0.0/16"));
        for bad in [
            "",
            "10.1.0.0/",
            "10.1.0.0/33",
            "10.1.0.0/-1",
            "10.1.0.0/+8",
            "10.1/16",
            "::/129",
            "10.0.0.0/0x8",
        ] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
    }
}
