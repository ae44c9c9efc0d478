//! An account in the making: what IKE_SA_INIT and IKE_AUTH are about. Each method adds what the two ends had to say about a
//! topic, and the last one tells it.

use std::net::SocketAddr;

use cygnet_model::TunnelId;
use cygnet_model::proposal::IkeProposal;
use cygnet_model::suite::IkeSuite;

use super::{Account, Item, Outcome, Party, Role, Stage, Standing, Text, Topic, Verdict, Why, text, words};
use crate::error::FailureReason;
use crate::io::Event;
use crate::mismatch::{self, Differs};
use crate::policy::{RemoteId, TunnelPolicy};
use crate::wire::{AuthMethod, Identity, Proposal, Protocol};

/// How a tunnel authenticates.
const PSK: &str = "pre-shared key";

/// See the [module](self).
pub(crate) struct Draft {
    pub(super) role: Role,
    pub(super) items: Vec<Item>,
    stage: Stage,
    peer: SocketAddr,
    standing: Standing,
}

impl Draft {
    /// Of a negotiation with whoever sends from the peer's address.
    pub const fn claimed(stage: Stage, role: Role, peer: SocketAddr) -> Self {
        Self { stage, role, peer, standing: Standing::Claimed, items: Vec::new() }
    }

    /// Of a negotiation with a peer that has proven to be it.
    pub const fn authenticated(stage: Stage, role: Role, peer: SocketAddr) -> Self {
        Self { stage, role, peer, standing: Standing::Authenticated, items: Vec::new() }
    }

    /// Both ends agreed.
    pub fn agreed(self, tunnel: TunnelId) -> Event {
        self.end(tunnel, Outcome::Agreed)
    }

    /// One of them refused.
    pub fn refused(self, tunnel: TunnelId, by: Party, reason: FailureReason, detail: &str) -> Event {
        self.end(tunnel, Outcome::Refused { by, reason, detail: text(detail) })
    }

    /// No answer came.
    pub fn unanswered(self, tunnel: TunnelId, detail: &str) -> Event {
        self.end(tunnel, Outcome::Unanswered { detail: text(detail) })
    }

    fn end(self, tunnel: TunnelId, outcome: Outcome) -> Event {
        let Self { stage, role, peer, standing, mut items } = self;
        items.shrink_to_fit();
        let account = Account { stage, role, peer, standing, outcome, items };
        Event::Negotiated { tunnel, account: Box::new(account) }
    }

    pub(super) fn put(mut self, topic: Topic, ours: Text, theirs: Option<Text>, verdict: Verdict) -> Self {
        self.items.push(Item { topic, ours, theirs, verdict });
        self
    }

    /// The verdict about something that was chosen among ours.
    pub(super) fn choice(&self, what: Text, first: bool) -> Verdict {
        let why = match self.role {
            Role::Initiator => Why::PeersChoice,
            Role::Responder if first => Why::OurFirst,
            Role::Responder => Why::FirstCommon,
        };
        Verdict::Chosen(what, why)
    }

    /// Algorithms and group of the IKE SA were chosen, of what the peer offered or, as the initiator, of ours.
    pub fn ike_chosen(self, ours: &[IkeProposal], offered: Option<&[Proposal]>, suite: IkeSuite) -> Self {
        let first = words::is_first_ike(ours, suite);
        let theirs = offered.map(|o| words::offered(o, Protocol::IKE, true));
        let their_groups = offered.map(|o| words::offered_groups(o, Protocol::IKE));
        let proposal = self.choice(words::ike_suite(suite), first);
        let group = self.choice(text(suite.group.keyword()), first);
        self.put(Topic::IkeProposal, words::ike(ours), theirs, proposal).put(
            Topic::KeyExchange,
            groups_of(ours),
            their_groups,
            group,
        )
    }

    /// We refused what the peer offers for the IKE SA.
    pub fn ike_refused(self, ours: &[IkeProposal], offered: &[Proposal]) -> Self {
        let differs = mismatch::ike(ours, offered);
        let refused = |why: String| Verdict::Refused { by: Party::We, why: text(why) };
        let theirs = words::offered(offered, Protocol::IKE, true);
        let this =
            self.put(Topic::IkeProposal, words::ike(ours), Some(theirs), refused(mismatch::words(&differs)));
        if !differs.iter().any(|m| m.what == Differs::KeyExchange) {
            return this;
        }
        let theirs = words::offered_groups(offered, Protocol::IKE);
        this.put(Topic::KeyExchange, groups_of(ours), Some(theirs), refused("no group in common".to_owned()))
    }

    /// The peer answers our offer of an IKE SA with an error, or with what we cannot take; `group` is what it asks for in
    /// INVALID_KE_PAYLOAD.
    pub fn ike_answered(
        self,
        ours: &[IkeProposal],
        by: Party,
        reason: FailureReason,
        answer: Option<&[Proposal]>,
        group: Option<u16>,
    ) -> Self {
        let blamed = matches!(reason, FailureReason::NoProposalChosen);
        let verdict = match by {
            _ if !blamed => Verdict::Open,
            Party::We => Verdict::Refused { by, why: text("the peer's choice is none of ours") },
            Party::Peer => Verdict::Refused { by, why: text(UNTOLD) },
        };
        let theirs = answer.map(|a| words::offered(a, Protocol::IKE, true));
        let this = self.put(Topic::IkeProposal, words::ike(ours), theirs, verdict);
        let (theirs, verdict) = match (reason, group) {
            (FailureReason::InvalidKe, Some(number)) => {
                let why = text("the peer wants a group that we did not offer");
                (
                    Some(text(crate::mismatch::name_of_group(number))),
                    Verdict::Refused { by: Party::Peer, why },
                )
            }
            (FailureReason::InvalidKe, None) => {
                let why = text("the groups do not fit");
                (answer.map(|a| words::offered_groups(a, Protocol::IKE)), Verdict::Refused { by, why })
            }
            (FailureReason::NoProposalChosen, _) if by == Party::Peer => {
                (None, Verdict::Refused { by, why: text(UNTOLD) })
            }
            _ => (None, Verdict::Open),
        };
        this.put(Topic::KeyExchange, groups_of(ours), theirs, verdict)
    }

    /// Both ends are who they shall be. `asked` is whom the peer wanted, as the responder.
    pub fn known(self, policy: &TunnelPolicy, peer: &Identity, asked: Option<&Identity>) -> Self {
        let own = text(policy.local_id.with_kind());
        let why = match policy.remote_id {
            RemoteId::Any => Why::Anybody,
            RemoteId::Is(_) => Why::Configured,
        };
        let (they, key) = (text(peer.with_kind()), text(PSK));
        self.put(
            Topic::OurIdentity,
            own.clone(),
            asked.map(|a| text(a.with_kind())),
            Verdict::Chosen(own, Why::Configured),
        )
        .put(
            Topic::PeerIdentity,
            text(policy.remote_id.with_kind()),
            Some(they.clone()),
            Verdict::Chosen(they, why),
        )
        .put(
            Topic::Authentication,
            key.clone(),
            Some(key.clone()),
            Verdict::Chosen(key, Why::Proven),
        )
    }

    /// The peer names itself, and maybe us, and the tunnel has other names.
    pub fn named(self, policy: &TunnelPolicy, peer: &Identity, asked: Option<&Identity>) -> Self {
        let refused = |why: &str| Verdict::Refused { by: Party::We, why: text(why) };
        let ours = match asked {
            Some(asked) if *asked != policy.local_id => refused("the peer asks for somebody else"),
            _ => Verdict::Open,
        };
        let theirs = if policy.remote_id.admits(peer, &policy.local_id) {
            Verdict::Open
        } else {
            refused("the peer is somebody else")
        };
        self.put(
            Topic::OurIdentity,
            text(policy.local_id.with_kind()),
            asked.map(|a| text(a.with_kind())),
            ours,
        )
        .put(Topic::PeerIdentity, text(policy.remote_id.with_kind()), Some(text(peer.with_kind())), theirs)
        .put(Topic::Authentication, text(PSK), None, Verdict::Open)
    }

    /// The peer names itself rightly and does not prove it.
    pub fn unproven(self, policy: &TunnelPolicy, peer: &Identity, method: AuthMethod) -> Self {
        let (why, theirs) = if method == AuthMethod::SHARED_KEY_MIC {
            ("the peer has another key, or another idea of the names", PSK.to_owned())
        } else {
            ("the peer proves itself by another method", format!("{method}"))
        };
        let verdict = Verdict::Refused { by: Party::We, why: text(why) };
        let own = text(policy.local_id.with_kind());
        self.put(Topic::OurIdentity, own, None, Verdict::Open)
            .put(
                Topic::PeerIdentity,
                text(policy.remote_id.with_kind()),
                Some(text(peer.with_kind())),
                Verdict::Open,
            )
            .put(Topic::Authentication, text(PSK), Some(text(theirs)), verdict)
    }

    /// The peer refuses us before it has said who it is. What of it is wrong it keeps to itself (RFC 7296 §2.21.2).
    pub fn turned_away(self, policy: &TunnelPolicy, reason: FailureReason) -> Self {
        let verdict = |why: &str| match reason {
            FailureReason::AuthenticationFailed => Verdict::Refused { by: Party::Peer, why: text(why) },
            _ => Verdict::Open,
        };
        self.put(
            Topic::OurIdentity,
            text(policy.local_id.with_kind()),
            None,
            verdict("the peer does not say whether it was this name or the key"),
        )
        .put(
            Topic::PeerIdentity,
            text(policy.remote_id.with_kind()),
            None,
            verdict("or the name that we asked for"),
        )
        .put(Topic::Authentication, text(PSK), None, verdict("or the key"))
    }
}

/// What is said of a refusal without a reason.
pub(super) const UNTOLD: &str = "the peer does not say which part; compare with its configuration";

fn groups_of(ours: &[IkeProposal]) -> Text {
    words::groups(ours.iter().flat_map(|p| p.groups.iter().copied()))
}
