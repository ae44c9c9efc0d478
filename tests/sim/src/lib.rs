//! Gateways in memory, two of them in most scenarios, with a virtual clock and links that lose, repeat, delay and reorder.
//!
//! Everything random comes from one seed, so a failure is repeated by its seed. The data plane is
//! [`MemoryPlane`]; probe packets are sent through whatever it holds, and counted if they would have been lost. Jobs are
//! done at once, unless [`Pace`] says otherwise.

mod agree;
pub mod fleet;
mod guards;
mod jobs;
mod restart;
mod seeds;
pub mod version;
mod weather;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use jobs::Pace;
use jobs::Waiting;
pub use restart::Back;
use restart::{Ivs, Records};
pub use seeds::{failures, seeds};
pub use weather::{Begun, Fate, Weather};

use cygnet_ike::account::Account;
use cygnet_ike::crypto::Random;
use cygnet_ike::policy::{ChildPolicy, Encap, Retransmit, Start, TunnelPolicy};
use cygnet_ike::recording::Recorder;
use cygnet_ike::view::{TunnelState, TunnelView};
use cygnet_ike::wire::{Exchange, Identity, Payloads};
use cygnet_ike::{Action, Command, Config, Endpoint, Event, Flow, Input};
use cygnet_model::plane::DataPlane;
use cygnet_model::selector::TrafficSelector;
use cygnet_model::testing::MemoryPlane;
use cygnet_model::tunnel::Direction;
use cygnet_model::{ChildId, Now, SecretBytes, Timestamp, TunnelId};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// The only tunnel of most scenarios.
pub const TUNNEL: TunnelId = TunnelId(0);

/// Randomness from a seed.
pub struct Seeded(ChaCha8Rng);

impl Seeded {
    /// A source whose whole output follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }
}

impl Random for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.fill_bytes(out);
    }
}

/// One source for a gateway's protocol and for its jobs.
#[derive(Clone)]
struct Shared(Arc<Mutex<Seeded>>);

impl Random for Shared {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.lock().expect("nobody panics with it").fill(out);
    }
}

/// How bad the link is. Probabilities in permille.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Datagrams that vanish.
    pub loss: u64,
    /// Datagrams that arrive twice.
    pub duplication: u64,
    /// Shortest and longest time on the way; a wide range reorders.
    pub delay: (Duration, Duration),
}

impl Link {
    /// 5 ms each way and nothing goes wrong.
    pub const GOOD: Self =
        Self { loss: 0, duplication: 0, delay: (Duration::from_millis(5), Duration::from_millis(5)) };
    /// A fifth lost, a fifth repeated, up to 700 ms on the way.
    pub const BAD: Self =
        Self { loss: 200, duplication: 200, delay: (Duration::from_millis(1), Duration::from_millis(700)) };
}

/// One end.
pub struct Gateway {
    /// Its protocol.
    pub endpoint: Endpoint,
    /// What its data plane holds.
    pub plane: MemoryPlane,
    /// Its own idea of its address.
    pub addr: IpAddr,
    /// What it said, without datagram-level events.
    pub events: Vec<(Timestamp, Event)>,
    /// Its accounts of negotiations.
    pub accounts: Vec<Account>,
    /// Drops by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// Cookies that strangers were asked for, and valid ones that came back.
    pub cookies: (u64, u64),
    /// Shared secrets computed.
    pub secrets: Arc<AtomicU64>,
    /// How fast its jobs are done.
    pub pace: Pace,
    /// Jobs that are not done yet.
    waiting: Waiting,
    random: Shared,
    /// What its process has kept.
    pub records: Records,
    /// Whether its process runs. The data plane goes on without it.
    pub alive: bool,
    /// After how many actions of the next input that has any its process dies.
    pub dies_after: Option<usize>,
    /// Outbound keys that its data plane had, to see that none comes twice and counts from the beginning again.
    pub(crate) outbound_keys: BTreeSet<Vec<u8>>,
    /// How many processes it has had before.
    lives: u64,
    /// Children that the configuration has no more and whose guards go when they have no SA any more.
    leaving: BTreeSet<ChildId>,
    /// It came back with records that were too old, which may hold an SA that came and went since (decision 0110).
    pub(crate) rolled_back: bool,
}

enum Payload {
    Ike { natt: bool, bytes: Vec<u8> },
    Probe { child: ChildId, spi: u32, key: Vec<u8> },
}

struct InFlight {
    at: Timestamp,
    order: u64,
    to: usize,
    source: SocketAddr,
    destination: SocketAddr,
    payload: Payload,
}

impl PartialEq for InFlight {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for InFlight {}
impl PartialOrd for InFlight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for InFlight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A NAT in front of gateway 0: its address becomes `public`, and each port another one.
#[derive(Default)]
pub struct Nat {
    /// The address that the world sees.
    pub public: Option<IpAddr>,
    /// Private port to public port.
    pub ports: BTreeMap<u16, u16>,
    /// Next public port.
    pub next: u16,
}

/// The laboratory.
pub struct Lab {
    /// Gateways 0 and 1, and more where a scenario has more.
    pub gateways: Vec<Gateway>,
    /// The links between them.
    pub link: Link,
    /// Ways on which nothing arrives at all: from, to.
    pub cut: BTreeSet<(usize, usize)>,
    /// The NAT in front of gateway 0, if it has a public address.
    pub nat: Nat,
    /// A man in the middle: sees every IKE datagram as (sender, octets) and may change or swallow it.
    #[allow(clippy::type_complexity, reason = "a hook that tests write as a closure")]
    pub tap: Option<Box<dyn FnMut(usize, Vec<u8>) -> Option<Vec<u8>>>>,
    /// Weather of a recording, which goes before that of the link.
    pub weather: Option<Weather>,
    /// A gateway that records, and its recording.
    pub recording: Option<(usize, Recorder)>,
    now: Timestamp,
    random: Seeded,
    wire: BinaryHeap<Reverse<InFlight>>,
    order: u64,
    seed: u64,
    /// IKE datagrams sent by each gateway.
    pub sent: Vec<u64>,
    /// NAT keepalives sent by each gateway.
    pub keepalives: Vec<u64>,
    /// Timers that fired at each gateway.
    pub wakes: Vec<u64>,
    /// Somebody follows this seed: everything is printed.
    tells: bool,
    ivs: Ivs,
    /// Probes sent and probes that would have been lost for lack of an SA.
    pub probes: (u64, u64),
}

/// A network as selector.
pub fn net(text: &str) -> TrafficSelector {
    let (addr, len) = text.split_once('/').expect("a CIDR");
    TrafficSelector::cidr(addr.parse().expect("an address"), len.parse().expect("a length")).expect("a CIDR")
}

/// A policy once more, for a laboratory to keep: keys are not copied by accident.
pub fn copy(p: &TunnelPolicy) -> TunnelPolicy {
    TunnelPolicy {
        name: p.name.clone(),
        local: p.local.clone(),
        remote: p.remote.clone(),
        local_id: p.local_id.clone(),
        remote_id: p.remote_id.clone(),
        psk: p.psk.duplicate(),
        other_psks: p.other_psks.iter().map(SecretBytes::duplicate).collect(),
        proposals: p.proposals.clone(),
        children: p.children.clone(),
        ..*p
    }
}

/// The same of both ends.
pub fn copies(both: &[TunnelPolicy; 2]) -> [TunnelPolicy; 2] {
    [0, 1].map(|side| copy(&both[side]))
}

/// Every pair of networks that a policy protects: ours, the peer's.
pub fn pairs(policy: &TunnelPolicy) -> Vec<(TrafficSelector, TrafficSelector)> {
    let of = |(_, c): (u16, &ChildPolicy)| {
        let pairs = c.local.iter().flat_map(|l| c.remote.iter().map(|r| (*l, *r)));
        pairs.collect::<Vec<_>>()
    };
    policy.children.iter().flat_map(of).collect()
}

/// A policy whose peer takes one pair of networks into each child: the same networks, in as many children as there are
/// pairs.
pub fn single_pairs(mut policy: TunnelPolicy) -> TunnelPolicy {
    let one = |(_, c): (u16, &ChildPolicy)| {
        let all = pairs(&TunnelPolicy { children: vec![c.clone()].into(), ..self::policy(0, 0) });
        all.into_iter()
            .map(|(l, r)| ChildPolicy { local: vec![l], remote: vec![r], ..c.clone() })
            .collect::<Vec<_>>()
    };
    policy.children = policy.children.iter().flat_map(one).collect::<Vec<_>>().into();
    policy
}

/// Outer addresses of the two gateways.
pub const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// The policy of gateway `side` for a tunnel with `children` children.
pub fn policy(side: usize, children: u8) -> TunnelPolicy {
    let addr = |i: usize| -> IpAddr { ADDRESSES[i].parse().expect("an address") };
    let other = 1 - side;
    let nets = |i: usize, c: u8| vec![net(&format!("10.{}.{c}.0/24", i + 1))];
    TunnelPolicy {
        id: TUNNEL,
        name: "a-b".into(),
        local: vec![addr(side)],
        remote: vec![addr(other)],
        local_id: Identity::address(addr(side)),
        remote_id: Identity::address(addr(other)).into(),
        psk: SecretBytes::copy_of(b"correct horse battery staple"),
        other_psks: Vec::new(),
        start: if side == 0 { Start::Active } else { Start::Passive },
        proposals: vec!["aes256gcm16-prfsha384-x25519-ecp384".parse().expect("a proposal")],
        lifetime: Duration::from_secs(86_400),
        dpd: Some(Duration::from_secs(30)),
        encap: Encap::Auto,
        fragmentation: true,
        retransmit: Retransmit::default(),
        children: (0..children)
            .map(|c| {
                (
                    u16::from(c),
                    ChildPolicy {
                        weight: 0,
                        local: nets(side, c),
                        remote: nets(other, c),
                        proposals: vec!["aes256gcm16-x25519-ecp384".parse().expect("a proposal")],
                        lifetime: Duration::from_secs(3600),
                        bytes: 0,
                        replay_window: 64,
                        mark: None,
                    },
                )
            })
            .collect(),
    }
}

/// Gives a policy additional key exchanges: two for the IKE SA, and one or two for each child, as its responder prefers.
pub fn hybrid(p: &mut TunnelPolicy) {
    let ike = p.proposals.iter().map(|p| format!("{p}-ke1_mlkem768-ke2_mlkem1024"));
    p.proposals = ike.map(|text| text.parse().expect("a proposal")).collect();
    for (c, n) in p.children.values_mut().zip(0u32..) {
        let second = if n % 2 == 0 { "ke2_none-ke2_ecp521" } else { "ke2_ecp521-ke2_none" };
        let more = format!("ke1_mlkem768-{second}");
        c.proposals = vec![format!("aes256gcm16-x25519-ecp384-{more}").parse().expect("a proposal")];
    }
}

impl Lab {
    /// Two gateways with these policies, started at once.
    pub fn new(seed: u64, link: Link, policies: [TunnelPolicy; 2]) -> Self {
        let mut lab = Self::of(seed, link, policies.each_ref().map(|p| p.local[0]));
        for (side, policy) in policies.into_iter().enumerate() {
            lab.configure(side, policy);
        }
        lab
    }

    /// Gateways with these addresses, and nothing configured yet.
    pub fn of(seed: u64, link: Link, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut lab = Self {
            gateways: Vec::new(),
            link,
            cut: BTreeSet::new(),
            nat: Nat { next: 20_000, ..Nat::default() },
            tap: None,
            weather: None,
            recording: None,
            now: Timestamp::from_nanos(1_000_000_000_000),
            random: Seeded::new(seed),
            wire: BinaryHeap::new(),
            order: 0,
            seed,
            sent: Vec::new(),
            keepalives: Vec::new(),
            wakes: Vec::new(),
            tells: std::env::var_os("CYGNET_SIM_TELL").is_some(),
            ivs: Ivs::default(),
            probes: (0, 0),
        };
        for (side, addr) in addresses.into_iter().enumerate() {
            let secrets = Arc::new(AtomicU64::new(0));
            let (endpoint, random) = lab.endpoint(side, 0);
            lab.gateways.push(Gateway {
                endpoint,
                pace: Pace::AT_ONCE,
                waiting: Waiting::default(),
                random,
                plane: MemoryPlane::default(),
                addr,
                events: Vec::new(),
                accounts: Vec::new(),
                drops: BTreeMap::new(),
                cookies: (0, 0),
                secrets,
                records: Records::default(),
                alive: true,
                dies_after: None,
                outbound_keys: BTreeSet::new(),
                lives: 0,
                leaving: BTreeSet::new(),
                rolled_back: false,
            });
            for counts in [&mut lab.sent, &mut lab.keepalives, &mut lab.wakes] {
                counts.push(0);
            }
        }
        lab
    }

    /// The usual pair: gateway 0 initiates, gateway 1 waits.
    pub fn pair(seed: u64, link: Link) -> Self {
        Self::new(seed, link, [policy(0, 1), policy(1, 1)])
    }

    fn endpoint(&self, side: usize, generation: u64) -> (Endpoint, Shared) {
        let seed = self.seed ^ (side as u64 + 1) << 60 ^ generation << 32;
        let random = Shared(Arc::new(Mutex::new(Seeded::new(seed))));
        (Endpoint::new(Config::default(), self.now(), Box::new(random.clone())), random)
    }

    /// Begins another process of a gateway, which knows nothing yet.
    fn begin_process(&mut self, side: usize) {
        self.gateways[side].lives += 1;
        let (endpoint, random) = self.endpoint(side, self.gateways[side].lives);
        let g = &mut self.gateways[side];
        (g.endpoint, g.random, g.waiting) = (endpoint, random, Waiting::default());
    }

    /// Gives a gateway its policy.
    pub fn configure(&mut self, side: usize, policy: TunnelPolicy) {
        self.configure_all(side, vec![policy]);
    }

    /// Gives a gateway the policies of several tunnels.
    pub fn configure_all(&mut self, side: usize, policies: Vec<TunnelPolicy>) {
        let mut out = Vec::new();
        let now = self.now();
        self.guard(side, &policies);
        self.gateways[side].endpoint.set_policies(now, policies, &mut out);
        self.keep_and_perform(side, out);
    }

    /// The gateway forgets everything, as after a power failure.
    pub fn restart(&mut self, side: usize, policy: TunnelPolicy) {
        self.restart_all(side, vec![policy]);
    }

    /// The same of a gateway with several tunnels.
    pub fn restart_all(&mut self, side: usize, policies: Vec<TunnelPolicy>) {
        self.begin_process(side);
        let g = &mut self.gateways[side];
        (g.plane, g.records, g.leaving) = (MemoryPlane::default(), Records::default(), BTreeSet::new());
        (g.alive, g.dies_after) = (true, None);
        self.configure_all(side, policies);
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now { mono: self.now, unix: self.now.as_nanos() / 1_000_000_000 }
    }

    /// A random number below `bound`, from the seed.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// Feeds one input to a gateway and performs what comes out.
    pub fn input(&mut self, side: usize, input: Input<'_>) {
        if !self.gateways[side].alive {
            return;
        }
        let mut out = Vec::new();
        let now = self.now();
        self.gateways[side].endpoint.handle(now, input, &mut out);
        self.keep_and_perform(side, out);
    }

    /// Gives a gateway a command.
    pub fn command(&mut self, side: usize, command: Command) {
        self.input(side, Input::Command(command));
    }

    fn perform(&mut self, side: usize, actions: Vec<Action>) {
        let mut failed: Vec<(ChildId, String)> = Vec::new();
        let mut jobs = Vec::new();
        for action in actions {
            if self.tells {
                self.tell(side, &action);
            }
            let broken = |c: ChildId| failed.iter().any(|(f, _)| *f == c);
            let g = &mut self.gateways[side];
            match action {
                Action::Send { flow, bytes } => self.transmit(side, flow, bytes),
                Action::Keepalive(_) => self.keepalives[side] += 1,
                Action::OpenTunnel(spec) if !broken(spec.child) => {
                    if let Err(e) = g.plane.open_tunnel(&spec) {
                        failed.push((spec.child, e.to_string()));
                    }
                }
                Action::InstallSa(spec) if !broken(spec.id.child) => {
                    if let Err(e) = g.plane.install(&spec) {
                        failed.push((spec.id.child, e.to_string()));
                    }
                    if spec.id.direction == Direction::Out && g.plane.sas.contains_key(&spec.id) {
                        let fresh = g.outbound_keys.insert(spec.encr_key.expose().to_vec());
                        assert!(fresh || g.rolled_back, "seed {}: {:?} comes again", self.seed, spec.id);
                    }
                }
                Action::OpenTunnel(_) | Action::InstallSa(_) => {}
                Action::CloseTunnel(child) => g.plane.close_tunnel(child).expect("closing never fails"),
                Action::RemoveSa(sa) => {
                    g.plane.remove(sa).expect("removing never fails");
                }
                Action::Migrate(sa, to) => g.plane.migrate(sa, to).expect("migrating never fails"),
                Action::Tell(Event::Dropped { reason, .. }) => {
                    *g.drops.entry(reason.name()).or_default() += 1
                }
                Action::Tell(Event::CookieDemanded(_)) => g.cookies.0 += 1,
                Action::Tell(Event::CookieReturned(_)) => g.cookies.1 += 1,
                Action::Tell(Event::Retransmit(_) | Event::RoundTrip(..)) => {}
                Action::Tell(Event::Negotiated { account, .. }) => g.accounts.push(*account),
                Action::Tell(event) => {
                    g.events.push((self.now, event));
                }
                Action::Run(id, job) => jobs.push((id, job)),
            }
        }
        self.release_left(side);
        for (child, detail) in failed {
            self.input(side, Input::PlaneFailed { child, detail });
        }
        self.take_jobs(side, jobs);
    }

    /// Prints an action, for whoever follows one seed.
    fn tell(&self, side: usize, action: &Action) {
        let what = match action {
            Action::Send { bytes, .. } => match cygnet_ike::wire::Header::decode(bytes) {
                Ok((h, _)) => format!(
                    "sends {} {} {} of {:016x}/{:016x}",
                    h.exchange,
                    if h.response { "response" } else { "request" },
                    h.message_id,
                    h.spi_i,
                    h.spi_r
                ),
                Err(e) => format!("sends {e}"),
            },
            Action::InstallSa(spec) => format!("installs {:?}", spec.id),
            other => format!("{other:?}"),
        };
        eprintln!("{:?} gateway {side}: {what}", self.now);
    }

    fn transmit(&mut self, side: usize, flow: Flow, bytes: Vec<u8>) {
        self.sent[side] += 1;
        self.ivs.see(&bytes);
        if let Some((_, recorder)) = self.recording.as_mut().filter(|(of, _)| *of == side) {
            recorder.sent(self.now, flow, &bytes);
        }
        let bytes = match &mut self.tap {
            Some(tap) => match tap(side, bytes) {
                Some(bytes) => bytes,
                None => return,
            },
            None => bytes,
        };
        let fate = self.weather.as_mut().and_then(|weather| weather.fate(side, &bytes));
        self.launch(side, flow.local, flow.remote, fate, || Payload::Ike {
            natt: flow.natt,
            bytes: bytes.clone(),
        });
    }

    fn launch(
        &mut self,
        side: usize,
        from: SocketAddr,
        to: SocketAddr,
        fate: Option<Fate>,
        payload: impl Fn() -> Payload,
    ) {
        let (mut source, mut destination) = (from, to);
        if let Some(public) = self.nat.public {
            if side == 0 {
                let next = &mut self.nat.next;
                let port = *self.nat.ports.entry(from.port()).or_insert_with(|| {
                    *next += 1;
                    *next
                });
                source = (public, port).into();
            } else {
                // Only mapped ports lead back in.
                let Some((private, _)) = self.nat.ports.iter().find(|(_, p)| **p == to.port()) else {
                    return;
                };
                destination = (self.gateways[0].addr, *private).into();
            }
        }
        // Of two, the other one, whatever it is called by then.
        let to = match self.gateways.len() {
            2 => Some(1 - side),
            _ => self.gateways.iter().position(|g| g.addr == destination.ip()),
        };
        let Some(to) = to.filter(|to| !self.cut.contains(&(side, *to))) else { return };
        let (copies, after) = match fate {
            Some(Fate::Lost) => return,
            Some(Fate::Arrives { after, copies }) => (copies, after),
            None if self.random.below(1000) < self.link.loss => return,
            None if self.random.below(1000) < self.link.duplication => (2, None),
            None => (1, None),
        };
        for _ in 0..copies {
            let (low, high) = self.link.delay;
            let span = u64::try_from((high - low).as_nanos()).expect("a short delay");
            let at = match after {
                Some(after) => self.now + after,
                None => self.now + low + Duration::from_nanos(self.random.below(span + 1)),
            };
            self.order += 1;
            let datagram = InFlight { at, order: self.order, to, source, destination, payload: payload() };
            self.wire.push(Reverse(datagram));
        }
    }

    /// Makes a gateway say what it would not say itself, sealed under the keys of its oldest IKE SA and with the message
    /// ID that the other one waits for. It arrives at once.
    pub fn forge(&mut self, from: usize, exchange: Exchange, response: bool, payloads: &Payloads) {
        let bytes = self.forged(from, exchange, response, payloads);
        self.inject(1 - from, self.flow(1 - from), &bytes);
    }

    /// The same, not sent.
    pub fn forged(
        &mut self,
        from: usize,
        exchange: Exchange,
        response: bool,
        payloads: &Payloads,
    ) -> Vec<u8> {
        let oldest = |side: usize| self.gateways[side].endpoint.spis().first().copied().expect("an IKE SA");
        let (own, peer) = (oldest(from), oldest(1 - from));
        let (request, answer) = self.gateways[1 - from].endpoint.message_ids(peer).expect("an IKE SA");
        let id = if response { answer } else { request };
        let forger = &mut self.gateways[from].endpoint;
        forger.forge(own, exchange, id, response, payloads).pop().expect("keys")
    }

    /// The addresses of datagrams to a gateway, without NAT.
    pub fn flow(&self, to: usize) -> Flow {
        let addr = |side: usize| SocketAddr::new(self.gateways[side].addr, 500);
        Flow { local: addr(to), remote: addr(1 - to), natt: false }
    }

    /// Puts a datagram of our own making in front of a gateway.
    pub fn inject(&mut self, side: usize, flow: Flow, bytes: &[u8]) {
        self.input(side, Input::Datagram { flow, bytes });
    }

    /// Sends one probe packet through a child's newest outbound SA. Counted as lost if there is none here, or if the
    /// other end cannot open it when it arrives.
    pub fn probe(&mut self, side: usize, child: ChildId) {
        self.probes.0 += 1;
        let Some(sa) = self.gateways[side].plane.outbound(child) else {
            self.probes.1 += 1;
            return;
        };
        let (spi, key) = (sa.id.spi.value(), sa.encr_key.expose().to_vec());
        let (from, to) = (SocketAddr::new(sa.local, 4500), SocketAddr::new(sa.remote, 4500));
        // Probes suffer the delay of the link but not its losses: those would not be ours.
        let keep = (self.link.loss, self.link.duplication);
        (self.link.loss, self.link.duplication) = (0, 0);
        self.launch(side, from, to, None, || Payload::Probe { child, spi, key: key.clone() });
        (self.link.loss, self.link.duplication) = keep;
    }

    fn deliver(&mut self, d: InFlight) {
        match d.payload {
            Payload::Ike { natt, bytes } => {
                let flow = Flow { local: d.destination, remote: d.source, natt };
                if let Some((_, recorder)) = self.recording.as_mut().filter(|(of, _)| *of == d.to) {
                    recorder.received(self.now, flow, &bytes);
                }
                self.input(d.to, Input::Datagram { flow, bytes: &bytes });
            }
            Payload::Probe { child, spi, key } => {
                let spi = cygnet_model::Spi::new(spi).expect("a valid SPI");
                let opened =
                    self.gateways[d.to].plane.inbound(spi).map(|sa| (sa.id, sa.encr_key.ct_eq(&key)));
                match opened {
                    Some((id, true)) if id.child == child => self.input(d.to, Input::Inbound(id)),
                    _ => self.probes.1 += 1,
                }
            }
        }
    }

    /// Lets time pass: datagrams arrive and timers fire in order.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let alive = self.gateways.iter().filter(|g| g.alive);
            let timer = alive.filter_map(|g| g.endpoint.next_wakeup()).min();
            let arrival = self.wire.peek().map(|d| d.0.at);
            let job = self.gateways.iter().filter_map(|g| g.waiting.next()).min();
            let Some(next) = [timer, arrival, job].into_iter().flatten().min().filter(|t| *t <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if arrival.is_some_and(|a| a <= self.now) {
                let Reverse(d) = self.wire.pop().expect("it was seen above");
                self.deliver(d);
            }
            self.do_due_jobs();
            for side in 0..self.gateways.len() {
                let g = &self.gateways[side];
                if g.alive && g.endpoint.next_wakeup().is_some_and(|t| t <= self.now) {
                    self.wakes[side] += 1;
                    self.input(side, Input::Tick);
                    let g = &self.gateways[side];
                    let due = g.alive && g.endpoint.next_wakeup().is_some_and(|t| t <= self.now);
                    assert!(!due, "seed {}: a timer of gateway {side} stays due", self.seed);
                }
            }
        }
        self.now = end;
    }

    /// One gateway's view of the tunnel.
    pub fn view(&self, side: usize) -> TunnelView {
        self.gateways[side].endpoint.view(TUNNEL).expect("the tunnel is configured")
    }

    /// Whether both gateways say that the tunnel is up.
    pub fn is_up(&self) -> bool {
        (0..2).all(|s| self.view(s).state == TunnelState::Up)
    }

    /// Failures that a gateway told, by name.
    pub fn failures(&self, side: usize) -> Vec<&'static str> {
        self.gateways[side]
            .events
            .iter()
            .filter_map(|(_, e)| match e {
                Event::Failure { reason, .. } => Some(reason.name()),
                _ => None,
            })
            .collect()
    }
}
