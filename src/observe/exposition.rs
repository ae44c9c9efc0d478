//! The text formats of metrics: Prometheus 0.0.4 and OpenMetrics 1.0. It knows how a family is written, not which there are.

use std::fmt::{Display, Write};

use super::catalogue::{Family, Type};

/// Which text format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Prometheus 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header asks for.
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    /// The `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Units as OpenMetrics wants them named: what a family's name ends with.
const UNITS: [&str; 4] = ["seconds", "bytes", "ratio", "bits_per_second"];

/// Writes families one after the other.
pub(super) struct Writer {
    out: String,
    format: Format,
    /// Of the family at hand.
    sample: String,
    labels: &'static [&'static str],
}

/// Values of a family's first labels, escaped. Whoever has hundreds of samples about one thing makes it once.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    text: String,
    labels: usize,
}

impl Subject {
    /// Names each label with its value.
    pub fn new(labels: &[(&str, &str)]) -> Self {
        let mut text = String::with_capacity(64);
        for (n, (label, value)) in labels.iter().enumerate() {
            if n > 0 {
                text.push(',');
            }
            label_to(&mut text, label, value);
        }
        Self { text, labels: labels.len() }
    }
}

fn label_to(out: &mut String, label: &str, value: &str) {
    out.push_str(label);
    out.push_str("=\"");
    escape(out, value);
    out.push('"');
}

/// Escapes a label's value, and copies what needs no escape as a whole.
fn escape(out: &mut String, value: &str) {
    let mut rest = value;
    while let Some(at) = rest.find(['\\', '"', '\n']) {
        let (plain, from) = rest.split_at(at);
        out.push_str(plain);
        out.push_str(match from.as_bytes().first() {
            Some(b'\\') => "\\\\",
            Some(b'"') => "\\\"",
            _ => "\\n",
        });
        rest = from.get(1..).unwrap_or_default();
    }
    out.push_str(rest);
}

impl Writer {
    /// Begins a page with room for so many octets.
    pub fn new(format: Format, room: usize) -> Self {
        Self { out: String::with_capacity(room), format, sample: String::new(), labels: &[] }
    }

    /// Begins a family; the samples that follow are its own.
    pub fn family(&mut self, family: &Family) {
        self.sample = family.sample();
        self.labels = family.labels;
        let word = match (family.kind, self.format) {
            (Type::Counter, _) => "counter",
            (Type::Info, Format::OpenMetrics) => "info",
            (Type::Gauge | Type::Info, _) => "gauge",
            (Type::Histogram, _) => "histogram",
        };
        let open = self.format == Format::OpenMetrics;
        let head = if open { family.name } else { &self.sample };
        let _ = writeln!(self.out, "# HELP {head} {}\n# TYPE {head} {word}", family.help);
        if open && let Some(unit) = UNITS.iter().find(|u| family.name.ends_with(&format!("_{u}"))) {
            let _ = writeln!(self.out, "# UNIT {head} {unit}");
        }
    }

    /// Writes a sample with the values of the family's labels, in their order.
    pub fn sample(&mut self, values: &[&str], value: impl Display) {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.sample);
        self.begin("", values, 0);
        let _ = writeln!(self.out, " {value}");
    }

    /// The same where the first labels are a subject's.
    pub fn sample_of(&mut self, subject: &Subject, values: &[&str], value: impl Display) {
        debug_assert_eq!(values.len() + subject.labels, self.labels.len(), "{}", self.sample);
        self.begin(&subject.text, values, subject.labels);
        let _ = writeln!(self.out, " {value}");
    }

    /// Writes a histogram's samples: for each bucket its upper bound and how many fell between it and the one before.
    pub fn histogram(&mut self, buckets: impl Iterator<Item = (String, u64)>, sum: f64) {
        let mut count: u64 = 0;
        let name = &self.sample;
        for (bound, more) in buckets {
            count = count.saturating_add(more);
            let _ = writeln!(self.out, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let _ = writeln!(self.out, "{name}_sum {sum}\n{name}_count {count}");
    }

    /// The page.
    pub fn end(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn begin(&mut self, subject: &str, values: &[&str], skip: usize) {
        let out = &mut self.out;
        out.push_str(&self.sample);
        if subject.is_empty() && values.is_empty() {
            return;
        }
        out.push('{');
        out.push_str(subject);
        let named = self.labels.iter().skip(skip).zip(values);
        for (n, (label, value)) in named.enumerate() {
            if n > 0 || !subject.is_empty() {
                out.push(',');
            }
            label_to(out, label, value);
        }
        out.push('}');
    }
}
