//! Who uses a gateway the most: its tunnels by what they carry, and strangers by what of theirs was refused.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The counters of all tunnels at one moment. Two of them make rates.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct TopTunnels {
    /// The moment, in nanoseconds of the daemon's clock, which knows no steps.
    pub at_ns: u64,
    /// In the order of the file.
    pub tunnels: Vec<TunnelTotals>,
    /// Inner addresses that carried something lately, or were kept from it; the busiest ones if they are very many.
    #[serde(default)]
    pub ips: Vec<IpTotals>,
    /// Whether the data plane counts inner addresses.
    #[serde(default)]
    pub counts_ips: bool,
}

/// Inner addresses that are told of at once.
pub const MOST_IPS: usize = 1000;

/// What an inner address has carried.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct IpTotals {
    /// Its gateway.
    pub gateway: String,
    /// The address.
    pub ip: IpAddr,
    /// Octets of packets to it, since it is known.
    pub bytes_in: u64,
    /// Packets to it.
    pub packets_in: u64,
    /// Octets of packets from it.
    pub bytes_out: u64,
    /// Packets from it.
    pub packets_out: u64,
    /// Packets of either direction that its limit dropped.
    pub dropped: u64,
    /// Octets to it in the minute that is not over.
    #[serde(default)]
    pub now_in: u64,
    /// Octets from it in the minute that is not over.
    #[serde(default)]
    pub now_out: u64,
    /// Octets to it in the last full minute.
    pub minute_in: u64,
    /// Octets from it in the last full minute.
    pub minute_out: u64,
    /// Octets to it in the last day.
    pub day_in: u64,
    /// Octets from it in the last day.
    pub day_out: u64,
    /// Its limit, as the configuration would write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

/// An inner address at its busiest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct IpPeak {
    /// Its gateway.
    pub gateway: String,
    /// The address.
    pub ip: IpAddr,
    /// Octets to it in the minutes in which it was among the busiest.
    pub bytes_in: u64,
    /// Octets from it.
    pub bytes_out: u64,
    /// Mean bits a second, both directions, in its busiest minute.
    pub peak_bps: u64,
    /// When that minute began, RFC 3339.
    pub peak_at: String,
    /// Its limit, as the configuration would write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}

/// What a tunnel has carried, over all generations of its keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct TunnelTotals {
    /// Its name.
    pub tunnel: String,
    /// Its gateway.
    pub gateway: String,
    /// Octets of inner packets received.
    pub bytes_in: u64,
    /// Packets received.
    pub packets_in: u64,
    /// Octets of inner packets sent.
    pub bytes_out: u64,
    /// Packets sent.
    pub packets_out: u64,
}

/// Strangers whose datagrams were refused.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct TopPeers {
    /// How long they have been listened to, in seconds.
    pub window_s: u64,
    /// The loudest, loudest first.
    pub peers: Vec<LoudPeer>,
}

/// An address whose datagrams were refused. It is unproven: anybody can send from any address.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct LoudPeer {
    /// Address, or network of 64 bits.
    pub source: String,
    /// Datagrams that were refused, at most.
    pub refused: u64,
    /// By how much that may be too many.
    pub over: u64,
    /// By reason.
    pub reasons: BTreeMap<String, u64>,
    /// Seconds since the last one.
    pub last_s: u64,
    /// The customer gateway that is said to be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_gateway: Option<String>,
}

/// What a tunnel carries in a second.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub struct TunnelRate {
    /// What it has carried.
    #[serde(flatten)]
    pub totals: TunnelTotals,
    /// Bits a second received.
    pub rx_bps: u64,
    /// Bits a second sent.
    pub tx_bps: u64,
    /// Packets a second received.
    pub rx_pps: u64,
    /// Packets a second sent.
    pub tx_pps: u64,
}

/// What an inner address carries in a second.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub struct IpRate {
    /// What it has carried.
    #[serde(flatten)]
    pub totals: IpTotals,
    /// Bits a second to it.
    pub rx_bps: u64,
    /// Bits a second from it.
    pub tx_bps: u64,
    /// Packets a second that its limit drops.
    pub dropped_pps: u64,
}

/// How to make rates of totals of two moments.
fn per_second(before: &TopTunnels, now: &TopTunnels) -> impl Fn(u64, u64, u128) -> u64 + use<> {
    let span = u128::from(now.at_ns.saturating_sub(before.at_ns)).max(1);
    move |now, before, of| {
        let more = u128::from(now.saturating_sub(before));
        u64::try_from(more * of * 1_000_000_000 / span).unwrap_or(u64::MAX)
    }
}

/// What inner addresses carried between two moments, the busiest first.
pub fn ip_rates(before: &TopTunnels, now: &TopTunnels) -> Vec<IpRate> {
    let rate = per_second(before, now);
    let earlier: BTreeMap<(&str, IpAddr), (u64, u64, u64)> = before
        .ips
        .iter()
        .map(|ip| ((&*ip.gateway, ip.ip), (ip.bytes_in, ip.bytes_out, ip.dropped)))
        .collect();
    let cut = before.ips.len() >= MOST_IPS;
    // One that was not there had been quiet for a minute: what it carried in this one and the last came since. But where
    // some were left out, it may be one of those, and has no rate yet.
    let unseen = |ip: &IpTotals| {
        let lately = |total: u64, minute: u64, now: u64| total.saturating_sub(minute.saturating_add(now));
        match cut {
            true => (ip.bytes_in, ip.bytes_out, ip.dropped),
            false => (
                lately(ip.bytes_in, ip.minute_in, ip.now_in),
                lately(ip.bytes_out, ip.minute_out, ip.now_out),
                0,
            ),
        }
    };
    let mut all: Vec<IpRate> = (now.ips.iter())
        .map(|ip| (ip, earlier.get(&(&*ip.gateway, ip.ip)).copied().unwrap_or_else(|| unseen(ip))))
        .map(|(ip, e)| IpRate {
            totals: ip.clone(),
            rx_bps: rate(ip.bytes_in, e.0, 8),
            tx_bps: rate(ip.bytes_out, e.1, 8),
            dropped_pps: rate(ip.dropped, e.2, 1),
        })
        .collect();
    all.sort_by_key(|ip| std::cmp::Reverse((u128::from(ip.rx_bps) + u128::from(ip.tx_bps), ip.dropped_pps)));
    all
}

/// What tunnels carried between two moments, the busiest first.
pub fn rates(before: &TopTunnels, now: &TopTunnels) -> Vec<TunnelRate> {
    let rate = per_second(before, now);
    let earlier: BTreeMap<&str, &TunnelTotals> = before.tunnels.iter().map(|t| (&*t.tunnel, t)).collect();
    let mut all: Vec<TunnelRate> = (now.tunnels.iter())
        // One that was not there has no rate yet.
        .map(|t| (t, earlier.get(&*t.tunnel).copied().unwrap_or(t)))
        .map(|(t, e)| TunnelRate {
            totals: t.clone(),
            rx_bps: rate(t.bytes_in, e.bytes_in, 8),
            tx_bps: rate(t.bytes_out, e.bytes_out, 8),
            rx_pps: rate(t.packets_in, e.packets_in, 1),
            tx_pps: rate(t.packets_out, e.packets_out, 1),
        })
        .collect();
    all.sort_by_key(|t| std::cmp::Reverse(u128::from(t.rx_bps) + u128::from(t.tx_bps)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: u64, octets: &[(&str, u64)]) -> TopTunnels {
        let tunnel = |(name, n): &(&str, u64)| TunnelTotals {
            tunnel: (*name).to_owned(),
            bytes_out: *n,
            packets_out: n / 100,
            ..TunnelTotals::default()
        };
        TopTunnels {
            at_ns: ns,
            tunnels: octets.iter().map(tunnel).collect(),
            ips: Vec::new(),
            counts_ips: true,
        }
    }

    #[test]
    fn rates_are_what_was_carried_in_between_and_the_busiest_comes_first() {
        let before = at(1_000_000_000, &[("a", 1000), ("b", 1000)]);
        let now = at(3_000_000_000, &[("a", 1200), ("b", 5000), ("new", 9999)]);
        let rates = rates(&before, &now);
        let told: Vec<_> = rates.iter().map(|r| (&*r.totals.tunnel, r.tx_bps, r.tx_pps)).collect();
        assert_eq!(told, [("b", 16_000, 20), ("a", 800, 1), ("new", 0, 0)]);
    }

    #[test]
    fn an_address_that_was_not_there_has_the_rate_of_what_it_carried_since() {
        let ip = |n: u8, bytes: u64, dropped: u64| IpTotals {
            gateway: "g".to_owned(),
            ip: IpAddr::from([10, 1, 0, n]),
            bytes_in: bytes,
            packets_in: 0,
            bytes_out: 0,
            packets_out: 0,
            dropped,
            now_in: 0,
            now_out: 0,
            minute_in: 0,
            minute_out: 0,
            day_in: 0,
            day_out: 0,
            limit: None,
        };
        let at = |s: u64, ips: Vec<IpTotals>| TopTunnels {
            at_ns: s * 1_000_000_000,
            ips,
            ..TopTunnels::default()
        };
        let before = at(1, vec![ip(1, 1_000, 0), ip(2, 5_000, 0)]);
        // It had carried a lot yesterday.
        let back = IpTotals { now_in: 6_000, minute_in: 3_000, ..ip(3, 9_000_000, 0) };
        let now = at(3, vec![ip(1, 1_500, 0), ip(2, 5_000, 8), back]);
        let rates = ip_rates(&before, &now);
        let told: Vec<_> = rates.iter().map(|r| (r.totals.ip.to_string(), r.rx_bps, r.dropped_pps)).collect();
        let want = [("10.1.0.3", 36_000, 0), ("10.1.0.1", 2_000, 0), ("10.1.0.2", 0, 4)];
        assert_eq!(told, want.map(|(ip, rx, dropped)| (ip.to_owned(), rx, dropped)));
        let many = at(1, vec![ip(9, 1, 0); MOST_IPS]);
        assert!(ip_rates(&many, &now).iter().all(|r| r.rx_bps == 0), "they may have been left out");
    }

    #[test]
    fn nothing_passes_in_no_time() {
        let same = at(5, &[("a", u64::MAX)]);
        assert_eq!(rates(&same, &same)[0].tx_bps, 0);
        assert_eq!(rates(&same, &at(5, &[("a", 0)]))[0].tx_bps, 0, "counters that begin anew");
    }
}
