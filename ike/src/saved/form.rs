//! What is kept, as records of numbered fields. A number keeps its meaning for ever; a field that joins later is optional,
//! and one that goes leaves its number behind. Records borrow, so that keys are copied once: into what is kept, or out of it.

use minicbor::{Decode, Encode};

use super::octets::{Id, Ip, Nets, Octets, Socket};

/// The algorithms of an IKE SA by their numbers in IANA's registry "Internet Key Exchange Version 2 (IKEv2) Parameters".
#[derive(Encode, Decode, Clone, Copy)]
#[cbor(map)]
pub struct IkeSuite {
    #[n(0)]
    pub encr: u32,
    #[n(1)]
    pub integ: Option<u16>,
    #[n(2)]
    pub prf: u16,
    #[n(3)]
    pub group: u16,
    /// Methods of ADDKE1 to ADDKE7, 0 for none; absent: none at all. So in all records.
    #[n(4)]
    pub additional: Option<[u16; 7]>,
}

/// Those of an ESP SA.
#[derive(Encode, Decode, Clone, Copy)]
#[cbor(map)]
pub struct EspSuite {
    #[n(0)]
    pub encr: u32,
    #[n(1)]
    pub integ: Option<u16>,
    #[n(2)]
    pub group: Option<u16>,
    #[n(3)]
    pub esn: bool,
    #[n(4)]
    pub additional: Option<[u16; 7]>,
}

/// A proposal, each list in the order of preference.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Proposal {
    #[n(0)]
    pub encrs: Vec<u32>,
    #[n(1)]
    pub integs: Vec<u16>,
    /// Of IKE only.
    #[n(2)]
    pub prfs: Vec<u16>,
    #[n(3)]
    pub groups: Vec<u16>,
    /// Of ESP only.
    #[n(4)]
    pub esn: Vec<bool>,
    /// Methods of each additional key exchange by its number, 1 to 7; 0: it may be left out.
    #[n(5)]
    pub additional: Option<Vec<(u8, Vec<u16>)>>,
}

/// A configured child, as it was when the SAs were made.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct ChildPolicy<'a> {
    #[n(0)]
    pub index: u16,
    #[b(1)]
    pub local: Nets<'a>,
    #[b(2)]
    pub remote: Nets<'a>,
    #[n(3)]
    pub proposals: Vec<Proposal>,
    /// In nanoseconds, like all durations here.
    #[n(4)]
    pub lifetime: u64,
    #[n(5)]
    pub bytes: u64,
    #[n(6)]
    pub replay_window: u32,
    #[n(7)]
    pub mark: Option<[u32; 2]>,
    #[n(8)]
    pub weight: u16,
}

/// What living SAs follow when it changes.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Policy<'a> {
    #[b(0)]
    pub name: &'a str,
    #[b(1)]
    pub local_id: Id<'a>,
    /// Absent: anybody.
    #[b(2)]
    pub remote_id: Option<Id<'a>>,
    #[n(3)]
    pub force_encap: bool,
    #[n(4)]
    pub remote: Vec<Ip>,
    #[n(5)]
    pub proposals: Vec<Proposal>,
    #[n(6)]
    pub lifetime: u64,
    #[b(7)]
    pub children: Vec<ChildPolicy<'a>>,
}

/// An ESP SA with its keys.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Sa<'a> {
    #[n(0)]
    pub tunnel: u32,
    #[n(1)]
    pub index: u16,
    #[n(2)]
    pub outbound: bool,
    #[n(3)]
    pub spi: u32,
    #[n(4)]
    pub local: Ip,
    #[n(5)]
    pub remote: Ip,
    /// Our port, the peer's.
    #[n(6)]
    pub encap: Option<[u16; 2]>,
    #[n(7)]
    pub suite: EspSuite,
    #[b(8)]
    pub encr_key: Octets<'a>,
    #[b(9)]
    pub integ_key: Octets<'a>,
    #[n(10)]
    pub replay_window: u32,
    #[b(11)]
    pub inner_local: Nets<'a>,
    #[b(12)]
    pub inner_remote: Nets<'a>,
    /// Octets and packets, soft before hard.
    #[n(13)]
    pub limits: [u64; 4],
    #[n(14)]
    pub mark: Option<[u32; 2]>,
}

/// An open tunnel of the data plane.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Tunnel<'a> {
    #[b(0)]
    pub local: Nets<'a>,
    #[b(1)]
    pub remote: Nets<'a>,
    #[n(2)]
    pub outer_local: Ip,
    #[n(3)]
    pub outer_remote: Ip,
    #[n(4)]
    pub mark: Option<[u32; 2]>,
    #[n(5)]
    pub weight: u16,
}

#[derive(Encode, Decode, Clone, Copy)]
#[cbor(index_only)]
pub enum ChildState {
    #[n(0)]
    Active,
    #[n(1)]
    Rekeying,
    #[n(2)]
    Replaced,
    #[n(3)]
    Deleting,
}

/// A pair of ESP SAs, whose keys the data plane has.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Child<'a> {
    #[n(0)]
    pub index: u16,
    #[n(1)]
    pub of: u16,
    #[n(2)]
    pub inbound: u32,
    #[n(3)]
    pub outbound: u32,
    #[n(4)]
    pub suite: EspSuite,
    #[n(5)]
    pub mark: Option<[u32; 2]>,
    #[b(6)]
    pub local: Nets<'a>,
    #[b(7)]
    pub remote: Nets<'a>,
    #[n(8)]
    pub state: ChildState,
    #[n(9)]
    pub made: u64,
    #[n(10)]
    pub rekey_at: u64,
    #[n(11)]
    pub expire_at: u64,
    /// The outbound SA that was not taken into use yet.
    #[b(12)]
    pub pending: Option<Sa<'a>>,
    #[n(13)]
    pub switch_at: Option<u64>,
    #[b(14)]
    pub opens: Option<Tunnel<'a>>,
    #[n(15)]
    pub replaces: Option<u32>,
    #[n(16)]
    pub contested: bool,
    #[n(17)]
    pub unseen: bool,
    #[n(18)]
    pub closes: Option<u32>,
}

/// An inbound SA whose pair is gone.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Lingering {
    #[n(0)]
    pub until: u64,
    #[n(1)]
    pub index: u16,
    #[n(2)]
    pub spi: u32,
}

#[derive(Encode, Decode)]
pub enum Task {
    #[n(0)]
    CreateChild {
        #[n(0)]
        index: u16,
        #[n(1)]
        group: Option<u16>,
    },
    #[n(1)]
    RekeyChild {
        #[n(0)]
        inbound: u32,
        #[n(1)]
        group: Option<u16>,
    },
    #[n(2)]
    RekeyIke {
        #[n(0)]
        group: Option<u16>,
    },
    #[n(3)]
    DeleteChild {
        #[n(0)]
        inbound: u32,
    },
    #[n(4)]
    DisownChild {
        #[n(0)]
        inbound: u32,
    },
    #[n(5)]
    DeleteIke,
}

/// A task for later.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Delayed {
    #[n(0)]
    pub at: u64,
    #[n(1)]
    pub task: Task,
}

/// A pair with the nonces of the exchange that made it.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Created<'a> {
    #[n(0)]
    pub index: u16,
    #[n(1)]
    pub inbound: u32,
    #[b(2)]
    pub nonce_i: Octets<'a>,
    #[b(3)]
    pub nonce_r: Octets<'a>,
}

/// Our request for a child, without the private key.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct CreatingChild<'a> {
    #[n(0)]
    pub of: u16,
    /// One local and one remote selector by their positions; absent: all.
    #[n(1)]
    pub pair: Option<[u16; 2]>,
    #[b(2)]
    pub local: Nets<'a>,
    #[b(3)]
    pub remote: Nets<'a>,
    #[n(4)]
    pub rekeys: Option<u32>,
    #[n(5)]
    pub inbound: u32,
    #[b(6)]
    pub nonce: Octets<'a>,
    /// The group of the private key, if there was one.
    #[n(7)]
    pub group: Option<u16>,
    #[n(8)]
    pub second_try: bool,
    #[b(9)]
    pub theirs: Vec<Created<'a>>,
    #[n(10)]
    pub deleted: Vec<u32>,
}

/// Our request for a new IKE SA, without the private key.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct RekeyingIke<'a> {
    #[n(0)]
    pub spi: u64,
    #[b(1)]
    pub nonce: Octets<'a>,
    #[n(2)]
    pub group: u16,
    #[n(3)]
    pub second_try: bool,
}

#[derive(Encode, Decode)]
pub enum Request<'a> {
    #[n(0)]
    CreateChild(#[b(0)] CreatingChild<'a>),
    #[n(1)]
    RekeyIke(#[b(0)] RekeyingIke<'a>),
    #[n(2)]
    DeleteChild {
        #[n(0)]
        inbound: u32,
    },
    #[n(3)]
    DeleteIke,
    #[n(4)]
    Liveness,
}

/// Our request on its way.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Outstanding<'a> {
    #[n(0)]
    pub id: u32,
    #[b(1)]
    pub datagrams: Vec<Octets<'a>>,
    #[b(2)]
    pub request: Request<'a>,
    /// It is an IKE_FOLLOWUP_KE request of what was asked for; the responder's nonce of that.
    #[b(3)]
    pub follow_up: Option<Octets<'a>>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Keys<'a> {
    #[b(0)]
    pub sk_d: Octets<'a>,
    #[b(1)]
    pub sk_ei: Octets<'a>,
    #[b(2)]
    pub sk_er: Octets<'a>,
    #[b(3)]
    pub sk_ai: Octets<'a>,
    #[b(4)]
    pub sk_ar: Octets<'a>,
}

/// The peer's new IKE SA, which crossed our rekey: its record, and the nonces of the exchange that made it.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct TheirRekey<'a> {
    #[b(0)]
    pub sa: Octets<'a>,
    #[b(1)]
    pub nonce_i: Octets<'a>,
    #[b(2)]
    pub nonce_r: Octets<'a>,
}

#[derive(Encode, Decode, Clone, Copy)]
#[cbor(index_only)]
pub enum Phase {
    #[n(0)]
    Established,
    #[n(1)]
    Rekeyed,
    #[n(2)]
    Deleting,
}

/// An IKE SA.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct Ike<'a> {
    #[n(0)]
    pub tunnel: u32,
    #[n(1)]
    pub phase: Phase,
    #[n(2)]
    pub spi_i: u64,
    #[n(3)]
    pub spi_r: u64,
    /// Our role: initiator, else responder.
    #[n(4)]
    pub initiator: bool,
    #[n(5)]
    pub local: Socket,
    #[n(6)]
    pub remote: Socket,
    #[n(7)]
    pub natt: bool,
    #[n(8)]
    pub created: u64,
    /// A record of its own, [`Policy`], which is the same for many SAs and many moments.
    #[b(9)]
    pub policy: Octets<'a>,
    #[b(10)]
    pub peer_id: Id<'a>,
    #[n(11)]
    pub suite: IkeSuite,
    #[b(12)]
    pub keys: Keys<'a>,
    #[n(13)]
    pub nat_local: bool,
    #[n(14)]
    pub nat_remote: bool,
    #[n(15)]
    pub fragmentation: bool,
    #[n(16)]
    pub next_request: u32,
    #[n(17)]
    pub expected: u32,
    /// Our answer to the peer's last request.
    #[b(18)]
    pub answer: Option<Vec<Octets<'a>>>,
    #[b(19)]
    pub outstanding: Option<Outstanding<'a>>,
    #[b(20)]
    pub children: Vec<Child<'a>>,
    #[n(21)]
    pub lingering: Vec<Lingering>,
    #[n(22)]
    pub queue: Vec<Task>,
    #[n(23)]
    pub delayed: Vec<Delayed>,
    #[b(24)]
    pub created_children: Vec<Created<'a>>,
    #[b(25)]
    pub their_rekey: Option<TheirRekey<'a>>,
    #[n(26)]
    pub refused_in_auth: bool,
    #[n(27)]
    pub outdated: bool,
    #[n(28)]
    pub retire_at: Option<u64>,
    #[n(29)]
    pub rekey_at: u64,
    #[n(30)]
    pub expire_at: u64,
    #[n(31)]
    pub established: u64,
    #[n(32)]
    pub established_unix: u64,
}
