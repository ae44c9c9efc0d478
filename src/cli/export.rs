//! `cygnet export-peer`.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{self, Out};
use super::{CONFIG, Exit, Failure, Outcome, names};
use crate::config::{self, Secrets, Severity};
use crate::export::{self, Format, Options};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet export-peer a-b --format swanctl            the other end's swanctl.conf, with a place for the key
  cygnet export-peer a-b --format cisco --with-psk -o a-b.ios
  cygnet export-peer a-b --format cygnet --config site.yaml >their.yaml
  cygnet export-peer a-b --format fortigate --address 203.0.113.7   we are behind a NAT of that address

No daemon is needed. Without --with-psk the key is not read, and a place for it is written. What the peer's product cannot
say is noted on stderr; if nothing is left that both ends know, the exit code is 78.")]
pub struct ExportArgs {
    /// Name of the tunnel
    #[arg(add = names::configured())]
    tunnel: String,
    /// Whose words to use
    #[arg(short, long, value_enum)]
    format: Format,
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Write the pre-shared key itself
    #[arg(long)]
    with_psk: bool,
    /// Write into a file of mode 0600, which must not exist
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Our address as the peer sees it; else the gateway's
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// The peer's own address, where it is behind a NAT; else the customer gateway's
    #[arg(long, value_name = "IP")]
    peer_address: Option<IpAddr>,
}

pub fn export_peer(args: &ExportArgs, out: &mut Out) -> Outcome {
    let secrets = if args.with_psk { Secrets::Read } else { Secrets::Skip };
    let checked = config::check(&args.config, secrets, None);
    let Some(config) = checked.preview else {
        let mut stderr = std::io::stderr();
        for p in checked.problems.iter().filter(|p| p.severity == Severity::Error) {
            stderr.write_all(format!("{}\n", p.one_line(&checked.file)).as_bytes())?;
        }
        let message = format!("{} has errors", checked.file);
        return Err(Failure::new(Exit::Config, message, "cygnet check shows where"));
    };
    if config.tunnel(&args.tunnel).is_none() {
        let names: Vec<&str> = config.tunnels.iter().map(|t| t.name.as_str()).take(20).collect();
        let message = format!("{} has no tunnel {}", checked.file, config::error::quoted(&args.tunnel));
        let near = config::closest(&args.tunnel, config.tunnels.iter().map(|t| t.name.as_str()));
        let hint = match near {
            _ if names.is_empty() => "it has none at all".into(),
            Some(near) => format!("did you mean \"{near}\"? it has {}", names.join(", ")),
            None => format!("it has {}", names.join(", ")),
        };
        return Err(Failure::new(Exit::Usage, message, hint));
    }
    let options = Options { with_psk: args.with_psk, address: args.address, peer_address: args.peer_address };
    let made = export::export(&config, &args.tunnel, args.format, &options)
        .map_err(|e| Failure::new(Exit::Config, format!("tunnel {}: {e}", args.tunnel), e.hint()))?;
    for note in &made.notes {
        std::io::stderr().write_all(format!("note: {}\n", output::safe(note)).as_bytes())?;
    }
    match &args.output {
        Some(path) => write_private(path, made.text.as_bytes())?,
        None => out.write_all(made.text.as_bytes())?,
    }
    Ok(Exit::Done)
}

/// Writes a new file that only its owner may read.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content));
    written.map_err(|e| {
        let name = config::error::quoted(&path.to_string_lossy());
        let hint = match e.kind() {
            std::io::ErrorKind::AlreadyExists => "remove it, or name another one: nothing is written over",
            _ => "",
        };
        Failure::new(Exit::Io, format!("cannot write {name}: {e}"), hint)
    })
}
