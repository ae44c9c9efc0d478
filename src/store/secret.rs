//! Files that only we may have read or written, and the host's secret, which is one of them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::geteuid;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::seal::Refused;

/// Opens a file of ours for reading.
pub(super) fn open_own(path: &Path) -> Result<File, Refused> {
    let unreadable = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Refused::Absent,
        _ => Refused::Unreadable(e.to_string()),
    };
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let facts = file.metadata().map_err(unreadable)?;
    if !facts.is_file() || facts.uid() != geteuid().as_raw() || facts.mode() & 0o077 != 0 {
        return Err(Refused::Permissions);
    }
    Ok(file)
}

/// Creates a file that only we may read or write, in place of what is there.
pub(super) fn create_own(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    File::options().read(true).append(true).create_new(true).mode(0o600).open(path)
}

/// The secret that seals what is kept, 32 random octets in `seal.key` of the state directory; made if it is not there
/// or not fit for use.
///
/// # Errors
/// If it cannot be kept; or if there are no random numbers.
pub fn secret(state_dir: &Path) -> io::Result<Zeroizing<[u8; 32]>> {
    let mut secret = Zeroizing::new([0; 32]);
    if let Ok(mut file) = open_own(&state_dir.join("seal.key"))
        && file.metadata()?.len() == 32
        && file.read_exact(secret.as_mut()).is_ok()
    {
        return Ok(secret);
    }
    new_secret(state_dir)
}

/// Another secret in its place: what was sealed before is of no use from here on. It need not outlive the host's boot, as what
/// it seals does not.
///
/// # Errors
/// As [`secret`]; then the old one stays.
pub fn new_secret(state_dir: &Path) -> io::Result<Zeroizing<[u8; 32]>> {
    let path = state_dir.join("seal.key");
    let mut secret = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(secret.as_mut()).map_err(|_| io::Error::other("there are no random numbers"))?;
    fs::create_dir_all(state_dir)?;
    let beside = path.with_extension("tmp");
    let written = create_own(&beside)
        .and_then(|mut file| file.write_all(secret.as_ref()))
        .and_then(|()| fs::rename(&beside, &path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map(|()| secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_secret_stays_and_one_that_others_may_read_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = secret(dir.path()).unwrap();
        assert_eq!(*secret(dir.path()).unwrap(), *first);
        let renewed = new_secret(dir.path()).unwrap();
        assert_ne!(*renewed, *first);
        assert_eq!(*secret(dir.path()).unwrap(), *renewed);
        let path = dir.path().join("seal.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let second = secret(dir.path()).unwrap();
        assert_ne!(*second, *renewed);
        fs::write(&path, b"short").unwrap();
        assert_ne!(*secret(dir.path()).unwrap(), *second);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
