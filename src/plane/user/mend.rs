//! The thread that keeps the guards where they are: it hears from the kernel when somebody removes rules or routes of
//! ours, takes the device down or changes addresses, and puts things right at once; and it looks every few seconds, since
//! the kernel does not tell everything.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cygnet_model::plane::PlaneEvent;
use cygnet_xfrm::routing::{News, Watch};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::placement::Placement;
use super::rules::Repaired;
use super::shared::Shared;

/// Which eventfd wakes this thread.
pub(super) const WAKE: usize = 2;
/// How long something that nobody told of may stay wrong.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// Between two looks: changes come in bursts, our own among them, and each look reads all rules.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two steps of tidying.
const BREAK: Duration = Duration::from_millis(20);
/// Steps of tidying between two looks.
const STEPS: usize = 16;

pub(super) struct Mend {
    shared: Arc<Shared>,
    placement: Arc<Mutex<Placement>>,
    watch: Watch,
    in_front: usize,
}

impl Mend {
    pub const fn new(shared: Arc<Shared>, placement: Arc<Mutex<Placement>>, watch: Watch) -> Self {
        Self { shared, placement, watch, in_front: 0 }
    }

    /// Runs until the plane stops.
    pub fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut untidy = false;
        while !shared.stopping() {
            self.wait(if untidy { BREAK } else { LOOK_EVERY });
            let news = self.watch.news();
            if !shared.stopping() {
                self.look(&news);
                self.pause();
                untidy = self.tidy();
            }
        }
    }

    /// Lets a burst pass, but not the end.
    fn pause(&self) {
        let Some(wake) = self.shared.wake.get(WAKE) else { return };
        // Not read, so that the next wait sees it, too.
        let patience = PollTimeout::try_from(PAUSE).unwrap_or(PollTimeout::ZERO);
        let _ = poll(&mut [PollFd::new(wake.as_fd(), PollFlags::POLLIN)], patience);
    }

    fn wait(&self, patience: Duration) {
        let Some(wake) = self.shared.wake.get(WAKE) else { return };
        let mut fds =
            [PollFd::new(self.watch.fd(), PollFlags::POLLIN), PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut fds, patience);
        if fds.last().is_some_and(|fd| fd.any() == Some(true)) {
            let _ = wake.read();
        }
    }

    /// Removes some of what the last layout left, with breaks in which others get at the guards. Says whether there is more.
    fn tidy(&self) -> bool {
        for _ in 0..STEPS {
            let tidied = self.placement.lock().unwrap_or_else(PoisonError::into_inner).tidy();
            match tidied {
                Ok(true) if !self.shared.stopping() => std::thread::sleep(BREAK),
                Ok(_) => return false,
                Err(error) => {
                    tracing::warn!(%error, "rules of an earlier layout are left; next attempt in seconds");
                    return false;
                }
            }
        }
        true
    }

    fn look(&mut self, news: &[News]) {
        let mut placement = self.placement.lock().unwrap_or_else(PoisonError::into_inner);
        let repaired = placement.repair();
        let followed = placement.follow_addresses();
        let in_front = repaired.is_ok().then(|| placement.in_front().to_vec());
        self.watch.follow_link(placement.tun_index());
        drop(placement);
        match repaired {
            Ok(repaired) => self.tell(repaired, news),
            Err(error) => {
                tracing::error!(%error, "the guards' rules could not be restored; next attempt in seconds")
            }
        }
        if let Err(error) = followed {
            tracing::error!(%error, "the guards could not follow a change of addresses; next attempt in seconds");
        }
        // What could not be read was told above.
        if let Some(rules) = in_front
            && rules.len() != self.in_front
        {
            for rule in &rules {
                tracing::error!(
                    %rule,
                    "this rule of somebody else stands before the guards and may lead protected packets around the tunnel; \
                     give it a priority above {}",
                    super::rules::LAST_PRIORITY
                );
            }
            self.in_front = rules.len();
            self.shared.events.push(PlaneEvent::InFront { count: rules.len() });
        }
    }

    fn tell(&self, repaired: Repaired, news: &[News]) {
        let Repaired { device, count } = repaired;
        if device {
            tracing::warn!(told = ?news, "somebody removed the TUN device; it was made anew");
            self.shared.events.push(PlaneEvent::Repaired { what: "TUN device", count: 1 });
        }
        // Routes go with the device.
        if count > 0 {
            tracing::warn!(
                count,
                told = ?news,
                "somebody removed routing rules or routes of the guards; they are back. Protected packets may have \
                 passed around the tunnel meanwhile"
            );
            self.shared.events.push(PlaneEvent::Repaired { what: "routing rules and routes", count });
        }
    }
}
