//! What a negotiation was about and what came of it, topic by topic: what we offered or wanted, what the peer offered or
//! answered, what was chosen or refused, and why. `cygnet explain` shows it.
//!
//! An account is told when an exchange is over ([`crate::io::Event::Negotiated`]) and never kept here. It decides nothing,
//! and its size is bounded, whatever a peer sends. What a stranger said is told as a claim ([`Standing::Claimed`]): from
//! an address that a tunnel has for its peer, but anybody may have sent it.

mod child;
mod draft;
mod words;

use std::net::SocketAddr;
use std::sync::Arc;

pub use cygnet_model::negotiation::Role;

pub(crate) use self::child::Offer;
pub(crate) use self::draft::Draft;
use crate::error::FailureReason;

/// A text that equal accounts may share.
pub type Text = Arc<str>;

/// How often strangers' refusals are told as accounts: one in this time, and so many at once.
pub(crate) const CLAIMS: (std::time::Duration, u32) = (std::time::Duration::from_millis(100), 32);

/// For how many tunnels between the same two addresses one refusal of a stranger is told.
pub(crate) const TOLD: usize = 8;

/// Which exchange it was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stage {
    /// IKE_SA_INIT, where the negotiation ended.
    Init,
    /// IKE_AUTH, with what IKE_SA_INIT chose before.
    Auth,
    /// CREATE_CHILD_SA for a new pair of SAs.
    Child,
    /// CREATE_CHILD_SA for new keys of a pair.
    RekeyChild,
    /// CREATE_CHILD_SA for new keys of the IKE SA.
    RekeyIke,
}

impl Stage {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Init => "ike-sa-init",
            Self::Auth => "ike-auth",
            Self::Child => "create-child",
            Self::RekeyChild => "rekey-child",
            Self::RekeyIke => "rekey-ike",
        }
    }
}

/// Who says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// The peer, who has proven to be it.
    Authenticated,
    /// Whoever sends from the peer's address.
    Claimed,
}

/// One of the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Party {
    /// This gateway.
    We,
    /// The other end.
    Peer,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Both ends agreed.
    Agreed,
    /// One end refused.
    Refused {
        /// Which.
        by: Party,
        /// Why.
        reason: FailureReason,
        /// One line: what was asked for, what came back.
        detail: Text,
    },
    /// No answer came.
    Unanswered {
        /// One line: what was not answered.
        detail: Text,
    },
}

/// What one line of an account is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Topic {
    /// Algorithms of the IKE SA.
    IkeProposal,
    /// Key exchange of the IKE SA.
    KeyExchange,
    /// Who we are.
    OurIdentity,
    /// Who the peer is.
    PeerIdentity,
    /// How that is proven.
    Authentication,
    /// Algorithms of the ESP SAs.
    EspProposal,
    /// Key exchange of the ESP SAs (PFS).
    ChildKeyExchange,
    /// Traffic selectors of our side.
    OurNetworks,
    /// Traffic selectors of the peer's side.
    PeerNetworks,
}

impl Topic {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IkeProposal => "ike-proposal",
            Self::KeyExchange => "key-exchange",
            Self::OurIdentity => "our-identity",
            Self::PeerIdentity => "peer-identity",
            Self::Authentication => "authentication",
            Self::EspProposal => "esp-proposal",
            Self::ChildKeyExchange => "child-key-exchange",
            Self::OurNetworks => "our-networks",
            Self::PeerNetworks => "peer-networks",
        }
    }
}

/// Why something was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It is the first of ours, and the peer offers it.
    OurFirst,
    /// It is the first of ours that the peer offers too.
    FirstCommon,
    /// The peer chose it among ours.
    PeersChoice,
    /// Both ends have the same.
    Same,
    /// It is what both ends have in common, and less than we have.
    Narrowed,
    /// It is what is configured.
    Configured,
    /// Whoever proves to know the key is let in.
    Anybody,
    /// The proof was right.
    Proven,
}

impl Why {
    /// The words for it.
    pub const fn words(self) -> &'static str {
        match self {
            Self::OurFirst => "our first choice, and the peer offers it",
            Self::FirstCommon => "the first of ours that the peer offers too",
            Self::PeersChoice => "the peer's choice among ours",
            Self::Same => "both ends have the same",
            Self::Narrowed => "what both ends have in common; it is less than we have",
            Self::Configured => "as configured",
            Self::Anybody => "the tunnel takes whoever proves to know its key",
            Self::Proven => "the peer has proven to know it",
        }
    }
}

/// What became of a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// This is in force.
    Chosen(Text, Why),
    /// It is why the negotiation was refused, or may be.
    Refused {
        /// Who refused.
        by: Party,
        /// In which respect.
        why: Text,
    },
    /// The negotiation works, and this will go wrong later.
    Ahead(Text),
    /// It did not come to that, or it was not what was wrong.
    Open,
}

/// One topic of a negotiation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// Which.
    pub topic: Topic,
    /// What we offered as the initiator, or wanted as the responder.
    pub ours: Text,
    /// What the peer offered or answered; `None`: it did not say.
    pub theirs: Option<Text>,
    /// What became of it.
    pub verdict: Verdict,
}

/// A negotiation that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    /// Which exchange it was.
    pub stage: Stage,
    /// Our part in it.
    pub role: Role,
    /// The other end.
    pub peer: SocketAddr,
    /// Who says so.
    pub standing: Standing,
    /// What came of it.
    pub outcome: Outcome,
    /// Topic by topic.
    pub items: Vec<Item>,
}

/// Longest text of an account, in characters. Our own defaults take some 250.
const LONGEST: usize = 600;

/// A text that is not longer than it may be.
pub(crate) fn text(of: impl AsRef<str>) -> Text {
    let of = of.as_ref();
    // As many octets have no more characters.
    if of.len() <= LONGEST {
        return of.into();
    }
    match of.char_indices().nth(LONGEST) {
        None => of.into(),
        Some((end, _)) => format!("{}…", of.get(..end).unwrap_or_default()).into(),
    }
}
