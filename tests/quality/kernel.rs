//! The same where the kernel forwards ESP, at both ends or at one: each of two tunnels between the same networks is probed by itself.

use super::*;

fn pair(test: &str, planes: [&'static str; 2], outer: Family, inner: Family) -> Option<Pair> {
    let report = cygnet_xfrm::probe::probe();
    if !report.has_esp() {
        let why = &report.ciphers[0].1.reason;
        let required = std::env::var("CYGNET_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|what| what == "kernel-esp"), "{why}");
        println!("{test} is skipped: {why}");
        return None;
    }
    let pair = Pair { planes, outer, inner, ..Pair::new(test)? };
    // A packet needs a route before the kernel asks for its policy.
    for (side, host) in pair.hosts.iter().enumerate() {
        let via = inner.outer(0, 1 - side);
        assert_eq!(host.sh(&format!("ip route add default via {via} && echo made")), "made\n");
    }
    Some(pair)
}

#[test]
fn a_backup_takes_over_in_the_kernels_plane() {
    let test = "a_backup_takes_over_in_the_kernels_plane";
    let Some(pair) = pair(test, ["kernel"; 2], Family::V4, Family::V4) else { return };
    takes_over_and_gives_back(pair);
}

#[test]
fn a_backup_takes_over_between_planes() {
    let test = "a_backup_takes_over_between_planes";
    let Some(pair) = pair(test, ["kernel", "userspace"], Family::V4, Family::V4) else { return };
    takes_over_and_gives_back(pair);
}

#[test]
fn a_backup_takes_over_for_ipv6_inside_ipv4() {
    let test = "a_backup_takes_over_for_ipv6_inside_ipv4";
    let Some(pair) = pair(test, ["kernel"; 2], Family::V4, Family::V6) else { return };
    takes_over_and_gives_back(pair);
}

#[test]
fn a_backup_takes_over_for_ipv4_inside_ipv6() {
    let test = "a_backup_takes_over_for_ipv4_inside_ipv6";
    let Some(pair) = pair(test, ["kernel"; 2], Family::V6, Family::V4) else { return };
    takes_over_and_gives_back(pair);
}
