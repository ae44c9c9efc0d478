//! The IKE SA's table of state × input, printed with the outcome of every cell. A changed cell shows in review.
//!
//! A line is: input, states of all IKE SAs afterwards (oldest first), SPIs in use (IKE/ESP), and the actions in their
//! order. `>` is a request that goes out, `<` an answer; `+in` installs an inbound SA and `-out` removes an outbound
//! one; the rest are events and reasons by name.
//!
//! `CYGNET_UPDATE_GOLDEN=1 cargo test -p cygnet-sim --test table` writes the files anew.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod established;
mod handshake;
mod inputs;
mod local;
mod outcome;
mod states;
mod unauthenticated;

use std::fmt::Write;
use std::path::PathBuf;

use established::{create_child, informational, window};
use handshake::{auth, init};
use inputs::Row;
use local::local;
use states::{At, Scene};
use unauthenticated::unauthenticated;

#[test]
fn t28_every_cell_of_the_state_table_is_the_reviewed_one() {
    let authentic =
        [init(), auth(), create_child(), informational(), window()].into_iter().flatten().collect();
    let tables = [
        ("unauthenticated", "a datagram that nobody has the keys for", unauthenticated()),
        ("authentic", "a message of the peer; all but IKE_SA_INIT have a valid ICV", authentic),
        ("local", "what the driver and the operator tell", local()),
    ];
    let mut changed = Vec::new();
    for (name, about, rows) in tables {
        let is = table(about, &rows);
        let path: PathBuf =
            [env!("CARGO_MANIFEST_DIR"), "tests/table", &format!("{name}.txt")].iter().collect();
        if std::env::var_os("CYGNET_UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &is).unwrap();
        }
        let was = std::fs::read_to_string(&path).unwrap_or_default();
        let pairs = is.lines().zip(was.lines()).zip(1..);
        changed.extend(
            pairs
                .filter(|((a, b), _)| a != b)
                .map(|((a, b), n)| format!("{name}.txt:{n}\n  was {b}\n  is  {a}")),
        );
        if is.lines().count() != was.lines().count() {
            changed.push(format!("{name}.txt: {} lines, not {}", is.lines().count(), was.lines().count()));
        }
    }
    assert!(changed.is_empty(), "{} cells changed:\n{}", changed.len(), changed.join("\n"));
}

/// Every row in every state that it exists in.
fn table(about: &str, rows: &[Row]) -> String {
    let mut table = format!("# Outcome by state of {about}.\n");
    let width = rows.iter().map(|r| r.name.len()).max().unwrap_or_default();
    for at in At::ALL {
        writeln!(table, "\n{}", at.title()).unwrap();
        for row in rows.iter().filter(|r| r.only_at.is_none_or(|only| only == at)) {
            let mut scene = Scene::new(at, row.change);
            if let Some(what) = (row.play)(&mut scene) {
                writeln!(table, "  {:width$}  {what}", row.name).unwrap();
            }
        }
    }
    table
}
