//! From facts to causes, layer by layer. Nothing is looked at here.

use std::net::IpAddr;

use cygnet_xfrm::lookup::{Dead, Way};
use cygnet_xfrm::nft::foreign::{Dropping, Place};

use super::cause::{Cause, Found, Layer};
use super::facts::{DaemonFacts, Facts, HostFacts, TunnelFacts};
use super::probe::{Echo, Probed};
use super::{negotiation, quality};
use crate::observe::snapshot::{Finding, TunnelState, TunnelStatus, Verdict};

/// The device of our own data plane.
const DEVICE: &str = "cygnet";
/// So many packets in one direction, and none in the other, are no accident.
const SOME: u64 = 3;

/// Every cause that the facts show, in the order of the walk.
pub fn judge(facts: &Facts) -> Vec<Found> {
    let mut out = Vec::new();
    configuration(facts, &mut out);
    if let Ok(daemon) = &facts.daemon {
        host(daemon, &mut out);
    }
    for t in &facts.tunnels {
        let mut own = Vec::new();
        tunnel(facts, t, &mut own);
        out.extend(own.into_iter().map(|f| f.of(&t.known.name)));
    }
    out.sort_by_key(|f| f.cause.layer());
    out
}

fn configuration(facts: &Facts, out: &mut Vec<Found>) {
    if let Err(why) = &facts.daemon {
        let fix = "systemctl start cygnet, or name its socket with --control";
        out.push(Found::new(Cause::DaemonUnreachable, why, fix));
    }
    if let (Err(_), true, Some((why, fix))) = (&facts.daemon, facts.config.wants_kernel, &facts.host.no_esp) {
        out.push(Found::new(Cause::EspBlocked, why, fix));
    }
    if let Some(first) = facts.config.errors.first() {
        let more = facts.config.errors.len() - 1;
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        out.push(Found::new(
            Cause::ConfigInvalid,
            format!("{first}{more}"),
            "correct it; cygnet check tells all",
        ));
    } else if facts.config.changed {
        let detail = "the configuration file is not the one that runs";
        out.push(Found::new(
            Cause::ConfigNotApplied,
            detail,
            "cygnet plan shows the difference, cygnet apply makes it",
        ));
    }
}

/// What is wrong for all tunnels.
fn host(daemon: &DaemonFacts, out: &mut Vec<Found>) {
    let told = |cause, f: &Finding| Found::new(cause, &*f.detail, fix_of(f));
    if !daemon.wall {
        let why =
            daemon.findings.iter().find(|f| f.name == "wall").map_or("it is not in force", |f| &f.detail);
        out.push(Found::new(Cause::WallDown, why, "load the module nf_tables; cygnet doctor tells more"));
    }
    out.extend(daemon.obstacles.iter().map(|f| told(Cause::PolicyInFront, f)));
    for f in daemon.findings.iter().filter(|f| f.verdict != Verdict::Ok) {
        match f.name.as_str() {
            "address" if f.verdict == Verdict::Error => out.push(told(Cause::PortTaken, f)),
            "host" => out.push(Found::new(Cause::IpsecOff, &*f.detail, "sysctl -w as said there")),
            "drops" => {
                let reason = f.detail.split(':').next().unwrap_or_default();
                let cause = match reason {
                    "unknown_spi" | "XfrmInNoStates" => Cause::PeerForgot,
                    "replay" | "XfrmInStateSeqError" => Cause::Replayed,
                    "integrity" | "XfrmInStateProtoError" => Cause::Altered,
                    "selectors" | "XfrmInTmplMismatch" => Cause::NetworksDiffer,
                    "too_big" => Cause::TooBig,
                    _ => continue,
                };
                out.push(told(cause, f));
            }
            _ => {}
        }
    }
}

fn fix_of(f: &Finding) -> String {
    if f.fix.is_empty() { "cygnet doctor tells more".to_owned() } else { f.fix.clone() }
}

fn tunnel(facts: &Facts, t: &TunnelFacts, out: &mut Vec<Found>) {
    let status = t.known.status.as_ref();
    let state = status.map(|s| s.state);
    if state == Some(TunnelState::Down) {
        let fix = format!("cygnet up {}", t.known.name);
        return out.push(Found::new(Cause::TakenDown, "it stays down until a command takes it up", fix));
    }
    let up = state.is_some_and(TunnelState::is_up);
    if !up {
        if !names_and_routes(facts, t, out) {
            return;
        }
        let before = out.len();
        if let Some(e) = &t.known.explanation {
            let begins = status.is_none_or(|s| s.start != "passive");
            out.extend(negotiation::judge(e, false, begins));
        }
        if let Some(s) = status.filter(|s| out.len() == before && is_plane_trouble(s)) {
            let detail = s.last_error.clone().unwrap_or_default();
            out.push(Found::new(Cause::PlaneRefused, detail, "run cygnet doctor"));
        }
        // Whoever refuses was reached.
        if out.len() == before {
            reach(facts, t, state, out);
        }
        if let Some(e) = t.known.explanation.as_ref().filter(|_| out.len() == before) {
            out.extend(negotiation::claims(e));
        }
        if out.len() == before {
            waiting(t, status, facts.named, out);
        }
        return;
    }
    if let Some(s) = status {
        carries(t, s, out);
    }
    forwarding(facts, t, out);
    mtu(facts, t, out);
    if let Some(s) = status {
        // What does not get past this host is reason enough.
        if !out.iter().any(|f| f.cause.layer() == Layer::Forwarding) {
            traffic(facts, s, out);
            out.extend(s.quality.as_ref().and_then(quality::judge));
        }
    }
}

fn is_plane_trouble(s: &TunnelStatus) -> bool {
    s.last_error.as_deref().is_some_and(|e| e.starts_with("data_plane:"))
}

/// Whether the peer has an address, this host one as well, and a way leads from one to the other.
fn names_and_routes(facts: &Facts, t: &TunnelFacts, out: &mut Vec<Found>) -> bool {
    let before = out.len();
    let at = |place: &str, what: &str| {
        if place.is_empty() { what.to_owned() } else { format!("{what} ({place})") }
    };
    if let (Some(name), Some(resolved)) = (&t.known.peer_name, &t.resolved) {
        let trouble = match resolved {
            Err(e) => Some(e.clone()),
            Ok(all) if all.is_empty() => Some("it has no address".to_owned()),
            Ok(_) => None,
        };
        if let Some(why) = trouble {
            let fix =
                at(&t.known.places.peer, "correct the name, or what answers for it: /etc/resolv.conf, DNS");
            out.push(Found::new(Cause::NameUnresolved, format!("{name}: {why}"), fix));
            return false;
        }
    }
    let absent: Vec<String> = t
        .known
        .own
        .iter()
        .filter(|a| !facts.host.addresses.is_empty() && !facts.host.addresses.contains(a))
        .map(ToString::to_string)
        .collect();
    if !absent.is_empty() && absent.len() == t.known.own.len() || t.known.own.is_empty() {
        let what = if absent.is_empty() {
            "the gateway's interface has no address".to_owned()
        } else {
            format!("no interface has {}", absent.join(", "))
        };
        let fix =
            at(&t.known.places.own, "ip address add it to an interface, or correct the gateway's address");
        out.push(Found::new(Cause::AddressAbsent, what, fix));
        return false;
    }
    let Some(peer) = t.known.peers.first() else { return true };
    match t.outer {
        Some(Way::Nowhere(dead)) => {
            let down: Vec<&str> = down_links(&facts.host);
            let (cause, why, fix) = match dead {
                Dead::NoRoute | Dead::BadSource if !down.is_empty() => {
                    let fix = format!("ip link set {} up, or look at its cable", down.join(", "));
                    (Cause::LinkDown, format!("no route to {peer}, and {} is down", down.join(", ")), fix)
                }
                Dead::Refused => {
                    let fix = format!("ip route show match {peer} names the route that refuses; remove it");
                    (Cause::NoRoute, format!("a route to {peer} says unreachable or prohibited"), fix)
                }
                _ => {
                    let fix = format!("ip route add {peer} via ROUTER, or a default route");
                    (Cause::NoRoute, format!("there is no route to {peer}"), fix)
                }
            };
            out.push(Found::new(cause, why, fix));
        }
        Some(Way::Local) => {
            let fix = at(&t.known.places.peer, "write the peer's own address");
            out.push(Found::new(Cause::PeerIsHere, format!("{peer} is an address of this host"), fix));
        }
        Some(Way::Out { link, .. }) => match facts.host.link(link) {
            Some(l) if l.name.starts_with(DEVICE) => {
                let fix = at(&t.known.places.spd, "take the peer's own address out of the remote networks");
                out.push(Found::new(Cause::OuterIntoTunnel, format!("{peer} is led into {}", l.name), fix));
            }
            Some(l) if !l.up || !l.carrier => {
                let why = if l.up { "has no carrier" } else { "is down" };
                let fix = format!("ip link set {} up, or look at its cable", l.name);
                out.push(Found::new(
                    Cause::LinkDown,
                    format!("{}, by which {peer} is reached, {why}", l.name),
                    fix,
                ));
            }
            _ => {}
        },
        None => {}
    }
    out.len() == before
}

fn down_links(host: &HostFacts) -> Vec<&str> {
    let down = |l: &&cygnet_xfrm::lookup::LinkState| !l.loopback && (!l.up || !l.carrier);
    let all = host.links.iter().filter(down).filter(|l| !is_template(&l.name));
    all.map(|l| l.name.as_str()).collect()
}

/// Links that some kernels make in each namespace, and nobody takes up.
fn is_template(name: &str) -> bool {
    ["tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0"]
        .contains(&name)
}

/// What the probes say.
fn reach(facts: &Facts, t: &TunnelFacts, state: Option<TunnelState>, out: &mut Vec<Found>) {
    let Some(peer) = t.known.peers.first() else { return };
    let Some(Probed { ike, natt }) = &t.probed else { return };
    let router = |r: &Option<IpAddr>| r.map_or_else(|| "this host".to_owned(), |r| r.to_string());
    let one = |cause, detail: String, fix: String| Some(Found::new(cause, detail, fix));
    let passes = "let UDP 500 and 4500, and ESP, pass both ways there";
    let found = match (ike, natt) {
        (Echo::RefusedHere, _) | (_, Echo::RefusedHere) => {
            let filter = filters(facts, Place::Output).next();
            let name = filter.map_or_else(|| "nft list ruleset names it".to_owned(), chain_words);
            one(
                Cause::LocalFirewall,
                format!("sending UDP to {peer} is refused by a filter of this host: {name}"),
                format!("accept UDP 500 and 4500 to {peer} in the output chain"),
            )
        }
        (Echo::Prohibited(r), _) | (_, Echo::Prohibited(r)) => {
            one(Cause::Prohibited, format!("{} says that UDP to {peer} is prohibited", router(r)), passes.to_owned())
        }
        // Routers say so once in a while only.
        (Echo::Unreachable(r), _) | (Echo::Silence, Echo::Unreachable(r)) => one(
            Cause::PeerUnreachable,
            format!("{} says that {peer} cannot be reached", router(r)),
            "check that the peer's gateway is on, its address, and the routes on the way".to_owned(),
        ),
        (Echo::PortUnreachable, _) | (Echo::Silence, Echo::PortUnreachable) => one(
            Cause::PeerNotListening,
            format!("{peer} is there, and nothing listens on its UDP port 500"),
            "start IKE on the peer's gateway, or correct its address".to_owned(),
        ),
        (Echo::Silence, Echo::Answer) => one(
            Cause::Udp500Filtered,
            format!("{peer} answers on UDP 4500 and not on UDP 500"),
            "let UDP 500 pass both ways, or begin at UDP 4500: ike.encap: from-start".to_owned(),
        ),
        (Echo::Answer, Echo::Silence | Echo::PortUnreachable | Echo::Unreachable(_)) => one(
            Cause::Udp4500Filtered,
            format!("{peer} answers on UDP 500 and not on UDP 4500, where IKE_AUTH and ESP go"),
            "let UDP 4500 pass both ways".to_owned(),
        ),
        // One that waits asks nobody, whatever came of it the last time.
        (Echo::Answer, Echo::Answer) if state != Some(TunnelState::Waiting) && unanswered(t) => one(
            Cause::PeerIgnoresUs,
            format!("{peer} speaks IKE and does not answer this gateway: it has no tunnel for our address"),
            "have the peer configure a tunnel to this gateway's address, as the peer sees it".to_owned(),
        ),
        // A responder that is never asked may have a filter before it, which nothing else tells.
        (Echo::Silence, _) if state == Some(TunnelState::Waiting) && filters(facts, Place::Input).next().is_some() => {
            let chain = filters(facts, Place::Input).next().map(chain_words).unwrap_or_default();
            one(
                Cause::FirewallInput,
                format!("{chain} drops what none of its rules accepts, and nothing of {peer} has come in"),
                format!("accept UDP 500 and 4500, and ESP, from {peer} in the input chain"),
            )
        }
        (Echo::Silence, _) => one(
            Cause::PeerSilent,
            format!("nothing comes back from {peer}, neither from UDP 500 nor from 4500"),
            "check that the peer's gateway is on, its address, and that filters let UDP 500 and 4500 pass both ways".to_owned(),
        ),
        _ => None,
    };
    out.extend(found);
}

fn unanswered(t: &TunnelFacts) -> bool {
    let mut proven = t.known.explanation.iter().flat_map(|e| &e.negotiations).filter(|n| !n.is_claim());
    proven.next().is_some_and(|n| n.outcome == "unanswered")
}

fn filters(facts: &Facts, place: Place) -> impl Iterator<Item = &Dropping> {
    facts.host.dropping.iter().flatten().filter(move |d| d.place == place)
}

fn chain_words(d: &Dropping) -> String {
    crate::observe::one_line(&format!("nft chain {} {} {}", d.family, d.table, d.chain))
}

/// A tunnel that waits as it shall is no fault, but the answer to whoever asks why it is not up.
fn waiting(t: &TunnelFacts, status: Option<&TunnelStatus>, named: bool, out: &mut Vec<Found>) {
    let Some(s) = status.filter(|s| s.state == TunnelState::Waiting && named) else { return };
    out.push(if s.start == "on-demand" {
        let fix = format!("send a packet between its networks, or cygnet up {}", t.known.name);
        Found::new(Cause::WaitsForTraffic, "no packet between its networks has asked for it yet", fix)
    } else {
        let fix = format!("have the peer begin, or cygnet up {}", t.known.name);
        Found::new(
            Cause::WaitsForPeer,
            "start: passive leaves the beginning to the peer, who has not begun",
            fix,
        )
    });
}

/// How much of what is configured the SAs carry, and what will go wrong with them.
fn carries(t: &TunnelFacts, s: &TunnelStatus, out: &mut Vec<Found>) {
    let c = &s.coverage;
    if !c.is_whole() {
        let missing: Vec<String> =
            c.missing.iter().take(4).map(|m| format!("{} -> {}", m.local, m.remote)).collect();
        let why = s.rules.iter().find_map(|r| r.last_error.clone()).unwrap_or_default();
        let detail =
            format!("{} of {} pairs of networks; missing: {}; {why}", c.covered, c.pairs, missing.join(", "));
        let place = &t.known.places.spd;
        let fix = format!("make the SPD rules of both ends mirror each other; ours stand in {place}");
        out.push(Found::new(Cause::PartlyCarried, detail, fix));
    }
    let told = t.known.explanation.as_ref().map(|e| negotiation::judge(e, true, true)).unwrap_or_default();
    // What is missing has been told.
    out.extend(told.into_iter().filter(|f| c.is_whole() || f.cause != Cause::Networks));
    if let Some(w) = s.warnings.first().filter(|_| out.iter().all(|f| f.cause != Cause::Pfs)) {
        let fix = "have both ends use PFS with a common group, or none of them: esp.proposals";
        out.push(Found::new(Cause::Pfs, w, fix));
    }
}

fn forwarding(facts: &Facts, t: &TunnelFacts, out: &mut Vec<Found>) {
    let Some(first) = t.known.inner.first() else { return };
    let (local, remote) = *first;
    let v4 = local.is_ipv4();
    let forwards = if v4 { facts.host.forwarding.0 } else { facts.host.forwarding.1 };
    // A tunnel that ends on this host needs no forwarding.
    let here = t.inner.is_some_and(|i| i.to_local == Way::Local);
    if forwards == Some(false) && !here {
        let key = if v4 { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" };
        out.push(Found::new(
            Cause::ForwardingOff,
            format!("{key} is 0: packets between the VPC and the tunnel are dropped"),
            format!("sysctl -w {key}=1, and write it into /etc/sysctl.d"),
        ));
    }
    let Some(inner) = t.inner else { return };
    let userspace = facts.daemon.as_ref().is_ok_and(|d| d.data_plane == "userspace");
    let outer = match t.outer {
        Some(Way::Out { link, .. }) => facts.host.link(link).map(|l| l.name.as_str()),
        _ => None,
    };
    match inner.to_remote {
        Way::Nowhere(_) if !here && forwards != Some(false) => out.push(Found::new(
            Cause::NoInnerRoute,
            format!("this host has no route from {local} to {remote}"),
            format!(
                "ip route add the remote network, or a default route{}",
                if userspace { "; cygnet doctor names rules in the way" } else { "" }
            ),
        )),
        Way::Out { link, .. } => {
            let name = facts.host.link(link).map_or("?", |l| l.name.as_str());
            if userspace && !name.starts_with(DEVICE) {
                out.push(Found::new(
                    Cause::RouteAround,
                    format!("packets from {local} to {remote} are routed to {name} and not into the tunnel"),
                    "ip rule names the rule before cygnet's (priority 1100); move it behind, or take these networks out of it",
                ));
            }
            // Where decrypted packets come in, the way back must be the same if it is looked at.
            let comes_in = if userspace {
                facts.host.links.iter().find(|l| l.name.starts_with(DEVICE)).map(|l| l.name.as_str())
            } else {
                outer
            };
            if let Some(comes_in) = comes_in.filter(|c| *c != name && facts.host.strict.contains(*c) && v4) {
                out.push(Found::new(
                    Cause::ReversePath,
                    format!("packets from {remote} come in by {comes_in}, the way back is {name}, and rp_filter is strict"),
                    format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{comes_in}.rp_filter=2"),
                ));
            }
        }
        Way::Local | Way::Nowhere(_) => {}
    }
    let away = match inner.to_local {
        Way::Nowhere(_) => Some("there is no route to it".to_owned()),
        Way::Out { link, .. } => {
            let name = facts.host.link(link).map(|l| l.name.as_str());
            (name.is_some() && name == outer)
                .then(|| format!("it is looked for at {}, where the peer is", name.unwrap_or_default()))
        }
        Way::Local => None,
    };
    if let Some(why) = away {
        out.push(Found::new(
            Cause::LocalNotAttached,
            format!("{local}, of the tunnel's local networks: {why}"),
            "ip address add an address of that network, or ip route add it via its router",
        ));
    }
}

fn mtu(facts: &Facts, t: &TunnelFacts, out: &mut Vec<Found>) {
    let Some(Way::Out { link, mtu: Some(path), .. }) = t.outer else { return };
    let Some(link) = facts.host.link(link).filter(|l| path < l.mtu) else { return };
    // ESP in UDP over IPv4 or IPv6 takes no more than a hundred octets.
    let inner = path.saturating_sub(100);
    out.push(Found::new(
        Cause::PathMtu,
        format!("the way to the peer takes {path} octets, {} takes {}", link.name, link.mtu),
        format!(
            "ip link set {} mtu {path}, and clamp the MSS of TCP to {} behind the gateway",
            link.name,
            inner.saturating_sub(40)
        ),
    ));
}

/// Whether packets pass in both directions.
fn traffic(facts: &Facts, s: &TunnelStatus, out: &mut Vec<Found>) {
    let count =
        |of: fn(&crate::observe::snapshot::ChildStatus) -> u64| s.children.iter().map(of).sum::<u64>();
    let (sent, received) = (count(|c| c.packets_out), count(|c| c.packets_in));
    if (sent == 0 || received == 0)
        && let Some(chain) = filters(facts, Place::Forward).next()
    {
        return out.push(Found::new(
                Cause::FirewallForward,
                format!("{} drops what none of its rules accepts; {sent} packets have left by the tunnel and {received} have come", chain_words(chain)),
                "accept packets between the tunnel's networks in that chain, both ways",
            ));
    }
    if let Some(seconds) = s.unanswered_s {
        out.push(Found::new(
            Cause::NothingComesBack,
            format!("packets leave and none have come in for {seconds} s"),
            COMES_BACK,
        ));
    } else if !s.shares_with.is_empty() {
        // What leaves by one of them may come back by another.
    } else if sent >= SOME && received == 0 {
        out.push(Found::new(
            Cause::NothingComesBack,
            format!("{sent} packets have left, none has come in"),
            COMES_BACK,
        ));
    } else if received >= SOME && sent == 0 {
        out.push(Found::new(
            Cause::NothingAnswers,
            format!("{received} packets have come in, none has gone back"),
            "hosts behind this gateway need a route to the remote networks by it, and must accept them: check the firewall of the host that is asked",
        ));
    }
}

const COMES_BACK: &str = "at the peer's end check the route back, the firewall and forwarding; on the way, that UDP 4500 and ESP pass both ways";

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
