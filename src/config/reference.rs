//! The reference of the configuration in Markdown: every key from [`super::fields`], and what [`super::diff`] says that changing it
//! costs.

use std::fmt::Write;

use super::diff::{self, Object};
use super::fields::{Kind, ROOT, Section};

const BEGINNING: &str = "# Keys of the configuration

Made from the program itself by `cygnet reference`; do not edit. How the parts go together is in [configuring.md](../configuring.md).

The file is YAML with one document, `/etc/cygnet/cygnet.yaml` unless told otherwise. Unknown and duplicate keys are errors; tags and merge keys are
not allowed; an alias may stand for a whole value. `cygnet schema` prints a JSON schema for editors, `cygnet check --resolved` the configuration with
every default filled in; a `preset` puts what a product takes in the place of the defaults of `ike` and `esp`.

*A change* is what another value costs while the gateway runs, in the words of `cygnet plan`: **in place** touches no SA; **rekey** makes new keys, or makes and
deletes SAs one by one, while the traffic goes on; **restart** authenticates the tunnel anew beside the SAs that carry its traffic until then, and for a key
of the daemon waits for `systemctl restart cygnet`. Objects come and go in place.
";

/// The whole page.
pub fn markdown() -> String {
    let mut out = BEGINNING.to_owned();
    section(&mut out, &ROOT, "");
    out
}

fn section(out: &mut String, section: &Section, path: &str) {
    let title = if path.is_empty() { "The file".to_owned() } else { format!("`{path}`") };
    let _ = write!(
        out,
        "\n## {title}\n\n| key | takes | default | a change | meaning |\n|---|---|---|---|---|\n"
    );
    let mut inner = Vec::new();
    for f in section.fields {
        let path = if path.is_empty() { f.key.to_owned() } else { format!("{path}.{}", f.key) };
        let before = inner.len();
        let takes = takes(&f.kind, &path, &mut inner);
        let default = match (f.required, f.default) {
            (true, _) => "**required**".to_owned(),
            (false, default) => default.to_owned(),
        };
        // Of a mapping its keys say it.
        let only_keys =
            inner.len() > before && matches!(f.kind, Kind::Section(_) | Kind::List(Kind::Section(_)));
        let change = if only_keys { "" } else { cost(&path) };
        let cells = [format!("`{}`", f.key), takes, default, change.to_owned(), f.doc.to_owned()];
        let _ = writeln!(out, "| {} |", cells.map(|c| c.replace('|', "\\|")).join(" | "));
    }
    for (inner, path) in inner {
        self::section(out, inner, &path);
    }
}

/// What a key takes, in words. Mappings that are met are noted with their paths.
fn takes(kind: &Kind, path: &str, inner: &mut Vec<(&'static Section, String)>) -> String {
    match kind {
        Kind::Text { is, example: "", .. } => (*is).to_owned(),
        Kind::Text { is, example, .. } => format!("{is}, as in `{example}`"),
        Kind::Bool => "`true` or `false`".to_owned(),
        Kind::Integer { min, max } => format!("a whole number, {min} to {max}"),
        Kind::Words(words) => words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", "),
        Kind::Section(s) => {
            if !inner.iter().any(|(_, known)| known == path) {
                inner.push((s, path.to_owned()));
            }
            format!("[a mapping](#{})", anchor(path))
        }
        Kind::List(of) => {
            let path = if matches!(of, Kind::Section(_)) { format!("{path}[]") } else { path.to_owned() };
            format!("a list; each: {}", takes(of, &path, inner))
        }
        Kind::AnyOf(kinds) => kinds.iter().map(|k| takes(k, path, inner)).collect::<Vec<_>>().join("; or "),
    }
}

/// The heading of a path as a link names it.
fn anchor(path: &str) -> String {
    path.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect()
}

/// What another value of a key costs, or nothing for what no object has.
fn cost(path: &str) -> &'static str {
    let plain = path.replace("[]", "");
    let (first, rest) = plain.split_once('.').unwrap_or((&plain, ""));
    let (object, path) = match first {
        "daemon" => (Object::Daemon, rest),
        "quota" => (Object::Daemon, plain.as_str()),
        "gateways" => (Object::Gateway, rest),
        "customer_gateways" => (Object::CustomerGateway, rest),
        _ => (Object::Tunnel, rest),
    };
    diff::impact(object, path).map_or("", diff::Impact::name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that lacks a cost, or a link that leads nowhere, is a fault of this file.
    #[test]
    fn every_key_has_a_cost_and_every_mapping_a_table() {
        let text = markdown();
        let headings: Vec<String> = text
            .lines()
            .filter_map(|l| l.strip_prefix("## `"))
            .map(|l| anchor(l.trim_end_matches('`')))
            .collect();
        for line in text.lines().filter(|l| l.starts_with("| `")) {
            let cells: Vec<&str> = line.split(" | ").collect();
            assert_eq!(cells.len(), 5, "{line}");
            let mapping =
                cells[1].starts_with("[a mapping]") || cells[1].starts_with("a list; each: [a mapping]");
            assert_eq!(cells[3].is_empty(), mapping, "{line}");
            for link in line.split("(#").skip(1) {
                let link = link.split(')').next().unwrap_or_default();
                assert!(headings.iter().any(|h| h == link), "{link}");
            }
        }
    }
}
