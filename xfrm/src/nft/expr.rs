//! Expressions: what a rule of nf_tables computes, as a value (`linux/netfilter/nf_tables.h`).
//!
//! A rule is a list of them. Each loads something into registers, compares registers, or acts; a comparison that fails,
//! and a load that finds nothing (no conntrack entry, another family), end the rule without effect.
//!
//! Only what the wall, the bandwidth levels and the limits of single addresses need is here.

use crate::codec::Writer;

/// A place of four octets; values that are longer go on in the next ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register(u8);

impl Register {
    /// How many there are.
    pub const COUNT: u8 = 16;
    /// NFT_REG32_00: lower numbers name places of 16 octets and the verdict.
    const FIRST: u32 = 8;

    /// The register of a number below [`Self::COUNT`].
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::COUNT { Some(Self(number)) } else { None }
    }

    const fn wire(self) -> u32 {
        Self::FIRST + self.0 as u32
    }
}

/// Where a payload load counts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// The IP header.
    Network,
    /// What follows it; nothing in later fragments.
    Transport,
}

/// What is known of a packet besides its octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meta {
    /// Its mark, 4 octets in host order.
    Mark,
    /// Name of the interface it came in by, 16 octets padded with zeros.
    InName,
    /// Name of the interface it goes out by.
    OutName,
    /// 2 for IPv4, 10 for IPv6; one octet.
    Family,
    /// IP protocol, behind IPv6 extension headers; one octet.
    Protocol,
    /// Whether IPsec was taken off it; one octet. Only in hooks before and at the delivery, and in forward.
    Secpath,
}

impl Meta {
    const fn wire(self) -> u32 {
        match self {
            Self::Mark => 3,
            Self::InName => 6,
            Self::OutName => 7,
            Self::Family => 15,
            Self::Protocol => 16,
            Self::Secpath => 25,
        }
    }
}

/// Direction of a conntrack tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tuple {
    /// As the first packet came.
    Original,
    /// As answers come.
    Reply,
}

impl Tuple {
    /// `enum ip_conntrack_dir`.
    pub const fn number(self) -> u8 {
        match self {
            Self::Original => 0,
            Self::Reply => 1,
        }
    }
}

/// What conntrack knows of a packet's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ct {
    /// A bit for the state (`NF_CT_STATE_…`), 4 octets in host order; also of packets without an entry.
    State,
    /// What has happened to the connection (`IPS_…`), 4 octets in host order.
    Status,
    /// Direction of this packet ([`Tuple::number`]), one octet.
    Direction,
    /// IP protocol, one octet.
    Protocol,
    /// Source address, 4 or 16 octets; nothing if the family is another one.
    Source(Tuple, Ip),
    /// Destination address.
    Destination(Tuple, Ip),
    /// Source port, 2 octets; zero for protocols that conntrack does not know.
    SourcePort(Tuple),
    /// Destination port.
    DestinationPort(Tuple),
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Ip {
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// Which end of a connection gets an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatKind {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// What becomes of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is thrown away.
    Drop,
    /// This chain lets it go.
    Accept,
    /// Another chain goes on; if that does not decide, the next rule does.
    Jump(&'static str),
    /// Another chain goes on; if that does not decide, the packet passes, as at the end of this one.
    Goto(&'static str),
}

/// Which way a packet passes IPsec.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// It came out of an SA.
    In,
    /// It is about to be taken into one.
    Out,
}

/// Octets per second, for whatever exceeds them. The kernel's bucket holds what a second brings, and a little more
/// (`nft_limit_init` in `net/netfilter/nft_limit.c`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Excess {
    /// The rate, at least 1.
    pub octets_per_second: u64,
}

impl Excess {
    /// The kernel multiplies by 10⁹ and must not overflow.
    const MOST: u64 = 9_000_000_000;
    /// One packet of any size fits the bucket of the lowest rate.
    const BURST: u32 = 65_536;

    pub(super) fn write(self, w: &mut Writer) {
        w.attr(1, &self.octets_per_second.clamp(1, Self::MOST).to_be_bytes());
        w.attr(2, &1u64.to_be_bytes());
        number(w, 3, Self::BURST);
        number(w, 4, NFT_LIMIT_PKT_BYTES);
        number(w, 5, NFT_LIMIT_F_INV);
    }

    /// As an expression that belongs to an element of a set.
    pub(super) fn write_expr(self, w: &mut Writer) {
        w.attr_text(1, "limit");
        w.nest(2, |w| self.write(w));
    }
}

/// One expression.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expr {
    /// Loads octets of the packet.
    Payload {
        /// From where.
        base: Base,
        /// Offset in octets.
        offset: u32,
        /// Octets.
        len: u32,
        /// To where.
        to: Register,
    },
    /// Loads something about the packet.
    Meta(Meta, Register),
    /// Loads something about the connection.
    Ct(Ct, Register),
    /// Loads whether the route ends in an IPsec transformation, one octet.
    RouteIsProtected(Register),
    /// Loads the reqid of the outermost SA, 4 octets in host order; nothing if there is none. On the way in it stands in
    /// the hooks before and at the delivery, on the way out in those of what leaves.
    Reqid(Way, Register),
    /// Goes on if a limit of the table is exceeded.
    Exceeds(String),
    /// Loads a constant.
    Constant(Register, Vec<u8>),
    /// Keeps the bits of a mask; at most 16 octets.
    Mask(Register, Vec<u8>),
    /// Goes on if the register equals.
    Equals(Register, Vec<u8>),
    /// Goes on if the register differs.
    Differs(Register, Vec<u8>),
    /// Goes on if the register, as a number of the network's order, lies between both, inclusive.
    Between(Register, Vec<u8>, Vec<u8>),
    /// Goes on if the set has the key that begins in the register.
    InSet(String, Register),
    /// Loads what a map has for the key that begins in a register; ends the rule if it has nothing.
    Look {
        /// The map.
        map: String,
        /// Where the key begins.
        key: Register,
        /// Where the value shall begin.
        to: Register,
    },
    /// Counts the packet for the key that begins in the register; ends the rule if the set has no room for one more.
    Tally(String, Register),
    /// Counts in a counter of the table.
    Count(String),
    /// Ends the rule.
    Verdict(Verdict),
    /// Binds the connection to the address in the register, and ends the rule.
    Nat(NatKind, Ip, Register),
}

impl Expr {
    /// Appends the expression as an element of a rule's list.
    pub(super) fn write(&self, w: &mut Writer) {
        let (name, fill): (&str, &dyn Fn(&mut Writer)) = match self {
            Self::Payload { base, offset, len, to } => ("payload", &move |w| {
                number(w, 1, to.wire());
                number(
                    w,
                    2,
                    match base {
                        Base::Network => 1,
                        Base::Transport => 2,
                    },
                );
                number(w, 3, *offset);
                number(w, 4, *len);
            }),
            Self::Meta(key, to) => ("meta", &move |w| {
                number(w, 1, to.wire());
                number(w, 2, key.wire());
            }),
            Self::Ct(key, to) => ("ct", &move |w| {
                let (key, tuple) = ct_key(*key);
                number(w, 1, to.wire());
                number(w, 2, key);
                if let Some(tuple) = tuple {
                    w.attr(3, &[tuple.number()]);
                }
            }),
            Self::RouteIsProtected(to) => ("rt", &move |w| {
                number(w, 1, to.wire());
                number(w, 2, NFT_RT_XFRM);
            }),
            Self::Reqid(way, to) => ("xfrm", &move |w| {
                number(w, 1, to.wire());
                number(w, 2, NFT_XFRM_KEY_REQID);
                // XFRM_POLICY_IN and XFRM_POLICY_OUT.
                w.attr(3, &[u8::from(*way == Way::Out)]);
                number(w, 4, 0);
            }),
            Self::Exceeds(limit) => ("objref", &move |w| {
                number(w, 1, super::OBJECT_LIMIT);
                w.attr_text(2, limit);
            }),
            Self::Constant(to, value) => ("immediate", &move |w| {
                number(w, 1, to.wire());
                data(w, 2, value);
            }),
            Self::Mask(at, mask) => ("bitwise", &move |w| {
                number(w, 1, at.wire());
                number(w, 2, at.wire());
                number(w, 3, u32::try_from(mask.len()).unwrap_or(u32::MAX));
                data(w, 4, mask);
                data(w, 5, &vec![0; mask.len()]);
            }),
            Self::Equals(at, value) => ("cmp", &move |w| compare(w, *at, NFT_CMP_EQ, value)),
            Self::Differs(at, value) => ("cmp", &move |w| compare(w, *at, NFT_CMP_NEQ, value)),
            Self::Between(at, from, to) => ("range", &move |w| {
                number(w, 1, at.wire());
                number(w, 2, NFT_CMP_EQ);
                data(w, 3, from);
                data(w, 4, to);
            }),
            Self::InSet(set, at) => ("lookup", &move |w| {
                w.attr_text(1, set);
                number(w, 2, at.wire());
            }),
            Self::Look { map, key, to } => ("lookup", &move |w| {
                w.attr_text(1, map);
                number(w, 2, key.wire());
                number(w, 3, to.wire());
            }),
            Self::Tally(set, at) => ("dynset", &move |w| {
                w.attr_text(1, set);
                number(w, 3, NFT_DYNSET_OP_UPDATE);
                number(w, 4, at.wire());
                w.nest(7, |w| {
                    w.attr_text(1, "counter");
                    w.nest(2, |_| {});
                });
            }),
            Self::Count(counter) => ("objref", &move |w| {
                number(w, 1, super::OBJECT_COUNTER);
                w.attr_text(2, counter);
            }),
            Self::Verdict(verdict) => ("immediate", &move |w| {
                number(w, 1, 0);
                w.nest(2, |w| {
                    w.nest(2, |w| {
                        let (code, chain) = match verdict {
                            Verdict::Drop => (0, None),
                            Verdict::Accept => (1, None),
                            Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
                            Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
                        };
                        number(w, 1, code);
                        if let Some(chain) = chain {
                            w.attr_text(2, chain);
                        }
                    });
                });
            }),
            Self::Nat(kind, ip, from) => ("nat", &move |w| {
                number(
                    w,
                    1,
                    match kind {
                        NatKind::Source => 0,
                        NatKind::Destination => 1,
                    },
                );
                number(w, 2, u32::from(ip.number()));
                number(w, 3, from.wire());
            }),
        };
        w.nest(super::LIST_ELEM, |w| {
            w.attr_text(1, name);
            w.nest(2, fill);
        });
    }
}

/// -3 and -4 in `enum nft_verdicts`.
const NFT_JUMP: u32 = u32::MAX - 2;
const NFT_GOTO: u32 = u32::MAX - 3;
const NFT_RT_XFRM: u32 = 4;
const NFT_XFRM_KEY_REQID: u32 = 5;
const NFT_LIMIT_PKT_BYTES: u32 = 1;
/// The expression goes on for what exceeds the rate, not for what keeps it.
const NFT_LIMIT_F_INV: u32 = 1;
/// Elements that are there begin their time anew.
const NFT_DYNSET_OP_UPDATE: u32 = 1;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;

const fn ct_key(key: Ct) -> (u32, Option<Tuple>) {
    match key {
        Ct::State => (0, None),
        Ct::Direction => (1, None),
        Ct::Status => (2, None),
        Ct::Protocol => (10, None),
        Ct::SourcePort(tuple) => (11, Some(tuple)),
        Ct::DestinationPort(tuple) => (12, Some(tuple)),
        Ct::Source(tuple, Ip::V4) => (19, Some(tuple)),
        Ct::Destination(tuple, Ip::V4) => (20, Some(tuple)),
        Ct::Source(tuple, Ip::V6) => (21, Some(tuple)),
        Ct::Destination(tuple, Ip::V6) => (22, Some(tuple)),
    }
}

fn number(w: &mut Writer, kind: u16, value: u32) {
    w.attr(kind, &value.to_be_bytes());
}

fn data(w: &mut Writer, kind: u16, value: &[u8]) {
    w.nest(kind, |w| w.attr(1, value));
}

fn compare(w: &mut Writer, at: Register, operator: u32, value: &[u8]) {
    number(w, 1, at.wire());
    number(w, 2, operator);
    data(w, 3, value);
}
