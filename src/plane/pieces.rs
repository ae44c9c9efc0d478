//! What leads packets by routing, as objects that [`cygnet_reconcile`] knows how to bring about: our TUN device, routes and
//! rules. Both planes have some.

use std::cmp::Reverse;

use cygnet_reconcile::{Effect, Object, Step, Stuck};
use cygnet_xfrm::link::RtnlError;
use cygnet_xfrm::route::{Family, Prefix, Route, Via};
use cygnet_xfrm::routing::{Routing, RoutingChange};
use cygnet_xfrm::rule::{Rule, Verdict};

/// See the [module](self).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Piece {
    /// The TUN device.
    Device(Device),
    /// A route.
    Route(Route),
    /// A rule.
    Rule {
        /// The rule.
        rule: Rule,
        /// How many of its priority are before it.
        at: usize,
        /// What it does to packets, which depends on the rules around it.
        effect: Effect,
    },
}

/// A device with the name of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Device {
    /// Whether it is the one that we read from.
    pub ours: bool,
    /// In octets.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
}

/// Where a [`Piece`] is. Routes come before the rules that look for them, and a drop before the device in front of it. Rules
/// come from the last priority to the first: what one points to is there before it, and the kernel finds each place at
/// the head of its list.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Place {
    Device,
    Route(Family, u32, Reverse<u32>, Prefix),
    Rule(Family, Reverse<u32>, usize, Rule),
}

impl Piece {
    /// A rule that is alone at its priority, or whose place among those does not matter.
    pub fn rule(rule: Rule) -> Self {
        Self::Rule { rule, at: 0, effect: Effect::Holds }
    }
}

impl Object for Piece {
    type Place = Place;

    fn place(&self) -> Place {
        match self {
            Self::Device(_) => Place::Device,
            Self::Route(r) => Place::Route(r.family, r.table, Reverse(r.metric), r.destination),
            Self::Rule { rule, at, .. } => {
                Place::Rule(rule.family, Reverse(rule.priority), *at, rule.clone())
            }
        }
    }

    fn is(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            // The place says all.
            (Self::Rule { .. }, Self::Rule { .. }) => true,
            _ => self == wanted,
        }
    }

    fn effect(&self) -> Effect {
        match self {
            Self::Rule { effect, .. } => *effect,
            Self::Route(Route { via: Via::Throw, .. }) => Effect::LetsBy,
            Self::Device(_) | Self::Route(_) => Effect::Holds,
        }
    }

    fn rests_on(&self) -> Option<Place> {
        matches!(self, Self::Route(Route { via: Via::Link(_), .. })).then_some(Place::Device)
    }
}

/// Does steps on routes and rules, and answers each in its place.
pub(super) fn change(routing: &mut Routing, steps: &[Step<Piece>]) -> Vec<Result<(), RtnlError>> {
    let mut numbered: Vec<(usize, &Step<Piece>)> = steps.iter().enumerate().collect();
    numbered.sort_by_key(|(_, step)| turn(step));
    let changes: Vec<RoutingChange> = numbered.iter().filter_map(|(_, step)| routing_change(step)).collect();
    let mut results = routing.change(&changes);
    if results.len() < steps.len() {
        // Which of them were done is seen at the next look.
        results.retain(Result::is_err);
        results.truncate(1);
        return results;
    }
    let mut answers: Vec<_> = numbered.into_iter().map(|(at, _)| at).zip(results).collect();
    answers.sort_by_key(|(at, _)| *at);
    answers.into_iter().map(|(_, result)| result).collect()
}

/// In which order steps cost the kernel least: while there is any rule that points to others, it looks through all rules at
/// each removal.
const fn turn(step: &Step<Piece>) -> u8 {
    match step {
        Step::Add(_) | Step::Put(_) => 0,
        Step::Remove(Piece::Rule { rule: Rule { verdict: Verdict::Goto(_), .. }, .. }) => 1,
        Step::Remove(Piece::Rule { .. }) => 2,
        Step::Remove(Piece::Route(_) | Piece::Device(_)) => 3,
    }
}

/// What a step is for the kernel; the device is made by whoever has it.
fn routing_change(step: &Step<Piece>) -> Option<RoutingChange> {
    Some(match step {
        Step::Add(Piece::Route(route)) => RoutingChange::AddRoute(*route),
        Step::Put(Piece::Route(route)) => RoutingChange::PutRoute(*route),
        Step::Remove(Piece::Route(route)) => RoutingChange::RemoveRoute(*route),
        Step::Add(Piece::Rule { rule, .. }) | Step::Put(Piece::Rule { rule, .. }) => {
            RoutingChange::AddRule(rule.clone())
        }
        Step::Remove(Piece::Rule { rule, .. }) => RoutingChange::RemoveRule(rule.clone()),
        Step::Add(Piece::Device(_)) | Step::Put(Piece::Device(_)) | Step::Remove(Piece::Device(_)) => {
            return None;
        }
    })
}

/// Why something could not be brought about.
pub(super) fn error(operation: &str, stuck: Stuck<Piece, RtnlError>) -> RtnlError {
    match stuck {
        Stuck::Blind(error) | Stuck::Refused(_, error) => error,
        Stuck::Restless => RtnlError {
            operation: operation.to_owned(),
            errno: None,
            detail: "the kernel took every step, but shows something else; does somebody else change it?"
                .to_owned(),
        },
    }
}
