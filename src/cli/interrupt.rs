//! Ctrl-C as the ordinary end of what goes on until somebody has seen enough: exit code 0, and no half a line.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// How often, and how long apart, it is tried to let a line end. A reader that is stuck does not keep us.
const TRIES: u32 = 20;
const APART: Duration = Duration::from_millis(50);

/// From here on Ctrl-C ends the process with 0, between two pieces of output.
pub struct Interrupt(Arc<Mutex<()>>);

impl Interrupt {
    /// Begins to listen.
    ///
    /// # Errors
    /// If there is no thread, or no signal, to be had.
    pub fn watch() -> io::Result<Self> {
        let writing = Arc::new(Mutex::new(()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let mut pressed = {
            let _inside = runtime.enter();
            signal(SignalKind::interrupt())?
        };
        let state = Arc::clone(&writing);
        std::thread::Builder::new().name("interrupt".into()).spawn(move || {
            runtime.block_on(pressed.recv());
            for _ in 0..TRIES {
                if let Ok(_turn) = state.try_lock() {
                    std::process::exit(0);
                }
                std::thread::sleep(APART);
            }
            std::process::exit(0);
        })?;
        Ok(Self(writing))
    }

    /// A piece of output is written while this is held.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
