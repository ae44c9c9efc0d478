//! Connections of a small HTTP server: bounded in number, time and size, whatever clients do.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A request's head must be complete after this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// No request needs more headers.
const MAX_HEADERS: usize = 64;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; one more takes the place of the oldest, so that idle ones cannot keep others out.
    pub connections: usize,
    /// A connection ends after this long, whatever it is doing.
    pub lifetime: Duration,
}

/// Serves a listener for ever.
pub async fn serve<F, A, B>(listener: TcpListener, limits: Limits, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Error = Infallible> + Send + 'static,
    B::Data: Send,
{
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors, most likely: waiting is better than spinning.
                tracing::debug!(error = %e, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        connections.retain(|c| !c.is_finished());
        if connections.len() >= limits.connections
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let answer = answer.clone();
        connections.push_back(tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .max_headers(MAX_HEADERS)
                .keep_alive(true);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            // What a client does wrong is its own matter.
            let _ = tokio::time::timeout(limits.lifetime, connection).await;
        }));
    }
}
