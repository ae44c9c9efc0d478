//! Addresses and host names replaced by others. The replacement of an address keeps its prefixes: two addresses that share
//! their first n bits share them afterwards, too, so that networks hold what they held (after Xu, Fan, Ammar and Moon,
//! "Prefix-preserving IP address anonymization", 2002). The key is of this report alone and thrown away with it.
//!
//! Ends of ranges that are no whole networks lose their order. Names of tunnels and gateways stay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// What replaces what.
pub struct Anonymous {
    key: hmac::Key,
    hosts: Vec<(String, String)>,
    /// Whole addresses that were replaced before.
    known: BTreeMap<(IpAddr, u8), IpAddr>,
}

impl Anonymous {
    /// Replaces these host names, and all addresses. `None` if the system gives no random numbers.
    pub fn new(hosts: BTreeSet<String>) -> Option<Self> {
        let mut key = [0u8; 32];
        SystemRandom::new().fill(&mut key).ok()?;
        // Longer ones first: one may be a part of another.
        let mut hosts: Vec<String> = hosts.into_iter().collect();
        hosts.sort_by_key(|name| std::cmp::Reverse(name.len()));
        let named = hosts.into_iter().enumerate().map(|(n, name)| (name, format!("host-{}.invalid", n + 1)));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Some(Self { key, hosts: named.collect(), known: BTreeMap::new() })
    }

    /// A text with everything replaced.
    pub fn text(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, other) in &self.hosts {
            text = text.replace(name.as_str(), other);
        }
        // The colons of IPv6 first: an IPv4 address may be the end of one.
        let text = self.words(&text, |c| c.is_ascii_hexdigit() || c == ':' || c == '.', v6);
        self.words(&text, |c| c.is_ascii_digit() || c == '.', v4)
    }

    /// Replaces the addresses among the words that are made of some letters.
    fn words(
        &mut self,
        text: &str,
        of: impl Fn(char) -> bool,
        read: impl Fn(&str) -> Option<(usize, IpAddr)>,
    ) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(&of) {
            let (before, from) = rest.split_at(at);
            out.push_str(before);
            let len = from.find(|c| !of(c)).unwrap_or(from.len());
            let (word, after) = from.split_at(len);
            match read(word) {
                Some((used, ip)) => {
                    let (_, left) = word.split_at(used);
                    let bits = if left.is_empty() { prefix(after) } else { None };
                    out.push_str(&self.address(ip, bits).to_string());
                    out.push_str(left);
                }
                None => out.push_str(word),
            }
            rest = after;
        }
        out + rest
    }

    /// The replacement of an address, or of a network of so many bits.
    fn address(&mut self, ip: IpAddr, bits: Option<u8>) -> IpAddr {
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            return ip;
        }
        let (value, width) = match ip {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
            IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        let bits = bits.filter(|bits| *bits <= width).unwrap_or(width);
        if let Some(other) = self.known.get(&(ip, bits)) {
            return *other;
        }
        let mut other = 0u128;
        for n in 0..u32::from(bits) {
            let mask = 1u128 << (127 - n);
            // What the bit becomes follows from those before it.
            let before = value & !(mask | (mask - 1));
            let mut question = [0u8; 18];
            let (head, tail) = question.split_at_mut(16);
            head.copy_from_slice(&before.to_be_bytes());
            tail.copy_from_slice(&[u8::try_from(n).unwrap_or(0), width]);
            let flip = hmac::sign(&self.key, &question).as_ref().first().is_some_and(|byte| byte & 1 == 1);
            other |= if (value & mask != 0) == flip { 0 } else { mask };
        }
        let other = match ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(other >> 96).unwrap_or(0))),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(other)),
        };
        self.known.insert((ip, bits), other);
        other
    }
}

/// An IPv6 address at the beginning of a word, and its length there.
fn v6(word: &str) -> Option<(usize, IpAddr)> {
    if word.matches(':').count() < 2 {
        return None;
    }
    // A point or a colon may belong to the sentence.
    let shorter = word.trim_end_matches(['.', ':']);
    [word, shorter].into_iter().find_map(|w| Some((w.len(), IpAddr::V6(w.parse::<Ipv6Addr>().ok()?))))
}

/// The same of IPv4.
fn v4(word: &str) -> Option<(usize, IpAddr)> {
    let shorter = word.trim_end_matches('.');
    Some((shorter.len(), IpAddr::V4(shorter.parse::<Ipv4Addr>().ok()?)))
}

/// The number of bits that follows an address as in `/24`.
fn prefix(after: &str) -> Option<u8> {
    let digits = after.strip_prefix('/')?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous() -> Anonymous {
        Anonymous::new(BTreeSet::from(["vpn.example.net".to_owned()])).unwrap()
    }

    #[test]
    fn no_address_is_left_wherever_it_stands() {
        let mut a = anonymous();
        let text = "192.0.2.1:4500 -> [2001:db8::7]:500, 10.1.0.0/16 via 192.0.2.254.\n\
                    {\"ip\":\"fd01::9\"} to vpn.example.net x10.9.8.7y 2001:db8:0:1:2:3:4:5/128: ::ffff:192.0.2.1";
        let told = a.text(text);
        for gone in ["192.0.2", "2001:db8", "10.1.0.0", "fd01", "example", "10.9.8.7"] {
            assert!(!told.contains(gone), "{gone}: {told}");
        }
        assert!(
            told.contains(":4500 -> [") && told.contains("]:500, ") && told.contains(".0.0/16 via "),
            "{told}"
        );
        assert_eq!(a.text(text), told, "the same one is replaced by the same one");
    }

    #[test]
    fn what_is_no_address_stays_as_it_is() {
        let text = "00:12:34 2026-01-01T00:00:00Z 0011223344556677 1.5 Mbit/s a:b 127.0.0.1 :: ::1 0.0.0.0/0 v6.1.0-32";
        assert_eq!(anonymous().text(text), text);
    }

    /// Networks hold what they held, and nothing else.
    #[test]
    fn prefixes_are_kept() {
        let mut a = anonymous();
        let mut of = |text: &str| a.text(text);
        let network: cygnet_model::IpRange = range(&of("10.1.0.0/16"));
        for (inside, address) in
            [(true, "10.1.0.0"), (true, "10.1.255.3"), (false, "10.2.0.1"), (false, "11.1.0.1")]
        {
            let other: IpAddr = of(address).parse().unwrap();
            assert_eq!(network.start() <= other && other <= network.end(), inside, "{address}");
        }
        let (near, far) = (of("2001:db8:1::1"), of("2001:db8:1::2"));
        assert_ne!(near, far);
        let top = |text: &str| u128::from(text.parse::<Ipv6Addr>().unwrap()) >> 2;
        assert_eq!(top(&near), top(&far));
    }

    fn range(text: &str) -> cygnet_model::IpRange {
        let (ip, bits) = text.split_once('/').unwrap();
        cygnet_model::TrafficSelector::cidr(ip.parse().unwrap(), bits.parse().unwrap()).unwrap().range
    }
}
