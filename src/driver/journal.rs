//! The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram for each line of the log, with its fields,
//! so that `journalctl CYGNET_TUNNEL=a-b` finds what is about a tunnel. It never waits: what the journal has no room for is
//! lost, and counted.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Longest text of a field; what is longer is cut. All of them fit a datagram.
const MAX_VALUE: usize = 4096;
/// Most fields of a line, beside its text.
const MAX_FIELDS: usize = 16;

/// Whether standard error is the journal, as systemd says (`$JOURNAL_STREAM`, systemd.exec(5)): a program whose output was
/// led elsewhere has the variable, too.
pub fn is_stderr() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let Ok(stat) = fstat(io::stderr()) else { return false };
    named.is_some_and(|named| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes lines to the journal.
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Lines that found no room since the last one that did.
    lost: AtomicU64,
    /// Where a line goes if there is no journal.
    otherwise: fn(Vec<u8>),
}

impl Journal {
    /// The system's journal; `otherwise` takes lines when it is not there.
    ///
    /// # Errors
    /// If there is no socket to be had.
    pub fn open(otherwise: fn(Vec<u8>)) -> io::Result<Self> {
        Self::at(SOCKET.into(), otherwise)
    }

    fn at(path: PathBuf, otherwise: fn(Vec<u8>)) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path, lost: AtomicU64::new(0), otherwise })
    }

    fn write(&self, entry: &Entry) {
        let lost = self.lost.swap(0, Relaxed);
        if lost > 0 {
            let text = format!("{lost} lines were lost because the journal had no room");
            // If that finds no room either, it is told with the next one.
            if self.send(&Entry::new(Level::WARN, text)).is_err() {
                self.lost.fetch_add(lost, Relaxed);
            }
        }
        match self.send(entry) {
            Ok(()) => {}
            // Each line asks for the socket by its name: a journal that is started anew has another one.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                (self.otherwise)(format!("{}\n", entry.line()).into_bytes());
            }
            Err(_) => drop(self.lost.fetch_add(1, Relaxed)),
        }
    }

    fn send(&self, entry: &Entry) -> io::Result<()> {
        self.socket.send_to(&entry.encode(), &self.path).map(|_| ())
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::new(*event.metadata().level(), String::new());
        event.record(&mut entry);
        self.write(&entry);
    }
}

/// A line of the log.
struct Entry {
    level: Level,
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Entry {
    const fn new(level: Level, message: String) -> Self {
        Self { level, message, fields: Vec::new() }
    }

    fn keep(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name if self.fields.len() < MAX_FIELDS => self.fields.push((name, value)),
            _ => {}
        }
    }

    /// What `journalctl` shows: what a line on a terminal would say.
    fn line(&self) -> String {
        let mut line = self.message.clone();
        for (name, value) in self.fields.iter().filter(|(name, _)| *name != "code") {
            // A String takes anything.
            let _ = write!(line, " {name}={value}");
        }
        line
    }

    fn encode(&self) -> Vec<u8> {
        let priority = match self.level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            _ => "7",
        };
        let mut out = Vec::with_capacity(512);
        put(&mut out, "MESSAGE", &self.line());
        put(&mut out, "PRIORITY", priority);
        put(&mut out, "SYSLOG_IDENTIFIER", "cygnet");
        for (name, value) in &self.fields {
            put(&mut out, &format!("CYGNET_{}", field_name(name)), value);
        }
        out
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.keep(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.keep(field, format!("{value:?}"));
    }
}

/// Names of fields have capital letters, digits and underscores only.
fn field_name(name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().take(48).map(fit).collect()
}

/// Appends a field; one with several lines is preceded by its length.
fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    let end = (0..=value.len().min(MAX_VALUE)).rev().find(|n| value.is_char_boundary(*n)).unwrap_or(0);
    let value = value.get(..end).unwrap_or_default().as_bytes();
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let fields = vec![("tunnel", "a-b".to_owned()), ("code", "peer_dead".to_owned())];
        Entry { level: Level::WARN, message: "one\ntwo".into(), fields }
    }

    #[test]
    fn values_of_several_lines_come_with_their_length() {
        let mut wanted = b"MESSAGE\n\x12\0\0\0\0\0\0\0one\ntwo tunnel=a-b\n".to_vec();
        wanted.extend_from_slice(b"PRIORITY=4\nSYSLOG_IDENTIFIER=cygnet\n");
        wanted.extend_from_slice(b"CYGNET_TUNNEL=a-b\nCYGNET_CODE=peer_dead\n");
        assert_eq!(String::from_utf8_lossy(&entry().encode()), String::from_utf8_lossy(&wanted));
    }

    #[test]
    fn what_is_too_long_is_cut_between_letters() {
        let mut out = Vec::new();
        put(&mut out, "X", &"é".repeat(MAX_VALUE));
        assert_eq!(out.len(), "X=\n".len() + MAX_VALUE);
        assert!(std::str::from_utf8(&out).is_ok());
    }

    #[test]
    fn a_journal_without_room_costs_lines_and_no_time_and_says_how_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let reader = UnixDatagram::bind(&path).unwrap();
        reader.set_nonblocking(true).unwrap();
        let journal = Journal::at(path, |_| unreachable!("the journal is there")).unwrap();
        for _ in 0..100_000 {
            journal.write(&entry());
        }
        let lost = journal.lost.load(Relaxed);
        let mut buffer = [0; 2048];
        let mut read = 0;
        while reader.recv(&mut buffer).is_ok() {
            read += 1;
        }
        assert_eq!(read + lost, 100_000);
        assert!(lost > 0);
        journal.write(&entry());
        let len = reader.recv(&mut buffer).unwrap();
        let told = String::from_utf8_lossy(&buffer[..len]).into_owned();
        assert!(told.starts_with(&format!("MESSAGE={lost} lines were lost")), "{told}");
    }

    #[test]
    fn without_a_journal_lines_go_where_they_went_before() {
        static LINES: AtomicU64 = AtomicU64::new(0);
        let dir = tempfile::tempdir().unwrap();
        let take = |line: Vec<u8>| {
            assert_eq!(line, b"one\ntwo tunnel=a-b\n");
            LINES.fetch_add(1, Relaxed);
        };
        let journal = Journal::at(dir.path().join("none"), take).unwrap();
        journal.write(&entry());
        assert_eq!((LINES.load(Relaxed), journal.lost.load(Relaxed)), (1, 0));
    }
}
