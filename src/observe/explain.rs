//! What `cygnet explain` shows: the accounts of a tunnel's last negotiations, each with the line of the configuration that
//! would change its outcome.

use cygnet_ike::account::{Account, Item, Outcome, Party, Role, Standing, Topic, Verdict};
use cygnet_model::Now;
use cygnet_model::proposal::{EspProposal, IkeProposal, Permit};
use serde::{Deserialize, Serialize};

use super::accounts::Told;
use super::{one_line, rfc3339};
use crate::config::lines::{Key, Place};

/// The last negotiations of a tunnel.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Explanation {
    /// Version of the JSON form.
    pub version: u32,
    /// The tunnel.
    pub tunnel: String,
    /// Newest first, those that are claims at last; empty if there was none since the daemon started.
    pub negotiations: Vec<Negotiation>,
}

impl Negotiation {
    /// Whether it is nothing but what somebody said who came from the peer's address: anybody can.
    pub fn is_claim(&self) -> bool {
        !self.authenticated && self.role == "responder"
    }
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Negotiation {
    /// When it was over, RFC 3339.
    pub time: String,
    /// The same as an age.
    pub ago_s: u64,
    /// `ike-sa-init`, `ike-auth`, `create-child`, `rekey-child` or `rekey-ike`.
    pub exchange: String,
    /// `initiator` or `responder`.
    pub role: String,
    /// The other end.
    pub peer: String,
    /// Whether the other end had proven to be the peer. If not, anybody at its address may have sent what is shown.
    pub authenticated: bool,
    /// `agreed`, `refused` or `unanswered`.
    pub outcome: String,
    /// Who refused: `us` or `peer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, by the name that metrics have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was asked for and what came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Topic by topic.
    pub topics: Vec<Point>,
}

/// One topic of a negotiation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Point {
    /// Which, as in `ike-proposal`.
    pub topic: String,
    /// What we offered, as the initiator, or wanted.
    pub ours: String,
    /// What the peer offered, or answered as the responder; null if it did not say.
    pub theirs: Option<String>,
    /// `chosen`, `refused`, `ahead` (it works and will fail later) or `open` (it did not come to that).
    pub result: String,
    /// What is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
}

/// What to change in the configuration.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Change {
    /// As in `/etc/cygnet/cygnet.yaml:23`.
    pub place: String,
    /// As in `tunnels[0].ike.proposals`.
    pub key: String,
    /// What to do there, or at the peer's end.
    pub how: String,
}

/// Explains the accounts of a tunnel at a moment. `place` knows where its keys stand in which file.
pub fn explain(
    tunnel: &str,
    told: &[&Told],
    now: Now,
    place: &dyn Fn(Key) -> Option<(String, Place)>,
) -> Explanation {
    let one = |(at, account): &Told| negotiation(*at, account, now, place);
    let mut negotiations: Vec<Negotiation> = told.iter().map(|told| one(told)).collect();
    // What nobody has proven stands before nothing.
    negotiations.sort_by_key(Negotiation::is_claim);
    Explanation { version: 1, tunnel: tunnel.to_owned(), negotiations }
}

fn negotiation(
    at: Now,
    account: &Account,
    now: Now,
    place: &dyn Fn(Key) -> Option<(String, Place)>,
) -> Negotiation {
    let (outcome, by, reason, detail) = match &account.outcome {
        Outcome::Agreed => ("agreed", None, None, None),
        Outcome::Refused { by, reason, detail } => ("refused", Some(party(*by)), Some(*reason), Some(detail)),
        Outcome::Unanswered { detail } => ("unanswered", None, None, Some(detail)),
    };
    Negotiation {
        time: rfc3339(at.unix),
        ago_s: now.mono.since(at.mono).as_secs(),
        exchange: account.stage.name().to_owned(),
        role: account.role.name().to_owned(),
        peer: account.peer.to_string(),
        authenticated: account.standing == Standing::Authenticated,
        outcome: outcome.to_owned(),
        by: by.map(str::to_owned),
        reason: reason.map(|r| r.name().to_owned()),
        detail: detail.map(|d| one_line(d)),
        topics: account.items.iter().map(|item| point(account, item, place)).collect(),
    }
}

const fn party(by: Party) -> &'static str {
    match by {
        Party::We => "us",
        Party::Peer => "peer",
    }
}

fn point(account: &Account, item: &Item, place: &dyn Fn(Key) -> Option<(String, Place)>) -> Point {
    let (result, chosen, why) = match &item.verdict {
        Verdict::Chosen(what, why) => ("chosen", Some(what.to_string()), Some(why.words().to_owned())),
        Verdict::Refused { why, .. } => ("refused", None, Some(why.to_string())),
        Verdict::Ahead(why) => ("ahead", None, Some(why.to_string())),
        Verdict::Open => ("open", None, None),
    };
    let wrong = matches!(item.verdict, Verdict::Refused { .. } | Verdict::Ahead(_));
    let change = || {
        let (file, place) = place(key_of(item.topic))?;
        let how = advice(account, item);
        let how = if place.written { how } else { format!("it is not written there yet: {how}") };
        Some(Change { place: format!("{file}:{}", place.line), key: place.path, how })
    };
    Point {
        topic: item.topic.name().to_owned(),
        ours: item.ours.to_string(),
        theirs: item.theirs.as_ref().map(ToString::to_string),
        result: result.to_owned(),
        chosen,
        why,
        change: wrong.then(change).flatten(),
    }
}

/// What of the configuration a topic is about.
const fn key_of(topic: Topic) -> Key {
    match topic {
        Topic::IkeProposal | Topic::KeyExchange => Key::IkeProposals,
        Topic::OurIdentity => Key::LocalId,
        Topic::PeerIdentity => Key::RemoteId,
        Topic::Authentication => Key::Auth,
        Topic::EspProposal | Topic::ChildKeyExchange => Key::EspProposals,
        Topic::OurNetworks | Topic::PeerNetworks => Key::Spd,
    }
}

/// What would make both ends agree, as far as it can be told from here.
fn advice(account: &Account, item: &Item) -> String {
    let answers = account.role == Role::Responder;
    let Some(theirs) = item.theirs.as_deref() else {
        return match item.topic {
            Topic::IkeProposal | Topic::EspProposal => {
                "write what the peer takes, as its configuration or its log says".to_owned()
            }
            Topic::KeyExchange | Topic::ChildKeyExchange => {
                "end each proposal with a group that the peer takes, or with none if it takes none".to_owned()
            }
            Topic::OurIdentity => "make it the name that the peer expects of us".to_owned(),
            Topic::PeerIdentity => "make it the name that the peer gives itself".to_owned(),
            Topic::Authentication => "give both ends the same key".to_owned(),
            Topic::OurNetworks | Topic::PeerNetworks => {
                "the rules of both ends must mirror each other; compare with the peer's".to_owned()
            }
        };
    };
    match item.topic {
        Topic::IkeProposal | Topic::EspProposal => match sound(item.topic, theirs) {
            Some(offered) if answers => {
                format!("add {offered}, which the peer offers, or have the peer offer one of ours")
            }
            Some(offered) => {
                format!("add {offered}, which the peer chose, or have the peer choose one of ours")
            }
            None => "have the peer offer one of ours: it offers nothing that is taken here without \
                     legacy: true"
                .to_owned(),
        },
        Topic::KeyExchange => {
            format!(
                "end a proposal with a group that the peer takes ({theirs}), or have the peer take one of ours"
            )
        }
        Topic::ChildKeyExchange if theirs == "none" => {
            "leave the group out, or have the peer use PFS with one of ours".to_owned()
        }
        Topic::ChildKeyExchange => {
            format!(
                "end a proposal with a group that the peer takes ({theirs}), or have the peer do as we do"
            )
        }
        Topic::OurIdentity => {
            format!("make it {theirs}, which the peer asks for, or correct whom the peer expects")
        }
        Topic::PeerIdentity => {
            format!("make it {theirs}, as the peer calls itself, or correct the peer's own name")
        }
        Topic::Authentication => "give both ends the same key".to_owned(),
        Topic::OurNetworks => {
            format!("make local {theirs}, which the peer has, or have the peer mirror ours")
        }
        Topic::PeerNetworks => {
            format!("make remote {theirs}, which the peer has, or have the peer mirror ours")
        }
    }
}

/// The first of a peer's proposals that may be written into the configuration as it is.
fn sound(topic: Topic, theirs: &str) -> Option<&str> {
    let good = |text: &&str| match topic {
        Topic::IkeProposal => IkeProposal::read(text, Permit::Sound).is_ok(),
        _ => EspProposal::read(text, Permit::Sound).is_ok(),
    };
    theirs.split(", ").find(good)
}
