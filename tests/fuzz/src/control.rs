//! What the daemon and its clients tell each other, and what it tells itself over a restart.

use std::fmt::Debug;

use cygnet::control::frame::{self, MAX_REQUEST, MAX_RESPONSE};
use cygnet::control::{Request, Response};
use cygnet::driver::saved;
use cygnet::store::record::{self, MAX_VALUE, Record};
use cygnet::store::{Host, Place, kept, parse};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::input::is_one_line;

/// A frame with a request.
pub fn control_request(data: &[u8]) {
    let _ = frame::<Request>(data, MAX_REQUEST);
}

/// A frame with a response.
pub fn control_response(data: &[u8]) {
    let _ = frame::<Response>(data, MAX_RESPONSE);
}

/// The length is believed up to its limit; a message that is read is written and read as the same; a complaint does not
/// quote the frame.
fn frame<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8], max: usize) -> Option<T> {
    let (prefix, body) = data.split_first_chunk::<4>()?;
    let announced = u32::from_be_bytes(*prefix) as usize;
    match frame::length(*prefix, max) {
        Ok(len) => assert!(len == announced && len <= max),
        Err(_) => assert!(announced > max),
    }
    match frame::decode::<T>(body) {
        Ok(message) => {
            let said = frame::encode(&message).expect("what was read can be written");
            let (prefix, body) = said.split_first_chunk::<4>().expect("a length");
            assert_eq!(u32::from_be_bytes(*prefix) as usize, body.len());
            assert_eq!(frame::decode::<T>(body).expect("what was written can be read"), message);
            Some(message)
        }
        Err(e) => {
            let told = e.to_string();
            assert!(is_one_line(&told) && told.len() < 120, "{told}");
            None
        }
    }
}

/// The file of saved bandwidth levels: what is read is written and read as the same.
pub fn bandwidth_saved(data: &[u8]) {
    let Ok(levels) = saved::parse(data) else { return };
    // Each level takes at least `"":0` and what separates it.
    assert!(levels.len() <= data.len() / 4);
    let said = saved::show(&levels).expect("names are text");
    let again = saved::parse(said.as_bytes());
    assert_eq!(again.ok().as_ref(), Some(&levels));
}

/// Where kept files of the corpus belong.
pub fn place() -> Place {
    Place { path: "kept.sas".into(), secret: [7; 32].into(), host: Host::of("a machine", "a boot") }
}

/// A file of kept SAs: refused, or sealed with the key. Then no octet of it can be another, and it can only be cut where that
/// takes back what was written last.
pub fn kept_file(data: &[u8]) {
    let Ok(past) = parse(data, &place()) else { return };
    let _ = kept::Kept::of(&past.contents);
    for at in (0..data.len()).step_by(data.len().div_ceil(16).max(1)) {
        let mut forged = data.to_vec();
        forged[at] ^= 1;
        assert!(parse(&forged[..], &place()).is_err() || past.cut);
        let _ = parse(&data[..at], &place());
    }
}

/// The records of a frame: what is read is written and read as the same, and no value is longer than what was there.
pub fn kept_records(data: &[u8]) {
    let Ok(records) = record::parse(data) else { return };
    let mut said = Vec::with_capacity(data.len()).into();
    for record in &records {
        if let Record::Put(_, value) = record {
            assert!(value.len() <= data.len().min(MAX_VALUE));
        }
        record.write(&mut said);
    }
    assert_eq!(&said[..], data);
    let mut contents = cygnet::store::Contents::new();
    for record in records {
        if let Record::Put(key, value) = record {
            contents.insert(key, value);
        }
    }
    let _ = kept::Kept::of(&contents);
}
