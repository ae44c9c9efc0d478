//! The exporter's HTTP server: `GET /metrics`, nothing else. It runs on a thread of its own and serves a rendered copy,
//! so that a flood of scrapes costs the daemon nothing but that thread.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::prometheus::{Format, render};
use super::{Published, Subscriber};
use crate::http::{self, Limits};
use crate::privileges;

/// A scrape is short.
const LIMITS: Limits =
    Limits { connections: 64, lifetime: Duration::from_secs(60), patience: Duration::from_secs(10) };

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
        privileges::give_up_all();
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
    let page = Arc::new(Page { published, cache: Mutex::new([None, None]) });
    http::serve(listener, LIMITS, move |request| std::future::ready(page.answer(&request))).await;
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
