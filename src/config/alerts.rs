//! `daemon.alerts`: who is told of events besides the journal.

use std::path::PathBuf;
use std::sync::Arc;

use cygnet_model::SecretBytes;

use super::decode::{Item, Spanned};
use super::error::{Wrong, quoted, wrong};
use super::fields;
use super::model::KeyFile;
use crate::observe::events::Kind;

/// Who is told of which events.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Alerts {
    /// Where events are posted to.
    pub webhook: Option<Webhook>,
    /// A program and its arguments; empty: none.
    pub command: Vec<String>,
    /// The events that are told; see [`Alerts::default_events`].
    pub events: Vec<Kind>,
}

/// Where events are posted to.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// An http or https URL.
    pub url: String,
    /// Signs what is posted; `None`: nothing does. Read anew with each configuration.
    pub secret: Option<Arc<SecretBytes>>,
    /// The file that it is in.
    pub secret_file: Option<KeyFile>,
}

impl PartialEq for Webhook {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url && self.secret_file == other.secret_file && self.secret == other.secret
    }
}

impl Eq for Webhook {}

impl Webhook {
    /// The address without what may be a key: scheme and host, and a word in the place of the rest.
    pub fn shown(&self) -> String {
        let mut parts = self.url.splitn(4, '/');
        let begin: Vec<&str> = parts.by_ref().take(3).collect();
        let rest = if parts.next().is_some_and(|rest| !rest.is_empty()) { "not-shown" } else { "" };
        format!("{}/{rest}", begin.join("/"))
    }
}

impl Alerts {
    /// What somebody should look at, and that it is over.
    pub fn default_events() -> Vec<Kind> {
        vec![
            Kind::TunnelUp,
            Kind::TunnelDown,
            Kind::PeerDead,
            Kind::TrafficSuspect,
            Kind::TrafficPasses,
            Kind::QualityDegraded,
            Kind::QualityRecovered,
            Kind::ConfigRefused,
            Kind::GuardRepaired,
            Kind::GuardObstructed,
        ]
    }

    /// Whether anybody is told.
    pub const fn is_wanted(&self) -> bool {
        self.webhook.is_some() || !self.command.is_empty()
    }
}

/// The same as it is written.
#[derive(Debug, Default)]
pub(super) struct RawAlerts {
    pub url: Option<Spanned<String>>,
    pub secret_file: Option<Spanned<PathBuf>>,
    pub command: Vec<String>,
    pub events: Vec<Kind>,
}

/// Words of a command, and octets of each.
const MAX_WORDS: usize = 64;
const MAX_WORD: usize = 4096;
const MAX_URL: usize = 2000;

/// Reads the section.
pub(super) fn read(item: &Item<'_>) -> RawAlerts {
    let Some(r) = item.map(&fields::ALERTS) else { return RawAlerts::default() };
    let mut out = RawAlerts { events: Alerts::default_events(), ..RawAlerts::default() };
    if let Some(w) = r.get("webhook").and_then(|i| i.map(&fields::WEBHOOK)) {
        out.url = w.get("url").and_then(|i| i.parse("a URL, as in https://example.org/hook", url));
        out.secret_file = w.get("secret_file").and_then(|i| {
            i.parse("the path of a file", |t| match t {
                "" => Err(wrong("not a path", "write the path of the file with the secret")),
                _ if t.contains('\0') => {
                    Err(wrong("not a path", "write the path of the file with the secret"))
                }
                _ => Ok(PathBuf::from(t)),
            })
        });
        if let Some(url) = out.url.as_ref().filter(|url| url.value.starts_with("http://")) {
            let host = url.value.trim_start_matches("http://");
            if !["127.", "localhost", "[::1]"].iter().any(|near| host.starts_with(near)) {
                let what = "events go over the network in clear text";
                if let Some(i) = w.get("url") {
                    i.warning(wrong(what, "write https:// unless the way there is protected"));
                }
            }
        }
    }
    if let Some(i) = r.get("command") {
        out.command = command(&i).unwrap_or_default();
    }
    if let Some(i) = r.get("events") {
        let words = fields::ALERT_EVENTS;
        let known = |entry: &Item<'_>| Kind::of_name(words.get(entry.word(words)?)?);
        let listed = i.list("events").unwrap_or_default();
        if listed.is_empty() {
            i.error(wrong(
                "no event is listed",
                "name events, or drop the key for those that somebody should look at",
            ));
        }
        out.events = listed.iter().filter_map(known).collect();
    }
    if out.url.is_none() && out.command.is_empty() && r.get("webhook").is_none() && r.get("command").is_none()
    {
        item.warning(wrong("nobody is told of anything", "add webhook: or command:"));
    }
    out
}

/// A program by its absolute path, and its arguments. No shell looks at them.
fn command(item: &Item<'_>) -> Option<Vec<String>> {
    let words = item.list("words, as in [/usr/local/bin/alert, --urgent]")?;
    let mut out = Vec::new();
    for (n, entry) in words.iter().enumerate() {
        let word = entry.text("a word")?;
        if word.contains('\0') || word.len() > MAX_WORD {
            entry.error(wrong("not a word of a command", format!("write at most {MAX_WORD} octets")));
            return None;
        }
        if n == 0 && !word.starts_with('/') {
            let fix = "begin with \"/\": no path is searched, and no shell looks at it";
            entry.error(wrong(format!("{} is not the path of a program", quoted(word)), fix));
            return None;
        }
        out.push(word.to_owned());
    }
    if out.is_empty() || out.len() > MAX_WORDS {
        item.error(wrong(
            format!("1 to {MAX_WORDS} words are needed"),
            "write the program and its arguments",
        ));
        return None;
    }
    Some(out)
}

/// What is wrong is told without the URL, which may be a secret.
fn url(text: &str) -> Result<String, Wrong> {
    let fix = "write http:// or https://, a host and a path, as in https://example.org/hook";
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err(wrong("this is not an http or https URL", fix));
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or("");
    if host.contains('@') {
        return Err(wrong("the URL holds a user's name or password", "sign by secret_file instead"));
    }
    let plain = text.chars().all(|c| c.is_ascii_graphic()) && text.len() <= MAX_URL;
    match ureq::http::Uri::try_from(text) {
        Ok(uri) if plain && uri.host().is_some_and(|host| !host.is_empty()) => Ok(text.to_owned()),
        _ => Err(wrong("this is not a URL", fix)),
    }
}
