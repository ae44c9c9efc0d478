//! Answers a browser's requests.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use super::ask::Line;
use super::door::{self, Access};
use super::record::{Of, Record};
use super::view::View;
use super::{Sources, assets, stream};
use crate::config::model::Console;
use crate::control::{ErrorKind, Request as Asked, Response as Answer};
use crate::http::{self, Limits};
use crate::observe::events::Event;
use crate::observe::{Published, Subscriber};

/// A browser holds a few connections, and one for as long as a page is open.
const LIMITS: Limits =
    Limits { connections: 128, lifetime: Duration::from_secs(3600), patience: Duration::from_secs(10) };
/// Room for an order.
const MAX_BODY: usize = 64 * 1024;
/// An order must be here after this long.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Somebody without the token is told of once in this time, in seconds.
const TELL_EVERY_S: u64 = 60;
/// How far back a tunnel's page tells of its quality.
const QUALITY_S: u64 = 3600;
/// Events on their way to browsers.
const EVENT_QUEUE: usize = 256;

/// Scripts and styles are our own files; nothing is loaded from elsewhere, and no other page may show ours.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Headers of every answer.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Site {
    settings: Arc<Console>,
    line: Line,
    views: watch::Receiver<Arc<View>>,
    events: broadcast::Sender<Arc<Event>>,
    record: Arc<Mutex<Record>>,
    /// When a change without the token was told of last, in seconds since 1970.
    refused_at: AtomicU64,
}

/// Serves the console on a bound listener.
pub async fn serve(listener: TcpListener, settings: Arc<Console>, sources: Sources) {
    let Sources { published, events, asks } = sources;
    let record = Arc::new(Mutex::new(Record::default()));
    let (view, views) = watch::channel(Arc::default());
    let (told, _) = broadcast::channel(EVENT_QUEUE);
    let site = Arc::new(Site {
        settings,
        line: Line::new(asks),
        views,
        events: told.clone(),
        record: Arc::clone(&record),
        refused_at: AtomicU64::new(0),
    });
    let answer = move |request| {
        let site = Arc::clone(&site);
        async move { site.answer(request).await }
    };
    tokio::join!(
        http::serve(listener, LIMITS, answer),
        follow(published, view, &record),
        listen(events.subscribe(), told, &record),
    );
}

/// Makes a view of whatever is published.
async fn follow(mut published: Subscriber, view: watch::Sender<Arc<View>>, record: &Mutex<Record>) {
    loop {
        let current: Arc<Published> = Arc::clone(&published.borrow_and_update());
        {
            let mut record = lock(record);
            record.sample(&current, unix_now());
            let next = View::of(&current, &record).after(&view.borrow());
            view.send_replace(Arc::new(next));
        }
        if published.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Keeps events, and passes them on.
async fn listen(
    mut events: broadcast::Receiver<Arc<Event>>,
    told: broadcast::Sender<Arc<Event>>,
    record: &Mutex<Record>,
) {
    loop {
        match events.recv().await {
            Ok(event) => {
                lock(record).note(Arc::clone(&event));
                // Nobody may be looking.
                let _ = told.send(event);
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Site {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let mut response = match door::admit(request.method(), request.headers(), &self.settings) {
            Ok(()) => self.route(request).await,
            Err(refusal) => plain(StatusCode::FORBIDDEN, refusal.text()),
        };
        for (name, value) in HEADERS {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if request.method() == Method::POST && path == "/api/order" {
            return self.order(request).await;
        }
        if request.method() != Method::GET || path == "/api/order" {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET, and POST to /api/order\n");
            let allowed = if path == "/api/order" { "POST" } else { "GET" };
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            return refused;
        }
        if let Some(asset) = assets::get(path) {
            let mut response = Response::new(whole(Bytes::from_static(asset.bytes)));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
            return response;
        }
        let argument = |name| argument(request.uri().query().unwrap_or_default(), name);
        let named = |name| argument(name).ok_or_else(|| missing(name));
        let answered = match path {
            "/api/stream" => return self.stream(),
            "/api/session" => Ok(self.session(door::access(request.headers(), self.settings.token.as_ref()))),
            "/api/events" => Ok(json!(lock(&self.record).events().collect::<Vec<_>>())),
            "/api/rates" => match (argument("gateway"), argument("tunnel")) {
                (Some(name), None) => self.rates(Of::Gateway(&name)),
                (None, Some(name)) => self.rates(Of::Tunnel(&name)),
                _ => Err(missing("gateway or tunnel")),
            },
            "/api/tunnel" => match named("name") {
                Ok(name) => self.tunnel(name).await,
                Err(e) => Err(e),
            },
            "/api/top" => self.question(Asked::TopTunnels { gateway: argument("gateway") }).await,
            "/api/peers" => self.question(Asked::TopPeers {}).await,
            "/api/limits" => match named("gateway") {
                Ok(gateway) => self.question(Asked::Limits { gateway }).await,
                Err(e) => Err(e),
            },
            _ => return plain(StatusCode::NOT_FOUND, "there is no such page\n"),
        };
        match answered {
            Ok(value) => as_json(StatusCode::OK, &value),
            Err(answer) => failed(&answer),
        }
    }

    fn stream(&self) -> Response<Body> {
        let mut response =
            Response::new(stream::begin(self.views.clone(), self.events.subscribe()).boxed_unsync());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response
    }

    fn session(&self, access: Access) -> Value {
        json!({ "token_exists": self.settings.token.is_some(), "may_change": access == Access::Change })
    }

    fn rates(&self, of: Of<'_>) -> Result<Value, Answer> {
        let points = lock(&self.record).rates(of);
        points
            .map(|points| json!({ "now": unix_now(), "points": points }))
            .ok_or_else(|| Answer::error(ErrorKind::NotFound, "there are no rates of that name"))
    }

    /// Everything that is known of a tunnel.
    async fn tunnel(&self, name: String) -> Result<Value, Answer> {
        let status = self.question(Asked::Status { name: Some(name.clone()) }).await?;
        let events = self.question(Asked::Logs { tunnel: name.clone(), since_s: None }).await?;
        let explanation = self.question(Asked::Explain { tunnel: name.clone() }).await?;
        // One without a health check has none, which is no error here.
        let minutes = self.question(Asked::Quality { tunnel: name, since_s: QUALITY_S }).await;
        let minutes = minutes.ok().and_then(|mut answer| answer.get_mut("minutes").map(Value::take));
        let quality = minutes.unwrap_or_else(|| json!([]));
        Ok(json!({ "status": status, "events": events, "explanation": explanation, "quality": quality }))
    }

    async fn question(&self, asked: Asked) -> Result<Value, Answer> {
        match self.line.question(asked).await {
            error @ Answer::Error { .. } => Err(error),
            answer => Ok(json!(answer)),
        }
    }

    async fn order(&self, request: Request<Incoming>) -> Response<Body> {
        match door::access(request.headers(), self.settings.token.as_ref()) {
            Access::Change => {}
            Access::NobodyChanges => {
                let text = "this console only shows; daemon.console.token_file names the file with a token for changes";
                return failed(&Answer::error(ErrorKind::Permission, text));
            }
            Access::Look => {
                let now = unix_now();
                if now.abs_diff(self.refused_at.load(Relaxed)) >= TELL_EVERY_S {
                    self.refused_at.store(now, Relaxed);
                    tracing::warn!("a change from the console was refused: no token, or a wrong one");
                }
                let text = "a change needs the token of daemon.console.token_file";
                let error = json!(Answer::error(ErrorKind::Permission, text));
                let mut response = as_json(StatusCode::UNAUTHORIZED, &error);
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                return response;
            }
        }
        let body = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MAX_BODY).collect()).await;
        let Ok(Ok(body)) = body else {
            return failed(&Answer::error(
                ErrorKind::BadRequest,
                "the order is too long, or came too slowly",
            ));
        };
        let order = match serde_json::from_slice::<Asked>(&body.to_bytes()) {
            Ok(order) if is_order(&order) => order,
            Ok(_) => return failed(&Answer::error(ErrorKind::BadRequest, "this verb is not the console's")),
            Err(e) => return failed(&Answer::error(ErrorKind::BadRequest, format!("no order: {e}"))),
        };
        match self.line.order(order).await {
            error @ Answer::Error { .. } => failed(&error),
            done => as_json(StatusCode::OK, &json!(done)),
        }
    }
}

/// What the console may have changed.
const fn is_order(request: &Asked) -> bool {
    matches!(
        request,
        Asked::Up { .. }
            | Asked::Down { .. }
            | Asked::Rekey { .. }
            | Asked::Reset { .. }
            | Asked::Bandwidth { .. }
            | Asked::Limit { .. }
    )
}

/// An argument of a query; names of the configuration need no escapes, and what has some names nothing.
fn argument(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

fn missing(name: &str) -> Answer {
    Answer::error(ErrorKind::BadRequest, format!("the query needs {name}"))
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn as_json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(whole(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer that is an error, with the status that says the same.
fn failed(answer: &Answer) -> Response<Body> {
    let status = match answer {
        Answer::Error { kind, .. } => match kind {
            ErrorKind::BadRequest => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Permission => StatusCode::FORBIDDEN,
            ErrorKind::Busy | ErrorKind::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Failed | ErrorKind::Other => StatusCode::CONFLICT,
        },
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    as_json(status, &json!(answer))
}
