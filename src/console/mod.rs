//! The web console: pages that show what the daemon knows of itself, live, and that change with a token what the control
//! socket changes. Everything a browser needs is in the binary.
//!
//! It runs on a thread of its own and reads what is published, so that no browser holds up the daemon's loop. What is not
//! published is asked for like over the control socket, one question at a time, and an answer serves everybody for a
//! moment.
//!
//! `door` decides who may come in, `record` remembers rates and events, `view` writes what a page shows,
//! `stream` sends what changes, `serve` answers requests.

mod ask;
mod assets;
mod door;
mod record;
mod serve;
mod stream;
mod view;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot};

use crate::config::model;
use crate::control::Ask;
use crate::observe::Subscriber;
use crate::observe::events::Event;
use crate::privileges;

/// Where the console has its knowledge from.
#[derive(Debug)]
pub struct Sources {
    /// What is published.
    pub published: Subscriber,
    /// What happens.
    pub events: broadcast::Sender<Arc<Event>>,
    /// Questions and orders to the daemon's loop.
    pub asks: mpsc::Sender<Ask>,
}

/// A console that serves until it is dropped.
#[derive(Debug)]
pub struct Console {
    _stop: oneshot::Sender<()>,
}

/// Serves the console on a bound listener, on a thread of its own.
///
/// # Errors
/// What the system says to a new thread or to its event loop.
pub fn spawn(listener: TcpListener, settings: model::Console, sources: Sources) -> io::Result<Console> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::Builder::new().name("console".into()).spawn(move || {
        privileges::give_up_all();
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => tokio::select! {
                    () = serve::serve(listener, Arc::new(settings), sources) => {}
                    _ = stopped => {}
                },
                Err(e) => tracing::error!(error = %e, "the console's listener cannot be used"),
            }
        });
    })?;
    Ok(Console { _stop: stop })
}
