//! What traffic control shall look like, as a value: gateways with their caps become classes and filters, which are objects
//! that [`cygnet_reconcile`] knows how to bring about. No I/O.
//!
//! Each gateway has one class on each interface by which its packets leave, with rate = ceil = its bandwidth: nothing
//! is borrowed, so that one gateway cannot take from another. Packets find their class by their outer source address.
//! IKE, and everything else on the interface, takes HTB's direct way: it is not shaped and goes first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use cygnet_reconcile::Object;
use cygnet_xfrm::tc::{Filter, FilterSpec, Handle, HtbRates, Qdisc, Traffic};

/// The lowest cap in bits per second, in place of lower ones: HTB's arithmetic has no room for less than one frame a second.
pub const LOWEST_BPS: u64 = 16_000;

/// A gateway, with its addresses found on interfaces.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayRate {
    /// Its name.
    pub name: String,
    /// Its outer addresses, each with the index of an interface by which packets from it leave.
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

/// What an interface has. A class comes before the filters that send to it, and goes after them; a filter comes before
/// another one goes, so that no packet passes uncapped in between.
#[derive(Clone, Debug)]
pub enum Part {
    /// The root qdisc: our HTB, or that of somebody else.
    Root(Option<Qdisc>),
    /// A class; its rates change in place.
    Class(Handle, HtbRates),
    /// A filter, and what the kernel calls it.
    Filter(FilterSpec, Option<Filter>),
}

/// Where a [`Part`] is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// At the root.
    Root,
    /// A class of this name.
    Class(Handle),
    /// A filter that says this.
    Filter(FilterSpec),
}

impl Part {
    /// Whether it is ours: all that hangs on our root is.
    pub const fn is_ours(&self) -> bool {
        !matches!(self, Self::Root(Some(_)))
    }
}

impl Object for Part {
    type Place = Place;

    fn place(&self) -> Place {
        match self {
            Self::Root(_) => Place::Root,
            Self::Class(handle, _) => Place::Class(*handle),
            Self::Filter(spec, _) => Place::Filter(*spec),
        }
    }

    fn is(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Class(_, have), Self::Class(_, want)) => same(have, want),
            (Self::Root(have), Self::Root(want)) => have.is_none() && want.is_none(),
            // The place says all.
            _ => true,
        }
    }

    fn rests_on(&self) -> Option<Place> {
        (!matches!(self, Self::Root(_))).then_some(Place::Root)
    }

    fn holds_on_to(&self) -> Option<Place> {
        match self {
            Self::Filter(spec, _) if spec.class != Handle::OURS => Some(Place::Class(spec.class)),
            _ => None,
        }
    }
}

impl InterfacePlan {
    /// What it is made of.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let classes = self.classes.iter().map(|(handle, (_, rates))| Part::Class(*handle, *rates));
        let filters = self.filters.iter().map(|spec| Part::Filter(*spec, None));
        [Part::Root(None)].into_iter().chain(classes).chain(filters)
    }
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
    use cygnet_reconcile::testing::Kernel;
    use cygnet_reconcile::{Step, bring};
    use proptest::prelude::*;

    use super::*;

    fn gateway(name: &str, last: u8, interface: u32, mbit: Option<u64>) -> GatewayRate {
        GatewayRate {
            name: name.to_owned(),
            addresses: vec![(IpAddr::from([192, 0, 2, last]), interface)],
            bandwidth_bps: mbit.map(|m| m * 1_000_000),
        }
    }

    /// Brings an interface to a plan and returns the steps.
    fn shape(kernel: &mut Kernel<Part>, want: Option<&InterfacePlan>) -> Vec<Step<Part>> {
        let mut steps = Vec::new();
        let done = bring(kernel, |_, seen| {
            let parts = want.into_iter().flat_map(InterfacePlan::parts);
            let plan = cygnet_reconcile::plan(parts, seen, Part::is_ours);
            steps.extend(plan.steps().cloned());
            plan
        });
        assert_eq!(done.unwrap(), steps.len());
        steps
    }

    #[test]
    fn a_new_rate_is_one_step_in_place() {
        let (mut ids, mut kernel) = (ClassIds::default(), Kernel::new([]));
        shape(&mut kernel, plan(&[gateway("a", 1, 3, Some(10))], &mut ids).get(&3));
        let steps = shape(&mut kernel, plan(&[gateway("a", 1, 3, Some(50))], &mut ids).get(&3));
        assert!(matches!(steps[..], [Step::Put(Part::Class(_, r))] if r.rate_bps == 50_000_000), "{steps:?}");
    }

    #[test]
    fn unlimited_gateways_have_no_class_and_the_last_one_gives_the_interface_back() {
        let (mut ids, mut kernel) = (ClassIds::default(), Kernel::new([]));
        assert!(plan(&[gateway("a", 1, 3, None)], &mut ids).is_empty());
        assert!(shape(&mut kernel, None).is_empty());
        shape(&mut kernel, plan(&[gateway("a", 1, 3, Some(10))], &mut ids).get(&3));
        let steps = shape(&mut kernel, None);
        assert!(matches!(steps[..], [Step::Remove(Part::Root(None))]), "all else goes with it: {steps:?}");
    }

    #[test]
    fn a_filter_that_stands_twice_is_one_too_many() {
        let want = plan(&[gateway("a", 1, 3, Some(10))], &mut ClassIds::default());
        let parts: Vec<Part> = want[&3].parts().collect();
        let spare = parts.iter().filter(|part| matches!(part, Part::Filter(..)));
        let mut kernel = Kernel::new(parts.iter().chain(spare).cloned());
        let steps = shape(&mut kernel, want.get(&3));
        assert!(steps.len() == 3 && steps.iter().all(|s| matches!(s, Step::Remove(Part::Filter(..)))));
        assert_eq!(kernel.objects().len(), parts.len());
    }

    #[test]
    fn a_root_of_somebody_else_keeps_everything_away() {
        let want = plan(&[gateway("a", 1, 3, Some(10))], &mut ClassIds::default());
        let parts: Vec<Part> = want[&3].parts().collect();
        let theirs = Qdisc::for_tests(Handle(0x0007_0000), "tbf");
        let plan = cygnet_reconcile::plan(parts.iter().cloned(), [Part::Root(Some(theirs))], Part::is_ours);
        assert!(plan.is_empty());
        assert_eq!(plan.taken().len(), parts.len());
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
            let mut kernels = [1, 2].map(|interface| (interface, Kernel::new([])));
            for config in [first, second] {
                let gateways: Vec<GatewayRate> =
                    config.iter().map(|(n, (a, i, m))| gateway(n, *a, *i, *m)).collect();
                let plan = plan(&gateways, &mut ids);
                for (interface, kernel) in &mut kernels {
                    shape(kernel, plan.get(interface));
                    let want = plan.get(interface).into_iter().flat_map(InterfacePlan::parts).count();
                    prop_assert_eq!(kernel.objects().len(), want);
                }
            }
        }
    }
}
