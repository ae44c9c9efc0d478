//! Keeps what the next life of the daemon needs, and takes up what an earlier one kept.
//!
//! ```text
//!  input ─▶ protocol ─▶ changes, actions ─▶ store ─▶ actions
//! ```
//!
//! Changes are in the store before the actions of the same input are performed, so that at any moment of death the next
//! life knows at least what the peer has seen. With our own data plane the store is ahead of the sequence numbers, too: an
//! SA uses only numbers that are noted as used. `docs/decisions/0120-what-the-next-life-knows.md` says why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use cygnet_ike::Action;
use cygnet_ike::saved::Saved;
use cygnet_model::TunnelId;
use cygnet_model::plane::{PlaneKind, RESERVE, SaCounters};
use cygnet_model::tunnel::{Direction, SaId};

use super::plane::Plane;
use super::{Daemon, clock};
use crate::config::model::Config;
use crate::observe::counters::Tally;
use crate::observe::events::Kind;
use crate::observe::handed::{ADDRESSES, Handed};
use crate::observe::snapshot::Origin;
use crate::store::kept::{self, Kept, KeptLevel, KeptLevels, KeptLimit, KeptSa};
use crate::store::record::{Key, Record};
use crate::store::{self, Contents, Host, Place, Refused, Store};
use crate::traffic::{Carried, Inner};

/// The store and what is noted in it.
pub(super) struct Keeper {
    /// `None` where nothing can be kept.
    store: Option<Store>,
    plane: PlaneKind,
    /// SAs installed so far, over all lives.
    installs: u64,
    /// What is noted of each SA.
    noted: BTreeMap<SaId, SaCounters>,
    /// Tunnels of which it is noted what they counted.
    tallied: BTreeSet<TunnelId>,
}

/// A limit that was set by command, and what the configuration says of the same address.
pub(super) type LimitWords = (String, Option<String>);

/// What the protocol takes up.
#[derive(Default)]
pub(super) struct TakenUp {
    /// IKE SAs of an earlier life.
    pub ike: Vec<Saved>,
    /// ESP SAs that the data plane goes on with.
    pub present: std::collections::BTreeSet<SaId>,
    /// The data plane does not know exactly what it had received.
    pub renew: bool,
    /// Bandwidth levels that were set by command.
    pub levels: KeptLevels,
    /// What tunnels had counted.
    pub tallies: BTreeMap<TunnelId, Tally>,
    /// What had been counted of the host, by a life that handed over.
    pub host: Option<Handed>,
}

impl Keeper {
    /// One that keeps nothing.
    pub fn none() -> Self {
        Self {
            store: None,
            plane: PlaneKind::Kernel,
            installs: 0,
            noted: BTreeMap::new(),
            tallied: BTreeSet::new(),
        }
    }

    /// Takes up what an earlier life of the daemon kept, as far as the data plane goes on with it, and begins to keep
    /// what the next life needs. The guards must be in force. `numbered`: the numbers of tunnels are those of the earlier
    /// life.
    /// `before` gets the limits that were set by command, before the first SA carries anything.
    pub fn begin(
        config: &Config,
        numbered: bool,
        plane: &mut Plane,
        before: impl FnOnce(&mut Plane, Vec<KeptLimit>),
    ) -> (Self, TakenUp) {
        let kind = plane.port_ref().kind();
        let mut place = match place(config) {
            Ok(place) => place,
            Err(e) => {
                let dir = config.daemon.state_dir.display();
                tracing::warn!(error = %e, "tunnels will begin anew after a restart: no secret can be kept in {dir}");
                // What it says would be older and older.
                let _ = std::fs::remove_file(path(config));
                return (Self { plane: kind, ..Self::none() }, TakenUp::default());
            }
        };
        let mut contents = match store::read(&place) {
            Ok(past) => usable(past, numbered, kind),
            Err(refused) => {
                let reason = refused.name();
                match refused {
                    Refused::Absent => tracing::debug!("no earlier life of the daemon has left SAs"),
                    _ => tracing::warn!(
                        file = %place.path.display(), reason,
                        "SAs of an earlier life of the daemon are not taken up, and the tunnels begin anew: {refused}"
                    ),
                }
                Contents::new()
            }
        };
        let mut kept = Kept::of(&contents);
        for (spi, e) in &kept.damaged {
            tracing::warn!(%spi, error = %e, "an IKE SA of an earlier life is not taken up");
            contents.remove(&Key::Ike(*spi));
        }
        for (sa, e) in &kept.damaged_sas {
            tracing::warn!(spi = %sa.spi, error = %e, "an ESP SA of an earlier life is not taken up");
            forget(&mut contents, *sa);
        }
        let installs = kept.last_order();
        // What this life may use is noted as used before the first packet uses it.
        let noted: BTreeMap<SaId, SaCounters> =
            kept.sas.iter().map(|sa| (sa.spec.id, reserved(kind, sa.spec.id, sa.used))).collect();
        // What lives before this one left elsewhere is not opened by those after it: peers know better by then.
        match store::new_secret(&config.daemon.state_dir) {
            Ok(secret) => place.secret = secret,
            Err(e) => tracing::debug!(error = %e, "the secret of what is kept stays"),
        }
        let (store, begun) = Store::begin(place, kind, kept::begin(contents, &noted));
        let tallied = kept.tallies.keys().copied().collect();
        let mut keeper = Self { store: Some(store), plane: kind, installs, noted, tallied };
        if let Err(e) = begun {
            complain(&e);
        }
        if !keeper.store.as_ref().is_some_and(Store::is_sound) {
            // The next life would read what this one read, and use the numbers that this one is about to use.
            kept.sas.clear();
        }
        before(plane, std::mem::take(&mut kept.limits));
        let taken = keeper.take_up(kept, plane);
        (keeper, taken)
    }

    fn take_up(&mut self, kept: Kept, plane: &mut Plane) -> TakenUp {
        let Kept { ike, sas, handed_over, levels, tallies, host, .. } = kept;
        let renew = self.plane == PlaneKind::Userspace && !handed_over && !sas.is_empty();
        let mut taken = TakenUp { ike, renew, levels, tallies, host, ..TakenUp::default() };
        let mut lost = Vec::new();
        for KeptSa { spec, used, .. } in sas {
            match plane.port().restore(&spec, &used) {
                Ok(true) => {
                    taken.present.insert(spec.id);
                }
                Ok(false) => {
                    tracing::info!(spi = %spec.id.spi, "an ESP SA of an earlier life is not in the kernel any more");
                    lost.push(spec.id);
                }
                Err(e) => {
                    tracing::warn!(error = %e, "an ESP SA of an earlier life is not taken up");
                    lost.push(spec.id);
                }
            }
        }
        self.note(lost.into_iter().flat_map(kept::removed).collect());
        taken
    }

    /// Notes changes, before anything that they describe is done.
    fn note(&mut self, records: Vec<Record>) {
        for record in &records {
            if let Record::Delete(Key::Sa(sa)) = record {
                self.noted.remove(sa);
            }
        }
        let noted = self.store.as_mut().map_or(Ok(()), |store| store.note(records));
        if let Err(e) = noted {
            complain(&e);
        }
    }

    /// Why a restart would begin anew, if so.
    pub fn trouble(&self) -> Option<&'static str> {
        match &self.store {
            None => Some("the state directory cannot keep a secret"),
            Some(store) if !store.is_written() => {
                Some("the directory of the control socket cannot be written")
            }
            Some(_) => None,
        }
    }
}

fn complain(error: &std::io::Error) {
    tracing::warn!(
        error = %error,
        "what a restart needs to go on with the tunnels cannot be written beside the control socket; if the daemon ends \
         unexpectedly now, they begin anew; it is tried again every few seconds"
    );
}

/// What of an earlier life is of use to this one.
fn usable(past: store::Past, numbered: bool, plane: PlaneKind) -> Contents {
    let mut contents = past.contents;
    if past.cut {
        tracing::info!("the daemon was killed while it noted a change, which therefore did not take place");
    }
    if !numbered && !contents.is_empty() {
        tracing::warn!(
            "SAs of an earlier life of the daemon are not taken up, and the tunnels begin anew: the numbers of tunnels were \
             lost"
        );
        return Contents::new();
    }
    if past.plane != plane {
        // The other plane does not know which sequence numbers were used.
        let before = contents.len();
        contents.retain(|key, _| {
            matches!(key, Key::Ike(_) | Key::Levels | Key::Limit(_) | Key::Tally(_) | Key::Host)
        });
        if contents.len() < before {
            tracing::warn!(
                "ESP SAs of an earlier life of the daemon are not taken up: it had data plane {}",
                past.plane.name()
            );
        }
    }
    contents
}

fn forget(contents: &mut Contents, sa: SaId) {
    for record in kept::removed(sa) {
        contents.remove(&record.key());
    }
}

/// What an SA is noted with that has counted this much: what it may use until it is noted again.
fn reserved(plane: PlaneKind, sa: SaId, counted: SaCounters) -> SaCounters {
    match (plane, sa.direction) {
        (PlaneKind::Userspace, Direction::Out) => {
            SaCounters { sequence: counted.sequence.saturating_add(RESERVE), ..counted }
        }
        _ => counted,
    }
}

fn place(config: &Config) -> std::io::Result<Place> {
    // A host without a number of its own is known by the number of its boot.
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(Place {
        path: path(config),
        secret: store::secret(&config.daemon.state_dir)?,
        host: Host::of(&machine, &boot),
    })
}

/// Beside the control socket: as short-lived as that.
fn path(config: &Config) -> PathBuf {
    config.daemon.control_socket.with_extension("sas")
}

impl Daemon {
    /// Notes what the protocol has become and what is about to be done to SAs.
    pub(super) fn keep_ahead(&mut self, actions: &[Action]) {
        let changes = self.endpoint.take_changes();
        let keeper = &mut self.keeper;
        let mut records: Vec<Record> = changes.into_iter().map(kept::changed).collect();
        for action in actions {
            match action {
                Action::InstallSa(spec) => {
                    keeper.installs += 1;
                    records.push(kept::installed(spec, keeper.installs));
                    let noted = reserved(keeper.plane, spec.id, SaCounters::default());
                    keeper.noted.insert(spec.id, noted);
                    records.push(kept::counted(spec.id, &noted));
                }
                Action::RemoveSa(sa) => records.extend(kept::removed(*sa)),
                Action::Migrate(sa, to) => records.push(kept::moved(*sa, to)),
                Action::Send { .. }
                | Action::Keepalive(_)
                | Action::OpenTunnel(_)
                | Action::CloseTunnel(_)
                | Action::Run(..)
                | Action::Tell(_) => {}
            }
        }
        keeper.note(records);
    }

    /// Notes what tunnels have counted, before it is shown to anybody.
    pub(super) fn keep_tallies(&mut self) {
        let touched = self.counters.take_touched();
        if self.keeper.store.is_none() {
            return;
        }
        let tally = |name: &std::sync::Arc<str>| {
            let id = self.registry.tunnel(name)?;
            Some((id, self.counters.tunnels.get(name)?.tally()))
        };
        let tallies: Vec<(TunnelId, Tally)> = touched.iter().filter_map(tally).collect();
        self.keeper.tallied.extend(tallies.iter().map(|(id, _)| *id));
        self.keeper.note(tallies.iter().map(|(id, t)| kept::tally(*id, t)).collect());
    }

    /// Forgets what tunnels counted that are not configured any more.
    pub(super) fn keep_no_tallies_of_others(&mut self) {
        let places = &self.places;
        let (stay, gone): (BTreeSet<TunnelId>, BTreeSet<TunnelId>) =
            self.keeper.tallied.iter().partition(|id| places.contains_key(id));
        self.keeper.tallied = stay;
        self.keeper.note(gone.into_iter().map(kept::untallied).collect());
    }

    /// Counts on from what an earlier life had counted, of tunnels and of the SAs that are taken up.
    pub(super) fn count_on(&mut self, tallies: BTreeMap<TunnelId, Tally>, present: &BTreeSet<SaId>) {
        for (tunnel, mut tally) in tallies {
            let Some(name) = self.tunnel_name(tunnel) else { continue };
            // What an SA that is gone had counted stands in the totals.
            tally.sas.retain(|sa, _| present.contains(sa));
            self.counters.resume(&name, tally);
        }
        let mut all = Vec::new();
        // What cannot be read now is counted as this life's.
        let _ = self.plane.port().counters(&mut all);
        for (sa, counted) in all.into_iter().filter(|(sa, _)| present.contains(sa)) {
            if let Some(tunnel) = self.tunnel_name(sa.child.tunnel) {
                self.counters.go_on(&tunnel, sa, counted);
            }
        }
    }

    /// Counts on from what an earlier life had counted of the host.
    pub(super) fn count_on_of_the_host(&mut self, handed: &Handed) {
        handed.resume(&mut self.counters, cygnet_esp::DropReason::ALL.iter().map(|reason| reason.name()));
        self.keep_drops_of_the_configured();
        for (gateway, addresses) in &handed.addresses {
            let Some(gateway) = self.limits.no(gateway) else { continue };
            let total =
                |&(ip, [bytes_in, packets_in, bytes_out, packets_out, dropped]): &(IpAddr, [u64; 5])| {
                    (Inner { gateway, ip }, Carried { bytes_in, packets_in, bytes_out, packets_out, dropped })
                };
            self.traffic.resume(clock::now().mono, addresses.iter().map(total));
        }
    }

    /// What this life has counted of the host.
    fn counted_of_the_host(&mut self) -> Handed {
        self.sample_shaping();
        self.sample_levels();
        self.sample_drops(clock::now().mono);
        self.sample_traffic();
        let mut handed = Handed::of(&self.counters);
        let names = self.limits.names();
        for seen in self.traffic.of_the_day(names.len(), ADDRESSES / names.len().max(1)) {
            let Some(gateway) = names.get(&seen.who.gateway) else { continue };
            let t = seen.total;
            let counts = [t.bytes_in, t.packets_in, t.bytes_out, t.packets_out, t.dropped];
            handed.addresses.entry((*gateway).to_owned()).or_default().push((seen.who.ip, counts));
        }
        handed
    }

    /// Notes the bandwidth levels that were set by command.
    pub(super) fn keep_levels(&mut self) {
        let set = self.bandwidth.iter().filter(|(_, level)| level.origin == Origin::Command);
        let kept = set.map(|(key, level)| {
            let configured = key.configured(&self.config).flatten();
            (key.to_string(), KeptLevel { set: level.bps, configured })
        });
        let record = kept::levels(&kept.collect());
        self.keeper.note(vec![record]);
    }

    /// Notes limits of a gateway's addresses that were set by command: what was set, and what the configuration says;
    /// `None`: nothing any more.
    pub(super) fn keep_limits(&mut self, gateway: &str, limits: Vec<(IpAddr, Option<LimitWords>)>) {
        let record = |(ip, value): (IpAddr, Option<LimitWords>)| match value {
            Some((set, configured)) => {
                kept::limit(&KeptLimit { gateway: gateway.to_owned(), ip, set, configured })
            }
            None => kept::no_limit(gateway, ip),
        };
        self.keeper.note(limits.into_iter().map(record).collect());
    }

    /// Notes that an SA was not installed after all.
    pub(super) fn keep_without(&mut self, sa: SaId) {
        self.keeper.note(kept::removed(sa).into());
    }

    /// Notes what SAs of our own plane have counted, and reserves sequence numbers for those that have used up half of
    /// theirs. The kernel's count by themselves.
    pub(super) fn keep_counts(&mut self, all: &[(SaId, SaCounters)]) {
        if let Some(store) = &mut self.keeper.store
            && !store.is_written()
            && store.mend()
        {
            tracing::info!("what a restart needs to go on with the tunnels is written again");
        }
        if self.keeper.plane == PlaneKind::Kernel {
            return;
        }
        let keeper = &mut self.keeper;
        let mut records = Vec::new();
        for &(sa, counted) in all {
            let Some(noted) = keeper.noted.get_mut(&sa) else { continue };
            if sa.direction == Direction::Out && counted.sequence >= noted.sequence {
                tracing::warn!(
                    spi = %sa.spi,
                    "packets were dropped (reserve): more left in a few seconds than sequence numbers were reserved for"
                );
            }
            let due = match sa.direction {
                Direction::In => noted.sequence != counted.sequence,
                Direction::Out => noted.sequence.saturating_sub(counted.sequence) < RESERVE / 2,
            };
            if due {
                *noted = reserved(keeper.plane, sa, counted);
                records.push(kept::counted(sa, noted));
            }
        }
        keeper.note(records);
        // A file that says less and cannot be got rid of must not be proven wrong.
        if keeper.store.as_ref().is_none_or(Store::is_sound) {
            // All of them: some may have been noted while the file could not be trusted.
            let outbound = keeper.noted.iter().filter(|(sa, _)| sa.direction == Direction::Out);
            outbound.for_each(|(sa, noted)| self.plane.port().reserve(*sa, noted.sequence));
        }
    }

    /// Notes exactly what all SAs have counted, for a next life that begins at once. The data plane must have come to
    /// rest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn keep_at_last(&mut self) -> Result<(), &'static str> {
        let mut all = Vec::new();
        let read = self.plane.port().counters(&mut all);
        if self.keeper.plane == PlaneKind::Userspace && read.is_err() {
            return Err("the counters of the SAs cannot be read");
        }
        self.count_now();
        self.keep_tallies();
        if self.keeper.plane == PlaneKind::Kernel {
            // The kernel's count on by themselves.
            all.clear();
        }
        let mut records: Vec<Record> = self.endpoint.take_changes().into_iter().map(kept::changed).collect();
        let noted = |(sa, _): &(SaId, SaCounters)| self.keeper.noted.contains_key(sa);
        records.extend(all.iter().filter(|c| noted(c)).map(|(sa, counted)| kept::counted(*sa, counted)));
        records.push(kept::host(&self.counted_of_the_host()));
        records.push(Record::Put(Key::HandedOver, cygnet_model::SecretBytes::new(Vec::new())));
        self.keeper.note(records);
        self.keeper.trouble().map_or(Ok(()), Err)
    }

    /// Nothing is to go on.
    pub(super) fn keep_nothing(&mut self) {
        if let Some(store) = self.keeper.store.take()
            && let Err(e) = store.end()
        {
            tracing::warn!(error = %e, "the file of kept SAs could not be removed; none of them lives");
        }
    }

    /// Tells how much of an earlier life goes on.
    pub(super) fn announce_taken_up(&mut self, ike: usize, esp: usize) {
        if ike > 0 {
            let message = format!("{ike} IKE SAs and {esp} ESP SAs of an earlier life of the daemon go on");
            self.announce(Kind::Restored, &message);
        }
    }
}
