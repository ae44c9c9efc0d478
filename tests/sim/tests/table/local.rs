//! What comes from our own side: time, commands, and the data plane.

use std::net::SocketAddr;
use std::time::Duration;

use cygnet_ike::{Command, Input};
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, Now, Spi};
use cygnet_sim::TUNNEL;

use crate::inputs::{Row, behind_nat, row};
use crate::outcome::outcome;
use crate::states::Scene;

const CHILD: ChildId = ChildId { tunnel: TUNNEL, index: 0 };

/// Time, commands, and the data plane.
pub fn local() -> Vec<Row> {
    let mut rows = vec![
        row("Tick when due", |s| {
            let now = due(s)?;
            Some(outcome(s, now, Input::Tick))
        }),
        row("Tick that ends the state, if within 2 minutes", |s| {
            let end = s.lab.now().mono + Duration::from_secs(120);
            let was = state(s);
            loop {
                let now = due(s).filter(|now| now.mono <= end)?;
                let what = outcome(s, now, Input::Tick);
                if state(s) != was {
                    return Some(what);
                }
            }
        }),
    ];
    let commands = [
        Command::Up(TUNNEL),
        Command::Down(TUNNEL),
        Command::RekeyChildren(TUNNEL),
        Command::RekeyIke(TUNNEL),
        Command::Reset(TUNNEL),
        Command::Shutdown,
    ];
    for command in commands {
        let name = format!("{command:?}");
        let name = name.split('(').next().unwrap().to_owned();
        rows.push(row(format!("Command {name}"), move |s| {
            let now = s.lab.now();
            Some(outcome(s, now, Input::Command(command)))
        }));
    }
    rows.push(row("PlaneFailed", |s| {
        let now = s.lab.now();
        Some(outcome(s, now, Input::PlaneFailed { child: CHILD, detail: "no".into() }))
    }));
    for direction in [Direction::In, Direction::Out] {
        for hard in [false, true] {
            let name = format!("Expired, {direction:?}, {}", if hard { "hard" } else { "soft" });
            rows.push(row(name, move |s| {
                let (sa, now) = (ours(s, direction), s.lab.now());
                Some(outcome(s, now, Input::Expired { sa, hard }))
            }));
        }
    }
    rows.push(row("Acquire", |s| {
        let now = s.lab.now();
        Some(outcome(s, now, Input::Acquire(CHILD.into())))
    }));
    rows.push(row("Inbound", |s| {
        let (sa, now) = (ours(s, Direction::In), s.lab.now());
        Some(outcome(s, now, Input::Inbound(sa)))
    }));
    rows.push(row("PeerMoved, nobody behind a NAT", moved));
    rows.push(Row { change: behind_nat, ..row("PeerMoved, the peer behind a NAT", moved) });
    rows
}

fn moved(s: &mut Scene) -> Option<String> {
    let (sa, now) = (ours(s, Direction::In), s.lab.now());
    let remote = SocketAddr::new(s.flow().remote.ip(), 61_000);
    Some(outcome(s, now, Input::PeerMoved { sa, remote }))
}

/// The newest SA of the gateway under test in a direction, or one that there never was.
fn ours(s: &Scene, direction: Direction) -> SaId {
    let sas = s.lab.gateways[s.side].plane.sas.iter().filter(|(id, _)| id.direction == direction);
    let newest = sas.max_by_key(|(_, (order, _))| *order).map(|(id, _)| *id);
    newest.unwrap_or(SaId { child: CHILD, direction, spi: Spi::new(0xdead_beef).unwrap() })
}

fn due(s: &Scene) -> Option<Now> {
    let mono = s.lab.gateways[s.side].endpoint.next_wakeup()?;
    Some(Now { mono, unix: mono.as_nanos() / 1_000_000_000 })
}

fn state(s: &Scene) -> Option<&'static str> {
    s.lab.gateways[s.side].endpoint.state_name(s.sa?)
}
