//! The running gateway follows its configuration.
//!
//! First everything is prepared that can fail: the file is read, numbers are given, the exporter's and the gateways'
//! sockets are opened, and new guards are put in force beside the old ones. If any of it fails it is taken back, and all is
//! as before. Only then the new configuration is taken over, and what it has no more is let go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use cygnet_model::registry::Registry;
use cygnet_model::tunnel::GuardSpec;
use cygnet_model::{ChildId, plane::PlaneKind};

use super::addresses::HostAddresses;
use super::explain::Written;
use super::{Daemon, names, policy, saved};
use crate::config::diff::{self, Action, Impact, Plan};
use crate::config::model::Config;
use crate::config::{self, Loaded};
use crate::control::{ErrorKind, Response};
use crate::observe;
use crate::observe::events::Kind;

/// Why nothing was changed.
pub(super) enum Refused {
    /// The file has errors: one line for each, and for each warning.
    BadConfig(Vec<String>),
    /// Something could not be prepared.
    Unprepared { message: String, hint: &'static str },
}

impl Refused {
    pub(super) fn unprepared(message: impl Into<String>, hint: &'static str) -> Self {
        Self::Unprepared { message: message.into(), hint }
    }
}

impl From<Refused> for Response {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::BadConfig(problems) => Self::BadConfig { problems },
            Refused::Unprepared { message, hint } => Self::Error {
                kind: ErrorKind::Failed,
                message: format!("nothing was changed: {message}"),
                hint: hint.to_owned(),
            },
        }
    }
}

impl Daemon {
    /// What it takes to get from what runs to a file.
    pub(super) fn plan(&self, file: Option<&Path>) -> Result<Plan, Refused> {
        self.read(file).map(|(.., plan)| plan)
    }

    fn read(&self, file: Option<&Path>) -> Result<(Config, Written, Plan), Refused> {
        let path = file.unwrap_or(&self.path);
        let lines = |problems: &[config::Problem]| {
            let name = config::error::quoted_path(&path.to_string_lossy());
            problems.iter().map(|p| p.one_line(&name)).collect::<Vec<_>>()
        };
        let Loaded { config, warnings, lines: places } =
            config::load(path).map_err(|errors| Refused::BadConfig(lines(&errors.problems)))?;
        let mut plan = diff::plan(&self.config, &config);
        plan.notes.extend(self.level_notes(&config));
        plan.notes.extend(self.limit_notes(&config));
        for line in lines(&warnings) {
            tracing::debug!("{line}");
        }
        Ok((config, Written { file: path.to_owned(), lines: places }, plan))
    }

    /// SIGHUP.
    pub(super) fn on_hangup(&mut self) {
        use sd_notify::NotifyState;
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            let _ = sd_notify::notify(&[NotifyState::Reloading, now]);
        }
        // What there is to say of it is in the log and the events.
        let _ = self.apply(None);
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    /// Makes the running gateway what a file says, or changes nothing.
    pub(super) fn apply(&mut self, file: Option<&Path>) -> Result<Plan, Refused> {
        let shown = observe::one_line(&file.unwrap_or(&self.path).to_string_lossy());
        let result = self.read(file).and_then(|(config, written, plan)| {
            if plan.changes() {
                self.take_over(config)?;
            }
            // Lines may have moved and changed nothing.
            self.written = written;
            Ok(plan)
        });
        self.config_ok = result.is_ok();
        match &result {
            Ok(plan) => {
                let message = format!("{shown}: {}", summary(plan));
                self.announce(Kind::ConfigApplied, &message);
                for c in plan.waits_for_restart() {
                    tracing::warn!("daemon.{} takes effect when the daemon is restarted", c.field);
                }
            }
            Err(Refused::BadConfig(problems)) => {
                for line in problems {
                    tracing::error!("{}", observe::one_line(line));
                }
                let errors = problems.len();
                self.announce(
                    Kind::ConfigRefused,
                    &format!("{shown} was refused for {errors} problems; nothing was changed"),
                );
            }
            Err(Refused::Unprepared { message, .. }) => {
                let message = format!("{shown} was refused; nothing was changed: {message}");
                tracing::error!("{}", observe::one_line(&message));
                self.announce(Kind::ConfigRefused, &message);
            }
        }
        self.publish();
        result
    }

    fn take_over(&mut self, mut new: Config) -> Result<(), Refused> {
        // These wait for a restart; what depends on them goes on with the old ones.
        new.daemon.control_socket.clone_from(&self.config.daemon.control_socket);
        new.daemon.admin_group.clone_from(&self.config.daemon.admin_group);
        new.daemon.state_dir.clone_from(&self.config.daemon.state_dir);
        new.daemon.data_plane = self.config.daemon.data_plane;
        if self.choice.plane == PlaneKind::Userspace {
            policy::told_apart(&new).map_err(|e| Refused::unprepared(e.to_string(), ""))?;
        }
        let mut registry = self.registry.clone();
        policy::register(&mut registry, &new).map_err(|_| {
            Refused::unprepared("there are no numbers left for new tunnels", "restart the daemon")
        })?;
        let guards = policy::guards(&new, &registry);
        let before = policy::guards(&self.config, &self.registry);

        let opened = self.open_new_addresses(&new)?;
        if let Err(refused) = self.put_guards(&before, &guards).and_then(|()| self.follow_pages(&new)) {
            // Both are as they were if that fails, too, but for what is in the log.
            self.take_guards_back(&before, &guards);
            opened.iter().for_each(|address| self.close_address(*address));
            return Err(refused);
        }
        self.commit(new, registry, &before, &guards);
        Ok(())
    }

    /// Opens sockets on addresses of the new configuration that this host has.
    fn open_new_addresses(&mut self, new: &Config) -> Result<Vec<IpAddr>, Refused> {
        let host = HostAddresses::read();
        let wanted: BTreeSet<IpAddr> = host.outer(new).into_values().flatten().collect();
        let mut opened = Vec::new();
        for address in wanted.difference(&self.sockets.addresses()).copied().collect::<Vec<_>>() {
            // One that is absent is waited for, as at the start.
            if !host.has(address) {
                continue;
            }
            if let Err(e) = self.open_address(address) {
                opened.iter().for_each(|address| self.close_address(*address));
                let message = format!("cannot use address {address} of a gateway: {e:#}");
                return Err(Refused::unprepared(message, "stop who uses it: ss -lnpu"));
            }
            opened.push(address);
        }
        Ok(opened)
    }

    fn put_guards(&mut self, before: &[GuardSpec], guards: &[GuardSpec]) -> Result<(), Refused> {
        let known: BTreeMap<ChildId, &GuardSpec> = before.iter().map(|g| (g.child, g)).collect();
        let changed: Vec<GuardSpec> =
            guards.iter().filter(|g| known.get(&g.child) != Some(g)).cloned().collect();
        self.plane
            .guard_all(&changed)
            .map_err(|e| Refused::unprepared(e.to_string(), "cygnet doctor shows what this host offers"))
    }

    fn take_guards_back(&mut self, before: &[GuardSpec], guards: &[GuardSpec]) {
        let known: BTreeSet<ChildId> = before.iter().map(|g| g.child).collect();
        let new: Vec<ChildId> = guards.iter().map(|g| g.child).filter(|c| !known.contains(c)).collect();
        let undone = self.plane.guard_all(before).and(self.plane.unguard_all(&new));
        if let Err(e) = undone {
            tracing::error!(error = %e, "guards of a configuration that was refused are left");
        }
    }

    /// Takes over what was prepared. What fails from here on is mended by the audit, as if others had disturbed it.
    fn commit(&mut self, new: Config, registry: Registry, before: &[GuardSpec], guards: &[GuardSpec]) {
        saved::keep_registry(&self.config, &self.registry, &registry);
        self.follow_levels(&new);
        self.follow_limits(&new);
        self.resolver.follow(names(&new), &self.answers);
        self.unresolved.retain(|name| self.resolver.asks_for(name));
        self.resolved.retain(|name, _| self.resolver.asks_for(name));
        let gone: Vec<String> = (self.config.tunnels.iter())
            .filter(|t| registry.tunnel(&t.name) != self.registry.tunnel(&t.name))
            .map(|t| t.name.clone())
            .collect();
        // Told while they still have a name.
        for name in &gone {
            if let Some(id) = self.registry.tunnel(name) {
                self.tell_tunnel(id, Kind::TunnelDown, "the configuration has it no more");
                self.tunnels.remove(&id);
                self.tunnel_lines.forget(|(tunnel, _)| *tunnel == id);
                self.failure_lines.forget(|(tunnel, _)| *tunnel == id);
            }
        }
        self.config = new;
        self.registry = registry;
        self.keep_levels();
        self.configure();
        let sources = policy::sources(&self.config, &self.registry, &self.outer);
        if let Err(e) = self.plane.follow_sources(sources) {
            tracing::warn!(error = %e, "own packets do not have their sources");
        }
        let kept: BTreeSet<ChildId> = guards.iter().map(|g| g.child).collect();
        self.leaving.extend(before.iter().map(|g| g.child).filter(|child| !kept.contains(child)));
        self.release_left();
    }

    /// Releases the guards of children that the configuration has no more and that have no SA any more.
    pub(super) fn release_left(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let free: Vec<ChildId> =
            self.leaving.iter().copied().filter(|child| !self.endpoint.is_carried(*child)).collect();
        if free.is_empty() {
            return;
        }
        match self.plane.unguard_all(&free) {
            Ok(()) => free.iter().for_each(|child| {
                self.leaving.remove(child);
            }),
            Err(e) => {
                tracing::warn!(error = %e, "guards that nobody wants any more could not be released yet")
            }
        }
    }
}

/// A plan in a sentence.
fn summary(plan: &Plan) -> String {
    if !plan.changes() {
        return "nothing to change".to_owned();
    }
    let count = |f: &dyn Fn(&diff::Step) -> bool| plan.steps.iter().filter(|s| f(s)).count();
    let changed = |impact| count(&|s| s.action == Action::Change && s.impact == impact);
    format!(
        "{} added, {} removed, {} changed in place, {} with new keys, {} anew, {} untouched",
        count(&|s| s.action == Action::Add),
        count(&|s| s.action == Action::Remove),
        changed(Impact::InPlace),
        changed(Impact::Rekey),
        changed(Impact::Restart),
        count(&|s| s.action == Action::Keep),
    )
}
