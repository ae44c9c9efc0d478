//! Two gateways whose datagrams, jobs and SAs pass from hand to hand.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Context;
use cygnet_esp::engine::Engine;
use cygnet_ike::crypto::Random;
use cygnet_ike::policy::{ChildPolicy, Encap, Retransmit, Start};
use cygnet_ike::view::TunnelState;
use cygnet_ike::wire::Identity;
use cygnet_ike::{Action, Command, Config, Endpoint, Flow, Input, TunnelPolicy};
use cygnet_model::plane::PlaneError;
use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::{Bypass, GuardAction, GuardSpec};
use cygnet_model::{ChildId, Now, Reqid, SecretBytes, Timestamp, TunnelId};

/// Tunnels that are configured beyond those that are established, whatever is done with them.
pub const SPARE: u32 = 100;

/// How long what was begun may take: more than the waits of the protocol.
const SETTLED: Duration = Duration::from_secs(20);

/// Numbers that are the same in every run (xorshift64*, Vigna 2016).
struct Numbers(u64);

impl Random for Numbers {
    fn fill(&mut self, out: &mut [u8]) {
        for octet in out {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            *octet = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()[0];
        }
    }
}

struct Gateway {
    endpoint: Endpoint,
    engine: Engine,
    numbers: Numbers,
}

/// See the [module](self).
pub struct Gateways {
    both: [Gateway; 2],
    now: Timestamp,
    on_the_way: VecDeque<(usize, Flow, Vec<u8>)>,
    tunnels: u32,
    /// The first action that the data plane refused.
    pub trouble: Option<PlaneError>,
}

impl Gateways {
    /// Two gateways with tunnels of their own identities and networks between them. The first `tunnels` are established,
    /// [`SPARE`] more are configured.
    pub fn with(tunnels: u32) -> anyhow::Result<Self> {
        let now = Timestamp::from_nanos(1_000_000_000_000);
        let gateway = |seed| {
            let endpoint =
                Endpoint::new(Config::default(), Now { mono: now, unix: 0 }, Box::new(Numbers(seed)));
            Gateway { endpoint, engine: Engine::default(), numbers: Numbers(seed + 1) }
        };
        let both = [gateway(1), gateway(3)];
        let mut pair =
            Self { both, now, on_the_way: VecDeque::new(), tunnels: tunnels + SPARE, trouble: None };
        for side in [0, 1] {
            let policies: anyhow::Result<Vec<_>> = (0..pair.tunnels).map(|n| policy(side, n)).collect();
            let policies = policies?;
            let guards: Option<Vec<GuardSpec>> = policies.iter().map(guard).collect();
            pair.both[side].engine.guard_all(&guards.context("a guard for each")?)?;
            let mut actions = Vec::new();
            let at = pair.at();
            pair.both[side].endpoint.set_policies(at, policies, &mut actions);
            pair.perform(side, actions);
        }
        (0..tunnels).for_each(|n| pair.command(Command::Up(TunnelId(n))));
        pair.settle();
        Ok(pair)
    }

    /// How many tunnels are up at both ends.
    pub fn established(&self) -> u32 {
        let is_up = |gateway: &Gateway, n| {
            gateway.endpoint.view(TunnelId(n)).is_some_and(|view| view.state == TunnelState::Up)
        };
        let up = (0..self.tunnels).filter(|n| self.both.iter().all(|gateway| is_up(gateway, *n)));
        u32::try_from(up.count()).unwrap_or(u32::MAX)
    }

    /// A gateway's data plane.
    pub fn engine(&self, side: usize) -> Option<&Engine> {
        self.both.get(side).map(|gateway| &gateway.engine)
    }

    /// Tells gateway 0 to do something.
    pub fn command(&mut self, command: Command) {
        self.input(0, Input::Command(command));
        self.deliver();
    }

    /// Lets time pass until everything that was begun is done.
    pub fn settle(&mut self) {
        let end = self.now + SETTLED;
        loop {
            self.deliver();
            let next = self.both.iter().filter_map(|gateway| gateway.endpoint.next_wakeup()).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            [0, 1].into_iter().for_each(|side| self.input(side, Input::Tick));
        }
    }

    fn at(&self) -> Now {
        Now { mono: self.now, unix: 0 }
    }

    fn deliver(&mut self) {
        while let Some((side, flow, bytes)) = self.on_the_way.pop_front() {
            self.input(side, Input::Datagram { flow, bytes: &bytes });
        }
    }

    fn input(&mut self, side: usize, input: Input<'_>) {
        let at = self.at();
        let mut actions = Vec::new();
        self.both[side].endpoint.handle(at, input, &mut actions);
        self.perform(side, actions);
    }

    fn perform(&mut self, side: usize, actions: Vec<Action>) {
        let mut done = Vec::new();
        let Gateway { endpoint, engine, numbers } = &mut self.both[side];
        // The driver keeps them before it does anything else.
        drop(endpoint.take_changes());
        for action in actions {
            let refused = match action {
                Action::Send { flow, bytes } => {
                    let back = Flow { local: flow.remote, remote: flow.local, natt: flow.natt };
                    self.on_the_way.push_back((1 - side, back, bytes));
                    Ok(())
                }
                Action::OpenTunnel(spec) => engine.open_tunnel(&spec),
                Action::CloseTunnel(child) => {
                    engine.close_tunnel(child);
                    Ok(())
                }
                Action::InstallSa(spec) => engine.install(&spec),
                Action::RemoveSa(sa) => {
                    engine.remove(sa);
                    Ok(())
                }
                Action::Migrate(sa, to) => engine.migrate(sa, to),
                Action::Run(id, job) => {
                    done.push((id, job.run(numbers)));
                    Ok(())
                }
                Action::Keepalive(_) | Action::Tell(_) => Ok(()),
            };
            self.trouble = self.trouble.take().or(refused.err());
        }
        for (id, output) in done {
            self.input(side, Input::Done(id, output));
        }
    }
}

/// What is taken under guard for a tunnel.
fn guard(policy: &TunnelPolicy) -> Option<GuardSpec> {
    let child = ChildId { tunnel: policy.id, index: 0 };
    let networks = policy.children.get(0)?;
    Some(GuardSpec {
        child,
        reqid: Reqid::of(child)?,
        local: networks.local.clone(),
        remote: networks.remote.clone(),
        action: GuardAction::Drop,
        mark: None,
        weight: networks.weight,
        bypass: Bypass::NONE,
    })
}

/// Tunnel `n` of a gateway, which waits until it is told to begin.
fn policy(side: usize, n: u32) -> anyhow::Result<TunnelPolicy> {
    let [_, _, high, low] = n.to_be_bytes();
    let outer = |of: usize| IpAddr::from([192, 0, 2, if of == 0 { 1 } else { 2 }]);
    let networks = |of: usize| -> anyhow::Result<Vec<TrafficSelector>> {
        let first = Ipv4Addr::from([if of == 0 { 20 } else { 21 }, high, low, 0]);
        Ok(vec![TrafficSelector::cidr(first.into(), 24).context("a network")?])
    };
    let name = |of: usize| Identity::fqdn(&format!("{}-{n}.example", if of == 0 { "a" } else { "b" }));
    let other = 1 - side;
    let child = ChildPolicy {
        weight: 0,
        local: networks(side)?,
        remote: networks(other)?,
        proposals: vec!["aes256gcm16-x25519".parse()?],
        lifetime: Duration::from_secs(3600),
        bytes: 0,
        replay_window: 1024,
        mark: None,
    };
    Ok(TunnelPolicy {
        id: TunnelId(n),
        name: format!("t{n}"),
        local: vec![outer(side)],
        remote: vec![outer(other)],
        local_id: name(side),
        remote_id: name(other).into(),
        psk: SecretBytes::copy_of(b"pL7v0y2QxNf8sKd3RwZtB5"),
        other_psks: Vec::new(),
        start: Start::Passive,
        proposals: vec!["aes256gcm16-prfsha384-x25519".parse()?],
        lifetime: Duration::from_secs(86_400),
        dpd: None,
        // As our own data plane asks for.
        encap: Encap::Force,
        fragmentation: true,
        retransmit: Retransmit::default(),
        children: [(0, child)].into_iter().collect(),
    })
}
