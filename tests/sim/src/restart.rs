//! Processes that die and come back: what was kept of them, and the data plane that went on without them.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};

use cygnet_ike::saved::{Change, Refused, Saved, parse_sa, show_sa};
use cygnet_ike::wire::{Exchange, Header, PayloadType};
use cygnet_ike::{Action, TunnelPolicy};
use cygnet_model::IkeSpi;
use cygnet_model::plane::DataPlane;
use cygnet_model::tunnel::SaId;

use crate::Lab;

/// What a process has kept, and what it had kept before.
#[derive(Clone, Default)]
pub struct Records {
    now: BTreeMap<IkeSpi, Vec<u8>>,
    /// What each of the last changes replaced, newest first.
    before: VecDeque<Vec<(IkeSpi, Option<Vec<u8>>)>>,
}

/// How many earlier states of the records are remembered.
const REMEMBERED: usize = 16;

impl Records {
    fn keep(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut replaced = Vec::new();
        for Change { spi, saved } in changes {
            let old = match saved {
                Some(saved) => self.now.insert(spi, saved.expose().to_vec()),
                None => self.now.remove(&spi),
            };
            replaced.push((spi, old));
        }
        self.before.push_front(replaced);
        self.before.truncate(REMEMBERED);
    }

    /// Goes back by so many changes, as far as there are any.
    fn roll_back(&mut self, changes: usize) {
        for _ in 0..changes {
            for (spi, old) in self.before.pop_front().into_iter().flatten() {
                match old {
                    Some(old) => self.now.insert(spi, old),
                    None => self.now.remove(&spi),
                };
            }
        }
    }

    /// The IKE SAs that are kept.
    pub fn all(&self) -> impl Iterator<Item = (&IkeSpi, &Vec<u8>)> {
        self.now.iter()
    }
}

/// How a process comes back.
#[derive(Default)]
pub struct Back {
    /// Its records are older than they should be, by so many changes.
    pub behind: usize,
    /// It has none at all.
    pub forgotten: bool,
    /// SAs that the data plane has lost.
    pub lost: BTreeSet<SaId>,
    /// The data plane does not know what it had received.
    pub renew: bool,
}

/// Every IV that was sent under any key, to see that none is used for two messages.
#[derive(Default)]
pub(crate) struct Ivs(BTreeMap<(u64, u64, bool, u32, [u8; 8]), u64>);

impl Ivs {
    /// Looks at a datagram. The very same octets may go out again.
    pub fn see(&mut self, bytes: &[u8]) {
        let Ok((header, _)) = Header::decode(bytes) else { return };
        let at = match header.next {
            PayloadType::SK => 32,
            PayloadType::SKF => 36,
            _ => return,
        };
        if header.exchange == Exchange::IKE_SA_INIT {
            return;
        }
        let Some(iv) = bytes.get(at..at + 8).and_then(|iv| <[u8; 8]>::try_from(iv).ok()) else { return };
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let digest = hasher.finish();
        // Each IKE_INTERMEDIATE exchange has keys of its own, and what comes after them has the last ones.
        let keys = if header.exchange == Exchange::IKE_INTERMEDIATE { header.message_id } else { 0 };
        let known = self.0.insert((header.spi_i, header.spi_r, header.from_initiator, keys, iv), digest);
        assert!(known.is_none_or(|known| known == digest), "one IV for two messages: {header:?}");
    }
}

impl Lab {
    /// Keeps what changed, and then does what is to be done: what is kept is never behind what the peer sees.
    pub(crate) fn keep_and_perform(&mut self, side: usize, mut actions: Vec<Action>) {
        let g = &mut self.gateways[side];
        let changes = g.endpoint.take_changes();
        g.records.keep(changes);
        let dies = if actions.is_empty() { None } else { g.dies_after.take() };
        if let Some(dies) = dies {
            actions.truncate(dies);
            g.alive = false;
            self.remark(side, "dies in the middle");
        }
        self.perform(side, actions);
    }

    /// For whoever follows one seed.
    pub(crate) fn remark(&self, side: usize, what: impl std::fmt::Display) {
        if self.tells {
            eprintln!("{:?} gateway {side} {what}", self.now);
        }
    }

    /// A gateway's process is killed. Its data plane goes on.
    pub fn kill(&mut self, side: usize) {
        self.remark(side, "dies");
        self.gateways[side].alive = false;
    }

    /// It is started again, with the records of the one before.
    pub fn come_back(&mut self, side: usize, policies: Vec<TunnelPolicy>, back: Back) -> Vec<Refused> {
        self.remark(side, "comes back");
        self.begin_process(side);
        let now = self.now();
        let g = &mut self.gateways[side];
        (g.alive, g.dies_after) = (true, None);
        g.records.roll_back(back.behind);
        g.rolled_back |= back.behind > 0;
        if back.forgotten {
            g.records = Records::default();
        }
        for sa in &back.lost {
            g.plane.remove(*sa).expect("removing never fails");
        }
        // As a driver finds them: a tunnel whose SAs are gone is closed.
        let carried: BTreeSet<_> = g.plane.sas.keys().map(|sa| sa.child).collect();
        g.plane.tunnels.retain(|child, _| carried.contains(child));
        let parse = |bytes: &Vec<u8>| Saved::parse(bytes).expect("its own record");
        let saved = g.records.now.values().map(parse).collect();
        // What a data plane takes up again it has as octets.
        let again = |spec| parse_sa(show_sa(spec).expose()).expect("its own record");
        let present: BTreeSet<SaId> = g.plane.sas.values().map(|(_, spec)| again(spec).id).collect();
        self.guard(side, &policies);
        let g = &mut self.gateways[side];
        let mut out = Vec::new();
        let refused = g.endpoint.restore(now, policies, saved, &present, back.renew, &mut out);
        self.keep_and_perform(side, out);
        refused
    }

    /// Gives a gateway its policy, if its process runs.
    pub fn configure_dead(&mut self, side: usize, policy: TunnelPolicy) {
        if self.gateways[side].alive {
            self.configure(side, policy);
        }
    }

    /// Its process is replaced by another one within a moment, and nothing is lost.
    pub fn replace_process(&mut self, side: usize, policies: Vec<TunnelPolicy>) -> Vec<Refused> {
        self.kill(side);
        self.come_back(side, policies, Back::default())
    }
}
