//! Counts the octets that this thread's work asks the allocator for: a measure of work that no clock is needed for, and that
//! shows whatever copies or collects something of all tunnels.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static OCTETS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counted.
pub struct Counted;

// SAFETY: every call goes to `System` with the same arguments; counting allocates nothing, since the cell is initialised
// by a constant and has no destructor.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = OCTETS.try_with(|octets| octets.set(octets.get() + layout.size() as u64));
        // SAFETY: the caller keeps to the contract of `GlobalAlloc::alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System` with this layout, as everything that `alloc` gave.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Octets asked for while `work` was done.
pub fn of(work: impl FnOnce()) -> u64 {
    let before = OCTETS.get();
    work();
    OCTETS.get() - before
}
