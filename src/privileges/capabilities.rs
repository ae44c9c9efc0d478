//! Capabilities: which the daemon keeps, and why. The rest goes out of every set.
//!
//! What the daemon starts has none. The bounding set is emptied where that is allowed; elsewhere (a service without CAP_SETPCAP)
//! the threads that start programs have given theirs up, and with no_new_privs a program gets no more than who starts it had,
//! even as root.

use std::fmt;
use std::path::{Path, PathBuf};

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::Needs;

/// Those that it needs as long as it runs, with the reason.
pub const NEEDED: [(Capability, &str); 3] = [
    (
        Capability::CAP_NET_ADMIN,
        "XFRM, routes, nf_tables and traffic control by netlink; TUN; marks of sockets",
    ),
    (Capability::CAP_NET_BIND_SERVICE, "UDP 500, also of addresses that come later"),
    (Capability::CAP_NET_RAW, "ICMP sockets of the probes, which a reload may ask for"),
];

/// What was kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// By name.
    pub capabilities: Vec<Capability>,
    /// What the daemon needs and its user may not use without [`Capability::CAP_DAC_OVERRIDE`], which it keeps for that.
    pub out_of_reach: Option<PathBuf>,
}

impl Kept {
    /// Everything that is needed, and no more.
    #[cfg(test)]
    pub fn all() -> Self {
        Self { capabilities: NEEDED.iter().map(|(c, _)| *c).collect(), out_of_reach: None }
    }

    /// Those that are needed and were not there, in words.
    pub fn missing(&self) -> String {
        words(NEEDED.iter().map(|(c, _)| c).filter(|c| !self.capabilities.contains(c)))
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match words(self.capabilities.iter()) {
            none if none.is_empty() => f.write_str("no capability"),
            some => f.write_str(&some),
        }
    }
}

fn words<'a>(all: impl Iterator<Item = &'a Capability>) -> String {
    all.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Keeps what is needed of what this thread has.
pub(super) fn keep_needed(needs: &Needs<'_>) -> Result<Kept, CapsError> {
    let had = caps::read(None, CapSet::Permitted)?;
    // Needs a capability that is about to go, and is of use only where there is one.
    for capability in caps::read(None, CapSet::Bounding)? {
        if caps::drop(None, CapSet::Bounding, capability).is_err() {
            break;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    let mut capabilities: Vec<Capability> =
        NEEDED.iter().map(|(c, _)| *c).filter(|c| had.contains(c)).collect();
    let set = |capabilities: &[Capability]| capabilities.iter().copied().collect::<CapsHashSet>();
    caps::set(None, CapSet::Effective, &set(&capabilities))?;
    // Root used to be kept out of no file. Of one who runs the daemon by hand with files of their own this stays true.
    let out_of_reach = first_out_of_reach(needs).filter(|_| had.contains(&Capability::CAP_DAC_OVERRIDE));
    if out_of_reach.is_some() {
        capabilities.push(Capability::CAP_DAC_OVERRIDE);
        caps::set(None, CapSet::Effective, &set(&capabilities))?;
    }
    caps::set(None, CapSet::Permitted, &set(&capabilities))?;
    Ok(Kept { capabilities, out_of_reach })
}

fn first_out_of_reach(needs: &Needs<'_>) -> Option<PathBuf> {
    // What is not there at all is a matter for whoever wants it.
    let denied = |path: &Path, how| faccessat(AT_FDCWD, path, how, AtFlags::AT_EACCESS) == Err(Errno::EACCES);
    let write = AccessFlags::W_OK | AccessFlags::X_OK;
    let mut all =
        std::iter::once((needs.config, AccessFlags::R_OK)).chain(needs.writes.map(|dir| (dir, write)));
    all.find(|(path, how)| denied(path, *how)).map(|(path, _)| path.to_path_buf())
}

/// Gives up all capabilities of this thread and of those that it will start: for threads that hear strangers or start programs.
pub fn give_up_all() {
    for set in [CapSet::Effective, CapSet::Permitted] {
        // To have less is never refused.
        let _ = caps::clear(None, set);
    }
}
