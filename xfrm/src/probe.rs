//! What this kernel can do, found out by asking it: every answer comes with the kernel's own reason.
//!
//! The questions are asked in a network namespace made for them, so that nothing of the host is touched; where that
//! is not allowed only XFRM is asked, in the current namespace, with states that exist for some microseconds between
//! loopback addresses.

use std::net::IpAddr;

use cygnet_model::suite::{Encr, EspSuite, Integ};
use cygnet_model::tunnel::{Direction, SaId, SaSpec, VolumeLimits};
use cygnet_model::{ChildId, Reqid, SecretBytes, Spi};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::Xfrm;
use crate::error::NetlinkError;
use crate::sa::SaKey;
use crate::tc::{ClassifierProbe, Tc};

/// An answer: what it is about, whether the kernel has it, and why we think so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feature {
    /// As in "ESP aes256gcm16 over IPv4".
    pub name: String,
    /// Whether it can be used.
    pub available: bool,
    /// The kernel's words if it cannot.
    pub reason: String,
}

impl Feature {
    fn new(name: impl Into<String>, result: Result<(), String>) -> Self {
        let (available, reason) = match result {
            Ok(()) => (true, "works".to_owned()),
            Err(reason) => (false, reason),
        };
        Self { name: name.into(), available, reason }
    }
}

/// How the reason begins of what could not be asked because a namespace of its own is not allowed.
pub const NOT_ASKED: &str = "not asked";

/// What the kernel offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelReport {
    /// IPsec states and policies at all.
    pub xfrm: Feature,
    /// ESP with each cipher over IPv4.
    pub ciphers: Vec<(Encr, Feature)>,
    /// ESP with each integrity algorithm (with AES-CBC) over IPv4.
    pub integrity: Vec<(Integ, Feature)>,
    /// ESP over IPv6, with the first cipher that works over IPv4.
    pub ipv6: Feature,
    /// Interfaces of type xfrm.
    pub interfaces: Feature,
    /// The HTB qdisc.
    pub htb: Feature,
    /// Classifiers, best known first: u32, fw, flower.
    pub classifiers: Vec<Feature>,
}

impl KernelReport {
    /// Whether the kernel can carry ESP: at least one cipher over IPv4.
    pub fn has_esp(&self) -> bool {
        self.ciphers.iter().any(|(_, f)| f.available)
    }
}

/// Asks the kernel. Takes some milliseconds, longer when it has to load modules.
pub fn probe() -> KernelReport {
    // A thread may leave the host's namespace; it takes nothing else with it and ends here.
    std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => ask(None),
        Err(e) => ask(Some(e)),
    })
    .join()
    .unwrap_or_else(|_| ask(Some(Errno::UnknownErrno)))
}

fn ask(confined: Option<Errno>) -> KernelReport {
    let mut xfrm = Xfrm::open();
    let available = match &mut xfrm {
        Ok(x) => x.dump_sas().map(|_| ()).map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    let mut try_sa = |v6, suite: EspSuite| match &mut xfrm {
        Ok(x) => try_sa(x, v6, suite).map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    let plain = |encr, integ| EspSuite::plain(encr, integ, false);
    let ciphers: Vec<_> = Encr::ALL
        .into_iter()
        .map(|encr| {
            let integ = (!encr.is_aead()).then_some(Integ::HmacSha256_128);
            let name = format!("ESP {} over IPv4", encr.info().keyword);
            (encr, Feature::new(name, try_sa(false, plain(encr, integ))))
        })
        .collect();
    let integrity = Integ::ALL
        .into_iter()
        .map(|integ| {
            let name = format!("ESP aes128-{} over IPv4", integ.keyword());
            (integ, Feature::new(name, try_sa(false, plain(Encr::AesCbc128, Some(integ)))))
        })
        .collect();
    let first = ciphers.iter().find(|(_, f)| f.available).map_or(Encr::AesGcm16_128, |(e, _)| *e);
    let integ = (!first.is_aead()).then_some(Integ::HmacSha256_128);
    let ipv6 =
        Feature::new(format!("ESP {} over IPv6", first.info().keyword), try_sa(true, plain(first, integ)));
    let tc = match confined {
        None => Tc::open().map(|mut tc| ClassifierProbe::run(&mut tc)).map_err(|e| e.to_string()),
        Some(e) => {
            Err(format!("{NOT_ASKED}: that needs a network namespace of its own, and {} ({e:?})", e.desc()))
        }
    };
    let (interfaces, htb, classifiers) = match tc {
        Ok(p) => (p.xfrm_interface, p.htb, p.classifiers),
        Err(e) => {
            (Err(e.clone()), Err(e.clone()), ["u32", "fw", "flower"].map(|c| (c, Err(e.clone()))).to_vec())
        }
    };
    KernelReport {
        xfrm: Feature::new("IPsec in the kernel (XFRM)", available),
        ciphers,
        integrity,
        ipv6,
        interfaces: Feature::new("xfrm interfaces", interfaces),
        htb: Feature::new("HTB", htb),
        classifiers: classifiers
            .into_iter()
            .map(|(name, result)| Feature::new(format!("classifier {name}"), result))
            .collect(),
    }
}

/// Installs a state between loopback addresses and removes it. Its key is fixed and protects nothing: no policy points
/// to it.
fn try_sa(xfrm: &mut Xfrm, v6: bool, suite: EspSuite) -> Result<(), NetlinkError> {
    let address = |v4: &str, v6_text: &str| -> Result<IpAddr, NetlinkError> {
        if v6 { v6_text } else { v4 }.parse().map_err(|_| NetlinkError::Malformed("address"))
    };
    let child = ChildId::LAST;
    let spec = SaSpec {
        id: SaId {
            child,
            direction: Direction::Out,
            spi: Spi::new(0xC960_0001).ok_or(NetlinkError::Malformed("SPI"))?,
        },
        reqid: Reqid::of(child).ok_or(NetlinkError::Malformed("reqid"))?,
        local: address("127.0.0.1", "::1")?,
        remote: address("127.255.255.254", "100::c960")?,
        encap: None,
        suite,
        // Not zeros: those are what a kernel under lockdown shows.
        encr_key: SecretBytes::new(vec![0x5A; suite.encr.keymat_len()]),
        integ_key: SecretBytes::new(vec![0xA5; suite.integ.map_or(0, Integ::key_len)]),
        replay_window: 0,
        inner_local: vec![],
        inner_remote: vec![],
        limits: VolumeLimits::default(),
        mark: None,
    };
    match xfrm.add_sa(&spec) {
        // Left by a probe that was killed.
        Err(e) if e.errno() == Some(Errno::EEXIST) => {}
        other => other?,
    }
    xfrm.delete_sa(SaKey::of(&spec), None).map(|_| ())
}
