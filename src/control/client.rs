//! The command line's end of the control socket. Blocking: a command asks one thing and ends.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

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
    /// The daemon hung up, or speaks something else.
    #[error("the daemon gave no usable answer: {0}")]
    Broken(FrameError),
}

/// Grace beyond the time that the daemon itself waits.
const GRACE: Duration = Duration::from_secs(15);

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let socket = path.display().to_string();
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self { stream }),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(ClientError::Permission { socket }),
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
        let patience = Duration::from_secs(request.timeout_s().unwrap_or(0)).saturating_add(GRACE);
        self.send(request).and_then(|()| self.receive(Some(patience))).map_err(ClientError::Broken)
    }

    /// Waits for the next message of a stream; `None` when the daemon hung up.
    pub fn next_response(&mut self) -> Result<Option<Response>, ClientError> {
        match self.receive(None) {
            Ok(response) => Ok(Some(response)),
            Err(FrameError::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
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
        frame::decode(&body)
    }
}
