//! What is reached directly although a guard covers it ([`cygnet_model::tunnel::Bypass`]): this host's own addresses and
//! the networks attached to it, where they lie inside the guard's local selectors, and what the configuration lists. A pure
//! function, for both planes and the wall.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cygnet_model::selector::{IpRange, TrafficSelector};
use cygnet_model::tunnel::GuardSpec;
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
    /// An own address, an attached network, or a listed one.
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

/// Those of them that packets of this host may have outside of VRFs.
pub fn sources(routing: &mut Routing, own: &BTreeSet<OwnAddress>) -> Result<BTreeSet<OwnAddress>, RtnlError> {
    let vrf = routing.vrf_interfaces()?;
    Ok(own.iter().filter(|own| !vrf.contains(&own.interface)).copied().collect())
}

/// The own addresses and attached networks as prefixes.
pub fn attached<'a>(own: impl IntoIterator<Item = &'a OwnAddress>) -> BTreeSet<Prefix> {
    own.into_iter().flat_map(|own| [(own.address, u8::MAX), own.network]).filter_map(clean).collect()
}

/// A prefix without host bits and no longer than an address.
fn clean((addr, len): Prefix) -> Option<Prefix> {
    let len = len.min(if addr.is_ipv4() { 32 } else { 128 });
    IpRange::cidr(addr, len).map(|range| (range.start(), len))
}

/// The networks that a guard lets by, each with the remote selector that covers it: what is attached with the widest
/// one, so that narrower ones protect it; what is listed with each one, cut to what it covers, since it is meant.
pub fn networks<'a>(
    guard: &'a GuardSpec,
    attached: &'a BTreeSet<Prefix>,
) -> impl Iterator<Item = (IpRange, &'a TrafficSelector)> {
    let listed = guard.bypass.networks.iter().flat_map(|network| {
        guard.remote.iter().filter_map(|remote| Some((remote.range.intersect(network)?, remote)))
    });
    let wanted = guard.bypass.attached;
    let attached = attached.iter().filter(move |_| wanted).filter_map(|(addr, len)| {
        let near = IpRange::cidr(*addr, *len)?;
        // A local selector of everything names no network of ours.
        let is_local = |l: &TrafficSelector| l.range.prefix_len() != Some(0) && l.range.covers(&near);
        let covering = guard.remote.iter().filter(|remote| remote.range.covers(&near));
        let widest = covering.max_by_key(|remote| free_bits(&remote.range))?;
        guard.local.iter().any(is_local).then_some((near, widest))
    });
    listed.chain(attached)
}

/// What a guard lets by as pairs of prefixes, none with [`Bypass::NONE`](cygnet_model::tunnel::Bypass::NONE).
pub fn near(guard: &GuardSpec, attached: &BTreeSet<Prefix>) -> BTreeSet<Near> {
    let mut out = BTreeSet::new();
    // What is listed comes first, and has room.
    for (network, widest) in networks(guard, attached) {
        let covering = widest.range.prefixes().into_iter().filter(|(addr, len)| {
            IpRange::cidr(*addr, *len).is_some_and(|prefix| prefix.intersect(&network).is_some())
        });
        let Some(covering) = covering.map(|(_, len)| len).max() else { continue };
        for local in guard.local.iter().filter(|local| local.range.same_family(&network)) {
            for (network, local) in network
                .prefixes()
                .into_iter()
                .flat_map(|network| local.range.prefixes().into_iter().map(move |local| (network, local)))
            {
                if out.len() == PAIRS {
                    return out;
                }
                out.insert(Near { local, network, covering });
            }
        }
    }
    out
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
    use cygnet_model::tunnel::Bypass;

    use super::*;
    use crate::plane::testing::{guard_of, listed, nets, prefix};

    fn guard(local: &[&str], remote: &[&str], bypass: Bypass) -> GuardSpec {
        GuardSpec { bypass, ..guard_of(1, &nets(local), &nets(remote)) }
    }

    #[test]
    fn what_is_attached_inside_the_local_selectors_is_near_and_nothing_else() {
        let attached: BTreeSet<Prefix> =
            ["10.1.0.0/24", "10.1.0.1/32", "192.0.2.0/24", "fd01::/64"].into_iter().map(prefix).collect();
        let all = guard(&["10.1.0.0/16"], &["0.0.0.0/0"], Bypass::ATTACHED);
        let found: Vec<(Prefix, Prefix, u8)> =
            near(&all, &attached).into_iter().map(|n| (n.local, n.network, n.covering)).collect();
        let local = prefix("10.1.0.0/16");
        assert_eq!(found, [(local, prefix("10.1.0.0/24"), 0), (local, prefix("10.1.0.1/32"), 0)]);
        assert!(near(&GuardSpec { bypass: Bypass::NONE, ..all }, &attached).is_empty());
        // The remote selectors do not cover it: there is nothing to be let by.
        assert!(near(&guard(&["10.1.0.0/16"], &["10.2.0.0/16"], Bypass::ATTACHED), &attached).is_empty());
        // A local selector of everything names no network of ours.
        assert!(near(&guard(&["0.0.0.0/0"], &["0.0.0.0/0"], Bypass::ATTACHED), &attached).is_empty());
    }

    #[test]
    fn what_is_listed_is_let_by_as_far_as_the_remote_selectors_cover_it_and_no_further() {
        let found = |spec: &GuardSpec| -> Vec<(Prefix, u8)> {
            near(spec, &BTreeSet::from([prefix("10.1.0.0/24")]))
                .into_iter()
                .map(|n| (n.network, n.covering))
                .collect()
        };
        let all = guard(&["10.1.0.0/16"], &["0.0.0.0/0"], listed(&["203.0.113.0/24", "2001:db8::/32"]));
        assert_eq!(
            found(&all),
            [(prefix("203.0.113.0/24"), 0)],
            "neither another family nor what is attached"
        );
        let wider = guard(&["10.1.0.0/16"], &["10.2.0.0/16"], listed(&["10.0.0.0/8"]));
        assert_eq!(found(&wider), [(prefix("10.2.0.0/16"), 16)], "nothing beyond the selectors");
        // The tunnel's own narrower selector does not protect what its list means.
        let both = guard(&["10.1.0.0/16"], &["10.0.0.0/8", "0.0.0.0/0"], listed(&["10.9.0.0/16"]));
        assert_eq!(found(&both), [(prefix("10.9.0.0/16"), 0), (prefix("10.9.0.0/16"), 8)]);
    }

    #[test]
    fn of_several_covering_selectors_the_widest_counts_and_the_narrower_ones_protect() {
        let attached = BTreeSet::from([prefix("10.1.0.0/24")]);
        let both = guard(&["10.1.0.0/16"], &["10.0.0.0/8", "0.0.0.0/0"], Bypass::ATTACHED);
        assert_eq!(near(&both, &attached).first().map(|n| n.covering), Some(0));
    }
}
