//! What somebody hands in of a gateway's last messages.

use cygnet_ike::recording::{TITLE, parse};

/// A recording: it is refused, or each message that is read means itself when it is written again.
pub fn recording(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(sightings) = parse(text) else { return };
    assert!(sightings.len() < text.lines().count());
    let again: String = sightings.iter().map(|sighting| format!("{sighting}\n")).collect();
    assert_eq!(parse(&format!("{TITLE}\n{again}")).as_ref(), Ok(&sightings));
}
