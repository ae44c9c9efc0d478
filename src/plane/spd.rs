//! The policies that shall be in the kernel, as a value: what guards and tunnels of all children want, and which wish wins
//! where several meet. [`cygnet_reconcile`] finds the steps from what the kernel holds.
//!
//! The kernel has one place for each (direction, selector, mark). Guards and tunnels of the same child usually meet
//! there, and those of two children may. An open tunnel goes before a guard; among equals the lower weight wins, then
//! the lower child number. Packets of either tunnel come in there, so the inbound policy of a place that two open tunnels
//! share takes ESP of any reqid: a template names one reqid or none. Between different selectors the narrower one wins whatever it is, since a guard of 10.1.0.0/16 means that
//! this network shall not go by the tunnel of 10.0.0.0/8 either.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cygnet_model::tunnel::{GuardAction, GuardSpec, Mark, TunnelSpec};
use cygnet_model::{ChildId, Reqid, Spi};
use cygnet_reconcile::{At, Effect, Object, Plan, Step, plan_at};
use cygnet_xfrm::NetlinkError;
use cygnet_xfrm::policy::{
    Policy, PolicyAction, PolicyChange, PolicyDirection, PolicyKey, PolicySelector, PortMask, expand,
};

use super::near::Near;

/// Our priorities are `BASE..=BASE + 0xFFFF`; lower numbers go first. Others' are usually below a million.
const BASE: u32 = 0x00C9_0000;
/// In a template: ESP of any reqid will do.
const ANY_REQID: u32 = 0;
/// Selectors that one child may have; times three directions in the kernel.
const SELECTORS: usize = 1024;
/// Outer source of templates that are there to ask for a tunnel; no ESP is ever sent from it.
const ACQUIRE_SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Neighbour discovery (RFC 4861) by ICMPv6 type: router and neighbour solicitation and advertisement.
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u16> = 133..=136;

/// Which of a child's wishes; those that come first win.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Layer {
    /// While a tunnel is open.
    Tunnel,
    /// A tunnel that an earlier daemon had open, until it is opened again or given up.
    Inherited,
    /// While the child is configured.
    Guard,
    /// What the guard lets by.
    Near,
}

/// See the [module](self).
#[derive(Default, Debug)]
pub struct Spd {
    wishes: BTreeMap<(Layer, ChildId), Vec<Policy>>,
    candidates: BTreeMap<PolicyKey, BTreeMap<(Layer, u16, ChildId), Policy>>,
    /// How much each child is preferred; 0 for those that are not here.
    weights: BTreeMap<ChildId, u16>,
    /// What the kernel holds of ours, as far as is known.
    installed: BTreeMap<PolicyKey, Policy>,
    /// Policies of other programs, as last seen.
    foreign: BTreeMap<PolicyKey, Policy>,
    /// Places that may not be as wished.
    dirty: BTreeSet<PolicyKey>,
}

/// A policy in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(pub Policy);

impl Object for Entry {
    type Place = PolicyKey;

    fn place(&self) -> PolicyKey {
        self.0.key
    }

    fn is(&self, wanted: &Self) -> bool {
        self == wanted
    }

    /// A guard within what a wider one lets by must be there before that, and go after it.
    fn effect(&self) -> Effect {
        if self.0.action == PolicyAction::Allow { Effect::LetsBy } else { Effect::Holds }
    }
}

/// What a step is for the kernel.
pub const fn change(step: &Step<Entry>) -> PolicyChange {
    match step {
        // Never in the place of somebody else's.
        Step::Add(Entry(policy)) => PolicyChange::Add(*policy),
        Step::Put(Entry(policy)) => PolicyChange::Put(*policy),
        Step::Remove(Entry(policy)) => PolicyChange::Delete(policy.key),
    }
}

impl Spd {
    /// Takes over what the kernel holds, in place of what was believed before.
    pub fn observe(&mut self, policies: impl IntoIterator<Item = Policy>) {
        let all = policies.into_iter().map(|policy| (policy.key, policy));
        (self.installed, self.foreign) = all.partition(|(_, policy)| is_ours(policy));
        // What was due stays due: a removal whose answer was lost has no candidate any more.
        self.dirty.extend(self.candidates.keys());
    }

    /// Sets the weight of a child, for the wishes that it has and those to come.
    pub fn weigh(&mut self, child: ChildId, weight: u16) {
        let before = self.weight(child);
        if before == weight {
            return;
        }
        for layer in [Layer::Tunnel, Layer::Inherited, Layer::Guard, Layer::Near] {
            for policy in self.wishes.get(&(layer, child)).into_iter().flatten() {
                let Some(at) = self.candidates.get_mut(&policy.key) else { continue };
                if let Some(policy) = at.remove(&(layer, before, child)) {
                    at.insert((layer, weight, child), policy);
                }
                self.dirty.insert(policy.key);
            }
        }
        self.weights.insert(child, weight);
    }

    fn weight(&self, child: ChildId) -> u16 {
        self.weights.get(&child).copied().unwrap_or(0)
    }

    /// Sets the wishes of a child and returns those that were there.
    pub fn wish(&mut self, layer: Layer, child: ChildId, policies: Vec<Policy>) -> Vec<Policy> {
        let weight = self.weight(child);
        let before = self.wishes.remove(&(layer, child)).unwrap_or_default();
        for policy in &before {
            if let Some(at) = self.candidates.get_mut(&policy.key) {
                at.remove(&(layer, weight, child));
                if at.is_empty() {
                    self.candidates.remove(&policy.key);
                }
            }
            self.dirty.insert(policy.key);
        }
        for policy in &policies {
            self.candidates.entry(policy.key).or_default().insert((layer, weight, child), *policy);
            self.dirty.insert(policy.key);
        }
        if !policies.is_empty() {
            self.wishes.insert((layer, child), policies);
        }
        before
    }

    /// The steps that are due in the places that were touched.
    pub fn plan(&self) -> Plan<Entry> {
        let at = |key: &PolicyKey| {
            let seen = [self.installed.get(key), self.foreign.get(key)].into_iter().flatten();
            (*key, At { want: self.winner(key).map(Entry), seen: seen.copied().map(Entry).collect() })
        };
        plan_at(self.dirty.iter().map(at), |entry| is_ours(&entry.0))
    }

    /// Notes that the kernel took a step.
    pub fn applied(&mut self, step: &Step<Entry>) {
        match step {
            Step::Add(Entry(policy)) | Step::Put(Entry(policy)) => {
                self.installed.insert(policy.key, *policy);
            }
            Step::Remove(Entry(policy)) => {
                self.installed.remove(&policy.key);
            }
        }
    }

    /// Forgets which places were touched, but for those that somebody else has; call it when all steps are done.
    pub fn settled(&mut self) {
        let Self { dirty, foreign, candidates, .. } = self;
        dirty.retain(|key| foreign.contains_key(key) && candidates.contains_key(key));
    }

    /// Somebody else's policy in this place.
    pub fn foreign_at(&self, key: &PolicyKey) -> Option<&Policy> {
        self.foreign.get(key)
    }

    /// Policies of other programs, as last seen.
    pub fn foreign(&self) -> impl ExactSizeIterator<Item = &Policy> {
        self.foreign.values()
    }

    /// Makes the open tunnels among what the kernel holds wishes of their own, so that traffic goes on over a restart.
    /// Returns the children.
    pub fn inherit(&mut self) -> BTreeSet<ChildId> {
        let mut tunnels: BTreeMap<ChildId, Vec<Policy>> = BTreeMap::new();
        for policy in self.installed.values() {
            let open = matches!(policy.action, PolicyAction::Protect { .. }) && !is_acquiring(policy);
            if let (true, Some(child)) = (open, Reqid(policy.reqid).child()) {
                tunnels.entry(child).or_default().push(*policy);
            }
        }
        let children = tunnels.keys().copied().collect();
        for (child, policies) in tunnels {
            self.wish(Layer::Inherited, child, policies);
        }
        children
    }

    /// Marks everything that nobody wishes for removal and returns how much it is.
    pub fn condemn_orphans(&mut self) -> usize {
        let orphans: Vec<PolicyKey> =
            self.installed.keys().filter(|key| !self.candidates.contains_key(key)).copied().collect();
        self.dirty.extend(&orphans);
        orphans.len()
    }

    /// Withdraws every wish, so that everything of ours is due for removal.
    pub fn withdraw(&mut self) {
        self.wishes.clear();
        self.candidates.clear();
        self.dirty.extend(self.installed.keys());
    }

    /// The policies that shall be in force.
    pub fn winners(&self) -> impl Iterator<Item = Policy> {
        self.candidates.keys().filter_map(|key| self.winner(key))
    }

    /// Whether nothing of ours is in the kernel.
    pub fn is_empty(&self) -> bool {
        self.installed.is_empty()
    }

    /// Whether a tunnel of the child is open.
    pub fn has(&self, layer: Layer, child: ChildId) -> bool {
        self.wishes.contains_key(&(layer, child))
    }

    /// The policy for a place: that of the first in order, but inbound for all open tunnels that meet there.
    fn winner(&self, key: &PolicyKey) -> Option<Policy> {
        let candidates = self.candidates.get(key)?;
        let first = *candidates.values().next()?;
        let mut open =
            candidates.iter().filter(|((layer, ..), _)| matches!(layer, Layer::Tunnel | Layer::Inherited));
        let is_shared = key.direction != PolicyDirection::Out
            && open.any(|(_, other)| other.reqid != first.reqid)
            && matches!(first.action, PolicyAction::Protect { .. });
        Some(if is_shared { Policy { reqid: ANY_REQID, ..first } } else { first })
    }
}

/// Whether a policy in the kernel was made by us: its reqid says so, or it is one of the few without.
pub fn is_ours(policy: &Policy) -> bool {
    Reqid(policy.reqid).child().is_some()
        || (policy.action == PolicyAction::Allow
            && policy.priority == BASE
            && policy.key.selector.protocol == 58)
        || (policy.action == PolicyAction::Allow && is_near_place(policy.priority))
        || (policy.reqid == ANY_REQID
            && matches!(policy.action, PolicyAction::Protect { .. })
            && (BASE..=BASE + 0xFFFF).contains(&policy.priority))
}

/// The policies of a guard. `nonce` makes the address of an acquiring template, which must differ from earlier ones to
/// be reported at once: the kernel asks only once for each address until its larval state expires.
///
/// # Errors
/// [`NetlinkError::Unfit`] if the kernel cannot express the selectors.
pub fn guard_policies(spec: &GuardSpec, nonce: u16) -> Result<Vec<Policy>, NetlinkError> {
    let outbound = match spec.action {
        GuardAction::Drop => PolicyAction::Block,
        GuardAction::Acquire => PolicyAction::Protect {
            source: ACQUIRE_SOURCE,
            destination: IpAddr::V4(Ipv4Addr::from(
                u32::from(Ipv4Addr::new(127, 0xC9, 0, 0)) | u32::from(nonce),
            )),
            spi: None,
        },
    };
    let selectors = expand(&spec.local, &spec.remote, SELECTORS)?;
    let actions = [
        (PolicyDirection::Out, outbound),
        (PolicyDirection::In, PolicyAction::Block),
        (PolicyDirection::Forward, PolicyAction::Block),
    ];
    let mut policies = policies(&selectors, spec.reqid, spec.mark, Layer::Guard, &actions);
    if selectors.iter().any(|s| s.source.0.is_ipv6() && matches!(s.protocol, 0 | 58)) {
        policies.extend(neighbour_discovery());
    }
    Ok(policies)
}

/// The policies of what a guard lets by. They are asked before those of the selectors that cover it, and after all that
/// are narrower. They carry no reqid, since policies that allow have no template.
pub fn near_policies(near: &BTreeSet<Near>) -> Vec<Policy> {
    let mut out = Vec::new();
    for pair in near {
        for (source, destination) in [(pair.local, pair.network), (pair.network, pair.local)] {
            let selector = PolicySelector {
                source,
                destination,
                protocol: 0,
                source_port: PortMask::ANY,
                destination_port: PortMask::ANY,
            };
            out.extend([PolicyDirection::Out, PolicyDirection::In, PolicyDirection::Forward].map(
                |direction| Policy {
                    key: PolicyKey { direction, selector, mark: None },
                    priority: near_priority(pair.local.1, pair.covering),
                    reqid: 0,
                    action: PolicyAction::Allow,
                },
            ));
        }
    }
    out
}

/// Whether a policy waits for packets to ask for a tunnel.
fn is_acquiring(policy: &Policy) -> bool {
    matches!(policy.action, PolicyAction::Protect { source: ACQUIRE_SOURCE, .. })
}

/// A policy for a socket by which all that it sends, in one family, leaves by an SA.
pub fn socket_policy(reqid: Reqid, action: PolicyAction, v6: bool) -> Policy {
    let any: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let selector = PolicySelector {
        source: (any, 0),
        destination: (any, 0),
        protocol: 0,
        source_port: PortMask::ANY,
        destination_port: PortMask::ANY,
    };
    Policy {
        key: PolicyKey { direction: PolicyDirection::Out, selector, mark: None },
        priority: BASE,
        reqid: reqid.0,
        action,
    }
}

/// The policies of an open tunnel. The outbound ones name the state to use: left to itself the kernel picks by the
/// wall clock, in seconds, so that a clock that is set back or two generations within a second would make it go on
/// with old keys. Inbound ones take ESP from any outer address, as long as it came by an SA of the
/// same reqid: a peer that moves would lose packets between the steps of the move otherwise.
///
/// # Errors
/// [`NetlinkError::Unfit`] if the kernel cannot express the selectors.
pub fn tunnel_policies(spec: &TunnelSpec, outbound: Option<Spi>) -> Result<Vec<Policy>, NetlinkError> {
    let any = match spec.outer_local {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let out =
        PolicyAction::Protect { source: spec.outer_local, destination: spec.outer_remote, spi: outbound };
    let inbound = PolicyAction::Protect { source: any, destination: spec.outer_local, spi: None };
    let actions =
        [(PolicyDirection::Out, out), (PolicyDirection::In, inbound), (PolicyDirection::Forward, inbound)];
    let selectors = expand(&spec.local, &spec.remote, SELECTORS)?;
    Ok(policies(&selectors, spec.reqid, spec.mark, Layer::Tunnel, &actions))
}

fn policies(
    selectors: &[PolicySelector],
    reqid: Reqid,
    mark: Option<Mark>,
    layer: Layer,
    actions: &[(PolicyDirection, PolicyAction)],
) -> Vec<Policy> {
    let mut out = Vec::with_capacity(selectors.len() * actions.len());
    for selector in selectors {
        for (direction, action) in actions {
            let selector = if *direction == PolicyDirection::Out { *selector } else { selector.reversed() };
            out.push(Policy {
                key: PolicyKey { direction: *direction, selector, mark },
                priority: priority(&selector, layer),
                reqid: reqid.0,
                action: *action,
            });
        }
    }
    out
}

/// Narrow selectors before wide ones; among equals what is let by, then tunnels, then guards.
fn priority(s: &PolicySelector, layer: Layer) -> u32 {
    let any_protocol = u32::from(s.protocol == 0);
    let free_ports = s.source_port.mask.count_zeros() + s.destination_port.mask.count_zeros();
    let place = if layer == Layer::Guard { 2 } else { 1 };
    // width <= 256, free ports <= 32: below 2^16.
    first_place(s.source.1, s.destination.1) + (any_protocol * 33 + free_ports) * PLACES + place
}

/// For what is let by although selectors of these prefix lengths cover it: before all of them.
fn near_priority(local: u8, covering: u8) -> u32 {
    first_place(local, covering)
}

/// Whether a priority is one of [`near_priority`]: nothing else has these.
fn is_near_place(priority: u32) -> bool {
    let width = priority.checked_sub(BASE + 16);
    width.is_some_and(|at| at % (WIDTH * PLACES) == 0 && at / (WIDTH * PLACES) <= 256)
}

/// Where the priorities of selectors with these prefix lengths begin.
fn first_place(source: u8, destination: u8) -> u32 {
    let width = 256 - u32::from(source) - u32::from(destination);
    BASE + 16 + width * WIDTH * PLACES
}

/// Kinds of selectors of the same prefix lengths: with a protocol or without, and free bits of the ports.
const WIDTH: u32 = 2 * 33;
/// Places of each kind.
const PLACES: u32 = 3;

/// Without these a guard of ::/0 would cut the host off its link: neighbour discovery is answered by hosts on the
/// link only (hop limit 255), so that it cannot go through a tunnel, and it does not carry anybody's data.
fn neighbour_discovery() -> impl Iterator<Item = Policy> {
    NEIGHBOUR_DISCOVERY.flat_map(|kind| {
        [PolicyDirection::In, PolicyDirection::Out].map(|direction| Policy {
            key: PolicyKey {
                direction,
                selector: PolicySelector {
                    source: (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
                    destination: (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
                    protocol: 58,
                    source_port: PortMask { value: kind, mask: u16::MAX },
                    destination_port: PortMask::ANY,
                },
                mark: None,
            },
            priority: BASE,
            reqid: 0,
            action: PolicyAction::Allow,
        })
    })
}

#[cfg(test)]
mod tests {
    use cygnet_model::TunnelId;
    use cygnet_model::selector::IpRange;
    use cygnet_reconcile::World;
    use cygnet_reconcile::testing::Kernel;

    use super::*;
    use crate::plane::testing::{guard_of, net as ts};

    fn child(n: u32) -> ChildId {
        ChildId { tunnel: TunnelId(n), index: 0 }
    }

    fn guard(n: u32, local: &str, remote: &str) -> Vec<Policy> {
        guard_policies(&guard_of(n, &[ts(local)], &[ts(remote)]), 0).unwrap()
    }

    fn tunnel(n: u32, local: &str, remote: &str) -> Vec<Policy> {
        let spec = TunnelSpec {
            child: child(n),
            reqid: Reqid::of(child(n)).unwrap(),
            local: vec![ts(local)],
            remote: vec![ts(remote)],
            outer_local: "192.0.2.1".parse().unwrap(),
            outer_remote: "192.0.2.2".parse().unwrap(),
            mark: None,
            weight: 0,
        };
        tunnel_policies(&spec, None).unwrap()
    }

    /// Does the steps that are due and returns them.
    fn settle(spd: &mut Spd) -> Vec<Step<Entry>> {
        let steps: Vec<Step<Entry>> = spd.plan().steps().cloned().collect();
        steps.iter().for_each(|step| spd.applied(step));
        spd.settled();
        assert!(spd.plan().is_empty());
        steps
    }

    #[test]
    fn opening_and_closing_replaces_in_place_and_never_deletes() {
        let mut spd = Spd::default();
        spd.wish(Layer::Guard, child(1), guard(1, "10.1.0.0/16", "10.2.0.0/16"));
        assert_eq!(settle(&mut spd).len(), 3);
        spd.wish(Layer::Tunnel, child(1), tunnel(1, "10.1.0.0/16", "10.2.0.0/16"));
        let opened = settle(&mut spd);
        spd.wish(Layer::Tunnel, child(1), vec![]);
        let closed = settle(&mut spd);
        for change in opened.iter().chain(&closed) {
            assert!(matches!(change, Step::Put(_)), "{change:?}");
        }
        assert_eq!((opened.len(), closed.len()), (3, 3));
    }

    /// Reqids of the kernel's policies by direction: out, in, forward.
    fn reqids(spd: &Spd) -> [u32; 3] {
        [PolicyDirection::Out, PolicyDirection::In, PolicyDirection::Forward]
            .map(|direction| spd.installed.values().find(|p| p.key.direction == direction).unwrap().reqid)
    }

    #[test]
    fn the_preferred_of_two_equal_tunnels_sends_and_both_are_heard() {
        let of = |n| Reqid::of(child(n)).unwrap().0;
        let mut spd = Spd::default();
        spd.weigh(child(1), 1);
        for n in [1, 2] {
            spd.wish(Layer::Guard, child(n), guard(n, "10.1.0.0/16", "10.2.0.0/16"));
        }
        settle(&mut spd);
        assert_eq!(reqids(&spd), [of(2); 3]);
        spd.wish(Layer::Tunnel, child(1), tunnel(1, "10.1.0.0/16", "10.2.0.0/16"));
        settle(&mut spd);
        assert_eq!(reqids(&spd), [of(1); 3], "the backup alone is open");
        spd.wish(Layer::Tunnel, child(2), tunnel(2, "10.1.0.0/16", "10.2.0.0/16"));
        let steps = settle(&mut spd);
        assert!(steps.iter().all(|step| matches!(step, Step::Put(_))));
        assert_eq!(reqids(&spd), [of(2), ANY_REQID, ANY_REQID]);
        assert!(spd.installed.values().all(is_ours));
        spd.weigh(child(2), 2);
        settle(&mut spd);
        assert_eq!(reqids(&spd), [of(1), ANY_REQID, ANY_REQID], "the weights changed places");
        spd.wish(Layer::Tunnel, child(1), vec![]);
        settle(&mut spd);
        assert_eq!(reqids(&spd), [of(2); 3]);
    }

    #[test]
    fn a_place_that_is_not_ours_is_never_taken() {
        let mut spd = Spd::default();
        spd.wish(Layer::Guard, child(1), guard(1, "10.1.0.0/16", "10.2.0.0/16"));
        assert!(spd.plan().steps().all(|step| matches!(step, Step::Add(_))), "refused if somebody has it");
        let mut theirs = guard(1, "10.1.0.0/16", "10.2.0.0/16")[0];
        theirs.reqid = 7;
        spd.observe([theirs]);
        assert_eq!((spd.plan().len(), spd.plan().taken().len()), (2, 1));
        assert!(spd.foreign_at(&theirs.key).is_some());
        settle(&mut spd);
        spd.observe(spd.installed.values().copied().collect::<Vec<_>>());
        assert_eq!(settle(&mut spd).len(), 1, "when the other one is gone, the place is taken");
    }

    /// The kernel may have done what it was asked for or not: it is asked what it holds, and the rest is done again.
    #[test]
    fn a_removal_whose_answer_was_lost_is_due_until_it_is_seen() {
        let mut spd = Spd::default();
        let policies = guard(1, "10.1.0.0/16", "10.2.0.0/16");
        spd.wish(Layer::Guard, child(1), policies.clone());
        settle(&mut spd);
        spd.wish(Layer::Guard, child(1), vec![]);
        spd.observe(policies);
        assert_eq!(spd.plan().len(), 3, "the kernel still has them");
        spd.observe(vec![]);
        assert!(spd.plan().is_empty());
    }

    #[test]
    fn a_narrower_tunnel_leaves_the_guard_around_it() {
        let mut spd = Spd::default();
        spd.wish(Layer::Guard, child(1), guard(1, "10.1.0.0/16", "10.2.0.0/16"));
        settle(&mut spd);
        spd.wish(Layer::Tunnel, child(1), tunnel(1, "10.1.5.0/24", "10.2.0.0/16"));
        settle(&mut spd);
        assert_eq!(spd.installed.len(), 6);
        let priorities: Vec<u32> = spd
            .installed
            .values()
            .filter(|p| p.key.direction == PolicyDirection::Out)
            .map(|p| p.priority)
            .collect();
        assert!(priorities[1] < priorities[0], "the tunnel must be asked first: {priorities:?}");
    }

    #[test]
    fn a_narrow_guard_goes_before_a_wide_tunnel() {
        let narrow = guard(1, "10.1.0.0/16", "10.2.0.0/16");
        let wide = tunnel(2, "10.0.0.0/8", "10.0.0.0/8");
        assert!(narrow[0].priority < wide[0].priority);
        let all = tunnel(3, "0.0.0.0/0", "0.0.0.0/0");
        assert!(all[0].priority <= BASE + 0xFFFF);
    }

    #[test]
    fn where_two_children_meet_one_takes_over_from_the_other() {
        let mut spd = Spd::default();
        spd.wish(Layer::Guard, child(1), guard(1, "10.1.0.0/16", "10.2.0.0/16"));
        spd.wish(Layer::Guard, child(2), guard(2, "10.1.0.0/16", "10.2.0.0/16"));
        spd.wish(Layer::Tunnel, child(2), tunnel(2, "10.1.0.0/16", "10.2.0.0/16"));
        settle(&mut spd);
        assert!(spd.installed.values().all(|p| p.reqid == Reqid::of(child(2)).unwrap().0));
        spd.wish(Layer::Tunnel, child(2), vec![]);
        settle(&mut spd);
        spd.wish(Layer::Guard, child(1), vec![]);
        let left = settle(&mut spd);
        assert!(left.iter().all(|c| matches!(c, Step::Put(_))), "child 2 still guards: {left:?}");
        spd.wish(Layer::Guard, child(2), vec![]);
        settle(&mut spd);
        assert!(spd.installed.is_empty());
    }

    #[test]
    fn what_a_killed_daemon_left_is_replaced_or_condemned_but_not_before() {
        let mut spd = Spd::default();
        let old = tunnel(7, "10.1.0.0/16", "10.2.0.0/16");
        let gone = tunnel(8, "10.8.0.0/16", "10.9.0.0/16");
        spd.observe(old.iter().chain(&gone).copied());
        assert_eq!(spd.inherit(), BTreeSet::from([child(7), child(8)]));
        assert!(spd.plan().is_empty());
        spd.wish(Layer::Guard, child(1), guard(1, "10.1.0.0/16", "10.2.0.0/16"));
        assert_eq!(settle(&mut spd), [], "the old tunnel goes on below the new guard");
        spd.wish(Layer::Tunnel, child(1), tunnel(1, "10.1.0.0/16", "10.2.0.0/16"));
        assert!(settle(&mut spd).iter().all(|c| matches!(c, Step::Put(_))));
        for n in [7, 8] {
            spd.wish(Layer::Inherited, child(n), vec![]);
        }
        let steps = settle(&mut spd);
        let deleted = steps.iter().filter(|step| matches!(step, Step::Remove(_))).count();
        assert_eq!(
            (steps.len(), deleted),
            (5, 3),
            "one inbound and one forward place are heard by one tunnel again"
        );
        assert_eq!(spd.installed.len(), 3);
        assert_eq!(spd.condemn_orphans(), 0);
    }

    #[test]
    fn guards_of_ipv6_let_neighbour_discovery_pass_and_it_goes_with_the_last() {
        let mut spd = Spd::default();
        spd.wish(Layer::Guard, child(1), guard(1, "::/0", "::/0"));
        spd.wish(Layer::Guard, child(2), guard(2, "2001:db8::/32", "2001:db9::/32"));
        settle(&mut spd);
        assert_eq!(spd.installed.len(), 3 + 3 + 8);
        assert!(spd.installed.values().all(is_ours));
        spd.wish(Layer::Guard, child(1), vec![]);
        settle(&mut spd);
        assert_eq!(spd.installed.len(), 3 + 8);
        spd.wish(Layer::Guard, child(2), vec![]);
        settle(&mut spd);
        assert!(spd.installed.is_empty());
    }

    #[test]
    fn neighbours_pass_before_what_covers_them_and_after_what_is_narrower() {
        let prefix = |text: &str| (ts(text).range.start(), ts(text).range.prefix_len().unwrap());
        let near = near_policies(&BTreeSet::from([Near {
            local: prefix("10.1.0.0/16"),
            network: prefix("10.1.0.0/24"),
            covering: 0,
        }]));
        assert_eq!(near.len(), 6, "both directions of out, in and forward");
        let place = near[0].priority;
        assert!(near.iter().all(|p| p.priority == place && p.action == PolicyAction::Allow && is_ours(p)));
        let (tunnel_of_all, guard_of_all) =
            (tunnel(1, "10.1.0.0/16", "0.0.0.0/0"), guard(1, "10.1.0.0/16", "0.0.0.0/0"));
        assert!(place < tunnel_of_all[0].priority && tunnel_of_all[0].priority < guard_of_all[0].priority);
        // Also where it covers only parts of what is near.
        for narrower in ["0.0.0.0/1", "10.0.0.0/8", "10.1.0.9/32"] {
            assert!(guard(2, "10.1.0.0/16", narrower).iter().all(|p| p.priority < place), "{narrower}");
        }
        assert!(!tunnel_of_all.iter().chain(&guard_of_all).any(|p| is_near_place(p.priority)));
    }

    #[test]
    fn a_guard_of_the_very_pair_that_another_one_lets_by_wins() {
        let network = (ts("10.1.0.0/24").range.start(), 24);
        let let_by = near_policies(&BTreeSet::from([Near { local: network, network, covering: 0 }]));
        let mut spd = Spd::default();
        spd.wish(Layer::Near, child(1), let_by.clone());
        spd.wish(Layer::Guard, child(2), guard(2, "10.1.0.0/24", "10.1.0.0/24"));
        settle(&mut spd);
        assert!(spd.installed.values().all(|p| p.action == PolicyAction::Block));
        spd.wish(Layer::Tunnel, child(2), tunnel(2, "10.1.0.0/24", "10.1.0.0/24"));
        settle(&mut spd);
        assert!(
            spd.installed.values().all(|p| p.reqid == Reqid::of(child(2)).unwrap().0),
            "no other shares it"
        );
        spd.wish(Layer::Tunnel, child(2), vec![]);
        spd.wish(Layer::Guard, child(2), vec![]);
        settle(&mut spd);
        assert_eq!(spd.installed.values().filter(|p| p.action == PolicyAction::Allow).count(), 3);
    }

    /// Whether packets from an address to 10.2.0.0/16 leave encrypted or not at all.
    fn is_held(policies: &[Entry], source: IpAddr) -> bool {
        let covers = |policy: &&Policy| {
            let (address, len) = policy.key.selector.source;
            let to = policy.key.selector.destination.0;
            policy.key.direction == PolicyDirection::Out
                && to == ts("10.2.0.0/16").range.start()
                && IpRange::cidr(address, len).unwrap().contains(source)
        };
        let first = policies.iter().map(|entry| &entry.0).filter(covers).min_by_key(|p| p.priority);
        first.is_some_and(|policy| policy.action != PolicyAction::Allow)
    }

    proptest::proptest! {
        /// Over any history, a place in the kernel that some guard wants is never emptied.
        #[test]
        fn guarded_places_are_never_deleted(
            steps in proptest::collection::vec((0u32..4, 0u16..2, proptest::bool::ANY, 0usize..3), 1..40),
        ) {
            let nets = [("10.1.0.0/16", "10.2.0.0/16"), ("10.1.3.0/24", "10.2.0.0/16"), ("0.0.0.0/0", "0.0.0.0/0")];
            let mut spd = Spd::default();
            for (n, layer, present, net) in steps {
                let layer = if layer == 0 { Layer::Guard } else { Layer::Tunnel };
                let policies = match layer {
                    _ if !present => vec![],
                    Layer::Guard | Layer::Near => guard(n, nets[net].0, nets[net].1),
                    Layer::Tunnel | Layer::Inherited => tunnel(n, nets[net].0, nets[net].1),
                };
                spd.wish(layer, child(n), policies);
                for change in settle(&mut spd) {
                    if let Step::Remove(Entry(Policy { key, .. })) = change {
                        proptest::prop_assert!(!spd.wishes.values().flatten().any(|p| p.key == key));
                    }
                }
                let wanted: BTreeSet<_> = spd.wishes.values().flatten().map(|p| p.key).collect();
                proptest::prop_assert_eq!(spd.installed.keys().copied().collect::<BTreeSet<_>>(), wanted);
            }
        }

        /// Whatever the kernel refuses on the way, and in whatever order wishes come: what is held before and after is
        /// held after each step, policies of others stay, and the steps that were refused are made good.
        #[test]
        fn guards_hold_through_refusals_and_are_made_whole(
            changes in proptest::collection::vec(
                proptest::collection::vec((0u32..3, 0usize..3, 0usize..5, proptest::bool::ANY), 1..4),
                1..8,
            ),
            faults in proptest::collection::vec(proptest::bool::ANY, 0..24),
            foreign in proptest::option::of(0usize..4),
        ) {
            let nets = ["10.1.0.0/16", "10.1.3.0/24", "10.1.3.128/25", "10.0.0.0/8"];
            let prefix = |text: &str| (ts(text).range.start(), ts(text).range.prefix_len().unwrap());
            let theirs = foreign.map(|net| Policy { reqid: 7, ..guard(1, nets[net], "10.2.0.0/16")[0] });
            let mut kernel = Kernel::new(theirs.map(Entry));
            let mut spd = Spd::default();
            spd.observe(theirs);
            kernel.faults = faults;
            for wishes in changes {
                let before = kernel.objects();
                kernel.history.clear();
                for (n, layer, net, is_wanted) in wishes {
                    let local = nets[net % nets.len()];
                    let near = Near { local: prefix(local), network: prefix("10.2.0.0/16"), covering: 16 };
                    let (layer, policies) = match layer {
                        0 => (Layer::Guard, guard(n, local, "10.2.0.0/16")),
                        1 => (Layer::Tunnel, tunnel(n, local, "10.2.0.0/16")),
                        _ => (Layer::Near, near_policies(&BTreeSet::from([near]))),
                    };
                    spd.wish(layer, child(n), if is_wanted { policies } else { vec![] });
                }
                let mut tries = 0;
                loop {
                    let outcome = spd.plan().carry_out(|steps| {
                        let results = kernel.run(steps);
                        let done = steps.iter().zip(&results).filter(|(_, result)| result.is_ok());
                        done.for_each(|(step, _)| spd.applied(step));
                        results
                    });
                    if outcome.refused.is_empty() {
                        break;
                    }
                    tries += 1;
                    proptest::prop_assert!(tries < 40);
                }
                spd.settled();
                let after = kernel.objects();
                let ours: BTreeMap<PolicyKey, Policy> =
                    after.iter().filter(|e| is_ours(&e.0)).map(|e| (e.0.key, e.0)).collect();
                let wanted = spd.winners().filter(|p| theirs.is_none_or(|t| t.key != p.key));
                proptest::prop_assert_eq!(&ours, &wanted.map(|p| (p.key, p)).collect());
                proptest::prop_assert!(theirs.is_none_or(|theirs| after.contains(&Entry(theirs))));
                for source in ["10.1.0.1", "10.1.3.1", "10.1.3.200", "10.9.0.1"].map(|a| a.parse().unwrap()) {
                    if is_held(&before, source) && is_held(&after, source) {
                        let all = kernel.history.iter().all(|policies| is_held(policies, source));
                        proptest::prop_assert!(all, "{source}: {:?}", kernel.history);
                    }
                }
            }
        }
    }
}
