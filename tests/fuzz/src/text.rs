//! What people write: configurations, quantities, keys, proposals.

use std::path::Path;
use std::time::Duration;

use cygnet::config::{self, Checked, Secrets, Severity, error, node, secrets, show, units};
use cygnet::import::{self, Dialect, Source};
use cygnet_model::proposal::{EspProposal, IkeProposal};

use crate::input::is_one_line;

/// A configuration: it resolves to one that says the same in full, or every complaint has its place in the file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let checked = check(text);
    let lines = node::lines(text);
    for p in &checked.problems {
        assert!(p.line >= 1 && p.col >= 1, "{p:?}");
        assert!(p.line <= lines.len() + 1, "{p:?} in a file of {} lines", lines.len());
        let width = lines.get(p.line - 1).map_or(0, |line| line.chars().count());
        assert!(p.col <= width + 1, "{p:?} on a line of {width} characters");
        assert!(!p.what.is_empty() && is_one_line(&p.one_line(&checked.file)), "{p:?}");
        assert!(is_one_line(&p.snippet));
        assert!(p.excerpt().lines().count() <= 2);
    }
    let errors = checked.problems.iter().filter(|p| p.severity == Severity::Error).count();
    assert!(errors <= error::MAX_PROBLEMS && checked.problems.len() <= 2 * error::MAX_PROBLEMS);
    let sorted = checked.problems.is_sorted_by_key(|p| (p.line, p.col));
    assert!(sorted, "complaints are not in the order of the file");
    assert_eq!(checked.preview.is_some(), errors == 0);
    let Some(config) = checked.preview else { return };

    // JSON is YAML; the key that is not shown is given one.
    let full = show::resolved(&config).to_string();
    let again = check(&full.replace("(not shown)", "pL7v0y2QxNf8sKd3RwZtB5"));
    let Some(preview) = again.preview else {
        let complaints: Vec<String> = again.problems.iter().map(|p| p.one_line("resolved")).collect();
        assert!(complaints.is_empty(), "{full}\n{}", complaints.join("\n"));
        return;
    };
    assert_eq!(show::resolved(&preview).to_string(), full);
}

fn check(text: &str) -> Checked {
    config::check_text(text, Path::new("/nonexistent"), Secrets::Skip)
}

/// A configuration of strongSwan or libreswan: what comes of it passes the check, and each note has its place in the file.
pub fn import(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = text.matches('\n').count() + 1;
    for dialect in [Dialect::Swanctl, Dialect::Ipsec] {
        let options = import::Options {
            dialect: Some(dialect),
            secrets_dir: Some("/nonexistent".into()),
            ..import::Options::default()
        };
        let source = Source { name: "file", text };
        match import::import(source, Some(source), &options) {
            Ok(made) => {
                let checked = check(&made.yaml);
                let complaints: Vec<String> = checked.problems.iter().map(|p| p.one_line("made")).collect();
                assert!(checked.preview.is_some(), "{}\n{}", made.yaml, complaints.join("\n"));
                assert_eq!(checked.preview.map(|c| c.tunnels.len()), Some(made.tunnels));
                for note in &made.notes {
                    assert!((1..=lines).contains(&note.line) && is_one_line(&note.one_line()), "{note:?}");
                }
                assert!(made.keys.len() <= made.tunnels);
            }
            Err(e) => assert!((1..=lines).contains(&e.line) && is_one_line(&e.to_string()), "{e:?}"),
        }
    }
}

/// A quantity: what is accepted is shown in a form that reads the same; rates agree with exact arithmetic.
pub fn units(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match units::rate(text) {
        Ok(bps) => {
            assert!((units::MIN_RATE..=units::MAX_RATE).contains(&bps));
            assert_eq!(units::rate(&units::show_rate(bps)), Ok(bps));
            assert_eq!(exact_rate(text), Some(bps.into()));
        }
        Err(w) => {
            assert!(is_one_line(&w.what) && is_one_line(&w.fix) && !w.what.is_empty());
            let in_range = |bps: &u128| (units::MIN_RATE.into()..=units::MAX_RATE.into()).contains(bps);
            assert_eq!(exact_rate(text).filter(in_range), None, "{text} is a rate");
        }
    }
    match units::duration(text) {
        Ok(d) => assert_eq!(units::duration(&units::show_duration(d)), Ok(d)),
        Err(w) => assert!(is_one_line(&w.what) && is_one_line(&w.fix)),
    }
    let (min, max) = (Duration::from_secs(60), Duration::from_secs(604_800));
    if let Ok(d) = units::duration_within(min, max)(text) {
        assert!(min <= d && d <= max && units::duration(text) == Ok(d));
    }
    match units::size(text) {
        Ok(octets) => assert_eq!(units::size(&units::show_size(octets)), Ok(octets)),
        Err(w) => assert!(is_one_line(&w.what) && is_one_line(&w.fix)),
    }
}

/// The rate of `12.5mbit` by exact fractions; at most nine decimals, as documented.
fn exact_rate(text: &str) -> Option<u128> {
    let lower = text.to_ascii_lowercase();
    let number = lower.strip_suffix("bit")?;
    let (number, scale) = match number.char_indices().next_back()? {
        (at, 'k') => (&number[..at], 3),
        (at, 'm') => (&number[..at], 6),
        (at, 'g') => (&number[..at], 9),
        (at, 't') => (&number[..at], 12),
        _ => (number, 0),
    };
    let number = number.trim_end_matches(' ');
    let (whole, fraction) = match number.split_once('.') {
        Some((_, fraction)) if fraction.is_empty() || fraction.len() > 9 => return None,
        Some(parts) => parts,
        None => (number, ""),
    };
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    // Beyond 64 bits it is out of range anyway.
    let whole: u64 = whole.parse().ok()?;
    let places = u32::try_from(fraction.len()).ok()?;
    let all: u128 = u128::from(whole) * 10u128.pow(places) + fraction.parse::<u128>().unwrap_or(0);
    Some(all.checked_mul(10u128.pow(scale))? / 10u128.pow(places))
}

/// The content of a key's file: a key is long enough, is what stands there, and is quoted by no complaint.
pub fn psk(data: &[u8]) {
    let text = data.strip_suffix(b"\n").unwrap_or(data);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    match secrets::psk_file(data) {
        Ok(key) => {
            let octets = key.secret.expose();
            assert!(octets.len() >= secrets::MIN_OCTETS && octets.len() <= text.len());
            if let Some(hex) = text.strip_prefix(b"0x") {
                let shown: String = octets.iter().map(|b| format!("{b:02x}")).collect();
                assert_eq!(hex.to_ascii_lowercase(), shown.as_bytes());
            } else if let Some(b64) = text.strip_prefix(b"0s") {
                assert_eq!(octets, naive_base64(b64));
            } else {
                assert_eq!(octets, text);
            }
            if let Some(w) = key.weak {
                keeps_quiet(&w, text);
            }
        }
        Err(w) => {
            assert!(text.len() < 2 * secrets::MIN_OCTETS || text.starts_with(b"0"), "{}", w.what);
            keeps_quiet(&w, text);
        }
    }
}

fn keeps_quiet(w: &error::Wrong, key: &[u8]) {
    assert!(is_one_line(&w.what) && is_one_line(&w.fix));
    let told = format!("{}\n{}", w.what, w.fix);
    // Short pieces of a key may be words of the complaint by chance.
    assert!(!key.windows(12).any(|piece| told.as_bytes().windows(12).any(|t| t == piece)), "{told}");
}

/// Six bits for each character, most significant first, as far as they make whole octets.
fn naive_base64(text: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.iter().filter_map(|b| DIGITS.iter().position(|d| d == b));
    let bits: Vec<bool> = digits.flat_map(|d| (0..6).rev().map(move |i| d >> i & 1 == 1)).collect();
    bits.chunks_exact(8).map(|octet| octet.iter().fold(0, |n, bit| n << 1 | u8::from(*bit))).collect()
}

/// Proposals as text: what is accepted prints as text that means the same.
pub fn proposal(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<IkeProposal>() {
        Ok(p) => {
            assert!(!p.encrs.is_empty() && !p.prfs.is_empty() && !p.groups.is_empty());
            assert!(p.encrs.iter().all(|e| e.is_aead() == p.integs.is_empty()));
            assert_eq!(p.to_string().parse(), Ok(p));
        }
        Err(e) => assert!(is_one_line(&e.to_string())),
    }
    match text.parse::<EspProposal>() {
        Ok(p) => {
            assert!(!p.encrs.is_empty() && !p.esn.is_empty());
            assert!(p.encrs.iter().all(|e| e.is_aead() == p.integs.is_empty()));
            assert_eq!(p.to_string().parse(), Ok(p));
        }
        Err(e) => assert!(is_one_line(&e.to_string())),
    }
}
