//! Routing rules and default routes of a private table, behind blocking calls.
//!
//! Only what cygnet's own tables need: rules and default routes that carry a protocol number as their owner's mark.
//! Rules and routes of others are never touched, because every removal names that number too.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::{Handle, IpVersion};

use crate::link::{Rtnl, RtnlError};

const EXISTS: i32 = nix::errno::Errno::EEXIST as i32;
const NO_ENTRY: i32 = nix::errno::Errno::ENOENT as i32;
const NO_PROCESS: i32 = nix::errno::Errno::ESRCH as i32;

/// Address family of a rule or route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    const fn address_family(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// What a rule does with a packet that it matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// Looks it up in a table.
    Table(u32),
    /// Goes on at the rule of a (higher) priority.
    Goto(u32),
    /// Goes on with the next rule.
    Nop,
    /// Drops it.
    Blackhole,
}

/// A routing rule. Two rules with equal fields are the same rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// Place among the rules; lower is earlier.
    pub priority: u32,
    /// Name of the input interface; "lo" matches what this host sends.
    pub iif: Option<String>,
    /// Source prefix; `None` is any.
    pub source: Option<(IpAddr, u8)>,
    /// Destination prefix; `None` is any.
    pub destination: Option<(IpAddr, u8)>,
    /// IP protocol.
    pub ip_protocol: Option<u8>,
    /// First and last source port.
    pub source_ports: Option<(u16, u16)>,
    /// First and last destination port.
    pub destination_ports: Option<(u16, u16)>,
    /// Value and mask of the packet's mark.
    pub mark: Option<(u32, u32)>,
    /// What it does.
    pub verdict: Verdict,
    /// Who owns it (`rtm_protocol`).
    pub owner: u8,
}

impl Rule {
    /// A rule that matches everything of a family.
    pub const fn new(family: Family, priority: u32, verdict: Verdict, owner: u8) -> Self {
        Self {
            family,
            priority,
            iif: None,
            source: None,
            destination: None,
            ip_protocol: None,
            source_ports: None,
            destination_ports: None,
            mark: None,
            verdict,
            owner,
        }
    }
}

/// Where a default route leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Via {
    /// Out of the link with this index.
    Link(u32),
    /// Nowhere; packets are dropped silently.
    Blackhole,
}

/// A default route of a private table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DefaultRoute {
    /// Family.
    pub family: Family,
    /// Table.
    pub table: u32,
    /// Where to.
    pub via: Via,
    /// Lower is preferred.
    pub metric: u32,
    /// Who owns it (`rtm_protocol`).
    pub owner: u8,
}

impl Rtnl {
    /// The rules of both families that belong to `owner`.
    pub fn rules(&self, owner: u8) -> Result<Vec<Rule>, RtnlError> {
        self.run("list routing rules", move |handle| async move { list_rules(&handle, owner).await })
    }

    /// Adds rules, then removes others, and reads all back. Rules that are there already or gone already are fine. If
    /// one cannot be added, those added before it are removed again and nothing is removed.
    pub fn change_rules(&self, add: Vec<Rule>, remove: Vec<Rule>) -> Result<(), RtnlError> {
        self.run("change routing rules", move |handle| async move {
            for (done, rule) in add.iter().enumerate() {
                if let Err(error) = add_rule(&handle, rule).await {
                    for undo in add.iter().take(done) {
                        // The first error is the one to tell.
                        let _ = remove_rule(&handle, undo).await;
                    }
                    return Err(error);
                }
            }
            for rule in &remove {
                remove_rule(&handle, rule).await?;
            }
            let Some(owner) = add.iter().chain(&remove).map(|rule| rule.owner).next() else { return Ok(()) };
            let now = list_rules(&handle, owner).await?;
            let missing = add.iter().find(|rule| !now.contains(rule)).map(|rule| ("add", rule));
            let left = remove.iter().find(|rule| now.contains(rule)).map(|rule| ("remove", rule));
            match missing.or(left) {
                None => Ok(()),
                Some((what, rule)) => {
                    let detail = format!("the kernel took it, but it shows no effect: {rule:?}");
                    Err(RtnlError::new(&format!("{what} a routing rule"), detail))
                }
            }
        })
    }

    /// The default routes of a table, of both families.
    pub fn default_routes(&self, table: u32) -> Result<Vec<DefaultRoute>, RtnlError> {
        self.run("list routes", move |handle| async move { list_routes(&handle, table).await })
    }

    /// Adds a default route if it is not there, and reads it back.
    pub fn add_default_route(&self, route: DefaultRoute) -> Result<(), RtnlError> {
        self.run("add a route", move |handle| async move {
            match handle.route().add(route_message(&route)).execute().await {
                Ok(()) => {}
                Err(e) => tolerate(RtnlError::of("add a route", e), &[EXISTS])?,
            }
            if list_routes(&handle, route.table).await?.contains(&route) {
                Ok(())
            } else {
                Err(RtnlError::new(
                    "add a route",
                    format!("the kernel took it, but it is not there: {route:?}"),
                ))
            }
        })
    }

    /// Removes a default route if it is there.
    pub fn remove_default_route(&self, route: DefaultRoute) -> Result<(), RtnlError> {
        self.run("remove a route", move |handle| async move {
            match handle.route().del(route_message(&route)).execute().await {
                Ok(()) => {}
                Err(e) => tolerate(RtnlError::of("remove a route", e), &[NO_PROCESS, NO_ENTRY])?,
            }
            if list_routes(&handle, route.table).await?.contains(&route) {
                return Err(RtnlError::new("remove a route", format!("it is still there: {route:?}")));
            }
            Ok(())
        })
    }
}

fn tolerate(error: RtnlError, errnos: &[i32]) -> Result<(), RtnlError> {
    if error.errno.is_some_and(|e| errnos.contains(&e)) { Ok(()) } else { Err(error) }
}

async fn add_rule(handle: &Handle, rule: &Rule) -> Result<(), RtnlError> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule_message(rule);
    match request.execute().await {
        Ok(()) => Ok(()),
        Err(e) => tolerate(RtnlError::of(&format!("add {rule:?}"), e), &[EXISTS]),
    }
}

async fn remove_rule(handle: &Handle, rule: &Rule) -> Result<(), RtnlError> {
    match handle.rule().del(rule_message(rule)).execute().await {
        Ok(()) => Ok(()),
        Err(e) => tolerate(RtnlError::of(&format!("remove {rule:?}"), e), &[NO_ENTRY]),
    }
}

async fn list_rules(handle: &Handle, owner: u8) -> Result<Vec<Rule>, RtnlError> {
    let mut rules = Vec::new();
    for (family, version) in [(Family::V4, IpVersion::V4), (Family::V6, IpVersion::V6)] {
        let mut found = std::pin::pin!(handle.rule().get(version).execute());
        while let Some(message) =
            found.try_next().await.map_err(|e| RtnlError::of("list routing rules", e))?
        {
            rules.extend(parse_rule(family, &message).filter(|rule| rule.owner == owner));
        }
    }
    Ok(rules)
}

async fn list_routes(handle: &Handle, table: u32) -> Result<Vec<DefaultRoute>, RtnlError> {
    let mut routes = Vec::new();
    for family in Family::ALL {
        let mut request = RouteMessage::default();
        request.header.address_family = family.address_family();
        let mut found = std::pin::pin!(handle.route().get(request).execute());
        while let Some(message) = found.try_next().await.map_err(|e| RtnlError::of("list routes", e))? {
            routes.extend(parse_route(family, &message).filter(|route| route.table == table));
        }
    }
    Ok(routes)
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = rule.family.address_family();
    message.header.action = match rule.verdict {
        Verdict::Table(_) => RuleAction::ToTable,
        Verdict::Goto(_) => RuleAction::Goto,
        Verdict::Nop => RuleAction::Nop,
        Verdict::Blackhole => RuleAction::Blackhole,
    };
    let attributes = &mut message.attributes;
    match rule.verdict {
        Verdict::Table(table) => attributes.push(RuleAttribute::Table(table)),
        Verdict::Goto(target) => attributes.push(RuleAttribute::Goto(target)),
        Verdict::Nop | Verdict::Blackhole => {}
    }
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(rule.owner.into()));
    attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
    if let Some((addr, len)) = rule.source {
        message.header.src_len = len;
        attributes.push(RuleAttribute::Source(addr));
    }
    if let Some((addr, len)) = rule.destination {
        message.header.dst_len = len;
        attributes.push(RuleAttribute::Destination(addr));
    }
    attributes.extend(rule.ip_protocol.map(|p| RuleAttribute::IpProtocol(i32::from(p).into())));
    let range = |(start, end)| RulePortRange { start, end };
    attributes.extend(rule.source_ports.map(|ports| RuleAttribute::SourcePortRange(range(ports))));
    attributes.extend(rule.destination_ports.map(|ports| RuleAttribute::DestinationPortRange(range(ports))));
    if let Some((value, mask)) = rule.mark {
        attributes.extend([RuleAttribute::FwMark(value), RuleAttribute::FwMask(mask)]);
    }
    message
}

/// `None` for rules of a kind that is not ours.
fn parse_rule(family: Family, message: &RuleMessage) -> Option<Rule> {
    let mut rule = Rule::new(family, 0, Verdict::Nop, 0);
    let (mut table, mut target) = (u32::from(message.header.table), None);
    let (mut mark, mut mask) = (None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(t) => table = *t,
            RuleAttribute::Goto(to) => target = Some(*to),
            RuleAttribute::Priority(p) => rule.priority = *p,
            RuleAttribute::Protocol(p) => rule.owner = (*p).into(),
            RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
            RuleAttribute::Source(addr) => rule.source = Some((*addr, message.header.src_len)),
            RuleAttribute::Destination(addr) => rule.destination = Some((*addr, message.header.dst_len)),
            RuleAttribute::IpProtocol(p) => rule.ip_protocol = u8::try_from(i32::from(*p)).ok(),
            RuleAttribute::SourcePortRange(r) => rule.source_ports = Some((r.start, r.end)),
            RuleAttribute::DestinationPortRange(r) => rule.destination_ports = Some((r.start, r.end)),
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            _ => {}
        }
    }
    rule.mark = mark.map(|value| (value, mask));
    rule.verdict = match message.header.action {
        RuleAction::ToTable => Verdict::Table(table),
        RuleAction::Goto => Verdict::Goto(target?),
        RuleAction::Nop => Verdict::Nop,
        RuleAction::Blackhole => Verdict::Blackhole,
        _ => return None,
    };
    Some(rule)
}

fn route_message(route: &DefaultRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = route.family.address_family();
    message.header.protocol = RouteProtocol::from(route.owner);
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Priority(route.metric));
    match route.via {
        Via::Link(index) => {
            message.header.kind = RouteType::Unicast;
            message.header.scope = match route.family {
                Family::V4 => RouteScope::Link,
                Family::V6 => RouteScope::Universe,
            };
            message.attributes.push(RouteAttribute::Oif(index));
        }
        Via::Blackhole => {
            message.header.kind = RouteType::BlackHole;
            message.header.scope = RouteScope::Universe;
        }
    }
    message
}

fn parse_route(family: Family, message: &RouteMessage) -> Option<DefaultRoute> {
    if message.header.destination_prefix_length != 0
        || message.header.address_family != family.address_family()
    {
        return None;
    }
    let (mut table, mut metric, mut link) = (u32::from(message.header.table), 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(t) => table = *t,
            RouteAttribute::Priority(p) => metric = *p,
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let via = match message.header.kind {
        RouteType::Unicast => Via::Link(link?),
        RouteType::BlackHole => Via::Blackhole,
        _ => return None,
    };
    Some(DefaultRoute { family, table, via, metric, owner: message.header.protocol.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_survives_its_message() {
        let full = Rule {
            iif: Some("tun0".to_owned()),
            source: Some(("10.1.0.0".parse().unwrap(), 16)),
            destination: Some(("10.2.0.0".parse().unwrap(), 24)),
            ip_protocol: Some(6),
            source_ports: Some((80, 90)),
            destination_ports: Some((443, 443)),
            mark: Some((1, 0xFF)),
            ..Rule::new(Family::V4, 3210, Verdict::Table(51_657), 201)
        };
        for verdict in [Verdict::Table(51_657), Verdict::Goto(4000), Verdict::Nop, Verdict::Blackhole] {
            let rule = Rule { verdict, ..full.clone() };
            assert_eq!(parse_rule(Family::V4, &rule_message(&rule)), Some(rule));
        }
    }

    #[test]
    fn a_route_survives_its_message() {
        for family in Family::ALL {
            for via in [Via::Link(7), Via::Blackhole] {
                let route = DefaultRoute { family, table: 51_657, via, metric: 9, owner: 201 };
                assert_eq!(parse_route(family, &route_message(&route)), Some(route));
            }
        }
    }
}
