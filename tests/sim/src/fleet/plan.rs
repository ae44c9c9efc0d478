//! What a seed is about: gateways, the tunnels between them, and what each end's configuration says of each.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cygnet_ike::crypto::Random;
use cygnet_ike::policy::{ChildPolicy, RemoteId, Start, TunnelPolicy};
use cygnet_ike::wire::Identity;
use cygnet_model::SecretBytes;

use crate::version::{Choices, Version};
use crate::{Pace, net, policy, single_pairs};

/// A tunnel that may be configured, at both ends or at one.
#[derive(Debug)]
pub(crate) struct Tunnel {
    /// Its place among all of them.
    pub number: usize,
    /// Its two gateways.
    pub ends: [usize; 2],
    /// How many rules it has.
    rules: u8,
    /// This end takes one pair of networks into each child.
    split: Option<usize>,
    /// New keys come without a key exchange of their own.
    without_pfs: bool,
    pub kind: Kind,
}

/// What is particular about a tunnel, in each of its configurations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// One that comes up.
    Usual,
    /// Both ends wait for the other one.
    BothWait,
    /// The ends do not have the same key.
    WrongKey,
}

/// What one end's configuration says of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub version: Version,
    /// Who begins; see [`STARTS`].
    pub start: usize,
}

/// Who begins, by end.
const STARTS: [[Start; 2]; 6] = [
    [Start::Active, Start::Passive],
    [Start::Passive, Start::Active],
    [Start::Active, Start::Active],
    [Start::OnDemand, Start::Passive],
    [Start::OnDemand, Start::OnDemand],
    [Start::Active, Start::OnDemand],
];

impl Entry {
    pub fn random(random: &mut dyn Random) -> Self {
        // The names stay as they are at first.
        let version = Version(random.below(1 << Version::NAMES) as u16);
        Self { version, start: random.below(STARTS.len() as u64) as usize }
    }

    /// The same but for one choice.
    pub fn neighbour(self, random: &mut dyn Random) -> Self {
        match random.below(u64::from(Version::CHOICES) + 1) {
            choice if choice < u64::from(Version::CHOICES) => {
                Self { version: self.version.but(choice), ..self }
            }
            _ => Self { start: random.below(STARTS.len() as u64) as usize, ..self },
        }
    }
}

impl Tunnel {
    fn random(number: usize, gateways: usize, random: &mut dyn Random) -> Self {
        let a = random.below(gateways as u64) as usize;
        let b = (a + 1 + random.below(gateways as u64 - 1) as usize) % gateways;
        let kind = match random.below(16) {
            0 => Kind::BothWait,
            1 => Kind::WrongKey,
            _ => Kind::Usual,
        };
        Self {
            number,
            ends: [a, b],
            rules: 1 + random.below(3) as u8,
            split: (random.below(6) == 0).then(|| random.below(2) as usize),
            without_pfs: random.below(4) == 0,
            kind,
        }
    }

    pub fn name(&self) -> String {
        format!("t{}", self.number)
    }

    /// Which of its ends a gateway is.
    pub fn end(&self, gateway: usize) -> Option<usize> {
        self.ends.iter().position(|end| *end == gateway)
    }

    /// Who begins at this end.
    pub fn start(&self, end: usize, entry: Entry) -> Start {
        if self.kind == Kind::BothWait { Start::Passive } else { STARTS[entry.start][end] }
    }

    /// The policy of one end. Neither the tunnel nor its children have their numbers yet.
    pub fn policy(&self, end: usize, entry: Entry) -> TunnelPolicy {
        let network =
            |end: usize, third: usize| net(&format!("10.{}.{third}.0/24", 1 + 2 * self.number + end));
        let own = |suffix: &str| -> [Identity; 2] {
            [0, 1].map(|end| Identity::fqdn(&format!("{}.g{}{suffix}", self.name(), self.ends[end])))
        };
        let mut p = policy(0, self.rules);
        let (here, there) = (self.ends[end], self.ends[1 - end]);
        let [a, b] = own(".example");
        let (local_id, remote_id) = if end == 0 { (a, b) } else { (b, a) };
        (p.local_id, p.remote_id) = (local_id, RemoteId::Is(remote_id));
        (p.local, p.remote) = (vec![address(here)], vec![address(there)]);
        p.name = self.name();
        p.start = self.start(end, entry);
        for (rule, c) in p.children.values_mut().enumerate() {
            (c.local, c.remote) = (vec![network(end, rule)], vec![network(1 - end, rule)]);
            if self.without_pfs {
                c.proposals = vec!["aes256gcm16".parse().expect("a proposal")];
            }
        }
        let choices = Choices {
            dpd: Duration::from_secs(20),
            ike: Duration::from_secs(150),
            child: Duration::from_secs(100),
            network: network(1, 77),
            names: own(".example.net"),
        };
        entry.version.apply(end, &mut p, &choices);
        if self.without_pfs {
            p.children.values_mut().for_each(|c| c.proposals.retain(|p| p.groups.is_empty()));
        }
        if self.kind == Kind::WrongKey && end == 1 {
            (p.psk, p.other_psks) = (SecretBytes::copy_of(b"a mule"), Vec::new());
        }
        if self.split == Some(end) { single_pairs(p) } else { p }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Plan {
    pub gateways: usize,
    pub tunnels: Vec<Tunnel>,
    /// Gateways whose records may be rolled back. No two of them are joined: of two files that are older than a request on
    /// its way nobody could know (decision 0110).
    pub stale: BTreeSet<usize>,
    pub pace: Pace,
}

impl Plan {
    pub fn random(random: &mut dyn Random) -> Self {
        let gateways = 2 + random.below(4) as usize;
        let most = 1 + random.below(8).min(random.below(8)) as usize;
        let tunnels: Vec<Tunnel> = (0..most).map(|n| Tunnel::random(n, gateways, random)).collect();
        let mut stale = BTreeSet::new();
        for gateway in 0..gateways {
            let gateway = (gateway + random.below(gateways as u64) as usize) % gateways;
            let joined =
                |other: &usize| tunnels.iter().any(|t| t.end(gateway).is_some() && t.end(*other).is_some());
            if random.below(2) == 0 && !stale.iter().any(joined) {
                stale.insert(gateway);
            }
        }
        let pace = [Pace::AT_ONCE, Pace::AT_ONCE, Pace::SLOW, Pace::LOSSY][random.below(4) as usize];
        Self { gateways, tunnels, stale, pace }
    }

    /// What both ends of a tunnel must choose alike in the end, if anybody is to say what becomes of it.
    ///
    /// Names, since an end with another name goes on with what was negotiated before, for as long as that lives. Where
    /// there are other tunnels between the same addresses, IKE proposals too: they are chosen before the peer has said
    /// who it is, and by the list of another tunnel (docs/peers.md).
    pub fn common_choices(&self, tunnel: usize) -> impl Iterator<Item = u32> + use<> {
        let [a, b] = self.tunnels[tunnel].ends;
        let beside = |t: &Tunnel| t.number != tunnel && t.end(a).is_some() && t.end(b).is_some();
        let beside = self.tunnels.iter().any(beside).then_some(Version::PROPOSALS);
        [Version::NAMES].into_iter().chain(beside)
    }
}

/// Outer address of a gateway.
pub(crate) fn address(gateway: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, 1 + gateway as u8).into()
}

/// What a child is known by as long as its tunnel is configured, as the daemon has it.
pub(crate) fn child_name(c: &ChildPolicy) -> String {
    format!("{:?} -> {:?}", c.local, c.remote)
}
