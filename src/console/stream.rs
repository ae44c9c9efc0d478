//! Sends what changes to a browser, as server-sent events (HTML Living Standard §9.2): `all`, `change` and `event`.
//!
//! A message is made when the connection has room for it, of what is so at that moment. So nothing waits for a slow browser but
//! the message that it is taking: it misses views in between, and no change. Who takes nothing is let go by [`crate::http`].

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep_until};

use super::view::View;
use crate::http::MAX_BUFFER;
use crate::observe::events::Event;

/// At most so often is a change sent.
const PACE: Duration = Duration::from_millis(500);
/// Something is sent at least so often, so that both ends know whether the other is there.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The body of an answer that goes on.
pub struct Pieces {
    next: Next,
    /// The end of a message.
    rest: Bytes,
}

/// A message that is waited for, and who tells the one after it.
type Next = Pin<Box<dyn Future<Output = Option<(Bytes, Teller)>> + Send>>;

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        }
        let Some((mut message, teller)) = ready!(self.next.as_mut().poll(cx)) else {
            return Poll::Ready(None);
        };
        self.next = Box::pin(teller.next());
        if message.len() > MAX_BUFFER {
            // The connection asks for more while so much is left. A copy of that keeps no whole view beside the next one.
            self.rest = Bytes::copy_from_slice(&message.split_off(message.len() - MAX_BUFFER));
        }
        Poll::Ready(Some(Ok(Frame::data(message))))
    }
}

/// Begins a stream; it ends with its connection.
pub fn begin(views: watch::Receiver<Arc<View>>, events: broadcast::Receiver<Arc<Event>>) -> Pieces {
    let teller = Teller { views, events, shown: None, free_at: Instant::now() };
    Pieces { next: Box::pin(teller.next()), rest: Bytes::new() }
}

/// Knows what a browser has, and what it needs next.
struct Teller {
    views: watch::Receiver<Arc<View>>,
    events: broadcast::Receiver<Arc<Event>>,
    /// The number of the view that it has.
    shown: Option<u64>,
    /// When it may get another one.
    free_at: Instant,
}

impl Teller {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        let message = self.message().await?;
        Some((message, self))
    }

    /// `None` if there will be no more.
    async fn message(&mut self) -> Option<Bytes> {
        let Self { views, events, shown, free_at } = self;
        let Some(shown) = shown else {
            let view = Arc::clone(&views.borrow_and_update());
            *shown = Some(view.number());
            return Some(view.whole());
        };
        let silent_until = Instant::now() + HEARTBEAT;
        loop {
            let changed = async {
                sleep_until(*free_at).await;
                views.changed().await
            };
            tokio::select! {
                changed = changed => {
                    changed.ok()?;
                    let view = Arc::clone(&views.borrow_and_update());
                    let before = std::mem::replace(shown, view.number());
                    *free_at = Instant::now() + PACE;
                    if let Some(message) = view.since(before) {
                        return Some(message);
                    }
                }
                event = events.recv() => return match event {
                    Ok(event) => {
                        let json = serde_json::to_string(&*event).ok()?;
                        Some(Bytes::from(format!("event: event\ndata: {json}\n\n")))
                    }
                    // The list of events has them; the browser asks for it anew.
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        Some(Bytes::from_static(b"event: lost\ndata: {}\n\n"))
                    }
                    Err(broadcast::error::RecvError::Closed) => None,
                },
                () = sleep_until(silent_until) => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::super::view::tests::view;
    use super::*;
    use crate::observe::events::Kind;

    type Ends = (watch::Sender<Arc<View>>, broadcast::Sender<Arc<Event>>);

    fn ends(first: View) -> Ends {
        (watch::channel(Arc::new(first)).0, broadcast::channel(4).0)
    }

    fn open(ends: &Ends) -> Pieces {
        begin(ends.0.subscribe(), ends.1.subscribe())
    }

    fn show(ends: &Ends, head: &str, rows: &[(&str, &str)]) {
        let next = view(head, rows).after(&ends.0.borrow());
        ends.0.send_replace(Arc::new(next));
    }

    async fn frame(pieces: &mut Pieces) -> Bytes {
        pieces.frame().await.unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn many_browsers_share_the_octets_of_a_view() {
        let ends = ends(view("{}", &[("a", "1"), ("b", "2")]));
        let mut browsers: Vec<Pieces> = (0..128).map(|_| open(&ends)).collect();
        for text in [
            "event: all\ndata: {\"head\":{},\"tunnels\":[1,2]}\n\n",
            "event: change\ndata: {\"head\":{},\"tunnels\":[3]}\n\n",
        ] {
            let mut messages = Vec::new();
            for browser in &mut browsers {
                messages.push(frame(browser).await);
            }
            assert_eq!(messages[0], text);
            assert!(messages.iter().all(|m| m.as_ptr() == messages[0].as_ptr()));
            show(&ends, "{}", &[("a", "1"), ("b", "3")]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_browser_misses_views_and_no_change() {
        let ends = ends(view("{}", &[("a", "1"), ("b", "2"), ("c", "3")]));
        let mut browser = open(&ends);
        frame(&mut browser).await;
        show(&ends, "{}", &[("a", "4"), ("b", "2"), ("c", "3")]);
        for n in 0..1000 {
            show(&ends, &n.to_string(), &[("a", "4"), ("b", &n.to_string()), ("c", "3")]);
            tokio::task::yield_now().await;
        }
        assert_eq!(frame(&mut browser).await, "event: change\ndata: {\"head\":999,\"tunnels\":[4,999]}\n\n");
        assert_eq!(frame(&mut browser).await, ":\n\n", "nothing else has waited");
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_are_too_many_for_a_slow_browser_are_told_as_lost() {
        let ends = ends(view("{}", &[]));
        let mut browser = open(&ends);
        frame(&mut browser).await;
        for n in 0..5 {
            ends.1.send(Arc::new(Event::new(n, Kind::Warning, "x"))).unwrap();
        }
        assert_eq!(frame(&mut browser).await, "event: lost\ndata: {}\n\n");
        assert!(frame(&mut browser).await.starts_with(b"event: event\ndata: {"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_long_message_keeps_none_of_it() {
        let long = format!("\"{}\"", "x".repeat(3 * MAX_BUFFER));
        let ends = ends(view("{}", &[("a", &long)]));
        let whole = ends.0.borrow().whole();
        let mut browser = open(&ends);
        let (first, rest) = (frame(&mut browser).await, frame(&mut browser).await);
        assert_eq!([&first[..], &rest[..]].concat(), whole);
        assert_eq!((first.as_ptr(), rest.len()), (whole.as_ptr(), MAX_BUFFER));
        assert!(!whole.as_ptr_range().contains(&rest.as_ptr()));
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_sent_at_most_twice_a_second() {
        let ends = ends(view("{}", &[]));
        let mut browser = open(&ends);
        frame(&mut browser).await;
        let began = Instant::now();
        for n in 0..4 {
            show(&ends, &n.to_string(), &[]);
            frame(&mut browser).await;
        }
        assert_eq!(began.elapsed().as_millis().div_euclid(10), 3 * PACE.as_millis() / 10);
    }
}
