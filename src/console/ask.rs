//! Questions to the daemon's loop. However many browsers ask, the loop hears one at a time, spends a tenth of its time on
//! them at most, and what it said a moment ago is not asked again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::time::{sleep_until, timeout};

use crate::control::{Ask, ErrorKind, Request, Response};

/// How long an answer serves others who ask the same.
const FRESH: Duration = Duration::from_secs(1);
/// Answers that are kept.
const KEPT: usize = 64;
/// The loop is left alone for so many times as long as an answer took, and for this long at least.
const REST: (u32, Duration) = (9, Duration::from_millis(10));
/// Orders under way at a time: some wait for a peer.
const ORDERS: usize = 8;
/// How long a question may take.
const PROMPT: Duration = Duration::from_secs(10);
/// How long an order may take, whatever it asks for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The way to the loop.
#[derive(Debug)]
pub struct Line {
    asks: mpsc::Sender<Ask>,
    said: Mutex<Said>,
    orders: Semaphore,
}

/// What the loop said lately.
#[derive(Default, Debug)]
struct Said {
    answers: HashMap<String, (Instant, Response)>,
    /// When it may be asked again.
    free_at: Option<tokio::time::Instant>,
}

impl Line {
    /// A way of its own for the console.
    pub fn new(asks: mpsc::Sender<Ask>) -> Self {
        Self { asks, said: Mutex::default(), orders: Semaphore::new(ORDERS) }
    }

    /// Asks what changes nothing.
    pub async fn question(&self, request: Request) -> Response {
        let Ok(key) = serde_json::to_string(&request) else {
            return Response::error(ErrorKind::BadRequest, "the question cannot be written");
        };
        // Whoever comes meanwhile waits, and finds the answer.
        let mut said = self.said.lock().await;
        if let Some((at, answer)) = said.answers.get(&key)
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        if let Some(free_at) = said.free_at {
            sleep_until(free_at).await;
        }
        let began = tokio::time::Instant::now();
        let answer = self.put(request, PROMPT).await;
        said.free_at = Some(tokio::time::Instant::now() + (began.elapsed() * REST.0).max(REST.1));
        if said.answers.len() >= KEPT {
            said.answers.clear();
        }
        said.answers.insert(key, (Instant::now(), answer.clone()));
        answer
    }

    /// Has something changed.
    pub async fn order(&self, request: Request) -> Response {
        let Ok(_turn) = self.orders.try_acquire() else {
            return Response::error(ErrorKind::Busy, "too many changes are under way");
        };
        let patience = request.timeout_s().map_or(PROMPT, Duration::from_secs).min(PATIENCE);
        let done = self.put(request, patience).await;
        self.said.lock().await.answers.clear();
        done
    }

    async fn put(&self, request: Request, patience: Duration) -> Response {
        let (reply, answer) = oneshot::channel();
        let stopping = || Response::error(ErrorKind::Stopping, "the daemon is about to end");
        let asked = async {
            if self.asks.send(Ask { request, reply }).await.is_err() {
                return stopping();
            }
            answer.await.unwrap_or_else(|_| stopping())
        };
        timeout(patience, asked).await.unwrap_or_else(|_| {
            Response::error(ErrorKind::Timeout, format!("not done after {} s", patience.as_secs()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> (Line, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(8);
        (Line::new(asks), asked)
    }

    fn of(gateway: &str) -> Request {
        Request::TopTunnels { gateway: Some(gateway.to_owned()) }
    }

    /// Answers each question after some time, and counts them.
    async fn daemon(mut asked: mpsc::Receiver<Ask>, took: Duration) -> u32 {
        let mut count = 0;
        while let Some(ask) = asked.recv().await {
            tokio::time::sleep(took).await;
            let _ = ask.reply.send(Response::done(format!("{count}")));
            count += 1;
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn the_loop_spends_a_tenth_of_its_time_on_browsers_at_most() {
        let (line, asked) = line();
        let loop_ = tokio::spawn(daemon(asked, Duration::from_millis(20)));
        let began = tokio::time::Instant::now();
        // Each asks something else, so that no answer serves another.
        for n in 0..50 {
            line.question(of(&n.to_string())).await;
        }
        let passed = began.elapsed();
        drop(line);
        assert_eq!(loop_.await.unwrap(), 50);
        assert!(passed >= Duration::from_millis(49 * 200), "{passed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_the_same_gets_the_same_answer_until_something_is_changed() {
        let (line, asked) = line();
        let loop_ = tokio::spawn(daemon(asked, Duration::from_millis(1)));
        let first = line.question(of("g")).await;
        assert_eq!(line.question(of("g")).await, first);
        line.order(Request::Up { tunnel: "a".into(), timeout_s: 5 }).await;
        assert_ne!(line.question(of("g")).await, first);
        drop(line);
        assert_eq!(loop_.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_that_takes_too_long_is_told_so() {
        let (line, mut asked) = line();
        let waits = tokio::spawn(async move {
            let ask = asked.recv().await;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            drop(ask);
        });
        let answer = line.order(Request::Up { tunnel: "a".into(), timeout_s: 100_000 }).await;
        assert!(matches!(answer, Response::Error { kind: ErrorKind::Timeout, .. }), "{answer:?}");
        waits.abort();
    }
}
