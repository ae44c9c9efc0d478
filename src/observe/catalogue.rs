//! Every family of metrics, in the order in which they are written: the exporter writes no other, `docs/monitoring.md` lists
//! them, and alert rules and dashboard may name only these; tests hold all three.
//!
//! A family's name stands here without the suffix of its samples (`_total` of counters, `_info`).

/// What kind of family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    /// Only grows, from 0 at the start of the process or from where an earlier life of the daemon was.
    Counter,
    /// Goes up and down.
    Gauge,
    /// 1, with what there is to tell in the labels.
    Info,
    /// Counts of observations up to bounds.
    Histogram,
}

/// A family of metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Family {
    /// Its name, without suffix.
    pub name: &'static str,
    /// Its kind.
    pub kind: Type,
    /// Its labels, in the order in which they are written.
    pub labels: &'static [&'static str],
    /// What it says, in a sentence.
    pub help: &'static str,
}

impl Family {
    /// The name of its samples; those of a histogram have further suffixes.
    pub fn sample(&self) -> String {
        match self.kind {
            Type::Counter => format!("{}_total", self.name),
            Type::Info => format!("{}_info", self.name),
            Type::Gauge | Type::Histogram => self.name.to_owned(),
        }
    }
}

macro_rules! families {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $id: Family =
                Family { name: $name, kind: Type::$kind, labels: &[$($label),*], help: $help };
        )*

        /// All of them.
        pub const ALL: &[Family] = &[$($id),*];
    };
}

families! {
    TUNNEL_UP = Gauge "cygnet_tunnel_up" ["gateway", "tunnel"]
        "1 if traffic passes through the tunnel.";
    TUNNEL_WANTED = Gauge "cygnet_tunnel_wanted" ["gateway", "tunnel"]
        "1 if the tunnel should be up by now: it starts actively and nobody took it down.";
    TUNNEL_COVERAGE = Gauge "cygnet_tunnel_coverage_ratio" ["gateway", "tunnel"]
        "Configured pairs of networks that the tunnel carries, as a part of all.";
    TUNNEL_UNANSWERED = Gauge "cygnet_tunnel_unanswered" ["gateway", "tunnel"]
        "1 if packets leave by the tunnel and none have come in for a while.";
    LEGACY_ALGORITHMS = Gauge "cygnet_legacy_algorithms" ["gateway", "tunnel", "protocol"]
        "Algorithms among the tunnel's proposals that are spoken only because the configuration asks for them.";
    CHILD_UP = Gauge "cygnet_child_up" ["gateway", "tunnel", "child"]
        "1 if traffic of the configured child passes.";
    SA_LIFETIME = Gauge "cygnet_sa_lifetime_remaining_seconds" ["gateway", "tunnel"]
        "Time until the first child's keys end; 0 without any.";
    TUNNEL_DOWNTIME = Counter "cygnet_tunnel_downtime_seconds" ["gateway", "tunnel"]
        "Time the tunnel passed no traffic although it was wanted.";
    SA_BYTES = Counter "cygnet_sa_bytes" ["gateway", "tunnel", "direction"]
        "Octets of inner packets, those that the level of a gateway drops after them included.";
    SA_PACKETS = Counter "cygnet_sa_packets" ["gateway", "tunnel", "direction"]
        "Inner packets.";
    SA_DROPS = Counter "cygnet_sa_drops" ["gateway", "tunnel", "reason"]
        "Packets that an inbound SA dropped.";
    REKEYS = Counter "cygnet_rekeys" ["gateway", "tunnel", "kind", "result"]
        "Rekeys that ended.";
    IKE_FAILURES = Counter "cygnet_ike_failures" ["tunnel", "reason"]
        "Negotiations that failed.";
    PROBE_LOSS = Gauge "cygnet_probe_loss_ratio" ["gateway", "tunnel", "probe"]
        "Lost requests as a part of the last ones; probe ike: IKE requests that had to be sent again, of which keepalives are most; probe icmp or udp: the health check through the tunnel, in the last minute.";
    PROBE_DELAY = Gauge "cygnet_probe_delay_seconds" ["gateway", "tunnel", "probe"]
        "Mean round trip of the last requests; probe ike: IKE requests, of which keepalives are most; probe icmp or udp: the health check through the tunnel, in the last minute.";
    PROBE_JITTER = Gauge "cygnet_probe_jitter_seconds" ["gateway", "tunnel", "probe"]
        "Smoothed difference of successive round trips (RFC 3550); probe icmp or udp: the health check through the tunnel.";
    TUNNEL_DEGRADED = Gauge "cygnet_tunnel_degraded" ["gateway", "tunnel"]
        "1 if the health check says that the tunnel is not fit to carry traffic; not there without a health check.";
    ALERTS = Counter "cygnet_alerts" ["channel", "result"]
        "Events that were told by webhook or command: delivered, failed after all attempts, or dropped because too many waited, or for somebody whom the configuration names no more.";
    IKE_RETRANSMITS = Counter "cygnet_ike_retransmits" []
        "IKE requests that were sent again.";
    IKE_HALF_OPEN = Gauge "cygnet_ike_half_open" []
        "IKE SAs that wait for the peer's IKE_AUTH.";
    IKE_HALF_OPEN_LIMIT = Gauge "cygnet_ike_half_open_limit" []
        "How many of them there may be; nobody is admitted beyond.";
    IKE_COOKIES = Counter "cygnet_ike_cookies" ["result"]
        "Cookies that strangers were asked for while many SAs were half open, and valid ones that came back.";
    IKE_DROPPED = Counter "cygnet_ike_dropped" ["reason"]
        "IKE datagrams that were dropped.";
    IKE_RTT = Histogram "cygnet_ike_rtt_seconds" []
        "Round trips of IKE exchanges.";
    BANDWIDTH_LIMIT = Gauge "cygnet_bandwidth_limit_bits_per_second" ["gateway"]
        "Cap on what the gateway sends.";
    BANDWIDTH_USAGE = Gauge "cygnet_bandwidth_usage_ratio" ["gateway"]
        "What the cap of the gateway lets pass, as a part of it, in the octets that the cap counts.";
    BANDWIDTH_IN_LIMIT = Gauge "cygnet_bandwidth_in_limit_bits_per_second" ["gateway"]
        "Cap on what the gateway receives.";
    TUNNEL_BANDWIDTH_LIMIT = Gauge "cygnet_tunnel_bandwidth_limit_bits_per_second" ["gateway", "tunnel", "direction"]
        "Cap on what a tunnel sends (out) or receives (in), where it has one.";
    QOS_DROPS = Counter "cygnet_qos_drops" ["gateway", "class"]
        "Packets that traffic control dropped: in the gateway's queue (gateway), by its level where there is no queue (gateway_cap), by levels of what comes in (gateway_in), of its tunnels (tunnel, tunnel_in), by limits of inner addresses (ip).";
    TUNNEL_BANDWIDTH_DROPS = Counter "cygnet_tunnel_bandwidth_drops" ["gateway", "tunnel", "direction"]
        "Packets that the level of a tunnel dropped, of what it sends (out) or receives (in); cygnet_qos_drops_total has them as well.";
    IP_BYTES = Counter "cygnet_ip_bytes" ["gateway", "ip"]
        "Octets that an inner address sent and received through tunnels; the 20 addresses of each gateway that carried the most in a day.";
    IP_LIMIT = Gauge "cygnet_ip_limit_bits_per_second" ["gateway", "ip"]
        "Limit of an inner address in each direction; 0: blocked. Of each gateway the addresses that have cygnet_ip_bytes_total, and the first 100.";
    HA_ROLE = Gauge "cygnet_ha_role" ["gateway"]
        "Role in a pair of hosts: 0 single, 1 active, 2 standby.";
    QUOTA_USED = Gauge "cygnet_quota_used" ["gateway", "kind"]
        "What quotas count of the gateway: tunnels, customer_gateways, rules of its fullest tunnel, remotes of its longest rule. Without a gateway, of the configuration: gateways, customer_gateways, tunnels_per_customer of the one with the most.";
    QUOTA_LIMIT = Gauge "cygnet_quota_limit" ["gateway", "kind"]
        "How much of that there may be, where there is a quota.";
    PLANE_DROPS = Counter "cygnet_plane_drops" ["reason"]
        "Packets that cygnet's own data plane dropped; not there while the kernel forwards ESP.";
    XFRM_STAT = Counter "cygnet_xfrm_stat" ["name"]
        "The kernel's XFRM statistics of this network namespace, by their names in /proc/net/xfrm_stat.";
    GUARD_DROPS = Counter "cygnet_guard_drops" ["reason"]
        "Packets that were about to leave in clear text around their tunnel.";
    SAMPLING_CPU = Counter "cygnet_sampling_cpu_seconds" []
        "Processor time of the daemon's loop for what it does every few seconds: looking at its host, reading and publishing what all tunnels have counted.";
    GUARD_REPAIRS = Counter "cygnet_guard_repairs" []
        "How often a change of others to the last guard was undone.";
    GUARD_WHOLE = Gauge "cygnet_guard_whole" []
        "1 if the last guard behind NAT and foreign rules is in force, with nothing that it does not defend.";
    DATA_PLANE = Info "cygnet_data_plane" ["plane"]
        "Who handles ESP.";
    CONFIG_SUCCESS = Gauge "cygnet_config_last_apply_success" []
        "1 if the last configuration that was asked for is in effect.";
    BUILD = Info "cygnet_build" ["version"]
        "The daemon's version.";
}
