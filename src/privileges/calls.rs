//! seccomp: system calls that neither the daemon nor what it starts has any business with.
//!
//! A list of what is refused, with an error and not the end of the process: programs of the operator's choice inherit it, C
//! libraries change what they call, and the unit adds systemd's list of what is allowed. It takes from whoever took the daemon
//! over what is worth the most: other namespaces, mounts, modules, other processes' memory, and the parts of the kernel where
//! the holes are (BPF, io_uring, userfaultfd, perf, packet sockets).

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::Wall;

/// Refused as if there were no privilege for it.
const REFUSED: &[c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_by_handle_at,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    #[cfg(not(all(target_arch = "aarch64", target_env = "musl")))]
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
    // The host.
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // The processor.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// A new namespace by clone(2).
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// What sockets may be of: those of the unit's `RestrictAddressFamilies`.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Confines this thread and those that it will start.
pub(super) fn confine() -> Wall {
    let programs = match programs() {
        Ok(programs) => programs,
        Err(e) => return Wall::Absent(format!("there are no filters for this processor: {e}")),
    };
    for program in &programs {
        if let Err(e) = apply_filter(program) {
            return Wall::Absent(format!("seccomp could not be used: {e}"));
        }
    }
    Wall::Stands
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// One filter for each error; the kernel asks all of them.
fn programs() -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let mut refused: Rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let bit = |bit: libc::c_int| {
        let bit = u64::from(bit.unsigned_abs());
        argument(SeccompCmpOp::MaskedEq(bit), bit).and_then(|c| SeccompRule::new(vec![c]))
    };
    refused.insert(libc::SYS_clone, NAMESPACES.into_iter().map(bit).collect::<Result<_, _>>()?);
    let others = FAMILIES.into_iter().map(|f| argument(SeccompCmpOp::Ne, u64::from(f.unsigned_abs())));
    let sockets =
        Rules::from([(libc::SYS_socket, vec![SeccompRule::new(others.collect::<Result<_, _>>()?)?])]);
    // Its flags are in memory, where a filter cannot look; C libraries fall back to clone.
    let absent = Rules::from([(libc::SYS_clone3, Vec::new())]);
    let mut programs = Vec::new();
    for (rules, errno) in [(refused, libc::EPERM), (sockets, libc::EAFNOSUPPORT), (absent, libc::ENOSYS)] {
        let answer = SeccompAction::Errno(errno.unsigned_abs());
        let target = TargetArch::try_from(std::env::consts::ARCH)?;
        programs.push(SeccompFilter::new(rules, SeccompAction::Allow, answer, target)?.try_into()?);
    }
    #[cfg(target_arch = "x86_64")]
    programs.push(no_x32());
    Ok(programs)
}

/// A condition on the first argument of a call, which the kernel takes as 32 bits.
fn argument(how: SeccompCmpOp, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(0, SeccompCmpArgLen::Dword, how, value)
}

/// The same calls have other numbers for programs of the x32 kind, on kernels that run those.
#[cfg(target_arch = "x86_64")]
fn no_x32() -> BpfProgram {
    const X32: u32 = 0x4000_0000;
    const LOAD_NUMBER: u16 = 0x20;
    const IF_AT_LEAST: u16 = 0x35;
    const ANSWER: u16 = 0x06;
    let step = |code, jt, jf, k| seccompiler::sock_filter { code, jt, jf, k };
    vec![
        step(LOAD_NUMBER, 0, 0, 0),
        step(IF_AT_LEAST, 0, 1, X32),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::errno::Errno;
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::*;

    /// On a thread, which takes the filters with it when it ends.
    #[test]
    fn what_is_refused_is_refused_and_the_rest_goes_on() {
        thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            assert_eq!(confine(), Wall::Stands);
            assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EPERM));
            let open = |family| socket(family, SockType::Datagram, SockFlag::empty(), None).map(drop);
            assert_eq!(open(AddressFamily::Packet), Err(Errno::EAFNOSUPPORT));
            for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Unix] {
                assert_ne!(open(family), Err(Errno::EPERM), "{family:?}");
            }
            // Threads and programs can be started.
            thread::spawn(|| ()).join().unwrap();
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
        })
        .join()
        .unwrap();
    }
}
