//! Why a datagram was dropped and why a negotiation failed: closed sets of names for metrics, logs and tests.

use std::fmt;

use crate::wire::NotifyType;

/// Declares an enum whose variants have a stable snake_case name.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// Every reason, in order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name used as metric label, log field and in tests.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

reasons! {
    /// Why an IKE datagram was dropped without effect.
    DropReason {
        /// Bytes that are no IKE message.
        Malformed = "malformed",
        /// Another major version than 2.
        Version = "version",
        /// An SPI that belongs to no SA of ours.
        UnknownSpi = "unknown_spi",
        /// No configured tunnel has this peer's address.
        UnknownPeer = "unknown_peer",
        /// The integrity check failed.
        Integrity = "integrity",
        /// A message ID outside the window (RFC 7296 §2.3).
        MessageId = "message_id",
        /// A response that nobody waits for.
        UnexpectedResponse = "unexpected_response",
        /// The exchange type does not fit the state.
        UnexpectedExchange = "unexpected_exchange",
        /// Initiator or response flag, or the peer's SPI, do not fit.
        Flags = "flags",
        /// Too many half-open SAs.
        HalfOpenLimit = "half_open_limit",
        /// A cookie that we did not give.
        BadCookie = "bad_cookie",
        /// A fragment that does not fit (RFC 7383 §2.6).
        Fragment = "fragment",
        /// An error notification that is not authenticated and therefore only a hint (RFC 7296 §2.21.1).
        UnauthenticatedNotify = "unauthenticated_notify",
        /// A repeated request for which no response is kept.
        Duplicate = "duplicate",
        /// An authenticated peer asks for more pairs of SAs than a child needs.
        TooManyChildren = "too_many_children",
        /// An authenticated peer has made more IKE SAs of a tunnel than it needs; the oldest ends.
        TooManyIkeSas = "too_many_ike_sas",
        /// More requests in a short time than an honest peer has.
        RateLimit = "rate_limit",
        /// As many key exchanges of strangers are being computed as may be.
        Busy = "busy",
    }
}

impl DropReason {
    /// Whether honest peers cause it too, by repeating themselves or by having restarted.
    pub const fn is_ordinary(self) -> bool {
        match self {
            Self::UnknownSpi
            | Self::MessageId
            | Self::UnexpectedResponse
            | Self::UnexpectedExchange
            | Self::UnauthenticatedNotify
            | Self::Duplicate => true,
            Self::Malformed
            | Self::Version
            | Self::UnknownPeer
            | Self::Integrity
            | Self::Flags
            | Self::HalfOpenLimit
            | Self::BadCookie
            | Self::Fragment
            | Self::TooManyChildren
            | Self::TooManyIkeSas
            | Self::RateLimit
            | Self::Busy => false,
        }
    }
}

reasons! {
    /// Why a negotiation, or an established SA, failed.
    FailureReason {
        /// No answer after all retransmissions.
        PeerUnreachable = "peer_unreachable",
        /// No proposal in common.
        NoProposalChosen = "no_proposal_chosen",
        /// No key exchange group in common, or a ping-pong of INVALID_KE_PAYLOAD.
        InvalidKe = "invalid_ke_payload",
        /// The peer's AUTH is wrong (wrong PSK), or it says so of ours.
        AuthenticationFailed = "authentication_failed",
        /// The peer's identity is not the configured one.
        UnknownIdentity = "unknown_identity",
        /// No traffic selectors in common.
        TsUnacceptable = "ts_unacceptable",
        /// The peer takes one pair of networks into each child only (SINGLE_PAIR_REQUIRED, RFC 7296 §2.9).
        SinglePair = "single_pair_required",
        /// The peer has as many children as it wants (NO_ADDITIONAL_SAS).
        NoAdditionalSas = "no_additional_sas",
        /// The peer sent what the protocol does not allow here.
        InvalidSyntax = "invalid_syntax",
        /// The peer demanded cookies again and again.
        CookieLoop = "cookie_loop",
        /// The peer answered with another error notification.
        PeerError = "peer_error",
        /// The data plane refused an SA.
        DataPlane = "data_plane",
        /// The lifetime ended before a rekey succeeded.
        LifetimeExpired = "lifetime_expired",
        /// The address of the peer is not known (DNS).
        NoPeerAddress = "no_peer_address",
        /// The peer wanted to know nothing more of a child (RFC 7296 §2.25).
        TemporaryFailure = "temporary_failure",
        /// What was kept of the SA over a restart is older than what the peer knows.
        StateLost = "state_lost",
        /// The tunnel was taken down by command and stays so.
        Held = "held",
        /// A local failure, as of the random source.
        Internal = "internal",
    }
}

impl FailureReason {
    /// What an error notification of the peer means.
    pub const fn of_notify(kind: NotifyType) -> Self {
        match kind {
            NotifyType::NO_PROPOSAL_CHOSEN => Self::NoProposalChosen,
            NotifyType::INVALID_KE_PAYLOAD => Self::InvalidKe,
            NotifyType::AUTHENTICATION_FAILED => Self::AuthenticationFailed,
            NotifyType::TS_UNACCEPTABLE => Self::TsUnacceptable,
            NotifyType::SINGLE_PAIR_REQUIRED => Self::SinglePair,
            NotifyType::NO_ADDITIONAL_SAS => Self::NoAdditionalSas,
            NotifyType::INVALID_SYNTAX => Self::InvalidSyntax,
            // The peer has forgotten what an IKE_FOLLOWUP_KE is about: all of it begins anew (RFC 9370 §2.2.4).
            NotifyType::TEMPORARY_FAILURE | NotifyType::STATE_NOT_FOUND => Self::TemporaryFailure,
            _ => Self::PeerError,
        }
    }

    /// Whether a refusal of new keys is about the algorithms, or about any CREATE_CHILD_SA at all: then a new IKE SA may
    /// bring what a rekey does not, since its IKE_AUTH makes a child without key exchange (RFC 7296 §1.2).
    pub const fn spares_ike_auth(self) -> bool {
        matches!(self, Self::NoProposalChosen | Self::InvalidKe | Self::NoAdditionalSas)
    }

    /// One hint for whoever operates the gateway.
    pub const fn hint(self) -> &'static str {
        match self {
            Self::PeerUnreachable => "check the peer's address, and that UDP 500 and 4500 pass both ways",
            Self::NoProposalChosen => "compare the proposals of both ends",
            Self::InvalidKe => "compare the key exchange groups of both ends",
            Self::AuthenticationFailed => "compare the PSK of both ends",
            Self::UnknownIdentity => "compare local_id and remote_id with the peer's configuration",
            Self::TsUnacceptable => "compare the SPD rules of both ends; they must mirror each other",
            Self::SinglePair => {
                "the peer wants one pair of networks in each child; they are asked for one by one"
            }
            Self::NoAdditionalSas => {
                "the peer allows no more children; raise its limit, or merge the SPD rules"
            }
            Self::InvalidSyntax | Self::PeerError => "look into the peer's log",
            Self::CookieLoop => "the peer seems to be under load; it will be tried again",
            Self::DataPlane => "run cygnet doctor",
            Self::LifetimeExpired => "the peer did not answer the rekey; a new SA will be negotiated",
            Self::NoPeerAddress => "check the DNS name of the customer gateway",
            Self::TemporaryFailure => "the peer is busy with another exchange; it will be tried again",
            Self::StateLost => "a new SA is negotiated; check that the state directory can be written",
            Self::Held => "cygnet up takes the tunnel up again",
            Self::Internal => "look into the log",
        }
    }
}

/// What stands in the way of a configured child, or of a part of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// The kind.
    pub reason: FailureReason,
    /// One line: what was asked for, what came back.
    pub detail: String,
}
