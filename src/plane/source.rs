//! A source inside the tunnel for the gateway's own packets, with the kernel's plane.
//!
//! A socket without an address is routed before it has a source. The route that leads to a remote network is usually the
//! default route, whose source is the outer address: outside of the selectors, so that the packet leaves outside of the
//! tunnel. So such look-ups find a route of ours first, with an address of this host inside the local selectors. It goes
//! out by the interface that has this address: if ever no policy takes the packet, it does not get to the public network.
//! Routes by `lo` are exempt from IPsec: for an IPv4 address there it is the interface of the outer address.
//! (Our own plane's routing rules see to this themselves.)
//!
//! ```text
//!   IPv4   iif lo, from 0.0.0.0/32           table TABLE
//!   IPv6   iif lo, from LOCAL, find source   a table for each LOCAL: a rule sees what source a route would give
//! ```
//!
//! Look-ups to everything (0.0.0.0/0, ::/0) are left alone unless the outer address is inside the local selectors: the
//! host's own traffic to the Internet has the outer address. Rules and routes carry an owner's mark and outlive the process.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use cygnet_model::selector::IpRange;
use cygnet_model::tunnel::{GuardSpec, Source};
use cygnet_reconcile::{Step, World};
use cygnet_xfrm::address::OwnAddress;
use cygnet_xfrm::link::RtnlError;
use cygnet_xfrm::route::{Family, Prefix, Route, Via};
use cygnet_xfrm::routing::Routing;
use cygnet_xfrm::rule::{Rule, Verdict};

use super::near;
use super::pieces::{self, Piece};

/// `rtm_protocol` of the rules and routes.
const OWNER: u8 = 0xCA;
/// Behind the rules of our own plane, before the kernel's main table.
const PRIORITY: u32 = 5200;
/// IPv4's table; IPv6's are numbered from the next one on.
const TABLE: u32 = 0xCA00_0000;
const METRIC: u32 = 10;
/// Index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
/// Routes of a guard; what is left over goes as if there were none.
const ROUTES: usize = 4096;

/// What a tunnel's child wants.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The tunnel's name.
    pub tunnel: String,
    /// Which source.
    pub source: Source,
    /// What is protected.
    pub guard: GuardSpec,
    /// The gateway's outer addresses.
    pub outer: Vec<IpAddr>,
}

/// What shall be in the kernel.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Layout {
    rules: BTreeSet<Rule>,
    routes: BTreeSet<Route>,
    /// Tunnels for which this host has no source inside.
    pub missing: BTreeSet<String>,
}

/// The layout for some wishes on a host with these addresses. Where two tunnels lead to the same network, the first one
/// gives the source.
pub fn layout<'a>(wishes: impl IntoIterator<Item = &'a Wish>, own: &BTreeSet<OwnAddress>) -> Layout {
    let attached = near::attached(own);
    let mut out = Layout::default();
    let mut routes = Routes::default();
    for wish in wishes.into_iter().filter(|wish| wish.source != Source::None) {
        let guard = &wish.guard;
        let inside = |addr: IpAddr| guard.local.iter().any(|local| local.range.contains(addr));
        let is_outer_inside = wish.outer.iter().any(|outer| inside(*outer));
        for family in Family::ALL {
            let of_family = |range: &IpRange| Family::of(range.start()) == family;
            let locals = guard.local.iter().filter(|local| of_family(&local.range));
            let remotes: Vec<_> = guard.remote.iter().filter(|remote| of_family(&remote.range)).collect();
            if remotes.is_empty() || locals.clone().next().is_none() {
                continue;
            }
            let fits = |addr: IpAddr| match wish.source {
                Source::Address(wanted) if wanted.is_ipv4() == (family == Family::V4) => wanted == addr,
                _ => true,
            };
            let chosen = own.iter().filter(|own| fits(own.address)).find_map(|source| {
                let local = locals.clone().find(|local| local.range.contains(source.address))?;
                let interface = way_out(source, wish, own)?;
                Some((OwnAddress { interface, ..*source }, local.range))
            });
            let Some((source, local)) = chosen else {
                out.missing.insert(wish.tunnel.clone());
                continue;
            };
            // IPv6 asks for the prefix of the selector that holds the source.
            let within = |(addr, len): &Prefix| {
                IpRange::cidr(*addr, *len).is_some_and(|prefix| prefix.contains(source.address))
            };
            let local = match family {
                Family::V4 => None,
                Family::V6 => local.prefixes().into_iter().find(|prefix| within(prefix) && prefix.1 > 0),
            };
            if family == Family::V6 && local.is_none() {
                continue;
            }
            let led = remotes.iter().filter(|r| is_outer_inside || r.range.prefix_len() != Some(0));
            let led = led.flat_map(|remote| remote.range.prefixes());
            for destination in led.take(ROUTES) {
                routes.lead((family, local, destination), destination.1, source);
            }
            for (network, covering) in near::networks(guard, &attached).filter(|(n, _)| of_family(n)) {
                for prefix in network.prefixes() {
                    routes.throw((family, local, prefix), covering.range.prefix_len().unwrap_or(0));
                }
            }
        }
    }
    let routes = routes.0;
    let locals: BTreeSet<Option<Prefix>> = routes.keys().map(|(_, local, _)| *local).collect();
    for ((family, local, destination), (_, source)) in routes {
        let place = locals.iter().filter(|l| l.is_some()).position(|l| *l == local).map_or(0, |at| at + 1);
        let table = TABLE + u32::try_from(place).unwrap_or(0);
        out.rules.insert(Rule {
            iif: Some("lo".to_owned()),
            source: local.or(Some((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 32))),
            find_source: family == Family::V6,
            ..Rule::new(family, PRIORITY, Verdict::Table(table), OWNER)
        });
        out.routes.insert(Route {
            family,
            table,
            destination,
            via: source.map_or(Via::Throw, |own| Via::Link(own.interface)),
            metric: METRIC,
            source: source.map(|own| own.address),
            owner: OWNER,
        });
    }
    out
}

/// A family, the local prefix that is asked for (IPv6), and a destination.
type Place = (Family, Option<Prefix>, Prefix);

/// Routes with the prefix length of the remote selector that wants each: the narrower one wins, as with the packets, and of
/// equal ones what is let by.
#[derive(Default)]
struct Routes(BTreeMap<Place, (u8, Option<OwnAddress>)>);

impl Routes {
    fn lead(&mut self, place: Place, len: u8, source: OwnAddress) {
        let there = self.0.entry(place).or_insert((len, Some(source)));
        if there.0 < len {
            *there = (len, Some(source));
        }
    }

    fn throw(&mut self, place: Place, len: u8) {
        let there = self.0.entry(place).or_insert((len, None));
        if there.0 <= len {
            *there = (len, None);
        }
    }
}

/// By which interface packets with a source shall go; `None` if there is none that IPsec is asked for.
fn way_out(source: &OwnAddress, wish: &Wish, own: &BTreeSet<OwnAddress>) -> Option<u32> {
    if source.interface != LOOPBACK {
        return Some(source.interface);
    }
    // IPv6 would ask which source the other interface chooses.
    let outer = own.iter().find(|own| wish.outer.contains(&own.address) && own.interface != LOOPBACK)?;
    source.address.is_ipv4().then_some(outer.interface)
}

/// Makes the kernel have a layout. Says how much had to be changed.
pub fn apply(routing: &mut Routing, layout: &Layout) -> Result<usize, RtnlError> {
    let brought = cygnet_reconcile::bring(&mut Host(routing), |_, seen| {
        let rules = layout.rules.iter().cloned().map(Piece::rule);
        let routes = layout.routes.iter().copied().map(Piece::Route);
        cygnet_reconcile::plan(routes.chain(rules), seen, |_| true)
    });
    brought.map_err(|stuck| pieces::error("give own packets a source inside the tunnels", stuck))
}

/// The host's rules and routes that are ours.
struct Host<'a>(&'a mut Routing);

impl World for Host<'_> {
    type Object = Piece;
    type Error = RtnlError;

    fn look(&mut self) -> Result<Vec<Piece>, RtnlError> {
        let mut seen = Vec::new();
        for family in Family::ALL {
            seen.extend(self.0.routes(family, OWNER)?.into_iter().map(Piece::Route));
            let rules = self.0.rules(family)?.into_iter().filter(|rule| rule.owner == OWNER);
            seen.extend(rules.map(Piece::rule));
        }
        Ok(seen)
    }

    fn run(&mut self, steps: &[Step<Piece>]) -> Vec<Result<(), RtnlError>> {
        pieces::change(self.0, steps)
    }
}

/// Removes all rules and routes of this kind; says how many rules.
pub fn release() -> Result<usize, RtnlError> {
    let mut routing = Routing::open()?;
    let mut rules = 0;
    for family in Family::ALL {
        rules += routing.rules(family)?.iter().filter(|rule| rule.owner == OWNER).count();
    }
    apply(&mut routing, &Layout::default()).map(|_| rules)
}

#[cfg(test)]
mod tests {
    use cygnet_model::tunnel::Bypass;

    use super::*;
    use crate::plane::testing::{guard_of, listed, nets, prefix};

    fn wish(source: Source, local: &[&str], remote: &[&str]) -> Wish {
        let guard = GuardSpec { bypass: Bypass::ATTACHED, ..guard_of(1, &nets(local), &nets(remote)) };
        Wish { tunnel: "berlin".to_owned(), source, guard, outer: vec!["192.0.2.1".parse().unwrap()] }
    }

    /// Two addresses inside, one outside.
    fn host() -> BTreeSet<OwnAddress> {
        [("10.1.0.1", 24, 2), ("10.1.7.1", 24, 3), ("192.0.2.1", 24, 4), ("fd01::1", 64, 2)]
            .map(|(address, len, interface)| {
                let address = address.parse().unwrap();
                OwnAddress { address, network: (address, len), interface }
            })
            .into()
    }

    fn sources(layout: &Layout) -> Vec<(Prefix, Option<IpAddr>)> {
        layout.routes.iter().map(|r| (r.destination, r.source)).collect()
    }

    #[test]
    fn a_remote_network_is_reached_from_an_address_inside_and_by_the_interface_that_has_it() {
        let both = wish(Source::Auto, &["10.1.0.0/16", "fd01::/16"], &["10.2.0.0/16", "fd02::/16"]);
        let found = layout([&both], &host());
        let ip = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            sources(&found),
            [(prefix("10.2.0.0/16"), ip("10.1.0.1")), (prefix("fd02::/16"), ip("fd01::1"))]
        );
        assert!(found.routes.iter().all(|route| route.via == Via::Link(2)));
        assert!(found.rules.iter().all(|rule| rule.iif.as_deref() == Some("lo")), "not what is forwarded");
        assert!(found.missing.is_empty());
        let chosen = wish(Source::Address("10.1.7.1".parse().unwrap()), &["10.1.0.0/16"], &["10.2.0.0/16"]);
        assert_eq!(sources(&layout([&chosen], &host())), [(prefix("10.2.0.0/16"), ip("10.1.7.1"))]);
    }

    #[test]
    fn a_tunnel_without_an_address_inside_is_named_unless_it_wants_none() {
        let local = ["10.9.0.0/16"];
        let found = layout([&wish(Source::Auto, &local, &["10.2.0.0/16"])], &host());
        assert!(found.routes.is_empty() && found.missing.contains("berlin"));
        let found = layout([&wish(Source::None, &local, &["10.2.0.0/16"])], &host());
        assert_eq!(found, Layout::default());
        let absent = wish(Source::Address("10.1.0.99".parse().unwrap()), &["10.1.0.0/16"], &["10.2.0.0/16"]);
        assert!(layout([&absent], &host()).missing.contains("berlin"));
    }

    #[test]
    fn nothing_is_led_out_by_lo_where_ipsec_is_not_asked() {
        let mut own = host();
        own.retain(|own| own.interface == 4);
        for (address, len) in [prefix("10.1.0.1/32"), prefix("fd01::1/128")] {
            own.insert(OwnAddress { address, network: (address, len), interface: LOOPBACK });
        }
        let both = wish(Source::Auto, &["10.1.0.0/16", "fd01::/16"], &["10.2.0.0/16", "fd02::/16"]);
        let found = layout([&both], &own);
        assert_eq!(
            found.routes.iter().map(|r| (r.destination, r.via)).collect::<Vec<_>>(),
            [(prefix("10.2.0.0/16"), Via::Link(4))]
        );
        assert!(found.missing.contains("berlin"), "its IPv6 has no way");
    }

    #[test]
    fn the_hosts_own_traffic_to_the_internet_keeps_the_outer_address() {
        let all = wish(Source::Auto, &["10.1.0.0/16"], &["0.0.0.0/0"]);
        assert!(layout([&all], &host()).routes.iter().all(|route| route.via == Via::Throw));
        let outer = wish(Source::Auto, &["10.1.0.0/16", "192.0.2.1/32"], &["0.0.0.0/0"]);
        assert!(
            sources(&layout([&outer], &host()))
                .contains(&(prefix("0.0.0.0/0"), Some("10.1.0.1".parse().unwrap())))
        );
    }

    /// What is listed is thrown although its guard leads there, and led where a narrower guard protects it.
    #[test]
    fn what_is_let_by_has_the_hosts_source_unless_a_narrower_guard_protects_it() {
        let mut all = wish(Source::Auto, &["10.1.0.0/16"], &["10.0.0.0/8"]);
        all.guard.bypass = listed(&["10.8.0.0/16", "10.9.0.0/16"]);
        let narrow = wish(Source::Auto, &["10.1.0.0/16"], &["10.9.0.0/16"]);
        for order in [[&all, &narrow], [&narrow, &all]] {
            let found = layout(order, &host());
            let inner = Some("10.1.0.1".parse().unwrap());
            assert_eq!(
                sources(&found),
                [
                    (prefix("10.0.0.0/8"), inner),
                    (prefix("10.8.0.0/16"), None),
                    (prefix("10.9.0.0/16"), inner)
                ]
            );
        }
    }

    #[test]
    fn neighbours_are_looked_for_where_they_are() {
        let wide = wish(Source::Auto, &["10.1.0.0/16"], &["10.0.0.0/8"]);
        let found = layout([&wide], &host());
        let thrown: Vec<Prefix> =
            found.routes.iter().filter(|r| r.via == Via::Throw).map(|r| r.destination).collect();
        assert_eq!(thrown, ["10.1.0.0/24", "10.1.0.1/32", "10.1.7.0/24", "10.1.7.1/32"].map(prefix));
    }
}
