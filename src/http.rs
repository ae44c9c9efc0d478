//! Connections of a small HTTP server: bounded in number, time and size, whatever clients do.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep};

/// A request's head must be complete after this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Room for a request's head; an answer's body is asked for more as soon as less than this is left of what it gave.
pub const MAX_BUFFER: usize = 16 * 1024;
/// No request needs more headers.
const MAX_HEADERS: usize = 64;
/// What the kernel holds of an answer, in octets. It takes more when a third of it is free, so a slow client is heard of often.
const SEND_BUFFER: usize = 128 * 1024;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; one more takes the place of the oldest, so that idle ones cannot keep others out.
    pub connections: usize,
    /// A connection ends after this long, whatever it is doing.
    pub lifetime: Duration,
    /// It ends when its client takes nothing of an answer for this long.
    pub patience: Duration,
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
                .max_buf_size(MAX_BUFFER)
                .max_headers(MAX_HEADERS)
                .keep_alive(true);
            let connection =
                http.serve_connection(TokioIo::new(Patient::new(stream, limits.patience)), service);
            // What a client does wrong is its own matter.
            let _ = tokio::time::timeout(limits.lifetime, connection).await;
        }));
    }
}

/// A connection that fails when the other end takes nothing for too long.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// When it fails, while the other end takes nothing.
    until: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        // Only a wish: where it is not granted, the kernel holds more.
        let _ = setsockopt(&stream, sockopt::SndBuf, &SEND_BUFFER);
        Self { stream, patience, until: None }
    }

    /// What became of an attempt to send.
    fn sent(&mut self, cx: &mut Context<'_>, sent: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if sent.is_ready() {
            self.until = None;
            return sent;
        }
        let until = self.until.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        ready!(until.as_mut().poll(cx));
        // What the kernel has for it is of no use to anybody either.
        let _ = self.stream.set_zero_linger();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(cx, octets);
        self.sent(cx, sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.sent(cx, sent)
    }

    /// Without it a whole answer would be copied for each connection.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use http_body_util::Full;
    use hyper::body::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    use super::*;

    const LONG: usize = 16 * 1024 * 1024;
    const PATIENCE: Duration = Duration::from_millis(500);

    /// A server whose answers are long and share one copy, as long as anybody has it.
    async fn long_answers() -> (SocketAddr, Arc<Vec<u8>>) {
        struct Long(Arc<Vec<u8>>);
        impl AsRef<[u8]> for Long {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let long = Arc::new(vec![b'x'; LONG]);
        let shared = Arc::clone(&long);
        let limits = Limits { connections: 4, lifetime: Duration::from_secs(600), patience: PATIENCE };
        tokio::spawn(serve(listener, limits, move |_| {
            let body = Full::new(Bytes::from_owner(Long(Arc::clone(&shared))));
            std::future::ready(Response::new(body))
        }));
        (address, long)
    }

    async fn ask(address: SocketAddr) -> TcpStream {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        client
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_let_go() {
        let (address, long) = long_answers().await;
        let (idle, began) = (Arc::strong_count(&long), Instant::now());
        let mut client = ask(address).await;
        while Arc::strong_count(&long) == idle {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        while Arc::strong_count(&long) > idle {
            assert!(began.elapsed() < Duration::from_secs(20), "the answer still waits");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(began.elapsed() >= PATIENCE);
        let mut taken = Vec::new();
        let end = timeout(Duration::from_secs(20), client.read_to_end(&mut taken)).await.unwrap();
        assert!(end.is_err(), "the rest of the answer is thrown away, {} octets came", taken.len());
    }

    #[tokio::test]
    async fn a_client_that_takes_little_at_a_time_gets_everything() {
        let (address, _) = long_answers().await;
        let mut client = ask(address).await;
        let (mut taken, mut buffer, began) = (0, vec![0; 128 * 1024], Instant::now());
        loop {
            let n = client.read(&mut buffer).await.unwrap();
            if n == 0 {
                break;
            }
            taken += n;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(taken > LONG && began.elapsed() > 2 * PATIENCE, "{taken} octets, {:?}", began.elapsed());
    }
}
