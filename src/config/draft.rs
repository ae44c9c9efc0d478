//! A configuration to be: what `import` and `export-peer` know of gateways and tunnels, and its YAML.
//!
//! It holds no checks; whoever makes a draft reads its text again with [`super::check_text`].

use std::fmt::Write;

use zeroize::Zeroizing;

use super::identity::{Identity, RemoteId};
use super::model::{
    DpdAction, Encap, EspParams, GatewayAddress, IkeParams, PeerAddress, Retransmit, SpdRule, Start,
};
use super::units::{show_duration, show_size};
use cygnet_model::IpRange;
use cygnet_model::tunnel::Mark;

/// A configuration without a daemon's section.
#[derive(Debug, Default)]
pub struct Draft {
    /// Lines above it, without `#`.
    pub head: Vec<String>,
    /// Gateways.
    pub gateways: Vec<DraftGateway>,
    /// Customer gateways: name, address, identity.
    pub customers: Vec<(String, PeerAddress, Option<RemoteId>)>,
    /// Tunnels.
    pub tunnels: Vec<DraftTunnel>,
}

/// A gateway.
#[derive(Debug)]
pub struct DraftGateway {
    /// Its name.
    pub name: String,
    /// Its outer address.
    pub address: GatewayAddress,
    /// Its networks.
    pub networks: Vec<IpRange>,
}

/// A tunnel.
#[derive(Clone, Debug)]
pub struct DraftTunnel {
    /// Its name.
    pub name: String,
    /// Name of a gateway.
    pub gateway: String,
    /// Name of a customer gateway.
    pub customer: String,
    /// Who begins.
    pub start: Start,
    /// Where the key is.
    pub auth: DraftAuth,
    /// Our identity, where it is not the gateway's address.
    pub local_id: Option<Identity>,
    /// The peer's identity, where it is not the customer gateway's address.
    pub remote_id: Option<RemoteId>,
    /// Its mark.
    pub mark: Option<Mark>,
    /// Its weight among tunnels with the same rules.
    pub weight: Option<u8>,
    /// SPD rules.
    pub rules: Vec<SpdRule>,
    /// The IKE SA.
    pub ike: IkeParams,
    /// The ESP SAs.
    pub esp: EspParams,
}

/// Where a key is.
#[derive(Clone, Debug)]
pub enum DraftAuth {
    /// In a file of this name.
    File(String),
    /// In the text itself: a coded key, or letters and digits.
    Inline(Zeroizing<String>),
}

/// What to do with values that are the defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Defaults {
    /// Leave them out.
    Omit,
    /// Write algorithms and lifetimes all the same: two ends shall agree on them whatever a later version's defaults are.
    Pin,
}

/// Text as YAML takes it whatever is in it: JSON is YAML.
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    // Numbers, booleans and null would be something else without quotes.
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    let word =
        ["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(&text.to_lowercase().as_str());
    let dotted = text.parse::<std::net::Ipv4Addr>().is_ok() || is_v4_block(text);
    if (first && !word && text.chars().all(plain)) || dotted {
        return text.to_owned();
    }
    serde_json::Value::from(text).to_string()
}

fn is_v4_block(text: &str) -> bool {
    text.split_once('/')
        .is_some_and(|(a, l)| a.parse::<std::net::Ipv4Addr>().is_ok() && l.parse::<u8>().is_ok())
}

impl Draft {
    /// The YAML of it.
    pub fn yaml(&self, defaults: Defaults) -> Zeroizing<String> {
        // Room for all of it at once: a growing text would leave copies of keys behind.
        let mut out = Zeroizing::new(String::with_capacity(4096 + 4096 * self.tunnels.len()));
        for line in &self.head {
            line_of(&mut out, format_args!("{}", format!("# {line}").trim_end()));
        }
        line_of(&mut out, format_args!("gateways:"));
        for g in &self.gateways {
            let address = match &g.address {
                GatewayAddress::Ip(ip) => quote(&ip.to_string()),
                GatewayAddress::Interface(name) => format!("{{ interface: {} }}", quote(name)),
            };
            let name = quote(&g.name);
            line_of(
                &mut out,
                format_args!("  - {{ name: {name}, address: {address}, networks: {} }}", blocks(&g.networks)),
            );
        }
        line_of(&mut out, format_args!("customer_gateways:"));
        for (name, address, id) in &self.customers {
            let id = id.as_ref().map_or_else(String::new, |id| format!(", id: {}", quote(&id.to_string())));
            let (name, address) = (quote(name), quote(&address.to_string()));
            line_of(&mut out, format_args!("  - {{ name: {name}, address: {address}{id} }}"));
        }
        line_of(&mut out, format_args!("tunnels:"));
        for tunnel in &self.tunnels {
            tunnel.write(&mut out, defaults);
        }
        out
    }
}

impl DraftTunnel {
    fn write(&self, out: &mut String, defaults: Defaults) {
        line_of(out, format_args!("  - name: {}", quote(&self.name)));
        line_of(out, format_args!("    gateway: {}", quote(&self.gateway)));
        line_of(out, format_args!("    customer_gateway: {}", quote(&self.customer)));
        line_of(out, format_args!("    start: {}", self.start.name()));
        match &self.auth {
            DraftAuth::File(name) => {
                line_of(out, format_args!("    auth: {{ psk_file: {} }}", quote(name)));
            }
            DraftAuth::Inline(key) => line_of(out, format_args!("    auth: {{ psk: \"{}\" }}", key.as_str())),
        }
        if let Some(id) = &self.local_id {
            line_of(out, format_args!("    local_id: {}", quote(&id.to_string())));
        }
        if let Some(id) = &self.remote_id {
            line_of(out, format_args!("    remote_id: {}", quote(&id.to_string())));
        }
        if let Some(m) = self.mark {
            line_of(out, format_args!("    mark: {:#x}/{:#x}", m.value, m.mask));
        }
        if let Some(weight) = self.weight {
            line_of(out, format_args!("    weight: {weight}"));
        }
        let internet = |r: &IpRange| r.prefix_len() == Some(0);
        if self.rules.iter().any(|r| internet(&r.local) || r.remote.iter().any(internet)) {
            line_of(out, format_args!("    allow_internet: true"));
        }
        line_of(out, format_args!("    spd:"));
        for rule in &self.rules {
            let local = quote(&rule.local.to_string());
            line_of(out, format_args!("      - {{ local: {local}, remote: {} }}", blocks(&rule.remote)));
        }
        section(out, "ike", &ike(&self.ike, defaults));
        section(out, "esp", &esp(&self.esp, self.start, defaults));
    }
}

fn line_of(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{line}");
}

fn blocks(list: &[IpRange]) -> String {
    let all: Vec<String> = list.iter().map(|b| quote(&b.to_string())).collect();
    format!("[{}]", all.join(", "))
}

fn section(out: &mut String, key: &str, lines: &[String]) {
    if !lines.is_empty() {
        line_of(out, format_args!("    {key}:"));
        lines.iter().for_each(|line| line_of(out, format_args!("      {line}")));
    }
}

fn ike(p: &IkeParams, defaults: Defaults) -> Vec<String> {
    let default = IkeParams::default();
    let pin = defaults == Defaults::Pin;
    let mut lines = Vec::new();
    if pin || p.proposals != default.proposals {
        lines.push(proposals(p.proposals.iter().map(ToString::to_string)));
    }
    if p.proposals.iter().any(|p| !p.legacy().is_empty()) {
        lines.push("legacy: true".into());
    }
    if pin || p.lifetime != default.lifetime {
        lines.push(format!("lifetime: {}", show_duration(p.lifetime)));
    }
    if p.dpd != default.dpd {
        lines.push(format!("dpd: {}", p.dpd.map_or_else(|| "off".into(), show_duration)));
    }
    if !p.fragmentation {
        lines.push("fragmentation: false".into());
    }
    if p.encap != Encap::Auto {
        lines.push(format!("encap: {}", p.encap.name()));
    }
    if p.retransmit != Retransmit::default() {
        let r = p.retransmit;
        let (first, max) = (show_duration(r.first), show_duration(r.max));
        lines.push(format!("retransmit: {{ first: {first}, max: {max}, tries: {} }}", r.tries));
    }
    lines
}

fn esp(p: &EspParams, start: Start, defaults: Defaults) -> Vec<String> {
    let default = EspParams::default();
    let pin = defaults == Defaults::Pin;
    let mut lines = Vec::new();
    if pin || p.proposals != default.proposals {
        lines.push(proposals(p.proposals.iter().map(ToString::to_string)));
    }
    if p.proposals.iter().any(|p| !p.legacy().is_empty()) {
        lines.push("legacy: true".into());
    }
    if pin || p.lifetime != default.lifetime {
        lines.push(format!("lifetime: {}", show_duration(p.lifetime)));
    }
    if p.bytes != default.bytes {
        lines.push(format!("bytes: {}", p.bytes.map_or_else(|| "unlimited".into(), show_size)));
    }
    if p.replay_window != default.replay_window {
        lines.push(format!("replay_window: {}", p.replay_window));
    }
    let usual = if start == Start::Active { DpdAction::Restart } else { DpdAction::Clear };
    if p.dpd_action != usual {
        let word = if p.dpd_action == DpdAction::Clear { "clear" } else { "restart" };
        lines.push(format!("dpd_action: {word}"));
    }
    lines
}

fn proposals(list: impl Iterator<Item = String>) -> String {
    format!("proposals: [{}]", list.collect::<Vec<_>>().join(", "))
}

/// The blocks of `all` that no other covers, in order: the fewest of them that hold every one.
pub fn outermost(all: impl IntoIterator<Item = IpRange>) -> Vec<IpRange> {
    let mut out: Vec<IpRange> = Vec::new();
    for block in all {
        if !out.iter().any(|o| o.covers(&block)) {
            out.retain(|o| !block.covers(o));
            out.push(block);
        }
    }
    out
}
