//! Counters of qdiscs and classes (`linux/gen_stats.h`).

use crate::codec;

const TCA_STATS2: u16 = 7;
const TCA_STATS_BASIC: u16 = 1;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_STATS_PKT64: u16 = 8;

/// What a queue counted since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QueueStats {
    /// Octets sent, link layer headers included.
    pub bytes: u64,
    /// Packets sent.
    pub packets: u64,
    /// Packets dropped; 32 bits in the kernel, so that it wraps.
    pub drops: u32,
    /// Times that a packet had to wait for the rate; wraps.
    pub overlimits: u32,
    /// Octets waiting now.
    pub backlog_bytes: u32,
    /// Packets waiting now.
    pub backlog_packets: u32,
}

impl QueueStats {
    /// Reads them from the attributes of a qdisc or class; zero where the kernel says nothing.
    pub(super) fn parse(attributes: &[u8]) -> Self {
        let nest = codec::find(attributes, TCA_STATS2).unwrap_or_default();
        let basic = codec::find(nest, TCA_STATS_BASIC).unwrap_or_default();
        let queue = codec::find(nest, TCA_STATS_QUEUE).unwrap_or_default();
        let field = |at| codec::u32_at(queue, at).unwrap_or(0);
        Self {
            bytes: codec::u64_at(basic, 0).unwrap_or(0),
            packets: codec::find(nest, TCA_STATS_PKT64)
                .and_then(|v| codec::u64_at(v, 0))
                .or_else(|| codec::u32_at(basic, 8).map(u64::from))
                .unwrap_or(0),
            backlog_packets: field(0),
            backlog_bytes: field(4),
            drops: field(8),
            overlimits: field(16),
        }
    }
}
