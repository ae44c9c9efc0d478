//! The file as it grows: appended by one write for all changes of one input, and written anew when most of it is out of
//! date. In memory is only where each key's value lies.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use cygnet_model::plane::PlaneKind;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::record::{self, Key, Record};
use super::seal::{self, Frames, HEADER_LEN, Reader, Refused};
use super::{Contents, MAX_FILE, Place, secret};

/// Records are put into frames of about this size, in octets.
const FRAME: usize = 64 << 10;
/// Below this, in octets, being out of date costs nothing.
const LITTLE: u64 = 256 << 10;

/// An open file.
pub(super) struct Log {
    file: File,
    frames: Frames,
    /// The frame that has a key's value, and how long the value is.
    index: BTreeMap<Key, (u64, u32)>,
    /// Length of the file.
    size: u64,
    /// How much of it counts.
    live: u64,
    /// Not to be written anew before it is so long.
    tidy_at: u64,
}

impl Log {
    /// Writes a new file and puts it in place of the old one.
    pub(super) fn create(place: &Place, plane: PlaneKind, contents: &Contents) -> io::Result<Self> {
        let records = contents.iter().map(|(key, value)| Ok(Record::Put(*key, value.duplicate())));
        Self::replace(place, plane, records)
    }

    fn replace(
        place: &Place,
        plane: PlaneKind,
        records: impl Iterator<Item = io::Result<Record>>,
    ) -> io::Result<Self> {
        let beside = place.path.with_extension("sas.new");
        let written = Self::write(place, plane, records, &beside).and_then(|log| {
            fs::rename(&beside, &place.path)?;
            Ok(log)
        });
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }

    fn write(
        place: &Place,
        plane: PlaneKind,
        records: impl Iterator<Item = io::Result<Record>>,
        path: &std::path::Path,
    ) -> io::Result<Self> {
        let mut life = [0; 32];
        SystemRandom::new().fill(&mut life).map_err(|_| io::Error::other("there are no random numbers"))?;
        let header = seal::header(&place.host, plane, &life);
        let mut file = secret::create_own(path)?;
        file.write_all(&header)?;
        let mut log = Self {
            file,
            frames: Frames::begin(&place.secret, &header),
            index: BTreeMap::new(),
            size: HEADER_LEN as u64,
            live: 0,
            tidy_at: 0,
        };
        // A first frame without content: a header alone proves nothing.
        log.put(&[&[]])?;
        let mut chunk = Vec::new();
        let mut room = 0;
        for record in records {
            let record = record?;
            room += record.room();
            chunk.push(record);
            if room >= FRAME {
                log.append(&std::mem::take(&mut chunk))?;
                room = 0;
            }
        }
        log.append(&chunk)?;
        log.tidy_at = log.size.saturating_mul(2).max(LITTLE);
        Ok(log)
    }

    /// Appends records in one write.
    ///
    /// # Errors
    /// After an error the file may end anyhow and must not be used.
    pub(super) fn append(&mut self, records: &[Record]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut chunks: Vec<&[Record]> = Vec::new();
        let (mut rest, mut at, mut room) = (records, 0, 0);
        while let Some(record) = rest.get(at) {
            if at > 0 && room + record.room() > FRAME {
                let (chunk, others) = rest.split_at(at);
                chunks.push(chunk);
                (rest, at, room) = (others, 0, 0);
            }
            room += record.room();
            at += 1;
        }
        chunks.push(rest);
        self.put(&chunks)
    }

    /// Writes one frame for each chunk, all in one write.
    fn put(&mut self, chunks: &[&[Record]]) -> io::Result<()> {
        let mut sealed = Vec::new();
        for chunk in chunks {
            let room = chunk.iter().map(Record::room).sum();
            let mut content = Zeroizing::new(Vec::with_capacity(room));
            let frame = self.size + sealed.len() as u64;
            for record in *chunk {
                record.write(&mut content);
                self.point(record, frame);
            }
            self.frames.seal(&content, &mut sealed)?;
        }
        if self.size + sealed.len() as u64 > MAX_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let written = loop {
            match self.file.write(&sealed) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                written => break written?,
            }
        };
        if written < sealed.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.size += written as u64;
        Ok(())
    }

    /// Notes where a key's value lies from now on.
    fn point(&mut self, record: &Record, frame: u64) {
        let before = match record {
            Record::Put(key, value) => {
                let len = value.len() as u32;
                self.live += u64::from(len) + VALUE_OVERHEAD;
                self.index.insert(*key, (frame, len))
            }
            Record::Delete(key) => self.index.remove(key),
        };
        if let Some((_, len)) = before {
            self.live -= u64::from(len) + VALUE_OVERHEAD;
        }
    }

    /// Writes the file anew when most of it is out of date. If that fails, the old one goes on.
    pub(super) fn tidy(&mut self, place: &Place, plane: PlaneKind) {
        if self.size < self.tidy_at.max(LITTLE) || self.size < self.live.saturating_mul(2) {
            return;
        }
        self.tidy_at = self.size.saturating_mul(2);
        let Ok(reader) = self.reader(place) else { return };
        let live = Live { reader, index: &self.index, ready: Vec::new() };
        if let Ok(anew) = Self::replace(place, plane, live) {
            *self = anew;
        }
    }

    fn reader(&self, place: &Place) -> Result<Reader<BufReader<Span<'_>>>, Refused> {
        let span = Span { file: &self.file, at: 0, end: self.size };
        Reader::open(BufReader::with_capacity(FRAME, span), &place.secret, &place.host)
    }

    /// Reads back what was written whole.
    pub(super) fn contents(&self, place: &Place) -> Result<Contents, Refused> {
        let span = Span { file: &self.file, at: 0, end: self.size };
        super::parse(BufReader::with_capacity(FRAME, span), place).map(|past| past.contents)
    }

    /// Makes the file useless, wherever else it may have a name.
    pub(super) fn spoil(&self) {
        let _ = self.file.set_len(0);
    }
}

/// What a value takes beside itself, about, in octets.
const VALUE_OVERHEAD: u64 = 60;

/// The records of a file that still count.
struct Live<'a, R> {
    reader: Reader<R>,
    index: &'a BTreeMap<Key, (u64, u32)>,
    /// Of the frame that was read last.
    ready: Vec<Record>,
}

impl<R: Read> Iterator for Live<'_, R> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.pop() {
                return Some(Ok(record));
            }
            let broken = |e: String| Some(Err(io::Error::other(e)));
            let seal::Frame { at, content } = match self.reader.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return None,
                Err(e) => return broken(e.to_string()),
            };
            let Ok(records) = record::parse(&content) else { return broken(Refused::Format.to_string()) };
            let mut last = BTreeMap::new();
            for record in records {
                last.insert(record.key(), record);
            }
            let counts = |r: &Record| self.index.get(&r.key()).is_some_and(|(frame, _)| *frame == at);
            self.ready.extend(last.into_values().filter(counts));
        }
    }
}

/// A part of a file, read without moving anything.
struct Span<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Span<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        let got = self.file.read_at(buffer.get_mut(..len).unwrap_or_default(), self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}
