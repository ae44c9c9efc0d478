//! The command line's end of the control socket. Blocking: a command asks one thing and ends.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use super::frame::{self, FrameError, MAX_RESPONSE};
use super::proto::{Request, Response};

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("the daemon is not reachable at {socket}: {error}")]
    Unreachable {
        /// The socket.
        socket: String,
        /// The system's words.
        error: io::Error,
    },
    /// The socket is not ours to use.
    #[error("no permission to use {socket}")]
    Permission {
        /// The socket.
        socket: String,
    },
    /// It is there and did not answer in time.
    #[error("the daemon at {socket} has not answered within {}", crate::config::units::show_duration(*.patience))]
    Silent {
        /// The socket.
        socket: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The daemon hung up, or speaks something else.
    #[error("the daemon gave no usable answer: {0}")]
    Broken(FrameError),
}

/// Grace beyond the time that the daemon itself waits.
const GRACE: Duration = Duration::from_secs(15);
/// The same where somebody said how long to wait: the daemon's own words come first.
const SHORT_GRACE: Duration = Duration::from_secs(1);
/// Shortest wait; none at all would be one without end.
const SHORTEST: Duration = Duration::from_millis(1);

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    socket: String,
    /// How long to wait, if somebody said so.
    patience: Option<Duration>,
}

/// What a stream brings.
#[derive(Debug)]
pub enum Next {
    /// Its next message.
    Message(Box<Response>),
    /// The daemon hung up.
    End,
    /// Time is up.
    Late,
}

impl Client {
    /// Connects, and waits for answers as long as is usual.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_within(path, None)
    }

    /// The same, and waits this long for anything.
    pub fn connect_within(path: &Path, patience: Option<Duration>) -> Result<Self, ClientError> {
        let socket = path.display().to_string();
        let patience = patience.map(|p| p.max(SHORTEST));
        match connected(path, patience.unwrap_or(GRACE)) {
            Ok(stream) => Ok(Self { stream, socket, patience }),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(ClientError::Permission { socket }),
            Err(e) if is_late(&e) => Err(ClientError::Silent { socket, patience: patience.unwrap_or(GRACE) }),
            Err(error) => Err(ClientError::Unreachable { socket, error }),
        }
    }

    /// The daemon's process, if the kernel tells.
    pub fn peer_process(&self) -> Option<u32> {
        let peer = getsockopt(&self.stream, sockopt::PeerCredentials).ok()?;
        u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0)
    }

    /// Asks and waits for the answer.
    pub fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let there = request.timeout_s().map(Duration::from_secs);
        let patience = match (self.patience, there) {
            (Some(own), Some(there)) if there <= own.max(SHORT_GRACE) => there.saturating_add(SHORT_GRACE),
            (Some(own), _) => own,
            (None, there) => there.unwrap_or_default().saturating_add(GRACE),
        };
        match self.send(request).and_then(|()| self.receive(Some(patience))) {
            Ok(response) => Ok(response),
            Err(FrameError::Io(e)) if is_late(&e) => {
                Err(ClientError::Silent { socket: self.socket.clone(), patience })
            }
            Err(e) => Err(ClientError::Broken(e)),
        }
    }

    /// Waits for the next message of a stream, for ever or for so long.
    pub fn next_within(&mut self, patience: Option<Duration>) -> Result<Next, ClientError> {
        match self.receive(patience.map(|p| p.max(SHORTEST))) {
            Ok(response) => Ok(Next::Message(Box::new(response))),
            Err(FrameError::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Next::End),
            Err(FrameError::Io(e)) if is_late(&e) => Ok(Next::Late),
            Err(e) => Err(ClientError::Broken(e)),
        }
    }

    fn send(&mut self, request: &Request) -> Result<(), FrameError> {
        let frame = frame::encode(request)?;
        match self.stream.write_all(&frame) {
            // A daemon that refuses us has hung up already, and its words wait to be read.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn receive(&mut self, patience: Option<Duration>) -> Result<Response, FrameError> {
        self.stream.set_read_timeout(patience)?;
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix)?;
        let mut body = vec![0; frame::length(prefix, MAX_RESPONSE)?];
        self.stream.read_exact(&mut body)?;
        Response::read(&body)
    }
}

/// A connection, if it is taken in time: a daemon that is stopped lets them queue up.
fn connected(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    socket.set_write_timeout(Some(patience))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

fn is_late(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
