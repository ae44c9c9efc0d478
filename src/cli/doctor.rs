//! `cygnet doctor`: what this host offers. The daemon is asked if it runs; what any user can see is looked at here.

use std::fs;
use std::path::Path;

use clap::Args;
use cygnet_xfrm::probe::NOT_ASKED;
use nix::unistd::Group;
use serde_json::json;

use super::output::{Out, Tone, safe};
use super::{Exit, Global, Outcome, ask};
use crate::control::{Request, Response, access};
use crate::observe::snapshot::{Finding, Verdict};
use crate::plane::choose::{HostReport, Wish};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet doctor
  cygnet doctor --json | jq '.findings[] | select(.verdict != \"ok\")'

Exit code 0 if nothing stands in the way, else 1.")]
pub struct DoctorArgs {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub fn doctor(args: &DoctorArgs, g: &Global, out: &mut Out) -> Outcome {
    let status = read("/proc/self/status");
    let mut findings = host(&status);
    // The probe makes a network namespace of its own, in which it tries.
    let probe = || {
        let may = has(&status, CAP_NET_ADMIN) && has(&status, CAP_SYS_ADMIN);
        may.then(|| HostReport::gather(Wish::Auto).findings())
    };
    let daemon = match ask(g, &Request::Doctor {}) {
        Ok(Response::Findings { findings: more }) => {
            // A confined daemon leaves open what root can find out.
            let open = |f: &Finding| f.detail.contains(NOT_ASKED);
            let ours = if more.iter().any(open) { probe().unwrap_or_default() } else { Vec::new() };
            findings.extend(more.into_iter().map(|f| {
                let better = ours.iter().find(|o| open(&f) && o.name == f.name);
                better.cloned().unwrap_or(f)
            }));
            finding("daemon", Verdict::Ok, "answers on its control socket", "")
        }
        Ok(_) => finding("daemon", Verdict::Warning, "answers, but not to this question", ""),
        Err(e) => {
            findings.extend(probe().unwrap_or_else(signs));
            finding(
                "daemon",
                Verdict::Warning,
                &e.message,
                "cygnet run starts it, systemctl start cygnet as a service",
            )
        }
    };
    let running = daemon.verdict == Verdict::Ok;
    findings.push(daemon);
    findings.extend(ports(&read("/proc/net/udp"), &read("/proc/net/udp6"), running));
    let bad = findings.iter().any(|f| f.verdict == Verdict::Error);
    let code = if bad { Exit::Failed } else { Exit::Done };
    if args.json {
        out.json(&json!({ "version": 1, "healthy": !bad, "findings": findings }))?;
        return Ok(code);
    }
    let width = findings.iter().map(|f| safe(&f.name).chars().count()).max().unwrap_or(0) + 2;
    for f in &findings {
        let (tone, word) = match f.verdict {
            Verdict::Ok => (Tone::Good, "ok"),
            Verdict::Warning => (Tone::Odd, "warning"),
            Verdict::Error => (Tone::Bad, "error"),
        };
        let line = format!(
            "{}  {:<width$}{}",
            out.paint(tone, &format!("{word:<7}")),
            safe(&f.name),
            safe(&f.detail)
        );
        out.line(&line)?;
        if !f.fix.is_empty() {
            out.line(&format!("{:1$}{2}", "", width + 9, safe(&f.fix)))?;
        }
    }
    Ok(code)
}

fn finding(name: &str, verdict: Verdict, detail: &str, fix: &str) -> Finding {
    Finding { name: name.into(), verdict, detail: detail.into(), fix: fix.into() }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What stands for the probe's answers where the user may not probe.
fn signs() -> Vec<Finding> {
    let release = read("/proc/sys/kernel/osrelease");
    let release = release.trim();
    let mut out = Vec::new();
    out.push(if Path::new("/proc/sys/net/core/xfrm_acq_expires").exists() {
        finding("xfrm", Verdict::Ok, "the kernel has XFRM", "")
    } else {
        let detail = "the kernel has no XFRM here; ESP is cygnet's own";
        finding("xfrm", Verdict::Warning, detail, "a kernel with CONFIG_XFRM_USER forwards ESP itself")
    });
    out.push(match (module(release, "esp4"), module(release, "esp6")) {
        (true, true) => finding("esp", Verdict::Ok, "the kernel has ESP for IPv4 and IPv6", ""),
        (true, false) => {
            finding("esp", Verdict::Warning, "the kernel has ESP for IPv4 only", "load the module esp6")
        }
        _ => finding(
            "esp",
            Verdict::Warning,
            "no sign of ESP in the kernel (modules esp4, esp6); ESP is cygnet's own unless a probe finds it",
            "load the modules esp4 and esp6, or set data_plane: userspace",
        ),
    });
    out.push(match fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => finding("tun", Verdict::Ok, "/dev/net/tun can be opened", ""),
        Err(e) => {
            let detail = format!("/dev/net/tun cannot be opened ({e}); needed for cygnet's own ESP");
            finding("tun", Verdict::Warning, &detail, "load the module tun")
        }
    });
    out
}

fn host(status: &str) -> Vec<Finding> {
    let release = read("/proc/sys/kernel/osrelease");
    let mut out = vec![finding("kernel", Verdict::Ok, release.trim(), ""), capabilities(status)];
    for (name, path) in [
        ("ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("ip6_forward", "/proc/sys/net/ipv6/conf/all/forwarding"),
    ] {
        out.push(match read(path).trim() {
            "1" => finding(name, Verdict::Ok, "packets are forwarded", ""),
            "0" => finding(name, Verdict::Warning, "packets are not forwarded", &format!("echo 1 > {path}")),
            _ => finding(name, Verdict::Warning, &format!("cannot read {path}"), ""),
        });
    }
    if read("/proc/sys/net/ipv4/conf/all/rp_filter").trim() == "1" {
        let fix =
            "set net.ipv4.conf.all.rp_filter to 2 where tunnels and their answers take different interfaces";
        out.push(finding("rp_filter", Verdict::Warning, "strict reverse path filter", fix));
    }
    out.push(match Group::from_name(access::GROUP) {
        Ok(Some(_)) => {
            finding("group", Verdict::Ok, "members of group cygnet may look by the control socket", "")
        }
        _ => finding(
            "group",
            Verdict::Warning,
            "there is no group cygnet; only root may use the control socket",
            "groupadd --system cygnet",
        ),
    });
    out
}

/// Whether a module is built in, loaded, or there to be loaded.
fn module(release: &str, name: &str) -> bool {
    let dir = Path::new("/lib/modules").join(release);
    let listed =
        |file: &str| fs::read_to_string(dir.join(file)).is_ok_and(|t| t.contains(&format!("/{name}.ko")));
    read("/proc/modules").lines().any(|l| l.split(' ').next() == Some(name))
        || Path::new("/sys/module").join(name).exists()
        || listed("modules.builtin")
        || listed("modules.dep")
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Whether a capability is effective, by the text of /proc/self/status.
fn has(status: &str, capability: u32) -> bool {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let set = line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()).unwrap_or(0);
    set >> capability & 1 == 1
}

fn capabilities(status: &str) -> Finding {
    const NEEDED: [(u32, &str); 3] =
        [(10, "CAP_NET_BIND_SERVICE"), (CAP_NET_ADMIN, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")];
    let missing: Vec<&str> = NEEDED.iter().filter(|(n, _)| !has(status, *n)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        finding("capabilities", Verdict::Ok, "this user could run the daemon", "")
    } else {
        let detail = format!("this user lacks {}", missing.join(", "));
        finding("capabilities", Verdict::Warning, &detail, "run the daemon as root")
    }
}

/// Looks for somebody else on the IKE ports, in the text of /proc/net/udp and udp6.
fn ports(udp: &str, udp6: &str, running: bool) -> Vec<Finding> {
    let taken = |port: u16| {
        let suffix = format!(":{port:04X}");
        let local = |l: &str| l.split_ascii_whitespace().nth(1).is_some_and(|a| a.ends_with(&suffix));
        udp.lines().chain(udp6.lines()).any(local)
    };
    let busy: Vec<String> = [500, 4500].into_iter().filter(|p| taken(*p)).map(|p| p.to_string()).collect();
    match (busy.is_empty(), running) {
        (false, false) => {
            let detail = format!("UDP {} is in use, and not by cygnet", busy.join(" and "));
            vec![finding("ports", Verdict::Error, &detail, "stop the other IKE daemon; ss -ulpn names it")]
        }
        (true, true) => {
            vec![finding(
                "ports",
                Verdict::Warning,
                "the daemon runs, but nobody listens on UDP 500 and 4500 here",
                "",
            )]
        }
        _ => vec![finding("ports", Verdict::Ok, "UDP 500 and 4500 are cygnet's or free", "")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_daemon_on_the_ports_is_found() {
        let udp = "  sl  local_address rem_address\n  10: 00000000:01F4 00000000:0000 07\n";
        assert_eq!(ports(udp, "", false)[0].verdict, Verdict::Error);
        assert_eq!(ports(udp, "", true)[0].verdict, Verdict::Ok);
        assert_eq!(ports("", "", false)[0].verdict, Verdict::Ok);
    }

    #[test]
    fn capabilities_are_read_from_the_mask() {
        assert_eq!(capabilities("CapEff:\t000001ffffffffff\n").verdict, Verdict::Ok);
        let some = capabilities("CapEff:\t0000000000000400\n");
        assert_eq!(some.detail, "this user lacks CAP_NET_ADMIN, CAP_NET_RAW");
    }
}
