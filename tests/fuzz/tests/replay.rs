//! Every target over its corpus, and over seeded mutations of it. `CYGNET_FUZZ_RUNS=n` makes it n mutations for each
//! target, `CYGNET_FUZZ_FIRST=n` begins with another seed than 0.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use cygnet_fuzz::{TARGETS, Target};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Mutated inputs are not longer than this, unless their seed is.
const MAX_LEN: usize = 4096;

macro_rules! replay {
    ($($name:ident $runs:literal,)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name), cygnet_fuzz::$name, $runs);
        })*

        const REPLAYED: &[&str] = &[$(stringify!($name),)*];
    };
}

// How many mutations by default: all together some ten seconds' worth.
replay! {
    bandwidth_saved 100_000,
    config 50_000,
    control_request 100_000,
    control_response 100_000,
    endpoint 30_000,
    esp_coalesce 50_000,
    esp_inner 100_000,
    esp_natt 100_000,
    esp_open 100_000,
    esp_replay 100_000,
    esp_seal 100_000,
    esp_segment 100_000,
    ike_header 100_000,
    ike_identity 100_000,
    ike_narrow 50_000,
    ike_open 100_000,
    ike_payloads 100_000,
    ike_saved 20_000,
    ike_seal 50_000,
    ike_selectors 100_000,
    import 4_000,
    kept_file 50_000,
    kept_records 100_000,
    netlink_attributes 100_000,
    netlink_messages 100_000,
    proposal 100_000,
    psk 100_000,
    recording 100_000,
    tc_class 100_000,
    tc_filter 100_000,
    tc_qdisc 100_000,
    units 100_000,
    xfrm_event 100_000,
    xfrm_policy 100_000,
    xfrm_state 100_000,
}

#[test]
fn every_target_is_replayed_and_every_corpus_has_its_target() {
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, REPLAYED);
    let mut corpora: Vec<String> = fs::read_dir(corpus())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    corpora.sort();
    assert_eq!(corpora, names);
}

fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The corpus of a target by file name, in order.
fn entries(name: &str) -> Vec<(String, Vec<u8>)> {
    let mut entries: Vec<(String, Vec<u8>)> = fs::read_dir(corpus().join(name))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect();
    entries.sort();
    assert!(!entries.is_empty(), "{name} has no corpus");
    entries
}

fn replay(name: &str, target: Target, runs: u64) {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().unwrap());
    let runs = number("CYGNET_FUZZ_RUNS").unwrap_or(runs);
    let first = number("CYGNET_FUZZ_FIRST").unwrap_or(0);
    let corpus = entries(name);
    run(name, target, "the empty input", &[]);
    for (file, input) in &corpus {
        run(name, target, &format!("corpus file {file}"), input);
    }
    for seed in first..first + runs {
        let input = mutated(seed, &corpus);
        run(name, target, &format!("seed {seed}"), &input);
    }
}

/// Runs one input; on failure it is shown and kept, so that it can go into the corpus.
fn run(name: &str, target: Target, origin: &str, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_ok() {
        return;
    }
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.failed"));
    fs::write(&kept, input).unwrap();
    let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
    panic!("target {name} fails with {origin}, kept as {}: {hex}", kept.display());
}

/// An entry of the corpus with some damage; the same for the same seed and corpus.
fn mutated(seed: u64, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut random = Random(ChaCha8Rng::seed_from_u64(seed));
    let mut input = corpus[random.below(corpus.len())].1.clone();
    let limit = input.len().max(MAX_LEN);
    for _ in 0..=random.below(4) {
        mutate(&mut random, &mut input, corpus);
        input.truncate(limit);
    }
    input
}

struct Random(ChaCha8Rng);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        (self.0.next_u64() % bound.max(1) as u64) as usize
    }
}

/// Values at which length fields break.
const LENGTHS: [u16; 9] = [0, 1, 3, 4, 5, 8, 0x7FFF, 0x8000, 0xFFFF];

fn mutate(random: &mut Random, input: &mut Vec<u8>, corpus: &[(String, Vec<u8>)]) {
    let at = random.below(input.len() + 1);
    match random.below(10) {
        0 | 1 if at < input.len() => input[at] ^= 1 << random.below(8),
        2 if at < input.len() => input[at] = random.below(256) as u8,
        3 => input.truncate(at),
        4 => {
            let piece: Vec<u8> = (0..=random.below(8)).map(|_| random.below(256) as u8).collect();
            input.splice(at..at, piece);
        }
        5 => {
            let end = (at + 1 + random.below(16)).min(input.len());
            input.drain(at..end);
        }
        6 if at + 2 <= input.len() => {
            // A length field, in either order of octets: a value that breaks things, or what is really left.
            let exact = [(input.len() - at) as u16, input.len() as u16][random.below(2)];
            let value = *LENGTHS.get(random.below(LENGTHS.len() + 3)).unwrap_or(&exact);
            let value = if random.below(2) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
            input[at..at + 2].copy_from_slice(&value);
        }
        7 if at + 2 <= input.len() => {
            // Off by one.
            let value = u16::from_be_bytes([input[at], input[at + 1]]);
            let value = if random.below(2) == 0 { value.wrapping_add(1) } else { value.wrapping_sub(1) };
            input[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        8 => {
            // The beginning of this one and the end of another.
            let (_, other) = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            // A piece of it again, somewhere.
            let (a, b) = (random.below(input.len() + 1), random.below(input.len() + 1));
            let piece = input[a.min(b)..a.max(b)].to_vec();
            input.splice(at..at, piece);
        }
    }
    // Datagrams of IKE say their own length; a right one lets the damage through to what lies behind.
    if input.len() >= 28 && input[16..18].ends_with(&[0x20]) && random.below(2) == 0 {
        let len = (input.len() as u32).to_be_bytes();
        input[24..28].copy_from_slice(&len);
    }
}
