//! Keys that are known are looked for in everything that two daemons with a tunnel between them say and write.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use cygnet::store::record::Key;
use cygnet::store::{self, Host as Boot, Place};

use super::host::pair::Pair;
use super::host::{Daemon, until};

const PSK: &str = "kV3xZp9Qw2Ls7Tn4Yb8Rf1Hd6Gm0Jc5";
const TOKEN: &str = "0x8f3a1c5e7b9d2046f1e3a5c7d9b80624";
const HOOK: &str = "mJq8Zx0r4TyuW2bNc6Hs1Ve5";
/// A key where a name belongs: what is wrong with the file must not quote it.
const MISPLACED: &str = "0x51d2c3b4a5968778695a4b3c2d1e0f90";

#[test]
fn no_key_leaves_the_daemon() {
    let Some(pair) = Pair::new("no_key_leaves_the_daemon") else { return };
    let secret = |name: &str, text: &str| {
        let path = pair.path(name);
        fs::write(&path, format!("{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    for (name, text) in [("1.psk", PSK), ("2.psk", PSK), ("console.token", TOKEN), ("hook.secret", HOOK)] {
        secret(name, text);
    }
    let text = |side: usize| {
        pair.text(side).replace(
            "  metrics: { listen: off }\n",
            "  metrics: { listen: \"127.0.0.1:9180\" }\n  console: { listen: \"127.0.0.1:9181\", token_file: console.token }\n  \
             alerts: { webhook: { url: \"http://127.0.0.1:9\", secret_file: hook.secret } }\n",
        )
    };
    let start = |side: usize| {
        let path = pair.write(side, &text(side));
        let log = File::create(pair.path(&format!("{}.log", side + 1))).unwrap();
        let mut run = pair.gateways[side].inside(env!("CARGO_BIN_EXE_cygnet"));
        run.env("CYGNET_LOG", "trace").args(["-vv", "run", "--config"]).arg(path);
        Daemon(run.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    };
    let daemons = [1, 0].map(start);
    until(|| pair.ask(0, &["status"]).0 == Some(0));
    until(|| pair.pings());

    let mut keys: Vec<Vec<u8>> = [PSK, TOKEN, HOOK, MISPLACED].map(|k| k.as_bytes().to_vec()).into();
    keys.extend([TOKEN, MISPLACED].map(from_hex));
    let told = |keys: &mut Vec<Vec<u8>>| {
        let derived = [0, 1].map(|side| derived(&pair, side));
        assert!(
            derived.iter().all(|d| d.len() >= 6),
            "{:?} keys were derived",
            derived.each_ref().map(Vec::len)
        );
        keys.extend(derived.into_iter().flatten());
    };
    told(&mut keys);
    let mut said = Vec::new();
    for rekey in [&["rekey", "a-b"][..], &["rekey", "--ike", "a-b"]] {
        let (code, text) = pair.ask(0, rekey);
        assert_eq!(code, Some(0), "{text}");
        told(&mut keys);
    }
    for side in [0, 1] {
        for question in QUESTIONS {
            let args: Vec<&str> = question.split(' ').collect();
            said.push((format!("cygnet {question}"), pair.ask(side, &args).1.into_bytes()));
        }
        for (port, page) in PAGES {
            let get = format!(
                "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET {page} HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n\
                 Connection: close\\r\\n\\r\\n' >&3 && cat <&3"
            );
            let answer = pair.gateways[side].inside("bash").args(["-c", &get]).output().unwrap().stdout;
            assert!(answer.starts_with(b"HTTP/1."), "{page}: {}", String::from_utf8_lossy(&answer));
            said.push((page.to_owned(), answer));
        }
        let config = pair.path(&format!("{}.yaml", side + 1)).display().to_string();
        for args in [
            &["check", "--resolved", &config][..],
            &["check", "--json", &config],
            &["export-peer", "a-b", "-f", "swanctl", "--config", &config],
        ] {
            said.push((args.join(" "), pair.ask(side, args).1.into_bytes()));
        }
        // A file with errors, and keys where they do not belong.
        let n = side + 1;
        for (wrong, right) in [
            (format!("psk_file: {MISPLACED}"), format!("psk_file: {n}.psk")),
            (format!("psk: {MISPLACED}"), format!("psk_file: {n}.psk")),
            (format!("{MISPLACED}: {n}.psk"), format!("psk_file: {n}.psk")),
            (format!("secret_file: {MISPLACED}"), "secret_file: hook.secret".to_owned()),
        ] {
            pair.write(side, &text(side).replace(&right, &wrong));
            for verb in ["plan", "apply"] {
                let (code, answer) = pair.ask(side, &[verb]);
                assert_eq!(code, Some(78), "{wrong}: {answer}");
                said.push((format!("{verb} with an error"), answer.into_bytes()));
            }
        }
        pair.write(side, &text(side));
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{}/{file}", daemons[1 - side].0.id());
            said.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    // What they keep for the next life, and their last words.
    let (code, answer) = pair.ask(0, &["handover"]);
    assert_eq!(code, Some(0), "{answer}");
    drop(daemons);
    for path in super::files(pair.dir.path()) {
        if path.extension().is_none_or(|e| !["psk", "token", "secret"].contains(&e.to_str().unwrap())) {
            said.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    let log = said.iter().find(|(place, _)| place.ends_with("/1.log")).unwrap();
    assert!(log.1.len() > 10_000, "the log was to say all there is: {} octets", log.1.len());
    assert!(said.iter().any(|(place, _)| place.ends_with(".sas")));
    for (place, octets) in &said {
        for key in &keys {
            if let Some(form) = forms(key)
                .iter()
                .find(|form| octets.windows(form.len()).any(|w| w[0] == form[0] && w == form.as_slice()))
            {
                panic!("{place} has a key in it, as {}", String::from_utf8_lossy(form));
            }
        }
    }
}

/// What can be asked over the control socket.
const QUESTIONS: [&str; 17] = [
    "status",
    "status --json",
    "status a-b",
    "status a-b --json",
    "doctor",
    "doctor --json",
    "diagnose",
    "diagnose a-b --json",
    "explain a-b",
    "logs a-b",
    "top --json",
    "top --peers",
    "limit here",
    "plan",
    "quality a-b",
    "rekey nobody",
    "up a-b",
];

/// What can be asked by HTTP: port and page.
const PAGES: [(u16, &str); 6] = [
    (9180, "/metrics"),
    (9181, "/"),
    (9181, "/api/session"),
    (9181, "/api/events"),
    (9181, "/api/tunnel?name=a-b"),
    (9181, "/api/top"),
];

/// Keys of IKE and ESP SAs, out of what a daemon keeps for its next life: every string of octets there that is long enough.
fn derived(pair: &Pair, side: usize) -> Vec<Vec<u8>> {
    let n = side + 1;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let place = Place {
        path: pair.path(&format!("{n}.sas")),
        secret: store::secret(&pair.path(&n.to_string())).unwrap(),
        host: Boot::of(&machine, &boot),
    };
    let past = store::read(&place).unwrap();
    let of_keys = |key: &Key| matches!(key, Key::Ike(_) | Key::Sa(_));
    past.contents
        .iter()
        .filter(|(k, _)| of_keys(k))
        .flat_map(|(_, value)| byte_strings(value.expose()))
        .collect()
}

/// The strings of octets in CBOR (RFC 8949 §3.1, major type 2) with 16 to 64 octets. Found without reading the structure, so that
/// some are none; those are found nowhere.
fn byte_strings(value: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for at in 0..value.len() {
        let (start, len) = match value[at..] {
            [0x58, len @ 16..=64, ..] => (at + 2, usize::from(len)),
            [head @ 0x50..=0x57, ..] => (at + 1, usize::from(head - 0x40)),
            _ => continue,
        };
        if let Some(octets) = value.get(start..start + len)
            && octets.iter().collect::<std::collections::BTreeSet<_>>().len() > 8
        {
            found.push(octets.to_vec());
        }
    }
    found
}

/// How octets are written where they should not be: as they are, in hexadecimal, in base64, as a list of numbers; the
/// first half is enough.
fn forms(key: &[u8]) -> Vec<Vec<u8>> {
    // Two SPIs, which are no secret, look like a short key, and its half like one of them.
    let half = if key.len() < 24 { key } else { &key[..key.len() / 2] };
    let hex: String = half.iter().map(|b| format!("{b:02x}")).collect();
    let list = half.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let whole = &half[..half.len() / 3 * 3];
    vec![half.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes(), list.into_bytes(), base64(whole)]
}

/// RFC 4648 §4, of whole groups of three octets.
fn base64(octets: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |g: &[u8]| {
        let word = g.iter().fold(0usize, |word, b| word << 8 | usize::from(*b));
        [18, 12, 6, 0].map(|shift| DIGITS[word >> shift & 63])
    };
    octets.chunks_exact(3).flat_map(group).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.trim_start_matches("0x").as_bytes();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

#[test]
fn a_key_is_found_in_each_of_its_forms() {
    let key = from_hex("00112233445566778899aabbccddeeff");
    let forms = forms(&key);
    assert!(forms.contains(&b"00112233445566778899aabbccddeeff".to_vec()));
    assert!(
        forms.contains(&b"0, 17, 34, 51, 68, 85, 102, 119, 136, 153, 170, 187, 204, 221, 238, 255".to_vec())
    );
    assert!(forms.contains(&b"ABEiM0RVZneImaq7zN3u".to_vec()));
    assert_eq!(byte_strings(&[&[0x82, 0x01, 0x50][..], &key].concat()), [key]);
}
