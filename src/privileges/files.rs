//! Landlock: where the daemon, and what it starts, may write.
//!
//! Reading stays as it is, since a reload may name keys anywhere, and so does executing, since a reload may name a command.
//! Writing is what lets somebody who took the daemon over stay: units, cron tables, `core_pattern`.

use std::path::Path;

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus,
};

use super::Wall;

/// The newest whose rights are asked for: writing, making, removing, linking, truncating (Linux 6.2). Older kernels do without
/// the last ones. Not that of ioctl(2), which a TUN device and terminals of commands need.
const KNOWN: ABI = ABI::V3;

/// Directories for programs that alerts start; the unit gives it one of its own in their place.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
/// Devices, which are opened again for each program or plane.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/net/tun"];

/// Confines this thread, and those that it will start, to writing below these directories.
pub(super) fn confine(writes: &[&Path]) -> Wall {
    match try_to(writes) {
        Ok(RulesetStatus::NotEnforced) => Wall::Absent("this kernel has no Landlock".to_owned()),
        Ok(RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced) => Wall::Stands,
        Err(e) => Wall::Absent(format!("Landlock could not be used: {e}")),
    }
}

fn try_to(writes: &[&Path]) -> Result<RulesetStatus, RulesetError> {
    let write = AccessFs::from_write(KNOWN);
    let mut rules =
        Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(write)?.create()?;
    let dirs = writes.iter().copied().chain(TEMPORARY.map(Path::new)).map(|path| (path, write));
    let contents = AccessFs::WriteFile | AccessFs::Truncate;
    let devices = DEVICES.map(Path::new).into_iter().map(|path| (path, contents));
    for (path, rights) in dirs.chain(devices) {
        // What is not there needs no rule.
        if let Ok(fd) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(fd, rights))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}
