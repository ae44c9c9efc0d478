//! What a daemon that has ended left on this host: guards, SAs, caps. All of it carries our marks (reqids, the owner of
//! rules and routes, the handle of the root qdisc), so that it is found without the configuration that made it.

use std::fmt;

use cygnet_model::Reqid;
use cygnet_model::plane::{PlaneError, PlaneErrorKind, PlaneKind};
use cygnet_xfrm::Xfrm;
use cygnet_xfrm::link::RtnlError;

use super::kernel::KernelPlane;
use super::wall::{Protection, Wall};
use super::{source, spd, user};
use crate::plane::levels;
use crate::shaping::apply::{Shaper, ShapingError};

/// Why something could not be removed.
#[derive(Debug)]
pub enum ResidueError {
    /// Guards or SAs.
    Plane(PlaneError),
    /// Caps.
    Shaping(ShapingError),
    /// Bandwidth levels of the kernel's plane.
    Levels(String),
}

impl fmt::Display for ResidueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plane(e) => e.fmt(f),
            Self::Shaping(e) => e.fmt(f),
            Self::Levels(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for ResidueError {}

/// Whether guards of an earlier daemon may be in force in this network namespace, of either plane. A kernel without XFRM has
/// none of its own; one that does not answer may have.
pub fn guards_stand() -> bool {
    let policies = Xfrm::open().map(|mut x| x.dump_policies());
    let kernel = policies.is_ok_and(|all| all.map_or(true, |all| all.iter().any(spd::is_ours)));
    kernel || user::guards_stand()
}

/// Ends what an earlier daemon left in the other plane than the one that is used now, whose guards are in force.
///
/// # Errors
/// As the kernel says.
pub fn release_other(used: PlaneKind) -> Result<(), PlaneError> {
    match used {
        PlaneKind::Kernel => user::release_guards().map(|_| ()),
        PlaneKind::Userspace => release_policies().and(source::release().map(|_| ()).map_err(unsourced)),
    }
}

fn release_policies() -> Result<(), PlaneError> {
    // A kernel without XFRM has nothing of it.
    let Ok(mut xfrm) = Xfrm::open() else { return Ok(()) };
    let policies = xfrm.dump_policies().is_ok_and(|all| all.iter().any(spd::is_ours));
    let states = xfrm.dump_sas().is_ok_and(|all| all.iter().any(|s| Reqid(s.reqid).child().is_some()));
    if !policies && !states {
        return Ok(());
    }
    KernelPlane::open().and_then(|mut plane| plane.sweep().and(plane.release()))
}

fn unsourced(e: RtnlError) -> PlaneError {
    PlaneError {
        operation: "remove routes of own packets".to_owned(),
        kind: PlaneErrorKind::Other,
        detail: e.to_string(),
    }
}

/// What [`release`] found and removed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Released {
    /// IPsec policies of ours.
    pub policies: usize,
    /// IPsec states of ours.
    pub states: usize,
    /// Routing rules of ours.
    pub rules: usize,
}

/// Removes guards, SAs and caps of a daemon that has ended, of either plane. From here on protected packets pass as if
/// there had been no gateway.
///
/// # Errors
/// Goes on after errors and returns all.
pub fn release() -> Result<Released, Vec<ResidueError>> {
    let mut errors = Vec::new();
    let mut released = Released::default();
    // A kernel without XFRM has nothing of it.
    if let Ok(mut xfrm) = Xfrm::open() {
        released.policies =
            xfrm.dump_policies().map_or(0, |all| all.iter().filter(|p| spd::is_ours(p)).count());
        released.states =
            xfrm.dump_sas().map_or(0, |all| all.iter().filter(|s| Reqid(s.reqid).child().is_some()).count());
    }
    errors.extend(release_policies().err().map(ResidueError::Plane));
    // At last what stands behind the guards.
    let wall = || Wall::open(Protection::Route, []).release();
    match user::release_guards() {
        Ok(rules) => released.rules = rules,
        Err(e) => errors.push(ResidueError::Plane(e)),
    }
    match source::release() {
        Ok(rules) => released.rules += rules,
        Err(e) => errors.push(ResidueError::Plane(unsourced(e))),
    }
    errors.extend(wall().err().map(ResidueError::Plane));
    errors.extend(levels::Table::default().remove().err().map(ResidueError::Levels));
    match Shaper::open(None).map(|mut s| s.remove_all()) {
        Ok(Ok(())) => {}
        Ok(Err(failed)) => errors.extend(failed.into_iter().map(ResidueError::Shaping)),
        Err(e) => errors.push(ResidueError::Shaping(e)),
    }
    if errors.is_empty() { Ok(released) } else { Err(errors) }
}
