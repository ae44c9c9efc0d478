//! `cygnet explain`: the last negotiations of a tunnel as differences.

use clap::Args;

use super::output::{Out, Tone, safe, span};
use super::{Exit, Global, Outcome, ask, names, unexpected};
use crate::control::{Request, Response};
use crate::observe::explain::{Explanation, Negotiation, Point};

#[derive(Args, Debug)]
#[command(
    after_help = "Lines that begin with - are ours, those that begin with + the peer's; what is chosen has neither.

Examples:
  cygnet explain a-b
  cygnet explain a-b --all --json | jq '.negotiations[].outcome'

Exit code 0 if the last negotiation succeeded, else 1."
)]
pub struct ExplainArgs {
    /// The tunnel
    #[arg(add = names::tunnels())]
    tunnel: String,
    /// All that is kept: also the last ones of other kinds
    #[arg(long)]
    all: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

pub fn explain(args: &ExplainArgs, g: &Global, out: &mut Out) -> Outcome {
    let request = Request::Explain { tunnel: args.tunnel.clone() };
    let Response::Explained { explanation } = ask(g, &request)? else { return Err(unexpected()) };
    let agreed = explanation.negotiations.first().is_some_and(|n| n.outcome == "agreed");
    let code = if agreed { Exit::Done } else { Exit::Failed };
    if args.json {
        out.json(&explanation)?;
        return Ok(code);
    }
    show(&explanation, args.all || g.verbose > 0, out)?;
    Ok(code)
}

fn show(e: &Explanation, all: bool, out: &mut Out) -> std::io::Result<()> {
    let name = safe(&e.tunnel);
    let Some(last) = e.negotiations.first() else {
        out.line(&format!("tunnel {name} has not negotiated since the daemon started"))?;
        return out.line(&format!("cygnet diagnose {name} says what it waits for"));
    };
    // Of what succeeded last the beginning says the most: keys of a pair are a part of it.
    // And what somebody said since, although nobody has proven it.
    let since = |n: &Negotiation| n.is_claim() && n.ago_s < last.ago_s;
    let also = |n: &&Negotiation| all || since(n) || n.exchange == "ike-auth" && last.exchange != "ike-auth";
    let older = e.negotiations.iter().skip(1);
    let shown: Vec<&Negotiation> = std::iter::once(last).chain(older.clone().filter(also)).collect();
    for (n, negotiation) in shown.iter().enumerate() {
        if n > 0 {
            out.line("")?;
        }
        one(&name, negotiation, out)?;
    }
    let left = e.negotiations.len() - shown.len();
    if left > 0 {
        out.line("")?;
        out.line(&format!("{left} more of other kinds: cygnet explain --all {name}"))?;
    }
    Ok(())
}

fn one(tunnel: &str, n: &Negotiation, out: &mut Out) -> std::io::Result<()> {
    let (tone, outcome) = match (n.outcome.as_str(), n.by.as_deref()) {
        ("agreed", _) => (Tone::Good, "agreed"),
        ("unanswered", _) => (Tone::Bad, "not answered"),
        (_, Some("peer")) => (Tone::Bad, "refused by the peer"),
        _ => (Tone::Bad, "refused by us"),
    };
    let head = format!(
        "tunnel {tunnel}: {} as {} with {}, {} ago: ",
        exchange(&n.exchange),
        safe(&n.role),
        safe(&n.peer),
        span(n.ago_s)
    );
    let reason = n.reason.as_deref().map_or_else(String::new, |r| format!(" ({})", safe(r)));
    out.line(&format!("{head}{}{reason}", out.paint(tone, outcome)))?;
    if !n.authenticated {
        out.line("  not authenticated: anybody at that address may have caused this")?;
    }
    if let Some(detail) = &n.detail {
        out.line(&format!("  {}", safe(detail)))?;
    }
    n.topics.iter().try_for_each(|p| point(n, p, out))
}

fn point(n: &Negotiation, p: &Point, out: &mut Out) -> std::io::Result<()> {
    let (we, they) = match n.role.as_str() {
        "initiator" => ("we offered", "the peer answered"),
        _ => ("we wanted", "the peer offered"),
    };
    let (tone, result) = match p.result.as_str() {
        "chosen" => (Tone::Good, "chosen"),
        "refused" => (Tone::Bad, "refused"),
        "ahead" => (Tone::Odd, "will be refused"),
        _ => (Tone::Plain, "not reached"),
    };
    out.line("")?;
    out.line(&format!("  {}: {}", out.paint(Tone::Bold, topic(&p.topic)), out.paint(tone, result)))?;
    let theirs = p.theirs.as_deref();
    let same = p.chosen.as_deref().is_some_and(|c| c == p.ours && theirs.is_none_or(|t| t == c));
    if !same {
        let ours = format!("  - {we:<18}{}", safe(&p.ours));
        out.line(&out.paint(if p.result == "refused" { Tone::Bad } else { Tone::Plain }, &ours))?;
        if let Some(theirs) = theirs {
            let theirs = format!("  + {they:<18}{}", safe(theirs));
            out.line(&out.paint(if p.result == "refused" { Tone::Good } else { Tone::Plain }, &theirs))?;
        }
    }
    if let Some(chosen) = &p.chosen {
        out.line(&format!("    {:<18}{}", "chosen", safe(chosen)))?;
    }
    if let Some(why) = &p.why {
        out.line(&format!("    {:<18}{}", "because", safe(why)))?;
    }
    if let Some(c) = &p.change {
        out.line(&format!("    {:<18}{} {}: {}", "change", safe(&c.place), safe(&c.key), safe(&c.how)))?;
    }
    Ok(())
}

fn exchange(name: &str) -> &'static str {
    match name {
        "ike-sa-init" => "IKE_SA_INIT",
        "ike-auth" => "IKE_AUTH",
        "create-child" => "a new pair of SAs",
        "rekey-child" => "new keys for a pair of SAs",
        "rekey-ike" => "new keys for the IKE SA",
        _ => "a negotiation",
    }
}

fn topic(name: &str) -> &'static str {
    match name {
        "ike-proposal" => "IKE proposal",
        "key-exchange" => "key exchange",
        "our-identity" => "our identity",
        "peer-identity" => "the peer's identity",
        "authentication" => "authentication",
        "esp-proposal" => "ESP proposal",
        "child-key-exchange" => "key exchange of the pair (PFS)",
        "our-networks" => "our networks",
        "peer-networks" => "the peer's networks",
        _ => "another topic",
    }
}
