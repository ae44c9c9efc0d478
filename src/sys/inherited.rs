//! Descriptors that the service manager passes to this process, see `sd_listen_fds(3)`.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// More are not taken.
const MAX: usize = 4096;

/// They are owned once.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The descriptors with their names, the first time; nothing later, or without a service manager. To be called before
/// this process opens any descriptor: the manager's have the numbers from 3 on, and what it promised and did not pass
/// would be somebody else's otherwise.
pub fn take() -> Vec<(OwnedFd, String)> {
    if TAKEN.swap(true, Relaxed) {
        return Vec::new();
    }
    // Each is known to be open, since it could be marked as close-on-exec.
    let Ok(passed) = sd_notify::listen_fds_with_names() else { return Vec::new() };
    let own = |(fd, name)| {
        // SAFETY: the descriptor was passed to this process by whoever executed it and is open; nothing else here knows
        // its number, and this code runs once, so that it has one owner.
        (unsafe { OwnedFd::from_raw_fd(fd) }, name)
    };
    passed.take(MAX).map(own).collect()
}
