//! Guards, prefixes and selectors for the tests of this module.

use cygnet_model::selector::TrafficSelector;
use cygnet_model::tunnel::{Bypass, GuardAction, GuardSpec};
use cygnet_model::{ChildId, Reqid, TunnelId};
use cygnet_xfrm::route::Prefix;

/// `10.1.0.0/16` as a prefix.
pub fn prefix(text: &str) -> Prefix {
    let (address, len) = text.split_once('/').unwrap();
    (address.parse().unwrap(), len.parse().unwrap())
}

/// `10.1.0.0/16` as a selector of all protocols.
pub fn net(text: &str) -> TrafficSelector {
    let (address, len) = prefix(text);
    TrafficSelector::cidr(address, len).unwrap()
}

/// A list of them.
pub fn nets(texts: &[&str]) -> Vec<TrafficSelector> {
    texts.iter().map(|text| net(text)).collect()
}

/// The guard of the first child of a tunnel.
pub fn guard_of(tunnel: u32, local: &[TrafficSelector], remote: &[TrafficSelector]) -> GuardSpec {
    let child = ChildId { tunnel: TunnelId(tunnel), index: 0 };
    GuardSpec {
        child,
        reqid: Reqid::of(child).unwrap(),
        local: local.to_vec(),
        remote: remote.to_vec(),
        action: GuardAction::Drop,
        mark: None,
        weight: 0,
        bypass: Bypass::NONE,
    }
}

/// What a configuration lists.
pub fn listed(networks: &[&str]) -> Bypass {
    Bypass { attached: false, networks: networks.iter().map(|text| net(text).range).collect() }
}
