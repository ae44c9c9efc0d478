//! Who may come in. A browser on the operator's own machine runs scripts of any site, and a name that such a site owns may
//! be made to lead here (DNS rebinding): what counts is by which name the console is called, from which page, and whether a
//! token is brought along.

use std::net::IpAddr;

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Method, Uri};

use crate::config::model::{Console, Psk};
use crate::config::secrets;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
/// No token is longer.
const MAX_TOKEN: usize = 1024;

/// Why a request is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is for a host that we are not known as.
    Host,
    /// It comes from a page of another site.
    Origin,
}

impl Refusal {
    /// What to say.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Host => {
                "the console is not known by this name; name it in daemon.console.hosts, or use an address\n"
            }
            Self::Origin => "pages of other sites may not use the console\n",
        }
    }
}

/// Whether a request may be answered at all.
pub fn admit(method: &Method, headers: &HeaderMap, settings: &Console) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|h| h.to_str().ok()?.parse::<Authority>().ok());
    let host = host
        .filter(|h| hosts.next().is_none() && called_so(h.host(), &settings.hosts))
        .ok_or(Refusal::Host)?;
    for origin in headers.get_all(ORIGIN) {
        let uri = origin.to_str().ok().and_then(|o| o.parse::<Uri>().ok());
        let same = |u: Uri| u.authority().is_some_and(|a| a.as_str().eq_ignore_ascii_case(host.as_str()));
        if !uri.is_some_and(same) {
            return Err(Refusal::Origin);
        }
    }
    // Browsers say it of their own; other programs need not. A link from elsewhere may lead here, but nothing more.
    let word = |name| headers.get(name).map(|v| v.as_bytes());
    match word(FETCH_SITE) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) if method == Method::GET && word(FETCH_MODE) == Some(b"navigate") => Ok(()),
        Some(_) => Err(Refusal::Origin),
    }
}

/// No site's name can be made to lead to an address that is written as one.
fn called_so(host: &str, names: &[String]) -> bool {
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    plain.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || names.iter().any(|name| host.eq_ignore_ascii_case(name))
}

/// What a request may do besides looking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Change things.
    Change,
    /// Nothing: it brought no token, or a wrong one.
    Look,
    /// Nothing, and nobody can: there is no token.
    NobodyChanges,
}

/// What the token of a request permits.
pub fn access(headers: &HeaderMap, token: Option<&Psk>) -> Access {
    let Some(token) = token else { return Access::NobodyChanges };
    let given = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()?.split_once(' '));
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let given = given.map(|(_, token)| token.trim()).filter(|t| t.len() <= MAX_TOKEN);
    // The comparison takes as long for every wrong token of the same length.
    match given.and_then(|t| secrets::psk(t.as_bytes()).ok()) {
        Some(key) if key.secret == *token.secret => Access::Change,
        _ => Access::Look,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cygnet_model::SecretBytes;

    use super::*;

    fn settings() -> Console {
        Console { listen: ([127, 0, 0, 1], 9181).into(), token: None, hosts: vec!["gw.example".into()] }
    }

    fn asked(method: &Method, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        admit(method, &map(headers), &settings())
    }

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let named = |n: &str| HeaderName::from_bytes(n.as_bytes()).unwrap();
        let mut map = HeaderMap::new();
        for (n, v) in headers {
            map.append(named(n), v.parse().unwrap());
        }
        map
    }

    #[test]
    fn only_addresses_and_known_names_lead_in() {
        for host in
            ["127.0.0.1:9181", "[::1]:9181", "localhost:9181", "LocalHost", "gw.example:9181", "192.0.2.1"]
        {
            assert_eq!(asked(&Method::GET, &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example:9181",
            "gw.example.evil.example",
            "127.0.0.1.evil.example",
            "",
            "a b",
            "localhost@evil",
        ] {
            assert_eq!(asked(&Method::GET, &[("host", host)]), Err(Refusal::Host), "{host}");
        }
        assert_eq!(asked(&Method::GET, &[]), Err(Refusal::Host));
        assert_eq!(asked(&Method::GET, &[("host", "localhost"), ("host", "localhost")]), Err(Refusal::Host));
    }

    #[test]
    fn pages_of_other_sites_stay_outside() {
        let host = ("host", "127.0.0.1:9181");
        for method in [Method::GET, Method::POST] {
            for origin in ["http://evil.example", "null", "http://127.0.0.1:80", "http://127.0.0.1", "x"] {
                assert_eq!(asked(&method, &[host, ("origin", origin)]), Err(Refusal::Origin), "{origin}");
            }
            assert_eq!(asked(&method, &[host, ("origin", "http://127.0.0.1:9181")]), Ok(()));
            let site = |word| ("sec-fetch-site", word);
            assert_eq!(asked(&method, &[host, site("same-origin")]), Ok(()));
            assert_eq!(asked(&method, &[host, site("cross-site")]), Err(Refusal::Origin));
            assert_eq!(asked(&method, &[host, site("same-site")]), Err(Refusal::Origin));
        }
        let link = [host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(asked(&Method::GET, &link), Ok(()));
        assert_eq!(asked(&Method::POST, &link), Err(Refusal::Origin));
    }

    #[test]
    fn only_the_token_permits_changes() {
        let secret = Arc::new(SecretBytes::copy_of(b"0123456789abcdef"));
        let token = Psk { secret, file: None, others: Vec::new() };
        let with = |v: &str| access(&map(&[("authorization", v)]), Some(&token));
        assert_eq!(with("Bearer 0123456789abcdef"), Access::Change);
        // RFC 9110 §11.1: the scheme's name has no case.
        assert_eq!(with("bearer 0123456789abcdef"), Access::Change);
        assert_eq!(with("Bearer 0x30313233343536373839616263646566"), Access::Change);
        for wrong in [
            "",
            "Bearer ",
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcde",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
        ] {
            assert_eq!(with(wrong), Access::Look, "{wrong}");
        }
        assert_eq!(access(&map(&[]), Some(&token)), Access::Look);
        assert_eq!(
            access(&map(&[("authorization", "Bearer 0123456789abcdef")]), None),
            Access::NobodyChanges
        );
    }
}
