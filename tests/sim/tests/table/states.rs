//! The states of an IKE SA, and how a gateway of a pair gets into each of them.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use cygnet_ike::policy::Start;
use cygnet_ike::wire::{Exchange, Header, Payloads};
use cygnet_ike::{Command, Flow, TunnelPolicy};
use cygnet_model::{IkeSpi, SecretBytes};
use cygnet_sim::{ADDRESSES, Lab, Link, TUNNEL, policy};

/// Datagrams by sender.
pub type Datagrams = Vec<(usize, Vec<u8>)>;

/// What a row of the table changes in the policies of both gateways before the first message.
pub type Change = fn(&mut [TunnelPolicy; 2]);

/// A state of the IKE SA under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    NoSa,
    InitSent,
    InitAnswered,
    AuthSent,
    Refused,
    Initiator,
    Responder,
    RekeyingChild,
    DeletingChild,
    RekeyingIke,
    Rekeyed,
    Deleting,
    DeletingLater,
}

impl At {
    pub const ALL: [Self; 13] = [
        Self::NoSa,
        Self::InitSent,
        Self::InitAnswered,
        Self::AuthSent,
        Self::Refused,
        Self::Initiator,
        Self::Responder,
        Self::RekeyingChild,
        Self::DeletingChild,
        Self::RekeyingIke,
        Self::Rekeyed,
        Self::Deleting,
        Self::DeletingLater,
    ];

    /// The heading in the table.
    pub const fn title(self) -> &'static str {
        match self {
            Self::NoSa => "no SA",
            Self::InitSent => "InitSent",
            Self::InitAnswered => "InitAnswered",
            Self::AuthSent => "AuthSent",
            Self::Refused => "Refused",
            Self::Initiator => "Established, initiator",
            Self::Responder => "Established, responder",
            Self::RekeyingChild => "Established, our rekey of the child unanswered",
            Self::DeletingChild => "Established, our deletion of the child unanswered",
            Self::RekeyingIke => "Established, our rekey of the IKE SA unanswered",
            Self::Rekeyed => "Rekeyed",
            Self::Deleting => "Deleting",
            Self::DeletingLater => "Deleting, our rekey of the IKE SA unanswered",
        }
    }

    /// The gateway that holds the SA under test; 0 is the initiator.
    pub const fn side(self) -> usize {
        match self {
            Self::NoSa | Self::InitAnswered | Self::Refused | Self::Responder | Self::Rekeyed => 1,
            Self::InitSent
            | Self::AuthSent
            | Self::Initiator
            | Self::RekeyingChild
            | Self::DeletingChild
            | Self::RekeyingIke
            | Self::Deleting
            | Self::DeletingLater => 0,
        }
    }

    /// The name that the endpoint has for it.
    const fn name(self) -> Option<&'static str> {
        match self {
            Self::NoSa => None,
            Self::InitSent => Some("InitSent"),
            Self::InitAnswered => Some("InitAnswered"),
            Self::AuthSent => Some("AuthSent"),
            Self::Refused => Some("Refused"),
            Self::Initiator
            | Self::Responder
            | Self::RekeyingChild
            | Self::DeletingChild
            | Self::RekeyingIke => Some("Established"),
            Self::Rekeyed => Some("Rekeyed"),
            Self::Deleting | Self::DeletingLater => Some("Deleting"),
        }
    }

    /// Whether the peer is authenticated.
    pub fn is_live(self) -> bool {
        !matches!(self, Self::NoSa | Self::InitSent | Self::InitAnswered | Self::AuthSent | Self::Refused)
    }
}

/// A laboratory with one gateway in the wanted state, its link cut, and a record of what was said.
pub struct Scene {
    pub lab: Lab,
    pub at: At,
    pub side: usize,
    pub peer: usize,
    /// The SA under test as its holder knows it, and as the peer does.
    pub sa: Option<IkeSpi>,
    pub peer_sa: Option<IkeSpi>,
    /// Every datagram so far, delivered or not.
    pub log: Datagrams,
}

impl Scene {
    pub fn new(at: At, change: Change) -> Self {
        let log: Rc<RefCell<Datagrams>> = Rc::default();
        let mut policies = [policy(0, 1), policy(1, 1)];
        change(&mut policies);
        if at == At::Refused {
            policies[1].psk = SecretBytes::copy_of(b"not the key that the initiator has");
        }
        let mut lab = Lab::new(42, Link::GOOD, policies);
        let side = at.side();
        match at {
            At::NoSa => {
                up(&mut lab, &log);
                let mut forgetful = policy(1, 1);
                forgetful.start = Start::Passive;
                lab.restart(1, forgetful);
            }
            At::InitSent => pass(&mut lab, &log, 1),
            At::InitAnswered => pass(&mut lab, &log, 2),
            At::AuthSent | At::Refused => pass(&mut lab, &log, 3),
            At::Initiator | At::Responder => up(&mut lab, &log),
            At::RekeyingChild => ask(&mut lab, &log, Command::RekeyChildren(TUNNEL), 0),
            At::RekeyingIke => ask(&mut lab, &log, Command::RekeyIke(TUNNEL), 0),
            At::Deleting => ask(&mut lab, &log, Command::Down(TUNNEL), 0),
            At::DeletingLater => {
                ask(&mut lab, &log, Command::RekeyIke(TUNNEL), 0);
                lab.command(0, Command::Down(TUNNEL));
            }
            // The rekey goes through, and the deletion of the old pair that follows is lost.
            At::DeletingChild => ask(&mut lab, &log, Command::RekeyChildren(TUNNEL), 2),
            // The request arrives and is answered; the answer is lost.
            At::Rekeyed => ask(&mut lab, &log, Command::RekeyIke(TUNNEL), 1),
        }
        pass(&mut lab, &log, 0);
        let peer = 1 - side;
        let first = |s: usize| lab.gateways[s].endpoint.spis().first().copied();
        let (sa, peer_sa) = (first(side), first(peer));
        let name = sa.and_then(|spi| lab.gateways[side].endpoint.state_name(spi));
        assert_eq!(name, at.name(), "{}", at.title());
        Self { lab, at, side, peer, sa, peer_sa, log: log.take() }
    }

    /// What the peer hears from on its way to the gateway under test.
    pub fn flow(&self) -> Flow {
        let addr = |s: usize| -> IpAddr { ADDRESSES[s].parse().unwrap() };
        Flow { local: (addr(self.side), 500).into(), remote: (addr(self.peer), 500).into(), natt: false }
    }

    /// The SPIs in the headers of the SA under test, or of the one that there was.
    pub fn header_spis(&self) -> (u64, u64) {
        let spis = |side: usize, spi: Option<IkeSpi>| self.lab.gateways[side].endpoint.header_spis(spi?);
        spis(self.side, self.sa).or_else(|| spis(self.peer, self.peer_sa)).unwrap_or((7, 0))
    }

    /// Whether the peer began the SA under test; `None` if there is none.
    pub fn peer_is_initiator(&self) -> Option<bool> {
        Some(self.header_spis().0 != self.sa?.value())
    }

    /// Message IDs of the peer's next request, and of the answer that is waited for.
    pub fn ids(&self) -> (u32, u32) {
        let of = |side: usize, spi: Option<IkeSpi>| self.lab.gateways[side].endpoint.message_ids(spi?);
        match self.sa {
            Some(_) => of(self.side, self.sa).unwrap(),
            // Seen from the peer's end.
            None => of(self.peer, self.peer_sa).map_or((0, 0), |(theirs, ours)| (ours + 1, theirs)),
        }
    }

    /// A message of the peer under its keys, if it has any.
    pub fn forge(&mut self, exchange: Exchange, id: u32, response: bool, p: &Payloads) -> Option<Vec<u8>> {
        let spi = self.peer_sa?;
        self.lab.gateways[self.peer].endpoint.forge(spi, exchange, id, response, p).pop()
    }

    /// The last datagram of a side in an exchange.
    pub fn said(&self, side: usize, exchange: Exchange, response: bool) -> Option<Vec<u8>> {
        let fits =
            |b: &[u8]| Header::decode(b).is_ok_and(|(h, _)| h.exchange == exchange && h.response == response);
        self.log.iter().rev().find(|(s, b)| *s == side && fits(b)).map(|(_, b)| b.clone())
    }

    /// What the peer answers to a datagram of the gateway under test.
    pub fn peers_answer(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let log: Rc<RefCell<Datagrams>> = Rc::default();
        tap(&mut self.lab, &log, 0);
        let flow = self.flow();
        let flow = Flow { local: flow.remote, remote: flow.local, natt: false };
        self.lab.inject(self.peer, flow, bytes);
        log.borrow().iter().find(|(s, _)| *s == self.peer).map(|(_, b)| b.clone())
    }
}

/// Records everything and lets so many datagrams pass.
fn tap(lab: &mut Lab, log: &Rc<RefCell<Datagrams>>, mut count: usize) {
    let log = Rc::clone(log);
    lab.tap = Some(Box::new(move |side, bytes| {
        log.borrow_mut().push((side, bytes.clone()));
        let pass = count > 0;
        count = count.saturating_sub(1);
        pass.then_some(bytes)
    }));
}

fn pass(lab: &mut Lab, log: &Rc<RefCell<Datagrams>>, count: usize) {
    tap(lab, log, count);
    lab.run(Duration::from_millis(100));
}

fn up(lab: &mut Lab, log: &Rc<RefCell<Datagrams>>) {
    pass(lab, log, usize::MAX);
    assert!(lab.is_up());
}

fn ask(lab: &mut Lab, log: &Rc<RefCell<Datagrams>>, command: Command, count: usize) {
    up(lab, log);
    tap(lab, log, count);
    lab.command(0, command);
    lab.run(Duration::from_millis(100));
}
