//! How large a terminal is.

use std::os::fd::{AsFd, AsRawFd};

/// The lines of the terminal behind a descriptor; `None` if it is none, or does not know.
pub fn rows(of: &impl AsFd) -> Option<usize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open as long as `of` is borrowed, and TIOCGWINSZ writes one `winsize` to where its argument
    // points, which is a whole one of ours.
    let answer = unsafe { libc::ioctl(of.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0 && size.ws_row > 0).then(|| usize::from(size.ws_row))
}
