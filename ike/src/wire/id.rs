//! Identification payloads (RFC 7296 §3.5) and the identities they carry.

use std::fmt;
use std::net::IpAddr;

use super::DecodeErrorKind;
use super::dn;
use super::iana::IdType;
use super::reader::Reader;

/// An identity: type and octets, compared as they are except that domain names ignore ASCII case, and distinguished names
/// that and the types of their strings.
#[derive(Clone, Eq)]
pub struct Identity {
    kind: IdType,
    data: Vec<u8>,
}

/// Longest identity that we accept, in octets.
const MAX_LEN: usize = 1024;

impl Identity {
    /// An address as identity.
    pub fn address(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(a) => Self { kind: IdType::ID_IPV4_ADDR, data: a.octets().to_vec() },
            IpAddr::V6(a) => Self { kind: IdType::ID_IPV6_ADDR, data: a.octets().to_vec() },
        }
    }

    /// A fully qualified domain name.
    pub fn fqdn(name: &str) -> Self {
        Self { kind: IdType::ID_FQDN, data: name.as_bytes().to_vec() }
    }

    /// A mail address.
    pub fn rfc822(name: &str) -> Self {
        Self { kind: IdType::ID_RFC822_ADDR, data: name.as_bytes().to_vec() }
    }

    /// An opaque key id.
    pub fn key_id(data: Vec<u8>) -> Self {
        Self { kind: IdType::ID_KEY_ID, data }
    }

    /// A distinguished name in DER (RFC 5280 §4.1.2.4).
    pub fn distinguished_name(der: Vec<u8>) -> Self {
        Self { kind: IdType::ID_DER_ASN1_DN, data: der }
    }

    /// Type and value for messages that tell two identities apart: `ID_FQDN "192.0.2.9"`.
    pub fn with_kind(&self) -> String {
        format!("{} \"{self}\"", self.kind)
    }

    /// Type.
    pub const fn kind(&self) -> IdType {
        self.kind
    }

    /// In which drawer of a table identities that equal this one are.
    pub(crate) fn bucket(&self) -> IdentityBucket {
        let data = match self.kind {
            IdType::ID_FQDN | IdType::ID_RFC822_ADDR => self.data.to_ascii_lowercase(),
            // Equal ones may differ in every octet but those of the form.
            IdType::ID_DER_ASN1_DN => Vec::new(),
            _ => self.data.clone(),
        };
        IdentityBucket { kind: self.kind.0, data }
    }

    /// Decodes an ID payload's body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeErrorKind> {
        let mut r = Reader::new(body);
        let kind = IdType(r.u8()?);
        r.take(3)?;
        let data = r.take_rest().to_vec();
        let fits = match kind {
            IdType::ID_IPV4_ADDR => data.len() == 4,
            IdType::ID_IPV6_ADDR => data.len() == 16,
            _ => !data.is_empty() && data.len() <= MAX_LEN,
        };
        if fits { Ok(Self { kind, data }) } else { Err(DecodeErrorKind::BadLength) }
    }

    /// The payload's body: what the AUTH computation covers as "RestOfIDPayload" (RFC 7296 §2.15).
    pub fn body(&self) -> Vec<u8> {
        let mut out = vec![self.kind.0, 0, 0, 0];
        out.extend_from_slice(&self.data);
        out
    }
}

/// What equal identities have in common; others may have it too.
#[derive(PartialEq, Eq, Hash, Debug)]
pub(crate) struct IdentityBucket {
    kind: u8,
    data: Vec<u8>,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
            && match self.kind {
                IdType::ID_FQDN | IdType::ID_RFC822_ADDR => self.data.eq_ignore_ascii_case(&other.data),
                IdType::ID_DER_ASN1_DN => dn::same(&self.data, &other.data),
                _ => self.data == other.data,
            }
    }
}

impl fmt::Display for Identity {
    /// For people and logs: one line, control characters escaped, at most 128 octets of a name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.data.as_slice()) {
            (IdType::ID_IPV4_ADDR, d) if d.len() == 4 => {
                let mut a = [0u8; 4];
                a.copy_from_slice(d);
                write!(f, "{}", IpAddr::from(a))
            }
            (IdType::ID_IPV6_ADDR, d) if d.len() == 16 => {
                let mut a = [0u8; 16];
                a.copy_from_slice(d);
                write!(f, "{}", IpAddr::from(a))
            }
            (IdType::ID_FQDN | IdType::ID_RFC822_ADDR, d) => {
                write!(f, "{}", d.get(..d.len().min(128)).unwrap_or(d).escape_ascii())
            }
            (kind, d) => {
                write!(f, "{kind}:")?;
                d.iter().take(64).try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
