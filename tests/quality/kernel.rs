//! The same where the kernel forwards ESP, at both ends or at one: each of two tunnels between the same networks is probed by itself.

use super::*;

fn pair(test: &str, planes: [&'static str; 2]) -> Option<Pair> {
    let report = cygnet_xfrm::probe::probe();
    if !report.has_esp() {
        let why = &report.ciphers[0].1.reason;
        let required = std::env::var("CYGNET_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|what| what == "kernel-esp"), "{why}");
        println!("{test} is skipped: {why}");
        return None;
    }
    let pair = Pair { planes, ..Pair::new(test)? };
    // A packet needs a route before the kernel asks for its policy.
    for (host, peer) in pair.hosts.iter().zip([2, 1]) {
        assert_eq!(host.sh(&format!("ip route add default via 192.0.2.{peer} && echo made")), "made\n");
    }
    Some(pair)
}

#[test]
fn a_backup_takes_over_in_the_kernels_plane() {
    let Some(pair) = pair("a_backup_takes_over_in_the_kernels_plane", ["kernel"; 2]) else { return };
    takes_over_and_gives_back(pair);
}

#[test]
fn a_backup_takes_over_between_planes() {
    let Some(pair) = pair("a_backup_takes_over_between_planes", ["kernel", "userspace"]) else { return };
    takes_over_and_gives_back(pair);
}
