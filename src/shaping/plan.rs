//! What traffic control shall look like, as a value: gateways with their caps become classes and filters, and the
//! difference to what the kernel holds becomes steps. No I/O.
//!
//! Each gateway has one class on each interface that has an address of it, with rate = ceil = its bandwidth: nothing
//! is borrowed, so that one gateway cannot take from another. Packets find their class by their outer source address.
//! IKE, and everything else on the interface, takes HTB's direct way: it is not shaped and goes first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use cygnet_xfrm::tc::{Class, Filter, FilterSpec, Handle, HtbRates, Traffic};

/// HTB's arithmetic has no room for less than one frame a second.
const LOWEST_BPS: u64 = 16_000;

/// A gateway, with its addresses found on interfaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayRate {
    /// Its name.
    pub name: String,
    /// Its outer addresses, each with the index of the interface that has it.
    pub addresses: Vec<(IpAddr, u32)>,
    /// Bits per second that may leave to the public network; `None` is unlimited.
    pub bandwidth_bps: Option<u64>,
}

/// What one interface shall have.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct InterfacePlan {
    /// Classes with their gateways.
    pub classes: BTreeMap<Handle, (String, HtbRates)>,
    /// Filters.
    pub filters: BTreeSet<FilterSpec>,
}

/// What each interface shall have; interfaces without anything are not in it.
pub type Plan = BTreeMap<u32, InterfacePlan>;

/// What one interface has of ours.
#[derive(Clone, Default, Debug)]
pub struct Observed {
    /// Whether the root qdisc is ours.
    pub root: bool,
    /// Classes.
    pub classes: Vec<Class>,
    /// Filters.
    pub filters: Vec<Filter>,
}

/// One step on one interface.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Step {
    /// Put our HTB at the root, in the place of a default qdisc.
    AddRoot,
    /// Add a class or change its rate in place.
    PutClass(Handle, HtbRates),
    /// Send packets to a class.
    AddFilter(FilterSpec),
    /// Stop to do so.
    DeleteFilter(Filter),
    /// Remove a class.
    DeleteClass(Handle),
    /// Give the interface back.
    DeleteRoot,
}

/// Class numbers of gateways: from the name, so that they are the same after a restart, and kept while the daemon runs.
#[derive(Clone, Default, Debug)]
pub struct ClassIds {
    by_name: BTreeMap<String, u16>,
}

impl ClassIds {
    /// The number of a gateway: its own for as long as it is not forgotten.
    pub fn of(&mut self, name: &str) -> u16 {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let taken: BTreeSet<u16> = self.by_name.values().copied().collect();
        let mut id = hash(name);
        while !can_be_used(id) || taken.contains(&id) {
            id = id.wrapping_add(1);
        }
        self.by_name.insert(name.to_owned(), id);
        id
    }

    /// Forgets gateways that are not among `names`.
    pub fn retain(&mut self, names: &BTreeSet<&str>) {
        self.by_name.retain(|name, _| names.contains(name.as_str()));
    }
}

/// A class's number is also the handle of the queue in it: neither ours of the root nor the kernel's own.
const fn can_be_used(id: u16) -> bool {
    id != 0 && id < 0xFF00 && id != (Handle::OURS.0 >> 16) as u16
}

/// FNV-1a, folded to 16 bits.
fn hash(name: &str) -> u16 {
    let wide = name.bytes().fold(0x811C_9DC5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    ((wide >> 16) ^ (wide & 0xFFFF)) as u16
}

/// Turns gateways into classes and filters.
pub fn plan(gateways: &[GatewayRate], ids: &mut ClassIds) -> Plan {
    ids.retain(&gateways.iter().map(|g| g.name.as_str()).collect());
    let mut out = Plan::new();
    // By name, so that numbers of gateways whose hashes meet do not depend on the order in the file.
    let ordered: BTreeMap<&str, &GatewayRate> = gateways.iter().map(|g| (g.name.as_str(), g)).collect();
    for gateway in ordered.values() {
        let Some(bps) = gateway.bandwidth_bps else { continue };
        let class = Handle::class(ids.of(&gateway.name));
        let rates = HtbRates::cap(bps.max(LOWEST_BPS));
        for (address, interface) in &gateway.addresses {
            let at = out.entry(*interface).or_default();
            at.classes.insert(class, (gateway.name.clone(), rates));
            at.filters.insert(FilterSpec { source: *address, traffic: Traffic::All, class });
            // Who fills the level must not keep the tunnel from being kept up: IKE does not wait, and does not count.
            for traffic in [Traffic::Ike, Traffic::IkeBesideEsp] {
                at.filters.insert(FilterSpec { source: *address, traffic, class: Handle::OURS });
            }
        }
    }
    out
}

/// The steps from what an interface has to what it shall have. Rates change in place; a class has its filter before
/// another loses its own, so that no packet passes uncapped in between.
pub fn steps(want: Option<&InterfacePlan>, have: &Observed) -> Vec<Step> {
    let Some(want) = want else {
        return if have.root { vec![Step::DeleteRoot] } else { vec![] };
    };
    let mut out = Vec::new();
    if !have.root {
        out.push(Step::AddRoot);
    }
    for (handle, (_, rates)) in &want.classes {
        if !have.classes.iter().any(|c| c.handle == *handle && same(&c.rates, rates)) {
            out.push(Step::PutClass(*handle, *rates));
        }
    }
    // A filter that stands twice is one too many.
    let mut standing = BTreeSet::new();
    let stale: Vec<&Filter> = have
        .filters
        .iter()
        .filter(|f| !(want.filters.contains(&f.spec) && standing.insert(f.spec)))
        .collect();
    out.extend(want.filters.difference(&standing).map(|f| Step::AddFilter(*f)));
    out.extend(stale.into_iter().map(|f| Step::DeleteFilter(*f)));
    out.extend(
        have.classes
            .iter()
            .filter(|c| !want.classes.contains_key(&c.handle))
            .map(|c| Step::DeleteClass(c.handle)),
    );
    out
}

/// The kernel rounds bursts to ticks of 64 ns and rates to octets.
fn same(have: &HtbRates, want: &HtbRates) -> bool {
    have.rate_bps / 8 == want.rate_bps / 8
        && have.ceil_bps / 8 == want.ceil_bps / 8
        && have.quantum == want.quantum
}

/// A rate as configuration writes it.
pub struct Rate(
    /// Bits per second.
    pub u64,
);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000)] {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{unit}", self.0 / size);
            }
        }
        write!(f, "{}bit", self.0)
    }
}

#[cfg(test)]
mod tests {
    use cygnet_xfrm::tc::QueueStats;
    use proptest::prelude::*;

    use super::*;

    fn gateway(name: &str, last: u8, interface: u32, mbit: Option<u64>) -> GatewayRate {
        GatewayRate {
            name: name.to_owned(),
            addresses: vec![(IpAddr::from([192, 0, 2, last]), interface)],
            bandwidth_bps: mbit.map(|m| m * 1_000_000),
        }
    }

    /// What an interface has after the steps were done on it.
    fn done(have: &Observed, steps: &[Step]) -> Observed {
        let mut now = have.clone();
        for step in steps {
            match step {
                Step::AddRoot => now.root = true,
                Step::PutClass(handle, rates) => {
                    now.classes.retain(|c| c.handle != *handle);
                    now.classes.push(Class { handle: *handle, rates: *rates, stats: QueueStats::default() });
                }
                Step::AddFilter(spec) => {
                    let direct = spec.class == Handle::OURS;
                    assert!(
                        direct || now.classes.iter().any(|c| c.handle == spec.class),
                        "filter to no class"
                    );
                    now.filters.push(Filter::for_tests(*spec));
                }
                Step::DeleteFilter(filter) => {
                    let at = now.filters.iter().position(|f| f == filter).unwrap();
                    now.filters.remove(at);
                }
                Step::DeleteClass(handle) => {
                    assert!(now.filters.iter().all(|f| f.spec.class != *handle), "class is busy");
                    now.classes.retain(|c| c.handle != *handle);
                }
                Step::DeleteRoot => now = Observed::default(),
            }
        }
        now
    }

    #[test]
    fn a_new_rate_is_one_step_in_place() {
        let mut ids = ClassIds::default();
        let before = plan(&[gateway("a", 1, 3, Some(10))], &mut ids);
        let have = done(&Observed::default(), &steps(before.get(&3), &Observed::default()));
        let after = plan(&[gateway("a", 1, 3, Some(50))], &mut ids);
        let steps = steps(after.get(&3), &have);
        assert!(matches!(steps[..], [Step::PutClass(_, r)] if r.rate_bps == 50_000_000), "{steps:?}");
    }

    #[test]
    fn unlimited_gateways_have_no_class_and_the_last_one_gives_the_interface_back() {
        let mut ids = ClassIds::default();
        assert!(plan(&[gateway("a", 1, 3, None)], &mut ids).is_empty());
        assert_eq!(steps(None, &Observed { root: true, ..Observed::default() }), [Step::DeleteRoot]);
        assert_eq!(steps(None, &Observed::default()), []);
    }

    #[test]
    fn class_numbers_stay_when_others_come_and_go() {
        let mut ids = ClassIds::default();
        let names: Vec<String> = (0..2000).map(|n| format!("vpc-{n}")).collect();
        let numbers: Vec<u16> = names.iter().map(|n| ids.of(n)).collect();
        assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), 2000);
        let kept: BTreeSet<&str> = names.iter().skip(1000).map(String::as_str).collect();
        ids.retain(&kept);
        for (name, number) in names.iter().zip(&numbers).skip(1000) {
            assert_eq!(ids.of(name), *number);
        }
        assert_eq!(ClassIds::default().of("vpc-7"), ids.of("vpc-7"), "the same after a restart");
    }

    #[test]
    fn rates_print_as_they_are_written() {
        assert_eq!(Rate(100_000_000).to_string(), "100mbit");
        assert_eq!(Rate(2_500_000_000).to_string(), "2500mbit");
        assert_eq!(Rate(64_001).to_string(), "64001bit");
    }

    proptest! {
        /// Doing the steps reaches the plan, and then nothing is left to do.
        #[test]
        fn steps_reach_the_plan(
            first in prop::collection::btree_map("[a-f]", (1u8..5, 1u32..3, prop::option::of(1u64..5)), 0..5),
            second in prop::collection::btree_map("[a-f]", (1u8..5, 1u32..3, prop::option::of(1u64..5)), 0..5),
        ) {
            let mut ids = ClassIds::default();
            let mut have: BTreeMap<u32, Observed> = BTreeMap::new();
            for config in [first, second] {
                let gateways: Vec<GatewayRate> =
                    config.iter().map(|(n, (a, i, m))| gateway(n, *a, *i, *m)).collect();
                let plan = plan(&gateways, &mut ids);
                for interface in 1..3 {
                    let now = have.entry(interface).or_default();
                    *now = done(now, &steps(plan.get(&interface), now));
                    prop_assert_eq!(steps(plan.get(&interface), now), vec![]);
                    let want = plan.get(&interface).cloned().unwrap_or_default();
                    prop_assert_eq!(now.classes.len(), want.classes.len());
                    prop_assert_eq!(now.filters.len(), want.filters.len());
                }
            }
        }
    }
}
