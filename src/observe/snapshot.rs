//! The one status type. The command line, the console and the exporter all show this, in these words.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Version of the JSON form; it grows when a reader of the old form would be misled.
pub const VERSION: u32 = 1;

/// Everything at one moment.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u32,
    /// `kernel` or `userspace`.
    pub data_plane: String,
    /// Why that one.
    #[serde(default)]
    pub data_plane_reason: String,
    /// Version of the daemon.
    #[serde(default)]
    pub daemon_version: String,
    /// When the daemon started, RFC 3339.
    #[serde(default)]
    pub started: String,
    /// Whether the last configuration that was asked for is the one in effect.
    #[serde(default)]
    pub config_ok: bool,
    /// IKE SAs that wait for their peer's IKE_AUTH.
    #[serde(default)]
    pub half_open: u64,
    /// What keeps floods of such requests off.
    #[serde(default)]
    pub flood: FloodStatus,
    /// Packets that cygnet's own data plane dropped, by reason; empty while the kernel forwards ESP.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plane_drops: BTreeMap<String, u64>,
    /// What stands in the way of the guards, so that protected packets may not be protected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obstacles: Vec<Finding>,
    /// What stands behind NAT and foreign rules.
    #[serde(default)]
    pub wall: WallStatus,
    /// What quotas count in the configuration as a whole, by their keys in it.
    #[serde(default)]
    pub quota: BTreeMap<String, QuotaStatus>,
    /// VPN gateways in the order of the configuration.
    pub gateways: Vec<GatewayStatus>,
    /// Tunnels in the order of the configuration, each one that is configured. Shared, since most are the same in the next
    /// snapshot.
    pub tunnels: Vec<Arc<TunnelStatus>>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            version: VERSION,
            data_plane: String::new(),
            data_plane_reason: String::new(),
            daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
            started: String::new(),
            config_ok: true,
            half_open: 0,
            flood: FloodStatus::default(),
            plane_drops: BTreeMap::new(),
            obstacles: Vec::new(),
            wall: WallStatus::default(),
            quota: BTreeMap::new(),
            gateways: Vec::new(),
            tunnels: Vec::new(),
        }
    }
}

impl Snapshot {
    /// Whether every tunnel that should be up is up and carries all that is configured for it, traffic seems to pass, and
    /// nothing stands in the way of the guards.
    pub fn healthy(&self) -> bool {
        let whole = |t: &TunnelStatus| t.state.is_up() && t.coverage.is_whole();
        let well = |t: &Arc<TunnelStatus>| t.unanswered_s.is_none() && (!t.wanted || whole(t));
        self.obstacles.is_empty() && self.tunnels.iter().all(well)
    }
}

/// The last guard: what keeps protected packets from leaving in clear text whatever others have configured.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct WallStatus {
    /// Whether it is in force.
    pub in_force: bool,
    /// Packets that it dropped, by reason: `bypass`, `forged`, `icmp-error` or `nat`.
    #[serde(default)]
    pub drops: BTreeMap<String, u64>,
    /// How often others' changes to it had to be undone.
    #[serde(default)]
    pub repairs: u64,
    /// What it does not defend on this host.
    #[serde(default)]
    pub gaps: Vec<String>,
}

/// A VPN gateway.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct GatewayStatus {
    /// Its name.
    pub name: String,
    /// Outer addresses, joined by `, ` if there are several.
    pub address: String,
    /// Cap on what leaves to the public network; null: none.
    pub bandwidth_bps: Option<u64>,
    /// Where that comes from.
    #[serde(default)]
    pub bandwidth_origin: Origin,
    /// Cap on what comes from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_in: Option<LevelStatus>,
    /// What left in the last sampling interval, by packets inside the tunnels.
    pub tx_bps: u64,
    /// What arrived.
    pub rx_bps: u64,
    /// What the cap on what leaves let pass meanwhile, in the octets that it counts; null: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_used_bps: Option<u64>,
    /// And the cap on what comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_in_used_bps: Option<u64>,
    /// Role in a pair of hosts.
    pub role: Role,
    /// What quotas count.
    #[serde(default)]
    pub used: QuotaUse,
    /// Limits of inner addresses in force.
    #[serde(default, skip_serializing_if = "LimitCount::is_none")]
    pub limits: LimitCount,
}

/// How many inner addresses of a gateway are limited.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct LimitCount {
    /// To a rate.
    pub rates: usize,
    /// To nothing.
    pub blocked: usize,
    /// Of both, those that were set by command, saved or not.
    pub by_command: usize,
}

impl LimitCount {
    /// Whether there are none.
    pub const fn is_none(&self) -> bool {
        self.rates == 0 && self.blocked == 0
    }
}

/// How much there is of something, where there is the most of it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct QuotaStatus {
    /// How much there is.
    pub used: usize,
    /// How much there may be; null: as much as you like.
    pub limit: Option<usize>,
}

/// How much a gateway has of what quotas count.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct QuotaUse {
    /// Tunnels.
    pub tunnels: usize,
    /// Customer gateways that they lead to.
    pub customer_gateways: usize,
    /// SPD rules of the tunnel with the most.
    pub rules: usize,
    /// Remote networks of the rule with the most.
    pub remotes: usize,
}

/// How strangers are met who ask for IKE SAs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct FloodStatus {
    /// How many SAs may be half open; nobody is admitted beyond.
    pub half_open_limit: u64,
    /// Strangers that were asked to come again with a cookie.
    pub cookies_demanded: u64,
    /// Valid cookies that came back.
    pub cookies_returned: u64,
    /// IKE datagrams that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// A bandwidth level.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LevelStatus {
    /// Bits per second.
    pub bps: u64,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a bandwidth level comes from.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration.
    #[default]
    Configuration,
    /// A command, until the daemon is restarted or the configuration says something else.
    Command,
    /// A command that was saved: until the configuration says something else.
    Saved,
}

/// A gateway's role in a pair of hosts.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// There is no pair.
    #[default]
    Single,
    /// It carries the traffic.
    Active,
    /// It is ready to.
    Standby,
}

/// A tunnel.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct TunnelStatus {
    /// When this was made, in seconds of the clock of [`super::counters::Counters::at`]: what is told as a time from now on,
    /// or as an age, is told from then.
    #[serde(skip)]
    pub made_s: u64,
    /// Its name.
    pub name: String,
    /// Its gateway.
    pub gateway: String,
    /// Its customer gateway.
    pub customer_gateway: String,
    /// What it is doing.
    pub state: TunnelState,
    /// Since when, RFC 3339.
    pub since: String,
    /// Why it is not up, or what last went wrong.
    pub last_error: Option<String>,
    /// `active`, `passive` or `on-demand`.
    #[serde(default)]
    pub start: String,
    /// Whether it should be up: it starts actively and nobody took it down.
    #[serde(default)]
    pub wanted: bool,
    /// When the next attempt begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_s: Option<u64>,
    /// Outer addresses and ports in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathStatus>,
    /// The IKE SA, if there is one.
    pub ike: Option<IkeStatus>,
    /// Octets of inner packets that it has received, over all generations of its keys.
    #[serde(default)]
    pub bytes_in: u64,
    /// And sent.
    #[serde(default)]
    pub bytes_out: u64,
    /// Children that are up.
    pub children: Vec<ChildStatus>,
    /// What the configuration protects, and what the children carry.
    #[serde(default)]
    pub coverage: CoverageStatus,
    /// The configured children, and how each of them is.
    #[serde(default)]
    pub rules: Vec<RuleStatus>,
    /// Since when packets leave and none come in, in seconds; absent while traffic passes or there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered_s: Option<u64>,
    /// How well it carries packets; absent without a health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<QualityStatus>,
    /// Tunnels with the same SPD rules and weight, over which flows are spread while they are equally fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares_with: Vec<String>,
    /// What works now and will need attention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Cap on what it sends, within that of its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<LevelStatus>,
    /// Cap on what it receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_in: Option<LevelStatus>,
    /// Legacy algorithms that the configuration permits and names.
    #[serde(default, skip_serializing_if = "LegacyStatus::is_empty")]
    pub legacy: LegacyStatus,
}

/// Keywords of algorithms that are spoken only on request, each once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct LegacyStatus {
    /// In the IKE proposals.
    pub ike: Vec<String>,
    /// In the ESP proposals.
    pub esp: Vec<String>,
}

impl LegacyStatus {
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.ike.is_empty() && self.esp.is_empty()
    }
}

/// How much of the configured pairs of networks is carried.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct CoverageStatus {
    /// Pairs of one local and one remote network that are configured.
    pub pairs: u64,
    /// Pairs that the children carry as a whole.
    pub covered: u64,
    /// The first of the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingStatus>,
}

impl CoverageStatus {
    /// Whether everything is carried.
    pub const fn is_whole(&self) -> bool {
        self.covered == self.pairs
    }

    /// Covered pairs as a part of all; 1 if none is configured.
    pub fn ratio(&self) -> f64 {
        if self.pairs == 0 { 1.0 } else { self.covered as f64 / self.pairs as f64 }
    }
}

/// A pair of networks that is not carried as a whole.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct MissingStatus {
    /// Ours.
    pub local: String,
    /// The peer's.
    pub remote: String,
    /// Whether the peer narrowed it: some of it is carried.
    #[serde(default)]
    pub partly: bool,
}

/// A configured child.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct RuleStatus {
    /// Our networks.
    pub local: Vec<String>,
    /// The peer's.
    pub remote: Vec<String>,
    /// How it is.
    pub state: RuleState,
    /// Its pairs of networks.
    pub pairs: u64,
    /// Those that are carried.
    pub covered: u64,
    /// Why it, or the rest of it, is not carried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When what is missing is asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_s: Option<u64>,
}

impl RuleStatus {
    /// Its networks in one line.
    pub fn networks(&self) -> String {
        format!("{} -> {}", self.local.join(" "), self.remote.join(" "))
    }
}

/// How a configured child is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum RuleState {
    /// It carries traffic, all of it or a part.
    Up,
    /// It is being negotiated.
    Connecting,
    /// It was refused.
    Failed,
    /// There is no IKE SA for it.
    Down,
}

impl RuleState {
    /// The word in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Connecting => "connecting",
            Self::Failed => "failed",
            Self::Down => "down",
        }
    }
}

/// What a tunnel is doing.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum TunnelState {
    /// Taken down, and nobody tries to bring it up.
    Down,
    /// A negotiation is under way.
    Connecting,
    /// It carries traffic; [`TunnelStatus::coverage`] tells how much of what is configured.
    Up,
    /// It carries traffic, and new keys are being made.
    Rekeying,
    /// It waits for the peer (passive) or for traffic (on-demand).
    Waiting,
    /// The last attempt failed.
    Failed,
}

impl TunnelState {
    /// Whether traffic passes.
    pub const fn is_up(self) -> bool {
        matches!(self, Self::Up | Self::Rekeying)
    }

    /// The word in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Connecting => "connecting",
            Self::Up => "up",
            Self::Rekeying => "rekeying",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
        }
    }
}

/// What probes through a tunnel tell. Figures are of the last minute.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct QualityStatus {
    /// `unknown`, `good` or `degraded`.
    pub health: String,
    /// Why it is degraded: `no_answer`, `loss` or `delay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Since when, RFC 3339.
    pub since: String,
    /// By what: `icmp` or `udp`.
    #[serde(default)]
    pub probe: String,
    /// Who is probed.
    pub target: String,
    /// At which UDP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// From where; null: no probes are sent.
    pub source: Option<String>,
    /// Why none are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Probes whose fate is known.
    pub probes: u32,
    /// Those that were lost, there or back.
    pub lost: u32,
    /// Those that did not get there; null where the other end does not tell.
    pub lost_there: Option<u32>,
    /// Lost ones as a part of all; null without any.
    pub loss_ratio: Option<f64>,
    /// Mean round trip in milliseconds; null without any.
    pub delay_ms: Option<f64>,
    /// The shortest.
    pub delay_min_ms: Option<f64>,
    /// The longest.
    pub delay_max_ms: Option<f64>,
    /// Smoothed difference of successive round trips.
    pub jitter_ms: Option<f64>,
}

/// What probes told in one minute.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct MinuteStatus {
    /// When it began, RFC 3339.
    pub time: String,
    /// Probes whose fate became known in it.
    pub probes: u16,
    /// Those that were lost.
    pub lost: u16,
    /// Lost ones as a part of all.
    pub loss_ratio: f64,
    /// Mean round trip in milliseconds; null without any.
    pub delay_ms: Option<f64>,
    /// The shortest.
    pub delay_min_ms: Option<f64>,
    /// The longest.
    pub delay_max_ms: Option<f64>,
    /// Mean difference of successive round trips.
    pub jitter_ms: Option<f64>,
}

/// Outer addresses and ports.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct PathStatus {
    /// Ours.
    pub local: String,
    /// The peer's, as we see it.
    pub remote: String,
}

/// An IKE SA.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct IkeStatus {
    /// 16 hexadecimal digits.
    pub spi_i: String,
    /// 16 hexadecimal digits.
    pub spi_r: String,
    /// Who began.
    pub role: IkeRole,
    /// The algorithms.
    pub proposal: String,
    /// Who is behind NAT.
    pub nat: Nat,
    /// When new keys are made.
    pub rekey_in_s: u64,
    /// The peer's identity, escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_id: Option<String>,
}

/// Who began an IKE SA.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum IkeRole {
    /// We did.
    Initiator,
    /// The peer did.
    Responder,
}

/// Who is behind NAT.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Nat {
    /// Nobody.
    None,
    /// We are.
    Local,
    /// The peer is.
    Remote,
    /// Both are.
    Both,
}

/// A pair of ESP SAs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ChildStatus {
    /// Selectors as negotiated, our side.
    pub local: Vec<String>,
    /// The peer's side.
    pub remote: Vec<String>,
    /// 8 hexadecimal digits.
    pub spi_in: String,
    /// 8 hexadecimal digits.
    pub spi_out: String,
    /// The algorithms.
    pub proposal: String,
    /// Octets of inner packets received on these keys.
    pub bytes_in: u64,
    /// Packets received.
    pub packets_in: u64,
    /// Octets of inner packets sent.
    pub bytes_out: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// What was dropped.
    pub drops: Drops,
    /// When new keys are made.
    pub rekey_in_s: u64,
    /// When these keys end for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u64>,
    /// How long ago these keys were made.
    #[serde(default)]
    pub age_s: u64,
    /// Position in `rules` of the configured child that it is, or is a part of; null: the configuration has it no more.
    #[serde(default)]
    pub rule: Option<u16>,
}

/// Packets dropped by an inbound SA.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Drops {
    /// By the replay window.
    pub replay: u64,
    /// Because the integrity check failed.
    pub integrity: u64,
}

/// What the daemon's host offers, as told by `doctor`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty if nothing.
    #[serde(default)]
    pub fix: String,
}

/// How a finding is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, with a loss.
    Warning,
    /// Does not work.
    Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form that CONTRACT.md gives, field by field.
    #[test]
    fn the_json_form_is_the_published_one() {
        let contract = r#"{"version": 1, "data_plane": "kernel",
 "gateways": [{"name": "vpc-a", "address": "192.0.2.1", "bandwidth_bps": 100000000, "tx_bps": 0, "rx_bps": 0, "role": "single"}],
 "tunnels": [{"name": "a-b", "gateway": "vpc-a", "customer_gateway": "idc-b", "state": "up",
   "since": "2026-01-01T00:00:00Z", "last_error": null,
   "ike": {"spi_i": "00112233445566aa", "spi_r": "aabbccddeeff0011", "role": "initiator", "proposal": "p", "nat": "both", "rekey_in_s": 0},
   "children": [{"local": ["10.1.0.0/16"], "remote": ["10.2.0.0/16"], "spi_in": "c0ffee00", "spi_out": "c0ffee01", "proposal": "p",
     "bytes_in": 0, "packets_in": 0, "bytes_out": 0, "packets_out": 0, "drops": {"replay": 0, "integrity": 0}, "rekey_in_s": 0}]}]}"#;
        let expected: serde_json::Value = serde_json::from_str(contract).unwrap();
        let snapshot: Snapshot = serde_json::from_str(contract).unwrap();
        let written = serde_json::to_value(&snapshot).unwrap();
        contains(&written, &expected, "");
    }

    #[test]
    fn a_tunnel_that_carries_a_part_of_its_networks_is_up_and_not_healthy() {
        let text = r#"{"name": "a-b", "gateway": "g", "customer_gateway": "c", "state": "up", "since": "",
            "last_error": null, "wanted": true, "ike": null, "children": [], "coverage": {"pairs": 2, "covered": 2}}"#;
        let tunnel: TunnelStatus = serde_json::from_str(text).unwrap();
        let mut s = Snapshot { tunnels: vec![Arc::new(tunnel)], ..Snapshot::default() };
        assert!(s.healthy());
        Arc::make_mut(&mut s.tunnels[0]).coverage.covered = 1;
        assert!(!s.healthy());
        Arc::make_mut(&mut s.tunnels[0]).wanted = false;
        assert!(s.healthy());
    }

    /// Everything in `small` is in `large`.
    fn contains(large: &serde_json::Value, small: &serde_json::Value, path: &str) {
        use serde_json::Value::{Array, Object};
        match (large, small) {
            (Object(l), Object(s)) => {
                s.iter().for_each(|(k, v)| {
                    contains(l.get(k).unwrap_or_else(|| panic!("{path}.{k}")), v, &format!("{path}.{k}"))
                });
            }
            (Array(l), Array(s)) => {
                assert_eq!(l.len(), s.len(), "{path}");
                l.iter().zip(s).for_each(|(l, s)| contains(l, s, path));
            }
            (l, s) => assert_eq!(l, s, "{path}"),
        }
    }
}
