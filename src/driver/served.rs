//! What the daemon serves over HTTP follows its configuration.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use super::Daemon;
use super::reload::Refused;
use crate::config::model::{self, Config};
use crate::{console, observe};

/// How long the port of a page that ends may take to be free.
const PORT_WAIT: (Duration, u32) = (Duration::from_millis(10), 50);

/// What is served over HTTP, and where.
#[derive(Clone, PartialEq, Eq)]
enum Page {
    Metrics(Option<SocketAddr>),
    Console(Option<model::Console>),
}

impl Page {
    fn listen(&self) -> Option<SocketAddr> {
        match self {
            Self::Metrics(listen) => *listen,
            Self::Console(console) => console.as_ref().map(|c| c.listen),
        }
    }

    const fn what(&self) -> &'static str {
        match self {
            Self::Metrics(_) => "metrics",
            Self::Console(_) => "the console",
        }
    }
}

impl Daemon {
    /// Serves metrics and the console where the new configuration wants them: both, or both as they were.
    pub(super) fn follow_pages(&mut self, new: &Config) -> Result<(), Refused> {
        let old = self.config.daemon.clone();
        self.follow_page(Page::Metrics(old.metrics), Page::Metrics(new.daemon.metrics))?;
        let console = |c: &Option<model::Console>| Page::Console(c.clone());
        let followed = self.follow_page(console(&old.console), console(&new.daemon.console));
        if followed.is_err() {
            // It was served there a moment ago.
            let _ = self.follow_page(Page::Metrics(new.daemon.metrics), Page::Metrics(old.metrics));
        }
        followed
    }

    fn follow_page(&mut self, old: Page, wanted: Page) -> Result<(), Refused> {
        if old == wanted {
            return Ok(());
        }
        let Some(listen) = wanted.listen() else {
            self.end_page(&wanted);
            return Ok(());
        };
        // The same port on another address may be one that we hold ourselves.
        let shares = old.listen().is_some_and(|old| old.port() == listen.port());
        if shares {
            self.end_page(&old);
        }
        match self.begin_page(&wanted, shares) {
            Ok(()) => Ok(()),
            Err(e) => {
                if shares && let Err(e) = self.begin_page(&old, true) {
                    tracing::error!(error = %e, "{} is not served any more", old.what());
                }
                let message = format!("cannot serve {} on TCP {listen}: {e}", wanted.what());
                Err(Refused::unprepared(message, "stop who uses it: ss -lntp"))
            }
        }
    }

    fn end_page(&mut self, page: &Page) {
        match page {
            Page::Metrics(_) => self.exporter = None,
            Page::Console(_) => self.console = None,
        }
    }

    fn begin_page(&mut self, page: &Page, patient: bool) -> std::io::Result<()> {
        let Some(listen) = page.listen() else { return Ok(()) };
        let mut tries = if patient { PORT_WAIT.1 } else { 0 };
        let listener = loop {
            match TcpListener::bind(listen) {
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && tries > 0 => {
                    tries -= 1;
                    std::thread::sleep(PORT_WAIT.0);
                }
                bound => break bound?,
            }
        };
        match page {
            Page::Metrics(_) => {
                self.exporter = Some(observe::http::spawn(listener, self.publisher.subscribe())?);
            }
            Page::Console(None) => {}
            Page::Console(Some(settings)) => {
                self.console = Some(console::spawn(listener, settings.clone(), self.console_sources())?);
            }
        }
        Ok(())
    }

    /// Where the console has its knowledge from.
    pub(super) fn console_sources(&self) -> console::Sources {
        console::Sources {
            published: self.publisher.subscribe(),
            events: self.events.clone(),
            asks: self.asks.clone(),
        }
    }
}
