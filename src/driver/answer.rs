//! Answers what is asked over the control socket.

use std::path::Path;

use cygnet_ike::io::RekeyKind;
use cygnet_ike::view::{TunnelState, TunnelView};
use cygnet_ike::{Command, Input};
use cygnet_model::{Timestamp, TunnelId};
use tokio::sync::oneshot;

use super::tell::missing_words;
use super::{Daemon, clock};
use crate::config::closest;
use crate::config::model::{Config, PlaneChoice};
use crate::control::{Ask, ErrorKind, Request, Response};
use crate::observe::prometheus::{self, Format};
use crate::observe::snapshot::{Finding, Verdict};
use crate::plane::choose::{HostReport, Wish};

/// A client that waits for something to become true.
pub(super) struct Waiter {
    tunnel: TunnelId,
    name: String,
    wants: Wants,
    reply: oneshot::Sender<Response>,
}

enum Wants {
    Up,
    Down,
    Rekeyed { kind: RekeyKind, left: usize },
}

impl Daemon {
    /// Answers, now or later. A client that asks for a handover, which can be made, waits for it: it comes back.
    pub(super) fn answer(&mut self, ask: Ask) -> Option<oneshot::Sender<Response>> {
        let Ask { request, reply } = ask;
        let response = match request {
            Request::Status { name: None } => {
                self.pages.begin_anew();
                self.sample();
                Response::Status { snapshot: Box::new(self.publisher.borrow().snapshot.clone()) }
            }
            Request::Status { name: Some(name) } => match self.status_of(&name) {
                Some(snapshot) => Response::Status { snapshot: Box::new(snapshot) },
                None => self.unknown(Sought::Either, &name),
            },
            Request::Up { tunnel, .. } => {
                self.command(&tunnel, reply, Command::Up, Wants::Up);
                return None;
            }
            Request::Down { tunnel, .. } => {
                self.command(&tunnel, reply, Command::Down, Wants::Down);
                return None;
            }
            Request::Rekey { tunnel, ike, .. } => {
                self.rekey(&tunnel, ike, reply);
                return None;
            }
            Request::RekeyAll { gateway, ike, .. } => {
                self.rekey_all(gateway.as_deref(), ike, reply);
                return None;
            }
            Request::Reset { tunnel, .. } => match self.tunnel_named(&tunnel) {
                Some(id) => {
                    self.input(Input::Command(Command::Reset(id)));
                    self.publish();
                    Response::done(format!("tunnel {tunnel} was reset"))
                }
                None => self.unknown(Sought::Tunnel, &tunnel),
            },
            Request::Bandwidth { gateway, bps, inward, save } => {
                let response = self.change_bandwidth(&gateway, bps, inward, save);
                self.publish();
                response
            }
            Request::Limit { gateway, limits, save } => {
                let response = self.change_limits(&gateway, &limits, save);
                self.publish_soon();
                response
            }
            Request::Limits { gateway } => match self.list_limits(&gateway) {
                Some(limits) => Response::Limits { limits },
                None => self.unknown(Sought::Gateway, &gateway),
            },
            Request::Plan { file } => match self.plan(file.as_deref().map(Path::new)) {
                Ok(plan) => Response::Plan { plan: Box::new(plan), applied: false },
                Err(refused) => refused.into(),
            },
            Request::Apply { file } => match self.apply(file.as_deref().map(Path::new)) {
                Ok(plan) => Response::Plan { plan: Box::new(plan), applied: true },
                Err(refused) => refused.into(),
            },
            Request::Logs { tunnel, since_s } => match self.history.of(&tunnel, ago(since_s)) {
                Some(events) => Response::Events { events },
                None => self.unknown(Sought::Tunnel, &tunnel),
            },
            Request::Quality { tunnel, since_s } => match self.registry.tunnel(&tunnel) {
                Some(id) if self.places.contains_key(&id) => match self.quality_minutes(id, since_s) {
                    Some(minutes) => Response::Quality { minutes },
                    None => Response::Error {
                        kind: ErrorKind::Failed,
                        message: format!("tunnel {tunnel} has no health check"),
                        hint: "add health_check: { target: ADDRESS } to it, as docs/quality.md says"
                            .to_owned(),
                    },
                },
                _ => self.unknown(Sought::Tunnel, &tunnel),
            },
            Request::TopTunnels { gateway } => match gateway {
                Some(name) if self.config.gateway(&name).is_none() => self.unknown(Sought::Gateway, &name),
                gateway => Response::TopTunnels { top: self.top_tunnels(gateway.as_deref()) },
            },
            Request::TopPeaks { gateway, since_s } => match gateway {
                Some(name) if self.config.gateway(&name).is_none() => self.unknown(Sought::Gateway, &name),
                gateway => Response::TopPeaks { peaks: self.top_peaks(gateway.as_deref(), since_s) },
            },
            Request::TopPeers {} => Response::TopPeers { top: self.top_peers() },
            Request::Explain { tunnel } => match self.explain(&tunnel) {
                Some(explanation) => Response::Explained { explanation: Box::new(explanation) },
                None => self.unknown(Sought::Tunnel, &tunnel),
            },
            Request::Diagnose { tunnel } => match self.known(tunnel.as_deref()) {
                Some(facts) => Response::Known { facts: Box::new(facts) },
                None => self.unknown(Sought::Tunnel, tunnel.as_deref().unwrap_or_default()),
            },
            Request::Names {} => Response::Names {
                tunnels: self.config.tunnels.iter().map(|t| t.name.clone()).collect(),
                gateways: self.config.gateways.iter().map(|g| g.name.clone()).collect(),
            },
            Request::Recent { tunnels, since_s } => self.recent(&tunnels, since_s),
            Request::Metrics {} => {
                Response::Text { text: prometheus::render(&self.publisher.borrow(), Format::Text) }
            }
            Request::Recording {} => Response::Text { text: self.recorder.text(clock::now()) },
            Request::Doctor {} => Response::Findings { findings: self.findings() },
            Request::Handover {} => match self.keeper.trouble() {
                None => return Some(reply),
                Some(why) => Response::Error {
                    kind: ErrorKind::Failed,
                    message: format!("the tunnels cannot be handed over, and the daemon goes on: {why}"),
                    hint: "systemctl stop cygnet ends them politely".to_owned(),
                },
            },
            Request::Events {} => Response::error(ErrorKind::BadRequest, "events are not asked of the loop"),
        };
        // The client may be gone.
        let _ = reply.send(response);
        None
    }

    pub(super) fn unknown(&self, sought: Sought, name: &str) -> Response {
        unknown(&self.config, sought, name)
    }

    /// The last events of some tunnels, or of everything.
    fn recent(&self, tunnels: &[String], since_s: Option<u64>) -> Response {
        if let Some(stranger) = tunnels.iter().find(|t| self.config.tunnel(t).is_none()) {
            return self.unknown(Sought::Tunnel, stranger);
        }
        Response::Events { events: self.history.recent(tunnels, ago(since_s)) }
    }

    fn tunnel_named(&self, name: &str) -> Option<TunnelId> {
        self.registry.tunnel(name)
    }

    fn command(
        &mut self,
        tunnel: &str,
        reply: oneshot::Sender<Response>,
        command: fn(TunnelId) -> Command,
        wants: Wants,
    ) {
        let Some(id) = self.tunnel_named(tunnel) else {
            let _ = reply.send(self.unknown(Sought::Tunnel, tunnel));
            return;
        };
        self.input(Input::Command(command(id)));
        self.waiters.push(Waiter { tunnel: id, name: tunnel.to_owned(), wants, reply });
    }

    fn rekey(&mut self, tunnel: &str, ike: bool, reply: oneshot::Sender<Response>) {
        let Some(id) = self.tunnel_named(tunnel) else {
            let _ = reply.send(self.unknown(Sought::Tunnel, tunnel));
            return;
        };
        let view = self.endpoint.view(id);
        let children = view.as_ref().map_or(0, |v| v.children.len());
        if view.is_none_or(|v| v.ike.is_none()) || (!ike && children == 0) {
            let _ = reply.send(Response::Error {
                kind: ErrorKind::Failed,
                message: format!("tunnel {tunnel} is not up"),
                hint: format!("cygnet up {tunnel}"),
            });
            return;
        }
        let (kind, left) = if ike { (RekeyKind::Ike, 1) } else { (RekeyKind::Child, children) };
        // Registered first: the answer may come in the same turn.
        let wants = Wants::Rekeyed { kind, left };
        self.waiters.push(Waiter { tunnel: id, name: tunnel.to_owned(), wants, reply });
        self.input(Input::Command(if ike { Command::RekeyIke(id) } else { Command::RekeyChildren(id) }));
    }

    /// Answers clients whose wish has come true, and forgets those that are gone.
    pub(super) fn settle_waiters(&mut self) {
        let (mut waiting, mut told) = (Vec::new(), Vec::new());
        for w in std::mem::take(&mut self.waiters) {
            let view = self.endpoint.view(w.tunnel);
            let name = &w.name;
            let done = match (&w.wants, &view) {
                (_, None) => Some(self.unknown(Sought::Tunnel, name)),
                (Wants::Up, Some(v)) if is_up(v) && v.coverage.is_whole() => {
                    Some(Response::done(format!("tunnel {name} is up")))
                }
                (Wants::Up, Some(v)) if is_up(v) && v.is_settled() => Some(partly_up(name, v)),
                (Wants::Down, Some(v)) if v.ike.is_none() && !self.endpoint.has_sas(w.tunnel) => {
                    Some(Response::done(format!("tunnel {name} is down")))
                }
                (Wants::Rekeyed { left: 0, kind: RekeyKind::Ike }, Some(_)) => {
                    Some(Response::done(format!("the IKE SA of tunnel {name} has new keys")))
                }
                (Wants::Rekeyed { left: 0, .. }, Some(_)) => {
                    Some(Response::done(format!("tunnel {name} has new keys")))
                }
                (Wants::Rekeyed { .. }, Some(v)) if v.ike.is_none() => {
                    Some(Response::error(ErrorKind::Failed, format!("tunnel {name} went down meanwhile")))
                }
                _ => None,
            };
            match done {
                Some(response) => told.push((w.reply, response)),
                None if w.reply.is_closed() => {}
                None => waiting.push(w),
            }
        }
        self.waiters = waiting;
        if !told.is_empty() {
            self.publish_soon();
        }
        for (reply, response) in told {
            let _ = reply.send(response);
        }
    }

    /// A negotiation or a rekey failed: whoever waits for it is told why.
    pub(super) fn waiters_failed(
        &mut self,
        tunnel: TunnelId,
        rekey: Option<RekeyKind>,
        message: &str,
        hint: &str,
    ) {
        let concerned = |w: &Waiter| match (&w.wants, rekey) {
            (Wants::Up, None) => w.tunnel == tunnel,
            (Wants::Rekeyed { kind, .. }, Some(failed)) => w.tunnel == tunnel && *kind == failed,
            _ => false,
        };
        let (told, rest) = std::mem::take(&mut self.waiters).into_iter().partition(concerned);
        self.waiters = rest;
        for w in told {
            let (message, hint) = (message.to_owned(), hint.to_owned());
            let _ = w.reply.send(Response::Error { kind: ErrorKind::Failed, message, hint });
        }
    }

    /// A rekey succeeded.
    pub(super) fn waiters_rekeyed(&mut self, tunnel: TunnelId, kind: RekeyKind) {
        for w in self.waiters.iter_mut().filter(|w| w.tunnel == tunnel) {
            if let Wants::Rekeyed { kind: wanted, left } = &mut w.wants
                && *wanted == kind
            {
                *left = left.saturating_sub(1);
            }
        }
    }

    /// What the daemon knows of its host.
    pub(super) fn findings(&mut self) -> Vec<Finding> {
        let wish = match self.config.daemon.data_plane {
            PlaneChoice::Auto => Wish::Auto,
            PlaneChoice::Kernel => Wish::Kernel,
            PlaneChoice::Userspace => Wish::Userspace,
        };
        let mut report = HostReport::gather(wish);
        // What runs counts, not what would be chosen now.
        report.data_plane = self.choice.plane.name().to_owned();
        report.data_plane_reason.clone_from(&self.choice.reason);
        let mut findings = report.findings();
        findings.extend(self.privileges.findings());
        findings.extend(self.obstacle_findings());
        findings.extend(self.plane.wall().findings());
        findings.extend(self.causes.findings(clock::now().mono));
        findings.extend(self.absent.iter().map(|address| Finding {
            name: "address".to_owned(),
            verdict: Verdict::Warning,
            detail: format!("no interface has the address {address} of a gateway; its tunnels wait for it"),
            fix: format!("ip address add {address} dev INTERFACE, or correct the configuration"),
        }));
        findings.extend(self.sourceless.iter().map(|tunnel| Finding {
            name: "source".to_owned(),
            verdict: Verdict::Warning,
            detail: format!(
                "this host has no address inside the local networks of tunnel {tunnel}; its own packets to the remote \
                 networks go outside of it"
            ),
            fix: "give an interface such an address, or set source: none".to_owned(),
        }));
        let legacy = self.config.tunnels.iter().map(|t| (&t.name, super::publish::legacy(t)));
        findings.extend(legacy.filter(|(_, l)| !l.is_empty()).map(|(tunnel, l)| {
            let of =
                |what: &str, all: &[String]| (!all.is_empty()).then(|| format!("{what}: {}", all.join(", ")));
            let words: Vec<String> = [of("IKE", &l.ike), of("ESP", &l.esp)].into_iter().flatten().collect();
            Finding {
                name: "legacy".to_owned(),
                verdict: Verdict::Warning,
                detail: format!(
                    "tunnel {tunnel} offers and takes algorithms that can be broken ({})",
                    words.join("; ")
                ),
                fix: "have the peer's end changed, then drop legacy: true".to_owned(),
            }
        }));
        findings.extend(self.keeper.trouble().map(|why| Finding {
            name: "restart".to_owned(),
            verdict: Verdict::Warning,
            detail: format!("a restart of the daemon would begin all tunnels anew: {why}"),
            fix: "make room there, and let the daemon write; it tries again by itself".to_owned(),
        }));
        findings.extend(self.limits_trouble().map(|detail| Finding {
            name: "limits".to_owned(),
            verdict: Verdict::Error,
            detail,
            fix: "use a kernel with nf_tables of the family inet, or set data_plane: userspace".to_owned(),
        }));
        findings.extend(self.levels_trouble().map(|detail| Finding {
            name: "bandwidth".to_owned(),
            verdict: Verdict::Error,
            detail,
            fix: "set data_plane: userspace, or correct the configuration".to_owned(),
        }));
        let lost = self.outer.iter().filter(|(_, addresses)| addresses.is_empty());
        findings.extend(lost.map(|(gateway, _)| Finding {
            name: "address".to_owned(),
            verdict: Verdict::Warning,
            detail: format!("no interface of gateway {gateway} has an address; its tunnels wait for one"),
            fix: "ip address shows what interfaces have".to_owned(),
        }));
        findings.extend(self.closed.iter().map(|address| Finding {
            name: "address".to_owned(),
            verdict: Verdict::Error,
            detail: format!("UDP 500 and 4500 of {address} cannot be used; its tunnels are down"),
            fix: "stop who uses them: ss -lnpu".to_owned(),
        }));
        findings
    }
}

const fn is_up(view: &TunnelView) -> bool {
    matches!(view.state, TunnelState::Up | TunnelState::Rekeying)
}

/// The answer to "up" where the peer took only a part of what is configured.
fn partly_up(name: &str, view: &TunnelView) -> Response {
    let c = &view.coverage;
    let missing: Vec<String> = c.missing.iter().take(8).map(missing_words).collect();
    let why = view.configured.iter().find_map(|c| c.trouble.as_ref());
    let (why, hint) = why.map_or((String::new(), "compare the SPD rules of both ends"), |t| {
        (format!("; {}: {}", t.reason, t.detail), t.reason.hint())
    });
    Response::Error {
        kind: ErrorKind::Failed,
        message: format!(
            "tunnel {name} is up for {} of {} pairs of networks; missing: {}{why}",
            c.covered,
            c.pairs,
            missing.join(", ")
        ),
        hint: hint.to_owned(),
    }
}

/// The answer where something is in force and could not be saved; `key` is where the configuration says the same.
pub(super) fn unsaved(config: &Config, message: &str, error: &std::io::Error, key: &str) -> Response {
    let dir = config.daemon.state_dir.display();
    Response::Error {
        kind: ErrorKind::Failed,
        message: format!(
            "{message}, but only until the daemon is told to end: it could not be saved: {error}"
        ),
        hint: match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                format!("make room in {dir} and say it again, or set {key} in the configuration")
            }
            _ => format!("make {dir} writable for the daemon, or set {key} in the configuration"),
        },
    }
}

/// The moment so many seconds ago; the beginning of all without a number.
fn ago(seconds: Option<u64>) -> Timestamp {
    seconds.map_or(Timestamp::default(), |s| clock::now().mono - std::time::Duration::from_secs(s))
}

/// What somebody named who named nothing that there is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sought {
    /// A tunnel.
    Tunnel,
    /// A gateway.
    Gateway,
    /// One of them.
    Either,
}

/// The answer to a name that nothing has, with the one that was perhaps meant.
pub(super) fn unknown(config: &Config, sought: Sought, name: &str) -> Response {
    let what = match sought {
        Sought::Tunnel => "tunnel",
        Sought::Gateway => "gateway",
        Sought::Either => "gateway or tunnel",
    };
    let tunnels = config.tunnels.iter().map(|t| t.name.as_str()).filter(|_| sought != Sought::Gateway);
    let gateways = config.gateways.iter().map(|g| g.name.as_str()).filter(|_| sought != Sought::Tunnel);
    let hint = match closest(name, tunnels.chain(gateways)) {
        Some(near) => format!("did you mean \"{near}\"? cygnet status lists them"),
        None => "cygnet status lists them".to_owned(),
    };
    let message = format!("there is no {what} \"{}\"", crate::observe::one_line(name));
    Response::Error { kind: ErrorKind::NotFound, message, hint }
}
