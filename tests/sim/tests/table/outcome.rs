//! What became of an input, in one line: the states afterwards, the SPIs in use, and every action in its order.

use cygnet_ike::io::Ending;
use cygnet_ike::wire::{Delete, Header, Notify, Payloads};
use cygnet_ike::{Action, Event, Input};
use cygnet_model::Now;
use cygnet_model::tunnel::Direction;

use crate::states::Scene;

/// Feeds one input to the gateway under test and tells what it led to. Jobs are done at once; nothing else is performed.
pub fn outcome(scene: &mut Scene, now: Now, input: Input<'_>) -> String {
    let out = scene.lab.handle(scene.side, now, input);
    let endpoint = &scene.lab.gateways[scene.side].endpoint;
    let names: Vec<_> = endpoint.spis().iter().filter_map(|spi| endpoint.state_name(*spi)).collect();
    let names = if names.is_empty() { "no SA".to_owned() } else { names.join(" + ") };
    let (ike, esp) = endpoint.reserved();
    let did: Vec<String> = out.iter().filter_map(|a| action(scene, a)).collect();
    let did = if did.is_empty() { "nothing".to_owned() } else { did.join("; ") };
    format!("{names:<25} {ike}/{esp}  {did}")
}

fn action(scene: &Scene, action: &Action) -> Option<String> {
    Some(match action {
        Action::Send { bytes, .. } => message(scene, bytes),
        Action::Keepalive(_) => "keepalive".into(),
        Action::OpenTunnel(_) => "open".into(),
        Action::CloseTunnel(_) => "close".into(),
        Action::InstallSa(spec) => format!("+{}", way(spec.id.direction)),
        Action::RemoveSa(id) => format!("-{}", way(id.direction)),
        Action::Migrate(id, _) => format!("migrate {}", way(id.direction)),
        Action::Run(_, job) => format!("{job:?}"),
        Action::Tell(event) => return tell(event),
    })
}

const fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Out => "out",
    }
}

fn tell(event: &Event) -> Option<String> {
    Some(match event {
        Event::IkeUp { .. } => "IKE up".into(),
        Event::Restored { .. } => "taken up again".into(),
        Event::IkeDown { ending, .. } => format!("IKE down ({})", how(*ending)),
        Event::ChildUp { .. } => "child up".into(),
        Event::ChildDown { ending, .. } => format!("child down ({})", how(*ending)),
        Event::Rekeyed { kind, failure: None, .. } => format!("{} rekeyed", kind.name()),
        Event::Rekeyed { kind, failure: Some(f), .. } => format!("{} not rekeyed ({f})", kind.name()),
        Event::Lesson { trouble, .. } => format!("lesson {}", trouble.reason),
        Event::Failure { reason, retry_in, .. } => {
            format!("failure {reason}{}", if retry_in.is_some() { ", retry" } else { "" })
        }
        Event::Dropped { reason, .. } => format!("drop {reason}"),
        Event::CookieDemanded(_) => "demand cookie".into(),
        Event::CookieReturned(_) => "take cookie".into(),
        Event::Retransmit(_) => "again".into(),
        Event::RoundTrip(..) | Event::Negotiated { .. } => return None,
    })
}

fn how(ending: Ending) -> String {
    match ending {
        Ending::Local => "local".into(),
        Ending::Peer => "peer".into(),
        Ending::Replaced => "replaced".into(),
        Ending::Failed(reason) => reason.to_string(),
    }
}

/// A message as `< EXCHANGE {payloads}` if it is an answer, `> EXCHANGE {payloads}` if it is a request.
fn message(scene: &Scene, bytes: &[u8]) -> String {
    let Ok((header, _)) = Header::decode(bytes) else { return "garbage".into() };
    let sign = if header.response { '<' } else { '>' };
    let read = |side: usize| scene.lab.gateways[side].endpoint.read(bytes);
    let what = match read(scene.side).or_else(|| read(scene.peer)) {
        Some(p) => payloads(&p),
        None => "sealed".into(),
    };
    format!("{sign} {} {{{what}}}", header.exchange)
}

fn payloads(p: &Payloads) -> String {
    let mut all: Vec<String> = Vec::new();
    let present = [
        (p.idi.is_some(), "IDi"),
        (p.idr.is_some(), "IDr"),
        (p.auth.is_some(), "AUTH"),
        (p.sa.is_some(), "SA"),
        (p.ke.is_some(), "KE"),
        (p.nonce.is_some(), "N"),
        (p.tsi.is_some(), "TSi"),
        (p.tsr.is_some(), "TSr"),
    ];
    all.extend(present.iter().filter(|(there, _)| *there).map(|(_, name)| (*name).to_owned()));
    all.extend(p.notifies.iter().filter(|n| !is_routine(n)).map(|n| format!("N({})", n.kind)));
    all.extend(p.deletes.iter().map(|d| match d {
        Delete::Ike => "D(IKE)".to_owned(),
        Delete::Esp(spis) => format!("D(ESP x{})", spis.len()),
        Delete::Other => "D(other)".to_owned(),
    }));
    all.join(" ")
}

/// Notifications that every IKE_SA_INIT carries.
fn is_routine(n: &Notify) -> bool {
    let name = n.kind.name().unwrap_or_default();
    name.starts_with("NAT_DETECTION") || name == "IKEV2_FRAGMENTATION_SUPPORTED"
}
