//! Which data plane this host gets, and why: the kernel's ESP where it is, our own where it is not.

use std::fs;
use std::path::Path;

use cygnet_model::plane::PlaneKind;
use cygnet_xfrm::probe::{Feature, KernelReport, NOT_ASKED};
use serde::Serialize;

use crate::observe::snapshot::{Finding, Verdict};

/// What the configuration asks for (`daemon.data_plane`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Wish {
    /// The kernel if it can, else userspace.
    #[default]
    Auto,
    /// The kernel or nothing.
    Kernel,
    /// Userspace or nothing.
    Userspace,
}

impl Wish {
    /// Reads the configuration's word.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "kernel" => Some(Self::Kernel),
            "userspace" => Some(Self::Userspace),
            _ => None,
        }
    }

    /// The configuration's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// What was chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The plane.
    pub plane: PlaneKind,
    /// One sentence for the log and `cygnet doctor`.
    pub reason: String,
}

/// Chooses.
///
/// # Errors
/// A sentence that says what is missing, if the wish cannot be met.
pub fn choose(wish: Wish, kernel: &KernelReport, tun: &Result<(), String>) -> Result<Choice, String> {
    let lacking = kernel_lacks(kernel);
    match (wish, lacking, tun) {
        (Wish::Auto | Wish::Kernel, None, _) => {
            Ok(Choice { plane: PlaneKind::Kernel, reason: "the kernel has ESP".to_owned() })
        }
        (Wish::Kernel, Some(lack), _) => Err(format!(
            "data_plane is kernel, but {lack}; set it to auto, or load the modules esp4, esp6 and xfrm_user"
        )),
        (Wish::Auto, Some(lack), Ok(())) => {
            Ok(Choice { plane: PlaneKind::Userspace, reason: format!("{lack}, so ESP is done in userspace") })
        }
        (Wish::Userspace, _, Ok(())) => Ok(Choice {
            plane: PlaneKind::Userspace,
            reason: "the configuration asks for userspace".to_owned(),
        }),
        (Wish::Auto, Some(lack), Err(no_tun)) => {
            Err(format!("there is no data plane: {lack}, and userspace ESP needs TUN, but {no_tun}"))
        }
        (Wish::Userspace, _, Err(no_tun)) => {
            Err(format!("data_plane is userspace, which needs TUN, but {no_tun}; load the module tun"))
        }
    }
}

/// Why the kernel cannot carry ESP; `None` if it can.
fn kernel_lacks(kernel: &KernelReport) -> Option<String> {
    if !kernel.xfrm.available {
        return Some(format!("the kernel has no IPsec: {}", kernel.xfrm.reason));
    }
    if kernel.has_esp() {
        return None;
    }
    let reason = kernel.ciphers.first().map_or("", |(_, f)| f.reason.as_str());
    Some(format!("the kernel has no ESP: {reason}"))
}

/// Whether TUN devices can be had, for userspace ESP.
///
/// # Errors
/// Why not.
pub fn tun() -> Result<(), String> {
    let path = "/dev/net/tun";
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("{path} cannot be opened: {e}")),
    }
}

/// What `cygnet doctor` says of this host.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct HostReport {
    /// Of this structure.
    pub version: u32,
    /// As `uname -r` says.
    pub kernel: String,
    /// What the configuration asks for.
    pub data_plane_wish: String,
    /// What it gets: "kernel", "userspace" or "none".
    pub data_plane: String,
    /// Why.
    pub data_plane_reason: String,
    /// The classifier that traffic control uses, "none" without one.
    pub classifier: String,
    /// Why.
    pub classifier_reason: String,
    /// Everything that was asked, in the order to show it.
    pub features: Vec<FeatureReport>,
    /// Settings of this host that defeat IPsec.
    pub warnings: Vec<String>,
    /// Where the kernel has no ESP because its modules are blocked or missing: that, and what to do about it.
    pub modules: Option<(String, String)>,
}

/// One answer.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct FeatureReport {
    /// What it is.
    pub name: String,
    /// Whether it can be used.
    pub available: bool,
    /// Why not, in the kernel's words.
    pub reason: String,
}

impl From<&Feature> for FeatureReport {
    fn from(f: &Feature) -> Self {
        Self { name: f.name.clone(), available: f.available, reason: f.reason.clone() }
    }
}

impl HostReport {
    /// Looks at this host.
    pub fn gather(wish: Wish) -> Self {
        let kernel = cygnet_xfrm::probe::probe();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let warnings = warnings(Path::new("/proc/sys/net"));
        let modules = if kernel.has_esp() || !kernel.xfrm.available {
            None
        } else {
            super::modules::why_no_esp(Path::new("/"), release.trim())
        };
        Self { modules, ..Self::of(wish, &kernel, &tun(), release.trim(), warnings) }
    }

    /// The report for what a probe found.
    pub fn of(
        wish: Wish,
        kernel: &KernelReport,
        tun: &Result<(), String>,
        release: &str,
        warnings: Vec<String>,
    ) -> Self {
        let (data_plane, data_plane_reason) = match choose(wish, kernel, tun) {
            Ok(choice) => (choice.plane.name().to_owned(), choice.reason),
            Err(reason) => ("none".to_owned(), reason),
        };
        let classifier = kernel.classifiers.iter().find(|c| c.available && kernel.htb.available);
        let (classifier, classifier_reason) = match classifier {
            Some(c) => (c.name.replace("classifier ", ""), "the first that works".to_owned()),
            None if kernel.htb.available => {
                ("none".to_owned(), kernel.classifiers.first().map_or(String::new(), |c| c.reason.clone()))
            }
            None if kernel.htb.reason.starts_with(NOT_ASKED) => {
                ("none".to_owned(), kernel.htb.reason.clone())
            }
            None => ("none".to_owned(), format!("there is no HTB: {}", kernel.htb.reason)),
        };
        let tun_feature = FeatureReport {
            name: "TUN".to_owned(),
            available: tun.is_ok(),
            reason: tun.clone().err().unwrap_or_else(|| "works".to_owned()),
        };
        let features = std::iter::once(&kernel.xfrm)
            // That a kernel has dropped what is legacy is no fault of it.
            .chain(kernel.ciphers.iter().filter(|(e, f)| f.available || !e.is_legacy()).map(|(_, f)| f))
            .chain(kernel.integrity.iter().filter(|(i, f)| f.available || !i.is_legacy()).map(|(_, f)| f))
            .chain([&kernel.ipv6, &kernel.interfaces, &kernel.htb])
            .chain(&kernel.classifiers)
            .map(FeatureReport::from)
            .chain([tun_feature])
            .collect();
        Self {
            version: 1,
            kernel: release.to_owned(),
            data_plane_wish: wish.word().to_owned(),
            data_plane,
            data_plane_reason,
            classifier,
            classifier_reason,
            features,
            warnings,
            modules: None,
        }
    }
}

impl HostReport {
    /// The report in the words of `cygnet doctor`: which data plane and classifier and why, then every answer.
    pub fn findings(&self) -> Vec<Finding> {
        let finding = |name: &str, verdict, detail: String, fix: &str| Finding {
            name: name.to_owned(),
            verdict,
            detail,
            fix: fix.to_owned(),
        };
        let chosen = |what: &str, why: &str| format!("{what}: {why}");
        let (plane, fix) = match self.data_plane.as_str() {
            "none" => (Verdict::Error, "load the modules esp4, esp6 and xfrm_user, or tun"),
            _ => (Verdict::Ok, ""),
        };
        let (classifier, load) = match self.classifier.as_str() {
            "none" if self.classifier_reason.contains(NOT_ASKED) => (Verdict::Ok, ""),
            "none" => (Verdict::Warning, "load the modules sch_htb and cls_u32"),
            _ => (Verdict::Ok, ""),
        };
        let mut out = vec![
            finding("data plane", plane, chosen(&self.data_plane, &self.data_plane_reason), fix),
            finding("classifier", classifier, chosen(&self.classifier, &self.classifier_reason), load),
        ];
        if let Some((why, fix)) = &self.modules {
            let plane = self.data_plane == PlaneKind::Userspace.name();
            let verdict = if plane { Verdict::Ok } else { Verdict::Warning };
            out.push(finding("ESP modules", verdict, why.clone(), fix));
        }
        for f in &self.features {
            // What the chosen plane does not need is no fault of the host.
            let fine = f.available
                || f.reason.starts_with(NOT_ASKED)
                || self.data_plane == PlaneKind::Userspace.name();
            let verdict = if fine { Verdict::Ok } else { Verdict::Warning };
            let known = f.available || f.reason.starts_with(NOT_ASKED);
            let detail = if known { f.reason.clone() } else { format!("not there: {}", f.reason) };
            out.push(finding(&f.name, verdict, detail, ""));
        }
        out.extend(self.warnings.iter().map(|w| finding("host", Verdict::Warning, w.clone(), "")));
        out
    }
}

/// Switches that turn IPsec off for an interface; on the loopback interface they are the default and mean nothing.
fn warnings(net: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let Ok(interfaces) = fs::read_dir(net.join("ipv4/conf")) else { return out };
    for interface in interfaces.flatten() {
        let name = interface.file_name().to_string_lossy().into_owned();
        for (switch, effect) in [
            ("disable_xfrm", "packets that leave by it are not encrypted"),
            ("disable_policy", "packets that come in by it pass without IPsec"),
        ] {
            let on = fs::read_to_string(interface.path().join(switch)).is_ok_and(|v| v.trim() != "0");
            if on && name != "lo" {
                out.push(format!("net.ipv4.conf.{name}.{switch} is set: {effect}; set it to 0"));
            }
        }
    }
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use cygnet_model::suite::Encr;

    use super::*;

    fn feature(available: bool, reason: &str) -> Feature {
        Feature { name: "x".to_owned(), available, reason: reason.to_owned() }
    }

    fn kernel(xfrm: bool, esp: bool) -> KernelReport {
        KernelReport {
            xfrm: feature(xfrm, "cannot open a XFRM netlink socket"),
            ciphers: vec![(Encr::AesGcm16_256, feature(esp, "kernel says \"no such AEAD\" (ENOSYS)"))],
            integrity: vec![],
            ipv6: feature(esp, ""),
            interfaces: feature(esp, ""),
            htb: feature(true, ""),
            classifiers: vec![feature(true, "works")],
        }
    }

    #[test]
    fn the_kernel_is_preferred_and_its_lack_is_named() {
        let tun = Ok(());
        assert_eq!(choose(Wish::Auto, &kernel(true, true), &tun).unwrap().plane, PlaneKind::Kernel);
        let c = choose(Wish::Auto, &kernel(true, false), &tun).unwrap();
        assert_eq!(c.plane, PlaneKind::Userspace);
        assert_eq!(
            c.reason,
            "the kernel has no ESP: kernel says \"no such AEAD\" (ENOSYS), so ESP is done in userspace"
        );
        assert!(choose(Wish::Auto, &kernel(false, false), &tun).unwrap().reason.contains("no IPsec"));
    }

    #[test]
    fn a_wish_is_met_or_refused_never_replaced() {
        let tun = Ok(());
        assert!(
            choose(Wish::Kernel, &kernel(true, false), &tun).unwrap_err().contains("load the modules esp4")
        );
        assert_eq!(choose(Wish::Userspace, &kernel(true, true), &tun).unwrap().plane, PlaneKind::Userspace);
        let no_tun = Err("/dev/net/tun is missing".to_owned());
        assert!(choose(Wish::Userspace, &kernel(true, true), &no_tun).is_err());
        assert!(choose(Wish::Auto, &kernel(true, false), &no_tun).unwrap_err().contains("no data plane"));
    }

    /// A service without CAP_SYS_ADMIN cannot look, which says nothing of the host.
    #[test]
    fn what_was_not_asked_is_not_missing() {
        let reason = format!("{NOT_ASKED}: that needs a network namespace of its own");
        let mut kernel = kernel(true, true);
        kernel.htb = feature(false, &reason);
        kernel.classifiers = vec![feature(false, &reason)];
        let findings = HostReport::of(Wish::Auto, &kernel, &Ok(()), "6.1", vec![]).findings();
        for f in findings.iter().filter(|f| f.detail.contains(NOT_ASKED)) {
            assert!(f.verdict == Verdict::Ok && !f.detail.contains("no HTB"), "{f:?}");
        }
    }

    #[test]
    fn the_report_of_this_host_is_whole() {
        let report = HostReport::gather(Wish::Auto);
        assert!(report.features.len() > 10, "{report:?}");
        assert!(!report.kernel.is_empty() && !report.data_plane_reason.is_empty());
    }
}
