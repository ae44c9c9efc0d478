//! The configuration of another cygnet.

use zeroize::Zeroizing;

use super::mirror::{Key, Mirror, Place};
use crate::config::draft::{Defaults, Draft, DraftAuth, DraftGateway, DraftTunnel};
use crate::config::{DpdAction, EspParams, GatewayAddress, Identity, PeerAddress, RemoteId, Start};

pub fn render(m: &Mirror<'_>, notes: &mut Vec<String>) -> Zeroizing<String> {
    let address = match &m.near.address {
        Place::Ip(ip) => GatewayAddress::Ip(*ip),
        Place::Dns(_) | Place::Unknown => {
            notes.push("address: write the peer's own interface for eth0".into());
            GatewayAddress::Interface("eth0".into())
        }
    };
    let far = match &m.far.address {
        Place::Ip(ip) => PeerAddress::Ip(*ip),
        Place::Dns(name) => PeerAddress::Dns(name.clone()),
        Place::Unknown => {
            notes.push("address: write our gateway's address for gateway.invalid".into());
            PeerAddress::Dns("gateway.invalid".into())
        }
    };
    let near_default = match &m.near.address {
        Place::Ip(ip) => Some(Identity::Ip(*ip)),
        Place::Dns(_) | Place::Unknown => None,
    };
    let far_default = match &far {
        PeerAddress::Ip(ip) => Identity::Ip(*ip),
        PeerAddress::Dns(name) => Identity::Fqdn(name.clone()),
    };
    let remote_id = match &m.far.id {
        Some(id) => RemoteId::Is(id.clone()),
        None => RemoteId::Any,
    };
    let auth = match &m.key {
        Key::Placeholder => DraftAuth::File(format!("{}.psk", m.name)),
        key => DraftAuth::Inline(key.with_0x()),
    };
    let esp = EspParams {
        dpd_action: if m.start == Start::Active { DpdAction::Restart } else { DpdAction::Clear },
        ..m.esp.clone()
    };
    let mut head = m.head();
    head.truncate(1);
    if matches!(m.key, Key::Placeholder) {
        head.push(format!("The pre-shared key goes into {}.psk beside this file, mode 0600.", m.name));
    }
    let draft = Draft {
        head,
        gateways: vec![DraftGateway { name: m.near.name.into(), address, networks: m.near_networks() }],
        customers: vec![(m.far.name.into(), far, None)],
        tunnels: vec![DraftTunnel {
            name: m.name.into(),
            gateway: m.near.name.into(),
            customer: m.far.name.into(),
            start: m.start,
            auth,
            local_id: m.near.id.clone().filter(|id| Some(id) != near_default.as_ref()),
            remote_id: Some(remote_id).filter(|id| *id != RemoteId::Is(far_default)),
            mark: None,
            weight: None,
            rules: m.rules(),
            ike: m.ike.clone(),
            esp,
        }],
    };
    draft.yaml(Defaults::Pin)
}
