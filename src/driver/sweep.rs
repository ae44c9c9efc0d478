//! New keys for many tunnels by one command: some at a time, each begun when another has ended, so that neither the peers'
//! limits nor the queues of a slow line see all of them at once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use cygnet_ike::io::RekeyKind;
use cygnet_ike::{Command, Input};
use cygnet_model::{Timestamp, TunnelId};
use tokio::sync::oneshot;

use super::answer::Sought;
use super::{Daemon, clock};
use crate::config::model::Tunnel;
use crate::control::{ErrorKind, Response};

/// Tunnels that make new keys at the same time.
const AT_ONCE: usize = 64;

/// How long a tunnel is waited for. Most failures are told sooner; a pair that the peer replaces while it makes new keys ends
/// without a word.
const PATIENCE: Duration = Duration::from_secs(180);

/// Failures that the answer tells in full.
const TOLD: usize = 5;

/// What was begun for many tunnels.
pub(super) struct Sweep {
    kind: RekeyKind,
    waiting: VecDeque<TunnelId>,
    under_way: BTreeMap<TunnelId, UnderWay>,
    tally: Tally,
    reply: oneshot::Sender<Response>,
}

/// A tunnel that makes new keys.
struct UnderWay {
    /// Rekeys that it still owes.
    left: usize,
    /// Not waited for beyond this.
    until: Timestamp,
}

/// How it went so far.
#[derive(Default)]
struct Tally {
    renewed: usize,
    /// Had no keys to renew.
    down: usize,
    failed: usize,
    /// The first failures, in words.
    why: Vec<String>,
}

impl Sweep {
    fn new(kind: RekeyKind, tunnels: VecDeque<TunnelId>, reply: oneshot::Sender<Response>) -> Self {
        Self { kind, waiting: tunnels, under_way: BTreeMap::new(), tally: Tally::default(), reply }
    }

    /// The next tunnel that may begin.
    fn next(&mut self) -> Option<TunnelId> {
        if self.under_way.len() < AT_ONCE { self.waiting.pop_front() } else { None }
    }

    /// A tunnel begins so many rekeys, or has nothing that could be rekeyed.
    fn begin(&mut self, tunnel: TunnelId, rekeys: usize, now: Timestamp) {
        match rekeys {
            0 => self.tally.down += 1,
            left => drop(self.under_way.insert(tunnel, UnderWay { left, until: now + PATIENCE })),
        }
    }

    fn renewed(&mut self, tunnel: TunnelId, kind: RekeyKind) {
        let Some(of) = self.under_way.get_mut(&tunnel).filter(|_| kind == self.kind) else { return };
        of.left -= 1;
        if of.left == 0 {
            self.under_way.remove(&tunnel);
            self.tally.renewed += 1;
        }
    }

    fn failed(&mut self, tunnel: TunnelId, name: &str, why: &str) {
        if self.under_way.remove(&tunnel).is_none() {
            return;
        }
        self.tally.failed += 1;
        if self.tally.why.len() < TOLD {
            self.tally.why.push(format!("{name}: {why}"));
        }
    }

    /// Tunnels that are under way for too long.
    fn overdue(&self, now: Timestamp) -> Vec<TunnelId> {
        self.under_way.iter().filter(|(_, of)| now >= of.until).map(|(id, _)| *id).collect()
    }

    fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }
}

impl Tally {
    fn answer(&self) -> Response {
        let down = match self.down {
            0 => String::new(),
            n => format!("; {n} not up"),
        };
        let message = format!("tunnels with new keys: {}{down}", self.renewed);
        if self.failed == 0 {
            return Response::done(message);
        }
        let more = self.failed - self.why.len();
        let and = if more == 0 { String::new() } else { format!("; and {more} more") };
        Response::Error {
            kind: ErrorKind::Failed,
            message: format!("{message}; {} without: {}{and}", self.failed, self.why.join("; ")),
            hint: "cygnet events --since 10m --no-follow --code rekey_failed".to_owned(),
        }
    }
}

impl Daemon {
    /// Makes new keys for all tunnels, or those of a gateway.
    pub(super) fn rekey_all(&mut self, gateway: Option<&str>, ike: bool, reply: oneshot::Sender<Response>) {
        // One for which nobody waits any more gives way.
        if let Some(sweep) = self.sweep.as_ref().filter(|sweep| !sweep.reply.is_closed()) {
            let left = sweep.waiting.len() + sweep.under_way.len();
            let message = format!("new keys are being made for all tunnels already: {left} to go");
            let _ = reply.send(Response::error(ErrorKind::Busy, message));
            return;
        }
        if let Some(name) = gateway.filter(|name| self.config.gateway(name).is_none()) {
            let _ = reply.send(self.unknown(Sought::Gateway, name));
            return;
        }
        let concerned = |t: &&Tunnel| gateway.is_none_or(|name| t.gateway == name);
        let all = self.config.tunnels.iter().filter(concerned);
        let ids = all.filter_map(|t| self.registry.tunnel(&t.name)).collect();
        self.sweep = Some(Sweep::new(if ike { RekeyKind::Ike } else { RekeyKind::Child }, ids, reply));
    }

    /// Begins what may begin, and answers when all has ended.
    pub(super) fn go_on_sweeping(&mut self) {
        while let Some((id, kind)) = self.sweep.as_mut().and_then(|sweep| Some((sweep.next()?, sweep.kind))) {
            let view = self.endpoint.view(id);
            let rekeys = match (&view, kind) {
                (Some(v), RekeyKind::Ike) => usize::from(v.ike.is_some()),
                (Some(v), RekeyKind::Child) if v.ike.is_some() => v.children.len(),
                _ => 0,
            };
            if let Some(sweep) = &mut self.sweep {
                // Noted first: it may end in the same turn.
                sweep.begin(id, rekeys, clock::now().mono);
            }
            if rekeys > 0 {
                let ike = kind == RekeyKind::Ike;
                self.input(Input::Command(if ike {
                    Command::RekeyIke(id)
                } else {
                    Command::RekeyChildren(id)
                }));
            }
        }
        if self.sweep.as_ref().is_some_and(Sweep::is_over)
            && let Some(sweep) = self.sweep.take()
        {
            self.publish_soon();
            let _ = sweep.reply.send(sweep.tally.answer());
        }
    }

    pub(super) fn sweep_renewed(&mut self, tunnel: TunnelId, kind: RekeyKind) {
        if let Some(sweep) = &mut self.sweep {
            sweep.renewed(tunnel, kind);
        }
    }

    pub(super) fn sweep_failed(&mut self, tunnel: TunnelId, why: &str) {
        if let Some(sweep) = &mut self.sweep
            && let Some(name) = self.registry.name(tunnel)
        {
            sweep.failed(tunnel, name, why);
        }
    }

    /// Ends the wait for tunnels of which nobody tells that their rekey failed: they went down, or out of the configuration, or
    /// are waited for too long.
    pub(super) fn sweep_the_lost(&mut self) {
        let Some(sweep) = &mut self.sweep else { return };
        let is_lost = |id: &TunnelId| self.endpoint.view(*id).is_none_or(|view| view.ike.is_none());
        let lost: Vec<TunnelId> = sweep.under_way.keys().copied().filter(is_lost).collect();
        let overdue = sweep.overdue(clock::now().mono);
        let lost = lost.into_iter().map(|id| (id, "went down, or is gone, meanwhile"));
        for (id, why) in lost.chain(overdue.into_iter().map(|id| (id, "not told of within three minutes"))) {
            sweep.failed(id, self.registry.name(id).unwrap_or("a tunnel"), why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_nanos(7);

    fn sweep(tunnels: u32) -> (Sweep, oneshot::Receiver<Response>) {
        let (reply, answer) = oneshot::channel();
        (Sweep::new(RekeyKind::Child, (0..tunnels).map(TunnelId).collect(), reply), answer)
    }

    #[test]
    fn a_bounded_number_is_under_way_and_each_that_ends_makes_room_for_one() {
        let (mut s, _answer) = sweep(1000);
        let begin = |s: &mut Sweep| {
            std::iter::from_fn(|| {
                let id = s.next()?;
                s.begin(id, 2, NOW);
                Some(id)
            })
            .count()
        };
        assert_eq!(begin(&mut s), AT_ONCE);
        s.renewed(TunnelId(0), RekeyKind::Child);
        assert_eq!(begin(&mut s), 0, "its other child still has the old keys");
        s.renewed(TunnelId(0), RekeyKind::Ike);
        assert_eq!(begin(&mut s), 0, "nobody asked for that");
        s.renewed(TunnelId(0), RekeyKind::Child);
        s.failed(TunnelId(1), "t1", "timeout");
        s.failed(TunnelId(999), "t999", "has not begun");
        assert_eq!(begin(&mut s), 2);
        assert_eq!((s.tally.renewed, s.tally.failed), (1, 1));
    }

    #[test]
    fn it_is_over_when_all_ended_and_tells_what_did_not_go_well() {
        let (mut s, _answer) = sweep(10);
        while let Some(id) = s.next() {
            s.begin(id, usize::from(id != TunnelId(9)), NOW);
        }
        assert!(!s.is_over());
        for n in 0..7 {
            s.failed(TunnelId(n), &format!("t{n}"), "timeout");
        }
        s.renewed(TunnelId(7), RekeyKind::Child);
        s.renewed(TunnelId(8), RekeyKind::Child);
        assert!(s.is_over());
        let Response::Error { message, .. } = s.tally.answer() else { panic!("some failed") };
        assert_eq!(
            message,
            "tunnels with new keys: 2; 1 not up; 7 without: t0: timeout; t1: timeout; t2: timeout; t3: timeout; t4: \
             timeout; and 2 more"
        );
    }

    #[test]
    fn what_never_ends_is_waited_for_no_longer_than_the_patience() {
        let (mut s, _answer) = sweep(2);
        for later in [0, 10] {
            let id = s.next().unwrap();
            s.begin(id, 1, NOW + Duration::from_secs(later));
        }
        assert_eq!(s.overdue(NOW + PATIENCE - Duration::from_nanos(1)), []);
        assert_eq!(s.overdue(NOW + PATIENCE), [TunnelId(0)], "each has its own time");
        s.failed(TunnelId(0), "t0", "too long");
        s.renewed(TunnelId(0), RekeyKind::Child);
        s.renewed(TunnelId(1), RekeyKind::Child);
        assert!(s.is_over());
        assert_eq!((s.tally.renewed, s.tally.failed), (1, 1), "what comes too late is not counted");
    }

    #[test]
    fn nothing_to_do_is_done_at_once() {
        let (s, _answer) = sweep(0);
        assert!(s.is_over());
        assert_eq!(s.tally.answer(), Response::done("tunnels with new keys: 0"));
    }
}
