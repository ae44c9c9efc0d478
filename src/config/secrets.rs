//! Pre-shared keys: the only file that reads them. What comes out is wiped when dropped and has no printable form; no
//! message here quotes a single character of a key.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use cygnet_model::SecretBytes;
use zeroize::Zeroizing;

use super::error::{Wrong, quoted, wrong};

/// A shorter key is refused: it can be searched off-line after one active attack.
pub const MIN_OCTETS: usize = 16;
/// A longer file is refused: it is not a key.
const MAX_FILE: u64 = 64 * 1024;
/// Below this many bits of estimated entropy a warning is given.
const WEAK_BITS: f64 = 96.0;

/// Who owns a file and who may read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
}

impl Facts {
    /// Of an open file, so that nobody can swap it between look and use.
    pub fn of(meta: &fs::Metadata) -> Self {
        Self { mode: meta.mode() & 0o7777, uid: meta.uid() }
    }

    /// Whether a secret may stand in such a file. `file` and `name` are for the message.
    pub fn guard(self, subject: &str, name: &str) -> Result<(), Wrong> {
        let euid = nix::unistd::geteuid().as_raw();
        if self.mode & 0o077 != 0 {
            return Err(wrong(
                format!("{subject} can be accessed by others than its owner (mode {:04o})", self.mode),
                format!("run: chmod 600 {name}"),
            ));
        }
        if self.uid != 0 && self.uid != euid {
            return Err(wrong(
                format!("{subject} belongs to another user (uid {})", self.uid),
                format!("run: chown root {name}"),
            ));
        }
        Ok(())
    }
}

/// A key and, if it looks guessable, why.
pub struct Key {
    /// The decoded octets.
    pub secret: SecretBytes,
    /// What to warn about.
    pub weak: Option<Wrong>,
}

/// Why there is no key.
pub enum Refusal {
    /// It is unusable.
    Wrong(Wrong),
    /// This user may not read the file.
    Denied,
}

/// Whether the name of a file could be the key itself, put where a file belongs.
pub fn could_be_key(name: &str) -> bool {
    let coded = name.starts_with("0x") || name.starts_with("0s");
    coded || (name.len() >= MIN_OCTETS && !name.starts_with('/') && !name.contains('.'))
}

/// Reads a key from its file at `path`, for which `given` stands in the configuration.
pub fn read_psk(path: &Path, given: &str) -> Result<Key, Refusal> {
    psk_file(&read_file(path, given)?).map_err(Refusal::Wrong)
}

/// The fewest octets of a secret that signs.
const MIN_SIGNING: usize = 16;

/// Reads a secret that signs what is posted; a newline at its end is not part of it.
pub fn read_signing(path: &Path, given: &str) -> Result<SecretBytes, Refusal> {
    let bytes = read_file(path, given)?;
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let secret = text.strip_suffix(b"\r").unwrap_or(text);
    if secret.len() < MIN_SIGNING {
        let what = format!("the secret has {} octets, which is too short", secret.len());
        return Err(Refusal::Wrong(wrong(
            what,
            format!("use at least {MIN_SIGNING}; make one with: cygnet psk"),
        )));
    }
    Ok(SecretBytes::copy_of(secret))
}

fn read_file(path: &Path, given: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let name = quoted(&path.to_string_lossy());
    let name = name.trim_matches('"');
    // O_NONBLOCK: opening a FIFO must not hang.
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(Refusal::Denied),
        Err(_) if could_be_key(given) => {
            let what = "there is no readable file of that name, which is not shown because it could be the key itself";
            let fix = "psk_file names a file with the key; a key of its own stands behind psk";
            return Err(Refusal::Wrong(wrong(what, fix)));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let fix = format!("make one with: (umask 077; cygnet psk > {name})");
            return Err(Refusal::Wrong(wrong(format!("there is no file {name}"), fix)));
        }
        Err(e) => {
            return Err(Refusal::Wrong(wrong(format!("cannot read {name}: {e}"), "name a readable file")));
        }
    };
    read_guarded(file, name).map_err(Refusal::Wrong)
}

/// Decodes and judges the content of a key's file.
pub fn psk_file(bytes: &[u8]) -> Result<Key, Wrong> {
    // The newline that every editor appends is not part of the key.
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    psk(text.strip_suffix(b"\r").unwrap_or(text))
}

fn read_guarded(file: File, name: &str) -> Result<Zeroizing<Vec<u8>>, Wrong> {
    let cannot = |e: io::Error| wrong(format!("cannot read {name}: {e}"), "name a readable file");
    let meta = file.metadata().map_err(cannot)?;
    if !meta.is_file() {
        return Err(wrong(format!("{name} is not a regular file"), "name a file with the key"));
    }
    Facts::of(&meta).guard(name, name)?;
    if meta.len() > MAX_FILE {
        return Err(wrong(format!("{name} is larger than 64 KiB"), "name a file with nothing but the key"));
    }
    // All room at once: a growing vector would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

/// Decodes and judges a key: `0x` and hexadecimal digits, `0s` and base64, or the text itself.
pub fn psk(text: &[u8]) -> Result<Key, Wrong> {
    let advice = "make a strong one with: cygnet psk";
    if text.is_empty() {
        return Err(wrong("the pre-shared key is empty", advice));
    }
    let (octets, coded) = if let Some(hex) = text.strip_prefix(b"0x") {
        let octets = from_hex(hex).ok_or_else(|| {
            wrong(
                "what follows 0x is not an even number of hexadecimal digits",
                "write two digits for each octet",
            )
        })?;
        (octets, true)
    } else if let Some(b64) = text.strip_prefix(b"0s") {
        let octets = from_base64(b64).ok_or_else(|| {
            wrong("what follows 0s is not base64", "write base64 with its padding (RFC 4648 §4)")
        })?;
        (octets, true)
    } else {
        (Zeroizing::new(text.to_vec()), false)
    };
    if octets.len() < MIN_OCTETS {
        let what = format!("the pre-shared key has {} octets, which is too short", octets.len());
        return Err(wrong(what, format!("use at least {MIN_OCTETS}; {advice}")));
    }
    let bits = if coded { octet_bits(&octets) } else { text_bits(&octets) };
    let weak = (bits < WEAK_BITS).then(|| {
        let why = format!("the pre-shared key is guessable (about {} bits by its looks)", bits.round());
        wrong(why, format!("whoever makes one attempt to connect can search it off-line; {advice}"))
    });
    let weak = weak.or_else(|| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_whitespace);
        (!coded && (edge(octets.first()) || edge(octets.last()))).then(|| {
            wrong(
                "the pre-shared key begins or ends with white space, which counts",
                "drop it if it is not meant",
            )
        })
    });
    Ok(Key { secret: SecretBytes::copy_of(&octets), weak })
}

/// Bits by the looks of random octets: eight for each, unless few different ones occur.
fn octet_bits(octets: &[u8]) -> f64 {
    let mut seen = [false; 256];
    octets.iter().for_each(|b| seen[usize::from(*b)] = true);
    let different = seen.iter().filter(|s| **s).count();
    (octets.len() as f64 * 8.0).min(different as f64 * 10.0)
}

/// Bits by the looks of text: the size of the alphabet for each character, but little for what goes on in a row
/// (`aaa`, `abc`, `321`), for words (five letters or more of one case) and for repetitions.
fn text_bits(text: &[u8]) -> f64 {
    let class = |b: u8| match b {
        b'a'..=b'z' => 0,
        b'A'..=b'Z' => 1,
        b'0'..=b'9' => 2,
        _ => 3,
    };
    let mut used = [false; 4];
    text.iter().for_each(|b| used[class(*b)] = true);
    let hex = text.iter().all(u8::is_ascii_hexdigit);
    let pool: f64 =
        if hex { 16.0 } else { (0..4).filter(|n| used[*n]).map(|n| [26.0, 26.0, 10.0, 33.0][n]).sum() };
    let full = f64::log2(pool);
    let mut bits = 0.0;
    let mut word = 0usize;
    for (n, b) in text.iter().enumerate() {
        let previous = n.checked_sub(1).and_then(|p| text.get(p)).copied();
        word = match previous {
            Some(p) if class(p) == class(*b) && class(*b) < 2 => word + 1,
            _ => 1,
        };
        let in_row = previous.is_some_and(|p| b.abs_diff(p) <= 1);
        // What stood there before, at the same distance three times in a row, is a repetition.
        let repeated = n >= 3
            && (1..=n - 2)
                .any(|d| (0..3).all(|k| n.checked_sub(k + d).and_then(|i| text.get(i)) == text.get(n - k)));
        bits += if in_row || repeated {
            1.0
        } else if word >= 5 && !hex {
            1.5
        } else {
            full
        };
        // The fifth letter makes the first four a word.
        if word == 5 && !hex {
            bits -= 3.0 * (full - 1.5);
        }
    }
    bits.max(0.0)
}

fn from_hex(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |b: u8| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for pair in text.chunks(2) {
        let &[high, low] = pair else { return None };
        out.push(digit(high)? << 4 | digit(low)?);
    }
    (!out.is_empty()).then_some(out)
}

fn from_base64(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(u32::from(b - b'A')),
        b'a'..=b'z' => Some(u32::from(b - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(b - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let padding = text.iter().rev().take_while(|b| **b == b'=').count();
    if text.is_empty() || !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3));
    for quad in text.get(..text.len() - padding)?.chunks(4) {
        let mut word = 0u32;
        for b in quad {
            word = word << 6 | digit(*b)?;
        }
        word <<= 6 * (4 - quad.len());
        let [_, a, b, c] = word.to_be_bytes();
        out.extend_from_slice([a, b, c].get(..quad.len().checked_sub(1)?)?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(text: &str) -> Key {
        psk(text.as_bytes()).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// T48.
    #[test]
    fn short_keys_are_refused_and_guessable_ones_noted() {
        for bad in
            ["", "short", "123456789012345", "0x00112233", "0xzz", "0x123", "0s!!!!", "0sAAA", "0x", "0s"]
        {
            assert!(psk(bad.as_bytes()).is_err(), "{bad}");
        }
        for weak in [
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "correct horse battery staple",
            "passwordpasswordpassword",
            "0123456789abcdef0123456789abcdef",
            "Sommer2024!Sommer2024!",
            "0x00000000000000000000000000000000",
        ] {
            assert!(key(weak).weak.is_some(), "{weak}");
        }
        for good in [
            "pL7v0y2QxNf8sKd3RwZtB5",
            "mJq8-Zx0_r4TyuW2.bNc6Hs1",
            "0x8f3a1c5e7b9d2046f1e3a5c7d9b80624",
            "0sNTcxOGY4YTI5OWM0ZDFlMGI3NjM=",
            "7c1f0e9ab3d5824617c08e5fd92ab46e",
            "kV3xZp9Qw2Ls7Tn4Yb8Rf1Hd6Gm0Jc5",
        ] {
            assert!(key(good).weak.is_none(), "{good}: {}", text_bits(good.as_bytes()));
        }
    }

    #[test]
    fn coded_forms_decode() {
        assert_eq!(key("0x000102030405060708090A0b0c0d0e0f").secret.expose(), (0..16).collect::<Vec<u8>>());
        assert_eq!(key("0sAAECAwQFBgcICQoLDA0ODw==").secret.expose(), (0..16).collect::<Vec<u8>>());
        let long = "x9".repeat(40);
        assert_eq!(key(&long).secret.expose(), long.as_bytes());
    }

    #[test]
    fn files_must_belong_to_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.psk");
        File::create(&path).unwrap().write_all(b"pL7v0y2QxNf8sKd3RwZtB5\n").unwrap();
        let read = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            read_psk(&path, "a.psk")
        };
        for mode in [0o644, 0o640, 0o604, 0o660, 0o602] {
            let Err(Refusal::Wrong(w)) = read(mode) else { panic!("{mode:o} was accepted") };
            assert!(w.fix.contains("chmod 600") && !w.what.contains("pL7v"));
        }
        let Ok(k) = read(0o600) else { panic!() };
        assert_eq!(k.secret.expose(), b"pL7v0y2QxNf8sKd3RwZtB5");
        assert!(matches!(read_psk(&dir.path().join("none"), "none"), Err(Refusal::Wrong(_))));
        assert!(matches!(read_psk(dir.path(), "dir"), Err(Refusal::Wrong(_))));
    }
}
