//! What a tunnel has counted, as octets.
//!
//! ```text
//!  +-----------+-----------+----------+------------+-----+----------------------------+-----------------------+
//!  | totals ×6 | rekeys ×4 | downtime | down since | SAs | identifier, counters ×4, … | length, reason, count | …
//!  +-----------+-----------+----------+------------+-----+----------------------------+-----------------------+
//! ```
//!
//! Numbers have eight octets in the network's order, how many SAs there are four, a reason's length one. Times are in
//! nanoseconds, moments those of the clock of the boot; 0: it is not down.

use std::collections::BTreeMap;
use std::time::Duration;

use cygnet_model::Timestamp;
use cygnet_model::plane::SaCounters;

use super::record::{read_sa, take, write_sa};
use crate::observe::counters::{Tally, Totals};

/// Octets of an SA.
const SA: usize = 43;

/// As octets.
pub fn show(tally: &Tally) -> Vec<u8> {
    let t = &tally.totals;
    let totals = [t.bytes_in, t.packets_in, t.bytes_out, t.packets_out, t.replay, t.integrity];
    let downtime = u64::try_from(tally.downtime.as_nanos()).unwrap_or(u64::MAX);
    let mut out = Vec::with_capacity(100 + tally.sas.len() * SA + tally.failures.len() * 40);
    let down_since = tally.down_since.map_or(0, Timestamp::as_nanos);
    let numbers = totals.into_iter().chain(tally.rekeys.into_iter().flatten()).chain([downtime, down_since]);
    numbers.for_each(|n| out.extend_from_slice(&n.to_be_bytes()));
    out.extend_from_slice(&u32::try_from(tally.sas.len()).unwrap_or(u32::MAX).to_be_bytes());
    for (sa, c) in &tally.sas {
        write_sa(*sa, &mut out);
        [c.bytes, c.packets, c.replay, c.integrity]
            .iter()
            .for_each(|n| out.extend_from_slice(&n.to_be_bytes()));
    }
    for (reason, count) in &tally.failures {
        let Ok(len) = u8::try_from(reason.len()) else { continue };
        out.push(len);
        out.extend_from_slice(reason.as_bytes());
        out.extend_from_slice(&count.to_be_bytes());
    }
    out
}

/// Reads what [`show`] wrote; `None` if it is anything else.
pub fn parse(mut value: &[u8]) -> Option<Tally> {
    let from = &mut value;
    let mut number = || take(from).map(u64::from_be_bytes);
    let totals = Totals {
        bytes_in: number()?,
        packets_in: number()?,
        bytes_out: number()?,
        packets_out: number()?,
        replay: number()?,
        integrity: number()?,
    };
    let rekeys = [[number()?, number()?], [number()?, number()?]];
    let downtime = Duration::from_nanos(number()?);
    let down_since = Some(number()?).filter(|since| *since > 0).map(Timestamp::from_nanos);
    let count = u32::from_be_bytes(take(from)?);
    let mut sas = BTreeMap::new();
    for _ in 0..count {
        let sa = read_sa(from)?;
        let mut number = || take(from).map(u64::from_be_bytes);
        let counted = SaCounters {
            bytes: number()?,
            packets: number()?,
            replay: number()?,
            integrity: number()?,
            sequence: 0,
        };
        sas.insert(sa, counted);
    }
    let mut failures = BTreeMap::new();
    while let Some((len, rest)) = from.split_first() {
        let (reason, rest) = rest.split_at_checked(usize::from(*len))?;
        *from = rest;
        failures.insert(std::str::from_utf8(reason).ok()?.to_owned(), u64::from_be_bytes(take(from)?));
    }
    Some(Tally { totals, sas, rekeys, failures, downtime, down_since })
}

#[cfg(test)]
mod tests {
    use cygnet_model::tunnel::{Direction, SaId};
    use cygnet_model::{ChildId, Spi, TunnelId};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_tally_comes_back_as_it_was(n in prop::collection::vec(any::<u64>(), 15), sas in 0u32..5, words in prop::collection::vec("[a-z_]{1,30}", 0..5)) {
            let counted = SaCounters { bytes: n[0], packets: n[1], replay: n[2], integrity: n[3], sequence: 0 };
            let sa = |k| SaId {
                child: ChildId { tunnel: TunnelId(k), index: 7 },
                direction: if k % 2 == 0 { Direction::In } else { Direction::Out },
                spi: Spi::new(256 + k).unwrap(),
            };
            let tally = Tally {
                totals: Totals { bytes_in: n[4], packets_in: n[5], bytes_out: n[6], packets_out: n[7], replay: n[8], integrity: n[9] },
                sas: (0..sas).map(|k| (sa(k), counted)).collect(),
                rekeys: [[n[10], n[11]], [n[12], n[13]]],
                failures: words.into_iter().map(|word| (word, n[14])).collect(),
                downtime: Duration::from_nanos(n[14]),
                down_since: (n[13] > 0).then(|| Timestamp::from_nanos(n[13])),
            };
            let shown = show(&tally);
            prop_assert_eq!(parse(&shown), Some(tally));
        }

        #[test]
        fn anything_else_is_refused_without_harm(octets in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(tally) = parse(&octets) {
                prop_assert_eq!(parse(&show(&tally)), Some(tally));
            }
        }

        #[test]
        fn one_that_was_cut_is_none(cut in 0usize..143) {
            let sa = SaId { child: ChildId { tunnel: TunnelId(1), index: 0 }, direction: Direction::In, spi: Spi::new(256).unwrap() };
            let tally = Tally { sas: [(sa, SaCounters::default())].into(), ..Tally::default() };
            let shown = show(&tally);
            prop_assert_eq!(shown.len(), 143);
            prop_assert_eq!(parse(&shown[..cut]), None);
        }
    }
}
