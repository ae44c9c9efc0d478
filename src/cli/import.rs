//! `cygnet import`.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use nix::ifaddrs::getifaddrs;
use serde_json::json;
use zeroize::Zeroizing;

use super::export::write_private;
use super::output::{self, Out};
use super::{Exit, Failure, Outcome};
use crate::config::error::quoted_path;
use crate::import::{self, Dialect, Imported, Options, Side, Source};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet import /etc/swanctl/swanctl.conf >cygnet.yaml
  cygnet import /etc/ipsec.conf --secrets-dir /etc/cygnet/keys >/etc/cygnet/cygnet.yaml
  cygnet import ipsec.conf --here right --address 203.0.113.7
  cygnet import swanctl.conf --json | jq '.notes[] | select(.kind == \"left_out\")'

The configuration comes on stdout, and on stderr a note for each line that has no counterpart: FILE:LINE: left out,
changed, ignored or to do, and why. Keys are read and written only with --secrets-dir. Included files are not followed.
The exit code is 78 if the file cannot be parsed or no tunnel is left of it.")]
pub struct ImportArgs {
    /// A swanctl.conf or ipsec.conf
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How it is written; else found out
    #[arg(long, value_enum)]
    format: Option<Dialect>,
    /// Which end of an ipsec.conf this host is; else found out by its addresses
    #[arg(long, value_enum)]
    here: Option<Side>,
    /// The gateway's outer address or interface, where the file does not tell it
    #[arg(long, value_name = "IP|INTERFACE")]
    address: Option<String>,
    /// Write the pre-shared keys as files into this directory, which exists
    #[arg(long, value_name = "DIR")]
    secrets_dir: Option<PathBuf>,
    /// The ipsec.secrets of an ipsec.conf; else that beside it
    #[arg(long, value_name = "FILE", requires = "secrets_dir")]
    secrets: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub fn import(args: &ImportArgs, out: &mut Out) -> Outcome {
    let text = text_of(&args.file)?;
    let name = quoted_path(&args.file.to_string_lossy());
    let dialect = args.format.unwrap_or_else(|| Dialect::of(&text));
    let secrets = secrets(args, dialect)?;
    let secrets_dir = match &args.secrets_dir {
        Some(dir) => Some(directory(dir)?),
        None => None,
    };
    let options = Options {
        dialect: Some(dialect),
        here: args.here,
        addresses: addresses(),
        address: args.address.clone(),
        secrets_dir: secrets_dir.clone(),
    };
    let secrets = secrets.as_ref().map(|(name, text)| Source { name, text });
    let made = import::import(Source { name: &name, text: &text }, secrets, &options)
        .map_err(|e| Failure::new(Exit::Config, output::safe(&e.to_string()), ""))?;
    if let Some(dir) = &secrets_dir {
        // All or none.
        if let Some(there) = made.keys.iter().map(|k| Path::new(dir).join(&k.file)).find(|p| p.exists()) {
            let name = quoted_path(&there.to_string_lossy());
            let hint = "remove it, or name another directory: nothing is written over";
            return Err(Failure::new(Exit::Io, format!("{name} is there already"), hint));
        }
        for new in &made.keys {
            let mut line = Zeroizing::new(String::with_capacity(new.key.len() + 1));
            line.push_str(&new.key);
            line.push('\n');
            write_private(&Path::new(dir).join(&new.file), line.as_bytes())?;
        }
    }
    tell(args, &name, &made, out)?;
    if made.tunnels == 0 {
        let hint = "the notes say why for each connection";
        return Err(Failure::new(Exit::Config, format!("no tunnel is left of {name}"), hint));
    }
    Ok(Exit::Done)
}

fn tell(args: &ImportArgs, name: &str, made: &Imported, out: &mut Out) -> Result<(), Failure> {
    if args.json {
        out.json(&json!({
            "version": 1,
            "file": name,
            "tunnels": made.tunnels,
            "yaml": made.yaml,
            "notes": made.notes,
        }))?;
        return Ok(());
    }
    let mut stderr = std::io::stderr();
    for note in &made.notes {
        stderr.write_all(format!("{}\n", super::output::safe(&note.one_line())).as_bytes())?;
    }
    if made.tunnels > 0 {
        out.write_all(made.yaml.as_bytes())?;
    }
    Ok(())
}

/// A file's text; it may hold keys.
fn text_of(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let name = quoted_path(&path.to_string_lossy());
    let fail = |e: std::io::Error| {
        let code = match e.kind() {
            std::io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Config,
        };
        Failure::new(code, format!("cannot read {name}: {e}"), "name a readable file")
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    let room = import::MAX_TEXT + 1;
    // All room at once: a growing text would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(room as u64).read_to_end(&mut bytes).map_err(fail)?;
    // Comments of old files are in old encodings; what matters is ASCII.
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| if b.is_ascii() { char::from(*b) } else { '?' }).collect(),
    };
    Ok(Zeroizing::new(text))
}

fn secrets(args: &ImportArgs, dialect: Dialect) -> Result<Option<(String, Zeroizing<String>)>, Failure> {
    if args.secrets_dir.is_none() || dialect != Dialect::Ipsec {
        return Ok(None);
    }
    let path = match &args.secrets {
        Some(path) => path.clone(),
        None => args.file.with_file_name("ipsec.secrets"),
    };
    if args.secrets.is_none() && !path.exists() {
        return Ok(None);
    }
    Ok(Some((quoted_path(&path.to_string_lossy()), text_of(&path)?)))
}

/// The directory as `psk_file` shall name it.
fn directory(dir: &Path) -> Result<String, Failure> {
    let name = quoted_path(&dir.to_string_lossy());
    let whole = std::path::absolute(dir)
        .map_err(|e| Failure::new(Exit::Io, format!("cannot find {name}: {e}"), ""))?;
    if !whole.is_dir() {
        let hint = format!("make it: mkdir -m 700 {name}");
        return Err(Failure::new(Exit::Usage, format!("{name} is no directory"), hint));
    }
    whole.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::new(Exit::Usage, format!("the name {name} is not UTF-8"), "name another directory")
    })
}

fn addresses() -> Vec<IpAddr> {
    let all = getifaddrs().into_iter().flatten().filter_map(|a| {
        let address = a.address?;
        let v4 = address.as_sockaddr_in().map(|s| IpAddr::V4(s.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|s| IpAddr::V6(s.ip())))
    });
    all.collect()
}
