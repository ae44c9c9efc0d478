//! What a swanctl.conf means.

use std::time::Duration;

use cygnet_model::tunnel::Mark;

use super::super::algorithms::{self, Line};
use super::super::conn::{Child, Conn, Place, PskEntry, Read};
use super::super::known;
use super::super::notes::{Kind, Notes};
use super::super::words;
use super::super::{MAX_CONNS, Malformed, Secret, malformed};
use super::tree::{self, Section, Value};
use crate::config::{DpdAction, Encap, EspParams, RemoteId, Start};

/// Reads a file.
pub fn read(text: &str, notes: &mut Notes) -> Result<Read, Malformed> {
    let tree = tree::parse(text)?;
    for (line, pattern) in &tree.includes {
        notes.add(
            Kind::Todo,
            *line,
            "include",
            pattern,
            "other files are not followed; import them one by one",
        );
    }
    let mut out = Read { conns: Vec::new(), keys: Vec::new() };
    for value in &tree.root.values {
        notes.about(Kind::Ignored, value.line, "a value outside of every section means nothing");
    }
    for (name, section) in &tree.root.sections {
        match name.as_str() {
            "connections" => {
                for value in &section.values {
                    notes.about(
                        Kind::Ignored,
                        value.line,
                        "a value outside of every connection means nothing",
                    );
                }
                if section.sections.len() > MAX_CONNS {
                    return Err(malformed(
                        section.line,
                        format!("there are more than {MAX_CONNS} connections"),
                    ));
                }
                out.conns.extend(section.sections.iter().map(|(name, s)| connection(name, s, notes)));
            }
            "secrets" => out.keys.extend(section.sections.iter().filter_map(|(n, s)| secret(n, s, notes))),
            "pools" => notes.about(Kind::Ignored, section.line, "pools of addresses are for remote users"),
            "authorities" => notes.about(Kind::Ignored, section.line, "there are no certificates"),
            // A template: its content is where others refer to it.
            other if tree.referenced.contains(other) => {}
            other => {
                let why = "there is nothing like this section; settings of the daemon are written anew";
                notes.add(Kind::Ignored, section.line, "section", other, why);
            }
        }
    }
    Ok(out)
}

fn connection(name: &str, s: &Section, notes: &mut Notes) -> Conn {
    let mut conn = Conn::new(name, s.line);
    for v in &s.values {
        setting(&mut conn, v, notes);
    }
    for (inner, section) in &s.sections {
        match inner.as_str() {
            "children" => children(&mut conn, section, notes),
            _ if inner.starts_with("local") => auth(&mut conn, section, true, notes),
            _ if inner.starts_with("remote") => auth(&mut conn, section, false, notes),
            _ => notes.add(Kind::Ignored, section.line, "section", inner, "nobody knows this section"),
        }
    }
    if conn.children.is_empty() {
        conn.leave_out("it has no children, and so nothing that it protects");
    }
    conn
}

/// Tells of a setting that has no counterpart.
fn no_counterpart(v: &Value, table: &[known::Row], notes: &mut Notes) {
    match known::row(table, &v.key) {
        Some((kind, why)) => notes.add(kind, v.line, &v.key, &v.text, why),
        None => notes.add(Kind::Ignored, v.line, &v.key, "...", "nobody knows this setting; is it misspelt?"),
    }
}

fn wrong(v: &Value, why: impl Into<String>, notes: &mut Notes) {
    notes.add(Kind::Todo, v.line, &v.key, &v.text, why);
}

fn setting(conn: &mut Conn, v: &Value, notes: &mut Notes) {
    let text = v.text.as_str();
    match v.key.as_str() {
        "version" => match text {
            "1" => wrong(v, "IKEv1 is not spoken; the peer has to be switched to IKEv2", notes),
            "0" | "2" => {}
            _ => wrong(v, "IKEv2 is spoken", notes),
        },
        "local_addrs" => conn.near = place(v, words::MORE_OF_OURS, notes),
        "remote_addrs" => conn.far = place(v, words::MORE_OF_THEIRS, notes),
        "proposals" => {
            if let Some(p) = algorithms::ike(Line { line: v.line, key: &v.key, value: text }, notes) {
                conn.ike.proposals = p;
            }
        }
        "rekey_time" => {
            if let Some(d) = time(v, notes) {
                conn.ike.lifetime = d;
            }
        }
        "dpd_delay" => match words::time(text) {
            Ok(d) => conn.ike.dpd = Some(d).filter(|d| !d.is_zero()),
            Err(why) => wrong(v, why, notes),
        },
        "encap" => match words::yes(text) {
            Some(true) => conn.ike.encap = Encap::Force,
            Some(false) => {}
            None => wrong(v, "it is neither yes nor no", notes),
        },
        "fragmentation" => match text {
            "accept" => {
                notes.add(Kind::Changed, v.line, &v.key, text, "messages are fragmented if the peer can")
            }
            "force" => {
                notes.add(Kind::Changed, v.line, &v.key, text, "messages are fragmented if they have to be")
            }
            _ => match words::yes(text) {
                Some(yes) => conn.ike.fragmentation = yes,
                None => wrong(v, "it is neither yes nor no", notes),
            },
        },
        "vips" | "pools" => {
            no_counterpart(v, known::SWANCTL, notes);
            conn.leave_out("it is for remote users");
        }
        "childless" if text == "force" || text == "prefer" => {
            notes.add(Kind::Changed, v.line, &v.key, text, "the first child comes with IKE_AUTH");
        }
        // What says the default.
        "mobike" | "aggressive" | "childless" if words::yes(text) == Some(false) => {}
        "childless" if text == "allow" => {}
        "keyingtries" if text == "0" => {}
        "reauth_time" if words::time(text).is_ok_and(|d| d.is_zero()) => {}
        "unique" if text == "no" || text == "replace" => {}
        _ => no_counterpart(v, known::SWANCTL, notes),
    }
}

/// A time that may be zero for "never", which we do not have.
fn time(v: &Value, notes: &mut Notes) -> Option<Duration> {
    match words::time(&v.text) {
        Ok(d) if d.is_zero() => {
            notes.add(
                Kind::Changed,
                v.line,
                &v.key,
                &v.text,
                "keys are always renewed; the default lifetime holds",
            );
            None
        }
        Ok(d) => Some(d),
        Err(why) => {
            wrong(v, why, notes);
            None
        }
    }
}

fn place(v: &Value, more: &str, notes: &mut Notes) -> Place {
    match words::place(&v.text) {
        Ok((place, others)) => {
            if !others.is_empty() {
                wrong(v, more, notes);
            }
            place
        }
        Err(why) => {
            wrong(v, why, notes);
            Place::Unknown
        }
    }
}

fn auth(conn: &mut Conn, s: &Section, ours: bool, notes: &mut Notes) {
    for v in &s.values {
        let text = v.text.as_str();
        match v.key.as_str() {
            "auth" => match text {
                "psk" => {}
                _ if text.starts_with("eap") || text.starts_with("xauth") => {
                    wrong(v, "it is for remote users", notes);
                    conn.leave_out("it is for remote users");
                }
                _ => wrong(v, "ends prove who they are by a pre-shared key; give both one", notes),
            },
            "id" if ours => match words::own_id(text) {
                Ok(id) => conn.near_id = Some(id),
                Err(_) if text == "%any" => {}
                Err(why) => wrong(v, format!("{why}; write it as local_id"), notes),
            },
            "id" => match words::remote_id(text) {
                Ok(id) => conn.far_id = Some(id),
                Err(why) => wrong(v, format!("{why}; write it as remote_id"), notes),
            },
            _ => no_counterpart(v, known::SWANCTL, notes),
        }
    }
    for (name, section) in &s.sections {
        notes.add(Kind::Ignored, section.line, "section", name, "there are no certificates");
    }
}

fn children(conn: &mut Conn, all: &Section, notes: &mut Notes) {
    let mut first: Option<(EspParams, Start, Option<Mark>)> = None;
    for (name, s) in &all.sections {
        let mut child = Child::default();
        // Where nothing is said, a dead peer's children are gone and nobody begins.
        let esp = EspParams { dpd_action: DpdAction::Clear, ..EspParams::default() };
        let mut params = (esp, Start::Passive, None);
        let mut gone = None;
        let mut marks: [Option<Mark>; 2] = [None, None];
        if s.value("esp_proposals").is_none() {
            let why = "no esp_proposals: our defaults stand for strongSwan's";
            notes.add(Kind::Changed, s.line, "child", name, why);
        }
        for v in &s.values {
            gone = gone.or(child_setting(&mut child, &mut params, &mut marks, v, notes));
        }
        match marks {
            [None, None] => {}
            [a, b] if a == b => {
                params.2 = a;
                notes.add(Kind::Todo, s.line, "child", name, words::MARKED);
            }
            _ => notes.add(
                Kind::Todo,
                s.line,
                "child",
                name,
                "a tunnel has one mark for both ways; write it as mark",
            ),
        }
        params.0.dpd_action = dpd_action(params.0.dpd_action, params.1);
        if let Some(why) = gone {
            notes.add(Kind::LeftOut, s.line, "child", name, why);
            continue;
        }
        match &first {
            None => first = Some(params),
            Some(first) if *first != params => {
                let why = "a tunnel has one set of parameters for all children: those of the first one hold";
                notes.add(Kind::Changed, s.line, "child", name, why);
            }
            Some(_) => {}
        }
        conn.children.push(child);
    }
    if let Some((esp, start, mark)) = first {
        (conn.esp, conn.start, conn.mark) = (esp, start, mark);
    }
}

/// What is usual is not written.
fn dpd_action(told: DpdAction, start: Start) -> DpdAction {
    if start == Start::Active { DpdAction::Restart } else { told }
}

type Params = (EspParams, Start, Option<Mark>);

/// Reads a setting of a child; the answer is why there can be no such child.
fn child_setting(
    child: &mut Child,
    params: &mut Params,
    marks: &mut [Option<Mark>; 2],
    v: &Value,
    notes: &mut Notes,
) -> Option<String> {
    let text = v.text.as_str();
    let esp = &mut params.0;
    match v.key.as_str() {
        "local_ts" | "remote_ts" => match words::networks(text) {
            Ok(read) => {
                read.remarks.into_iter().for_each(|why| notes.add(Kind::Changed, v.line, &v.key, text, why));
                let side = if v.key == "local_ts" { &mut child.near } else { &mut child.far };
                *side = read.blocks;
            }
            Err(why) => return Some(format!("{}: {why}", v.key)),
        },
        "esp_proposals" => {
            if let Some(p) = algorithms::esp(Line { line: v.line, key: &v.key, value: text }, notes) {
                esp.proposals = p;
            }
        }
        "rekey_time" => {
            if let Some(d) = time(v, notes) {
                esp.lifetime = d;
            }
        }
        "rekey_bytes" => match words::number(text) {
            Ok(0) => esp.bytes = None,
            Ok(bytes) => esp.bytes = Some(bytes),
            Err(why) => wrong(v, why, notes),
        },
        "mode" => match text {
            "tunnel" => {}
            "pass" | "drop" => return Some(words::SHUNT.into()),
            _ => return Some("only tunnel mode is spoken".into()),
        },
        "start_action" => match text {
            "none" => params.1 = Start::Passive,
            "start" => params.1 = Start::Active,
            "trap" => params.1 = Start::OnDemand,
            _ if text.contains("trap") && text.contains("start") => {
                params.1 = Start::Active;
                notes.add(
                    Kind::Changed,
                    v.line,
                    &v.key,
                    text,
                    "start: active keeps the tunnel up, and guards it",
                );
            }
            _ => wrong(v, "it is none, trap or start", notes),
        },
        "dpd_action" => match text {
            "clear" | "none" => esp.dpd_action = DpdAction::Clear,
            "restart" | "start" => esp.dpd_action = DpdAction::Restart,
            "trap" | "hold" => esp.dpd_action = DpdAction::Clear,
            _ => wrong(v, "it is clear, trap or restart", notes),
        },
        "replay_window" => match words::number(text) {
            Ok(n) => esp.replay_window = window(n, v, notes),
            Err(why) => wrong(v, why, notes),
        },
        "mark_in" | "mark_out" => match mark(text) {
            Ok(mark) => {
                let place = usize::from(v.key == "mark_out");
                if let Some(place) = marks.get_mut(place) {
                    *place = mark;
                }
            }
            Err(why) => wrong(v, why, notes),
        },
        "ipcomp" | "sha256_96" | "hostaccess" | "mark_in_sa" if words::yes(text) == Some(false) => {}
        "policies" | "copy_df" if words::yes(text) == Some(true) => {}
        "hw_offload" if text == "no" => {}
        "close_action" if text == "none" => {}
        "reqid" | "priority" | "inactivity" | "tfc_padding" if text == "0" => {}
        _ => no_counterpart(v, known::SWANCTL, notes),
    }
    None
}

/// A window of ours: 0, or 64 to 4096 in steps of 32.
fn window(n: u64, v: &Value, notes: &mut Notes) -> u32 {
    if n == 0 {
        return 0;
    }
    let ours = n.clamp(64, 4096).next_multiple_of(32);
    if ours != n {
        notes.add(
            Kind::Changed,
            v.line,
            &v.key,
            &v.text,
            format!("windows are 64 to 4096 in steps of 32: {ours}"),
        );
    }
    u32::try_from(ours).unwrap_or(4096)
}

/// `value`, `value/mask`, decimal or with 0x.
fn mark(text: &str) -> Result<Option<Mark>, String> {
    let number = |t: &str| match t.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).map_err(|_| "it is no mark".to_owned()),
        None => t.parse().map_err(|_| "it is no mark of one value; write it as mark".to_owned()),
    };
    let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
    let mark = Mark { value: number(value)?, mask: number(mask)? };
    Ok((mark.mask != 0).then_some(mark))
}

fn secret(name: &str, s: &Section, notes: &mut Notes) -> Option<PskEntry> {
    if !name.starts_with("ike") {
        let why = "only keys of IKE (ike...) have a place; certificates and remote users have none";
        notes.add(Kind::Ignored, s.line, "section", name, why);
        return None;
    }
    let key: Secret = s.value("secret")?.text.clone();
    let ids = s.values.iter().filter(|v| v.key.starts_with("id"));
    let ids = ids.filter_map(|v| match words::remote_id(&v.text) {
        Ok(id) => Some(id),
        Err(why) => {
            wrong(v, why, notes);
            None
        }
    });
    let ids: Vec<RemoteId> = ids.collect();
    Some(PskEntry { line: s.line, ids, key })
}
