//! What is told about metrics outside of the program names only what there is: the reference in docs/monitoring.md, the rules
//! for Prometheus, the dashboard for Grafana. `tests/monitoring/run` has Prometheus read and use them.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod common;

use std::collections::BTreeSet;
use std::fmt::Write;

use cygnet::observe::catalogue::{self, Family, Type};
use serde_json::Value;

const RULES: &str = "etc/prometheus/cygnet.rules.yaml";
const TESTS: [&str; 2] = ["etc/prometheus/cygnet.test.yaml", "etc/prometheus/cygnet-levels.test.yaml"];
const DASHBOARD: &str = "etc/grafana/cygnet.json";
const REFERENCE: &str = "docs/monitoring.md";

/// Names of series that the exporter has.
fn series() -> BTreeSet<String> {
    let of = |f: &Family| match f.kind {
        Type::Histogram => ["_bucket", "_sum", "_count"].map(|s| format!("{}{s}", f.name)).to_vec(),
        _ => vec![f.sample()],
    };
    catalogue::ALL.iter().flat_map(of).collect()
}

/// What stands under a key, anywhere.
fn under<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| match v {
            Value::String(text) if k == key => found.push(text),
            v => under(v, key, found),
        }),
        Value::Array(all) => all.iter().for_each(|v| under(v, key, found)),
        _ => {}
    }
}

fn yaml(path: &str) -> Value {
    serde_yaml::from_str(&common::read(path)).unwrap()
}

/// Words of an expression that are ours.
fn names(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    words.filter(|w| w.starts_with("cygnet_") || w.contains(":cygnet_")).collect()
}

#[test]
fn rules_and_dashboard_name_series_that_there_are() {
    let rules = yaml(RULES);
    let (mut recorded, mut expressions) = (Vec::new(), Vec::new());
    under(&rules, "record", &mut recorded);
    under(&rules, "expr", &mut expressions);
    let dashboard: Value = serde_json::from_str(&common::read(DASHBOARD)).unwrap();
    under(&dashboard, "expr", &mut expressions);
    under(&dashboard, "definition", &mut expressions);
    let tests = TESTS.map(yaml);
    tests.iter().for_each(|t| under(t, "series", &mut expressions));
    assert!(expressions.len() > 100, "{}", expressions.len());
    let mut known = series();
    known.extend(recorded.into_iter().map(str::to_owned));
    let mut used = BTreeSet::new();
    for expression in expressions {
        for name in names(expression) {
            assert!(known.contains(name), "{name} in {expression}");
            used.insert(name);
        }
    }
    // What nobody shows or watches is either missing here, or not needed at all.
    let unused: Vec<_> = known
        .iter()
        .filter(|name| !used.contains(name.as_str()) && !name.ends_with("_sum") && !name.ends_with("_count"))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn every_alert_is_tried_and_told() {
    let rules = yaml(RULES);
    let (mut alerts, mut tried) = (Vec::new(), Vec::new());
    under(&rules, "alert", &mut alerts);
    let tests = TESTS.map(yaml);
    tests.iter().for_each(|t| under(t, "alertname", &mut tried));
    tests.iter().for_each(|t| under(t, "expr", &mut tried));
    let reference = common::read(REFERENCE);
    for alert in alerts.iter().collect::<BTreeSet<_>>() {
        assert!(tried.iter().any(|t| t.contains(alert)), "{alert} is not tried");
        assert!(reference.contains(&format!("`{alert}`")), "{alert} is not told in {REFERENCE}");
    }
}

#[test]
fn every_reason_of_our_own_data_plane_is_told() {
    let reference = common::read(REFERENCE);
    for reason in cygnet_esp::DropReason::ALL {
        assert!(reference.contains(&format!("`{}`", reason.name())), "{reason} is not told in {REFERENCE}");
    }
}

/// The table of the reference is made from the catalogue; CYGNET_UPDATE_GOLDEN=1 writes it anew.
#[test]
fn the_reference_lists_every_family() {
    let mut table = String::from("| metric | labels | meaning |\n|---|---|---|\n");
    for f in catalogue::ALL {
        let kind = match f.kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Info => "info",
            Type::Histogram => "histogram",
        };
        let labels = f.labels.join(", ");
        writeln!(table, "| `{}` ({kind}) | {labels} | {} |", f.sample(), f.help).unwrap();
    }
    let (begin, end) = ("<!-- made from src/observe/catalogue.rs -->\n", "<!-- end -->");
    let text = common::read(REFERENCE);
    let (before, rest) = text.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    common::golden(REFERENCE, &format!("{before}{begin}{table}{end}{after}"));
}
