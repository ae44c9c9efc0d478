//! `daemon.console`.

use std::net::{IpAddr, SocketAddr};
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
    listen: Spanned<SocketAddr>,
    token_file: Option<Spanned<PathBuf>>,
    hosts: Vec<String>,
}

/// Reads the section; `None` if there shall be no console, or nothing readable says so.
pub fn read(item: &Item<'_>, sink: &Sink) -> Option<RawConsole> {
    let r = item.map(&fields::CONSOLE)?;
    let token_file = r.get("token_file").and_then(|i| key_path(&i));
    let hosts = r.get("hosts").and_then(|i| hosts(&i)).unwrap_or_default();
    let at = r.get("listen")?.at();
    let listen = Spanned { value: listen(&r, sink).flatten()?, at };
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

/// Whether only one of two listeners can have its address.
fn is_one_port(a: SocketAddr, b: SocketAddr) -> bool {
    // That of IPv6 takes what comes by IPv4 as well.
    let takes = |a: IpAddr, b: IpAddr| a.is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    let (ip, other) = (a.ip(), b.ip());
    a.port() == b.port() && a.port() != 0 && (ip == other || takes(ip, other) || takes(other, ip))
}

impl RawConsole {
    /// Notes an error if the exporter has the same address and port.
    pub fn check(&self, metrics: Option<SocketAddr>, sink: &Sink) {
        if let Some(taken) = metrics.filter(|metrics| is_one_port(*metrics, self.listen.value)) {
            let what = format!("{} is where daemon.metrics listens ({taken})", self.listen.value);
            sink.error(&self.listen.at, wrong(what, "write another port, as in 127.0.0.1:9181"));
        }
    }

    /// The section with its token; `None` if that cannot be used, which is noted.
    pub fn resolve(self, read: &mut dyn FnMut(&RawAuth) -> Option<Auth>) -> Option<Console> {
        let token = match self.token_file {
            None => None,
            Some(file) => {
                let Auth::Psk(token) = read(&RawAuth::Token(file))?;
                Some(token)
            }
        };
        Some(Console { listen: self.listen.value, token, hosts: self.hosts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_taken_by_all_addresses_that_include_its_own() {
        let one = |a: &str, b: &str| {
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(is_one_port(a, b), is_one_port(b, a));
            is_one_port(a, b)
        };
        assert!(one("127.0.0.1:80", "127.0.0.1:80") && one("0.0.0.0:80", "127.0.0.1:80"));
        assert!(one("[::]:80", "[::1]:80") && one("[::]:80", "127.0.0.1:80"));
        assert!(!one("127.0.0.1:80", "127.0.0.1:81") && !one("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!one("0.0.0.0:80", "[::1]:80") && !one("127.0.0.1:0", "127.0.0.1:0"));
    }
}
