//! Frames: a length and that many octets of JSON. The reader never makes room for more than it was allowed.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Ten thousand limits at once; nothing else needs a part of it.
pub const MAX_REQUEST: usize = 1024 * 1024;
/// The status of tens of thousands of tunnels.
pub const MAX_RESPONSE: usize = 64 * 1024 * 1024;

/// Why a frame is unusable.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side announced more than is allowed.
    #[error("a frame of {0} octets is too large (at most {1})")]
    TooLarge(usize, usize),
    /// It is not the JSON that was expected. The text never quotes the frame.
    #[error("not a message of this protocol (line {line}, column {column})", line = .0.line(), column = .0.column())]
    Json(serde_json::Error),
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A message with its length in front.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Json)?;
    let len = frame.len() - 4;
    let prefix = u32::try_from(len).map_err(|_| FrameError::TooLarge(len, MAX_RESPONSE))?;
    frame[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame)
}

/// The announced length, if it is allowed.
pub fn length(prefix: [u8; 4], max: usize) -> Result<usize, FrameError> {
    match usize::try_from(u32::from_be_bytes(prefix)) {
        Ok(len) if len <= max => Ok(len),
        Ok(len) => Err(FrameError::TooLarge(len, max)),
        Err(_) => Err(FrameError::TooLarge(usize::MAX, max)),
    }
}

/// The message in a frame's body.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(FrameError::Json)
}
