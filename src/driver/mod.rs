//! The daemon: one task that owns everything and does one thing after the other.
//!
//! ```text
//!  UDP 500/4500   data plane   control socket   timers   signals
//!        └────────────┴─────────────┬──────────────┴────────┘
//!                                   ▼
//!            Endpoint::handle(now, input) ─▶ actions, in order
//!                                   ▼
//!        sockets · data plane · counters, history, log · waiting clients
//! ```
//!
//! It decides nothing about the protocol; that is `cygnet_ike`.

mod answer;
mod clock;
mod logging;
mod perform;
mod plane;
mod policy;
mod publish;
pub mod saved;
mod sockets;
mod tell;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use cygnet_ike::crypto::Random;
use cygnet_ike::crypto::kex::RingKex;
use cygnet_ike::{Command, DropReason, Endpoint, FailureReason, Flow, Input};
use cygnet_model::plane::{PlaneError, PlaneEvent};
use cygnet_model::{Spi, TunnelId};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc};

use crate::config::model::{Config, PeerAddress, PlaneChoice};
use crate::config::{Loaded, units};
use crate::control::{self, Ask};
use crate::observe::counters::Counters;
use crate::observe::events::{Event, Kind};
use crate::observe::history::History;
use crate::observe::{self, Publisher};
use crate::plane::choose::{self, Choice, Wish};
use crate::shaping::apply::{Shaper, ShapingError};

use self::answer::Waiter;
use self::plane::Plane;
use self::policy::Resolved;
use self::publish::TunnelMemory;
use self::sockets::{Received, Sockets};

/// How often counters are read, and rates computed from them.
const SAMPLE: Duration = Duration::from_secs(5);
/// How often the names of customer gateways are asked for again.
const RESOLVE: Duration = Duration::from_secs(60);
/// How long the peers get to confirm that tunnels are deleted before the daemon ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// IKE messages on their way to the loop.
const RECEIVE_QUEUE: usize = 1024;

/// Random octets from the operating system.
struct OsRandom(SystemRandom);

impl Random for OsRandom {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.fill(out).expect("getrandom(2) does not fail once it has answered, and it did at the start");
    }
}

/// Everything the loop owns.
struct Daemon {
    config: Config,
    path: PathBuf,
    choice: Choice,
    endpoint: Endpoint,
    plane: Plane,
    sockets: Sockets,
    shaper: Option<Shaper>,
    bandwidth: BTreeMap<String, Option<u64>>,
    resolved: Resolved,
    counters: Counters,
    history: History,
    events: broadcast::Sender<Event>,
    publisher: Publisher,
    tunnels: BTreeMap<TunnelId, TunnelMemory>,
    rates: BTreeMap<String, publish::Rates>,
    waiters: Vec<Waiter>,
    stranger_lines: logging::RateLimit,
    drop_lines: logging::DropLines,
    /// Outer addresses that no interface has.
    absent: BTreeSet<IpAddr>,
    /// When to publish what has changed since the last snapshot.
    publish_at: Option<tokio::time::Instant>,
    started_unix: u64,
    config_ok: bool,
}

/// Runs the daemon until it is told to end.
pub fn run(path: &Path, loaded: Loaded, verbose: u8) -> anyhow::Result<()> {
    logging::start(verbose);
    for warning in &loaded.warnings {
        tracing::warn!("{}", warning.one_line(&path.to_string_lossy()));
    }
    harden();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let (mut daemon, inputs) = Daemon::start(path, loaded.config).await?;
        daemon.serve(inputs).await;
        daemon.stop()
    });
    // A resolver that waits for a dead DNS server must not hold up the end.
    runtime.shutdown_background();
    logging::flush();
    ended
}

/// No core dumps and no debugger of other users: memory holds keys.
fn harden() {
    if let Err(e) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(error = %e, "core dumps could not be switched off");
    }
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
}

/// What wakes the loop.
struct Inputs {
    received: mpsc::Receiver<Received>,
    asks: mpsc::Receiver<Ask>,
    resolved: mpsc::Receiver<(String, Vec<IpAddr>)>,
    plane: Option<AsyncFd<OwnedFd>>,
    wall: Option<AsyncFd<OwnedFd>>,
    signals: Signals,
}

/// Signals are kept from the moment this is made.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be received");
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
            hup: listen(SignalKind::hangup())?,
        })
    }
}

impl Daemon {
    async fn start(path: &Path, config: Config) -> anyhow::Result<(Self, Inputs)> {
        SystemRandom::new()
            .fill(&mut [0u8; 8])
            .map_err(|_| anyhow::anyhow!("there are no random numbers"))?;
        let wish = match config.daemon.data_plane {
            PlaneChoice::Auto => Wish::Auto,
            PlaneChoice::Kernel => Wish::Kernel,
            PlaneChoice::Userspace => Wish::Userspace,
        };
        let choice = match choose::choose(wish, &cygnet_xfrm::probe::probe(), &choose::tun()) {
            Ok(choice) => choice,
            Err(reason) => bail!("{reason}"),
        };
        tracing::info!(plane = choice.plane.name(), "data plane: {}", choice.reason);

        // What others may have taken comes before anything that touches the network: a daemon that cannot start leaves
        // the host, and another daemon on it, as they were.
        let signals = Signals::new()?;
        let control = control::server::bind(&config.daemon.control_socket)
            .with_context(|| format!("cannot open {}", config.daemon.control_socket.display()))?;
        let metrics = (config.daemon.metrics)
            .map(|listen| {
                let bound = std::net::TcpListener::bind(listen);
                bound.with_context(|| format!("cannot serve metrics on TCP {listen}"))
            })
            .transpose()?;
        let (received_tx, received) = mpsc::channel(RECEIVE_QUEUE);
        let mut sockets = Sockets::default();
        let mut natt = Vec::new();
        let own = outer_addresses(&config)?;
        for address in own.iter().copied() {
            let socket = sockets
                .open(address, choice.plane, &received_tx)
                .with_context(|| format!("cannot use address {address} of a gateway"))?;
            natt.push((address, socket));
        }
        let mut plane = Plane::open(
            choice.plane,
            own,
            Box::new(move |local, remote, bytes| {
                // A full queue drops, as the kernel's would.
                let _ = received_tx.try_send((Flow { local, remote, natt: true }, bytes.to_vec()));
            }),
        )?;
        let foreign = match occupy(&mut plane, &config, natt) {
            Ok(foreign) => foreign,
            Err(e) => {
                // Why the start failed is what counts; what could not be released is in the log.
                let _ = release(plane, &config);
                return Err(e.into());
            }
        };
        let now = clock::now();
        let random = Box::new(OsRandom(SystemRandom::new()));
        let mut endpoint = Endpoint::new(cygnet_ike::Config::default(), now, random, Box::new(RingKex));
        endpoint.reserve_spis(foreign);

        let (publisher, subscriber) = observe::channel();
        if let Some(listener) = metrics {
            observe::http::spawn(listener, subscriber).context("cannot serve metrics")?;
        }
        let (events, _) = broadcast::channel(256);
        let (asks_tx, asks) = mpsc::channel(64);
        tokio::spawn(control::server::serve(control, asks_tx, events.clone()));
        let (resolved_tx, resolved) = mpsc::channel(16);
        let names: Vec<String> = (config.customer_gateways.iter())
            .filter_map(|c| match &c.address {
                PeerAddress::Dns(name) => Some(name.clone()),
                PeerAddress::Ip(_) => None,
            })
            .collect();
        for name in names {
            tokio::spawn(resolve(name, resolved_tx.clone()));
        }
        let plane_fd = watched(plane.port_ref().event_fd())?;
        let wall_fd = watched(plane.wall_fd())?;

        let mut daemon = Self {
            path: path.to_owned(),
            choice,
            endpoint,
            plane,
            sockets,
            shaper: None,
            bandwidth: BTreeMap::new(),
            resolved: Resolved::new(),
            counters: Counters::default(),
            history: History::default(),
            events,
            publisher,
            tunnels: BTreeMap::new(),
            rates: BTreeMap::new(),
            waiters: Vec::new(),
            stranger_lines: logging::RateLimit::new(30),
            drop_lines: logging::DropLines::default(),
            absent: BTreeSet::new(),
            publish_at: None,
            started_unix: now.unix,
            config_ok: true,
            config,
        };
        daemon.configure();
        Ok((daemon, Inputs { received, asks, resolved, plane: plane_fd, wall: wall_fd, signals }))
    }

    /// Brings everything but the data plane in line with the configuration.
    fn configure(&mut self) {
        let now = clock::now();
        let tunnels = self.config.tunnels.iter();
        self.counters.configure(tunnels.clone().map(|t| (t.gateway.as_str(), t.name.as_str())));
        // Series that are there from the beginning can be watched for their first increase.
        for reason in DropReason::ALL.iter().map(|r| r.name()).chain([tell::REFUSED]) {
            self.counters.ike_dropped.entry(reason).or_default();
        }
        for counters in self.counters.tunnels.values_mut() {
            for reason in FailureReason::ALL {
                counters.failures.entry(reason.name()).or_default();
            }
        }
        self.history.configure(tunnels.clone().map(|t| t.name.as_str()));
        for index in 0..tunnels.len() {
            self.tunnels.entry(policy::tunnel_id(index)).or_insert_with(|| TunnelMemory::new(now.unix));
        }
        self.bandwidth = self.config.gateways.iter().map(|g| (g.name.clone(), g.bandwidth)).collect();
        for (name, bps) in saved::levels(&self.config) {
            let show = |bps: Option<u64>| bps.map_or_else(|| "unlimited".to_owned(), units::show_rate);
            let (saved, configured) = (show(bps), show(self.bandwidth.get(&name).copied().flatten()));
            if saved != configured {
                tracing::info!(gateway = %name, "bandwidth is {saved}, as saved, instead of {configured}");
            }
            self.bandwidth.insert(name, bps);
        }
        self.look_for_addresses();
        self.shape();
        self.apply_policies();
    }

    fn apply_policies(&mut self) {
        let policies = policy::policies(&self.config, &self.resolved, self.choice.plane);
        let mut actions = Vec::new();
        self.endpoint.set_policies(clock::now(), policies, &mut actions);
        self.perform(actions);
    }

    async fn serve(&mut self, mut inputs: Inputs) {
        self.input(Input::Tick);
        self.sample();
        self.announce(Kind::Started, "the daemon is ready");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let mut sampling = tokio::time::interval(SAMPLE);
        sampling.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wait = self.next_timer();
            tokio::select! {
                Some((flow, bytes)) = inputs.received.recv() => {
                    self.input(Input::Datagram { flow, bytes: &bytes });
                    // What has queued up meanwhile is handled in one go.
                    for _ in 0..128 {
                        let Ok((flow, bytes)) = inputs.received.try_recv() else { break };
                        self.input(Input::Datagram { flow, bytes: &bytes });
                    }
                }
                () = plane_ready(inputs.plane.as_ref()) => self.plane_events(),
                () = plane_ready(inputs.wall.as_ref()) => self.check_wall(false),
                Some(ask) = inputs.asks.recv() => self.answer(ask),
                Some((name, addresses)) = inputs.resolved.recv() => self.on_resolved(name, addresses),
                () = tokio::time::sleep(wait) => self.input(Input::Tick),
                _ = sampling.tick() => {
                    self.look_for_addresses();
                    self.check_wall(true);
                    self.sample();
                }
                () = sleep_until(self.publish_at) => self.publish(),
                _ = inputs.signals.hup.recv() => {
                    tracing::warn!(file = %self.path.display(), "reloading is not possible yet; restart the daemon to apply changes");
                }
                _ = inputs.signals.term.recv() => break,
                _ = inputs.signals.int.recv() => break,
            }
            self.settle_waiters();
        }
        self.farewell(&mut inputs).await;
    }

    /// Time until the protocol has something to do.
    fn next_timer(&self) -> Duration {
        let now = clock::now();
        // Suspend stops tokio's clock but not ours; the sampling tick bounds the difference.
        self.endpoint.next_wakeup().map_or(Duration::from_secs(60), |at| at.since(now.mono))
    }

    /// Deletes all tunnels at the peers, who get a moment to confirm it.
    async fn farewell(&mut self, inputs: &mut Inputs) {
        self.announce(Kind::Stopping, "the daemon is about to end");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.input(Input::Command(Command::Shutdown));
        let deadline = tokio::time::Instant::now() + FAREWELL;
        while !self.endpoint.is_idle() && tokio::time::Instant::now() < deadline {
            let wait = self.next_timer().min(Duration::from_millis(500));
            tokio::select! {
                Some((flow, bytes)) = inputs.received.recv() => self.input(Input::Datagram { flow, bytes: &bytes }),
                () = tokio::time::sleep(wait) => self.input(Input::Tick),
            }
        }
    }

    /// Gives the host back as it was.
    fn stop(mut self) -> anyhow::Result<()> {
        if let Some(shaper) = &mut self.shaper {
            for e in shaper.remove_all().err().into_iter().flatten() {
                tracing::error!(error = %e, "a bandwidth level could not be removed");
            }
        }
        Ok(release(self.plane, &self.config)?)
    }

    /// Feeds one input to the protocol and performs what comes out.
    fn input(&mut self, input: Input<'_>) {
        let mut actions = Vec::new();
        self.endpoint.handle(clock::now(), input, &mut actions);
        self.perform(actions);
    }

    fn plane_events(&mut self) {
        while let Some(event) = self.plane.port().next_event() {
            match event {
                PlaneEvent::Acquire(child) => self.input(Input::Acquire(child)),
                PlaneEvent::Expired { sa, hard } => self.input(Input::Expired { sa, hard }),
                PlaneEvent::PeerMoved { sa, remote } => self.input(Input::PeerMoved { sa, remote }),
                PlaneEvent::Lost => {
                    tracing::warn!("events of the data plane were lost; its state is read anew");
                    if let Err(e) = self.plane.resync() {
                        tracing::error!(error = %e, "the data plane could not be put right");
                    }
                    self.sample();
                }
            }
        }
    }

    /// Puts the wall back if others changed it; see [`crate::plane::wall::Wall::check`].
    fn check_wall(&mut self, thorough: bool) {
        if self.plane.wall().check(thorough) {
            let stands = self.plane.wall().stands();
            let message = if stands {
                "somebody changed the table inet cygnet of nf_tables, which keeps protected packets from leaving in \
                 clear text; it was put back"
            } else {
                "somebody changed the table inet cygnet of nf_tables, and it could not be put back; see: cygnet doctor"
            };
            tracing::warn!("{message}");
            self.announce(Kind::GuardRepaired, message);
        }
    }

    fn on_resolved(&mut self, name: String, addresses: Vec<IpAddr>) {
        if self.resolved.get(&name) != Some(&addresses) {
            tracing::info!(name, ?addresses, "customer gateway resolved");
            self.resolved.insert(name, addresses);
            self.apply_policies();
        }
    }

    /// Says which outer addresses are missing, and caps what has come meanwhile.
    fn look_for_addresses(&mut self) {
        let absent = policy::absent(&self.config);
        for address in absent.difference(&self.absent) {
            tracing::warn!(%address, "no interface has this address of a gateway; its tunnels wait for it");
        }
        let came: Vec<IpAddr> = self.absent.difference(&absent).copied().collect();
        self.absent = absent;
        for address in &came {
            tracing::info!(%address, "an interface has this address of a gateway now");
        }
        if !came.is_empty() {
            self.shape();
        }
    }

    /// Brings traffic control in line with the bandwidth levels. Gives the reasons why levels are not in force.
    fn shape(&mut self) -> Vec<ShapingError> {
        let gateways: Vec<_> = (self.config.gateways.iter())
            .map(|g| crate::shaping::apply::Gateway {
                name: g.name.clone(),
                addresses: policy::addresses(g),
                bandwidth_bps: self.bandwidth.get(&g.name).copied().flatten(),
            })
            .collect();
        if self.shaper.is_none() && gateways.iter().all(|g| g.bandwidth_bps.is_none()) {
            return Vec::new();
        }
        let shaper = match self.shaper.take().map_or_else(Shaper::open, Ok) {
            Ok(shaper) => self.shaper.insert(shaper),
            Err(e) => {
                tracing::error!(error = %e, "bandwidth levels are not in force");
                return vec![e];
            }
        };
        let errors = shaper.apply(gateways).err().unwrap_or_default();
        for e in &errors {
            tracing::error!(error = %e, "a bandwidth level is not in force");
        }
        errors
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Each outer address once, also if gateways share it.
fn outer_addresses(config: &Config) -> anyhow::Result<BTreeSet<IpAddr>> {
    let mut all = BTreeSet::new();
    for gateway in &config.gateways {
        let addresses = policy::addresses(gateway);
        if addresses.is_empty() {
            let interfaces: Vec<String> = gateway.addresses.iter().map(ToString::to_string).collect();
            let name = &gateway.name;
            bail!(
                "gateway \"{name}\" has no address: none is on {}; see: ip address, or write the address instead of \
                 the interface",
                interfaces.join(", ")
            );
        }
        all.extend(addresses);
    }
    Ok(all)
}

/// Puts the guards in force and hands the sockets to the plane; gives the SPIs that others use.
fn occupy(
    plane: &mut Plane,
    config: &Config,
    natt: Vec<(IpAddr, Option<UdpSocket>)>,
) -> Result<Vec<Spi>, PlaneError> {
    // Guards first: from here on nothing that belongs into a tunnel leaves without one.
    for guard in policy::guards(config) {
        plane.guard(&guard)?;
    }
    plane.settle()?;
    let mut foreign = Vec::new();
    for (address, socket) in natt {
        if let Some(socket) = socket {
            plane.add_socket((address, sockets::NATT_PORT).into(), socket)?;
        }
        foreign.extend(plane.port().foreign_spis(address)?);
    }
    Ok(foreign)
}

/// Takes back what [`occupy`] and the tunnels did, the wall at last and as a whole. Goes on after errors, logs them and
/// gives the first.
fn release(mut plane: Plane, config: &Config) -> Result<(), PlaneError> {
    let mut first = Ok(());
    for guard in policy::guards(config) {
        let result = plane.port().close_tunnel(guard.child).and_then(|()| plane.port().unguard(guard.child));
        if let Err(e) = result {
            tracing::error!(error = %e, "a guard could not be released");
            first = first.and(Err(e));
        }
    }
    first.and(plane.shut_down())
}

/// A descriptor of the plane, for the loop to wait on.
fn watched(fd: Option<BorrowedFd<'_>>) -> std::io::Result<Option<AsyncFd<OwnedFd>>> {
    // An owned descriptor that nothing else closes is what the deprecated constructor cannot check for.
    #[allow(deprecated, reason = "the replacement is unsafe, and an OwnedFd meets its condition")]
    fd.map(|fd| AsyncFd::new(fd.try_clone_to_owned()?)).transpose()
}

/// Waits until the plane has events; for ever if it tells of none.
async fn plane_ready(fd: Option<&AsyncFd<OwnedFd>>) {
    match fd {
        Some(fd) => match fd.readable().await {
            // The events are read to the end by the caller, after which the descriptor is not readable any more.
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// Asks for a name again and again, sooner while it has no answer.
async fn resolve(name: String, out: mpsc::Sender<(String, Vec<IpAddr>)>) {
    loop {
        let found = tokio::net::lookup_host((name.as_str(), 0)).await;
        let mut addresses: Vec<IpAddr> = found.map(|all| all.map(|a| a.ip()).collect()).unwrap_or_default();
        addresses.sort_unstable();
        addresses.dedup();
        let wait = if addresses.is_empty() { RESOLVE / 12 } else { RESOLVE };
        // A name that stops to resolve keeps its last addresses: the peer is probably still there.
        if !addresses.is_empty() && out.send((name.clone(), addresses)).await.is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}
