//! From connections to a configuration: gateways and customer gateways are found, rules and weights made, keys chosen, and
//! what `cygnet check` refuses is left out with its words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cygnet_model::IpRange;

use super::conn::{Child, Conn, Place, PskEntry, Read};
use super::notes::{Kind, Notes};
use super::words;
use super::{Dialect, Options, Secret};
use crate::config::draft::{Defaults, Draft, DraftAuth, DraftGateway, DraftTunnel, outermost};
use crate::config::{
    self, DpdAction, GatewayAddress, Identity, PeerAddress, RemoteId, Secrets, Severity, SpdRule, Start,
    secrets,
};

/// A key and the file that shall have it.
pub struct NewKey {
    /// Name of the file inside the directory.
    pub file: String,
    /// The key as the file has it.
    pub key: Secret,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewKey({})", self.file)
    }
}

/// A configuration and its keys.
pub struct Assembled {
    pub yaml: String,
    pub tunnels: usize,
    pub keys: Vec<NewKey>,
}

/// A connection that can be a tunnel, as far as it alone can tell.
#[derive(Clone)]
struct Candidate {
    line: usize,
    name: String,
    near: GatewayAddress,
    far: PeerAddress,
    tunnel: DraftTunnel,
}

pub fn assemble(read: Read, dialect: Dialect, options: &Options, notes: &mut Notes) -> Assembled {
    let mut candidates = Vec::new();
    let mut names = BTreeSet::new();
    for conn in &read.conns {
        match candidate(conn, dialect, options, &mut names, notes) {
            Ok(c) => candidates.push(c),
            Err(why) => left_out(conn.line, &conn.name, &why, notes),
        }
    }
    let mut backups = weigh(&mut candidates);
    let mut draft = draft(&candidates);
    // What is refused is left out, until nothing is; each round leaves out one at least.
    loop {
        let refused = refused(&draft, &candidates);
        if refused.is_empty() {
            break;
        }
        for (n, why) in &refused {
            if let Some(c) = candidates.get(*n) {
                left_out(c.line, &c.name, why, notes);
            }
        }
        let mut n = 0;
        candidates.retain(|_| {
            n += 1;
            !refused.contains_key(&(n - 1))
        });
        backups = weigh(&mut candidates);
        draft = self::draft(&candidates);
    }
    for (n, primary) in backups {
        if let Some((c, weight)) = candidates.get(n).and_then(|c| Some((c, c.tunnel.weight?))) {
            let why =
                format!("it has the same networks as {primary}, and becomes its backup by weight: {weight}");
            notes.add(Kind::Changed, c.line, "connection", &c.name, why);
        }
    }
    let keys = keys(&mut draft, &candidates, &read.keys, options, notes);
    Assembled { yaml: text(&draft), tunnels: draft.tunnels.len(), keys }
}

fn left_out(line: usize, name: &str, why: &str, notes: &mut Notes) {
    notes.add(Kind::LeftOut, line, "connection", name, why);
}

fn text(draft: &Draft) -> String {
    let yaml = draft.yaml(Defaults::Omit);
    if draft.tunnels.is_empty() {
        // Lists of nothing.
        return "gateways: []\ncustomer_gateways: []\ntunnels: []\n".into();
    }
    yaml.to_string()
}

fn candidate(
    conn: &Conn,
    dialect: Dialect,
    options: &Options,
    names: &mut BTreeSet<String>,
    notes: &mut Notes,
) -> Result<Candidate, String> {
    if let Some(why) = &conn.left_out {
        return Err(why.clone());
    }
    let far = match &conn.far {
        Place::Ip(ip) => PeerAddress::Ip(*ip),
        Place::Dns(name) => PeerAddress::Dns(name.clone()),
        Place::Unknown | Place::Any | Place::Interface(_) => {
            return Err(
                "the peer may come from anywhere; a customer gateway needs an address or a name".into()
            );
        }
    };
    let rules = rules(conn)?;
    let near = near(conn, options, notes);
    let mut ike = conn.ike.clone();
    let mut esp = conn.esp.clone();
    let days = |n: u64| Duration::from_secs(n * 86_400);
    let mut within = |what: &str, value: Duration, min: Duration, max: Duration| {
        let ours = value.clamp(min, max);
        if ours != value {
            let (a, b) = (config::units::show_duration(value), config::units::show_duration(ours));
            notes.add(
                Kind::Changed,
                conn.line,
                "connection",
                &conn.name,
                format!("{what} of {a} is written as {b}"),
            );
        }
        ours
    };
    ike.lifetime = within("a lifetime of the IKE SA", ike.lifetime, Duration::from_secs(60), days(7));
    esp.lifetime = within("a lifetime of ESP SAs", esp.lifetime, Duration::from_secs(180), days(7));
    ike.dpd = ike.dpd.map(|d| within("dpd", d, MIN_DPD, MAX_DPD));
    if esp.bytes.is_some_and(|b| b < MIN_BYTES) {
        let why = "volumes are 2560KB at least";
        notes.add(Kind::Changed, conn.line, "connection", &conn.name, why);
        esp.bytes = Some(MIN_BYTES);
    }
    if conn.start == Start::Active {
        esp.dpd_action = DpdAction::Restart;
    }
    let base = words::name(&conn.name);
    if base != conn.name {
        notes.add(Kind::Changed, conn.line, "connection", &conn.name, format!("it is called {base}"));
    }
    let mut name = base.clone();
    let mut n = 2;
    while !names.insert(name.clone()) {
        name = format!("{base}-{n}");
        n += 1;
    }
    let own = match &near {
        GatewayAddress::Ip(ip) => Some(Identity::Ip(*ip)),
        GatewayAddress::Interface(_) => None,
    };
    Ok(Candidate {
        line: conn.line,
        name: conn.name.clone(),
        tunnel: DraftTunnel {
            name: name.clone(),
            gateway: String::new(),
            customer: String::new(),
            start: conn.start,
            auth: DraftAuth::File(format!("{name}.psk")),
            local_id: conn.near_id.clone().filter(|id| Some(id) != own.as_ref()),
            remote_id: remote_id(conn, &far, dialect),
            mark: conn.mark,
            weight: None,
            rules,
            ike,
            esp,
        },
        near,
        far,
    })
}

/// The shortest and longest silence before a peer is asked.
const MIN_DPD: Duration = Duration::from_secs(5);
const MAX_DPD: Duration = Duration::from_secs(3600);
/// The smallest volume.
const MIN_BYTES: u64 = 2_560_000;

/// The peer's identity, where it is not the address of the customer gateway.
fn remote_id(conn: &Conn, far: &PeerAddress, dialect: Dialect) -> Option<RemoteId> {
    match (&conn.far_id, far) {
        (Some(RemoteId::Is(Identity::Ip(id))), PeerAddress::Ip(ip)) if id == ip => None,
        (Some(id), _) => Some(id.clone()),
        // swanctl.conf takes any identity unless one is said; an ipsec.conf means the address, which a name may become.
        (None, _) if dialect == Dialect::Swanctl => Some(RemoteId::Any),
        (None, PeerAddress::Ip(_)) => None,
        (None, PeerAddress::Dns(_)) => Some(RemoteId::Any),
    }
}

fn near(conn: &Conn, options: &Options, notes: &mut Notes) -> GatewayAddress {
    let by_option = || {
        let text = options.address.as_deref()?;
        Some(
            text.parse::<IpAddr>()
                .map_or_else(|_| GatewayAddress::Interface(text.into()), GatewayAddress::Ip),
        )
    };
    match &conn.near {
        Place::Ip(ip) => GatewayAddress::Ip(*ip),
        Place::Interface(name) => GatewayAddress::Interface(name.clone()),
        Place::Dns(_) | Place::Unknown | Place::Any => by_option().unwrap_or_else(|| {
            let why =
                "it does not say our address; write the interface or address for eth0, or give --address";
            notes.add(Kind::Todo, conn.line, "connection", &conn.name, why);
            GatewayAddress::Interface("eth0".into())
        }),
    }
}

fn single(place: &Place) -> Option<IpRange> {
    match place {
        Place::Ip(ip) => IpRange::cidr(*ip, if ip.is_ipv4() { 32 } else { 128 }),
        _ => None,
    }
}

fn rules(conn: &Conn) -> Result<Vec<SpdRule>, String> {
    let internet = |b: &IpRange| b.prefix_len() == Some(0);
    let side = |list: &[IpRange], place: &Place| match list {
        [] => single(place).map(|own| vec![own]),
        list => Some(list.to_vec()),
    };
    let mut out: Vec<SpdRule> = Vec::new();
    let mut known = BTreeSet::new();
    for Child { near, far } in &conn.children {
        let (Some(near), Some(far)) = (side(near, &conn.near), side(far, &conn.far)) else {
            return Err("it protects the ends themselves, whose addresses are not known".into());
        };
        if near.iter().any(internet) && far.iter().any(internet) {
            return Err("it protects everything between everything, so that routes decided what the tunnel carried; write \
                        the networks at both ends as SPD rules"
                .into());
        }
        for local in near {
            let remote: Vec<IpRange> = far.iter().copied().filter(|f| f.same_family(&local)).collect();
            let rule = SpdRule { local, remote };
            let said = (local, rule.remote.clone());
            if !rule.remote.is_empty() && known.insert(said) {
                out.push(rule);
            }
        }
    }
    if out.is_empty() {
        return Err("its networks are of different address families".into());
    }
    Ok(out)
}

/// A tunnel with more pairs of networks is not compared with others.
const MAX_PAIRS: usize = 1024;

/// Tunnels with the same rules are a primary and its backups, in the order of the text. The answer names the backups, each with
/// its primary.
fn weigh(candidates: &mut [Candidate]) -> Vec<(usize, String)> {
    let mut first: BTreeMap<(IpRange, IpRange), usize> = BTreeMap::new();
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (n, c) in candidates.iter_mut().enumerate() {
        c.tunnel.weight = None;
        let count: usize = c.tunnel.rules.iter().map(|r| r.remote.len()).sum();
        if c.tunnel.mark.is_some() || count > MAX_PAIRS {
            continue;
        }
        let pairs = c.tunnel.rules.iter().flat_map(|r| r.remote.iter().map(move |f| (r.local, *f)));
        let owners: BTreeSet<usize> = pairs.map(|pair| *first.entry(pair).or_insert(n)).collect();
        if let Some(owner) = owners.first().filter(|o| **o != n) {
            groups.entry(*owner).or_default().push(n);
        }
    }
    let mut out = Vec::new();
    for (owner, backups) in groups {
        let primary = candidates.get(owner).map(|c| c.tunnel.name.clone()).unwrap_or_default();
        for (weight, n) in std::iter::once(owner).chain(backups).enumerate() {
            let (Some(c), Ok(weight)) = (candidates.get_mut(n), u8::try_from(weight)) else { continue };
            c.tunnel.weight = Some(weight);
            if weight > 0 {
                out.push((n, primary.clone()));
            }
        }
    }
    out
}

fn draft(candidates: &[Candidate]) -> Draft {
    let mut draft = Draft {
        head: vec!["Made by cygnet import. What has no counterpart stands in its notes.".into()],
        ..Draft::default()
    };
    for c in candidates {
        let gateway = match draft.gateways.iter().position(|g| g.address == c.near) {
            Some(at) => at,
            None => {
                let number = draft.gateways.len() + 1;
                let name = if number == 1 { "gateway".into() } else { format!("gateway-{number}") };
                draft.gateways.push(DraftGateway { name, address: c.near.clone(), networks: Vec::new() });
                number - 1
            }
        };
        let customer = match draft.customers.iter().find(|(_, address, _)| *address == c.far) {
            Some((name, ..)) => name.clone(),
            None => {
                draft.customers.push((c.tunnel.name.clone(), c.far.clone(), None));
                c.tunnel.name.clone()
            }
        };
        let mut tunnel = c.tunnel.clone();
        tunnel.customer = customer;
        if let Some(g) = draft.gateways.get_mut(gateway) {
            tunnel.gateway.clone_from(&g.name);
            g.networks.extend(c.tunnel.rules.iter().map(|r| r.local));
        }
        draft.tunnels.push(tunnel);
    }
    for g in &mut draft.gateways {
        let named = g.networks.iter().copied().filter(|n| n.prefix_len() != Some(0));
        let named = outermost(named);
        g.networks = if named.is_empty() { outermost(std::mem::take(&mut g.networks)) } else { named };
    }
    draft
}

/// Which candidates the checks refuse, and why.
fn refused(draft: &Draft, candidates: &[Candidate]) -> BTreeMap<usize, String> {
    let mut out = BTreeMap::new();
    if candidates.is_empty() {
        return out;
    }
    let checked = config::check_text(&text(draft), Path::new("/nonexistent"), Secrets::Skip);
    for p in checked.problems.iter().filter(|p| p.severity == Severity::Error) {
        let why = if p.fix.is_empty() { p.what.clone() } else { format!("{}; {}", p.what, p.fix) };
        let index = |list: &str| {
            p.path.strip_prefix(list)?.strip_prefix('[')?.split(']').next()?.parse::<usize>().ok()
        };
        let of = |test: &dyn Fn(&DraftTunnel) -> bool| {
            draft.tunnels.iter().enumerate().filter(|(_, t)| test(t)).map(|(n, _)| n).collect::<Vec<_>>()
        };
        let guilty = if let Some(n) = index("tunnels") {
            vec![n]
        } else if let Some(g) = index("gateways").and_then(|n| draft.gateways.get(n)) {
            of(&|t| t.gateway == g.name)
        } else if let Some((name, ..)) = index("customer_gateways").and_then(|n| draft.customers.get(n)) {
            of(&|t| t.customer == *name)
        } else {
            Vec::new()
        };
        guilty.into_iter().for_each(|n| {
            out.entry(n).or_insert_with(|| why.clone());
        });
    }
    if out.is_empty() && checked.preview.is_none() {
        // Nobody can be named: better nothing than a configuration that is refused.
        out.extend(
            (0..candidates.len()).map(|n| (n, "it could not be written as a configuration".to_owned())),
        );
    }
    out
}

fn keys(
    draft: &mut Draft,
    candidates: &[Candidate],
    entries: &[PskEntry],
    options: &Options,
    notes: &mut Notes,
) -> Vec<NewKey> {
    let mut out = Vec::new();
    let Some(dir) = &options.secrets_dir else {
        if !draft.tunnels.is_empty() {
            let why = "keys are not copied: put each into the file that psk_file names, mode 0600, or give --secrets-dir";
            notes.about(Kind::Todo, 1, why);
        }
        return out;
    };
    for (tunnel, c) in draft.tunnels.iter_mut().zip(candidates) {
        let file = format!("{}.psk", tunnel.name);
        tunnel.auth = DraftAuth::File(format!("{}/{file}", dir.trim_end_matches('/')));
        let Some(entry) = best(tunnel, c, entries) else {
            let why = "no key is for it; put it into the file that psk_file names";
            notes.add(Kind::Todo, c.line, "connection", &c.name, why);
            continue;
        };
        match secrets::psk(entry.key.as_bytes()) {
            Ok(_) => out.push(NewKey { file, key: entry.key.clone() }),
            Err(w) => {
                let why = format!(
                    "its key (line {} of the secrets) is not copied: {}; {}",
                    entry.line, w.what, w.fix
                );
                notes.add(Kind::Todo, c.line, "connection", &c.name, why);
            }
        }
    }
    out
}

/// The key for both identities before that for one, and that before the one for all.
fn best<'a>(tunnel: &DraftTunnel, c: &Candidate, entries: &'a [PskEntry]) -> Option<&'a PskEntry> {
    let own = match &c.near {
        GatewayAddress::Ip(ip) => Some(Identity::Ip(*ip)),
        GatewayAddress::Interface(_) => None,
    };
    let address = match &c.far {
        PeerAddress::Ip(ip) => Identity::Ip(*ip),
        PeerAddress::Dns(name) => Identity::Fqdn(name.clone()),
    };
    let near: Vec<&Identity> = tunnel.local_id.iter().chain(&own).collect();
    let mut far = vec![&address];
    if let Some(RemoteId::Is(id)) = &tunnel.remote_id {
        far.push(id);
    }
    let score = |e: &PskEntry| {
        let has = |ids: &[&Identity]| {
            e.ids.iter().any(|i| matches!(i, RemoteId::Is(i) if ids.iter().any(|id| id.same(i))))
        };
        let anybody = e.ids.is_empty() || e.ids.contains(&RemoteId::Any);
        match (has(&far), has(&near)) {
            (true, near) => 3 + u8::from(near),
            (false, true) if anybody || e.ids.len() == 1 => 2,
            (false, false) if anybody => 1,
            _ => 0,
        }
    };
    let scored = entries.iter().map(|e| (score(e), e)).filter(|(s, _)| *s > 0);
    // The first of the best.
    scored.rev().max_by_key(|(s, _)| *s).map(|(_, e)| e)
}
