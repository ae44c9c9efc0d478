//! What is reached directly although a guard covers it ([`Bypass::Attached`]): this host's own addresses and the networks
//! attached to it, where they lie inside the guard's local selectors. A pure function, for both planes and the wall.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cygnet_model::selector::{IpRange, TrafficSelector};
use cygnet_model::tunnel::{Bypass, GuardSpec};
use cygnet_xfrm::address::OwnAddress;
use cygnet_xfrm::link::RtnlError;
use cygnet_xfrm::route::{Family, Prefix};
use cygnet_xfrm::routing::Routing;

/// Pairs of one guard. What is left over stays in the tunnel.
const PAIRS: usize = 1024;

/// A pair of prefixes between which packets are let by in both directions, unless selectors that are narrower than the
/// covering ones protect them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Near {
    /// Of the guard's local selectors.
    pub local: Prefix,
    /// An own address or an attached network.
    pub network: Prefix,
    /// Prefix length of the remote selector that covers the network.
    pub covering: u8,
}

/// The addresses of this host that packets of its own may have, with the networks attached by them.
pub fn own_addresses(routing: &mut Routing) -> Result<BTreeSet<OwnAddress>, RtnlError> {
    let mut out = BTreeSet::new();
    for family in Family::ALL {
        out.extend(routing.addresses(family)?.into_iter().filter(|own| match own.address {
            IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
            IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
        }));
    }
    Ok(out)
}

/// The own addresses and attached networks as prefixes.
pub fn attached<'a>(own: impl IntoIterator<Item = &'a OwnAddress>) -> BTreeSet<Prefix> {
    own.into_iter().flat_map(|own| [(own.address, u8::MAX), own.network]).filter_map(prefix).collect()
}

/// A prefix without host bits and no longer than an address.
fn prefix((addr, len): Prefix) -> Option<Prefix> {
    let len = len.min(if addr.is_ipv4() { 32 } else { 128 });
    IpRange::cidr(addr, len).map(|range| (range.start(), len))
}

/// The attached networks that a guard lets by, each with the widest of the remote selectors that cover it.
pub fn networks<'a>(
    guard: &'a GuardSpec,
    attached: &'a BTreeSet<Prefix>,
) -> impl Iterator<Item = (IpRange, &'a TrafficSelector)> {
    let wanted = guard.bypass == Bypass::Attached;
    attached.iter().filter(move |_| wanted).filter_map(|(addr, len)| {
        let near = IpRange::cidr(*addr, *len)?;
        // A local selector of everything names no network of ours.
        let is_local = |l: &TrafficSelector| l.range.prefix_len() != Some(0) && l.range.covers(&near);
        let covering = guard.remote.iter().filter(|remote| remote.range.covers(&near));
        let widest = covering.max_by_key(|remote| free_bits(&remote.range))?;
        guard.local.iter().any(is_local).then_some((near, widest))
    })
}

/// What a guard lets by as pairs of prefixes, none without [`Bypass::Attached`].
pub fn near(guard: &GuardSpec, attached: &BTreeSet<Prefix>) -> BTreeSet<Near> {
    let mut out = BTreeSet::new();
    for (network, widest) in networks(guard, attached) {
        let Some(len) = network.prefix_len() else { continue };
        let covering = widest.range.prefixes().into_iter().filter(|(addr, len)| {
            IpRange::cidr(*addr, *len).is_some_and(|prefix| prefix.intersect(&network).is_some())
        });
        let Some(covering) = covering.map(|(_, len)| len).max() else { continue };
        for local in guard.local.iter().filter(|local| local.range.same_family(&network)) {
            out.extend(local.range.prefixes().into_iter().map(|local| Near {
                local,
                network: (network.start(), len),
                covering,
            }));
        }
        if out.len() > PAIRS {
            break;
        }
    }
    out.into_iter().take(PAIRS).collect()
}

/// How wide a range is: the bits in which its addresses differ.
pub fn free_bits(range: &IpRange) -> u32 {
    match (range.start(), range.end()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => 32 - (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => 128 - (u128::from(a) ^ u128::from(b)).leading_zeros(),
        // A range has one family.
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use cygnet_model::tunnel::GuardAction;
    use cygnet_model::{ChildId, Reqid, TunnelId};

    use super::*;

    fn net(text: &str) -> TrafficSelector {
        let (address, len) = prefix_of(text);
        TrafficSelector::cidr(address, len).unwrap()
    }

    fn prefix_of(text: &str) -> Prefix {
        let (address, len) = text.split_once('/').unwrap();
        (address.parse().unwrap(), len.parse().unwrap())
    }

    fn guard(local: &[&str], remote: &[&str], bypass: Bypass) -> GuardSpec {
        let child = ChildId { tunnel: TunnelId(1), index: 0 };
        GuardSpec {
            child,
            reqid: Reqid::of(child).unwrap(),
            local: local.iter().map(|l| net(l)).collect(),
            remote: remote.iter().map(|r| net(r)).collect(),
            action: GuardAction::Drop,
            mark: None,
            weight: 0,
            bypass,
        }
    }

    #[test]
    fn what_is_attached_inside_the_local_selectors_is_near_and_nothing_else() {
        let attached: BTreeSet<Prefix> =
            ["10.1.0.0/24", "10.1.0.1/32", "192.0.2.0/24", "fd01::/64"].into_iter().map(prefix_of).collect();
        let all = guard(&["10.1.0.0/16"], &["0.0.0.0/0"], Bypass::Attached);
        let found: Vec<(Prefix, Prefix, u8)> =
            near(&all, &attached).into_iter().map(|n| (n.local, n.network, n.covering)).collect();
        let local = prefix_of("10.1.0.0/16");
        assert_eq!(found, [(local, prefix_of("10.1.0.0/24"), 0), (local, prefix_of("10.1.0.1/32"), 0)]);
        assert!(near(&GuardSpec { bypass: Bypass::None, ..all }, &attached).is_empty());
        // The remote selectors do not cover it: there is nothing to be let by.
        assert!(near(&guard(&["10.1.0.0/16"], &["10.2.0.0/16"], Bypass::Attached), &attached).is_empty());
        // A local selector of everything names no network of ours.
        assert!(near(&guard(&["0.0.0.0/0"], &["0.0.0.0/0"], Bypass::Attached), &attached).is_empty());
    }

    #[test]
    fn of_several_covering_selectors_the_widest_counts_and_the_narrower_ones_protect() {
        let attached = BTreeSet::from([prefix_of("10.1.0.0/24")]);
        let both = guard(&["10.1.0.0/16"], &["10.0.0.0/8", "0.0.0.0/0"], Bypass::Attached);
        assert_eq!(near(&both, &attached).first().map(|n| n.covering), Some(0));
    }
}
