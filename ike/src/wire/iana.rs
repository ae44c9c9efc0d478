//! Numbers of the registry "Internet Key Exchange Version 2 (IKEv2) Parameters" that are not algorithms
//! (those are in `cygnet_model::suite`).

use cygnet_model::addke::AddKe;

/// Declares a newtype over a wire number with named values and a name for people.
macro_rules! registry {
    ($(#[$doc:meta])* $name:ident($int:ty) { $($value:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        #[allow(missing_docs, reason = "the names are the registry's own")]
        impl $name {
            $(pub const $value: Self = Self($number);)*

            /// The registry's name, or `None` for numbers that we do not know.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($value)),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{}({})", stringify!($name), self.0),
                }
            }
        }
    };
}

registry! {
    /// Exchange types (RFC 7296 §3.1, RFC 9242, RFC 9370).
    Exchange(u8) {
        IKE_SA_INIT = 34,
        IKE_AUTH = 35,
        CREATE_CHILD_SA = 36,
        INFORMATIONAL = 37,
        IKE_INTERMEDIATE = 43,
        IKE_FOLLOWUP_KE = 44,
    }
}

registry! {
    /// Payload types (RFC 7296 §3.2, RFC 7383 §2.5).
    PayloadType(u8) {
        NONE = 0,
        SA = 33,
        KE = 34,
        IDI = 35,
        IDR = 36,
        CERT = 37,
        CERTREQ = 38,
        AUTH = 39,
        NONCE = 40,
        NOTIFY = 41,
        DELETE = 42,
        VENDOR = 43,
        TSI = 44,
        TSR = 45,
        SK = 46,
        CP = 47,
        EAP = 48,
        SKF = 53,
    }
}

registry! {
    /// Notify message types (RFC 7296 §3.10.1 and others). Below 16384: errors.
    NotifyType(u16) {
        UNSUPPORTED_CRITICAL_PAYLOAD = 1,
        INVALID_IKE_SPI = 4,
        INVALID_MAJOR_VERSION = 5,
        INVALID_SYNTAX = 7,
        INVALID_MESSAGE_ID = 9,
        INVALID_SPI = 11,
        NO_PROPOSAL_CHOSEN = 14,
        INVALID_KE_PAYLOAD = 17,
        AUTHENTICATION_FAILED = 24,
        SINGLE_PAIR_REQUIRED = 34,
        NO_ADDITIONAL_SAS = 35,
        INTERNAL_ADDRESS_FAILURE = 36,
        FAILED_CP_REQUIRED = 37,
        TS_UNACCEPTABLE = 38,
        INVALID_SELECTORS = 39,
        TEMPORARY_FAILURE = 43,
        CHILD_SA_NOT_FOUND = 44,
        STATE_NOT_FOUND = 47,
        INITIAL_CONTACT = 16384,
        SET_WINDOW_SIZE = 16385,
        ADDITIONAL_TS_POSSIBLE = 16386,
        NAT_DETECTION_SOURCE_IP = 16388,
        NAT_DETECTION_DESTINATION_IP = 16389,
        COOKIE = 16390,
        USE_TRANSPORT_MODE = 16391,
        REKEY_SA = 16393,
        ESP_TFC_PADDING_NOT_SUPPORTED = 16394,
        NON_FIRST_FRAGMENTS_ALSO = 16395,
        MOBIKE_SUPPORTED = 16396,
        IKEV2_FRAGMENTATION_SUPPORTED = 16430,
        SIGNATURE_HASH_ALGORITHMS = 16431,
        INTERMEDIATE_EXCHANGE_SUPPORTED = 16438,
        ADDITIONAL_KEY_EXCHANGE = 16441,
    }
}

impl NotifyType {
    /// Whether the notification reports an error (RFC 7296 §3.10.1).
    pub const fn is_error(self) -> bool {
        self.0 < 16384
    }
}

registry! {
    /// Security protocol identifiers (RFC 7296 §3.3.1).
    Protocol(u8) {
        NONE = 0,
        IKE = 1,
        AH = 2,
        ESP = 3,
    }
}

registry! {
    /// Transform types (RFC 7296 §3.3.2).
    TransformType(u8) {
        ENCR = 1,
        PRF = 2,
        INTEG = 3,
        KE = 4,
        ESN = 5,
    }
}

impl TransformType {
    /// The one of an additional key exchange (RFC 9370 §2.2.1).
    pub const fn of_additional(which: AddKe) -> Self {
        Self(which.transform_type())
    }

    /// The additional key exchange that it is about, if it is about one.
    pub fn additional(self) -> Option<AddKe> {
        AddKe::from_transform_type(self.0)
    }
}

registry! {
    /// Identification types (RFC 7296 §3.5).
    IdType(u8) {
        ID_IPV4_ADDR = 1,
        ID_FQDN = 2,
        ID_RFC822_ADDR = 3,
        ID_IPV6_ADDR = 5,
        ID_DER_ASN1_DN = 9,
        ID_DER_ASN1_GN = 10,
        ID_KEY_ID = 11,
    }
}

registry! {
    /// Authentication methods (RFC 7296 §3.8).
    AuthMethod(u8) {
        RSA = 1,
        SHARED_KEY_MIC = 2,
        DSS = 3,
        ECDSA_256 = 9,
        ECDSA_384 = 10,
        ECDSA_521 = 11,
        NULL = 13,
        DIGITAL_SIGNATURE = 14,
    }
}

/// Header flag: the sender is the original initiator of the IKE SA.
pub const FLAG_INITIATOR: u8 = 0x08;
/// Header flag: a higher major version is possible (ignored by IKEv2).
pub const FLAG_VERSION: u8 = 0x10;
/// Header flag: this is a response.
pub const FLAG_RESPONSE: u8 = 0x20;
/// Key Length, the only transform attribute (RFC 7296 §3.3.5), in TV form.
pub const ATTRIBUTE_KEY_LENGTH: u16 = 0x8000 | 14;
/// IPv4 address range in a traffic selector.
pub const TS_IPV4_ADDR_RANGE: u8 = 7;
/// IPv6 address range in a traffic selector.
pub const TS_IPV6_ADDR_RANGE: u8 = 8;
