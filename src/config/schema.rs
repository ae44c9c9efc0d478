//! The JSON schema of the configuration and the text of its manual page, both made from [`super::fields`].

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::fields::{Field, Kind, ROOT, Section};

/// The schema (draft 2020-12), for editors. It knows keys, types and spellings; `cygnet check` knows the rest.
pub fn schema() -> Value {
    let mut schema = section(&ROOT);
    if let Value::Object(map) = &mut schema {
        map.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
        map.insert("title".into(), json!("Configuration of the cygnet VPN gateway"));
    }
    schema
}

fn section(s: &Section) -> Value {
    let properties: Map<String, Value> = s.fields.iter().map(|f| (f.key.to_owned(), field(f))).collect();
    let required: Vec<&str> = s.fields.iter().filter(|f| f.required).map(|f| f.key).collect();
    let mut out = json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    out
}

fn field(f: &Field) -> Value {
    let mut out = kind(&f.kind);
    let mut doc = f.doc.to_owned();
    if !f.default.is_empty() {
        let _ = write!(doc, " Default: {}.", f.default);
    }
    out["description"] = json!(doc);
    out
}

fn kind(k: &Kind) -> Value {
    match k {
        // YAML reads 0 and 10.0 as numbers although a text is meant.
        Kind::Text { pattern, example, .. } => {
            let mut out = json!({ "type": ["string", "number"] });
            if !pattern.is_empty() {
                out["pattern"] = json!(pattern);
            }
            if !example.is_empty() {
                out["examples"] = json!([example]);
            }
            out
        }
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Words(words) => json!({ "enum": words }),
        Kind::Section(s) => section(s),
        Kind::List(of) => json!({ "type": "array", "items": kind(of) }),
        Kind::AnyOf(kinds) => json!({ "anyOf": kinds.iter().map(kind).collect::<Vec<_>>() }),
    }
}

/// The keys as a manual page in roff, section 5.
pub fn manual() -> String {
    let mut out = String::from(
        ".TH cygnet.yaml 5\n.SH NAME\ncygnet.yaml \\- configuration of the cygnet VPN gateway\n.SH DESCRIPTION\n\
         YAML with one document. Unknown and duplicate keys are errors; tags and merge keys are not allowed, an alias \
         may stand for a whole value. Check a file with\n.BR \"cygnet check\" .\n.PP\n\
         Rates: bit, kbit, mbit, gbit (decimal). Durations: ms, s, m, h, d. \
         Sizes: KB, MB, GB, TB (decimal), KiB, MiB, GiB, TiB (binary).\n.SH KEYS\n",
    );
    keys(&mut out, &ROOT, "");
    out.push_str(".SH FILES\n.I /etc/cygnet/cygnet.yaml\n.SH SEE ALSO\n.BR cygnet (8)\n");
    out
}

fn keys(out: &mut String, section: &Section, path: &str) {
    for f in section.fields {
        let path = if path.is_empty() { f.key.to_owned() } else { format!("{path}.{}", f.key) };
        let _ = write!(out, ".TP\n.B {}\n{}", roff(&path), roff(f.doc));
        if let Some(words) = words(&f.kind) {
            let _ = write!(out, " One of {}.", roff(&words.join(", ")));
        }
        match (f.required, f.default) {
            (true, _) => out.push_str(" Required."),
            (false, "") => {}
            (false, default) => {
                let _ = write!(out, " Default: {}.", roff(default));
            }
        }
        out.push('\n');
        let (inner, suffix) = match f.kind {
            Kind::List(Kind::Section(s)) => (Some(*s), "[]"),
            Kind::Section(s) => (Some(s), ""),
            Kind::AnyOf(forms) => (forms.iter().find_map(section_of), ""),
            _ => (None, ""),
        };
        if let Some(inner) = inner {
            keys(out, inner, &format!("{path}{suffix}"));
        }
    }
}

const fn section_of(k: &Kind) -> Option<&'static Section> {
    match k {
        Kind::Section(s) => Some(s),
        _ => None,
    }
}

fn words(k: &Kind) -> Option<&'static [&'static str]> {
    match k {
        Kind::Words(words) => Some(words),
        _ => None,
    }
}

fn roff(text: &str) -> String {
    text.replace('\\', "\\\\").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each key of the tables stands in the schema, in the manual and in the complete sample.
    #[test]
    fn schema_manual_and_sample_know_every_key() {
        fn walk(section: &Section, schema: &Value, manual: &str, sample: &str) {
            for f in section.fields {
                let inner = &schema["properties"][f.key];
                assert!(inner["description"].is_string(), "{} is not in the schema", f.key);
                assert!(manual.contains(&roff(f.key)), "{} is not in the manual", f.key);
                let alternatives = ["psk", "psk_files", "interface"];
                assert!(
                    alternatives.contains(&f.key) || sample.contains(&format!("{}:", f.key)),
                    "{}",
                    f.key
                );
                match f.kind {
                    Kind::Section(s) => walk(s, inner, manual, sample),
                    Kind::List(Kind::Section(s)) => walk(s, &inner["items"], manual, sample),
                    _ => {}
                }
            }
        }
        let sample = include_str!("../../tests/samples/complete.yaml");
        walk(&ROOT, &schema(), &manual(), sample);
    }
}
