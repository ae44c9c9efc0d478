//! The exporter's HTTP server: `GET /metrics`, nothing else. It runs on a thread of its own and serves a rendered copy,
//! so that a flood of scrapes costs the daemon nothing but that thread.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::prometheus::{Format, render};
use super::{Published, Subscriber};

/// Connections at a time; one more takes the place of the oldest, so that idle ones cannot keep a scrape out.
const MAX_CONNECTIONS: usize = 64;
/// A request's head must be complete after this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection ends after this long, whatever it is doing.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Room for a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// No request needs more headers.
const MAX_HEADERS: usize = 64;

/// An exporter that serves until it is dropped.
#[derive(Debug)]
pub struct Exporter {
    _stop: oneshot::Sender<()>,
}

/// Serves what is published on a bound listener, on a thread of its own.
pub fn spawn(listener: StdListener, published: Subscriber) -> io::Result<Exporter> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::Builder::new().name("metrics".into()).spawn(move || {
        runtime.block_on(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => tokio::select! {
                    () = serve(listener, published) => {}
                    _ = stopped => {}
                },
                Err(e) => tracing::error!(error = %e, "the metrics listener cannot be used"),
            }
        });
    })?;
    Ok(Exporter { _stop: stop })
}

/// Serves what is published on a bound listener.
pub async fn serve(listener: TcpListener, published: Subscriber) {
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    let page = Arc::new(Page { published, cache: Mutex::new([None, None]) });
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors, most likely: waiting is better than spinning.
                tracing::debug!(error = %e, "cannot accept a metrics connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        connections.retain(|c| !c.is_finished());
        if connections.len() >= MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let page = Arc::clone(&page);
        connections.push_back(tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = page.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .max_headers(MAX_HEADERS)
                .keep_alive(true);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            // What a client does wrong is its own matter.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
        }));
    }
}

type Cached = Option<(Arc<Published>, Bytes)>;

struct Page {
    published: Subscriber,
    /// The last rendered page of each format; valid for exactly the value it was made from.
    cache: Mutex<[Cached; 2]>,
}

impl Page {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/metrics" {
            return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let accept = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let format = Format::accepted(accept);
        let mut response = Response::new(Full::new(self.text(format)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        response
    }

    fn text(&self, format: Format) -> Bytes {
        let current = Arc::clone(&self.published.borrow());
        let mut cache = self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let slot = &mut cache[usize::from(format == Format::OpenMetrics)];
        match slot {
            Some((of, text)) if Arc::ptr_eq(of, &current) => text.clone(),
            _ => {
                let text = Bytes::from(render(&current, format));
                *slot = Some((current, text.clone()));
                text
            }
        }
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
