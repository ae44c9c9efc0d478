//! Packets between the networks of a fleet, through whatever the data planes hold at that moment.

use cygnet_ike::Input;
use cygnet_ike::policy::Start;
use cygnet_model::ChildId;
use cygnet_model::plane::Acquire;
use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::{Direction, SaId};

use super::Fleet;
use crate::agree::first;

impl Fleet {
    /// A packet for each pair of networks that a running gateway protects.
    pub(super) fn traffic(&mut self) {
        for gateway in 0..self.lab.gateways.len() {
            if !self.lab.gateways[gateway].alive {
                continue;
            }
            let mut packets = Vec::new();
            for p in &self.running[gateway] {
                packets.extend(crate::pairs(p).into_iter().map(|(l, r)| (p.id, p.start, l, r)));
            }
            for (tunnel, start, local, remote) in packets {
                let child = self.packet(gateway, &local, &remote);
                match child {
                    Some(child) => {
                        let of = self.tunnel_of(gateway, child);
                        let own = self.number(gateway, tunnel);
                        assert_eq!(
                            of, own,
                            "seed {}: {local} -> {remote} leaves by another tunnel",
                            self.seed
                        );
                    }
                    None if start == Start::OnDemand => self.ask(gateway, &local, &remote),
                    None => {}
                }
            }
        }
    }

    /// Sends one packet. By which child it left.
    fn packet(&mut self, from: usize, local: &TrafficSelector, remote: &TrafficSelector) -> Option<ChildId> {
        let (source, destination) = (first(local), first(remote));
        let out = self.lab.gateways[from].plane.carrier(&source, &destination)?;
        let child = out.id.child;
        let to = self.lab.gateways.iter().position(|g| g.addr == out.remote)?;
        if self.lab.cut.contains(&(from, to)) {
            return Some(child);
        }
        if let Some(inbound) = self.lab.gateways[to].plane.inbound(out.id.spi)
            && inbound.encr_key.ct_eq(out.encr_key.expose())
            && inbound.inner_remote.iter().any(|s| s.matches(&source))
            && inbound.inner_local.iter().any(|s| s.matches(&destination))
        {
            let id: SaId = inbound.id;
            assert_eq!(id.direction, Direction::In);
            let (sent, taken) = (self.tunnel_of(from, child), self.tunnel_of(to, id.child));
            assert_eq!(sent, taken, "seed {}: a packet of one tunnel is taken by another", self.seed);
            self.lab.input(to, Input::Inbound(id));
        }
        Some(child)
    }

    /// A packet met a guard that asks for its tunnel.
    fn ask(&mut self, gateway: usize, local: &TrafficSelector, remote: &TrafficSelector) {
        let guards = self.lab.gateways[gateway].plane.guards.values();
        let matches = |all: &[TrafficSelector], one| all.iter().any(|s| s.matches(&first(one)));
        let guard = guards.into_iter().find(|g| matches(&g.local, local) && matches(&g.remote, remote));
        let child = guard.map(|g| g.child).expect("what is configured is guarded");
        self.lab.input(gateway, Input::Acquire(Acquire::from(child)));
    }

    /// Which tunnel of the plan a gateway's child belongs, or belonged, to.
    fn tunnel_of(&self, gateway: usize, child: ChildId) -> usize {
        self.number(gateway, child.tunnel)
    }
}
