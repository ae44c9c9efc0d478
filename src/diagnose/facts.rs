//! What is known of a gateway, its tunnels and their host, before anything is concluded from it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cygnet_xfrm::lookup::{LinkState, Way};
use cygnet_xfrm::nft::foreign::Dropping;
use serde::{Deserialize, Serialize};

use super::probe::Probed;
use crate::observe::explain::Explanation;
use crate::observe::snapshot::{Finding, TunnelStatus};

/// Everything.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    /// The daemon, or why it does not answer.
    pub daemon: Result<DaemonFacts, String>,
    /// The file.
    pub config: ConfigFacts,
    /// This host.
    pub host: HostFacts,
    /// The tunnels that are looked at.
    pub tunnels: Vec<TunnelFacts>,
    /// Whether they were asked for by name: then also what is as it shall be is told, if it is why nothing passes.
    pub named: bool,
}

/// What the daemon says of itself.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct DaemonFacts {
    /// `kernel` or `userspace`.
    pub data_plane: String,
    /// The file that it runs.
    pub file: String,
    /// Whether the last guard is in force.
    pub wall: bool,
    /// What of others stands in the way of the guards.
    pub obstacles: Vec<Finding>,
    /// What `doctor` is told.
    pub findings: Vec<Finding>,
    /// Tunnels, with what is known of each.
    pub tunnels: Vec<Known>,
}

/// What the daemon, or its configuration alone, knows of a tunnel.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// How it is; absent without a daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<TunnelStatus>,
    /// The gateway's outer addresses.
    pub own: Vec<IpAddr>,
    /// The name of the customer gateway, if it is not an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_name: Option<String>,
    /// The customer gateway's addresses, as far as they are known.
    pub peers: Vec<IpAddr>,
    /// Pairs of an address of a local and of a remote network.
    pub inner: Vec<(IpAddr, IpAddr)>,
    /// Where the file says what.
    #[serde(default)]
    pub places: Places,
    /// Its last negotiations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

/// Where a configuration says what a cause may be about, as in `/etc/cygnet/cygnet.yaml:12`; empty if that is not known.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, Debug)]
pub struct Places {
    /// The customer gateway's address.
    pub peer: String,
    /// The gateway's address.
    pub own: String,
    /// The SPD rules.
    pub spd: String,
}

/// What the configuration file says now.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ConfigFacts {
    /// Its errors, one line each.
    pub errors: Vec<String>,
    /// Whether what runs is something else.
    pub changed: bool,
    /// Whether it will have no ESP but the kernel's.
    pub wants_kernel: bool,
}

/// This host.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct HostFacts {
    /// Its links.
    pub links: Vec<LinkState>,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether IPv4 and IPv6 packets are forwarded; `None`: not known.
    pub forwarding: (Option<bool>, Option<bool>),
    /// Links on which the source of a packet must lie on the way back by the same link.
    pub strict: BTreeSet<String>,
    /// Filters that drop what they do not decide; `None`: this user may not see them.
    pub dropping: Option<Vec<Dropping>>,
    /// Why the kernel has no ESP, and what to do about it.
    pub no_esp: Option<(String, String)>,
}

impl HostFacts {
    /// The link with an index.
    pub fn link(&self, index: u32) -> Option<&LinkState> {
        self.links.iter().find(|l| l.index == index)
    }
}

/// A tunnel, and the way of its packets.
#[derive(Clone, PartialEq, Debug)]
pub struct TunnelFacts {
    /// What the daemon or the configuration knows.
    pub known: Known,
    /// What the name of the customer gateway means to this host; `None`: it is an address.
    pub resolved: Option<Result<Vec<IpAddr>, String>>,
    /// The way to the peer; `None`: it could not be asked for.
    pub outer: Option<Way>,
    /// What came of datagrams to the peer; `None`: none were sent.
    pub probed: Option<Probed>,
    /// The way of the first packet between its networks: to the peer's side, as forwarded, and to ours.
    pub inner: Option<Inner>,
}

/// Ways behind the gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inner {
    /// From an address of the local network to one of the remote network.
    pub to_remote: Way,
    /// To an address of the local network.
    pub to_local: Way,
}
