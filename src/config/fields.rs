//! Every key of the configuration, once: what it is called, what it takes, what it means when it is left out.
//!
//! The decoder refuses keys that are not here, and the JSON schema and the manual page are made from these tables.

use super::{preset, quota};

/// What a key takes, as far as a schema can say it. The decoder knows the rest.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Text; the pattern is a regular expression for editors.
    Text {
        /// What it is called, with its units.
        is: &'static str,
        /// Regular expression, or empty.
        pattern: &'static str,
        /// An example.
        example: &'static str,
    },
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// One of these words.
    Words(&'static [&'static str]),
    /// A mapping.
    Section(&'static Section),
    /// A list.
    List(&'static Kind),
    /// One of several forms.
    AnyOf(&'static [Kind]),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The key.
    pub key: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Whether it must stand there.
    pub required: bool,
    /// What holds when it is left out.
    pub default: &'static str,
    /// What it means.
    pub doc: &'static str,
}

/// A mapping with its keys.
#[derive(Debug)]
pub struct Section {
    /// What it is called in messages.
    pub name: &'static str,
    /// Its keys.
    pub fields: &'static [Field],
    /// Whether even unknown keys must not be quoted, because they may be a secret whose key was forgotten.
    pub secret: bool,
}

const fn must(key: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { key, kind, required: true, default: "", doc }
}

const fn may(key: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Field {
    Field { key, kind, required: false, default, doc }
}

const NAME: Kind = Kind::Text {
    is: "a name of 1 to 63 letters, digits, `.`, `_` and `-`",
    pattern: "^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$",
    example: "a-b",
};
const CIDR: Kind =
    Kind::Text { is: "a CIDR block", pattern: "^[0-9A-Fa-f.:]+(/[0-9]+)?$", example: "10.1.0.0/16" };
const IP: Kind = Kind::Text { is: "an IP address", pattern: "^[0-9A-Fa-f.:]+$", example: "192.0.2.1" };
const HOST: Kind =
    Kind::Text { is: "an IP address or a DNS name", pattern: "^[0-9A-Za-z.:-]+$", example: "192.0.2.2" };
const IDENTITY: Kind = Kind::Text { is: "an identity", pattern: "", example: "gw.example.org" };
const GROUP_NAME: Kind =
    Kind::Text { is: "a group's name", pattern: "^[A-Za-z_][A-Za-z0-9._-]{0,31}$", example: "vpn-admins" };
const PATH: Kind = Kind::Text { is: "a path", pattern: "", example: "a-b.psk" };
const DURATION: Kind = Kind::Text {
    is: "a duration in `ms`, `s`, `m`, `h` or `d`",
    pattern: "^[0-9]+(ms|s|m|h|d)$",
    example: "1h",
};
const SIZE: Kind = Kind::Text {
    is: "a size in `KB`, `MB`, `GB`, `TB` (decimal) or `KiB`, `MiB`, `GiB`, `TiB`",
    pattern: "^[0-9]+ ?(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)$",
    example: "1GB",
};
const RATE: Kind = Kind::Text {
    is: "a rate from 1kbit to 100gbit in `bit`, `kbit`, `mbit` or `gbit` (decimal)",
    pattern: "^[0-9]+(\\.[0-9]+)?([kKmMgGtT])?[bB][iI][tT]$",
    example: "100mbit",
};
const LISTEN: Kind = Kind::Text {
    is: "an address with a port, or `off`",
    pattern: "^.+:[0-9]+$|^off$",
    example: "127.0.0.1:9180",
};
const PROPOSAL: Kind =
    Kind::Text { is: "a proposal", pattern: "^[A-Za-z0-9_;-]+!?$", example: "aes256gcm16-prfsha384-x25519" };
const ESP_PROPOSAL: Kind =
    Kind::Text { is: "a proposal", pattern: "^[A-Za-z0-9_;-]+!?$", example: "aes256gcm16-x25519" };
const IKE_PROPOSALS: &str =
    "Proposals, preferred first. Behind the group `ke1_mlkem768` makes the key exchange a hybrid one.";
const MARK: Kind = Kind::Text {
    is: "a mark",
    pattern: "^(0x[0-9a-fA-F]+|[0-9]+)(/(0x[0-9a-fA-F]+|[0-9]+))?$",
    example: "0x10/0xff",
};
const SOURCE: Kind = Kind::AnyOf(&[
    Kind::Words(&["auto", "none"]),
    Kind::Text { is: "an IP address", pattern: "^[0-9a-fA-F.:]+$", example: "10.1.0.1" },
]);
const BYPASS: Kind =
    Kind::AnyOf(&[Kind::Words(BYPASSES), Kind::List(&Kind::AnyOf(&[Kind::Words(&["attached"]), CIDR]))]);
const LEGACY: Field = may(
    "legacy",
    Kind::Bool,
    "false",
    "Permits sha1, prfsha1, modp1024, modp1536 and 3des in these proposals, for peers that have nothing better.",
);
const URL: Kind = Kind::Text { is: "a URL", pattern: "^https?://.+$", example: "https://example.org/hook" };
const PART: Kind = Kind::Text { is: "a part in `%`", pattern: "^[0-9]+%$", example: "20%" };
const UNLIMITED: Kind = Kind::Words(&["unlimited"]);

/// The whole file.
pub static ROOT: Section = Section {
    name: "the configuration",
    secret: false,
    fields: &[
        may("daemon", Kind::Section(&DAEMON), "", "The daemon itself: sockets, directories, exporters."),
        may("gateways", Kind::List(&Kind::Section(&GATEWAY)), "[]", "VPN gateways of this host."),
        may("customer_gateways", Kind::List(&Kind::Section(&CUSTOMER)), "[]", "The peers' gateways."),
        may("tunnels", Kind::List(&Kind::Section(&TUNNEL)), "[]", "Tunnels between them."),
        may(
            "quota",
            Kind::AnyOf(&[Kind::Words(quota::PRESETS), Kind::Section(&QUOTA)]),
            "none",
            "How much of all this there may be: none, cloud, or numbers.",
        ),
    ],
};

const AT_MOST: Kind = Kind::AnyOf(&[Kind::Integer { min: 0, max: quota::MAX }, UNLIMITED]);

/// `quota`.
pub static QUOTA: Section = Section {
    name: "a quota",
    secret: false,
    fields: &[
        may("preset", Kind::Words(quota::PRESETS), "none", "The numbers that the others take the place of."),
        may("gateways", AT_MOST, "unlimited", "VPN gateways; cloud: 10."),
        may("customer_gateways", AT_MOST, "unlimited", "Customer gateways; cloud: 20."),
        may("tunnels_per_gateway", AT_MOST, "unlimited", "Tunnels of a gateway; cloud: 20."),
        may("tunnels_per_customer", AT_MOST, "unlimited", "Tunnels to a customer gateway; cloud: 20."),
        may("rules_per_tunnel", AT_MOST, "unlimited", "SPD rules of a tunnel; cloud: 10."),
        may("remotes_per_rule", AT_MOST, "unlimited", "Remote networks of an SPD rule; cloud: 50."),
    ],
};

/// `daemon`.
pub static DAEMON: Section = Section {
    name: "daemon",
    secret: false,
    fields: &[
        may(
            "control_socket",
            PATH,
            "/run/cygnet/control.sock",
            "Unix socket for the command line, 0660 root:cygnet. Members of that group may look, and change nothing.",
        ),
        may(
            "admin_group",
            GROUP_NAME,
            "",
            "Group whose members, being also of group cygnet, may change what runs: tunnels up and down, bandwidth, limits. \
             Without one, only root may.",
        ),
        may("state_dir", PATH, "/var/lib/cygnet", "Directory for what outlives a restart."),
        may(
            "data_plane",
            Kind::Words(PLANES),
            "auto",
            "Who handles ESP: the kernel where it can, or cygnet itself.",
        ),
        may(
            "guards",
            Kind::Words(GUARDS),
            "keep",
            "What happens to protected traffic when the daemon ends: kept blocked, or released into clear text.",
        ),
        may("metrics", Kind::Section(&METRICS), "", "The Prometheus exporter."),
        may("console", Kind::Section(&CONSOLE), "", "The web console."),
        may("alerts", Kind::Section(&ALERTS), "", "Who is told of events besides the journal."),
    ],
};
/// Values of `daemon.guards`.
pub const GUARDS: &[&str] = &["keep", "release"];
/// Values of `daemon.data_plane`.
pub const PLANES: &[&str] = &["auto", "kernel", "userspace"];

/// `daemon.metrics`.
pub static METRICS: Section = Section {
    name: "daemon.metrics",
    secret: false,
    fields: &[may("listen", LISTEN, "127.0.0.1:9180", "Address and port, or off.")],
};

/// `daemon.console`.
pub static CONSOLE: Section = Section {
    name: "daemon.console",
    secret: false,
    fields: &[
        may("listen", LISTEN, "off", "Address and port, or off."),
        may(
            "token_file",
            PATH,
            "",
            "File with the token that permits changes, relative to this file; only its owner may have access to it. \
             Without one, the console only shows.",
        ),
        may(
            "hosts",
            Kind::List(&NAME),
            "",
            "Names that browsers reach the console by, besides addresses and localhost.",
        ),
    ],
};

/// `daemon.alerts`.
pub static ALERTS: Section = Section {
    name: "alerts",
    secret: false,
    fields: &[
        may("webhook", Kind::Section(&WEBHOOK), "", "Where events are posted to, one JSON object each."),
        may(
            "command",
            Kind::List(&Kind::Text { is: "a word", pattern: "", example: "/usr/local/bin/alert" }),
            "",
            "A program by its absolute path and its arguments: run for each event, with the JSON object on its standard input.",
        ),
        may(
            "events",
            Kind::List(&Kind::Words(ALERT_EVENTS)),
            "what somebody should look at, and that it is over",
            "Which events are told.",
        ),
    ],
};

/// Words of `daemon.alerts.events`.
pub const ALERT_EVENTS: &[&str] = &[
    "started",
    "restored",
    "stopping",
    "config_applied",
    "config_refused",
    "tunnel_connecting",
    "tunnel_up",
    "coverage",
    "tunnel_down",
    "traffic_suspect",
    "traffic_passes",
    "quality_degraded",
    "quality_recovered",
    "tunnel_failed",
    "ike_rekeyed",
    "child_rekeyed",
    "warning",
    "rekey_failed",
    "peer_dead",
    "peer_moved",
    "bandwidth_changed",
    "limit_changed",
    "data_plane",
    "guard_repaired",
    "guard_obstructed",
];

/// `daemon.alerts.webhook`.
pub static WEBHOOK: Section = Section {
    name: "webhook",
    secret: false,
    fields: &[
        must("url", URL, "An http or https URL."),
        may(
            "secret_file",
            PATH,
            "",
            "File with the secret that signs what is posted (HMAC-SHA256), relative to this file; only its owner may have \
             access to it.",
        ),
    ],
};

/// `gateways[]`.
pub static GATEWAY: Section = Section {
    name: "a gateway",
    secret: false,
    fields: &[
        must("name", NAME, "Unique among gateways."),
        must(
            "address",
            Kind::AnyOf(&[
                IP,
                Kind::Section(&INTERFACE),
                Kind::List(&Kind::AnyOf(&[IP, Kind::Section(&INTERFACE)])),
            ]),
            "Outer addresses: an IP address, { interface: NAME }, or a list of them.",
        ),
        may(
            "id",
            IDENTITY,
            "the outer address",
            "Our identity towards the peers: an address, a name, user@host, or ip:, fqdn:, email:, dn:, keyid:, keyid-text: and what it carries.",
        ),
        must("networks", Kind::List(&CIDR), "CIDR blocks of the VPC."),
        may(
            "bandwidth",
            LEVEL,
            "unlimited",
            "Cap on what leaves to the public network, or { out: RATE, in: RATE } for both directions. It counts what is on \
             the wire, unless counts says payload.",
        ),
        may("limits", Kind::List(&Kind::Section(&LIMIT)), "[]", "Limits of single inner addresses."),
    ],
};

/// `bandwidth` of a gateway or a tunnel, in its long form.
pub static BANDWIDTH: Section = Section {
    name: "a bandwidth",
    secret: false,
    fields: &[
        may("out", Kind::AnyOf(&[RATE, UNLIMITED]), "unlimited", "Cap on what is sent."),
        may(
            "in",
            Kind::AnyOf(&[RATE, UNLIMITED]),
            "unlimited",
            "Cap on what is received; what is beyond is dropped.",
        ),
        may(
            "counts",
            Kind::Words(COUNTS),
            "wire for a gateway, payload for a tunnel",
            "Which octets count: the outer packet with its Ethernet header, or the packet inside the tunnel.",
        ),
    ],
};
/// Values of `bandwidth.counts`.
pub const COUNTS: &[&str] = &["wire", "payload"];
const LEVEL: Kind = Kind::AnyOf(&[RATE, UNLIMITED, Kind::Section(&BANDWIDTH)]);

/// `{ interface: eth0 }`.
pub static INTERFACE: Section = Section {
    name: "an address",
    secret: false,
    fields: &[must(
        "interface",
        Kind::Text { is: "a name of an interface", pattern: "^[^/\\s]{1,15}$", example: "eth0" },
        "Network interface whose addresses are used.",
    )],
};

/// `gateways[].limits[]`.
pub static LIMIT: Section = Section {
    name: "a limit",
    secret: false,
    fields: &[
        must("ip", IP, "Inner address, inside the gateway's networks."),
        must(
            "rate",
            Kind::AnyOf(&[RATE, Kind::Words(&["block", "unlimited"]), Kind::Integer { min: -1, max: 0 }]),
            "A rate, block (0) or unlimited (-1).",
        ),
    ],
};

/// `customer_gateways[]`.
pub static CUSTOMER: Section = Section {
    name: "a customer gateway",
    secret: false,
    fields: &[
        must("name", NAME, "Unique among customer gateways."),
        must("address", HOST, "IP address or DNS name."),
        may(
            "id",
            IDENTITY,
            "the address",
            "The identity that the peer must prove; any: whatever it says, the key decides.",
        ),
        may(
            "preset",
            Kind::Words(preset::NAMES),
            "",
            "What product it is: parameters of its tunnels that it takes.",
        ),
    ],
};

/// `tunnels[]`.
pub static TUNNEL: Section = Section {
    name: "a tunnel",
    secret: false,
    fields: &[
        must("name", NAME, "Unique among tunnels."),
        must("gateway", NAME, "Name of a gateway."),
        must("customer_gateway", NAME, "Name of a customer gateway."),
        may("start", Kind::Words(STARTS), "active", "We initiate, we wait, or the first packet triggers it."),
        must("auth", Kind::Section(&AUTH), "How the two ends prove who they are."),
        must("spd", Kind::List(&Kind::Section(&RULE)), "SPD rules: what the tunnel protects."),
        may(
            "preset",
            Kind::Words(preset::NAMES),
            "the customer gateway's",
            "Parameters of a product or a policy, in the place of the defaults below.",
        ),
        may(
            "bandwidth",
            LEVEL,
            "unlimited",
            "Cap on what the tunnel sends, within that of its gateway, or { out: RATE, in: RATE } for both directions. It \
             counts what is inside the tunnel, unless counts says wire.",
        ),
        may("ike", Kind::Section(&IKE), "", "Parameters of the IKE SA."),
        may("esp", Kind::Section(&ESP), "", "Parameters of the ESP SAs."),
        may("local_id", IDENTITY, "the gateway's id", "Our identity in this tunnel."),
        may(
            "remote_id",
            IDENTITY,
            "the customer gateway's id",
            "The peer's identity in this tunnel, or any.",
        ),
        may(
            "mark",
            MARK,
            "",
            "Policies and states apply to packets with this mark only: VALUE or VALUE/MASK.",
        ),
        may(
            "weight",
            Kind::Integer { min: 0, max: 255 },
            "0",
            "Which of several tunnels with the same SPD rules carries the packets: 0 is the primary, and the lowest one \
             that is up wins. Those with the same one share the flows (data_plane: userspace).",
        ),
        may(
            "health_check",
            Kind::Section(&HEALTH_CHECK),
            "",
            "Probes through the tunnel: loss, delay and jitter are measured, and a backup takes over from a tunnel that is \
             degraded.",
        ),
        may("allow_internet", Kind::Bool, "false", "Permits 0.0.0.0/0 and ::/0 in SPD rules."),
        may(
            "bypass",
            BYPASS,
            "attached",
            "What is reached directly although the remote networks cover it: attached (our own addresses and attached \
             networks inside the local ones), none, or a list of CIDR blocks, in which attached may stand as well.",
        ),
        may(
            "source",
            SOURCE,
            "auto",
            "Source of the gateway's own packets to the remote networks, where a socket has none: an own address inside \
             the local networks, or this one; none: as the host's routes say.",
        ),
    ],
};
/// Words of `tunnels[].bypass`.
pub const BYPASSES: &[&str] = &["attached", "none"];
/// Values of `tunnels[].start`.
pub const STARTS: &[&str] = &["active", "passive", "on-demand"];

/// Values of `tunnels[].health_check.probe`.
pub const PROBES: &[&str] = &["icmp", "udp"];

/// `tunnels[].health_check`.
pub static HEALTH_CHECK: Section = Section {
    name: "health_check",
    secret: false,
    fields: &[
        must(
            "target",
            IP,
            "A host inside the remote networks that answers pings; best the peer's gateway itself.",
        ),
        may(
            "probe",
            Kind::Words(PROBES),
            "icmp",
            "An echo request of ICMP, or a UDP datagram to an Echo service of the target (RFC 862), for hosts that \
             answer no pings.",
        ),
        may(
            "port",
            Kind::Integer { min: 1, max: 65_535 },
            "7",
            "UDP port of the target's Echo service, with `probe: udp` alone.",
        ),
        may("source", IP, "an own address", "Source of the probes, inside the local networks."),
        may("interval", DURATION, "1s", "Time between two probes: 1s to 5s."),
        may(
            "loss",
            PART,
            "20%",
            "Loss from which on the tunnel is degraded: 1% to 100%, of the last 20 probes.",
        ),
        may(
            "delay",
            Kind::AnyOf(&[DURATION, Kind::Words(&["off"])]),
            "off",
            "Mean round trip from which on the tunnel is degraded: 1ms to 5s.",
        ),
        may(
            "failures",
            Kind::Integer { min: 1, max: 10 },
            "3",
            "Probes in a row without an answer after which the tunnel is degraded.",
        ),
        may(
            "successes",
            Kind::Integer { min: 1, max: 100 },
            "5",
            "Answers in a row after which it is recovered; twice as many after each relapse within ten minutes, up to \
             eight times.",
        ),
    ],
};

/// `tunnels[].auth`.
pub static AUTH: Section = Section {
    name: "auth",
    secret: true,
    fields: &[
        may(
            "psk_file",
            PATH,
            "",
            "File with the pre-shared key, relative to this file; only its owner may have access to it.",
        ),
        may(
            "psk_files",
            Kind::List(&PATH),
            "",
            "The same, of several keys that are good at once while one is exchanged for another, the new one first. At most 4.",
        ),
        may(
            "psk",
            Kind::Text { is: "a key", pattern: "", example: "" },
            "",
            "The key itself; this file must then have mode 0600.",
        ),
    ],
};

/// `tunnels[].spd[]`.
pub static RULE: Section = Section {
    name: "an SPD rule",
    secret: false,
    fields: &[
        must("local", CIDR, "CIDR block inside the gateway's networks."),
        must("remote", Kind::List(&CIDR), "CIDR blocks outside them, around one of them, or inside one."),
    ],
};

/// `tunnels[].ike`.
pub static IKE: Section = Section {
    name: "ike",
    secret: false,
    fields: &[
        may("proposals", Kind::List(&PROPOSAL), "AEAD and AES-CBC with SHA-2", IKE_PROPOSALS),
        LEGACY,
        may("lifetime", DURATION, "24h", "60s to 7d."),
        may(
            "dpd",
            Kind::AnyOf(&[DURATION, Kind::Words(&["off"])]),
            "30s",
            "Silence after which the peer is asked: 5s to 1h.",
        ),
        may("fragmentation", Kind::Bool, "true", "IKE fragmentation (RFC 7383)."),
        may(
            "encap",
            Kind::Words(ENCAPS),
            "auto",
            "ESP in UDP: where there is NAT, or always; or IKE on UDP 4500 from the start, too.",
        ),
        may("retransmit", Kind::Section(&RETRANSMIT), "", "How long an answer is waited for."),
    ],
};
/// Values of `tunnels[].ike.encap`.
pub const ENCAPS: &[&str] = &["auto", "force", "from-start"];

/// `tunnels[].ike.retransmit`.
pub static RETRANSMIT: Section = Section {
    name: "retransmit",
    secret: false,
    fields: &[
        may("first", DURATION, "1s", "Wait before the first repetition; it doubles each time. 100ms to 60s."),
        may(
            "max",
            DURATION,
            "16s",
            "The wait grows no longer than this: 100ms to 2m, and not less than first.",
        ),
        may("tries", Kind::Integer { min: 1, max: 20 }, "6", "Repetitions before the peer counts as dead."),
    ],
};

/// `tunnels[].esp`.
pub static ESP: Section = Section {
    name: "esp",
    secret: false,
    fields: &[
        may(
            "proposals",
            Kind::List(&ESP_PROPOSAL),
            "AEAD and AES-CBC with SHA-2, with PFS",
            "Preferred first. Behind the group `ke1_mlkem768` makes the key exchange a hybrid one.",
        ),
        LEGACY,
        may("lifetime", DURATION, "1h", "180s to 7d."),
        may(
            "bytes",
            Kind::AnyOf(&[SIZE, UNLIMITED]),
            "1843200KB",
            "Volume after which new keys are made; from 2560KB.",
        ),
        may(
            "replay_window",
            Kind::Integer { min: 0, max: 4096 },
            "1024",
            "Anti-replay window in packets: 0 (off) or 64 to 4096 in steps of 32.",
        ),
        may(
            "dpd_action",
            Kind::Words(DPD_ACTIONS),
            "restart, or clear where start is not active",
            "What to do when the peer is dead.",
        ),
    ],
};
/// Values of `tunnels[].esp.dpd_action`.
pub const DPD_ACTIONS: &[&str] = &["clear", "restart"];
