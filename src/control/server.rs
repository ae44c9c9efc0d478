//! The daemon's end of the control socket. It checks who asks, bounds what a client can cost, and hands requests to the
//! driver's loop; it knows nothing of tunnels.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::unistd::Uid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio::time::timeout;

use super::access::Access;
use super::frame::{self, FrameError, MAX_REQUEST};
use super::proto::{ErrorKind, Request, Response, Role};
use crate::observe::events::{Event, Kind};

/// Readers at a time. One more takes the seat of the one that has been silent longest.
const READERS: usize = 64;
/// Admins at a time, whoever else is connected; as above.
const ADMINS: usize = 16;
/// Clients of root at a time; as above.
const ROOTS: usize = 16;
/// A client that says nothing for this long is let go.
const IDLE: Duration = Duration::from_secs(30);
/// A frame that has begun must be complete after this long, and a client must take its answer in this time.
const TRANSFER: Duration = Duration::from_secs(10);
/// Answers that need no peer take no longer than this.
const PROMPT: Duration = Duration::from_secs(10);
/// The longest wait that a client can ask for.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// A request on its way to the driver. The driver answers when it is done; should it drop `reply`, the client is told
/// that the daemon is about to end. A closed `reply` means that the client is gone or out of patience.
#[derive(Debug)]
pub struct Ask {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Response>,
}

/// The bound socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    access: Access,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Binds the socket with mode 0660 and the group of the readers if there is one. A socket that nobody answers on is replaced;
/// one that somebody answers on is an error (`AddrInUse`). Needs a tokio runtime.
pub fn bind(path: &Path, access: Access) -> io::Result<Socket> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = format!("another daemon answers on {}", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = UnixListener::bind(path)?;
    let socket = Socket { listener, path: path.to_owned(), access };
    // Until here a connection was possible only by umask; every one is checked by SO_PEERCRED anyway.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    // Whoever runs with this group already need not be able to give files away.
    if let Some(group) = access.readers
        && Uid::effective().is_root()
        && fs::metadata(path)?.gid() != group.as_raw()
    {
        chown(path, Some(0), Some(group.as_raw()))?;
    }
    Ok(socket)
}

/// Serves clients until `asks` is closed.
pub async fn serve(socket: Socket, asks: mpsc::Sender<Ask>, events: broadcast::Sender<Arc<Event>>) {
    let seats = Seats::default();
    loop {
        let stream = tokio::select! {
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::debug!(error = %e, "cannot accept a control connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = asks.closed() => return,
        };
        let turn_away = |kind, text: &str| {
            // A new socket has room for this; nothing is kept for a client that does not fit.
            if let Ok(frame) = frame::encode(&Response::error(kind, text)) {
                let _ = stream.try_write(&frame);
            }
        };
        let Some(role) = socket.access.role(&stream) else {
            turn_away(
                ErrorKind::Permission,
                "only root and members of group cygnet may use the control socket",
            );
            continue;
        };
        let Some(seat) = seats.take(role) else {
            turn_away(ErrorKind::Busy, "too many clients are connected");
            continue;
        };
        let (asks, events) = (asks.clone(), events.clone());
        tokio::spawn(async move {
            let mut client = Client { stream, role, seat };
            if let Err(e) = client.converse(&asks, &events).await {
                tracing::debug!(error = %e, "a control connection ended early");
            }
        });
        // A client is silent only once it was listened to.
        tokio::task::yield_now().await;
    }
}

/// Room for clients. Nobody takes a seat of another role, and whoever says nothing keeps nobody out.
struct Seats {
    root: Arc<Row>,
    admins: Arc<Row>,
    readers: Arc<Row>,
}

impl Default for Seats {
    fn default() -> Self {
        let row = |room| Arc::new(Row { room, sitters: Mutex::default() });
        Self { root: row(ROOTS), admins: row(ADMINS), readers: row(READERS) }
    }
}

impl Seats {
    /// A seat for a client of this role, until it is dropped; `None` if all are taken by clients that are being served.
    fn take(&self, role: Role) -> Option<Seat> {
        let row = match role {
            Role::Root => &self.root,
            Role::Admin => &self.admins,
            Role::Reader => &self.readers,
        };
        let mut taken = row.taken();
        if taken.len() >= row.room {
            let silent = taken.iter().position(|s| s.silent.load(Relaxed))?;
            taken.remove(silent)?.leave.notify_one();
        }
        let sitter = Arc::new(Sitter::default());
        taken.push_back(Arc::clone(&sitter));
        drop(taken);
        Some(Seat { row: Arc::clone(row), sitter })
    }
}

/// Seats of one kind.
struct Row {
    room: usize,
    /// In the order in which they sat down.
    sitters: Mutex<VecDeque<Arc<Sitter>>>,
}

impl Row {
    fn taken(&self) -> MutexGuard<'_, VecDeque<Arc<Sitter>>> {
        self.sitters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Sitter {
    /// It has been listened to and has said nothing yet.
    silent: AtomicBool,
    /// Its seat was given to another.
    leave: Notify,
}

/// A seat that is taken, until this is dropped.
struct Seat {
    row: Arc<Row>,
    sitter: Arc<Sitter>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.row.taken().retain(|s| !Arc::ptr_eq(s, &self.sitter));
    }
}

struct Client {
    stream: UnixStream,
    role: Role,
    seat: Seat,
}

impl Client {
    async fn converse(
        &mut self,
        asks: &mpsc::Sender<Ask>,
        events: &broadcast::Sender<Arc<Event>>,
    ) -> Result<(), FrameError> {
        loop {
            let request = match self.request().await {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(()),
                Err(e @ FrameError::Io(_)) => return Err(e),
                Err(e) => {
                    self.send(&Response::error(ErrorKind::BadRequest, e.to_string())).await?;
                    return Err(e);
                }
            };
            if request.role() > self.role {
                self.send(&refusal(&request)).await?;
                continue;
            }
            if request == (Request::Events {}) {
                return self.stream_events(events.subscribe()).await;
            }
            let response = match self.ask(request, asks).await {
                Some(response) => response,
                None => return Ok(()),
            };
            self.send(&response).await?;
        }
    }

    /// The next request; `None` if the client hung up, or fell silent between two for too long or while others wait.
    async fn request(&mut self) -> Result<Option<Request>, FrameError> {
        let mut prefix = [0; 4];
        let sitter = Arc::clone(&self.seat.sitter);
        sitter.silent.store(true, Relaxed);
        // What it has said is heard, even if its seat went to another in the same moment.
        let heard = tokio::select! {
            biased;
            heard = timeout(IDLE, self.stream.read(&mut prefix[..1])) => heard,
            () = sitter.leave.notified() => return Ok(None),
        };
        sitter.silent.store(false, Relaxed);
        match heard {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) | Err(_) => return Ok(None),
            Ok(Err(e)) => return Err(e.into()),
        }
        let body = timeout(TRANSFER, async {
            self.stream.read_exact(&mut prefix[1..]).await?;
            let mut body = vec![0; frame::length(prefix, MAX_REQUEST)?];
            self.stream.read_exact(&mut body).await?;
            Ok::<_, FrameError>(body)
        });
        let body = body.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        frame::decode(&body).map(Some)
    }

    /// Asks the driver; `None` if the client hung up meanwhile.
    async fn ask(&mut self, request: Request, asks: &mpsc::Sender<Ask>) -> Option<Response> {
        let patience = request.timeout_s().map_or(PROMPT, |s| Duration::from_secs(s).min(MAX_WAIT));
        let (reply, answer) = oneshot::channel();
        let stopping = || Response::error(ErrorKind::Stopping, "the daemon is about to end");
        let asked = async {
            if asks.send(Ask { request, reply }).await.is_err() {
                return stopping();
            }
            answer.await.unwrap_or_else(|_| stopping())
        };
        tokio::select! {
            answered = timeout(patience, asked) => Some(answered.unwrap_or_else(|_| Response::Error {
                kind: ErrorKind::Timeout,
                message: format!("not done after {} s", patience.as_secs()),
                hint: "the daemon goes on trying; see: cygnet status".into(),
            })),
            () = hung_up(&self.stream) => None,
        }
    }

    async fn stream_events(&mut self, mut events: broadcast::Receiver<Arc<Event>>) -> Result<(), FrameError> {
        self.send(&Response::Streaming {}).await?;
        loop {
            let event = tokio::select! {
                received = events.recv() => match received {
                    Ok(event) => Event::clone(&event),
                    Err(broadcast::error::RecvError::Lagged(n)) => {
                        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                        let text = format!("{n} events were lost because this reader was slow");
                        Event::new(unix.map_or(0, |d| d.as_secs()), Kind::Lost, &text)
                    }
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                () = hung_up(&self.stream) => return Ok(()),
            };
            self.send(&Response::Event { event: Box::new(event) }).await?;
        }
    }

    async fn send(&mut self, response: &Response) -> Result<(), FrameError> {
        let bytes = frame::encode(response)?;
        timeout(TRANSFER, self.stream.write_all(&bytes))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(())
    }
}

/// The answer to who may not ask this.
fn refusal(request: &Request) -> Response {
    let (message, hint) = match request {
        Request::Plan { file: Some(_) } | Request::Apply { file: Some(_) } => {
            ("only root may name a file", "without one, the daemon's own is meant")
        }
        Request::Handover {} => ("only root may have the daemon end", ""),
        _ => (
            "members of group cygnet may look, and change nothing",
            "ask as root, or as a member of the group that daemon.admin_group names",
        ),
    };
    Response::Error { kind: ErrorKind::Permission, message: message.to_owned(), hint: hint.to_owned() }
}

/// Waits until the client closes its end. A client that talks while it should listen counts as gone, too.
async fn hung_up(stream: &UnixStream) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        // Readiness may be left over from the request: only a read tells.
        match stream.try_read(&mut [0]) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever may use the socket may also sit there and say nothing.
    #[test]
    fn every_role_finds_its_seats_however_many_of_the_others_sit_there() {
        let seats = Seats::default();
        let fill = |role| std::iter::from_fn(|| seats.take(role)).collect::<Vec<_>>();
        let readers = fill(Role::Reader);
        assert_eq!(readers.len(), READERS);
        let admins = fill(Role::Admin);
        assert_eq!(admins.len(), ADMINS);
        let roots = fill(Role::Root);
        assert_eq!(roots.len(), ROOTS);
        drop(readers);
        assert!(seats.take(Role::Reader).is_some());
        assert!(seats.take(Role::Admin).is_none() && seats.take(Role::Root).is_none());
    }

    #[test]
    fn the_one_that_was_silent_longest_gives_its_seat_to_a_new_one() {
        let seats = Seats::default();
        let taken: Vec<_> = std::iter::from_fn(|| seats.take(Role::Root)).collect();
        taken[3].sitter.silent.store(true, Relaxed);
        taken[5].sitter.silent.store(true, Relaxed);
        let new = seats.take(Role::Root).unwrap();
        let sits = |seat: &Seat| seats.root.taken().iter().any(|s| Arc::ptr_eq(s, &seat.sitter));
        assert!(!sits(&taken[3]) && sits(&taken[5]) && sits(&new));
        drop(taken);
        assert_eq!(seats.root.taken().len(), 1, "who was sent away leaves nobody else's seat free");
    }
}
