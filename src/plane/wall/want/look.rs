//! How a rule looks at a packet: its header, its answer's, or what connection tracking knows of it.

use cygnet_xfrm::nft::Expr;
use cygnet_xfrm::nft::expr::{Base, Ct, Ip, Meta, Register, Tuple};

use super::shape::{Shape, Upper};

/// `NF_CT_STATE_INVALID_BIT | NF_CT_STATE_UNTRACKED_BIT`: no entry of conntrack.
const NO_ENTRY: u32 = 1 | 64;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

impl End {
    const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// Where a rule takes the addresses from.
#[derive(Clone, Copy)]
pub(super) enum Look {
    /// The packet as it is.
    Header,
    /// Its answer: source and destination exchanged.
    Turned,
    /// The tuples of its connection, for packets of this direction.
    Tuples { direction: Tuple, source: Of, destination: Of },
}

impl Look {
    /// As it was sent.
    pub(super) const SENT: Self =
        Self::tuples(Tuple::Original, Of::Source(Tuple::Original), Of::Destination(Tuple::Original));
    /// As it was sent, to where it was redirected.
    pub(super) const REDIRECTED: Self =
        Self::tuples(Tuple::Original, Of::Source(Tuple::Original), Of::Source(Tuple::Reply));
    /// An answer before its source is put back.
    pub(super) const ANSWER: Self =
        Self::tuples(Tuple::Reply, Of::Source(Tuple::Reply), Of::Source(Tuple::Original));

    pub(super) const fn tuples(direction: Tuple, source: Of, destination: Of) -> Self {
        Self::Tuples { direction, source, destination }
    }
}

/// An end of a tuple.
#[derive(Clone, Copy)]
pub(super) enum Of {
    Source(Tuple),
    Destination(Tuple),
}

impl Of {
    const fn address(self, ip: Ip) -> Ct {
        match self {
            Self::Source(tuple) => Ct::Source(tuple, ip),
            Self::Destination(tuple) => Ct::Destination(tuple, ip),
        }
    }

    const fn port(self) -> Ct {
        match self {
            Self::Source(tuple) => Ct::SourcePort(tuple),
            Self::Destination(tuple) => Ct::DestinationPort(tuple),
        }
    }
}

/// Keys end before this one.
pub(super) const ADDRESS: u8 = 12;
pub(super) const SCRATCH: Register = register(15);
pub(super) const SCRATCH_NAME: Register = register(ADDRESS);

pub(super) const fn register(number: u8) -> Register {
    match Register::new(number) {
        Some(register) => register,
        // Keys have at most 12 words.
        None => register(0),
    }
}

fn prefix_mask(words: u8, len: u8) -> Vec<u8> {
    let octets = usize::from(words) * 4;
    let mask = if len == 0 { 0 } else { u128::MAX << (128 - u32::from(len)) };
    mask.to_be_bytes().into_iter().take(octets).collect()
}

/// A name as the kernel compares it: all 16 octets.
pub(super) fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// Some of these bits are set in what conntrack knows.
pub(super) fn has_bits(of: Ct, bits: u32) -> Vec<Expr> {
    vec![
        Expr::Ct(of, SCRATCH),
        Expr::Mask(SCRATCH, bits.to_ne_bytes().to_vec()),
        Expr::Differs(SCRATCH, vec![0; 4]),
    ]
}

/// The packet has no entry of conntrack: what its header says is what was sent.
pub(super) fn no_entry() -> Vec<Expr> {
    has_bits(Ct::State, NO_ENTRY)
}

impl Shape {
    /// Loads what `look` sees of a packet into the registers from 0 on, masked, and looks it up.
    pub(super) fn look_up(&self, look: Look) -> Vec<Expr> {
        let words = self.address_words();
        let mut out = Vec::new();
        if let Look::Tuples { direction, .. } = look {
            out.push(Expr::Ct(Ct::Direction, SCRATCH));
            out.push(Expr::Equals(SCRATCH, vec![direction.number()]));
        }
        out.push(Expr::Meta(Meta::Family, SCRATCH));
        out.push(Expr::Equals(SCRATCH, vec![self.ip.number()]));
        for (end, at, len) in [(End::Source, 0, self.source), (End::Destination, words, self.destination)] {
            out.push(match look {
                Look::Header => self.header_address(end, at),
                Look::Turned => self.header_address(end.other(), at),
                Look::Tuples { source, destination, .. } => {
                    let from = match end {
                        End::Source => source,
                        End::Destination => destination,
                    };
                    Expr::Ct(from.address(self.ip), register(at))
                }
            });
            let width = words * 32;
            if len < width {
                out.push(Expr::Mask(register(at), prefix_mask(words, len)));
            }
        }
        let mut at = words * 2;
        let mut next = || {
            at += 1;
            register(at - 1)
        };
        if self.mark != 0 {
            let to = next();
            out.extend([Expr::Meta(Meta::Mark, to), Expr::Mask(to, self.mark.to_ne_bytes().to_vec())]);
        }
        match (self.upper, look) {
            (Upper::Nothing, _) => {}
            // An ICMP error is about a packet of its connection's protocol.
            (Upper::Protocol | Upper::Ports(..), Look::Tuples { .. }) => {
                out.push(Expr::Ct(Ct::Protocol, next()));
            }
            _ => out.push(Expr::Meta(Meta::Protocol, next())),
        }
        let transport = |offset, len, to| Expr::Payload { base: Base::Transport, offset, len, to };
        match self.upper {
            Upper::Nothing | Upper::Protocol => {}
            Upper::Ports(a, b) => {
                let (source_at, destination_at) = (next(), next());
                match look {
                    Look::Header => {
                        out.extend([transport(0, 2, source_at), transport(2, 2, destination_at)]);
                    }
                    Look::Turned => {
                        out.extend([transport(2, 2, source_at), transport(0, 2, destination_at)]);
                    }
                    Look::Tuples { source, destination, .. } => {
                        let ports = [
                            Expr::Ct(source.port(), source_at),
                            Expr::Ct(destination.port(), destination_at),
                        ];
                        out.extend(ports);
                    }
                }
                for (to, mask) in [(source_at, a), (destination_at, b)] {
                    let [high, low] = mask.to_be_bytes();
                    out.push(Expr::Mask(to, vec![high, low, 0, 0]));
                }
            }
            // Nothing translates these.
            Upper::Icmp(a, b) => {
                let (kind, code) = (next(), next());
                out.extend([transport(0, 1, kind), transport(1, 1, code)]);
                out.extend([Expr::Mask(kind, vec![a, 0, 0, 0]), Expr::Mask(code, vec![b, 0, 0, 0])]);
            }
        }
        out.push(Expr::InSet(self.set(), register(0)));
        out
    }

    pub(super) fn header_address(&self, end: End, at: u8) -> Expr {
        let (offset, len) = match (self.ip, end) {
            (Ip::V4, End::Source) => (12, 4),
            (Ip::V4, End::Destination) => (16, 4),
            (Ip::V6, End::Source) => (8, 16),
            (Ip::V6, End::Destination) => (24, 16),
        };
        Expr::Payload { base: Base::Network, offset, len, to: register(at) }
    }
}
