//! Sends what changes to a browser, as server-sent events (HTML Living Standard §9.2): `all`, `change` and `event`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, timeout};

use super::view::{Change, View};
use crate::observe::events::Event;

/// Pieces that wait for a slow browser.
const QUEUE: usize = 8;
/// A browser that takes nothing for this long is let go; it comes back of its own.
const STALLED: Duration = Duration::from_secs(10);
/// At most so often is a change sent.
const PACE: Duration = Duration::from_millis(500);
/// Something is sent at least so often, so that both ends know whether the other is there.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The body of an answer that goes on.
#[derive(Debug)]
pub struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|p| Ok(Frame::data(p))))
    }
}

/// Begins a stream; it ends when the browser is gone.
pub fn begin(views: watch::Receiver<Arc<View>>, events: broadcast::Receiver<Arc<Event>>) -> Pieces {
    let (pieces, body) = mpsc::channel(QUEUE);
    tokio::spawn(send(pieces, views, events));
    Pieces(body)
}

async fn send(
    pieces: mpsc::Sender<Bytes>,
    mut views: watch::Receiver<Arc<View>>,
    mut events: broadcast::Receiver<Arc<Event>>,
) -> Option<()> {
    let mut shown = Arc::clone(&views.borrow_and_update());
    put(&pieces, message("all", &shown.whole())).await?;
    let mut free_at = Instant::now();
    loop {
        let changed = async {
            tokio::time::sleep_until(free_at).await;
            views.changed().await
        };
        tokio::select! {
            changed = changed => {
                changed.ok()?;
                let view = Arc::clone(&views.borrow_and_update());
                if let Some((change, json)) = view.since(&shown) {
                    let name = if change == Change::Whole { "all" } else { "change" };
                    put(&pieces, message(name, &json)).await?;
                }
                shown = view;
                free_at = Instant::now() + PACE;
            }
            event = events.recv() => match event {
                Ok(event) => put(&pieces, message("event", &serde_json::to_string(&*event).ok()?)).await?,
                // The list of events has them; the browser asks for it anew.
                Err(broadcast::error::RecvError::Lagged(_)) => put(&pieces, message("lost", "{}")).await?,
                Err(broadcast::error::RecvError::Closed) => return None,
            },
            () = tokio::time::sleep(HEARTBEAT) => put(&pieces, Bytes::from_static(b":\n\n")).await?,
            () = pieces.closed() => return None,
        }
    }
}

async fn put(pieces: &mpsc::Sender<Bytes>, piece: Bytes) -> Option<()> {
    timeout(STALLED, pieces.send(piece)).await.ok()?.ok()
}

/// JSON has no line breaks of its own, so it is one line of data.
fn message(name: &str, json: &str) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {json}\n\n"))
}
