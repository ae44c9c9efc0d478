//! Performs the protocol's actions, strictly in their order.

use cygnet_ike::{Action, Input};
use cygnet_model::ChildId;
use cygnet_model::plane::PlaneError;

use super::jobs::is_worth_the_way;
use super::{Daemon, clock, os_random};

impl Daemon {
    /// Performs a list of actions. After a failure on the data plane the later plane actions of the same child are
    /// skipped, and the protocol is told.
    pub(super) fn perform(&mut self, actions: Vec<Action>) {
        self.keep_ahead(&actions);
        let mut failed: Vec<(ChildId, String)> = Vec::new();
        let mut own = Vec::new();
        for action in actions {
            let broken = |child: ChildId| failed.iter().any(|(c, _)| *c == child);
            let result: Result<(), (ChildId, PlaneError)> = match action {
                Action::Send { flow, bytes } => {
                    self.recorder.sent(clock::now().mono, flow, &bytes);
                    if let Err(e) = self.sockets.send(&flow, &bytes) {
                        tracing::debug!(local = %flow.local, remote = %flow.remote, error = %e, "send");
                    }
                    Ok(())
                }
                Action::Keepalive(flow) => {
                    // Another one follows.
                    let _ = self.sockets.keepalive(&flow);
                    Ok(())
                }
                Action::OpenTunnel(spec) if !broken(spec.child) => {
                    self.plane.port().open_tunnel(&spec).map_err(|e| (spec.child, e))
                }
                Action::InstallSa(spec) if !broken(spec.id.child) => {
                    let installed = self.plane.port().install(&spec);
                    if installed.is_err() {
                        self.keep_without(spec.id);
                    }
                    installed.map_err(|e| (spec.id.child, e))
                }
                Action::OpenTunnel(_) => Ok(()),
                Action::InstallSa(spec) => {
                    self.keep_without(spec.id);
                    Ok(())
                }
                Action::CloseTunnel(child) => {
                    let result = self.plane.port().close_tunnel(child);
                    complain(result.err());
                    Ok(())
                }
                Action::RemoveSa(sa) => {
                    match self.plane.port().remove(sa) {
                        Ok(last) => {
                            if let Some(t) = self.tunnel_name(sa.child.tunnel) {
                                self.counters.retire(&t, sa, last);
                            }
                            self.note_retired(sa, last);
                        }
                        Err(e) => complain(Some(e)),
                    }
                    Ok(())
                }
                Action::Migrate(sa, to) => {
                    let result = self.plane.port().migrate(sa, to);
                    complain(result.err());
                    Ok(())
                }
                Action::Run(id, job) => {
                    let beside = is_worth_the_way(&job, self.others_wait);
                    own.extend(if beside { self.workers.take(id, job).err() } else { Some((id, job)) });
                    Ok(())
                }
                Action::Tell(event) => {
                    self.tell(event);
                    Ok(())
                }
            };
            if let Err((child, e)) = result {
                failed.push((child, e.to_string()));
            }
        }
        self.note_states();
        self.release_left();
        for (child, detail) in failed {
            self.input(Input::PlaneFailed { child, detail });
        }
        // What is not worth the way, and what the workers have no place for: whoever takes more in does it himself.
        for (id, job) in own {
            let output = job.run(&mut os_random());
            self.input(Input::Done(id, output));
        }
    }
}

/// Logs a failure that changes nothing for the protocol.
fn complain(error: Option<PlaneError>) {
    if let Some(e) = error {
        tracing::warn!(error = %e, "data plane");
    }
}
