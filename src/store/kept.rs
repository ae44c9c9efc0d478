//! What the kept values mean: IKE SAs as the protocol shows them, ESP SAs as they were installed, and what they have
//! counted since.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use cygnet_ike::saved::{Change, Saved, SavedError, parse_sa, show_sa};
use cygnet_model::plane::SaCounters;
use cygnet_model::tunnel::{NewAddresses, SaId, SaSpec};
use cygnet_model::{IkeSpi, SecretBytes, TunnelId};
use serde::{Deserialize, Serialize};

use super::Contents;
use super::record::{Key, MAX_VALUE, Record, take};
use crate::observe::counters::Tally;
use crate::observe::handed::Handed;

/// An ESP SA of an earlier life.
pub struct KeptSa {
    /// With the addresses to which it has moved.
    pub spec: SaSpec,
    /// What it has counted at least; its sequence number is the last that may have been used, or the highest that is
    /// known to have been received.
    pub used: SaCounters,
    /// Counts installations, over all lives.
    order: u64,
}

/// A bandwidth level that was set by command.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct KeptLevel {
    /// Bits per second; `None`: unlimited.
    pub set: Option<u64>,
    /// What the configuration said then. When it says something else, that counts.
    pub configured: Option<u64>,
}

/// Levels by what they are of.
pub type KeptLevels = BTreeMap<String, KeptLevel>;

/// The limit of an inner address that was set by command.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct KeptLimit {
    /// The gateway.
    pub gateway: String,
    /// The address.
    pub ip: IpAddr,
    /// As the configuration would write it.
    pub set: String,
    /// What the configuration said of the address then, if anything. When it says something else, that counts.
    pub configured: Option<String>,
}

/// All that an earlier life left.
#[derive(Default)]
pub struct Kept {
    /// Its IKE SAs.
    pub ike: Vec<Saved>,
    /// Its ESP SAs, in the order of their installation.
    pub sas: Vec<KeptSa>,
    /// Bandwidth levels that were set by command.
    pub levels: KeptLevels,
    /// Limits that were set by command.
    pub limits: Vec<KeptLimit>,
    /// What its tunnels had counted.
    pub tallies: BTreeMap<TunnelId, Tally>,
    /// What it had counted of the host, if it handed over.
    pub host: Option<Handed>,
    /// It ended by handing over, and what its SAs had counted is exact.
    pub handed_over: bool,
    /// IKE SAs that could not be read, and why.
    pub damaged: Vec<(IkeSpi, SavedError)>,
    /// ESP SAs that could not be read, and why.
    pub damaged_sas: Vec<(SaId, SavedError)>,
}

impl Kept {
    /// Reads the values.
    pub fn of(contents: &Contents) -> Self {
        let mut kept = Self::default();
        for (key, value) in contents {
            match key {
                Key::HandedOver => kept.handed_over = true,
                // One that cannot be read is not missed by any tunnel.
                Key::Levels => kept.levels = serde_json::from_slice(value.expose()).unwrap_or_default(),
                Key::Limit(_) => {
                    kept.limits.extend(serde_json::from_slice(value.expose()).ok() as Option<KeptLimit>)
                }
                Key::Ike(spi) => match Saved::parse(value.expose()) {
                    Ok(saved) => kept.ike.push(saved),
                    Err(e) => kept.damaged.push((*spi, e)),
                },
                Key::Sa(sa) => match parse_kept(*sa, value.expose(), contents) {
                    Ok(sa) => kept.sas.push(sa),
                    Err(e) => kept.damaged_sas.push((*sa, e)),
                },
                // One that cannot be read counts from nothing, as all do after a polite end.
                Key::Tally(tunnel) => {
                    kept.tallies.extend(super::tally::parse(value.expose()).map(|tally| (*tunnel, tally)));
                }
                Key::Host => kept.host = serde_json::from_slice(value.expose()).ok(),
                Key::Count(_) | Key::Path(_) => {}
            }
        }
        kept.sas.sort_by_key(|sa| sa.order);
        kept
    }

    /// The number of the latest installation.
    pub fn last_order(&self) -> u64 {
        self.sas.last().map_or(0, |sa| sa.order)
    }
}

fn parse_kept(id: SaId, mut value: &[u8], contents: &Contents) -> Result<KeptSa, SavedError> {
    let order = take(&mut value).map(u64::from_be_bytes).ok_or(SavedError::Malformed)?;
    let mut spec = parse_sa(value)?;
    if spec.id != id {
        return Err(SavedError::Malformed);
    }
    if let Some(path) = contents.get(&Key::Path(id)) {
        let to = parse_path(path.expose()).ok_or(SavedError::Malformed)?;
        spec.local = to.local.ip();
        spec.remote = to.remote.ip();
        if let Some(encap) = &mut spec.encap {
            encap.local_port = to.local.port();
            encap.remote_port = to.remote.port();
        }
    }
    let used = match contents.get(&Key::Count(id)) {
        Some(count) => parse_count(count.expose()).ok_or(SavedError::Malformed)?,
        // What may have been used is noted with each outbound SA.
        None if id.direction == cygnet_model::tunnel::Direction::Out => return Err(SavedError::Malformed),
        None => SaCounters::default(),
    };
    Ok(KeptSa { spec, used, order })
}

fn parse_count(mut value: &[u8]) -> Option<SaCounters> {
    let from = &mut value;
    let mut number = || take(from).map(u64::from_be_bytes);
    let counters =
        SaCounters { sequence: number()?, bytes: number()?, packets: number()?, ..SaCounters::default() };
    value.is_empty().then_some(counters)
}

fn parse_path(value: &[u8]) -> Option<NewAddresses> {
    let (local, remote) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    Some(NewAddresses {
        local: local.parse::<SocketAddr>().ok()?,
        remote: remote.parse::<SocketAddr>().ok()?,
    })
}

/// An IKE SA has changed, or is gone.
pub fn changed(change: Change) -> Record {
    match change.saved {
        Some(saved) => Record::Put(Key::Ike(change.spi), saved),
        None => Record::Delete(Key::Ike(change.spi)),
    }
}

/// Bandwidth levels were set.
pub fn levels(levels: &KeptLevels) -> Record {
    match serde_json::to_vec(levels) {
        Ok(text) if !levels.is_empty() => Record::Put(Key::Levels, SecretBytes::new(text)),
        _ => Record::Delete(Key::Levels),
    }
}

/// A limit was set by command.
pub fn limit(limit: &KeptLimit) -> Record {
    let key = limit_key(&limit.gateway, limit.ip);
    match serde_json::to_vec(limit) {
        Ok(text) => Record::Put(key, SecretBytes::new(text)),
        Err(_) => Record::Delete(key),
    }
}

/// No limit of the address was set by command.
pub fn no_limit(gateway: &str, ip: IpAddr) -> Record {
    Record::Delete(limit_key(gateway, ip))
}

/// FNV-1a, which is the same in the next version. The value tells which gateway and address it is of.
fn limit_key(gateway: &str, ip: IpAddr) -> Key {
    let text = format!("{gateway} {ip}");
    let number = text.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01B3)
    });
    Key::Limit(number)
}

/// What a tunnel has counted.
pub fn tally(tunnel: TunnelId, tally: &Tally) -> Record {
    Record::Put(Key::Tally(tunnel), SecretBytes::new(super::tally::show(tally)))
}

/// What was counted of the host, of a daemon that hands over. One that is too long is left out.
pub fn host(handed: &Handed) -> Record {
    match serde_json::to_vec(handed) {
        Ok(text) if text.len() <= MAX_VALUE => Record::Put(Key::Host, SecretBytes::new(text)),
        _ => Record::Delete(Key::Host),
    }
}

/// A tunnel is not configured any more.
pub const fn untallied(tunnel: TunnelId) -> Record {
    Record::Delete(Key::Tally(tunnel))
}

/// An ESP SA is about to be installed, after `order` others. What it may use from its beginning is noted by [`counted`].
pub fn installed(sa: &SaSpec, order: u64) -> Record {
    let shown = show_sa(sa);
    let mut value = Vec::with_capacity(8 + shown.len());
    value.extend_from_slice(&order.to_be_bytes());
    value.extend_from_slice(shown.expose());
    Record::Put(Key::Sa(sa.id), SecretBytes::new(value))
}

/// What an ESP SA has counted, or may count until it is noted again.
pub fn counted(sa: SaId, counters: &SaCounters) -> Record {
    let numbers = [counters.sequence, counters.bytes, counters.packets];
    let value = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    Record::Put(Key::Count(sa), SecretBytes::new(value))
}

/// An ESP SA is about to move.
pub fn moved(sa: SaId, to: &NewAddresses) -> Record {
    let value = format!("{} {}", to.local, to.remote).into_bytes();
    Record::Put(Key::Path(sa), SecretBytes::new(value))
}

/// An ESP SA is gone, or about to be removed.
pub fn removed(sa: SaId) -> [Record; 3] {
    [Key::Sa(sa), Key::Count(sa), Key::Path(sa)].map(Record::Delete)
}

/// The contents with which the next file begins: these, but that nothing is handed over yet and that the numbers which
/// `last` gives are used up, as far as they are greater.
pub fn begin(mut contents: Contents, used: &BTreeMap<SaId, SaCounters>) -> Contents {
    contents.remove(&Key::HandedOver);
    // Whoever dies has counted more than this.
    contents.remove(&Key::Host);
    for (sa, counters) in used {
        if let Record::Put(key, value) = counted(*sa, counters) {
            contents.insert(key, value);
        }
    }
    contents
}
