//! ESP packets on their way out, laid out so that the kernel can take many in one call.
//!
//! Packets are built in place at the end of one arena. A packet that has the same way, the same TOS and the same length
//! as the one before joins its train (`UDP_SEGMENT`); a shorter one joins and ends it.

use std::ops::Range;

use cygnet_esp::DropReason;
use cygnet_esp::engine::OuterPath;

use crate::sys::mmsg::Outgoing;

/// Datagrams in one train; kernels before 6.9 take no more.
const MAX_SEGMENTS: usize = 64;
/// Octets of a UDP datagram, trains included.
const MAX_TRAIN: usize = 65_507;
/// Octets of packets until the batch should be sent; about what stays in a core's cache.
const FULL: usize = 192 << 10;
/// Datagrams until then.
const MAX_DATAGRAMS: usize = 128;
/// Room behind `FULL`, for the segments of one superpacket with their headers.
const SLACK: usize = 256 << 10;

pub(super) struct Batch {
    arena: Vec<u8>,
    used: usize,
    trains: Vec<Train>,
    gso: bool,
}

/// Datagrams that leave in one piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Train {
    pub path: OuterPath,
    pub tos: u8,
    pub range: Range<usize>,
    /// Length of each but the last.
    pub segment: usize,
    pub count: usize,
    open: bool,
}

impl Train {
    pub fn outgoing(&self) -> Outgoing {
        let segment = (self.count > 1).then_some(self.segment as u16);
        Outgoing { range: self.range.clone(), segment, to: self.path.remote, tos: self.tos }
    }

    /// The same datagrams, each for itself.
    pub fn single(&self) -> impl Iterator<Item = Outgoing> {
        let end = self.range.end;
        self.range.clone().step_by(self.segment.max(1)).map(move |start| Outgoing {
            range: start..(start + self.segment).min(end),
            segment: None,
            to: self.path.remote,
            tos: self.tos,
        })
    }
}

impl Batch {
    pub fn new(gso: bool) -> Self {
        Self { arena: vec![0; FULL + SLACK], used: 0, trains: Vec::with_capacity(MAX_DATAGRAMS), gso }
    }

    /// Whether to send now.
    pub fn is_full(&self) -> bool {
        self.used >= FULL || self.trains.len() >= MAX_DATAGRAMS
    }

    pub fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    pub fn trains(&self) -> &[Train] {
        &self.trains
    }

    pub fn arena(&self) -> &[u8] {
        &self.arena
    }

    pub fn clear(&mut self) {
        self.used = 0;
        self.trains.clear();
    }

    /// Lets `build` make a packet of `len` octets at the end of the arena. It is part of the batch if that succeeds.
    pub fn push<T>(
        &mut self,
        len: usize,
        path: &OuterPath,
        tos: u8,
        build: impl FnOnce(&mut [u8]) -> Result<T, DropReason>,
    ) -> Result<T, DropReason> {
        let range = self.used..self.used + len;
        let value = build(self.arena.get_mut(range.clone()).ok_or(DropReason::TooBig)?)?;
        self.used = range.end;
        match self.trains.last_mut().filter(|train| {
            self.gso
                && train.open
                && train.path == *path
                && train.tos == tos
                && len <= train.segment
                && train.count < MAX_SEGMENTS
                && train.range.len() + len <= MAX_TRAIN
        }) {
            Some(train) => {
                train.range.end = range.end;
                train.count += 1;
                train.open = len == train.segment;
            }
            None => {
                self.trains.push(Train { path: *path, tos, range, segment: len, count: 1, open: true });
            }
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(port: u16) -> OuterPath {
        OuterPath { local: ([127, 0, 0, 1], 4500).into(), remote: ([127, 0, 0, 1], port).into() }
    }

    fn fill(batch: &mut Batch, packets: &[(usize, u16, u8)]) -> Vec<(usize, usize)> {
        for (len, port, tos) in packets {
            batch.push(*len, &path(*port), *tos, |_| Ok(())).unwrap();
        }
        batch.trains().iter().map(|t| (t.count, t.range.len())).collect()
    }

    #[test]
    fn equal_packets_of_one_way_join_and_a_short_one_ends_the_train() {
        let packets =
            [(100, 1, 0), (100, 1, 0), (60, 1, 0), (100, 1, 0), (100, 2, 0), (100, 2, 3), (120, 2, 3)];
        let mut batch = Batch::new(true);
        assert_eq!(fill(&mut batch, &packets), [(3, 260), (1, 100), (1, 100), (1, 100), (1, 120)]);
        assert_eq!(batch.trains()[0].outgoing().segment, Some(100));
        let lens: Vec<_> = batch.trains()[0].single().map(|d| d.range.len()).collect();
        assert_eq!(lens, [100, 100, 60]);
        assert_eq!(batch.trains()[1].outgoing().segment, None);
    }

    #[test]
    fn without_offload_each_packet_goes_alone() {
        assert_eq!(fill(&mut Batch::new(false), &[(100, 1, 0), (100, 1, 0)]), [(1, 100), (1, 100)]);
    }

    #[test]
    fn trains_keep_the_kernels_limits() {
        let mut batch = Batch::new(true);
        assert_eq!(fill(&mut batch, &[(10, 1, 0); 70]), [(64, 640), (6, 60)]);
        batch.clear();
        assert_eq!(fill(&mut batch, &[(1436, 1, 0); 50]), [(45, 64_620), (5, 7180)]);
    }

    #[test]
    fn a_failed_packet_leaves_nothing() {
        let mut batch = Batch::new(true);
        let failed: Result<(), _> = batch.push(100, &path(1), 0, |_| Err(DropReason::Limit));
        assert_eq!(failed, Err(DropReason::Limit));
        assert!(batch.is_empty());
        assert_eq!(batch.push(usize::MAX / 2, &path(1), 0, |_| Ok(())), Err(DropReason::TooBig));
    }
}
