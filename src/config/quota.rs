//! Quotas: how much one configuration may hold. There are none unless the file says so; the cloud's are a preset.

use std::collections::BTreeMap;

use super::decode::{Item, Spanned};
use super::error::{At, Sink, wrong};
use super::fields;
use super::raw::RawConfig;

/// At most so many; `None`: no quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    /// VPN gateways of the configuration.
    pub gateways: Option<usize>,
    /// Customer gateways of the configuration.
    pub customer_gateways: Option<usize>,
    /// Tunnels of a gateway.
    pub tunnels_per_gateway: Option<usize>,
    /// Tunnels to a customer gateway.
    pub tunnels_per_customer: Option<usize>,
    /// SPD rules of a tunnel.
    pub rules_per_tunnel: Option<usize>,
    /// Remote networks of an SPD rule.
    pub remotes_per_rule: Option<usize>,
}

/// What a cloud product allows.
const CLOUD: Quota = Quota {
    gateways: Some(10),
    customer_gateways: Some(20),
    tunnels_per_gateway: Some(20),
    tunnels_per_customer: Some(20),
    rules_per_tunnel: Some(10),
    remotes_per_rule: Some(50),
};

/// Words of `quota` and of `quota.preset`, in the order of `preset`.
pub const PRESETS: &[&str] = &["none", "cloud"];

/// No quota is larger, and no configuration comes near it.
pub const MAX: i64 = 1_000_000;

const fn preset(n: usize) -> Quota {
    if n == 1 { CLOUD } else { NONE }
}

const NONE: Quota = Quota {
    gateways: None,
    customer_gateways: None,
    tunnels_per_gateway: None,
    tunnels_per_customer: None,
    rules_per_tunnel: None,
    remotes_per_rule: None,
};

impl Quota {
    /// Each with its key in the file.
    pub const fn each(&self) -> [(&'static str, Option<usize>); 6] {
        [
            ("gateways", self.gateways),
            ("customer_gateways", self.customer_gateways),
            ("tunnels_per_gateway", self.tunnels_per_gateway),
            ("tunnels_per_customer", self.tunnels_per_customer),
            ("rules_per_tunnel", self.rules_per_tunnel),
            ("remotes_per_rule", self.remotes_per_rule),
        ]
    }
}

/// Reads `quota`: a preset by its name, or numbers that take the place of its numbers.
pub(super) fn read(item: &Item<'_>) -> Option<Quota> {
    if !item.is_map() {
        return item.word(PRESETS).map(preset);
    }
    let r = item.map(&fields::QUOTA)?;
    let mut quota = r.get("preset").and_then(|i| i.word(PRESETS)).map_or(NONE, preset);
    for (key, slot) in [
        ("gateways", &mut quota.gateways),
        ("customer_gateways", &mut quota.customer_gateways),
        ("tunnels_per_gateway", &mut quota.tunnels_per_gateway),
        ("tunnels_per_customer", &mut quota.tunnels_per_customer),
        ("rules_per_tunnel", &mut quota.rules_per_tunnel),
        ("remotes_per_rule", &mut quota.remotes_per_rule),
    ] {
        let Some(item) = r.get(key) else { continue };
        if item.is_word("unlimited") {
            *slot = None;
        } else if let Some(n) = item.integer(0, MAX).and_then(|n| usize::try_from(n).ok()) {
            *slot = Some(n);
        }
    }
    Some(quota)
}

/// Notes whatever is beyond a quota, where the first one too many stands.
pub(super) fn check(raw: &RawConfig, sink: &Sink) {
    let quota = &raw.quota;
    let names = |named: &mut dyn Iterator<Item = &Option<Spanned<String>>>| -> Vec<At> {
        named.flatten().map(|name| name.at.clone()).collect()
    };
    let gateways = names(&mut raw.gateways.good.iter().map(|g| &g.name));
    refuse(sink, "gateways", quota.gateways, &gateways, "the configuration has", "gateways");
    let customers = names(&mut raw.customers.good.iter().map(|c| &c.name));
    refuse(
        sink,
        "customer_gateways",
        quota.customer_gateways,
        &customers,
        "the configuration has",
        "customer gateways",
    );
    let mut by_gateway: BTreeMap<&str, Vec<At>> = BTreeMap::new();
    let mut by_customer: BTreeMap<&str, Vec<At>> = BTreeMap::new();
    for t in &raw.tunnels.good {
        for (name, of) in [(&t.gateway, &mut by_gateway), (&t.customer, &mut by_customer)] {
            if let Some(name) = name {
                of.entry(&name.value).or_default().push(name.at.clone());
            }
        }
        let rules: Vec<At> = t.rules.good.iter().map(|r| r.at.clone()).collect();
        refuse(sink, "rules_per_tunnel", quota.rules_per_tunnel, &rules, "the tunnel has", "SPD rules");
        for rule in &t.rules.good {
            let remotes: Vec<At> = rule.remote.good.iter().map(|r| r.at.clone()).collect();
            let key = "remotes_per_rule";
            refuse(sink, key, quota.remotes_per_rule, &remotes, "the rule has", "remote networks");
        }
    }
    for (name, tunnels) in by_gateway {
        let who = format!("gateway \"{name}\" has");
        refuse(sink, "tunnels_per_gateway", quota.tunnels_per_gateway, &tunnels, &who, "tunnels");
    }
    for (name, tunnels) in by_customer {
        let who = format!("customer gateway \"{name}\" has");
        let key = "tunnels_per_customer";
        refuse(sink, key, quota.tunnels_per_customer, &tunnels, &who, "tunnels");
    }
}

fn refuse(sink: &Sink, key: &str, limit: Option<usize>, all: &[At], who: &str, what: &str) {
    let Some((limit, first_beyond)) = limit.and_then(|limit| Some((limit, all.get(limit)?))) else { return };
    let told = format!("{who} {} {what}, and quota {key} is {limit}", all.len());
    sink.error(first_beyond, wrong(told, format!("remove some, or raise quota.{key}")));
}
