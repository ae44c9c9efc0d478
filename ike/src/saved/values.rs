//! Values as records and back. What comes back is checked as if a stranger had written it.

use std::time::Duration;

use cygnet_model::addke::{AddKe, Additional, AdditionalOffer};
use cygnet_model::id::Reqid;
use cygnet_model::proposal::{EspProposal, IkeProposal};
use cygnet_model::suite::{Encr, EspSuite, Group, IkeSuite, Integ, Prf};
use cygnet_model::tunnel::{Direction, Mark, SaId, SaSpec, TunnelSpec, UdpEncap, VolumeLimits};
use cygnet_model::{ChildId, IkeSpi, SecretBytes, Spi, TrafficSelector, TunnelId};

use super::SavedError;
use super::form;
use super::octets::{Id, Ip, Nets};
use crate::policy::{ChildPolicy, Encap, RemoteId, Retransmit, Start, TunnelPolicy};

type Result<T> = std::result::Result<T, SavedError>;

const fn bad(what: &'static str) -> SavedError {
    SavedError::Value(what)
}

/// Transform ID and key length of a cipher in one number.
fn encr(e: Encr) -> u32 {
    let info = e.info();
    u32::from(info.transform) << 16 | u32::from(info.key_bits.unwrap_or(0))
}

fn encr_of(number: u32) -> Result<Encr> {
    let (id, bits) = ((number >> 16) as u16, (number & 0xFFFF) as u16);
    Encr::from_transform(id, (bits != 0).then_some(bits)).ok_or(bad("cipher"))
}

fn integ_of(number: u16) -> Result<Integ> {
    Integ::from_transform(number).ok_or(bad("integrity algorithm"))
}

pub fn group_of(number: u16) -> Result<Group> {
    Group::from_transform(number).ok_or(bad("key exchange group"))
}

fn prf_of(number: u16) -> Result<Prf> {
    Prf::from_transform(number).ok_or(bad("pseudorandom function"))
}

fn addke_of(number: u8) -> Result<AddKe> {
    AddKe::new(number).ok_or(bad("additional key exchange"))
}

fn additional(all: &Additional) -> Option<[u16; AddKe::COUNT]> {
    let mut numbers = [0; AddKe::COUNT];
    for (slot, which) in numbers.iter_mut().zip(AddKe::all()) {
        *slot = all.get(which).map_or(0, Group::transform);
    }
    (!all.is_empty()).then_some(numbers)
}

fn additional_of(numbers: Option<[u16; AddKe::COUNT]>) -> Result<Additional> {
    let mut all = Additional::NONE;
    for (number, which) in numbers.into_iter().flatten().zip(AddKe::all()) {
        if number != 0 {
            all.set(which, group_of(number)?);
        }
    }
    Ok(all)
}

fn additional_offer(offer: &AdditionalOffer) -> Option<Vec<(u8, Vec<u16>)>> {
    let named = offer.iter().filter(|(_, methods)| !methods.is_empty());
    let number = |method: &Option<Group>| method.map_or(0, Group::transform);
    let numbers: Vec<_> =
        named.map(|(w, methods)| (w.number(), methods.iter().map(number).collect())).collect();
    (!numbers.is_empty()).then_some(numbers)
}

fn additional_offer_of(numbers: Option<Vec<(u8, Vec<u16>)>>) -> Result<AdditionalOffer> {
    let mut offer = AdditionalOffer::default();
    let method = |number| if number == 0 { Ok(None) } else { group_of(number).map(Some) };
    for (which, methods) in numbers.into_iter().flatten() {
        *offer.get_mut(addke_of(which)?) = all(&methods, method)?;
    }
    Ok(offer)
}

/// What a list of numbers stands for.
fn all<N: Copy, T>(numbers: &[N], one: impl Fn(N) -> Result<T>) -> Result<Vec<T>> {
    numbers.iter().map(|n| one(*n)).collect()
}

/// A value of ours that may be absent.
pub fn opt<N, T>(value: Option<N>, one: impl FnOnce(N) -> Result<T>) -> Result<Option<T>> {
    value.map(one).transpose()
}

pub fn spi(number: u32) -> Result<Spi> {
    Spi::new(number).ok_or(bad("SPI"))
}

pub fn ike_spi(number: u64) -> Result<IkeSpi> {
    IkeSpi::new(number).ok_or(bad("IKE SPI"))
}

/// A number that the data plane can use.
pub fn child_id(tunnel: TunnelId, index: u16) -> Result<ChildId> {
    let id = ChildId { tunnel, index };
    Reqid::of(id).map(|_| id).ok_or(bad("child number"))
}

pub fn selectors(nets: Nets<'_>) -> Result<Vec<TrafficSelector>> {
    if nets.0.is_empty() { Err(bad("selectors")) } else { Ok(nets.0.into_owned()) }
}

pub fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

pub fn mark(mark: Option<Mark>) -> Option<[u32; 2]> {
    mark.map(|m| [m.value, m.mask])
}

pub fn mark_of(mark: Option<[u32; 2]>) -> Option<Mark> {
    mark.map(|[value, mask]| Mark { value, mask })
}

impl From<IkeSuite> for form::IkeSuite {
    fn from(s: IkeSuite) -> Self {
        Self {
            encr: encr(s.encr),
            integ: s.integ.map(Integ::transform),
            prf: s.prf.transform(),
            group: s.group.transform(),
            additional: additional(&s.additional),
        }
    }
}

impl form::IkeSuite {
    pub fn open(self) -> Result<IkeSuite> {
        let encr = encr_of(self.encr)?;
        let integ = opt(self.integ, integ_of)?;
        if encr.is_aead() == integ.is_some() {
            return Err(bad("suite"));
        }
        let (prf, group) = (prf_of(self.prf)?, group_of(self.group)?);
        Ok(IkeSuite { encr, integ, prf, group, additional: additional_of(self.additional)? })
    }
}

impl From<EspSuite> for form::EspSuite {
    fn from(s: EspSuite) -> Self {
        Self {
            encr: encr(s.encr),
            integ: s.integ.map(Integ::transform),
            group: s.group.map(Group::transform),
            esn: s.esn,
            additional: additional(&s.additional),
        }
    }
}

impl form::EspSuite {
    pub fn open(self) -> Result<EspSuite> {
        let encr = encr_of(self.encr)?;
        let integ = opt(self.integ, integ_of)?;
        if encr.is_aead() == integ.is_some() {
            return Err(bad("suite"));
        }
        let (group, additional) = (opt(self.group, group_of)?, additional_of(self.additional)?);
        Ok(EspSuite { encr, integ, group, additional, esn: self.esn })
    }
}

impl<'a> From<&'a SaSpec> for form::Sa<'a> {
    fn from(s: &'a SaSpec) -> Self {
        let l = s.limits;
        Self {
            tunnel: s.id.child.tunnel.0,
            index: s.id.child.index,
            outbound: s.id.direction == Direction::Out,
            spi: s.id.spi.value(),
            local: Ip(s.local),
            remote: Ip(s.remote),
            encap: s.encap.map(|e| [e.local_port, e.remote_port]),
            suite: s.suite.into(),
            encr_key: s.encr_key.expose().into(),
            integ_key: s.integ_key.expose().into(),
            replay_window: s.replay_window,
            inner_local: (&s.inner_local).into(),
            inner_remote: (&s.inner_remote).into(),
            limits: [l.soft_bytes, l.hard_bytes, l.soft_packets, l.hard_packets],
            mark: mark(s.mark),
        }
    }
}

impl form::Sa<'_> {
    pub fn open(self) -> Result<SaSpec> {
        let child = child_id(TunnelId(self.tunnel), self.index)?;
        let direction = if self.outbound { Direction::Out } else { Direction::In };
        let suite = self.suite.open()?;
        let fits = self.encr_key.len() == suite.encr.keymat_len()
            && self.integ_key.len() == suite.integ.map_or(0, Integ::key_len);
        if !fits {
            return Err(bad("key length"));
        }
        let window = self.replay_window;
        if window != 0 && !((64..=4096).contains(&window) && window.is_multiple_of(32)) {
            return Err(bad("replay window"));
        }
        if self.local.0.is_ipv4() != self.remote.0.is_ipv4() {
            return Err(bad("addresses"));
        }
        let [soft_bytes, hard_bytes, soft_packets, hard_packets] = self.limits;
        Ok(SaSpec {
            id: SaId { child, direction, spi: spi(self.spi)? },
            reqid: Reqid::of(child).ok_or(bad("child number"))?,
            local: self.local.0,
            remote: self.remote.0,
            encap: self.encap.map(|[local_port, remote_port]| UdpEncap { local_port, remote_port }),
            suite,
            encr_key: SecretBytes::copy_of(self.encr_key),
            integ_key: SecretBytes::copy_of(self.integ_key),
            replay_window: window,
            inner_local: selectors(self.inner_local)?,
            inner_remote: selectors(self.inner_remote)?,
            limits: VolumeLimits { soft_bytes, hard_bytes, soft_packets, hard_packets },
            mark: mark_of(self.mark),
        })
    }
}

impl<'a> From<&'a TunnelSpec> for form::Tunnel<'a> {
    fn from(t: &'a TunnelSpec) -> Self {
        Self {
            local: (&t.local).into(),
            remote: (&t.remote).into(),
            outer_local: Ip(t.outer_local),
            outer_remote: Ip(t.outer_remote),
            mark: mark(t.mark),
            weight: t.weight,
        }
    }
}

impl form::Tunnel<'_> {
    pub fn open(self, child: ChildId) -> Result<TunnelSpec> {
        Ok(TunnelSpec {
            child,
            reqid: Reqid::of(child).ok_or(bad("child number"))?,
            local: selectors(self.local)?,
            remote: selectors(self.remote)?,
            outer_local: self.outer_local.0,
            outer_remote: self.outer_remote.0,
            mark: mark_of(self.mark),
            weight: self.weight,
        })
    }
}

fn ike_proposal(p: &IkeProposal) -> form::Proposal {
    form::Proposal {
        encrs: p.encrs.iter().copied().map(encr).collect(),
        integs: p.integs.iter().map(|i| i.transform()).collect(),
        prfs: p.prfs.iter().map(|x| x.transform()).collect(),
        groups: p.groups.iter().map(|g| g.transform()).collect(),
        esn: Vec::new(),
        additional: additional_offer(&p.additional),
    }
}

fn esp_proposal(p: &EspProposal) -> form::Proposal {
    form::Proposal {
        encrs: p.encrs.iter().copied().map(encr).collect(),
        integs: p.integs.iter().map(|i| i.transform()).collect(),
        prfs: Vec::new(),
        groups: p.groups.iter().map(|g| g.transform()).collect(),
        esn: p.esn.clone(),
        additional: additional_offer(&p.additional),
    }
}

impl form::Proposal {
    fn of_ike(self) -> Result<IkeProposal> {
        Ok(IkeProposal {
            encrs: all(&self.encrs, encr_of)?,
            integs: all(&self.integs, integ_of)?,
            prfs: all(&self.prfs, prf_of)?,
            groups: all(&self.groups, group_of)?,
            additional: additional_offer_of(self.additional)?,
        })
    }

    fn of_esp(self) -> Result<EspProposal> {
        Ok(EspProposal {
            encrs: all(&self.encrs, encr_of)?,
            integs: all(&self.integs, integ_of)?,
            groups: all(&self.groups, group_of)?,
            additional: additional_offer_of(self.additional)?,
            esn: self.esn,
        })
    }
}

impl<'a> From<&'a TunnelPolicy> for form::Policy<'a> {
    fn from(p: &'a TunnelPolicy) -> Self {
        let id = |id| Id(std::borrow::Cow::Borrowed(id));
        Self {
            name: &p.name,
            local_id: id(&p.local_id),
            remote_id: match &p.remote_id {
                RemoteId::Any => None,
                RemoteId::Is(remote) => Some(id(remote)),
            },
            force_encap: p.encap.is_forced(),
            remote: p.remote.iter().copied().map(Ip).collect(),
            proposals: p.proposals.iter().map(ike_proposal).collect(),
            lifetime: nanos(p.lifetime),
            children: p.children.iter().map(|(index, c)| child_policy(index, c)).collect(),
        }
    }
}

fn child_policy(index: u16, c: &ChildPolicy) -> form::ChildPolicy<'_> {
    form::ChildPolicy {
        index,
        local: (&c.local).into(),
        remote: (&c.remote).into(),
        proposals: c.proposals.iter().map(esp_proposal).collect(),
        lifetime: nanos(c.lifetime),
        bytes: c.bytes,
        replay_window: c.replay_window,
        mark: mark(c.mark),
        weight: c.weight,
    }
}

impl form::Policy<'_> {
    /// The policy as it was, as far as living SAs follow it. It has no key, and what an IKE SA alone needs of it is that of
    /// a tunnel which only ends.
    pub fn open(self, id: TunnelId) -> Result<TunnelPolicy> {
        let children =
            self.children.into_iter().map(|c| Ok((c.index, c.open()?))).collect::<Result<Vec<_>>>()?;
        Ok(TunnelPolicy {
            id,
            name: self.name.to_owned(),
            local: Vec::new(),
            remote: self.remote.into_iter().map(|ip| ip.0).collect(),
            local_id: self.local_id.0.into_owned(),
            remote_id: self.remote_id.map_or(RemoteId::Any, |id| RemoteId::Is(id.0.into_owned())),
            psk: SecretBytes::new(Vec::new()),
            other_psks: Vec::new(),
            start: Start::Passive,
            proposals: self.proposals.into_iter().map(form::Proposal::of_ike).collect::<Result<_>>()?,
            lifetime: Duration::from_nanos(self.lifetime),
            dpd: None,
            encap: if self.force_encap { Encap::Force } else { Encap::Auto },
            fragmentation: true,
            retransmit: Retransmit::default(),
            children: children.into_iter().collect(),
        })
    }
}

impl form::ChildPolicy<'_> {
    fn open(self) -> Result<ChildPolicy> {
        Ok(ChildPolicy {
            local: selectors(self.local)?,
            remote: selectors(self.remote)?,
            proposals: self.proposals.into_iter().map(form::Proposal::of_esp).collect::<Result<_>>()?,
            lifetime: Duration::from_nanos(self.lifetime),
            bytes: self.bytes,
            replay_window: self.replay_window,
            mark: mark_of(self.mark),
            weight: self.weight,
        })
    }
}
