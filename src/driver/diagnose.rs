//! What the daemon knows, for `cygnet diagnose`.

use super::Daemon;
use crate::config::model::Tunnel;
use crate::diagnose::facts::{DaemonFacts, Known};
use crate::diagnose::gather::{self, LOOKED_AT};
use crate::observe::snapshot::TunnelStatus;

impl Daemon {
    /// What is known of one tunnel, or of all as far as they are looked at; `None` if there is no such tunnel.
    pub(super) fn known(&mut self, tunnel: Option<&str>) -> Option<DaemonFacts> {
        // With counters of this moment.
        let status = match tunnel {
            Some(name) => {
                self.config.tunnel(name)?;
                self.status_of(name)?
            }
            None => {
                self.pages.begin_anew();
                self.sample();
                self.publisher.borrow().snapshot.clone()
            }
        };
        let well = |s: &TunnelStatus| s.state.is_up() && s.coverage.is_whole() && s.unanswered_s.is_none();
        let mut tunnels: Vec<TunnelStatus> = status.tunnels.iter().map(|t| TunnelStatus::clone(t)).collect();
        tunnels.sort_by_key(well);
        tunnels.truncate(LOOKED_AT);
        let file = crate::config::error::quoted_path(&self.written.file.to_string_lossy());
        let of = |s: TunnelStatus| {
            let t = self.config.tunnel(&s.name)?;
            let own = self.outer.get(&t.gateway).cloned().unwrap_or_default();
            let known = gather::known(&self.config, t, own, &self.written.lines, &file);
            let explanation = self.explain(&t.name);
            Some(Known { peers: self.peers_of(t, known.peers), explanation, status: Some(s), ..known })
        };
        let tunnels = tunnels.into_iter().filter_map(of).collect();
        Some(DaemonFacts {
            data_plane: status.data_plane.clone(),
            // The client may be elsewhere in the file system.
            file: std::path::absolute(&self.written.file)
                .unwrap_or_else(|_| self.written.file.clone())
                .to_string_lossy()
                .into_owned(),
            wall: status.wall.in_force,
            obstacles: status.obstacles.clone(),
            findings: self.findings(),
            tunnels,
        })
    }

    fn peers_of(&self, t: &Tunnel, configured: Vec<std::net::IpAddr>) -> Vec<std::net::IpAddr> {
        use crate::config::model::PeerAddress;
        match self.config.customer_gateway(&t.customer_gateway).map(|c| &c.address) {
            Some(PeerAddress::Dns(name)) => self.resolved.get(name).cloned().unwrap_or_default(),
            _ => configured,
        }
    }
}
