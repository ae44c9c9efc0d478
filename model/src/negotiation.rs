//! How a tunnel comes up and on which path: what the configuration says and the protocol obeys.

/// Who begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// We initiate at once, and again for ever while the tunnel is down.
    Active,
    /// We wait for the peer.
    Passive,
    /// The first packet makes us initiate.
    OnDemand,
}

impl Start {
    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
            Self::OnDemand => "on-demand",
        }
    }
}

/// When ESP travels in UDP (RFC 3948).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encap {
    /// Where a NAT is detected.
    Auto,
    /// Always: we pretend to be behind a NAT (RFC 7296 §2.23 lets either side encapsulate).
    Force,
    /// The same, and what we begin we begin on UDP 4500, so that nothing goes by UDP 500 (RFC 7296 §2.23 allows it).
    FromStart,
}

impl Encap {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Force => "force",
            Self::FromStart => "from-start",
        }
    }

    /// Whether ESP travels in UDP also where no NAT is detected.
    pub const fn is_forced(self) -> bool {
        matches!(self, Self::Force | Self::FromStart)
    }
}

/// Our part in an IKE SA.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// Sent the first message of the IKE SA.
    Initiator,
    /// Answered it.
    Responder,
}

impl Role {
    /// The word used in status output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Initiator => "initiator",
            Self::Responder => "responder",
        }
    }
}
