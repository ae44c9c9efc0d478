//! Routing rules (`linux/fib_rules.h`): a place among the rules, what a packet must look like, what becomes of it.
//!
//! Rules of others are read, too, so that one can say what stands in front of ours. Every rule of ours carries a protocol
//! number as its owner's mark, and every removal names that number, so that rules of others are never touched.

use std::fmt;
use std::net::IpAddr;

use crate::codec::{self, Writer};
use crate::route::{Family, Prefix};
use crate::socket::{NLM_F_CREATE, Request};

pub(crate) const RTM_NEWRULE: u16 = 32;
pub(crate) const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

/// Octets of `struct fib_rule_hdr`.
const HEADER: usize = 12;
const ACTION_TABLE: u8 = 1;
const ACTION_GOTO: u8 = 2;
const ACTION_NOP: u8 = 3;
const ACTION_BLACKHOLE: u8 = 6;
/// `FIB_RULE_FIND_SADDR`.
const FIND_SOURCE: u32 = 0x0001_0000;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_L3MDEV: u16 = 19;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;

/// What a rule does with a packet that it matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// Looks it up in a table; goes on with the next rule if that has no route.
    Table(u32),
    /// Goes on at the first rule of a (higher) priority; with the next rule while there is none.
    Goto(u32),
    /// Goes on with the next rule.
    Nop,
    /// Drops it.
    Blackhole,
    /// Something that only rules of others do, by the kernel's number (`FR_ACT_*`).
    Other(u8),
}

/// A routing rule. Two rules with equal fields are the same rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// Place among the rules; lower is earlier. Among equals the one that was added first.
    pub priority: u32,
    /// Name of the input interface; "lo" matches what this host sends.
    pub iif: Option<String>,
    /// Name of the output interface that a socket is bound to.
    pub oif: Option<String>,
    /// Source prefix; `None` is any.
    pub source: Option<Prefix>,
    /// Destination prefix; `None` is any.
    pub destination: Option<Prefix>,
    /// IP protocol.
    pub ip_protocol: Option<u8>,
    /// First and last source port.
    pub source_ports: Option<(u16, u16)>,
    /// First and last destination port.
    pub destination_ports: Option<(u16, u16)>,
    /// Value and mask of the packet's mark.
    pub mark: Option<(u32, u32)>,
    /// IPv6 only, and only with a source prefix and a table: also matches a look-up without a source, if the source that
    /// would be chosen for the route found lies in the prefix.
    pub find_source: bool,
    /// Whether it looks into the table of the packet's VRF.
    pub vrf: bool,
    /// What it does.
    pub verdict: Verdict,
    /// Who owns it (`rtm_protocol`).
    pub owner: u8,
}

impl Rule {
    /// A rule that matches everything of a family.
    pub const fn new(family: Family, priority: u32, verdict: Verdict, owner: u8) -> Self {
        Self {
            family,
            priority,
            iif: None,
            oif: None,
            source: None,
            destination: None,
            ip_protocol: None,
            source_ports: None,
            destination_ports: None,
            mark: None,
            find_source: false,
            vrf: false,
            verdict,
            owner,
        }
    }

    /// The request that adds it. The kernel does not look for an equal one.
    pub(crate) fn add_request(&self) -> Request {
        Request::new(RTM_NEWRULE, NLM_F_CREATE, self.message())
    }

    /// The request that removes it. The kernel takes a field that is not given for "any rule will do" and removes the
    /// first rule that fits.
    pub(crate) fn remove_request(&self) -> Request {
        Request::new(RTM_DELRULE, 0, self.message())
    }

    /// The request for all rules of a family.
    pub(crate) fn list_request(family: Family) -> Request {
        let mut w = Writer::new();
        let mut header = [0; HEADER];
        header[0] = family.number();
        w.raw(&header);
        Request::new(RTM_GETRULE, 0, w)
    }

    fn message(&self) -> Writer {
        let length = |prefix: Option<Prefix>| prefix.map_or(0, |(_, len)| len);
        let action = match self.verdict {
            Verdict::Table(_) => ACTION_TABLE,
            Verdict::Goto(_) => ACTION_GOTO,
            Verdict::Nop => ACTION_NOP,
            Verdict::Blackhole => ACTION_BLACKHOLE,
            Verdict::Other(action) => action,
        };
        let (to, from) = (length(self.destination), length(self.source));
        let mut w = Writer::new();
        w.raw(&[self.family.number(), to, from, 0, 0, 0, 0, action]);
        w.raw(&if self.find_source { FIND_SOURCE } else { 0 }.to_ne_bytes());
        match self.verdict {
            Verdict::Table(table) => w.attr_u32(FRA_TABLE, table),
            Verdict::Goto(target) => w.attr_u32(FRA_GOTO, target),
            Verdict::Nop | Verdict::Blackhole | Verdict::Other(_) => {}
        }
        w.attr_u32(FRA_PRIORITY, self.priority);
        w.attr(FRA_PROTOCOL, &[self.owner]);
        if let Some(name) = &self.iif {
            w.attr_text(FRA_IIFNAME, name);
        }
        if let Some(name) = &self.oif {
            w.attr_text(FRA_OIFNAME, name);
        }
        for (kind, prefix) in [(FRA_SRC, self.source), (FRA_DST, self.destination)] {
            match prefix {
                Some((IpAddr::V4(addr), _)) => w.attr(kind, &addr.octets()),
                Some((IpAddr::V6(addr), _)) => w.attr(kind, &addr.octets()),
                None => {}
            }
        }
        if let Some(protocol) = self.ip_protocol {
            w.attr(FRA_IP_PROTO, &[protocol]);
        }
        for (kind, range) in [(FRA_SPORT_RANGE, self.source_ports), (FRA_DPORT_RANGE, self.destination_ports)]
        {
            if let Some((first, last)) = range {
                w.attr_parts(kind, &[&first.to_ne_bytes(), &last.to_ne_bytes()]);
            }
        }
        if let Some((value, mask)) = self.mark {
            w.attr_u32(FRA_FWMARK, value);
            w.attr_u32(FRA_FWMASK, mask);
        }
        w
    }

    /// Reads the payload of an RTM_NEWRULE or RTM_DELRULE message; `None` if it is broken or of another family.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let (header, attributes) = payload.split_first_chunk::<HEADER>()?;
        let [family, to_len, from_len, _, table, _, _, action, flags @ ..] = *header;
        let family = Family::from_number(family)?;
        let mut rule = Self::new(family, 0, Verdict::Nop, 0);
        rule.find_source = u32::from_ne_bytes(flags) & FIND_SOURCE != 0;
        let (mut table, mut target, mut mark, mut mask) = (u32::from(table), 0, None, u32::MAX);
        for (kind, value) in codec::attrs(attributes) {
            match kind {
                FRA_TABLE => table = codec::u32_at(value, 0)?,
                FRA_GOTO => target = codec::u32_at(value, 0)?,
                FRA_PRIORITY => rule.priority = codec::u32_at(value, 0)?,
                FRA_PROTOCOL => rule.owner = codec::u8_at(value, 0)?,
                FRA_IIFNAME => rule.iif = Some(codec::text(value)),
                FRA_OIFNAME => rule.oif = Some(codec::text(value)),
                FRA_SRC => rule.source = Some((family.address(value)?, from_len)),
                FRA_DST => rule.destination = Some((family.address(value)?, to_len)),
                FRA_IP_PROTO => rule.ip_protocol = codec::u8_at(value, 0),
                FRA_SPORT_RANGE => rule.source_ports = codec::u16_at(value, 0).zip(codec::u16_at(value, 2)),
                FRA_DPORT_RANGE => {
                    rule.destination_ports = codec::u16_at(value, 0).zip(codec::u16_at(value, 2));
                }
                FRA_FWMARK => mark = codec::u32_at(value, 0),
                FRA_FWMASK => mask = codec::u32_at(value, 0)?,
                FRA_L3MDEV => rule.vrf = codec::u8_at(value, 0)? != 0,
                _ => {}
            }
        }
        rule.mark = mark.map(|value| (value, mask));
        rule.verdict = match action {
            ACTION_TABLE => Verdict::Table(table),
            ACTION_GOTO => Verdict::Goto(target),
            ACTION_NOP => Verdict::Nop,
            ACTION_BLACKHOLE => Verdict::Blackhole,
            other => Verdict::Other(other),
        };
        Some(rule)
    }
}

/// As `ip rule` shows it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from ", self.priority)?;
        match self.source {
            Some((addr, len)) => write!(f, "{addr}/{len}")?,
            None => f.write_str("all")?,
        }
        if let Some((addr, len)) = self.destination {
            write!(f, " to {addr}/{len}")?;
        }
        if let Some((value, mask)) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        for (word, name) in [("iif", &self.iif), ("oif", &self.oif)] {
            if let Some(name) = name {
                write!(f, " {word} {name}")?;
            }
        }
        if let Some(protocol) = self.ip_protocol {
            write!(f, " ipproto {protocol}")?;
        }
        for (word, range) in [("sport", self.source_ports), ("dport", self.destination_ports)] {
            if let Some((first, last)) = range {
                write!(f, " {word} {first}-{last}")?;
            }
        }
        match self.verdict {
            Verdict::Table(_) if self.vrf => f.write_str(" lookup [l3mdev-table]"),
            Verdict::Table(table) => write!(f, " lookup {table}"),
            Verdict::Goto(target) => write!(f, " goto {target}"),
            Verdict::Nop => f.write_str(" nop"),
            Verdict::Blackhole => f.write_str(" blackhole"),
            Verdict::Other(action) => write!(f, " action {action}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_survives_its_message() {
        let full = Rule {
            iif: Some("tun0".to_owned()),
            source: Some(("10.1.0.0".parse().unwrap(), 16)),
            destination: Some(("10.2.0.0".parse().unwrap(), 24)),
            ip_protocol: Some(6),
            source_ports: Some((80, 90)),
            destination_ports: Some((443, 443)),
            mark: Some((1, 0xFF)),
            find_source: true,
            ..Rule::new(Family::V4, 3210, Verdict::Table(51_657), 201)
        };
        for verdict in [Verdict::Table(51_657), Verdict::Goto(4000), Verdict::Nop, Verdict::Blackhole] {
            let rule = Rule { verdict, ..full.clone() };
            assert_eq!(Rule::parse(rule.message().bytes()), Some(rule));
        }
        let six = Rule {
            source: Some(("fd01::".parse().unwrap(), 16)),
            ..Rule::new(Family::V6, 7, Verdict::Blackhole, 201)
        };
        assert_eq!(Rule::parse(six.message().bytes()), Some(six));
    }
}
