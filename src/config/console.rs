//! `daemon.console`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::decode::{Item, Spanned};
use super::error::{Sink, Wrong, quoted, wrong};
use super::fields;
use super::model::{Auth, Console};
use super::raw::{RawAuth, key_path, listen};

/// Names that the console may be called by.
const MAX_HOSTS: usize = 16;
/// The longest name of a host (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;

/// The section with its token unread.
#[derive(Debug)]
pub struct RawConsole {
    listen: SocketAddr,
    token_file: Option<Spanned<PathBuf>>,
    hosts: Vec<String>,
}

/// Reads the section; `None` if there shall be no console, or nothing readable says so.
pub fn read(item: &Item<'_>, sink: &Sink) -> Option<RawConsole> {
    let r = item.map(&fields::CONSOLE)?;
    let token_file = r.get("token_file").and_then(|i| key_path(&i));
    let hosts = r.get("hosts").and_then(|i| hosts(&i)).unwrap_or_default();
    let listen = listen(&r, sink).flatten()?;
    Some(RawConsole { listen, token_file, hosts })
}

fn hosts(item: &Item<'_>) -> Option<Vec<String>> {
    let all = item.list("names")?;
    if all.len() > MAX_HOSTS {
        item.error(wrong(format!("more than {MAX_HOSTS} names"), "name those that browsers use"));
        return None;
    }
    Some(all.iter().filter_map(|i| Some(i.parse("a host's name", host)?.value)).collect())
}

/// A name as it stands in a URL, in lower case.
fn host(text: &str) -> Result<String, Wrong> {
    let label =
        |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if text.len() <= MAX_HOST && text.split('.').all(label) {
        return Ok(text.to_ascii_lowercase());
    }
    let fix = "write the name alone, as in gw.example, without https:// and without a port";
    Err(wrong(format!("{} is not the name of a host", quoted(text)), fix))
}

impl RawConsole {
    /// The section with its token; `None` if that cannot be used, which is noted.
    pub fn resolve(self, read: &mut dyn FnMut(&RawAuth) -> Option<Auth>) -> Option<Console> {
        let token = match self.token_file {
            None => None,
            Some(file) => {
                let Auth::Psk(token) = read(&RawAuth::Files(file, Vec::new()))?;
                Some(token)
            }
        };
        Some(Console { listen: self.listen, token, hosts: self.hosts })
    }
}
