//! The file as a whole: what was written is read, and nothing else is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, IkeSpi, Spi, TunnelId};
use proptest::prelude::*;

use super::seal::HEADER_LEN;
use super::*;

fn place(dir: &Path) -> Place {
    Place {
        path: dir.join("control.sas"),
        secret: Zeroizing::new([7; 32]),
        host: Host::of("a machine", "a boot"),
    }
}

fn sa(n: u8) -> SaId {
    let child = ChildId { tunnel: TunnelId(u32::from(n)), index: 3 };
    let direction = if n.is_multiple_of(2) { Direction::In } else { Direction::Out };
    SaId { child, direction, spi: Spi::new(0x1000 + u32::from(n)).unwrap() }
}

fn put(n: u8, value: &[u8]) -> Record {
    Record::Put(key(n), SecretBytes::copy_of(value))
}

fn key(n: u8) -> Key {
    match n % 4 {
        0 => Key::Ike(IkeSpi::new(u64::from(n) + 1).unwrap()),
        1 => Key::Sa(sa(n)),
        2 => Key::Count(sa(n)),
        3 => Key::Tally(TunnelId(n.into())),
        _ => Key::Path(sa(n)),
    }
}

fn record() -> impl Strategy<Value = Record> {
    (0u8..12, proptest::option::weighted(0.8, proptest::collection::vec(any::<u8>(), 0..60))).prop_map(
        |(n, value)| match value {
            Some(value) => put(n, &value),
            None => Record::Delete(key(n)),
        },
    )
}

fn again(records: &[Record]) -> Vec<Record> {
    let one = |r: &Record| match r {
        Record::Put(key, value) => Record::Put(*key, value.duplicate()),
        Record::Delete(key) => Record::Delete(*key),
    };
    records.iter().map(one).collect()
}

fn filled(place: Place, batches: &[Vec<Record>]) -> Contents {
    let (mut store, begun) = Store::begin(place, PlaneKind::Userspace, Contents::new());
    begun.unwrap();
    let mut expected = Contents::new();
    for batch in batches {
        store.note(again(batch)).unwrap();
        change(&mut expected, again(batch));
    }
    assert!(store.is_written());
    expected
}

proptest! {
    #[test]
    fn records_read_back(records in proptest::collection::vec(record(), 0..20)) {
        let mut octets = Zeroizing::new(Vec::new());
        records.iter().for_each(|r| r.write(&mut octets));
        prop_assert!(octets.len() <= records.iter().map(Record::room).sum::<usize>());
        prop_assert_eq!(record::parse(&octets).unwrap(), records);
    }

    /// The next life sees the changes of a prefix of the writes: of all that were whole.
    #[test]
    fn a_file_cut_after_any_octet_is_what_was_written_whole(
        batches in proptest::collection::vec(proptest::collection::vec(record(), 1..4), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        filled(place(dir.path()), &batches);
        let octets = fs::read(dir.path().join("control.sas")).unwrap();
        let mut states = vec![Contents::new()];
        for batch in &batches {
            let mut next = Contents::new();
            for (key, value) in states.last().unwrap() {
                next.insert(*key, value.duplicate());
            }
            change(&mut next, again(batch));
            states.push(next);
        }
        let mut seen = 0;
        for end in 0..=octets.len() {
            match parse(&octets[..end], &place(dir.path())) {
                Ok(past) => {
                    let at = states.iter().skip(seen).position(|s| *s == past.contents);
                    seen += at.expect("the changes of a prefix of the writes");
                    prop_assert!(past.plane == PlaneKind::Userspace);
                }
                Err(e) => {
                    prop_assert_eq!(e, Refused::Cut);
                    prop_assert!(seen == 0 && end < HEADER_LEN + seal::FRAME_OVERHEAD);
                }
            }
        }
        let whole = parse(&octets[..], &place(dir.path())).unwrap();
        prop_assert!(!whole.cut);
        prop_assert_eq!(Some(&whole.contents), states.last());
    }

    #[test]
    fn a_file_with_any_bit_changed_is_refused(
        batches in proptest::collection::vec(proptest::collection::vec(record(), 1..4), 1..3), bit in 0usize..8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        filled(place(dir.path()), &batches);
        let octets = fs::read(dir.path().join("control.sas")).unwrap();
        for at in 0..octets.len() {
            let mut changed = octets.clone();
            changed[at] ^= 1 << bit;
            let refused = parse(&changed[..], &place(dir.path())).map(|_| ()).unwrap_err();
            let expected = match at {
                0..8 => matches!(refused, Refused::Format),
                8..10 => matches!(refused, Refused::Version(_)),
                10 => matches!(refused, Refused::Format | Refused::Forged),
                11..27 => refused == Refused::OtherBoot,
                27..43 => refused == Refused::OtherHost,
                _ => refused == Refused::Forged,
            };
            prop_assert!(expected, "octet {} gives {:?}", at, refused);
        }
    }

    /// Also frames that were written by us, but not there.
    #[test]
    fn frames_cannot_change_places(n in 2usize..5) {
        let dir = tempfile::tempdir().unwrap();
        filled(place(dir.path()), &(0..n).map(|i| vec![put(i as u8, b"of equal length")]).collect::<Vec<_>>());
        let octets = fs::read(dir.path().join("control.sas")).unwrap();
        let first = HEADER_LEN + seal::FRAME_OVERHEAD;
        let mut skipped = octets[..first].to_vec();
        skipped.extend_from_slice(&octets[first + 1..]);
        prop_assert_eq!(parse(&skipped[..], &place(dir.path())).map(|_| ()).unwrap_err(), Refused::Forged);
        let mut twice = octets.clone();
        twice.extend_from_slice(&octets[first..]);
        prop_assert_eq!(parse(&twice[..], &place(dir.path())).map(|_| ()).unwrap_err(), Refused::Forged);
    }
}

#[test]
fn a_file_that_is_mostly_out_of_date_is_written_anew_and_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, begun) = Store::begin(place(dir.path()), PlaneKind::Kernel, Contents::new());
    begun.unwrap();
    let mut expected = Contents::new();
    let (mut largest, mut smaller) = (0, 0);
    for turn in 0..4000u32 {
        let n = (turn % 23) as u8;
        let value = vec![turn as u8; 300 + (turn % 7) as usize];
        let batch = || {
            // Twice in one write, and a deletion among them.
            vec![put(n, b"before"), put(n, &value), Record::Delete(key(n.wrapping_add(9) % 23))]
        };
        store.note(batch()).unwrap();
        change(&mut expected, batch());
        let size = fs::metadata(dir.path().join("control.sas")).unwrap().len();
        smaller += u32::from(size < largest);
        largest = if size < largest { size } else { largest.max(size) };
        assert!(size < 600 << 10, "{size}");
        if turn % 97 == 0 || size == largest && smaller > 0 && turn % 5 == 0 {
            assert_eq!(read(&place(dir.path())).unwrap().contents, expected, "turn {turn}");
        }
    }
    assert!(smaller > 0, "it was written anew");
    assert_eq!(read(&place(dir.path())).unwrap().contents, expected);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
}

/// With the same key and nonce, equal texts would be sealed as equal octets.
#[test]
fn no_two_files_are_sealed_alike() {
    let dir = tempfile::tempdir().unwrap();
    let batch = vec![vec![put(1, b"the same")]];
    filled(place(dir.path()), &batch);
    let first = fs::read(dir.path().join("control.sas")).unwrap();
    filled(place(dir.path()), &batch);
    let second = fs::read(dir.path().join("control.sas")).unwrap();
    let content = |octets: &[u8]| octets[HEADER_LEN..].to_vec();
    assert_eq!(first.len(), second.len());
    assert_ne!(content(&first), content(&second));
    assert!(!first.windows(8).any(|w| w == b"the same"));
}

#[test]
fn each_refusal_has_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |place: &Place| read(place).map(|_| ()).unwrap_err().name();
    let own = place(dir.path());
    assert_eq!(refused(&own), "absent");
    filled(place(dir.path()), &[vec![put(0, b"x")]]);
    let with =
        |host: Host, secret: [u8; 32]| Place { host, secret: Zeroizing::new(secret), ..place(dir.path()) };
    assert_eq!(refused(&with(Host::of("a machine", "another boot"), [7; 32])), "other_boot");
    assert_eq!(refused(&with(Host::of("another machine", "a boot"), [7; 32])), "other_host");
    assert_eq!(refused(&with(own.host.clone(), [8; 32])), "forged");
    let path = &own.path;
    let octets = fs::read(path).unwrap();
    let of = |content: &[u8]| {
        fs::write(path, content).unwrap();
        refused(&own)
    };
    assert_eq!(of(&octets[..HEADER_LEN]), "cut");
    assert_eq!(of(b""), "cut");
    assert_eq!(
        of(b"something else that is long enough for a header, or nearly so, or not, who knows"),
        "format"
    );
    assert_eq!(of(&[&octets[..9], &[2], &octets[10..]].concat()), "version");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(of(&octets), "permissions");
    fs::remove_file(path).unwrap();
    std::os::unix::fs::symlink("/dev/null", path).unwrap();
    assert_eq!(refused(&own), "unreadable");
}

/// A file that can no longer be written says nothing rather than something old.
#[test]
fn what_cannot_be_written_waits_in_memory_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let there = || Place { path: gone.join("control.sas"), ..place(dir.path()) };
    let (mut store, begun) = Store::begin(there(), PlaneKind::Kernel, Contents::new());
    assert_eq!(begun.unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(!store.is_written() && store.is_sound());
    store.note(vec![put(1, b"kept")]).unwrap();
    assert!(!store.mend());
    fs::create_dir(&gone).unwrap();
    assert!(store.mend() && store.is_written());
    store.note(vec![put(2, b"later")]).unwrap();
    let contents = read(&there()).unwrap().contents;
    assert_eq!(contents.len(), 2);
    assert!(contents[&key(1)].ct_eq(b"kept") && contents[&key(2)].ct_eq(b"later"));
}

#[test]
fn nothing_is_left_of_a_file_that_is_not_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::begin(place(dir.path()), PlaneKind::Kernel, Contents::new());
    store.note(vec![put(1, b"kept")]).unwrap();
    let mode = fs::metadata(dir.path().join("control.sas")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    store.end().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
