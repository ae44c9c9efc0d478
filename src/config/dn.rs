//! Distinguished names as people write them (`C=DE, O=Example, CN=gw-1`) and as ID_DER_ASN1_DN carries them: a Name in
//! DER (RFC 5280 §4.1.2.4, X.690). One attribute in each part of the name; parts in the order in which they are written.

use std::fmt;

use super::error::{Wrong, quoted, wrong};

/// Attribute types: keyword, OID content octets (RFC 4519 §2, RFC 2985 §5.2.1), and whether the value is an IA5String.
const TYPES: &[(&str, &[u8], bool)] = &[
    ("CN", &[0x55, 4, 3], false),
    ("SERIALNUMBER", &[0x55, 4, 5], false),
    ("C", &[0x55, 4, 6], false),
    ("L", &[0x55, 4, 7], false),
    ("ST", &[0x55, 4, 8], false),
    ("STREET", &[0x55, 4, 9], false),
    ("O", &[0x55, 4, 10], false),
    ("OU", &[0x55, 4, 11], false),
    ("DC", &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], true),
    ("UID", &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], false),
    ("E", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], true),
];
/// A name with more parts is refused.
const MAX_PARTS: usize = 16;

/// A distinguished name with at least one part, whose values are printable.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Dn(Vec<Part>);

/// One attribute: its place in [`TYPES`] and its value.
type Part = (usize, String);

impl Dn {
    /// Reads `TYPE=VALUE, TYPE=VALUE`; a comma inside a value is written `\,`.
    pub fn read(text: &str) -> Result<Self, Wrong> {
        let fix = "write it as in dn:C=DE, O=Example, CN=gw-1; a comma inside a value is written \\,";
        let parts: Vec<Part> =
            split(text).iter().map(|part| read_part(part, fix)).collect::<Result<_, _>>()?;
        if parts.len() > MAX_PARTS {
            return Err(wrong(format!("the name has more than {MAX_PARTS} parts"), fix));
        }
        Ok(Self(parts))
    }

    /// The DER of it.
    pub fn to_der(&self) -> Vec<u8> {
        let part = |(index, value): &Part| {
            let (_, oid, ia5) = TYPES.get(*index).copied().unwrap_or_default();
            let tag = match value.chars().all(is_printable_string) {
                _ if ia5 => 0x16,
                true => 0x13,
                false => 0x0c,
            };
            let pair = [tlv(0x06, oid), tlv(tag, value.as_bytes())].concat();
            tlv(0x31, &tlv(0x30, &pair))
        };
        tlv(0x30, &self.0.iter().flat_map(part).collect::<Vec<u8>>())
    }
}

impl fmt::Display for Dn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (index, value)) in self.0.iter().enumerate() {
            let keyword = TYPES.get(*index).map_or("", |t| t.0);
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{keyword}={}", value.replace('\\', "\\\\").replace(',', "\\,"))?;
        }
        Ok(())
    }
}

/// Cuts at commas without a backslash before them, and takes the backslashes away.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, parts.last_mut()) {
            (',', _) => parts.push(String::new()),
            ('\\', Some(part)) => part.extend(chars.next()),
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    parts
}

fn read_part(part: &str, fix: &str) -> Result<Part, Wrong> {
    let Some((keyword, value)) = part.split_once('=') else {
        return Err(wrong(format!("{} is no part of a distinguished name", quoted(part.trim())), fix));
    };
    let (keyword, value) = (keyword.trim().to_uppercase(), value.trim());
    let keyword = if keyword == "EMAILADDRESS" { "E" } else { &keyword };
    let Some(index) = TYPES.iter().position(|(known, ..)| *known == keyword) else {
        let known = TYPES.iter().map(|t| t.0).collect::<Vec<_>>().join(", ");
        return Err(wrong(format!("unknown attribute {}", quoted(keyword)), format!("known are {known}")));
    };
    let ia5 = TYPES.get(index).is_some_and(|t| t.2);
    if value.is_empty() || value.chars().any(char::is_control) || (ia5 && !value.is_ascii()) {
        return Err(wrong(format!("{} has no printable value", quoted(part.trim())), fix));
    }
    Ok((index, value.to_owned()))
}

/// Of the alphabet of PrintableString (X.680 §41.4).
fn is_printable_string(c: char) -> bool {
    c.is_ascii_alphanumeric() || " '()+,-./:=?".contains(c)
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let len = content.len().to_be_bytes();
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let from = len.iter().position(|b| *b != 0).unwrap_or(len.len());
            let octets = len.get(from..).unwrap_or_default();
            out.push(0x80 | u8::try_from(octets.len()).unwrap_or(0));
            out.extend_from_slice(octets);
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(octets: &[u8]) -> String {
        octets.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The octets are the subject that OpenSSL 3.0 makes of `-subj /C=DE/O=Example/CN=gw_1`, but for the type of the second
    /// string, which OpenSSL writes as UTF8String.
    #[test]
    fn a_name_is_der_as_in_certificates() {
        let dn = Dn::read("C=DE, O=Example,CN = gw_1").unwrap();
        assert_eq!(
            hex(&dn.to_der()),
            "302e310b3009060355040613024445\
             3110300e060355040a13074578616d706c65\
             310d300b06035504030c0467775f31"
        );
        assert_eq!(dn.to_string(), "C=DE, O=Example, CN=gw_1");
    }

    #[test]
    fn a_name_reads_back_as_what_it_shows() {
        for text in
            ["CN=a\\, b, O=x\\\\y", "emailAddress=ops@example.org, DC=org", &format!("O={}", "é".repeat(200))]
        {
            let dn = Dn::read(text).unwrap();
            assert_eq!(Dn::read(&dn.to_string()).unwrap(), dn, "{text}");
        }
        for bad in ["", "CN", "CN=", "XX=y", "CN=a,,O=b", "CN=\u{7}", "E=é@example.org"] {
            assert!(Dn::read(bad).is_err(), "{bad}");
        }
    }
}
