//! What happens to a fleet before the weather clears, and how often.

use std::time::Duration;

use cygnet_ike::{Command, Input};
use cygnet_model::TunnelId;
use cygnet_model::tunnel::SaId;

use super::plan::Entry;
use super::{Fleet, Process, Word};

/// What may happen to a gateway, or to a tunnel.
#[derive(Clone, Copy, Debug)]
enum Happening {
    /// One end's configuration changes.
    ChangeOneEnd,
    /// Both do, one after the other.
    ChangeBothEnds,
    /// The process dies, now or in the middle of what comes next.
    Die,
    /// All that are dead are started.
    ComeBack,
    /// The process is replaced by another one, and nothing is lost.
    HandOver,
    /// The host forgets everything.
    PowerFailure,
    /// The data plane refuses what comes next, or does it and says that it did not.
    Refuse,
    /// Nothing gets through to another gateway any more, or in either direction.
    Cut,
    /// Everything gets through again.
    Mend,
    /// The jobs that wait are never done.
    LoseJobs,
    /// An SA has carried as much as it may.
    Expire,
    /// An operator has a word.
    Command,
}

/// How often each of them happens, of [`ALL`].
const OFTEN: [(u64, Happening); 12] = [
    (6, Happening::ChangeOneEnd),
    (3, Happening::ChangeBothEnds),
    (3, Happening::Die),
    (4, Happening::ComeBack),
    (1, Happening::HandOver),
    (1, Happening::PowerFailure),
    (3, Happening::Refuse),
    (2, Happening::Cut),
    (2, Happening::Mend),
    (1, Happening::LoseJobs),
    (1, Happening::Expire),
    (5, Happening::Command),
];

/// How often all of them happen.
const ALL: u64 = 32;

impl Happening {
    /// The one that a number below [`ALL`] stands for.
    fn of(mut number: u64) -> Self {
        for (often, happening) in OFTEN {
            if number < often {
                return happening;
            }
            number -= often;
        }
        unreachable!("the numbers add up")
    }
}

impl Fleet {
    /// Something happens to one of them.
    pub(super) fn happen(&mut self) {
        let gateway = self.any_gateway();
        match Happening::of(self.lab.below(ALL)) {
            Happening::ChangeOneEnd => self.change_one_end(),
            Happening::ChangeBothEnds => self.change_both_ends(),
            Happening::Die if self.lab.below(2) == 0 => self.lab.kill(gateway),
            Happening::Die => self.lab.gateways[gateway].dies_after = Some(self.lab.below(6) as usize),
            Happening::ComeBack => (0..self.plan.gateways).for_each(|gateway| self.revive(gateway)),
            Happening::HandOver => {
                let policies = self.next(gateway, Process::Begins);
                self.lab.replace_process(gateway, policies);
            }
            Happening::PowerFailure => {
                let policies = self.next(gateway, Process::Begins);
                self.lab.remark(gateway, "loses its power");
                self.lab.restart_all(gateway, policies);
            }
            Happening::Refuse => {
                let (unsure, times) = (self.lab.below(2) == 0, 1 + self.lab.below(3) as u32);
                let plane = &mut self.lab.gateways[gateway].plane;
                (plane.unsure, plane.fail_next) = (unsure, times);
            }
            Happening::Cut => self.cut(gateway),
            Happening::Mend => self.lab.cut.clear(),
            Happening::LoseJobs => self.lab.lose_jobs(gateway),
            Happening::Expire => self.expire(gateway),
            Happening::Command => self.command(gateway),
        }
    }

    fn any_gateway(&mut self) -> usize {
        self.lab.below(self.plan.gateways as u64) as usize
    }

    fn any_tunnel(&mut self) -> usize {
        self.lab.below(self.plan.tunnels.len() as u64) as usize
    }

    fn cut(&mut self, gateway: usize) {
        let all = self.plan.gateways;
        let other = (gateway + 1 + self.lab.below(all as u64 - 1) as usize) % all;
        self.lab.remark(gateway, format_args!("is cut off from {other}"));
        self.lab.cut.insert((gateway, other));
        if self.lab.below(2) == 0 {
            self.lab.cut.insert((other, gateway));
        }
    }

    fn expire(&mut self, gateway: usize) {
        let sas: Vec<SaId> = self.lab.gateways[gateway].plane.sas.keys().copied().collect();
        let pick = self.lab.below(sas.len().max(1) as u64) as usize;
        let hard = self.lab.below(2) == 0;
        if let Some(sa) = sas.get(pick) {
            self.lab.input(gateway, Input::Expired { sa: *sa, hard });
        }
    }

    fn command(&mut self, gateway: usize) {
        let ids: Vec<TunnelId> = self.running[gateway].iter().map(|p| p.id).collect();
        let pick = self.lab.below(ids.len().max(1) as u64) as usize;
        let kind = self.lab.below(8);
        let Some(id) = ids.get(pick).copied() else { return };
        if !self.lab.gateways[gateway].alive {
            return;
        }
        let command = match kind {
            0..=2 => Command::RekeyChildren(id),
            3 | 4 => Command::RekeyIke(id),
            5 => Command::Reset(id),
            6 => Command::Up(id),
            _ => Command::Down(id),
        };
        match command {
            Command::Up(_) => {
                self.roused.insert(self.number(gateway, id));
                self.words.insert((gateway, id), Word::Up);
            }
            Command::Down(_) => {
                self.words.insert((gateway, id), Word::Down);
            }
            _ => {}
        }
        self.lab.remark(gateway, format_args!("is told {command:?}"));
        self.lab.command(gateway, command);
    }

    /// An operator changes, removes or adds a tunnel at one end.
    fn change_one_end(&mut self) {
        let (tunnel, end) = (self.any_tunnel(), self.lab.below(2) as usize);
        let [here, there] = [self.entries[tunnel][end], self.entries[tunnel][1 - end]];
        self.entries[tunnel][end] = match (here, self.lab.below(4)) {
            (Some(_), 0) => None,
            (Some(_), 1) => there,
            (Some(entry), _) => Some(entry.neighbour(&mut self.lab.random)),
            (None, _) => there.or_else(|| Some(Entry::random(&mut self.lab.random))),
        };
        self.reload(self.plan.tunnels[tunnel].ends[end]);
    }

    /// The same at both ends, one after the other.
    fn change_both_ends(&mut self) {
        let tunnel = self.any_tunnel();
        let entry = self.entries[tunnel].into_iter().flatten().next();
        let entry = match (entry, self.lab.below(4)) {
            (Some(_), 0) => None,
            (Some(entry), _) => Some(entry.neighbour(&mut self.lab.random)),
            (None, _) => Some(Entry::random(&mut self.lab.random)),
        };
        self.entries[tunnel] = [entry; 2];
        for end in 0..2 {
            self.reload(self.plan.tunnels[tunnel].ends[end]);
            if self.lab.below(2) == 0 {
                let pause = self.lab.below(1_000_000_000);
                self.lab.run(Duration::from_nanos(pause));
            }
        }
    }
}
