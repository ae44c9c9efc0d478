//! Two gateways with the kernel's data plane, each in a network namespace of its own, and fixed keys between them.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "tools of tests; each target uses some")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cygnet::plane::kernel::KernelPlane;
use cygnet_model::plane::{DataPlane, SaCounters};
use cygnet_model::suite::{Encr, EspSuite};
use cygnet_model::tunnel::{
    Bypass, Direction, GuardAction, GuardSpec, SaId, SaSpec, TunnelSpec, VolumeLimits,
};
use cygnet_model::{ChildId, Reqid, SecretBytes, Spi, TrafficSelector, TunnelId};
use cygnet_xfrm::probe;

#[path = "../../xfrm/tests/support/mod.rs"]
pub mod support;
use support::{Netns, is_root, skip};

pub const A: &str = "192.0.2.1";
pub const B: &str = "192.0.2.2";
pub const SPI: u32 = 0xC700_0000;

pub fn child() -> ChildId {
    ChildId { tunnel: TunnelId(3), index: 0 }
}

pub fn reqid() -> Reqid {
    Reqid::of(child()).unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn ts(cidr: &str) -> TrafficSelector {
    let (addr, len) = cidr.split_once('/').unwrap();
    TrafficSelector::cidr(addr.parse().unwrap(), len.parse().unwrap()).unwrap()
}

/// One end: its namespace, its plane, and how it sees the tunnel.
pub struct Site {
    pub netns: Netns,
    pub plane: KernelPlane,
    pub at_a: bool,
    /// Everything to everything, instead of the two networks.
    pub everything: bool,
}

impl Site {
    pub fn inner(&self) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
        if self.everything {
            return (vec![ts("0.0.0.0/0"), ts("::/0")], vec![ts("0.0.0.0/0"), ts("::/0")]);
        }
        let (a, b) = (vec![ts("10.1.0.0/16")], vec![ts("10.2.0.0/16")]);
        if self.at_a { (a, b) } else { (b, a) }
    }

    pub fn guard(&mut self, action: GuardAction) {
        let (local, remote) = self.inner();
        let spec = GuardSpec {
            child: child(),
            reqid: reqid(),
            local,
            remote,
            action,
            mark: None,
            weight: 0,
            bypass: Bypass::NONE,
        };
        self.plane.guard(&spec).unwrap();
    }

    pub fn open(&mut self, outer_a: &str) {
        let (local, remote) = self.inner();
        let (outer_local, outer_remote) = if self.at_a { (ip(outer_a), ip(B)) } else { (ip(B), ip(outer_a)) };
        let spec = TunnelSpec {
            child: child(),
            reqid: reqid(),
            local,
            remote,
            outer_local,
            outer_remote,
            mark: None,
            weight: 0,
        };
        self.plane.open_tunnel(&spec).unwrap();
    }

    /// SPIs of generation `n`: even towards A, odd towards B.
    pub fn sa(&self, direction: Direction, n: u32) -> SaSpec {
        let towards_a = self.at_a == (direction == Direction::In);
        let spi = SPI + n * 2 + u32::from(!towards_a);
        let (local, remote) = if self.at_a { (ip(A), ip(B)) } else { (ip(B), ip(A)) };
        let (inner_local, inner_remote) = self.inner();
        SaSpec {
            id: SaId { child: child(), direction, spi: Spi::new(spi).unwrap() },
            reqid: reqid(),
            local,
            remote,
            encap: None,
            suite: EspSuite::plain(Encr::AesGcm16_128, None, true),
            encr_key: SecretBytes::new((0..20).map(|i| (spi & 0x7F) as u8 ^ (i + 1)).collect()),
            integ_key: SecretBytes::new(vec![]),
            replay_window: 1024,
            inner_local,
            inner_remote,
            limits: VolumeLimits::default(),
            mark: None,
        }
    }

    pub fn counters(&mut self) -> BTreeMap<u32, SaCounters> {
        let mut out = Vec::new();
        self.plane.counters(&mut out).unwrap();
        out.into_iter().map(|(id, c)| (id.spi.value(), c)).collect()
    }

    /// Ends the plane as a kill would and starts another.
    pub fn restart(self) -> Self {
        drop(self.plane);
        let plane = self.netns.enter(|| KernelPlane::open().unwrap());
        Self { plane, ..self }
    }
}

pub fn install(a: &mut Site, b: &mut Site, n: u32) {
    for site in [&mut *a, &mut *b] {
        let spec = site.sa(Direction::In, n);
        site.plane.install(&spec).unwrap();
    }
    for site in [a, b] {
        let spec = site.sa(Direction::Out, n);
        site.plane.install(&spec).unwrap();
    }
}

pub fn sites() -> Option<(Site, Site)> {
    if !is_root() {
        return None;
    }
    let (a, b) = (Netns::new("a"), Netns::new("b"));
    a.join(&b, &["192.0.2.1/24", "192.0.2.11/24"], &["192.0.2.2/24"]);
    a.run("ip addr add 10.1.0.1/16 dev lo");
    b.run("ip addr add 10.2.0.1/16 dev lo");
    a.run("ip route add 10.2.0.0/16 via 192.0.2.2 src 10.1.0.1");
    b.run("ip route add 10.1.0.0/16 via 192.0.2.1 src 10.2.0.1");
    let mut planes = Vec::new();
    for netns in [&a, &b] {
        match netns.enter(KernelPlane::open) {
            Ok(plane) => planes.push(plane),
            Err(e) => {
                skip("kernel-xfrm", &e.to_string());
                return None;
            }
        }
    }
    let (plane_b, plane_a) = (planes.pop()?, planes.pop()?);
    let site = |netns, plane, at_a| Site { netns, plane, at_a, everything: false };
    Some((site(a, plane_a, true), site(b, plane_b, false)))
}

pub fn esp_sites() -> Option<(Site, Site)> {
    let sites = sites()?;
    let report = probe::probe();
    if !report.has_esp() {
        skip("kernel-esp", &report.ciphers[0].1.reason);
        return None;
    }
    Some(sites)
}

pub fn up(a: &mut Site, b: &mut Site) {
    for site in [&mut *a, &mut *b] {
        site.guard(GuardAction::Drop);
        site.open(A);
    }
    install(a, b, 0);
}

pub fn pings(site: &Site, count: u32) -> bool {
    site.netns.try_run(&format!("ping -n -q -i 0.01 -W 2 -c {count} 10.2.0.1")).status.success()
}

/// The policies of a namespace, whatever their order.
pub fn policies(netns: &Netns) -> BTreeSet<String> {
    netns
        .run("ip xfrm policy")
        .split("\nsrc ")
        .map(|p| p.trim().trim_start_matches("src ").to_owned())
        .collect()
}

pub fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}
