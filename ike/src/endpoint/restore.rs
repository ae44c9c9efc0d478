//! IKE SAs that leave the process and come back.

use std::collections::BTreeSet;

use cygnet_model::Now;
use cygnet_model::tunnel::SaId;

use super::Endpoint;
use crate::io::Actions;
use crate::policy::TunnelPolicy;
use crate::saved::{Change, Refused, Saved};

impl Endpoint {
    /// The IKE SAs whose kept form is another one than at the last call. To be kept before the actions of the same
    /// [`Endpoint::handle`] are performed, so that what is kept is never behind what the peer has seen.
    pub fn take_changes(&mut self) -> Vec<Change> {
        Vec::new()
    }

    /// Takes up what an earlier process left, in place of the first [`Endpoint::set_policies`].
    ///
    /// `present` are the ESP SAs that the data plane took up again, with their sequence numbers. With `renew` the plane does
    /// not know exactly what it had received, and every pair gets new keys soon.
    pub fn restore(
        &mut self,
        now: Now,
        policies: Vec<TunnelPolicy>,
        _saved: Vec<Saved>,
        _present: &BTreeSet<SaId>,
        _renew: bool,
        out: &mut Actions,
    ) -> Vec<Refused> {
        self.set_policies(now, policies, out);
        Vec::new()
    }
}
