//! Reads what data planes, kernel and traffic control have counted, and tells the protocol what follows from it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cygnet_ike::Input;
use cygnet_model::plane::{PlaneKind, SaCounters};
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{Timestamp, TunnelId};

use super::{Daemon, clock};
use crate::config::model::Limit;
use crate::observe::TrafficPage;
use crate::observe::qos::{Count, Place};
use crate::shaping::apply::GatewayStats;
use crate::traffic::GatewayNo;

/// Inner addresses of a gateway that monitoring sees.
const TOP: usize = 20;
/// Limits of a gateway that monitoring sees, besides.
const FIRST_LIMITS: usize = 100;

impl Daemon {
    /// Reads the counters of all SAs, tells the protocol what follows from them, and publishes a snapshot.
    pub(super) fn sample(&mut self) -> Vec<(SaId, SaCounters)> {
        let now = clock::now();
        let mut all = Vec::new();
        if let Err(e) = self.plane.port().counters(&mut all) {
            tracing::warn!(error = %e, "counters");
        }
        // By tunnel, as the tunnels are.
        all.sort_unstable_by_key(|(sa, _)| *sa);
        let mut told = Vec::new();
        let mut rest = all.as_slice();
        let ids: Vec<TunnelId> = self.tunnels.keys().copied().collect();
        for id in ids {
            let first = rest.partition_point(|(sa, _)| sa.child.tunnel < id);
            let (own, others) =
                rest[first..].split_at(rest[first..].partition_point(|(sa, _)| sa.child.tunnel == id));
            rest = others;
            self.note_counted(id, own, now.mono, &mut told);
        }
        for told in told {
            self.input(told);
        }
        self.counters.sampled_at = now.mono;
        self.watch_passage(now.mono);
        self.sample_shaping();
        self.sample_levels();
        // They have been read just now.
        self.sample_rates(clock::now().mono);
        self.sample_drops(now.mono);
        self.sample_traffic();
        self.counters.alerts = self.alert_counts.all().collect();
        self.age_pages();
        self.publish();
        all
    }

    /// Notes what the SAs of a tunnel have counted by now; they are all that it has. What the protocol is to be told of it
    /// goes to `told`.
    pub(super) fn note_counted(
        &mut self,
        id: TunnelId,
        all: &[(SaId, SaCounters)],
        now: Timestamp,
        told: &mut Vec<Input<'static>>,
    ) {
        let Some(memory) = self.tunnels.get_mut(&id) else { return };
        let span = now.since(std::mem::replace(&mut memory.counted_at, now));
        // Most are idle.
        if *memory.sas == *all {
            return;
        }
        let before = std::mem::replace(&mut memory.sas, all.into());
        let name = self.registry.name(id);
        for (sa, counted) in all {
            if let Some(name) = name {
                self.counters.sample(name, *sa, *counted);
            }
            let known = before.iter().find(|(of, _)| of == sa).map(|(_, counted)| *counted);
            // Of one that is read for the first time all is new, and it took as long as there is the SA.
            let (before, span) =
                known.map_or((SaCounters::default(), Duration::MAX), |before| (before, span));
            if sa.direction == Direction::In && counted.packets > before.packets {
                told.push(Input::Inbound(*sa));
            }
            if counted.bytes > before.bytes {
                let grown = counted.bytes - before.bytes;
                told.push(Input::Carried { sa: *sa, bytes: counted.bytes, grown, span });
            }
        }
        self.pages.note(id);
    }

    /// Reads the counters of all SAs for somebody who asks what was carried.
    pub(super) fn count_now(&mut self) {
        let mut all = Vec::new();
        if let Err(e) = self.plane.port().counters(&mut all) {
            tracing::warn!(error = %e, "counters");
        }
        for (sa, counters) in all {
            if let Some(name) = self.registry.name(sa.child.tunnel) {
                self.counters.sample(name, sa, counters);
            }
        }
    }

    /// Takes what inner addresses carried since the last time.
    pub(super) fn collect_traffic(&mut self) {
        let now = clock::now().mono;
        for counted in self.plane.take_carried() {
            self.traffic.note(now, counted);
        }
    }

    /// Makes the page of inner addresses that monitoring sees.
    pub(super) fn sample_traffic(&mut self) {
        self.collect_traffic();
        let names: HashMap<GatewayNo, Arc<str>> =
            self.limits.names().into_iter().map(|(no, name)| (no, Arc::from(name))).collect();
        let mut page = TrafficPage::default();
        let mut dropped_by_ip = Vec::new();
        for seen in self.traffic.of_the_day(names.len(), TOP) {
            if let Some(gateway) = names.get(&seen.who.gateway) {
                page.bytes.push((Arc::clone(gateway), seen.who.ip, seen.total.bytes()));
            }
        }
        page.bytes.sort();
        let in_force = self.plane.ips_trouble().is_none();
        for (no, gateway) in names.iter().filter(|_| in_force) {
            let first = page.bytes.partition_point(|(of, _, _)| of < gateway);
            let shown =
                page.bytes.iter().skip(first).take_while(|(of, _, _)| of == gateway).map(|(_, ip, _)| *ip);
            let first = self.limits.of(gateway).map(|(ip, _)| *ip).take(FIRST_LIMITS);
            let shown: BTreeSet<IpAddr> = shown.chain(first).collect();
            for ip in shown {
                let bps = match self.limits.get(gateway, &ip).map(|set| set.limit) {
                    Some(Limit::Rate(bps)) => bps,
                    Some(Limit::Block) => 0,
                    Some(Limit::Unlimited) | None => continue,
                };
                page.limits.push((Arc::clone(gateway), ip, bps));
            }
            let dropped = self.traffic.dropped(*no);
            if dropped > 0 || !self.limits.count(gateway).is_none() {
                dropped_by_ip.push(Count { place: Place::of(&**gateway, "ip"), part: 0, packets: dropped });
            }
        }
        page.limits.sort();
        if in_force {
            self.counters.qos_drops.read("ips", dropped_by_ip);
        }
        self.traffic_page = Arc::new(page);
    }

    pub(super) fn sample_drops(&mut self, now: Timestamp) {
        for (reason, count) in self.plane.drops() {
            let before = self.counters.plane_drops_before.get(reason.name()).copied().unwrap_or(0);
            self.counters.plane_drops.insert(reason.name(), before.saturating_add(count));
            self.causes.look(reason.name(), count, now);
        }
        if let Ok(text) = std::fs::read_to_string("/proc/net/xfrm_stat") {
            self.counters.read_xfrm_stat(&text);
        }
        // With our own plane the kernel's statistics are those of others.
        if self.choice.plane == PlaneKind::Kernel {
            self.counters.xfrm_stats.iter().for_each(|(name, count)| self.causes.look(name, *count, now));
        }
    }

    /// Takes the counts of what the queues of gateways dropped and let pass.
    pub(super) fn sample_shaping(&mut self) {
        let Some(shaper) = &mut self.shaper else { return };
        match shaper.stats() {
            Ok(stats) => {
                let known = |s: &GatewayStats| self.config.gateway(&s.name).is_some();
                let stats: Vec<GatewayStats> = stats.into_iter().filter(known).collect();
                let sent = |s: &GatewayStats| ((s.name.clone(), s.interface), s.stats.bytes);
                self.passed.queues = stats.iter().map(sent).collect();
                let drops = stats.into_iter().map(|s| Count {
                    place: Place::of(s.name, "gateway"),
                    part: s.interface,
                    packets: s.stats.drops.into(),
                });
                self.counters.qos_drops.read("queues", drops);
            }
            Err(e) => tracing::debug!(error = %e, "statistics of traffic control"),
        }
    }
}
