//! A tunnel seen from its other end.

use std::net::IpAddr;

use cygnet_model::IpRange;
use zeroize::Zeroizing;

use super::text::{PLACEHOLDER, coded};
use super::{ExportError, Format, Options};
use crate::config::draft::outermost;
use crate::config::{
    Auth, ChildSpec, Config, EspParams, Gateway, GatewayAddress, Identity, IkeParams, PeerAddress, RemoteId,
    SpdRule, Start, Tunnel,
};

/// A tunnel seen from the peer, for whom the text is: `near` is the peer, `far` our gateway.
#[derive(Debug)]
pub struct Mirror<'a> {
    /// The format, for messages.
    pub format: Format,
    /// The tunnel's name.
    pub name: &'a str,
    /// The end that the text is for.
    pub near: Site<'a>,
    /// Our end.
    pub far: Site<'a>,
    /// What is protected, children as we have them.
    pub children: Vec<Child>,
    /// Who begins, from the peer's point of view.
    pub start: Start,
    /// The IKE SA.
    pub ike: &'a IkeParams,
    /// The ESP SAs.
    pub esp: &'a EspParams,
    /// The key, or what stands for it.
    pub key: Key,
    /// What is to be told whatever the format.
    pub notes: Vec<String>,
}

/// One end.
#[derive(Debug)]
pub struct Site<'a> {
    /// Its name in our configuration.
    pub name: &'a str,
    /// Where it is.
    pub address: Place,
    /// Its identity; `None`: whatever it says (the peer's own), or its address (ours).
    pub id: Option<Identity>,
}

/// Where an end is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// At this address.
    Ip(IpAddr),
    /// At what this name resolves to.
    Dns(String),
    /// The configuration does not tell.
    Unknown,
}

impl Place {
    /// The address, if it is one.
    pub const fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            Self::Dns(_) | Self::Unknown => None,
        }
    }
}

/// One child: every `near` × every `far`.
#[derive(Debug)]
pub struct Child {
    /// The peer's networks.
    pub near: Vec<IpRange>,
    /// Ours.
    pub far: Vec<IpRange>,
}

/// The key as formats write it.
#[derive(Debug)]
pub enum Key {
    /// A place for it.
    Placeholder,
    /// Letters, digits and `.`, `_`, `+`, `/`, `-`, which stand for themselves everywhere.
    Text(Zeroizing<String>),
    /// Hexadecimal digits of any other key, without `0x`.
    Hex(Zeroizing<String>),
}

impl Key {
    /// The key as formats write it that take `0x` for a coded one.
    pub fn with_0x(&self) -> Zeroizing<String> {
        Zeroizing::new(match self {
            Self::Placeholder => PLACEHOLDER.to_owned(),
            Self::Text(text) => text.to_string(),
            Self::Hex(hex) => format!("0x{}", hex.as_str()),
        })
    }
}

impl<'a> Mirror<'a> {
    /// Turns a tunnel around.
    pub fn new(
        config: &'a Config,
        tunnel: &str,
        format: Format,
        options: &Options,
    ) -> Result<Self, ExportError> {
        let t = config.tunnel(tunnel).ok_or(ExportError::NoTunnel)?;
        let (gateway, customer) = config
            .gateway(&t.gateway)
            .zip(config.customer_gateway(&t.customer_gateway))
            .ok_or(ExportError::NoTunnel)?;
        let mut notes = Vec::new();
        let near = match (options.peer_address, &customer.address) {
            (Some(ip), _) => Place::Ip(ip),
            (None, PeerAddress::Ip(ip)) => Place::Ip(*ip),
            (None, PeerAddress::Dns(name)) => Place::Dns(name.clone()),
        };
        let far = far_address(gateway, options.address, near.ip(), &mut notes);
        let far_id = match (&t.local_id, &far) {
            // Behind NAT the gateway goes on to say its own address.
            (Some(id), _) => Some(id.clone()),
            (None, Place::Ip(ip)) => Some(Identity::Ip(*ip)),
            (None, _) => None,
        };
        let near_id = match (&t.remote_id, &near) {
            (RemoteId::Is(id), _) => Some(id.clone()),
            (RemoteId::Any, Place::Ip(ip)) => Some(Identity::Ip(*ip)),
            (RemoteId::Any, Place::Dns(name)) => Some(Identity::Fqdn(name.clone())),
            (RemoteId::Any, Place::Unknown) => None,
        };
        let key = key(t, options.with_psk, &mut notes)?;
        if t.mark.is_some() {
            notes.push("mark: is for this host alone; the peer's text has none".into());
        }
        Ok(Self {
            format,
            name: &t.name,
            near: Site { name: &customer.name, address: near, id: near_id },
            far: Site { name: &gateway.name, address: far, id: far_id },
            children: t.children().iter().map(mirrored).collect(),
            start: match t.start {
                Start::Active => Start::Passive,
                Start::Passive => Start::Active,
                Start::OnDemand => Start::OnDemand,
            },
            ike: &t.ike,
            esp: &t.esp,
            key,
            notes,
        })
    }

    /// The product, for messages.
    pub const fn product(&self) -> &'static str {
        self.format.product()
    }

    /// The outer address of the peer, for formats that cannot do without.
    pub fn near_ip(&self) -> Result<IpAddr, ExportError> {
        let product = self.product();
        let missing = ExportError::Address { product, whose: "the peer", flag: "--peer-address" };
        self.near.address.ip().ok_or(missing)
    }

    /// Our outer address, for formats that cannot do without.
    pub fn far_ip(&self) -> Result<IpAddr, ExportError> {
        let product = self.product();
        let missing = ExportError::Address { product, whose: "our gateway", flag: "--address" };
        self.far.address.ip().ok_or(missing)
    }

    /// The SPD rules of the peer.
    pub fn rules(&self) -> Vec<SpdRule> {
        let rule = |c: &Child, near: &IpRange| SpdRule { local: *near, remote: c.far.clone() };
        self.children.iter().flat_map(|c| c.near.iter().map(move |near| rule(c, near))).collect()
    }

    /// Every pair of networks: the peer's, ours.
    pub fn pairs(&self) -> Vec<(IpRange, IpRange)> {
        let of = |c: &Child| -> Vec<(IpRange, IpRange)> {
            c.near.iter().flat_map(|near| c.far.iter().map(move |far| (*near, *far))).collect()
        };
        self.children.iter().flat_map(of).collect()
    }

    /// The peer's networks.
    pub fn near_networks(&self) -> Vec<IpRange> {
        outermost(self.children.iter().flat_map(|c| c.near.iter().copied()))
    }

    /// Our networks.
    pub fn far_networks(&self) -> Vec<IpRange> {
        outermost(self.children.iter().flat_map(|c| c.far.iter().copied()))
    }

    /// The first lines of a text, without the mark of a comment.
    pub fn head(&self) -> Vec<String> {
        let place = |p: &Place| match p {
            Place::Ip(ip) => ip.to_string(),
            Place::Dns(name) => name.clone(),
            Place::Unknown => "an address to be found".into(),
        };
        let mut lines = vec![format!(
            "Tunnel {} as its other end has it: {} ({}) to {} ({}). Made by cygnet export-peer.",
            self.name,
            self.near.name,
            place(&self.near.address),
            self.far.name,
            place(&self.far.address),
        )];
        if matches!(self.key, Key::Placeholder) {
            lines.push(format!("The pre-shared key goes where {PLACEHOLDER} stands."));
        }
        lines
    }
}

fn mirrored(c: &ChildSpec) -> Child {
    let ranges = |side: &[cygnet_model::TrafficSelector]| side.iter().map(|s| s.range).collect();
    Child { near: ranges(&c.remote), far: ranges(&c.local) }
}

/// The address that the peer calls: of its family, the first one.
fn far_address(
    gateway: &Gateway,
    told: Option<IpAddr>,
    peer: Option<IpAddr>,
    notes: &mut Vec<String>,
) -> Place {
    if let Some(ip) = told {
        return Place::Ip(ip);
    }
    let fits = |ip: &IpAddr| peer.is_none_or(|p| p.is_ipv4() == ip.is_ipv4());
    let ips: Vec<IpAddr> = (gateway.addresses.iter())
        .filter_map(|a| match a {
            GatewayAddress::Ip(ip) => Some(*ip),
            GatewayAddress::Interface(_) => None,
        })
        .filter(fits)
        .collect();
    match ips.as_slice() {
        [] => {
            let why = "the gateway's address is that of an interface, so that the peer's text does not have it; name it \
                       with --address";
            notes.push(why.into());
            Place::Unknown
        }
        [only] => Place::Ip(*only),
        [first, ..] => {
            notes.push(format!(
                "the gateway has several addresses; the peer's text has the first one, {first}"
            ));
            Place::Ip(*first)
        }
    }
}

fn key(t: &Tunnel, with_psk: bool, notes: &mut Vec<String>) -> Result<Key, ExportError> {
    if !with_psk {
        return Ok(Key::Placeholder);
    }
    let Auth::Psk(psk) = &t.auth;
    if psk.secret.is_empty() {
        return Err(ExportError::NoKey);
    }
    if !psk.others.is_empty() {
        notes.push("psk_files: the peer's text has the first key; we take the others as well".into());
    }
    Ok(coded(psk.secret.expose()))
}
