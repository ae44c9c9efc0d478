//! A resolved configuration as data again, in the words of the file: what is in effect, with every default filled in.
//! Keys never show; a key in the file itself is written as a note where it stands.

use std::path::Path;

use cygnet_model::tunnel::{Bypass, Source};
use serde_json::{Map, Value, json};

use super::bandwidth::{Bandwidth, show_level};
use super::health_check::show_percent;
use super::limit::show_limit;
use super::model::{
    Alerts, Auth, Config, Console, DpdAction, GatewayAddress, Guards, HealthCheck, KeyFile, PlaneChoice,
    Quota, Tunnel,
};
use super::units::{show_duration, show_size};

/// The configuration as a tree that the decoder would take (but for inline keys, which are masked), wherever it stands.
pub fn resolved(c: &Config) -> Value {
    tree(c, |file| &file.path)
}

/// The same with the names of files as they are written.
pub fn as_written(c: &Config) -> Value {
    tree(c, |file| &file.written)
}

fn tree(c: &Config, name: fn(&KeyFile) -> &Path) -> Value {
    let listen =
        |a: Option<std::net::SocketAddr>| json!({ "listen": a.map_or("off".into(), |a| a.to_string()) });
    json!({
        "daemon": without_null(json!({
            "control_socket": c.daemon.control_socket,
            "admin_group": c.daemon.admin_group,
            "state_dir": c.daemon.state_dir,
            "data_plane": match c.daemon.data_plane {
                PlaneChoice::Auto => "auto",
                PlaneChoice::Kernel => "kernel",
                PlaneChoice::Userspace => "userspace",
            },
            "guards": match c.daemon.guards {
                Guards::Keep => "keep",
                Guards::Release => "release",
            },
            "metrics": listen(c.daemon.metrics),
            "console": c.daemon.console.as_ref().map_or_else(|| listen(None), |c| console(c, name)),
            "alerts": alerts(&c.daemon.alerts, name),
        })),
        "gateways": c.gateways.iter().map(|g| without_null(json!({
            "name": g.name,
            "address": g.addresses.iter().map(|a| match a {
                GatewayAddress::Ip(ip) => json!(ip),
                GatewayAddress::Interface(name) => json!({ "interface": name }),
            }).collect::<Vec<_>>(),
            "id": g.id.as_ref().map(ToString::to_string),
            "networks": g.networks.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "bandwidth": bandwidth(&g.bandwidth),
            "limits": g.limits.iter().map(|l| json!({ "ip": l.ip, "rate": show_limit(l.limit) })).collect::<Vec<_>>(),
        }))).collect::<Vec<_>>(),
        "customer_gateways": c.customer_gateways.iter().map(|p| without_null(json!({
            "name": p.name,
            "address": p.address.to_string(),
            "id": p.id.as_ref().map(ToString::to_string),
            "preset": p.preset.map(|p| p.name),
        }))).collect::<Vec<_>>(),
        "tunnels": c.tunnels.iter().map(|t| tunnel(t, name)).collect::<Vec<_>>(),
        "quota": quota(&c.quota),
    })
}

fn console(c: &Console, name: fn(&KeyFile) -> &Path) -> Value {
    without_null(json!({
        "listen": c.listen,
        "token_file": c.token.as_ref().and_then(|token| token.file.as_ref()).map(name),
        "hosts": (!c.hosts.is_empty()).then_some(&c.hosts),
    }))
}

fn alerts(a: &Alerts, name: fn(&KeyFile) -> &Path) -> Value {
    if !a.is_wanted() {
        return Value::Null;
    }
    let webhook = a
        .webhook
        .as_ref()
        .map(|w| without_null(json!({ "url": w.shown(), "secret_file": w.secret_file.as_ref().map(name) })));
    without_null(json!({
        "webhook": webhook,
        "command": (!a.command.is_empty()).then_some(&a.command),
        "events": a.events.iter().map(|e| e.name()).collect::<Vec<_>>(),
    }))
}

fn health_check(h: &HealthCheck) -> Value {
    let s = &h.settings;
    without_null(json!({
        "target": h.target,
        "probe": h.probe.name(),
        "port": h.probe.port(),
        "source": h.source,
        "interval": show_duration(s.interval),
        "loss": show_percent(s.loss),
        "delay": s.delay.map_or("off".into(), show_duration),
        "failures": s.failures,
        "successes": s.successes,
    }))
}

fn quota(q: &Quota) -> Value {
    let number = |limit: Option<usize>| limit.map_or_else(|| json!("unlimited"), |n| json!(n));
    q.each().into_iter().map(|(key, limit)| (key.to_owned(), number(limit))).collect::<Map<_, _>>().into()
}

fn tunnel(t: &Tunnel, name: fn(&KeyFile) -> &Path) -> Value {
    let Auth::Psk(psk) = &t.auth;
    let auth = match &psk.file {
        Some(file) if psk.others.is_empty() => json!({ "psk_file": name(file) }),
        Some(file) => {
            let others = psk.others.iter().filter_map(|psk| psk.file.as_ref());
            json!({ "psk_files": std::iter::once(file).chain(others).map(name).collect::<Vec<_>>() })
        }
        None => json!({ "psk": "(not shown)" }),
    };
    let retransmit = &t.ike.retransmit;
    without_null(json!({
        "name": t.name,
        "gateway": t.gateway,
        "customer_gateway": t.customer_gateway,
        "preset": t.preset.map(|p| p.name),
        "start": t.start.name(),
        "auth": auth,
        "local_id": t.local_id.as_ref().map(ToString::to_string),
        "remote_id": t.remote_id.to_string(),
        "mark": t.mark.map(|m| format!("{:#x}/{:#x}", m.value, m.mask)),
        "weight": t.weight,
        "health_check": t.health_check.as_ref().map(health_check),
        "allow_internet": t.allow_internet,
        "bypass": bypass(&t.bypass),
        "source": match t.source {
            Source::Auto => "auto".to_owned(),
            Source::None => "none".to_owned(),
            Source::Address(address) => address.to_string(),
        },
        "spd": t.spd.iter().map(|r| json!({
            "local": r.local.to_string(),
            "remote": r.remote.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "ike": {
            "proposals": t.ike.proposals.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "legacy": t.ike.proposals.iter().any(|p| !p.legacy().is_empty()),
            "lifetime": show_duration(t.ike.lifetime),
            "dpd": t.ike.dpd.map_or("off".into(), show_duration),
            "fragmentation": t.ike.fragmentation,
            "encap": t.ike.encap.name(),
            "retransmit": {
                "first": show_duration(retransmit.first),
                "max": show_duration(retransmit.max),
                "tries": retransmit.tries,
            },
        },
        "bandwidth": bandwidth(&t.bandwidth),
        "esp": {
            "proposals": t.esp.proposals.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "legacy": t.esp.proposals.iter().any(|p| !p.legacy().is_empty()),
            "lifetime": show_duration(t.esp.lifetime),
            "bytes": t.esp.bytes.map_or("unlimited".into(), show_size),
            "replay_window": t.esp.replay_window,
            "dpd_action": match t.esp.dpd_action { DpdAction::Clear => "clear", DpdAction::Restart => "restart" },
        },
    }))
}

fn bandwidth(b: &Bandwidth) -> Value {
    json!({ "out": show_level(b.out), "in": show_level(b.inward), "counts": b.counts.name() })
}

/// The word where one says all, else the list.
fn bypass(b: &Bypass) -> Value {
    match (b.attached, b.networks.as_slice()) {
        (true, []) => json!("attached"),
        (false, []) => json!("none"),
        (attached, networks) => {
            let word = attached.then(|| "attached".to_owned());
            json!(word.into_iter().chain(networks.iter().map(ToString::to_string)).collect::<Vec<_>>())
        }
    }
}

fn without_null(mut value: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.retain(|_, v| !v.is_null());
    }
    value
}
