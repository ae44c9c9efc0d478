//! Watches whether traffic passes the tunnels that are up, tells when it does not seem to, and asks for new keys then.

use std::collections::BTreeMap;

use cygnet_ike::{Command, Input};
use cygnet_model::plane::SaCounters;
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, Timestamp, TunnelId};

use super::Daemon;
use super::publish::counted;
use crate::observe::events::Kind;
use crate::observe::passage::{Carried, Change, share_answers};

/// What may be wrong, and where to look, when packets leave and none come in although IKE is answered.
const LIKELY: &str = "the IKE SA is alive, so the way of ESP is the likely fault: something drops UDP 4500 or protocol 50 \
                      on the way, the peer has lost its SAs, or it has no route back to our networks; new keys are asked \
                      for, which mends what the peer has lost";

impl Daemon {
    /// Looks at the counters of all children that are up.
    pub(super) fn watch_passage(&mut self, now: Timestamp) {
        let mut carried: BTreeMap<ChildId, Carried> = BTreeMap::new();
        for memory in self.tunnels.values() {
            for (sa, counters) in &memory.sas {
                carried.entry(sa.child).or_default().add(sa.direction, counters.packets);
            }
        }
        for (child, total) in &mut carried {
            let before = self.retired.get(child).copied().unwrap_or_default();
            total.add(Direction::Out, before.sent);
            total.add(Direction::In, before.received);
        }
        share_answers(&mut carried, self.quality.partners());
        self.passage.retain(|child| carried.contains_key(&child));
        self.retired.retain(|child, _| carried.contains_key(child));
        let changes: Vec<(ChildId, Change)> = (carried.into_iter())
            .filter_map(|(child, total)| Some((child, self.passage.look(child, now, total)?)))
            .collect();
        for (child, change) in changes {
            self.on_passage(child, change);
        }
    }

    /// Keeps what an SA carried that is removed, so that new keys are no sign of life.
    pub(super) fn note_retired(&mut self, sa: SaId, last: SaCounters) {
        let seen = self.tunnels.get(&sa.child.tunnel).map_or(0, |m| counted(&m.sas, sa).packets);
        // A plane that has already lost the SA answers with zeros.
        self.retired.entry(sa.child).or_default().add(sa.direction, last.packets.max(seen));
    }

    fn on_passage(&mut self, child: ChildId, change: Change) {
        let networks = self.endpoint.view(child.tunnel).and_then(|v| {
            let c = v.children.iter().find(|c| c.id == child)?;
            Some(format!("{:?} === {:?}", c.local, c.remote))
        });
        // Gone between the sample and now.
        let Some(networks) = networks else { return };
        match change {
            Change::Suspect => {
                let message = format!("packets leave and none come in, {networks}: {LIKELY}");
                self.tell_tunnel(child.tunnel, Kind::TrafficSuspect, &message);
            }
            Change::Renew => self.input(Input::Command(Command::RekeyChildren(child.tunnel))),
            Change::Passes => {
                let message = format!("packets come in again, {networks}");
                self.tell_tunnel(child.tunnel, Kind::TrafficPasses, &message);
            }
        }
    }

    /// For how many seconds packets have left by a tunnel without any coming in, if that is suspicious.
    pub(super) fn unanswered(&self, tunnel: TunnelId, now: Timestamp) -> Option<u64> {
        let memory = self.tunnels.get(&tunnel)?;
        let children = memory.sas.iter().map(|(sa, _)| sa.child);
        let since = children.filter_map(|child| self.passage.suspect_since(child)).min()?;
        Some(now.since(since).as_secs())
    }
}
