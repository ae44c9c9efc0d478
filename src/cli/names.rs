//! Completion of names of tunnels and gateways: the daemon is asked, quickly, and where it is away nothing is said. The
//! scripts that shells load come from here, too.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use super::{CONFIG, SOCKET};
use crate::config::{self, Secrets};
use crate::control::client::Client;
use crate::control::{Request, Response};

/// By which the shell's script says that it wants completions.
const VARIABLE: &str = "CYGNET_COMPLETE";
/// Somebody waits with a finger on a key.
const PATIENCE: Duration = Duration::from_millis(500);
/// More would not help to choose.
const MOST: usize = 1000;

/// Which names are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Tunnels,
    Gateways,
    Both,
}

/// Tunnels of the daemon.
pub fn tunnels() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| of_daemon(Of::Tunnels, word))
}

/// Gateways of the daemon.
pub fn gateways() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| of_daemon(Of::Gateways, word))
}

/// Both.
pub fn all() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| of_daemon(Of::Both, word))
}

/// Tunnels of the configuration, where no daemon is needed.
pub fn configured() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        let file = option("--config").unwrap_or_else(|| CONFIG.into());
        let config = config::check(&file, Secrets::Skip, None).preview;
        let tunnels = config.into_iter().flat_map(|c| c.tunnels);
        candidates(word, tunnels.map(|t| (t.name, "tunnel")))
    })
}

/// Completes a command line if a shell's script asks for it; then there is nothing else to do.
pub fn complete(command: fn() -> clap::Command) -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    let asked = CompleteEnv::with_factory(command).var(VARIABLE);
    // What cannot be completed is not: a message in the midst of somebody's line would be worse.
    let here = std::env::current_dir().ok();
    asked.try_complete(std::env::args_os(), here.as_deref()).unwrap_or(true)
}

/// The script of a shell, by its name.
///
/// # Errors
/// If there is none for this shell.
pub fn script(shell: &str) -> io::Result<Vec<u8>> {
    let shells = Shells::builtins();
    let unknown = || io::Error::new(io::ErrorKind::Unsupported, "there are no completions for this shell");
    let completer = shells.completer(shell).ok_or_else(unknown)?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "cygnet", "cygnet", "cygnet", &mut script)?;
    if shell == "zsh" {
        // A file of a directory in fpath is the function itself when it is called for the first time.
        script.extend_from_slice(
            b"\nif [[ ${funcstack[1]-} == _cygnet ]]; then _clap_dynamic_completer_cygnet \"$@\"; fi\n",
        );
    }
    Ok(script)
}

fn of_daemon(of: Of, word: &OsStr) -> Vec<CompletionCandidate> {
    let socket = option("--control").unwrap_or_else(|| SOCKET.into());
    let names = asked(&socket).unwrap_or_default();
    let tunnels = names.tunnels.into_iter().map(|name| (name, "tunnel")).filter(|_| of != Of::Gateways);
    let gateways = names.gateways.into_iter().map(|name| (name, "gateway")).filter(|_| of != Of::Tunnels);
    candidates(word, gateways.chain(tunnels))
}

#[derive(Default)]
struct Names {
    tunnels: Vec<String>,
    gateways: Vec<String>,
}

fn asked(socket: &Path) -> Option<Names> {
    let mut client = Client::connect_within(socket, Some(PATIENCE)).ok()?;
    match client.ask(&Request::Names {}).ok()? {
        Response::Names { tunnels, gateways } => Some(Names { tunnels, gateways }),
        _ => None,
    }
}

fn candidates(word: &OsStr, names: impl Iterator<Item = (String, &'static str)>) -> Vec<CompletionCandidate> {
    let begun = word.to_string_lossy();
    // A name goes into a shell's command line.
    let fits = |name: &str| name.starts_with(&*begun) && !name.chars().any(|c| c.is_control() || c == ' ');
    let of_kind =
        |(name, kind): (String, &'static str)| CompletionCandidate::new(name).help(Some(kind.into()));
    names.filter(|(name, _)| fits(name)).take(MOST).map(of_kind).collect()
}

/// The value that an option has in the line that is being completed.
fn option(name: &str) -> Option<PathBuf> {
    value_of(name, std::env::args_os())
}

fn value_of(name: &str, mut line: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let with_sign = format!("{name}=");
    while let Some(word) = line.next() {
        if word == *name {
            return line.next().map(PathBuf::from);
        }
        if let Some(value) = word.to_str().and_then(|w| w.strip_prefix(&with_sign)) {
            return Some(value.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_of_the_line_is_the_one_that_is_asked() {
        let of = |line: &str| value_of("--control", line.split(' ').map(OsString::from));
        assert_eq!(of("cygnet --control /a up x"), Some("/a".into()));
        assert_eq!(of("cygnet up --control=/b x"), Some("/b".into()));
        assert_eq!(of("cygnet up x"), None);
        assert_eq!(of("cygnet up x --control"), None);
    }

    #[test]
    fn what_a_shell_would_take_apart_is_not_offered() {
        let names = ["a-b", "a b", "a\nb", "b-a"].map(|n| (n.to_owned(), "tunnel"));
        let offered = candidates(OsStr::new("a"), names.into_iter());
        let offered: Vec<&OsStr> = offered.iter().map(CompletionCandidate::get_value).collect();
        assert_eq!(offered, ["a-b"]);
    }

    #[test]
    fn every_shell_of_the_help_has_a_script() {
        for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
            let script = String::from_utf8(script(&shell.to_string()).unwrap()).unwrap();
            assert!(script.contains(VARIABLE), "{script}");
        }
    }
}
