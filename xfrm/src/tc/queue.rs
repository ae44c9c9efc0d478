//! The queue of a class: what waits there waits for a bounded time, and flows wait for themselves.
//!
//! A token bucket (`net/sched/sch_tbf.c`) that never holds anything back stands in front, because it is the one qdisc in
//! every kernel that cuts superpackets of segmentation offload into packets: a superpacket of 64 KiB would hold up others
//! for 100 ms at 5 Mbit/s. One that holds nobody up for long passes whole, which is what offload is for. Behind it is `fq_codel`, or the bucket's own bfifo where the kernel has none.

use super::htb::{self, HtbRates, LINKLAYER_ETHERNET};
use super::{Handle, TCA_KIND, TCA_OPTIONS, Tc, TcMessage};
use crate::codec::Writer;
use crate::error::NetlinkError;
use crate::socket::{NLM_F_CREATE, NLM_F_REPLACE, Request};

const RTM_NEWQDISC: u16 = 36;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_FQ_CODEL_TARGET: u16 = 1;
const TCA_FQ_CODEL_LIMIT: u16 = 2;
const TCA_FQ_CODEL_INTERVAL: u16 = 3;
/// What may wait, in milliseconds of the rate.
const QUEUE_MS: u64 = 20;
/// And at least so many full packets, or slow links could not be filled.
const QUEUE_PACKETS: u64 = 4;
/// The largest superpacket that passes whole, in microseconds of the rate.
const WHOLE_US: u64 = 1_000;
/// Ethernet header with two VLAN tags.
const LINK_HEADER: u32 = 22;
/// The bucket's rate: none that a class ever has.
const UNHINDERED_BPS: u64 = 400_000_000_000;

impl Tc {
    /// Puts its queue into a class, or changes it in place.
    ///
    /// # Errors
    /// As the kernel says; `ENOENT` if it has no token bucket.
    pub(super) fn put_queue(
        &mut self,
        interface: u32,
        class: Handle,
        rates: &HtbRates,
        mtu: u32,
    ) -> Result<(), NetlinkError> {
        let frame = mtu.saturating_add(LINK_HEADER);
        let bucket = Handle(u32::from(class.minor()) << 16);
        let put = NLM_F_CREATE | NLM_F_REPLACE;
        let w = put_bucket(interface, bucket, class, octets(rates, frame), whole(rates, frame));
        self.socket.request(&Request::new(RTM_NEWQDISC, put, w))?;
        let w = put_fair(interface, Handle(bucket.0 | 1), rates, frame);
        match self.socket.request(&Request::new(RTM_NEWQDISC, put, w)) {
            // A kernel without it: the bucket has a queue of its own.
            Err(e) if e.is_absent() => Ok(()),
            other => other,
        }
    }
}

/// Octets that may wait.
const fn octets(rates: &HtbRates, frame: u32) -> u32 {
    let least = QUEUE_PACKETS * frame as u64;
    htb::clamp(rates.ceil_bps / 8 * QUEUE_MS / 1000, htb::clamp(least, 0, u32::MAX), 64 << 20)
}

/// Octets of the largest packet that is not cut.
const fn whole(rates: &HtbRates, frame: u32) -> u32 {
    htb::clamp(rates.ceil_bps / 8 * WHOLE_US / 1_000_000, frame, 1 << 20)
}

fn put_bucket(interface: u32, handle: Handle, parent: Handle, limit: u32, whole: u32) -> Writer {
    let mut w = TcMessage { interface, handle, parent, info: 0 }.writer();
    let rate = UNHINDERED_BPS / 8;
    w.attr_text(TCA_KIND, "tbf");
    w.nest(TCA_OPTIONS, |w| {
        // struct tc_tbf_qopt: rate, peak rate, limit, buffer, mtu; rates as in struct tc_ratespec.
        let mut options = vec![0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
        options.extend_from_slice(&u32::MAX.to_ne_bytes());
        options.extend_from_slice(&[0; 12]);
        for field in [limit, htb::ticks(whole, rate), 0] {
            options.extend_from_slice(&field.to_ne_bytes());
        }
        w.attr(TCA_TBF_PARMS, &options);
        w.attr_u64(TCA_TBF_RATE64, rate);
        w.attr_u32(TCA_TBF_BURST, whole);
    });
    w
}

fn put_fair(interface: u32, parent: Handle, rates: &HtbRates, frame: u32) -> Writer {
    let mut w = TcMessage { interface, handle: Handle(0), parent, info: 0 }.writer();
    let packet_us = u64::from(frame) * 8 * 1_000_000 / rates.ceil_bps.max(1);
    let limit = octets(rates, frame) / frame.max(1);
    w.attr_text(TCA_KIND, "fq_codel");
    w.nest(TCA_OPTIONS, |w| {
        // Below one and a half packets there is no queue to be short.
        w.attr_u32(TCA_FQ_CODEL_TARGET, u32::try_from((packet_us * 3 / 2).max(5_000)).unwrap_or(u32::MAX));
        w.attr_u32(TCA_FQ_CODEL_INTERVAL, u32::try_from((packet_us * 30).max(100_000)).unwrap_or(u32::MAX));
        w.attr_u32(TCA_FQ_CODEL_LIMIT, limit.max(4));
    });
    w
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_by_time_where_the_rate_allows() {
        let octets = |mbit: u64| octets(&HtbRates::cap(mbit * 1_000_000), 1522);
        assert_eq!((octets(1), octets(5), octets(100)), (4 * 1522, 12_500, 250_000));
        assert_eq!(octets(1_000), 2_500_000);
    }

    #[test]
    fn superpackets_pass_whole_where_they_hold_nobody_up_for_more_than_a_millisecond() {
        let whole = |mbit: u64| whole(&HtbRates::cap(mbit * 1_000_000), 1522);
        assert_eq!((whole(1), whole(10), whole(100)), (1522, 1522, 12_500));
        assert_eq!((whole(1_000), whole(100_000)), (125_000, 1 << 20));
    }
}
