//! ipsec.secrets: `ID ID : PSK "key"`, indented lines go on.

use zeroize::Zeroizing;

use super::super::conn::PskEntry;
use super::super::words;
use super::super::{Malformed, Secret, malformed};

/// More entries are refused.
const MAX_ENTRIES: usize = 10_000;

/// Reads the keys; what is none (RSA, XAUTH, EAP) is passed over.
pub fn read(text: &str) -> Result<Vec<PskEntry>, Malformed> {
    let mut entries: Vec<(usize, Secret)> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        if line.starts_with([' ', '\t'])
            && let Some((_, entry)) = entries.last_mut()
        {
            entry.push('\n');
            entry.push_str(line);
            continue;
        }
        if entries.len() >= MAX_ENTRIES {
            return Err(malformed(n + 1, "the file has more than 10000 entries"));
        }
        let mut entry = Zeroizing::new(String::with_capacity(line.len() + 256));
        entry.push_str(line);
        entries.push((n + 1, entry));
    }
    Ok(entries.iter().filter_map(|(line, entry)| psk(*line, entry)).collect())
}

fn psk(line: usize, entry: &str) -> Option<PskEntry> {
    // Behind the ids stands a colon with white space, or the end, after it; IPv6 addresses have others.
    let colon = entry.char_indices().find(|(at, c)| {
        let after = entry.get(at + 1..).and_then(|rest| rest.chars().next());
        let before = entry.get(..*at).and_then(|rest| rest.chars().next_back());
        *c == ':' && after.is_none_or(char::is_whitespace) && before.is_none_or(char::is_whitespace)
    });
    let (at, _) = colon?;
    let (ids, rest) = (entry.get(..at)?, entry.get(at + 1..)?.trim());
    let rest = rest.strip_prefix("PSK").or_else(|| rest.strip_prefix("psk"))?.trim();
    let key = match rest.strip_prefix('"') {
        // What stands in quotes stands for itself.
        Some(quoted) => literal(quoted.split('"').next()?),
        None => Zeroizing::new(rest.split_whitespace().next()?.to_owned()),
    };
    let ids = ids.split_whitespace().map(|id| id.trim_matches('"')).filter(|id| !id.is_empty());
    Some(PskEntry { line, ids: ids.filter_map(|id| words::remote_id(id).ok()).collect(), key })
}

/// A text that a file of ours would take for a coded key is coded itself.
fn literal(text: &str) -> Secret {
    if !(text.starts_with("0x") || text.starts_with("0s")) {
        return Zeroizing::new(text.to_owned());
    }
    let mut out = Zeroizing::new(String::with_capacity(2 + 2 * text.len()));
    out.push_str("0x");
    text.bytes().for_each(|b| {
        for digit in [b >> 4, b & 15] {
            out.extend(char::from_digit(u32::from(digit), 16));
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_with_their_identities() {
        let text = "# keys\n192.0.2.1 @gw.example.org : PSK \"two words\"\n2001:db8::1 %any : PSK 0x0011\n: PSK \"0xnot\"\n: RSA my.pem\na.example\n\t: PSK 0sAAAA\n";
        let read = read(text).unwrap_or_else(|m| panic!("{m:?}"));
        let told: Vec<(usize, Vec<String>, &str)> = (read.iter())
            .map(|e| (e.line, e.ids.iter().map(ToString::to_string).collect(), e.key.as_str()))
            .collect();
        let ids = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            told,
            [
                (2, ids(&["192.0.2.1", "gw.example.org"]), "two words"),
                (3, ids(&["2001:db8::1", "any"]), "0x0011"),
                (4, ids(&[]), "0x30786e6f74"),
                (6, ids(&["a.example"]), "0sAAAA"),
            ]
        );
    }
}
