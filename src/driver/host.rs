//! The host changes under the running gateway: what others removed is put back and told, what stands in the way of the
//! guards is told.

use cygnet_xfrm::host::Change;

use super::Daemon;
use crate::observe::events::Kind;
use crate::observe::snapshot::{Finding, Verdict};

impl Daemon {
    /// The kernel says that something changed.
    pub(super) fn on_host_changes(&mut self) {
        let own = self.shaper.as_ref().map(crate::shaping::apply::Shaper::port);
        let Some(monitor) = &mut self.host else { return };
        let changes = monitor.changes(own);
        // Routes go with a link that goes down, and do not come back with it.
        if changes.contains(&Change::Addresses) || changes.contains(&Change::Links) {
            self.look_for_addresses();
        }
        if changes.contains(&Change::TrafficControl) || changes.contains(&Change::Links) {
            self.mend_shaping();
        }
    }

    /// Looks whether guards and caps are still in force, whatever the kernel told.
    pub(super) fn audit(&mut self) {
        for (what, audited) in self.plane.audit() {
            match audited {
                Ok(0) => {}
                Ok(count) => self.on_repaired(what, count),
                Err(e) => {
                    tracing::error!(error = %e, "the guards could not be put right");
                    self.announce(Kind::DataPlane, &format!("the guards could not be put right: {e}"));
                }
            }
        }
        self.look_for_obstacles();
        self.check_wall(true);
        self.mend_shaping();
    }

    /// Puts the wall back if others changed it; see [`crate::plane::wall::Wall::check`].
    pub(super) fn check_wall(&mut self, thorough: bool) {
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

    /// Tells that others had removed guards, which are in force again.
    pub(super) fn on_repaired(&mut self, what: &str, count: usize) {
        let message = format!(
            "in force again, after another program removed or changed it: {what} ({count}); until then a second guard \
             alone stood between protected packets and the public network"
        );
        tracing::warn!("{message}");
        self.announce(Kind::GuardRepaired, &message);
    }

    /// Tells what of others stands in the way of the guards, once.
    pub(super) fn look_for_obstacles(&mut self) {
        let now = self.plane.obstacles();
        for new in now.iter().filter(|o| !self.obstacles.contains(o)).cloned().collect::<Vec<_>>() {
            let message = format!("{}; {}", new.what, new.fix);
            tracing::error!("{}", crate::observe::one_line(&message));
            self.announce(Kind::GuardObstructed, &message);
        }
        self.obstacles = now;
    }

    /// What stands in the way of the guards, as findings.
    pub(super) fn obstacle_findings(&self) -> Vec<Finding> {
        let finding = |o: &cygnet_model::plane::Obstacle| Finding {
            name: o.name.to_owned(),
            verdict: Verdict::Error,
            detail: crate::observe::one_line(&o.what),
            fix: crate::observe::one_line(&o.fix),
        };
        self.obstacles.iter().map(finding).collect()
    }

    /// Puts levels in force again that others removed or changed, and follows routes that lead elsewhere.
    fn mend_shaping(&mut self) {
        if self.plane.mend_ips() {
            let message = "counts and limits of inner addresses, which another program removed or changed, are in force again";
            tracing::warn!("{message}");
            self.announce(Kind::LimitChanged, message);
        }
        if self.bandwidth.values().all(|level| level.bps.is_none()) {
            return;
        }
        let mut mended = match self.plane.mend_levels() {
            Ok(mended) => mended,
            Err(e) => {
                tracing::error!("{e}");
                false
            }
        };
        let Some(shaper) = &mut self.shaper else { return };
        let errors = match shaper.mend() {
            Ok(steps) => {
                mended |= steps > 0;
                Vec::new()
            }
            Err(errors) => errors,
        };
        if mended {
            let message = "bandwidth levels that another program removed or changed, or whose packets leave by another interface, \
                           are in force again";
            tracing::warn!("{message}");
            self.announce(Kind::BandwidthChanged, message);
        }
        if self.without_queue(&errors) {
            self.follow_plane_levels();
        }
    }
}
