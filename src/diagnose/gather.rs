//! Looks at the file, the host and the network. Changes nothing, and runs no other program.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;

use cygnet_model::IpRange;
use cygnet_xfrm::lookup::Way;
use cygnet_xfrm::nft::foreign;
use cygnet_xfrm::routing::Routing;
use nix::ifaddrs::getifaddrs;

use super::facts::{ConfigFacts, DaemonFacts, Facts, HostFacts, Inner, Known, Places, TunnelFacts};
use super::probe;
use crate::config::lines::{Key, Lines};
use crate::config::model::{Config, GatewayAddress, PeerAddress, PlaneChoice, Tunnel};
use crate::config::{self, Secrets, Severity};
use crate::observe::snapshot::TunnelState;
use crate::plane::modules;

/// Tunnels that are looked at if none is named, the unwell ones first.
pub const LOOKED_AT: usize = 64;
/// Tunnels whose peers are probed: each takes seconds, and all are probed at the same time.
const PROBED: usize = 16;
/// Addresses of a network among which one is looked for that is not this host's.
const EXAMPLES: u32 = 8;

/// Facts of a daemon that answers, or of the configuration alone. `changed`: the daemon says that the file is another one.
pub fn gather(
    daemon: Result<DaemonFacts, String>,
    changed: bool,
    file: &Path,
    tunnel: Option<&str>,
) -> Facts {
    let file = daemon.as_ref().map_or(file, |d| Path::new(&d.file)).to_owned();
    let checked = config::check(&file, Secrets::ReadIfAllowed, None);
    let errors = checked.problems.iter().filter(|p| p.severity == Severity::Error);
    let errors: Vec<String> = errors.map(|p| p.one_line(&checked.file)).collect();
    let mut host = host();
    let known = match (&daemon, &checked.preview) {
        (Ok(d), _) => d.tunnels.clone(),
        (Err(_), Some(config)) => {
            let of = |t: &Tunnel| known(config, t, own(config, t), &checked.lines, &checked.file);
            let wanted = config.tunnels.iter().filter(|t| tunnel.is_none_or(|name| t.name == name));
            wanted.take(LOOKED_AT).map(of).collect()
        }
        (Err(_), None) => Vec::new(),
    };
    let wants_kernel = checked.preview.as_ref().is_some_and(|c| c.daemon.data_plane == PlaneChoice::Kernel);
    if daemon.is_err() && wants_kernel {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        host.no_esp = modules::why_no_esp(Path::new("/"), release.trim());
    }
    let tunnels = tunnels(known, &mut host);
    let config = ConfigFacts { changed: changed && errors.is_empty(), errors, wants_kernel };
    Facts { daemon, config, host, tunnels, named: tunnel.is_some() }
}

/// What a configuration knows of a tunnel whose gateway has these outer addresses.
pub fn known(config: &Config, t: &Tunnel, own: Vec<IpAddr>, lines: &Lines, file: &str) -> Known {
    let (peer_name, peers) = match config.customer_gateway(&t.customer_gateway).map(|c| &c.address) {
        Some(PeerAddress::Ip(ip)) => (None, vec![*ip]),
        Some(PeerAddress::Dns(name)) => (Some(name.clone()), Vec::new()),
        None => (None, Vec::new()),
    };
    let place = |key| {
        let place = lines.place(config, &t.name, key);
        place.map(|p| format!("{file}:{} {}", p.line, p.path)).unwrap_or_default()
    };
    let here: BTreeSet<IpAddr> = addresses();
    let pair = |rule: &config::model::SpdRule| {
        Some((example(&rule.local, &here), example(rule.remote.first()?, &here)))
    };
    Known {
        name: t.name.clone(),
        status: None,
        own,
        peer_name,
        peers,
        inner: t.spd.iter().filter_map(pair).take(1).collect(),
        places: Places { peer: place(Key::PeerAddress), own: place(Key::OwnAddress), spd: place(Key::Spd) },
        explanation: None,
    }
}

/// The outer addresses of a tunnel's gateway, as far as this host has those of interfaces.
fn own(config: &Config, t: &Tunnel) -> Vec<IpAddr> {
    let all = config.gateway(&t.gateway).map_or(&[][..], |g| &g.addresses);
    let of = |a: &GatewayAddress| match a {
        GatewayAddress::Ip(ip) => vec![*ip],
        GatewayAddress::Interface(name) => of_interface(name),
    };
    all.iter().flat_map(of).collect()
}

fn of_interface(name: &str) -> Vec<IpAddr> {
    let all = getifaddrs().into_iter().flatten().filter(|a| a.interface_name == name);
    all.filter_map(|a| ip(a.address?)).collect()
}

fn ip(address: nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|s| IpAddr::V4(s.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|s| IpAddr::V6(s.ip())))
}

fn addresses() -> BTreeSet<IpAddr> {
    getifaddrs().into_iter().flatten().filter_map(|a| ip(a.address?)).collect()
}

/// An address of a network that a host behind a gateway may have: not its first one, and none of this host.
fn example(network: &IpRange, here: &BTreeSet<IpAddr>) -> IpAddr {
    let at = |n: u32| match network.start() {
        IpAddr::V4(a) => Some(IpAddr::from(a.to_bits().checked_add(n)?.to_be_bytes())),
        IpAddr::V6(a) => Some(IpAddr::from(a.to_bits().checked_add(n.into())?.to_be_bytes())),
    };
    let fits = |a: &IpAddr| network.contains(*a) && !here.contains(a);
    (1..=EXAMPLES).filter_map(at).find(fits).unwrap_or_else(|| network.start())
}

fn host() -> HostFacts {
    let read = |path: &str| fs::read_to_string(path).ok().map(|v| v.trim() != "0");
    HostFacts {
        links: Routing::open().and_then(|mut r| r.links()).unwrap_or_default(),
        addresses: addresses(),
        forwarding: (read("/proc/sys/net/ipv4/ip_forward"), read("/proc/sys/net/ipv6/conf/all/forwarding")),
        strict: strict(Path::new("/proc/sys/net/ipv4/conf")),
        dropping: foreign::dropping_chains().ok(),
        no_esp: None,
    }
}

/// Links whose reverse path filter is strict: the larger one of theirs and that of all counts.
fn strict(conf: &Path) -> BTreeSet<String> {
    let value = |name: &str| -> u8 {
        let text = fs::read_to_string(conf.join(name).join("rp_filter")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let all = value("all");
    let Ok(entries) = fs::read_dir(conf) else { return BTreeSet::new() };
    let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "all" && name != "default" && value(name).max(all) == 1).collect()
}

fn tunnels(known: Vec<Known>, host: &mut HostFacts) -> Vec<TunnelFacts> {
    let mut routing = Routing::open().ok();
    let mut out: Vec<TunnelFacts> = known.into_iter().map(|k| walk(k, host, routing.as_mut())).collect();
    let is_up = |t: &TunnelFacts| t.known.status.as_ref().is_some_and(|s| s.state.is_up());
    let down = |t: &TunnelFacts| t.known.status.as_ref().is_some_and(|s| s.state == TunnelState::Down);
    let reachable = |t: &&mut TunnelFacts| matches!(t.outer, Some(Way::Out { .. }));
    // Whoever refuses was reached.
    let refused = |t: &TunnelFacts| {
        let mut proven = t.known.explanation.iter().flat_map(|e| &e.negotiations).filter(|n| !n.is_claim());
        proven.next().is_some_and(|n| n.outcome == "refused")
    };
    let wanted = |t: &&mut TunnelFacts| is_up(t) || !(down(t) || refused(t));
    std::thread::scope(|scope| {
        for t in out.iter_mut().filter(reachable).filter(wanted).take(PROBED) {
            let Some(peer) = t.known.peers.first().copied() else { continue };
            let own = t.known.own.iter().find(|own| own.is_ipv4() == peer.is_ipv4()).copied();
            let mtu = match t.outer {
                Some(Way::Out { link, .. }) => host.link(link).map(|l| l.mtu),
                _ => None,
            };
            scope.spawn(move || match mtu {
                Some(mtu) if is_up(t) => probe::push(own, peer, mtu),
                _ => t.probed = Some(probe::probe(own, peer)),
            });
        }
    });
    // What routers have said to large datagrams is known by now.
    for t in &mut out {
        if let (Some(routing), Some(peer)) = (routing.as_mut(), t.known.peers.first()) {
            t.outer = routing.way(*peer, source(&t.known, *peer, host), None).ok().or(t.outer);
        }
    }
    out
}

/// An own address that this host has, to ask for the way to a peer with.
fn source(known: &Known, peer: IpAddr, host: &HostFacts) -> Option<IpAddr> {
    let fits = |own: &&IpAddr| own.is_ipv4() == peer.is_ipv4() && host.addresses.contains(own);
    known.own.iter().find(fits).copied()
}

fn walk(mut known: Known, host: &HostFacts, routing: Option<&mut Routing>) -> TunnelFacts {
    let resolved = known.peer_name.as_ref().map(|name| match (name.as_str(), 500).to_socket_addrs() {
        Ok(all) => Ok(all.map(|a| a.ip()).collect::<Vec<_>>()),
        Err(e) => Err(e.to_string()),
    });
    if let Some(Ok(all)) = &resolved
        && known.peers.is_empty()
    {
        known.peers.clone_from(all);
    }
    let mut facts = TunnelFacts { known, resolved, outer: None, probed: None, inner: None };
    let Some(routing) = routing else { return facts };
    let known = &facts.known;
    if let Some(peer) = known.peers.first() {
        facts.outer = routing.way(*peer, source(known, *peer, host), None).ok();
    }
    if let Some((local, remote)) = known.inner.first().copied()
        && let Ok(to_local) = routing.way(local, None, None)
    {
        let from = match to_local {
            Way::Out { link, .. } => Some(link),
            Way::Local | Way::Nowhere(_) => None,
        };
        let to_remote = match from {
            // As a packet that comes in from the VPC.
            Some(link) => routing.way(remote, Some(local), Some(link)),
            None => routing.way(remote, None, None),
        };
        facts.inner = to_remote.ok().map(|to_remote| Inner { to_remote, to_local });
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_of_a_network_is_no_address_of_this_host() {
        let net = |text: &str, len| IpRange::cidr(text.parse().unwrap(), len).unwrap();
        let here: BTreeSet<IpAddr> = ["10.1.0.1".parse().unwrap(), "192.0.2.7".parse().unwrap()].into();
        assert_eq!(example(&net("10.1.0.0", 16), &here), IpAddr::from([10, 1, 0, 2]));
        assert_eq!(example(&net("192.0.2.7", 32), &here), IpAddr::from([192, 0, 2, 7]));
        assert_eq!(example(&net("fd01::", 64), &here), "fd01::1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn the_stricter_of_two_filters_counts() {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [("all", "1"), ("wan", "0"), ("lan", "2"), ("default", "1")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("rp_filter"), value).unwrap();
        }
        assert_eq!(strict(dir.path()), ["wan".to_owned()].into());
        fs::write(dir.path().join("all/rp_filter"), "0").unwrap();
        assert!(strict(dir.path()).is_empty());
    }
}
