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

mod addresses;
mod answer;
mod clock;
mod diagnose;
mod dns;
mod explain;
mod host;
mod jobs;
mod journal;
mod keep;
mod level_key;
mod levels;
mod limits;
mod logging;
mod passage;
mod perform;
mod plane;
mod policy;
mod publish;
mod quality;
mod rates;
mod reload;
mod resolver;
mod sample;
pub mod saved;
mod served;
mod sockets;
mod sweep;
mod tell;
mod top;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::Context;
use cygnet_ike::crypto::Random;
use cygnet_ike::recording::Recorder;
use cygnet_ike::{Command, DropReason, Endpoint, FailureReason, Flow, Input, JobId, Output};
use cygnet_model::plane::{Obstacle, PlaneError, PlaneEvent, PlaneKind};
use cygnet_model::registry::Registry;
use cygnet_model::{ChildId, Now, Spi, TunnelId};
use cygnet_xfrm::host::HostMonitor;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::alerts::{self, Alerts};
use crate::config::Loaded;
use crate::config::model::{Config, CustomerGateway, Guards, PeerAddress, PlaneChoice, Tunnel};
use crate::console::{self, Console};
use crate::control::{self, Ask, ErrorKind, Response};
use crate::observe::accounts::Accounts;
use crate::observe::causes::Causes;
use crate::observe::counters::Counters;
use crate::observe::events::{Event, Kind};
use crate::observe::history::History;
use crate::observe::http::Exporter;
use crate::observe::passage::{Carried, Passage};
use crate::observe::snapshot::{QuotaStatus, QuotaUse};
use crate::observe::strangers::Strangers;
use crate::observe::{self, Publisher};
use crate::plane::choose::{self, Choice, Wish};
use crate::plane::{modules, residue};
use crate::privileges::{self, Confinement, GivenUp};
use crate::shaping::apply::Shaper;
use crate::sys::seat::{self, Seat};
use crate::traffic;

use self::addresses::{HostAddresses, Outer};
use self::answer::Waiter;
use self::explain::Written;
use self::jobs::Workers;
use self::keep::{Keeper, TakenUp};
use self::levels::{InForce, Levels};
use self::limits::Limits;
use self::plane::Plane;
use self::policy::Resolved;
use self::publish::TunnelMemory;
use self::quality::{Answered, Quality};
use self::resolver::Resolver;
use self::sockets::{Received, Sockets};
use self::sweep::Sweep;

/// How often counters are read, and rates computed from them.
const SAMPLE: Duration = Duration::from_secs(5);
/// How long the peers get to confirm that tunnels are deleted before the daemon ends.
const FAREWELL: Duration = Duration::from_secs(3);
/// IKE messages on their way to the loop.
const RECEIVE_QUEUE: usize = 1024;
/// Results of jobs on their way to the loop.
const DONE_QUEUE: usize = 1024;
/// Messages or results that are handled in one go, when they have queued up.
const BATCH: usize = 128;

/// Random octets from the operating system.
struct OsRandom(SystemRandom);

impl Random for OsRandom {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.fill(out).expect("getrandom(2) does not fail once it has answered, and it did at the start");
    }
}

fn os_random() -> OsRandom {
    OsRandom(SystemRandom::new())
}

/// Everything the loop owns.
struct Daemon {
    _seat: Seat,
    config: Config,
    path: PathBuf,
    /// Where that configuration stands.
    written: Written,
    choice: Choice,
    endpoint: Endpoint,
    workers: Workers,
    /// Datagrams wait behind the one that is handled.
    others_wait: bool,
    plane: Plane,
    keeper: Keeper,
    /// What of an earlier life the protocol has not taken up yet.
    taken_up: Option<TakenUp>,
    sockets: Sockets,
    /// Where readers of sockets put what they receive.
    received: mpsc::Sender<Received>,
    /// Outer addresses at this moment.
    outer: Outer,
    /// Outer addresses that cannot be used.
    closed: BTreeSet<IpAddr>,
    resolver: Resolver,
    /// Where resolvers put what they learn.
    answers: mpsc::Sender<resolver::Resolved>,
    /// Names of customer gateways that have no answer, and whose tunnels were told so.
    unresolved: BTreeSet<String>,
    shaper: Option<Shaper>,
    bandwidth: Levels,
    /// What of them the data plane keeps.
    in_force: InForce,
    limits: Limits,
    /// What inner addresses carried.
    traffic: traffic::history::History,
    traffic_page: Arc<observe::TrafficPage>,
    resolved: Resolved,
    /// Numbers of tunnels and children.
    registry: Registry,
    /// Where the tunnels with these numbers stand in the configuration.
    places: BTreeMap<TunnelId, usize>,
    /// Children that the configuration has no more, whose guards stay until their SAs are gone.
    leaving: BTreeSet<ChildId>,
    exporter: Option<Exporter>,
    console: Option<Console>,
    /// Where the console puts what it asks.
    asks: mpsc::Sender<Ask>,
    counters: Counters,
    /// What quotas count, by gateway.
    used: BTreeMap<String, QuotaUse>,
    /// The same of the configuration as a whole, and how much there may be.
    quotas: BTreeMap<String, QuotaStatus>,
    /// Who is refused the most.
    strangers: Strangers,
    /// The last negotiations.
    accounts: Accounts,
    /// What was dropped lately.
    causes: Causes,
    history: History,
    /// Events told so far.
    told: u64,
    /// Headers of the last messages.
    recorder: Recorder,
    events: broadcast::Sender<Arc<Event>>,
    publisher: Publisher,
    tunnels: BTreeMap<TunnelId, TunnelMemory>,
    /// Tunnels whose state is to be noted when the input is done with.
    in_change: BTreeSet<TunnelId>,
    rates: BTreeMap<String, rates::Rates>,
    passed: rates::Passed,
    waiters: Vec<Waiter>,
    /// New keys for many tunnels are being made.
    sweep: Option<Sweep>,
    passage: Passage,
    quality: Quality,
    /// Tells events to whom the configuration names; `None`: to nobody.
    alerts: Option<Alerts>,
    alert_counts: alerts::AllCounts,
    /// What SAs that are gone carried, by child that has others.
    retired: BTreeMap<ChildId, Carried>,
    stranger_lines: logging::LineLimits<FailureReason>,
    drop_lines: logging::LineLimits<DropReason>,
    tunnel_lines: logging::LineLimits<(TunnelId, tell::Subject)>,
    failure_lines: logging::LineLimits<(TunnelId, tell::Subject)>,
    /// Outer addresses that no interface has.
    absent: BTreeSet<IpAddr>,
    /// Tunnels that were told to have no source inside.
    sourceless: BTreeSet<String>,
    /// Tells what changes on the host; `None` where it cannot be listened to.
    host: Option<HostMonitor>,
    /// What of others stands in the way of the guards.
    obstacles: Vec<Obstacle>,
    /// Why caps are not in force, as told last.
    shaping_troubles: Vec<String>,
    pages: publish::Pages,
    /// When to publish what has changed since the last snapshot.
    publish_at: Option<tokio::time::Instant>,
    started: Now,
    config_ok: bool,
    /// What this process has given up.
    privileges: GivenUp,
}

/// Runs the daemon until it is told to end. To be called before there are threads.
pub fn run(path: &Path, loaded: Loaded, verbose: u8, confinement: Confinement) -> anyhow::Result<()> {
    // Before anything else may have descriptors of these numbers.
    let inherited = sockets::inherited();
    logging::start(verbose);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let (mut daemon, inputs) = Daemon::start(path, loaded, inherited, confinement).await?;
        match daemon.serve(inputs).await {
            End::Farewell => daemon.stop().map(|()| logging::LAST_WORDS),
            End::HandOver(reply) => {
                daemon.hand_over(reply).await;
                Ok(logging::IN_PASSING)
            }
        }
    });
    // A resolver that waits for a dead DNS server must not hold up the end.
    runtime.shutdown_background();
    logging::flush(*ended.as_ref().unwrap_or(&logging::LAST_WORDS));
    ended.map(|_| ())
}

/// How the daemon ends.
enum End {
    /// For good, as far as the peers know.
    Farewell,
    /// For the next life to go on; whoever asked waits for it.
    HandOver(oneshot::Sender<Response>),
}

/// What wakes the loop.
struct Inputs {
    received: mpsc::Receiver<Received>,
    done: mpsc::Receiver<(JobId, Output)>,
    asks: mpsc::Receiver<Ask>,
    resolved: mpsc::Receiver<resolver::Resolved>,
    answers: mpsc::Receiver<Answered>,
    plane: Option<AsyncFd<OwnedFd>>,
    host: Option<AsyncFd<OwnedFd>>,
    wall: Option<AsyncFd<OwnedFd>>,
    /// Answers to probes, of each protocol, with the kernel's plane.
    echo: Vec<AsyncFd<OwnedFd>>,
    signals: mpsc::Receiver<Told>,
    /// Where metrics are asked for, until they are served.
    metrics: Option<TcpListener>,
    /// Where the console will be.
    console: Option<TcpListener>,
}

/// What a signal asks for.
enum Told {
    End,
    ReadAnew,
}

/// What signals ask for, from this moment on. A task of its own waits for them: the loop has to ask one channel each time, and
/// not three signals.
fn signals() -> anyhow::Result<mpsc::Receiver<Told>> {
    let listen = |kind| signal(kind).context("signals cannot be received");
    let mut term = listen(SignalKind::terminate())?;
    let mut int = listen(SignalKind::interrupt())?;
    let mut hup = listen(SignalKind::hangup())?;
    let (tell, told) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let what = tokio::select! {
                _ = term.recv() => Told::End,
                _ = int.recv() => Told::End,
                _ = hup.recv() => Told::ReadAnew,
            };
            if tell.send(what).await.is_err() {
                return;
            }
        }
    });
    Ok(told)
}

impl Daemon {
    async fn start(
        path: &Path,
        Loaded { config, warnings, lines }: Loaded,
        inherited: sockets::Inherited,
        confinement: Confinement,
    ) -> anyhow::Result<(Self, Inputs)> {
        SystemRandom::new()
            .fill(&mut [0u8; 8])
            .map_err(|_| anyhow::anyhow!("there are no random numbers"))?;
        // Asks in a namespace of its own where that is allowed, which it is not any more after the next few lines.
        let choice = choose_plane(&config)?;

        // What others may have taken comes before anything that touches the network: a daemon that cannot start leaves
        // the host, and another daemon on it, as they were.
        let signals = signals()?;
        let socket = &config.daemon.control_socket;
        let access = control::Access::of_host(config.daemon.admin_group.as_deref());
        let control = control::server::bind(socket, access)
            .with_context(|| format!("cannot open {}", socket.display()))?;
        // Before the first thread, and so before the first line of the log.
        let needs = privileges::Needs {
            config: path,
            writes: [socket.parent().unwrap_or(Path::new("/")), &config.daemon.state_dir],
        };
        let privileges = privileges::confine(&needs, confinement);
        for warning in &warnings {
            tracing::warn!("{}", warning.one_line(&path.to_string_lossy()));
        }
        if let (Some(name), None) = (&config.daemon.admin_group, access.admins) {
            tracing::warn!(
                group = name,
                "there is no such group as daemon.admin_group names; only root is admin"
            );
        }
        tracing::info!(plane = choice.plane.name(), "data plane: {}", choice.reason);
        privileges.log();
        let bind = |what: &str, listen: SocketAddr| {
            TcpListener::bind(listen).with_context(|| format!("cannot serve {what} on TCP {listen}"))
        };
        let metrics = config.daemon.metrics.map(|listen| bind("metrics", listen)).transpose()?;
        let console = config.daemon.console.as_ref().map(|c| bind("the console", c.listen)).transpose()?;
        let (received_tx, received) = mpsc::channel(RECEIVE_QUEUE);
        let mut sockets = Sockets::with(inherited);
        let mut natt = Vec::new();
        let own: BTreeSet<IpAddr> = HostAddresses::read().outer(&config).into_values().flatten().collect();
        for address in own.iter().copied() {
            let socket = sockets
                .open(address, choice.plane, &received_tx)
                .with_context(|| format!("cannot use address {address} of a gateway"))?;
            natt.push((address, socket));
        }
        sockets.close_inherited();
        // Behind what names its reason better, and before anything of the kernel's is taken up or swept away.
        let seat = seat::take().context("cannot be the one daemon of this network namespace")?;
        let kept = saved::registry(&config);
        let registry = registered(&config, kept.clone())?;
        // A start that fails must not open what an earlier life of the daemon left guarded.
        let at_failure = if residue::guards_stand() { Guards::Keep } else { Guards::Release };
        let from_plane = received_tx.clone();
        let mut plane = Plane::open(
            choice.plane,
            own,
            Box::new(move |local, remote, bytes| {
                // A full queue drops, as the kernel's would.
                let _ = from_plane.try_send((Flow { local, remote, natt: true }, bytes.to_vec()));
            }),
        )?;
        // SAs of an earlier life carry packets as soon as they are taken up, and not beyond the limits.
        let mut limits = Limits::begin(&config);
        plane.publish(limits.rules(&config, &registry, plane.rules()));
        let numbered = kept != Registry::default();
        let (foreign, (keeper, taken_up)) = match occupy(&mut plane, &config, &registry, natt, |plane| {
            Keeper::begin(&config, numbered, plane, |plane, kept| {
                limits.take_over(&config, kept);
                plane.publish(limits.rules(&config, &registry, plane.rules()));
            })
        }) {
            Ok(occupied) => occupied,
            Err(e) => {
                // Why the start failed is what counts; what could not be released is in the log.
                match at_failure {
                    // SAs of an earlier life are left for a start that does not fail.
                    Guards::Keep => plane.leave(),
                    Guards::Release => drop(plane.end(at_failure)),
                }
                return Err(e.into());
            }
        };
        // Guards do not wait for a disk.
        saved::keep_registry(&config, &kept, &registry);
        let now = clock::now();
        let random = Box::new(os_random());
        let mut endpoint = Endpoint::new(cygnet_ike::Config::default(), now, random);
        let (done_tx, done) = mpsc::channel(DONE_QUEUE);
        let workers = Workers::start(&done_tx, os_random).context("there is no thread for key exchanges")?;
        endpoint.reserve_spis(foreign);

        let (publisher, _) = observe::channel();
        let (events, _) = broadcast::channel(256);
        let (asks_tx, asks) = mpsc::channel(64);
        tokio::spawn(control::server::serve(control, asks_tx.clone(), events.clone()));
        let (resolved_tx, resolved) = mpsc::channel(16);
        let (answers_tx, answers) = mpsc::channel(quality::ANSWER_QUEUE);
        let mut resolver = Resolver::default();
        resolver.follow(names(&config), &resolved_tx);
        let plane_fd = plane.port_ref().event_fd().map(watched).transpose()?;
        let host = HostMonitor::open()
            .inspect_err(|e| tracing::warn!(error = %e, "changes of the host are seen late"))
            .ok();
        let host_fd = host.as_ref().map(|h| watched(h.fd())).transpose()?;
        let wall_fd = plane.wall_fd().map(watched).transpose()?;
        let quality = Quality::new(answers_tx);
        plane.open_probing(quality.token());
        let echo = plane.echo_fds().map(watched).collect::<std::io::Result<Vec<_>>>()?;

        let mut daemon = Self {
            _seat: seat,
            path: path.to_owned(),
            written: Written { file: path.to_owned(), lines },
            choice,
            endpoint,
            workers,
            others_wait: true,
            plane,
            keeper,
            taken_up: Some(taken_up),
            sockets,
            received: received_tx,
            outer: Outer::new(),
            closed: BTreeSet::new(),
            resolver,
            answers: resolved_tx,
            unresolved: BTreeSet::new(),
            shaper: None,
            bandwidth: Levels::new(),
            in_force: InForce::default(),
            limits,
            traffic: traffic::history::History::default(),
            traffic_page: Arc::default(),
            resolved: Resolved::new(),
            registry,
            places: BTreeMap::new(),
            leaving: BTreeSet::new(),
            exporter: None,
            console: None,
            asks: asks_tx,
            counters: Counters::default(),
            used: BTreeMap::new(),
            quotas: BTreeMap::new(),
            strangers: Strangers::default(),
            accounts: Accounts::default(),
            causes: Causes::default(),
            history: History::default(),
            told: 0,
            recorder: Recorder::default(),
            events,
            publisher,
            tunnels: BTreeMap::new(),
            in_change: BTreeSet::new(),
            rates: BTreeMap::new(),
            passed: rates::Passed::default(),
            waiters: Vec::new(),
            sweep: None,
            passage: Passage::default(),
            quality,
            alerts: None,
            alert_counts: alerts::AllCounts::default(),
            retired: BTreeMap::new(),
            stranger_lines: logging::LineLimits::new(tell::OF_STRANGERS),
            drop_lines: logging::LineLimits::new(tell::OF_DROPS),
            tunnel_lines: logging::LineLimits::new(tell::OF_A_TUNNEL),
            failure_lines: logging::LineLimits::new(tell::OF_FAILURES),
            absent: BTreeSet::new(),
            sourceless: BTreeSet::new(),
            host,
            obstacles: Vec::new(),
            shaping_troubles: Vec::new(),
            pages: publish::Pages::default(),
            publish_at: None,
            started: now,
            config_ok: true,
            privileges,
            config,
        };
        daemon.set_levels();
        daemon.configure();
        // What nobody has taken up by now has nobody.
        if let Err(e) = daemon.plane.sweep() {
            tracing::error!(error = %e, "SAs or policies of an earlier life of the daemon are left");
        }
        let inputs = Inputs {
            received,
            done,
            asks,
            resolved,
            answers,
            plane: plane_fd,
            host: host_fd,
            wall: wall_fd,
            echo,
            signals,
            metrics,
            console,
        };
        Ok((daemon, inputs))
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
        self.counters.reasons = FailureReason::ALL.iter().map(|reason| reason.name()).collect();
        self.pages.begin_anew();
        self.rates.retain(|gateway, _| self.config.gateway(gateway).is_some());
        self.history.configure(tunnels.clone().map(|t| t.name.as_str()));
        self.places = policy::places(&self.registry, &self.config);
        for id in self.places.keys() {
            self.tunnels.entry(*id).or_insert_with(|| TunnelMemory::new(now));
        }
        self.accounts.retain(|id| self.places.contains_key(&id));
        self.keep_drops_of_the_configured();
        self.keep_no_tallies_of_others();
        self.follow_traffic();
        self.used = publish::quota_use(&self.config);
        self.quotas = publish::quotas(&self.config);
        self.follow_alerts();
        self.follow_checks();
        self.look_for_addresses();
        self.shape();
        self.apply_policies();
    }

    /// Tells events to whom the configuration names from here on.
    fn follow_alerts(&mut self) {
        let wanted = &self.config.daemon.alerts;
        if self.alerts.as_ref().map(Alerts::config) == Some(wanted) {
            return;
        }
        self.alerts = None;
        if wanted.is_wanted() {
            match Alerts::start(wanted, &self.alert_counts) {
                Ok(alerts) => self.alerts = Some(alerts),
                Err(e) => tracing::error!(error = %e, "events are told to nobody but the journal"),
            }
        }
    }

    /// A configured tunnel.
    fn tunnel(&self, id: TunnelId) -> Option<&Tunnel> {
        self.config.tunnels.get(*self.places.get(&id)?)
    }

    /// Forgets what levels dropped of gateways and tunnels that are not configured.
    fn keep_drops_of_the_configured(&mut self) {
        let known = |gateway: &str| self.config.gateway(gateway).is_some();
        let is_tunnel =
            |gateway: &str, name: &str| self.config.tunnel(name).is_some_and(|t| t.gateway == gateway);
        self.counters.qos_drops.retain(known, is_tunnel);
    }

    fn apply_policies(&mut self) {
        let ranks = self.quality.ranks();
        let policies = policy::policies(
            &self.config,
            &self.registry,
            &self.outer,
            &self.resolved,
            self.choice.plane,
            &ranks,
        );
        let mut actions = Vec::new();
        let Some(TakenUp { ike, present, renew, tallies, host, .. }) = self.taken_up.take() else {
            self.endpoint.set_policies(clock::now(), policies, &mut actions);
            return self.perform(actions);
        };
        // Before anything of them is removed.
        self.count_on(tallies, &present);
        if let Some(handed) = host {
            self.count_on_of_the_host(&handed);
        }
        let (kept, esp) = (ike.len(), present.len());
        let refused = self.endpoint.restore(clock::now(), policies, ike, &present, renew, &mut actions);
        for r in &refused {
            let tunnel = self.tunnel_name(r.tunnel).unwrap_or_default();
            tracing::warn!(
                tunnel, spi = %r.spi, reason = r.reason.name(),
                "an IKE SA of an earlier life is not taken up, and the tunnel begins anew: {}", r.reason
            );
        }
        self.perform(actions);
        self.announce_taken_up(kept - refused.len().min(kept), esp);
    }

    async fn serve(&mut self, mut inputs: Inputs) -> End {
        self.input(Input::Tick);
        self.sample();
        // Whoever asks before there is something to show waits for it: a page without tunnels would end their series.
        if let Some(listener) = inputs.metrics.take() {
            match observe::http::spawn(listener, self.publisher.subscribe()) {
                Ok(exporter) => self.exporter = Some(exporter),
                Err(e) => tracing::error!(error = %e, "metrics cannot be served"),
            }
        }
        if let (Some(listener), Some(settings)) = (inputs.console.take(), self.config.daemon.console.clone())
        {
            match console::spawn(listener, settings, self.console_sources()) {
                Ok(console) => self.console = Some(console),
                Err(e) => tracing::error!(error = %e, "the console cannot be served"),
            }
        }
        self.announce(Kind::Started, "the daemon is ready");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        let mut sampling = tokio::time::interval(SAMPLE);
        sampling.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wait = self.next_timer();
            tokio::select! {
                Some(first) = inputs.received.recv() => {
                    let (mut next, mut room) = (Some(first), BATCH);
                    while let Some((flow, bytes)) = next {
                        self.others_wait = !inputs.received.is_empty();
                        self.input(Input::Datagram { flow, bytes: &bytes });
                        next = if room > 0 { inputs.received.try_recv().ok() } else { None };
                        room = room.saturating_sub(1);
                    }
                    self.others_wait = true;
                }
                Some((job, output)) = inputs.done.recv() => {
                    self.input(Input::Done(job, output));
                    for _ in 0..BATCH {
                        let Ok((job, output)) = inputs.done.try_recv() else { break };
                        self.input(Input::Done(job, output));
                    }
                }
                () = readable(inputs.plane.as_slice()) => self.plane_events(),
                () = readable(inputs.host.as_slice()) => self.on_host_changes(),
                () = readable(inputs.wall.as_slice()) => self.check_wall(false),
                Some(ask) = inputs.asks.recv() => {
                    if let Some(reply) = self.answer(ask) {
                        return End::HandOver(reply);
                    }
                }
                Some(first) = inputs.answers.recv() => {
                    let more = std::iter::from_fn(|| inputs.answers.try_recv().ok()).take(quality::ANSWER_QUEUE);
                    self.on_answers(std::iter::once(first).chain(more));
                }
                () = readable(&inputs.echo) => self.take_echoes(),
                () = sleep_until(self.quality.wakeup(clock::now().mono)) => self.probe(),
                Some((name, answer)) = inputs.resolved.recv() => self.on_resolved(&name, answer),
                () = tokio::time::sleep(wait) => self.input(Input::Tick),
                _ = sampling.tick() => self.look_around(),
                () = sleep_until(self.publish_at) => self.publish(),
                Some(told) = inputs.signals.recv() => match told {
                    Told::ReadAnew => self.on_hangup(),
                    Told::End => break,
                },
            }
            self.settle_waiters();
            self.go_on_sweeping();
        }
        self.farewell(&mut inputs).await;
        End::Farewell
    }

    /// What is done every few seconds, whatever happens. What it cost is published the next time.
    fn look_around(&mut self) {
        let began = clock::on_processor();
        self.look_for_addresses();
        self.follow_probe_sources();
        self.audit();
        let counted = self.sample();
        self.keep_counts(&counted);
        self.sweep_the_lost();
        self.counters.sampling_cpu += clock::on_processor().saturating_sub(began);
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
                Some((job, output)) = inputs.done.recv() => self.input(Input::Done(job, output)),
                () = tokio::time::sleep(wait) => self.input(Input::Tick),
            }
        }
        if !self.endpoint.is_idle() {
            // Whoever has not had its turn is told, and not waited for.
            self.input(Input::Command(Command::Shutdown));
        }
    }

    /// Leaves SAs, tunnels, guards and caps to the next life of the daemon.
    async fn hand_over(mut self, reply: oneshot::Sender<Response>) {
        self.announce(Kind::Stopping, "the daemon hands its tunnels over to the next one");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.plane.rest();
        let answer = match self.keep_at_last() {
            Ok(()) => Response::done("the tunnels are left to the next daemon"),
            // Too late to go on; the next life takes up what it can.
            Err(why) => Response::error(ErrorKind::Failed, format!("the tunnels will begin anew: {why}")),
        };
        self.plane.leave();
        let _ = reply.send(answer);
        // The task that writes the answer has its turn before the end.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }

    /// Ends traffic control and the tunnels. The guards stay in force unless the configuration says otherwise.
    fn stop(mut self) -> anyhow::Result<()> {
        self.keep_nothing();
        self.sockets.let_go_of_all();
        if let Some(shaper) = &mut self.shaper {
            for e in shaper.remove_all().err().into_iter().flatten() {
                tracing::error!(error = %e, "a bandwidth level could not be removed");
            }
        }
        Ok(self.plane.end(self.config.daemon.guards)?)
    }

    /// Feeds one input to the protocol and performs what comes out.
    fn input(&mut self, input: Input<'_>) {
        if let Input::Datagram { flow, bytes } = &input {
            self.recorder.received(clock::now().mono, *flow, bytes);
        }
        let mut actions = Vec::new();
        self.endpoint.handle(clock::now(), input, &mut actions);
        self.perform(actions);
    }

    fn plane_events(&mut self) {
        while let Some(event) = self.plane.port().next_event() {
            match event {
                PlaneEvent::Acquire(acquire) => self.input(Input::Acquire(acquire)),
                PlaneEvent::Expired { sa, hard } => self.input(Input::Expired { sa, hard }),
                PlaneEvent::PeerMoved { sa, remote } => self.input(Input::PeerMoved { sa, remote }),
                PlaneEvent::Repaired { what, count } => self.on_repaired(what, count),
                PlaneEvent::InFront { .. } => self.look_for_obstacles(),
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
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The data plane that this host has and the configuration allows.
fn choose_plane(config: &Config) -> anyhow::Result<Choice> {
    let wish = match config.daemon.data_plane {
        PlaneChoice::Auto => Wish::Auto,
        PlaneChoice::Kernel => Wish::Kernel,
        PlaneChoice::Userspace => Wish::Userspace,
    };
    let choice =
        choose::choose(wish, &cygnet_xfrm::probe::probe(), &choose::tun()).map_err(
            |reason| match esp_modules() {
                Some((why, fix)) => anyhow::anyhow!("{reason}; {why}: {fix}"),
                None => anyhow::anyhow!(reason),
            },
        )?;
    if choice.plane == PlaneKind::Userspace {
        policy::told_apart(config)?;
    }
    Ok(choice)
}

/// Why the kernel has no ESP, if its modules are blocked or missing.
fn esp_modules() -> Option<(String, String)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    modules::why_no_esp(Path::new("/"), release.trim())
}

/// Puts the guards of a configuration in force without a daemon, and says how many they are. They stay as after the end
/// of a daemon.
pub fn guard(config: &Config) -> anyhow::Result<usize> {
    let choice = choose_plane(config)?;
    let own: BTreeSet<IpAddr> = HostAddresses::read().outer(config).into_values().flatten().collect();
    let mut plane = Plane::open(choice.plane, own, Box::new(|_, _, _| {}))?;
    let registry = registered(config, saved::registry(config))?;
    let result = occupy(&mut plane, config, &registry, Vec::new(), |_| ());
    // SAs that an earlier daemon left are for the next one. Guards in force are better than none, whatever went wrong with one of them.
    plane.end(Guards::Keep)?;
    result?;
    Ok(policy::guards(config, &registry).len())
}

/// The numbers of a configuration's tunnels, where an earlier life of the daemon gave some.
fn registered(config: &Config, mut registry: Registry) -> anyhow::Result<Registry> {
    policy::register(&mut registry, config)
        .map_err(|_| anyhow::anyhow!("the configuration has more tunnels than there are numbers for them"))?;
    Ok(registry)
}

/// Names of customer gateways that DNS knows.
fn names(config: &Config) -> BTreeSet<String> {
    let name = |c: &CustomerGateway| match &c.address {
        PeerAddress::Dns(name) => Some(name.clone()),
        PeerAddress::Ip(_) => None,
    };
    config.customer_gateways.iter().filter_map(name).collect()
}

/// Puts the guards in force, has `take_up` take up what an earlier life left, and hands the sockets to the plane; gives
/// the SPIs that others use.
fn occupy<T>(
    plane: &mut Plane,
    config: &Config,
    registry: &Registry,
    natt: Vec<(IpAddr, Option<UdpSocket>)>,
    take_up: impl FnOnce(&mut Plane) -> T,
) -> Result<(Vec<Spi>, T), PlaneError> {
    // Nothing is sent by these yet; guards that come after them are laid out once, with the way of IKE around them.
    let mut addresses = Vec::new();
    for (address, socket) in natt {
        addresses.push(address);
        if let Some(socket) = socket {
            plane.add_socket((address, sockets::NATT_PORT).into(), socket)?;
        }
    }
    // From here on nothing that belongs into a tunnel leaves without one.
    plane.guard_all(&policy::guards(config, registry))?;
    plane.settle()?;
    let taken_up = take_up(plane);
    residue::release_other(plane.port_ref().kind())?;
    // Own packets without a source are a convenience; the guards, and everybody else's packets, do not wait for it.
    let sources = policy::sources(config, registry, &HostAddresses::read().outer(config));
    if let Err(e) = plane.follow_sources(sources) {
        tracing::warn!(error = %e, "own packets to the remote networks may go outside of the tunnels");
    }
    let mut foreign = Vec::new();
    for address in addresses {
        foreign.extend(plane.port().foreign_spis(address)?);
    }
    Ok((foreign, taken_up))
}

/// A descriptor of its own for the loop to wait on.
fn watched(fd: BorrowedFd<'_>) -> std::io::Result<AsyncFd<OwnedFd>> {
    // An owned descriptor that nothing else closes is what the deprecated constructor cannot check for.
    #[allow(deprecated, reason = "the replacement is unsafe, and an OwnedFd meets its condition")]
    AsyncFd::with_interest(fd.try_clone_to_owned()?, Interest::READABLE)
}

/// Waits until one of these descriptors has something to read; for ever if there is none.
async fn readable(fds: &[AsyncFd<OwnedFd>]) {
    std::future::poll_fn(|cx| {
        let mut ready = Poll::Pending;
        for fd in fds {
            // What there is is read to the end by the caller, after which the descriptor is not readable any more.
            if let Poll::Ready(Ok(mut guard)) = fd.poll_read_ready(cx) {
                guard.clear_ready();
                ready = Poll::Ready(());
            }
        }
        ready
    })
    .await;
}
