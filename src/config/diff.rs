//! The difference between two configurations, object by object, and what it costs to get from one to the other.
//!
//! It is told in the words of the file: both are written out by [`super::show`] with every default filled in, and compared
//! key by key.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use cygnet_model::SecretBytes;

use super::model::{Auth, Config, Psk, Tunnel};
use super::show;

/// What a change costs. The words are those of `cygnet plan`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Impact {
    /// Nothing changes.
    Untouched,
    /// It changes while SAs and traffic go on as they are.
    InPlace,
    /// SAs get new keys, or are made and deleted one by one; the traffic goes on.
    Rekey,
    /// Of a tunnel: it is authenticated anew, beside the SAs that carry its traffic until then. Of the daemon: it takes
    /// effect when the daemon is restarted.
    Restart,
}

impl Impact {
    /// As people read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Untouched => "untouched",
            Self::InPlace => "in place",
            Self::Rekey => "rekey",
            Self::Restart => "restart",
        }
    }
}

/// A kind of object in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Object {
    /// The daemon itself.
    Daemon,
    /// A VPN gateway.
    Gateway,
    /// A customer gateway.
    CustomerGateway,
    /// A tunnel.
    Tunnel,
}

impl Object {
    /// As people read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Gateway => "gateway",
            Self::CustomerGateway => "customer gateway",
            Self::Tunnel => "tunnel",
        }
    }
}

/// What becomes of an object.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It stays as it is.
    Keep,
    /// It is new.
    Add,
    /// It stays, with changes.
    Change,
    /// It is gone.
    Remove,
}

/// One key that changes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Change {
    /// Its path in the object, as in `esp.lifetime`.
    pub field: String,
    /// Its value until now; null: it was not there, or must not be shown.
    pub before: Option<String>,
    /// Its value from now on; null: it is gone, or must not be shown.
    pub after: Option<String>,
    /// What that costs.
    pub impact: Impact,
}

/// What becomes of one object, and what that costs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Step {
    /// Its kind.
    pub object: Object,
    /// Its name; empty for the daemon.
    pub name: String,
    /// What becomes of it.
    pub action: Action,
    /// The most that any of its changes costs.
    pub impact: Impact,
    /// What changes, if it stays.
    pub changes: Vec<Change>,
}

/// A whole difference.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Default, Debug)]
pub struct Plan {
    /// Every object of either configuration, in the order of the file, those that go at last.
    pub steps: Vec<Step>,
    /// What one has to know besides.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Plan {
    /// Whether anything changes.
    pub fn changes(&self) -> bool {
        self.steps.iter().any(|s| s.action != Action::Keep)
    }

    /// Keys of the daemon that wait for its restart.
    pub fn waits_for_restart(&self) -> impl Iterator<Item = &Change> {
        let daemon = self.steps.iter().filter(|s| s.object == Object::Daemon);
        daemon.flat_map(|s| &s.changes).filter(|c| c.impact == Impact::Restart)
    }
}

/// The way from one configuration to another.
pub fn plan(old: &Config, new: &Config) -> Plan {
    // A copy in another directory, with the same keys beside it, is the same configuration.
    let (before, after) = (show::as_written(old), show::as_written(new));
    let mut daemon = step(Object::Daemon, String::new(), Some(&whole(&before)), Some(&whole(&after)));
    let token =
        |c: &Config| c.daemon.console.as_ref().and_then(|c| c.token.as_ref()).map(|t| Arc::clone(&t.secret));
    if token(old) != token(new) {
        daemon.add(hidden("console.token"));
    }
    let hook = |c: &Config| c.daemon.alerts.webhook.as_ref().map(|w| (w.url.clone(), w.secret.clone()));
    if hook(old) != hook(new) {
        daemon.add(hidden("alerts.webhook"));
    }
    let mut steps = vec![daemon];
    let lists = [
        (Object::Gateway, "gateways"),
        (Object::CustomerGateway, "customer_gateways"),
        (Object::Tunnel, "tunnels"),
    ];
    for (object, key) in lists {
        let (mut was, will) = (named(&before, key), named(&after, key));
        for (name, value) in &will {
            let old_value = was.iter().position(|(n, _)| n == name).map(|at| was.swap_remove(at).1);
            let mut step = step(object, name.clone(), old_value.as_ref(), Some(value));
            if object == Object::Tunnel {
                look_behind(&mut step, (old, old.tunnel(name)), (new, new.tunnel(name)));
            }
            steps.push(step);
        }
        was.sort_by(|a, b| a.0.cmp(&b.0));
        steps.extend(was.into_iter().map(|(name, value)| step(object, name, Some(&value), None)));
    }
    Plan { steps, notes: Vec::new() }
}

/// What is said of the daemon, and of the configuration as a whole.
fn whole(tree: &Value) -> Value {
    let mut daemon = tree.get("daemon").cloned().unwrap_or_default();
    if let (Some(daemon), Some(quota)) = (daemon.as_object_mut(), tree.get("quota")) {
        daemon.insert("quota".to_owned(), quota.clone());
    }
    daemon
}

/// The objects of a list with their names.
fn named(tree: &Value, key: &str) -> Vec<(String, Value)> {
    let list = tree.get(key).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|o| Some((o.get("name")?.as_str()?.to_owned(), o.clone()))).collect()
}

fn step(object: Object, name: String, before: Option<&Value>, after: Option<&Value>) -> Step {
    let mut changes = Vec::new();
    let action = match (before, after) {
        (Some(before), Some(after)) => {
            compare(object, "", before, after, &mut changes);
            if changes.is_empty() { Action::Keep } else { Action::Change }
        }
        (None, _) => Action::Add,
        (_, None) => Action::Remove,
    };
    let mut step = Step { object, name, action, impact: Impact::Untouched, changes };
    step.rate();
    step
}

impl Step {
    fn rate(&mut self) {
        self.impact = match self.action {
            Action::Keep => Impact::Untouched,
            Action::Add | Action::Remove => Impact::InPlace,
            Action::Change => self.changes.iter().map(|c| c.impact).max().unwrap_or(Impact::InPlace),
        };
    }

    fn add(&mut self, change: Change) {
        self.changes.push(change);
        if self.action == Action::Keep {
            self.action = Action::Change;
        }
        self.rate();
    }
}

/// What changes of a tunnel although its own keys in the file do not show it: keys that are not shown, and addresses of
/// the gateways that it joins.
fn look_behind(step: &mut Step, old: (&Config, Option<&Tunnel>), new: (&Config, Option<&Tunnel>)) {
    let ((old, Some(before)), (new, Some(after))) = (old, new) else { return };
    let (Auth::Psk(was), Auth::Psk(is)) = (&before.auth, &after.auth);
    let secrets = |psk: &Psk| -> Vec<Arc<SecretBytes>> {
        std::iter::once(psk).chain(&psk.others).map(|psk| Arc::clone(&psk.secret)).collect()
    };
    if secrets(was) != secrets(is) {
        step.add(hidden("auth.psk"));
    }
    let outer = |c: &Config, t: &Tunnel| {
        let ours = c.gateway(&t.gateway).map(|g| words(g.addresses.iter()));
        let theirs = c.customer_gateway(&t.customer_gateway).map(|p| p.address.to_string());
        [("gateway.address", ours), ("customer_gateway.address", theirs)]
    };
    for ((field, was), (_, is)) in outer(old, before).into_iter().zip(outer(new, after)) {
        if was != is {
            step.add(Change { field: field.to_owned(), before: was, after: is, impact: Impact::Restart });
        }
    }
}

/// That a key is another one, and no more.
fn hidden(field: &str) -> Change {
    Change { field: field.to_owned(), before: None, after: None, impact: Impact::InPlace }
}

fn words<T: ToString>(all: impl Iterator<Item = T>) -> String {
    all.map(|a| a.to_string()).collect::<Vec<_>>().join(", ")
}

/// Compares two trees key by key.
fn compare(object: Object, path: &str, before: &Value, after: &Value, out: &mut Vec<Change>) {
    if let (Value::Object(before), Value::Object(after)) = (before, after) {
        let keys: BTreeMap<&String, ()> = before.keys().chain(after.keys()).map(|k| (k, ())).collect();
        for key in keys.into_keys() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let of = |map: &Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
            compare(object, &path, &of(before), &of(after), out);
        }
    } else if before != after {
        if (object, path) == (Object::Gateway, "limits") {
            let (before, after) = differing(before, after);
            out.push(Change { field: path.to_owned(), before, after, impact: Impact::InPlace });
            return;
        }
        let impact = impact(object, path).unwrap_or(Impact::Restart);
        // As most files write it.
        let field = if path == "bandwidth.out" { "bandwidth" } else { path };
        out.push(Change { field: field.to_owned(), before: text(before), after: text(after), impact });
    }
}

/// Of two lists of limits what is in one only; some thousands of others say nothing.
fn differing(before: &Value, after: &Value) -> (Option<String>, Option<String>) {
    const SHOWN: usize = 8;
    let list = |value: &Value| -> BTreeMap<String, String> {
        let all = value.as_array().into_iter().flatten();
        let word = |limit: &Value, key| Some(limit.get(key)?.as_str()?.to_owned());
        all.filter_map(|limit| Some((word(limit, "ip")?, word(limit, "rate")?))).collect()
    };
    let (before, after) = (list(before), list(after));
    let only = |of: &BTreeMap<String, String>, other: &BTreeMap<String, String>| {
        let all: Vec<String> = of
            .iter()
            .filter(|(ip, rate)| other.get(*ip) != Some(*rate))
            .map(|(ip, rate)| format!("{ip} {rate}"))
            .collect();
        let more = all.len().saturating_sub(SHOWN);
        let shown = all.get(..SHOWN.min(all.len())).unwrap_or_default().join(", ");
        let shown = if more > 0 { format!("{shown} and {more} more") } else { shown };
        (!shown.is_empty()).then_some(shown)
    };
    (only(&before, &after), only(&after, &before))
}

/// A value in a line.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        Value::Array(all) => Some(words(all.iter().map(|v| text(v).unwrap_or_default()))),
        Value::Object(map) => {
            let pair = |(k, v): (&String, &Value)| format!("{k}: {}", text(v).unwrap_or_default());
            Some(format!("{{ {} }}", words(map.iter().map(pair))))
        }
        other => Some(other.to_string()),
    }
}

/// What changing a key costs; `None` for keys that are not known.
pub(super) fn impact(object: Object, path: &str) -> Option<Impact> {
    use Impact::{InPlace, Rekey, Restart};
    let key = path.split('.').next().unwrap_or(path);
    Some(match (object, path, key) {
        (Object::Daemon, _, "control_socket" | "admin_group" | "state_dir" | "data_plane") => Restart,
        (Object::Daemon, _, "guards" | "metrics" | "console" | "alerts" | "quota") => InPlace,
        (Object::Gateway, _, "name" | "address" | "id" | "networks" | "bandwidth" | "limits") => InPlace,
        (Object::CustomerGateway, _, "name" | "address" | "id" | "preset") => InPlace,
        (
            Object::Tunnel,
            "ike.dpd" | "ike.retransmit.first" | "ike.retransmit.max" | "ike.retransmit.tries",
            _,
        ) => InPlace,
        (Object::Tunnel, "ike.fragmentation" | "ike.legacy" | "esp.legacy" | "esp.dpd_action", _) => InPlace,
        (Object::Tunnel, "ike.encap", _) => Restart,
        (Object::Tunnel, "ike.proposals" | "ike.lifetime", _) => Rekey,
        (Object::Tunnel, "esp.proposals" | "esp.lifetime" | "esp.bytes" | "esp.replay_window", _) => Rekey,
        (Object::Tunnel, _, "spd" | "mark") => Rekey,
        (Object::Tunnel, _, "local_id" | "remote_id") => Restart,
        // Where they lead elsewhere, addresses and identities say so.
        (Object::Tunnel, _, "name" | "gateway" | "customer_gateway") => InPlace,
        (
            Object::Tunnel,
            _,
            "start" | "preset" | "auth" | "weight" | "health_check" | "allow_internet" | "bypass" | "source"
            | "bandwidth",
        ) => InPlace,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::fields::{self, Kind, Section};
    use super::*;

    fn config(change: impl Fn(&str) -> String) -> Config {
        let text = "gateways: [ { name: g, address: 192.0.2.1, networks: [10.1.0.0/16] } ]
customer_gateways: [ { name: c, address: 192.0.2.2 } ]
tunnels:
  - { name: a, gateway: g, customer_gateway: c, auth: { psk: pL7v0y2QxNf8sKd3RwZtB5 },
      spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ] }
  - { name: b, gateway: g, customer_gateway: c, auth: { psk: pL7v0y2QxNf8sKd3RwZtB5 },
      spd: [ { local: 10.1.0.0/16, remote: [10.3.0.0/16] } ] }
";
        super::super::load_text(&change(text), Path::new("/nonexistent")).unwrap().config
    }

    /// (object and name, action, impact, fields) of what changes.
    fn told(change: impl Fn(&str) -> String) -> Vec<(String, Action, Impact, Vec<String>)> {
        let plan = plan(&config(str::to_owned), &config(change));
        let step = |s: Step| {
            let name = format!("{} {}", s.object.name(), s.name);
            (name.trim().to_owned(), s.action, s.impact, s.changes.into_iter().map(|c| c.field).collect())
        };
        plan.steps.into_iter().filter(|s| s.action != Action::Keep).map(step).collect()
    }

    /// A key that somebody adds to the tables must say here what changing it costs.
    #[test]
    fn every_key_of_the_configuration_has_an_impact() {
        fn leaves(section: &Section, path: &str, out: &mut Vec<String>) {
            for f in section.fields {
                let path = if path.is_empty() { f.key.to_owned() } else { format!("{path}.{}", f.key) };
                match f.kind {
                    Kind::Section(inner) => leaves(inner, &path, out),
                    _ => out.push(path),
                }
            }
        }
        let sections = [
            (Object::Daemon, &fields::DAEMON),
            (Object::Gateway, &fields::GATEWAY),
            (Object::CustomerGateway, &fields::CUSTOMER),
            (Object::Tunnel, &fields::TUNNEL),
        ];
        for (object, section) in sections {
            let mut paths = Vec::new();
            leaves(section, "", &mut paths);
            for path in paths {
                assert!(impact(object, &path).is_some(), "{object:?} {path}");
            }
        }
    }

    #[test]
    fn the_same_configuration_has_no_steps_but_names_every_object() {
        let plan = plan(&config(str::to_owned), &config(str::to_owned));
        assert!(!plan.changes());
        assert_eq!(plan.steps.len(), 5);
        assert!(plan.steps.iter().all(|s| s.impact == Impact::Untouched));
    }

    #[test]
    fn of_many_limits_those_are_told_that_differ() {
        let limits = |all: &[(u8, &str)]| {
            let all: Vec<String> =
                all.iter().map(|(n, rate)| format!("{{ ip: 10.1.0.{n}, rate: {rate} }}")).collect();
            let text = format!("networks: [10.1.0.0/16], limits: [{}]", all.join(", "));
            config(|t: &str| t.replacen("networks: [10.1.0.0/16]", &text, 1))
        };
        let many: Vec<(u8, &str)> = (1..200).map(|n| (n, "1mbit")).collect();
        let mut others = many.clone();
        (others[4].1, others[6].1) = ("block", "2mbit");
        let plan = plan(&limits(&many), &limits(&others));
        let change = plan.steps.iter().flat_map(|s| &s.changes).next().unwrap();
        assert_eq!(change.before.as_deref(), Some("10.1.0.5 1mbit, 10.1.0.7 1mbit"));
        assert_eq!(change.after.as_deref(), Some("10.1.0.5 block, 10.1.0.7 2mbit"));
        let gone = super::plan(&limits(&many), &limits(&[]));
        let change = gone.steps.iter().flat_map(|s| &s.changes).next().unwrap();
        assert!(change.after.is_none() && change.before.as_ref().unwrap().ends_with("and 191 more"));
    }

    #[test]
    fn each_object_tells_what_it_costs() {
        let a = |more: &str| {
            let more = more.to_owned();
            move |t: &str| t.replacen("name: a,", &format!("name: a, {more},"), 1)
        };
        let fields = |f: &[&str]| f.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>();
        let change = |name: &str, impact, f: &[&str]| (name.to_owned(), Action::Change, impact, fields(f));
        assert_eq!(told(a("ike: { dpd: 5s }")), [change("tunnel a", Impact::InPlace, &["ike.dpd"])]);
        assert_eq!(
            told(a("esp: { lifetime: 30m }, ike: { dpd: 5s }")),
            [change("tunnel a", Impact::Rekey, &["esp.lifetime", "ike.dpd"])]
        );
        assert_eq!(told(a("local_id: x.example")), [change("tunnel a", Impact::Restart, &["local_id"])]);
        assert_eq!(
            told(|t| t.replacen("pL7v0y2QxNf8sKd3RwZtB5", "qM7v0y2QxNf8sKd3RwZtB5", 1)),
            [change("tunnel a", Impact::InPlace, &["auth.psk"])]
        );
        let moved = told(|t| {
            t.replace("name: c, address: 192.0.2.2", "name: c, id: peer.example, address: 192.0.2.9")
        });
        assert_eq!(moved.len(), 3);
        assert_eq!(moved[0], change("customer gateway c", Impact::InPlace, &["address", "id"]));
        assert_eq!(moved[1], change("tunnel a", Impact::Restart, &["remote_id", "customer_gateway.address"]));
        assert_eq!(
            told(|t| format!("daemon: {{ data_plane: userspace, metrics: {{ listen: off }} }}\n{t}")),
            [change("daemon", Impact::Restart, &["data_plane", "metrics.listen"])]
        );
        let gone = told(|t| t.replacen("name: b,", "name: d,", 1));
        assert_eq!(gone[0], ("tunnel d".to_owned(), Action::Add, Impact::InPlace, vec![]));
        assert_eq!(gone[1], ("tunnel b".to_owned(), Action::Remove, Impact::InPlace, vec![]));
    }

    #[test]
    fn no_step_shows_a_key() {
        let plan = plan(
            &config(str::to_owned),
            &config(|t| t.replace("pL7v0y2QxNf8sKd3RwZtB5", "qM7v0y2QxNf8sKd3RwZtB5")),
        );
        let text = serde_json::to_string(&plan).unwrap();
        assert!(plan.changes() && !text.contains("pL7v") && !text.contains("qM7v"), "{text}");
    }
}
