//! Tunnels that share the flows of an SPD rule: those that have it, and the same weight, with our own data plane. Pure.

use std::collections::{BTreeMap, BTreeSet};

use cygnet_model::IpRange;
use cygnet_model::tunnel::MAX_SHARERS;

use super::check::Place;
use super::error::{Sink, wrong};
use super::model::{Config, PlaneChoice, Start};
use super::spd::Pair;

/// A local block, a remote block and the weight of their tunnel.
type Claim = (IpRange, IpRange, u8);

/// Those that make the same claim, where there are several.
fn groups<T>(claims: impl Iterator<Item = (Claim, T)>) -> impl Iterator<Item = (Claim, Vec<T>)> {
    let mut by_claim: BTreeMap<Claim, Vec<T>> = BTreeMap::new();
    for (claim, of) in claims {
        by_claim.entry(claim).or_default().push(of);
    }
    by_claim.into_iter().filter(|(_, of)| of.len() > 1)
}

/// The names of the tunnels with which each tunnel shares flows; of those that share none, nothing.
pub fn partners(c: &Config) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut out: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    if c.daemon.data_plane != PlaneChoice::Userspace {
        return out;
    }
    let claims = c.tunnels.iter().flat_map(|t| {
        let blocks =
            t.spd.iter().flat_map(|rule| rule.remote.iter().map(move |remote| (rule.local, *remote)));
        blocks.map(move |(local, remote)| ((local, remote, t.weight), t.name.as_str()))
    });
    for (_, names) in groups(claims) {
        for name in &names {
            out.entry(name).or_default().extend(names.iter().filter(|other| *other != name));
        }
    }
    out
}

/// What is wrong with tunnels that share, or odd. `pairs`: all of the host.
pub(super) fn check(pairs: &[Pair<Place<'_>>], sink: &Sink) {
    let claims = pairs.iter().filter_map(|pair| Some(((pair.local, pair.remote, pair.weight?), pair)));
    let mut told = BTreeSet::new();
    for ((local, remote, weight), sharers) in groups(claims) {
        if let Some(pair) = sharers.get(MAX_SHARERS) {
            let what =
                format!("{local} -> {remote} is claimed by {} tunnels with weight {weight}", sharers.len());
            let fix =
                format!("{MAX_SHARERS} share a rule at most: give the others a higher weight, as backups");
            sink.error(pair.key.remote, wrong(what, fix));
        }
        for pair in &sharers {
            let t = pair.key.tunnel;
            let (Start::OnDemand, Some(name)) = (t.start, &t.name) else { continue };
            if told.insert(pair.tunnel) {
                let what =
                    "it starts on demand, and shares its flows with tunnels of the same rule and weight";
                let fix = "while one of them is up, nothing asks for this one: write start: active, or passive where the peer begins";
                sink.warning(&name.at, wrong(what, fix));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(plane: &str, tunnels: &[(&str, &str)]) -> Result<Config, String> {
        let mut text = format!(
            "daemon: {{ data_plane: {plane} }}\ngateways: [ {{ name: g, address: 192.0.2.1, networks: [10.1.0.0/16] }} ]\n\
             customer_gateways: [ {{ name: c, address: 192.0.2.2 }} ]\ntunnels:\n"
        );
        for (n, (more, remote)) in tunnels.iter().enumerate() {
            text.push_str(&format!(
                "  - {{ name: t{n}, gateway: g, customer_gateway: c, remote_id: t{n}.example.org, {more}, \
                 auth: {{ psk: pL7v0y2QxNf8sKd3RwZtB5 }}, spd: [ {{ local: 10.1.0.0/16, remote: [{remote}] }} ] }}\n"
            ));
        }
        let loaded = crate::config::load_text(&text, Path::new("/nonexistent"));
        loaded.map(|loaded| loaded.config).map_err(|e| format!("{e:?}"))
    }

    #[test]
    fn tunnels_with_a_rule_and_a_weight_in_common_are_partners() {
        let c = config(
            "userspace",
            &[
                ("weight: 0", "10.2.0.0/16, 10.3.0.0/16"),
                ("weight: 0", "10.2.0.0/16"),
                ("weight: 0", "10.3.0.0/16"),
                ("weight: 1", "10.2.0.0/16"),
                ("weight: 0", "10.4.0.0/16"),
            ],
        )
        .unwrap();
        let found: Vec<_> = partners(&c).into_iter().map(|(name, of)| (name, Vec::from_iter(of))).collect();
        assert_eq!(found, [("t0", vec!["t1", "t2"]), ("t1", vec!["t0"]), ("t2", vec!["t0"])]);
    }

    #[test]
    fn marks_that_keep_tunnels_apart_make_no_partners() {
        let c =
            config("kernel", &[("mark: 1/0xff", "10.2.0.0/16"), ("mark: 2/0xff", "10.2.0.0/16")]).unwrap();
        assert_eq!(partners(&c), BTreeMap::new());
    }

    #[test]
    fn more_than_a_packet_may_ask_are_refused() {
        let tunnels = |count: usize| vec![("weight: 0", "10.2.0.0/16"); count];
        assert!(config("userspace", &tunnels(MAX_SHARERS)).is_ok());
        let refused = config("userspace", &tunnels(MAX_SHARERS + 1)).unwrap_err();
        assert!(refused.contains("claimed by 33 tunnels with weight 0"), "{refused}");
    }
}
