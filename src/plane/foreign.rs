//! What other IPsec programs have in the kernel's SPD, as far as it is in our way.
//!
//! The kernel has one place for each (direction, selector, mark), and asks the policies that match a packet by their
//! priority. Somebody else's policy in a place that we need cannot be replaced without breaking what it is there for;
//! one that is asked before ours decides about packets that we guard. Both are told, neither is touched.

use std::net::IpAddr;

use cygnet_model::plane::Obstacle;
use cygnet_model::tunnel::Mark;
use cygnet_xfrm::policy::{Policy, PolicyAction, PolicyDirection, PolicySelector, PortMask};

/// So many obstacles are told; the rest is of the same kind.
const TOLD: usize = 16;

/// The policies among `foreign` that are asked before one of `ours` about some packet, or that have taken its place, at
/// most a few.
pub fn in_front<'a>(foreign: &[Policy], ours: impl Iterator<Item = &'a Policy> + Clone) -> Vec<Obstacle> {
    let stands_before = |f: &&Policy| {
        ours.clone().any(|o| {
            f.key.direction == o.key.direction
                && (f.priority < o.priority || f.key == o.key)
                && overlap(&f.key.selector, &o.key.selector)
                && meet(f.key.mark, o.key.mark)
        })
    };
    foreign.iter().filter(stands_before).take(TOLD).map(obstacle).collect()
}

fn obstacle(policy: &Policy) -> Obstacle {
    let does = match policy.action {
        PolicyAction::Allow => "lets them pass in clear text",
        PolicyAction::Block => "drops them",
        PolicyAction::Protect { .. } => "leads them into another tunnel",
    };
    Obstacle {
        name: "policy_in_front",
        what: format!(
            "an IPsec policy of another program is asked instead of the guards about some of their packets and {does}: {}",
            describe(policy)
        ),
        fix: format!(
            "remove it there, or by: ip xfrm policy delete src {} dst {} dir {}",
            prefix(policy.key.selector.source),
            prefix(policy.key.selector.destination),
            direction(policy.key.direction),
        ),
    }
}

/// A policy in one line, its owner's reqid included.
pub fn describe(policy: &Policy) -> String {
    let mark = policy.key.mark.map_or_else(String::new, |m| format!(", mark {:#x}/{:#x}", m.value, m.mask));
    format!(
        "{} to {} ({}, priority {}, reqid {}{mark})",
        prefix(policy.key.selector.source),
        prefix(policy.key.selector.destination),
        direction(policy.key.direction),
        policy.priority,
        policy.reqid,
    )
}

fn prefix((address, len): (IpAddr, u8)) -> String {
    format!("{address}/{len}")
}

const fn direction(direction: PolicyDirection) -> &'static str {
    match direction {
        PolicyDirection::In => "in",
        PolicyDirection::Out => "out",
        PolicyDirection::Forward => "fwd",
    }
}

/// Whether there are packets that both selectors match.
fn overlap(a: &PolicySelector, b: &PolicySelector) -> bool {
    let ports = |a: PortMask, b: PortMask| (a.value ^ b.value) & a.mask & b.mask == 0;
    blocks_meet(a.source, b.source)
        && blocks_meet(a.destination, b.destination)
        && (a.protocol == 0 || b.protocol == 0 || a.protocol == b.protocol)
        && ports(a.source_port, b.source_port)
        && ports(a.destination_port, b.destination_port)
}

fn blocks_meet((a, a_len): (IpAddr, u8), (b, b_len): (IpAddr, u8)) -> bool {
    let (a, b, bits) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let free = bits - u32::from(a_len.min(b_len)).min(bits);
    (a ^ b).checked_shr(free).unwrap_or(0) == 0
}

/// Whether there are packet marks that both policies take.
fn meet(a: Option<Mark>, b: Option<Mark>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => (a.value ^ b.value) & a.mask & b.mask == 0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use cygnet_xfrm::policy::PolicyKey;

    use super::*;

    fn policy(source: &str, destination: &str, priority: u32, mark: Option<Mark>) -> Policy {
        let block = |text: &str| {
            let (address, len) = text.split_once('/').unwrap();
            (address.parse().unwrap(), len.parse().unwrap())
        };
        Policy {
            key: PolicyKey {
                direction: PolicyDirection::Out,
                selector: PolicySelector {
                    source: block(source),
                    destination: block(destination),
                    protocol: 0,
                    source_port: PortMask::ANY,
                    destination_port: PortMask::ANY,
                },
                mark,
            },
            priority,
            reqid: 1,
            action: PolicyAction::Allow,
        }
    }

    #[test]
    fn what_is_asked_before_a_guard_about_its_packets_is_told_with_its_owner() {
        let ours = [policy("10.1.0.0/16", "10.2.0.0/16", 13_000_000, None)];
        let found = |f: Policy| in_front(&[f], ours.iter());
        let told = found(policy("0.0.0.0/0", "10.2.3.0/24", 100, None));
        assert_eq!(told.len(), 1);
        assert!(told[0].what.contains("0.0.0.0/0 to 10.2.3.0/24 (out, priority 100, reqid 1)"), "{told:?}");
        assert!(found(policy("10.0.0.0/8", "10.2.0.0/16", 14_000_000, None)).is_empty(), "behind");
        assert!(found(policy("10.1.0.0/16", "10.3.0.0/16", 100, None)).is_empty(), "other packets");
        assert!(found(policy("::/0", "::/0", 100, None)).is_empty(), "another family");
    }

    #[test]
    fn marks_that_exclude_each_other_do_not_meet() {
        let mark = |value, mask| Some(Mark { value, mask });
        let ours = [policy("10.1.0.0/16", "10.2.0.0/16", 13_000_000, mark(1, 0xF))];
        let found = |m| in_front(&[policy("10.1.0.0/16", "10.2.0.0/16", 5, m)], ours.iter()).len();
        assert_eq!(
            (found(mark(2, 0xF)), found(mark(1, 0xF)), found(None), found(mark(0x10, 0xF0))),
            (0, 1, 1, 1)
        );
    }

    #[test]
    fn blocks_of_every_length_meet_or_not() {
        let v4 = |text: &str, len| (text.parse().unwrap(), len);
        assert!(blocks_meet(v4("10.0.0.0", 8), v4("10.9.0.0", 16)));
        assert!(!blocks_meet(v4("10.0.0.0", 8), v4("11.0.0.0", 8)));
        assert!(blocks_meet(v4("0.0.0.0", 0), v4("255.255.255.255", 32)));
        assert!(blocks_meet(v4("::", 0), v4("ff02::1", 128)));
        assert!(!blocks_meet(v4("fd00::1", 128), v4("fd00::2", 128)));
    }
}
