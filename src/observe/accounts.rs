//! The last negotiations of each tunnel, for `cygnet explain`: what the peer has proven to have said, and, apart from it,
//! what anybody may have said from its address.

use std::collections::{BTreeMap, HashSet};

use cygnet_ike::account::{Account, Item, Outcome, Role, Stage, Standing, Text, Verdict};
use cygnet_model::{Now, TunnelId};

/// How many texts there may be before those that nobody uses any more are let go.
const TEXTS: usize = 1024;

/// An account and when it was told.
pub type Told = (Now, Account);

/// See the [module](self).
#[derive(Default, Debug)]
pub struct Accounts {
    of: BTreeMap<TunnelId, Kept>,
    texts: Texts,
}

/// What is kept of a tunnel: one account of each sort, whatever happens and however often.
#[derive(Default, Debug)]
struct Kept {
    /// The authentication that succeeded last.
    begun: Option<Box<Told>>,
    /// The exchange on an established IKE SA that succeeded last.
    renewed: Option<Box<Told>>,
    /// What a peer that has proven to be it refused last, or was refused.
    failed: Option<Box<Told>>,
    /// Our last attempt that failed before the peer had proven anything.
    tried: Option<Box<Told>>,
    /// The last attempt of whoever sent from the peer's address.
    knocked: Option<Box<Told>>,
}

impl Accounts {
    /// Keeps an account instead of the one before it of the same sort.
    pub fn keep(&mut self, tunnel: TunnelId, now: Now, mut account: Account) {
        self.texts.share(&mut account);
        let kept = self.of.entry(tunnel).or_default();
        let slot = match (account.standing, &account.outcome, account.stage, account.role) {
            (Standing::Claimed, _, _, Role::Initiator) => &mut kept.tried,
            (Standing::Claimed, _, _, Role::Responder) => &mut kept.knocked,
            (Standing::Authenticated, Outcome::Agreed, Stage::Init | Stage::Auth, _) => &mut kept.begun,
            (Standing::Authenticated, Outcome::Agreed, _, _) => &mut kept.renewed,
            (Standing::Authenticated, _, _, _) => &mut kept.failed,
        };
        *slot = Some(Box::new((now, account)));
    }

    /// A tunnel's accounts, newest first.
    pub fn of(&self, tunnel: TunnelId) -> Vec<&Told> {
        let Some(k) = self.of.get(&tunnel) else { return Vec::new() };
        let all = [&k.begun, &k.renewed, &k.failed, &k.tried, &k.knocked];
        let mut all: Vec<&Told> = all.into_iter().flatten().map(|told| &**told).collect();
        all.sort_by_key(|(at, _)| std::cmp::Reverse(at.mono));
        all
    }

    /// Forgets the tunnels that are not wanted any more.
    pub fn retain(&mut self, wanted: impl Fn(TunnelId) -> bool) {
        self.of.retain(|id, _| wanted(*id));
    }
}

/// Texts that several accounts have: most tunnels of a gateway are alike in most of what they negotiate.
#[derive(Default, Debug)]
struct Texts {
    /// Looked up for every text of every account; nobody sees their order.
    known: HashSet<Text>,
    /// How many there were when those without a user were let go last.
    before: usize,
}

impl Texts {
    fn share(&mut self, account: &mut Account) {
        if self.known.len() > TEXTS.max(self.before.saturating_mul(2)) {
            self.known.retain(|text| Text::strong_count(text) > 1);
            self.before = self.known.len();
        }
        match &mut account.outcome {
            Outcome::Refused { detail, .. } | Outcome::Unanswered { detail } => self.one(detail),
            Outcome::Agreed => {}
        }
        for Item { ours, theirs, verdict, .. } in &mut account.items {
            self.one(ours);
            theirs.iter_mut().for_each(|text| self.one(text));
            match verdict {
                Verdict::Chosen(text, _) | Verdict::Refused { why: text, .. } | Verdict::Ahead(text) => {
                    self.one(text);
                }
                Verdict::Open => {}
            }
        }
    }

    fn one(&mut self, text: &mut Text) {
        match self.known.get(text) {
            Some(known) => *text = Text::clone(known),
            None => {
                self.known.insert(Text::clone(text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cygnet_ike::FailureReason;
    use cygnet_ike::account::{Party, Topic, Why};
    use cygnet_model::Timestamp;

    use super::*;

    fn at(n: u64) -> Now {
        Now { mono: Timestamp::from_nanos(n), unix: n }
    }

    fn account(standing: Standing, agreed: bool, text: &str) -> Account {
        let refused = || Outcome::Refused {
            by: Party::Peer,
            reason: FailureReason::NoProposalChosen,
            detail: text.into(),
        };
        Account {
            stage: Stage::Auth,
            role: Role::Responder,
            peer: "192.0.2.2:500".parse().unwrap(),
            standing,
            outcome: if agreed { Outcome::Agreed } else { refused() },
            items: vec![Item {
                topic: Topic::IkeProposal,
                ours: text.into(),
                theirs: None,
                verdict: Verdict::Chosen(text.into(), Why::Same),
            }],
        }
    }

    #[test]
    fn claims_of_strangers_replace_nothing_that_was_proven() {
        let mut a = Accounts::default();
        let id = TunnelId(1);
        a.keep(id, at(1), account(Standing::Authenticated, true, "good"));
        a.keep(id, at(2), account(Standing::Authenticated, false, "bad"));
        for n in 3..100 {
            a.keep(id, at(n), account(Standing::Claimed, false, &format!("claim {n}")));
        }
        let all = a.of(id);
        let ours: Vec<&str> = all.iter().map(|(_, a)| &*a.items[0].ours).collect();
        assert_eq!(ours, ["claim 99", "bad", "good"]);
        a.retain(|other| other != id);
        assert!(a.of(id).is_empty());
    }

    #[test]
    fn equal_texts_are_one_and_those_without_a_user_go() {
        let mut a = Accounts::default();
        for n in 0..10_000 {
            a.keep(
                TunnelId(n % 10),
                at(u64::from(n)),
                account(Standing::Claimed, false, &format!("text {n}")),
            );
            assert!(a.texts.known.len() <= 2 * TEXTS, "{}", a.texts.known.len());
        }
        a.keep(TunnelId(0), at(0), account(Standing::Authenticated, true, "same"));
        a.keep(TunnelId(1), at(0), account(Standing::Authenticated, true, "same"));
        let of = |n| a.of(TunnelId(n)).into_iter().find(|(_, a)| a.outcome == Outcome::Agreed).unwrap();
        assert!(Text::ptr_eq(&of(0).1.items[0].ours, &of(1).1.items[0].ours));
    }
}
