//! Where in its file each tunnel says what it negotiates, so that an explanation can name the line to change.
//!
//! Kept beside the configuration and not in it: moving a line changes nothing.

use std::collections::BTreeMap;

use super::model::Config;
use super::node::{Entry, Node, Value};

/// What of a tunnel is negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// `ike.proposals`.
    IkeProposals,
    /// `esp.proposals`.
    EspProposals,
    /// `auth`.
    Auth,
    /// Our name: the tunnel's `local_id`, or the gateway's `id`.
    LocalId,
    /// The peer's name: the tunnel's `remote_id`, or the customer gateway's `id`.
    RemoteId,
    /// `spd`.
    Spd,
    /// The customer gateway's `address`.
    PeerAddress,
    /// The gateway's `address`.
    OwnAddress,
}

/// A place in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Line, counted from 1.
    pub line: u32,
    /// As in `tunnels[2].ike.proposals`.
    pub path: String,
    /// Whether it is written; else it may be added to what stands on the line.
    pub written: bool,
}

/// Lines of every tunnel, in the order of the file; 0 where a key is not written.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Lines {
    tunnels: Vec<TunnelLines>,
    gateways: BTreeMap<String, EndLines>,
    customers: BTreeMap<String, EndLines>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct TunnelLines {
    at: u32,
    ike: u32,
    ike_proposals: u32,
    esp: u32,
    esp_proposals: u32,
    auth: u32,
    local_id: u32,
    remote_id: u32,
    spd: u32,
}

/// Of a gateway or a customer gateway.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct EndLines {
    index: u32,
    at: u32,
    id: u32,
    address: u32,
}

impl Lines {
    /// Those of a document that may be anything.
    pub(super) fn of(root: &Node) -> Self {
        let list = |key| value(root, key).map_or(&[][..], items);
        let ends = |key| {
            let end = |(index, node): (u32, &std::rc::Rc<Node>)| {
                let name = scalar(value(node, "name")?)?.to_owned();
                let (id, address) = (line(node, "id"), line(node, "address"));
                Some((name, EndLines { index, at: narrow(node.start.line), id, address }))
            };
            (0..).zip(list(key)).filter_map(end).collect()
        };
        let tunnel = |node: &std::rc::Rc<Node>| {
            let inside = |section, key| value(node, section).map_or(0, |s| line(s, key));
            TunnelLines {
                at: narrow(node.start.line),
                ike: line(node, "ike"),
                ike_proposals: inside("ike", "proposals"),
                esp: line(node, "esp"),
                esp_proposals: inside("esp", "proposals"),
                auth: line(node, "auth"),
                local_id: line(node, "local_id"),
                remote_id: line(node, "remote_id"),
                spd: line(node, "spd"),
            }
        };
        Self {
            tunnels: list("tunnels").iter().map(tunnel).collect(),
            gateways: ends("gateways"),
            customers: ends("customer_gateways"),
        }
    }

    /// Where the configuration, which is that of these lines, says something of a tunnel, or where it may be added.
    pub fn place(&self, config: &Config, tunnel: &str, key: Key) -> Option<Place> {
        let n = config.tunnels.iter().position(|t| t.name == tunnel)?;
        let (t, lines) = (config.tunnels.get(n)?, self.tunnels.get(n)?);
        let own = |key: &str| format!("tunnels[{n}].{key}");
        let written = |line: u32, path: String| (line != 0).then_some(Place { line, path, written: true });
        let missing = |path: &str, inside: u32| {
            let line = if inside == 0 { lines.at } else { inside };
            Some(Place { line, path: own(path), written: false })
        };
        let end = |ends: &BTreeMap<String, EndLines>, name: &str, of: &str, key: &str| {
            let end = ends.get(name)?;
            let line = if key == "id" { end.id } else { end.address };
            written(line, format!("{of}[{}].{key}", end.index))
        };
        let gateway = |key| end(&self.gateways, &t.gateway, "gateways", key);
        let customer = |key| end(&self.customers, &t.customer_gateway, "customer_gateways", key);
        match key {
            Key::IkeProposals => written(lines.ike_proposals, own("ike.proposals"))
                .or_else(|| missing("ike.proposals", lines.ike)),
            Key::EspProposals => written(lines.esp_proposals, own("esp.proposals"))
                .or_else(|| missing("esp.proposals", lines.esp)),
            Key::Auth => written(lines.auth, own("auth")).or_else(|| missing("auth", 0)),
            Key::Spd => written(lines.spd, own("spd")).or_else(|| missing("spd", 0)),
            Key::LocalId => written(lines.local_id, own("local_id"))
                .or_else(|| gateway("id"))
                .or_else(|| missing("local_id", 0)),
            Key::RemoteId => written(lines.remote_id, own("remote_id"))
                .or_else(|| customer("id"))
                .or_else(|| missing("remote_id", 0)),
            Key::PeerAddress => customer("address"),
            Key::OwnAddress => gateway("address"),
        }
    }
}

fn entry<'a>(node: &'a Node, key: &str) -> Option<&'a Entry> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|e| e.key == key),
        Value::Scalar { .. } | Value::Seq(_) => None,
    }
}

fn value<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    entry(node, key).map(|e| &*e.value)
}

/// The line of a key. Where a section is an alias, that of what it stands for.
fn line(node: &Node, key: &str) -> u32 {
    entry(node, key).map_or(0, |e| narrow(e.key_at.line))
}

fn items(node: &Node) -> &[std::rc::Rc<Node>] {
    match &node.value {
        Value::Seq(items) => items,
        Value::Scalar { .. } | Value::Map(_) => &[],
    }
}

fn scalar(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        Value::Seq(_) | Value::Map(_) => None,
    }
}

/// A file has no more lines than octets, of which there are at most [`super::MAX_FILE`].
fn narrow(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TEXT: &str = "gateways:
  - name: vpc-a
    address: 192.0.2.1
    id: a.example
    networks: [10.1.0.0/16]
customer_gateways: [ { name: idc-b, address: 192.0.2.2 } ]
tunnels:
  - name: a-b
    gateway: vpc-a
    customer_gateway: idc-b
    auth: { psk: pL7v0y2QxNf8sKd3RwZtB5 }
    ike:
      lifetime: 2h
    esp:
      proposals:
        - aes256gcm16
    spd:
      - { local: 10.1.0.0/16, remote: [10.2.0.0/16] }
";

    fn place(key: Key) -> (u32, String, bool) {
        let loaded = crate::config::load_text(TEXT, Path::new("/nonexistent")).unwrap();
        let p = loaded.lines.place(&loaded.config, "a-b", key).unwrap();
        (p.line, p.path, p.written)
    }

    #[test]
    fn what_is_written_is_found_and_what_is_not_has_a_place_to_be_added() {
        let of = |line, path: &str, written| (line, path.to_owned(), written);
        assert_eq!(place(Key::EspProposals), of(15, "tunnels[0].esp.proposals", true));
        assert_eq!(place(Key::IkeProposals), of(12, "tunnels[0].ike.proposals", false));
        assert_eq!(place(Key::Auth), of(11, "tunnels[0].auth", true));
        assert_eq!(place(Key::LocalId), of(4, "gateways[0].id", true));
        assert_eq!(place(Key::RemoteId), of(8, "tunnels[0].remote_id", false));
        assert_eq!(place(Key::Spd), of(17, "tunnels[0].spd", true));
        assert_eq!(place(Key::PeerAddress), of(6, "customer_gateways[0].address", true));
    }

    #[test]
    fn lines_of_nonsense_are_none() {
        let sink = crate::config::error::Sink::default();
        for text in ["", "tunnels: x", "tunnels: [1, [2]]", "gateways: [ { name: [x] } ]"] {
            let lines = crate::config::node::parse(text, &sink).map(|root| Lines::of(&root));
            assert!(lines.is_none_or(|l| l.gateways.is_empty()));
        }
    }
}
