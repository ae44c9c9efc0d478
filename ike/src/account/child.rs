//! What the account of a child is about: algorithms, PFS, networks.

use cygnet_model::proposal::EspProposal;
use cygnet_model::selector::{TrafficSelector, same};
use cygnet_model::suite::EspSuite;

use super::draft::{Draft, UNTOLD};
use super::{Party, Text, Topic, Verdict, Why, text, words};
use crate::error::FailureReason;
use crate::mismatch::{self, Differs, Mismatch};
use crate::policy::TunnelPolicy;
use crate::wire::{Payloads, Protocol};

/// Networks of both sides.
pub(crate) type Sides<'a> = (&'a [TrafficSelector], &'a [TrafficSelector]);

/// What the peer had to say of a child as the initiator, seen from our side.
#[derive(Clone, Copy)]
pub(crate) struct Offer<'a>(pub &'a Payloads);

impl Offer<'_> {
    fn local(&self) -> &[TrafficSelector] {
        self.0.tsr.as_deref().unwrap_or_default()
    }

    fn remote(&self) -> &[TrafficSelector] {
        self.0.tsi.as_deref().unwrap_or_default()
    }

    fn proposals(&self, with_ke: bool) -> Text {
        words::offered(self.0.sa.as_deref().unwrap_or_default(), Protocol::ESP, with_ke)
    }

    fn groups(&self) -> Text {
        words::offered_groups(self.0.sa.as_deref().unwrap_or_default(), Protocol::ESP)
    }
}

impl Draft {
    /// A pair was made: by these proposals, of these networks of ours (all of the child, or what we asked for), with this
    /// suite and these networks. `offer` is the peer's, if we answered.
    pub fn child_chosen(
        self,
        ours: &[EspProposal],
        wanted: Sides<'_>,
        offer: Option<Offer<'_>>,
        suite: EspSuite,
        made: Sides<'_>,
        with_ke: bool,
    ) -> Self {
        let first = words::is_first_esp(ours, suite, with_ke);
        let chosen = self.choice(words::esp_suite(suite), first);
        let theirs = offer.map(|o| o.proposals(with_ke));
        let mut this = self.put(Topic::EspProposal, words::esp(ours, with_ke), theirs, chosen);
        if with_ke {
            let group = suite.group.map_or_else(|| text("none"), |g| text(g.keyword()));
            let verdict = this.choice(group, first);
            this = this.put(Topic::ChildKeyExchange, groups_of(ours), offer.map(|o| o.groups()), verdict);
        }
        let side =
            |wanted: &[TrafficSelector], theirs: Option<&[TrafficSelector]>, made: &[TrafficSelector]| {
                let why = match theirs {
                    _ if !same(wanted, made) => Why::Narrowed,
                    Some(theirs) if same(wanted, theirs) => Why::Same,
                    Some(_) => Why::Configured,
                    None => Why::Same,
                };
                let ours = words::networks(wanted);
                // Mostly they are the same.
                let words = |nets: &[TrafficSelector]| {
                    if nets == wanted { Text::clone(&ours) } else { words::networks(nets) }
                };
                (Text::clone(&ours), theirs.map(words), Verdict::Chosen(words(made), why))
            };
        let (a, b, c) = side(wanted.0, offer.as_ref().map(Offer::local), made.0);
        let this = this.put(Topic::OurNetworks, a, b, c);
        let (a, b, c) = side(wanted.1, offer.as_ref().map(Offer::remote), made.1);
        this.put(Topic::PeerNetworks, a, b, c)
    }

    /// The peer names groups for a child in IKE_AUTH, where none is negotiated, that its rekeys will not get.
    pub fn child_ahead(self, ours: &[EspProposal], offer: Offer<'_>, differs: &Mismatch) -> Self {
        let why = text(format!("the first rekey will be refused: {differs}"));
        self.put(Topic::ChildKeyExchange, groups_of(ours), Some(offer.groups()), Verdict::Ahead(why))
    }

    /// We refuse the peer's offer of a child: nothing of the tunnel fits, in these respects.
    pub fn child_refused(
        self,
        policy: &TunnelPolicy,
        offer: Offer<'_>,
        reason: FailureReason,
        differs: &[Mismatch],
        with_ke: bool,
    ) -> Self {
        let in_respect = |of: &dyn Fn(Differs) -> bool| {
            let of: Vec<Mismatch> = differs.iter().filter(|m| of(m.what)).cloned().collect();
            if of.is_empty() {
                return Verdict::Open;
            }
            Verdict::Refused { by: Party::We, why: text(mismatch::words(&of)) }
        };
        let algorithms = in_respect(&|w| {
            !matches!(w, Differs::OurNetworks | Differs::TheirNetworks | Differs::KeyExchange)
                || (w == Differs::KeyExchange && !with_ke)
        });
        let groups = in_respect(&|w| w == Differs::KeyExchange);
        let (mut ours, mut theirs) =
            (in_respect(&|w| w == Differs::OurNetworks), in_respect(&|w| w == Differs::TheirNetworks));
        if reason == FailureReason::TsUnacceptable && differs.is_empty() {
            let verdict = Verdict::Refused { by: Party::We, why: text("no rule has both sides") };
            (ours, theirs) = (verdict.clone(), verdict);
        }
        let all = |side: fn(&crate::policy::ChildPolicy) -> &Vec<TrafficSelector>| {
            words::networks(&policy.children.iter().flat_map(|(_, c)| side(c)).copied().collect::<Vec<_>>())
        };
        let proposals = policy.children.first().map_or(&[][..], |(_, c)| &c.proposals);
        let (esp, offered) = (words::esp(proposals, with_ke), Some(offer.proposals(with_ke)));
        let mut this = self.put(Topic::EspProposal, esp, offered, algorithms);
        if with_ke {
            this = this.put(Topic::ChildKeyExchange, groups_of(proposals), Some(offer.groups()), groups);
        }
        this.put(Topic::OurNetworks, all(|c| &c.local), Some(words::networks(offer.local())), ours).put(
            Topic::PeerNetworks,
            all(|c| &c.remote),
            Some(words::networks(offer.remote())),
            theirs,
        )
    }

    /// The peer refuses our offer of a child, or answers what we cannot take. `group` is what it asks for in
    /// INVALID_KE_PAYLOAD.
    #[allow(clippy::too_many_arguments, reason = "what the two ends said")]
    pub fn child_answered(
        self,
        ours: &[EspProposal],
        asked: Sides<'_>,
        answer: &Payloads,
        reason: FailureReason,
        differs: &[Mismatch],
        group: Option<u16>,
        with_ke: bool,
    ) -> Self {
        let by = if answer.error().is_some() { Party::Peer } else { Party::We };
        let refused = |why: &str| Verdict::Refused { by, why: text(why) };
        let differ = |of: &dyn Fn(Differs) -> bool| {
            let of: Vec<Mismatch> = differs.iter().filter(|m| of(m.what)).cloned().collect();
            (!of.is_empty()).then(|| refused(&mismatch::words(&of)))
        };
        let nets = |w: Differs| matches!(w, Differs::OurNetworks | Differs::TheirNetworks);
        let untold = |when: bool| if when && by == Party::Peer { refused(UNTOLD) } else { Verdict::Open };
        let algorithms = reason == FailureReason::NoProposalChosen;
        let selectors = matches!(reason, FailureReason::TsUnacceptable | FailureReason::SinglePair);
        let esp = differ(&|w| !nets(w) && w != Differs::KeyExchange).unwrap_or_else(|| untold(algorithms));
        let theirs = answer.sa.as_deref().map(|a| words::offered(a, Protocol::ESP, with_ke));
        let mut this = self.put(Topic::EspProposal, words::esp(ours, with_ke), theirs, esp);
        if with_ke {
            let (theirs, verdict) = match group {
                Some(number) => (
                    Some(text(crate::mismatch::name_of_group(number))),
                    refused("the peer wants a group that we did not offer"),
                ),
                None => (
                    None,
                    differ(&|w| w == Differs::KeyExchange)
                        .unwrap_or_else(|| untold(algorithms || reason == FailureReason::InvalidKe)),
                ),
            };
            this = this.put(Topic::ChildKeyExchange, groups_of(ours), theirs, verdict);
        }
        let side = |what: Differs| differ(&|w| w == what).unwrap_or_else(|| untold(selectors));
        let said = |ts: &Option<Vec<TrafficSelector>>| ts.as_deref().map(words::networks);
        this.put(Topic::OurNetworks, words::networks(asked.0), said(&answer.tsi), side(Differs::OurNetworks))
            .put(
                Topic::PeerNetworks,
                words::networks(asked.1),
                said(&answer.tsr),
                side(Differs::TheirNetworks),
            )
    }
}

fn groups_of(ours: &[EspProposal]) -> Text {
    words::groups(ours.iter().flat_map(|p| p.groups.iter().copied()))
}
