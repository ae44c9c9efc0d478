//! Questions to the daemon's loop. However many browsers ask, the loop hears one at a time, and what it said a moment ago
//! is not asked again.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::control::{Ask, ErrorKind, Request, Response};

/// How long an answer serves others who ask the same.
const FRESH: Duration = Duration::from_secs(1);
/// Answers that are kept.
const KEPT: usize = 64;
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
    answers: Mutex<HashMap<String, (Instant, Response)>>,
    orders: Semaphore,
}

impl Line {
    /// A way of its own for the console.
    pub fn new(asks: mpsc::Sender<Ask>) -> Self {
        Self { asks, answers: Mutex::default(), orders: Semaphore::new(ORDERS) }
    }

    /// Asks what changes nothing.
    pub async fn question(&self, request: Request) -> Response {
        let Ok(key) = serde_json::to_string(&request) else {
            return Response::error(ErrorKind::BadRequest, "the question cannot be written");
        };
        // Whoever comes meanwhile waits, and finds the answer.
        let mut answers = self.answers.lock().await;
        if let Some((at, answer)) = answers.get(&key)
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answer = self.put(request, PROMPT).await;
        if answers.len() >= KEPT {
            answers.clear();
        }
        answers.insert(key, (Instant::now(), answer.clone()));
        answer
    }

    /// Has something changed.
    pub async fn order(&self, request: Request) -> Response {
        let Ok(_turn) = self.orders.try_acquire() else {
            return Response::error(ErrorKind::Busy, "too many changes are under way");
        };
        let patience = request.timeout_s().map_or(PROMPT, Duration::from_secs).min(PATIENCE);
        let done = self.put(request, patience).await;
        self.answers.lock().await.clear();
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
