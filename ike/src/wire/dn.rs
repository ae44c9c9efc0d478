//! Comparison of distinguished names (RFC 5280 §7.1): one program writes a value as PrintableString, another as UTF8String,
//! and both mean the same name. Nothing else of ASN.1 is read here.

/// Tags of strings: UTF8String, PrintableString, T61String, IA5String.
const STRINGS: [u8; 4] = [0x0c, 0x13, 0x14, 0x16];
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;

/// Whether two names are the same: parts in the same order with the same types and, without regard to ASCII case, the
/// same values. What is no name in DER is compared octet by octet.
pub(super) fn same(a: &[u8], b: &[u8]) -> bool {
    match (parts(a), parts(b)) {
        (Some(a), Some(b)) => {
            a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.0 == b.0 && a.1.eq_ignore_ascii_case(b.1))
        }
        _ => a == b,
    }
}

/// Types and values of the parts of a name; `None` if it has anything but one string in each part.
fn parts(der: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let (mut rest, end) = element(der, SEQUENCE)?;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (set, after) = element(rest, SET)?;
        let (pair, beyond) = element(set, SEQUENCE)?;
        let (oid, value) = element(pair, OID)?;
        let tag = value.first().filter(|tag| STRINGS.contains(tag))?;
        let (value, more) = element(value, *tag)?;
        if !beyond.is_empty() || !more.is_empty() {
            return None;
        }
        out.push((oid, value));
        rest = after;
    }
    end.is_empty().then_some(out)
}

/// The content of the element at the beginning, which must have this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(len, rest)| (usize::from(*len), rest))?,
        0x82 => {
            rest.split_first_chunk::<2>().map(|(len, rest)| (usize::from(u16::from_be_bytes(*len)), rest))?
        }
        _ => return None,
    };
    if found == tag { rest.split_at_checked(len) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `CN=value`.
    fn name(tag: u8, value: &[u8]) -> Vec<u8> {
        let n = u8::try_from(value.len()).unwrap();
        [&[0x30, n + 11, 0x31, n + 9, 0x30, n + 7, 6, 3, 0x55, 4, 3, tag, n], value].concat()
    }

    #[test]
    fn names_are_the_same_whatever_the_type_of_their_strings() {
        assert!(same(&name(0x13, b"gw-1"), &name(0x0c, b"GW-1")));
        assert!(!same(&name(0x13, b"gw-1"), &name(0x13, b"gw-2")));
        let mut other = name(0x13, b"gw-1");
        other[10] = 10;
        assert!(!same(&name(0x13, b"gw-1"), &other), "another attribute");
    }

    #[test]
    fn what_is_no_name_is_compared_as_it_is() {
        let whole = name(0x13, b"gw-1");
        for len in 0..whole.len() {
            assert!(!same(&whole, &whole[..len]));
            assert!(same(&whole[..len], &whole[..len]));
        }
        assert!(!same(&name(0x04, b"a"), &name(0x04, b"A")), "no string");
        assert!(!same(&whole, &[&whole[..], &[0]].concat()), "something behind it");
    }
}
