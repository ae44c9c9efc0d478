//! What the daemon gives up once it has what it needs: capabilities, new privileges, files to write, system calls, core dumps.
//!
//! ```text
//!  keep_no_traces ─▶ configuration, keys ─▶ probe of the kernel, control socket ─▶ confine ─▶ threads
//! ```
//!
//! All of it but the first step counts for one thread and those that it starts, so that it comes before the first of them. It
//! works alike under a service manager and without one; what the kernel does not offer is left out and told. The table of who
//! runs with what is docs/privileges.md.

mod calls;
mod capabilities;
mod files;

use std::path::{Path, PathBuf};

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

pub use self::capabilities::{Kept, give_up_all};
use crate::observe::snapshot::{Finding, Verdict};

/// No core dumps, no debugger of other processes, and nothing of this one in /proc for other users: memory holds keys. To be
/// called before the first of them is read.
pub fn keep_no_traces() {
    // Neither fails: the values are valid, and limits may always be lowered.
    let _ = prctl::set_dumpable(false);
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
}

/// What the daemon has to do with files.
#[derive(Debug)]
pub struct Needs<'a> {
    /// The configuration; read at every reload, with the keys beside it.
    pub config: &'a Path,
    /// Directories that it writes into. They are made if they are not there.
    pub writes: [&'a Path; 2],
}

/// Whether something is in force, and what stands in the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wall {
    /// It is, as far as this kernel knows it.
    Stands,
    /// It is not; says why.
    Absent(String),
}

/// What holds for the daemon from here on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GivenUp {
    capabilities: Result<Kept, String>,
    files: Wall,
    writes: Vec<PathBuf>,
    calls: Wall,
}

/// How the daemon is told to start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Confinement {
    /// As far as it goes.
    Full,
    /// Without Landlock and seccomp, which programs that it starts inherit. Capabilities go all the same.
    CapabilitiesOnly,
}

/// Gives up what the daemon does not need from here on, for this thread and those that it will start. There is no way back.
pub fn confine(needs: &Needs<'_>, confinement: Confinement) -> GivenUp {
    let _ = prctl::set_no_new_privs();
    for dir in needs.writes {
        // Whoever writes there says what is wrong with it.
        let _ = std::fs::create_dir_all(dir);
    }
    let full = confinement == Confinement::Full;
    let unless = |wall: fn(&Needs<'_>) -> Wall| {
        if full { wall(needs) } else { Wall::Absent("--unconfined was asked for".to_owned()) }
    };
    // Directories of others are opened before the right to do so goes; system calls come last, after those that do all this.
    let files = unless(|needs| files::confine(&needs.writes));
    let capabilities = capabilities::keep_needed(needs).map_err(|e| e.to_string());
    let calls = unless(|_| calls::confine());
    let writes = needs.writes.iter().map(|p| (*p).to_path_buf()).collect();
    GivenUp { capabilities, files, writes, calls }
}

impl GivenUp {
    /// What `doctor` says of it.
    pub fn findings(&self) -> Vec<Finding> {
        let finding = |name: &str, verdict, detail: String, fix: &str| Finding {
            name: name.to_owned(),
            verdict,
            detail: crate::observe::one_line(&detail),
            fix: fix.to_owned(),
        };
        let writes: Vec<_> = self.writes.iter().map(|p| p.display().to_string()).collect();
        let capabilities = match &self.capabilities {
            Ok(kept) => match (&kept.out_of_reach, kept.missing()) {
                (Some(path), _) => finding(
                    "daemon's capabilities",
                    Verdict::Warning,
                    format!(
                        "the daemon keeps {kept}, since {} is open to its owner only, who is another user",
                        path.display()
                    ),
                    "give it to the user whom the daemon runs as, and restart the daemon",
                ),
                (None, missing) if !missing.is_empty() => finding(
                    "daemon's capabilities",
                    Verdict::Warning,
                    format!("the daemon keeps {kept}, and was started without {missing}"),
                    "start it as root or with these capabilities, as cygnet.service does",
                ),
                _ => finding(
                    "daemon's capabilities",
                    Verdict::Ok,
                    format!("the daemon keeps {kept}; what it starts has none, and gets none"),
                    "",
                ),
            },
            Err(why) => finding(
                "daemon's capabilities",
                Verdict::Error,
                format!("the daemon has all capabilities that it was started with: {why}"),
                "restart it under cygnet.service, which gives it no others than it needs",
            ),
        };
        let files = match &self.files {
            Wall::Stands => finding(
                "daemon's files",
                Verdict::Ok,
                format!(
                    "the daemon, and what it starts, writes only into {} and /tmp (Landlock)",
                    writes.join(", ")
                ),
                "",
            ),
            Wall::Absent(why) => finding(
                "daemon's files",
                Verdict::Warning,
                format!("the daemon may write wherever its user may: {why}"),
                "run it under cygnet.service, or on a kernel with Landlock (lsm=landlock,… on its command line)",
            ),
        };
        let calls = match &self.calls {
            Wall::Stands => finding(
                "daemon's system calls",
                Verdict::Ok,
                "the daemon, and what it starts, can make no namespaces, mounts, modules, traces (seccomp)"
                    .to_owned(),
                "",
            ),
            Wall::Absent(why) => finding(
                "daemon's system calls",
                Verdict::Warning,
                format!("the daemon may make all system calls: {why}"),
                "run it under cygnet.service, or on a kernel with seccomp",
            ),
        };
        vec![capabilities, files, calls]
    }

    /// Says it in the log: what holds in a line, and each thing that does not.
    pub fn log(&self) {
        for f in self.findings() {
            match f.verdict {
                Verdict::Ok => tracing::debug!("{}", f.detail),
                Verdict::Warning => tracing::warn!(fix = f.fix, "{}", f.detail),
                Verdict::Error => tracing::error!(fix = f.fix, "{}", f.detail),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given_up(kept: Result<Kept, String>, wall: &Wall) -> GivenUp {
        GivenUp {
            capabilities: kept,
            files: wall.clone(),
            writes: vec!["/run/cygnet".into()],
            calls: wall.clone(),
        }
    }

    #[test]
    fn what_is_not_in_force_is_told_with_its_remedy() {
        let all = given_up(Ok(Kept::all()), &Wall::Stands).findings();
        assert!(all.iter().all(|f| f.verdict == Verdict::Ok && f.fix.is_empty()), "{all:?}");
        assert!(all[0].detail.contains("CAP_NET_ADMIN") && all[1].detail.contains("/run/cygnet"), "{all:?}");
        let none = given_up(Err("EPERM".into()), &Wall::Absent("no\u{1b}[2J".into())).findings();
        assert_eq!(none[0].verdict, Verdict::Error);
        assert!(none.iter().all(|f| f.verdict != Verdict::Ok && !f.fix.is_empty()), "{none:?}");
        assert!(!none[1].detail.contains('\u{1b}'));
        let kept = Kept { out_of_reach: Some("/home/a/c.yaml".into()), ..Kept::all() };
        let odd = given_up(Ok(kept), &Wall::Stands).findings();
        assert!(odd[0].verdict == Verdict::Warning && odd[0].detail.contains("/home/a/c.yaml"), "{odd:?}");
    }
}
