//! What the next life of the daemon needs to go on with the tunnels of this one: IKE SAs and ESP SAs with their keys.
//!
//! One file beside the control socket, in memory (tmpfs) where that is: it survives the process and not the host, as the
//! SAs do. Changes are appended, one write for all changes of one input, before anything that they describe is done.
//! A file is sealed (`seal`), holds records by key (`record`), and is written anew when most of it is out of date
//! (`log`). What the values mean is said in `kept`.
//!
//! It does not guard against whoever can read the host's memory, and it does not notice an older copy of itself that
//! was put back within one boot; root can do both.

pub mod kept;
mod log;
pub mod record;
mod seal;
mod secret;
mod tally;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::PathBuf;

use cygnet_model::SecretBytes;
use cygnet_model::plane::PlaneKind;
use zeroize::Zeroizing;

use self::log::Log;
use self::record::{Key, Record};
pub use self::seal::{Host, Refused};
pub use self::secret::{new_secret, secret};

/// The latest value of each key.
pub type Contents = BTreeMap<Key, SecretBytes>;

/// Largest file that is read, in octets.
const MAX_FILE: u64 = 512 << 20;

/// Where the file is, and what seals it.
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The host's secret.
    pub secret: Zeroizing<[u8; 32]>,
    /// This boot of this host.
    pub host: Host,
}

/// What an earlier life of the daemon left.
#[derive(Debug)]
pub struct Past {
    /// Which data plane it had: the other one cannot go on with its ESP SAs.
    pub plane: PlaneKind,
    /// The file ended within a change, which therefore did not take place.
    pub cut: bool,
    /// What was kept.
    pub contents: Contents,
}

/// Reads what an earlier life of the daemon left. Changes nothing.
///
/// # Errors
/// If there is nothing, or nothing that may be used.
pub fn read(place: &Place) -> Result<Past, Refused> {
    let file = secret::open_own(&place.path)?;
    let length = file.metadata().map_err(|e| Refused::Unreadable(e.to_string()))?.len();
    if length > MAX_FILE {
        return Err(Refused::Unreadable(format!("it has {length} octets")));
    }
    parse(BufReader::new(file), place)
}

/// The same, from any octets.
///
/// # Errors
/// If they may not be used.
pub fn parse(from: impl io::Read, place: &Place) -> Result<Past, Refused> {
    let mut reader = seal::Reader::open(from, &place.secret, &place.host)?;
    let mut contents = Contents::new();
    let mut frames = 0u64;
    while let Some(seal::Frame { content, .. }) = reader.next_frame()? {
        frames += 1;
        for record in record::parse(&content).map_err(|_| Refused::Format)? {
            match record {
                Record::Put(key, value) => drop(contents.insert(key, value)),
                Record::Delete(key) => drop(contents.remove(&key)),
            }
        }
    }
    if frames == 0 {
        return Err(Refused::Cut);
    }
    Ok(Past { plane: reader.plane(), cut: reader.was_cut(), contents })
}

/// What is kept for the next life, from the start of this one on.
pub struct Store {
    place: Place,
    plane: PlaneKind,
    backing: Backing,
}

enum Backing {
    File(Box<Log>),
    /// The file could not be written; it is tried again.
    Memory {
        contents: Contents,
        /// No file with older contents is left.
        gone: bool,
        /// They are all that was noted. If not, they are of no use to a next life, which will begin anew.
        whole: bool,
    },
}

impl Store {
    /// Begins a new file with these contents in place of the old one. If it cannot be written, the contents wait in
    /// memory, and why comes back, too.
    pub fn begin(place: Place, plane: PlaneKind, contents: Contents) -> (Self, io::Result<()>) {
        match Log::create(&place, plane, &contents) {
            Ok(log) => (Self { place, plane, backing: Backing::File(Box::new(log)) }, Ok(())),
            Err(e) => {
                let gone = is_gone(&place);
                (Self { place, plane, backing: Backing::Memory { contents, gone, whole: true } }, Err(e))
            }
        }
    }

    /// Notes changes. They are in the file when this returns `Ok`, or in memory if an earlier call failed.
    ///
    /// # Errors
    /// Why the file cannot be written any more; told once. What was kept waits in memory for [`Self::mend`], and no
    /// file is left that would tell the next life something else.
    pub fn note(&mut self, mut records: Vec<Record>) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        for record in &mut records {
            // Nothing that long is ours to keep; what is not kept negotiates anew.
            if matches!(record, Record::Put(_, value) if value.len() > record::MAX_VALUE) {
                *record = Record::Delete(record.key());
            }
        }
        match &mut self.backing {
            Backing::Memory { contents, .. } => {
                change(contents, records);
                Ok(())
            }
            Backing::File(log) => match log.append(&records) {
                Ok(()) => {
                    log.tidy(&self.place, self.plane);
                    Ok(())
                }
                Err(e) => {
                    // What can be read back was written before.
                    let read = log.contents(&self.place);
                    let whole = read.is_ok();
                    let mut contents = read.unwrap_or_default();
                    change(&mut contents, records);
                    log.spoil();
                    self.backing = Backing::Memory { contents, gone: is_gone(&self.place), whole };
                    Err(e)
                }
            },
        }
    }

    /// Tries to write the file again, if it could not be written. `true` if it is there again.
    pub fn mend(&mut self) -> bool {
        let Backing::Memory { contents, gone, whole } = &mut self.backing else { return false };
        if !*whole {
            *gone = is_gone(&self.place);
            return false;
        }
        match Log::create(&self.place, self.plane, contents) {
            Ok(log) => {
                self.backing = Backing::File(Box::new(log));
                true
            }
            Err(_) => {
                *gone = is_gone(&self.place);
                false
            }
        }
    }

    /// Whether the next life will know what was noted, or nothing. Otherwise a file with older contents is left that can
    /// neither be written nor removed.
    pub const fn is_sound(&self) -> bool {
        matches!(self.backing, Backing::File(_) | Backing::Memory { gone: true, .. })
    }

    /// Whether what was noted is in the file.
    pub const fn is_written(&self) -> bool {
        matches!(self.backing, Backing::File(_))
    }

    /// Removes the file: nothing is to go on.
    pub fn end(self) -> io::Result<()> {
        match fs::remove_file(&self.place.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            ended => ended,
        }
    }
}

fn change(contents: &mut Contents, records: Vec<Record>) {
    for record in records {
        match record {
            Record::Put(key, value) => drop(contents.insert(key, value)),
            Record::Delete(key) => drop(contents.remove(&key)),
        }
    }
}

/// Removes the file, or at least what is in it.
fn is_gone(place: &Place) -> bool {
    match fs::remove_file(&place.path) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => true,
        Err(_) => File::options().write(true).truncate(true).open(&place.path).is_ok(),
    }
}

#[cfg(test)]
mod tests;
