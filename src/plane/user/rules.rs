//! The device, rules and routes in the kernel that are ours: brought to a layout, put back when others remove them. What
//! comes after what is decided by [`windows`] and [`cygnet_reconcile`]; here it is looked at and done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cygnet_reconcile::{Object, Plan, Step, World};
use cygnet_xfrm::address::OwnAddress;
use cygnet_xfrm::link::RtnlError;
use cygnet_xfrm::route::{Family, Route, Via};
use cygnet_xfrm::routing::{Routing, RoutingChange};
use cygnet_xfrm::rule::{Rule, Verdict};

use super::device::Device;
use super::layout::{DEVICE, Layout, OWNER, TableNumbers};
use super::windows::{self, Next};
pub use super::windows::{FIRST_PRIORITY, LAST_PRIORITY};
use crate::plane::near;
use crate::plane::pieces::{self, Piece};

/// See the [module](self).
pub(super) struct Rules {
    routing: Routing,
    device: Option<Device>,
    goal: Goal,
    /// Rules of others that were last seen in front of ours.
    front: Vec<Rule>,
    trouble: Option<String>,
    pub tables: TableNumbers,
}

/// What shall be in the kernel.
#[derive(Default)]
pub(super) struct Goal {
    /// Rules as they would be in the first window.
    rules: BTreeMap<Family, Vec<Rule>>,
    routes: BTreeSet<Route>,
    /// What an earlier process left in force, until it is settled.
    inherited: Option<Inherited>,
    /// Rules of closed windows, to be removed when there is time.
    left: Vec<Rule>,
}

#[derive(Default)]
struct Inherited {
    windows: BTreeMap<Family, BTreeSet<u32>>,
    routes: BTreeSet<Route>,
}

/// What was not there when it was looked at first, and is now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Repaired {
    /// The device had to be made anew.
    pub device: bool,
    /// Rules and routes.
    pub count: usize,
}

impl Rules {
    /// Connects and takes note of what an earlier process left.
    pub fn open(device: Option<Device>) -> Result<Self, RtnlError> {
        let mut routing = Routing::open()?;
        let mut inherited = Inherited::default();
        for family in Family::ALL {
            let rules = ours(&mut routing, family)?;
            inherited.windows.insert(family, windows::open(family, &rules));
            inherited.routes.extend(routing.routes(family, OWNER)?);
        }
        let tables = TableNumbers::beyond(&inherited.routes);
        let goal = Goal { inherited: Some(inherited), ..Goal::default() };
        Ok(Self { routing, device, goal, front: Vec::new(), trouble: None, tables })
    }

    /// How many rules of ours there are.
    pub fn count(&mut self) -> Result<usize, RtnlError> {
        let [v4, v6] = Family::ALL.map(|family| ours(&mut self.routing, family));
        Ok(v4?.len() + v6?.len())
    }

    /// The device, if there is one.
    pub const fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// Changes the MTU of the device. One that is gone gets it when it is made anew; what others have put in its place is
    /// let be.
    pub fn set_mtu(&mut self, mtu: u16) -> Result<(), RtnlError> {
        let Some(device) = self.device.as_mut().filter(|device| device.mtu != mtu) else { return Ok(()) };
        let before = std::mem::replace(&mut device.mtu, mtu);
        if !device.look()?.is_some_and(|there| there.ours) {
            return Ok(());
        }
        let set = device.set_up();
        if set.is_err() {
            device.mtu = before;
        }
        set
    }

    /// Puts a layout in force in place of the one before. After an error the one before is in force.
    pub fn apply(&mut self, layout: &Layout) -> Result<(), RtnlError> {
        let tun = self.device.as_ref().map_or("", |device| &device.name);
        let (first, exit) = windows::PLACED;
        let mut rules = BTreeMap::new();
        for family in Family::ALL {
            let placed = layout.place(family, first, exit, tun).ok_or_else(|| RtnlError {
                operation: format!("lay out {family:?} routing rules"),
                errno: None,
                detail: format!("the guards need more than {} priorities", exit - first),
            })?;
            rules.insert(family, placed);
        }
        let before = (
            std::mem::replace(&mut self.goal.rules, rules),
            std::mem::replace(&mut self.goal.routes, layout.routes.clone()),
        );
        let applied = self.bring();
        if applied.is_err() {
            (self.goal.rules, self.goal.routes) = before;
            // Whoever mends goes on with it if this fails, too.
            let _ = self.bring();
        }
        applied.map(|_| ())
    }

    /// Removes some of what is left in closed windows. Says whether there is more.
    pub fn tidy(&mut self) -> Result<bool, RtnlError> {
        let some = self.goal.left.len().min(windows::AT_ONCE);
        let gone: Vec<RoutingChange> = self.goal.left.drain(..some).map(RoutingChange::RemoveRule).collect();
        self.routing.change(&gone).into_iter().collect::<Result<(), _>>()?;
        Ok(!self.goal.left.is_empty())
    }

    /// Closes and removes what an earlier process left, to be called when all guards are in force.
    pub fn settle(&mut self) -> Result<(), RtnlError> {
        self.goal.inherited = None;
        self.bring().map(|_| ())
    }

    /// Puts back what somebody else took away.
    pub fn repair(&mut self) -> Result<Repaired, RtnlError> {
        self.bring()
    }

    /// Removes all rules and routes of ours.
    pub fn release(&mut self) -> Result<(), RtnlError> {
        self.goal = Goal::default();
        self.bring().map(|_| ())
    }

    fn bring(&mut self) -> Result<Repaired, RtnlError> {
        let brought = self.bring_once();
        self.trouble = brought.as_ref().err().map(ToString::to_string);
        brought
    }

    fn bring_once(&mut self) -> Result<Repaired, RtnlError> {
        let goal = &mut self.goal;
        let mut first = None;
        let mut trouble = None;
        let device = self.device.as_mut();
        let mut host = Host { routing: &mut self.routing, device, unmade: None, front: Vec::new() };
        let brought = cygnet_reconcile::bring(&mut host, |host, seen| {
            trouble = None;
            let wanted = host.device.as_ref().map(|device| device.wanted());
            let (plan, repaired) = goal.plan(seen, wanted).unwrap_or_else(|told| {
                trouble = Some(told.to_owned());
                Default::default()
            });
            if !plan.taken().is_empty() {
                let name = host.device.as_ref().map_or("", |device| device.name.as_str());
                trouble = Some(host.unmade.as_ref().map_or_else(
                    || format!("another program has a device of the name {name}"),
                    ToString::to_string,
                ));
            }
            first.get_or_insert(repaired);
            plan
        });
        self.front = host.front;
        self.front.retain(|rule| goal.rules.get(&rule.family).is_some_and(|rules| !rules.is_empty()));
        let operation = "put routing rules in force";
        brought.map_err(|stuck| pieces::error(operation, stuck))?;
        match trouble {
            Some(detail) => Err(RtnlError { operation: operation.to_owned(), errno: None, detail }),
            None => Ok(first.unwrap_or_default()),
        }
    }

    /// Rules of others that saw packets before ours when it was last looked, and may take them.
    pub fn in_front(&self) -> &[Rule] {
        &self.front
    }

    /// Why what is wanted could not be put in force when it was last tried.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Whether the kernel has rules of a family at all.
    pub fn has_family(&mut self, family: Family) -> Result<bool, RtnlError> {
        Ok(!self.routing.rules(family)?.is_empty())
    }

    /// The addresses of this host that packets of its own may have, with the networks attached by them.
    pub fn own_addresses(&mut self) -> Result<BTreeSet<OwnAddress>, RtnlError> {
        near::own_addresses(&mut self.routing)
    }

    /// Those of them that can be a route's source.
    pub fn sources(&mut self, own: &BTreeSet<OwnAddress>) -> Result<BTreeSet<IpAddr>, RtnlError> {
        Ok(near::sources(&mut self.routing, own)?.into_iter().map(|own| own.address).collect())
    }
}

impl Goal {
    /// What is to be done next where this is seen: our device, or what has its name; routes of ours; rules of ours in the
    /// order of the kernel.
    pub(super) fn plan(
        &mut self,
        seen: Vec<Piece>,
        device: Option<pieces::Device>,
    ) -> Result<(Plan<Piece>, Repaired), &'static str> {
        let mut rules: BTreeMap<Family, Vec<Rule>> = BTreeMap::new();
        let mut routes = BTreeSet::new();
        let (mut want, mut have) = (Vec::new(), Vec::new());
        for piece in seen {
            match piece {
                Piece::Rule { rule, .. } => rules.entry(rule.family).or_default().push(rule),
                Piece::Route(route) => {
                    routes.insert(route);
                }
                Piece::Device(_) => have.push(piece),
            }
        }
        let has_device = have.iter().any(|piece| matches!(piece, Piece::Device(device) if device.ours));
        let mut repaired = Repaired { device: device.is_some() && !has_device, count: 0 };
        want.extend(device.map(Piece::Device));
        self.left.clear();
        let mut settling = BTreeSet::new();
        for family in Family::ALL {
            let (wanted, rules) = (self.rules.get(&family), rules.get(&family));
            let list = |rules: Option<&'_ Vec<Rule>>| rules.cloned().unwrap_or_default();
            let kept = self.inherited.as_ref().and_then(|inherited| inherited.windows.get(&family));
            let (wanted, rules) = (list(wanted), list(rules));
            let next: Next = windows::next(family, &wanted, &rules, kept)
                .map_err(|_| "rules of earlier processes take all the room; see: ip rule")?;
            want.extend(next.want);
            have.extend(next.seen);
            self.left.extend(next.left);
            repaired.count += next.missing;
            if !next.is_last {
                settling.insert(family);
            }
        }
        if routes != self.routes || !has_device {
            repaired.count += self.routes.difference(&routes).count();
            let places: BTreeSet<_> = self.routes.iter().map(|route| Piece::Route(*route).place()).collect();
            let inherited = self.inherited.as_ref().map(|inherited| &inherited.routes);
            let may_go = |route: &Route| {
                !settling.contains(&route.family) && inherited.is_none_or(|kept| !kept.contains(route))
            };
            let is_concerned = |piece: &Piece| match piece {
                Piece::Route(route) => may_go(route) || places.contains(&piece.place()),
                _ => true,
            };
            have.extend(routes.into_iter().map(Piece::Route).filter(is_concerned));
            want.extend(self.routes.iter().copied().map(Piece::Route));
        }
        let is_ours = |piece: &Piece| !matches!(piece, Piece::Device(device) if !device.ours);
        Ok((cygnet_reconcile::plan(want, have, is_ours), repaired))
    }
}

/// The kernel of this network namespace, as far as it is ours.
struct Host<'a> {
    routing: &'a mut Routing,
    device: Option<&'a mut Device>,
    /// Why there is no device. Then all is done that needs none.
    unmade: Option<RtnlError>,
    front: Vec<Rule>,
}

impl World for Host<'_> {
    type Object = Piece;
    type Error = RtnlError;

    fn look(&mut self) -> Result<Vec<Piece>, RtnlError> {
        let mut device = self.device.as_ref().map(|device| device.look()).transpose()?.flatten();
        if self.unmade.is_some() {
            device = Some(pieces::Device { ours: false, mtu: 0, up: false });
        }
        let mut seen: Vec<Piece> = device.map(Piece::Device).into_iter().collect();
        let index = self.device.as_ref().map(|device| device.index());
        self.front.clear();
        for family in Family::ALL {
            seen.extend(self.routing.routes(family, OWNER)?.into_iter().map(|mut route| {
                if let (Via::Link(link), true) = (route.via, index.is_some()) {
                    // By another link than ours it is no route of this layout.
                    route.via = if index == Some(link) { Via::Link(DEVICE) } else { route.via };
                }
                Piece::Route(route)
            }));
            for rule in self.routing.rules(family)? {
                if rule.owner == OWNER {
                    seen.push(Piece::rule(rule));
                } else if is_in_front(&rule) {
                    self.front.push(rule);
                }
            }
        }
        Ok(seen)
    }

    fn run(&mut self, steps: &[Step<Piece>]) -> Vec<Result<(), RtnlError>> {
        let mut answers = Vec::with_capacity(steps.len());
        let is_device = |step: &&Step<Piece>| matches!(step.object(), Piece::Device(_));
        for step in steps.iter().filter(is_device) {
            let Some(device) = &mut self.device else { continue };
            let made = match step {
                Step::Add(_) => device.renew(),
                Step::Put(_) => device.set_up(),
                Step::Remove(_) => Ok(()),
            };
            self.unmade = made.as_ref().err().cloned();
            answers.push(made);
            if self.unmade.is_some() {
                return answers;
            }
        }
        let index = self.device.as_ref().map_or(DEVICE, |device| device.index());
        let rest: Vec<Step<Piece>> =
            steps.iter().filter(|step| !is_device(step)).map(|step| by_link(step, index)).collect();
        answers.extend(pieces::change(self.routing, &rest));
        answers
    }
}

/// A step on a route of the device, with the device's index.
fn by_link(step: &Step<Piece>, index: u32) -> Step<Piece> {
    let mut step = step.clone();
    let (Step::Add(piece) | Step::Put(piece) | Step::Remove(piece)) = &mut step;
    if let Piece::Route(Route { via: via @ Via::Link(DEVICE), .. }) = piece {
        *via = Via::Link(index);
    }
    step
}

fn is_in_front(rule: &Rule) -> bool {
    rule.owner != OWNER && (1..FIRST_PRIORITY).contains(&rule.priority) && rule.verdict != Verdict::Nop
}

fn ours(routing: &mut Routing, family: Family) -> Result<Vec<Rule>, RtnlError> {
    let mut rules = routing.rules(family)?;
    rules.retain(|rule| rule.owner == OWNER);
    Ok(rules)
}

#[cfg(test)]
mod tests;
