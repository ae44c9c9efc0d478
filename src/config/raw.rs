//! The sections of the file with every value typed, but nothing compared with anything else yet.
//!
//! `None` and short lists mean that something was wrong there, which is already noted; checks that would only repeat
//! it look at `complete` first.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use cygnet_model::IpRange;
use cygnet_model::proposal::{EspProposal, IkeProposal, Permit, ProposalError};
use cygnet_model::tunnel::{Mark, Source};
use zeroize::Zeroizing;

use super::alerts::{self, RawAlerts};
use super::bandwidth::{self, Bandwidth, Counts};
use super::console::{self, RawConsole};
use super::decode::{Item, Reader, Spanned};
use super::error::{At, Sink, Wrong, quoted, wrong};
use super::fields;
use super::health_check::{self, RawHealthCheck};
use super::identity::{self, Identity, RemoteId};
use super::limit;
use super::model::{
    Alerts, Daemon, DpdAction, Encap, EspParams, GatewayAddress, Guards, IkeParams, Limit, PeerAddress,
    PlaneChoice, Retransmit, Start,
};
use super::preset::{self, Preset};
use super::quota::{self, Quota};
use super::units;

/// What was readable of a list.
#[derive(Debug)]
pub struct Many<T> {
    /// The good ones.
    pub good: Vec<T>,
    /// Whether there were no others.
    pub complete: bool,
    /// Where the list stands.
    pub at: At,
}

impl<T> Default for Many<T> {
    fn default() -> Self {
        Self { good: Vec::new(), complete: true, at: At::default() }
    }
}

/// The whole file.
#[derive(Debug)]
pub struct RawConfig {
    pub daemon: Daemon,
    pub console: Option<RawConsole>,
    /// `daemon.alerts`.
    pub alerts: RawAlerts,
    pub gateways: Many<RawGateway>,
    pub customers: Many<RawCustomer>,
    pub tunnels: Many<RawTunnel>,
    pub quota: Quota,
}

/// `gateways[]`.
#[derive(Debug)]
pub struct RawGateway {
    pub name: Option<Spanned<String>>,
    pub addresses: Many<Spanned<GatewayAddress>>,
    pub id: Option<Spanned<Identity>>,
    pub networks: Many<Spanned<IpRange>>,
    pub bandwidth: Bandwidth,
    pub limits: Vec<(Spanned<IpAddr>, Limit)>,
}

/// `customer_gateways[]`.
#[derive(Debug)]
pub struct RawCustomer {
    pub name: Option<Spanned<String>>,
    pub address: Option<Spanned<PeerAddress>>,
    pub id: Option<Spanned<RemoteId>>,
    pub preset: Option<&'static Preset>,
}

/// `tunnels[]`.
#[derive(Debug)]
pub struct RawTunnel {
    pub at: At,
    pub name: Option<Spanned<String>>,
    pub gateway: Option<Spanned<String>>,
    pub customer: Option<Spanned<String>>,
    pub start: Start,
    pub auth: Option<RawAuth>,
    pub local_id: Option<Spanned<Identity>>,
    pub remote_id: Option<Spanned<RemoteId>>,
    pub rules: Many<RawRule>,
    pub ike: IkeParams,
    pub esp: EspParams,
    pub mark: Option<Mark>,
    pub weight: Option<u8>,
    pub health_check: Option<RawHealthCheck>,
    pub allow_internet: bool,
    pub bypass: RawBypass,
    pub source: Source,
    pub preset: Option<&'static Preset>,
    /// The preset that counts, its own or its customer gateway's.
    pub in_effect: Option<&'static Preset>,
    /// With the place of `counts`.
    pub bandwidth: (Bandwidth, At),
}

/// `tunnels[].bypass`.
#[derive(Debug)]
pub struct RawBypass {
    /// Whether attached networks are let by.
    pub attached: bool,
    /// The networks listed.
    pub networks: Vec<Spanned<IpRange>>,
}

impl Default for RawBypass {
    fn default() -> Self {
        Self { attached: true, networks: Vec::new() }
    }
}

/// `tunnels[].auth`, of which one form was given; or `daemon.console.token_file`.
#[derive(Debug)]
pub enum RawAuth {
    /// One or more, preferred first.
    Files(Spanned<PathBuf>, Vec<Spanned<PathBuf>>),
    /// The file with the console's token.
    Token(Spanned<PathBuf>),
    Inline {
        key: Zeroizing<String>,
        at: At,
    },
}

/// `tunnels[].spd[]`.
#[derive(Debug)]
pub struct RawRule {
    pub at: At,
    pub local: Option<Spanned<IpRange>>,
    pub remote: Many<Spanned<IpRange>>,
}

impl RawRule {
    /// Whether a remote block contains the local one.
    pub fn around_local(&self, remote: &Spanned<IpRange>) -> bool {
        self.local.as_ref().is_some_and(|local| remote.value.covers(&local.value))
    }
}

impl<T> Many<T> {
    /// Nothing readable, which is already noted.
    fn unreadable() -> Self {
        Self { complete: false, ..Self::default() }
    }

    /// Notes an error if the list was written, but with nothing in it.
    pub fn refuse_empty(&self, sink: &Sink, what: &str, fix: &str) {
        if self.good.is_empty() && self.complete {
            sink.error(&self.at, wrong(what, fix));
        }
    }
}

/// Reads the items of a list, those that are readable.
fn many<T>(
    reader: &Reader<'_>,
    key: &'static str,
    of: &str,
    read: impl Fn(&Item<'_>) -> Option<T>,
) -> Many<T> {
    let Some(item) = reader.get(key) else {
        return if reader.requires(key) { Many::unreadable() } else { Many::default() };
    };
    let Some(items) = item.list(of) else { return Many::unreadable() };
    let good: Vec<T> = items.iter().filter_map(read).collect();
    Many { complete: good.len() == items.len(), good, at: item.at() }
}

/// The whole document.
pub fn config(root: &Item<'_>, sink: &Sink) -> Option<RawConfig> {
    let r = root.map(&fields::ROOT)?;
    let customers = many(&r, "customer_gateways", "customer gateways", customer);
    let presets: BTreeMap<&str, &'static Preset> = (customers.good.iter())
        .filter_map(|c: &RawCustomer| Some((c.name.as_ref()?.value.as_str(), c.preset?)))
        .collect();
    let tunnels = many(&r, "tunnels", "tunnels", |i| tunnel(i, &presets));
    let section = r.get("daemon").and_then(|i| i.map(&fields::DAEMON));
    Some(RawConfig {
        daemon: daemon(section.as_ref(), sink),
        console: section.as_ref().and_then(|r| console::read(&r.get("console")?, sink)),
        alerts: section
            .as_ref()
            .and_then(|r| r.get("alerts"))
            .map_or_else(RawAlerts::default, |i| alerts::read(&i)),
        gateways: many(&r, "gateways", "gateways", gateway),
        tunnels,
        customers,
        quota: r.get("quota").and_then(|i| quota::read(&i)).unwrap_or_default(),
    })
}

fn daemon(section: Option<&Reader<'_>>, sink: &Sink) -> Daemon {
    let mut d = Daemon {
        control_socket: "/run/cygnet/control.sock".into(),
        admin_group: None,
        state_dir: "/var/lib/cygnet".into(),
        data_plane: PlaneChoice::Auto,
        guards: Guards::Keep,
        metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9180))),
        console: None,
        alerts: Alerts::default(),
    };
    let Some(r) = section else { return d };
    if let Some(p) = r.get("control_socket").and_then(|i| i.parse("a path", socket_path)) {
        d.control_socket = p.value;
    }
    d.admin_group = r.get("admin_group").and_then(|i| i.parse("a group", group_name)).map(|p| p.value);
    if let Some(p) = r.get("state_dir").and_then(|i| i.parse("a path", absolute_path)) {
        d.state_dir = p.value;
    }
    if let Some(n) = r.get("data_plane").and_then(|i| i.word(fields::PLANES)) {
        d.data_plane = [PlaneChoice::Auto, PlaneChoice::Kernel, PlaneChoice::Userspace][n];
    }
    if let Some(n) = r.get("guards").and_then(|i| i.word(fields::GUARDS)) {
        d.guards = [Guards::Keep, Guards::Release][n];
    }
    let metrics = r.get("metrics").and_then(|i| i.map(&fields::METRICS));
    if let Some(listen) = metrics.and_then(|m| listen(&m, sink)) {
        d.metrics = listen;
    }
    d
}

/// The longest name of a group that `groupadd` makes.
const MAX_GROUP_NAME: usize = 32;

fn group_name(text: &str) -> Result<String, Wrong> {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let rest = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.len() <= MAX_GROUP_NAME && text.starts_with(first) && text.chars().all(rest) {
        Ok(text.to_owned())
    } else {
        Err(wrong(format!("{} is no name of a group", quoted(text)), "name one that getent group lists"))
    }
}

fn absolute_path(text: &str) -> Result<PathBuf, Wrong> {
    if text.starts_with('/') && !text.contains('\0') {
        Ok(PathBuf::from(text))
    } else {
        Err(wrong(format!("{} is not an absolute path", quoted(text)), "begin with \"/\""))
    }
}

/// The kernel keeps 108 octets for a socket's path, the last one zero.
const MAX_SOCKET_PATH: usize = 107;

fn socket_path(text: &str) -> Result<PathBuf, Wrong> {
    if text.len() > MAX_SOCKET_PATH {
        return Err(wrong(
            "the path is too long for a unix socket",
            format!("use at most {MAX_SOCKET_PATH} characters"),
        ));
    }
    absolute_path(text)
}

/// Where a section of the daemon has it listen, if it says so: the outer `None` is the default.
pub fn listen(section: &Reader<'_>, sink: &Sink) -> Option<Option<SocketAddr>> {
    let item = section.get("listen")?;
    let listen = item.parse("an address and port, as in 127.0.0.1:9180", listen_address)?;
    if listen.value.is_some_and(|a| !a.ip().is_loopback()) {
        let fix = "whoever reaches it can read it; listen on 127.0.0.1 unless a firewall guards it";
        sink.warning(&listen.at, wrong("other hosts can reach this address", fix));
    }
    Some(listen.value)
}

/// The path of a file with a key.
pub fn key_path(item: &Item<'_>) -> Option<Spanned<PathBuf>> {
    item.parse("the path of a file", |t| {
        if t.is_empty() || t.contains('\0') {
            return Err(wrong("not a path", "write the path of the file with the key"));
        }
        Ok(PathBuf::from(t))
    })
}

fn listen_address(text: &str) -> Result<Option<SocketAddr>, Wrong> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let fix = "write an IP address and port, as in 127.0.0.1:9180 or [::1]:9180, or off";
        wrong(format!("{} is not an address to listen on", quoted(text)), fix)
    })
}

fn name(r: &Reader<'_>) -> Option<Spanned<String>> {
    r.get("name")?.parse("a name", identity::object_name)
}

fn id(r: &Reader<'_>, key: &'static str) -> Option<Spanned<Identity>> {
    r.get(key)?.parse("an identity", identity::identity)
}

fn remote_id(r: &Reader<'_>, key: &'static str) -> Option<Spanned<RemoteId>> {
    r.get(key)?.parse("an identity, or any", identity::remote_id)
}

fn gateway(item: &Item<'_>) -> Option<RawGateway> {
    let r = item.map(&fields::GATEWAY)?;
    let addresses = match r.get("address") {
        Some(i) if i.is_list() => many(&r, "address", "addresses", gateway_address),
        Some(i) => {
            let good: Vec<_> = gateway_address(&i).into_iter().collect();
            Many { complete: !good.is_empty(), good, at: i.at() }
        }
        None => Many::unreadable(),
    };
    let limits = many(&r, "limits", "limits", |i| {
        let l = i.map(&fields::LIMIT)?;
        let ip = l.get("ip").and_then(|i| i.parse("an IP address", limit::address));
        let rate = l.get("rate").and_then(|i| i.parse("a rate, block or unlimited", limit::parse));
        Some((ip?, rate?.value))
    });
    Some(RawGateway {
        name: name(&r),
        addresses,
        id: id(&r, "id"),
        networks: many(&r, "networks", "CIDR blocks", |i| i.parse("a CIDR block", identity::cidr)),
        bandwidth: bandwidth(&r, Bandwidth::GATEWAY).map_or(Bandwidth::GATEWAY, |(b, _)| b),
        limits: limits.good,
    })
}

/// `bandwidth` of a gateway or a tunnel, and where it says what it counts.
fn bandwidth(r: &Reader<'_>, default: Bandwidth) -> Option<(Bandwidth, At)> {
    const RATE: &str = "a rate, as in 100mbit, or unlimited";
    let item = r.get("bandwidth")?;
    if !item.is_map() {
        let out = item.parse(RATE, bandwidth::level)?;
        return Some((Bandwidth { out: out.value, ..default }, out.at));
    }
    let map = item.map(&fields::BANDWIDTH)?;
    let level = |key| map.get(key).and_then(|i| i.parse(RATE, bandwidth::level)).and_then(|l| l.value);
    let counts = map.get("counts");
    let at = counts.as_ref().map_or_else(|| item.at(), Item::at);
    let counts = counts.and_then(|i| i.word(fields::COUNTS));
    let counts = counts.map_or(default.counts, |word| [Counts::Wire, Counts::Payload][word]);
    Some((Bandwidth { out: level("out"), inward: level("in"), counts }, at))
}

fn gateway_address(item: &Item<'_>) -> Option<Spanned<GatewayAddress>> {
    if item.is_map() {
        let interface = item.map(&fields::INTERFACE)?.get("interface")?;
        return interface
            .parse("an interface's name", |t| identity::interface_name(t).map(GatewayAddress::Interface));
    }
    item.parse("an IP address or { interface: NAME }", |t| identity::unicast(t).map(GatewayAddress::Ip))
}

fn customer(item: &Item<'_>) -> Option<RawCustomer> {
    let r = item.map(&fields::CUSTOMER)?;
    Some(RawCustomer {
        name: name(&r),
        address: r.get("address").and_then(|i| i.parse("an IP address or a DNS name", peer_address)),
        id: remote_id(&r, "id"),
        preset: preset(&r),
    })
}

fn preset(r: &Reader<'_>) -> Option<&'static Preset> {
    let item = r.get("preset")?;
    preset::PRESETS.get(item.word(preset::NAMES)?)
}

fn peer_address(text: &str) -> Result<PeerAddress, Wrong> {
    let Ok(addr) = text.parse::<IpAddr>() else {
        return identity::host_name(text).map(PeerAddress::Dns);
    };
    match identity::forbidden_peer(addr) {
        Some(why) => {
            Err(wrong(format!("{addr} is {why}"), "write the public address of the customer gateway"))
        }
        None => Ok(PeerAddress::Ip(addr)),
    }
}

/// `presets`: those of customer gateways, by their names.
fn tunnel(item: &Item<'_>, presets: &BTreeMap<&str, &'static Preset>) -> Option<RawTunnel> {
    let r = item.map(&fields::TUNNEL)?;
    let reference = |key| r.get(key).and_then(|i: Item<'_>| i.parse("a name", identity::object_name));
    let customer = reference("customer_gateway");
    let own = preset(&r);
    let in_effect = own.or_else(|| presets.get(customer.as_ref()?.value.as_str()).copied());
    let start = r.get("start").and_then(|i| i.word(fields::STARTS)).unwrap_or(0);
    let start = [Start::Active, Start::Passive, Start::OnDemand][start];
    Some(RawTunnel {
        at: item.at(),
        name: name(&r),
        gateway: reference("gateway"),
        customer,
        start,
        auth: r.get("auth").and_then(|i| auth(&i)),
        local_id: id(&r, "local_id"),
        remote_id: remote_id(&r, "remote_id"),
        rules: many(&r, "spd", "SPD rules", rule),
        ike: ike(r.get("ike"), in_effect.map_or_else(IkeParams::default, Preset::ike)),
        esp: esp(r.get("esp"), in_effect.map_or_else(EspParams::default, Preset::esp), start),
        mark: r.get("mark").and_then(|i| i.parse("a mark, as in 0x10/0xff", mark)).map(|m| m.value),
        weight: r.get("weight").and_then(|i| i.integer(0, 255)).and_then(|n| u8::try_from(n).ok()),
        health_check: r.get("health_check").and_then(|i| health_check::read(&i)),
        allow_internet: r.get("allow_internet").and_then(|i| i.bool()).unwrap_or(false),
        bypass: r.get("bypass").map_or_else(RawBypass::default, |i| bypass(&i)),
        source: r
            .get("source")
            .and_then(|i| i.parse("auto, none or an address", source))
            .map_or(Source::Auto, |s| s.value),
        preset: own,
        in_effect,
        bandwidth: bandwidth(&r, Bandwidth::TUNNEL).unwrap_or_else(|| (Bandwidth::TUNNEL, item.at())),
    })
}

/// A word, or a list of CIDR blocks among which `attached` may stand.
fn bypass(item: &Item<'_>) -> RawBypass {
    if !item.is_list() {
        let attached = item.word(fields::BYPASSES).is_none_or(|word| word == 0);
        return RawBypass { attached, networks: Vec::new() };
    }
    let mut out = RawBypass { attached: false, networks: Vec::new() };
    for entry in item.list("CIDR blocks").unwrap_or_default() {
        let Some(text) = entry.text("attached or a CIDR block") else { continue };
        match text {
            "attached" => out.attached = true,
            "none" => {
                entry.error(wrong("none does not stand in a list", "write bypass: none, or an empty list"))
            }
            _ => out.networks.extend(entry.parse("attached or a CIDR block", identity::cidr)),
        }
    }
    out
}

/// Keys of a tunnel that are good at once.
const MAX_PSKS: usize = 4;

fn auth(item: &Item<'_>) -> Option<RawAuth> {
    let r = item.map(&fields::AUTH)?;
    let (file, files, key) = (r.get("psk_file"), r.get("psk_files"), r.get("psk"));
    match (file, files, key) {
        (Some(file), None, None) => key_path(&file).map(|first| RawAuth::Files(first, Vec::new())),
        (None, Some(files), None) => {
            let all = files.list("paths of files")?;
            if all.is_empty() || all.len() > MAX_PSKS {
                let fix = "name the file with the new key, then that with the old one";
                files.error(wrong(format!("1 to {MAX_PSKS} files are needed"), fix));
                return None;
            }
            let good: Vec<Spanned<PathBuf>> = all.iter().filter_map(key_path).collect();
            let complete = good.len() == all.len();
            let mut good = good.into_iter();
            let first = good.next().filter(|_| complete)?;
            Some(RawAuth::Files(first, good.collect()))
        }
        (None, None, Some(key)) => {
            Some(RawAuth::Inline { key: Zeroizing::new(key.text("the key")?.to_owned()), at: key.at() })
        }
        (Some(_), None, Some(key)) => {
            key.error(wrong("both psk and psk_file are given", "keep one of them"));
            None
        }
        (_, Some(files), _) => {
            files.error(wrong(
                "psk_files is given beside another key",
                "keep one of psk, psk_file and psk_files",
            ));
            None
        }
        (None, None, None) => {
            item.error(wrong("no key is given", "add psk_file: and the path of a file with the key"));
            None
        }
    }
}

fn rule(item: &Item<'_>) -> Option<RawRule> {
    let r = item.map(&fields::RULE)?;
    let block = |i: &Item<'_>| i.parse("a CIDR block", identity::cidr);
    Some(RawRule {
        at: item.at(),
        local: r.get("local").and_then(|i| block(&i)),
        remote: many(&r, "remote", "CIDR blocks", block),
    })
}

fn source(text: &str) -> Result<Source, Wrong> {
    match text {
        "auto" => Ok(Source::Auto),
        "none" => Ok(Source::None),
        address => address.parse().map(Source::Address).map_err(|_| {
            wrong(
                format!("{} is no source", quoted(text)),
                "write auto, none, or an address of this host".to_owned(),
            )
        }),
    }
}

fn mark(text: &str) -> Result<Mark, Wrong> {
    let number = |t: &str| match t.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => t.parse().ok(),
    };
    let (value, mask) = text.split_once('/').map_or((text, None), |(v, m)| (v, Some(m)));
    let fix = "write VALUE or VALUE/MASK, as in 0x10/0xff";
    match (number(value), mask.map_or(Some(u32::MAX), number)) {
        (Some(value), Some(mask)) if value & !mask == 0 && mask != 0 => Ok(Mark { value, mask }),
        (Some(_), Some(_)) => Err(wrong(format!("{} has bits outside its mask", quoted(text)), fix)),
        _ => Err(wrong(format!("{} is not a mark", quoted(text)), fix)),
    }
}

/// A proposal of either kind.
trait Proposal: Sized + PartialEq {
    fn read(text: &str, permit: Permit) -> Result<Self, ProposalError>;
    fn legacy(&self) -> Vec<&'static str>;
}

impl Proposal for IkeProposal {
    fn read(text: &str, permit: Permit) -> Result<Self, ProposalError> {
        Self::read(text, permit)
    }

    fn legacy(&self) -> Vec<&'static str> {
        Self::legacy(self)
    }
}

impl Proposal for EspProposal {
    fn read(text: &str, permit: Permit) -> Result<Self, ProposalError> {
        Self::read(text, permit)
    }

    fn legacy(&self) -> Vec<&'static str> {
        Self::legacy(self)
    }
}

/// The proposals of one section: parsed, none twice, and not an empty list. Legacy algorithms that are permitted are warned
/// of, and so is a permission that nothing uses.
fn proposals<P: Proposal>(r: &Reader<'_>, default: Vec<P>) -> Vec<P> {
    let permit = r.get("legacy").filter(|i| i.bool() == Some(true));
    let out = listed(r, default, if permit.is_some() { Permit::Legacy } else { Permit::Sound });
    if let Some(item) = permit
        && out.iter().all(|p| p.legacy().is_empty())
    {
        item.warning(wrong("no proposal names a legacy algorithm", "drop the key"));
    }
    out
}

fn listed<P: Proposal>(r: &Reader<'_>, default: Vec<P>, permit: Permit) -> Vec<P> {
    let Some(item) = r.get("proposals") else { return default };
    let Some(items) = item.list("proposals") else { return default };
    if items.is_empty() {
        item.error(wrong("the list is empty", "name a proposal, or drop the key for the defaults"));
    }
    let mut out: Vec<P> = Vec::new();
    for i in items {
        let read = i.parse("a proposal, as in aes256gcm16-prfsha384-x25519", |text| {
            if text.len() > 1000 {
                return Err(wrong("the proposal is too long", "write fewer algorithms"));
            }
            let proposal = P::read(text, permit).map_err(|e| {
                // The model's messages carry the advice behind a semicolon.
                let (what, fix) = { e.to_string() }.split_once("; ").map_or_else(
                    || (e.to_string(), String::new()),
                    |(what, fix)| (what.to_owned(), fix.to_owned()),
                );
                wrong(format!("{}: {what}", quoted(text)), fix)
            })?;
            if out.contains(&proposal) {
                return Err(wrong(format!("{} stands twice in the list", quoted(text)), "keep one"));
            }
            Ok(proposal)
        });
        let legacy = read.as_ref().map(|p| p.value.legacy()).unwrap_or_default();
        if !legacy.is_empty() {
            let what = format!("legacy: {} can be broken with effort", legacy.join(", "));
            let fix = "keep it for a peer that has nothing better, as long as that takes; aes256gcm16-prfsha384-x25519 is better";
            i.warning(wrong(what, fix));
        }
        out.extend(read.map(|p| p.value));
    }
    out
}

const SECOND: Duration = Duration::from_secs(1);
const WEEK: Duration = Duration::from_secs(604_800);

fn duration(r: &Reader<'_>, key: &'static str, min: Duration, max: Duration) -> Option<Duration> {
    r.get(key)?.parse("a duration, as in 30s", units::duration_within(min, max)).map(|d| d.value)
}

fn ike(item: Option<Item<'_>>, default: IkeParams) -> IkeParams {
    let Some(r) = item.and_then(|i| i.map(&fields::IKE)) else { return default };
    let dpd = r.get("dpd").and_then(|i| {
        i.parse("a duration, as in 30s, or off", |t| match t {
            "off" => Ok(None),
            _ => units::duration_within(SECOND * 5, SECOND * 3600)(t).map(Some),
        })
    });
    let encap = r.get("encap").and_then(|i| i.word(fields::ENCAPS)).unwrap_or(0);
    IkeParams {
        lifetime: duration(&r, "lifetime", SECOND * 60, WEEK).unwrap_or(default.lifetime),
        dpd: dpd.map_or(default.dpd, |d| d.value),
        fragmentation: r.get("fragmentation").and_then(|i| i.bool()).unwrap_or(true),
        encap: [Encap::Auto, Encap::Force, Encap::FromStart][encap],
        retransmit: retransmit(r.get("retransmit")),
        proposals: proposals(&r, default.proposals),
    }
}

fn retransmit(item: Option<Item<'_>>) -> Retransmit {
    let default = Retransmit::default();
    let Some(r) = item.and_then(|i| i.map(&fields::RETRANSMIT)) else { return default };
    let tenth = Duration::from_millis(100);
    let first = duration(&r, "first", tenth, SECOND * 60).unwrap_or(default.first);
    let max = duration(&r, "max", tenth, SECOND * 120).unwrap_or(default.max.max(first));
    if max < first
        && let Some(i) = r.get("max")
    {
        i.error(wrong(
            "max is shorter than first",
            format!("write at least {}", units::show_duration(first)),
        ));
    }
    let tries = r.get("tries").and_then(|i| i.integer(1, 20)).and_then(|n| u8::try_from(n).ok());
    Retransmit { first, max, tries: tries.unwrap_or(default.tries) }
}

/// The smallest volume after which new keys are made.
const MIN_VOLUME: u64 = 2_560_000;

fn esp(item: Option<Item<'_>>, default: EspParams, start: Start) -> EspParams {
    let action = if start == Start::Active { DpdAction::Restart } else { DpdAction::Clear };
    let default = EspParams { dpd_action: action, ..default };
    let Some(r) = item.and_then(|i| i.map(&fields::ESP)) else { return default };
    let bytes = r.get("bytes").and_then(|i| {
        i.parse("a size, as in 2GiB, or unlimited", |t| match t {
            "unlimited" => Ok(None),
            _ => match units::size(t)? {
                n if n < MIN_VOLUME => {
                    Err(wrong(format!("{} is too small", quoted(t)), "write 2560KB or more"))
                }
                n => Ok(Some(n)),
            },
        })
    });
    let window = r.get("replay_window").and_then(|i| {
        let n = i.integer(0, 4096)?;
        if n != 0 && (n < 64 || n % 32 != 0) {
            i.error(wrong(
                format!("a window of {n} does not work"),
                "write 0 (off) or 64 to 4096 in steps of 32",
            ));
            return None;
        }
        u32::try_from(n).ok()
    });
    let dpd_action = r.get("dpd_action").and_then(|i| {
        let written = [DpdAction::Clear, DpdAction::Restart][i.word(fields::DPD_ACTIONS)?];
        if written != action {
            let what = "this version restarts tunnels whose start is active, and clears the others";
            i.warning(wrong(what, "drop the key, or change start"));
        }
        Some(written)
    });
    EspParams {
        lifetime: duration(&r, "lifetime", SECOND * 180, WEEK).unwrap_or(default.lifetime),
        bytes: bytes.map_or(default.bytes, |b| b.value),
        replay_window: window.unwrap_or(default.replay_window),
        dpd_action: dpd_action.unwrap_or(action),
        proposals: proposals(&r, default.proposals),
    }
}
