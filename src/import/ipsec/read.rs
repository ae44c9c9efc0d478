//! What an ipsec.conf means.

use std::collections::BTreeMap;
use std::time::Duration;

use cygnet_model::proposal::EspProposal;
use cygnet_model::suite::Group;
use cygnet_model::tunnel::Mark;

use super::super::algorithms::{self, Line};
use super::super::conn::{Child, Conn, Place};
use super::super::known;
use super::super::notes::{Kind, Notes};
use super::super::words;
use super::super::{Malformed, Options, Side};
use super::lines::{self, Param, Section};
use crate::config::{DpdAction, Encap, EspParams, Start};

/// Reads a file.
pub fn read(text: &str, options: &Options, notes: &mut Notes) -> Result<Vec<Conn>, Malformed> {
    let sections = lines::parse(text, notes)?;
    let mut out: Vec<Conn> = Vec::new();
    for s in &sections {
        match s.kind.as_str() {
            "config" => setup(s, notes),
            "ca" => notes.about(Kind::Ignored, s.line, "there are no certificates"),
            _ if s.name == "%default" => {}
            _ => {
                let params = Params::new(lines::effective(s, &sections)?);
                // What others take by also= and nobody starts is a piece, not a connection.
                let piece = sections
                    .iter()
                    .any(|o| o.params.iter().any(|p| p.key == "also" && p.value.trim() == s.name));
                if piece
                    && (params.get("left").is_none()
                        || params.get("right").is_none()
                        || params.get("auto").is_none())
                {
                    continue;
                }
                let conn = connection(s, params, options, notes);
                merge(&mut out, conn, notes);
            }
        }
    }
    Ok(out)
}

fn setup(s: &Section, notes: &mut Notes) {
    for p in &s.params {
        let why = match p.key.as_str() {
            "virtual_private" | "virtual-private" => "networks of remote users have no counterpart",
            "uniqueids" => "a tunnel has one IKE SA; a peer's new one takes its place",
            "protostack" => "daemon: { data_plane } says who handles ESP",
            "charondebug" | "plutodebug" | "logfile" | "plutostderrlog" | "logappend" | "logtime" => {
                "the log goes to the journal; cygnet run -v tells more"
            }
            "nat_traversal" => "NAT traversal is always there",
            "interfaces" | "listen" => "the gateway's address says where it listens",
            _ => "settings of the daemon are written anew",
        };
        notes.add(Kind::Ignored, p.line, &p.key, &p.value, why);
    }
}

/// Another conn between the same two ends with the same parameters is another rule of the same tunnel, whoever begins.
fn merge(out: &mut Vec<Conn>, conn: Conn, notes: &mut Notes) {
    let known = |p: &Place| !matches!(p, Place::Unknown | Place::Any);
    let same = |o: &&mut Conn| {
        o.left_out.is_none()
            && known(&o.far)
            && (&o.near, &o.far, &o.near_id, &o.far_id)
                == (&conn.near, &conn.far, &conn.near_id, &conn.far_id)
            && (&o.ike, o.mark) == (&conn.ike, conn.mark)
            && o.esp == EspParams { dpd_action: o.esp.dpd_action, ..conn.esp.clone() }
    };
    if conn.left_out.is_none()
        && let Some(other) = out.iter_mut().find(same)
        && !other.children.iter().any(|c| conn.children.contains(c))
    {
        let why = format!(
            "it joins the same two ends as conn {}: it is another SPD rule of that tunnel",
            other.name
        );
        notes.add(Kind::Changed, conn.line, "conn", &conn.name, why);
        other.children.extend(conn.children);
        if eager(conn.start) > eager(other.start) {
            let why = format!("the whole tunnel has start: {} for it", conn.start.name());
            notes.add(Kind::Changed, conn.line, "conn", &conn.name, why);
            other.start = conn.start;
            other.esp.dpd_action = conn.esp.dpd_action;
        }
        return;
    }
    out.push(conn);
}

const fn eager(start: Start) -> u8 {
    match start {
        Start::Passive => 0,
        Start::OnDemand => 1,
        Start::Active => 2,
    }
}

/// Parameters by their keys; what is taken is gone.
struct Params {
    all: BTreeMap<String, Param>,
}

impl Params {
    fn new(list: Vec<Param>) -> Self {
        Self { all: list.into_iter().map(|p| (p.key.clone(), p)).collect() }
    }

    fn get(&self, key: &str) -> Option<&Param> {
        self.all.get(key)
    }

    fn take(&mut self, keys: &[&str]) -> Option<Param> {
        keys.iter().find_map(|key| self.all.remove(*key))
    }
}

fn wrong(p: &Param, why: impl Into<String>, notes: &mut Notes) {
    notes.add(Kind::Todo, p.line, &p.key, &p.value, why);
}

fn changed(p: &Param, why: impl Into<String>, notes: &mut Notes) {
    notes.add(Kind::Changed, p.line, &p.key, &p.value, why);
}

fn connection(s: &Section, mut p: Params, options: &Options, notes: &mut Notes) -> Conn {
    let mut conn = Conn::new(&s.name, s.line);
    let (near, far) = match here(&p, options) {
        Side::Left => ("left", "right"),
        Side::Right => ("right", "left"),
    };
    conn.near = place(&mut p, near, words::MORE_OF_OURS, notes);
    conn.far = place(&mut p, far, words::MORE_OF_THEIRS, notes);
    ids(&mut conn, &mut p, near, far, notes);
    kind(&mut conn, &mut p, near, far, notes);
    networks(&mut conn, &mut p, near, far, notes);
    start(&mut conn, &mut p, notes);
    algorithms_of(&mut conn, s, &mut p, notes);
    lifetimes(&mut conn, &mut p, notes);
    liveness(&mut conn, &mut p, notes);
    rest(&mut conn, &mut p, notes);
    for param in p.all.into_values() {
        leftover(&param, notes);
    }
    conn
}

/// Left is here, unless the text or this host's addresses say otherwise.
fn here(p: &Params, options: &Options) -> Side {
    if let Some(side) = options.here {
        return side;
    }
    let value = |key: &str| p.get(key).map_or("", |v| v.value.as_str());
    let own = |key: &str| value(key).parse().is_ok_and(|ip| options.addresses.contains(&ip));
    let open = |key: &str| value(key) == "%defaultroute" || value(key).starts_with("%eth");
    let right = (own("right") && !own("left")) || (open("right") && !open("left") && !own("left"));
    if right { Side::Right } else { Side::Left }
}

fn place(p: &mut Params, side: &str, more: &str, notes: &mut Notes) -> Place {
    let Some(param) = p.take(&[side]) else { return Place::Unknown };
    match words::place(&param.value) {
        Ok((place, others)) => {
            if !others.is_empty() {
                wrong(&param, more, notes);
            }
            place
        }
        Err(why) => {
            wrong(&param, why, notes);
            Place::Unknown
        }
    }
}

fn ids(conn: &mut Conn, p: &mut Params, near: &str, far: &str, notes: &mut Notes) {
    if let Some(param) = p.take(&[&format!("{near}id")]) {
        match words::own_id(&param.value) {
            Ok(id) => conn.near_id = Some(id),
            Err(_) if param.value == "%any" => {}
            Err(why) => wrong(&param, format!("{why}; write it as local_id"), notes),
        }
    }
    if let Some(param) = p.take(&[&format!("{far}id")]) {
        match words::remote_id(&param.value) {
            Ok(id) => conn.far_id = Some(id),
            Err(why) => wrong(&param, format!("{why}; write it as remote_id"), notes),
        }
    }
}

/// What sort of connection it is: IKEv2 or not, tunnel or not, key or not.
fn kind(conn: &mut Conn, p: &mut Params, near: &str, far: &str, notes: &mut Notes) {
    let old = "IKEv1 is not spoken; the peer has to be switched to IKEv2";
    if let Some(param) = p.take(&["keyexchange"]) {
        match param.value.as_str() {
            "ikev1" => wrong(&param, old, notes),
            "ikev2" | "ike" => {}
            _ => wrong(&param, "IKEv2 is spoken", notes),
        }
    }
    if let Some(param) = p.take(&["ikev2"])
        && words::yes(&param.value) == Some(false)
    {
        wrong(&param, old, notes);
    }
    if let Some(param) = p.take(&["type"]) {
        match param.value.as_str() {
            "tunnel" => {}
            "passthrough" | "pass" | "drop" | "reject" => {
                conn.leave_out(format!("type={}: {}", param.value, words::SHUNT));
            }
            _ => conn.leave_out("only tunnel mode is spoken"),
        }
    }
    let auth = [near, far].map(|side| format!("{side}auth"));
    for key in ["authby", "auth", &auth[0], &auth[1]] {
        let Some(param) = p.take(&[key]) else { continue };
        match param.value.as_str() {
            "secret" | "psk" | "esp" => {}
            v if v.starts_with("eap") || v.starts_with("xauth") => conn.leave_out("it is for remote users"),
            "never" => conn.leave_out("authby=never"),
            _ => wrong(&param, "ends prove who they are by a pre-shared key; give both one", notes),
        }
    }
    for key in [format!("{far}sourceip"), format!("{far}addresspool"), format!("{far}modecfgclient")] {
        if p.take(&[&key]).is_some() {
            conn.leave_out(format!("{key}: it is for remote users"));
        }
    }
    if let Some(param) = p.take(&[&format!("{near}sourceip")]) {
        match param.value.parse::<std::net::IpAddr>() {
            Ok(_) => wrong(
                &param,
                "write it as source: if the gateway's own packets shall have this address",
                notes,
            ),
            Err(_) => conn.leave_out(format!("{}: it gets its address from the peer", param.key)),
        }
    }
}

fn networks(conn: &mut Conn, p: &mut Params, near: &str, far: &str, notes: &mut Notes) {
    let mut child = Child::default();
    for (side, ours) in [(near, true), (far, false)] {
        let keys = [format!("{side}subnets"), format!("{side}subnet")];
        for key in &keys {
            let Some(param) = p.take(&[key]) else { continue };
            match words::networks(&param.value) {
                Ok(read) => {
                    read.remarks.into_iter().for_each(|why| changed(&param, why, notes));
                    let list = if ours { &mut child.near } else { &mut child.far };
                    list.extend(read.blocks);
                }
                Err(why) => conn.leave_out(format!("{key}: {why}")),
            }
        }
        if let Some(param) = p.take(&[&format!("{side}protoport")])
            && !["any", "%any", ""].contains(&param.value.as_str())
        {
            changed(
                &param,
                "rules are for all protocols and ports, and the tunnel protects all of the network's packets",
                notes,
            );
        }
    }
    conn.children.push(child);
}

fn start(conn: &mut Conn, p: &mut Params, notes: &mut Notes) {
    let Some(param) = p.take(&["auto"]) else { return };
    match param.value.as_str() {
        "start" | "up" => conn.start = Start::Active,
        "route" | "ondemand" => conn.start = Start::OnDemand,
        "add" => conn.start = Start::Passive,
        "keep" => {
            conn.start = Start::Active;
            changed(&param, "start: active begins without waiting for the peer's first time", notes);
        }
        "ignore" => {
            let why = "nobody started it; start: passive waits for the peer, and the rules are guarded all the same";
            changed(&param, why, notes);
        }
        _ => wrong(&param, "it is ignore, add, route, ondemand, keep or start", notes),
    }
}

fn algorithms_of(conn: &mut Conn, s: &Section, p: &mut Params, notes: &mut Notes) {
    fn line(p: &Param) -> Line<'_> {
        Line { line: p.line, key: &p.key, value: &p.value }
    }
    if let Some(param) = p.take(&["ike"])
        && let Some(list) = algorithms::ike(line(&param), notes)
    {
        conn.ike.proposals = list;
    }
    let phase2 = ["esp", "phase2alg"].iter().find_map(|key| p.take(&[key]));
    let phase2_is = p.take(&["phase2"]);
    if let Some(param) = phase2_is.filter(|v| v.value != "esp") {
        changed(&param, "there is no AH; ESP protects what it does", notes);
    }
    match &phase2 {
        Some(param) => {
            if let Some(list) = algorithms::esp(line(param), notes) {
                conn.esp.proposals = list;
            }
        }
        None => {
            let why = "no esp: our defaults stand for theirs";
            notes.add(Kind::Changed, s.line, "conn", &s.name, why);
        }
    }
    if let Some(param) = p.take(&["pfs"]) {
        match words::yes(&param.value) {
            Some(false) => conn.esp.proposals.iter_mut().for_each(|e| e.groups.clear()),
            // libreswan takes the group of IKE where none is named.
            Some(true) if conn.esp.proposals.iter().any(|e| e.groups.is_empty()) => {
                let groups = groups_of(conn);
                let bare = |e: &&mut EspProposal| e.groups.is_empty();
                conn.esp.proposals.iter_mut().filter(bare).for_each(|e| e.groups.clone_from(&groups));
            }
            Some(true) => {}
            None => wrong(&param, "it is neither yes nor no", notes),
        }
    }
    if let Some(param) = p.take(&["esn"]) {
        let esn = match param.value.as_str() {
            "either" => vec![true, false],
            v => match words::yes(v) {
                Some(esn) => vec![esn],
                None => return wrong(&param, "it is yes, no or either", notes),
            },
        };
        conn.esp.proposals.iter_mut().for_each(|e| e.esn.clone_from(&esn));
    }
}

fn groups_of(conn: &Conn) -> Vec<Group> {
    let mut out = Vec::new();
    for group in conn.ike.proposals.iter().flat_map(|p| &p.groups) {
        if !out.contains(group) {
            out.push(*group);
        }
    }
    out
}

/// Keys are renewed a margin before the end that these name; ours names the moment.
fn lifetimes(conn: &mut Conn, p: &mut Params, notes: &mut Notes) {
    let read = |param: &Param, notes: &mut Notes| match words::time(&param.value) {
        Ok(d) => Some(d),
        Err(why) => {
            wrong(param, why, notes);
            None
        }
    };
    let margin = p.take(&["margintime", "rekeymargin"]);
    let margin = margin.and_then(|m| read(&m, notes)).unwrap_or_default();
    let before = |d: Duration| if d > margin * 2 { d.saturating_sub(margin) } else { d };
    if let Some(d) = p.take(&["ikelifetime"]).and_then(|l| read(&l, notes)) {
        conn.ike.lifetime = before(d);
    }
    let esp = p.take(&["lifetime", "keylife", "salifetime", "ipsec-lifetime"]);
    if let Some(d) = esp.and_then(|l| read(&l, notes)) {
        conn.esp.lifetime = before(d);
    }
    if let Some(param) = p.take(&["lifebytes", "ipsec-max-bytes"]) {
        match words::number(&param.value) {
            Ok(bytes) => conn.esp.bytes = Some(bytes).filter(|b| *b > 0),
            Err(why) => wrong(&param, why, notes),
        }
    }
    if let Some(param) = p.take(&["rekey"])
        && words::yes(&param.value) == Some(false)
    {
        changed(&param, "keys are always renewed", notes);
    }
}

fn liveness(conn: &mut Conn, p: &mut Params, notes: &mut Notes) {
    let action = p.take(&["dpdaction"]);
    let delay = p.take(&["dpddelay"]);
    let off = action.as_ref().is_some_and(|a| a.value == "none");
    if let Some(delay) = &delay {
        match words::time(&delay.value) {
            Ok(d) => conn.ike.dpd = Some(d).filter(|d| !d.is_zero() && !off),
            Err(why) => wrong(delay, why, notes),
        }
    }
    if let Some(action) = &action {
        conn.esp.dpd_action = match action.value.as_str() {
            "restart" | "start" => DpdAction::Restart,
            "clear" | "none" | "hold" | "trap" => DpdAction::Clear,
            _ => {
                wrong(action, "it is none, clear, hold or restart", notes);
                DpdAction::Clear
            }
        };
    } else {
        conn.esp.dpd_action = DpdAction::Clear;
    }
    if conn.start == Start::Active {
        conn.esp.dpd_action = DpdAction::Restart;
    }
}

fn rest(conn: &mut Conn, p: &mut Params, notes: &mut Notes) {
    if let Some(param) = p.take(&["forceencaps", "encapsulation", "encap"])
        && words::yes(&param.value) == Some(true)
    {
        conn.ike.encap = Encap::Force;
    }
    if let Some(param) = p.take(&["fragmentation", "ike_frag", "ike-frag"]) {
        match words::yes(&param.value) {
            Some(yes) => conn.ike.fragmentation = yes,
            None if param.value == "accept" => {}
            None => wrong(&param, "it is neither yes nor no", notes),
        }
    }
    if let Some(param) = p.take(&["replay-window", "replay_window"]) {
        match words::number(&param.value) {
            Ok(0) => conn.esp.replay_window = 0,
            Ok(n) => {
                let ours = n.clamp(64, 4096).next_multiple_of(32);
                if ours != n {
                    changed(&param, format!("windows are 64 to 4096 in steps of 32: {ours}"), notes);
                }
                conn.esp.replay_window = u32::try_from(ours).unwrap_or(4096);
            }
            Err(why) => wrong(&param, why, notes),
        }
    }
    if let Some(param) = p.take(&["mark"]) {
        let (value, mask) = param.value.split_once('/').unwrap_or((&param.value, "0xffffffff"));
        let number = |t: &str| match t.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => t.parse().ok(),
        };
        match number(value).zip(number(mask)) {
            Some((value, mask)) => {
                conn.mark = Some(Mark { value, mask }).filter(|m| m.mask != 0);
                wrong(&param, words::MARKED, notes);
            }
            None => wrong(&param, "it is no mark of one value; write it as mark", notes),
        }
    }
    if let Some(param) = p.take(&["mark_in", "mark_out", "mark-in", "mark-out"]) {
        wrong(&param, "a tunnel has one mark for both ways; write it as mark", notes);
    }
}

/// What nothing was made of.
fn leftover(param: &Param, notes: &mut Notes) {
    let key = param.key.as_str();
    let says_default = match key {
        "mobike" | "compress" | "ipcomp" | "aggressive" | "aggrmode" | "intermediate" | "ppk"
        | "overlapip" | "allowany" => words::yes(&param.value) == Some(false),
        "keyingtries" => ["0", "%forever"].contains(&param.value.as_str()),
        "installpolicy" | "reauth" => words::yes(&param.value) == Some(key == "installpolicy"),
        "closeaction" => param.value == "none",
        _ => key.starts_with("x_") || key.starts_with("x-"),
    };
    if says_default {
        return;
    }
    let sided = key.strip_prefix("left").or_else(|| key.strip_prefix("right")).unwrap_or(key);
    match known::row(known::IPSEC, key).or_else(|| known::row(known::IPSEC, sided)) {
        Some((kind, why)) => notes.add(kind, param.line, key, &param.value, why),
        None => {
            notes.add(Kind::Ignored, param.line, key, "...", "nobody knows this setting; is it misspelt?")
        }
    }
}
