//! The wanted table as a value: from guards to sets and rules.
//!
//! Everything is exact look-ups in hash sets. A guard falls apart into pairs of prefixes (with masked ports, a protocol
//! and a mark, if it has them); pairs that look at the same bits of a packet share a set, and each set has one rule per
//! question. Sets of intervals would need no falling apart, but refuse guards that overlap.
//!
//! ```text
//!   prerouting, output   nat, before dstnat:  (source, destination) protected → dnat to the destination it has
//!   postrouting          nat, before srcnat:  the same                        → snat to the source it has
//!   postrouting          filter, behind all:
//!       goes over lo                                                          → let go
//!       goes into our TUN / its route ends in IPsec                           → let go
//!       related to a connection, or of a translated one                       → go on in `translated`
//!       an answer                                                             → go on in `answers`
//!       (source, destination) protected                                       → leak-bypass
//!       the same as it was first sent, by conntrack's tuple                   → leak-nat
//!   answers              the same two questions, the latter about the answer
//!   translated           (source, destination) protected                      → leak-bypass
//!                        else, and of what is let by                          → go on in `origins`
//!   origins              an ICMP error about a protected packet, by conntrack's tuples → leak-icmp-error
//!                        the packet before it was translated, by conntrack's tuples    → leak-nat
//!   leak-REASON          neighbour discovery                                  → let go
//!                        IKE or ESP of one of our addresses (as first sent, before any NAT) → let go
//!                        else                                                 → count REASON, drop
//!   input                filter, before all:
//!       comes over lo, out of our TUN / out of IPsec                          → let go
//!       (destination, source) protected, as it is or as it was first sent     → come-forged
//!   come-forged          neighbour discovery; IKE and ESP to one of our addresses, and errors about it → let go
//!                        else                                                 → count `forged`, drop
//! ```
//!
//! Three kinds of sets: what is protected; of that, what could be either direction, since both sides of a guard hold both
//! ends; and what a guard lets by ([`crate::plane::near`]). The latter two let go. Rules stand in the order of narrowness,
//! so that a narrow guard is asked before a wide one that lets go.
//!
//! Most packets are nobody's: neither protected nor translated. They are asked two questions for each set, and who they are
//! (IKE, ESP, neighbour discovery) only when they are about to be dropped.
//!
//! An identity binding is a binding: chains of others, nft's and iptables' alike, are not asked any more for this
//! connection. Connection tracking itself goes on.

mod look;
mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cygnet_xfrm::nft::expr::{Base, Ct, Ip, Meta, NatKind, Register, Tuple, Verdict};
use cygnet_xfrm::nft::{Chain, ChainKind, Change, Counted, Expr, Hook, Keeping, keys_per_message};

use self::look::{ADDRESS, End, Look, Of, SCRATCH, SCRATCH_NAME, has_bits, interface, no_entry, register};
pub use self::shape::{Addresses, Pair, Shape, pairs, put, take};
use self::shape::{Meaning, TYPE_IPV4, TYPE_IPV6, TYPE_PROTOCOL, TYPE_SERVICE, set};

/// Our table.
pub const TABLE: &str = "cygnet";
/// A table that is made and removed in one transaction, to see what this kernel can do.
pub const PROBE: &str = "cygnet-probe";
/// Sets of one kind: each costs every unprotected packet some look-ups.
pub const SHAPES: usize = 256;

/// Counted by the last guard: a translation took the packet out of its tunnel, or would have.
pub const NAT: &str = "nat";
/// Counted by the last guard: nothing translated the packet, but it was about to leave around its tunnel.
pub const BYPASS: &str = "bypass";
/// Counted by the last guard: an ICMP error about a protected packet, from an address of this host that is not protected.
pub const ICMP_ERROR: &str = "icmp-error";
/// Counted on arrival: a packet to this host that claims to come out of a tunnel and did not.
pub const FORGED: &str = "forged";
/// All reasons, in the order in which they are shown.
pub const REASONS: [&str; 4] = [BYPASS, FORGED, ICMP_ERROR, NAT];

const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;
/// How far before the usual places of NAT chains ours are. Not further: the kernel refuses NAT chains up to -200, where
/// connections are tracked.
const BEFORE: i32 = 90;
/// Behind everything but the confirmation of new connections (`NF_IP_PRI_CONNTRACK_CONFIRM`, the highest number).
const LAST: i32 = i32::MAX - 10;
/// Before everything that usually looks at packets to this host; what was translated before routing is known by then.
const FIRST: i32 = -400;

const UDP: u8 = 17;
const ESP: u8 = 50;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IKE_PORTS: [u16; 2] = [500, 4500];
/// Neighbour discovery (RFC 4861): both planes let it go, or nothing could be sent at all.
const NEIGHBOUR_DISCOVERY: (u8, u8) = (133, 136);
/// `NF_CT_STATE_BIT(IP_CT_RELATED)`: of ICMP packets, the errors about a connection.
const RELATED: u32 = 4;

/// `IPS_SRC_NAT | IPS_DST_NAT`: conntrack has bound the connection to other addresses.
const TRANSLATED: u32 = 1 << 4 | 1 << 5;

/// How packets that are going to be protected are known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Protection {
    /// The kernel's plane: their route ends in an IPsec transformation.
    Route,
    /// Our own plane: they go out by this device.
    Device(String),
}

impl Shape {
    /// The rules for the set, in all chains.
    fn rules(&self, protection: &Protection, nat: bool) -> Vec<Change> {
        match self.meaning {
            Meaning::Near(_) => self.near_rules(nat),
            Meaning::Either => vec![self.let_go(INBOUND, self.look_up(Look::Header))],
            Meaning::Protected { .. } => self.protected_rules(protection, nat),
        }
    }

    fn let_go(&self, chain: &'static str, mut exprs: Vec<Expr>) -> Change {
        exprs.push(Expr::Verdict(Verdict::Accept));
        Change::Rule { chain, exprs }
    }

    /// What is let by goes its ordinary way, if neither it nor what it was before a translation is something else. Errors go
    /// to whom they concern.
    fn near_rules(&self, nat: bool) -> Vec<Change> {
        let header = || self.look_up(Look::Header);
        let mut out = vec![self.let_go(INBOUND, header())];
        if nat {
            for chain in [EXEMPT_SOURCE, EXEMPT_DESTINATION, EXEMPT_OWN_DESTINATION] {
                out.push(self.let_go(chain, header()));
            }
        }
        let header_and = |also: Vec<Expr>| header().into_iter().chain(also).collect::<Vec<Expr>>();
        out.push(self.let_go(GUARD, header_and(self.look_up(Look::SENT))));
        out.push(self.let_go(GUARD, header_and(no_entry())));
        out.push(self.let_go(ANSWERS, header_and(self.look_up(Look::ANSWER))));
        out.push(Change::Rule { chain: TRANSLATED_CHAIN, exprs: header_and(vec![go_to(ORIGINS)]) });
        out.push(self.let_go(ORIGINS, header_and(self.icmp_error().to_vec())));
        let sent = self.look_up(Look::SENT).into_iter().chain(self.look_up(Look::REDIRECTED)).collect();
        out.push(self.let_go(ORIGINS, sent));
        out.push(self.let_go(ORIGINS, self.look_up(Look::ANSWER)));
        out
    }

    fn protected_rules(&self, protection: &Protection, nat: bool) -> Vec<Change> {
        let mut out = Vec::new();
        for (chain, end, kind) in [
            (EXEMPT_SOURCE, End::Source, NatKind::Source),
            (EXEMPT_DESTINATION, End::Destination, NatKind::Destination),
            (EXEMPT_OWN_DESTINATION, End::Destination, NatKind::Destination),
        ] {
            if !nat {
                break;
            }
            let mut exprs = self.not_decrypted(protection, chain);
            exprs.extend(self.look_up(Look::Header));
            exprs.push(self.header_address(end, ADDRESS));
            exprs.push(Expr::Nat(kind, self.ip, register(ADDRESS)));
            out.push(Change::Rule { chain, exprs });
        }
        let drop = |chain, also: &[Expr], look, leak| {
            let mut exprs = self.not_decrypted(protection, GUARD);
            exprs.extend_from_slice(also);
            exprs.extend(self.look_up(look));
            exprs.push(go_to(leak));
            Change::Rule { chain, exprs }
        };
        out.push(drop(GUARD, &[], Look::Header, LEAK_BYPASS));
        out.push(drop(GUARD, &[], Look::SENT, LEAK_NAT));
        out.push(drop(ANSWERS, &[], Look::Header, LEAK_BYPASS));
        out.push(drop(ANSWERS, &[], Look::ANSWER, LEAK_NAT));
        out.push(drop(TRANSLATED_CHAIN, &[], Look::Header, LEAK_BYPASS));
        let tuples = [Look::SENT, Look::REDIRECTED, Look::ANSWER];
        out.extend(tuples.map(|look| drop(ORIGINS, &self.icmp_error(), look, LEAK_ICMP_ERROR)));
        out.extend(tuples.map(|look| drop(ORIGINS, &[], look, LEAK_NAT)));
        // As it is, and as it was sent, if it was redirected.
        let sent =
            Look::tuples(Tuple::Original, Of::Destination(Tuple::Original), Of::Source(Tuple::Original));
        for look in [Look::Turned, sent] {
            let mut exprs = self.look_up(look);
            exprs.push(go_to(COME_FORGED));
            out.push(Change::Rule { chain: INBOUND, exprs });
        }
        out
    }

    /// The packet is an ICMP error about a connection.
    fn icmp_error(&self) -> [Expr; 5] {
        let protocol = match self.ip {
            Ip::V4 => ICMP,
            Ip::V6 => ICMPV6,
        };
        [
            Expr::Ct(Ct::State, SCRATCH),
            Expr::Mask(SCRATCH, RELATED.to_ne_bytes().to_vec()),
            Expr::Differs(SCRATCH, vec![0; 4]),
            Expr::Meta(Meta::Protocol, SCRATCH),
            Expr::Equals(SCRATCH, vec![protocol]),
        ]
    }

    const fn is_symmetric(&self) -> bool {
        matches!(self.meaning, Meaning::Protected { symmetric: true })
    }

    /// For guards whose sides are the same: the packet does not come out of a tunnel.
    fn not_decrypted(&self, protection: &Protection, chain: &str) -> Vec<Expr> {
        match protection {
            Protection::Device(name) if self.is_symmetric() && chain != EXEMPT_OWN_DESTINATION => {
                vec![Expr::Meta(Meta::InName, SCRATCH_NAME), Expr::Differs(SCRATCH_NAME, interface(name))]
            }
            // Elsewhere than here rules cannot ask for it.
            Protection::Route if self.is_symmetric() && chain == EXEMPT_DESTINATION => {
                vec![Expr::Meta(Meta::Secpath, SCRATCH), Expr::Equals(SCRATCH, vec![0])]
            }
            _ => Vec::new(),
        }
    }
}

const EXEMPT_SOURCE: &str = "exempt-source";
const EXEMPT_DESTINATION: &str = "exempt-destination";
const EXEMPT_OWN_DESTINATION: &str = "exempt-own-destination";
const GUARD: &str = "guard";
const INBOUND: &str = "inbound";
/// Branches of [`GUARD`] for answers, for what is translated or related to a connection, and for what that was before.
const ANSWERS: &str = "answers";
const TRANSLATED_CHAIN: &str = "translated";
const ORIGINS: &str = "origins";
/// What is about to be dropped, unless it is our own.
const LEAK_BYPASS: &str = "leak-bypass";
const LEAK_ICMP_ERROR: &str = "leak-icmp-error";
const LEAK_NAT: &str = "leak-nat";
const COME_FORGED: &str = "come-forged";
/// IKE, ESP and neighbour discovery, outbound and inbound.
const OURS: &str = "ours";
const OURS_INBOUND: &str = "ours-inbound";
/// The last branches with what they count and whom they ask before.
const DROPS: [(&str, &str, &str); 4] = [
    (LEAK_BYPASS, BYPASS, OURS),
    (LEAK_ICMP_ERROR, ICMP_ERROR, OURS),
    (LEAK_NAT, NAT, OURS),
    (COME_FORGED, FORGED, OURS_INBOUND),
];

const fn go_to(chain: &'static str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain))
}

/// The rules that let IKE and ESP to our own addresses in, and ICMP errors about what was sent from there.
fn inbound_own(
    ip: Ip,
    found: impl Fn() -> Expr,
    destination: u32,
    protocol: Register,
    port: Register,
) -> Vec<Change> {
    let rule = |exprs| Change::Rule { chain: OURS_INBOUND, exprs };
    let len = match ip {
        Ip::V4 => 4,
        Ip::V6 => 16,
    };
    let arrives = |port: Expr| {
        rule(vec![
            Expr::Meta(Meta::Family, SCRATCH),
            Expr::Equals(SCRATCH, vec![ip.number()]),
            Expr::Payload { base: Base::Network, offset: destination, len, to: register(0) },
            Expr::Meta(Meta::Protocol, protocol),
            port,
            found(),
        ])
    };
    let error = |tuple| {
        rule(vec![
            Expr::Ct(Ct::State, SCRATCH),
            Expr::Mask(SCRATCH, RELATED.to_ne_bytes().to_vec()),
            Expr::Differs(SCRATCH, vec![0; 4]),
            Expr::Ct(Ct::Source(tuple, ip), register(0)),
            Expr::Ct(Ct::Protocol, protocol),
            Expr::Ct(Ct::SourcePort(tuple), port),
            found(),
        ])
    };
    vec![
        arrives(Expr::Payload { base: Base::Transport, offset: 2, len: 2, to: port }),
        arrives(Expr::Constant(port, vec![0; 4])),
        error(Tuple::Original),
        error(Tuple::Reply),
    ]
}

/// What every wall has, whatever is protected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// How protected packets are known.
    pub protection: Protection,
    /// Our outer addresses.
    pub own: BTreeSet<IpAddr>,
    /// Whether this kernel has chains for NAT.
    pub nat: bool,
    /// Whether others may change the table.
    pub keeping: Keeping,
}

impl Frame {
    /// The steps that make the table without pairs. `counted` is what its counters begin with.
    pub fn make(&self, counted: &BTreeMap<String, Counted>) -> Vec<Change> {
        // The first step makes the second one possible where there is no table yet.
        let mut out = vec![Change::Table(Keeping::Shared), Change::RemoveTable, Change::Table(self.keeping)];
        for reason in REASONS {
            out.push(Change::Counter(reason.to_owned(), counted.get(reason).copied().unwrap_or_default()));
        }
        let chain = |name, kind, hook, priority| Change::Chain(Chain { name, kind, hook, priority });
        if self.nat {
            out.push(chain(EXEMPT_DESTINATION, ChainKind::Nat, Hook::Prerouting, DSTNAT - BEFORE));
            out.push(chain(EXEMPT_OWN_DESTINATION, ChainKind::Nat, Hook::Output, DSTNAT - BEFORE));
            out.push(chain(EXEMPT_SOURCE, ChainKind::Nat, Hook::Postrouting, SRCNAT - BEFORE));
        }
        out.push(chain(GUARD, ChainKind::Filter, Hook::Postrouting, LAST));
        out.push(chain(INBOUND, ChainKind::Filter, Hook::Input, FIRST));
        for branch in [
            OURS,
            OURS_INBOUND,
            LEAK_BYPASS,
            LEAK_ICMP_ERROR,
            LEAK_NAT,
            COME_FORGED,
            ANSWERS,
            ORIGINS,
            TRANSLATED_CHAIN,
        ] {
            out.push(Change::Branch(branch));
        }
        let accept_in = |chain, mut exprs: Vec<Expr>| {
            exprs.push(Expr::Verdict(Verdict::Accept));
            Change::Rule { chain, exprs }
        };
        let accept = |exprs| accept_in(GUARD, exprs);
        let out_by = |name: &str| {
            vec![Expr::Meta(Meta::OutName, SCRATCH_NAME), Expr::Equals(SCRATCH_NAME, interface(name))]
        };
        out.push(accept(out_by("lo")));
        out.push(accept(match &self.protection {
            Protection::Device(name) => out_by(name),
            Protection::Route => vec![Expr::RouteIsProtected(SCRATCH), Expr::Equals(SCRATCH, vec![1])],
        }));
        let in_by = |name: &str| {
            vec![Expr::Meta(Meta::InName, SCRATCH_NAME), Expr::Equals(SCRATCH_NAME, interface(name))]
        };
        out.push(accept_in(INBOUND, in_by("lo")));
        out.push(accept_in(
            INBOUND,
            match &self.protection {
                Protection::Device(name) => in_by(name),
                Protection::Route => vec![Expr::Meta(Meta::Secpath, SCRATCH), Expr::Equals(SCRATCH, vec![1])],
            },
        ));
        for ip in [Ip::V4, Ip::V6] {
            out.extend(self.own(ip).into_iter().map(|step| match step {
                Change::Rule { exprs, chain } => accept_in(chain, exprs),
                other => other,
            }));
        }
        let (first, last) = NEIGHBOUR_DISCOVERY;
        for chain in [OURS, OURS_INBOUND] {
            out.push(accept_in(
                chain,
                vec![
                    Expr::Meta(Meta::Protocol, SCRATCH),
                    Expr::Equals(SCRATCH, vec![ICMPV6]),
                    Expr::Payload { base: Base::Transport, offset: 0, len: 1, to: SCRATCH },
                    Expr::Between(SCRATCH, vec![first], vec![last]),
                ],
            ));
        }
        for (chain, reason, ours) in DROPS {
            out.push(Change::Rule { chain, exprs: vec![Expr::Verdict(Verdict::Jump(ours))] });
            let count = Expr::Count(reason.to_owned());
            out.push(Change::Rule { chain, exprs: vec![count, Expr::Verdict(Verdict::Drop)] });
        }
        let is_answer =
            vec![Expr::Ct(Ct::Direction, SCRATCH), Expr::Equals(SCRATCH, vec![Tuple::Reply.number()])];
        for (mut exprs, chain) in [
            (has_bits(Ct::State, RELATED), TRANSLATED_CHAIN),
            (has_bits(Ct::Status, TRANSLATED), TRANSLATED_CHAIN),
            (is_answer, ANSWERS),
        ] {
            exprs.push(go_to(chain));
            out.push(Change::Rule { chain: GUARD, exprs });
        }
        out
    }

    /// The set of our own IKE and ESP, and the rules that look for it.
    fn own(&self, ip: Ip) -> Vec<Change> {
        let name = match ip {
            Ip::V4 => "own4",
            Ip::V6 => "own6",
        };
        let (kind, words) = match ip {
            Ip::V4 => (TYPE_IPV4, 1),
            Ip::V6 => (TYPE_IPV6, 4),
        };
        let mut keys = Vec::new();
        for address in self.own.iter().filter(|a| a.is_ipv4() == (ip == Ip::V4)) {
            let octets = match address {
                IpAddr::V4(a) => a.octets().to_vec(),
                IpAddr::V6(a) => a.octets().to_vec(),
            };
            for (protocol, port) in [(ESP, 0), (UDP, IKE_PORTS[0]), (UDP, IKE_PORTS[1])] {
                let [high, low] = port.to_be_bytes();
                let mut key = octets.clone();
                key.extend([protocol, 0, 0, 0, high, low, 0, 0]);
                keys.push(key);
            }
        }
        let fields = [(kind, u32::from(words) * 4), (TYPE_PROTOCOL, 4), (TYPE_SERVICE, 4)];
        let mut out = vec![set(name.to_owned(), &fields)];
        for keys in keys.chunks(keys_per_message(24)) {
            out.push(Change::Keys { set: name.to_owned(), keys: keys.to_vec() });
        }
        let (protocol, port) = (register(words), register(words + 1));
        let found = || Expr::InSet(name.to_owned(), register(0));
        let rule = |exprs| Change::Rule { chain: OURS, exprs };
        for tuple in [Tuple::Original, Tuple::Reply] {
            out.push(rule(vec![
                Expr::Ct(Ct::Direction, SCRATCH),
                Expr::Equals(SCRATCH, vec![tuple.number()]),
                Expr::Ct(Ct::Source(tuple, ip), register(0)),
                Expr::Ct(Ct::Protocol, protocol),
                Expr::Ct(Ct::SourcePort(tuple), port),
                found(),
            ]));
        }
        // Without an entry there is no translation either: what the header says is where it came from.
        let offset = match ip {
            Ip::V4 => 12,
            Ip::V6 => 8,
        };
        let untracked = |rest: Vec<Expr>| {
            let mut exprs = no_entry();
            exprs.extend([
                Expr::Meta(Meta::Family, SCRATCH),
                Expr::Equals(SCRATCH, vec![ip.number()]),
                Expr::Payload { base: Base::Network, offset, len: u32::from(words) * 4, to: register(0) },
                Expr::Meta(Meta::Protocol, protocol),
            ]);
            exprs.extend(rest);
            exprs.push(found());
            rule(exprs)
        };
        out.push(untracked(vec![Expr::Constant(port, vec![0; 4])]));
        out.push(untracked(vec![Expr::Payload { base: Base::Transport, offset: 0, len: 2, to: port }]));
        out.extend(inbound_own(ip, found, offset + u32::from(words) * 4, protocol, port));
        out
    }

    /// The steps behind those of all shapes.
    pub fn end(&self) -> Vec<Change> {
        vec![Change::Rule { chain: TRANSLATED_CHAIN, exprs: vec![go_to(ORIGINS)] }]
    }

    /// The steps that make a shape's set and rules.
    pub fn shape(&self, shape: &Shape) -> Vec<Change> {
        let mut out = vec![shape.make()];
        out.extend(shape.rules(&self.protection, self.nat));
        out
    }
}

#[cfg(test)]
mod tests;
