//! The configuration as the daemon uses it: every reference resolved, every default filled in, nothing left to check.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use cygnet_model::negotiation::{Encap, Start};
use cygnet_model::proposal::{EspProposal, IkeProposal};
use cygnet_model::tunnel::{Bypass, Mark, Source};
use cygnet_model::{IpRange, SecretBytes, TrafficSelector};

pub use super::alerts::{Alerts, Webhook};
pub use super::bandwidth::{Bandwidth, Counts};
pub use super::health_check::HealthCheck;
pub use super::identity::{Identity, RemoteId};
pub use super::preset::Preset;
pub use super::quota::Quota;

/// A whole configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The daemon itself.
    pub daemon: Daemon,
    /// VPN gateways, in the order of the file. Names are unique.
    pub gateways: Vec<Gateway>,
    /// Customer gateways. Names are unique.
    pub customer_gateways: Vec<CustomerGateway>,
    /// Tunnels. Names are unique; `gateway` and `customer_gateway` exist.
    pub tunnels: Vec<Tunnel>,
    /// How much of it there may be.
    pub quota: Quota,
}

impl Config {
    /// The gateway of that name.
    pub fn gateway(&self, name: &str) -> Option<&Gateway> {
        self.gateways.iter().find(|g| g.name == name)
    }

    /// The customer gateway of that name.
    pub fn customer_gateway(&self, name: &str) -> Option<&CustomerGateway> {
        self.customer_gateways.iter().find(|c| c.name == name)
    }

    /// The tunnel of that name.
    pub fn tunnel(&self, name: &str) -> Option<&Tunnel> {
        self.tunnels.iter().find(|t| t.name == name)
    }
}

/// Sockets, directories, exporters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Daemon {
    /// Unix socket for the command line.
    pub control_socket: PathBuf,
    /// Whose members may change what runs; `None`: nobody but root.
    pub admin_group: Option<String>,
    /// What outlives a restart.
    pub state_dir: PathBuf,
    /// Who handles ESP.
    pub data_plane: PlaneChoice,
    /// What happens to the guards when the daemon ends.
    pub guards: Guards,
    /// Where the exporter listens; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// The console; `None`: there is none.
    pub console: Option<Console>,
    /// Who is told of events.
    pub alerts: Alerts,
}

/// The web console.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Console {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What a browser has to know to change something; `None`: nothing can be changed.
    pub token: Option<Psk>,
    /// Names that it is called by, besides addresses and `localhost`.
    pub hosts: Vec<String>,
}

/// What happens to the guards when the daemon ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guards {
    /// They stay in force: protected traffic is blocked until a daemon carries it, or `cygnet release`.
    Keep,
    /// They go: protected traffic is routed like any other.
    Release,
}

/// Who handles ESP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaneChoice {
    /// The kernel where it can, else our own.
    Auto,
    /// The kernel or nothing.
    Kernel,
    /// Our own.
    Userspace,
}

/// A VPN gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Its name.
    pub name: String,
    /// Outer addresses, at least one, preferred first.
    pub addresses: Vec<GatewayAddress>,
    /// The VPC's blocks, at least one, disjoint.
    pub networks: Vec<IpRange>,
    /// Its level.
    pub bandwidth: Bandwidth,
    /// Limits of single inner addresses; each address once.
    pub limits: Vec<IpLimit>,
    /// Identity as configured; see [`Tunnel::local_id`] for what is used.
    pub id: Option<Identity>,
}

/// An outer address of a gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GatewayAddress {
    /// This address.
    Ip(IpAddr),
    /// Whatever addresses that interface has at the time.
    Interface(String),
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(a) => write!(f, "{a}"),
            Self::Interface(name) => f.write_str(name),
        }
    }
}

/// The limit of one inner address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpLimit {
    /// The address.
    pub ip: IpAddr,
    /// What it may send and receive.
    pub limit: Limit,
}

/// What an inner address may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Bits per second.
    Rate(u64),
    /// Nothing.
    Block,
    /// As much as there is, whatever a default would say.
    Unlimited,
}

/// A peer's gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CustomerGateway {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: PeerAddress,
    /// Identity as configured; see [`Tunnel::remote_id`] for what is used.
    pub id: Option<RemoteId>,
    /// What its tunnels use where they say nothing.
    pub preset: Option<&'static Preset>,
}

/// Where a peer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerAddress {
    /// At this address.
    Ip(IpAddr),
    /// At what this name resolves to.
    Dns(String),
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(a) => write!(f, "{a}"),
            Self::Dns(name) => f.write_str(name),
        }
    }
}

/// A tunnel between a gateway and a customer gateway.
#[derive(Clone, PartialEq, Debug)]
pub struct Tunnel {
    /// Its name.
    pub name: String,
    /// Name of its gateway, which exists.
    pub gateway: String,
    /// Name of its customer gateway, which exists.
    pub customer_gateway: String,
    /// Who begins.
    pub start: Start,
    /// How the ends prove who they are.
    pub auth: Auth,
    /// Our identity. `None`: the outer address in use, because the gateway's address is that of an interface.
    pub local_id: Option<Identity>,
    /// The identity that the peer must prove.
    pub remote_id: RemoteId,
    /// SPD rules as configured, at least one.
    pub spd: Vec<SpdRule>,
    /// The IKE SA.
    pub ike: IkeParams,
    /// The ESP SAs.
    pub esp: EspParams,
    /// Policies and states apply to packets with this mark only.
    pub mark: Option<Mark>,
    /// Which of several tunnels that claim the same packets carries them: 0 the primary, the lowest one that is up. Equal ones
    /// share the flows ([`super::share`]).
    pub weight: u8,
    /// What is probed through it.
    pub health_check: Option<HealthCheck>,
    /// Whether /0 may stand in the rules.
    pub allow_internet: bool,
    /// What is reached directly although the rules cover it.
    pub bypass: Bypass,
    /// Which source own packets to the remote networks get.
    pub source: Source,
    /// What it uses where it says nothing, in the place of its customer gateway's.
    pub preset: Option<&'static Preset>,
    /// Its level, within that of its gateway.
    pub bandwidth: Bandwidth,
}

/// How the ends prove who they are.
#[derive(Clone, PartialEq, Debug)]
pub enum Auth {
    /// By a pre-shared key.
    Psk(Psk),
}

/// A pre-shared key. It has no printable form.
#[derive(Clone, Debug)]
pub struct Psk {
    /// The key, decoded; 16 octets or more.
    pub secret: Arc<SecretBytes>,
    /// The file it came from; `None`: the configuration itself.
    pub file: Option<KeyFile>,
    /// Keys that are good as well, while one is exchanged for another.
    pub others: Vec<Psk>,
}

impl Eq for Psk {}

/// A file with a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyFile {
    /// Where it is.
    pub path: PathBuf,
    /// As the configuration names it, perhaps from the configuration's own directory.
    pub written: PathBuf,
}

impl PartialEq for Psk {
    fn eq(&self, other: &Self) -> bool {
        self.file == other.file && self.secret == other.secret && self.others == other.others
    }
}

/// Every packet from `local` to one of `remote` and back is protected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpdRule {
    /// Our side.
    pub local: IpRange,
    /// The peer's side, at least one block, of the family of `local`.
    pub remote: Vec<IpRange>,
}

/// Parameters of the IKE SA.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IkeParams {
    /// Preferred first, at least one.
    pub proposals: Vec<IkeProposal>,
    /// New keys after this long.
    pub lifetime: Duration,
    /// Silence after which the peer is asked; `None`: never.
    pub dpd: Option<Duration>,
    /// RFC 7383.
    pub fragmentation: bool,
    /// ESP in UDP.
    pub encap: Encap,
    /// How long an answer is waited for.
    pub retransmit: Retransmit,
}

/// Repetition of requests: after `first`, then twice as long each time up to `max`, `tries` times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retransmit {
    /// Wait before the first repetition.
    pub first: Duration,
    /// Longest wait.
    pub max: Duration,
    /// Repetitions; one wait after the last one the peer counts as dead.
    pub tries: u8,
}

impl Default for Retransmit {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), max: Duration::from_secs(16), tries: 6 }
    }
}

impl Default for IkeParams {
    fn default() -> Self {
        Self {
            proposals: IkeProposal::defaults(),
            lifetime: Duration::from_secs(86_400),
            dpd: Some(Duration::from_secs(30)),
            fragmentation: true,
            encap: Encap::Auto,
            retransmit: Retransmit::default(),
        }
    }
}

/// Parameters of the ESP SAs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EspParams {
    /// Preferred first, at least one.
    pub proposals: Vec<EspProposal>,
    /// New keys after this long.
    pub lifetime: Duration,
    /// New keys after this many octets; `None`: volume does not count.
    pub bytes: Option<u64>,
    /// Packets; 0 = off, else 64..=4096 and a multiple of 32.
    pub replay_window: u32,
    /// What to do when the peer is dead.
    pub dpd_action: DpdAction,
}

/// What to do when the peer is dead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DpdAction {
    /// Take the tunnel down and wait for the peer or for traffic.
    Clear,
    /// Negotiate anew.
    Restart,
}

impl Default for EspParams {
    fn default() -> Self {
        Self {
            proposals: EspProposal::defaults(),
            lifetime: Duration::from_secs(3600),
            bytes: Some(1_843_200_000),
            replay_window: 1024,
            dpd_action: DpdAction::Restart,
        }
    }
}

/// The selectors of one child SA: every local × every remote, which is exactly what one or more rules say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildSpec {
    /// Our side, never empty.
    pub local: Vec<TrafficSelector>,
    /// The peer's side, never empty.
    pub remote: Vec<TrafficSelector>,
}

impl Tunnel {
    /// The children that the SPD rules make, in the order of the file; see [`super::spd::children`].
    pub fn children(&self) -> Vec<ChildSpec> {
        super::spd::children(&self.spd)
    }
}
