//! An established IKE SA leaves the process, and comes back in another one.
//!
//! What comes back goes on where it stood: the same keys, message IDs, children and tasks, the answer that the peer may ask
//! for again, and the request that it may not have answered, octet for octet. Not kept is what the next minutes bring
//! anew: signs of life, rates, fragments of half a message, and the private keys of key exchanges. What waits for a job is
//! kept as it was before the message that needs it, which the peer repeats. `create_child`, `rekey_ike`
//! and `follow_up` say what becomes of an answer to a request whose private key is gone.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cygnet_model::suite::{Group, Integ};
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, IkeSpi, Now, SecretBytes, Spi, Timestamp, TunnelId};

use super::create_child::{Created, CreatingChild, Key};
use super::follow_up::FollowUp;
use super::live::{Request, Resumed};
use super::message::{Channel, ChannelKeys};
use super::natt::Nat;
use super::rekey_ike::{RekeyedByPeer, RekeyingIke};
use super::window::{Outgoing, Outstanding, Window};
use super::work::NextKey;
use super::{Ask, Child, ChildState, Core, IkeSa, Live, Phase, State, Task};
use crate::crypto::Random;
use crate::io::{Flow, Role};
use crate::policy::TunnelPolicy;
use crate::saved::octets::{Id, Octets, Socket, read, write};
use crate::saved::values::{child_id, group_of, ike_spi, mark, mark_of, opt, selectors, spi};
use crate::saved::{SavedError, form};
use crate::wire::Identity;

type Result<T> = std::result::Result<T, SavedError>;

/// Of the initiator and of the responder of an exchange.
type Nonces = (Vec<u8>, Vec<u8>);

/// An IKE SA that was opened: everything of it but the policy of today.
pub(crate) struct Kept {
    pub core: Core,
    pub phase: Phase,
    /// As it was; see [`form::Policy::open`].
    pub policy: TunnelPolicy,
    peer_id: Identity,
    suite: cygnet_model::suite::IkeSuite,
    spis: (u64, u64),
    keys: ChannelKeys,
    sk_d: SecretBytes,
    nat: Nat,
    fragmentation: bool,
    sent: u32,
    received: u32,
    answer: Option<Vec<Vec<u8>>>,
    outstanding: Option<(u32, Vec<Vec<u8>>, Request, FollowUp)>,
    pub children: Vec<Child>,
    pub lingering: Vec<(Timestamp, SaId)>,
    queue: Vec<Task>,
    delayed: Vec<(Timestamp, Task)>,
    created: Vec<Created>,
    their_rekey: Option<(Box<Kept>, Nonces)>,
    refused_in_auth: bool,
    outdated: bool,
    retire_at: Option<Timestamp>,
    rekey_at: Timestamp,
    pub expire_at: Timestamp,
    pub established: Timestamp,
    established_unix: u64,
}

/// The policy of an IKE SA as it is kept inside of it.
pub(crate) fn show_policy(policy: &TunnelPolicy) -> SecretBytes {
    write(&form::Policy::from(policy))
}

impl IkeSa {
    /// What is kept of it; `None` unless it is established, or was. `policy` is what [`show_policy`] makes of its policy.
    pub fn keep(&self, policy: &[u8]) -> Option<SecretBytes> {
        let (live, phase) = match &self.state {
            State::Established(s) => (s, form::Phase::Established),
            State::Rekeyed(s) => (s, form::Phase::Rekeyed),
            State::Deleting(s) => (s, form::Phase::Deleting),
            _ => return None,
        };
        Some(live.keep(&self.core, phase, policy))
    }
}

impl Live {
    fn keep(&self, core: &Core, phase: form::Phase, policy: &[u8]) -> SecretBytes {
        let keys = &self.channel.keys;
        let theirs = self.their_rekey.as_ref();
        let theirs = theirs.and_then(|t| Some((t.sa.keep(policy)?, &t.nonces)));
        let record = form::Ike {
            tunnel: self.policy.id.0,
            phase,
            spi_i: self.channel.spi_i,
            spi_r: self.channel.spi_r,
            initiator: core.role == Role::Initiator,
            local: Socket(core.flow.local),
            remote: Socket(core.flow.remote),
            natt: core.flow.natt,
            created: core.created.as_nanos(),
            policy: policy.into(),
            peer_id: Id(Cow::Borrowed(&self.peer_id)),
            suite: self.suite.into(),
            keys: form::Keys {
                sk_d: self.sk_d.expose().into(),
                sk_ei: keys.sk_ei.expose().into(),
                sk_er: keys.sk_er.expose().into(),
                sk_ai: keys.sk_ai.expose().into(),
                sk_ar: keys.sk_ar.expose().into(),
            },
            nat_local: self.nat.local,
            nat_remote: self.nat.remote,
            fragmentation: self.channel.fragmentation,
            next_request: self.window.next_request,
            expected: self.window.expected,
            answer: self.window.answer().map(octets),
            outstanding: self.window.outstanding.as_ref().map(|o| form::Outstanding {
                id: o.id,
                datagrams: octets(&o.out.datagrams),
                request: o.request.show(),
                follow_up: o.follow_up.nonce().map(Octets::from),
            }),
            children: self.children.iter().map(Child::show).collect(),
            lingering: self.lingering.iter().map(show_lingering).collect(),
            queue: self.queue.iter().filter_map(|t| show_task(*t)).collect(),
            delayed: self.delayed.iter().filter_map(show_delayed).collect(),
            created_children: self.created.iter().map(Created::show).collect(),
            their_rekey: theirs.as_ref().map(|(sa, (ni, nr))| form::TheirRekey {
                sa: sa.expose().into(),
                nonce_i: ni.as_slice().into(),
                nonce_r: nr.as_slice().into(),
            }),
            refused_in_auth: self.refused_in_auth,
            outdated: self.outdated,
            retire_at: self.retire_at.map(Timestamp::as_nanos),
            rekey_at: self.rekey_at.as_nanos(),
            expire_at: self.expire_at.as_nanos(),
            established: self.established.as_nanos(),
            established_unix: self.established_unix,
        };
        write(&record)
    }
}

fn octets(datagrams: &[Vec<u8>]) -> Vec<Octets<'_>> {
    datagrams.iter().map(|d| d.as_slice().into()).collect()
}

fn show_lingering((until, sa): &(Timestamp, SaId)) -> form::Lingering {
    form::Lingering { until: until.as_nanos(), index: sa.child.index, spi: sa.spi.value() }
}

/// Whether the peer lives is asked in any case when the SA comes back.
fn show_task(task: Task) -> Option<form::Task> {
    let group = |g: Option<Group>| g.map(Group::transform);
    match task {
        Task::CreateChild { index, group: g } => Some(form::Task::CreateChild { index, group: group(g) }),
        Task::RekeyChild { inbound, group: g } => {
            Some(form::Task::RekeyChild { inbound: inbound.value(), group: group(g) })
        }
        Task::RekeyIke { group: g } => Some(form::Task::RekeyIke { group: group(g) }),
        Task::DeleteChild { inbound } => Some(form::Task::DeleteChild { inbound: inbound.value() }),
        Task::DisownChild { inbound } => Some(form::Task::DisownChild { inbound: inbound.value() }),
        Task::DeleteIke => Some(form::Task::DeleteIke),
        Task::Liveness => None,
    }
}

fn show_delayed((at, task): &(Timestamp, Task)) -> Option<form::Delayed> {
    Some(form::Delayed { at: at.as_nanos(), task: show_task(*task)? })
}

impl form::Task {
    fn open(self) -> Result<Task> {
        Ok(match self {
            Self::CreateChild { index, group } => Task::CreateChild { index, group: opt(group, group_of)? },
            Self::RekeyChild { inbound, group } => {
                Task::RekeyChild { inbound: spi(inbound)?, group: opt(group, group_of)? }
            }
            Self::RekeyIke { group } => Task::RekeyIke { group: opt(group, group_of)? },
            Self::DeleteChild { inbound } => Task::DeleteChild { inbound: spi(inbound)? },
            Self::DisownChild { inbound } => Task::DisownChild { inbound: spi(inbound)? },
            Self::DeleteIke => Task::DeleteIke,
        })
    }
}

impl Request {
    fn show(&self) -> form::Request<'_> {
        match self {
            Self::CreateChild(c) => form::Request::CreateChild(c.show()),
            Self::RekeyIke(r) => form::Request::RekeyIke(form::RekeyingIke {
                spi: r.spi.value(),
                nonce: r.nonce.as_slice().into(),
                group: r.group.transform(),
                second_try: r.second_try,
            }),
            Self::DeleteChild { inbound } => form::Request::DeleteChild { inbound: inbound.value() },
            Self::DeleteIke => form::Request::DeleteIke,
            Self::Liveness => form::Request::Liveness,
        }
    }
}

impl form::Request<'_> {
    fn open(self, tunnel: TunnelId) -> Result<Request> {
        Ok(match self {
            Self::CreateChild(c) => Request::CreateChild(Box::new(c.open(tunnel)?)),
            Self::RekeyIke(r) => Request::RekeyIke(Box::new(RekeyingIke {
                spi: ike_spi(r.spi)?,
                nonce: r.nonce.to_vec(),
                group: group_of(r.group)?,
                key: None,
                second_try: r.second_try,
            })),
            Self::DeleteChild { inbound } => Request::DeleteChild { inbound: spi(inbound)? },
            Self::DeleteIke => Request::DeleteIke,
            Self::Liveness => Request::Liveness,
        })
    }
}

impl CreatingChild {
    fn show(&self) -> form::CreatingChild<'_> {
        form::CreatingChild {
            of: self.of,
            pair: match self.ask {
                Ask::Whole => None,
                Ask::Pair(l, r) => Some([l, r]),
            },
            local: (&self.local).into(),
            remote: (&self.remote).into(),
            rekeys: self.rekeys.map(Spi::value),
            inbound: self.inbound.value(),
            nonce: self.nonce.as_slice().into(),
            group: match &self.key {
                Key::None => None,
                Key::Held(group, _) | Key::Used(group) | Key::Lost(group) => Some(group.transform()),
            },
            second_try: self.second_try,
            theirs: self.theirs.iter().map(Created::show).collect(),
            deleted: self.deleted.clone(),
        }
    }
}

impl form::CreatingChild<'_> {
    fn open(self, tunnel: TunnelId) -> Result<CreatingChild> {
        Ok(CreatingChild {
            of: self.of,
            ask: self.pair.map_or(Ask::Whole, |[l, r]| Ask::Pair(l, r)),
            local: selectors(self.local)?,
            remote: selectors(self.remote)?,
            rekeys: opt(self.rekeys, spi)?,
            inbound: spi(self.inbound)?,
            nonce: self.nonce.to_vec(),
            key: opt(self.group, group_of)?.map_or(Key::None, Key::Lost),
            second_try: self.second_try,
            theirs: self.theirs.into_iter().map(|c| c.open(tunnel)).collect::<Result<_>>()?,
            deleted: self.deleted,
        })
    }
}

impl Created {
    fn show(&self) -> form::Created<'_> {
        form::Created {
            index: self.id.index,
            inbound: self.inbound.value(),
            nonce_i: self.nonces.0.as_slice().into(),
            nonce_r: self.nonces.1.as_slice().into(),
        }
    }
}

impl form::Created<'_> {
    fn open(self, tunnel: TunnelId) -> Result<Created> {
        let nonces = (self.nonce_i.to_vec(), self.nonce_r.to_vec());
        Ok(Created { id: child_id(tunnel, self.index)?, inbound: spi(self.inbound)?, nonces })
    }
}

impl Child {
    fn show(&self) -> form::Child<'_> {
        form::Child {
            index: self.id.index,
            of: self.of,
            inbound: self.inbound.value(),
            outbound: self.outbound.value(),
            suite: self.suite.into(),
            mark: mark(self.mark),
            local: (&self.local).into(),
            remote: (&self.remote).into(),
            state: match self.state {
                ChildState::Active => form::ChildState::Active,
                ChildState::Rekeying => form::ChildState::Rekeying,
                ChildState::Replaced => form::ChildState::Replaced,
                ChildState::Deleting => form::ChildState::Deleting,
            },
            made: self.made.as_nanos(),
            rekey_at: self.rekey_at.as_nanos(),
            expire_at: self.expire_at.as_nanos(),
            pending: self.pending.as_deref().map(form::Sa::from),
            switch_at: self.switch_at.map(Timestamp::as_nanos),
            opens: self.opens.as_ref().map(form::Tunnel::from),
            replaces: self.replaces.map(Spi::value),
            contested: self.contested,
            unseen: self.unseen,
            closes: self.closes.map(Spi::value),
        }
    }
}

impl form::Child<'_> {
    fn open(self, tunnel: TunnelId) -> Result<Child> {
        let id = child_id(tunnel, self.index)?;
        let whole = self.index == self.of;
        if self.of >= ChildId::CONFIGURED || (!whole && self.index < ChildId::CONFIGURED) {
            return Err(SavedError::Value("child number"));
        }
        let child = Child {
            id,
            of: self.of,
            inbound: spi(self.inbound)?,
            outbound: spi(self.outbound)?,
            suite: self.suite.open()?,
            mark: mark_of(self.mark),
            local: selectors(self.local)?,
            remote: selectors(self.remote)?,
            state: match self.state {
                form::ChildState::Active => ChildState::Active,
                form::ChildState::Rekeying => ChildState::Rekeying,
                form::ChildState::Replaced => ChildState::Replaced,
                form::ChildState::Deleting => ChildState::Deleting,
            },
            made: Timestamp::from_nanos(self.made),
            rekey_at: Timestamp::from_nanos(self.rekey_at),
            expire_at: Timestamp::from_nanos(self.expire_at),
            pending: opt(self.pending, form::Sa::open)?.map(Box::new),
            switch_at: self.switch_at.map(Timestamp::from_nanos),
            opens: opt(self.opens, |t| t.open(id))?,
            replaces: opt(self.replaces, spi)?,
            contested: self.contested,
            unseen: self.unseen,
            closes: opt(self.closes, spi)?,
        };
        // It is installed in the place of the pair's own outbound SA.
        if child.pending.as_ref().is_some_and(|p| p.id != child.sa(Direction::Out)) {
            return Err(SavedError::Value("pending SA"));
        }
        Ok(child)
    }
}

impl Kept {
    /// Opens what [`IkeSa::keep`] gave.
    pub fn parse(octets: &[u8]) -> Result<Self> {
        Self::open(read(octets)?, true)
    }

    /// `outer`: it is not the peer's new IKE SA inside of another one, which has none in turn.
    fn open(record: form::Ike<'_>, outer: bool) -> Result<Self> {
        let tunnel = TunnelId(record.tunnel);
        let (role, own) = match record.initiator {
            true => (Role::Initiator, record.spi_i),
            false => (Role::Responder, record.spi_r),
        };
        let (spi_i, spi_r) = (ike_spi(record.spi_i)?, ike_spi(record.spi_r)?);
        let (local, remote) = (record.local.0, record.remote.0);
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(SavedError::Value("addresses"));
        }
        let suite = record.suite.open()?;
        let k = record.keys;
        let (encr, integ) = (suite.encr.keymat_len(), suite.integ.map_or(0, Integ::key_len));
        let fits = k.sk_d.len() == suite.prf.output_len()
            && [k.sk_ei, k.sk_er].iter().all(|k| k.len() == encr)
            && [k.sk_ai, k.sk_ar].iter().all(|k| k.len() == integ);
        if !fits {
            return Err(SavedError::Value("key length"));
        }
        let children = record.children.into_iter().map(|c| c.open(tunnel)).collect::<Result<Vec<_>>>()?;
        let inbound: BTreeSet<Spi> = children.iter().map(|c| c.inbound).collect();
        let outbound: BTreeSet<Spi> = children.iter().map(|c| c.outbound).collect();
        if (inbound.len(), outbound.len()) != (children.len(), children.len()) {
            return Err(SavedError::Value("children"));
        }
        let their_rekey = match record.their_rekey {
            None => None,
            Some(_) if !outer => return Err(SavedError::Value("rekey of the peer")),
            Some(t) => {
                let sa = Self::open(read(t.sa)?, false)?;
                if sa.core.spi.value() == own || sa.policy.id != tunnel {
                    return Err(SavedError::Value("rekey of the peer"));
                }
                Some((Box::new(sa), (t.nonce_i.to_vec(), t.nonce_r.to_vec())))
            }
        };
        let outstanding = match record.outstanding {
            None => None,
            Some(o) if o.id.checked_add(1) != Some(record.next_request) => {
                return Err(SavedError::Value("message ID"));
            }
            Some(o) => {
                let follow_up = o.follow_up.map_or(FollowUp::No, |nonce| FollowUp::Lost(nonce.to_vec()));
                Some((o.id, copies(&o.datagrams), o.request.open(tunnel)?, follow_up))
            }
        };
        let policy: form::Policy<'_> = read(record.policy)?;
        Ok(Self {
            core: Core {
                spi: IkeSpi::new(own).ok_or(SavedError::Value("IKE SPI"))?,
                role,
                flow: Flow { local, remote, natt: record.natt },
                created: Timestamp::from_nanos(record.created),
            },
            phase: match record.phase {
                form::Phase::Established => Phase::Established,
                form::Phase::Rekeyed => Phase::Rekeyed,
                form::Phase::Deleting => Phase::Deleting,
            },
            policy: policy.open(tunnel)?,
            peer_id: record.peer_id.0.into_owned(),
            suite,
            spis: (spi_i.value(), spi_r.value()),
            keys: ChannelKeys {
                sk_ei: SecretBytes::copy_of(k.sk_ei),
                sk_er: SecretBytes::copy_of(k.sk_er),
                sk_ai: SecretBytes::copy_of(k.sk_ai),
                sk_ar: SecretBytes::copy_of(k.sk_ar),
            },
            sk_d: SecretBytes::copy_of(k.sk_d),
            nat: Nat { local: record.nat_local, remote: record.nat_remote },
            fragmentation: record.fragmentation,
            sent: record.next_request,
            received: record.expected,
            answer: record.answer.map(|a| copies(&a)),
            outstanding,
            children,
            lingering: record.lingering.into_iter().map(|l| l.open(tunnel)).collect::<Result<_>>()?,
            queue: record.queue.into_iter().map(form::Task::open).collect::<Result<_>>()?,
            delayed: record.delayed.into_iter().map(form::Delayed::open).collect::<Result<_>>()?,
            created: record.created_children.into_iter().map(|c| c.open(tunnel)).collect::<Result<_>>()?,
            their_rekey,
            refused_in_auth: record.refused_in_auth,
            outdated: record.outdated,
            retire_at: record.retire_at.map(Timestamp::from_nanos),
            rekey_at: Timestamp::from_nanos(record.rekey_at),
            expire_at: Timestamp::from_nanos(record.expire_at),
            established: Timestamp::from_nanos(record.established),
            established_unix: record.established_unix,
        })
    }

    /// The SPIs of ours that it, its children and its requests have: of IKE SAs, and of inbound ESP SAs.
    pub fn spis(&self) -> (Vec<IkeSpi>, Vec<Spi>) {
        let mut ike = vec![self.core.spi];
        ike.extend(self.their_rekey.iter().map(|(sa, _)| sa.core.spi));
        let mut esp: Vec<Spi> = self.children.iter().map(|c| c.inbound).collect();
        esp.extend(self.lingering.iter().map(|(_, sa)| sa.spi));
        match self.outstanding.as_ref().map(|(_, _, request, _)| request) {
            Some(Request::CreateChild(c)) => esp.push(c.inbound),
            Some(Request::RekeyIke(r)) => ike.push(r.spi),
            _ => {}
        }
        (ike, esp)
    }

    /// The IKE SA under a policy. `None` if the keys do not fit the algorithms, which was checked.
    pub fn resume(self, now: Now, policy: &Arc<TunnelPolicy>, random: &mut dyn Random) -> Option<IkeSa> {
        let (spi_i, spi_r) = self.spis;
        let mut channel = Channel::resumed(self.suite, self.keys, spi_i, spi_r, self.core.role, random)?;
        channel.fragmentation = self.fragmentation;
        let mut window = Window::new(self.sent, self.received);
        if let Some(datagrams) = self.answer {
            window.remember(datagrams);
        }
        window.outstanding = self.outstanding.map(|(id, datagrams, request, follow_up)| Outstanding {
            id,
            out: Outgoing::resumed(now.mono, policy, datagrams),
            request,
            answer: None,
            follow_up,
        });
        let their_rekey = match self.their_rekey {
            None => None,
            Some((kept, nonces)) => {
                Some(Box::new(RekeyedByPeer { sa: kept.resume(now, policy, random)?, nonces }))
            }
        };
        let live = Box::new(Live {
            policy: Arc::clone(policy),
            peer_id: self.peer_id,
            channel,
            suite: self.suite,
            sk_d: self.sk_d,
            nat: self.nat,
            window,
            children: self.children,
            lingering: self.lingering,
            queue: self.queue.into(),
            key: NextKey::None,
            delayed: self.delayed,
            created: self.created,
            their_rekey,
            promise: None,
            refused_in_auth: self.refused_in_auth,
            outdated: self.outdated,
            retire_at: self.retire_at,
            rekey_at: self.rekey_at,
            expire_at: self.expire_at,
            last_in: now.mono,
            last_out: now.mono,
            seeking: BTreeMap::new(),
            packets: BTreeMap::new(),
            put_off: 0,
            established: self.established,
            established_unix: self.established_unix,
            resumed: Resumed::Unasked,
        });
        let state = match self.phase {
            Phase::Established => State::Established(live),
            Phase::Rekeyed => State::Rekeyed(live),
            Phase::Deleting => State::Deleting(live),
        };
        Some(IkeSa { core: self.core, state })
    }
}

fn copies(datagrams: &[Octets<'_>]) -> Vec<Vec<u8>> {
    datagrams.iter().map(|d| d.to_vec()).collect()
}

impl form::Lingering {
    fn open(self, tunnel: TunnelId) -> Result<(Timestamp, SaId)> {
        let child = child_id(tunnel, self.index)?;
        let sa = SaId { child, direction: Direction::In, spi: spi(self.spi)? };
        Ok((Timestamp::from_nanos(self.until), sa))
    }
}

impl form::Delayed {
    fn open(self) -> Result<(Timestamp, Task)> {
        Ok((Timestamp::from_nanos(self.at), self.task.open()?))
    }
}
