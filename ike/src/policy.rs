//! Who may connect with what: the resolved tunnels, and the choice of algorithms.

mod table;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use cygnet_model::addke::{Additional, AdditionalOffer};
pub use cygnet_model::negotiation::{Encap, Start};
use cygnet_model::proposal::{EspProposal, IkeProposal};
use cygnet_model::selector::TrafficSelector;
use cygnet_model::suite::{Encr, EspSuite, Group, IkeSuite, Integ, Prf};
use cygnet_model::tunnel::Mark;
use cygnet_model::{SecretBytes, TunnelId};

pub(crate) use self::table::Policies;
use crate::wire::{Identity, Proposal, Protocol, Transform, TransformType};

/// Who the peer must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RemoteId {
    /// Whoever knows the key, but not somebody with our own name: that would be our own message, sent back to us.
    Any,
    /// This one.
    Is(Identity),
}

impl RemoteId {
    /// Whether a peer may be this one, towards us under the name `own`.
    pub fn admits(&self, peer: &Identity, own: &Identity) -> bool {
        match self {
            Self::Any => peer != own,
            Self::Is(id) => peer == id,
        }
    }

    /// For messages: type and value, or `anybody`.
    pub fn with_kind(&self) -> String {
        match self {
            Self::Any => "anybody".to_owned(),
            Self::Is(id) => id.with_kind(),
        }
    }

    /// What we ask the responder to be (IDr, RFC 7296 §1.2).
    pub(crate) fn asked(&self) -> Option<Identity> {
        match self {
            Self::Any => None,
            Self::Is(id) => Some(id.clone()),
        }
    }
}

impl From<Identity> for RemoteId {
    fn from(id: Identity) -> Self {
        Self::Is(id)
    }
}

/// Retransmission of requests (RFC 7296 §2.4).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Retransmit {
    /// Wait before the first repetition.
    pub initial: Duration,
    /// Each wait is this much longer than the one before, ± 10 % jitter.
    pub factor: f64,
    /// Longest wait.
    pub max: Duration,
    /// How often a request is sent in all before the peer counts as dead.
    pub tries: u32,
}

impl Default for Retransmit {
    /// 0.5, 0.9, 1.6, 2.9, 5.2, 9.4, 16 s: a dead peer is noticed after about 37 s.
    fn default() -> Self {
        Self { initial: Duration::from_millis(500), factor: 1.8, max: Duration::from_secs(16), tries: 7 }
    }
}

/// One child of a tunnel.
#[derive(Clone, PartialEq, Debug)]
pub struct ChildPolicy {
    /// Our side, never empty.
    pub local: Vec<TrafficSelector>,
    /// The peer's side, never empty.
    pub remote: Vec<TrafficSelector>,
    /// Acceptable algorithms, preferred first.
    pub proposals: Vec<EspProposal>,
    /// Time after which a pair of SAs must be gone; rekeyed before.
    pub lifetime: Duration,
    /// Octets after which a pair must be gone; 0 = no limit. Rekeyed when a tenth is left, or up to half of it where that does not last.
    pub bytes: u64,
    /// Anti-replay window in packets; 0 = off.
    pub replay_window: u32,
    /// Mark of the packets.
    pub mark: Option<Mark>,
    /// Preference among children of several tunnels that claim the same packets; the lowest one wins.
    pub weight: u16,
}

/// The children of a tunnel by their numbers, which are those of [`cygnet_model::ChildId`]. A number stays with its child
/// when others come and go.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Children(BTreeMap<u16, ChildPolicy>);

impl Children {
    /// The child of that number.
    pub fn get(&self, index: u16) -> Option<&ChildPolicy> {
        self.0.get(&index)
    }

    /// The child with the smallest number, which IKE_AUTH makes.
    pub fn first(&self) -> Option<(u16, &ChildPolicy)> {
        self.iter().next()
    }

    /// All of them, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &ChildPolicy)> {
        self.0.iter().map(|(index, child)| (*index, child))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u16, ChildPolicy)> for Children {
    fn from_iter<T: IntoIterator<Item = (u16, ChildPolicy)>>(children: T) -> Self {
        Self(children.into_iter().collect())
    }
}

impl From<Vec<ChildPolicy>> for Children {
    /// Numbered from 0.
    fn from(children: Vec<ChildPolicy>) -> Self {
        (0..).zip(children).collect()
    }
}

#[cfg(feature = "test-util")]
impl Children {
    /// All of them, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut ChildPolicy> {
        self.0.values_mut()
    }

    /// Adds a child, or changes the one that has this number.
    pub fn insert(&mut self, index: u16, child: ChildPolicy) {
        self.0.insert(index, child);
    }

    /// Takes a child out.
    pub fn remove(&mut self, index: u16) -> Option<ChildPolicy> {
        self.0.remove(&index)
    }
}

#[cfg(feature = "test-util")]
impl std::ops::Index<u16> for Children {
    type Output = ChildPolicy;

    fn index(&self, index: u16) -> &ChildPolicy {
        self.0.get(&index).expect("a test knows its children")
    }
}

#[cfg(feature = "test-util")]
impl std::ops::IndexMut<u16> for Children {
    fn index_mut(&mut self, index: u16) -> &mut ChildPolicy {
        self.0.get_mut(&index).expect("a test knows its children")
    }
}

/// One tunnel, resolved.
#[derive(PartialEq, Debug)]
pub struct TunnelPolicy {
    /// Which.
    pub id: TunnelId,
    /// Its name in the configuration.
    pub name: String,
    /// Our outer addresses; we initiate from the first one of the peer's family.
    pub local: Vec<IpAddr>,
    /// The peer's outer addresses; empty while its name does not resolve.
    pub remote: Vec<IpAddr>,
    /// Who we are.
    pub local_id: Identity,
    /// Who the peer must be.
    pub remote_id: RemoteId,
    /// The shared key.
    pub psk: SecretBytes,
    /// Keys that are good as well while one is exchanged for another at both ends, one end after the other. A peer may
    /// prove any of them; we try them in turn.
    pub other_psks: Vec<SecretBytes>,
    /// How it comes up.
    pub start: Start,
    /// Acceptable IKE algorithms, preferred first.
    pub proposals: Vec<IkeProposal>,
    /// Time after which an IKE SA must be gone; rekeyed before.
    pub lifetime: Duration,
    /// Silence after which we ask whether the peer lives; `None` = never.
    pub dpd: Option<Duration>,
    /// UDP encapsulation.
    pub encap: Encap,
    /// Whether IKE fragmentation is offered (RFC 7383).
    pub fragmentation: bool,
    /// Retransmission.
    pub retransmit: Retransmit,
    /// Children by their numbers.
    pub children: Children,
}

impl TunnelPolicy {
    /// The same with other addresses of the peer.
    pub(crate) fn with_remote(&self, remote: Vec<IpAddr>) -> Self {
        Self {
            id: self.id,
            name: self.name.clone(),
            local: self.local.clone(),
            remote,
            local_id: self.local_id.clone(),
            remote_id: self.remote_id.clone(),
            psk: self.psk.duplicate(),
            other_psks: self.other_psks.iter().map(SecretBytes::duplicate).collect(),
            start: self.start,
            proposals: self.proposals.clone(),
            lifetime: self.lifetime,
            dpd: self.dpd,
            encap: self.encap,
            fragmentation: self.fragmentation,
            retransmit: self.retransmit,
            children: self.children.clone(),
        }
    }

    /// What living SAs follow as it is here, and everything else as it is in `new`.
    pub(crate) fn with_the_rest_of(&self, new: &Self) -> Self {
        Self {
            local_id: self.local_id.clone(),
            remote_id: self.remote_id.clone(),
            proposals: self.proposals.clone(),
            lifetime: self.lifetime,
            encap: self.encap,
            children: self.children.clone(),
            ..new.with_remote(self.remote.clone())
        }
    }

    /// The keys that are good, preferred first.
    pub(crate) fn psks(&self) -> impl Iterator<Item = &SecretBytes> {
        std::iter::once(&self.psk).chain(&self.other_psks)
    }

    /// The key to try after this many that the peer did not know.
    pub(crate) fn psk_after(&self, refused: usize) -> &SecretBytes {
        let turn = refused.checked_rem(1 + self.other_psks.len()).unwrap_or(0);
        self.psks().nth(turn).unwrap_or(&self.psk)
    }

    /// Addresses to initiate with.
    pub(crate) fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        self.remote.iter().find_map(|r| {
            let l = self.local.iter().find(|l| l.is_ipv4() == r.is_ipv4())?;
            Some((*l, *r))
        })
    }
}

fn transforms(kind: TransformType, ids: impl IntoIterator<Item = u16>) -> impl Iterator<Item = Transform> {
    ids.into_iter().map(move |id| Transform::plain(kind, id))
}

fn encr_transforms(encrs: &[Encr]) -> impl Iterator<Item = Transform> {
    encrs.iter().map(|e| Transform {
        key_bits: e.info().key_bits,
        ..Transform::plain(TransformType::ENCR, e.info().transform)
    })
}

fn additional_transforms(offer: &AdditionalOffer) -> impl Iterator<Item = Transform> {
    offer.iter().flat_map(|(which, methods)| {
        let ids = methods.iter().map(|method| method.map_or(0, Group::transform));
        transforms(TransformType::of_additional(which), ids)
    })
}

/// Our IKE proposals as they go on the wire; `spi` is empty in IKE_SA_INIT.
pub(crate) fn offer_ike(proposals: &[IkeProposal], spi: &[u8]) -> Vec<Proposal> {
    number(proposals.iter().map(|p| {
        let t = encr_transforms(&p.encrs)
            .chain(transforms(TransformType::INTEG, p.integs.iter().map(|i| i.transform())))
            .chain(transforms(TransformType::PRF, p.prfs.iter().map(|x| x.transform())))
            .chain(transforms(TransformType::KE, p.groups.iter().map(|g| g.transform())))
            .chain(additional_transforms(&p.additional));
        (Protocol::IKE, spi.to_vec(), t.collect())
    }))
}

/// What we offer and take for the successor of an IKE SA with this PRF: the proposals that have it, with it alone; all of them if
/// none has it any more.
///
/// The keys of a successor come from the PRF that it has itself, its SKEYSEED from the PRF of the SA before (RFC 7296 §2.18).
/// strongSwan, 5.9.8 and later, takes the older one for both, so a PRF that changes leaves two ends that cannot read each other.
pub(crate) fn keeping(proposals: &[IkeProposal], prf: Prf) -> Vec<IkeProposal> {
    let kept: Vec<IkeProposal> = (proposals.iter().filter(|p| p.prfs.contains(&prf)))
        .map(|p| IkeProposal { prfs: vec![prf], ..p.clone() })
        .collect();
    if kept.is_empty() { proposals.to_vec() } else { kept }
}

/// Our ESP proposals as they go on the wire. In IKE_AUTH there is no key exchange to propose (RFC 7296 §1.2).
pub(crate) fn offer_esp(proposals: &[EspProposal], spi: [u8; 4], with_ke: bool) -> Vec<Proposal> {
    number(proposals.iter().map(|p| {
        let none = AdditionalOffer::default();
        let (groups, additional) = if with_ke { (&*p.groups, &p.additional) } else { (&[][..], &none) };
        let t = encr_transforms(&p.encrs)
            .chain(transforms(TransformType::INTEG, p.integs.iter().map(|i| i.transform())))
            .chain(transforms(TransformType::KE, groups.iter().map(|g| g.transform())))
            .chain(additional_transforms(additional))
            .chain(transforms(TransformType::ESN, p.esn.iter().map(|e| u16::from(*e))));
        (Protocol::ESP, spi.to_vec(), t.collect())
    }))
}

/// Whether a proposal asks for key exchanges in IKE_INTERMEDIATE.
pub(crate) fn wants_intermediate(p: &Proposal) -> bool {
    p.transforms.iter().any(|t| t.kind.additional().is_some())
}

fn number(parts: impl Iterator<Item = (Protocol, Vec<u8>, Vec<Transform>)>) -> Vec<Proposal> {
    parts
        .zip(1u8..=u8::MAX)
        .map(|((protocol, spi, transforms), number)| Proposal { number, protocol, spi, transforms })
        .collect()
}

/// A proposal's transforms sorted by kind, with those left out that we do not know. `None` if it has a kind that we do
/// not know, which makes the whole proposal unusable (RFC 7296 §3.3.6).
struct Sorted {
    encr: Vec<Encr>,
    prf: Vec<Prf>,
    integ: Vec<Option<Integ>>,
    ke: Vec<Option<Group>>,
    additional: AdditionalOffer,
    esn: Vec<bool>,
}

fn sort(p: &Proposal) -> Option<Sorted> {
    let additional = AdditionalOffer::default();
    let mut s = Sorted { encr: vec![], prf: vec![], integ: vec![], ke: vec![], additional, esn: vec![] };
    let mut unusable = AdditionalOffer::default();
    for t in p.transforms.iter() {
        let known = !t.unknown_attribute && (t.key_bits.is_none() || t.kind == TransformType::ENCR);
        match t.kind {
            TransformType::ENCR => s.encr.extend(Encr::from_transform(t.id, t.key_bits).filter(|_| known)),
            TransformType::PRF => s.prf.extend(Prf::from_transform(t.id).filter(|_| known)),
            TransformType::INTEG if t.id == 0 && known => s.integ.push(None),
            TransformType::INTEG => s.integ.extend(Integ::from_transform(t.id).filter(|_| known).map(Some)),
            TransformType::KE if t.id == 0 && known => s.ke.push(None),
            TransformType::KE => s.ke.extend(Group::from_transform(t.id).filter(|_| known).map(Some)),
            TransformType::ESN if t.id <= 1 && known => s.esn.push(t.id == 1),
            TransformType::ESN => {}
            kind => {
                let which = kind.additional()?;
                let method = if t.id == 0 { Some(None) } else { Group::from_transform(t.id).map(Some) };
                let list = if known && method.is_some() { &mut s.additional } else { &mut unusable };
                list.get_mut(which).push(method.flatten());
            }
        }
    }
    // An additional key exchange that is offered with methods only that we do not know cannot be left out.
    if unusable.iter().any(|(which, methods)| !methods.is_empty() && s.additional.get(which).is_empty()) {
        return None;
    }
    // No integrity transform at all means none; a kind whose every member we do not know means no match.
    if s.integ.is_empty() && !p.transforms.iter().any(|t| t.kind == TransformType::INTEG) {
        s.integ.push(None);
    }
    if s.ke.is_empty() && !p.transforms.iter().any(|t| t.kind == TransformType::KE) {
        s.ke.push(None);
    }
    Some(s)
}

/// The first of ours that is among theirs.
fn pick<T: PartialEq + Copy>(ours: &[T], theirs: &[T]) -> Option<T> {
    ours.iter().copied().find(|o| theirs.contains(o))
}

/// The first of our groups that is among theirs, with the additional key exchanges beside which it can stand.
fn pick_exchanges(
    groups: &[Group],
    additional: &AdditionalOffer,
    theirs: &[Group],
    offered: &Sorted,
) -> Option<(Group, Additional)> {
    let common = groups.iter().filter(|group| theirs.contains(group));
    common.copied().find_map(|group| Some((group, additional.choose(&offered.additional, Some(group))?)))
}

fn pick_integ(ours: &[Integ], theirs: &[Option<Integ>]) -> Option<Option<Integ>> {
    if ours.is_empty() {
        theirs.contains(&None).then_some(None)
    } else {
        ours.iter().copied().find(|o| theirs.contains(&Some(*o))).map(Some)
    }
}

/// Chooses an IKE suite from a peer's offer by our order, of groups too: the group of the peer's KE payload may be what a
/// man in the middle made the peer choose. Returns the suite and the chosen proposal's number and SPI.
pub(crate) fn choose_ike(
    ours: &[IkeProposal],
    offered: &[Proposal],
    spi_len: usize,
) -> Option<(IkeSuite, u8, Vec<u8>)> {
    for own in ours {
        for p in offered.iter().filter(|p| p.protocol == Protocol::IKE && p.spi.len() == spi_len) {
            let Some(s) = sort(p) else { continue };
            let groups: Vec<Group> = s.ke.iter().copied().flatten().collect();
            let suite = (|| {
                let (group, additional) = pick_exchanges(&own.groups, &own.additional, &groups, &s)?;
                Some(IkeSuite {
                    encr: pick(&own.encrs, &s.encr)?,
                    integ: pick_integ(&own.integs, &s.integ)?,
                    prf: pick(&own.prfs, &s.prf)?,
                    group,
                    additional,
                })
            })();
            if let Some(suite) = suite {
                return Some((suite, p.number, p.spi.clone()));
            }
        }
    }
    None
}

/// Chooses an ESP suite from a peer's offer by our order, of groups too. In IKE_AUTH (`with_ke` false) key exchange is not
/// looked at. Where we demand PFS an offer without it does not match.
pub(crate) fn choose_esp(
    ours: &[EspProposal],
    offered: &[Proposal],
    with_ke: bool,
) -> Option<(EspSuite, u8, [u8; 4])> {
    for own in ours {
        for p in offered.iter().filter(|p| p.protocol == Protocol::ESP) {
            let Ok(spi) = <[u8; 4]>::try_from(p.spi.as_slice()) else { continue };
            let Some(s) = sort(p) else { continue };
            let suite = (|| {
                let (group, additional) = if !with_ke {
                    (None, Additional::NONE)
                } else if own.groups.is_empty() {
                    // There is nothing to add to.
                    (s.ke.contains(&None) && s.additional.allows(&Additional::NONE)).then_some(())?;
                    (None, Additional::NONE)
                } else {
                    let theirs: Vec<Group> = s.ke.iter().copied().flatten().collect();
                    let (group, additional) = pick_exchanges(&own.groups, &own.additional, &theirs, &s)?;
                    (Some(group), additional)
                };
                Some(EspSuite {
                    encr: pick(&own.encrs, &s.encr)?,
                    integ: pick_integ(&own.integs, &s.integ)?,
                    group,
                    additional,
                    esn: pick(&own.esn, &s.esn)?,
                })
            })();
            if let Some(suite) = suite {
                return Some((suite, p.number, spi));
            }
        }
    }
    None
}

/// The answer to an offer: one proposal with one transform of each kind.
pub(crate) fn answer_ike(suite: IkeSuite, number: u8, spi: &[u8]) -> Vec<Proposal> {
    let p = IkeProposal {
        encrs: vec![suite.encr],
        integs: suite.integ.into_iter().collect(),
        prfs: vec![suite.prf],
        groups: vec![suite.group],
        additional: AdditionalOffer::only(&suite.additional),
    };
    let mut out = offer_ike(&[p], spi);
    out.iter_mut().for_each(|p| p.number = number);
    out
}

/// The same for ESP.
pub(crate) fn answer_esp(suite: EspSuite, number: u8, spi: [u8; 4]) -> Vec<Proposal> {
    let p = EspProposal {
        encrs: vec![suite.encr],
        integs: suite.integ.into_iter().collect(),
        groups: suite.group.into_iter().collect(),
        additional: AdditionalOffer::only(&suite.additional),
        esn: vec![suite.esn],
    };
    let mut out = offer_esp(&[p], spi, true);
    out.iter_mut().for_each(|p| p.number = number);
    out
}

/// Reads a responder's answer: exactly one proposal with at most one transform of each kind, made of what we offered.
pub(crate) fn accept_ike(
    ours: &[IkeProposal],
    answer: &[Proposal],
    spi_len: usize,
) -> Option<(IkeSuite, Vec<u8>)> {
    let [p] = answer else { return None };
    single(p)?;
    let (suite, _, spi) = choose_ike(ours, answer, spi_len)?;
    Some((suite, spi))
}

/// The same for ESP.
pub(crate) fn accept_esp(
    ours: &[EspProposal],
    answer: &[Proposal],
    with_ke: bool,
) -> Option<(EspSuite, [u8; 4])> {
    let [p] = answer else { return None };
    single(p)?;
    let (suite, _, spi) = choose_esp(ours, answer, with_ke)?;
    Some((suite, spi))
}

/// A chosen proposal has one transform of each kind.
fn single(p: &Proposal) -> Option<()> {
    let mut kinds: Vec<_> = p.transforms.iter().map(|t| t.kind).collect();
    kinds.sort_unstable();
    kinds.windows(2).all(|w| w.first() != w.last()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ike(text: &str) -> Vec<IkeProposal> {
        text.split(',').map(|t| t.parse().unwrap()).collect()
    }

    fn esp(text: &str) -> Vec<EspProposal> {
        text.split(',').map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn our_order_of_groups_decides_whatever_the_peer_sends() {
        let ours = ike("aes256gcm16-prfsha384-x25519-ecp384");
        let theirs = offer_ike(&ike("aes256gcm16-prfsha384-ecp384-x25519"), &[]);
        assert_eq!(choose_ike(&ours, &theirs, 0).unwrap().0.group, Group::X25519);
        let only = offer_ike(&ike("aes256gcm16-prfsha384-ecp384"), &[]);
        assert_eq!(choose_ike(&ours, &only, 0).unwrap().0.group, Group::Ecp384);
        let ours = esp("aes256gcm16-x25519-ecp384");
        let theirs = offer_esp(&esp("aes256gcm16-ecp384-x25519"), [0, 0, 1, 1], true);
        assert_eq!(choose_esp(&ours, &theirs, true).unwrap().0.group, Some(Group::X25519));
    }

    #[test]
    fn the_successor_of_an_ike_sa_keeps_its_prf_as_long_as_it_is_allowed() {
        let ours = ike("aes256gcm16-prfsha384-prfsha256-ecp384,aes256-sha256-modp2048");
        assert_eq!(
            keeping(&ours, Prf::HmacSha256),
            ike("aes256gcm16-prfsha256-ecp384,aes256-sha256-modp2048")
        );
        assert_eq!(keeping(&ours, Prf::HmacSha384), ike("aes256gcm16-prfsha384-ecp384"));
        assert_eq!(keeping(&ours, Prf::HmacSha512), ours);
    }

    #[test]
    fn t12_a_strange_proposal_is_skipped_and_a_good_one_taken() {
        let ours = ike("aes256-sha256-modp2048");
        let good = offer_ike(&ours, &[]).remove(0);
        let broken: [fn(&mut Proposal); 7] = [
            |p| p.transforms.clear(),
            |p| p.transforms.retain(|t| t.kind != TransformType::KE),
            |p| p.transforms.iter_mut().for_each(|t| t.key_bits = None),
            |p| p.transforms.iter_mut().for_each(|t| t.key_bits = Some(129)),
            |p| p.transforms.push(Transform::plain(TransformType(99), 1)),
            |p| p.transforms.iter_mut().for_each(|t| t.unknown_attribute = true),
            |p| p.spi = vec![1, 2, 3],
        ];
        for (n, bend) in broken.into_iter().enumerate() {
            let mut bad = good.clone();
            bend(&mut bad);
            assert!(choose_ike(&ours, &[bad.clone()], 0).is_none(), "case {n}");
            let mut second = good.clone();
            second.number = 2;
            assert_eq!(choose_ike(&ours, &[bad, second], 0).unwrap().1, 2, "case {n}");
        }
    }

    #[test]
    fn additional_key_exchanges_are_negotiated_like_any_other_kind() {
        let hybrid = ike("aes256gcm16-prfsha384-x25519-ke1_mlkem768");
        let either = ike("aes256gcm16-prfsha384-x25519-ke1_mlkem1024-ke1_mlkem768-ke1_none");
        let classic = ike("aes256gcm16-prfsha384-x25519");
        let both = ike("aes256gcm16-prfsha384-x25519-ke1_mlkem768,aes256gcm16-prfsha384-x25519");
        let chosen = |ours: &[IkeProposal], theirs: &[IkeProposal]| {
            let (suite, number, _) = choose_ike(ours, &offer_ike(theirs, &[]), 0)?;
            assert_eq!(accept_ike(theirs, &answer_ike(suite, number, &[]), 0), Some((suite, vec![])));
            Some((suite.to_string(), number))
        };
        let is = |text: &str, number| Some((format!("aes256gcm16-prfsha384-x25519{text}"), number));
        assert_eq!(chosen(&hybrid, &either), is("-ke1_mlkem768", 1));
        assert_eq!(chosen(&either, &classic), is("", 1));
        assert_eq!((chosen(&hybrid, &classic), chosen(&classic, &hybrid)), (None, None));
        // Who knows nothing of it skips the first proposal, and takes the second.
        assert_eq!(chosen(&classic, &both), is("", 2));
        // A method that nobody knows is no reason to do without.
        let mut odd = offer_ike(&classic, &[]);
        odd[0].transforms.push(Transform::plain(TransformType(6), 4711));
        assert!(choose_ike(&either, &odd, 0).is_none() && choose_ike(&classic, &odd, 0).is_none());
        // The first child has no key exchange of its own, and so nothing to add to.
        let ours = esp("aes256gcm16-x25519-ke1_mlkem768");
        let of = |with_ke| choose_esp(&ours, &offer_esp(&ours, [0, 0, 1, 1], with_ke), with_ke).unwrap().0;
        assert_eq!(
            (of(false).additional.is_empty(), of(true).to_string().as_str()),
            (true, "aes256gcm16-x25519-ke1_mlkem768-esn")
        );
        let without = offer_esp(&esp("aes256gcm16-x25519"), [0, 0, 1, 1], true);
        assert!(choose_esp(&ours, &without, true).is_none());
    }

    #[test]
    fn t65_pfs_is_not_negotiated_away() {
        let ours = esp("aes256gcm16-x25519");
        let without = offer_esp(&esp("aes256gcm16"), [0, 0, 1, 1], true);
        assert!(choose_esp(&ours, &without, true).is_none());
        assert!(choose_esp(&ours, &without, false).is_some());
        let with = offer_esp(&ours, [0, 0, 1, 1], true);
        assert!(choose_esp(&esp("aes256gcm16"), &with, true).is_none());
    }

    #[test]
    fn an_answer_must_be_one_of_ours_and_single() {
        let ours = ike("aes256gcm16-aes128gcm16-prfsha384-x25519");
        let suite = |p: &[Proposal]| accept_ike(&ours, p, 0).map(|s| s.0);
        let offered = offer_ike(&ours, &[]);
        assert!(suite(&offered).is_none(), "two ciphers are not an answer");
        let (chosen, number, _) = choose_ike(&ours, &offered, 0).unwrap();
        assert_eq!(suite(&answer_ike(chosen, number, &[])), Some(chosen));
        assert!(suite(&answer_ike(IkeSuite { group: Group::Modp2048, ..chosen }, 1, &[])).is_none());
        assert!(suite(&[]).is_none());
    }
}
