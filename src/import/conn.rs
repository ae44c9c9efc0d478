//! A connection, whoever's words it was written in.

use std::net::IpAddr;

use cygnet_model::IpRange;
use cygnet_model::tunnel::Mark;

use super::Secret;
use crate::config::{EspParams, Identity, IkeParams, RemoteId, Start};

/// Where an end is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Place {
    /// The text does not say.
    #[default]
    Unknown,
    /// Anywhere.
    Any,
    /// At this address.
    Ip(IpAddr),
    /// At what this name resolves to.
    Dns(String),
    /// At the addresses of this interface.
    Interface(String),
}

/// One child: every `near` × every `far`. An empty side is the end's own address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Child {
    /// Our networks.
    pub near: Vec<IpRange>,
    /// The peer's.
    pub far: Vec<IpRange>,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Conn {
    /// Its name there.
    pub name: String,
    /// The line it begins on.
    pub line: usize,
    /// Our end.
    pub near: Place,
    /// The peer.
    pub far: Place,
    /// Our identity; `None`: our address.
    pub near_id: Option<Identity>,
    /// The peer's identity; `None`: its address.
    pub far_id: Option<RemoteId>,
    /// What is protected, at least one.
    pub children: Vec<Child>,
    /// The IKE SA.
    pub ike: IkeParams,
    /// The ESP SAs.
    pub esp: EspParams,
    /// Who begins.
    pub start: Start,
    /// Its mark.
    pub mark: Option<Mark>,
    /// Why it cannot be a tunnel of ours, if it cannot.
    pub left_out: Option<String>,
}

impl Conn {
    /// An empty one.
    pub fn new(name: &str, line: usize) -> Self {
        Self {
            name: name.to_owned(),
            line,
            near: Place::Unknown,
            far: Place::Unknown,
            near_id: None,
            far_id: None,
            children: Vec::new(),
            ike: IkeParams::default(),
            esp: EspParams::default(),
            start: Start::Passive,
            mark: None,
            left_out: None,
        }
    }

    /// Gives the first reason why it cannot be a tunnel.
    pub fn leave_out(&mut self, why: impl Into<String>) {
        self.left_out.get_or_insert_with(|| why.into());
    }
}

/// A key and for whom it is: no identity means for all.
pub struct PskEntry {
    /// The line it stands on.
    pub line: usize,
    /// Identities, as far as they could be read.
    pub ids: Vec<RemoteId>,
    /// The key as a file of ours has it.
    pub key: Secret,
}

/// What a text says.
pub struct Read {
    /// Connections in the order of the text.
    pub conns: Vec<Conn>,
    /// Keys.
    pub keys: Vec<PskEntry>,
}
