//! Proposals and selectors as they stand in the configuration, so that what a peer offers can be written there.

use std::fmt::{self, Write as _};

use cygnet_model::addke::{Additional, AdditionalOffer};
use cygnet_model::proposal::{EspProposal, IkeProposal};
use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::{EspSuite, Group, IkeSuite};

use super::{Text, text};
use crate::mismatch;
use crate::wire::{Proposal, Protocol};

/// Most proposals, or selectors, of a list that are named.
const NAMED: usize = 12;

fn join(all: impl Iterator<Item = impl fmt::Display>, sep: &str) -> String {
    // Most texts fit, and do not move as they grow.
    let mut out = String::with_capacity(64);
    for (n, one) in all.take(NAMED + 1).enumerate() {
        if n > 0 {
            out.push_str(sep);
        }
        if n == NAMED {
            out.push('…');
        } else {
            // A String takes anything.
            let _ = write!(out, "{one}");
        }
    }
    out
}

/// Our own IKE proposals.
pub(super) fn ike(ours: &[IkeProposal]) -> Text {
    text(join(ours.iter(), ", "))
}

/// Our own ESP proposals. Those of IKE_AUTH have no key exchange.
pub(super) fn esp(ours: &[EspProposal], with_ke: bool) -> Text {
    if with_ke {
        return text(join(ours.iter(), ", "));
    }
    let bare = |p: &EspProposal| EspProposal {
        groups: Vec::new(),
        additional: AdditionalOffer::default(),
        ..p.clone()
    };
    text(join(ours.iter().map(bare), ", "))
}

/// A peer's proposals of one protocol, in keywords where we know them.
pub(super) fn offered(all: &[Proposal], protocol: Protocol, with_ke: bool) -> Text {
    let of = all.iter().filter(|p| p.protocol == protocol);
    let words = join(of.map(|p| mismatch::keywords(p, with_ke)), ", ");
    text(if words.is_empty() { format!("nothing for {protocol}") } else { words })
}

pub(super) fn ike_suite(s: IkeSuite) -> Text {
    let p = IkeProposal {
        encrs: vec![s.encr],
        integs: s.integ.into_iter().collect(),
        prfs: vec![s.prf],
        groups: vec![s.group],
        additional: AdditionalOffer::only(&s.additional),
    };
    ike(&[p])
}

pub(super) fn esp_suite(s: EspSuite) -> Text {
    let p = EspProposal {
        encrs: vec![s.encr],
        integs: s.integ.into_iter().collect(),
        groups: s.group.into_iter().collect(),
        additional: AdditionalOffer::only(&s.additional),
        esn: vec![s.esn],
    };
    esp(&[p], true)
}

/// Each group of a list once, in its order.
pub(super) fn groups(all: impl Iterator<Item = Group>) -> Text {
    let mut seen: Vec<Group> = Vec::new();
    for g in all {
        if !seen.contains(&g) {
            seen.push(g);
        }
    }
    if seen.is_empty() {
        return text("none");
    }
    text(seen.iter().map(|g| g.keyword()).collect::<Vec<_>>().join(", "))
}

/// The groups that a peer offers.
pub(super) fn offered_groups(all: &[Proposal], protocol: Protocol) -> Text {
    let mut names: Vec<String> = Vec::new();
    for name in all.iter().filter(|p| p.protocol == protocol).flat_map(mismatch::groups) {
        if !names.contains(&name) && names.len() <= NAMED {
            names.push(name);
        }
    }
    text(if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

pub(super) fn networks(all: &[TrafficSelector]) -> Text {
    text(join(all.iter(), ", "))
}

/// Whether a suite is what our list begins with: what we would choose if a peer offered just that list.
pub(super) fn is_first_ike(ours: &[IkeProposal], suite: IkeSuite) -> bool {
    let first = |own: &IkeProposal| {
        let (group, additional) = first_exchanges(&own.groups, &own.additional)?;
        let (encr, integ) = (*own.encrs.first()?, own.integs.first().copied());
        Some(IkeSuite { encr, integ, prf: *own.prfs.first()?, group, additional })
    };
    ours.iter().find_map(first) == Some(suite)
}

/// The same of ESP; `with_ke` as in the exchange.
pub(super) fn is_first_esp(ours: &[EspProposal], suite: EspSuite, with_ke: bool) -> bool {
    let first = |own: &EspProposal| {
        let (group, additional) = if with_ke && !own.groups.is_empty() {
            first_exchanges(&own.groups, &own.additional).map(|(group, more)| (Some(group), more))?
        } else {
            (None, Additional::NONE)
        };
        let (encr, integ) = (*own.encrs.first()?, own.integs.first().copied());
        Some(EspSuite { encr, integ, group, additional, esn: *own.esn.first()? })
    };
    ours.iter().find_map(first) == Some(suite)
}

fn first_exchanges(groups: &[Group], additional: &AdditionalOffer) -> Option<(Group, Additional)> {
    groups.iter().find_map(|group| Some((*group, additional.choose(additional, Some(*group))?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;
    use crate::wire::{Transform, TransformType};

    #[test]
    fn what_a_peer_offers_can_be_pasted_and_what_we_do_not_know_is_numbered() {
        let ours: Vec<IkeProposal> = vec!["aes128-sha256-modp2048".parse().unwrap()];
        let mut offer = policy::offer_ike(&ours, &[]);
        let pasted = offered(&offer, Protocol::IKE, true);
        assert_eq!(pasted.parse::<IkeProposal>().unwrap(), ours[0]);
        offer[0].transforms.push(Transform::plain(TransformType::KE, 999));
        let words = offered(&offer, Protocol::IKE, true);
        assert!(words.ends_with("modp2048-[key exchange group 999]"), "{words}");
        assert_eq!(&*offered_groups(&offer, Protocol::IKE), "modp2048, number 999");
    }

    #[test]
    fn what_comes_first_is_what_we_choose_of_our_own_list() {
        for ours in [
            "aes256gcm16-prfsha384-x25519",
            "aes128gcm16-aes256gcm16-prfsha512-prfsha256-ecp256-modp2048",
            "aes256-aes128-sha256-sha384-ecp384",
            "aes256gcm16-prfsha256-x25519-ecp256-ke1_mlkem768-ke1_none",
            "aes256gcm16-prfsha256-x25519-ke1_x25519-ke1_mlkem768",
        ] {
            let all: Vec<IkeProposal> =
                vec![ours.parse().unwrap(), "aes192-sha512-modp3072".parse().unwrap()];
            let (first, ..) = policy::choose_ike(&all, &policy::offer_ike(&all, &[]), 0).unwrap();
            assert!(is_first_ike(&all, first), "{ours}");
            let (second, ..) = policy::choose_ike(&all[1..], &policy::offer_ike(&all, &[]), 0).unwrap();
            assert!(!is_first_ike(&all, second), "{ours}");
        }
        for ours in ["aes256gcm16", "aes128gcm16-aes256gcm16-x25519-ecp256", "aes256-sha256-esn-noesn"] {
            let all: Vec<EspProposal> = vec![ours.parse().unwrap(), "aes192-sha512".parse().unwrap()];
            for with_ke in [false, true] {
                let offer = policy::offer_esp(&all, [0, 0, 1, 0], with_ke);
                let (first, ..) = policy::choose_esp(&all, &offer, with_ke).unwrap();
                assert!(is_first_esp(&all, first, with_ke), "{ours}");
                let (second, ..) = policy::choose_esp(&all[1..], &offer, with_ke).unwrap();
                assert!(!is_first_esp(&all, second, with_ke), "{ours}");
            }
        }
    }

    #[test]
    fn no_list_of_a_peer_makes_a_long_text() {
        let ours: Vec<IkeProposal> = vec!["aes128-sha256-modp2048".parse().unwrap()];
        let one = policy::offer_ike(&ours, &[]).remove(0);
        let mut many = vec![one; 255];
        many.iter_mut().for_each(|p| {
            p.transforms = (0..255).map(|n| Transform::plain(TransformType(77), n)).collect();
        });
        let words = offered(&many, Protocol::IKE, true);
        assert!(words.chars().count() <= super::super::LONGEST + 1, "{}", words.chars().count());
        let groups = offered_groups(&many, Protocol::IKE);
        assert_eq!(&*groups, "none");
    }
}
