//! The syntax of ipsec.conf: sections that begin at the left edge, parameters that do not, `also=` for what stands in another
//! section, `conn %default` for what stands in all of them.
//!
//! Included files are not followed. Sections, parameters and the work of `also=` are bounded.

use super::super::notes::{Kind, Notes};
use super::super::{MAX_CONNS, Malformed, malformed};

/// More parameters are refused.
const MAX_PARAMS: usize = 100_000;
/// A chain of `also=` is not followed beyond this.
const MAX_CHAIN: usize = 8;

/// A parameter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Param {
    /// Its key, in lower case.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Its line.
    pub line: usize,
}

/// A section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Section {
    /// `conn`, `config` or `ca`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its line.
    pub line: usize,
    /// Its parameters.
    pub params: Vec<Param>,
}

/// Parses a file.
pub fn parse(text: &str, notes: &mut Notes) -> Result<Vec<Section>, Malformed> {
    let mut out: Vec<Section> = Vec::new();
    let mut count = 0usize;
    for (n, raw) in text.lines().enumerate() {
        let number = n + 1;
        let line = without_comment(raw);
        if line.trim().is_empty() {
            continue;
        }
        count += 1;
        if count > MAX_PARAMS {
            return Err(malformed(number, "the file has more than 100000 lines"));
        }
        let indented = line.starts_with([' ', '\t']);
        let words = line.trim();
        if !indented {
            let (kind, name) = words.split_once([' ', '\t']).map_or((words, ""), |(k, n)| (k, n.trim()));
            match kind {
                "conn" | "ca" | "config" if !name.is_empty() => {
                    if out.len() > MAX_CONNS {
                        return Err(malformed(number, format!("there are more than {MAX_CONNS} sections")));
                    }
                    let same = out.iter().position(|s| s.kind == kind && s.name == name);
                    // Another piece of a section goes on with it.
                    let section = match same.map(|at| out.remove(at)) {
                        Some(section) => section,
                        None => {
                            Section { kind: kind.into(), name: name.into(), line: number, params: Vec::new() }
                        }
                    };
                    out.push(section);
                }
                "include" => {
                    let why = "other files are not followed; import them one by one";
                    notes.add(Kind::Todo, number, kind, name, why);
                }
                "version" => {}
                _ => {
                    return Err(malformed(
                        number,
                        "a line at the left edge begins a section: conn, config, ca or include",
                    ));
                }
            }
            continue;
        }
        let Some(section) = out.last_mut() else {
            return Err(malformed(number, "a parameter stands before every section"));
        };
        let Some((key, value)) = words.split_once('=') else {
            return Err(malformed(number, "a parameter is written as key=value"));
        };
        let key = key.trim().to_ascii_lowercase();
        if key == "include" || key.is_empty() {
            return Err(malformed(number, "a parameter is written as key=value"));
        }
        section.params.push(Param { key, value: unquoted(value.trim()), line: number });
    }
    Ok(out)
}

/// The line up to a `#` that stands at its beginning or behind white space, outside of quotes.
fn without_comment(line: &str) -> &str {
    let mut quotes = false;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match c {
            '"' => quotes = !quotes,
            '#' if !quotes && before.is_whitespace() => return line.get(..at).unwrap_or(line),
            _ => {}
        }
        before = c;
    }
    line
}

fn unquoted(value: &str) -> String {
    let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    inner.unwrap_or(value).to_owned()
}

/// Every parameter that holds in a conn: its own, those of `also=`, those of `conn %default`; of the same key the first of
/// these, and within a section the last.
pub fn effective(conn: &Section, all: &[Section]) -> Result<Vec<Param>, Malformed> {
    let mut out = Vec::new();
    collect(conn, all, 0, &mut out)?;
    for section in all.iter().filter(|s| s.kind == "conn" && s.name == "%default") {
        collect(section, all, 0, &mut out)?;
    }
    Ok(out)
}

fn collect(section: &Section, all: &[Section], chain: usize, out: &mut Vec<Param>) -> Result<(), Malformed> {
    if chain > MAX_CHAIN {
        return Err(malformed(section.line, "also= goes on without an end"));
    }
    for param in section.params.iter().rev().filter(|p| p.key != "also") {
        if !out.iter().any(|o| o.key == param.key) {
            out.push(param.clone());
        }
    }
    for also in section.params.iter().filter(|p| p.key == "also") {
        let named = all.iter().find(|s| s.kind == "conn" && s.name == also.value.trim());
        let Some(named) = named else {
            return Err(malformed(also.line, "also= names a conn that is not there"));
        };
        collect(named, all, chain + 1, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str, name: &str) -> Vec<(String, String)> {
        let all = parse(text, &mut Notes::new("f")).unwrap_or_else(|m| panic!("{m:?}"));
        let conn = all.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("{name}"));
        let all = effective(conn, &all).unwrap_or_else(|m| panic!("{m:?}"));
        all.into_iter().map(|p| (p.key, p.value)).collect()
    }

    #[test]
    fn own_parameters_stand_before_also_and_default() {
        let text = "conn %default\n\ta=1\n\tz=9\nconn base # x\n  a=2\n  b = \"two # words\"\nconn c\n  also=base\n  B=3\n  id=\"@#c0ffee\" # y\n";
        let get = params(text, "c");
        let has = |k: &str, v: &str| get.contains(&(k.to_owned(), v.to_owned()));
        assert!(has("a", "2") && has("b", "3") && has("z", "9") && has("id", "@#c0ffee"), "{get:?}");
        assert!(params(text, "base").contains(&("b".into(), "two # words".into())));
    }

    #[test]
    fn what_is_malformed_says_where() {
        for (bad, line) in [("\ta=1\n", 1), ("conn x\n\ta\n", 2), ("# c\nleft=1\n", 2), ("conn\n", 1)] {
            let m = parse(bad, &mut Notes::new("f")).err().unwrap_or_else(|| panic!("{bad}"));
            assert_eq!(m.line, line, "{bad}");
        }
        for bad in ["conn a\n\talso=a\n", "conn a\n\talso=b\nconn b\n\talso=a\n", "conn a\n\talso=nobody\n"] {
            let all = parse(bad, &mut Notes::new("f")).unwrap_or_else(|m| panic!("{m:?}"));
            assert!(all.first().is_some_and(|c| effective(c, &all).is_err()), "{bad}");
        }
    }
}
