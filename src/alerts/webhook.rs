//! Posts events by HTTP or HTTPS, signed with HMAC-SHA256 (RFC 2104), again and again while the other end is not there.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use cygnet_model::SecretBytes;
use ring::hmac;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::Work;
use crate::config::model::Webhook;
use crate::privileges;

/// Waits between attempts; after the last one the event is given up. Some minutes, as a restart of the other end takes.
const WAITS: [Duration; 7] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
];
/// One attempt takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Certificate authorities of this host, as Debian, and as Fedora have them.
const AUTHORITIES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
const USER_AGENT: &str = concat!("cygnet/", env!("CARGO_PKG_VERSION"));

/// How an attempt ended.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Attempt {
    Delivered,
    /// It may go better later.
    Later(String),
    /// It would be refused again.
    Refused(String),
}

pub(super) fn start(hook: Webhook, work: Work) -> io::Result<()> {
    let body = move || {
        privileges::give_up_all();
        run(&hook, &work);
    };
    thread::Builder::new().name("alert-webhook".to_owned()).spawn(body).map(|_| ())
}

fn run(hook: &Webhook, work: &Work) {
    let agent = agent();
    let mut is_silent = false;
    while let Some(body) = work.next() {
        if is_silent && work.is_over() {
            work.counts.dropped.fetch_add(1, Relaxed);
            continue;
        }
        let mut waits = WAITS.iter();
        let result = loop {
            let attempt = post(&agent, hook, &body);
            match (&attempt, waits.next()) {
                (Attempt::Later(_), Some(wait)) if !work.is_over() => pause(*wait, work),
                _ => break attempt,
            }
        };
        is_silent = matches!(result, Attempt::Later(_));
        work.counts.count(result == Attempt::Delivered);
        if let Attempt::Later(why) | Attempt::Refused(why) = result {
            tracing::warn!(
                url = hook.shown(),
                "an event could not be posted to the webhook and is given up: {why}"
            );
        }
    }
}

fn agent() -> Agent {
    let mut config = Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .user_agent(USER_AGENT);
    if let Some(roots) = authorities() {
        config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
    }
    config.build().into()
}

/// Whom this host trusts; `None` where it does not say, and the list that came with the program holds.
fn authorities() -> Option<RootCerts> {
    let pem = AUTHORITIES.iter().find_map(|path| std::fs::read(path).ok())?;
    let certificate = |item| match item {
        Ok(PemItem::Certificate(c)) => Some(c),
        _ => None,
    };
    let all: Vec<Certificate<'static>> = parse_pem(&pem).filter_map(certificate).collect();
    (!all.is_empty()).then(|| RootCerts::from(all))
}

fn post(agent: &Agent, hook: &Webhook, body: &str) -> Attempt {
    let mut request = agent.post(&hook.url).content_type("application/json");
    if let Some(secret) = &hook.secret {
        request = request.header("X-Cygnet-Signature", signature(secret, body.as_bytes()));
    }
    match request.send(body) {
        Ok(response) => {
            let status = response.status();
            let words = format!("the other end answered {status}");
            match status.as_u16() {
                200..=299 => Attempt::Delivered,
                // Timeout, too early, too many: RFC 9110 §15.5.9, RFC 8470 §5.2, RFC 6585 §4.
                408 | 425 | 429 | 500.. => Attempt::Later(words),
                _ => Attempt::Refused(words),
            }
        }
        Err(e) => Attempt::Later(crate::observe::one_line(&e.to_string())),
    }
}

/// The value of `X-Cygnet-Signature`: `sha256=` and the HMAC-SHA256 of what is posted, in hexadecimal digits.
pub fn signature(secret: &SecretBytes, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
    let tag = hmac::sign(&key, body);
    tag.as_ref().iter().fold("sha256=".to_owned(), |text, octet| text + &format!("{octet:02x}"))
}

/// Waits, but not beyond the end.
fn pause(wait: Duration, work: &Work) {
    let until = Instant::now() + wait;
    while Instant::now() < until && !work.is_over() {
        thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231 §4.2 and §4.3.
    #[test]
    fn the_signature_is_hmac_sha256() {
        let of = |key: &[u8], data: &[u8]| signature(&SecretBytes::copy_of(key), data);
        assert_eq!(
            of(&[0x0B; 20], b"Hi There"),
            "sha256=b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(
            of(b"Jefe", b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
