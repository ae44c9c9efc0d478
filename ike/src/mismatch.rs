//! What two ends do not have in common, for people: a refusal that says "no proposal chosen" leaves them to guess.

use std::fmt;

use cygnet_model::addke::{AddKe, AdditionalOffer};
use cygnet_model::proposal::{EspProposal, IkeProposal};
use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::{Encr, Group, Integ, Prf};

use crate::coverage::list;
use crate::wire::{Proposal, Protocol, Transform, TransformType};

/// In which respect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Differs {
    /// Encryption algorithms.
    Encryption,
    /// Integrity algorithms.
    Integrity,
    /// Pseudorandom functions.
    Prf,
    /// Key exchange groups; of a child: PFS.
    KeyExchange,
    /// Additional key exchanges (RFC 9370).
    AdditionalKeyExchange,
    /// Extended sequence numbers.
    SequenceNumbers,
    /// No single kind: every kind of transform has something in common with one proposal or another.
    Proposals,
    /// The SPI cannot be used.
    Spi,
    /// Traffic selectors of our side.
    OurNetworks,
    /// Traffic selectors of the peer's side.
    TheirNetworks,
}

impl Differs {
    /// The word in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Encryption => "encryption",
            Self::Integrity => "integrity",
            Self::Prf => "PRF",
            Self::KeyExchange => "key exchange group",
            Self::AdditionalKeyExchange => "additional key exchange",
            Self::SequenceNumbers => "sequence numbers",
            Self::Proposals => "proposals",
            Self::Spi => "SPI",
            Self::OurNetworks => "our networks",
            Self::TheirNetworks => "the peer's networks",
        }
    }
}

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// In which respect.
    pub what: Differs,
    /// What the peer offered.
    pub offered: String,
    /// What we want.
    pub wanted: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the peer offers {}, we want {}", self.what.name(), self.offered, self.wanted)
    }
}

/// All of them in one line.
pub(crate) fn words(all: &[Mismatch]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Proposals as the configuration would list them.
pub(crate) fn listed<T: fmt::Display>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

/// Why none of a peer's IKE proposals fits ours.
pub(crate) fn ike(ours: &[IkeProposal], offered: &[Proposal]) -> Vec<Mismatch> {
    let wanted = |p: &IkeProposal| {
        let mut kinds = vec![
            (TransformType::ENCR, p.encrs.iter().map(|e| name_of_encr(*e)).collect()),
            (TransformType::INTEG, integs(&p.integs)),
            (TransformType::PRF, p.prfs.iter().map(|x| x.keyword().to_owned()).collect()),
            (TransformType::KE, p.groups.iter().map(|g| g.keyword().to_owned()).collect()),
        ];
        kinds.extend(additional(&p.additional));
        kinds
    };
    nearest(ours.iter().map(wanted).collect(), Protocol::IKE, offered, || listed(ours))
}

/// Why none of a peer's ESP proposals fits ours. In IKE_AUTH (`with_ke` false) no key exchange is negotiated.
pub(crate) fn esp(ours: &[EspProposal], offered: &[Proposal], with_ke: bool) -> Vec<Mismatch> {
    let wanted = |p: &EspProposal| {
        let mut kinds: Wanted = vec![
            (TransformType::ENCR, p.encrs.iter().map(|e| name_of_encr(*e)).collect()),
            (TransformType::INTEG, integs(&p.integs)),
            (TransformType::ESN, p.esn.iter().map(|e| name_of_esn(u16::from(*e))).collect()),
        ];
        if with_ke {
            let groups = p.groups.iter().map(|g| g.keyword().to_owned()).collect();
            kinds.push((TransformType::KE, or_none(groups)));
            kinds.extend(additional(&p.additional));
        }
        kinds
    };
    nearest(ours.iter().map(wanted).collect(), Protocol::ESP, offered, || listed(ours))
}

/// Key exchange groups that a peer names for a child in IKE_AUTH, where none is negotiated, if they tell already that
/// its rekeys will fail.
pub(crate) fn pfs_ahead(ours: &[EspProposal], offered: &[Proposal]) -> Option<Mismatch> {
    let named = offered.iter().flat_map(|p| p.transforms.iter()).any(|t| t.kind == TransformType::KE);
    let all = || esp(ours, offered, true).into_iter();
    if !named || all().len() != 1 {
        return None;
    }
    all().find(|m| m.what == Differs::KeyExchange)
}

/// Why a peer's selectors do not fit.
pub(crate) fn networks(
    ours: (&[TrafficSelector], &[TrafficSelector]),
    offered: (&[TrafficSelector], &[TrafficSelector]),
) -> Vec<Mismatch> {
    let overlaps = |a: &[TrafficSelector], b: &[TrafficSelector]| cygnet_model::selector::overlap(a, b);
    let mut out = Vec::new();
    for (what, wanted, offered) in
        [(Differs::OurNetworks, ours.0, offered.0), (Differs::TheirNetworks, ours.1, offered.1)]
    {
        if !overlaps(wanted, offered) {
            out.push(Mismatch { what, offered: list(offered), wanted: list(wanted) });
        }
    }
    out
}

/// Names of what a proposal of ours allows, by kind.
type Wanted = Vec<(TransformType, Vec<String>)>;

/// The differences of the two proposals that fit best.
fn nearest(
    ours: Vec<Wanted>,
    protocol: Protocol,
    offered: &[Proposal],
    whole: impl Fn() -> String,
) -> Vec<Mismatch> {
    let mut best: Option<Vec<Mismatch>> = None;
    for own in &ours {
        for p in offered.iter().filter(|p| p.protocol == protocol) {
            let differences: Vec<Mismatch> = own
                .iter()
                .filter_map(|(kind, wanted)| {
                    let offered = names(p, *kind);
                    let common = wanted.iter().any(|w| offered.contains(w));
                    (!common).then(|| Mismatch {
                        what: respect(*kind),
                        offered: offered.join(" or "),
                        wanted: wanted.join(" or "),
                    })
                })
                .collect();
            if best.as_ref().is_none_or(|b| differences.len() < b.len()) {
                best = Some(differences);
            }
        }
    }
    match best {
        Some(found) if !found.is_empty() => found,
        _ => {
            let count = offered.iter().filter(|p| p.protocol == protocol).count();
            let offered = format!("{count} for {protocol}, none with the kinds of transforms that we know");
            vec![Mismatch { what: Differs::Proposals, offered, wanted: whole() }]
        }
    }
}

fn respect(kind: TransformType) -> Differs {
    match kind {
        TransformType::ENCR => Differs::Encryption,
        TransformType::INTEG => Differs::Integrity,
        TransformType::PRF => Differs::Prf,
        TransformType::KE => Differs::KeyExchange,
        TransformType::ESN => Differs::SequenceNumbers,
        _ if kind.additional().is_some() => Differs::AdditionalKeyExchange,
        _ => Differs::Proposals,
    }
}

fn or_none(mut names: Vec<String>) -> Vec<String> {
    if names.is_empty() {
        names.push("none".to_owned());
    }
    names
}

fn integs(all: &[Integ]) -> Vec<String> {
    or_none(all.iter().map(|i| i.keyword().to_owned()).collect())
}

/// What a proposal of ours says of each additional key exchange.
fn additional(offer: &AdditionalOffer) -> impl Iterator<Item = (TransformType, Vec<String>)> + '_ {
    offer.iter().map(|(which, methods)| {
        let names = methods.iter().map(|method| method.map_or("none", Group::keyword).to_owned()).collect();
        (TransformType::of_additional(which), or_none(names))
    })
}

fn name_of_encr(e: Encr) -> String {
    e.info().keyword.to_owned()
}

/// A group by the number that stands on the wire.
pub(crate) fn name_of_group(number: u16) -> String {
    Group::from_transform(number).map_or_else(|| format!("number {number}"), |g| g.keyword().to_owned())
}

fn name_of_esn(id: u16) -> String {
    if id == 1 { "extended ones" } else { "32-bit ones" }.to_owned()
}

/// What a proposal of the peer names for one kind of transform. A list without end is cut.
fn names(p: &Proposal, kind: TransformType) -> Vec<String> {
    let all = p.transforms.iter().filter(|t| t.kind == kind).take(16).map(name).collect::<Vec<_>>();
    match kind {
        TransformType::INTEG | TransformType::KE => or_none(all),
        _ if kind.additional().is_some() => or_none(all),
        _ => all,
    }
}

/// A peer's proposal in the keywords of the configuration, in their usual order; what has none stands in brackets with its
/// number. Without key exchange as in IKE_AUTH.
pub(crate) fn keywords(p: &Proposal, with_ke: bool) -> String {
    use TransformType as T;
    let order = || {
        let more = AddKe::all().map(T::of_additional);
        [T::ENCR, T::INTEG, T::PRF, T::KE].into_iter().chain(more).chain([T::ESN])
    };
    let left_out = |t: &Transform| match t.kind {
        // None is written by leaving it out.
        TransformType::INTEG => t.id == 0,
        TransformType::KE => t.id == 0 || !with_ke,
        _ => !with_ke && t.kind.additional().is_some(),
    };
    let word = |t: &Transform| match t.kind {
        TransformType::ESN if t.id <= 1 => if t.id == 1 { "esn" } else { "noesn" }.to_owned(),
        kind => keyword(t).map_or_else(
            || {
                let bits = t.key_bits.map_or_else(String::new, |bits| format!(" with {bits} bits"));
                match respect(kind) {
                    Differs::Proposals => format!("[transform {} of type {}{bits}]", t.id, kind.0),
                    what => format!("[{} {}{bits}]", what.name(), t.id),
                }
            },
            |known| match kind.additional() {
                Some(which) => format!("ke{}_{known}", which.number()),
                None => known.to_owned(),
            },
        ),
    };
    let of = |kind| p.transforms.iter().filter(move |t| t.kind == kind);
    let others = p.transforms.iter().filter(|t| !order().any(|kind| kind == t.kind));
    let all = order().flat_map(of).chain(others).filter(|t| !left_out(t)).take(NAMED);
    all.map(word).collect::<Vec<_>>().join("-")
}

/// Most transforms of a proposal that are named.
const NAMED: usize = 32;

/// The key exchange groups of a peer's proposal, none left out.
pub(crate) fn groups(p: &Proposal) -> Vec<String> {
    p.transforms.iter().filter(|t| t.kind == TransformType::KE && t.id != 0).take(NAMED).map(name).collect()
}

fn keyword(t: &Transform) -> Option<&'static str> {
    match t.kind {
        TransformType::ENCR => Encr::from_transform(t.id, t.key_bits).map(|e| e.info().keyword),
        TransformType::PRF => Prf::from_transform(t.id).map(Prf::keyword),
        TransformType::INTEG => Integ::from_transform(t.id).map(Integ::keyword),
        TransformType::KE => Group::from_transform(t.id).map(Group::keyword),
        _ if t.kind.additional().is_some() && t.id == 0 => Some("none"),
        _ if t.kind.additional().is_some() => Group::from_transform(t.id).map(Group::keyword),
        _ => None,
    }
}

fn name(t: &Transform) -> String {
    let known = match t.kind {
        TransformType::INTEG | TransformType::KE if t.id == 0 => Some("none"),
        TransformType::ESN => return name_of_esn(t.id),
        _ => keyword(t),
    };
    match (known, t.key_bits) {
        (Some(known), _) => known.to_owned(),
        (None, Some(bits)) => format!("number {} with {bits} bits", t.id),
        (None, None) => format!("number {}", t.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{offer_esp, offer_ike};

    fn proposals(text: &str) -> Vec<EspProposal> {
        text.split(',').map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_kind_without_a_common_member_is_named_with_both_lists() {
        let offered = offer_esp(&proposals("aes128-sha256,aes128gcm16-x25519"), [0, 0, 1, 1], true);
        let found = esp(&proposals("aes256gcm16-x25519"), &offered, true);
        assert_eq!(words(&found), "encryption: the peer offers aes128gcm16, we want aes256gcm16");
        let ike_text = |t: &str| vec![t.parse::<IkeProposal>().unwrap()];
        let offered = offer_ike(&ike_text("aes256-sha256-modp2048"), &[]);
        let found = ike(&ike_text("aes256-sha384-x25519"), &offered);
        let kinds: Vec<Differs> = found.iter().map(|m| m.what).collect();
        assert_eq!(kinds, [Differs::Integrity, Differs::Prf, Differs::KeyExchange]);
    }

    #[test]
    fn an_additional_key_exchange_on_one_side_only_is_named() {
        let ike_text = |t: &str| vec![t.parse::<IkeProposal>().unwrap()];
        let hybrid = ike_text("aes256gcm16-prfsha384-x25519-ke1_mlkem768");
        let classic = ike_text("aes256gcm16-prfsha384-x25519");
        let found = |ours, theirs: &[IkeProposal]| words(&ike(ours, &offer_ike(theirs, &[])));
        assert_eq!(
            found(&hybrid, &classic),
            "additional key exchange: the peer offers none, we want mlkem768"
        );
        assert_eq!(
            found(&classic, &hybrid),
            "additional key exchange: the peer offers mlkem768, we want none"
        );
        let offer = offer_ike(&hybrid, &[]);
        assert_eq!(keywords(&offer[0], true), hybrid[0].to_string());
        assert_eq!(keywords(&offer[0], false), "aes256gcm16-prfsha384");
    }

    #[test]
    fn pfs_on_one_side_only_is_named_either_way_and_counts_only_where_groups_are_negotiated() {
        let (with, without) = (proposals("aes256gcm16-x25519"), proposals("aes256gcm16"));
        let offered = |p: &[EspProposal]| offer_esp(p, [0, 0, 1, 1], true);
        assert_eq!(
            words(&esp(&with, &offered(&without), true)),
            "key exchange group: the peer offers none, we want x25519"
        );
        assert_eq!(
            words(&esp(&without, &offered(&with), true)),
            "key exchange group: the peer offers x25519, we want none"
        );
        assert!(pfs_ahead(&without, &offered(&with)).is_some());
        // A peer that keeps to RFC 7296 §1.2 names no group in IKE_AUTH, which says nothing of its rekeys.
        assert_eq!(pfs_ahead(&with, &offered(&without)), None);
        assert_eq!(pfs_ahead(&with, &offered(&with)), None);
    }
}
